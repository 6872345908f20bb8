//! A hostile program in an honest image, as every kind of user, and the same as the program of a check.

use crate::images;
use crate::world::{World, wait_for};
use kiln_model::frame::Stream;
use kiln_model::*;
use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::process::ExitCode;

/// Named in the image, its root, and the usual nobody, which is the last that there is.
const USERS: [&str; 3] = ["web", "0", "65534"];

/// Runs a hostile program as every user, and in checks of an instance of every user.
async fn everywhere(world: &World, command: &[&str]) {
    let argv = [&["hostile"], command].concat();
    for user in USERS {
        let mut spec = world.spec(&argv);
        spec.user = user.into();
        let lines = world.all_refused(&spec).await;
        println!("  user {user}: {} refused", lines.iter().filter(|line| line.starts_with("ok")).count());
        let mut spec = world.spec(&["probe", "sleep"]);
        spec.user = user.into();
        world.start(&spec).await;
        world.all_refused_in_a_check(&spec.id, &argv).await;
        world.remove(&spec.id).await;
    }
}

/// Mounts, namespaces, modules, clocks, tracing, raw sockets, device nodes, the network's settings, sockets of the host.
pub async fn doors_are_shut(world: &World) {
    everywhere(world, &["doors", &world.socket]).await;
}

pub async fn proc_cannot_be_written(world: &World) {
    everywhere(world, &["writable"]).await;
}

pub async fn secrets_are_kept(world: &World) {
    everywhere(world, &["secrets"]).await;
}

/// CVE-2024-21626.
pub async fn only_three_descriptors(world: &World) {
    everywhere(world, &["descriptors"]).await;
}

/// CVE-2019-5736 from a program that was started in the ordinary way.
pub async fn runtime_is_not_overwritten(world: &World) {
    everywhere(world, &["runtime"]).await;
}

/// CVE-2019-5736 as it was: the command is a link to the program that executes it, with all that it needs to run in the
/// image, so that the runtime's own program runs under the instance's command.
pub async fn runtime_as_the_program(world: &World) {
    let tree = images::tree(world.host.state(), "magic", |tree| {
        std::os::unix::fs::symlink("/proc/self/exe", tree.join("bin/magic")).unwrap();
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let files = maps.lines().filter_map(|line| line.split_whitespace().nth(5));
        for library in files.filter(|path| path.contains(".so")) {
            let to = tree.join(&library[1..]);
            std::fs::create_dir_all(to.parent().unwrap()).unwrap();
            std::fs::copy(library, to).unwrap();
        }
        // Where programs say that the loader is.
        let loader = "/lib64/ld-linux-x86-64.so.2";
        std::fs::create_dir_all(tree.join("lib64")).unwrap();
        std::fs::copy(loader, tree.join(&loader[1..])).unwrap();
    });
    let manifest = world.image(vec![images::layer(world.host.state(), &tree, "magic")]);
    for user in USERS {
        let mut spec = world.spec_of(&manifest, &["/bin/magic", "steal"]);
        spec.user = user.into();
        world.start(&spec).await;
        let reason = world.ended(&spec.id).await;
        let lines = world.host.printed(&spec.id, Stream::Out);
        println!("  as the program, user {user}: {reason}: {lines:?}");
        assert!(!lines.iter().any(|line| line.starts_with("BROKEN")), "{lines:?}");
        world.remove(&spec.id).await;
        let mut spec = world.spec_of(&manifest, &["/bin/hostile", "spy", "20000"]);
        spec.user = user.into();
        world.start(&spec).await;
        for _ in 0..3 {
            let evidence = world.check(&spec.id, &["/bin/magic", "steal"], 10_000).await;
            assert!(!evidence.detail.contains("BROKEN"), "{evidence:?}");
        }
        let lines = world.host.printed(&spec.id, Stream::Out);
        assert!(!lines.iter().any(|line| line.starts_with("BROKEN")), "{lines:?}");
        world.remove(&spec.id).await;
    }
}

/// What the runtime's program does when it runs in a hostile instance: it tries to replace its own file.
pub fn steal() -> ExitCode {
    const O_PATH: i32 = 0o10_000_000;
    const NAME: &str = "/proc/self/exe";
    println!("runs {:?}", std::fs::read_link(NAME));
    let broken = |what: &str| println!("BROKEN {what}");
    if OpenOptions::new().write(true).open(NAME).is_ok() {
        broken("opened for writing");
    }
    if let Ok(held) = OpenOptions::new().read(true).custom_flags(O_PATH).open(NAME) {
        let again = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&held));
        for _ in 0..200 {
            if OpenOptions::new().write(true).open(&again).is_ok() {
                broken("opened again for writing");
            }
        }
        if std::fs::set_permissions(&again, std::os::unix::fs::PermissionsExt::from_mode(0o777)).is_ok() {
            broken("its mode was changed");
        }
    }
    ExitCode::SUCCESS
}

