//! A kill switch that stays: from before there is a network, through `up` and `down`, until force takes it away.

use std::collections::BTreeSet;
use std::fs;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use crate::appliance::{program, state};
use crate::dropin::text;
use crate::guard::{arrives, datagram};
use crate::lab::{Host, Lab, machine, wait_until};
use crate::peer::Peer;
use crate::topology::GATEWAY_V4;
use crate::traffic::{must_reach, ping};
use crate::up::{ALL, know, profile, ringway, server, status};
use crate::vpn::{FAR_V4, FAR_V6};

/// Ten times and more what is expected.
const SOON: Duration = Duration::from_secs(20);
/// What a host says on a link to get an address and neighbours, and nothing else.
const ALLOWED: [&str; 7] = ["arp", "icmp6 133", "icmp6 134", "icmp6 135", "icmp6 136", "udp4 67", "udp6 547"];

/// A gateway, and a host without a link that has a profile of it.
fn apart(lab: &Lab) -> (Arc<Host>, Arc<Host>, Peer, String) {
    let (far, host) = (lab.host("far"), lab.host("host"));
    far.address("lo", &format!("{FAR_V4}/32"));
    far.address("lo", &format!("{FAR_V6}/128"));
    let server = server(&far);
    let (path, public) = profile(&host, "vpn0", &server.public, ("", ALL));
    know(&server, &public);
    (far, host, server, path)
}

/// The link comes, with addresses and routes.
fn plug(lab: &Lab, far: &Host, host: &Host) {
    lab.link((far, "f0"), (host, "e0"), 1520);
    for address in ["198.18.0.1/24", "fd00:198:18::1/64"] {
        far.address("f0", address);
    }
    for address in ["198.18.0.2/24", "fd00:198:18::2/64"] {
        host.address("e0", address);
    }
    host.run("ip route add default via 198.18.0.1");
    host.run("ip -6 route add default via fd00:198:18::1");
}

/// What a host that tries everything gets out.
fn leaves(far: &Host, host: &Host) -> BTreeSet<String> {
    arrives(far, "f0", || {
        let address = "use Socket; socket(my $s, AF_INET, SOCK_DGRAM, 0) or die; \
            setsockopt($s, SOL_SOCKET, SO_BROADCAST, 1); setsockopt($s, SOL_SOCKET, 25, \"e0\\0\") or die; \
            bind($s, pack_sockaddr_in(68, INADDR_ANY)) or die; \
            send($s, 'plain', 0, pack_sockaddr_in(67, inet_aton('255.255.255.255')));";
        assert!(host.command("perl").args(["-e", address]).status().unwrap().success());
        for (to, port) in [(FAR_V4, 7001), ("198.18.0.1", 7002), ("198.18.0.1", 53), (FAR_V4, 53)] {
            datagram(host, to, port);
        }
        assert_eq!((ping(host, FAR_V4, 1, 56), ping(host, FAR_V6, 1, 56)), (0, 0));
    })
}

fn assert_held(far: &Host, host: &Host, when: &str) {
    let seen = leaves(far, host);
    assert!(seen.contains("udp4 67"), "{when}: {seen:?}");
    let leaks: Vec<_> = seen.iter().filter(|kind| !ALLOWED.contains(&kind.as_str())).collect();
    assert!(leaks.is_empty(), "{when}: {leaks:?}");
}

