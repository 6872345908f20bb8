//! `kiln doctor`: whether this host is able to run `kiln serve`, and what to install. What can be tried is tried, in
//! namespaces that vanish with the attempt; nothing of the host is changed.

use crate::output::table;
use crate::{Context, Failure};
use clap::Args;
use kiln_api::Code;
use kiln_sys::cgroup::{Choice, Trees};
use kiln_sys::namespace;
use kiln_sys::netlink::Netlink;
use serde::Serialize;
use std::path::Path;
use std::process::{Command, Stdio};

/// The oldest kernel that kiln is made for (Debian 12).
const KERNEL_MIN: (u32, u32) = (6, 1);
/// From this one on, an EROFS image is mounted without a loop device.
const KERNEL_FILE_BACKED: (u32, u32) = (6, 12);
/// Capabilities that `kiln serve` needs, by number (linux/capability.h).
const CAPABILITIES: [(u32, &str); 11] = [
    (0, "CAP_CHOWN"),
    (1, "CAP_DAC_OVERRIDE"),
    (3, "CAP_FOWNER"),
    (5, "CAP_KILL"),
    (6, "CAP_SETGID"),
    (7, "CAP_SETUID"),
    (8, "CAP_SETPCAP"),
    (12, "CAP_NET_ADMIN"),
    (18, "CAP_SYS_CHROOT"),
    (21, "CAP_SYS_ADMIN"),
    (27, "CAP_MKNOD"),
];

/// Options of `kiln doctor`.
#[derive(Debug, Args)]
#[command(after_help = "The exit code is 1 if something is missing that kiln needs.

Examples:
  sudo kiln doctor
  sudo kiln doctor --json")]
pub struct DoctorArgs {}

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Level {
    /// As it should be.
    Ok,
    /// kiln runs, but not at its best.
    Warning,
    /// kiln cannot run.
    Missing,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Finding {
    /// What was looked at.
    name: &'static str,
    /// How bad it is.
    level: Level,
    /// What was seen.
    found: String,
    /// What helps, if something is amiss.
    #[serde(skip_serializing_if = "Option::is_none")]
    fix: Option<String>,
}

impl Finding {
    fn ok(name: &'static str, found: impl Into<String>) -> Self {
        Self { name, level: Level::Ok, found: found.into(), fix: None }
    }

    fn bad(name: &'static str, level: Level, found: impl Into<String>, fix: &str) -> Self {
        Self { name, level, found: found.into(), fix: Some(fix.to_owned()) }
    }
}

#[derive(Serialize)]
struct DoctorView {
    able: bool,
    findings: Vec<Finding>,
}

pub(crate) fn run(context: &Context<'_>, _: DoctorArgs) -> Result<(), Failure> {
    let findings = examine();
    let missing: Vec<&str> = findings.iter().filter(|f| f.level == Level::Missing).map(|f| f.name).collect();
    let able = missing.is_empty();
    let message = format!("this host is not able to run `kiln serve`: {}", missing.join(", "));
    let view = DoctorView { able, findings };
    if able || !context.out().is_json() {
        context.out().answer(&view, || text(&view))?;
    }
    if able {
        return Ok(());
    }
    let fix = view.findings.iter().find(|f| f.level == Level::Missing).and_then(|f| f.fix.clone());
    Err(Failure::new(Code::HostUnable, message).hint(fix.unwrap_or_default()).document(&view))
}

fn text(view: &DoctorView) -> String {
    let row = |f: &Finding| {
        let level = match f.level {
            Level::Ok => "ok",
            Level::Warning => "warning",
            Level::Missing => "missing",
        };
        vec![level.to_owned(), f.name.to_owned(), f.found.clone()]
    };
    let rows: Vec<_> = view.findings.iter().map(row).collect();
    let mut text = table(&["", "WHAT", "FOUND"], &rows);
    for finding in &view.findings {
        if let Some(fix) = &finding.fix {
            text.push_str(&format!("to mend {}: {fix}\n", finding.name));
        }
    }
    if view.able {
        text.push_str("this host is able to run `kiln serve`\n");
    }
    text
}

fn examine() -> Vec<Finding> {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let release = read("/proc/sys/kernel/osrelease").trim().to_owned();
    let status = read("/proc/self/status");
    let root = is_root(&status);
    let mut findings = vec![machine(std::env::consts::ARCH), kernel(&release), rights(&status), cgroups()];
    let (known, modules) = (read("/proc/filesystems"), modules(&release));
    for name in ["erofs", "overlay"] {
        findings.push(filesystem(name, &known, &modules));
    }
    if version(&release).is_some_and(|v| v < KERNEL_FILE_BACKED) {
        findings.push(loops(Path::new("/dev/loop-control").exists()));
    }
    findings.push(builds(Path::new("/dev/loop-control").exists(), &known, &modules));
    findings.push(user_namespaces(root, &read("/proc/sys/user/max_user_namespaces")));
    findings.push(network(root));
    findings.push(git());
    findings.push(machines());
    findings
}

fn machine(arch: &'static str) -> Finding {
    match arch {
        "x86_64" => Finding::ok("machine", arch),
        other => Finding::bad("machine", Level::Missing, other, "use a host with an x86_64 processor"),
    }
}

/// `6.1.0-18-amd64` is (6, 1).
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn kernel(release: &str) -> Finding {
    match version(release) {
        Some(version) if version >= KERNEL_MIN => Finding::ok("kernel", release),
        _ => {
            let (major, minor) = KERNEL_MIN;
            let fix = format!("use Linux {major}.{minor} or newer, as Debian 12 has it");
            Finding::bad("kernel", Level::Missing, release, &fix)
        }
    }
}

/// A field of /proc/self/status.
fn field<'a>(status: &'a str, name: &str) -> Option<&'a str> {
    status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
}

