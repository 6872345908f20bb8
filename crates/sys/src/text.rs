//! Text without the heap: see [`crate::seal`].

use std::fmt::{self, Write as _};

struct Room<'a> {
    into: &'a mut [u8],
    length: usize,
}

impl fmt::Write for Room<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let free = self.into.len() - self.length;
        let part = &text[..text.floor_char_boundary(free)];
        self.into[self.length..self.length + part.len()].copy_from_slice(part.as_bytes());
        self.length += part.len();
        if part.len() == text.len() { Ok(()) } else { Err(fmt::Error) }
    }
}

/// Writes what is formatted into `into`, cut where it does not fit.
pub fn format<'a>(into: &'a mut [u8], arguments: fmt::Arguments<'_>) -> &'a str {
    let mut room = Room { into, length: 0 };
    // The only error is that it was cut.
    let _ = room.write_fmt(arguments);
    let Room { into, length } = room;
    std::str::from_utf8(&into[..length]).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_is_cut_between_characters() {
        assert_eq!(format(&mut [0; 16], format_args!("{}-{}", 12, "ab")), "12-ab");
        assert_eq!(format(&mut [0; 4], format_args!("{}{}", "ab", "\u{20ac}x")), "ab");
        assert_eq!(format(&mut [], format_args!("x")), "");
    }
}
