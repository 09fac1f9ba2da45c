//! The text of the two tables.

use std::fmt::Write as _;
use std::net::IpAddr;

use super::Options;
use crate::net::nft::escaped;
use crate::types::Prefix;

/// How the names of the tables begin. No gateway's table, whose names begin with `ringway_`, is called so.
const PREFIX: &str = "ringway-guard_";
/// How the name of an empty chain begins; the number of the load follows, so that whoever watches knows which of the
/// changes are his own.
const NUMBER: &str = "load_";

/// The name of an empty chain that is there if the rules are to stay.
pub(super) const STAYS: &str = "stays";

/// The local network of IPv4, if it is allowed: fixed ranges, never what a link says of itself, which is what a
/// hostile network would choose (TunnelCrack). No multicast.
const LOCAL_V4: &str = "10.0.0.0/8, 169.254.0.0/16, 172.16.0.0/12, 192.168.0.0/16";
/// That of IPv6.
const LOCAL_V6: &str = "fc00::/7, fe80::/10";
/// Ports under which names are asked for: DNS, NetBIOS, DNS over TLS, mDNS, LLMNR.
const NAMES: &str = "53, 137, 853, 5353, 5355";
/// Frames by which a link works that are no IP packets: ARP, 802.1X (EAPOL), LACP.
const LINK_FRAMES: &str = "0x0806, 0x888e, 0x8809";

/// Both tables of a tunnel have the same name.
pub(super) fn table_name(tunnel: &str) -> String {
    format!("{PREFIX}{}", escaped(tunnel))
}

/// The chain that tells the number of a load, and does nothing.
pub(super) fn number_chain(load: u64) -> String {
    format!("{NUMBER}{load}")
}

/// Both tables as one transaction that replaces those of that name; without `links`, the names of all but the tunnel
/// and the loopback, there is no table for frames. Protocols stand by their numbers: not every container has
/// /etc/protocols.
pub(super) fn ruleset(options: &Options, load: u64, links: Option<&[String]>) -> String {
    let tunnel = options.tunnel.as_str();
    let table = table_name(tunnel);
    let mut text =
        format!("add table inet {table}\ndelete table inet {table}\n{}", packets(&table, options, load));
    if let Some(links) = links {
        let _ = write!(text, "add table netdev {table}\ndelete table netdev {table}\n");
        text.push_str(&frames(&table, options, links));
    }
    text
}

fn local_jump(options: &Options) -> String {
    if has_local(options) { "jump local\n".to_owned() } else { String::new() }
}

fn has_local(options: &Options) -> bool {
    options.local_network || !options.excluded.is_empty()
}

fn packets(table: &str, options: &Options, load: u64) -> String {
    let (tunnel, mark) = (options.tunnel.as_str(), options.mark.0);
    let (own, shared, local_jump) = (own_sets(options), shared_chains(options), local_jump(options));
    let number = number_chain(load);
    let stays = if options.stays { format!("chain {STAYS} {{\n}}\n") } else { String::new() };
    format!(
        r#"table inet {table} {{
comment "Ringway's kill switch: nothing leaves but by {tunnel}"
{own}chain arriving {{
type filter hook prerouting priority raw; policy accept;
iifname != {{ "lo", "{tunnel}" }} ip daddr @tunnel_v4 counter drop comment "to the tunnel's address by another link"
iifname != {{ "lo", "{tunnel}" }} ip6 daddr @tunnel_v6 counter drop comment "to the tunnel's address by another link"
}}
{shared}chain sent {{
type filter hook output priority filter; policy drop;
oifname {{ "lo", "{tunnel}" }} accept
meta mark {mark} accept comment "carries the tunnel, or is protected"
jump link
{local_jump}counter comment "dropped"
}}
chain forwarded {{
type filter hook forward priority filter; policy drop;
oifname "{tunnel}" accept
iifname "{tunnel}" ct state established,related meta mark set {mark} accept comment "answers to guests"
{local_jump}counter comment "dropped"
}}
{stays}chain {number} {{
}}
}}
"#
    )
}

