//! The typed client: one connection per request over the Unix socket, JSON both ways, streams of [`Update`] lines and
//! streamed uploads. It never retries by itself: what a lost connection means is the caller's to know.

mod replicate;

use crate::address::Address;
use crate::error::{Code, ErrorBody, WireError};
use crate::update::{ALIVE_EVERY, Update};
use crate::{
    audit, backup, bake, deploy, environment, export, image, instance, key, lock, logs, path, pause, release,
    rollout, scale, secret, server,
};
use crate::{source, status, why};
use bytes::{Buf, Bytes, BytesMut};
use http::{Method, Request, Response, StatusCode};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Empty, Full, Limited};
use hyper::body::{Body, Frame, Incoming};
use hyper_util::rt::TokioIo;
use kiln_model::{
    CommitId, EnvRef, InstanceId, ProjectName, ReleaseNumber, RolloutId, SecretName, SecretValue, limits,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::io::Read;
use std::marker::PhantomData;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio::time::timeout;

/// The header with the name of a command, so that it is carried out once however often it is asked for.
pub const IDEMPOTENCY_KEY: &str = "idempotency-key";
/// How long the server may take to answer a request that does no long work.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// How long an upload with its check may take.
const UPLOAD_TIMEOUT: Duration = Duration::from_secs(30 * 60);
/// A stream that says nothing for so long counts as lost; the server says something every [`ALIVE_EVERY`].
const SILENCE_MAX: Duration = Duration::from_secs(ALIVE_EVERY.as_secs() * 5);
/// Bytes of one chunk of an upload.
const CHUNK: usize = 64 * 1024;

type OutBody = BoxBody<Bytes, std::io::Error>;

/// Why a request had no good answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens on the socket.
    #[error("no server answers at `{address}`")]
    NoServer {
        /// Where.
        address: Address,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// The socket belongs to others.
    #[error("`{address}` may not be used by this user")]
    NotAllowed {
        /// Where.
        address: Address,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// The connection ended, or nothing came for too long.
    #[error("the connection to `{address}` was lost")]
    Lost {
        /// Where.
        address: Address,
        /// The cause.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The server refused or failed.
    #[error(transparent)]
    Server(Box<WireError>),
    /// The answer is not what this client knows.
    #[error("the answer to `{path}` was not understood: {detail}")]
    Protocol {
        /// Of which request.
        path: String,
        /// What was wrong with it.
        detail: String,
    },
}

impl ClientError {
    /// Its row of the table.
    pub fn code(&self) -> Code {
        match self {
            ClientError::NoServer { .. } => Code::NoServer,
            ClientError::NotAllowed { .. } => Code::NotAllowed,
            ClientError::Lost { .. } => Code::Lost,
            ClientError::Server(error) => error.code,
            ClientError::Protocol { .. } => Code::Protocol,
        }
    }

    /// Whether the server may be on its way back: it died, is being upgraded, or stops.
    pub fn is_lost(&self) -> bool {
        matches!(self.code(), Code::NoServer | Code::Lost | Code::Unavailable)
    }
}

/// A client of one server.
#[derive(Debug, Clone)]
pub struct Client {
    address: Address,
    key: Option<String>,
}

impl Client {
    /// A client of the server at `address`. Connects with the first request.
    pub fn new(address: Address) -> Self {
        Self { address, key: None }
    }

    /// The same, whose commands may be asked again when the answer is lost: all carry `key`, which names one command.
    #[must_use]
    pub fn once(&self, key: String) -> Self {
        Self { key: Some(key), ..self.clone() }
    }

    /// Where it connects to.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// What the server says of itself.
    pub async fn server(&self) -> Result<server::ServerView, ClientError> {
        self.get(path::SERVER).await
    }

    /// What runs.
    pub async fn status(&self, scope: &environment::Scope) -> Result<status::StatusView, ClientError> {
        self.get(&with_query(path::STATUS, scope)).await
    }

    /// Whether the server has that commit, and which others it has.
    pub async fn source(
        &self,
        project: &ProjectName,
        commit: &CommitId,
    ) -> Result<source::SourceView, ClientError> {
        self.get(&path::fill(path::SOURCE, &[project, commit])).await
    }

    /// Uploads a git pack with that commit and what its tree has beyond the trees of commits that are there. Durable when this returns.
    pub async fn put_source(
        &self,
        project: &ProjectName,
        commit: &CommitId,
        pack: impl Read + Send + 'static,
    ) -> Result<(), ClientError> {
        let path = path::fill(path::SOURCE, &[project, commit]);
        let body = BodyExt::boxed(Upload::start(pack));
        let _: source::SourceView = self.call(Method::PUT, &path, body, UPLOAD_TIMEOUT).await?;
        Ok(())
    }

    /// Asks for a deploy. The stream's one item is the answer.
    pub async fn deploy(
        &self,
        request: &deploy::DeployRequest,
    ) -> Result<Updates<deploy::DeployView>, ClientError> {
        self.stream(Method::POST, path::DEPLOY, json(request)).await
    }

    /// Asks for a rollback.
    pub async fn rollback(
        &self,
        request: &deploy::RollbackRequest,
    ) -> Result<deploy::DeployView, ClientError> {
        self.post(path::ROLLBACK, request).await
    }

    /// Asks for a promotion. The stream's one item is the answer.
    pub async fn promote(
        &self,
        request: &deploy::PromoteRequest,
    ) -> Result<Updates<deploy::DeployView>, ClientError> {
        self.stream(Method::POST, path::PROMOTE, json(request)).await
    }

    /// Environments with their settings.
    pub async fn environments(
        &self,
        scope: &environment::Scope,
    ) -> Result<environment::EnvironmentList, ClientError> {
        self.get(&with_query(path::ENVIRONMENTS, scope)).await
    }

    /// Makes an environment.
    pub async fn create_environment(
        &self,
        request: &environment::CreateRequest,
    ) -> Result<environment::EnvironmentDetail, ClientError> {
        self.post(path::ENVIRONMENTS, request).await
    }

    /// Secrets that are set.
    pub async fn secrets(&self, query: &secret::SecretQuery) -> Result<secret::SecretList, ClientError> {
        self.get(&with_query(path::SECRETS, query)).await
    }

    /// The versions of a secret.
    pub async fn secret(
        &self,
        env: &EnvRef,
        name: &SecretName,
    ) -> Result<secret::SecretHistory, ClientError> {
        self.get(&path::fill(path::SECRET, &[&env.project, &env.env, name])).await
    }

    /// Gives a secret a value.
    pub async fn set_secret(
        &self,
        env: &EnvRef,
        name: &SecretName,
        value: &SecretValue,
    ) -> Result<secret::SecretSet, ClientError> {
        let path = path::fill(path::SECRET, &[&env.project, &env.env, name]);
        let bytes = Bytes::copy_from_slice(value.expose());
        let body = BodyExt::boxed(Full::new(bytes).map_err(|never| match never {}));
        self.call(Method::PUT, &path, body, ANSWER_TIMEOUT).await
    }

    /// Takes a secret out.
    pub async fn unset_secret(
        &self,
        env: &EnvRef,
        name: &SecretName,
    ) -> Result<secret::SecretSet, ClientError> {
        let path = path::fill(path::SECRET, &[&env.project, &env.env, name]);
        self.call(Method::DELETE, &path, empty(), ANSWER_TIMEOUT).await
    }

    /// Overrides how many instances services have.
    pub async fn scale(&self, request: &scale::ScaleRequest) -> Result<scale::ScaleView, ClientError> {
        self.post(path::SCALE, request).await
    }

    /// Stops effects.
    pub async fn pause(&self, request: &pause::PauseRequest) -> Result<pause::PauseView, ClientError> {
        self.post(path::PAUSE, request).await
    }

    /// Goes on.
    pub async fn resume(&self, request: &pause::ResumeRequest) -> Result<pause::ResumeView, ClientError> {
        self.post(path::RESUME, request).await
    }

    /// A backup of the whole state, in pieces.
    pub async fn backup(&self) -> Result<Download, ClientError> {
        self.download(path::BACKUP).await
    }

    /// Ends a recovery hold, or says what that would do.
    pub async fn recover(
        &self,
        request: &backup::RecoverRequest,
    ) -> Result<backup::RecoverView, ClientError> {
        self.post(path::RECOVER, request).await
    }

    /// Stops the rollout under way.
    pub async fn abort(&self, request: &environment::EnvRequest) -> Result<rollout::AbortView, ClientError> {
        self.post(path::ABORT, request).await
    }

    /// Removes all that runs of an environment.
    pub async fn destroy(
        &self,
        request: &environment::EnvRequest,
    ) -> Result<environment::DestroyView, ClientError> {
        self.post(path::DESTROY, request).await
    }

    /// Where a rollout is.
    pub async fn rollout(&self, id: RolloutId) -> Result<rollout::RolloutView, ClientError> {
        self.get(&path::fill(path::ROLLOUT, &[&id])).await
    }

    /// Follows a rollout to its end.
    pub async fn watch_rollout(&self, id: RolloutId) -> Result<Updates<rollout::RolloutView>, ClientError> {
        self.stream(Method::GET, &path::fill(path::ROLLOUT_WATCH, &[&id]), empty()).await
    }

    /// Releases.
    pub async fn releases(&self, scope: &environment::Scope) -> Result<release::ReleaseList, ClientError> {
        self.get(&with_query(path::RELEASES, scope)).await
    }

    /// One release.
    pub async fn release(
        &self,
        env: &EnvRef,
        number: ReleaseNumber,
    ) -> Result<release::ReleaseDetail, ClientError> {
        self.get(&path::fill(path::RELEASE, &[&env.project, &env.env, &number])).await
    }

    /// Images.
    pub async fn images(&self, scope: &environment::Scope) -> Result<image::ImageList, ClientError> {
        self.get(&with_query(path::IMAGES, scope)).await
    }

    /// One image, by its digest or the first digits of it; anything else is refused here.
    pub async fn image(&self, digest: &str) -> Result<image::ImageDetail, ClientError> {
        self.get(&path::fill(path::IMAGE, &[&digits(digest)?])).await
    }

    /// What differs between two images.
    pub async fn image_diff(&self, before: &str, after: &str) -> Result<image::DiffView, ClientError> {
        self.get(&path::fill(path::IMAGE_DIFF, &[&digits(before)?, &digits(after)?])).await
    }

    /// Removes what nothing needs. The stream's one item is the answer.
    pub async fn image_gc(&self, request: &image::GcRequest) -> Result<Updates<image::GcView>, ClientError> {
        self.stream(Method::POST, path::IMAGE_GC, json(request)).await
    }

    /// Prepares an export. The stream's one item is the answer.
    pub async fn prepare_export(
        &self,
        digest: &str,
        request: &export::ExportRequest,
    ) -> Result<Updates<export::ExportView>, ClientError> {
        let path = path::fill(path::IMAGE_EXPORT, &[&digits(digest)?]);
        self.stream(Method::POST, &path, json(request)).await
    }

    /// Uploads an archive with an image, which is imported when this returns.
    pub async fn import(
        &self,
        query: &export::ImportQuery,
        archive: impl Read + Send + 'static,
    ) -> Result<export::ImportView, ClientError> {
        let body = BodyExt::boxed(Upload::start(archive));
        self.call(Method::PUT, &with_query(path::IMAGE_IMPORT, query), body, UPLOAD_TIMEOUT).await
    }

    /// Pushes an image to a registry. The stream's one item is the answer.
    pub async fn push(
        &self,
        digest: &str,
        request: &export::PushRequest,
    ) -> Result<Updates<export::PushView>, ClientError> {
        let path = path::fill(path::IMAGE_PUSH, &[&digits(digest)?]);
        self.stream(Method::POST, &path, json(request)).await
    }

    /// The bytes of an export that was prepared.
    pub async fn export(
        &self,
        digest: &str,
        request: &export::ExportRequest,
    ) -> Result<Download, ClientError> {
        self.download(&with_query(&path::fill(path::IMAGE_EXPORT, &[&digits(digest)?]), request)).await
    }

    async fn download(&self, path: &str) -> Result<Download, ClientError> {
        let sent = self.send(Method::GET, path, empty());
        let response = timeout(ANSWER_TIMEOUT, sent).await.map_err(|elapsed| self.lost(elapsed))??;
        let status = response.status();
        if !status.is_success() {
            let bytes = self.read_all(path, response).await?;
            return Err(refused(path, status, &bytes));
        }
        Ok(Download { client: self.clone(), body: response.into_body() })
    }

    /// What the build of an image printed, by the digest or its first digits.
    pub async fn image_build_log(&self, digest: &str) -> Result<image::BuildLogView, ClientError> {
        self.get(&path::fill(path::IMAGE_BUILD_LOG, &[&digits(digest)?])).await
    }

    /// The bill of materials of an image.
    pub async fn sbom(&self, digest: &str, query: &image::SbomQuery) -> Result<image::SbomView, ClientError> {
        let path = path::fill(path::IMAGE_SBOM, &[&digits(digest)?]);
        self.get(&with_query(&path, query)).await
    }

    /// Reads everything of images. The stream's one item is the answer.
    pub async fn verify_images(
        &self,
        request: &image::VerifyRequest,
    ) -> Result<Updates<image::VerifyReport>, ClientError> {
        for digest in &request.images {
            digits(digest)?;
        }
        self.stream(Method::POST, path::IMAGE_VERIFY, json(request)).await
    }

    /// The keys of images.
    pub async fn keys(&self) -> Result<key::KeyList, ClientError> {
        self.get(path::KEYS).await
    }

    /// Signs new images with a new key from now on.
    pub async fn rotate_key(&self) -> Result<key::KeyList, ClientError> {
        self.post(path::KEY_ROTATE, &()).await
    }

    /// Trusts a key no longer.
    pub async fn remove_key(&self, request: &key::KeyRequest) -> Result<key::KeyList, ClientError> {
        self.post(path::KEY_REMOVE, request).await
    }

    /// Bakes an image again elsewhere and compares. The stream's one item is the answer.
    pub async fn rebuild_image(&self, digest: &str) -> Result<Updates<image::RebuildView>, ClientError> {
        let path = path::fill(path::IMAGE_REBUILD, &[&digits(digest)?]);
        self.stream(Method::POST, &path, empty()).await
    }

    /// Instances.
    pub async fn instances(
        &self,
        query: &instance::InstanceQuery,
    ) -> Result<instance::InstanceList, ClientError> {
        self.get(&with_query(path::INSTANCES, query)).await
    }

    /// One instance, alive or gone.
    pub async fn instance(&self, id: &InstanceId) -> Result<instance::InstanceDetail, ClientError> {
        self.get(&path::fill(path::INSTANCE, &[id])).await
    }

    /// Log lines, oldest first.
    pub async fn logs(&self, query: &logs::LogQuery) -> Result<Updates<logs::LogLine>, ClientError> {
        self.stream(Method::GET, &with_query(path::LOGS, query), empty()).await
    }

    /// Why things are as they are.
    pub async fn why(&self, scope: &environment::Scope) -> Result<why::WhyView, ClientError> {
        self.get(&with_query(path::WHY, scope)).await
    }

    /// The ledger.
    pub async fn audit(&self, query: &audit::AuditQuery) -> Result<audit::AuditView, ClientError> {
        self.get(&with_query(path::AUDIT, query)).await
    }

    /// Checks the ledger's chain.
    pub async fn verify_audit(&self) -> Result<audit::VerifyView, ClientError> {
        self.get(path::AUDIT_VERIFY).await
    }

    /// Resolves a kiln.toml. The stream's one item is the answer.
    pub async fn lock(&self, request: &lock::LockRequest) -> Result<Updates<lock::LockView>, ClientError> {
        self.stream(Method::POST, path::LOCK, json(request)).await
    }

    /// Bakes the images of a commit. The stream's one item is the answer.
    pub async fn bake(&self, request: &bake::BakeRequest) -> Result<Updates<bake::BakeView>, ClientError> {
        self.stream(Method::POST, path::BAKE, json(request)).await
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.call(Method::GET, path, empty(), ANSWER_TIMEOUT).await
    }

    async fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T, ClientError> {
        self.call(Method::POST, path, json(body), ANSWER_TIMEOUT).await
    }

    async fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: OutBody,
        limit: Duration,
    ) -> Result<T, ClientError> {
        let exchange = async {
            let response = self.send(method, path, body).await?;
            let status = response.status();
            let bytes = self.read_all(path, response).await?;
            if status.is_success() {
                return serde_json::from_slice(&bytes)
                    .map_err(|e| ClientError::Protocol { path: path.to_owned(), detail: e.to_string() });
            }
            Err(refused(path, status, &bytes))
        };
        timeout(limit, exchange).await.map_err(|elapsed| self.lost(elapsed))?
    }

    async fn stream<T>(&self, method: Method, path: &str, body: OutBody) -> Result<Updates<T>, ClientError> {
        let sent = self.send(method, path, body);
        let response = timeout(ANSWER_TIMEOUT, sent).await.map_err(|elapsed| self.lost(elapsed))??;
        let status = response.status();
        if !status.is_success() {
            let bytes = self.read_all(path, response).await?;
            return Err(refused(path, status, &bytes));
        }
        Ok(Updates {
            client: self.clone(),
            path: path.to_owned(),
            body: response.into_body(),
            buffer: BytesMut::new(),
            item: PhantomData,
        })
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: OutBody,
    ) -> Result<Response<Incoming>, ClientError> {
        use std::io::ErrorKind;
        let stream = UnixStream::connect(self.address.path()).await.map_err(|source| {
            let address = self.address.clone();
            match source.kind() {
                ErrorKind::PermissionDenied => ClientError::NotAllowed { address, source },
                _ => ClientError::NoServer { address, source },
            }
        })?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| self.lost(e))?;
        // Ends with the request: the sender and the body that keep it alive belong to the caller.
        tokio::spawn(connection);
        let key = self.key.iter().filter(|_| method == Method::POST);
        let request = key.fold(Request::builder(), |request, key| request.header(IDEMPOTENCY_KEY, key));
        let request = request
            .method(method)
            .uri(path)
            .header(http::header::HOST, "kiln")
            .header(http::header::CONTENT_TYPE, "application/json")
            .body(body)
            .map_err(|e| ClientError::Protocol { path: path.to_owned(), detail: e.to_string() })?;
        sender.send_request(request).await.map_err(|error| self.lost(error))
    }

    async fn read_all(&self, path: &str, response: Response<Incoming>) -> Result<Bytes, ClientError> {
        let body = Limited::new(response.into_body(), limits::JSON_BYTES_MAX).collect().await;
        body.map(http_body_util::Collected::to_bytes).map_err(|source| {
            if source.is::<http_body_util::LengthLimitError>() {
                let detail = format!("it is larger than {} bytes", limits::JSON_BYTES_MAX);
                return ClientError::Protocol { path: path.to_owned(), detail };
            }
            ClientError::Lost { address: self.address.clone(), source }
        })
    }

    fn lost(&self, source: impl std::error::Error + Send + Sync + 'static) -> ClientError {
        ClientError::Lost { address: self.address.clone(), source: Box::new(source) }
    }
}

/// The digits of an image's digest or of its beginning, lower case.
fn digits(digest: &str) -> Result<String, ClientError> {
    let hex = digest.strip_prefix("sha256:").unwrap_or(digest);
    if (4..=64).contains(&hex.len()) && hex.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Ok(hex.to_ascii_lowercase());
    }
    let message = format!("`{digest}` is not the beginning of an image digest");
    let hint = Some("give at least 4 hexadecimal digits, as `kiln image list` shows them".into());
    Err(ClientError::Server(Box::new(WireError::new(Code::Usage, message, hint))))
}

