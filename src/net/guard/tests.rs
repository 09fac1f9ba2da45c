use std::process::Command;
use std::time::Duration;

use super::*;
use crate::sys::poll;
use crate::sys::testing::{eventually, in_netns, ip};

fn options(tunnel: &str) -> Options {
    Options {
        tunnel: tunnel.parse().unwrap(),
        mark: Mark(51820),
        addresses: ["100.64.0.2", "fd64::2"].map(|text| text.parse().unwrap()).into(),
        stays: false,
        local_network: false,
        excluded: Vec::new(),
    }
}

fn nft(arguments: &str) -> String {
    let output = Command::new("nft").args(arguments.split_whitespace()).output().unwrap();
    assert!(output.status.success(), "nft {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// A raised guard with rules for frames, or as in a kernel without their hook.
fn raise_with(options: &Options, frames: bool) -> Guard {
    let stop = EventFd::new().unwrap();
    let watch = Watch::open(stop.clone()).unwrap();
    let rules = Arc::new(Mutex::new(Rules::load_with(options, frames).unwrap()));
    let watched = Arc::clone(&rules);
    Guard { rules, stop, watch: Some(std::thread::spawn(move || watch.run(&watched, &|| false))) }
}

#[test]
fn every_choice_makes_rules_that_nft_takes_and_that_go_again() {
    in_netns(|| {
        ip("link add one type veth peer name other");
        for tunnel in ["wg0", "a;drop{", "fifteen-byte-é", "-x"] {
            for frames in [true, false] {
                for local_network in [false, true] {
                    for addresses in [vec![], options(tunnel).addresses, vec!["::1".parse().unwrap(); 2]] {
                        // One within the other.
                        let excluded =
                            ["10.1.0.0/16", "10.0.0.0/8", "fd00::/8"].map(|text| text.parse().unwrap());
                        let excluded = if frames { excluded.into() } else { Vec::new() };
                        let options = Options { addresses, local_network, excluded, ..options(tunnel) };
                        let rules = Rules::load_with(&options, frames).unwrap();
                        let text = nft("list ruleset");
                        for of in ["table inet ringway-guard_", "table netdev ringway-guard_"] {
                            assert_eq!(text.contains(of), frames || of.contains("inet"));
                        }
                        rules.delete().unwrap();
                        assert_eq!(nft("list ruleset"), "");
                    }
                }
            }
        }
    });
}

#[test]
fn this_kernel_has_the_hook_and_a_dropped_guard_stays_raised() {
    in_netns(|| {
        let guard = Guard::raise(&options("wg0")).unwrap();
        assert!(guard.covers_links());
        drop(guard);
        let other = options("wg1");
        Guard::raise(&other).unwrap().lower().unwrap();
        let text = nft("list ruleset");
        assert!(text.contains("table inet ringway-guard_wg0") && !text.contains("wg1"), "{text}");
        // The next one takes its place.
        drop(Guard::raise(&Options { addresses: vec![], ..options("wg0") }).unwrap());
        assert!(!nft("list ruleset").contains("fd64::2"));
        lower_leftovers(&other.tunnel).unwrap();
        assert!(nft("list ruleset").contains("table netdev ringway-guard_wg0"));
        lower_leftovers(&options("wg0").tunnel).unwrap();
        assert_eq!(nft("list ruleset"), "");
    });
}

#[test]
fn what_cannot_be_named_or_told_apart_is_refused() {
    in_netns(|| {
        for name in ["wg*", "w\"g", "w\\g"] {
            assert!(matches!(Guard::raise(&options(name)), Err(GuardError::Name(_))), "{name}");
        }
        let unmarked = Options { mark: Mark(0), ..options("wg0") };
        assert!(matches!(Guard::raise(&unmarked), Err(GuardError::NoMark)));
        let guard = Guard::raise(&options("wg0")).unwrap();
        assert!(matches!(guard.change(&unmarked), Err(GuardError::NoMark)));
        assert_eq!(nft("list ruleset").matches("fd64::2").count(), 2, "it is as it was");
        guard.lower().unwrap();
    });
}

#[test]
fn whatever_a_stranger_does_to_the_rules_is_undone() {
    in_netns(|| {
        ip("link add one type veth peer name other");
        nft("add table inet mine");
        for frames in [true, false] {
            let guard = raise_with(&options("wg0"), frames);
            // The watch starts with the notices of our own load; none of them counts.
            guard.change(&options("wg0")).unwrap();
            let whole = nft("list table inet ringway-guard_wg0");
            let mut restored = 0;
            for blow in [
                "flush ruleset",
                "delete table inet ringway-guard_wg0",
                "flush table inet ringway-guard_wg0",
                "flush chain inet ringway-guard_wg0 sent",
                "insert rule inet ringway-guard_wg0 sent accept",
                "add element inet ringway-guard_wg0 tunnel_v4 { 198.18.0.1 }",
                "delete table netdev ringway-guard_wg0",
                "insert rule netdev ringway-guard_wg0 leaving accept",
            ] {
                if !frames && blow.contains("netdev") {
                    continue;
                }
                nft(blow);
                restored += 1;
                eventually(|| (guard.restored() == restored).then_some(()));
                if frames {
                    let text = nft("list table netdev ringway-guard_wg0");
                    assert!(text.contains("hook egress") && !text.contains("{\n\t\taccept"), "{text}");
                }
                let number = |text: &str| -> Vec<String> {
                    text.lines().filter(|line| !line.contains("load_")).map(str::to_owned).collect()
                };
                assert_eq!(number(&nft("list table inet ringway-guard_wg0")), number(&whole), "{blow}");
            }
            // What is not ours is not our business, and what we do ourselves is nobody's blow.
            nft("add table inet mine");
            nft("add chain inet mine one");
            for local_network in [true, false] {
                guard.change(&Options { local_network, ..options("wg0") }).unwrap();
            }
            let _ = poll::readable(&[], Duration::from_millis(300));
            assert_eq!(guard.restored(), restored, "{frames}");
            guard.lower().unwrap();
            assert!(!nft("list ruleset").contains("ringway-guard"), "{frames}");
            nft("add table inet mine");
        }
    });
}

#[test]
fn a_link_that_comes_later_is_named_where_links_are_named() {
    in_netns(|| {
        ip("link add one type veth peer name other");
        let guard = raise_with(&options("wg0"), true);
        let named = || nft("list table netdev ringway-guard_wg0");
        assert!(
            named().contains("\"one\"") || named().contains("one,") || named().contains("one }"),
            "{}",
            named()
        );
        ip("link add late type veth peer name etal");
        eventually(|| named().contains("late").then_some(()));
        ip("link add wg0 type veth peer name far");
        eventually(|| named().contains("far").then_some(()));
        assert!(!named().contains("devices = { far, wg0"), "{}", named());
        ip("link delete late");
        eventually(|| (!named().contains("late")).then_some(()));
        assert!(named().contains("policy drop") && named().contains("one"), "{}", named());
        assert_eq!(guard.restored(), 0);
        guard.lower().unwrap();
    });
}
