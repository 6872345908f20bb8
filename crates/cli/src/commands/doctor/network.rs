//! The network of instances, the rules for what they may reach, and what virtual machines need.

use super::kernel::Kernel;
use super::{Finding, Level};
use kiln_sys::netlink::Netlink;
use kiln_sys::{CallError, host, namespace};
use std::path::Path;

pub(super) fn examine(root: bool, kernel: &Kernel) -> [Finding; 3] {
    let tables = root.then(|| inside(host::nf_tables));
    let exists = |path: &str| Path::new(path).exists();
    let folders = std::env::var_os("PATH").unwrap_or_default();
    let qemu = std::env::split_paths(&folders).any(|folder| folder.join("qemu-system-x86_64").exists());
    let machines = machines(qemu, exists("/dev/net/tun") || kernel.has_module("tun"), exists("/dev/kvm"));
    [network(root), rules(tables), machines]
}

/// Runs `attempt` in a network namespace of its own, which ends with the thread that is in it. None: it panicked.
fn inside(attempt: impl FnOnce() -> Result<(), CallError> + Send) -> Option<Result<(), CallError>> {
    let attempt = || namespace::enter_private_net().and_then(|()| attempt());
    std::thread::scope(|scope| scope.spawn(attempt).join()).ok()
}

fn network(root: bool) -> Finding {
    const NAME: &str = "network";
    if !root {
        return Finding::bad(NAME, Level::Warning, "not tried: needs root", "run it with `sudo`");
    }
    let attempt = || -> Result<(), CallError> {
        let links = Netlink::open()?;
        // Locally administered addresses.
        let bridge = links.bridge("kiln-doctor", [2, 0, 0, 0, 0, 1])?;
        let port = [2, 0, 0, 0, 0, 2];
        links.veth("kiln-doctor-a", bridge, "kiln-doctor-b", port, namespace::current_net()?)?;
        Ok(())
    };
    let fix = "`modprobe -a bridge veth`, or use a kernel that has them: `apt-get install linux-image-amd64`";
    match inside(attempt) {
        Some(Ok(())) => Finding::ok(NAME, "a bridge with a veth port was made"),
        Some(Err(error)) => Finding::bad(NAME, Level::Missing, error.line(), fix),
        None => Finding::bad(NAME, Level::Missing, "the attempt failed", fix),
    }
}

/// `tried` is none without root.
fn rules(tried: Option<Option<Result<(), CallError>>>) -> Finding {
    const NAME: &str = "nf_tables";
    let fix = "`modprobe nf_tables`, or use a kernel that has it; `egress` of services needs it";
    match tried {
        None => Finding::bad(NAME, Level::Warning, "not tried: needs root", "run it with `sudo`"),
        Some(Some(Ok(()))) => Finding::ok(NAME, "the kernel answers"),
        Some(Some(Err(error))) => Finding::bad(NAME, Level::Warning, error.line(), fix),
        Some(None) => Finding::bad(NAME, Level::Warning, "the attempt failed", fix),
    }
}

/// Only services with `isolation = "vm"` need it.
fn machines(qemu: bool, tun: bool, kvm: bool) -> Finding {
    const NAME: &str = "virtual machines";
    let lacking: Vec<&str> = [(qemu, "qemu-system-x86_64"), (tun, "/dev/net/tun")]
        .iter()
        .filter(|(has, _)| !has)
        .map(|(_, n)| *n)
        .collect();
    if !lacking.is_empty() {
        let fix = "`apt-get install qemu-system-x86 && modprobe tun`; only `isolation = \"vm\"` needs it";
        return Finding::bad(
            NAME,
            Level::Warning,
            format!("not possible: no {}", lacking.join(", no ")),
            fix,
        );
    }
    if !kvm {
        let fix = "`modprobe kvm_intel` or `modprobe kvm_amd`, if the processor has it; only `isolation = \"vm\"` needs it";
        return Finding::bad(NAME, Level::Warning, "emulated, which is slow: no /dev/kvm", fix);
    }
    Finding::ok(NAME, "qemu, tun and /dev/kvm are there; whether KVM works, a test boot tells")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_there_or_not_tried_is_a_warning() {
        assert_eq!(network(false).level, Level::Warning);
        let refused = CallError {
            call: "ask",
            object: "nf_tables".into(),
            source: std::io::Error::from_raw_os_error(22),
        };
        assert_eq!(rules(Some(Some(Ok(())))).level, Level::Ok);
        for tried in [None, Some(None), Some(Some(Err(refused)))] {
            assert_eq!(rules(tried).level, Level::Warning);
        }
        let cases = [
            ((true, true, true), Level::Ok, "are there"),
            ((true, true, false), Level::Warning, "emulated"),
            ((false, true, true), Level::Warning, "no qemu-system-x86_64"),
            ((false, false, true), Level::Warning, "no qemu-system-x86_64, no /dev/net/tun"),
        ];
        for ((qemu, tun, kvm), level, words) in cases {
            let finding = machines(qemu, tun, kvm);
            assert!(finding.level == level && finding.found.contains(words), "{finding:?}");
        }
    }
}