fn refused(path: &str, status: StatusCode, bytes: &[u8]) -> ClientError {
    match serde_json::from_slice::<ErrorBody>(bytes) {
        Ok(body) => ClientError::Server(Box::new(body.error)),
        Err(_) => ClientError::Protocol { path: path.to_owned(), detail: format!("status {status}") },
    }
}

fn empty() -> OutBody {
    Empty::new().map_err(|never| match never {}).boxed()
}

fn json(value: &impl Serialize) -> OutBody {
    // Requests are plain structs of strings, numbers and maps with string keys: they always serialise.
    let bytes = serde_json::to_vec(value).unwrap_or_default();
    Full::new(Bytes::from(bytes)).map_err(|never| match never {}).boxed()
}

/// `path?a=b` of the fields of a flat struct; fields that are absent or false are left out.
fn with_query(path: &str, query: &impl Serialize) -> String {
    let mut out = path.to_owned();
    let fields = serde_json::to_value(query).ok();
    for (name, value) in fields.iter().filter_map(serde_json::Value::as_object).flatten() {
        let text = match value {
            serde_json::Value::String(text) => text.clone(),
            serde_json::Value::Null | serde_json::Value::Bool(false) => continue,
            other => other.to_string(),
        };
        out.push(if out.contains('?') { '&' } else { '?' });
        out.push_str(name);
        out.push('=');
        for byte in text.bytes() {
            match byte {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' => out.push(char::from(byte)),
                other => out.push_str(&format!("%{other:02X}")),
            }
        }
    }
    out
}

