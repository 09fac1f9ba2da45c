//! The gateway's nftables table: its text, and how it is changed and removed without running a program.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::IpAddr;

use super::{Forward, HostRules, MannersError, Transport};
use crate::net::nft::{
    DELETE_ELEMENTS, Family, Message, NEW_ELEMENTS, NftError, Transactions, attribute, escaped, nested, text,
};
use crate::types::Prefix;

/// How the name of each gateway's table begins.
pub(super) const PREFIX: &str = "ringway_";
/// The set that holds the listen port.
const LISTEN: &str = "listen";
/// The sets that hold UDP while what is masqueraded takes its ports from one half of its range only.
const LOWER: &str = "lower";
/// As [`LOWER`].
const UPPER: &str = "upper";
/// TCP ports of the host that clients may use.
const TCP: &str = "services_tcp";
/// UDP ports of it.
const UDP: &str = "services_udp";
/// The tunnel, if clients do not reach each other.
const APART: &str = "apart";
/// The tunnel, if clients leave by [`INTERFACES`] only.
const BOUND: &str = "bound";
/// The interfaces that clients leave by then.
const INTERFACES: &str = "interfaces";
/// Clients that leave under another address.
const MASKED_V4: &str = "masked_v4";
/// As [`MASKED_V4`].
const MASKED_V6: &str = "masked_v6";
/// The table of an interface's gateway.
pub(super) fn table_name(interface: &str) -> String {
    format!("{PREFIX}{}", escaped(interface))
}

/// The whole table as one transaction that replaces one of that name. The tunnel is named by its index: a name could
/// hold what nft reads as a pattern; protocols by their numbers: not every container has /etc/protocols. What may
/// change while the gateway runs is in sets: [`contents`], and the listen port, for which [`Tables::listen_on`] fills
/// them.
pub(super) fn ruleset(rules: &HostRules, tunnel: u32) -> String {
    let table = table_name(rules.interface.as_str());
    let (sets, outer, nat) = (sets(&contents(rules, tunnel)), outer(rules, tunnel), nat(rules, tunnel));
    format!(
        r#"add table inet {table}
delete table inet {table}
table inet {table} {{
set {LISTEN} {{ type inet_service; }}
set {LOWER} {{ type inet_proto; }}
set {UPPER} {{ type inet_proto; }}
{sets}chain before {{
type filter hook prerouting priority raw; policy accept;
iif {tunnel} udp dport @{LISTEN} fib daddr type local counter drop comment "the tunnel inside itself"
{outer}udp dport @{LISTEN} fib daddr type local notrack comment "no client's connection may claim these"
}}
chain sent {{
type filter hook output priority raw; policy accept;
oif {tunnel} udp sport @{LISTEN} counter drop comment "the tunnel inside itself"
udp sport @{LISTEN} notrack comment "no client's connection may claim these"
}}
chain host {{
type filter hook input priority filter; policy accept;
iif {tunnel} jump clients
}}
chain clients {{
ct state established accept
meta l4proto {{ 1, 58 }} accept comment "ICMP"
tcp dport @{TCP} accept
udp dport @{UDP} accept
counter drop comment "not in services"
}}
chain between {{
type filter hook forward priority filter; policy accept;
iif {tunnel} oif @{APART} counter drop comment "client_to_client = false"
iif {tunnel} iif @{BOUND} oif != {tunnel} oifname != @{INTERFACES} counter drop comment "to none of interfaces"
oif {tunnel} oif @{BOUND} iif != {tunnel} iifname != @{INTERFACES} counter drop comment "from none of interfaces"
}}
{nat}}}
"#
    )
}

/// What the sets hold, by their names.
pub(super) type Contents = BTreeMap<&'static str, BTreeSet<Element>>;

/// One element of a set.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Element {
    /// A link by its index.
    Link(u32),
    /// A link by its name, which may not be there.
    Name(String),
    /// First and last port.
    Ports(u16, u16),
    /// A range of addresses.
    Addresses(Prefix),
}

