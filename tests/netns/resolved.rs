//! Whom a host's programs ask for names while a tunnel is up: Debian's own systemd-resolved on a bus of its own, or a
//! resolv.conf, with a dnsmasq at the far end of the tunnel and one in the network below it.

use std::cell::Cell;
use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use ringway::net::dns::{Dns, Host as Place, Settings, undo_leftovers};

use crate::appliance::state;
use crate::errands::run_on;
use crate::lab::{Host, Lab, machine, target, wait_until};
use crate::peer::Peer;
use crate::topology::GATEWAY_V4;
use crate::up::{know, profile, ringway, server, status};
use crate::vpn::site;

const SOON: Duration = Duration::from_secs(10);
/// The resolver in the network that carries the tunnel.
const BELOW: &str = "198.18.0.1";
/// What the two answer, whatever the name: this is how they are told apart.
const BY_TUNNEL: &str = "192.0.2.1";
const BY_NETWORK: &str = "192.0.2.2";
const SPLIT: (&str, &str) = ("DNS = 100.64.0.1, ~corp.example", "AllowedIPs = 100.64.0.0/10");
const WHOLE: (&str, &str) = ("DNS = 100.64.0.1, ~corp.example", "AllowedIPs = 0.0.0.0/0");
/// As Debian's for the system, but that it need not become somebody, nor start anything.
const BUS: &str = r#"<busconfig><type>system</type><listen>unix:path=/run/dbus/system_bus_socket</listen>
<auth>EXTERNAL</auth><policy context="default"><allow user="*"/><deny own="*"/><deny send_type="method_call"/>
<allow send_type="signal"/><allow send_requested_reply="true" send_type="method_return"/>
<allow send_requested_reply="true" send_type="error"/><allow receive_type="method_call"/>
<allow receive_type="method_return"/><allow receive_type="error"/><allow receive_type="signal"/>
<allow send_destination="org.freedesktop.DBus"/></policy><includedir>POLICIES</includedir></busconfig>"#;

/// `resolved LINK`: gives the link servers and domains, twice. `unresolved LINK`: takes them back.
pub(crate) fn errand(link: &str) {
    Dns::apply(&Place::here(), &settings(link, "fd64::1")).unwrap().undo().unwrap();
    assert!(Dns::apply(&Place::here(), &settings(link, "fd64::1")).unwrap().ends_with_link());
}

/// `refused LINK`: a server that is none, which is the last thing that is told.
pub(crate) fn refused(link: &str) {
    let refused = Dns::apply(&Place::here(), &settings(link, "0.0.0.0")).map(drop).unwrap_err().to_string();
    assert!(refused.contains("Invalid DNS server address"), "{refused}");
}

fn settings(link: &str, server: &str) -> Settings {
    Settings {
        link: link.parse().unwrap(),
        servers: ["100.64.0.1", server].map(|server| server.parse().unwrap()).into(),
        search: vec!["example.org".to_owned()],
        match_domains: vec!["corp.example".to_owned()],
    }
}

/// See there.
pub(crate) fn undo(link: &str) {
    undo_leftovers(&Place::here(), &link.parse().unwrap()).unwrap();
}

/// A process of a host's, until dropped.
struct Service(Child);

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A host, what is far, and two resolvers there.
struct Names {
    far: Arc<Host>,
    host: Arc<Host>,
    server: Peer,
    _dnsmasqs: [Service; 2],
    /// Every name is asked for once: nobody has an answer from before.
    asked: Cell<u32>,
}

impl Names {
    fn new(lab: &Lab) -> Self {
        let (far, host) = site(lab);
        let server = server(&far);
        let dnsmasqs = [(GATEWAY_V4, BY_TUNNEL), (BELOW, BY_NETWORK)].map(|(at, answer)| {
            let line = format!(
                "dnsmasq --keep-in-foreground --conf-file=/dev/null --user=root --pid-file --no-resolv --no-hosts \
                 --bind-interfaces --listen-address={at} --address=/#/{answer} --log-queries \
                 --log-facility=/var/run/{answer}.log"
            );
            let dnsmasq = Service(far.line(&line).stderr(Stdio::null()).spawn().unwrap());
            let log = far.run_file(&format!("{answer}.log"));
            let started = || fs::read_to_string(&log).is_ok_and(|log| log.contains("started"));
            wait_until("dnsmasq answers", SOON, started);
            dnsmasq
        });
        // The host's own settings are the machine's: it gets a copy.
        host.run("cp -a /etc /var/run/etc");
        host.run("mount --bind /var/run/etc /etc");
        host.run("rm -f /etc/resolv.conf");
        write(&host, "nsswitch.conf", "passwd: files\ngroup: files\nhosts: files dns\n");
        Self { far, host, server, _dnsmasqs: dnsmasqs, asked: Cell::new(0) }
    }

    /// A profile that the server knows.
    fn profile(&self, more: (&str, &str)) -> String {
        let _ = fs::remove_file(self.host.run_file("vpn0.conf"));
        let (path, public) = profile(&self.host, "vpn0", &self.server.public, more);
        know(&self.server, &public);
        path
    }

