//! The little of bpf(2) that steering needs: longest-prefix maps, a socket filter made of our own instructions, and a
//! test run of it. (`include/uapi/linux/bpf.h`, `Documentation/bpf/map_lpm_trie.rst`.)

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use crate::types::Prefix;

const MAP_CREATE: libc::c_int = 0;
const MAP_UPDATE_ELEM: libc::c_int = 2;
const MAP_DELETE_ELEM: libc::c_int = 3;
const PROG_LOAD: libc::c_int = 5;
const PROG_TEST_RUN: libc::c_int = 10;

const MAP_TYPE_LPM_TRIE: u32 = 11;
const PROG_TYPE_SOCKET_FILTER: u32 = 1;
/// LPM tries take their entries' memory as they come.
const F_NO_PREALLOC: u32 = 1;
/// Room for the verifier's words about a short program, bytes.
const LOG_LEN: usize = 64 * 1024;

/// One eBPF instruction (`struct bpf_insn`; RFC 9669).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Insn {
    code: u8,
    registers: u8,
    offset: i16,
    immediate: i32,
}

impl Insn {
    /// From its fields. `code` as in RFC 9669, section 3; `dst` and `src` are register numbers, 0 to 10.
    #[must_use]
    pub const fn new(code: u8, dst: u8, src: u8, offset: i16, immediate: i32) -> Self {
        Self { code, registers: (dst & 0xf) | (src << 4), offset, immediate }
    }
}

/// A program that the kernel refused.
#[derive(Debug, thiserror::Error)]
#[error("{source}{}{log}", if log.is_empty() { "" } else { "; the verifier says: " })]
pub struct LoadError {
    /// The error of bpf(2).
    pub source: io::Error,
    /// What the verifier wrote, if anything.
    pub log: String,
}

#[repr(C)]
struct MapCreate {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    map_flags: u32,
}

#[repr(C)]
struct MapElem {
    map_fd: u32,
    pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

#[repr(C)]
struct ProgLoad {
    prog_type: u32,
    insn_count: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
}

#[repr(C)]
struct TestRun {
    prog_fd: u32,
    retval: u32,
    data_size_in: u32,
    data_size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
}

/// Calls bpf(2). `attr` must be one of the structures above and hold what `command` wants; fields after its end
/// count as zero.
///
/// # Safety
/// Every address in `attr` must be valid for what `command` does with it.
unsafe fn bpf<T>(command: libc::c_int, attr: &mut T) -> io::Result<libc::c_int> {
    // SAFETY: `attr` is valid for its size; what it points to is the caller's promise.
    let returned = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), size_of::<T>()) };
    if returned < 0 { Err(io::Error::last_os_error()) } else { Ok(returned as libc::c_int) }
}

/// Calls bpf(2) for a command that makes a descriptor (closed on exec, as all of bpf(2)'s are).
///
/// # Safety
/// As for [`bpf`].
unsafe fn bpf_fd<T>(command: libc::c_int, attr: &mut T) -> io::Result<OwnedFd> {
    // SAFETY: the caller's promise; the kernel just made the descriptor and nobody else knows it.
    unsafe { Ok(OwnedFd::from_raw_fd(bpf(command, attr)?)) }
}

fn address<T: ?Sized>(of: &T) -> u64 {
    std::ptr::from_ref(of).cast::<()>().expose_provenance() as u64
}

fn number(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd().cast_unsigned()
}

/// A map from prefixes of one address family to a number; the longest prefix wins.
#[derive(Debug)]
pub struct PrefixMap {
    fd: OwnedFd,
    v6: bool,
}

impl PrefixMap {
    /// Makes an empty map for IPv4 or IPv6 with room for `max_entries` prefixes.
    ///
    /// # Errors
    /// EPERM without CAP_BPF (or CAP_SYS_ADMIN); ENOMEM; EINVAL where the kernel has no such maps.
    pub fn new(v6: bool, max_entries: u32) -> io::Result<Self> {
        let mut attr = MapCreate {
            map_type: MAP_TYPE_LPM_TRIE,
            key_size: if v6 { 20 } else { 8 },
            value_size: 4,
            max_entries,
            map_flags: F_NO_PREALLOC,
        };
        // SAFETY: the structure holds no address.
        let fd = unsafe { bpf_fd(MAP_CREATE, &mut attr) }?;
        Ok(Self { fd, v6 })
    }

    /// Sets the value of a prefix, new or old.
    ///
    /// # Errors
    /// ENOSPC when the map is full; EINVAL for a prefix of the other family.
    pub fn insert(&self, prefix: Prefix, value: u32) -> io::Result<()> {
        let (key, value) = (self.key(prefix)?, value.to_ne_bytes());
        let mut attr = self.element(&key, Some(&value));
        // SAFETY: `key` has at least the map's key size and `value` its value size; both outlive the call.
        unsafe { bpf(MAP_UPDATE_ELEM, &mut attr) }.map(drop)
    }

