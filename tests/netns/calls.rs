//! The library's calls for programs that leave everything to `ringway up`; `ping`, `check`, `status --watch`; what `up`
//! says when there is no answer; its kill switch by choice; and a way that swallows large packets.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use ringway::client::calls::{Check, CheckResult, VpnClient};
use ringway::client::error::{StartResult, Status};
use serde_json::Value;

use crate::admin::json_of;
use crate::appliance::{program, state};
use crate::enrolment::said;
use crate::errands;
use crate::lab::{Host, Lab, machine, wait_until};
use crate::peer::{Implementation, Peer, Remote, stranger};
use crate::topology::{GATEWAY_PORT, GATEWAY_V4, GATEWAY_V6};
use crate::traffic::{Flow, Way, must_reach, ping};
use crate::up::{ALL, know, profile, ringway, server, start, write};
use crate::vpn::{FAR_V4, FAR_V6, site};

const SOON: Duration = Duration::from_secs(10);
/// Where the errand `echo-bytes` is.
const ECHO_PORT: u16 = 7;

/// The errand: sends back what comes, one connection after the other.
pub(crate) fn echo_bytes(place: SocketAddr) {
    let listener = TcpListener::bind(place).unwrap();
    for stream in listener.incoming() {
        let mut stream = stream.unwrap();
        let mut buffer = vec![0; 64 << 10];
        while let Ok(read @ 1..) = stream.read(&mut buffer) {
            if stream.write_all(&buffer[..read]).is_err() {
                break;
            }
        }
    }
}

/// The errand: every call, with every result.
pub(crate) fn errand(program: &str) {
    let client = |profile: &str| VpnClient::new(profile).unwrap().with_program(program);
    let vpn = client("/var/run/vpn0.conf");
    assert_eq!(vpn.status().unwrap(), Status::NotStarted);
    assert_eq!(vpn.stop().unwrap_err().code(), 2_203_003);
    let mut changes = vpn.changes().unwrap();
    assert_eq!(changes.wait(), Some(Status::NotStarted));
    let started = vpn.start();
    assert_eq!(started.result, StartResult::Started, "{started:?}");
    assert!(started.said.contains("vpn0: connected to "), "{started:?}");
    assert_eq!((changes.wait(), vpn.status().unwrap()), (Some(Status::Started), Status::Started));
    let again = vpn.start();
    assert!(again.result == StartResult::AlreadyStarted && again.said.contains("vpn0 already"), "{again:?}");

    let check = |host: &str, port, send, receive| {
        let (host, timeout) = (host.to_owned(), SOON);
        vpn.check(&Check { host, port, send, receive, timeout, ..Check::default() })
    };
    let checked = check(FAR_V4, Some(ECHO_PORT), 1 << 20, 1 << 20);
    assert_eq!(checked.result, CheckResult::Successful, "{checked:?}");
    assert!(checked.sent.unwrap() > 1e6 && checked.received.unwrap() > 1e6, "{checked:?}");
    assert_eq!((checked.rounds.sent, checked.rounds.loss(), checked.connect.is_some()), (5, 0.0, true));
    let missing = check("", None, 0, 0);
    let closed = check(FAR_V4, Some(9), 0, 0);
    let short = Check { receive: 1, timeout: Duration::from_secs(2), ..Check::default() };
    let silent = vpn.check(&Check { host: FAR_V4.to_owned(), port: Some(ECHO_PORT), ..short });
    let codes = [missing, closed, silent].map(|checked| checked.result.code());
    assert_eq!(codes, [-1, -2, -3]);

    // Killed: nothing leaves, and `stop` takes back what it left.
    let pid = fs::read_to_string("/run/ringway/vpn0/pid").unwrap();
    machine(&format!("kill -KILL {}", pid.trim()));
    assert_eq!(changes.wait(), Some(Status::ConnLost));
    vpn.stop().unwrap();
    assert_eq!(changes.wait(), Some(Status::Stopped));

    // The async faces, on a runtime.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        assert_eq!(vpn.start_async().await.result, StartResult::Started);
        let mut changes = vpn.changes().unwrap();
        assert_eq!(changes.next().await, Some(Status::Started));
        let check = Check { host: FAR_V4.to_owned(), timeout: SOON, ..Check::default() };
        assert_eq!(vpn.check_async(&check).await.result, CheckResult::Successful);
        vpn.stop_async().await.unwrap();
        assert_eq!(changes.next().await, Some(Status::Stopped));
    });

    let results = ["missing", "unnamed", "silent"].map(|name| {
        let started = client(&format!("/var/run/{name}.conf")).start();
        (started.result.code(), started.said)
    });
    for ((code, said), (wanted, words)) in results.iter().zip([
        (-1, "missing.conf: "),
        (-2, "the gateway's name is not resolved"),
        (-3, "nobody listens on its UDP port 9"),
    ]) {
        assert!(*code == wanted && said.contains(words), "{code} {said}");
    }
}

