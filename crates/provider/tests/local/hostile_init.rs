//! Pid 1 of a machine that means harm: it does to its host what the service's command says. Compiled by the test, of the same
//! parts as the real one.
#![expect(dead_code, reason = "it uses some of those parts")]

#[path = "../../../sys/guest/call.rs"]
mod call;
#[path = "../../../sys/guest/host.rs"]
mod host;
#[path = "../../../sys/guest/wire.rs"]
mod wire;

use std::fs::{self, File};
use wire::{End, FromGuest, ToGuest};

fn main() {
    call::mount_at("proc", "/proc", "proc", 0, "").unwrap();
    call::mount_at("sysfs", "/sys", "sysfs", 0, "").unwrap();
    call::mount_at("devtmpfs", "/dev", "devtmpfs", 0, "").unwrap();
    for name in fs::read_to_string("/kiln/modules.first").unwrap().lines() {
        let _ = File::open(format!("/kiln/modules/{name}")).and_then(|file| call::load_module(&file));
    }
    let (host, mut ear) = host::connect().unwrap();
    if fs::exists("/mute").unwrap() {
        loop {
            std::thread::park();
        }
    }
    host.say(&FromGuest::Hello);
    let ToGuest::Start(records) = ear.hear().unwrap() else { panic!("it is to start") };
    let records = String::from_utf8_lossy(&records).into_owned();
    let command = records.split('\0').find_map(|record| record.strip_prefix("argument ")).unwrap();
    harm(command, &host, &mut ear);
    loop {
        std::thread::park();
    }
}

fn harm(command: &str, host: &host::Host, ear: &mut host::Ear) {
    let started = || host.say(&FromGuest::Started);
    match command {
        // Never says another word, nor hears one.
        "silent" => println!("the last that is seen of it"),
        // Without its pid 1 a kernel panics.
        "panic" => std::process::exit(3),
        "panic-later" => {
            started();
            std::process::exit(3);
        }
        "garbage" => {
            started();
            let noise: Vec<u8> = (0..100_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
            host.pump(&noise[..], |bytes| FromGuest::Out(bytes));
            raw(&noise);
        }
        "length" => {
            started();
            raw(&[b'o', 255, 255, 255, 255]);
        }
        "text" => {
            let text = "\u{1b}[2J\u{7}".repeat(20_000);
            host.say(&FromGuest::Failed { permanent: true, step: text.clone(), detail: text });
        }
        "status" => {
            started();
            host.say(&FromGuest::Ended(End::Status(-1000)));
            host.say(&FromGuest::Ended(End::Status(0)));
        }
        "signal" => {
            started();
            host.say(&FromGuest::Ended(End::Signal(i32::MIN)));
        }
        // What nobody asked for, for ever.
        "answers" => {
            started();
            for number in 0..u32::MAX {
                host.say(&FromGuest::Answer { number, passed: true, detail: "yes".repeat(1000) });
                host.say(&FromGuest::Hello);
                host.say(&FromGuest::Started);
            }
        }
        // One line without an end.
        "line" => {
            started();
            host.pump(std::io::repeat(b'x'), FromGuest::Err);
        }
        // The console as well, for ever.
        "console" => {
            started();
            loop {
                println!("{}", "noise ".repeat(100));
            }
        }
        // Says that all is well, and does nothing that it is asked for.
        "deaf" => started(),
        // Answers every question with more than an answer may have.
        "eager" => {
            started();
            while let Ok(word) = ear.hear() {
                if let ToGuest::Ask { number, .. } = word {
                    let detail = format!("\u{1b}]0;x\u{7}{}", "é".repeat(100_000));
                    host.say(&FromGuest::Answer { number, passed: true, detail });
                }
            }
        }
        other => panic!("{other}"),
    }
}

/// Bytes that are no frame.
fn raw(bytes: &[u8]) {
    use std::io::Write;
    for entry in fs::read_dir("/proc/self/fd").unwrap().flatten() {
        let is_port = fs::read_link(entry.path()).is_ok_and(|name| name.display().to_string().contains("vport"));
        if is_port {
            // The device can be opened once only.
            let number: i32 = entry.file_name().to_str().unwrap().parse().unwrap();
            // SAFETY: the descriptor is open, and forgotten below, so that only its owner closes it.
            let mut port = unsafe { <File as std::os::fd::FromRawFd>::from_raw_fd(number) };
            port.write_all(bytes).unwrap();
            std::mem::forget(port);
            return;
        }
    }
}
