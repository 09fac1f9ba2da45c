//! Interface names and indices.

use std::ffi::{CStr, CString};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ptr;

use super::check;

/// The index of the interface called `name` in this network namespace (if_nametoindex(3)), if there is one.
#[must_use]
pub fn index_of(name: &str) -> Option<u32> {
    let name = CString::new(name).ok()?;
    // SAFETY: `name` is a NUL-terminated string that outlives the call; the callee only reads it.
    let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
    (index != 0).then_some(index)
}

/// The addresses of the interface called `name` in this network namespace (getifaddrs(3)).
///
/// # Errors
/// Those of getifaddrs(3).
pub fn addresses(name: &str) -> io::Result<Vec<IpAddr>> {
    let mut list = ptr::null_mut();
    // SAFETY: `list` is valid to write to.
    check(unsafe { libc::getifaddrs(&raw mut list) })?;
    let mut found = Vec::new();
    let mut next = list;
    // SAFETY: until it is freed the list's entries are valid, the last one's `ifa_next` is null.
    while let Some(entry) = unsafe { next.as_ref() } {
        next = entry.ifa_next;
        // SAFETY: every entry has a name, a NUL-terminated string that lives as long as the list.
        let is_named = unsafe { CStr::from_ptr(entry.ifa_name) }.to_bytes() == name.as_bytes();
        // SAFETY: null, or an address that lives as long as the list; its family tells how long it is.
        let family = unsafe { entry.ifa_addr.as_ref() }.map(|address| libc::c_int::from(address.sa_family));
        match family.filter(|_| is_named) {
            Some(libc::AF_INET) => {
                // SAFETY: the family says that it is one; the C library aligns it.
                let address = unsafe { entry.ifa_addr.cast::<libc::sockaddr_in>().read_unaligned() };
                found.push(Ipv4Addr::from(address.sin_addr.s_addr.to_ne_bytes()).into());
            }
            Some(libc::AF_INET6) => {
                // SAFETY: as above.
                let address = unsafe { entry.ifa_addr.cast::<libc::sockaddr_in6>().read_unaligned() };
                found.push(Ipv6Addr::from(address.sin6_addr.s6_addr).into());
            }
            _ => {}
        }
    }
    // SAFETY: getifaddrs made it, and nothing refers to it any more.
    unsafe { libc::freeifaddrs(list) };
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::testing::{in_netns, ip};

    #[test]
    fn the_addresses_of_one_interface() {
        in_netns(|| {
            ip("addr add 198.18.0.7/24 dev lo");
            ip("link add other type veth peer name end");
            ip("addr add 198.18.1.7/24 dev other");
            let found = addresses("lo").unwrap();
            let wanted: [IpAddr; 3] = ["127.0.0.1", "198.18.0.7", "::1"].map(|text| text.parse().unwrap());
            assert_eq!(found, wanted);
            assert!(addresses("no-such-link").unwrap().is_empty());
        });
    }

    #[test]
    fn loopback_is_one_and_strangers_are_nobody() {
        assert_eq!(index_of("lo"), Some(1));
        assert_eq!(index_of("no-such-link"), None);
        assert_eq!(index_of("with\0nul"), None);
    }
}
