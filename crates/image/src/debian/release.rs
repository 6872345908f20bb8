//! Whether an `InRelease` is to be believed: who signed it, whether it is of the suite that was asked for, and whether it
//! is still valid. Without the last two, a mirror could answer with another signed file: an old one without the latest
//! security updates, or the one of another release.

use super::openpgp::{Keyring, SignatureError};

/// An `InRelease` is not to be believed.
#[derive(Debug, thiserror::Error)]
pub enum ReleaseError {
    /// It is not text.
    #[error("it is not text")]
    NotText,
    /// Nobody who is trusted signed it.
    #[error("it has no good signature")]
    Signature(#[source] SignatureError),
    /// It is of another suite.
    #[error("it is of the suite `{found}`")]
    OtherSuite {
        /// What it says.
        found: String,
    },
    /// Its time has passed.
    #[error("it was valid until {until}")]
    Expired {
        /// As it says.
        until: String,
    },
    /// A date that cannot be read.
    #[error("its `Valid-Until` is no date: `{text}`")]
    Date {
        /// As it says.
        text: String,
    },
}

impl ReleaseError {
    /// What the user can do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Signature(SignatureError::Untrusted { .. } | SignatureError::NotSigned) => {
                "kiln trusts Debian's archive keys; for a private archive give its public keys with `--keyring FILE`"
            }
            Self::Expired { .. } => {
                "the mirror is stale, or somebody holds updates back: name another with `--mirror`, and check the clock of \
                 this host"
            }
            Self::OtherSuite { .. } => {
                "the mirror answers with another release: name another with `--mirror`"
            }
            _ => "the mirror is damaged or not to be trusted: name another with `--mirror`",
        }
    }
}

/// Seconds since 1970.
pub(super) fn now() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |since| i64::try_from(since.as_secs()).unwrap_or(i64::MAX))
}

/// Verifies an `InRelease` and answers with the text that is signed. Without `now` its age does not matter.
///
/// # Errors
/// [`ReleaseError`]: then nothing of it may be believed.
pub fn verify(
    suite: &str,
    in_release: &[u8],
    keyring: &Keyring,
    now: Option<i64>,
) -> Result<String, ReleaseError> {
    let text = std::str::from_utf8(in_release).map_err(|_| ReleaseError::NotText)?;
    let signed = keyring.verify(text, now).map_err(ReleaseError::Signature)?;
    let field = |name: &str| {
        let mut lines = signed.lines().take_while(|line| !line.is_empty());
        lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
    };
    // `Suite` of Debian's archives is a word such as `oldstable`, `Codename` is what people and locks write.
    let names = [field("Codename"), field("Suite")];
    if !names.contains(&Some(suite)) {
        let found = names.into_iter().flatten().next().unwrap_or_default().chars().take(100).collect();
        return Err(ReleaseError::OtherSuite { found });
    }
    if let (Some(now), Some(until)) = (now, field("Valid-Until")) {
        let text = || until.chars().take(100).collect();
        let end = date(until).ok_or_else(|| ReleaseError::Date { text: text() })?;
        if end < now {
            return Err(ReleaseError::Expired { until: text() });
        }
    }
    Ok(signed)
}

/// Seconds since 1970 of a date such as `Mon, 30 Nov 2026 11:22:37 UTC`.
fn date(text: &str) -> Option<i64> {
    const MONTHS: [&str; 12] =
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let (_weekday, rest) = text.split_once(',')?;
    let words: Vec<&str> = rest.split_ascii_whitespace().collect();
    let [day, month, year, time, "UTC" | "GMT" | "+0000"] = words[..] else { return None };
    let month = MONTHS.iter().position(|name| *name == month)? as i64 + 1;
    let number = |text: &str, max: i64| text.parse().ok().filter(|n| (0..=max).contains(n));
    let (day, year) = (number(day, 31)?, number(year, 9999)?);
    let mut clock = time.split(':');
    let mut part = |max| number(clock.next()?, max);
    let seconds = part(23)? * 3600 + part(59)? * 60 + part(60)?;
    // Days since 1970-03-01 of the proleptic Gregorian calendar, with years that begin in March.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = year * 365 + year / 4 - year / 100 + year / 400 + (month * 153 + 2) / 5 + day - 719_469;
    Some(days * 86_400 + seconds)
}

#[cfg(test)]
mod tests {
    use super::super::openpgp::tests::{Gpg, NOW};
    use super::*;

    #[test]
    fn dates_are_read() {
        assert_eq!(date("Thu, 01 Jan 1970 00:00:00 UTC"), Some(0));
        assert_eq!(date("Mon, 30 Nov 2026 11:22:37 UTC"), Some(1_796_037_757));
        assert_eq!(date("Thu, 29 Feb 2024 23:59:59 GMT"), Some(1_709_251_199));
        for bad in ["", "Mon, 30 Nov 2026", "Mon, 30 Xxx 2026 11:22:37 UTC", "Mon, 30 Nov 2026 11:22:37 CET"]
        {
            assert_eq!(date(bad), None, "{bad}");
        }
    }

    #[test]
    fn another_suite_and_an_old_file_are_refused() {
        let gpg = Gpg::new("ed25519", "0");
        let keyring = gpg.keyring();
        let text = "Suite: oldstable\nCodename: bookworm\nValid-Until: Mon, 30 Nov 2026 11:22:37 UTC\n";
        let signed = gpg.sign(text, &[]);
        let check = |suite: &str, now| verify(suite, signed.as_bytes(), &keyring, now);
        let until = 1_796_037_757;
        assert_eq!(check("bookworm", Some(until)).unwrap(), text.trim_end());
        assert!(check("oldstable", Some(NOW)).is_ok());
        assert!(matches!(check("bookworm", Some(until + 1)), Err(ReleaseError::Expired { .. })));
        assert!(check("bookworm", None).is_ok(), "a frozen mirror");
        let other = check("trixie", Some(NOW)).unwrap_err();
        assert!(matches!(&other, ReleaseError::OtherSuite { found } if found == "bookworm"), "{other}");
        let debian = verify("bookworm", signed.as_bytes(), &Keyring::debian(), None).unwrap_err();
        assert!(debian.hint().contains("--keyring"), "{debian}");
        // The list of files that follows an empty line is not the head.
        let smuggled = gpg.sign("Suite: x\n\nCodename: bookworm\n", &[]);
        assert!(verify("bookworm", smuggled.as_bytes(), &keyring, None).is_err());
    }
}
