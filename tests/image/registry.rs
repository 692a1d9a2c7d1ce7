//! Registries that want to know who asks, and those that answer wrongly, late or not at all.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use amphi::image::registry::{Client, Options, Patience, RegistryError};
use amphi::image::{Digest, Store};

use crate::harness::command::BINARY;
use crate::harness::images::{Made, OwnRoot, tool};
use crate::harness::registry::{Breaking, Registry, answering, hanging, http};
use crate::harness::{Case, host};

pub(crate) fn cases() -> Vec<Case> {
    vec![
        host("image_registry_with_a_password", registry_with_a_password),
        host("image_registry_with_tls", registry_with_tls),
        host("image_registry_whose_connections_break", registry_whose_connections_break),
        host("image_registry_with_damaged_blobs", registry_with_damaged_blobs),
        host("image_registry_that_answers_wrongly", registry_that_answers_wrongly),
        host("image_registry_that_hangs", registry_that_hangs),
        host("image_index_that_leads_in_a_circle", index_that_leads_in_a_circle),
        host("image_pull_to_a_full_disk", pull_to_a_full_disk),
    ]
}

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// `htpasswd -nbB user secret`
const PASSWORD_FILE: &str = "user:$2y$05$dkUOHXJCYukZpCKQCX3AXuEE5Qd1wRrcbpuawdNtSEKzk4plLK8Oi\n";

