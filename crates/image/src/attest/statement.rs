//! What is signed: an in-toto statement (v1) about one image, with SLSA provenance (v1) as its predicate. Field names are
//! those of the two specifications.

use crate::layers::BaseRecord;
use kiln_model::{CommitId, Digest, ImageName, ProjectName};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The type of every statement.
pub const STATEMENT: &str = "https://in-toto.io/Statement/v1";
/// The type of its predicate.
pub const PREDICATE: &str = "https://slsa.dev/provenance/v1";
/// What names kiln's way to build: `externalParameters` are [`External`], and the same ones give the same subject.
pub const BUILD_TYPE: &str = "urn:kiln:bake:v1";
/// The algorithm of [`Digest`] in maps of digests.
pub const SHA256: &str = "sha256";

/// A statement about one image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Statement {
    /// [`STATEMENT`].
    #[serde(rename = "_type")]
    pub kind: String,
    /// The image; there is exactly one.
    pub subject: Vec<Subject>,
    /// [`PREDICATE`].
    pub predicate_type: String,
    /// How it was made.
    pub predicate: Predicate,
}

/// What a statement is about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subject {
    /// `PROJECT/IMAGE`.
    pub name: String,
    /// Its digests by algorithm.
    pub digest: BTreeMap<String, String>,
}

/// SLSA provenance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Predicate {
    /// What decides on the image.
    pub build_definition: BuildDefinition,
    /// What does not: who baked it, and when.
    pub run_details: RunDetails,
}

/// What decides on the image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BuildDefinition {
    /// [`BUILD_TYPE`].
    pub build_type: String,
    /// What was asked for.
    pub external_parameters: External,
    /// What follows from the rest of the commit.
    pub internal_parameters: Internal,
    /// What it is made of.
    pub resolved_dependencies: Vec<Resource>,
}

/// What was asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct External {
    /// Whose source.
    pub project: ProjectName,
    /// The image's name in kiln.toml.
    pub image: ImageName,
    /// The commit.
    pub commit: CommitId,
    /// The digest of the recipe.
    pub recipe: Digest,
    /// The digest of kiln.lock; none if nothing of it is locked.
    pub lock: Option<Digest>,
}

/// What follows from the rest of the commit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Internal {
    /// Directories that are in the image because a service writes there.
    pub mount_points: Vec<String>,
    /// Seconds since 1970 that its files carry: the commit's time.
    pub epoch: i64,
    /// What the OCI image at its bottom says of itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<BaseRecord>,
    /// Why another bake may give another image; none if it gives the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unreproducible: Option<String>,
}

/// Something with a digest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resource {
    /// What it is called.
    pub name: String,
    /// Where it is from.
    pub uri: String,
    /// Its digests by algorithm.
    pub digest: BTreeMap<String, String>,
}

impl Resource {
    /// One with a sha256.
    pub fn new(name: impl Into<String>, uri: impl Into<String>, sha256: Digest) -> Self {
        let digest = [(SHA256.to_owned(), sha256.hex())].into();
        Self { name: name.into(), uri: uri.into(), digest }
    }

    /// Its sha256.
    pub fn sha256(&self) -> Option<Digest> {
        self.digest.get(SHA256)?.parse().ok()
    }
}

/// Who baked it, and when.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunDetails {
    /// Who.
    pub builder: Builder,
    /// When.
    pub metadata: Metadata,
    /// What was made beside the image: its bills of materials.
    pub byproducts: Vec<Resource>,
}

/// Who baked it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Builder {
    /// `urn:kiln:builder:KEY`, of the key that signs; empty until it is signed.
    pub id: String,
    /// Versions by program.
    pub version: BTreeMap<String, String>,
}

/// One run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Metadata {
    /// Names the run.
    pub invocation_id: String,
    /// When it began, as in RFC 3339.
    pub started_on: String,
    /// When it ended.
    pub finished_on: String,
}

impl Statement {
    /// The image that it is about; none unless it is exactly one.
    pub fn image(&self) -> Option<Digest> {
        match &self.subject[..] {
            [subject] => subject.digest.get(SHA256)?.parse().ok(),
            _ => None,
        }
    }

    /// What was asked for.
    pub fn external(&self) -> &External {
        &self.predicate.build_definition.external_parameters
    }

    /// The `.deb` files that went into the image or into its builder.
    pub fn packages(&self) -> impl Iterator<Item = &Resource> {
        let all = &self.predicate.build_definition.resolved_dependencies;
        all.iter().filter(|resource| resource.uri.starts_with("pkg:deb/"))
    }

    /// What follows from the rest of the commit.
    pub fn internal(&self) -> &Internal {
        &self.predicate.build_definition.internal_parameters
    }

    /// For people: the fields that matter, flat.
    pub fn summary(&self) -> BTreeMap<&'static str, serde_json::Value> {
        let (asked, run) = (self.external(), &self.predicate.run_details);
        let packages = self.packages().count();
        let version = run.builder.version.get("kiln").map_or("", String::as_str);
        let mut summary: BTreeMap<_, serde_json::Value> = [
            ("project", asked.project.to_string().into()),
            ("name", asked.image.to_string().into()),
            ("commit", asked.commit.to_string().into()),
            ("recipe", asked.recipe.to_string().into()),
            ("lock", asked.lock.map_or(serde_json::Value::Null, |lock| lock.to_string().into())),
            ("packages", packages.into()),
            ("builder", format!("kiln {version}").into()),
            ("started", run.metadata.started_on.clone().into()),
            ("finished", run.metadata.finished_on.clone().into()),
        ]
        .into();
        let inner = self.internal();
        let base = inner.base.as_ref().and_then(|base| serde_json::to_value(base).ok());
        summary.extend(base.map(|base| ("base", base)));
        summary.extend(inner.unreproducible.clone().map(|why| ("unreproducible", why.into())));
        summary
    }
}
