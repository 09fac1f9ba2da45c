use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::process::Command;

use super::*;
use crate::sys::testing::{Scratch, skip};

const BEFORE: &str = "# a host's own\nnameserver 198.18.0.53\noptions edns0\n";

/// A host in a directory.
fn host(scratch: &Scratch) -> Host {
    fs::create_dir(scratch.0.join("etc")).unwrap();
    let [resolv_conf, run, bus] = ["etc/resolv.conf", "run", "bus"].map(|name| scratch.0.join(name));
    let host = Host { resolv_conf, run, resolvconf: None, bus };
    fs::write(&host.resolv_conf, BEFORE).unwrap();
    host
}

fn settings() -> Settings {
    Settings {
        link: "wg0".parse().unwrap(),
        servers: ["100.64.0.1", "fd64::1"].map(|text| text.parse().unwrap()).into(),
        search: vec!["example.net".to_owned(), "a-b_c.example.".to_owned()],
        match_domains: vec![],
    }
}

fn now(host: &Host) -> String {
    fs::read_to_string(&host.resolv_conf).unwrap()
}

const OURS: &str = "nameserver 100.64.0.1\nnameserver fd64::1\nsearch example.net a-b_c.example.\n";

#[test]
fn the_file_is_afterwards_what_it_was_before() {
    let scratch = Scratch::new("dns");
    let host = host(&scratch);
    fs::set_permissions(&host.resolv_conf, fs::Permissions::from_mode(0o640)).unwrap();
    let dns = Dns::apply(&host, &settings()).unwrap();
    assert!(
        now(&host).ends_with(OURS) && now(&host).starts_with("# Ringway's for the tunnel wg0;"),
        "{}",
        now(&host)
    );
    // A renewal brings other servers.
    let _ = Dns::apply(&host, &Settings { search: vec![], ..settings() }).unwrap();
    assert!(!now(&host).contains("search"));
    dns.undo().unwrap();
    assert_eq!(now(&host), BEFORE);
    assert_eq!(fs::metadata(&host.resolv_conf).unwrap().permissions().mode() & 0o777, 0o640);
    assert_eq!(fs::read_dir(&host.run).unwrap().count(), 0);
    assert_eq!(fs::read_dir(scratch.0.join("etc")).unwrap().count(), 1);
}

#[test]
fn a_link_stays_a_link_and_no_file_is_none_again() {
    let scratch = Scratch::new("dns");
    let host = host(&scratch);
    let real = scratch.0.join("etc/real.conf");
    fs::rename(&host.resolv_conf, &real).unwrap();
    symlink("real.conf", &host.resolv_conf).unwrap();
    for before in [Some(BEFORE), None] {
        match before {
            Some(text) => fs::write(&real, text).unwrap(),
            None => fs::remove_file(&real).unwrap(),
        }
        let dns = Dns::apply(&host, &settings()).unwrap();
        assert!(fs::read_to_string(&real).unwrap().ends_with(OURS));
        dns.undo().unwrap();
        assert_eq!(fs::read_link(&host.resolv_conf).unwrap(), Path::new("real.conf"));
        assert_eq!(fs::read_to_string(&real).ok().as_deref(), before);
    }
}

#[test]
fn what_a_killed_process_left_is_put_back_once() {
    let scratch = Scratch::new("dns");
    let host = host(&scratch);
    let link = settings().link;
    undo_leftovers(&host, &link).unwrap();
    // Nothing is done on drop, as nothing is done by a process that is killed.
    drop(Dns::apply(&host, &settings()).unwrap());
    drop(Dns::apply(&host, &Settings { search: vec![], ..settings() }).unwrap());
    assert!(now(&host).contains("100.64.0.1"));
    undo_leftovers(&host, &"wg1".parse().unwrap()).unwrap();
    assert!(now(&host).contains("100.64.0.1"), "another tunnel's");
    undo_leftovers(&host, &link).unwrap();
    assert_eq!(now(&host), BEFORE);
    fs::write(&host.resolv_conf, "nameserver 198.18.0.54\n").unwrap();
    undo_leftovers(&host, &link).unwrap();
    assert_eq!(now(&host), "nameserver 198.18.0.54\n");
}

