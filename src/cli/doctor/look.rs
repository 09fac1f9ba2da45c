//! Looks at the host: reads what the probes judge. The only changes are a trial ring, a trial load and a trial device,
//! all gone when this returns.

use std::collections::BTreeSet;
use std::fs;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use caps::{CapSet, Capability};

use super::finding::Finding;
use super::probes;
use super::services::{self, Listener};
use crate::cli::report::{self, Report};
use crate::control::socket::DIRECTORY;
use crate::dataplane::io::ring::Ring;
use crate::dataplane::steering::{Steering, SteeringError};
use crate::dataplane::tun::{self, TunError, TunOffloads};
use crate::net::manners::foreign::{self, Needs};
use crate::net::manners::{Transport, advertised};
use crate::net::name::InterfaceName;
use crate::sys::{clock, host, interface, netns, tun as sys_tun};
use crate::types::Mark;

/// A trial device, of the first free number.
const TRIAL_DEVICE: &str = "rwtrial%d";
/// The processor's time is looked at twice, at least this far apart.
const STEAL_SPAN: Duration = Duration::from_millis(500);

/// Every finding, in the order in which an operator sets a host up. `wanted` names the devices to look at, none for
/// every one that is served; `port` is looked at where none is served.
pub(super) fn everything(wanted: &[InterfaceName], port: u16) -> Vec<Finding> {
    let begun = Instant::now();
    let before = processor_ticks(&read("/proc/stat"));
    let root = host::is_root();
    let served = report::devices(Path::new(DIRECTORY), wanted);
    let reports = served.as_deref().unwrap_or_default();
    let mut findings = vec![
        probes::kernel(&read("/proc/sys/kernel/osrelease")),
        probes::io_uring(number("/proc/sys/kernel/io_uring_disabled"), &Ring::trial()),
        probes::bpf(number("/proc/sys/kernel/unprivileged_bpf_disabled"), &trial_steering(), root),
        probes::tun(&trial_device(), root),
        memlock(),
        devices(&served),
    ];
    for interface in interfaces(wanted, reports) {
        findings.extend(interface_findings(&interface));
    }
    findings.extend(advertised_interfaces().iter().filter_map(|interface| accept_ra(interface)));
    for device in named(wanted, reports) {
        let report = reports.iter().find(|report| report.name.as_str() == device);
        let listen_port = report.map(|report| report.show.listen_port).filter(|port| *port != 0);
        let services = report.and_then(|report| services::of_report(&report.json["dataplane"]));
        let needs = Needs {
            interface: &device,
            forward: true,
            listen_port,
            services: services.as_deref().unwrap_or_default(),
        };
        let found = foreign::look(&needs).map_err(|error| error.to_string());
        findings.extend(probes::firewall(&device, found));
        if let Some(services) = services {
            let own = interface::addresses(&device).unwrap_or_default();
            findings.extend(services::findings(&device, &services, &listeners(), &own));
        }
    }
    findings.extend(reports.iter().flat_map(path_findings));
    let synchronised = host::clock_is_synchronised().map_err(|error| error.to_string());
    findings.push(probes::clock(clock::realtime(), synchronised));
    let (receive, send) = (number("/proc/sys/net/core/rmem_max"), number("/proc/sys/net/core/wmem_max"));
    findings.push(probes::buffers(receive, send, may(Capability::CAP_NET_ADMIN)));
    findings.extend(ports(reports, port));
    findings.push(probes::governor(&governors(Path::new("/sys/devices/system/cpu"))));
    thread::sleep(STEAL_SPAN.saturating_sub(begun.elapsed()));
    findings.push(probes::steal(before, processor_ticks(&read("/proc/stat"))));
    findings
}

/// A file's text without the line's end; empty if it cannot be read.
fn read(path: impl AsRef<Path>) -> String {
    fs::read_to_string(path).unwrap_or_default().trim_end().to_owned()
}

/// A file that holds one number.
fn number<T: std::str::FromStr>(path: impl AsRef<Path>) -> Option<T> {
    read(path).trim().parse().ok()
}

