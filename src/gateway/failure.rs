//! What kind of failure an error is: the program's exit code, by which a service manager or a script tells what to do.

use std::error::Error;

use super::appliance::SetupError;
use super::client::NoAnswer;
use super::home::HomeError;
use crate::client::error::VpnError;
use crate::config::ConfigError;
use crate::config::key::KeyFileError;
use crate::config::profile::ProfileError;
use crate::control::scrape::ListenError;
use crate::dataplane::io::ring::RingError;
use crate::dataplane::tun::TunError;
use crate::dataplane::udp::UdpError;
use crate::net::manners::MannersError;
use crate::store::StoreError;
use crate::sys::privileges::PrivilegeError;

/// Why a gateway, or a client, does not run. The numbers are exit codes; docs/operations.md explains them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Failure {
    /// Something else.
    Other = 1,
    /// The file, or a file that it names.
    Configuration = 3,
    /// The TUN driver is missing, or this process may not use it.
    TunNotPermitted = 4,
    /// The device cannot be made or set up, or was taken away.
    Device = 5,
    /// A port cannot be had.
    Port = 6,
    /// io_uring, memory that can be locked, nftables, or a kernel parameter.
    Kernel = 7,
    /// Another process serves the interface.
    Running = 8,
    /// A client is set up, and its gateway does not answer.
    NoAnswer = 9,
}

impl Failure {
    /// By the first cause that tells.
    #[must_use]
    pub fn of(error: &anyhow::Error) -> Self {
        error.chain().find_map(Self::of_cause).unwrap_or(Self::Other)
    }

    /// The program's exit code.
    #[must_use]
    pub fn exit_code(self) -> u8 {
        self as u8
    }

    fn of_cause(cause: &(dyn Error + 'static)) -> Option<Self> {
        if let Some(error) = cause.downcast_ref::<SetupError>() {
            return Some(error.failure());
        }
        if let Some(error) = cause.downcast_ref::<TunError>() {
            return Some(match error {
                TunError::NoDriver | TunError::NotPermitted { .. } => Self::TunNotPermitted,
                _ => Self::Device,
            });
        }
        if let Some(error) = cause.downcast_ref::<HomeError>() {
            return Some(match error {
                HomeError::Running { .. } => Self::Running,
                HomeError::Directory { .. } | HomeError::Key { .. } => Self::Configuration,
            });
        }
        if let Some(error) = cause.downcast_ref::<PrivilegeError>() {
            return Some(match error {
                PrivilegeError::NoUser(_) | PrivilegeError::NoGroup(_) => Self::Configuration,
                _ => Self::Kernel,
            });
        }
        if let Some(error) = cause.downcast_ref::<MannersError>() {
            return Some(match error {
                MannersError::NoInterface(_) => Self::Device,
                MannersError::Running(_) => Self::Running,
                MannersError::Record(..) => Self::Configuration,
                _ => Self::Kernel,
            });
        }
        if let Some(error) = cause.downcast_ref::<StoreError>() {
            return Some(match error {
                StoreError::InUse(_) => Self::Running,
                // They pass: the service manager shall try again.
                error if error.heals() => Self::Other,
                _ => Self::Configuration,
            });
        }
        if let Some(error) = cause.downcast_ref::<VpnError>() {
            return match error {
                VpnError::VpnExists(_) => Some(Self::Running),
                VpnError::Parameter { .. } | VpnError::InvalidValue(_) => Some(Self::Configuration),
                _ => None,
            };
        }
        if cause.is::<NoAnswer>() {
            return Some(Self::NoAnswer);
        }
        let is_config = cause.is::<ProfileError>() || cause.is::<ConfigError>() || cause.is::<KeyFileError>();
        is_config
            .then_some(Self::Configuration)
            .or_else(|| (cause.is::<UdpError>() || cause.is::<ListenError>()).then_some(Self::Port))
            .or_else(|| cause.is::<RingError>().then_some(Self::Kernel))
    }
}

#[cfg(test)]
mod tests {
    use anyhow::Context as _;

    use super::*;
    use crate::control::leases::LeasesError;

    #[test]
    fn a_failure_is_found_behind_its_context() {
        let error = |error: anyhow::Error| Failure::of(&error.context("outer").context("outermost"));
        assert_eq!(error(UdpError::NoFreePort.into()), Failure::Port);
        let listen = ListenError { address: ([127, 0, 0, 1], 1).into(), source: std::io::Error::other("x") };
        assert_eq!(error(listen.into()), Failure::Port);
        assert_eq!(error(TunError::NoDriver.into()), Failure::TunNotPermitted);
        let name = || "vpn0".parse().unwrap();
        assert_eq!(error(VpnError::VpnExists(name()).into()), Failure::Running);
        assert_eq!(error(VpnError::NoSuchVpn(name()).into()), Failure::Other);
        assert_eq!(error(NoAnswer::new(String::new()).into()), Failure::NoAnswer);
        let io = std::io::Error::other("x");
        let profile = ProfileError::Io { path: "x".into(), source: io };
        assert_eq!(error(profile.into()), Failure::Configuration);
        assert_eq!(error(TunError::Queues { queues: 0 }.into()), Failure::Device);
        assert_eq!(error(RingError::Slots(3).into()), Failure::Kernel);
        assert_eq!(error(KeyFileError::NoKey.into()), Failure::Configuration);
        assert_eq!(error(StoreError::InUse("x".into()).into()), Failure::Running);
        assert_eq!(error(LeasesError::Store(StoreError::Full("x".into())).into()), Failure::Other);
        assert_eq!(error(LeasesError::Store(StoreError::Foreign("x".into())).into()), Failure::Configuration);
        assert_eq!(error(MannersError::Nft(crate::net::nft::NftError::NoNft).into()), Failure::Kernel);
        let interface: crate::net::name::InterfaceName = "wg0".parse().unwrap();
        assert_eq!(error(MannersError::NoInterface(interface.clone()).into()), Failure::Device);
        assert_eq!(error(MannersError::Running(interface).into()), Failure::Running);
        assert_eq!(error(PrivilegeError::NoUser("x".to_owned()).into()), Failure::Configuration);
        assert_eq!(error(PrivilegeError::Capabilities("x".to_owned()).into()), Failure::Kernel);
        assert_eq!(error(SetupError::Gone.into()), Failure::Device);
        assert_eq!(error(std::io::Error::other("x").into()), Failure::Other);
        let nested: anyhow::Result<()> = Err(RingError::Slots(3)).context("worker 1");
        assert_eq!(Failure::of(&nested.unwrap_err()), Failure::Kernel);
    }
}
