//! Passwords and tokens: what is known by its prefix, what is known by the name of its file, and passwords in URLs.
//!
//! Near no false alarm is wanted: placeholders of manuals (`changeme`, `${TOKEN}`, the same letter all over) are passed
//! over, and so is everything that only may be a password.

use crate::tree::{join, name, parent};

/// A token that is known by its prefix.
pub(super) struct Token {
    /// How it begins.
    pub prefix: &'static str,
    /// What it is.
    pub why: &'static str,
    /// What follows.
    rest: Rest,
}

/// What follows the prefix of a token.
enum Rest {
    /// Letters and digits; at least so many.
    Word(usize),
    /// The same, `-`, `_` and `.` as well.
    Wide(usize),
    /// The id of a key of AWS: 16 characters, and its secret nearby.
    Aws,
    /// `USER:PASSWORD@HOST` in a configuration file.
    Url,
}

const fn token(prefix: &'static str, why: &'static str, rest: Rest) -> Token {
    Token { prefix, why, rest }
}

const GITHUB: &str = "a token of GitHub";
const GITLAB: &str = "a token of GitLab";
const SLACK: &str = "a token of Slack";
const STRIPE: &str = "a secret key of Stripe";
const AWS: &str = "an access key of AWS with its secret";

/// All of them, with the shapes that their issuers document.
pub(super) const TOKENS: &[Token] = &[
    token("ghp_", GITHUB, Rest::Word(36)),
    token("gho_", GITHUB, Rest::Word(36)),
    token("ghu_", GITHUB, Rest::Word(36)),
    token("ghs_", GITHUB, Rest::Word(36)),
    token("ghr_", GITHUB, Rest::Word(36)),
    token("github_pat_", GITHUB, Rest::Wide(60)),
    token("glpat-", GITLAB, Rest::Wide(20)),
    token("gldt-", GITLAB, Rest::Wide(20)),
    token("glrt-", GITLAB, Rest::Wide(20)),
    token("glptt-", GITLAB, Rest::Wide(40)),
    token("xoxa-", SLACK, Rest::Wide(24)),
    token("xoxb-", SLACK, Rest::Wide(24)),
    token("xoxp-", SLACK, Rest::Wide(24)),
    token("xoxr-", SLACK, Rest::Wide(24)),
    token("xoxs-", SLACK, Rest::Wide(24)),
    token("sk_live_", STRIPE, Rest::Word(24)),
    token("rk_live_", STRIPE, Rest::Word(24)),
    token("SG.", "a key of SendGrid", Rest::Wide(60)),
    token("npm_", "a token of npm", Rest::Word(36)),
    token("pypi-AgEIcHlwaS5vcmc", "a token of PyPI", Rest::Wide(50)),
    token("dop_v1_", "a token of DigitalOcean", Rest::Word(64)),
    token("dckr_pat_", "a token of Docker Hub", Rest::Wide(27)),
    token("hvs.", "a token of Vault", Rest::Wide(80)),
    token("shpat_", "a token of Shopify", Rest::Word(32)),
    token("AKIA", AWS, Rest::Aws),
    token("ASIA", AWS, Rest::Aws),
    token("://", "a password in a URL", Rest::Url),
];

/// Characters of the secret of a key of AWS.
const AWS_SECRET_CHARS: usize = 40;
/// How far from the id the secret may be, in bytes.
const AWS_NEAR_BYTES: usize = 400;
/// Different characters that a token has at least: `ghp_xxxxxxxx` has one.
const DIFFERENT_MIN: usize = 9;
/// Bytes of the part of a URL before its host.
const USER_BYTES_MAX: usize = 300;
/// Endings of configuration files. Elsewhere a URL with a password is most often an example.
const CONFIGURATION: &[&[u8]] = &[
    b"conf",
    b"cfg",
    b"cnf",
    b"config",
    b"ini",
    b"toml",
    b"yaml",
    b"yml",
    b"json",
    b"env",
    b"properties",
    b"xml",
    b"service",
    b"list",
    b"sources",
];
/// What stands for a password in manuals and templates.
const PLACEHOLDERS: &[&str] = &[
    "password",
    "passwd",
    "pass",
    "pwd",
    "pw",
    "secret",
    "changeme",
    "change-me",
    "token",
    "example",
    "yourpassword",
    "your-password",
    "your_password",
    "mypassword",
    "username",
    "user",
    "placeholder",
    "redacted",
    "none",
    "null",
    "test",
    "x-oauth-basic",
    "foo",
    "bar",
    "dummy",
    "api_key",
    "apikey",
    "key",
    "basic",
];

