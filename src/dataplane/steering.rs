//! TUN → worker: which queue the kernel puts a packet into.
//!
//! An eBPF program on the device reads the destination address. A longest-prefix map holds only prefixes whose
//! owner is not what a hash of the address says: nothing for a gateway of leases, 0.0.0.0/0 for a client, a site's
//! subnets for a site. What the map does not know goes to [`queue_of`]. The program is generated from the same
//! constants, and
//! [`Steering::self_test`] has the kernel run it and compares.
//!
//! Without permission for BPF there is no steering: the kernel then learns queues from our writes, and what lands
//! on the wrong worker is handed over.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsFd;

use crate::sys::bpf::{Insn, LoadError, PrefixMap, Program};
use crate::sys::tun;
use crate::types::{Prefix, WorkerId};

/// Most prefixes in the map, per address family.
pub const MAX_PREFIXES: u32 = 130_000;

/// 2^32 divided by the golden ratio: its multiples spread any run of numbers evenly over the 32-bit circle (Knuth,
/// The Art of Computer Programming, volume 3, section 6.4).
const GOLDEN: u32 = 0x9E37_79B1;

/// The worker whom an address belongs to if no prefix says otherwise: its low 32 bits, spread over the circle, which
/// the workers share in equal arcs. Neighbours go to different workers, and any run of addresses spreads evenly. A
/// dual-stack lease carries its IPv4 address in the low word of its IPv6 address: one owner for both.
#[must_use]
pub fn queue_of(addr: IpAddr, workers: u16) -> u16 {
    let low = match addr {
        IpAddr::V4(v4) => v4.to_bits(),
        IpAddr::V6(v6) => v6.to_bits() as u32,
    };
    // Less than `workers`, since the first factor is less than 2^32.
    ((u64::from(low.wrapping_mul(GOLDEN)) * u64::from(workers)) >> 32) as u16
}

/// Why packets are not steered; the text is the reason to show.
#[derive(Debug, thiserror::Error)]
pub enum SteeringError {
    /// EPERM.
    #[error("not permitted: CAP_BPF and CAP_NET_ADMIN (or CAP_SYS_ADMIN) are needed for eBPF")]
    NotPermitted,
    /// The kernel has no such maps, or no memory.
    #[error("cannot make the prefix maps: {0}")]
    Map(io::Error),
    /// The verifier's answer.
    #[error("the kernel refused the program: {0}")]
    Program(LoadError),
    /// The device did not take the program.
    #[error("cannot attach the program to the device: {0}")]
    Attach(io::Error),
    /// The self-test could not run.
    #[error("the self-test could not run: {0}")]
    SelfTest(io::Error),
    /// The program does not do what the function says: not to be used.
    #[error("the self-test failed: a packet to {addr} would go to queue {found}, not {expected}")]
    Mismatch {
        /// The destination.
        addr: IpAddr,
        /// What the program said.
        found: u32,
        /// What [`queue_of`] or the map's prefix says.
        expected: u16,
    },
    /// A worker that does not exist.
    #[error("there is no worker {0}")]
    NoWorker(u16),
}

/// Who owns a prefix, and whether the kernel's map has it.
#[derive(Clone, Copy, Debug)]
struct Entry {
    owner: WorkerId,
    in_map: bool,
}

/// The maps, the program, and what was asked of them. Owned by one thread; costs the packet path nothing.
#[derive(Debug)]
pub struct Steering {
    workers: u16,
    v4: PrefixMap,
    v6: PrefixMap,
    program: Program,
    entries: BTreeMap<Prefix, Entry>,
}

impl Steering {
    /// Makes maps and program for this number of workers (queues).
    ///
    /// # Errors
    /// [`SteeringError`]; go on without steering, and show the reason.
    pub fn new(workers: u16) -> Result<Self, SteeringError> {
        if workers == 0 {
            return Err(SteeringError::NoWorker(0));
        }
        let map = |v6| PrefixMap::new(v6, MAX_PREFIXES).map_err(|e| permission(e, SteeringError::Map));
        let (v4, v6) = (map(false)?, map(true)?);
        let program = Program::socket_filter(&program(&v4, &v6, workers)).map_err(|error| {
            match error.source.raw_os_error() {
                Some(libc::EPERM) => SteeringError::NotPermitted,
                _ => SteeringError::Program(error),
            }
        })?;
        Ok(Self { workers, v4, v6, program, entries: BTreeMap::new() })
    }

