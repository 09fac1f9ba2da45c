//! The device's offloads: what can be had at start, turning them on and off while packets flow, what is told of them.
//!
//! The workers look at the shared [`Switches`] themselves. Two offloads are also the kernel's business and are set
//! here: which super-packets the TUN device hands out (TUNSETOFFLOAD), and UDP_GRO on the outer sockets. What is on
//! its way in either form while a switch is turned is understood in either position, but for what the outer sockets
//! hold when UDP_GRO is turned off: the kernel then yields runs without the length of their datagrams, and they are
//! lost.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use anyhow::Context as _;
use serde_json::{Value, json};

use super::Settings;
use crate::dataplane::Sockets;
use crate::dataplane::offload::switches::{Reason, Switch, Switches};
use crate::dataplane::tun::{self, TunDevice, TunOffloads};
use crate::sys::socket;

/// What control knows of the offloads.
pub(super) struct Offloads {
    switches: Switches,
    /// What the TUN device can hand out.
    tun: TunOffloads,
    /// Datagrams of one segmented send.
    segments: usize,
}

impl Offloads {
    /// Finds out what the kernel and the device have, and turns off what is not wanted.
    pub(super) fn new(
        device: &TunDevice,
        sockets: &[Sockets],
        segments: usize,
        settings: &Settings,
    ) -> anyhow::Result<Self> {
        let offloads = Self {
            switches: Switches::new(settings.offload, settings.mss_clamp),
            tun: device.offloads,
            segments,
        };
        let lacks = |switch| offloads.switches.set(switch, Some(Reason::Unsupported));
        if !device.offloads.tso {
            lacks(Switch::TunRead);
            lacks(Switch::TunWrite);
        }
        if segments <= 1 {
            lacks(Switch::UdpSend);
        }
        if set_receive(sockets, settings.offload.udp_receive).is_err() {
            lacks(Switch::UdpReceive);
        }
        if !offloads.switches.now().is_on(Switch::TunRead)
            && let Some(queue) = device.queues.first()
        {
            tun::set_offloads(queue, TunOffloads::NONE).context("switching the device's offloads off")?;
        }
        Ok(offloads)
    }

    /// For the workers, and whoever wants to see.
    pub(super) fn switches(&self) -> &Switches {
        &self.switches
    }

    /// Turns a switch.
    pub(super) fn set(
        &self,
        switch: Switch,
        on: bool,
        queue: Option<&Arc<OwnedFd>>,
        sockets: &[Sockets],
    ) -> io::Result<()> {
        if self.switches.now().reason(switch) == Some(Reason::Unsupported) {
            // Off is what it is.
            return if on { Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP)) } else { Ok(()) };
        }
        match (switch, queue) {
            (Switch::TunRead, Some(queue)) => {
                tun::set_offloads(queue, if on { self.tun } else { TunOffloads::NONE })?;
            }
            (Switch::UdpReceive, _) => set_receive(sockets, on)?,
            _ => {}
        }
        tracing::info!(switch = switch.name(), on, "switched");
        self.switches.set(switch, (!on).then_some(Reason::Operator));
        Ok(())
    }

    /// Sockets of another listen port are as the old ones were.
    pub(super) fn receive_on(&self, sockets: &[Sockets]) {
        // They are the same kernel's: what could be set on the old ones can be set on these.
        let _ = set_receive(sockets, self.switches.now().is_on(Switch::UdpReceive));
    }

    /// One switch: `{"on": true}`, or with the reason why not.
    pub(super) fn state(&self, switch: Switch) -> Value {
        match self.switches.now().reason(switch) {
            None => json!({ "on": true }),
            Some(reason) => json!({ "on": false, "reason": reason.text() }),
        }
    }

    /// All offloads by direction.
    pub(super) fn report(&self) -> Value {
        let mut all = json!({
            "tun_read": self.state(Switch::TunRead),
            "tun_write": self.state(Switch::TunWrite),
            "udp_send": self.state(Switch::UdpSend),
            "udp_receive": self.state(Switch::UdpReceive),
        });
        // Without USO only TCP comes and goes in super-packets.
        all["tun_read"]["uso"] = self.tun.uso.into();
        all["udp_send"]["segments"] = self.segments.into();
        all
    }
}

/// UDP_GRO on all sockets: the kernel asks any one of a group whether it may put datagrams together.
fn set_receive(sockets: &[Sockets], on: bool) -> io::Result<()> {
    for fd in sockets.iter().flat_map(|sockets| [&sockets.v4, &sockets.v6]).flatten() {
        socket::set_gro(fd, on)?;
    }
    Ok(())
}
