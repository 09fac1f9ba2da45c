//! The resolver's file where it is a mount of its own, as in a container.

use std::fs;

use ringway::net::dns::{Dns, Host, Settings};

use crate::errands::run_on;
use crate::lab::Lab;

const FILE: &str = "/run/resolv.conf";
const BEFORE: &str = "nameserver 198.18.0.53\n";

/// `resolver`: has a tunnel's servers in the file for a moment.
pub(crate) fn errand() {
    let host = Host { resolv_conf: FILE.into(), resolvconf: None, ..Host::here() };
    let servers = vec!["100.64.0.1".parse().unwrap()];
    let link = "wg0".parse().unwrap();
    let dns = Dns::apply(&host, &Settings { link, servers, search: vec![], match_domains: vec![] }).unwrap();
    let during = fs::read_to_string("/run/outer.conf").unwrap();
    assert!(during.ends_with("nameserver 100.64.0.1\n"), "{during}");
    dns.undo().unwrap();
}

#[test]
fn a_resolvers_file_that_is_a_mount_is_written_in_place_and_put_back() {
    let Some(lab) = Lab::new() else { return };
    let host = lab.host("host");
    for name in ["outer.conf", "resolv.conf"] {
        fs::write(host.run_file(name), BEFORE).unwrap();
    }
    host.run(&format!("mount --bind /run/outer.conf {FILE}"));
    run_on(&host, "resolver");
    for name in ["outer.conf", "resolv.conf"] {
        assert_eq!(fs::read_to_string(host.run_file(name)).unwrap(), BEFORE);
    }
    assert_eq!(host.run("ls /run").split_whitespace().filter(|name| name.ends_with(".ringway")).count(), 0);
}
