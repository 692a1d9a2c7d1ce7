//! An image in the making: what another one is, or nothing, with layers and settings added to it.

use super::manifest::{
    CONFIG_TYPES, Config, Descriptor, Document, Execution, History, MANIFEST_TYPES, Manifest, PLATFORM,
};
use super::{Digest, ImageName, NewLayer, Store, StoreError, StoredImage, Timestamp};

/// What the media types of docker's layers begin with, and those of OCI's, which mean the same.
const LAYER_TYPES: (&str, &str) =
    ("application/vnd.docker.image.rootfs.diff.tar", "application/vnd.oci.image.layer.v1.tar");

/// An image that is being made on top of another, or of nothing.
///
/// ```no_run
/// # use std::io::Write;
/// # use amphi::image::{Draft, LayerArchive, LayerEntry, Store, StoreError, Timestamp, manifest::History};
/// # fn example(parent: &amphi::image::StoredImage) -> Result<(), Box<dyn std::error::Error>> {
/// let store = Store::open_default()?;
/// let _hold = store.hold()?; // from before the layer is made until the image has its name
/// let layer = store.add_layer(|sink| -> Result<(), Box<dyn std::error::Error>> {
///     let mut archive = LayerArchive::new(sink);
///     archive.append(&LayerEntry::directory(b"data", 0), std::io::empty())?;
///     archive.remove(b"etc/motd")?;
///     archive.finish()?;
///     Ok(())
/// })?;
/// let mut draft = Draft::on(parent);
/// draft.add_layer(layer, History { created_by: Some("mkdir /data".into()), ..History::default() });
/// draft.execution().cmd = Some(vec!["/bin/sh".into()]);
/// draft.add_setting(History { created_by: Some("CMD [\"/bin/sh\"]".into()), ..History::default() });
/// let image = draft.save(&store, Timestamp::now(), Some(&"mine:1".parse()?))?;
/// println!("{}", image.descriptor.digest);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Draft {
    layers: Vec<Descriptor>,
    config: Config,
}

impl Draft {
    /// An image of nothing.
    #[must_use]
    pub fn scratch() -> Self {
        let mut config = Config { os: PLATFORM.0.into(), architecture: PLATFORM.1.into(), ..Config::default() };
        config.rootfs.kind = "layers".into();
        Self { layers: Vec::new(), config }
    }

    /// An image that is like `parent` as yet. All that the parent's configuration says stays, whether amphi knows it or not.
    #[must_use]
    pub fn on(parent: &StoredImage) -> Self {
        let layers = parent.manifest.layers.iter().map(|layer| {
            let media_type = match layer.media_type.strip_prefix(LAYER_TYPES.0) {
                // The suffix for a compression has another form.
                Some(compression) => format!("{}{}", LAYER_TYPES.1, compression.replace('.', "+")),
                None => layer.media_type.clone(),
            };
            Descriptor { media_type, ..layer.clone() }
        });
        let layers: Vec<_> = layers.collect();
        let mut config = parent.config.clone();
        // The steps that made a layer have to be as many as the layers, or later ones are taken for earlier ones'.
        let history = config.history.get_or_insert_default();
        let told = history.iter().filter(|step| !step.empty_layer).count();
        if told > layers.len() {
            history.clear();
        }
        let told = told.min(history.len());
        history.extend((told..layers.len()).map(|_| History::default()));
        Self { layers, config }
    }

    /// The configuration as it is.
    #[must_use]
    pub const fn config(&self) -> &Config {
        &self.config
    }

    /// How the image is to be run, to be changed.
    pub fn execution(&mut self) -> &mut Execution {
        self.config.config.get_or_insert_default()
    }

    /// Says who makes it.
    pub fn set_author(&mut self, author: &str) {
        self.config.author = Some(author.to_owned());
    }

    /// Puts a layer on top, which `step` has made.
    pub fn add_layer(&mut self, layer: NewLayer, step: History) {
        self.layers.push(layer.descriptor);
        self.config.rootfs.diff_ids.push(layer.diff_id);
        self.config.history.get_or_insert_default().push(History { empty_layer: false, ..step });
    }

    /// Notes a step that made no layer.
    pub fn add_setting(&mut self, step: History) {
        self.config.history.get_or_insert_default().push(History { empty_layer: true, ..step });
    }

    /// The image as it is now, for [`Store::layers`] and for another draft. Its documents are not in the store.
    #[must_use]
    pub fn image(&self) -> StoredImage {
        let none = Descriptor::new("", Digest::of(b""), 0);
        let manifest = Manifest {
            schema_version: 2,
            media_type: Some(MANIFEST_TYPES[0].into()),
            config: Descriptor::new(CONFIG_TYPES[0], Digest::of(b""), 0),
            layers: self.layers.clone(),
        };
        StoredImage { descriptor: none, manifest, config: self.config.clone(), config_bytes: Vec::new() }
    }

