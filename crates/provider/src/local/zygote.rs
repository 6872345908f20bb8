//! `kiln internal zygote`: clones the processes that become pid 1 of instances. A server has threads and much memory,
//! and can be cloned neither safely nor fast; this process has one thread, little memory, an almost empty mount
//! namespace, and everything at hand that a shim needs.
//!
//! ```text
//! server ── posix_spawn ─▶ zygote: templates, filters, buffers; then it leaves the heap alone
//!        ── [number; socket, net, cgroups] ─▶ clone3 ─▶ seed (seed.rs): joins its cgroups and its network, waits
//!        ◀── [pidfd] ──
//! ```
//! It ends with the server, whose socket it reads. The seeds that it cloned do as well; the shims do not.

use super::order::Failure;
use super::rootfs::Templates;
use super::seed;
use super::shim::Kit;
use kiln_sys::process::{self, Child, Namespaces};
use kiln_sys::{CallError, Context, message, seal};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::ExitCode;

/// What is to be cloned. With it come the seed's end of its socket, its network namespace, its v2 cgroup if there is one,
/// and the files for joining its v1 cgroups.
#[derive(Debug, Clone, Copy)]
pub(super) struct Request {
    /// The number that its ids come from.
    pub number: u32,
    pub has_birthplace: bool,
}

impl Request {
    pub(super) const BYTES: usize = 5;

    pub(super) fn encode(self) -> [u8; Self::BYTES] {
        let [a, b, c, d] = self.number.to_ne_bytes();
        [a, b, c, d, u8::from(self.has_birthplace)]
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let [a, b, c, d, has_birthplace] = *<&[u8; Self::BYTES]>::try_from(bytes).ok()?;
        Some(Self { number: u32::from_ne_bytes([a, b, c, d]), has_birthplace: has_birthplace != 0 })
    }
}

/// The entry point; `args` are what follows `internal zygote`: the folder of all instances, by which people can tell whose
/// it is.
pub fn main(args: impl IntoIterator<Item = std::ffi::OsString>) -> ExitCode {
    let Some(folder) = args.into_iter().next() else { return ExitCode::from(64) };
    match Zygote::prepare(Path::new(&folder)) {
        Ok(zygote) => zygote.run(),
        Err(error) => {
            // The server reads it in place of the first answer.
            let _ = refuse(io::stdin(), &error.into());
            ExitCode::from(2)
        }
    }
}

pub(super) fn refuse(socket: impl AsFd, failure: &Failure) -> io::Result<()> {
    message::send(socket, &[&serde_json::to_vec(failure).unwrap_or_default()], &[])
}

struct Zygote {
    socket: OwnedFd,
    templates: Templates,
    kit: Kit,
}

impl Zygote {
    fn prepare(folder: &Path) -> Result<Self, CallError> {
        process::reset_signals();
        rustix::process::umask(rustix::fs::Mode::empty());
        process::new_session()?;
        let socket = rustix::io::fcntl_dupfd_cloexec(io::stdin(), 3).context("dup", "the server's socket")?;
        process::set_standard(File::open("/dev/null").context("open", "/dev/null")?, 0)?;
        let templates = Templates::enter(&folder.to_string_lossy())?;
        process::forget_children();
        Ok(Self { socket, templates, kit: Kit::default() })
    }

    fn run(mut self) -> ExitCode {
        let mut buffer = [0; Request::BYTES];
        loop {
            seal::seal();
            let Ok((length, descriptors)) = message::receive(&self.socket, &mut buffer) else {
                return ExitCode::from(2);
            };
            if length == 0 {
                return ExitCode::SUCCESS;
            }
            let answered = match self.clone_seed(&buffer[..length], descriptors) {
                Ok(child) => message::send(&self.socket, &[b"c"], &[child.pidfd()]),
                Err(failure) => refuse(&self.socket, &failure),
            };
            if answered.is_err() {
                return ExitCode::from(2);
            }
        }
    }

    fn clone_seed(&mut self, bytes: &[u8], mut descriptors: message::Descriptors) -> Result<Child, Failure> {
        let missing = || Failure::permanent("clone a seed", "the request is not complete");
        let request = Request::decode(bytes).ok_or_else(missing)?;
        let socket = descriptors.next().ok_or_else(missing)?;
        let net = descriptors.next().ok_or_else(missing)?;
        let birthplace =
            if request.has_birthplace { Some(descriptors.next().ok_or_else(missing)?) } else { None };
        let mut clone = process::Clone::new(Namespaces::default());
        if let Some(birthplace) = &birthplace {
            clone = clone.into_cgroup(birthplace.as_fd());
        }
        let (kit, templates) = (&mut self.kit, &self.templates);
        let place = seed::Place { number: request.number, net, doors: descriptors };
        Ok(clone.spawn(|| seed::main(kit, templates, socket, place))?)
    }
}
