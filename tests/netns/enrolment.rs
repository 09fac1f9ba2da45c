//! Invites: who has one becomes a peer by himself, as often as it says and no more, whatever is lost or killed on the
//! way, and nothing else comes of it.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
use std::net::UdpSocket;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use ringway::client::enrolment::{Enrolment, Outcome};
use ringway::crypto::enrolment::use_key;
use ringway::crypto::random::SystemRng;
use ringway::crypto::x25519::PrivateKey;
use ringway::noise::timestamp::Tai64n;
use ringway::sys::clock;
use ringway::types::{PublicKey, Secret};
use ringway::wire::invite::Invite;
use serde_json::{Value, json};

use crate::admin::{attempt, content, json_of, run, wg_quick_up};
use crate::appliance::{Appliance, file, peer, program};
use crate::dropin::text;
use crate::errands;
use crate::lab::{Host, Lab, wait_until};
use crate::manners::{SERVER, site};
use crate::peer::stranger;
use crate::topology::{GATEWAY_V4, GATEWAY_V6, connect};
use crate::traffic::must_reach;

const PAGE_AT: &str = "127.0.0.1:9586";
const PATIENCE: Duration = Duration::from_secs(30);

/// `ringway join -` on a host, with the invite on its standard input.
pub(crate) fn join(host: &Host, uri: &str, conf: &str) -> Child {
    let mut cmd = host.line(&format!("{} join - --conf /var/run/{conf} --timeout 50", program()));
    let mut child = cmd.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(uri.as_bytes()).unwrap();
    child
}

/// Its exit code and what it said.
pub(crate) fn said(child: Child) -> (Option<i32>, String) {
    let out = child.wait_with_output().unwrap();
    (out.status.code(), text(&out.stdout) + &text(&out.stderr))
}

pub(crate) fn invite(host: &Host, options: &str) -> (String, String) {
    let made = json_of(host, &format!("invite {options}"));
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    (text(&made["uri"]), text(&made["invite"]["id"]))
}

/// Whether any process of this machine has it among its arguments.
fn in_arguments(secret: &str) -> bool {
    fs::read_dir("/proc").unwrap().any(|entry| {
        let line = fs::read(entry.unwrap().path().join("cmdline")).unwrap_or_default();
        text(&line).contains(secret)
    })
}

