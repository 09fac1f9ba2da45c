//! Longest-prefix match: a path-compressed binary trie (Morrison's PATRICIA, 1968) in one arena.
//!
//! Nodes are linked by 32-bit numbers, so that an IPv4 node with its value fills half a cache line, and freed
//! nodes are used again. A node is there because it holds a value or because two paths part at it: at most two
//! nodes per prefix.

use std::hash::Hash;

/// "No node". Never a valid number: an arena of that many nodes would need 128 GiB.
const NIL: u32 = u32::MAX;

/// An address as a string of bits, counted from the most significant.
pub(super) trait Address: Copy + Eq + Hash {
    /// Length in bits.
    const BITS: u8;

    /// Bit `n` (`n < BITS`) as an index into two children.
    fn bit(self, n: u8) -> usize;

    /// How many leading bits both share.
    fn common(self, other: Self) -> u8;
}

macro_rules! address {
    ($int:ty) => {
        impl Address for $int {
            const BITS: u8 = <$int>::BITS as u8;

            #[inline]
            fn bit(self, n: u8) -> usize {
                usize::from((self << n) >> (Self::BITS - 1) != 0)
            }

            #[inline]
            fn common(self, other: Self) -> u8 {
                (self ^ other).leading_zeros() as u8
            }
        }
    };
}

address!(u32);
address!(u128);

struct Node<K, V> {
    /// Only the first `len` bits count.
    key: K,
    /// Below `K::BITS`: host prefixes do not come here.
    len: u8,
    children: [u32; 2],
    value: Option<V>,
}

/// Where a link to a node stands.
#[derive(Clone, Copy)]
enum Place {
    Root,
    Child(u32, usize),
}

/// Values by prefix; prefixes are shorter than the address.
pub(super) struct Trie<K, V> {
    nodes: Vec<Node<K, V>>,
    /// Nodes of the arena that nothing links to.
    free: Vec<u32>,
    root: u32,
}

impl<K: Address, V: Copy> Trie<K, V> {
    pub(super) const fn new() -> Self {
        Self { nodes: Vec::new(), free: Vec::new(), root: NIL }
    }

    /// The value of the longest prefix of `key`.
    #[inline]
    pub(super) fn lookup(&self, key: K) -> Option<V> {
        let mut best = None;
        let mut link = self.root;
        while let Some(node) = self.nodes.get(link as usize) {
            if node.key.common(key) < node.len {
                break;
            }
            best = node.value.or(best);
            link = node.children[key.bit(node.len)];
        }
        best
    }

    /// Sets the value of the first `len` bits of `key` and returns the one before; `len` is below `K::BITS`.
    pub(super) fn insert(&mut self, key: K, len: u8, value: V) -> Option<V> {
        let mut place = Place::Root;
        loop {
            let link = self.link(place);
            let Some(node) = self.nodes.get_mut(link as usize) else {
                let leaf = self.add(Node { key, len, children: [NIL; 2], value: Some(value) });
                self.set_link(place, leaf);
                return None;
            };
            let common = node.key.common(key).min(node.len).min(len);
            if common == node.len {
                if common == len {
                    return node.value.replace(value);
                }
                place = Place::Child(link, key.bit(common));
                continue;
            }
            // The paths part inside this node's: it moves below a new one, which is the prefix itself or a branch.
            let old_side = node.key.bit(common);
            let parting = Node { key, len: common, children: [NIL; 2], value: None };
            let parting = self.add(parting);
            self.set_link(Place::Child(parting, old_side), link);
            self.set_link(place, parting);
            place = Place::Child(parting, 1 - old_side);
            if common == len {
                self.nodes[parting as usize].value = Some(value);
                return None;
            }
        }
    }

    /// Takes out the value of the first `len` bits of `key`.
    pub(super) fn remove(&mut self, key: K, len: u8) -> Option<V> {
        let mut above = None;
        let mut place = Place::Root;
        loop {
            let link = self.link(place);
            let node = self.nodes.get_mut(link as usize)?;
            if node.len > len || node.key.common(key) < node.len {
                return None;
            }
            if node.len == len {
                let value = node.value.take()?;
                self.splice(place);
                // With its child gone the branch above may part nothing any more.
                if let Some(above) = above {
                    self.splice(above);
                }
                return Some(value);
            }
            above = Some(place);
            place = Place::Child(link, key.bit(node.len));
        }
    }

    /// Nodes in use; at most twice the number of prefixes.
    #[cfg(test)]
    pub(super) fn nodes_in_use(&self) -> usize {
        self.nodes.len() - self.free.len()
    }

    /// Takes the node at `place` out if it holds no value and parts nothing.
    fn splice(&mut self, place: Place) {
        let link = self.link(place);
        let Some(node) = self.nodes.get(link as usize) else { return };
        if node.value.is_some() {
            return;
        }
        let ([NIL, child] | [child, NIL]) = node.children else { return };
        self.set_link(place, child);
        self.free.push(link);
    }

    fn add(&mut self, node: Node<K, V>) -> u32 {
        if let Some(link) = self.free.pop() {
            self.nodes[link as usize] = node;
            return link;
        }
        let link = self.nodes.len() as u32;
        self.nodes.push(node);
        link
    }

    fn link(&self, place: Place) -> u32 {
        match place {
            Place::Root => self.root,
            Place::Child(node, side) => self.nodes[node as usize].children[side],
        }
    }

    fn set_link(&mut self, place: Place, link: u32) {
        match place {
            Place::Root => self.root = link,
            Place::Child(node, side) => self.nodes[node as usize].children[side] = link,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ipv4_node_is_half_a_cache_line() {
        assert!(size_of::<Node<u32, super::super::Bound>>() <= 32);
    }

    #[test]
    fn bits_count_from_the_most_significant() {
        assert_eq!((0x8000_0000_u32.bit(0), 0x8000_0000_u32.bit(1), 1_u32.bit(31)), (1, 0, 1));
        assert_eq!((1_u128 << 127).bit(0), 1);
        assert_eq!(0xff00_0000_u32.common(0xfe00_0000), 7);
        assert_eq!(5_u128.common(5), 128);
    }

    #[test]
    fn nodes_are_used_again() {
        let mut trie = Trie::<u32, u8>::new();
        for round in 0..3 {
            for n in 0..1000_u32 {
                assert_eq!(trie.insert(n << 12, 24, round), None);
            }
            assert!(trie.nodes_in_use() < 2000);
            for n in 0..1000_u32 {
                assert_eq!(trie.remove(n << 12, 24), Some(round));
            }
            assert_eq!(trie.nodes_in_use(), 0);
        }
        assert!(trie.nodes.len() < 2000);
    }

    #[test]
    fn a_branch_is_no_prefix() {
        let mut trie = Trie::<u32, u8>::new();
        trie.insert(0x0a00_0000, 16, 1);
        trie.insert(0x0a01_0000, 16, 2);
        assert_eq!(trie.remove(0x0a00_0000, 15), None);
        assert_eq!(trie.lookup(0x0a02_0000), None);
        assert_eq!(trie.insert(0x0a00_0000, 15, 3), None);
        assert_eq!(trie.nodes_in_use(), 3);
        assert_eq!(trie.remove(0x0a00_0000, 16), Some(1));
        assert_eq!(trie.lookup(0x0a00_0001), Some(3));
        assert_eq!(trie.lookup(0x0a01_0001), Some(2));
    }
}
