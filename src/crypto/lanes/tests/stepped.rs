//! The instances for AVX-512, which valgrind does not know: single-stepped with secrets of all kinds, they must run the
//! same instructions in the same order each time; and, disassembled, there is none among them that gathers anything but
//! lengths, divides, or takes flags or a mask from a vector.
//!
//! What this shows, of this build and of the instances that traffic takes: no branch depends on a secret, as far as
//! keys and texts of all zeros, all ones and two others can turn it, and none on a comparison of vectors. What it does
//! not show: an address that is computed from a secret in a general register. That is what the same source under
//! valgrind is for (`poisoned`).

use std::collections::BTreeSet;
use std::process::Command;

use super::*;

/// Of each packet; not all of one length, so that whole and partial blocks are worked on.
const LENGTHS: [usize; 3] = [70, 64, 129];

/// What of an instance is watched.
type Task<'a> = &'a dyn Fn(&mut [Packet<'_, '_>], &mut Tags);

/// Ends the watch where it is called.
#[inline(never)]
extern "C" fn end_of_watch() {
    std::hint::black_box(());
}

/// Addresses of the instructions that ran, one sequence for each secret.
fn watch(lanes: usize, secrets: &[u8], task: Task<'_>) -> Vec<Vec<u64>> {
    let mut keys = vec![[0; 32]; lanes];
    let mut texts: Vec<_> = (0..lanes).map(|lane| vec![0; LENGTHS[lane % LENGTHS.len()]]).collect();
    // What is done once only, in the library or by the linker, is done here.
    once(&mut keys, &mut texts, 0, false, task);
    // SAFETY: the child, which has this thread only, allocates nothing, runs what follows, and ends without unwinding
    // or running anything of the parent's.
    let child = unsafe { libc::fork() };
    assert!(child >= 0, "a child");
    if child == 0 {
        // SAFETY: as above; no memory is passed. Other tests' descriptors, which are this child's as well, are given
        // up: they look at what is gone when they close them.
        unsafe {
            libc::close_range(3, libc::c_uint::MAX, 0);
            libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0);
            libc::raise(libc::SIGSTOP);
        }
        for &secret in secrets {
            once(&mut keys, &mut texts, secret, true, task);
        }
        // SAFETY: never returns.
        unsafe { libc::_exit(0) };
    }
    // The last to be called, so that a failure below leaves no child.
    let _ends = Ends(child);
    assert_eq!(wait(child), Some(libc::SIGSTOP));
    secrets.iter().map(|_| trace(child)).collect()
}

/// Fills the keys and texts, and runs the task between a breakpoint and [`end_of_watch`].
fn once(keys: &mut [[u8; 32]], texts: &mut [Vec<u8>], secret: u8, stop: bool, task: Task<'_>) {
    let mut noise = Noise(u64::from(secret) + 1);
    // Also all zeros and all ones, which are the ends of every number.
    let mut byte = || if secret == 0 || secret == 0xff { secret } else { noise.next() as u8 };
    keys.iter_mut().flatten().for_each(|key| *key = byte());
    texts.iter_mut().flatten().for_each(|text| *text = byte());
    let mut packets = arrayvec::ArrayVec::<Packet<'_, '_>, MAX_LANES>::new();
    for (key, text) in keys.iter().zip(texts) {
        packets.push(Packet { key, counter: 9, text });
    }
    let mut tags = Tags::default();
    if stop {
        // SAFETY: a breakpoint; the parent goes on from there.
        #[cfg(target_arch = "x86_64")]
        unsafe {
            std::arch::asm!("int3", options(nostack));
        }
    }
    task(&mut packets, &mut tags);
    end_of_watch();
    std::hint::black_box(&tags);
}

/// A child that is killed and reaped on drop.
struct Ends(libc::pid_t);

impl Drop for Ends {
    fn drop(&mut self) {
        // SAFETY: our own child, not yet reaped; a null status is allowed.
        unsafe {
            libc::kill(self.0, libc::SIGKILL);
            libc::waitpid(self.0, std::ptr::null_mut(), 0);
        }
    }
}

