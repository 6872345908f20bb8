//! What a guest and its host say to each other over one virtio-serial port. This file is a part of both: of the guest's init,
//! and of [`kiln_sys`](crate), for the host.
//!
//! ```text
//! guest: Hello                     the port is open; the host answers with what to start
//! host:  Secret …, Start(configuration)
//! guest: Started | NotStarted | Failed
//! guest: Out, Err …                in the order in which they were read
//! host:  Stop, Kill, Ask … guest:  Answer …
//! guest: Ended                     the last word: everything that was printed has been sent before it
//! ```
//! A frame is one byte of kind, four of length (little-endian) and that many of content. The host believes nothing of what comes:
//! a frame that is too long or malformed ends the machine.

/// The name of the port.
pub const PORT: &str = "kiln.control";
/// Bytes of the content of one frame.
pub const FRAME_BYTES_MAX: usize = 256 * 1024;
/// Bytes of output in one frame.
pub const OUTPUT_BYTES_MAX: usize = 32 * 1024;
/// Questions that a guest answers at the same time.
pub const QUESTIONS_MAX: usize = 16;
/// Bytes of an answer's text.
pub const ANSWER_BYTES_MAX: usize = 4096;
const HEADER: usize = 5;

/// How a service ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// With this status.
    Status(i32),
    /// By this signal.
    Signal(i32),
    /// Its memory was used up.
    OutOfMemory,
}

/// What a guest says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FromGuest {
    /// It is there.
    Hello,
    /// The service runs.
    Started,
    /// The service's program could not be executed; with a text for the user.
    NotStarted(String),
    /// Something around the service failed.
    Failed {
        /// No use trying again.
        permanent: bool,
        /// What was tried.
        step: String,
        /// Why it failed.
        detail: String,
    },
    /// The service printed this.
    Out(Vec<u8>),
    /// The service printed this as an error.
    Err(Vec<u8>),
    /// To a question.
    Answer {
        /// Which one.
        number: u32,
        /// Whether it is as it was asked for.
        passed: bool,
        /// What was seen.
        detail: String,
    },
    /// The service ended, and this is the last word.
    Ended(End),
}

/// What a host says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ToGuest {
    /// A secret of the instance; all of them come before the start.
    Secret {
        /// Its name, which is that of its file.
        name: String,
        /// Its value.
        value: Vec<u8>,
    },
    /// The records of a configuration, as `config.rs` reads them.
    Start(Vec<u8>),
    /// Send the service this signal.
    Stop(i32),
    /// Kill the service.
    Kill,
    /// A question.
    Ask {
        /// Comes back with the answer.
        number: u32,
        /// How long a command may take.
        timeout_ms: u64,
        /// What is asked.
        question: Question,
    },
}

/// What a host wants to know of a guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Question {
    /// Is there such a file, and does it hold this text?
    File {
        /// Its path in the image.
        path: String,
        /// The text; none asks for the file alone.
        contains: Option<String>,
    },
    /// Does anything listen on this port?
    Listening(u16),
    /// Does this command end well?
    Command(Vec<String>),
}

/// What came is not what was agreed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Broken;

struct Writer(Vec<u8>);

impl Writer {
    fn new(kind: u8) -> Self {
        Self(vec![kind, 0, 0, 0, 0])
    }

    fn number(mut self, value: u64) -> Self {
        self.0.extend_from_slice(&value.to_le_bytes());
        self
    }

    fn text(mut self, text: &str) -> Self {
        self.0.extend_from_slice(&(text.len() as u32).to_le_bytes());
        self.0.extend_from_slice(text.as_bytes());
        self
    }

    fn rest(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }

    /// The frame; none if it is too long.
    fn finish(mut self) -> Option<Vec<u8>> {
        let length = self.0.len() - HEADER;
        self.0[1..HEADER].copy_from_slice(&(length as u32).to_le_bytes());
        (length <= FRAME_BYTES_MAX).then_some(self.0)
    }
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], Broken> {
        let (head, rest) = self.0.split_at_checked(count).ok_or(Broken)?;
        self.0 = rest;
        Ok(head)
    }

    fn number(&mut self) -> Result<u64, Broken> {
        Ok(u64::from_le_bytes(self.take(8)?.try_into().map_err(|_| Broken)?))
    }

    fn small<T: TryFrom<u64>>(&mut self) -> Result<T, Broken> {
        T::try_from(self.number()?).map_err(|_| Broken)
    }

    fn flag(&mut self) -> Result<bool, Broken> {
        Ok(self.number()? == 1)
    }

    fn text(&mut self) -> Result<String, Broken> {
        let length = u32::from_le_bytes(self.take(4)?.try_into().map_err(|_| Broken)?);
        let bytes = self.take(length as usize)?;
        Ok(String::from_utf8_lossy(bytes).into_owned())
    }

    fn rest(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.0).to_vec()
    }

    /// `value`, if nothing follows.
    fn end<T>(self, value: T) -> Result<T, Broken> {
        if self.0.is_empty() { Ok(value) } else { Err(Broken) }
    }
}

