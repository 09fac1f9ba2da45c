//! What is decided outside the packet path: who the peers are, which addresses are theirs, what the sockets are
//! bound to.
//!
//! A request's way: [`server`] takes connections on the socket that [`socket`] bound and cuts them into lines;
//! [`uapi::parse`] turns lines into one typed request, or refuses it whole; [`device`], the model of truth,
//! computes what the request changes and tells the [`dataplane`] just that; [`uapi::format`] answers.

pub mod dataplane;
pub mod device;
pub mod errno;
pub mod reload;
pub mod scrape;
pub mod server;
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
}