    /// Puts the image, made at `created`, into the store, and gives it the names, which others may have had. To be called
    /// while the store is held. Names are given last: where the process is killed before, the store has what it had.
    ///
    /// # Errors
    /// There are too many layers, or the configuration is too long; a layer cannot be made a file system; or the store cannot be
    /// written.
    pub fn save<'a>(
        mut self,
        store: &Store,
        created: Timestamp,
        names: impl IntoIterator<Item = &'a ImageName>,
    ) -> Result<StoredImage, StoreError> {
        self.config.created = Some(created.to_string());
        let StoredImage { mut manifest, config, .. } = self.image();
        let json = |what| {
            move |source| StoreError::Document {
                digest: Digest::of(b""),
                source: super::manifest::DocumentError::Json { what, source },
            }
        };
        let config_bytes = serde_json::to_vec(&config).map_err(json("configuration"))?;
        let digest = Digest::of(&config_bytes);
        manifest.config = Descriptor::new(CONFIG_TYPES[0], digest, config_bytes.len() as u64);
        let bytes = serde_json::to_vec(&manifest).map_err(json("manifest"))?;
        let descriptor = Descriptor::new(MANIFEST_TYPES[0], Digest::of(&bytes), bytes.len() as u64);
        // What would not be read again is not written.
        let wrong = |source| StoreError::Document { digest: descriptor.digest, source };
        Document::parse(&bytes, MANIFEST_TYPES[0]).map_err(wrong)?;
        Config::parse(&config_bytes, &manifest).map_err(wrong)?;
        store.put(&config_bytes)?;
        store.put(&bytes)?;
        let image = StoredImage { descriptor, manifest, config, config_bytes };
        store.layers(&image)?;
        for name in names {
            store.set_name(name, &image.descriptor)?;
        }
        Ok(image)
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;
    use crate::image::{LayerArchive, LayerEntry};

    fn step(text: &str) -> History {
        History { created_by: Some(text.into()), ..History::default() }
    }

    fn layer(store: &Store, directory: &[u8]) -> NewLayer {
        let layer = store.add_layer(|sink| -> Result<(), StoreError> {
            let mut archive = LayerArchive::new(sink);
            archive.append(&LayerEntry::directory(directory, 0), io::empty()).unwrap();
            archive.finish().unwrap();
            Ok(())
        });
        layer.unwrap()
    }

    #[test]
    fn an_image_is_made_of_nothing_and_another_on_top_of_it() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let _hold = store.hold().unwrap();
        let now = Timestamp::now();
        let name: ImageName = "first:1".parse().unwrap();
        let mut draft = Draft::scratch();
        draft.add_layer(layer(&store, b"a"), step("one"));
        draft.execution().cmd = Some(vec!["/a".into()]);
        draft.execution().other.insert("Healthcheck".into(), serde_json::json!({"Test": ["NONE"]}));
        draft.set_author("somebody");
        draft.add_setting(step("two"));
        let first = draft.clone().save(&store, now, [&name]).unwrap();
        assert_eq!(store.find(&name).unwrap().as_ref(), Some(&first.descriptor));
        assert_eq!(draft.save(&store, now, None).unwrap().descriptor, first.descriptor, "the same gives the same");

        let read = store.image(&first.descriptor).unwrap();
        let mut draft = Draft::on(&read);
        draft.add_layer(layer(&store, b"b"), step("three"));
        let second = draft.save(&store, now, None).unwrap();
        assert_eq!(second.manifest.layers[0], first.manifest.layers[0]);
        let config = store.image(&second.descriptor).unwrap().config;
        assert_eq!(config.rootfs.diff_ids.len(), 2);
        let execution = config.config.unwrap();
        assert_eq!(execution.cmd, Some(vec!["/a".into()]));
        assert!(execution.other.contains_key("Healthcheck"), "what amphi does not know stays");
        let steps: Vec<_> =
            config.history.unwrap().into_iter().map(|step| (step.created_by, step.empty_layer)).collect();
        let expected = [("one", false), ("two", true), ("three", false)];
        assert_eq!(steps, expected.map(|(by, empty)| (Some(by.to_owned()), empty)));
        // Without a name nothing keeps it.
        drop(_hold);
        store.prune().unwrap();
        assert!(store.image(&second.descriptor).is_err() && store.image(&first.descriptor).is_ok());
    }

    #[test]
    fn a_parent_of_dockers_becomes_one_of_ocis_and_a_missing_history_is_filled() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let _hold = store.hold().unwrap();
        let mut draft = Draft::scratch();
        draft.add_layer(layer(&store, b"a"), step("one"));
        let mut parent = draft.image();
        parent.manifest.layers[0].media_type = format!("{}.gzip", LAYER_TYPES.0);
        parent.config.history = None;
        let mut draft = Draft::on(&parent);
        draft.add_layer(layer(&store, b"b"), step("two"));
        let image = draft.save(&store, Timestamp::now(), None).unwrap();
        assert!(image.manifest.layers.iter().all(|layer| layer.media_type == format!("{}+gzip", LAYER_TYPES.1)));
        let history = image.config.history.unwrap();
        assert_eq!((history.len(), history[1].created_by.as_deref()), (2, Some("two")));
    }
}
