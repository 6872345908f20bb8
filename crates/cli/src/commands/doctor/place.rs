//! Where and when it runs: the room of the state folder, the clock, the service manager, git.

use super::{Finding, Level, read};
use kiln_sys::CallError;
use kiln_sys::host::{self, Space};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};

/// Below this a bake of a Debian image does not end.
const BYTES_MIN: u64 = 512 << 20;
/// Some releases with their packages.
const BYTES_GOOD: u64 = 5 << 30;
const FILES_GOOD: u64 = 20_000;
/// The beginning of 2025: a clock that is behind it was never set.
const WALL_MIN_SECONDS: u64 = 1_735_689_600;

pub(super) fn examine(state: &Path) -> [Finding; 4] {
    let folder = existing(state);
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    [
        room(&folder.display().to_string(), host::space(folder)),
        clock(seconds, host::clock_is_synchronised().ok()),
        manager(Path::new("/run/systemd/system").exists(), &read("/proc/self/cgroup")),
        git(),
    ]
}

/// The folder, or the nearest one above it that exists already.
pub(super) fn existing(folder: &Path) -> &Path {
    folder.ancestors().find(|folder| folder.is_dir()).unwrap_or(Path::new("/"))
}

fn room(folder: &str, space: Result<Space, CallError>) -> Finding {
    const NAME: &str = "state folder";
    let fix = "free some space (`kiln image gc` removes what no release needs), or name a folder on another disk with `--state`";
    let space = match space {
        Ok(space) => space,
        Err(error) => return Finding::bad(NAME, Level::Missing, error.line(), fix),
    };
    if space.is_read_only {
        let fix = "name a folder that can be written with `--state`";
        return Finding::bad(NAME, Level::Missing, format!("`{folder}` is read-only"), fix);
    }
    let found = format!("{} MiB free in `{folder}`", space.free_bytes >> 20);
    if space.free_bytes < BYTES_MIN {
        return Finding::bad(NAME, Level::Missing, found, fix);
    }
    if let Some(files) = space.free_files.filter(|files| *files < FILES_GOOD) {
        return Finding::bad(NAME, Level::Warning, format!("{found}, for {files} files"), fix);
    }
    if space.free_bytes < BYTES_GOOD {
        return Finding::bad(NAME, Level::Warning, found, fix);
    }
    Finding::ok(NAME, found)
}

/// `synchronised` is none if the kernel could not be asked.
fn clock(seconds: u64, synchronised: Option<bool>) -> Finding {
    const NAME: &str = "clock";
    let fix = "`apt-get install systemd-timesyncd`, or another NTP client, and `timedatectl set-ntp true`";
    if seconds < WALL_MIN_SECONDS {
        let found = "it was never set: signatures of packages look as if they came from the future";
        return Finding::bad(NAME, Level::Missing, found, fix);
    }
    match synchronised {
        Some(true) => Finding::ok(NAME, "synchronised"),
        Some(false) => Finding::bad(NAME, Level::Warning, "set, and nothing keeps it right", fix),
        None => Finding::ok(NAME, "set"),
    }
}

/// Which group of systemd's this is in; kiln makes its own beside it, at the root of the tree.
fn manager(systemd: bool, groups: &str) -> Finding {
    const NAME: &str = "service manager";
    if !systemd {
        let fix = "start `kiln edge` and `kiln serve` at boot by what this host has instead, and again when they end";
        return Finding::bad(NAME, Level::Warning, "no systemd", fix);
    }
    let own = groups.lines().find_map(|line| line.strip_prefix("0::"));
    Finding::ok(NAME, format!("systemd; this is in `{}`", own.unwrap_or("/")))
}

fn git() -> Finding {
    let mut command = Command::new("git");
    let answer = command.arg("--version").stdin(Stdio::null()).output();
    match answer {
        Ok(answer) if answer.status.success() => {
            let words = String::from_utf8_lossy(&answer.stdout);
            Finding::ok("git", words.trim().trim_start_matches("git version ").to_owned())
        }
        _ => Finding::bad("git", Level::Missing, "there is no git program", "`apt-get install git`"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_plenty_scarce_or_missing() {
        let level = |mebibytes: u64, free_files| {
            room("/x", Ok(Space { free_bytes: mebibytes << 20, free_files, is_read_only: false })).level
        };
        assert_eq!(level(100, None), Level::Missing);
        assert_eq!((level(2000, None), level(9000, Some(10))), (Level::Warning, Level::Warning));
        assert_eq!((level(9000, None), level(9000, Some(1_000_000))), (Level::Ok, Level::Ok));
        assert_eq!(room("/x", host::space(Path::new("/no/such"))).level, Level::Missing);
        let read_only = Space { free_bytes: 1 << 40, free_files: None, is_read_only: true };
        assert_eq!(room("/x", Ok(read_only)).level, Level::Missing);
        assert_eq!(existing(Path::new("/proc/no/such/folder")), Path::new("/proc"));
    }

    #[test]
    fn a_clock_is_set_and_kept() {
        let now = 1_800_000_000;
        let levels =
            [clock(0, Some(true)), clock(now, Some(true)), clock(now, Some(false)), clock(now, None)];
        assert_eq!(levels.map(|f| f.level), [Level::Missing, Level::Ok, Level::Warning, Level::Ok]);
    }

    #[test]
    fn the_service_manager_is_named() {
        let finding = manager(true, "3:cpu:/x\n0::/system.slice/kiln.service\n");
        assert!(
            finding.level == Level::Ok && finding.found.contains("`/system.slice/kiln.service`"),
            "{finding:?}"
        );
        assert_eq!(manager(false, "").level, Level::Warning);
    }
}
