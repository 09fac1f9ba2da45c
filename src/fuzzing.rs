//! What the fuzzer runs: one function per parser or machine, which takes bytes and panics on a broken promise.
//!
//! `fuzz/fuzz_targets/<name>.rs` calls the function of that name, and `tests/corpus.rs` replays
//! `fuzz/corpus/<name>/*` through it in every `cargo test`. A new target is a function and a line of [`TARGETS`]
//! here, and there a file, a `[[bin]]` and a few seeds; `tests/corpus.rs` says what is missing.

use std::net::IpAddr;

mod client;
mod control;
mod enrolment;
mod packets;
mod protocol;

pub use client::{echo, name_answer, profile};
pub use control::{interface_name, uapi_set};
pub use enrolment::enrolment;
pub use packets::{coalesce, inner_packet, received, split};
pub use protocol::{datagram, frame, handshake, invite, leasing};

use crate::crypto::aead::{self, Key, Pieces, RUN, Sealed, Span, TAG_LEN};
use crate::dataplane::allowed_ips::AllowedIps;
use crate::types::{PeerId, Prefix, Secret, WorkerId};

/// A fuzz target: takes any bytes, panics only if a promise is broken.
pub type Target = fn(&[u8]);

/// Every target by its name.
pub const TARGETS: &[(&str, Target)] = &[
    ("aead_open", aead_open),
    ("aead_run", aead_run),
    ("allowed_ips", allowed_ips),
    ("coalesce", coalesce),
    ("datagram", datagram),
    ("echo", echo),
    ("enrolment", enrolment),
    ("frame", frame),
    ("handshake", handshake),
    ("inner_packet", inner_packet),
    ("interface_name", interface_name),
    ("invite", invite),
    ("leasing", leasing),
    ("name_answer", name_answer),
    ("profile", profile),
    ("received", received),
    ("split", split),
    ("uapi_set", uapi_set),
];

/// Seals packets of any lengths as one run and each by itself, which must not differ; opens the run with some of them
/// altered, which are refused and wiped while the others open. Input: 32 bytes of key, 8 of counter, then for each
/// packet its length (2 bytes; highest bit: alter it) and its bytes, as far as there are any.
pub fn aead_run(data: &[u8]) {
    let Some((key, rest)) = data.split_first_chunk::<32>() else { return };
    let Some((counter, mut rest)) = rest.split_first_chunk::<8>() else { return };
    let (key, first) = (Key::new(&Secret(*key)), u64::from_le_bytes(*counter));

    let (mut plain, mut spans, mut altered) = (Vec::new(), Vec::new(), Vec::new());
    while let Some((length, more)) = rest.split_first_chunk::<2>()
        && spans.len() < RUN
    {
        let length = u16::from_le_bytes(*length);
        let len = usize::from(length % 2048);
        let (text, more) = more.split_at(len.min(more.len()));
        spans.push(Span { start: plain.len(), len });
        altered.push(length >= 0x8000);
        let end = plain.len() + len + TAG_LEN;
        plain.extend(text);
        plain.resize(end, 0);
        rest = more;
    }

    let mut run = plain.clone();
    assert!(aead::seal_run(&key, first, &mut run, &spans));
    let mut alone = plain.clone();
    for (n, span) in (0..).zip(&spans) {
        let span = std::slice::from_ref(span);
        assert!(aead::seal_run(&key, first.wrapping_add(n), &mut alone, span));
    }
    assert_eq!(run, alone, "a run is its packets");

    for (at, span) in spans.iter().enumerate().filter(|(at, _)| altered[*at]) {
        let bit = (at * 37) % ((span.len + TAG_LEN) * 8);
        run[span.start + bit / 8] ^= 1 << (bit % 8);
    }
    let wiped = altered.clone();
    let mut pieces = Pieces::of(&mut run);
    let mut messages = (0..)
        .zip(&spans)
        .filter_map(|(n, span)| {
            let bytes = pieces.take(span.start..span.start + span.len + TAG_LEN)?;
            Sealed::new(first.wrapping_add(n), bytes)
        })
        .collect();
    let mut opened = arrayvec::ArrayVec::new();
    aead::open_run(&key, &mut messages, &mut opened);
    for ((opened, span), altered) in opened.drain(..).zip(&spans).zip(altered) {
        assert_eq!(opened.is_none(), altered);
        if let Some(text) = opened {
            assert_eq!(*text, plain[span.start..span.start + span.len]);
        }
    }
    drop((messages, opened));
    for (span, altered) in spans.iter().zip(wiped) {
        let text = &run[span.start..span.start + span.len];
        assert!(!altered || text.iter().all(|&byte| byte == 0), "an unauthentic packet is wiped");
    }
}