impl Token {
    /// Where the token is whose prefix stands at `at` of a text; none if it is only a word.
    pub fn at(&self, path: &[u8], text: &[u8], at: usize) -> Option<usize> {
        let after = &text[at + self.prefix.len()..];
        let fits = match self.rest {
            Rest::Url => is_configuration(path) && url(after),
            Rest::Aws => starts_word(text, at) && aws(text, at),
            Rest::Word(least) => starts_word(text, at) && is_random(after, least, b""),
            Rest::Wide(least) => starts_word(text, at) && is_random(after, least, b"-_."),
        };
        fits.then_some(at)
    }
}

fn starts_word(text: &[u8], at: usize) -> bool {
    at.checked_sub(1)
        .is_none_or(|before| !text[before].is_ascii_alphanumeric() && !b"_-".contains(&text[before]))
}

/// Whether at least `least` characters of a token begin here, as a machine makes them.
fn is_random(after: &[u8], least: usize, more: &[u8]) -> bool {
    let length = after.iter().take(400).take_while(|b| b.is_ascii_alphanumeric() || more.contains(b)).count();
    let token = &after[..length];
    length >= least
        && different(token) >= DIFFERENT_MIN
        && token.iter().any(u8::is_ascii_digit)
        && !is_example(token)
}

fn different(text: &[u8]) -> usize {
    let mut seen = [false; 256];
    text.iter().for_each(|b| seen[usize::from(*b)] = true);
    seen.iter().filter(|seen| **seen).count()
}

fn is_example(text: &[u8]) -> bool {
    let lower = text.to_ascii_lowercase();
    [&b"example"[..], b"xxxx", b"1234567890", b"abcdefgh", b"00000000"]
        .iter()
        .any(|word| lower.windows(word.len()).any(|window| window == *word))
}

/// The id of a key with its secret nearby. The id alone is no secret.
fn aws(text: &[u8], at: usize) -> bool {
    let id = &text[at..text.len().min(at + 20)];
    let ends = text.get(at + 20).is_none_or(|b| !b.is_ascii_alphanumeric());
    let legal = id.iter().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit());
    if id.len() < 20 || !ends || !legal || is_example(id) {
        return false;
    }
    let near = &text[at.saturating_sub(AWS_NEAR_BYTES)..text.len().min(at + AWS_NEAR_BYTES)];
    let is_secret = |b: &u8| b.is_ascii_alphanumeric() || b"/+".contains(b);
    let words = near.split(|b| !is_secret(b)).filter(|word| word.len() == AWS_SECRET_CHARS);
    let mut secrets = words.filter(|word| {
        let mixed = word.iter().any(u8::is_ascii_lowercase) && word.iter().any(u8::is_ascii_uppercase);
        // Without capitals it would be a checksum.
        mixed && different(word) >= 2 * DIFFERENT_MIN && !is_example(word)
    });
    secrets.next().is_some()
}

fn is_configuration(path: &[u8]) -> bool {
    let file = name(path);
    let ending = file.rsplit(|b| *b == b'.').next().unwrap_or_default();
    path.starts_with(b"etc/") || file.starts_with(b".env") || CONFIGURATION.contains(&ending)
}

