//! A table per lint: what is one, and what only looks like one. No sample is a secret of anybody, and none stands here whole,
//! so that no scanner of this repository stumbles over it.

use super::*;
use crate::tree::Tree;
use kiln_spec::LintKind as L;

const EPOCH: i64 = 1_700_000_000;

fn facts(origin: Origin) -> Facts {
    Facts { origin, newest: EPOCH, host: "build-host-7".into() }
}

fn file(bytes: impl Into<Vec<u8>>) -> Node {
    Node::file(Content::Bytes(bytes.into().into()), 0o644, EPOCH)
}

/// A tree with these nodes and the folders above them.
fn tree(nodes: Vec<(&str, Node)>) -> Tree {
    let mut tree = Tree::new();
    tree.insert(b"", Node::dir(0o755, EPOCH)).unwrap();
    for (path, node) in nodes {
        for (at, _) in path.match_indices('/') {
            if tree.get(&path.as_bytes()[..at]).is_none() {
                tree.insert(&path.as_bytes()[..at], Node::dir(0o755, EPOCH)).unwrap();
            }
        }
        tree.insert(path.as_bytes(), node).unwrap();
    }
    tree
}

fn found(origin: Origin, nodes: Vec<(&str, Node)>) -> Vec<Finding> {
    check(&tree(nodes), &facts(origin)).unwrap().findings
}

fn lints(origin: Origin, path: &str, node: Node) -> Vec<LintKind> {
    found(origin, vec![(path, node)]).into_iter().map(|finding| finding.lint).collect()
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for group in bytes.chunks(3) {
        let word = group.iter().fold(0_u32, |sum, b| sum << 8 | u32::from(*b)) << (8 * (3 - group.len()));
        for n in 0..4 {
            let digit = DIGITS[(word >> (18 - 6 * n)) as usize & 63] as char;
            text.push(if n <= group.len() { digit } else { '=' });
        }
    }
    text
}

/// Bytes that look like chance.
fn chance(n: usize) -> Vec<u8> {
    let mut state = 7_u32;
    let step = |_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    (0..n).map(step).collect()
}

fn letters(n: usize) -> String {
    base64(&chance(2 * n)).chars().filter(char::is_ascii_alphanumeric).take(n).collect()
}

fn der(tag: u8, content: &[u8]) -> Vec<u8> {
    let mut bytes = vec![tag];
    match u8::try_from(content.len()) {
        Ok(length @ 0..=127) => bytes.push(length),
        Ok(length) => bytes.extend([0x81, length]),
        Err(_) => {
            bytes.push(0x82);
            bytes.extend((content.len() as u16).to_be_bytes());
        }
    }
    bytes.extend_from_slice(content);
    bytes
}

fn pkcs8() -> Vec<u8> {
    let octets = der(4, &der(4, &chance(32)));
    der(0x30, &[&[2, 1, 0, 0x30, 5, 6, 3, 0x2B, 0x65, 0x70][..], &octets].concat())
}

fn pkcs1() -> Vec<u8> {
    let number = |n: usize| der(2, &[vec![0], chance(n)].concat());
    der(0x30, &[vec![2, 1, 0], number(256), der(2, &[1, 0, 1]), number(256)].concat())
}

fn pem(label: &str, body: &[u8]) -> String {
    let lines: Vec<String> =
        base64(body).as_bytes().chunks(64).map(|line| String::from_utf8(line.to_vec()).unwrap()).collect();
    format!("-----{} {label}-----\n{}\n-----END {label}-----\n", "BEGIN", lines.join("\n"))
}

fn openssh() -> Vec<u8> {
    [&b"openssh-key-v1\0\0\0\0\x04none"[..], &chance(200)].concat()
}

