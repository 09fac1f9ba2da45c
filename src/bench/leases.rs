//! `bench leases`: clients that ask for leases through their tunnels, one request after the other. What is answered was
//! stored by the gateway before.

use std::collections::VecDeque;
use std::time::Duration;

use anyhow::bail;
use serde::Serialize;

use super::clients::{Course, come_in};
use super::fleet::{Fleet, Settings, Tally};
use super::latency::Quantiles;
use super::stop::Stop;
use crate::sys::clock;
use crate::types::Time;

/// Between two requests of one client: a gateway reads 10 frames of a client a second, and 20 at first.
const GAP: Duration = Duration::from_millis(110);
/// A request that was not answered for so long is lost.
const LOST: Duration = Duration::from_secs(2);

/// What was measured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Report {
    /// How long, seconds.
    pub seconds: f64,
    /// Leases given and renewed per second.
    pub per_second: f64,
    /// Requests that nobody answered within two seconds.
    pub unanswered: u64,
    /// From a request to its answer.
    pub answer: Quantiles,
    /// What was counted.
    pub tally: Tally,
}

/// Has all come in, then keeps `course.window` requests under way for `course.length`; `said` is told what is going on.
///
/// # Errors
/// Settings beyond their limits, no sockets, or clients that do not come in.
pub fn run(
    settings: &Settings,
    course: &Course,
    stop: &Stop,
    mut said: impl FnMut(&str),
) -> anyhow::Result<Report> {
    let mut fleet = Fleet::new(settings, true, true, stop)?;
    let clients = come_in(&mut fleet, course, stop)?;
    if clients < fleet.len() as u64 {
        bail!("only {clients} of {} clients came in: are they configured at the gateway?", fleet.len());
    }
    said(&format!("{clients} in; asking for {} s", course.length.as_secs_f64()));
    let begin = clock::boottime();
    let end = begin + course.length;
    let mut unanswered = 0;
    // Who may ask, and from when on; in that order.
    let mut idle: VecDeque<(usize, Time)> = (0..fleet.len()).map(|client| (client, begin)).collect();
    let mut busy = VecDeque::<usize>::new();
    while !stop.is_set() && clock::boottime() < end {
        fleet.receive();
        fleet.tick();
        let now = fleet.now;
        for _ in 0..busy.len() {
            let Some(client) = busy.pop_front() else { break };
            match fleet.asks_since(client) {
                Some(since) if now.since(since) < LOST => busy.push_back(client),
                waits => {
                    unanswered += u64::from(waits.is_some());
                    idle.push_back((client, now + GAP));
                }
            }
        }
        while busy.len() < course.window.max(1)
            && idle.front().is_some_and(|(_, from)| *from <= now)
            && let Some((client, _)) = idle.pop_front()
        {
            fleet.ask(client);
            busy.push_back(client);
        }
        fleet.wait(Duration::from_millis(1))?;
    }
    let seconds = clock::boottime().since(begin).as_secs_f64();
    Ok(Report {
        seconds,
        per_second: fleet.tally.leases as f64 / seconds.max(1e-9),
        unanswered,
        answer: fleet.lease_times.quantiles(),
        tally: fleet.tally,
    })
}