    /// Steers the device that `queue` belongs to, all its queues. It must have as many as there are workers, in
    /// worker order. The device keeps program and maps until it is gone.
    ///
    /// # Errors
    /// [`SteeringError::Attach`].
    pub fn attach(&self, queue: &impl AsFd) -> Result<(), SteeringError> {
        tun::set_steering(queue, self.program.as_fd()).map_err(SteeringError::Attach)
    }

    /// Names the owner of a prefix, or a new one. It takes effect with the next packet. Only what the hash gets
    /// wrong goes into the kernel's map: a host prefix of its hash's worker does not, unless a shorter prefix
    /// covers it.
    ///
    /// # Errors
    /// [`SteeringError::Map`] with ENOSPC beyond [`MAX_PREFIXES`] (the prefix is then not set);
    /// [`SteeringError::NoWorker`].
    pub fn set(&mut self, prefix: Prefix, owner: WorkerId) -> Result<(), SteeringError> {
        if owner.0 >= self.workers {
            return Err(SteeringError::NoWorker(owner.0));
        }
        if !prefix.is_host() {
            self.write_hosts_inside(prefix)?;
        }
        let in_map = !self.hash_is_right(prefix, owner) || self.covered(prefix);
        if in_map {
            self.insert(prefix, owner)?;
        } else {
            self.map(prefix).remove(prefix).map_err(SteeringError::Map)?;
        }
        self.entries.insert(prefix, Entry { owner, in_map });
        Ok(())
    }

    /// Forgets a prefix: its addresses go where the next shorter prefix or the hash says.
    ///
    /// # Errors
    /// [`SteeringError::Map`].
    pub fn unset(&mut self, prefix: Prefix) -> Result<(), SteeringError> {
        if self.entries.remove(&prefix).is_some_and(|entry| entry.in_map) {
            self.map(prefix).remove(prefix).map_err(SteeringError::Map)?;
        }
        Ok(())
    }

    /// The queue that a packet to `addr` shall go to: the longest prefix that was set, else the hash.
    #[must_use]
    pub fn expected(&self, addr: IpAddr) -> u16 {
        let longest = Prefix::host(addr).len();
        (0..=longest)
            .rev()
            .filter_map(|len| self.entries.get(&Prefix::new(addr, len)?))
            .map(|entry| entry.owner.0)
            .next()
            .unwrap_or_else(|| queue_of(addr, self.workers))
    }

    /// Has the kernel run the program over [`SELF_TEST_PACKETS`] packets of each family, by hash alone and with
    /// prefixes of its own set (and taken away again), and compares with [`Steering::expected`]. To be called before
    /// [`Steering::attach`].
    ///
    /// # Errors
    /// [`SteeringError::SelfTest`] and [`SteeringError::Mismatch`]: then do not attach.
    pub fn self_test(&mut self) -> Result<(), SteeringError> {
        let mut numbers = Numbers(0x5EED);
        self.compare(&mut numbers)?;
        let mut made = Vec::new();
        for len in [8, 15, 24, 31, 32] {
            let v4 = Prefix::new(Ipv4Addr::from_bits(numbers.next() as u32).into(), len);
            let v6 = Prefix::new(Ipv6Addr::from_bits(numbers.wide()).into(), len * 4);
            made.extend([v4, v6].into_iter().flatten().filter(|p| !self.entries.contains_key(p)));
        }
        let mut outcome = Ok(());
        for (prefix, n) in made.iter().zip(0_u16..) {
            outcome = outcome.and_then(|()| self.set(*prefix, WorkerId(n % self.workers)));
        }
        outcome = outcome.and_then(|()| self.compare(&mut numbers));
        for prefix in made {
            self.unset(prefix)?;
        }
        outcome
    }

    /// Half of the addresses are anywhere, half inside a prefix that is set.
    fn compare(&self, numbers: &mut Numbers) -> Result<(), SteeringError> {
        let prefixes: Vec<Prefix> = self.entries.keys().take(64).copied().collect();
        for n in 0..SELF_TEST_PACKETS {
            let inside = prefixes.get(n % (2 * prefixes.len()).max(1)).copied();
            for any in [
                IpAddr::from(Ipv4Addr::from_bits(numbers.next() as u32)),
                Ipv6Addr::from_bits(numbers.wide()).into(),
            ] {
                let addr = inside.map_or(any, |prefix| within(prefix, any));
                let expected = self.expected(addr);
                let found = self.program.test_run(&frame_to(addr)).map_err(SteeringError::SelfTest)?;
                if found != u32::from(expected) {
                    return Err(SteeringError::Mismatch { addr, found, expected });
                }
            }
        }
        Ok(())
    }

