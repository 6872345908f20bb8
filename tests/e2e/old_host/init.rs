//! Pid 1 of the emulated host: mounts what Debian's init mounts, runs one program, says how it ended, switches the power
//! off. Compiled by the test as a static program, with the standard library only.

use std::fs;
use std::process::{Command, Stdio};

unsafe extern "C" {
    fn wait(status: *mut i32) -> i32;
    fn reboot(command: i32) -> i32;
    fn sync();
}

/// `RB_POWER_OFF`. For the emulator, a reboot is an end as well.
const POWER_OFF: i32 = 0x4321_fedc;
/// The status that asks for another boot.
const AGAIN: i32 = 77;
/// What is mounted where.
const MOUNTS: [(&str, &str); 5] = [
    ("devtmpfs", "/dev"),
    ("proc", "/proc"),
    ("sysfs", "/sys"),
    ("tmpfs", "/run"),
    ("cgroup2", "/sys/fs/cgroup"),
];
/// Where a unit of systemd's would run: the root of the tree is not the server's own group there.
const GROUP: &str = "/sys/fs/cgroup/system.slice/kiln.service";

fn main() {
    let ended = life();
    match ended {
        Ok(0) => println!("verdict: passed"),
        Ok(AGAIN) => println!("verdict: again"),
        other => println!("verdict: failed: {other:?}"),
    }
    // Nobody is asked to end. What was written is on the disk, as it would be soon after.
    // SAFETY: both take no more than a number. The power is off afterwards.
    unsafe {
        sync();
        reboot(POWER_OFF);
    }
}

fn run(program: &str, arguments: &[&str]) -> Result<(), String> {
    let status = Command::new(program).args(arguments).stdin(Stdio::inherit()).status();
    match status {
        Ok(status) if status.success() => Ok(()),
        other => Err(format!("{program} {arguments:?}: {other:?}")),
    }
}

fn life() -> Result<i32, String> {
    for (kind, place) in MOUNTS {
        run("/bin/mount", &["-t", kind, kind, place])?;
    }
    run("/sbin/ip", &["link", "set", "lo", "up"])?;
    fs::create_dir_all(GROUP).map_err(|e| format!("{GROUP}: {e}"))?;
    let arguments = fs::read_to_string("/arguments").map_err(|e| e.to_string())?;
    let mut words = arguments.lines();
    let child = Command::new(words.next().ok_or("no program")?)
        .args(words)
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .env("HOME", "/root")
        .env("RUST_BACKTRACE", "0")
        .spawn()
        .map_err(|e| format!("the program: {e}"))?;
    fs::write(format!("{GROUP}/cgroup.procs"), child.id().to_string()).map_err(|e| e.to_string())?;
    loop {
        let mut status = 0;
        // SAFETY: the kernel stores one number. Orphans of all others are reaped here, too.
        let pid = unsafe { wait(&mut status) };
        if pid == child.id() as i32 {
            return Ok(if status & 0x7f == 0 { status >> 8 & 0xff } else { -(status & 0x7f) });
        }
        if pid < 0 {
            return Err("the program vanished".into());
        }
    }
}
