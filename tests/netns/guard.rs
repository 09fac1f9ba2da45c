//! The kill switch, seen from the network around it: what every kind of sender gets out of a host before it is raised,
//! while it is, after its process was killed, and after it was lowered.

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader, Read as _};
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::time::Duration;

use ringway::net::guard::{Guard, Options, lower_leftovers};
use ringway::types::Mark;

use crate::errands::VARIABLE;
use crate::lab::{Host, Lab, machine, wait_until};
use crate::traffic::{must_reach, ping};

const TUNNEL: &str = "vpn0";
const MARK: u32 = 51820;

/// Prints what arrives at a link, given by its number, as hexadecimal lines from the IP header on. (tcpdump keeps the
/// last packets back, or loses the first ones.)
const LISTENER: &str = r#"
$| = 1;
socket(my $s, 17, 3, 0x0300) or die;
bind($s, pack("SnlSCCa8", 17, 3, $ARGV[0], 0, 0, 0, "")) or die;
print "listening\n";
while (defined(my $from = recv($s, my $frame, 2048, 0))) {
    print unpack("H*", substr($frame, 14, 96)), "\n" if unpack("x10C", $from) != 4;
}
"#;
/// All that was sent has arrived by then.
const SEEN: Duration = Duration::from_millis(300);

/// Sends one of everything: arguments are the link, its number, and the mark. A sender that is refused is no failure.
const SENDERS: &str = r#"
use Socket qw(:DEFAULT inet_pton pack_sockaddr_in6 IPPROTO_IP IP_MULTICAST_IF);
my ($link, $index, $mark) = @ARGV;
my ($remote, $remote6) = (inet_aton("198.19.7.7"), inet_pton(AF_INET6, "fd00:198:19::7"));
sub udp { my ($port, $to, %with) = @_;
    socket(my $s, AF_INET, SOCK_DGRAM, 0) or die;
    setsockopt($s, SOL_SOCKET, 36, pack("I", $with{mark})) or die if $with{mark};
    setsockopt($s, SOL_SOCKET, SO_BROADCAST, 1) or die;
    setsockopt($s, SOL_SOCKET, 25, "$link\0") or die if $with{bound};
    bind($s, pack_sockaddr_in($with{from}, INADDR_ANY)) or die if $with{from};
    send($s, "plain", 0, pack_sockaddr_in($port, $to)); }
udp(7001, $remote);
udp(53, $remote);
udp(53, inet_aton("198.18.0.2"));
udp(5353, inet_aton("224.0.0.251"), bound => 1);
udp(5355, inet_aton("224.0.0.252"), bound => 1);
udp(51820, inet_aton("198.18.0.2"), mark => $mark);
udp(7100, $remote, mark => $mark);
udp(67, inet_aton("255.255.255.255"), from => 68, bound => 1);
socket(my $six, AF_INET6, SOCK_DGRAM, 0) or die;
send($six, "plain", 0, pack_sockaddr_in6($_, $remote6)) for 7002, 53;
setsockopt($six, SOL_SOCKET, 36, pack("I", $mark)) or die;
send($six, "plain", 0, pack_sockaddr_in6(7101, $remote6));
use Fcntl;
for my $port (7003, 53) {
    socket(my $tcp, AF_INET, SOCK_STREAM, 0) or die;
    fcntl($tcp, F_SETFL, O_NONBLOCK);
    connect($tcp, pack_sockaddr_in($port, $remote));
}
socket(my $raw, AF_INET, SOCK_RAW, 253) or die;
send($raw, "plain", 0, pack_sockaddr_in(0, $remote));
my $udp = pack("nnnn", 7005, 7005, 8, 0);
my $ip = pack("CCnnnCCna4a4", 0x45, 0, 28, 0, 0, 64, 17, 0, inet_aton("198.18.0.1"), $remote);
socket(my $packet, 17, SOCK_RAW, 0x0008) or die;
my $frame = ("\xff" x 6) . "\x02\0\0\0\0\1" . pack("n", 0x0800) . $ip . $udp;
send($packet, $frame, 0, pack("SnlSCCa8", 17, 0x0800, $index, 0, 0, 6, "\xff" x 6));
"#;

/// What [`SENDERS`], ping, the guest and the macvlan child send that is not to leave.
const LEAKS: &[&str] = &[
    "icmp4",
    "icmp6 128",
    "ip4 253",
    "tcp4 53",
    "tcp4 7003",
    "udp4 53",
    "udp4 5353",
    "udp4 5355",
    "udp4 7001",
    "udp4 7005",
    "udp4 7006",
    "udp4 7007",
    "udp6 53",
    "udp6 7002",
];
/// What leaves all the same, and is sent.
const KEPT: &[&str] = &["arp", "icmp6 135", "udp4 51820", "udp4 67", "udp4 7100", "udp6 7101"];
/// What may leave, and need not be sent.
const ALLOWED: &[&str] = &["icmp6 133", "icmp6 134", "icmp6 136"];

