//! The oldest host that kiln promises: Debian 12's kernel, 6.1, with cgroup v2 alone. A machine with that kernel is
//! emulated, without KVM, and the real kiln deploys there what `inside.rs` says. Its root file system is made of this
//! host's programs and their libraries.

pub mod inside;
mod reboot;

use kiln_tests::{compiled_api, kiln_program, mirror, root, run as run_program};
use std::collections::BTreeSet;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// The argument that makes this program the one that runs on the emulated host.
pub const INSIDE: &str = "inside-old-host";
/// A guard against hanging; emulation shares its cores with whatever else runs.
const LIFE_MAX: Duration = Duration::from_secs(900);
/// What kiln and the case call by name.
const PROGRAMS: [&str; 8] = ["git", "cp", "kill", "ip", "mount", "kmod", "cat", "nft"];
const DISK_MIB: u64 = 1024;

pub fn run() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let tree = folder.path().join("tree");
    let start = Instant::now();
    let release = kernel(&tree);
    userland(&tree);
    match std::env::var_os("KILN_NIGHTLY") {
        Some(_) => provider_suite(&tree),
        None => println!("not run there without KILN_NIGHTLY=1: the provider's suite"),
    }
    let disk = folder.path().join("disk");
    std::fs::File::create(&disk).and_then(|file| file.set_len(DISK_MIB << 20)).expect("a sparse file");
    run_program(Command::new("mkfs.ext4").args(["-q", "-O", "^has_journal", "-d"]).args([&tree, &disk]))
        .expect(0);
    println!("the machine was made in {:.1} s", start.elapsed().as_secs_f64());
    let console = folder.path().join("console");
    let vmlinuz = tree.join(format!("boot/vmlinuz-{release}"));
    boot(&vmlinuz, &disk, &console, "again");
    boot(&vmlinuz, &disk, &console, "passed");
}

/// Boots it and waits until it is off; that must be its verdict.
fn boot(vmlinuz: &Path, disk: &Path, console: &Path, verdict: &str) {
    let start = Instant::now();
    let mut command = Command::new("qemu-system-x86_64");
    command.args([
        "-M",
        "q35,accel=tcg",
        "-cpu",
        "max",
        "-smp",
        "2",
        "-m",
        "1536",
        "-nodefaults",
        "-no-reboot",
    ]);
    command.args(["-display", "none", "-serial", "stdio", "-kernel"]).arg(vmlinuz);
    command.args(["-append", "console=ttyS0 quiet panic=-1 mitigations=off root=/dev/nvme0n1 rw init=/init"]);
    // This kernel has the driver built in: no initial file system is needed.
    let drive = format!("id=root,if=none,format=raw,cache=unsafe,file={}", disk.display());
    command.args(["-drive", &drive, "-device", "nvme,drive=root,serial=root"]);
    let output = std::fs::File::create(console).expect("console");
    command.stdin(Stdio::null()).stderr(output.try_clone().expect("console")).stdout(output);
    let mut machine = Machine(command.spawn().expect("qemu starts"));
    let said = || String::from_utf8_lossy(&std::fs::read(console).unwrap_or_default()).into_owned();
    let mut off = false;
    let begun = Instant::now();
    while !off && begun.elapsed() < LIFE_MAX {
        std::thread::park_timeout(Duration::from_millis(50));
        off = machine.0.try_wait().expect("wait").is_some();
    }
    let said = said();
    assert!(off, "the machine hangs: {said}");
    said.lines().for_each(|line| println!("old host: {}", line.trim_end()));
    let verdict = format!("verdict: {verdict}");
    assert!(said.lines().any(|line| line.trim_end() == verdict), "expected `{verdict}`: {said}");
    println!("old host: {:.1} s from power on to power off", start.elapsed().as_secs_f64());
}

/// An emulated machine.
struct Machine(std::process::Child);

