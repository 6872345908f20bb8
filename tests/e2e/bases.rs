//! Images that do not stand on Debian packages: OCI images of files and of a real registry, other images of the file, and
//! what buildah makes of a Containerfile; and a playbook that runs in a bake.

use kiln_tests::{Answer, Kiln, Project, compiled_api, free_address, run as run_program, wait_until};
use serde_json::Value;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(30);

/// A project without an example below it.
fn project(toml: &str, files: &[(&str, &str)]) -> Project {
    let project = Project::from_example("shop");
    for entry in std::fs::read_dir(project.dir.path()).expect("project").flatten() {
        let path = entry.path();
        if path.file_name().is_some_and(|name| name == ".git") {
            continue;
        }
        let gone = if path.is_dir() { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) };
        gone.expect("an empty project");
    }
    project.write("kiln.toml", toml);
    for (path, text) in files {
        let folder = project.dir.path().join(path);
        std::fs::create_dir_all(folder.parent().expect("a folder")).expect("folder");
        project.write(path, text);
    }
    project.commit("another project");
    project
}

fn image_of(baked: &Answer, name: &str) -> String {
    baked.json()["images"][name].as_str().expect("a digest").to_owned()
}

fn layers(kiln: &Kiln, project: &Project, image: &str) -> Vec<Value> {
    let shown = kiln.in_project(project, &["image", "show", image, "--json"]).expect(0).json();
    shown["manifest"]["layers"].as_array().expect("layers").clone()
}

/// An OCI layout with one image of two layers, made by buildah: a server program, and a file that the second layer removes.
fn layout(dir: &Path) -> PathBuf {
    let context = dir.join("context");
    std::fs::create_dir_all(&context).expect("context");
    std::fs::copy(compiled_api(), context.join("api")).expect("api");
    std::fs::write(context.join("extra"), "extra").expect("extra");
    let text = "FROM scratch\nCOPY api /usr/bin/api\nCOPY extra /etc/extra\nENV PORT=1\nENTRYPOINT [\"/usr/bin/api\"]\n";
    std::fs::write(context.join("Containerfile"), text).expect("Containerfile");
    let buildah = |arguments: &[&str]| {
        let mut command = Command::new("buildah");
        command.arg("--root").arg(dir.join("root")).arg("--runroot").arg(dir.join("run"));
        run_program(command.args(["--storage-driver", "vfs"]).args(arguments).env("HOME", dir)).expect(0);
    };
    let context = context.display().to_string();
    buildah(&[
        "bud",
        "--layers",
        "--isolation",
        "chroot",
        "--timestamp",
        "1700000000",
        "-t",
        "base",
        &context,
    ]);
    let layout = dir.join("layout");
    buildah(&["push", "base", &format!("oci:{}:1", layout.display())]);
    layout
}

/// Debian's registry, in this namespace.
pub struct Registry {
    pub address: String,
    process: Child,
}

impl Registry {
    /// Without a password, or with one of htpasswd.
    pub fn start(dir: &Path, htpasswd: Option<&str>) -> Self {
        let address = free_address();
        let storage = dir.join(format!("registry-{}", htpasswd.is_some()));
        let mut config = format!(
            "version: 0.1\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: {address}\n",
            storage.display()
        );
        if let Some(htpasswd) = htpasswd {
            let path = dir.join("htpasswd");
            std::fs::write(&path, htpasswd).expect("htpasswd");
            config.push_str(&format!("auth:\n  htpasswd:\n    realm: test\n    path: {}\n", path.display()));
        }
        let path = storage.with_extension("yml");
        std::fs::write(&path, config).expect("configuration");
        let mut command = Command::new("docker-registry");
        command.arg("serve").arg(&path).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let process = command.spawn().expect("docker-registry");
        let up = || std::net::TcpStream::connect(&address).is_ok();
        wait_until("the registry listens", LIMIT, up);
        Self { address, process }
    }

