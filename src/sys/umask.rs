//! The process's file mode creation mask, changed for the length of one call.

/// Runs `body` while the mask is `mask` (umask(2)) and puts the old mask back. The mask belongs to the whole process: a
/// file that another thread makes meanwhile gets it too, so keep it strict and the body short.
pub fn with_umask<T>(mask: libc::mode_t, body: impl FnOnce() -> T) -> T {
    /// Puts the old mask back, also when the body unwinds.
    struct Restore(libc::mode_t);
    impl Drop for Restore {
        fn drop(&mut self) {
            // SAFETY: umask takes a number, touches no memory of ours and cannot fail.
            unsafe { libc::umask(self.0) };
        }
    }

    // SAFETY: as above.
    let _restore = Restore(unsafe { libc::umask(mask) });
    body()
}
