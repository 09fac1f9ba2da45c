use super::*;
use crate::net::manners::clean_leftovers;
use crate::net::manners::record::Records;
use crate::net::manners::tests::{Run, link, rules};
use crate::sys::testing::{eventually, in_netns, ip};
use socket2::{Domain, Protocol, Socket, Type};
use std::net::{Ipv6Addr, SocketAddrV6};

fn value(family: Family, interface: &str, key: &str) -> String {
    Parameter::of(family, interface, key).unwrap().read().unwrap().unwrap()
}

fn set(family: Family, interface: &str, key: &str, value: &str) {
    Parameter::of(family, interface, key).unwrap().write(value).unwrap();
}

/// All that this module could change.
fn all() -> Vec<(Parameter, Option<String>)> {
    let mut values = Vec::new();
    for family in [Family::V4, Family::V6] {
        for interface in Parameter::interfaces(family) {
            for key in ["forwarding", "force_forwarding", "accept_ra"] {
                let parameter = Parameter::of(family, &interface, key).unwrap();
                values.push((parameter.clone(), parameter.read().unwrap()));
            }
        }
    }
    values.sort();
    values
}

fn start(run: &Run, interface: &str) -> Forwarding {
    let rules = rules(interface);
    let record = Records::open(&run.0).unwrap().begin(&rules.interface).unwrap();
    let mut forwarding = Forwarding::new(record, run.0.clone());
    forwarding.follow(&rules).unwrap();
    forwarding
}

/// As [`start`], on a kernel without `force_forwarding`.
fn start_globally(run: &Run, interface: &str) -> Forwarding {
    let rules = rules(interface);
    let all = Records::open(&run.0).unwrap();
    let record = all.begin(&rules.interface).unwrap();
    let others = all.needed_by_others(Some(interface)).unwrap();
    let mut forwarding = Forwarding::new(record, run.0.clone());
    let mut wanted = Vec::new();
    wanted_v6(&rules, false, &others, &mut wanted).unwrap();
    forwarding.switch(wanted, &others).unwrap();
    forwarding
}

/// Two tunnels, an uplink with routes of both families, and a link without any.
fn host() {
    set(Family::V6, "default", "accept_dad", "0");
    ["wg0", "wg1", "up0", "idle"].into_iter().for_each(link);
    ip("address add 198.18.0.1/24 dev up0");
    ip("address add fd00:198:18::1/64 dev up0");
}

#[test]
fn the_interfaces_that_need_it_forward_and_ip_forward_stays() {
    in_netns(|| {
        host();
        let (run, before) = (Run::new(), all());
        let forwarding = start(&run, "wg0");
        let by_interface = Parameter::of(Family::V6, "all", "force_forwarding").unwrap().read().unwrap();
        for (interface, on) in [("wg0", "1"), ("up0", "1"), ("idle", "0"), ("wg1", "0"), ("all", "0")] {
            assert_eq!(value(Family::V4, interface, "forwarding"), on, "{interface}");
            if by_interface.is_some() {
                assert_eq!(value(Family::V6, interface, "force_forwarding"), on, "{interface}");
                assert_eq!(value(Family::V6, interface, "forwarding"), "0", "{interface}");
            }
        }
        forwarding.undo("wg0");
        // The tunnel's own end with the tunnel.
        set(Family::V4, "wg0", "forwarding", "0");
        if by_interface.is_some() {
            set(Family::V6, "wg0", "force_forwarding", "0");
        }
        assert_eq!(all(), before);
    });
}

#[test]
fn what_was_on_stays_on() {
    in_netns(|| {
        host();
        set(Family::V4, "all", "forwarding", "1");
        set(Family::V6, "all", "forwarding", "1");
        let (run, before) = (Run::new(), all());
        let forwarding = start(&run, "wg0");
        assert_eq!(all(), before, "nothing is needed");
        forwarding.undo("wg0");
        assert_eq!(all(), before);
    });
}

