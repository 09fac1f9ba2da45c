//! ChaCha20-Poly1305 (RFC 8439) over several packets side by side: lane `p` of every vector belongs to packet `p`. (And
//! [`x25519`] over several points, with the same vectors.)
//!
//! # How it works
//!
//! ChaCha20's block is 16 words of 32 bits. Sixteen vectors hold word 0, word 1, … of one block of each packet, so
//! that a quarter-round is the same four lines as in the RFC and works on all packets at once. Keys, counters and
//! lengths are lanes too: packets need have nothing in common. After the rounds the 16 x LANES words are transposed,
//! which leaves 64 bytes of key stream for each packet in a row, and these are added to the packet's text.
//!
//! Poly1305 evaluates a polynomial in r modulo 2^130 - 5, one 16-byte block after the other: h = (h + block) * r.
//! Within a packet each step needs the one before, but packets do not need each other: lane `p` holds packet `p`'s h.
//! 64-bit lanes are half as many, so there are two accumulators, one for each half of the packets; they also hide
//! each other's latencies. A packet that has ended keeps its h by a mask.
//!
//! The numbers of 130 bits are split into limbs, so that products fit a lane:
//!
//! * with IFMA (multiply 52 x 52 bits, add the low or the high 52 bits of the product): limbs of 44, 44 and 42 bits.
//!   a_i * b_j has the weight 2^(44 (i + j)); its high half the weight 2^(44 (i + j) + 52) = 2^(44 (i + j + 1) + 8),
//!   that is 8 bits above limb i + j + 1. Limb 3 is 2^132 = 4 * 2^130 = 4 * 5 modulo the prime: what would go to limb
//!   3 + k goes to limb k, 20 times. After the carries h_0 < 2^44 + 2^15, h_1 <= 2^44 + 2^12, h_2 < 2^42; with a
//!   block (44, 44 and 41 bits) added all are below 2^46; r_i < 2^44 and 20 r_i < 2^49 fit 52 bits; a sum of three
//!   low halves and what is carried into it is below 2^55, of three high halves below 2^45, and 2^53 or 2^55 when
//!   shifted by 8 or 10.
//! * without: five limbs of 26 bits and products of 32 x 32 bits. Limb 5 is 2^130 = 5. After the carries limbs are
//!   below 2^26 + 2^13, with a block below 2^27 + 2^13; r_i < 2^26, 5 r_i < 2^29; a sum of five products is below
//!   2^59.
//!
//! The result is reduced and s added in scalar code, once per packet.
//!
//! # Secrets
//!
//! Branches and addresses depend on the number of packets, their lengths and block counters only. Whatever of keys
//! and key stream is kept in memory is in `State` and wiped when it is dropped; what the compiler spills in between
//! is not.

use subtle::{Choice, ConstantTimeEq};
use zeroize::Zeroize as _;

#[cfg(target_arch = "x86_64")]
pub(super) mod brief;
/// Not on this architecture: the library does it.
#[cfg(not(target_arch = "x86_64"))]
pub(super) mod brief {
    pub(in crate::crypto) const MAX: usize = 0;

    pub(in crate::crypto) fn seal(_: &[u8; 32], _: u64, _: &mut [u8]) -> Option<[u8; 16]> {
        None
    }

    pub(in crate::crypto) fn open(
        _: &[u8; 32],
        _: u64,
        _: &mut [u8],
        _: &[u8; 16],
    ) -> Option<subtle::Choice> {
        None
    }
}
#[cfg(test)]
mod tests;
pub(super) mod x25519;
#[cfg(target_arch = "x86_64")]
mod x86;

/// Packets that a call takes at most.
pub(super) const MAX_LANES: usize = 16;

/// One packet of a batch. Its nonce is four zero bytes and the 64-bit little-endian counter, as WireGuard has it.
pub(super) struct Packet<'k, 't> {
    /// ChaCha20's key.
    pub(super) key: &'k [u8; 32],
    /// The nonce.
    pub(super) counter: u64,
    /// What is worked on in place: plaintext to seal, ciphertext (without its tag) to open.
    pub(super) text: &'t mut [u8],
}

/// Bytes of one ChaCha20 block.
const BLOCK: usize = 64;

