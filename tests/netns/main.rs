//! Real traffic between network namespaces: Ringway against programs that nobody here wrote.
//!
//! `lab` makes hosts (a network namespace each, with a `/var/run` of its own), `peer` runs one WireGuard
//! implementation on a host, `topology` connects a gateway and its clients, `traffic` measures, `errands` are the
//! small programs of ours that must run inside a namespace. The other files hold the tests.
//!
//! Root is needed. Without it each test says that it was skipped; with `RINGWAY_REQUIRE_ROOT=1` it fails instead.
//! `RINGWAY_LAB_SELF=wireguard-go` puts wireguard-go in Ringway's place: the harness proves itself that way.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test ends by a panic that says what went wrong"
)]

mod admin;
mod always;
mod appliance;
mod by_poll;
mod calls;
mod comparison;
mod confinement;
mod container;
mod dataplane;
mod dropin;
mod edits;
mod enrolment;
mod errands;
mod events;
mod followed;
mod forwarding;
mod guard;
mod hostile;
mod interop;
mod lab;
mod leased;
mod leases;
mod lifecycle;
mod live;
mod load;
mod logs;
mod manners;
mod metrics;
mod native;
mod offload;
mod peer;
mod reconnect;
mod reload;
mod resolved;
mod resolver;
mod seeing;
mod suites;
mod supervised;
mod topology;
mod traffic;
mod up;
mod vpn;

/// The way into a namespace for our own code: the harness starts this very binary there with the errand in the
/// environment. Alone it checks that an unknown errand is refused.
#[test]
fn errand() {
    match std::env::var(errands::VARIABLE) {
        Ok(line) => assert!(errands::run(&line), "no such errand: {line}"),
        Err(_) => assert!(!errands::run("sing")),
    }
}
