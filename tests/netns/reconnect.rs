//! A client whose network, gateway or gateway's address goes and comes again: one TCP connection through the tunnel
//! outlives all of it, and the address stays.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use ringway::noise::timers::Limits;

use crate::admin::json_of;
use crate::appliance::{self, Appliance, program};
use crate::dataplane::preloaded;
use crate::enrolment::said;
use crate::lab::{Host, Lab, machine, wait_until};
use crate::topology::{GATEWAY_PORT, GATEWAY_V4};

/// Ten times what it should take to be back, and what TCP's own retransmissions may take after that.
const BACK: Duration = Duration::from_secs(30);
/// WireGuard itself begins a handshake 15 s after the first packet in vain.
const SOONER_THAN_WIREGUARD: Duration = Duration::from_secs(12);
const SOON: Duration = Duration::from_secs(10);
/// Where the gateway is, behind routers.
const PLACE: &str = "198.19.0.9";
/// Where it is later.
const OTHER: &str = "198.19.0.10";
const PORT: u16 = 7007;
const OWN: &str = "100.64.0.2";
/// A profile whose path need not be probed, so that it falls silent sooner.
const LEAST: (&str, &str) = ("MTU = 576", "");

/// Sends back what comes, to whoever connects.
const SERVER: &str = r#"
use IO::Socket::INET;
$SIG{CHLD} = "IGNORE";
my $all = IO::Socket::INET->new(LocalPort => $ARGV[0], Listen => 5, ReuseAddr => 1) or die;
while (my $one = $all->accept) {
    next if fork;
    while (sysread($one, my $bytes, 64)) { syswrite($one, $bytes) or last }
    exit;
}
"#;

/// Over one connection: a byte and the answer to it, and so on. Prints a line for each; ends when the connection does.
const CLIENT: &str = r#"
use IO::Socket::INET;
$| = 1;
my $one = IO::Socket::INET->new(PeerAddr => $ARGV[0], PeerPort => $ARGV[1], Timeout => 10) or die;
while (syswrite($one, "x") && sysread($one, my $byte, 1)) { print "answered\n"; select(undef, undef, undef, 0.05) }
"#;

/// A TCP connection that is in use.
struct Held {
    child: Child,
    answers: Arc<AtomicU64>,
}

impl Held {
    fn through(host: &Host) -> Self {
        let mut perl = host.command("perl");
        perl.args(["-e", CLIENT, GATEWAY_V4, &PORT.to_string()]);
        let mut child = perl.stdout(Stdio::piped()).spawn().unwrap();
        let answers = Arc::new(AtomicU64::new(0));
        let (counted, lines) = (Arc::clone(&answers), BufReader::new(child.stdout.take().unwrap()).lines());
        std::thread::spawn(move || {
            for _ in lines {
                counted.fetch_add(1, Ordering::SeqCst);
            }
        });
        let held = Self { child, answers };
        held.goes_on("in the beginning");
        held
    }

    fn answers(&self) -> u64 {
        self.answers.load(Ordering::SeqCst)
    }

    /// The same connection, from now on.
    fn goes_on(&self, when: &str) {
        self.goes_on_within(BACK, when);
    }

    fn goes_on_within(&self, limit: Duration, when: &str) {
        let now = self.answers();
        wait_until(&format!("the connection goes on {when}"), limit, || self.answers() > now + 2);
    }

