//! Attacks on those who look after the instance: the runtime's binary, pid 1, and whoever runs checks in it.

use crate::{call, forever, refused, say};
use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, symlink};
use std::time::{Duration, Instant};

const O_PATH: i32 = 0o10_000_000;

/// Overwrites the file that this process, and every other one in sight, was started from.
pub fn runtime() {
    let mut names = vec!["/proc/self/exe".to_owned(), "/proc/1/exe".to_owned(), "/proc/thread-self/exe".to_owned()];
    names.extend(processes().iter().map(|pid| format!("/proc/{pid}/exe")));
    for name in names {
        overwrite(&name);
    }
}

fn overwrite(name: &str) {
    refused(&format!("write {name}"), fs::OpenOptions::new().write(true).open(name));
    refused(&format!("truncate {name}"), fs::OpenOptions::new().write(true).truncate(true).open(name));
    // As CVE-2019-5736: hold it by a descriptor that asks for nothing, and open that again once it is not in use.
    let held = fs::OpenOptions::new().read(true).custom_flags(O_PATH).open(name);
    if let Ok(held) = &held {
        let again = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(held));
        for _ in 0..50 {
            refused_quietly(&format!("write {name} by a held descriptor"), || {
                fs::OpenOptions::new().write(true).open(&again)
            });
        }
        refused(&format!("chmod {name}"), fs::set_permissions(&again, fs::Permissions::from_mode(0o777)));
    }
}

fn refused_quietly<T>(name: &str, mut attempt: impl FnMut() -> std::io::Result<T>) {
    if attempt().is_ok() {
        say(name, false, "it worked");
    }
}

fn processes() -> Vec<u32> {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    entries.filter_map(|e| e.file_name().to_str()?.parse().ok()).collect()
}

/// Pid 1: it cannot be ended, stopped, slowed, limited, traced or read. That it works afterwards, the output tells.
pub fn supervisor() {
    for signal in [9, 19, 11, 31, 20, 1] {
        let info = [0u8; 128];
        let _ = call(62, &[1, signal]);
        let _ = call(200, &[1, signal]);
        let _ = call(234, &[1, 1, signal]);
        let _ = call(129, &[1, signal, info.as_ptr() as i64]);
        if let Ok(fd) = call(434, &[1, 0]) {
            let _ = call(424, &[fd, signal, 0, 0]);
        }
    }
    let room = [0u64; 16];
    let room = room.as_ptr() as i64;
    refused("limits of pid 1", call(302, &[1, 1, 0, room]));
    refused("nice of pid 1", call(141, &[0, 1, 19]));
    refused("processors of pid 1", call(203, &[1, 8, [1u64].as_ptr() as i64]));
    refused("scheduler of pid 1", call(144, &[1, 5, [0u64].as_ptr() as i64]));
    refused("ioprio of pid 1", call(251, &[1, 1, 3 << 13]));
    refused("group of pid 1", call(109, &[1, 0]));
    refused("write oom_score_adj of pid 1", fs::write("/proc/1/oom_score_adj", "1000"));
    refused("write coredump_filter of pid 1", fs::write("/proc/1/coredump_filter", "1"));
    refused("memory of pid 1", fs::OpenOptions::new().write(true).open("/proc/1/mem"));
    refused("robust list of pid 1", call(274, &[1, room, room + 8]));
    // The descriptors that end at pid 1: neither end of the pipe gives more than writing.
    for fd in [1, 2] {
        refused(&format!("read from {fd}"), call(0, &[fd, room, 1]));
    }
    std::thread::sleep(Duration::from_millis(50));
    println!("pid 1 still listens");
}

/// Looks at every process that appears, for as long as one can, and says each thing once that it should not see.
pub fn spy(milliseconds: u64) {
    println!("spying");
    let end = Instant::now() + Duration::from_millis(milliseconds);
    let own = std::process::id();
    let (mut found, mut met) = (BTreeSet::new(), BTreeSet::new());
    while Instant::now() < end {
        for pid in processes().into_iter().filter(|pid| *pid != own) {
            met.insert(pid);
            for name in ["exe", "cwd", "root"] {
                if let Ok(target) = fs::read_link(format!("/proc/{pid}/{name}")) {
                    found.insert(format!("{name} {}", target.display()));
                }
            }
            if let Ok(held) = fs::OpenOptions::new().write(true).open(format!("/proc/{pid}/exe")) {
                say("write a program in use", false, &format!("{held:?}"));
            }
            for entry in fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten() {
                if let Ok(target) = fs::read_link(entry.path()) {
                    let target = target.display().to_string();
                    let kind = target.split('[').next().unwrap_or("").to_owned();
                    found.insert(format!("fd {} {kind}", entry.file_name().to_string_lossy()));
                }
                // Any directory would be a way out.
                if let Ok(mut entries) = fs::read_dir(entry.path())
                    && let Some(entry) = entries.next()
                {
                    found.insert(format!("directory {:?}", entry.map(|e| e.file_name())));
                }
            }
        }
    }
    println!("met {}", met.len());
    for line in found {
        println!("saw {line}");
    }
}

