//! The configuration of an image: how to run it, and what it is made of (OCI image specification, "Image Configuration").
//!
//! What amphi does not use itself is kept in `other`, so that an image made on top of another loses nothing.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::Digest;
use super::manifest::{DocumentError, Manifest, PLATFORM, check_length};

/// How an image is to be run, and what its layers are uncompressed.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Config {
    /// When it was made, as RFC 3339 writes times.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created: Option<String>,
    /// Who made it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub author: Option<String>,
    /// The processor.
    #[serde(default)]
    pub architecture: String,
    /// The operating system.
    #[serde(default)]
    pub os: String,
    /// How to run it.
    #[serde(default)]
    pub config: Option<Execution>,
    /// The layers.
    pub rootfs: RootfsLayers,
    /// How each layer came to be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub history: Option<Vec<History>>,
    /// What else it says.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// The uncompressed layers of an image.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct RootfsLayers {
    /// Always `layers`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The digests of the layers' archives, uncompressed, the lowest first.
    pub diff_ids: Vec<Digest>,
}

/// What to run, and how.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Execution {
    /// `NAME|UID[:GROUP|GID]`; empty is root.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Ports that the program serves, as `80/tcp`; the values are empty objects.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exposed_ports: Option<BTreeMap<String, Value>>,
    /// `KEY=VALUE`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub env: Option<Vec<String>>,
    /// The program, with arguments that the user's come after.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entrypoint: Option<Vec<String>>,
    /// The arguments, or where there is no entry point the command.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cmd: Option<Vec<String>>,
    /// Directories for data that is not part of the image; the values are empty objects.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volumes: Option<BTreeMap<String, Value>>,
    /// The working directory; empty is the top.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub working_dir: Option<String>,
    /// Remarks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub labels: Option<BTreeMap<String, String>>,
    /// The signal that asks the program to end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop_signal: Option<String>,
    /// What a Dockerfile's shell commands are given to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shell: Option<Vec<String>>,
    /// What else it says.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// How a layer, or a setting, came to be.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct History {
    /// When, as RFC 3339 writes times.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created: Option<String>,
    /// By which command.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created_by: Option<String>,
    /// By whom.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub author: Option<String>,
    /// A remark.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub comment: Option<String>,
    /// Whether it made no layer.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub empty_layer: bool,
}

impl Config {
    /// Reads the configuration of `manifest`.
    ///
    /// # Errors
    /// It is malformed, or says something else than the manifest.
    pub fn parse(bytes: &[u8], manifest: &Manifest) -> Result<Self, DocumentError> {
        check_length(bytes, "configuration")?;
        let config: Self =
            serde_json::from_slice(bytes).map_err(|source| DocumentError::Json { what: "configuration", source })?;
        let (layers, named) = (manifest.layers.len(), config.rootfs.diff_ids.len());
        if layers != named {
            let problem = format!("names {named} layers, the manifest {layers}");
            return Err(DocumentError::Wrong { what: "configuration", problem });
        }
        if (&*config.os, &*config.architecture) != PLATFORM {
            return Err(DocumentError::Platform { found: format!("{}/{}", config.os, config.architecture) });
        }
        Ok(config)
    }
}
