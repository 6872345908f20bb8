//! Another image of the same kiln.toml: its layers, as they were baked before this one.

use super::{Below, LayersError, Room};
use crate::bake;
use kiln_model::ImageName;

pub(super) fn below(room: &mut Room<'_>, name: &ImageName) -> Result<Below, LayersError> {
    let image = room.job.images.get(name).ok_or_else(|| LayersError::NotBaked(name.clone()))?;
    let manifest = bake::manifest(room.objects, *image)?;
    let provenance = bake::provenance(&room.job.state, *image);
    let (base, unreproducible) = provenance.map(|p| (p.base, p.unreproducible)).unwrap_or_default();
    Ok(Below { layers: manifest.layers, base, unreproducible })
}
