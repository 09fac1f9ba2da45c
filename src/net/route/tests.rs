use super::*;
use crate::sys::interface::index_of;
use crate::sys::testing::{in_netns, ip};

fn run(work: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work);
}

fn said(line: &str) -> Vec<String> {
    let out = std::process::Command::new("ip").args(line.split_whitespace()).output().unwrap();
    String::from_utf8(out.stdout).unwrap().lines().map(|line| line.trim().to_owned()).collect()
}

/// Without what the kernel makes of itself a moment after a link is up.
fn world() -> Vec<Vec<String>> {
    let lines = |line| said(line).into_iter().filter(|line| !line.contains("fe80") && !line.contains("ff00"));
    let all = ["rule", "-6 rule", "route show table all", "-6 route show table all"];
    all.map(|line| lines(line).collect()).into()
}

fn prefixes(texts: &[&str]) -> Vec<Prefix> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

fn taken(name: &str, routes: &[&str]) -> Taken {
    Taken {
        device: index_of("tunnel").unwrap(),
        table: table_of(name),
        mark: Mark(82),
        routes: prefixes(routes).into_iter().map(|prefix| Route { prefix, via: None }).collect(),
        excluded: Vec::new(),
        blocked: Vec::new(),
    }
}

/// A host with a way out and a tunnel.
fn host() {
    for line in [
        "link add out type veth peer name out-end",
        "link set out-end up",
        "link set out up",
        "addr add 198.18.0.2/24 dev out",
        "route add default via 198.18.0.1 dev out",
        "route add 10.0.0.0/8 via 198.18.0.3 dev out",
        "route add 10.9.9.0/24 via 198.18.0.3 dev out",
        "addr add fd00:198:18::2/64 dev out nodad",
        "-6 route add default via fd00:198:18::1 dev out",
        "link add tunnel type veth peer name tunnel-end",
        "link set tunnel-end up",
        "link set tunnel up",
        "addr add 100.64.0.2/32 dev tunnel",
    ] {
        ip(line);
    }
}

/// The device by which the kernel would send, or what it says instead.
fn way(to: &str) -> String {
    let family = if to.contains(':') { "-6 " } else { "" };
    let out = std::process::Command::new("ip")
        .args(format!("{family}route get {to}").split_whitespace())
        .output()
        .unwrap();
    let text = String::from_utf8(out.stdout).unwrap();
    match text.split(" dev ").nth(1) {
        Some(rest) if !text.starts_with("unreachable") => rest.split_whitespace().next().unwrap().to_owned(),
        _ => String::from_utf8(out.stderr).unwrap().trim().to_owned(),
    }
}

const UNREACHABLE: &str = "RTNETLINK answers: No route to host";

#[test]
fn everything_goes_into_the_tunnel_but_what_is_marked_excluded_or_near() {
    in_netns(|| {
        host();
        let before = world();
        run(async {
            let router = Router::open().unwrap();
            let all = Taken {
                excluded: prefixes(&["198.51.100.0/24"]),
                blocked: vec![Family::V6],
                ..taken("one", &["0.0.0.0/0"])
            };
            router.take(&all).await.unwrap();
            assert_eq!(way("192.0.2.1"), "tunnel");
            assert_eq!(way("192.0.2.1 mark 82"), "out");
            assert_eq!(way("198.51.100.7"), "out");
            assert_eq!(way("198.18.0.9"), "out");
            assert_eq!(way("10.1.1.1"), "out", "the host's own routes are no default route");
            assert_eq!(way("2001:db8::1"), UNREACHABLE);
            assert_eq!(way("fd00:198:18::9"), UNREACHABLE, "not even the own network");
            assert_eq!(way("fe80::1 oif out"), "out");
            assert_eq!(way("2001:db8::1 mark 82"), "out");
            // Whoever starts it again says so, and takes nothing away from the first.
            let again = router.make(&all).await.unwrap_err();
            assert_eq!(again.source.raw_os_error(), Some(libc::EEXIST), "{again}");
            ip("link del tunnel");
            assert_eq!(way("192.0.2.1"), UNREACHABLE, "nothing leaves without the tunnel");
            assert!(router.give_back(all.table).await.unwrap() > 0);
            assert_eq!(router.give_back(all.table).await.unwrap(), 0);
        });
        let rules = |world: Vec<Vec<String>>| world.into_iter().take(2).collect::<Vec<_>>();
        assert_eq!(rules(world()), rules(before));
        assert!(!world().concat().iter().any(|line| line.contains("proto 82")), "{:?}", world());
    });
}

