//! Every instance against AWS-LC; numbers at their extremes; texts that end at the end of a page.
#![allow(unsafe_code)]

use aws_lc_rs::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};

use super::*;

mod points;
mod poisoned;
mod stepped;
pub(super) mod vectors;

pub(super) use vectors::Case;

/// What an instance does.
type Work = fn(&mut [Packet<'_, '_>], &mut Tags);

/// One of vectors and limbs.
pub(super) struct Instance {
    pub(super) name: &'static str,
    /// Packets that it takes at most.
    pub(super) lanes: usize,
    /// Bytes that a text has at most.
    pub(super) longest: usize,
    pub(super) seal: Work,
    pub(super) open: Work,
    /// Its ChaCha20 and its Poly1305 put together once more, for any nonce and associated data.
    pub(super) parts: Option<fn(&mut [Case])>,
}

/// Of any vectors that need no feature of the processor.
fn instance<V: Vector, P: Poly<V>>(name: &'static str) -> Instance {
    Instance {
        name,
        lanes: V::LANES,
        longest: usize::MAX,
        seal: run::<V, P, true>,
        open: run::<V, P, false>,
        parts: Some(vectors::parts::<V, P>),
    }
}

fn instances() -> Vec<Instance> {
    let mut all = vec![
        instance::<Portable, Radix44<Portable>>("portable"),
        instance::<Portable, Radix26<Portable>>("portable, 26 bits"),
    ];
    #[cfg(target_arch = "x86_64")]
    all.extend(x86::instances());
    all
}

/// Four lanes of plain numbers: the algorithm as it stands, on any processor. `CHECKED`: what the bounds at the top of
/// the module say is asserted on the way.
#[derive(Clone, Copy)]
struct Plain<const CHECKED: bool>([u64; 2]);

type Portable = Plain<true>;

impl<const CHECKED: bool> Plain<CHECKED> {
    fn each(self, other: Self, of: impl Fn(u64, u64) -> u64) -> Self {
        Self([of(self.0[0], other.0[0]), of(self.0[1], other.0[1])])
    }

    fn words(self) -> [u32; 4] {
        [self.0[0] as u32, (self.0[0] >> 32) as u32, self.0[1] as u32, (self.0[1] >> 32) as u32]
    }

    fn of_words(w: [u32; 4]) -> Self {
        Self([u64::from(w[0]) | u64::from(w[1]) << 32, u64::from(w[2]) | u64::from(w[3]) << 32])
    }
}

impl<const CHECKED: bool> Vector for Plain<CHECKED> {
    const LANES: usize = 4;

