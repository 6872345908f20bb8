//! The system call filter of instances, for x86_64: an allow-list as a binary search tree of BPF instructions. The
//! kernel walks a filter once per call number when it is installed, and a linear list of the same calls has thirteen
//! times the instructions.
//!
//! The list is Docker's default profile (moby `profiles/seccomp/default.json`) for a process without capabilities,
//! less `ptrace`, `process_vm_readv`, `process_vm_writev`, `personality`, `kcmp` and asynchronous I/O. Calls newer than
//! the list answer `ENOSYS`, so that libraries fall back, as does the last; all others `EPERM`.

use crate::error::check;
use crate::{CallError, Context};
use libc::*;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// One BPF instruction (`struct sock_filter`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Instruction {
    code: u16,
    jump_true: u8,
    jump_false: u8,
    value: u32,
}

const LOAD: u16 = 0x20;
const JUMP: u16 = 0x05;
const JUMP_EQUAL: u16 = 0x15;
const JUMP_AT_LEAST: u16 = 0x35;
const JUMP_ANY_BIT: u16 = 0x45;
const RETURN: u16 = 0x06;

/// Offsets in `struct seccomp_data`.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const ARGUMENT_0: u32 = 16;
const ARGUMENT_2: u32 = 32;

const ARCHITECTURE_X86_64: u32 = 0xC000_003E;
const ALLOW: u32 = 0x7fff_0000;
const KILL: u32 = 0x8000_0000;
const ERROR: u32 = 0x0005_0000;

/// The first number that no list knew when this was written (`mseal` is 462). Numbers with bit 30 are the x32
/// interface, which is refused.
const NEWEST: u32 = 463;
const X32: u32 = 0x4000_0000;

const NEW_NAMESPACES: u32 = (CLONE_NEWNS
    | CLONE_NEWUSER
    | CLONE_NEWPID
    | CLONE_NEWNET
    | CLONE_NEWUTS
    | CLONE_NEWIPC
    | CLONE_NEWCGROUP) as u32;

/// Address families that a server needs; the others (packet, vsock, kernel crypto, …) have been a door to the kernel. Of
/// netlink only `NETLINK_ROUTE` is given, which libraries ask for interfaces and addresses: others tell of the host's
/// devices, or load and reach large parts of the kernel.
const FAMILIES: [i32; 4] = [AF_UNIX, AF_INET, AF_INET6, AF_NETLINK];

/// Calls without a name in the `libc` crate: cachestat, fchmodat2, map_shadow_stack, futex_wake, futex_wait,
/// futex_requeue, mseal.
const UNNAMED: [c_long; 7] = [451, 452, 453, 454, 455, 456, 462];

