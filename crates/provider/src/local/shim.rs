//! Pid 1 of an instance: starts the program, pumps what it prints into the black box, passes on the stop signal, writes
//! how it ended. It is a user of the instance's user namespace that no program can be, with the capability to signal and
//! no other, and it is not dumpable: the program can neither signal, trace nor read it. When it dies, the kernel kills the
//! rest.
//!
//! ```text
//! cloned by its seed ─▶ makes /proc and /dev, clones the program's process ─ "ready" ─▶ waits for a shape, or dies
//!        with the server ─▶ root, tmpfs, gives up its rights, confines the program's process ─ "fitted" ─▶ waits for what
//!        to run, or dies with the server ─▶ /etc, secrets ─▶ the program ─ "started" ─▶ pumps ─▶ exit.json ─ "ended" ─▶
//!        makes all durable
//! ```

use super::blackbox::{self, BlackBox, CHUNK_BYTES, Lines};
use super::folder::Exit;
use super::order::Failure;
use super::program;
use super::pump::{Outcome, Pump};
use super::rootfs::{self, Blanks, Templates};
use super::seed::Go;
use super::subnet::SUPERVISOR;
use super::wire::{ENDED, FITTED, Files, NOT_EXECUTED, READY, START_BYTES_MAX, STARTED, Shape, Start};
use kiln_model::{ExitReason, Wall};
use kiln_sys::exec::{self, Room};
use kiln_sys::message::{self, Descriptors};
use kiln_sys::process::{self, Namespaces, SignalFd};
use kiln_sys::seccomp::{self, Instruction, Listener, Others};
use kiln_sys::{CallError, Context, mount, namespace, privilege, seal, text};
use rustix::fs::{Gid, Uid};
use std::fs::File;
use std::io::{self, PipeReader, PipeWriter, Write};
use std::os::fd::{AsFd, OwnedFd};

/// Asks pid 1 to kill the program and to end as if the program had ended by itself.
pub(crate) const KILL: i32 = libc::SIGQUIT;
/// What a shim is called in lists of processes.
pub(super) const SHIM: &str = "kiln-shim";
const SHIM_NAME: &std::ffi::CStr = c"kiln-shim";

/// All the memory that a shim needs, which the zygote has before it leaves the heap alone. Pages that are never written
/// to are shared by all.
pub(super) struct Kit {
    filter: Vec<Instruction>,
    asking: Vec<Instruction>,
    message: Vec<u8>,
    chunk: Vec<u8>,
    room: Room,
    lines: [Lines; 2],
    batch: Vec<u8>,
}

impl Default for Kit {
    fn default() -> Self {
        Self {
            filter: seccomp::filter(),
            asking: seccomp::filter_with(Others::Ask),
            message: vec![0; START_BYTES_MAX],
            chunk: vec![0; CHUNK_BYTES],
            room: Room::default(),
            lines: Default::default(),
            batch: blackbox::room(),
        }
    }
}

/// The life of pid 1. The status is seen by nobody; `exit.json` is.
pub(super) fn main(kit: &mut Kit, templates: &Templates, socket: OwnedFd, go: Go) -> i32 {
    process::set_name(SHIM_NAME);
    let held = match prepare(kit, templates, &socket, go) {
        Ok(Some(held)) => held,
        Ok(None) => return 1,
        Err(error) => return fail(&socket, &error.into()),
    };
    let Kit { message, chunk, lines, batch, .. } = kit;
    let Some((length, descriptors)) = hear(&socket, message) else { return 1 };
    let fitted = match fit(&message[..length], descriptors, held, &socket).map_err(Failure::cut) {
        Ok(fitted) => {
            let _ = message::send(&socket, &[&[FITTED]], &[]);
            Ok(fitted)
        }
        Err(failure) => {
            let code = fail(&socket, &failure);
            if !failure.permanent {
                return code;
            }
            Err(failure)
        }
    };
    let Some((length, descriptors)) = hear(&socket, message) else { return 1 };
    let start = Start::decode(&message[..length]);
    let files = start.and_then(|start| Files::take(descriptors, start.has_secrets));
    let (Some(start), Some(files)) = (start, files) else {
        return fail(&socket, &Failure::permanent("begin", "the order is not complete"));
    };
    let Files { out, exit, lock, door, secrets, oom } = files;
    let mut spool = BlackBox::new(out.map(File::from), std::mem::take(batch));
    spool.note(start.greeting);
    let kept = Kept { socket, exit: File::from(exit), lock, door, oom: oom.map(File::from) };
    let launched = fitted
        .map_err(Problem::Before)
        .and_then(|fitted| launch(&start, &message[..length], secrets, fitted, &kept));
    match launched {
        Ok(launched) => {
            let _ = message::send(&kept.socket, &[&[STARTED]], &[]);
            let pump = Pump::new(launched, &kept.door, chunk, lines, &mut spool);
            let (reason, heir) = pump.run(start.stop_signal, kept.oom.as_ref());
            finish(&mut spool, &kept, heir.as_ref(), &reason, ENDED)
        }
        Err(Problem::Before(failure)) => {
            let failure = failure.cut();
            if failure.permanent {
                let error = format!("{}: {}", failure.step, failure.detail);
                end(&mut spool, &kept.exit, &ExitReason::NotStarted { error });
            }
            fail(&kept.socket, &failure)
        }
        Err(Problem::Executing(error)) => {
            finish(&mut spool, &kept, None, &ExitReason::NotStarted { error }, NOT_EXECUTED)
        }
    }
}

