//! A table that grows by a chunk at a time and never moves a value: nothing is copied to make room, and what is not
//! used yet is not resident. Left out of core dumps, since it says who is where.

use std::io;
use std::marker::PhantomData;
use std::mem::{align_of, size_of};

use super::arena::Mapping;

/// Values per chunk; more than one fills whole pages for every size.
const CHUNK: usize = 1024;

/// A table of values that never move, by index. Indices are reused, the last freed first.
pub struct Slab<T> {
    chunks: Vec<Mapping>,
    /// Which places hold a value.
    held: Vec<bool>,
    free: Vec<u32>,
    values: PhantomData<T>,
}

impl<T> Default for Slab<T> {
    fn default() -> Self {
        Self { chunks: Vec::new(), held: Vec::new(), free: Vec::new(), values: PhantomData }
    }
}

impl<T> Slab<T> {
    /// Moves a value in and returns its index.
    ///
    /// # Errors
    /// ENOMEM if there is no memory for another chunk.
    pub fn insert(&mut self, value: T) -> io::Result<u32> {
        if self.free.is_empty() {
            self.grow()?;
        }
        let index = self.free.pop().ok_or(io::ErrorKind::OutOfMemory)?;
        // SAFETY: `index` was free: inside a chunk, aligned for T, and nothing is there that would have to be dropped.
        unsafe { self.place(index).write(value) };
        self.held[index as usize] = true;
        Ok(index)
    }

    /// The value at `index`, if there is one.
    #[inline]
    #[must_use]
    pub fn value(&self, index: u32) -> Option<&T> {
        // SAFETY: a held place holds a T, and `self` is borrowed for as long as the reference lives.
        self.is_held(index).then(|| unsafe { &*self.place(index) })
    }

    /// The value at `index`, if there is one.
    #[inline]
    pub fn value_mut(&mut self, index: u32) -> Option<&mut T> {
        // SAFETY: a held place holds a T, and `self` is borrowed exclusively for as long as the reference lives.
        self.is_held(index).then(|| unsafe { &mut *self.place(index) })
    }

    /// Drops the value at `index` where it stands. False if there is none.
    pub fn remove(&mut self, index: u32) -> bool {
        if !self.is_held(index) {
            return false;
        }
        self.held[index as usize] = false;
        self.free.push(index);
        // SAFETY: the place held a T, is no longer marked so, and is dropped only here or in `Drop`.
        unsafe { self.place(index).drop_in_place() };
        true
    }

    /// The indices that hold a value, in order.
    pub fn indices(&self) -> impl Iterator<Item = u32> + '_ {
        (0..).zip(&self.held).filter(|(_, held)| **held).map(|(index, _)| index)
    }

    #[inline]
    fn is_held(&self, index: u32) -> bool {
        self.held.get(index as usize).copied().unwrap_or(false)
    }

    /// Where `index` stands; it must lie within the chunks.
    #[inline]
    fn place(&self, index: u32) -> *mut T {
        let (chunk, at) = (index as usize / CHUNK, index as usize % CHUNK);
        // SAFETY: a chunk has room for CHUNK values (see `grow`), and `at` is below it.
        unsafe { self.chunks[chunk].base().as_ptr().cast::<T>().add(at) }
    }

    fn grow(&mut self) -> io::Result<()> {
        // Mappings are aligned to a page, which no value's alignment exceeds.
        const { assert!(align_of::<T>() <= 4096 && size_of::<T>() > 0) };
        let first = u32::try_from(self.chunks.len() * CHUNK).map_err(|_| io::ErrorKind::OutOfMemory)?;
        let chunk = Mapping::new(CHUNK * size_of::<T>())?;
        self.chunks.push(chunk);
        self.held.resize(self.chunks.len() * CHUNK, false);
        self.free.extend((first..first + CHUNK as u32).rev());
        Ok(())
    }
}

impl<T> Drop for Slab<T> {
    fn drop(&mut self) {
        for index in self.indices().collect::<Vec<_>>() {
            self.remove(index);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::testing::vm_flags;
    use proptest::prelude::*;
    use std::collections::BTreeMap;
    use std::rc::Rc;

    #[test]
    fn values_are_dropped_once() {
        let alive = Rc::new(());
        let mut slab = Slab::default();
        let indices: Vec<u32> = (0..100).map(|_| slab.insert(Rc::clone(&alive)).unwrap()).collect();
        assert_eq!(Rc::strong_count(&alive), 101);
        assert!(slab.remove(indices[50]) && !slab.remove(indices[50]));
        assert!(slab.value(indices[50]).is_none() && slab.value(1_000_000).is_none());
        assert_eq!(Rc::strong_count(&alive), 100);
        drop(slab);
        assert_eq!(Rc::strong_count(&alive), 1);
    }

    #[test]
    fn is_left_out_of_core_dumps() {
        let mut slab = Slab::default();
        let index = slab.insert([7u8; 4096]).unwrap();
        let address = slab.value(index).unwrap().as_ptr() as usize;
        let flags = vm_flags(address);
        assert!(flags.contains(" dd"), "{flags}");
    }

    proptest! {
        #[test]
        fn is_a_map(steps in proptest::collection::vec((any::<bool>(), 0u32..80), 0..400)) {
            let (mut slab, mut model) = (Slab::default(), BTreeMap::new());
            for (n, (insert, index)) in steps.into_iter().enumerate() {
                if insert {
                    let index = slab.insert(n).unwrap();
                    prop_assert!(model.insert(index, n).is_none());
                } else {
                    prop_assert_eq!(slab.remove(index), model.remove(&index).is_some());
                }
                prop_assert_eq!(slab.value(index), model.get(&index));
                prop_assert!(slab.indices().eq(model.keys().copied()));
            }
        }
    }
}
