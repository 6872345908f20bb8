//! What stands beside an image and vouches for it: bills of materials, and a signed statement of what it was made from.
//!
//! ```text
//! STATE/images/HEX.json       the statement (in-toto, SLSA provenance) in a DSSE envelope
//! STATE/images/HEX.spdx.json  SPDX 2.3        ┐ the statement has their digests, so that its
//! STATE/images/HEX.cdx.json   CycloneDX 1.6   ┘ signature covers them
//! ```
//! The image does not depend on any of it. The worker that bakes describes what it did ([`write()`]); the server, which
//! alone has the key, signs that ([`seal`]): a worker decodes what others wrote and must not hold a key.

pub mod dsse;
pub mod key;
pub mod statement;
pub mod trust;

pub use dsse::Envelope;
pub use key::{KeyError, PublicKey, SigningKey};
pub use statement::Statement;
pub use trust::{PolicyError, Trust, TrustError, TrustedKey, Vouched};

use crate::bake::BakeJob;
use crate::layers::Below;
use crate::objects::{Objects, write_durable};
use crate::sbom::{self, FileRow, Format, Inventory, PackageRow};
use crate::source::SourceFile;
use kiln_model::{Digest, LayerRef};
use kiln_spec::lock::{LockedPackage, RecipeName};
use kiln_spec::{Base, CopySource, ImageRecipe, Lock};
use statement::{
    BUILD_TYPE, BuildDefinition, Builder, External, Internal, Metadata, PREDICATE, Predicate, Resource,
    RunDetails, STATEMENT, Subject,
};
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// The role of the layer with the files of the commit; what lies below it are dependencies.
const APPLICATION: &str = "app";
/// Lock files of other package managers that are read for the bill of materials.
const LOCK_FILES: &[&str] = &["Cargo.lock", "package-lock.json", "requirements.txt"];
/// Such files of one image.
const LOCK_FILES_MAX: usize = 64;

/// A lock file of another package manager: its path in the commit and its content.
pub type LockFile = (String, Vec<u8>);

/// Where the signed statement of an image lies.
pub fn statement_path(state: &Path, image: Digest) -> PathBuf {
    state.join("images").join(format!("{}.json", image.hex()))
}

/// The end of the name of a note.
pub const NOTE: &str = ".note.json";

/// Where a note lies: what is known, and signed by nobody, of an image that was not baked here.
pub fn note_path(state: &Path, image: Digest) -> PathBuf {
    state.join("images").join(format!("{}{NOTE}", image.hex()))
}

/// Where a bill of materials lies.
pub fn sbom_path(state: &Path, image: Digest, format: Format) -> PathBuf {
    state.join("images").join(format!("{}.{}.json", image.hex(), format.word()))
}

/// The signed statement of an image as it lies there; none if there is none.
pub fn read(state: &Path, image: Digest) -> io::Result<Option<Vec<u8>>> {
    match std::fs::read(statement_path(state, image)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        read => read.map(Some),
    }
}

/// What the statement beside an image says of it, whoever signed it; none if there is none.
pub fn described(state: &Path, image: Digest) -> Option<Statement> {
    let envelope: Envelope = serde_json::from_slice(&read(state, image).ok()??).ok()?;
    serde_json::from_slice(&envelope.payload()?).ok()
}

/// A bake, as it is described.
#[derive(Debug)]
pub struct Bake<'a> {
    /// What was asked for.
    pub job: &'a BakeJob,
    /// What came of it.
    pub image: Digest,
    /// Its layers.
    pub layers: &'a [LayerRef],
    /// What is known of what lies below the application.
    pub below: &'a Below,
    /// The commit's time, seconds since 1970.
    pub epoch: i64,
    /// The files that came from the commit or the build.
    pub files: Vec<FileRow>,
    /// Lock files ([`lock_files`]) by path, with their content.
    pub locks: Vec<LockFile>,
    /// When it began.
    pub started: SystemTime,
}

