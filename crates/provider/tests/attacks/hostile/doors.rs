//! System calls that lead to the kernel or to the host, sockets, and device files.

use crate::{call, refused, say};
use std::fs;

const EPERM: i32 = 1;
const ENOSYS: i32 = 38;

/// Calls that are refused before the kernel looks at their arguments, which would do no harm if it did.
const SHUT: &[(&str, i64)] = &[
    ("mount", 165), ("umount2", 166), ("pivot_root", 155), ("chroot", 161), ("setns", 308), ("clone3", 435),
    ("open_tree", 428), ("move_mount", 429), ("fsopen", 430), ("fsconfig", 431), ("fsmount", 432), ("fspick", 433),
    ("mount_setattr", 442), ("open_tree_attr", 467), ("open_by_handle_at", 304), ("ptrace", 101),
    ("process_vm_readv", 310), ("process_vm_writev", 311), ("process_madvise", 440), ("pidfd_getfd", 438),
    ("kcmp", 312), ("personality", 135), ("bpf", 321), ("keyctl", 250), ("add_key", 248), ("request_key", 249),
    ("io_setup", 206), ("io_submit", 209), ("io_pgetevents", 333), ("io_uring_setup", 425), ("io_uring_enter", 426), ("io_uring_register", 427), ("userfaultfd", 323),
    ("perf_event_open", 298), ("init_module", 175), ("finit_module", 313), ("delete_module", 176),
    ("create_module", 174), ("kexec_load", 246), ("kexec_file_load", 320), ("reboot", 169), ("swapon", 167),
    ("swapoff", 168), ("acct", 163), ("quotactl", 179), ("quotactl_fd", 443), ("iopl", 172), ("ioperm", 173),
    ("syslog", 103), ("lookup_dcookie", 212), ("vhangup", 153), ("nfsservctl", 180), ("uselib", 134),
    ("_sysctl", 156), ("move_pages", 279), ("mbind", 237), ("set_mempolicy", 238), ("migrate_pages", 256),
    ("fanotify_init", 300), ("clock_settime", 227), ("settimeofday", 164), ("sethostname", 170),
    ("setdomainname", 171), ("statmount", 457), ("listmount", 458), ("lsm_set_self_attr", 460),
    ("x32 getpid", 0x4000_0000 + 39),
];

/// Each kind of new namespace.
const NAMESPACES: [(&str, i64); 8] = [
    ("mount", 0x2_0000),
    ("cgroup", 0x200_0000),
    ("uts", 0x400_0000),
    ("ipc", 0x800_0000),
    ("user", 0x1000_0000),
    ("pid", 0x2000_0000),
    ("net", 0x4000_0000),
    ("time", 0x80),
];

fn shut(name: &str, answer: Result<i64, i32>) {
    say(name, matches!(answer, Err(EPERM | ENOSYS)), &format!("{answer:?}"));
}

pub fn all(abstract_name: &str) {
    for (name, number) in SHUT {
        shut(name, call(*number, &[]));
    }
    for (name, flag) in NAMESPACES {
        shut(&format!("unshare({name})"), call(272, &[flag]));
        // The flag of time namespaces is a part of the signal here.
        if name != "time" {
            let answer = call(56, &[flag | 17, 0, 0, 0, 0]);
            if answer == Ok(0) {
                let _ = call(231, &[0]);
            }
            shut(&format!("clone({name})"), answer);
        }
    }
    // Of these the kernel itself refuses what would change the clock, rights or names.
    let mut timex = [0u8; 208];
    timex[0..4].copy_from_slice(&0x100u32.to_ne_bytes());
    shut("adjtimex(set the clock)", call(159, &[timex.as_mut_ptr() as i64]));
    shut("clock_adjtime(set the clock)", call(305, &[0, timex.as_mut_ptr() as i64]));
    let all = [0x2008_0522u32, 0, u32::MAX, u32::MAX, 0, u32::MAX, u32::MAX, 0];
    shut("capset(all)", call(126, &[all.as_ptr() as i64, all[2..].as_ptr() as i64]));
    shut("prctl(ambient sys_admin)", call(157, &[47, 2, 21, 0, 0]));
    shut("setgroups(0)", call(116, &[1, [0u32].as_ptr() as i64]));
    shut("setuid(77)", call(105, &[77]));
    shut("setresgid(77)", call(119, &[77, 77, 77]));
    for (name, kind) in [("character", 0o20666), ("block", 0o60666)] {
        for (place, device) in [("/tmp/n", 0x101), ("/dev/shm/n", 0x102), ("/run/n", 0xfe00), ("/data/n", 0x10b)] {
            let path = format!("{place}\0");
            let answer = call(133, &[path.as_ptr() as i64, kind, device]);
            shut(&format!("mknod {place} {name} {device:#x}"), answer);
        }
    }
    sockets();
    interface();
    abstract_socket(abstract_name);
}

