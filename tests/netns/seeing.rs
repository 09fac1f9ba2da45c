//! What `show`, `top` and `doctor` make of a running device and of hosts on which something is wrong.

use std::io::Write as _;
use std::process::{Output, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::appliance::{self, Appliance};
use crate::dataplane::preloaded;
use crate::dropin::{FILTER, perl};
use crate::lab::{Host, Lab, PortHolder, wait_until};
use crate::peer::Implementation;
use crate::topology::{GATEWAY_PORT, GATEWAY_V4, Plan};
use crate::traffic::must_reach;

fn program() -> String {
    env!("CARGO_BIN_EXE_ringway").to_owned()
}

fn ringway(host: &Host, arguments: &str) -> Output {
    host.attempt(&format!("{} {arguments}", program()))
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// What `doctor` finds on a host, started by these words.
fn examine(host: &Host, launcher: &str, arguments: &str) -> (Option<i32>, Vec<Value>) {
    let out = host.attempt(&format!("{launcher} {} doctor --json {arguments}", program()));
    let document: Value = serde_json::from_slice(&out.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}{}", text(&out.stdout), text(&out.stderr)));
    (out.status.code(), document["findings"].as_array().unwrap().clone())
}

/// The finding of a probe whose words hold `about`.
fn finding<'a>(findings: &'a [Value], probe: &str, about: &str) -> &'a Value {
    let wanted = |f: &&Value| f["probe"] == probe && f["found"].as_str().unwrap().contains(about);
    findings.iter().find(wanted).unwrap_or_else(|| panic!("no {probe} about '{about}' in {findings:#?}"))
}

#[test]
fn show_and_top_see_a_running_device() {
    let Some(lab) = Lab::new() else { return };
    let site = Plan::new(Implementation::Ringway { workers: 2 }, Implementation::ringway()).build(&lab);
    let (gateway, client) = (&site.gateway.host, &site.clients[0].host);
    must_reach(client, GATEWAY_V4);

    let shown = text(&ringway(gateway, "show -i wg0").stdout);
    assert!(shown.starts_with("interface: wg0\n") && shown.contains("sessions: 1 of 1 peers\n"), "{shown}");
    assert!(!shown.contains('\x1b'), "no colour into a pipe: {shown}");
    let mut ping = client.line(&format!("ping -q -i 0.05 -c 60 {GATEWAY_V4}")).spawn().unwrap();
    let json: Value = serde_json::from_slice(&ringway(gateway, "show --json --rates wg0").stdout).unwrap();
    let rates = &json["rates"]["peers"][&site.clients[0].public];
    assert!(rates["rx_bytes"].as_f64().unwrap() > 500.0, "20 pings of 128 bytes a second: {json:#}");
    let once = text(&ringway(gateway, "top --once").stdout);
    assert!(once.starts_with("wg0  port 51820  1 of 1 peers in session"), "{once}");
    assert!(once.lines().any(|line| line.starts_with(&site.clients[0].public[..12])), "{once}");
    assert!(ping.wait().unwrap().success());

    // Not a terminal: the same table without being asked.
    assert!(text(&ringway(gateway, "top").stdout).contains("peers in session"));
    for verb in ["show", "top"] {
        let nobody = ringway(gateway, &format!("{verb} -i wg7"));
        let said = text(&nobody.stderr);
        assert_eq!((nobody.status.code(), said.lines().count()), (Some(1), 1), "{said}");
        assert!(said.contains("nobody serves this device"), "{said}");
        let denied = gateway.attempt(&format!("setpriv --reuid 65534 --clear-groups {} {verb}", program()));
        assert!(text(&denied.stderr).contains("sudo"), "{denied:?}");
        assert_eq!(denied.status.code(), Some(1));
    }
}

