//! What becomes of a packet in the chains of a ruleset.
//!
//! A rule with a condition that cannot be judged counts as not matching: a client's packet has some other interface at
//! its other end, some address. One thing more is known of what comes in at a port: whoever accepts that port on some
//! interface, or at some address, has thought of it, and counts as accepting it.

use std::collections::HashMap;

use serde_json::Value;

use super::super::{Service, table};
use super::{Dropped, ForeignDrop, Manager, Needs};

/// Longest chain of jumps that nftables allows (`NFT_JUMP_STACK_SIZE`).
const JUMPS: usize = 16;

/// As [`super::look`], in what `nft -j list ruleset` printed.
pub(super) fn in_ruleset(ruleset: &Value, needs: &Needs<'_>) -> Vec<ForeignDrop> {
    let objects = ruleset["nftables"].as_array().map(Vec::as_slice).unwrap_or_default();
    let mut tables: HashMap<(&str, &str), Table<'_>> = HashMap::new();
    let mut bases = Vec::new();
    for object in objects {
        if let Some((id, name)) = place(&object["chain"], "name") {
            tables.entry(id).or_default().0.entry(name).or_default();
            let chain = &object["chain"];
            if chain["type"] == "filter" {
                bases.push((id, name, &chain["hook"], chain["policy"] == "drop"));
            }
        } else if let Some((id, chain)) = place(&object["rule"], "chain") {
            let table = tables.entry(id).or_default();
            table.0.entry(chain).or_default().push(&object["rule"]["expr"]);
        }
    }
    let mut drops = Vec::new();
    for ((family, name), chain, hook, policy) in bases {
        let Some(table) = tables.get(&(family, name)).filter(|_| !name.starts_with(table::PREFIX)) else {
            continue;
        };
        let is_dropped = |what: &Dropped| {
            let here = *hook == if what.is_forwarded() { "forward" } else { "input" };
            let packet = Packet { interface: needs.interface, what: *what };
            here && match table.follow(chain, packet, JUMPS) {
                Some(Fate::Drop) => true,
                Some(Fate::Accept { .. }) => false,
                Some(Fate::Return) | None => policy,
            }
        };
        let mut dropped = needs.all();
        dropped.retain(is_dropped);
        if !dropped.is_empty() {
            drops.push(ForeignDrop {
                family: family.to_owned(),
                table: name.to_owned(),
                chain: chain.to_owned(),
                manager: table.manager(name, chain),
                dropped,
                interface: needs.interface.to_owned(),
            });
        }
    }
    drops
}

/// Family and table of an object, and its name or its chain.
fn place<'a>(object: &'a Value, key: &str) -> Option<((&'a str, &'a str), &'a str)> {
    let text = |key: &str| object[key].as_str();
    Some(((text("family")?, text("table")?), text(key)?))
}

/// The rules of a table's chains.
#[derive(Default)]
struct Table<'a>(HashMap<&'a str, Vec<&'a Value>>);

/// One of the packets that are followed.
#[derive(Clone, Copy)]
struct Packet<'a> {
    interface: &'a str,
    what: Dropped,
}

/// What becomes of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Accept {
        /// By a rule that names its port.
        by_port: bool,
    },
    Drop,
    Return,
}

/// Whether a condition holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Holds {
    Yes,
    /// It names the packet's port, and that is so.
    ByPort,
    /// It tells some packets of this kind from others.
    Perhaps,
    No,
}

