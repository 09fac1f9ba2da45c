//! Against servers of our own in a namespace of their own; what nobody honest answers.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, UdpSocket as StdUdp};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use proptest::prelude::*;
use simple_dns::ResourceRecord;
use simple_dns::rdata::{A, AAAA, CNAME};

use super::*;
use crate::sys::testing::{in_netns, ip};

const NAME: &str = "vpn.example.org";
const MARK: Mark = Mark(0x52);

fn block_on<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
}

fn v4(last: u8) -> Ipv4Addr {
    Ipv4Addr::new(198, 18, 0, last)
}

fn v6(last: u16) -> Ipv6Addr {
    Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, last)
}

/// The answer of a resolver that knows an alias, two IPv4 addresses and one of IPv6.
fn reply(query: &[u8], change: impl FnOnce(&mut Packet<'_>)) -> Vec<u8> {
    let asked = Packet::parse(query).unwrap();
    assert!(asked.has_flags(PacketFlag::RECURSION_DESIRED));
    let kind = asked.questions[0].qtype;
    let mut reply = asked.clone().into_reply();
    let (name, alias) = (asked.questions[0].qname.clone(), Name::new("gw.example.net").unwrap());
    let record = |name, data| ResourceRecord::new(name, CLASS::IN, 60, data);
    reply.answers.push(record(name, RData::CNAME(CNAME(alias.clone()))));
    if kind == QTYPE::TYPE(TYPE::A) {
        reply.answers.extend([1, 2].map(|last| record(alias.clone(), RData::A(A::from(v4(last))))));
    } else {
        reply.answers.push(record(alias, RData::AAAA(AAAA::from(v6(1)))));
    }
    change(&mut reply);
    reply.build_bytes_vec_compressed().unwrap()
}

/// A server on 127.0.0.N that says what `say` makes of each query; counts them.
fn serve(last: u8, say: impl Fn(&[u8]) -> Vec<Vec<u8>> + Send + 'static) -> (IpAddr, Arc<AtomicU32>) {
    let address = Ipv4Addr::new(127, 0, 0, last);
    let socket = StdUdp::bind((address, PORT)).unwrap();
    let count = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&count);
    std::thread::spawn(move || {
        let mut buffer = [0; 512];
        while let Ok((length, from)) = socket.recv_from(&mut buffer) {
            counted.fetch_add(1, Ordering::SeqCst);
            say(&buffer[..length]).iter().for_each(|answer| {
                socket.send_to(answer, from).unwrap();
            });
        }
    });
    (address.into(), count)
}

fn all() -> Vec<IpAddr> {
    vec![v6(1).into(), v4(1).into(), v4(2).into()]
}

#[test]
fn both_families_are_asked_for_and_come_in_turn() {
    in_netns(|| {
        let (server, asked) = serve(1, |query| vec![reply(query, |_| ())]);
        assert_eq!(block_on(lookup("VPN.example.org.", &[server], MARK)).unwrap(), all());
        assert_eq!(asked.load(Ordering::SeqCst), 2);
        // A family that has none, or whose answer is lost, is left out.
        let (server, _) = serve(2, |query| {
            vec![reply(query, |reply| {
                if reply.questions[0].qtype == QTYPE::TYPE(TYPE::AAAA) {
                    reply.answers.clear();
                }
            })]
        });
        assert_eq!(block_on(lookup(NAME, &[server], MARK)).unwrap(), [v4(1), v4(2)].map(IpAddr::from));
    });
}

#[test]
fn what_answers_another_question_is_not_heard_and_the_next_server_is_asked() {
    in_netns(|| {
        // Another number, another name, another type, a question, no message: then the answer.
        let (server, _) = serve(1, |query| {
            let other = |change: fn(&mut Packet<'_>)| {
                reply(query, |reply| {
                    reply.answers.clear();
                    change(reply);
                })
            };
            vec![
                other(|reply| reply.set_id(reply.id() ^ 1)),
                other(|reply| reply.questions[0].qname = Name::new("other.example.org").unwrap()),
                other(|reply| reply.questions[0].qtype = QTYPE::TYPE(TYPE::TXT)),
                other(|reply| reply.remove_flags(PacketFlag::RESPONSE)),
                vec![7; 40],
                reply(query, |_| ()),
            ]
        });
        assert_eq!(block_on(lookup(NAME, &[server], MARK)).unwrap(), all());
        let (failing, asked) =
            serve(2, |query| vec![reply(query, |reply| *reply.rcode_mut() = RCODE::ServerFailure)]);
        assert_eq!(block_on(lookup(NAME, &[failing, server], MARK)).unwrap(), all());
        assert_eq!(asked.load(Ordering::SeqCst), 2);
        let error = block_on(lookup(NAME, &[failing], MARK)).unwrap_err();
        assert!(error.to_string().contains("127.0.0.2 answers ServerFailure"), "{error}");
        assert_eq!(asked.load(Ordering::SeqCst), 2 + 2 * ROUNDS as u32);
        // One that is not there says so by ICMP.
        let nobody = IpAddr::from([127, 0, 0, 9]);
        assert_eq!(block_on(lookup(NAME, &[nobody, server], MARK)).unwrap(), all());
        assert!(matches!(block_on(lookup(NAME, &[], MARK)), Err(LookupError::NoServer)));
        for name in ["", "a..b", &"a".repeat(64), &["abc"; 80].join(".")] {
            let refused = block_on(lookup(name, &[server], MARK));
            assert!(matches!(refused, Err(LookupError::Name(_))), "{name:?}: {refused:?}");
        }
    });
}