#[test]
fn the_last_gateway_switches_off_in_either_order() {
    in_netns(|| {
        host();
        let run = Run::new();
        for (first, last) in [("wg0", "wg1"), ("wg1", "wg0")] {
            let gateways = [start(&run, "wg0"), start(&run, "wg1")].map(Some);
            let [mut wg0, mut wg1] = gateways;
            let mut end = |name| if name == "wg0" { wg0.take() } else { wg1.take() }.unwrap().undo(name);
            end(first);
            assert_eq!(value(Family::V4, "up0", "forwarding"), "1", "{last} needs it");
            end(last);
            assert_eq!(value(Family::V4, "up0", "forwarding"), "0", "nobody needs it");
        }
    });
}

#[test]
fn a_killed_gateway_is_cleaned_up_after_unless_another_needs_the_same() {
    in_netns(|| {
        host();
        let run = Run::new();
        // Dropped without an end: its lock is free, its record is there.
        drop(start(&run, "wg0"));
        assert_eq!(value(Family::V4, "up0", "forwarding"), "1");
        let cleaned = eventually(|| Some(clean_leftovers(&run.0).unwrap()).filter(|names| !names.is_empty()));
        assert_eq!(cleaned, ["wg0"]);
        assert_eq!(value(Family::V4, "up0", "forwarding"), "0");

        let (killed, living) = (start(&run, "wg0"), start(&run, "wg1"));
        drop(killed);
        eventually(|| Some(clean_leftovers(&run.0).unwrap()).filter(|names| !names.is_empty()));
        assert_eq!(value(Family::V4, "up0", "forwarding"), "1", "wg1 lives");
        living.undo("wg1");
        assert_eq!(value(Family::V4, "up0", "forwarding"), "0");
    });
}

#[test]
fn what_somebody_changed_meanwhile_is_his() {
    in_netns(|| {
        host();
        let run = Run::new();
        set(Family::V4, "up0", "forwarding", "0");
        let forwarding = start(&run, "wg0");
        ip("address flush dev up0");
        // Neither what we set nor what we found.
        set(Family::V4, "up0", "forwarding", "2");
        set(Family::V4, "idle", "forwarding", "1");
        forwarding.undo("wg0");
        assert_eq!(value(Family::V4, "idle", "forwarding"), "1");
        assert_eq!(value(Family::V4, "up0", "forwarding"), "2");
    });
}

#[test]
fn a_new_route_is_followed_and_taken_back() {
    in_netns(|| {
        host();
        let run = Run::new();
        let mut forwarding = start(&run, "wg0");
        ip("address add 198.19.0.1/24 dev idle");
        forwarding.follow(&rules("wg0")).unwrap();
        assert_eq!(value(Family::V4, "idle", "forwarding"), "1");
        forwarding.undo("wg0");
        assert_eq!(value(Family::V4, "idle", "forwarding"), "0");
    });
}

#[test]
fn only_named_interfaces_forward_if_there_are_names() {
    in_netns(|| {
        host();
        let run = Run::new();
        let mut rules = rules("wg0");
        rules.forward = Forward::To(vec!["idle".parse().unwrap()]);
        let record = Records::open(&run.0).unwrap().begin(&rules.interface).unwrap();
        let mut forwarding = Forwarding::new(record, run.0.clone());
        forwarding.follow(&rules).unwrap();
        assert_eq!(value(Family::V4, "up0", "forwarding"), "0");
        assert_eq!(value(Family::V4, "idle", "forwarding"), "1");
    });
}