impl Table<'_> {
    fn manager(&self, table: &str, chain: &str) -> Manager {
        let has = |begin: &str| self.0.keys().any(|name| name.starts_with(begin));
        if table == "firewalld" {
            Manager::Firewalld
        } else if has("ufw-") || has("ufw6-") {
            Manager::Ufw
        } else if has("DOCKER-USER") {
            Manager::Docker
        } else if table == "filter" && matches!(chain, "FORWARD" | "INPUT") {
            Manager::Iptables
        } else {
            Manager::Nftables
        }
    }

    /// What a chain does with a packet; `None` if it comes to its end.
    fn follow(&self, chain: &str, packet: Packet<'_>, jumps: usize) -> Option<Fate> {
        self.0.get(chain)?.iter().find_map(|rule| self.rule(rule, packet, jumps))
    }

    /// What a rule does; `None` if the next one is to be asked.
    fn rule(&self, rule: &Value, packet: Packet<'_>, jumps: usize) -> Option<Fate> {
        let (mut by_port, mut perhaps) = (false, false);
        for expression in rule.as_array()? {
            let (kind, value) = expression.as_object()?.iter().next()?;
            let holds = match kind.as_str() {
                "match" => packet.matches(value),
                // They look, or count, and let pass.
                "counter" | "log" | "comment" => Holds::Yes,
                "limit" => Holds::Perhaps,
                // A match of iptables without a native form: it may list ports.
                "xt" if value["type"] == "match" => match value["name"].as_str() {
                    Some("comment") => Holds::Yes,
                    Some("multiport") if packet.port().is_some() => {
                        by_port = true;
                        Holds::Perhaps
                    }
                    _ => Holds::No,
                },
                _ => {
                    let fate = if kind == "vmap" {
                        self.mapped(value, packet, jumps)
                    } else {
                        self.verdict(expression, packet, jumps)
                    };
                    return certain(fate, by_port, perhaps);
                }
            };
            match holds {
                Holds::Yes => {}
                Holds::ByPort => by_port = true,
                Holds::Perhaps => perhaps = true,
                Holds::No => return None,
            }
        }
        None
    }

    fn verdict(&self, verdict: &Value, packet: Packet<'_>, jumps: usize) -> Option<Fate> {
        let (kind, value) = verdict.as_object()?.iter().next()?;
        match kind.as_str() {
            "accept" => Some(Fate::Accept { by_port: false }),
            "drop" | "reject" => Some(Fate::Drop),
            "return" => Some(Fate::Return),
            // A target of iptables without a native form.
            "xt" if matches!(value["name"].as_str(), Some("REJECT" | "DROP")) => Some(Fate::Drop),
            "jump" | "goto" => {
                let fate = self.follow(value["target"].as_str()?, packet, jumps.checked_sub(1)?);
                match fate {
                    Some(Fate::Return) | None => (kind == "goto").then_some(Fate::Return),
                    decided => decided,
                }
            }
            _ => None,
        }
    }

    /// What becomes of a packet by a map of verdicts.
    fn mapped(&self, map: &Value, packet: Packet<'_>, jumps: usize) -> Option<Fate> {
        map["data"]["set"].as_array()?.iter().find_map(|entry| {
            let holds = packet.is_one_of(&map["key"], entry.get(0).into_iter());
            let fate = (holds != Holds::No).then(|| self.verdict(entry.get(1)?, packet, jumps))?;
            certain(fate, holds == Holds::ByPort, holds == Holds::Perhaps)
        })
    }
}

/// What a rule's verdict means if its conditions named the port, or hold for some packets only.
fn certain(fate: Option<Fate>, by_port: bool, perhaps: bool) -> Option<Fate> {
    match fate? {
        Fate::Accept { by_port: named } if named || by_port => Some(Fate::Accept { by_port: true }),
        fate => (!perhaps).then_some(fate),
    }
}

