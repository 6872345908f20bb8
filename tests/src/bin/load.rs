//! A load client that shares no code with kiln and never retries. It counts, and writes down what was not a complete,
//! expected answer.
//!
//! `load --target IP:PORT [--host H] [--keepalive 16] [--fresh 4] [--rate 600] [--seconds 3600]`
//!
//! It reads commands on stdin: `snapshot` prints one JSON line of counts; `stop` or the end of stdin ends it with a last
//! JSON line. Workers alternate between `GET /` (its body must name a release marker), `GET /api/version` and
//! `POST /api/echo` with a body whose length and checksum the answer must repeat.
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Longer than any answer of the examples takes; an answer that is later has failed.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Failures that are written down in full.
const FAILURES_KEPT: usize = 50;

struct Options {
    target: SocketAddr,
    host: String,
    keepalive: usize,
    fresh: usize,
    rate: u64,
    seconds: u64,
    paths: Paths,
}

struct Paths {
    page: String,
    version: String,
    echo: String,
}

#[derive(Default)]
struct Book {
    requests: u64,
    failures: Vec<String>,
    failed: u64,
    /// By release marker: count, first and last answer in milliseconds since the start.
    releases: BTreeMap<String, (u64, u64, u64)>,
    last_answer: Option<Instant>,
    longest_gap: Duration,
    latencies_us: Vec<u32>,
}

struct Shared {
    start: Instant,
    stop: AtomicBool,
    ticket: AtomicU64,
    rate: u64,
    book: Mutex<Book>,
}

struct Answer {
    marker: String,
    close: bool,
}

fn main() {
    let options = Arc::new(parse());
    let shared = Arc::new(Shared {
        start: Instant::now(),
        stop: AtomicBool::new(false),
        ticket: AtomicU64::new(0),
        rate: options.rate.max(1),
        book: Mutex::default(),
    });
    let mut workers = vec![];
    for n in 0..options.keepalive + options.fresh {
        let (options, shared) = (options.clone(), shared.clone());
        let keepalive = n < options.keepalive;
        workers.push(std::thread::spawn(move || worker(n, keepalive, &options, &shared)));
    }
    let deadline = shared.start + Duration::from_secs(options.seconds);
    let watcher = shared.clone();
    std::thread::spawn(move || {
        while Instant::now() < deadline && !watcher.stop.load(Ordering::Relaxed) {
            std::thread::park_timeout(Duration::from_millis(200));
        }
        watcher.stop.store(true, Ordering::Relaxed);
    });
    for line in std::io::stdin().lock().lines() {
        match line.as_deref() {
            Ok("snapshot") => report(&shared),
            _ => break,
        }
    }
    shared.stop.store(true, Ordering::Relaxed);
    for worker in workers {
        let _ = worker.join();
    }
    report(&shared);
}

fn parse() -> Options {
    let mut options = Options {
        target: SocketAddr::from(([127, 0, 0, 1], 80)),
        host: "localhost".into(),
        keepalive: 16,
        fresh: 4,
        rate: 600,
        seconds: 3600,
        paths: Paths { page: "/".into(), version: "/api/version".into(), echo: "/api/echo".into() },
    };
    let mut arguments = std::env::args().skip(1);
    while let Some(name) = arguments.next() {
        let value = arguments.next().unwrap_or_default();
        match name.as_str() {
            "--target" => options.target = value.parse().expect("--target IP:PORT"),
            "--host" => options.host = value,
            "--keepalive" => options.keepalive = value.parse().expect("--keepalive N"),
            "--fresh" => options.fresh = value.parse().expect("--fresh N"),
            "--rate" => options.rate = value.parse().expect("--rate N"),
            "--seconds" => options.seconds = value.parse().expect("--seconds N"),
            "--page" => options.paths.page = value,
            "--version" => options.paths.version = value,
            "--echo" => options.paths.echo = value,
            other => panic!("unknown option {other}"),
        }
    }
    options
}

