//! Pulling: the manifest, then what of it is missing, several layers at a time.

use std::io::Read;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use ureq::Body;
use ureq::http::Response;

use super::connection::Request;
use super::{Client, Event, Progress, RegistryError};
use crate::image::manifest::{Config, DOCUMENT_LIMIT, Descriptor, Document, INDEX_TYPES, MANIFEST_TYPES, Manifest};
use crate::image::store::Incoming;
use crate::image::{Digest, Store, StoredImage};

/// How many layers are fetched at a time.
const WORKERS: usize = 4;

impl Client {
    /// Brings the image into the store, and its name. Where anything fails, the store has what it had.
    ///
    /// # Errors
    /// The registry cannot be reached or does not have the image, the image is malformed or not for this kind of machine, or
    /// the store cannot take it.
    pub fn pull(&self, store: &Store, progress: &dyn Progress) -> Result<StoredImage, RegistryError> {
        let (descriptor, bytes, manifest) = self.find_manifest()?;
        let _hold = store.hold()?;
        store.put(&bytes)?;
        self.fetch(store, &manifest.config, &())?;
        let config_bytes = store.read_document(&manifest.config)?;
        let config = Config::parse(&config_bytes, &manifest).map_err(|source| self.document_error(source))?;
        let image = StoredImage { descriptor, manifest, config, config_bytes };
        self.fetch_layers(store, &image, progress)?;
        store.layers(&image)?;
        store.set_name(&self.name, &image.descriptor)?;
        Ok(image)
    }

    fn document_error(&self, source: crate::image::manifest::DocumentError) -> RegistryError {
        RegistryError::Document { name: self.name.familiar(), source }
    }

    /// The manifest for this machine, through one index where there is one.
    fn find_manifest(&self) -> Result<(Descriptor, Vec<u8>, Manifest), RegistryError> {
        let (media_type, bytes) = self.manifest(&self.name.reference())?;
        if let Some(expected) = self.name.digest() {
            self.check(&bytes, expected)?;
        }
        let wrong = |source| self.document_error(source);
        match Document::parse(&bytes, &media_type).map_err(wrong)? {
            Document::Manifest(manifest) => {
                let kind = manifest.media_type.clone().unwrap_or(media_type);
                Ok((Descriptor::new(&kind, Digest::of(&bytes), bytes.len() as u64), bytes, manifest))
            }
            Document::Index(index) => {
                let chosen = index.choose().map_err(wrong)?;
                let (_, bytes) = self.manifest(&chosen.digest.to_string())?;
                self.check(&bytes, chosen.digest)?;
                let document = Document::parse(&bytes, &chosen.media_type).map_err(wrong)?;
                let manifest = document.into_manifest().map_err(wrong)?;
                Ok((Descriptor::new(&chosen.media_type, chosen.digest, bytes.len() as u64), bytes, manifest))
            }
        }
    }

    fn check(&self, bytes: &[u8], expected: Digest) -> Result<(), RegistryError> {
        let found = Digest::of(bytes);
        if found == expected {
            Ok(())
        } else {
            Err(RegistryError::WrongManifest { name: self.name.familiar(), found, expected })
        }
    }

    /// A manifest or an index with its media type.
    fn manifest(&self, reference: &str) -> Result<(String, Vec<u8>), RegistryError> {
        let accept = [MANIFEST_TYPES, INDEX_TYPES].concat().join(", ");
        let request = Request::get(self.path(&format!("manifests/{reference}"))).header("accept", accept);
        let action = "read the manifest";
        let answer = self.connection.request_any(action, &request)?;
        match answer.status().as_u16() {
            200 => {}
            404 => {
                let RegistryError::Status { message, .. } = self.connection.failure(action, &request, answer) else {
                    unreachable!("404 is not a matter of who asks")
                };
                return Err(RegistryError::NotFound { name: self.name.familiar(), message });
            }
            _ => return Err(self.connection.failure(action, &request, answer)),
        }
        let media_type = answer.headers().get("content-type").and_then(|value| value.to_str().ok()).unwrap_or_default();
        let media_type = media_type.split(';').next().unwrap_or_default().trim().to_owned();
        let mut bytes = Vec::new();
        let url = self.connection.url(&request.path);
        let read = answer.into_body().into_reader().take(DOCUMENT_LIMIT + 1).read_to_end(&mut bytes);
        read.map_err(|error| RegistryError::Connection { action, url: url.clone(), source: Box::new(error.into()) })?;
        if bytes.len() as u64 > DOCUMENT_LIMIT {
            return Err(RegistryError::Answer {
                url,
                problem: "is longer than the 4 MiB that a manifest may have".into(),
            });
        }
        Ok((media_type, bytes))
    }

