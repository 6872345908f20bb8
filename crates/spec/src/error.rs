//! Errors of a `kiln.toml`: where, what, what was expected, and the fix.

use std::fmt;
use std::ops::Range;

/// One thing that is wrong with a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpecError {
    /// What is wrong, in one line.
    pub message: String,
    /// How to mend it.
    pub hint: Option<String>,
    /// Name of the file.
    pub file: String,
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// The line's text, or what of a long one is around the place.
    pub text: String,
    /// Characters of the line before `text`.
    pub skipped: usize,
    /// Characters to underline.
    pub width: usize,
}

/// Everything that is wrong with a file, in its order. As text, it goes behind `error: `, as every message does; the second
/// and later errors bring that word themselves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpecErrors(pub Vec<SpecError>);

impl SpecErrors {
    /// The first error in one line that begins with its place.
    pub fn message(&self) -> String {
        self.0.first().map(SpecError::line).unwrap_or_default()
    }

    /// The text that the first error points at, and the other errors, one line each.
    pub fn details(&self) -> Vec<String> {
        let excerpt = self.0.first().into_iter().flat_map(SpecError::excerpt);
        excerpt.chain(self.0.iter().skip(1).map(SpecError::line)).collect()
    }

    /// How to mend the first error.
    pub fn hint(&self) -> Option<String> {
        self.0.first().and_then(|error| error.hint.clone())
    }
}

impl std::error::Error for SpecErrors {}

impl fmt::Display for SpecErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, error) in self.0.iter().enumerate() {
            if n > 0 {
                write!(f, "\n\nerror: ")?;
            }
            error.fmt(f)?;
        }
        Ok(())
    }
}

impl SpecError {
    fn line(&self) -> String {
        format!("{}:{}:{}: {}", self.file, self.line, self.column, self.message)
    }

    /// The line, and below it what is meant, underlined.
    fn excerpt(&self) -> [String; 2] {
        let number = self.line.to_string();
        let margin = " ".repeat(number.len());
        let under =
            format!("{}{}", " ".repeat(self.column - 1 - self.skipped), "^".repeat(self.width.max(1)));
        [format!("{number} | {}", self.text), format!("{margin} | {under}")]
    }
}

impl fmt::Display for SpecError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let margin = " ".repeat(self.line.to_string().len());
        let [text, under] = self.excerpt();
        writeln!(f, "{}", self.message)?;
        writeln!(f, "{margin}--> {}:{}:{}", self.file, self.line, self.column)?;
        writeln!(f, "{margin} |")?;
        writeln!(f, "{text}")?;
        write!(f, "{under}")?;
        if let Some(hint) = &self.hint {
            write!(f, "\nhint: {hint}")?;
        }
        Ok(())
    }
}

/// Collects errors and knows the text they are in.
pub(crate) struct Sink<'t> {
    pub(crate) file: &'t str,
    pub(crate) text: &'t str,
    pub(crate) errors: Vec<SpecError>,
}

/// Errors reported of one file; a file with more has another problem.
const ERRORS_MAX: usize = 20;
/// Characters of a line that are shown, and of them those before the place.
const SHOWN_CHARS_MAX: usize = 160;
const BEFORE_CHARS_MAX: usize = 60;
/// Characters of a message or a hint.
const MESSAGE_CHARS_MAX: usize = 1000;

/// A text for a terminal: bounded, and nothing in it steers one.
fn plain(text: &str) -> String {
    let chars = text.chars().take(MESSAGE_CHARS_MAX);
    let escaped =
        |c: char| if c.is_control() && c != '\n' { c.escape_default().to_string() } else { c.into() };
    chars.map(escaped).collect()
}

impl Sink<'_> {
    pub(crate) fn push(&mut self, span: Range<usize>, message: impl Into<String>, hint: Option<String>) {
        if self.errors.len() >= ERRORS_MAX {
            return;
        }
        let mut start = span.start.min(self.text.len());
        while !self.text.is_char_boundary(start) {
            start -= 1;
        }
        let line_start = self.text[..start].rfind('\n').map_or(0, |n| n + 1);
        let line_end = self.text[start..].find('\n').map_or(self.text.len(), |n| start + n);
        let mut end = span.end.clamp(start, line_end);
        while !self.text.is_char_boundary(end) {
            end -= 1;
        }
        let column = self.text[line_start..start].chars().count() + 1;
        let line = self.text[line_start..line_end].trim_end();
        let is_long = line.chars().nth(SHOWN_CHARS_MAX).is_some();
        let skipped = if is_long { (column - 1).saturating_sub(BEFORE_CHARS_MAX) } else { 0 };
        let shown = line.chars().skip(skipped).take(SHOWN_CHARS_MAX);
        let text: String = shown.map(|c| if c.is_control() { ' ' } else { c }).collect();
        let room = (SHOWN_CHARS_MAX + skipped + 1).saturating_sub(column).max(1);
        let error = SpecError {
            message: plain(&message.into()),
            hint: hint.map(|hint| plain(&hint)),
            file: self.file.to_owned(),
            line: self.text[..line_start].matches('\n').count() + 1,
            column,
            text,
            skipped,
            width: self.text[start..end.max(start)].chars().take(room).count().max(1),
        };
        // What an environment inherits is read again with it; its errors are reported once.
        if !self.errors.contains(&error) {
            self.errors.push(error);
        }
    }
}

/// The nearest of `known`, if it is near enough to be meant.
pub(crate) fn did_you_mean(word: &str, known: &[&str]) -> Option<String> {
    let best = known.iter().map(|k| (distance(word, k), k)).min()?;
    (best.0 <= 1 + word.len() / 4).then(|| format!("did you mean `{}`?", best.1))
}

fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().take(64).enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let cost = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = cost.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}
