//! Decoding without privileges; a real namespace for root.

use super::*;

fn notice(index: u32, up: bool, mtu: Option<u32>) -> LinkMessage {
    let mut link = LinkMessage::default();
    link.header.index = index;
    if up {
        link.header.flags = LinkFlags::Up;
    }
    link.attributes.extend(mtu.map(LinkAttribute::Mtu));
    link
}

fn new_link(link: LinkMessage) -> NetlinkPayload<RouteNetlinkMessage> {
    NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(link))
}

#[tokio::test]
async fn digest_reports_what_differs() {
    let mut watch = LinkWatch::open(7).unwrap();
    let state = |up, mtu| Some(LinkEvent::Changed(LinkState { up, mtu }));
    assert_eq!(watch.digest(new_link(notice(7, false, None))), None, "no MTU known yet");
    assert_eq!(watch.digest(new_link(notice(7, false, Some(1420)))), state(false, 1420));
    assert_eq!(watch.digest(new_link(notice(7, false, Some(1420)))), None);
    assert_eq!(watch.digest(new_link(notice(7, true, None))), state(true, 1420));
    assert!(!watch.routes_changed);
    assert_eq!(watch.digest(new_link(notice(8, true, Some(9000)))), None);
    assert!(watch.routes_changed, "another link");
    let gone = || NetlinkPayload::InnerMessage(RouteNetlinkMessage::DelLink(notice(7, false, None)));
    assert_eq!(watch.digest(gone()), Some(LinkEvent::Left));
    assert_eq!(watch.digest(gone()), None);
    watch.digest(NetlinkPayload::Overrun(Vec::new()));
    assert!(watch.resync && watch.routes_changed);
}

#[tokio::test]
async fn a_route_is_a_new_way_once_for_each_link_and_family() {
    use netlink_packet_route::route::RouteNextHop;
    let mut watch = LinkWatch::open(7).unwrap();
    let mut tell = |kind, table, family, attributes| {
        let mut route = RouteMessage::default();
        (route.header.kind, route.header.table, route.header.address_family) = (kind, table, family);
        route.attributes = attributes;
        let told = RouteNetlinkMessage::NewRoute(route);
        assert_eq!(watch.digest(NetlinkPayload::InnerMessage(told)), None);
        assert!(mem::take(&mut watch.routes_changed));
        mem::take(&mut watch.new_way)
    };
    let (unicast, main) = (RouteType::Unicast, RouteHeader::RT_TABLE_MAIN);
    let (v4, v6) = (AddressFamily::Inet, AddressFamily::Inet6);
    let over = |index| vec![RouteAttribute::Oif(index)];
    for (family, index, new) in [(v4, 3, true), (v4, 3, false), (v6, 3, true), (v6, 3, false), (v4, 4, true)]
    {
        assert_eq!(tell(unicast, main, family, over(index)), new, "{family:?} {index}");
    }
    assert!(!tell(unicast, main, v4, over(7)), "the watched link");
    assert!(!tell(RouteType::Local, main, v4, over(5)) && !tell(unicast, 255, v4, over(5)));
    assert!(tell(unicast, main, v4, Vec::new()), "a next hop of its own");
    let hops = |indices: &[u32]| {
        let hop = |index: &u32| {
            let mut hop = RouteNextHop::default();
            hop.interface_index = *index;
            hop
        };
        vec![RouteAttribute::MultiPath(indices.iter().map(hop).collect())]
    };
    assert!(!tell(unicast, main, v4, hops(&[3, 4])) && tell(unicast, main, v4, hops(&[3, 5])));
    // A link that changes is looked at again.
    watch.digest(new_link(notice(3, true, None)));
    assert!(watch.new_way && !watch.ways.contains(&(3, true)) && watch.ways.contains(&(4, true)));
}

#[tokio::test]
async fn loopback_has_a_state_and_strangers_have_none() {
    let mut watch = LinkWatch::open(1).unwrap();
    assert!(watch.state().await.unwrap().mtu >= 1280);
    let mut watch = LinkWatch::open(4_000_000).unwrap();
    assert_eq!(watch.state().await.unwrap_err().raw_os_error(), Some(libc::ENODEV));
}