    fn splat32(value: u32) -> Self {
        Self::of_words([value; 4])
    }
    fn splat64(value: u64) -> Self {
        Self([value; 2])
    }
    fn from32(lanes: &[u32; MAX_LANES]) -> Self {
        Self::of_words([lanes[0], lanes[1], lanes[2], lanes[3]])
    }
    fn from64(lanes: &[u64; MAX_LANES / 2]) -> Self {
        Self([lanes[0], lanes[1]])
    }
    fn to64(self) -> [u64; MAX_LANES / 2] {
        [self.0[0], self.0[1], 0, 0, 0, 0, 0, 0]
    }
    fn add32(self, other: Self) -> Self {
        let (a, b) = (self.words(), other.words());
        Self::of_words(std::array::from_fn(|i| a[i].wrapping_add(b[i])))
    }
    fn add64(self, other: Self) -> Self {
        self.each(other, |a, b| {
            if CHECKED { a.checked_add(b).expect("a sum of limbs fits 64 bits") } else { a.wrapping_add(b) }
        })
    }
    fn xor(self, other: Self) -> Self {
        self.each(other, |a, b| a ^ b)
    }
    fn and(self, other: Self) -> Self {
        self.each(other, |a, b| a & b)
    }
    fn or(self, other: Self) -> Self {
        self.each(other, |a, b| a | b)
    }
    fn rotate_left<const N: i32, const REST: i32>(self) -> Self {
        assert_eq!(N + REST, 32);
        Self::of_words(self.words().map(|word| word.rotate_left(N.cast_unsigned())))
    }
    fn shift_left<const N: u32>(self) -> Self {
        Self(self.0.map(|lane| lane << N))
    }
    fn shift_right<const N: u32>(self) -> Self {
        Self(self.0.map(|lane| lane >> N))
    }
    fn transpose(words: &[Self; 16]) -> [Self; 16] {
        std::array::from_fn(|at| {
            let (packet, first) = (at / 4, at % 4 * 4);
            Self::of_words(std::array::from_fn(|n| words[first + n].words()[packet]))
        })
    }
    fn qwords(rows: &[Self; 16], half: usize) -> [Self; 8] {
        let of = |packet: usize, q: usize| rows[4 * packet + q / 2].0[q % 2];
        std::array::from_fn(|q| Self([of(2 * half, q), of(2 * half + 1, q)]))
    }
    fn load(row: &[u8; BLOCK], piece: usize) -> Self {
        Self([0, 8].map(|at| u64::from_le_bytes(*row[16 * piece + at..].first_chunk().unwrap())))
    }
    fn store(self, row: &mut [u8; BLOCK], piece: usize) {
        for (bytes, lane) in row[16 * piece..].chunks_exact_mut(8).zip(self.0) {
            bytes.copy_from_slice(&lane.to_le_bytes());
        }
    }
}

const LOW_52: u64 = (1 << 52) - 1;

impl<const CHECKED: bool> Ifma for Plain<CHECKED> {
    fn madd_low(self, a: Self, b: Self) -> Self {
        let fit = |a: Self| !CHECKED || a.0.iter().all(|&factor| factor <= LOW_52);
        assert!(fit(a) && fit(b), "a factor fits 52 bits");
        let product = a.each(b, |a, b| (u128::from(a) * u128::from(b)) as u64 & LOW_52);
        self.add64(product)
    }
    fn madd_high(self, a: Self, b: Self) -> Self {
        let fit = |a: Self| !CHECKED || a.0.iter().all(|&factor| factor <= LOW_52);
        assert!(fit(a) && fit(b), "a factor fits 52 bits");
        self.add64(a.each(b, |a, b| ((u128::from(a) * u128::from(b)) >> 52) as u64))
    }
}

impl<const CHECKED: bool> Multiply for Plain<CHECKED> {
    fn multiply(self, other: Self) -> Self {
        let fit = |a: Self| !CHECKED || a.0.iter().all(|&factor| factor <= u64::from(u32::MAX));
        assert!(fit(self) && fit(other), "a factor fits 32 bits");
        self.each(other, u64::wrapping_mul)
    }
}

/// Numbers that look random, the same in every run.
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.next() as u8).collect()
    }

    fn key(&mut self) -> [u8; 32] {
        std::array::from_fn(|_| self.next() as u8)
    }
}

fn by_library(key: &[u8; 32], counter: u64, text: &[u8]) -> (Vec<u8>, [u8; 16]) {
    let mut nonce = [0; 12];
    nonce[4..].copy_from_slice(&counter.to_le_bytes());
    let key = LessSafeKey::new(UnboundKey::new(&CHACHA20_POLY1305, key).unwrap());
    let mut text = text.to_vec();
    let nonce = Nonce::assume_unique_for_key(nonce);
    let tag = key.seal_in_place_separate_tag(nonce, Aad::empty(), &mut text).unwrap();
    (text, tag.as_ref().try_into().unwrap())
}

