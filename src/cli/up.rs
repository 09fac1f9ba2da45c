//! `up`: connects this host to a gateway, by a profile, or by an invite that becomes one.

use std::env;
use std::fs::DirBuilder;
use std::num::NonZeroU16;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::Args;
use tracing::level_filters::LevelFilter;

use super::{join, logging, say};
use crate::client::connection::check_privilege;
use crate::config::LogFormat;
use crate::config::profile::{self, DIRECTORY};
use crate::gateway::client::{self, KillSwitch, Options, place};
use crate::net::name::InterfaceName;
use crate::wire::invite::SCHEME;

/// Letters of a device's name (IFNAMSIZ of linux/if.h less its end).
const LONGEST_NAME: usize = 15;
/// How long joining may take.
const JOINING: Duration = Duration::from_secs(60);
/// The longest time of a lease, seconds.
const LEASE_KNOB: &str = "RINGWAY_TEST_LEASE";

/// `up PROFILE|FILE|URI|- [--name NAME] [--kill-switch WHEN] [--background]`
#[derive(Debug, Args)]
pub struct UpArgs {
    /// A profile below /etc/ringway/profiles by its name; a file NAME.conf as wg-quick reads it; or an invite,
    /// ringway://invite/…, or - to read one from the standard input: it is joined first, and kept as a profile
    #[arg(value_name = "PROFILE|FILE|URI")]
    profile: String,
    /// What the profile of an invite, and its device, is called; else as the invite
    #[arg(long, value_name = "NAME")]
    name: Option<InterfaceName>,
    /// Let nothing leave this host but by the tunnel: auto (if the profile takes everything), on, local (on, with
    /// private networks within reach), off; always and always-local are on and local until `ringway down --force`,
    /// also after the end
    #[arg(long, value_name = "WHEN", default_value = "auto", value_parser = kill_switch)]
    kill_switch: KillSwitch,
    /// Workers, each with a core, a queue and a socket of its own, or auto: one per core; a single one carries several
    /// gigabits a second
    #[arg(long, value_name = "N", default_value_t = NonZeroU16::MIN, value_parser = super::device::workers)]
    workers: NonZeroU16,
    /// Return once the gateway has answered
    #[arg(long)]
    background: bool,
    /// The least level that is logged: silent, error, warn, info, debug
    #[arg(long, value_name = "LEVEL", value_parser = logging::level_argument)]
    log: Option<LevelFilter>,
}

/// Does it.
///
/// # Errors
/// What is wrong with the profile, or what serving says.
pub fn run(args: &UpArgs) -> anyhow::Result<()> {
    logging::start(args.log.unwrap_or(LevelFilter::WARN), LogFormat::Text);
    check_privilege()?;
    let (name, path) = match args.profile == "-" || args.profile.starts_with(SCHEME) {
        true => joined(&args.profile, args.name.as_ref())?,
        false if args.name.is_some() => bail!("--name is for invites: a profile is named after its file"),
        false => place(&args.profile).context("a profile is named after its device")?,
    };
    let profile = profile::read(&path)?;
    if profile.save_config {
        tracing::warn!("SaveConfig: the profile stays as it is");
    }
    client::run(Options {
        name,
        profile,
        path,
        kill_switch: args.kill_switch,
        workers: args.workers,
        background: args.background,
        limits: super::device::limits()?,
        longest_lease: longest_lease(env::var(LEASE_KNOB).ok())?,
        say: |line| say(line),
        each_second: logging::tick,
    })
}

/// The profile of an invite: who has joined by it before is not asked to do so again. It comes from the gateway's
/// answer alone, so no command is in it.
fn joined(word: &str, name: Option<&InterfaceName>) -> anyhow::Result<(InterfaceName, PathBuf)> {
    let invite = join::read(word)?;
    let name = match name {
        Some(name) => name.clone(),
        // Letters and digits, but more of them than a device's name has.
        None => {
            invite.id.chars().take(LONGEST_NAME).collect::<String>().parse().context("the invite's id")?
        }
    };
    let path = Path::new(DIRECTORY).join(format!("{name}.conf"));
    if !path.exists() {
        let made = DirBuilder::new().recursive(true).mode(0o700).create(DIRECTORY);
        made.with_context(|| DIRECTORY.to_owned())?;
        join::enter(&invite, &path, JOINING)?;
        say(format_args!("joined: the profile is {}, `ringway up {name}` from now on", path.display()));
    }
    Ok((name, path))
}

/// As long as the gateway says; a debug build shortens it for tests (see docs/decisions/0004-test-knobs.md).
fn longest_lease(value: Option<String>) -> anyhow::Result<Duration> {
    match value {
        Some(seconds) if cfg!(debug_assertions) => {
            let seconds = seconds.parse().with_context(|| format!("{LEASE_KNOB}={seconds} is no number"))?;
            tracing::warn!(seconds, "{LEASE_KNOB} is set: for tests only");
            Ok(Duration::from_secs(seconds))
        }
        _ => Ok(Duration::MAX),
    }
}

fn kill_switch(word: &str) -> Result<KillSwitch, &'static str> {
    match word {
        "auto" => Ok(KillSwitch::Auto),
        "on" => Ok(KillSwitch::On { local: false }),
        "local" => Ok(KillSwitch::On { local: true }),
        "always" => Ok(KillSwitch::Stays { local: false }),
        "always-local" => Ok(KillSwitch::Stays { local: true }),
        "off" => Ok(KillSwitch::Off),
        _ => Err("it is none of auto, on, local, always, always-local, off"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::profile::DIRECTORY;

    #[test]
    fn a_word_is_a_profile_and_anything_else_a_file() {
        let told = |word: &str| {
            let (name, path) = place(word).unwrap();
            (name.to_string(), path.display().to_string())
        };
        assert_eq!(told("office"), ("office".to_owned(), "/etc/ringway/profiles/office.conf".to_owned()));
        assert_eq!(told("/a/b/wg0.conf"), ("wg0".to_owned(), "/a/b/wg0.conf".to_owned()));
        assert_eq!(told("/a/b/wg0"), ("wg0".to_owned(), "/a/b/wg0".to_owned()));
        let (name, path) = told("wg0.conf");
        assert!(name == "wg0" && path.starts_with('/') && !path.starts_with(DIRECTORY), "{path}");
        assert!(
            place("/a/much-too-long-a-name.conf")
                .unwrap_err()
                .to_string()
                .contains("is no name for a connection")
        );
    }
}
