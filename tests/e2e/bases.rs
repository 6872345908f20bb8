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
    let archives = dir.path().display();
    for target in
        [format!("oci-archive:{archives}/oci.tar:1"), format!("docker-archive:{archives}/docker.tar:x/y:1")]
    {
        let mut skopeo = Command::new("skopeo");
        skopeo.args(["copy", "--insecure-policy", &format!("oci:{}:1", layout.display()), &target]);
        run_program(&mut skopeo).expect(0);
    }
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
[images.archive]
base = "oci:{archives}/oci.tar"
copy = [{{ from = "index.html", to = "/srv/" }}]
[images.docker]
base = "oci:{archives}/docker.tar:1"
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
    for archive in ["archive", "docker"] {
        assert_eq!(image_of(&baked, "local"), image_of(&baked, archive), "a layout and a file of skopeo");
    }
    let (local, above) = (image_of(&baked, "local"), image_of(&baked, "above"));
    let (below, all) = (layers(&first, &project, &local), layers(&first, &project, &above));
    assert_eq!(all[..below.len()], below[..], "an image stands on the layers of the other");
    assert_eq!(all.len(), below.len() + 1);
    let shown = first.in_project(&project, &["image", "show", &local]).expect(0);
    assert!(shown.stdout.contains("/usr/bin/api") && shown.stdout.contains("PORT=1"), "{}", shown.stdout);
    // A part of the base is lost, and its origin too: it is named, not replaced by something else.
    let row = lock.lines().find(|line| line.contains(&path)).expect("the layout in the lock");
    let digest = row.split_once("sha256:").expect("a digest").1;
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
        "cold bake of five images on OCI bases {:.2} s, from stored blobs {:.2} s",
        cold.took.as_secs_f64(),
        baked.took.as_secs_f64()
    );
    first.down();
    second.down();
    passwords(dir.path(), &layout);
    hostile_registry();
}

/// A registry that asks for a token and then lies: about sizes, about contents, without end.
fn hostile_registry() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("loopback is up");
    let address = listener.local_addr().expect("bound").to_string();
    let realm = address.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            // The other side may hang up, which is what it should do.
            let _ = lie(stream, &realm);
        }
    });
    let kiln = Kiln::started(&free_address());
    for (name, why) in [
        ("large", "is larger than 10 bytes"),
        ("wrong", "the content is sha256:"),
        ("short", "cannot read"),
        ("endless", "is larger than 4194304 bytes"),
        ("nothing", "cannot use its manifest"),
        ("elsewhere", "which is not https"),
    ] {
        let toml = format!(
            "name = \"evil\"\n[images.app]\nbase = \"oci:{address}/{name}:1\"\n[services.app]\nimage = \"app\"\ncommand = [\"/a\"]\n"
        );
        let refused = kiln.in_project(&project(&toml, &[]), &["lock"]).expect(1);
        assert!(refused.stderr.contains(why), "{name}: {}", refused.stderr);
    }
    let objects = kiln.state.path().join("objects");
    assert_eq!(std::fs::read_dir(objects.join("tmp")).expect("tmp").count(), 0, "halves of blobs");
    assert_eq!(std::fs::read_dir(objects.join("sha256")).expect("sha256").count(), 0, "nothing was believed");
    kiln.down();
}

