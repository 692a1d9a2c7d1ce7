//! Pulling, pushing, and the names of images.

use crate::harness::images::{Made, OwnRoot, tool};
use crate::harness::registry::Registry;
use crate::harness::{Case, host};

pub(crate) fn cases() -> Vec<Case> {
    vec![
        host("image_pull_lists_and_removes", pull_lists_and_removes),
        host("image_pull_by_digest", pull_by_digest),
        host("image_load_and_save", load_and_save),
        host("image_of_buildah", image_of_buildah),
        host("image_push_sends_what_is_missing", push_sends_what_is_missing),
    ]
}

fn pull_lists_and_removes() {
    let (registry, own) = (Registry::start(), OwnRoot::new());
    let made = Made::new().layer(|root| std::fs::write(root.join("second"), "2").unwrap());
    registry.fill(&made.layout(), "made", "test/a:1");
    let name = registry.name("test/a:1");
    let pulled = own.amphi(&["pull", &name]).finish().expect(0);
    assert!(pulled.text().starts_with("sha256:"), "{pulled}");
    let images = own.amphi(&["images", "--format", "json"]).finish().expect(0).text();
    assert!(images.contains(&format!("\"name\": \"{name}\"")), "{images}");
    assert!(own.amphi(&["images"]).finish().expect(0).text().contains("test/a"));
    let history = own.amphi(&["history", &name]).finish().expect(0);
    assert_eq!(history.text().lines().filter(|line| line.contains("umoci repack")).count(), 2, "{history}");
    let inspected = own.amphi(&["inspect", &name]).finish().expect(0).text();
    assert!(inspected.contains("\"architecture\": \"amd64\"") && inspected.contains(&pulled.text()), "{inspected}");

    own.amphi(&["tag", &name, "other:2"]).finish().expect(0);
    own.amphi(&["rmi", &name]).finish().expect(0);
    own.amphi(&["inspect", &name]).finish().expect_error(125, &["test/a:1", "not in the store"]);
    own.amphi(&["inspect", "other:2"]).finish().expect(0);
    own.amphi(&["rmi", "other:2"]).finish().expect(0);
    assert_eq!(own.store_files(), ["index.json", "oci-layout"]);
}

fn pull_by_digest() {
    let (registry, own, made) = (Registry::start(), OwnRoot::new(), Made::new());
    registry.fill(&made.layout(), "made", "test/a:1");
    let digest = own.amphi(&["pull", &registry.name("test/a:1")]).finish().expect(0).text();
    let name = registry.name(&format!("test/a@{digest}"));
    own.amphi(&["pull", &name]).finish().expect_text(&digest);
    own.amphi(&["inspect", &name]).finish().expect(0);
    let wrong = registry.name(&format!("test/a@sha256:{}", "0".repeat(64)));
    own.amphi(&["pull", &wrong]).finish().expect_error(125, &["test/a@sha256:000", "not in its registry"]);
}

fn push_sends_what_is_missing() {
    let (registry, own) = (Registry::start(), OwnRoot::new());
    let made = Made::new().layer(|root| std::fs::write(root.join("second"), "2").unwrap());
    registry.fill(&made.layout(), "made", "test/a:1");
    let name = registry.name("test/a:1");
    let digest = own.amphi(&["pull", &name]).finish().expect(0).text();
    let sent = |log: &str| {
        log.lines().filter(|line| line.contains("http.request.method=PUT") && line.contains("/blobs/uploads/")).count()
    };
    let before = sent(&registry.log());
    // All is there.
    let pushed = own.amphi(&["push", &name]).finish().expect(0);
    assert!(pushed.errors().contains("0 sent, 0 taken from another repository, 3 there already"), "{pushed}");
    // The layers are in another repository.
    let other = registry.name("elsewhere/b:2");
    own.amphi(&["tag", &name, &other]).finish().expect(0);
    let pushed = own.amphi(&["push", &other]).finish().expect(0);
    assert!(pushed.errors().contains("1 sent, 2 taken from another repository, 0 there already"), "{pushed}");
    assert_eq!(pushed.text(), digest);
    assert_eq!(sent(&registry.log()) - before, 1, "{}", registry.log());
    // Another registry has nothing yet, and another tool finds all of it afterwards.
    let second = Registry::start();
    let pushed = own.amphi(&["push", &name, &second.name("c:3")]).finish().expect(0);
    assert!(pushed.errors().contains("3 sent"), "{pushed}");
    let copy = tempfile::tempdir().unwrap();
    let target = format!("oci:{}:copy", copy.path().display());
    let source = format!("docker://{}", second.name("c:3"));
    tool("skopeo", &["copy", "-q", "--src-tls-verify=false", &source, &target]);
    let by_digest = second.name(&format!("c@{digest}"));
    own.amphi(&["push", &name, &by_digest]).finish().expect_error(125, &["c@sha256", "needs a tag"]);
}