#[tokio::test]
async fn changes_of_routes_are_reported_together() {
    const CHANGED: LinkEvent = LinkEvent::RoutesChanged { new_way: true };
    let mut watch = LinkWatch::open(4_000_000).unwrap();
    let (messages, notices) = tokio::sync::mpsc::unbounded_channel();
    let stream = futures_util::stream::unfold(notices, |mut notices| async {
        let notice: Option<Notice> = notices.recv().await;
        notice.map(|notice| (notice, notices))
    });
    watch.notices = stream.boxed();
    let send = || {
        let header = rtnetlink::packet_core::NetlinkHeader::default();
        let message = NetlinkMessage::new(header, new_link(notice(3, true, None)));
        messages.send((message, rtnetlink::sys::SocketAddr::new(0, 0))).unwrap();
    };
    let start = Instant::now();
    send();
    assert_eq!(watch.next().await.unwrap(), CHANGED);
    assert!(start.elapsed() < ROUTES_PAUSE, "the first at once");
    (0..1000).for_each(|_| send());
    assert_eq!(watch.next().await.unwrap(), CHANGED);
    assert!(start.elapsed() >= ROUTES_PAUSE, "the next after the pause");
    // A thousand notices were two events at most.
    let mut more = 0;
    while let Ok(event) = tokio::time::timeout(2 * ROUTES_PAUSE, watch.next()).await {
        assert_eq!(event.unwrap(), CHANGED);
        more += 1;
    }
    assert!(more <= 1, "{more}");
}

/// Runs `namespace_inside` in a network namespace of its own.
#[test]
fn a_real_link_in_a_namespace() {
    let script = "exec \"$0\" --exact net::link::tests::namespace_inside --ignored --nocapture";
    let output = std::process::Command::new("unshare")
        .args(["--net", "sh", "-c", script])
        .arg(std::env::current_exe().unwrap())
        .env("RINGWAY_TEST_PRIVATE_NET", "1")
        .output();
    let Ok(output) = output else {
        crate::sys::testing::skip("needs unshare (util-linux)");
        return;
    };
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    if text.contains("unshare failed") {
        crate::sys::testing::skip("needs root for a network namespace");
        return;
    }
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
}

fn ip(args: &str) {
    let status = std::process::Command::new("ip").args(args.split(' ')).status().unwrap();
    assert!(status.success(), "ip {args}");
}

async fn wait_for(watch: &mut LinkWatch, wanted: LinkEvent) {
    let limit = Duration::from_secs(10);
    while tokio::time::timeout(limit, watch.next()).await.expect("in time").unwrap() != wanted {}
}

#[tokio::test]
#[ignore = "inner: run by a_real_link_in_a_namespace"]
async fn namespace_inside() {
    if std::env::var_os("RINGWAY_TEST_PRIVATE_NET").is_none() {
        return;
    }
    ip("tuntap add dev rw0 mode tun");
    ip("link set rw0 mtu 1400");
    let index = crate::sys::interface::index_of("rw0").unwrap();
    let mut watch = LinkWatch::open(index).unwrap();
    assert_eq!(watch.state().await.unwrap(), LinkState { up: false, mtu: 1400 });
    ip("link set rw0 up");
    wait_for(&mut watch, LinkEvent::Changed(LinkState { up: true, mtu: 1400 })).await;
    ip("link set rw0 mtu 1300");
    wait_for(&mut watch, LinkEvent::Changed(LinkState { up: true, mtu: 1300 })).await;

    watch.link().set_mtu(1350).await.unwrap();
    wait_for(&mut watch, LinkEvent::Changed(LinkState { up: true, mtu: 1350 })).await;

    ip("link add other type veth peer name rehto");
    for (command, new_way) in [
        ("addr add 198.18.0.1/24 dev rw0", false),
        ("route add 198.19.0.0/24 dev rw0", false),
        ("rule add fwmark 7 table 7", false),
        ("link set other up", true),
        ("link set rehto up", true),
        ("addr add 198.18.1.1/24 dev other", true),
        ("route add 198.19.1.0/24 dev other", false),
    ] {
        tokio::time::sleep(2 * ROUTES_PAUSE).await;
        while tokio::time::timeout(2 * ROUTES_PAUSE, watch.next()).await.is_ok() {}
        ip(command);
        wait_for(&mut watch, LinkEvent::RoutesChanged { new_way }).await;
    }
    ip("link del rw0");
    wait_for(&mut watch, LinkEvent::Left).await;
    let error = watch.link().set_mtu(1400).await.unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::ENODEV));
}
