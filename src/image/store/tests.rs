use super::super::ImageName;
use super::super::manifest::MANIFEST_TYPES;
use super::*;

fn store() -> (tempfile::TempDir, Store) {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(&folder.path().join("images")).unwrap();
    (folder, store)
}

/// An image without layers but with something to tell it by.
fn image(store: &Store, mark: &str) -> Descriptor {
    let config = format!(
        r#"{{"architecture":"amd64","os":"linux","created":"{mark}","rootfs":{{"type":"layers","diff_ids":[]}}}}"#
    );
    let digest = store.put(config.as_bytes()).unwrap();
    let manifest = format!(
        r#"{{"schemaVersion":2,"config":{{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"{digest}","size":{}}},
        "layers":[]}}"#,
        config.len()
    );
    let digest = store.put(manifest.as_bytes()).unwrap();
    Descriptor::new(MANIFEST_TYPES[0], digest, manifest.len() as u64)
}

fn name(text: &str) -> ImageName {
    text.parse().unwrap()
}

#[test]
fn blobs_are_checked_when_they_come() {
    let (_folder, store) = store();
    let blob = Descriptor::new("", Digest::of(b"contents"), 8);
    let mut incoming = store.incoming_blob(&blob).unwrap().unwrap();
    incoming.write(b"cont").unwrap();
    drop(incoming);
    // Another process goes on where the first was.
    let mut incoming = store.incoming_blob(&blob).unwrap().unwrap();
    assert_eq!(incoming.len(), 4);
    incoming.write(b"ents").unwrap();
    incoming.finish().unwrap();
    assert!(store.has(&blob) && store.incoming_blob(&blob).unwrap().is_none());

    let wrong = Descriptor::new("", Digest::of(b"others"), 6);
    let mut incoming = store.incoming_blob(&wrong).unwrap().unwrap();
    incoming.write(b"Others").unwrap();
    assert!(matches!(incoming.finish(), Err(StoreError::WrongBlob { .. })));
    let mut incoming = store.incoming_blob(&wrong).unwrap().unwrap();
    assert!(incoming.is_empty(), "what was wrong is not kept");
    assert!(incoming.write(b"too much").is_err());
    assert!(!store.has(&wrong));
}

#[test]
fn names_move_and_what_has_none_is_collected() {
    let (_folder, store) = store();
    let (first, second) = (image(&store, "1"), image(&store, "2"));
    store.set_name(&name("a"), &first).unwrap();
    store.set_name(&name("a"), &second).unwrap();
    store.set_name(&name("b"), &second).unwrap();
    assert_eq!(store.find(&name("docker.io/library/a:latest")).unwrap(), Some(second.clone()));
    assert_eq!(store.names().unwrap().len(), 2);
    let _left = store.lock_file("incoming/left by a crash").unwrap();
    assert_eq!(store.garbage(&[]).unwrap().len(), 3);
    assert_eq!(store.collect().unwrap().unwrap().len(), 3);
    assert!(!store.has(&first) && store.has(&second));
    assert!(store.remove_name(&name("a")).unwrap() && !store.remove_name(&name("a")).unwrap());
    assert_eq!(store.collect().unwrap().unwrap(), []);
    assert!(store.image(&second).is_ok());
}

#[test]
fn nothing_is_collected_while_somebody_adds() {
    let (_folder, store) = store();
    let hold = store.hold().unwrap();
    let added = image(&store, "1");
    assert_eq!(store.collect().unwrap(), None);
    drop(hold);
    assert_eq!(store.collect().unwrap().unwrap().len(), 2);
    assert!(!store.has(&added));
}

#[test]
fn damage_is_noticed() {
    let (_folder, store) = store();
    let image = image(&store, "1");
    let path = store.blob_path(image.digest);
    let mut bytes = fs::read(&path).unwrap();
    bytes[20] ^= 1;
    fs::write(&path, &bytes).unwrap();
    assert!(matches!(store.image(&image), Err(StoreError::WrongBlob { .. })));
    fs::write(store.root.join("index.json"), "[").unwrap();
    assert!(matches!(store.names(), Err(StoreError::Index { .. })));
}
