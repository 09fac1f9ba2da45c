//! `bench flood`: initiations that only look like some, from many addresses. Their mac1 is right, which costs the
//! gateway a look; the rest is random, which costs it an X25519 where nothing stands before that.

use std::net::SocketAddr;
use std::num::NonZeroU64;
use std::time::Duration;

use anyhow::{Context as _, bail};
use arrayvec::ArrayVec;
use serde::Serialize;

use super::identity::{check_sources, outer_source};
use super::random::Random;
use super::stop::Stop;
use super::udp;
use crate::noise::cookie::PeerCookie;
use crate::sys::clock;
use crate::sys::socket::{self, MANY, Outgoing};
use crate::types::{Prefix, PublicKey};
use crate::wire::wireguard::INITIATION_LEN;

/// Forgeries that are made before it begins and sent in turn: the gateway does not remember what it refused.
const FORGERIES: usize = 16_384;
/// Batches between two looks at the clock.
const BATCHES: usize = 16;
/// How long it sleeps when it is early.
const PAUSE: Duration = Duration::from_micros(200);
/// Whoever is further behind than this does not make up for it.
const BEHIND: Duration = Duration::from_millis(100);

/// A flood.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// The gateway's address.
    pub endpoint: SocketAddr,
    /// Its public key.
    pub gateway_key: PublicKey,
    /// Initiations per second.
    pub rate: NonZeroU64,
    /// How long.
    pub length: Duration,
    /// Local addresses that they come from in turn; `None`: one.
    pub sources: Option<Prefix>,
    /// What the forgeries are made from.
    pub seed: u64,
}

/// What was done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Report {
    /// How long, seconds.
    pub seconds: f64,
    /// Initiations sent.
    pub sent: u64,
    /// Initiations per second.
    pub per_second: f64,
    /// Initiations that the kernel refused to send.
    pub refused: u64,
    /// Answers, which are cookie replies.
    pub answers: u64,
    /// Processor time of this process, seconds.
    pub cpu_seconds: f64,
}

/// Sends it.
///
/// # Errors
/// No socket, or a prefix that holds no addresses to send from.
pub fn run(settings: &Settings, stop: &Stop) -> anyhow::Result<Report> {
    let Settings { endpoint, gateway_key, rate, length, sources, seed } = *settings;
    check_sources(sources, endpoint)?;
    let socket = udp::bind_towards(endpoint).context("a UDP socket")?;
    let forgeries = forge(&gateway_key, seed);
    let mut buffers = udp::buffers();
    let (begin, cpu) = (clock::boottime(), clock::process_time());
    let (mut report, mut due, mut number) = (Report::default(), begin, 0_usize);
    let interval = Duration::from_nanos(1_000_000_000 * MANY as u64 / rate);
    while !stop.is_set() {
        let now = clock::boottime();
        if now.since(begin) >= length {
            break;
        }
        if now < due {
            std::thread::sleep(PAUSE.min(due.since(now)));
            continue;
        }
        if now.since(due) > BEHIND {
            due = now;
        }
        for _ in 0..BATCHES {
            if due > now {
                break;
            }
            due = due + interval;
            let batch: ArrayVec<Outgoing<'_>, MANY> = (number..number + MANY)
                .filter_map(|n| {
                    Some(Outgoing {
                        payload: forgeries.get(n % FORGERIES)?,
                        remote: endpoint,
                        source: sources.and_then(|sources| outer_source(sources, n)),
                        tos: 0,
                        segment: None,
                    })
                })
                .collect();
            number += MANY;
            let taken = socket::send_many(&socket, &batch);
            if let (Err(error), 0) = (&taken, report.sent) {
                let of = batch.first().and_then(|first| first.source).map(|source| source.addr);
                bail!(
                    "sending to {endpoint} from {of:?}: {error} (are the addresses of --sources local here?)"
                );
            }
            let taken = taken.unwrap_or(0) as u64;
            report.sent += taken;
            report.refused += MANY as u64 - taken;
        }
        while let Ok(answers) = socket::recv_many(&socket, &mut buffers) {
            report.answers += udp::count(&answers);
        }
    }
    report.seconds = clock::boottime().since(begin).as_secs_f64();
    report.per_second = report.sent as f64 / report.seconds.max(1e-9);
    report.cpu_seconds = clock::process_time().saturating_sub(cpu).as_secs_f64();
    Ok(report)
}

/// Initiations to the owner of a key that nobody made, but for mac1.
fn forge(key: &PublicKey, seed: u64) -> Vec<[u8; INITIATION_LEN]> {
    let (mut random, mut macs) = (Random::new(seed, 1), PeerCookie::new(key));
    (0..FORGERIES)
        .map(|_| {
            let mut message = [0; INITIATION_LEN];
            random.fill(&mut message);
            message[..4].copy_from_slice(&[1, 0, 0, 0]);
            macs.finish(&mut message, clock::boottime());
            message
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::net::UdpSocket;

    use super::*;
    use crate::noise::cookie::CookieChecker;
    use crate::wire::wireguard::Kind;

    #[test]
    fn forgeries_pass_for_initiations_until_one_looks() {
        let key = PublicKey([7; 32]);
        let mut checker = CookieChecker::default();
        checker.set_public_key(Some(&key));
        let forgeries = forge(&key, 1);
        assert!(forgeries.iter().all(|m| Kind::of(m) == Some(Kind::Initiation) && checker.check_mac1(m)));
        assert_eq!(forgeries.iter().collect::<HashSet<_>>().len(), FORGERIES);
    }

    #[test]
    fn a_flood_has_its_rate_and_its_sources() {
        let gateway = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket::set_buffers(&gateway, 8 << 20).unwrap();
        let settings = Settings {
            endpoint: gateway.local_addr().unwrap(),
            gateway_key: PublicKey([7; 32]),
            rate: NonZeroU64::new(2_000).unwrap(),
            length: Duration::from_millis(300),
            sources: Some("127.9.0.0/28".parse().unwrap()),
            seed: 1,
        };
        let report = run(&settings, &Stop::new().unwrap()).unwrap();
        // On a busy machine it may be late, never early.
        assert!((16..=616).contains(&report.sent) && report.refused == 0, "{report:?}");
        let mut buffer = [0; 200];
        let sources: HashSet<_> = (0..report.sent)
            .map(|_| {
                let (len, from) = gateway.recv_from(&mut buffer).unwrap();
                assert_eq!(len, INITIATION_LEN);
                from.ip()
            })
            .collect();
        assert_eq!(sources.len(), 14, "all hosts of the prefix");
        let nowhere = Some("198.18.3.0/24".parse().unwrap());
        let error = run(&Settings { sources: nowhere, ..settings }, &Stop::new().unwrap()).unwrap_err();
        assert!(error.to_string().contains("198.18.3.1"), "{error}");
    }
}
