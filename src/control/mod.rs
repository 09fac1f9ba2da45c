//! What is decided outside the packet path: who the peers are, which addresses are theirs, what the sockets are
//! bound to.
//!
//! A request's way: [`server`] takes connections on the socket that [`socket`] bound and cuts them into lines;
//! [`uapi::parse`] turns lines into one typed request, or refuses it whole; [`device`], the model of truth,
//! computes what the request changes and tells the [`dataplane`] just that; [`uapi::format`] answers.
//!
//! [`leases`] gives addresses to clients; [`clients`] answers those who ask for one, and tells [`events`] of it.
//! [`sessions`] notes whose session lives, as workers say.
//! [`peers`] knows the peers that stand in no file, [`invites`] whoever may become one; [`admin`] changes them.

pub mod admin;
pub mod clients;
pub mod crowd;
pub mod dataplane;
pub mod device;
pub mod errno;
pub mod events;
pub mod invites;
pub mod leases;
pub mod peers;
pub mod reload;
pub mod scrape;
pub mod server;
pub mod sessions;
pub mod socket;
pub mod uapi;

#[cfg(test)]
pub(crate) mod fake;

/// What the control thread owns, shared by its tasks. No task keeps it borrowed over an `await`.
#[derive(Debug)]
pub struct Control<D> {
    /// The model of truth.
    pub device: device::Device,
    /// What carries it out.
    pub dataplane: D,
    /// Who reads the configuration again, if there is one.
    pub reload: Option<reload::Door>,
    /// The addresses of clients; a drop-in has none.
    pub leases: Option<leases::Leases>,
    /// The peers of the store; a drop-in has none.
    pub peers: Option<peers::Peers>,
    /// Who asks for addresses, and who has which.
    pub clients: clients::Clients,
    /// What has happened.
    pub events: events::Events,
    /// Whose session lives.
    pub sessions: sessions::Sessions,
}

impl<D> Control<D> {
    /// Of a device that only configuration changes: no file to read again, no leases, no peers of a store.
    pub fn new(device: device::Device, dataplane: D) -> Self {
        Self {
            device,
            dataplane,
            reload: None,
            leases: None,
            peers: None,
            clients: clients::Clients::default(),
            events: events::Events::default(),
            sessions: sessions::Sessions::default(),
        }
    }
}
