//! The program of the test image: one static file that does whatever a test asks of it. Compiled by the test itself,
//! with the standard library only.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

unsafe extern "C" {
    fn syscall(number: i64, ...) -> i64;
    fn signal(number: i32, handler: usize) -> usize;
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let arg = |n: usize| args.get(n).map_or("", String::as_str);
    match arg(0) {
        "serve" => serve(arg(1).parse().unwrap()),
        "sleep" => forever(),
        "stubborn" => {
            // SIGTERM is ignored.
            unsafe { signal(15, 1) };
            println!("stubborn");
            forever();
        }
        "print" => {
            for n in 0..arg(1).parse::<u32>().unwrap() {
                println!("line {n}");
            }
            eprint!("no line feed");
            std::process::exit(arg(2).parse().unwrap());
        }
        "abort" => {
            unsafe { syscall(39) };
            std::process::abort();
        }
        "eat" => eat(),
        "forks" => forks(),
        "environment" => {
            for (name, value) in std::env::vars() {
                println!("{name}={value}");
            }
        }
        "long" => long(arg(1).parse().unwrap()),
        "flood" => flood(),
        "capabilities" => {
            let status = std::fs::read_to_string("/proc/self/status").unwrap();
            status.lines().filter(|line| line.starts_with("Cap")).for_each(|line| println!("{line}"));
        }
        "memory" => println!("{}", std::fs::read_to_string("/proc/meminfo").unwrap()),
        "true" => println!("fine"),
        "false" => std::process::exit(3),
        "audit" => audit(arg(1)),
        "fill" => fill(arg(1)),
        "fill-bravely" => {
            // The kernel is to take pid 1 instead.
            std::fs::write("/proc/self/oom_score_adj", "0").unwrap();
            fill(arg(1));
        }
        "thief" => thief(),
        "unlisted" => unlisted(),
        "inotify" => inotify(),
        "daemon" => daemon(),
        "reopen" => reopen(),
        "reach" => reach(&args[1..]),
        "show" => print!("{}", std::fs::read_to_string(arg(1)).unwrap()),
        "secrets" => secrets(),
        "datagram" => datagram(arg(1).parse().unwrap(), arg(2)),
        "forge" => forge(arg(1), arg(2)),
        other => panic!("{other}"),
    }
}

/// Says what the files of secrets are, without their content, tries to change them, and stays.
fn secrets() {
    use std::os::unix::fs::MetadataExt;
    let me = std::fs::metadata("/proc/self").unwrap().uid();
    let whose = |meta: &std::fs::Metadata| {
        let owner = if meta.uid() == me { "mine" } else { "not mine" };
        format!("{:o} {owner}", meta.mode() & 0o7777)
    };
    println!("folder {}", whose(&std::fs::metadata("/run/secrets").unwrap()));
    let mut names: Vec<_> = std::fs::read_dir("/run/secrets").unwrap().map(|e| e.unwrap().path()).collect();
    names.sort();
    for path in &names {
        let bytes = std::fs::read(path).unwrap();
        let sum: u64 = bytes.iter().map(|byte| u64::from(*byte)).sum();
        let (name, meta) = (path.file_name().unwrap().to_string_lossy(), std::fs::metadata(path).unwrap());
        println!("{name} {} {} bytes, sum {sum}", whose(&meta), bytes.len());
    }
    println!("create: {:?}", std::fs::write("/run/secrets/new", "").unwrap_err().kind());
    println!("write refused: {}", std::fs::File::options().write(true).open(&names[0]).is_err());
    println!("remove: {:?}", std::fs::remove_file(&names[0]).unwrap_err().kind());
    println!("ready");
    forever();
}

/// One line of so many bytes.
fn long(bytes: usize) {
    std::io::stdout().write_all(&vec![b'x'; bytes]).unwrap();
    println!();
}

/// Prints numbered lines for ever.
fn flood() {
    let mut out = std::io::BufWriter::with_capacity(1 << 16, std::io::stdout());
    for n in 0_u64.. {
        writeln!(out, "flood {n}").unwrap();
    }
}

fn forever() -> ! {
    loop {
        std::thread::park();
    }
}

fn serve(port: u16) {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).unwrap();
    println!("listening on {port}");
    for stream in listener.incoming() {
        let mut stream = stream.unwrap();
        let mut buffer = [0; 4096];
        let _ = stream.read(&mut buffer);
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello");
    }
}

