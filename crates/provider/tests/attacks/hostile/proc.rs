//! What `/proc` gives away, and what of it can be written.

use crate::{call, refused, say};
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

const O_NONBLOCK: i32 = 0o4000;

/// Opens every file below /proc for writing, without writing. Only files of this process may open.
pub fn writable() {
    let mut opened = vec![];
    let mut count = 0;
    walk(Path::new("/proc"), 0, &mut |path| {
        count += 1;
        let open = fs::OpenOptions::new().write(true).custom_flags(O_NONBLOCK).open(path);
        // Hidden files are covered by /dev/null, which everybody may write.
        if open.is_ok_and(|file| file.metadata().is_ok_and(|data| data.rdev() != 0x103)) {
            opened.push(path.display().to_string());
        }
    });
    say("files below /proc", count > 500, &format!("{count} tried"));
    let own = format!("/proc/{}/", std::process::id());
    let foreign: Vec<_> = opened.iter().filter(|path| !path.starts_with(&own)).collect();
    say("nothing foreign can be opened for writing", foreign.is_empty(), &format!("{foreign:?}"));
    println!("own files that open: {opened:?}");
    // Of its own: nothing that gives rights. Each is given what would be accepted from somebody with the right.
    for (name, text) in [
        ("uid_map", "0 0 1"),
        ("gid_map", "0 0 1"),
        ("setgroups", "allow"),
        ("timens_offsets", "monotonic 1000 0"),
        ("oom_score_adj", "-1000"),
        ("attr/current", "unconfined"),
        ("attr/exec", "unconfined"),
    ] {
        refused(&format!("write {name}"), fs::write(format!("/proc/self/{name}"), text));
    }
    for (path, text) in [
        ("/proc/sys/kernel/core_pattern", "|/bin/hostile"),
        ("/proc/sys/kernel/modprobe", "/bin/hostile"),
        ("/proc/sys/kernel/hotplug", "/bin/hostile"),
        ("/proc/sys/fs/binfmt_misc/register", ":x:M::x::/bin/hostile:"),
        ("/proc/sys/vm/drop_caches", "1"),
        ("/proc/sys/vm/panic_on_oom", "1"),
        ("/proc/sys/kernel/panic", "1"),
        ("/proc/sys/kernel/shmmax", "1"),
        ("/proc/sys/kernel/msgmax", "1"),
        ("/proc/sys/fs/mqueue/msg_max", "1"),
        ("/proc/sys/net/ipv4/ip_forward", "1"),
        ("/proc/sys/kernel/ns_last_pid", "1000"),
        ("/proc/sys/kernel/hostname", "other"),
        ("/proc/sysrq-trigger", "h"),
        ("/proc/irq/default_smp_affinity", "1"),
        ("/proc/mtrr", "x"),
    ] {
        refused(&format!("write {path}"), fs::OpenOptions::new().write(true).open(path).and_then(|mut f| {
            std::io::Write::write_all(&mut f, text.as_bytes())
        }));
    }
}

/// Visits the files below `path`; no links, no other processes' folders.
fn walk(path: &Path, depth: u32, visit: &mut impl FnMut(&Path)) {
    let own = std::process::id().to_string();
    let Ok(entries) = fs::read_dir(path) else { return };
    for entry in entries.flatten() {
        let Ok(kind) = entry.file_type() else { continue };
        let name = entry.file_name().to_string_lossy().into_owned();
        if kind.is_dir() {
            let foreign = depth == 0 && name.parse::<u32>().is_ok() && name != own;
            if !foreign && depth < 8 && !["task", "map_files", "fd", "fdinfo"].contains(&name.as_str()) {
                walk(&entry.path(), depth + 1, visit);
            }
        } else if kind.is_file() {
            visit(&entry.path());
        }
    }
}