fn load_and_save() {
    let (own, made, folder) = (OwnRoot::new(), Made::new(), tempfile::tempdir().unwrap());
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let layout = made.layout();
    own.amphi(&["load", &format!("oci:{}:made", layout.display())]).finish().expect_text("loaded made:latest");
    let id = |name: &str| {
        let images = own.amphi(&["images", "--quiet"]).finish().expect(0).text();
        own.amphi(&["inspect", name]).finish().expect(0);
        images
    };
    let first = id("made");
    // What other tools have made.
    tool(
        "skopeo",
        &["copy", "-q", &format!("oci:{}:made", layout.display()), &format!("docker-archive:{}:d:1", path("docker"))],
    );
    tool(
        "skopeo",
        &["copy", "-q", &format!("oci:{}:made", layout.display()), &format!("oci-archive:{}:o", path("oci"))],
    );
    own.amphi(&["load", &path("docker")]).finish().expect_text("loaded d:1");
    own.amphi(&["load", &path("oci"), "--name", "named:2"]).finish().expect_text("loaded named:2");
    // What other tools make of ours.
    own.amphi(&["save", "-o", &path("saved"), "made", "named:2"]).finish().expect(0);
    tool(
        "skopeo",
        &["copy", "-q", &format!("docker-archive:{}:made:latest", path("saved")), &format!("dir:{}", path("dir"))],
    );
    own.amphi(&["save", "-o", &format!("oci:{}:x", path("layout")), "made"]).finish().expect(0);
    tool("umoci", &["unpack", "--image", &format!("{}:x", path("layout")), &path("bundle")]);
    assert!(folder.path().join("bundle/rootfs/bin/busybox").exists());
    let other = OwnRoot::new();
    other.amphi(&["load", &path("saved")]).finish().expect(0);
    assert!(other.amphi(&["images", "--quiet"]).finish().expect(0).text().contains(&first));
    // What is none.
    own.amphi(&["load", &path("nowhere")]).finish().expect_error(125, &["nowhere"]);
    std::fs::write(path("text"), "text").unwrap();
    own.amphi(&["load", &path("text")]).finish().expect_error(125, &["text"]);
    own.amphi(&["load", &format!("oci:{}:other", layout.display())]).finish().expect_error(125, &["no image"]);
}

/// Images in both formats, and with zstd, as buildah writes them; and what it makes of one of ours.
fn image_of_buildah() {
    let (own, folder) = (OwnRoot::new(), tempfile::tempdir().unwrap());
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (root, run) = (path("storage"), path("run"));
    let buildah = |args: &[&str]| {
        let storage = ["--storage-driver", "vfs", "--root", &root, "--runroot", &run];
        tool("buildah", &[&storage[..], args].concat()).trim_end().to_owned()
    };
    std::fs::create_dir(path("context")).unwrap();
    std::fs::write(path("context/file"), "what is in it").unwrap();
    let container = buildah(&["from", "scratch"]);
    buildah(&["copy", "--chown", "7:8", &container, &path("context"), "/srv"]);
    buildah(&["config", "--cmd", "[\"/srv/file\"]", "--env", "A=1", "--label", "l=2", &container]);
    buildah(&["commit", "-q", &container, &format!("oci:{}:b", path("layout"))]);
    buildah(&[
        "commit",
        "-q",
        "--format",
        "docker",
        &container,
        &format!("docker-archive:{}:b:docker", path("docker")),
    ]);
    own.amphi(&["load", &format!("oci:{}:b", path("layout"))]).finish().expect_text("loaded b:latest");
    own.amphi(&["load", &path("docker")]).finish().expect_text("loaded b:docker");
    let zstd = ["copy", "-q", "--dest-compress-format", "zstd", "--dest-oci-accept-uncompressed-layers=false"];
    tool("skopeo", &[&zstd[..], &[&format!("oci:{}:b", path("layout")), &format!("oci:{}:z", path("zstd"))]].concat());
    own.amphi(&["load", &format!("oci:{}:z", path("zstd"))]).finish().expect_text("loaded z:latest");
    for name in ["b", "b:docker", "z"] {
        let inspected = own.amphi(&["inspect", name]).finish().expect(0).text();
        for part in ["\"/srv/file\"", "\"A=1\"", "\"l\": \"2\""] {
            assert!(inspected.contains(part), "{part}: {inspected}");
        }
    }
    own.amphi(&["save", "-o", &path("ours"), "b"]).finish().expect(0);
    let again =
        buildah(&["from", "--pull=never", &buildah(&["pull", "-q", &format!("docker-archive:{}", path("ours"))])]);
    let mounted = buildah(&["mount", &again]);
    assert_eq!(std::fs::read_to_string(format!("{mounted}/srv/file")).unwrap(), "what is in it");
    buildah(&["rm", "--all"]);
}
