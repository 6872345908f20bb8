//! A client of registries: the pulling half of the OCI distribution specification.
//!
//! Everything goes through [`Registry::send`], which answers a registry's challenge once (a token by the `Bearer` scheme,
//! or a password by `Basic`) and repeats the request. Pushing is the same call with [`Access::Push`] and a body:
//! `POST /v2/NAME/blobs/uploads/`, `PUT` of the blob to the `Location` of the answer, `PUT /v2/NAME/manifests/TAG`.
//!
//! A registry is asked by https, with the authorities that the host trusts. Plain http is used for the host itself
//! (`localhost`, 127.0.0.0/8, `[::1]`), and for those that the administrator lists as `plainHttp` in the file of
//! `kiln serve --registry-auth`. What comes is bounded by the size that its descriptor says, and verified by digest where
//! it is stored.

use super::manifest::{DOCUMENT_BYTES_MAX, Descriptor, MANIFEST_TYPES};
use serde::Deserialize;
use std::collections::{BTreeMap, HashMap};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use ureq::config::RedirectAuthHeaders;
use ureq::http::{HeaderMap, Response, StatusCode, header};
use ureq::tls::{RootCerts, TlsConfig};
use ureq::{Agent, Body, RequestExt, SendBody};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
const BODY_TIMEOUT: Duration = Duration::from_secs(900);
/// Bytes of a token, and of an error's text.
const TOKEN_BYTES_MAX: u64 = 256 << 10;
const ERROR_BYTES_MAX: u64 = 4 << 10;
/// Bytes of the file with the credentials.
const AUTH_BYTES_MAX: u64 = 1 << 20;
/// The authorities that Debian trusts.
const AUTHORITIES: &str = "/etc/ssl/certs/ca-certificates.crt";
/// Where the images of `docker.io` are, and under which name `docker login` keeps its password.
const DOCKER_HUB: (&str, &str, &str) = ("docker.io", "registry-1.docker.io", "https://index.docker.io/v1/");

/// A registry cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// The file of `--registry-auth`.
    #[error("cannot use the credentials in `{}`", path.display())]
    Credentials {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It cannot be reached, or answers with something that is no answer.
    #[error("cannot reach `{url}`")]
    Request {
        /// What was asked for.
        url: String,
        /// Why.
        #[source]
        source: Box<ureq::Error>,
    },
    /// The answer broke off, or cannot be written.
    #[error("cannot read `{url}`")]
    Read {
        /// What was asked for.
        url: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It wants credentials, or others.
    #[error("`{host}` does not let us into `{name}`")]
    Denied {
        /// The registry.
        host: String,
        /// The repository.
        name: String,
    },
    /// It does not have it.
    #[error("`{host}` has no `{what}`")]
    NotFound {
        /// The registry.
        host: String,
        /// What was asked for.
        what: String,
    },
    /// Another answer than expected.
    #[error("`{url}` answered with {status}{text}")]
    Status {
        /// What was asked for.
        url: String,
        /// The status.
        status: u16,
        /// What it said.
        text: String,
    },
    /// More than announced, or than allowed.
    #[error("`{url}` is larger than {limit} bytes")]
    TooLarge {
        /// What was asked for.
        url: String,
        /// The bound.
        limit: u64,
    },
    /// It wants a token from somewhere where no password may be sent.
    #[error("`{host}` asks for a token of `{realm}`, which is not https")]
    Realm {
        /// The registry.
        host: String,
        /// Where the token is.
        realm: String,
    },
}

impl RegistryError {
    /// What the user can do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Credentials { .. } => "it has to be a `config.json` as `docker login` writes it",
            Self::Denied { .. } => {
                "give the server credentials: `kiln serve --registry-auth FILE`, as `docker login` writes it"
            }
            Self::NotFound { .. } => "check name and tag of the base in kiln.toml",
            Self::Request { .. } | Self::Read { .. } => {
                "is the registry up, and can this host reach it? One without https has to be listed as `plainHttp` in the file \
                 of `kiln serve --registry-auth`"
            }
            _ => "try again; if it stays, ask those who run the registry",
        }
    }

    /// Whether it may work when it is tried again as it is.
    pub fn may_pass(&self) -> bool {
        match self {
            Self::Request { .. } | Self::Read { .. } => true,
            Self::Status { status, .. } => *status >= 500 || *status == 429,
            _ => false,
        }
    }
}

