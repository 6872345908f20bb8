//! The secrets of an instance, on their way from the server into it. A sandbox gets a tmpfs that the server filled, read-only,
//! as a mount that is attached nowhere until the instance's pid 1 attaches it: no other process reads a value. The
//! supervisor of a virtual machine gets a sealed file in memory, which its watcher reads once.

use super::order::Failure;
use super::subnet::ids_of;
use kiln_model::{InstanceSpec, SecretValues};
use kiln_sys::mount::{self, Attributes};
use kiln_sys::wire::ToGuest;
use rustix::fs::{Gid, MemfdFlags, Mode, OFlags, SealFlags, Uid};
use std::fs::File;
use std::io::{self, Seek, Write};
use std::os::fd::OwnedFd;

/// What a file takes at least.
const PAGE: u64 = 4096;
const STEP: &str = "give the instance its secrets";

/// Refuses values that are not those of the specification.
pub(super) fn check(spec: &InstanceSpec, secrets: &SecretValues) -> Result<(), Failure> {
    match spec.secrets.keys().find(|name| !secrets.contains_key(*name)) {
        None => Ok(()),
        Some(name) => Err(Failure::retry(STEP, format!("the value of `{name}` did not come"))),
    }
}

/// The tmpfs that is attached at `kiln_model::secret::SECRETS_DIR`: a file for each, which `user` alone can read. None:
/// there are no secrets.
pub(super) fn mount_of(
    number: u32,
    (uid, gid): (u32, u32),
    secrets: &SecretValues,
) -> Result<Option<OwnedFd>, Failure> {
    if secrets.is_empty() {
        return Ok(None);
    }
    let owner = (ids_of(number) + uid, ids_of(number) + gid);
    let bytes = |value: &kiln_model::SecretValue| (value.expose().len() as u64).next_multiple_of(PAGE) + PAGE;
    let size: u64 = secrets.values().map(bytes).sum();
    let mounted =
        mount::unswapped_tmpfs("500", size, owner, Attributes { no_exec: true, ..Attributes::default() })?;
    for (name, value) in secrets {
        let write = || -> io::Result<()> {
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
            let file = rustix::fs::openat(&mounted, name.as_str(), flags, Mode::from_raw_mode(0o400))?;
            rustix::fs::fchown(&file, Some(Uid::from_raw(owner.0)), Some(Gid::from_raw(owner.1)))?;
            File::from(file).write_all(value.expose())
        };
        write().map_err(|error| Failure::io(STEP, &error))?;
    }
    mount::make_read_only(&mounted)?;
    Ok(Some(mounted))
}

/// The frames that tell a guest its secrets, in a sealed file in memory. None: there are none.
pub(super) fn file_of(secrets: &SecretValues) -> Result<Option<File>, Failure> {
    if secrets.is_empty() {
        return Ok(None);
    }
    let write = || -> io::Result<File> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let mut file = File::from(rustix::fs::memfd_create("kiln-secrets", flags)?);
        for (name, value) in secrets {
            let word = ToGuest::Secret { name: name.to_string(), value: value.expose().to_vec() };
            let frame = kiln_model::SecretValue::new(word.encode().ok_or(io::ErrorKind::FileTooLarge)?);
            file.write_all(frame.expose())?;
        }
        file.rewind()?;
        rustix::fs::fcntl_add_seals(
            &file,
            SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL,
        )?;
        Ok(file)
    };
    write().map(Some).map_err(|error| Failure::io(STEP, &error))
}
