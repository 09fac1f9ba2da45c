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

#[test]
fn every_choice_makes_rules_that_nft_takes_and_netlink_removes() {
    in_netns(|| {
        let run = Run::new();
        for name in ["wg0", "a\";drop{\\*", "fifteen-byte-é", "wg*"] {
            link(name);
            for choice in 0..32 {
                let mut rules = rules(name);
                rules.forward = Forward::Off;
                if choice & 16 != 0 {
                    // One that is not there: it may come.
                    rules.forward =
                        Forward::To(["eth0", "é{};+@.1"].map(|name| name.parse().unwrap()).into());
                }
                rules.masquerade = choice & 1 != 0;
                rules.client_to_client = choice & 2 != 0;
                if choice & 4 != 0 {
                    rules.services.clear();
                    rules.outer.clear();
                }
                if choice & 8 != 0 {
                    rules.clients.retain(|range| range.addr().is_ipv6());
                }
                let (nat, c2c) = (rules.masquerade, rules.client_to_client);
                let named = rules.forward != Forward::Off;
                let applied = rules.apply(&run.0).unwrap();
                let text = ruleset();
                assert!(text.contains(&format!("table inet {} {{", nft::table_name(name))), "{text}");
                assert_eq!(text.contains("type nat hook postrouting"), nat, "{text}");
                assert_eq!(text.contains("client_to_client"), !c2c, "{text}");
                assert_eq!(
                    text.matches(r#"{ "eth0", "é{};+@.1" }"#).count(),
                    if named { 2 } else { 0 },
                    "{text}"
                );
                applied.undo();
                assert_eq!(ruleset(), "");
            }
        }
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
        assert!(matches!(rules.apply(&run.0), Err(MannersError::Nft(said)) if said.contains("Error")));
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

/// The sets of the table `ringway_wg0` that hold something, by name.
fn sets() -> Vec<String> {
    let text = ruleset();
    let mut lines = text.lines().map(str::trim);
    let mut sets = Vec::new();
    while let Some(line) = lines.next() {
        if let Some(name) = line.strip_prefix("set ").and_then(|rest| rest.strip_suffix(" {"))
            && let Some(elements) = lines.nth(1).and_then(|line| line.strip_prefix("elements = "))
        {
            sets.push(format!("{name} {elements}"));
        }
    }
    sets
}

#[test]
fn the_rules_follow_the_listen_port_without_nft() {
    in_netns(|| {
        let run = Run::new();
        link("wg0");
        let mut rules = rules("wg0");
        rules.forward = Forward::Off;
        let again = nft::ruleset(&rules, interface::index_of("wg0").unwrap());
        let applied = rules.apply(&run.0).unwrap();
        assert_eq!(sets(), ["listen { 51820 }"]);
        let text = ruleset();
        assert!(text.contains("meta l4proto @lower masquerade to :1024-26421"), "{text}");
        assert!(text.contains("meta l4proto @upper masquerade to :26422-51819"), "{text}");
        assert!(text.contains("meta l4proto udp masquerade to :1024-51819"), "{text}");
        for (port, half) in [(443, ""), (26421, "upper { udp }"), (26422, "lower { udp }"), (60000, "")] {
            applied.listen_on(port).unwrap();
            let mut expected = vec![format!("listen {{ {port} }}")];
            expected.extend((!half.is_empty()).then(|| half.to_owned()));
            assert_eq!(sets(), expected);
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
        assert_eq!(sets(), ["listen { 8 }"]);
        applied.undo();
    });
}
