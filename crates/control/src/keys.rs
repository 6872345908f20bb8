//! The keys of one server: the one that signs what is baked here, and those whose images may run here.
//!
//! ```text
//! STATE/keys/signing.pem  the private key (PKCS#8 PEM, 0600), unless `--signing-key` names another file
//! STATE/keys/trusted      the server's own public keys, the current and earlier ones; used unless `--trust` names a list
//! STATE/keys/recorded     what of this the ledger knows
//! ```
//! The lists are read at every question, so that a key that was taken out of one is not believed from then on.

use kiln_image::attest::{KeyError, PublicKey, SigningKey, Trust, TrustError, TrustedKey};
use kiln_image::objects::write_durable;
use kiln_store::StoreError;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// Keys cannot be used or changed.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    /// A key file.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The list of trusted keys.
    #[error(transparent)]
    Trust(#[from] TrustError),
    /// The folder of keys.
    #[error("cannot write `{}`", path.display())]
    State {
        /// The file or folder.
        path: PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// The ledger.
    #[error("the change of a key could not be recorded")]
    Ledger(#[from] StoreError),
    /// The key is in a file of somebody else.
    #[error("the signing key is in `{}`, which kiln does not write", path.display())]
    NotOurs {
        /// Which file.
        path: PathBuf,
    },
    /// The list of keys is in a file of somebody else.
    #[error("the trusted keys are in `{}`, which kiln does not write", path.display())]
    ListNotOurs {
        /// Which file.
        path: PathBuf,
    },
    /// No such key, or several.
    #[error("{n} trusted keys begin with `{prefix}`")]
    Which {
        /// As asked.
        prefix: String,
        /// How many do.
        n: usize,
    },
    /// It signs.
    #[error("key {0} signs new images")]
    Signs(String),
}

impl KeysError {
    /// What the user can do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Key(error) => error.hint(),
            Self::Trust(_) => "one `ed25519:BASE64` a line, as `kiln key show` prints it",
            Self::State { .. } => "check the space and the rights of that folder",
            Self::Ledger(_) => "look at the log of `kiln serve`",
            Self::NotOurs { .. } => "write a new key to that file and start `kiln serve` again",
            Self::ListNotOurs { .. } => {
                "take the line out of that file: it holds from the next start of an instance on"
            }
            Self::Which { .. } => "`kiln key list` shows them",
            Self::Signs(_) => "run `kiln key rotate` first",
        }
    }
}

/// A key, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownKey {
    /// Which.
    pub key: PublicKey,
    /// Whether it signs what is baked here.
    pub signs: bool,
    /// Whether images that it signed may run.
    pub trusted: bool,
    /// The last day on which they may, as `YYYY-MM-DD` in UTC.
    pub until: Option<String>,
}

/// The keys.
#[derive(Debug)]
pub struct Keys {
    dir: PathBuf,
    signing_file: PathBuf,
    list: Option<PathBuf>,
    signing: Mutex<SigningKey>,
}

impl Keys {
    /// Reads the keys of a state folder; makes a signing key at the first start.
    pub fn open(state: &Path, signing: Option<&Path>, list: Option<&Path>) -> Result<Self, KeysError> {
        let dir = state.join("keys");
        make_private(&dir).map_err(|source| KeysError::State { path: dir.clone(), source })?;
        let own = dir.join("signing.pem");
        let key = match signing {
            Some(path) => SigningKey::read(path)?,
            None if own.exists() => SigningKey::read(&own)?,
            None => {
                let key = SigningKey::generate();
                let key = key.map_err(|source| KeysError::State { path: own.clone(), source })?;
                key.write(&own)?;
                key
            }
        };
        let keys = Self {
            dir,
            signing_file: signing.map_or(own, Path::to_owned),
            list: list.map(Path::to_owned),
            signing: Mutex::new(key),
        };
        let mut trusted = keys.own_list()?;
        let public = keys.signing().public();
        if !trusted.keys.iter().any(|trusted| trusted.key == public) {
            trusted.keys.push(TrustedKey { key: public, until: None });
            keys.write_own_list(&trusted)?;
        }
        // One that cannot be read is told now and not at the first start of an instance.
        keys.trust()?;
        Ok(keys)
    }

