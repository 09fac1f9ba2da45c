//! Every finding provoked from what could be read.

use std::fs;
use std::io;
use std::time::Duration;

use super::*;
use crate::dataplane::io::ring::RingError;
use crate::dataplane::steering::SteeringError;
use crate::dataplane::tun::{TunError, TunOffloads};
use crate::net::manners::foreign::Found;
use crate::net::manners::{Service, Transport};
use crate::sys::testing::Scratch;

fn io(errno: i32) -> io::Error {
    io::Error::from_raw_os_error(errno)
}

/// The verdict, and that whatever is not well has a remedy.
fn verdict(finding: &Finding) -> Verdict {
    assert_eq!(finding.fix.is_none(), finding.verdict == Verdict::Ok, "{finding:?}");
    assert!(!finding.found.is_empty() && !finding.why.is_empty(), "{finding:?}");
    finding.verdict
}

#[test]
fn kernels() {
    for (release, expected) in [
        ("5.15.0-91-generic", Verdict::Fail),
        ("6.0.12", Verdict::Fail),
        ("6.1.0-28-amd64", Verdict::Warn),
        ("6.6.44", Verdict::Warn),
        ("6.7", Verdict::Ok),
        ("7.0.1", Verdict::Ok),
        ("10.0", Verdict::Ok),
        ("", Verdict::Unknown),
        ("four.1", Verdict::Unknown),
        ("99999999999.1", Verdict::Unknown),
    ] {
        assert_eq!(verdict(&probes::kernel(release)), expected, "{release}");
    }
    assert!(probes::kernel("6.1.0-28-amd64").found.contains("no UDP offload on TUN"));
    assert!(probes::kernel("6.2.0").found.contains("no multishot reads"));
}

#[test]
fn services_and_who_listens() {
    use services::{Listener, findings, listeners, of_report};
    let tcp = "  sl  local_address rem_address   st tx_queue\n   0: 00000000:0050 00000000:0000 0A 0\n   \
               1: 01004064:1F90 00000000:0000 0A 0\n   2: 0100007F:0019 00000000:0000 0A 0\n   \
               3: 01004064:0051 02004064:9999 01 0\nrubbish\n   4: 0100:0050 00000000:0000 0A 0\n";
    let udp6 = "   0: 00000000000000000000000000000000:0035 00000000000000000000000000000000:0000 07 0\n";
    let all: std::collections::BTreeSet<Listener> =
        listeners(Transport::Tcp, tcp).into_iter().chain(listeners(Transport::Udp, udp6)).collect();
    assert_eq!(all.len(), 4, "{all:?}");
    let own = ["100.64.0.1".parse().unwrap(), "fd64::1".parse().unwrap()];
    let service = |transport, port| Service { transport, first: port, last: port };
    let verdicts = |services: &[Service]| {
        let found = findings("wg0", services, &all, &own);
        found.iter().map(|one| (verdict(one), one.found.clone())).collect::<Vec<_>>()
    };
    let good = [service(Transport::Tcp, 80), service(Transport::Tcp, 8080), service(Transport::Udp, 53)];
    assert!(matches!(&verdicts(&good)[..], [(Verdict::Ok, found)] if found.contains("of 3 services")));
    // Of another protocol, or for the host itself only: nobody.
    for (wrong, says) in [(service(Transport::Tcp, 53), "tcp 53"), (service(Transport::Tcp, 25), "tcp 25")] {
        let found = verdicts(&[good[1], wrong]);
        assert!(matches!(&found[..], [(Verdict::Warn, found)] if found.contains(says)), "{found:?}");
    }
    let found = verdicts(&[]);
    let says = "somebody listens on 100.64.0.1, tcp 8080";
    assert!(matches!(&found[..], [(Verdict::Warn, found)] if found.contains(says)), "{found:?}");

    let told = serde_json::json!({ "services": [{ "transport": "udp", "first": 7, "last": 9 }] });
    assert_eq!(of_report(&told), Some(vec![Service { transport: Transport::Udp, first: 7, last: 9 }]));
    assert_eq!(of_report(&serde_json::json!({ "services": null })), None);
}

