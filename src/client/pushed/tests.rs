use super::*;
use crate::types::Address;

fn prefixes(text: &str) -> Vec<Prefix> {
    text.split_whitespace().map(|one| one.parse().unwrap()).collect()
}

const ALL: Accept = Accept { routes: true, dns: true, mtu: true, exclusions: false };

/// A profile that asks for 10.0.0.0/8 and has no address.
fn terms(accept: Accept) -> Terms {
    let asked = prefixes("10.0.0.0/8 fd10::/64");
    let own = VpnConfig {
        routes: asked.iter().map(|prefix| RouteInfo::to(*prefix)).collect(),
        dns_addresses: vec!["10.0.0.1".parse().unwrap()],
        search_domains: vec!["own.example".to_owned()],
        is_ipv6_accepted: true,
        mtu: Some(1400),
        ..VpnConfig::default()
    };
    Terms {
        own,
        accept,
        guarded: false,
        gateways: vec!["198.18.0.1".parse().unwrap()],
        asked,
        others: prefixes("172.20.0.0/16"),
    }
}

fn offer(settings: Settings) -> (AddrReply, Settings) {
    let reply = AddrReply {
        ipv4: Some((Ipv4Addr::new(100, 64, 0, 7), 10)),
        ipv6: Some(("fd64::7".parse().unwrap(), 64)),
        seconds: 60,
        ..AddrReply::default()
    };
    (reply, settings)
}

fn settings() -> Settings {
    Settings {
        mtu: 1380,
        dns: vec!["100.64.0.1".parse().unwrap(), "fd64::1".parse().unwrap()],
        search: vec!["example.org".to_owned()],
        included: prefixes("10.5.0.0/16 192.168.7.0/24 fd77::/48"),
        excluded: prefixes("10.1.0.0/16 203.0.113.0/24"),
    }
}

fn included(accept: Accept, networks: &str) -> Taken {
    terms(accept).take(Some(&offer(Settings { included: prefixes(networks), ..settings() })))
}

#[test]
fn what_the_profile_accepts_is_taken_and_nothing_else() {
    let none = terms(Accept::default()).take(Some(&offer(settings())));
    let addresses: Vec<_> = none.config.addresses.iter().map(ToString::to_string).collect();
    assert_eq!(addresses, ["100.64.0.7/32", "fd64::7/128"], "never a network");
    assert_eq!(VpnConfig { addresses: Vec::new(), ..none.config }, terms(ALL).own);
    assert_eq!((none.networks, none.refused), (Vec::new(), Vec::<String>::new()));

    let all = terms(ALL).take(Some(&offer(settings())));
    assert_eq!(all.networks, prefixes("192.168.7.0/24 fd77::/48"), "the profile has the other one");
    assert_eq!(all.excluded, prefixes("10.1.0.0/16"), "nothing leads to the other one");
    assert_eq!(
        (all.config.mtu, &all.config.search_domains[..]),
        (Some(1380), &["example.org".to_owned()][..])
    );
    assert_eq!(all.config.dns_addresses, settings().dns);
    assert_eq!(all.refused, Vec::<String>::new());
    let plan = all.config.check().unwrap();
    assert_eq!((plan.routes.len(), plan.excluded.len(), plan.addresses.len()), (4, 1, 2));
    assert_eq!(terms(ALL).take(None).config, terms(ALL).own, "without an offer it is the profile's");
    // A profile's own addresses are its own.
    let mut own = terms(ALL);
    own.own.addresses = vec!["100.64.9.9/24".parse::<Address>().unwrap().into()];
    assert_eq!(own.take(Some(&offer(settings()))).config.addresses, own.own.addresses);
}