/// What is wanted of a repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Access {
    /// Reading.
    Pull,
    /// Reading and writing.
    Push,
}

/// A repository of a registry.
#[derive(Debug, Clone, Copy)]
pub struct Repository<'a> {
    /// The host, with a port if one is given.
    pub host: &'a str,
    /// The name in it.
    pub name: &'a str,
}

/// The file of `kiln serve --registry-auth`: Docker's `config.json`, with a list of kiln's own.
#[derive(Debug, Default, Deserialize)]
struct AuthFile {
    #[serde(default)]
    auths: BTreeMap<String, AuthEntry>,
    /// Hosts that are asked by plain http.
    #[serde(default, rename = "plainHttp")]
    plain_http: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
struct AuthEntry {
    /// Name and password in base64, as the `Basic` scheme has them.
    #[serde(default)]
    auth: String,
}

/// A client with its credentials and its tokens.
pub struct Registry {
    secure: Agent,
    plain: Agent,
    file: AuthFile,
    /// The header that a repository let us in with.
    let_in: Mutex<HashMap<(String, String, Access), String>>,
}

impl std::fmt::Debug for Registry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Registry").finish_non_exhaustive()
    }
}

impl Registry {
    /// A client with the credentials of `file`, if there is one.
    ///
    /// # Errors
    /// [`RegistryError::Credentials`].
    pub fn new(file: Option<&Path>) -> Result<Self, RegistryError> {
        let file = match file {
            None => AuthFile::default(),
            Some(path) => {
                let read = || -> io::Result<AuthFile> {
                    let mut text = String::new();
                    std::fs::File::open(path)?.take(AUTH_BYTES_MAX).read_to_string(&mut text)?;
                    // The text is not part of the error: it holds passwords.
                    serde_json::from_str(&text).map_err(|_| io::Error::other("it is not understood"))
                };
                read().map_err(|source| RegistryError::Credentials { path: path.to_owned(), source })?
            }
        };
        Ok(Self { secure: agent(true), plain: agent(false), file, let_in: Mutex::default() })
    }

    fn is_plain(&self, host: &str) -> bool {
        let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
        let own = name == "localhost"
            || name == "[::1]"
            || name.parse().is_ok_and(|ip: std::net::Ipv4Addr| ip.is_loopback());
        own || self.file.plain_http.iter().any(|plain| plain == host)
    }

    fn basic(&self, host: &str) -> Option<String> {
        let keys = [host, DOCKER_HUB.2];
        let keys = if host == DOCKER_HUB.0 { &keys[..] } else { &keys[..1] };
        let entry = keys.iter().find_map(|key| {
            let https = format!("https://{key}");
            self.file.auths.get(*key).or_else(|| self.file.auths.get(&https))
        })?;
        (!entry.auth.is_empty()).then(|| format!("Basic {}", entry.auth))
    }

    /// The address of something in a repository, such as `manifests/latest`.
    pub fn url(&self, repository: Repository<'_>, what: &str) -> String {
        let scheme = if self.is_plain(repository.host) { "http" } else { "https" };
        let host = if repository.host == DOCKER_HUB.0 { DOCKER_HUB.1 } else { repository.host };
        format!("{scheme}://{host}/v2/{}/{what}", repository.name)
    }