#[test]
fn tunnels_end_in_any_order() {
    let names = ["wg0", "wg1", "wg2"];
    for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
        let scratch = Scratch::new("dns");
        let host = host(&scratch);
        for name in names {
            let _ = Dns::apply(&host, &Settings { link: name.parse().unwrap(), ..settings() }).unwrap();
        }
        let mut up = vec![0, 1, 2];
        for ended in order {
            undo_leftovers(&host, &names[ended].parse().unwrap()).unwrap();
            up.retain(|one| *one != ended);
            match up.last() {
                Some(last) => assert!(now(&host).contains(names[*last]), "{order:?}: {}", now(&host)),
                None => assert_eq!(now(&host), BEFORE, "{order:?}"),
            }
        }
    }
}

#[test]
fn what_was_before_a_tunnel_is_known_while_its_servers_are_in_the_file() {
    let scratch = Scratch::new("dns");
    let host = host(&scratch);
    let link = settings().link;
    assert_eq!(before(&host, &link), BEFORE);
    // A process that was killed.
    let _ = Dns::apply(&host, &settings()).unwrap();
    assert_eq!(before(&host, &link), BEFORE);
    assert!(before(&host, &"wg1".parse().unwrap()).contains(OURS), "another tunnel's is this one's underlay");
    fs::write(&host.resolv_conf, "nameserver 198.18.1.53\n").unwrap();
    assert_eq!(before(&host, &link), "nameserver 198.18.1.53\n", "another network's");
    fs::remove_file(&host.resolv_conf).unwrap();
    assert_eq!(before(&host, &link), "");
}

#[test]
fn what_somebody_else_has_written_since_stays() {
    let scratch = Scratch::new("dns");
    let host = host(&scratch);
    let dns = Dns::apply(&host, &settings()).unwrap();
    let theirs = "nameserver 198.18.0.99\n";
    fs::write(&host.resolv_conf, theirs).unwrap();
    dns.undo().unwrap();
    assert_eq!(now(&host), theirs);
    // Written between a kill and the next start: that is what comes back.
    drop(Dns::apply(&host, &settings()).unwrap());
    fs::write(&host.resolv_conf, BEFORE).unwrap();
    Dns::apply(&host, &settings()).unwrap().undo().unwrap();
    assert_eq!(now(&host), BEFORE);
}

#[test]
fn a_record_that_is_cut_short_is_an_error_and_changes_nothing() {
    let scratch = Scratch::new("dns");
    let host = host(&scratch);
    drop(Dns::apply(&host, &settings()).unwrap());
    let (record, set) = (host.record(&settings().link), now(&host));
    let whole = fs::read(&record).unwrap();
    for length in 0..whole.len() {
        fs::write(&record, &whole[..length]).unwrap();
        assert!(matches!(undo_leftovers(&host, &settings().link), Err(DnsError::File(..))), "{length}");
        assert_eq!(now(&host), set);
    }
    fs::write(&record, &whole).unwrap();
    undo_leftovers(&host, &settings().link).unwrap();
    assert_eq!(now(&host), BEFORE);
}

#[test]
fn what_would_be_another_line_or_another_file_is_refused() {
    let scratch = Scratch::new("dns");
    let host = host(&scratch);
    let apply = |settings: &Settings| Dns::apply(&host, settings).map(drop);
    for name in
        ["", ".", "a..b", "a b", "a\nnameserver 198.18.0.66", "é.example", &"a.".repeat(127), &"a".repeat(64)]
    {
        let refused = apply(&Settings { search: vec![name.to_owned()], ..settings() });
        assert!(matches!(refused, Err(DnsError::Domain(_))), "{name}");
    }
    let servers = |count| Settings { servers: vec!["::1".parse().unwrap(); count], ..settings() };
    assert!(matches!(apply(&servers(0)), Err(DnsError::Servers(0))));
    assert!(matches!(apply(&servers(MAX_SERVERS + 1)), Err(DnsError::Servers(_))));
    let many = Settings { search: vec!["a".to_owned(); MAX_DOMAINS + 1], ..settings() };
    assert!(matches!(apply(&many), Err(DnsError::Domains(_))));
    let many = Settings { match_domains: vec!["a".to_owned(); MAX_DOMAINS + 1], ..settings() };
    assert!(matches!(apply(&many), Err(DnsError::Domains(_))));
    let split = |name: &str| Settings { match_domains: vec![name.to_owned()], ..settings() };
    assert!(matches!(apply(&split(".")), Err(DnsError::Domain(_))));
    let refused = apply(&split("corp.example")).unwrap_err();
    assert!(matches!(refused, DnsError::Split { .. }) && refused.to_string().contains("~corp.example"));
    assert_eq!(now(&host), BEFORE);
    assert!(!host.run.exists());
}