/// Writes the bills of materials of a bake and answers with the statement to sign; none if the image has one already,
/// signed or not by whoever: a bake that changed nothing costs one look.
pub fn write(objects: &Objects, bake: Bake<'_>) -> io::Result<Option<Statement>> {
    let state = &bake.job.state;
    if !bake.job.describe && statement_path(state, bake.image).exists() {
        return Ok(None);
    }
    let recipe = &bake.job.recipe;
    let packages = bake.job.lock.as_ref().map(|lock| packages(recipe, lock)).unwrap_or_default();
    let licences = crate::sbom::licence::of_layers(objects, &state.join("cache"), bake.layers, &packages);
    let row = |package: &&LockedPackage| PackageRow {
        package: LockedPackage::clone(package),
        licence: licences.get(&package.name).cloned(),
    };
    let (components, unreadable) = sbom::components(&bake.locks);
    let inventory = Inventory {
        project: bake.job.project.clone(),
        name: recipe.name.clone(),
        image: bake.image,
        commit: bake.job.commit.clone(),
        created: bake.epoch,
        packages: packages.iter().map(row).collect(),
        files: bake.files,
        components,
        unreadable,
    };
    let make = |format: Format| -> io::Result<Resource> {
        let bytes = format.render(&inventory);
        let path = sbom_path(state, bake.image, format);
        write_whole(&path, &bytes)?;
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Ok(Resource::new(name, format.uri(), Digest::of(&bytes)))
    };
    let byproducts = vec![make(Format::Spdx)?, make(Format::Cyclonedx)?];
    Ok(Some(describe(
        bake.job,
        bake.image,
        (bake.layers, bake.below),
        (bake.epoch, bake.started),
        &packages,
        byproducts,
    )))
}

/// Writes a file at once, not durably: to wait for the disk would take longer than all the rest. One that a power cut took
/// does not fit the signed statement, and the next bake of the commit makes it again.
fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let part = path.with_extension(format!("{}.part", std::process::id()));
    std::fs::write(&part, bytes)?;
    std::fs::rename(&part, path)
}

fn describe(
    job: &BakeJob,
    image: Digest,
    (layers, below): (&[LayerRef], &Below),
    (epoch, started): (i64, SystemTime),
    packages: &[&LockedPackage],
    byproducts: Vec<Resource>,
) -> Statement {
    let now = SystemTime::now();
    let digest = |algorithm: &str, value: String| BTreeMap::from([(algorithm.to_owned(), value)]);
    let lock = job.lock.as_ref().map(|lock| Digest::of(lock.to_text().as_bytes()));
    let source = format!("urn:kiln:source:{}", job.project);
    let mut dependencies = vec![Resource {
        name: "source".into(),
        uri: source.clone(),
        digest: digest("gitCommit", job.commit.to_string()),
    }];
    dependencies.extend(lock.map(|lock| Resource::new("kiln.lock", source, lock)));
    let lower = layers.iter().filter(|layer| layer.role != APPLICATION);
    dependencies.extend(lower.map(|layer| {
        Resource::new(layer.role.clone(), format!("urn:kiln:layer:{}", layer.digest), layer.digest)
    }));
    let builder = job.lock.iter().flat_map(|lock| {
        let name = RecipeName::builder(&job.recipe.name);
        rows(lock, &name).into_iter().filter(|row| !packages.iter().any(|p| p.sha256 == row.sha256))
    });
    dependencies.extend(
        packages
            .iter()
            .copied()
            .chain(builder)
            .map(|p| Resource::new(p.name.clone(), sbom::purl(p), p.sha256)),
    );
    let nanos = started.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_nanos();
    Statement {
        kind: STATEMENT.into(),
        subject: vec![Subject {
            name: format!("{}/{}", job.project, job.recipe.name),
            digest: digest(statement::SHA256, image.hex()),
        }],
        predicate_type: PREDICATE.into(),
        predicate: Predicate {
            build_definition: BuildDefinition {
                build_type: BUILD_TYPE.into(),
                external_parameters: External {
                    project: job.project.clone(),
                    image: job.recipe.name.clone(),
                    commit: job.commit.clone(),
                    recipe: job.recipe.digest(),
                    lock,
                },
                internal_parameters: Internal {
                    mount_points: job.mount_points.iter().cloned().collect(),
                    epoch,
                    base: below.base.clone(),
                    unreproducible: below.unreproducible.clone(),
                },
                resolved_dependencies: dependencies,
            },
            run_details: RunDetails {
                builder: Builder {
                    id: String::new(),
                    version: [("kiln".to_owned(), env!("CARGO_PKG_VERSION").to_owned())].into(),
                },
                metadata: Metadata {
                    invocation_id: format!("{nanos}-{}", std::process::id()),
                    started_on: rfc3339(started),
                    finished_on: rfc3339(now),
                },
                byproducts,
            },
        },
    }
}

