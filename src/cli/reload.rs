//! `reload`: has a running gateway read its file again, over its admin API, and says what that changes.

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Args;
use hyper::Method;

use super::admin::Client;
use super::say;
use crate::config;
use crate::control::admin::wire::ReloadRequest;
use crate::control::reload::{Answer, Change, PeerDifference, SettingDifference};
use crate::gateway::failure::Failure;
use crate::net::name::InterfaceName;

/// `reload [--dry-run] [--json] [--config FILE | -i IFNAME]`
#[derive(Debug, Args)]
pub struct ReloadArgs {
    /// Only say what would change
    #[arg(long)]
    dry_run: bool,
    /// One JSON object
    #[arg(long)]
    json: bool,
    /// The gateway's file
    #[arg(short, long, value_name = "FILE", default_value = config::DEFAULT_PATH)]
    config: PathBuf,
    /// The gateway's interface, whatever its file is
    #[arg(short, long, value_name = "IFNAME", conflicts_with = "config")]
    interface: Option<InterfaceName>,
}

/// Asks, and prints the answer. 0: what the file says is in force, or would be after a dry run; but for what needs a
/// restart, which is named.
///
/// # Errors
/// A bad file, or nobody who serves its interface.
pub fn run(args: &ReloadArgs) -> anyhow::Result<ExitCode> {
    let (name, file) = match &args.interface {
        Some(name) => (name.clone(), None),
        None => {
            let path = std::path::absolute(&args.config).context("the present directory")?;
            (config::load_again(&args.config)?.interface, Some(path))
        }
    };
    let answer = ask(&name, args.dry_run, file.as_deref())?;
    let text = if args.json {
        serde_json::to_string(&answer).context("the answer")? + "\n"
    } else {
        text(&answer, args.dry_run)
    };
    io::stdout().write_all(text.as_bytes()).context("standard output")?;
    answer.errors.iter().for_each(say);
    Ok(match &answer {
        Answer { bad_file: true, .. } => Failure::Configuration.exit_code().into(),
        answer if answer.errors.is_empty() => ExitCode::SUCCESS,
        _ => Failure::Other.exit_code().into(),
    })
}

fn ask(name: &InterfaceName, dry_run: bool, file: Option<&Path>) -> anyhow::Result<Answer> {
    let file = file.map(|file| file.to_str().context("the file's name is no UTF-8")).transpose()?;
    let request = ReloadRequest { dry_run, file: file.map(str::to_owned) };
    Client::of(name).send(Method::POST, "/v1/reload", &request)
}

/// A line for each thing that differs, and one for what came of it.
fn text(answer: &Answer, dry_run: bool) -> String {
    let mut lines: Vec<String> = answer.peers.iter().map(peer).collect();
    let from_to = |setting: &SettingDifference| {
        let SettingDifference { key, from, to } = setting;
        format!("{key}: {from} -> {to}")
    };
    lines.extend(answer.settings.iter().map(|setting| format!("~ {}", from_to(setting))));
    lines.extend(answer.restart.iter().map(|one| format!("! {}, needs a restart and stays", from_to(one))));
    let differs = !answer.peers.is_empty() || !answer.settings.is_empty();
    lines.push(match (answer.applied, differs) {
        (true, true) => format!("{}: reloaded", answer.file),
        (true, false) => format!("{}: nothing to change", answer.file),
        (false, _) if dry_run && answer.errors.is_empty() => {
            format!("{}: nothing was changed, as you wished", answer.file)
        }
        (false, _) => format!("{}: not reloaded, everything stays as it was", answer.file),
    });
    lines.join("\n") + "\n"
}

fn peer(peer: &PeerDifference) -> String {
    let sign = match peer.change {
        Change::Added => '+',
        Change::Changed => '~',
        Change::Removed => '-',
    };
    let mut line = format!("{sign} peer {}", peer.public_key);
    if !peer.name.is_empty() {
        line.push_str(&format!(" ({})", peer.name));
    }
    if !peer.keys.is_empty() {
        line.push_str(&format!(": {}", peer.keys.join(", ")));
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_difference_is_a_line() {
        let setting = |key: &str| SettingDifference { key: key.into(), from: "1".into(), to: "2".into() };
        let peer = |name: &str, change, keys: &[&str]| PeerDifference {
            public_key: format!("{name}="),
            name: name.to_owned(),
            change,
            keys: keys.iter().map(|key| (*key).to_owned()).collect(),
        };
        let answer = Answer {
            file: "/f".to_owned(),
            applied: true,
            peers: vec![
                peer("a", Change::Added, &[]),
                peer("", Change::Changed, &["endpoint", "keepalive"]),
                peer("c", Change::Removed, &[]),
            ],
            settings: vec![setting("mtu")],
            restart: vec![setting("workers")],
            ..Answer::default()
        };
        let said = text(&answer, false);
        assert_eq!(
            said.lines().collect::<Vec<_>>(),
            [
                "+ peer a= (a)",
                "~ peer =: endpoint, keepalive",
                "- peer c= (c)",
                "~ mtu: 1 -> 2",
                "! workers: 1 -> 2, needs a restart and stays",
                "/f: reloaded",
            ]
        );
        let last = |answer: &Answer, dry_run| text(answer, dry_run).lines().last().unwrap().to_owned();
        let refused = Answer { applied: false, ..answer };
        assert_eq!(last(&refused, true), "/f: nothing was changed, as you wished");
        assert_eq!(last(&refused, false), "/f: not reloaded, everything stays as it was");
        let same = Answer { file: "/f".to_owned(), applied: true, ..Answer::default() };
        assert_eq!(last(&same, true), "/f: nothing to change");
    }
}
