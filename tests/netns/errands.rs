//! Programs of ours that run inside a namespace: senders of what no honest peer sends.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use base64::Engine as _;
use blake2::digest::consts::U16;
use blake2::digest::{KeyInit, Mac};
use blake2::{Blake2s256, Blake2sMac, Digest};

use crate::calls;
use crate::confinement;
use crate::enrolment;
use crate::guard;
use crate::lab::Host;
use crate::leases;
use crate::native;
use crate::resolved;
use crate::resolver;
use crate::traffic::udp_payloads;
use crate::vpn;

/// The environment variable that holds an errand's name and arguments.
pub(crate) const VARIABLE: &str = "RINGWAY_ERRAND";

/// The largest UDP payload of IPv4.
pub(crate) const LARGEST: usize = 65_507;

/// Datagrams that the errand `garbage` sends.
pub(crate) const GARBAGE: u64 = (201 + 7) * 8 * 2;

/// What the errand `mangle` makes of each datagram.
pub(crate) const MANGLED: usize = 10;

/// Starts an errand on a host.
pub(crate) fn send(host: &Host, line: &str) -> Child {
    let mut cmd = host.command(std::env::current_exe().unwrap());
    cmd.args(["errand", "--exact", "--nocapture"]).env(VARIABLE, line);
    cmd.stdout(Stdio::null()).spawn().expect("our own binary")
}

/// Runs an errand on a host to its end.
pub(crate) fn run_on(host: &Host, line: &str) {
    assert!(send(host, line).wait().unwrap().success(), "errand failed: {line}");
}

/// Does an errand here; false if the name is unknown.
pub(crate) fn run(line: &str) -> bool {
    match line.split_whitespace().collect::<Vec<_>>()[..] {
        ["garbage", to] => garbage(to.parse().unwrap()),
        ["forge", to, public, seconds] => forge(to.parse().unwrap(), public, seconds.parse().unwrap()),
        ["replay", to, file, times] => replay(to.parse().unwrap(), Path::new(file), times.parse().unwrap()),
        ["mangle", to, file] => mangle(to.parse().unwrap(), Path::new(file)),
        ["too-big", to, from, mtu] => {
            too_big(to.parse().unwrap(), from.parse().unwrap(), mtu.parse().unwrap())
        }
        ["confine"] => confinement::confine(),
        ["old-history", path] => leases::old_history(Path::new(path)),
        ["lost-answer", path] => enrolment::lost_answer(Path::new(path)),
        ["foreign", path, key, ref words @ ..] => enrolment::foreign(Path::new(path), key, words),
        ["full-disk", directory] => leases::full_disk(Path::new(directory)),
        ["native", private, public, to, ref rest @ ..] => {
            native::run(private, public, to.parse().unwrap(), rest)
        }
        ["vpn-echo"] => vpn::echo(),
        ["vpn-ways"] => vpn::ways(),
        ["vpn-errors"] => vpn::errors(),
        ["calls", program] => calls::errand(program),
        ["echo-bytes", place] => calls::echo_bytes(place.parse().unwrap()),
        ["vpn-cycles"] => vpn::cycles(),
        ["guard", tunnel, mark, local, ref addresses @ ..] => guard::errand(tunnel, mark, local, addresses),
        ["resolver"] => resolver::errand(),
        ["resolved", link] => resolved::errand(link),
        ["refused", link] => resolved::refused(link),
        ["unresolved", link] => resolved::undo(link),
        ["unguard", tunnel] => guard::unguard(tunnel),
        ["become", user] => confinement::become_user(user),
        ["send-from", port, to, count] => {
            send_from(port.parse().unwrap(), to.parse().unwrap(), count.parse().unwrap());
        }
        _ => return false,
    }
    true
}

fn socket(to: SocketAddr) -> UdpSocket {
    let socket = UdpSocket::bind(if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }).unwrap();
    socket.connect(to).unwrap();
    socket
}

