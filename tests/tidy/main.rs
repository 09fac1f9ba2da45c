//! House rules that no compiler checks: the import table of docs/architecture.md, where `unsafe` may stand, how
//! long a file, a function and a line may be, that docs/metrics.md names every metric and drop reason, that no
//! file is dead.

#![allow(clippy::unwrap_used, reason = "a test that cannot read the project shall fail")]

mod scan;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;

use ringway::metrics::drops::Drop;
use scan::Source;

const FILE_LINES: usize = 800;
/// `tests.rs` beside a module, and everything under `tests/`.
const TEST_FILE_LINES: usize = 1200;
const FUNCTION_LINES: usize = 100;
const LINE_CHARS: usize = 120;

/// Functions that may be longer, as `path::name`, each with its reason beside it.
const LONG_FUNCTIONS: &[&str] = &[];

/// Strings in the source that begin like a metric's name and are none.
const NOT_METRICS: &[&str] = &["ringway_"];

/// Which module may import which. A module may import itself; `ABOVE` stands for every module above it in the table.
const MAY_IMPORT: &[(&str, &[&str])] = &[
    ("types", &[]),
    ("mutation", &[]),
    ("sys", &["types"]),
    ("sys::guarded", &["sys"]),
    ("wire", &["types"]),
    ("metrics", &["types"]),
    ("crypto", &["mutation", "types"]),
    ("noise", &["crypto", "wire", "mutation", "sys::guarded", "types"]),
    ("dataplane::io", &["sys", "types"]),
    ("dataplane", &["noise", "crypto", "wire", "metrics", "dataplane::io", "sys", "mutation", "types"]),
    ("net", &["wire", "sys", "types"]),
    ("store", &["sys", "types"]),
    ("lease", &["types"]),
    ("config", &["dataplane::io", "net", "lease", "wire", "sys", "types"]),
    (
        "control",
        &[
            "dataplane",
            "noise",
            "net",
            "store",
            "lease",
            "config",
            "metrics",
            "crypto",
            "wire",
            "sys",
            "types",
        ],
    ),
    (
        "client",
        &["dataplane", "noise", "net", "store", "config", "metrics", "crypto", "wire", "sys", "types"],
    ),
    ("bench", &["dataplane", "noise", "crypto", "wire", "sys", "types"]),
    ("gateway", &[ABOVE]),
    ("client::calls", &[ABOVE]),
    ("cli", &[ABOVE]),
    ("fuzzing", &[ABOVE]),
    ("main", &["cli", "gateway"]),
    ("null", &["cli"]),
];
const ABOVE: &str = "*";

/// Modules (and what is below them) that may hold `unsafe`.
const MAY_BE_UNSAFE: &[&str] = &["sys", "dataplane::io::ring", "crypto"];

/// `noise`, `lease` and `client` know no clock, no socket and no source of randomness, but for what `client::calls`
/// does for a program: these words stay out of them.
const NOT_IN_NOISE: &[&str] =
    &["Instant", "SystemTime", "UdpSocket", "TcpStream", "File", "getrandom", "OsRng", "RandomState"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Files of the project, relative to its root: what git tracks or would track; without git all but build output.
fn project_files() -> Vec<String> {
    let git = Command::new("git")
        .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
        .current_dir(root())
        .output();
    let mut files = match git {
        Ok(output) if output.status.success() && !output.stdout.is_empty() => {
            String::from_utf8_lossy(&output.stdout).split('\0').map(str::to_owned).collect()
        }
        _ => walk(root()),
    };
    files.retain(|file| root().join(file).is_file());
    files.sort();
    files
}

fn walk(dir: &Path) -> Vec<String> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap().flatten() {
        let (path, kind) = (entry.path(), entry.file_type().unwrap());
        let built = ["target", ".git", "artifacts"].iter().any(|name| entry.file_name() == *name);
        if kind.is_dir() && !built {
            files.extend(walk(&path));
        } else if kind.is_file() {
            files.push(path.strip_prefix(root()).unwrap().to_string_lossy().into_owned());
        }
    }
    files
}

fn sources() -> Vec<Source> {
    let read = |path: String| {
        let text = std::fs::read_to_string(root().join(&path)).unwrap();
        Source::new(path, text)
    };
    project_files().into_iter().filter(|path| path.ends_with(".rs")).map(read).collect()
}

