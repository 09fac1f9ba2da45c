//! One WireGuard implementation running on one host, configured through the standard `wg`.

use std::cell::Cell;
use std::ffi::OsString;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, ExitStatus};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use ringway::metrics::drops::Drop;
use serde_json::Value;

use crate::lab::{Host, command, machine, target, wait_until};

/// A program that speaks WireGuard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Implementation {
    /// This project, with so many workers.
    Ringway {
        /// `RINGWAY_WORKERS`.
        workers: u16,
    },
    /// Debian's `wireguard-go`.
    WireguardGo,
    /// The crate `boringtun-cli`.
    Boringtun,
}

impl Implementation {
    /// Ringway with two workers, or what `RINGWAY_LAB_SELF` puts in its place.
    pub(crate) fn ringway() -> Self {
        Self::ringway_with(2)
    }

    /// Ringway with `workers` workers, or what `RINGWAY_LAB_SELF` puts in its place.
    pub(crate) fn ringway_with(workers: u16) -> Self {
        match std::env::var("RINGWAY_LAB_SELF").as_deref() {
            Ok("wireguard-go") => Self::WireguardGo,
            Ok("boringtun") => Self::Boringtun,
            _ => Self::Ringway { workers },
        }
    }

    /// True for this project's own program.
    pub(crate) fn is_ringway(self) -> bool {
        matches!(self, Self::Ringway { .. })
    }

    /// The program.
    pub(crate) fn program(self) -> PathBuf {
        match self {
            Self::Ringway { .. } => PathBuf::from(env!("CARGO_BIN_EXE_ringway")),
            Self::WireguardGo => PathBuf::from("wireguard-go"),
            Self::Boringtun => {
                let path = target().join("tools/bin/boringtun-cli");
                assert!(path.exists(), "{} is missing: run `make tools`", path.display());
                path
            }
        }
    }

    fn arguments(self) -> &'static [&'static str] {
        match self {
            Self::Ringway { .. } | Self::WireguardGo => &["-f"],
            // One thread is its best setting on few cores. Sockets connected to a peer's address would not notice
            // that their own address has gone.
            Self::Boringtun => {
                &["-f", "-t", "1", "--disable-drop-privileges", "--disable-connected-udp", "-v", "info"]
            }
        }
    }

    fn environment(self) -> Vec<(&'static str, String)> {
        match self {
            Self::Ringway { workers } => {
                let mut variables =
                    vec![("RINGWAY_WORKERS", workers.to_string()), ("LOG_LEVEL", "verbose".into())];
                variables.extend(BY_POLL.get().then(|| ("RINGWAY_IO", "poll".into())));
                variables
            }
            Self::WireguardGo => {
                vec![
                    ("WG_I_PREFER_BUGGY_USERSPACE_TO_POLISHED_KMOD", "1".into()),
                    ("LOG_LEVEL", "error".into()),
                ]
            }
            Self::Boringtun => vec![],
        }
    }
}

thread_local! {
    /// Each test has a thread of its own.
    static BY_POLL: Cell<bool> = const { Cell::new(false) };
}

/// What makes an appliance's command line say the same as a drop-in's environment.
pub(crate) fn io_option() -> &'static str {
    let by_poll = BY_POLL.get() || std::env::var("RINGWAY_IO").as_deref() == Ok("poll");
    if by_poll { "--io poll" } else { "" }
}

/// Runs a test whose Ringways wait with poll(2) instead of io_uring.
pub(crate) fn by_poll(test: impl FnOnce()) {
    BY_POLL.set(true);
    test();
    BY_POLL.set(false);
}

/// What one peer tells `wg` about another.
#[derive(Clone, Debug, Default)]
pub(crate) struct Remote<'a> {
    /// Base64 public key.
    pub(crate) public: &'a str,
    /// Comma-separated prefixes.
    pub(crate) allowed: &'a str,
    /// `address:port`, if it is known.
    pub(crate) endpoint: Option<&'a str>,
    /// Base64 preshared key.
    pub(crate) preshared: Option<&'a str>,
    /// Persistent keepalive in seconds.
    pub(crate) keepalive: Option<u16>,
}

/// A running implementation with one interface.
pub(crate) struct Peer {
    /// Where it runs.
    pub(crate) host: Arc<Host>,
    /// Its interface.
    pub(crate) interface: String,
    /// Its base64 public key.
    pub(crate) public: String,
    /// What runs.
    pub(crate) implementation: Implementation,
    /// Its private key, in hexadecimal as the configuration protocol has it.
    private: String,
    child: Child,
    log: PathBuf,
}

