//! Traffic and its measures: ping, iperf3, and packets counted out of order where they arrive.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::lab::{Host, machine, target, wait_until};

/// Sends `count` pings of `size` payload bytes, 50 ms apart, without fragmentation; returns how many came back.
pub(crate) fn ping(from: &Host, to: &str, count: u32, size: u32) -> u32 {
    let before = echo_replies(from);
    let out = from.attempt(&format!("ping -n -q -M do -c {count} -i 0.05 -W 1 -s {size} {to}"));
    let text = String::from_utf8_lossy(&out.stdout);
    let received = text.split(", ").find_map(|part| part.strip_suffix(" received"));
    let received = received.and_then(|n| n.parse().ok()).unwrap_or(0);
    if received == 0 || received >= count {
        return received;
    }
    // For what follows the first answer ping waits twice the longest round trip or 50 ms, no longer: on a busy
    // machine an answer may be later than that. The host counts it all the same.
    let begin = Instant::now();
    loop {
        let came = echo_replies(from).saturating_sub(before).min(count.into()) as u32;
        if came >= count || begin.elapsed() > Duration::from_secs(1) {
            return came.max(received);
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Answers to pings that have reached a host, both families, since its start.
fn echo_replies(host: &Host) -> u64 {
    sum_of_counters(host, "IcmpInEchoReps Icmp6InEchoReplies")
}

fn sum_of_counters(host: &Host, names: &str) -> u64 {
    let text = host.run(&format!("nstat -a -s -z {names}"));
    text.lines().filter_map(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok()).sum()
}

/// Pings until an answer comes (a handshake may have to be repeated after 5 s; a side whose session, or with
/// wireguard-go whose source address, is gone notices after 15 s), then demands that 3 of 3 come back.
pub(crate) fn must_reach(from: &Host, to: &str) {
    wait_until(&format!("{} reaches {to}", from.namespace), Duration::from_secs(20), || {
        ping(from, to, 1, 56) == 1
    });
    assert_eq!(ping(from, to, 3, 56), 3, "{} lost pings to {to}", from.namespace);
}

/// Which way an iperf3 test sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// From the client to the server.
    Up,
    /// From the server to the client.
    Down,
}

/// An iperf3 test.
#[derive(Clone)]
pub(crate) struct Flow<'a> {
    /// Who dials.
    pub(crate) client: &'a Arc<Host>,
    /// Who listens.
    pub(crate) server: &'a Arc<Host>,
    /// The listener's address.
    pub(crate) to: &'a str,
    /// Which way the bulk goes.
    pub(crate) way: Way,
    /// Bits per second of UDP as iperf3 takes them ("50M"); `None` is TCP.
    pub(crate) udp: Option<&'a str>,
    /// Length in seconds.
    pub(crate) seconds: u32,
    /// Parallel streams.
    pub(crate) streams: u32,
}

impl<'a> Flow<'a> {
    /// Two seconds of one TCP stream from client to server.
    pub(crate) fn tcp(client: &'a Arc<Host>, server: &'a Arc<Host>, to: &'a str) -> Self {
        Self { client, server, to, way: Way::Up, udp: None, seconds: 2, streams: 1 }
    }

    /// Two seconds of UDP at 50 Mbit/s from client to server.
    pub(crate) fn udp(client: &'a Arc<Host>, server: &'a Arc<Host>, to: &'a str) -> Self {
        Self { udp: Some("50M"), ..Self::tcp(client, server, to) }
    }

    /// Starts it; returns when its streams are connected, or after five seconds.
    pub(crate) fn start(&self) -> Running {
        let mut server = self.server.line("stdbuf -oL iperf3 -s -1 --forceflush");
        let mut server =
            server.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("iperf3 is installed");
        let mut said = BufReader::new(server.stdout.take().unwrap());
        let mut line = String::new();
        while !line.contains("listening") {
            line.clear();
            assert!(said.read_line(&mut line).unwrap() > 0, "the iperf3 server ended at once");
        }
        let (connected, begun) = mpsc::channel();
        // Drained, or a full pipe would stop the server.
        std::thread::spawn(move || {
            for line in said.lines().map_while(Result::ok) {
                if line.contains("connected to") {
                    let _ = connected.send(());
                }
            }
        });
        let mut line = format!("iperf3 -J -c {} -t {} -P {}", self.to, self.seconds, self.streams);
        line.push_str(&self.udp.map_or(" -C cubic".into(), |rate| format!(" -u -l 1200 -b {rate}")));
        if self.way == Way::Down {
            line.push_str(" -R");
        }
        let mut client = self.client.line(&line);
        let unread = self.udp.map(|_| {
            let hosts = [Arc::clone(self.client), Arc::clone(self.server)];
            let before = hosts.iter().map(|host| unread(host)).sum();
            (hosts, before)
        });
        let client = client.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("iperf3");
        // On a busy machine a second may pass before a program has begun, and what is done to the flow hits nothing. By
        // line: of itself the server says who is connected with its first report, a second later.
        let _ = begun.recv_timeout(Duration::from_secs(5));
        Running { client: Some(client), server, unread }
    }

    /// Runs it to its end.
    pub(crate) fn run(&self) -> Report {
        self.start().finish()
    }
}

/// An iperf3 test under way.
pub(crate) struct Running {
    client: Option<Child>,
    server: Child,
    /// The hosts, and what was [`unread`] on them at the start; of UDP only.
    unread: Option<([Arc<Host>; 2], u64)>,
}

impl Running {
    /// Waits for its end; a test that iperf3 itself calls failed fails ours.
    pub(crate) fn finish(mut self) -> Report {
        let output = self.client.take().expect("finished once").wait_with_output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        let json: Value = serde_json::from_str(&text).unwrap_or_else(|err| panic!("iperf3: {err}\n{text}"));
        assert!(json["error"].is_null(), "iperf3: {}", json["error"]);
        let mut report = Report::new(&json, self.unread.is_some());
        if let Some((hosts, before)) = &self.unread {
            let after: u64 = hosts.iter().map(|host| unread(host)).sum();
            report.unread = report.lost.min(after.saturating_sub(*before));
            report.lost -= report.unread;
        }
        report
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        for child in self.client.iter_mut().chain([&mut self.server]) {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// What iperf3 measured, summed over streams, at the receiver where it can be.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Report {
    /// Received bits per second.
    pub(crate) rate: f64,
    /// TCP segments sent again.
    pub(crate) retransmits: u64,
    /// UDP datagrams sent, as the receiver can tell.
    pub(crate) packets: u64,
    /// UDP datagrams lost, without those that were `unread`.
    pub(crate) lost: u64,
    /// UDP datagrams that found no room in the socket of a program that is not Ringway: iperf3's, or that of the other
    /// end of the tunnel. Their buffers hold 90 packets, and a busy machine may let nobody run for longer than that.
    pub(crate) unread: u64,
    /// UDP datagrams that came after a later one.
    pub(crate) out_of_order: u64,
}

impl Report {
    fn new(json: &Value, udp: bool) -> Self {
        let end = &json["end"];
        if !udp {
            return Self {
                rate: end["sum_received"]["bits_per_second"].as_f64().unwrap_or(0.0),
                retransmits: end["sum_sent"]["retransmits"].as_u64().unwrap_or(0),
                ..Self::default()
            };
        }
        let number = |name: &str| end["sum"][name].as_f64().unwrap_or(0.0);
        let streams = end["streams"].as_array().map(Vec::as_slice).unwrap_or_default();
        let packets = number("packets");
        Self {
            rate: number("bits_per_second") * (1.0 - number("lost_packets") / packets.max(1.0)),
            packets: packets as u64,
            lost: number("lost_packets") as u64,
            out_of_order: streams.iter().filter_map(|s| s["udp"]["out_of_order"].as_u64()).sum(),
            ..Self::default()
        }
    }
}

/// TCP's own view of order on a host (`/proc/net/netstat`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct TcpOrder {
    /// Segments that a receiver had to queue because an earlier one was missing: lost or overtaken.
    pub(crate) queued: u64,
    /// Times a sender learned of reordering.
    pub(crate) noticed: u64,
}

impl TcpOrder {
    /// Reads the counters of a host.
    pub(crate) fn of(host: &Host) -> Self {
        let text = host.run("nstat -a -s -z TcpExtTCPOFOQueue TcpExtTCPSACKReorder TcpExtTCPTSReorder");
        let of = |name: &str| -> u64 {
            let line = text.lines().find_map(|line| line.strip_prefix(name));
            line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or(0)
        };
        Self {
            queued: of("TcpExtTCPOFOQueue"),
            noticed: of("TcpExtTCPSACKReorder") + of("TcpExtTCPTSReorder"),
        }
    }
}

/// Datagrams that found no room in the buffer of a UDP socket of this host, both families, since its start.
pub(crate) fn receive_overflows(host: &Host) -> u64 {
    sum_of_counters(host, "UdpRcvbufErrors Udp6RcvbufErrors")
}

/// The same without Ringway's sockets, whose buffers are large and whose loss is its own.
fn unread(host: &Host) -> u64 {
    let sockets = host.run("ss -H -O -uamnp");
    let ringways: u64 = sockets
        .lines()
        .filter(|line| line.contains("((\"ringway"))
        .filter_map(|line| line.rsplit_once(",d")?.1.split(')').next()?.parse::<u64>().ok())
        .sum();
    receive_overflows(host).saturating_sub(ringways)
}

/// A tcpdump on one interface.
pub(crate) struct Capture {
    tcpdump: Child,
    file: PathBuf,
}

impl Capture {
    /// Starts to record the first `length` bytes of each packet that `filter` takes.
    pub(crate) fn start(host: &Host, interface: &str, length: u32, filter: &str) -> Self {
        let file = target().join(format!("{}-{interface}.pcap", host.namespace));
        let mut tcpdump = host.command("tcpdump");
        tcpdump.args(["-i", interface, "-s", &length.to_string(), "-B", "16384", "-Z", "root", "-n", "-w"]);
        tcpdump.arg(&file).args(filter.split_whitespace());
        let mut tcpdump = tcpdump.stderr(Stdio::piped()).spawn().expect("tcpdump is installed");
        let mut said = BufReader::new(tcpdump.stderr.take().unwrap());
        let mut line = String::new();
        while !line.contains("listening on") {
            line.clear();
            assert!(said.read_line(&mut line).unwrap() > 0, "tcpdump ended at once");
        }
        std::thread::spawn(move || std::io::copy(&mut said, &mut std::io::sink()));
        Self { tcpdump, file }
    }

    /// Ends it and returns the file.
    pub(crate) fn stop(mut self) -> PathBuf {
        machine(&format!("kill -INT {}", self.tcpdump.id()));
        self.tcpdump.wait().unwrap();
        self.file.clone()
    }

    /// Ends it, counts, and removes the file.
    pub(crate) fn arrivals(self) -> Arrivals {
        let file = self.stop();
        let arrivals = Arrivals::of(&file);
        let _ = std::fs::remove_file(file);
        arrivals
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        let _ = self.tcpdump.kill();
        let _ = self.tcpdump.wait();
    }
}

/// The IP packets of a capture file (link type raw or Ethernet, this machine's byte order), cut as recorded.
pub(crate) fn ip_packets(file: &Path) -> Vec<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(file).expect("the capture").read_to_end(&mut bytes).unwrap();
    let word = |at: usize| u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap()) as usize;
    assert_eq!(word(0), 0xa1b2_c3d4, "not a pcap file of microseconds");
    let link_header = if word(20) == 1 { 14 } else { 0 };
    let (mut packets, mut at) = (Vec::new(), 24);
    while at + 16 <= bytes.len() {
        let (from, to) = (at + 16, at + 16 + word(at + 8));
        if to > bytes.len() {
            break;
        }
        packets.push(bytes[(from + link_header).min(to)..to].to_vec());
        at = to;
    }
    packets
}

