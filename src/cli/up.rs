//! `up`: connects this host to a gateway, by a profile.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, anyhow};
use clap::Args;
use tracing::level_filters::LevelFilter;

use super::{logging, say};
use crate::client::connection::check_privilege;
use crate::config::LogFormat;
use crate::config::profile::{self, DIRECTORY};
use crate::gateway::client::{self, KillSwitch, Options};
use crate::net::name::InterfaceName;

/// `up PROFILE|FILE [--kill-switch WHEN] [--background]`
#[derive(Debug, Args)]
pub struct UpArgs {
    /// A profile below /etc/ringway/profiles by its name, or a file NAME.conf as wg-quick reads it
    #[arg(value_name = "PROFILE|FILE")]
    profile: String,
    /// Let nothing leave this host but by the tunnel: auto (if the profile takes everything), on, local (on, with
    /// private networks within reach), always (on, and after the end until `ringway down --force`), off
    #[arg(long, value_name = "WHEN", default_value = "auto", value_parser = kill_switch)]
    kill_switch: KillSwitch,
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
    let (name, path) = place(&args.profile)?;
    let profile = profile::read(&path)?;
    if profile.save_config {
        tracing::warn!("SaveConfig: the profile stays as it is");
    }
    client::run(Options {
        name,
        profile,
        path,
        kill_switch: args.kill_switch,
        background: args.background,
        limits: super::device::limits()?,
        say: |line| say(line),
        each_second: logging::tick,
    })
}

fn kill_switch(word: &str) -> Result<KillSwitch, &'static str> {
    match word {
        "auto" => Ok(KillSwitch::Auto),
        "on" => Ok(KillSwitch::On { local: false }),
        "local" => Ok(KillSwitch::On { local: true }),
        "always" => Ok(KillSwitch::Stays),
        "off" => Ok(KillSwitch::Off),
        _ => Err("it is none of auto, on, local, always, off"),
    }
}

/// The device's name, and the profile's file.
pub(super) fn place(word: &str) -> anyhow::Result<(InterfaceName, PathBuf)> {
    let path = if word.contains('/') || word.ends_with(".conf") {
        std::path::absolute(word).context("the present directory")?
    } else {
        Path::new(DIRECTORY).join(format!("{word}.conf"))
    };
    let stem = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
    let name =
        stem.parse().map_err(|error| anyhow!("{word}: a profile is named after its device: {error}"))?;
    Ok((name, path))
}

#[cfg(test)]
mod tests {
    use super::*;

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
            place("/a/much-too-long-a-name.conf").unwrap_err().to_string().contains("named after its device")
        );
    }
}