/// One worker: takes the next ticket of the common schedule, sends, checks, writes down.
fn worker(n: usize, keepalive: bool, options: &Options, shared: &Shared) {
    let mut connection: Option<BufReader<TcpStream>> = None;
    let mut turn = n as u64;
    while !shared.stop.load(Ordering::Relaxed) {
        let ticket = shared.ticket.fetch_add(1, Ordering::Relaxed);
        let due = shared.start + Duration::from_micros(ticket * 1_000_000 / shared.rate);
        let now = Instant::now();
        if due > now {
            std::thread::sleep(due - now);
        }
        if shared.stop.load(Ordering::Relaxed) {
            return;
        }
        turn += 1;
        let begun = Instant::now();
        let result = one(turn, keepalive, options, &mut connection);
        let took = begun.elapsed();
        let mut book = shared.book.lock().expect("no worker panics while it holds the book");
        book.requests += 1;
        match result {
            Ok(answer) => {
                if answer.close || !keepalive {
                    connection = None;
                }
                note(&mut book, shared.start, answer.marker, took);
            }
            Err(reason) => {
                connection = None;
                book.failed += 1;
                let at = shared.start.elapsed().as_millis();
                if book.failures.len() < FAILURES_KEPT {
                    book.failures.push(format!("{at} ms, worker {n} (keepalive {keepalive}): {reason}"));
                }
            }
        }
    }
}

fn note(book: &mut Book, start: Instant, marker: String, took: Duration) {
    let now = Instant::now();
    if let Some(last) = book.last_answer {
        book.longest_gap = book.longest_gap.max(now - last);
    }
    book.last_answer = Some(now);
    let at = (now - start).as_millis() as u64;
    let entry = book.releases.entry(marker).or_insert((0, at, at));
    entry.0 += 1;
    entry.2 = at;
    book.latencies_us.push(took.as_micros().min(u128::from(u32::MAX)) as u32);
}

fn one(
    turn: u64,
    keepalive: bool,
    options: &Options,
    connection: &mut Option<BufReader<TcpStream>>,
) -> Result<Answer, String> {
    if connection.is_none() {
        let stream =
            TcpStream::connect_timeout(&options.target, TIMEOUT).map_err(|e| format!("connect: {e}"))?;
        stream.set_nodelay(true).map_err(|e| format!("nodelay: {e}"))?;
        stream.set_read_timeout(Some(TIMEOUT)).map_err(|e| format!("timeout: {e}"))?;
        *connection = Some(BufReader::new(stream));
    }
    let stream = connection.as_mut().expect("set above");
    let token = if keepalive { "keep-alive" } else { "close" };
    let host = &options.host;
    let body = "kiln".repeat(10 + (turn % 700) as usize);
    let request = match turn % 3 {
        0 => format!("GET {} HTTP/1.1\r\nHost: {host}\r\nConnection: {token}\r\n\r\n", options.paths.page),
        1 => format!("GET {} HTTP/1.1\r\nHost: {host}\r\nConnection: {token}\r\n\r\n", options.paths.version),
        _ => format!(
            "POST {} HTTP/1.1\r\nHost: {host}\r\nConnection: {token}\r\nContent-Length: {}\r\n\r\n{body}",
            options.paths.echo,
            body.len()
        ),
    };
    let what = request.split(" HTTP").next().unwrap_or_default().to_owned();
    stream.get_mut().write_all(request.as_bytes()).map_err(|e| format!("{what}: send: {e}"))?;
    let (status, close, answer) = read_answer(stream).map_err(|e| format!("{what}: {e}"))?;
    if status != 200 {
        return Err(format!("{what}: status {status}: {}", answer.chars().take(120).collect::<String>()));
    }
    let marker = answer
        .split("release-")
        .nth(1)
        .and_then(|rest| rest.split(|c: char| !c.is_ascii_alphanumeric()).next());
    let marker = marker.ok_or_else(|| format!("{what}: no release marker in {answer:?}"))?.to_owned();
    if turn % 3 == 2 {
        let expected = format!("length={} checksum={}", body.len(), checksum(body.as_bytes()));
        if !answer.contains(&expected) {
            return Err(format!("{what}: expected {expected}, got {answer:?}"));
        }
    }
    Ok(Answer { marker, close })
}

