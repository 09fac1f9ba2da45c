//! What a gateway does to the host around it: each rule by traffic, both attacks that the rules are for, and the host
//! before and after.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;
use std::process::{Child, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use crate::errands::run_on;
use crate::lab::{Host, Lab, machine, target, wait_until};
use crate::peer::{Implementation, Peer, Remote, io_option};
use crate::topology::{
    CLIENT_PORT, GATEWAY_PORT, GATEWAY_V4, GATEWAY_V6, OVERLAY, client_prefixes, client_v4, client_v6,
    connect, gateway_endpoint,
};
use crate::traffic::{Capture, ip_packets, must_reach, ping};

/// The server behind the gateway. It knows no way to the clients.
pub(crate) const SERVER: &str = "198.19.0.2";
/// The same.
pub(crate) const SERVER_V6: &str = "fd00:198:19::2";
/// Beside the defaults.
const PLAIN: &str = "";
/// Rules count a super-packet once: where datagrams are counted there are none.
const SINGLE: &str = "[offload]\ntun_write = false\n";

/// `ringway gateway` on a host.
struct Appliance {
    host: Arc<Host>,
    interface: &'static str,
    child: Child,
    log: PathBuf,
}

impl Appliance {
    /// Writes the file and the key (a fresh one, if there is none yet), starts, and waits until it serves.
    fn start(host: &Arc<Host>, interface: &'static str, port: u16, text: &str) -> Self {
        let mut appliance = Self::launch(host, interface, port, text, "");
        wait_until("the gateway serves", Duration::from_secs(10), || {
            assert!(appliance.exit_status().is_none(), "it ended at once: {}", appliance.said());
            // Not its socket: what a killed one left may be there.
            appliance.said().contains(" ready ")
        });
        appliance
    }

    /// As `start`, after a shell's `before` in a mount namespace of its own, and without waiting.
    fn launch(host: &Arc<Host>, interface: &'static str, port: u16, text: &str, before: &str) -> Self {
        let key = host.run_file(&format!("{interface}.key"));
        if !key.exists() {
            let mut options = File::options();
            let mut file = options.write(true).create_new(true).mode(0o600).open(&key).unwrap();
            file.write_all(machine("wg genkey").as_bytes()).unwrap();
        }
        let number = if interface == "wg0" { 64 } else { 65 };
        let text = format!(
            "interface = \"{interface}\"\nlisten_port = {port}\nprivate_key_file = \"/run/{interface}.key\"\n\
             workers = 2\naddresses = [\"100.{number}.0.1/16\", \"fd{number}::1/64\"]\n{text}\n[metrics]\n\
             listen = \"off\"\n"
        );
        fs::write(host.run_file(&format!("{interface}.toml")), text).unwrap();
        let log = target().join("netns-logs").join(format!("{}-{interface}.log", host.namespace));
        fs::create_dir_all(log.parent().unwrap()).unwrap();
        let program = env!("CARGO_BIN_EXE_ringway");
        let io = io_option();
        let script = format!("{before}\nexec {program} gateway --config /run/{interface}.toml {io}");
        let mut command = host.command("unshare");
        let child = command
            .args(["-m", "sh", "-ec", &script])
            .stdout(Stdio::null())
            .stderr(File::create(&log).unwrap())
            .spawn()
            .unwrap();
        Self { host: Arc::clone(host), interface, child, log }
    }

    fn public(&self) -> String {
        let key = fs::read_to_string(self.host.run_file(&format!("{}.key", self.interface))).unwrap();
        self.host.run_with_input("wg pubkey", &key).trim().to_owned()
    }

    fn said(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }

    fn exit_status(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap()
    }

    fn signal(mut self, name: &str) -> ExitStatus {
        machine(&format!("kill -{name} {}", self.child.id()));
        self.child.wait().unwrap()
    }

    fn stop(self) {
        let said = self.log.clone();
        let status = self.signal("TERM");
        assert!(status.success(), "{status}: {}", fs::read_to_string(said).unwrap());
    }

    /// How many packets the rule with this comment has counted.
    fn counted(&self, comment: &str) -> u64 {
        let rules = self.host.run(&format!("nft list table inet ringway_{}", self.interface));
        let lines = rules.lines().filter(|line| line.contains(&format!("comment \"{comment}\"")));
        let counts =
            lines.filter_map(|line| line.split_once("packets ")?.1.split(' ').next()?.parse::<u64>().ok());
        counts.sum()
    }
}

impl Drop for Appliance {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            println!("--- the gateway {} said:\n{}", self.interface, self.said());
        }
    }
}