fn is_root(status: &str) -> bool {
    // Real, effective, saved and file system user.
    field(status, "Uid").and_then(|ids| ids.split_whitespace().nth(1)) == Some("0")
}

fn rights(status: &str) -> Finding {
    if !is_root(status) {
        return Finding::bad("root", Level::Missing, "not root", "run it with `sudo`");
    }
    let held = field(status, "CapEff").and_then(|hex| u64::from_str_radix(hex, 16).ok()).unwrap_or(0);
    let lacking: Vec<&str> =
        CAPABILITIES.iter().filter(|(bit, _)| held & (1 << bit) == 0).map(|(_, name)| *name).collect();
    if lacking.is_empty() {
        return Finding::ok("root", "root with all capabilities that are needed");
    }
    let found = format!("root without {}", lacking.join(", "));
    Finding::bad(
        "root",
        Level::Missing,
        found,
        "run it outside of a container, or give the container these capabilities",
    )
}

fn cgroups() -> Finding {
    match Trees::detect(Choice::Auto) {
        Ok(_) => Finding::ok("cgroups", "memory, cpu and pids"),
        Err(error) => {
            let fix = "mount cgroup v2: `mount -t cgroup2 none /sys/fs/cgroup`, or boot with systemd";
            Finding::bad("cgroups", Level::Missing, kiln_api::error::chain(&error), fix)
        }
    }
}

/// The lists of this kernel's modules, loaded or not.
fn modules(release: &str) -> String {
    let list =
        |file: &str| std::fs::read_to_string(format!("/lib/modules/{release}/{file}")).unwrap_or_default();
    list("modules.dep") + &list("modules.builtin")
}

/// The kernel loads the module by itself when it is asked for the file system.
fn filesystem(name: &'static str, known: &str, modules: &str) -> Finding {
    if known.lines().any(|line| line.split_whitespace().next_back() == Some(name)) {
        return Finding::ok(name, "known to the kernel");
    }
    if modules.contains(&format!("/{name}.ko")) {
        return Finding::ok(name, "a module, loaded when it is needed");
    }
    let fix = format!("`modprobe {name}`, or use a kernel that has it: `apt-get install linux-image-amd64`");
    Finding::bad(name, Level::Missing, "not known to the kernel", &fix)
}

fn loops(present: bool) -> Finding {
    if present {
        return Finding::ok("loop devices", "`/dev/loop-control` is there");
    }
    let fix = "`modprobe loop`, or use Linux 6.12 or newer, which needs none";
    Finding::bad("loop devices", Level::Missing, "there is no `/dev/loop-control`", fix)
}

/// What the disk of a builder is made of. Without it everything but `[images.NAME.build]` works.
fn builds(loops: bool, known: &str, modules: &str) -> Finding {
    const NAME: &str = "builds";
    let fix = "`modprobe loop ext4`; only images with a `build` need it";
    if filesystem("ext4", known, modules).level != Level::Ok {
        return Finding::bad(NAME, Level::Warning, "the kernel does not know ext4", fix);
    }
    if !loops {
        return Finding::bad(NAME, Level::Warning, "there is no `/dev/loop-control`", fix);
    }
    Finding::ok(NAME, "loop devices and ext4")
}

fn user_namespaces(root: bool, max: &str) -> Finding {
    const NAME: &str = "user namespaces";
    const FIX: &str = "`sysctl user.max_user_namespaces=15000`";
    match max.trim().parse::<u64>() {
        Ok(0) => return Finding::bad(NAME, Level::Missing, "switched off", FIX),
        Ok(_) => {}
        Err(_) => {
            return Finding::bad(
                NAME,
                Level::Missing,
                "not known to the kernel",
                "use a kernel with CONFIG_USER_NS",
            );
        }
    }
    if !root {
        return Finding::bad(NAME, Level::Warning, "not tried: needs root", "run it with `sudo`");
    }
    // The first id of a range that no distribution hands out; any would do for an attempt.
    match namespace::user_namespace(0x7000_0000, 65_536) {
        Ok(_) => Finding::ok(NAME, "one was made"),
        Err(error) => Finding::bad(NAME, Level::Missing, kiln_api::error::chain(&error), FIX),
    }
}