/// So many small datagrams from a chosen port.
fn send_from(port: u16, to: SocketAddr, count: u32) {
    let from: IpAddr = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((from, port)).unwrap();
    for _ in 0..count {
        socket.send_to(b"from a chosen port", to).unwrap();
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A refused datagram (nobody listens for the moment) is no failure of the sender.
fn push(socket: &UdpSocket, bytes: &[u8]) {
    let _ = socket.send(bytes);
}

/// Every length up to 200 for every message type and its neighbours, then the largest datagrams there are.
fn garbage(to: SocketAddr) {
    let socket = socket(to);
    let mut random = Random::new();
    for length in (0..=200).chain([1279, 1280, 1500, 9000, 32_768, LARGEST - 1, LARGEST]) {
        for kind in [0, 1, 2, 3, 4, 5, 128, 255] {
            let mut bytes = vec![0; length];
            random.fill(&mut bytes);
            push(&socket, &bytes);
            for (at, value) in [kind, 0, 0, 0].into_iter().enumerate().take(length) {
                bytes[at] = value;
            }
            push(&socket, &bytes);
        }
        // Every one of them is to arrive: the kernel's queues between namespaces are short.
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Initiations, responses and cookie replies with a valid mac1 and nothing else, as fast as they can be sent.
fn forge(to: SocketAddr, public: &str, seconds: u64) {
    let socket = socket(to);
    let public = base64::engine::general_purpose::STANDARD.decode(public).unwrap();
    let label = Blake2s256::new().chain_update(b"mac1----").chain_update(public).finalize();
    let mut random = Random::new();
    let end = Instant::now() + Duration::from_secs(seconds);
    while Instant::now() < end {
        for (kind, length) in [(1, 148), (1, 148), (1, 148), (2, 92), (3, 64)] {
            let mut message = vec![0; length];
            random.fill(&mut message);
            message[..4].copy_from_slice(&[kind, 0, 0, 0]);
            if kind < 3 {
                let mut mac = Blake2sMac::<U16>::new_from_slice(&label).unwrap();
                mac.update(&message[..length - 32]);
                message[length - 32..length - 16].copy_from_slice(&mac.finalize().into_bytes());
                message[length - 16..].fill(0);
            }
            push(&socket, &message);
        }
    }
}

/// Sends the recorded datagrams again, in order, from another port.
fn replay(to: SocketAddr, file: &Path, times: u32) {
    let socket = socket(to);
    let recorded = udp_payloads(file);
    assert!(!recorded.is_empty(), "nothing was recorded");
    for _ in 0..times {
        for payload in &recorded {
            push(&socket, payload);
        }
    }
}

/// Sends recorded transport messages with a bit changed (counter, text, tag), cut short, or lengthened.
fn mangle(to: SocketAddr, file: &Path) {
    let socket = socket(to);
    for payload in udp_payloads(file) {
        let mut variants = Vec::new();
        for at in [9, 16, payload.len() / 2, payload.len() - 16, payload.len() - 1] {
            let mut changed = payload.clone();
            changed[at] ^= 0x40;
            variants.push(changed);
        }
        variants.extend([31, 32, payload.len() - 16, payload.len() - 1].map(|len| payload[..len].to_vec()));
        variants.push([&payload[..], &[0; 16]].concat());
        assert_eq!(variants.len(), MANGLED);
        variants.iter().for_each(|variant| push(&socket, variant));
    }
}

/// ICMP "fragmentation needed" (RFC 792, RFC 1191) that pretends to answer a datagram of `to` for `from`.
fn too_big(to: SocketAddr, from: SocketAddr, mtu: u16) {
    let (SocketAddr::V4(to), SocketAddr::V4(from)) = (to, from) else { panic!("IPv4 only") };
    let mut message = vec![3, 4, 0, 0, 0, 0];
    message.extend(mtu.to_be_bytes());
    message.extend([0x45, 0, 5, 220, 0, 1, 0x40, 0, 64, 17, 0, 0]);
    message.extend(to.ip().octets());
    message.extend(from.ip().octets());
    message.extend(to.port().to_be_bytes());
    message.extend(from.port().to_be_bytes());
    message.extend([5, 200, 0, 0]);
    let sum: u32 = message.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    let checksum = !u16::try_from((folded & 0xffff) + (folded >> 16)).unwrap();
    message[2..4].copy_from_slice(&checksum.to_be_bytes());
    let raw =
        socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::RAW, Some(socket2::Protocol::ICMPV4));
    raw.unwrap().send_to(&message, &SocketAddr::V4(to).into()).unwrap();
}

/// SplitMix64: fast and good enough for rubbish.
struct Random(u64);

impl Random {
    fn new() -> Self {
        Self(u64::from(std::process::id()))
    }

    fn fill(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = self.0;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            chunk.copy_from_slice(&(z ^ (z >> 31)).to_le_bytes()[..chunk.len()]);
        }
    }
}