#[test]
fn nothing_leaves_from_before_there_is_a_link_until_force_takes_it_away() {
    let Some(lab) = Lab::new() else { return };
    let (far, host, server, path) = apart(&lab);
    let (done, told) = ringway(&host, &format!("guard {path}"));
    assert!(done && told.contains("until `ringway down --force vpn0`"), "{told}");
    plug(&lab, &far, &host);
    assert_held(&far, &host, "since the start");

    // What stays does so whatever a client is told; then one that is told so itself.
    for (switch, end) in [("auto", "down vpn0"), ("auto", "down --force vpn0"), ("always", "down vpn0")] {
        let (done, told) = ringway(&host, &format!("up --background --kill-switch {switch} {path}"));
        assert!(done, "{told}");
        must_reach(&host, GATEWAY_V4);
        must_reach(&host, FAR_V6);
        let (done, told) = ringway(&host, &format!("guard {path}"));
        assert!(!done && told.contains("ringway up --kill-switch always"), "{told}");
        let (done, told) = ringway(&host, end);
        let held = end == "down vpn0";
        assert!(done && told.contains("nothing leaves this host until") == held, "{told}");
        if held {
            assert_held(&far, &host, "after the end");
        }
    }
    assert_eq!(ringway(&host, "down vpn0 --force"), (true, "vpn0: down\n".to_owned()));
    assert_eq!((ping(&host, FAR_V4, 1, 56), ping(&host, FAR_V6, 1, 56)), (1, 1));

    // A start that fails leaves it raised as well. With the local network within reach that is, and nothing else.
    host.run("ip address add 10.9.0.2/24 dev e0");
    far.address("f0", "10.9.0.1/24");
    drop(server);
    let (done, told) = ringway(&host, &format!("up --background --kill-switch always-local {path}"));
    assert!(!done && told.contains("nobody listens"), "{told}");
    let reached = |to: &str| ping(&host, to, 1, 56) == 1;
    assert!(reached("10.9.0.1") && !reached(FAR_V4) && !reached(FAR_V6));
    assert_eq!(ringway(&host, "down vpn0 --force"), (true, "vpn0: down\n".to_owned()));
    assert!(ringway(&host, &format!("guard --local {path}")).0);
    assert!(reached("10.9.0.1") && !reached(FAR_V4) && !reached(FAR_V6));
    assert_eq!(ringway(&host, "down vpn0 --force"), (true, "vpn0: down\n".to_owned()));
    assert!(reached("10.9.0.1") && reached(FAR_V4) && reached(FAR_V6));

    // There is no client, and something to take away all the same.
    let before = state(&host);
    assert!(ringway(&host, &format!("guard {path}")).0);
    let (done, _) = ringway(&host, "down vpn0");
    assert!(!done && host.run("nft list tables").contains("ringway-guard_vpn0"));
    assert_eq!(ringway(&host, "down vpn0 --force"), (true, "vpn0: down\n".to_owned()));
    assert_eq!(ringway(&host, "down vpn0 --force"), (true, "vpn0: nothing was left\n".to_owned()));
    assert_eq!(state(&host), before);
    fs::write(host.run_file("vpn0.conf"), "[Interface]\n").unwrap();
    assert!(!ringway(&host, &format!("guard {path}")).0);
    assert_eq!(host.run("nft list ruleset"), "");
}

/// `ringway guard --watch` and a client by turns: whatever somebody takes away comes back, and neither takes the other
/// for somebody else.
#[test]
fn what_is_taken_away_comes_back_whoever_keeps_it() {
    let Some(lab) = Lab::new() else { return };
    let (far, host, _server, path) = apart(&lab);
    let before = state(&host);
    let guard =
        || host.line(&format!("{} guard --watch {path}", program())).stdout(Stdio::piped()).spawn().unwrap();
    let mut keeper = guard();
    let table = || host.attempt("nft list table inet ringway-guard_vpn0");
    let raised = || table().status.success();
    wait_until("it is raised", SOON, raised);
    let restored = |when: &str| {
        host.run("nft flush ruleset");
        wait_until(&format!("it is back {when}"), SOON, raised);
    };
    restored("before there is a link");
    plug(&lab, &far, &host);
    wait_until("the link is held", SOON, || host.run("nft list ruleset").contains("device \"e0\""));
    assert_held(&far, &host, "with the keeper");
    let mut second = guard();
    assert!(!second.wait().unwrap().success(), "one is enough");

    for end in ["down", "kill"] {
        let (done, told) = ringway(&host, &format!("up --background --kill-switch always {path}"));
        assert!(done, "{told}");
        must_reach(&host, FAR_V6);
        restored("with the client");
        // Each load has a number, and whoever fights puts a new one in force again and again.
        let rules = table().stdout;
        std::thread::sleep(Duration::from_millis(2500));
        assert_eq!(text(&table().stdout), text(&rules));
        if end == "down" {
            assert!(ringway(&host, "down vpn0").0);
        } else {
            let pid = status(&host, "vpn0")["process"].as_u64().unwrap();
            machine(&format!("kill -KILL {pid}"));
            wait_until("it is gone", SOON, || status(&host, "vpn0")["status"] == "killed");
        }
        restored("with the keeper again");
        assert_held(&far, &host, end);
    }
    assert_eq!(ringway(&host, "down vpn0 --force"), (true, "vpn0: down\n".to_owned()));
    assert!(keeper.wait().unwrap().success() && !raised());
    host.run("ip link del e0");
    assert_eq!(state(&host), before);
}
