//! The file system of an instance in its machine: the image's layers, and around them what a sandbox has as well.

use crate::call;
use crate::config::Config;
use std::fs::{self, File};
use std::io::{Error, ErrorKind, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{OpenOptionsExt, fchown, symlink};
use std::time::{Duration, Instant};

/// Where the image is mounted; the root of its programs.
pub const ROOT: &str = "/root";
/// How long disks may take to appear.
const DISK_MAX: Duration = Duration::from_secs(60);
const DEVICES: [(&str, u64, u64); 6] =
    [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];
const LINKS: [(&str, &str); 4] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
];
/// Where an instance finds its secrets.
const SECRETS: &str = "/run/secrets";
const DEV_OPTIONS: &str = "mode=755,size=64k";

/// A step that failed.
pub struct Failure {
    /// No use trying again.
    pub permanent: bool,
    /// What was tried.
    pub step: String,
    /// Why it failed.
    pub detail: String,
}

/// Something that should always work failed.
pub fn failed(step: impl Into<String>) -> impl FnOnce(Error) -> Failure {
    let step = step.into();
    move |error| Failure { permanent: false, step, detail: error.to_string() }
}

/// Makes it.
pub fn make(config: &Config) -> Result<(), Failure> {
    mount_layers(config.layers)?;
    let root = call::open_directory(ROOT).map_err(failed("open the image"))?;
    let plain = call::MS_NOSUID | call::MS_NODEV | call::MS_NOEXEC;
    // A program sees the processes of its own user only.
    mount(&root, "/proc", "proc", plain, "hidepid=2", Some(config))?;
    make_dev(&root, config)?;
    mount_writable(&root, config)?;
    mount_secrets(&root, config)?;
    write_etc(&root, config)
}

fn mount_layers(count: usize) -> Result<(), Failure> {
    let until = Instant::now() + DISK_MAX;
    let mut lower = String::new();
    for number in 0..count {
        let step = format!("find the disk of layer {number}");
        let device = loop {
            match find_disk(&format!("layer{number}")) {
                Some(device) => break device,
                None if Instant::now() < until => std::thread::sleep(Duration::from_millis(2)),
                None => return Err(failed(step)(ErrorKind::NotFound.into())),
            }
        };
        let target = if count == 1 { ROOT.to_owned() } else { format!("/layers/{number}") };
        let step = format!("mount layer {number}");
        fs::create_dir_all(&target).map_err(failed(&*step))?;
        let flags = call::MS_RDONLY | call::MS_NODEV | call::MS_NOSUID;
        call::mount_at(&device, &target, "erofs", flags, "").map_err(failed(&*step))?;
        let rest = if lower.is_empty() { String::new() } else { format!(":{lower}") };
        lower = format!("{target}{rest}");
    }
    if count > 1 {
        let flags = call::MS_RDONLY | call::MS_NODEV | call::MS_NOSUID;
        let options = format!("lowerdir={lower}");
        call::mount_at("overlay", ROOT, "overlay", flags, &options).map_err(failed("join the layers"))?;
    }
    Ok(())
}

/// The disk with this serial number.
fn find_disk(serial: &str) -> Option<String> {
    let disks = fs::read_dir("/sys/class/block").ok()?.flatten();
    let mut found = disks.filter(|disk| {
        fs::read_to_string(disk.path().join("serial")).is_ok_and(|text| text.trim() == serial)
    });
    found.next().map(|disk| format!("/dev/{}", disk.file_name().to_string_lossy()))
}

/// Mounts a new file system at a place of the image, which its links cannot lead out of.
fn mount(
    root: &File,
    place: &str,
    kind: &str,
    flags: u64,
    options: &str,
    config: Option<&Config>,
) -> Result<(), Failure> {
    let open = || call::open_below(root, place, call::O_PATH);
    let point = match open() {
        // Below a tmpfs of ours it can be made.
        Err(error) if error.kind() == ErrorKind::NotFound && config.is_some() => {
            let parents = place.match_indices('/').skip(1).map(|(at, _)| &place[..at]).chain([place]);
            parents.for_each(|parent| make_directory(root, parent));
            open().map_err(|_| error)
        }
        other => other,
    };
    let is_directory = |point: File| match point.metadata()?.is_dir() {
        true => Ok(point),
        false => Err(Error::from(ErrorKind::NotADirectory)),
    };
    let point = point.and_then(is_directory).map_err(|error| missing(place, &error))?;
    let target = format!("/proc/self/fd/{}", point.as_raw_fd());
    call::mount_at(kind, &target, kind, flags, options).map_err(failed(format!("mount `{place}`")))
}

fn make_directory(root: &File, place: &str) {
    let (parent, name) = place.rsplit_once('/').unwrap_or(("", place));
    if name.is_empty() || name == "." || name == ".." {
        return;
    }
    let parent = if parent.is_empty() { "/" } else { parent };
    if let Ok(parent) = call::open_below(root, parent, call::O_PATH) {
        // It is there, or the file system is read-only; the look after that tells.
        let _ = fs::create_dir(format!("/proc/self/fd/{}/{name}", parent.as_raw_fd()));
    }
}