/// "expand 32-byte k" (RFC 8439, 2.3).
const CONSTANTS: [u32; 4] = [0x6170_7865, 0x3320_646e, 0x7962_2d32, 0x6b20_6574];

/// Vectors of 32-bit lanes, and of 64-bit lanes that are half as many.
///
/// The functions of an instance use instructions that not every processor has: a caller makes sure that it does.
trait Vector: Copy {
    /// 32-bit lanes; packets.
    const LANES: usize;
    /// Vectors that make 64 bytes.
    const PIECES: usize = 16 / Self::LANES;

    fn splat32(value: u32) -> Self;
    fn splat64(value: u64) -> Self;
    /// The first lanes of an array.
    fn from32(lanes: &[u32; MAX_LANES]) -> Self;
    fn from64(lanes: &[u64; MAX_LANES / 2]) -> Self;
    fn to64(self) -> [u64; MAX_LANES / 2];
    fn add32(self, other: Self) -> Self;
    fn add64(self, other: Self) -> Self;
    fn xor(self, other: Self) -> Self;
    fn and(self, other: Self) -> Self;
    fn or(self, other: Self) -> Self;
    fn rotate_left<const N: i32, const REST: i32>(self) -> Self;
    fn shift_left<const N: u32>(self) -> Self;
    fn shift_right<const N: u32>(self) -> Self;
    /// `self` where the bits of `mask` are set, `other` elsewhere.
    #[inline(always)]
    fn select(self, other: Self, mask: Self) -> Self {
        self.xor(other).and(mask).xor(other)
    }
    /// Word `w` of packet `p`, which is lane `p` of `words[w]`, becomes word `w` of row `p`. A row, 64 bytes, is
    /// [`PIECES`](Self::PIECES) vectors, one behind the other.
    fn transpose(words: &[Self; 16]) -> [Self; 16];
    /// Qword `q` of the rows of the first (0) or second (1) half of the packets, as lanes of element `q`.
    fn qwords(rows: &[Self; 16], half: usize) -> [Self; 8];
    /// Reads piece `piece` of a row.
    fn load(row: &[u8; BLOCK], piece: usize) -> Self;
    /// Writes piece `piece` of a row.
    fn store(self, row: &mut [u8; BLOCK], piece: usize);
}

/// Poly1305's tags, by packet.
pub(super) type Tags = [[u8; 16]; MAX_LANES];

/// How many packets an instance works on at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Width {
    /// Vectors of 256 bits.
    Eight,
    /// Vectors of 512 bits.
    Sixteen,
}

impl Width {
    /// The wider first.
    pub(super) const ALL: [Self; 2] = [Self::Sixteen, Self::Eight];

    pub(super) const fn lanes(self) -> usize {
        match self {
            Self::Eight => 8,
            Self::Sixteen => MAX_LANES,
        }
    }

    /// How many lanes must do useful work to be faster than one packet after the other in AWS-LC; measured, see
    /// docs/decisions/0032-lanes.md.
    const fn worthwhile(self) -> usize {
        match self {
            Self::Eight => 6,
            Self::Sixteen => 11,
        }
    }
}

/// Which of the next packets, given their lengths, to work on side by side, if any: a call costs as much as its
/// longest packet in all lanes, so they must be many enough and similar enough.
pub(super) fn plan(lens: &[usize]) -> Option<Width> {
    // Its text's blocks, and the one that keys Poly1305.
    let blocks = |len: usize| 1 + len.div_ceil(BLOCK);
    Width::ALL.into_iter().find(|width| {
        let lens = &lens[..lens.len().min(width.lanes())];
        let longest = lens.iter().copied().max().map_or(0, blocks);
        lens.len() >= width.worthwhile()
            && lens.iter().copied().map(blocks).sum::<usize>() >= width.worthwhile() * longest
    })
}

/// True if this processor has what [`seal`] and [`open`] need.
#[cfg(target_arch = "x86_64")]
pub(super) fn supported() -> bool {
    x86::supported()
}

/// Not on this architecture.
#[cfg(not(target_arch = "x86_64"))]
pub(super) fn supported() -> bool {
    false
}