    /// Takes a prefix away. False if it was not there.
    ///
    /// # Errors
    /// EINVAL for a prefix of the other family.
    pub fn remove(&self, prefix: Prefix) -> io::Result<bool> {
        let key = self.key(prefix)?;
        let mut attr = self.element(&key, None);
        // SAFETY: `key` has at least the map's key size and outlives the call.
        match unsafe { bpf(MAP_DELETE_ELEM, &mut attr) } {
            Ok(_) => Ok(true),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// `struct bpf_lpm_trie_key`: length in the machine's order, address in the network's. An IPv4 key is its
    /// first 8 bytes.
    fn key(&self, prefix: Prefix) -> io::Result<[u8; 20]> {
        let mut key = [0; 20];
        key[..4].copy_from_slice(&u32::from(prefix.len()).to_ne_bytes());
        match (prefix.addr(), self.v6) {
            (IpAddr::V4(addr), false) => key[4..8].copy_from_slice(&addr.octets()),
            (IpAddr::V6(addr), true) => key[4..].copy_from_slice(&addr.octets()),
            _ => return Err(io::Error::from_raw_os_error(libc::EINVAL)),
        }
        Ok(key)
    }

    fn element(&self, key: &[u8; 20], value: Option<&[u8; 4]>) -> MapElem {
        MapElem {
            map_fd: number(self.fd.as_fd()),
            pad: 0,
            key: address(key),
            value: value.map_or(0, address),
            flags: 0,
        }
    }
}

impl AsFd for PrefixMap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// A loaded socket filter program. The kernel keeps it, and the maps in it, while it is attached anywhere.
#[derive(Debug)]
pub struct Program(OwnedFd);

impl Program {
    /// Loads `insns` as a socket filter. On refusal it is loaded once more for the verifier's log.
    ///
    /// # Errors
    /// EPERM without permission; EINVAL or EACCES if the verifier refuses it.
    pub fn socket_filter(insns: &[Insn]) -> Result<Self, LoadError> {
        let mut log = Vec::new();
        let first = match Self::load(insns, &mut log) {
            Ok(fd) => return Ok(Self(fd)),
            Err(error) => error,
        };
        if first.raw_os_error() == Some(libc::EPERM) {
            return Err(LoadError { source: first, log: String::new() });
        }
        log.resize(LOG_LEN, 0);
        match Self::load(insns, &mut log) {
            Ok(fd) => Ok(Self(fd)),
            Err(source) => {
                let text = log.split(|&b| b == 0).next().unwrap_or_default();
                Err(LoadError { source, log: String::from_utf8_lossy(text).trim().to_owned() })
            }
        }
    }

    fn load(insns: &[Insn], log: &mut [u8]) -> io::Result<OwnedFd> {
        let mut attr = ProgLoad {
            prog_type: PROG_TYPE_SOCKET_FILTER,
            insn_count: u32::try_from(insns.len()).map_err(|_| io::ErrorKind::InvalidInput)?,
            insns: address(insns),
            license: address(c"Dual MIT/GPL".to_bytes_with_nul()),
            log_level: u32::from(!log.is_empty()),
            log_size: u32::try_from(log.len()).map_err(|_| io::ErrorKind::InvalidInput)?,
            log_buf: if log.is_empty() { 0 } else { log.as_mut_ptr().expose_provenance() as u64 },
        };
        // SAFETY: instructions, licence and log are as long as the structure says and outlive the call; the log is
        // ours to write to.
        unsafe { bpf_fd(PROG_LOAD, &mut attr) }
    }

    /// Runs the program once on `frame`, an Ethernet frame (at least 14 bytes; the program sees what follows
    /// these), and returns its result (BPF_PROG_TEST_RUN).
    ///
    /// # Errors
    /// EPERM without permission; EINVAL for a frame too short.
    pub fn test_run(&self, frame: &[u8]) -> io::Result<u32> {
        let mut attr = TestRun {
            prog_fd: number(self.0.as_fd()),
            retval: 0,
            data_size_in: u32::try_from(frame.len()).map_err(|_| io::ErrorKind::InvalidInput)?,
            data_size_out: 0,
            data_in: address(frame),
            data_out: 0,
            repeat: 1,
            duration: 0,
        };
        // SAFETY: `frame` is readable for its length and outlives the call; no output but `attr` itself is asked for.
        unsafe { bpf(PROG_TEST_RUN, &mut attr) }?;
        Ok(attr.retval)
    }
}

impl AsFd for Program {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::testing::in_netns;

    const EXIT: Insn = Insn::new(0x95, 0, 0, 0, 0);

    #[test]
    fn an_instruction_has_the_kernels_layout() {
        assert_eq!(size_of::<Insn>(), 8);
        assert_eq!(
            Insn::new(0x61, 3, 10, -8, 0),
            Insn { code: 0x61, registers: 0xa3, offset: -8, immediate: 0 }
        );
    }

    #[test]
    fn a_program_runs_and_a_bad_one_says_why() {
        in_netns(|| {
            // r0 = 7; exit
            let good = Program::socket_filter(&[Insn::new(0xb7, 0, 0, 0, 7), EXIT]).unwrap();
            assert_eq!(good.test_run(&[0; 64]).unwrap(), 7);
            assert!(good.test_run(&[0; 3]).is_err(), "shorter than an Ethernet header");
            let bad = Program::socket_filter(&[EXIT]).unwrap_err();
            assert!(bad.to_string().contains("R0 !read_ok"), "{bad}");
            assert!(Program::socket_filter(&[]).is_err());
        });
    }

    #[test]
    fn a_map_takes_its_family_and_no_more_than_its_size() {
        in_netns(|| {
            let map = PrefixMap::new(false, 2).unwrap();
            let prefix = |n: u8| Prefix::new([n, 0, 0, 0].into(), 8).unwrap();
            map.insert(prefix(1), 1).unwrap();
            map.insert(prefix(1), 2).unwrap();
            map.insert(prefix(2), 2).unwrap();
            assert_eq!(map.insert(prefix(3), 3).unwrap_err().raw_os_error(), Some(libc::ENOSPC));
            assert!(map.remove(prefix(1)).unwrap());
            assert!(!map.remove(prefix(1)).unwrap());
            map.insert(prefix(3), 3).unwrap();
            let v6 = Prefix::new([0_u16; 8].into(), 0).unwrap();
            assert_eq!(map.insert(v6, 0).unwrap_err().raw_os_error(), Some(libc::EINVAL));
        });
    }
}
