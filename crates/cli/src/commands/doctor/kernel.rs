//! The kernel: its version, and what it knows.

use super::{Finding, Level, read};
use std::path::Path;

/// The oldest kernel that kiln is made for (Debian 12).
const KERNEL_MIN: (u32, u32) = (6, 1);

pub(super) fn machine(arch: &'static str) -> Finding {
    match arch {
        "x86_64" => Finding::ok("machine", arch),
        other => Finding::bad("machine", Level::Missing, other, "use a host with an x86_64 processor"),
    }
}

/// What is known of the running kernel.
pub(super) struct Kernel {
    release: String,
    /// /proc/filesystems.
    known: String,
    /// The lists of its modules, loaded or not.
    modules: String,
    loops: bool,
}

impl Kernel {
    pub(super) fn of(release: &str) -> Self {
        let list = |file: &str| read(&format!("/lib/modules/{release}/{file}"));
        Self {
            release: release.to_owned(),
            known: read("/proc/filesystems"),
            modules: list("modules.dep") + &list("modules.builtin"),
            loops: Path::new("/dev/loop-control").exists(),
        }
    }

    /// Whether it is as new as this.
    pub(super) fn is(&self, wanted: (u32, u32)) -> bool {
        version(&self.release).is_some_and(|version| version >= wanted)
    }

    pub(super) fn has_module(&self, name: &str) -> bool {
        self.modules.contains(&format!("/{name}.ko"))
    }

    pub(super) fn version(&self) -> Finding {
        if self.is(KERNEL_MIN) {
            return Finding::ok("kernel", self.release.as_str());
        }
        let (major, minor) = KERNEL_MIN;
        let fix = format!("use Linux {major}.{minor} or newer, as Debian 12 has it");
        Finding::bad("kernel", Level::Missing, self.release.as_str(), &fix)
    }

    pub(super) fn file_systems(&self) -> [Finding; 2] {
        ["erofs", "overlay"].map(|name| self.filesystem(name))
    }

    /// The kernel loads the module by itself when it is asked for the file system.
    fn filesystem(&self, name: &'static str) -> Finding {
        if self.known.lines().any(|line| line.split_whitespace().next_back() == Some(name)) {
            return Finding::ok(name, "known to the kernel");
        }
        if self.has_module(name) {
            return Finding::ok(name, "a module, loaded when it is needed");
        }
        let fix =
            format!("`modprobe {name}`, or use a kernel that has it: `apt-get install linux-image-amd64`");
        Finding::bad(name, Level::Missing, "not known to the kernel", &fix)
    }

    /// What the disk of a builder is made of. Without it everything but `[images.NAME.build]` works.
    pub(super) fn builds(&self) -> Finding {
        const NAME: &str = "builds";
        let fix = "`modprobe loop ext4`; only images with a `build` need it";
        if self.filesystem("ext4").level != Level::Ok {
            return Finding::bad(NAME, Level::Warning, "the kernel does not know ext4", fix);
        }
        if !self.loops {
            return Finding::bad(NAME, Level::Warning, "there is no `/dev/loop-control`", fix);
        }
        Finding::ok(NAME, "loop devices and ext4")
    }
}

/// `6.1.0-18-amd64` is (6, 1).
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kernel(release: &str, known: &str, modules: &str, loops: bool) -> Kernel {
        let [release, known, modules] = [release, known, modules].map(str::to_owned);
        Kernel { release, known, modules, loops }
    }

    #[test]
    fn old_kernels_and_other_machines_are_refused() {
        for good in ["6.1.0-18-amd64", "6.12.1", "7.0", "6.18.44-fc"] {
            assert_eq!(kernel(good, "", "", true).version().level, Level::Ok, "{good}");
        }
        for bad in ["5.10.0-1-amd64", "6.0.9", "", "x.y"] {
            assert_eq!(kernel(bad, "", "", true).version().level, Level::Missing, "{bad}");
        }
        assert_eq!(machine("riscv64").level, Level::Missing);
    }

    #[test]
    fn a_file_system_is_known_or_loadable_or_missing() {
        let known = "nodev\toverlay\n\text4\n";
        let modules = "kernel/fs/erofs/erofs.ko.xz: kernel/lib/crc.ko\n";
        let found = |name, modules| kernel("6.1", known, modules, true).filesystem(name);
        assert!(found("overlay", "").found.contains("known"));
        assert!(found("erofs", modules).found.contains("module"));
        assert_eq!(found("erofs", "").level, Level::Missing);
        assert_eq!(found("lay", "").level, Level::Missing);
        let levels = [(true, known), (false, known), (true, "")]
            .map(|(loops, known)| kernel("6.1", known, "", loops).builds().level);
        assert_eq!(levels, [Level::Ok, Level::Warning, Level::Warning]);
    }
}
