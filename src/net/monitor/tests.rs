//! In a real namespace: what changes a way, and what does not.

use std::net::IpAddr;

use super::*;
use crate::sys::interface::index_of;
use crate::sys::testing::{in_netns, ip};

const GATEWAY: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
const MARK: Mark = Mark(0x52);
const QUIET: Duration = Duration::from_millis(300);
const SOON: Duration = Duration::from_secs(10);

fn block_on(test: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test);
}

/// A host with two links and a tunnel.
async fn host() -> Monitor {
    for link in ["a0", "b0"] {
        ip(&format!("link add {link} type veth peer name {link}x"));
        ip(&format!("link set {link}x up"));
        ip(&format!("link set {link} up"));
    }
    ip("address add 198.18.0.2/24 dev a0");
    ip("address add 198.18.1.2/24 dev b0");
    ip("tuntap add dev vpn0 mode tun");
    let mut monitor = Monitor::open(index_of("vpn0").unwrap()).await.unwrap();
    while tokio::time::timeout(QUIET, monitor.changed()).await.is_ok() {}
    monitor
}

async fn changed(monitor: &mut Monitor) -> Risen {
    tokio::time::timeout(SOON, monitor.changed()).await.expect("a notice").unwrap()
}

async fn way(monitor: &Monitor) -> Option<Way> {
    monitor.way_to(GATEWAY, MARK).await.unwrap()
}

#[test]
fn a_way_changes_with_routes_addresses_and_links() {
    in_netns(|| {
        block_on(async {
            let mut monitor = host().await;
            let (a, b) = (index_of("a0").unwrap(), index_of("b0").unwrap());
            assert_eq!(way(&monitor).await, None);
            ip("route add default via 198.18.0.1");
            assert_eq!(changed(&mut monitor).await, Risen::default());
            let first = way(&monitor).await.unwrap();
            let router = Some("198.18.0.1".parse().unwrap());
            assert_eq!(first, Way { link: a, router, source: Some("198.18.0.2".parse().unwrap()) });

            ip("route replace default via 198.18.1.1");
            changed(&mut monitor).await;
            assert_eq!(way(&monitor).await.unwrap().link, b);

            ip("address del 198.18.1.2/24 dev b0");
            ip("address add 198.18.1.3/24 dev b0");
            ip("route replace default via 198.18.1.1");
            changed(&mut monitor).await;
            assert_eq!(way(&monitor).await.unwrap().source, Some("198.18.1.3".parse().unwrap()));

            // The cable; the way stays in the table.
            ip("link set b0x down");
            assert!(!changed(&mut monitor).await.has(b));
            ip("link set b0x up");
            let risen = changed(&mut monitor).await;
            assert!(risen.has(b) && !risen.has(a), "{risen:?}");

            ip("route add unreachable 192.0.2.1");
            changed(&mut monitor).await;
            assert_eq!(way(&monitor).await, None);
        });
    });
}

#[test]
fn our_own_tunnel_routes_and_rules_are_no_news() {
    in_netns(|| {
        block_on(async {
            let mut monitor = host().await;
            ip("link set vpn0 up");
            ip("address add 100.64.0.2/32 dev vpn0");
            ip("route add 10.0.0.0/8 dev vpn0");
            ip("route add unreachable 10.0.0.0/8 metric 9999 proto 82");
            ip("rule add not fwmark 0x52 lookup 77 proto 82");
            let quiet = tokio::time::timeout(QUIET, monitor.changed()).await;
            assert!(quiet.is_err(), "{quiet:?}");
            // What others do is.
            ip("rule add fwmark 0x52 lookup 77");
            changed(&mut monitor).await;
            ip("route add 192.0.2.0/24 via 198.18.1.1 table 77");
            changed(&mut monitor).await;
            assert_eq!(way(&monitor).await.unwrap().link, index_of("b0").unwrap(), "by the mark");
            // A thousand notices are few reports.
            for _ in 0..20 {
                ip("address add 198.18.2.2/24 dev b0");
                ip("address del 198.18.2.2/24 dev b0");
            }
            let mut reports = 0;
            while tokio::time::timeout(QUIET, monitor.changed()).await.is_ok() {
                reports += 1;
            }
            assert!((1..=20).contains(&reports), "{reports}");
        });
    });
}

#[test]
fn after_lost_notices_any_link_may_have_come_up() {
    in_netns(|| {
        block_on(async {
            let mut monitor = host().await;
            assert!(monitor.digest(NetlinkPayload::Overrun(Vec::new())));
            monitor.due = Some(Instant::now());
            assert!(changed(&mut monitor).await.has(12345));
        });
    });
}