/// Runs `top` in a terminal, between two words of stty, and ends it after two seconds: by the key, or by a signal.
fn in_a_terminal(host: &Host, signal: Option<&str>) -> String {
    let top = match signal {
        None => format!("{} top", program()),
        Some(name) => format!("timeout --foreground -s {name} 2 {} top", program()),
    };
    let script = format!("stty rows 30 cols 120; stty -g; {top}; echo; stty -g");
    let mut terminal = host.command("script");
    terminal.args(["-q", "-c", &script, "/dev/null"]).env("TERM", "xterm");
    let mut child = terminal.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("script(1)");
    std::thread::sleep(Duration::from_secs(2));
    if signal.is_none() {
        child.stdin.as_mut().unwrap().write_all(b"q").unwrap();
    } else {
        std::thread::sleep(Duration::from_secs(1));
    }
    text(&child.wait_with_output().unwrap().stdout)
}

#[test]
fn top_in_a_terminal_leaves_it_as_it_was() {
    let Some(lab) = Lab::new() else { return };
    let site = Plan::new(Implementation::ringway(), Implementation::ringway()).build(&lab);
    for signal in [None, Some("TERM"), Some("HUP")] {
        let said = in_a_terminal(&site.gateway.host, signal);
        let place =
            |what: &str| said.find(what).unwrap_or_else(|| panic!("{signal:?}: no {what:?} in {said:?}"));
        let (begun, back) = (place("\x1b[?1049h"), place("\x1b[?1049l"));
        assert!(said[begun..back].contains("WORKER"), "{said:?}");
        assert!(said[back..].contains("\x1b[?25h"), "the cursor is back: {said:?}");
        let settings: Vec<_> = said.lines().filter(|line| line.matches(':').count() > 20).collect();
        assert!(settings.len() == 2 && settings[0] == settings[1], "{signal:?}: {settings:?} in {said:?}");
    }
}

#[test]
fn doctor_finds_what_is_wrong_with_a_host() {
    let Some(lab) = Lab::new() else { return };
    let site = Plan::new(Implementation::ringway(), Implementation::ringway()).build(&lab);
    let host = &site.clients[0].host;
    must_reach(host, GATEWAY_V4);
    host.run("ip route add default via 198.18.0.1 dev e0");
    host.run(
        "sysctl -qw net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.e0.rp_filter=1 net.ipv4.conf.wg0.rp_filter=0",
    );
    host.run("sysctl -qw net.ipv4.conf.e0.forwarding=0 net.ipv4.conf.wg0.forwarding=1");
    host.run("sysctl -qw net.ipv6.conf.all.forwarding=1");
    host.run("ip link set e0 mtu 1400");
    host.run("nft add table inet somebody");
    host.run("nft add chain inet somebody forward { type filter hook forward priority 0 ; policy drop ; }");
    let (_, findings) = examine(host, "", "");
    for (probe, about, verdict) in [
        ("kernel", "", "ok"),
        ("io_uring", "trial ring", "ok"),
        ("bpf", "steering program", "ok"),
        ("tun", "trial device", "ok"),
        ("devices", "wg0", "ok"),
        ("rp_filter", "e0: strict", "warn"),
        ("rp_filter", "wg0: off", "ok"),
        ("forwarding", "e0: IPv4 off", "warn"),
        ("forwarding", "wg0: IPv4 on, IPv6 on", "ok"),
        ("firewall", "inet somebody forward", "warn"),
        ("mtu", "wg0: 1420", "warn"),
        ("port", "51821", "ok"),
    ] {
        let found = finding(&findings, probe, about);
        assert_eq!(found["verdict"], verdict, "{found:#}");
    }
    assert_eq!(finding(&findings, "mtu", "")["fix"], "ip link set wg0 mtu 1340");
    assert!(host.run("ip -o link").lines().all(|line| !line.contains("rwtrial")), "no device is left");

    // What it says to do helps.
    for probe in ["rp_filter", "forwarding", "mtu", "firewall"] {
        for found in findings.iter().filter(|f| f["probe"] == probe && f["verdict"] == "warn") {
            let fix = found["fix"].as_str().unwrap();
            assert!(host.command("sh").args(["-c", fix]).status().unwrap().success(), "{fix}");
        }
    }
    let (_, findings) = examine(host, "", "");
    for found in findings
        .iter()
        .filter(|f| ["rp_filter", "forwarding", "mtu", "firewall"].contains(&f["probe"].as_str().unwrap()))
    {
        assert_eq!(found["verdict"], "ok", "{found:#}");
    }

    // What holds for all interfaces, and what one is told in spite of it (Linux 6.17).
    host.run("sysctl -qw net.ipv4.conf.all.rp_filter=1 net.ipv6.conf.all.forwarding=0");
    let one_by_one = host.attempt("sysctl -qw net.ipv6.conf.wg0.force_forwarding=1").status.success();
    let (_, findings) = examine(host, "", "");
    assert_eq!(finding(&findings, "rp_filter", "wg0: strict (all 1, wg0 0)")["verdict"], "warn");
    finding(
        &findings,
        "forwarding",
        if one_by_one { "wg0: IPv4 on, IPv6 on" } else { "wg0: IPv4 on, IPv6 off" },
    );
    finding(&findings, "forwarding", "e0: IPv4 on, IPv6 off");
}

