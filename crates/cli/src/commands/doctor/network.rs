//! The network of instances, the rules for what they may reach, and what virtual machines need.

use super::kernel::Kernel;
use super::{Finding, Level};
use kiln_sys::netlink::Netlink;
use kiln_sys::nftables::{Batch, Hook, Nftables, Protocol, Rule, Side, Verdict};
use kiln_sys::{CallError, namespace};
use std::path::Path;

pub(super) fn examine(root: bool, kernel: &Kernel) -> [Finding; 4] {
    let exists = |path: &str| Path::new(path).exists();
    let folders = std::env::var_os("PATH").unwrap_or_default();
    let qemu = std::env::split_paths(&folders).any(|folder| folder.join("qemu-system-x86_64").exists());
    let machines = machines(qemu, exists("/dev/net/tun") || kernel.has_module("tun"), exists("/dev/kvm"));
    [network(root), packet_filter(root), forwarding(&super::read("/proc/sys/net/ipv4/ip_forward")), machines]
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

/// Makes a table with one of each kind of rule that the policy of instances is made of, in a namespace of its own.
fn packet_filter(root: bool) -> Finding {
    const NAME: &str = "packet filter";
    const TABLE: &str = "kiln-doctor";
    if !root {
        return Finding::bad(NAME, Level::Warning, "not tried: needs root", "run it with `sudo`");
    }
    let attempt = || -> Result<(), CallError> {
        let mut batch = Batch::about(TABLE);
        batch.replace_table();
        batch.set_of_pairs("pairs");
        batch.set_of_networks("networks", &[([10, 0, 0, 0].into(), 8)]);
        batch.chain("input", Some(Hook::Input));
        batch.chain("leave", Some(Hook::SourceTranslation));
        batch.rule("input", Rule::new().is_reply().of_connection(), Verdict::Accept);
        batch.rule("input", Rule::new().pair_in("pairs").to_port(Protocol::Tcp, 80), Verdict::Accept);
        batch.rule("input", Rule::new().of_protocol(Protocol::Tcp), Verdict::Reset);
        batch.rule("input", Rule::new(), Verdict::Reject);
        let public = Rule::new().address_in(Side::Destination, "networks", false);
        batch.rule("leave", public, Verdict::Masquerade);
        Nftables::open()?.commit(batch)
    };
    let fix = "`modprobe -a nf_tables nf_conntrack nft_ct nft_reject_inet nft_masq`, or use a kernel that has them: \
               `apt-get install linux-image-amd64`";
    match inside(attempt) {
        Some(Ok(())) => Finding::ok(NAME, "a table of nftables was made"),
        Some(Err(error)) => Finding::bad(NAME, Level::Missing, error.line(), fix),
        None => Finding::bad(NAME, Level::Missing, "the attempt failed", fix),
    }
}

/// Only services that may reach the internet need it.
fn forwarding(value: &str) -> Finding {
    const NAME: &str = "forwarding";
    if value.trim() == "1" {
        return Finding::ok(NAME, "on: services may have `egress = [\"internet\"]`");
    }
    let fix = "`sysctl -w net.ipv4.ip_forward=1`, and that line in `/etc/sysctl.d/`; only services with \
               `egress = [\"internet\"]` need it";
    Finding::bad(NAME, Level::Warning, "off: no service can have `egress = [\"internet\"]`", fix)
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
        assert_eq!(packet_filter(false).level, Level::Warning);
        assert_eq!([forwarding("1\n").level, forwarding("0\n").level], [Level::Ok, Level::Warning]);
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
