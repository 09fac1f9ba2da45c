//! Real sockets on temporary paths, and Debian's `wg` in a mount namespace of its own.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::Shutdown;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::JoinHandle;
use std::time::Instant;

use tokio::sync::oneshot;

use super::*;
use crate::control::device::Device;
use crate::control::fake::Fake;
use crate::control::socket::{DIRECTORY, socket_path};
use crate::net::name::InterfaceName;
use crate::sys::testing::Scratch;

const KEY: &str = "b85996fecc9c7f1fc6d2572a76eda11d59bcd20be8e543b15ce4bd85a8e75a33";

fn name() -> InterfaceName {
    "wgtest0".parse().unwrap()
}

/// A server on a thread of its own.
struct Running {
    path: PathBuf,
    gone: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<(End, Control<Fake>)>>,
}

impl Running {
    fn start(directory: &Path) -> Self {
        Self::with(LocalSocket::bind(directory, &name()).unwrap(), socket_path(directory, &name()))
    }

    fn with(socket: LocalSocket, path: PathBuf) -> Self {
        let (gone, hears) = oneshot::channel();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let control = RefCell::new(Control::new(Device::new(0), Fake::new(2)));
            let hears = async { hears.await.unwrap_or(()) };
            let end = runtime.block_on(serve(&socket, &control, hears)).unwrap();
            (end, control.into_inner())
        });
        Self { path, gone: Some(gone), thread: Some(thread) }
    }

    fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(&self.path).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream
    }

    fn ask(&self, request: &str) -> String {
        let mut stream = self.connect();
        stream.write_all(request.as_bytes()).unwrap();
        answer_of(&mut stream)
    }

    fn wait(mut self) -> (End, Control<Fake>) {
        self.thread.take().unwrap().join().unwrap()
    }

    fn stop(mut self) -> (End, Control<Fake>) {
        self.gone.take().unwrap().send(()).unwrap();
        self.wait()
    }
}

/// One answer, up to its empty line.
fn answer_of(stream: &mut UnixStream) -> String {
    let mut text = Vec::new();
    let mut byte = [0];
    while !text.ends_with(b"\n\n") && stream.read(&mut byte).unwrap() == 1 {
        text.push(byte[0]);
    }
    String::from_utf8(text).unwrap()
}

#[test]
fn several_requests_and_partial_writes() {
    let scratch = Scratch::new("uapi");
    let server = Running::start(&scratch.0);
    let mut stream = server.connect();
    for part in ["se", "t=1\nlisten_po", "rt=77\n", "\nget=1\n", "\n"] {
        stream.write_all(part.as_bytes()).unwrap();
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(answer_of(&mut stream), "errno=0\n\n");
    assert_eq!(answer_of(&mut stream), "listen_port=77\nerrno=0\n\n");
    stream.write_all(b"set=1\nlisten_port=x\nlisten_port=78\n\nget=1\n\n").unwrap();
    assert_eq!(answer_of(&mut stream), "errno=-22\n\n");
    assert_eq!(answer_of(&mut stream), "listen_port=77\nerrno=0\n\n");
    stream.write_all(b"show=json\n\n").unwrap();
    let json = answer_of(&mut stream);
    assert!(json.starts_with("json={") && json.ends_with("}\nerrno=0\n\n"), "{json}");
    assert!(json.contains("\"steering\":\"fake\""));
    let (end, _) = server.stop();
    assert_eq!(end, End::DeviceGone);
    assert!(!socket_path(&scratch.0, &name()).exists(), "removed at the end");
}

#[test]
fn what_is_no_request_is_answered_and_hung_up() {
    let scratch = Scratch::new("uapi");
    let server = Running::start(&scratch.0);
    assert_eq!(server.ask("hello\n"), "errno=-71\n\n");
    let mut stream = server.connect();
    stream.write_all(b"set=1\nlisten_port=9\n").unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!(answer_of(&mut stream), "errno=-71\n\n", "cut short");
    assert_eq!(server.ask("get=1\n\n"), "errno=0\n\n", "and nothing of it done");
    let long = format!("set=1\nprivate_key={}\n\n", "0".repeat(MAX_LINE));
    assert_eq!(server.ask(&long), "errno=-90\n\n");
    server.stop();
}

#[test]
fn the_socket_is_private() {
    let scratch = Scratch::new("uapi");
    let inner = scratch.0.join("wireguard");
    let server = Running::start(&inner);
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&server.path), 0o600);
    server.stop();
}

