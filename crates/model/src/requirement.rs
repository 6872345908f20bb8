//! What one environment demands of another before it takes its images.

use crate::ids::EnvName;
use crate::time::Millis;
use serde::{Deserialize, Serialize};

/// `requires = { environment = "staging", for = "1h" }`: only images that `env` served for so long are taken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Requirement {
    /// Who has to have served them.
    pub env: EnvName,
    /// For how long.
    pub time: Millis,
}