#[test]
fn doctor_finds_what_is_forbidden() {
    let Some(lab) = Lab::new() else { return };
    let host = lab.host("alone");
    // No TUN in a mount namespace of its own.
    let hidden = "unshare -m sh -c 'mount -t tmpfs tmpfs /dev && exec \"$0\" doctor --json'";
    let out = host.command("sh").args(["-c", &format!("{hidden} {}", program())]).output().unwrap();
    let document: Value = serde_json::from_slice(&out.stdout).expect("JSON");
    let findings = document["findings"].as_array().unwrap();
    assert_eq!(finding(findings, "tun", "")["verdict"], "fail", "{document:#}");
    assert_eq!((out.status.code(), &document["verdict"]), (Some(1), &"fail".into()));

    // A filter forbids rings.
    let [prctl, seccomp] = if cfg!(target_arch = "x86_64") { ["157", "317"] } else { ["167", "277"] };
    let program = program();
    let words = perl(FILTER, &[prctl, seccomp, "1", &program, "doctor", "--json"]);
    let out = host.command(words[0]).args(&words[1..]).output().unwrap();
    let document: Value = serde_json::from_slice(&out.stdout).expect("JSON");
    let found = finding(document["findings"].as_array().unwrap(), "io_uring", "seccomp");
    assert_eq!(found["verdict"], "warn", "{found:#}");

    // A low limit that may not be raised; no CAP_NET_ADMIN, no CAP_BPF.
    let caps = "setpriv --bounding-set=-all --inh-caps=-all";
    let limited = format!("prlimit --memlock=65536:65536 {caps}");
    let (code, findings) = examine(&host, &limited, "");
    assert_eq!(finding(&findings, "memlock", "64 KiB")["verdict"], "warn");
    assert_eq!(finding(&findings, "bpf", "not permitted")["verdict"], "warn");
    assert_eq!(finding(&findings, "tun", "permission")["verdict"], "fail");
    assert_eq!(code, Some(1));

    // Somebody has the port.
    let mut taker = host.command("perl");
    let script = "use Socket; $| = 1; socket(S, PF_INET, SOCK_DGRAM, 0); bind(S, pack_sockaddr_in(51820, INADDR_ANY)) \
        or die; print \"bound\\n\"; sleep";
    let mut taker = taker.args(["-e", script]).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = [0; 6];
    std::io::Read::read_exact(taker.stdout.as_mut().unwrap(), &mut line).unwrap();
    let (_, findings) = examine(&host, "", "");
    assert_eq!(finding(&findings, "port", "51820")["verdict"], "fail");
    let (_, findings) = examine(&host, "", "--port 51999");
    assert_eq!(finding(&findings, "port", "51999")["verdict"], "ok");
    taker.kill().unwrap();
    taker.wait().unwrap();

    // Nobody in particular: what cannot be looked at says so, and is no failure.
    let (_, findings) = examine(&host, "setpriv --reuid 65534 --clear-groups", "");
    for probe in ["bpf", "tun"] {
        assert_eq!(finding(&findings, probe, "this user")["verdict"], "unknown");
    }
}

