//! The library's VPN connection: where packets go while it holds the default route, each number of an error, and that
//! nothing of it stays.

use std::fs::File;
use std::io::{self, Read as _};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use caps::{CapSet, Capability};
use ringway::client::config::{RouteInfo, VpnConfig};
use ringway::client::connection::{TunFd, VpnConnection};
use ringway::client::error::VpnError;
use ringway::gateway::client::down;
use ringway::types::Address;
use socket2::{Domain, Socket, Type};

use crate::appliance::state;
use crate::errands;
use crate::lab::{Host, Lab, PortHolder};

/// What is reached by the default route only.
pub(crate) const FAR_V4: &str = "198.19.0.1";
/// The same.
pub(crate) const FAR_V6: &str = "fd00:198:19::1";
const PORT: u16 = 7007;
const SOON: Duration = Duration::from_secs(3);

/// A host and, by its default routes, one that is far.
pub(crate) fn site(lab: &Lab) -> (Arc<Host>, Arc<Host>) {
    let (far, host) = (lab.host("far"), lab.host("host"));
    lab.link((&far, "f0"), (&host, "e0"), 1520);
    for address in ["198.18.0.1/24", "fd00:198:18::1/64"] {
        far.address("f0", address);
    }
    far.address("lo", &format!("{FAR_V4}/32"));
    far.address("lo", &format!("{FAR_V6}/128"));
    for address in ["198.18.0.2/24", "fd00:198:18::2/64"] {
        host.address("e0", address);
    }
    host.run("ip route add default via 198.18.0.1");
    host.run("ip -6 route add default via fd00:198:18::1");
    (far, host)
}

/// The errand: answers datagrams with themselves.
pub(crate) fn echo() {
    let serve = |place: SocketAddr| {
        let socket = UdpSocket::bind(place).unwrap();
        let mut buffer = [0; 64];
        loop {
            let (length, from) = socket.recv_from(&mut buffer).unwrap();
            socket.send_to(&buffer[..length], from).unwrap();
        }
    };
    std::thread::spawn(move || serve((FAR_V6.parse::<IpAddr>().unwrap(), PORT).into()));
    serve((FAR_V4.parse::<IpAddr>().unwrap(), PORT).into());
}

fn address(text: &str) -> Address {
    text.parse().unwrap()
}

/// Everything of both families.
fn whole() -> VpnConfig {
    VpnConfig {
        addresses: vec![address("100.64.0.2/32").into(), address("fd64::2/128").into()],
        routes: ["0.0.0.0/0", "::/0"].map(|all| RouteInfo::to(all.parse().unwrap())).into(),
        is_ipv6_accepted: true,
        ..VpnConfig::default()
    }
}

/// Whether a packet to this address comes out of the device.
fn comes_by(device: &mut File, to: IpAddr) -> bool {
    let begin = Instant::now();
    let mut packet = [0; 2048];
    while begin.elapsed() < SOON {
        match device.read(&mut packet) {
            Ok(length) => {
                let found: Option<IpAddr> = match packet[0] >> 4 {
                    4 if length >= 20 => Some(<[u8; 4]>::try_from(&packet[16..20]).unwrap().into()),
                    6 if length >= 40 => Some(<[u8; 16]>::try_from(&packet[24..40]).unwrap().into()),
                    _ => None,
                };
                if found == Some(to) {
                    return true;
                }
            }
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock, "{error}"),
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    false
}

fn file(fd: TunFd) -> File {
    OwnedFd::from(fd).into()
}

fn udp(to: SocketAddr) -> UdpSocket {
    let socket = UdpSocket::bind(if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }).unwrap();
    socket.set_read_timeout(Some(SOON)).unwrap();
    socket
}

fn tcp(to: SocketAddr) -> Socket {
    Socket::new(Domain::for_address(to), Type::STREAM, None).unwrap()
}

/// The errand: each kind of socket, not protected and protected.
pub(crate) fn ways() {
    let mut vpn = VpnConnection::create("vpn0").unwrap();
    let places = [FAR_V4, FAR_V6].map(|far| SocketAddr::new(far.parse().unwrap(), PORT));
    let early = places.map(|to| {
        let socket = udp(to);
        socket.connect(to).unwrap();
        socket
    });
    let mut device = file(vpn.set_up(&whole()).unwrap());
    for (to, early) in places.into_iter().zip(early) {
        let echoed = |socket: &UdpSocket| socket.recv(&mut [0; 8]).is_ok();
        let (loose, bound) = (udp(to), udp(to));
        bound.connect(to).unwrap();
        loose.send_to(b"1", to).unwrap();
        assert!(comes_by(&mut device, to.ip()), "UDP to {to}");
        bound.send(b"2").unwrap();
        assert!(comes_by(&mut device, to.ip()), "connected UDP to {to}");
        early.send(b"3").unwrap();
        assert!(comes_by(&mut device, to.ip()), "UDP to {to} that was connected before");
        assert!(tcp(to).connect_timeout(&to.into(), Duration::from_millis(300)).is_err());
        assert!(comes_by(&mut device, to.ip()), "TCP to {to}");

        for socket in [&loose, &early] {
            vpn.protect(socket).unwrap();
            vpn.protect(socket).unwrap();
        }
        loose.send_to(b"4", to).unwrap();
        assert!(echoed(&loose), "protected UDP to {to}");
        early.send(b"5").unwrap();
        assert!(echoed(&early), "protected UDP to {to} that was connected before");
        let stream = tcp(to);
        vpn.protect(&stream).unwrap();
        stream.connect_timeout(&to.into(), SOON).expect("protected TCP");
    }
    vpn.destroy().unwrap();
    assert!(device.read(&mut [0; 64]).is_err_and(|error| error.raw_os_error() == Some(libc::EBADFD)));
    let last = udp(places[0]);
    last.send_to(b"6", places[0]).unwrap();
    assert!(last.recv(&mut [0; 8]).is_ok(), "as before");
}

