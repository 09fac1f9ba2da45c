//! Interface names and indices.

use std::ffi::CString;

/// The index of the interface called `name` in this network namespace (if_nametoindex(3)), if there is one.
#[must_use]
pub fn index_of(name: &str) -> Option<u32> {
    let name = CString::new(name).ok()?;
    // SAFETY: `name` is a NUL-terminated string that outlives the call; the callee only reads it.
    let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
    (index != 0).then_some(index)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_one_and_strangers_are_nobody() {
        assert_eq!(index_of("lo"), Some(1));
        assert_eq!(index_of("no-such-link"), None);
        assert_eq!(index_of("with\0nul"), None);
    }
}