#[test]
fn private_keys_are_found_wherever_they_are() {
    let key = pem("PRIVATE KEY", &pkcs8());
    let mut elf = b"\x7fELF\0\0\0".to_vec();
    elf.extend(chance(5000));
    elf.extend(key.as_bytes());
    let packet = |head: &[u8], body: &[u8]| [head, body, &[0xB4, 3, b'a', b'b', b'c']].concat();
    let body = [&[4, 0x60, 0, 0, 0, 1][..], &chance(94)].concat();
    let putty = |end: &str| format!("PuTTY-User-Key-File-3: ssh-ed25519\nEncryption: none\n{end}");
    let samples: Vec<(&str, Vec<u8>)> = vec![
        ("PKCS#8", key.clone().into()),
        ("PKCS#8, encrypted", pem("ENCRYPTED PRIVATE KEY", &pkcs8()).into()),
        ("PKCS#1", pem("RSA PRIVATE KEY", &pkcs1()).into()),
        (
            "PKCS#1, encrypted",
            pem("RSA PRIVATE KEY", &chance(400))
                .replacen("-----\n", "-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,00\n\n", 1)
                .into(),
        ),
        ("SEC1", pem("EC PRIVATE KEY", &pkcs8()).into()),
        ("OpenSSH", pem("OPENSSH PRIVATE KEY", &openssh()).into()),
        (
            "OpenPGP",
            pem("PGP PRIVATE KEY BLOCK", &chance(300)).replacen("-----\n", "-----\nVersion: 1\n\n", 1).into(),
        ),
        ("SSH2", {
            let body = pem("X", &chance(300)).replacen("-----BEGIN X-----\n", "", 1);
            format!("---- {} SSH2 ENCRYPTED PRIVATE KEY ----\nComment: \"a\"\n{body}", "BEGIN").into()
        }),
        ("in the middle of a log", format!("{}\n{key}\nmore", "words and words\n".repeat(2000)).into()),
        ("with carriage returns", key.replace('\n', "\r\n").into()),
        ("in JSON", format!("{{\"private_key\": \"{}\"}}", key.replace('\n', "\\n")).into()),
        ("in YAML", key.lines().map(|line| format!("    {line}\n")).collect::<String>().into()),
        ("in a kubeconfig", format!("client-key-data: {}\n", base64(key.as_bytes())).into()),
        ("in a program", elf),
        ("PuTTY", putty("Public-Lines: 2\nPrivate-Lines: 1\nAAAA\n").into()),
        (
            "age",
            format!(
                "# created: today\nAGE-SECRET-KEY-1{}\n",
                "QPZRY9X8GF2TVDW0S3JN54KHCE6MUA7LQPZRY9X8GF2TVDW0S3JN54KHCE"
            )
            .into(),
        ),
        ("WireGuard", format!("[Interface]\nPrivateKey = {}\n", base64(&chance(32))).into()),
        ("GnuPG 2.3", "Created: 20240101T000000\nKey: (private-key (ecc))\n".into()),
        ("GnuPG", b"(21:protected-private-key(3:rsa".to_vec()),
        ("PKCS#8 in DER", pkcs8()),
        ("PKCS#1 in DER", pkcs1()),
        ("SEC1 in DER", {
            let name = der(0xA0, &[6, 8, 0x2A, 0x86, 0x48, 0xCE, 0x3D, 3, 1, 7]);
            der(0x30, &[vec![2, 1, 1], der(4, &chance(32)), name].concat())
        }),
        ("secring", packet(&[0x95, 0, 100], &body)),
        ("secring, new packets", packet(&[0xC5, 100], &body)),
    ];
    for (what, bytes) in samples {
        let findings = found(Origin::Application, vec![("srv/x", file(bytes.clone()))]);
        assert_eq!(findings.len(), 1, "{what}: {findings:?}");
        assert_eq!(findings[0].lint, L::PrivateKey, "{what}");
        assert_eq!(findings[0].path, "/srv/x");
        for origin in [Origin::Packages, Origin::Foreign, Origin::Script] {
            assert_eq!(lints(origin, "srv/x", file(bytes.clone())), [L::PrivateKey], "{what}");
        }
    }
}

