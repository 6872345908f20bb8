//! A small HTTP/1.1 server on std: what it is asked, a closure answers. It can be killed like a process.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

/// A request as it arrived.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Asked {
    pub(crate) fn header(&self, name: &str) -> Vec<&str> {
        self.headers.iter().filter(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.as_str()).collect()
    }
}

/// Answers on the stream; false ends the connection.
pub(crate) type Handler = dyn Fn(&str, &Asked, &mut TcpStream) -> bool + Send + Sync;

pub(crate) struct Backend {
    pub(crate) address: SocketAddr,
    pub(crate) asked: Arc<Mutex<Vec<Asked>>>,
    dead: Arc<AtomicBool>,
    streams: Arc<Mutex<Vec<TcpStream>>>,
}

/// 200 with the backend's name.
pub(crate) fn echo_name(name: &str, _: &Asked, stream: &mut TcpStream) -> bool {
    answer(stream, 200, name.as_bytes())
}

pub(crate) fn answer(stream: &mut TcpStream, status: u16, body: &[u8]) -> bool {
    let mut bytes = format!("HTTP/1.1 {status} X\r\nContent-Length: {}\r\n\r\n", body.len()).into_bytes();
    bytes.extend(body);
    stream.write_all(&bytes).is_ok()
}

impl Backend {
    pub(crate) fn new(name: &str) -> Self {
        Self::with(name, echo_name)
    }

    pub(crate) fn with(
        name: &str,
        handler: impl Fn(&str, &Asked, &mut TcpStream) -> bool + Send + Sync + 'static,
    ) -> Self {
        Self::at("127.0.0.1:0", name, handler)
    }

    pub(crate) fn at(
        address: &str,
        name: &str,
        handler: impl Fn(&str, &Asked, &mut TcpStream) -> bool + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind(address).expect("listener");
        let address = listener.local_addr().expect("address");
        let (dead, streams, asked) =
            (Arc::<AtomicBool>::default(), Arc::<Mutex<Vec<TcpStream>>>::default(), Arc::default());
        let handler: Arc<Handler> = Arc::new(handler);
        let (name, d, s, a) = (name.to_owned(), dead.clone(), streams.clone(), Arc::clone(&asked));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if d.load(Ordering::SeqCst) {
                    return;
                }
                let Ok(stream) = stream else { continue };
                s.lock().unwrap().push(stream.try_clone().expect("clone"));
                let (name, handler, asked) = (name.clone(), handler.clone(), Arc::clone(&a));
                std::thread::spawn(move || serve(&name, stream, &*handler, &asked));
            }
        });
        Self { address, asked, dead, streams }
    }

    pub(crate) fn count(&self) -> usize {
        self.asked.lock().unwrap().len()
    }

    /// As `kill -9`: nothing listens any more, and open connections end.
    pub(crate) fn kill(&self) {
        self.dead.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.address);
        self.streams.lock().unwrap().iter().for_each(|s| drop(s.shutdown(Shutdown::Both)));
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.kill();
    }
}

fn serve(name: &str, stream: TcpStream, handler: &Handler, asked: &Mutex<Vec<Asked>>) {
    let _ = stream.set_nodelay(true);
    let mut reader = BufReader::new(stream.try_clone().expect("clone"));
    let mut stream = stream;
    while let Some(request) = read(&mut reader, &mut stream) {
        if name != "trivial" {
            asked.lock().unwrap().push(request.clone());
        }
        if !handler(name, &request, &mut stream) {
            break;
        }
    }
    // Another descriptor of it is kept for `kill`.
    let _ = stream.shutdown(Shutdown::Both);
}

fn read(reader: &mut BufReader<TcpStream>, stream: &mut TcpStream) -> Option<Asked> {
    let line = |reader: &mut BufReader<TcpStream>| {
        let mut text = vec![];
        let length = reader.read_until(b'\n', &mut text).ok()?;
        (length > 0).then(|| String::from_utf8_lossy(&text).trim_end().to_owned())
    };
    let first = line(reader)?;
    let mut words = first.split(' ');
    let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
    let mut headers = vec![];
    loop {
        let text = line(reader)?;
        if text.is_empty() {
            break;
        }
        let (name, value) = text.split_once(':')?;
        headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
    let mut asked = Asked { method, path, headers, body: vec![] };
    if !asked.header("expect").is_empty() {
        stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").ok()?;
    }
    if let Some(length) = asked.header("content-length").first() {
        asked.body = vec![0; length.parse().ok()?];
        reader.read_exact(&mut asked.body).ok()?;
    } else if !asked.header("transfer-encoding").is_empty() {
        loop {
            let size = usize::from_str_radix(&line(reader)?, 16).ok()?;
            if size == 0 {
                while !line(reader)?.is_empty() {}
                break;
            }
            let mut chunk = vec![0; size + 2];
            reader.read_exact(&mut chunk).ok()?;
            asked.body.extend(&chunk[..size]);
        }
    }
    Some(asked)
}