#[test]
fn no_network_is_believed_that_leads_elsewhere() {
    for (network, why) in [
        ("0.0.0.0/0", "as good as a default route"),
        ("128.0.0.0/7", "as good as a default route"),
        ("::/0", "as good as a default route"),
        ("2000::/15", "as good as a default route"),
        ("127.0.0.0/8", "nothing of it is behind"),
        ("224.0.0.0/24", "nothing of it is behind"),
        ("169.254.1.0/24", "nothing of it is behind"),
        ("255.255.255.255/32", "nothing of it is behind"),
        ("fe80::/64", "nothing of it is behind"),
        ("ff02::/16", "nothing of it is behind"),
        ("::ffff:10.0.0.0/104", "nothing of it is behind"),
        ("198.18.0.0/16", "the gateway itself"),
        ("172.16.0.0/12", "another peer"),
        ("172.20.3.0/24", "another peer"),
    ] {
        let taken = included(ALL, network);
        let said = taken.refused.join(" ");
        assert!(taken.networks.is_empty() && said.contains(why), "{network}: {said}");
        assert_eq!(taken.config.routes.iter().filter(|route| !route.is_excluded_route).count(), 2);
    }
    assert_eq!(included(ALL, "fc00::/7").networks.len(), 1);
    // Everything in pieces.
    let pieces: String = (1..224).filter(|n| *n != 127).map(|n| format!("{n}.0.0.0/8 ")).collect();
    let taken = included(ALL, &pieces.replace("198.0.0.0/8 ", "").replace("172.0.0.0/8 ", ""));
    assert!(taken.networks.is_empty() && taken.refused.join(" ").contains("IPv4: together"), "{taken:?}");
    assert_eq!(included(ALL, "11.0.0.0/8 12.0.0.0/8 2001::/16").networks.len(), 3);
    let many: String = (0..300).map(|n| format!("192.168.{}.{}/32 ", n / 200, n % 200)).collect();
    let taken = included(ALL, &many);
    assert_eq!(
        (taken.networks.len(), &taken.refused[..]),
        (256, &["networks: more than 256".to_owned()][..])
    );
    // Of a family that is blocked nothing is taken, and a profile that takes everything needs no more.
    let mut v4 = terms(ALL);
    v4.own.is_ipv6_accepted = false;
    let taken = v4.take(Some(&offer(settings())));
    assert_eq!((taken.networks.len(), taken.config.addresses.len()), (1, 1));
    assert_eq!(taken.config.dns_addresses, settings().dns[..1]);
    let mut everything = terms(ALL);
    everything.asked = prefixes("0.0.0.0/0 ::/0");
    let taken =
        everything.take(Some(&offer(Settings { included: prefixes("0.0.0.0/0 ::/0"), ..settings() })));
    assert_eq!((taken.networks.len(), taken.refused.len()), (0, 0));
}

#[test]
fn with_the_kill_switch_an_exclusion_needs_consent() {
    let guarded = |exclusions| {
        let accept = Accept { exclusions, ..ALL };
        Terms { guarded: true, ..terms(accept) }.take(Some(&offer(settings())))
    };
    let (refused, taken) = (guarded(false), guarded(true));
    assert!(refused.excluded.is_empty() && refused.refused.join(" ").contains("the kill switch is on"));
    assert_eq!((taken.excluded, taken.refused.len()), (prefixes("10.1.0.0/16"), 0));
    for exclusion in ["0.0.0.0/0", "10.0.0.0/8", "0.0.0.0/1"] {
        let settings = Settings { excluded: prefixes(exclusion), ..settings() };
        let taken = terms(ALL).take(Some(&offer(settings)));
        assert!(taken.excluded.is_empty() && taken.refused.join(" ").contains("would undo"), "{taken:?}");
    }
}

#[test]
fn servers_mtu_and_addresses_are_looked_at() {
    let with = |settings: Settings| terms(ALL).take(Some(&offer(settings)));
    let server = |text: &str| with(Settings { dns: vec![text.parse().unwrap()], ..settings() });
    for text in ["127.0.0.53", "0.0.0.0", "::1", "ff02::fb"] {
        let taken = server(text);
        assert_eq!(taken.config.dns_addresses, terms(ALL).own.dns_addresses, "{text}");
        assert_eq!(taken.config.search_domains, ["own.example"], "domains go with their servers");
        assert!(taken.refused.join(" ").contains("no address of a server"));
    }
    for mtu in [0, 575, 1279, 65_441] {
        let taken = with(Settings { mtu, ..settings() });
        assert!(taken.config.mtu == Some(1400) && taken.refused.join(" ").contains("the MTU"), "{mtu}");
    }
    let mut reply = offer(settings());
    for own in [Ipv4Addr::LOCALHOST, Ipv4Addr::new(198, 18, 0, 1), Ipv4Addr::new(224, 0, 0, 1)] {
        reply.0.ipv4 = Some((own, 32));
        let taken = terms(ALL).take(Some(&reply));
        assert!(
            taken.config.addresses.len() == 1 && taken.refused.join(" ").contains("the address"),
            "{own}"
        );
    }
}
