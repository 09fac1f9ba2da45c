//! The comparison of bench-scripts: that it measures, not what. Its goals are for reading, on a quiet machine.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::lab::{Lab, command, target};

/// What each load must tell of a tunnel.
const TOLD: &[(&str, &[&str])] = &[
    ("tcp-1", &["gbit_s", "client_s_per_gb", "gateway_s_per_gb"]),
    ("flood-64", &["kpps", "gbit_s", "client_s_per_gb", "gateway_s_per_gb"]),
    ("paced-1372", &["kpps", "gateway_s_per_gb"]),
    ("ping-idle", &["mean_us", "p50_us", "p99_us", "pings"]),
    ("ping-busy", &["mean_us", "p50_us", "p99_us", "pings", "gbit_s"]),
    ("memory", &["rss_start_kib", "rss_after_kib"]),
];
/// What may be zero, but must be told.
const COUNTED: &[(&str, &[&str])] = &[
    ("tcp-1", &["retransmits"]),
    ("paced-1372", &["lost_percent", "out_of_order"]),
    ("ping-idle", &["lost"]),
];

/// A directory for what the scripts write, removed on drop.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Self {
        let path = target().join("tmp").join(format!("comparison-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Runs a script of bench-scripts with this build of Ringway.
fn script(name: &str, words: &[&str]) {
    let mut script = command("bash");
    script.arg(format!("bench-scripts/{name}")).args(words).current_dir(env!("CARGO_MANIFEST_DIR"));
    script.env("CARGO_TARGET_DIR", target()).env("RINGWAY", env!("CARGO_BIN_EXE_ringway"));
    let out = script.output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(out.status.success(), "{name} {words:?}:\n{}{}", text(&out.stdout), text(&out.stderr));
}

/// A number, or the median of several.
fn number(value: &Value) -> Option<f64> {
    value.as_f64().or_else(|| value["median"].as_f64())
}

fn every_field_is_there(section: &Value) {
    let loads: Vec<_> = section["loads"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    for peer in section["peers"].as_array().unwrap() {
        let name = peer["name"].as_str().unwrap();
        for field in ["how", "version", "date"] {
            assert!(peer[field].as_str().is_some_and(|text| !text.is_empty()), "{name}: {field} of {peer}");
        }
        let told = |load: &str, field| number(&section["summary"][name][load][field]);
        // What little goes the long way in a second may cost less than a tick of processor time.
        let least = |field| {
            if section["settings"]["link"] == "wan" && field != "gbit_s" { 0.0 } else { f64::MIN_POSITIVE }
        };
        for (load, fields) in TOLD.iter().filter(|(load, _)| loads.contains(load)) {
            for field in *fields {
                assert!(
                    told(load, field).is_some_and(|value| value >= least(*field)),
                    "{name}, {load}: no {field}"
                );
            }
        }
        for (load, fields) in COUNTED.iter().filter(|(load, _)| loads.contains(load)) {
            for field in *fields {
                assert!(told(load, field).is_some(), "{name}, {load}: no {field}");
            }
        }
    }
    assert_eq!(section["failures"], serde_json::json!([]));
    assert!(section["quiet"]["spin_ms"]["median"].as_f64().is_some_and(|ms| ms > 0.0));
}

fn read(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// Two peers and every kind of load over a veth, one of them over the long way; then the page that is made of it.
#[test]
fn two_peers_are_compared_and_reported() {
    let Some(_lab) = Lab::with_traffic() else { return };
    let scratch = Scratch::new();
    let (json, far) = (scratch.0.join("bench.json"), scratch.0.join("far.json"));
    let (path, far_path) = (json.to_str().unwrap(), far.to_str().unwrap());
    let least = ["--rounds", "1", "--seconds", "1", "--turns", "1"];
    let near = ["--preset", "quick", "--sections", "main", "--json", path, "--peers", "ringway,boringtun"];
    let loads = ["--loads", "tcp-1,flood-64,paced-1372,ping-idle,ping-busy"];
    script("bench", &[&near[..], &loads, &least].concat());
    let long = ["--link", "wan", "--peers", "ringway", "--loads", "tcp-1", "--json", far_path];
    script("compare", &[&long[..], &least].concat());

    let (bench, far) = (read(&json), read(&far));
    let sections = bench["sections"].as_array().unwrap();
    assert_eq!((sections.len(), &sections[0]["name"]), (1, &Value::from("main")));
    for (comparison, peers) in [(&sections[0], 2), (&far, 1)] {
        assert_eq!(comparison["peers"].as_array().unwrap().len(), peers);
        every_field_is_there(comparison);
    }
    assert!(far["wan_ceiling"][0]["per_second"].as_f64().is_some_and(|rate| rate > 0.0));
    assert!(bench["memory_at_start"]["rss_kib"]["median"].as_f64().is_some_and(|kib| kib > 1000.0));
    for field in ["when", "commit", "iperf3"] {
        assert!(bench[field].as_str().is_some_and(|text| !text.is_empty()), "{field}");
    }
    let judged = |what: &str| {
        let goals = bench["goals"].as_array().unwrap();
        let goal = goals.iter().find(|goal| goal["what"].as_str().unwrap().contains(what)).unwrap();
        goal["verdict"].as_str().unwrap().to_owned()
    };
    for what in
        ["TCP, one stream", "gateway s/GB", "UDP flood, 64", "idle ping, p99", "under one stream", "memory"]
    {
        assert!(["PASS", "MISS"].contains(&judged(what).as_str()), "{what}");
    }
    assert_eq!(judged("network card"), "-", "what was not measured is no miss");

    script("report", &["--into", scratch.0.to_str().unwrap(), path]);
    let page = fs::read_to_string(scratch.0.join("performance.md")).unwrap();
    for peer in ["| ringway | one worker |", "| boringtun | -t 1 |"] {
        assert!(page.contains(peer), "{peer}\n{page}");
    }
    let plots: Vec<_> = page.split("](").skip(1).filter_map(|rest| rest.split(')').next()).collect();
    assert_eq!(plots.len(), 6, "five loads, and the processor time of the stream: {plots:?}");
    for plot in plots {
        let svg = fs::read_to_string(scratch.0.join(plot)).unwrap();
        assert!(
            svg.starts_with("<svg ") && svg.contains(">ringway<") && svg.contains(">boringtun<"),
            "{plot}"
        );
    }
}