/// Adler-32, which the example's API computes as well.
fn checksum(bytes: &[u8]) -> u32 {
    let (mut a, mut b) = (1u32, 0u32);
    for byte in bytes {
        a = (a + u32::from(*byte)) % 65521;
        b = (b + a) % 65521;
    }
    b << 16 | a
}

fn read_answer(stream: &mut BufReader<TcpStream>) -> Result<(u16, bool, String), String> {
    let mut line = String::new();
    let read = stream.read_line(&mut line).map_err(|e| format!("status line: {e}"))?;
    if read == 0 {
        return Err("closed before an answer".into());
    }
    let status =
        line.split(' ').nth(1).and_then(|s| s.parse().ok()).ok_or_else(|| format!("status line {line:?}"))?;
    let (mut length, mut chunked, mut close) = (None, false, line.starts_with("HTTP/1.0"));
    loop {
        let mut header = String::new();
        if stream.read_line(&mut header).map_err(|e| format!("header: {e}"))? == 0 {
            return Err("closed within the headers".into());
        }
        let header = header.trim_end();
        if header.is_empty() {
            break;
        }
        let (name, value) = header.split_once(':').ok_or_else(|| format!("header {header:?}"))?;
        match name.to_ascii_lowercase().as_str() {
            "content-length" => length = value.trim().parse::<usize>().ok(),
            "transfer-encoding" => chunked = value.to_ascii_lowercase().contains("chunked"),
            "connection" => close = value.trim().eq_ignore_ascii_case("close"),
            _ => {}
        }
    }
    let body = if chunked { read_chunks(stream)? } else { read_exactly(stream, length.ok_or("no length")?)? };
    Ok((status, close, String::from_utf8_lossy(&body).into_owned()))
}

fn read_exactly(stream: &mut BufReader<TcpStream>, length: usize) -> Result<Vec<u8>, String> {
    let mut body = vec![0; length];
    stream.read_exact(&mut body).map_err(|e| format!("body cut: {e}"))?;
    Ok(body)
}

fn read_chunks(stream: &mut BufReader<TcpStream>) -> Result<Vec<u8>, String> {
    let mut body = vec![];
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).map_err(|e| format!("chunk: {e}"))?;
        let length = usize::from_str_radix(line.trim(), 16).map_err(|_| format!("chunk size {line:?}"))?;
        let chunk = read_exactly(stream, length + 2)?;
        if length == 0 {
            return Ok(body);
        }
        body.extend(&chunk[..length]);
    }
}

fn report(shared: &Shared) {
    let book = shared.book.lock().expect("no worker panics while it holds the book");
    let mut sorted = book.latencies_us.clone();
    sorted.sort_unstable();
    let quantile =
        |q: f64| sorted.get((sorted.len() as f64 * q) as usize).or(sorted.last()).copied().unwrap_or(0);
    let releases: Vec<String> = book
        .releases
        .iter()
        .map(|(name, (count, first, last))| {
            format!("\"{name}\":{{\"count\":{count},\"first_ms\":{first},\"last_ms\":{last}}}")
        })
        .collect();
    let failures: Vec<String> = book.failures.iter().map(|f| format!("{f:?}")).collect();
    println!(
        "{{\"at_ms\":{},\"requests\":{},\"failed\":{},\"longest_gap_ms\":{},\"p50_us\":{},\"p99_us\":{},\"releases\":{{{}}},\"failures\":[{}]}}",
        shared.start.elapsed().as_millis(),
        book.requests,
        book.failed,
        book.longest_gap.as_millis(),
        quantile(0.5),
        quantile(0.99),
        releases.join(","),
        failures.join(",")
    );
    let _ = std::io::stdout().flush();
}
