//! Pid 1 of a virtual machine that runs one service of one image: loads the modules of the initrd, mounts the image, brings up the
//! network, starts the service as its user, hands on what asks it to end, and turns the machine off when it has ended.
//!
//! An exported machine is told what to run by its initrd, and what it prints goes to the console: this file. A machine that is an
//! instance (`isolation = "vm"`) is told by its host, and tells it everything: `instance.rs`.
//!
//! Compiled by the build script into a static program without any crate, and embedded in kiln, which puts it into the initrd of
//! an exported disk. What an instance has in a sandbox, it has here as well: a read-only root, a tmpfs at each writable place.
#![allow(unsafe_code, reason = "system calls, in the module `call` only; each block says why it is sound")]

mod call;
mod check;
mod config;
mod host;
mod instance;
mod network;
mod place;
mod spawn;
#[cfg_attr(not(test), expect(dead_code, reason = "a part of it is for the host"))]
mod wire;

use config::Config;
use network::Setup;
use std::fs::{self, File};
use std::io::{Error, Read, Result};
use std::os::unix::fs::FileExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

/// Where the image is mounted before it becomes the root.
const ROOT: &str = "/root";
const SUPERBLOCK_AT: u64 = 1024;
/// How long disks may take to appear.
const DISK_MAX: Duration = Duration::from_secs(20);
const PATH_DEFAULT: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
const EV_KEY: u16 = 1;
const KEY_POWER: u16 = 116;

fn say(text: &str) {
    println!("kiln: {text}");
}

fn main() {
    match run() {
        Ok(status) => say(&status),
        Err(error) => say(&format!("cannot start: {error}")),
    }
    call::power_off();
    // A machine without a power switch stays as it is; pid 1 must not end.
    loop {
        std::thread::park();
    }
}

/// `error` with what was tried.
fn at(step: &str) -> impl Fn(Error) -> Error {
    let step = step.to_owned();
    move |error| Error::other(format!("{step}: {error}"))
}

fn run() -> Result<String> {
    call::set_umask(0o022);
    let plain = call::MS_NOSUID | call::MS_NODEV | call::MS_NOEXEC;
    call::mount_at("proc", "/proc", "proc", plain, "").map_err(at("mount /proc"))?;
    call::mount_at("sysfs", "/sys", "sysfs", plain | call::MS_RDONLY, "").map_err(at("mount /sys"))?;
    call::mount_at("devtmpfs", "/dev", "devtmpfs", call::MS_NOSUID, "mode=755").map_err(at("mount /dev"))?;
    let command_line = fs::read_to_string("/proc/cmdline").unwrap_or_default();
    if !Path::new("/kiln/start").exists() {
        load_modules("first");
        return instance::run();
    }
    let start = fs::read("/kiln/start").map_err(at("read /kiln/start"))?;
    let config =
        Config::parse(&start, &command_line).ok_or_else(|| Error::other("/kiln/start is damaged"))?;
    load_modules("first");
    let mut disk = find_root(&config.root, Duration::ZERO);
    if disk.is_none() || network::first_interface().is_none() {
        // Not the usual machine: all that we have.
        load_modules("rest");
        disk = disk.or_else(|| find_root(&config.root, DISK_MAX));
    }
    let disk = disk.ok_or_else(|| Error::other("no disk has the root file system of this image"))?;
    let read_only = call::MS_RDONLY | call::MS_NODEV;
    call::mount_at(&disk, ROOT, "erofs", read_only, "").map_err(at("mount the image"))?;
    call::set_host_name(&config.name)?;
    // It looks into /sys, which is moved after that.
    let setup = bring_up(&config);
    mount_around(&config)?;
    write_etc(&config, setup.as_ref())?;
    enter()?;
    for (number, node) in (0..32).map(|n| (n, format!("/dev/input/event{n}"))) {
        if let Ok(device) = File::open(node) {
            std::thread::Builder::new()
                .name(format!("button-{number}"))
                .spawn(move || watch_button(&device))?;
        }
    }
    serve(&config)
}

/// Loads what the list `which` names, in its order.
fn load_modules(which: &str) {
    let list = fs::read_to_string(format!("/kiln/modules.{which}")).unwrap_or_default();
    for name in list.lines() {
        let loaded = File::open(format!("/kiln/modules/{name}")).and_then(|file| call::load_module(&file));
        if let Err(error) = loaded.or_else(|e| if e.raw_os_error() == Some(17) { Ok(()) } else { Err(e) }) {
            // Drivers of hardware that is not there refuse.
            if which == "first" {
                say(&format!("module {name}: {error}"));
            }
        }
    }
}

