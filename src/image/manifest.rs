//! The documents that images are described by: descriptors, indexes, manifests and configurations.
//!
//! OCI image specification 1.1, and the docker formats ("Image Manifest Version 2, Schema 2") that it came from, which
//! differ in their media types only. What is not needed here is ignored, and kept, as the documents are stored as they came.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub use super::config::{Config, Execution, History, RootfsLayers};

use super::Digest;

/// The longest index, manifest or configuration that is read, in bytes. Registries take manifests of up to 4 MiB.
pub const DOCUMENT_LIMIT: u64 = 4 << 20;
/// The most layers of an image.
pub const LAYER_LIMIT: usize = 512;

/// Media types of an index: OCI's and docker's.
pub const INDEX_TYPES: [&str; 2] =
    ["application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json"];
/// Media types of a manifest: OCI's and docker's.
pub const MANIFEST_TYPES: [&str; 2] =
    ["application/vnd.oci.image.manifest.v1+json", "application/vnd.docker.distribution.manifest.v2+json"];
/// Media types of a configuration: OCI's and docker's.
pub(super) const CONFIG_TYPES: [&str; 2] =
    ["application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json"];
/// What the media types of layers begin with; the compression, which follows, is seen from the layer itself.
const LAYER_TYPES: [&str; 3] = [
    "application/vnd.oci.image.layer.v1.tar",
    "application/vnd.docker.image.rootfs.diff.tar",
    "application/vnd.oci.image.layer.nondistributable.v1.tar",
];
/// The operating system and the processor that images are run for.
pub const PLATFORM: (&str, &str) = ("linux", "amd64");

/// What names a blob (OCI image specification, "Content Descriptors").
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// What kind of thing it is.
    #[serde(default)]
    pub media_type: String,
    /// Its digest.
    pub digest: Digest,
    /// Its length in bytes.
    pub size: u64,
    /// For what machine a manifest of an index is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
    /// Remarks; the name of an image in a layout is one.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

impl Descriptor {
    /// A descriptor without platform and annotations.
    #[must_use]
    pub fn new(media_type: &str, digest: Digest, size: u64) -> Self {
        Self { media_type: media_type.into(), digest, size, platform: None, annotations: BTreeMap::new() }
    }
}

/// A kind of machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Platform {
    /// The processor, in Go's words.
    pub architecture: String,
    /// The operating system.
    pub os: String,
    /// The processor's generation; `None` or `v1` is the oldest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

/// A list of manifests, usually of one image for several machines.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Index {
    /// Always 2.
    pub schema_version: u32,
    /// One of [`INDEX_TYPES`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub media_type: Option<String>,
    /// The manifests.
    pub manifests: Vec<Descriptor>,
}

/// What an image is made of.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// Always 2.
    pub schema_version: u32,
    /// One of [`MANIFEST_TYPES`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub media_type: Option<String>,
    /// The configuration.
    pub config: Descriptor,
    /// The layers, the lowest first.
    pub layers: Vec<Descriptor>,
}

/// Why a document is not one that an image can be made from.
#[derive(Debug, thiserror::Error)]
pub enum DocumentError {
    /// It is no JSON, or not of that kind.
    #[error("the {what} cannot be understood")]
    Json {
        /// Which document.
        what: &'static str,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// It says something that cannot be.
    #[error("the {what} {problem}")]
    Wrong {
        /// Which document.
        what: &'static str,
        /// What is wrong.
        problem: String,
    },
    /// An index has no image for this kind of machine.
    #[error("there is no image for {}/{}, only for {found}", PLATFORM.0, PLATFORM.1)]
    Platform {
        /// What there is instead.
        found: String,
    },
}

/// An index or a manifest.
#[derive(Debug, Clone)]
pub enum Document {
    /// A list to choose from.
    Index(Index),
    /// An image.
    Manifest(Manifest),
}

impl Document {
    /// Reads what is called `media_type`; where that is not known, the document tells itself.
    ///
    /// # Errors
    /// It is neither, or malformed.
    pub fn parse(bytes: &[u8], media_type: &str) -> Result<Self, DocumentError> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Kind {
            media_type: Option<String>,
            schema_version: Option<u32>,
            manifests: Option<serde::de::IgnoredAny>,
        }
        let json = |source| DocumentError::Json { what: "manifest", source };
        check_length(bytes, "manifest")?;
        let kind: Kind = serde_json::from_slice(bytes).map_err(json)?;
        let wrong = |problem| DocumentError::Wrong { what: "manifest", problem };
        if kind.schema_version != Some(2) {
            return Err(wrong("is of a version that is not supported: only version 2 is".into()));
        }
        let known = |name: &str| INDEX_TYPES.contains(&name) || MANIFEST_TYPES.contains(&name);
        let name = kind.media_type.as_deref().unwrap_or(media_type);
        let is_index = if known(name) { INDEX_TYPES.contains(&name) } else { kind.manifests.is_some() };
        if kind.media_type.as_deref().is_some_and(|own| !known(own) || (known(media_type) && own != media_type)) {
            return Err(wrong(format!("is of the media type {name:?}, where {media_type:?} was expected")));
        }
        if is_index {
            return serde_json::from_slice(bytes).map(Self::Index).map_err(json);
        }
        let manifest: Manifest = serde_json::from_slice(bytes).map_err(json)?;
        manifest.check()?;
        Ok(Self::Manifest(manifest))
    }
}