/// Answers one request.
fn lie(mut stream: std::net::TcpStream, address: &str) -> std::io::Result<()> {
    use std::io::{BufRead, BufReader, Write};
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let first = lines.next().transpose()?.unwrap_or_default();
    let mut let_in = false;
    for line in lines.by_ref() {
        let line = line?.to_ascii_lowercase();
        let_in |= line == "authorization: bearer t";
        if line.is_empty() {
            break;
        }
    }
    let path = first.split(' ').nth(1).unwrap_or_default();
    let mut answer = |status: &str, length: usize, body: &[u8]| {
        write!(stream, "HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n")?;
        stream.write_all(body)
    };
    if path.starts_with("/token?") {
        return answer("200 OK", 13, br#"{"token":"t"}"#);
    }
    if !let_in {
        let realm =
            if path.contains("elsewhere") { "http://elsewhere.test" } else { &format!("http://{address}") };
        let status =
            format!("401 Unauthorized\r\nWWW-Authenticate: Bearer realm=\"{realm}/token\",service=\"x\"");
        return answer(&status, 0, b"");
    }
    let blob = format!(r#"{{"mediaType":"x","digest":"sha256:{}","size":10}}"#, "ab".repeat(32));
    let manifest = format!(r#"{{"schemaVersion":2,"config":{blob},"layers":[{blob}]}}"#);
    match path {
        "/v2/endless/manifests/1" => answer("200 OK", 1 << 30, &vec![b' '; 8 << 20]),
        "/v2/nothing/manifests/1" => answer("200 OK", 2, b"{}"),
        path if path.contains("/manifests/") => answer("200 OK", manifest.len(), manifest.as_bytes()),
        path if path.contains("/large/") => answer("200 OK", 1 << 20, &vec![0; 1 << 20]),
        path if path.contains("/short/") => answer("200 OK", 10, b"12345"),
        _ => answer("200 OK", 10, b"0123456789"),
    }
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

const PLAYBOOK: &str = r#"
- hosts: all
  become: true
  vars:
    port: 8080
  tasks:
    - name: a template
      template: { src: motd.j2, dest: /etc/motd, mode: "0640" }
    - name: a user
      user: { name: worker, uid: 2001, shell: /usr/sbin/nologin, system: true, create_home: true }
    - name: a folder of the user
      file: { path: /srv/data, state: directory, owner: worker, group: worker, mode: "0750" }
    - name: a link
      file: { src: /srv/data, dest: /srv/link, state: link }
    - name: a line
      lineinfile: { path: /etc/login.defs, regexp: "^UMASK", line: "UMASK 027" }
    - name: nothing of a file that the base has
      file: { path: /etc/issue.net, state: absent }
"#;

/// A playbook runs in the bake, over the packages and before the application, without the host showing through.
pub fn provision() {
    let toml = r#"
name = "managed"
[images.app]
base = "debian:bookworm"
provision = { ansible = "ansible/site.yml" }
copy = [{ from = "kiln.toml", to = "/srv/" }]
[services.app]
image = "app"
command = ["/bin/sleep", "1000"]
"#;
    let template = "{{ ansible_distribution }} {{ port }} {{ ansible_managed | length > 0 }} {{ inventory_hostname }}\n\
                    {% for name in ['hostname', 'default_ipv4', 'date_time', 'processor'] %}{{ ansible_facts[name] is defined }} {% endfor %}\n";
    let project = project(
        toml,
        &[("ansible/site.yml", PLAYBOOK), ("ansible/templates/motd.j2", template), ("other", "")],
    );
    let first = Kiln::started(&free_address());
    first.in_project(&project, &["lock"]).expect(0);
    let lock = std::fs::read_to_string(project.path("kiln.lock")).expect("kiln.lock");
    assert!(lock.contains("app.provision") && lock.contains("\"ansible-core\""));
    project.commit("locked");
    let cold = first.in_project(&project, &["bake", "--json"]).expect(0);
    // What the playbook made is forgotten, so that it runs again.
    let mut n_forgotten = 0;
    for entry in std::fs::read_dir(first.state.path().join("cache")).expect("cache").flatten() {
        if std::fs::read_to_string(entry.path()).is_ok_and(|text| text.contains("\"provision\"")) {
            std::fs::remove_file(entry.path()).expect("a cached layer");
            n_forgotten += 1;
        }
    }
    assert_eq!(n_forgotten, 1);
    std::fs::remove_dir_all(first.state.path().join("cache/images")).expect("what was baked before");
    let again = first.in_project(&project, &["bake", "--json"]).expect(0);
    assert!(again.stderr.contains("running playbook"), "{}", again.stderr);
    assert_eq!(cold.json()["images"], again.json()["images"], "the playbook ran twice");
    let image = image_of(&cold, "app");
    let roles: Vec<_> = layers(&first, &project, &image)
        .iter()
        .map(|layer| {
            (layer["role"].as_str().expect("role").to_owned(), layer["size"].as_u64().expect("size"))
        })
        .collect();
    let names: Vec<_> = roles.iter().map(|(role, _)| role.as_str()).collect();
    assert_eq!(names, ["base", "provision", "app"], "Ansible is not part of the image");
    let (cold, again) = (cold.took.as_secs_f64(), again.took.as_secs_f64());
    println!(
        "playbook: cold {cold:.2} s, the playbook alone {again:.2} s, its layer has {} bytes",
        roles[1].1
    );
    let digest = layers(&first, &project, &image)[1]["digest"].as_str().expect("digest").to_owned();
    let hex = digest.trim_start_matches("sha256:");
    let object = first.state.path().join("objects/sha256").join(&hex[..2]).join(&hex[2..]);
    let extracted = tempfile::tempdir().expect("temporary folder");
    let out = format!("--extract={}", extracted.path().display());
    run_program(Command::new("fsck.erofs").arg(out).arg("--overwrite").arg(&object)).expect(0);
    let read = |path: &str| {
        std::fs::read_to_string(extracted.path().join(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
    };
    assert_eq!(read("etc/motd"), "Debian 8080 True localhost\nFalse False False False \n");
    assert!(read("etc/passwd").contains("worker:x:2001:"));
    assert!(read("etc/login.defs").contains("UMASK 027"));
    let meta = |path: &str| std::fs::symlink_metadata(extracted.path().join(path)).expect("metadata");
    use std::os::unix::fs::MetadataExt;
    assert_eq!((meta("etc/motd").mode() & 0o7777, meta("srv/data").mode() & 0o7777), (0o640, 0o750));
    assert_eq!(meta("srv/data").uid(), 2001);
    assert!(meta("srv/link").is_symlink());
    for gone in ["run/kiln", "root/.ansible", "usr/bin/ansible-playbook"] {
        assert!(!extracted.path().join(gone).exists(), "{gone}");
    }
    // Another file of the commit: the playbook does not run again. A task that fails is named with what it said.
    project.write("other", "changed");
    project.commit("another file");
    let warm = first.in_project(&project, &["bake", "--json"]).expect(0);
    assert!(!warm.stderr.contains("running playbook"), "{}", warm.stderr);
    project.edit("ansible/site.yml", "src: motd.j2", "src: none.j2");
    project.commit("fails");
    let failed = first.in_project(&project, &["bake"]).expect(1);
    assert!(failed.stderr.contains("a template") && failed.stderr.contains("none.j2"), "{}", failed.stderr);
    project.edit("ansible/site.yml", "hosts: all", "hosts: nobody");
    project.commit("fits no host");
    let failed = first.in_project(&project, &["bake"]).expect(1);
    assert!(failed.stderr.contains("nobody"), "{}", failed.stderr);
    first.down();
}
