//! Bakes: from a commit to image digests.

use kiln_model::{CommitId, Digest, ImageName, ProjectName};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Bake every image of a commit whose source the server has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BakeRequest {
    /// The project.
    pub project: ProjectName,
    /// The commit.
    pub commit: CommitId,
}

/// The digests.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BakeView {
    /// The commit.
    pub commit: CommitId,
    /// By image name.
    pub images: BTreeMap<ImageName, Digest>,
    /// The kiln.lock that the server resolved because the commit had none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lock: Option<String>,
    /// What the user should know of the images, one line each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}