    /// Before a shorter prefix begins to cover them: hosts inside it that were left to the hash go into the map.
    fn write_hosts_inside(&mut self, prefix: Prefix) -> Result<(), SteeringError> {
        let left_out: Vec<(Prefix, WorkerId)> = self
            .entries
            .range(prefix..)
            .take_while(|(inner, _)| prefix.contains(inner.addr()))
            .filter(|(_, entry)| !entry.in_map)
            .map(|(inner, entry)| (*inner, entry.owner))
            .collect();
        for (inner, owner) in left_out {
            self.insert(inner, owner)?;
            self.entries.insert(inner, Entry { owner, in_map: true });
        }
        Ok(())
    }

    fn hash_is_right(&self, prefix: Prefix, owner: WorkerId) -> bool {
        prefix.is_host() && queue_of(prefix.addr(), self.workers) == owner.0
    }

    /// True if a shorter prefix that is set covers this one.
    fn covered(&self, prefix: Prefix) -> bool {
        (0..prefix.len())
            .filter_map(|len| Prefix::new(prefix.addr(), len))
            .any(|shorter| self.entries.contains_key(&shorter))
    }

    fn insert(&self, prefix: Prefix, owner: WorkerId) -> Result<(), SteeringError> {
        self.map(prefix).insert(prefix, u32::from(owner.0)).map_err(SteeringError::Map)
    }

    fn map(&self, prefix: Prefix) -> &PrefixMap {
        if prefix.addr().is_ipv4() { &self.v4 } else { &self.v6 }
    }
}

fn permission(error: io::Error, other: fn(io::Error) -> SteeringError) -> SteeringError {
    if error.raw_os_error() == Some(libc::EPERM) { SteeringError::NotPermitted } else { other(error) }
}

/// Registers and instruction codes of eBPF (RFC 9669; helper numbers: `include/uapi/linux/bpf.h`).
mod code {
    pub(super) const R0: u8 = 0;
    pub(super) const R1: u8 = 1;
    pub(super) const R2: u8 = 2;
    pub(super) const R3: u8 = 3;
    pub(super) const R4: u8 = 4;
    /// Kept over calls; LD_ABS reads the packet through it.
    pub(super) const R6: u8 = 6;
    /// The frame pointer.
    pub(super) const R10: u8 = 10;
    pub(super) const MOV64_IMM: u8 = 0xb7;
    pub(super) const MOV64_REG: u8 = 0xbf;
    pub(super) const ADD64_IMM: u8 = 0x07;
    pub(super) const MUL64_IMM: u8 = 0x27;
    pub(super) const RSH64_IMM: u8 = 0x77;
    pub(super) const MUL32_IMM: u8 = 0x24;
    pub(super) const TO_BIG_ENDIAN: u8 = 0xdc;
    pub(super) const JEQ_IMM: u8 = 0x15;
    pub(super) const JNE_IMM: u8 = 0x55;
    pub(super) const CALL: u8 = 0x85;
    pub(super) const EXIT: u8 = 0x95;
    /// A 64-bit constant, in two instructions; with source register 1, a map by its descriptor.
    pub(super) const LD_IMM64: u8 = 0x18;
    pub(super) const PSEUDO_MAP_FD: u8 = 1;
    pub(super) const LD_ABS_BYTE: u8 = 0x30;
    pub(super) const LDX_WORD: u8 = 0x61;
    pub(super) const ST_WORD_IMM: u8 = 0x62;
    pub(super) const HELPER_MAP_LOOKUP: i32 = 1;
    pub(super) const HELPER_SKB_LOAD_BYTES: i32 = 26;
}

/// Where the map's key lies on the program's stack: a length, then an address of 4 or 16 bytes.
const KEY: i16 = -24;
/// The address in it.
const KEY_ADDR: i16 = KEY + 4;
/// Instructions of [`lookup_or_hash`].
const BLOCK: i16 = 24;

/// The whole program: by the version in the packet's first nibble, one block per family. Packets of no version,
/// and those cut before the end of their destination, go to queue 0.
fn program(v4: &PrefixMap, v6: &PrefixMap, workers: u16) -> Vec<Insn> {
    use code::*;
    let mut insns = vec![
        Insn::new(MOV64_REG, R6, R1, 0, 0),
        Insn::new(LD_ABS_BYTE, 0, 0, 0, 0),
        Insn::new(RSH64_IMM, R0, 0, 0, 4),
        Insn::new(JEQ_IMM, R0, 0, 3, 4),
        Insn::new(JEQ_IMM, R0, 0, 2 + BLOCK, 6),
        Insn::new(MOV64_IMM, R0, 0, 0, 0),
        Insn::new(EXIT, 0, 0, 0, 0),
    ];
    // Offsets of the destination: RFC 791 section 3.1, RFC 8200 section 3.
    insns.extend(lookup_or_hash(v4, 16, 4, workers));
    insns.extend(lookup_or_hash(v6, 24, 16, workers));
    insns
}

