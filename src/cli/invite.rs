//! `invite`: a URI by which people add their own devices, and what has become of it. Its secret is made here, shown
//! once and kept by nobody: the gateway hears the public keys of its uses only.

use std::io::{self, IsTerminal as _};
use std::path::PathBuf;

use anyhow::{Context as _, bail};
use clap::{Args, Subcommand};
use hyper::Method;
use serde_json::json;

use super::admin::{Client, Which, print, print_json};
use super::keys;
use super::peer::conf::{self, Draft};
use super::peer::{Expires, columns, now, short, time};
use super::say;
use super::show::ago;
use crate::control::admin::wire::{GatewayView, InviteState, InviteView, Key, NewInvite};
use crate::crypto::enrolment::use_key;
use crate::wire::invite::{Invite, MAX_PLACES, is_place};

/// Letters and digits that are not taken for each other.
const ALPHABET: &[u8; 30] = b"abcdefghjkmnpqrstuvwxyz2345678";
/// Of an id.
const ID_LEN: usize = 8;

/// `invite [-i IFNAME] [--json] [OPTIONS | VERB]`
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct InviteArgs {
    #[command(flatten)]
    which: Which,
    #[command(subcommand)]
    verb: Option<Verb>,
    #[command(flatten)]
    make: MakeArgs,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// All invites
    List,
    /// One invite, and who has come by it
    Show {
        /// Its id
        id: String,
    },
    /// Take an invite back; who has come by it stays
    Revoke {
        /// Its id
        id: String,
    },
}

#[derive(Debug, Args)]
struct MakeArgs {
    /// How many devices it lets in
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=256))]
    uses: u16,
    /// When it ends: 90m, 12h, 1d, 8w
    #[arg(long, value_name = "TIME", value_parser = time, default_value = "1d")]
    expires: Expires,
    /// The group of the peers that come of it, by which pools are chosen
    #[arg(long, default_value = "", hide_default_value = true)]
    group: String,
    /// What their names begin with; without it, the invite's id
    #[arg(long, value_name = "PREFIX")]
    name: Option<String>,
    /// Where the gateway is, HOST:PORT, the best first, up to four times; without it, what [clients] says
    #[arg(long, value_name = "PLACE", value_parser = place)]
    endpoint: Vec<String>,
    /// A new file for the QR code, FILE.png or FILE.svg, mode 0600
    #[arg(long, value_name = "FILE")]
    qr: Option<PathBuf>,
}

fn place(text: &str) -> Result<String, String> {
    if is_place(text) { Ok(text.to_owned()) } else { Err(format!("'{text}' is no HOST:PORT")) }
}

/// Does it.
///
/// # Errors
/// What the gateway says is wrong, or nobody to ask.
pub fn run(args: &InviteArgs) -> anyhow::Result<()> {
    let (client, json) = (args.which.client()?, args.which.json);
    match &args.verb {
        None => make(&client, &args.make, json),
        Some(Verb::List) => {
            let invites: Vec<InviteView> = client.all("/v1/invites")?;
            if json { print_json(&invites) } else { print(&table(&invites, now())) }
        }
        Some(Verb::Show { id }) => shown(&client.get(&path(id))?, json),
        Some(Verb::Revoke { id }) => shown(&client.send(Method::DELETE, &path(id), &json!({}))?, json),
    }
}

fn path(id: &str) -> String {
    format!("/v1/invites/{}", super::admin::escaped(id))
}

fn make(client: &Client, make: &MakeArgs, json: bool) -> anyhow::Result<()> {
    let Some(expires) = make.expires.moment() else {
        bail!("an invite ends: give --expires a time, such as 1d")
    };
    let gateway: GatewayView = client.get("/v1/gateway")?;
    let invite = Invite {
        id: random_id()?,
        gateway: gateway.public_key.context("the gateway has no key")?.0,
        secret: keys::random()?,
        uses: make.uses,
        places: places(&gateway, &make.endpoint)?,
    };
    let qr = make.qr.as_deref().map(Draft::image).transpose()?;
    // 256 at most.
    let each = (0..make.uses).map(|k| Key(*use_key(&invite.secret, k as u8).public()));
    let wanted = NewInvite {
        keys: each.collect(),
        prefix: make.name.clone().unwrap_or_else(|| invite.id.clone()),
        group: make.group.clone(),
        expires,
    };
    let made: InviteView = client.send(Method::PUT, &path(&invite.id), &wanted)?;
    if make.endpoint.is_empty()
        && let Some(doubt) = conf::doubt(&gateway)
    {
        say(format_args!("{doubt}, or give --endpoint"));
    }
    let uri = invite.to_uri();
    if let Some(draft) = qr {
        draft.draw(&conf::qr(&uri)?)?;
    }
    if json {
        return print_json(&json!({ "invite": made, "uri": &**uri }));
    }
    print(&format!("{}\n", *uri))?;
    if io::stdout().is_terminal() {
        print(&format!("\n{}\n{}", conf::for_terminal(&conf::qr(&uri)?), text(&made, now())))?;
    }
    Ok(())
}

