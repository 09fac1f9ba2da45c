//! What the ring may do for ever after: exactly the requests that this module makes.
//!
//! A ring is a second way to the kernel, past any system call filter: whoever takes the process over could open files
//! and make connections with it. So it is made disabled, restricted, and then enabled (io_uring_register(2),
//! IORING_REGISTER_RESTRICTIONS).

use io_uring::register::Restriction;
use io_uring::{IoUring, opcode, squeue};

use super::RingError;

/// Of `enum io_uring_register_op` (linux/io_uring.h): buffers come and go with the sockets, and the end cancels.
const REGISTER_PBUF_RING: u8 = 22;
const UNREGISTER_PBUF_RING: u8 = 23;
const REGISTER_SYNC_CANCEL: u8 = 24;

/// Restricts a ring that was set up disabled, and enables it. The calling thread becomes the only one that may
/// submit. A kernel that knows no such restriction, or a filter that forbids it, costs a defence in depth, and a line
/// in the log.
///
/// # Errors
/// The ring cannot be enabled.
pub(super) fn restrict_and_enable(uring: &IoUring, read_multishot: bool) -> Result<(), RingError> {
    let submitter = uring.submitter();
    if let Err(error) = submitter.register_restrictions(&mut restrictions(read_multishot)) {
        tracing::warn!(%error, "io_uring stays unrestricted: the kernel, or a seccomp filter, refused");
    }
    submitter.register_enable_rings().map_err(RingError::at("enabling io_uring"))
}

/// `read_multishot`: a kernel refuses the whole list for an opcode that it does not know.
fn restrictions(read_multishot: bool) -> Vec<Restriction> {
    let opcodes =
        [opcode::Read::CODE, opcode::RecvMsgMulti::CODE, opcode::PollAdd::CODE, opcode::AsyncCancel::CODE];
    let multishot = read_multishot.then_some(opcode::ReadMulti::CODE);
    let registers = [REGISTER_PBUF_RING, UNREGISTER_PBUF_RING, REGISTER_SYNC_CANCEL];
    let flags = Restriction::sqe_flags_allowed(squeue::Flags::BUFFER_SELECT.bits());
    let opcodes = opcodes.into_iter().chain(multishot).map(Restriction::sqe_op);
    opcodes.chain(registers.map(Restriction::register_op)).chain([flags]).collect()
}
