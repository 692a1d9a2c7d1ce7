//! Commands that are killed at any moment leave a store that is whole.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use amphi::image::Digest;
use rustix::process::Signal;

use crate::harness::images::{Made, OwnRoot};
use crate::harness::registry::Registry;
use crate::harness::{Case, host};

/// How many commands are killed.
const KILLS: u64 = 200;

pub(crate) fn cases() -> Vec<Case> {
    vec![host("image_store_survives_kills", store_survives_kills)]
}

fn store_survives_kills() {
    let registry = Registry::start();
    let made = Made::new()
        .layer(|root| fs::write(root.join("noise"), noise_of(0)).unwrap())
        .layer(|root| fs::write(root.join("etc/third"), "3").unwrap());
    for name in ["a:1", "b:1"] {
        registry.fill(&made.layout(), "made", name);
    }
    let (first, second) = (registry.name("a:1"), registry.name("b:1"));
    let context = tempfile::tempdir().unwrap();
    fs::write(context.path().join("more"), noise_of(1 << 18)).unwrap();
    let dockerfile = format!("FROM {first}\nCOPY more /more\nWORKDIR /a/b\nCOPY Dockerfile .\n");
    fs::write(context.path().join("Dockerfile"), dockerfile).unwrap();
    let build = ["build", "-t", "d:1", context.path().to_str().unwrap()];
    let start = |own: &OwnRoot, command: &[&str]| own.amphi(command).env("SOURCE_DATE_EPOCH", "1700000000");
    // Of an image of its own, which is in use by it and so is never removed.
    let base = Made::new();
    let used = format!("oci:{}:made", base.layout().display());
    let commit = ["commit", "i", "e:1"];
    let with_instance = || {
        let own = OwnRoot::new();
        if rustix::process::geteuid().is_root() {
            start(&own, &["load", &used, "--name", "used:1"]).finish().expect(0);
            let write =
                "mkdir /d; dd if=/dev/zero of=/d/x bs=1M count=4 2>/dev/null; touch -d '2024-01-01 00:00' /d/x /d /";
            let run = ["run", "--isolation", "container", "--name", "i", "used:1", "/bin/sh", "-c", write];
            start(&own, &run).finish().expect(0);
        } else {
            println!("SKIPPED: commit, whose instance takes root");
        }
        own
    };
    let whole = with_instance();
    let _ = start(&whole, &commit).finish();
    start(&whole, &["pull", &first]).finish().expect(0);
    let built = start(&whole, &build).finish().expect(0).text();
    let expected = files(&whole.path().join("images/layers"));

    let own = with_instance();
    let layout = format!("oci:{}:made", made.layout().display());
    let commands: [&[&str]; 11] = [
        &["pull", &first],
        &["load", &layout],
        &["rmi", &first],
        &["pull", &second],
        &["tag", &second, "c:1"],
        &build,
        &commit,
        &["rmi", &second, "--force"],
        &commit,
        &build,
        &["prune"],
    ];
    // Not random, but it hits other moments every time: no two machines are as fast.
    let mut state = 1_u64;
    for kill in 0..KILLS {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let command = commands[usize::try_from(kill % 11).unwrap()];
        let started = start(&own, command).start();
        std::thread::sleep(Duration::from_micros((state >> 33) % 150_000));
        started.signal(Signal::KILL);
        drop(started.finish());
        check(&own, &expected);
    }
    let _ = start(&own, &commit).finish();
    own.amphi(&["pull", &first]).finish().expect(0);
    start(&own, &build).finish().expect_text(&built);
    own.amphi(&["prune"]).finish().expect(0);
    check(&own, &expected);
    assert_eq!(files(&own.path().join("images/layers")), expected);
    assert_eq!(files(&own.path().join("images/incoming")), BTreeMap::new());
}

/// What cannot be compressed.
fn noise_of(start: u32) -> Vec<u8> {
    (start..start + (1 << 18)).flat_map(|n| n.wrapping_mul(0x9E37_79B9).rotate_left(n % 32).to_le_bytes()).collect()
}

/// Every blob is what its name says, every layer is what an undisturbed store has, and all images are there.
fn check(own: &OwnRoot, expected: &BTreeMap<String, Digest>) {
    let images = own.path().join("images");
    for (name, digest) in files(&images.join("blobs/sha256")) {
        assert_eq!(name, digest.hex(), "a blob is not whole");
    }
    for (name, digest) in files(&images.join("layers")) {
        assert_eq!(expected.get(&name), Some(&digest), "the layer {name} is not whole");
    }
    let listed = own.amphi(&["images", "--quiet"]).finish().expect(0).text();
    for id in listed.lines() {
        own.amphi(&["inspect", id]).finish().expect(0);
    }
}

fn files(folder: &Path) -> BTreeMap<String, Digest> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .map(|entry| {
            let contents = fs::read(entry.path()).unwrap();
            (entry.file_name().into_string().unwrap(), Digest::of(&contents))
        })
        .collect()
}
