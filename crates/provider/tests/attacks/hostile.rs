//! The program of hostile instances: one static file that tries to get out, or to harm others, in the way that a test
//! names. It prints `ok` for what was refused, `BROKEN` for what worked, and `ends` at the end. Compiled by the test
//! itself, with the standard library only.

#[path = "hostile/bombs.rs"]
mod bombs;
#[path = "hostile/doors.rs"]
mod doors;
#[path = "hostile/others.rs"]
mod others;
#[path = "hostile/proc.rs"]
mod proc;

use std::io::Write;

unsafe extern "C" {
    fn syscall(number: i64, ...) -> i64;
}

/// A system call by its number; the error is an errno.
pub fn call(number: i64, arguments: &[i64]) -> Result<i64, i32> {
    let a = |n: usize| arguments.get(n).copied().unwrap_or(0);
    match unsafe { syscall(number, a(0), a(1), a(2), a(3), a(4), a(5)) } {
        -1 => Err(std::io::Error::last_os_error().raw_os_error().unwrap_or(0)),
        answer => Ok(answer),
    }
}

static BROKEN: std::sync::atomic::AtomicBool = std::sync::atomic::AtomicBool::new(false);

pub fn say(name: &str, held: bool, detail: &str) {
    if !held {
        BROKEN.store(true, std::sync::atomic::Ordering::Relaxed);
    }
    println!("{} {name}: {detail}", if held { "ok" } else { "BROKEN" });
}

/// What must fail, however.
pub fn refused<T, E: std::fmt::Debug>(name: &str, result: Result<T, E>) {
    match result {
        Ok(_) => say(name, false, "it worked"),
        Err(error) => say(name, true, &format!("{error:?}")),
    }
}

pub fn forever() -> ! {
    loop {
        std::thread::park();
    }
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let arg = |n: usize| args.get(n).map_or("", String::as_str);
    let number = |n: usize| arg(n).parse::<u64>().unwrap();
    match arg(0) {
        "doors" => doors::all(arg(1)),
        "writable" => proc::writable(),
        "secrets" => proc::secrets(),
        "descriptors" => proc::descriptors(),
        "runtime" => others::runtime(),
        "supervisor" => others::supervisor(),
        "kill-all" => {
            println!("killing all");
            let _ = call(62, &[-1, 9]);
            forever();
        }
        "spy" => others::spy(number(1)),
        "swap" => others::swap(number(1)),
        "roots" => others::roots(),
        "devices" => doors::devices(&args[1..]),
        "rights" => doors::rights(),
        "wide" => proc::wide(arg(1)),
        "noise" => others::noise(arg(1)),
        "serve" => others::serve(arg(1)),
        "bomb" => bombs::explode(arg(1), number(2)),
        "arguments" => println!("{} arguments, {} bytes", args.len(), args.iter().map(String::len).sum::<usize>()),
        "true" => println!("fine"),
        other => panic!("{other}"),
    }
    println!("ends");
    std::io::stdout().flush().unwrap();
    // A check keeps only the last of what its program prints.
    if BROKEN.load(std::sync::atomic::Ordering::Relaxed) {
        std::process::exit(9);
    }
}