/// The lines of a streamed answer.
#[derive(Debug)]
pub struct Updates<T> {
    client: Client,
    path: String,
    body: Incoming,
    buffer: BytesMut,
    item: PhantomData<fn() -> T>,
}

impl<T: DeserializeOwned> Updates<T> {
    /// The next line but [`Update::Alive`]; none at the end. An [`Update::Error`] comes as an error.
    pub async fn next(&mut self) -> Result<Option<Update<T>>, ClientError> {
        loop {
            if let Some(end) = self.buffer.iter().position(|b| *b == b'\n') {
                let line = self.buffer.split_to(end);
                self.buffer.advance(1);
                match serde_json::from_slice(&line) {
                    Ok(Update::Alive) => continue,
                    Ok(Update::Error(error)) => return Err(ClientError::Server(Box::new(error))),
                    Ok(update) => return Ok(Some(update)),
                    Err(error) => return Err(self.misunderstood(error.to_string())),
                }
            }
            if self.buffer.len() > limits::JSON_BYTES_MAX {
                return Err(self.misunderstood("a line is too long".into()));
            }
            match timeout(SILENCE_MAX, self.body.frame()).await {
                Err(elapsed) => return Err(self.client.lost(elapsed)),
                Ok(Some(Err(error))) => return Err(self.client.lost(error)),
                Ok(None) if self.buffer.is_empty() => return Ok(None),
                Ok(None) => return Err(self.misunderstood("the last line is not whole".into())),
                Ok(Some(Ok(frame))) => {
                    if let Some(data) = frame.data_ref() {
                        self.buffer.extend_from_slice(data);
                    }
                }
            }
        }
    }

