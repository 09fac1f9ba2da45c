//! The probes: each a pure function from what was read to a finding, so that every finding can be provoked.

use std::net::SocketAddr;
use std::time::Duration;

use super::finding::{Finding, Probe};
use crate::dataplane::io::ring::RingError;
use crate::dataplane::steering::SteeringError;
use crate::dataplane::tun::{TunError, TunOffloads};
use crate::net::manners::foreign::{ForeignDrop, Found};
use crate::net::sysctl::{Family, Parameter};

const KERNEL: Probe =
    Probe { name: "kernel", why: "io_uring and the offloads came with the kernel's versions" };
const IO_URING: Probe = Probe {
    name: "io_uring",
    why: "workers receive through a ring; where there is none they poll, with more processor time per small packet",
};
const BPF: Probe = Probe {
    name: "bpf",
    why: "a program on the device leads each packet to its worker; without it several workers hand packets over",
};
const TUN: Probe =
    Probe { name: "tun", why: "packets enter and leave by a TUN device; offloads are worth 4 to 5 times" };
const MEMLOCK: Probe = Probe { name: "memlock", why: "rings and session keys are locked in memory" };
const FORWARDING: Probe =
    Probe { name: "forwarding", why: "without forwarding clients reach this host and nothing behind it" };
const ACCEPT_RA: Probe = Probe {
    name: "accept_ra",
    why: "who forwards IPv6 is a router, and ignores router advertisements unless accept_ra is 2: \
          the default route is lost",
};
const RP_FILTER: Probe = Probe {
    name: "rp_filter",
    why: "strict reverse path filtering drops packets whose way back leaves by another interface",
};
const FIREWALL: Probe = Probe {
    name: "firewall",
    why: "a packet must pass every chain of its hook: an accept of ours saves it from nobody else's drop",
};
const MTU: Probe =
    Probe { name: "mtu", why: "datagrams larger than the path are cut into fragments, or vanish" };
const CLOCK: Probe = Probe {
    name: "clock",
    why: "handshakes carry the time: a clock that goes back locks peers out until it has caught up",
};
const BUFFERS: Probe = Probe {
    name: "buffers",
    why: "what arrives while a worker is busy waits in the socket's buffer or is lost",
};
const GOVERNOR: Probe =
    Probe { name: "governor", why: "a core that clocks down between packets adds latency" };
const STEAL: Probe = Probe { name: "steal", why: "what the hypervisor gives to others is missing here" };
const PORT: Probe = Probe { name: "port", why: "peers reach the gateway at its UDP port" };
const DEVICES: Probe =
    Probe { name: "devices", why: "peers, ports and marks are known to whoever serves a device" };

/// Locked memory of a worker that no limit gets in the way of, bytes.
pub(super) const LOCKED_PER_WORKER: u64 = 8 << 20;
/// What a worker asks for each socket buffer, bytes.
pub(super) const SOCKET_BUFFER: u64 = 4 << 20;
/// 2025-01-01T00:00:00Z, seconds since the Unix epoch: earlier than any Ringway.
const EARLIEST: u64 = 1_735_689_600;
/// Of the processor's time, in percent: more than this is missed.
const STEAL_LIMIT: u64 = 5;

/// `uname -r`: 6.1 is the floor, 6.2 brought USO, 6.7 multishot reads.
pub(super) fn kernel(release: &str) -> Finding {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|part| part.parse::<u32>().ok());
    let (Some(Some(major)), Some(Some(minor))) = (numbers.next(), numbers.next()) else {
        return KERNEL
            .unknown(format!("'{release}' is no version"), "look at `uname -r`: 6.1 or newer is needed");
    };
    let newer = "install a newer kernel (Debian: apt install -t bookworm-backports linux-image-amd64)";
    match (major, minor) {
        version if version < (6, 1) => KERNEL.fail(format!("{release} is older than 6.1"), newer),
        version if version < (6, 2) => {
            KERNEL.warn(format!("{release} has no UDP offload on TUN (6.2)"), newer)
        }
        version if version < (6, 7) => KERNEL.warn(format!("{release} has no multishot reads (6.7)"), newer),
        _ => KERNEL.ok(release),
    }
}

