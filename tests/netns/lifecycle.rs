//! A drop-in program: what starts it, what ends it, and what it survives.

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use crate::lab::{Lab, machine, wait_until};
use crate::peer::{Implementation, Peer, Remote, stranger};
use crate::topology::{
    CLIENT_PORT, GATEWAY_PORT, GATEWAY_V4, Outer, Plan, client_v4, connect, gateway_endpoint, introduce,
};
use crate::traffic::{must_reach, ping};

const SOON: Duration = Duration::from_secs(10);

fn alone(lab: &Lab) -> Peer {
    let host = lab.host("gateway");
    let peer = Peer::start(&host, Implementation::ringway(), "wg0", GATEWAY_PORT);
    peer.up(&["100.64.0.1/10"], 1420);
    peer
}

fn ends_cleanly(mut peer: Peer) {
    wait_until("the process has ended", SOON, || peer.exit_status().is_some());
    wait_until("the device is gone", SOON, || !peer.host.has_interface("wg0"));
    wait_until("the socket is gone", SOON, || !peer.socket().exists());
    if peer.implementation.is_ringway() {
        assert!(peer.exit_status().unwrap().success(), "{:?}", peer.exit_status());
    }
}

#[test]
fn sigterm_ends_it() {
    let Some(lab) = Lab::new() else { return };
    let peer = alone(&lab);
    peer.signal("TERM");
    ends_cleanly(peer);
}

#[test]
fn sigint_ends_it() {
    let Some(lab) = Lab::new() else { return };
    let peer = alone(&lab);
    peer.signal("INT");
    ends_cleanly(peer);
}

/// Without `-f` the command ends with 0 when the device can be configured, and with an error if it never will be.
#[test]
fn in_the_background_it_is_ready_when_the_command_ends() {
    let Some(lab) = Lab::new() else { return };
    if !Implementation::ringway().is_ringway() {
        return lab.skip("the other implementations are ready a moment later");
    }
    let host = lab.host("gateway");
    let program = Implementation::ringway().program();
    let start = || host.command(&program).arg("wg0").env("RINGWAY_WORKERS", "2").output().unwrap();
    let first = start();
    assert!(first.status.success(), "{first:?}");
    assert_ne!(host.run("wg show wg0 listen-port").trim(), "0");
    let second = start();
    let said = String::from_utf8_lossy(&second.stderr);
    assert!(!second.status.success() && said.contains("in use"), "{second:?}");
    host.run("wg show wg0");
    host.run("rm /var/run/wireguard/wg0.sock");
    wait_until("the device is gone", SOON, || !host.has_interface("wg0"));
}

#[test]
pub(crate) fn deletion_of_the_device_ends_it() {
    let Some(lab) = Lab::new() else { return };
    let peer = alone(&lab);
    peer.host.run("ip link delete wg0");
    ends_cleanly(peer);
}

#[test]
fn deletion_of_the_socket_ends_it() {
    let Some(lab) = Lab::new() else { return };
    let peer = alone(&lab);
    peer.host.run("rm /var/run/wireguard/wg0.sock");
    ends_cleanly(peer);
}

/// The bound of the issue: at start, with two workers, at most 64 MiB resident.
#[test]
fn memory_at_start_is_bounded() {
    let Some(lab) = Lab::new() else { return };
    let peer = alone(&lab);
    let resident = peer.resident();
    assert!((1..=64 * 1024).contains(&resident), "{resident} KiB");
}

#[test]
fn the_socket_is_for_root_alone() {
    let Some(lab) = Lab::new() else { return };
    let peer = alone(&lab);
    let mode = std::fs::metadata(peer.socket()).unwrap().permissions().mode();
    assert_eq!(mode & 0o077, 0, "{mode:o}");
}

#[test]
fn a_second_instance_on_the_port_is_refused() {
    let Some(lab) = Lab::new() else { return };
    let first = alone(&lab);
    let second = Peer::start(&first.host, Implementation::ringway(), "wg1", 0);
    // A port is bound while the interface is up (wireguard-go) or from the start.
    first.host.run("ip link set wg1 up");
    let out = second.host.attempt(&format!("wg set wg1 listen-port {GATEWAY_PORT}"));
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(!out.status.success() && said.contains("in use"), "{out:?}");
    assert_eq!(first.host.run("wg show wg0 listen-port").trim(), GATEWAY_PORT.to_string());
}

#[test]
fn a_device_moved_to_another_namespace_goes_on() {
    let Some(lab) = Lab::new() else { return };
    let mut site = Plan::new(Implementation::ringway(), Implementation::WireguardGo).build(&lab);
    must_reach(&site.clients[0].host, GATEWAY_V4);
    let inside = lab.host("inside");
    site.gateway.host.run(&format!("ip link set wg0 netns {}", holder_of(&inside.namespace)));
    inside.run("ip link set wg0 up");
    inside.address("wg0", &format!("{GATEWAY_V4}/10"));
    must_reach(&site.clients[0].host, GATEWAY_V4);
    must_reach(&inside, &client_v4(0));
    assert!(site.gateway.exit_status().is_none());
}

