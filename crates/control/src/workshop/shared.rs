//! The workshop as the control loop sees it: what blocks runs on threads of its own.

use super::vouch::Origin;
use super::{Draft, Workshop, WorkshopError};
use crate::execute::{AdmitError, Bakery, BakeryError};
use async_trait::async_trait;
use kiln_image::ObjectError;
use kiln_image::worker::chain;
use kiln_model::{Digest, ImageManifest, ImageName, InstanceId, Release};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

fn bakery_error(error: &WorkshopError) -> BakeryError {
    let permanent = match error {
        WorkshopError::Bake(error) => !error.may_pass,
        WorkshopError::Resolve { mirror, .. } => !mirror,
        WorkshopError::State { .. } | WorkshopError::Objects(_) => false,
        WorkshopError::Kernel(error) => !error.may_pass(),
        _ => true,
    };
    let hint = error.hint().map(|hint| format!("; hint: {hint}")).unwrap_or_default();
    BakeryError { permanent, text: format!("{}{hint}", chain(error)) }
}

/// Becomes true when it is dropped.
#[derive(Debug, Default)]
struct Gone(Arc<AtomicBool>);

impl Drop for Gone {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

/// The workshop as the control loop sees it.
#[derive(Debug, Clone)]
pub struct SharedWorkshop(pub Arc<Workshop>);

impl SharedWorkshop {
    /// Does `work` with the commit of a release, on a thread of its own.
    async fn with_draft<T: Send + 'static>(
        &self,
        release: &Release,
        image: &ImageName,
        work: impl FnOnce(&Workshop, &Draft, &mut dyn FnMut(String)) -> Result<T, WorkshopError> + Send + 'static,
    ) -> Result<T, BakeryError> {
        let workshop = self.0.clone();
        let (env, commit, image) = (release.env.clone(), release.spec.commit.clone(), image.clone());
        let work = move || {
            let mut progress = |text: String| workshop.tell(&env, format!("image {image}: {text}"));
            let draft = workshop.draft(&env.project, &commit, &mut progress)?;
            work(&workshop, &draft, &mut progress)
        };
        let done = tokio::task::spawn_blocking(work).await;
        let done = done.map_err(|e| BakeryError { permanent: false, text: e.to_string() })?;
        done.map_err(|error: WorkshopError| bakery_error(&error))
    }
}

#[async_trait]
impl Bakery for SharedWorkshop {
    async fn bake(&self, release: &Release, image: &ImageName) -> Result<Digest, BakeryError> {
        let name = image.clone();
        let look = move |workshop: &Workshop, draft: &Draft, progress: &mut dyn FnMut(String)| {
            // Fetched now, and not when an instance is to be there in time.
            if draft.project.needs_machine(&name) {
                workshop.guest_kernel(progress)?;
            }
            Ok(workshop.baked(draft, &name))
        };
        let found = self.with_draft(release, image, look).await?;
        if let Some(found) = found {
            // It waits for nobody's bake.
            return Ok(found);
        }
        // The semaphore is never closed.
        let _slot = self.0.bakes.acquire().await;
        let name = image.clone();
        // Whoever waits for this is aborted when the rollout is superseded; a thread is not, so it is told.
        let gone = Gone::default();
        let flag = gone.0.clone();
        let bake = move |w: &Workshop, draft: &Draft, progress: &mut dyn FnMut(String)| {
            w.bake_unless(&|| flag.load(Relaxed), draft, &name, progress)
        };
        self.with_draft(release, image, bake).await
    }

    async fn admit(&self, image: Digest) -> Result<ImageManifest, AdmitError> {
        self.0.vouched(image).map_err(|error| match &error {
            WorkshopError::State { .. } => AdmitError::Unreadable(chain(&error)),
            _ => AdmitError::Refused(bakery_error(&error).text),
        })?;
        self.0.manifest(image).map_err(|error| match error {
            ObjectError::Missing(_) | ObjectError::Mismatch { .. } => {
                AdmitError::Damaged(format!("manifest of image {image}: {}", chain(&error)))
            }
            _ => AdmitError::Unreadable(chain(&error)),
        })
    }

    async fn mend(&self, release: &Release, image: Digest) -> Result<String, BakeryError> {
        let (workshop, release) = (self.0.clone(), release.clone());
        // The semaphore is never closed.
        let _slot = self.0.bakes.acquire().await;
        let work = move || {
            let images = release.images.iter().flatten();
            let name = images.filter(|(_, digest)| **digest == image).map(|(name, _)| name.clone()).next();
            let origin = Origin {
                project: release.env.project.clone(),
                commit: release.spec.commit.clone(),
                name: name.ok_or(ObjectError::Missing(image))?,
            };
            let mut progress = |text: String| workshop.tell(&release.env, format!("mending image: {text}"));
            workshop.mend(&origin, image, &mut progress)
        };
        let done = tokio::task::spawn_blocking(work).await;
        let done = done.map_err(|e| BakeryError { permanent: false, text: e.to_string() })?;
        done.map_err(|error: WorkshopError| bakery_error(&error))
    }

    fn tail(&self, instance: &InstanceId, lines: usize) -> Vec<String> {
        self.0.logs.tail_of(instance, lines)
    }
}