/// The path of the module that a file under src is: `src/a/b.rs` and `src/a/b/mod.rs` are `a::b`, `lib.rs` is the
/// root.
fn module_of(path: &str) -> Option<Vec<String>> {
    let inner = path.strip_prefix("src/")?.strip_suffix(".rs")?;
    let inner = inner.strip_suffix("/mod").unwrap_or(inner);
    Some(inner.split('/').filter(|part| *part != "lib").map(str::to_owned).collect())
}

/// Every file under src that a `mod` line leads to, and whether only tests see it.
fn reachable(sources: &[Source]) -> BTreeMap<String, bool> {
    let by_path: BTreeMap<&str, &Source> =
        sources.iter().map(|source| (source.path.as_str(), source)).collect();
    let mut reached = BTreeMap::new();
    let mut open = vec![
        ("src/lib.rs".to_owned(), false),
        ("src/main.rs".to_owned(), false),
        ("src/null.rs".to_owned(), false),
    ];
    while let Some((path, test)) = open.pop() {
        let Some(source) = by_path.get(path.as_str()) else { continue };
        if reached.insert(path.clone(), test).is_some() {
            continue;
        }
        let file = Path::new(&path);
        let own_dir = ["lib.rs", "main.rs", "mod.rs"].iter().any(|name| file.ends_with(name));
        let dir = if own_dir { file.parent().unwrap().to_path_buf() } else { file.with_extension("") };
        for (name, for_tests) in source.declared_modules() {
            for candidate in [dir.join(format!("{name}.rs")), dir.join(&name).join("mod.rs")] {
                open.push((path_text(&candidate), test || for_tests));
            }
        }
    }
    reached
}

fn path_text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// Fails with all findings at once.
fn report(rule: &str, findings: &[String]) {
    assert!(findings.is_empty(), "{rule}:\n  {}\n", findings.join("\n  "));
}

/// The row of the table that a path belongs to: the longest that begins it.
fn unit(path: &[String]) -> &str {
    let two = path.iter().take(2).map(String::as_str).collect::<Vec<_>>().join("::");
    let row = MAY_IMPORT.iter().find(|(name, _)| *name == two).map(|(name, _)| *name);
    row.or(path.first().map(String::as_str)).unwrap_or("lib")
}

fn may_import(unit: &str, imported: &str) -> bool {
    let Some(row) = MAY_IMPORT.iter().position(|(name, _)| *name == unit) else { return false };
    let allowed = MAY_IMPORT[row].1;
    let above = || MAY_IMPORT[..row].iter().any(|(name, _)| *name == imported);
    unit == imported || allowed.contains(&imported) || (allowed.contains(&ABOVE) && above())
}

#[test]
fn imports_follow_the_table() {
    let sources = sources();
    let reached = reachable(&sources);
    let mut findings = Vec::new();
    for source in &sources {
        let Some(module) = module_of(&source.path) else { continue };
        if module.is_empty() || reached.get(&source.path) == Some(&true) {
            continue;
        }
        let importer = unit(&module);
        if !MAY_IMPORT.iter().any(|(name, _)| *name == importer) {
            findings.push(format!("{}: module `{importer}` is not in the table", source.path));
            continue;
        }
        for (at, path) in source.crate_paths(&module) {
            let imported = unit(&path);
            if !may_import(importer, imported) {
                let line = source.line_of(at);
                let path = path.join("::");
                findings.push(format!("{}:{line}: {importer} may not import {path}", source.path));
            }
        }
    }
    report("the import table of docs/architecture.md", &findings);
}

/// What is built without being asked for otherwise encrypts: the feature that does not is nobody's default.
#[test]
fn only_who_asks_gets_the_null_cipher() {
    const { assert!(ringway::crypto::aead::ENCRYPTS) };
    let manifest: toml::Table = std::fs::read_to_string(root().join("Cargo.toml")).unwrap().parse().unwrap();
    let features = manifest["features"].as_table().unwrap();
    let enabling: Vec<_> = features.keys().filter(|name| *name != "null-cipher").collect();
    assert!(features.contains_key("null-cipher"));
    assert!(enabling.is_empty(), "may one of these bring it with it? {enabling:?}");
    for bin in manifest["bin"].as_array().unwrap() {
        let null = bin["name"].as_str() == Some("ringway-null");
        assert_eq!(bin.get("required-features").is_some(), null, "{bin}");
    }
    for file in ["Makefile", ".ci/run", "config/ringway.service"] {
        let text = std::fs::read_to_string(root().join(file)).unwrap();
        for line in text.lines().filter(|line| line.contains("null-cipher")) {
            assert!(line.contains("--bin ringway-null"), "{file}: {line}");
        }
    }
}

