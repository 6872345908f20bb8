//! Kernel and initial RAM disk for tests, as `.ci/mirror` put them into target/machine, with an init of this build or of the
//! test's own: the kernel unpacks one archive after the other, and the later file stays.

use kiln_provider::vm::Machine;
use std::path::{Path, PathBuf};

fn archive(path: &str, content: &[u8]) -> Vec<u8> {
    let mut bytes = vec![];
    let entries: [(&str, u32, &[u8]); 2] = [(path, 0o100_755, content), ("TRAILER!!!", 0, &[])];
    for (number, (name, mode, content)) in (1..).zip(entries) {
        let (size, name_size) = (content.len() as u32, name.len() as u32 + 1);
        bytes.extend(b"070701");
        for field in [number, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, name_size, 0] {
            bytes.extend(format!("{field:08X}").bytes());
        }
        bytes.extend(name.bytes());
        bytes.push(0);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes.extend(content);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
    }
    bytes
}

/// Puts one more file into the initial RAM disk of a machine.
pub fn add(machine: &Machine, path: &str, content: &[u8]) {
    let mut bytes = std::fs::read(&machine.initrd).unwrap();
    bytes.extend(archive(path, content));
    std::fs::write(&machine.initrd, bytes).unwrap();
}

/// A machine whose init is `init`; its initial RAM disk lies in `folder`.
pub fn with_init(init: &[u8], folder: &Path) -> Machine {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap().join("machine");
    let kernel: PathBuf = target.join("vmlinuz");
    let mut bytes = std::fs::read(target.join("initrd"))
        .expect("`.ci/mirror target/debug/kiln` makes target/machine of Debian's kernel");
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes.extend(archive("init", init));
    let initrd = folder.join("initrd");
    std::fs::write(&initrd, bytes).unwrap();
    Machine { kernel, initrd }
}
