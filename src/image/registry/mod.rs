//! Images from and to registries, by the OCI distribution specification 1.1.

mod auth;
mod connection;
mod credentials;
mod pull;
mod push;

use std::io;
use std::path::PathBuf;
use std::time::Duration;

pub use credentials::{CredentialError, Credentials, logout, store_credentials};
pub use push::Pushed;

use connection::Connection;

use super::manifest::DocumentError;
use super::{Digest, ImageName, StoreError};

/// How to reach registries.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Files with certificates to trust beside the system's, in PEM.
    pub tls_ca: Vec<PathBuf>,
    /// Who to log in as; `None` looks in the files where programs keep that.
    pub credentials: Option<Credentials>,
    /// How long a registry may take.
    pub patience: Patience,
}

/// How long a registry may take before an attempt counts as failed, and how often it is attempted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// For a connection, and for the look-up of its address.
    pub connect: Duration,
    /// Between a request and the beginning of its answer: a registry may have a whole blob to check.
    pub answer: Duration,
    /// In which nothing comes, or nothing is taken, on a connection that is in use.
    pub silence: Duration,
    /// The first pause between two attempts; each further one is twice as long.
    pub pause: Duration,
    /// How often a request is made, if it fails in a way that may pass.
    pub attempts: u32,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(15),
            answer: Duration::from_secs(120),
            silence: Duration::from_secs(30),
            pause: Duration::from_millis(500),
            attempts: 5,
        }
    }
}

/// What happens on the way, for who shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// So many layers are to be moved, of so many bytes in all.
    Planned {
        /// The layers that are not where they are needed.
        layers: usize,
        /// Their bytes.
        bytes: u64,
    },
    /// Bytes have been moved.
    Moved(u64),
    /// Bytes have to be moved again.
    Lost(u64),
    /// A layer is there.
    Done,
}

/// Who is told what happens; from several threads at a time.
pub trait Progress: Sync {
    /// Takes note.
    fn report(&self, event: Event);
}

/// Nobody wants to know.
impl Progress for () {
    fn report(&self, _: Event) {}
}

/// Why an image cannot be pulled or pushed.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// The registry cannot be reached, or the connection breaks again and again.
    #[error("cannot {action} {url}")]
    Connection {
        /// What was attempted.
        action: &'static str,
        /// Where.
        url: String,
        /// What is in the way.
        source: Box<ureq::Error>,
    },
    /// The registry answers with an error.
    #[error("cannot {action} {url}: the registry answers {status}{message}")]
    Status {
        /// What was attempted.
        action: &'static str,
        /// Where.
        url: String,
        /// The status of HTTP.
        status: u16,
        /// What the registry says.
        message: String,
    },
    /// There is no such image.
    #[error("{name} is not in its registry, or not for this user{message}")]
    NotFound {
        /// The image.
        name: String,
        /// What the registry says.
        message: String,
    },
    /// The registry wants to know who asks.
    #[error("{registry} refuses {}{message}", if *.anonymous { "what nobody in particular asks for; log in with `amphi login`" } else { "this user, or this password" })]
    Unauthorized {
        /// The registry.
        registry: String,
        /// Whether nobody was named.
        anonymous: bool,
        /// What the registry says.
        message: String,
    },
    /// The registry answers with something that makes no sense.
    #[error("{url}: the registry's answer {problem}")]
    Answer {
        /// Where.
        url: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A manifest is not the one asked for.
    #[error("{name} is {found} in the registry, and {expected} was asked for")]
    WrongManifest {
        /// The image.
        name: String,
        /// What came.
        found: Digest,
        /// What was asked for.
        expected: Digest,
    },
    /// The image's documents cannot be used.
    #[error("cannot use {name}")]
    Document {
        /// The image.
        name: String,
        /// What is wrong.
        source: DocumentError,
    },
    /// The store cannot take the image, or does not have it.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The credentials cannot be found out.
    #[error(transparent)]
    Credentials(#[from] CredentialError),
    /// The certificates to trust cannot be read.
    #[error("cannot read certificates from {path}", path = path.display())]
    Certificates {
        /// The file.
        path: PathBuf,
        /// What is in the way.
        source: io::Error,
    },
    /// Only names with a tag can be pushed to.
    #[error("{0} names a digest, and a push needs a tag: give it a name with `amphi tag`")]
    PushToDigest(String),
}

/// Reads a header that asks to log in; for the fuzz targets.
#[cfg(fuzzing)]
pub(super) fn read_challenge(header: &str) {
    drop(auth::Challenge::parse(header));
}

/// A registry's client for one repository.
#[derive(Debug)]
pub struct Client {
    connection: Connection,
    name: ImageName,
}

impl Client {
    /// A client for the repository of `name`. Nothing is sent yet, but to a registry on this machine to see whether it
    /// speaks TLS.
    ///
    /// # Errors
    /// Certificates or credentials cannot be read.
    pub fn new(name: &ImageName, options: &Options) -> Result<Self, RegistryError> {
        Ok(Self { connection: Connection::new(name.registry(), options)?, name: name.clone() })
    }

    /// Checks that the registry takes the credentials.
    ///
    /// # Errors
    /// It does not, or cannot be reached.
    pub fn check_login(registry: &str, options: &Options) -> Result<(), RegistryError> {
        let connection = Connection::new(registry, options)?;
        connection.request("log in at", &connection::Request::get("")).map(drop)
    }

    fn path(&self, rest: &str) -> String {
        format!("{}/{rest}", self.name.repository())
    }
}