/// Writes memory until the kernel ends it.
fn eat() {
    let mut held: Vec<Vec<u8>> = vec![];
    loop {
        held.push(vec![1; 1 << 20]);
        std::hint::black_box(&held);
    }
}

/// Starts processes until that fails, and says how many there were.
fn forks() {
    let mut count = 0;
    loop {
        match unsafe { syscall(57) } {
            0 => forever(),
            n if n < 0 => break,
            _ => count += 1,
        }
        if count > 10_000 {
            break;
        }
    }
    println!("forks {count}");
    std::io::stdout().flush().unwrap();
    std::process::exit(0);
}

/// Fills a tmpfs until that fails.
fn fill(place: &str) {
    let mut file = std::fs::File::create(place).unwrap();
    let chunk = [1; 1 << 16];
    while file.write_all(&chunk).is_ok() {}
    println!("full");
    forever();
}

/// Takes what it prints away again before anybody else can read it, as far as it gets.
fn thief() {
    let mut own = std::fs::File::open("/proc/self/fd/1").unwrap();
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while own.read(&mut buffer).is_ok() {}
    });
    loop {
        println!("mine");
        std::thread::yield_now();
    }
}

/// Its capabilities, and what becomes of calls that are on no list: twice `personality`, and `mount`.
fn unlisted() {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    for line in status.lines().filter(|line| line.starts_with("Cap")) {
        println!("{}", line.replace('\t', ""));
    }
    for (number, argument) in [(135, 0xffff_ffffi64), (135, 0xffff_ffff), (165, 0)] {
        let answer = unsafe { syscall(number, argument, 0i64, 0i64, 0i64, 0i64) };
        println!("{number} {}", if answer < 0 { "refused" } else { "let through" });
    }
}

/// Takes all the inotify instances that it gets, and keeps them.
fn inotify() {
    let mut count = 0;
    while unsafe { syscall(294, 0i64) } >= 0 {
        count += 1;
    }
    println!("inotify {count}");
    forever();
}

/// Leaves a process behind that belongs to no session of its starter's, and that prints for ever.
fn daemon() {
    if unsafe { syscall(57) } != 0 {
        println!("left one behind");
        std::process::exit(0);
    }
    unsafe { syscall(112) };
    let line = [b'y'; 4096];
    while std::io::stdout().write_all(&line).is_ok() {}
    forever();
}

/// Opens its output by name, as many servers are configured to do.
fn reopen() {
    for name in ["/dev/stdout", "/dev/stderr", "/proc/self/fd/1"] {
        let file = std::fs::OpenOptions::new().append(true).open(name);
        match file.and_then(|mut file| file.write_all(b"by name\n")) {
            Ok(()) => {}
            Err(error) => println!("{name}: {error}"),
        }
    }
}

/// Tries to connect to each address, from its interface as well, past the routing table.
fn reach(addresses: &[String]) {
    for address in addresses {
        let (ip, port) = address.rsplit_once(':').unwrap();
        let ip: Ipv4Addr = ip.parse().unwrap();
        let port: u16 = port.parse().unwrap();
        for bound in [false, true] {
            let fd = unsafe { syscall(41, 2i64, 1i64, 0i64) };
            if bound {
                let name = c"eth0";
                unsafe { syscall(54, fd, 1i64, 25i64, name.as_ptr() as i64, 5i64) };
            }
            // Seconds and microseconds until a connect is given up.
            let timeout = [0i64, 700_000];
            unsafe { syscall(54, fd, 1i64, 21i64, timeout.as_ptr() as i64, 16i64) };
            let mut raw = [0u8; 16];
            raw[0] = 2;
            raw[2..4].copy_from_slice(&port.to_be_bytes());
            raw[4..8].copy_from_slice(&ip.octets());
            let answer = unsafe { syscall(42, fd, raw.as_ptr() as i64, 16i64) };
            println!("{address} bound {bound}: {}", if answer == 0 { "reached" } else { "not reached" });
        }
    }
}

/// Sends a datagram from a port, and says whether it was answered.
fn datagram(port: u16, target: &str) {
    let socket = std::net::UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)).unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(700))).unwrap();
    let sent = socket.send_to(b"x", target);
    let answered = sent.is_ok() && socket.recv(&mut [0; 8]).is_ok();
    println!("{}", if answered { "answered" } else { "silent" });
}