    /// Sends a request, and a second time with credentials if the registry asks for them; so `body` may be called twice.
    ///
    /// # Errors
    /// [`RegistryError`] if there is no answer or no access. Any other status is an answer.
    pub fn send(
        &self,
        repository: Repository<'_>,
        access: Access,
        request: &ureq::http::Request<()>,
        body: &dyn Fn() -> io::Result<SendBody<'static>>,
    ) -> Result<Response<Body>, RegistryError> {
        let url = request.uri().to_string();
        let key = (repository.host.to_owned(), repository.name.to_owned(), access);
        let plain = request.uri().scheme_str() == Some("http") && self.is_plain(repository.host);
        let agent = if plain { &self.plain } else { &self.secure };
        let once = |authorization: Option<&String>| {
            let body = body().map_err(|source| RegistryError::Read { url: url.clone(), source })?;
            let mut built = ureq::http::Request::builder().method(request.method()).uri(request.uri());
            for (name, value) in request.headers() {
                built = built.header(name, value);
            }
            if let Some(authorization) = authorization {
                built = built.header(header::AUTHORIZATION, authorization);
            }
            let failed = |source| RegistryError::Request { url: url.clone(), source: Box::new(source) };
            let built = built.body(body).map_err(|e| failed(e.into()))?;
            built.with_agent(agent).run().map_err(failed)
        };
        let known = self.let_in.lock().unwrap_or_else(PoisonError::into_inner).get(&key).cloned();
        let answer = once(known.as_ref())?;
        if answer.status() != StatusCode::UNAUTHORIZED {
            return Ok(answer);
        }
        let denied =
            || RegistryError::Denied { host: repository.host.to_owned(), name: repository.name.to_owned() };
        let authorization = self.authorization(repository, access, answer.headers())?.ok_or_else(denied)?;
        let answer = once(Some(&authorization))?;
        if matches!(answer.status(), StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) {
            return Err(denied());
        }
        self.let_in.lock().unwrap_or_else(PoisonError::into_inner).insert(key, authorization);
        Ok(answer)
    }

    /// What a challenge is answered with; none if nothing is known that would do.
    fn authorization(
        &self,
        repository: Repository<'_>,
        access: Access,
        headers: &HeaderMap,
    ) -> Result<Option<String>, RegistryError> {
        let challenges = headers.get_all(header::WWW_AUTHENTICATE).iter().filter_map(|v| v.to_str().ok());
        let basic = self.basic(repository.host);
        for challenge in challenges {
            let (scheme, rest) = challenge.split_once(' ').unwrap_or((challenge, ""));
            if scheme.eq_ignore_ascii_case("basic") && basic.is_some() {
                return Ok(basic);
            }
            if scheme.eq_ignore_ascii_case("bearer") {
                return self.token(repository, access, &parameters(rest), basic).map(Some);
            }
        }
        Ok(None)
    }

    fn token(
        &self,
        repository: Repository<'_>,
        access: Access,
        parameters: &BTreeMap<String, String>,
        basic: Option<String>,
    ) -> Result<String, RegistryError> {
        let host = repository.host.to_owned();
        let realm = parameters.get("realm").cloned().unwrap_or_default();
        // A password goes by plain http only to where its administrator allows it, whatever a registry says.
        let uri: Option<ureq::http::Uri> = realm.parse().ok();
        let at = uri.as_ref().and_then(|uri| {
            let port = uri.port_u16().map(|port| format!(":{port}")).unwrap_or_default();
            Some(format!("{}{port}", uri.host()?))
        });
        let plain = realm.starts_with("http://") && at.is_some_and(|host| self.is_plain(&host));
        if !plain && !realm.starts_with("https://") {
            return Err(RegistryError::Realm { host, realm });
        }
        let actions = if access == Access::Push { "pull,push" } else { "pull" };
        let agent = if plain { &self.plain } else { &self.secure };
        let mut request =
            agent.get(&realm).query("scope", format!("repository:{}:{actions}", repository.name));
        if let Some(service) = parameters.get("service") {
            request = request.query("service", service);
        }
        if let Some(basic) = basic {
            request = request.header(header::AUTHORIZATION, basic);
        }
        let answer = request.call();
        let answer =
            answer.map_err(|e| RegistryError::Request { url: realm.clone(), source: Box::new(e) })?;
        match answer.status().as_u16() {
            200 => {}
            401 | 403 => return Err(RegistryError::Denied { host, name: repository.name.to_owned() }),
            status => return Err(status_error(&realm, status, answer)),
        }
        let bytes = read_all(&realm, answer, TOKEN_BYTES_MAX)?;
        #[derive(Deserialize)]
        struct Token {
            token: Option<String>,
            access_token: Option<String>,
        }
        let token: Option<Token> = serde_json::from_slice(&bytes).ok();
        let token = token
            .and_then(|t| t.token.or(t.access_token))
            .filter(|t| t.bytes().all(|b| b.is_ascii_graphic()));
        let source = io::Error::other("the answer has no token");
        token.map(|t| format!("Bearer {t}")).ok_or(RegistryError::Read { url: realm, source })
    }