#[test]
fn an_invite_makes_a_peer_that_is_on_and_its_secret_is_nowhere() {
    let Some(lab) = Lab::new() else { return };
    let (host, _server) = site(&lab);
    let far = lab.host("client");
    connect(&lab, &host, &far, 0, 1520);
    let gateway = Appliance::start(&host, "wg0", &content("[log]\nlevel = \"debug\"\n"));
    let (uri, id) = invite(&host, "--uses 2 --name phones --qr /var/run/invite.png");
    assert_eq!(fs::metadata(host.run_file("invite.png")).unwrap().permissions().mode() & 0o777, 0o600);
    let seen =
        Command::new("zbarimg").args(["--raw", "-q"]).arg(host.run_file("invite.png")).output().unwrap();
    assert_eq!(text(&seen.stdout).trim_end(), uri);

    // While the gateway is silent there is time to look around.
    gateway.signal("STOP");
    // Who gives up comes again with the same key.
    let line = format!("{} join - --conf /var/run/own.conf --timeout 1", program());
    let mut hasty = far.line(&line);
    let mut hasty = hasty.stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    hasty.stdin.take().unwrap().write_all(uri.as_bytes()).unwrap();
    let (code, told) = said(hasty);
    assert!(code == Some(1) && told.contains("no answer from 198.18.0.1:51820 in 1 s"), "{told}");
    let kept = far.run_file("own.conf.key");
    let first = fs::read_to_string(&kept).unwrap();
    assert_eq!(fs::metadata(&kept).unwrap().permissions().mode() & 0o777, 0o600);
    let joining = join(&far, &uri, "own.conf");
    std::thread::sleep(Duration::from_millis(700));
    let secret = uri.split("secret=").nth(1).unwrap().split('&').next().unwrap().to_owned();
    assert!(in_arguments("join"), "it runs");
    assert!(!in_arguments(&secret));
    gateway.signal("CONT");
    let (code, told) = said(joining);
    assert_eq!(code, Some(0), "{told}");
    assert!(told.contains("phones-1: 100.65.0.0/32, fd64::6441:0/128\n"), "{told}");
    assert!(told.contains("ringway: asking 198.18.0.1:51820, attempt 1\n"), "{told}");
    let path = far.run_file("own.conf");
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let conf = fs::read_to_string(&path).unwrap();
    assert!(
        conf.starts_with("# Ringway profile 1: ") && conf.contains("\n# phones-1\n[Interface]\n"),
        "{conf}"
    );
    assert!(conf.contains(&format!("\nPrivateKey = {first}\n")) && !kept.exists(), "{conf}");
    wg_quick_up(&far, &conf);
    must_reach(&far, GATEWAY_V4);
    must_reach(&far, GATEWAY_V6);
    must_reach(&far, SERVER);

    let shown = json_of(&host, &format!("invite show {id}"));
    assert_eq!((&shown["state"], &shown["enrolled"][0]["name"]), (&json!("open"), &json!("phones-1")));
    assert_eq!(shown["enrolled"].as_array().unwrap().len(), 1, "{shown}");
    let list = run(&host, "invite list");
    let row: Vec<_> = list.lines().last().unwrap().split_whitespace().collect();
    assert_eq!(row[..4], [&id, "phones-N", "1/2", "open,"], "{list}");
    assert!(run(&host, &format!("invite revoke {id}")).contains("state: revoked"));
    assert_eq!(json_of(&host, &format!("invite revoke {id}"))["state"], "revoked");
    // As an argument it works as well, with a warning; the file is not replaced.
    let out = attempt(&far, &format!("join {uri} --conf /var/run/own.conf"));
    let refused = text(&out.stderr);
    assert!(
        refused.contains("every user of this host sees") && refused.contains("is there already"),
        "{out:?}"
    );
    assert_eq!(fs::read_to_string(&path).unwrap(), conf);

    gateway.signal("TERM");
    let out = gateway.wait();
    let log = text(&out.stdout) + &text(&out.stderr);
    assert!(out.status.success() && log.contains("ready"), "{log}");
    let own = conf.lines().find_map(|line| line.strip_prefix("PrivateKey = ")).unwrap();
    let temporary = PublicKey(use_key(&Invite::parse(&uri).unwrap().secret, 0).to_secret().0).to_base64();
    for hidden in [&secret, &uri, own, &temporary] {
        assert!(!log.contains(hidden) && !told.contains(hidden) && !refused.contains(hidden));
    }
}

