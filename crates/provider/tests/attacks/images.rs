//! Hostile images: files that promise rights, device files, and links where things are mounted (CVE-2021-30465,
//! CVE-2025-31133, CVE-2025-52565, CVE-2025-52881).

use crate::world::{World, fence};
use kiln_model::frame::Stream;
use kiln_model::*;
use kiln_provider::{Provider, ProviderError};
use rustix::fs::{CWD, FileType, Mode, XattrFlags};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Every place that something is mounted at.
const PLACES: [&str; 8] =
    ["proc", "dev", "tmp", "run", "data", "etc/hosts", "etc/hostname", "etc/resolv.conf"];

/// The hostile program, compiled once per content.
fn hostile() -> PathBuf {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/attacks");
    let sources =
        ["hostile.rs", "hostile/bombs.rs", "hostile/doors.rs", "hostile/others.rs", "hostile/proc.rs"];
    let text: Vec<u8> = sources.iter().flat_map(|name| std::fs::read(folder.join(name)).unwrap()).collect();
    let out = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("hostile-{}", Digest::of(&text).short()));
    if !out.exists() {
        let new = out.with_extension(std::process::id().to_string());
        let options = "--edition=2024 -O -C target-feature=+crt-static -C panic=abort -C strip=symbols -o";
        let status = Command::new("rustc")
            .args(options.split(' '))
            .args([&new, &folder.join(sources[0])])
            .status()
            .unwrap();
        assert!(status.success());
        std::fs::rename(new, &out).unwrap();
    }
    out
}

/// A folder with all that an image needs, changed by `change`.
pub fn tree(state: &Path, name: &str, change: impl FnOnce(&Path)) -> PathBuf {
    let tree = state.join("trees").join(name);
    for dir in ["bin", "dev", "proc", "tmp", "run", "etc", "data"] {
        std::fs::create_dir_all(tree.join(dir)).unwrap();
    }
    for file in ["hosts", "hostname", "resolv.conf"] {
        std::fs::write(tree.join("etc").join(file), "").unwrap();
    }
    std::fs::copy(hostile(), tree.join("bin/hostile")).unwrap();
    change(&tree);
    tree
}

/// A layer of a folder, with the owners and all else that its files have.
pub fn layer(state: &Path, tree: &Path, role: &str) -> LayerRef {
    let objects = state.join("objects");
    let file = objects.join(format!("{role}.new"));
    let output = Command::new("mkfs.erofs").args([&file, &tree.to_path_buf()]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let bytes = std::fs::read(&file).unwrap();
    let digest = Digest::of(&bytes);
    let folder = objects.join("sha256").join(&digest.hex()[..2]);
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::rename(file, folder.join(&digest.hex()[2..])).unwrap();
    LayerRef { digest, size: bytes.len() as u64, role: role.into() }
}

/// A link of a hostile image, where it leads, and the links that it leads to outside.
type Redirection<'a> = (&'a str, &'a str, &'a [(&'a str, &'a str)]);

/// As one layer, and as the lowest of several.
fn both_ways(world: &World, tree: &Path, role: &str) -> [ImageManifest; 2] {
    let layer = layer(world.host.state(), tree, role);
    // What is above it has only programs, so that its places are what is seen.
    let above = world.host.manifest.layers[1].clone();
    [world.image(vec![layer.clone()]), world.image(vec![layer, above])]
}

/// set-id bits and file capabilities give nothing.
pub async fn rights_in_files(world: &World) {
    let tree = tree(world.host.state(), "rights", |tree| {
        let program = hostile();
        for (name, mode) in [("suid", 0o4755), ("sgid", 0o2755), ("both", 0o6755), ("capable", 0o755)] {
            let path = tree.join("bin").join(name);
            std::fs::copy(&program, &path).unwrap();
            std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
        }
        // Revision 2, effective: everything permitted and inheritable.
        let mut all = [0xff; 20];
        all[..4].copy_from_slice(&0x0200_0001u32.to_le_bytes());
        let name = "security.capability";
        rustix::fs::setxattr(tree.join("bin/capable"), name, &all, XattrFlags::empty()).unwrap();
    });
    for manifest in both_ways(world, &tree, "rights") {
        for name in ["suid", "sgid", "both", "capable"] {
            let program = format!("/bin/{name}");
            world.all_refused(&world.spec_of(&manifest, &[&program, "rights"])).await;
            let spec = world.spec_of(&manifest, &["/bin/hostile", "spy", "60000"]);
            world.start(&spec).await;
            world.all_refused_in_a_check(&spec.id, &[&program, "rights"]).await;
            world.remove(&spec.id).await;
        }
    }
}

/// Device files in a layer, with the numbers of the host's memory, disks and terminals, cannot be opened.
pub async fn device_files(world: &World) {
    let nodes = [
        ("mem", FileType::CharacterDevice, 1, 1),
        ("kmsg", FileType::CharacterDevice, 1, 11),
        ("console", FileType::CharacterDevice, 5, 1),
        ("loop-control", FileType::CharacterDevice, 10, 237),
        ("null", FileType::CharacterDevice, 1, 3),
        ("disk", FileType::BlockDevice, 254, 0),
        ("loop", FileType::BlockDevice, 7, 0),
    ];
    let tree = tree(world.host.state(), "devices", |tree| {
        for (name, kind, major, minor) in nodes {
            let path = tree.join("bin").join(name);
            let mode = Mode::from_raw_mode(0o666);
            rustix::fs::mknodat(CWD, &path, kind, mode, rustix::fs::makedev(major, minor)).unwrap();
            std::fs::set_permissions(&path, PermissionsExt::from_mode(0o666)).unwrap();
        }
    });
    let paths: Vec<String> = nodes.iter().map(|(name, ..)| format!("/bin/{name}")).collect();
    let mut command = vec!["/bin/hostile", "devices"];
    command.extend(paths.iter().map(String::as_str));
    for manifest in both_ways(world, &tree, "devices") {
        for user in ["web", "0"] {
            let mut spec = world.spec_of(&manifest, &command);
            spec.user = user.into();
            world.all_refused(&spec).await;
        }
    }
}