    fn get(
        &self,
        repository: Repository<'_>,
        what: &str,
        accept: Option<&str>,
    ) -> Result<Response<Body>, RegistryError> {
        let url = self.url(repository, what);
        let request = ureq::http::Request::get(&url);
        let request = accept.into_iter().fold(request, |r, accept| r.header(header::ACCEPT, accept));
        let request = request
            .body(())
            .map_err(|e| RegistryError::Request { url: url.clone(), source: Box::new(e.into()) })?;
        let answer = self.send(repository, Access::Pull, &request, &|| Ok(SendBody::none()))?;
        match answer.status() {
            StatusCode::OK => Ok(answer),
            _ => Err(unexpected(repository, &url, answer)),
        }
    }

    /// The bytes of the manifest or index with a tag or digest. The caller verifies a digest.
    ///
    /// # Errors
    /// [`RegistryError`].
    pub fn manifest(&self, repository: Repository<'_>, reference: &str) -> Result<Vec<u8>, RegistryError> {
        let what = format!("manifests/{reference}");
        let answer = self.get(repository, &what, Some(&MANIFEST_TYPES.join(", ")))?;
        read_all(&self.url(repository, &what), answer, DOCUMENT_BYTES_MAX)
    }

    /// Writes the bytes of a blob, no more than its descriptor says. The caller verifies the digest.
    ///
    /// # Errors
    /// [`RegistryError`]; what was written is then of no use.
    pub fn blob(
        &self,
        repository: Repository<'_>,
        blob: &Descriptor,
        out: &mut dyn Write,
    ) -> Result<(), RegistryError> {
        let what = format!("blobs/{}", blob.digest);
        let mut answer = self.get(repository, &what, None)?;
        let url = self.url(repository, &what);
        // One more, to notice that there is more.
        let mut body = answer.body_mut().as_reader().take(blob.size.saturating_add(1));
        let n =
            io::copy(&mut body, out).map_err(|source| RegistryError::Read { url: url.clone(), source })?;
        match n {
            n if n > blob.size => Err(RegistryError::TooLarge { url, limit: blob.size }),
            n if n < blob.size => {
                Err(RegistryError::Read { url, source: io::ErrorKind::UnexpectedEof.into() })
            }
            _ => Ok(()),
        }
    }
}

/// What an answer with another status than expected says.
pub(crate) fn unexpected(repository: Repository<'_>, url: &str, answer: Response<Body>) -> RegistryError {
    let host = repository.host.to_owned();
    match answer.status().as_u16() {
        401 | 403 => RegistryError::Denied { host, name: repository.name.into() },
        404 => {
            let what = url.split_once("/v2/").map_or(url, |(_, what)| what).to_owned();
            RegistryError::NotFound { host, what }
        }
        status => status_error(url, status, answer),
    }
}