#[test]
fn who_knows_that_there_is_none_ends_it_and_silence_ends_in_time() {
    in_netns(|| {
        let (server, _) = serve(1, |query| {
            vec![reply(query, |reply| {
                reply.answers.clear();
                *reply.rcode_mut() = RCODE::NameError;
            })]
        });
        let (next, asked) = serve(2, |query| vec![reply(query, |_| ())]);
        assert!(matches!(block_on(lookup(NAME, &[server, next], MARK)), Err(LookupError::NoAddress)));
        assert_eq!(asked.load(Ordering::SeqCst), 0);
        let (silent, asked) = serve(3, |_| vec![]);
        let begin = std::time::Instant::now();
        assert!(matches!(block_on(lookup(NAME, &[silent], MARK)), Err(LookupError::Silence)));
        assert!(begin.elapsed() < LONGEST + PATIENCE);
        assert_eq!(asked.load(Ordering::SeqCst), 4);
    });
}

#[test]
fn a_truncated_answer_comes_by_tcp_and_both_are_marked() {
    in_netns(|| {
        // Without the mark there is no way.
        ip("address add 198.18.9.1/32 dev lo");
        ip("rule del priority 0");
        ip("rule add fwmark 0x52 lookup local priority 1");
        ip("rule add iif lo fwmark 0 unreachable priority 2");
        ip("rule add lookup local priority 3");
        let at = SocketAddr::from(([198, 18, 9, 1], PORT));
        let (datagrams, listener) = (StdUdp::bind(at).unwrap(), TcpListener::bind(at).unwrap());
        // Its own answers are marked as well, or they would not leave.
        set_mark(&datagrams, MARK).unwrap();
        set_mark(&listener, MARK).unwrap();
        std::thread::spawn(move || {
            let mut buffer = [0; 512];
            while let Ok((length, from)) = datagrams.recv_from(&mut buffer) {
                let short = reply(&buffer[..length], |reply| {
                    reply.answers.clear();
                    reply.set_flags(PacketFlag::TRUNCATION);
                });
                datagrams.send_to(&short, from).unwrap();
            }
        });
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let mut length = [0; 2];
                stream.read_exact(&mut length).unwrap();
                let mut query = vec![0; u16::from_be_bytes(length).into()];
                stream.read_exact(&mut query).unwrap();
                let answer = reply(&query, |_| ());
                stream.write_all(&(answer.len() as u16).to_be_bytes()).unwrap();
                stream.write_all(&answer).unwrap();
            }
        });
        assert_eq!(block_on(lookup(NAME, &[at.ip()], MARK)).unwrap(), all());
        let unmarked = block_on(lookup(NAME, &[at.ip()], Mark(0)));
        assert!(matches!(unmarked, Err(LookupError::Unreachable(..))), "{unmarked:?}");
    });
}

#[test]
fn the_underlays_servers_are_those_of_now_and_before_without_the_tunnels() {
    let scratch = crate::sys::testing::Scratch::new("lookup");
    let file = scratch.0.join("resolv.conf");
    let text =
        "# a\nnameserver 100.64.0.1\nnameserver 127.0.0.53\nsearch x\nnameserver fd00::1 # b\nnameserver x\n";
    fs::write(&file, text).unwrap();
    let ip = |text: &str| text.parse::<IpAddr>().unwrap();
    let before = [ip("198.18.0.53"), ip("100.64.0.1"), ip("fd00::1")];
    let known = underlay(&file, &[ip("100.64.0.1")], &before[..1]);
    assert_eq!(known, ["fd00::1", "198.18.0.53", "127.0.0.53"].map(ip));
    // One that was there before the tunnel came is asked, whoever names it.
    assert_eq!(underlay(&file, &before[1..2], &before)[2], before[1]);
    assert_eq!(underlay(&scratch.0.join("none"), &[], &before), before);
    assert_eq!(servers(&"nameserver 198.18.0.1\n".repeat(20)).len(), MAX_SERVERS);
    assert_eq!(in_turn(1..30, 31..60).len(), MAX_ADDRESSES);
}

proptest! {
    #[test]
    fn no_bytes_are_too_odd(bytes in proptest::collection::vec(any::<u8>(), 0..600), text in ".{0,300}") {
        let _ = read(&bytes, NAME, TYPE::A, 7);
        let _ = (query(&text, TYPE::A, 7), servers(&text));
        // From something that is nearly an answer.
        let Some(asked) = query(NAME, TYPE::A, 7) else { return Ok(()) };
        let mut answer = reply(&asked, |_| ());
        for pair in bytes.chunks_exact(2).take(4) {
            let at = usize::from(pair[0]) % answer.len();
            answer[at] = pair[1];
        }
        let _ = read(&answer, NAME, TYPE::A, 7);
    }
}
