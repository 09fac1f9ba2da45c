//! What may be switched off: the offloads by direction, and the clamp of the TCP segment size. One state for the whole
//! device, shared by its workers and the control thread.
//!
//! A switch is on, or off for a [`Reason`]. The operator may turn it either way at any time, except where the kernel
//! has no such thing. A worker that learns that the device refuses an offload turns it off for all: each worker reads
//! the state once per turn of its loop, by one load.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::types::Offload;

/// A thing that may be switched off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Switch {
    /// The TUN device hands out super-packets (TSO, USO).
    TunRead,
    /// Super-packets are written to the TUN device.
    TunWrite,
    /// Runs of datagrams are sent as one (UDP_SEGMENT).
    UdpSend,
    /// Runs of datagrams are received as one (UDP_GRO).
    UdpReceive,
    /// The segment size of TCP connections is lowered to what fits the TUN device.
    MssClamp,
}

impl Switch {
    /// All of them, offloads first.
    pub const ALL: [Self; 5] =
        [Self::TunRead, Self::TunWrite, Self::UdpSend, Self::UdpReceive, Self::MssClamp];

    /// As it is called in files, in the UAPI and in reports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::TunRead => "tun_read",
            Self::TunWrite => "tun_write",
            Self::UdpSend => "udp_send",
            Self::UdpReceive => "udp_receive",
            Self::MssClamp => "mss_clamp",
        }
    }

    /// The switch of this name; hyphens count as underscores.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        let name = name.replace('-', "_");
        Self::ALL.into_iter().find(|switch| switch.name() == name)
    }

    const fn shift(self) -> u32 {
        self as u32 * 8
    }
}

/// Why a switch is off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Reason {
    /// Somebody wanted it so.
    Operator = 1,
    /// The kernel, or the device as it was handed to us, has no such thing: it cannot be turned on.
    Unsupported,
    /// EIO for a segmented send.
    SendRefused,
    /// EINVAL for super-packets, several times in a row.
    WriteRefused,
}

impl Reason {
    const ALL: [Self; 4] = [Self::Operator, Self::Unsupported, Self::SendRefused, Self::WriteRefused];

    /// A few words for people.
    #[must_use]
    pub const fn text(self) -> &'static str {
        match self {
            Self::Operator => "switched off",
            Self::Unsupported => "the kernel or the device has none",
            Self::SendRefused => "EIO from the outer device",
            Self::WriteRefused => "EINVAL from the TUN device",
        }
    }
}

/// All switches at one moment: a byte each, 0 for on, else the number of the reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct States(u64);

impl States {
    /// Why the switch is off; `None` if it is on.
    #[must_use]
    #[inline]
    pub fn reason(self, switch: Switch) -> Option<Reason> {
        let number = (self.0 >> switch.shift()) as u8;
        Reason::ALL.into_iter().find(|reason| *reason as u8 == number)
    }

    /// True if it is on.
    #[must_use]
    #[inline]
    pub fn is_on(self, switch: Switch) -> bool {
        (self.0 >> switch.shift()) as u8 == 0
    }

    fn with(self, switch: Switch, reason: Option<Reason>) -> Self {
        let number = reason.map_or(0, |reason| reason as u64);
        Self(self.0 & !(0xff << switch.shift()) | number << switch.shift())
    }
}

/// The state of the device's switches; clones share it.
#[derive(Clone, Debug, Default)]
pub struct Switches(Arc<AtomicU64>);

impl Switches {
    /// As wanted at start.
    #[must_use]
    pub fn new(offload: Offload, mss_clamp: bool) -> Self {
        let switches = Self::default();
        let wanted = [offload.tun_read, offload.tun_write, offload.udp_send, offload.udp_receive, mss_clamp];
        for (switch, on) in Switch::ALL.into_iter().zip(wanted) {
            switches.set(switch, (!on).then_some(Reason::Operator));
        }
        switches
    }

    /// All of them now.
    #[must_use]
    #[inline]
    pub fn now(&self) -> States {
        // Nothing else is published by it.
        States(self.0.load(Ordering::Relaxed))
    }

    /// Turns a switch on (`None`) or off.
    pub fn set(&self, switch: Switch, reason: Option<Reason>) {
        let set = |states| Some(States(states).with(switch, reason).0);
        // Cannot fail: `set` always yields a value.
        let _ = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, set);
    }

    /// Turns a switch off that is on. False if somebody was faster.
    pub fn fail(&self, switch: Switch, reason: Reason) -> bool {
        let set = |states| States(states).is_on(switch).then(|| States(states).with(switch, Some(reason)).0);
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, set).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_switch_is_its_own() {
        for off in Switch::ALL {
            let on = |switch| switch != off;
            let offload = Offload {
                tun_read: on(Switch::TunRead),
                tun_write: on(Switch::TunWrite),
                udp_send: on(Switch::UdpSend),
                udp_receive: on(Switch::UdpReceive),
            };
            let states = Switches::new(offload, on(Switch::MssClamp)).now();
            for switch in Switch::ALL {
                let expected = (switch == off).then_some(Reason::Operator);
                assert_eq!(
                    (states.reason(switch), states.is_on(switch)),
                    (expected, on(switch)),
                    "{switch:?}"
                );
            }
        }
        let switches = Switches::default();
        for reason in Reason::ALL {
            for switch in Switch::ALL {
                let before = switches.now();
                switches.set(switch, Some(reason));
                assert_eq!(switches.now().reason(switch), Some(reason));
                switches.set(switch, before.reason(switch));
                assert_eq!(switches.now(), before);
            }
        }
    }

    #[test]
    fn the_first_failure_turns_it_off_for_all() {
        let switches = Switches::default();
        let other = switches.clone();
        assert!(switches.fail(Switch::UdpSend, Reason::SendRefused));
        assert!(!other.fail(Switch::UdpSend, Reason::SendRefused), "it is off");
        assert_eq!(other.now().reason(Switch::UdpSend), Some(Reason::SendRefused));
        other.set(Switch::UdpSend, Some(Reason::Operator));
        assert!(!switches.fail(Switch::UdpSend, Reason::SendRefused), "the operator's word stands");
        assert_eq!(switches.now().reason(Switch::UdpSend), Some(Reason::Operator));
        assert!(switches.now().is_on(Switch::TunWrite));
    }

    #[test]
    fn names_are_read_back() {
        for switch in Switch::ALL {
            assert_eq!(Switch::named(switch.name()), Some(switch));
            assert_eq!(Switch::named(&switch.name().replace('_', "-")), Some(switch));
        }
        assert_eq!(Switch::named("tun"), None);
    }
}