/// What these rules have in the sets; all that they decide and that may change later.
pub(super) fn contents(rules: &HostRules, tunnel: u32) -> Contents {
    let tunnel_if = |chosen: bool| chosen.then_some(Element::Link(tunnel)).into_iter().collect();
    let services = |wanted| {
        let services = rules.services.iter().filter(move |service| service.transport == wanted);
        services.map(|service| Element::Ports(service.first, service.last)).collect()
    };
    let clients = |v4| {
        let ranges = rules.clients.iter().filter(|range| rules.masquerade && range.addr().is_ipv4() == v4);
        outermost(ranges).into_iter().map(Element::Addresses).collect()
    };
    let interfaces = match &rules.forward {
        Forward::To(names) => {
            Some(names.iter().map(|name| Element::Name(name.as_str().to_owned())).collect())
        }
        Forward::Routed | Forward::Off => None,
    };
    [
        (TCP, services(Transport::Tcp)),
        (UDP, services(Transport::Udp)),
        (APART, tunnel_if(!rules.client_to_client)),
        (BOUND, tunnel_if(interfaces.is_some())),
        (INTERFACES, interfaces.unwrap_or_default()),
        (MASKED_V4, clients(true)),
        (MASKED_V6, clients(false)),
    ]
    .into()
}

/// Their declarations.
fn sets(contents: &Contents) -> String {
    let mut text = String::new();
    for (name, elements) in contents {
        let kind = match *name {
            TCP | UDP => "inet_service; flags interval",
            MASKED_V4 => "ipv4_addr; flags interval",
            MASKED_V6 => "ipv6_addr; flags interval",
            INTERFACES => "ifname",
            _ => "iface_index",
        };
        let elements = elements.iter().map(Element::text).collect::<Vec<_>>().join(", ");
        // Writing to a string does not fail.
        let _ = match elements.as_str() {
            "" => writeln!(text, "set {name} {{ type {kind}; }}"),
            _ => writeln!(text, "set {name} {{ type {kind}; elements = {{ {elements} }}; }}"),
        };
    }
    text
}

impl Element {
    /// As nft reads it.
    fn text(&self) -> String {
        match self {
            Self::Link(index) => index.to_string(),
            Self::Name(name) => format!("\"{name}\""),
            Self::Ports(first, last) if first == last => first.to_string(),
            Self::Ports(first, last) => format!("{first}-{last}"),
            Self::Addresses(range) => range.to_string(),
        }
    }

    /// As the kernel has it: the key, and of a range what is the first beyond it, if there is such.
    fn keys(&self) -> (Vec<u8>, Option<Vec<u8>>) {
        match self {
            Self::Link(index) => (index.to_ne_bytes().into(), None),
            Self::Name(name) => {
                let mut key = name.clone().into_bytes();
                key.resize(libc::IFNAMSIZ, 0);
                (key, None)
            }
            Self::Ports(first, last) => {
                (first.to_be_bytes().into(), last.checked_add(1).map(|end| end.to_be_bytes().into()))
            }
            Self::Addresses(range) => match range.addr() {
                IpAddr::V4(first) => {
                    let end = 1_u32.checked_shl(32 - u32::from(range.len()));
                    let end = end.and_then(|size| first.to_bits().checked_add(size));
                    (first.octets().into(), end.map(|end| end.to_be_bytes().into()))
                }
                IpAddr::V6(first) => {
                    let end = 1_u128.checked_shl(128 - u32::from(range.len()));
                    let end = end.and_then(|size| first.to_bits().checked_add(size));
                    (first.octets().into(), end.map(|end| end.to_be_bytes().into()))
                }
            },
        }
    }

    /// Its attributes in a list of elements: one, and for a range a second one that marks its end.
    fn attributes(&self) -> Vec<u8> {
        let (key, end) = self.keys();
        let named = |key: &[u8]| nested(FIRST, &attribute(VALUE, key));
        let mut bytes = nested(FIRST, &named(&key));
        if let Some(end) = end {
            let end = [named(&end), attribute(FLAGS, &INTERVAL_END.to_be_bytes())].concat();
            bytes.extend(nested(FIRST, &end));
        }
        bytes
    }
}

/// Under an address that is not the host's own the gateway may be known as well.
fn outer(rules: &HostRules, tunnel: u32) -> String {
    let mut text = String::new();
    for address in &rules.outer {
        let family = if address.is_ipv4() { "ip" } else { "ip6" };
        let _ = writeln!(text, "iif {tunnel} {family} daddr {address} udp dport @{LISTEN} counter drop");
    }
    text
}

