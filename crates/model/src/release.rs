//! A release: one numbered, immutable record of an environment.

use crate::digest::{CommitId, Digest};
use crate::ids::{EnvRef, ImageName, ReleaseNumber, ServiceName};
use crate::route::RouteRule;
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
}

impl Release {
    /// The image digest that `service` runs, once baked.
    pub fn image_of(&self, service: &ServiceSpec) -> Option<Digest> {
        self.images.as_ref()?.get(&service.image).copied()
    }
}