    /// What a program is told about a new name below this one.
    fn ask(&self, domain: &str) -> String {
        self.asked.set(self.asked.get() + 1);
        let said = self.host.attempt(&format!("timeout 5 getent ahostsv4 n{}.{domain}", self.asked.get()));
        let said = String::from_utf8(said.stdout).unwrap();
        said.split_whitespace().next().unwrap_or("nothing").to_owned()
    }

    fn ask_both(&self) -> [String; 2] {
        ["corp.example", "other.example"].map(|domain| self.ask(domain))
    }

    /// How many questions the network's resolver was ever asked.
    fn below(&self) -> usize {
        fs::read_to_string(self.far.run_file(&format!("{BY_NETWORK}.log"))).unwrap().matches("query[").count()
    }

    fn kill(&self) {
        let pid = status(&self.host, "vpn0")["process"].as_u64().unwrap();
        machine(&format!("kill -KILL {pid}"));
        wait_until("the device is gone", SOON, || !self.host.has_interface("vpn0"));
        wait_until("it is noticed", SOON, || status(&self.host, "vpn0")["status"] == "killed");
    }
}

fn write(host: &Host, name: &str, text: &str) {
    fs::write(host.run_file("etc").join(name), text).unwrap();
}

/// systemd-resolved on a host, with the bus that it speaks on.
struct Resolved {
    daemon: Service,
    _bus: Service,
    host: Arc<Host>,
}

impl Resolved {
    fn start(host: &Arc<Host>) -> Self {
        let tools = tools();
        assert!(
            tools.join("lib/systemd/systemd-resolved").exists(),
            "systemd-resolved is missing: run `make deps`"
        );
        // Whom it becomes, as its package makes him.
        for (file, line) in
            [("passwd", "systemd-resolve:x:64053:64053::/:/bin/false"), ("group", "systemd-resolve:x:64053:")]
        {
            let mut text = fs::read_to_string(host.run_file("etc").join(file)).unwrap();
            if !text.contains("\nsystemd-resolve:") {
                text.push_str(&format!("{line}\n"));
            }
            write(host, file, &text);
        }
        host.run("mkdir -p /run/dbus /run/systemd/resolve");
        host.run("chown systemd-resolve:systemd-resolve /run/systemd/resolve");
        host.run("ln -s /run/systemd/resolve/stub-resolv.conf /etc/resolv.conf");
        let policies = tools.join("usr/share/dbus-1/system.d");
        write(host, "bus.conf", &BUS.replace("POLICIES", policies.to_str().unwrap()));
        let bus = quiet(unpacked(host, "usr/bin/dbus-daemon").args([
            "--nofork",
            "--nopidfile",
            "--config-file=/etc/bus.conf",
        ]));
        wait_until("there is a bus", SOON, || host.run_file("dbus/system_bus_socket").exists());
        let daemon = quiet(&mut unpacked(host, "lib/systemd/systemd-resolved"));
        let resolved = Self { daemon, _bus: bus, host: Arc::clone(host) };
        // What networkd or NetworkManager tell it.
        wait_until("systemd-resolved answers", SOON, || resolved.tell(&["dns", "e0", BELOW]).is_some());
        resolved
    }

    /// What resolvectl says.
    fn tell(&self, words: &[&str]) -> Option<String> {
        let out = unpacked(&self.host, "usr/bin/resolvectl").args(words).output().unwrap();
        out.status.success().then(|| String::from_utf8(out.stdout).unwrap())
    }

    fn settings(&self) -> [String; 3] {
        ["dns", "domain", "default-route"].map(|what| self.tell(&[what]).unwrap())
    }

    fn stop(mut self) {
        self.daemon.0.kill().unwrap();
        self.daemon.0.wait().unwrap();
    }
}