/// Seals and opens the texts by an instance, each with a key and counter of its own, and asks AWS-LC about each.
fn agrees(instance: &Instance, noise: &mut Noise, texts: &[Vec<u8>]) {
    let Instance { name, seal, open, .. } = instance;
    let keys: Vec<_> = texts.iter().map(|_| noise.key()).collect();
    let counters: Vec<_> = texts.iter().map(|_| noise.next()).collect();
    let mut worked = texts.to_vec();
    let call = |work: Work, worked: &mut [Vec<u8>]| {
        let mut packets: Vec<_> = worked
            .iter_mut()
            .zip(&keys)
            .zip(&counters)
            .map(|((text, key), &counter)| Packet { key, counter, text })
            .collect();
        let mut tags = Tags::default();
        work(&mut packets, &mut tags);
        tags
    };
    let tags = call(*seal, &mut worked);
    let lens: Vec<_> = texts.iter().map(Vec::len).collect();
    for (lane, text) in texts.iter().enumerate() {
        let (sealed, tag) = by_library(&keys[lane], counters[lane], text);
        assert!(sealed == worked[lane], "{name}: text of lane {lane} of lengths {lens:?}");
        assert_eq!(tag, tags[lane], "{name}: tag of lane {lane} of lengths {lens:?}");
    }
    assert_eq!(call(*open, &mut worked), tags, "{name}: tags when opening, lengths {lens:?}");
    assert!(worked == texts, "{name}: opened, lengths {lens:?}");
}

/// Every length up to 2,000 in a lane that changes, beside others of any length.
#[test]
fn every_length_in_any_company() {
    let mut noise = Noise(1);
    for instance in &instances() {
        let portable = instance.name.starts_with("portable");
        for len in (0..=instance.longest.min(2000)).step_by(if portable { 7 } else { 1 }) {
            let count = 1 + len % instance.lanes;
            let lane = len / instance.lanes % count;
            let texts: Vec<_> = (0..count)
                .map(|at| match (at == lane, noise.next() % 2) {
                    (true, _) => len,
                    (false, 0) => len.saturating_sub(noise.next() as usize % 70),
                    (false, _) => noise.next() as usize % 200,
                })
                .collect();
            let texts: Vec<_> = texts.into_iter().map(|len| noise.bytes(len)).collect();
            agrees(instance, &mut noise, &texts);
        }
    }
}

/// Runs as traffic has them: all lanes, one length, perhaps the last one shorter.
#[test]
fn full_runs() {
    let mut noise = Noise(2);
    for instance in &instances() {
        let step = if instance.name.starts_with("portable") { 97 } else { 13 };
        for len in (0..=instance.longest.min(1500)).step_by(step) {
            let mut texts: Vec<_> = (0..instance.lanes).map(|_| noise.bytes(len)).collect();
            agrees(instance, &mut noise, &texts);
            texts[instance.lanes - 1].truncate(len / 3);
            agrees(instance, &mut noise, &texts);
        }
    }
}

/// Poly1305 in a lane of an accumulator, against numbers of any size: the sum over the blocks, modulo 2^130 - 5.
fn poly<P: Poly<Portable>>(r: u128, blocks: &[u128]) -> u128 {
    let halves = |x: u128| [Portable::splat64(x as u64), Portable::splat64((x >> 64) as u64)];
    let mut state = P::new(halves(r));
    for &block in blocks {
        state.absorb(halves(block));
    }
    let (limbs, bits) = state.limbs();
    reduce(limbs.map(|limb| limb[1]), bits)
}

/// Poly1305 of `brief`, s included.
fn brief_poly(key: [u128; 2], blocks: &[u128]) -> u128 {
    let (last, blocks) = blocks.split_last().unwrap();
    let blocks: Vec<_> = blocks.iter().map(|block| block.to_le_bytes()).collect();
    brief::authenticate(key, &blocks, *last)
}

/// 256-bit numbers as low and high half, for the few products that are needed.
fn product_modulo(h: (u128, u8), r: u128) -> (u128, u8) {
    // Bit by bit: h = 2 h + bit * h0 modulo 2^130 - 5; slow and obviously right.
    let add = |a: (u128, u8), b: (u128, u8)| {
        let (low, carry) = a.0.overflowing_add(b.0);
        let high = a.1 + b.1 + u8::from(carry);
        // Below twice the prime: once 2^130 taken off is 5 added.
        let (low, again) = low.overflowing_add(u128::from(high >> 2) * 5);
        (low, (high & 3) + u8::from(again))
    };
    (0..128).rev().fold((0, 0), |sum, bit| {
        let twice = add(sum, sum);
        if r >> bit & 1 == 1 { add(twice, h) } else { twice }
    })
}