#[test]
fn silent_and_slow_clients_stop_nobody() {
    let scratch = Scratch::new("uapi");
    let server = Running::start(&scratch.0);
    let silent: Vec<_> = (0..50).map(|_| server.connect()).collect();
    let mut slow = server.connect();
    slow.write_all(b"set=1\nlisten").unwrap();
    // One who asks for much and reads nothing.
    let mut deaf = server.connect();
    let many: String =
        (0..20_000u32).map(|n| format!("allowed_ip=10.{}.{}.0/24\n", n >> 8, n & 255)).collect();
    assert_eq!(server.ask(&format!("set=1\npublic_key={KEY}\n{many}\n")), "errno=0\n\n");
    deaf.write_all("get=1\n\n".repeat(4).as_bytes()).unwrap();
    let start = Instant::now();
    for _ in 0..20 {
        assert!(server.ask("get=1\n\n").ends_with("errno=0\n\n"));
    }
    // Far below the two minutes for which a silent connection may hold its place.
    assert!(start.elapsed() < Duration::from_secs(60), "{:?}", start.elapsed());
    slow.write_all(b"_port=5\n\n").unwrap();
    assert_eq!(answer_of(&mut slow), "errno=0\n\n");
    drop(silent);
    server.stop();
}

#[test]
fn a_large_request_through_the_socket() {
    let scratch = Scratch::new("uapi");
    let server = Running::start(&scratch.0);
    let ips: String = (0..130_000u32)
        .map(|n| format!("allowed_ip={}/32\n", std::net::Ipv4Addr::from_bits(0x0a00_0000 + n)))
        .collect();
    let start = Instant::now();
    assert_eq!(
        server.ask(&format!("set=1\npublic_key={KEY}\nreplace_allowed_ips=true\n{ips}\n")),
        "errno=0\n\n"
    );
    assert!(start.elapsed() < Duration::from_secs(30), "{:?}", start.elapsed());
    let mut stream = server.connect();
    stream.write_all(b"get=1\n\n").unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    assert_eq!(text.matches("allowed_ip=").count(), 130_000);
    let (_, control) = server.stop();
    assert_eq!(control.dataplane.owners.len(), 130_000);
}

#[test]
fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
    let scratch = Scratch::new("uapi");
    let path = socket_path(&scratch.0, &name());
    drop(UnixListener::bind(&path).unwrap());
    assert!(path.exists(), "stale");
    let live = LocalSocket::bind(&scratch.0, &name()).unwrap();
    let second = LocalSocket::bind(&scratch.0, &name()).unwrap_err();
    assert_eq!(second.raw_os_error(), Some(libc::EADDRINUSE));
    assert!(live.is_there());
    drop(live);
    assert!(!path.exists());
    fs::write(&path, "a file").unwrap();
    let file = LocalSocket::bind(&scratch.0, &name()).unwrap_err();
    assert_eq!(file.raw_os_error(), Some(libc::EEXIST));
    assert_eq!(fs::read(&path).unwrap(), b"a file");
}

#[test]
fn removing_the_socket_ends_the_server_and_a_successor_keeps_its_own() {
    let scratch = Scratch::new("uapi");
    let server = Running::start(&scratch.0);
    fs::remove_file(&server.path).unwrap();
    let successor = LocalSocket::bind(&scratch.0, &name()).unwrap();
    let (end, _) = server.wait();
    assert_eq!(end, End::SocketRemoved);
    assert!(successor.is_there(), "the first took only its own away");
}

#[test]
fn who_hangs_up_after_removing_the_socket_need_not_wait() {
    let wait = || {
        let scratch = Scratch::new("uapi");
        let server = Running::start(&scratch.0);
        assert!(server.ask("get=1\n\n").ends_with("errno=0\n\n"), "the first look at the file is over");
        let call = UnixStream::connect(&server.path).unwrap();
        fs::remove_file(&server.path).unwrap();
        let begin = Instant::now();
        drop(call);
        assert_eq!(server.wait().0, End::SocketRemoved);
        begin.elapsed()
    };
    // The machine may be busy in any of them.
    let fastest = (0..5).map(|_| wait()).min().unwrap();
    assert!(fastest < FILE_CHECK / 2, "{fastest:?}");
}

#[test]
fn an_inherited_socket_serves() {
    let scratch = Scratch::new("uapi");
    let path = socket_path(&scratch.0, &name());
    let listener = UnixListener::bind(&path).unwrap();
    let server = Running::with(LocalSocket::inherit(listener.into()).unwrap(), path);
    assert_eq!(server.ask("get=1\n\n"), "errno=0\n\n");
    server.stop();
    let (stream, _other) = UnixStream::pair().unwrap();
    assert_eq!(LocalSocket::inherit(stream.into()).unwrap_err().raw_os_error(), Some(libc::EINVAL));
    let file = fs::File::open("/dev/null").unwrap();
    assert!(LocalSocket::inherit(file.into()).is_err());
}

/// Runs `wg_inside` with an empty tmpfs on /var/run that nobody else sees.
#[test]
fn wg_speaks_with_us() {
    use std::os::unix::fs::MetadataExt as _;
    let root = fs::metadata("/proc/self").unwrap().uid() == 0;
    let has_wg = Command::new("wg").arg("--version").output().is_ok();
    if !root || !has_wg {
        crate::sys::testing::skip("needs root and wg (wireguard-tools)");
        return;
    }
    let script = "mount -t tmpfs ringway-test /var/run && exec \"$0\" --exact control::server::tests::wg_inside \
                  --ignored --nocapture";
    let output = Command::new("unshare")
        .args(["--mount", "--propagation", "private", "sh", "-c", script])
        .arg(std::env::current_exe().unwrap())
        .env("RINGWAY_TEST_PRIVATE_RUN", "1")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    if text.contains("mount: ") && text.contains("permission denied") {
        crate::sys::testing::skip("may not mount");
        return;
    }
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
}