/// What a router says to everybody on the link of an interface: a default route, and if so wished a prefix for
/// addresses.
const ADVERTISE: &str = r#"
    use Socket qw(:all);
    socket(my $s, AF_INET6, SOCK_RAW, 58) or die "socket: $!";
    setsockopt($s, 41, 18, pack("i", 255)) or die "hops: $!";
    my $prefix = pack("CCCCNNN", 3, 4, 64, 0xc0, 1800, 1800, 0) . inet_pton(AF_INET6, "2001:db8:1::");
    my $packet = pack("CCnCCnNN", 134, 0, 0, 64, 0, 1800, 0, 0);
    $packet .= $prefix if $ARGV[1];
    send($s, $packet, 0, pack_sockaddr_in6(0, inet_pton(AF_INET6, "ff02::1"), $ARGV[0])) or die "send: $!";
"#;

#[test]
fn doctor_finds_a_router_that_is_not_listened_to() {
    let Some(lab) = Lab::new() else { return };
    let (host, router) = (lab.host("alone"), lab.host("router"));
    lab.link((&host, "e0"), (&router, "e0"), 1500);
    host.run("sysctl -qw net.ipv6.conf.e0.accept_ra=1 net.ipv6.conf.e0.forwarding=0");
    assert!(examine(&host, "", "").1.iter().all(|finding| finding["probe"] != "accept_ra"));

    let index = router.run("cat /sys/class/net/e0/ifindex");
    let advertise = |prefix: &str| {
        let mut perl = router.command("perl");
        perl.args(["-e", ADVERTISE, index.trim(), prefix]).output().unwrap().status.success()
    };
    let has_route = || host.run("ip -6 route show default").contains("proto ra");
    wait_until("there is a default route", Duration::from_secs(10), || {
        // It has an address of its own only some moments after the link came up.
        advertise("0") && has_route()
    });
    let (_, findings) = examine(&host, "", "");
    assert_eq!(finding(&findings, "accept_ra", "e0: its router")["verdict"], "ok");
    wait_until("there is an address", Duration::from_secs(10), || {
        advertise("1") && host.run("ip -6 address show dev e0").contains("2001:db8:1:")
    });

    // The route goes at once, and no advertisement brings another one.
    host.run("sysctl -qw net.ipv6.conf.e0.forwarding=1");
    assert!(advertise("0") && !has_route());
    let (_, findings) = examine(&host, "", "");
    let found = finding(&findings, "accept_ra", "forwards IPv6, accept_ra is 1");
    assert_eq!(found["verdict"], "warn", "{found:#}");
    host.run(found["fix"].as_str().unwrap());
    wait_until("the route is back", Duration::from_secs(10), || advertise("0") && has_route());
    let (_, findings) = examine(&host, "", "");
    assert_eq!(finding(&findings, "accept_ra", "accept_ra is 2")["verdict"], "ok");
}

/// No namespace has a real time of its own: the program is told another one.
#[test]
fn doctor_finds_a_clock_that_is_wrong() {
    let Some(lab) = Lab::new() else { return };
    let host = lab.host("alone");
    let library = preloaded("another_time");
    for (variable, verdict, says) in [
        ("NONE", "ok", "sane and synchronised"),
        ("UNKEPT", "warn", "nobody keeps it synchronised"),
        ("LONG_AGO", "fail", "a time before 2025"),
    ] {
        let (_, findings) = examine(&host, &format!("env LD_PRELOAD={library} {variable}=1"), "");
        let found = finding(&findings, "clock", says);
        assert_eq!(found["verdict"], verdict, "{found:#}");
    }
}

