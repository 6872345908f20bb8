//! `[images.NAME.build]`: compiles in a sealed builder and takes files out of it.
//!
//! A builder is an instance of its own: its base and packages as locked, the committed tree as a private copy at `/src`,
//! loopback, a disk and a share of memory that it cannot exceed, and nothing else: no network, no file, process or
//! variable of the host. What it is made of names what comes out of it, so that nothing is built twice.
//!
//! | file | is for |
//! |---|---|
//! | `builder.rs` | the bake's side: layers, cache, sources in, files out, words for failures |
//! | `builder/supervise.rs` | the process that makes the builder, watches limits and output, and cleans up |
//! | `builder/{root,disk}.rs` | its file system |
//! | `builder/{inside,collect}.rs` | its pid 1 |
//! | `builder/{protocol,output}.rs` | what they say, and what is shown of it |

mod collect;
mod disk;
mod inside;
mod output;
mod protocol;
mod root;
mod supervise;

pub use supervise::main;

use crate::bake::BakeJob;
use crate::erofs::Reader;
use crate::layers::{self, Cache, LayersError};
use crate::objects::{ObjectError, Objects, write_durable};
use crate::source::{SourceError, SourceFile, Sources};
use crate::tree::{Kind, Node, Tree, join, name};
use kiln_model::{Digest, LayerRef};
use kiln_spec::{BuildRecipe, CopyRule, CopySource};
use protocol::{Failure, Head, Job, Limit, Report};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, ChildStdin, Command, Stdio};

/// Changes whenever the same inputs would give something else.
const BUILDER: &str = "kiln builder 1";
/// The role of a result among cached layers; no image has it as a layer.
const ROLE: &str = "build";
/// Bytes of one line of a supervisor.
const LINE_BYTES_MAX: u64 = 4 << 20;
/// Bytes that a supervisor may say while it crashes.
const CRASH_BYTES_MAX: usize = 16 << 10;
/// Bytes of one file of the commit.
const FILE_BYTES_MAX: u64 = 1 << 30;
/// What programs say that would like to reach a network.
const NETWORK_WORDS: [&str; 10] = [
    "could not resolve host",
    "temporary failure in name resolution",
    "temporary failure resolving",
    "name or service not known",
    "failed to lookup address",
    "network is unreachable",
    "getaddrinfo",
    "dns error",
    "no such host",
    "failed to establish a new connection",
];