#[rustfmt::skip]
const ALLOWED: &[c_long] = &[
    SYS_accept, SYS_accept4, SYS_access, SYS_adjtimex, SYS_alarm, SYS_arch_prctl, SYS_bind, SYS_brk, SYS_capget,
    SYS_capset, SYS_chdir, SYS_chmod, SYS_chown, SYS_clock_adjtime, SYS_clock_getres, SYS_clock_gettime,
    SYS_clock_nanosleep, SYS_close, SYS_close_range, SYS_connect, SYS_copy_file_range, SYS_creat, SYS_dup, SYS_dup2,
    SYS_dup3, SYS_epoll_create, SYS_epoll_create1, SYS_epoll_ctl, SYS_epoll_ctl_old, SYS_epoll_pwait,
    SYS_epoll_pwait2, SYS_epoll_wait, SYS_epoll_wait_old, SYS_eventfd, SYS_eventfd2, SYS_execve, SYS_execveat,
    SYS_exit, SYS_exit_group, SYS_faccessat, SYS_faccessat2, SYS_fadvise64, SYS_fallocate, SYS_fanotify_mark,
    SYS_fchdir, SYS_fchmod, SYS_fchmodat, SYS_fchown, SYS_fchownat, SYS_fcntl, SYS_fdatasync, SYS_fgetxattr,
    SYS_flistxattr, SYS_flock, SYS_fork, SYS_fremovexattr, SYS_fsetxattr, SYS_fstat, SYS_fstatfs, SYS_fsync,
    SYS_ftruncate, SYS_futex, SYS_futex_waitv, SYS_futimesat, SYS_get_robust_list, SYS_get_thread_area, SYS_getcpu,
    SYS_getcwd, SYS_getdents, SYS_getdents64, SYS_getegid, SYS_geteuid, SYS_getgid, SYS_getgroups, SYS_getitimer,
    SYS_getpeername, SYS_getpgid, SYS_getpgrp, SYS_getpid, SYS_getppid, SYS_getpriority, SYS_getrandom,
    SYS_getresgid, SYS_getresuid, SYS_getrlimit, SYS_getrusage, SYS_getsid, SYS_getsockname, SYS_getsockopt,
    SYS_gettid, SYS_gettimeofday, SYS_getuid, SYS_getxattr, SYS_inotify_add_watch, SYS_inotify_init,
    SYS_inotify_init1, SYS_inotify_rm_watch, SYS_ioctl, SYS_ioprio_get, SYS_ioprio_set, SYS_kill, SYS_landlock_add_rule,
    SYS_landlock_create_ruleset, SYS_landlock_restrict_self, SYS_lchown, SYS_lgetxattr, SYS_link, SYS_linkat,
    SYS_listen, SYS_listxattr, SYS_llistxattr, SYS_lremovexattr, SYS_lseek, SYS_lsetxattr, SYS_lstat, SYS_madvise,
    SYS_membarrier, SYS_memfd_create, SYS_memfd_secret, SYS_mincore, SYS_mkdir, SYS_mkdirat, SYS_mknod, SYS_mknodat,
    SYS_mlock, SYS_mlock2, SYS_mlockall, SYS_mmap, SYS_modify_ldt, SYS_mprotect, SYS_mq_getsetattr, SYS_mq_notify,
    SYS_mq_open, SYS_mq_timedreceive, SYS_mq_timedsend, SYS_mq_unlink, SYS_mremap, SYS_msgctl, SYS_msgget,
    SYS_msgrcv, SYS_msgsnd, SYS_msync, SYS_munlock, SYS_munlockall, SYS_munmap, SYS_name_to_handle_at,
    SYS_nanosleep, SYS_newfstatat, SYS_open, SYS_openat, SYS_openat2, SYS_pause, SYS_pidfd_open,
    SYS_pidfd_send_signal, SYS_pipe, SYS_pipe2, SYS_pkey_alloc, SYS_pkey_free, SYS_pkey_mprotect, SYS_poll,
    SYS_ppoll, SYS_prctl, SYS_pread64, SYS_preadv, SYS_preadv2, SYS_prlimit64, SYS_process_mrelease, SYS_pselect6,
    SYS_pwrite64, SYS_pwritev, SYS_pwritev2, SYS_read, SYS_readahead, SYS_readlink, SYS_readlinkat, SYS_readv,
    SYS_recvfrom, SYS_recvmmsg, SYS_recvmsg, SYS_remap_file_pages, SYS_removexattr, SYS_rename, SYS_renameat,
    SYS_renameat2, SYS_restart_syscall, SYS_rmdir, SYS_rseq, SYS_rt_sigaction, SYS_rt_sigpending,
    SYS_rt_sigprocmask, SYS_rt_sigqueueinfo, SYS_rt_sigreturn, SYS_rt_sigsuspend, SYS_rt_sigtimedwait,
    SYS_rt_tgsigqueueinfo, SYS_sched_get_priority_max, SYS_sched_get_priority_min, SYS_sched_getaffinity,
    SYS_sched_getattr, SYS_sched_getparam, SYS_sched_getscheduler, SYS_sched_rr_get_interval,
    SYS_sched_setaffinity, SYS_sched_setattr, SYS_sched_setparam, SYS_sched_setscheduler, SYS_sched_yield,
    SYS_seccomp, SYS_select, SYS_semctl, SYS_semget, SYS_semop, SYS_semtimedop, SYS_sendfile, SYS_sendmmsg,
    SYS_sendmsg, SYS_sendto, SYS_set_robust_list, SYS_set_thread_area, SYS_set_tid_address, SYS_setfsgid,
    SYS_setfsuid, SYS_setgid, SYS_setgroups, SYS_setitimer, SYS_setpgid, SYS_setpriority, SYS_setregid,
    SYS_setresgid, SYS_setresuid, SYS_setreuid, SYS_setrlimit, SYS_setsid, SYS_setsockopt, SYS_setuid,
    SYS_setxattr, SYS_shmat, SYS_shmctl, SYS_shmdt, SYS_shmget, SYS_shutdown, SYS_sigaltstack, SYS_signalfd,
    SYS_signalfd4, SYS_splice, SYS_stat, SYS_statfs, SYS_statx, SYS_symlink, SYS_symlinkat,
    SYS_sync, SYS_sync_file_range, SYS_syncfs, SYS_sysinfo, SYS_tee, SYS_tgkill, SYS_time, SYS_timer_create,
    SYS_timer_delete, SYS_timer_getoverrun, SYS_timer_gettime, SYS_timer_settime, SYS_timerfd_create,
    SYS_timerfd_gettime, SYS_timerfd_settime, SYS_times, SYS_tkill, SYS_truncate, SYS_umask, SYS_uname, SYS_unlink,
    SYS_unlinkat, SYS_utime, SYS_utimensat, SYS_utimes, SYS_vfork, SYS_vmsplice, SYS_wait4, SYS_waitid, SYS_write,
    SYS_writev,
];

