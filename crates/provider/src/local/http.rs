//! One `GET` to an instance: a small HTTP/1.1 client with a limit on everything, as the answer is hostile input.

use std::io;
use std::net::SocketAddr;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Bytes of a body that are read; a check looks no further.
const BODY_BYTES_MAX: usize = 1024 * 1024;
/// Bytes of a status line with all header fields.
const HEAD_BYTES_MAX: usize = 64 * 1024;

/// Bytes of everything that comes over the connection: the body, and what its framing adds to it.
const WIRE_BYTES_MAX: usize = 2 * BODY_BYTES_MAX;

/// Bytes of the line with a chunk's length.
const CHUNK_LINE_BYTES_MAX: usize = 4096;
/// Chunks of a body.
const CHUNKS_MAX: usize = 64 * 1024;
const DAMAGED: &str = "the answer has a damaged chunk";
/// Answers with a status of 100 to 199 before the one that counts.
const INTERIM_MAX: usize = 16;

/// An answer.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    /// Status code.
    pub status: u16,
    /// The first bytes of the body, without transfer coding.
    pub body: Vec<u8>,
}

/// The header of the PROXY protocol, version 2, of a connection that is nobody's but the proxy's own: LOCAL, without addresses.
const OWN_HEADER: &[u8; 16] = b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0";

/// A connection; `own` tells that who listens there expects a header of the PROXY protocol.
pub(crate) async fn connect(address: SocketAddr, own: bool) -> io::Result<TcpStream> {
    let mut stream = TcpStream::connect(address).await?;
    if own {
        stream.write_all(OWN_HEADER).await?;
    }
    Ok(stream)
}

