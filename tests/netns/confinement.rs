//! What is left to a running gateway, and to whoever takes it over.

use std::fs;
use std::io;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use caps::Capability;
use ringway::dataplane::io::Fds;
use ringway::dataplane::io::ring::{Ring, RingOptions};
use ringway::sys::eventfd::EventFd;
use ringway::sys::privileges::{self, Account};
use ringway::sys::seccomp;
use socket2::{Domain, Socket, Type};

use crate::errands;
use crate::lab::{Lab, machine};
use crate::peer::{Implementation, Peer, stranger};
use crate::topology::{GATEWAY_PORT, GATEWAY_V4, Plan, client_v4};
use crate::traffic::must_reach;

/// CAP_NET_BIND_SERVICE and CAP_NET_ADMIN (linux/capability.h).
const KEPT: u64 = 1 << 10 | 1 << 12;

/// A field of a thread's status, a number in the given base.
fn field(status: &str, key: &str, base: u32) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
    u64::from_str_radix(line.unwrap_or_else(|| panic!("no {key} in {status}")).trim(), base).unwrap()
}

/// Every thread of a gateway, workers and others alike.
fn must_be_confined(peer: &Peer) {
    let mut kinds = [0; 2];
    for task in fs::read_dir(format!("/proc/{}/task", peer.pid())).unwrap() {
        let status = fs::read_to_string(task.unwrap().path().join("status")).unwrap();
        let name = status.lines().next().unwrap();
        // The handshake thread and the workers read what strangers send.
        let exposed = name.contains("ringway-");
        kinds[usize::from(exposed)] += 1;
        let kept = if exposed { 0 } else { KEPT };
        for (key, wanted) in [("CapEff", kept), ("CapPrm", kept), ("CapInh", 0), ("CapBnd", 0), ("CapAmb", 0)]
        {
            assert_eq!(field(&status, key, 16), wanted, "{name}: {key}");
        }
        assert_eq!(field(&status, "NoNewPrivs", 10), 1, "{name}");
        assert_eq!(field(&status, "Seccomp", 10), 2, "{name}");
    }
    assert_eq!(kinds, [1, 3], "the control thread; two workers and the handshake thread");
}

#[test]
fn it_dumps_no_core_whatever_it_was_started_with() {
    let Some(lab) = Lab::new() else { return };
    let host = lab.host("alone");
    let ringway = Implementation::Ringway { workers: 1 };
    let launcher = ["prlimit", "--core=unlimited:unlimited"];
    let peer = Peer::start_through(&host, ringway, "wg0", GATEWAY_PORT, &[], &launcher);
    let limits = fs::read_to_string(format!("/proc/{}/limits", peer.pid())).unwrap();
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    assert_eq!(core.split_whitespace().skip(4).take(2).collect::<Vec<_>>(), ["0", "0"], "{core}");
}

#[test]
fn every_thread_is_confined_and_all_goes_on() {
    let Some(lab) = Lab::new() else { return };
    let ringway = Implementation::Ringway { workers: 2 };
    let site = Plan::new(ringway, ringway).build(&lab);
    let (gateway, client) = (&site.gateway, &site.clients[0]);
    must_be_confined(gateway);
    must_reach(&client.host, GATEWAY_V4);
    // Other sockets, a port below 1024, a mark, peers and prefixes for the steering map; then traffic on all of them.
    gateway.set("listen-port 443 fwmark 7");
    client.set(&format!("peer {} endpoint 198.18.0.1:443", gateway.public));
    let stranger = stranger();
    gateway.set(&format!("peer {stranger} allowed-ips 100.65.0.0/24,100.66.0.1/32"));
    gateway.set(&format!("peer {stranger} remove"));
    gateway.host.run("ip link set wg0 mtu 1300");
    gateway.renew();
    must_reach(&gateway.host, &client_v4(0));
    must_reach(&client.host, GATEWAY_V4);
    assert!(gateway.report().unwrap()["steering"]["on"].as_bool().unwrap());
    must_be_confined(gateway);
}

#[test]
fn what_is_not_needed_any_more_fails() {
    let Some(lab) = Lab::new() else { return };
    let host = lab.host("alone");
    errands::run_on(&host, "confine");
}

/// The errand: everything works, then nothing of it does, and what a gateway needs still does.
pub(crate) fn confine() {
    let ring = || {
        let wake = EventFd::new().unwrap();
        let fds = Fds { tun: None, v4: None, v6: None, wake: std::os::fd::AsFd::as_fd(&wake) };
        Ring::new(fds, RingOptions::default()).map(drop).map_err(|error| error.to_string())
    };
    let packets = || Socket::new(Domain::PACKET, Type::DGRAM, None).map(drop);
    let thread = || std::thread::Builder::new().spawn(|| {}).map(drop);
    let denied = |result: io::Result<()>| result.unwrap_err().raw_os_error() == Some(libc::EPERM);
    ring().unwrap();
    packets().unwrap();
    thread().unwrap();

    // The harness's own thread was never lowered, and that is noticed.
    let left = privileges::confine(None, &[Capability::CAP_NET_ADMIN]).unwrap_err();
    assert!(left.to_string().contains("still has privileges"), "{left}");
    thread().unwrap();

    seccomp::confine_all_threads().unwrap();
    assert!(ring().unwrap_err().contains("seccomp"));
    assert!(denied(packets()));
    assert!(denied(thread()));
    assert!(denied(Command::new("true").status().map(drop)));
    assert!(denied(Err(Command::new("true").exec())));
    let udp = Socket::new(Domain::IPV4, Type::DGRAM, None).unwrap();
    udp.set_mark(7).unwrap();
    assert!(!fs::read("/proc/self/status").unwrap().is_empty());
}

#[test]
fn another_user_keeps_one_capability() {
    let Some(lab) = Lab::new() else { return };
    let host = lab.host("alone");
    // In other groups as well, which are left.
    let mut errand = host.command("setpriv");
    errand.args(["--groups", "4,24", "--"]).arg(std::env::current_exe().unwrap());
    errand.args(["errand", "--exact", "--nocapture"]).env(errands::VARIABLE, "become nobody");
    let done = errand.output().unwrap();
    assert!(done.status.success(), "{done:?}");
}

/// The errand: this thread becomes somebody else, who may still mark sockets, and nothing more.
pub(crate) fn become_user(name: &str) {
    let account = Account::named(name).unwrap();
    assert_ne!((account.uid, account.gid), (0, 0));
    privileges::lower_thread(Some(account), &[Capability::CAP_NET_ADMIN]).unwrap();
    let status = fs::read_to_string("/proc/thread-self/status").unwrap();
    for (key, number) in [("Uid", account.uid), ("Gid", account.gid)] {
        let line = status.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':')).unwrap();
        assert!(line.split_whitespace().all(|one| one == number.to_string()), "{status}");
    }
    assert!(status.contains("Groups:\t \n"), "{status}");
    for (key, wanted) in [("CapEff", 1 << 12), ("CapPrm", 1 << 12), ("CapBnd", 0)] {
        assert_eq!(field(&status, key, 16), wanted, "{status}");
    }
    Socket::new(Domain::IPV4, Type::DGRAM, None).unwrap().set_mark(7).unwrap();
    let error = fs::read("/etc/shadow").unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
    // Twice is once.
    privileges::lower_thread(Some(account), &[Capability::CAP_NET_ADMIN]).unwrap();
    assert_eq!(machine("id -un").trim(), name, "an executed program gains nothing");
}
