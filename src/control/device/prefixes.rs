//! The prefixes of one peer.

use std::collections::BTreeSet;

use arrayvec::ArrayVec;

use crate::types::Prefix;

/// So many stand in place: an address of each family, which is what nearly every peer has.
const FEW: usize = 2;

/// A set in order. Never goes back to a few from a tree: who had many once may have them again.
#[derive(Debug)]
pub(super) enum Prefixes {
    Few(ArrayVec<Prefix, FEW>),
    Many(BTreeSet<Prefix>),
}

impl Default for Prefixes {
    fn default() -> Self {
        Self::Few(ArrayVec::new())
    }
}

impl Prefixes {
    /// In order.
    pub(super) fn iter(&self) -> impl Iterator<Item = Prefix> + '_ {
        let (few, many) = match self {
            Self::Few(few) => (few.as_slice(), None),
            Self::Many(many) => (&[][..], Some(many)),
        };
        few.iter().chain(many.into_iter().flatten()).copied()
    }

    /// Adds one, unless it is there.
    pub(super) fn insert(&mut self, prefix: Prefix) {
        match self {
            Self::Few(few) if few.contains(&prefix) => {}
            Self::Few(few) if few.is_full() => {
                *self = Self::Many(few.iter().copied().chain([prefix]).collect());
            }
            Self::Few(few) => {
                few.push(prefix);
                few.sort_unstable();
            }
            Self::Many(many) => drop(many.insert(prefix)),
        }
    }

    /// Removes one, if it is there.
    pub(super) fn remove(&mut self, prefix: Prefix) {
        match self {
            Self::Few(few) => few.retain(|one| *one != prefix),
            Self::Many(many) => drop(many.remove(&prefix)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn is_a_set_in_order(steps in proptest::collection::vec((any::<bool>(), 0u8..6), 0..40)) {
            let (mut prefixes, mut model) = (Prefixes::default(), BTreeSet::new());
            for (insert, host) in steps {
                let prefix = Prefix::host(Ipv4Addr::new(100, 64, 0, host).into());
                if insert {
                    prefixes.insert(prefix);
                    model.insert(prefix);
                } else {
                    prefixes.remove(prefix);
                    model.remove(&prefix);
                }
                prop_assert!(prefixes.iter().eq(model.iter().copied()));
            }
        }
    }
}