/// Opens bytes that nobody sealed: they are refused and wiped. Then seals them: they open to themselves, and no more
/// once one bit is turned. Input: 32 bytes of key, 8 of counter, the packet.
pub fn aead_open(data: &[u8]) {
    let Some((key, rest)) = data.split_first_chunk::<32>() else { return };
    let Some((counter, packet)) = rest.split_first_chunk::<8>() else { return };
    let (key, counter) = (Key::new(&Secret(*key)), u64::from_le_bytes(*counter));

    let mut stranger = packet.to_vec();
    // A fuzzer does not forge a Poly1305 tag.
    assert_eq!(aead::open(&key, counter, &mut stranger), None);
    assert!(stranger.iter().all(|&byte| byte == 0), "an unauthentic packet is wiped");

    let mut sealed = packet.to_vec();
    sealed.resize(packet.len() + TAG_LEN, 0);
    assert!(aead::seal_run(&key, counter, &mut sealed, &[Span { start: 0, len: packet.len() }]));
    let mut opened = sealed.clone();
    assert_eq!(aead::open(&key, counter, &mut opened), Some(packet.len()));
    assert_eq!(&opened[..packet.len()], packet);
    let bit = (counter as usize) % (sealed.len() * 8);
    sealed[bit / 8] ^= 1 << (bit % 8);
    assert_eq!(aead::open(&key, counter, &mut sealed), None);
}

/// A naive allowed-ips: a list, searched from end to end.
#[derive(Default)]
struct NaiveAllowedIps(Vec<(Prefix, PeerId, WorkerId)>);

impl NaiveAllowedIps {
    fn insert(&mut self, prefix: Prefix, peer: PeerId, worker: WorkerId) -> Option<(PeerId, WorkerId)> {
        match self.0.iter_mut().find(|entry| entry.0 == prefix) {
            Some(entry) => {
                let previous = (entry.1, entry.2);
                *entry = (prefix, peer, worker);
                Some(previous)
            }
            None => {
                self.0.push((prefix, peer, worker));
                None
            }
        }
    }

    fn retain(&mut self, keep: impl Fn(&(Prefix, PeerId, WorkerId)) -> bool) -> usize {
        let before = self.0.len();
        self.0.retain(keep);
        before - self.0.len()
    }

    fn lookup(&self, addr: IpAddr) -> Option<(PeerId, WorkerId)> {
        let holding = self.0.iter().filter(|entry| entry.0.contains(addr));
        holding.max_by_key(|entry| entry.0.len()).map(|entry| (entry.1, entry.2))
    }
}

/// Runs inserts, moves, removals and lookups against a naive list. Input: records of six bytes (what to do, prefix
/// length, three bytes of address, peer); addresses are few, so that prefixes nest and meet.
pub fn allowed_ips(data: &[u8]) {
    let (mut table, mut naive) = (AllowedIps::new(), NaiveAllowedIps::default());
    let (records, _) = data.as_chunks::<6>();
    for &[what, len, a, b, c, who] in records {
        let few = |byte: u8| byte & 0b1000_0001;
        let addr = if what & 1 == 0 {
            IpAddr::from([few(a), few(b), few(c), few(c >> 1)])
        } else {
            let mut addr = [0; 16];
            (addr[0], addr[7], addr[8], addr[15]) = (few(a), few(b), few(b >> 1), few(c));
            IpAddr::from(addr)
        };
        let len = len % if addr.is_ipv4() { 33 } else { 129 };
        let Some(prefix) = Prefix::new(addr, len) else { continue };
        let peer = PeerId { slot: u32::from(who & 3), generation: u32::from(who >> 2 & 1) };
        let worker = WorkerId(u16::from(who & 3));
        match what >> 1 & 7 {
            0..=3 => assert_eq!(table.insert(prefix, peer, worker), naive.insert(prefix, peer, worker)),
            4 | 5 => assert_eq!(table.remove(prefix), naive.retain(|entry| entry.0 != prefix) == 1),
            6 => assert_eq!(table.remove_peer(peer), naive.retain(|entry| entry.1 != peer)),
            _ => {}
        }
        assert_eq!(table.lookup(addr), naive.lookup(addr));
        let owner = naive.lookup(addr).map(|(owner, _)| owner);
        assert_eq!(table.allowed_source(addr, peer), owner == Some(peer));
    }
    compare(&table, &naive);
}

/// The whole of both tables says the same.
fn compare(table: &AllowedIps, naive: &NaiveAllowedIps) {
    assert_eq!(table.len(), naive.0.len());
    for &(prefix, peer, _) in &naive.0 {
        assert_eq!(table.lookup(prefix.addr()), naive.lookup(prefix.addr()));
        let mut theirs: Vec<_> = table.prefixes_of(peer).collect();
        let mut ours: Vec<_> = naive.0.iter().filter(|entry| entry.1 == peer).map(|entry| entry.0).collect();
        theirs.sort_unstable();
        ours.sort_unstable();
        assert_eq!(theirs, ours);
    }
}