/// Sends one request and reads the answer. The caller limits the time. For `own` see [`connect`].
pub(crate) async fn get(address: SocketAddr, host: &str, path: &str, own: bool) -> io::Result<Answer> {
    let plain = |text: &str| text.bytes().all(|b| b > b' ' && b != 0x7f);
    if !plain(host) || !plain(path) || !path.starts_with('/') {
        return Err(bad("the check's path or host holds a blank or a control character"));
    }
    let mut stream = connect(address, own).await?;
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: kiln-check\r\nAccept: */*\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await?;
    let mut bytes = Vec::new();
    let mut chunk = vec![0; 16 * 1024];
    loop {
        if let Some(answer) = parse(&bytes, false)? {
            return Ok(answer);
        }
        let n = stream.read(&mut chunk).await?;
        if n == 0 {
            return parse(&bytes, true)?
                .ok_or_else(|| bad("the connection was closed before the answer ended"));
        }
        bytes.extend(&chunk[..n]);
        if bytes.len() > WIRE_BYTES_MAX {
            return Err(bad("the answer does not end within 2 MiB"));
        }
    }
}

fn bad(text: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text.to_owned())
}

/// The answer, if enough of it is there. `ended`: no more will come.
fn parse(mut bytes: &[u8], ended: bool) -> io::Result<Option<Answer>> {
    for _ in 0..=INTERIM_MAX {
        match parse_one(bytes, ended)? {
            Some(Part::Answer(answer)) => return Ok(Some(answer)),
            // Another one follows.
            Some(Part::Interim(length)) => bytes = &bytes[length..],
            None => return Ok(None),
        }
    }
    Err(bad("too many interim answers come before the answer"))
}

/// What a server sends.
enum Part {
    /// With a status of 100 to 199; so many bytes.
    Interim(usize),
    Answer(Answer),
}

fn parse_one(bytes: &[u8], ended: bool) -> io::Result<Option<Part>> {
    let Some(end) = bytes.windows(4).position(|w| w == b"\r\n\r\n") else {
        if bytes.len() > HEAD_BYTES_MAX {
            return Err(bad("the answer's header is longer than 64 KiB"));
        }
        return Ok(None);
    };
    let head = std::str::from_utf8(&bytes[..end]).map_err(|_| bad("the answer's header is no text"))?;
    let mut lines = head.split("\r\n");
    let first = lines.next().unwrap_or("");
    let status = first
        .strip_prefix("HTTP/1.")
        .and_then(|rest| rest.get(2..5))
        .and_then(|code| code.parse::<u16>().ok())
        .ok_or_else(|| bad("the answer is not HTTP/1"))?;
    let mut length = None;
    let mut chunked = false;
    for (name, value) in lines.filter_map(|l| l.split_once(':')) {
        match name.to_ascii_lowercase().as_str() {
            "content-length" => length = value.trim().parse::<usize>().ok(),
            "transfer-encoding" => chunked = value.trim().eq_ignore_ascii_case("chunked"),
            _ => {}
        }
    }
    let rest = &bytes[end + 4..];
    if (100..200).contains(&status) {
        return Ok(Some(Part::Interim(end + 4)));
    }
    let body = match (status, chunked, length) {
        (204 | 304, ..) => Some(vec![]),
        (_, true, _) => unchunk(rest)?,
        (_, false, Some(length)) => {
            let wanted = length.min(BODY_BYTES_MAX);
            (rest.len() >= wanted).then(|| rest[..wanted].to_vec())
        }
        (_, false, None) => {
            (ended || rest.len() >= BODY_BYTES_MAX).then(|| rest[..rest.len().min(BODY_BYTES_MAX)].to_vec())
        }
    };
    Ok(body.map(|body| Part::Answer(Answer { status, body })))
}

/// The body of a chunked answer, if all of it is there or the limit is reached.
fn unchunk(mut rest: &[u8]) -> io::Result<Option<Vec<u8>>> {
    let mut body = vec![];
    for _ in 0..CHUNKS_MAX {
        let start = &rest[..rest.len().min(CHUNK_LINE_BYTES_MAX)];
        let Some(line) = start.windows(2).position(|w| w == b"\r\n") else {
            return if start.len() == CHUNK_LINE_BYTES_MAX { Err(bad(DAMAGED)) } else { Ok(None) };
        };
        let text = std::str::from_utf8(&rest[..line]).unwrap_or("");
        let size = usize::from_str_radix(text.split(';').next().unwrap_or("").trim(), 16)
            .map_err(|_| bad(DAMAGED))?;
        if size == 0 {
            return Ok(Some(body));
        }
        rest = &rest[line + 2..];
        let here = size.min(rest.len());
        body.extend(&rest[..here.min(BODY_BYTES_MAX - body.len())]);
        if body.len() == BODY_BYTES_MAX {
            return Ok(Some(body));
        }
        match rest.get(size..).and_then(|r| r.strip_prefix(b"\r\n")) {
            Some(next) => rest = next,
            None if rest.len() >= size.saturating_add(2) => {
                return Err(bad(DAMAGED));
            }
            None => return Ok(None),
        }
    }
    Err(bad("the answer has too many chunks"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whole(text: &str) -> Option<(u16, String)> {
        // However the bytes come in, an incomplete answer is never taken for a whole one with other content.
        let answer = parse(text.as_bytes(), true).ok().flatten()?;
        for cut in 0..text.len() {
            if let Ok(Some(early)) = parse(&text.as_bytes()[..cut], false) {
                assert_eq!(early, answer, "{cut}");
            }
        }
        Some((answer.status, String::from_utf8(answer.body).unwrap()))
    }

    #[test]
    fn answers_of_every_framing() {
        let is = |text: &str, status: u16, body: &str| assert_eq!(whole(text), Some((status, body.into())));
        is("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", 200, "hello");
        is("HTTP/1.0 404 No\r\n\r\ngone", 404, "gone");
        is("HTTP/1.1 204 None\r\n\r\n", 204, "");
        is(
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nhel\r\n2;x\r\nlo\r\n0\r\n\r\n",
            200,
            "hello",
        );
        is("HTTP/1.1 103 Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx", 200, "x");
        assert_eq!(whole("SSH-2.0\r\n\r\n"), None);
        assert_eq!(whole("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhel"), None);
        assert_eq!(whole("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"), None);
    }

    #[test]
    fn an_endless_answer_costs_neither_stack_nor_memory() {
        let interim = "HTTP/1.1 100 \r\n\r\n";
        let many = interim.repeat(100_000);
        assert!(parse(many.as_bytes(), false).is_err());
        let chunk = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;";
        for (start, then, expected) in [
            (chunk, "x", "damaged"),
            (interim, interim, "interim"),
            (chunk, ";\r\nx\r\n1", "too many chunks"),
        ] {
            let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            let address = listener.local_addr().unwrap();
            let server = std::thread::spawn(move || {
                use std::io::Write;
                let (mut stream, _) = listener.accept().unwrap();
                stream.write_all(start.as_bytes()).unwrap();
                let more = then.repeat(4096);
                let mut sent = 0;
                while stream.write_all(more.as_bytes()).is_ok() {
                    sent += more.len();
                }
                sent
            });
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let error = runtime.block_on(get(address, "x", "/", false)).unwrap_err();
            assert!(error.to_string().contains(expected), "{error}");
            let sent = server.join().unwrap();
            // What the kernel holds between the two comes on top.
            assert!(sent < 64 * BODY_BYTES_MAX, "{sent}");
        }
    }
}
