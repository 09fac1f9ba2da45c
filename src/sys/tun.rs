//! TUN devices by ioctl (Linux `Documentation/networking/tuntap.rst`, `include/uapi/linux/if_tun.h`).
//!
//! The `tun` crate's Linux device refuses more than one queue, so the queues are opened here. What to open and how to
//! degrade is `dataplane::tun`'s business.

use std::ffi::CStr;
use std::fs::OpenOptions;
use std::io::{self, IoSlice};
use std::mem;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use super::netns::Namespace;
use super::{check, check_len};

/// Bytes of the virtio-net header before each packet (`struct virtio_net_hdr`, without `num_buffers`).
pub const VNET_HEADER_LEN: usize = 10;
/// Longest name of a device, bytes (IFNAMSIZ without its NUL).
pub const NAME_MAX: usize = libc::IFNAMSIZ - 1;

/// Most queues of a device (MAX_TAP_QUEUES of linux/if_tap.h).
pub const MAX_QUEUES: u16 = 256;

/// What a queue is asked to be, beside a TUN queue without packet information.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OpenFlags {
    /// The device may have several queues (all or none of a device's queues say so).
    pub multi_queue: bool,
    /// Fail with EBUSY if the device exists already.
    pub exclusive: bool,
    /// Packets come and go as they are, without a virtio header of [`VNET_HEADER_LEN`] bytes before each.
    pub plain: bool,
}

/// What an open queue is (TUNGETIFF).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Info {
    /// The device's name now; it may be renamed at any time.
    pub name: String,
    /// A TUN device, not a TAP device.
    pub tun: bool,
    /// No four bytes of packet information before each packet.
    pub no_packet_info: bool,
    /// A virtio-net header before each packet.
    pub vnet_header: bool,
    /// The device may have several queues.
    pub multi_queue: bool,
    /// The device outlives its last queue.
    pub persistent: bool,
}

/// A device's link, as of now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// Interface index in the device's namespace.
    pub ifindex: u32,
    /// Bytes.
    pub mtu: u32,
    /// Administratively up.
    pub up: bool,
    /// Up, and with a carrier: some queue is attached.
    pub running: bool,
}

/// Opens a queue of the device `name`, making the device if there is none; `%d` in the name becomes the first free
/// number. Non-blocking, closed on exec. Returns the real name.
///
/// # Errors
/// ENOENT: no /dev/net/tun; EPERM: no CAP_NET_ADMIN; EBUSY: in use; EINVAL: the name is not allowed, another kind of
/// device has it, or the existing device differs in `multi_queue`; E2BIG: more than 256 queues.
pub fn open(name: &str, flags: OpenFlags) -> io::Result<(OwnedFd, String)> {
    let file =
        OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open("/dev/net/tun")?;
    let mut bits = libc::IFF_TUN | libc::IFF_NO_PI;
    if !flags.plain {
        bits |= libc::IFF_VNET_HDR;
    }
    if flags.multi_queue {
        bits |= libc::IFF_MULTI_QUEUE;
    }
    if flags.exclusive {
        bits |= libc::IFF_TUN_EXCL;
    }
    let mut request = request(name)?;
    // The flags are 16 bits wide in the kernel; IFF_TUN_EXCL is the top one.
    request.ifr_ifru.ifru_flags = bits as libc::c_short;
    // SAFETY: `request` is a valid ifreq, which the kernel reads and writes.
    check(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) })?;
    let fd = OwnedFd::from(file);
    if !flags.plain {
        set_vnet_header_len(&fd)?;
    }
    Ok((fd, name_of(&request)))
}

/// Sets the length of the virtio-net header to [`VNET_HEADER_LEN`] (TUNSETVNETHDRSZ).
///
/// # Errors
/// EBADFD if no device is attached.
pub fn set_vnet_header_len(queue: &impl AsFd) -> io::Result<()> {
    let len = VNET_HEADER_LEN as libc::c_int;
    // SAFETY: the kernel reads one int.
    check(unsafe { libc::ioctl(queue.as_fd().as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const len) }).map(drop)
}

/// Tells which packets the reader can take (TUNSETOFFLOAD; `libc::TUN_F_*`). A property of the device, not of the
/// queue.
///
/// # Errors
/// EINVAL if the kernel does not know one of them (USO: before 6.2), or one lacks what it needs (CSUM).
pub fn set_offload(queue: &impl AsFd, features: u32) -> io::Result<()> {
    // SAFETY: the argument is a number, not a pointer.
    check(unsafe {
        libc::ioctl(queue.as_fd().as_raw_fd(), libc::TUNSETOFFLOAD, libc::c_ulong::from(features))
    })
    .map(drop)
}

/// Sets the eBPF program that names the queue of each packet to the reader (TUNSETSTEERINGEBPF, result modulo the
/// number of queues). A property of the device.
///
/// # Errors
/// EINVAL if the program is no socket filter.
pub fn set_steering(queue: &impl AsFd, program: BorrowedFd<'_>) -> io::Result<()> {
    let number: libc::c_int = program.as_raw_fd();
    // SAFETY: the kernel reads one int. (Its header declares the call as a read; it is not.)
    check(unsafe { libc::ioctl(queue.as_fd().as_raw_fd(), libc::TUNSETSTEERINGEBPF, &raw const number) })
        .map(drop)
}

