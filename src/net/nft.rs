//! nftables as Ringway uses it: whole rulesets as text through the program nft, small changes over netlink, which asks
//! for no program.

use std::io::{self, Write as _};
use std::process::{Command, Stdio};

mod netlink;

pub(super) use netlink::{
    DELETE_ELEMENTS, Family, Message, NEW_ELEMENTS, Notice, Notices, Transactions, attribute, nested, text,
};

/// Where nft is if the environment names no directory that holds it.
const NFT: [&str; 2] = ["nft", "/usr/sbin/nft"];

/// Why rules are not in force.
#[derive(Debug, thiserror::Error)]
pub enum NftError {
    /// The program is missing.
    #[error("the program nft is missing: install the package nftables")]
    NoNft,
    /// nft or the kernel refused.
    #[error("nftables: {0}")]
    Refused(String),
}

/// What nft takes in the name of a table, out of an interface's: each byte but letters, digits, `_`, `-` and `.` is `/`
/// and two hexadecimal digits. No interface has a slash in its name, so no two become the same.
pub(super) fn escaped(interface: &str) -> String {
    let mut name = String::new();
    for byte in interface.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' | b'-' | b'.' => name.push(char::from(byte)),
            _ => name.push_str(&format!("/{byte:02x}")),
        }
    }
    name
}

/// Runs `nft -f -`: all of `text` is in force afterwards, or nothing.
pub(super) fn load(text: &str) -> Result<(), NftError> {
    run(&["-f", "-"], text).map(drop)
}

/// Runs nft with `input` and returns what it printed.
pub(super) fn run(arguments: &[&str], input: &str) -> Result<Vec<u8>, NftError> {
    let failed = |error: io::Error| NftError::Refused(error.to_string());
    let spawn = |program: &&str| {
        let piped = Stdio::piped;
        Command::new(program).args(arguments).stdin(piped()).stdout(piped()).stderr(piped()).spawn()
    };
    let mut spawned = NFT.iter().map(spawn);
    let mut child = spawned
        .find(|child| !child.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::NotFound))
        .ok_or(NftError::NoNft)?
        .map_err(failed)?;
    // nft reads all before it says anything. If it ends early, its message says more than our broken pipe.
    let written = child.stdin.take().map_or(Ok(()), |mut stdin| stdin.write_all(input.as_bytes()));
    let output = child.wait_with_output().map_err(failed)?;
    if output.status.success() {
        written.map_err(failed)?;
        return Ok(output.stdout);
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let first = said.lines().next().unwrap_or("nft failed and did not say why");
    Err(NftError::Refused(first.trim().to_owned()))
}