/// Asynchronous I/O of the old kind. The kernel has one number of requests for all that run on it (`fs.aio-max-nr`), so
/// that one instance could take them all; programs that know it do without where it is not built in.
const NOT_BUILT_IN: &[c_long] = &[
    SYS_io_cancel,
    SYS_io_destroy,
    SYS_io_getevents,
    SYS_io_setup,
    SYS_io_submit,
    333, /* io_pgetevents */
];

/// Calls that stay refused when all others are only told of: what changes the host, other processes or the sandbox itself.
#[rustfmt::skip]
const DOORS: &[c_long] = &[
    SYS_mount, SYS_umount2, SYS_pivot_root, SYS_chroot, SYS_unshare, SYS_setns, SYS_ptrace, SYS_bpf, SYS_keyctl,
    SYS_add_key, SYS_request_key, SYS_userfaultfd, SYS_perf_event_open, SYS_kexec_load,
    SYS_kexec_file_load, SYS_init_module, SYS_finit_module, SYS_delete_module, SYS_reboot, SYS_open_by_handle_at,
    SYS_process_vm_readv, SYS_process_vm_writev, SYS_fsopen, SYS_fsconfig, SYS_fsmount, SYS_fspick, SYS_open_tree,
    SYS_move_mount, SYS_mount_setattr, SYS_swapon, SYS_swapoff, SYS_syslog, SYS_acct, SYS_quotactl,
    SYS_quotactl_fd, SYS_iopl, SYS_ioperm, SYS_pidfd_getfd, SYS_lookup_dcookie, SYS_settimeofday, SYS_clock_settime,
    SYS_sethostname, SYS_setdomainname, SYS_vhangup, SYS_nfsservctl, SYS_io_uring_setup, SYS_io_uring_enter,
    SYS_io_uring_register, SYS_fanotify_init, SYS_kcmp, SYS_process_madvise, SYS_move_pages, SYS_migrate_pages,
];

/// What becomes of a call that is not on the list.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Others {
    /// `EPERM`.
    #[default]
    Refuse,
    /// Whoever holds the [`Listener`] is asked, unless it is a door to the kernel.
    Ask,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Allow,
    Ask,
    Refuse(i32),
    Clone,
    Socket,
    /// Of the caller itself, whose number is 0.
    Own,
}

fn verdict(number: u32) -> Verdict {
    let call = c_long::from(number);
    match call {
        _ if call == SYS_clone => Verdict::Clone,
        // A program that may choose its user could take that of pid 1, and then its limits.
        _ if call == SYS_prlimit64 => Verdict::Own,
        // A pair is made of sockets: some families (TIPC) make real ones, and others are loaded to refuse it.
        _ if call == SYS_socket || call == SYS_socketpair => Verdict::Socket,
        _ if call == SYS_clone3 || NOT_BUILT_IN.contains(&call) => Verdict::Refuse(ENOSYS),
        _ if ALLOWED.contains(&call) || UNNAMED.contains(&call) => Verdict::Allow,
        _ if (NEWEST..X32).contains(&number) => Verdict::Refuse(ENOSYS),
        _ => Verdict::Refuse(EPERM),
    }
}

fn instruction(code: u16, jump_true: u8, jump_false: u8, value: u32) -> Instruction {
    Instruction { code, jump_true, jump_false, value }
}

