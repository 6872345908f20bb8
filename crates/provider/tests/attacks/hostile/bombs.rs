//! Takes as much of one thing as it gets, for a time, and says how much that was. Whatever is global to the host must
//! not run out.

use crate::{call, forever};
use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

pub fn explode(kind: &str, milliseconds: u64) {
    println!("exploding");
    // So that the test can look where it is before it is gone.
    std::thread::sleep(Duration::from_millis(100));
    let end = Instant::now() + Duration::from_millis(milliseconds);
    let taken = match kind {
        "fork" => forks(end),
        "thread" => threads(end),
        "memory" => memory(end),
        "descriptor" => repeat(end, || call(290, &[0, 0]).is_ok()),
        "inode" => inodes(end),
        "directory" => directories(end),
        "pipe" => pipes(end),
        "unix" => unix_sockets(end),
        "tcp" => tcp_sockets(end),
        "shm" => shared_files(end),
        "sysv" => system_v(end),
        "mq" => queues(end),
        "timer" => timers(end),
        "inotify" => watches(end),
        "epoll" => epolls(end),
        "lock" => locks(end),
        "aio" => repeat(end, || call(206, &[4096, (&raw mut *Box::leak(Box::new(0u64))) as i64]).is_ok()),
        "terminal" => repeat(end, || fs::File::open("/dev/ptmx").map(std::mem::forget).is_ok()),
        "neighbour" => neighbours(end),
        "log" => log(end),
        "spin" => spin(end),
        other => panic!("{other}"),
    };
    println!("took {taken}");
}

/// Repeats what works until it fails for long or the time is over, and keeps what it got until then.
fn repeat(end: Instant, mut take: impl FnMut() -> bool) -> u64 {
    let mut count = 0;
    while Instant::now() < end {
        match take() {
            true => count += 1,
            false => std::thread::sleep(Duration::from_millis(1)),
        }
    }
    count
}

fn forks(end: Instant) -> u64 {
    // Each child goes on like its parent.
    let mut count = 0;
    while Instant::now() < end {
        match call(57, &[]) {
            Ok(0) => count = 0,
            Ok(_) => count += 1,
            Err(_) => {}
        }
    }
    count
}

fn threads(end: Instant) -> u64 {
    repeat(end, || std::thread::Builder::new().stack_size(16384).spawn(|| forever()).is_ok())
}

fn memory(end: Instant) -> u64 {
    let mut held: Vec<Vec<u8>> = vec![];
    repeat(end, || {
        held.push(vec![1; 1 << 20]);
        std::hint::black_box(&held);
        true
    })
}

fn inodes(end: Instant) -> u64 {
    let places = ["/tmp", "/run", "/dev/shm", "/data"];
    let mut n = 0u64;
    repeat(end, || {
        n += 1;
        fs::File::create(format!("{}/{n}", places[n as usize % places.len()])).is_ok()
    })
}

fn directories(end: Instant) -> u64 {
    std::env::set_current_dir("/tmp").unwrap();
    // As deep as it goes: whoever cleans up must not recurse.
    repeat(end, || fs::create_dir("d").and_then(|()| std::env::set_current_dir("d")).is_ok())
}

fn pipes(end: Instant) -> u64 {
    let chunk = vec![1u8; 1 << 20];
    repeat(end, || {
        let mut pair = [0i32; 2];
        if call(293, &[pair.as_mut_ptr() as i64, 0o4000]).is_err() {
            return false;
        }
        let _ = call(72, &[pair[1] as i64, 1031, 1 << 20]);
        call(1, &[pair[1] as i64, chunk.as_ptr() as i64, chunk.len() as i64]).is_ok()
    })
}

fn unix_sockets(end: Instant) -> u64 {
    let chunk = vec![1u8; 1 << 16];
    repeat(end, || {
        let mut pair = [0i32; 2];
        if call(53, &[1, 1 | 0o4000, 0, pair.as_mut_ptr() as i64]).is_err() {
            return false;
        }
        for option in [7, 8] {
            let _ = call(54, &[pair[0] as i64, 1, option, [1i32 << 30].as_ptr() as i64, 4]);
        }
        while call(1, &[pair[0] as i64, chunk.as_ptr() as i64, chunk.len() as i64]).is_ok() {}
        true
    })
}

fn tcp_sockets(end: Instant) -> u64 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let chunk = vec![1u8; 1 << 18];
    let mut held = vec![];
    let mut bytes = 0u64;
    repeat(end, || {
        let Ok(mut near) = TcpStream::connect(address) else { return false };
        let Ok((far, _)) = listener.accept() else { return false };
        for stream in [&near, &far] {
            for option in [7, 8] {
                let fd = std::os::fd::AsRawFd::as_raw_fd(stream) as i64;
                let _ = call(54, &[fd, 1, option, [1i32 << 30].as_ptr() as i64, 4]);
            }
        }
        near.set_nonblocking(true).unwrap();
        while let Ok(n) = near.write(&chunk) {
            bytes += n as u64;
        }
        held.push((near, far));
        true
    });
    bytes
}

