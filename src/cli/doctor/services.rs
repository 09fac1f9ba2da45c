//! What the services that clients may use have to do with who listens on this host.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde_json::Value;

use super::finding::{Finding, Probe};
use crate::net::manners::{Service, Transport};

const SERVICES: Probe = Probe {
    name: "services",
    why: "what [services] names and nobody serves is open for nothing; what listens for clients and is not named there \
          gets no packet of theirs",
};

/// `st` of /proc/net/tcp: listening, and of /proc/net/udp: bound, not connected.
const LISTENS: [(Transport, &str); 2] = [(Transport::Tcp, "0A"), (Transport::Udp, "07")];

/// A socket that anybody may begin with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Listener {
    /// `tcp` or `udp`, by its number.
    protocol: u8,
    port: u16,
    addr: IpAddr,
}

/// Those in a table of /proc/net (`tcp`, `tcp6`, `udp`, `udp6`): number, local address, remote address, state.
pub(super) fn listeners(transport: Transport, table: &str) -> Vec<Listener> {
    let listener = |line: &str| {
        let mut words = line.split_whitespace().skip(1);
        let (addr, port) = words.next()?.split_once(':')?;
        let listens = LISTENS.contains(&(transport, words.nth(1)?));
        let port = u16::from_str_radix(port, 16).ok().filter(|_| listens)?;
        Some(Listener { protocol: transport.number(), port, addr: address(addr)? })
    };
    table.lines().filter_map(listener).collect()
}

/// One word of this machine's byte order, or four.
fn address(hexadecimal: &str) -> Option<IpAddr> {
    let word = |at: usize| {
        let digits = hexadecimal.get(8 * at..8 * at + 8)?;
        u32::from_str_radix(digits, 16).ok().map(u32::to_ne_bytes)
    };
    match hexadecimal.len() {
        8 => Some(Ipv4Addr::from(word(0)?).into()),
        32 => {
            let words = [word(0)?, word(1)?, word(2)?, word(3)?];
            let octets: [u8; 16] = words.concat().try_into().ok()?;
            Some(Ipv6Addr::from(octets).to_canonical())
        }
        _ => None,
    }
}

/// What a running gateway says that its clients may use; `None` of a drop-in, whose user decides that himself.
pub(super) fn of_report(dataplane: &Value) -> Option<Vec<Service>> {
    let service = |value: &Value| {
        let transport = match value["transport"].as_str()? {
            "tcp" => Transport::Tcp,
            "udp" => Transport::Udp,
            _ => return None,
        };
        let port = |key: &str| value[key].as_u64()?.try_into().ok();
        Some(Service { transport, first: port("first")?, last: port("last")? })
    };
    dataplane["services"].as_array()?.iter().map(service).collect()
}

/// A gateway's services against who listens; `own` are the addresses of its device.
pub(super) fn findings(
    device: &str,
    services: &[Service],
    listeners: &BTreeSet<Listener>,
    own: &[IpAddr],
) -> Vec<Finding> {
    let names = |service: &Service, listener: &Listener| {
        service.transport.number() == listener.protocol
            && (service.first..=service.last).contains(&listener.port)
    };
    let mut found = Vec::new();
    for service in services {
        let mut there = listeners.iter().filter(|listener| names(service, listener));
        if !there.any(|listener| !listener.addr.is_loopback()) {
            let Service { transport, first, .. } = service;
            found.push(SERVICES.warn(
                format!(
                    "{device}: [services] names {transport} {first}, and nobody listens there for clients"
                ),
                format!("start what shall answer, on an address of {device} or on all; or take {first} out"),
            ));
        }
    }
    for listener in listeners.iter().filter(|listener| own.contains(&listener.addr)) {
        if !services.iter().any(|service| names(service, listener)) {
            let transport = if listener.protocol == Transport::Tcp.number() { "tcp" } else { "udp" };
            let Listener { addr, port, .. } = listener;
            found.push(SERVICES.warn(
                format!(
                    "{device}: somebody listens on {addr}, {transport} {port}, and clients do not get there"
                ),
                format!("add {port} to [services] {transport} and `ringway reload`; or listen elsewhere"),
            ));
        }
    }
    if found.is_empty() {
        found.push(
            SERVICES.ok(format!("{device}: of {} services each has somebody who listens", services.len())),
        );
    }
    found
}