#[test]
fn of_fifty_at_once_on_ten_uses_ten_get_in_and_forty_are_told_why() {
    let Some(lab) = Lab::new() else { return };
    let (host, far) = (lab.host("gateway"), lab.host("clients"));
    connect(&lab, &host, &far, 0, 1520);
    let content = content("").replace("\"off\"", &format!("{PAGE_AT:?}"));
    let gateway = Appliance::start(&host, "wg0", &content);
    let (uri, id) = invite(&host, "--uses 10 --name phones");
    let all: Vec<_> = (0..50).map(|n| join(&far, &uri, &format!("c{n}.conf"))).collect();
    let (mut names, mut refused) = (BTreeSet::new(), 0);
    for (n, child) in all.into_iter().enumerate() {
        let (code, told) = said(child);
        if code == Some(0) {
            names.insert(told.lines().find(|line| line.starts_with("phones-")).unwrap().to_owned());
            assert!(far.run_file(&format!("c{n}.conf")).exists());
        } else {
            assert!(
                code == Some(1) && told.contains("ringway: the gateway says no: this invite is spent\n"),
                "{told}"
            );
            let left = ["conf", "conf.key"].map(|end| far.run_file(&format!("c{n}.{end}")).exists());
            assert_eq!(left, [false; 2], "nothing is left of it");
            refused += 1;
        }
    }
    assert_eq!((names.len(), refused), (10, 40), "{names:?}");
    let shown = json_of(&host, &format!("invite show {id}"));
    assert_eq!((&shown["state"], shown["enrolled"].as_array().unwrap().len()), (&json!("spent"), 10));
    let addresses: BTreeSet<_> = json_of(&host, "peer list")
        .as_array()
        .unwrap()
        .iter()
        .map(|peer| peer["allowed_ips"].to_string())
        .collect();
    assert_eq!(addresses.len(), 10);
    assert_eq!(host.run("wg show wg0 peers").lines().count(), 10, "keys of invites are nobody's device");
    let page = host.run(&format!("curl -s --max-time 10 http://{PAGE_AT}/metrics"));
    assert!(page.contains("ringway_enrolments_total{interface=\"wg0\",outcome=\"joined\"} 10\n"), "{page}");
    gateway.end();
}

/// Runs the client's machine until `each` has had enough of what comes of it.
fn drive(invite: &Invite, own: PublicKey, mut each: impl FnMut(Outcome) -> bool) -> u32 {
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
    let mut rng = SystemRng::new().unwrap();
    let mut machine = Enrolment::new(invite.clone(), own, clock::boottime(), &mut rng).unwrap();
    let begin = Instant::now();
    let mut buffer = [0; 2048];
    loop {
        assert!(begin.elapsed() < PATIENCE, "no answer");
        let stamp = Tai64n::from_unix(clock::realtime());
        if let Some(datagram) = machine.next_datagram(clock::boottime(), stamp, &mut rng) {
            socket.send_to(&datagram, &invite.places[machine.place()]).unwrap();
        }
        let Ok((length, from)) = socket.recv_from(&mut buffer) else { continue };
        let outcome = machine.handle(&mut buffer[..length], from, clock::boottime());
        if outcome.is_some_and(&mut each) {
            return machine.attempts();
        }
    }
}

/// The errand: answers that are lost come again in the session, and in another one.
pub(crate) fn lost_answer(path: &Path) {
    let invite = Invite::parse(&fs::read_to_string(path).unwrap()).unwrap();
    let own = *PrivateKey::random(&mut SystemRng::new().unwrap()).public();
    let mut told = Vec::new();
    let attempts = drive(&invite, own, |outcome| {
        told.push(outcome);
        told.len() == 4
    });
    assert!(matches!(told[0], Outcome::Enrolled(_)), "{told:?}");
    assert!(attempts > 1 && told.iter().all(|one| *one == told[0]), "{attempts}: {told:?}");
}

/// The errand: this key is refused with these words.
pub(crate) fn foreign(path: &Path, key: &str, words: &[&str]) {
    let invite = Invite::parse(&fs::read_to_string(path).unwrap()).unwrap();
    let why = words.join(" ");
    drive(&invite, key.parse().unwrap(), |outcome| {
        assert_eq!(outcome, Outcome::Refused { why: why.clone(), again: None });
        true
    });
}

