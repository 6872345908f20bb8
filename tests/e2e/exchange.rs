//! `kiln image export`: what kiln exports, other tools take and run.

use crate::bases::Registry;
use crate::tiny;
use kiln_tests::{Answer, Kiln, Project, free_address, run as run_program};
use serde_json::Value;
use std::path::Path;
use std::process::Command;

/// A program of another house, without its usual storage.
fn tool(name: &str, arguments: &[&str], storage: &Path) -> Answer {
    if name != "podman" {
        return run_program(Command::new(name).args(arguments));
    }
    // Its crun refuses a host with both kinds of cgroups, so the second kind is out of sight, in a mount namespace of its own.
    const HIDE: &str =
        "if mountpoint -q /sys/fs/cgroup/unified; then umount /sys/fs/cgroup/unified; fi; exec podman \"$@\"";
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "--", "sh", "-c", HIDE, "podman"]);
    let text = |part: &str| storage.join(part).display().to_string();
    command.args(["--root", &text("root"), "--runroot", &text("run"), "--cgroup-manager=cgroupfs"]);
    command.args(["--storage-driver", "vfs", "--events-backend", "none"]);
    run_program(command.args(arguments))
}

pub fn run() {
    let kiln = Kiln::started(&free_address());
    let project = tiny::project();
    kiln.in_project(&project, &["deploy"]).expect(0);
    let images = kiln.in_project(&project, &["image", "list", "--json"]).expect(0).json();
    let digest = images["images"][0]["digest"].as_str().expect("digest").to_owned();
    let folder = tempfile::tempdir().expect("temporary folder");
    let path = |name: &str| folder.path().join(name).display().to_string();
    let export = |name: &str, more: &[&str]| {
        let name = path(name);
        let head = [
            "image",
            "export",
            &digest,
            "--service",
            "api",
            "--name",
            "localhost/shop/api:1",
            "--output",
            &name,
        ];
        kiln.in_project(&project, &[&head[..], more, &["--json"]].concat()).expect(0).json()
    };
    export("gzip.tar", &[]);
    let again = export("again.tar", &[]);
    let bytes = |name: &str| std::fs::read(path(name)).expect("an archive");
    assert!(bytes("gzip.tar") == bytes("again.tar"), "the same image gives the same archive");
    export("zstd", &["--format", "oci-dir", "--compression", "zstd"]);
    export("docker.tar", &["--format", "docker-archive"]);
    let taken = kiln.in_project(&project, &["image", "export", &digest, "--output", &path("gzip.tar")]);
    assert!(taken.expect(1).stderr.contains("exists"));

    for source in [
        format!("oci-archive:{}", path("gzip.tar")),
        format!("oci:{}", path("zstd")),
        format!("docker-archive:{}", path("docker.tar")),
    ] {
        let seen = tool("skopeo", &["inspect", "--config", &source], folder.path()).expect(0).json();
        assert_eq!(seen["config"]["Cmd"][0], "/bin/api", "{seen}");
        assert_eq!(seen["config"]["Labels"]["kiln.image"], *digest);
        let copied = format!("dir:{}", path(&format!("copy-{}", source.len())));
        // It compares every digest on the way.
        tool("skopeo", &["--insecure-policy", "copy", &source, &copied], folder.path()).expect(0);
    }
    let manifest = tool("skopeo", &["inspect", &format!("oci-archive:{}", path("gzip.tar"))], folder.path());
    let manifest = manifest.expect(0).json();
    assert_eq!(manifest["Digest"], again["manifest"]);
    push(&kiln, &project, &digest, &again["manifest"], folder.path());
    imports(&digest, folder.path());
    sends(&kiln, &project, &digest, folder.path());
    podman(&path("gzip.tar"), folder.path());
    podman(&path("docker.tar"), folder.path());
    kiln.down();
}