    /// Nothing comes any more.
    fn is_stuck(&self) {
        let mut last = self.answers();
        wait_until("the connection is stuck", SOON, || {
            std::thread::sleep(Duration::from_millis(400));
            std::mem::replace(&mut last, self.answers()) == self.answers()
        });
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A host with two ways to a gateway.
struct Site {
    far: Arc<Host>,
    host: Arc<Host>,
    gateway: Option<Appliance>,
    /// The gateway's file.
    content: String,
    private: String,
    server: Child,
}

impl Site {
    fn new(lab: &Lab) -> Self {
        let (far, host) = (lab.host("far"), lab.host("host"));
        for (i, far_link, link) in [(0, "f0", "e0"), (1, "f1", "e1")] {
            lab.link((&far, far_link), (&host, link), 1520);
            far.address(far_link, &format!("198.18.{i}.1/24"));
            far.address(far_link, &format!("2001:db8:{i}::1/64"));
            host.address(link, &format!("198.18.{i}.2/24"));
            host.address(link, &format!("2001:db8:{i}::2/64"));
        }
        far.address("lo", &format!("{PLACE}/32"));
        far.run("sysctl -qw net.ipv4.ip_forward=1 net.ipv4.conf.all.rp_filter=0");
        host.run("ip route add default via 198.18.0.1");
        host.run("ip -6 route add default via 2001:db8::1");
        let private = machine("wg genkey");
        let public = host.run_with_input("wg pubkey", &private);
        let content = appliance::head("wg0", &[&format!("{GATEWAY_V4}/24")], GATEWAY_PORT)
            + &format!("[services]\ntcp = [{PORT}]\n")
            + &appliance::peer("laptop", public.trim(), &format!("{OWN}/32"));
        let gateway = Some(Appliance::start(&far, "wg0", &content));
        let mut perl = far.command("perl");
        let server = perl.args(["-e", SERVER, &PORT.to_string()]).spawn().unwrap();
        Self { far, host, gateway, content, private, server }
    }

    /// Writes the profile, whose gateway is at this place; returns the file.
    fn profile(&self, place: &str, more: (&str, &str)) -> String {
        let key = self.gateway.as_ref().unwrap().public_key();
        let conf = format!(
            "[Interface]\nPrivateKey = {}Address = {OWN}/32\n{}\n[Peer]\nPublicKey = {key}\n\
             Endpoint = {place}:{GATEWAY_PORT}\nAllowedIPs = 0.0.0.0/0\n{}\n",
            self.private, more.0, more.1
        );
        let path = self.host.run_file("vpn0.conf");
        fs::write(&path, conf).unwrap();
        machine(&format!("chmod 600 {}", path.display()));
        "/var/run/vpn0.conf".to_owned()
    }

    fn up(&self, profile: &str) -> Child {
        self.up_through("", profile)
    }

    fn up_through(&self, launcher: &str, profile: &str) -> Child {
        let mut up = self.host.line(&format!("{launcher} {} up {profile}", program()));
        let up = up.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        wait_until("it is up", BACK, || {
            let look = self.host.attempt(&format!("{} status vpn0", program()));
            String::from_utf8_lossy(&look.stdout).starts_with("vpn0: started")
        });
        up
    }

    fn status(&self) -> String {
        json_of(&self.host, "status vpn0")["status"].as_str().unwrap().to_owned()
    }

    /// Waits until no timer of the session has anything to send any more.
    fn falls_silent(&self) {
        let sent = || json_of(&self.host, "status vpn0")["peers"][0]["tx_bytes"].as_u64().unwrap();
        let (mut last, mut since) = (sent(), Instant::now());
        while since.elapsed() < Limits::PAPER.keepalive_timeout + Duration::from_secs(1) {
            std::thread::sleep(Duration::from_millis(200));
            let now = sent();
            if now != last {
                (last, since) = (now, Instant::now());
            }
        }
    }

    fn kill_gateway(&mut self) {
        let gateway = self.gateway.take().unwrap();
        gateway.signal("KILL");
        gateway.wait();
    }

    fn start_gateway(&mut self) {
        self.gateway = Some(Appliance::start(&self.far, "wg0", &self.content));
    }

    fn has_its_address(&self) -> bool {
        self.host.run("ip -4 address show dev vpn0").contains(&format!("inet {OWN}/32"))
    }

    /// The resolver of the host, in an `/etc` of its own.
    fn resolver(&self, server: &str) {
        self.host.run("cp -a /etc /var/run/etc");
        self.host.run("mount --bind /var/run/etc /etc");
        fs::write(self.host.run_file("etc/resolv.conf"), format!("nameserver {server}\n")).unwrap();
    }

    /// A DNS server at the router, which knows these addresses of the gateway.
    fn dns(&self, addresses: &[&str]) -> Child {
        let mut dnsmasq = self.far.line(
            "dnsmasq --keep-in-foreground --conf-file=/dev/null --no-resolv --no-hosts --bind-interfaces --user=root \
             --listen-address=198.18.0.1 --pid-file",
        );
        dnsmasq.args(addresses.iter().map(|address| format!("--address=/gw.example.org/{address}")));
        let child = dnsmasq.stderr(Stdio::null()).spawn().unwrap();
        wait_until("the DNS server listens", SOON, || {
            self.far.run("ss -Hlun sport = :53").contains("198.18.0.1")
        });
        child
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

/// Ends the client, which has nothing to complain of.
fn end(client: Child) -> String {
    machine(&format!("kill -TERM {}", client.id()));
    let (code, told) = said(client);
    assert_eq!(code, Some(0), "{told}");
    told
}

fn kill(mut child: Child) {
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn a_connection_outlives_links_addresses_and_default_routes() {
    let Some(lab) = Lab::new() else { return };
    let site = Site::new(&lab);
    let (far, host) = (&site.far, &site.host);
    let client = site.up(&site.profile(PLACE, ("", "")));
    let held = Held::through(host);

    // The cable, until it is noticed.
    far.run("ip link set f0 down");
    wait_until("the connection is lost", BACK, || site.status() == "connection lost");
    far.run("ip link set f0 up");
    held.goes_on("after the cable came back");
    wait_until("it is said", SOON, || site.status() == "started");

    // The link, and its routes with it.
    host.run("ip link set e0 down");
    held.is_stuck();
    host.run("ip link set e0 up");
    host.run("ip route add default via 198.18.0.1");
    held.goes_on("after the link came back");

    // Another address.
    host.run("ip address del 198.18.0.2/24 dev e0");
    host.run("ip address add 198.18.0.77/24 dev e0");
    host.run("ip route add default via 198.18.0.1");
    held.goes_on("from another address");

    // Another network.
    host.run("ip route replace default via 198.18.1.1");
    host.run("ip link set e0 down");
    held.goes_on("by another network");

    // The client is stopped meanwhile.
    machine(&format!("kill -STOP {}", client.id()));
    far.run("ip link set f1 down");
    held.is_stuck();
    far.run("ip link set f1 up");
    machine(&format!("kill -CONT {}", client.id()));
    held.goes_on("after the client was stopped");

    assert!(site.has_its_address());
    drop(held);
    end(client);
}

/// Whoever has nothing to send learns of another network all the same, and so does the gateway.
#[test]
fn the_gateway_follows_an_idle_client() {
    let Some(lab) = Lab::new() else { return };
    let site = Site::new(&lab);
    let client = site.up(&site.profile(PLACE, LEAST));
    let endpoint = || site.far.run("wg show wg0 endpoints");
    assert!(endpoint().contains("198.18.0.2:"), "{}", endpoint());
    site.falls_silent();
    site.host.run("ip route replace default via 198.18.1.1");
    wait_until("the gateway knows", SOON, || endpoint().contains("198.18.1.2:"));
    end(client);
}

#[test]
fn a_gateway_that_was_killed_and_came_again_is_found() {
    let Some(lab) = Lab::new() else { return };
    let mut site = Site::new(&lab);
    let client = site.up(&site.profile(PLACE, ("", "")));
    let held = Held::through(&site.host);
    site.kill_gateway();
    site.start_gateway();
    held.goes_on_within(SOONER_THAN_WIREGUARD, "with a gateway that knows no session");
    assert!(site.has_its_address());
    drop(held);
    end(client);
}

/// An idle client that slept for an hour begins a handshake when it wakes, and needs no packet for it.
#[test]
fn who_wakes_up_shakes_hands() {
    let Some(lab) = Lab::new() else { return };
    let site = Site::new(&lab);
    let library = preloaded("asleep");
    let client = site.up_through(&format!("env LD_PRELOAD={library}"), &site.profile(PLACE, LEAST));
    let held = Held::through(&site.host);
    let sessions = || {
        let shown = json_of(&site.host, "show vpn0");
        shown["dataplane"]["workers"][0]["counters"]["ringway_sessions_confirmed_total"].as_u64().unwrap()
    };
    machine(&format!("kill -STOP {}", held.child.id()));
    site.falls_silent();
    let before = sessions();
    fs::write(site.host.run_file("asleep"), "").unwrap();
    wait_until("there is a new session", SOON, || sessions() > before);
    machine(&format!("kill -CONT {}", held.child.id()));
    held.goes_on("after an hour asleep");
    assert!(site.has_its_address());
    drop(held);
    end(client);
}

#[test]
fn a_gateway_that_moved_is_found_by_its_name_past_the_kill_switch() {
    let Some(lab) = Lab::new() else { return };
    let mut site = Site::new(&lab);
    site.resolver("198.18.0.1");
    let dns = site.dns(&[PLACE]);
    let profile = site.profile("gw.example.org", ("DNS = 100.64.0.1", ""));
    let client = site.up(&format!("--kill-switch on {profile}"));
    let held = Held::through(&site.host);
    // Programs ask in the tunnel.
    assert!(site.host.run("cat /etc/resolv.conf").contains("nameserver 100.64.0.1\n"));
    assert!(site.host.run("nft list ruleset").contains("ringway-guard_vpn0"));
    // One that still has the session would tell the client by itself.
    site.kill_gateway();
    site.far.run(&format!("ip address del {PLACE}/32 dev lo"));
    site.far.run(&format!("ip address add {OTHER}/32 dev lo"));
    held.is_stuck();
    kill(dns);
    let dns = site.dns(&[OTHER]);
    site.start_gateway();
    held.goes_on("with the gateway at another address");
    assert_eq!(json_of(&site.host, "status vpn0")["peers"][0]["endpoint"], format!("{OTHER}:{GATEWAY_PORT}"));
    assert!(site.has_its_address());
    drop(held);
    // Killed, it leaves the kill switch and its servers behind: it is started again past both.
    kill(client);
    let look = || site.host.attempt("getent ahosts gw.example.org");
    assert!(!look().status.success());
    let client = site.up(&format!("--kill-switch on {profile}"));
    drop(Held::through(&site.host));
    end(client);
    assert!(look().status.success(), "and now as before");
    kill(dns);
}

#[test]
fn of_two_families_the_one_that_answers_is_taken() {
    let Some(lab) = Lab::new() else { return };
    let site = Site::new(&lab);
    site.resolver("198.18.0.1");
    // There is a way to the IPv6 address, and somebody who says nothing.
    let silent = "2001:db8:19::9";
    site.far.address("lo", &format!("{silent}/128"));
    site.far.run("nft add table inet filter");
    site.far.run("nft add chain inet filter input { type filter hook input priority 0 ; }");
    site.far.run(&format!("nft add rule inet filter input ip6 daddr {silent} counter drop"));
    let dns = site.dns(&[silent, PLACE]);
    let profile = site.profile("gw.example.org", ("", ""));
    let client = site.up(&profile);
    Held::through(&site.host);
    let rules = site.far.run("nft list chain inet filter input");
    assert!(!rules.contains("packets 0"), "IPv6 was tried: {rules}");
    let shown = json_of(&site.host, "show vpn0");
    let counters = &shown["dataplane"]["handshake"];
    assert_eq!(counters["ringway_initiations_sent_total"], 1, "at the same time: {counters}");
    let told = end(client);
    assert!(told.contains(&format!("vpn0: connected to {PLACE}:{GATEWAY_PORT} in ")), "{told}");
    kill(dns);
}

/// One gateway at several places, of which some are nobody's: in the file's order, and by the others' names.
#[test]
fn a_profile_names_several_places_of_one_gateway() {
    let Some(lab) = Lab::new() else { return };
    let mut site = Site::new(&lab);
    site.resolver("198.18.0.1");
    let dns = site.dns(&[OTHER]);
    let places = format!("nobody.invalid:7, {PLACE}:{GATEWAY_PORT}, gw.example.org:{GATEWAY_PORT}");
    let client = site.up(&site.profile("198.19.0.77", ("", &format!("# ringway: endpoints = {places}"))));
    let held = Held::through(&site.host);
    let host = Arc::clone(&site.host);
    let endpoint = || json_of(&host, "status vpn0")["peers"][0]["endpoint"].as_str().unwrap().to_owned();
    assert_eq!(endpoint(), format!("{PLACE}:{GATEWAY_PORT}"));
    site.kill_gateway();
    site.far.run(&format!("ip address del {PLACE}/32 dev lo"));
    site.far.run(&format!("ip address add {OTHER}/32 dev lo"));
    site.start_gateway();
    held.goes_on("with the gateway at another place of its profile");
    assert_eq!(endpoint(), format!("{OTHER}:{GATEWAY_PORT}"));
    drop(held);
    end(client);
    kill(dns);
}