/// What the queue is (TUNGETIFF).
///
/// # Errors
/// EBADFD if no device is attached (any more); ENOTTY if it is no TUN descriptor at all.
pub fn info(queue: &impl AsFd) -> io::Result<Info> {
    let mut request = request("")?;
    // SAFETY: `request` is a valid ifreq, which the kernel writes.
    check(unsafe { libc::ioctl(queue.as_fd().as_raw_fd(), libc::TUNGETIFF, &raw mut request) })?;
    // SAFETY: the kernel wrote the flags; they are plain integers.
    let flags = libc::c_int::from(unsafe { request.ifr_ifru.ifru_flags });
    Ok(Info {
        name: name_of(&request),
        tun: flags & libc::IFF_TUN != 0,
        no_packet_info: flags & libc::IFF_NO_PI != 0,
        vnet_header: flags & libc::IFF_VNET_HDR != 0,
        multi_queue: flags & libc::IFF_MULTI_QUEUE != 0,
        persistent: flags & libc::IFF_PERSIST != 0,
    })
}

/// The namespace that the device is in now (TUNGETDEVNETNS, Linux 5.2).
///
/// # Errors
/// EPERM without CAP_NET_ADMIN there; EBADFD if the device is gone.
pub fn namespace(queue: &impl AsFd) -> io::Result<Namespace> {
    // SAFETY: the call takes no argument.
    let fd = check(unsafe { libc::ioctl(queue.as_fd().as_raw_fd(), libc::TUNGETDEVNETNS) })?;
    // SAFETY: the kernel just made this descriptor and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) }.into())
}

/// Where a queue's device is.
#[derive(Debug)]
pub enum Place {
    /// In the calling thread's namespace.
    Here(Link),
    /// Moved to another one, by this name.
    Elsewhere(String, Namespace),
}

/// Where the queue's device is now.
///
/// # Errors
/// EBADFD if the device is gone; ENODEV if it is renamed or moved in this very moment.
pub fn place(queue: &impl AsFd) -> io::Result<Place> {
    let name = info(queue)?.name;
    let here = Namespace::current()?.identity()?;
    match namespace(queue) {
        Ok(there) if there.identity()? != here => Ok(Place::Elsewhere(name, there)),
        Ok(_) => link_by_name(&name).map(Place::Here),
        // Without privileges nobody can have moved it for us to follow.
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => link_by_name(&name).map(Place::Here),
        Err(error) => Err(error),
    }
}

/// The link of the queue's device, wherever it has been moved.
///
/// # Errors
/// Those of [`place`]; EPERM without CAP_SYS_ADMIN if the device is in another namespace.
pub fn link(queue: &impl AsFd) -> io::Result<Link> {
    match place(queue)? {
        Place::Here(link) => Ok(link),
        Place::Elsewhere(name, there) => there.run(|| link_by_name(&name)),
    }
}

/// The link of this name in the calling thread's namespace.
///
/// # Errors
/// ENODEV if there is none.
pub fn link_by_name(name: &str) -> io::Result<Link> {
    // Any socket will do; this one is never bound.
    // SAFETY: no pointer is passed.
    let socket = check(unsafe { libc::socket(libc::AF_UNIX, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) })?;
    // SAFETY: the kernel just made this descriptor and nobody else knows it.
    let socket = unsafe { OwnedFd::from_raw_fd(socket) };
    let ask = |call| -> io::Result<libc::ifreq> {
        let mut request = request(name)?;
        // SAFETY: `request` is a valid ifreq, which the kernel reads and writes.
        check(unsafe { libc::ioctl(socket.as_raw_fd(), call, &raw mut request) })?;
        Ok(request)
    };
    let (index, mtu, flags) = (ask(libc::SIOCGIFINDEX)?, ask(libc::SIOCGIFMTU)?, ask(libc::SIOCGIFFLAGS)?);
    // SAFETY: each call has written the field that is read here; all are plain integers.
    let (index, mtu, flags) =
        unsafe { (index.ifr_ifru.ifru_ifindex, mtu.ifr_ifru.ifru_mtu, flags.ifr_ifru.ifru_flags) };
    let flags = libc::c_int::from(flags);
    Ok(Link {
        ifindex: u32::try_from(index).unwrap_or(0),
        mtu: u32::try_from(mtu).unwrap_or(0),
        up: flags & libc::IFF_UP != 0,
        running: flags & libc::IFF_RUNNING != 0,
    })
}

/// Writes one packet (virtio-net header first, where the queue has one) without waiting. The kernel takes it whole.
///
/// # Errors
/// WouldBlock when the queue is full; EIO while the link is down; EBADFD when the device is gone; EINVAL for a
/// header or packet that it does not accept.
pub fn write(queue: &impl AsFd, parts: &[IoSlice<'_>]) -> io::Result<usize> {
    let count = libc::c_int::try_from(parts.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: `IoSlice` has the layout of iovec on Unix (std guarantees it), and each part is readable for its
    // length.
    check_len(unsafe { libc::writev(queue.as_fd().as_raw_fd(), parts.as_ptr().cast(), count) })
}

/// A zeroed request about the device `name`.
fn request(name: &str) -> io::Result<libc::ifreq> {
    if name.len() > NAME_MAX || name.bytes().any(|b| b == 0) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: ifreq is plain integers and pointers; all zero is valid.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    Ok(request)
}

fn name_of(request: &libc::ifreq) -> String {
    let bytes = request.ifr_name.map(|c| c as u8);
    CStr::from_bytes_until_nul(&bytes).map_or_else(|_| String::new(), |s| s.to_string_lossy().into_owned())
}
