//! Boxes for what only a live session has and nobody else shall see: left out of core dumps, locked into memory where
//! permitted, never moved, wiped when they are given back.
//!
//! The boxes of a type stand in chunks that are mapped for them alone, so that their keys share no page with anything
//! else. The allocator's memory offers none of this: it dumps, swaps, and keeps freed bytes. A box that is dropped is
//! used again, the last one first; chunks stay.

use std::alloc::{Layout, handle_alloc_error};
use std::fmt;
use std::hint::black_box;
use std::io;
use std::mem::size_of;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::{Mutex, PoisonError};

use super::arena::Mapping;

/// Bytes of a chunk.
const CHUNK: usize = 64 << 10;
/// Every value begins on a cache line of its own.
const LINE: usize = 64;

/// Memory for the boxes of one type, shared by all threads: it is asked when a box is made or dropped, never when it is
/// used.
pub struct Pool<T>(Mutex<Blocks<T>>);

/// A type that has a pool.
pub trait Guardable: Sized + 'static {
    /// The pool of its boxes, a `static`.
    fn pool() -> &'static Pool<Self>;
}

struct Blocks<T> {
    /// They stay as long as the pool does, which is for ever.
    chunks: Vec<Mapping>,
    /// Zeroed and nobody's; has room for every block there is.
    free: Vec<NonNull<T>>,
    locked: bool,
}

// SAFETY: blocks are plain memory that belongs to the pool until a box takes it; no value of T is in one that is free.
unsafe impl<T> Send for Blocks<T> {}

impl<T> Pool<T> {
    /// Where a block begins after the one before it.
    const STRIDE: usize = {
        assert!(align_of::<T>() <= LINE && size_of::<T>() > 0 && size_of::<T>() <= CHUNK - LINE);
        size_of::<T>().next_multiple_of(LINE)
    };

    /// Without memory until the first box.
    #[must_use]
    pub const fn new() -> Self {
        Self(Mutex::new(Blocks { chunks: Vec::new(), free: Vec::new(), locked: true }))
    }

    fn take(&self) -> io::Result<NonNull<T>> {
        let mut blocks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if blocks.free.is_empty() {
            blocks.grow(Self::STRIDE)?;
        }
        blocks.free.pop().ok_or(io::ErrorKind::OutOfMemory.into())
    }

    fn give_back(&self, block: NonNull<T>) {
        // SAFETY: the block is STRIDE bytes of a chunk, and no value is in it any more.
        unsafe { block.cast::<u8>().write_bytes(0, Self::STRIDE) };
        // Somebody might look: the compiler must not leave the zeros away.
        self.0.lock().unwrap_or_else(PoisonError::into_inner).free.push(black_box(block));
    }
}

impl<T> Default for Pool<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> Blocks<T> {
    fn grow(&mut self, stride: usize) -> io::Result<()> {
        let chunk = Mapping::new(CHUNK)?;
        let locked = lock(&chunk).is_ok();
        if self.locked && !locked {
            tracing::debug!("keys may be swapped out: RLIMIT_MEMLOCK keeps them from being locked");
        }
        self.locked = locked;
        let count = CHUNK / stride;
        self.free.reserve((self.chunks.len() + 1) * count);
        // SAFETY: each offset is within the chunk, and so is the block of `stride` bytes that begins there.
        let blocks = (0..count).rev().map(|at| unsafe { chunk.base().add(at * stride).cast() });
        self.free.extend(blocks);
        self.chunks.push(chunk);
        Ok(())
    }
}

/// Keeps pages out of swap from the moment they are touched (MLOCK_ONFAULT), so that an empty chunk costs nothing.
fn lock(chunk: &Mapping) -> io::Result<()> {
    // SAFETY: the range is a mapping of ours; locking it changes no memory.
    let locked = unsafe { libc::mlock2(chunk.base().as_ptr().cast(), CHUNK, libc::MLOCK_ONFAULT) };
    super::check(locked).map(drop)
}

/// A box in the pool of its type.
pub struct Guarded<T: Guardable>(NonNull<T>);

// SAFETY: it owns its value as a Box does; the pool behind it is locked.
unsafe impl<T: Guardable + Send> Send for Guarded<T> {}
// SAFETY: as above.
unsafe impl<T: Guardable + Sync> Sync for Guarded<T> {}

impl<T: Guardable> Guarded<T> {
    /// Moves a value in. Without memory the process ends, as it does when a Box finds none.
    #[must_use]
    pub fn new(value: T) -> Self {
        let Ok(block) = T::pool().take() else { handle_alloc_error(Layout::new::<T>()) };
        // SAFETY: the block is ours alone, aligned, and large enough; there is no value in it.
        unsafe { block.write(value) };
        Self(block)
    }
}

impl<T: Guardable> Deref for Guarded<T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: a block that is ours holds a value, and `self` is borrowed for as long as the reference lives.
        unsafe { self.0.as_ref() }
    }
}

impl<T: Guardable> DerefMut for Guarded<T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as above, and `self` is borrowed exclusively.
        unsafe { self.0.as_mut() }
    }
}

impl<T: Guardable> Drop for Guarded<T> {
    fn drop(&mut self) {
        // SAFETY: the value was written by `new` and is dropped only here.
        unsafe { self.0.drop_in_place() };
        T::pool().give_back(self.0);
    }
}

impl<T: Guardable + fmt::Debug> fmt::Debug for Guarded<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        T::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::sync::Arc;

    use super::*;
    use crate::sys::testing::vm_flags;

    struct Key {
        _alive: Arc<()>,
        bytes: [u8; 100],
    }

    static KEYS: Pool<Key> = Pool::new();

    impl Guardable for Key {
        fn pool() -> &'static Pool<Self> {
            &KEYS
        }
    }

    /// In one test, since they share the pool.
    #[test]
    fn what_is_given_back_is_wiped_and_used_again() {
        let alive = Arc::new(());
        let new = |byte| Guarded::new(Key { _alive: Arc::clone(&alive), bytes: [byte; 100] });
        let many: Vec<_> = (0..2000).map(|n| new(n as u8)).collect();
        assert_eq!(Arc::strong_count(&alive), 2001);
        assert!(many.iter().enumerate().all(|(n, key)| key.bytes == [n as u8; 100]), "none overlaps another");
        let places: BTreeSet<_> = many.iter().map(|key| key.0.as_ptr() as usize).collect();
        assert!(places.iter().all(|place| place.is_multiple_of(LINE)));
        let flags = vm_flags(*places.first().unwrap());
        assert!(flags.contains(" dd"), "{flags}");
        assert!(!KEYS.0.lock().unwrap().locked || flags.contains(" lo"), "{flags}");

        let from_another_thread = std::thread::spawn(move || drop(many));
        from_another_thread.join().unwrap();
        assert_eq!(Arc::strong_count(&alive), 1, "each is dropped once");
        for place in &places {
            // SAFETY: chunks stay, and nobody has this block now.
            let bytes = unsafe { std::slice::from_raw_parts(*place as *const u8, size_of::<Key>()) };
            assert!(bytes.iter().all(|byte| *byte == 0));
        }
        let again: Vec<_> = (0..2000).map(|_| new(1)).collect();
        let chunks = KEYS.0.lock().unwrap().chunks.len();
        assert_eq!(chunks, 2000_usize.div_ceil(CHUNK / Pool::<Key>::STRIDE), "no memory beside the first");
        assert_eq!(again.iter().map(|key| key.0.as_ptr() as usize).collect::<BTreeSet<_>>(), places);
    }
}