#[test]
fn noise_lease_and_client_have_no_clock_no_socket_and_no_randomness() {
    let sources = sources();
    let reached = reachable(&sources);
    let mut findings = Vec::new();
    let pure = |source: &&Source| {
        let path = &source.path;
        ["src/noise/", "src/lease/", "src/client/"].iter().any(|root| path.starts_with(root))
            && !path.starts_with("src/client/calls")
            && reached.get(path) != Some(&true)
    };
    for source in sources.iter().filter(pure) {
        for word in NOT_IN_NOISE {
            for at in source.words(word).filter(|&at| !source.is_test(at)) {
                findings.push(format!("{}:{}: {word}", source.path, source.line_of(at)));
            }
        }
    }
    report("time and randomness are handed to noise, lease and client", &findings);
}

#[test]
fn every_file_is_reached() {
    let sources = sources();
    let reached = reachable(&sources);
    let dead = |source: &&Source| source.path.starts_with("src/") && !reached.contains_key(&source.path);
    let findings: Vec<_> = sources.iter().filter(dead).map(|source| source.path.clone()).collect();
    report("files under src that no `mod` line leads to", &findings);
}

#[test]
fn unsafe_stands_where_it_may_and_says_why() {
    let mut findings = Vec::new();
    for source in &sources() {
        let lines: Vec<&str> = source.text.lines().collect();
        for at in source.words("unsafe") {
            let (line, after) = (source.line_of(at), source.code[at + "unsafe".len()..].trim_start());
            if let Some(module) = module_of(&source.path) {
                let module = module.join("::");
                let allowed = |name: &&str| module == *name || module.starts_with(&format!("{name}::"));
                if !MAY_BE_UNSAFE.iter().any(allowed) {
                    findings.push(format!("{}:{line}: no unsafe here", source.path));
                }
            }
            // A type such as `unsafe extern "C" fn(…)` or an attribute such as `unsafe(no_mangle)` does nothing
            // itself.
            let wants = after.starts_with('{') || after.starts_with("impl") || after.starts_with("fn ");
            if wants && !has_safety_comment(&lines, line) {
                findings.push(format!("{}:{line}: no SAFETY comment", source.path));
            }
        }
    }
    report("unsafe", &findings);
}

/// Looks on the line (counted from 1) and upwards through comments, attributes and the lines of the same statement.
fn has_safety_comment(lines: &[&str], line: usize) -> bool {
    for (distance, text) in lines[..line].iter().rev().map(|text| text.trim()).enumerate() {
        if text.contains("SAFETY:") || text.contains("# Safety") {
            return true;
        }
        let carries_on = text.starts_with("//") || text.starts_with("#[") || !text.ends_with([';', '{', '}']);
        if text.is_empty() || (distance > 0 && !carries_on) {
            return false;
        }
    }
    false
}

#[test]
fn nothing_is_too_long() {
    let mut findings = Vec::new();
    for source in &sources() {
        let path = &source.path;
        let lines = source.text.lines().count();
        let limit = if path.ends_with("/tests.rs") || path.starts_with("tests/") {
            TEST_FILE_LINES
        } else {
            FILE_LINES
        };
        if lines > limit {
            findings.push(format!("{path}: {lines} lines, at most {limit}"));
        }
        for (n, line) in source.text.lines().enumerate().filter(|(_, line)| line.chars().count() > LINE_CHARS)
        {
            findings.push(format!(
                "{path}:{}: {} characters, at most {LINE_CHARS}",
                n + 1,
                line.chars().count()
            ));
        }
        for (name, at, lines) in source.functions() {
            if lines > FUNCTION_LINES && !LONG_FUNCTIONS.contains(&format!("{path}::{name}").as_str()) {
                let line = source.line_of(at);
                findings
                    .push(format!("{path}:{line}: fn {name} has {lines} lines, at most {FUNCTION_LINES}"));
            }
        }
    }
    report("too long", &findings);
}