#[test]
fn rings() {
    assert_eq!(verdict(&probes::io_uring(Some(0), &Ok(()))), Verdict::Ok);
    assert!(probes::io_uring(Some(1), &Ok(())).found.contains("for this user"));
    let kernel = RingError::Kernel { release: "5.4".to_owned(), source: io(libc::ENOSYS) };
    for (error, fix) in [
        (RingError::Sysctl(2), "sysctl -w kernel.io_uring_disabled=0"),
        (RingError::Seccomp(io(libc::EPERM)), "io_uring_setup"),
        (RingError::Memory { what: "a ring", source: io(libc::ENOMEM) }, "LimitMEMLOCK"),
        (kernel, "6.1"),
        (RingError::Other { step: "it", source: io(libc::EMFILE) }, "dmesg"),
    ] {
        let finding = probes::io_uring(Some(2), &Err(error));
        assert_eq!(verdict(&finding), Verdict::Warn, "poll takes its place");
        assert!(finding.fix.as_ref().unwrap().contains(fix), "{finding:?}");
    }
}

#[test]
fn programs_and_devices() {
    assert_eq!(verdict(&probes::bpf(Some(2), &Ok(()), true)), Verdict::Ok);
    assert_eq!(verdict(&probes::bpf(None, &Err(SteeringError::NotPermitted), false)), Verdict::Unknown);
    assert_eq!(verdict(&probes::bpf(None, &Err(SteeringError::NotPermitted), true)), Verdict::Warn);
    assert_eq!(verdict(&probes::bpf(None, &Err(SteeringError::Map(io(libc::ENOSYS))), true)), Verdict::Warn);

    assert_eq!(verdict(&probes::tun(&Ok(TunOffloads::ALL), true)), Verdict::Ok);
    assert_eq!(
        verdict(&probes::tun(&Ok(TunOffloads { uso: false, ..TunOffloads::ALL }), true)),
        Verdict::Warn
    );
    assert_eq!(verdict(&probes::tun(&Ok(TunOffloads::NONE), true)), Verdict::Warn);
    let denied = || Err(TunError::NotPermitted { name: "x".to_owned() });
    assert_eq!(verdict(&probes::tun(&denied(), false)), Verdict::Unknown);
    assert_eq!(verdict(&probes::tun(&denied(), true)), Verdict::Fail);
    let missing = probes::tun(&Err(TunError::NoDriver), false);
    assert_eq!(verdict(&missing), Verdict::Fail);
    assert!(missing.fix.unwrap().contains("modprobe tun"));
}

#[test]
fn limits() {
    let need = 2 * probes::LOCKED_PER_WORKER;
    assert_eq!(verdict(&probes::memlock(need, false, 2)), Verdict::Ok);
    assert_eq!(verdict(&probes::memlock(need - 1, false, 2)), Verdict::Warn);
    assert_eq!(verdict(&probes::memlock(0, true, 2)), Verdict::Ok);
    assert!(probes::memlock(u64::MAX, false, 2).found.contains("unlimited"));

    let enough = Some(probes::SOCKET_BUFFER);
    assert_eq!(verdict(&probes::buffers(enough, enough, false)), Verdict::Ok);
    let short = probes::buffers(Some(212_992), enough, false);
    assert_eq!(verdict(&short), Verdict::Warn);
    assert_eq!(short.fix.unwrap(), "sysctl -w net.core.rmem_max=4194304");
    assert!(probes::buffers(enough, Some(1), false).fix.unwrap().contains("wmem_max"));
    assert_eq!(verdict(&probes::buffers(Some(1), Some(1), true)), Verdict::Ok);
    // A namespace of its own shows neither.
    assert_eq!(verdict(&probes::buffers(None, None, false)), Verdict::Ok);
}