fn may(capability: Capability) -> bool {
    caps::has_cap(None, CapSet::Effective, capability).unwrap_or(false)
}

/// Loads the steering program for two workers and compares it with the function.
fn trial_steering() -> Result<(), SteeringError> {
    Steering::new(2)?.self_test()
}

/// Makes a device and lets it go, where permitted in a network namespace of its own, which nobody on the host sees.
fn trial_device() -> Result<TunOffloads, TunError> {
    let trial = || {
        // Without CAP_SYS_ADMIN the device appears on the host for a moment, down and without an address.
        let _ = netns::unshare();
        tun::open_device(TRIAL_DEVICE, 1, TunOffloads::ALL).map(|device| device.offloads)
    };
    let ended = thread::Builder::new().spawn(trial).map(thread::JoinHandle::join);
    let failed = |source| TunError::Other { action: "try", name: TRIAL_DEVICE.to_owned(), source };
    match ended {
        Ok(Ok(result)) => result,
        Ok(Err(_)) => Err(failed(std::io::Error::other("the trial panicked"))),
        Err(error) => Err(failed(error)),
    }
}

fn memlock() -> Finding {
    let hard = host::memlock().map_or(u64::MAX, |(_, hard)| hard);
    let raisable = may(Capability::CAP_SYS_RESOURCE) || may(Capability::CAP_IPC_LOCK);
    let cores = thread::available_parallelism().map_or(1, usize::from);
    probes::memlock(hard, raisable, cores as u64)
}

fn devices(served: &anyhow::Result<Vec<Report>>) -> Finding {
    let names = served.as_ref().map(|reports| reports.iter().map(|r| r.name.to_string()).collect::<Vec<_>>());
    match names {
        Ok(names) => probes::devices(Ok(&names)),
        Err(error) => probes::devices(Err(format!("{error:#}"))),
    }
}

/// The devices that are named or served.
fn named(wanted: &[InterfaceName], reports: &[Report]) -> BTreeSet<String> {
    wanted.iter().chain(reports.iter().map(|report| &report.name)).map(ToString::to_string).collect()
}

/// The devices, and the interfaces that default routes leave by.
fn interfaces(wanted: &[InterfaceName], reports: &[Report]) -> BTreeSet<String> {
    let uplinks = default_interfaces(&read("/proc/net/route"), &read("/proc/net/ipv6_route"));
    named(wanted, reports).into_iter().chain(uplinks).collect()
}

/// From the kernel's route tables: `Iface Destination … Mask …` in IPv4, the interface last in IPv6.
pub(super) fn default_interfaces(v4: &str, v6: &str) -> BTreeSet<String> {
    let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let v4 = v4.lines().map(words).filter_map(|words| {
        let default = words.get(1)? == "00000000" && words.get(7)? == "00000000";
        default.then(|| words.into_iter().next()).flatten()
    });
    let v6 = v6.lines().map(words).filter_map(|words| {
        let default = words.first()?.bytes().all(|digit| digit == b'0') && words.get(1)? == "00";
        default.then(|| words.into_iter().nth(9)).flatten()
    });
    v4.chain(v6).filter(|name| name != "lo").collect()
}

fn interface_findings(interface: &str) -> [Finding; 2] {
    let v4 = Path::new("/proc/sys/net/ipv4/conf");
    let v6 = Path::new("/proc/sys/net/ipv6/conf");
    let on =
        |path: &Path, place: &str, key: &str| number::<u8>(path.join(place).join(key)).map(|value| value > 0);
    // IPv6 forwards if the whole host does, or (Linux 6.17) if the interface is told to in spite of it.
    let forced = on(v6, interface, "force_forwarding").unwrap_or(false);
    let forwards_v6 = on(v6, "all", "forwarding").map(|all| all || forced);
    let filter = |place| number(v4.join(place).join("rp_filter")).unwrap_or(0);
    [
        probes::forwarding(interface, on(v4, interface, "forwarding"), forwards_v6),
        probes::rp_filter(interface, filter("all"), filter(interface)),
    ]
}