impl Document {
    /// The manifest, where it is one.
    ///
    /// # Errors
    /// It is an index.
    pub fn into_manifest(self) -> Result<Manifest, DocumentError> {
        match self {
            Self::Manifest(manifest) => Ok(manifest),
            Self::Index(_) => Err(DocumentError::Wrong {
                what: "index",
                problem: "leads to another index: an index of manifests is the only kind that is followed".into(),
            }),
        }
    }
}

impl Manifest {
    fn check(&self) -> Result<(), DocumentError> {
        let wrong = |problem| Err(DocumentError::Wrong { what: "manifest", problem });
        if self.layers.len() > LAYER_LIMIT {
            return wrong(format!("names {} layers; at most {LAYER_LIMIT} are supported", self.layers.len()));
        }
        if !CONFIG_TYPES.contains(&&*self.config.media_type) {
            let found = &self.config.media_type;
            return wrong(format!(
                "has a configuration of the media type {found:?}: it is not an image that can be run"
            ));
        }
        for layer in &self.layers {
            let found = &layer.media_type;
            if !LAYER_TYPES.iter().any(|known| found.starts_with(known)) || found.contains("encrypted") {
                return wrong(format!("has a layer of the media type {found:?}, which is not supported"));
            }
        }
        if self.config.size > DOCUMENT_LIMIT {
            return wrong("has a configuration of more than 4 MiB".into());
        }
        Ok(())
    }
}

impl Index {
    /// The manifest for this kind of machine.
    ///
    /// # Errors
    /// There is none.
    pub fn choose(&self) -> Result<&Descriptor, DocumentError> {
        let fits = |platform: &Platform| (&*platform.os, &*platform.architecture) == PLATFORM;
        // The oldest generation runs everywhere.
        let oldest =
            |d: &&Descriptor| d.platform.as_ref().is_some_and(|p| p.variant.as_deref().is_none_or(|v| v == "v1"));
        let mut fitting = self.manifests.iter().filter(|d| d.platform.as_ref().is_some_and(fits));
        let found = fitting.clone().find(oldest).or_else(|| fitting.next());
        let only = || self.manifests.first().filter(|d| self.manifests.len() == 1 && d.platform.is_none());
        found.or_else(only).ok_or_else(|| {
            let mut all: Vec<String> = self
                .manifests
                .iter()
                .map(|d| match &d.platform {
                    Some(platform) => format!("{}/{}", platform.os, platform.architecture),
                    None => "an unnamed machine".to_owned(),
                })
                .collect();
            all.sort();
            all.dedup();
            all.truncate(20);
            DocumentError::Platform { found: if all.is_empty() { "none".into() } else { all.join(", ") } }
        })
    }
}

/// Refuses documents that are longer than any that is meant well.
pub(super) fn check_length(bytes: &[u8], what: &'static str) -> Result<(), DocumentError> {
    if bytes.len() as u64 > DOCUMENT_LIMIT {
        return Err(DocumentError::Wrong { what, problem: "is longer than 4 MiB".into() });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest() -> String {
        Digest::of(b"").to_string()
    }

    fn manifest(media_type: &str, layer_type: &str) -> String {
        let digest = digest();
        format!(
            r#"{{"schemaVersion":2,"mediaType":"{media_type}","config":{{"mediaType":"{}","digest":"{digest}","size":1}},
            "layers":[{{"mediaType":"{layer_type}","digest":"{digest}","size":2}}]}}"#,
            CONFIG_TYPES[0]
        )
    }

    #[test]
    fn manifests_are_read_and_checked() {
        for media_type in MANIFEST_TYPES {
            let text = manifest(media_type, "application/vnd.oci.image.layer.v1.tar+gzip");
            let read = Document::parse(text.as_bytes(), media_type).unwrap();
            assert!(matches!(read, Document::Manifest(manifest) if manifest.layers.len() == 1));
        }
        for text in [
            String::new(),
            "[]".into(),
            r#"{"schemaVersion":1}"#.into(),
            manifest("text/plain", LAYER_TYPES[0]),
            manifest(MANIFEST_TYPES[0], "text/plain"),
            manifest(INDEX_TYPES[0], LAYER_TYPES[0]),
            manifest(MANIFEST_TYPES[0], LAYER_TYPES[0]).replace("sha256:", "sha256:x"),
            " ".repeat(10 << 20),
        ] {
            assert!(Document::parse(text.as_bytes(), MANIFEST_TYPES[0]).is_err());
        }
    }

    #[test]
    fn an_index_is_searched_for_this_machine() {
        let entry = |os: &str, architecture: &str, variant: &str, size: u32| {
            let digest = digest();
            format!(
                r#"{{"mediaType":"{}","digest":"{digest}","size":{size},
                "platform":{{"os":"{os}","architecture":"{architecture}"{variant}}}}}"#,
                MANIFEST_TYPES[0]
            )
        };
        let parse = |entries: &[String]| {
            let text = format!(r#"{{"schemaVersion":2,"manifests":[{}]}}"#, entries.join(","));
            match Document::parse(text.as_bytes(), "").unwrap() {
                Document::Index(index) => index,
                Document::Manifest(_) => panic!("no index"),
            }
        };
        let (other, newer, fitting) = (
            entry("linux", "arm64", "", 1),
            entry("linux", "amd64", r#","variant":"v3""#, 2),
            entry("linux", "amd64", "", 3),
        );
        assert_eq!(parse(&[other.clone(), newer, fitting]).choose().unwrap().size, 3);
        let error = parse(&[other]).choose().unwrap_err().to_string();
        assert!(error.contains("linux/amd64") && error.contains("linux/arm64"), "{error}");
        assert!(parse(&[]).choose().is_err());
    }
}