#[test]
fn a_lost_answer_comes_again_and_a_key_of_somebody_elses_is_refused() {
    let Some(lab) = Lab::new() else { return };
    let (host, far) = (lab.host("gateway"), lab.host("client"));
    connect(&lab, &host, &far, 0, 1520);
    let office = stranger();
    let gateway = Appliance::start(&host, "wg0", &content(&peer("office", &office, "100.64.7.0/24")));
    let (uri, id) = invite(&host, "--uses 3");
    let path = file(&far, "uri", &uri);
    let spent = || json_of(&host, &format!("invite show {id}"))["enrolled"].as_array().unwrap().len();
    errands::run_on(&far, &format!("lost-answer {path}"));
    assert_eq!(spent(), 1);
    let known = json_of(&host, &format!("invite show {id}"))["enrolled"][0]["public_key"]
        .as_str()
        .unwrap()
        .to_owned();
    let other = invite(&host, "--name other").0;
    let elsewhere = file(&far, "other", &other);
    let no_point = PublicKey([0; 32]).to_base64();
    for (path, key, why) in [
        (&path, &office, "this key is known here already"),
        (&elsewhere, &known, "this key is known here already"),
        (&path, &gateway.public_key(), "this key cannot be a peer's"),
        (&path, &no_point, "this key cannot be a peer's"),
    ] {
        errands::run_on(&far, &format!("foreign {path} {key} {why}"));
    }
    assert_eq!(spent(), 1);
    // Who was removed does not come back by what he has.
    let name = format!("{id}-1");
    run(&host, &format!("peer remove {name}"));
    let why = "this key has been let in by this invite, and is a peer no more";
    errands::run_on(&far, &format!("foreign {path} {known} {why}"));
    assert_eq!(spent(), 1);
    gateway.end();
}

/// An invite that is made here, so that it may end in seconds.
fn made_here(host: &Host, gateway: &Appliance, id: &str, seconds: u64) -> Invite {
    let invite = Invite {
        id: id.to_owned(),
        gateway: gateway.public_key().parse().unwrap(),
        secret: Secret([id.as_bytes()[0]; 32]),
        uses: 1,
        places: vec!["198.18.0.1:51820".to_owned()],
    };
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    let keys = [use_key(&invite.secret, 0).public().to_base64()];
    let body = json!({ "keys": keys, "prefix": id, "expires": now + seconds });
    call(host, "PUT", &format!("/v1/invites/{id}"), &body);
    invite
}

/// Asks the API of the gateway itself.
pub(crate) fn call(host: &Host, method: &str, path: &str, body: &Value) {
    let mut curl = host.command("curl");
    curl.args([
        "-s",
        "-f",
        "--unix-socket",
        "/var/run/ringway/wg0/admin.sock",
        "-X",
        method,
        "-d",
        &body.to_string(),
    ]);
    assert!(curl.arg(format!("http://x{path}")).output().unwrap().status.success());
}

#[test]
fn what_has_ended_or_was_revoked_is_refused_by_name_also_after_a_restart() {
    let Some(lab) = Lab::new() else { return };
    let (host, far) = (lab.host("gateway"), lab.host("client"));
    connect(&lab, &host, &far, 0, 1520);
    let gateway = Appliance::start(&host, "wg0", &content(""));
    let short = made_here(&host, &gateway, "short", 2).to_uri();
    let revoked = made_here(&host, &gateway, "revoked", 3600).to_uri();
    let used = made_here(&host, &gateway, "used", 3600).to_uri();
    run(&host, "invite revoke revoked");
    assert_eq!(said(join(&far, &used, "used.conf")).0, Some(0));
    std::thread::sleep(Duration::from_millis(2500));
    let check = || {
        for (uri, why) in [
            (&short, "this invite has expired"),
            (&revoked, "this invite was revoked"),
            (&used, "this invite is spent"),
        ] {
            let (code, told) = said(join(&far, uri, "none.conf"));
            assert!(code == Some(1) && told.contains(&format!("the gateway says no: {why}\n")), "{told}");
        }
    };
    check();
    gateway.end();
    let gateway = Appliance::start(&host, "wg0", &content(""));
    check();
    assert_eq!(json_of(&host, "peer list").as_array().unwrap().len(), 1);
    gateway.end();
}

