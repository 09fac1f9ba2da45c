//! The system calls that remain when everything is set up (seccomp(2)): what a running gateway does, found by tracing
//! it, and nothing that would carry somebody who has taken it over any further: no program is started, no ring, no
//! thread and no BPF program made, no code written, no other process looked into.
//!
//! What is not listed fails with EPERM, as it would for want of a capability: a library's new idea then costs what it
//! was for, not everybody's tunnels (docs/decisions/0020-confinement.md). Hot calls have no condition on their
//! arguments, so that the kernel answers for them from a table.

use std::collections::BTreeMap;
use std::env::consts::ARCH;

use libc::c_long;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
};

/// Allowed whatever their arguments are.
const PLAIN: &[c_long] = &[
    // Packets: the ring, the sockets, the device.
    libc::SYS_io_uring_enter,
    libc::SYS_sendmsg,
    libc::SYS_sendmmsg,
    libc::SYS_sendto,
    libc::SYS_recvmsg,
    libc::SYS_recvmmsg,
    libc::SYS_recvfrom,
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_write,
    libc::SYS_writev,
    // Waiting, time, other threads of ours.
    libc::SYS_ppoll,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_create1,
    libc::SYS_eventfd2,
    libc::SYS_timerfd_create,
    libc::SYS_timerfd_settime,
    libc::SYS_futex,
    libc::SYS_nanosleep,
    libc::SYS_clock_nanosleep,
    libc::SYS_clock_gettime,
    libc::SYS_gettimeofday,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_getcpu,
    libc::SYS_membarrier,
    libc::SYS_rseq,
    libc::SYS_set_robust_list,
    libc::SYS_restart_syscall,
    libc::SYS_exit,
    libc::SYS_exit_group,
    // Sockets: another listen port, wg, netlink, the metrics' clients, the supervisor.
    libc::SYS_bind,
    libc::SYS_listen,
    libc::SYS_accept,
    libc::SYS_accept4,
    libc::SYS_connect,
    libc::SYS_shutdown,
    libc::SYS_getsockname,
    libc::SYS_getpeername,
    libc::SYS_getsockopt,
    libc::SYS_setsockopt,
    libc::SYS_socketpair,
    // Files: the configuration read again, what is left in the runtime directory, /proc and /sys.
    libc::SYS_openat,
    libc::SYS_close,
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_fstatfs,
    libc::SYS_statfs,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_readlinkat,
    libc::SYS_getdents64,
    libc::SYS_getcwd,
    libc::SYS_chdir,
    libc::SYS_lseek,
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_ftruncate,
    libc::SYS_flock,
    libc::SYS_umask,
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    libc::SYS_mkdirat,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_unlinkat,
    libc::SYS_fcntl,
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_pipe2,
    // Memory.
    libc::SYS_brk,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_mlock,
    libc::SYS_mlock2,
    libc::SYS_munlock,
    // Signals, and who we are.
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_getpid,
    libc::SYS_getppid,
    libc::SYS_gettid,
    libc::SYS_getuid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getegid,
    libc::SYS_capget,
    libc::SYS_getrlimit,
    libc::SYS_getrusage,
    libc::SYS_getrandom,
    libc::SYS_sysinfo,
    libc::SYS_uname,
];

/// The same under their older names, which only this architecture has, and its C library calls.
#[cfg(target_arch = "x86_64")]
const OLDER: &[c_long] = &[
    libc::SYS_poll,
    libc::SYS_epoll_wait,
    libc::SYS_open,
    libc::SYS_stat,
    libc::SYS_lstat,
    libc::SYS_access,
    libc::SYS_readlink,
    libc::SYS_mkdir,
    libc::SYS_rmdir,
    libc::SYS_rename,
    libc::SYS_unlink,
    libc::SYS_chmod,
    libc::SYS_dup2,
    libc::SYS_time,
];
#[cfg(not(target_arch = "x86_64"))]
const OLDER: &[c_long] = &[];

