//! Repositories as attackers would leave them for a user to deploy from (notes/control.md X3): their configuration names
//! programs for everything that git could run, and none of them is ever run.

use super::tests::{project, resolved, user};
use super::*;
use std::io::Write;

/// A program that leaves a mark when it is run.
struct Trap {
    program: PathBuf,
    mark: PathBuf,
}

impl Trap {
    fn set(dir: &Path) -> Self {
        let (program, mark) = (dir.join(".git/trap"), dir.join(".git/mark"));
        std::fs::write(&program, format!("#!/bin/sh\ntouch '{}'\ncat\n", mark.display())).unwrap();
        std::fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        Self { program, mark }
    }

    fn path(&self) -> String {
        self.program.display().to_string()
    }

    /// Everything that the client does with a repository.
    #[track_caller]
    fn is_not_sprung(&self, dir: &Path, what: &str) {
        for reference in [None, Some("HEAD"), Some("main"), Some("HEAD~1")] {
            if let Ok(source) = resolved(dir, None, reference) {
                let pack = Pack::start(&source, &[], Trouble::default());
                let _ = pack.map(|mut pack| pack.read_to_end(&mut vec![]));
            }
        }
        assert!(!self.mark.exists(), "{what} was run");
    }
}

/// Makes git look at the content of every file again.
fn touch(dir: &Path) {
    std::fs::write(dir.join("site/a"), "other").unwrap();
    std::fs::write(dir.join("site/a"), "first").unwrap();
}

#[test]
fn no_program_of_the_configuration_is_run() {
    let dir = project();
    let trap = Trap::set(dir.path());
    let lines = [
        "core.fsmonitor",
        "core.sshCommand",
        "core.editor",
        "core.pager",
        "core.askPass",
        "core.gitProxy",
        "core.alternateRefsCommand",
        "diff.external",
        "diff.x.command",
        "diff.x.textconv",
        "merge.x.driver",
        "filter.x.clean",
        "filter.x.smudge",
        "filter.x.process",
        "gpg.program",
        "gpg.ssh.program",
        "credential.helper",
        "pager.status",
        "pager.rev-list",
        "uploadpack.packObjectsHook",
        "sequence.editor",
        "interactive.diffFilter",
        "alias.status",
        "alias.rev-parse",
        "alias.rev-list",
        "alias.config",
        "trailer.x.command",
        "remote.origin.uploadpack",
        "core.hooksPath",
    ];
    for key in lines {
        let value = if key.starts_with("alias.") { format!("!{}", trap.path()) } else { trap.path() };
        user(dir.path(), &["config", key, &value]);
    }
    for (key, value) in
        [("filter.x.required", "true"), ("log.showSignature", "true"), ("status.submoduleSummary", "true")]
    {
        user(dir.path(), &["config", key, value]);
    }
    let hooks = dir.path().join(".git/hooks");
    std::fs::create_dir_all(&hooks).unwrap();
    for hook in
        ["post-index-change", "fsmonitor-watchman", "reference-transaction", "pre-auto-gc", "post-checkout"]
    {
        std::fs::copy(&trap.program, hooks.join(hook)).unwrap();
    }
    std::fs::write(dir.path().join(".git/info/attributes"), "* filter=x diff=x merge=x\n").unwrap();
    touch(dir.path());
    trap.is_not_sprung(dir.path(), "a program of the configuration");
}

#[test]
fn a_filter_hides_in_an_included_file_or_behind_a_name_that_is_no_text() {
    let dir = project();
    let trap = Trap::set(dir.path());
    let config = dir.path().join(".git/config");
    let mut text = std::fs::read(&config).unwrap();
    text.extend(b"[include]\n\tpath = more\n[filter \"a\\\"b \xFF]\"]\n\tCLEAN = ");
    text.extend(trap.path().as_bytes());
    text.extend(b"\n[filter \"\xFF\"]\n\tclean = ");
    text.extend(trap.path().as_bytes());
    text.extend(b"\n[filter]\n\tclean = ");
    text.extend(trap.path().as_bytes());
    std::fs::write(&config, text).unwrap();
    std::fs::write(dir.path().join(".git/more"), format!("[filter \"m\"]\nprocess = {}\n", trap.path()))
        .unwrap();
    for attribute in [&b"* filter=\xFF\n"[..], b"* filter=m\n", b"* filter=x\n"] {
        std::fs::write(dir.path().join(".git/info/attributes"), attribute).unwrap();
        touch(dir.path());
        trap.is_not_sprung(dir.path(), &String::from_utf8_lossy(attribute));
    }
}

