//! Links over loopback, and lines without sockets.

use std::num::NonZeroU64;
use std::thread::{self, JoinHandle};
use std::time::Instant;

use super::*;
use crate::bench::random::Random;

/// A running link, a client socket and the gateway's; no answer takes longer than 10 s.
struct Site {
    client: UdpSocket,
    gateway: UdpSocket,
    listen: SocketAddr,
    stop: Stop,
    link: JoinHandle<anyhow::Result<Report>>,
}

fn socket_on(host: &str) -> UdpSocket {
    let socket = UdpSocket::bind((host, 0)).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    socket::set_buffers(&socket, 8 << 20).unwrap();
    socket
}

impl Site {
    fn new(host: &str, manners: Manners, clients: usize) -> Self {
        let gateway = socket_on(host);
        let (listen, to) = (format!("{host}:0"), gateway.local_addr().unwrap());
        let listen = listen.parse().unwrap_or_else(|_| format!("[{host}]:0").parse().unwrap());
        let link = Link::open(Settings { listen, to, manners, clients, length: None }).unwrap();
        let (listen, stop) = (link.address().unwrap(), Stop::new().unwrap());
        let stopped = stop.clone();
        let link = thread::spawn(move || link.run(&stopped));
        Self { client: socket_on(host), gateway, listen, stop, link }
    }

    fn end(self) -> Report {
        self.stop.set();
        self.link.join().unwrap().unwrap()
    }
}

fn number(socket: &UdpSocket) -> (u32, SocketAddr) {
    let mut buffer = [0; 100];
    let (len, from) = socket.recv_from(&mut buffer).unwrap();
    assert!(len >= 4);
    (u32::from_be_bytes(buffer[..4].try_into().unwrap()), from)
}

#[test]
fn clients_reach_the_gateway_and_get_their_own_answers() {
    for host in ["127.0.0.1", "::1"] {
        let site = Site::new(host, Manners::default(), 2);
        let (one, two, three) = (&site.client, socket_on(host), socket_on(host));
        for (client, n) in [(one, 1_u32), (&two, 2), (&three, 3), (one, 4)] {
            client.send_to(&n.to_be_bytes(), site.listen).unwrap();
        }
        let came: Vec<_> = (0..3).map(|_| number(&site.gateway)).collect();
        assert_eq!(
            came.iter().map(|(n, _)| *n).collect::<Vec<_>>(),
            [1, 2, 4],
            "there is no place for the third"
        );
        assert_eq!((came[0].1, came[0].1 == came[1].1), (came[2].1, false), "each has a socket of its own");
        site.gateway.send_to(&20_u32.to_be_bytes(), came[1].1).unwrap();
        site.gateway.send_to(&10_u32.to_be_bytes(), came[0].1).unwrap();
        assert_eq!((number(&two), number(one)), ((20, site.listen), (10, site.listen)));
        // A stranger finds the way to a client closed.
        three.send_to(&30_u32.to_be_bytes(), came[0].1).unwrap();
        site.gateway.send_to(&11_u32.to_be_bytes(), came[0].1).unwrap();
        assert_eq!(number(one).0, 11);
        let report = site.end();
        assert_eq!((report.clients, report.turned_away), (2, 2));
        assert_eq!((report.up.sent, report.down.sent, report.down.sent_bytes), (3, 3, 12));
    }
}

#[test]
fn the_same_seed_loses_the_same_datagrams() {
    let manners = Manners { loss: 50_000, seed: 9, ..Manners::default() };
    let site = Site::new("127.0.0.1", manners, 1);
    let mut random = Random::new(9, 0);
    let expected: Vec<u32> = (0..2_000).filter(|_| !random.chance(50_000)).collect();
    // Up to one that comes: of what comes after it nobody would know when it was received.
    let total = expected[expected.len() - 1] + 1;
    let mut came = Vec::new();
    for n in 0..total {
        site.client.send_to(&n.to_be_bytes(), site.listen).unwrap();
        // Not more than the buffers hold, also on a busy machine.
        while came.len() < expected.iter().take_while(|m| **m <= n).count() {
            came.push(number(&site.gateway).0);
        }
    }
    assert_eq!(came, expected);
    let counts = site.end().up;
    assert_eq!(
        (counts.received, counts.lost, counts.sent),
        (u64::from(total), u64::from(total) - came.len() as u64, came.len() as u64)
    );
}

#[test]
fn delay_is_in_both_directions() {
    let delay = Duration::from_millis(30);
    let site = Site::new("127.0.0.1", Manners { delay, ..Manners::default() }, 1);
    let begin = Instant::now();
    site.client.send_to(&[0; 4], site.listen).unwrap();
    let (_, from) = number(&site.gateway);
    assert!(begin.elapsed() >= delay);
    site.gateway.send_to(&[0; 4], from).unwrap();
    number(&site.client);
    let took = begin.elapsed();
    assert!((2 * delay..20 * delay).contains(&took), "{took:?}");
    assert_eq!(site.end().up.waiting, 0);
}