/// Another server reads every form back to the same image; what was changed on the way is another one, and what is none is refused.
fn imports(digest: &str, folder: &Path) {
    let other = Kiln::started(&free_address());
    let import = |path: &Path| other.cli(folder, &["image", "import", &path.display().to_string(), "--json"]);
    for name in ["gzip.tar", "zstd", "docker.tar"] {
        let view = import(&folder.join(name)).expect(0).json();
        assert_eq!((&view["image"], &view["said"]), (&Value::from(digest), &Value::from(digest)), "{name}");
    }
    let shown = other.cli(folder, &["image", "show", digest, "--json"]).expect(0).json();
    assert_eq!(shown["provenance"]["imported_from"], "gzip.tar", "{shown}");
    // And out again: the same bytes.
    let again = folder.join("exported-again.tar").display().to_string();
    other.cli(folder, &["image", "export", digest, "--output", &again]).expect(0);
    import(Path::new(&again)).expect(0);
    // One byte of a layer is another layer, and no longer what the manifest names.
    let mut bytes = std::fs::read(folder.join("docker.tar")).expect("an archive");
    let marker = b"release-1";
    let at = bytes.windows(marker.len()).position(|part| part == marker).expect("the version");
    bytes[at + marker.len() - 1] = b'7';
    let changed = folder.join("changed.tar");
    std::fs::write(&changed, &bytes).expect("written");
    let refused = import(&changed).expect(1);
    assert!(refused.stderr.contains("import") && refused.stderr.contains("not"), "{refused:?}");
    std::fs::write(&changed, "no archive").expect("written");
    import(&changed).expect(1);
    other.down();
}

/// Another server gets the image whole, the next release of a rebuilt program as a small patch, and nothing that was damaged.
fn sends(kiln: &Kiln, project: &Project, digest: &str, folder: &Path) {
    let mut other = Kiln::new(&free_address());
    other.start(&[]);
    let to = format!("unix:{}", other.socket().display());
    // Who is not trusted there sends in vain.
    let stranger = kiln.in_project(project, &["image", "send", digest, "--to", &to]).expect(1);
    assert!(stranger.stderr.contains("trust") && stranger.stderr.contains("hint:"), "{stranger:?}");
    other.terminate();
    let trusted = folder.join("trusted");
    std::fs::write(&trusted, kiln.in_project(project, &["key", "show"]).expect(0).stdout).expect("written");
    other.start_with(&["--trust", &trusted.display().to_string()]);
    let send = |image: &str| {
        kiln.in_project(project, &["image", "send", image, "--to", &to, "--json"]).expect(0).json()
    };
    let number = |view: &Value, name: &str| view[name].as_u64().expect("a number");
    let first = send(digest);
    // One line of the program's source is another one.
    let source = std::fs::read_to_string(project.path("api/src/main.rs")).expect("the source");
    let changed = source.replace("usage: api", "please use it as: api");
    assert_ne!(source, changed);
    let program = folder.join("api.rs");
    std::fs::write(&program, changed).expect("written");
    let options =
        ["-O", "-C", "target-feature=+crt-static", "-C", "panic=abort", "-C", "strip=symbols", "-o"];
    run_program(Command::new("rustc").args(options).arg(project.path("bin/api")).arg(program)).expect(0);
    project.commit("another program");
    let baked = kiln.in_project(project, &["bake", "--json"]).expect(0).json();
    let next = baked["images"]["api"].as_str().expect("a digest");
    assert_ne!(next, digest);
    // What a layer looks like on its way, damaged in the middle.
    let shown = kiln.in_project(project, &["image", "show", next, "--json"]).expect(0).json();
    let layer =
        shown["manifest"]["layers"][0]["digest"].as_str().expect("a layer").trim_start_matches("sha256:");
    let old = kiln.in_project(project, &["image", "show", digest, "--json"]).expect(0).json();
    let like = old["manifest"]["layers"][0]["digest"].as_str().expect("a layer").to_owned();
    let patch = folder.join("patch");
    let curl = |socket: &Path, arguments: &[&str]| {
        let mut command = Command::new("curl");
        run_program(command.arg("-sS").arg("--unix-socket").arg(socket).args(arguments)).expect(0).stdout
    };
    let url = format!("http://kiln/v1/layers/{layer}?like={like}");
    curl(&kiln.socket(), &["--output", &patch.display().to_string(), &url]);
    let mut bytes = std::fs::read(&patch).expect("a patch");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&patch, &bytes).expect("written");
    let upload = format!("@{}", patch.display());
    let answer = curl(&other.socket(), &["-X", "PUT", "--data-binary", &upload, "http://kiln/v1/layers"]);
    assert!(answer.contains("layer_refused"), "{answer}");
    let lacks = other.cli(folder, &["image", "show", next]);
    assert!(lacks.expect(1).stderr.contains("no image"), "nothing of it is there");

    let second = send(next);
    let third = send(next);
    let (whole, part) = (number(&first, "sent"), number(&second, "sent"));
    let size = number(&second, "size");
    assert!(part * 5 < whole, "a patch of {part} bytes, {whole} for the whole");
    assert_eq!((number(&third, "sent"), number(&third, "n_known")), (0, 1));
    let there = other.cli(folder, &["image", "show", next, "--json"]).expect(0).json();
    assert_eq!(there["manifest"], shown["manifest"]);
    assert_eq!(there["statement"], shown["statement"]);
    other.cli(folder, &["image", "verify", next]).expect(0);
    println!("replication of {size} bytes: {whole} sent for the first, {part} for the next, 0 for the same");
    other.down();
}

