//! What `ringway reload` follows on a device and a host that are in use, and that all of it is undone at the end, in
//! order or not.

use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;

use crate::appliance::{Appliance, client, file, meet, peer, program, state};
use crate::dropin::text;
use crate::lab::{Host, Lab, PortHolder, wait_until};
use crate::lifecycle::holder_of;
use crate::metrics::{page_at, sum};
use crate::peer::{Implementation, Peer};
use crate::reload::{effect, forwarding, reload, reloaded};
use crate::topology::{GATEWAY_PORT, GATEWAY_V4, GATEWAY_V6, Plan, client_prefixes, client_v4};
use crate::traffic::{must_reach, ping};

const SOON: Duration = Duration::from_secs(10);

/// A host with a link beside the tunnel, and who is at its other end.
fn host(lab: &Lab) -> (Arc<Host>, Arc<Host>) {
    let (host, far) = (lab.host("gateway"), lab.host("far"));
    lab.link((&host, "e0"), (&far, "e0"), 1500);
    host.address("e0", "198.18.0.1/24");
    (host, far)
}

/// A file: its addresses, where the page is, and whether it forwards.
fn content(user: &str, addresses: &[&str], page: &str, forwards: bool) -> String {
    format!(
        "{user}interface = \"wg0\"\naddresses = {addresses:?}\nlisten_port = {GATEWAY_PORT}\nworkers = 2\n\
         [metrics]\n{page}\n[forwarding]\nenabled = {forwards}\n"
    )
}

/// As root and as another user: each change is seen on the host, and whatever ends the gateway afterwards, the host is
/// as it was.
#[test]
fn addresses_forwarding_and_the_page_are_followed_and_undone() {
    let Some(lab) = Lab::new() else { return };
    for user in ["", "user = \"nobody\"\n"] {
        let (host, _far) = host(&lab);
        let own = ["100.64.0.1/10", "fd64::1/64"];
        let first = content(user, &own, "listen = \"off\"", true);
        Appliance::start(&host, "wg0", &first).end();
        let before = state(&host);
        let second = content(user, &["100.65.0.1/16"], "listen = \"127.0.0.1:9586\"", false);
        for (last, end) in [(&first, "KILL"), (&second, "KILL"), (&first, "TERM"), (&second, "TERM")] {
            let gateway = Appliance::start(&host, "wg0", &first);
            let on = forwarding(&host);
            assert!(on.contains("net.ipv4.conf.e0.forwarding = 1"), "{on:?}");
            reloaded(&host, &second);
            assert_eq!(forwarding(&host), [].into());
            let addresses = host.run("ip -o address show dev wg0 scope global");
            assert!(addresses.contains(" 100.65.0.1/16 ") && addresses.lines().count() == 1, "{addresses}");
            if last == &first {
                reloaded(&host, &first);
                assert_eq!(forwarding(&host), on);
            }
            gateway.signal(end);
            gateway.wait();
            if end == "KILL" {
                let next = Appliance::start(&host, "wg0", &first);
                assert_eq!(forwarding(&host), on);
                next.end();
            }
            assert_eq!(state(&host), before, "{user}{last}{end}");
        }
    }
}

#[test]
fn the_metrics_page_goes_where_the_file_says_and_shows_all_that_was_counted() {
    let Some(lab) = Lab::new() else { return };
    let (host, _far) = host(&lab);
    for user in ["", "user = \"nobody\"\n"] {
        let with = |page: &str| content(user, &["100.64.0.1/10"], page, true);
        let at = |address: &str| page_at(&host, address);
        let gateway = Appliance::start(&host, "wg0", &with("listen = \"off\""));
        assert_eq!(at("127.0.0.1:9586"), None);
        // Half a handshake is counted although nobody shows it.
        let half = format!("printf '\\x01\\0\\0\\0%0144d' 0 > /dev/udp/127.0.0.1/{GATEWAY_PORT}");
        let sent = host.command("bash").args(["-c", &half]).status().unwrap();
        assert!(sent.success());

        reloaded(&host, &with("listen = \"127.0.0.1:9586\""));
        let page = at("127.0.0.1:9586").expect("it is served");
        let counted = |page: &str| {
            let turns = |worker| sum(page, "ringway_turns_total", &format!("worker=\"{worker}\""));
            (turns(0) > 0, turns(1) > 0, sum(page, "ringway_handshake_messages_total", ""))
        };
        assert_eq!(counted(&page), (true, true, 1), "{page}");
        assert!(!page.contains("ringway_peer_bytes_total"));

        // The same place, with more on it; then both cannot be listened at together.
        reloaded(&host, &with("listen = \"127.0.0.1:9586\"\nper_peer = true"));
        assert!(at("127.0.0.1:9586").unwrap().contains("ringway_peer_bytes_total"));
        reloaded(&host, &with("listen = \"0.0.0.0:9586\""));
        assert!(!at("198.18.0.1:9586").unwrap().contains("ringway_peer_bytes_total"));
        reloaded(&host, &with("listen = \"127.0.0.1:9587\""));
        assert_eq!((at("127.0.0.1:9586"), at("127.0.0.1:9587").is_some()), (None, true));

        // What cannot be had leaves the page where it is: before it, and with it as the only one that can be had.
        let before = effect(&host);
        for (holder, page) in [("127.0.0.1:9588", "127.0.0.1:9588"), ("198.18.0.1:9587", "0.0.0.0:9587")] {
            let (address, port) = holder.split_once(':').unwrap();
            let held = PortHolder::on(&host, "STREAM", address, port.parse().unwrap());
            file(&host, "wg0.toml", &("mtu = 1300\n".to_owned() + &with(&format!("listen = \"{page}\""))));
            let out = reload(&host, "");
            assert_eq!(out.status.code(), Some(1), "{out:?}");
            let says = format!("the metrics page cannot be served on {page}");
            assert!(text(&out.stderr).contains(&says), "{out:?}");
            assert_eq!(counted(&at("127.0.0.1:9587").unwrap()), (true, true, 1));
            assert_eq!(effect(&host), before);
            drop(held);
        }
        reloaded(&host, &with("listen = \"off\""));
        assert_eq!(at("127.0.0.1:9587"), None);
        reloaded(&host, &with("listen = \"127.0.0.1:9586\""));
        assert_eq!(counted(&at("127.0.0.1:9586").unwrap()), (true, true, 1));
        gateway.end();
    }
}