/// What an argument must be.
#[derive(Clone, Copy)]
enum Wanted {
    /// One of these.
    Any(&'static [u64]),
    /// Without any of these bits.
    Without(u64),
}

/// Nothing that could be executed is ever mapped.
const NOT_EXECUTABLE: Wanted = Wanted::Without(libc::PROT_EXEC as u64);

/// Allowed if the argument of this number is as wanted: 32 bits of it.
const BY_ARGUMENT: &[(c_long, u8, Wanted)] = &[
    (
        libc::SYS_socket,
        0,
        Wanted::Any(&[
            libc::AF_INET as u64,
            libc::AF_INET6 as u64,
            libc::AF_UNIX as u64,
            libc::AF_NETLINK as u64,
        ]),
    ),
    (libc::SYS_mmap, 2, NOT_EXECUTABLE),
    (libc::SYS_mprotect, 2, NOT_EXECUTABLE),
    // BPF_MAP_LOOKUP_ELEM, BPF_MAP_UPDATE_ELEM, BPF_MAP_DELETE_ELEM: the steering map of a running device.
    (libc::SYS_bpf, 0, Wanted::Any(&[1, 2, 3])),
    // Buffers of a replaced socket, and the end; see `dataplane::io::ring`, which restricts the rings themselves.
    (libc::SYS_io_uring_register, 1, Wanted::Any(&[22, 23, 24])),
    (
        libc::SYS_ioctl,
        1,
        Wanted::Any(&[
            libc::FIONBIO,
            libc::TCGETS,
            libc::SIOCGIFINDEX,
            libc::SIOCGIFMTU,
            libc::SIOCGIFFLAGS,
            libc::TUNGETIFF,
            libc::TUNGETDEVNETNS,
            libc::TUNSETOFFLOAD,
        ]),
    ),
    (libc::SYS_prctl, 0, Wanted::Any(&[libc::PR_SET_NAME as u64, libc::PR_SET_VMA as u64])),
    // Our own limits, not another process's.
    (libc::SYS_prlimit64, 0, Wanted::Any(&[0])),
];

/// Why there is no filter.
#[derive(Debug, thiserror::Error)]
#[error("no system call filter: {0}")]
pub struct SeccompError(String);

/// Puts the filter on all threads of the process, those to come included, for good. Every thread must have had the
/// same filters until now.
///
/// # Errors
/// The kernel has no seccomp filters, or a thread could not be reached; then no thread has it.
pub fn confine_all_threads() -> Result<(), SeccompError> {
    let program = program().map_err(|error| SeccompError(error.to_string()))?;
    seccompiler::apply_filter_all_threads(&program).map_err(|error| SeccompError(error.to_string()))
}

fn program() -> Result<BpfProgram, seccompiler::BackendError> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
        PLAIN.iter().chain(OLDER).map(|call| (*call, Vec::new())).collect();
    for (call, argument, wanted) in BY_ARGUMENT {
        rules.insert(*call, conditions(*argument, *wanted)?);
    }
    // abort(3) signals itself; nobody else is signalled.
    let ourselves = u64::from(std::process::id());
    rules.insert(libc::SYS_tgkill, vec![condition(0, SeccompCmpOp::Eq, ourselves)?]);
    let refuse = SeccompAction::Errno(libc::EPERM as u32);
    SeccompFilter::new(rules, refuse, SeccompAction::Allow, ARCH.try_into()?)?.try_into()
}

fn conditions(argument: u8, wanted: Wanted) -> Result<Vec<SeccompRule>, seccompiler::BackendError> {
    match wanted {
        Wanted::Any(values) => {
            values.iter().map(|value| condition(argument, SeccompCmpOp::Eq, *value)).collect()
        }
        Wanted::Without(bits) => Ok(vec![condition(argument, SeccompCmpOp::MaskedEq(bits), 0)?]),
    }
}

fn condition(argument: u8, op: SeccompCmpOp, value: u64) -> Result<SeccompRule, seccompiler::BackendError> {
    SeccompRule::new(vec![SeccompCondition::new(argument, SeccompCmpArgLen::Dword, op, value)?])
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;

    /// Each call with arguments that the kernel takes, or refuses otherwise, without the filter.
    #[test]
    fn arguments_decide_where_a_call_could_do_more_than_is_needed() {
        let call = |number: c_long, a: u64, b: u64, c: u64| {
            // SAFETY: no pointer but null is passed; what is mapped is new and never touched.
            let returned =
                unsafe { libc::syscall(number, a, b, c, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0) };
            if returned < 0 { io::Error::last_os_error().raw_os_error().unwrap() } else { 0 }
        };
        // On a thread of its own, which alone has the filter.
        std::thread::spawn(move || {
            let (read, write, execute) =
                (libc::PROT_READ as u64, libc::PROT_WRITE as u64, libc::PROT_EXEC as u64);
            let parent = std::os::unix::process::parent_id().into();
            let forbidden = [
                (libc::SYS_mmap, 0, 4096, read | execute),
                (libc::SYS_mprotect, 0, 0, execute),
                (libc::SYS_socket, libc::AF_ALG as u64, libc::SOCK_SEQPACKET as u64, 0),
                (libc::SYS_prctl, libc::PR_GET_DUMPABLE as u64, 0, 0),
                (libc::SYS_prlimit64, parent, libc::RLIMIT_CORE as u64, 0),
                (libc::SYS_ioctl, 0, libc::FIONREAD, 0),
                // BPF_PROG_LOAD; IORING_REGISTER_BUFFERS.
                (libc::SYS_bpf, 5, 0, 0),
                (libc::SYS_io_uring_register, 0, 0, 0),
                (libc::SYS_tgkill, parent, parent, 0),
                (libc::SYS_kill, parent, 0, 0),
                (libc::SYS_ptrace, libc::PTRACE_TRACEME as u64, 0, 0),
                (libc::SYS_personality, 0xffff_ffff, 0, 0),
            ];
            let allowed = [
                (libc::SYS_mmap, 0, 4096, read | write),
                (libc::SYS_mprotect, 0, 0, read),
                (libc::SYS_socket, libc::AF_NETLINK as u64, libc::SOCK_RAW as u64, 0),
                (libc::SYS_prlimit64, 0, libc::RLIMIT_CORE as u64, 0),
                (libc::SYS_tgkill, std::process::id().into(), std::process::id().into(), 0),
            ];
            seccompiler::apply_filter(&program().unwrap()).unwrap();
            // All of them at once: each is a rule of its own.
            let passed: Vec<_> = forbidden
                .into_iter()
                .filter(|(number, a, b, c)| call(*number, *a, *b, *c) != libc::EPERM)
                .collect();
            assert_eq!(passed, []);
            for (number, a, b, c) in allowed {
                assert_ne!(call(number, a, b, c), libc::EPERM, "{number} {a}");
            }
        })
        .join()
        .unwrap();
    }
}
