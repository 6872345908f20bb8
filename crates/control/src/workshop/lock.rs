//! Locks: the commit's own, or one that is resolved here.

use super::{LOCK_FILE, SPEC_FILE, Workshop, WorkshopError};
use kiln_image::debian::{self, Mirror};
use kiln_image::objects::write_durable;
use kiln_image::oci::Fetcher;
use kiln_image::worker::chain;
use kiln_model::{CommitId, Digest, ProjectName, limits};
use kiln_spec::lock::{LOCK_VERSION, LockedBase};
use kiln_spec::{Lock, Project, Recipes};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::PoisonError;

impl Workshop {
    /// The lock of a commit without one: the first that was resolved for that project and these recipes, for ever.
    pub(super) fn unpinned(
        &self,
        project: &ProjectName,
        spec: &Project,
        recipes: &Recipes,
        progress: &mut dyn FnMut(String),
    ) -> Result<Lock, WorkshopError> {
        let _one_at_a_time = self.resolving.lock().unwrap_or_else(PoisonError::into_inner);
        let path = self.unpinned_path(project, recipes);
        let kept = std::fs::read_to_string(&path).ok().and_then(|text| Lock::parse(&text).ok());
        if let Some(lock) = kept.filter(|lock| spec.fits(lock)) {
            return Ok(lock);
        }
        progress("resolving packages: the commit has no kiln.lock".into());
        let lock = self.resolve(recipes, None, false, progress)?;
        let written = write_durable(&path, lock.to_text().as_bytes());
        written.map_err(|source| WorkshopError::State { path, source })?;
        Ok(lock)
    }

    /// Resolves recipes, and brings OCI images into the content store. Blocks on mirror and registries.
    pub fn resolve(
        &self,
        recipes: &Recipes,
        previous: Option<&Lock>,
        update: bool,
        progress: &mut dyn FnMut(String),
    ) -> Result<Lock, WorkshopError> {
        let bases = self.bases(recipes, previous, update, progress)?;
        // The resolver knows packages only.
        let previous = previous.map(|lock| Lock { bases: BTreeMap::new(), ..lock.clone() });
        let mut lock = match recipes.debian.is_empty() {
            true => Lock { version: LOCK_VERSION, ..Lock::default() },
            false => self.resolve_packages(recipes, previous.as_ref(), update)?,
        };
        lock.bases = bases;
        Ok(lock)
    }

    /// The OCI images behind the bases, all of them in the content store when this returns.
    fn bases(
        &self,
        recipes: &Recipes,
        previous: Option<&Lock>,
        update: bool,
        progress: &mut dyn FnMut(String),
    ) -> Result<BTreeMap<String, LockedBase>, WorkshopError> {
        let fetcher = Fetcher { objects: &self.objects, auth: self.config.registry_auth.as_deref() };
        let one = |reference: &String| {
            let pinned = previous.filter(|_| !update).and_then(|lock| lock.bases.get(reference));
            let manifest = fetcher.fetch(reference, pinned.map(|base| base.manifest), progress);
            let manifest = manifest.map_err(|e| WorkshopError::Base { text: chain(&e), hint: e.hint() })?;
            Ok((reference.clone(), LockedBase { manifest }))
        };
        recipes.oci.iter().map(one).collect()
    }

    fn resolve_packages(
        &self,
        recipes: &Recipes,
        previous: Option<&Lock>,
        update: bool,
    ) -> Result<Lock, WorkshopError> {
        let suite = recipes.debian.values().next().map_or("bookworm", |recipe| recipe.suite.as_str());
        let (mirror, keyring) = (self.config.mirror.as_deref(), self.config.keyring.as_deref());
        let mirror = Mirror::open(mirror, suite, keyring);
        let mirror = mirror.map_err(|e| WorkshopError::Resolve {
            text: chain(&e),
            hint: e.hint().to_owned(),
            mirror: true,
        })?;
        debian::resolve_lock(&mirror, &recipes.debian, previous, update).map_err(|e| WorkshopError::Resolve {
            text: chain(&e),
            hint: e.hint(),
            mirror: matches!(e, debian::LockError::Mirror { .. }),
        })
    }

    /// The lock that a commit is baked with; none if it has none, or it cannot be read.
    pub(crate) fn lock_of(&self, project: &ProjectName, commit: &CommitId) -> Option<Lock> {
        let read = |file, max| self.sources.read(project, commit, file, max as u64).ok().flatten();
        if let Some(text) = read(LOCK_FILE, limits::LOCK_BYTES_MAX) {
            return Lock::parse(&String::from_utf8_lossy(&text)).ok();
        }
        let spec =
            Project::parse(&String::from_utf8_lossy(&read(SPEC_FILE, limits::SPEC_BYTES_MAX)?), SPEC_FILE);
        let path = self.unpinned_path(project, &spec.ok()?.recipes());
        std::fs::read_to_string(path).ok().and_then(|text| Lock::parse(&text).ok())
    }

    /// Where the lock of commits without one is kept.
    fn unpinned_path(&self, project: &ProjectName, recipes: &Recipes) -> PathBuf {
        let debian = recipes.debian.iter().map(|(name, recipe)| format!("{name} {}\n", recipe.digest()));
        let oci = recipes.oci.iter().map(|reference| format!("oci {reference}\n"));
        let key: String = debian.chain(oci).collect();
        self.config.state.join("locks").join(format!("{project}-{}.lock", Digest::of(key.as_bytes()).short()))
    }
}

/// The lock of a commit, if it fits its kiln.toml.
pub(super) fn committed(recipes: &Recipes, text: &[u8]) -> Result<Lock, WorkshopError> {
    let lock =
        Lock::parse(&String::from_utf8_lossy(text)).map_err(|e| WorkshopError::Lock { text: chain(&e) })?;
    if lock.unfit(recipes).is_empty() {
        return Ok(lock);
    }
    Err(WorkshopError::StaleLock { images: lock.unfit(recipes).join(", ") })
}
