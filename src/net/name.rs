//! Names of interfaces, checked once.

use std::fmt;
use std::str::FromStr;

/// Longest name, bytes (`IFNAMSIZ` of linux/if.h less the NUL).
pub const MAX_NAME: usize = 15;

/// A name that the kernel takes (dev_valid_name) and that is safe as a part of a file name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InterfaceName(String);

impl InterfaceName {
    /// As text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for InterfaceName {
    /// What most people call it.
    fn default() -> Self {
        Self("wg0".to_owned())
    }
}

impl fmt::Display for InterfaceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Why a name is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// No byte or more than [`MAX_NAME`].
    #[error("an interface name has 1 to {MAX_NAME} bytes")]
    Length,
    /// `.` or `..`.
    #[error("'.' and '..' are no interface names")]
    Dots,
    /// A character that the kernel or a file name does not take.
    #[error("an interface name has no '/', ':', '%', space or control character")]
    Character,
}

impl FromStr for InterfaceName {
    type Err = NameError;

    fn from_str(name: &str) -> Result<Self, NameError> {
        if name.is_empty() || name.len() > MAX_NAME {
            return Err(NameError::Length);
        }
        if name == "." || name == ".." {
            return Err(NameError::Dots);
        }
        // '%' would make the kernel choose a number: the device would not be the one that was named.
        let refused = |c: char| matches!(c, '/' | ':' | '%') || c.is_whitespace() || c.is_control();
        if name.chars().any(refused) {
            return Err(NameError::Character);
        }
        Ok(Self(name.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn good_names() {
        for name in ["w", "wg0", "wg-home", "a.b", "...", "fifteen-bytes-x", "é", "-x"] {
            assert_eq!(name.parse::<InterfaceName>().unwrap().as_str(), name);
        }
    }

    #[test]
    fn bad_names() {
        for (name, why) in [
            ("", NameError::Length),
            ("sixteen-bytes-xx", NameError::Length),
            ("eeeeeeeeeeeeeeé", NameError::Length),
            (".", NameError::Dots),
            ("..", NameError::Dots),
            ("a/b", NameError::Character),
            ("a b", NameError::Character),
            ("a\u{a0}b", NameError::Character),
            ("a\tb", NameError::Character),
            ("a\0b", NameError::Character),
            ("a\u{7f}", NameError::Character),
            ("wg%d", NameError::Character),
            ("a:b", NameError::Character),
        ] {
            assert_eq!(name.parse::<InterfaceName>(), Err(why), "{name:?}");
        }
    }
}
