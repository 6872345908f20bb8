//! Carries out effects. An effect has no choices left: it does what its intent row says, and reports how it ended.

use crate::clock::Clock;
use crate::crash::{self, Point};
use crate::vault::Vault;
use async_trait::async_trait;
use kiln_edge::client::{Router, RouterError};
use kiln_image::worker::chain;
use kiln_model::{
    Digest, EnvRef, Epoch, Fence, ImageManifest, ImageName, Incarnation, InstanceId, Op, OpKey,
    ReleaseNumber, Snapshot,
};
use kiln_plan::observed::OpOutcome;
use kiln_provider::{Provider, ProviderError};
use std::sync::Arc;

/// Why an image could not be made or read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub struct BakeryError {
    /// It will not work however often it is tried.
    pub permanent: bool,
    /// What failed, in one line, with a hint where there is one.
    pub text: String,
}

/// Why an image may not run.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AdmitError {
    /// Nobody trusted vouches for it. The text has a hint.
    #[error("{0}")]
    Refused(String),
    /// Its manifest is damaged or missing.
    #[error("{0}")]
    Damaged(String),
    /// It cannot be read for now.
    #[error("{0}")]
    Unreadable(String),
}

/// Where images come from.
#[async_trait]
pub trait Bakery: Send + Sync + 'static {
    /// Bakes one image of a release, or finds it baked.
    async fn bake(&self, release: &kiln_model::Release, image: &ImageName) -> Result<Digest, BakeryError>;

    /// The manifest of an image that may run: somebody trusted vouches for it, and the manifest is what its digest says.
    /// Asked before every start.
    async fn admit(&self, image: Digest) -> Result<ImageManifest, AdmitError>;

    /// Makes a damaged image of a release whole again, from its commit; answers with what was done. Permanent if that is
    /// not possible.
    async fn mend(&self, release: &kiln_model::Release, image: Digest) -> Result<String, BakeryError>;

    /// The last lines that an instance printed.
    fn tail(&self, instance: &InstanceId, lines: usize) -> Vec<String>;
}

/// The engines.
pub struct Engines<P, R, B> {
    /// Where instances run.
    pub provider: Arc<P>,
    /// The edge.
    pub router: Arc<R>,
    /// Where images come from.
    pub bakery: Arc<B>,
    /// What opens secrets.
    pub vault: Arc<Vault>,
}

impl<P, R, B> Clone for Engines<P, R, B> {
    fn clone(&self) -> Self {
        Self {
            provider: self.provider.clone(),
            router: self.router.clone(),
            bakery: self.bakery.clone(),
            vault: self.vault.clone(),
        }
    }
}

/// What came of an effect.
#[derive(Debug)]
pub struct Ended {
    /// How it ended.
    pub outcome: OpOutcome,
    /// An image that was baked.
    pub baked: Option<((EnvRef, ReleaseNumber, ImageName), Digest)>,
}

/// Carries out one effect.
pub async fn execute<P: Provider, R: Router, B: Bakery>(
    engines: Engines<P, R, B>,
    clock: Arc<dyn Clock>,
    server: (Incarnation, Epoch),
    op: Op,
    snapshot: Arc<Snapshot>,
) -> Ended {
    let fence = Fence { incarnation: server.0, epoch: server.1, revision: op.revision, op: op.id };
    let mut baked = None;
    let [before, after] = points(&op.key);
    clock.pass(before).await;
    let outcome = match &op.key {
        OpKey::Bake { env, release, image } => match bake(&engines, &snapshot, env, *release, image).await {
            Ok(digest) => {
                baked = Some(((env.clone(), *release, image.clone()), digest));
                OpOutcome::Done
            }
            Err(outcome) => outcome,
        },
        OpKey::Ensure { instance } => ensure(&engines, &snapshot, fence, instance).await,
        OpKey::Absent { instance } => match engines.provider.absent(fence, instance).await {
            Ok(()) => OpOutcome::Done,
            Err(error) => OpOutcome::Retry(error.to_string()),
        },
        OpKey::SetRoute { generation, digest } => {
            let (proposed, table) = &snapshot.route;
            if proposed != generation || table.digest() != *digest {
                OpOutcome::Permanent("a newer table was proposed".into())
            } else {
                if crash::planted("stop-before-acknowledgement") {
                    stop_early(&engines, &snapshot, fence, table).await;
                }
                match engines.router.set(fence, *generation, table).await {
                    Ok(()) => OpOutcome::Done,
                    Err(error @ (RouterError::Unreachable { .. } | RouterError::Stale { .. })) => {
                        OpOutcome::Retry(error.to_string())
                    }
                    Err(error) => OpOutcome::Retry(error.to_string()),
                }
            }
        }
    };
    clock.pass(after).await;
    Ended { outcome, baked }
}