impl Peer {
    /// Starts the program, waits for its configuration socket, and gives it a fresh key and a listen port.
    pub(crate) fn start(
        host: &Arc<Host>,
        implementation: Implementation,
        interface: &str,
        port: u16,
    ) -> Self {
        Self::start_with(host, implementation, interface, port, &[])
    }

    /// As `start`, with more environment variables.
    pub(crate) fn start_with(
        host: &Arc<Host>,
        implementation: Implementation,
        interface: &str,
        port: u16,
        variables: &[(&str, &str)],
    ) -> Self {
        Self::start_through(host, implementation, interface, port, variables, &[])
    }

    /// As `start_with`, by a launcher: words before the program's own, which execute it in their place.
    pub(crate) fn start_through(
        host: &Arc<Host>,
        implementation: Implementation,
        interface: &str,
        port: u16,
        variables: &[(&str, &str)],
        launcher: &[&str],
    ) -> Self {
        let log = target().join("netns-logs").join(format!("{}-{interface}.log", host.namespace));
        std::fs::create_dir_all(log.parent().unwrap()).unwrap();
        let file = File::create(&log).unwrap();
        let mut words: Vec<_> = launcher.iter().map(OsString::from).collect();
        words.push(implementation.program().into());
        let child = host
            .command(&words[0])
            .args(&words[1..])
            .args(implementation.arguments())
            .arg(interface)
            .envs(implementation.environment())
            .envs(variables.iter().copied())
            .stdout(file.try_clone().unwrap())
            .stderr(file)
            .spawn()
            .expect("the program starts");
        let private = machine("wg genkey");
        let public = host.run_with_input("wg pubkey", &private).trim().to_owned();
        let mut peer = Self {
            host: Arc::clone(host),
            interface: interface.to_owned(),
            public,
            implementation,
            private: hexadecimal(private.trim()),
            child,
            log,
        };
        wait_until("the configuration socket is there", Duration::from_secs(10), || {
            assert!(peer.exit_status().is_none(), "{implementation:?} ended at once");
            // A file is there a moment before somebody listens, and wg removes one where nobody does.
            UnixStream::connect(peer.socket()).is_ok()
        });
        let line = format!("wg set {interface} listen-port {port} private-key /dev/stdin");
        peer.host.run_with_input(&line, &private);
        peer
    }

    /// The configuration socket, as this process sees it.
    pub(crate) fn socket(&self) -> PathBuf {
        self.host.run_file(&format!("wireguard/{}.sock", self.interface))
    }

    /// The process.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// How the program ended, if it has.
    pub(crate) fn exit_status(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("a child of ours")
    }

    /// Sends a signal by name, as `TERM`.
    pub(crate) fn signal(&self, name: &str) {
        machine(&format!("kill -{name} {}", self.child.id()));
    }

    /// Addresses, MTU, up.
    pub(crate) fn up(&self, addresses: &[&str], mtu: u32) {
        self.host.run(&format!("ip link set {} mtu {mtu} up", self.interface));
        for address in addresses {
            self.host.address(&self.interface, address);
        }
    }

    /// Makes it begin new handshakes at once, as renewal does: another private key, and then its own again,
    /// end its sessions for sending.
    ///
    /// The other side does not know: as after a restart, what it sends is for a session that is gone, and WireGuard has
    /// no message that says so (it would tell strangers which sessions live). It begins a handshake of its own 15 s
    /// (Keepalive-Timeout + Rekey-Timeout) after it sent the first packet in vain; sooner if this side sends something
    /// first.
    pub(crate) fn renew(&self) {
        let [other, own] = [&hexadecimal(machine("wg genkey").trim()), &self.private]
            .map(|key| format!("private_key={key}\n"));
        // Of two keys in one request Ringway sees that nothing has changed. Others notice, and so nothing is sent with
        // the wrong one.
        let requests = if self.implementation.is_ringway() { vec![other, own] } else { vec![other + &own] };
        for request in requests {
            let mut stream = UnixStream::connect(self.socket()).expect("the configuration socket");
            stream.write_all(format!("set=1\n{request}\n").as_bytes()).unwrap();
            let mut answer = String::new();
            BufReader::new(stream).read_line(&mut answer).unwrap();
            assert_eq!(answer, "errno=0\n");
        }
    }

