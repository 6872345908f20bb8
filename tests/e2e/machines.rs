//! `kiln image export` of what boots: the disks are what other tools say that disks are, and virtual machines serve from them.
//!
//! There is no KVM in CI, so machines are emulated. `KILN_NIGHTLY=1` boots one more.

use crate::tiny;
use kiln_tests::{Kiln, Project, free_address, run as run_program, wait_until};
use serde_json::Value;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Emulated machines share their cores with all other tests.
const BOOT_MAX: Duration = Duration::from_secs(300);
const KERNEL: &str = r#"
[images.kernel]
base = "debian:bookworm"
packages = ["linux-image-cloud-amd64", "systemd-boot-efi"]
"#;

/// An emulated machine.
struct Machine {
    process: Child,
    folder: tempfile::TempDir,
    address: String,
}

impl Machine {
    fn start(arguments: &[&str]) -> Self {
        let folder = tempfile::tempdir().expect("temporary folder");
        let address = free_address();
        let mut command = Command::new("qemu-system-x86_64");
        command.args(["-M", "q35,accel=tcg", "-cpu", "max", "-m", "384", "-nodefaults", "-no-reboot"]);
        command.args(["-display", "none", "-serial", "stdio"]);
        let network = format!("user,id=n,restrict=on,hostfwd=tcp:{address}-:9000");
        command.args(["-netdev", &network, "-device", "virtio-net-pci,netdev=n"]);
        let control = format!("unix:{},server=on,wait=off", folder.path().join("qmp").display());
        command.args(["-qmp", &control]).args(arguments);
        let console = std::fs::File::create(folder.path().join("console")).expect("console");
        command.stdin(Stdio::null()).stderr(console.try_clone().expect("console")).stdout(console);
        Self { process: command.spawn().expect("qemu starts"), folder, address }
    }

