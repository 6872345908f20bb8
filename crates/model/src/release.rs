//! A release: one numbered, immutable record of an environment.

use crate::digest::{CommitId, Digest};
use crate::ids::{EnvName, EnvRef, ImageName, ReleaseNumber, ServiceName};
use crate::requirement::Requirement;
use crate::route::RouteRule;
use crate::secret::{SecretName, SecretVersion};
use crate::service::ServiceSpec;
use crate::strategy::Strategy;
use crate::time::Wall;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What a release asks for. Fixed when the deploy is accepted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReleaseSpec {
    /// The commit that it was made from.
    pub commit: CommitId,
    /// The commit's own time in seconds since 1970.
    pub commit_time: i64,
    /// First line of the commit message, at most 100 characters.
    pub subject: String,
    /// False if the commit carried no kiln.lock, so that what it is made of was resolved by the server.
    pub pinned: bool,
    /// Services by name.
    pub services: BTreeMap<ServiceName, ServiceSpec>,
    /// Routes, in the order of the file.
    pub routes: Vec<RouteRule>,
    /// The images that the services use.
    pub images: Vec<ImageName>,
    /// The versions of the secrets that the services name, as they were at acceptance.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub secrets: BTreeMap<SecretName, SecretVersion>,
    /// What another environment must have shown of the images before this one takes them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requires: Option<Requirement>,
}

/// Where the images of a release come from, if they were not baked for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Promotion {
    /// The environment that ran them before.
    pub env: EnvName,
    /// Its release.
    pub release: ReleaseNumber,
}

impl ReleaseSpec {
    /// How it takes over: what its services agree on.
    pub fn strategy(&self) -> &Strategy {
        self.services.values().next().map_or(&Strategy::BlueGreen, |service| &service.rollout.strategy)
    }
}

/// A release of an environment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Release {
    /// Whose.
    pub env: EnvRef,
    /// Which.
    pub number: ReleaseNumber,
    /// What it asks for.
    pub spec: ReleaseSpec,
    /// The image digests; none until the bake is done, then fixed for ever.
    pub images: Option<BTreeMap<ImageName, Digest>>,
    /// When it was accepted.
    pub created: Wall,
    /// Who asked for it.
    pub actor: String,
    /// Whether traffic ever went to it.
    pub served: bool,
    /// The release of another environment whose images it has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub promoted_from: Option<Promotion>,
    /// Why it was accepted although the environment's requirement was not met.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub overridden: Option<String>,
}

impl Release {
    /// The image digest that `service` runs, once baked.
    pub fn image_of(&self, service: &ServiceSpec) -> Option<Digest> {
        self.images.as_ref()?.get(&service.image).copied()
    }
}