fn places(gateway: &GatewayView, given: &[String]) -> anyhow::Result<Vec<String>> {
    if given.len() > MAX_PLACES {
        bail!("--endpoint: {MAX_PLACES} times at most");
    }
    if !given.is_empty() {
        return Ok(given.to_vec());
    }
    let told = gateway.clients.endpoint.clone().filter(|endpoint| is_place(endpoint));
    let missing =
        "where the gateway is, nobody says: set [clients] endpoint and `ringway reload`, or give --endpoint";
    Ok(vec![told.context(missing)?])
}

fn random_id() -> anyhow::Result<String> {
    let random = keys::random()?;
    let letter = |byte: &u8| ALPHABET.get(usize::from(*byte) % ALPHABET.len()).copied().map(char::from);
    Ok(random.0.iter().take(ID_LEN).filter_map(letter).collect())
}

fn shown(invite: &InviteView, json: bool) -> anyhow::Result<()> {
    if json { print_json(invite) } else { print(&text(invite, now())) }
}

/// A line per invite.
fn table(invites: &[InviteView], now: u32) -> String {
    let mut rows = vec![["ID", "NAMES", "GROUP", "USED", "STATE"].map(str::to_owned)];
    rows.extend(invites.iter().map(|invite| {
        let used = format!("{}/{}", invite.enrolled.len(), invite.uses);
        [invite.id.clone(), names(invite), invite.group.clone(), used, state(invite, now)]
    }));
    columns(&rows)
}

fn names(invite: &InviteView) -> String {
    if invite.uses == 1 { invite.prefix.clone() } else { format!("{}-N", invite.prefix) }
}

/// `open`, with its end.
fn state(invite: &InviteView, now: u32) -> String {
    match invite.state {
        InviteState::Open => format!("open, ends in {}", short(invite.expires.saturating_sub(now))),
        InviteState::Spent => "spent".to_owned(),
        InviteState::Expired => format!("expired {}", ago(now.saturating_sub(invite.expires).into())),
        InviteState::Revoked => {
            format!("revoked {}", ago(now.saturating_sub(invite.revoked.unwrap_or(now)).into()))
        }
    }
}

/// All of an invite.
fn text(invite: &InviteView, now: u32) -> String {
    let InviteView { id, group, uses, created, enrolled, .. } = invite;
    let mut out = format!("invite: {id}\nstate: {}\nnames: {}\n", state(invite, now), names(invite));
    if !group.is_empty() {
        out += &format!("group: {group}\n");
    }
    out +=
        &format!("made: {}\nused: {} of {uses}\n", ago(now.saturating_sub(*created).into()), enrolled.len());
    for one in enrolled {
        let name = one.name.clone().unwrap_or_else(|| format!("{} (gone)", one.public_key.0.to_base64()));
        out += &format!("  {name}, {}\n", ago(now.saturating_sub(one.at).into()));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::admin::wire::EnrolledView;
    use crate::types::PublicKey;

    #[test]
    fn an_invite_is_shown_with_whom_it_let_in() {
        let key = Key(PublicKey([1; 32]));
        let invite = InviteView {
            id: "k7".to_owned(),
            prefix: "phones".to_owned(),
            group: "g".to_owned(),
            uses: 3,
            state: InviteState::Open,
            created: 1000,
            expires: 91_000,
            revoked: None,
            enrolled: vec![
                EnrolledView { public_key: key, name: Some("phones-1".to_owned()), at: 4600 },
                EnrolledView { public_key: key, name: None, at: 4600 },
            ],
        };
        assert_eq!(
            text(&invite, 4600),
            format!(
                "invite: k7\nstate: open, ends in 1 day\nnames: phones-N\ngroup: g\nmade: 1 hour ago\nused: 2 of 3\n  \
                 phones-1, now\n  {} (gone), now\n",
                key.0.to_base64()
            )
        );
        let revoked = InviteView { state: InviteState::Revoked, revoked: Some(1000), uses: 1, ..invite };
        let listed = table(&[revoked], 4600);
        let row: Vec<_> = listed.lines().last().unwrap().split_whitespace().collect();
        assert_eq!(row, ["k7", "phones", "g", "2/1", "revoked", "1", "hour", "ago"]);
    }

    #[test]
    fn ids_are_ids_and_differ() {
        let (one, other) = (random_id().unwrap(), random_id().unwrap());
        assert!(crate::wire::invite::is_id(&one) && one.len() == ID_LEN && one != other);
    }
}
