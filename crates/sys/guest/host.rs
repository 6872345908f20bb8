//! The connection of an instance to its host: one port, one frame at a time in each direction.

use crate::wire::{Frames, FromGuest, OUTPUT_BYTES_MAX, PORT, ToGuest};
use std::fs::{self, File};
use std::io::{Error, Read, Result, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long the port may take to appear.
const PORT_MAX: Duration = Duration::from_secs(60);

/// Says things to the host. Cheap to clone.
#[derive(Clone)]
pub struct Host(Arc<Mutex<File>>);

/// Hears what the host says.
pub struct Ear {
    port: File,
    frames: Frames,
}

/// Waits for the port and opens it.
pub fn connect() -> Result<(Host, Ear)> {
    let port = find()?;
    let ear = Ear { port: port.try_clone()?, frames: Frames::default() };
    Ok((Host(Arc::new(Mutex::new(port))), ear))
}

fn find() -> Result<File> {
    let until = Instant::now() + PORT_MAX;
    loop {
        for entry in fs::read_dir("/sys/class/virtio-ports").into_iter().flatten().flatten() {
            let name = fs::read_to_string(entry.path().join("name")).unwrap_or_default();
            if name.trim() == PORT {
                let node = format!("/dev/{}", entry.file_name().to_string_lossy());
                if let Ok(port) = File::options().read(true).write(true).open(node) {
                    return Ok(port);
                }
            }
        }
        if Instant::now() >= until {
            return Err(Error::other("there is no port to the host"));
        }
        // No event tells of a new port without a device manager.
        std::thread::sleep(Duration::from_millis(2));
    }
}

impl Host {
    fn port(&self) -> MutexGuard<'_, File> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says one thing. What is too long or cannot be sent is lost: there is nobody else to tell.
    pub fn say(&self, word: &FromGuest) {
        if let Some(frame) = word.encode() {
            let _ = self.port().write_all(&frame);
        }
    }

    /// Sends all that comes out of a pipe, until its last writer is gone. Waits while the host does not read.
    pub fn pump(&self, mut pipe: impl Read, word: fn(Vec<u8>) -> FromGuest) {
        let mut chunk = vec![0; OUTPUT_BYTES_MAX];
        while let Ok(count @ 1..) = pipe.read(&mut chunk) {
            self.say(&word(chunk[..count].to_vec()));
        }
    }
}

impl Ear {
    /// Waits for the next thing that the host says.
    pub fn hear(&mut self) -> Result<ToGuest> {
        let broken = |_| Error::other("the host speaks another language");
        let mut chunk = vec![0; OUTPUT_BYTES_MAX];
        loop {
            if let Some((kind, content)) = self.frames.take().map_err(broken)? {
                return ToGuest::decode(kind, &content).map_err(broken);
            }
            match self.port.read(&mut chunk)? {
                // The host's end is not open, or not yet.
                0 => std::thread::sleep(Duration::from_millis(5)),
                count => self.frames.push(&chunk[..count]),
            }
        }
    }
}