/// Masquerading. Its UDP ports leave the listen port out: a flow with that source port would claim the datagrams of
/// the tunnel with the same far end. They are the larger range beside the port of the start, or half of that.
fn nat(rules: &HostRules, tunnel: u32) -> String {
    let udp = Transport::Udp.number();
    let (first, last) = ports_without(rules.listen_port);
    let upper = middle((first, last));
    let below = upper - 1;
    let mut text = "chain leaving {\ntype nat hook postrouting priority srcnat; policy accept;\n".to_owned();
    for (family, masked) in [("ip", MASKED_V4), ("ip6", MASKED_V6)] {
        let from = format!("iif {tunnel} oif != {tunnel} {family} saddr @{masked}");
        let _ =
            writeln!(text, "{from} meta l4proto {udp} meta l4proto @{LOWER} masquerade to :{first}-{below}");
        let _ =
            writeln!(text, "{from} meta l4proto {udp} meta l4proto @{UPPER} masquerade to :{upper}-{last}");
        let _ = writeln!(text, "{from} meta l4proto {udp} masquerade to :{first}-{last}");
        let _ = writeln!(text, "{from} masquerade");
    }
    text.push_str("}\n");
    text
}

/// The larger of the two ranges of unprivileged ports beside `port`.
fn ports_without(port: u16) -> (u16, u16) {
    const FIRST: u16 = 1024;
    if port < FIRST {
        (FIRST, u16::MAX)
    } else if port - FIRST >= u16::MAX - port {
        (FIRST, port - 1)
    } else {
        (port + 1, u16::MAX)
    }
}

/// The first port of the upper half of a range.
fn middle((first, last): (u16, u16)) -> u16 {
    first.midpoint(last) + 1
}

/// The half without `port` of the range that rules for the listen port `before` masquerade to, if `port` is in it.
fn half(before: u16, port: u16) -> Option<&'static str> {
    let (first, last) = ports_without(before);
    let inside = (first..=last).contains(&port);
    inside.then(|| if port < middle((first, last)) { UPPER } else { LOWER })
}

/// Without those that lie within another: nft refuses overlapping intervals.
fn outermost<'a>(ranges: impl Iterator<Item = &'a Prefix>) -> Vec<Prefix> {
    let mut ranges: Vec<Prefix> = ranges.copied().collect();
    ranges.sort_by_key(|range| (range.addr(), range.len()));
    ranges.dedup_by(|inner, outer: &mut Prefix| {
        Prefix::new(inner.addr(), outer.len()).is_some_and(|wider| wider == *outer)
    });
    ranges
}

/// Changes and deletes gateways' tables.
#[derive(Debug)]
pub(super) struct Tables(Transactions);

/// `NFTA_SET_ELEM_LIST_TABLE` of linux/netfilter/nf_tables.h.
const TABLE_NAME: u16 = 1;
/// `NFTA_SET_ELEM_LIST_SET`.
const SET_NAME: u16 = 2;
/// `NFTA_SET_ELEM_LIST_ELEMENTS`.
const ELEMENTS: u16 = 3;
/// `NFTA_LIST_ELEM`, in it `NFTA_SET_ELEM_KEY`: both the first of their kind, and nested.
const FIRST: u16 = 1;
/// `NFTA_SET_ELEM_FLAGS`, a word in network order.
const FLAGS: u16 = 3;
/// `NFT_SET_ELEM_INTERVAL_END`: the first key beyond a range.
const INTERVAL_END: u32 = 1;
/// Elements of one message. An attribute has less than 64 KiB, and a range of IPv6 takes 72 bytes.
const ELEMENTS_PER_MESSAGE: usize = 500;
/// Messages of one transaction, so that it fits the socket's buffer.
const MESSAGES_PER_BATCH: usize = 4;
/// `NFTA_DATA_VALUE`.
const VALUE: u16 = 1;

impl Tables {
    pub(super) fn open() -> Result<Self, MannersError> {
        Ok(Self(Transactions::open()?))
    }

    /// Deletes a table. None of that name is as good.
    pub(super) fn delete(&self, table: &str) -> Result<(), MannersError> {
        Ok(self.0.delete(Family::Inet, table)?)
    }

