//! The same cipher for one short packet, in little code (docs/decisions/0049-brief.md).
//!
//! A packet that comes after a pause finds its code in no cache, and each cache line of it costs some 70 ns. Here are
//! half as many as a library needs for its layers and its unrolled loops. ChaCha20's four blocks, the one that keys
//! Poly1305 and three for the text, are worked on at once: a row of the RFC's matrix of each block makes 128 bits of
//! a vector of 256, and two such vectors a [`Row`]. Poly1305 has limbs of 44, 44 and 42 bits, as above, in plain
//! numbers with products of 128 bits: after the carries h_0 < 2^44, h_1 < 2^44 + 2^15, h_2 < 2^42, so a sum of three
//! products is below 2^97 and what it carries, five times as much at the bottom, below 2^60.

#![allow(unsafe_code)]

use std::arch::x86_64::*;

use subtle::{Choice, ConstantTimeEq as _};
use zeroize::Zeroize as _;

use super::{BLOCK, CONSTANTS, reduce};

/// Bytes of text that a packet has at most.
pub(in crate::crypto) const MAX: usize = 3 * BLOCK;

/// A row (RFC 8439, 2.3) of blocks 0 and 1, and of blocks 2 and 3.
type Row = [__m256i; 2];

#[inline]
#[target_feature(enable = "avx2")]
fn add(a: Row, b: Row) -> Row {
    [_mm256_add_epi32(a[0], b[0]), _mm256_add_epi32(a[1], b[1])]
}

/// `(a ^ b) <<< LEFT`; `RIGHT` is `32 - LEFT`.
#[inline]
#[target_feature(enable = "avx2")]
fn mix<const LEFT: i32, const RIGHT: i32>(a: Row, b: Row) -> Row {
    [0, 1].map(|i| {
        let sum = _mm256_xor_si256(a[i], b[i]);
        _mm256_or_si256(_mm256_slli_epi32::<LEFT>(sum), _mm256_srli_epi32::<RIGHT>(sum))
    })
}

/// In the place of each word of a block's row the one that is `1`, `2` or `3` further.
const ONE_ON: i32 = 0b00_11_10_01;
const TWO_ON: i32 = 0b01_00_11_10;
const THREE_ON: i32 = 0b10_01_00_11;

#[inline]
#[target_feature(enable = "avx2")]
fn turn<const ORDER: i32>(row: Row) -> Row {
    row.map(|row| _mm256_shuffle_epi32::<ORDER>(row))
}

/// A quarter-round on each column.
#[inline]
#[target_feature(enable = "avx2")]
fn quarter_rounds([mut a, mut b, mut c, mut d]: [Row; 4]) -> [Row; 4] {
    a = add(a, b);
    d = mix::<16, 16>(d, a);
    c = add(c, d);
    b = mix::<12, 20>(b, c);
    a = add(a, b);
    d = mix::<8, 24>(d, a);
    c = add(c, d);
    b = mix::<7, 25>(b, c);
    [a, b, c, d]
}

/// Blocks 0 to 3 of the key stream.
#[inline]
#[target_feature(enable = "avx2")]
fn stream(key: &[u8; 32], counter: u64) -> [u64; 4 * BLOCK / 8] {
    let [k0, k1, k2, k3]: [i64; 4] =
        std::array::from_fn(|i| i64::from_le_bytes(std::array::from_fn(|n| key[8 * i + n])));
    let [c0, c1, c2, c3] = CONSTANTS.map(i64::from);
    let (c0, c1) = (c0 | c1 << 32, c2 | c3 << 32);
    let numbers = |first| _mm256_set_epi64x(counter as i64, first + 1, counter as i64, first);
    let start: [Row; 4] = [
        [_mm256_set_epi64x(c1, c0, c1, c0); 2],
        [_mm256_set_epi64x(k1, k0, k1, k0); 2],
        [_mm256_set_epi64x(k3, k2, k3, k2); 2],
        [numbers(0), numbers(2)],
    ];
    let mut rows = start;
    for _ in 0..10 {
        let [a, b, c, d] = quarter_rounds(rows);
        // Diagonals become columns, and columns again.
        let [a, b, c, d] = quarter_rounds([a, turn::<ONE_ON>(b), turn::<TWO_ON>(c), turn::<THREE_ON>(d)]);
        rows = [a, turn::<THREE_ON>(b), turn::<TWO_ON>(c), turn::<ONE_ON>(d)];
    }
    let mut stream = [0; 4 * BLOCK / 8];
    for (r, (row, start)) in rows.into_iter().zip(start).enumerate() {
        for (pair, sum) in add(row, start).into_iter().enumerate() {
            for (half, sum) in
                [_mm256_castsi256_si128(sum), _mm256_extracti128_si256::<1>(sum)].into_iter().enumerate()
            {
                let at = 8 * (2 * pair + half) + 2 * r;
                stream[at] = _mm_cvtsi128_si64(sum) as u64;
                stream[at + 1] = _mm_extract_epi64::<1>(sum) as u64;
            }
        }
    }
    stream
}