impl FromGuest {
    /// As a frame; none if it is too long.
    pub fn encode(&self) -> Option<Vec<u8>> {
        match self {
            Self::Hello => Writer::new(b'h'),
            Self::Started => Writer::new(b's'),
            Self::NotStarted(error) => Writer::new(b'n').text(error),
            Self::Failed { permanent, step, detail } => {
                Writer::new(b'f').number(u64::from(*permanent)).text(step).text(detail)
            }
            Self::Out(bytes) => Writer::new(b'o').rest(bytes),
            Self::Err(bytes) => Writer::new(b'e').rest(bytes),
            Self::Answer { number, passed, detail } => {
                Writer::new(b'a').number(u64::from(*number)).number(u64::from(*passed)).text(detail)
            }
            Self::Ended(end) => {
                let (kind, number) = match end {
                    End::Status(status) => (0, *status),
                    End::Signal(signal) => (1, *signal),
                    End::OutOfMemory => (2, 0),
                };
                Writer::new(b'x').number(kind).number(number.cast_unsigned().into())
            }
        }
        .finish()
    }

    /// Of a frame's kind and content.
    pub fn decode(kind: u8, content: &[u8]) -> Result<Self, Broken> {
        let mut reader = Reader(content);
        let value = match kind {
            b'h' => Self::Hello,
            b's' => Self::Started,
            b'n' => Self::NotStarted(reader.text()?),
            b'f' => Self::Failed { permanent: reader.flag()?, step: reader.text()?, detail: reader.text()? },
            b'o' => Self::Out(reader.rest()),
            b'e' => Self::Err(reader.rest()),
            b'a' => Self::Answer { number: reader.small()?, passed: reader.flag()?, detail: reader.text()? },
            b'x' => {
                let (kind, number) = (reader.number()?, reader.small::<u32>()?.cast_signed());
                Self::Ended(match kind {
                    0 => End::Status(number),
                    1 => End::Signal(number),
                    2 => End::OutOfMemory,
                    _ => return Err(Broken),
                })
            }
            _ => return Err(Broken),
        };
        reader.end(value)
    }
}

impl ToGuest {
    /// As a frame; none if it is too long.
    pub fn encode(&self) -> Option<Vec<u8>> {
        match self {
            Self::Secret { name, value } => Writer::new(b'R').text(name).rest(value),
            Self::Start(records) => Writer::new(b'S').rest(records),
            Self::Stop(signal) => Writer::new(b'T').number(signal.cast_unsigned().into()),
            Self::Kill => Writer::new(b'K'),
            Self::Ask { number, timeout_ms, question } => {
                let writer = Writer::new(b'Q').number(u64::from(*number)).number(*timeout_ms);
                match question {
                    Question::File { path, contains } => {
                        let writer = writer.number(0).text(path).number(u64::from(contains.is_some()));
                        writer.text(contains.as_deref().unwrap_or(""))
                    }
                    Question::Listening(port) => writer.number(1).number(u64::from(*port)),
                    Question::Command(argv) => {
                        let writer = writer.number(2).number(argv.len() as u64);
                        argv.iter().fold(writer, |writer, argument| writer.text(argument))
                    }
                }
            }
        }
        .finish()
    }