/// A client's tunnel goes on while the gateway's addresses change under it; what is refused brings them back.
#[test]
fn clients_reach_a_new_address_and_no_longer_the_old_one() {
    let Some(lab) = Lab::new() else { return };
    let host = lab.host("gateway");
    let client = client(&lab, &host, 0);
    let peers = peer("client", &client.public, &client_prefixes(0));
    let with = |addresses: &[&str]| content("", addresses, "listen = \"off\"", true) + &peers;
    let old = [format!("{GATEWAY_V4}/10"), format!("{GATEWAY_V6}/64")];
    let old = old.each_ref().map(String::as_str);
    let gateway = Appliance::start(&host, "wg0", &with(&old));
    meet(&client, &gateway.public_key(), None);
    must_reach(&client.host, GATEWAY_V4);
    let new = ["100.64.77.1/10", "fd64::77:1/64"];
    let answer = reloaded(&host, &with(&new));
    assert_eq!(answer["settings"][0]["key"], "addresses", "{answer}");
    for (there, gone) in [("100.64.77.1", GATEWAY_V4), ("fd64::77:1", GATEWAY_V6)] {
        must_reach(&client.host, there);
        assert_eq!(ping(&client.host, gone, 2, 56), 0);
    }

    // An address that the kernel does not take, and a route in the way: all is as before.
    let before = (effect(&host), state(&host));
    file(&host, "wg0.toml", &with(&[old[0], "224.0.0.1/32"]));
    let out = reload(&host, "");
    assert!(text(&out.stderr).contains("setting the address 224.0.0.1/32"), "{out:?}");
    assert_eq!((effect(&host), state(&host)), before);
    host.run("ip route add 10.2.0.0/16 dev lo");
    let before = (effect(&host), state(&host));
    let blocked = with(&["100.64.77.2/10", "fd64::77:1/96"])
        .replace("[[peer]]", "[[peer]]\nkeepalive = 7")
        .replace("allowed_ips = [", "allowed_ips = [\"10.2.0.0/16\", ");
    file(&host, "wg0.toml", &blocked);
    let out = reload(&host, "");
    assert!(text(&out.stderr).contains("there is a route to 10.2.0.0/16 already"), "{out:?}");
    assert_eq!((effect(&host), state(&host)), before);
    wait_until("the client has it back", SOON, || ping(&client.host, "fd64::77:1", 1, 56) == 1);
    gateway.end();
}

/// Moves the device away, gives it another MTU there, and sees packets answered that are too large for that one. A
/// route that promises more makes the network stack let them pass. The device lives as long as what is returned.
fn is_followed_elsewhere(lab: &Lab, host: &Host, client: &Peer) -> Arc<Host> {
    let inside = lab.host("inside");
    host.run(&format!("ip link set wg0 netns {}", holder_of(&inside.namespace)));
    inside.run("ip link set wg0 mtu 1300 up");
    inside.address("wg0", &format!("{GATEWAY_V4}/10"));
    inside.run(&format!("ip route add {}/32 dev wg0 mtu 1420", client_v4(0)));
    must_reach(&client.host, GATEWAY_V4);
    wait_until("the gateway answers for the new MTU", Duration::from_secs(40), || {
        ping(&inside, &client_v4(0), 1, 1400 - 28);
        let shown = host.run(&format!("{} show --json wg0", program()));
        let shown: Value = serde_json::from_str(&shown).unwrap();
        shown["dataplane"]["drops"]["too_large"].as_u64() > Some(0)
    });
    inside
}

/// Neither has what it takes to enter a namespace.
#[test]
fn the_mtu_of_a_device_in_another_namespace_is_followed() {
    let Some(lab) = Lab::new() else { return };
    let site = Plan::new(Implementation::ringway(), Implementation::WireguardGo).build(&lab);
    must_reach(&site.clients[0].host, GATEWAY_V4);
    let _inside = is_followed_elsewhere(&lab, &site.gateway.host, &site.clients[0]);

    let host = lab.host("gateway");
    let client = client(&lab, &host, 0);
    let file = content("user = \"nobody\"\n", &[&format!("{GATEWAY_V4}/10")], "listen = \"off\"", true);
    let gateway = Appliance::start(&host, "wg0", &(file + &peer("", &client.public, &client_prefixes(0))));
    meet(&client, &gateway.public_key(), None);
    must_reach(&client.host, GATEWAY_V4);
    let _inside = is_followed_elsewhere(&lab, &host, &client);
    gateway.end();
}
