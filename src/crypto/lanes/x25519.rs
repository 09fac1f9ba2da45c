//! X25519 (RFC 7748) for several pairs of scalar and point side by side: 64-bit lane `p` of every vector belongs to
//! pair `p`. Montgomery's ladder as in section 5 of the RFC, the same steps for every scalar.
//!
//! Numbers modulo 2^255 - 19 are five limbs of 51 bits. a_i * b_j has the weight 2^(51 (i + j)); its high half, from
//! bit 52 on, the weight 2^(51 (i + j + 1) + 1): twice limb i + j + 1. Limb 5 is 2^255 = 19: what would go to limb
//! 5 + k goes to limb k, 19 times.
//!
//! What IFMA multiplies must be below 2^52. [`carry`] sees to that: of limbs below 2^62 it carries less than 2^11 to
//! the next, so that they end below 2^51 + 2^16. Then
//!
//! * a sum of two is below 2^53, and a difference, to which 4 (2^255 - 19) is added first, below 2^54;
//! * of a product, a sum of five low halves is below 5 * 2^52, of high halves the same, and all of it, the high ones
//!   twice, below 2^56; with 19 times the limb five further on it is below 2^61;
//! * `a + 121665 b` is below 2^53 + 2^52 and 19 times what the highest limb carries, which is below 2^18.

use zeroize::Zeroizing;

use super::{Ifma, MAX_LANES};

/// Pairs that a call takes at most.
pub(in crate::crypto) const PAIRS: usize = MAX_LANES / 2;

/// A clamped scalar and a point.
pub(in crate::crypto) type Pair<'a> = (&'a [u8; 32], &'a [u8; 32]);

/// The products' u-coordinates, by pair; zero for a point of low order.
pub(in crate::crypto) type Products = Zeroizing<[[u8; 32]; PAIRS]>;

const LOW_51: u64 = (1 << 51) - 1;
const LOW_52: u64 = (1 << 52) - 1;

type Element<V> = [V; 5];

/// Limb by limb.
#[inline(always)]
fn each<V: Ifma>(of: impl Fn(usize) -> V) -> Element<V> {
    [of(0), of(1), of(2), of(3), of(4)]
}

#[inline(always)]
fn carry<V: Ifma>(z: Element<V>) -> Element<V> {
    let over = each(|k| z[k].shift_right::<51>());
    let low = each(|k| z[k].and(V::splat64(LOW_51)));
    [
        low[0].madd_low(over[4], V::splat64(19)),
        low[1].add64(over[0]),
        low[2].add64(over[1]),
        low[3].add64(over[2]),
        low[4].add64(over[3]),
    ]
}

#[inline(always)]
fn add<V: Ifma>(a: Element<V>, b: Element<V>) -> Element<V> {
    carry(each(|k| a[k].add64(b[k])))
}

#[inline(always)]
fn subtract<V: Ifma>(a: Element<V>, b: Element<V>) -> Element<V> {
    // 2^52 - 1 - b is b with its bits turned; the rest of 4 (2^255 - 19) is added to it.
    let rest = |k| V::splat64(if k == 0 { (1 << 52) - 75 } else { (1 << 52) - 3 });
    carry(each(|k| a[k].add64(rest(k)).add64(b[k].xor(V::splat64(LOW_52)))))
}

/// `low` and twice `high`, whose limbs are one place further on, as five limbs.
#[inline(always)]
fn fold<V: Ifma>(low: [V; 9], high: [V; 9]) -> Element<V> {
    let twice = high.map(|limb| limb.add64(limb));
    let all = |k: usize| match k {
        0 => low[0],
        9 => twice[8],
        _ => low[k].add64(twice[k - 1]),
    };
    let nineteen = |x: V| x.shift_left::<4>().add64(x.shift_left::<1>()).add64(x);
    carry(each(|k| all(k).add64(nineteen(all(k + 5)))))
}

#[inline(always)]
fn multiply<V: Ifma>(a: Element<V>, b: Element<V>) -> Element<V> {
    let (mut low, mut high) = ([V::splat64(0); 9], [V::splat64(0); 9]);
    for i in 0..5 {
        for j in 0..5 {
            low[i + j] = low[i + j].madd_low(a[i], b[j]);
            high[i + j] = high[i + j].madd_high(a[i], b[j]);
        }
    }
    fold(low, high)
}

