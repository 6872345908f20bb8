//! Layers joined by overlayfs against one sealed file system: how long each takes to make and to mount, and what a second
//! image on the same base costs. Needs root, and a folder with the layers `0`, `1`, `2` of an image, lowest first, in
//! `KILN_BENCH_LAYERS`; `bench/image` gives those of Debian with nginx.

use kiln_image::Objects;
use kiln_image::erofs::{Reader, write};
use kiln_image::tree::{Content, Node, Tree};
use kiln_sys::mount::{self, Attributes, ErofsBacking};
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Instant;

const ROUNDS: usize = 40;
const ROOM: &str = "/mnt";

fn main() {
    let dir = std::env::var_os("KILN_BENCH_LAYERS").map(PathBuf::from);
    let Some(dir) = dir.filter(|dir| dir.join("2").is_file()) else {
        println!("LEFT OUT: KILN_BENCH_LAYERS names no folder with three layers");
        return;
    };
    if !std::env::args().any(|arg| arg == "--bench") || !rustix::process::geteuid().is_root() {
        println!("LEFT OUT: the bench of layers needs root");
        return;
    }
    kiln_sys::namespace::unshare(kiln_sys::process::Namespaces::MOUNT).unwrap();
    mount::make_private().unwrap();
    mount::attach_at(mount::filesystem("tmpfs", &[], Attributes::default()).unwrap(), ROOM).unwrap();
    for name in ["0", "1", "2", "root"] {
        fs::create_dir(Path::new(ROOM).join(name)).unwrap();
    }
    let layers: Vec<PathBuf> = (0..3).map(|n| dir.join(n.to_string())).collect();
    let sizes: Vec<u64> = layers.iter().map(|path| fs::metadata(path).unwrap().len()).collect();
    println!("three layers of {:?} MB", sizes.iter().map(|size| size / 1_000_000).collect::<Vec<_>>());

    let (mut by_file, mut by_loop, mut alone) = (vec![], vec![], vec![]);
    let objects = Objects::open(&dir.join("objects")).unwrap();
    let sealed = seal(&objects, &layers, 0);
    for _ in 0..ROUNDS {
        by_file.push(timed(|| joined(&layers, ErofsBacking::Auto)));
        by_loop.push(timed(|| joined(&layers, ErofsBacking::Loop)));
        alone.push(timed(|| one(&sealed.path, ErofsBacking::Auto)));
    }
    let (file, by_loop, alone) = (median(&mut by_file), median(&mut by_loop), median(&mut alone));
    println!("mount of three layers and an overlay over them (medians of {ROUNDS}, unmount not counted):");
    println!("  by their files {file:6.2} ms; by loop devices {by_loop:6.2} ms: {:.1} times", by_loop / file);
    println!("  one sealed file system {alone:6.2} ms: {:.1} times", alone / file);
    println!("to make the image anew when its application changed:");
    let layer = application(&objects, &layers[2]);
    println!("  the application's layer {:6.0} ms, {:5.1} MB written", layer.ms, layer.mb());
    println!(
        "  one sealed file system {:6.0} ms, {:5.1} MB written: {:.1} times",
        sealed.ms,
        sealed.mb(),
        sealed.ms / layer.ms
    );
    println!("a second image on the same base, all of it read after all of the first was:");
    let other = [layers[0].clone(), layers[1].clone(), layer.path.clone()];
    let second = seal(&objects, &layers, 1);
    for path in layers.iter().chain([&layer.path, &sealed.path, &second.path]) {
        forget(path);
    }
    // The first image holds its layers while the second is there, as it would on a host.
    let held = hold(&layers);
    let first_read = timed_read(&layers);
    let joined_read = timed_read(&other);
    drop(held);
    let held = hold(std::slice::from_ref(&sealed.path));
    let sealed_first = timed_read(std::slice::from_ref(&sealed.path));
    let sealed_read = timed_read(std::slice::from_ref(&second.path));
    drop(held);
    println!(
        "  layers: {joined_read:5.0} ms (the first {first_read:5.0} ms); disk for both {:4.0} MB",
        mb(&sizes) + layer.mb()
    );
    println!(
        "  sealed: {sealed_read:5.0} ms (the first {sealed_first:5.0} ms); disk for both {:4.0} MB",
        sealed.mb() + second.mb()
    );
}

