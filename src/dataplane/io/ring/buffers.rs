//! A ring of provided buffers: the slots that the kernel may receive into.
//!
//! The kernel uses lent slots first-in-first-out, so lending all of them would walk through all their memory even
//! where a few would do. So only as many are lent as [`Depth`] says.

use std::io;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::IoUring;
use io_uring::types::BufRingEntry;

use super::{RingError, SLOT_SIZE};
use crate::dataplane::io::depth::Depth;
use crate::sys::arena::{Arena, Mapping, Slot};

/// Fewer slots than these are not worth having.
const LEAST_SLOTS: u16 = 2;

/// An arena and the ring through which its free slots are lent to the kernel, registered under a group number.
pub(super) struct Buffers {
    arena: Arena,
    /// `struct io_uring_buf_ring`: `capacity` entries, read by the kernel up to the tail.
    entries: Mapping,
    tail: u16,
    mask: u16,
    /// The slots that are in the kernel's hands, by index.
    lent: Vec<Option<Slot>>,
    count: usize,
    /// How many to lend at most.
    depth: Depth,
}

impl Buffers {
    /// Registers `slots` buffers (a power of two) as `group`. If memory is short: raises RLIMIT_MEMLOCK where that is
    /// permitted, then halves the number.
    pub(super) fn new(uring: &IoUring, group: u16, mut slots: u16) -> Result<Self, RingError> {
        let mut raised = false;
        loop {
            match Self::register(uring, group, slots) {
                Err(error) if error.raw_os_error() == Some(libc::ENOMEM) => {
                    if !raised && raise_memlock() {
                        raised = true;
                    } else if slots > LEAST_SLOTS {
                        slots /= 2;
                    } else {
                        return Err(RingError::at("receive buffers")(error));
                    }
                }
                result => return result.map_err(RingError::at("registering receive buffers")),
            }
        }
    }

    fn register(uring: &IoUring, group: u16, slots: u16) -> io::Result<Self> {
        let arena = Arena::new(slots, SLOT_SIZE)?;
        let entries = Mapping::new(usize::from(slots) * size_of::<BufRingEntry>())?;
        let address = entries.base().as_ptr() as u64;
        // SAFETY: the mapping is page-aligned, zeroed and large enough for `slots` entries; the kernel pins its
        // pages, and it is unmapped only after the group was unregistered or the ring closed.
        unsafe { uring.submitter().register_buf_ring_with_flags(address, slots, group, 0) }?;
        let lent = (0..slots).map(|_| None).collect();
        Ok(Self { arena, entries, tail: 0, mask: slots - 1, lent, count: 0, depth: Depth::default() })
    }

    /// Notes that the kernel found no slot.
    pub(super) fn ran_out(&mut self) {
        self.depth.ran_out();
    }

    /// Lends free slots to the kernel, as many as the last turn suggests.
    pub(super) fn refill(&mut self) {
        let depth = self.depth.next_turn(self.arena.capacity());
        let before = self.tail;
        while self.count < depth
            && let Some(slot) = self.arena.take()
        {
            self.entry(self.tail & self.mask, &slot);
            self.tail = self.tail.wrapping_add(1);
            if let Some(place) = self.lent.get_mut(usize::from(slot.index())) {
                *place = Some(slot);
                self.count += 1;
            }
        }
        if self.tail != before {
            let base: NonNull<BufRingEntry> = self.entries.base().cast();
            // SAFETY: the tail lies in the first entry, inside the mapping and 2-aligned; the kernel reads it
            // only, and on this side only this thread writes it. Release: the entries become visible before it.
            let tail = unsafe { AtomicU16::from_ptr(BufRingEntry::tail(base.as_ptr()).cast_mut()) };
            tail.store(self.tail, Ordering::Release);
        }
    }

    fn entry(&mut self, position: u16, slot: &Slot) {
        let base: NonNull<BufRingEntry> = self.entries.base().cast();
        // SAFETY: `position` is at most `mask`, so the entry lies inside the mapping; the kernel reads it only
        // once the tail has passed it. The setters leave the tail, which shares the first entry, alone.
        let entry = unsafe { base.add(usize::from(position)).as_mut() };
        entry.set_addr(slot.address() as u64);
        entry.set_len(SLOT_SIZE as u32);
        entry.set_bid(slot.index());
    }

    /// Takes back the slot that a completion names, with `len` bytes in it; `None` if the kernel did not have it.
    pub(super) fn take(&mut self, index: u16, len: usize) -> Option<Slot> {
        self.depth.brought(len);
        let slot = self.lent.get_mut(usize::from(index))?.take()?;
        self.count -= 1;
        Some(slot)
    }

    /// Slots that neither the kernel nor an event has.
    pub(super) fn free(&self) -> usize {
        self.arena.free()
    }

    /// One of these.
    pub(super) fn take_free(&mut self) -> Option<Slot> {
        self.arena.take()
    }

    /// Notes that so many bytes came past the kernel's slots.
    pub(super) fn brought(&mut self, len: usize) {
        self.depth.brought(len);
    }

    /// How many slots the kernel has.
    pub(super) fn lent(&self) -> usize {
        self.count
    }

    /// Slots that are in the arena or with the kernel; the rest is with events.
    #[cfg(test)]
    pub(super) fn free_or_lent(&self) -> usize {
        self.arena.free() + self.count
    }

    /// How many slots the kernel has at most.
    #[cfg(test)]
    pub(super) fn depth(&self) -> usize {
        self.depth.slots()
    }

    /// Gives up the lent slots for ever, because the kernel may still write to them.
    pub(super) fn leak(&mut self) {
        std::mem::forget(std::mem::take(&mut self.lent));
    }
}

/// Raises the soft limit of lockable memory to the hard one, or both if permitted. True if anything was gained.
pub(super) fn raise_memlock() -> bool {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the pointer is to a local of the right type.
    if unsafe { libc::getrlimit(libc::RLIMIT_MEMLOCK, &raw mut limit) } != 0
        || limit.rlim_cur == libc::RLIM_INFINITY
    {
        return false;
    }
    let set = |cur, max| {
        let wanted = libc::rlimit { rlim_cur: cur, rlim_max: max };
        // SAFETY: the pointer is to a local of the right type.
        unsafe { libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const wanted) == 0 }
    };
    set(libc::RLIM_INFINITY, libc::RLIM_INFINITY)
        || (limit.rlim_cur < limit.rlim_max && set(limit.rlim_max, limit.rlim_max))
}
