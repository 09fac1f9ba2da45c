//! Buffers of one size in one anonymous mapping, handed out as guards that return themselves.
//!
//! A receive path that must not allocate, leak or share needs three things from its buffers: a bound (the arena's
//! capacity), an owner at every moment (a [`Slot`], neither `Clone` nor `Copy`), and a way back that no early
//! return can forget (`Drop`). Freed slots are reused last-in-first-out, so a worker that needs few touches few:
//! the working set stays in the processor's cache, and pages that were never needed are never resident. The
//! mapping is left out of core dumps, since decrypted packets pass through it.
//!
//! A buffer that the kernel may write to is a `Slot` too: whoever started the request keeps it, untouched, until the
//! completion arrives. So "lent to the kernel" needs no state here.

use std::cell::Cell;
use std::fmt;
use std::io;
use std::ops::{Deref, DerefMut};
use std::ptr::{self, NonNull};
use std::rc::Rc;

/// Every slot begins on a cache line of its own.
const LINE: usize = 64;

/// An anonymous private mapping: zeroed, page-aligned, readable and writable, absent from core dumps; unmapped on
/// drop.
#[derive(Debug)]
pub struct Mapping {
    base: NonNull<u8>,
    len: usize,
}

impl Mapping {
    /// Maps `len` bytes (the kernel rounds up to whole pages). No page is resident before it is first touched.
    ///
    /// # Errors
    /// `EINVAL` for `len` 0; what mmap(2) says, in practice `ENOMEM`.
    pub fn new(len: usize) -> io::Result<Self> {
        // SAFETY: a fresh anonymous mapping at an address of the kernel's choice touches no memory that exists.
        let base = unsafe {
            libc::mmap(
                ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(base.cast::<u8>()).ok_or(io::ErrorKind::OutOfMemory)?;
        let mapping = Self { base, len };
        // Miri has anonymous mappings, but no advice.
        #[cfg(not(miri))]
        // SAFETY: the range is exactly the mapping just made, and the advice changes none of its content.
        if unsafe { libc::madvise(base.as_ptr().cast(), len, libc::MADV_DONTDUMP) } != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(mapping)
    }

    /// The first byte; valid for as many bytes as were asked for, as long as the mapping lives.
    #[must_use]
    pub fn base(&self) -> NonNull<u8> {
        self.base
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: base and length are those of a mapping that this value alone owns; nothing borrows from it any
        // more.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.len) };
    }
}

/// What the handle and all slots share. `free[..top]` are the indices nobody holds, the last freed on top.
struct Memory {
    mapping: Mapping,
    /// Usable bytes of a slot.
    size: usize,
    /// Distance between slots: `size` rounded up to whole cache lines.
    stride: usize,
    free: Box<[Cell<u16>]>,
    top: Cell<u16>,
}

/// A bounded set of equal buffers for one thread.
#[derive(Clone)]
pub struct Arena {
    memory: Rc<Memory>,
}

impl Arena {
    /// `count` slots of `size` bytes each, all zero, none resident.
    ///
    /// # Errors
    /// `EINVAL` if `count` or `size` is 0, `ENOMEM` if the product does not fit the address space or mmap(2)
    /// refuses it.
    pub fn new(count: u16, size: usize) -> io::Result<Self> {
        if count == 0 || size == 0 {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        let stride = size.checked_next_multiple_of(LINE);
        let len = stride.and_then(|stride| stride.checked_mul(usize::from(count)));
        let (Some(stride), Some(len)) = (stride, len) else {
            return Err(io::Error::from_raw_os_error(libc::ENOMEM));
        };
        let memory = Memory {
            mapping: Mapping::new(len)?,
            size,
            stride,
            // The lowest index comes out first.
            free: (0..count).rev().map(Cell::new).collect(),
            top: Cell::new(count),
        };
        Ok(Self { memory: Rc::new(memory) })
    }

    /// The slot that was freed last; `None` if all are in use. Its content is whatever its last user left.
    #[must_use]
    pub fn take(&self) -> Option<Slot> {
        let top = self.memory.top.get().checked_sub(1)?;
        let index = self.memory.free.get(usize::from(top))?.get();
        self.memory.top.set(top);
        Some(Slot { memory: Rc::clone(&self.memory), index })
    }

    /// How many slots nobody holds.
    #[must_use]
    pub fn free(&self) -> usize {
        usize::from(self.memory.top.get())
    }

    /// How many slots there are.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.memory.free.len()
    }
}

impl fmt::Debug for Arena {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Arena({} of {} free)", self.free(), self.capacity())
    }
}

/// Exclusive use of one buffer of an [`Arena`]; returns itself when dropped, and keeps the memory alive even if
/// the arena's handle is gone. Bound to the thread that made the arena.
pub struct Slot {
    memory: Rc<Memory>,
    index: u16,
}

impl Slot {
    /// Its number, below the arena's capacity.
    #[must_use]
    pub fn index(&self) -> u16 {
        self.index
    }

