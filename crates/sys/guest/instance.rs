//! A machine that is an instance: the host says what to start and hears everything; when the service has ended the host ends
//! the machine.
//!
//! Threads: `main` waits for the service, one reaps, one hears the host, one pumps each of the service's outputs, and each
//! question has one while it is answered.

use crate::config::Config;
use crate::host::{self, Ear, Host};
use crate::network::{self, Setup};
use crate::place::{self, Failure, ROOT, failed};
use crate::spawn::{Children, Program};
use crate::wire::{End, FromGuest, ToGuest};
use crate::{call, check, say};
use std::fs::{self, File};
use std::io::{Error, PipeWriter, Result, pipe};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// The control groups of this machine.
const GROUPS: &str = "/groups";
/// The one of all programs of the instance.
const INSTANCE: &str = "/groups/instance";
const INTERFACE: &str = "eth0";
/// How long the network card may take to appear.
const CARD_MAX: Duration = Duration::from_secs(60);
/// How long the last output may take, when all who could write are dead.
const DRAIN_MAX: Duration = Duration::from_secs(5);
/// How long the host may take to end the machine after the last word.
const FAREWELL_MAX: Duration = Duration::from_secs(20);
const SIGKILL: i32 = 9;

/// The instance's programs.
pub struct Service {
    /// All of them.
    pub children: Children,
    config: Config,
    is_killed: AtomicBool,
}

/// A control group below that of the instance.
pub struct Group {
    path: String,
    joins: File,
}

impl Group {
    /// Kills all that are in it.
    pub fn kill(&self) {
        let _ = fs::write(format!("{}/cgroup.kill", self.path), "1");
    }

