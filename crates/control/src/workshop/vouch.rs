//! What vouches for an image: signed statements, bills of materials, and making whole what was damaged.

use super::{Format, Workshop, WorkshopError};
use crate::keys::Keys;
use kiln_image::attest::{self, Vouched};
use kiln_image::sbom;
use kiln_image::verify;
use kiln_image::worker::{WorkerError, chain};
use kiln_model::{CommitId, Digest, ImageName, ProjectName};
use std::sync::PoisonError;

/// What an image is baked from.
pub(super) struct Origin {
    pub(super) project: ProjectName,
    pub(super) commit: CommitId,
    pub(super) name: ImageName,
}

impl Workshop {
    /// The keys.
    pub fn keys(&self) -> &Keys {
        &self.keys
    }

    /// Whether an image may run: who vouches for it, and with what. To be asked for what was fetched or imported, and
    /// asked before every start.
    pub fn vouched(&self, image: Digest) -> Result<Vouched, WorkshopError> {
        let trust = self.keys.trust()?;
        let path = attest::statement_path(&self.config.state, image);
        let envelope = attest::read(&self.config.state, image)
            .map_err(|source| WorkshopError::State { path, source })?;
        Ok(trust.check(image, envelope.as_deref(), jiff::Timestamp::now())?)
    }

    /// Whether somebody trusted vouches for an image, or this server did, and its bills of materials are those that were
    /// signed. Not known is as good.
    pub(super) fn is_vouched(&self, image: Digest) -> bool {
        let own = || {
            let envelope = attest::read(&self.config.state, image).ok().flatten();
            let own = attest::Trust::only(self.keys.signing().public());
            own.check(image, envelope.as_deref(), jiff::Timestamp::now())
        };
        let vouched = match self.vouched(image) {
            Err(WorkshopError::Policy(_)) => own().ok(),
            Err(_) => return true,
            Ok(vouched) => Some(vouched),
        };
        vouched.is_some_and(|vouched| {
            let read = |format| sbom::read(&self.config.state, image, format, &vouched.statement);
            Format::ALL.into_iter().all(|format| read(format).is_ok())
        })
    }

    /// The bill of materials that was made with an image.
    pub fn sbom(&self, image: Digest, format: Format) -> Result<Vec<u8>, WorkshopError> {
        let vouched = self.vouched(image)?;
        Ok(sbom::read(&self.config.state, image, format, &vouched.statement)?)
    }

    /// Reads everything of an image. Blocks for as long as that takes.
    pub fn verify(
        &self,
        image: Digest,
        progress: &mut dyn FnMut(&str),
    ) -> Result<verify::Report, WorkshopError> {
        let trust = self.keys.trust()?;
        let now = jiff::Timestamp::now();
        Ok(verify::image(&self.config.state, &self.objects, &trust, image, now, progress))
    }

    /// Makes a damaged image of a commit whole again: what is damaged is removed, and the commit is baked again. Answers with
    /// what was done. Blocks.
    pub(super) fn mend(
        &self,
        origin: &Origin,
        image: Digest,
        progress: &mut dyn FnMut(String),
    ) -> Result<String, WorkshopError> {
        // Many instances may find the same damage.
        let _one_at_a_time = self.mending.lock().unwrap_or_else(PoisonError::into_inner);
        let report = verify::content(&self.objects, image, &mut |_| {});
        if report.is_good() {
            return Ok("it is whole again".to_owned());
        }
        let Origin { project, commit, name } = origin;
        // Before anything is removed: without its source it stays as it is.
        let draft = self.draft(project, commit, progress)?;
        for object in report.broken.iter().filter_map(|broken| broken.object) {
            self.objects.remove(object)?;
        }
        let baked = self.bake(&draft, name, progress)?;
        let left = verify::content(&self.objects, image, &mut |_| {});
        if let Some(broken) = left.broken.first() {
            let text = format!(
                "commit {commit} was baked again and gave image {baked}; {} of image {image}: {}",
                broken.part, broken.why
            );
            return Err(WorkshopError::Bake(WorkerError { text, hint: None, may_pass: false }));
        }
        let parts: Vec<&str> = report.broken.iter().map(|broken| broken.part.as_str()).collect();
        let (commit, parts) = (commit.short(), parts.join(", "));
        Ok(format!("image `{name}` {image} was baked again from commit {commit} ({parts})"))
    }

    /// The same for whoever asks, of an image that somebody trusted vouches for; damaged packages are removed, to be fetched
    /// again when they are needed. Blocks.
    pub fn mend_image(
        &self,
        image: Digest,
        progress: &mut dyn FnMut(String),
    ) -> Result<String, WorkshopError> {
        let statement = self.vouched(image)?.statement;
        for package in statement.packages().filter_map(|package| package.sha256()) {
            self.objects.is_intact(package);
        }
        let asked = statement.external();
        let origin = Origin {
            project: asked.project.clone(),
            commit: asked.commit.clone(),
            name: asked.image.clone(),
        };
        let done = self.mend(&origin, image, progress)?;
        if self.is_vouched(image) {
            return Ok(done);
        }
        // Nothing of the image is damaged, but a bill of materials.
        let draft = self.draft(&origin.project, &origin.commit, progress)?;
        self.bake(&draft, &origin.name, progress)?;
        Ok(format!("{done}, and what stands beside it was written again"))
    }

    /// Who baked an image from what and when; none if that is not known.
    pub fn provenance(&self, image: Digest) -> Option<serde_json::Value> {
        self.described(image).or_else(|| self.noted(image))
    }

    /// What is known of an image that came from elsewhere without a statement.
    fn noted(&self, image: Digest) -> Option<serde_json::Value> {
        let note = std::fs::read(attest::note_path(&self.config.state, image)).ok()?;
        let mut note: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(&note).ok()?;
        note.insert("signed by".into(), "nobody".into());
        Some(note.into())
    }

    /// The signed statement beside an image, as it lies there.
    pub fn statement(&self, image: Digest) -> Option<serde_json::Value> {
        serde_json::from_slice(&attest::read(&self.config.state, image).ok()??).ok()
    }

    fn described(&self, image: Digest) -> Option<serde_json::Value> {
        let bytes = attest::read(&self.config.state, image).ok()??;
        let envelope: attest::Envelope = serde_json::from_slice(&bytes).ok()?;
        let statement: attest::Statement = serde_json::from_slice(&envelope.payload()?).ok()?;
        let mut summary = statement.summary();
        let vouched = match self.vouched(image) {
            Ok(vouched) => format!("key {}", vouched.key.short()),
            Err(error) => format!("nobody who is trusted: {}", chain(&error)),
        };
        summary.insert("signed by", vouched.into());
        serde_json::to_value(summary).ok()
    }
}
