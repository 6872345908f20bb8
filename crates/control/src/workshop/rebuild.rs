//! Bakes an image again, elsewhere and from nothing but its inputs, and compares: the proof that it is what its commit and
//! its lock say.
//!
//! The other place is a state folder of its own on another file system, if the host has one with room. It sees the
//! sources and what the content store keeps of packages and bases, but no cache, and not the image's own layers.

use super::{Draft, Workshop, WorkshopError};
use kiln_image::compare::first_difference;
use kiln_image::erofs::Reader;
use kiln_image::worker::{self, chain};
use kiln_image::{Objects, attest, bake, lookup};
use kiln_model::{Digest, ImageManifest, ImageName};
use kiln_spec::ImageRecipe;
use rustix::fs::{statfs, statvfs};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, symlink};
use std::path::{Path, PathBuf};

/// Where the second bake happens: the first that is on another kind of file system than the state folder and has room.
const PLACES: &[&str] = &["/dev/shm", "/var/tmp", "/tmp"];
/// Room for the second bake, as a multiple of the image: its layers, and the files that it copies.
const ROOM_FACTOR: u64 = 3;
/// Room beside that.
const ROOM_BYTES: u64 = 64 << 20;

/// An image could not be baked again.
#[derive(Debug, thiserror::Error)]
pub enum RebuildError {
    /// It was not baked here.
    #[error("it is not known what image {0} was baked from")]
    NotBaked(Digest),
    /// The lock that it was baked with is not the commit's.
    #[error("the lock that image {0} was baked with is not there any more")]
    OtherLock(Digest),
    /// The place for the second bake could not be made.
    #[error("cannot make `{}`", path.display())]
    Place {
        /// Which file or folder.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The commit, or the second bake.
    #[error(transparent)]
    Workshop(#[from] WorkshopError),
}

/// What a second bake gave.
#[derive(Debug)]
pub struct Rebuilt {
    /// The image that it gave.
    pub image: Digest,
    /// Where it was baked.
    pub place: PathBuf,
    /// The layers, lowest first: what they are for, as they are, and as the second bake made them.
    pub layers: Vec<(String, Option<Digest>, Option<Digest>)>,
    /// The first file that differs.
    pub difference: Option<String>,
}

impl Workshop {
    /// Bakes the commit of an image again and compares. Blocks as long as a bake from nothing.
    pub fn rebuild(&self, image: Digest, progress: &mut dyn FnMut(String)) -> Result<Rebuilt, RebuildError> {
        let statement = attest::described(&self.config.state, image).ok_or(RebuildError::NotBaked(image))?;
        let asked = statement.external();
        let draft = self.draft(&asked.project, &asked.commit, progress)?;
        let lock = draft.lock.as_ref().map(|lock| Digest::of(lock.to_text().as_bytes()));
        if lock != asked.lock {
            return Err(RebuildError::OtherLock(image));
        }
        let manifest = self.manifest(image).map_err(WorkshopError::from)?;
        let place = Place::new(&self.config.state, &manifest)?;
        place.fill(&self.config.state, image, &manifest)?;
        progress(format!("baking it again in `{}`", place.0.display()));
        let rebuilt = self.bake_in(&place.0, &draft, &asked.image, progress)?;
        let objects = Objects::open(&place.0.join("objects")).map_err(WorkshopError::from)?;
        let second = bake::manifest(&objects, rebuilt).map_err(WorkshopError::from)?;
        let difference = differing(&manifest, &second)
            .map(|(role, a, b)| explain(role, &self.objects.path(a), &objects.path(b)));
        let row = |n: usize| {
            let layer = |manifest: &ImageManifest| manifest.layers.get(n).map(|layer| layer.digest);
            let role = manifest.layers.get(n).or(second.layers.get(n)).map(|layer| layer.role.clone());
            (role.unwrap_or_default(), layer(&manifest), layer(&second))
        };
        let layers = (0..manifest.layers.len().max(second.layers.len())).map(row).collect();
        Ok(Rebuilt { image: rebuilt, place: place.0.clone(), layers, difference })
    }
}

impl Workshop {
    /// Bakes an image of a commit in another state folder, those that it stands on first.
    fn bake_in(
        &self,
        place: &Path,
        draft: &Draft,
        image: &ImageName,
        progress: &mut dyn FnMut(String),
    ) -> Result<Digest, WorkshopError> {
        let mut images = BTreeMap::new();
        for below in draft.project.images.get(image).into_iter().flat_map(ImageRecipe::images_below) {
            images.insert(below.clone(), self.bake_in(place, draft, below, progress)?);
        }
        let job = self.job(draft, image, place, images)?;
        debug_assert!(lookup::find(&job, &self.objects).is_none(), "the place has no cache");
        let baked =
            worker::run(&self.config.program, &job, &|| false, progress).map_err(WorkshopError::Bake)?;
        Ok(baked.image)
    }
}

/// The lowest layers that differ.
fn differing<'a>(a: &'a ImageManifest, b: &ImageManifest) -> Option<(&'a str, Digest, Digest)> {
    let pairs = a.layers.iter().zip(&b.layers);
    let mut differ = pairs.filter(|(a, b)| a.digest != b.digest);
    differ.next().map(|(a, b)| (a.role.as_str(), a.digest, b.digest))
}

/// The first file that differs between two layers, or why that cannot be told.
fn explain(role: &str, a: &Path, b: &Path) -> String {
    let tree = |path: &Path| File::open(path).and_then(Reader::open)?.tree();
    let compared = tree(a).and_then(|a| first_difference(&a, &tree(b)?));
    match compared {
        Ok(Some(difference)) => format!("layer {role}: {difference}"),
        Ok(None) => format!("layer {role}: the same files, laid out otherwise"),
        Err(error) => format!("layer {role}: it cannot be read: {}", chain(&error)),
    }
}

/// A state folder for one bake, gone when this is dropped.
struct Place(PathBuf);

impl Place {
    fn new(state: &Path, image: &ImageManifest) -> Result<Self, RebuildError> {
        let needed = ROOM_FACTOR * image.layers.iter().map(|layer| layer.size).sum::<u64>() + ROOM_BYTES;
        let kind = |path: &Path| statfs(path).ok().map(|found| found.f_type);
        let fits = |path: &&Path| {
            let free = statvfs(*path).map(|found| found.f_bavail * found.f_frsize).unwrap_or(0);
            kind(path) != kind(state) && free >= needed
        };
        let parent = PLACES.iter().map(Path::new).find(fits).unwrap_or(state);
        for n in 0_u32.. {
            let path = parent.join(format!("kiln-rebuild-{}-{n}", std::process::id()));
            match fs::DirBuilder::new().mode(0o700).create(&path) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists && n < 1000 => {}
                Err(source) => return Err(RebuildError::Place { path, source }),
                Ok(()) => return Ok(Self(path)),
            }
        }
        Err(RebuildError::Place { path: parent.to_owned(), source: io::ErrorKind::AlreadyExists.into() })
    }