/// Signals, limits, priorities, memory and files of pid 1, which keeps on working.
pub async fn supervisor_is_out_of_reach(world: &World) {
    for user in USERS {
        let mut spec = world.spec(&["hostile", "supervisor"]);
        spec.user = user.into();
        world.all_refused(&spec).await;
        let mut spec = world.spec(&["probe", "sleep"]);
        spec.user = user.into();
        world.start(&spec).await;
        world.all_refused_in_a_check(&spec.id, &["hostile", "supervisor"]).await;
        world.remove(&spec.id).await;
    }
}

/// A program that kills all that it can kill is recorded as what it is.
pub async fn kill_everything(world: &World) {
    for user in USERS {
        let mut spec = world.spec(&["hostile", "kill-all"]);
        spec.user = user.into();
        world.start(&spec).await;
        world.printed(&spec.id, "killing all").await;
        // `kill(-1)` leaves out whoever calls.
        let evidence = world.check(&spec.id, &["hostile", "kill-all"], 500).await;
        assert!(!evidence.passed, "{evidence:?}");
        assert_eq!(world.ended(&spec.id).await, ExitReason::Signal { signal: 9 }, "user {user}");
        world.remove(&spec.id).await;
    }
}

/// Pid 1 is the only process that has something of the host's: only files of its instance, none for going elsewhere.
pub async fn pid_1_holds_no_way_out(world: &World) {
    let spec = world.spec(&["probe", "sleep"]);
    world.start(&spec).await;
    let pid = world.pid_1(&spec.id);
    let folder = kiln_provider::local::instance_folder(world.host.state(), &spec.id).canonicalize().unwrap();
    let mut count = 0;
    for entry in std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten() {
        let Ok(target) = std::fs::read_link(entry.path()) else { continue };
        let name = target.display().to_string();
        let kind = std::fs::metadata(entry.path()).map(|m| m.is_dir()).unwrap_or(false);
        assert!(!kind, "pid 1 holds the directory {name}");
        let of_the_kernel =
            ["pipe:", "socket:", "anon_inode:", "pidfd:", "/dev/null"].iter().any(|k| name.starts_with(k));
        let counts = name.ends_with("memory.oom_control") || name.ends_with(".events");
        assert!(of_the_kernel || counts || target.starts_with(&folder), "pid 1 holds {name}");
        if counts {
            let flags =
                std::fs::read_to_string(format!("/proc/{pid}/fdinfo/{}", entry.file_name().display()));
            let flags = flags.unwrap_or_default();
            let flags = flags.lines().find_map(|l| l.strip_prefix("flags:")).unwrap_or("").trim().to_owned();
            assert_eq!(u32::from_str_radix(&flags, 8).unwrap() & 3, 0, "{name} can be written");
        }
        count += 1;
    }
    assert!(count > 3, "{count}");
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let field = |name: &str| {
        let line = status.lines().find_map(|l| l.strip_prefix(name)).unwrap_or("");
        u64::from_str_radix(line.trim_start_matches(':').trim(), 16).unwrap()
    };
    let kill = 1 << kiln_sys::privilege::CAP_KILL;
    assert_eq!((field("CapPrm") & !kill, field("CapEff") & !kill, field("CapBnd")), (0, 0, 0));
    for name in ["root", "cwd"] {
        assert_eq!(std::fs::read_link(format!("/proc/{pid}/{name}")).unwrap(), std::path::Path::new("/"));
    }
    let (inside, outside) = (format!("/proc/{pid}/root"), "/".to_owned());
    let device = |path: String| std::os::unix::fs::MetadataExt::dev(&std::fs::metadata(path).unwrap());
    assert_ne!(device(inside), device(outside), "its root is the host's");
    // It is killed with all that it has: nothing of the instance goes on.
    kiln_sys::process::signal_pid(pid, 9).unwrap();
    assert_eq!(world.ended(&spec.id).await, ExitReason::Unknown);
    wait_for("all die with it", || kiln_provider::local::inventory(world.host.state()).processes == 0).await;
    world.remove(&spec.id).await;
}