/// The signal that stopped the child; `None` if it ended.
fn wait(child: libc::pid_t) -> Option<i32> {
    let mut status = 0;
    // SAFETY: writes the status.
    assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
    libc::WIFSTOPPED(status).then(|| libc::WSTOPSIG(status))
}

/// Runs the stopped child to its next breakpoint and from there step by step to the end of the watch.
fn trace(child: libc::pid_t) -> Vec<u64> {
    let go = |request| {
        // SAFETY: no memory is passed.
        assert_eq!(unsafe { libc::ptrace(request, child, 0, 0) }, 0, "the child goes on");
        assert_eq!(wait(child), Some(libc::SIGTRAP));
    };
    go(libc::PTRACE_CONT);
    let end = end_of_watch as *const () as u64;
    let mut ran = Vec::new();
    while ran.last() != Some(&end) {
        go(libc::PTRACE_SINGLESTEP);
        let at = std::mem::offset_of!(libc::user_regs_struct, rip);
        // SAFETY: yields a register; the request does not fail for a stopped child.
        ran.push(unsafe { libc::ptrace(libc::PTRACE_PEEKUSER, child, at, 0) }.cast_unsigned());
        assert!(ran.len() < 5_000_000, "it never ends");
    }
    ran
}

/// Zeros and ones everywhere, and two that look random.
const SECRETS: [u8; 4] = [0, 0xff, 7, 8];

fn is_steady(traces: &[Vec<u64>]) -> bool {
    traces.iter().all(|trace| *trace == traces[0])
}

/// What none of the instructions may be, as the beginning of its name: addresses by vectors, times by operands.
const SUSPECT: &[&str] = &[
    "vpgather",
    "vgather",
    "vpscatter",
    "vscatter",
    "vpcompress",
    "vpexpand",
    "xlat",
    "div",
    "idiv",
    "vdiv",
    "vsqrt",
];

/// The same for what takes flags or a mask out of vectors, as whole names.
const FLAGS: &[&str] = &[
    "ptest",
    "vptest",
    "vtestps",
    "vtestpd",
    "comiss",
    "comisd",
    "ucomiss",
    "ucomisd",
    "vcomiss",
    "vcomisd",
    "vucomiss",
    "vucomisd",
    "ktestb",
    "ktestw",
    "ktestd",
    "ktestq",
    "kortestb",
    "kortestw",
    "kortestd",
    "kortestq",
    "pmovmskb",
    "vpmovmskb",
    "movmskps",
    "movmskpd",
    "vmovmskps",
    "vmovmskpd",
];

/// Whether an instruction, as objdump writes it, is one that no kernel may use on secrets.
fn is_suspect(instruction: &str) -> bool {
    let mut words = instruction.split_whitespace();
    let (name, operands) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    // Lengths are looked up in the table of packets, and the compiler may do so for several at once.
    let length = std::mem::offset_of!(Packet<'_, '_>, text) + size_of::<usize>();
    let of_lengths = name.starts_with("vpgatherq") && operands.starts_with(&format!("{length:#x}(,"));
    // Lanes are masked by lengths; a mask decides something only in a general register.
    let to_general =
        name.starts_with("kmov") && operands.rsplit(',').next().is_some_and(|to| !to.starts_with("%k"));
    (SUSPECT.iter().any(|suspect| name.starts_with(suspect)) && !of_lengths)
        || FLAGS.contains(&name)
        || to_general
}