/// A record that its owner, or whoever broke into it, wrote at will.
#[test]
fn a_record_names_nothing_but_forwarding() {
    in_netns(|| {
        host();
        let run = Run::new();
        drop(start(&run, "wg0"));
        let path = run.0.join("wg0/undo");
        let text = fs::read_to_string(&path).unwrap();
        let forged = "ipv4/conf/up0/rp_filter 2 0\nipv4/conf/../../core/somaxconn 1 4096\nrubbish\n\
                      ipv4/conf/idle/forwarding 7 0\n";
        fs::write(&path, text + forged).unwrap();
        set(Family::V4, "up0", "rp_filter", "0");
        eventually(|| Some(clean_leftovers(&run.0).unwrap()).filter(|names| !names.is_empty()));
        assert_eq!(value(Family::V4, "up0", "rp_filter"), "0");
        assert_eq!(value(Family::V4, "idle", "forwarding"), "0");
        assert_eq!(value(Family::V4, "up0", "forwarding"), "0", "the honest line counts");
    });
}

#[test]
fn records_of_another_namespace_are_left_alone() {
    in_netns(|| {
        host();
        let run = Run::new();
        drop(start(&run, "wg0"));
        let path = run.0.join("wg0/undo");
        let text = fs::read_to_string(&path).unwrap();
        fs::write(&path, format!("1:1\n{}", text.split_once('\n').unwrap().1)).unwrap();
        assert!(clean_leftovers(&run.0).unwrap().is_empty());
        assert_eq!(value(Family::V4, "up0", "forwarding"), "1");
    });
}

/// A router advertisement (RFC 4861, section 4.2) out of one end of a veth pair, for the other.
fn advertise(from: &str) {
    let raw = Socket::new(Domain::IPV6, Type::RAW, Some(Protocol::ICMPV6)).unwrap();
    let index = crate::sys::interface::index_of(from).unwrap();
    raw.set_multicast_if_v6(index).unwrap();
    raw.set_multicast_hops_v6(255).unwrap();
    let mut message = [0; 16];
    message[0] = 134;
    message[4] = 64;
    message[6..8].copy_from_slice(&1800u16.to_be_bytes());
    let everybody = SocketAddrV6::new(Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1), 0, 0, index);
    // Fails as long as the link has no address.
    let _ = raw.send_to(&message, &everybody.into());
}

/// A kernel before 6.17: the switch is global, and takes advertised default routes away.
#[test]
fn an_advertised_default_route_outlives_the_global_switch() {
    in_netns(|| {
        host();
        ip("link add ra0 type veth peer name ra1");
        for end in ["ra0", "ra1"] {
            set(Family::V6, end, "accept_ra_from_local", "1");
            ip(&format!("link set {end} up"));
        }
        // Making an interface a router takes such routes away as well.
        set(Family::V6, "idle", "forwarding", "1");
        let routed = || advertised(&proc_net("ipv6_route").unwrap()).contains("ra1");
        eventually(|| {
            advertise("ra0");
            routed().then_some(())
        });
        let (run, before) = (Run::new(), all());
        start(&run, "wg0").undo("wg0");
        assert!(routed(), "force_forwarding takes it away");
        set(Family::V4, "wg0", "forwarding", "0");
        set(Family::V6, "wg0", "force_forwarding", "0");
        assert_eq!(all(), before);
        let first = start_globally(&run, "wg0");
        assert!(routed(), "the default route is gone");
        assert_eq!(value(Family::V6, "ra1", "accept_ra"), "2");
        assert_eq!(value(Family::V6, "wg0", "forwarding"), "1");
        let last = start_globally(&run, "wg1");
        first.undo("wg0");
        assert_eq!(value(Family::V6, "all", "forwarding"), "1", "wg1 needs it");
        last.undo("wg1");
        assert_eq!(all(), before);
        assert!(routed(), "the default route is gone at the end");
        // Somebody who minds the advertisements himself goes on.
        set(Family::V6, "ra1", "accept_ra", "0");
        let forwarding = start_globally(&run, "wg0");
        assert_eq!(value(Family::V6, "ra1", "accept_ra"), "0");
        forwarding.undo("wg0");
    });
}

