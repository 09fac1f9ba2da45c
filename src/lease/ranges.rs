//! Sets of IPv4 addresses as ranges: what a pool holds, less what it does not.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use crate::types::{AddressError, Prefix};

/// The addresses from `first` to `last`, both included.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Range {
    first: u32,
    last: u32,
}

impl Range {
    /// `None` if `last` comes before `first`.
    #[must_use]
    pub fn new(first: Ipv4Addr, last: Ipv4Addr) -> Option<Self> {
        (first <= last).then_some(Self { first: first.to_bits(), last: last.to_bits() })
    }

    /// The least address.
    #[must_use]
    pub fn first(self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.first)
    }

    /// The greatest address.
    #[must_use]
    pub fn last(self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.last)
    }
}

impl Range {
    /// The fewest prefixes that hold just these addresses, in order: 62 at most.
    pub fn prefixes(self) -> impl Iterator<Item = Prefix> {
        let mut next = Some(self.first);
        std::iter::from_fn(move || {
            let first = next.filter(|first| *first <= self.last)?;
            // As long as it begins where a prefix may, and as what is left.
            let left = u64::from(self.last - first) + 1;
            let bits = first.trailing_zeros().min(left.ilog2());
            next = 1_u32.checked_shl(bits).and_then(|count| first.checked_add(count));
            Prefix::new(Ipv4Addr::from_bits(first).into(), (32 - bits) as u8)
        })
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last {
            return self.first().fmt(f);
        }
        write!(f, "{}-{}", self.first(), self.last())
    }
}

impl fmt::Debug for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Why a text is no range.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RangeError {
    /// Neither notation.
    #[error("no IPv4 range (\"100.64.0.0/16\", \"100.64.0.10-100.64.0.99\"): {0}")]
    Text(AddressError),
    /// The ends are the wrong way round.
    #[error("the range ends before it begins")]
    Reversed,
}

impl FromStr for Range {
    type Err = RangeError;

    /// `100.64.0.0/16`, `100.64.0.10-100.64.0.99`, or one address.
    fn from_str(text: &str) -> Result<Self, RangeError> {
        if let Some((first, last)) = text.split_once('-') {
            let end = |text: &str| {
                text.trim().parse::<Ipv4Addr>().map_err(|_| RangeError::Text(AddressError::Address))
            };
            return Self::new(end(first)?, end(last)?).ok_or(RangeError::Reversed);
        }
        let prefix: Prefix = text.parse().map_err(RangeError::Text)?;
        Self::try_from(prefix).map_err(RangeError::Text)
    }
}

impl TryFrom<Prefix> for Range {
    type Error = AddressError;

    /// All addresses of an IPv4 prefix.
    fn try_from(prefix: Prefix) -> Result<Self, AddressError> {
        let std::net::IpAddr::V4(addr) = prefix.addr() else { return Err(AddressError::Address) };
        let host_bits = u32::MAX.checked_shr(prefix.len().into()).unwrap_or(0);
        Ok(Self { first: addr.to_bits(), last: addr.to_bits() | host_bits })
    }
}

/// A set of addresses: ranges in order, none of which touches the next.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Ranges(Vec<Range>);

impl FromIterator<Range> for Ranges {
    fn from_iter<I: IntoIterator<Item = Range>>(ranges: I) -> Self {
        let mut all: Vec<_> = ranges.into_iter().collect();
        all.sort_unstable();
        let mut merged: Vec<Range> = Vec::with_capacity(all.len());
        for range in all {
            match merged.last_mut() {
                Some(before) if range.first <= before.last.saturating_add(1) => {
                    before.last = before.last.max(range.last);
                }
                _ => merged.push(range),
            }
        }
        Self(merged)
    }
}

impl Ranges {
    /// The ranges, in order.
    pub fn iter(&self) -> impl Iterator<Item = Range> {
        self.0.iter().copied()
    }

    /// How many addresses there are.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.0.iter().map(|range| u64::from(range.last - range.first) + 1).sum()
    }

    /// True if there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// O(log ranges).
    #[must_use]
    pub fn contains(&self, address: Ipv4Addr) -> bool {
        let address = address.to_bits();
        let after = self.0.partition_point(|range| range.first <= address);
        after > 0 && self.0.get(after - 1).is_some_and(|range| address <= range.last)
    }

    /// What is in `self` and not in `other`.
    #[must_use]
    pub fn minus(&self, other: &Self) -> Self {
        let mut left = Vec::new();
        let mut holes = other.0.iter().copied().peekable();
        for mut range in self.iter() {
            let mut whole = false;
            while holes.next_if(|hole| hole.last < range.first).is_some() {}
            while let Some(&hole) = holes.peek().filter(|hole| hole.first <= range.last) {
                if hole.first > range.first {
                    left.push(Range { first: range.first, last: hole.first - 1 });
                }
                if hole.last >= range.last {
                    whole = true;
                    break;
                }
                range.first = hole.last + 1;
                holes.next();
            }
            if !whole {
                left.push(range);
            }
        }
        Self(left)
    }

    /// What is in both.
    #[must_use]
    pub fn and(&self, other: &Self) -> Self {
        self.minus(&self.minus(other))
    }

    /// What is in either.
    #[must_use]
    pub fn or(&self, other: &Self) -> Self {
        self.iter().chain(other.iter()).collect()
    }

    /// Takes out the least address.
    pub fn take_first(&mut self) -> Option<Ipv4Addr> {
        let range = self.0.first_mut()?;
        let address = range.first();
        if range.first == range.last {
            self.0.remove(0);
        } else {
            range.first += 1;
        }
        Some(address)
    }
}

