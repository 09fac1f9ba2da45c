use super::*;
use crate::sys::testing::{in_netns, ip};
use std::path::PathBuf;
use std::process::Command;

/// A directory in the place of `/run/ringway`, removed on drop.
pub(super) struct Run(pub(super) PathBuf);

impl Run {
    pub(super) fn new() -> Self {
        let thread = format!("{:?}", std::thread::current().id());
        let number: String = thread.chars().filter(char::is_ascii_digit).collect();
        Self(std::env::temp_dir().join(format!("ringway-run-{}-{number}", std::process::id())))
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// What a gateway with clients of both families asks for.
pub(super) fn rules(interface: &str) -> HostRules {
    let prefix = |address: &str, length| Prefix::new(address.parse().unwrap(), length).unwrap();
    HostRules {
        interface: interface.parse().unwrap(),
        listen_port: 51820,
        clients: vec![prefix("100.64.0.0", 10), prefix("fd64::", 64)],
        outer: vec!["198.18.0.1".parse().unwrap(), "fd00:198:18::1".parse().unwrap()],
        masquerade: true,
        client_to_client: false,
        services: vec![
            Service { transport: Transport::Udp, first: 53, last: 53 },
            Service { transport: Transport::Tcp, first: 8000, last: 8100 },
        ],
        forward: Forward::Routed,
    }
}

pub(super) fn ruleset() -> String {
    let output = Command::new("nft").args(["list", "ruleset"]).output().unwrap();
    assert!(output.status.success());
    String::from_utf8(output.stdout).unwrap()
}

/// An interface of that name, as good as a TUN device to nft and to sysctl.
pub(super) fn link(name: &str) {
    ip(&format!("link add {name} type veth peer name p{}", interface::index_of("lo").unwrap() + links()));
    ip(&format!("link set {name} up"));
}

fn links() -> u32 {
    std::fs::read_to_string("/proc/thread-self/net/dev").unwrap().lines().count() as u32
}

/// One of 32 choices of what may change while a gateway runs.
fn choice(number: u32, name: &str) -> HostRules {
    let mut rules = rules(name);
    rules.forward = Forward::Off;
    if number & 16 != 0 {
        // One that is not there: it may come.
        rules.forward = Forward::To(["eth0", "é{};+@.1"].map(|name| name.parse().unwrap()).into());
    }
    rules.masquerade = number & 1 != 0;
    rules.client_to_client = number & 2 != 0;
    if number & 4 != 0 {
        rules.services.clear();
    }
    if number & 8 != 0 {
        rules.clients.retain(|range| range.addr().is_ipv6());
    }
    rules
}

#[test]
fn every_choice_makes_rules_that_nft_takes_and_netlink_removes() {
    in_netns(|| {
        let run = Run::new();
        for name in ["wg0", "a\";drop{\\*", "fifteen-byte-é", "wg*"] {
            link(name);
            for number in 0..32 {
                let mut rules = choice(number, name);
                if number & 4 != 0 {
                    rules.outer.clear();
                }
                let (nat, apart) = (rules.masquerade, !rules.client_to_client);
                let (v4, services) = (number & 8 == 0, number & 4 == 0);
                let named = rules.forward != Forward::Off;
                let applied = rules.apply(&run.0).unwrap();
                let text = ruleset();
                assert!(text.contains(&format!("table inet {} {{", table::table_name(name))), "{text}");
                let sets = sets();
                let has = |set: &str| sets.iter().any(|line| line.starts_with(set));
                assert_eq!(has("masked_v4 { 100.64.0.0/10 }"), nat && v4, "{text}");
                assert_eq!(has("masked_v6 { fd64::/64 }"), nat, "{text}");
                assert_eq!((has("apart {"), has("bound {")), (apart, named), "{text}");
                assert_eq!(
                    has("services_tcp { 8000-8100 }") && has("services_udp { 53 }"),
                    services,
                    "{text}"
                );
                let both = has(r#"interfaces { "eth0", "#) || has(r#"interfaces { "é{};+@.1", "#);
                assert_eq!(both, named, "{text}");
                applied.undo();
                assert_eq!(ruleset(), "");
            }
        }
    });
}

/// What the kernel has after a change is what a new start would have loaded.
#[test]
fn rules_change_into_any_others_without_nft() {
    in_netns(|| {
        let run = Run::new();
        link("wg0");
        let fresh: Vec<String> = (0..32)
            .map(|number| {
                let applied = choice(number, "wg0").apply(&run.0).unwrap();
                let text = sorted_ruleset();
                applied.undo();
                text
            })
            .collect();
        let mut applied = choice(0, "wg0").apply(&run.0).unwrap();
        // Every bit is set and cleared, with each other bit set and clear.
        for number in (0..32).flat_map(|number| [number, 31 - number, number ^ 5]) {
            applied.change(choice(number, "wg0")).unwrap();
            assert_eq!(sorted_ruleset(), fresh[number as usize], "{number}");
        }
        applied.undo();
        assert_eq!(ruleset(), "");
    });
}

/// The ruleset with the elements of its sets in order, one by one.
fn sorted_ruleset() -> String {
    let text = ruleset().replace(",\n\t\t\t", ", ").replace(",\n", ", ");
    let line = |line: &str| match line.split_once("elements = { ") {
        Some((before, list)) => {
            let mut list: Vec<_> = list.trim_end_matches([' ', '}']).split(", ").map(str::trim).collect();
            list.sort_unstable();
            format!("{before}{list:?}")
        }
        None => line.to_owned(),
    };
    text.lines().map(line).collect::<Vec<_>>().join("\n")
}

#[test]
fn ranges_are_exchanged_for_narrower_and_wider_ones_and_for_thousands() {
    in_netns(|| {
        let run = Run::new();
        link("wg0");
        let prefixes =
            |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<Prefix>>();
        let many: Vec<Prefix> = (0..5000_u32)
            .flat_map(|n| {
                let v4 = std::net::Ipv4Addr::from_bits(0x6440_0000 + 2 * n);
                let v6 = std::net::Ipv6Addr::from_bits(0xfd64 << 112 | u128::from(2 * n));
                [(v4.into(), 32), (v6.into(), 128)]
            })
            .map(|(addr, length)| Prefix::new(addr, length).unwrap())
            .collect();
        let mut applied = rules("wg0").apply(&run.0).unwrap();
        for clients in [
            prefixes(&["100.64.0.0/24", "100.64.1.0/24", "100.64.2.7/32", "fd64::7/128"]),
            prefixes(&["100.64.0.0/23", "255.255.255.255/32", "fd64::/64", "ffff::/16"]),
            many,
            prefixes(&["128.0.0.0/1", "8000::/1"]),
            prefixes(&["0.0.0.0/0", "::/0"]),
            Vec::new(),
        ] {
            let wanted = HostRules { clients, ..rules("wg0") };
            applied.change(wanted.clone()).unwrap();
            let changed = sorted_ruleset();
            let text = table::ruleset(&wanted, interface::index_of("wg0").unwrap());
            nft::load(&text).unwrap();
            applied.listen_on(51820).unwrap();
            assert_eq!(changed, sorted_ruleset());
        }
        // Somebody took the table away: that is said, and what is in force is as before.
        nft::load("flush ruleset").unwrap();
        let error = applied.change(rules("wg0")).unwrap_err().to_string();
        assert!(error.contains("the sets of the table ringway_wg0"), "{error}");
    });
}

#[test]
fn a_second_gateway_of_that_name_is_refused_and_disturbs_nothing() {
    in_netns(|| {
        let run = Run::new();
        link("wg0");
        let first = rules("wg0").apply(&run.0).unwrap();
        let before = ruleset();
        assert!(matches!(rules("wg0").apply(&run.0), Err(MannersError::Running(_))));
        assert_eq!(ruleset(), before);
        first.undo();
        assert_eq!(ruleset(), "");
    });
}

#[test]
fn without_a_device_there_is_an_error_and_nothing_else() {
    in_netns(|| {
        let run = Run::new();
        assert!(matches!(rules("wg0").apply(&run.0), Err(MannersError::NoInterface(_))));
        assert!(!run.0.exists());
        assert_eq!(ruleset(), "");
    });
}

#[test]
fn what_nft_refuses_leaves_nothing() {
    in_netns(|| {
        let run = Run::new();
        link("wg0");
        let mut rules = rules("wg0");
        rules.services = vec![Service { transport: Transport::Udp, first: 7, last: 3 }];
        assert!(
            matches!(rules.apply(&run.0), Err(MannersError::Nft(NftError::Refused(said))) if said.contains("Error"))
        );
        assert_eq!(ruleset(), "");
        assert!(!run.0.join("wg0").exists());
    });
}

#[test]
fn deleting_a_table_that_is_not_there_is_no_error_and_others_stay() {
    in_netns(|| {
        nft::load("table inet ringway_other {\n}\n").unwrap();
        Tables::open().unwrap().delete("ringway_wg0").unwrap();
        assert!(ruleset().contains("ringway_other"));
    });
}

/// The sets that hold something, by name.
fn sets() -> Vec<String> {
    let text = ruleset().replace(",\n", ", ").replace(", \t\t\t     ", ", ");
    let mut sets = Vec::new();
    let mut name = "";
    for line in text.lines().map(str::trim) {
        if let Some(set) = line.strip_prefix("set ").and_then(|rest| rest.strip_suffix(" {")) {
            name = set;
        } else if let Some(elements) = line.strip_prefix("elements = ") {
            sets.push(format!("{name} {elements}"));
        }
    }
    sets
}

/// The sets that follow the listen port.
fn port_sets() -> Vec<String> {
    let mut sets = sets();
    sets.retain(|set| ["listen ", "lower ", "upper "].iter().any(|name| set.starts_with(name)));
    sets
}

#[test]
fn the_rules_follow_the_listen_port_without_nft() {
    in_netns(|| {
        let run = Run::new();
        link("wg0");
        let mut rules = rules("wg0");
        rules.forward = Forward::Off;
        let again = table::ruleset(&rules, interface::index_of("wg0").unwrap());
        let applied = rules.apply(&run.0).unwrap();
        assert_eq!(port_sets(), ["listen { 51820 }"]);
        let text = ruleset();
        assert!(text.contains("meta l4proto @lower masquerade to :1024-26421"), "{text}");
        assert!(text.contains("meta l4proto @upper masquerade to :26422-51819"), "{text}");
        assert!(text.contains("meta l4proto udp masquerade to :1024-51819"), "{text}");
        for (port, half) in [(443, ""), (26421, "upper { udp }"), (26422, "lower { udp }"), (60000, "")] {
            applied.listen_on(port).unwrap();
            let mut expected = vec![format!("listen {{ {port} }}")];
            expected.extend((!half.is_empty()).then(|| half.to_owned()));
            assert_eq!(port_sets(), expected);
        }
        // Somebody took the table away: that is said, each time.
        nft::load("flush ruleset").unwrap();
        for _ in 0..2 {
            let error = applied.listen_on(7).unwrap_err().to_string();
            assert!(error.contains("the listen port 7 in the table ringway_wg0"), "{error}");
        }
        // And nothing of it later.
        nft::load(&again).unwrap();
        applied.listen_on(8).unwrap();
        assert_eq!(port_sets(), ["listen { 8 }"]);
        applied.undo();
    });
}