#[test]
fn link_down_and_mtu_changes_are_survived() {
    let Some(lab) = Lab::new() else { return };
    let mut site = Plan::new(Implementation::ringway(), Implementation::WireguardGo).build(&lab);
    let gateway = std::sync::Arc::clone(&site.gateway.host);
    must_reach(&site.clients[0].host, GATEWAY_V4);
    gateway.run("ip link set wg0 down");
    assert_eq!(ping(&site.clients[0].host, GATEWAY_V4, 5, 56), 0);
    if let Some(dropped) = site.gateway.drops(&["tun_link_down"]) {
        assert_eq!(dropped, 5, "what comes for a device that is down is counted");
    }
    gateway.run("ip link set wg0 mtu 1300 up");
    must_reach(&site.clients[0].host, GATEWAY_V4);
    gateway.run("ip link set wg0 mtu 1420");
    must_reach(&site.clients[0].host, GATEWAY_V4);
    assert!(site.gateway.exit_status().is_none());
}

#[test]
fn wg_quick_brings_it_up_and_down() {
    let Some(lab) = Lab::new() else { return };
    let site = Plan::new(Implementation::ringway(), Implementation::WireguardGo).build(&lab);
    let host = lab.host("client1");
    connect(&lab, &site.gateway.host, &host, 1, 1500);
    let private = machine("wg genkey");
    let public = host.run_with_input("wg pubkey", &private);
    site.gateway.set(&format!("peer {} allowed-ips 100.64.2.2/32", public.trim()));
    let file = host.run_file("wgq.conf");
    let text = format!(
        "[Interface]\nPrivateKey = {}\nAddress = 100.64.2.2/32\nMTU = 1400\n\
         [Peer]\nPublicKey = {}\nAllowedIPs = 100.64.0.0/10\nEndpoint = {}\n",
        private.trim(),
        site.gateway.public,
        gateway_endpoint(1, Outer::V4),
    );
    std::fs::File::create(&file).unwrap().write_all(text.as_bytes()).unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();

    let program = Implementation::ringway().program();
    // wg-quick prefers the kernel's module: a device type that cannot be made sends it to the program.
    let script = "ip() { [ \"$1 $2 $5\" = 'link add type' ] && return 1; command ip \"$@\"; }; export -f ip; \
         exec wg-quick \"$1\" /var/run/wgq.conf";
    let quick = |verb: &str| {
        let mut cmd = host.command("bash");
        cmd.args(["-c", script, "wg-quick", verb]);
        cmd.env("WG_QUICK_USERSPACE_IMPLEMENTATION", &program);
        cmd.env("WG_I_PREFER_BUGGY_USERSPACE_TO_POLISHED_KMOD", "1");
        let out = cmd.output().unwrap();
        assert!(out.status.success(), "wg-quick {verb}: {}", String::from_utf8_lossy(&out.stderr));
    };
    quick("up");
    must_reach(&host, GATEWAY_V4);
    quick("down");
    wait_until("the device is gone", SOON, || !host.has_interface("wgq"));
    let socket = host.run_file("wireguard/wgq.sock");
    wait_until("the socket is gone", SOON, || !socket.exists());
}

#[test]
fn a_host_without_ipv6_is_fine() {
    let Some(lab) = Lab::new() else { return };
    let (gateway_host, client_host) = (lab.host("gateway"), lab.host("client0"));
    lab.link((&gateway_host, "e0"), (&client_host, "e0"), 1500);
    gateway_host.run("sysctl -qw net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1");
    gateway_host.address("e0", "198.18.0.1/24");
    client_host.address("e0", "198.18.0.2/24");
    let gateway = Peer::start(&gateway_host, Implementation::ringway(), "wg0", GATEWAY_PORT);
    let client = Peer::start(&client_host, Implementation::WireguardGo, "wg0", CLIENT_PORT);
    gateway.up(&[&format!("{GATEWAY_V4}/10")], 1420);
    client.up(&[&format!("{}/10", client_v4(0))], 1420);
    introduce(&gateway, &client, 0, Outer::V4, None);
    must_reach(&client_host, GATEWAY_V4);
    // An endpoint that cannot be reached costs nothing else.
    gateway.know(&Remote {
        public: &stranger(),
        allowed: "100.64.9.9/32",
        endpoint: Some("[fd00:198:18:9::9]:9"),
        keepalive: Some(1),
        ..Remote::default()
    });
    assert_eq!(ping(&gateway_host, "100.64.9.9", 2, 56), 0);
    must_reach(&gateway_host, &client_v4(0));
}

/// `ip link set netns` takes a name only from `/run/netns`, which a host of ours does not see: a process does.
pub(crate) fn holder_of(namespace: &str) -> String {
    let pids = machine(&format!("ip netns pids {namespace}"));
    pids.lines().next().expect("the holder").to_owned()
}