    /// Copies the image of a layout to it.
    fn push(&self, layout: &Path, name: &str, credentials: Option<&str>) {
        let mut command = Command::new("skopeo");
        command.args(["copy", "--dest-tls-verify=false", "--insecure-policy"]);
        if let Some(credentials) = credentials {
            command.args(["--dest-creds", credentials]);
        }
        command.arg(format!("oci:{}:1", layout.display()));
        run_program(command.arg(format!("docker://{}/{name}", self.address))).expect(0);
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

pub fn oci() {
    let dir = tempfile::tempdir().expect("temporary folder");
    let layout = layout(dir.path());
    let registry = Registry::start(dir.path(), None);
    registry.push(&layout, "team/base:1", None);
    let (path, remote) = (format!("{}:1", layout.display()), format!("{}/team/base:1", registry.address));
    let toml = format!(
        r#"
name = "bases"
[images.local]
base = "oci:{path}"
copy = [{{ from = "index.html", to = "/srv/" }}]
[images.remote]
base = "oci:{remote}"
copy = [{{ from = "index.html", to = "/srv/" }}]
[images.above]
base = "image:local"
copy = [{{ from = "index.html", to = "/srv/version" }}]
[services.api]
image = "above"
command = ["/usr/bin/api"]
port = 9000
health = {{ http = "/api/healthz" }}
instances = 1
"#
    );
    let project = project(&toml, &[("index.html", "hello")]);
    let first = Kiln::started(&free_address());
    first.in_project(&project, &["lock"]).expect(0);
    let lock = std::fs::read_to_string(project.dir.path().join("kiln.lock")).expect("kiln.lock");
    assert!(lock.contains("[bases]") && lock.contains(&remote), "{lock}");
    project.commit("locked");
    let second = Kiln::started(&free_address());
    let cold = second.in_project(&project, &["bake", "--json"]).expect(0);
    // Neither the registry nor the layout is there any more: a bake takes what the lock brought in.
    drop(registry);
    std::fs::rename(&layout, dir.path().join("away")).expect("rename");
    let baked = first.in_project(&project, &["bake", "--json"]).expect(0);
    assert_eq!(baked.json()["images"], cold.json()["images"], "two state folders, two origins of the blobs");
    assert_eq!(image_of(&baked, "local"), image_of(&baked, "remote"), "a layout and a registry");
    let (local, above) = (image_of(&baked, "local"), image_of(&baked, "above"));
    let (below, all) = (layers(&first, &project, &local), layers(&first, &project, &above));
    assert_eq!(all[..below.len()], below[..], "an image stands on the layers of the other");
    assert_eq!(all.len(), below.len() + 1);
    let shown = first.in_project(&project, &["image", "show", &local]).expect(0);
    assert!(shown.stdout.contains("/usr/bin/api") && shown.stdout.contains("PORT=1"), "{}", shown.stdout);
    // A part of the base is lost, and its origin too: it is named, not replaced by something else.
    let digest = lock.lines().find_map(|line| line.split_once("sha256:")).expect("a digest").1;
    let object =
        |digest: &str| first.state.path().join("objects/sha256").join(&digest[..2]).join(&digest[2..64]);
    std::fs::remove_file(object(digest)).expect("the manifest");
    project.write("index.html", "changed");
    project.commit("changed");
    let refused = first.in_project(&project, &["bake"]).expect(1);
    assert!(
        refused.stderr.contains(&digest[..64]) || refused.stderr.contains("cannot"),
        "{}",
        refused.stderr
    );
    std::fs::rename(dir.path().join("away"), &layout).expect("rename");
    let again = first.in_project(&project, &["lock", "--update"]);
    assert_eq!(again.code, 1, "the registry is away: {}", again.stderr);
    second.in_project(&project, &["deploy"]).expect(0);
    println!(
        "cold bake of three images on OCI bases {:.2} s, from stored blobs {:.2} s",
        cold.took.as_secs_f64(),
        baked.took.as_secs_f64()
    );
    first.down();
    second.down();
    passwords(dir.path(), &layout);
}

/// A registry with a password: refused without, taken with the file of `docker login`.
fn passwords(dir: &Path, layout: &Path) {
    // `kiln:secret` in bcrypt, as htpasswd -B writes it.
    let row = "kiln:$2b$04$Fu.x9SqWq53qQZe.GG42PuGxpekXr/0LXrTBhw2LpK19c4TA/v7c6\n";
    let registry = Registry::start(dir, Some(row));
    registry.push(layout, "private:1", Some("kiln:secret"));
    let toml = format!(
        "name = \"private\"\n[images.app]\nbase = \"oci:{}/private:1\"\n[services.app]\nimage = \"app\"\ncommand = [\"/usr/bin/api\"]\n",
        registry.address
    );
    let project = project(&toml, &[]);
    let mut kiln = Kiln::started(&free_address());
    let refused = kiln.in_project(&project, &["lock"]).expect(1);
    assert!(refused.stderr.contains("--registry-auth"), "{}", refused.stderr);
    kiln.terminate();
    let auth = dir.join("config.json");
    let text = format!(r#"{{"auths":{{"{}":{{"auth":"a2lsbjpzZWNyZXQ="}}}}}}"#, registry.address);
    std::fs::write(&auth, text).expect("config.json");
    std::fs::set_permissions(&auth, std::fs::Permissions::from_mode(0o600)).expect("chmod");
    kiln.start_with(&["--registry-auth", &auth.display().to_string()]);
    kiln.in_project(&project, &["lock"]).expect(0);
    kiln.down();
}

/// A Containerfile is built in a sandbox that is nobody on the host, once per committed tree, and is said to be what it is.
pub fn containerfile() {
    // buildah makes a name of the path of a layout, and names have no capitals.
    let name = format!("kiln-bases-{}", std::process::id());
    let dir = tempfile::Builder::new().prefix(&name).rand_bytes(0).tempdir().expect("temporary folder");
    let toml = r#"
name = "container"
[images.app]
base = "containerfile:build/Containerfile"
copy = [{ from = "build/text", to = "/srv/" }]
[services.app]
image = "app"
command = ["/usr/bin/api"]
"#;
    let text = "FROM scratch\nCOPY bin/api /usr/bin/api\nCOPY build/text /srv/first\nRUN [\"/usr/bin/api\", \"--self-test\"]\n";
    let project = project(toml, &[("build/Containerfile", text), ("build/text", "one"), ("kiln.md", "")]);
    std::fs::create_dir_all(project.path("bin")).expect("bin/");
    std::fs::copy(compiled_api(), project.path("bin/api")).expect("bin/api");
    project.commit("program");
    let kiln = Kiln::started(&free_address());
    let cold = kiln.in_project(&project, &["bake", "--json"]).expect(0);
    assert_eq!(cold.stderr.matches("not reproducible").count(), 1, "{}", cold.stderr);
    assert_eq!(cold.json()["warnings"].as_array().expect("warnings").len(), 1);
    let shown = kiln.in_project(&project, &["image", "show", &image_of(&cold, "app")]).expect(0);
    assert!(shown.stdout.contains("unreproducible"), "{}", shown.stdout);
    let warm = kiln.in_project(&project, &["bake", "--json"]).expect(0);
    assert_eq!(warm.json()["images"], cold.json()["images"]);
    println!("Containerfile: cold {:.2} s, again {:.2} s", cold.took.as_secs_f64(), warm.took.as_secs_f64());
    // What runs is not root of the host: a folder that only root may enter stays shut.
    let layout = layout(dir.path());
    let mode =
        |mode| std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(mode)).expect("chmod");
    mode(0o700);
    project.write("build/Containerfile", &format!("FROM oci:{}:1\n", layout.display()));
    project.commit("reads the host");
    let refused = kiln.in_project(&project, &["bake"]).expect(1);
    assert!(refused.stderr.contains("permission denied"), "{}", refused.stderr);
    mode(0o755);
    kiln.in_project(&project, &["bake"]).expect(0);
    // A step that fails: its output comes to the user.
    let text = format!("FROM oci:{}:1\nRUN [\"/usr/bin/api\", \"--no-such\"]\n", layout.display());
    project.write("build/Containerfile", &text);
    project.commit("fails");
    let failed = kiln.in_project(&project, &["bake"]).expect(1);
    assert!(failed.stderr.contains("--no-such"), "{}", failed.stderr);
    let left = std::fs::read_dir(kiln.state.path().join("buildah")).expect("buildah/").count();
    assert_eq!(left, 0, "folders of builds");
    kiln.down();
}
