//! The Unix socket: one server per path, for root and the group that owns it.

use kiln_api::Address;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use tokio::net::UnixListener;

/// The socket could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// A server answers there.
    #[error("another server answers at `{0}`")]
    InUse(Address),
    /// Something that is no socket lies there.
    #[error("`{}` exists and is no socket", .0.display())]
    NoSocket(PathBuf),
    /// The socket or its folder could not be made.
    #[error("cannot listen on `{address}`")]
    Io {
        /// Where.
        address: Address,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
}

/// Opens the socket, in place of one that nobody listens on any more. Mode 0660.
pub fn bind(address: &Address) -> Result<UnixListener, ListenError> {
    use std::os::unix::fs::FileTypeExt;
    let path = address.path();
    let io = |source| ListenError::Io { address: address.clone(), source };
    if let Ok(meta) = std::fs::symlink_metadata(path) {
        if !meta.file_type().is_socket() {
            return Err(ListenError::NoSocket(path.to_owned()));
        }
        if std::os::unix::net::UnixStream::connect(path).is_ok() {
            return Err(ListenError::InUse(address.clone()));
        }
        std::fs::remove_file(path).map_err(io)?;
    }
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(io)?;
    }
    let listener = UnixListener::bind(path).map_err(io)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660)).map_err(io)?;
    Ok(listener)
}
