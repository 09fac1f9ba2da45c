//! `ringway gateway`: a gateway of one file, what it does to its host, that it undoes it, and how it fails.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Child, Output, Stdio};
use std::sync::Arc;
use std::time::Duration;

use crate::dropin::{FILTER, perl, text};
use crate::lab::{Host, Lab, machine, wait_until};
use crate::peer::{Implementation, Peer, Remote, io_option, preshared_key, stranger};
use crate::topology::{
    CLIENT_PORT, GATEWAY_PORT, GATEWAY_V4, GATEWAY_V6, OVERLAY, Outer, client_prefixes, client_v4, client_v6,
    connect, gateway_endpoint,
};
use crate::traffic::must_reach;

const SOON: Duration = Duration::from_secs(10);
/// What the gateways of these tests have in common: no port of the host beside their own.
const QUIET: &str = "[metrics]\nlisten = \"off\"\n";

pub(crate) fn program() -> String {
    env!("CARGO_BIN_EXE_ringway").to_owned()
}

/// Writes a configuration where the host's processes find it, and returns their path.
pub(crate) fn file(host: &Host, name: &str, content: &str) -> String {
    fs::write(host.run_file(name), content).unwrap();
    format!("/var/run/{name}")
}

/// The top of a file: an interface, its addresses and its port.
pub(crate) fn head(interface: &str, addresses: &[&str], port: u16) -> String {
    format!(
        "interface = \"{interface}\"\naddresses = {addresses:?}\nlisten_port = {port}\nworkers = 2\n{QUIET}"
    )
}

/// One `[[peer]]`.
pub(crate) fn peer(name: &str, public: &str, allowed: &str) -> String {
    let allowed: Vec<_> = allowed.split(',').collect();
    format!("[[peer]]\nname = \"{name}\"\npublic_key = \"{public}\"\nallowed_ips = {allowed:?}\n")
}

/// A gateway that is running.
pub(crate) struct Appliance {
    host: Arc<Host>,
    interface: String,
    child: Option<Child>,
}

impl Appliance {
    pub(crate) fn start(host: &Arc<Host>, interface: &str, content: &str) -> Self {
        Self::start_through(host, interface, content, "")
    }

