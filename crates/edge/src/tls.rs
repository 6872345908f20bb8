//! TLS to clients: which certificates are in use, and the handshake.
//!
//! ```text
//! folder ─ look ─▶ changed, and the same twice in a row (or SIGHUP) ─▶ load ─▶ all sound: swap ─▶ next handshakes
//!                                                                       └──▶ any not: one event, the last ones stay
//! ```
//! A connection keeps the certificate that it began with. At the start, where there are none to keep, every sound pair is used.

use crate::certificates::{self, Certificate, Certificates, Look};
use crate::control::chain;
use crate::guard::Guarded;
use crate::limits::{CERTIFICATES_EVERY, HANDSHAKE_TIMEOUT};
use crate::log::Log;
use arc_swap::ArcSwap;
use rustls::ServerConfig;
use rustls::crypto::{CryptoProvider, ring};
use rustls::server::{Acceptor, NoServerSessionStorage, ProducesTickets};
use rustls::sign::CertifiedKey;
use serde_json::json;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::io::AsyncWriteExt;
use tokio::signal::unix::Signal;
use tokio_rustls::LazyConfigAcceptor;
use tokio_rustls::server::TlsStream;

/// A fatal alert `unrecognized_name` (RFC 6066, section 3) in a record of its own: no keys exist yet.
const UNRECOGNIZED_NAME: [u8; 7] = [21, 3, 3, 0, 2, 2, 112];
/// As ALPN names them (RFC 7301); the first one that the client knows is taken.
const PROTOCOLS: [&[u8]; 2] = [b"h2", b"http/1.1"];

/// See the module.
#[derive(Debug)]
pub(crate) struct Tls {
    dir: PathBuf,
    provider: Arc<CryptoProvider>,
    /// One for all certificates; a ticket is good for the host that it was given for.
    tickets: Arc<dyn ProducesTickets>,
    current: ArcSwap<Certificates>,
    problems: Mutex<Vec<String>>,
    refused: AtomicU64,
}

/// A connection after its handshake.
pub(crate) struct Secured {
    pub(crate) stream: TlsStream<Guarded>,
    /// What the client was shown, if it asked for one of its hosts: then it may ask for no others.
    pub(crate) certificate: Option<Arc<Certificate>>,
    pub(crate) is_h2: bool,
}

impl Tls {
    /// Without certificates; see [`Tls::start`].
    pub(crate) fn new(dir: PathBuf) -> Result<Self, rustls::Error> {
        Ok(Self {
            dir,
            provider: Arc::new(ring::default_provider()),
            tickets: ring::Ticketer::new()?,
            current: ArcSwap::default(),
            problems: Mutex::default(),
            refused: AtomicU64::new(0),
        })
    }

    fn config(&self, certified: CertifiedKey) -> Result<ServerConfig, rustls::Error> {
        let builder = ServerConfig::builder_with_provider(self.provider.clone());
        let builder = builder.with_safe_default_protocol_versions()?.with_no_client_auth();
        let mut config = builder.with_cert_resolver(certificates::resolver(certified));
        config.alpn_protocols = PROTOCOLS.iter().map(|p| p.to_vec()).collect();
        config.ticketer = self.tickets.clone();
        config.session_storage = Arc::new(NoServerSessionStorage {});
        Ok(config)
    }

    /// Takes what is there when the edge starts.
    pub(crate) fn start(&self, log: &Log) -> Look {
        let look = certificates::look(&self.dir);
        let (look, error) = look.map_or_else(|e| (Look::new(), Some(e)), |look| (look, None));
        let make = |certified| self.config(certified);
        let (found, mut errors) = certificates::load(&self.dir, &look, &make, &self.provider);
        errors.extend(error);
        for error in &errors {
            log.event("error", "certificate not usable", json!({ "problem": chain(error) }));
        }
        log.event("info", "certificates in use", json!({ "pairs": found.count }));
        self.current.store(Arc::new(found));
        self.tell(errors.iter().map(|e| chain(e)).collect());
        look
    }

    /// Keeps what is in use as what is in the folder, until the runtime ends.
    pub(crate) async fn watch(
        self: Arc<Self>,
        log: Arc<crate::shared::Shared>,
        first: Look,
        mut hangup: Signal,
    ) {
        let (mut used, mut last) = (Some(first.clone()), Some(first));
        loop {
            let asked = tokio::select! {
                () = tokio::time::sleep(CERTIFICATES_EVERY) => false,
                _ = hangup.recv() => true,
            };
            let look = match certificates::look(&self.dir) {
                Ok(look) => look,
                Err(error) => {
                    // Told once: until it can be read again there is nothing new to tell.
                    if used.take().is_some() {
                        self.refuse(&log.log, vec![chain(&error)]);
                    }
                    continue;
                }
            };
            // What is being written is looked at again.
            let settled = last.as_ref() == Some(&look);
            last = Some(look.clone());
            if !asked && (!settled || used.as_ref() == Some(&look)) {
                continue;
            }
            let make = |certified| self.config(certified);
            let (found, errors) = certificates::load(&self.dir, &look, &make, &self.provider);
            used = Some(look);
            if errors.is_empty() {
                log.log.event("info", "certificates in use", json!({ "pairs": found.count }));
                self.current.store(Arc::new(found));
                self.tell(vec![]);
            } else {
                self.refuse(&log.log, errors.iter().map(|e| chain(e)).collect());
            }
        }
    }

    fn refuse(&self, log: &Log, problems: Vec<String>) {
        let pairs = self.current.load().count;
        let fields = json!({ "problems": problems, "still_in_use": pairs });
        log.event("error", "certificates refused, the last ones stay in use", fields);
        self.tell(problems);
    }

    fn tell(&self, problems: Vec<String>) {
        *self.problems.lock().unwrap_or_else(PoisonError::into_inner) = problems;
    }

    /// For people.
    pub(crate) fn status(&self, listening: &[String]) -> kiln_model::edge::TlsStatus {
        kiln_model::edge::TlsStatus {
            listening: listening.to_vec(),
            certificates: self.current.load().count as u64,
            problems: self.problems.lock().unwrap_or_else(PoisonError::into_inner).clone(),
            refused: self.refused.load(Ordering::Relaxed),
        }
    }

    /// The handshake. None if it failed: whoever tried has been told.
    pub(crate) async fn accept(&self, stream: Guarded) -> Option<Secured> {
        let secured = tokio::time::timeout(HANDSHAKE_TIMEOUT, self.handshake(stream)).await.ok().flatten();
        if secured.is_none() {
            self.refused.fetch_add(1, Ordering::Relaxed);
        }
        secured
    }

    async fn handshake(&self, stream: Guarded) -> Option<Secured> {
        let mut start = LazyConfigAcceptor::new(Acceptor::default(), stream).await.ok()?;
        let certificates = self.current.load_full();
        let Some(certificate) = certificates.find(start.client_hello().server_name()).cloned() else {
            let _ = start.io.write_all(&UNRECOGNIZED_NAME).await;
            let _ = start.io.shutdown().await;
            return None;
        };
        let stream = start.into_stream(certificate.config.clone()).await.ok()?;
        let is_h2 = stream.get_ref().1.alpn_protocol() == Some(PROTOCOLS[0]);
        let certificate = Some(certificate).filter(|c| !certificates.is_default(c));
        Some(Secured { stream, certificate, is_h2 })
    }
}