/// A gateway's host with a server behind it.
pub(crate) fn site(lab: &Lab) -> (Arc<Host>, Arc<Host>) {
    let (host, server) = (lab.host("gateway"), lab.host("server"));
    lab.link((&host, "behind"), (&server, "e0"), 1500);
    host.address("behind", "198.19.0.1/24");
    host.address("behind", "fd00:198:19::1/64");
    server.address("e0", "198.19.0.2/24");
    server.address("e0", "fd00:198:19::2/64");
    (host, server)
}

/// Peers for the gateway's file: the clients by number, who then are made by [`client`].
fn client(lab: &Lab, gateway: &Arc<Host>, i: usize) -> Peer {
    let host = lab.host(&format!("client{i}"));
    connect(lab, gateway, &host, i, 1500);
    let client = Peer::start(&host, Implementation::Ringway { workers: 1 }, "wg0", CLIENT_PORT);
    client.up(&[&format!("{}/10", client_v4(i)), &format!("{}/64", client_v6(i))], 1420);
    host.run("ip route add 198.19.0.0/24 dev wg0");
    host.run("ip route add fd00:198:19::/64 dev wg0");
    client
}

pub(crate) fn section(i: usize, client: &Peer) -> String {
    let allowed = client_prefixes(i).replace(',', "\", \"");
    format!("[[peer]]\npublic_key = \"{}\"\nallowed_ips = [\"{allowed}\"]\n", client.public)
}

/// Tells a client of the gateway as if it were new: a session with a process that is gone lasts for 15 s.
fn know(i: usize, client: &Peer, appliance: &Appliance, more: &str) {
    client.set(&format!("peer {} remove", appliance.public()));
    client.know(&Remote {
        public: &appliance.public(),
        allowed: &format!("{OVERLAY},198.19.0.0/24,fd00:198:19::/64{more}"),
        endpoint: Some(&gateway_endpoint(i, crate::topology::Outer::V4)),
        ..Remote::default()
    });
}

/// What a gateway may change, in words that can be compared.
pub(crate) fn state(host: &Host) -> String {
    let mut sysctls: Vec<_> = host
        .run("sysctl -a -r (forwarding|accept_ra|ip_forward)$")
        .lines()
        .filter(|line| !line.contains(".wg"))
        .map(str::to_owned)
        .collect();
    sysctls.sort();
    let commands = ["nft list ruleset", "ip -br link", "ip route show table all", "ip -6 route", "ip rule"];
    let outputs: Vec<_> = commands.iter().map(|line| host.run(line)).collect();
    let run = fs::read_dir(host.run_file("")).unwrap();
    let mut files: Vec<_> = run.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    // The test's own, and what mount(8) keeps.
    files.retain(|name| !name.starts_with("wg") && name != "mount");
    files.sort();
    format!("{}\n{}\n{}", sysctls.join("\n"), outputs.join("\n"), files.join("\n"))
}

/// Ends a capture of a few packets, which the kernel hands to tcpdump a second late.
fn caught(capture: Capture) -> PathBuf {
    std::thread::sleep(Duration::from_millis(1500));
    capture.stop()
}

/// Whether a TCP connection can be made.
fn connects(from: &Host, to: &str, port: u16) -> bool {
    let script = format!("exec 3<>/dev/tcp/{to}/{port}");
    from.command("timeout")
        .args(["1", "bash", "-c", &script])
        .stderr(Stdio::null())
        .status()
        .unwrap()
        .success()
}

/// Something that listens on a TCP port until it is dropped.
struct Listener(Child);

