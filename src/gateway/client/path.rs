//! What lies across the tunnel: the gateway's address in it, and the greatest packet that the way there carries, which
//! becomes the device's MTU ([`crate::client::path_mtu`]).

use std::convert::Infallible;
use std::fs;
use std::future::pending;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use crate::client::path_mtu::PathMtu;
use crate::config::profile::Profile;
use crate::net::echo::{Answer, Echo, Options};
use crate::net::link::{LinkEvent, LinkWatch};
use crate::net::name::InterfaceName;
use crate::sys::clock::boottime;
use crate::types::Prefix;

/// Least MTU of a link that carries IPv6, bytes (RFC 8200 section 5).
const LEAST_V6: u16 = 1280;
/// What every host takes over IPv4, bytes (RFC 791 section 3.1).
const LEAST_V4: u16 = 576;
/// After an error of the socket or of netlink.
const PAUSE: Duration = Duration::from_secs(1);

/// The gateway's hop: a request with this limit is answered there, whoever has the address that it is for.
pub const ONE_HOP: u8 = 1;

/// An address that leads into the tunnel and, where gateways have the first one of their network, is the gateway's
/// own. `None` if nothing at all leads there.
#[must_use]
pub fn across(profile: &Profile) -> Option<IpAddr> {
    let taken = || profile.peers.iter().flat_map(|peer| &peer.allowed_ips);
    let is_taken = |addr: &IpAddr| taken().any(|prefix| prefix.contains(*addr));
    let own = |addr: IpAddr| profile.addresses.iter().any(|address| address.addr() == addr);
    let neighbours = profile.addresses.iter().filter_map(|address| {
        // A host's address says nothing of its network: most are no smaller than these.
        let most = if address.addr().is_ipv4() { 24 } else { 64 };
        let network = Prefix::new(address.addr(), address.prefix_len().min(most))?;
        (1..=2).map(|number| nth(&network, number)).find(|addr| !own(*addr))
    });
    let first = |prefix: &Prefix| if prefix.is_host() { prefix.addr() } else { nth(prefix, 1) };
    let anywhere = taken().filter(|prefix| prefix.len() > 0).map(first);
    let found = neighbours.chain(profile.dns.iter().copied()).find(is_taken);
    found.or_else(|| anywhere.into_iter().find(|addr| !own(*addr)))
}

fn nth(network: &Prefix, number: u8) -> IpAddr {
    match network.addr() {
        IpAddr::V4(addr) => Ipv4Addr::from_bits(addr.to_bits() | u32::from(number)).into(),
        IpAddr::V6(addr) => Ipv6Addr::from_bits(addr.to_bits() | u128::from(number)).into(),
    }
}

/// The way of one connection.
pub(super) struct Path {
    name: InterfaceName,
    machine: PathMtu,
    /// Not less than this.
    least: u16,
    echo: Echo,
    watch: LinkWatch,
    /// What the device's MTU was set to.
    mtu: u16,
    /// Probes that went into the device.
    probes: u64,
    /// Packets that had gone into the device at the last look, without probes.
    used: u64,
}

impl Path {
    /// Of a device that is up with this MTU. `None`, with a line in the log, where nothing can be found out.
    pub(super) async fn open(name: &InterfaceName, index: u32, profile: &Profile, mtu: u32) -> Option<Self> {
        let to = across(profile)?;
        // Whose addresses come with a lease may be given one of IPv6.
        let of = |v6| profile.addresses.iter().any(|address| address.addr().is_ipv6() == v6);
        let is_v6 = of(true) || !of(false);
        let least = if is_v6 { LEAST_V6 } else { LEAST_V4 };
        let mtu = u16::try_from(mtu).ok().filter(|mtu| *mtu > least)?;
        let open = async {
            let echo = Echo::open(&Options { to, link: Some(name.clone()), hops: Some(ONE_HOP) })?;
            let mut watch = LinkWatch::open(index)?;
            watch.state().await?;
            io::Result::Ok((echo, watch))
        };
        match open.await {
            Ok((echo, watch)) => {
                let machine = PathMtu::new(least, mtu, boottime());
                Some(Self { name: name.clone(), machine, least, echo, watch, mtu, probes: 0, used: 0 })
            }
            Err(error) => {
                tracing::info!(%error, "the path's MTU is not looked for");
                None
            }
        }
    }

    /// Keeps the device's MTU at what the way carries.
    pub(super) async fn follow(path: Option<Self>) -> Infallible {
        match path {
            Some(path) => path.run().await,
            None => pending().await,
        }
    }