#[test]
fn a_run_crosses_whole_and_what_is_too_long_for_one_goes_in_two() {
    let site = Site::new("127.0.0.1", Manners::default(), 1);
    socket::set_gro(&site.gateway, true).unwrap();
    let run: Vec<u8> = (0..100 * 1000).map(|n| (n / 1000) as u8).take(43_500).collect();
    socket::send(&site.client, &run, site.listen, None, 0, Some(1000)).unwrap();
    poll::readable(&[site.gateway.as_fd()], Duration::from_secs(10)).unwrap();
    let mut buffer = vec![0; 64 << 10];
    let got = socket::recv(&site.gateway, &mut buffer).unwrap();
    assert_eq!((got.len, got.segment), (43_500, Some(1000)));
    assert_eq!(buffer[..got.len], run);
    assert_eq!(site.end().up.sent, 44);
}

fn at(millis: u64) -> Time {
    Time::default() + Duration::from_millis(millis)
}

#[test]
fn a_run_keeps_together_what_is_not_lost_of_it() {
    let manners = Manners { loss: 300_000, seed: 4, ..Manners::default() };
    let (mut line, mut spare, mut random) = (Line::new(manners, 0), Vec::new(), Random::new(4, 0));
    let payload: Vec<u8> = (0..=99).collect();
    let arrival = Arrival { payload: &payload, segment: Some(12), tos: 3, headers: 28 };
    line.admit(0, &arrival, at(5), &mut spare);
    let kept: Vec<&[u8]> = payload.chunks(12).filter(|_| !random.chance(300_000)).collect();
    let [run] = &line.take_due(at(5), false)[..] else { panic!("one run") };
    assert_eq!((&run.bytes, run.count, run.tos), (&kept.concat(), kept.len(), 3));
    assert!(kept.len() < 9 && kept.len() > 2, "{}", kept.len());
    assert_eq!((line.cost, line.counts.lost), (0, 9 - kept.len() as u64));
}

#[test]
fn long_runs_are_cut_and_a_rate_parts_all() {
    let mut spare = Vec::new();
    let payload = vec![0; 65_500];
    let mut line = Line::new(Manners::default(), 0);
    line.admit(0, &Arrival { payload: &payload, segment: Some(500), tos: 0, headers: 28 }, at(0), &mut spare);
    let counts = |line: &mut Line, now| -> Vec<usize> {
        line.take_due(now, false).iter().map(|run| run.count).collect()
    };
    assert_eq!(counts(&mut line, at(0)), [64, 64, 3]);
    let rate = NonZeroU64::new(1_000_000);
    let mut line = Line::new(Manners { rate, ..Manners::default() }, 0);
    // 97 and 28 bytes at 1 Mbit/s are a millisecond.
    line.admit(
        0,
        &Arrival { payload: &payload[..291], segment: Some(97), tos: 0, headers: 28 },
        at(0),
        &mut spare,
    );
    assert_eq!(counts(&mut line, at(0)), [0; 0]);
    assert_eq!((counts(&mut line, at(2)), counts(&mut line, at(2))), (vec![1, 1], vec![]));
    assert_eq!((line.finish().waiting, line.finish().late_us_max), (1, 1000));
}

#[test]
fn by_one_socket_only_what_is_its_flows() {
    let (mut line, mut spare) = (Line::new(Manners::default(), 0), Vec::new());
    for flow in [0, 0, 1, 0] {
        line.admit(
            flow,
            &Arrival { payload: b"x", segment: Some(1), tos: 0, headers: 28 },
            at(0),
            &mut spare,
        );
    }
    let take = |line: &mut Line, shared| line.take_due(at(0), shared).len();
    assert_eq!((take(&mut line, false), take(&mut line, true), take(&mut line, true)), (2, 2, 0));
}

#[test]
fn a_line_has_a_limit() {
    let delay = Duration::from_secs(1);
    let (mut line, mut spare) = (Line::new(Manners { delay, ..Manners::default() }, 0), Vec::new());
    let payload = vec![0; 65_000];
    for _ in 0..MAX_WAITING / payload.len() + 10 {
        line.admit(
            0,
            &Arrival { payload: &payload, segment: Some(65_000), tos: 0, headers: 28 },
            at(0),
            &mut spare,
        );
    }
    assert!(line.cost < MAX_WAITING + 70_000 && line.counts.overflowed > 0, "{:?}", line.counts);
}

#[test]
fn the_ceiling_is_measured() {
    let all = ceiling::measure(Manners::default(), Duration::from_millis(100), |_| {}).unwrap();
    for ceiling in all {
        assert!(ceiling.delivered > 0 && ceiling.delivered <= ceiling.link.sent, "{ceiling:?}");
        assert!(ceiling.link.sent <= ceiling.offered && ceiling.per_core_second > 1_000.0, "{ceiling:?}");
    }
}

#[test]
fn what_no_link_can_do_is_refused() {
    let settings = Settings {
        listen: "127.0.0.1:0".parse().unwrap(),
        to: "127.0.0.1:9".parse().unwrap(),
        manners: Manners::default(),
        clients: 1,
        length: None,
    };
    let open = |settings| Link::open(settings).map(drop).unwrap_err().to_string();
    let slow = Manners { delay: Duration::from_secs(11), ..Manners::default() };
    assert!(open(Settings { manners: slow, ..settings }).contains("10 s"));
    assert!(open(Settings { clients: 0, ..settings }).contains("1 to 4096"));
    let taken = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let _holder = UdpSocket::bind(taken).unwrap();
    assert!(open(Settings { listen: taken, ..settings }).contains("listening at"));
}