    /// Where it begins, for a request to the kernel. Whoever lets the kernel write there keeps the slot and does not
    /// look into it until the request has completed.
    #[must_use]
    pub fn address(&self) -> *mut u8 {
        let offset = usize::from(self.index) * self.memory.stride;
        // SAFETY: the index is below the count with which the mapping was sized, so the offset lies inside it.
        unsafe { self.memory.mapping.base().as_ptr().add(offset) }
    }
}

impl Deref for Slot {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: `size` bytes from here on belong to this slot alone (each index is handed out once until
        // returned, and slots do not overlap); they are initialised (zeroed by mmap) and live as long as `memory`.
        unsafe { std::slice::from_raw_parts(self.address(), self.memory.size) }
    }
}

impl DerefMut for Slot {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`; the mutable borrow of the only guard makes it exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.address(), self.memory.size) }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        // There is room: each index is in the list or in one slot, and the list holds them all.
        let top = self.memory.top.get();
        if let Some(cell) = self.memory.free.get(usize::from(top)) {
            cell.set(self.index);
            self.memory.top.set(top + 1);
        }
    }
}

impl fmt::Debug for Slot {
    /// The number only: the content may be a decrypted packet.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Slot({})", self.index)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn hands_out_each_slot_once_until_none_is_left() {
        let arena = Arena::new(4, 100).unwrap();
        assert_eq!((arena.free(), arena.capacity()), (4, 4));
        let slots: Vec<Slot> = std::iter::from_fn(|| arena.take()).collect();
        assert_eq!(slots.iter().map(Slot::index).collect::<Vec<_>>(), [0, 1, 2, 3]);
        assert_eq!(arena.free(), 0);
        assert!(arena.take().is_none());
        drop(slots);
        assert_eq!(arena.free(), 4);
    }

    #[test]
    fn reuses_the_last_freed_first_whatever_the_order_of_drops() {
        let arena = Arena::new(3, 1).unwrap();
        let (a, b, c) = (arena.take().unwrap(), arena.take().unwrap(), arena.take().unwrap());
        drop(b);
        drop(c);
        drop(a);
        let order: Vec<Slot> = std::iter::from_fn(|| arena.take()).collect();
        assert_eq!(order.iter().map(Slot::index).collect::<Vec<_>>(), [0, 2, 1]);
    }

    #[test]
    fn slots_are_zero_at_first_aligned_and_disjoint() {
        let arena = Arena::new(5, 65).unwrap();
        let mut slots: Vec<Slot> = std::iter::from_fn(|| arena.take()).collect();
        for slot in &mut slots {
            assert!(slot.iter().all(|byte| *byte == 0));
            assert_eq!(slot.len(), 65);
            assert_eq!(slot.address() as usize % LINE, 0);
            let mark = slot.index() as u8 + 1;
            slot.fill(mark);
        }
        for slot in &slots {
            assert!(slot.iter().all(|byte| u16::from(*byte) == slot.index() + 1));
        }
    }

    #[test]
    fn a_slot_outlives_the_handle() {
        let arena = Arena::new(2, 4096).unwrap();
        let mut slot = arena.take().unwrap();
        drop(arena);
        slot.fill(7);
        assert_eq!(slot.iter().map(|byte| usize::from(*byte)).sum::<usize>(), 7 * 4096);
    }

    #[test]
    fn impossible_sizes_are_errors() {
        let errno = |count, size| Arena::new(count, size).unwrap_err().raw_os_error();
        assert_eq!(errno(0, 1), Some(libc::EINVAL));
        assert_eq!(errno(1, 0), Some(libc::EINVAL));
        assert_eq!(errno(1, usize::MAX), Some(libc::ENOMEM));
        assert_eq!(errno(u16::MAX, usize::MAX / 1000), Some(libc::ENOMEM));
        assert_eq!(errno(u16::MAX, 1 << 44), Some(libc::ENOMEM));
    }

    proptest! {
        #[test]
        fn behaves_like_a_stack_of_indices(
            count in 1_u16..20,
            steps in prop::collection::vec((any::<bool>(), 0_usize..20), 0..200),
        ) {
            let arena = Arena::new(count, 8).unwrap();
            let mut model: Vec<u16> = (0..count).rev().collect();
            let mut held: Vec<Slot> = Vec::new();
            for (take, which) in steps {
                if take {
                    let slot = arena.take();
                    prop_assert_eq!(slot.as_ref().map(Slot::index), model.pop());
                    held.extend(slot);
                } else if !held.is_empty() {
                    let slot = held.swap_remove(which % held.len());
                    model.push(slot.index());
                }
                prop_assert_eq!(arena.free(), model.len());
            }
        }
    }
}
