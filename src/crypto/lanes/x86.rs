//! The vectors of x86-64: 16 lanes by AVX-512, 8 lanes by AVX-512 VL or AVX2.
#![allow(unsafe_code)]

use std::arch::x86_64::*;

use super::{BLOCK, Ifma, MAX_LANES, Packet, Radix44, Tags, Vector, Width, run, x25519};
#[cfg(test)]
use super::{
    Multiply, Radix26, brief,
    tests::{Case, Instance, vectors::parts},
};

/// Wraps an intrinsic without memory operands.
macro_rules! operation {
    ($name:ident($($arg:ident),*) $wrap:expr, $intrinsic:expr) => {
        #[inline(always)]
        fn $name(self $(, $arg: Self)*) -> Self {
            // SAFETY: works on registers only. The processor has the instruction: the functions at the end of this
            // file, which alone name this instance, require it.
            $wrap(unsafe { $intrinsic(self.0 $(, $arg.0)*) })
        }
    };
}

/// Wraps an intrinsic that makes a vector of one value.
macro_rules! splat {
    ($name:ident($type:ty) $wrap:expr, $intrinsic:expr) => {
        #[inline(always)]
        fn $name(value: $type) -> Self {
            // SAFETY: as for `operation`.
            $wrap(unsafe { $intrinsic(value.cast_signed()) })
        }
    };
}

/// 16 lanes of 32 or 8 of 64 bits: AVX-512 F, multiplication by IFMA.
#[derive(Clone, Copy)]
struct Zmm(__m512i);

impl Vector for Zmm {
    const LANES: usize = 16;

    splat!(splat32(u32) Self, _mm512_set1_epi32);
    splat!(splat64(u64) Self, _mm512_set1_epi64);
    operation!(add32(other) Self, _mm512_add_epi32);
    operation!(add64(other) Self, _mm512_add_epi64);
    operation!(xor(other) Self, _mm512_xor_si512);
    operation!(and(other) Self, _mm512_and_si512);
    operation!(or(other) Self, _mm512_or_si512);

    #[inline(always)]
    fn from32(lanes: &[u32; MAX_LANES]) -> Self {
        // SAFETY: reads the array's 64 bytes.
        Self(unsafe { _mm512_loadu_si512(lanes.as_ptr().cast()) })
    }

    #[inline(always)]
    fn from64(lanes: &[u64; MAX_LANES / 2]) -> Self {
        // SAFETY: reads the array's 64 bytes.
        Self(unsafe { _mm512_loadu_si512(lanes.as_ptr().cast()) })
    }

    #[inline(always)]
    fn to64(self) -> [u64; MAX_LANES / 2] {
        let mut lanes = [0; MAX_LANES / 2];
        // SAFETY: writes the array's 64 bytes.
        unsafe { _mm512_storeu_si512(lanes.as_mut_ptr().cast(), self.0) };
        lanes
    }

    #[inline(always)]
    fn rotate_left<const N: i32, const REST: i32>(self) -> Self {
        // SAFETY: as for `operation`.
        Self(unsafe { _mm512_rol_epi32::<N>(self.0) })
    }

    #[inline(always)]
    fn shift_left<const N: u32>(self) -> Self {
        // SAFETY: as for `operation`.
        Self(unsafe { _mm512_slli_epi64::<N>(self.0) })
    }

    #[inline(always)]
    fn shift_right<const N: u32>(self) -> Self {
        // SAFETY: as for `operation`.
        Self(unsafe { _mm512_srli_epi64::<N>(self.0) })
    }

