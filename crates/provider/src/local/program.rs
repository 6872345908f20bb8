//! The last steps of a process before it becomes a program of an instance. The service's own program and those of
//! `command` checks take exactly the same ones.

use super::subnet::SUPERVISOR;
use kiln_model::{Capability, InstanceSpec};
use kiln_sys::{CallError, privilege, process};
use std::ffi::CStr;
use std::io;

/// Where programs are looked for if the environment does not say.
pub(crate) const PATH_DEFAULT: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Open files of one process, if the host allows that many.
const FILES_MAX: u64 = 65_536;
/// When memory is short on the host, instances go before what the host itself needs.
const OOM_SCORE: u16 = 200;

/// What the declared capabilities are to the kernel.
pub(crate) fn mask_of(capabilities: impl IntoIterator<Item = Capability>) -> u64 {
    capabilities.into_iter().fold(0, |mask, capability| mask | 1 << capability.number())
}

/// What any service could declare.
pub(crate) fn declarable() -> u64 {
    mask_of(Capability::ALL)
}

/// Gives up every right but the declared ones; what is left to do is the system call filter and to execute. The
/// bounding set has nothing but what is declarable.
pub(crate) fn confine(user: (u32, u32), capabilities: u64) -> Result<(), CallError> {
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    // Not possible if the host's own score is higher already, and not needed then.
    let _ = privilege::prefer_for_oom(OOM_SCORE);
    privilege::limit_resources(FILES_MAX)?;
    privilege::drop_from_bounding_set(declarable() & !capabilities)?;
    privilege::become_user_with(user.0, user.1, capabilities)?;
    privilege::no_new_privileges()?;
    process::close_on_exec()
}

/// Why a command could not be executed, for the user.
pub(crate) fn explain(error: &io::Error, name: Option<&CStr>, search: &str, user: u32) -> String {
    const NAME_MAX: usize = 512;
    let name = name.map(CStr::to_string_lossy).unwrap_or_default();
    let name = &name[..name.floor_char_boundary(NAME_MAX)];
    match error.kind() {
        io::ErrorKind::NotFound if !name.contains('/') => {
            format!("command `{name}` is not in the image (looked in {search})")
        }
        io::ErrorKind::NotFound => {
            format!("command `{name}` is not in the image, or the interpreter or loader it names is not")
        }
        io::ErrorKind::PermissionDenied => format!("command `{name}` may not be executed by user {user}"),
        _ => format!("command `{name}`: {error}"),
    }
}

/// The variables of an instance's programs, `NAME=VALUE` each, and where these look for others.
pub(crate) fn environment_of(spec: &InstanceSpec) -> (Vec<String>, String) {
    let mut variables = spec.environment.clone();
    let search = variables.entry("PATH".into()).or_insert_with(|| PATH_DEFAULT.into()).clone();
    (variables.iter().map(|(name, value)| format!("{name}={value}")).collect(), search)
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