/// The device whose file system is the image's.
fn find_root(superblock: &[u8], patience: Duration) -> Option<String> {
    let until = Instant::now() + patience;
    loop {
        for entry in fs::read_dir("/sys/class/block").into_iter().flatten().flatten() {
            let device = format!("/dev/{}", entry.file_name().to_string_lossy().replace('!', "/"));
            let mut found = vec![0; superblock.len()];
            let read = File::open(&device).and_then(|file| file.read_exact_at(&mut found, SUPERBLOCK_AT));
            if read.is_ok() && found == superblock {
                return Some(device);
            }
        }
        if Instant::now() >= until {
            return None;
        }
        // No event tells of a new disk without a device manager.
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Mounts what an instance has over its image.
fn mount_around(config: &Config) -> Result<()> {
    for name in ["/proc", "/sys", "/dev"] {
        let target = format!("{ROOT}{name}");
        call::mount_at(name, &target, "", call::MS_MOVE, "").map_err(at(&format!("mount {name}")))?;
    }
    let (uid, gid) = config.user;
    let mut places = vec![("/dev/shm", "1777"), ("/run", "755"), ("/tmp", "1777")];
    for place in config.writable.iter().filter_map(|place| place.to_str()) {
        if !places.iter().any(|(known, _)| *known == place) {
            places.push((place, "755"));
        }
    }
    // Parents first.
    places.sort_by_key(|(place, _)| place.len());
    for (place, mode) in places {
        let target = format!("{ROOT}{place}");
        // It is there, or lies below a tmpfs of ours.
        let _ = fs::create_dir_all(&target);
        let options = format!("mode={mode},uid={uid},gid={gid},size={}", config.writable_bytes);
        let flags = call::MS_NOSUID | call::MS_NODEV;
        call::mount_at("tmpfs", &target, "tmpfs", flags, &options).map_err(at(&format!("mount {place}")))?;
    }
    Ok(())
}

/// A machine without a network still runs.
fn bring_up(config: &Config) -> Option<Setup> {
    if let Err(error) = network::up("lo") {
        say(&format!("no loopback: {error}"));
    }
    let Some(name) = network::first_interface() else {
        say("no network interface");
        return None;
    };
    let setup = || {
        network::up(&name)?;
        let setup = match &config.address {
            Some(address) => Setup::parse(address, config.gateway.as_deref())
                .ok_or_else(|| Error::other(format!("`{address}` is not an address with its bits")))?,
            None => network::lease(&name)?,
        };
        network::set(&name, &setup)?;
        Ok(setup)
    };
    match setup() {
        Ok(setup) => {
            say(&format!("{name} has {}/{}", setup.address, setup.bits));
            if let Some(lease) = setup.lease {
                std::thread::spawn(move || renew(&name, lease));
            }
            Some(setup)
        }
        Err(error) => {
            let error: Error = error;
            say(&format!("no address for {name}: {error}"));
            None
        }
    }
}

/// Keeps the address ours.
fn renew(name: &str, mut lease: Duration) {
    loop {
        std::thread::sleep((lease / 2).max(Duration::from_secs(30)));
        let renewed = network::lease(name).and_then(|setup| network::set(name, &setup).map(|()| setup));
        match renewed {
            Ok(setup) => lease = setup.lease.unwrap_or(Duration::MAX / 4),
            Err(error) => say(&format!("the address of {name} was not renewed: {error}")),
        }
    }
}

/// Puts the machine's own files over those of the image.
fn write_etc(config: &Config, setup: Option<&Setup>) -> Result<()> {
    let name = &config.name;
    let own = setup.map(|setup| format!("{} {name}\n", setup.address)).unwrap_or_default();
    let resolvers = setup.map(|setup| setup.resolvers.as_slice()).unwrap_or_default();
    let resolvers: String = resolvers.iter().map(|address| format!("nameserver {address}\n")).collect();
    let hosts = format!("127.0.0.1 localhost\n::1 localhost\n{own}");
    for (file, text) in [("hosts", hosts), ("hostname", format!("{name}\n")), ("resolv.conf", resolvers)] {
        let target = format!("{ROOT}/etc/{file}");
        if fs::symlink_metadata(&target).is_ok_and(|meta| meta.is_file()) {
            let own = format!("/kiln/{file}");
            fs::write(&own, text).map_err(at(&own))?;
            call::mount_at(&own, &target, "", call::MS_BIND, "").map_err(at(&target))?;
        }
    }
    Ok(())
}

/// The image becomes the root.
fn enter() -> Result<()> {
    std::env::set_current_dir(ROOT)?;
    call::mount_at(".", "/", "", call::MS_MOVE, "").map_err(at("move the root"))?;
    call::change_root(Path::new("."))?;
    std::env::set_current_dir("/")
}

/// Waits for the power button; `struct input_event` has 24 bytes, with its type, code and value at the end.
fn watch_button(mut device: &File) {
    let mut event = [0; 24];
    while device.read_exact(&mut event).is_ok() {
        let half = |at: usize| u16::from_ne_bytes([event[at], event[at + 1]]);
        if half(16) == EV_KEY && half(18) == KEY_POWER && half(20) == 1 {
            say("the power button was pressed");
            call::stop_service();
        }
    }
}

fn serve(config: &Config) -> Result<String> {
    call::take_ctrl_alt_del();
    call::no_new_privileges().map_err(at("give up rights"))?;
    let mut command = Command::new(&config.command[0]);
    command.args(&config.command[1..]).env_clear().env("PATH", PATH_DEFAULT).envs(config.env.iter().cloned());
    command.uid(config.user.0).gid(config.user.1).current_dir("/");
    let child = command.spawn().map_err(at(&format!("start `{}`", config.command[0])))?;
    let service = i32::try_from(child.id()).map_err(Error::other)?;
    call::forward_signals(service, config.stop.0, config.stop.1);
    say(&format!("service `{}` started", config.name));
    loop {
        match call::wait_any() {
            Ok((pid, status)) if pid == service => {
                let name = &config.name;
                return Ok(match status & 0x7f {
                    0 => format!("service `{name}` ended with status {}", status >> 8 & 0xff),
                    signal => format!("service `{name}` was killed by signal {signal}"),
                });
            }
            Err(error) if error.kind() != std::io::ErrorKind::Interrupted => return Err(error),
            // An orphan, or a signal that was handed on.
            _ => {}
        }
    }
}
