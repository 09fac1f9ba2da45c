//! `events`: what has happened to sessions, peers, leases, switches and workers of a running gateway, over its admin
//! API.

use std::time::SystemTime;

use clap::Args;

use super::admin::{PAGE, Which, print, print_json};
use super::show::ago;
use crate::control::admin::wire::{EventView, EventsView, Key};

/// Seconds that the gateway waits for an event before it says that there is none.
const WAIT: u64 = 20;

/// `events [-i IFNAME] [--json] [--after N] [--follow]`
#[derive(Debug, Args)]
pub struct EventsArgs {
    #[command(flatten)]
    which: Which,
    /// From this number on: `next` of the time before
    #[arg(long, default_value_t = 0, value_name = "NUMBER")]
    after: u64,
    /// Go on with what happens from now on, until interrupted
    #[arg(long)]
    follow: bool,
}

/// Prints events: with `--json` an object per answer, with the number to go on from.
///
/// # Errors
/// Nobody to ask, or nobody any more.
pub fn run(args: &EventsArgs) -> anyhow::Result<()> {
    let client = args.which.client()?;
    let wait = if args.follow { WAIT } else { 0 };
    let mut after = args.after;
    loop {
        let page = client.get::<EventsView>(&format!("/v1/events?after={after}&limit={PAGE}&wait={wait}"))?;
        match (args.which.json, page.items.is_empty() && args.follow) {
            (true, false) => print_json(&page)?,
            (true, true) => {}
            (false, _) => print(&text(&page))?,
        }
        after = page.next;
        if page.items.len() < PAGE && !args.follow {
            return Ok(());
        }
    }
}

fn text(page: &EventsView) -> String {
    let mut lines = Vec::new();
    if page.restarted {
        lines.push("the gateway has begun anew".to_owned());
    }
    if page.missed > 0 {
        lines.push(format!("{} events are not kept any more", page.missed));
    }
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    lines.extend(page.items.iter().map(|event| line(event, now)));
    lines.iter().map(|line| format!("{line}\n")).collect()
}

fn line(event: &EventView, now: u64) -> String {
    let ago = ago(now.saturating_sub(event.at.into()));
    let who = event.name.clone().or_else(|| event.public_key.map(|Key(key)| key.to_base64()));
    let worker = event.worker.map(|worker| format!("worker {worker}"));
    let address = event.address.map(|address| address.to_string());
    let subject = [who, event.switch.clone(), worker, address, event.endpoint.clone(), event.reason.clone()];
    let rest: String = subject.into_iter().flatten().map(|part| format!("  {part}")).collect();
    format!("{}  {ago}  {}{rest}", event.number, event.event)
}
