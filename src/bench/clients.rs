//! `bench clients`: clients with sessions, and traffic over all of them.
//!
//! 1. all of them come in, so many handshakes at a time
//! 2. bursts of probes go round over the sessions, as many a second as was asked for, or as fast as one thread can
//! 3. what is still on its way comes back

use std::collections::VecDeque;
use std::net::SocketAddrV4;
use std::num::NonZeroU64;
use std::time::Duration;

use anyhow::bail;
use serde::Serialize;

use super::fleet::{Fleet, MAX_BURST, MAX_SIZE, Settings, TICK, Tally};
use super::latency::Quantiles;
use super::probe::LEAST;
use super::stop::Stop;
use crate::sys::clock;
use crate::sys::socket::MANY;
use crate::types::Time;

/// An initiation that was not answered for so long does not keep others back.
const SLOW: Duration = Duration::from_secs(1);
/// How long is waited for what is still on its way.
const DRAIN: Duration = Duration::from_millis(300);
/// A sender that is further behind than this does not make up for it.
const BEHIND: Duration = Duration::from_millis(100);
/// Bursts between two looks at what has come.
const BURSTS_PER_TURN: usize = 4 * MANY;

/// What goes through the tunnels.
#[derive(Clone, Copy, Debug)]
pub struct Traffic {
    /// Where to, behind or on the gateway.
    pub to: SocketAddrV4,
    /// Bytes of UDP payload, [`LEAST`] to [`MAX_SIZE`].
    pub size: usize,
    /// Datagrams of one session that follow each other, 1 to [`MAX_BURST`].
    pub burst: usize,
    /// Datagrams per second over all sessions; `None`: as fast as it goes.
    pub rate: Option<NonZeroU64>,
}

/// How it is done.
#[derive(Clone, Copy, Debug)]
pub struct Course {
    /// Handshakes under way at a time.
    pub window: usize,
    /// How long coming in may take, in all.
    pub patience: Duration,
    /// What follows; `None`: sessions without traffic.
    pub traffic: Option<Traffic>,
    /// How long that lasts.
    pub length: Duration,
}

/// What was measured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Report {
    /// Clients that came in.
    pub clients: u64,
    /// Until the last of them was in, seconds.
    pub all_in_seconds: f64,
    /// From initiation to response while they came in.
    pub handshake: Quantiles,
    /// How long traffic was sent, seconds.
    pub seconds: f64,
    /// Probes sent per second.
    pub sent_per_second: f64,
    /// Probes that came back per second.
    pub returned_per_second: f64,
    /// Share of the probes that did not come back, of 1.
    pub lost: f64,
    /// From a probe to its return.
    pub echo: Quantiles,
    /// Processor time of this process, seconds, for all of it.
    pub cpu_seconds: f64,
    /// What was counted, from the beginning to the end.
    pub tally: Tally,
}

/// Runs it; `said` is told what is going on.
///
/// # Errors
/// Settings beyond their limits, no sockets, or clients that do not come in.
pub fn run(
    settings: &Settings,
    course: &Course,
    eager: bool,
    stop: &Stop,
    mut said: impl FnMut(&str),
) -> anyhow::Result<Report> {
    if let Some(Traffic { size, burst, .. }) = course.traffic
        && (!(LEAST..=MAX_SIZE).contains(&size) || !(1..=MAX_BURST).contains(&burst))
    {
        bail!("datagrams have {LEAST} to {MAX_SIZE} bytes, bursts 1 to {MAX_BURST} of them");
    }
    said(&format!("making the keys of {} clients", settings.clients));
    let mut fleet = Fleet::new(settings, true, eager, stop)?;
    let (begin, cpu) = (clock::boottime(), clock::process_time());
    let clients = come_in(&mut fleet, course, stop)?;
    let mut report = Report {
        clients,
        all_in_seconds: clock::boottime().since(begin).as_secs_f64(),
        handshake: fleet.handshake_times.quantiles(),
        ..Report::default()
    };
    said(&format!("{clients} of {} in after {:.3} s", fleet.len(), report.all_in_seconds));
    if clients < fleet.len() as u64 && !stop.is_set() {
        bail!(
            "only {clients} of {} clients came in within {} s, with {} initiations and {} cookies: are they configured \
             at the gateway (`ringway bench keys` with the same --seed), is its key right, is {} reached?",
            fleet.len(),
            course.patience.as_secs_f64(),
            fleet.tally.initiations,
            fleet.tally.cookies,
            settings.endpoint
        );
    }
    let begin = clock::boottime();
    match &course.traffic {
        Some(traffic) => send(&mut fleet, traffic, begin + course.length, stop)?,
        None => hold(&mut fleet, begin + course.length, stop)?,
    }
    report.seconds = clock::boottime().since(begin).as_secs_f64();
    hold(&mut fleet, clock::boottime() + DRAIN, stop)?;
    report.tally = fleet.tally;
    report.cpu_seconds = clock::process_time().saturating_sub(cpu).as_secs_f64();
    report.echo = fleet.echo_times.quantiles();
    report.sent_per_second = fleet.tally.sent as f64 / report.seconds.max(1e-9);
    report.returned_per_second = fleet.tally.returned as f64 / report.seconds.max(1e-9);
    report.lost = 1.0 - fleet.tally.returned as f64 / (fleet.tally.sent as f64).max(1.0);
    Ok(report)
}

