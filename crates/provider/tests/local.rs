//! The local provider on a real kernel. Needs root; skips loudly otherwise. It is its own program: the provider starts
//! it as supervisor and as exec helper.

fn main() {
    let args: Vec<std::ffi::OsString> = std::env::args_os().skip(1).collect();
    let word = |n: usize| args.get(n).and_then(|a| a.to_str()).unwrap_or("");
    match (word(0), word(1)) {
        ("internal", "supervise") => exit(kiln_provider::local::supervise::main(args.into_iter().skip(2))),
        ("internal", "exec") => exit(kiln_provider::local::exec::main()),
        _ => suite(),
    }
}

/// The status of a helper role.
fn exit(code: std::process::ExitCode) {
    let ok = format!("{code:?}") == format!("{:?}", std::process::ExitCode::SUCCESS);
    std::process::exit(if ok { 0 } else { 2 });
}

mod host {
    use kiln_model::*;
    use std::path::{Path, PathBuf};
    use std::process::Command;

    /// A state folder with one image, in a network namespace of its own.
    pub struct Host {
        pub state: tempfile::TempDir,
        pub manifest: ImageManifest,
    }

    fn run(command: &mut Command) {
        let output = command.output().unwrap();
        assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// The static test program, compiled once per content.
    fn probe() -> PathBuf {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/local/probe.rs");
        let digest = Digest::of(&std::fs::read(&source).unwrap());
        let out = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("probe-{}", digest.short()));
        if !out.exists() {
            let new = out.with_extension(std::process::id().to_string());
            run(Command::new("rustc")
                .args(["--edition=2024", "-O", "-C", "target-feature=+crt-static", "-C", "panic=abort", "-o"])
                .args([&new, &source]));
            std::fs::rename(new, &out).unwrap();
        }
        out
    }

    fn layer(objects: &Path, tree: &Path, role: &str) -> LayerRef {
        let file = objects.join(format!("{role}.new"));
        run(Command::new("mkfs.erofs").arg("--all-root").args([&file, &tree.to_path_buf()]));
        let bytes = std::fs::read(&file).unwrap();
        let digest = Digest::of(&bytes);
        let folder = objects.join("sha256").join(&digest.hex()[..2]);
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::rename(file, folder.join(&digest.hex()[2..])).unwrap();
        LayerRef { digest, size: bytes.len() as u64, role: role.into() }
    }

    impl Host {
        pub fn new() -> Self {
            let state = tempfile::tempdir().unwrap();
            let objects = state.path().join("objects");
            let (base, app) = (state.path().join("base"), state.path().join("app"));
            for dir in ["bin", "dev", "proc", "tmp", "run", "etc", "data"] {
                std::fs::create_dir_all(base.join(dir)).unwrap();
            }
            for file in ["hosts", "hostname", "resolv.conf"] {
                std::fs::write(base.join("etc").join(file), "").unwrap();
            }
            std::fs::create_dir_all(app.join("bin")).unwrap();
            std::fs::create_dir_all(&objects).unwrap();
            std::fs::copy(probe(), app.join("bin/probe")).unwrap();
            std::fs::write(app.join("bin/not-executable"), "x").unwrap();
            let layers = vec![layer(&objects, &base, "base"), layer(&objects, &app, "app")];
            let config = ImageConfig { epoch: 0, users: [("web".to_owned(), (1000, 1000))].into() };
            let manifest = ImageManifest { format: 1, architecture: "amd64".into(), layers, config };
            Self { state, manifest }
        }

        pub fn config(&self) -> kiln_provider::local::LocalConfig {
            let mut config = kiln_provider::local::LocalConfig::new(self.state.path());
            config.program = std::env::current_exe().unwrap();
            config
        }

        pub fn spec(&self, sequence: u64, command: &[&str]) -> InstanceSpec {
            let service = ServiceName::new("web").unwrap();
            InstanceSpec {
                id: InstanceId::new(&service, sequence),
                env: EnvRef { project: ProjectName::new("p").unwrap(), env: EnvName::new("e").unwrap() },
                release: ReleaseNumber(1),
                service,
                commit: "0123456789012345678901234567890123456789".parse().unwrap(),
                image: self.manifest.digest(),
                manifest: self.manifest.clone(),
                command: command.iter().map(|s| (*s).to_owned()).collect(),
                user: "web".into(),
                environment: [("A".to_owned(), "b".to_owned())].into(),
                writable: vec!["/data".into(), "/run/deep/er".into()],
                resources: Resources { cpu_milli: 1000, memory_bytes: 64 << 20, pids: 64 },
                port: Some(8080),
                stop: Stop { signal: 15, timeout: Millis(2000) },
            }
        }
    }
}

fn suite() {
    if !rustix::process::geteuid().is_root() {
        println!("SKIPPED: the local provider's tests need root");
        return;
    }
    kiln_sys::namespace::enter_private_net().unwrap();
    let host = host::Host::new();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        use kiln_model::*;
        use kiln_provider::Provider;
        let p = kiln_provider::local::LocalProvider::open(host.config()).unwrap();
        let fence = Fence::default();
        let t = std::time::Instant::now();
        println!("{:?}", p.ensure(fence, &host.spec(1, &["/bin/probe", "serve", "8080"])).await);
        println!("{:?}", t.elapsed());
        println!("{:?}", p.list().await);
        let id = &host.spec(1, &[]).id;
        for kind in [
            CheckKind::Http {
                port: 8080,
                path: "/".into(),
                status: None,
                contains: Some("hello".into()),
                host: None,
            },
            CheckKind::Tcp { port: 8080 },
            CheckKind::Listening { port: 8080 },
            CheckKind::File { path: "/etc/hosts".into(), contains: Some("web-1".into()) },
            CheckKind::Command { argv: vec!["probe".into(), "true".into()] },
            CheckKind::Command { argv: vec!["probe".into(), "false".into()] },
        ] {
            println!("{:?}", p.check(id, &Check { kind, timeout: Millis(2000) }).await);
        }
        println!("{:?}", kiln_provider::local::inventory(host.state.path()));
        println!("{:?}", p.ensure(fence, &host.spec(2, &["/bin/probe", "audit", "10.83.0.2:8080"])).await);
        for _ in 0..40 {
            if let SeenState::Exited(_) = p.list().await.unwrap()[1].state {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
        println!("{:?}", p.list().await);
        let out = std::fs::read(host.state.path().join("instances/web-2/out.0")).unwrap();
        let mut rest = &out[..];
        while let Some((f, n)) = frame::Frame::decode(rest) {
            println!("{} {}", f.stream.word(), String::from_utf8_lossy(&f.line));
            rest = &rest[n..];
        }
        println!("{:?}", p.absent(fence, id).await);
        println!("{:?}", p.absent(fence, &host.spec(2, &[]).id).await);
        println!("{:?}", kiln_provider::local::inventory(host.state.path()));
        drop(p);
        println!("{:?}", kiln_provider::local::sweep(host.state.path()));
        println!("{:?}", kiln_provider::local::inventory(host.state.path()));
    });
}
