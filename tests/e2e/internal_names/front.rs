//! A front end that has nothing of its own: each request goes to the service `api` by its name inside, and its answer comes
//! back. Compiled by the test itself, with the standard library only. It never tries twice.
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};

const NAME: &str = "api.internal";

fn main() {
    let port: u16 = std::env::var("PORT").expect("PORT").parse().expect("a port is a number");
    let listener = TcpListener::bind(("0.0.0.0", port)).expect("the port is free");
    println!("front listens on {port}");
    for stream in listener.incoming().flatten() {
        std::thread::spawn(move || serve(stream));
    }
}

struct Message {
    first: String,
    close: bool,
    body: Vec<u8>,
}

fn read(stream: &mut BufReader<TcpStream>) -> Option<Message> {
    let mut first = String::new();
    if stream.read_line(&mut first).ok()? == 0 {
        return None;
    }
    let (mut length, mut close) = (0, false);
    loop {
        let mut header = String::new();
        stream.read_line(&mut header).ok()?;
        let Some((name, value)) = header.trim_end().split_once(':') else { break };
        if name.eq_ignore_ascii_case("content-length") {
            length = value.trim().parse().ok()?;
        }
        close |= name.eq_ignore_ascii_case("connection") && value.trim().eq_ignore_ascii_case("close");
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).ok()?;
    Some(Message { first: first.trim_end().to_owned(), close, body })
}

fn write(stream: &mut TcpStream, head: &str, body: &[u8]) -> std::io::Result<()> {
    let mut bytes = format!("{head}\r\nContent-Length: {}\r\n\r\n", body.len()).into_bytes();
    bytes.extend(body);
    stream.write_all(&bytes)
}

fn serve(stream: TcpStream) {
    let _ = stream.set_nodelay(true);
    let mut client = BufReader::new(stream);
    let mut service = None;
    while let Some(request) = read(&mut client) {
        let (status, body) = match request.first.split(' ').nth(1) {
            Some("/front/healthz") => ("200 OK".to_owned(), b"ok".to_vec()),
            _ => ask(&mut service, &request).unwrap_or_else(|problem| ("502 Bad Gateway".to_owned(), problem.into_bytes())),
        };
        if write(client.get_mut(), &format!("HTTP/1.1 {status}\r\nContent-Type: text/plain"), &body).is_err() {
            return;
        }
    }
}

/// Asks the service over the connection that is kept, or over a new one.
fn ask(kept: &mut Option<BufReader<TcpStream>>, request: &Message) -> Result<(String, Vec<u8>), String> {
    let mut service = match kept.take() {
        Some(service) => service,
        None => BufReader::new(TcpStream::connect((NAME, 80)).map_err(|e| format!("connect to {NAME}: {e}"))?),
    };
    let _ = service.get_ref().set_nodelay(true);
    let head = format!("{}\r\nHost: {NAME}", request.first);
    write(service.get_mut(), &head, &request.body).map_err(|e| format!("send to {NAME}: {e}"))?;
    let answer = read(&mut service).ok_or_else(|| format!("{NAME} answers nothing"))?;
    if !answer.close {
        *kept = Some(service);
    }
    let status = answer.first.split_once(' ').map_or("502 Bad Gateway", |(_, status)| status);
    Ok((status.to_owned(), answer.body))
}