fn registry_with_a_password() {
    let folder = tempfile::Builder::new().prefix("amphi-test-registry").tempdir().unwrap();
    fs::write(folder.path().join("passwords"), PASSWORD_FILE).unwrap();
    let registry = Registry::start_in(folder, "auth:\n  htpasswd:\n    realm: test\n    path: FOLDER/passwords\n");
    let (own, made) = (OwnRoot::new(), Made::new());
    let (source, name) = (format!("oci:{}:made", made.layout().display()), registry.name("a:1"));
    let target = format!("docker://{name}");
    tool("skopeo", &["copy", "-q", "--dest-tls-verify=false", "--dest-creds=user:secret", &source, &target]);
    let host = registry.host();
    own.amphi(&["pull", &name]).finish().expect_error(125, &[&host, "amphi login"]);
    let login =
        |password: &str| own.amphi(&["login", "-u", "user", "--password-stdin", &host]).input(password).finish();
    login("wrong").expect_error(125, &[&host, "password"]);
    login("secret\n").expect(0);
    own.amphi(&["pull", &name]).finish().expect(0);
    own.amphi(&["logout", &host]).finish().expect(0);
    own.amphi(&["push", &name]).finish().expect_error(125, &["amphi login"]);
    // What docker has kept is found as well: user:secret in base64.
    fs::create_dir(own.path().join(".docker")).unwrap();
    let docker = format!(r#"{{"auths":{{"{host}":{{"auth":"dXNlcjpzZWNyZXQ="}}}}}}"#);
    fs::write(own.path().join(".docker/config.json"), docker).unwrap();
    own.amphi(&["push", &name]).finish().expect(0);
}

fn registry_with_tls() {
    let folder = tempfile::Builder::new().prefix("amphi-test-registry").tempdir().unwrap();
    let (key, certificate) = (folder.path().join("key.pem"), folder.path().join("cert.pem"));
    tool(
        "openssl",
        &[
            "req",
            "-x509",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-days",
            "2",
            "-subj",
            "/CN=test",
            "-addext",
            "subjectAltName=IP:127.0.0.1",
            "-addext",
            "basicConstraints=critical,CA:FALSE",
            "-keyout",
            key.to_str().unwrap(),
            "-out",
            certificate.to_str().unwrap(),
        ],
    );
    let tls = "http:\n  addr: ADDRESS\n  tls:\n    certificate: FOLDER/cert.pem\n    key: FOLDER/key.pem\n";
    let registry = Registry::start_in(folder, tls);
    let (own, made) = (OwnRoot::new(), Made::new());
    registry.fill(&made.layout(), "made", "a:1");
    let name = registry.name("a:1");
    own.amphi(&["pull", &name]).finish().expect_error(125, &[&registry.host(), "certificate"]);
    own.amphi(&["pull", "--tls-ca", certificate.to_str().unwrap(), &name]).finish().expect(0);
    own.amphi(&["pull", "--tls-ca", "/nowhere", &name]).finish().expect_error(125, &["/nowhere", "certificates"]);
}

fn registry_whose_connections_break() {
    let (registry, own) = (Registry::start(), OwnRoot::new());
    let noise: Vec<u8> =
        (0..1_u32 << 20).flat_map(|n| n.wrapping_mul(0x9E37_79B9).rotate_left(n % 32).to_le_bytes()).collect();
    let made = Made::new().layer(|root| fs::write(root.join("noise"), noise).unwrap());
    registry.fill(&made.layout(), "made", "a:1");
    let way = Breaking::start(&registry, 4, 500_000);
    own.amphi(&["pull", &way.name("a:1")]).finish().expect(0);
    assert_eq!(way.broken(), 4);
    assert!(registry.log().contains("http.response.status=206"), "it goes on where it was");
}

/// The files that the registry keeps blobs in, the largest last.
fn blobs(registry: &Registry) -> Vec<PathBuf> {
    let all = tool("find", &[registry.folder().join("data").to_str().unwrap(), "-path", "*/blobs/*", "-name", "data"]);
    let mut all: Vec<PathBuf> = all.lines().map(PathBuf::from).collect();
    all.sort_by_key(|path| fs::metadata(path).unwrap().len());
    all
}

fn registry_with_damaged_blobs() {
    let (registry, own, made) = (Registry::start(), OwnRoot::new(), Made::new());
    registry.fill(&made.layout(), "made", "a:1");
    let name = registry.name("a:1");
    let path = blobs(&registry).pop().unwrap();
    let good = fs::read(&path).unwrap();
    let mut wrong = good.clone();
    let middle = wrong.len() / 2;
    wrong[middle] ^= 1;
    for bad in [wrong, good[..middle].to_vec(), [&good[..], b"more"].concat()] {
        fs::write(&path, bad).unwrap();
        let finished = own.amphi(&["pull", &name]).finish().expect(125);
        assert!(finished.errors().contains("sha256:"), "{finished}");
        let left = own.store_files();
        assert!(!left.iter().any(|file| file.contains("index.json") || file.ends_with(".erofs")), "{left:?}");
    }
    fs::write(&path, good).unwrap();
    own.amphi(&["pull", &name]).finish().expect(0);
}

fn registry_that_answers_wrongly() {
    let digest = format!("sha256:{}", "0".repeat(64));
    let index = format!(
        r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[{{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"{digest}","size":2,"platform":{{"os":"linux","architecture":"arm64"}}}}]}}"#
    );
    let own = OwnRoot::new();
    let manifest = |status: &'static str, headers: &'static str, body: Vec<u8>| {
        let host = answering(move |line| match line.contains("/manifests/") {
            true => http(status, headers, &body),
            false => http("200 OK", "", b"{}"),
        });
        own.amphi(&["pull", &format!("{host}/a:1")]).finish()
    };
    manifest("200 OK", "", vec![b' '; 10 << 20]).expect_error(125, &["4 MiB"]);
    manifest("200 OK", "content-type: text/html\r\n", b"<html>".to_vec()).expect_error(125, &["a:1", "manifest"]);
    manifest("200 OK", "content-type: application/vnd.oci.image.manifest.v1+json\r\n", index.clone().into_bytes())
        .expect_error(125, &["media type"]);
    manifest("200 OK", "content-type: application/vnd.oci.image.index.v1+json\r\n", index.into_bytes())
        .expect_error(125, &["linux/amd64", "linux/arm64"]);
    manifest("404 Not Found", "", br#"{"errors":[{"code":"X","message":"no\u001bthing"}]}"#.to_vec())
        .expect_error(125, &["a:1", "nothing"]);
    manifest("403 Forbidden", "", Vec::new()).expect_error(125, &["amphi login"]);
    manifest("500 Internal Server Error", "retry-after: 0\r\n", Vec::new()).expect_error(125, &["500"]);
    manifest("429 Too Many Requests", "retry-after: 0\r\n", Vec::new()).expect_error(125, &["429"]);
    manifest("401 Unauthorized", "www-authenticate: Bearer realm=\"http://127.0.0.1:1/token\"\r\n", Vec::new())
        .expect_error(125, &["127.0.0.1:1/token"]);
    manifest("401 Unauthorized", "www-authenticate: Bearer realm=\"http://registry.example/token\"\r\n", Vec::new())
        .expect_error(125, &["registry.example/token", "without TLS"]);
    assert_eq!(own.store_files(), ["oci-layout"], "nothing has come into the store");
    own.amphi(&["pull", "127.0.0.1:1/a"]).finish().expect_error(125, &["127.0.0.1:1"]);
}

