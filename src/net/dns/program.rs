//! resolvconf(8), by the arguments that wg-quick(8) gives it.

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use super::{DnsError, Settings, lines};
use crate::net::name::InterfaceName;

/// Under which name resolvconf knows the tunnel.
fn record(link: &InterfaceName) -> String {
    format!("{link}.ringway")
}

/// Has the tunnel's servers asked, and no others (`-x`).
pub(super) fn add(program: &Path, settings: &Settings) -> Result<(), DnsError> {
    run(program, &["-a", &record(&settings.link), "-m", "0", "-x"], &lines(settings))
}

/// None of that tunnel is as good (`-f`).
pub(super) fn delete(program: &Path, link: &InterfaceName) -> Result<(), DnsError> {
    run(program, &["-f", "-d", &record(link)], "")
}

fn run(program: &Path, arguments: &[&str], input: &str) -> Result<(), DnsError> {
    let failed = |error: std::io::Error| DnsError::Program(error.to_string());
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(failed)?;
    let written = child.stdin.take().map_or(Ok(()), |mut stdin| stdin.write_all(input.as_bytes()));
    let output = child.wait_with_output().map_err(failed)?;
    if output.status.success() {
        // It reads its input only where it needs it.
        return if input.is_empty() { Ok(()) } else { written.map_err(failed) };
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(DnsError::Program(said.lines().next().unwrap_or("it failed and did not say why").trim().to_owned()))
}
