//! Control groups: limits, counting and killing, on hosts with v1, v2 or both.
//!
//! Which version has a controller is decided per controller: a hybrid host has a v2 tree that can kill and count, and
//! its memory, cpu and pids controllers in v1 trees. A group is the same relative path in every tree that is used.

use crate::{CallError, Context};
use std::fs;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The controllers that limits need.
const CONTROLLERS: [&str; 3] = ["memory", "cpu", "pids"];
/// Microseconds over which processor time is counted, by default and here.
const CPU_PERIOD_US: u64 = 100_000;
/// The kernel refuses quotas below one millisecond.
const CPU_QUOTA_US_MIN: u64 = 1_000;

/// Which trees are used; other than `Auto` for tests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Choice {
    /// All that there are.
    #[default]
    Auto,
    /// As on a host without a v2 tree.
    V1,
    /// As on a host without v1 trees.
    V2,
}

/// What limits a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Thousandths of one core.
    pub cpu_milli: u32,
    /// Bytes of memory; no swap.
    pub memory_bytes: u64,
    /// Processes and threads.
    pub pids: u32,
}

/// The trees of this host.
#[derive(Debug, Clone)]
pub struct Trees {
    /// The v2 tree, and which of the needed controllers it has.
    unified: Option<(PathBuf, Vec<&'static str>)>,
    /// v1 trees by controller.
    legacy: Vec<(&'static str, PathBuf)>,
}

impl Trees {
    /// Finds the mounted trees.
    pub fn detect(choice: Choice) -> Result<Self, CallError> {
        const MOUNTS: &str = "/proc/self/mountinfo";
        let text = fs::read_to_string(MOUNTS).context("read", MOUNTS)?;
        let mut trees = Self { unified: None, legacy: vec![] };
        for line in text.lines() {
            let Some((head, tail)) = line.split_once(" - ") else { continue };
            let Some(path) = head.split(' ').nth(4) else { continue };
            let mut tail = tail.split(' ');
            let (kind, options) = (tail.next(), tail.nth(1).unwrap_or(""));
            match kind {
                Some("cgroup2") if choice != Choice::V1 && trees.unified.is_none() => {
                    let listed = fs::read_to_string(Path::new(path).join("cgroup.controllers"));
                    let listed = listed.unwrap_or_default();
                    let has = |c: &&'static str| listed.split_whitespace().any(|l| l == *c);
                    trees.unified =
                        Some((path.into(), CONTROLLERS.iter().copied().filter(|c| has(c)).collect()));
                }
                Some("cgroup") if choice != Choice::V2 => {
                    let found = CONTROLLERS.iter().filter(|c| options.split(',').any(|o| o == **c));
                    trees.legacy.extend(found.map(|c| (*c, PathBuf::from(path))));
                }
                _ => {}
            }
        }
        if let Some((_, unified)) = &trees.unified {
            trees.legacy.retain(|(c, _)| !unified.contains(c));
        }
        for controller in CONTROLLERS {
            let unified = trees.unified.as_ref().is_some_and(|(_, list)| list.contains(&controller));
            if !unified && !trees.legacy.iter().any(|(c, _)| *c == controller) {
                return Err(io::Error::from_raw_os_error(libc::ENODEV))
                    .context("find cgroup controller", controller);
            }
        }
        Ok(trees)
    }

    /// Every directory that the group `path` has or would have, v2 first.
    fn directories(&self, path: &str) -> Vec<PathBuf> {
        let unified = self.unified.iter().map(|(root, _)| root.join(path));
        let mut out: Vec<PathBuf> = unified.chain(self.legacy.iter().map(|(_, r)| r.join(path))).collect();
        out.dedup();
        out
    }

    /// Makes the group that holds others, with the controllers that they need. What exists already is used.
    pub fn create_parent(&self, parent: &str) -> Result<(), CallError> {
        for directory in self.directories(parent) {
            make(&directory)?;
        }
        if let Some((root, controllers)) = &self.unified {
            make(&root.join(parent))?;
            for directory in [root.clone(), root.join(parent)] {
                let file = directory.join("cgroup.subtree_control");
                for controller in controllers {
                    fs::write(&file, format!("+{controller}")).context("write", file.display())?;
                }
            }
        }
        Ok(())
    }

    /// Makes the group `parent/name`, without limits yet. What exists already is used, and the parent is made if it is
    /// not there.
    pub fn create(&self, parent: &str, name: &str) -> Result<Group, CallError> {
        let group = self.group(parent, name);
        for directory in &group.directories {
            match make(directory) {
                Err(error) if error.errno() == libc::ENOENT => {
                    self.create_parent(parent)?;
                    make(directory)?;
                }
                made => made?,
            }
        }
        Ok(group)
    }

    /// The group `parent/name`, whether or not it exists.
    pub fn group(&self, parent: &str, name: &str) -> Group {
        let path = format!("{parent}/{name}");
        let unified = self.unified.as_ref().map(|(root, _)| root.join(&path));
        let (memory, v2_memory) = match &self.unified {
            Some((root, list)) if list.contains(&"memory") => (Some(root.join(&path)), true),
            _ => (self.legacy.iter().find(|(c, _)| *c == "memory").map(|(_, r)| r.join(&path)), false),
        };
        Group { directories: self.directories(&path), unified, memory, v2_memory }
    }

    /// The names of the groups below `parent` in any tree.
    pub fn children(&self, parent: &str) -> Vec<String> {
        let mut names: Vec<String> = vec![];
        for directory in self.directories(parent) {
            let found = nested(&directory);
            names.extend(found.iter().filter_map(|d| Some(d.file_name()?.to_string_lossy().into_owned())));
        }
        names.sort();
        names.dedup();
        names
    }

    /// Removes the parent itself once its groups are gone.
    pub fn remove_parent(&self, parent: &str) -> Result<(), CallError> {
        self.directories(parent).iter().try_for_each(|d| remove(d))
    }

    /// How many directories of `parent` and below exist.
    pub fn count(&self, parent: &str) -> usize {
        let own = self.directories(parent).into_iter().filter(|d| d.exists()).count();
        let below =
            self.children(parent).into_iter().flat_map(|c| self.directories(&format!("{parent}/{c}")));
        own + below.filter(|d| d.exists()).count()
    }
}

fn make(directory: &Path) -> Result<(), CallError> {
    match fs::create_dir(directory) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
    .context("create cgroup", directory.display())
}

/// The groups in a group.
fn nested(directory: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(directory) else { return vec![] };
    let found = entries.flatten().filter(|e| e.file_type().is_ok_and(|t| t.is_dir()));
    found.map(|e| e.path()).collect()
}

/// Removes a group's directory. A group that just became empty may stay busy for a moment.
fn remove(directory: &Path) -> Result<(), CallError> {
    const PATIENCE: Duration = Duration::from_secs(5);
    let end = Instant::now() + PATIENCE;
    // Those of programs that were running beside the main one when their server died.
    nested(directory).iter().try_for_each(|d| remove(d))?;
    loop {
        match fs::remove_dir(directory) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) && Instant::now() < end => {
                std::thread::sleep(Duration::from_micros(200));
            }
            Err(error) => return Err(error).context("remove cgroup", directory.display()),
        }
    }
}