fn sockets() {
    for family in 0..=46i64 {
        // Unix, IPv4, IPv6, netlink.
        if ![1, 2, 10, 16].contains(&family) {
            for kind in [1, 2, 3, 5] {
                refused(&format!("socket(family {family}, type {kind})"), call(41, &[family, kind, 0]));
                let mut pair = [0i32; 2];
                let answer = call(53, &[family, kind, 0, pair.as_mut_ptr() as i64]);
                refused(&format!("socketpair(family {family}, type {kind})"), answer);
            }
        }
    }
    for family in [2, 10] {
        refused(&format!("raw socket of family {family}"), call(41, &[family, 3, 255]));
        refused(&format!("raw icmp of family {family}"), call(41, &[family, 3, 1]));
    }
    // Netlink is there to ask for interfaces and addresses, and for nothing else.
    for protocol in 1..32 {
        refused(&format!("netlink socket of protocol {protocol}"), call(41, &[16, 3, protocol]));
    }
    say("netlink route", call(41, &[16, 3, 0]).is_ok(), "may be asked");
}

/// The network belongs to the host's user namespace: nobody in the instance may change it.
fn interface() {
    let fd = call(41, &[2, 2, 0]).unwrap();
    let mut request = [0u8; 40];
    request[..4].copy_from_slice(b"eth0");
    shut("take eth0 down", call(16, &[fd, 0x8914, request.as_mut_ptr() as i64]));
    // AF_INET, 10.83.0.77.
    request[16..24].copy_from_slice(&[2, 0, 0, 0, 10, 83, 0, 77]);
    shut("take another address", call(16, &[fd, 0x8916, request.as_mut_ptr() as i64]));
    shut("bind to any address", call(54, &[fd, 0, 19, [1i32].as_ptr() as i64, 4]));
    shut("mark packets", call(54, &[fd, 1, 36, [1i32].as_ptr() as i64, 4]));
    shut("force buffers", call(54, &[fd, 1, 33, [1i32 << 28].as_ptr() as i64, 4]));
}

/// A socket of the host's that has no place in the file system.
fn abstract_socket(name: &str) {
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::{SocketAddr, UnixStream};
    let address = SocketAddr::from_abstract_name(name).unwrap();
    refused("abstract socket of the host", UnixStream::connect_addr(&address));
}

/// Device files that came with the image. Each is there, and none can be opened.
pub fn devices(paths: &[String]) {
    for path in paths {
        let there = fs::symlink_metadata(path);
        say(&format!("{path} is there"), there.is_ok(), &format!("{:?}", there.map(|m| m.file_type())));
        refused(&format!("read {path}"), fs::File::open(path));
        refused(&format!("write {path}"), fs::OpenOptions::new().write(true).open(path));
    }
}

/// What this process may do; it was started from a file that promises more.
pub fn rights() {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    for (name, expected) in [("Uid", "1000 1000 1000 1000"), ("Gid", "1000 1000 1000 1000")] {
        let line = status.lines().find_map(|l| l.strip_prefix(name)).unwrap();
        let value: Vec<&str> = line.trim_start_matches(':').split_whitespace().collect();
        say(name, value.join(" ") == expected, &value.join(" "));
    }
    for name in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        let line = status.lines().find_map(|l| l.strip_prefix(name)).unwrap();
        let value = line.trim_start_matches(':').trim();
        say(name, value.trim_start_matches('0').is_empty(), value);
    }
}
