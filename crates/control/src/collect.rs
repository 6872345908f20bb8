//! Retention of images: which of them something may still need. Releases lead to images, and their commits to packages; what
//! neither leads to may go.

use crate::workshop::Workshop;
use kiln_image::gc::{self, GcError, Roots, Verdict};
use kiln_model::{Digest, ReleaseNumber, Snapshot};
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::PoisonError;
use std::time::{Duration, SystemTime};

/// Images that were baked less than this ago stay whatever is asked for: their release may not be recorded yet.
const LATELY: Duration = Duration::from_secs(10 * 60);

/// What a collection did, or would do.
#[derive(Debug)]
pub struct Collected {
    /// Every object with its fate, the largest first.
    pub verdicts: Vec<Verdict>,
    /// Bytes that became free; 0 for a plan.
    pub freed: u64,
}

impl Workshop {
    /// Removes the objects that nothing leads to, or with `plan` only says which. Bakes wait meanwhile. What was baked or
    /// locked less than `young` ago stays. Blocks.
    ///
    /// # Errors
    /// [`GcError`]; nothing is removed if a release's image cannot be followed.
    pub fn collect(&self, snapshot: &Snapshot, young: Duration, plan: bool) -> Result<Collected, GcError> {
        // From the look to the last removal no bake may find an object that is about to go.
        let _nobody_bakes = self.collecting.write().unwrap_or_else(PoisonError::into_inner);
        let mut roots = self.release_roots(snapshot);
        roots.images.extend(self.recent(young.max(LATELY)));
        roots.others.extend(self.kernel_objects());
        let verdicts = gc::plan(self.objects(), &self.cache_path(), &roots, young)?;
        if plan {
            return Ok(Collected { verdicts, freed: 0 });
        }
        let freed = gc::remove(self.objects(), &verdicts)?;
        for verdict in verdicts.iter().filter(|verdict| verdict.kept_by.is_none()) {
            // Without its manifest what stands beside it describes nothing; most objects have nothing beside them.
            for path in self.beside(verdict.object) {
                let _ = std::fs::remove_file(path);
            }
        }
        Ok(Collected { verdicts, freed })
    }

    /// What releases that may serve again, and instances that run, lead to.
    fn release_roots(&self, snapshot: &Snapshot) -> Roots {
        let mut roots = Roots::default();
        let mut commits = BTreeSet::new();
        for ((env, number), release) in &snapshot.releases {
            let Some(reason) = reason(snapshot, release, *number) else { continue };
            let reason = format!("release {number} of {env} ({reason})");
            roots.images.extend(release.images.iter().flatten().map(|(_, image)| (*image, reason.clone())));
            if commits.insert((env.project.clone(), release.spec.commit.clone())) {
                let locks = self.lock_of(&env.project, &release.spec.commit);
                roots.locks.extend(locks.map(|lock| (lock, reason)));
            }
        }
        let running = snapshot.instances.values();
        roots.images.extend(running.map(|i| (i.image, format!("instance {} runs it", i.id))));
        roots
    }

    /// Images that were baked lately, for a release that is not recorded yet or by hand.
    fn recent(&self, young: Duration) -> Vec<(Digest, String)> {
        let is_young = |path: &Path| {
            let baked = std::fs::metadata(path).and_then(|meta| meta.modified()).ok();
            let age = baked.and_then(|time| SystemTime::now().duration_since(time).ok());
            age.is_none_or(|age| age < young)
        };
        let images = self.images().into_iter().filter(|image| is_young(&self.record_path(*image)));
        images.map(|image| (image, "it was baked lately".to_owned())).collect()
    }
}

/// Why the images of a release are needed; none if they are not.
fn reason(snapshot: &Snapshot, release: &kiln_model::Release, number: ReleaseNumber) -> Option<&'static str> {
    let environment = snapshot.environments.get(&release.env)?;
    if environment.serving == Some(number) {
        return Some("serving");
    }
    if snapshot.active_rollouts(&release.env).any(|rollout| rollout.to == number) {
        return Some("on its way");
    }
    // A release that never served is nothing to go back to, and neither is one of a destroyed environment.
    (release.served && !environment.destroyed).then_some("served before")
}
