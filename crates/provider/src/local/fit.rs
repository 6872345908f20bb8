//! What a slot can be made to fit before it is needed: all of an instance but which one it is. Instances of one release fit
//! the same slots.

use super::order::Failure;
use super::program;
use super::root::Layer;
use super::rootfs::WRITABLE;
use super::wire::{self, Shape};
use kiln_model::{InstanceSpec, Seccomp};
use kiln_sys::cgroup::Limits;
use kiln_sys::exec::Words;
use std::sync::Arc;

/// Equal ones are of the same mounted layers.
#[derive(Debug, Clone)]
pub(super) struct Fit {
    /// Lowest first.
    pub layers: Vec<Arc<Layer>>,
    pub limits: Limits,
    /// A [`Shape`] as its datagram.
    pub shape: Vec<u8>,
}

impl PartialEq for Fit {
    fn eq(&self, other: &Self) -> bool {
        self.limits == other.limits
            && self.shape == other.shape
            && self.layers.len() == other.layers.len()
            && self.layers.iter().zip(&other.layers).all(|(a, b)| Arc::ptr_eq(a, b))
    }
}

impl Fit {
    /// What an instance of these layers fits.
    pub(super) fn of(spec: &InstanceSpec, layers: Vec<Arc<Layer>>) -> Result<Self, Failure> {
        let user = program::user_of(spec).map_err(|detail| Failure::permanent("find the user", detail))?;
        let resources = spec.resources;
        let limits = Limits {
            cpu_milli: resources.cpu_milli,
            memory_bytes: resources.memory_bytes,
            pids: resources.pids,
        };
        let writable = writable(&spec.writable);
        let writable = wire::words(writable.iter().map(String::as_str))
            .map_err(|_| Failure::permanent("prepare the root", "a NUL byte in `writable`"))?;
        let shape = Shape {
            writable: Words::new(&writable).unwrap_or_default(),
            user,
            capabilities: program::mask_of(spec.confinement.capabilities.iter().copied()),
            asks: spec.confinement.seccomp == Seccomp::Log,
            memory_bytes: resources.memory_bytes,
            has_secrets: !spec.secrets.is_empty(),
        };
        Ok(Self { layers, limits, shape: shape.encode() })
    }
}

/// All places that are in memory, each once, parents first.
fn writable(declared: &[String]) -> Vec<String> {
    let mut places: Vec<String> = WRITABLE.iter().map(|place| (*place).to_owned()).collect();
    for place in declared {
        if !places.contains(place) {
            places.push(place.clone());
        }
    }
    places.sort_by_key(String::len);
    places
}
