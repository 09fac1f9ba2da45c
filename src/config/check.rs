//! What no single key can tell.

pub(super) mod pools;

use std::collections::HashMap;
use std::hash::Hash;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::Path;

use super::key::{self, KeyFileError};
use super::locate::{Map, Step};
use super::{Finding, Gateway, MAX_NAMES};
use crate::net::manners;
use crate::sys::thread;
use crate::wire::frame::lease::AddrReply;

/// Least MTU of a link that carries IPv6 (RFC 8200 section 5).
const MIN_MTU_V6: u32 = 1280;

/// Says what is wrong, at which line.
struct Findings<'a> {
    map: Map<'a>,
    list: Vec<Finding>,
}

impl Findings<'_> {
    fn add(&mut self, place: &[Step], message: String) {
        self.list.push(Finding { line: self.map.line(place), message });
    }

    /// Reports each value that was there before, with the line of the first.
    fn unique<T: Hash + Eq>(
        &mut self,
        values: impl Iterator<Item = (T, Vec<Step>)>,
        say: impl Fn(&T, String) -> String,
    ) {
        let mut first: HashMap<T, Vec<Step>> = HashMap::new();
        for (value, place) in values {
            if let Some(before) = first.get(&value) {
                let line = self.map.line(before).unwrap_or_default();
                self.add(&place, say(&value, format!("line {line}")));
            } else {
                first.insert(value, place);
            }
        }
    }
}

/// What is wrong with the text alone.
pub(super) fn findings(gateway: &Gateway, map: Map<'_>) -> Vec<Finding> {
    let mut findings = Findings { map, list: Vec::new() };
    device(gateway, &mut findings);
    forwarding(gateway, &mut findings);
    peers(gateway, &mut findings);
    clients(gateway, &mut findings);
    pools::check(gateway, &mut findings);
    in_order(findings.list)
}

/// What is wrong with the files that the text names, the private key's only if that is asked for, and with the host.
pub(super) fn file_findings(gateway: &Gateway, text: &str, private_key: bool) -> Vec<Finding> {
    let mut findings = Findings { map: Map::new(text), list: Vec::new() };
    let mine = thread::cores();
    for (place, core) in gateway.cores.iter().enumerate().filter(|(_, core)| !mine.contains(core)) {
        findings.add(
            &[Step::Key("cores"), Step::At(place)],
            format!("core {core} is none of this process's: {mine:?}"),
        );
    }
    match private_key.then(|| key::read(&gateway.private_key_file)) {
        // It is made at the first start.
        None | Some(Ok(_) | Err(KeyFileError::Missing)) => {}
        Some(Err(error)) => {
            findings.add(&[Step::Key("private_key_file")], file(&gateway.private_key_file, &error))
        }
    }
    for (at, peer) in gateway.peer.iter().enumerate() {
        let Some(path) = &peer.preshared_key_file else { continue };
        if let Err(error) = key::read(path) {
            findings.add(&place("peer", at, "preshared_key_file"), file(path, &error));
        }
    }
    in_order(findings.list)
}

fn file(path: &Path, error: &KeyFileError) -> String {
    format!("{} {error}", path.display())
}

fn in_order(mut list: Vec<Finding>) -> Vec<Finding> {
    list.sort_by_key(|finding| finding.line);
    list
}

fn device(gateway: &Gateway, findings: &mut Findings<'_>) {
    if !gateway.private_key_file.is_absolute() {
        findings.add(&[Step::Key("private_key_file")], "the path must begin with '/'".to_owned());
    }
    if !gateway.store.path.is_absolute() {
        findings.add(&[Step::Key("store"), Step::Key("path")], "the path must begin with '/'".to_owned());
    }
    if gateway.mtu < MIN_MTU_V6 && gateway.addresses.iter().any(|address| address.addr().is_ipv6()) {
        findings.add(&[Step::Key("mtu")], format!("IPv6 needs an MTU of {MIN_MTU_V6} at least"));
    }
    let addresses = gateway.addresses.iter().enumerate();
    findings.unique(
        addresses.map(|(place, own)| (own.addr(), vec![Step::Key("addresses"), Step::At(place)])),
        |addr, line| format!("the address {addr} stands here twice, first in {line}"),
    );
    let cores = gateway.cores.iter().enumerate();
    findings.unique(
        cores.map(|(place, core)| (*core, vec![Step::Key("cores"), Step::At(place)])),
        |core, line| format!("core {core} stands here twice, first in {line}"),
    );
}