    /// Of a frame's kind and content.
    pub fn decode(kind: u8, content: &[u8]) -> Result<Self, Broken> {
        let mut reader = Reader(content);
        let value = match kind {
            b'R' => Self::Secret { name: reader.text()?, value: reader.rest() },
            b'S' => Self::Start(reader.rest()),
            b'T' => Self::Stop(reader.small::<u32>()?.cast_signed()),
            b'K' => Self::Kill,
            b'Q' => Self::Ask {
                number: reader.small()?,
                timeout_ms: reader.number()?,
                question: match reader.number()? {
                    0 => {
                        let (path, has_text, text) = (reader.text()?, reader.flag()?, reader.text()?);
                        Question::File { path, contains: has_text.then_some(text) }
                    }
                    1 => Question::Listening(reader.small()?),
                    2 => {
                        let count = reader.number()?;
                        Question::Command((0..count).map(|_| reader.text()).collect::<Result<_, _>>()?)
                    }
                    _ => return Err(Broken),
                },
            },
            _ => return Err(Broken),
        };
        reader.end(value)
    }
}

/// Cuts what is read into frames. It never holds more than one frame and one read.
#[derive(Debug, Default)]
pub struct Frames(Vec<u8>);

impl Frames {
    /// Adds what was read.
    pub fn push(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    /// The next whole frame, as kind and content.
    pub fn take(&mut self) -> Result<Option<(u8, Vec<u8>)>, Broken> {
        let Some(header) = self.0.get(..HEADER) else { return Ok(None) };
        let length = u32::from_le_bytes([header[1], header[2], header[3], header[4]]) as usize;
        if length > FRAME_BYTES_MAX {
            return Err(Broken);
        }
        if self.0.len() < HEADER + length {
            return Ok(None);
        }
        let frame = (self.0[0], self.0[HEADER..HEADER + length].to_vec());
        self.0.drain(..HEADER + length);
        Ok(Some(frame))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn decoded<T>(frame: &[u8], decode: fn(u8, &[u8]) -> Result<T, Broken>) -> T {
        let mut frames = Frames::default();
        let mut out = vec![];
        // However it is cut on the way.
        for chunk in frame.chunks(3) {
            frames.push(chunk);
            out.extend(frames.take().unwrap());
        }
        let (kind, content) = out.pop().unwrap();
        assert!(out.is_empty() && frames.0.is_empty());
        decode(kind, &content).unwrap()
    }

    #[test]
    fn what_is_said_is_what_is_heard() {
        let said = [
            FromGuest::Hello,
            FromGuest::Started,
            FromGuest::NotStarted("no".into()),
            FromGuest::Failed { permanent: true, step: "mount".into(), detail: "hint: ä".into() },
            FromGuest::Out(vec![0, 255, b'\n']),
            FromGuest::Err(vec![]),
            FromGuest::Answer { number: 7, passed: false, detail: "status 3".into() },
            FromGuest::Ended(End::Status(255)),
            FromGuest::Ended(End::Signal(9)),
            FromGuest::Ended(End::OutOfMemory),
        ];
        for said in said {
            assert_eq!(decoded(&said.encode().unwrap(), FromGuest::decode), said);
        }
        let ask = |question| ToGuest::Ask { number: u32::MAX, timeout_ms: 5, question };
        let said = [
            ToGuest::Secret { name: "API_KEY".into(), value: vec![0, 255, b'\n'] },
            ToGuest::Start(b"name x\0".to_vec()),
            ToGuest::Stop(15),
            ToGuest::Kill,
            ask(Question::Listening(8080)),
            ask(Question::File { path: "/x".into(), contains: Some(String::new()) }),
            ask(Question::File { path: "/x".into(), contains: None }),
            ask(Question::Command(vec!["a".into(), String::new()])),
        ];
        for said in said {
            assert_eq!(decoded(&said.encode().unwrap(), ToGuest::decode), said);
        }
    }

    #[test]
    fn too_long_is_broken_before_it_is_read() {
        let mut frames = Frames::default();
        frames.push(&[b'o', 1, 0, 4, 0]);
        assert_eq!(frames.take(), Err(Broken));
        assert_eq!(FromGuest::Out(vec![0; FRAME_BYTES_MAX + 1]).encode(), None);
    }

    proptest! {
        #[test]
        fn nothing_that_comes_panics(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            let mut frames = Frames::default();
            frames.push(&bytes);
            while let Ok(Some((kind, content))) = frames.take() {
                let _ = FromGuest::decode(kind, &content);
                let _ = ToGuest::decode(kind, &content);
            }
            for kind in b"hsnfoeaxRSTKQ" {
                let _ = FromGuest::decode(*kind, &bytes);
                let _ = ToGuest::decode(*kind, &bytes);
            }
        }
    }
}
