//! What a request must look like to be forwarded, and what the edge takes away and adds on both ways.

use crate::tap::Notes;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::uri::{Authority, Scheme};
use http::{Method, Request, StatusCode, Uri, Version, uri};
use std::borrow::Cow;
use std::net::SocketAddr;
use std::sync::atomic::Ordering;

pub(crate) static REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
static FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
static FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
static FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
pub(crate) static ERROR: HeaderName = HeaderName::from_static("x-kiln-error");
static KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
static PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");

/// Why a request is not forwarded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) status: StatusCode,
    pub(crate) reason: &'static str,
}

const fn bad(reason: &'static str) -> Refusal {
    Refusal { status: StatusCode::BAD_REQUEST, reason }
}

/// Refuses what could be understood in two ways by the edge and an instance.
pub(crate) fn check<B>(request: &Request<B>, notes: &Notes) -> Result<(), Refusal> {
    let headers = request.headers();
    if notes.ambiguous.load(Ordering::Relaxed) {
        return Err(bad("the length of the body is ambiguous"));
    }
    if matches!(*request.method(), Method::CONNECT | Method::TRACE) {
        return Err(Refusal { status: StatusCode::METHOD_NOT_ALLOWED, reason: "the method is not allowed" });
    }
    let lengths = headers.get_all(header::CONTENT_LENGTH).iter().count();
    let mut codings = headers.get_all(header::TRANSFER_ENCODING).iter();
    let coding = codings.next();
    if lengths > 1 || codings.next().is_some() || (coding.is_some() && lengths > 0) {
        return Err(bad("the length of the body is ambiguous"));
    }
    if coding.is_some_and(|c| !c.as_bytes().eq_ignore_ascii_case(b"chunked")) {
        return Err(Refusal {
            status: StatusCode::NOT_IMPLEMENTED,
            reason: "the transfer coding is not known",
        });
    }
    check_host(request)?;
    for token in tokens(headers, header::CONNECTION) {
        if protected(token) {
            return Err(bad("`Connection` names a field that must be forwarded"));
        }
    }
    Ok(())
}

fn check_host<B>(request: &Request<B>) -> Result<(), Refusal> {
    let mut hosts = request.headers().get_all(header::HOST).iter();
    let host = hosts.next();
    if hosts.next().is_some() {
        return Err(bad("there is more than one `Host`"));
    }
    let Some(host) = host else {
        return match request.version() {
            Version::HTTP_10 if request.uri().authority().is_none() => Ok(()),
            _ => Err(bad("there is no `Host`")),
        };
    };
    let legal = |b: &u8| b.is_ascii_alphanumeric() || b".-_:[]~".contains(b);
    if !host.as_bytes().iter().all(legal) {
        return Err(bad("`Host` is not a host"));
    }
    match request.uri().authority() {
        Some(a) if !a.as_str().as_bytes().eq_ignore_ascii_case(host.as_bytes()) => {
            Err(bad("`Host` is not the host of the request line"))
        }
        _ => Ok(()),
    }
}

/// Fields that a client must not have removed through `Connection`.
fn protected(token: &str) -> bool {
    // What every client sends.
    if token.eq_ignore_ascii_case("keep-alive") || token.eq_ignore_ascii_case("close") {
        return false;
    }
    let lower = token.to_ascii_lowercase();
    lower.starts_with("x-forwarded-")
        || lower.starts_with("x-kiln-")
        || [
            "host",
            "x-request-id",
            "forwarded",
            "x-real-ip",
            "content-length",
            "transfer-encoding",
            "content-type",
        ]
        .contains(&lower.as_str())
        || ["authorization", "cookie", "origin"].contains(&lower.as_str())
}

fn tokens(headers: &HeaderMap, name: HeaderName) -> impl Iterator<Item = &str> {
    let lines = headers.get_all(name).into_iter().filter_map(|v| v.to_str().ok());
    lines.flat_map(|line| line.split(',')).map(str::trim).filter(|t| !t.is_empty())
}

/// Host without port in lower case, as routes name it.
pub(crate) fn host(value: Option<&HeaderValue>) -> Cow<'_, str> {
    let value = value.and_then(|h| h.to_str().ok()).unwrap_or_default();
    let name = match value.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => value,
    };
    let name = name.trim_end_matches('.');
    if name.bytes().any(|b| b.is_ascii_uppercase()) { name.to_ascii_lowercase().into() } else { name.into() }
}

/// The protocol that a request wants to switch to, if the edge passes it on.
pub(crate) fn upgrade<B>(request: &Request<B>) -> Option<HeaderValue> {
    let headers = request.headers();
    let asked = tokens(headers, header::CONNECTION).any(|t| t.eq_ignore_ascii_case("upgrade"));
    let to = headers.get(header::UPGRADE)?;
    let plain = !to.as_bytes().to_ascii_lowercase().starts_with(b"h2c");
    let bodyless = !headers.contains_key(header::TRANSFER_ENCODING)
        && headers.get(header::CONTENT_LENGTH).is_none_or(|l| l.as_bytes() == b"0");
    let fits = request.version() == Version::HTTP_11 && request.method() == Method::GET;
    (asked && plain && bodyless && fits).then(|| to.clone())
}

