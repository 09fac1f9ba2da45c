//! Error numbers, as the UAPI answers them.

use std::fmt;
use std::io;

/// An error number of errno(3), positive.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Errno(i32);

impl Errno {
    /// EINVAL: an unknown key, or a value that the key does not take.
    pub const INVALID: Self = Self(libc::EINVAL);
    /// EPROTO: not the UAPI at all (a line without `=`, an unknown operation, a request cut short).
    pub const PROTOCOL: Self = Self(libc::EPROTO);
    /// EMSGSIZE: a line or a request beyond its limit.
    pub const TOO_LONG: Self = Self(libc::EMSGSIZE);
    /// ENOMEM: more peers or prefixes than a device holds (what the kernel's module answers).
    pub const NO_ROOM: Self = Self(libc::ENOMEM);
    /// EOPNOTSUPP: what is asked for is not there.
    pub const UNSUPPORTED: Self = Self(libc::EOPNOTSUPP);
    /// EPERM: somebody else says what is so.
    pub const NOT_PERMITTED: Self = Self(libc::EPERM);
    /// EIO: an error without a number.
    pub const IO: Self = Self(libc::EIO);

    /// From a positive number; anything else becomes EIO.
    #[must_use]
    pub const fn new(number: i32) -> Self {
        if number > 0 { Self(number) } else { Self::IO }
    }

    /// The positive number.
    #[must_use]
    pub const fn number(self) -> i32 {
        self.0
    }
}

impl From<&io::Error> for Errno {
    fn from(error: &io::Error) -> Self {
        Self::new(error.raw_os_error().unwrap_or(0))
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&io::Error::from_raw_os_error(self.0), f)
    }
}

impl fmt::Debug for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Errno({self})")
    }
}

impl std::error::Error for Errno {}