#[test]
fn protected_sockets_leave_by_the_network_and_all_others_by_the_tunnel() {
    let Some(lab) = Lab::new() else { return };
    let (far, host) = site(&lab);
    let _listeners = [FAR_V4, FAR_V6].map(|far_at| PortHolder::on(&far, "STREAM", far_at, PORT));
    let mut echo = errands::send(&far, "vpn-echo");
    // As many hosts have it: what is not asked for is dropped.
    host.run("sysctl -qw net.ipv4.conf.all.rp_filter=1 net.ipv4.conf.e0.rp_filter=1");
    let before = state(&host);
    errands::run_on(&host, "vpn-ways");
    assert_eq!(state(&host), before);
    echo.kill().unwrap();
    echo.wait().unwrap();
}

fn code<T: std::fmt::Debug>(result: Result<T, VpnError>) -> u32 {
    result.unwrap_err().code()
}

/// Without the capabilities that connections need.
fn without_rights<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            for capability in [Capability::CAP_NET_ADMIN, Capability::CAP_NET_RAW] {
                caps::drop(None, CapSet::Effective, capability).unwrap();
            }
            work()
        });
        thread.join().unwrap()
    })
}

/// The errand: every error there is, by its number.
pub(crate) fn errors() {
    assert_eq!(code(VpnConnection::create("a/b")), 401);
    assert_eq!(code(without_rights(|| VpnConnection::create("vpn0"))), 202);
    let mut vpn = VpnConnection::create("vpn0").unwrap();
    vpn.destroy().unwrap();
    assert_eq!(code(vpn.set_up(&VpnConfig::default())), 2_200_001);
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    assert_eq!(code(without_rights(|| vpn.protect(&socket))), 201);
    assert_eq!(code(without_rights(|| vpn.set_up(&whole()))), 2_203_001);
    assert_eq!(code(vpn.protect(&File::open("/dev/null").unwrap())), 2_203_004);
    assert_eq!(code(vpn.protect(&UnixDatagram::unbound().unwrap())), 2_203_004);
    // Half done: the device is there, and a route cannot be.
    let mut wrong = whole();
    wrong.routes.push(RouteInfo {
        gateway: Some("100.64.0.2".parse().unwrap()),
        ..RouteInfo::to("198.19.7.0/24".parse().unwrap())
    });
    let error = vpn.set_up(&wrong).unwrap_err();
    assert!(error.code() == 2_200_003 && error.to_string().contains("the route 198.19.7.0/24"), "{error}");

    let _fd = vpn.set_up(&whole()).unwrap();
    assert_eq!(code(vpn.set_up(&whole())), 2_203_002);
    assert_eq!(code(VpnConnection::create("vpn0").unwrap().set_up(&whole())), 2_203_002);
    assert_eq!(code(VpnConnection::create("e0").unwrap().set_up(&whole())), 2_203_002);
    vpn.destroy().unwrap();
    vpn.destroy().unwrap();
    let nobody = down(&"vpn0".parse().unwrap(), false).unwrap_err();
    assert_eq!(nobody.downcast_ref::<VpnError>().unwrap().code(), 2_203_003);

    let run = |line: &str| {
        let words: Vec<_> = line.split(' ').collect();
        assert!(Command::new(words[0]).args(&words[1..]).status().unwrap().success(), "{line}");
    };
    run("mount -t tmpfs tmpfs /dev/net");
    assert_eq!(code(vpn.set_up(&whole())), 2_200_002);
    run("umount /dev/net");
    // On a runtime, both faces; and dropped while it is up.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        drop(vpn.set_up_async(&whole()).await.unwrap());
        vpn.destroy_async().await.unwrap();
        let _fd = vpn.set_up(&VpnConfig { is_blocking: true, ..whole() }).unwrap();
        drop(vpn);
    });
}

#[test]
fn each_error_has_its_number_and_leaves_nothing() {
    let Some(lab) = Lab::new() else { return };
    let (_far, host) = site(&lab);
    let before = state(&host);
    errands::run_on(&host, "vpn-errors");
    assert_eq!(state(&host), before);
}

/// The errand: up and down, a hundred times.
pub(crate) fn cycles() {
    let open = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let mut vpn = VpnConnection::create("vpn0").unwrap();
    // The first one also starts what a runtime keeps.
    let mut before = None;
    for cycle in 0..100 {
        let fd = vpn.set_up(&whole()).unwrap_or_else(|error| panic!("cycle {cycle}: {error}"));
        // The device goes by its descriptor, or with the connection.
        let kept = (cycle % 2 == 0).then_some(fd);
        vpn.destroy().unwrap();
        drop(kept);
        assert_eq!(open(), *before.get_or_insert_with(open));
    }
}

#[test]
fn a_hundred_cycles_leave_nothing() {
    let Some(lab) = Lab::new() else { return };
    let (_far, host) = site(&lab);
    host.run("sysctl -qw net.ipv4.conf.all.rp_filter=1");
    let before = state(&host);
    errands::run_on(&host, "vpn-cycles");
    assert_eq!(state(&host), before);
}
