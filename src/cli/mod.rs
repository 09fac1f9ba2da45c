//! The command line: one file per verb, and a bare interface name for drop-in userspace WireGuard.
//!
//! Verbs win over interface names. A word that looks like a mistyped verb is refused: it must not become a device.

pub mod device;
pub mod doctor;
pub mod gateway;
pub mod keys;
pub mod logging;
pub mod reload;
pub mod report;
pub mod show;
mod suggest;
pub mod switch;
pub mod top;

use std::process::ExitCode;

use clap::{Args, CommandFactory as _, Parser, Subcommand, error::ErrorKind};

use crate::gateway::failure::Failure;
use crate::net::name::InterfaceName;

/// A WireGuard-compatible VPN gateway for Linux.
#[derive(Debug, Parser)]
#[command(version, args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
struct Cli {
    #[command(subcommand)]
    verb: Option<Verb>,
    #[command(flatten)]
    device: DeviceArgs,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Run a gateway from one file
    Gateway(gateway::GatewayArgs),
    /// Show devices: peers, traffic, workers, offloads, drops
    Show(show::ShowArgs),
    /// Watch devices live: workers, drops, peers
    Top(top::TopArgs),
    /// Look at this host: what keeps a gateway from working well, why, and what to do
    Doctor(doctor::DoctorArgs),
    /// Have a gateway read its file again, or say what that would change
    Reload(reload::ReloadArgs),
    /// Turn offloads and the MSS clamp of a running device on or off
    Switch(switch::SwitchArgs),
    /// Print a new private key
    Genkey,
    /// Read a private key from the standard input and print its public key
    Pubkey,
    /// Print a new preshared key
    Genpsk,
}

/// `ringway [-f] [--hello] IFNAME`
#[derive(Debug, Args)]
struct DeviceArgs {
    /// Stay in the foreground
    #[arg(short, long)]
    foreground: bool,
    /// Tell every peer that this is Ringway, and use AES-256-GCM with those that are
    #[arg(long)]
    hello: bool,
    /// Make this TUN device and serve it as WireGuard
    #[arg(value_name = "IFNAME", required = true)]
    name: Option<String>,
}

/// The program: reads the arguments, does the work, says how it went. Exit codes: 0 done, 1 failed, 2 misused, and for
/// a gateway and its reload those of [`Failure`].
#[must_use]
pub fn run() -> ExitCode {
    let cli = Cli::parse();
    let distinct = matches!(cli.verb, Some(Verb::Gateway(_) | Verb::Reload(_)));
    let result = match cli.verb {
        Some(Verb::Gateway(args)) => gateway::run(&args),
        Some(Verb::Show(args)) => show::run(&args),
        Some(Verb::Top(args)) => top::run(&args),
        Some(Verb::Doctor(args)) => match doctor::run(&args) {
            Ok(code) => return code,
            Err(error) => Err(error),
        },
        Some(Verb::Reload(args)) => match reload::run(&args) {
            Ok(code) => return code,
            Err(error) => Err(error),
        },
        Some(Verb::Switch(args)) => switch::run(&args),
        Some(Verb::Genkey) => keys::genkey(),
        Some(Verb::Pubkey) => keys::pubkey(),
        Some(Verb::Genpsk) => keys::genpsk(),
        None => match interface(cli.device.name.as_deref().unwrap_or_default()) {
            Ok(name) => device::run_device(name, cli.device.foreground, cli.device.hello),
            Err(error) => error.exit(),
        },
    };
    logging::finish();
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            use std::io::Write as _;
            let mut stderr = std::io::stderr().lock();
            for line in format!("{error:#}").lines() {
                let _ = writeln!(stderr, "ringway: {line}");
            }
            ExitCode::from(if distinct { Failure::of(&error) } else { Failure::Other }.exit_code())
        }
    }
}

/// The name of a device to make, unless it is none or looks like a verb.
fn interface(word: &str) -> Result<InterfaceName, clap::Error> {
    let mut command = Cli::command();
    command.build();
    let verbs = command.get_subcommands().map(clap::Command::get_name);
    if let Some(verb) = suggest::verb_close_to(word, verbs) {
        let message = if verb == word {
            format!("'{word}' is a verb and takes no option before it")
        } else {
            format!("'{word}' is no verb. Did you mean '{verb}'?")
        };
        return Err(command.error(ErrorKind::InvalidSubcommand, message));
    }
    word.parse().map_err(|error| command.error(ErrorKind::ValueValidation, format!("'{word}': {error}")))
}

#[cfg(test)]
mod tests;