#[test]
fn the_exceptions_are_still_needed() {
    let sources = sources();
    let mut long = BTreeSet::new();
    for source in &sources {
        let functions = source.functions().into_iter().filter(|(_, _, lines)| *lines > FUNCTION_LINES);
        long.extend(functions.map(|(name, ..)| format!("{}::{name}", source.path)));
    }
    let findings: Vec<_> =
        LONG_FUNCTIONS.iter().map(|e| (*e).to_owned()).filter(|e| !long.contains(e)).collect();
    report("exceptions without a long function", &findings);
}

#[test]
fn nothing_is_left_undone() {
    let mut findings = Vec::new();
    for source in &sources() {
        for name in ["todo", "unimplemented", "dbg"] {
            for at in source.words(name).filter(|at| source.code[at + name.len()..].starts_with('!')) {
                findings.push(format!("{}:{}: {name}!", source.path, source.line_of(at)));
            }
        }
        for (at, comment) in &source.comments {
            if ["FIXME", "TODO", "XXX"].iter().any(|word| comment.contains(word)) {
                findings.push(format!("{}:{}: {comment}", source.path, source.line_of(*at)));
            }
        }
    }
    report("left undone", &findings);
}

/// The reasons of `#[ignore]` that `tests/run` does not count as skipped tests: what is measured on request, and what
/// another test runs in surroundings that it makes.
const IGNORE_REASONS: &[&str] = &["measurement: ", "inner: "];

/// The `#[ignore]`s of a file whose reason is none of these, by line.
fn unexplained_ignores(source: &Source) -> Vec<usize> {
    let attributes = source.words("ignore").filter(|&at| source.code[..at].trim_end().ends_with(['[', ',']));
    attributes
        .filter(|&at| {
            let reason = source.strings.iter().find(|(string, _)| *string > at);
            let end = at + source.code[at..].find(']').unwrap_or(0);
            !reason.is_some_and(|(string, text)| {
                *string < end && IGNORE_REASONS.iter().any(|begin| text.starts_with(begin))
            })
        })
        .map(|at| source.line_of(at))
        .collect()
}

#[test]
fn ignored_tests_say_why_and_skipped_ones_are_counted() {
    let mut findings = Vec::new();
    for source in &sources() {
        for line in unexplained_ignores(source) {
            findings.push(format!("{}:{line}: #[ignore] without one of {IGNORE_REASONS:?}", source.path));
        }
        // `tests/run` counts the lines of `skip` in sys::testing and tests/netns/lab.rs; any other word is lost.
        let lost = |(_, text): &&(usize, String)| text.starts_with(concat!("skip", "ped: "));
        for (at, text) in source.strings.iter().filter(lost) {
            findings.push(format!("{}:{}: {text:?} is counted by nobody", source.path, source.line_of(*at)));
        }
    }
    report("ignored and skipped tests", &findings);
}

/// The table of drop reasons as docs/metrics.md must hold it.
fn drop_table() -> String {
    let mut table = "| reason | what was dropped |\n|---|---|\n".to_owned();
    for reason in Drop::ALL {
        writeln!(table, "| `{}` | {} |", reason.label(), reason.help()).unwrap();
    }
    table
}

fn metrics_doc() -> String {
    std::fs::read_to_string(root().join("docs/metrics.md")).unwrap_or_default()
}

#[test]
fn every_drop_reason_is_documented() {
    let table = drop_table();
    assert!(metrics_doc().contains(&table), "docs/metrics.md must hold exactly this table:\n\n{table}");
    let labels: BTreeSet<_> = Drop::ALL.iter().map(|reason| reason.label()).collect();
    assert_eq!(labels.len(), Drop::ALL.len(), "a label stands twice");
}

/// The metric names at the beginnings of `texts`.
fn metric_names<'a>(texts: impl Iterator<Item = &'a str>) -> BTreeSet<String> {
    let name =
        |text: &str| text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').next().map(str::to_owned);
    texts.filter(|text| text.starts_with("ringway_")).filter_map(name).collect()
}