/// Files that tell of the host or of its kernel's memory.
pub fn secrets() {
    for path in ["/proc/kmsg", "/dev/kmsg", "/dev/mem", "/dev/kmem", "/dev/port", "/dev/kvm", "/dev/fuse", "/dev/ptmx",
        "/dev/pts/ptmx", "/dev/console", "/dev/tty0", "/dev/loop0", "/dev/loop-control", "/dev/vda", "/dev/net/tun",
        "/dev/mapper/control", "/proc/slabinfo", "/proc/vmallocinfo", "/proc/kpageflags", "/proc/kpagecgroup",
        "/proc/pagetypeinfo", "/sys/kernel", "/sys/fs/cgroup", "/proc/1/environ", "/proc/1/exe",
        "/proc/1/root", "/proc/1/cwd", "/proc/1/mem", "/proc/1/maps", "/proc/1/stack", "/proc/1/syscall", "/proc/1/fd",
        "/proc/1/fdinfo", "/proc/1/map_files", "/proc/1/ns/net", "/proc/1/ns/user", "/proc/1/ns/mnt", "/proc/1/pagemap",
        "/proc/1/task/1/mem"]
    {
        // A link that cannot be read must not be followed either.
        refused(&format!("open {path}"), fs::File::open(path));
        if path.starts_with("/proc/1/") {
            refused(&format!("read the link {path}"), fs::read_link(path));
            refused(&format!("list {path}"), fs::read_dir(path));
        }
    }
    for path in ["/proc/kcore", "/proc/kpagecount", "/proc/keys", "/proc/timer_list", "/proc/sched_debug",
        "/proc/latency_stats", "/proc/interrupts"]
    {
        let bytes = fs::read(path).map_or(0, |b| b.len());
        say(&format!("{path} is empty"), bytes == 0, &format!("{bytes} bytes"));
    }
    for path in ["/proc/acpi", "/proc/asound", "/proc/scsi"] {
        let entries = fs::read_dir(path).map_or(0, Iterator::count);
        say(&format!("{path} is empty"), entries == 0, &format!("{entries} entries"));
    }
    for path in ["/proc/kallsyms", "/proc/modules", "/proc/iomem", "/proc/ioports"] {
        let text = fs::read_to_string(path).unwrap_or_default();
        let known = |word: &str| word.len() >= 12 && word.bytes().any(|b| b != b'0')
            && word.trim_start_matches("0x").bytes().all(|b| b.is_ascii_hexdigit());
        let found = text.split([' ', '-', '\n', '\t']).find(|word| known(word));
        say(&format!("{path} tells no address"), found.is_none(), &format!("{found:?}"));
    }
    refused("read /proc/self/stack", fs::read("/proc/self/stack"));
    frames();
    let foreign: Vec<_> = devices().into_iter().filter(|d| !DEVICES.contains(&d.as_str())).collect();
    say("/dev holds what it should", foreign.is_empty(), &format!("{foreign:?}"));
    for path in ["/proc/self/mountinfo", "/proc/self/cgroup", "/proc/self/maps"] {
        let text = fs::read_to_string(path).unwrap();
        let found = ["/tmp/", "instances", "objects", "kiln"].iter().find(|word| text.contains(*word));
        say(&format!("{path} tells nothing of the host"), found.is_none(), &format!("{found:?}"));
    }
    let release: Vec<_> = ["/", "/tmp", "/run", "/data"].iter()
        .flat_map(|d| ["release_agent", "cgroup.procs", "notify_on_release"].map(|f| format!("{d}/{f}")))
        .filter(|path| Path::new(path).exists())
        .collect();
    say("no control group is in sight", release.is_empty(), &format!("{release:?}"));
}

const DEVICES: [&str; 6] = ["null 1:3", "zero 1:5", "full 1:7", "random 1:8", "urandom 1:9", "tty 5:0"];

