//! `bench echo`: who answers behind the gateway. Sends every datagram back to where it came from, or only counts, and
//! tells what of [`Probe`]s came in order.

use std::collections::HashMap;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsFd as _;
use std::time::Duration;

use anyhow::Context as _;
use arrayvec::ArrayVec;
use serde::Serialize;

use super::identity::MAX_CLIENTS;
use super::probe::Probe;
use super::stop::Stop;
use super::udp;
use crate::sys::socket::{self, MANY, Outgoing};
use crate::sys::{clock, poll};
use crate::types::Time;

/// Longest sleep: a length in time ends this late at most.
const HEARTBEAT: Duration = Duration::from_millis(100);

/// What came.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Report {
    /// Datagrams.
    pub received: u64,
    /// Bytes of their payload.
    pub received_bytes: u64,
    /// Datagrams sent back.
    pub returned: u64,
    /// Clients seen.
    pub clients: u64,
    /// Datagrams that came after a later one of the same client.
    pub reordered: u64,
    /// From the first to the last, seconds.
    pub seconds: f64,
    /// Datagrams per second of that time.
    pub per_second: f64,
}

/// A socket that is open.
#[derive(Debug)]
pub struct Echo {
    socket: UdpSocket,
    /// Whether it answers.
    answers: bool,
    newest: HashMap<u32, u64>,
    first: Option<Time>,
    last: Time,
    report: Report,
}

impl Echo {
    /// Opens it.
    ///
    /// # Errors
    /// An address that cannot be bound.
    pub fn open(listen: SocketAddr, answers: bool) -> anyhow::Result<Self> {
        let socket = udp::bind(listen).with_context(|| format!("listening at {listen}"))?;
        let (newest, last, report) = (HashMap::new(), Time::default(), Report::default());
        Ok(Self { socket, answers, newest, first: None, last, report })
    }

    /// Where it listens.
    ///
    /// # Errors
    /// None is known.
    pub fn address(&self) -> std::io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// Answers until it is stopped or its time is over.
    ///
    /// # Errors
    /// poll(2) fails for good.
    pub fn run(mut self, length: Option<Duration>, stop: &Stop) -> anyhow::Result<Report> {
        let mut buffers = udp::buffers();
        let end = length.map(|length| clock::boottime() + length);
        while !stop.is_set() && end.is_none_or(|end| clock::boottime() < end) {
            if !self.receive(&mut buffers) {
                poll::readable(&[self.socket.as_fd(), stop.as_fd()], HEARTBEAT).context("waiting")?;
            }
        }
        let seconds = self.first.map_or(0.0, |first| self.last.since(first).as_secs_f64());
        self.report.seconds = seconds;
        self.report.per_second = self.report.received as f64 / seconds.max(1e-9);
        self.report.clients = self.newest.len() as u64;
        Ok(self.report)
    }

    /// Takes what is there; false if there was nothing.
    fn receive(&mut self, buffers: &mut [Box<[u8]>]) -> bool {
        let Ok(received) = socket::recv_many(&self.socket, buffers) else { return false };
        self.last = clock::boottime();
        self.first.get_or_insert(self.last);
        let mut outgoing = ArrayVec::<Outgoing<'_>, MANY>::new();
        for (received, buffer) in received.into_iter().zip(buffers) {
            let Ok(received) = received else { continue };
            let Some(payload) = buffer.get(..received.len) else { continue };
            udp::datagrams(payload, received.segment).for_each(|datagram| self.count(datagram));
            let tos = received.tos;
            outgoing.push(Outgoing {
                payload,
                remote: received.remote,
                source: None,
                tos,
                segment: received.segment.filter(|segment| usize::from(*segment) < payload.len()),
            });
        }
        if self.answers {
            self.answer(&outgoing);
        }
        true
    }

    fn count(&mut self, datagram: &[u8]) {
        self.report.received += 1;
        self.report.received_bytes += datagram.len() as u64;
        let Some(probe) = Probe::parse(datagram).filter(|probe| (probe.client as usize) < MAX_CLIENTS) else {
            return;
        };
        let newest = self.newest.entry(probe.client).or_default();
        self.report.reordered += u64::from(probe.sequence < *newest);
        *newest = (*newest).max(probe.sequence);
    }

    fn answer(&mut self, mut outgoing: &[Outgoing<'_>]) {
        while !outgoing.is_empty() {
            // What cannot go (a full queue) is lost, as on any network.
            let taken = socket::send_many(&self.socket, outgoing);
            let (done, rest) =
                outgoing.split_at_checked(taken.as_ref().map_or(1, |n| (*n).max(1))).unwrap_or_default();
            if taken.is_ok() {
                let returned = done.iter().flat_map(|run| udp::datagrams(run.payload, run.segment));
                self.report.returned += returned.count() as u64;
            }
            outgoing = rest;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn what_comes_is_counted_and_goes_back() {
        for answers in [true, false] {
            let echo = Echo::open("127.0.0.1:0".parse().unwrap(), answers).unwrap();
            let to = echo.address().unwrap();
            let stop = Stop::new().unwrap();
            let stopped = stop.clone();
            let echo = thread::spawn(move || echo.run(None, &stopped).unwrap());
            let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
            socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
            let payload = |client: u32, sequence: u64| {
                [&client.to_be_bytes()[..], &sequence.to_be_bytes(), &[0; 8]].concat()
            };
            let run: Vec<u8> = [payload(1, 0), payload(1, 2), payload(2, 1), payload(1, 1)].concat();
            socket::send(&socket, &run, to, None, 0, Some(20)).unwrap();
            socket.send_to(b"other", to).unwrap();
            if answers {
                let mut buffer = [0; 100];
                let lens: Vec<_> = (0..5).map(|_| socket.recv(&mut buffer).unwrap()).collect();
                assert_eq!((lens, &buffer[..5]), (vec![20, 20, 20, 20, 5], &b"other"[..]));
            } else {
                thread::sleep(Duration::from_millis(200));
            }
            stop.set();
            let report = echo.join().unwrap();
            assert_eq!((report.received, report.received_bytes, report.clients), (5, 85, 2));
            assert_eq!((report.returned, report.reordered), (if answers { 5 } else { 0 }, 1));
        }
    }
}