fn quiet(command: &mut Command) -> Service {
    Service(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
}

fn tools() -> PathBuf {
    target().join("tools/resolved")
}

/// A program of `bench-scripts/deps`, with the libraries that lie beside it.
fn unpacked(host: &Host, program: &str) -> Command {
    let mut libraries = Vec::new();
    for place in ["lib", "usr/lib"] {
        let place = fs::read_dir(tools().join(place)).unwrap().map(|entry| entry.unwrap().path());
        libraries.extend(place.filter(|path| path.to_str().unwrap().ends_with("-linux-gnu")));
    }
    libraries.extend(libraries.clone().into_iter().map(|path| path.join("systemd")));
    let path = std::env::join_paths(libraries).unwrap();
    let mut command = host.command("env");
    command.arg(format!("LD_LIBRARY_PATH={}", path.to_str().unwrap())).arg(tools().join(program));
    command
}

#[test]
fn systemd_resolved_asks_the_tunnel_for_its_domain_and_the_network_for_all_else() {
    let Some(lab) = Lab::new() else { return };
    let names = Names::new(&lab);
    let host = &names.host;
    let resolved = Resolved::start(host);
    let path = names.profile(SPLIT);
    let before = (resolved.settings(), state(host));
    assert_eq!(names.ask_both(), [BY_NETWORK; 2]);
    for kill in [false, true] {
        let (done, told) = ringway(host, &format!("up --background {path}"));
        assert!(done, "{told}");
        assert_eq!(names.ask_both(), [BY_TUNNEL, BY_NETWORK]);
        // Nobody stays root for what ends with the link.
        let pid = status(host, "vpn0")["process"].as_u64().unwrap();
        let rights = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        assert!(rights.contains("CapEff:\t0000000000001000\n"), "{rights}");
        if kill {
            names.kill();
            assert_eq!(
                (names.ask_both(), resolved.settings()),
                ([BY_NETWORK; 2].map(str::to_owned), before.0.clone())
            );
        }
        let force = if kill { " --force" } else { "" };
        assert_eq!(ringway(host, &format!("down vpn0{force}")), (true, "vpn0: down\n".to_owned()));
        assert_eq!(names.ask_both(), [BY_NETWORK; 2]);
        assert_eq!((resolved.settings(), state(host)), before);
    }
    // Programs would be answered by nobody.
    resolved.stop();
    let (done, told) = ringway(host, &format!("up --background {path}"));
    assert!(!done && told.contains("systemd-resolved, which answers for this host's programs"), "{told}");
    assert_eq!(state(host), before.1);
}

#[test]
fn what_a_link_was_told_is_taken_back_while_the_link_is_there() {
    let Some(lab) = Lab::new() else { return };
    let names = Names::new(&lab);
    let host = &names.host;
    let resolved = Resolved::start(host);
    lab.link((host, "late0"), (&names.far, "late1"), 1500);
    let told = |settings: &[String; 3]| {
        let lines = settings.iter().filter_map(|said| said.lines().find(|line| line.contains("(late0)")));
        let lines = lines.map(|line| line.rsplit_once("): ").map_or("", |(_, told)| told).to_owned());
        lines.collect::<Vec<_>>()
    };
    let before = resolved.settings();
    run_on(host, "refused late0");
    assert_eq!(resolved.settings(), before);
    run_on(host, "resolved late0");
    assert_eq!(told(&resolved.settings()), ["100.64.0.1 fd64::1", "example.org ~corp.example", "no"]);
    for link in ["late0", "late0", "never0"] {
        run_on(host, &format!("unresolved {link}"));
        assert_eq!(resolved.settings(), before);
    }
}

#[test]
fn systemd_resolved_asks_the_tunnel_for_every_name_if_it_takes_everything() {
    let Some(lab) = Lab::new() else { return };
    let names = Names::new(&lab);
    let host = &names.host;
    let resolved = Resolved::start(host);
    let path = names.profile(WHOLE);
    let before = (resolved.settings(), state(host));
    for kill in [false, true] {
        let (done, told) = ringway(host, &format!("up --background {path}"));
        assert!(done, "{told}");
        let asked = names.below();
        assert_eq!(names.ask_both(), [BY_TUNNEL; 2]);
        let [_, domains, default] = resolved.settings();
        assert!(domains.contains("(vpn0): ~.\n") && default.contains("(vpn0): yes\n"), "{domains}{default}");
        assert_eq!(names.below(), asked, "the network was asked as well");
        if kill {
            names.kill();
            assert_eq!((names.ask("other.example").as_str(), names.below()), ("nothing", asked));
        }
        let force = if kill { " --force" } else { "" };
        assert_eq!(ringway(host, &format!("down vpn0{force}")), (true, "vpn0: down\n".to_owned()));
        assert_eq!(names.ask_both(), [BY_NETWORK; 2]);
        assert_eq!((resolved.settings(), state(host)), before);
    }
}

#[test]
fn a_resolvers_file_sends_every_name_into_the_tunnel_and_none_by_its_domain() {
    let Some(lab) = Lab::new() else { return };
    let names = Names::new(&lab);
    let host = &names.host;
    write(host, "resolv.conf", &format!("nameserver {BELOW}\n"));
    let path = names.profile(SPLIT);
    let before = state(host);
    let (done, told) = ringway(host, &format!("up --background {path}"));
    assert!(
        !done && told.contains("to ask the tunnel's servers for ~corp.example only takes systemd-resolved"),
        "{told}"
    );
    assert_eq!((names.ask("corp.example").as_str(), state(host)), (BY_NETWORK, before.clone()));

    names.profile(WHOLE);
    let asked = names.below();
    let (done, told) = ringway(host, &format!("up --background {path}"));
    assert!(done, "{told}");
    assert_eq!((names.ask_both(), names.below()), ([BY_TUNNEL; 2].map(str::to_owned), asked));
    names.kill();
    assert_eq!((names.ask("other.example").as_str(), names.below()), ("nothing", asked));
    assert_eq!(ringway(host, "down vpn0 --force"), (true, "vpn0: down\n".to_owned()));
    assert_eq!((names.ask_both(), state(host)), ([BY_NETWORK; 2].map(str::to_owned), before));
}