#[test]
fn interfaces() {
    assert_eq!(verdict(&probes::forwarding("wg0", Some(true), Some(true))), Verdict::Ok);
    assert_eq!(verdict(&probes::forwarding("wg0", Some(true), None)), Verdict::Ok);
    let off = probes::forwarding("wg0", Some(false), Some(false));
    assert_eq!(verdict(&off), Verdict::Warn);
    let fix = "sysctl -w net.ipv4.conf.wg0.forwarding=1; sysctl -w net.ipv6.conf.all.forwarding=1";
    assert_eq!(off.fix.unwrap(), fix);
    assert!(!probes::forwarding("wg0", Some(true), Some(false)).fix.unwrap().contains("ipv4"));

    for (all, own, expected) in [
        (0, 0, Verdict::Ok),
        (1, 0, Verdict::Warn),
        (0, 1, Verdict::Warn),
        (1, 2, Verdict::Ok),
        (2, 0, Verdict::Ok),
    ] {
        assert_eq!(verdict(&probes::rp_filter("e0", all, own)), expected, "{all} {own}");
    }
}

#[test]
fn advertisements() {
    for (forwards, accept, expected) in
        [(true, 1, Verdict::Warn), (true, 2, Verdict::Ok), (true, 0, Verdict::Ok), (false, 1, Verdict::Ok)]
    {
        assert_eq!(verdict(&probes::accept_ra("e0", forwards, accept)), expected, "{forwards} {accept}");
    }
    let vlan = probes::accept_ra("e0.7", true, 1);
    assert_eq!(vlan.fix.unwrap(), "sysctl -w net.ipv6.conf.e0/7.accept_ra=2");

    let own = "fe80000000000000e4a5d5fffe1bb3b8 02 40 20 80     lo\n\
        20010db8000000000000000000000001 05 40 00 80     e0\n\
        20010db800000000e4a5d5fffe1bb3b8 06 40 00 00     e1\n\
        20010db800000000e4a5d5fffe1bb3b9 06 40 00 01     e1\n\
        fe80000000000000e4a5d5fffe1bb3b8 07 40 20 00     e2\n";
    assert_eq!(look::configured_interfaces(own).into_iter().collect::<Vec<_>>(), ["e1"]);
    assert!(look::configured_interfaces("").is_empty());
}

#[test]
fn firewalls() {
    assert_eq!(verdict(&probes::firewall("wg0", Ok(Found::default()))[0]), Verdict::Ok);
    assert_eq!(verdict(&probes::firewall("wg0", Err("no nft".to_owned()))[0]), Verdict::Unknown);
    let unread = Found { unread: Some("legacy".to_owned()), ..Found::default() };
    let findings = probes::firewall("wg0", Ok(unread));
    assert_eq!((findings.len(), verdict(&findings[0])), (1, Verdict::Unknown));
}

#[test]
fn ways() {
    let (v4, v6) = ("198.18.0.1:7".parse().unwrap(), "[2001:db8::1]:7".parse().unwrap());
    assert_eq!(verdict(&probes::mtu("wg0", 1440, v4, Ok(1500))), Verdict::Ok);
    assert_eq!(verdict(&probes::mtu("wg0", 1420, v6, Ok(1500))), Verdict::Ok);
    assert_eq!(verdict(&probes::mtu("wg0", 1421, v6, Ok(1500))), Verdict::Warn);
    let narrow = probes::mtu("wg0", 1420, v4, Ok(1400));
    assert_eq!(verdict(&narrow), Verdict::Warn);
    assert_eq!(narrow.fix.unwrap(), "ip link set wg0 mtu 1340");
    assert_eq!(verdict(&probes::mtu("wg0", 1420, v4, Err("no route".to_owned()))), Verdict::Warn);
}

#[test]
fn clocks_ports_and_devices() {
    let today = Duration::from_secs(1_795_000_000);
    assert_eq!(verdict(&probes::clock(today, Ok(true))), Verdict::Ok);
    assert_eq!(verdict(&probes::clock(today, Ok(false))), Verdict::Warn);
    assert_eq!(verdict(&probes::clock(today, Err("EPERM".to_owned()))), Verdict::Unknown);
    assert_eq!(verdict(&probes::clock(Duration::from_secs(9), Ok(true))), Verdict::Fail);

    assert_eq!(verdict(&probes::port(51820, None, false)), Verdict::Ok);
    assert_eq!(verdict(&probes::port(51820, Some("wg0"), false)), Verdict::Ok);
    assert_eq!(verdict(&probes::port(51820, None, true)), Verdict::Fail);

    assert_eq!(verdict(&probes::devices(Ok(&[]))), Verdict::Ok);
    assert_eq!(probes::devices(Ok(&["a".to_owned(), "b".to_owned()])).found, "a, b");
    assert_eq!(verdict(&probes::devices(Err("denied".to_owned()))), Verdict::Unknown);
}

