//! Fallbacks that older or other kernels need, taken although this one does not: each can be forced, so that tests on one
//! host go every way. `KILN_FORCE=loop,cgroup-v1 kiln serve` does it for the whole program.
//!
//! | word | instead of | as on |
//! |---|---|---|
//! | `loop` | mounting an image's file itself | Linux before 6.12; taken until 6.14, which cannot copy such a mount |
//! | `remount` | copying a layer's mount for each instance | Linux before 6.15; implies `loop` |
//! | `paths` | joining layers by descriptors | Linux before 6.15: a thread keeps them attached |
//! | `cgroup-v1` | what the v2 tree has | a host without one |
//! | `cgroup-v2` | what v1 trees have | a host with systemd's `unified` layout |
//! | `emulation` | KVM, where a test boot proves it | a host without it |
//! | `no-idmap` | showing an image's files with the owners of the instance's ids | a kernel below 5.19: refused |

use super::order::Failure;
use kiln_sys::cgroup::Choice;
use kiln_sys::mount::{self, Copying, ErofsBacking};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::os::fd::{AsFd, OwnedFd};
use std::str::FromStr;

/// Forced fallbacks; by default none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Forced {
    /// How layers are mounted.
    pub erofs: ErofsBacking,
    /// How their mounts are copied.
    pub copying: Copying,
    /// Attach layers to join them.
    pub paths: bool,
    /// Which control groups are used.
    pub cgroups: Choice,
    /// Emulate the processor of virtual machines, as without KVM.
    pub emulation: bool,
    /// As if the kernel had no idmapped mounts.
    pub no_idmap: bool,
}

/// A word that forces nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{word}` is no fallback that can be forced")]
pub struct ForcedError {
    /// The word.
    pub word: String,
}

impl ForcedError {
    /// What the user can do about it.
    pub fn hint(&self) -> &'static str {
        "give words of `loop,remount,paths,cgroup-v1,cgroup-v2,emulation,no-idmap`"
    }
}

impl FromStr for Forced {
    type Err = ForcedError;

    fn from_str(text: &str) -> Result<Self, ForcedError> {
        let mut forced = Self::default();
        for word in text.split(',').map(str::trim).filter(|word| !word.is_empty()) {
            match word {
                "loop" => forced.erofs = ErofsBacking::Loop,
                "remount" => (forced.erofs, forced.copying) = (ErofsBacking::Loop, Copying::Again),
                "paths" => forced.paths = true,
                "cgroup-v1" => forced.cgroups = Choice::V1,
                "cgroup-v2" => forced.cgroups = Choice::V2,
                "emulation" => forced.emulation = true,
                "no-idmap" => forced.no_idmap = true,
                _ => return Err(ForcedError { word: word.to_owned() }),
            }
        }
        Ok(forced)
    }
}

impl fmt::Display for Forced {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words = [
            (self.erofs == ErofsBacking::Loop, "loop"),
            (self.copying == Copying::Again, "remount"),
            (self.paths, "paths"),
            (self.cgroups == Choice::V1, "cgroup-v1"),
            (self.cgroups == Choice::V2, "cgroup-v2"),
            (self.emulation, "emulation"),
            (self.no_idmap, "no-idmap"),
        ];
        let forced: Vec<&str> = words.iter().filter(|(is, _)| *is).map(|(_, word)| *word).collect();
        f.write_str(&forced.join(","))
    }
}

impl From<Forced> for String {
    fn from(forced: Forced) -> Self {
        forced.to_string()
    }
}

impl TryFrom<String> for Forced {
    type Error = ForcedError;

    fn try_from(text: String) -> Result<Self, ForcedError> {
        text.parse()
    }
}

impl Forced {
    /// A copy of a layer's mount for one instance, whose files belong to the ids of `owners`. There is no other way: with
    /// the owners on disk every file would be nobody's, and what only its owner may read could not be read, or by all.
    pub(crate) fn copy(self, layer: impl AsFd, owners: impl AsFd) -> Result<OwnedFd, Failure> {
        const STEP: &str = "give the image's files to the instance";
        const DETAIL: &str = "this kernel cannot show EROFS files with other owners (idmapped mounts); hint: use Linux \
             6.1 or newer, `kiln doctor` says what else is missing";
        if self.no_idmap {
            return Err(Failure::permanent(STEP, DETAIL));
        }
        let copy = mount::copy_by(layer, self.copying)?;
        match mount::map_owners(&copy, owners) {
            Ok(()) => Ok(copy),
            Err(error) if error.errno() == libc::EINVAL => Err(Failure::permanent(STEP, DETAIL)),
            Err(error) => Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_read_and_written() {
        for text in ["", "loop", "cgroup-v1", "loop,remount,paths,cgroup-v2,no-idmap"] {
            assert_eq!(text.parse::<Forced>().map(|forced| forced.to_string()), Ok(text.to_owned()));
        }
        let remount: Forced = " remount ,".parse().unwrap();
        assert_eq!((remount.erofs, remount.copying), (ErofsBacking::Loop, Copying::Again));
        assert_eq!("loop,lop".parse::<Forced>().unwrap_err().word, "lop");
        let json = serde_json::to_string(&remount).unwrap();
        assert_eq!(serde_json::from_str::<Forced>(&json).unwrap(), remount);
    }
}
