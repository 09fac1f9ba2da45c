//! Forward chains of others that would drop what clients send or get: Docker's, firewalld's, ufw's, or a host's own.
//!
//! In nftables a packet must pass every chain of its hook, so an accept of ours saves nobody from another's drop. Each
//! foreign chain is followed for two packets: a client's first one, in by the tunnel, and an answer, out by it. A rule
//! with a condition that is neither an interface nor a state of the connection counts as not matching.

use std::collections::HashMap;
use std::fmt;
use std::fs;
use std::io;
use std::process::Command;

use serde_json::Value;

use super::{MannersError, nft};

/// Longest chain of jumps that nftables allows (`NFT_JUMP_STACK_SIZE`).
const JUMPS: usize = 16;

/// A forward chain of somebody else that drops the clients' packets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForeignDrop {
    /// `ip`, `ip6` or `inet`.
    pub family: String,
    /// Its table.
    pub table: String,
    /// The chain at the hook.
    pub chain: String,
    /// Who wrote it, as far as its names tell.
    pub manager: Manager,
    /// Packets of clients are dropped.
    pub from_clients: bool,
    /// Packets to clients are dropped.
    pub to_clients: bool,
    interface: String,
}

/// Whose rules they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manager {
    /// Docker: it has a chain for rules of others.
    Docker,
    /// firewalld.
    Firewalld,
    /// ufw.
    Ufw,
    /// iptables, through nftables.
    Iptables,
    /// iptables of old, which nft does not see.
    IptablesLegacy,
    /// nftables.
    Nftables,
}

impl ForeignDrop {
    /// The commands that let the clients' packets pass.
    #[must_use]
    pub fn remedy(&self) -> Vec<String> {
        let Self { family, table, chain, interface, .. } = self;
        if self.manager == Manager::Firewalld {
            return vec![format!("firewall-cmd --permanent --zone=trusted --add-interface={interface}")];
        }
        let iptables = if family == "ip6" { "ip6tables" } else { "iptables" };
        let rule = |inbound: bool| {
            let (flag, key) = if inbound { ("-i", "iifname") } else { ("-o", "oifname") };
            match self.manager {
                Manager::Docker => format!("{iptables} -I DOCKER-USER {flag} {interface} -j ACCEPT"),
                Manager::Iptables => format!("{iptables} -I {chain} {flag} {interface} -j ACCEPT"),
                Manager::IptablesLegacy => {
                    format!("{iptables}-legacy -I {chain} {flag} {interface} -j ACCEPT")
                }
                Manager::Ufw => {
                    format!("ufw route allow {} on {interface}", if inbound { "in" } else { "out" })
                }
                Manager::Nftables | Manager::Firewalld => {
                    format!("nft insert rule {family} {table} {chain} {key} '\"{interface}\"' accept")
                }
            }
        };
        let ways = [(self.from_clients, true), (self.to_clients, false)];
        ways.into_iter().filter(|(dropped, _)| *dropped).map(|(_, inbound)| rule(inbound)).collect()
    }
}

impl fmt::Display for ForeignDrop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match (self.from_clients, self.to_clients) {
            (true, false) => "packets from clients",
            (false, true) => "packets to clients",
            _ => "packets from and to clients",
        };
        let Self { family, table, chain, manager, .. } = self;
        write!(f, "the forward chain {family} {table} {chain} ({manager}) drops {what}; to let them pass: ")?;
        f.write_str(&self.remedy().join("; "))
    }
}

impl fmt::Display for Manager {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Docker => "Docker",
            Self::Firewalld => "firewalld",
            Self::Ufw => "ufw",
            Self::Iptables => "iptables",
            Self::IptablesLegacy => "legacy iptables",
            Self::Nftables => "nftables",
        })
    }
}

/// Reads the host's rules and finds the chains that drop what an interface's clients send or get. Runs nft, and the
/// legacy iptables where the kernel holds tables of theirs; needs root.
///
/// # Errors
/// Those of the programs.
pub fn forward_drops(interface: &str) -> Result<Vec<ForeignDrop>, MannersError> {
    let said = nft::run(&["-j", "list", "ruleset"], "")?;
    let ruleset = serde_json::from_slice(&said)
        .map_err(|error| MannersError::Nft(format!("cannot read `nft -j list ruleset`: {error}")))?;
    let mut drops = in_ruleset(&ruleset, interface);
    for (family, names, program) in [
        ("ip", "/proc/thread-self/net/ip_tables_names", "iptables-legacy"),
        ("ip6", "/proc/thread-self/net/ip6_tables_names", "ip6tables-legacy"),
    ] {
        // Without such tables the program would load them.
        if fs::read_to_string(names).is_ok_and(|names| names.lines().any(|name| name == "filter")) {
            drops.extend(legacy(family, &rules_of(program)?, interface));
        }
    }
    Ok(drops)
}

fn rules_of(program: &str) -> Result<String, MannersError> {
    match Command::new(program).args(["-S", "FORWARD"]).output() {
        Ok(output) => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        Err(error) => Err(MannersError::Nft(format!("{program}: {error}"))),
    }
}

