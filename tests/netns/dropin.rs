//! What a drop-in program owes to scripts and supervisors: exit codes and messages, inherited descriptors, the
//! environment, the verbs; and a configuration of 130,000 prefixes.

use std::io::{BufRead, BufReader};
use std::process::{Child, Output, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::lab::{Host, Lab, machine, wait_until};
use crate::peer::{Implementation, Peer, Remote};
use crate::topology::{
    CLIENT_PORT, GATEWAY_PORT, GATEWAY_V4, OVERLAY, Outer, Plan, client_prefixes, client_v4, connect,
    gateway_endpoint,
};
use crate::traffic::{Flow, Way, must_reach, ping};

const SOON: Duration = Duration::from_secs(10);
/// `IFF_TUN | IFF_NO_PI`, and `IFF_VNET_HDR` (linux/if_tun.h).
const PLAIN: u32 = 0x1001;
const WITH_HEADERS: u32 = 0x5001;

/// Executes its arguments with a TUN device `wg0` of these flags and a listening UAPI socket: what wg-quick's
/// relatives on phones do.
const INHERITANCE: &str = r#"
    use Socket; $^F = 255;
    my ($flags, @command) = @ARGV;
    open(my $tun, "+<", "/dev/net/tun") or die "tun: $!";
    ioctl($tun, 0x400454ca, pack("a16 S x22", "wg0", $flags)) or die "TUNSETIFF: $!";
    socket(my $uapi, PF_UNIX, SOCK_STREAM, 0) or die "socket: $!";
    bind($uapi, pack_sockaddr_un("/var/run/wireguard/wg0.sock")) or die "bind: $!";
    listen($uapi, 5) or die "listen: $!";
    $ENV{WG_TUN_FD} = fileno($tun);
    $ENV{WG_UAPI_FD} = fileno($uapi);
    exec @command; die "exec: $!";
"#;

/// Listens on a unix socket at a path until it is killed.
const LISTENER: &str = r#"
    use Socket; $| = 1;
    socket(my $uapi, PF_UNIX, SOCK_STREAM, 0) or die "socket: $!";
    bind($uapi, pack_sockaddr_un($ARGV[0])) && listen($uapi, 5) or die "listen: $!";
    print "listening\n"; sleep;
"#;

/// Executes its arguments under a filter that answers io_uring_setup(2) with an errno: no_new_privs, then a classic
/// BPF program (load the system call's number; is it 425? errno : allow).
pub(crate) const FILTER: &str = r#"
    my ($prctl, $seccomp, $errno, @command) = @ARGV;
    my $filter = pack("SCCL" x 4, 0x20,0,0,0, 0x15,0,1,425, 0x06,0,0,0x50000|$errno, 0x06,0,0,0x7fff0000);
    my $program = pack("S x6 P", 4, $filter);
    syscall($prctl, 38, 1, 0, 0, 0) == 0 or die "no_new_privs: $!";
    syscall($seccomp, 1, 0, $program) == 0 or die "seccomp: $!";
    exec @command; die "exec: $!";
"#;

/// The program itself: these tests are about nobody else's.
fn program() -> String {
    env!("CARGO_BIN_EXE_ringway").to_owned()
}

fn ringway(host: &Host, arguments: &str) -> Output {
    host.attempt(&format!("{} {arguments}", program()))
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A process that is running in the foreground, with a socket.
struct Foreground(Option<Child>);

impl Foreground {
    fn start(host: &Host, name: &str, arguments: &[&str], variables: &[(&str, &str)]) -> Self {
        let mut cmd = host.command(program());
        cmd.args(arguments).arg(name).envs(variables.iter().copied());
        let child = cmd.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let socket = host.run_file(&format!("wireguard/{name}.sock"));
        let running = Self(Some(child));
        wait_until("the socket is there", SOON, || socket.exists());
        running
    }

    fn pid(&self) -> u32 {
        self.0.as_ref().unwrap().id()
    }

    fn ended(&mut self) -> bool {
        self.0.as_mut().unwrap().try_wait().unwrap().is_some()
    }

    fn signal(&self, name: &str) {
        machine(&format!("kill -{name} {}", self.pid()));
    }

    /// Ends it by SIGTERM and returns what it said.
    fn end(mut self) -> Output {
        self.signal("TERM");
        self.0.take().unwrap().wait_with_output().unwrap()
    }
}

impl Drop for Foreground {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// The launcher's words for perl, which is part of every Debian.
pub(crate) fn perl<'a>(script: &'a str, arguments: &[&'a str]) -> Vec<&'a str> {
    [&["perl", "-e", script, "--"], arguments].concat()
}

#[test]
fn the_parent_returns_when_the_socket_answers() {
    let Some(lab) = Lab::new() else { return };
    let host = lab.host("alone");
    let started = ringway(&host, "wg0");
    assert!(started.status.success(), "{started:?}");
    assert_eq!((text(&started.stdout), text(&started.stderr)), (String::new(), String::new()));
    // Without any wait.
    let shown = host.run("wg show wg0");
    assert!(shown.contains("interface: wg0"), "{shown}");
    assert!(host.has_interface("wg0"));
    host.run("rm /var/run/wireguard/wg0.sock");
    wait_until("the device is gone", SOON, || !host.has_interface("wg0"));
}

/// Starts in the background and in the foreground; both fail with one line that holds `says`, and leave nothing.
fn fails(host: &Host, launcher: &str, says: &[&str]) {
    let links = || host.run("ip -o link show").lines().count();
    let before = links();
    for arguments in ["wg9", "-f wg9"] {
        let out = host.attempt(&format!("{launcher} {} {arguments}", program()));
        let said = text(&out.stderr);
        assert_eq!(out.status.code(), Some(1), "{arguments}: {said}");
        assert_eq!(said.lines().count(), 1, "{arguments}: {said}");
        assert!(said.starts_with("ringway: "), "{arguments}: {said}");
        for part in says {
            assert!(said.contains(part), "{arguments}: {said}");
        }
        wait_until("no link is left", SOON, || links() == before);
    }
}

#[test]
fn a_start_that_fails_says_why_in_one_line_and_leaves_nothing() {
    let Some(lab) = Lab::new() else { return };
    let host = lab.host("alone");
    let socket = host.run_file("wireguard/wg9.sock");

    fails(&host, "setpriv --bounding-set=-net_admin", &["wg9", "CAP_NET_ADMIN"]);
    assert!(!socket.exists());

    host.run("ip link add wg9 type veth peer name other");
    fails(&host, "", &["wg9", "no TUN device"]);
    host.run("ip link delete wg9");
    assert!(!socket.exists());

    std::fs::write(&socket, "a file of somebody's").unwrap();
    fails(&host, "", &["wg9.sock", "exists"]);
    assert_eq!(std::fs::read(&socket).unwrap(), b"a file of somebody's");
    std::fs::remove_file(&socket).unwrap();

    let mut listener = host.command("perl");
    listener.args(["-e", LISTENER, "/var/run/wireguard/wg9.sock"]).stdout(Stdio::piped());
    let mut listener = listener.spawn().unwrap();
    BufReader::new(listener.stdout.take().unwrap()).read_line(&mut String::new()).unwrap();
    fails(&host, "", &["wg9.sock", "in use"]);
    assert!(socket.exists(), "somebody's socket stays");
    listener.kill().unwrap();
    listener.wait().unwrap();

    // A socket that nobody listens on any more is replaced.
    let running = Foreground::start(&host, "wg9", &["-f"], &[]);
    wait_until("it answers", SOON, || host.attempt("wg show wg9").status.success());
    // The same name again.
    for arguments in ["wg9", "-f wg9"] {
        let out = ringway(&host, arguments);
        assert_eq!((out.status.code(), text(&out.stderr).lines().count()), (Some(1), 1), "{out:?}");
        assert!(text(&out.stderr).contains("wg9 is in use"), "{out:?}");
    }
    assert!(host.attempt("wg show wg9").status.success(), "the first goes on");
    assert_eq!(running.end().status.code(), Some(0));

    for bad in ["a/b", "sixteen-letters-", ".."] {
        let out = ringway(&host, bad);
        assert_eq!(out.status.code(), Some(2), "{out:?}");
        assert!(text(&out.stderr).contains(bad), "{out:?}");
    }
}

#[test]
fn io_uring_behind_a_seccomp_filter_is_named() {
    let Some(lab) = Lab::new() else { return };
    let host = lab.host("alone");
    let [prctl, seccomp] = if cfg!(target_arch = "x86_64") { ["157", "317"] } else { ["167", "277"] };
    let program = program();
    for errno in ["1", "38"] {
        for arguments in [&["-f", "wg9"][..], &["wg9"]] {
            let words = perl(FILTER, &[&[prctl, seccomp, errno, &program], arguments].concat());
            let out = host.command(words[0]).args(&words[1..]).output().unwrap();
            let said = text(&out.stderr);
            assert_eq!(out.status.code(), Some(1), "{errno}: {said}");
            assert!(said.contains("seccomp") && said.contains("allow io_uring_setup"), "{errno}: {said}");
            assert!(!host.has_interface("wg9") && !host.run_file("wireguard/wg9.sock").exists());
        }
    }
    // The filter alone harms nothing else.
    let words = perl(FILTER, &[prctl, seccomp, "1", &program, "genkey"]);
    assert!(host.command(words[0]).args(&words[1..]).output().unwrap().status.success());
}

#[test]
fn sighup_is_ignored_and_the_environment_can_keep_it_in_the_foreground() {
    let Some(lab) = Lab::new() else { return };
    let host = lab.host("alone");
    let mut running = Foreground::start(&host, "wg0", &[], &[("WG_PROCESS_FOREGROUND", "1")]);
    wait_until("it answers", SOON, || host.attempt("wg show wg0").status.success());
    running.signal("HUP");
    std::thread::sleep(Duration::from_millis(300));
    assert!(!running.ended());
    assert!(host.attempt("wg show wg0").status.success());
    let ended = running.end();
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    assert!(!host.has_interface("wg0") && !host.run_file("wireguard/wg0.sock").exists());
}

#[test]
fn log_level_decides_what_is_said() {
    let Some(lab) = Lab::new() else { return };
    let host = lab.host("alone");
    let mut said = Vec::new();
    for level in ["silent", "error", "info", "verbose", "loud"] {
        let running = Foreground::start(&host, "wg0", &["-f"], &[("LOG_LEVEL", level)]);
        wait_until("it answers", SOON, || host.attempt("wg show wg0").status.success());
        said.push(text(&running.end().stderr));
    }
    assert_eq!((said[0].as_str(), said[1].as_str()), ("", ""));
    assert!(said[2].contains("ending") && said[3].contains("ending"), "{said:?}");
    assert!(said[4].contains("LOG_LEVEL") && !said[4].contains("ending"), "{said:?}");
}

#[test]
fn the_number_of_workers_is_as_asked() {
    let Some(lab) = Lab::new() else { return };
    let host = lab.host("alone");
    let cores = std::thread::available_parallelism().unwrap().get();
    for (asked, expected) in [(None, 1), (Some("3"), 3), (Some("auto"), cores)] {
        let variables: Vec<_> = asked.map(|asked| ("RINGWAY_WORKERS", asked)).into_iter().collect();
        let running = Foreground::start(&host, "wg0", &["-f"], &variables);
        let tasks = std::fs::read_dir(format!("/proc/{}/task", running.pid())).unwrap();
        let names = tasks.map(|task| std::fs::read_to_string(task.unwrap().path().join("comm")).unwrap());
        assert_eq!(names.filter(|name| name.starts_with("ringway-w")).count(), expected, "{asked:?}");
        running.end();
    }
    let out = host.command(program()).args(["-f", "wg0"]).env("RINGWAY_WORKERS", "0").output().unwrap();
    assert_eq!((out.status.code(), text(&out.stderr).lines().count()), (Some(1), 1), "{out:?}");
}

/// Ringway on a queue and a socket that its launcher made, against a client.
fn inherited(lab: &Lab, flags: u32) -> (Peer, Peer) {
    let host = lab.host("gateway");
    let flags = flags.to_string();
    let launcher = perl(INHERITANCE, &[&flags]);
    let ringway = Implementation::Ringway { workers: 1 };
    let gateway = Peer::start_through(&host, ringway, "wg0", GATEWAY_PORT, &[], &launcher);
    gateway.up(&[&format!("{GATEWAY_V4}/10")], 1420);
    let outside = lab.host("client");
    connect(lab, &host, &outside, 0, 1520);
    let client = Peer::start(&outside, Implementation::WireguardGo, "wg0", CLIENT_PORT);
    client.up(&[&format!("{}/10", client_v4(0))], 1420);
    let allowed = client_prefixes(0);
    gateway.know(&Remote { public: &client.public, allowed: &allowed, ..Remote::default() });
    let endpoint = gateway_endpoint(0, Outer::V4);
    let endpoint = Some(endpoint.as_str());
    client.know(&Remote { public: &gateway.public, allowed: OVERLAY, endpoint, ..Remote::default() });
    (gateway, client)
}

#[test]
fn an_inherited_queue_carries_traffic_with_and_without_virtio_headers() {
    let Some(lab) = Lab::with_traffic() else { return };
    for (flags, offloads) in [(WITH_HEADERS, true), (PLAIN, false)] {
        let (mut gateway, client) = inherited(&lab, flags);
        must_reach(&client.host, GATEWAY_V4);
        must_reach(&gateway.host, &client_v4(0));
        // The largest packet that fits, both ways.
        assert_eq!(ping(&client.host, GATEWAY_V4, 3, 1392), 3, "{flags:x}");
        let up = Flow { seconds: 1, ..Flow::tcp(&client.host, &gateway.host, GATEWAY_V4) };
        let down = Flow { way: Way::Down, ..up.clone() };
        for flow in [up, down] {
            assert!(flow.run().rate > 1e6, "{flags:x}: TCP does not get through");
        }
        let shown = text(&ringway(&gateway.host, "show --json wg0").stdout);
        assert!(shown.contains(&format!("\"tun_read\":{{\"on\":{offloads}")), "{shown}");
        assert_eq!(gateway.drops(&["tun_malformed", "tun_invalid"]), Some(0), "{shown}");
        gateway.signal("TERM");
        wait_until("it has ended", SOON, || gateway.exit_status().is_some());
        assert!(gateway.exit_status().unwrap().success());
    }
}

#[test]
fn show_names_every_device_and_the_verbs_make_keys() {
    let Some(lab) = Lab::new() else { return };
    let host = lab.host("alone");
    assert_eq!(text(&ringway(&host, "show").stdout), "", "nothing runs");
    let _first = Foreground::start(&host, "wg0", &["-f"], &[]);
    let _second = Foreground::start(&host, "wg1", &["-f"], &[]);
    let all = text(&ringway(&host, "show").stdout);
    assert!(all.contains("wg0") && all.contains("wg1"), "{all}");
    let one = text(&ringway(&host, "show wg1").stdout);
    assert!(!one.contains("wg0") && one.contains("wg1"), "{one}");
    let json = text(&ringway(&host, "show --json").stdout);
    let names: Vec<_> = json
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["interface"].clone())
        .collect();
    assert_eq!(names, ["wg0", "wg1"]);
    let none = ringway(&host, "show wg7");
    assert_eq!((none.status.code(), text(&none.stderr).lines().count()), (Some(1), 1), "{none:?}");

    let private = host.run(&format!("{} genkey", program()));
    let public = host.run_with_input(&format!("{} pubkey", program()), &private);
    assert_eq!(public, host.run_with_input("wg pubkey", &private));
    assert_ne!(private, host.run(&format!("{} genkey", program())));
    assert_eq!(host.run(&format!("{} genpsk", program())).trim().len(), 44);
    let version = host.run(&format!("{} --version", program()));
    assert_eq!(version.trim(), format!("ringway {}", env!("CARGO_PKG_VERSION")));
}

/// 130,000 prefixes of one peer, through `wg`, while another peer's packets go on.
#[test]
fn very_many_prefixes_disturb_nobody() {
    const PREFIXES: usize = 130_000;
    let Some(lab) = Lab::new() else { return };
    let site = Plan::new(Implementation::ringway(), Implementation::ringway()).build(&lab);
    let (gateway, client) = (&site.gateway, &site.clients[0]);
    must_reach(&client.host, GATEWAY_V4);
    let stranger = crate::peer::stranger();
    let prefixes: Vec<_> =
        (0..PREFIXES).map(|n| format!("10.{}.{}.{}/32", n >> 16, n >> 8 & 0xff, n & 0xff)).collect();
    let last = prefixes.last().unwrap().clone();
    let text = format!("[Peer]\nPublicKey = {stranger}\nAllowedIPs = {}\n", prefixes.join(", "));
    std::fs::write(gateway.host.run_file("many.conf"), text).unwrap();

    let pings = Pings::start(&client.host);
    let begin = Instant::now();
    gateway.host.run("wg addconf wg0 /var/run/many.conf");
    let added = begin.elapsed();
    let mut listed: Vec<_> =
        gateway.show("allowed-ips", &stranger).split_whitespace().map(str::to_owned).collect();
    let listed_after = begin.elapsed();
    let mut expected = prefixes;
    listed.sort_unstable();
    expected.sort_unstable();
    assert!(listed == expected, "{} of {PREFIXES} came back", listed.len());
    // The packet path knows the last of them: the stranger's, who is nowhere.
    gateway.host.run("ip route add 10.0.0.0/8 dev wg0");
    let last = last.trim_end_matches("/32");
    assert_eq!(ping(&gateway.host, last, 1, 56), 0);
    assert_eq!(gateway.drops(&["no_endpoint"]), Some(1));
    gateway.set(&format!("peer {stranger} allowed-ips 10.255.0.0/16"));
    let replaced = begin.elapsed();
    assert_eq!(gateway.show("allowed-ips", &stranger), "10.255.0.0/16");
    assert_eq!(ping(&gateway.host, last, 1, 56), 0);
    assert_eq!(gateway.drops(&["no_endpoint"]), Some(1), "no longer the stranger's");
    gateway.set(&format!("peer {stranger} remove"));
    println!("added {added:?}, listed {listed_after:?}, replaced {replaced:?}");
    assert!(begin.elapsed() < Duration::from_secs(30), "added {added:?}, listed {listed_after:?}");
    let (sent, received) = pings.finish();
    assert!(sent > 10 && received == sent, "{received} of {sent} pings came back");
    must_reach(&client.host, GATEWAY_V4);
}

/// Pings through the tunnel, 20 ms apart, until told to stop.
struct Pings(Child);

impl Pings {
    fn start(host: &Arc<Host>) -> Self {
        let mut ping = host.line(&format!("ping -n -q -i 0.02 -W 5 {GATEWAY_V4}"));
        Self(ping.stdout(Stdio::piped()).spawn().unwrap())
    }

    /// How many were sent, and how many came back.
    fn finish(self) -> (u64, u64) {
        // The last one may be on its way.
        std::thread::sleep(Duration::from_millis(500));
        machine(&format!("kill -INT {}", self.0.id()));
        let said = text(&self.0.wait_with_output().unwrap().stdout);
        let number = |what: &str| {
            let part = said.split([',', '\n']).find_map(|part| part.trim().strip_suffix(what));
            part.and_then(|number| number.parse().ok()).unwrap_or_else(|| panic!("{said}"))
        };
        (number(" packets transmitted"), number(" received"))
    }
}
