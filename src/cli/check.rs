//! `check`: how good the way to a host is.

use std::net::IpAddr;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use serde_json::json;

use super::admin::{print, print_json};
use super::ping::{described, times};
use super::say;
use crate::client::calls::check::{Check, CheckResult, check};
use crate::client::rounds::Summary;
use crate::gateway::failure::Failure;
use crate::net::name::InterfaceName;

/// Exit code of what makes no sense, as of a command line that is not understood.
const MISUSED: u8 = 2;

/// `check HOST[:PORT] [--send BYTES] [--receive BYTES] [--timeout SECONDS] [--via NAME] [--json]`
#[derive(Debug, Args)]
pub struct CheckArgs {
    /// A name or an address; with a port also a TCP connection to it: an echo service (port 7) for --send and
    /// --receive, discard (9) for --send, chargen (19) for --receive
    #[arg(value_name = "HOST[:PORT]", value_parser = place)]
    place: (String, Option<u16>),
    /// Send so many bytes to the port, and say how fast they were taken (k, M and G are powers of 1000)
    #[arg(long, value_name = "BYTES", default_value = "0", value_parser = bytes)]
    send: u64,
    /// Receive so many bytes from the port, and say how fast they came
    #[arg(long, value_name = "BYTES", default_value = "0", value_parser = bytes)]
    receive: u64,
    /// For all of it
    #[arg(long, value_name = "SECONDS", default_value_t = 10)]
    timeout: u32,
    /// Through this connection, whatever the routes are
    #[arg(long, value_name = "NAME")]
    via: Option<InterfaceName>,
    /// One JSON object
    #[arg(long)]
    json: bool,
}

/// Does it. Exit codes: 0 all is well, 1 the host or its port is not there, 2 misuse, 9 no answer in time.
///
/// # Errors
/// The standard output is closed.
pub fn run(args: &CheckArgs) -> anyhow::Result<ExitCode> {
    let (host, port) = args.place.clone();
    let checked = check(&Check {
        host,
        port,
        send: args.send,
        receive: args.receive,
        timeout: Duration::from_secs(args.timeout.into()),
        link: args.via.clone(),
    });
    let millis = |time: Duration| time.as_secs_f64() * 1e3;
    if args.json {
        print_json(&json!({
            "result": checked.result.code(),
            "problem": (!checked.said.is_empty()).then_some(&checked.said),
            "address": checked.address.map(|address| address.to_string()),
            "echo": {
                "sent": checked.rounds.sent,
                "received": checked.rounds.received,
                "loss": checked.rounds.loss(),
                "rtt_ms": times(&checked.rounds),
            },
            "connect_ms": checked.connect.map(millis),
            "sent_bits_per_second": checked.sent,
            "received_bits_per_second": checked.received,
        }))?;
    } else {
        let address = checked.address.map_or_else(String::new, |address| address.to_string());
        let mut text = String::new();
        if checked.rounds != Summary::default() {
            text += &format!("{address}: {}\n", described(&checked.rounds));
        }
        if let Some(time) = checked.connect {
            text += &format!("{address}: connected in {:.2} ms\n", millis(time));
        }
        for (what, rate) in [("sent", checked.sent), ("received", checked.received)] {
            if let Some(rate) = rate {
                text += &format!("{address}: {what} at {:.1} Mbit/s\n", rate / 1e6);
            }
        }
        print(&text)?;
        if !checked.said.is_empty() {
            say(&checked.said);
        }
    }
    Ok(ExitCode::from(match checked.result {
        CheckResult::Successful => 0,
        CheckResult::InvalidParameters => MISUSED,
        CheckResult::ConnectionFailed => Failure::Other.exit_code(),
        CheckResult::NoResponse => Failure::NoAnswer.exit_code(),
    }))
}

/// `HOST`, `HOST:PORT`, `[IPV6]:PORT`, or an IPv6 address.
fn place(word: &str) -> Result<(String, Option<u16>), String> {
    let bare = word.trim_start_matches('[').trim_end_matches(']');
    if bare.parse::<IpAddr>().is_ok() {
        return Ok((bare.to_owned(), None));
    }
    let Some((host, port)) = word.rsplit_once(':') else { return Ok((word.to_owned(), None)) };
    let port = port.parse().map_err(|_| format!("{port:?} is no port: 1 to 65535"))?;
    Ok((host.trim_start_matches('[').trim_end_matches(']').to_owned(), Some(port)))
}

/// A number, with k, M or G for powers of 1000.
fn bytes(word: &str) -> Result<u64, String> {
    let (digits, times) = match word.char_indices().last() {
        Some((at, 'k' | 'K')) => (&word[..at], 1_000),
        Some((at, 'M')) => (&word[..at], 1_000_000),
        Some((at, 'G')) => (&word[..at], 1_000_000_000),
        _ => (word, 1),
    };
    let number = digits.parse::<u64>().ok().and_then(|number| number.checked_mul(times));
    number.ok_or_else(|| "a number of bytes, as 500k or 10M".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_a_host_and_perhaps_a_port() {
        let told = |word: &str| place(word).unwrap();
        assert_eq!(told("host.example"), ("host.example".to_owned(), None));
        assert_eq!(told("host.example:7"), ("host.example".to_owned(), Some(7)));
        assert_eq!(told("10.0.0.1:9"), ("10.0.0.1".to_owned(), Some(9)));
        assert_eq!(told("[fd00::1]:9"), ("fd00::1".to_owned(), Some(9)));
        assert_eq!(
            (told("fd00::1"), told("[fd00::1]")),
            (("fd00::1".to_owned(), None), ("fd00::1".to_owned(), None))
        );
        assert!(place("host:65536").is_err() && place("host:").is_err());
    }

    #[test]
    fn bytes_have_units() {
        let told = ["0", "17", "5k", "10M", "1G"].map(|word| bytes(word).unwrap());
        assert_eq!(told, [0, 17, 5_000, 10_000_000, 1_000_000_000]);
        for wrong in ["", "k", "-1", "1T", "1.5M", "99999999999999999999G"] {
            assert!(bytes(wrong).is_err(), "{wrong}");
        }
    }
}
