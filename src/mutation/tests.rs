//! Breaks every security predicate in three ways and looks whether the tests notice.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Names the predicate to break and how: `NAME=WAY`.
const VARIABLE: &str = "RINGWAY_MUTANT";

/// A mutant that makes a test run for this long is caught as well: it hangs.
const PATIENCE: Duration = Duration::from_secs(20);

/// Every predicate, and the tests of which at least one must fail when it is broken.
const PREDICATES: &[(&str, &[&str])] = &[
    ("replay-seen", &["noise::replay::tests::order_gaps_and_the_far_edge"]),
    ("replay-too-old", &["noise::replay::tests::order_gaps_and_the_far_edge"]),
    ("replay-commit", &["noise::replay::tests::order_gaps_and_the_far_edge"]),
    ("receive-limit", &["noise::replay::tests::the_top_of_the_counter"]),
    ("send-limit", &["noise::keypair::tests::reserving_stops_before_reject_after_messages"]),
    ("keypair-age", &["noise::keypair::tests::ages_and_message_counts_are_exact"]),
    ("receiver-index", &["noise::keypair::tests::an_index_finds_its_keypair_and_no_other"]),
    (
        "unconfirmed",
        &[
            "noise::peer_session::tests::a_replayed_initiation_changes_nothing_of_a_live_session",
            "noise::peer_session::tests::a_packet_without_a_session_is_staged_and_begins_once",
        ],
    ),
    ("mac1", &["noise::cookie::tests::mac1_covers_every_byte_before_it"]),
    ("mac2", &["noise::cookie::tests::a_cookie_is_for_one_address_and_one_port"]),
    ("cookie-age", &["noise::cookie::tests::a_cookie_ends_with_its_secret_and_its_use_five_seconds_earlier"]),
    ("cookie-use", &["noise::cookie::tests::a_cookie_ends_with_its_secret_and_its_use_five_seconds_earlier"]),
    ("cookie-secret-age", &["noise::cookie::tests::cookies_of_one_secret_live_side_by_side"]),
    ("cookie-aead", &["noise::cookie::tests::a_reply_answers_the_last_message_once"]),
    (
        "handshake-aead",
        &[
            "noise::handshaker::tests::nobody_else_can_claim_a_peers_key",
            "noise::handshaker::tests::a_handshake_leaves_one_live_index_on_each_side",
        ],
    ),
    ("timestamp", &["noise::handshaker::tests::only_a_greater_timestamp_is_accepted"]),
    ("peer-rate", &["noise::handshaker::tests::a_peer_may_initiate_fifty_times_a_second"]),
    (
        "pending-age",
        &["noise::handshaker::tests::a_pending_handshake_ends_with_its_peer_or_after_180_seconds"],
    ),
    (
        "peer-generation",
        &[
            "noise::handshaker::tests::messages_for_another_generation_are_ignored",
            "noise::handshaker::tests::a_handshake_leaves_one_live_index_on_each_side",
        ],
    ),
    ("own-key", &["noise::handshaker::tests::our_own_key_is_no_peer"]),
    (
        "low-order",
        &[
            "crypto::x25519::tests::points_of_low_order_are_refused_with_and_without_the_top_bit",
            "crypto::x25519::tests::matches_rfc_7748_section_6_1",
        ],
    ),
    ("transport-aead", &["crypto::aead::tests::only_what_is_authentic_is_opened_and_the_rest_is_wiped"]),
    ("enrolment-proof", &["crypto::enrolment::tests::a_proof_is_for_one_use_one_session_and_one_key"]),
    (
        "temporary-peer",
        &[
            "dataplane::frames::tests::the_key_of_an_invite_carries_nothing_but_what_is_for_joining",
            "dataplane::inbound::tests::an_inner_source_is_the_peers_own_or_dropped",
        ],
    ),
    (
        "temporary-frame",
        &["dataplane::frames::tests::the_key_of_an_invite_carries_nothing_but_what_is_for_joining"],
    ),
    ("inner-source", &["dataplane::inbound::tests::an_inner_source_is_the_peers_own_or_dropped"]),
    ("owner-generation", &["dataplane::peers::tests::a_peer_of_another_generation_is_not_found"]),
    (
        "suite-declared",
        &[
            "noise::agreement::tests::nothing_is_opened_that_was_not_declared_nor_sealed_that_the_other_does_not_open",
        ],
    ),
    (
        "suite-opened-there",
        &[
            "noise::agreement::tests::nothing_is_opened_that_was_not_declared_nor_sealed_that_the_other_does_not_open",
        ],
    ),
    ("pong-suite", &["noise::agreement::tests::only_a_pong_to_our_own_ping_in_the_suite_itself_is_proof"]),
    ("hello-rate", &["noise::agreement::tests::a_hello_is_answered_once_a_second_and_only_if_it_asks"]),
    ("aes-limit", &["noise::agreement::tests::a_key_ends_where_the_limit_says"]),
    ("aes-rekey", &["noise::agreement::tests::a_key_ends_where_the_limit_says"]),
    ("newest-keypair", &["noise::keypair::tests::a_responders_keypair_waits_for_its_confirmation"]),
    ("disconnected", &["dataplane::frames::tests::after_a_disconnect_nothing_of_that_keypair_counts"]),
    ("frame-rate", &["dataplane::frames::tests::ten_frames_a_second_are_looked_at_and_twenty_at_once"]),
    ("under-load", &["dataplane::admission::tests::load_begins_at_an_eighth_is_held_and_recovers"]),
];

