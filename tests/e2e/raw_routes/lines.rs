//! A server of raw connections: each line is answered with the release, who asks, and the line. With `--told` it wants a PROXY
//! protocol header of version 2 first, believes what that says, and closes without one; a line that asks by HTTP gets an answer of
//! HTTP. Compiled by the test itself, with the standard library only.
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};

fn main() {
    let port: u16 = std::env::var("PORT").expect("PORT").parse().expect("a port is a number");
    let told = std::env::args().any(|argument| argument == "--told");
    let release = std::fs::read_to_string("/srv/version").expect("/srv/version");
    let release = release.trim().to_owned();
    let listener = TcpListener::bind(("0.0.0.0", port)).expect("the port is free");
    for stream in listener.incoming().flatten() {
        let release = release.clone();
        std::thread::spawn(move || serve(stream, told, &release));
    }
}

/// Who the header says that it is; nobody of a check.
fn header(stream: &mut BufReader<TcpStream>) -> Option<String> {
    let mut head = [0; 16];
    stream.read_exact(&mut head).ok()?;
    if head[..12] != *b"\r\n\r\n\0\r\nQUIT\n" {
        return None;
    }
    let mut rest = vec![0; usize::from(u16::from_be_bytes([head[14], head[15]]))];
    stream.read_exact(&mut rest).ok()?;
    match (head[12], rest.first_chunk::<4>()) {
        (0x21, Some(address)) => Some(Ipv4Addr::from(*address).to_string()),
        (0x20, _) => Some("nobody".to_owned()),
        _ => None,
    }
}

fn serve(stream: TcpStream, told: bool, release: &str) {
    let mut client = BufReader::new(stream);
    let who = match told {
        true => match header(&mut client) {
            Some(who) => who,
            None => return,
        },
        false => "somebody".to_owned(),
    };
    let mut line = String::new();
    while client.read_line(&mut line).is_ok_and(|n| n > 0) {
        let text = line.trim_end();
        let answer = match text.strip_prefix("GET ") {
            Some(_) => {
                let body = format!("{release} {who}");
                format!("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}", body.len())
            }
            None => format!("{release} {who} {text}\n"),
        };
        if client.get_mut().write_all(answer.as_bytes()).is_err() || text.starts_with("GET ") {
            return;
        }
        line.clear();
    }
}