/// One family: the `len` bytes at `offset` are looked up; if the map has none, [`queue_of`] in eBPF.
fn lookup_or_hash(map: &PrefixMap, offset: i32, len: i16, workers: u16) -> [Insn; BLOCK as usize] {
    use std::os::fd::AsRawFd;

    use code::*;
    let map = map.as_fd().as_raw_fd();
    [
        // The key, straight from the packet.
        Insn::new(ST_WORD_IMM, R10, 0, KEY, i32::from(len) * 8),
        Insn::new(MOV64_REG, R1, R6, 0, 0),
        Insn::new(MOV64_IMM, R2, 0, 0, offset),
        Insn::new(MOV64_REG, R3, R10, 0, 0),
        Insn::new(ADD64_IMM, R3, 0, 0, KEY_ADDR as i32),
        Insn::new(MOV64_IMM, R4, 0, 0, len as i32),
        Insn::new(CALL, 0, 0, 0, HELPER_SKB_LOAD_BYTES),
        Insn::new(JNE_IMM, R0, 0, 14, 0),
        // The longest prefix, if the map has one.
        Insn::new(LD_IMM64, R1, PSEUDO_MAP_FD, 0, map),
        Insn::new(0, 0, 0, 0, 0),
        Insn::new(MOV64_REG, R2, R10, 0, 0),
        Insn::new(ADD64_IMM, R2, 0, 0, KEY as i32),
        Insn::new(CALL, 0, 0, 0, HELPER_MAP_LOOKUP),
        Insn::new(JEQ_IMM, R0, 0, 2, 0),
        Insn::new(LDX_WORD, R0, R0, 0, 0),
        Insn::new(EXIT, 0, 0, 0, 0),
        // Else the hash of the low word, in the network's order on the stack.
        Insn::new(LDX_WORD, R0, R10, KEY_ADDR + len - 4, 0),
        Insn::new(TO_BIG_ENDIAN, R0, 0, 0, 32),
        Insn::new(MUL32_IMM, R0, 0, 0, GOLDEN.cast_signed()),
        Insn::new(MUL64_IMM, R0, 0, 0, workers as i32),
        Insn::new(RSH64_IMM, R0, 0, 0, 32),
        Insn::new(EXIT, 0, 0, 0, 0),
        // A packet that ends before its destination does.
        Insn::new(MOV64_IMM, R0, 0, 0, 0),
        Insn::new(EXIT, 0, 0, 0, 0),
    ]
}

/// Packets of each family that [`Steering::self_test`] sends through the program, twice.
pub const SELF_TEST_PACKETS: usize = 1000;

/// Addresses for the self-test; need not be unpredictable (Steele, Lea, Flood, "Fast splittable pseudorandom number
/// generators", 2014).
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        x ^ (x >> 31)
    }

    fn wide(&mut self) -> u128 {
        (u128::from(self.next()) << 64) | u128::from(self.next())
    }
}

/// An address inside `prefix`, whose other bits come from `any`; `any` itself if it is of the other family.
fn within(prefix: Prefix, any: IpAddr) -> IpAddr {
    match (prefix.addr(), any) {
        (IpAddr::V4(p), IpAddr::V4(a)) => {
            let host = u32::MAX.checked_shr(prefix.len().into()).unwrap_or(0);
            Ipv4Addr::from_bits(p.to_bits() | (a.to_bits() & host)).into()
        }
        (IpAddr::V6(p), IpAddr::V6(a)) => {
            let host = u128::MAX.checked_shr(prefix.len().into()).unwrap_or(0);
            Ipv6Addr::from_bits(p.to_bits() | (a.to_bits() & host)).into()
        }
        _ => any,
    }
}

/// An Ethernet frame with an IP header to `addr`. A test run skips the Ethernet header, as a TUN packet has none.
fn frame_to(addr: IpAddr) -> [u8; 14 + 40] {
    let mut frame = [0; 54];
    match addr {
        IpAddr::V4(v4) => {
            frame[12..15].copy_from_slice(&[0x08, 0x00, 0x45]);
            frame[30..34].copy_from_slice(&v4.octets());
        }
        IpAddr::V6(v6) => {
            frame[12..15].copy_from_slice(&[0x86, 0xDD, 0x60]);
            frame[38..54].copy_from_slice(&v6.octets());
        }
    }
    frame
}

#[cfg(test)]
mod tests;
