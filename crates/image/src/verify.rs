//! Reads everything of an image and says what is not as it should be: `kiln image verify`, and before a damaged image is
//! mended.

use crate::attest::{self, Trust};
use crate::bake;
use crate::objects::{ObjectError, Objects};
use crate::sbom::Format;
use kiln_model::{Digest, ImageManifest};
use std::error::Error;
use std::path::Path;

/// A part of an image that is damaged or missing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Broken {
    /// Which, with its role and digest.
    pub part: String,
    /// What is wrong with it.
    pub why: String,
    /// The object that is to be removed so that it is made or fetched again; none for what is no object.
    pub object: Option<Digest>,
}

/// What reading an image showed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// First digits of the key that vouches for it; none if nobody who is trusted does.
    pub signed_by: Option<String>,
    /// Layers that were read and are right.
    pub layers: usize,
    /// `.deb` files that were read and are right.
    pub packages: usize,
    /// `.deb` files that are not in the store: the image does not need them, a bake from the same lock would fetch them.
    pub packages_absent: usize,
    /// Bytes that were read.
    pub bytes: u64,
    /// What is not right.
    pub broken: Vec<Broken>,
}

impl Report {
    /// Whether nothing is wrong.
    pub fn is_good(&self) -> bool {
        self.broken.is_empty()
    }

    fn broken(&mut self, part: impl Into<String>, error: &dyn Error, object: Option<Digest>) {
        self.broken.push(Broken { part: part.into(), why: crate::worker::chain(error), object });
    }
}

/// Reads manifest and layers of an image; `each` hears of a part before it is read.
pub fn content(objects: &Objects, image: Digest, each: &mut dyn FnMut(&str)) -> Report {
    let mut report = Report::default();
    let manifest: ImageManifest = match bake::manifest(objects, image) {
        Ok(manifest) => manifest,
        Err(error) => {
            report.broken(format!("manifest {image}"), &error, Some(image));
            return report;
        }
    };
    for layer in &manifest.layers {
        let part = format!("layer {} ({})", layer.digest, layer.role);
        each(&part);
        match objects.check(layer.digest) {
            Ok(size) => {
                report.layers += 1;
                report.bytes += size;
            }
            Err(error) => report.broken(part, &error, Some(layer.digest)),
        }
    }
    report
}

/// Reads everything of an image and around it: the signature, the bills of materials, the manifest, every layer, and
/// every `.deb` that went into it.
pub fn image(
    state: &Path,
    objects: &Objects,
    trust: &Trust,
    image: Digest,
    now: jiff::Timestamp,
    each: &mut dyn FnMut(&str),
) -> Report {
    let mut report = content(objects, image, each);
    let envelope = match attest::read(state, image) {
        Ok(envelope) => envelope,
        Err(error) => {
            report.broken("signature", &error, None);
            return report;
        }
    };
    let vouched = match trust.check(image, envelope.as_deref(), now) {
        Ok(vouched) => vouched,
        Err(error) => {
            report.broken("signature", &error, None);
            return report;
        }
    };
    report.signed_by = Some(vouched.key.short());
    for format in Format::ALL {
        let part = format!("bill of materials ({})", format.word());
        match crate::sbom::read(state, image, format, &vouched.statement) {
            Ok(bytes) => report.bytes += bytes.len() as u64,
            Err(error) => report.broken(part, &error, None),
        }
    }
    for package in vouched.statement.packages() {
        let Some(digest) = package.sha256() else { continue };
        match objects.check(digest) {
            Ok(size) => {
                report.packages += 1;
                report.bytes += size;
            }
            Err(ObjectError::Missing(_)) => report.packages_absent += 1,
            Err(error) => report.broken(format!("package {} {digest}", package.name), &error, Some(digest)),
        }
    }
    report
}
