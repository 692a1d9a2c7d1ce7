//! Requests to a registry: again where it makes sense, and with proof of who asks where that is wanted.

use std::fs;
use std::io::{self, Read};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ureq::http::{self, HeaderMap, Response};
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig, parse_pem};
use ureq::{Agent, Body, SendBody};

use super::auth::{self, Challenge, Token};
use super::credentials::{self, Credentials};
use super::{Options, Patience, RegistryError};

/// Where docker's own registry is.
const DOCKER_HUB: (&str, &str) = ("docker.io", "registry-1.docker.io");
/// The longest pause, whatever the registry asks for.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// How much of an error's text is read.
const ERROR_LIMIT: u64 = 64 << 10;

/// What is sent along.
pub(super) enum Payload {
    None,
    Bytes(Vec<u8>),
    /// A file's contents, from its beginning, with their length.
    File(fs::File, u64),
}

/// A request; the path is that below `/v2/`, or a whole URL.
pub(super) struct Request {
    pub(super) method: &'static str,
    pub(super) path: String,
    pub(super) headers: Vec<(&'static str, String)>,
    pub(super) payload: Payload,
}

impl Request {
    pub(super) fn new(method: &'static str, path: impl Into<String>) -> Self {
        Self { method, path: path.into(), headers: Vec::new(), payload: Payload::None }
    }

    pub(super) fn get(path: impl Into<String>) -> Self {
        Self::new("GET", path)
    }

    pub(super) fn header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    pub(super) fn payload(mut self, payload: Payload) -> Self {
        self.payload = payload;
        self
    }
}

/// Connections to one registry.
#[derive(Debug)]
pub(super) struct Connection {
    agent: Agent,
    registry: String,
    /// Scheme and host.
    base: String,
    credentials: Option<Credentials>,
    /// The header `Authorization`, once the registry has said what it wants.
    authorization: Mutex<Option<String>>,
    patience: Patience,
}

impl Connection {
    pub(super) fn new(registry: &str, options: &Options) -> Result<Self, RegistryError> {
        let credentials = match &options.credentials {
            Some(credentials) => Some(credentials.clone()),
            None => credentials::find(registry)?,
        };
        let host = if registry == DOCKER_HUB.0 { DOCKER_HUB.1 } else { registry };
        let mut connection = Self {
            agent: agent(None, options.patience),
            registry: registry.to_owned(),
            base: format!("http://{host}"),
            credentials,
            authorization: Mutex::new(None),
            patience: options.patience,
        };
        if !(is_this_machine(host) && options.tls_ca.is_empty() && connection.speaks_plain()) {
            connection.base = format!("https://{host}");
            connection.agent = agent(Some(roots(options)?), options.patience);
        }
        Ok(connection)
    }

    /// Whether the registry takes requests without TLS.
    fn speaks_plain(&self) -> bool {
        let answer = self.agent.get(format!("{}/v2/", self.base)).call();
        answer.is_ok_and(|answer| matches!(answer.status().as_u16(), 200..=299 | 401 | 403 | 404 | 429 | 500..))
    }

    /// Makes a request, and returns an answer of success.
    pub(super) fn request(&self, action: &'static str, request: &Request) -> Result<Response<Body>, RegistryError> {
        let answer = self.request_any(action, request)?;
        if answer.status().is_success() { Ok(answer) } else { Err(self.failure(action, request, answer)) }
    }

    /// Makes a request, and returns any answer that another attempt would not change.
    pub(super) fn request_any(&self, action: &'static str, request: &Request) -> Result<Response<Body>, RegistryError> {
        let mut asked = false;
        let mut attempt = 1;
        loop {
            let pause = match self.send(request) {
                Ok(answer) if answer.status() == 401 && !asked => {
                    asked = true;
                    if self.authenticate(&answer)? {
                        continue;
                    }
                    return Ok(answer);
                }
                Ok(answer) if attempt < self.attempts() && may_pass(answer.status().as_u16()) => {
                    retry_after(answer.headers())
                }
                Ok(answer) => return Ok(answer),
                Err(error) if attempt < self.attempts() && is_temporary(&error) => {
                    log::info!("{}: {error}; another attempt follows", self.url(&request.path));
                    None
                }
                Err(source) => {
                    let url = self.url(&request.path);
                    return Err(RegistryError::Connection { action, url, source: Box::new(source) });
                }
            };
            self.pause(attempt, pause);
            attempt += 1;
        }
    }

    /// Waits before another attempt.
    pub(super) fn pause(&self, attempt: u32, asked_for: Option<Duration>) {
        let usual = self.patience.pause.saturating_mul(1 << (attempt - 1).min(10));
        std::thread::sleep(asked_for.unwrap_or(usual).min(LONGEST_PAUSE));
    }

    /// How often something is attempted.
    pub(super) const fn attempts(&self) -> u32 {
        self.patience.attempts
    }