/// Those of the instructions at these addresses that are suspect, and how many are not. `None` without objdump.
fn suspects(ran: &BTreeSet<u64>) -> Option<(Vec<String>, usize)> {
    let program = std::env::current_exe().unwrap();
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let mut own = maps.lines().filter(|line| line.ends_with(program.to_str().unwrap()));
    let base = own.next().unwrap().split('-').next().unwrap();
    let base = u64::from_str_radix(base, 16).unwrap();
    // Stretches of the program; what ran in the C library is its own matter.
    let end = base + std::fs::metadata(&program).unwrap().len();
    let mut stretches: Vec<(u64, u64)> = Vec::new();
    for &at in ran.range(base..end) {
        match stretches.last_mut() {
            Some((_, last)) if at - *last < 0x1000 => *last = at,
            _ => stretches.push((at, at)),
        }
    }
    let (mut found, mut others) = (Vec::new(), 0);
    for (first, last) in stretches {
        let mut objdump = Command::new("objdump");
        objdump.args(["--disassemble", "--no-show-raw-insn"]).arg(&program);
        objdump.arg(format!("--start-address={}", first - base));
        let output = objdump.arg(format!("--stop-address={}", last - base + 16)).output().ok()?;
        for line in String::from_utf8_lossy(&output.stdout).lines() {
            let Some((at, instruction)) = line.split_once(":\t") else { continue };
            let Ok(at) = u64::from_str_radix(at.trim(), 16) else { continue };
            if ran.contains(&(base + at)) {
                if is_suspect(instruction) { found.push(line.to_owned()) } else { others += 1 }
            }
        }
    }
    Some((found, others))
}

#[test]
fn the_same_instructions_run_whatever_the_secrets() {
    if !supported() {
        return;
    }
    let mut ran = BTreeSet::new();
    let watched = instances()
        .into_iter()
        .filter(|instance| instance.name.ends_with(" lanes") || instance.name == "brief");
    for Instance { name, lanes, seal, open, .. } in watched {
        for work in [seal, open] {
            let traces = watch(lanes, &SECRETS, &|packets, tags| {
                work(packets, tags);
                std::hint::black_box(verdicts(tags, &[[1; 16]; MAX_LANES], lanes));
            });
            assert!(traces[0].len() > 500, "{name}: it was watched");
            assert!(is_steady(&traces), "{name}: another secret takes another way");
            ran.extend(traces[0].iter().copied());
        }
    }
    let traces = watch(x25519::PAIRS, &SECRETS, &|packets, _| {
        let pairs = packets.iter().filter_map(|packet| Some((packet.key, packet.text.first_chunk()?)));
        let pairs: arrayvec::ArrayVec<_, { x25519::PAIRS }> = pairs.collect();
        // Each of the ladder's steps runs the same code: a few of each word are watched.
        let mut products = x25519::Products::default();
        #[cfg(target_arch = "x86_64")]
        x86::multiply(&pairs, [2; 4], &mut products);
        std::hint::black_box(&*products);
    });
    assert!(traces[0].len() > 10_000, "X25519 was watched");
    assert!(is_steady(&traces), "X25519: another secret takes another way");
    ran.extend(traces[0].iter().copied());
    let Some((found, others)) = suspects(&ran) else {
        eprintln!("RINGWAY-SKIPPED the_same_instructions_run_whatever_the_secrets: no objdump (make deps)");
        return;
    };
    assert!(found.is_empty(), "{found:#?}");
    assert!(others > ran.len() * 9 / 10, "{others} of {}: the rest is the C library's", ran.len());
}

/// What is to be noticed is.
#[test]
fn a_branch_and_a_comparison_are_noticed() {
    let branch = watch(8, &SECRETS, &|packets, tags| {
        if packets[0].key[0] & 1 == 1 {
            tags[0][0] = std::hint::black_box(1);
        }
    });
    assert!(!is_steady(&branch));
    let comparison = watch(8, &SECRETS[..1], &|packets, tags| {
        tags[0][0] = u8::from(f32::from(packets[0].key[0]) < std::hint::black_box(1.0));
    });
    let ran = comparison.into_iter().flatten().collect();
    assert!(suspects(&ran).is_none_or(|(found, _)| found.len() == 1));
    assert!(is_suspect("vpgatherdd 0x10(%rax,%zmm6,4),%zmm7{%k2}") && is_suspect("kmovw  %k1,%eax"));
    assert!(!is_suspect("kmovw  %k1,%k2") && !is_suspect("vptestmd %zmm8,%zmm8,%k1"));
}