    #[inline(always)]
    fn transpose(words: &[Self; 16]) -> [Self; 16] {
        // SAFETY: as for `operation`.
        unsafe {
            // A quarter of a vector holds what four words say of packets 4 i .. 4 i + 3; fours[4 k + j] those words
            // 4 k .. 4 k + 3 of packets j, 4 + j, 8 + j and 12 + j.
            let mut fours = [words[0].0; 16];
            for k in 0..4 {
                let (a, b) = (words[4 * k].0, words[4 * k + 1].0);
                let (c, d) = (words[4 * k + 2].0, words[4 * k + 3].0);
                let (ab, ab_high) = (_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
                let (cd, cd_high) = (_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
                fours[4 * k] = _mm512_unpacklo_epi64(ab, cd);
                fours[4 * k + 1] = _mm512_unpackhi_epi64(ab, cd);
                fours[4 * k + 2] = _mm512_unpacklo_epi64(ab_high, cd_high);
                fours[4 * k + 3] = _mm512_unpackhi_epi64(ab_high, cd_high);
            }
            let mut rows = *words;
            for j in 0..4 {
                let q = across(fours[j], fours[4 + j], fours[8 + j], fours[12 + j]);
                rows[j] = Self(q[0]);
                rows[4 + j] = Self(q[1]);
                rows[8 + j] = Self(q[2]);
                rows[12 + j] = Self(q[3]);
            }
            rows
        }
    }

    #[inline(always)]
    fn qwords(rows: &[Self; 16], half: usize) -> [Self; 8] {
        // SAFETY: as for `operation`.
        unsafe {
            // Even and odd qwords of packets 2 k and 2 k + 1.
            let (mut even, mut odd) = ([_mm512_setzero_si512(); 4], [_mm512_setzero_si512(); 4]);
            for k in 0..4 {
                let (a, b) = (rows[8 * half + 2 * k].0, rows[8 * half + 2 * k + 1].0);
                even[k] = _mm512_unpacklo_epi64(a, b);
                odd[k] = _mm512_unpackhi_epi64(a, b);
            }
            let even = across(even[0], even[1], even[2], even[3]);
            let odd = across(odd[0], odd[1], odd[2], odd[3]);
            [
                Self(even[0]),
                Self(odd[0]),
                Self(even[1]),
                Self(odd[1]),
                Self(even[2]),
                Self(odd[2]),
                Self(even[3]),
                Self(odd[3]),
            ]
        }
    }

    #[inline(always)]
    fn load(row: &[u8; BLOCK], _piece: usize) -> Self {
        // SAFETY: reads the array's 64 bytes.
        Self(unsafe { _mm512_loadu_si512(row.as_ptr().cast()) })
    }

    #[inline(always)]
    fn store(self, row: &mut [u8; BLOCK], _piece: usize) {
        // SAFETY: writes the array's 64 bytes.
        unsafe { _mm512_storeu_si512(row.as_mut_ptr().cast(), self.0) };
    }
}

/// Quarter `i` of each of the four in vector `i`.
#[inline(always)]
fn across(a: __m512i, b: __m512i, c: __m512i, d: __m512i) -> [__m512i; 4] {
    // SAFETY: as for `operation`.
    unsafe {
        let (ab, ab_high) = (_mm512_shuffle_i32x4::<0x44>(a, b), _mm512_shuffle_i32x4::<0xee>(a, b));
        let (cd, cd_high) = (_mm512_shuffle_i32x4::<0x44>(c, d), _mm512_shuffle_i32x4::<0xee>(c, d));
        [
            _mm512_shuffle_i32x4::<0x88>(ab, cd),
            _mm512_shuffle_i32x4::<0xdd>(ab, cd),
            _mm512_shuffle_i32x4::<0x88>(ab_high, cd_high),
            _mm512_shuffle_i32x4::<0xdd>(ab_high, cd_high),
        ]
    }
}

impl Ifma for Zmm {
    operation!(madd_low(a, b) Self, _mm512_madd52lo_epu64);
    operation!(madd_high(a, b) Self, _mm512_madd52hi_epu64);
}

/// 8 lanes of 32 or 4 of 64 bits: AVX2, or with `VL` AVX-512 VL, which rotates and has IFMA.
#[derive(Clone, Copy)]
struct Ymm<const VL: bool>(__m256i);

impl<const VL: bool> Vector for Ymm<VL> {
    const LANES: usize = 8;

    splat!(splat32(u32) Self, _mm256_set1_epi32);
    splat!(splat64(u64) Self, _mm256_set1_epi64x);
    operation!(add32(other) Self, _mm256_add_epi32);
    operation!(add64(other) Self, _mm256_add_epi64);
    operation!(xor(other) Self, _mm256_xor_si256);
    operation!(and(other) Self, _mm256_and_si256);
    operation!(or(other) Self, _mm256_or_si256);

    #[inline(always)]
    fn from32(lanes: &[u32; MAX_LANES]) -> Self {
        // SAFETY: reads the first 32 bytes of the array.
        Self(unsafe { _mm256_loadu_si256(lanes.as_ptr().cast()) })
    }

    #[inline(always)]
    fn from64(lanes: &[u64; MAX_LANES / 2]) -> Self {
        // SAFETY: reads the first 32 bytes of the array.
        Self(unsafe { _mm256_loadu_si256(lanes.as_ptr().cast()) })
    }

    #[inline(always)]
    fn to64(self) -> [u64; MAX_LANES / 2] {
        let mut lanes = [0; MAX_LANES / 2];
        // SAFETY: writes the first 32 bytes of the array.
        unsafe { _mm256_storeu_si256(lanes.as_mut_ptr().cast(), self.0) };
        lanes
    }

    #[inline(always)]
    fn rotate_left<const N: i32, const REST: i32>(self) -> Self {
        // SAFETY: as for `operation`.
        Self(unsafe {
            if VL {
                _mm256_rol_epi32::<N>(self.0)
            } else if N == 16 || N == 8 {
                // Whole bytes: a permutation within each word.
                let bytes = if N == 16 { 0x0504_0706_0100_0302 } else { 0x0605_0407_0201_0003 };
                let bytes = _mm256_setr_epi64x(
                    bytes,
                    bytes + 0x0808_0808_0808_0808,
                    bytes,
                    bytes + 0x0808_0808_0808_0808,
                );
                _mm256_shuffle_epi8(self.0, bytes)
            } else {
                _mm256_or_si256(_mm256_slli_epi32::<N>(self.0), _mm256_srli_epi32::<REST>(self.0))
            }
        })
    }

    #[inline(always)]
    fn shift_left<const N: u32>(self) -> Self {
        // SAFETY: as for `operation`.
        Self(unsafe { _mm256_sll_epi64(self.0, _mm_cvtsi32_si128(N.cast_signed())) })
    }

    #[inline(always)]
    fn shift_right<const N: u32>(self) -> Self {
        // SAFETY: as for `operation`.
        Self(unsafe { _mm256_srl_epi64(self.0, _mm_cvtsi32_si128(N.cast_signed())) })
    }

    #[inline(always)]
    fn transpose(words: &[Self; 16]) -> [Self; 16] {
        // SAFETY: as for `operation`.
        unsafe {
            let mut rows = *words;
            for half in 0..2 {
                // As in `Zmm`, with two packets' fours in a vector: j and 4 + j.
                let mut fours = [words[0].0; 8];
                for k in 0..2 {
                    let at = 8 * half + 4 * k;
                    let (a, b, c, d) = (words[at].0, words[at + 1].0, words[at + 2].0, words[at + 3].0);
                    let (ab, ab_high) = (_mm256_unpacklo_epi32(a, b), _mm256_unpackhi_epi32(a, b));
                    let (cd, cd_high) = (_mm256_unpacklo_epi32(c, d), _mm256_unpackhi_epi32(c, d));
                    fours[4 * k] = _mm256_unpacklo_epi64(ab, cd);
                    fours[4 * k + 1] = _mm256_unpackhi_epi64(ab, cd);
                    fours[4 * k + 2] = _mm256_unpacklo_epi64(ab_high, cd_high);
                    fours[4 * k + 3] = _mm256_unpackhi_epi64(ab_high, cd_high);
                }
                for j in 0..4 {
                    let (low, high) = (fours[j], fours[4 + j]);
                    rows[2 * j + half] = Self(_mm256_permute2x128_si256::<0x20>(low, high));
                    rows[2 * (4 + j) + half] = Self(_mm256_permute2x128_si256::<0x31>(low, high));
                }
            }
            rows
        }
    }

    #[inline(always)]
    fn qwords(rows: &[Self; 16], half: usize) -> [Self; 8] {
        let mut qwords = [rows[0]; 8];
        for piece in 0..2 {
            // SAFETY: as for `operation`.
            unsafe {
                let at = 8 * half + piece;
                let (a, b, c, d) = (rows[at].0, rows[at + 2].0, rows[at + 4].0, rows[at + 6].0);
                let (ab, ab_odd) = (_mm256_unpacklo_epi64(a, b), _mm256_unpackhi_epi64(a, b));
                let (cd, cd_odd) = (_mm256_unpacklo_epi64(c, d), _mm256_unpackhi_epi64(c, d));
                qwords[4 * piece] = Self(_mm256_permute2x128_si256::<0x20>(ab, cd));
                qwords[4 * piece + 1] = Self(_mm256_permute2x128_si256::<0x20>(ab_odd, cd_odd));
                qwords[4 * piece + 2] = Self(_mm256_permute2x128_si256::<0x31>(ab, cd));
                qwords[4 * piece + 3] = Self(_mm256_permute2x128_si256::<0x31>(ab_odd, cd_odd));
            }
        }
        qwords
    }

    #[inline(always)]
    fn load(row: &[u8; BLOCK], piece: usize) -> Self {
        let bytes = &row[32 * piece..32 * piece + 32];
        // SAFETY: reads the slice's 32 bytes.
        Self(unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) })
    }