/// Takes away what is between two neighbours only.
fn strip(headers: &mut HeaderMap) {
    if headers.contains_key(header::CONNECTION) {
        let named: Vec<HeaderName> = tokens(headers, header::CONNECTION)
            .filter_map(|t| HeaderName::from_bytes(t.as_bytes()).ok())
            .collect();
        for name in named {
            if name != header::TE && name != header::CONTENT_LENGTH && name != header::TRANSFER_ENCODING {
                headers.remove(name);
            }
        }
        headers.remove(header::CONNECTION);
    }
    for name in [&KEEP_ALIVE, &PROXY_CONNECTION, &header::UPGRADE] {
        headers.remove(name);
    }
}

/// What the edge knows of a request's way to it, for the instance.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Origin<'a> {
    pub(crate) peer: &'a HeaderValue,
    /// Whether it came over TLS.
    pub(crate) secure: bool,
    pub(crate) id: &'a HeaderValue,
}

/// Makes the head that the instance gets.
pub(crate) fn outward(parts: &mut http::request::Parts, origin: Origin<'_>, upgrade: Option<HeaderValue>) {
    let headers = &mut parts.headers;
    strip(headers);
    if parts.version == Version::HTTP_2 {
        join_cookies(headers);
    }
    let trailers = tokens(headers, header::TE).any(|t| t.eq_ignore_ascii_case("trailers"));
    if headers.remove(header::TE).is_some() && trailers {
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
        headers.insert(header::CONNECTION, HeaderValue::from_static("te"));
    }
    headers.remove(header::FORWARDED);
    headers.remove("x-real-ip");
    headers.insert(REQUEST_ID.clone(), origin.id.clone());
    headers.insert(FORWARDED_FOR.clone(), origin.peer.clone());
    let scheme = if origin.secure { "https" } else { "http" };
    headers.insert(FORWARDED_PROTO.clone(), HeaderValue::from_static(scheme));
    match headers.get(header::HOST).cloned() {
        Some(host) => headers.insert(FORWARDED_HOST.clone(), host),
        None => headers.remove(&FORWARDED_HOST),
    };
    if let Some(to) = upgrade {
        headers.insert(header::UPGRADE, to);
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    }
    if parts.uri.authority().is_some() {
        parts.uri = origin_form(&parts.uri);
    }
    parts.version = Version::HTTP_11;
    parts.extensions.clear();
}

/// HTTP/2 may send each cookie in a field of its own, HTTP/1 must not (RFC 9113, section 8.2.3).
fn join_cookies(headers: &mut HeaderMap) {
    if headers.get_all(header::COOKIE).iter().nth(1).is_none() {
        return;
    }
    let crumbs: Vec<&[u8]> = headers.get_all(header::COOKIE).iter().map(HeaderValue::as_bytes).collect();
    // Cannot fail: each of them is a value.
    if let Ok(joined) = HeaderValue::from_bytes(&crumbs.join(&b"; "[..])) {
        headers.insert(header::COOKIE, joined);
    }
}

/// HTTP/2 names the host in `:authority`. Whatever comes behind the gate looks for it in `Host`.
pub(crate) fn name_host<B>(request: &mut Request<B>) {
    if request.version() == Version::HTTP_2
        && !request.headers().contains_key(header::HOST)
        && let Some(authority) = request.uri().authority()
        && let Ok(host) = HeaderValue::from_str(authority.as_str())
    {
        request.headers_mut().insert(header::HOST, host);
    }
}

/// Makes a head that an instance can get by HTTP/2 of one that it could get by HTTP/1. `address` is whom it asks if it names no host.
pub(crate) fn as_h2<B>(request: &mut Request<B>, address: SocketAddr) {
    let headers = request.headers_mut();
    for name in [&header::CONNECTION, &header::TRANSFER_ENCODING, &header::UPGRADE] {
        headers.remove(name);
    }
    let host = headers.remove(header::HOST);
    *request.version_mut() = Version::HTTP_2;
    if request.uri().authority().is_some() {
        // It has been made one before.
        return;
    }
    let host = host.and_then(|host| Authority::try_from(host.as_bytes()).ok());
    let host = host.or_else(|| Authority::try_from(address.to_string()).ok());
    let mut parts = request.uri().clone().into_parts();
    (parts.scheme, parts.authority) = (Some(Scheme::HTTP), host);
    // Cannot fail: all three parts are there. `*` of OPTIONS is a path to it, too.
    if let Ok(uri) = Uri::from_parts(parts) {
        *request.uri_mut() = uri;
    }
}

fn origin_form(uri: &Uri) -> Uri {
    let path = uri.path_and_query().cloned().unwrap_or_else(|| uri::PathAndQuery::from_static("/"));
    Uri::from(path)
}