fn devices() -> Vec<String> {
    let entries = fs::read_dir("/dev").unwrap().flatten();
    let nodes = entries.filter(|e| !e.file_type().is_ok_and(|t| t.is_symlink() || t.is_dir()));
    let name = |e: fs::DirEntry| {
        let device = e.metadata().unwrap().rdev();
        format!("{} {}:{}", e.file_name().to_string_lossy(), (device >> 8) & 0xfff, device & 0xff)
    };
    nodes.map(name).collect()
}

/// Where its memory is in the machine's.
fn frames() {
    use std::os::unix::fs::FileExt;
    let value = 7u64;
    let mut entry = [0; 8];
    let read = fs::File::open("/proc/self/pagemap")
        .and_then(|file| file.read_exact_at(&mut entry, (&raw const value as u64) / 4096 * 8));
    let frame = u64::from_ne_bytes(entry) & ((1 << 55) - 1);
    say("page frames are not told", read.is_err() || frame == 0, &format!("{read:?} {frame:#x}"));
}

/// What it was started with.
pub fn descriptors() {
    let mut found = BTreeSet::new();
    for fd in 0..2000 {
        if let Ok(target) = fs::read_link(format!("/proc/self/fd/{fd}")) {
            found.insert((fd, target.display().to_string()));
        }
    }
    let numbers: Vec<i32> = found.iter().map(|(fd, _)| *fd).collect();
    say("descriptors are 0, 1 and 2", numbers == [0, 1, 2], &format!("{found:?}"));
    let harmless = |t: &str| t == "/dev/null" || t.starts_with("pipe:[");
    say("they lead nowhere", found.iter().all(|(_, t)| harmless(t)), &format!("{found:?}"));
    let cwd = std::env::current_dir();
    say("the working directory is /", cwd.as_deref().is_ok_and(|d| d == Path::new("/")), &format!("{cwd:?}"));
    let (root, here) = (fs::metadata("/").unwrap(), fs::metadata(".").unwrap());
    say("and no other /", (root.dev(), root.ino()) == (here.dev(), here.ino()), "same inode");
    let above = fs::metadata("/..").unwrap();
    say("nothing is above it", (root.dev(), root.ino()) == (above.dev(), above.ino()), "same inode");
    for fd in 0..3 {
        refused(&format!("descriptor {fd} as a directory"), call(81, &[fd]));
        refused(&format!("above descriptor {fd}"), fs::read_dir(format!("/proc/self/fd/{fd}/..")));
    }
}

/// Whatever /proc of the image became, no host's process may be seen, and nothing of the host's may be written. `marker`
/// is in the command line of a process of the host; it comes turned around, so that it is not in this one's.
pub fn wide(marker: &str) {
    let marker: String = marker.chars().rev().collect();
    let mut places = vec!["/".to_owned()];
    let mut seen = 0;
    while let Some(place) = places.pop() {
        let Ok(entries) = fs::read_dir(&place) else { continue };
        for entry in entries.flatten() {
            let path = entry.path();
            let text = path.display().to_string();
            let Ok(kind) = entry.file_type() else { continue };
            if kind.is_dir() && text.matches('/').count() < 5 && seen < 200_000 {
                places.push(text.clone());
            }
            seen += 1;
            let name = entry.file_name();
            if name == "cmdline" && fs::read(&path).is_ok_and(|b| contains(&b, marker.as_bytes())) {
                say("a process of the host", false, &text);
            }
            if name == "core_pattern" && fs::OpenOptions::new().write(true).open(&path).is_ok() {
                say("core_pattern opens for writing", false, &text);
            }
            if name == "canary" {
                say("a file of the host", false, &text);
            }
        }
    }
    let own = fs::read("/proc/self/cmdline").unwrap_or_default();
    say("its own command line does not hold the word", !contains(&own, marker.as_bytes()), "it came turned around");
    say("the file system was looked through", seen > 3, &format!("{seen} entries"));
}

fn contains(bytes: &[u8], word: &[u8]) -> bool {
    bytes.windows(word.len()).any(|w| w == word)
}