/// A predicate, and what becomes of its verdict.
#[derive(Clone, Debug)]
pub(super) struct Mutant {
    pub(super) name: String,
    way: Way,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Inverted,
    Always,
    Never,
    /// Inverted the seventh time only: of packets that are opened side by side, one lane's verdict is wrong.
    Seventh,
}

const WAYS: [Way; 3] = [Way::Inverted, Way::Always, Way::Never];

/// In the way of [`Way::Seventh`] as well.
const LANES: (&str, &[&str]) =
    ("transport-aead", &["crypto::aead::tests::one_of_a_run_is_refused_and_wiped"]);

impl Mutant {
    pub(super) fn verdict(&self, honest: bool) -> bool {
        match self.way {
            Way::Inverted => !honest,
            Way::Always => true,
            Way::Never => false,
            Way::Seventh => {
                static ASKED: AtomicU64 = AtomicU64::new(0);
                honest != (ASKED.fetch_add(1, Ordering::Relaxed) == 6)
            }
        }
    }
}

/// The mutant of this process; none in an ordinary test run.
pub(super) fn mutant() -> Option<&'static Mutant> {
    static MUTANT: OnceLock<Option<Mutant>> = OnceLock::new();
    MUTANT
        .get_or_init(|| {
            let value = std::env::var(VARIABLE).ok()?;
            let (name, way) = value.split_once('=').expect("NAME=WAY");
            let mut all = WAYS.into_iter().chain([Way::Seventh]);
            let way = all.find(|known| format!("{known:?}") == way).expect("a way");
            Some(Mutant { name: name.to_owned(), way })
        })
        .as_ref()
}

/// This very binary, to run `tests` by their whole names.
fn rerun(tests: &[&str]) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(tests).args(["--exact", "--test-threads=1"]).env_remove(VARIABLE).env("RUST_BACKTRACE", "0");
    command.stdin(Stdio::null()).stderr(Stdio::null());
    command
}

/// Whether one of `tests` fails, or hangs, with the predicate broken.
fn is_caught(name: &str, way: Way, tests: &[&str]) -> bool {
    let mut command = rerun(tests);
    let mut child = command.env(VARIABLE, format!("{name}={way:?}")).stdout(Stdio::null()).spawn().unwrap();
    let end = Instant::now() + PATIENCE;
    while Instant::now() < end {
        if let Some(status) = child.try_wait().unwrap() {
            assert!(matches!(status.code(), Some(0 | 101)), "{name} {way:?}: {status}");
            return !status.success();
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    true
}

#[test]
fn every_mutant_is_caught() {
    let all: BTreeSet<&str> =
        PREDICATES.iter().chain([&LANES]).flat_map(|(_, tests)| *tests).copied().collect();
    let output = rerun(&all.iter().copied().collect::<Vec<_>>()).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let verdict = format!("{} passed; 0 failed; 0 ignored", all.len());
    assert!(text.contains(&verdict), "without a mutant each test is there and passes:\n{text}");

    let mutants = PREDICATES.iter().flat_map(|(name, tests)| WAYS.map(|way| (*name, way, *tests)));
    let survivors: Vec<_> = mutants
        .chain([(LANES.0, Way::Seventh, LANES.1)])
        .filter(|(name, way, tests)| !is_caught(name, *way, tests))
        .map(|(name, way, _)| format!("{name} {way:?}"))
        .collect();
    assert!(survivors.is_empty(), "no test noticed: {survivors:?}");
}

/// A predicate that nobody breaks is not tested, and one that is only in the table is gone.
#[test]
fn the_table_names_every_predicate() {
    let mut used = BTreeSet::new();
    collect(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/src")), &mut used);
    let table: BTreeSet<String> = PREDICATES.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(table.len(), PREDICATES.len(), "a name stands twice");
    assert_eq!(used, table);
}

/// The names in calls of `holds` under `dir`.
fn collect(dir: &Path, names: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(&path, names);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = std::fs::read_to_string(&path).unwrap();
            // Put together here, so that this line is none of them.
            for call in text.split(concat!("holds", "(")).skip(1) {
                let quoted = call.trim_start().strip_prefix('"').and_then(|rest| rest.split('"').next());
                names.extend(quoted.map(str::to_owned));
            }
        }
    }
}
