//! `switch`: turns offloads and the MSS clamp of a running device on or off, over its UAPI socket.

use std::io::{self, BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::str::FromStr;

use anyhow::{Context as _, bail};
use clap::Args;

use super::report::PATIENCE;
use crate::control::socket::{DIRECTORY, socket_path};
use crate::dataplane::offload::switches::Switch;
use crate::net::name::InterfaceName;

/// `switch IFNAME NAME=on|off…`
#[derive(Debug, Args)]
pub struct SwitchArgs {
    /// The device
    #[arg(value_name = "IFNAME")]
    name: InterfaceName,
    /// tun-read, tun-write, udp-send, udp-receive or mss-clamp, and `=on` or `=off`
    #[arg(value_name = "NAME=on|off", required = true)]
    turns: Vec<Turn>,
}

/// One `NAME=on|off`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Turn {
    switch: Switch,
    on: bool,
}

impl FromStr for Turn {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, state) = text.split_once('=').ok_or("NAME=on or NAME=off is wanted")?;
        let switch = Switch::named(name).ok_or_else(|| {
            format!(
                "no such switch; there are: {}",
                Switch::ALL.map(|s| s.name().replace('_', "-")).join(", ")
            )
        })?;
        let on = match state {
            "on" => true,
            "off" => false,
            other => return Err(format!("'{other}' is neither 'on' nor 'off'")),
        };
        Ok(Self { switch, on })
    }
}

/// Turns one switch after the other; the first that is refused ends it.
///
/// # Errors
/// The device is not served by Ringway, or refuses.
pub fn run(args: &SwitchArgs) -> anyhow::Result<()> {
    args.turns.iter().try_for_each(|turn| ask(&args.name, *turn))
}

fn ask(name: &InterfaceName, turn: Turn) -> anyhow::Result<()> {
    let path = socket_path(Path::new(DIRECTORY), name);
    let mut stream = UnixStream::connect(&path).with_context(|| path.display().to_string())?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let word = if turn.on { "on" } else { "off" };
    let switch = turn.switch.name();
    stream.write_all(format!("switch=1\n{switch}={word}\n\n").as_bytes())?;
    let answer = BufReader::new(stream).lines().next().transpose()?.unwrap_or_default();
    let errno = answer.strip_prefix("errno=").and_then(|number| number.parse::<i32>().ok());
    match errno.map(i32::saturating_abs) {
        Some(0) => Ok(()),
        None | Some(libc::EPROTO) => bail!("{name} is not served by Ringway, or by an older one"),
        Some(libc::EOPNOTSUPP) => bail!("{switch}: the kernel or the device has none"),
        Some(errno) => bail!("{switch}={word}: {}", io::Error::from_raw_os_error(errno)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_become_turns() {
        assert_eq!("udp-send=off".parse(), Ok(Turn { switch: Switch::UdpSend, on: false }));
        assert_eq!("mss_clamp=on".parse(), Ok(Turn { switch: Switch::MssClamp, on: true }));
        for (bad, says) in
            [("udp-send", "NAME=on"), ("udp-sent=on", "there are: tun-read"), ("tun-read=1", "neither")]
        {
            let error = bad.parse::<Turn>().unwrap_err();
            assert!(error.contains(says), "{bad}: {error}");
        }
    }
}
