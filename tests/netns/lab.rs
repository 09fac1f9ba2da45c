//! Hosts made of network namespaces: `ringway-<pid>-<n>-<role>`, each with a private mount namespace in which
//! `/var/run` and `/var/lib` are empty, so that every host may have a `wg0`. What was made is removed on drop, panics
//! included; what a killed run left behind, the next `tests/run` sweeps.

use std::cell::{Cell, OnceCell};
use std::ffi::OsStr;
use std::fs::OpenOptions;
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

static HOSTS: AtomicUsize = AtomicUsize::new(0);

/// One test's hosts and its clock.
pub(crate) struct Lab {
    test: String,
    started: Instant,
    waited: Cell<Duration>,
    traffic: OnceCell<TrafficLock>,
}

impl Lab {
    /// `None`, after a line that says why, where namespaces cannot be made.
    pub(crate) fn new() -> Option<Self> {
        let test = std::thread::current().name().unwrap_or("main").to_owned();
        if !is_root() {
            assert!(std::env::var_os("RINGWAY_REQUIRE_ROOT").is_none(), "{test} needs root");
            announce(&format!("RINGWAY-SKIPPED {test}: needs root (network namespaces and TUN devices)"));
            return None;
        }
        Some(Self {
            test,
            started: Instant::now(),
            waited: Cell::new(Duration::ZERO),
            traffic: OnceCell::new(),
        })
    }

    /// As `new`, and alone with the machine's cores until dropped: for tests that move bulk traffic.
    pub(crate) fn with_traffic() -> Option<Self> {
        let lab = Self::new()?;
        let begin = Instant::now();
        lab.traffic.get_or_init(TrafficLock::take);
        lab.waited.set(begin.elapsed());
        Some(lab)
    }

    /// Says that the rest of this test does not apply, and why. A failure where skipping is forbidden.
    pub(crate) fn skip(&self, why: &str) {
        announce(&format!("RINGWAY-SKIPPED {}: {why}", self.test));
        assert!(std::env::var_os("RINGWAY_REQUIRE_ROOT").is_none(), "{} was skipped: {why}", self.test);
    }

    /// A new host; `role` is the last part of its namespace's name.
    pub(crate) fn host(&self, role: &str) -> Arc<Host> {
        Arc::new(Host::new(role))
    }

    /// Connects two hosts with a veth pair and brings both ends up.
    pub(crate) fn link(&self, (a, a_if): (&Host, &str), (b, b_if): (&Host, &str), mtu: u32) {
        machine(&format!(
            "ip link add {a_if} netns {} mtu {mtu} type veth peer name {b_if} netns {} mtu {mtu}",
            a.namespace, b.namespace
        ));
        a.run(&format!("ip link set {a_if} up"));
        b.run(&format!("ip link set {b_if} up"));
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let took = self.started.elapsed().saturating_sub(self.waited.get());
        announce(&format!("RINGWAY-TIME {} {:.2}", self.test, took.as_secs_f64()));
    }
}

/// A network namespace with a mount namespace; both live as long as the holder process in them.
pub(crate) struct Host {
    /// Name, as `ip netns` knows it.
    pub(crate) namespace: String,
    holder: Child,
}

impl Host {
    fn new(role: &str) -> Self {
        let number = HOSTS.fetch_add(1, Ordering::Relaxed);
        let namespace = format!("ringway-{}-{number}-{role}", std::process::id());
        machine(&format!("ip netns add {namespace}"));
        let script = "mount -t tmpfs tmpfs \"$(readlink -f /var/run)\" && mount -t tmpfs tmpfs /var/lib \
             && mkdir -p /var/run/wireguard && echo ready && exec sleep infinity";
        let mut holder = command("ip")
            .args(["netns", "exec", &namespace, "sh", "-c", script])
            .stdout(Stdio::piped())
            .spawn()
            .expect("ip netns exec");
        let mut line = String::new();
        BufReader::new(holder.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let host = Self { namespace, holder };
        assert_eq!(line, "ready\n", "the holder of {} did not start", host.namespace);
        host.run("ip link set lo up");
        host.run("sysctl -qw net.ipv6.conf.all.accept_dad=0 net.ipv6.conf.default.accept_dad=0");
        host
    }

    /// A command that will run on this host.
    pub(crate) fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut cmd = command("nsenter");
        cmd.args(["-m", "-n", "-t", &self.holder.id().to_string(), "--"]).arg(program);
        cmd
    }

    /// A command from words parted by spaces.
    pub(crate) fn line(&self, line: &str) -> Command {
        let mut words = line.split_whitespace();
        let mut cmd = self.command(words.next().expect("an empty command"));
        cmd.args(words);
        cmd
    }

    /// Runs a command line and returns what it printed; a failure ends the test.
    pub(crate) fn run(&self, line: &str) -> String {
        checked(line, self.line(line).output())
    }

