//! `doctor`: looks at the host and says what keeps a gateway from working well, why it matters, and what to do.

use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Args;

use crate::net::name::InterfaceName;

mod finding;
mod look;
mod probes;
mod services;

use finding::{Finding, Verdict};

/// `doctor [--json] [-v] [-i IFNAME]…`
#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// One JSON object
    #[arg(long)]
    json: bool,
    /// Say why it matters even of what is well
    #[arg(short, long)]
    verbose: bool,
    /// Look at this device only; may be repeated
    #[arg(short, long = "interface", value_name = "IFNAME")]
    interface: Vec<InterfaceName>,
    /// The listen port to look at where no device is served
    #[arg(long, default_value_t = 51820)]
    port: u16,
}

/// Looks, prints, and says by the exit code whether something fails: 0 no, 1 yes. Warnings are no failure.
///
/// # Errors
/// The standard output is gone.
pub fn run(args: &DoctorArgs) -> anyhow::Result<ExitCode> {
    let findings = look::everything(&args.interface, args.port);
    let text = if args.json {
        let verdict = worst(&findings);
        format!("{}\n", serde_json::json!({ "verdict": verdict, "findings": findings }))
    } else {
        text(&findings, args.verbose, super::show::colour())
    };
    match io::stdout().lock().write_all(text.as_bytes()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error).context("standard output"),
        _ => Ok(ExitCode::from(u8::from(worst(&findings) == Verdict::Fail))),
    }
}

fn worst(findings: &[Finding]) -> Verdict {
    findings.iter().map(|finding| finding.verdict).max().unwrap_or(Verdict::Ok)
}

/// A line per finding; below it, unless all is well, why it matters and what to do.
fn text(findings: &[Finding], verbose: bool, colour: bool) -> String {
    let mut out = String::new();
    for finding in findings {
        let (begin, end) = match finding.verdict {
            _ if !colour => ("", ""),
            Verdict::Ok => ("\x1b[32m", "\x1b[0m"),
            Verdict::Unknown => ("\x1b[36m", "\x1b[0m"),
            Verdict::Warn => ("\x1b[33m", "\x1b[0m"),
            Verdict::Fail => ("\x1b[1;31m", "\x1b[0m"),
        };
        let word = finding.verdict.word();
        let _ = writeln!(out, "{begin}{word:<8}{end}{:<12}{}", finding.probe, finding.found);
        if verbose || finding.verdict != Verdict::Ok {
            let _ = writeln!(out, "{:20}why: {}", "", finding.why);
        }
        if let Some(fix) = &finding.fix {
            let _ = writeln!(out, "{:20}do:  {fix}", "");
        }
    }
    out
}

#[cfg(test)]
mod tests;
