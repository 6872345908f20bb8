//! A client on std that never retries and tells a cut answer from a whole one.

use std::io::{BufRead, BufReader, Error, ErrorKind, Read, Result, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

#[derive(Debug, Clone)]
pub(crate) struct Got {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Got {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.as_str())
    }

    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    pub(crate) fn release(&self) -> u64 {
        self.header("x-kiln-release").expect("a release").parse().unwrap()
    }
}

pub(crate) struct Conn {
    pub(crate) reader: BufReader<TcpStream>,
}

impl Conn {
    pub(crate) fn new(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).expect("connect");
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream.set_nodelay(true).unwrap();
        Self { reader: BufReader::new(stream) }
    }

    pub(crate) fn stream(&mut self) -> &mut TcpStream {
        self.reader.get_mut()
    }

    pub(crate) fn write(&mut self, bytes: impl AsRef<[u8]>) -> Result<()> {
        self.stream().write_all(bytes.as_ref())
    }

    pub(crate) fn get(&mut self, path: &str) -> Result<Got> {
        self.write(format!("GET {path} HTTP/1.1\r\nHost: a.test\r\n\r\n"))?;
        self.read("GET")
    }

    pub(crate) fn post(&mut self, path: &str, body: &[u8]) -> Result<Got> {
        self.write(format!(
            "POST {path} HTTP/1.1\r\nHost: a.test\r\nContent-Length: {}\r\n\r\n",
            body.len()
        ))?;
        self.write(body)?;
        self.read("POST")
    }

    fn line(&mut self) -> Result<String> {
        let mut text = String::new();
        if self.reader.read_line(&mut text)? == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        Ok(text.trim_end().to_owned())
    }

    pub(crate) fn head(&mut self) -> Result<Got> {
        let first = self.line()?;
        let status = first.split(' ').nth(1).and_then(|s| s.parse().ok());
        let status = status.ok_or_else(|| Error::other(format!("status line {first:?}")))?;
        let mut got = Got { status, headers: vec![], body: vec![] };
        loop {
            let line = self.line()?;
            if line.is_empty() {
                return Ok(got);
            }
            let (name, value) = line.split_once(':').ok_or_else(|| Error::other(line.clone()))?;
            got.headers.push((name.to_owned(), value.trim().to_owned()));
        }
    }

    /// One whole answer; an error if it was cut.
    pub(crate) fn read(&mut self, method: &str) -> Result<Got> {
        let mut got = self.head()?;
        if method == "HEAD" || got.status == 204 || got.status == 304 || got.status < 200 {
            return Ok(got);
        }
        if let Some(length) = got.header("content-length") {
            got.body = vec![0; length.parse().map_err(Error::other)?];
            self.reader.read_exact(&mut got.body)?;
        } else if got.header("transfer-encoding").is_some() {
            loop {
                let size = usize::from_str_radix(&self.line()?, 16).map_err(Error::other)?;
                let mut chunk = vec![0; size + 2];
                self.reader.read_exact(&mut chunk)?;
                if size == 0 {
                    break;
                }
                got.body.extend(&chunk[..size]);
            }
        } else {
            self.reader.read_to_end(&mut got.body)?;
        }
        Ok(got)
    }
}

pub(crate) fn get(address: SocketAddr, path: &str) -> Result<Got> {
    Conn::new(address).get(path)
}

/// Sends raw bytes and reads one answer.
pub(crate) fn raw(address: SocketAddr, bytes: &str) -> Result<Got> {
    let mut conn = Conn::new(address);
    conn.write(bytes)?;
    conn.read(bytes.split(' ').next().unwrap_or("GET"))
}
