//! What a service manager hears, and what it hears when a thread hangs.

use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixDatagram;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use crate::lab::{Lab, machine};
use crate::peer::{Implementation, Peer};
use crate::topology::GATEWAY_PORT;

/// Ten times what anything takes here.
const SOON: Duration = Duration::from_secs(10);

/// Stops one thread of another process (PTRACE_SEIZE, PTRACE_INTERRUPT; linux/ptrace.h) for as long as it lives itself.
const HOLD: &str = r#"
    $| = 1;
    my ($ptrace, $thread) = @ARGV;
    syscall($ptrace, 0x4206, $thread + 0, 0, 0) == 0 or die "seize: $!";
    syscall($ptrace, 0x4207, $thread + 0, 0, 0) == 0 or die "interrupt: $!";
    print "held\n"; sleep;
"#;

/// What the service manager reads.
pub(crate) struct Manager(pub(crate) UnixDatagram);

impl Manager {
    /// The next message within this time.
    pub(crate) fn next(&self, limit: Duration) -> Option<String> {
        self.0.set_read_timeout(Some(limit)).unwrap();
        let mut bytes = [0; 4096];
        let len = self.0.recv(&mut bytes).ok()?;
        Some(String::from_utf8(bytes[..len].to_vec()).unwrap())
    }

    /// Waits for a message with this line in it.
    pub(crate) fn hears(&self, wanted: &str) -> String {
        let begin = Instant::now();
        while begin.elapsed() < SOON {
            if let Some(said) = self.next(SOON).filter(|said| said.lines().any(|line| line == wanted)) {
                return said;
            }
        }
        panic!("{wanted} was not said");
    }

    /// Forgets what was said for a while, then listens: true if nothing more is said for a second.
    fn is_told_nothing(&self) -> bool {
        let begin = Instant::now();
        while begin.elapsed() < Duration::from_millis(500) {
            let _ = self.next(Duration::from_millis(50));
        }
        self.next(Duration::from_secs(1)).is_none()
    }
}

/// The number of a process's thread of this name.
fn thread(pid: u32, name: &str) -> String {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap().map(Result::unwrap);
    let named = |path: &std::path::Path| std::fs::read_to_string(path.join("comm")).unwrap().trim() == name;
    let mut found = tasks.filter(|task| named(&task.path()));
    found.next().unwrap().file_name().into_string().unwrap()
}

/// A thread of another process that stands still until this is dropped.
pub(crate) struct Held(Child);

