//! QEMU's command line. Nothing of the host is named in it: disks, network card and ports are descriptors that QEMU inherits,
//! kernel and initial RAM disk lie in its own file system (`jail.rs`).

use super::Accelerator;
use super::jail::{INITRD, KERNEL};
use kiln_sys::wire::PORT;
use std::os::fd::RawFd;
use std::path::Path;

/// Where the program may be, on hosts of different families.
const PROGRAMS: [&str; 3] =
    ["/usr/bin/qemu-system-x86_64", "/usr/local/bin/qemu-system-x86_64", "/usr/libexec/qemu-kvm"];
/// What the host lacks, if it lacks it.
pub(super) const PACKAGE: &str = "qemu-system-x86";
/// MiB for translated code.
const TRANSLATED_MIB: u32 = 64;
/// The most processors that a guest gets.
const PROCESSORS_MAX: u32 = 16;

/// QEMU, if the host has it.
pub(super) fn program() -> Option<&'static str> {
    PROGRAMS.into_iter().find(|path| Path::new(path).is_file())
}

/// What a machine is made of.
#[derive(Debug, Clone)]
pub(super) struct Shape {
    pub accelerator: Accelerator,
    pub memory_bytes: u64,
    /// Thousandths of a processor.
    pub cpu_milli: u32,
    /// The socket that is the guest's port.
    pub port: RawFd,
    /// The layers' files, lowest first.
    pub layers: Vec<RawFd>,
    /// The network card and its hardware address.
    pub card: Option<(RawFd, [u8; 6])>,
    /// Of the host's clock, for a guest that has none to measure it with.
    pub tsc_khz: Option<u64>,
}

/// Program and arguments.
pub(super) fn arguments(program: &str, shape: &Shape) -> Vec<String> {
    let mut line = vec![program.to_owned()];
    let mut add = |words: &[&str]| line.extend(words.iter().map(|word| (*word).to_owned()));
    let (accelerator, processor) = match shape.accelerator {
        Accelerator::Kvm => ("kvm".to_owned(), "host"),
        Accelerator::Emulation => (format!("tcg,tb-size={TRANSLATED_MIB}"), "max"),
    };
    let memory = format!("{}M", shape.memory_bytes >> 20);
    let processors = shape.cpu_milli.div_ceil(1000).clamp(1, PROCESSORS_MAX).to_string();
    add(&["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-monitor", "none"]);
    add(&["-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"]);
    // Devices are found by ACPI: Debian's kernel takes none from its command line.
    add(&["-machine", "microvm,acpi=on,rtc=on,pcie=off,usb=off", "-accel", &accelerator, "-cpu", processor]);
    add(&["-smp", &processors, "-m", &memory, "-global", "virtio-mmio.force-legacy=false"]);
    add(&["-kernel", KERNEL, "-initrd", INITRD, "-append", &command_line(shape)]);
    add(&["-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console"]);
    add(&["-chardev", &format!("socket,id=port,fd={}", shape.port)]);
    add(&["-device", "virtio-serial-device,max_ports=2"]);
    add(&["-device", &format!("virtserialport,chardev=port,name={PORT}")]);
    add(&["-object", "rng-random,id=random,filename=/dev/urandom"]);
    add(&["-device", "virtio-rng-device,rng=random"]);
    for (number, file) in shape.layers.iter().enumerate() {
        add(&["-add-fd", &format!("fd={file},set={}", number + 1)]);
        let drive = "format=raw,if=none,readonly=on,file.locking=off";
        add(&["-drive", &format!("id=layer{number},file=/dev/fdset/{},{drive}", number + 1)]);
        add(&["-device", &format!("virtio-blk-device,drive=layer{number},serial=layer{number}")]);
    }
    if let Some((card, hardware)) = &shape.card {
        let hardware: Vec<String> = hardware.iter().map(|byte| format!("{byte:02x}")).collect();
        add(&["-netdev", &format!("tap,id=card,fd={card}")]);
        add(&["-device", &format!("virtio-net-device,netdev=card,mac={}", hardware.join(":"))]);
    }
    line
}

fn command_line(shape: &Shape) -> String {
    // A guest that panics ends, and with it the machine. Nothing waits for hardware that is not there.
    let always = "console=ttyS0 quiet panic=-1 reboot=t random.trust_cpu=on cryptomgr.notests";
    match (shape.accelerator, shape.tsc_khz) {
        // There is no other clock to measure this one with. Emulated code runs nothing ahead of its turn.
        (Accelerator::Emulation, Some(khz)) => {
            format!("{always} tsc_early_khz={khz} tsc=reliable no_timer_check mitigations=off")
        }
        _ => format!("{always} no_timer_check"),
    }
}

/// The rate of this host's time stamp counter, of the text of /proc/cpuinfo.
pub(super) fn tsc_khz(text: &str) -> Option<u64> {
    let line = text.lines().find(|line| line.starts_with("bogomips"))?;
    let (whole, part) = line.split_once(':')?.1.trim().split_once('.')?;
    // It is the rate in MHz, twice, with two digits behind the point.
    Some(whole.parse::<u64>().ok()? * 500 + part.get(..2)?.parse::<u64>().ok()? * 5)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_names_nothing_of_the_host() {
        let shape = Shape {
            accelerator: Accelerator::Emulation,
            memory_bytes: 137 << 20,
            cpu_milli: 1001,
            port: 7,
            layers: vec![8, 9],
            card: Some((10, [2, 0x69, 10, 83, 0, 255])),
            tsc_khz: Some(2_596_130),
        };
        let line = arguments("/usr/bin/qemu-system-x86_64", &shape).join(" ");
        for part in [
            "-smp 2 -m 137M",
            "socket,id=port,fd=7",
            "-add-fd fd=9,set=2 -drive id=layer1,file=/dev/fdset/2,",
            "virtio-blk-device,drive=layer1,serial=layer1",
            "tap,id=card,fd=10",
            "mac=02:69:0a:53:00:ff",
            "tsc_early_khz=2596130",
            "spawn=deny",
        ] {
            assert!(line.contains(part), "{part}: {line}");
        }
    }

    #[test]
    fn the_rate_of_the_counter_is_read() {
        let text = "processor\t: 0\nflags\t\t: fpu\nbogomips\t: 5192.26\n\nbogomips\t: 1.00\n";
        assert_eq!(tsc_khz(text), Some(2_596_130));
        assert_eq!(tsc_khz("processor\t: 0\n"), None);
    }
}
