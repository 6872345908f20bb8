//! A network card of a virtual machine, as its host sees it: what is written to the descriptor comes out of the interface.

use crate::error::check;
use crate::{CallError, Context};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

const CONTROL: &str = "/dev/net/tun";
const TUNSETIFF: u64 = 0x4004_54ca;
const IFF_TAP: u16 = 0x0002;
const IFF_NO_PI: u16 = 0x1000;
const IFF_VNET_HDR: u16 = 0x4000;
/// Bytes of a name with its NUL, and of `struct ifreq`.
const NAME_BYTES: usize = 16;
const IFREQ_BYTES: usize = 40;

/// Makes the interface `name` in the calling thread's network namespace. It vanishes with the last copy of the descriptor,
/// whoever dies. Whoever has the descriptor can use it, in whatever namespace it is.
pub fn make(name: &str) -> Result<OwnedFd, CallError> {
    let file = File::options().read(true).write(true).open(CONTROL).context("open", CONTROL)?;
    if name.is_empty() || name.len() >= NAME_BYTES || name.contains('%') {
        return Err(io::Error::from_raw_os_error(libc::EINVAL)).context("create tap", name);
    }
    let mut request = [0u8; IFREQ_BYTES];
    request[..name.len()].copy_from_slice(name.as_bytes());
    let flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR;
    request[NAME_BYTES..NAME_BYTES + 2].copy_from_slice(&flags.to_ne_bytes());
    // SAFETY: the kernel reads and writes a `struct ifreq`, which has 40 bytes.
    check(unsafe { libc::ioctl(file.as_raw_fd(), TUNSETIFF, request.as_mut_ptr()) }.into())
        .context("create tap", name)?;
    Ok(file.into())
}
