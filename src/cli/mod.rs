//! The command line: one file per verb, and a bare interface name for drop-in userspace WireGuard.
//!
//! Verbs win over interface names. A word that looks like a mistyped verb is refused: it must not become a device.

pub mod admin;
pub mod bench;
pub mod check;
pub mod device;
pub mod doctor;
pub mod down;
pub mod events;
pub mod gateway;
pub mod guard;
pub mod import;
pub mod invite;
pub mod join;
pub mod keys;
pub mod lease;
pub mod logging;
pub mod peer;
pub mod ping;
pub mod reload;
pub mod report;
pub mod show;
pub mod status;
pub mod store;
mod suggest;
pub mod switch;
pub mod top;
pub mod up;

use std::fmt::Display;
use std::io::Write as _;
use std::process::ExitCode;

use clap::{Args, CommandFactory as _, Parser, Subcommand, error::ErrorKind};

use crate::crypto::aead::ENCRYPTS;
use crate::gateway::failure::Failure;
use crate::net::name::InterfaceName;

const VERSION: &str = match ENCRYPTS {
    true => env!("CARGO_PKG_VERSION"),
    false => concat!(env!("CARGO_PKG_VERSION"), " WITHOUT ENCRYPTION, for measurements only"),
};

/// A WireGuard-compatible VPN gateway for Linux.
#[derive(Debug, Parser)]
#[command(version = VERSION, args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
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
    /// Add, change and remove peers of a running gateway
    Peer(peer::PeerArgs),
    /// Let people add their own devices: a link, or a QR code, for one or many
    Invite(invite::InviteArgs),
    /// Become a peer of a gateway, by an invite
    Join(join::JoinArgs),
    /// Connect this host to a gateway, by a profile
    Up(up::UpArgs),
    /// End such a connection
    Down(down::DownArgs),
    /// Let nothing leave this host but by a profile's tunnel, also before it is up: for the start of the host
    Guard(guard::GuardArgs),
    /// The connections of this host
    Status(status::StatusArgs),
    /// Round trips to the gateway of such a connection, or to any host
    Ping(ping::PingArgs),
    /// How good the way to a host is: round trips, loss, and how fast a TCP port takes and gives
    Check(check::CheckArgs),
    /// Who has which address of a running gateway, and who had it
    Lease(lease::LeaseArgs),
    /// What has happened to peers and leases of a running gateway
    Events(events::EventsArgs),
    /// The pools of a running gateway
    Pool(lease::PoolArgs),
    /// Make a gateway's file of a WireGuard server's, wg0.conf
    Import(import::ImportArgs),
    /// Have a gateway read its file again, or say what that would change
    Reload(reload::ReloadArgs),
    /// Check, back up or restore the store of leases and peers
    Store(store::StoreArgs),
    /// Turn offloads and the MSS clamp of a running device on or off
    Switch(switch::SwitchArgs),
    /// Measure a gateway from outside: links, clients, handshakes, floods
    Bench(bench::BenchArgs),
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

/// A line for who sits there, beside what was asked for.
fn say(line: impl Display) {
    // Who has closed it does not want to know.
    let _ = writeln!(std::io::stderr().lock(), "ringway: {line}");
}

/// The program: reads the arguments, does the work, says how it went. Exit codes: 0 done, 1 failed, 2 misused, and for
/// a gateway, its reload, its store and `up` those of [`Failure`].
#[must_use]
pub fn run() -> ExitCode {
    let cli = Cli::parse();
    let distinct =
        matches!(cli.verb, Some(Verb::Gateway(_) | Verb::Reload(_) | Verb::Store(_) | Verb::Up(_)));
    let result = match cli.verb {
        Some(Verb::Gateway(args)) => gateway::run(&args),
        Some(Verb::Show(args)) => show::run(&args),
        Some(Verb::Top(args)) => top::run(&args),
        Some(Verb::Doctor(args)) => match doctor::run(&args) {
            Ok(code) => return code,
            Err(error) => Err(error),
        },
        Some(Verb::Peer(args)) => peer::run(&args),
        Some(Verb::Events(args)) => events::run(&args),
        Some(Verb::Import(args)) => import::run(&args),
        Some(Verb::Invite(args)) => invite::run(&args),
        Some(Verb::Join(args)) => join::run(&args),
        Some(Verb::Up(args)) => up::run(&args),
        Some(Verb::Down(args)) => down::run(&args),
        Some(Verb::Guard(args)) => guard::run(&args),
        Some(Verb::Status(args)) => status::run(&args),
        Some(Verb::Ping(args)) => match ping::run(&args) {
            Ok(code) => return code,
            Err(error) => Err(error),
        },
        Some(Verb::Check(args)) => match check::run(&args) {
            Ok(code) => return code,
            Err(error) => Err(error),
        },
        Some(Verb::Lease(args)) => lease::run_lease(&args),
        Some(Verb::Pool(args)) => lease::run_pool(&args),
        Some(Verb::Reload(args)) => match reload::run(&args) {
            Ok(code) => return code,
            Err(error) => Err(error),
        },
        Some(Verb::Store(args)) => store::run(&args),
        Some(Verb::Switch(args)) => switch::run(&args),
        Some(Verb::Bench(args)) => bench::run(&args),
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
            format!("{error:#}").lines().for_each(say);
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
