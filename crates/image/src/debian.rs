//! Debian bases: from package names to configured, reproducible layers, without apt, dpkg-deb or debootstrap.
//!
//! ```text
//! recipe ─ resolve ─▶ kiln.lock ─ fetch by sha256 ─▶ .debs ─ unpack, dpkg --configure in a sandbox ─▶ EROFS layers
//!           index, version             mirror                   deb, rootfs, normalise
//! ```

pub mod changes;
pub mod deb;
pub mod fetch;
pub mod fill;
pub mod index;
pub mod lock;
pub mod mirror;
pub mod openpgp;
pub mod release;
pub mod resolve;
pub mod rootfs;
pub mod slim;
pub mod version;

pub use changes::changes;
pub use lock::{LockError, resolve_lock};
pub use mirror::{Mirror, MirrorError, fetch_into};
pub use openpgp::{Keyring, KeyringError, SignatureError};
pub use rootfs::{Installer, RootfsError};
