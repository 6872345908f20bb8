//! Seals the values of secrets and opens them again, with age (X25519) and the server's own key:
//!
//! ```text
//! STATE/keys/secrets.age  an identity a line, as `age-keygen` writes them, 0600; the first one seals, every one opens
//! ```
//! The file is read at every use, so that a key that was put back is used at once and none is kept in memory. What is sealed
//! says whose value it is: a row that was moved to another environment or name does not open.

use age::secrecy::ExposeSecret as _;
use age::x25519::Identity;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use kiln_model::{
    EnvRef, Secret, SecretContent, SecretName, SecretValue, SecretValues, SecretVersion, Snapshot,
};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use zeroize::Zeroizing;

/// Bytes of the key file.
const FILE_BYTES_MAX: u64 = 64 << 10;
/// Bytes of a sealed value beyond those of the value: age's own and the line that says whose it is.
const OVERHEAD_BYTES_MAX: u64 = 4096;

/// A secret cannot be sealed or opened.
#[derive(Debug, thiserror::Error)]
pub enum VaultError {
    /// The key file.
    #[error("cannot {step} the key of secrets `{}`", path.display())]
    Io {
        /// What was tried.
        step: &'static str,
        /// Which file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// It holds no age identity.
    #[error("`{}` is not a list of age identities", path.display())]
    Form {
        /// Which file.
        path: PathBuf,
    },
    /// Others than its owner can read it.
    #[error("the key of secrets `{}` can be read by others (mode {mode:03o})", path.display())]
    Open {
        /// Which file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// No such version, or its value was removed.
    #[error("{0} is not kept")]
    NotKept(Box<Which>),
    /// It was sealed with a key that is not there.
    #[error("{which} is sealed with the key `{key}`, which is not in `{}`", path.display())]
    KeyLost {
        /// Which version.
        which: Box<Which>,
        /// The public half of that key.
        key: String,
        /// Where it should be.
        path: PathBuf,
    },
    /// What is kept is damaged, or of another secret.
    #[error("{0} is damaged")]
    Damaged(Box<Which>),
    /// age itself failed.
    #[error("the secret `{name}` could not be sealed")]
    Seal {
        /// Which secret.
        name: SecretName,
        /// The cause.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// A version of a secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Which {
    /// Of which environment.
    pub env: EnvRef,
    /// Which secret.
    pub name: SecretName,
    /// Which version.
    pub version: SecretVersion,
}

impl Which {
    fn of(secret: &Secret) -> Box<Self> {
        let Secret { env, name, version, .. } = secret;
        Box::new(Self { env: env.clone(), name: name.clone(), version: *version })
    }

    fn anew(&self) -> String {
        format!("`kiln secret set {} --env {}` and deploy again", self.name, self.env.env)
    }
}

impl std::fmt::Display for Which {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "version {} of the secret `{}` of `{}`", self.version, self.name, self.env)
    }
}

impl VaultError {
    /// What the user can do about it.
    pub fn hint(&self) -> String {
        match self {
            Self::Io { .. } => "check the space and the rights of that folder".into(),
            Self::Form { .. } => "put the file back from a backup of the state folder".into(),
            Self::Open { path, .. } => {
                format!(
                    "`chmod 600 {}`, and set the secrets anew if somebody may have read it",
                    path.display()
                )
            }
            Self::KeyLost { which, .. } => {
                format!("append that key from a backup to the file; or {}", which.anew())
            }
            Self::NotKept(which) | Self::Damaged(which) => which.anew(),
            Self::Seal { .. } => "look at the log of `kiln serve`".into(),
        }
    }

    /// Whether the same can work later without anybody deploying anew.
    pub fn may_pass(&self) -> bool {
        !matches!(self, Self::NotKept(_) | Self::Damaged(_))
    }
}

/// The server's key of secrets. The default one has none, and opens nothing.
#[derive(Debug, Default)]
pub struct Vault {
    path: PathBuf,
}

impl Vault {
    /// That of a state folder; makes a key at the first start.
    pub fn open(state: &Path) -> Result<Self, VaultError> {
        let vault = Self { path: state.join("keys").join("secrets.age") };
        if !vault.path.exists() {
            vault.generate().map_err(vault.io("make"))?;
        }
        vault.identities()?;
        Ok(vault)
    }

    fn io(&self, step: &'static str) -> impl Fn(io::Error) -> VaultError {
        let path = self.path.clone();
        move |source| VaultError::Io { step, path: path.clone(), source }
    }