    pub(super) fn url(&self, path: &str) -> String {
        if path.contains("://") { path.to_owned() } else { format!("{}/v2/{path}", self.base) }
    }

    /// A URL that the registry has named, which may be without a host.
    pub(super) fn absolute(&self, location: &str) -> String {
        if location.contains("://") { location.to_owned() } else { format!("{}{location}", self.base) }
    }

    fn send(&self, request: &Request) -> Result<Response<Body>, ureq::Error> {
        let url = self.url(&request.path);
        let mut builder = http::Request::builder().method(request.method).uri(&url);
        for (name, value) in &request.headers {
            builder = builder.header(*name, value);
        }
        let authorization = self.authorization.lock().unwrap_or_else(PoisonError::into_inner).clone();
        // Uploads may go elsewhere, where nobody needs to know.
        if let Some(value) = authorization.filter(|_| url.starts_with(&format!("{}/", self.base))) {
            builder = builder.header("authorization", value);
        }
        match &request.payload {
            Payload::None if matches!(request.method, "POST" | "PUT" | "PATCH") => {
                self.agent.run(builder.body(&[][..])?)
            }
            Payload::None => self.agent.run(builder.body(())?),
            Payload::Bytes(bytes) => self.agent.run(builder.body(&bytes[..])?),
            Payload::File(file, length) => {
                let mut reader = FromStart { file, at: 0 };
                let body = SendBody::from_reader(&mut reader);
                self.agent.run(builder.header("content-length", *length).body(body)?)
            }
        }
    }

    /// Finds out what to answer to a challenge; `false` where nothing better is known than what was sent.
    fn authenticate(&self, answer: &Response<Body>) -> Result<bool, RegistryError> {
        let headers = answer.headers().get_all("www-authenticate").iter();
        let challenges: Vec<_> = headers.filter_map(|value| Challenge::parse(value.to_str().ok()?)).collect();
        let bearer = challenges.iter().find(|challenge| matches!(challenge, Challenge::Bearer { .. }));
        let value = match (bearer.or(challenges.first()), &self.credentials) {
            (Some(Challenge::Bearer { realm, service, scope }), _) => {
                format!("Bearer {}", self.token(realm, service.as_deref(), scope.as_deref())?)
            }
            (Some(Challenge::Basic), Some(credentials)) => auth::basic(credentials),
            _ => return Ok(false),
        };
        *self.authorization.lock().unwrap_or_else(PoisonError::into_inner) = Some(value);
        Ok(true)
    }

    fn token(&self, realm: &str, service: Option<&str>, scope: Option<&str>) -> Result<String, RegistryError> {
        let wrong = |problem: &str| RegistryError::Answer { url: realm.to_owned(), problem: problem.to_owned() };
        // Who asks must not be told to those who listen.
        let is_near = |realm: &http::Uri| realm.host().is_some_and(is_this_machine);
        if !realm.starts_with("https://") && !realm.parse().is_ok_and(|realm| is_near(&realm)) {
            return Err(wrong("asks to log in without TLS, which amphi does not do"));
        }
        let identity = self.credentials.as_ref().filter(|credentials| credentials.user.is_empty());
        let mut query: Vec<(&str, &str)> = Vec::new();
        query.extend(service.map(|service| ("service", service)));
        for scope in scope.into_iter().flat_map(|scope| scope.split(' ')) {
            query.push(("scope", scope));
        }
        if let Some(identity) = identity {
            query.extend([
                ("grant_type", "refresh_token"),
                ("client_id", "amphi"),
                ("refresh_token", &identity.password),
            ]);
        }
        let query: Vec<_> = query.iter().map(|(name, value)| format!("{name}={}", auth::escape(value))).collect();
        let query = query.join("&");
        let mut attempt = 1;
        let answer = loop {
            let sent = if identity.is_some() {
                self.agent.post(realm).header("content-type", "application/x-www-form-urlencoded").send(&query[..])
            } else {
                let separator = if realm.contains('?') { '&' } else { '?' };
                let mut request = self.agent.get(format!("{realm}{separator}{query}"));
                if let Some(credentials) = &self.credentials {
                    request = request.header("authorization", auth::basic(credentials));
                }
                request.call()
            };
            match sent {
                Ok(answer) if attempt < self.attempts() && may_pass(answer.status().as_u16()) => {}
                Ok(answer) => break answer,
                Err(error) if attempt < self.attempts() && is_temporary(&error) => {}
                Err(source) => {
                    let source = Box::new(source);
                    return Err(RegistryError::Connection { action: "log in at", url: realm.to_owned(), source });
                }
            }
            self.pause(attempt, None);
            attempt += 1;
        };
        if !answer.status().is_success() {
            return Err(self.failure("log in at", &Request::get(realm), answer));
        }
        let mut text = String::new();
        let read = answer.into_body().into_reader().take(1 << 20).read_to_string(&mut text);
        read.map_err(|_| wrong("breaks off"))?;
        let token: Token = serde_json::from_str(&text).map_err(|_| wrong("is no token"))?;
        token.value().ok_or_else(|| wrong("is no token"))
    }