    async fn run(mut self) -> Infallible {
        let mut is_watched = true;
        loop {
            self.set().await;
            while let Some(probe) = self.machine.next_probe() {
                match self.echo.send(probe.sequence, probe.size.into()).await {
                    Ok(()) => self.probes += 1,
                    Err(error) => tracing::debug!(%error, size = probe.size, "a probe was not sent"),
                }
            }
            let wait = self.machine.deadline().since(boottime());
            tokio::select! {
                answer = self.echo.answer() => match answer {
                    Ok(Answer { sequence, .. }) => self.machine.handle_answer(sequence, boottime()),
                    Err(error) => {
                        tracing::debug!(%error, "no answers to probes");
                        tokio::time::sleep(PAUSE).await;
                    }
                },
                event = self.watch.next(), if is_watched => match event {
                    Ok(LinkEvent::RoutesChanged { new_way: true }) => self.machine.network_changed(boottime()),
                    Ok(LinkEvent::RoutesChanged { .. }) => {}
                    Ok(LinkEvent::Changed(state)) => self.begin_anew(state.mtu),
                    Ok(LinkEvent::Left) | Err(_) => is_watched = false,
                },
                () = tokio::time::sleep(wait) => {
                    let is_used = self.is_used();
                    self.machine.handle_timeout(boottime(), is_used);
                }
            }
        }
    }

    /// A lease has set another MTU, or the host's owner: that is what is tried from now on.
    fn begin_anew(&mut self, mtu: u32) {
        if let Some(mtu) = u16::try_from(mtu).ok().filter(|mtu| *mtu > self.least && *mtu != self.mtu) {
            self.machine = PathMtu::new(self.least, mtu, boottime());
            self.mtu = mtu;
        }
    }

    async fn set(&mut self) {
        let mtu = self.machine.mtu();
        if mtu == self.mtu {
            return;
        }
        let (name, before) = (&self.name, self.mtu);
        match self.watch.link().set_mtu(mtu.into()).await {
            Ok(()) => tracing::warn!(%name, mtu, before, "the way to the gateway carries other packets now"),
            Err(error) => tracing::warn!(%name, mtu, %error, "the MTU is not set"),
        }
        self.mtu = mtu;
    }

    /// Whether more went into the device than probes since the last time. Who cannot tell says yes.
    fn is_used(&mut self) -> bool {
        let table = fs::read_to_string("/proc/thread-self/net/dev").unwrap_or_default();
        let Some(sent) = sent_packets(&table, self.name.as_str()) else { return true };
        let used = sent.saturating_sub(self.probes);
        std::mem::replace(&mut self.used, used) != used
    }
}

/// Packets that the host has given to a device, of a table as /proc/net/dev has it (proc(5)).
fn sent_packets(table: &str, device: &str) -> Option<u64> {
    let row = table.lines().find_map(|line| line.trim_start().strip_prefix(device)?.strip_prefix(':'))?;
    row.split_whitespace().nth(9)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::profile::Peer;
    use crate::types::PublicKey;

    fn profile(addresses: &[&str], dns: &[&str], taken: &[&str]) -> Profile {
        let peer = Peer {
            public_key: PublicKey([1; 32]),
            preshared_key: None,
            endpoints: Vec::new(),
            allowed_ips: taken.iter().map(|prefix| prefix.parse().unwrap()).collect(),
            keepalive: 0,
        };
        Profile {
            addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
            dns: dns.iter().map(|server| server.parse().unwrap()).collect(),
            peers: vec![peer],
            ..Profile::default()
        }
    }

    #[test]
    fn the_gateway_is_looked_for_where_gateways_are() {
        let found = |addresses: &[&str], dns: &[&str], taken: &[&str]| {
            across(&profile(addresses, dns, taken)).map_or_else(String::new, |addr| addr.to_string())
        };
        assert_eq!(found(&["100.64.7.2/10"], &[], &["0.0.0.0/0"]), "100.64.0.1");
        assert_eq!(found(&["10.9.0.7/32"], &[], &["0.0.0.0/0", "::/0"]), "10.9.0.1");
        assert_eq!(found(&["10.9.0.1/24"], &[], &["10.0.0.0/8"]), "10.9.0.2");
        assert_eq!(found(&["fd64::7/128"], &[], &["::/0"]), "fd64::1");
        assert_eq!(found(&["10.9.0.7/32"], &["10.1.1.1"], &["10.1.0.0/16"]), "10.1.1.1");
        assert_eq!(found(&["10.9.0.7/32"], &[], &["10.1.0.0/16"]), "10.1.0.1");
        assert_eq!(found(&["10.9.0.7/32"], &[], &["10.1.0.9/32"]), "10.1.0.9");
        assert_eq!(found(&["10.9.0.7/32"], &[], &[]), "");
    }

    #[test]
    fn packets_are_read_from_the_kernels_table() {
        let table = "Inter-|   Receive\n face |bytes\n    lo: 1 2 0 0 0 0 0 0 3 4 0 0 0 0 0 0\n\
                     \u{20} vpn0: 5 6 0 0 0 0 0 0 7 8 0\n";
        assert_eq!((sent_packets(table, "vpn0"), sent_packets(table, "lo")), (Some(8), Some(4)));
        assert_eq!((sent_packets(table, "vpn"), sent_packets("vpn0: 1 2", "vpn0")), (None, None));
        let here = fs::read_to_string("/proc/thread-self/net/dev").unwrap();
        assert!(sent_packets(&here, "lo").is_some());
    }
}