const MASK44: u64 = (1 << 44) - 1;
const MASK42: u64 = (1 << 42) - 1;

fn limbs(number: u128) -> [u64; 3] {
    [number as u64 & MASK44, (number >> 44) as u64 & MASK44, (number >> 88) as u64]
}

/// Poly1305 (RFC 8439, 2.5) over blocks of 16 bytes, with r and s as they come from the key stream.
pub(super) fn authenticate([r, s]: [u128; 2], blocks: &[[u8; 16]], last: u128) -> u128 {
    // What wraps nowhere is written as if it did, since a debug build would look, which is a branch on a secret.
    let [r0, r1, r2] = limbs(r & 0x0fff_fffc_0fff_fffc_0fff_fffc_0fff_ffff);
    let (r1_20, r2_20) = (r1.wrapping_mul(20), r2.wrapping_mul(20));
    let product = |a: u64, b: u64| u128::from(a).wrapping_mul(u128::from(b));
    let mut h = [0_u64; 3];
    for at in 0..=blocks.len() {
        let [m0, m1, m2] = limbs(blocks.get(at).map_or(last, |block| u128::from_le_bytes(*block)));
        let (h0, h1, h2) = (h[0].wrapping_add(m0), h[1].wrapping_add(m1), h[2].wrapping_add(m2 | 1 << 40));
        let sum = |a, b, c| product(h0, a).wrapping_add(product(h1, b)).wrapping_add(product(h2, c));
        let d0 = sum(r0, r2_20, r1_20);
        let d1 = sum(r1, r0, r2_20).wrapping_add(d0 >> 44);
        let d2 = sum(r2, r1, r0).wrapping_add(d1 >> 44);
        let bottom = (d0 as u64 & MASK44).wrapping_add(((d2 >> 42) as u64).wrapping_mul(5));
        h = [bottom & MASK44, (d1 as u64 & MASK44).wrapping_add(bottom >> 44), d2 as u64 & MASK42];
    }
    reduce([h[0], h[1], h[2], 0, 0], 44).wrapping_add(s)
}

/// Seals or opens a text of at most [`MAX`] bytes in place; yields the tag that its ciphertext has.
#[inline(never)]
#[target_feature(enable = "avx2")]
fn work(key: &[u8; 32], counter: u64, text: &mut [u8], opens: bool) -> u128 {
    let mut stream = stream(key, counter);
    let number = |low: usize| u128::from(stream[low]) | u128::from(stream[low + 1]) << 64;
    let one_time = [number(0), number(2)];
    // In whole blocks of Poly1305, so that no loop has an end of its own for the rest. It stays as long as it is.
    let mut padded = [[0; 16]; MAX / 16];
    let len = text.len().min(MAX);
    padded.as_flattened_mut()[..len].copy_from_slice(&text[..len]);
    let blocks = &mut padded[..len.div_ceil(16)];
    let lengths = (len as u128) << 64;
    let mut tag = 0;
    if opens {
        tag = authenticate(one_time, blocks, lengths);
    }
    for (at, block) in blocks.iter_mut().enumerate() {
        *block = (u128::from_le_bytes(*block) ^ number(8 + 2 * at)).to_le_bytes();
    }
    text[..len].copy_from_slice(&blocks.as_flattened()[..len]);
    if !opens {
        blocks.as_flattened_mut()[len..].fill(0);
        tag = authenticate(one_time, blocks, lengths);
    }
    stream.zeroize();
    tag
}

fn is_possible(text: &[u8]) -> bool {
    text.len() <= MAX && is_x86_feature_detected!("avx2")
}

/// Seals a text in place and yields its tag. `None`, with nothing done, if it is longer than [`MAX`] or this processor
/// has no AVX2.
pub(in crate::crypto) fn seal(key: &[u8; 32], counter: u64, text: &mut [u8]) -> Option<[u8; 16]> {
    // SAFETY: the processor has AVX2.
    is_possible(text).then(|| unsafe { work(key, counter, text, false) }.to_le_bytes())
}

/// Opens a text in place and says whether `tag` is its tag: if not, it must not be used, and is for the caller to wipe.
/// `None` as with [`seal`].
pub(in crate::crypto) fn open(
    key: &[u8; 32],
    counter: u64,
    text: &mut [u8],
    tag: &[u8; 16],
) -> Option<Choice> {
    // SAFETY: the processor has AVX2.
    is_possible(text).then(|| unsafe { work(key, counter, text, true) }.ct_eq(&u128::from_le_bytes(*tag)))
}

/// What sealing or opening says the tag is.
#[cfg(test)]
pub(super) fn tag(key: &[u8; 32], counter: u64, text: &mut [u8], opens: bool) -> [u8; 16] {
    assert!(is_possible(text));
    // SAFETY: the processor has AVX2.
    unsafe { work(key, counter, text, opens) }.to_le_bytes()
}