    #[inline(always)]
    fn store(self, row: &mut [u8; BLOCK], piece: usize) {
        let bytes = &mut row[32 * piece..32 * piece + 32];
        // SAFETY: writes the slice's 32 bytes.
        unsafe { _mm256_storeu_si256(bytes.as_mut_ptr().cast(), self.0) };
    }
}

impl Ifma for Ymm<true> {
    operation!(madd_low(a, b) Self, _mm256_madd52lo_epu64);
    operation!(madd_high(a, b) Self, _mm256_madd52hi_epu64);
}

#[cfg(test)]
impl Multiply for Ymm<false> {
    operation!(multiply(other) Self, _mm256_mul_epu32);
}

/// The processor has what the instances with 16 and 8 lanes need, and the system keeps their registers.
pub(super) fn supported() -> bool {
    is_x86_feature_detected!("avx2")
        && is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512ifma")
}

macro_rules! instances {
    ($($features:literal, $vector:ty, $poly:ty: $seal:ident, $open:ident, $parts:ident;)*) => {$(
        #[target_feature(enable = $features)]
        fn $seal(packets: &mut [Packet<'_, '_>], tags: &mut Tags) {
            run::<$vector, $poly, true>(packets, tags);
        }

        #[target_feature(enable = $features)]
        fn $open(packets: &mut [Packet<'_, '_>], tags: &mut Tags) {
            run::<$vector, $poly, false>(packets, tags);
        }

        #[cfg(test)]
        #[target_feature(enable = $features)]
        fn $parts(cases: &mut [Case]) {
            parts::<$vector, $poly>(cases);
        }
    )*};
}