/// `guard TUNNEL MARK yes|no|stays ADDRESS...`: raises the kill switch, says so, lowers it when its input ends.
pub(crate) fn errand(tunnel: &str, mark: &str, local: &str, addresses: &[&str]) {
    let options = Options {
        excluded: Vec::new(),
        tunnel: tunnel.parse().unwrap(),
        mark: Mark(mark.parse().unwrap()),
        addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
        local_network: local == "yes",
        stays: local == "stays",
    };
    let guard = Guard::raise(&options).unwrap();
    assert!(guard.covers_links(), "this kernel lacks the egress hook");
    println!("raised");
    std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
    guard.lower().unwrap();
}

/// `unguard TUNNEL`: lowers what a killed process left.
pub(crate) fn unguard(tunnel: &str) {
    lower_leftovers(&tunnel.parse().unwrap()).unwrap();
}

/// A host with a tunnel, what is around it, and its kill switch.
struct Site {
    host: Arc<Host>,
    /// At the far end of the physical link, with the rest of the world behind it.
    far: Arc<Host>,
    /// At the far end of the tunnel.
    exit: Arc<Host>,
    /// Behind the host, routed.
    guest: Arc<Host>,
    /// With a macvlan child of the physical link.
    child: Arc<Host>,
}

impl Site {
    fn new(lab: &Lab) -> Self {
        let [host, far, exit, guest, child] =
            ["host", "far", "exit", "guest", "child"].map(|role| lab.host(role));
        lab.link((&host, "net0"), (&far, "far0"), 1500);
        lab.link((&host, TUNNEL), (&exit, "exit0"), 1420);
        lab.link((&host, "behind"), (&guest, "guest0"), 1500);
        let (parent, there) = (&host.namespace, &child.namespace);
        machine(&format!("ip -n {parent} link add mv0 link net0 netns {there} type macvlan mode bridge"));
        child.run("ip link set mv0 up");
        for (on, link, addresses) in [
            (&host, "net0", ["198.18.0.1/24", "fd00:198:18::1/64"]),
            (&far, "far0", ["198.18.0.2/24", "fd00:198:18::2/64"]),
            (&far, "lo", ["198.19.7.7/32", "fd00:198:19::7/128"]),
            (&host, TUNNEL, ["100.64.0.2/24", "fd64::2/64"]),
            (&exit, "exit0", ["100.64.0.1/24", "fd64::1/64"]),
            (&host, "behind", ["10.9.0.1/24", "fd09::1/64"]),
            (&guest, "guest0", ["10.9.0.2/24", "fd09::2/64"]),
            (&child, "mv0", ["198.18.0.9/24", "fd00:198:18::9/64"]),
        ] {
            addresses.iter().for_each(|address| on.address(link, address));
        }
        host.run("sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1");
        for (on, route) in [
            (&host, "default via 100.64.0.1"),
            // More specific than the tunnel's, as a hostile DHCP server would have it.
            (&host, "198.19.0.0/16 via 198.18.0.2"),
            (&host, "fd00:198:19::/48 via fd00:198:18::2"),
            (&guest, "default via 10.9.0.1"),
            (&exit, "10.9.0.0/24 via 100.64.0.2"),
            (&far, "10.9.0.0/24 via 198.18.0.1"),
            (&far, "100.64.0.2 via 198.18.0.1"),
        ] {
            on.run(&format!("ip route add {route}"));
        }
        Self { host, far, exit, guest, child }
    }

    fn raise(&self, local: &str) -> Raised {
        let mut command = self.host.command(std::env::current_exe().unwrap());
        let line = format!("guard {TUNNEL} {MARK} {local} 100.64.0.2 fd64::2");
        command.args(["errand", "--exact", "--nocapture"]).env(VARIABLE, line);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut said = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        while !line.contains("raised") {
            line.clear();
            assert!(said.read_line(&mut line).unwrap() > 0, "the kill switch was not raised");
        }
        std::thread::spawn(move || std::io::copy(&mut said, &mut std::io::sink()));
        Raised(child)
    }

    /// What arrives at `at` by `link` of everything that everybody here sends.
    fn leaves(&self, by: &str, at: &str) -> BTreeSet<String> {
        // So that neighbours are asked for again.
        self.host.run(&format!("ip neigh flush dev {by}"));
        arrives(&self.far, at, || self.send(by))
    }

