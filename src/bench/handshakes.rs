//! `bench handshakes`: handshakes and nothing else, as fast as the gateway answers. No keypair is ever used.

use std::collections::VecDeque;
use std::time::Duration;

use serde::Serialize;

use super::fleet::{Fleet, Settings, Tally};
use super::latency::Quantiles;
use super::stop::Stop;
use crate::sys::clock;
use crate::types::Time;

/// Between two handshakes of one client: its stamp must have grown (16.8 ms), and a gateway takes one initiation of
/// a client in 20 ms.
const GAP: Duration = Duration::from_millis(40);
/// An initiation that was not answered for so long is lost, or was dropped.
const LOST: Duration = Duration::from_secs(1);

/// What was measured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Report {
    /// How long, seconds.
    pub seconds: f64,
    /// Handshakes done.
    pub handshakes: u64,
    /// Handshakes per second.
    pub per_second: f64,
    /// Initiations that nobody answered within a second.
    pub unanswered: u64,
    /// From initiation to response.
    pub handshake: Quantiles,
    /// Processor time of this process, seconds.
    pub cpu_seconds: f64,
    /// What was counted.
    pub tally: Tally,
}

/// Keeps `window` handshakes under way for `length`; `said` is told what is going on.
///
/// # Errors
/// Settings beyond their limits, or no sockets.
pub fn run(
    settings: &Settings,
    window: usize,
    length: Duration,
    stop: &Stop,
    mut said: impl FnMut(&str),
) -> anyhow::Result<Report> {
    said(&format!("making the keys of {} clients", settings.clients));
    let mut fleet = Fleet::new(settings, false, true, stop)?;
    said(&format!("shaking hands for {} s", length.as_secs_f64()));
    let (begin, cpu) = (clock::boottime(), clock::process_time());
    let end = begin + length;
    let mut unanswered = 0;
    // Who may begin, and from when on; in that order.
    let mut idle: VecDeque<(usize, Time)> = (0..fleet.len()).map(|client| (client, begin)).collect();
    let mut busy = VecDeque::<(usize, Time)>::new();
    while !stop.is_set() && clock::boottime() < end {
        fleet.receive();
        let now = fleet.now;
        for _ in 0..busy.len() {
            let Some((client, since)) = busy.pop_front() else { break };
            // With a cookie it has begun once more since.
            match fleet.waits_since(client) {
                Some(_) if now.since(since) < LOST => busy.push_back((client, since)),
                waits => {
                    unanswered += u64::from(waits.is_some());
                    idle.push_back((client, now + GAP));
                }
            }
        }
        while busy.len() < window.max(1)
            && idle.front().is_some_and(|(_, from)| *from <= now)
            && let Some((client, _)) = idle.pop_front()
        {
            fleet.begin(client);
            busy.push_back((client, now));
        }
        fleet.wait(Duration::from_millis(1))?;
    }
    let seconds = clock::boottime().since(begin).as_secs_f64();
    let handshakes = fleet.tally.handshakes;
    Ok(Report {
        seconds,
        handshakes,
        per_second: handshakes as f64 / seconds.max(1e-9),
        unanswered,
        handshake: fleet.handshake_times.quantiles(),
        cpu_seconds: clock::process_time().saturating_sub(cpu).as_secs_f64(),
        tally: fleet.tally,
    })
}