/// Encrypts each packet's text and yields the tags. At most `width.lanes()` packets; none is touched and the tags are
/// of no use if [`supported`] is not true.
pub(super) fn seal(width: Width, packets: &mut [Packet<'_, '_>]) -> Tags {
    let mut tags = Tags::default();
    #[cfg(target_arch = "x86_64")]
    x86::seal(width, packets, &mut tags);
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (width, packets, &mut tags);
    tags
}

/// X25519 of the pairs, [`x25519::PAIRS`] at most; all zeros if [`supported`] is not true.
pub(super) fn multiply(pairs: &[x25519::Pair<'_>]) -> x25519::Products {
    let mut products = x25519::Products::default();
    #[cfg(target_arch = "x86_64")]
    x86::multiply(pairs, x25519::BITS, &mut products);
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (pairs, &mut products);
    products
}

/// Decrypts each packet's text and yields whether it was authentic with the tag given. The text of one that was not
/// must not be used, and is for the caller to wipe.
pub(super) fn open(width: Width, packets: &mut [Packet<'_, '_>], given: &Tags) -> [Choice; MAX_LANES] {
    let mut tags = Tags::default();
    #[cfg(target_arch = "x86_64")]
    x86::open(width, packets, &mut tags);
    // What was not worked on has no verdict: its tags are those of nobody.
    let worked = supported() && packets.len() <= width.lanes();
    verdicts(&tags, given, if worked { packets.len() } else { 0 })
}

/// Whether the tags of the first `count` packets are those given, in constant time; no for all others.
fn verdicts(tags: &Tags, given: &Tags, count: usize) -> [Choice; MAX_LANES] {
    let mut verdicts = [Choice::from(0); MAX_LANES];
    for (verdict, (tag, given)) in verdicts.iter_mut().zip(tags.iter().zip(given)).take(count) {
        *verdict = halves(tag).ct_eq(&halves(given));
    }
    verdicts
}

/// A tag as two numbers: subtle makes a call of each element that it compares.
fn halves(tag: &[u8; 16]) -> [u64; 2] {
    let tag = u128::from_le_bytes(*tag);
    [tag as u64, (tag >> 64) as u64]
}

/// Poly1305's accumulators of half the packets.
trait Poly<V: Vector>: Copy {
    /// From r, already clamped, as two little-endian numbers of 64 bits each.
    fn new(r: [V; 2]) -> Self;
    /// `h = (h + block) * r` with the block's two halves and bit 128 set.
    fn absorb(&mut self, block: [V; 2]);
    /// h of the lanes that the mask leaves out is that of `before`.
    fn keep(&mut self, before: &Self, mask: V);
    /// The limbs of h by lane, and how many bits each has; the last may have more.
    fn limbs(&self) -> ([[u64; MAX_LANES / 2]; 5], u32);
    fn wipe(&mut self);
}

/// Limbs of 44, 44, 42 bits, for vectors with IFMA.
#[derive(Clone, Copy)]
struct Radix44<V> {
    h: [V; 3],
    r: [V; 3],
    /// 20 r_1 and 20 r_2.
    r20: [V; 2],
}

/// IFMA: 52-bit products.
trait Ifma: Vector {
    /// `self` + the low 52 bits of a * b.
    fn madd_low(self, a: Self, b: Self) -> Self;
    /// `self` + the high 52 bits of a * b.
    fn madd_high(self, a: Self, b: Self) -> Self;
}

impl<V: Ifma> Radix44<V> {
    #[inline(always)]
    fn split([low, high]: [V; 2]) -> [V; 3] {
        let mask = V::splat64((1 << 44) - 1);
        let middle = low.shift_right::<44>().or(high.shift_left::<20>()).and(mask);
        [low.and(mask), middle, high.shift_right::<24>()]
    }
}

impl<V: Ifma> Poly<V> for Radix44<V> {
    #[inline(always)]
    fn new(r: [V; 2]) -> Self {
        let r = Self::split(r);
        let twenty = |x: V| x.shift_left::<4>().add64(x.shift_left::<2>());
        Self { h: [V::splat64(0); 3], r, r20: [twenty(r[1]), twenty(r[2])] }
    }

    #[inline(always)]
    fn absorb(&mut self, block: [V; 2]) {
        let block = Self::split(block);
        let h0 = self.h[0].add64(block[0]);
        let h1 = self.h[1].add64(block[1]);
        let h2 = self.h[2].add64(block[2].or(V::splat64(1 << 40)));
        let [r0, r1, r2] = self.r;
        let [r1_20, r2_20] = self.r20;
        let zero = V::splat64(0);
        let low = |a, b, c| zero.madd_low(h0, a).madd_low(h1, b).madd_low(h2, c);
        let high = |a, b, c| zero.madd_high(h0, a).madd_high(h1, b).madd_high(h2, c);
        let (low0, high0) = (low(r0, r2_20, r1_20), high(r0, r2_20, r1_20));
        let (low1, high1) = (low(r1, r0, r2_20), high(r1, r0, r2_20));
        let (low2, high2) = (low(r2, r1, r0), high(r2, r1, r0));
        let (mask44, mask42) = (V::splat64((1 << 44) - 1), V::splat64((1 << 42) - 1));
        let sum1 = low1.add64(high0.shift_left::<8>()).add64(low0.shift_right::<44>());
        let sum2 = low2.add64(high1.shift_left::<8>()).add64(sum1.shift_right::<44>());
        // Above 2^130: five times at the bottom. The high half of limb 2 lies 52 bits above it, that is 10 above 2^130.
        let over = high2.shift_left::<10>().add64(sum2.shift_right::<42>());
        let sum0 = low0.and(mask44).add64(over).add64(over.shift_left::<2>());
        self.h[0] = sum0.and(mask44);
        self.h[1] = sum1.and(mask44).add64(sum0.shift_right::<44>());
        self.h[2] = sum2.and(mask42);
    }

    #[inline(always)]
    fn keep(&mut self, before: &Self, mask: V) {
        for (new, old) in self.h.iter_mut().zip(before.h) {
            *new = new.select(old, mask);
        }
    }

    fn limbs(&self) -> ([[u64; MAX_LANES / 2]; 5], u32) {
        let [a, b, c] = self.h.map(V::to64);
        ([a, b, c, [0; 8], [0; 8]], 44)
    }

    fn wipe(&mut self) {
        *self = Self { h: [V::splat64(0); 3], r: [V::splat64(0); 3], r20: [V::splat64(0); 2] };
    }
}

/// Five limbs of 26 bits, for vectors with products of 32 x 32 bits.
#[cfg(test)]
#[derive(Clone, Copy)]
struct Radix26<V> {
    h: [V; 5],
    r: [V; 5],
    /// 5 r_1 to 5 r_4.
    r5: [V; 4],
}

/// 32-bit products.
#[cfg(test)]
trait Multiply: Vector {
    /// The product of the low halves of the 64-bit lanes.
    fn multiply(self, other: Self) -> Self;
}

#[cfg(test)]
impl<V: Multiply> Radix26<V> {
    #[inline(always)]
    fn split([low, high]: [V; 2]) -> [V; 5] {
        let mask = V::splat64((1 << 26) - 1);
        let middle = low.shift_right::<52>().or(high.shift_left::<12>());
        [
            low.and(mask),
            low.shift_right::<26>().and(mask),
            middle.and(mask),
            high.shift_right::<14>().and(mask),
            high.shift_right::<40>(),
        ]
    }
}

#[cfg(test)]
impl<V: Multiply> Poly<V> for Radix26<V> {
    #[inline(always)]
    fn new(r: [V; 2]) -> Self {
        let r = Self::split(r);
        let five = |x: V| x.add64(x.shift_left::<2>());
        Self { h: [V::splat64(0); 5], r, r5: [five(r[1]), five(r[2]), five(r[3]), five(r[4])] }
    }

    #[inline(always)]
    fn absorb(&mut self, block: [V; 2]) {
        let mut block = Self::split(block);
        block[4] = block[4].or(V::splat64(1 << 24));
        let mut h = self.h;
        for (h, b) in h.iter_mut().zip(block) {
            *h = h.add64(b);
        }
        let [r0, r1, r2, r3, r4] = self.r;
        let [s1, s2, s3, s4] = self.r5;
        let sum = |a: [V; 5]| {
            let t = h[0].multiply(a[0]).add64(h[1].multiply(a[1]));
            let u = h[2].multiply(a[2]).add64(h[3].multiply(a[3]));
            t.add64(u).add64(h[4].multiply(a[4]))
        };
        let d0 = sum([r0, s4, s3, s2, s1]);
        let d1 = sum([r1, r0, s4, s3, s2]);
        let d2 = sum([r2, r1, r0, s4, s3]);
        let d3 = sum([r3, r2, r1, r0, s4]);
        let d4 = sum([r4, r3, r2, r1, r0]);
        let mask = V::splat64((1 << 26) - 1);
        // Two chains of carries side by side: 0 to 1 to 2 to 3 to 4, and 3 to 4 to 0 to 1.
        let (d1, d4) = (d1.add64(d0.shift_right::<26>()), d4.add64(d3.shift_right::<26>()));
        let (d0, d3) = (d0.and(mask), d3.and(mask));
        let (d2, over) = (d2.add64(d1.shift_right::<26>()), d4.shift_right::<26>());
        let (d1, d4) = (d1.and(mask), d4.and(mask));
        let d0 = d0.add64(over).add64(over.shift_left::<2>());
        let d3 = d3.add64(d2.shift_right::<26>());
        let d1 = d1.add64(d0.shift_right::<26>());
        let d4 = d4.add64(d3.shift_right::<26>());
        self.h = [d0.and(mask), d1, d2.and(mask), d3.and(mask), d4];
    }

    #[inline(always)]
    fn keep(&mut self, before: &Self, mask: V) {
        for (new, old) in self.h.iter_mut().zip(before.h) {
            *new = new.select(old, mask);
        }
    }

    fn limbs(&self) -> ([[u64; MAX_LANES / 2]; 5], u32) {
        (self.h.map(V::to64), 26)
    }

    fn wipe(&mut self) {
        let zero = V::splat64(0);
        *self = Self { h: [zero; 5], r: [zero; 5], r5: [zero; 4] };
    }
}

/// ChaCha20's block function for one block of each packet, the initial state plus 20 rounds of it, in rows.
#[inline(always)]
fn chacha<V: Vector>(key: &[V; 8], nonce: &[V; 3], block: u32) -> [V; 16] {
    let c = CONSTANTS.map(V::splat32);
    let initial = [
        c[0],
        c[1],
        c[2],
        c[3],
        key[0],
        key[1],
        key[2],
        key[3],
        key[4],
        key[5],
        key[6],
        key[7],
        V::splat32(block),
        nonce[0],
        nonce[1],
        nonce[2],
    ];
    let mut x = initial;
    macro_rules! quarters {
        ($(($a:literal, $b:literal, $c:literal, $d:literal)),*) => {
            $(x[$a] = x[$a].add32(x[$b]); x[$d] = x[$d].xor(x[$a]).rotate_left::<16, 16>();)*
            $(x[$c] = x[$c].add32(x[$d]); x[$b] = x[$b].xor(x[$c]).rotate_left::<12, 20>();)*
            $(x[$a] = x[$a].add32(x[$b]); x[$d] = x[$d].xor(x[$a]).rotate_left::<8, 24>();)*
            $(x[$c] = x[$c].add32(x[$d]); x[$b] = x[$b].xor(x[$c]).rotate_left::<7, 25>();)*
        };
    }
    for _ in 0..10 {
        quarters!((0, 4, 8, 12), (1, 5, 9, 13), (2, 6, 10, 14), (3, 7, 11, 15));
        quarters!((0, 5, 10, 15), (1, 6, 11, 12), (2, 7, 8, 13), (3, 4, 9, 14));
    }
    for (x, initial) in x.iter_mut().zip(initial) {
        *x = x.add32(initial);
    }
    V::transpose(&x)
}

/// What is secret and lies in memory.
struct State<V: Vector, P: Poly<V>> {
    key: [V; 8],
    nonce: [V; 3],
    poly: [P; 2],
    s: Tags,
}

impl<V: Vector, P: Poly<V>> Drop for State<V, P> {
    #[inline(always)]
    fn drop(&mut self) {
        self.s.zeroize();
        self.key = [V::splat32(0); 8];
        self.poly.iter_mut().for_each(P::wipe);
        std::hint::black_box(&mut self.key);
        std::hint::black_box(&mut self.poly);
    }
}

impl<V: Vector, P: Poly<V>> State<V, P> {
    /// Block 0 of each packet's key stream is its Poly1305 key (RFC 8439, 2.6).
    #[inline(always)]
    fn new(packets: &[Packet<'_, '_>]) -> Self {
        let mut words = [[0_u32; MAX_LANES]; 10];
        for (lane, packet) in packets.iter().enumerate().take(V::LANES) {
            for (word, bytes) in packet.key.chunks_exact(4).enumerate() {
                words[word][lane] = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
            }
            words[8][lane] = packet.counter as u32;
            words[9][lane] = (packet.counter >> 32) as u32;
        }
        let key = std::array::from_fn(|word| V::from32(&words[word]));
        let nonce = [V::splat32(0), V::from32(&words[8]), V::from32(&words[9])];
        words.zeroize();
        let rows = chacha(&key, &nonce, 0);
        let mut s = Tags::default();
        for (row, s) in rows.chunks_exact(V::PIECES).zip(&mut s) {
            let mut bytes = [0; BLOCK];
            for (piece, vector) in row.iter().enumerate() {
                vector.store(&mut bytes, piece);
            }
            s.copy_from_slice(&bytes[16..32]);
            bytes.zeroize();
        }
        let clamp = [V::splat64(0x0fff_fffc_0fff_ffff), V::splat64(0x0fff_fffc_0fff_fffc)];
        let (a, b) = (V::qwords(&rows, 0), V::qwords(&rows, 1));
        let poly = [
            P::new([a[0].and(clamp[0]), a[1].and(clamp[1])]),
            P::new([b[0].and(clamp[0]), b[1].and(clamp[1])]),
        ];
        Self { key, nonce, poly, s }
    }

    /// The text's block `block` (from 1), of which each packet has all 64 bytes. Lanes without a packet compute
    /// something that nobody asks for.
    #[inline(always)]
    fn whole_block<const SEAL: bool>(&mut self, packets: &mut [Packet<'_, '_>], block: u32) {
        let mut rows = chacha(&self.key, &self.nonce, block);
        let offset = (block as usize - 1) * BLOCK;
        for p in 0..V::LANES {
            let text = packets.get_mut(p).and_then(|packet| packet.text.get_mut(offset..));
            if let Some(text) = text.and_then(<[u8]>::first_chunk_mut) {
                for piece in 0..V::PIECES {
                    let row = &mut rows[p * V::PIECES + piece];
                    let old = V::load(text, piece);
                    let new = old.xor(*row);
                    new.store(text, piece);
                    *row = if SEAL { new } else { old };
                }
            }
        }
        for half in 0..2 {
            let q = V::qwords(&rows, half);
            let poly = &mut self.poly[half];
            poly.absorb([q[0], q[1]]);
            poly.absorb([q[2], q[3]]);
            poly.absorb([q[4], q[5]]);
            poly.absorb([q[6], q[7]]);
        }
    }

    /// As above, where packets have between none and all of its bytes.
    #[inline(always)]
    fn partial_block<const SEAL: bool>(&mut self, packets: &mut [Packet<'_, '_>], block: u32) {
        let mut rows = chacha(&self.key, &self.nonce, block);
        let offset = (block as usize - 1) * BLOCK;
        // 16-byte blocks of each lane.
        let mut sixteenths = [0_u8; MAX_LANES];
        for ((packet, row), sixteenths) in
            packets.iter_mut().zip(rows.chunks_exact_mut(V::PIECES)).zip(&mut sixteenths)
        {
            let text = packet.text.get_mut(offset..).unwrap_or_default();
            let len = text.len().min(BLOCK);
            let text = &mut text[..len];
            *sixteenths = len.div_ceil(16) as u8;
            let (mut bytes, mut stream) = ([0; BLOCK], [0; BLOCK]);
            bytes[..len].copy_from_slice(text);
            for (piece, vector) in row.iter_mut().enumerate() {
                vector.store(&mut stream, piece);
                *vector = V::load(&bytes, piece);
            }
            for (byte, key) in bytes[..len].iter_mut().zip(&stream) {
                *byte ^= key;
            }
            text.copy_from_slice(&bytes[..len]);
            if SEAL {
                for (piece, vector) in row.iter_mut().enumerate() {
                    *vector = V::load(&bytes, piece);
                }
            }
            bytes.zeroize();
            stream.zeroize();
        }
        for half in 0..2 {
            let q = V::qwords(&rows, half);
            let ends = &sixteenths[half * V::LANES / 2..];
            for (at, pair) in (0..).zip([[q[0], q[1]], [q[2], q[3]], [q[4], q[5]], [q[6], q[7]]]) {
                let mut mask = [0; MAX_LANES / 2];
                for (mask, &end) in mask.iter_mut().zip(ends) {
                    *mask = if at < end { u64::MAX } else { 0 };
                }
                let before = self.poly[half];
                self.poly[half].absorb(pair);
                self.poly[half].keep(&before, V::from64(&mask));
            }
        }
    }

    /// Absorbs the lengths and yields the tags.
    #[inline(always)]
    fn finish(&mut self, packets: &[Packet<'_, '_>], tags: &mut Tags) {
        for half in 0..2 {
            let first = half * V::LANES / 2;
            let mut lengths = [0; MAX_LANES / 2];
            for (length, packet) in lengths.iter_mut().zip(packets.iter().skip(first)).take(V::LANES / 2) {
                *length = packet.text.len() as u64;
            }
            let poly = &mut self.poly[half];
            poly.absorb([V::splat64(0), V::from64(&lengths)]);
            let (mut limbs, bits) = poly.limbs();
            for lane in 0..V::LANES / 2 {
                let h = limbs.map(|limb| limb[lane]);
                let s = u128::from_le_bytes(self.s[first + lane]);
                tags[first + lane] = reduce(h, bits).wrapping_add(s).to_le_bytes();
            }
            limbs.zeroize();
        }
    }
}

/// Limbs to the number modulo 2^130 - 5, of which the low 128 bits are wanted.
#[inline(always)]
fn reduce(limbs: [u64; 5], bits: u32) -> u128 {
    // Nothing overflows, and "wrapping" keeps a debug build from looking, which would be a branch on a secret.
    // The sum of all limbs as low 128 bits and what lies above them.
    let (mut low, mut high) = (0_u128, 0_u64);
    for (limb, shift) in limbs.into_iter().zip((0..).map(|n| n * bits)).take_while(|&(_, shift)| shift < 128)
    {
        let limb = u128::from(limb);
        let (sum, carry) = low.overflowing_add(limb << shift);
        low = sum;
        let above = if shift > 64 { (limb >> (128 - shift)) as u64 } else { 0 };
        high = high.wrapping_add(above).wrapping_add(u64::from(carry));
    }
    // Modulo 2^130 - 5: what lies above bit 130 counts five times at the bottom.
    let (sum, carry) = low.overflowing_add(u128::from((high >> 2).wrapping_mul(5)));
    let high = (high & 3).wrapping_add(u64::from(carry));
    // Now below 2 (2^130 - 5): subtract the prime if that does not go below zero, that is if adding 5 reaches 2^130.
    let (reduced, carry) = sum.overflowing_add(5);
    let mask = 0_u128.wrapping_sub(u128::from(high.wrapping_add(u64::from(carry)) >> 2));
    (reduced & mask) | (sum & !mask)
}

/// At most `V::LANES` packets.
#[inline(always)]
fn run<V: Vector, P: Poly<V>, const SEAL: bool>(packets: &mut [Packet<'_, '_>], tags: &mut Tags) {
    let mut state = State::<V, P>::new(packets);
    let lens = || packets.iter().map(|packet| packet.text.len());
    let whole = (lens().min().unwrap_or(0) / BLOCK) as u32;
    let all = lens().max().unwrap_or(0).div_ceil(BLOCK) as u32;
    for block in 1..=whole {
        state.whole_block::<SEAL>(packets, block);
    }
    for block in whole + 1..=all {
        state.partial_block::<SEAL>(packets, block);
    }
    state.finish(packets, tags);
}