fn missing(place: &str, error: &Error) -> Failure {
    let (permanent, detail) = match error.kind() {
        ErrorKind::NotFound => {
            let hint = "hint: add it to the image, or take it out of `writable`";
            (true, format!("the image has no directory `{place}`; {hint}"))
        }
        ErrorKind::NotADirectory => {
            (true, format!("`{place}` is no directory in the image; hint: change the image, or `writable`"))
        }
        _ => (false, error.to_string()),
    };
    Failure { permanent, step: format!("mount `{place}`"), detail }
}

fn make_dev(root: &File, config: &Config) -> Result<(), Failure> {
    let step = "make /dev";
    let flags = call::MS_NOSUID | call::MS_NOEXEC;
    mount(root, "/dev", "tmpfs", flags, DEV_OPTIONS, Some(config))?;
    let dev = call::open_below(root, "/dev", call::O_PATH).map_err(failed(step))?;
    let place = format!("/proc/self/fd/{}", dev.as_raw_fd());
    for (name, major, minor) in DEVICES {
        call::character_device(&format!("{place}/{name}"), major, minor).map_err(failed(step))?;
    }
    for (name, target) in LINKS {
        symlink(target, format!("{place}/{name}")).map_err(failed(step))?;
    }
    fs::create_dir(format!("{place}/shm")).map_err(failed(step))?;
    let flags = flags | call::MS_REMOUNT | call::MS_RDONLY;
    call::mount_at("tmpfs", &place, "tmpfs", flags, DEV_OPTIONS).map_err(failed(step))
}

fn mount_writable(root: &File, config: &Config) -> Result<(), Failure> {
    let (uid, gid) = config.user;
    let mut places = vec![("/dev/shm", "1777", true), ("/run", "755", false), ("/tmp", "1777", false)];
    for place in config.writable.iter().filter_map(|place| place.to_str()) {
        if !places.iter().any(|(known, ..)| *known == place) {
            places.push((place, "755", false));
        }
    }
    // Parents first.
    places.sort_by_key(|(place, ..)| place.len());
    for (place, mode, no_exec) in places {
        let options = format!("mode={mode},uid={uid},gid={gid},size={}", config.writable_bytes);
        let no_exec = if no_exec { call::MS_NOEXEC } else { 0 };
        mount(root, place, "tmpfs", call::MS_NOSUID | call::MS_NODEV | no_exec, &options, Some(config))?;
    }
    Ok(())
}

/// Makes a file of each secret, which the service's user alone can read and nobody can change.
fn mount_secrets(root: &File, config: &Config) -> Result<(), Failure> {
    if config.secrets.is_empty() {
        return Ok(());
    }
    let (uid, gid) = config.user;
    let size = config.secrets.iter().map(|(_, value)| value.len() + 2 * 4096).sum::<usize>();
    let options = format!("mode=500,uid={uid},gid={gid},size={size}");
    let flags = call::MS_NOSUID | call::MS_NODEV | call::MS_NOEXEC;
    mount(root, SECRETS, "tmpfs", flags, &options, Some(config))?;
    let step = "write the secrets";
    let directory = call::open_below(root, SECRETS, call::O_PATH).map_err(failed(step))?;
    let place = format!("/proc/self/fd/{}", directory.as_raw_fd());
    for (name, value) in &config.secrets {
        let write = || {
            let mut options = File::options();
            let file = options.write(true).create_new(true).mode(0o400).open(format!("{place}/{name}"))?;
            fchown(&file, Some(uid), Some(gid))?;
            (&file).write_all(value)
        };
        write().map_err(failed(step))?;
    }
    call::mount_at("tmpfs", &place, "tmpfs", flags | call::MS_REMOUNT | call::MS_RDONLY, &options)
        .map_err(failed(step))
}

/// Puts the instance's own files over those of the image.
fn write_etc(root: &File, config: &Config) -> Result<(), Failure> {
    let name = &config.name;
    let files = [
        ("hosts", config.hosts.clone()),
        ("hostname", format!("{name}\n")),
        ("resolv.conf", config.resolver.clone()),
    ];
    for (file, text) in files {
        let step = format!("write /etc/{file}");
        let Ok(target) = call::open_below(root, &format!("/etc/{file}"), call::O_PATH) else { continue };
        if !target.metadata().is_ok_and(|meta| meta.is_file()) {
            continue;
        }
        let own = format!("/kiln/{file}");
        File::create(&own).and_then(|mut file| file.write_all(text.as_bytes())).map_err(failed(&*step))?;
        let target = format!("/proc/self/fd/{}", target.as_raw_fd());
        call::mount_at(&own, &target, "", call::MS_BIND, "").map_err(failed(&*step))?;
        // The name means the mounted file only when it is looked up again.
        if let Ok(mounted) = call::open_below(root, &format!("/etc/{file}"), call::O_PATH) {
            let target = format!("/proc/self/fd/{}", mounted.as_raw_fd());
            let flags = call::MS_REMOUNT | call::MS_BIND | call::MS_RDONLY | call::MS_NOSUID;
            call::mount_at("", &target, "", flags, "").map_err(failed(&*step))?;
        }
    }
    Ok(())
}