#[test]
fn tables_of_routes_are_read_and_rubbish_is_not() {
    let v4 = "Iface\tDestination\tGateway \tFlags\tRefCnt\neth0\t00000000\t0101A8C0\t0003\t0\t0\n\
              lo\t0000007F\t00000000\t0001\ndead\t0000000A\t0\t0201\nx\nodd\t0\t0\tzz\n";
    assert_eq!(routed_v4(v4).into_iter().collect::<Vec<_>>(), ["eth0"]);
    let line = |destination: &str, flags: u32, name| {
        format!(
            "{destination:0<32} 00 {:032} 00 {:032} 00000400 00000001 00000000 {flags:08x} {name}\n",
            0, 0
        )
    };
    let v6 = [
        line("", UP | DEFAULT | ADDRCONF, "ra"),
        line("fd", UP, "net"),
        line("fe8", UP, "link"),
        line("ff", UP, "multicast"),
        line("fd", UP | LOCAL, "own"),
        line("fd", UP | REJECT, "none"),
        line("fd", UP, "lo"),
        "short\n".to_owned(),
    ]
    .concat();
    assert_eq!(routed_v6(&v6).into_iter().collect::<Vec<_>>(), ["net", "ra"]);
    assert_eq!(advertised(&v6).into_iter().collect::<Vec<_>>(), ["ra"]);
}

#[test]
fn forwarding_that_is_switched_off_is_as_it_was_found_and_comes_back() {
    in_netns(|| {
        host();
        let (run, before) = (Run::new(), all());
        let mut forwarding = start(&run, "wg0");
        let on = all();
        let mut off = rules("wg0");
        off.forward = Forward::Off;
        for _ in 0..2 {
            forwarding.follow(&off).unwrap();
            assert_eq!(all(), before);
            forwarding.follow(&off).unwrap();
            assert_eq!(fs::read_to_string(run.0.join("wg0/undo")).unwrap().lines().count(), 1);
            forwarding.follow(&rules("wg0")).unwrap();
            assert_eq!(all(), on);
        }
        // Killed in either state.
        drop(forwarding);
        eventually(|| Some(clean_leftovers(&run.0).unwrap()).filter(|names| !names.is_empty()));
        assert_eq!(value(Family::V4, "up0", "forwarding"), "0");
        let mut forwarding = start(&run, "wg0");
        forwarding.follow(&off).unwrap();
        set(Family::V4, "up0", "forwarding", "1");
        drop(forwarding);
        eventually(|| Some(clean_leftovers(&run.0).unwrap()).filter(|names| !names.is_empty()));
        assert_eq!(value(Family::V4, "up0", "forwarding"), "1", "somebody else's");
    });
}

#[test]
fn forwarding_that_another_gateway_needs_stays_on() {
    in_netns(|| {
        host();
        let run = Run::new();
        let (mut wg0, wg1) = (start(&run, "wg0"), start(&run, "wg1"));
        let mut off = rules("wg0");
        off.forward = Forward::Off;
        wg0.follow(&off).unwrap();
        let on = |interface| value(Family::V4, interface, "forwarding");
        assert_eq!([on("wg0"), on("up0"), on("wg1")], ["0", "1", "1"]);
        wg1.undo("wg1");
        assert_eq!(on("up0"), "0");
    });
}

/// A gateway that sees routes over another's tunnel before that one has switched it on.
#[test]
fn the_tunnel_of_a_gateway_that_goes_on_keeps_forwarding() {
    in_netns(|| {
        host();
        let run = Run::new();
        ip("address add 100.64.1.1/24 dev wg1");
        let wg0 = start(&run, "wg0");
        assert_eq!(value(Family::V4, "wg1", "forwarding"), "1");
        let wg1 = start(&run, "wg1");
        wg0.undo("wg0");
        assert_eq!(value(Family::V4, "wg1", "forwarding"), "1");
        wg1.undo("wg1");
        assert_eq!(value(Family::V4, "wg1", "forwarding"), "0");
    });
}