/// What the server says next. None: it is gone, and nobody has heard of this process.
fn hear(socket: &OwnedFd, message: &mut [u8]) -> Option<(usize, Descriptors)> {
    message::receive(socket, message).ok().filter(|(length, _)| *length > 0)
}

fn fail(socket: &OwnedFd, failure: &Failure) -> i32 {
    seal::lift();
    // Nobody listens if the server died meanwhile; its successor finds nothing that runs.
    let _ = message::send(socket, &[&serde_json::to_vec(failure).unwrap_or_default()], &[]);
    1
}

/// The program's process before it is known what the program is. It waits for that, and has all rights until then.
struct Held {
    pid: i32,
    signals: SignalFd,
    pipes: [PipeReader; 2],
    /// Its other end is closed when the program is executed.
    talk: OwnedFd,
}

/// What does not depend on which instance it is going to be. None: nobody would ever find this process again.
fn prepare(
    kit: &mut Kit,
    templates: &Templates,
    socket: &OwnedFd,
    go: Go,
) -> Result<Option<Held>, CallError> {
    process::close_all_but(&[socket.as_fd(), go.file().as_fd()])?;
    if !go.wait() {
        return Ok(None);
    }
    process::remember_children();
    privilege::become_user(0, 0)?;
    // The groups of its seed, which it was born in, are the namespace's root.
    namespace::unshare(Namespaces::CGROUP)?;
    templates.prepare()?;
    process::new_session()?;
    let signals = SignalFd::new(&[libc::SIGTERM, KILL, libc::SIGCHLD])?;
    privilege::limit_bounding_set(program::declarable() | 1 << privilege::CAP_KILL)?;
    let null = File::options().read(true).write(true).open("/dev/null").context("open", "/dev/null")?;
    for number in 0..3 {
        process::set_standard(&null, number)?;
    }
    drop(null);
    // Only the ends that are read here: whoever prints may wait, a shim never.
    let pipe = || {
        let (read, write) = io::pipe().context("pipe", "the program's output")?;
        let flags = rustix::fs::OFlags::NONBLOCK;
        rustix::fs::fcntl_setfl(&read, flags).context("fcntl", "the program's output")?;
        Ok::<_, CallError>((read, write))
    };
    let ((out_read, out_write), (err_read, err_write)) = (pipe()?, pipe()?);
    let (talk, theirs) = message::pair().context("socketpair", "the program's process")?;
    let child = process::Clone::new(Namespaces::default()).spawn(|| {
        become_program(kit, [&out_write, &err_write], &theirs);
        126
    })?;
    drop((out_write, err_write, theirs));
    message::send(socket, &[&[READY]], &[]).context("send", "ready")?;
    Ok(Some(Held { pid: child.pid(), signals, pipes: [out_read, err_read], talk }))
}

/// What a shim has for all its life.
struct Kept {
    socket: OwnedFd,
    exit: File,
    #[expect(dead_code, reason = "held, not read, as long as anything of the instance lives")]
    lock: OwnedFd,
    door: OwnedFd,
    oom: Option<File>,
}