impl Packet<'_> {
    /// The protocol and ports of what comes in at one.
    fn port(self) -> Option<Service> {
        match self.what {
            Dropped::FromClients | Dropped::ToClients => None,
            Dropped::Tunnel(port) => {
                Some(Service { transport: super::Transport::Udp, first: port, last: port })
            }
            Dropped::Service(service) => Some(service),
        }
    }

    /// Whether a condition holds.
    fn matches(self, condition: &Value) -> Holds {
        let right = &condition["right"];
        let values = match right {
            Value::Array(list) => list,
            _ => right["set"].as_array().map_or(std::slice::from_ref(right), Vec::as_slice),
        };
        let left = &condition["left"];
        let holds = self.is_one_of(left, values.iter());
        if condition["op"] != "!=" {
            return holds;
        }
        match holds {
            Holds::Yes | Holds::ByPort => Holds::No,
            Holds::No if self.knows(left) => Holds::Yes,
            other => other,
        }
    }

    /// Whether the packet has a value of `key` that can be judged.
    fn knows(self, key: &Value) -> bool {
        if key["ct"]["key"] == "state" || matches!(key["meta"]["key"].as_str(), Some("iif" | "iifname")) {
            return true;
        }
        let protocol = self.port().map(|service| service.transport.to_string());
        match self.what {
            Dropped::FromClients | Dropped::ToClients => {
                matches!(key["meta"]["key"].as_str(), Some("oif" | "oifname"))
            }
            _ if key["meta"]["key"] == "l4proto" => true,
            // A port of another protocol is no port that differs.
            _ => {
                let payload = &key["payload"];
                payload["field"] == "dport"
                    && (payload["protocol"] == "th" || payload["protocol"].as_str() == protocol.as_deref())
            }
        }
    }

    /// Whether the packet's value of `key` is among these.
    fn is_one_of<'a>(self, key: &Value, values: impl Iterator<Item = &'a Value>) -> Holds {
        let yes = |holds| if holds { Holds::Yes } else { Holds::No };
        let mut values = values;
        if key["ct"]["key"] == "state" {
            let state = match self.what {
                Dropped::ToClients => "established",
                // As our own table has it.
                Dropped::Tunnel(_) => "untracked",
                Dropped::FromClients | Dropped::Service(_) => "new",
            };
            return yes(values.any(|value| value == state));
        }
        match key["meta"]["key"].as_str() {
            Some("iif" | "iifname") => return self.comes_by(values),
            Some("oif" | "oifname") => {
                return yes(values.any(|value| self.is_at(value, self.what == Dropped::ToClients)));
            }
            _ => {}
        }
        let Some(Service { transport, first, last }) = self.port() else { return Holds::No };
        let (name, number) = (transport.to_string(), transport.number());
        let payload = &key["payload"];
        let field = (payload["protocol"].as_str(), payload["field"].as_str());
        match field {
            (Some("ip" | "ip6"), Some("daddr")) => Holds::Perhaps,
            (Some("ip"), Some("protocol")) | (Some("ip6"), Some("nexthdr")) => {
                yes(values.any(|value| *value == name || *value == number))
            }
            (Some(protocol), Some("dport")) if protocol == "th" || protocol == name => {
                let among = |value: &Value| {
                    let bound = |at: usize| value["range"].get(at).unwrap_or(value).as_u64();
                    bound(0) <= Some(first.into()) && Some(u64::from(last)) <= bound(1) && bound(0).is_some()
                };
                if values.any(among) { Holds::ByPort } else { Holds::No }
            }
            _ if key["meta"]["key"] == "l4proto" => {
                yes(values.any(|value| *value == name || *value == number))
            }
            _ => Holds::No,
        }
    }

    /// Whether the packet comes in by one of these interfaces.
    fn comes_by<'a>(self, values: impl Iterator<Item = &'a Value>) -> Holds {
        let mut holds = Holds::No;
        for value in values {
            match self.what {
                // It comes by some interface that is neither the tunnel nor the host's own.
                Dropped::Tunnel(_) if *value == "*" => return Holds::Yes,
                Dropped::Tunnel(_) if *value == "lo" || self.is_at(value, true) => {}
                Dropped::Tunnel(_) => holds = Holds::Perhaps,
                _ if self.is_at(value, self.what != Dropped::ToClients) => return Holds::Yes,
                _ => {}
            }
        }
        holds
    }

    /// Whether a name or pattern is that of the interface at one end of the packet's way: the tunnel, or some other.
    /// Only a pattern for all matches that.
    fn is_at(self, value: &Value, tunnel: bool) -> bool {
        value.as_str().is_some_and(|pattern| match pattern.strip_suffix('*') {
            Some(begin) if tunnel => self.interface.starts_with(begin),
            Some(begin) => begin.is_empty(),
            None => tunnel && pattern == self.interface,
        })
    }
}