impl Drop for Machine {
    fn drop(&mut self) {
        // It has ended by itself if all went well.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Unpacks the kernel's package, which tests of exported disks bake as well; answers its release.
fn kernel(tree: &Path) -> String {
    let package = find(&mirror(), &|name| name.starts_with("linux-image-6.1.") && name.ends_with(".deb"));
    let package = package.expect("target/mirror has the kernel: run `.ci/mirror target/debug/kiln`");
    std::fs::create_dir_all(tree.join("usr")).expect("usr/");
    for name in ["bin", "sbin", "lib", "lib64"] {
        std::fs::create_dir_all(tree.join("usr").join(name)).expect("usr/");
        symlink(format!("usr/{name}"), tree.join(name)).expect("a link");
    }
    // By way of another folder: unpacking would replace the link `lib`.
    let package_tree = tree.with_extension("kernel");
    run_program(Command::new("dpkg-deb").arg("-x").args([&package, &package_tree])).expect(0);
    for (from, to) in [("boot", "boot"), ("lib/modules", "usr/lib/modules")] {
        std::fs::rename(package_tree.join(from), tree.join(to)).expect("a folder of the kernel's package");
    }
    let names = std::fs::read_dir(tree.join("usr/lib/modules")).expect("modules").flatten();
    let release = names.map(|e| e.file_name().to_string_lossy().into_owned()).next().expect("a kernel");
    run_program(Command::new("depmod").arg("-b").arg(tree).arg(&release)).expect(0);
    release
}

/// The first file below `folder` with such a name.
fn find(folder: &Path, wanted: &dyn Fn(&str) -> bool) -> Option<PathBuf> {
    for entry in std::fs::read_dir(folder).ok()?.flatten() {
        let path = entry.path();
        let found = match path.is_dir() {
            true => find(&path, wanted),
            false => wanted(&entry.file_name().to_string_lossy()).then_some(path),
        };
        if found.is_some() {
            return found;
        }
    }
    None
}

fn userland(tree: &Path) {
    for name in ["dev", "proc", "sys", "run", "tmp", "root", "var/lib", "etc"] {
        std::fs::create_dir_all(tree.join(name)).expect("a folder");
    }
    std::fs::write(tree.join("etc/passwd"), "root:x:0:0::/root:/bin/false\n").expect("passwd");
    let init = root().join("tests/e2e/old_host/init.rs");
    let mut rustc = Command::new("rustc");
    rustc.args(["--edition=2024", "-O", "-C", "target-feature=+crt-static", "-C", "panic=abort", "-o"]);
    run_program(rustc.arg(tree.join("init")).arg(init)).expect(0);
    // At the places that they have here, so that each finds the others.
    let own = std::env::current_exe().expect("own path");
    for program in [&own, &kiln_program()] {
        install(
            tree,
            program,
            &root().join("target/debug").join(if *program == own { "deps/e2e" } else { "kiln" }),
        );
    }
    for name in PROGRAMS {
        let found =
            ["/usr/local/bin", "/usr/bin", "/usr/sbin", "/bin", "/sbin"].map(|d| Path::new(d).join(name));
        let found = found.into_iter().find(|path| path.exists());
        install(
            tree,
            &found.unwrap_or_else(|| panic!("there is no program `{name}`")),
            &Path::new("/usr/bin").join(name),
        );
    }
    symlink("/usr/bin/kmod", tree.join("usr/sbin/modprobe")).expect("modprobe");
    symlink("/usr/bin/ip", tree.join("usr/sbin/ip")).expect("ip");
    let at = |path: PathBuf| tree.join(path.strip_prefix("/").expect("absolute"));
    let (examples, api) = (root().join("examples"), compiled_api());
    std::fs::create_dir_all(at(examples.clone())).expect("examples/");
    std::fs::create_dir_all(at(mirror())).expect("an empty mirror");
    run_program(Command::new("cp").arg("-r").arg(examples.join("shop")).arg(at(examples))).expect(0);
    run_program(Command::new("cp").arg(&api).arg(at(api.clone()))).expect(0);
    let arguments = format!("{}\n{INSIDE}\n", root().join("target/debug/deps/e2e").display());
    std::fs::write(tree.join("arguments"), arguments).expect("arguments");
}

/// The local provider's own suite, with what it needs: the program of its image, compiled here, and `mkfs.erofs`.
fn provider_suite(tree: &Path) {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()));
    cargo.current_dir(root()).args(["test", "-p", "kiln-provider", "--test", "local", "--no-run"]);
    let built = run_program(cargo.arg("--message-format=json")).expect(0).stdout;
    let messages = built.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let mut executables = messages.filter_map(|message| Some(message["executable"].as_str()?.to_owned()));
    let suite = PathBuf::from(executables.next_back().expect("cargo names the suite"));
    // It compiles the program for its image, as there is no compiler on the emulated host.
    run_program(Command::new(&suite).arg("--prepare")).expect(0);
    install(tree, &suite, Path::new(inside::SUITE));
    install(tree, Path::new("/usr/bin/mkfs.erofs"), Path::new("/usr/bin/mkfs.erofs"));
    let at = |path: &Path| tree.join(path.strip_prefix("/").expect("absolute"));
    for part in ["target/tmp", "crates/provider/tests"].map(|part| root().join(part)) {
        std::fs::create_dir_all(at(&part)).expect("a folder");
        run_program(Command::new("cp").arg("-rT").args([&part, &at(&part)])).expect(0);
    }
}

/// Puts a program and the libraries that it is linked with into the tree.
fn install(tree: &Path, from: &Path, to: &Path) {
    let at = |path: &Path| tree.join(path.strip_prefix("/").expect("absolute"));
    std::fs::create_dir_all(at(to.parent().expect("a folder"))).expect("a folder");
    // Without what debuggers need it is read in a fraction of the time.
    run_program(Command::new("strip").arg("-o").arg(at(to)).arg(from)).expect(0);
    let linked = run_program(Command::new("ldd").arg(from)).stdout;
    let libraries: BTreeSet<&str> = linked.split_whitespace().filter(|word| word.starts_with('/')).collect();
    for library in libraries.into_iter().map(Path::new) {
        let place = at(library);
        std::fs::create_dir_all(place.parent().expect("a folder")).expect("a folder");
        if !place.exists() {
            std::fs::copy(library, place).expect("a library");
        }
    }
}