instances! {
    "avx512f,avx512ifma", Zmm, Radix44<Zmm>: seal_16, open_16, parts_16;
    "avx2,avx512f,avx512vl,avx512ifma", Ymm<true>, Radix44<Ymm<true>>: seal_8, open_8, parts_8;
}

// Slower than one packet after the other, and so only for tests, above all under valgrind, which knows no AVX-512.
#[cfg(test)]
instances! {
    "avx2", Ymm<false>, Radix26<Ymm<false>>: seal_avx2, open_avx2, parts_avx2;
}

#[target_feature(enable = "avx512f,avx512ifma")]
fn multiply_8(pairs: &[x25519::Pair<'_>], bits: [u32; 4], products: &mut x25519::Products) {
    x25519::run::<Zmm>(pairs, bits, products);
}

/// See [`super::multiply`] and [`x25519::run`].
pub(super) fn multiply(pairs: &[x25519::Pair<'_>], bits: [u32; 4], products: &mut x25519::Products) {
    if supported() {
        // SAFETY: the processor has what `supported` asks for, which is more than this enables.
        unsafe { multiply_8(pairs, bits, products) }
    }
}

/// See [`super::seal`].
pub(super) fn seal(width: Width, packets: &mut [Packet<'_, '_>], tags: &mut Tags) {
    if !supported() || packets.len() > width.lanes() {
        return;
    }
    // SAFETY: the processor has what `supported` asks for, which is all that both enable.
    unsafe {
        match width {
            Width::Eight => seal_8(packets, tags),
            Width::Sixteen => seal_16(packets, tags),
        }
    }
}

/// See [`super::open`].
pub(super) fn open(width: Width, packets: &mut [Packet<'_, '_>], tags: &mut Tags) {
    if !supported() || packets.len() > width.lanes() {
        return;
    }
    // SAFETY: as in `seal`.
    unsafe {
        match width {
            Width::Eight => open_8(packets, tags),
            Width::Sixteen => open_16(packets, tags),
        }
    }
}

/// All instances that this processor can run.
#[cfg(test)]
pub(super) fn instances() -> Vec<Instance> {
    let mut all = Vec::new();
    if is_x86_feature_detected!("avx2") {
        all.push(Instance {
            name: "avx2",
            lanes: 8,
            longest: usize::MAX,
            // SAFETY: the processor has AVX2.
            seal: |packets, tags| unsafe { seal_avx2(packets, tags) },
            // SAFETY: as above.
            open: |packets, tags| unsafe { open_avx2(packets, tags) },
            // SAFETY: as above.
            parts: Some(|cases| unsafe { parts_avx2(cases) }),
        });
        all.push(Instance {
            name: "brief",
            lanes: 1,
            longest: brief::MAX,
            seal: |packets, tags| brief_each(packets, tags, false),
            open: |packets, tags| brief_each(packets, tags, true),
            parts: None,
        });
    }
    if supported() {
        all.push(Instance {
            name: "8 lanes",
            lanes: 8,
            longest: usize::MAX,
            seal: |packets, tags| seal(Width::Eight, packets, tags),
            open: |packets, tags| open(Width::Eight, packets, tags),
            // SAFETY: the processor has what `supported` asks for.
            parts: Some(|cases| unsafe { parts_8(cases) }),
        });
        all.push(Instance {
            name: "16 lanes",
            lanes: 16,
            longest: usize::MAX,
            seal: |packets, tags| seal(Width::Sixteen, packets, tags),
            open: |packets, tags| open(Width::Sixteen, packets, tags),
            // SAFETY: as above.
            parts: Some(|cases| unsafe { parts_16(cases) }),
        });
    }
    all
}

/// One packet by `brief`.
#[cfg(test)]
fn brief_each(packets: &mut [Packet<'_, '_>], tags: &mut Tags, opens: bool) {
    for (Packet { key, counter, text }, tag) in packets.iter_mut().zip(tags) {
        *tag = brief::tag(key, *counter, text, opens);
    }
}