fn leaf(verdict: Verdict) -> Vec<Instruction> {
    let error = |errno: i32| instruction(RETURN, 0, 0, ERROR | errno as u32);
    let allow = instruction(RETURN, 0, 0, ALLOW);
    match verdict {
        Verdict::Allow => vec![allow],
        Verdict::Ask => vec![instruction(RETURN, 0, 0, SECCOMP_RET_USER_NOTIF)],
        Verdict::Refuse(errno) => vec![error(errno)],
        Verdict::Clone => vec![
            instruction(LOAD, 0, 0, ARGUMENT_0),
            instruction(JUMP_ANY_BIT, 0, 1, NEW_NAMESPACES),
            error(EPERM),
            allow,
        ],
        Verdict::Own => {
            vec![instruction(LOAD, 0, 0, ARGUMENT_0), instruction(JUMP_EQUAL, 1, 0, 0), error(EPERM), allow]
        }
        Verdict::Socket => {
            let mut out = vec![instruction(LOAD, 0, 0, ARGUMENT_0)];
            for (n, family) in FAMILIES.iter().enumerate() {
                out.push(instruction(JUMP_EQUAL, (FAMILIES.len() - n) as u8, 0, *family as u32));
            }
            out.extend([
                error(EAFNOSUPPORT),
                instruction(JUMP_EQUAL, 0, 2, AF_NETLINK as u32),
                instruction(LOAD, 0, 0, ARGUMENT_2),
                instruction(JUMP_EQUAL, 0, 1, NETLINK_ROUTE as u32),
                allow,
                error(EPROTONOSUPPORT),
            ]);
            out
        }
    }
}

/// The tree over `ranges`, each given by its first number; the number is in the accumulator.
fn tree(ranges: &[(u32, Verdict)]) -> Vec<Instruction> {
    if let [(_, verdict)] = ranges {
        return leaf(*verdict);
    }
    let middle = ranges.len() / 2;
    let (low, high) = (tree(&ranges[..middle]), tree(&ranges[middle..]));
    let mut out = match u8::try_from(low.len()) {
        Ok(skip) => vec![instruction(JUMP_AT_LEAST, skip, 0, ranges[middle].0)],
        Err(_) => vec![
            instruction(JUMP_AT_LEAST, 0, 1, ranges[middle].0),
            instruction(JUMP, 0, 0, low.len() as u32),
        ],
    };
    out.extend(low);
    out.extend(high);
    out
}

/// The filter that refuses.
pub fn filter() -> Vec<Instruction> {
    filter_with(Others::Refuse)
}

/// The filter.
pub fn filter_with(others: Others) -> Vec<Instruction> {
    let mut ranges: Vec<(u32, Verdict)> = Vec::new();
    for number in (0..=NEWEST).chain([X32]) {
        let next = match (verdict(number), others) {
            (Verdict::Refuse(EPERM), Others::Ask)
                if number < NEWEST && !DOORS.contains(&c_long::from(number)) =>
            {
                Verdict::Ask
            }
            (verdict, _) => verdict,
        };
        if ranges.last().is_none_or(|(_, last)| *last != next) {
            ranges.push((number, next));
        }
    }
    let mut out = vec![
        instruction(LOAD, 0, 0, ARCHITECTURE),
        instruction(JUMP_EQUAL, 1, 0, ARCHITECTURE_X86_64),
        instruction(RETURN, 0, 0, KILL),
        instruction(LOAD, 0, 0, NUMBER),
    ];
    out.extend(tree(&ranges));
    out
}

/// Installs the filter for this thread and all that it starts. `no_new_privs` must be set.
pub fn install(filter: &[Instruction]) -> Result<(), CallError> {
    set_filter(filter, 0).map(|_| ())
}

/// Installs a filter that asks, and answers with what is asked through.
pub fn install_asking(filter: &[Instruction]) -> Result<OwnedFd, CallError> {
    let listener = set_filter(filter, SECCOMP_FILTER_FLAG_NEW_LISTENER)?;
    // SAFETY: the kernel made a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(listener as i32) })
}

fn set_filter(filter: &[Instruction], flags: c_ulong) -> Result<c_long, CallError> {
    let program = sock_fprog { len: filter.len() as u16, filter: filter.as_ptr() as *mut sock_filter };
    // SAFETY: `Instruction` has the layout of `sock_filter`, and the kernel only reads `len` of them.
    check(unsafe { syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags, &raw const program) })
        .context("seccomp", format_args!("{} instructions", filter.len()))
}

/// Where a program's calls that are not on the list are asked for.
#[derive(Debug)]
pub struct Listener(pub OwnedFd);