fn shared_files(end: Instant) -> u64 {
    let chunk = vec![1u8; 1 << 20];
    let mut held = vec![];
    repeat(end, || {
        let Ok(fd) = call(319, &[c"x".as_ptr() as i64, 0]) else { return false };
        held.push(fd);
        call(1, &[fd, chunk.as_ptr() as i64, chunk.len() as i64]).is_ok()
    })
}

fn system_v(end: Instant) -> u64 {
    repeat(end, || {
        // Shared memory that is touched, a message queue that is filled, semaphores.
        let Ok(id) = call(29, &[0, 1 << 20, 0o1600]) else { return false };
        if let Ok(at) = call(30, &[id, 0, 0]) {
            for page in 0..256 {
                unsafe { *((at + page * 4096) as *mut u8) = 1 };
            }
        }
        if let Ok(queue) = call(68, &[0, 0o1600]) {
            let message = [1u64; 1024];
            while call(69, &[queue, message.as_ptr() as i64, 8000, 0o4000]).is_ok() {}
        }
        let _ = call(64, &[0, 32000, 0o1600]);
        true
    })
}

fn queues(end: Instant) -> u64 {
    let mut n = 0;
    repeat(end, || {
        n += 1;
        let name = format!("q{n}\0");
        let Ok(queue) = call(240, &[name.as_ptr() as i64, 0o102 | 0o4000, 0o600, 0]) else { return false };
        let message = [1u8; 8192];
        while call(242, &[queue, message.as_ptr() as i64, 8192, 0, 0]).is_ok() {}
        true
    })
}

fn timers(end: Instant) -> u64 {
    repeat(end, || {
        let mut id = 0i32;
        // Every microsecond, a signal that nobody waits for.
        let event = [0u64, 1 << 32 | 10, 0, 0, 0, 0, 0, 0];
        let often = [0u64, 1000, 0, 1000];
        let made = call(222, &[1, event.as_ptr() as i64, (&raw mut id) as i64]).is_ok();
        let descriptor = call(283, &[1, 0]);
        if let Ok(fd) = descriptor {
            let _ = call(286, &[fd, 0, often.as_ptr() as i64, 0]);
        }
        if made {
            let _ = call(223, &[id as i64, 0, often.as_ptr() as i64, 0]);
        }
        made || descriptor.is_ok()
    })
}

fn watches(end: Instant) -> u64 {
    let mut n = 0u64;
    let mut instance = call(294, &[0]);
    repeat(end, || {
        n += 1;
        let path = format!("/tmp/{n}");
        let _ = fs::create_dir(&path);
        let name = format!("{path}\0");
        let Ok(fd) = instance else {
            instance = call(294, &[0]);
            return false;
        };
        call(254, &[fd, name.as_ptr() as i64, 0xfff]).is_ok()
    })
}

fn epolls(end: Instant) -> u64 {
    let Ok(watched) = call(290, &[0, 0]) else { return 0 };
    let event = [1u32, 0, 0];
    repeat(end, || {
        let Ok(fd) = call(291, &[0]) else { return false };
        call(233, &[fd, 1, watched, event.as_ptr() as i64]).is_ok()
    })
}

fn locks(end: Instant) -> u64 {
    let file = fs::File::create("/tmp/lock").unwrap();
    let fd = std::os::fd::AsRawFd::as_raw_fd(&file) as i64;
    let mut at = 0u64;
    repeat(end, || {
        at += 2;
        // struct flock: type and whence, start, length, pid.
        let lock = [1u64, at, 1, 0];
        call(72, &[fd, 6, lock.as_ptr() as i64]).is_ok()
    })
}

/// Asks for the hardware addresses of a whole network, of which the kernel keeps one list for all.
fn neighbours(end: Instant) -> u64 {
    let socket = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
    let mut n = 0u32;
    repeat(end, || {
        n += 1;
        let [_, _, c, d] = (n % 65_000 + 500).to_be_bytes();
        let _ = socket.send_to(b"x", (std::net::Ipv4Addr::new(10, 83, c, d), 9));
        true
    })
}

/// Prints as fast as it can.
fn log(end: Instant) -> u64 {
    let line = [[b'l'; 99].as_slice(), b"\n"].concat();
    let chunk = line.repeat(600);
    let mut out = fs::OpenOptions::new().append(true).open("/proc/self/fd/1").unwrap();
    let mut lines = 0;
    while Instant::now() < end {
        out.write_all(&chunk).unwrap();
        lines += 600;
    }
    lines
}

fn spin(end: Instant) -> u64 {
    for _ in 0..16 {
        std::thread::spawn(|| {
            loop {
                std::hint::spin_loop();
            }
        });
    }
    let mut random = fs::File::open("/dev/urandom").unwrap();
    let mut chunk = vec![0; 1 << 20];
    repeat(end, || random.read_exact(&mut chunk).is_ok())
}