/// Whether what follows `://` is a user with a password.
fn url(after: &[u8]) -> bool {
    let stop = |b: &u8| b.is_ascii_whitespace() || b"/?#\"'`<>()[]{}\\|,;".contains(b);
    let end = after.iter().take(USER_BYTES_MAX).position(stop).unwrap_or(after.len().min(USER_BYTES_MAX));
    let authority = &after[..end];
    let Some(at) = authority.iter().rposition(|b| *b == b'@') else { return false };
    let (user, host) = (&authority[..at], &authority[at + 1..]);
    let Some(colon) = user.iter().position(|b| *b == b':') else { return false };
    let host = host.split(|b| *b == b':').next().unwrap_or_default();
    let is_example = [&b"example"[..], b"example.com", b"example.org", b"example.net"].contains(&host)
        || [&b".example"[..], b".example.com", b".example.org", b".example.net", b".invalid"]
            .iter()
            .any(|end| host.ends_with(end));
    host.first().is_some_and(u8::is_ascii_alphanumeric) && !is_example && is_password(&user[colon + 1..])
}

/// Whether a value is a password rather than a word that stands for one, or a variable.
fn is_password(value: &[u8]) -> bool {
    let lower = value.to_ascii_lowercase();
    let is_variable = value.iter().any(|b| b"$%{}<>*".contains(b)) && !is_percent_encoded(value);
    value.len() >= 4
        && different(value) >= 3
        && !is_variable
        && !PLACEHOLDERS.iter().any(|word| word.as_bytes() == lower)
}

fn is_percent_encoded(value: &[u8]) -> bool {
    let others = value.iter().any(|b| b"${}<>*".contains(b));
    let escape = |part: &[u8]| part.len() >= 2 && part[..2].iter().all(u8::is_ascii_hexdigit);
    !others && value.split(|b| *b == b'%').skip(1).all(escape)
}

/// Secrets in a file whose name says what it holds: where, and what.
pub(super) fn named_file(path: &[u8], bytes: &[u8]) -> Option<(Option<usize>, &'static str)> {
    let folder = parent(path).map(name).unwrap_or_default();
    let kept = join(folder, name(path));
    match name(path) {
        b".netrc" | b"_netrc" => words(bytes, b"password").map(|at| (Some(at), "a password for a host")),
        b".pgpass" => lines(bytes, |line| {
            let fields: Vec<&[u8]> = line.splitn(5, |b| *b == b':').collect();
            !line.starts_with(b"#") && fields.len() == 5 && is_value(fields[4])
        })
        .map(|at| (Some(at), "a password of PostgreSQL")),
        b".git-credentials" => lines(bytes, |line| {
            let after = line.windows(3).position(|window| window == b"://").map(|at| &line[at + 3..]);
            after.is_some_and(|after| after.contains(&b'@') && after.contains(&b':'))
        })
        .map(|at| (Some(at), "a password of git")),
        b".dockercfg" | b"config.json" | b"auth.json"
            if name(path) == b".dockercfg"
                || kept.starts_with(b".docker/")
                || kept.starts_with(b"containers/") =>
        {
            registry(bytes).then_some((None, "a password of a registry"))
        }
        b".npmrc" | b"npmrc" => lines(bytes, |line| {
            [&b"_authToken"[..], b"_auth", b"_password"]
                .iter()
                .any(|key| setting(line, key).is_some_and(is_value))
        })
        .map(|at| (Some(at), "a token of npm")),
        b".pypirc" => lines(bytes, |line| setting(line, b"password").is_some_and(is_value))
            .map(|at| (Some(at), "a password of PyPI")),
        b".my.cnf" => lines(bytes, |line| setting(line, b"password").is_some_and(is_value))
            .map(|at| (Some(at), "a password of MySQL")),
        b"credentials" if folder == b".aws" => {
            lines(bytes, |line| setting(line, b"aws_secret_access_key").is_some_and(is_value))
                .map(|at| (Some(at), "a secret access key of AWS"))
        }
        _ => None,
    }
}

