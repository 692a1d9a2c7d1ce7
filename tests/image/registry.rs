//! Registries that want to know who asks, and those that answer wrongly, late or not at all.

use std::fs;
use std::path::PathBuf;

use crate::harness::images::{Made, OwnRoot, tool};
use crate::harness::registry::{Breaking, Registry, answering, http};
use crate::harness::{Case, host};

pub(crate) fn cases() -> Vec<Case> {
    vec![
        host("image_registry_with_a_password", registry_with_a_password),
        host("image_registry_with_tls", registry_with_tls),
        host("image_registry_whose_connections_break", registry_whose_connections_break),
        host("image_registry_with_damaged_blobs", registry_with_damaged_blobs),
        host("image_registry_that_answers_wrongly", registry_that_answers_wrongly),
    ]
}

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
    assert_eq!(own.store_files(), ["oci-layout"], "nothing has come into the store");
    own.amphi(&["pull", "127.0.0.1:1/a"]).finish().expect_error(125, &["127.0.0.1:1"]);
}