/// What others see of the host beside packets of its own: the same rules again, and no more than ARP.
fn frames(table: &str, options: &Options, links: &[String]) -> String {
    let (tunnel, mark) = (options.tunnel.as_str(), options.mark.0);
    let (own, shared, local_jump) = (own_sets(options), shared_chains(options), local_jump(options));
    let hook = hooked(links);
    format!(
        r#"table netdev {table} {{
comment "Ringway's kill switch: nothing leaves but by {tunnel}"
{own}{shared}chain leaving {{
oifname {{ "lo", "{tunnel}" }} accept
meta mark {mark} accept comment "carries the tunnel, is protected, or answers a guest"
arp saddr ip @tunnel_v4 counter drop comment "the tunnel's address is nobody else's business"
meta protocol {{ {LINK_FRAMES} }} accept
jump link
{local_jump}counter drop comment "dropped"
}}
{hook}}}
"#
    )
}

/// The chain on these links, if there is any.
fn hooked(links: &[String]) -> String {
    if links.is_empty() {
        return String::new();
    }
    let names = links.iter().map(|name| format!("\"{name}\"")).collect::<Vec<_>>().join(", ");
    format!(
        "chain links {{\ntype filter hook egress devices = {{ {names} }} priority 0; policy drop;\n\
         jump leaving\n}}\n"
    )
}

/// The tunnel's addresses.
fn own_sets(options: &Options) -> String {
    let mut text = String::new();
    for (name, kind, v4) in [("tunnel_v4", "ipv4_addr", true), ("tunnel_v6", "ipv6_addr", false)] {
        let mut addresses: Vec<String> =
            options.addresses.iter().filter(|a| a.is_ipv4() == v4).map(IpAddr::to_string).collect();
        addresses.sort();
        addresses.dedup();
        // Writing to a string does not fail.
        let _ = match addresses.join(", ").as_str() {
            "" => writeln!(text, "set {name} {{ type {kind}; }}"),
            list => writeln!(text, "set {name} {{ type {kind}; elements = {{ {list} }}; }}"),
        };
    }
    text
}

/// What every table needs: DHCP (UDP is 17), neighbour discovery (ICMPv6 is 58), and the local network if it is
/// allowed.
fn shared_chains(options: &Options) -> String {
    let link = "chain link {\n\
        ip protocol 17 udp sport 68 udp dport 67 accept comment \"DHCP\"\n\
        ip6 daddr { fe80::/10, ff02::1:2, ff05::1:3 } meta l4proto 17 udp sport 546 udp dport 547 accept \
        comment \"DHCPv6\"\n\
        ip6 hoplimit 255 meta l4proto 58 icmpv6 type { 133, 134, 135, 136 } accept \
        comment \"neighbours and routers\"\n\
        }\n";
    if !has_local(options) {
        return link.to_owned();
    }
    let mut text = String::new();
    for (name, kind, v4) in [("excluded_v4", "ipv4_addr", true), ("excluded_v6", "ipv6_addr", false)] {
        let of_family = options.excluded.iter().filter(|prefix| prefix.addr().is_ipv4() == v4);
        let prefixes: Vec<_> = of_family.map(Prefix::to_string).collect();
        let elements = match prefixes.join(", ").as_str() {
            "" => String::new(),
            list => format!(" elements = {{ {list} }};"),
        };
        // Writing to a string does not fail.
        let _ = writeln!(text, "set {name} {{ type {kind}; flags interval; auto-merge;{elements} }}");
    }
    let ranges = if options.local_network {
        format!("ip daddr {{ {LOCAL_V4} }} accept\nip6 daddr {{ {LOCAL_V6} }} accept\n")
    } else {
        String::new()
    };
    format!(
        "{text}{link}chain local {{\n\
         meta l4proto {{ 6, 17 }} th dport {{ {NAMES} }} counter drop comment \"names are asked in the tunnel\"\n\
         meta l4proto 58 counter drop\n\
         ip daddr @excluded_v4 accept\n\
         ip6 daddr @excluded_v6 accept\n\
         {ranges}}}\n"
    )
}
