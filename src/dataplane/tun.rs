//! Getting a TUN device: opened with all its queues at once, or inherited with one.
//!
//! A worker opens nothing; it is handed one of the queues made here. Queues are all opened at start and closed
//! together: when one of several is closed, the kernel moves the last queue into its place, and steering would
//! name the wrong one.

use std::io;
use std::os::fd::OwnedFd;

use crate::sys::tun::{self as sys_tun, OpenFlags};

/// Which super-packets the kernel may hand us, and so which we may write.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TunOffloads {
    /// TCP segmentation, both families (and checksums left to us).
    pub tso: bool,
    /// UDP segmentation, both families (Linux 6.2). Only together with `tso`.
    pub uso: bool,
}

impl TunOffloads {
    /// All of them.
    pub const ALL: Self = Self { tso: true, uso: true };
    /// None of them: complete packets, each within the MTU.
    pub const NONE: Self = Self { tso: false, uso: false };

    fn features(self) -> u32 {
        let mut features = 0;
        if self.tso {
            features |= libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6;
        }
        if self.tso && self.uso {
            features |= libc::TUN_F_USO4 | libc::TUN_F_USO6;
        }
        features
    }
}

/// An open TUN device.
#[derive(Debug)]
pub struct TunDevice {
    /// Its name when it was opened; it may be renamed later.
    pub name: String,
    /// Its interface index when it was opened.
    pub ifindex: u32,
    /// One non-blocking descriptor per worker, in worker order.
    pub queues: Vec<OwnedFd>,
    /// What the kernel accepted.
    pub offloads: TunOffloads,
    /// True if each packet has a virtio-net header of [`sys_tun::VNET_HEADER_LEN`] bytes before it (false only for an
    /// inherited queue; then there are no offloads).
    pub vnet_header: bool,
}

/// Why there is no TUN device, with a hint for the operator.
#[derive(Debug, thiserror::Error)]
pub enum TunError {
    /// ENOENT or ENODEV.
    #[error(
        "/dev/net/tun is missing: load the kernel module (modprobe tun), or pass the device node into the container"
    )]
    NoDriver,
    /// EPERM or EACCES.
    #[error(
        "no permission to make the TUN device {name}: CAP_NET_ADMIN in this network namespace and access to \
         /dev/net/tun are needed"
    )]
    NotPermitted {
        /// The name asked for.
        name: String,
    },
    /// EBUSY, or somebody else holds a queue of it.
    #[error("the device {name} is in use: another program runs it, or it is no TUN device")]
    InUse {
        /// The name asked for.
        name: String,
    },
    /// EINVAL for a device that exists.
    #[error(
        "the device {name} exists and cannot be used with {queues} queue(s): it is no TUN device, or was made {} \
         multi_queue; delete it (ip link del {name})",
        if *queues > 1 { "without" } else { "with" }
    )]
    Different {
        /// The name asked for.
        name: String,
        /// How many queues were wanted.
        queues: u16,
    },
    /// A name that no device can have.
    #[error(
        "{name:?} is no name for a network device: 1 to 15 characters without '/', ':' or space, and not '.' or '..'"
    )]
    BadName {
        /// The name asked for.
        name: String,
    },
    /// E2BIG, or 0.
    #[error("{queues} queues are not possible: a TUN device has 1 to 256")]
    Queues {
        /// How many queues were wanted.
        queues: u16,
    },
    /// An inherited descriptor that is no usable TUN queue.
    #[error("the inherited descriptor is no TUN queue that can be used: {reason}")]
    Inherited {
        /// What is wrong with it.
        reason: String,
    },
    /// Anything else.
    #[error("cannot {action} the TUN device {name}: {source}")]
    Other {
        /// What was tried.
        action: &'static str,
        /// The name asked for.
        name: String,
        /// The error.
        source: io::Error,
    },
}