/// The interfaces on which a router has advertised itself.
fn advertised_interfaces() -> BTreeSet<String> {
    let routes = advertised(&read("/proc/net/ipv6_route"));
    routes.into_iter().chain(configured_interfaces(&read("/proc/net/if_inet6"))).collect()
}

/// From the kernel's table of IPv6 addresses (number, index, length, scope, flags, interface): those with a global
/// address that was not set by hand. When forwarding begins the kernel deletes advertised routes; these stay.
pub(super) fn configured_interfaces(addresses: &str) -> BTreeSet<String> {
    const PERMANENT: u32 = 0x80;
    let interface = |line: &str| {
        let words: Vec<_> = line.split_whitespace().collect();
        let [_, _, _, "00", flags, name] = words[..] else { return None };
        (u32::from_str_radix(flags, 16).ok()? & PERMANENT == 0).then(|| name.to_owned())
    };
    addresses.lines().filter_map(interface).collect()
}

fn accept_ra(interface: &str) -> Option<Finding> {
    let conf = Path::new("/proc/sys/net/ipv6/conf").join(interface);
    let forwards = number::<u8>(conf.join("forwarding"))? > 0;
    Some(probes::accept_ra(interface, forwards, number(conf.join("accept_ra"))?))
}

/// Who listens in this network namespace.
fn listeners() -> BTreeSet<Listener> {
    let tables = [(Transport::Tcp, ["tcp", "tcp6"]), (Transport::Udp, ["udp", "udp6"])];
    let each = tables.into_iter().flat_map(|(transport, names)| names.map(|name| (transport, name)));
    each.flat_map(|(transport, name)| {
        services::listeners(transport, &read(Path::new("/proc/net").join(name)))
    })
    .collect()
}

/// The narrowest way from a device to its peers, one finding per outer family.
fn path_findings(report: &Report) -> Vec<Finding> {
    let Ok(link) = sys_tun::link_by_name(report.name.as_str()) else { return Vec::new() };
    let endpoints = report.show.peers.iter().filter_map(|peer| peer.endpoint.as_deref()?.parse().ok());
    let endpoints: Vec<SocketAddr> = endpoints.collect();
    let way = |to: SocketAddr| (host::path_mtu(to, Mark(report.show.fwmark)).map_err(|e| e.to_string()), to);
    [true, false]
        .into_iter()
        .filter_map(|v4| {
            let ways = endpoints.iter().filter(|to| to.is_ipv4() == v4).map(|to| way(*to));
            // A way that is not there is worse than any that is.
            let (path, to) = ways.min_by_key(|(path, _)| path.as_ref().ok().copied())?;
            Some(probes::mtu(report.name.as_str(), link.mtu, to, path))
        })
        .collect()
}

/// The ports of served devices; where there is none, the one that a gateway would take.
fn ports(reports: &[Report], port: u16) -> Vec<Finding> {
    if reports.is_empty() {
        let busy = |error: std::io::Error| error.kind() == std::io::ErrorKind::AddrInUse;
        let v4 = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)).err().is_some_and(busy);
        let v6 = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, port)).err().is_some_and(busy);
        return vec![probes::port(port, None, v4 || v6)];
    }
    let each = |report: &Report| probes::port(report.show.listen_port, Some(report.name.as_str()), false);
    reports.iter().map(each).collect()
}

/// Governor and driver of each core that has one.
pub(super) fn governors(cores: &Path) -> Vec<(String, String)> {
    let entries = fs::read_dir(cores).into_iter().flatten().flatten();
    let scaling = entries.map(|entry| entry.path().join("cpufreq")).filter(|path| path.is_dir());
    scaling.map(|path| (read(path.join("scaling_governor")), read(path.join("scaling_driver")))).collect()
}

/// Of the first line of /proc/stat (proc_stat(5)): all ticks, and those stolen. Guests' are in user and nice already.
pub(super) fn processor_ticks(stat: &str) -> Option<(u64, u64)> {
    let numbers = stat.lines().next()?.strip_prefix("cpu ")?;
    let ticks: Vec<u64> = numbers.split_whitespace().take(8).map_while(|word| word.parse().ok()).collect();
    Some((ticks.iter().sum(), *ticks.get(7)?))
}
