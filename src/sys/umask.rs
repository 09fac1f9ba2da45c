//! The process's file mode creation mask, changed for the length of one call.

use std::sync::{Mutex, PoisonError};

/// One change at a time: two at once would put back each other's mask.
static CHANGING: Mutex<()> = Mutex::new(());

/// Runs `body` while the mask is `mask` (umask(2)) and puts the old mask back. The mask belongs to the whole
/// process: a file that another thread makes meanwhile gets it too, so keep it strict and the body short.
pub fn with_umask<T>(mask: libc::mode_t, body: impl FnOnce() -> T) -> T {
    /// Puts the old mask back, also when the body unwinds.
    struct Restore(libc::mode_t);
    impl Drop for Restore {
        fn drop(&mut self) {
            // SAFETY: umask takes a number, touches no memory of ours and cannot fail.
            unsafe { libc::umask(self.0) };
        }
    }

    let _alone = CHANGING.lock().unwrap_or_else(PoisonError::into_inner);
    // SAFETY: as above.
    let _restore = Restore(unsafe { libc::umask(mask) });
    body()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mask_holds_inside() {
        use std::os::unix::fs::MetadataExt as _;
        let path = std::env::temp_dir().join(format!("ringway-{}-umask", std::process::id()));
        let file = with_umask(0o177, || std::fs::File::create(&path)).unwrap();
        assert_eq!(file.metadata().unwrap().mode() & 0o777, 0o600);
        std::fs::remove_file(&path).unwrap();
    }
}