/// Tries everything that lets a program send from an address that is not its own.
fn forge(source: &str, target: &str) {
    let address = |text: &str| {
        let (ip, port) = text.rsplit_once(':').unwrap();
        let (ip, port): (Ipv4Addr, u16) = (ip.parse().unwrap(), port.parse().unwrap());
        let mut raw = [0u8; 16];
        raw[0] = 2;
        raw[2..4].copy_from_slice(&port.to_be_bytes());
        raw[4..8].copy_from_slice(&ip.octets());
        raw
    };
    let (source, target) = (address(source), address(target));
    let one = 1i32;
    for (name, kind, options) in [
        ("stream freebind", 1i64, &[15i64][..]),
        ("stream transparent", 1, &[15, 19]),
        ("datagram freebind", 2, &[15]),
        ("datagram transparent", 2, &[15, 19]),
        ("raw", 3, &[]),
        ("header of its own", 3, &[3]),
    ] {
        let fd = unsafe { syscall(41, 2i64, kind, if kind == 3 { 255i64 } else { 0 }) };
        for option in options {
            unsafe { syscall(54, fd, 0i64, *option, &one as *const i32 as i64, 4i64) };
        }
        let timeout = [0i64, 300_000];
        unsafe { syscall(54, fd, 1i64, 21i64, timeout.as_ptr() as i64, 16i64) };
        let bound = unsafe { syscall(49, fd, source.as_ptr() as i64, 16i64) };
        let connected = unsafe { syscall(42, fd, target.as_ptr() as i64, 16i64) };
        let sent = unsafe { syscall(1, fd, b"forged".as_ptr() as i64, 6i64) };
        println!("{name}: {}", if bound == 0 && connected == 0 && sent == 6 { "sent" } else { "refused" });
    }
}

fn say(name: &str, held: bool, detail: &str) {
    println!("{} {name}: {detail}", if held { "ok" } else { "BROKEN" });
}

fn refused(name: &str, result: std::io::Result<impl Sized>) {
    match result {
        Ok(_) => say(name, false, "it worked"),
        Err(error) => say(name, true, &error.to_string()),
    }
}

fn call(name: &str, number: i64, a: i64, b: i64, c: i64) {
    let answer = unsafe { syscall(number, a, b, c, 0i64, 0i64, 0i64) };
    let error = std::io::Error::last_os_error();
    let held = answer < 0 && matches!(error.raw_os_error(), Some(1 | 38));
    say(name, held, &if answer < 0 { error.to_string() } else { format!("answered {answer}") });
}