    fn generate(&self) -> io::Result<()> {
        let folder = self.path.parent().unwrap_or(Path::new("."));
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        let part = self.path.with_extension("part");
        match std::fs::remove_file(&part) {
            // Half a file of an earlier try may have other rights.
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let identity = Identity::generate();
        let mut file = File::options().write(true).create_new(true).mode(0o600).open(&part)?;
        writeln!(file, "# public key: {}", identity.to_public())?;
        file.write_all(identity.to_string().expose_secret().as_bytes())?;
        file.write_all(b"\n")?;
        file.sync_all()?;
        std::fs::rename(&part, &self.path)?;
        File::open(folder)?.sync_all()
    }

    /// The keys, the one that seals first.
    fn identities(&self) -> Result<Vec<Identity>, VaultError> {
        let read = self.io("read");
        let file = File::open(&self.path).map_err(&read)?;
        let mode = file.metadata().map_err(&read)?.permissions().mode() & 0o777;
        if mode & 0o077 != 0 {
            return Err(VaultError::Open { path: self.path.clone(), mode });
        }
        let mut text = Zeroizing::new(String::new());
        file.take(FILE_BYTES_MAX).read_to_string(&mut text).map_err(&read)?;
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        let form = |_| VaultError::Form { path: self.path.clone() };
        let identities: Vec<Identity> =
            lines.map(|line| line.parse().map_err(form)).collect::<Result<_, _>>()?;
        if identities.is_empty() {
            return Err(form(""));
        }
        Ok(identities)
    }

    /// What is kept of a value.
    pub fn seal(
        &self,
        env: &EnvRef,
        name: &SecretName,
        value: &SecretValue,
    ) -> Result<SecretContent, VaultError> {
        let identities = self.identities()?;
        let recipient = identities[0].to_public();
        let whole = SecretValue::new([header(env, name).as_bytes(), value.expose()].concat());
        let sealed = age::encrypt(&recipient, whole.expose())
            .map_err(|error| VaultError::Seal { name: name.clone(), source: Box::new(error) })?;
        let bytes = u32::try_from(value.expose().len()).unwrap_or(u32::MAX);
        Ok(SecretContent::Sealed { sealed: STANDARD.encode(sealed), key: recipient.to_string(), bytes })
    }

    /// The value of a version.
    pub fn unseal(&self, secret: &Secret) -> Result<SecretValue, VaultError> {
        let Secret { env, name, content, .. } = secret;
        let SecretContent::Sealed { sealed, key, bytes } = content else {
            return Err(VaultError::NotKept(Which::of(secret)));
        };
        let identities = self.identities()?;
        let identity = identities.iter().find(|identity| identity.to_public().to_string() == *key);
        let identity = identity.ok_or_else(|| VaultError::KeyLost {
            which: Which::of(secret),
            key: key.clone(),
            path: self.path.clone(),
        })?;
        let open = || {
            let sealed = STANDARD.decode(sealed).ok()?;
            let mut reader =
                age::Decryptor::new_buffered(&*sealed).ok()?.decrypt([identity as _].into_iter()).ok()?;
            // All at once, so that no part stays behind where a buffer grew.
            let limit = u64::from(*bytes) + OVERHEAD_BYTES_MAX;
            let mut whole = Zeroizing::new(Vec::with_capacity(limit as usize + 1));
            reader.by_ref().take(limit).read_to_end(&mut whole).ok()?;
            whole.strip_prefix(header(env, name).as_bytes()).map(|value| SecretValue::new(value.to_vec()))
        };
        open().ok_or_else(|| VaultError::Damaged(Which::of(secret)))
    }

    /// The values of these versions. Reads nothing if there are none.
    pub fn values(
        &self,
        snapshot: &Snapshot,
        env: &EnvRef,
        versions: &BTreeMap<SecretName, SecretVersion>,
    ) -> Result<SecretValues, VaultError> {
        let value = |(name, version): (&SecretName, &SecretVersion)| {
            let key = (env.clone(), name.clone(), *version);
            let secret = snapshot.secrets.get(&key).ok_or_else(|| {
                let (env, name) = (env.clone(), name.clone());
                VaultError::NotKept(Box::new(Which { env, name, version: *version }))
            })?;
            Ok((name.clone(), self.unseal(secret)?))
        };
        versions.iter().map(value).collect()
    }

    /// How many versions could not be opened with the key that lies in a state folder, which may have none.
    pub fn lost(state: &Path, snapshot: &Snapshot) -> usize {
        let vault = Self { path: state.join("keys").join("secrets.age") };
        let sealed =
            |secret: &&std::sync::Arc<Secret>| matches!(secret.content, SecretContent::Sealed { .. });
        vault.unreadable(snapshot).unwrap_or_else(|_| snapshot.secrets.values().filter(sealed).count())
    }

    /// The versions that no key that is there opens.
    pub fn unreadable(&self, snapshot: &Snapshot) -> Result<usize, VaultError> {
        let keys: Vec<String> =
            self.identities()?.iter().map(|identity| identity.to_public().to_string()).collect();
        let is_lost = |secret: &Secret| match &secret.content {
            SecretContent::Sealed { key, .. } => !keys.contains(key),
            SecretContent::Unset | SecretContent::Removed => false,
        };
        Ok(snapshot.secrets.values().filter(|secret| is_lost(secret)).count())
    }
}

/// What stands before every value, sealed with it.
fn header(env: &EnvRef, name: &SecretName) -> String {
    format!("kiln secret\n{env}\n{name}\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use kiln_model::{EnvName, Mutation, ProjectName, Wall};

    fn env(name: &str) -> EnvRef {
        EnvRef { project: ProjectName::new("shop").unwrap(), env: EnvName::new(name).unwrap() }
    }

    fn sealed(vault: &Vault, env: EnvRef, value: &[u8]) -> Secret {
        let name = SecretName::new("API_KEY").unwrap();
        let content = vault.seal(&env, &name, &SecretValue::new(value.to_vec())).unwrap();
        Secret { env, name, version: SecretVersion(1), created: Wall(0), actor: "ann".into(), content }
    }

    #[test]
    fn what_was_sealed_opens_where_it_belongs_and_nowhere_else() {
        let state = tempfile::tempdir().unwrap();
        let vault = Vault::open(state.path()).unwrap();
        let mode = std::fs::metadata(&vault.path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o600);
        for value in [&b""[..], b"canary", &[0; 64 * 1024]] {
            let secret = sealed(&vault, env("production"), value);
            assert!(secret.bytes() == Some(value.len() as u32));
            assert_eq!(vault.unseal(&secret).unwrap().expose(), value);
            let text = serde_json::to_string(&secret).unwrap();
            assert!(!text.contains("canary") && !text.contains(&STANDARD.encode("canary")));
            let again = Vault::open(state.path()).unwrap();
            assert_eq!(again.unseal(&secret).unwrap().expose(), value, "a later server opens it");
            let moved = Secret { env: env("staging"), ..secret.clone() };
            assert!(matches!(vault.unseal(&moved), Err(VaultError::Damaged(_))));
            let twice = sealed(&vault, env("production"), value);
            assert_ne!(twice.content, secret.content, "equal values do not look equal");
        }
    }

    #[test]
    fn a_lost_key_is_told_and_may_come_back() {
        let state = tempfile::tempdir().unwrap();
        let vault = Vault::open(state.path()).unwrap();
        let secret = sealed(&vault, env("production"), b"x");
        let mut snapshot = Snapshot::default();
        snapshot.apply(&Mutation::PutSecret(Box::new(secret.clone())));
        let versions = [(secret.name.clone(), secret.version)].into();
        assert_eq!(vault.values(&snapshot, &secret.env, &versions).unwrap().len(), 1);
        assert_eq!(vault.unreadable(&snapshot).unwrap(), 0);
        let old = std::fs::read_to_string(&vault.path).unwrap();
        std::fs::remove_file(&vault.path).unwrap();
        let vault = Vault::open(state.path()).unwrap();
        let lost = vault.values(&snapshot, &secret.env, &versions).unwrap_err();
        assert!(matches!(lost, VaultError::KeyLost { .. }) && lost.may_pass(), "{lost}");
        assert!(lost.hint().contains("kiln secret set API_KEY --env production"), "{}", lost.hint());
        assert_eq!(vault.unreadable(&snapshot).unwrap(), 1);
        let both = std::fs::read_to_string(&vault.path).unwrap() + &old;
        std::fs::write(&vault.path, both).unwrap();
        assert_eq!(vault.unseal(&secret).unwrap().expose(), b"x");
        std::fs::set_permissions(&vault.path, PermissionsExt::from_mode(0o644)).unwrap();
        assert!(matches!(vault.unseal(&secret), Err(VaultError::Open { mode: 0o644, .. })));
        std::fs::write(&vault.path, "nonsense").unwrap();
        std::fs::set_permissions(&vault.path, PermissionsExt::from_mode(0o600)).unwrap();
        assert!(matches!(vault.unseal(&secret), Err(VaultError::Form { .. })));
        assert!(Vault::default().values(&snapshot, &secret.env, &BTreeMap::new()).unwrap().is_empty());
    }
}