/// A trial ring; `disabled` is kernel.io_uring_disabled, if there is such a sysctl.
pub(super) fn io_uring(disabled: Option<u8>, trial: &Result<(), RingError>) -> Finding {
    let fix = match trial {
        Ok(()) if disabled.unwrap_or(0) == 0 => return IO_URING.ok("a trial ring works"),
        Ok(()) => return IO_URING.ok("a trial ring works for this user (kernel.io_uring_disabled = 1)"),
        Err(RingError::Sysctl(_)) => "sysctl -w kernel.io_uring_disabled=0",
        Err(RingError::Seccomp(_)) => {
            "allow io_uring_setup, io_uring_enter and io_uring_register in the seccomp profile"
        }
        Err(RingError::Memory { .. }) => {
            "systemctl edit ringway: LimitMEMLOCK=infinity (a container: --ulimit memlock=-1)"
        }
        Err(RingError::Kernel { .. }) => "install Linux 6.1 or newer with CONFIG_IO_URING",
        Err(RingError::Slots(_) | RingError::Other { .. }) => "look into the kernel's log: dmesg | tail",
    };
    match trial {
        Err(error) => IO_URING.warn(error.to_string(), fix),
        Ok(()) => IO_URING.ok("a trial ring works"),
    }
}

/// A trial load of the steering program and its maps; `unprivileged` is kernel.unprivileged_bpf_disabled.
pub(super) fn bpf(unprivileged: Option<u8>, trial: &Result<(), SteeringError>, root: bool) -> Finding {
    let disabled = unprivileged.map_or_else(|| "not there".to_owned(), |value| value.to_string());
    let sysctl =
        format!("kernel.unprivileged_bpf_disabled is {disabled}, which is right for every user but ours");
    match trial {
        Ok(()) => BPF.ok(format!("the steering program loads and does what it should; {sysctl}")),
        Err(SteeringError::NotPermitted) if !root => {
            BPF.unknown("this user may not load it", "sudo ringway doctor")
        }
        Err(error @ SteeringError::NotPermitted) => BPF.warn(
            error.to_string(),
            "grant CAP_BPF (AmbientCapabilities=CAP_BPF CAP_NET_ADMIN; a container: --cap-add BPF), or use one worker",
        ),
        Err(error) => BPF.warn(error.to_string(), "use one worker, or a kernel with CONFIG_BPF_SYSCALL"),
    }
}

/// A trial device, with what it accepted.
pub(super) fn tun(trial: &Result<TunOffloads, TunError>, root: bool) -> Finding {
    match trial {
        Ok(TunOffloads { tso: true, uso: true }) => TUN.ok("a trial device takes TCP and UDP super-packets"),
        Ok(TunOffloads { tso: true, uso: false }) => {
            TUN.warn("a trial device takes TCP but no UDP super-packets", "install Linux 6.2 or newer")
        }
        Ok(_) => TUN.warn("a trial device takes no super-packets", "install Linux 6.2 or newer"),
        Err(error @ TunError::NoDriver) => {
            TUN.fail(error.to_string(), "modprobe tun (a container: --device /dev/net/tun)")
        }
        Err(TunError::NotPermitted { .. }) if !root => {
            TUN.unknown("this user may not make a trial device", "sudo ringway doctor")
        }
        Err(error @ TunError::NotPermitted { .. }) => TUN.fail(
            error.to_string(),
            "grant CAP_NET_ADMIN (AmbientCapabilities=CAP_NET_ADMIN; a container: --cap-add NET_ADMIN)",
        ),
        Err(error) => TUN.fail(error.to_string(), "look into the kernel's log: dmesg | tail"),
    }
}

/// The hard limit of locked memory, bytes; `raisable` with CAP_SYS_RESOURCE or CAP_IPC_LOCK.
pub(super) fn memlock(hard: u64, raisable: bool, workers: u64) -> Finding {
    let wanted = workers * LOCKED_PER_WORKER;
    let size =
        |bytes: u64| if bytes == u64::MAX { "unlimited".to_owned() } else { format!("{} KiB", bytes >> 10) };
    match hard {
        _ if raisable => MEMLOCK.ok(format!("{}, and this user may raise it", size(hard))),
        hard if hard >= wanted => MEMLOCK.ok(size(hard)),
        hard => MEMLOCK.warn(
            format!("{} where {workers} workers want {}", size(hard), size(wanted)),
            "systemctl edit ringway: LimitMEMLOCK=infinity (ulimit -l unlimited; --ulimit memlock=-1)",
        ),
    }
}