fn wg(args: &[&str], input: &str) -> (bool, String) {
    let mut child = Command::new("wg")
        .args(args)
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    (output.status.success(), text.into_owned())
}

fn wg_ok(args: &[&str], input: &str) -> String {
    let (ok, text) = wg(args, input);
    assert!(ok, "wg {args:?}: {text}");
    text
}

#[test]
#[ignore = "inner: run by wg_speaks_with_us in a mount namespace of its own"]
fn wg_inside() {
    if std::env::var_os("RINGWAY_TEST_PRIVATE_RUN").is_none() {
        return;
    }
    let server = Running::start(Path::new(DIRECTORY));
    let secret = "dwdtCnMYpX08FsFyUbJmRd9ML4frwJkqsXf7pR25LCo=";
    let public = "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=";
    let (one, two) =
        ("ERERERERERERERERERERERERERERERERERERERERERE=", "IiIiIiIiIiIiIiIiIiIiIiIiIiIiIiIiIiIiIiIiIiI=");
    wg_ok(
        &["set", "wgtest0", "private-key", "/dev/stdin", "listen-port", "51820", "fwmark", "0xca6c"],
        secret,
    );
    wg_ok(
        &[
            "set",
            "wgtest0",
            "peer",
            one,
            "preshared-key",
            "/dev/stdin",
            "endpoint",
            "[2001:db8::1]:7",
            "allowed-ips",
            "10.0.0.1/32,fd00::/64",
            "persistent-keepalive",
            "25",
        ],
        secret,
    );
    wg_ok(&["set", "wgtest0", "peer", two, "endpoint", "198.18.0.1:9", "allowed-ips", "0.0.0.0/0"], "");
    let shown = wg_ok(&["show"], "");
    for part in [
        "interface: wgtest0",
        public,
        "listening port: 51820",
        "fwmark: 0xca6c",
        one,
        two,
        "preshared key: (hidden)",
        "endpoint: [2001:db8::1]:7",
        "endpoint: 198.18.0.1:9",
        "10.0.0.1/32, fd00::/64",
        "every 25 seconds",
        "transfer: ",
    ] {
        assert!(shown.contains(part), "{part} in {shown}");
    }
    assert_eq!(wg_ok(&["show", "interfaces"], ""), "wgtest0\n");
    assert_eq!(wg_ok(&["show", "wgtest0", "dump"], "").lines().count(), 3);

    // What showconf prints, setconf takes, and syncconf finds nothing to change in.
    let conf = wg_ok(&["showconf", "wgtest0"], "");
    wg_ok(&["setconf", "wgtest0", "/dev/stdin"], &conf);
    assert_eq!(wg_ok(&["showconf", "wgtest0"], ""), conf);
    wg_ok(&["syncconf", "wgtest0", "/dev/stdin"], &conf);
    assert_eq!(wg_ok(&["showconf", "wgtest0"], ""), conf);
    // syncconf without the second peer.
    let shorter =
        conf.split("\n[Peer]").filter(|part| !part.contains(two)).collect::<Vec<_>>().join("\n[Peer]");
    wg_ok(&["syncconf", "wgtest0", "/dev/stdin"], &shorter);
    assert!(!wg_ok(&["show", "wgtest0", "peers"], "").contains(two));
    wg_ok(
        &["addconf", "wgtest0", "/dev/stdin"],
        &format!("[Peer]\nPublicKey = {two}\nAllowedIPs = 10.2.0.0/16\n"),
    );
    wg_ok(&["set", "wgtest0", "peer", one, "remove"], "");
    assert_eq!(wg_ok(&["show", "wgtest0", "allowed-ips"], ""), format!("{two}\t10.2.0.0/16\n"));
    // The own key as a peer is ignored.
    wg_ok(&["set", "wgtest0", "peer", public, "allowed-ips", "10.9.0.0/16"], "");
    assert!(!wg_ok(&["show", "wgtest0", "peers"], "").contains(public));

    // This process has no other test and no other server: signals are ours to send.
    let kill = |signal: &str| {
        let pid = std::process::id().to_string();
        assert!(Command::new("kill").args([signal, &pid]).status().unwrap().success());
    };
    kill("-HUP");
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(wg_ok(&["show", "wgtest0", "listen-port"], ""), "51820\n", "SIGHUP is ignored");
    kill("-TERM");
    let (end, control) = server.wait();
    assert_eq!(end, End::Signal);
    assert_eq!(control.dataplane.peers.len(), 1);
    let server = Running::start(Path::new(DIRECTORY));
    assert_eq!(server.ask("get=1\n\n"), "errno=0\n\n");
    kill("-INT");
    assert_eq!(server.wait().0, End::Signal);
    assert!(!wg(&["show", "wgtest0"], "").0);
}