    /// The one answer of a stream that has one, after its progress lines.
    pub async fn answer(mut self, mut progress: impl FnMut(&str)) -> Result<T, ClientError> {
        while let Some(update) = self.next().await? {
            match update {
                Update::Progress(text) => progress(&text),
                Update::Item(item) => return Ok(item),
                Update::Alive | Update::Error(_) => {}
            }
        }
        Err(self.client.lost(std::io::Error::from(std::io::ErrorKind::UnexpectedEof)))
    }

    fn misunderstood(&self, detail: String) -> ClientError {
        ClientError::Protocol { path: self.path.clone(), detail }
    }
}

/// A large answer, in pieces.
#[derive(Debug)]
pub struct Download {
    client: Client,
    body: Incoming,
}

impl Download {
    /// The next piece; none at the end. An answer that broke off is an error.
    pub async fn next(&mut self) -> Result<Option<Bytes>, ClientError> {
        loop {
            match timeout(SILENCE_MAX, self.body.frame()).await {
                Err(elapsed) => return Err(self.client.lost(elapsed)),
                Ok(Some(Err(error))) => return Err(self.client.lost(error)),
                Ok(None) => return Ok(None),
                Ok(Some(Ok(frame))) => {
                    if let Ok(data) = frame.into_data() {
                        return Ok(Some(data));
                    }
                }
            }
        }
    }
}