/// The policy of the legacy chain, and whether a rule with no other condition accepts the tunnel.
fn legacy(family: &str, rules: &str, interface: &str) -> Option<ForeignDrop> {
    let accepts = |flag: &str| {
        let accept = format!("-A FORWARD {flag} {interface} -j ACCEPT");
        rules.lines().any(|line| line == accept)
    };
    let (from_clients, to_clients) = (!accepts("-i"), !accepts("-o"));
    let drops = rules.lines().any(|line| line == "-P FORWARD DROP") && (from_clients || to_clients);
    drops.then(|| ForeignDrop {
        family: family.to_owned(),
        table: "filter".to_owned(),
        chain: "FORWARD".to_owned(),
        manager: Manager::IptablesLegacy,
        from_clients,
        to_clients,
        interface: interface.to_owned(),
    })
}

/// As [`forward_drops`], in what `nft -j list ruleset` printed.
fn in_ruleset(ruleset: &Value, interface: &str) -> Vec<ForeignDrop> {
    let objects = ruleset["nftables"].as_array().map(Vec::as_slice).unwrap_or_default();
    let mut tables: HashMap<(&str, &str), Table<'_>> = HashMap::new();
    let mut bases = Vec::new();
    for object in objects {
        if let Some((id, name)) = place(&object["chain"], "name") {
            tables.entry(id).or_default().0.entry(name).or_default();
            let chain = &object["chain"];
            if chain["hook"] == "forward" && chain["type"] == "filter" {
                bases.push((id, name, chain["policy"] == "drop"));
            }
        } else if let Some((id, chain)) = place(&object["rule"], "chain") {
            let table = tables.entry(id).or_default();
            table.0.entry(chain).or_default().push(&object["rule"]["expr"]);
        }
    }
    let mut drops = Vec::new();
    for ((family, name), chain, policy) in bases {
        let Some(table) = tables.get(&(family, name)).filter(|_| !name.starts_with(nft::PREFIX)) else {
            continue;
        };
        let dropped = |inbound| match table.follow(chain, Packet { interface, inbound }, JUMPS) {
            Some(Fate::Drop) => true,
            Some(Fate::Accept) => false,
            Some(Fate::Return) | None => policy,
        };
        let (from_clients, to_clients) = (dropped(true), dropped(false));
        if from_clients || to_clients {
            drops.push(ForeignDrop {
                family: family.to_owned(),
                table: name.to_owned(),
                chain: chain.to_owned(),
                manager: table.manager(name, chain),
                from_clients,
                to_clients,
                interface: interface.to_owned(),
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

/// One of the two packets that are followed.
#[derive(Clone, Copy)]
struct Packet<'a> {
    interface: &'a str,
    /// In by the tunnel, of a new connection; else out by it, of an established one.
    inbound: bool,
}

/// What becomes of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Accept,
    Drop,
    Return,
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
        } else if table == "filter" && chain == "FORWARD" {
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
        for expression in rule.as_array()? {
            let (kind, value) = expression.as_object()?.iter().next()?;
            match kind.as_str() {
                "match" => packet.matches(value).filter(|matches| *matches)?,
                "vmap" => {
                    let verdict = packet.mapped(value)?;
                    return self.verdict(verdict, packet, jumps);
                }
                // They look, or count, and let pass.
                "counter" | "log" | "comment" => continue,
                _ => return self.verdict(expression, packet, jumps),
            };
        }
        None
    }

    fn verdict(&self, verdict: &Value, packet: Packet<'_>, jumps: usize) -> Option<Fate> {
        let (kind, value) = verdict.as_object()?.iter().next()?;
        match kind.as_str() {
            "accept" => Some(Fate::Accept),
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
}

impl Packet<'_> {
    /// Whether a condition holds; `None` if that cannot be told.
    fn matches(self, condition: &Value) -> Option<bool> {
        let right = &condition["right"];
        let values = match right {
            Value::String(_) => std::slice::from_ref(right),
            Value::Array(list) => list,
            _ => right["set"].as_array()?,
        };
        let holds = self.is_one_of(&condition["left"], values.iter())?;
        Some(holds != (condition["op"] == "!="))
    }

    /// The verdict that a map holds for this packet.
    fn mapped(self, map: &Value) -> Option<&Value> {
        let entries = map["data"]["set"].as_array()?;
        let hit = |entry: &&Value| self.is_one_of(&map["key"], entry.get(0).into_iter()) == Some(true);
        entries.iter().find(hit)?.get(1)
    }

    /// Whether the packet's value of `key` is among these.
    fn is_one_of<'a>(self, key: &Value, mut values: impl Iterator<Item = &'a Value>) -> Option<bool> {
        if key["ct"]["key"] == "state" {
            let state = if self.inbound { "new" } else { "established" };
            return Some(values.any(|value| value == state));
        }
        let tunnel = match key["meta"]["key"].as_str()? {
            "iif" | "iifname" => self.inbound,
            "oif" | "oifname" => !self.inbound,
            _ => return None,
        };
        // At its other end the packet has some other interface: only a pattern for all matches it.
        let matches = |value: &Value| {
            value.as_str().is_some_and(|pattern| match pattern.strip_suffix('*') {
                Some(begin) if tunnel => self.interface.starts_with(begin),
                Some(begin) => begin.is_empty(),
                None => tunnel && pattern == self.interface,
            })
        };
        Some(values.any(matches))
    }
}

#[cfg(test)]
mod tests;