/// A registry that says nothing, stops in its headers, or in the middle of a blob.
fn registry_that_hangs() {
    const CONFIG: &[u8] = b"{}";
    let config = Digest::of(CONFIG);
    let manifest = format!(
        r#"{{"schemaVersion":2,"mediaType":"{MANIFEST}","config":{{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"{config}","size":2}},"layers":[]}}"#
    );
    let stops = |answer: fn(&str) -> Option<Vec<u8>>| {
        let manifest = manifest.clone();
        let host = hanging(move |line| match line {
            line if line.contains(" /v2/ ") => Some((http("200 OK", "", b"{}"), false)),
            line if line.contains("/manifests/") && answer(line).is_none() => {
                Some((http("200 OK", &format!("content-type: {MANIFEST}\r\n"), manifest.as_bytes()), false))
            }
            line => answer(line).map(|bytes| (bytes, true)),
        });
        let patience = Patience {
            connect: Duration::from_secs(5),
            answer: Duration::from_millis(300),
            silence: Duration::from_millis(300),
            pause: Duration::from_millis(1),
            attempts: 2,
        };
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("images")).unwrap();
        let name = format!("{host}/a:1").parse().unwrap();
        let options = Options { patience, ..Options::default() };
        let error = Client::new(&name, &options).unwrap().pull(&store, &()).unwrap_err();
        assert!(matches!(error, RegistryError::Connection { .. }), "{error}");
        assert!(store.find(&name).unwrap().is_none(), "an image that has not come has a name");
        error.to_string()
    };
    assert!(stops(|line| line.contains("/manifests/").then(Vec::new)).contains("manifests/1"));
    assert!(
        stops(|line| line.contains("/manifests/").then(|| b"HTTP/1.1 200 OK\r\ncont".to_vec())).contains("manifests/1")
    );
    assert!(
        stops(|line| line.contains("/manifests/").then(|| http("200 OK", "", b"x")[..40].to_vec()))
            .contains("manifests/1")
    );
    // One byte of the two of the configuration.
    let half =
        |line: &str| line.contains("/blobs/").then(|| http("200 OK", "", CONFIG).split_last().unwrap().1.to_vec());
    assert!(stops(half).contains("blobs/sha256:"));
}

/// No index can name itself, as it would have to hold its own digest; but another that in turn names more.
fn index_that_leads_in_a_circle() {
    let index = |digest: &str, size: usize| {
        format!(
            r#"{{"schemaVersion":2,"mediaType":"{INDEX}","manifests":[{{"mediaType":"{INDEX}","digest":"{digest}","size":{size},"platform":{{"os":"linux","architecture":"amd64"}}}}]}}"#
        )
    };
    let inner = index(&format!("sha256:{}", "0".repeat(64)), 2);
    let outer = index(&Digest::of(inner.as_bytes()).to_string(), inner.len());
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    let host = answering(move |line| {
        let body = match line {
            line if line.contains("/manifests/1") => &outer,
            line if line.contains("/manifests/") => &inner,
            _ => return http("200 OK", "", b"{}"),
        };
        count.fetch_add(1, Ordering::Relaxed);
        http("200 OK", &format!("content-type: {INDEX}\r\n"), body.as_bytes())
    });
    let own = OwnRoot::new();
    own.amphi(&["pull", &format!("{host}/a:1")]).finish().expect_error(125, &["a:1", "index"]);
    assert!(asked.load(Ordering::Relaxed) <= 2, "one index is followed, and no more");
    assert_eq!(own.store_files(), ["oci-layout"]);
}

/// The disk is full at every place in turn, and nothing of it stays but what the next attempt goes on with.
fn pull_to_a_full_disk() {
    if !rustix::process::geteuid().is_root() {
        println!("SKIPPED: a disk of a small size takes root");
        return;
    }
    let (registry, own) = (Registry::start(), OwnRoot::new());
    let noise: Vec<u8> =
        (0..1_u32 << 18).flat_map(|n| n.wrapping_mul(0x9E37_79B9).rotate_left(n % 32).to_le_bytes()).collect();
    let made = Made::new().layer(|root| fs::write(root.join("noise"), noise).unwrap());
    registry.fill(&made.layout(), "made", "a:1");
    let name = registry.name("a:1");
    let mut full = 0;
    for kibibytes in (64..8192).step_by(512) {
        // In a mount namespace of its own: first too little room, then enough.
        let script = format!(
            "mkdir -p $D/images && mount -t tmpfs -o size={kibibytes}k none $D/images || exit 99
             $AMPHI --root $D pull {name} 2>$D/error; status=$?
             $AMPHI --root $D images --quiet >$D/listed || exit 98
             mount -o remount,size=1g $D/images || exit 97
             $AMPHI --root $D pull {name} >/dev/null && $AMPHI --root $D run --rm --isolation container {name} true || exit 96
             exit $status"
        );
        let finished = Command::new("unshare")
            .args(["--mount", "--", "sh", "-c", &script])
            .env("D", own.path())
            .env("AMPHI", BINARY)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&finished.stderr);
        let error = fs::read_to_string(own.path().join("error")).unwrap();
        match finished.status.code() {
            Some(0) => break,
            Some(125) => {
                full += 1;
                assert!(error.contains("No space left on device"), "{error}");
                assert_eq!(fs::read_to_string(own.path().join("listed")).unwrap(), "", "an image that is not whole");
            }
            code => panic!("{code:?} with {kibibytes} KiB: {said} {error}"),
        }
    }
    assert!(full >= 3, "the disk was full {full} times only");
}