/// The UDP payloads of whole IPv4 packets without options.
pub(crate) fn udp_payloads(file: &Path) -> Vec<Vec<u8>> {
    let packets = ip_packets(file);
    packets.iter().filter(|p| p.len() > 28 && p[9] == 17).map(|p| p[28..].to_vec()).collect()
}

/// What arrived and in which order, by the IPv4 identification that Linux counts up within a TCP connection,
/// retransmissions included: loss does not look like reordering here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Arrivals {
    /// IPv4 TCP packets seen.
    pub(crate) packets: u64,
    /// Those that came after a later one of their flow.
    pub(crate) overtaken: u64,
}

/// How far behind the newest packet a late one may be; beyond that the recorder itself has missed thousands.
const FARTHEST: u16 = 8192;

impl Arrivals {
    /// Counts in a capture made at the receiver.
    pub(crate) fn of(file: &Path) -> Self {
        let mut newest: HashMap<[u8; 12], u16> = HashMap::new();
        let mut arrivals = Self::default();
        for packet in ip_packets(file) {
            if packet.len() < 34 || packet[0] != 0x45 || packet[9] != 6 {
                continue;
            }
            let flow: [u8; 12] = packet[12..24].try_into().unwrap();
            let id = u16::from_be_bytes([packet[4], packet[5]]);
            // What Linux sends on behalf of no connection (a SYN's answer, a reset, TIME-WAIT's acknowledgement) has
            // the identification 0 and no place in the count; one data packet in 65,536 goes unseen with them.
            if id == 0 {
                continue;
            }
            let last = newest.entry(flow).or_insert(id);
            arrivals.packets += 1;
            if (1..=FARTHEST).contains(&last.wrapping_sub(id)) {
                arrivals.overtaken += 1;
            } else {
                *last = id;
            }
        }
        arrivals
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A raw-IP capture with one TCP packet per identification.
    fn capture(ids: &[u16]) -> PathBuf {
        let mut bytes = Vec::new();
        for word in [0xa1b2_c3d4u32, 0, 0, 0, 96, 101] {
            bytes.extend(word.to_ne_bytes());
        }
        for id in ids {
            let mut packet = [0u8; 40];
            packet[0] = 0x45;
            packet[4..6].copy_from_slice(&id.to_be_bytes());
            packet[9] = 6;
            for word in [0u32, 0, 40, 40] {
                bytes.extend(word.to_ne_bytes());
            }
            bytes.extend(packet);
        }
        let file = target().join(format!("tmp/order-{}-{}.pcap", std::process::id(), ids.len()));
        std::fs::write(&file, bytes).unwrap();
        file
    }

    #[test]
    fn an_overtaken_packet_is_counted_across_the_wrap() {
        let file = capture(&[65_534, 65_535, 2, 1, 65_533, 3]);
        assert_eq!(Arrivals::of(&file), Arrivals { packets: 6, overtaken: 2 });
        std::fs::remove_file(file).unwrap();
    }

    #[test]
    fn gaps_equals_and_packets_of_no_connection_are_no_reordering() {
        let file = capture(&[0, 2_000, 2_040, 2_040, 2_900, 0, 0, 2_901]);
        assert_eq!(Arrivals::of(&file), Arrivals { packets: 5, overtaken: 0 });
        std::fs::remove_file(file).unwrap();
    }
}
