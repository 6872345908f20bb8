//! One thread that alone speaks to the database, with one connection. The callers' own runtimes may block on it, drop what
//! they wait for, or end: no transaction is ever left half-way by that. A connection on which anything went wrong, or took
//! too long, is thrown away together with what was believed to be true, and the next question begins with a new one.

use super::address::PostgresAddress;
use super::schema;
use super::tls::Tls;
use crate::StoreError;
use kiln_model::Snapshot;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{self, Sender};
use std::time::Duration;
use tokio::runtime::Runtime;
use tokio_postgres::tls::MakeTlsConnect;
use tokio_postgres::{Client, NoTls, Socket};

/// How long one question may take, connecting included. Less than any lease.
const ANSWER_MAX: Duration = Duration::from_secs(4);

/// Why a question has no answer.
#[derive(Debug)]
pub(super) enum Fault {
    /// The database failed, or the way to it. Whether a commit happened is unknown.
    Database(tokio_postgres::Error),
    /// The store says no; nothing was written.
    Refused(StoreError),
    /// A newer kiln was here.
    Newer { found: u32 },
    /// A row that kiln cannot do without is not what it wrote.
    Damaged(&'static str),
    /// The tables are somebody else's.
    Foreign,
    /// Nobody can be believed without the certificates in this file.
    Authorities { file: PathBuf, source: std::io::Error },
}

impl From<tokio_postgres::Error> for Fault {
    fn from(error: tokio_postgres::Error) -> Self {
        Self::Database(error)
    }
}

/// What the thread has.
pub(super) struct Session {
    address: PostgresAddress,
    runtime: Runtime,
    client: Option<Client>,
    /// The newest snapshot that is known; none after any doubt.
    pub(super) known: Option<Arc<Snapshot>>,
}

type Job = Box<dyn FnOnce(&mut Session) + Send>;

/// The way to the thread. It ends with the last of these.
pub(super) struct Line {
    jobs: Sender<Job>,
    name: String,
}

impl Line {
    /// Starts the thread; connects with the first question.
    pub(super) fn open(address: PostgresAddress) -> Result<Self, StoreError> {
        let name = format!("PostgreSQL, {address}");
        let fail = |source: std::io::Error| io("starting", &name, source);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(fail)?;
        let (jobs, queue) = mpsc::channel::<Job>();
        let mut session = Session { address, runtime, client: None, known: None };
        let work = move || queue.iter().for_each(|job| job(&mut session));
        std::thread::Builder::new().name("postgres".into()).spawn(work).map_err(fail)?;
        Ok(Self { jobs, name })
    }

    /// Has the thread do something and waits for it. A question that only reads is asked once more if the connection was lost.
    pub(super) fn ask<T: Send + 'static>(
        &self,
        step: &'static str,
        reads_only: bool,
        mut work: impl AsyncFnMut(&mut Client, &mut Option<Arc<Snapshot>>) -> Result<T, Fault> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (answer, answered) = mpsc::sync_channel(1);
        let name = self.name.clone();
        let job = move |session: &mut Session| {
            let had_one = session.client.is_some();
            let mut done = session.once(step, &name, &mut work);
            if reads_only && had_one && session.client.is_none() {
                done = session.once(step, &name, &mut work);
            }
            // Who asked may have ended.
            let _ = answer.send(done);
        };
        let ended = || io(step, &self.name, std::io::Error::other("the thread of the store has ended"));
        self.jobs.send(Box::new(job)).map_err(|_| ended())?;
        answered.recv().map_err(|_| ended())?
    }
}

impl Session {
    fn once<T>(
        &mut self,
        step: &'static str,
        name: &str,
        work: &mut impl AsyncFnMut(&mut Client, &mut Option<Arc<Snapshot>>) -> Result<T, Fault>,
    ) -> Result<T, StoreError> {
        let Self { address, runtime, client, known } = self;
        let question = async {
            if client.as_ref().is_none_or(Client::is_closed) {
                *known = None;
                *client = Some(connect(address).await?);
            }
            let client = client.as_mut().ok_or(Fault::Damaged("the connection"))?;
            work(client, known).await
        };
        // Timers are made inside of the runtime.
        let answered = runtime.block_on(async { tokio::time::timeout(ANSWER_MAX, question).await });
        let fault = match answered {
            Ok(Ok(done)) => return Ok(done),
            Ok(Err(Fault::Refused(error))) => return Err(error),
            Ok(Err(fault)) => fault,
            Err(_) => {
                self.forget();
                let source = std::io::Error::new(std::io::ErrorKind::TimedOut, "no answer in time");
                return Err(io(step, name, source));
            }
        };
        self.forget();
        Err(match fault {
            Fault::Refused(error) => error,
            Fault::Database(error) => io(step, name, error),
            Fault::Newer { found } => {
                StoreError::NewerSchema { path: name.to_owned(), found, known: schema::SCHEMA }
            }
            Fault::Damaged(what) => io(step, name, std::io::Error::other(format!("{what} cannot be read"))),
            Fault::Authorities { file, source } => {
                io("reading the authorities", &file.display().to_string(), source)
            }
            Fault::Foreign => io(step, name, std::io::Error::other("the table `meta` there is not kiln's")),
        })
    }

    /// After any doubt.
    fn forget(&mut self) {
        (self.client, self.known) = (None, None);
    }
}

async fn connect(address: &PostgresAddress) -> Result<Client, Fault> {
    let mut client = match &address.authorities {
        None => connect_with(address, NoTls).await?,
        // Read again each time: authorities are renewed.
        Some(file) => {
            let tls = Tls::with_authorities(file);
            let tls = tls.map_err(|source| Fault::Authorities { file: file.clone(), source })?;
            connect_with(address, tls).await?
        }
    };
    schema::migrate(&mut client).await?;
    Ok(client)
}

async fn connect_with<T>(address: &PostgresAddress, tls: T) -> Result<Client, Fault>
where
    T: MakeTlsConnect<Socket, Stream: Send + 'static>,
{
    let (client, connection) = address.config.connect(tls).await?;
    // It ends with its client. What it fails with, the client's questions fail with.
    tokio::spawn(async move { drop(connection.await) });
    Ok(client)
}

fn io(step: &'static str, name: &str, source: impl std::error::Error + Send + Sync + 'static) -> StoreError {
    StoreError::Io { step, path: name.to_owned(), source: Box::new(source) }
}