#[test]
fn doctor_knows_the_services_of_a_gateway() {
    let Some(lab) = Lab::new() else { return };
    let host = lab.host("gateway");
    let file = appliance::head("wg0", &["100.64.0.1/24", "fd64::1/64"], GATEWAY_PORT)
        + "[services]\ntcp = [8080, 8081]\nudp = [53]\n";
    let gateway = Appliance::start(&host, "wg0", &file);
    let _all = PortHolder::on(&host, "STREAM", "0.0.0.0", 8080);
    let _own = PortHolder::on(&host, "DGRAM", "100.64.0.1", 53);
    let _unnamed = PortHolder::on(&host, "STREAM", "fd64::1", 9090);
    let services = || {
        let (_, findings) = examine(&host, "", "");
        let each = findings.into_iter().filter(|finding| finding["probe"] == "services");
        each.map(|finding| finding["found"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let found = services();
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(found[0].contains("[services] names tcp 8081"), "{found:?}");
    assert!(found[1].contains("somebody listens on fd64::1, tcp 9090"), "{found:?}");
    // What it says to do helps; and others' firewalls are asked for these ports as well.
    let _other = PortHolder::on(&host, "STREAM", "::", 8081);
    appliance::file(&host, "wg0.toml", &file.replace("8081]", "8081, 9090]"));
    host.run(&format!("{} reload -i wg0", program()));
    let found = services();
    assert!(found.len() == 1 && found[0].contains("of 4 services each"), "{found:?}");
    host.run("nft add table inet other");
    host.run("nft add chain inet other in { type filter hook input priority 0 ; }");
    host.run("nft add rule inet other in tcp dport 9090 drop");
    let (_, findings) = examine(&host, "", "");
    let found = finding(&findings, "firewall", "9090");
    assert_eq!(found["verdict"], "warn", "{found:#}");
    gateway.end();
}

/// A namespace has no kernel, processors and limits of its own: where the program reads of them, files lie that say
/// something else.
#[test]
fn doctor_finds_what_the_machine_lacks() {
    let Some(lab) = Lab::new() else { return };
    let host = lab.host("alone");
    for core in ["cpu0", "cpu1", "cpuidle"] {
        std::fs::create_dir_all(host.run_file(&format!("cpu/{core}/cpufreq"))).unwrap();
    }
    let stat = host.run("cat /proc/stat");
    let stat = format!("cpu  700 0 100 100 0 0 0 100 0 0\n{}", stat.split_once('\n').unwrap().1);
    for (file, content, place) in [
        ("osrelease", "5.15.0-91-generic\n", "/proc/sys/kernel/osrelease"),
        ("io_uring_disabled", "2\n", "/proc/sys/kernel/io_uring_disabled"),
        ("rmem_max", "212992\n", "/proc/sys/net/core/rmem_max"),
        ("stat", &stat, "/proc/stat"),
    ] {
        std::fs::write(host.run_file(file), content).unwrap();
        host.run(&format!("mount --bind /var/run/{file} {place}"));
    }
    for (core, governor) in [("cpu0", "powersave"), ("cpu1", "performance")] {
        for (file, content) in [("scaling_governor", governor), ("scaling_driver", "acpi-cpufreq")] {
            std::fs::write(host.run_file(&format!("cpu/{core}/cpufreq/{file}")), format!("{content}\n"))
                .unwrap();
        }
    }
    host.run("rmdir /var/run/cpu/cpuidle/cpufreq");
    host.run("mount --bind /var/run/cpu /sys/devices/system/cpu");

    let [prctl, seccomp] = if cfg!(target_arch = "x86_64") { ["157", "317"] } else { ["167", "277"] };
    let program = program();
    let launcher = ["setpriv", "--bounding-set=-net_admin", &program, "doctor", "--json"];
    let words = perl(FILTER, &[&[prctl, seccomp, "1"], &launcher[..]].concat());
    let out = host.command(words[0]).args(&words[1..]).output().unwrap();
    let document: Value = serde_json::from_slice(&out.stdout).expect("JSON");
    let findings = document["findings"].as_array().unwrap();
    for (probe, about, verdict, fix) in [
        ("kernel", "5.15.0-91-generic is older than 6.1", "fail", "install a newer kernel"),
        ("io_uring", "kernel.io_uring_disabled = 2", "warn", "sysctl -w kernel.io_uring_disabled=0"),
        ("buffers", "rmem_max is 212992", "warn", "sysctl -w net.core.rmem_max=4194304"),
        ("governor", "powersave on 1 of 2 cores", "warn", "cpupower frequency-set -g performance"),
        ("steal", "0 % now, 10 % since boot", "warn", "neighbours"),
    ] {
        let found = finding(findings, probe, about);
        assert_eq!(found["verdict"], verdict, "{found:#}");
        assert!(found["fix"].as_str().unwrap().contains(fix), "{found:#}");
    }
}
