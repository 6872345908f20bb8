//! A server of HTTP/2 without TLS and of nothing else, on std only: answers every request with 200 and its version.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const PING: u8 = 6;

fn frame(kind: u8, flags: u8, stream: [u8; 4], body: &[u8]) -> Vec<u8> {
    let mut bytes = (body.len() as u32).to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream);
    bytes.extend(body);
    bytes
}

fn serve(mut stream: TcpStream, version: &str) -> std::io::Result<()> {
    let mut preface = [0; PREFACE.len()];
    stream.read_exact(&mut preface)?;
    if preface != PREFACE {
        return Ok(());
    }
    stream.write_all(&frame(SETTINGS, 0, [0; 4], &[]))?;
    loop {
        let mut head = [0; 9];
        stream.read_exact(&mut head)?;
        let mut body = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
        stream.read_exact(&mut body)?;
        let (kind, flags, id) = (head[3], head[4], [head[5], head[6], head[7], head[8]]);
        match kind {
            SETTINGS if flags & 1 == 0 => stream.write_all(&frame(kind, 1, [0; 4], &[]))?,
            PING if flags & 1 == 0 => stream.write_all(&frame(kind, 1, [0; 4], &body))?,
            _ => {}
        }
        // The end of the request: `:status: 200` is entry 8 of the static table (RFC 7541, appendix A).
        if (kind == HEADERS || kind == DATA) && flags & 1 != 0 {
            let mut answer = frame(HEADERS, 4, id, &[0x88]);
            answer.extend(frame(DATA, 1, id, version.as_bytes()));
            stream.write_all(&answer)?;
        }
    }
}

fn main() {
    let version = std::fs::read_to_string("/srv/version").expect("a version");
    let listener = TcpListener::bind("0.0.0.0:9000").expect("a port");
    for stream in listener.incoming().flatten() {
        let version = version.trim().to_owned();
        std::thread::spawn(move || drop(serve(stream, &version)));
    }
}