fn poly_by_hand(r: u128, blocks: &[u128]) -> u128 {
    let (low, high) = blocks.iter().fold((0, 0), |h: (u128, u8), &block| {
        let (low, carry) = h.0.overflowing_add(block);
        product_modulo((low, h.1 + 1 + u8::from(carry)), r)
    });
    // Fully reduced: 2^130 - 5 itself and above become small.
    let (plus, carry) = low.overflowing_add(5);
    if high + u8::from(carry) >= 4 { plus } else { low }
}

/// Limbs at their extremes: all blocks ones or zeros, the largest and the smallest r, and sums at the prime itself.
#[test]
fn limbs_at_their_extremes() {
    let clamp = 0x0fff_fffc_0fff_fffc_0fff_fffc_0fff_ffff_u128;
    let mut noise = Noise(3);
    let rs = [clamp, 0, 1, 2, 4 << 64, clamp & !0xffff_ffff, clamp >> 4 & clamp, 0x0fff_fffc << 96];
    let words = [u128::MAX, 0, u128::MAX - 4, u128::MAX - 5, 5, 1, 1 << 127, u128::MAX >> 1, u128::MAX << 64];
    for r in rs {
        for a in words {
            for b in words {
                for len in [1, 2, 3, 50] {
                    let blocks: Vec<_> = [a, b].into_iter().cycle().take(len).collect();
                    let right = poly_by_hand(r, &blocks);
                    assert_eq!(poly::<Radix44<Portable>>(r, &blocks), right, "{r:x} {a:x} {b:x} {len}");
                    assert_eq!(poly::<Radix26<Portable>>(r, &blocks), right, "{r:x} {a:x} {b:x} {len}");
                    assert_eq!(brief_poly([r, 0], &blocks), right, "{r:x} {a:x} {b:x} {len}");
                }
            }
        }
        let blocks: Vec<_> =
            (0..64).map(|_| u128::from(noise.next()) << 64 | u128::from(noise.next())).collect();
        assert_eq!(poly::<Radix44<Portable>>(r, &blocks), poly_by_hand(r, &blocks));
        assert_eq!(brief_poly([r, 0], &blocks), poly_by_hand(r, &blocks));
    }
}

/// The final reduction, where h stands just below, at and above the prime and above 2^130.
#[test]
fn reduction_at_the_prime() {
    let limbs = |low: u64, top: u64| [low, (1 << 44) - 1, top, 0, 0];
    // 2^130 - 5 = limbs 2^44 - 5, 2^44 - 1, 2^42 - 1.
    let (ones, top) = ((1_u64 << 44) - 1, (1_u64 << 42) - 1);
    assert_eq!(reduce(limbs(ones - 5, top), 44), u128::MAX - 5, "the prime less 1, its low 128 bits");
    assert_eq!(reduce(limbs(ones - 4, top), 44), 0, "the prime");
    assert_eq!(reduce(limbs(ones - 3, top), 44), 1);
    assert_eq!(reduce(limbs(ones, top), 44), 4, "2^130 - 1");
    assert_eq!(reduce([0, 0, top + 1, 0, 0], 44), 5, "2^130");
    assert_eq!(reduce([ones, ones + (1 << 12), top, 0, 0], 44), (((1_u128 << 12) << 44) - 1) + 5);
}

/// Bytes whose neighbour on the right is a page that nobody may touch.
struct Guarded {
    base: *mut u8,
    len: usize,
}

impl Guarded {
    const PAGE: usize = 4096;