/// One group, in every tree that is used.
#[derive(Debug, Clone)]
pub struct Group {
    directories: Vec<PathBuf>,
    unified: Option<PathBuf>,
    memory: Option<PathBuf>,
    v2_memory: bool,
}

impl Group {
    /// Limits it.
    pub fn limit(&self, trees: &Trees, limits: Limits) -> Result<(), CallError> {
        let quota = (u64::from(limits.cpu_milli) * CPU_PERIOD_US / 1000).max(CPU_QUOTA_US_MIN);
        let write = |directory: &Path, file: &str, value: String| {
            let path = directory.join(file);
            let open = fs::File::options().write(true).open(&path);
            open.and_then(|mut file| file.write_all(value.as_bytes())).context("write", path.display())
        };
        let (memory, pids) = (limits.memory_bytes.to_string(), limits.pids.to_string());
        if let (Some((_, controllers)), Some(directory)) = (&trees.unified, &self.unified) {
            for controller in controllers {
                match *controller {
                    "memory" => {
                        write(directory, "memory.max", memory.clone())?;
                        if directory.join("memory.swap.max").exists() {
                            write(directory, "memory.swap.max", "0".into())?;
                        }
                    }
                    "cpu" => write(directory, "cpu.max", format!("{quota} {CPU_PERIOD_US}"))?,
                    _ => write(directory, "pids.max", pids.clone())?,
                }
            }
        }
        for (controller, directory) in trees.legacy.iter().zip(self.legacy_directories(trees)) {
            match controller.0 {
                "memory" => {
                    write(&directory, "memory.limit_in_bytes", memory.clone())?;
                    // The last: the first version counts what TCP has under way by itself, and without a limit not at all.
                    for file in ["memory.memsw.limit_in_bytes", "memory.kmem.tcp.limit_in_bytes"] {
                        match write(&directory, file, memory.clone()) {
                            // A kernel that does not count it has no such file, and nobody may make one.
                            Err(error) if [libc::ENOENT, libc::EACCES].contains(&error.errno()) => {}
                            written => written?,
                        }
                    }
                }
                // Over the kernel's own period, which is the same.
                "cpu" => write(&directory, "cpu.cfs_quota_us", quota.to_string())?,
                _ => write(&directory, "pids.max", pids.clone())?,
            }
        }
        Ok(())
    }

    fn legacy_directories(&self, trees: &Trees) -> Vec<PathBuf> {
        let relative = |root: &Path| {
            self.directories.iter().find(|d| d.starts_with(root) && Some(*d) != self.unified.as_ref())
        };
        trees.legacy.iter().filter_map(|(_, root)| relative(root).cloned()).collect()
    }

