//! A load client that shares no code with kiln and never retries. It counts, and writes down what was not a complete,
//! expected answer.
//!
//! `load --target IP:PORT [--host H] [--keepalive 16] [--fresh 4] [--rate 600] [--seconds 3600] [--expect-page FILE]
//! [--page /] [--version /api/version] [--echo /api/echo] [--version-text "MARKER\n"]`
//!
//! It reads commands on stdin: `snapshot` prints one JSON line of counts; `stop`, the end of stdin or of `--seconds` ends it
//! with a last JSON line. Workers alternate between the page, the version and the echo, a POST with a body. Every body is
//! compared whole: the page with FILE, the version with the text, the echo with `MARKER length=N checksum=ADLER32`; the
//! release marker, `release-` and letters or digits, is the one thing in them that may differ, and is what is counted.
//!
//! A keep-alive worker opens its connection again only if the server announced `Connection: close`; a connection that
//! ends without that is a failure, and so is every other answer than the expected one.
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

/// Longer than any answer of the examples takes; an answer that is later has failed.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes of one body; the examples' are far smaller.
const BODY_MAX: usize = 1 << 20;
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
    /// The page with its marker as [`MARKER`]; none accepts any page with a marker.
    page: Option<String>,
    version: String,
}

/// Stands for the release marker in an expected body.
const MARKER: &str = "MARKER";

struct Paths {
    page: String,
    version: String,
    echo: String,
}

#[derive(Default)]
struct Book {
    requests: u64,
    failures: Vec<Failure>,
    failed: u64,
    releases: BTreeMap<String, Release>,
    last_answer: Option<Instant>,
    longest_gap: Duration,
    latencies_us: Vec<u32>,
}

/// The answers of one release. Times are milliseconds since the start.
struct Release {
    count: u64,
    /// When its first answer came.
    first_ms: u64,
    /// When its last answer came.
    last_ms: u64,
    /// When the request of its latest-begun answer was sent: an answer may come late, a request after the switch may not.
    last_begun_ms: u64,
}

/// One request without the expected answer.
struct Failure {
    at_ms: u64,
    worker: usize,
    keepalive: bool,
    /// `connect`, `send`, `read`, `status`, `body`.
    kind: &'static str,
    detail: String,
}

/// What went wrong: a kind and the words.
type Problem = (&'static str, String);

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
    let (sender, commands) = mpsc::channel();
    // Blocks in a read that nothing can end, so it is not joined; it ends with the process.
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines() {
            if line.is_err() || line.is_ok_and(|line| line != "snapshot") || sender.send(()).is_err() {
                break;
            }
        }
    });
    // Another command, the end of stdin and the deadline end this.
    while commands.recv_timeout(deadline.saturating_duration_since(Instant::now())).is_ok() {
        report(&shared);
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
        page: None,
        version: format!("{MARKER}\n"),
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
            "--expect-page" => {
                let text = std::fs::read_to_string(&value).expect("--expect-page FILE");
                let marker = marker(&text).expect("the expected page has a release marker");
                options.page = Some(text.replacen(&marker, MARKER, 1));
            }
            "--version-text" => options.version = value.replace("\\n", "\n"),
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
                note(&mut book, shared.start, answer.marker, begun, took);
            }
            Err((kind, detail)) => {
                connection = None;
                book.failed += 1;
                let at_ms = shared.start.elapsed().as_millis() as u64;
                if book.failures.len() < FAILURES_KEPT {
                    book.failures.push(Failure { at_ms, worker: n, keepalive, kind, detail });
                }
            }
        }
    }
}

fn note(book: &mut Book, start: Instant, marker: String, begun: Instant, took: Duration) {
    let now = Instant::now();
    if let Some(last) = book.last_answer {
        book.longest_gap = book.longest_gap.max(now - last);
    }
    book.last_answer = Some(now);
    let (at, begun) = ((now - start).as_millis() as u64, (begun - start).as_millis() as u64);
    let empty = Release { count: 0, first_ms: at, last_ms: at, last_begun_ms: begun };
    let release = book.releases.entry(marker).or_insert(empty);
    release.count += 1;
    release.last_ms = at;
    release.last_begun_ms = release.last_begun_ms.max(begun);
    book.latencies_us.push(took.as_micros().min(u128::from(u32::MAX)) as u32);
}