/// A registry takes the image once, and what it then has is what was exported.
fn push(kiln: &Kiln, project: &Project, digest: &str, manifest: &Value, folder: &Path) {
    let registry = Registry::start(folder, None);
    let to = format!("{}/shop/api:1", registry.address);
    let push = |to: &str| {
        kiln.in_project(project, &["image", "export", digest, "--service", "api", "--push", to, "--json"])
    };
    let first = push(&to).expect(0).json();
    assert_eq!(first["manifest"], *manifest);
    let again = push(&to).expect(0).json();
    let sent = |view: &Value| view["sent"].as_u64().expect("a number");
    let size = first["size"].as_u64().expect("a number");
    assert!(sent(&first) > size && sent(&again) < 2000, "{first} {again}");
    let there = format!("docker://{to}");
    let seen = tool("skopeo", &["inspect", "--tls-verify=false", &there], folder).expect(0).json();
    assert_eq!(seen["Digest"], *manifest);
    let pulled = format!("dir:{}", folder.join("pulled").display());
    // It compares every digest on the way.
    let pull = ["--insecure-policy", "copy", "--src-tls-verify=false", &there, &pulled];
    tool("skopeo", &pull, folder).expect(0);
    // A name with a capital letter is none.
    let refused = push(&format!("{}/Shop:1", registry.address)).expect(1);
    assert!(refused.stderr.contains("is not a place to push to"), "{refused:?}");
    // Whatever its password is: none is given.
    let htpasswd = "kiln:$2y$05$Ka3m5kGv9kVRtYKqTFqXYOdmF4bVFFTiQzHmq4CfKXbyvbkp2tXKa\n";
    let closed = Registry::start(folder, Some(htpasswd));
    let denied = push(&format!("{}/shop/api:1", closed.address)).expect(1);
    assert!(denied.stderr.contains("--registry-auth"), "{denied:?}");
    println!("pushed {} bytes, {} the second time", sent(&first), sent(&again));
}

/// Loads an archive and runs its program, which prints how it is used.
fn podman(archive: &str, storage: &Path) {
    let loaded = tool("podman", &["load", "--quiet", "--input", archive], storage).expect(0);
    let images: Value = tool("podman", &["images", "--format", "json"], storage).expect(0).json();
    let id = images[0]["Id"].as_str().expect("an image").to_owned();
    let run = "run --rm --network none --read-only --cgroups=disabled --ulimit nofile=1024:1024 --ulimit nproc=4096:4096";
    let mut arguments: Vec<&str> = run.split(' ').collect();
    arguments.extend([id.as_str(), "/bin/api", "--verbose"]);
    let ran = tool("podman", &arguments, storage);
    assert!(ran.stderr.contains("usage: api"), "{ran:?}");
    assert_eq!(ran.code, 2, "{ran:?}");
    tool("podman", &["rmi", "--force", &id], storage).expect(0);
    println!("podman loaded {} and ran it", loaded.stdout.trim());
}