    fn new(len: usize) -> Self {
        assert!(len <= Self::PAGE);
        // SAFETY: a fresh mapping of two pages, the second of which is closed.
        let base = unsafe {
            let (access, kind) =
                (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
            let base = libc::mmap(std::ptr::null_mut(), 2 * Self::PAGE, access, kind, -1, 0);
            assert_ne!(base, libc::MAP_FAILED);
            assert_eq!(libc::mprotect(base.byte_add(Self::PAGE), Self::PAGE, libc::PROT_NONE), 0);
            base.cast()
        };
        Self { base, len }
    }

    fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: the last `len` bytes of the first page, which is ours alone until the drop.
        unsafe { std::slice::from_raw_parts_mut(self.base.add(Self::PAGE - self.len), self.len) }
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        // SAFETY: the mapping of `new`.
        unsafe { libc::munmap(self.base.cast(), 2 * Self::PAGE) };
    }
}

/// Texts that end where the next page may not be touched.
#[test]
fn nothing_beyond_a_text_is_touched() {
    let mut noise = Noise(4);
    for instance in &instances() {
        let lens = [1, 15, 16, 17, 63, 64, 65, 100, 192, 1419];
        for len in lens.into_iter().filter(|len| *len <= instance.longest) {
            let mut pages: Vec<_> = (0..instance.lanes).map(|_| Guarded::new(len)).collect();
            let texts: Vec<_> = pages.iter().map(|_| noise.bytes(len)).collect();
            let key = noise.key();
            let mut packets: Vec<_> = pages
                .iter_mut()
                .zip(&texts)
                .map(|(page, text)| {
                    page.bytes().copy_from_slice(text);
                    Packet { key: &key, counter: 7, text: page.bytes() }
                })
                .collect();
            let mut tags = Tags::default();
            (instance.seal)(&mut packets, &mut tags);
            for ((packet, text), tag) in packets.iter().zip(&texts).zip(tags) {
                assert_eq!((packet.text.to_vec(), tag), by_library(&key, 7, text), "{}", instance.name);
            }
        }
    }
}

#[test]
fn short_and_mixed_runs_are_not_worth_it() {
    assert_eq!(plan(&[1420; 16]), Some(Width::Sixteen));
    assert_eq!(plan(&[1420; 44]), Some(Width::Sixteen));
    assert_eq!(plan(&[1420; 11]), Some(Width::Sixteen));
    assert_eq!(plan(&[1420; 10]), Some(Width::Eight));
    assert_eq!(plan(&[1420; 6]), Some(Width::Eight));
    assert_eq!(plan(&[1420; 5]), None);
    assert_eq!(plan(&[]), None);
    let mut mixed = [64; 16];
    mixed[3] = 1420;
    assert_eq!(plan(&mixed), None, "all lanes would work for one long packet");
    assert_eq!(plan(&mixed[4..]), Some(Width::Sixteen));
}

/// A verdict belongs to its lane.
#[test]
fn a_wrong_tag_is_its_own_lanes_matter() {
    if !supported() {
        return;
    }
    for width in Width::ALL {
        for wrong in 0..width.lanes() {
            let mut texts = vec![[5; 100]; width.lanes()];
            let call = |texts: &mut Vec<[u8; 100]>, work: &mut dyn FnMut(&mut [Packet<'_, '_>])| {
                let mut packets: Vec<_> = (0..)
                    .zip(texts.iter_mut())
                    .map(|(counter, text)| Packet { key: &[1; 32], counter, text: &mut text[..] })
                    .collect();
                work(&mut packets);
            };
            let mut tags = Tags::default();
            call(&mut texts, &mut |packets| tags = seal(width, packets));
            tags[wrong][wrong] ^= 0x80;
            call(&mut texts, &mut |packets| {
                let verdicts = open(width, packets, &tags);
                for (lane, verdict) in verdicts.into_iter().enumerate() {
                    assert_eq!(bool::from(verdict), lane != wrong && lane < width.lanes(), "lane {lane}");
                }
            });
        }
    }
}
