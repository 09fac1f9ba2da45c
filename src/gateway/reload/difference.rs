//! Two states of a gateway's file compared: what a running gateway can follow, and what it cannot.

use std::collections::{BTreeMap, BTreeSet};

use crate::config::{Gateway, Log, Peer, Store};
use crate::control::reload::{Change, PeerDifference, SettingDifference};
use crate::types::PublicKey;

/// A key of the file beside peers, and its value as text, by which it is compared.
type Key = (&'static str, fn(&Gateway) -> String);

/// What a running gateway follows without touching a peer.
const FOLLOWED: &[Key] = &[
    ("addresses", |file| list(&file.addresses)),
    ("mtu", |file| file.mtu.to_string()),
    ("listen_port", |file| file.listen_port.to_string()),
    ("fwmark", |file| format!("{:#x}", file.fwmark.0)),
    ("queue_length", |file| file.queue_length.to_string()),
    ("forwarding.enabled", |file| file.forwarding.enabled.to_string()),
    ("forwarding.interfaces", |file| list(&file.forwarding.interfaces)),
    ("forwarding.masquerade", |file| file.forwarding.masquerade.to_string()),
    ("forwarding.client_to_client", |file| file.forwarding.client_to_client.to_string()),
    ("forwarding.mss_clamp", |file| file.forwarding.mss_clamp.to_string()),
    ("services.tcp", |file| list(&file.services.tcp)),
    ("services.udp", |file| list(&file.services.udp)),
    ("metrics.listen", |file| word(&file.metrics.listen)),
    ("metrics.per_peer", |file| file.metrics.per_peer.to_string()),
    ("offload.tun_read", |file| file.offload.tun_read.to_string()),
    ("offload.tun_write", |file| file.offload.tun_write.to_string()),
    ("offload.udp_send", |file| file.offload.udp_send.to_string()),
    ("offload.udp_receive", |file| file.offload.udp_receive.to_string()),
    ("log.level", |file| word(&file.log.level)),
    ("store.history", |file| file.store.history.to_string()),
    ("clients.endpoint", |file| file.clients.endpoint.as_ref().map(ToString::to_string).unwrap_or_default()),
    ("clients.dns", |file| list(&file.clients.dns)),
    ("clients.search", |file| list(&file.clients.search)),
    ("clients.allowed_ips", |file| file.clients.allowed_ips.to_string()),
    ("clients.excluded", |file| list(&file.clients.excluded)),
    ("clients.keepalive", |file| file.clients.keepalive.to_string()),
    ("clients.mtu", |file| file.clients.mtu.to_string()),
    // Pools as a whole.
    ("pool", |file| list(&file.pool)),
];

/// What is made once: [`keep`] holds on to it.
const FIXED: &[Key] = &[
    ("interface", |file| file.interface.to_string()),
    ("private_key_file", |file| file.private_key_file.display().to_string()),
    ("workers", |file| word(&file.workers)),
    ("cores", |file| list(&file.cores)),
    ("busy_poll", |file| file.busy_poll.as_micros().to_string()),
    ("io", |file| word(&file.io)),
    ("aead", |file| word(&file.aead)),
    ("aes", |file| word(&file.aes)),
    ("user", |file| file.user.clone()),
    ("log.format", |file| word(&file.log.format)),
    ("admin.group", |file| file.admin.group.clone()),
    ("store.path", |file| file.store.path.display().to_string()),
];

fn list<T: ToString>(values: &[T]) -> String {
    format!("[{}]", values.iter().map(T::to_string).collect::<Vec<_>>().join(", "))
}

fn word(value: &impl std::fmt::Debug) -> String {
    format!("{value:?}").to_lowercase()
}

/// What differs.
#[derive(Debug, Default)]
pub(super) struct Difference {
    /// Peers, by their keys in order.
    pub(super) peers: BTreeMap<PublicKey, PeerDifference>,
    /// What is followed.
    pub(super) settings: Vec<SettingDifference>,
    /// What is not.
    pub(super) restart: Vec<SettingDifference>,
}

impl Difference {
    /// From what is in force to what the file says; of peers' preshared keys, `other_secret` tells whether they differ.
    pub(super) fn between(old: &Gateway, new: &Gateway, other_secret: impl Fn(&Peer) -> bool) -> Self {
        let wanted = keep(old, new.clone());
        let (settings, restart) = (differing(FOLLOWED, old, &wanted), [FOLLOWED, FIXED].concat());
        Self {
            peers: peers(&old.peer, &new.peer, other_secret),
            settings,
            restart: differing(&restart, &wanted, new),
        }
    }

    /// True if the key is among what is followed.
    pub(super) fn has(&self, key: &str) -> bool {
        self.settings.iter().any(|setting| setting.key == key)
    }

    /// How many peers change like this.
    pub(super) fn count(&self, change: Change) -> usize {
        self.peers.values().filter(|peer| peer.change == change).count()
    }

    /// True if there is nothing to follow.
    pub(super) fn is_empty(&self) -> bool {
        self.peers.is_empty() && self.settings.is_empty()
    }
}

/// The file with what a running gateway cannot follow as it is in force.
pub(super) fn keep(old: &Gateway, new: Gateway) -> Gateway {
    Gateway {
        interface: old.interface.clone(),
        // 0 is for a start: a port that works is not given up for any other.
        listen_port: if new.listen_port == 0 { old.listen_port } else { new.listen_port },
        private_key_file: old.private_key_file.clone(),
        workers: old.workers,
        cores: old.cores.clone(),
        busy_poll: old.busy_poll,
        io: old.io,
        aead: old.aead,
        aes: old.aes,
        user: old.user.clone(),
        log: Log { format: old.log.format, ..new.log },
        store: Store { path: old.store.path.clone(), ..new.store },
        admin: old.admin.clone(),
        ..new
    }
}

fn differing(keys: &[Key], old: &Gateway, new: &Gateway) -> Vec<SettingDifference> {
    let each = keys.iter().map(|(key, text)| SettingDifference {
        key: (*key).to_owned(),
        from: text(old),
        to: text(new),
    });
    each.filter(|setting| setting.from != setting.to).collect()
}

fn peers(
    old: &[Peer],
    new: &[Peer],
    other_secret: impl Fn(&Peer) -> bool,
) -> BTreeMap<PublicKey, PeerDifference> {
    let [old, new]: [BTreeMap<_, _>; 2] =
        [old, new].map(|peers| peers.iter().map(|peer| (peer.public_key, peer)).collect());
    let difference = |peer: &Peer, change, keys| PeerDifference {
        public_key: peer.public_key.to_base64(),
        name: peer.name.clone(),
        change,
        keys,
    };
    let mut found = BTreeMap::new();
    for (key, peer) in &old {
        if !new.contains_key(key) {
            found.insert(*key, difference(peer, Change::Removed, Vec::new()));
        }
    }
    for (key, peer) in &new {
        let Some(before) = old.get(key) else {
            found.insert(*key, difference(peer, Change::Added, Vec::new()));
            continue;
        };
        let keys = differing_keys(before, peer, other_secret(peer));
        if !keys.is_empty() {
            found.insert(*key, difference(peer, Change::Changed, keys));
        }
    }
    found
}

fn differing_keys(old: &Peer, new: &Peer, other_secret: bool) -> Vec<String> {
    let prefixes = |peer: &Peer| peer.allowed_ips.iter().copied().collect::<BTreeSet<_>>();
    [
        ("name", old.name != new.name),
        ("preshared_key_file", other_secret),
        ("allowed_ips", prefixes(old) != prefixes(new)),
        ("endpoint", old.endpoint != new.endpoint),
        ("keepalive", old.keepalive != new.keepalive),
        ("group", old.group != new.group),
        ("pool", old.pool != new.pool),
    ]
    .iter()
    .filter(|(_, differs)| *differs)
    .map(|(key, _)| (*key).to_owned())
    .collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    const EXAMPLE: &str = include_str!("../../../config/gateway.toml");
    const A: &str = "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=";
    const B: &str = "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=";

    fn parse(text: &str) -> Gateway {
        Gateway::parse(Path::new("x"), text).unwrap()
    }

    fn between(old: &str, new: &str) -> Difference {
        Difference::between(&parse(old), &parse(new), |_| false)
    }

    fn names(settings: &[SettingDifference]) -> Vec<String> {
        let text = |one: &SettingDifference| format!("{} {} {}", one.key, one.from, one.to);
        settings.iter().map(text).collect()
    }

    /// The example names every key of the file, section by section.
    #[test]
    fn every_key_is_either_followed_or_fixed() {
        let (mut section, mut keys) = (String::new(), BTreeSet::new());
        for line in EXAMPLE.lines() {
            if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
                section = format!("{name}.");
            } else if let Some((key, _)) = line.strip_prefix('#').and_then(|rest| rest.split_once(" = "))
                && key.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_')
            {
                keys.insert(format!("{section}{key}"));
            }
        }
        // Its sections are examples.
        keys.insert("pool".to_owned());
        let known: BTreeSet<_> =
            [FOLLOWED, FIXED].concat().iter().map(|(key, _)| (*key).to_owned()).collect();
        assert_eq!(keys, known);
    }

    #[test]
    fn each_fixed_key_is_told_and_stays() {
        let new = "interface = \"wg7\"\nprivate_key_file = \"/k\"\nworkers = 3\n\
                   cores = [0]\nbusy_poll = 7\nio = \"poll\"\naead = \"scalar\"\naes = \"off\"\nuser = \"u\"\n\
                   log.format = \"json\"\nadmin.group = \"g\"\nstore.path = \"/s\"";
        let found = between("", new);
        let told: Vec<_> = found.restart.iter().map(|one| one.key.as_str()).collect();
        assert_eq!(told, FIXED.iter().map(|(key, _)| *key).collect::<Vec<_>>());
        assert!(found.is_empty(), "{found:?}");
        assert_eq!(keep(&parse(""), parse(new)), parse(""));
    }

    #[test]
    fn each_followed_key_is_told_and_taken() {
        let new = "addresses = [\"100.65.0.1/16\"]\nmtu = 1400\nlisten_port = 7\nfwmark = 81\nqueue_length = 9\n\
                   [forwarding]\nenabled = false\ninterfaces = [\"eth0\"]\nmasquerade = false\n\
                   client_to_client = true\nmss_clamp = false\n\
                   [services]\ntcp = [53]\nudp = [53, 54]\n\
                   [metrics]\nlisten = \"off\"\nper_peer = true\n\
                   [offload]\ntun_read = false\ntun_write = false\nudp_send = false\nudp_receive = false\n\
                   [log]\nlevel = \"warn\"\n[store]\nhistory = 0\n[clients]\nendpoint = \"vpn.example.org\"\n\
                   dns = [\"100.64.0.1\"]\nsearch = [\"example.org\"]\nallowed_ips = [\"10.0.0.0/8\"]\n\
                   excluded = [\"10.1.0.0/16\"]\nkeepalive = 0\nmtu = 1280\n\
                   [[pool]]\nname = \"p\"\nipv4 = [\"100.64.0.0/24\"]\ndrain = true";
        let old = "[[pool]]\nname = \"p\"\nipv4 = [\"100.64.0.0/24\"]";
        let found = between(old, new);
        let told: Vec<_> = found.settings.iter().map(|one| one.key.as_str()).collect();
        assert_eq!(told, FOLLOWED.iter().map(|(key, _)| *key).collect::<Vec<_>>());
        assert!(found.restart.is_empty() && found.has("services.udp") && !found.has("workers"));
        assert_eq!(keep(&parse(old), parse(new)), parse(new));
        assert_eq!(names(&found.settings)[1], "mtu 1420 1400");
        assert_eq!(names(&found.settings)[11], "services.udp [] [53, 54]");
    }

    #[test]
    fn a_port_is_not_given_up_for_any_other() {
        let found = between("listen_port = 7", "listen_port = 0");
        assert_eq!(names(&found.restart), ["listen_port 7 0"]);
        assert!(found.is_empty());
    }

    #[test]
    fn peers_are_told_by_their_keys() {
        let peer = |key: &str, rest: &str| format!("[[peer]]\npublic_key = \"{key}\"\n{rest}\n");
        let one = peer(A, "name = \"a\"\nallowed_ips = [\"100.64.0.2/32\", \"10.0.0.0/8\"]");
        let told = |old: &str, new: &str| {
            let found = between(old, new);
            let each = found.peers.values().map(|peer| (peer.name.clone(), peer.change, peer.keys.join(" ")));
            each.collect::<Vec<_>>()
        };
        let a = |change, keys: &str| vec![("a".to_owned(), change, keys.to_owned())];
        assert_eq!(told("", &one), a(Change::Added, ""));
        assert_eq!(told(&one, ""), a(Change::Removed, ""));
        // The order of peers and prefixes means nothing.
        let other = peer(B, "");
        let turned = peer(A, "name = \"a\"\nallowed_ips = [\"10.0.0.0/8\", \"100.64.0.2/32\"]");
        assert_eq!(told(&(one.clone() + &other), &(other.clone() + &turned)), []);
        let changed = peer(
            A,
            "name = \"a\"\nallowed_ips = [\"10.0.0.0/8\"]\nendpoint = \"192.0.2.1:7\"\nkeepalive = 7\n\
             preshared_key_file = \"/psk\"\ngroup = \"g\"",
        );
        assert_eq!(told(&one, &changed), a(Change::Changed, "allowed_ips endpoint keepalive group"));
        assert_eq!(told(&one, &one.replace("\"a\"", "\"b\""))[0].2, "name");
        let pool = "[[pool]]\nname = \"p\"\nipv4 = [\"100.65.0.0/24\"]\n";
        let pooled = peer(A, "name = \"a\"\nallowed_ips = [\"100.64.0.2/32\", \"10.0.0.0/8\"]\npool = \"p\"");
        assert_eq!(told(&(pool.to_owned() + &one), &(pool.to_owned() + &pooled))[0].2, "pool");
        // What counts of a preshared key is the key, not the file's name.
        let found = Difference::between(&parse(&one), &parse(&one), |peer| peer.name == "a");
        assert_eq!(found.peers.values().next().unwrap().keys, ["preshared_key_file"]);
        assert_eq!((found.count(Change::Changed), found.count(Change::Added)), (1, 0));
    }
}