#[test]
fn every_metric_is_documented_and_every_documented_one_is_there() {
    let sources = sources();
    let reached = reachable(&sources);
    let in_use = sources.iter().filter(|source| reached.get(&source.path) == Some(&false));
    let strings = in_use.flat_map(|source| {
        source.strings.iter().filter(|(at, _)| !source.is_test(*at)).map(|(_, text)| text.as_str())
    });
    let mut used = metric_names(strings);
    used.retain(|name| !NOT_METRICS.contains(&name.as_str()));
    let doc = metrics_doc();
    let documented = metric_names(doc.split('`'));
    let findings: Vec<_> = used.symmetric_difference(&documented).cloned().collect();
    report("metrics that stand in only one of src and docs/metrics.md", &findings);
}

#[test]
fn no_file_names_this_machine_or_a_registry() {
    // Put together here, so that this file does not hold them.
    let paths = [concat!("/wo", "rk/"), concat!("/ho", "me/"), concat!("/Us", "ers/"), concat!("/ro", "ot/")];
    let hosts = [
        concat!("crates", ".io"),
        concat!("pypi", ".org"),
        concat!("npmjs", ".org"),
        concat!("golang", ".org"),
    ];
    let mut findings = Vec::new();
    for file in project_files().into_iter().filter(|file| !file.ends_with("Cargo.lock")) {
        let text = String::from_utf8_lossy(&std::fs::read(root().join(&file)).unwrap()).into_owned();
        for (n, line) in text.lines().enumerate() {
            // `network/work/…` is no absolute path.
            let begins =
                |at: usize| !line[..at].ends_with(|c: char| c.is_alphanumeric() || "._-*}/".contains(c));
            let path = paths.iter().any(|path| line.match_indices(path).any(|(at, _)| begins(at)));
            if path || hosts.iter().any(|host| line.contains(host)) {
                findings.push(format!("{file}:{}: {}", n + 1, line.trim()));
            }
        }
    }
    report("paths of a machine, hosts of a package registry", &findings);
}

/// The checks see what they look for.
#[test]
fn the_scanner_sees_through_literals_groups_and_tests() {
    let text = r####"
//! unsafe in a comment
use crate::{noise::{Role, keypair::Key as K}, types::*};
use super::super::sys;
mod child;
fn f<'a>(x: &'a str) -> [u8; 2] {
    let _ = ("fn g() { unsafe", r#"ringway_x " "#, b'\'', '{', "\"");
    crate::net::up(); /* a /* b */ { */ [0; 2]
}
#[cfg(test)]
mod tests { use crate::store; fn h() {} }
#[cfg(test)]
mod more;
macro_rules! m { () => { $crate::config::x() } }
"####;
    let source = Source::new("src/dataplane/io/ring.rs".to_owned(), text.to_owned());
    assert_eq!(source.code.len(), text.len());
    assert_eq!(source.words("unsafe").count(), 0);
    let module = module_of(&source.path).unwrap();
    let mut paths: Vec<_> = source.crate_paths(&module).iter().map(|(_, path)| path.join("::")).collect();
    paths.sort();
    let expected = ["config::x", "dataplane::sys", "net::up", "noise::Role", "noise::keypair::Key", "types"];
    assert_eq!(paths, expected);
    assert_eq!(source.declared_modules(), [("child".to_owned(), false), ("more".to_owned(), true)]);
    let functions: Vec<_> = source.functions().into_iter().map(|(name, _, lines)| (name, lines)).collect();
    assert_eq!(functions, [("f".to_owned(), 4), ("h".to_owned(), 1)]);
    assert_eq!(metric_names(source.strings.iter().map(|(_, text)| text.as_str())).len(), 1);
    assert_eq!(unit(&module), "dataplane::io");
    assert!(may_import("gateway", "bench") && !may_import("gateway", "cli") && !may_import("sys", "wire"));
    assert!(
        may_import("cli", "gateway")
            && !may_import("dataplane::io", "dataplane")
            && !may_import("x", "types")
    );
    let ignores = "#[ignore]\nfn a() {}\n#[ignore = \"inner: b\"]\n#[ignore = \"slow\"]\nfn ignore() {}\n";
    assert_eq!(unexplained_ignores(&Source::new("x.rs".to_owned(), ignores.to_owned())), [1, 4]);
    assert!(has_safety_comment(&["// SAFETY: so.", "let x =", "unsafe { f() };"], 3));
    assert!(!has_safety_comment(&["// SAFETY: so.", "let x = 1;", "unsafe { f() };"], 3));
}