impl Listener {
    fn on(host: &Host, port: u16) -> Self {
        let child = host.line(&format!("iperf3 -s -p {port}")).stdout(Stdio::null()).spawn().unwrap();
        let listener = Self(child);
        wait_until("something listens", Duration::from_secs(10), || {
            !host.run(&format!("ss -Hltn sport = :{port}")).is_empty()
        });
        listener
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
pub(crate) fn clients_leave_masqueraded_and_reach_of_the_host_what_services_name() {
    let Some(lab) = Lab::new() else { return };
    let (host, server) = site(&lab);
    let one = client(&lab, &host, 0);
    let text = format!("{}{SINGLE}[services]\ntcp = [8080]\nudp = [5353]\n", section(0, &one));
    let appliance = Appliance::start(&host, "wg0", GATEWAY_PORT, &text);
    know(0, &one, &appliance, "");
    // ICMP to the host; through it to a server that knows no way back.
    for there in [GATEWAY_V4, GATEWAY_V6, SERVER, SERVER_V6] {
        must_reach(&one.host, there);
    }
    let _listeners = [Listener::on(&host, 8080), Listener::on(&host, 8081), Listener::on(&server, 8081)];
    assert!(connects(&one.host, GATEWAY_V4, 8080), "a service");
    assert!(!connects(&one.host, GATEWAY_V4, 8081), "no service");
    assert!(!connects(&one.host, "198.19.0.1", 8081), "no service by another of the host's addresses");
    assert!(connects(&one.host, SERVER, 8081), "a server behind it is no service of the host");
    // UDP, by what the last rule counts.
    let before = appliance.counted("not in services");
    run_on(&one.host, &format!("send-from 4000 {GATEWAY_V4}:5353 5"));
    assert_eq!(appliance.counted("not in services"), before);
    run_on(&one.host, &format!("send-from 4000 {GATEWAY_V4}:5354 5"));
    wait_until("the rule has counted", Duration::from_secs(10), || {
        appliance.counted("not in services") == before + 5
    });
    // The host itself may begin.
    let _listener = Listener::on(&one.host, 8082);
    assert!(connects(&host, &client_v4(0), 8082), "from the host to a client");
    // Without masquerading the server's answers go nowhere: they did come by it.
    appliance.stop();
    let text = format!("{}[forwarding]\nmasquerade = false\n", section(0, &one));
    let appliance = Appliance::start(&host, "wg0", GATEWAY_PORT, &text);
    know(0, &one, &appliance, "");
    must_reach(&one.host, GATEWAY_V4);
    assert_eq!(ping(&one.host, SERVER, 3, 56), 0);
}

#[test]
pub(crate) fn clients_reach_each_other_only_by_choice_and_then_as_themselves() {
    let Some(lab) = Lab::new() else { return };
    let (host, _server) = site(&lab);
    let clients = [client(&lab, &host, 0), client(&lab, &host, 1)];
    let peers = format!("{}{}", section(0, &clients[0]), section(1, &clients[1]));
    let appliance = Appliance::start(&host, "wg0", GATEWAY_PORT, &peers);
    for (i, client) in clients.iter().enumerate() {
        know(i, client, &appliance, "");
        must_reach(&client.host, GATEWAY_V4);
    }
    assert_eq!(ping(&clients[0].host, &client_v4(1), 3, 56), 0);
    assert_eq!(ping(&clients[0].host, &client_v6(1), 3, 56), 0);
    assert_eq!(appliance.counted("client_to_client = false"), 6);
    appliance.stop();
    let text = format!("{peers}[forwarding]\nclient_to_client = true\n");
    let appliance = Appliance::start(&host, "wg0", GATEWAY_PORT, &text);
    for (i, client) in clients.iter().enumerate() {
        know(i, client, &appliance, "");
        must_reach(&client.host, GATEWAY_V4);
    }
    let capture = Capture::start(&clients[1].host, "wg0", 64, "icmp[icmptype] == icmp-echo");
    must_reach(&clients[0].host, &client_v4(1));
    must_reach(&clients[0].host, &client_v6(1));
    let file = caught(capture);
    let sources: Vec<_> = ip_packets(&file).iter().map(|packet| packet[12..16].to_vec()).collect();
    fs::remove_file(file).unwrap();
    assert!(!sources.is_empty() && sources.iter().all(|source| *source == [100, 64, 1, 2]), "{sources:?}");
}

/// A host with two networks, that forwards for itself or not: clients and the one that is named meet, and nobody else.
/// One that is named may come later.
#[test]
fn clients_leave_by_the_interfaces_that_are_named() {
    let Some(lab) = Lab::new() else { return };
    let (host, _server) = site(&lab);
    let one = client(&lab, &host, 0);
    let text = format!("{}[forwarding]\ninterfaces = [\"behind\", \"late\"]\n", section(0, &one));
    let appliance = Appliance::start(&host, "wg0", GATEWAY_PORT, &text);
    assert_eq!(appliance.said().matches("there is no late yet").count(), 1, "{}", appliance.said());
    know(0, &one, &appliance, ",198.19.0.0/16,fd00:198::/32");
    one.host.run("ip route add 198.19.0.0/16 dev wg0");
    one.host.run("ip route add fd00:198::/32 dev wg0");
    let network = |interface: &str, number: u32| {
        let server = lab.host(interface);
        lab.link((&host, interface), (&server, "e0"), 1500);
        for (end, at) in [(&host, (interface, 1)), (&server, ("e0", 2))] {
            end.address(at.0, &format!("198.19.{number}.{}/24", at.1));
            end.address(at.0, &format!("fd00:198:{number}::{}/64", at.1));
        }
        server.run(&format!("ip route add default via 198.19.{number}.1"));
        server.run(&format!("ip route add default via fd00:198:{number}::1"));
        (server, format!("198.19.{number}.2"), format!("fd00:198:{number}::2"))
    };
    let (other, other_v4, other_v6) = network("other", 7);
    for there in [SERVER, SERVER_V6] {
        must_reach(&one.host, there);
    }
    let forwards = |interface| host.run(&format!("sysctl -n net.ipv4.conf.{interface}.forwarding"));
    assert_eq!((forwards("behind").trim(), forwards("other").trim()), ("1", "0"));
    let (_late, late_v4, late_v6) = network("late", 8);
    for there in [&late_v4, &late_v6] {
        must_reach(&one.host, there);
    }
    let dropped = || ["to none", "from none"].map(|way| appliance.counted(&format!("{way} of interfaces")));
    assert_eq!(dropped(), [0, 0]);

    host.run("sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1");
    let capture = Capture::start(&other, "e0", 64, "icmp or icmp6[0]=128");
    for (there, back) in [(&other_v4, client_v4(0)), (&other_v6, client_v6(0))] {
        assert_eq!((ping(&one.host, there, 2, 56), ping(&other, &back, 3, 56)), (0, 0), "{there}");
    }
    assert_eq!(dropped(), [4, 6]);
    let file = caught(capture);
    let echoes = ip_packets(&file);
    fs::remove_file(file).unwrap();
    assert_eq!(echoes.len(), 6, "its own, and none of the client");
    for there in [SERVER, SERVER_V6, &late_v4, &late_v6] {
        must_reach(&one.host, there);
    }
}

/// The attack: a client sends, from the port that the gateway listens on, to the outer endpoint of another.
/// Masqueraded as if the gateway's own socket sent it, it makes a connection whose answers are the other's datagrams to
/// the gateway.
#[test]
pub(crate) fn no_client_captures_the_datagrams_of_another() {
    let Some(lab) = Lab::new() else { return };
    let (host, _server) = site(&lab);
    let (attacker, victim) = (client(&lab, &host, 0), client(&lab, &host, 1));
    let peers = format!("{}{}", section(0, &attacker), section(1, &victim));
    let appliance = Appliance::start(&host, "wg0", GATEWAY_PORT, &peers);
    know(0, &attacker, &appliance, ",198.18.1.0/24");
    attacker.host.run("ip route add 198.18.1.0/24 dev wg0");
    must_reach(&attacker.host, GATEWAY_V4);
    let attack = || {
        host.run("conntrack -F");
        run_on(&attacker.host, &format!("send-from {GATEWAY_PORT} 198.18.1.2:{CLIENT_PORT} 5"));
    };

    // As everybody's how-to has it, it works: what the victim sends comes to the attacker.
    host.run("nft delete table inet ringway_wg0");
    host.run("nft add table ip naive");
    host.run("nft add chain ip naive post { type nat hook postrouting priority 100 ; }");
    host.run("nft add rule ip naive post oifname != wg0 ip saddr 100.64.0.0/10 masquerade");
    attack();
    know(1, &victim, &appliance, "");
    let captured = Capture::start(&attacker.host, "wg0", 64, &format!("udp dst port {GATEWAY_PORT}"));
    assert_eq!(ping(&victim.host, GATEWAY_V4, 10, 56), 0, "the attack is none");
    let file = caught(captured);
    assert!(!ip_packets(&file).is_empty(), "the attacker got nothing");
    fs::remove_file(file).unwrap();

    // With our rules it does not.
    host.run("nft delete table ip naive");
    appliance.stop();
    let appliance = Appliance::start(&host, "wg0", GATEWAY_PORT, &peers);
    know(0, &attacker, &appliance, ",198.18.1.0/24");
    must_reach(&attacker.host, GATEWAY_V4);
    let arriving = Capture::start(&victim.host, "e0", 64, "src host 198.18.1.1 and udp dst port 51821");
    victim.host.run("ip link set wg0 down");
    attack();
    let file = caught(arriving);
    let ports: Vec<_> =
        ip_packets(&file).iter().map(|packet| u16::from_be_bytes([packet[20], packet[21]])).collect();
    fs::remove_file(file).unwrap();
    assert_eq!(ports.len(), 5, "the attacker may send to whom he likes");
    assert!(ports.iter().all(|port| *port != GATEWAY_PORT), "masqueraded to the listen port: {ports:?}");
    victim.host.run("ip link set wg0 up");
    know(1, &victim, &appliance, "");
    must_reach(&victim.host, GATEWAY_V4);
    // Nor is there anything of the tunnel's that could be captured, in either direction.
    for side in ["--orig-port-dst", "--orig-port-src", "--reply-port-dst"] {
        let listed = host.run(&format!("conntrack -L -p udp {side} {GATEWAY_PORT}"));
        let outer = |line: &&str| line.contains("198.18.");
        assert_eq!(
            listed.lines().filter(outer).count(),
            usize::from(side == "--orig-port-src"),
            "{side}: {listed}"
        );
    }
}

#[test]
pub(crate) fn the_tunnel_does_not_carry_itself() {
    let Some(lab) = Lab::new() else { return };
    let (host, _server) = site(&lab);
    let one = client(&lab, &host, 0);
    // Even where the port is called a service.
    let text = format!("{}{SINGLE}[services]\nudp = [{GATEWAY_PORT}]\n", section(0, &one));
    let appliance = Appliance::start(&host, "wg0", GATEWAY_PORT, &text);
    know(0, &one, &appliance, "");
    must_reach(&one.host, GATEWAY_V4);
    let comment = "the tunnel inside itself";
    for (n, to) in ["198.19.0.1", GATEWAY_V4, "[fd00:198:19::1]"].into_iter().enumerate() {
        run_on(&one.host, &format!("send-from 4000 {to}:{GATEWAY_PORT} 5"));
        wait_until("the rule has counted", Duration::from_secs(10), || {
            appliance.counted(comment) == 5 * (n as u64 + 1)
        });
    }
    // Another's tunnel on the same port is none of our business.
    run_on(&one.host, &format!("send-from 4000 {SERVER}:{GATEWAY_PORT} 5"));
    must_reach(&one.host, GATEWAY_V4);
    assert_eq!(appliance.counted(comment), 15);
    // The other way: the client's endpoint is behind the client, which is silent, since answers leave by where the
    // question came in.
    one.host.run("ip route add blackhole 198.18.0.1/32");
    host.run("ip route add 198.18.0.2/32 dev wg0");
    wait_until("the gateway's own datagrams have met the rule", Duration::from_secs(10), || {
        ping(&host, &client_v4(0), 1, 56);
        appliance.counted(comment) > 15
    });
}

/// With the rights of the unit, and as another user.
#[test]
pub(crate) fn a_new_listen_port_is_in_the_rules_at_once() {
    // In the upper half of what UDP of clients is masqueraded to at first.
    const OTHER: u16 = 40_000;
    let Some(lab) = Lab::new() else { return };
    let (host, server) = site(&lab);
    let one = client(&lab, &host, 0);
    let text = format!("user = \"nobody\"\n{}{SINGLE}", section(0, &one));
    let appliance = Appliance::start(&host, "wg0", GATEWAY_PORT, &text);
    know(0, &one, &appliance, "");
    must_reach(&one.host, GATEWAY_V4);
    let masqueraded = || {
        let capture = Capture::start(&server, "e0", 64, "udp dst port 9");
        run_on(&one.host, &format!("send-from {OTHER} {SERVER}:9 5"));
        let file = caught(capture);
        let packets = ip_packets(&file);
        fs::remove_file(file).unwrap();
        assert_eq!(packets.len(), 5);
        u16::from_be_bytes([packets[0][20], packets[0][21]])
    };
    assert_eq!(masqueraded(), OTHER, "a port is kept if it may be");

    let reload = |port: u16| {
        let path = host.run_file("wg0.toml");
        let text = fs::read_to_string(&path).unwrap();
        let old = text.lines().find(|line| line.starts_with("listen_port")).unwrap();
        fs::write(&path, text.replace(old, &format!("listen_port = {port}"))).unwrap();
        host.attempt(&format!("{} reload -i wg0", env!("CARGO_BIN_EXE_ringway")))
    };
    assert!(reload(OTHER).status.success());
    host.run("conntrack -F");
    one.set(&format!("peer {} endpoint 198.18.0.1:{OTHER}", appliance.public()));
    must_reach(&one.host, GATEWAY_V4);
    for (port, comment) in [(OTHER, "the tunnel inside itself"), (GATEWAY_PORT, "not in services")] {
        let before = appliance.counted(comment);
        run_on(&one.host, &format!("send-from 4000 198.19.0.1:{port} 5"));
        wait_until("the rule has counted", Duration::from_secs(10), || {
            appliance.counted(comment) == before + 5
        });
    }
    let masqueraded = masqueraded();
    assert!((1024..26_422).contains(&masqueraded), "{masqueraded}");
    for side in ["--orig-port-dst", "--orig-port-src"] {
        let listed = host.run(&format!("conntrack -L -p udp {side} {OTHER}"));
        assert!(!listed.contains("198.18."), "{side}: {listed}");
    }
    // Without rules no other port.
    host.run("nft delete table inet ringway_wg0");
    let refused = reload(40_001);
    assert!(!refused.status.success(), "{refused:?}");
    assert_eq!(host.run("wg show wg0 listen-port").trim(), OTHER.to_string());
    appliance.stop();
    assert!(!host.run("nft list ruleset").contains("ringway_wg0"));
}

#[test]
fn the_host_is_after_stop_and_kill_what_it_was_before() {
    let Some(lab) = Lab::new() else { return };
    let (host, _server) = site(&lab);
    let before = state(&host);
    let appliance = Appliance::start(&host, "wg0", GATEWAY_PORT, PLAIN);
    assert!(state(&host).contains("net.ipv4.conf.behind.forwarding = 1"));
    assert!(state(&host).contains("net.ipv4.ip_forward = 0"));
    appliance.stop();
    assert_eq!(state(&host), before);

    // A link that comes later forwards as soon as it leads anywhere, and no longer than the gateway.
    host.run("ip link add late type veth peer name etal");
    for line in ["ip link set late up", "ip link set etal up"] {
        host.run(line);
    }
    let later = state(&host);
    let appliance = Appliance::start(&host, "wg0", GATEWAY_PORT, PLAIN);
    assert!(state(&host).contains("net.ipv4.conf.late.forwarding = 0"));
    for address in ["198.18.9.1/24", "fd00:198:18:9::1/64"] {
        host.address("late", address);
    }
    let forwards = |key: &str| host.run(&format!("sysctl -n {key}")).trim() == "1";
    wait_until("it forwards", Duration::from_secs(10), || {
        forwards("net.ipv4.conf.late.forwarding") && forwards("net.ipv6.conf.late.force_forwarding")
    });
    host.run("ip address flush dev late scope global");
    appliance.stop();
    assert_eq!(state(&host), later);
    host.run("ip link delete late");
    assert_eq!(state(&host), before);

    // After a kill the rules stay, for the next start to take over.
    let appliance = Appliance::start(&host, "wg0", GATEWAY_PORT, PLAIN);
    appliance.signal("KILL");
    assert!(state(&host).contains("table inet ringway_wg0"));
    let _ = fs::remove_file(host.run_file("wireguard/wg0.sock"));
    Appliance::start(&host, "wg0", GATEWAY_PORT, PLAIN).stop();
    assert_eq!(state(&host), before);

    // Nor does a user without rights leave anything, however it ends.
    const NOBODY: &str = "user = \"nobody\"";
    let files = || host.run("find /run/wireguard /run/ringway -ls");
    let appliance = Appliance::start(&host, "wg0", GATEWAY_PORT, NOBODY);
    assert!(files().contains("wg0.sock") && files().contains("nobody"), "{}", files());
    // Whoever removes it is confined, and outlives a signal to all processes.
    let caretaker = machine(&format!("pgrep -P {}", appliance.child.id())).trim().to_owned();
    let status = fs::read_to_string(format!("/proc/{caretaker}/status")).unwrap();
    for line in ["CapPrm:\t0000000000000000", "CapBnd:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2"] {
        assert!(status.contains(line), "{line}: {status}");
    }
    machine(&format!("kill -TERM {caretaker}"));
    appliance.stop();
    assert_eq!(state(&host), before);
    assert!(!host.run("ls /run/wireguard").contains("wg0"));
    let processes = machine(&format!("ip netns pids {}", host.namespace)).lines().count();
    let appliance = Appliance::start(&host, "wg0", GATEWAY_PORT, NOBODY);
    appliance.signal("KILL");
    assert!(files().contains("ringway/wg0/undo"), "what is to be undone stays: {}", files());
    wait_until("the one who was left behind ends as well", Duration::from_secs(10), || {
        machine(&format!("ip netns pids {}", host.namespace)).lines().count() == processes
    });
    assert!(files().contains("wireguard/wg0.sock"), "it touched nothing: {}", files());
    Appliance::start(&host, "wg0", GATEWAY_PORT, NOBODY).stop();
    assert_eq!(state(&host), before);
    assert!(!host.run("ls /run/wireguard").contains("wg0"));

    // What the host had on, it keeps.
    host.run("sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1");
    let before = state(&host);
    Appliance::start(&host, "wg0", GATEWAY_PORT, PLAIN).stop();
    assert_eq!(state(&host), before);
}

#[test]
fn two_gateways_on_a_host_leave_each_other_what_they_need() {
    let Some(lab) = Lab::new() else { return };
    let (host, _server) = site(&lab);
    let before = state(&host);
    let one = client(&lab, &host, 0);
    let linked = state(&host);
    let wg1 = Appliance::start(&host, "wg1", GATEWAY_PORT + 1, PLAIN);
    let wg0 = Appliance::start(&host, "wg0", GATEWAY_PORT, &section(0, &one));
    know(0, &one, &wg0, "");
    must_reach(&one.host, SERVER);
    must_reach(&one.host, SERVER_V6);
    wg1.stop();
    must_reach(&one.host, SERVER);
    must_reach(&one.host, SERVER_V6);
    // The other order, with the first one killed: the next start of any gateway cleans up.
    let wg1 = Appliance::start(&host, "wg1", GATEWAY_PORT + 1, PLAIN);
    wg0.signal("KILL");
    wg1.stop();
    let _ = fs::remove_file(host.run_file("wireguard/wg0.sock"));
    Appliance::start(&host, "wg1", GATEWAY_PORT + 1, PLAIN).stop();
    let after = state(&host);
    assert!(!after.contains("ringway_"), "{after}");
    assert!(!after.contains("forwarding = 1"), "{after}");
    assert_ne!(before, linked);
}

#[test]
fn a_read_only_proc_sys_is_fine_if_it_is_right_and_named_if_it_is_not() {
    const READ_ONLY: &str = "mount --bind /proc/sys /proc/sys\nmount -o remount,ro,bind /proc/sys";
    let Some(lab) = Lab::new() else { return };
    let (host, _server) = site(&lab);
    let one = client(&lab, &host, 0);
    let before = state(&host);
    let mut appliance = Appliance::launch(&host, "wg0", GATEWAY_PORT, &section(0, &one), READ_ONLY);
    wait_until("the gateway gives up", Duration::from_secs(10), || appliance.exit_status().is_some());
    let said = appliance.said();
    assert_eq!(appliance.exit_status().unwrap().code(), Some(7), "{said}");
    assert!(said.contains("net.ipv4.conf.wg0.forwarding is 0 and must be 1"), "{said}");
    assert!(said.contains("--sysctl net.ipv4.ip_forward=1"), "{said}");
    assert_eq!(state(&host), before);

    host.run("sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1");
    let appliance = Appliance::launch(&host, "wg0", GATEWAY_PORT, &section(0, &one), READ_ONLY);
    know(0, &one, &appliance, "");
    must_reach(&one.host, SERVER);
    must_reach(&one.host, SERVER_V6);
    appliance.stop();
}

#[test]
fn a_firewall_of_the_host_that_drops_clients_is_named_at_start() {
    let Some(lab) = Lab::new() else { return };
    let (host, _server) = site(&lab);
    let one = client(&lab, &host, 0);
    host.run("nft add table inet mine");
    host.run("nft add chain inet mine ways { type filter hook forward priority 0 ; policy drop ; }");
    let appliance = Appliance::start(&host, "wg0", GATEWAY_PORT, &section(0, &one));
    know(0, &one, &appliance, "");
    must_reach(&one.host, GATEWAY_V4);
    assert_eq!(ping(&one.host, SERVER, 3, 56), 0);
    let said = appliance.said();
    assert!(
        said.contains("the forward chain inet mine ways (nftables) drops packets from and to clients"),
        "{said}"
    );
    // The rules that it names, word by word.
    let remedy = said.split("to let them pass: ").nth(1).unwrap().lines().next().unwrap();
    for line in remedy.split("; ") {
        assert!(host.command("sh").args(["-c", line]).status().unwrap().success(), "{line}");
    }
    must_reach(&one.host, SERVER);
}

#[test]
fn a_firewall_that_lets_nobody_in_is_named_at_start() {
    let Some(lab) = Lab::new() else { return };
    let (host, _server) = site(&lab);
    let one = client(&lab, &host, 0);
    host.run("nft add table inet mine");
    host.run("nft add chain inet mine in { type filter hook input priority 0 ; policy drop ; }");
    for rule in
        ["ct state established accept", "meta l4proto { icmp, ipv6-icmp } accept", "iifname lo accept"]
    {
        host.run(&format!("nft add rule inet mine in {rule}"));
    }
    let text = format!("{}[services]\ntcp = [8080]\n", section(0, &one));
    let appliance = Appliance::start(&host, "wg0", GATEWAY_PORT, &text);
    let _listener = Listener::on(&host, 8080);
    know(0, &one, &appliance, "");
    assert_eq!(ping(&one.host, GATEWAY_V4, 3, 56), 0);
    let said = appliance.said();
    let warning = "the input chain inet mine in (nftables) drops datagrams to the listen port 51820, \
                   clients' packets to the service tcp 8080; to let them pass: ";
    let remedy: Vec<_> =
        said.split(warning).nth(1).expect(&said).lines().next().unwrap().split("; ").collect();
    let apply =
        |line: &str| assert!(host.command("sh").args(["-c", line]).status().unwrap().success(), "{line}");
    apply(remedy[0]);
    must_reach(&one.host, GATEWAY_V4);
    assert!(!connects(&one.host, GATEWAY_V4, 8080));
    apply(remedy[1]);
    assert!(connects(&one.host, GATEWAY_V4, 8080));
    appliance.stop();
}
