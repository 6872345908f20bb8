//! Becoming another program, without taking memory from the heap: see [`crate::seal`].

use std::ffi::CStr;
use std::io;

/// Arguments, and variables, of one program.
pub const WORDS_MAX: usize = 4096;
/// Bytes of a path, the kernel's limit.
const PATH_BYTES_MAX: usize = 4096;

/// Strings that lie one after the other, each ended by a NUL.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Words<'a>(&'a [u8]);

impl<'a> Words<'a> {
    /// None: the last one is not ended.
    pub fn new(bytes: &'a [u8]) -> Option<Self> {
        bytes.last().is_none_or(|last| *last == 0).then_some(Self(bytes))
    }

    /// One by one.
    pub fn iter(self) -> impl Iterator<Item = &'a CStr> {
        self.0.split_inclusive(|byte| *byte == 0).filter_map(|word| CStr::from_bytes_with_nul(word).ok())
    }

    /// All of them with their ends.
    pub fn bytes(self) -> &'a [u8] {
        self.0
    }

    /// The first one.
    pub fn first(self) -> Option<&'a CStr> {
        self.iter().next()
    }
}

/// Room for the two lists of pointers that the kernel reads.
#[derive(Debug)]
pub struct Room {
    argv: Vec<*const libc::c_char>,
    environment: Vec<*const libc::c_char>,
}

impl Default for Room {
    fn default() -> Self {
        let room = || Vec::with_capacity(WORDS_MAX + 1);
        Self { argv: room(), environment: room() }
    }
}

fn fill(list: &mut Vec<*const libc::c_char>, words: Words<'_>) -> bool {
    list.clear();
    list.extend(words.iter().take(WORDS_MAX).map(CStr::as_ptr));
    list.push(std::ptr::null());
    words.iter().nth(WORDS_MAX).is_none()
}

/// Becomes another program. A name without `/` is looked for in the directories of `search`, as `execvp` does.
/// Returns only on failure.
pub fn exec(argv: Words<'_>, environment: Words<'_>, search: &str, room: &mut Room) -> io::Error {
    let error = io::Error::from_raw_os_error;
    let Some(name) = argv.first() else { return error(libc::ENOENT) };
    if !fill(&mut room.argv, argv) || !fill(&mut room.environment, environment) {
        return error(libc::E2BIG);
    }
    let attempt = |path: &CStr| {
        // SAFETY: both arrays end with a null pointer, and their strings are borrowed for as long as this runs.
        unsafe { libc::execve(path.as_ptr(), room.argv.as_ptr(), room.environment.as_ptr()) };
        io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO)
    };
    if name.to_bytes().contains(&b'/') {
        return error(attempt(name));
    }
    let mut worst = libc::ENOENT;
    for directory in search.split(':').filter(|directory| !directory.is_empty()) {
        let mut path = [0; PATH_BYTES_MAX];
        let parts = [directory.as_bytes(), b"/", name.to_bytes_with_nul()];
        let mut at = 0;
        for part in parts {
            let Some(place) = path.get_mut(at..at + part.len()) else { break };
            place.copy_from_slice(part);
            at += part.len();
        }
        let Ok(path) = CStr::from_bytes_until_nul(&path) else { continue };
        let errno = attempt(path);
        if errno != libc::ENOENT && errno != libc::ENOTDIR {
            worst = errno;
        }
    }
    error(worst)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_taken_apart_as_they_were_put_together() {
        let words = Words::new(b"one\0\0three\0").unwrap();
        assert!(words.iter().map(CStr::to_bytes).eq([b"one".as_slice(), b"", b"three"]));
        assert_eq!(Words::new(b"").unwrap().first(), None);
        assert_eq!(Words::new(b"open"), None);
    }

    #[test]
    fn what_cannot_be_executed_says_why() {
        let mut room = Room::default();
        let mut errno = |argv: &[u8], search: &str| {
            let argv = Words::new(argv).unwrap();
            exec(argv, Words::default(), search, &mut room).raw_os_error()
        };
        assert_eq!(errno(b"", "/bin"), Some(libc::ENOENT));
        assert_eq!(errno(b"/nowhere/program\0", ""), Some(libc::ENOENT));
        assert_eq!(errno(b"no-such-program\0", "/bin::/nowhere"), Some(libc::ENOENT));
        assert_eq!(errno(b"passwd\0", "/nowhere:/etc"), Some(libc::EACCES));
        assert_eq!(errno(&b"x\0".repeat(WORDS_MAX + 1), "/bin"), Some(libc::E2BIG));
    }
}
