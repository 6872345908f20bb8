//! The last steps of a process before it becomes a program of an instance. The service's own program and those of
//! `command` checks take exactly the same ones.

use super::subnet::SUPERVISOR;
use kiln_model::InstanceSpec;
use kiln_sys::process;
use kiln_sys::seccomp::Instruction;
use kiln_sys::{CallError, privilege};
use std::collections::BTreeMap;
use std::ffi::CString;

/// Where programs are looked for if the environment does not say.
const PATH_DEFAULT: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Open files of one process, if the host allows that many.
const FILES_MAX: u64 = 65_536;
/// When memory is short on the host, instances go before what the host itself needs.
const OOM_SCORE: u16 = 200;

/// What to become.
pub(crate) struct Program {
    argv: Vec<CString>,
    environment: Vec<CString>,
    search: String,
    user: (u32, u32),
    filter: Vec<Instruction>,
}

impl Program {
    /// Fails with a text if the command is empty or holds a NUL.
    pub(crate) fn new(
        argv: &[String],
        environment: &BTreeMap<String, String>,
        user: (u32, u32),
    ) -> Result<Self, String> {
        let text = |s: String| {
            CString::new(s).map_err(|_| "a NUL byte in the command or its environment".to_owned())
        };
        let mut environment = environment.clone();
        let search = environment.entry("PATH".into()).or_insert_with(|| PATH_DEFAULT.into()).clone();
        if argv.first().is_none_or(String::is_empty) {
            return Err("the command is empty".into());
        }
        Ok(Self {
            argv: argv.iter().cloned().map(text).collect::<Result<_, _>>()?,
            environment: environment
                .into_iter()
                .map(|(k, v)| text(format!("{k}={v}")))
                .collect::<Result<_, _>>()?,
            search,
            user,
            filter: kiln_sys::seccomp::filter(),
        })
    }

    /// Gives up every right and becomes the program. Standard descriptors are in place. Returns only on failure, with
    /// a text for the user.
    pub(crate) fn run(&self) -> String {
        match self.prepare() {
            Err(error) => error.line(),
            Ok(()) => {
                let error = process::exec(&self.argv, &self.environment, &self.search);
                let name = self.argv.first().map(|a| a.to_string_lossy()).unwrap_or_default();
                match error.source.kind() {
                    std::io::ErrorKind::NotFound if !name.contains('/') => {
                        format!("command `{name}` is not in the image (looked in {})", self.search)
                    }
                    std::io::ErrorKind::NotFound => format!(
                        "command `{name}` is not in the image, or the interpreter or loader it names is not"
                    ),
                    std::io::ErrorKind::PermissionDenied => {
                        format!("command `{name}` may not be executed by user {}", self.user.0)
                    }
                    _ => format!("command `{name}`: {}", error.source),
                }
            }
        }
    }

    fn prepare(&self) -> Result<(), CallError> {
        process::reset_signals();
        rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
        // Not possible if the host's own score is higher already, and not needed then.
        let _ = privilege::prefer_for_oom(OOM_SCORE);
        privilege::limit_resources(FILES_MAX)?;
        privilege::drop_bounding_set()?;
        privilege::become_user(self.user.0, self.user.1)?;
        privilege::keep_capabilities(0)?;
        privilege::no_new_privileges()?;
        process::close_on_exec()?;
        kiln_sys::seccomp::install(&self.filter)
    }
}

/// The numeric user of an instance.
pub(crate) fn user_of(spec: &InstanceSpec) -> Result<(u32, u32), String> {
    let users = &spec.manifest.config.users;
    let (user, group) = match users.get(&spec.user) {
        Some(ids) => *ids,
        None => {
            let number: u32 = spec.user.parse().map_err(|_| {
                format!(
                    "the image has no user `{}`; hint: add it with a package, or give a number",
                    spec.user
                )
            })?;
            let known = users.values().find(|(uid, _)| *uid == number);
            known.copied().unwrap_or((number, number))
        }
    };
    // The last one is pid 1's.
    if user.max(group) >= SUPERVISOR {
        let number = user.max(group);
        return Err(format!("user or group {number} is out of range; hint: instances have 0 to 65534"));
    }
    Ok((user, group))
}
