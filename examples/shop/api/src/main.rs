//! The shop's API: std only, one thread per connection. `GET /api/version`, `GET /api/healthz`, `POST /api/echo`.
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let port: u16 = match words[..] {
        [] => std::env::var("PORT").ok().and_then(|port| port.parse().ok()).unwrap_or(9000),
        ["--port", port] => port.parse().expect("a port is a number"),
        ["--self-test"] => {
            assert_eq!(checksum(b"kiln"), 0x0431_01AF, "the checksum is broken");
            return;
        }
        _ => {
            eprintln!("usage: api [--port N | --self-test], not {words:?}");
            std::process::exit(2);
        }
    };
    let version = std::fs::read_to_string("/srv/version").unwrap_or_default().trim().to_owned();
    let listener = TcpListener::bind(("0.0.0.0", port)).expect("the port is free");
    println!("api {version} listens on {port}");
    for stream in listener.incoming().flatten() {
        let version = version.clone();
        std::thread::spawn(move || serve(stream, &version));
    }
}

fn serve(stream: TcpStream, version: &str) {
    let _ = stream.set_nodelay(true);
    let mut stream = BufReader::new(stream);
    while let Some((line, length)) = request_head(&mut stream) {
        let mut body = vec![0; length.min(1 << 20)];
        if stream.read_exact(&mut body).is_err() {
            return;
        }
        let mut words = line.split(' ');
        let (status, text) = match (words.next().unwrap_or(""), words.next().unwrap_or("")) {
            ("GET", "/api/healthz") => ("200 OK", "ok".to_owned()),
            ("GET", "/api/version") => ("200 OK", version.to_owned()),
            ("POST", "/api/echo") => {
                ("200 OK", format!("{version} length={} checksum={}", body.len(), checksum(&body)))
            }
            _ => ("404 Not Found", "no such page".to_owned()),
        };
        let answer = format!(
            "HTTP/1.1 {status}\r\nContent-Type: text/plain\r\nContent-Length: {}\r\n\r\n{text}\n",
            text.len() + 1
        );
        if stream.get_mut().write_all(answer.as_bytes()).is_err() {
            return;
        }
    }
}

/// The request line and the length of the body, or none at the end of the connection.
fn request_head(stream: &mut BufReader<TcpStream>) -> Option<(String, usize)> {
    let mut line = String::new();
    if stream.read_line(&mut line).ok()? == 0 {
        return None;
    }
    let mut length = 0;
    loop {
        let mut header = String::new();
        stream.read_line(&mut header).ok()?;
        let Some((name, value)) = header.trim_end().split_once(':') else { return Some((line, length)) };
        if name.eq_ignore_ascii_case("content-length") {
            length = value.trim().parse().ok()?;
        }
    }
}

/// Adler-32.
fn checksum(bytes: &[u8]) -> u32 {
    let (mut a, mut b) = (1u32, 0u32);
    for byte in bytes {
        a = (a + u32::from(*byte)) % 65521;
        b = (b + a) % 65521;
    }
    b << 16 | a
}
