//! Bills of materials: what is in an image, as SPDX 2.3 and as CycloneDX 1.6. Both are pure functions of one [`Inventory`],
//! which is made from the lock and the copied files; their time is the commit's, so the same commit has the same bill.

mod components;
mod cyclonedx;
pub mod licence;
mod spdx;

pub use components::{Component, components};

use crate::attest::{self, Statement};
use crate::tree::{Content, Kind, Tree};
use kiln_model::{CommitId, Digest, ImageName, ProjectName};
use kiln_spec::lock::LockedPackage;
use sha2::Digest as _;
use std::io::{self, Read};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

/// Who makes them. The number changes when the same inventory gives other bytes.
const TOOL: &str = "kiln-sbom";
const TOOL_VERSION: &str = "1";
/// Bytes of a file that are hashed at a time.
const CHUNK: usize = 1 << 20;

/// In which form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// SPDX 2.3, JSON.
    Spdx,
    /// CycloneDX 1.6, JSON.
    Cyclonedx,
}

impl Format {
    /// Both.
    pub const ALL: [Format; 2] = [Format::Spdx, Format::Cyclonedx];

    /// The word in file names.
    pub fn word(self) -> &'static str {
        match self {
            Format::Spdx => "spdx",
            Format::Cyclonedx => "cdx",
        }
    }

    /// What names the form in statements.
    pub fn uri(self) -> &'static str {
        match self {
            Format::Spdx => "https://spdx.dev/Document/v2.3",
            Format::Cyclonedx => "https://cyclonedx.org/bom/v1.6",
        }
    }

    /// The bill of materials in this form.
    pub fn render(self, inventory: &Inventory) -> Vec<u8> {
        let bytes = match self {
            Format::Spdx => serde_json::to_vec_pretty(&spdx::document(inventory)),
            Format::Cyclonedx => serde_json::to_vec_pretty(&cyclonedx::document(inventory)),
        };
        // Strings and numbers can always be written.
        let mut bytes = bytes.unwrap_or_default();
        bytes.push(b'\n');
        bytes
    }
}

/// What is in an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inventory {
    /// Whose source.
    pub project: ProjectName,
    /// Its name in kiln.toml.
    pub name: ImageName,
    /// Its digest.
    pub image: Digest,
    /// Its commit.
    pub commit: CommitId,
    /// The commit's time, seconds since 1970.
    pub created: i64,
    /// Debian packages by name.
    pub packages: Vec<PackageRow>,
    /// Files of the application layer, by path.
    pub files: Vec<FileRow>,
    /// What lock files beside the copied files name.
    pub components: Vec<Component>,
    /// Lock files that could not be understood, with the reason: what they name is missing here.
    pub unreadable: Vec<String>,
}

/// A bill of materials cannot be given.
#[derive(Debug, thiserror::Error)]
pub enum SbomError {
    /// The file.
    #[error("cannot read `{}`", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// It is not the one that was signed.
    #[error("`{}` was changed: it is not what was signed with the image", path.display())]
    Changed {
        /// Which.
        path: PathBuf,
    },
}

/// The bill of materials that was made with an image, as its signed statement names it.
pub fn read(
    state: &Path,
    image: Digest,
    format: Format,
    statement: &Statement,
) -> Result<Vec<u8>, SbomError> {
    let path = attest::sbom_path(state, image, format);
    let bytes = match std::fs::read(&path) {
        Ok(bytes) => bytes,
        Err(source) => return Err(SbomError::Read { path, source }),
    };
    let signed = statement.predicate.run_details.byproducts.iter().find(|made| made.uri == format.uri());
    if signed.and_then(|made| made.sha256()) != Some(Digest::of(&bytes)) {
        return Err(SbomError::Changed { path });
    }
    Ok(bytes)
}

/// A Debian package.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PackageRow {
    /// As it was locked.
    pub package: LockedPackage,
    /// What its copyright file says, as an SPDX expression; none if that cannot be read by a machine.
    pub licence: Option<String>,
}

/// A file of the application layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileRow {
    /// Its path in the image, without a leading `/`.
    pub path: String,
    /// Bytes.
    pub size: u64,
    /// Its content.
    pub sha256: Digest,
    /// Its content once more: SPDX 2.3 demands it.
    pub sha1: String,
}

/// The regular files of a layer with their digests. Reads every byte; large files piece by piece.
pub fn files(tree: &Tree) -> io::Result<Vec<FileRow>> {
    let mut rows = vec![];
    for (path, node) in tree.iter() {
        if let Kind::File(content) = &node.kind {
            let (sha256, sha1) = hash(content)?;
            let path = String::from_utf8_lossy(path).into_owned();
            rows.push(FileRow { path, size: content.size(), sha256, sha1 });
        }
    }
    Ok(rows)
}

fn hash(content: &Content) -> io::Result<(Digest, String)> {
    let mut hashes = (sha2::Sha256::new(), sha1::Sha1::new());
    let mut feed = |bytes: &[u8]| {
        hashes.0.update(bytes);
        hashes.1.update(bytes);
    };
    match content {
        Content::Bytes(bytes) => bytes.chunks(CHUNK).for_each(&mut feed),
        Content::Slice { file, at, size } => {
            let (mut at, end, mut chunk) = (*at, at + size, vec![0; CHUNK.min(*size as usize)]);
            while at < end {
                let part = chunk.len().min((end - at) as usize);
                file.0.read_exact_at(&mut chunk[..part], at)?;
                feed(&chunk[..part]);
                at += part as u64;
            }
        }
        Content::Path { path, .. } => {
            let (mut file, mut chunk) = (std::fs::File::open(path)?, vec![0; CHUNK]);
            loop {
                match file.read(&mut chunk)? {
                    0 => break,
                    n => feed(&chunk[..n]),
                }
            }
        }
    }
    let sha1 = hashes.1.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    Ok((Digest::from_bytes(hashes.0.finalize().into()), sha1))
}

/// The package URL of a Debian package (<https://github.com/package-url/purl-spec>).
pub fn purl(package: &LockedPackage) -> String {
    let suite = package.suite.split('-').next().unwrap_or_default();
    format!(
        "pkg:deb/debian/{}@{}?arch={}&distro={}",
        quote(&package.name),
        quote(&package.version),
        quote(&package.architecture),
        quote(suite)
    )
}

/// Percent-encodes what a package URL does not take as it is.
fn quote(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~:".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

/// Seconds since 1970 as RFC 3339 in UTC.
pub(crate) fn timestamp(seconds: i64) -> String {
    // Only times beyond the year 9999 have no such form.
    jiff::Timestamp::from_second(seconds).unwrap_or(jiff::Timestamp::UNIX_EPOCH).to_string()
}
