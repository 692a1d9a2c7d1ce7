//! Pushing: only what the registry does not have, and nothing that it can take from another of its repositories.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use super::auth::escape;
use super::connection::{Payload, Request};
use super::{Client, Event, Progress, RegistryError};
use crate::image::manifest::Descriptor;
use crate::image::{Store, StoredImage};

/// How many layers are sent at a time.
const WORKERS: usize = 4;

/// How many blobs went which way.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pushed {
    /// Sent.
    pub sent: usize,
    /// Taken from another repository of the registry.
    pub mounted: usize,
    /// There already.
    pub present: usize,
}

enum Way {
    Sent,
    Mounted,
    Present,
}

impl Client {
    /// Sends an image of the store to the registry under this client's name.
    ///
    /// # Errors
    /// The registry cannot be reached, or does not take it.
    pub fn push(&self, store: &Store, image: &StoredImage, progress: &dyn Progress) -> Result<Pushed, RegistryError> {
        let Some(tag) = self.name.tag().filter(|_| self.name.digest().is_none()) else {
            return Err(RegistryError::PushToDigest(self.name.familiar()));
        };
        let _hold = store.hold()?;
        let mut blobs: Vec<&Descriptor> = Vec::new();
        for blob in image.manifest.layers.iter().chain([&image.manifest.config]) {
            if !blobs.iter().any(|other| other.digest == blob.digest) {
                blobs.push(blob);
            }
        }
        let bytes = blobs.iter().map(|blob| blob.size).fold(0, u64::saturating_add);
        progress.report(Event::Planned { layers: blobs.len(), bytes });
        let sources = self.sources(store)?;
        let next = AtomicUsize::new(0);
        let result = Mutex::new(Ok(Pushed::default()));
        std::thread::scope(|scope| {
            for _ in 0..blobs.len().min(WORKERS) {
                scope.spawn(|| {
                    while let Some(blob) = blobs.get(next.fetch_add(1, Ordering::Relaxed)) {
                        let way = self.send(store, blob, &sources);
                        let mut result = result.lock().unwrap_or_else(PoisonError::into_inner);
                        match (way, &mut *result) {
                            (Ok(Way::Sent), Ok(pushed)) => pushed.sent += 1,
                            (Ok(Way::Mounted), Ok(pushed)) => pushed.mounted += 1,
                            (Ok(Way::Present), Ok(pushed)) => pushed.present += 1,
                            (Err(error), Ok(_)) => {
                                *result = Err(error);
                                next.store(blobs.len(), Ordering::Relaxed);
                            }
                            (_, Err(_)) => {}
                        }
                        progress.report(Event::Moved(blob.size));
                        progress.report(Event::Done);
                    }
                });
            }
        });
        let pushed = result.into_inner().unwrap_or_else(PoisonError::into_inner)?;
        let manifest = store.read_document(&image.descriptor)?;
        let request = Request::new("PUT", self.path(&format!("manifests/{tag}")))
            .header("content-type", image.descriptor.media_type.clone())
            .payload(Payload::Bytes(manifest));
        self.connection.request("write the manifest", &request)?;
        Ok(pushed)
    }

    /// Other repositories of the same registry, with the layers that they are known to have had.
    fn sources(&self, store: &Store) -> Result<Vec<(String, Descriptor)>, RegistryError> {
        let mut sources = Vec::new();
        for (name, manifest) in store.names()? {
            if name.registry() == self.name.registry() && name.repository() != self.name.repository() {
                let Ok(image) = store.image(&manifest) else { continue };
                sources.extend(image.manifest.layers.into_iter().map(|layer| (name.repository().to_owned(), layer)));
            }
        }
        Ok(sources)
    }

    fn send(&self, store: &Store, blob: &Descriptor, sources: &[(String, Descriptor)]) -> Result<Way, RegistryError> {
        let head = Request::new("HEAD", self.path(&format!("blobs/{}", blob.digest)));
        let answer = self.connection.request_any("look for", &head)?;
        match answer.status().as_u16() {
            200..=299 => return Ok(Way::Present),
            404 => {}
            _ => return Err(self.connection.failure("look for", &head, answer)),
        }
        let mut path = self.path("blobs/uploads/");
        let source = sources.iter().find(|(_, layer)| layer.digest == blob.digest);
        if let Some((repository, _)) = source {
            let digest = escape(&blob.digest.to_string());
            path.push_str(&format!("?mount={digest}&from={}", escape(repository)));
        }
        let begin = Request::new("POST", path);
        let answer = self.connection.request("begin to send to", &begin)?;
        if answer.status() == 201 {
            return Ok(Way::Mounted);
        }
        let location = answer.headers().get("location").and_then(|value| value.to_str().ok());
        let location = location.map(|location| self.connection.absolute(location)).ok_or_else(|| {
            let url = self.connection.url(&begin.path);
            RegistryError::Answer { url, problem: "does not say where to send the layer".into() }
        })?;
        let separator = if location.contains('?') { '&' } else { '?' };
        let url = format!("{location}{separator}digest={}", escape(&blob.digest.to_string()));
        let file = store.open_blob(blob)?;
        let put = Request::new("PUT", url)
            .header("content-type", "application/octet-stream")
            .payload(Payload::File(file, blob.size));
        self.connection.request("send a layer to", &put)?;
        Ok(Way::Sent)
    }
}