    /// The error that an answer stands for.
    pub(super) fn failure(&self, action: &'static str, request: &Request, answer: Response<Body>) -> RegistryError {
        let status = answer.status().as_u16();
        let message = message(answer);
        if status == 401 || status == 403 {
            let (registry, anonymous) = (self.registry.clone(), self.credentials.is_none());
            return RegistryError::Unauthorized { registry, anonymous, message };
        }
        RegistryError::Status { action, url: self.url(&request.path), status, message }
    }
}

/// Reads a file by position, so that it can be sent again.
struct FromStart<'a> {
    file: &'a fs::File,
    at: u64,
}

impl Read for FromStart<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let got = std::os::unix::fs::FileExt::read_at(self.file, buffer, self.at)?;
        self.at += got as u64;
        Ok(got)
    }
}

fn agent(roots: Option<RootCerts>, patience: Patience) -> Agent {
    let mut config = Agent::config_builder()
        .http_status_as_error(false)
        .user_agent(concat!("amphi/", env!("CARGO_PKG_VERSION")))
        .timeout_resolve(Some(patience.connect))
        .timeout_connect(Some(patience.connect))
        .timeout_per_read(Some(patience.silence))
        .timeout_per_write(Some(patience.silence))
        .timeout_recv_response(Some(patience.answer));
    if let Some(roots) = roots {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = TlsConfig::builder().root_certs(roots).unversioned_rustls_crypto_provider(provider);
        config = config.tls_config(tls.build());
    }
    config.build().new_agent()
}

/// The system's certificates and the given ones.
fn roots(options: &Options) -> Result<RootCerts, RegistryError> {
    let mut all = Vec::new();
    for path in &options.tls_ca {
        let failed = |source| RegistryError::Certificates { path: path.clone(), source };
        let bytes = fs::read(path).map_err(failed)?;
        let before = all.len();
        for item in parse_pem(&bytes) {
            if let PemItem::Certificate(certificate) = item.map_err(|error| failed(io::Error::other(error)))? {
                all.push(certificate);
            }
        }
        if all.len() == before {
            return Err(failed(io::Error::other("there is none in it")));
        }
    }
    let system = rustls_native_certs::load_native_certs();
    all.extend(system.certs.iter().map(|certificate| Certificate::from_der(certificate).to_owned()));
    Ok(RootCerts::new_with_certs(&all))
}

/// Whether the host is this machine, which is trusted without TLS.
fn is_this_machine(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if !port.contains(']') => name,
        _ => host,
    };
    let address = name.trim_start_matches('[').trim_end_matches(']');
    name == "localhost" || address.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

const fn may_pass(status: u16) -> bool {
    matches!(status, 408 | 429 | 500 | 502..=504)
}

fn is_temporary(error: &ureq::Error) -> bool {
    match error {
        ureq::Error::Io(error) => {
            !matches!(error.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::InvalidData)
        }
        ureq::Error::Timeout(_) | ureq::Error::Protocol(_) | ureq::Error::ConnectionFailed => true,
        _ => false,
    }
}

/// The pause that the registry asks for (RFC 9110, 10.2.3), where it counts in seconds.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    headers.get("retry-after")?.to_str().ok()?.trim().parse().ok().map(Duration::from_secs)
}

/// What a registry says about an error (distribution specification, "Error Codes"), for a message's end.
fn message(answer: Response<Body>) -> String {
    #[derive(serde::Deserialize)]
    struct Errors {
        #[serde(default)]
        errors: Vec<Error>,
    }
    #[derive(serde::Deserialize)]
    struct Error {
        #[serde(default)]
        code: String,
        #[serde(default)]
        message: String,
    }
    let mut bytes = Vec::new();
    if answer.into_body().into_reader().take(ERROR_LIMIT).read_to_end(&mut bytes).is_err() {
        return String::new();
    }
    let Ok(Errors { errors }) = serde_json::from_slice(&bytes) else { return String::new() };
    let Some(first) = errors.first() else { return String::new() };
    let text = if first.message.is_empty() { &first.code } else { &first.message };
    // What comes from elsewhere must not command the terminal.
    let text: String = text.chars().filter(|c| !c.is_control()).take(200).collect();
    if text.is_empty() { text } else { format!(": {text}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_is_known_by_its_names() {
        for host in ["localhost", "localhost:5000", "127.0.0.1:1", "127.1.2.3", "[::1]:5000"] {
            assert!(is_this_machine(host), "{host}");
        }
        for host in ["localhost.example", "example:80", "128.0.0.1", "[::2]:1"] {
            assert!(!is_this_machine(host), "{host}");
        }
    }
}