/// Everything that an instance must not be able to do. `other` is the address of another instance.
fn audit(other: &str) {
    use std::fs;
    refused("write to /", fs::write("/x", "x"));
    refused("write to the program", fs::OpenOptions::new().write(true).open("/bin/probe"));
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let field = |name: &str| {
        let line = status.lines().find_map(|l| l.strip_prefix(name));
        line.unwrap_or("").trim_start_matches(':').trim().to_owned()
    };
    for name in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        say(name, field(name).trim_start_matches('0').is_empty(), &field(name));
    }
    say("NoNewPrivs", field("NoNewPrivs") == "1", &field("NoNewPrivs"));
    say("Seccomp", field("Seccomp") == "2", &field("Seccomp"));
    say("user", field("Uid") == "1000\t1000\t1000\t1000", &field("Uid"));
    say("groups", field("Groups").is_empty(), &field("Groups"));
    let mut fds: Vec<String> =
        fs::read_dir("/proc/self/fd").unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    fds.sort();
    // The directory that is being read is the fourth.
    say("descriptors", fds.len() == 4 && fds.starts_with(&["0".into(), "1".into(), "2".into()]), &fds.join(" "));
    let stdin = fs::read_link("/proc/self/fd/0").unwrap();
    say("stdin", stdin.to_str() == Some("/dev/null"), &stdin.display().to_string());
    let mut roots: Vec<String> =
        fs::read_dir("/").unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    roots.sort();
    say("root", roots.join(" ") == "bin data dev etc proc run tmp", &roots.join(" "));
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    say("mounts tell nothing of the host", !mounts.contains("instances") && !mounts.contains("objects"), "mountinfo");
    let pids = fs::read_dir("/proc").unwrap().flatten().filter(|e| e.file_name().to_str().unwrap().parse::<u32>().is_ok());
    say("processes", pids.count() == 1, "only its own in /proc");
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap();
    say("cgroup", !groups.contains("kiln"), &groups.replace('\n', " "));
    refused("kill pid 1", match unsafe { syscall(62, 1i64, 9i64) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    });
    refused("open /proc/1/exe", fs::File::open("/proc/1/exe"));
    refused("open /proc/1/mem", fs::File::open("/proc/1/mem"));
    refused("read /proc/1/environ", fs::read("/proc/1/environ"));
    refused("write /proc/sys/kernel/core_pattern", fs::write("/proc/sys/kernel/core_pattern", "|/x"));
    refused("write /proc/sys/vm/drop_caches", fs::write("/proc/sys/vm/drop_caches", "1"));
    refused("write /proc/sysrq-trigger", fs::write("/proc/sysrq-trigger", "h"));
    let kcore = fs::read("/proc/kcore").map_or(0, |b| b.len());
    say("/proc/kcore", kcore == 0, &format!("{kcore} bytes"));
    refused("write to /dev", fs::write("/dev/x", "x"));
    call("mknod of a device", 133, c"/tmp/sda".as_ptr() as i64, 0o60666, 0x800);
    call("mount", 165, c"none".as_ptr() as i64, c"/tmp".as_ptr() as i64, c"tmpfs".as_ptr() as i64);
    call("umount2", 166, c"/proc".as_ptr() as i64, 2, 0);
    call("chroot", 161, c"/tmp".as_ptr() as i64, 0, 0);
    call("unshare(user)", 272, 0x1000_0000, 0, 0);
    call("clone(new user)", 56, 0x1000_0000 | 17, 0, 0);
    call("clone3", 435, 0, 0, 0);
    call("setns", 308, 0, 0, 0);
    call("ptrace(attach, 1)", 101, 16, 1, 0);
    call("process_vm_readv", 310, 1, 0, 0);
    call("bpf", 321, 0, 0, 0);
    call("keyctl", 250, 0, 0, 0);
    call("io_uring_setup", 425, 1, 0, 0);
    call("userfaultfd", 323, 0, 0, 0);
    call("perf_event_open", 298, 0, 0, 0);
    call("open_by_handle_at", 304, 0, 0, 0);
    call("init_module", 175, 0, 0, 0);
    call("reboot", 169, 0, 0, 0);
    call("fsopen", 430, c"tmpfs".as_ptr() as i64, 0, 0);
    call("x32 getpid", 0x4000_0000 + 39, 0, 0, 0);
    call("setuid(0)", 105, 0, 0, 0);
    for (name, family) in [("packet", 17i64), ("vsock", 40), ("kernel crypto", 38)] {
        let answer = unsafe { syscall(41, family, 3i64, 0i64) };
        say(&format!("socket({name})"), answer < 0, &std::io::Error::last_os_error().to_string());
    }
    let answer = unsafe { syscall(53, 30i64, 1i64, 0i64, [0i32; 2].as_mut_ptr() as i64) };
    let error = std::io::Error::last_os_error();
    say("socketpair(tipc)", answer < 0 && error.raw_os_error() == Some(97), &error.to_string());
    let score = fs::read_to_string("/proc/self/oom_score_adj").unwrap();
    say("goes first when memory is short", score.trim() == "200", score.trim());
    let address: SocketAddr = other.parse().unwrap();
    refused("other instance", TcpStream::connect_timeout(&address, Duration::from_millis(700)));
    let outside: SocketAddr = "192.0.2.1:80".parse().unwrap();
    refused("outside", TcpStream::connect_timeout(&outside, Duration::from_millis(700)));
    for place in ["/tmp/x", "/run/x", "/dev/shm/x", "/data/x", "/run/deep/er/x"] {
        let written = fs::write(place, "x");
        say(&format!("write {place}"), written.is_ok(), &format!("{written:?}"));
    }
    let name = fs::read_to_string("/etc/hostname").unwrap();
    let hosts = fs::read_to_string("/etc/hosts").unwrap();
    say("names", hosts.contains(name.trim()) && fs::read_to_string("/proc/sys/kernel/hostname").unwrap() == name, name.trim());
    refused("write /etc/hosts", fs::write("/etc/hosts", "x"));
    say("port 80", TcpListener::bind("0.0.0.0:80").is_ok(), "may be listened on");
    println!("audit ends");
}