/// The named points around an effect.
fn points(key: &OpKey) -> [Point; 2] {
    match key {
        OpKey::Bake { .. } => [Point::BakeBefore, Point::BakeAfter],
        OpKey::Ensure { .. } => [Point::EnsureBefore, Point::EnsureAfter],
        OpKey::Absent { .. } => [Point::AbsentBefore, Point::AbsentAfter],
        OpKey::SetRoute { .. } => [Point::SetRouteBefore, Point::SetRouteAfter],
    }
}

/// The planted fault: what the new table does not use is stopped before the edge has it.
async fn stop_early<P: Provider, R: Router, B: Bakery>(
    engines: &Engines<P, R, B>,
    snapshot: &Snapshot,
    fence: Fence,
    table: &kiln_model::RouteTable,
) {
    let used = |id: &InstanceId| table.pools.iter().any(|p| p.targets.iter().any(|t| t.instance == *id));
    for id in snapshot.instances.keys().filter(|id| !used(id)) {
        // Whether it worked does not matter: it is wrong either way.
        let _ = engines.provider.absent(fence, id).await;
    }
}

async fn bake<P: Provider, R: Router, B: Bakery>(
    engines: &Engines<P, R, B>,
    snapshot: &Snapshot,
    env: &EnvRef,
    release: ReleaseNumber,
    image: &ImageName,
) -> Result<Digest, OpOutcome> {
    let Some(release) = snapshot.release(env, release) else {
        return Err(OpOutcome::Permanent(format!("release {release} of `{env}` does not exist")));
    };
    engines.bakery.bake(release, image).await.map_err(|error| outcome_of(&error))
}

fn outcome_of(error: &BakeryError) -> OpOutcome {
    if error.permanent {
        OpOutcome::Permanent(error.text.clone())
    } else {
        OpOutcome::Retry(error.text.clone())
    }
}

async fn ensure<P: Provider, R: Router, B: Bakery>(
    engines: &Engines<P, R, B>,
    snapshot: &Snapshot,
    fence: Fence,
    id: &InstanceId,
) -> OpOutcome {
    let instance = snapshot.instances.get(id);
    let release = instance.and_then(|i| snapshot.release(&i.env, i.release));
    let (Some(instance), Some(release)) = (instance, release) else {
        return OpOutcome::Permanent(format!("`{id}` has no record"));
    };
    let manifest = match engines.bakery.admit(instance.image).await {
        Ok(manifest) => manifest,
        Err(AdmitError::Refused(text)) => return OpOutcome::Refused(text),
        Err(AdmitError::Damaged(text)) => return mend(engines, release, instance.image, text).await,
        Err(AdmitError::Unreadable(text)) => return OpOutcome::Retry(text),
    };
    let Some(spec) = kiln_plan::instance::spec(instance, release, manifest) else {
        return OpOutcome::Permanent(format!(
            "release {} has no service `{}`",
            release.number, instance.service
        ));
    };
    let secrets = match engines.vault.values(snapshot, &instance.env, &spec.secrets) {
        Ok(secrets) => secrets,
        Err(error) => return OpOutcome::Withheld(format!("{}; hint: {}", chain(&error), error.hint())),
    };
    match engines.provider.ensure(fence, &spec, &secrets).await {
        Ok(_) => OpOutcome::Done,
        Err(error @ ProviderError::Retry { .. }) => OpOutcome::Retry(error.to_string()),
        Err(error @ ProviderError::Damaged { .. }) => {
            mend(engines, release, instance.image, error.to_string()).await
        }
        Err(error) => OpOutcome::Permanent(error.to_string()),
    }
}

/// What becomes of a start that found its image damaged.
async fn mend<P: Provider, R: Router, B: Bakery>(
    engines: &Engines<P, R, B>,
    release: &kiln_model::Release,
    image: Digest,
    damage: String,
) -> OpOutcome {
    match engines.bakery.mend(release, image).await {
        Ok(done) => OpOutcome::Mended(format!("{damage}; {done}")),
        Err(error) if error.permanent => {
            OpOutcome::Refused(format!("{damage}; image {image} cannot be mended: {error}"))
        }
        Err(error) => OpOutcome::Retry(format!("{damage}; image {image} cannot be mended now: {error}")),
    }
}
