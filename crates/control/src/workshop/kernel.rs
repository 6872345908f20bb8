//! The kernel of virtual machines: fetched once, when an image is baked for the first service with `isolation = "vm"`.

use super::{Workshop, WorkshopError};
use kiln_image::debian::Mirror;
use kiln_image::kernel::{self, GuestKernel};
use kiln_image::worker::chain;
use kiln_model::Digest;
use kiln_provider::vm::{Machine, MachineError, MachineSource};
use std::sync::{Arc, PoisonError};

impl Workshop {
    /// The kernel of this server's machines; fetched if it is not there. Blocks.
    ///
    /// # Errors
    /// [`WorkshopError::Kernel`].
    pub fn guest_kernel(&self, progress: &mut dyn FnMut(String)) -> Result<GuestKernel, WorkshopError> {
        let _nothing_is_removed = self.collecting.read().unwrap_or_else(PoisonError::into_inner);
        // Held while it is fetched: the second one who needs it finds it.
        let mut known = self.kernel.lock().unwrap_or_else(PoisonError::into_inner);
        // It was looked at as a whole when it was remembered.
        if let Some(found) = known.as_ref().filter(|found| found.kernel.exists() && found.initrd.exists()) {
            return Ok(found.clone());
        }
        let config = &self.config;
        let mirror = || Mirror::open(config.mirror.as_deref(), kernel::RELEASE, config.keyring.as_deref());
        let found = kernel::ensure(&config.state, &self.objects, mirror, progress).map_err(Box::new)?;
        Ok(known.insert(found).clone())
    }

    /// What of the content store it needs.
    pub(crate) fn kernel_objects(&self) -> Vec<(Digest, String)> {
        let objects = kernel::objects_of(&self.config.state).into_iter();
        objects.map(|(object, what)| (object, what.to_owned())).collect()
    }
}

/// The workshop as the provider of virtual machines sees it.
#[derive(Debug, Clone)]
pub struct GuestKernels(pub Arc<Workshop>);

impl MachineSource for GuestKernels {
    fn machine(&self) -> Result<Machine, MachineError> {
        let found = self.0.guest_kernel(&mut |_| {}).map_err(|error| {
            let hint = error.hint().map(|hint| format!("; hint: {hint}")).unwrap_or_default();
            MachineError(format!("{}{hint}", chain(&error)))
        })?;
        Ok(Machine { kernel: found.kernel, initrd: found.initrd })
    }
}
