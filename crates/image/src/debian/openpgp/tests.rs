//! Against keys and signatures that GnuPG made.

use super::*;
use std::process::{Command, Stdio};

/// A key of GnuPG in a folder of its own.
pub(crate) struct Gpg {
    home: tempfile::TempDir,
}

/// When the tests' keys are made and sign, unless a test says otherwise.
pub(crate) const NOW: i64 = 1_790_000_000;
const DAY: i64 = 86_400;

impl Gpg {
    /// Makes a key. `algorithm` and `usage` as `gpg --quick-gen-key` takes them.
    pub(crate) fn new(algorithm: &str, expire: &str) -> Self {
        let gpg = Self { home: tempfile::tempdir().unwrap() };
        gpg.run(NOW, &["--quick-gen-key", "Tests <tests@kiln.test>", algorithm, "sign,cert", expire], "");
        gpg
    }

    pub(crate) fn run(&self, time: i64, arguments: &[&str], input: &str) -> Vec<u8> {
        let mut command = Command::new("gpg");
        command.arg("--homedir").arg(self.home.path()).args(["--batch", "--quiet", "--no-tty", "--yes"]);
        command.args(["--pinentry-mode", "loopback", "--passphrase", "", "--allow-weak-digest-algos"]);
        command.arg("--faked-system-time").arg(format!("{time}!")).args(arguments);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("gpg is a test tool: `.ci/install` installs it");
        std::io::Write::write_all(&mut child.stdin.take().unwrap(), input.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    }

    pub(crate) fn keyring(&self) -> Keyring {
        Keyring::parse(&self.run(NOW, &["--export"], "")).unwrap()
    }

    pub(crate) fn sign(&self, text: &str, more: &[&str]) -> String {
        self.sign_at(NOW, text, more)
    }

    fn sign_at(&self, time: i64, text: &str, more: &[&str]) -> String {
        let signed = self.run(time, &[more, &["--clearsign"]].concat(), text);
        String::from_utf8(signed).unwrap()
    }
}

impl Drop for Gpg {
    fn drop(&mut self) {
        // The agent would notice that its folder is gone, but only some time later.
        let _ =
            Command::new("gpgconf").arg("--homedir").arg(self.home.path()).args(["--kill", "all"]).status();
    }
}

const TEXT_OF_TEST: &str = "Origin: kiln\n- a dash\n-----BEGIN\nspaces at the end  \t\n\nlast\n";
const AS_READ: &str = "Origin: kiln\n- a dash\n-----BEGIN\nspaces at the end\n\nlast";

#[test]
fn the_compiled_in_keys_are_debian_s() {
    let keyring = Keyring::debian();
    let mut keys: Vec<String> = keyring.keys().map(|(key, owner)| format!("{key} {owner}")).collect();
    keys.sort();
    let archive = |n: &str| format!("Debian Archive Automatic Signing Key ({n}) <ftpmaster@debian.org>");
    let security =
        |n: &str| format!("Debian Security Archive Automatic Signing Key ({n}) <ftpmaster@debian.org>");
    let stable = |n: &str| format!("Debian Stable Release Key ({n}) <debian-release@lists.debian.org>");
    let (b11, b12, b13) = ("11/bullseye", "12/bookworm", "13/trixie");
    let mut expected = vec![
        format!("1F89983E0081FDE018F3CC9673A4F27B8DD47936 {}", archive(b11)),
        format!("A7236886F3CCCAAD148A27F80E98404D386FA1D9 {}", archive(b11)),
        format!("AC530D520F2F3269F5E98313A48449044AAD5C5D {}", security(b11)),
        format!("ED541312A33F1128F10B1C6C54404762BBB6E853 {}", security(b11)),
        format!("A4285295FC7B1A81600062A9605C66F00D6C9793 {}", stable(b11)),
        format!("B8B80B5B623EAB6AD8775C45B7C5D7D6350947F8 {}", archive(b12)),
        format!("4CB50190207B4758A3F73A796ED0E7B82643E131 {}", archive(b12)),
        format!("05AB90340C0C5E797F44A8C8254CF3B5AEC0A8F0 {}", security(b12)),
        format!("B0CAB9266E8C3929798B3EEEBDE6D2B9216EC7A8 {}", security(b12)),
        format!("4D64FEC119C2029067D6E791F8D2585B8783D481 {}", stable(b12)),
        format!("04B54C3CDCA79751B16BC6B5225629DF75B188BD {}", archive(b13)),
        format!("B8E5F13176D2A7A75220028078DBA3BC47EF2265 {}", archive(b13)),
        format!("5E04A1E3223A19A20706E20F9904613D4CCE68C6 {}", security(b13)),
        format!("89C87ACEA5DD6B8E6A7068808E9F831205B4BA95 {}", security(b13)),
        format!("41587F7DB8C774BCCF131416762F67A0B2C39DE4 {}", stable(b13)),
    ];
    expected.sort();
    assert_eq!(keys, expected);
    assert!(keyring.keys.iter().all(|key| key.expires.is_some() && !key.is_revoked));
}

#[test]
fn what_gnupg_signs_is_read_and_every_changed_byte_is_seen() {
    let stranger = Gpg::new("ed25519", "0").keyring();
    for (algorithm, hash) in [("rsa3072", "SHA512"), ("ed25519", "SHA256"), ("ed25519", "SHA384")] {
        let gpg = Gpg::new(algorithm, "0");
        let (keyring, signed) = (gpg.keyring(), gpg.sign(TEXT_OF_TEST, &["--digest-algo", hash]));
        assert_eq!(keyring.verify(&signed, Some(NOW)).unwrap(), AS_READ, "{algorithm} {hash}");
        assert!(matches!(stranger.verify(&signed, None), Err(SignatureError::Untrusted { .. })));
        let changed = signed.replacen("kiln", "kilm", 1);
        assert!(matches!(keyring.verify(&changed, None), Err(SignatureError::Wrong { .. })));
        // Also through the armoured form.
        let armoured = gpg.run(NOW, &["--armor", "--export"], "");
        assert!(Keyring::parse(&armoured).unwrap().verify(&signed, None).is_ok());
        // Whatever byte is changed, the answer is an error or the same text.
        for at in (0..signed.len()).step_by(7) {
            for bit in [1, 32] {
                let mut bytes = signed.clone().into_bytes();
                bytes[at] ^= bit;
                if let Ok(text) = keyring.verify(&String::from_utf8_lossy(&bytes), None) {
                    assert_eq!(text, AS_READ, "byte {at}");
                }
            }
        }
    }
}

#[test]
fn a_signature_of_another_text_or_garbage_is_refused() {
    let gpg = Gpg::new("ed25519", "0");
    let keyring = gpg.keyring();
    let (one, other) = (gpg.sign("Suite: one\n", &[]), gpg.sign("Suite: other\n", &[]));
    let at = |text: &str| text.find("-----BEGIN PGP SIGNATURE").unwrap();
    let swapped = format!("{}{}", &one[..at(&one)], &other[at(&other)..]);
    assert!(matches!(keyring.verify(&swapped, None), Err(SignatureError::Wrong { .. })));
    let garbage = format!(
        "{}-----BEGIN PGP SIGNATURE-----\n\n{}\n-----END PGP SIGNATURE-----\n",
        &one[..at(&one)],
        "Z2FyYmFnZQ"
    );
    assert!(matches!(keyring.verify(&garbage, None), Err(SignatureError::Malformed(_))));
    assert!(matches!(keyring.verify("Suite: one\n", None), Err(SignatureError::NotSigned)));
    assert!(matches!(keyring.verify(&one[..at(&one)], None), Err(SignatureError::NotSigned)));
    // A text in front of or behind the signed one, or in a header, is under no signature.
    let before = format!("Suite: evil\n{one}");
    let behind = format!("{one}\nSuite: evil\n");
    let header = one.replacen("Hash: ", "Suite: evil\nHash: ", 1);
    let second =
        one.replacen("Suite: one", "Suite: one\n-----BEGIN PGP SIGNED MESSAGE-----\n\nSuite: evil", 1);
    for text in [before, behind, header, second] {
        assert!(keyring.verify(&text, None).is_err(), "{text}");
    }
    // Two signatures, one of a stranger: the known one counts.
    let stranger = Gpg::new("ed25519", "0");
    let foreign = stranger.sign("Suite: one\n", &[]);
    assert!(matches!(keyring.verify(&foreign, None), Err(SignatureError::Untrusted { .. })));
    let body = |text: &str| armoured(&text[at(text)..], "SIGNATURE").unwrap().0;
    let both = [body(&foreign), body(&one)].concat();
    let both = base64(&both);
    let both =
        format!("{}-----BEGIN PGP SIGNATURE-----\n\n{both}\n-----END PGP SIGNATURE-----\n", &one[..at(&one)]);
    assert_eq!(keyring.verify(&both, None).unwrap(), "Suite: one");
}

#[test]
fn weak_hashes_and_keys_past_their_time_do_not_count() {
    let gpg = Gpg::new("rsa3072", "10d");
    let keyring = gpg.keyring();
    let why = |signed: &str, now| match keyring.verify(signed, now) {
        Err(SignatureError::Void { why, .. }) => why,
        other => panic!("{other:?}"),
    };
    let sha1 = gpg.sign("x\n", &["--digest-algo", "SHA1"]);
    assert!(why(&sha1, None).contains("hash"), "{}", why(&sha1, None));
    // A line that claims a better one changes nothing.
    assert!(why(&sha1.replace("Hash: SHA1", "Hash: SHA512"), None).contains("hash"));
    let signed = gpg.sign("x\n", &[]);
    assert!(keyring.verify(&signed, Some(NOW + 9 * DAY)).is_ok());
    assert_eq!(why(&signed, Some(NOW + 11 * DAY)), "the key has expired");
    assert!(keyring.verify(&signed, None).is_ok(), "a frozen mirror: the key was valid when it signed");
    assert!(why(&signed, Some(NOW - 3 * DAY)).contains("future"));
    let short = gpg.sign("x\n", &["--default-sig-expire", "2d"]);
    assert!(keyring.verify(&short, Some(NOW + DAY)).is_ok());
    assert_eq!(why(&short, Some(NOW + 3 * DAY)), "it has expired");
}

#[test]
fn subkeys_sign_only_if_they_may_and_revoked_keys_do_not() {
    let gpg = Gpg { home: tempfile::tempdir().unwrap() };
    gpg.run(NOW, &["--quick-gen-key", "Tests <tests@kiln.test>", "ed25519", "cert", "0"], "");
    assert!(matches!(Keyring::parse(&gpg.run(NOW, &["--export"], "")), Err(KeyringError::NoKey)));
    let list = gpg.run(NOW, &["--with-colons", "--list-keys"], "");
    let list = String::from_utf8(list).unwrap();
    let fingerprint = list.lines().find_map(|line| line.strip_prefix("fpr:")).unwrap();
    let fingerprint = fingerprint.trim_matches(':').to_owned();
    gpg.run(NOW, &["--quick-add-key", &fingerprint, "ed25519", "sign", "0"], "");
    let keyring = gpg.keyring();
    assert_eq!(keyring.keys().count(), 1);
    let signed = gpg.sign("x\n", &[]);
    assert!(keyring.verify(&signed, None).is_ok());
    // The certificate that GnuPG writes at birth for the day when the key is lost; a colon keeps it from being used by
    // accident.
    let path = gpg.home.path().join(format!("openpgp-revocs.d/{fingerprint}.rev"));
    let certificate = std::fs::read_to_string(path).unwrap().replace(":-----BEGIN", "-----BEGIN");
    let before = gpg.run(NOW, &["--export"], "");
    gpg.run(NOW, &["--import"], &certificate);
    let error = gpg.keyring().verify(&signed, None).unwrap_err();
    assert!(error.to_string().contains("revoked"), "{error}");
    // Also if an older copy of the key stands beside it.
    let after = gpg.run(NOW, &["--export"], "");
    for keyring in [[&before[..], &after].concat(), [&after[..], &before].concat()] {
        let error = Keyring::parse(&keyring).unwrap().verify(&signed, None).unwrap_err();
        assert!(error.to_string().contains("revoked"), "{error}");
    }
}

#[test]
fn other_files_are_no_keyrings() {
    assert!(matches!(Keyring::parse(b""), Err(KeyringError::NoKey)));
    assert!(matches!(Keyring::parse(b"hello"), Err(KeyringError::Malformed(_))));
    assert!(matches!(Keyring::parse(b"\0\0\0\x20\x01\x01\0\x02KBXf\0\0\0\0"), Err(KeyringError::Keybox)));
    let mut cut = DEBIAN.to_vec();
    cut.truncate(1000);
    assert!(matches!(Keyring::parse(&cut), Err(KeyringError::Malformed(_))));
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let bits =
            chunk.iter().fold(0_u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
        for n in 0..=chunk.len() {
            text.push(DIGITS[(bits >> (18 - 6 * n)) as usize & 63] as char);
        }
    }
    text
}
