//! The changes that a commit may make to the truth. The store writes them, [`crate::Snapshot::apply`] gives them
//! their meaning; both must agree, which a property test of the store demands.

use crate::answer::Answered;
use crate::fence::OpId;
use crate::ids::{EnvRef, InstanceId};
use crate::instance::Instance;
use crate::op::{Op, OpKey};
use crate::pause::Pause;
use crate::recovery::Recovery;
use crate::release::Release;
use crate::rollout::Rollout;
use crate::route::{Generation, RouteTable};
use crate::secret::Secret;
use crate::snapshot::Environment;
use crate::time::Boot;
use serde::{Deserialize, Serialize};

/// One change. Each writes a whole row.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "mutation", rename_all = "snake_case")]
#[allow(clippy::large_enum_variant, reason = "few exist at a time, and none for long")]
pub enum Mutation {
    /// Write an environment.
    PutEnvironment(Environment),
    /// Write a release. Only `images` (once, from none) and `served` may differ from what is there.
    PutRelease(Box<Release>),
    /// Write a version of a secret: the next one, or one whose value is removed.
    PutSecret(Box<Secret>),
    /// Write a rollout.
    PutRollout(Box<Rollout>),
    /// Write an instance that is not gone. Its sequence number must be new or its own.
    PutInstance(Box<Instance>),
    /// The instance was destroyed, acknowledged. Leaves a tombstone for ever.
    Gone {
        /// Which.
        instance: InstanceId,
    },
    /// Write an intent row.
    PutOp(Op),
    /// The effect is known to have happened, or is no longer wanted.
    DropOp {
        /// Which.
        key: OpKey,
        /// The intent row's id; another row of the same key is left alone.
        id: OpId,
    },
    /// Propose a table. The generation is one above the last.
    PutRoute {
        /// Its number.
        generation: Generation,
        /// Its content.
        table: Box<RouteTable>,
    },
    /// The edge uses the generation.
    RouteAcked {
        /// Which.
        generation: Generation,
    },
    /// Stop effects, or go on with them.
    Pause {
        /// Of one environment, or of all.
        env: Option<EnvRef>,
        /// None ends it.
        pause: Option<Pause>,
    },
    /// Remember the answer to a command that named itself. The oldest beyond the limit is forgotten.
    Answer(Answered),
    /// The state is older than the world, or may be: nothing begins before [`Mutation::Recovered`].
    Hold {
        /// What showed it.
        recovery: Recovery,
    },
    /// State and world agree again.
    Recovered {
        /// Numbers of instances below it were used in the world, also if no row has them.
        next_instance: u64,
    },
    /// The host was rebooted: time begins anew, and every `since`, `begun` and `not_before` becomes `now`.
    Rebase {
        /// The boot id of the host, from `/proc/sys/kernel/random/boot_id`.
        boot_id: String,
        /// The new now.
        now: Boot,
    },
}