/// Makes a bridge with a port in a network namespace of its own, which ends with the thread that is in it.
fn network(root: bool) -> Finding {
    const NAME: &str = "network";
    if !root {
        return Finding::bad(NAME, Level::Warning, "not tried: needs root", "run it with `sudo`");
    }
    let attempt = || -> Result<(), kiln_sys::CallError> {
        namespace::enter_private_net()?;
        let links = Netlink::open()?;
        // Locally administered addresses.
        let bridge = links.bridge("kiln-doctor", [2, 0, 0, 0, 0, 1])?;
        links.veth(
            "kiln-doctor-a",
            bridge,
            "kiln-doctor-b",
            [2, 0, 0, 0, 0, 2],
            namespace::current_net()?,
        )?;
        Ok(())
    };
    let tried = std::thread::scope(|scope| scope.spawn(attempt).join());
    let fix = "`modprobe bridge veth`, or use a kernel that has them: `apt-get install linux-image-amd64`";
    match tried {
        Ok(Ok(())) => Finding::ok(NAME, "a bridge with a veth port was made"),
        Ok(Err(error)) => Finding::bad(NAME, Level::Missing, kiln_api::error::chain(&error), fix),
        Err(_) => Finding::bad(NAME, Level::Missing, "the attempt failed", fix),
    }
}

fn git() -> Finding {
    let mut command = Command::new("git");
    let answer = command.arg("--version").stdin(Stdio::null()).output();
    match answer {
        Ok(answer) if answer.status.success() => {
            let words = String::from_utf8_lossy(&answer.stdout);
            Finding::ok("git", words.trim().trim_start_matches("git version ").to_owned())
        }
        _ => Finding::bad("git", Level::Missing, "there is no git program", "`apt-get install git`"),
    }
}

/// What `isolation = "vm"` needs. Whether the processor helps is tried when the first one boots: that its device is there
/// proves nothing.
fn machines() -> Finding {
    let name = "virtual machines";
    let mut command = Command::new("qemu-system-x86_64");
    let has_program =
        command.arg("--version").stdin(Stdio::null()).output().is_ok_and(|answer| answer.status.success());
    let (program, device) = (has_program, Path::new("/dev/net/tun").exists());
    match (program, device) {
        (true, true) if Path::new("/dev/kvm").exists() => Finding::ok(name, "QEMU, and KVM if it works"),
        (true, true) => Finding::ok(name, "QEMU, emulating the processor: several times slower"),
        (false, _) => Finding::bad(
            name,
            Level::Warning,
            "no `qemu-system-x86_64`: services with `isolation = \"vm\"` do not start",
            "`apt-get install qemu-system-x86`",
        ),
        (true, false) => Finding::bad(
            name,
            Level::Warning,
            "no /dev/net/tun: services with `isolation = \"vm\"` do not start",
            "`modprobe tun`",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_kernels_and_other_machines_are_refused() {
        for good in ["6.1.0-18-amd64", "6.12.1", "7.0", "6.18.44-fc"] {
            assert_eq!(kernel(good).level, Level::Ok, "{good}");
        }
        for bad in ["5.10.0-1-amd64", "6.0.9", "", "x.y"] {
            assert_eq!(kernel(bad).level, Level::Missing, "{bad}");
        }
        assert_eq!(machine("riscv64").level, Level::Missing);
    }

    #[test]
    fn rights_are_read_from_the_status() {
        let root = "Name:\tx\nUid:\t0\t0\t0\t0\nCapEff:\t000001fffeffffff\n";
        assert_eq!(rights(root).level, Level::Ok);
        let container = root.replace("000001fffeffffff", "00000000a80425fb");
        let finding = rights(&container);
        assert!(finding.level == Level::Missing && finding.found.contains("CAP_SYS_ADMIN"), "{finding:?}");
        assert!(!finding.found.contains("CAP_CHOWN"), "{finding:?}");
        assert_eq!(rights("Uid:\t1000\t1000\t1000\t1000\n").found, "not root");
        assert_eq!(rights("").level, Level::Missing);
    }

    #[test]
    fn a_file_system_is_known_or_loadable_or_missing() {
        let known = "nodev\toverlay\n\text4\n";
        let modules = "kernel/fs/erofs/erofs.ko.xz: kernel/lib/crc.ko\n";
        assert!(filesystem("overlay", known, "").found.contains("known"));
        assert!(filesystem("erofs", known, modules).found.contains("module"));
        assert_eq!(filesystem("erofs", known, "").level, Level::Missing);
        assert_eq!(filesystem("lay", known, "").level, Level::Missing);
        let levels =
            [(true, known), (false, known), (true, "")].map(|(loops, known)| builds(loops, known, "").level);
        assert_eq!(levels, [Level::Ok, Level::Warning, Level::Warning]);
    }

    #[test]
    fn without_root_nothing_is_tried_and_zero_means_off() {
        assert_eq!(user_namespaces(false, "100\n").level, Level::Warning);
        assert_eq!(user_namespaces(true, "0\n").level, Level::Missing);
        assert_eq!(user_namespaces(true, "").level, Level::Missing);
        assert_eq!(network(false).level, Level::Warning);
        let view = DoctorView { able: false, findings: vec![loops(false)] };
        assert!(text(&view).contains("to mend loop devices: `modprobe loop`"), "{}", text(&view));
    }
}
