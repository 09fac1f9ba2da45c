//! The same, by poll: what other modules test with io_uring, and what happens where that is forbidden. `interop` has
//! each of its tests by poll as well; here stands what else touches waiting and receiving. `RINGWAY_IO=poll` in the
//! environment runs everything this way.

use std::process::Stdio;
use std::time::Duration;

use crate::dropin::{forbidden_ring, program, text};
use crate::lab::{Lab, machine, wait_until};
use crate::peer::Implementation::{Ringway, WireguardGo};
use crate::peer::{Peer, by_poll};
use crate::topology::{GATEWAY_PORT, GATEWAY_V4, Plan, client_v4};
use crate::traffic::{Flow, Way, must_reach};
use crate::{
    appliance, dataplane, edits, forwarding, hostile, interop, lifecycle, manners, metrics, offload, reload,
};

/// Declares tests by what they run.
macro_rules! again {
    ($($name:ident: $test:expr;)*) => { $(#[test] fn $name() { by_poll(|| $test); })* };
}

again! {
    order_with_ringway_at_both_ends: interop::order_is_kept_with_ringway_at_both_ends();
    a_peer_that_has_everything_is_never_handed_over: dataplane::a_peer_that_has_everything_is_never_handed_over();
    a_sites_subnets_land_on_its_owner: dataplane::a_sites_subnets_land_on_its_owner();
    a_full_socket_drops_and_reorders_nothing: dataplane::a_full_socket_drops_and_reorders_nothing();
    a_device_that_refuses_segments_gets_plain_datagrams:
        dataplane::a_device_that_refuses_segments_gets_plain_datagrams();
    a_smaller_link_costs_its_own_endpoint_the_offload:
        dataplane::a_smaller_link_costs_its_own_endpoint_the_offload();
    offloads_are_switched_under_traffic: offload::offloads_are_switched_under_traffic();
    a_listen_port_changes_under_load: edits::a_listen_port_changes_under_load();
    deletion_of_the_device_ends_it: lifecycle::deletion_of_the_device_ends_it();
    replayed_datagrams_are_refused: hostile::replayed_datagrams_are_refused();
    forwarded_super_packets_stay_whole: forwarding::forwarded_super_packets_stay_whole();
    a_gateway_of_one_file_carries_traffic_and_routes: appliance::a_gateway_of_one_file_carries_traffic_and_routes();
    two_gateways_on_one_host_do_not_know_each_other: appliance::two_gateways_on_one_host_do_not_know_each_other();
    whatever_ends_it_the_host_is_as_before: appliance::whatever_ends_it_the_host_is_as_before();
    clients_leave_masqueraded_and_reach_of_the_host_what_services_name:
        manners::clients_leave_masqueraded_and_reach_of_the_host_what_services_name();
    clients_reach_each_other_only_by_choice_and_then_as_themselves:
        manners::clients_reach_each_other_only_by_choice_and_then_as_themselves();
    no_client_captures_the_datagrams_of_another: manners::no_client_captures_the_datagrams_of_another();
    the_tunnel_does_not_carry_itself: manners::the_tunnel_does_not_carry_itself();
    a_new_listen_port_is_in_the_rules_at_once: manners::a_new_listen_port_is_in_the_rules_at_once();
    a_confined_appliance_is_seen_and_switched: metrics::a_confined_appliance_is_seen_and_switched();
    others_come_and_go_and_a_client_loses_no_packet: reload::others_come_and_go_and_a_client_loses_no_packet();
}

/// What a peer waits with, and whether its counters say the same.
fn waits_with_poll(peer: &Peer) -> (serde_json::Value, bool) {
    let mut report = peer.report().expect("Ringway");
    let (polls, enters) = (peer.counter("ringway_polls_total"), peer.counter("ringway_ring_enters_total"));
    (report["io"].take(), polls > Some(0) && enters == Some(0))
}

#[test]
fn it_is_poll_that_is_tested() {
    let Some(lab) = Lab::new() else { return };
    let own = Ringway { workers: 2 };
    by_poll(|| {
        let site = Plan::new(own, own).build(&lab);
        must_reach(&site.clients[0].host, GATEWAY_V4);
        let (io, counted) = waits_with_poll(&site.gateway);
        assert_eq!(io, serde_json::json!({ "kind": "poll", "reason": null }));
        assert!(counted);
    });
}

/// No processor time while nothing happens.
#[test]
fn idle_costs_nothing() {
    let Some(lab) = Lab::with_traffic() else { return };
    let peer = {
        let host = lab.host("alone");
        let variables = [("RINGWAY_IO", "poll")];
        Peer::start_with(&host, Ringway { workers: 2 }, "wg0", GATEWAY_PORT, &variables)
    };
    peer.up(&[&format!("{GATEWAY_V4}/10")], 1420);
    std::thread::sleep(Duration::from_secs(1));
    let seen = || (peer.counter("ringway_turns_total").unwrap(), ticks(&peer));
    let before = seen();
    std::thread::sleep(Duration::from_secs(3));
    let after = seen();
    // Each look at the counters is a turn or two of both workers.
    assert!(after.0 - before.0 < 30, "turns and ticks: {before:?}, {after:?}");
    assert!(after.1 - before.1 <= 3, "turns and ticks: {before:?}, {after:?}");
}

/// Processor time of a peer in ticks of 10 ms: fields 14 and 15 of its stat, after the name in brackets.
fn ticks(peer: &Peer) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", peer.pid())).unwrap();
    let fields = stat.rsplit(") ").next().unwrap().split_whitespace();
    fields.skip(11).take(2).map(|field| field.parse::<u64>().unwrap()).sum()
}

/// A filter forbids io_uring, as container engines do: poll takes its place by itself, says why, and carries traffic.
#[test]
fn where_io_uring_is_forbidden_poll_takes_its_place() {
    let Some(lab) = Lab::with_traffic() else { return };
    let host = lab.host("gateway");
    let words = forbidden_ring("1");
    let launcher: Vec<_> = words.iter().map(String::as_str).collect();
    let gateway = Ringway { workers: 2 };
    let choice = [("RINGWAY_IO", "auto")];
    let gateway = Peer::start_through(&host, gateway, "wg0", GATEWAY_PORT, &choice, &launcher);
    gateway.up(&[&format!("{GATEWAY_V4}/10"), "fd64::1/64"], 1420);
    let client = Plan::new(Ringway { workers: 2 }, WireguardGo).client(&lab, &gateway, 0);
    must_reach(&client.host, GATEWAY_V4);
    must_reach(&host, &client_v4(0));
    for way in [Way::Up, Way::Down] {
        let report = Flow { way, seconds: 1, ..Flow::tcp(&client.host, &host, GATEWAY_V4) }.run();
        assert!(report.rate > 20e6, "{way:?}: {report:?}");
    }
    let (io, counted) = waits_with_poll(&gateway);
    assert_eq!(io["kind"], "poll");
    assert!(io["reason"].as_str().unwrap().contains("seccomp"), "{io}");
    assert!(counted);
    let shown = host.run(&format!("{} show wg0", program()));
    assert!(shown.contains("\n  io: poll (io_uring is forbidden by a seccomp filter"), "{shown}");
}

#[test]
fn the_fall_back_is_said_once_and_a_wish_for_poll_is_not() {
    let Some(lab) = Lab::new() else { return };
    let host = lab.host("alone");
    let said = |io: &str| {
        let words = forbidden_ring("38");
        let mut cmd = host.command(&words[0]);
        cmd.args(&words[1..]).args([&program(), "-f", "wg9"]);
        cmd.envs([("LOG_LEVEL", "info"), ("RINGWAY_WORKERS", "3"), ("RINGWAY_IO", io)]);
        let child = cmd.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let socket = host.run_file("wireguard/wg9.sock");
        wait_until("the socket is there", Duration::from_secs(10), || socket.exists());
        machine(&format!("kill -TERM {}", child.id()));
        let out = child.wait_with_output().unwrap();
        assert!(out.status.success(), "{out:?}");
        text(&out.stderr)
    };
    let log = said("auto");
    assert_eq!(log.matches("poll takes the place of io_uring").count(), 1, "{log}");
    assert!(log.contains("allow io_uring_setup"), "{log}");
    assert!(!said("poll").contains("io_uring"));
}