/// A body that a thread reads from a file or a pipe as fast as the server takes it.
struct Upload(mpsc::Receiver<std::io::Result<Bytes>>);

impl Upload {
    fn start(mut source: impl Read + Send + 'static) -> Self {
        let (sender, receiver) = mpsc::channel(4);
        std::thread::spawn(move || {
            let mut chunk = vec![0; CHUNK];
            loop {
                let read = match source.read(&mut chunk) {
                    Ok(0) => return,
                    Ok(n) => Ok(Bytes::copy_from_slice(&chunk[..n])),
                    Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                    Err(error) => Err(error),
                };
                let failed = read.is_err();
                if sender.blocking_send(read).is_err() || failed {
                    return;
                }
            }
        });
        Self(receiver)
    }
}

impl Body for Upload {
    type Data = Bytes;
    type Error = std::io::Error;
    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, std::io::Error>>> {
        self.0.poll_recv(context).map(|next| next.map(|chunk| chunk.map(Frame::data)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_escaped_and_sparse() {
        let query = logs::LogQuery {
            grep: Some("a b&c=ü".into()),
            release: Some(ReleaseNumber(4)),
            follow: true,
            ..Default::default()
        };
        assert_eq!(with_query(path::LOGS, &query), "/v1/logs?follow=true&grep=a%20b%26c%3D%C3%BC&release=4");
        assert_eq!(with_query(path::LOGS, &logs::LogQuery::default()), "/v1/logs");
    }
}