/// Opens the device `name` (made if it does not exist; `%d` becomes a free number) with `queues` queues, and the
/// best of the `wanted` offloads that the kernel has. A persistent device that nobody holds is taken over.
///
/// # Errors
/// See [`TunError`].
pub fn open_device(name: &str, queues: u16, wanted: TunOffloads) -> Result<TunDevice, TunError> {
    if queues == 0 {
        return Err(TunError::Queues { queues });
    }
    let flags = OpenFlags { multi_queue: queues > 1, ..OpenFlags::default() };
    let (first, name) = open_first(name, queues, flags)?;
    let mut all = vec![first];
    while all.len() < usize::from(queues) {
        let (next, _) = sys_tun::open(&name, flags).map_err(|error| explain(&name, queues, error))?;
        all.push(next);
    }
    let first = all.first().ok_or(TunError::Queues { queues })?;
    let offloads = negotiate(first, wanted).map_err(|source| TunError::Other {
        action: "set the offloads of",
        name: name.clone(),
        source,
    })?;
    let link = sys_tun::link(first).map_err(|source| TunError::Other {
        action: "read the link of",
        name: name.clone(),
        source,
    })?;
    Ok(TunDevice { name, ifindex: link.ifindex, queues: all, offloads, vnet_header: true })
}

/// Opens the first queue: of a new device, or of a persistent one that nobody holds. A plain open of a multi-queue
/// device that another program runs would silently join it and take its packets.
fn open_first(name: &str, queues: u16, flags: OpenFlags) -> Result<(OwnedFd, String), TunError> {
    match sys_tun::open(name, OpenFlags { exclusive: true, ..flags }) {
        Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {}
        Err(error) => return Err(explain(name, queues, error)),
        Ok(made) => return Ok(made),
    }
    let in_use = || TunError::InUse { name: name.to_owned() };
    // A TUN device has a carrier while a queue is attached. (Not visible while it is down: see below.)
    if sys_tun::link_by_name(name).is_ok_and(|link| link.running) {
        return Err(in_use());
    }
    let (queue, real) = sys_tun::open(name, flags).map_err(|error| explain(name, queues, error))?;
    // Not persistent and yet there: another program keeps it.
    if !sys_tun::info(&queue).is_ok_and(|info| info.persistent) {
        return Err(in_use());
    }
    Ok((queue, real))
}

/// Takes over a queue that another program opened (`WG_TUN_FD`): one queue, one worker.
///
/// # Errors
/// [`TunError::Inherited`] if it is no attached TUN queue without packet information.
pub fn inherit(queue: OwnedFd, wanted: TunOffloads) -> Result<TunDevice, TunError> {
    let refuse = |reason: String| TunError::Inherited { reason };
    let info = sys_tun::info(&queue).map_err(|error| refuse(error.to_string()))?;
    if !info.tun {
        return Err(refuse(format!("{} is a TAP device", info.name)));
    }
    if !info.no_packet_info {
        return Err(refuse(format!("{} was opened without IFF_NO_PI", info.name)));
    }
    set_nonblocking(&queue).map_err(|error| refuse(error.to_string()))?;
    let mut wanted = wanted;
    if info.vnet_header {
        sys_tun::set_vnet_header_len(&queue).map_err(|error| refuse(error.to_string()))?;
    } else {
        // Whoever opened it may have asked for offloads, whose packets cannot be told without the header.
        wanted = TunOffloads::NONE;
    }
    let offloads = negotiate(&queue, wanted).map_err(|error| refuse(error.to_string()))?;
    let link = sys_tun::link(&queue).map_err(|error| refuse(error.to_string()))?;
    Ok(TunDevice {
        name: info.name,
        ifindex: link.ifindex,
        queues: vec![queue],
        offloads,
        vnet_header: info.vnet_header,
    })
}

/// Changes which super-packets the kernel may hand us: at most what it accepted when the device was opened.
///
/// # Errors
/// EBADFD if the device is gone.
pub fn set_offloads(queue: &OwnedFd, offloads: TunOffloads) -> io::Result<()> {
    sys_tun::set_offload(queue, offloads.features())
}

fn set_nonblocking(queue: &OwnedFd) -> io::Result<()> {
    socket2::SockRef::from(queue).set_nonblocking(true)
}

/// Asks for the wanted offloads, then without USO (Linux before 6.2), then without any.
fn negotiate(queue: &OwnedFd, wanted: TunOffloads) -> io::Result<TunOffloads> {
    let steps = [wanted, TunOffloads { uso: false, ..wanted }, TunOffloads::NONE];
    let mut refused = None;
    for step in steps {
        let step = TunOffloads { uso: step.uso && step.tso, ..step };
        match sys_tun::set_offload(queue, step.features()) {
            Ok(()) => return Ok(step),
            Err(error) => refused = Some(error),
        }
    }
    Err(refused.unwrap_or_else(|| io::ErrorKind::Unsupported.into()))
}

