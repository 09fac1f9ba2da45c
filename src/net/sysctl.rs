//! Kernel parameters of the calling thread's network namespace, under `/proc/sys/net`.
//!
//! They may be written with CAP_NET_ADMIN alone, whoever owns the process (net_ctl_permissions of the kernel), unless
//! `/proc/sys` is mounted read-only.

use std::fmt;
use std::fs;
use std::io::{self, Write as _};
use std::path::PathBuf;

/// One parameter, by its path below `/proc/sys/net`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Parameter(String);

impl Parameter {
    /// `net.FAMILY.conf.INTERFACE.KEY`; the interface may be `all` or `default`. `None` where a part could lead out
    /// of that directory.
    #[must_use]
    pub fn of(family: Family, interface: &str, key: &str) -> Option<Self> {
        let harmless =
            |part: &str| !matches!(part, "" | "." | "..") && !part.contains(['/', '\0']) && part.len() < 64;
        (harmless(interface) && harmless(key))
            .then(|| Self(format!("{}/conf/{interface}/{key}", family.directory())))
    }

    /// Reads back what [`Self::path`] gave. `None` for anything else.
    #[must_use]
    pub fn parse(path: &str) -> Option<Self> {
        let mut parts = path.split('/');
        let family = [Family::V4, Family::V6].into_iter().find(|f| Some(f.directory()) == path.get(..4))?;
        let (_, "conf", interface, key, None) =
            (parts.next()?, parts.next()?, parts.next()?, parts.next()?, parts.next())
        else {
            return None;
        };
        Self::of(family, interface, key)
    }

    /// The path below `/proc/sys/net`, without spaces: no interface name has any.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.0
    }

    /// The entries of a family's `conf`: interfaces, and `all` and `default`; none where the kernel lacks the family.
    #[must_use]
    pub fn interfaces(family: Family) -> Vec<String> {
        let entries = fs::read_dir(format!("/proc/sys/net/{}/conf", family.directory()));
        let names = entries.into_iter().flatten().flatten();
        names.filter_map(|entry| entry.file_name().into_string().ok()).collect()
    }

    /// IPv4 or IPv6.
    #[must_use]
    pub fn family(&self) -> Family {
        if self.0.starts_with(Family::V4.directory()) { Family::V4 } else { Family::V6 }
    }

    /// The last part of the path.
    #[must_use]
    pub fn key(&self) -> &str {
        self.0.rsplit('/').next().unwrap_or_default()
    }

    /// The present value, without the line's end. `None` if the kernel, or the interface, has no such parameter.
    ///
    /// # Errors
    /// Those of open(2) and read(2), but not ENOENT.
    pub fn read(&self) -> io::Result<Option<String>> {
        match fs::read_to_string(self.file()) {
            Ok(text) => Ok(Some(text.trim_end().to_owned())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Writes a value.
    ///
    /// # Errors
    /// EROFS where `/proc/sys` is read-only, EACCES without CAP_NET_ADMIN, ENOENT without such a parameter.
    pub fn write(&self, value: &str) -> io::Result<()> {
        // One write: the kernel takes each for a whole value.
        fs::OpenOptions::new().write(true).open(self.file())?.write_all(value.as_bytes())
    }

    fn file(&self) -> PathBuf {
        PathBuf::from("/proc/sys/net").join(&self.0)
    }
}

/// As sysctl(8) takes it: parts with dots between, and a dot within an interface's name as a slash.
impl fmt::Display for Parameter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("net")?;
        self.0.split('/').try_for_each(|part| write!(f, ".{}", part.replace('.', "/")))
    }
}

/// Which half of the network stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    fn directory(self) -> &'static str {
        match self {
            Self::V4 => "ipv4",
            Self::V6 => "ipv6",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::testing::in_netns;

    #[test]
    fn a_parameter_has_the_name_that_sysctl_takes() {
        let parameter = Parameter::of(Family::V4, "eth0.100", "forwarding").unwrap();
        assert_eq!(parameter.path(), "ipv4/conf/eth0.100/forwarding");
        assert_eq!(parameter.to_string(), "net.ipv4.conf.eth0/100.forwarding");
        assert_eq!(Parameter::parse(parameter.path()), Some(parameter));
    }

    #[test]
    fn no_path_leads_elsewhere() {
        for path in [
            "",
            "ipv4",
            "ipv4/conf/../forwarding",
            "ipv5/conf/a/b",
            "ipv4/conf/a/b/c",
            "ipv4/neigh/a/b",
            "ipv4/conf//b",
            "é/conf/a/b",
        ] {
            assert_eq!(Parameter::parse(path), None, "{path}");
        }
        assert_eq!(Parameter::of(Family::V6, "a/b", "forwarding"), None);
    }

    #[test]
    fn values_are_those_of_the_threads_own_namespace() {
        in_netns(|| {
            let forwarding = Parameter::of(Family::V4, "lo", "forwarding").unwrap();
            for value in ["1", "0"] {
                forwarding.write(value).unwrap();
                assert_eq!(forwarding.read().unwrap().as_deref(), Some(value));
            }
            assert_eq!(Parameter::of(Family::V4, "nobody", "forwarding").unwrap().read().unwrap(), None);
        });
    }
}