/// Why the program does not run.
enum Problem {
    /// Something around it failed.
    Before(Failure),
    /// It could not be executed.
    Executing(String),
}

impl From<CallError> for Problem {
    fn from(error: CallError) -> Self {
        Problem::Before(error.into())
    }
}

impl From<io::Error> for Problem {
    fn from(error: io::Error) -> Self {
        Problem::Before(broken(&error))
    }
}

/// All of an instance but which one it is.
struct Fitted {
    held: Held,
    blanks: Blanks,
    user: u32,
    listener: Option<Listener>,
}

/// A program that runs.
pub(super) struct Launched {
    pub pid: i32,
    pub signals: SignalFd,
    pub pipes: [PipeReader; 2],
    pub listener: Option<Listener>,
}

/// What the program's process says before it is executed; an empty message is that it was.
const CONFINED: u8 = b'c';
const UNCONFINED: u8 = b'u';
const ERRNO: u8 = b'e';

/// Makes the root of a shape, and gives up every right but those that are needed until the program begins.
fn fit(order: &[u8], mut descriptors: Descriptors, held: Held, socket: &OwnedFd) -> Result<Fitted, Failure> {
    let (Some(shape), Some(root)) = (Shape::decode(order), descriptors.next()) else {
        return Err(Failure::permanent("begin", "the order is not complete"));
    };
    let blanks = rootfs::assemble(root, &shape)?;
    let Held { signals, pipes, talk, .. } = &held;
    // Whoever owns them may open them by name: `/dev/stdout`. Both ends are one.
    let (uid, gid) = (Uid::from_raw(shape.user.0), Gid::from_raw(shape.user.1));
    for pipe in pipes {
        rustix::fs::fchown(pipe, Some(uid), Some(gid)).map_err(|error| broken(&error.into()))?;
    }
    message::send(talk, &[order], &[]).map_err(|error| broken(&error))?;
    let [out, err] = pipes;
    let [a, b, c, d] = blanks.descriptors().map(|blank| blank.map_or(talk.as_fd(), AsFd::as_fd));
    process::close_all_but(&[
        signals.as_fd(),
        out.as_fd(),
        err.as_fd(),
        talk.as_fd(),
        socket.as_fd(),
        a,
        b,
        c,
        d,
    ])?;
    privilege::drop_from_bounding_set(program::declarable() | 1 << privilege::CAP_KILL)?;
    // A user of its own: who has the same as another process may change its limits and its priority.
    privilege::become_user_with_capabilities(SUPERVISOR, SUPERVISOR)?;
    privilege::keep_capabilities(1 << privilege::CAP_KILL | 1 << privilege::CAP_SYS_ADMIN)?;
    privilege::no_new_privileges()?;
    privilege::not_dumpable()?;
    let listener = hear_of_confinement(talk)?;
    Ok(Fitted { blanks, user: shape.user.0, listener, held })
}

/// The word of the program's process that it has given up what it has.
fn hear_of_confinement(talk: &OwnedFd) -> Result<Option<Listener>, Failure> {
    let mut buffer = [0; 1024];
    let heard = message::receive(talk, &mut buffer);
    let (length, mut descriptors) = heard.map_err(|error| broken(&error))?;
    match buffer[..length].split_first() {
        Some((&CONFINED, _)) => Ok(descriptors.next().map(Listener)),
        Some((&UNCONFINED, words)) => {
            seal::lift();
            Err(Failure::permanent("confine the program", String::from_utf8_lossy(words).into_owned()))
        }
        _ => Err(broken(&io::ErrorKind::BrokenPipe.into())),
    }
}

fn broken(error: &io::Error) -> Failure {
    seal::lift();
    Failure::io("start the program", error)
}

