//! A commit with a key and other things that do not belong into an image is refused, all of them at once, and is baked with
//! the line that the refusal printed.

use crate::tiny;
use kiln_tests::{Kiln, free_address};

/// A key that nobody has, in pieces, so that no scanner of this repository stumbles over it.
fn key() -> String {
    let body = "MC4CAQAwBQYDK2VwBCIEIAcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcH";
    format!("-----BEGIN {} KEY-----\n{body}\n-----END {} KEY-----\n", "PRIVATE", "PRIVATE")
}

pub fn run() {
    let kiln = Kiln::started(&free_address());
    let project = tiny::project();
    kiln.in_project(&project, &["deploy"]).expect(0);
    let before = tiny::environment(&kiln)["serving"].clone();

    let secret = "s3cr3t-0f-n0b0dy";
    std::fs::create_dir(project.path("more")).expect("more/");
    project.write("more/notes.txt", &format!("one\ntwo\n{}", key()));
    project.write("more/app.conf", &format!("url = postgres://shop:{secret}@db/shop\n"));
    project.edit(
        "kiln.toml",
        "copy = [",
        "copy = [{ from = \"more/\", to = \"/srv/more\", mode = \"0666\" }, ",
    );
    project.commit("a key, a password, and files that all may change");
    let refused = kiln.in_project(&project, &["bake"]).expect(1);
    println!("{}", refused.stderr);
    for words in [
        "4 things must not be in it",
        "private-key: /srv/more/notes.txt line 3: a private key",
        "credential: /srv/more/app.conf line 1: a password in a URL",
        "world-writable: /srv/more/notes.txt:",
        "world-writable: /srv/more/app.conf:",
        "    allow = [{ lint = \"private-key\", path = \"/srv/more/notes.txt\" }]\n",
    ] {
        assert!(refused.stderr.contains(words), "no {words:?} in:\n{}", refused.stderr);
    }
    for silent in [secret, "MC4CAQ"] {
        assert!(!refused.stderr.contains(silent), "the secret is printed:\n{}", refused.stderr);
        assert!(!kiln.log().contains(silent), "the secret is logged");
    }
    let deploy = kiln.in_project(&project, &["deploy"]).expect(1);
    assert!(deploy.stderr.contains("private-key: /srv/more/notes.txt"), "{}", deploy.stderr);
    assert_eq!(tiny::environment(&kiln)["serving"], before, "what served was never touched");

    // The hint ends with the line for all of it, to be pasted as it is.
    let hint = refused.stderr.lines().find(|line| line.starts_with("hint: ")).expect("a hint");
    let line = &hint[hint.find("allow = [").expect("a line of kiln.toml")..];
    project.edit("kiln.toml", "base = \"scratch\"", &format!("base = \"scratch\"\n{line}"));
    project.commit("it is meant to be");
    kiln.in_project(&project, &["bake"]).expect(0);

    project.edit("kiln.toml", "to = \"/srv/more\", mode = \"0666\"", "to = \"/srv/more\"");
    project.commit("half of it");
    let warned = kiln.in_project(&project, &["bake"]).expect(0);
    let warning =
        "warning: `allow` in kiln.toml names { lint = \"world-writable\", path = \"/srv/more/app.conf\" }";
    assert!(warned.stderr.contains(warning), "{}", warned.stderr);
    kiln.down();
}