/// The value of `KEY = VALUE`, where the key may have a scope before it, as in `//host/:_authToken=…`.
fn setting<'a>(line: &'a [u8], key: &[u8]) -> Option<&'a [u8]> {
    let line = line.trim_ascii();
    if matches!(line.first(), Some(b'#' | b';')) {
        return None;
    }
    let equals = line.iter().position(|b| *b == b'=')?;
    let found = line[..equals].trim_ascii_end();
    let scope = found.strip_suffix(key)?;
    (scope.is_empty() || scope.ends_with(b":")).then(|| line[equals + 1..].trim_ascii())
}

/// Whether a value is there, and no variable.
fn is_value(value: &[u8]) -> bool {
    let value = value.trim_ascii();
    let value = value.strip_prefix(b"\"").and_then(|v| v.strip_suffix(b"\"")).unwrap_or(value);
    !value.is_empty() && !value.starts_with(b"$") && !value.starts_with(b"<") && !value.contains(&b'{')
}

/// Where the first line is of which `is` holds.
fn lines(bytes: &[u8], is: impl Fn(&[u8]) -> bool) -> Option<usize> {
    let mut at = 0;
    for line in bytes.split(|b| *b == b'\n') {
        if is(line) {
            return Some(at);
        }
        at += line.len() + 1;
    }
    None
}

/// Where a word stands that has a value after it, as in `machine h login l password p`.
fn words(bytes: &[u8], key: &[u8]) -> Option<usize> {
    let starts = (0..bytes.len()).filter(|n| !bytes[*n].is_ascii_whitespace());
    let mut starts =
        starts.filter(|n| n.checked_sub(1).is_none_or(|before| bytes[before].is_ascii_whitespace()));
    starts.find(|n| {
        let after =
            bytes[*n..].strip_prefix(key).filter(|rest| rest.first().is_some_and(u8::is_ascii_whitespace));
        after.is_some_and(|after| is_value(after.split(|b| *b == b'\n').next().unwrap_or_default()))
    })
}

/// Whether a configuration of a registry's client has a login.
fn registry(bytes: &[u8]) -> bool {
    let Ok(document) = serde_json::from_slice::<serde_json::Value>(bytes) else { return false };
    let hosts = document.get("auths").unwrap_or(&document).as_object();
    let has = |host: &serde_json::Value, key: &str| {
        host.get(key).and_then(|v| v.as_str()).is_some_and(|v| !v.is_empty())
    };
    let keys = ["auth", "identitytoken", "registrytoken", "password"];
    hosts.is_some_and(|hosts| hosts.values().any(|host| keys.iter().any(|key| has(host, key))))
}

/// Accounts that a password, or none, lets in: their lines in `/etc/shadow` and its like.
pub(super) fn accounts(path: &[u8], bytes: &[u8]) -> Vec<(usize, &'static str)> {
    let is_passwd = path == b"etc/passwd";
    let why = |line: &[u8]| -> Option<&'static str> {
        let mut fields = line.split(|b| *b == b':');
        let (account, hash) = (fields.next()?, fields.next()?);
        match hash {
            _ if account.is_empty() || account.starts_with(b"#") => None,
            // A group without a password is one that nobody enters by one.
            b"" if path == b"etc/gshadow" => None,
            b"" => Some("an account without a password"),
            b"x" if is_passwd => None,
            // A bar in front of a hash locks it, but it can still be guessed.
            hash if is_hash(hash.strip_prefix(b"!").unwrap_or(hash)) => Some("the hash of a password"),
            _ => None,
        }
    };
    let rows = bytes.split(|b| *b == b'\n').enumerate();
    rows.filter_map(|(n, line)| Some((n + 1, why(line)?))).collect()
}

/// A hash of crypt(5): `$ID$…`, or 13 characters of the old DES.
fn is_hash(field: &[u8]) -> bool {
    let legal = field.iter().all(|b| b.is_ascii_alphanumeric() || b"./$=,_".contains(b));
    let modern = field.len() > 20 && field[0] == b'$' && field[1..].contains(&b'$');
    legal && (modern || (field.len() == 13 && !field.contains(&b'$')))
}