/// An interface's forwarding, IPv4 and IPv6; `None` where the family is missing.
pub(super) fn forwarding(interface: &str, v4: Option<bool>, v6: Option<bool>) -> Finding {
    let word = |state| match state {
        Some(true) => "on",
        Some(false) => "off",
        None => "not there",
    };
    let found = format!("{interface}: IPv4 {}, IPv6 {}", word(v4), word(v6));
    let mut fixes = Vec::new();
    if v4 == Some(false) {
        fixes.push(setting(Family::V4, interface, "forwarding", 1));
    }
    if v6 == Some(false) {
        fixes.push(setting(Family::V6, "all", "forwarding", 1));
    }
    if fixes.is_empty() { FORWARDING.ok(found) } else { FORWARDING.warn(found, fixes.join("; ")) }
}

/// The command that sets an interface's parameter.
fn setting(family: Family, interface: &str, key: &str, value: u8) -> String {
    let parameter = Parameter::of(family, interface, key).map(|parameter| parameter.to_string());
    format!("sysctl -w {}={value}", parameter.unwrap_or_default())
}

/// An interface with a default route or an address by router advertisement: whether it forwards, and its `accept_ra`,
/// which is 0 where a program minds the advertisements instead of the kernel.
pub(super) fn accept_ra(interface: &str, forwards: bool, accept: u8) -> Finding {
    let found = format!(
        "{interface}: its router advertises itself, it {}, accept_ra is {accept}",
        if forwards { "forwards IPv6" } else { "does not forward IPv6" }
    );
    match accept {
        1 if forwards => ACCEPT_RA.warn(found, setting(Family::V6, interface, "accept_ra", 2)),
        _ => ACCEPT_RA.ok(found),
    }
}

/// The stricter of `all` and the interface's own holds; 2 (loose) beats 1 (strict).
pub(super) fn rp_filter(interface: &str, all: u8, own: u8) -> Finding {
    match all.max(own) {
        0 => RP_FILTER.ok(format!("{interface}: off")),
        1 => RP_FILTER.warn(
            format!("{interface}: strict (all {all}, {interface} {own})"),
            setting(Family::V4, interface, "rp_filter", 2),
        ),
        _ => RP_FILTER.ok(format!("{interface}: loose")),
    }
}

/// The chains of others that drop what a device's clients send or get.
pub(super) fn firewall(device: &str, found: Result<Found, String>) -> Vec<Finding> {
    let help = "sudo ringway doctor (it needs nft and root)";
    let Found { drops, unread } = match found {
        Ok(found) => found,
        Err(error) => return vec![FIREWALL.unknown(format!("{device}: {error}"), help)],
    };
    let warn = |drop: &ForeignDrop| FIREWALL.warn(format!("{device}: {drop}"), drop.remedy().join("; "));
    let mut findings: Vec<_> = drops.iter().map(warn).collect();
    findings.extend(unread.map(|unread| FIREWALL.unknown(format!("{device}: {unread}"), help)));
    if findings.is_empty() {
        findings.push(FIREWALL.ok(format!("{device}: nobody else's chain drops its clients' packets")));
    }
    findings
}

/// A device's MTU against that of the way to an endpoint, both in bytes.
pub(super) fn mtu(device: &str, own: u32, endpoint: SocketAddr, path: Result<u32, String>) -> Finding {
    // IPv4 or IPv6, UDP, and WireGuard's header and tag.
    let overhead = if endpoint.is_ipv4() { 20 + 8 + 32 } else { 40 + 8 + 32 };
    let family = if endpoint.is_ipv4() { "IPv4" } else { "IPv6" };
    match path {
        Ok(path) if own + overhead > path => MTU.warn(
            format!(
                "{device}: {own} and {overhead} of {family} and WireGuard exceed the {path} to {endpoint}"
            ),
            format!("ip link set {device} mtu {}", path.saturating_sub(overhead)),
        ),
        Ok(path) => MTU.ok(format!("{device}: {own} fits the {path} of the narrowest way, to {endpoint}")),
        Err(error) => MTU.warn(
            format!("{device}: no way to {endpoint}: {error}"),
            format!("ip route get {}", endpoint.ip()),
        ),
    }
}

