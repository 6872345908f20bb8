//! Giving up rights: user and groups, capabilities, `no_new_privs`, resource limits. None of it can be taken back.

use crate::error::check;
use crate::{CallError, Context};
use rustix::process::{DumpableBehavior, Resource, Rlimit, getrlimit, set_dumpable_behavior, setrlimit};

/// `CAP_KILL`, the one capability that an instance's pid 1 keeps: without it, it could not signal the program, which
/// runs as another user.
pub const CAP_KILL: u32 = 5;
/// `CAP_NET_BIND_SERVICE`: to listen on ports below 1024.
pub const CAP_NET_BIND_SERVICE: u32 = 10;
const CAP_SETPCAP: u32 = 8;
/// `CAP_SYS_ADMIN`: to mount and to set the host name, in the namespaces of its own user namespace.
pub const CAP_SYS_ADMIN: u32 = 21;

/// The version of the capability calls (`_LINUX_CAPABILITY_VERSION_3`).
const VERSION_3: u32 = 0x2008_0522;

/// Becomes `uid`:`gid` in real, effective and saved form, without supplementary groups.
pub fn become_user(uid: u32, gid: u32) -> Result<(), CallError> {
    // SAFETY: the three calls take plain numbers; an empty group list is never read.
    unsafe {
        check(libc::syscall(libc::SYS_setgroups, 0, std::ptr::null::<libc::gid_t>()))
            .context("setgroups", "none")?;
        check(libc::syscall(libc::SYS_setresgid, gid, gid, gid)).context("setresgid", gid)?;
        check(libc::syscall(libc::SYS_setresuid, uid, uid, uid)).context("setresuid", uid)?;
    }
    Ok(())
}

/// As [`become_user`], and keeps the permitted capabilities all the same. [`keep_capabilities`] has to follow.
pub fn become_user_with_capabilities(uid: u32, gid: u32) -> Result<(), CallError> {
    rustix::thread::set_keep_capabilities(true).context("set", "keep_capabilities")?;
    become_user(uid, gid)?;
    rustix::thread::set_keep_capabilities(false).context("clear", "keep_capabilities")
}

/// Runs `work` with `uid` as the effective user and with all capabilities all the same: what `work` makes belongs to `uid`.
/// The caller is the host's root and has one thread.
pub(crate) fn as_owner<T>(uid: u32, work: impl FnOnce() -> T) -> Result<T, CallError> {
    let become_effective = |uid: u32| {
        // SAFETY: takes plain numbers; -1 leaves the real and the saved user as they are.
        check(unsafe { libc::syscall(libc::SYS_setresuid, -1, uid, -1) }).context("setresuid", uid)
    };
    become_effective(uid)?;
    // The effective set went with the effective user; the permitted one stayed with the other two.
    let done = raise_capabilities().map(|()| work());
    become_effective(0)?;
    done
}

/// Makes every permitted capability effective.
fn raise_capabilities() -> Result<(), CallError> {
    let header = [VERSION_3, 0];
    let mut data = [0u32; 6];
    // SAFETY: version 3 has two words of header and six of data, and both arrays have that length.
    check(unsafe { libc::syscall(libc::SYS_capget, header.as_ptr(), data.as_mut_ptr()) })
        .context("capget", "self")?;
    (data[0], data[3]) = (data[1], data[4]);
    // SAFETY: as above.
    check(unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), data.as_ptr()) })
        .context("capset", "all that is permitted")?;
    Ok(())
}
/// `CAP_CHOWN`, `CAP_DAC_OVERRIDE` and `CAP_FOWNER` as a mask: what root of a user namespace needs to unpack archives
/// and to change files there, whoever owns them.
pub const FILE_CAPABILITIES: u64 = 0b1011;

/// Empties the bounding and ambient sets, which is possible only with full capabilities. Before [`become_user`].
pub fn drop_bounding_set() -> Result<(), CallError> {
    limit_bounding_set(0)
}

/// Takes the capabilities of `mask` out of the bounding set.
pub fn drop_from_bounding_set(mask: u64) -> Result<(), CallError> {
    for capability in (0..64).filter(|capability| mask & (1 << capability) != 0) {
        // SAFETY: prctl with plain numbers.
        let answer = unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) };
        check(answer.into()).context("drop from the bounding set", capability)?;
    }
    Ok(())
}

/// Takes everything out of the bounding set whose bit is not set in `keep`, and empties the ambient set.
pub fn limit_bounding_set(keep: u64) -> Result<(), CallError> {
    for capability in (0..64).filter(|capability| keep & (1 << capability) == 0) {
        // SAFETY: prctl with plain numbers.
        let answer = unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) };
        if let Err(error) = check(answer.into()) {
            // The first number that the kernel does not know ends the list.
            if error.raw_os_error() == Some(libc::EINVAL) && capability > 0 {
                break;
            }
            return Err(error).context("drop from the bounding set", capability);
        }
    }
    // SAFETY: prctl with plain numbers.
    let answer = unsafe { libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) };
    check(answer.into()).context("clear", "ambient capabilities")?;
    Ok(())
}

