//! What the configuration means for the host around the gateway: see [`crate::net::manners`].

use std::path::Path;

use serde_json::{Value, json};

use super::Gateway;
use crate::config;
use crate::net::manners::foreign::{self, Found, Needs};
use crate::net::manners::{Applied, Forward, HostRules, MannersError, Service, Transport};
use crate::sys::interface::index_of;
use crate::types::Prefix;

/// Puts rules and forwarding in force, and warns of firewalls that drop what clients send all the same.
pub(super) fn apply(config: &config::Gateway, listen_port: u16) -> Result<Applied, MannersError> {
    if config.forwarding.enabled {
        for name in config.forwarding.interfaces.iter().filter(|name| index_of(name.as_str()).is_none()) {
            tracing::warn!(
                "[forwarding] interfaces: there is no {name} yet; clients leave by it once it has a route"
            );
        }
    }
    let rules = host_rules(config, listen_port);
    let services = rules.services.clone();
    let needs = Needs {
        interface: config.interface.as_str(),
        forward: config.forwarding.enabled,
        listen_port: Some(listen_port),
        services: &services,
    };
    let applied = rules.apply(Path::new(config::RUN))?;
    match foreign::look(&needs) {
        Ok(Found { drops, unread }) => {
            drops.iter().for_each(|drop| tracing::warn!("{drop}"));
            if let Some(unread) = unread {
                tracing::warn!("{unread}");
            }
        }
        Err(error) => tracing::warn!(%error, "cannot tell whether other firewalls drop clients' packets"),
    }
    Ok(applied)
}

/// Has another file's rules in force.
pub(super) fn change(config: &config::Gateway, gateway: &mut Gateway) -> Result<(), MannersError> {
    let port = gateway.port();
    gateway.host.as_mut().map_or(Ok(()), |applied| applied.change(host_rules(config, port)))
}

/// What clients may use on the host itself, for reports.
pub(super) fn services(applied: &Applied) -> Value {
    let each = applied.services().iter().map(|Service { transport, first, last }| {
        json!({ "transport": transport.to_string(), "first": first, "last": last })
    });
    each.collect()
}

fn host_rules(config: &config::Gateway, listen_port: u16) -> HostRules {
    let own = config.addresses.iter().map(|address| address.network());
    let theirs = config.peer.iter().flat_map(|peer| peer.allowed_ips.iter().copied());
    let pools = config.pool.iter().flat_map(config::Pool::networks);
    let tcp = config.services.tcp.iter().map(|port| (Transport::Tcp, port.get()));
    let udp = config.services.udp.iter().map(|port| (Transport::Udp, port.get()));
    HostRules {
        interface: config.interface.clone(),
        listen_port,
        // A peer that may send everything is a way out, not a client.
        clients: own.chain(theirs).chain(pools).filter(|range: &Prefix| range.len() > 0).collect(),
        outer: Vec::new(),
        masquerade: config.forwarding.enabled && config.forwarding.masquerade,
        client_to_client: config.forwarding.client_to_client,
        services: tcp
            .chain(udp)
            .map(|(transport, port)| Service { transport, first: port, last: port })
            .collect(),
        forward: match &config.forwarding {
            forwarding if !forwarding.enabled => Forward::Off,
            forwarding if forwarding.interfaces.is_empty() => Forward::Routed,
            forwarding => Forward::To(forwarding.interfaces.clone()),
        },
    }
}
