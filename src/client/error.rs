//! What may go wrong with a VPN connection, under the numbers of the platform API that it follows, and what a start
//! and a status are there.

use std::error::Error;
use std::fmt;
use std::io;

use crate::net::name::{InterfaceName, NameError};

/// Why a call failed. [`Self::code`] is the platform API's number; the cause is kept.
#[derive(Debug, thiserror::Error)]
pub enum VpnError {
    /// 201: the kernel refuses it to this process.
    #[error("permission denied: cannot {action}: CAP_NET_ADMIN is needed in this network namespace")]
    PermissionDenied {
        /// What was tried.
        action: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// 202: this process may make no VPN connections at all.
    #[error("this process may make no VPN connections: run it as root, or with CAP_NET_ADMIN")]
    NotPrivileged,
    /// 401: an argument that means nothing.
    #[error("{name:?} is no name for a connection: {source}")]
    Parameter {
        /// The argument.
        name: String,
        /// What is wrong with it.
        source: NameError,
    },
    /// 2200001: a value of the configuration.
    #[error(transparent)]
    InvalidValue(#[from] InvalidValue),
    /// 2200002: what does the work does not answer: no netlink socket, no TUN driver.
    #[error("cannot reach the kernel's {service}")]
    CannotConnect {
        /// What it is.
        service: &'static str,
        /// What was said.
        source: Box<dyn Error + Send + Sync>,
    },
    /// 2200003: anything else. What was half done is undone.
    #[error("cannot {action}")]
    Internal {
        /// What was tried.
        action: String,
        /// What was said.
        source: Box<dyn Error + Send + Sync>,
    },
    /// 2203001: this user may make no device.
    #[error("the device may not be made by this user")]
    CreationDenied {
        /// What was said.
        source: Box<dyn Error + Send + Sync>,
    },
    /// 2203002: there is a connection, or a device, of this name.
    #[error("there is a VPN, or another device, by the name {0} already")]
    VpnExists(InterfaceName),
    /// 2203003: there is no connection of this name.
    #[error("there is no VPN by the name {0}")]
    NoSuchVpn(InterfaceName),
    /// 2203004: a descriptor that is no IP socket.
    #[error("the descriptor is no IPv4 or IPv6 socket")]
    InvalidSocket {
        /// The kernel's answer.
        source: io::Error,
    },
}

/// A field of a configuration, and what is wrong with it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {reason}")]
pub struct InvalidValue {
    /// As [`VpnConfig`](super::config::VpnConfig) has it, with its place in a list.
    pub field: String,
    /// What is wrong, and what would be right.
    pub reason: String,
}

impl VpnError {
    /// The platform API's number.
    #[must_use]
    pub fn code(&self) -> u32 {
        match self {
            Self::PermissionDenied { .. } => 201,
            Self::NotPrivileged => 202,
            Self::Parameter { .. } => 401,
            Self::InvalidValue(_) => 2_200_001,
            Self::CannotConnect { .. } => 2_200_002,
            Self::Internal { .. } => 2_200_003,
            Self::CreationDenied { .. } => 2_203_001,
            Self::VpnExists(_) => 2_203_002,
            Self::NoSuchVpn(_) => 2_203_003,
            Self::InvalidSocket { .. } => 2_203_004,
        }
    }

    /// An answer of the kernel's to `action`.
    pub(super) fn kernel(action: impl Into<String>, source: io::Error) -> Self {
        let action = action.into();
        match source.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) => Self::PermissionDenied { action, source },
            _ => Self::Internal { action, source: source.into() },
        }
    }
}

/// What a start comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i8)]
pub enum StartResult {
    /// The connection is up: the gateway has answered.
    Started = 0,
    /// It was up before.
    AlreadyStarted = 1,
    /// What was asked for makes no sense.
    InvalidParameters = -1,
    /// It cannot be set up on this host.
    ConnectionFailed = -2,
    /// It is set up, and the gateway does not answer.
    NoResponse = -3,
}

impl StartResult {
    /// What a failed start comes to.
    #[must_use]
    pub fn of(error: &VpnError) -> Self {
        match error {
            VpnError::VpnExists(_) => Self::AlreadyStarted,
            VpnError::Parameter { .. } | VpnError::InvalidValue(_) => Self::InvalidParameters,
            _ => Self::ConnectionFailed,
        }
    }

    /// The platform API's number.
    #[must_use]
    pub fn code(self) -> i8 {
        self as i8
    }
}

/// How a connection is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum Status {
    /// Nobody has started it.
    #[default]
    NotStarted = 0,
    /// It is up.
    Started,
    /// It was up, and was ended in order.
    Stopped,
    /// It is set up, and the gateway does not answer.
    ConnLost,
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotStarted => "not started",
            Self::Started => "started",
            Self::Stopped => "stopped",
            Self::ConnLost => "connection lost",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_error_has_the_platforms_number_and_keeps_its_cause() {
        let name: InterfaceName = "vpn0".parse().unwrap();
        let other = || io::Error::from_raw_os_error(libc::EIO);
        let parameter = "a/b".parse::<InterfaceName>().unwrap_err();
        let all = [
            (VpnError::kernel("x", io::Error::from_raw_os_error(libc::EPERM)), 201, true),
            (VpnError::NotPrivileged, 202, false),
            (VpnError::Parameter { name: "a/b".to_owned(), source: parameter }, 401, true),
            (InvalidValue { field: "mtu".to_owned(), reason: "odd".to_owned() }.into(), 2_200_001, false),
            (VpnError::CannotConnect { service: "x", source: other().into() }, 2_200_002, true),
            (VpnError::kernel("x", other()), 2_200_003, true),
            (VpnError::CreationDenied { source: other().into() }, 2_203_001, true),
            (VpnError::VpnExists(name.clone()), 2_203_002, false),
            (VpnError::NoSuchVpn(name), 2_203_003, false),
            (VpnError::InvalidSocket { source: other() }, 2_203_004, true),
        ];
        for (error, code, caused) in all {
            assert_eq!((error.code(), error.source().is_some()), (code, caused), "{error:?}");
        }
    }

    #[test]
    fn a_start_comes_to_one_of_five() {
        use StartResult::*;
        let codes = [Started, AlreadyStarted, InvalidParameters, ConnectionFailed, NoResponse];
        assert_eq!(codes.map(StartResult::code), [0, 1, -1, -2, -3]);
        let invalid = InvalidValue { field: String::new(), reason: String::new() };
        assert_eq!(StartResult::of(&invalid.into()), InvalidParameters);
        assert_eq!(StartResult::of(&VpnError::VpnExists("a".parse().unwrap())), AlreadyStarted);
        assert_eq!(StartResult::of(&VpnError::NotPrivileged), ConnectionFailed);
    }
}