/// Becomes `uid`:`gid` with the capabilities of `mask` and no others, so that a program that is executed afterwards has
/// them as well, whoever `uid` is and although it can gain no privileges.
pub fn become_user_with(uid: u32, gid: u32, mask: u64) -> Result<(), CallError> {
    let prctl = |option: libc::c_int, argument: libc::c_ulong, number: libc::c_ulong| {
        // SAFETY: prctl with plain numbers.
        check(unsafe { libc::prctl(option, argument, number, 0, 0) }.into())
            .context("prctl", format_args!("{option} {argument} {number}"))
    };
    if mask != 0 {
        prctl(libc::PR_SET_KEEPCAPS, 1, 0)?;
    }
    become_user(uid, gid)?;
    set_capabilities(mask, mask)?;
    for capability in (0..64).filter(|bit| mask & (1 << bit) != 0) {
        prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_RAISE as libc::c_ulong, capability)?;
    }
    Ok(())
}

/// Gives up every capability that the process has but those of `keep`, and every way to gain others, for itself and for the
/// programs that it executes. For the calling thread: before others exist. Needs no right.
pub fn shed_capabilities(keep: u64) -> Result<(), CallError> {
    let held = permitted_capabilities()?;
    // Without this one the set cannot be made smaller, and no_new_privs keeps programs from what is in it.
    if held & (1 << CAP_SETPCAP) != 0 {
        limit_bounding_set(keep)?;
    }
    no_new_privileges()?;
    keep_capabilities(held & keep)
}

fn permitted_capabilities() -> Result<u64, CallError> {
    let header = [VERSION_3, 0];
    let mut data = [0_u32; 6];
    // SAFETY: version 3 reads two words of header and writes six of data, and both arrays have that length.
    check(unsafe { libc::syscall(libc::SYS_capget, header.as_ptr(), data.as_mut_ptr()) })
        .context("capget", "own capabilities")?;
    Ok(u64::from(data[1]) | u64::from(data[4]) << 32)
}

/// Keeps only the capabilities whose bits are set in `mask`, in the permitted and effective sets.
pub fn keep_capabilities(mask: u64) -> Result<(), CallError> {
    set_capabilities(mask, 0)
}

fn set_capabilities(mask: u64, inheritable: u64) -> Result<(), CallError> {
    let header = [VERSION_3, 0];
    let half = |mask: u64, n: u32| (mask >> (32 * n)) as u32;
    let word = |n: u32| [half(mask, n), half(mask, n), half(inheritable, n)];
    let ([a, b, c], [d, e, f]) = (word(0), word(1));
    let data = [a, b, c, d, e, f];
    // SAFETY: version 3 reads two words of header and six of data, and both arrays have that length.
    check(unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), data.as_ptr()) })
        .context("capset", format_args!("{mask:#x}"))?;
    Ok(())
}

/// No later exec gains rights, whatever the file's mode says. Needed for a filter without `CAP_SYS_ADMIN`.
pub fn no_new_privileges() -> Result<(), CallError> {
    rustix::thread::set_no_new_privs(true).context("set", "no_new_privs")
}

/// The process cannot be traced, and its `/proc` entries belong to the host's root.
pub fn not_dumpable() -> Result<(), CallError> {
    set_dumpable_behavior(DumpableBehavior::NotDumpable).context("set", "dumpable")
}

/// Sane limits of a server: no core files, and as many open files as the hard limit allows up to `files_max`.
pub fn limit_resources(files_max: u64) -> Result<(), CallError> {
    let files = getrlimit(Resource::Nofile).maximum.unwrap_or(files_max).min(files_max);
    for (resource, value) in [(Resource::Core, 0), (Resource::Nofile, files)] {
        let limit = Rlimit { current: Some(value), maximum: Some(value) };
        setrlimit(resource, limit).context("setrlimit", format_args!("{resource:?}"))?;
    }
    Ok(())
}

/// Makes the kernel prefer this process when memory is short: 0 to 1000. Raising needs no right, but the file belongs to
/// the host's root unless the process may be dumped, so it may be for a moment. What could use that moment has fewer
/// capabilities than the caller, which has not given up its own yet, and the kernel refuses it for that.
pub fn prefer_for_oom(score: u16) -> Result<(), CallError> {
    const PATH: &str = "/proc/self/oom_score_adj";
    set_dumpable_behavior(DumpableBehavior::Dumpable).context("set", "dumpable")?;
    let mut room = [0; 8];
    let written =
        std::fs::write(PATH, crate::text::format(&mut room, format_args!("{score}"))).context("write", PATH);
    not_dumpable()?;
    written
}
