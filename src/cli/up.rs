//! `up`: connects this host to a gateway, by a profile.

use anyhow::Context as _;
use clap::Args;
use tracing::level_filters::LevelFilter;

use super::{logging, say};
use crate::client::connection::check_privilege;
use crate::config::LogFormat;
use crate::config::profile;
use crate::gateway::client::{self, KillSwitch, Options, place};

/// `up PROFILE|FILE [--kill-switch WHEN] [--background]`
#[derive(Debug, Args)]
pub struct UpArgs {
    /// A profile below /etc/ringway/profiles by its name, or a file NAME.conf as wg-quick reads it
    #[arg(value_name = "PROFILE|FILE")]
    profile: String,
    /// Let nothing leave this host but by the tunnel: auto (if the profile takes everything), on, local (on, with
    /// private networks within reach), off
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
    let (name, path) = place(&args.profile).context("a profile is named after its device")?;
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
        "off" => Ok(KillSwitch::Off),
        _ => Err("it is none of auto, on, local, off"),
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