    /// Runs a command line that may fail.
    pub(crate) fn attempt(&self, line: &str) -> Output {
        self.line(line).output().expect("nsenter")
    }

    /// Runs a command line with `input` on its standard input.
    pub(crate) fn run_with_input(&self, line: &str, input: &str) -> String {
        let mut cmd = self.line(line);
        cmd.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = cmd.spawn().expect("nsenter");
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        checked(line, child.wait_with_output())
    }

    /// Adds an address to an interface of this host.
    pub(crate) fn address(&self, interface: &str, address: &str) {
        self.run(&format!("ip address add {address} dev {interface}"));
    }

    /// The path by which this process sees a file under this host's `/var/run`.
    pub(crate) fn run_file(&self, name: &str) -> PathBuf {
        // `/var/run` is an absolute link, which would be resolved against our own root.
        let run = std::fs::canonicalize("/var/run").unwrap();
        let root = PathBuf::from(format!("/proc/{}/root", self.holder.id()));
        root.join(run.strip_prefix("/").unwrap()).join(name)
    }

    /// True if this host has an interface of that name.
    pub(crate) fn has_interface(&self, interface: &str) -> bool {
        self.attempt(&format!("ip link show dev {interface}")).status.success()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // Whatever still runs in the namespace was started by this test.
        if let Ok(out) = Command::new("ip").args(["netns", "pids", &self.namespace]).output() {
            for pid in String::from_utf8_lossy(&out.stdout).lines() {
                let _ = Command::new("kill").args(["-KILL", pid]).stderr(Stdio::null()).status();
            }
        }
        let _ = self.holder.kill();
        let _ = self.holder.wait();
        let _ = Command::new("ip").args(["netns", "delete", &self.namespace]).status();
    }
}

/// Somebody who has a port of a host, until dropped.
pub(crate) struct PortHolder(Child);

impl PortHolder {
    /// `kind` is `STREAM` (TCP, listening) or `DGRAM` (UDP).
    pub(crate) fn on(host: &Host, kind: &str, address: &str, port: u16) -> Self {
        let script = "$| = 1; my ($kind, $host, $port) = @ARGV; \
            my $socket = IO::Socket::IP->new(LocalHost => $host, LocalPort => $port, \
            $kind eq 'STREAM' ? (Type => SOCK_STREAM, Listen => 5) : (Type => SOCK_DGRAM)) or die $@; \
            print \"held\\n\"; sleep";
        let mut perl = host.command("perl");
        perl.args(["-MSocket", "-MIO::Socket::IP", "-e", script, kind, address, &port.to_string()]);
        let mut child = perl.stdout(Stdio::piped()).spawn().expect("perl");
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "held\n", "{kind} {address} {port}");
        Self(child)
    }
}

impl Drop for PortHolder {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A command that dies with the thread that started it, so that a killed test leaves no process behind.
pub(crate) fn command(program: &str) -> Command {
    let mut cmd = Command::new("setpriv");
    cmd.args(["--pdeathsig", "KILL", program]).stdin(Stdio::null());
    cmd
}

/// Runs a command line outside every namespace.
pub(crate) fn machine(line: &str) -> String {
    let mut words = line.split_whitespace();
    let output = command(words.next().expect("an empty command")).args(words).output();
    checked(line, output)
}

fn checked(line: &str, output: std::io::Result<Output>) -> String {
    let output = output.unwrap_or_else(|err| panic!("{line}: {err}"));
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{line}: {}\n{out}{err}", output.status);
    out.into_owned()
}

/// Polls until `done`; `limit` should be ten times what is expected.
pub(crate) fn wait_until(what: &str, limit: Duration, mut done: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !done() {
        assert!(begin.elapsed() < limit, "waited {limit:?} in vain until {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// `target/` of the build that this binary belongs to.
pub(crate) fn target() -> PathBuf {
    PathBuf::from(env!("CARGO_TARGET_TMPDIR")).parent().expect("target/tmp has a parent").to_owned()
}

fn is_root() -> bool {
    machine("id -u").trim() == "0"
}

/// Writes a line past the capture of the test runner: `tests/run` collects these.
fn announce(line: &str) {
    let _ = std::io::stderr().write_all(format!("{line}\n").as_bytes());
}

/// Held by `flock` for as long as its standard input is open: released whatever becomes of us, and fair between
/// the threads and the processes of a test run.
struct TrafficLock(Child);

impl TrafficLock {
    fn take() -> Self {
        let path = target().join("traffic.lock");
        OpenOptions::new().create(true).append(true).open(&path).expect("target/traffic.lock");
        let mut child = Command::new("flock")
            .arg(path)
            .args(["sh", "-c", "echo held; exec cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("flock");
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "held\n");
        Self(child)
    }
}

impl Drop for TrafficLock {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}