#[test]
fn a_part_goes_into_the_tunnel_by_the_longest_prefix_and_tunnels_stand_beside_each_other() {
    in_netns(|| {
        host();
        let before = world();
        run(async {
            let router = Router::open().unwrap();
            let (first, second) =
                (taken("one", &["10.0.0.0/8", "fd77::/16"]), taken("two", &["0.0.0.0/0", "::/0"]));
            router.take(&first).await.unwrap();
            assert_eq!(way("10.1.1.1"), "tunnel", "as long a prefix as the host's");
            assert_eq!(way("10.9.9.9"), "out", "a longer one");
            assert_eq!(way("192.0.2.1"), "out");
            assert_eq!((way("fd77::1"), way("2001:db8::1")), ("tunnel".to_owned(), "out".to_owned()));
            router.take(&second).await.unwrap();
            assert_eq!((way("192.0.2.1"), way("2001:db8::1")), ("tunnel".to_owned(), "tunnel".to_owned()));
            assert_eq!(way("192.0.2.1 mark 82"), "out");
            let both = said("rule").iter().filter(|line| line.contains("proto 82")).count();
            assert_eq!(both, 4, "{:?}", said("rule"));
            router.give_back(first.table).await.unwrap();
            assert_eq!(way("192.0.2.1"), "tunnel");
            router.give_back(second.table).await.unwrap();
        });
        assert_eq!(world(), before);
    });
}

#[test]
fn other_routes_take_the_place_of_the_old_ones_without_a_gap() {
    in_netns(|| {
        host();
        let before = world();
        run(async {
            let router = Router::open().unwrap();
            let first = taken("one", &["10.0.0.0/8"]);
            let second = Taken {
                excluded: prefixes(&["192.168.1.0/24"]),
                ..taken("one", &["10.0.0.0/8", "192.0.2.0/24", "192.168.0.0/16", "fd77::/16"])
            };
            let third = Taken { excluded: prefixes(&["192.0.2.0/24"]), ..taken("one", &["0.0.0.0/0"]) };
            router.take(&first).await.unwrap();
            let fresh = world();
            router.change(&first, &second).await.unwrap();
            assert_eq!((way("10.1.1.1"), way("192.0.2.1")), ("tunnel".to_owned(), "tunnel".to_owned()));
            assert_eq!((way("192.168.1.1"), way("192.168.2.1")), ("out".to_owned(), "tunnel".to_owned()));
            assert_eq!((way("fd77::1"), way("2001:db8::1")), ("tunnel".to_owned(), "out".to_owned()));
            // The routed one is excluded now, and the host's own 10.0.0.0/8 wins over a default route.
            router.change(&second, &third).await.unwrap();
            assert_eq!((way("192.0.2.1"), way("192.0.3.1")), ("out".to_owned(), "tunnel".to_owned()));
            assert_eq!((way("10.1.1.1"), way("fd77::1")), ("out".to_owned(), "out".to_owned()));
            assert_eq!(said("rule").iter().filter(|line| line.contains("proto 82")).count(), 2);
            assert!(!said("-6 rule").iter().any(|line| line.contains("proto 82")));
            // What the last address took along comes back.
            ip("addr del 100.64.0.2/32 dev tunnel");
            assert_eq!(way("192.0.3.1"), UNREACHABLE);
            router.renew(&third).await.unwrap();
            assert_eq!(way("192.0.3.1"), "tunnel");
            ip("addr add 100.64.0.2/32 dev tunnel");
            router.change(&third, &first).await.unwrap();
            assert_eq!(world(), fresh);
            router.give_back(first.table).await.unwrap();
        });
        assert_eq!(world(), before);
    });
}

#[test]
fn what_cannot_be_made_whole_is_not_made() {
    in_netns(|| {
        host();
        let before = world();
        run(async {
            let router = Router::open().unwrap();
            let mut wrong = taken("one", &["0.0.0.0/0"]);
            // The way to a gateway of our own address leads nowhere.
            let via = Some("100.64.0.2".parse().unwrap());
            wrong.routes.push(Route { prefix: "10.7.0.0/16".parse().unwrap(), via });
            let refused = router.take(&wrong).await.unwrap_err();
            assert!(refused.to_string().starts_with("the route 10.7.0.0/16: "), "{refused}");
        });
        assert_eq!(world(), before);
    });
}

#[test]
fn a_table_has_its_name_and_no_number_that_people_use() {
    assert_eq!(table_of("wg0"), table_of("wg0"));
    assert_ne!(table_of("wg0"), table_of("wg1"));
    assert_eq!(table_of("wg0") >> 24, 82);
}