/// Starts the program and waits until it is executed. `order` is what `start` was read from.
fn launch(
    start: &Start<'_>,
    order: &[u8],
    secrets: Option<OwnedFd>,
    fitted: Fitted,
    kept: &Kept,
) -> Result<Launched, Problem> {
    let Fitted { held: Held { pid, signals, pipes, talk }, blanks, user, listener } = fitted;
    blanks.fill(secrets, start).map_err(Problem::Before)?;
    privilege::keep_capabilities(1 << privilege::CAP_KILL)?;
    message::listen(&kept.door)?;
    // Only now is it let go, when pid 1 has given up what it has.
    message::send(&talk, &[order], &[])?;
    let mut buffer = [0; 8];
    let (length, _) = message::receive(&talk, &mut buffer)?;
    let errno = match buffer[..length].split_first() {
        None => return Ok(Launched { pid, signals, pipes, listener }),
        Some((&ERRNO, errno)) => errno.try_into().map_or(libc::EIO, i32::from_ne_bytes),
        Some(_) => libc::EIO,
    };
    seal::lift();
    let error = io::Error::from_raw_os_error(errno);
    if [libc::ENOMEM, libc::EAGAIN, libc::ENFILE, libc::EMFILE].contains(&errno) {
        return Err(Problem::Before(Failure::io("execute the program", &error)));
    }
    Err(Problem::Executing(program::explain(&error, start.argv.first(), start.search, user)))
}

/// In the program's process. Returns only on failure, which it has told.
fn become_program(kit: &mut Kit, [out, err]: [&PipeWriter; 2], talk: &OwnedFd) {
    let Kit { filter, asking, message, room, .. } = kit;
    let alone = process::set_standard(out, 1)
        .and_then(|()| process::set_standard(err, 2))
        .and_then(|()| process::close_all_but(&[talk.as_fd()]))
        .and_then(|()| process::new_session());
    process::unblock_signals();
    let Some((length, _)) = hear(talk, message) else { return };
    let Some(shape) = Shape::decode(&message[..length]) else { return };
    let confined = alone
        // Pid 1 has put the root together by now, and has laid it over this process's own.
        .and_then(|()| mount::enter_covered_root())
        .and_then(|()| program::confine(shape.user, shape.capabilities))
        .and_then(|()| match shape.asks {
            true => seccomp::install_asking(asking).map(Some),
            false => seccomp::install(filter).map(|()| None),
        });
    let told = match &confined {
        Ok(Some(listener)) => message::send(talk, &[&[CONFINED]], &[listener.as_fd()]),
        Ok(None) => message::send(talk, &[&[CONFINED]], &[]),
        Err(error) => message::send(talk, &[&[UNCONFINED], error.line().as_bytes()], &[]),
    };
    if confined.is_err() || told.is_err() {
        return;
    }
    let Some((length, _)) = hear(talk, message) else { return };
    let Some(start) = Start::decode(&message[..length]) else { return };
    let error = exec::exec(start.argv, start.environment, start.search, room);
    let errno = error.raw_os_error().unwrap_or(libc::EIO);
    let _ = message::send(talk, &[&[ERRNO], &errno.to_ne_bytes()], &[]);
}

/// Tells how it ended, the server that started it and the `heir` that came later, and then makes everything durable.
fn finish(spool: &mut BlackBox, kept: &Kept, heir: Option<&OwnedFd>, reason: &ExitReason, word: u8) -> i32 {
    end(spool, &kept.exit, reason);
    for server in [Some(&kept.socket), heir].into_iter().flatten() {
        let _ = message::send(server, &[&[word]], &[]);
    }
    // What cannot be made durable can still be read; there is nobody to tell.
    let _ = spool.sync();
    let _ = kept.exit.sync_all();
    0
}

/// Writes the last frame and then the exit record: whoever sees the record finds every line before it.
pub(crate) fn end(spool: &mut BlackBox, mut exit: &File, reason: &ExitReason) {
    let mut line = [0; 1024];
    spool.note(text::format(&mut line, format_args!("{reason}")));
    let record = Exit { at: Wall(kiln_sys::clock::wall_ms()), reason: reason.clone() };
    let mut bytes = [0; 16 * 1024];
    let mut room = &mut bytes[..];
    let free = room.len();
    // What cannot be written is seen as `ExitReason::Unknown`; there is nobody to tell.
    if serde_json::to_writer(&mut room, &record).is_ok() {
        let length = free - room.len();
        let _ = exit.write_all(&bytes[..length]);
    }
}

impl From<Outcome> for ExitReason {
    fn from(outcome: Outcome) -> Self {
        match outcome {
            Outcome::Status(code) => ExitReason::Status { code },
            Outcome::Signal(signal) => ExitReason::Signal { signal },
            Outcome::OutOfMemory => ExitReason::OutOfMemory,
        }
    }
}
