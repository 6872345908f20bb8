//! kiln.toml and kiln.lock as attackers would make them (notes/control.md X3): as large as they may be, as deep as they can
//! be, and with words that mean something to a shell, a path or a terminal. Each gives an answer soon, in words that fit a screen.

use kiln_model::limits;
use kiln_spec::{Lock, Project};
use std::time::{Duration, Instant};

/// How long the largest file may take in a debug build on a busy machine.
const SOON: Duration = Duration::from_secs(20);
/// Bytes of a message that somebody can still read.
const MESSAGE_BYTES_MAX: usize = 64 << 10;

/// Repeats `part` until the file is as large as it may be.
fn filled(start: &str, part: impl Fn(usize) -> String, end: &str, bytes_max: usize) -> String {
    let mut text = start.to_owned();
    for n in 0.. {
        let more = part(n);
        if text.len() + more.len() + end.len() > bytes_max {
            break;
        }
        text.push_str(&more);
    }
    text + end
}

/// The answer, on a thread with the stack of a server's worker.
fn project(text: &str) -> Result<(), String> {
    let text = text.to_owned();
    let start = Instant::now();
    let thread = std::thread::Builder::new().stack_size(2 << 20);
    let parse = move || Project::parse(&text, "kiln.toml").map(drop).map_err(|errors| errors.to_string());
    let result = thread.spawn(parse).unwrap().join().expect("it did not panic");
    assert!(start.elapsed() < SOON, "it took {:?}", start.elapsed());
    result
}

fn lock(text: &str) -> Result<(), String> {
    let text = text.to_owned();
    let start = Instant::now();
    let thread = std::thread::Builder::new().stack_size(2 << 20);
    let parse = move || Lock::parse(&text).map(drop).map_err(|error| error.to_string());
    let result = thread.spawn(parse).unwrap().join().expect("it did not panic");
    assert!(start.elapsed() < SOON, "it took {:?}", start.elapsed());
    result
}

#[test]
fn files_as_deep_as_they_can_be() {
    let half = limits::SPEC_BYTES_MAX / 2 - 100;
    for text in [
        format!("name = \"x\"\na = {}{}", "[".repeat(half), "]".repeat(half)),
        format!("name = \"x\"\na = {}", "[".repeat(2 * half)),
        format!("name = \"x\"\na = {}{}", "{a=".repeat(half / 2), "}".repeat(half / 2)),
        format!("name = \"x\"\n{}a = 1", "a.".repeat(half)),
        format!("name = \"x\"\n[{}a]", "a.".repeat(half)),
        format!("name = \"x\"\n[[{}a]]", "a.".repeat(half)),
        format!("name = \"x\"\n[environments.e]\n{}a = 1", "services.".repeat(half / 5)),
        filled("name = \"x\"\n", |n| format!("[{}b]\n", "a.".repeat(n)), "", limits::SPEC_BYTES_MAX),
    ] {
        let error = project(&text).unwrap_err();
        assert!(error.len() < MESSAGE_BYTES_MAX, "{} bytes of {:.200}", error.len(), error);
    }
    for text in [format!("packages = {}", "[".repeat(1 << 20)), format!("{}a = 1", "a.".repeat(1 << 20))] {
        let error = lock(&text).unwrap_err();
        assert!(error.len() < MESSAGE_BYTES_MAX, "{} bytes of {:.200}", error.len(), error);
    }
}

#[test]
fn files_as_large_as_they_may_be() {
    let max = limits::SPEC_BYTES_MAX;
    let head = "name = \"x\"\n[images.a]\nbase = \"scratch\"\n";
    for (text, is_valid) in [
        (filled("name = \"x\"\n", |n| format!("k{n} = 1\n"), "", max), false),
        (filled("name = \"x\"\n", |n| format!("[images.i{n}]\nbase = 1\n"), "", max), false),
        (
            filled("name = \"x\"\n", |n| format!("[images.i{n}]\nbase = \"image:i{}\"\n", n + 1), "", max),
            false,
        ),
        (
            filled(
                "name = \"x\"\n",
                |n| format!("[images.i{n}]\nbase = \"image:i{}\"\n", n.saturating_sub(1)),
                "",
                max,
            ),
            false,
        ),
        (
            filled(
                "name = \"x\"\n",
                |n| format!("[services.s{n}]\nimage = \"none{n}\"\ncommand = [\"/a\"]\n"),
                "",
                max,
            ),
            false,
        ),
        (filled("name = \"x\"\n", |n| format!("[[routes]]\nservice = \"s{n}\"\n"), "", max), false),
        (filled(head, |n| format!("allow{n} = 1\n"), "", max), false),
        (
            filled(
                &format!("{head}copy = ["),
                |n| format!("{{from=\"f{n}\",to=\"/t{n}\"}},"),
                "]\n[services.a]\nimage=\"a\"\ncommand=[\"/a\"]\n",
                max,
            ),
            true,
        ),
        (
            filled(
                &format!("{head}allow = ["),
                |n| format!("{{lint=\"setuid\",path=\"/t{n}\"}},"),
                "]\n[services.a]\nimage=\"a\"\ncommand=[\"/a\"]\n",
                max,
            ),
            true,
        ),
        (filled("name = \"x\"\nname = \"", |_| "y".into(), "\"", max), false),
        (filled("# ", |_| "\u{1F9F1}".into(), "\nname = \"x\"\n", max), false),
        (filled("name = \"", |_| "\\u0041".into(), "\"\n", max), false),
        (filled("", |_| "\r".into(), "", max), false),
        (filled("", |_| "\n".into(), "", max), false),
        (filled("", |_| "\0".into(), "", max), false),
    ] {
        let found = project(&text);
        assert_eq!(found.is_ok(), is_valid, "{:.100}: {:.300}", text, found.as_ref().err().map_or("", |e| e));
        let error = found.err().unwrap_or_default();
        assert!(error.len() < MESSAGE_BYTES_MAX, "{} bytes of {:.300}", error.len(), error);
    }
}

