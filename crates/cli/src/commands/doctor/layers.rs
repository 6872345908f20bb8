//! What an instance's file system is made of, tried for real: layers by file or by loop device, their owners, /proc.

use super::kernel::Kernel;
use super::{Finding, Level};
use kiln_sys::host::{self, Direct, Layers};
use kiln_sys::{CallError, Context};
use rustix::fs::{Mode, OFlags};
use std::fs::File;
use std::path::Path;

/// From this one on, an image's file is mounted as it is, and the mount can be copied for each instance.
const KERNEL_FILE_BACKED: (u32, u32) = (6, 15);
const NAMES: [&str; 3] = ["layers", "owners", "proc"];
const NEWER: &str = "use Linux 6.15 or newer, which needs no loop device";

/// What the trials saw.
pub(super) struct Trials {
    layers: Result<Layers, CallError>,
    proc: Result<(), CallError>,
}

impl Trials {
    /// Needs root and a process with one thread. The image that is tried with has no name, in the file system of the state
    /// folder, where the layers will be.
    pub(super) fn make(state: &Path) -> Self {
        Self {
            layers: image(super::place::existing(state)).map(|file| host::try_layers(&file)),
            proc: host::try_proc("/sys"),
        }
    }
}

fn image(folder: &Path) -> Result<File, CallError> {
    use std::os::unix::fs::FileExt;
    let flags = OFlags::RDWR | OFlags::TMPFILE | OFlags::CLOEXEC;
    let file = rustix::fs::open(folder, flags, Mode::from_raw_mode(0o600));
    let file: File = file.context("make a file in", folder.display())?.into();
    file.write_all_at(&host::empty_erofs(), 0).context("write to a file in", folder.display())?;
    Ok(file)
}

/// Without root nothing was tried, and the version has to do.
pub(super) fn findings(trials: Option<Trials>, kernel: &Kernel) -> Vec<Finding> {
    let Some(Trials { layers, proc }) = trials else {
        let found = match kernel.is(KERNEL_FILE_BACKED) {
            true => "not tried: needs root",
            false => "not tried: needs root; this kernel mounts them by loop devices",
        };
        return vec![Finding::bad(NAMES[0], Level::Warning, found, "run it with `sudo`")];
    };
    let tried: Vec<Finding> = match layers {
        Ok(Layers { by_file, by_loop, owners }) => {
            [mounted(by_file, by_loop)].into_iter().chain(owned(owners)).collect()
        }
        Err(error) => {
            let fix = "name a folder on a disk with `--state`";
            vec![Finding::bad(NAMES[0], Level::Warning, format!("not tried: {}", error.line()), fix)]
        }
    };
    tried.into_iter().chain([processes(proc)]).collect()
}

fn mounted(by_file: Result<Direct, CallError>, by_loop: Result<(), CallError>) -> Finding {
    const NAME: &str = NAMES[0];
    match (by_file, by_loop) {
        (Ok(Direct { directio: true, copied: true }), _) => {
            Finding::ok(NAME, "mounted by their files, without a second cache")
        }
        (Ok(Direct { directio: false, copied: true }), _) => {
            let fix = "keep the state folder on ext4, xfs or btrfs, and use Linux 6.15 or newer";
            Finding::bad(NAME, Level::Warning, "mounted by their files; every page is in memory twice", fix)
        }
        (_, Ok(())) => {
            let found = "mounted by loop devices, which takes longer than by their files";
            Finding::bad(NAME, Level::Warning, found, NEWER)
        }
        (Ok(_), Err(error)) | (Err(_), Err(error)) => {
            let fix = format!(
                "`modprobe -a erofs loop`, and `echo loop > /etc/modules-load.d/kiln.conf` to keep it; or {NEWER}"
            );
            Finding::bad(NAME, Level::Missing, error.line(), &fix)
        }
    }
}

/// What could not be mounted has no owners: that is told already.
fn owned(owners: Option<Result<(), CallError>>) -> Option<Finding> {
    let fix = "use a kernel with user namespaces and idmapped mounts of EROFS: Linux 6.1 or newer";
    Some(match owners? {
        Ok(()) => Finding::ok(NAMES[1], "files can be given to an instance's users (idmapped mounts)"),
        Err(error) => Finding::bad(NAMES[1], Level::Missing, error.line(), fix),
    })
}

fn processes(proc: Result<(), CallError>) -> Finding {
    let fix = "run it outside of a container: the kernel mounts no /proc for instances where part of the host's is hidden";
    match proc {
        Ok(()) => Finding::ok(NAMES[2], "an instance can have its own /proc"),
        Err(error) => Finding::bad(NAMES[2], Level::Missing, error.line(), fix),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn no() -> CallError {
        CallError {
            call: "create file system",
            object: "erofs".into(),
            source: std::io::Error::from_raw_os_error(22),
        }
    }

    #[test]
    fn the_fastest_way_that_works_is_told() {
        let direct = |directio, copied| Ok(Direct { directio, copied });
        let cases = [
            (direct(true, true), Err(no()), Level::Ok, "by their files"),
            (direct(false, true), Ok(()), Level::Warning, "twice"),
            (direct(true, false), Ok(()), Level::Warning, "loop devices"),
            (Err(no()), Ok(()), Level::Warning, "loop devices"),
            (direct(true, false), Err(no()), Level::Missing, "create file system `erofs`: Invalid argument"),
            (Err(no()), Err(no()), Level::Missing, "create file system"),
        ];
        for (by_file, by_loop, level, words) in cases {
            let finding = mounted(by_file, by_loop);
            assert!(finding.level == level && finding.found.contains(words), "{finding:?}");
            assert_eq!(finding.fix.is_some(), level != Level::Ok, "{finding:?}");
        }
        assert_eq!(owned(None), None);
        assert_eq!(owned(Some(Err(no()))).map(|f| f.level), Some(Level::Missing));
        assert_eq!(owned(Some(Ok(()))).map(|f| f.level), Some(Level::Ok));
        assert_eq!([processes(Err(no())).level, processes(Ok(())).level], [Level::Missing, Level::Ok]);
    }
}
