//! The service files: systemd's own check of them, and what they must agree on with the program.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test ends by a panic that says what went wrong")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use ringway::gateway::failure::Failure;

const UNITS: [&str; 2] = ["ringway.service", "ringway@.service"];
const GUARD: &str = "ringway-guard@.service";

fn unit(name: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("config").join(name)).unwrap()
}

/// The values of a key, word by word.
fn words<'a>(unit: &'a str, key: &str) -> Vec<&'a str> {
    let values = unit.lines().filter_map(|line| line.strip_prefix(key)?.strip_prefix('='));
    values.flat_map(str::split_whitespace).collect()
}

/// systemd-analyze: installed, or unpacked by bench-scripts/deps, which then needs to be told of its library.
fn analyze() -> Option<Command> {
    let unpacked = Path::new(env!("CARGO_TARGET_TMPDIR")).parent()?.join("tools/systemd");
    let architecture = format!("{}-linux-gnu", std::env::consts::ARCH);
    let libraries = ["usr/lib", "lib"].map(|dir| unpacked.join(dir).join(&architecture));
    let libraries = [libraries[0].join("systemd"), libraries[0].clone(), libraries[1].clone()];
    let libraries = std::env::join_paths(libraries).ok()?;
    let command = |program: &Path| {
        let mut command = Command::new(program);
        command.env("LD_LIBRARY_PATH", &libraries);
        command
    };
    for program in [PathBuf::from("systemd-analyze"), unpacked.join("usr/bin/systemd-analyze")] {
        let command = || command(&program);
        if command().arg("--version").output().is_ok_and(|out| out.status.success()) {
            return Some(command());
        }
    }
    None
}

#[test]
fn systemd_accepts_the_units() {
    let Some(mut command) = analyze() else {
        assert!(std::env::var_os("RINGWAY_REQUIRE_ROOT").is_none(), "no systemd-analyze: run make deps");
        eprintln!("RINGWAY-SKIPPED systemd_accepts_the_units: no systemd-analyze (make deps)");
        return;
    };
    let dir = std::env::temp_dir().join(format!("ringway-{}-units", std::process::id()));
    fs::create_dir(&dir).unwrap();
    let mut paths = Vec::new();
    for name in UNITS.into_iter().chain([GUARD]) {
        // It looks for the program.
        let here = unit(name).replace("/usr/bin/ringway", env!("CARGO_BIN_EXE_ringway"));
        let path = dir.join(name.replace('@', "@one"));
        fs::write(&path, here).unwrap();
        paths.push(path);
    }
    let out = command.args(["verify", "--man=no"]).args(&paths).output().unwrap();
    fs::remove_dir_all(&dir).unwrap();
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success() && said.is_empty(), "{}: {said}", out.status);
}

#[test]
fn failures_that_stay_are_not_tried_again() {
    let lasting = [Failure::Configuration, Failure::TunNotPermitted, Failure::Running];
    for name in UNITS {
        let unit = unit(name);
        let codes = words(&unit, "RestartPreventExitStatus");
        // 2: clap's, for a bad argument.
        let expected: Vec<_> = [2].into_iter().chain(lasting.map(Failure::exit_code)).collect();
        assert_eq!(codes, expected.iter().map(u8::to_string).collect::<Vec<_>>());
        assert_eq!(words(&unit, "Type"), ["notify"]);
    }
}

#[test]
fn the_two_units_differ_in_their_file_only() {
    let [one, many] = UNITS.map(unit);
    let settings = |text: &str| {
        let lines =
            text.lines().filter(|line| !line.starts_with(['#', ';']) && !line.starts_with("Description="));
        lines.map(|line| line.replace("/%i.toml", "/gateway.toml")).collect::<Vec<_>>()
    };
    assert_eq!(settings(&one), settings(&many));
}