impl Listener {
    /// Lets one call through and says which it is. None: there is none, or who made it is gone.
    pub fn let_through(&self) -> Option<u32> {
        // SAFETY: all zero is a valid value of these structures of numbers; the kernel wants them so.
        let (mut asked, mut answer): (seccomp_notif, seccomp_notif_resp) = unsafe { std::mem::zeroed() };
        // SAFETY: the kernel writes one structure of this type.
        check(unsafe { ioctl(self.0.as_raw_fd(), SECCOMP_IOCTL_NOTIF_RECV, &raw mut asked) }.into()).ok()?;
        answer.id = asked.id;
        answer.flags = SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32;
        // SAFETY: the kernel reads one structure of this type.
        check(unsafe { ioctl(self.0.as_raw_fd(), SECCOMP_IOCTL_NOTIF_SEND, &raw mut answer) }.into()).ok()?;
        Some(asked.data.nr as u32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the kernel would answer, by the definition of classic BPF.
    fn run(filter: &[Instruction], architecture: u32, number: u32, arguments: [u32; 2]) -> u32 {
        let (mut at, mut a) = (0, 0u32);
        loop {
            let i = filter[at];
            at += 1;
            let mut jump = |yes: bool| at += usize::from(if yes { i.jump_true } else { i.jump_false });
            match i.code {
                LOAD => {
                    a = match i.value {
                        NUMBER => number,
                        ARCHITECTURE => architecture,
                        ARGUMENT_0 => arguments[0],
                        ARGUMENT_2 => arguments[1],
                        offset => panic!("{offset}"),
                    }
                }
                JUMP_EQUAL => jump(a == i.value),
                JUMP_AT_LEAST => jump(a >= i.value),
                JUMP_ANY_BIT => jump(a & i.value != 0),
                JUMP => at += i.value as usize,
                RETURN => return i.value,
                code => panic!("{code:#x}"),
            }
        }
    }

    #[test]
    fn the_tree_answers_as_the_list_does() {
        let filter = filter();
        assert!(filter.len() < 400, "{}", filter.len());
        let refused = |errno: i32| ERROR | errno as u32;
        for number in (0..1000).chain([X32, X32 + 1, u32::MAX]) {
            let expected = match verdict(number) {
                Verdict::Refuse(errno) => refused(errno),
                // The argument below is another process's number.
                Verdict::Own => refused(EPERM),
                _ => ALLOW,
            };
            assert_eq!(run(&filter, ARCHITECTURE_X86_64, number, [AF_INET as u32, 0]), expected, "{number}");
        }
        let answer =
            |call: c_long, argument: u32| run(&filter, ARCHITECTURE_X86_64, call as u32, [argument, 0]);
        assert_eq!(answer(SYS_clone, CLONE_NEWUSER as u32), refused(EPERM));
        assert_eq!(answer(SYS_clone, (CLONE_VM | CLONE_THREAD) as u32), ALLOW);
        assert_eq!(answer(SYS_prlimit64, 0), ALLOW);
        assert_eq!(answer(SYS_prlimit64, 1), refused(EPERM));
        assert_eq!(answer(SYS_clone3, 0), refused(ENOSYS));
        assert_eq!(answer(SYS_socket, AF_PACKET as u32), refused(EAFNOSUPPORT));
        assert_eq!(answer(SYS_socketpair, AF_TIPC as u32), refused(EAFNOSUPPORT));
        for call in [SYS_socket, SYS_socketpair] {
            assert_eq!(answer(call, AF_UNIX as u32), ALLOW);
            for (family, protocol, expected) in [
                (AF_INET, IPPROTO_TCP, ALLOW),
                (AF_NETLINK, NETLINK_ROUTE, ALLOW),
                (AF_NETLINK, NETLINK_KOBJECT_UEVENT, refused(EPROTONOSUPPORT)),
                (AF_NETLINK, NETLINK_NETFILTER, refused(EPROTONOSUPPORT)),
                (AF_PACKET, 0, refused(EAFNOSUPPORT)),
            ] {
                let arguments = [family as u32, protocol as u32];
                assert_eq!(run(&filter, ARCHITECTURE_X86_64, call as u32, arguments), expected, "{family}");
            }
        }
        assert_eq!(run(&filter, 0x4000_0003, SYS_read as u32, [0; 2]), KILL);
    }

    #[test]
    fn the_doors_to_the_kernel_are_shut() {
        let filter = filter();
        let asking = filter_with(Others::Ask);
        for call in DOORS {
            for filter in [&filter, &asking] {
                let answer = run(filter, ARCHITECTURE_X86_64, *call as u32, [0; 2]);
                assert_eq!(answer, ERROR | EPERM as u32, "{call}");
            }
        }
        // Refused by the one, asked for by the other.
        for call in [SYS_personality, SYS_mbind, SYS_get_mempolicy] {
            assert_eq!(
                run(&filter, ARCHITECTURE_X86_64, call as u32, [0; 2]),
                ERROR | EPERM as u32,
                "{call}"
            );
            assert_eq!(
                run(&asking, ARCHITECTURE_X86_64, call as u32, [0; 2]),
                SECCOMP_RET_USER_NOTIF,
                "{call}"
            );
        }
        assert_eq!(run(&asking, ARCHITECTURE_X86_64, SYS_read as u32, [0; 2]), ALLOW);
    }
}