#[test]
fn a_program_starts_follows_checks_and_stops_a_connection() {
    let Some(lab) = Lab::new() else { return };
    let (far, host) = site(&lab);
    let server = server(&far);
    let (_, public) = profile(&host, "vpn0", &server.public, ("", ALL));
    know(&server, &public);
    let mut echo = errands::send(&far, &format!("echo-bytes {FAR_V4}:{ECHO_PORT}"));
    let key = machine("wg genkey");
    for (name, endpoint) in [("unnamed", "no-such-host.invalid:7"), ("silent", "198.18.0.1:9")] {
        let gateway = stranger();
        let content = format!(
            "[Interface]\nPrivateKey = {key}Address = 100.64.0.3\n[Peer]\nPublicKey = {gateway}\n\
             Endpoint = {endpoint}\n"
        );
        write(&host, name, &content);
    }
    let before = state(&host);
    errands::run_on(&host, &format!("calls {}", program()));
    assert_eq!(state(&host), before);
    echo.kill().unwrap();
    echo.wait().unwrap();
}

/// The lines that a command prints.
struct Lines(Child, BufReader<std::process::ChildStdout>);

impl Lines {
    fn of(host: &Host, words: &str) -> Self {
        let mut child =
            host.line(&format!("timeout 50 {} {words}", program())).stdout(Stdio::piped()).spawn().unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        Self(child, out)
    }