/// Each place where something is mounted is a link out of the image, a loop, a file, or missing. The instance starts with
/// its own there, or not at all, and the host's files stay as they are.
pub async fn mount_places_are_links(world: &World) {
    let canary = world.canary.display().to_string();
    let up = format!("{}{canary}", "../".repeat(12).trim_end_matches('/'));
    let (mut started, mut refused) = (0, 0);
    for (n, place) in PLACES.iter().enumerate() {
        let file = place.strip_prefix("etc").unwrap_or("");
        let kinds = [
            ("absolute", format!("{canary}{file}")),
            ("upwards", format!("{up}{file}")),
            ("root", format!("/proc/1/root{canary}{file}")),
            ("self-root", format!("/proc/self/root{canary}{file}")),
            ("descriptor", "/proc/self/fd/3".to_owned()),
            ("proc", "/proc/sys/kernel/core_pattern".to_owned()),
            ("proc-directory", "/proc/sys".to_owned()),
            ("other", "/tmp".to_owned()),
            ("loop", format!("/{place}")),
            ("file", String::new()),
        ];
        for (m, (kind, target)) in kinds.iter().enumerate() {
            let name = format!("place-{n}-{kind}");
            let tree = tree(world.host.state(), &name, |tree| {
                let place = tree.join(place);
                let _ = std::fs::remove_dir(&place).or_else(|_| std::fs::remove_file(&place));
                match target.as_str() {
                    "" => std::fs::write(&place, "a file").unwrap(),
                    target => symlink(target, &place).unwrap(),
                }
                symlink(&canary, tree.join("link")).unwrap();
            });
            let manifest = both_ways(world, &tree, &name)[m % 2].clone();
            let mut spec = world.spec_of(&manifest, &["/bin/hostile", "roots"]);
            spec.user = if n % 2 == 0 { "0".into() } else { "web".into() };
            match world.provider.ensure(fence(), &spec, &NO_SECRETS).await {
                Ok(_) => {
                    started += 1;
                    world.ended(&spec.id).await;
                }
                Err(ProviderError::Permanent { .. }) => refused += 1,
                Err(other) => panic!("/{place} as a link to `{target}` ({kind}): {other:?}"),
            }
            world.remove(&spec.id).await;
            std::fs::remove_dir_all(tree).unwrap();
        }
        world.is_as_before(place).await;
    }
    println!("  {started} started within themselves, {refused} were refused");
    assert!(started > 20 && refused > 5);
}

/// `/proc` and `/dev` are links that mean one thing inside the image and another thing where it is put together, next to
/// a `/proc` of the host; the image has what is to be covered, and what it is covered with.
pub async fn proc_is_redirected(world: &World) {
    let place = kiln_sys::sandbox::PLACE;
    let outside = format!("..{place}/y");
    let links: [Redirection<'_>; 6] = [
        // The cover of /proc/sys would be the host's /proc.
        ("proc", &outside, &[("sys", "/proc"), ("bus", "/proc"), ("fs", "/proc/1"), ("irq", "/proc/sys")]),
        // The cover of hidden files would be core_pattern.
        ("dev", &outside, &[("null", "/proc/sys/kernel/core_pattern")]),
        ("dev", &outside, &[("null", "/proc/sysrq-trigger")]),
        ("proc", "../../proc/../r/y", &[("sys", "/proc")]),
        ("dev", "/proc/self", &[]),
        ("proc", "/dev", &[]),
    ];
    for (n, (from, to, covers)) in links.into_iter().enumerate() {
        let name = format!("redirect-{n}");
        let tree = tree(world.host.state(), &name, |tree| {
            std::fs::remove_dir(tree.join(from)).unwrap();
            symlink(to, tree.join(from)).unwrap();
            // Inside, the link leads to `r/y` of the image; outside, to `y` of the image.
            std::fs::create_dir_all(tree.join(&place[1..]).join("y")).unwrap();
            std::fs::create_dir_all(tree.join("y")).unwrap();
            for (cover, target) in covers {
                symlink(target, tree.join("y").join(cover)).unwrap();
            }
        });
        let marker: String = world.marker.chars().rev().collect();
        for manifest in both_ways(world, &tree, &name) {
            for user in ["web", "0"] {
                let mut spec = world.spec_of(&manifest, &["/bin/hostile", "wide", &marker]);
                spec.user = user.into();
                match world.provider.ensure(fence(), &spec, &NO_SECRETS).await {
                    Ok(_) => {
                        let reason = world.ended(&spec.id).await;
                        let lines = world.host.printed(&spec.id, Stream::Out);
                        println!("  {from} -> {to}: {lines:?}");
                        assert!(!lines.iter().any(|line| line.starts_with("BROKEN")), "{lines:?}");
                        assert_eq!(reason, ExitReason::Status { code: 0 });
                    }
                    Err(ProviderError::Permanent { step, detail, .. }) => {
                        println!("  {from} -> {to}: refused: {step}: {detail}");
                    }
                    Err(other) => panic!("{from} -> {to}: {other:?}"),
                }
                world.remove(&spec.id).await;
            }
        }
    }
}