/// A build did not give what the image needs.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The builder's own layers, or the cache.
    #[error("cannot make the layers of the builder")]
    Layers(#[source] Box<LayersError>),
    /// The cache of results.
    #[error("cannot use the results of earlier builds")]
    Cache(#[source] Box<LayersError>),
    /// The commit cannot be read.
    #[error("cannot read the commit")]
    Source(#[from] SourceError),
    /// The content store.
    #[error("the content store failed")]
    Objects(#[from] ObjectError),
    /// The supervisor cannot be started or heard.
    #[error("cannot {step}")]
    Start {
        /// What was tried.
        step: &'static str,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The supervisor ended without a word.
    #[error("the supervisor of the build ended ({status}){}", said(output))]
    Ended {
        /// How.
        status: String,
        /// What it printed.
        output: String,
    },
    /// A command failed.
    #[error("{command} ended with {status}{}", said(output))]
    Command {
        /// Which, with its place in `run`.
        command: String,
        /// How it ended.
        status: String,
        /// The last lines of the output.
        output: String,
    },
    /// A limit of kiln.toml was met.
    #[error("{command} met the limit `build.{line}` of kiln.toml{}", said(output))]
    Limit {
        /// The command that met it.
        command: String,
        /// The line of kiln.toml, whether written there or not.
        line: String,
        /// The last lines of the output.
        output: String,
    },
    /// What is to be copied is not there.
    #[error("`build:{from}` is not in the builder; `{folder}` has {names}{}", said(output))]
    Missing {
        /// As in kiln.toml.
        from: String,
        /// The nearest folder on the way that is there.
        folder: String,
        /// What is in it.
        names: String,
        /// The last lines of the output.
        output: String,
    },
    /// What is to be copied cannot be in an image.
    #[error("the result cannot be copied: {0}")]
    Unfit(String),
    /// The builder could not be made, or broke.
    #[error("the builder failed: {text}{}", said(output))]
    Sandbox {
        /// The step with its causes.
        text: String,
        /// Whether the disk of the state folder is full.
        disk_full: bool,
        /// Whether it may work when it is tried again as it is.
        may_pass: bool,
        /// The last lines of the output.
        output: String,
    },
    /// The stored result cannot be read.
    #[error("cannot read the stored result {0}")]
    Result(Digest, #[source] io::Error),
}

/// The last lines of the output, for the end of a message.
fn said(output: &str) -> String {
    if output.trim().is_empty() { String::new() } else { format!("; it said:\n{}", output.trim_end()) }
}

impl BuildError {
    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Layers(source) | Self::Cache(source) => source.hint(),
            Self::Command { output, .. } => {
                let output = output.to_lowercase();
                let network = NETWORK_WORDS.iter().any(|words| output.contains(words));
                let text = if network {
                    "no network in a build: commit or vendor what it needs, or add Debian packages to `packages`"
                } else {
                    "a build sees the committed files at /src, the packages of `[images.NAME.build]`, and nothing else"
                };
                Some(text.into())
            }
            Self::Limit { line, .. } => {
                let key = line.split(' ').next().unwrap_or_default();
                Some(format!(
                    "raise `{key}` in `[images.NAME.build]` of kiln.toml, or let the build use less"
                ))
            }
            Self::Missing { .. } => Some("correct `from`, or have a command of `run` put it there".into()),
            Self::Unfit(_) => Some("have a command of `run` change it, or copy something else".into()),
            Self::Sandbox { disk_full: true, .. } => {
                Some("the disk of the state folder is full: free space and deploy again".into())
            }
            Self::Sandbox { .. } => {
                Some("a builder needs root, user namespaces, overlayfs, ext4 and loop devices".into())
            }
            _ => None,
        }
    }

    /// Whether it may work when it is tried again as it is.
    pub fn may_pass(&self) -> bool {
        match self {
            Self::Layers(source) | Self::Cache(source) => source.may_pass(),
            Self::Start { .. } | Self::Ended { .. } => true,
            Self::Sandbox { may_pass, .. } => *may_pass,
            _ => false,
        }
    }
}

/// What a build gave.
#[derive(Debug)]
pub struct Built {
    /// What the copy rules name, with the paths that it has in the builder.
    tree: Tree,
    /// What the build printed; none if that was not kept.
    log: Option<String>,
}

/// What a rule copies.
#[derive(Debug)]
pub struct Row {
    /// Its path in the builder.
    pub from: Vec<u8>,
    /// Its place in the image, relative to the root.
    pub to: Vec<u8>,
    /// A file, a folder or a link.
    pub node: Node,
}

/// Builds what the recipe of `job` says, or finds it built; none if it builds nothing.
pub fn build(
    job: &BakeJob,
    objects: &Objects,
    sources: &Sources,
    epoch: i64,
    progress: &mut dyn FnMut(String),
) -> Result<Option<Built>, BuildError> {
    let Some(recipe) = &job.recipe.build else { return Ok(None) };
    let below = layers::below(&job.builder(recipe), objects, progress);
    let below = below.map_err(|error| BuildError::Layers(error.into()))?.layers;
    let from: BTreeSet<&str> =
        job.recipe.copy.iter().filter(|rule| is_build(rule)).map(|r| &*r.from).collect();
    let tree_id = sources.tree_id(&job.project, &job.commit)?;
    let key = key(recipe, &below, &from, &tree_id, epoch);
    let cache = Cache::new(&job.state, objects);
    let unusable = |error: LayersError| BuildError::Cache(error.into());
    // Two bakes with one build would do the same work twice.
    let _one_at_a_time = cache.lock(key).map_err(unusable)?;
    let log_path = cache.path(key).with_extension("log");
    let layer = match cache.get(key) {
        Some(layer) => layer,
        None => {
            progress(format!("building with {} commands", recipe.run.len()));
            let order = Order { job, recipe, objects, sources, epoch, below: &below, from: &from };
            let (result, log) = order.run(progress)?;
            let written = write_durable(&log_path, log.as_bytes());
            written.map_err(|source| BuildError::Start { step: "keep the log of the build", source })?;
            cache.put(key, ROLE, result).map_err(unusable)?
        }
    };
    let read = File::open(objects.path(layer.digest)).and_then(Reader::open).and_then(|reader| reader.tree());
    let tree = read.map_err(|error| BuildError::Result(layer.digest, error))?;
    Ok(Some(Built { tree, log: std::fs::read_to_string(log_path).ok() }))
}

fn is_build(rule: &CopyRule) -> bool {
    rule.source == CopySource::Build
}

/// What a build depends on: everything that its commands can see, and what is taken of it. The time of the commit is
/// among that, as `SOURCE_DATE_EPOCH`, because an image has to be the same wherever it is baked: a result with another
/// commit's time in it would depend on what was built here before.
fn key(recipe: &BuildRecipe, below: &[LayerRef], from: &BTreeSet<&str>, tree: &str, epoch: i64) -> Digest {
    let below: Vec<Digest> = below.iter().map(|layer| layer.digest).collect();
    // Limits are not: a build that fits into them gives the same in others.
    let inputs = (BUILDER, below, &recipe.run, &recipe.env, tree, epoch, from);
    Digest::of(&serde_json::to_vec(&inputs).unwrap_or_default())
}

/// The environment of every command.
fn environment(recipe: &BuildRecipe, epoch: i64) -> BTreeMap<String, String> {
    let fixed = [
        ("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
        ("HOME", "/root"),
        ("LANG", "C.UTF-8"),
        ("TZ", "UTC"),
        ("SOURCE_DATE_EPOCH", &epoch.to_string()),
    ];
    let mut variables: BTreeMap<_, _> = fixed.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
    variables.extend(recipe.env.clone());
    variables
}

/// One build that has to be done.
struct Order<'a> {
    job: &'a BakeJob,
    recipe: &'a BuildRecipe,
    objects: &'a Objects,
    sources: &'a Sources,
    epoch: i64,
    below: &'a [LayerRef],
    from: &'a BTreeSet<&'a str>,
}

fn start(step: &'static str) -> impl FnOnce(io::Error) -> BuildError {
    move |source| BuildError::Start { step, source }
}

impl Order<'_> {
    /// Answers with the stored result and the log.
    fn run(&self, progress: &mut dyn FnMut(String)) -> Result<((Digest, u64), String), BuildError> {
        let files = self.sources.list(&self.job.project, &self.job.commit)?;
        let job = self.job(files.len() as u64);
        let mut result = self.objects.create()?;
        let mut child = Command::new(&self.job.program)
            .args(["internal", "build"])
            // Names the folder, so that whoever looks at the processes of the host knows whose it is.
            .arg(&self.job.state)
            .env_clear()
            .stdin(Stdio::piped())
            .stdout(result.file().try_clone().map_err(start("start the supervisor of the build"))?)
            .stderr(Stdio::piped())
            .spawn()
            .map_err(start("start the supervisor of the build"))?;
        let log = self.talk(&mut child, &job, &files, progress);
        // Its pipe is closed by now: it ends, and takes everything with it.
        let status = child.wait().map_err(start("wait for the supervisor of the build"))?;
        let log = log.map_err(|error| match error {
            BuildError::Ended { output, .. } => {
                // The next server tries again if it stays now.
                let _ = supervise::sweep(&job.group, child.id());
                BuildError::Ended { status: status.to_string(), output }
            }
            error => error,
        })?;
        Ok((result.finish()?, log))
    }

    fn job(&self, n_files: u64) -> Job {
        Job {
            layers: self.below.iter().map(|layer| self.objects.path(layer.digest)).collect(),
            disk_folder: self.job.state.join("objects").join("tmp"),
            group: group(&self.job.state),
            run: self.recipe.run.clone(),
            environment: environment(self.recipe, self.epoch),
            from: self.from.iter().map(|from| (*from).to_owned()).collect(),
            epoch: self.epoch,
            time_ms: self.recipe.time.0,
            memory: self.recipe.memory,
            pids: self.recipe.pids,
            disk: self.recipe.disk,
            n_files,
        }
    }

    fn talk(
        &self,
        child: &mut Child,
        job: &Job,
        files: &[SourceFile],
        progress: &mut dyn FnMut(String),
    ) -> Result<String, BuildError> {
        let (Some(stdin), Some(stderr)) = (child.stdin.take(), child.stderr.take()) else {
            return Err(start("talk to the supervisor of the build")(io::ErrorKind::BrokenPipe.into()));
        };
        // Held to the end: that it breaks would end the build.
        let mut stdin = BufWriter::with_capacity(1 << 20, stdin);
        std::thread::scope(|scope| {
            let (sender, fed) = std::sync::mpsc::channel();
            let feeder = scope.spawn(move || {
                let result = self.feed(&mut stdin, job, files);
                let _ = stdin.flush();
                match result {
                    // Until the answer is there.
                    Ok(()) => fed.recv().map_or(Ok(()), |()| Ok(())),
                    error => error,
                }
            });
            let heard = self.hear(stderr, progress);
            drop(sender);
            let fed = feeder.join().unwrap_or(Ok(()));
            // A source that cannot be read is why the build broke off.
            fed.and(heard)
        })
    }

    /// Gives the supervisor its job and the committed files. That it hangs up early is no error here: it says why.
    fn feed(
        &self,
        to: &mut BufWriter<ChildStdin>,
        job: &Job,
        files: &[SourceFile],
    ) -> Result<(), BuildError> {
        if protocol::write_json(to, job).is_err() {
            return Ok(());
        }
        // Submodules have no content here.
        let (modules, files): (Vec<_>, Vec<_>) = files.iter().partition(|file| file.mode == 0o160_000);
        let mut broken = false;
        let mut send = |file: &SourceFile, bytes: &[u8]| {
            let head = Head { path: file.path.clone(), mode: file.mode, size: bytes.len() as u64 };
            broken = broken || protocol::write_json(to, &head).and_then(|()| to.write_all(bytes)).is_err();
        };
        for module in modules {
            send(module, &[]);
        }
        let ids: Vec<String> = files.iter().map(|file| file.id.clone()).collect();
        self.sources.each(&self.job.project, &ids, FILE_BYTES_MAX, &mut |n, bytes| {
            send(files[n], &bytes);
        })?;
        Ok(())
    }

    /// Hands on what the supervisor says until it says the last.
    fn hear(&self, stderr: ChildStderr, progress: &mut dyn FnMut(String)) -> Result<String, BuildError> {
        let mut reader = BufReader::new(stderr);
        let mut crash = String::new();
        loop {
            let mut line = Vec::new();
            let read = reader.by_ref().take(LINE_BYTES_MAX).read_until(b'\n', &mut line);
            if read.map_err(start("hear the supervisor of the build"))? == 0 {
                return Err(BuildError::Ended { status: String::new(), output: crash });
            }
            match serde_json::from_slice(&line) {
                Ok(Report::Line(text)) => progress(format!("build: {text}")),
                Ok(Report::Done { log }) => return Ok(log),
                Ok(Report::Failed { failure, said }) => return Err(self.failed(failure, said)),
                Err(_) if crash.len() < CRASH_BYTES_MAX => crash.push_str(&String::from_utf8_lossy(&line)),
                Err(_) => {}
            }
        }
    }

    fn failed(&self, failure: Failure, output: String) -> BuildError {
        match failure {
            Failure::Command { number, status } => {
                BuildError::Command { command: self.command(Some(number)), status, output }
            }
            Failure::Limit { number, limit } => {
                BuildError::Limit { command: self.command(number), line: self.line(limit), output }
            }
            Failure::Missing { from, folder, names } => {
                let names = if names.is_empty() { "nothing in it".into() } else { names.join(", ") };
                BuildError::Missing { from, folder, names, output }
            }
            Failure::Unfit { text } => BuildError::Unfit(text),
            Failure::Sandbox { text, disk_full, may_pass } => {
                BuildError::Sandbox { text, disk_full, may_pass, output }
            }
        }
    }

    fn command(&self, number: Option<usize>) -> String {
        const CHARS_MAX: usize = 100;
        let Some(number) = number else { return "the copy of the commit".into() };
        let whole = self.recipe.run.get(number).map_or("", |line| line.trim());
        let mut short: String = whole.lines().next().unwrap_or("").chars().take(CHARS_MAX).collect();
        if short.len() < whole.len() {
            short.push('…');
        }
        format!("command {} of {}, `{short}`,", number + 1, self.recipe.run.len())
    }

    /// A limit as it stands, or would stand, in kiln.toml.
    fn line(&self, limit: Limit) -> String {
        match limit {
            Limit::Time => format!("time = \"{}\"", span(self.recipe.time.0)),
            Limit::Memory => format!("memory = \"{}\"", size(self.recipe.memory)),
            Limit::Disk => format!("disk = \"{}\"", size(self.recipe.disk)),
            Limit::Pids => format!("pids = {}", self.recipe.pids),
        }
    }
}

/// A span of milliseconds as kiln.toml has it.
fn span(ms: u64) -> String {
    const UNITS: [(u64, &str); 3] = [(3_600_000, "h"), (60_000, "m"), (1000, "s")];
    let unit = UNITS.iter().find(|(unit, _)| ms > 0 && ms.is_multiple_of(*unit));
    unit.map_or(format!("{ms}ms"), |(unit, name)| format!("{}{name}", ms / unit))
}

/// A size as kiln.toml has it.
fn size(bytes: u64) -> String {
    const UNITS: [(u32, &str); 3] = [(30, "GiB"), (20, "MiB"), (10, "KiB")];
    let unit = UNITS.iter().find(|(bits, _)| bytes > 0 && bytes.is_multiple_of(1 << bits));
    unit.map_or(format!("{bytes}B"), |(bits, unit)| format!("{}{unit}", bytes >> bits))
}

/// The control group of a state folder. It is the one of its instances, so that the next server, and `kiln down`, remove
/// what a killed supervisor left: 8 digits of the sha256 of the folder's path.
fn group(state: &Path) -> String {
    use std::os::unix::ffi::OsStrExt;
    let state = state.canonicalize().unwrap_or(state.to_owned());
    format!("kiln-{}", &Digest::of(state.as_os_str().as_bytes()).hex()[..8])
}

/// Where the output of the build of an image lies.
pub fn log_path(state: &Path, image: Digest) -> PathBuf {
    state.join("images").join(format!("{}.build.log", image.hex()))
}

impl Built {
    /// What a rule copies, folders before what they hold. The owner is root; the mode is the rule's, or the builder's.
    pub fn rows(&self, rule: &CopyRule) -> Result<Vec<Row>, BuildError> {
        let from = rule.from.trim_matches('/').as_bytes();
        let to = rule.to.trim_matches('/').as_bytes();
        let contents = rule.from.ends_with('/');
        let mut rows = vec![];
        for (path, node) in self.tree.iter() {
            let place = match path.strip_prefix(from) {
                Some([]) if node.kind == Kind::Dir => to.to_vec(),
                // As with cp: into a folder if the target is written as one.
                Some([]) if !contents && rule.to.ends_with('/') => join(to, name(from)),
                Some([]) if !contents => to.to_vec(),
                Some([b'/', rest @ ..]) => join(to, rest),
                _ => continue,
            };
            let mut node = node.clone();
            if contents && path == from {
                // The contents are copied, not the folder.
                node.mode = 0o755;
            }
            if let (Kind::File(_), Some(mode)) = (&node.kind, rule.mode) {
                node.mode = mode;
            }
            if matches!(node.kind, Kind::File(_)) && node.mode & 0o7000 != 0 {
                let path = String::from_utf8_lossy(path);
                let text =
                    format!("`/{path}` has a set-id or sticky bit, and no image gets one from a build");
                return Err(BuildError::Unfit(text));
            }
            rows.push(Row { from: path.clone(), to: place, node });
        }
        Ok(rows)
    }

    /// Keeps the output beside the image, unless an earlier bake of the same image did.
    pub fn keep_log(&self, state: &Path, image: Digest) -> io::Result<()> {
        let path = log_path(state, image);
        match &self.log {
            Some(log) if !path.exists() => write_durable(&path, log.as_bytes()),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::Content;
    use kiln_model::Millis;
    use kiln_spec::Base;

    fn recipe() -> BuildRecipe {
        BuildRecipe {
            base: Base::Debian { suite: "bookworm".into() },
            packages: vec![],
            run: vec!["make".into()],
            env: BTreeMap::from([("A".to_owned(), "1".to_owned())]),
            time: Millis(1000),
            memory: 64 << 20,
            pids: 10,
            disk: 1 << 30,
        }
    }

    #[test]
    fn whatever_a_build_sees_changes_its_key_and_limits_do_not() {
        let layer =
            |text: &str| LayerRef { digest: Digest::of(text.as_bytes()), size: 1, role: "base".into() };
        let (below, from) = (vec![layer("a")], BTreeSet::from(["/out"]));
        let first = key(&recipe(), &below, &from, "tree", 5);
        let limits = BuildRecipe { time: Millis(7), memory: 1, pids: 1, disk: 1, ..recipe() };
        assert_eq!(key(&limits, &below, &from, "tree", 5), first);
        let others = [
            key(&recipe(), &[layer("b")], &from, "tree", 5),
            key(&recipe(), &below, &BTreeSet::new(), "tree", 5),
            key(&recipe(), &below, &from, "other", 5),
            key(&recipe(), &below, &from, "tree", 6),
            key(&BuildRecipe { run: vec!["ma".into(), "ke".into()], ..recipe() }, &below, &from, "tree", 5),
            key(&BuildRecipe { env: BTreeMap::new(), ..recipe() }, &below, &from, "tree", 5),
        ];
        let distinct: BTreeSet<_> = others.iter().chain([&first]).map(|key| key.hex()).collect();
        assert_eq!(distinct.len(), others.len() + 1);
    }

    #[test]
    fn sizes_and_spans_are_written_as_in_kiln_toml() {
        let spans = [(2000, "2s"), (600_000, "10m"), (5_400_000, "90m"), (7_200_000, "2h"), (1500, "1500ms")];
        for (ms, text) in spans {
            assert_eq!(span(ms), text);
        }
        let sizes =
            [(64 << 20, "64MiB"), (4 << 30, "4GiB"), (1536 << 20, "1536MiB"), (5000, "5000B"), (0, "0B")];
        for (bytes, text) in sizes {
            assert_eq!(size(bytes), text);
        }
    }

    #[test]
    fn rules_take_files_folders_and_contents() {
        let file = |mode| Node::file(Content::Bytes(b"x"[..].into()), mode, 0);
        let mut tree = Tree::new();
        for (path, node) in [
            ("", Node::dir(0o755, 0)),
            ("out", Node::dir(0o700, 0)),
            ("out/app", file(0o755)),
            ("out/d", Node::dir(0o750, 0)),
            ("out/d/x", file(0o600)),
            ("output", file(0o4755)),
        ] {
            tree.insert(path.as_bytes(), node).unwrap();
        }
        let built = Built { tree, log: None };
        let rule = |from: &str, to: &str, mode| CopyRule {
            source: CopySource::Build,
            from: from.into(),
            to: to.into(),
            mode,
        };
        let rows = |from: &str, to: &str| -> Vec<String> {
            let rows = built.rows(&rule(from, to, None)).unwrap();
            rows.iter()
                .map(|row| format!("{} {:o}", String::from_utf8_lossy(&row.to), row.node.mode))
                .collect()
        };
        assert_eq!(rows("/out/app", "/bin/b"), ["bin/b 755"]);
        assert_eq!(rows("/out/app", "/bin/"), ["bin/app 755"]);
        assert_eq!(rows("/out/", "/srv"), ["srv 755", "srv/app 755", "srv/d 750", "srv/d/x 600"]);
        assert_eq!(rows("/out", "/srv"), ["srv 700", "srv/app 755", "srv/d 750", "srv/d/x 600"]);
        assert_eq!(rows("/out/d/", "/"), [" 755", "x 600"]);
        let moded = built.rows(&rule("/out/d", "/x", Some(0o444))).unwrap();
        assert_eq!(
            moded.iter().map(|row| row.node.mode).collect::<Vec<_>>(),
            [0o750, 0o444],
            "folders keep theirs"
        );
        let setuid = built.rows(&rule("/output", "/x", None)).unwrap_err();
        assert!(setuid.to_string().contains("`/output` has a set-id"), "{setuid}");
        assert_eq!(built.rows(&rule("/output", "/x", Some(0o755))).unwrap()[0].node.mode, 0o755);
    }

    #[test]
    fn a_failed_look_up_of_a_name_is_told_from_other_failures() {
        let hint = |output: &str| {
            let (command, status) = ("`x`".to_owned(), "status 1".to_owned());
            BuildError::Command { command, status, output: output.into() }.hint().unwrap()
        };
        assert!(hint("curl: (6) Could not resolve host: example.com").contains("no network in a build"));
        assert!(hint("app.c:1: error").contains("/src"));
    }
}