#[test]
fn what_only_speaks_of_keys_is_none() {
    let certificate = der(0x30, &der(0x30, &chance(500)));
    let samples: Vec<(&str, Vec<u8>)> = vec![
        ("a certificate", pem("CERTIFICATE", &certificate).into()),
        ("a public key", pem("PUBLIC KEY", &pkcs8()).into()),
        ("a public key of OpenPGP", pem("PGP PUBLIC KEY BLOCK", &chance(300)).into()),
        ("a header", "-----BEGIN PRIVATE KEY-----".into()),
        ("a header and an end", "-----BEGIN RSA PRIVATE KEY-----\n-----END RSA PRIVATE KEY-----\n".into()),
        ("a manual", "-----BEGIN PRIVATE KEY-----\nMIIEvQIBADANBgkqh...\n-----END PRIVATE KEY-----\n".into()),
        ("a manual with dots", "-----BEGIN EC PRIVATE KEY-----\n...\n".into()),
        ("a reader of keys", "static const char *h[] = {\"-----BEGIN RSA PRIVATE KEY-----\", \"-----BEGIN EC PRIVATE KEY-----\"};".into()),
        ("a program that reads keys", b"\x7fELF\0-----BEGIN PRIVATE KEY-----\0-----END PRIVATE KEY-----\0".to_vec()),
        ("words", "keep your PRIVATE KEY----- safe and never put it into an image, not even for a short time at all".into()),
        ("no key in PKCS#8's place", pem("PRIVATE KEY", &chance(300)).into()),
        ("a public key of PuTTY", "PuTTY-User-Key-File-3: ssh-ed25519\nPublic-Lines: 1\n".into()),
        ("a public key of age", "age1qpzry9x8gf2tvdw0s3jn54khce6mua7lqpzry9x8gf2tvdw0s3jn54khce".into()),
        ("a short age key", "AGE-SECRET-KEY-1QQQQ".into()),
        ("a placeholder of WireGuard", "PrivateKey = <your private key>\n".into()),
        ("a property", "PrivateKeyFile = /run/secrets/key\nPrivateKey = /run/secrets/abcdefghijklmnopqrstuvwxyzabcdefg\n".into()),
        ("a certificate in base64", base64(pem("CERTIFICATE", &certificate).as_bytes()).into()),
        ("a certificate in DER", certificate.clone()),
        ("a signature", [&[0x89, 1, 0][..], &[4; 300]].concat()),
        ("zeros", vec![0; 3000]),
        ("nothing", vec![]),
    ];
    for (what, bytes) in samples {
        assert_eq!(lints(Origin::Application, "srv/x", file(bytes)), [], "{what}");
    }
}