#[test]
fn attributes_of_the_commit_change_nothing_and_run_nothing() {
    let dir = project();
    let trap = Trap::set(dir.path());
    user(dir.path(), &["config", "filter.lfs.clean", &trap.path()]);
    user(dir.path(), &["config", "filter.lfs.required", "true"]);
    std::fs::write(
        dir.path().join(".gitattributes"),
        "* filter=lfs text eol=crlf ident export-subst working-tree-encoding=latin1\n",
    )
    .unwrap();
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n";
    std::fs::write(dir.path().join("site/big"), pointer).unwrap();
    user(dir.path(), &["-c", "filter.lfs.clean=", "-c", "filter.lfs.required=false", "add", "."]);
    user(dir.path(), &["commit", "-q", "-m", "attributes"]);
    let _ = std::fs::remove_file(&trap.mark);
    touch(dir.path());
    trap.is_not_sprung(dir.path(), "a filter of the commit");
}

/// A partial clone: what is missing would be fetched by a program that the repository names.
#[test]
fn what_is_missing_is_not_fetched() {
    for (remote, allow) in [
        ("ext::TRAP", "ext"),
        ("ssh://a.test/x", "ssh"),
        ("file:///nonexistent", "file"),
        ("https://a.test/x", "https"),
    ] {
        let dir = project();
        let trap = Trap::set(dir.path());
        user(dir.path(), &["commit", "-q", "--allow-empty", "-m", "second"]);
        let file = user(dir.path(), &["rev-parse", "HEAD:site/a"]);
        let url = remote.replace("TRAP", &trap.path());
        for (key, value) in [
            ("core.repositoryFormatVersion", "1"),
            ("extensions.partialClone", "origin"),
            ("remote.origin.promisor", "true"),
            ("remote.origin.url", &url),
            ("remote.origin.uploadpack", &trap.path()),
            ("core.sshCommand", &trap.path()),
            ("core.gitProxy", &trap.path()),
            (&format!("protocol.{allow}.allow"), "always"),
            ("protocol.allow", "always"),
        ] {
            user(dir.path(), &["config", key, value]);
        }
        std::fs::remove_file(dir.path().join(".git/objects").join(&file[..2]).join(&file[2..])).unwrap();
        touch(dir.path());
        trap.is_not_sprung(dir.path(), remote);
        let source = resolved(dir.path(), None, Some("HEAD")).unwrap();
        let trouble = Trouble::default();
        assert!(Pack::start(&source, &[], trouble.clone()).unwrap().read_to_end(&mut vec![]).is_err());
        assert!(trouble.seen().is_some(), "{remote}: a file is missing, which is told");
    }
}

/// CVE-2025-48384 (a carriage return at the end of a submodule's path), CVE-2024-32002 (links and case), CVE-2018-17456.
#[test]
fn submodules_are_never_entered() {
    let dir = project();
    let trap = Trap::set(dir.path());
    let inner = project();
    let commit = user(inner.path(), &["rev-parse", "HEAD"]);
    let modules = "[submodule \"x\\r\"]\n\tpath = \"site/sub\\r\"\n\turl = -u./trap\n\tupdate = !./.git/trap\n[submodule \"y\"]\n\tpath = A/modules/x\n\turl = ext::./.git/trap\n";
    std::fs::write(dir.path().join(".gitmodules"), modules).unwrap();
    user(dir.path(), &["add", ".gitmodules"]);
    for path in ["site/sub\r", "A/modules/x"] {
        user(dir.path(), &["update-index", "--add", "--cacheinfo", &format!("160000,{commit},{path}")]);
        let place = dir.path().join(path);
        std::fs::create_dir_all(place.join(".git/hooks")).unwrap();
        std::fs::copy(&trap.program, place.join(".git/hooks/post-checkout")).unwrap();
        std::fs::write(place.join(".git/config"), format!("[core]\n\tfsmonitor = {}\n", trap.path()))
            .unwrap();
        std::fs::write(place.join(".git/HEAD"), "ref: refs/heads/main\n").unwrap();
    }
    user(dir.path(), &["commit", "-q", "-m", "submodules"]);
    user(dir.path(), &["config", "submodule.recurse", "true"]);
    user(dir.path(), &["config", "submodule.y.update", &format!("!{}", trap.path())]);
    trap.is_not_sprung(dir.path(), "something of a submodule");
}