    fn send(&self, by: &str) {
        let number = number_of(&self.host, by);
        let sent = self.host.command("perl").args(["-e", SENDERS, by, &number, &MARK.to_string()]).status();
        assert!(sent.unwrap().success(), "the senders could not even try");
        for line in ["ping -n -q -c 1 -W 1 198.19.7.7", "ping -n -q -c 1 -W 1 fd00:198:19::7"] {
            let _ = self.host.attempt(line);
        }
        datagram(&self.child, "198.18.0.2", 7006);
        datagram(&self.guest, "198.19.7.7", 7007);
    }

    fn assert_nothing_leaks(&self, when: &str) {
        self.assert_only(&[], when);
    }

    /// That nothing leaves but what always does, and this.
    fn assert_only(&self, more: &[&str], when: &str) {
        let seen = self.leaves("net0", "far0");
        for kept in KEPT {
            assert!(seen.contains(*kept), "{when}: no {kept} in {seen:?}");
        }
        let mut leaks = seen.clone();
        leaks.retain(|kind| ![KEPT, ALLOWED, more].concat().contains(&kind.as_str()));
        assert!(leaks.is_empty(), "{when}: {leaks:?}");
    }

    fn assert_everything_leaves(&self, when: &str) {
        let seen = self.leaves("net0", "far0");
        for kind in LEAKS.iter().chain(KEPT) {
            assert!(seen.contains(*kind), "{when}: no {kind} in {seen:?}");
        }
    }
}

/// A process that holds a raised kill switch.
struct Raised(Child);

impl Raised {
    fn lower(mut self) {
        drop(self.0.stdin.take());
        assert!(self.0.wait().unwrap().success());
    }