fn one(
    turn: u64,
    keepalive: bool,
    options: &Options,
    connection: &mut Option<BufReader<TcpStream>>,
) -> Result<Answer, Problem> {
    if connection.is_none() {
        let opened = TcpStream::connect_timeout(&options.target, TIMEOUT).and_then(|stream| {
            stream.set_nodelay(true)?;
            stream.set_write_timeout(Some(TIMEOUT))?;
            stream.set_read_timeout(Some(TIMEOUT))?;
            Ok(stream)
        });
        *connection = Some(BufReader::new(opened.map_err(|e| ("connect", e.to_string()))?));
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
    stream.get_mut().write_all(request.as_bytes()).map_err(|e| ("send", format!("{what}: {e}")))?;
    let (status, close, answer) = read_answer(stream).map_err(|e| ("read", format!("{what}: {e}")))?;
    let shown = || answer.chars().take(200).collect::<String>();
    if status != 200 {
        return Err(("status", format!("{what}: status {status}: {}", shown())));
    }
    if !stream.buffer().is_empty() {
        return Err(("body", format!("{what}: bytes behind the answer {}", shown())));
    }
    let marker =
        marker(&answer).ok_or_else(|| ("body", format!("{what}: no release marker in {}", shown())))?;
    let expected = match turn % 3 {
        0 => options.page.clone(),
        1 => Some(options.version.clone()),
        _ => Some(format!("{MARKER} length={} checksum={}\n", body.len(), checksum(body.as_bytes()))),
    };
    if expected.is_some_and(|expected| answer.replacen(&marker, MARKER, 1) != expected) {
        return Err(("body", format!("{what}: another body than expected: {}", shown())));
    }
    Ok(Answer { marker, close })
}

/// The first release marker of a text: `release-` and letters or digits.
fn marker(text: &str) -> Option<String> {
    let found = &text[text.find("release-")?..];
    let rest = &found["release-".len()..];
    let length = rest.find(|c: char| !c.is_ascii_alphanumeric()).unwrap_or(rest.len());
    (length > 0).then(|| found[.."release-".len() + length].to_owned())
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
    if length > BODY_MAX {
        return Err(format!("a body of {length} bytes"));
    }
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
        let chunk = read_exactly(stream, length.saturating_add(2))?;
        if &chunk[length..] != b"\r\n" || body.len() + length > BODY_MAX {
            return Err(format!("chunk of {length} bytes after {}", body.len()));
        }
        if length == 0 {
            return Ok(body);
        }
        body.extend(&chunk[..length]);
    }
}

fn report(shared: &Shared) {
    let book = shared.book.lock().expect("no worker panics while it holds the book");
    let quote = |text: &str| -> String {
        let plain = |c: char| if c.is_control() || c == '"' || c == '\\' { '?' } else { c };
        format!("\"{}\"", text.chars().map(plain).collect::<String>())
    };
    let release = |(name, r): (&String, &Release)| {
        let times = format!("\"first_ms\":{},\"last_ms\":{}", r.first_ms, r.last_ms);
        let begun = r.last_begun_ms;
        format!("{}:{{\"count\":{},{times},\"last_begun_ms\":{begun}}}", quote(name), r.count)
    };
    let failure = |f: &Failure| {
        let who = format!("\"at_ms\":{},\"worker\":{},\"keepalive\":{}", f.at_ms, f.worker, f.keepalive);
        format!("{{{who},\"kind\":{},\"detail\":{}}}", quote(f.kind), quote(&f.detail))
    };
    let releases: Vec<String> = book.releases.iter().map(release).collect();
    let failures: Vec<String> = book.failures.iter().map(failure).collect();
    // A gap that has not ended counts as well.
    let open = book.last_answer.map_or(Duration::ZERO, |last| last.elapsed());
    let longest = book.longest_gap.max(open).as_millis();
    let (at, requests, failed) = (shared.start.elapsed().as_millis(), book.requests, book.failed);
    let mut sorted = book.latencies_us.clone();
    // Sorting takes a while, and the workers wait for the book.
    drop(book);
    sorted.sort_unstable();
    let quantile =
        |q: f64| sorted.get((sorted.len() as f64 * q) as usize).or(sorted.last()).copied().unwrap_or(0);
    let (p50, p99, p999) = (quantile(0.5), quantile(0.99), quantile(0.999));
    let max = sorted.last().copied().unwrap_or(0);
    let latency = format!("\"p50_us\":{p50},\"p99_us\":{p99},\"p999_us\":{p999},\"max_us\":{max}");
    println!(
        "{{\"at_ms\":{at},\"requests\":{requests},\"failed\":{failed},\"longest_gap_ms\":{longest},{latency},\
         \"releases\":{{{}}},\"failures\":[{}]}}",
        releases.join(","),
        failures.join(",")
    );
    let _ = std::io::stdout().flush();
}