fn rfc3339(time: SystemTime) -> String {
    let seconds = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    sbom::timestamp(seconds as i64)
}

/// Signs a statement and keeps it beside its image, durably.
pub fn seal(state: &Path, image: Digest, mut statement: Statement, key: &SigningKey) -> io::Result<()> {
    statement.predicate.run_details.builder.id = format!("urn:kiln:builder:{}", key.public().id());
    let payload = serde_json::to_vec(&statement).map_err(io::Error::other)?;
    let envelope = serde_json::to_vec_pretty(&Envelope::sign(&payload, key)).map_err(io::Error::other)?;
    write_durable(&statement_path(state, image), &envelope)
}

/// The packages in an image: those of its base, and its own. Of `image:NAME`, those of that image as well.
pub fn packages<'a>(recipe: &ImageRecipe, lock: &'a Lock) -> Vec<&'a LockedPackage> {
    let mut found = vec![];
    if let Base::Image { name } = &recipe.base {
        found.extend(rows(lock, &RecipeName::image(name)));
    }
    found.extend(rows(lock, &RecipeName::image(&recipe.name)));
    found.sort_by(|a, b| (&a.name, &a.version, &a.sha256).cmp(&(&b.name, &b.version, &b.sha256)));
    found.dedup_by(|a, b| a.sha256 == b.sha256);
    found
}

/// The packages of an image or a builder with those of the base that it was resolved upon.
fn rows<'a>(lock: &'a Lock, name: &RecipeName) -> Vec<&'a LockedPackage> {
    let base = lock.images.get(name).map(|image| image.base.as_str());
    let uses = |row: &&LockedPackage| {
        row.used_by.iter().any(|user| user == name.as_str() || Some(user.as_str()) == base)
    };
    lock.packages.iter().filter(uses).collect()
}

/// The lock files of other package managers that say what is in the copied files: those in the folder of what is copied
/// and in each folder above it, up to the root of the commit; for what a build made, those at the root.
pub fn lock_files<'a>(recipe: &ImageRecipe, files: &'a [SourceFile]) -> Vec<&'a SourceFile> {
    let belongs = |file: &&SourceFile| {
        let name = crate::tree::name(&file.path);
        let folder = crate::tree::parent(&file.path).unwrap_or(b"");
        let plain = matches!(file.mode, 0o100_644 | 0o100_755);
        plain
            && LOCK_FILES.iter().any(|lock| lock.as_bytes() == name)
            && recipe.copy.iter().any(|rule| match rule.source {
                CopySource::Build => folder.is_empty(),
                CopySource::Commit => {
                    let from = rule.from.trim_start_matches("./").trim_matches('/').as_bytes();
                    let from = if from == b"." { b"" } else { from };
                    folder.is_empty()
                        || from == folder
                        || from.strip_prefix(folder).is_some_and(|rest| rest.starts_with(b"/"))
                }
            })
    };
    files.iter().filter(belongs).take(LOCK_FILES_MAX).collect()
}

#[cfg(test)]
mod tests;