#[inline(always)]
fn square<V: Ifma>(a: Element<V>) -> Element<V> {
    let (mut low, mut high) = ([V::splat64(0); 9], [V::splat64(0); 9]);
    for i in 0..5 {
        for j in i + 1..5 {
            low[i + j] = low[i + j].madd_low(a[i], a[j]);
            high[i + j] = high[i + j].madd_high(a[i], a[j]);
        }
    }
    for k in 0..9 {
        (low[k], high[k]) = (low[k].add64(low[k]), high[k].add64(high[k]));
    }
    for i in 0..5 {
        low[2 * i] = low[2 * i].madd_low(a[i], a[i]);
        high[2 * i] = high[2 * i].madd_high(a[i], a[i]);
    }
    fold(low, high)
}

#[inline(always)]
fn square_times<V: Ifma>(mut a: Element<V>, times: u32) -> Element<V> {
    for _ in 0..times {
        a = square(a);
    }
    a
}

/// `a + 121665 b`
#[inline(always)]
fn add_a24<V: Ifma>(a: Element<V>, b: Element<V>) -> Element<V> {
    let factor = V::splat64(121_665);
    let low = each(|k| a[k].madd_low(b[k], factor));
    let high = each(|k| V::splat64(0).madd_high(b[k], factor));
    let high = high.map(|limb| limb.add64(limb));
    carry([
        low[0].madd_low(high[4], V::splat64(19)),
        low[1].add64(high[0]),
        low[2].add64(high[1]),
        low[3].add64(high[2]),
        low[4].add64(high[3]),
    ])
}

/// Exchanges the elements in the lanes where `mask` has its low 52 bits set, which are all that a limb has.
#[inline(always)]
fn swap<V: Ifma>(mask: V, a: &mut Element<V>, b: &mut Element<V>) {
    for (a, b) in a.iter_mut().zip(b) {
        let difference = a.xor(*b).and(mask);
        (*a, *b) = (a.xor(difference), b.xor(difference));
    }
}

/// `z^(2^255 - 21)`, which is 1 / z, or 0 of 0. The names are `p_q` for the exponent 2^p - 2^q.
#[inline(always)]
fn invert<V: Ifma>(z: Element<V>) -> Element<V> {
    let z2 = square(z);
    let z9 = multiply(square_times(z2, 2), z);
    let z11 = multiply(z9, z2);
    let z5_0 = multiply(square(z11), z9);
    let z10_0 = multiply(square_times(z5_0, 5), z5_0);
    let z20_0 = multiply(square_times(z10_0, 10), z10_0);
    let z40_0 = multiply(square_times(z20_0, 20), z20_0);
    let z50_0 = multiply(square_times(z40_0, 10), z10_0);
    let z100_0 = multiply(square_times(z50_0, 50), z50_0);
    let z200_0 = multiply(square_times(z100_0, 100), z100_0);
    let z250_0 = multiply(square_times(z200_0, 50), z50_0);
    multiply(square_times(z250_0, 5), z11)
}

/// The ladder's two points, x / z each.
struct Ladder<V> {
    x2: Element<V>,
    z2: Element<V>,
    x3: Element<V>,
    z3: Element<V>,
}

impl<V: Ifma> Ladder<V> {
    #[inline(always)]
    fn swap(&mut self, mask: V) {
        swap(mask, &mut self.x2, &mut self.x3);
        swap(mask, &mut self.z2, &mut self.z3);
    }

    /// Doubles the first point and adds the other to it; `x1` is their difference. The names are the RFC's.
    #[inline(always)]
    fn step(&mut self, x1: Element<V>) {
        let (a, b) = (add(self.x2, self.z2), subtract(self.x2, self.z2));
        let (c, d) = (add(self.x3, self.z3), subtract(self.x3, self.z3));
        let (aa, bb) = (square(a), square(b));
        let (da, cb) = (multiply(d, a), multiply(c, b));
        let e = subtract(aa, bb);
        self.x3 = square(add(da, cb));
        self.z3 = multiply(x1, square(subtract(da, cb)));
        self.x2 = multiply(aa, bb);
        self.z2 = multiply(e, add_a24(aa, e));
    }
}