    /// `wg set INTERFACE` with the rest of the line.
    pub(crate) fn set(&self, rest: &str) {
        self.host.run(&format!("wg set {} {rest}", self.interface));
    }

    /// Adds or changes a peer.
    pub(crate) fn know(&self, remote: &Remote<'_>) {
        let mut line = format!("wg set {} peer {}", self.interface, remote.public);
        if let Some(endpoint) = remote.endpoint {
            line.push_str(&format!(" endpoint {endpoint}"));
        }
        if let Some(seconds) = remote.keepalive {
            line.push_str(&format!(" persistent-keepalive {seconds}"));
        }
        if remote.preshared.is_some() {
            line.push_str(" preshared-key /dev/stdin");
        }
        if !remote.allowed.is_empty() {
            line.push_str(&format!(" allowed-ips {}", remote.allowed));
        }
        self.host.run_with_input(&line, remote.preshared.unwrap_or_default());
    }

    /// What `wg show INTERFACE FIELD` says of a peer; empty if it does not know that peer.
    pub(crate) fn show(&self, field: &str, public: &str) -> String {
        let text = self.host.run(&format!("wg show {} {field}", self.interface));
        let line = text.lines().find_map(|line| line.strip_prefix(public));
        line.unwrap_or_default().trim().to_owned()
    }

    /// Unix seconds of the last handshake with a peer; 0 if there was none.
    pub(crate) fn latest_handshake(&self, public: &str) -> u64 {
        self.show("latest-handshakes", public).parse().unwrap_or(0)
    }

    /// The data plane's part of `ringway show --json`; `None` if this is another program.
    pub(crate) fn report(&self) -> Option<Value> {
        if !self.implementation.is_ringway() {
            return None;
        }
        let mut show = self.host.command(self.implementation.program());
        let output = show.args(["show", "--json", &self.interface]).output().expect("ringway show");
        assert!(output.status.success(), "ringway show: {}", String::from_utf8_lossy(&output.stderr));
        let mut document: Value =
            serde_json::from_slice(&output.stdout).expect("ringway show --json prints JSON");
        Some(document["dataplane"].take())
    }

    /// A counter by its metric's name, summed over the threads.
    pub(crate) fn counter(&self, metric: &str) -> Option<u64> {
        let report = self.report()?;
        let workers = report["workers"].as_array().expect("a list of workers");
        let counters = workers.iter().map(|worker| &worker["counters"]).chain([&report["handshake"]]);
        let sum = counters.filter_map(|counters| counters[metric].as_u64()).reduce(|a, b| a + b);
        Some(sum.unwrap_or_else(|| panic!("no counter {metric} in {report:#}")))
    }

    /// How much was dropped for these reasons, by their labels, over all threads. (A reason without drops is not
    /// shown.)
    pub(crate) fn drops(&self, reasons: &[&str]) -> Option<u64> {
        let report = self.report()?;
        let of = |reason: &&str| {
            assert!(Drop::ALL.iter().any(|known| known.label() == *reason), "no such reason: {reason}");
            report["drops"][*reason].as_u64().unwrap_or(0)
        };
        Some(reasons.iter().map(of).sum())
    }

    /// Resident memory in KiB.
    pub(crate) fn resident(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or(0)
    }
}

impl std::ops::Drop for Peer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            let text = std::fs::read_to_string(&self.log).unwrap_or_default();
            let from = text.lines().count().saturating_sub(40);
            let tail: Vec<_> = text.lines().skip(from).collect();
            let shown = if tail.is_empty() { "(nothing)".to_owned() } else { tail.join("\n") };
            println!("--- {:?} on {} said:\n{shown}", self.implementation, self.host.namespace);
        } else {
            let _ = std::fs::remove_file(&self.log);
        }
    }
}

/// A base64 key in hexadecimal.
fn hexadecimal(key: &str) -> String {
    let bytes = base64::engine::general_purpose::STANDARD.decode(key).expect("a key");
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A new preshared key.
pub(crate) fn preshared_key() -> String {
    machine("wg genpsk").trim().to_owned()
}

/// A public key whose private half nobody keeps.
pub(crate) fn stranger() -> String {
    let output = command("sh").args(["-c", "wg genkey | wg pubkey"]).output().expect("wg");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}