impl Drop for Held {
    /// Also where a test fails: the end of a process waits for whoever traces it.
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Stops a peer's thread of this name.
pub(crate) fn hold(peer: &Peer, name: &str) -> Held {
    let ptrace = if cfg!(target_arch = "x86_64") { "101" } else { "117" };
    let mut perl = crate::lab::command("perl");
    perl.args(["-e", HOLD, "--", ptrace, &thread(peer.pid(), name)]).stdout(Stdio::piped());
    let mut holder = perl.spawn().unwrap();
    let mut line = String::new();
    BufReader::new(holder.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "held\n");
    Held(holder)
}

#[test]
fn the_watchdog_is_fed_while_every_thread_turns() {
    let Some(lab) = Lab::new() else { return };
    let host = lab.host("alone");
    let manager = Manager(UnixDatagram::bind(host.run_file("notify")).unwrap());
    let variables = [("NOTIFY_SOCKET", "/var/run/notify"), ("WATCHDOG_USEC", "400000")];
    let ringway = Implementation::Ringway { workers: 2 };
    let mut peer = Peer::start_with(&host, ringway, "wg0", GATEWAY_PORT, &variables);

    let ready = manager.hears("READY=1");
    assert!(ready.contains("STATUS=serving on port ") && ready.contains(" with 2 workers"), "{ready}");
    let begin = Instant::now();
    for _ in 0..5 {
        manager.hears("WATCHDOG=1");
    }
    // Idle threads sleep without end: they are woken to answer, and not asked more often than said.
    assert!(begin.elapsed() > Duration::from_millis(300), "{:?}", begin.elapsed());

    for name in ["ringway-w0", "ringway-w1", "ringway-hs"] {
        let held = hold(&peer, name);
        assert!(manager.is_told_nothing(), "{name} hangs, and the watchdog is fed");
        drop(held);
        manager.hears("WATCHDOG=1");
    }

    machine(&format!("kill -TERM {}", peer.pid()));
    manager.hears("STOPPING=1");
    crate::lab::wait_until("it has ended", SOON, || peer.exit_status().is_some());
    assert!(peer.exit_status().unwrap().success());
}

/// The unit's capabilities, as setpriv(1) wants them.
pub(crate) fn capabilities_of_the_unit() -> String {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/config/ringway.service");
    let unit = std::fs::read_to_string(path).unwrap();
    let line = unit.lines().find_map(|line| line.strip_prefix("CapabilityBoundingSet=")).unwrap();
    let names = line.split_whitespace().map(|name| name.strip_prefix("CAP_").unwrap().to_ascii_lowercase());
    names.fold("-all".to_owned(), |all, name| format!("{all},+{name}"))
}

/// The appliance as its unit starts it, becoming another user: all that it does to its host succeeds, its log is JSON.
#[test]
fn the_units_capabilities_are_enough() {
    let Some(lab) = Lab::new() else { return };
    let host = lab.host("alone");
    let manager = Manager(UnixDatagram::bind(host.run_file("notify")).unwrap());
    // As systemd's is.
    std::fs::set_permissions(host.run_file("notify"), std::fs::Permissions::from_mode(0o777)).unwrap();
    let file = "interface = \"wg0\"\naddresses = [\"100.64.0.1/10\"]\nlisten_port = 443\nworkers = 2\n\
                user = \"nobody\"\nmetrics.listen = \"off\"\n";
    std::fs::write(host.run_file("gateway.toml"), file).unwrap();
    let mut cmd = host.command("setpriv");
    cmd.args(["--no-new-privs", "--bounding-set", &capabilities_of_the_unit(), "--"]);
    cmd.arg(Implementation::Ringway { workers: 2 }.program());
    cmd.args(["gateway", "--config", "/var/run/gateway.toml", "--log", "debug", "--log-format", "json"]);
    cmd.env("NOTIFY_SOCKET", "/var/run/notify").stderr(Stdio::piped());
    let child = cmd.spawn().unwrap();
    let ready = manager.hears("READY=1");
    assert!(ready.contains("STATUS=serving on port 443 with 2 workers"), "{ready}");

    let nobody = machine("id -u nobody");
    for task in std::fs::read_dir(format!("/proc/{}/task", child.id())).unwrap() {
        let status = std::fs::read_to_string(task.unwrap().path().join("status")).unwrap();
        let line = |key: &str| status.lines().find_map(|line| line.strip_prefix(key)).unwrap().trim();
        assert!(line("Uid:").split_whitespace().all(|uid| uid == nobody.trim()), "{status}");
        let kept =
            if line("Name:").starts_with("ringway-") { "0000000000000000" } else { "0000000000001000" };
        assert_eq!((line("CapPrm:"), line("Seccomp:")), (kept, "2"), "{status}");
    }
    let program = Implementation::Ringway { workers: 2 }.program();
    let shown = host.command(&program).args(["show", "--json", "wg0"]).output().unwrap();
    let shown: serde_json::Value = serde_json::from_slice(&shown.stdout).unwrap();
    assert_eq!(shown["dataplane"]["steering"]["on"], true, "{shown}");
    // It has lost sight of its socket's file, and goes on.
    std::thread::sleep(Duration::from_millis(2500));
    let seen = host.attempt("wg set wg0 fwmark 7");
    assert!(String::from_utf8_lossy(&seen.stderr).contains("Operation not permitted"), "{seen:?}");
    host.run(&format!("{} peer add somebody --address 100.64.0.9", program.display()));

    machine(&format!("kill -TERM {}", child.id()));
    manager.hears("STOPPING=1");
    let ended = child.wait_with_output().unwrap();
    let said = String::from_utf8(ended.stderr).unwrap();
    assert!(ended.status.success(), "{said}");
    assert!(!host.has_interface("wg0"));
    assert!(!host.run_file("wireguard/wg0.sock").exists() && !host.run_file("ringway").exists());
    let mut levels = Vec::new();
    for line in said.lines() {
        let line: serde_json::Value =
            serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        assert!(line["time"].as_str().unwrap().ends_with('Z') && line["message"].is_string(), "{line}");
        levels.push(line["level"].as_str().unwrap().to_owned());
    }
    assert!(levels.iter().any(|level| level == "info"), "{said}");
    assert!(!levels.iter().any(|level| ["warn", "error"].contains(&level.as_str())), "{said}");
}
