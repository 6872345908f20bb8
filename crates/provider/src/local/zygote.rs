//! `kiln internal zygote`: clones the processes that become pid 1 of instances. A server has threads and much memory,
//! and can be cloned neither safely nor fast; this process has one thread, little memory, an almost empty mount
//! namespace, and everything at hand that a shim needs.
//!
//! ```text
//! server ── posix_spawn ─▶ zygote: templates, filters, buffers; then it leaves the heap alone
//!        ── [number; socket, net, cgroups] ─▶ clone3 ─▶ shim (shim.rs): waits on its socket for what to run
//!        ◀── [pid; pidfd, user namespace] ──
//! ```
//! It ends with the server, whose socket it reads. The shims that it cloned do not end with it.

use super::order::Failure;
use super::rootfs::Templates;
use super::shim::{self, Kit};
use super::subnet::{IDS_EACH, ids_of};
use kiln_sys::process::{self, Child, Namespaces};
use kiln_sys::{CallError, Context, message, namespace, seal};
use std::fs::File;
use std::io::{self, PipeReader, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

/// What is to be cloned. With it come the shim's end of its socket, its network namespace, its v2 cgroup if there is one,
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

fn refuse(socket: impl AsFd, failure: &Failure) -> io::Result<()> {
    message::send(socket, &[&serde_json::to_vec(failure).unwrap_or_default()], &[])
}

struct Zygote {
    socket: OwnedFd,
    host_net: OwnedFd,
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
        let host_net = namespace::current_net()?;
        let templates = Templates::enter(&folder.to_string_lossy())?;
        process::forget_children();
        Ok(Self { socket, host_net, templates, kit: Kit::default() })
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
            let answered = match self.clone_shim(&buffer[..length], descriptors) {
                Ok((child, users)) => {
                    let with = [child.pidfd(), users.as_fd()];
                    message::send(&self.socket, &[&child.pid().to_ne_bytes()], &with)
                }
                Err(failure) => refuse(&self.socket, &failure),
            };
            if answered.is_err() {
                return ExitCode::from(2);
            }
        }
    }

    fn clone_shim(
        &mut self,
        bytes: &[u8],
        mut descriptors: message::Descriptors,
    ) -> Result<(Child, OwnedFd), Failure> {
        let missing = || Failure::permanent("clone a shim", "the request is not complete");
        let request = Request::decode(bytes).ok_or_else(missing)?;
        let socket = descriptors.next().ok_or_else(missing)?;
        let net = descriptors.next().ok_or_else(missing)?;
        let birthplace =
            if request.has_birthplace { Some(descriptors.next().ok_or_else(missing)?) } else { None };
        let (go_read, mut go_write) = io::pipe().context("pipe", "a shim's start")?;
        let ids = ids_of(request.number);
        let namespaces =
            Namespaces::USER | Namespaces::PID | Namespaces::MOUNT | Namespaces::UTS | Namespaces::IPC;
        let mut clone = process::Clone::new(namespaces).owned_by(ids);
        if let Some(birthplace) = &birthplace {
            clone = clone.into_cgroup(birthplace.as_fd());
        }
        // Owned by the host's user namespace: no process of the instance can ever change its network.
        namespace::enter(&net, Namespaces::NET)?;
        let (kit, templates, go) = (&mut self.kit, &self.templates, Go(go_read));
        let child = clone.spawn(|| shim::main(kit, templates, socket, go, descriptors));
        namespace::enter(&self.host_net, Namespaces::NET)?;
        let child = child?;
        let ready = namespace::map_ids(child.pid(), ids, IDS_EACH)
            .and_then(|()| namespace::user_of(child.pid()))
            .and_then(|users| {
                go_write.write_all(b"g").context("write", "a shim's start")?;
                Ok(users)
            });
        match ready {
            Ok(users) => Ok((child, users)),
            Err(error) => {
                let was_killed = process::wait_readable(child.pidfd(), Some(Duration::ZERO)).unwrap_or(false);
                let _ = process::signal(child.pidfd(), libc::SIGKILL);
                match was_killed {
                    true => Err(Failure::retry("clone a shim", "it was killed")),
                    false => Err(error.into()),
                }
            }
        }
    }
}

/// What a shim waits for: until its ids are mapped it is nobody.
pub(super) struct Go(PipeReader);

impl Go {
    /// The descriptor, for keeping it open.
    pub(super) fn file(&self) -> &PipeReader {
        &self.0
    }

    /// False: the zygote is dead, and nobody would ever find this process again.
    pub(super) fn wait(mut self) -> bool {
        use std::io::Read;
        self.0.read_exact(&mut [0]).is_ok()
    }
}