#[test]
fn processors() {
    let core = |governor: &str, driver: &str| (governor.to_owned(), driver.to_owned());
    assert_eq!(verdict(&probes::governor(&[])), Verdict::Ok);
    assert_eq!(verdict(&probes::governor(&[core("performance", "acpi-cpufreq")])), Verdict::Ok);
    assert_eq!(verdict(&probes::governor(&[core("powersave", "intel_pstate")])), Verdict::Ok);
    let slow = [core("performance", "acpi-cpufreq"), core("powersave", "acpi-cpufreq")];
    assert!(probes::governor(&slow).found.contains("1 of 2"));
    assert_eq!(verdict(&probes::governor(&slow)), Verdict::Warn);

    assert_eq!(verdict(&probes::steal(Some((1000, 10)), Some((1100, 15)))), Verdict::Ok);
    assert_eq!(verdict(&probes::steal(Some((1000, 10)), Some((1100, 16)))), Verdict::Warn, "now");
    assert_eq!(verdict(&probes::steal(Some((1000, 99)), Some((1100, 99)))), Verdict::Warn, "since boot");
    assert_eq!(verdict(&probes::steal(Some((0, 0)), Some((0, 0)))), Verdict::Ok);
    assert_eq!(verdict(&probes::steal(None, Some((1, 0)))), Verdict::Unknown);
}

#[test]
fn what_the_kernel_writes_is_read() {
    let stat = "cpu  10 20 30 400 50 6 7 80 9 0\ncpu0 1 2 3 4 5 6 7 8 9 10\n";
    assert_eq!(look::processor_ticks(stat), Some((603, 80)));
    assert_eq!(look::processor_ticks("cpu 1 2"), None);
    assert_eq!(look::processor_ticks(""), None);

    let v4 = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n\
        eth0\t00000000\t0101A8C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n\
        wg1\t00000000\t00000000\t0001\t0\t0\t0\t00000080\t0\t0\t0\n\
        wg0\t00000040\t00000000\t0001\t0\t0\t0\t0000C0FF\t0\t0\t0\n";
    let zero = "0".repeat(32);
    let v6 = format!(
        "{zero} 01 {zero} 00 fe800000000000000000000000000001 400 1 0 3 wg2\n\
         {zero} 00 {zero} 00 fe800000000000000000000000000001 400 1 0 3 eth1\n\
         {zero} 00 {zero} 00 {zero} ffffffff 1 0 200200 lo\n"
    );
    let found: Vec<_> = look::default_interfaces(v4, &v6).into_iter().collect();
    assert_eq!(found, ["eth0", "eth1"]);

    let scratch = Scratch::new("governors");
    let directory = &scratch.0;
    fs::create_dir_all(directory.join("cpu0/cpufreq")).unwrap();
    fs::create_dir_all(directory.join("cpu1")).unwrap();
    fs::write(directory.join("cpu0/cpufreq/scaling_governor"), "powersave\n").unwrap();
    fs::write(directory.join("cpu0/cpufreq/scaling_driver"), "acpi-cpufreq\n").unwrap();
    let cores = look::governors(directory);
    assert_eq!(cores, [("powersave".to_owned(), "acpi-cpufreq".to_owned())]);
}

#[test]
fn findings_in_print() {
    let findings = [probes::port(7, None, false), probes::port(9, None, true)];
    assert_eq!(worst(&findings), Verdict::Fail);
    assert_eq!(worst(&findings[..1]), Verdict::Ok);
    let plain = text(&findings, false, false);
    let expected = "ok      port        7 is free\n\
        fail    port        9 is in use by another program\n                    \
        why: peers reach the gateway at its UDP port\n                    \
        do:  ss -ulnp 'sport = :9' names it; end it, or choose another listen port\n";
    assert_eq!(plain, expected);
    assert_eq!(text(&findings, true, false).matches("why:").count(), 2);
    assert!(text(&findings, false, true).contains("\x1b[1;31mfail"));
}