    fn fetch_layers(&self, store: &Store, image: &StoredImage, progress: &dyn Progress) -> Result<(), RegistryError> {
        let layers = &image.manifest.layers;
        let missing = layers.iter().filter(|layer| !store.has(layer));
        let (count, bytes) = missing.fold((0, 0_u64), |(n, sum), layer| (n + 1, sum.saturating_add(layer.size)));
        progress.report(Event::Planned { layers: count, bytes });
        let next = AtomicUsize::new(0);
        let stop = AtomicBool::new(false);
        let failure = Mutex::new(None);
        std::thread::scope(|scope| {
            for _ in 0..layers.len().min(WORKERS) {
                scope.spawn(|| {
                    while !stop.load(Ordering::Relaxed) {
                        let index = next.fetch_add(1, Ordering::Relaxed);
                        let Some(layer) = layers.get(index) else { return };
                        let was_there = store.has(layer);
                        let made = self.fetch(store, layer, progress).and_then(|()| {
                            if !was_there {
                                progress.report(Event::Done);
                            }
                            if image.stands_alone(index) { Ok(store.convert_layer(image, index)?) } else { Ok(()) }
                        });
                        if let Err(error) = made {
                            failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
                            stop.store(true, Ordering::Relaxed);
                        }
                    }
                });
            }
        });
        failure.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
    }

    /// Fetches a blob, if it is not in the store. A connection that breaks is made again, and goes on where it broke.
    fn fetch(&self, store: &Store, blob: &Descriptor, progress: &dyn Progress) -> Result<(), RegistryError> {
        let Some(mut incoming) = store.incoming_blob(blob)? else { return Ok(()) };
        progress.report(Event::Moved(incoming.len()));
        let mut attempt = 1;
        loop {
            let before = incoming.len();
            let Err(error) = self.fetch_rest(blob, &mut incoming, progress) else { return Ok(incoming.finish()?) };
            let broke = matches!(error, RegistryError::Connection { .. });
            // As long as something comes, it goes on.
            attempt = if incoming.len() > before { 1 } else { attempt + 1 };
            if !broke || attempt > self.connection.attempts() {
                return Err(error);
            }
            log::info!("{}: {error}; going on at byte {}", blob.digest, incoming.len());
            self.connection.pause(attempt, None);
        }
    }

    fn fetch_rest(
        &self,
        blob: &Descriptor,
        incoming: &mut Incoming,
        progress: &dyn Progress,
    ) -> Result<(), RegistryError> {
        if incoming.len() == blob.size {
            return Ok(());
        }
        let action = "fetch";
        let mut request = Request::get(self.path(&format!("blobs/{}", blob.digest)));
        if !incoming.is_empty() {
            request = request.header("range", format!("bytes={}-", incoming.len()));
        }
        let answer = self.connection.request(action, &request)?;
        if !incoming.is_empty() && !continues_at(&answer, incoming.len()) {
            progress.report(Event::Lost(incoming.len()));
            incoming.restart()?;
        }
        let failed = |error: std::io::Error| RegistryError::Connection {
            action,
            url: self.connection.url(&request.path),
            source: Box::new(error.into()),
        };
        let mut reader = answer.into_body().into_with_config().limit(u64::MAX).reader();
        let mut buffer = vec![0; 128 << 10];
        loop {
            match reader.read(&mut buffer) {
                Ok(0) if incoming.len() < blob.size => return Err(failed(std::io::ErrorKind::UnexpectedEof.into())),
                Ok(0) => return Ok(()),
                Ok(got) => {
                    incoming.write(&buffer[..got])?;
                    progress.report(Event::Moved(got as u64));
                }
                Err(error) => return Err(failed(error)),
            }
        }
    }
}

/// Whether the answer is the rest from `position` on, and not the whole.
fn continues_at(answer: &Response<Body>, position: u64) -> bool {
    let range = answer.headers().get("content-range").and_then(|value| value.to_str().ok());
    answer.status() == 206 && range.is_some_and(|range| range.trim().starts_with(&format!("bytes {position}-")))
}