/// Time since the Unix epoch, and whether somebody keeps it right.
pub(super) fn clock(now: Duration, synchronised: Result<bool, String>) -> Finding {
    let fix = "timedatectl set-ntp true (or run chrony)";
    match synchronised {
        _ if now.as_secs() < EARLIEST => CLOCK.fail("it shows a time before 2025", fix),
        Ok(true) => CLOCK.ok("sane and synchronised"),
        Ok(false) => CLOCK.warn("sane, but nobody keeps it synchronised", fix),
        Err(error) => CLOCK.unknown(format!("sane; adjtimex(2): {error}"), fix),
    }
}

/// net.core.rmem_max and wmem_max, bytes; `forced` if CAP_NET_ADMIN goes beyond them.
pub(super) fn buffers(receive: Option<u64>, send: Option<u64>, forced: bool) -> Finding {
    let limits = [("rmem_max", receive), ("wmem_max", send)];
    let short: Vec<_> = limits
        .into_iter()
        .filter_map(|(name, limit)| limit.filter(|limit| *limit < SOCKET_BUFFER).map(|limit| (name, limit)))
        .collect();
    let found: Vec<_> = short.iter().map(|(name, limit)| format!("{name} is {limit}")).collect();
    match short.is_empty() {
        _ if forced => BUFFERS.ok("4 MiB each: CAP_NET_ADMIN goes beyond rmem_max and wmem_max"),
        true => BUFFERS.ok("4 MiB each are permitted"),
        false => {
            let fixes = short.iter().map(|(name, _)| format!("sysctl -w net.core.{name}={SOCKET_BUFFER}"));
            BUFFERS
                .warn(format!("{}, less than 4 MiB", found.join(", ")), fixes.collect::<Vec<_>>().join("; "))
        }
    }
}

/// Scaling governor and driver of each core that has one.
pub(super) fn governor(cores: &[(String, String)]) -> Finding {
    // These drivers' "powersave" is a governor that follows the load.
    let slow = |(governor, driver): &&(String, String)| {
        governor == "powersave" && !driver.starts_with("intel_pstate") && !driver.starts_with("amd-pstate")
    };
    match (cores.first(), cores.iter().filter(slow).count()) {
        (None, _) => GOVERNOR.ok("no frequency scaling is visible here"),
        (Some((governor, driver)), 0) => GOVERNOR.ok(format!("{governor} ({driver})")),
        (_, slow) => GOVERNOR.warn(
            format!("powersave on {slow} of {} cores", cores.len()),
            "cpupower frequency-set -g performance",
        ),
    }
}

/// Ticks of all cores of two looks at /proc/stat: all, and stolen.
pub(super) fn steal(before: Option<(u64, u64)>, after: Option<(u64, u64)>) -> Finding {
    let (Some(before), Some(after)) = (before, after) else {
        return STEAL.unknown("/proc/stat cannot be read", "mount -t proc proc /proc");
    };
    let percent = |all: u64, stolen: u64| (stolen * 100).checked_div(all).unwrap_or(0);
    let since_boot = percent(after.0, after.1);
    let now = percent(after.0.saturating_sub(before.0), after.1.saturating_sub(before.1));
    let found = format!("{now} % now, {since_boot} % since boot");
    if now.max(since_boot) <= STEAL_LIMIT {
        return STEAL.ok(found);
    }
    STEAL.warn(found, "ask the host's operator for processors of your own, or fewer neighbours")
}

/// A UDP port: served by one of our devices, free, or somebody's.
pub(super) fn port(port: u16, ours: Option<&str>, taken: bool) -> Finding {
    match ours {
        Some(device) => PORT.ok(format!("{port} is {device}'s")),
        None if taken => PORT.fail(
            format!("{port} is in use by another program"),
            format!("ss -ulnp 'sport = :{port}' names it; end it, or choose another listen port"),
        ),
        None => PORT.ok(format!("{port} is free")),
    }
}

/// The devices that are served, or why they are not known.
pub(super) fn devices(names: Result<&[String], String>) -> Finding {
    match names {
        Ok([]) => DEVICES.ok("none is served"),
        Ok(names) => DEVICES.ok(names.join(", ")),
        Err(error) => DEVICES.unknown(error, "sudo ringway doctor"),
    }
}
