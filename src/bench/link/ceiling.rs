//! What a link can carry at most, over loopback: whoever measures something through a link must stay below it.
//!
//! Sender, link and receiver share this machine's cores. So beside what came through stands what one core could carry
//! that had nothing else to do: datagrams by processor time of the link's thread.

use std::net::{Ipv4Addr, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow};
use serde::Serialize;

use super::schedule::Manners;
use super::{Counts, Link, Settings};
use crate::bench::stop::Stop;
use crate::bench::udp;
use crate::sys::poll;
use crate::sys::socket;

/// A kind of load.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Shape {
    /// Its name.
    pub name: &'static str,
    /// Bytes of each datagram.
    pub bytes: usize,
    /// Datagrams that come as one run (UDP_SEGMENT).
    pub run: usize,
}

/// What is tried: bulk as Ringway sends it, bulk as others do, and small packets; lengths as sealed.
pub const SHAPES: [Shape; 3] = [
    Shape { name: "runs of 44 x 1452 bytes", bytes: 1452, run: 44 },
    Shape { name: "single 1452 bytes", bytes: 1452, run: 1 },
    Shape { name: "single 128 bytes", bytes: 128, run: 1 },
];

/// What came through for one kind of load.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Ceiling {
    /// The load.
    pub shape: Shape,
    /// Datagrams sent into the link.
    pub offered: u64,
    /// What the link says.
    pub link: Counts,
    /// Datagrams that came out.
    pub delivered: u64,
    /// Datagrams per second that came out.
    pub per_second: f64,
    /// Gigabits per second of UDP payload that came out.
    pub gbit_s: f64,
    /// Datagrams per second of the link's processor time.
    pub per_core_second: f64,
    /// Gigabits of UDP payload per second of the link's processor time.
    pub per_core_gbit_s: f64,
}

/// Measures for `length` with each kind of load; `said` is told about each before it begins.
///
/// # Errors
/// No sockets or threads.
pub fn measure(
    manners: Manners,
    length: Duration,
    mut said: impl FnMut(&Shape),
) -> anyhow::Result<Vec<Ceiling>> {
    SHAPES
        .iter()
        .map(|shape| {
            said(shape);
            of(manners, length, *shape)
        })
        .collect()
}

fn of(manners: Manners, length: Duration, shape: Shape) -> anyhow::Result<Ceiling> {
    let loopback = (Ipv4Addr::LOCALHOST, 0);
    let sink = udp::bind(loopback.into()).context("a socket on loopback")?;
    let to = sink.local_addr()?;
    let link = Link::open(Settings { listen: loopback.into(), to, manners, clients: 1, length: None })?;
    let listen = link.address()?;
    let (end_link, end_sink) = (Stop::new()?, Stop::new()?);
    let (link_ended, sink_ended) = (end_link.clone(), end_sink.clone());
    let link = thread::Builder::new().spawn(move || link.run(&link_ended))?;
    let sink = thread::Builder::new().spawn(move || count(&sink, &sink_ended))?;

    let source = UdpSocket::bind(loopback)?;
    let payload = vec![0x5a; shape.bytes * shape.run];
    let segment = u16::try_from(shape.bytes).ok().filter(|_| shape.run > 1);
    let (mut offered, begin) = (0, Instant::now());
    while begin.elapsed() < length {
        if socket::send(&source, &payload, listen, None, 0, segment).is_ok() {
            offered += shape.run as u64;
        }
    }
    // What is still on its way.
    thread::sleep(manners.delay + Duration::from_millis(50));
    let seconds = begin.elapsed().as_secs_f64();
    end_link.set();
    let report = link.join().map_err(|_| anyhow!("the link's thread ended by a panic"))??;
    end_sink.set();
    let delivered = sink.join().map_err(|_| anyhow!("the receiving thread ended by a panic"))?;
    let gigabits = 8.0 * shape.bytes as f64 / 1e9;
    let per_second = delivered as f64 / seconds;
    let per_core_second = report.up.sent as f64 / report.cpu_seconds.max(1e-9);
    Ok(Ceiling {
        shape,
        offered,
        link: report.up,
        delivered,
        per_second,
        gbit_s: per_second * gigabits,
        per_core_second,
        per_core_gbit_s: per_core_second * gigabits,
    })
}

/// Counts the datagrams that come until it is stopped.
fn count(sink: &UdpSocket, stop: &Stop) -> u64 {
    use std::os::fd::AsFd as _;
    let mut buffers = udp::buffers();
    let mut count = 0;
    loop {
        match socket::recv_many(sink, &mut buffers) {
            Ok(received) => count += udp::count(&received),
            Err(_) if stop.is_set() => return count,
            Err(_) => {
                let _ = poll::readable(&[sink.as_fd(), stop.as_fd()], Duration::from_millis(100));
            }
        }
    }
}