    fn console(&self) -> String {
        let bytes = std::fs::read(self.folder.path().join("console")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Whether the service answers with `expected` in its answer.
    fn answers(&self, path: &str, expected: &str) -> bool {
        let ask = || -> std::io::Result<bool> {
            let mut stream = TcpStream::connect(&self.address)?;
            stream.set_read_timeout(Some(Duration::from_secs(5)))?;
            write!(stream, "GET {path} HTTP/1.1\r\nHost: test\r\n\r\n")?;
            let (mut text, mut part) = (vec![], [0; 1024]);
            // The connection stays open behind the answer.
            loop {
                match stream.read(&mut part)? {
                    0 => return Ok(false),
                    n => text.extend_from_slice(&part[..n]),
                }
                if String::from_utf8_lossy(&text).contains(expected) {
                    return Ok(true);
                }
            }
        };
        ask().unwrap_or(false)
    }

    /// Waits until the service answers, presses the power button, and waits until the machine is off.
    fn serves_until_the_button(mut self, what: &str) {
        let start = Instant::now();
        wait_until(&format!("{what} answers; console: {}", self.console()), BOOT_MAX, || {
            let ended = self.process.try_wait().expect("wait");
            assert!(ended.is_none(), "{what} is off: {}", self.console());
            self.answers("/api/version", "release-1")
        });
        let served = start.elapsed();
        let mut control = UnixStream::connect(self.folder.path().join("qmp")).expect("qmp");
        let mut lines = BufReader::new(control.try_clone().expect("qmp")).lines();
        for request in ["qmp_capabilities", "system_powerdown"] {
            lines.next().expect("qmp answers").expect("qmp answers");
            writeln!(control, "{{\"execute\": \"{request}\"}}").expect("qmp");
        }
        wait_until(&format!("{what} is off"), BOOT_MAX, || {
            self.process.try_wait().expect("wait").is_some_and(|status| status.success())
        });
        let console = self.console();
        assert!(console.contains("kiln: the power button was pressed"), "{console}");
        // It does not handle the signal that it was sent.
        assert!(console.contains("kiln: service `api` was killed by signal 15"), "{console}");
        println!("{what}: served after {:.1} s", served.as_secs_f64());
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // It has ended by itself if all went well.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

pub fn run() {
    let kiln = Kiln::started(&free_address());
    let project = tiny::project();
    project.write("kiln.toml", &format!("{}{KERNEL}", tiny::TOML));
    project.commit("a kernel");
    let start = Instant::now();
    let baked = kiln.in_project(&project, &["bake", "--json"]).expect(0).json();
    println!("the image of the kernel: baked after {:.1} s", start.elapsed().as_secs_f64());
    kiln.in_project(&project, &["deploy"]).expect(0);
    let digest = |name: &str| baked["images"][name].as_str().expect("a digest").to_owned();
    let (image, kernel) = (digest("api"), digest("kernel"));
    let folder = tempfile::tempdir().expect("temporary folder");
    let path = |name: &str| folder.path().join(name).display().to_string();
    let lacks = export(&kiln, &project, &image, &path("no.raw"), &["--format", "raw", "--service", "api"]);
    let lacks = lacks.expect(1);
    assert!(
        lacks.stderr.contains("has no kernel") && lacks.stderr.contains("linux-image-cloud-amd64"),
        "{lacks:?}"
    );
    let machine = ["--service", "api", "--kernel-image", &kernel, "--format"];
    let write = |name: &str, format: &str| -> Value {
        let more = [&machine[..], &[format]].concat();
        export(&kiln, &project, &image, &path(name), &more).expect(0).json()
    };
    let root = write("direct", "kernel")["manifest"].clone();
    for (format, again) in [("raw", "again.raw"), ("qcow2", "again.qcow2")] {
        let name = format!("disk.{format}");
        write(&name, format);
        write(again, format);
        run_program(Command::new("cmp").args([path(&name), path(again)])).expect(0);
        std::fs::remove_file(path(again)).expect("removed");
    }
    disks_are_disks(&path("disk.raw"), &path("disk.qcow2"), &path("direct/root.erofs"), folder.path());
    let sum = run_program(Command::new("sha256sum").arg(path("direct/root.erofs"))).expect(0).stdout;
    assert!(root.as_str().expect("a digest").ends_with(&sum[..64]), "{root} {sum}");

    // The disks ask DHCP.
    let own = "kiln.address=10.0.2.15/24 kiln.gateway=10.0.2.2";
    let line = std::fs::read_to_string(path("direct/cmdline")).expect("a command line");
    let line = format!("{} {own}", line.trim());
    let (vmlinuz, initrd) = (path("direct/vmlinuz"), path("direct/initrd"));
    let direct = ["-kernel", &vmlinuz, "-initrd", &initrd, "-append", &line];
    let drive = drive(&path("direct/root.erofs"), "raw");
    Machine::start(&[&direct[..], &["-drive", &drive]].concat()).serves_until_the_button("kernel");
    uefi(&path("disk.raw"), "raw").serves_until_the_button("raw");
    // The two disks were compared, so the second one shows nothing new about kiln.
    match std::env::var_os("KILN_NIGHTLY") {
        Some(_) => uefi(&path("disk.qcow2"), "qcow2").serves_until_the_button("qcow2"),
        None => println!("not booted without KILN_NIGHTLY=1: the qcow2 disk"),
    }
    kiln.down();
}

fn export(kiln: &Kiln, project: &Project, image: &str, output: &str, more: &[&str]) -> kiln_tests::Answer {
    let head = ["image", "export", image, "--output", output, "--json"];
    kiln.in_project(project, &[&head[..], more].concat())
}

fn drive(path: &str, format: &str) -> String {
    format!("if=virtio,readonly=on,format={format},file={path}")
}

fn uefi(disk: &str, format: &str) -> Machine {
    let firmware = "if=pflash,format=raw,readonly=on,file=/usr/share/OVMF/OVMF_CODE_4M.fd";
    Machine::start(&["-drive", firmware, "-drive", &drive(disk, format)])
}

/// Partition table, EFI file system, root file system and QEMU's format, as their own tools see them.
fn disks_are_disks(raw: &str, qcow2: &str, root: &str, folder: &Path) {
    let table = run_program(Command::new("sfdisk").args(["--json", raw])).expect(0).json();
    assert_eq!(table["partitiontable"]["label"], "gpt", "{table}");
    let verified = run_program(Command::new("sfdisk").args(["--verify", raw])).expect(0);
    assert!(verified.stdout.contains("No errors detected"), "{verified:?}");
    let part = |n: usize| {
        let row = &table["partitiontable"]["partitions"][n];
        let number = |name: &str| row[name].as_u64().expect("a number") * 512;
        let mut bytes = vec![0; number("size") as usize];
        let disk = std::fs::File::open(raw).expect("the disk");
        disk.read_exact_at(&mut bytes, number("start")).expect("a partition");
        bytes
    };
    let efi = folder.join("efi");
    std::fs::write(&efi, part(0)).expect("written");
    let checked = run_program(Command::new("fsck.fat").args(["-n", "-v"]).arg(&efi)).expect(0);
    assert!(checked.stdout.contains("FAT32") || checked.stdout.contains("32 bit"), "{checked:?}");
    std::fs::remove_file(efi).expect("removed");
    assert!(part(1) == std::fs::read(root).expect("the root"), "the root partition is the root file system");
    run_program(Command::new("fsck.erofs").arg(root)).expect(0);
    run_program(Command::new("qemu-img").args(["check", qcow2])).expect(0);
    run_program(Command::new("qemu-img").args(["compare", raw, qcow2])).expect(0);
}
