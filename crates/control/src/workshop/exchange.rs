//! Images that go to other tools, registries, machines and servers, and those that come from there.

use super::{Format, Workshop, WorkshopError};
use kiln_image::attest::{self, Vouched};
use kiln_image::export::ExportError;
use kiln_image::export::blob::Compression;
use kiln_image::export::boot::Guest;
use kiln_image::export::disk::{self, Machine};
use kiln_image::export::oci::{self, Labels, OciImage, RunAs};
use kiln_image::import::{self, ImportError, Imported};
use kiln_image::objects::write_durable;
use kiln_image::oci::Registry;
use kiln_image::oci::push::{self, PushError, Pushed};
use kiln_image::replicate;
use kiln_model::{Digest, ImageManifest, LayerRef};
use std::io::Read;
use std::path::PathBuf;
use std::sync::PoisonError;

impl Workshop {
    /// Prepares an image for other tools. Blocks.
    ///
    /// # Errors
    /// [`ExportError`] with the layer at fault.
    pub fn export(
        &self,
        image: Digest,
        compression: Compression,
        run_as: &RunAs,
        labels: &Labels,
        progress: &mut dyn FnMut(String),
    ) -> Result<OciImage, ExportError> {
        let _nothing_is_removed = self.collecting.read().unwrap_or_else(PoisonError::into_inner);
        oci::prepare(&self.config.state, &self.objects, image, compression, run_as, labels, progress)
    }

    /// Prepares an image as a machine of its own, with the kernel of `kernel_image`. Blocks.
    ///
    /// # Errors
    /// [`ExportError`] with the layer, or what is missing in the kernel's image.
    pub fn machine(
        &self,
        image: Digest,
        kernel_image: Digest,
        uefi: bool,
        guest: &Guest,
        progress: &mut dyn FnMut(String),
    ) -> Result<Machine, ExportError> {
        let _nothing_is_removed = self.collecting.read().unwrap_or_else(PoisonError::into_inner);
        disk::prepare(&self.config.state, &self.objects, image, kernel_image, uefi, guest, progress)
    }

    /// Imports the image in an archive, which is called `called`. Blocks.
    ///
    /// # Errors
    /// [`ImportError`].
    pub fn import(
        &self,
        archive: &mut dyn Read,
        called: &str,
        progress: &mut dyn FnMut(String),
    ) -> Result<Imported, ImportError> {
        let _nothing_is_removed = self.collecting.read().unwrap_or_else(PoisonError::into_inner);
        let mut kept = self.objects.create()?;
        std::io::copy(archive, kept.file()).map_err(ImportError::Upload)?;
        import::import(&self.config.state, &self.objects, kept.path(), called, progress)
    }

    /// The layers of an image that are not here, each with those that may be like it. Blocks.
    pub fn missing(&self, manifest: &ImageManifest) -> Vec<(LayerRef, Vec<Digest>)> {
        let mut images = self.images();
        let made =
            |image: &Digest| std::fs::metadata(self.record_path(*image)).and_then(|m| m.modified()).ok();
        images.sort_by_key(|image| std::cmp::Reverse(made(image)));
        let known: Vec<_> = images.into_iter().filter_map(|image| self.manifest(image).ok()).collect();
        replicate::missing(&self.objects, manifest, &known)
    }

    /// Whether an image that is about to come may run here: somebody trusted signed the statement that comes with it.
    ///
    /// # Errors
    /// [`WorkshopError::Policy`] says what is wrong with it.
    pub fn may_come(
        &self,
        image: Digest,
        statement: Option<&serde_json::Value>,
    ) -> Result<Vouched, WorkshopError> {
        let bytes = statement.map(|statement| serde_json::to_vec_pretty(statement).unwrap_or_default());
        Ok(self.keys.trust()?.check(image, bytes.as_deref(), jiff::Timestamp::now())?)
    }

    /// Registers an image whose layers were all received, with what vouches for it. Blocks.
    ///
    /// # Errors
    /// [`WorkshopError::Policy`] if nobody trusted vouches for it, [`WorkshopError::Replicate`] if a layer is missing.
    pub fn register(
        &self,
        manifest: &ImageManifest,
        statement: &serde_json::Value,
        sboms: &[(Format, String)],
        note: &serde_json::Value,
    ) -> Result<Digest, WorkshopError> {
        let _nothing_is_removed = self.collecting.read().unwrap_or_else(PoisonError::into_inner);
        let state = &self.config.state;
        self.may_come(manifest.digest(), Some(statement))?;
        let image = replicate::register(&self.objects, manifest)?;
        let write = |path: PathBuf, bytes: &[u8]| {
            let written = write_durable(&path, bytes);
            written.map_err(|source| WorkshopError::State { path, source })
        };
        for (format, text) in sboms {
            write(attest::sbom_path(state, image, *format), text.as_bytes())?;
        }
        write(attest::note_path(state, image), &serde_json::to_vec_pretty(note).unwrap_or_default())?;
        // Last: what is vouched for is whole.
        let bytes = serde_json::to_vec_pretty(statement).unwrap_or_default();
        write(attest::statement_path(state, image), &bytes)?;
        Ok(image)
    }

    /// Pushes a prepared image to a registry, with the credentials of the server. Blocks.
    ///
    /// # Errors
    /// [`PushError`].
    pub fn push(
        &self,
        image: &OciImage,
        to: &str,
        progress: &mut dyn FnMut(String),
    ) -> Result<Pushed, PushError> {
        let _nothing_is_removed = self.collecting.read().unwrap_or_else(PoisonError::into_inner);
        let registry = Registry::new(self.config.registry_auth.as_deref())
            .map_err(|source| PushError::Registry { host: to.to_owned(), source })?;
        push::push(&registry, &self.objects, image, to, progress)
    }
}