fn explain(name: &str, queues: u16, error: io::Error) -> TunError {
    let name = name.to_owned();
    if error.kind() == io::ErrorKind::InvalidInput && error.raw_os_error().is_none() {
        return TunError::BadName { name };
    }
    match error.raw_os_error() {
        Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => TunError::NoDriver,
        Some(libc::EPERM | libc::EACCES) => TunError::NotPermitted { name },
        Some(libc::EBUSY) => TunError::InUse { name },
        Some(libc::E2BIG) => TunError::Queues { queues },
        Some(libc::EINVAL) if sys_tun::link_by_name(&name).is_ok() => TunError::Different { name, queues },
        Some(libc::EINVAL) => TunError::BadName { name },
        _ => TunError::Other { action: "open", name, source: error },
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{IoSlice, Read, Write};
    use std::net::UdpSocket;

    use super::*;
    use crate::sys::netns::{self, Namespace};
    use crate::sys::testing::{eventually, in_netns, ip};

    #[test]
    fn opens_every_queue_with_offloads_and_a_free_name() {
        in_netns(|| {
            let device = open_device("rw%d", 4, TunOffloads::ALL).unwrap();
            assert_eq!((device.name.as_str(), device.queues.len()), ("rw0", 4));
            assert_eq!(device.offloads, TunOffloads::ALL);
            assert!(device.vnet_header && device.ifindex > 0);
            for queue in &device.queues {
                let info = sys_tun::info(queue).unwrap();
                assert_eq!(info.name, "rw0");
                assert!(info.multi_queue && info.vnet_header && info.no_packet_info && info.tun);
            }
            let link = sys_tun::link(&device.queues[3]).unwrap();
            assert_eq!((link.ifindex, link.mtu, link.up), (device.ifindex, 1500, false));
            let second = open_device("rw%d", 1, TunOffloads { tso: false, uso: true }).unwrap();
            assert_eq!((second.name.as_str(), second.offloads), ("rw1", TunOffloads::NONE));
            assert!(!sys_tun::info(&second.queues[0]).unwrap().multi_queue);
        });
    }

    #[test]
    fn a_device_in_use_is_refused_with_any_number_of_queues() {
        in_netns(|| {
            for held in [1, 2] {
                let device = open_device("rw-held", held, TunOffloads::NONE).unwrap();
                for wanted in [1, 2] {
                    for state in ["down", "up"] {
                        ip(&format!("link set rw-held {state}"));
                        let error = open_device("rw-held", wanted, TunOffloads::NONE).unwrap_err();
                        let expected = matches!(error, TunError::InUse { .. })
                            || held != wanted && matches!(error, TunError::Different { .. });
                        assert!(expected, "{held} {wanted} {state}: {error}");
                    }
                }
                drop(device);
                // Gone with its last queue.
                eventually(|| sys_tun::link_by_name("rw-held").err());
            }
        });
    }

    #[test]
    fn a_persistent_device_is_taken_over_if_it_fits() {
        in_netns(|| {
            ip("tuntap add dev rw-one mode tun");
            ip("tuntap add dev rw-many mode tun multi_queue");
            assert_eq!(open_device("rw-one", 1, TunOffloads::ALL).unwrap().queues.len(), 1);
            assert_eq!(open_device("rw-many", 3, TunOffloads::ALL).unwrap().queues.len(), 3);
            assert!(matches!(open_device("lo", 1, TunOffloads::ALL), Err(TunError::InUse { .. })));
            ip("link set lo down");
            for (name, queues) in [("rw-one", 2), ("rw-many", 1), ("lo", 1)] {
                let error = open_device(name, queues, TunOffloads::ALL).unwrap_err();
                assert!(matches!(error, TunError::Different { .. }), "{name}: {error}");
            }
            assert!(sys_tun::link_by_name("rw-one").is_ok(), "persistent");
        });
    }

    #[test]
    fn bad_names_and_numbers_are_refused() {
        in_netns(|| {
            for name in ["", "sixteen-letters-", "a/b", "a b", ".", "..", "a\0b"] {
                let opened = open_device(name, 1, TunOffloads::NONE);
                if name.is_empty() {
                    // The kernel reads an empty name as "tun%d".
                    assert_eq!(opened.unwrap().name, "tun0");
                } else {
                    assert!(matches!(opened.unwrap_err(), TunError::BadName { .. }), "{name:?}");
                }
            }
            assert!(matches!(open_device("x", 0, TunOffloads::NONE), Err(TunError::Queues { .. })));
            assert!(matches!(open_device("x", 257, TunOffloads::NONE), Err(TunError::Queues { .. })));
            // Nothing is left of a failure.
            eventually(|| sys_tun::link_by_name("x").err());
        });
    }

    #[test]
    fn an_inherited_queue_says_whether_it_has_headers() {
        in_netns(|| {
            let made = open_device("rw-inh", 1, TunOffloads::NONE).unwrap();
            let device = inherit(made.queues.into_iter().next().unwrap(), TunOffloads::ALL).unwrap();
            assert_eq!((device.name.as_str(), device.vnet_header), ("rw-inh", true));
            assert_eq!((device.offloads, device.ifindex), (TunOffloads::ALL, made.ifindex));
            let null = OwnedFd::from(File::open("/dev/null").unwrap());
            assert!(matches!(inherit(null, TunOffloads::ALL), Err(TunError::Inherited { .. })));
            let unattached =
                OwnedFd::from(File::options().read(true).write(true).open("/dev/net/tun").unwrap());
            assert!(matches!(inherit(unattached, TunOffloads::ALL), Err(TunError::Inherited { .. })));
        });
    }

    #[test]
    fn the_link_is_found_after_a_move_and_the_end_is_ebadfd() {
        in_netns(|| {
            let device = open_device("rw-move", 1, TunOffloads::NONE).unwrap();
            let queue = &device.queues[0];
            let (sender, receiver) = std::sync::mpsc::channel();
            let (done, wait) = std::sync::mpsc::channel::<()>();
            let other = std::thread::spawn(move || {
                netns::unshare().unwrap();
                let me = std::fs::read_link("/proc/thread-self").unwrap();
                sender.send((Namespace::current().unwrap(), me)).unwrap();
                wait.recv().ok();
            });
            let (there, me) = receiver.recv().unwrap();
            let tid = me.file_name().unwrap().to_str().unwrap().to_owned();
            ip(&format!("link set rw-move netns {tid}"));
            assert_eq!(sys_tun::namespace(queue).unwrap().identity().unwrap(), there.identity().unwrap());
            let write =
                |queue: &OwnedFd| sys_tun::write(queue, &[IoSlice::new(&[0; 10]), IoSlice::new(&[0x45; 20])]);
            assert_eq!(write(queue).unwrap_err().raw_os_error(), Some(libc::EIO), "down");
            there
                .run(|| {
                    ip("link set rw-move up mtu 1280");
                    Ok(())
                })
                .unwrap();
            let link = sys_tun::link(queue).unwrap();
            assert_eq!((link.mtu, link.up, link.running), (1280, true, true));
            there
                .run(|| {
                    ip("link del rw-move");
                    Ok(())
                })
                .unwrap();
            assert_eq!(write(queue).unwrap_err().raw_os_error(), Some(libc::EBADFD), "deleted");
            assert_eq!(sys_tun::link(queue).unwrap_err().raw_os_error(), Some(libc::EBADFD));
            drop(done);
            other.join().unwrap();
        });
    }

    #[test]
    fn packets_pass_both_ways_with_a_header_before_them() {
        in_netns(|| {
            let device = open_device("rw-io", 1, TunOffloads::NONE).unwrap();
            let queue = device.queues.into_iter().next().unwrap();
            ip("addr add 100.64.0.1/24 dev rw-io");
            ip("link set rw-io up");
            let socket = UdpSocket::bind("100.64.0.1:7000").unwrap();
            socket.send_to(b"out", "100.64.0.2:7001").unwrap();
            let mut reader = File::from(queue.try_clone().unwrap());
            let mut packet = [0; 200];
            let read = loop {
                let n = reader.read(&mut packet).unwrap();
                if packet[10] >> 4 == 4 {
                    break n;
                }
            };
            assert_eq!(read, 10 + 28 + 3);
            // Send it back: addresses and ports swapped keep both checksums right.
            let mut back = packet[10..read].to_vec();
            back[12..20].rotate_left(4);
            back[20..24].rotate_left(2);
            assert_eq!(sys_tun::write(&queue, &[IoSlice::new(&[0; 10]), IoSlice::new(&back)]).unwrap(), read);
            let mut text = [0; 10];
            let (len, from) = socket.recv_from(&mut text).unwrap();
            assert_eq!((&text[..len], from), (&b"out"[..], "100.64.0.2:7001".parse().unwrap()));
            let refused = File::from(queue).write(&[0; 4]).unwrap_err();
            assert_eq!(refused.raw_os_error(), Some(libc::EINVAL), "shorter than its header");
        });
    }
}
