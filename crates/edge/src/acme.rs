//! Proofs for ACME clients (RFC 8555, section 8.3, `http-01`): what such a client puts into `DIR/acme` as into the root of a web
//! server, the edge hands out. Getting certificates is the client's part; the edge finds them in its folder.

use crate::limits::CHALLENGE_BYTES_MAX;
use bytes::Bytes;
use rustix::fs::OFlags;
use std::fs::OpenOptions;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Where an authority asks, and where clients put it.
const PREFIX: &str = "/.well-known/acme-challenge/";
/// Longer than any token (RFC 8555, section 8.3, asks for 128 bits at least).
const TOKEN_BYTES_MAX: usize = 128;

/// The proof that `path` asks for; none if it asks for none, or nobody put it there: then it is a request like all others.
pub(crate) fn proof(dir: &Path, path: &str) -> Option<Bytes> {
    let token = path.strip_prefix(PREFIX)?;
    let legal = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
    if token.is_empty() || token.len() > TOKEN_BYTES_MAX || !token.bytes().all(legal) {
        return None;
    }
    let file = dir.join("acme").join(PREFIX.trim_start_matches('/')).join(token);
    // A link could lead to what nobody may see, and a pipe must not hold the thread up.
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits() as i32;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(file).ok()?;
    let mut bytes = vec![];
    file.take(CHALLENGE_BYTES_MAX).read_to_end(&mut bytes).ok()?;
    Some(bytes.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn only_what_lies_in_the_folder_is_handed_out() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("acme/.well-known/acme-challenge");
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("to-ken_1"), "proof").unwrap();
        fs::write(dir.path().join("secret"), "secret").unwrap();
        std::os::unix::fs::symlink(dir.path().join("secret"), folder.join("link")).unwrap();
        let ask = |path: &str| proof(dir.path(), path);
        assert_eq!(ask("/.well-known/acme-challenge/to-ken_1"), Some(Bytes::from_static(b"proof")));
        for nothing in
            ["link", "", ".", "..", "../../../secret", "%2e%2e", "other", &"a".repeat(200), "to-ken_1/"]
        {
            assert_eq!(ask(&format!("/.well-known/acme-challenge/{nothing}")), None, "{nothing}");
        }
        assert_eq!(ask("/to-ken_1"), None);
    }
}