    /// The key that signs.
    pub fn signing(&self) -> SigningKey {
        self.signing.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The keys whose images may run, as their list says now.
    pub fn trust(&self) -> Result<Trust, TrustError> {
        Trust::read(self.list.as_deref().unwrap_or(&self.dir.join("trusted")))
    }

    /// Where the list of trusted keys is.
    pub fn list_path(&self) -> PathBuf {
        self.list.clone().unwrap_or_else(|| self.dir.join("trusted"))
    }

    /// All that are known.
    pub fn known(&self) -> Result<Vec<KnownKey>, TrustError> {
        let (signing, trust) = (self.signing().public(), self.trust()?);
        let mut keys: Vec<KnownKey> = trust
            .keys
            .iter()
            .map(|trusted| KnownKey {
                key: trusted.key,
                signs: trusted.key == signing,
                trusted: true,
                until: trusted.until.map(|until| until.to_string()),
            })
            .collect();
        if !keys.iter().any(|known| known.signs) {
            keys.push(KnownKey { key: signing, signs: true, trusted: false, until: None });
        }
        Ok(keys)
    }

    /// Signs new images with a new key from now on. What the old one signed may still run.
    pub fn rotate(&self) -> Result<PublicKey, KeysError> {
        let own = self.dir.join("signing.pem");
        if self.signing_file != own {
            return Err(KeysError::NotOurs { path: self.signing_file.clone() });
        }
        let mut signing = self.signing.lock().unwrap_or_else(PoisonError::into_inner);
        let key = SigningKey::generate().map_err(|source| KeysError::State { path: own.clone(), source })?;
        let public = key.public();
        // First into the list: what is signed may then run, whenever this is interrupted.
        let mut trusted = self.own_list()?;
        trusted.keys.push(TrustedKey { key: public, until: None });
        self.write_own_list(&trusted)?;
        key.write(&own)?;
        *signing = key;
        Ok(public)
    }

    /// Takes a key out of the server's list, by the first digits of its id: no instance starts any more from what it signed.
    pub fn remove(&self, prefix: &str) -> Result<PublicKey, KeysError> {
        if let Some(path) = &self.list {
            return Err(KeysError::ListNotOurs { path: path.clone() });
        }
        let signing = self.signing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut trusted = self.own_list()?;
        let found: Vec<PublicKey> = trusted
            .keys
            .iter()
            .map(|trusted| trusted.key)
            .filter(|key| key.id().starts_with(prefix))
            .collect();
        let [key] = found[..] else {
            return Err(KeysError::Which { prefix: prefix.to_owned(), n: found.len() });
        };
        if key == signing.public() {
            return Err(KeysError::Signs(key.short()));
        }
        trusted.keys.retain(|trusted| trusted.key != key);
        self.write_own_list(&trusted)?;
        Ok(key)
    }

    /// Puts into the ledger, by `record` (kind, subject, detail), what changed since it was last told: keys are also
    /// changed by options and by editing files.
    pub fn record_changes(
        &self,
        mut record: impl FnMut(&str, String, String) -> Result<(), StoreError>,
    ) -> Result<(), KeysError> {
        let path = self.dir.join("recorded");
        let known = self.known()?;
        let line = |k: &KnownKey, word: &str| format!("{word} {}", k.key);
        let signs = known.iter().filter(|k| k.signs).map(|k| line(k, "signs"));
        let trusted = known.iter().filter(|k| k.trusted).map(|k| line(k, "trusted"));
        let now: BTreeSet<String> = signs.chain(trusted).collect();
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        let before: BTreeSet<String> = text.lines().map(str::to_owned).collect();
        let changes = now
            .difference(&before)
            .map(|line| (line, true))
            .chain(before.difference(&now).map(|line| (line, false)));
        for (line, came) in changes {
            let Some((word, key)) = line.split_once(' ') else { continue };
            let Ok(key) = key.parse::<PublicKey>() else { continue };
            let kind = match (word, came) {
                ("signs", true) => "key.signs",
                ("trusted", true) => "key.trusted",
                ("trusted", false) => "key.removed",
                // That another key signs now says it.
                _ => continue,
            };
            record(kind, format!("key {}", key.short()), key.to_string())?;
        }
        let text: String = now.iter().map(|line| format!("{line}\n")).collect();
        write_durable(&path, text.as_bytes()).map_err(|source| KeysError::State { path, source })
    }

    fn own_list(&self) -> Result<Trust, KeysError> {
        let path = self.dir.join("trusted");
        if !path.exists() {
            return Ok(Trust::default());
        }
        Ok(Trust::read(&path)?)
    }

    fn write_own_list(&self, trust: &Trust) -> Result<(), KeysError> {
        let path = self.dir.join("trusted");
        let written = write_durable(&path, trust.to_text().as_bytes());
        written.map_err(|source| KeysError::State { path, source })
    }
}

fn make_private(dir: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn changes(keys: &Keys) -> Vec<String> {
        let mut lines = vec![];
        let record = |kind: &str, subject: String, _: String| {
            lines.push(format!("{kind} {subject}"));
            Ok(())
        };
        keys.record_changes(record).unwrap();
        lines
    }

    #[test]
    fn a_key_is_made_once_and_old_ones_are_trusted_until_they_are_removed() {
        let state = tempfile::tempdir().unwrap();
        let keys = Keys::open(state.path(), None, None).unwrap();
        let first = keys.signing().public();
        let file = state.path().join("keys/signing.pem");
        assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(std::fs::metadata(state.path().join("keys")).unwrap().permissions().mode() & 0o777, 0o700);
        let id = |key: &PublicKey| format!("key {}", key.short());
        assert_eq!(
            changes(&keys),
            [format!("key.signs {}", id(&first)), format!("key.trusted {}", id(&first))]
        );
        let keys = Keys::open(state.path(), None, None).unwrap();
        assert_eq!((keys.signing().public(), changes(&keys).len()), (first, 0));

        let second = keys.rotate().unwrap();
        assert_ne!(first, second);
        assert_eq!(keys.signing().public(), second);
        let trusted: Vec<PublicKey> = keys.trust().unwrap().keys.iter().map(|t| t.key).collect();
        assert_eq!(trusted, [first, second]);
        assert!(matches!(keys.remove(&second.id()), Err(KeysError::Signs(_))));
        assert!(matches!(keys.remove("zz"), Err(KeysError::Which { n: 0, .. })));
        assert!(matches!(keys.remove(""), Err(KeysError::Which { n: 2, .. })));
        assert_eq!(keys.remove(&first.id()[..20]).unwrap(), first);
        assert_eq!(keys.trust().unwrap(), Trust::only(second));
        let told = changes(&keys);
        assert!(told.contains(&format!("key.removed {}", id(&first))), "{told:?}");
        assert!(told.contains(&format!("key.signs {}", id(&second))), "{told:?}");
    }

    #[test]
    fn keys_and_lists_of_others_are_used_and_not_written() {
        let state = tempfile::tempdir().unwrap();
        let own = Keys::open(state.path(), None, None).unwrap().signing().public();
        let (file, list) = (state.path().join("ci.pem"), state.path().join("list"));
        let ci = SigningKey::generate().unwrap();
        ci.write(&file).unwrap();
        std::fs::write(&list, format!("{own} until=2030-01-01\n")).unwrap();
        let keys = Keys::open(state.path(), Some(&file), Some(&list)).unwrap();
        assert_eq!(keys.signing().public(), ci.public());
        let known = keys.known().unwrap();
        let shown: Vec<_> = known.iter().map(|k| (k.key, k.signs, k.trusted, k.until.as_deref())).collect();
        assert_eq!(shown, [(own, false, true, Some("2030-01-01")), (ci.public(), true, false, None)]);
        assert!(matches!(keys.rotate(), Err(KeysError::NotOurs { .. })));
        assert!(matches!(keys.remove(&own.id()), Err(KeysError::ListNotOurs { .. })));
        // It holds from the next question on.
        std::fs::write(&list, "").unwrap();
        assert_eq!(keys.trust().unwrap(), Trust::default());
        std::fs::write(&list, "nonsense\n").unwrap();
        assert!(keys.trust().is_err() && Keys::open(state.path(), None, Some(&list)).is_err());
        assert!(Keys::open(state.path(), Some(Path::new("/nonexistent")), None).is_err());
    }
}