/// Makes the head that the client gets.
pub(crate) fn inward(parts: &mut http::response::Parts, switching: bool) {
    let to = switching.then(|| parts.headers.get(header::UPGRADE).cloned()).flatten();
    strip(&mut parts.headers);
    if parts.headers.remove(header::TRANSFER_ENCODING).is_some() {
        // The coding wins, as it did when the body was read.
        parts.headers.remove(header::CONTENT_LENGTH);
    }
    // Only the edge may say that the edge failed.
    parts.headers.remove(&ERROR);
    if switching {
        parts.headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        if let Some(to) = to {
            parts.headers.insert(header::UPGRADE, to);
        }
    }
    parts.version = Version::HTTP_11;
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Method, target, fields.
    type Head = (&'static str, &'static str, &'static [(&'static str, &'static str)]);

    fn request(method: &str, uri: &str, headers: &[(&str, &str)]) -> Request<()> {
        let mut builder = Request::builder().method(method).uri(uri).version(Version::HTTP_11);
        for (name, value) in headers {
            builder = builder.header(*name, *value);
        }
        builder.body(()).unwrap()
    }

    #[test]
    fn the_gate_refuses_what_is_ambiguous() {
        let good: [Head; 5] = [
            ("GET", "/", &[("host", "a:80")]),
            ("GET", "http://a/x", &[("host", "A")]),
            ("POST", "/", &[("host", "a"), ("transfer-encoding", "Chunked")]),
            ("GET", "/", &[("host", "[::1]:80"), ("connection", "close, x-mine")]),
            ("OPTIONS", "*", &[("host", "a")]),
        ];
        for (method, uri, headers) in good {
            assert_eq!(
                check(&request(method, uri, headers), &Notes::default()),
                Ok(()),
                "{method} {uri} {headers:?}"
            );
        }
        let wrong: [Head; 9] = [
            ("GET", "/", &[]),
            ("GET", "/", &[("host", "a"), ("host", "a")]),
            ("GET", "http://b/", &[("host", "a")]),
            ("GET", "/", &[("host", "a@b")]),
            ("TRACE", "/", &[("host", "a")]),
            ("POST", "/", &[("host", "a"), ("transfer-encoding", "chunked"), ("content-length", "1")]),
            ("POST", "/", &[("host", "a"), ("transfer-encoding", "xchunked")]),
            (
                "POST",
                "/",
                &[("host", "a"), ("transfer-encoding", "chunked"), ("transfer-encoding", "chunked")],
            ),
            ("GET", "/", &[("host", "a"), ("connection", "close, X-Forwarded-For")]),
        ];
        for (method, uri, headers) in wrong {
            assert!(
                check(&request(method, uri, headers), &Notes::default()).is_err(),
                "{method} {uri} {headers:?}"
            );
        }
    }

    #[test]
    fn neighbours_fields_go_and_the_edges_own_replace_forged_ones() {
        let forged = request(
            "GET",
            "/",
            &[
                ("host", "Shop.test"),
                ("connection", "close, x-mine"),
                ("x-mine", "1"),
                ("keep-alive", "5"),
                ("upgrade", "h2c"),
                ("x-forwarded-for", "6.6.6.6"),
                ("x-forwarded-for", "7.7.7.7"),
                ("x-request-id", "forged"),
                ("forwarded", "for=6.6.6.6"),
            ],
        );
        assert_eq!(host(forged.headers().get("host")), "shop.test");
        let (mut parts, ()) = forged.into_parts();
        let (peer, id) = (HeaderValue::from_static("10.0.0.1"), HeaderValue::from_static("id"));
        outward(&mut parts, Origin { peer: &peer, secure: true, id: &id }, None);
        for gone in ["connection", "x-mine", "keep-alive", "upgrade", "forwarded"] {
            assert!(!parts.headers.contains_key(gone), "{gone}");
        }
        let all: Vec<_> = parts.headers.get_all("x-forwarded-for").iter().collect();
        assert_eq!(all, ["10.0.0.1"]);
        assert_eq!(parts.headers["x-request-id"], "id");
        assert_eq!(parts.headers["x-forwarded-proto"], "https");
        assert_eq!(parts.headers["x-forwarded-host"], "Shop.test");
    }

    #[test]
    fn what_only_http2_does_becomes_what_http1_does() {
        let mut request = request("GET", "https://Shop.test/x?y", &[("cookie", "a=1"), ("cookie", "b=2")]);
        *request.version_mut() = Version::HTTP_2;
        name_host(&mut request);
        assert_eq!(check(&request, &Notes::default()), Ok(()));
        let (mut parts, ()) = request.into_parts();
        let value = HeaderValue::from_static("v");
        outward(&mut parts, Origin { peer: &value, secure: false, id: &value }, None);
        assert_eq!(parts.uri, "/x?y");
        let all = |name: &str| parts.headers.get_all(name).iter().cloned().collect::<Vec<_>>();
        assert_eq!(
            (all("host"), all("cookie")),
            (vec!["Shop.test".parse().unwrap()], vec!["a=1; b=2".parse().unwrap()])
        );
    }
}