#[test]
fn locks_as_large_as_they_may_be() {
    let max = limits::LOCK_BYTES_MAX;
    let sum = format!("sha256:{}", "0".repeat(64));
    let row = |n: usize, user: &str| {
        format!(
            "{{ name = \"aa\", version = \"{n}\", architecture = \"all\", sha256 = \"{sum}\", size = 1, path = \"pool/a\", suite = \"s\", used_by = [{user}] }},\n"
        )
    };
    let end = format!("]\n[suites]\ns = {{ in_release = \"{sum}\" }}\n[images]\n");
    let many_users = filled("", |n| format!("\"u{n}\","), "", 4 << 20);
    let rows = [
        filled("version = 1\npackages = [", |n| row(n, "\"u\""), &end, max),
        filled("version = 1\npackages = [", |n| row(n, &format!("\"u{n}\"")), &end, max),
        format!("version = 1\npackages = [{}{end}", row(1, &many_users)),
        filled(
            "version = 1\npackages = []\n[suites]\n",
            |n| format!("s{n} = {{ in_release = \"{sum}\" }}\n"),
            "[images]\n",
            max,
        ),
        filled(
            "version = 1\npackages = []\n[suites]\n[images]\n",
            |n| format!("a{n} = {{ base = \"x\", recipe = \"{sum}\" }}\n"),
            "",
            max,
        ),
        filled("version = ", |_| "1".into(), "", max),
        filled("", |n| format!("k{n} = 1\n"), "", max),
    ];
    for text in rows {
        let error = lock(&text).err().unwrap_or_default();
        assert!(error.len() < MESSAGE_BYTES_MAX, "{} bytes of {:.300}", error.len(), error);
    }
}

#[test]
fn names_and_paths_that_mean_something_elsewhere() {
    let text = |image: &str, key: &str, value: &str| {
        format!(
            "name = \"x\"\n[images.{image}]\nbase = \"scratch\"\ncopy = [{{ from = \"f\", to = \"/t\" }}]\n{key} = {value}\n[services.a]\nimage = \"{image}\"\ncommand = [\"/a\"]\n"
        )
    };
    assert_eq!(project(&text("a", "packages", "[]")), Ok(()));
    for image in [
        "-x",
        "\"../x\"",
        "\"a/b\"",
        "\"a;b\"",
        "\"$(x)\"",
        "\"a b\"",
        "\"a\\nb\"",
        "\"\"",
        "\".\"",
        "\"a\\u0000b\"",
        "\"\\u001b[2J\"",
    ] {
        let text = text(image, "packages", "[]")
            .replace(&format!("image = \"{image}\""), &format!("image = {image}"));
        let error = project(&text).unwrap_err();
        assert!(!error.contains(['\u{1b}', '\0']), "{error:?} would steer a terminal");
    }
    for (key, value) in [
        ("packages", "[\"--purge\"]"),
        ("packages", "[\"../x\"]"),
        ("packages", "[\"a=1\"]"),
        ("packages", "[\"a b\"]"),
        ("allow", "[{ lint = \"setuid\", path = \"../x\" }]"),
        ("allow", "[{ lint = \"setuid\", path = \"/a/../b\" }]"),
        ("allow", "[{ lint = \"all\", path = \"/\" }]"),
        ("allow", "[{ path = \"/x\" }]"),
        ("allow", "[{ lint = \"setuid\", path = \"/a\\nb\" }]"),
    ] {
        assert!(project(&text("a", key, value)).is_err(), "{key} = {value}");
    }
    for (from, to) in [
        ("../f", "/t"),
        ("/etc/shadow", "/t"),
        ("a/../../f", "/t"),
        ("f", "t"),
        ("f", "/../t"),
        ("f", "/a/../../t"),
        ("", "/t"),
        ("f", ""),
        ("a\\nb", "/t"),
        ("f", "/t\\u0000"),
        ("build:../x", "/t"),
        ("build:x", "/t"),
    ] {
        let text = text("a", "packages", "[]")
            .replace("from = \"f\", to = \"/t\"", &format!("from = \"{from}\", to = \"{to}\""));
        assert!(project(&text).is_err(), "{from} to {to}");
    }
    for base in [
        "oci:../x",
        "oci:/a/../b",
        "oci:--help",
        "oci:a.test/x;y",
        "oci:a.test/$(x)",
        "containerfile:../x",
        "containerfile:/etc/x",
        "image:../x",
        "debian:../x",
    ] {
        let text = text("a", "packages", "[]").replace("scratch", base);
        assert!(project(&text).is_err(), "{base}");
    }
}