    fn kill(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

/// What arrives at a host's link while `job` is done.
pub(crate) fn arrives(host: &Host, link: &str, job: impl FnOnce()) -> BTreeSet<String> {
    let mut perl = host.command("perl");
    let mut perl =
        perl.args(["-e", LISTENER, &number_of(host, link)]).stdout(Stdio::piped()).spawn().expect("perl");
    let mut said = BufReader::new(perl.stdout.take().unwrap());
    let mut line = String::new();
    said.read_line(&mut line).unwrap();
    assert_eq!(line, "listening\n");
    job();
    std::thread::sleep(SEEN);
    perl.kill().unwrap();
    perl.wait().unwrap();
    let packets = said.lines().map(|line| {
        let line = line.unwrap();
        let byte = |at: usize| u8::from_str_radix(&line[at..at + 2], 16).unwrap();
        kind(&(0..line.len()).step_by(2).map(byte).collect::<Vec<_>>())
    });
    packets.collect()
}

fn number_of(host: &Host, link: &str) -> String {
    host.run(&format!("ip -o link show dev {link}")).split(':').next().unwrap().to_owned()
}

/// A plain datagram, if it may leave.
pub(crate) fn datagram(from: &Host, to: &str, port: u16) {
    let script = "use Socket; socket(my $s, AF_INET, SOCK_DGRAM, 0) or die; \
        send($s, 'plain', 0, pack_sockaddr_in($ARGV[1], inet_aton($ARGV[0])));";
    let mut perl = from.command("perl");
    assert!(perl.args(["-e", script, to, &port.to_string()]).status().unwrap().success());
}

/// What a packet is, in a word and a number.
fn kind(packet: &[u8]) -> String {
    let port = |at: usize| u16::from_be_bytes([packet[at], packet[at + 1]]);
    match (packet[0] >> 4, packet) {
        (4, ip) if ip.len() >= 24 => match ip[9] {
            1 => "icmp4".to_owned(),
            6 => format!("tcp4 {}", port(22)),
            17 => format!("udp4 {}", port(22)),
            other => format!("ip4 {other}"),
        },
        (6, ip) if ip.len() >= 44 => match ip[6] {
            6 => format!("tcp6 {}", port(42)),
            17 => format!("udp6 {}", port(42)),
            58 => format!("icmp6 {}", ip[40]),
            other => format!("ip6 {other}"),
        },
        (0, [0, 1, 8, 0, ..]) => "arp".to_owned(),
        _ => format!("{packet:02x?}"),
    }
}

#[test]
fn nothing_leaves_beside_the_tunnel_before_and_after_the_process_is_killed() {
    let Some(lab) = Lab::new() else { return };
    let site = Site::new(&lab);
    site.assert_everything_leaves("before");

    let raised = site.raise("no");
    site.assert_nothing_leaks("raised");
    must_reach(&site.host, "100.64.0.1");
    must_reach(&site.host, "fd64::1");
    must_reach(&site.guest, "100.64.0.1");
    assert_eq!(ping(&site.exit, "10.9.0.2", 2, 56), 0, "nobody comes to a guest by the tunnel unasked");
    assert_eq!(ping(&site.host, "10.9.0.2", 2, 56), 0, "the local network was not allowed");

    site.host.run("nft flush ruleset");
    wait_until("the rules are back", Duration::from_secs(10), || {
        site.host.run("nft list tables").matches("ringway-guard_vpn0").count() == 2
    });
    site.assert_nothing_leaks("flushed");

    raised.kill();
    site.assert_nothing_leaks("killed");
    let raised = site.raise("no");
    site.assert_nothing_leaks("raised again");
    raised.kill();

    let mut unguard = site.host.command(std::env::current_exe().unwrap());
    unguard.args(["errand", "--exact", "--nocapture"]).env(VARIABLE, format!("unguard {TUNNEL}"));
    assert!(unguard.stdout(Stdio::null()).status().unwrap().success());
    assert_eq!(site.host.run("nft list ruleset"), "");
    site.assert_everything_leaves("lowered");

    site.raise("stays").lower();
    site.assert_nothing_leaks("lowered, and it stays");
}

#[test]
fn a_link_that_comes_while_the_kill_switch_is_raised_is_no_way_out() {
    let Some(lab) = Lab::new() else { return };
    let site = Site::new(&lab);
    let raised = site.raise("no");
    lab.link((&site.host, "late0"), (&site.far, "late1"), 1500);
    site.host.address("late0", "198.18.9.1/24");
    site.host.run("ip route replace 198.19.0.0/16 dev late0 src 198.18.9.1");
    site.far.address("late1", "198.18.9.2/24");
    wait_until("the link is named", Duration::from_secs(10), || {
        site.host.run("nft list table netdev ringway-guard_vpn0").contains("late0")
    });
    let unwanted = |seen: &BTreeSet<String>| -> Vec<String> {
        seen.iter().filter(|kind| LEAKS.contains(&kind.as_str())).cloned().collect()
    };
    let seen = site.leaves("late0", "late1");
    assert!(seen.contains("udp4 67"), "{seen:?}");
    assert_eq!(unwanted(&seen), [""; 0]);
    raised.lower();
    let seen = unwanted(&site.leaves("late0", "late1"));
    for kind in ["udp4 7005", "udp4 5353"] {
        assert!(seen.iter().any(|seen| seen == kind), "no {kind} in {seen:?}");
    }
}

#[test]
fn the_local_network_is_reached_by_choice_and_is_never_asked_for_names() {
    let Some(lab) = Lab::new() else { return };
    let site = Site::new(&lab);
    let raised = site.raise("yes");
    must_reach(&site.host, "10.9.0.2");
    // The lab's IPv6 addresses are private ones.
    site.assert_only(&["udp6 7002"], "with the local network");
    let mut seen = arrives(&site.guest, "guest0", || {
        for port in [53, 137, 853, 5353, 5355, 7008] {
            datagram(&site.host, "10.9.0.2", port);
        }
        assert_eq!(ping(&site.host, "fd09::2", 1, 56), 0, "ICMPv6 other than neighbour discovery");
    });
    seen.retain(|kind| !kind.starts_with("icmp6 13") && kind != "arp");
    assert_eq!(seen, BTreeSet::from(["udp4 7008".to_owned()]));
    raised.lower();
}

#[test]
fn nobody_reaches_the_tunnels_address_by_another_link() {
    let Some(lab) = Lab::new() else { return };
    let site = Site::new(&lab);
    let arrived = || {
        let text = site.host.run("nstat -a -s -z UdpNoPorts");
        let line = text.lines().find(|line| line.starts_with("UdpNoPorts")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap()
    };
    let probe = |from: &Host| {
        let before = arrived();
        (0..3).for_each(|_| datagram(from, "100.64.0.2", 9));
        std::thread::sleep(Duration::from_millis(200));
        arrived() - before
    };
    assert_eq!(probe(&site.far), 3);
    let raised = site.raise("yes");
    assert_eq!(probe(&site.far), 0);
    assert_eq!(probe(&site.exit), 3, "by the tunnel it is reached");
    // Nor does the host say on another link that it has that address.
    site.far.run("ip route replace 100.64.0.2 dev far0");
    let _ = site.far.attempt("ping -n -q -c 1 -W 1 100.64.0.2");
    let known = || site.far.run("ip neigh show 100.64.0.2 dev far0");
    assert!(!known().contains("lladdr"), "{}", known());
    raised.lower();
    wait_until("it says so without the kill switch", Duration::from_secs(10), || {
        let _ = site.far.attempt("ping -n -q -c 1 -W 1 100.64.0.2");
        known().contains("lladdr")
    });
}