#[test]
fn credentials_are_found() {
    let word = letters;
    let samples: Vec<(&str, String)> = vec![
        ("srv/app.js", format!("const t = 'ghp{}{}';", "_", word(36))),
        ("srv/app.js", format!("github{}{}", "_pat_", word(70))),
        ("srv/deploy.yml", format!("TOKEN: glpat{}{}", "-", word(20))),
        ("srv/a.py", format!("xoxb{}584930281746-{}", "-", word(24))),
        ("srv/a.py", format!("sk{}{}", "_live_", word(24))),
        ("srv/a.py", format!("key=\"SG{}{}.{}\"", ".", word(22), word(43))),
        ("root/x", format!("dckr{}{}", "_pat_", word(27))),
        (
            "srv/a.sh",
            format!(
                "export AWS_ACCESS_KEY_ID=AKI{}\nexport AWS_SECRET_ACCESS_KEY={}\n",
                "AQ3EGRIJ5KLMNOPQS",
                &word(40)
            ),
        ),
        ("srv/app.conf", format!("url = postgres://shop:{}@db/shop\n", word(12))),
        ("etc/app", format!("url redis://:{}@cache:6379/0\n", word(12))),
        (".env", format!("DATABASE_URL=mysql://shop:{}%21@10.0.0.3/shop", word(12))),
        ("root/.netrc", "machine a.test login me password hunter22\n".into()),
        ("root/.pgpass", "# comment\nlocalhost:5432:*:me:hunter22\n".into()),
        ("root/.git-credentials", "https://me:hunter22@a.test\n".into()),
        ("root/.docker/config.json", r#"{"auths":{"a.test":{"auth":"bWU6aHVudGVy"}}}"#.into()),
        ("root/.dockercfg", r#"{"a.test":{"auth":"bWU6aHVudGVy"}}"#.into()),
        ("run/containers/auth.json", r#"{"auths":{"a.test":{"identitytoken":"x"}}}"#.into()),
        ("root/.npmrc", "//registry.a.test/:_authToken=abcdef\n".into()),
        ("root/.pypirc", "[pypi]\nusername = me\npassword = hunter22\n".into()),
        ("root/.my.cnf", "[client]\npassword=hunter22\n".into()),
        ("root/.aws/credentials", "[default]\naws_secret_access_key = abc\n".into()),
        ("etc/shadow", format!("root:*:19000::::::\nme:$6$abc${}:19000::::::\n", word(86))),
        ("etc/shadow", "root:*:19000::::::\nme:!$y$j9T$abcdefghijklmnop$abc:1::::::\n".into()),
        ("etc/shadow", "root:*:19000::::::\nme::19000::::::\n".into()),
        ("etc/shadow", "root:*:19000::::::\nme:ab01FAX.bQRSU:1::::::\n".into()),
        ("etc/passwd", "root::0:0:root:/root:/bin/sh\n".into()),
    ];
    for (path, text) in samples {
        let findings = found(Origin::Application, vec![(path, file(text.clone()))]);
        assert_eq!(findings.len(), 1, "{path}: {text}: {findings:?}");
        assert_eq!(findings[0].lint, L::Credential, "{text}");
        let told = format!("{findings:?}");
        for secret in text
            .split(|c: char| !c.is_ascii_alphanumeric())
            .filter(|word| word.len() >= 7 && *word != "password")
        {
            assert!(!told.contains(secret) || path.contains(secret), "`{secret}` is told: {told}");
        }
    }
    let line = |path: &str, text: &str| found(Origin::Application, vec![(path, file(text))])[0].at;
    assert_eq!(line("etc/shadow", "a:*:\nb:*:\nc::\n"), Some(Place::Line(3)));
    assert_eq!(line("root/.pgpass", "#\n#\n#\na:1:b:c:dddd\n"), Some(Place::Line(4)));
}

#[test]
fn what_only_looks_like_a_credential_is_none() {
    let samples: Vec<(&str, String)> = vec![
        ("srv/README", format!("ghp_{}", "x".repeat(36))),
        ("srv/README", "use ghp_EXAMPLEabcdefghij1234567890abcdefghi".into()),
        ("srv/a.js", "/^ghp_[A-Za-z0-9]{36}$/".into()),
        ("srv/a.js", format!("abcghp_{}", letters(36))),
        ("srv/a.js", format!("AKIA{}", "Q3EGRIJ5KLMNOPQS")),
        ("srv/doc", "AKIAIOSFODNN7EXAMPLE wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY".into()),
        ("srv/sums", "AKIAQ3EGRIJ5KLMNOPQS da39a3ee5e6b4b0d3255bfef95601890afd80709".into()),
        ("srv/app.conf", "url = postgres://shop:password@db/shop".into()),
        ("srv/app.conf", "url = postgres://shop:${DB_PASSWORD}@db/shop".into()),
        ("srv/app.conf", "url = postgres://shop:<password>@db/shop".into()),
        ("srv/app.conf", "url = postgres://shop@db/shop".into()),
        ("srv/app.conf", "url = http://db:5432/a@b".into()),
        ("srv/app.conf", "url = https://me:hunter22@www.example.com/".into()),
        ("srv/app.conf", "ssh://git@a.test:22/x".into()),
        ("srv/README.md", "postgres://shop:hunter22@db/shop".into()),
        ("root/.netrc", "machine a.test login me\n".into()),
        ("root/.pgpass", "# host:port:db:user:password\n".into()),
        ("root/.docker/config.json", r#"{"auths":{"a.test":{}},"credsStore":"pass"}"#.into()),
        ("srv/config.json", r#"{"auths":{"a.test":{"auth":"bWU6aHVudGVy"}}}"#.into()),
        ("root/.npmrc", "//registry.a.test/:_authToken=${NPM_TOKEN}\nregistry=https://a.test\n".into()),
        ("root/.pypirc", "[pypi]\nusername = __token__\n# password = x\n".into()),
        ("etc/shadow", "root:*:19000:0:99999:7:::\nme:!:1::::::\n_apt:!*:1::::::\n".into()),
        ("etc/gshadow", "root:*::\nusers:::\n".into()),
        ("etc/passwd", "root:x:0:0:root:/root:/bin/bash\n".into()),
    ];
    for (path, text) in samples {
        assert_eq!(lints(Origin::Application, path, file(text.clone())), [], "{path}: {text}");
    }
    let token = format!("\0\0ghp_{}", letters(36));
    assert_eq!(
        lints(Origin::Application, "srv/x", file(token)),
        [],
        "programs are not looked through for tokens"
    );
}

#[test]
fn only_the_start_of_a_file_is_read() {
    let key = pem("PRIVATE KEY", &pkcs8());
    let at = |n: usize| format!("{}\n{key}", "-".repeat(n));
    let limit = SCANNED_BYTES_MAX as usize;
    assert_eq!(lints(Origin::Application, "srv/x", file(at(limit - 500))), [L::PrivateKey]);
    assert_eq!(lints(Origin::Application, "srv/x", file(at(limit))), []);
}

#[test]
fn leaks_of_the_host() {
    for (path, text, leaks) in [
        ("etc/hostname", "build\n", true),
        ("etc/hostname", "", false),
        ("etc/resolv.conf", "nameserver 10.0.0.1\n", true),
        ("etc/machine-id", "0123456789abcdef0123456789abcdef\n", true),
        ("etc/machine-id", "uninitialized\n", false),
        ("etc/machine-id", "", false),
        ("var/lib/dbus/machine-id", "0123456789abcdef0123456789abcdef\n", true),
        (
            "etc/hosts",
            "127.0.0.1 localhost\n::1 localhost ip6-localhost\nff02::1 ip6-allnodes\n# 10.0.0.1\n",
            false,
        ),
        ("etc/hosts", "127.0.0.1 localhost\n10.0.0.1 build\n", true),
    ] {
        let expected: &[LintKind] = if leaks { &[L::HostLeak] } else { &[] };
        for origin in [Origin::Application, Origin::Script, Origin::Packages, Origin::Foreign] {
            assert_eq!(lints(origin, path, file(text)), expected, "{path}: {text}");
        }
    }
    let named = "listen on build-host-7.example\n";
    assert_eq!(lints(Origin::Script, "etc/app.conf", file(named)), [L::HostLeak]);
    assert_eq!(lints(Origin::Application, "etc/app.conf", file(named)), [], "a committed file means it");
    assert_eq!(lints(Origin::Script, "etc/app.conf", file("build-host-77")), []);
    let facts = Facts { host: "server".into(), ..facts(Origin::Script) };
    assert_eq!(check(&tree(vec![("etc/a", file("the server"))]), &facts).unwrap().findings, []);
}

#[test]
fn files_that_change_their_callers_rights() {
    let mode = |mode| Node { mode, ..file("x") };
    for origin in [Origin::Application, Origin::Script] {
        assert_eq!(lints(origin, "bin/a", mode(0o4755)), [L::Setuid]);
        assert_eq!(lints(origin, "bin/a", mode(0o2755)), [L::Setuid]);
        assert_eq!(lints(origin, "bin/a", mode(0o755)), []);
        assert_eq!(lints(origin, "srv/folder", Node::dir(0o2775, EPOCH)), [], "new files get its group");
    }
    let attributes = |name: &str| std::sync::Arc::new([(name.into(), b"\x01\0\0\x02".to_vec())].into());
    let with = |name: &str| Node { xattrs: attributes(name), ..file("x") };
    assert_eq!(lints(Origin::Application, "bin/ping", with("security.capability")), [L::Setuid]);
    assert_eq!(lints(Origin::Application, "bin/ping", with("user.note")), []);
    let report = check(&tree(vec![("usr/bin/su", mode(0o4755))]), &facts(Origin::Foreign)).unwrap();
    assert_eq!((report.findings.len(), report.idle_setid.as_slice()), (0, &["/usr/bin/su".to_owned()][..]));

    let nodes =
        vec![("bin/a", mode(0o6755)), ("bin/b", with("security.capability")), ("bin/c", with("user.note"))];
    let mut tree = tree(nodes);
    assert_eq!(setid::strip(&mut tree), [b"bin/a", b"bin/b"]);
    assert_eq!(tree.get(b"bin/a").unwrap().mode, 0o755);
    assert!(tree.get(b"bin/b").unwrap().xattrs.is_empty());
    assert_eq!(tree.get(b"bin/c").unwrap().xattrs.len(), 1);
    assert_eq!(setid::strip(&mut tree), [[0_u8; 0]; 0]);
}

#[test]
fn what_every_user_may_write_to() {
    let link = || Node { kind: Kind::Symlink(b"x".to_vec()), ..Node::dir(0o777, EPOCH) };
    for origin in [Origin::Application, Origin::Script, Origin::Packages, Origin::Foreign] {
        assert_eq!(lints(origin, "srv/a", Node { mode: 0o666, ..file("") }), [L::WorldWritable]);
        assert_eq!(lints(origin, "srv/a", Node::dir(0o777, EPOCH)), [L::WorldWritable]);
        assert_eq!(lints(origin, "srv/a", Node::dir(0o1777, EPOCH)), []);
        assert_eq!(lints(origin, "srv/a", Node::dir(0o775, EPOCH)), []);
        assert_eq!(lints(origin, "srv/a", link()), []);
    }
}

#[test]
fn what_another_bake_would_make_differently() {
    let pyc = |flags: u32, time: i64, size: u32| {
        let head =
            [&[0xA7, 0x0D, b'\r', b'\n'][..], &flags.to_le_bytes(), &(time as u32).to_le_bytes()].concat();
        file([head, size.to_le_bytes().to_vec(), vec![9; 20]].concat())
    };
    let cases: Vec<(Vec<(&str, Node)>, bool)> = vec![
        (vec![("var/cache/ldconfig/aux-cache", file("x"))], true),
        (vec![("var/lib/systemd/random-seed", file("x"))], true),
        (vec![("var/log/dpkg.log", file("x"))], true),
        (vec![("var/log/app/a.log", file("x"))], true),
        (vec![("var/log/dpkg.log", file(""))], false),
        (vec![("etc/ssh/ssh_host_rsa_key.pub", file("ssh-rsa AAAA"))], true),
        (vec![("etc/ssh/sshd_config", file("Port 22"))], false),
        (vec![("srv/a", Node { mtime: EPOCH + 1, ..file("") })], true),
        (vec![("srv/a", Node { mtime: EPOCH - 1, ..file("") })], false),
        (vec![("srv/a", Node::dir(0o755, EPOCH + 9))], false),
        (vec![("a.py", file("abc")), ("__pycache__/a.cpython-311.pyc", pyc(0, EPOCH, 3))], false),
        (vec![("a.py", file("abc")), ("__pycache__/a.cpython-311.pyc", pyc(0, EPOCH + 5, 3))], true),
        (vec![("a.py", file("abc")), ("__pycache__/a.cpython-311.pyc", pyc(0, EPOCH, 4))], true),
        (vec![("a.py", file("abc")), ("__pycache__/a.cpython-311.pyc", pyc(3, 0, 0))], false),
        (vec![("__pycache__/a.cpython-311.pyc", pyc(0, EPOCH + 5, 3))], false),
    ];
    for (nodes, is_found) in cases {
        let (path, expected) =
            (nodes[nodes.len() - 1].0, if is_found { &[L::Unreproducible][..] } else { &[] });
        for origin in [Origin::Application, Origin::Script] {
            let lints: Vec<LintKind> = found(origin, nodes.clone()).into_iter().map(|f| f.lint).collect();
            assert_eq!(lints, expected, "{path}");
        }
        let foreign = found(Origin::Foreign, nodes);
        assert_eq!(foreign, [], "{path}: a base that is pinned by its digest is what it is");
    }
}

#[test]
fn files_of_packages_are_exempt_by_their_checksums() {
    use md5::Digest as _;
    let key = pem("PRIVATE KEY", &pkcs8());
    let sum: String = md5::Md5::digest(&key).iter().map(|b| format!("{b:02x}")).collect();
    let list = |path: &str| ("var/lib/dpkg/info/aa.md5sums", file(format!("{sum}  {path}\n")));
    let status = |path: &str| {
        (
            "var/lib/dpkg/status",
            file(format!("Package: aa\nConffiles:\n /{path} {sum}\n /etc/b {}\n\n", "0".repeat(32))),
        )
    };
    let doc = "usr/share/doc/aa/test.pem";
    let kinds = |origin, nodes| found(origin, nodes).into_iter().map(|f| f.lint).collect::<Vec<_>>();
    assert_eq!(kinds(Origin::Packages, vec![list(doc), (doc, file(key.clone()))]), []);
    assert_eq!(kinds(Origin::Packages, vec![status("etc/a.pem"), ("etc/a.pem", file(key.clone()))]), []);
    let merged = vec![list("sbin/a"), ("usr/sbin/a", file(key.clone()))];
    assert_eq!(kinds(Origin::Packages, merged), [], "named by the link of a merged /usr");
    let changed = || file(format!("{key}\n"));
    assert_eq!(
        kinds(Origin::Packages, vec![list(doc), (doc, changed())]),
        [L::PrivateKey],
        "a script changed it"
    );
    assert_eq!(kinds(Origin::Packages, vec![status("etc/a.pem"), ("etc/a.pem", changed())]), [L::PrivateKey]);
    assert_eq!(kinds(Origin::Packages, vec![list("other"), (doc, file(key.clone()))]), [L::PrivateKey]);
    for origin in [Origin::Foreign, Origin::Application, Origin::Script] {
        let nodes = vec![list(doc), (doc, file(key.clone()))];
        assert_eq!(kinds(origin, nodes), [L::PrivateKey], "{origin:?}: the list is not of a locked package");
    }
}

#[test]
fn rules_name_a_file_or_a_folder() {
    let finding = Finding::new(L::Setuid, b"usr/bin/sudo", "");
    let rule = |lint, path: &str| LintRule { lint, path: path.into() };
    assert!(finding.is_allowed_by(&rule(L::Setuid, "/usr/bin/sudo")));
    assert!(finding.is_allowed_by(&rule(L::Setuid, "/usr/")));
    assert!(finding.is_allowed_by(&finding.rule()));
    assert!(!finding.is_allowed_by(&rule(L::Setuid, "/usr")));
    assert!(!finding.is_allowed_by(&rule(L::Setuid, "/usr/bin/su")));
    assert!(!finding.is_allowed_by(&rule(L::Credential, "/usr/bin/sudo")));
}

#[test]
fn a_refusal_names_everything_and_the_lines_that_silence_it() {
    let finding = |n: usize| Finding {
        at: Some(Place::Line(n)),
        ..Finding::new(L::PrivateKey, format!("srv/\"{n}").as_bytes(), "a key")
    };
    let error = |n: usize, allow: Vec<LintRule>| LintError::Findings {
        image: "web".into(),
        findings: (1..=n).map(finding).collect(),
        allow,
    };
    let one = error(1, vec![LintRule { lint: L::Setuid, path: "/bin/a".into() }]);
    assert_eq!(
        one.to_string(),
        "image `web`: 1 thing must not be in it:\n  private-key: /srv/\\\"1 line 1: a key\n    \
         allow = [{ lint = \"private-key\", path = \"/srv/\\\"1\" }]"
    );
    assert_eq!(
        one.hint().unwrap(),
        "take it out of the image, or say that it is meant to be, in `[images.web]` of kiln.toml: \
         allow = [{ lint = \"setuid\", path = \"/bin/a\" }, { lint = \"private-key\", path = \"/srv/\\\"1\" }]"
    );
    let many = error(120, vec![]).to_string();
    assert_eq!(many.matches("    allow = [").count(), TOLD_MAX);
    assert!(many.ends_with("and 70 more"), "{many}");
    let long = LintError::Findings {
        image: "web".into(),
        findings: (0..60)
            .map(|n| Finding::new(L::PrivateKey, format!("{n}{}", "x/".repeat(2000)).as_bytes(), ""))
            .collect(),
        allow: vec![],
    };
    assert!(long.to_string().len() < 30_000 && long.hint().unwrap().len() < 1000);
}