    /// Kills all that are in it and removes it.
    pub fn remove(self) {
        self.kill();
        let until = Instant::now() + DRAIN_MAX;
        while fs::remove_dir(&self.path).is_err() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

impl Service {
    /// A new group.
    pub fn group(&self, name: &str) -> Result<Group> {
        let path = format!("{INSTANCE}/{name}");
        fs::create_dir_all(&path)?;
        let joins = File::options().write(true).open(format!("{path}/cgroup.procs"))?;
        Ok(Group { path, joins })
    }

    /// The user may open by name what it prints to, as `/dev/stdout`.
    pub fn owns(&self, pipe: &PipeWriter) -> Result<()> {
        std::os::unix::fs::fchown(pipe, Some(self.config.user.0), Some(self.config.user.1))
    }

    /// Starts a program as the service is started. An error is a text for the user.
    pub fn start(
        &self,
        argv: &[String],
        group: &Group,
        standard: [&dyn AsRawFd; 3],
    ) -> std::result::Result<i32, String> {
        let Config { env, user, capabilities, .. } = &self.config;
        let (root, group) = (ROOT, &group.joins);
        let (user, capabilities) = (*user, *capabilities);
        self.children.start(&Program { argv, env, user, capabilities, root, group, standard })
    }

    /// How it ended, of what `waitpid` says.
    fn end_of(&self, status: i32) -> End {
        match status & 0x7f {
            0 => End::Status(status >> 8 & 0xff),
            SIGKILL if !self.is_killed.load(Ordering::SeqCst) && was_short_of_memory() => End::OutOfMemory,
            signal => End::Signal(signal),
        }
    }
}

/// Whether the kernel killed anything for want of memory, of the instance or of the whole machine.
fn was_short_of_memory() -> bool {
    let counts = |path: &str| {
        let text = fs::read_to_string(path).unwrap_or_default();
        text.lines().any(|line| {
            line.strip_prefix("oom_kill ").is_some_and(|count| count.trim().parse().is_ok_and(|n: u64| n > 0))
        })
    };
    counts(&format!("{INSTANCE}/memory.events")) || counts("/proc/vmstat")
}

/// Plays pid 1. Returns when the machine is to be turned off.
pub fn run() -> Result<String> {
    // The host tells the last of these words if no other comes.
    say("looking for the host");
    let (host, mut ear) = host::connect()?;
    host.say(&FromGuest::Hello);
    say("waiting for the host to say what to start");
    let mut secrets = vec![];
    let records = loop {
        match ear.hear()? {
            ToGuest::Secret { name, value } => secrets.push((name, value)),
            ToGuest::Start(records) => break records,
            _ => return Err(Error::other("the host does not say what")),
        }
    };
    let config = Config::parse(&records, "").filter(|config| config.layers > 0);
    let mut config = config.ok_or_else(|| Error::other("what the host says is damaged"))?;
    config.secrets = secrets;
    if let Err(Failure { permanent, step, detail }) = prepare(&config) {
        host.say(&FromGuest::Failed { permanent, step, detail });
        return Ok(farewell("it was not started"));
    }
    config.secrets.clear();
    let service = Service { children: Children::default(), config, is_killed: AtomicBool::new(false) };
    let service = Arc::new(service);
    let reaper = service.clone();
    std::thread::spawn(move || reaper.children.reap());
    match serve(&host, ear, &service) {
        Ok(end) => host.say(&FromGuest::Ended(end)),
        Err(Problem::Executing(error)) => host.say(&FromGuest::NotStarted(error)),
        Err(Problem::Before(Failure { permanent, step, detail })) => {
            host.say(&FromGuest::Failed { permanent, step, detail });
        }
    }
    Ok(farewell("it has ended"))
}

/// Leaves the host the time to read the last word: it ends the machine.
fn farewell(text: &str) -> String {
    std::thread::sleep(FAREWELL_MAX);
    text.to_owned()
}

/// Why there is no service.
enum Problem {
    Before(Failure),
    Executing(String),
}

impl From<Failure> for Problem {
    fn from(failure: Failure) -> Self {
        Self::Before(failure)
    }
}

fn prepare(config: &Config) -> std::result::Result<(), Failure> {
    // A name of an instance is short enough.
    call::set_host_name(&config.name).map_err(failed("name the machine"))?;
    say("bringing up the network");
    bring_up(config)?;
    make_groups(config).map_err(failed("make the control groups"))?;
    say("mounting the image");
    place::make(config)?;
    say("starting the service");
    Ok(())
}

fn bring_up(config: &Config) -> std::result::Result<(), Failure> {
    let step = "bring up the network";
    network::up("lo").map_err(failed(step))?;
    // Every user may listen on every port, as there is no privileged user in here.
    fs::write("/proc/sys/net/ipv4/ip_unprivileged_port_start", "0").map_err(failed(step))?;
    let Some(address) = &config.address else { return Ok(()) };
    let setup = Setup::parse(address, config.gateway.as_deref());
    let setup = setup.ok_or_else(|| Error::other("that is no address")).map_err(failed(step))?;
    let until = Instant::now() + CARD_MAX;
    while !fs::exists(format!("/sys/class/net/{INTERFACE}")).unwrap_or(false) {
        if Instant::now() >= until {
            return Err(failed(step)(Error::other("there is no network card")));
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    // A kernel without it has no such file.
    let _ = fs::write(format!("/proc/sys/net/ipv6/conf/{INTERFACE}/disable_ipv6"), "1");
    network::up(INTERFACE).and_then(|()| network::set(INTERFACE, &setup)).map_err(failed(step))
}

fn make_groups(config: &Config) -> Result<()> {
    fs::create_dir_all(GROUPS)?;
    let plain = call::MS_NOSUID | call::MS_NODEV | call::MS_NOEXEC;
    call::mount_at("cgroup2", GROUPS, "cgroup2", plain, "")?;
    fs::write(format!("{GROUPS}/cgroup.subtree_control"), "+memory +pids")?;
    fs::create_dir_all(INSTANCE)?;
    let limit = |name: &str, value: u64| match value {
        0 => Ok(()),
        value => fs::write(format!("{INSTANCE}/{name}"), value.to_string()),
    };
    limit("memory.max", config.memory_bytes)?;
    limit("pids.max", config.pids.into())
}

/// Runs the service from its start to its end.
fn serve(host: &Host, ear: Ear, service: &Arc<Service>) -> std::result::Result<End, Problem> {
    let step = "start the program";
    let group = service.group("service").map_err(failed(step))?;
    let input = File::open("/dev/null").map_err(failed(step))?;
    let (out, printed) = pipe().map_err(failed(step))?;
    let (error, complained) = pipe().map_err(failed(step))?;
    for pipe in [&printed, &complained] {
        service.owns(pipe).map_err(failed(step))?;
    }
    let argv = &service.config.command;
    let pid = service.start(argv, &group, [&input, &printed, &complained]).map_err(Problem::Executing)?;
    drop((printed, complained));
    host.say(&FromGuest::Started);
    let (mouth, listener) = (host.clone(), service.clone());
    std::thread::spawn(move || obey(&mouth, ear, &listener, pid));
    let (first, second) = (host.clone(), host.clone());
    let pumps = [
        std::thread::spawn(move || first.pump(out, FromGuest::Out)),
        std::thread::spawn(move || second.pump(error, FromGuest::Err)),
    ];
    // Without a time-out there is always a status.
    let status = service.children.wait(pid, None).unwrap_or(0);
    let end = service.end_of(status);
    // Those beside the service go with it.
    let _ = fs::write(format!("{INSTANCE}/cgroup.kill"), "1");
    let until = Instant::now() + DRAIN_MAX;
    while !pumps.iter().all(std::thread::JoinHandle::is_finished) && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(end)
}

/// Does what the host says.
fn obey(host: &Host, mut ear: Ear, service: &Arc<Service>, pid: i32) {
    loop {
        match ear.hear() {
            Ok(ToGuest::Stop(signal)) => service.children.signal(pid, signal),
            Ok(ToGuest::Kill) => {
                service.is_killed.store(true, Ordering::SeqCst);
                service.children.signal(pid, SIGKILL);
            }
            Ok(ToGuest::Ask { number, timeout_ms, question }) => {
                check::answer(host, service, number, Duration::from_millis(timeout_ms), question);
            }
            Ok(ToGuest::Start(_) | ToGuest::Secret { .. }) => {}
            // The host is gone, and the machine goes with it.
            Err(_) => return,
        }
    }
}