    /// By a launcher's words, which execute the program in their place.
    pub(crate) fn start_through(host: &Arc<Host>, interface: &str, content: &str, launcher: &str) -> Self {
        let path = file(host, &format!("{interface}.toml"), content);
        let mut cmd = host.line(&format!("{launcher} {} gateway --config {path} {}", program(), io_option()));
        let child = cmd.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut running =
            Self { host: Arc::clone(host), interface: interface.to_owned(), child: Some(child) };
        wait_until("the gateway answers", SOON, || {
            assert!(!running.ended(), "{:?}", running.child.take().unwrap().wait_with_output());
            host.attempt(&format!("wg show {interface}")).status.success()
        });
        if !io_option().is_empty() {
            let shown = host.run(&format!("{} show --json {interface}", program()));
            assert!(shown.contains(r#""kind":"poll""#), "{shown}");
        }
        running
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.as_ref().unwrap().id()
    }

    fn ended(&mut self) -> bool {
        self.child.as_mut().unwrap().try_wait().unwrap().is_some()
    }

    pub(crate) fn signal(&self, name: &str) {
        machine(&format!("kill -{name} {}", self.pid()));
    }

    pub(crate) fn wait(mut self) -> Output {
        self.child.take().unwrap().wait_with_output().unwrap()
    }

    /// Ends it in order.
    pub(crate) fn end(self) {
        self.signal("TERM");
        let ended = self.wait();
        assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    }

    pub(crate) fn public_key(&self) -> String {
        self.host.run(&format!("wg show {} public-key", self.interface)).trim().to_owned()
    }
}

impl Drop for Appliance {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Everything of a host that a gateway may touch.
pub(crate) fn state(host: &Host) -> Vec<String> {
    let mut state: Vec<String> = [
        "ip -o link",
        "ip -o address",
        "ip route show table all",
        "ip -6 route show table all",
        "ip rule",
        "ip -6 rule",
        "find /var/run/ /var/lib/ -not -name *.toml",
        "sysctl -a -r forward|accept_ra$|rp_filter|src_valid_mark",
    ]
    .map(|line| {
        let said = host.run(line);
        let mut lines: Vec<_> = said.lines().map(str::to_owned).collect();
        lines.sort_unstable();
        format!("{line}:\n{}", lines.join("\n"))
    })
    .into();
    let nft = host.attempt("nft list ruleset");
    state.push(format!("nft: {}", text(&nft.stdout)));
    state
}

/// A client of the gateway on a link of its own, which does not know the gateway's key yet.
pub(crate) fn client(lab: &Lab, gateway: &Arc<Host>, i: usize) -> Peer {
    let host = lab.host(&format!("client{i}"));
    connect(lab, gateway, &host, i, 1520);
    let client = Peer::start(&host, Implementation::WireguardGo, "wg0", CLIENT_PORT);
    client.up(&[&format!("{}/10", client_v4(i)), &format!("{}/64", client_v6(i))], 1420);
    client
}

pub(crate) fn meet(client: &Peer, public: &str, preshared: Option<&str>) {
    let endpoint = gateway_endpoint(0, Outer::V4);
    let endpoint = Some(endpoint.as_str());
    client.know(&Remote { public, allowed: OVERLAY, endpoint, preshared, ..Remote::default() });
}

#[test]
pub(crate) fn a_gateway_of_one_file_carries_traffic_and_routes() {
    let Some(lab) = Lab::new() else { return };
    let host = lab.host("gateway");
    let client = client(&lab, &host, 0);
    let preshared = preshared_key();
    let path = host.run_file("client.psk");
    fs::write(&path, &preshared).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    let head = head("wg0", &[&format!("{GATEWAY_V4}/10"), &format!("{GATEWAY_V6}/64")], GATEWAY_PORT);
    let content = format!(
        "mtu = 1400\nfwmark = 0x51\n{head}{}preshared_key_file = \"/var/run/client.psk\"\nkeepalive = 25\n",
        peer("alice", &client.public, &format!("{},10.77.0.0/16,fd77::/64,0.0.0.0/0", client_prefixes(0)))
    );
    let gateway = Appliance::start(&host, "wg0", &content);
    let public = gateway.public_key();
    meet(&client, &public, Some(&preshared));
    for to in [GATEWAY_V4, GATEWAY_V6] {
        must_reach(&client.host, to);
    }
    must_reach(&host, &client_v4(0));

    // Only what no address covers, and no default route.
    let routes = |family: &str| {
        let said = host.run(&format!("ip {family} route show dev wg0 proto 82"));
        said.lines().map(|line| line.split_whitespace().next().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!((routes("-4"), routes("-6")), (vec!["10.77.0.0/16".to_owned()], vec!["fd77::/64".to_owned()]));
    let link = host.run("ip -o link show wg0");
    assert!(link.contains("mtu 1400") && link.contains(",UP"), "{link}");
    let dump = host.run("wg show wg0 dump");
    assert!(dump.lines().next().unwrap().ends_with(&format!("{GATEWAY_PORT}\t0x51")), "{dump}");
    assert!(dump.lines().nth(1).unwrap().ends_with("\t25"), "{dump}");

    let key = "stat -c %a /var/lib/ringway/wg0/private.key /var/lib/ringway/wg0";
    assert_eq!(host.run(key), "600\n700\n");
    gateway.end();
    assert!(!host.has_interface("wg0"));
    let gateway = Appliance::start(&host, "wg0", &content);
    assert_eq!(gateway.public_key(), public, "the key was made once");
    gateway.end();
}

#[test]
pub(crate) fn two_gateways_on_one_host_do_not_know_each_other() {
    let Some(lab) = Lab::new() else { return };
    let host = lab.host("gateway");
    let outside = lab.host("client");
    connect(&lab, &host, &outside, 0, 1520);
    let mut sites = Vec::new();
    for (place, interface) in ["wg0", "wg1"].into_iter().enumerate() {
        let client =
            Peer::start(&outside, Implementation::WireguardGo, interface, CLIENT_PORT + place as u16);
        client.up(&[&format!("100.{}.0.2/24", 64 + place)], 1420);
        let port = GATEWAY_PORT + place as u16;
        let content = head(interface, &[&format!("100.{}.0.1/24", 64 + place)], port)
            + &peer("the same name", &client.public, &format!("100.{}.0.2/32", 64 + place));
        let gateway = Appliance::start(&host, interface, &content);
        client.know(&Remote {
            public: &gateway.public_key(),
            allowed: &format!("100.{}.0.0/24", 64 + place),
            endpoint: Some(&format!("198.18.0.1:{port}")),
            ..Remote::default()
        });
        sites.push((gateway, client));
    }
    for (place, (gateway, _)) in sites.iter().enumerate() {
        must_reach(&outside, &format!("100.{}.0.1", 64 + place));
        let pid = host.run(&format!("cat /var/run/ringway/{}/pid", gateway.interface));
        assert_eq!(pid.trim(), gateway.pid().to_string());
    }
    let (first, _client) = sites.remove(0);
    first.end();
    assert!(!host.run_file("ringway/wg0").exists() && host.run_file("ringway/wg1").exists());
    must_reach(&outside, "100.65.0.1");
    sites.remove(0).0.end();
    assert!(!host.run_file("ringway").exists());
}

#[test]
pub(crate) fn whatever_ends_it_the_host_is_as_before() {
    let Some(lab) = Lab::new() else { return };
    let host = lab.host("gateway");
    let far = lab.host("far");
    lab.link((&host, "e0"), (&far, "e0"), 1500);
    host.address("e0", "198.18.0.1/24");
    host.run("ip route add 198.19.0.0/16 via 198.18.0.9");
    let addresses = [format!("{GATEWAY_V4}/10"), format!("{GATEWAY_V6}/64")];
    let content = head("wg0", &[&addresses[0], &addresses[1]], GATEWAY_PORT)
        + &peer("", &stranger(), "10.77.0.0/16,fd77::/64");
    let start = || Appliance::start(&host, "wg0", &content);
    // The private key is what a gateway leaves.
    start().end();
    let before = state(&host);
    for name in ["TERM", "INT"] {
        let gateway = start();
        assert_ne!(state(&host), before, "it does something to the host");
        gateway.signal(name);
        assert_eq!(gateway.wait().status.code(), Some(0));
        assert_eq!(state(&host), before, "{name}");
    }
    for _ in 0..2 {
        let gateway = start();
        gateway.signal("KILL");
        gateway.wait();
        assert!(host.run_file("ringway/wg0/pid").exists());
        // At once: its device and its port may not be gone yet.
        let gateway = start();
        gateway.signal("TERM");
        let ended = gateway.wait();
        assert!(text(&ended.stderr).contains("was killed: cleaning up after it"), "{ended:?}");
        assert_eq!(state(&host), before, "KILL");
    }
    // Somebody takes the device away: a service manager shall notice.
    let gateway = start();
    host.run("ip link delete wg0");
    let ended = gateway.wait();
    assert_eq!(ended.status.code(), Some(5), "{ended:?}");
    assert!(text(&ended.stderr).contains("ringway: the device was deleted"), "{ended:?}");
    assert_eq!(state(&host), before, "deleted");
}

/// Runs a gateway that fails: with this code, with one line that says so, and without a trace on the host.
fn fails(host: &Host, content: &str, launcher: &[&str], code: i32, says: &[&str]) {
    let path = file(host, "bad.toml", content);
    let before = state(host);
    let mut words: Vec<String> = launcher.iter().map(|word| (*word).to_owned()).collect();
    words.extend([program(), "gateway".to_owned(), "--config".to_owned(), path]);
    let out = host.command(&words[0]).args(&words[1..]).output().unwrap();
    let said = text(&out.stderr);
    let errors: Vec<_> = said.lines().filter(|line| line.starts_with("ringway: ")).collect();
    assert_eq!((out.status.code(), errors.len()), (Some(code), 1), "{content}: {said}");
    for part in says {
        assert!(errors[0].contains(part), "{content}: {said}");
    }
    assert_eq!(state(host), before, "{content}");
}

#[test]
fn each_failure_has_its_code_and_one_line_and_leaves_nothing() {
    let Some(lab) = Lab::new() else { return };
    let host = lab.host("alone");
    // The key is there before, so that no failure is later than it.
    let good = head("wg9", &["100.64.0.1/10"], GATEWAY_PORT);
    Appliance::start(&host, "wg9", &good).end();

    fails(&host, "mtu = 1400\nbogus = 1\n", &[], 3, &["/var/run/bad.toml:2: unknown key `bogus`"]);
    fs::write(host.run_file("open.key"), "x").unwrap();
    fs::set_permissions(host.run_file("open.key"), fs::Permissions::from_mode(0o644)).unwrap();
    let open = format!(
        "{good}[[peer]]\npublic_key = \"{}\"\npreshared_key_file = \"/var/run/open.key\"\n",
        stranger()
    );
    fails(
        &host,
        &open,
        &[],
        3,
        &["/var/run/bad.toml:9: /var/run/open.key can be read by others (mode 0644)"],
    );
    let own = host.run_with_input("wg pubkey", &host.run("cat /var/lib/ringway/wg9/private.key"));
    fails(&host, &format!("{good}{}", peer("me", own.trim(), "10.0.0.1")), &[], 3, &["the gateway's own"]);

    fails(&host, &good, &["setpriv", "--bounding-set=-net_admin"], 4, &["wg9", "CAP_NET_ADMIN"]);

    host.run("ip link add wg9 type veth peer name other");
    fails(&host, &good, &[], 5, &["wg9", "no TUN device"]);
    host.run("ip link delete wg9");
    host.run("ip route add 10.9.0.0/16 dev lo");
    let routed = format!("{good}{}", peer("", &stranger(), "10.9.0.0/16"));
    fails(&host, &routed, &[], 5, &["there is a route to 10.9.0.0/16 already"]);
    let broadcast = head("wg9", &["100.64.0.1/10", "224.0.0.1/32"], GATEWAY_PORT);
    fails(&host, &broadcast, &[], 5, &["cannot set the address 224.0.0.1/32 on wg9"]);

    let [prctl, seccomp] = if cfg!(target_arch = "x86_64") { ["157", "317"] } else { ["167", "277"] };
    let filter = perl(FILTER, &[prctl, seccomp, "1"]);
    fails(
        &host,
        &format!("io = \"uring\"\n{good}"),
        &filter,
        7,
        &["io_uring is forbidden by a seccomp filter"],
    );

    let running = Appliance::start(&host, "wg8", &head("wg8", &["100.64.0.1/10"], GATEWAY_PORT));
    fails(&host, &good, &[], 6, &["UDP port 51820 is in use by another program"]);
    let held = format!("held by process {}", running.pid());
    fails(&host, &head("wg8", &[], 7), &[], 8, &["/run/ringway/wg8", &held]);
    assert!(host.attempt("wg show wg8").status.success(), "the first goes on");
    running.end();
}

#[test]
fn a_file_is_checked_without_touching_anything() {
    let Some(lab) = Lab::new() else { return };
    let host = lab.host("alone");
    let check = |content: &str| {
        let path = file(&host, "g.toml", content);
        host.attempt(&format!("{} gateway --check -c {path}", program()))
    };
    let before = state(&host);
    let good = check(&head("wg0", &["100.64.0.1/10"], 7));
    assert_eq!((good.status.code(), text(&good.stderr)), (Some(0), String::new()));
    assert!(text(&good.stdout).contains("g.toml: no mistakes"), "{good:?}");
    let key = stranger();
    let bad = check(&(peer("a", &key, "10.0.0.1/32") + &peer("a", &key, "10.0.0.1")));
    let said = text(&bad.stderr);
    assert_eq!((bad.status.code(), said.lines().count()), (Some(3), 3), "{said}");
    assert!(said.lines().all(|line| line.starts_with("ringway: /var/run/g.toml:")), "{said}");
    let none = host.attempt(&format!("{} gateway --check", program()));
    assert_eq!(none.status.code(), Some(3), "{none:?}");
    assert!(text(&none.stderr).contains("/etc/ringway/gateway.toml: cannot be opened"), "{none:?}");
    assert_eq!(state(&host), before);
}

/// As in a container: root without any right but CAP_NET_ADMIN, and without BPF.
#[test]
fn net_admin_is_enough() {
    let Some(lab) = Lab::new() else { return };
    let host = lab.host("gateway");
    let client = client(&lab, &host, 0);
    let content = head("wg0", &[&format!("{GATEWAY_V4}/10"), &format!("{GATEWAY_V6}/64")], GATEWAY_PORT)
        + &peer("", &client.public, &client_prefixes(0));
    let launcher = "setpriv --bounding-set=-all,+net_admin --inh-caps=-all";
    let gateway = Appliance::start_through(&host, "wg0", &content, launcher);
    let status = fs::read_to_string(format!("/proc/{}/status", gateway.pid())).unwrap();
    assert!(status.contains("CapEff:\t0000000000001000"), "{status}");
    meet(&client, &gateway.public_key(), None);
    must_reach(&client.host, GATEWAY_V4);
    gateway.end();
}
