//! How an instance is kept apart from its host and from others: what a service asks for beyond the least. The default is
//! the tightest of everything.

use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// What a service declares. Everything that is not declared is refused.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Confinement {
    /// What stands between the instance and the host's kernel.
    pub isolation: Isolation,
    /// What it may reach beside the services of its own environment.
    pub egress: BTreeSet<Egress>,
    /// Capabilities that the program has in its own user namespace.
    pub capabilities: BTreeSet<Capability>,
    /// What becomes of a system call that is not on the list.
    pub seccomp: Seccomp,
}

/// What stands between an instance and the host's kernel.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Isolation {
    /// Namespaces, limits and a filter of system calls; the kernel is shared.
    #[default]
    Sandbox,
    /// A virtual machine with a kernel of its own.
    Vm,
}

/// A place outside that a service may reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Egress {
    /// Public addresses.
    Internet,
}

/// What becomes of a system call that is not on the list.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Seccomp {
    /// It is refused.
    #[default]
    Enforce,
    /// It is let through and written to the host's kernel log, to find out what a program needs. The doors to the kernel
    /// (mounts, namespaces, modules, …) stay shut.
    Log,
}

/// A capability that a service may declare: those whose power ends at the instance's own user namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
#[expect(missing_docs, reason = "the names are those of capabilities(7)")]
pub enum Capability {
    Chown,
    DacOverride,
    Fowner,
    Fsetid,
    Kill,
    NetBindService,
    Setgid,
    Setuid,
}

impl Capability {
    /// All of them, in order of their names.
    pub const ALL: [Self; 8] = [
        Self::Chown,
        Self::DacOverride,
        Self::Fowner,
        Self::Fsetid,
        Self::Kill,
        Self::NetBindService,
        Self::Setgid,
        Self::Setuid,
    ];

    /// Its number and its name without `CAP_`, from `linux/capability.h`.
    fn entry(self) -> (u32, &'static str) {
        match self {
            Self::Chown => (0, "CHOWN"),
            Self::DacOverride => (1, "DAC_OVERRIDE"),
            Self::Fowner => (3, "FOWNER"),
            Self::Fsetid => (4, "FSETID"),
            Self::Kill => (5, "KILL"),
            Self::Setgid => (6, "SETGID"),
            Self::Setuid => (7, "SETUID"),
            Self::NetBindService => (10, "NET_BIND_SERVICE"),
        }
    }

    /// The kernel's number.
    pub fn number(self) -> u32 {
        self.entry().0
    }

    /// The name, as in `CHOWN`.
    pub fn name(self) -> &'static str {
        self.entry().1
    }

    /// Of a name with or without `CAP_`.
    pub fn parse(name: &str) -> Option<Self> {
        let bare = name.strip_prefix("CAP_").unwrap_or(name);
        Self::ALL.into_iter().find(|capability| capability.name() == bare)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_one_and_the_same_everywhere() {
        for capability in Capability::ALL {
            let json = serde_json::to_string(&capability).unwrap();
            assert_eq!(json.trim_matches('"'), capability.name());
            assert_eq!(Capability::parse(&format!("CAP_{}", capability.name())), Some(capability));
        }
        assert_eq!(Capability::parse("SYS_ADMIN"), None);
    }

    #[test]
    fn what_was_written_before_there_was_a_choice_is_the_tightest() {
        assert_eq!(serde_json::from_str::<Confinement>("{}").unwrap(), Confinement::default());
    }
}