/// Has all come in; returns how many did.
pub(super) fn come_in(fleet: &mut Fleet, course: &Course, stop: &Stop) -> anyhow::Result<u64> {
    let end = clock::boottime() + course.patience;
    let mut next = 0;
    // Who was begun with, in that order; who is in, or is slow, leaves.
    let mut waiting = VecDeque::<(usize, Time)>::new();
    let mut missing = fleet.len();
    while missing > 0 && !stop.is_set() && clock::boottime() < end {
        fleet.receive();
        let now = fleet.now;
        waiting.retain(|(client, since)| !fleet.is_in(*client) && now.since(*since) < SLOW);
        while waiting.len() < course.window.max(1) && next < fleet.len() {
            fleet.connect(next);
            waiting.push_back((next, now));
            next += 1;
        }
        fleet.tick();
        // Counted only where it may be the end.
        if next == fleet.len() && waiting.is_empty() {
            missing = (0..fleet.len()).filter(|client| !fleet.is_in(*client)).count();
        }
        if missing > 0 {
            fleet.wait(if waiting.is_empty() { TICK / 10 } else { Duration::from_millis(1) })?;
        }
    }
    Ok((0..fleet.len()).filter(|client| fleet.is_in(*client)).count() as u64)
}

/// Takes what comes and serves timers until then.
fn hold(fleet: &mut Fleet, end: Time, stop: &Stop) -> anyhow::Result<()> {
    while !stop.is_set() && clock::boottime() < end {
        fleet.wait(TICK.min(end.since(clock::boottime())))?;
        fleet.receive();
        fleet.tick();
    }
    Ok(())
}

/// Sends traffic until then.
fn send(fleet: &mut Fleet, traffic: &Traffic, end: Time, stop: &Stop) -> anyhow::Result<()> {
    let Traffic { to, size, burst, rate } = *traffic;
    let interval = rate.map(|rate| Duration::from_nanos(1_000_000_000 * burst as u64 / rate));
    let mut due = clock::boottime();
    let mut next = 0;
    while !stop.is_set() && clock::boottime() < end {
        let now = clock::boottime();
        let wanted = match interval {
            None => BURSTS_PER_TURN,
            Some(interval) => {
                if now.since(due) > BEHIND {
                    due = now;
                }
                let owed = now.since(due).as_nanos() / interval.as_nanos().max(1);
                if now >= due { (owed as usize + 1).min(BURSTS_PER_TURN) } else { 0 }
            }
        };
        let mut left = wanted;
        while left > 0 {
            let group = fleet.group(next);
            let clients = group.start..group.end.min(group.start + left);
            let tried = clients.len();
            next = if clients.end >= fleet.len() { 0 } else { clients.end };
            fleet.send_bursts(clients, burst, size, to);
            left = left.saturating_sub(tried.max(1));
        }
        if let Some(interval) = interval {
            due = due + interval * wanted as u32;
        }
        let pause = interval.map_or(Duration::ZERO, |_| due.since(clock::boottime()).min(TICK));
        fleet.wait(pause)?;
        fleet.receive();
        fleet.tick();
    }
    Ok(())
}