impl fmt::Debug for Ranges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(&self.0).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    /// A set within the least or the greatest 64 addresses of all.
    fn few() -> impl Strategy<Value = Vec<(u32, u32)>> {
        let ends = prop_oneof![(0u32..64, 0u32..16), ((u32::MAX - 63)..=u32::MAX, 0u32..16)];
        proptest::collection::vec(ends, 0..6)
    }

    fn ranges(ends: &[(u32, u32)]) -> Ranges {
        ends.iter().map(|&(first, more)| Range { first, last: first.saturating_add(more) }).collect()
    }

    fn each(ranges: &Ranges) -> BTreeSet<u32> {
        ranges.iter().flat_map(|range| range.first..=range.last).collect()
    }

    proptest! {
        #[test]
        fn they_are_sets(a in few(), b in few()) {
            let (a, b) = (ranges(&a), ranges(&b));
            let (in_a, in_b) = (each(&a), each(&b));
            for (made, wanted) in [
                (a.minus(&b), &in_a - &in_b),
                (a.and(&b), &in_a & &in_b),
                (a.or(&b), &in_a | &in_b),
            ] {
                prop_assert_eq!(each(&made), wanted.clone());
                prop_assert_eq!(made.count(), wanted.len() as u64);
                // No two touch.
                prop_assert!(made.0.windows(2).all(|pair| pair[0].last + 1 < pair[1].first));
            }
            for probe in (0..70).chain(u32::MAX - 70..=u32::MAX) {
                prop_assert_eq!(a.contains(Ipv4Addr::from_bits(probe)), in_a.contains(&probe));
            }
            let mut taken = a;
            let order: Vec<_> = std::iter::from_fn(|| taken.take_first()).map(Ipv4Addr::to_bits).collect();
            prop_assert_eq!(order, in_a.into_iter().collect::<Vec<_>>());
        }
    }

    proptest! {
        #[test]
        fn prefixes_hold_just_the_range(first in any::<u32>(), more in 0_u32..3000, end in any::<bool>()) {
            let first = if end { u32::MAX - more } else { first };
            let range = Range { first, last: first.saturating_add(more) };
            let mut next = u64::from(first);
            for prefix in range.prefixes() {
                let of = Range::try_from(prefix).unwrap();
                prop_assert_eq!(u64::from(of.first), next);
                next = u64::from(of.last) + 1;
            }
            prop_assert_eq!(next, u64::from(range.last) + 1);
            prop_assert!(range.prefixes().count() <= 62);
        }
    }

    #[test]
    fn all_addresses_are_one_prefix() {
        let told = |text: &str| {
            let range: Range = text.parse().unwrap();
            range.prefixes().map(|prefix| prefix.to_string()).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(told("0.0.0.0/0"), "0.0.0.0/0");
        assert_eq!(told("10.0.0.1-10.0.0.6"), "10.0.0.1/32 10.0.0.2/31 10.0.0.4/31 10.0.0.6/32");
        assert_eq!(told("0.0.0.1-255.255.255.254").split(' ').count(), 62);
    }

    #[test]
    fn both_notations_are_read_and_others_refused() {
        let read = |text: &str| text.parse::<Range>().map(|range| range.to_string());
        assert_eq!(read("100.64.0.0/30").unwrap(), "100.64.0.0-100.64.0.3");
        assert_eq!(read("100.64.0.9-100.64.1.2").unwrap(), "100.64.0.9-100.64.1.2");
        assert_eq!(read("100.64.0.9").unwrap(), "100.64.0.9");
        assert_eq!(read("0.0.0.0/0").unwrap(), "0.0.0.0-255.255.255.255");
        assert_eq!(read("100.64.0.2-100.64.0.1").unwrap_err(), RangeError::Reversed);
        for text in ["", "100.64.0.1/30", "fd64::/64", "100.64.0.1-", "a-b", "100.64.0.0/33"] {
            assert!(matches!(read(text), Err(RangeError::Text(_))), "{text}");
        }
    }
}
