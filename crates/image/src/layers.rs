//! The layers below the application: none for `scratch`; for Debian one of the base, shared by all images of one lock,
//! and one of the image's packages.

use crate::bake::BakeJob;
use crate::objects::Objects;
use kiln_model::LayerRef;
use kiln_spec::Base;

/// The layers below could not be made.
#[derive(Debug, thiserror::Error)]
pub enum LayersError {
    /// There is no lock.
    #[error("there is no lock for its packages")]
    NoLock,
}

impl LayersError {
    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        None
    }

    /// Whether it may work when it is tried again as it is.
    pub fn may_pass(&self) -> bool {
        false
    }
}

/// The layers below the application of `job`, lowest first.
pub fn below(
    job: &BakeJob,
    _objects: &Objects,
    _progress: &mut dyn FnMut(String),
) -> Result<Vec<LayerRef>, LayersError> {
    match job.recipe.base {
        Base::Scratch => Ok(vec![]),
        Base::Debian { .. } => Err(LayersError::NoLock),
    }
}