#[test]
fn the_file_of_systemd_resolved_is_its_own_even_if_nobody_answers_for_it() {
    let scratch = Scratch::new("dns");
    let host = host(&scratch);
    // There is such a link everywhere.
    let mine = Settings { link: "lo".parse().unwrap(), ..settings() };
    let refused = || {
        let error = Dns::apply(&host, &mine).map(drop).unwrap_err();
        assert!(matches!(&error, DnsError::Resolved(why) if why.contains("/bus: ")), "{error}");
    };
    let stub = "nameserver 127.0.0.53\noptions edns0 trust-ad\n";
    fs::write(&host.resolv_conf, stub).unwrap();
    refused();
    assert_eq!(now(&host), stub);
    // Another's file on another address of this host.
    fs::write(&host.resolv_conf, "# nameserver 127.0.0.53\nnameserver 127.0.0.1\n").unwrap();
    Dns::apply(&host, &mine).unwrap().undo().unwrap();
    let theirs = scratch.0.join("systemd");
    fs::create_dir(&theirs).unwrap();
    fs::rename(&host.resolv_conf, theirs.join("stub-resolv.conf")).unwrap();
    symlink(theirs.join("stub-resolv.conf"), &host.resolv_conf).unwrap();
    refused();
    // It has not been started yet.
    fs::remove_dir_all(&theirs).unwrap();
    refused();
    assert!(!theirs.exists() && fs::read_dir(&host.run).unwrap().count() == 0);
}

/// openresolv as Debian has it, with a directory in the place of the root.
#[test]
fn a_real_resolvconf_takes_the_servers_and_gives_them_back() {
    let tools = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/tools/openresolv");
    let Ok(script) = fs::read_to_string(tools.join("sbin/resolvconf")) else {
        return skip("needs openresolv: bench-scripts/deps");
    };
    let scratch = Scratch::new("dns");
    let mut host = host(&scratch);
    let root = scratch.0.display();
    let mut local = String::new();
    for line in script.lines() {
        let place = match line.split_once('=') {
            Some(("SYSCONFDIR", _)) => format!("SYSCONFDIR={root}/etc"),
            Some(("LIBEXECDIR", _)) => format!("LIBEXECDIR={}/lib/resolvconf", tools.display()),
            Some(("VARDIR", _)) => format!("VARDIR={root}/var"),
            _ => line.to_owned(),
        };
        local.push_str(&format!("{place}\n"));
    }
    let program = scratch.0.join("resolvconf");
    fs::write(&program, local).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let conf = format!("resolv_conf={}\n", host.resolv_conf.display());
    fs::write(scratch.0.join("etc/resolvconf.conf"), conf).unwrap();
    let shell = format!("echo nameserver 198.18.0.53 | {} -a eth0", program.display());
    assert!(Command::new("sh").args(["-c", &shell]).status().unwrap().success());
    let before = now(&host);
    assert!(before.contains("nameserver 198.18.0.53"), "{before}");

    host.resolvconf = Some(program);
    let dns = Dns::apply(&host, &settings()).unwrap();
    let during = now(&host);
    assert!(during.contains("nameserver 100.64.0.1") && during.contains("nameserver fd64::1"), "{during}");
    assert!(during.contains("search example.net") && !during.contains("198.18.0.53"), "{during}");
    drop(dns);
    undo_leftovers(&host, &settings().link).unwrap();
    assert_eq!(now(&host), before);
    undo_leftovers(&host, &settings().link).unwrap();
    assert_eq!(now(&host), before);
}