/// Bits of each word of a clamped scalar.
pub(super) const BITS: [u32; 4] = [64, 64, 64, 63];

/// Scalars, of which so many of the highest bits of each word are looked at, times points; what is beyond the
/// instance's lanes is left out.
#[inline(always)]
pub(super) fn run<V: Ifma>(pairs: &[Pair<'_>], bits: [u32; 4], products: &mut Products) {
    let pairs = pairs.get(..V::LANES / 2).unwrap_or(pairs);
    let (mut scalars, mut points) = (Zeroizing::new([[0; PAIRS]; 4]), [[0; PAIRS]; 5]);
    for (lane, (scalar, point)) in pairs.iter().enumerate() {
        for (words, word) in scalars.iter_mut().zip(words_of(scalar)) {
            words[lane] = word;
        }
        for (limbs, limb) in points.iter_mut().zip(limbs_of(words_of(point))) {
            limbs[lane] = limb;
        }
    }
    let constant = |value| each(|k| V::splat64(if k == 0 { value } else { 0 }));
    let x1 = each(|k| V::from64(&points[k]));
    let mut ladder = Ladder { x2: constant(1), z2: constant(0), x3: x1, z3: constant(1) };
    let mut before = V::splat64(0);
    for (n, (word, bits)) in scalars.iter().zip(bits).enumerate().rev() {
        // A clamped scalar has 255 bits.
        let mut word = if n == 3 { V::from64(word).shift_left::<1>() } else { V::from64(word) };
        for _ in 0..bits {
            let mask = V::splat64(0).madd_low(word.shift_right::<63>(), V::splat64(LOW_52));
            ladder.swap(mask.xor(before));
            ladder.step(x1);
            (before, word) = (mask, word.shift_left::<1>());
        }
    }
    ladder.swap(before);
    let found = multiply(ladder.x2, invert(ladder.z2));
    let limbs = Zeroizing::new(found.map(V::to64));
    for (lane, product) in products.iter_mut().enumerate().take(V::LANES / 2) {
        *product = bytes_of([0, 1, 2, 3, 4].map(|k: usize| limbs[k][lane]));
    }
}

fn words_of(bytes: &[u8; 32]) -> [u64; 4] {
    let mut words = [0; 4];
    for (word, bytes) in words.iter_mut().zip(bytes.as_chunks().0) {
        *word = u64::from_le_bytes(*bytes);
    }
    words
}

/// Without the highest bit, which is no part of a coordinate.
fn limbs_of([a, b, c, d]: [u64; 4]) -> [u64; 5] {
    let limbs = [a, a >> 51 | b << 13, b >> 38 | c << 26, c >> 25 | d << 39, d >> 12];
    limbs.map(|limb| limb & LOW_51)
}

/// Adds to the lowest limb and carries, with nothing left to carry but what is beyond 2^255, which is returned.
fn carry_on(limbs: &mut [u64; 5], mut over: u64) -> u64 {
    for limb in limbs {
        // Cannot wrap; a check, as in a debug build, would be a branch.
        let sum = limb.wrapping_add(over);
        (*limb, over) = (sum & LOW_51, sum >> 51);
    }
    over
}

/// Of limbs below 2^52, reduced to the one number below 2^255 - 19.
fn bytes_of(mut h: [u64; 5]) -> [u8; 32] {
    // Below 2^255 and a few, then below 2^255.
    let over = carry_on(&mut h, 0);
    let over = carry_on(&mut h, over.wrapping_mul(19));
    carry_on(&mut h, over.wrapping_mul(19));
    // With 19 more there is a bit beyond exactly if it was not reduced; what is then left without that bit is.
    let mut reduced = h;
    let mask = carry_on(&mut reduced, 19).wrapping_neg();
    let [a, b, c, d, e] = [0, 1, 2, 3, 4].map(|k: usize| h[k] ^ (h[k] ^ reduced[k]) & mask);
    let words = [a | b << 51, b >> 13 | c << 38, c >> 26 | d << 25, d >> 39 | e << 12];
    let mut bytes = [0; 32];
    for (bytes, word) in bytes.as_chunks_mut().0.iter_mut().zip(words) {
        *bytes = word.to_le_bytes();
    }
    bytes
}