fn forwarding(gateway: &Gateway, findings: &mut Findings<'_>) {
    let named = |at| vec![Step::Key("forwarding"), Step::Key("interfaces"), Step::At(at)];
    let names = || gateway.forwarding.interfaces.iter().enumerate();
    findings.unique(names().map(|(at, name)| (name.as_str(), named(at))), |name, line| {
        format!("the interface {name} stands here twice, first in {line}")
    });
    for (at, name) in names() {
        if *name == gateway.interface {
            findings
                .add(&named(at), format!("{name} is the gateway's own: name those that clients leave by"));
        } else if !manners::can_name(name) {
            findings.add(&named(at), format!("nftables takes no interface named {name}: rename it"));
        }
    }
}

fn peers(gateway: &Gateway, findings: &mut Findings<'_>) {
    let peers = || gateway.peer.iter().enumerate();
    let keys = peers().map(|(at, peer)| (peer.public_key, place("peer", at, "public_key")));
    findings.unique(keys, |_, line| format!("this public key is another peer's as well, in {line}"));
    findings.unique(
        peers()
            .filter(|(_, peer)| !peer.name.is_empty())
            .map(|(at, peer)| (peer.name.as_str(), place("peer", at, "name"))),
        |name, line| format!("the name {name:?} is another peer's as well, in {line}"),
    );
    let prefixes = || {
        peers().flat_map(|(at, peer)| {
            let prefixes = peer.allowed_ips.iter().enumerate();
            prefixes.map(move |(number, prefix)| (*prefix, element("peer", at, "allowed_ips", number)))
        })
    };
    findings.unique(prefixes(), |prefix, line| {
        format!("{prefix} belongs to one peer only, and stands in {line} as well")
    });
    for (prefix, place) in prefixes().filter(|(prefix, _)| prefix.is_host()) {
        if gateway.addresses.iter().any(|own| own.addr() == prefix.addr()) {
            findings.add(&place, format!("{} is the gateway's own address", prefix.addr()));
        }
    }
    for (at, peer) in peers() {
        if peer.preshared_key_file.as_ref().is_some_and(|path| !path.is_absolute()) {
            findings.add(&place("peer", at, "preshared_key_file"), "the path must begin with '/'".to_owned());
        }
    }
}

fn clients(gateway: &Gateway, findings: &mut Findings<'_>) {
    let told = &gateway.clients;
    for (key, count) in [("dns", told.dns.len()), ("search", told.search.len())] {
        if count > MAX_NAMES {
            findings.add(&[Step::Key("clients"), Step::Key(key)], format!("{MAX_NAMES} at most"));
        }
    }
    let settings = told.settings(gateway.mtu);
    let longest = AddrReply {
        ipv4: Some((Ipv4Addr::BROADCAST, 32)),
        ipv6: Some((Ipv6Addr::LOCALHOST, 128)),
        gateway_ipv4: Some(Ipv4Addr::BROADCAST),
        gateway_ipv6: Some(Ipv6Addr::LOCALHOST),
        seconds: u32::MAX,
        usage_id: u32::MAX,
    };
    let (length, most) = (longest.write(&settings, 0).len(), settings.mtu as usize);
    if length > most {
        let text =
            format!("a client is told all of this in {length} bytes, and {most} fit its MTU: say less");
        findings.add(&[Step::Key("clients")], text);
    }
    for (at, peer) in gateway.peer.iter().enumerate().filter(|(_, peer)| !peer.pool.is_empty()) {
        if !gateway.pool.iter().any(|pool| pool.name == peer.pool) {
            findings.add(&place("peer", at, "pool"), format!("there is no pool {:?}", peer.pool));
        }
    }
}

/// Where a key of the `at`-th `[[section]]` stands.
fn place(section: &'static str, at: usize, key: &'static str) -> Vec<Step> {
    vec![Step::Key(section), Step::At(at), Step::Key(key)]
}

/// Where an element of such a key's list stands.
fn element(section: &'static str, at: usize, key: &'static str, number: usize) -> Vec<Step> {
    let mut steps = place(section, at, key);
    steps.push(Step::At(number));
    steps
}