/// Killed again and again while they come: a use that is spent has its peer, and who was told is there.
#[test]
fn whoever_joins_while_the_gateway_is_killed_gets_in_once() {
    let Some(lab) = Lab::new() else { return };
    let (host, far) = (lab.host("gateway"), lab.host("clients"));
    connect(&lab, &host, &far, 0, 1520);
    let mut gateway = Appliance::start(&host, "wg0", &content(""));
    let (uri, id) = invite(&host, "--uses 20");
    let all: Vec<_> = (0..20).map(|n| join(&far, &uri, &format!("c{n}.conf"))).collect();
    let spent = || json_of(&host, &format!("invite show {id}"))["enrolled"].as_array().unwrap().len();
    for round in 0..4 {
        // In the midst of it: some are in, others are about to be.
        wait_until("some more have come", PATIENCE, || spent() > 4 * round);
        std::thread::sleep(Duration::from_millis(15 * round as u64));
        gateway.signal("KILL");
        gateway.wait();
        gateway = Appliance::start(&host, "wg0", &content(""));
        consistent(&host, &id);
    }
    for child in all {
        let (code, told) = said(child);
        assert_eq!(code, Some(0), "{told}");
    }
    let there = consistent(&host, &id);
    let own: BTreeSet<_> = (0..20)
        .map(|n| {
            let conf = fs::read_to_string(far.run_file(&format!("c{n}.conf"))).unwrap();
            let private = conf.lines().find_map(|line| line.strip_prefix("PrivateKey = ")).unwrap();
            PrivateKey::new(&private.parse().unwrap()).public().to_base64()
        })
        .collect();
    assert_eq!(own, there, "each key that a client has is a peer's, and no other");
    gateway.end();
}

/// The keys of all peers, each of which has spent one use, and has an address of its own.
fn consistent(host: &Arc<Host>, id: &str) -> BTreeSet<String> {
    let keys = |list: &Value| -> Vec<String> {
        list.as_array().unwrap().iter().map(|one| one["public_key"].as_str().unwrap().to_owned()).collect()
    };
    let peers = json_of(host, "peer list");
    let spent = json_of(host, &format!("invite show {id}"))["enrolled"].clone();
    let there: BTreeSet<_> = keys(&peers).into_iter().collect();
    assert_eq!(there, keys(&spent).into_iter().collect());
    assert_eq!(there.len(), keys(&spent).len());
    let addresses: BTreeSet<_> =
        peers.as_array().unwrap().iter().map(|peer| peer["allowed_ips"].to_string()).collect();
    assert_eq!(addresses.len(), there.len());
    there
}

/// By a standard client that has the temporary key, and says that it has an address.
#[test]
fn the_key_of_an_invite_carries_no_packet() {
    let Some(lab) = Lab::new() else { return };
    let (host, far) = (lab.host("gateway"), lab.host("client"));
    connect(&lab, &host, &far, 0, 1520);
    let gateway = Appliance::start(&host, "wg0", &content(""));
    let invite = made_here(&host, &gateway, "key", 3600);
    let private = PublicKey(use_key(&invite.secret, 0).to_secret().0).to_base64();
    let conf = format!(
        "[Interface]\nPrivateKey = {private}\nAddress = 100.65.0.0/32, fd64::6441:0/128\n[Peer]\nPublicKey = {}\n\
         Endpoint = 198.18.0.1:51820\nAllowedIPs = 100.64.0.0/10, fd64::/64\n",
        gateway.public_key()
    );
    wg_quick_up(&far, &conf);
    for to in [GATEWAY_V4, GATEWAY_V6] {
        assert!(!far.attempt(&format!("ping -n -c 2 -i 0.3 -W 1 {to}")).status.success(), "{to}");
    }
    let handshakes = far.run("wg show wg7 latest-handshakes");
    assert!(!handshakes.trim().ends_with("\t0"), "it has a session: {handshakes}");
    let shown = json_of(&host, "show wg0");
    let drops = shown["dataplane"]["drops"]["temporary_peer"].as_u64().unwrap_or_default();
    assert!(drops >= 4, "{drops}: {shown}");
    assert_eq!(shown["peers"], json!([]), "it is nobody's device");
    gateway.end();
}