    fn json(&mut self) -> Value {
        let mut line = String::new();
        self.1.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line:?}"))
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn changes_are_printed_as_they_come_and_round_trips_are_measured() {
    let Some(lab) = Lab::new() else { return };
    let (far, host) = site(&lab);
    let server = server(&far);
    let (path, public) = profile(&host, "vpn0", &server.public, ("", ALL));
    know(&server, &public);
    let mut watch = Lines::of(&host, "status --watch --json");
    let (done, told) = ringway(&host, "ping");
    assert!(!done && told.contains("no connection"), "{told}");
    assert!(ringway(&host, &format!("up --background {path}")).0);
    let seen = loop {
        let seen = watch.json();
        if seen["status"] == "started" {
            break seen;
        }
    };
    assert_eq!((&seen["name"], &seen["peers"][0]["endpoint"]), (&"vpn0".into(), &"198.18.0.1:51820".into()));
    assert!(seen["time"].as_u64().unwrap() > 1_700_000_000, "{seen}");

    let (done, told) = ringway(&host, "ping vpn0 -c 2");
    assert!(
        done && told.contains("vpn0: 2 after ") && told.contains("2 sent, 2 came back, 0 % lost"),
        "{told}"
    );
    let measured = json_of(&host, "ping -c 1");
    assert_eq!((&measured["address"], &measured["received"]), (&GATEWAY_V4.into(), &1.into()));
    assert!(measured["rtt_ms"]["avg"].as_f64().unwrap() > 0.0, "{measured}");
    assert_eq!(json_of(&host, &format!("ping {FAR_V6} -c 1"))["loss"], 0.0);

    let mut echo = errands::send(&far, &format!("echo-bytes {FAR_V4}:{ECHO_PORT}"));
    let checked =
        || json_of(&host, &format!("check {FAR_V4}:{ECHO_PORT} --via vpn0 --send 200k --receive 200k"));
    wait_until("the echo is served", SOON, || {
        host.attempt(&format!("{} check {FAR_V4}:{ECHO_PORT}", program())).status.success()
    });
    let checked = checked();
    assert_eq!(
        (&checked["result"], &checked["problem"], &checked["echo"]["loss"]),
        (&0.into(), &Value::Null, &0.0.into())
    );
    assert!(checked["sent_bits_per_second"].as_f64().unwrap() > 1e5, "{checked}");
    assert!(checked["received_bits_per_second"].as_f64().unwrap() > 1e5, "{checked}");
    let (done, told) = ringway(&host, &format!("check {FAR_V4}"));
    assert!(done && told.starts_with("198.19.0.1: 5 sent, 5 came back"), "{told}");
    let (done, told) = ringway(&host, &format!("check {FAR_V4}:9"));
    assert!(!done && told.contains("Connection refused"), "{told}");

    // The gateway is gone: its port is closed to nobody, and nothing comes back.
    far.run("ip link set wg0 down");
    let code = |words: &str| host.attempt(&format!("{} {words}", program())).status.code();
    assert_eq!(code("ping vpn0 -c 1"), Some(9));
    assert_eq!(code(&format!("check {FAR_V4}:{ECHO_PORT} --timeout 2")), Some(9));
    assert_eq!(code(&format!("check {FAR_V4} --send 1")), Some(2));
    assert_eq!(ringway(&host, "down vpn0").1, "vpn0: down\n");
    assert_eq!(watch.json()["status"], "stopped");
    echo.kill().unwrap();
    echo.wait().unwrap();
}

/// A client whose network says nothing of where the gateway is.
#[test]
fn a_gateway_answers_pings_whatever_its_address_is() {
    let Some(lab) = Lab::new() else { return };
    let (far, host) = site(&lab);
    let server = server(&far);
    let (path, public) = profile(&host, "vpn0", &server.public, ("", "AllowedIPs = 100.64.0.0/10"));
    let conf = fs::read_to_string(host.run_file("vpn0.conf")).unwrap();
    fs::write(host.run_file("vpn0.conf"), conf.replace("100.64.0.2/32, fd64::2/128", "100.64.5.2/32"))
        .unwrap();
    server.know(&Remote { public: &public, allowed: "100.64.5.2/32", ..Remote::default() });
    assert!(ringway(&host, &format!("up --background {path}")).0);
    // What it does not forward it passes over in silence.
    for (forwards, code) in [(0, 9), (1, 0)] {
        far.run(&format!("sysctl -qw net.ipv4.ip_forward={forwards}"));
        let pinged = host.attempt(&format!("{} ping vpn0 -c 1 --json", program()));
        let told: Value = serde_json::from_slice(&pinged.stdout).unwrap();
        assert_eq!((pinged.status.code(), &told["address"]), (Some(code), &"100.64.5.1".into()), "{told}");
    }
    assert_eq!(ringway(&host, "down vpn0").1, "vpn0: down\n");
}

/// Nobody's battery pays for what the MTU is asked.
#[test]
fn nothing_is_sent_through_an_idle_tunnel() {
    let Some(lab) = Lab::new() else { return };
    let (far, host) = site(&lab);
    let server = server(&far);
    let (path, public) = profile(&host, "vpn0", &server.public, ("", "AllowedIPs = 100.64.0.0/10"));
    know(&server, &public);
    // It would ask on the new link for a router, now and then.
    host.run("sysctl -qw net.ipv6.conf.default.router_solicitations=0");
    assert!(ringway(&host, &format!("up --background {path}")).0);
    let asked = || {
        let counted = far.run("nstat -a -s -z IcmpInEchos");
        counted.lines().find_map(|line| line.split_whitespace().nth(1)?.parse::<u32>().ok()).unwrap()
    };
    wait_until("the full size is tried", SOON, || asked() == 1);
    // The kernel's own first packets on a new link are a use: it is tried once more after 15 s, and then no more.
    std::thread::sleep(Duration::from_secs(20));
    let before = asked();
    assert!(before <= 2, "{before}");
    std::thread::sleep(Duration::from_secs(20));
    assert_eq!(asked(), before);
    assert_eq!(ringway(&host, "down vpn0").1, "vpn0: down\n");
}

/// What `up` says, by what was done to the host.
fn refusal(up: Child) -> String {
    let (code, told) = said(up);
    assert_eq!(code, Some(9), "{told}");
    told
}

#[test]
fn each_kind_of_silence_has_its_sentence() {
    let Some(lab) = Lab::new() else { return };
    let gateway = stranger();
    // What is done, by whom, and what is said of it.
    let cases = [
        ("host", "ip route del default", "203.0.113.9", "no route leads to the gateway 203.0.113.9:51820"),
        (
            "host",
            "nft table inet t { chain c { type filter hook output priority 0; udp dport 51820 drop; }; }",
            "198.18.0.1",
            "this host's own firewall forbids to send to the gateway 198.18.0.1:51820",
        ),
        (
            "far",
            "nft table inet t { chain c { type filter hook input priority 0; udp dport 51820 reject with icmp type \
             host-unreachable; }; }",
            "198.18.0.1",
            "the gateway 198.18.0.1:51820 cannot be reached",
        ),
        ("host", "true", "198.18.0.77", "the gateway 198.18.0.77:51820 cannot be reached: it is off"),
        (
            "far",
            "nft table inet t { chain c { type filter hook input priority 0; udp dport 51820 drop; }; }",
            "198.18.0.1",
            "nothing comes back from the gateway 198.18.0.1:51820",
        ),
    ];
    let mut begun = Vec::new();
    for (who, done, place, sentence) in cases {
        let (far, host) = site(&lab);
        let side = if who == "far" { &far } else { &host };
        match done.strip_prefix("nft ") {
            Some(rules) => drop(side.run_with_input("nft -f -", rules)),
            None => drop(side.run(done)),
        }
        let path = at(&host, &gateway, place);
        begun.push((start(&host, &path), sentence, (far, host)));
    }
    // Its profile was written tomorrow.
    let (far, host) = site(&lab);
    far.run_with_input(
        "nft -f -",
        "table inet t { chain c { type filter hook input priority 0; udp dport 51820 drop; }; }",
    );
    let path = at(&host, &gateway, "198.18.0.1");
    host.run(&format!("touch -d 2100-01-01 {path}"));
    begun.push((start(&host, &path), "this host's clock is behind", (far, host)));
    let told = begun.into_iter().map(|(up, sentence, _site)| (sentence, refusal(up)));
    let wrong: Vec<_> = told.filter(|(sentence, told)| !told.contains(sentence)).collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// A profile whose gateway is at this place.
fn at(host: &Host, gateway: &str, place: &str) -> String {
    let key = machine("wg genkey");
    write(
        host,
        "vpn0",
        &format!(
            "[Interface]\nPrivateKey = {key}Address = 100.64.0.2/32\n[Peer]\nPublicKey = {gateway}\n\
             Endpoint = {place}:{GATEWAY_PORT}\nAllowedIPs = 100.64.0.0/10\n"
        ),
    )
}

#[test]
fn the_kill_switch_is_there_by_choice_and_so_is_the_local_network() {
    let Some(lab) = Lab::new() else { return };
    let (far, host) = site(&lab);
    let server = server(&far);
    far.address("f0", "10.9.0.1/24");
    host.address("e0", "10.9.0.2/24");
    // No default route: by itself the switch stays off.
    let (path, public) = profile(&host, "vpn0", &server.public, ("", "AllowedIPs = 100.64.0.0/10"));
    know(&server, &public);
    let before = state(&host);
    for (switch, beside, local) in [("auto", 1, 1), ("on", 0, 0), ("local", 0, 1), ("off", 1, 1)] {
        let (done, told) = ringway(&host, &format!("up --background --kill-switch {switch} {path}"));
        assert!(done, "{told}");
        must_reach(&host, GATEWAY_V4);
        let reached = [FAR_V4, FAR_V6, "10.9.0.1"].map(|to| ping(&host, to, 1, 56));
        assert_eq!(reached, [beside, beside, local], "{switch}");
        assert_eq!(ringway(&host, "down vpn0").1, "vpn0: down\n");
        assert_eq!(state(&host), before, "{switch}");
    }
    let (done, told) = ringway(&host, &format!("up --kill-switch perhaps {path}"));
    assert!(!done && told.contains("auto, on, local, always, always-local, off"), "{told}");
}

/// The MTU of a host's device.
fn mtu(host: &Host, device: &str) -> u32 {
    let shown = host.run(&format!("ip -o link show dev {device}"));
    shown.split(" mtu ").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap()
}

/// A way over which nothing is said of what is too large for it.
struct Swallowing {
    far: Arc<Host>,
    middle: Arc<Host>,
    host: Arc<Host>,
    /// Addresses of the outer network are of IPv6.
    v6: bool,
}

impl Swallowing {
    fn new(lab: &Lab, v6: bool) -> Self {
        let [far, middle, host] = ["far", "middle", "host"].map(|role| lab.host(role));
        for ((a, a_if), (b, b_if), place) in
            [((&far, "f0"), (&middle, "m0"), 0), ((&middle, "m1"), (&host, "e0"), 1)]
        {
            lab.link((a, a_if), (b, b_if), 1500);
            for (at, link, number) in [(a, a_if, 1), (b, b_if, 2)] {
                at.address(link, &format!("fd00:198:18:{place}::{number}/64"));
                at.address(link, &format!("198.18.{place}.{number}/24"));
            }
        }
        middle.run("sysctl -qw net.ipv6.conf.all.forwarding=1 net.ipv4.ip_forward=1");
        for (at, v4, v6) in
            [(&far, "198.18.0.2", "fd00:198:18::2"), (&host, "198.18.1.1", "fd00:198:18:1::1")]
        {
            at.run(&format!("ip route add default via {v4}"));
            at.run(&format!("ip -6 route add default via {v6}"));
        }
        middle.run_with_input(
            "nft -f -",
            "table inet t { chain c { type filter hook output priority 0; icmpv6 type packet-too-big drop; }; }",
        );
        far.run_with_input(
            "nft -f -",
            "table ip t { chain c { type filter hook prerouting priority -450; ip frag-off & 0x3fff != 0 drop; }; }",
        );
        Self { far, middle, host, v6 }
    }

    /// From now on packets of more than `most` bytes do not arrive: IPv6 is not cut by routers, and of what is cut of
    /// IPv4 nothing comes through.
    fn narrow(&self, most: u32) {
        self.middle.run(&format!("ip link set m0 mtu {most}"));
    }

    /// A plain gateway at one end, and our client at the other.
    fn connected(&self) -> Peer {
        let server = Peer::start(&self.far, Implementation::WireguardGo, "wg0", GATEWAY_PORT);
        server.up(&[&format!("{GATEWAY_V4}/10"), &format!("{GATEWAY_V6}/64")], 1420);
        let key = machine("wg genkey");
        let public = self.host.run_with_input("wg pubkey", &key).trim().to_owned();
        let place = if self.v6 { "[fd00:198:18::1]" } else { "198.18.0.1" };
        let conf = format!(
            "[Interface]\nPrivateKey = {key}Address = 100.64.0.2/32\n[Peer]\nPublicKey = {}\n\
             Endpoint = {place}:{GATEWAY_PORT}\nAllowedIPs = 100.64.0.0/10\n",
            server.public
        );
        know(&server, &public);
        let path = write(&self.host, "vpn0", &conf);
        let (done, told) = ringway(&self.host, &format!("up --background {path}"));
        assert!(done, "{told}");
        server
    }

    /// Whether the device's MTU is what packets of this size carry.
    fn found(&self, most: u32) -> bool {
        // IP, 8 bytes of UDP and 32 of WireGuard, and data is padded to 16.
        let most = most - if self.v6 { 80 } else { 60 };
        (most - 24..=most).contains(&mtu(&self.host, "vpn0"))
    }

    fn carries(&self, ways: &[Way]) {
        for &way in ways {
            let report = Flow { way, ..Flow::tcp(&self.host, &self.far, GATEWAY_V4) }.run();
            assert!(report.rate > 5e6, "{way:?}: {report:?}");
        }
    }
}

/// A way of which the middle takes less than full packets, and says so to nobody.
#[test]
fn what_the_way_swallows_lowers_the_mtu_and_traffic_goes_on() {
    let Some(lab) = Lab::with_traffic() else { return };
    let way = Swallowing::new(&lab, true);
    way.narrow(1400);
    let _server = way.connected();
    wait_until("the MTU is found", Duration::from_secs(40), || way.found(1400));
    way.carries(&[Way::Up, Way::Down]);
    // It narrows while it is used.
    way.narrow(1340);
    let begin = Instant::now();
    while !way.found(1340) {
        assert!(begin.elapsed() < Duration::from_secs(50), "{}", mtu(&way.host, "vpn0"));
        ping(&way.host, GATEWAY_V4, 1, 56);
        std::thread::sleep(Duration::from_millis(300));
    }
    way.carries(&[Way::Up]);
    assert_eq!(ringway(&way.host, "down vpn0").1, "vpn0: down\n");
}

#[test]
fn what_the_way_swallows_over_ipv4_lowers_the_mtu() {
    let Some(lab) = Lab::with_traffic() else { return };
    let way = Swallowing::new(&lab, false);
    way.narrow(1000);
    let _server = way.connected();
    wait_until("the MTU is found", Duration::from_secs(40), || way.found(1000));
    way.carries(&[Way::Up, Way::Down]);
    assert_eq!(ringway(&way.host, "down vpn0").1, "vpn0: down\n");
}