    /// Has a table, which was made for the listen port `before`, name `port` in its place.
    pub(super) fn listen_on(&self, table: &str, before: u16, port: u16) -> Result<(), MannersError> {
        let set = |name| [text(TABLE_NAME, table), text(SET_NAME, name)].concat();
        let message = |kind, attributes| Message { kind, family: Family::Inet, attributes };
        let add = |name, key: &[u8]| message(NEW_ELEMENTS, [set(name), element(key)].concat());
        // Without elements all are deleted; there may be none.
        let mut messages: Vec<_> =
            [LISTEN, LOWER, UPPER].map(|name| message(DELETE_ELEMENTS, set(name))).into();
        messages.extend(half(before, port).map(|half| add(half, &[Transport::Udp.number()])));
        messages.push(add(LISTEN, &port.to_be_bytes()));
        self.0.change(&messages).map_err(|error| {
            NftError::Refused(format!("the listen port {port} in the table {table}: {error}")).into()
        })
    }

    /// Has a table's sets hold `after` where they held `before`: in one transaction, unless thousands of elements
    /// differ.
    pub(super) fn exchange(
        &self,
        table: &str,
        before: &Contents,
        after: &Contents,
    ) -> Result<(), MannersError> {
        let mut messages = Vec::new();
        for (kind, all, but) in [(DELETE_ELEMENTS, before, after), (NEW_ELEMENTS, after, before)] {
            for (name, elements) in all {
                let kept = but.get(name);
                let differ = |element: &&Element| !kept.is_some_and(|kept| kept.contains(*element));
                let differing: Vec<_> = elements.iter().filter(differ).map(Element::attributes).collect();
                for some in differing.chunks(ELEMENTS_PER_MESSAGE) {
                    let list = nested(ELEMENTS, &some.concat());
                    let attributes = [text(TABLE_NAME, table), text(SET_NAME, name), list].concat();
                    messages.push(Message { kind, family: Family::Inet, attributes });
                }
            }
        }
        let changed = messages.chunks(MESSAGES_PER_BATCH).try_for_each(|some| self.0.change(some));
        let refused = |error| NftError::Refused(format!("changing the sets of the table {table}: {error}"));
        changed.map_err(|error| refused(error).into())
    }
}

/// A list of one element of a set.
fn element(key: &[u8]) -> Vec<u8> {
    nested(ELEMENTS, &nested(FIRST, &nested(FIRST, &attribute(VALUE, key))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::IpAddr;

    fn prefix(text: &str) -> Prefix {
        let (address, length) = text.split_once('/').unwrap();
        Prefix::new(address.parse::<IpAddr>().unwrap(), length.parse().unwrap()).unwrap()
    }

    #[test]
    fn a_table_is_named_after_its_interface_and_no_other() {
        for (interface, table) in [
            ("wg0", "ringway_wg0"),
            ("wg-home.2_x", "ringway_wg-home.2_x"),
            ("a\"b;c", "ringway_a/22b/3bc"),
            ("é", "ringway_/c3/a9"),
        ] {
            assert_eq!(table_name(interface), table);
        }
    }

    #[test]
    fn the_larger_range_beside_the_listen_port() {
        for (port, range) in [
            (53, (1024, 65535)),
            (1024, (1025, 65535)),
            (5000, (5001, 65535)),
            (51820, (1024, 51819)),
            (65535, (1024, 65534)),
        ] {
            assert_eq!(ports_without(port), range);
        }
    }

    #[test]
    fn no_range_in_use_holds_the_listen_port() {
        for before in [1, 1023, 1024, 1025, 5000, 33279, 33280, 51820, 65534, 65535] {
            let (first, last) = ports_without(before);
            for port in 1..=u16::MAX {
                let (from, to) = match half(before, port) {
                    None => (first, last),
                    Some(LOWER) => (first, middle((first, last)) - 1),
                    Some(_) => (middle((first, last)), last),
                };
                assert!(!(from..=to).contains(&port) && to - from >= 16_000, "{before} {port}");
                assert!(half(before, port).is_none() || (first..=last).contains(&port), "the whole would do");
            }
        }
    }

    #[test]
    fn ranges_within_others_are_left_out() {
        let ranges = ["10.1.0.0/16", "10.0.0.0/8", "10.0.0.0/8", "11.0.0.0/8", "10.0.0.0/24"].map(prefix);
        assert_eq!(outermost(ranges.iter()), ["10.0.0.0/8", "11.0.0.0/8"].map(prefix));
        assert_eq!(outermost([prefix("1.2.3.4/32"), prefix("0.0.0.0/0")].iter()), [prefix("0.0.0.0/0")]);
    }
}