    /// The v2 directory, for a child that is born in it.
    pub fn birthplace(&self) -> Result<Option<OwnedFd>, CallError> {
        self.unified.as_deref().map(crate::mount::directory).transpose()
    }

    /// Opens the files that a process's number is written to for joining: those of the v1 trees, and with `unified`
    /// that of the v2 tree.
    pub fn doors(&self, unified: bool) -> Result<Vec<fs::File>, CallError> {
        let wanted = |d: &&PathBuf| unified || Some(*d) != self.unified.as_ref();
        let open = |d: &PathBuf| {
            let path = d.join("cgroup.procs");
            fs::File::options().write(true).open(&path).context("open", path.display())
        };
        self.directories.iter().filter(wanted).map(open).collect()
    }

    /// Makes a group in this one, for a program that can be killed without the others. It has no limits of its own. With
    /// it come the files for joining, as from [`Group::doors`].
    pub fn nest(&self, name: &str) -> Result<(Group, Vec<fs::File>), CallError> {
        let Some((first, others)) = self.directories.split_first() else {
            return Err(io::Error::from_raw_os_error(libc::ENODEV)).context("nest cgroup", name);
        };
        let directory = first.join(name);
        make(&directory)?;
        let unified = (self.unified.as_ref() == Some(first)).then(|| directory.clone());
        let group = Group { directories: vec![directory.clone()], unified, memory: None, v2_memory: false };
        let joined = Group { directories: [&[directory], others].concat(), ..group.clone() };
        let doors = joined.doors(true).inspect_err(|_| drop(group.remove()))?;
        Ok((group, doors))
    }

    /// The file that counts kills for want of memory, for [`oom_kills`].
    pub fn oom_file(&self) -> Result<Option<fs::File>, CallError> {
        let name = if self.v2_memory { "memory.events" } else { "memory.oom_control" };
        let open = |d: &PathBuf| {
            let path = d.join(name);
            fs::File::open(&path).context("open", path.display())
        };
        self.memory.as_ref().map(open).transpose()
    }

    /// The file that counts processes that were refused for want of numbers, for [`refused_processes`].
    pub fn pids_file(&self) -> Option<fs::File> {
        self.directories.iter().find_map(|d| fs::File::open(d.join("pids.events")).ok())
    }

    /// The processes in it and in the groups in it, from all trees.
    pub fn processes(&self) -> Vec<i32> {
        let mut pids: Vec<i32> = vec![];
        for directory in self.directories.iter().flat_map(|d| [vec![d.clone()], nested(d)].concat()) {
            let text = fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
            pids.extend(text.lines().filter_map(|l| l.parse::<i32>().ok()).filter(|p| *p > 0));
        }
        pids.sort_unstable();
        pids.dedup();
        pids
    }

    /// Kills all processes in it, and waits until it is empty. False: `timeout` came first.
    pub fn kill(&self, timeout: Duration) -> Result<bool, CallError> {
        let end = Instant::now() + timeout;
        loop {
            if let Some(file) = self.unified.as_ref().map(|d| d.join("cgroup.kill")) {
                // Absent before kernel 5.14, and when the group is.
                let _ = fs::write(file, "1");
            }
            let pids = self.processes();
            if pids.is_empty() {
                return Ok(true);
            }
            for pid in pids {
                let Ok(pidfd) = crate::process::open_pid(pid) else { continue };
                // A member that ended meanwhile may have left its number to another process.
                if self.processes().contains(&pid) {
                    let _ = crate::process::signal(std::os::fd::AsFd::as_fd(&pidfd), libc::SIGKILL);
                }
            }
            if Instant::now() >= end {
                return Ok(false);
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Removes its directories. It must be empty.
    pub fn remove(&self) -> Result<(), CallError> {
        self.directories.iter().try_for_each(|d| remove(d))
    }

    /// How many of its directories exist.
    pub fn count(&self) -> usize {
        self.directories.iter().filter(|directory| directory.exists()).count()
    }

    /// Whether any of its directories exists.
    pub fn exists(&self) -> bool {
        self.directories.iter().any(|d| d.exists())
    }
}

/// How often the kernel killed a process of a group for want of memory, from [`Group::oom_file`].
pub fn oom_kills(file: &fs::File) -> u64 {
    counter(file, "oom_kill ")
}

/// How often a group had no number left for a new process, from [`Group::pids_file`].
pub fn refused_processes(file: &fs::File) -> u64 {
    counter(file, "max ")
}

fn counter(file: &fs::File, name: &str) -> u64 {
    use std::os::unix::fs::FileExt;
    let mut buffer = [0; 1024];
    let n = file.read_at(&mut buffer, 0).unwrap_or(0);
    let text = String::from_utf8_lossy(&buffer[..n]);
    let count = text.lines().find_map(|l| l.strip_prefix(name).and_then(|v| v.trim().parse().ok()));
    count.unwrap_or(0)
}