fn mb(sizes: &[u64]) -> f64 {
    sizes.iter().sum::<u64>() as f64 / 1e6
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn timed(work: impl FnOnce() -> usize) -> f64 {
    let start = Instant::now();
    let n_mounts = work();
    let took = start.elapsed().as_secs_f64() * 1e3;
    unmount(n_mounts);
    took
}

fn unmount(n_mounts: usize) {
    let root = Path::new(ROOM).join("root");
    rustix::mount::unmount(&root, rustix::mount::UnmountFlags::empty()).unwrap();
    for n in 0..n_mounts {
        let place = Path::new(ROOM).join(n.to_string());
        rustix::mount::unmount(&place, rustix::mount::UnmountFlags::empty()).unwrap();
    }
}

fn one(image: &Path, backing: ErofsBacking) -> usize {
    mount::attach_at(mount::erofs(image, backing).unwrap(), "/mnt/root").unwrap();
    0
}

fn joined(layers: &[PathBuf], backing: ErofsBacking) -> usize {
    let mut lower = vec![];
    for (n, layer) in layers.iter().enumerate() {
        let place = format!("{ROOM}/{n}");
        mount::attach_at(mount::erofs(layer, backing).unwrap(), &place).unwrap();
        lower.insert(0, place);
    }
    let lower = lower.join(":");
    let options = [("lowerdir", Some(lower.as_str()))];
    mount::attach_at(mount::filesystem("overlay", &options, Attributes::default()).unwrap(), "/mnt/root")
        .unwrap();
    layers.len()
}

/// Detached mounts that keep layers in use.
fn hold(layers: &[PathBuf]) -> Vec<std::os::fd::OwnedFd> {
    layers.iter().map(|layer| mount::erofs(layer, ErofsBacking::Auto).unwrap()).collect()
}

struct Made {
    path: PathBuf,
    bytes: u64,
    ms: f64,
}

impl Made {
    fn mb(&self) -> f64 {
        self.bytes as f64 / 1e6
    }
}

fn store(objects: &Objects, tree: &Tree, start: Instant) -> Made {
    let mut pending = objects.create().unwrap();
    write(tree, &mut pending).unwrap();
    let (digest, bytes) = pending.finish().unwrap();
    Made { path: objects.path(digest), bytes, ms: start.elapsed().as_secs_f64() * 1e3 }
}

fn tree_of(layer: &Path) -> Tree {
    Reader::open(File::open(layer).unwrap()).unwrap().tree().unwrap()
}

/// All layers as one file system.
fn seal(objects: &Objects, layers: &[PathBuf], serial: u8) -> Made {
    let start = Instant::now();
    let mut tree = Tree::merge(layers.iter().map(|layer| tree_of(layer))).unwrap();
    tree.insert(b"serial", Node::file(Content::Bytes([serial][..].into()), 0o644, 0)).unwrap();
    store(objects, &tree, start)
}

/// The highest layer with one file more.
fn application(objects: &Objects, layer: &Path) -> Made {
    let start = Instant::now();
    let mut tree = tree_of(layer);
    tree.insert(b"serial", Node::file(Content::Bytes([9][..].into()), 0o644, 0)).unwrap();
    store(objects, &tree, start)
}

/// Drops what the kernel keeps of a file.
fn forget(path: &Path) {
    let file = File::open(path).unwrap();
    file.sync_all().unwrap();
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
}

fn timed_read(layers: &[PathBuf]) -> f64 {
    let n_mounts = match layers {
        [image] => one(image, ErofsBacking::Auto),
        layers => joined(layers, ErofsBacking::Auto),
    };
    let start = Instant::now();
    let mut buffer = vec![0; 1 << 20];
    read_all(Path::new("/mnt/root"), &mut buffer);
    let took = start.elapsed().as_secs_f64() * 1e3;
    unmount(n_mounts);
    took
}

fn read_all(dir: &Path, buffer: &mut [u8]) {
    for entry in fs::read_dir(dir).unwrap().flatten() {
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            read_all(&entry.path(), buffer);
        } else if kind.is_file() {
            let mut file = File::open(entry.path()).unwrap();
            while file.read(buffer).unwrap() > 0 {}
        }
    }
}