fn agent(secure: bool) -> Agent {
    let mut config = Agent::config_builder()
        .user_agent(concat!("kiln/", env!("CARGO_PKG_VERSION")))
        .http_status_as_error(false)
        .https_only(secure)
        .timeout_connect(Some(CONNECT_TIMEOUT))
        .timeout_recv_response(Some(ANSWER_TIMEOUT))
        .timeout_recv_body(Some(BODY_TIMEOUT))
        .redirect_auth_headers(RedirectAuthHeaders::SameHost)
        .max_redirects(5);
    if secure {
        let pem = std::fs::read(AUTHORITIES).unwrap_or_default();
        let certificates: Vec<_> = ureq::tls::parse_pem(&pem)
            .filter_map(|item| match item {
                Ok(ureq::tls::PemItem::Certificate(certificate)) => Some(certificate),
                _ => None,
            })
            .collect();
        if !certificates.is_empty() {
            let roots = RootCerts::Specific(std::sync::Arc::new(certificates));
            config = config.tls_config(TlsConfig::builder().root_certs(roots).build());
        }
    } else {
        // Hosts of plain http are near.
        config = config.proxy(None);
    }
    config.build().into()
}

fn read_all(url: &str, mut answer: Response<Body>, limit: u64) -> Result<Vec<u8>, RegistryError> {
    let mut bytes = vec![];
    let read = answer.body_mut().as_reader().take(limit + 1).read_to_end(&mut bytes);
    read.map_err(|source| RegistryError::Read { url: url.to_owned(), source })?;
    if bytes.len() as u64 > limit {
        return Err(RegistryError::TooLarge { url: url.to_owned(), limit });
    }
    Ok(bytes)
}

fn status_error(url: &str, status: u16, mut answer: Response<Body>) -> RegistryError {
    let mut text = vec![];
    // What it said is a help, no more.
    let _ = answer.body_mut().as_reader().take(ERROR_BYTES_MAX).read_to_end(&mut text);
    let text: String = String::from_utf8_lossy(&text).chars().filter(|c| !c.is_control()).take(300).collect();
    let text = if text.is_empty() { text } else { format!(": {text}") };
    RegistryError::Status { url: url.to_owned(), status, text }
}

/// The parameters of a challenge: `realm="https://…",service="…"`.
fn parameters(text: &str) -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    let mut rest = text;
    while let Some((key, value)) = rest.split_once('=') {
        let key = key.trim_matches([' ', ',']).to_ascii_lowercase();
        let (value, after) = match value.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"').unwrap_or((quoted, "")),
            None => value.split_once(',').unwrap_or((value, "")),
        };
        all.insert(key, value.to_owned());
        rest = after;
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges_are_understood() {
        let all =
            parameters(r#"realm="https://a.test/token?x=1,2",service="r.test",scope=repository:a:pull"#);
        assert_eq!(all["realm"], "https://a.test/token?x=1,2");
        assert_eq!((all["service"].as_str(), all["scope"].as_str()), ("r.test", "repository:a:pull"));
        assert!(parameters("").is_empty());
    }

    #[test]
    fn only_the_host_itself_and_listed_ones_are_asked_by_plain_http() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("config.json");
        let text = r#"{"auths":{"a.test:5000":{"auth":"eDp5"},"https://index.docker.io/v1/":{"auth":"aDpo"}},"plainHttp":["a.test:5000"]}"#;
        std::fs::write(&file, text).unwrap();
        let registry = Registry::new(Some(&file)).unwrap();
        let url = |host: &str| registry.url(Repository { host, name: "x" }, "manifests/1");
        for plain in ["localhost:1", "127.0.0.1:5000", "[::1]:5000", "a.test:5000", "localhost"] {
            assert_eq!(url(plain), format!("http://{plain}/v2/x/manifests/1"));
        }
        for secure in ["a.test", "localhost.a.test", "10.0.0.1:5000", "127.0.0.1.a.test"] {
            assert_eq!(url(secure), format!("https://{secure}/v2/x/manifests/1"));
        }
        assert_eq!(url("docker.io"), "https://registry-1.docker.io/v2/x/manifests/1");
        assert_eq!(registry.basic("a.test:5000").unwrap(), "Basic eDp5");
        assert_eq!(registry.basic("docker.io").unwrap(), "Basic aDpo");
        assert_eq!(registry.basic("b.test"), None);
        std::fs::write(&file, "{secret").unwrap();
        let error = crate::worker::chain(&Registry::new(Some(&file)).unwrap_err());
        assert!(!error.contains("secret"), "{error}");
    }
}
