//! The nouns of kiln and their legal transitions.
//!
//! Everything here is a pure value: no I/O, no clock, no randomness, no async. Every crate speaks in these types,
//! so that engines (image, provider, edge, logs) never need to know each other.
#![forbid(unsafe_code)]

pub mod answer;
pub mod check;
pub mod cidr;
pub mod confinement;
pub mod digest;
pub mod edge;
pub mod event;
pub mod fence;
pub mod frame;
pub mod ids;
pub mod image;
mod index;
pub mod instance;
pub mod limits;
pub mod mix;
pub mod mutant;
pub mod mutation;
pub mod network;
pub mod op;
pub mod pause;
pub mod policy;
pub mod recovery;
pub mod release;
pub mod requirement;
pub mod rollout;
pub mod route;
pub mod secret;
pub mod service;
pub mod snapshot;
pub mod strategy;
pub mod time;

pub use answer::Answered;
pub use check::{Check, CheckKind, Evidence};
pub use cidr::Cidr;
pub use confinement::{Capability, Confinement, Egress, Isolation, Seccomp};
pub use digest::{CommitId, Digest};
pub use event::Event;
pub use fence::{Epoch, Fence, Incarnation, OpId, Revision};
pub use ids::{EnvName, EnvRef, ImageName, InstanceId, ProjectName, ReleaseNumber, RolloutId, ServiceName};
pub use image::{ImageConfig, ImageManifest, LayerRef};
pub use instance::{ExitReason, Instance, InstanceSpec, InstanceState, Seen, SeenState};
pub use mix::{Mix, Share, Step};
pub use mutation::Mutation;
pub use network::{NetworkNumber, ServiceRange};
pub use op::{Op, OpKey};
pub use pause::{Damaged, Hold, Pause};
pub use policy::RoutePolicy;
pub use recovery::{Memory, Origin, Recovery};
pub use release::{Promotion, Release, ReleaseSpec};
pub use requirement::Requirement;
pub use rollout::{Rollout, RolloutKind, RolloutPhase};
pub use route::{Generation, Hsts, Https, InternalRoute, Protocol, RouteRule, RouteTable, Target, TcpRoute};
pub use secret::{NO_SECRETS, Secret, SecretContent, SecretName, SecretValue, SecretValues, SecretVersion};
pub use service::{Autoscale, Health, Resources, RolloutPolicy, ServiceSpec, Stop};
pub use snapshot::{Environment, Snapshot};
pub use strategy::Strategy;
pub use time::{Boot, Millis, Wall};