/// Swaps the places that checks look at for links to what they must not look at.
pub fn swap(milliseconds: u64) {
    println!("swapping");
    let end = Instant::now() + Duration::from_millis(milliseconds);
    let targets = ["/proc/self/root", "/proc/1/root", "../../../../../..", "/proc/self/exe", "/proc/self/cwd", "/tmp/x",
        "/proc/self/fd/0", "/proc/sys/kernel/core_pattern", "/bin"];
    let mut n = 0;
    while Instant::now() < end {
        for place in ["/tmp/x", "/data/x", "/run/x"] {
            let new = format!("{place}.new");
            match n % 3 {
                0 => drop(fs::create_dir(&new)),
                1 => drop(fs::write(&new, "plain")),
                _ => drop(symlink(targets[n / 3 % targets.len()], &new)),
            }
            // A directory is never replaced by something else.
            let _ = fs::remove_dir(place);
            let _ = fs::rename(&new, place).or_else(|_| fs::remove_dir(&new)).or_else(|_| fs::remove_file(&new));
            n += 1;
        }
    }
    println!("swapped {n}");
}

/// Writes wherever it can write, at all the places that images were damaged at.
pub fn roots() {
    for place in ["/tmp", "/run", "/dev/shm", "/data", "/proc", "/dev", "/etc", "/", "/link"] {
        for name in ["canary", "hosts", "hostile-was-here", "core_pattern"] {
            let _ = fs::write(format!("{place}/{name}"), "hostile");
            let _ = fs::remove_file(format!("{place}/{name}"));
        }
    }
    for place in ["/etc/hosts", "/etc/hostname", "/etc/resolv.conf"] {
        let _ = fs::write(place, "hostile");
    }
}

/// What a check's program may say.
pub fn noise(kind: &str) {
    let mut out = std::io::stdout();
    let _ = match kind {
        "escapes" => out.write_all(b"\x1b]0;owned\x07\x1b[2J\x1b[31mred\r\nfake: line\x08\x9b1m\xc2\x9b\xe2\x80\xae\x7f"),
        "binary" => out.write_all(&(0..=255u8).cycle().take(100_000).collect::<Vec<u8>>()),
        "split" => out.write_all("\u{1f525}".repeat(5000).as_bytes()),
        "one-line" => out.write_all(&vec![b'x'; 4 << 20]),
        "endless" => loop {
            if out.write_all(&[b'y'; 65536]).is_err() {
                forever();
            }
        },
        "closed" => {
            for fd in 0..3 {
                let _ = call(3, &[fd]);
            }
            forever()
        }
        "stopped" => {
            let _ = call(62, &[std::process::id() as i64, 19]);
            Ok(())
        }
        other => panic!("{other}"),
    };
    let _ = out.flush();
}

/// Answers every request in a way that keeps the asker busy.
pub fn serve(kind: &str) {
    let listener = TcpListener::bind("0.0.0.0:8080").unwrap();
    println!("listening");
    for stream in listener.incoming() {
        let mut stream = stream.unwrap();
        let kind = kind.to_owned();
        std::thread::spawn(move || {
            let _ = stream.read(&mut [0; 4096]);
            let _ = match kind.as_str() {
                "silent" => {
                    std::thread::sleep(Duration::from_secs(60));
                    Ok(())
                }
                "drip" => loop {
                    if stream.write_all(b"H").is_err() {
                        break Ok(());
                    }
                    std::thread::sleep(Duration::from_millis(50));
                },
                "head" => {
                    let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n");
                    while stream.write_all(b"X-Fill: yyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyy\r\n").is_ok() {}
                    Ok(())
                }
                "body" => {
                    let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999\r\n\r\n");
                    while stream.write_all(&[b'z'; 65536]).is_ok() {}
                    Ok(())
                }
                _ => stream.write_all(b"\xff\xfe\x00\x01\x02garbage\r\n\r\n"),
            };
        });
    }
}