    /// Shows it the sources, and all objects but those of the image.
    fn fill(&self, state: &Path, image: Digest, manifest: &ImageManifest) -> Result<(), RebuildError> {
        let made = |path: &Path, result: io::Result<()>| {
            result.map_err(|source| RebuildError::Place { path: path.to_owned(), source })
        };
        let repos = self.0.join("repos");
        made(&repos, symlink(state.join("repos"), &repos))?;
        let hidden: BTreeSet<String> = manifest
            .layers
            .iter()
            .map(|layer| layer.digest)
            .chain([image])
            .map(|digest| digest.hex())
            .collect();
        let from = state.join("objects/sha256");
        let to = self.0.join("objects/sha256");
        made(&to, fs::create_dir_all(&to))?;
        for folder in fs::read_dir(&from).into_iter().flatten().flatten() {
            let (folder, prefix) = (folder.path(), folder.file_name());
            let target = to.join(&prefix);
            made(&target, fs::create_dir_all(&target))?;
            for object in fs::read_dir(&folder).into_iter().flatten().flatten() {
                let rest = object.file_name();
                if !hidden.contains(&format!("{}{}", prefix.to_string_lossy(), rest.to_string_lossy())) {
                    let link = target.join(&rest);
                    made(&link, symlink(object.path(), &link))?;
                }
            }
        }
        Ok(())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // It lies where the host cleans up by itself, or in the state folder, where it is only space.
        let _ = fs::remove_dir_all(&self.0);
    }
}