#[test]
fn references_that_look_like_options_or_commands() {
    let dir = project();
    let trap = Trap::set(dir.path());
    let program = trap.path();
    for bad in [
        &format!("--upload-pack={program}"),
        &format!("--exec={program}"),
        "--output=.git/mark",
        "-O.git/mark",
        "--git-dir=/",
        "--all",
        "--",
        "--stdin",
        &format!("$({program})"),
        &format!("`{program}`"),
        &format!("x;{program}"),
        &format!("x|{program}"),
        "x\n--all",
        "HEAD\0--all",
        "../../etc/passwd",
        "refs/heads/../../x",
        "@{-1}",
        ":/x",
        "^HEAD",
        "HEAD..HEAD",
        &"x".repeat(100_000),
    ] {
        assert_eq!(
            resolved(dir.path(), None, Some(bad)).map(drop).unwrap_err().code(),
            Code::Git,
            "{:.60}",
            bad
        );
    }
    assert!(!trap.mark.exists());
    // Such names can be given, if one writes them by hand.
    let heads = dir.path().join(".git/refs/heads");
    let commit = user(dir.path(), &["rev-parse", "HEAD"]);
    for name in ["--upload-pack=x", "$(x)", "a;b", "-h"] {
        std::fs::write(heads.join(name), format!("{commit}\n")).unwrap();
        let found = resolved(dir.path(), None, Some(&format!("refs/heads/{name}")));
        assert!(found.is_ok_and(|source| source.commit.as_str() == commit), "{name}");
    }
}

#[test]
fn names_of_projects_are_no_paths_options_or_commands() {
    let long = "x".repeat(300);
    for bad in [
        "",
        ".",
        "..",
        "../x",
        "a/b",
        "/etc",
        "-x",
        "--upload-pack=x",
        "a;b",
        "$(x)",
        "a b",
        "a\nb",
        "a\0b",
        "a.git",
        "é",
        "A",
        &long,
    ] {
        assert!(ProjectName::new(bad).is_err(), "{bad:?}");
        let dir = project();
        std::fs::write(dir.path().join(SPEC), format!("name = {bad:?}")).unwrap();
        assert!(resolved(dir.path(), None, Some("HEAD")).is_err(), "{bad:?}");
    }
}

/// Objects of other repositories (CVE-2024-32020, -32021): git reads them where they are, and only what the commit names.
#[test]
fn alternates_and_links_lend_objects_but_give_nothing_else_away() {
    let secret = project();
    std::fs::write(secret.path().join("secret"), "not of the commit").unwrap();
    user(secret.path(), &["add", "."]);
    user(secret.path(), &["commit", "-q", "-m", "secret"]);
    let hidden = user(secret.path(), &["rev-parse", "HEAD:secret"]);
    let dir = project();
    let lender = secret.path().join(".git/objects");
    std::fs::write(dir.path().join(".git/objects/info/alternates"), format!("{}\n", lender.display()))
        .unwrap();
    let source = resolved(dir.path(), None, Some("HEAD")).unwrap();
    let mut bytes = vec![];
    Pack::start(&source, &[], Trouble::default()).unwrap().read_to_end(&mut bytes).unwrap();
    let other = tempfile::tempdir().unwrap();
    user(other.path(), &["init", "-q"]);
    let index = ["index-pack", "--stdin"];
    let mut index =
        git(other.path()).args(index).stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    index.stdin.take().unwrap().write_all(&bytes).unwrap();
    assert!(index.wait().unwrap().success());
    assert!(answer(git(other.path()).args(["cat-file", "-e", &hidden])).is_err());
    // A folder of objects that is a link to the host's.
    let objects = dir.path().join(".git/objects/aa");
    let _ = std::fs::remove_dir_all(&objects);
    std::os::unix::fs::symlink("/etc", &objects).unwrap();
    assert!(resolved(dir.path(), None, Some(&format!("aa{}", "0".repeat(38)))).is_err());
}
