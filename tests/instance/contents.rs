//! What an instance has written: `diff`, `commit` and `cp`.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

use serde_json::Value;

use super::run;
use crate::harness::images::{Made, OwnRoot, tool};
use crate::harness::registry::Registry;
use crate::harness::{Case, Isolation, both, vm};

pub(crate) fn cases() -> Vec<Case> {
    [
        both("instance_changes_are_listed", instance_changes_are_listed),
        both("instance_becomes_an_image", instance_becomes_an_image),
        vec![vm("instance_becomes_an_image_for_the_other", instance_becomes_an_image_for_the_other)],
        both("instance_of_a_directory_has_no_layers", instance_of_a_directory_has_no_layers),
        both("instance_takes_and_gives_files", instance_takes_and_gives_files),
        both("instance_takes_and_gives_archives", instance_takes_and_gives_archives),
        both("instance_links_lead_nowhere", instance_links_lead_nowhere),
        both("instance_that_runs_is_not_copied", instance_that_runs_is_not_copied),
        both("instance_has_a_limit", instance_has_a_limit),
        both("instance_that_is_read_only", instance_that_is_read_only),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// An image with folders in two layers, as `app:1`.
fn with_image(own: &OwnRoot) {
    let made = Made::new()
        .layer(|root| {
            fs::create_dir_all(root.join("srv/d/sub")).unwrap();
            fs::create_dir_all(root.join("srv/keep")).unwrap();
            for name in ["srv/d/f", "srv/d/sub/x", "srv/g", "srv/keep/k", "srv/same"] {
                fs::write(root.join(name), name).unwrap();
            }
        })
        .layer(|root| {
            fs::write(root.join("srv/d/second"), "2").unwrap();
            fs::write(root.join("srv/h"), "h").unwrap();
        });
    let layout = format!("oci:{}:made", made.layout().display());
    own.amphi(&["load", "--name", "app:1", &layout]).finish().expect(0);
}

fn run_app(own: &OwnRoot, isolation: Isolation, name: &str, script: &str) {
    let args = ["run", "--isolation", isolation.name(), "--name", name, "app:1", "--", "/bin/sh", "-c", script];
    own.amphi(&args).finish().expect(0);
}

const CHANGES: &str = "set -e
    echo new >/new; chown 7:8 /new; chmod 4750 /new; ln /new /again; ln -s /no/where /link; mkfifo /pipe
    rm -r /srv/d; mkdir /srv/d; echo 3 >/srv/d/n; mkdir /srv/d/sub
    rm /srv/g; echo more >>/srv/h; echo x >/srv/x; rm /srv/x; mkdir -p /a/b
    dd if=/dev/zero of=/holes bs=1 seek=3000000 count=1 2>/dev/null";

const LISTED: &str = "\
A /a
A /a/b
A /again
A /holes
A /link
A /new
A /pipe
C /srv
C /srv/d
D /srv/d/f
A /srv/d/n
D /srv/d/second
C /srv/d/sub
D /srv/d/sub/x
D /srv/g
C /srv/h";

fn instance_changes_are_listed(isolation: Isolation) {
    let own = OwnRoot::new();
    with_image(&own);
    run_app(&own, isolation, "quiet", "cat /srv/h >/dev/null; echo x >/dev/shm/x");
    own.amphi(&["diff", "quiet"]).finish().expect_text("");
    run_app(&own, isolation, "one", CHANGES);
    own.amphi(&["diff", "one"]).finish().expect_text(LISTED);
    let json = own.amphi(&["diff", "--format", "json", "one"]).finish().expect(0);
    let json: Vec<Value> = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(json.len(), LISTED.lines().count());
    assert_eq!((&json[0]["kind"], &json[0]["path"]), (&"A".into(), &"/a".into()));
    own.amphi(&["diff", "nobody"]).finish().expect_error(125, &["nobody"]);
}

/// All that `CHANGES` changes, and some that it does not, in one text.
const LOOK: &str = "cd /; stat -c '%n %a %u:%g %h %F' new again pipe a/b srv/d srv/d/sub; readlink link; cat new srv/h srv/keep/k srv/same
    stat -c %s holes; ls srv srv/d srv/d/sub";

fn instance_becomes_an_image(isolation: Isolation) {
    let own = OwnRoot::new();
    with_image(&own);
    run_app(&own, isolation, "one", &format!("{CHANGES}\n( {LOOK} ) >/seen"));
    let options = ["-a", "somebody", "-m", "a remark", "-c", "ENV GREETING=\"good day\"", "-c", "CMD [\"/bin/sh\"]"];
    let id = own.amphi(&[&["commit"], &options[..], &["one", "app:2"]].concat()).finish().expect(0).text();
    assert!(id.starts_with("sha256:"), "{id}");
    let inspected = own.amphi(&["inspect", "app:2"]).finish().expect(0);
    let image: Value = serde_json::from_slice(&inspected.stdout).unwrap();
    assert_eq!(image["config"]["author"], "somebody");
    assert_eq!(image["config"]["config"]["Cmd"][0], "/bin/sh");
    let parent = own.amphi(&["inspect", "app:1"]).finish().expect(0);
    let parent: Value = serde_json::from_slice(&parent.stdout).unwrap();
    let (below, above) = (&parent["layers"]["layers"], &image["layers"]["layers"]);
    assert_eq!(above.as_array().unwrap().len(), below.as_array().unwrap().len() + 1, "one layer more");
    assert_eq!(above[0], below[0]);
    let step = image["config"]["history"].as_array().unwrap().last().unwrap();
    assert_eq!((&step["comment"], &step["author"]), (&"a remark".into(), &"somebody".into()));

    // Either isolation has what the instance had.
    let script = format!("( {LOOK} ) >/now; cmp /seen /now && echo $GREETING");
    own.run(isolation, &["app:2", "--", "/bin/sh", "-c", &script]).finish().expect_text("good day");
    let wrong = own.amphi(&["commit", "-c", "RUN x", "one", "app:3"]).finish();
    wrong.expect_error(125, &["--change", "RUN x"]);
    own.amphi(&["rmi", "app:3"]).finish().expect(125);
}

/// What one isolation has written is an image for the other, and all that a push of it moves is its layer.
fn instance_becomes_an_image_for_the_other() {
    let own = OwnRoot::new();
    with_image(&own);
    let registry = Registry::start();
    let base = registry.name("app:1");
    let sent = |log: &str| {
        log.lines().filter(|line| line.contains("http.request.method=PUT") && line.contains("/blobs/uploads/")).count()
    };
    own.amphi(&["push", "app:1", &base]).finish().expect(0);
    for (from, to) in [(Isolation::Vm, Isolation::Container), (Isolation::Container, Isolation::Vm)] {
        let (instance, image) = (format!("from-{from}"), registry.name(&format!("app:{from}")));
        run_app(&own, from, &instance, &format!("{CHANGES}\n( {LOOK} ) >/seen"));
        own.amphi(&["diff", &instance]).finish().expect_text(&LISTED.replace("C /srv\n", "A /seen\nC /srv\n"));
        own.amphi(&["commit", &instance, &image]).finish().expect(0);
        let script = format!("( {LOOK} ) >/now; cmp /seen /now && echo same");
        own.run(to, &[&image, "--", "/bin/sh", "-c", &script]).finish().expect_text("same");
        let before = sent(&registry.log());
        own.amphi(&["push", &image]).finish().expect(0);
        // The layer, and the configuration.
        assert_eq!(sent(&registry.log()) - before, 2, "{}", registry.log());
    }
}

fn instance_of_a_directory_has_no_layers(isolation: Isolation) {
    let own = OwnRoot::new();
    run(&own, isolation, "one", "echo x >/new").finish().expect(0);
    own.amphi(&["diff", "one"]).finish().expect_text("A /new");
    own.amphi(&["commit", "one", "app:1"]).finish().expect_error(125, &["one", "no image of the store"]);
}

fn instance_takes_and_gives_files(isolation: Isolation) {
    let own = OwnRoot::new();
    run(
        &own,
        isolation,
        "one",
        "mkdir /w; echo made >/w/made; chown 7:8 /w/made; chmod 4750 /w/made; ln /w/made /w/same",
    )
    .finish()
    .expect(0);
    let here = own.path().join("here");
    fs::create_dir_all(here.join("sub")).unwrap();
    fs::write(here.join("a"), "a").unwrap();
    fs::write(here.join("sub/b"), "b").unwrap();
    symlink("a", here.join("l")).unwrap();
    fs::set_permissions(here.join("a"), fs::Permissions::from_mode(0o640)).unwrap();
    std::os::unix::fs::chown(here.join("a"), Some(5), Some(6)).unwrap();
    let path = |name: &str| here.join(name).to_str().unwrap().to_owned();
    for (source, destination) in [
        (path("a"), "one:/w"),
        (path("a"), "one:/w/renamed"),
        (path(""), "one:/w"),
        (path("."), "one:/w/flat/"),
        (path("sub/."), "one:w"),
    ] {
        own.amphi(&["cp", &source, destination]).finish().expect_text("");
    }
    own.amphi(&["cp", "-a", &path("a"), "one:/w/kept"]).finish().expect_text("");
    let (a, sub) = (path("a"), path("sub"));
    for (source, destination, word) in [
        (&*a, "one:/w/none/", "/w/none"),
        (&a, "one:/none/x", "/none/x"),
        (&sub, "one:/w/made", "directory"),
        (&a, "nobody:/", "nobody"),
    ] {
        own.amphi(&["cp", source, destination]).finish().expect_error(125, &[word]);
    }

    let there = own.path().join("there");
    fs::create_dir(&there).unwrap();
    let to = there.to_str().unwrap();
    own.amphi(&["cp", "one:/w", to]).finish().expect_text("");
    for (name, contents, mode) in [
        ("made", "made\n", 0o750),
        ("a", "a", 0o640),
        ("renamed", "a", 0o640),
        ("here/a", "a", 0o640),
        ("here/sub/b", "b", 0o644),
        ("flat/sub/b", "b", 0o644),
        ("b", "b", 0o644),
        ("kept", "a", 0o640),
    ] {
        let file = there.join("w").join(name);
        assert_eq!(fs::read_to_string(&file).unwrap(), contents, "{name}");
        let metadata = file.metadata().unwrap();
        assert_eq!((metadata.mode() & 0o7777, metadata.uid()), (mode, 0), "{name}");
    }
    assert_eq!(fs::read_link(there.join("w/here/l")).unwrap().to_str(), Some("a"));
    assert_eq!(there.join("w/made").metadata().unwrap().ino(), there.join("w/same").metadata().unwrap().ino());
    own.amphi(&["cp", "-a", "one:/w/made", &format!("{to}/owned")]).finish().expect_text("");
    let owned = there.join("owned").metadata().unwrap();
    assert_eq!((owned.mode() & 0o7777, owned.uid(), owned.gid()), (0o4750, 7, 8));
    own.amphi(&["cp", "one:/nope", to]).finish().expect_error(125, &["/nope"]);
    own.amphi(&["cp", "one:/w", &format!("{to}/owned")]).finish().expect_error(125, &["owned"]);
    let seen = own.amphi(&["cp", "one:/etc/passwd", "-"]).finish().expect(0).stdout;
    assert!(seen.starts_with(b"passwd\0"), "what the image has is there too");
}

fn instance_takes_and_gives_archives(isolation: Isolation) {
    let own = OwnRoot::new();
    run(&own, isolation, "one", "mkdir /w; echo 1 >/w/1; ln /w/1 /w/2; mkdir /w/sub; chown 7:8 /w/sub")
        .finish()
        .expect(0);
    let archive = own.amphi(&["cp", "one:/w", "-"]).finish().expect(0).stdout;
    let file = own.path().join("w.tar");
    fs::write(&file, &archive).unwrap();
    let listed = tool("tar", &["--list", "--verbose", "--numeric-owner", "--file", file.to_str().unwrap()]);
    let names: Vec<_> = listed.lines().map(|line| line.split_whitespace().nth(5).unwrap()).collect();
    assert_eq!(names, ["w/", "w/1", "w/2", "w/sub/"]);
    assert!(listed.contains("7/8") && listed.contains("link to w/1"), "{listed}");
    own.amphi(&["cp", "-", "one:/tmp"]).input(archive).finish().expect_text("");
    let out = own.path().join("out");
    own.amphi(&["cp", "-a", "one:/tmp/w", out.to_str().unwrap()]).finish().expect_text("");
    assert_eq!((out.join("sub").metadata().unwrap().uid(), fs::read(out.join("2")).unwrap()), (7, b"1\n".to_vec()));
    own.amphi(&["cp", "-", "one:/nowhere"]).input("x").finish().expect_error(125, &["/nowhere"]);
    own.amphi(&["cp", "-", "one:/tmp"]).input("no archive").finish().expect_error(125, &["archive"]);
}

fn instance_links_lead_nowhere(isolation: Isolation) {
    let own = OwnRoot::new();
    let outside = own.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("secret"), "secret").unwrap();
    let script = format!(
        "ln -s {0} /abs; ln -s ../../../../../../../../..{0} /rel; mkdir /w; ln -s {0}/planted /w/f; ln -s /proc/1/root /top",
        outside.display()
    );
    run(&own, isolation, "one", &script).finish().expect(0);
    let here = own.path().join("planted");
    fs::write(&here, "planted").unwrap();
    for link in ["abs", "rel", "top/tmp"] {
        let path = format!("one:/{link}/");
        own.amphi(&["cp", here.to_str().unwrap(), &path]).finish().expect_error(125, &[link]);
        own.amphi(&["cp", &format!("one:/{link}/secret"), "-"]).finish().expect_error(125, &["secret"]);
    }
    // A link in the place of a file is replaced, not followed.
    own.amphi(&["cp", here.to_str().unwrap(), "one:/w/f"]).finish().expect(0);
    let names: Vec<_> = fs::read_dir(&outside).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["secret"]);
    let out = own.path().join("out");
    own.amphi(&["cp", "one:/abs", out.to_str().unwrap()]).finish().expect(0);
    assert!(out.symlink_metadata().unwrap().is_symlink(), "a link is copied as one");
}

fn instance_that_runs_is_not_copied(isolation: Isolation) {
    let own = OwnRoot::new();
    let mut running = run(&own, isolation, "one", "echo x >/new; sync; echo up; while :; do sleep 1; done").start();
    running.wait_for_output("up");
    let out = own.path().join("out");
    for args in
        [&["cp", "one:/new", out.to_str().unwrap()][..], &["cp", "/etc/passwd", "one:/"], &["commit", "one", "x:1"]]
    {
        own.amphi(args).finish().expect_error(125, &["one", "stop it first"]);
    }
    if isolation == Isolation::Container {
        own.amphi(&["diff", "one"]).finish().expect_text("A /new");
    }
    own.amphi(&["rm", "-f", "one"]).finish().expect(0);
    drop(running);
}

fn instance_has_a_limit(isolation: Isolation) {
    let own = OwnRoot::new();
    with_image(&own);
    let fill = "dd if=/dev/zero of=/big bs=1M count=100 2>/dev/null; ls -l /big | while read -r a b c d size rest; do echo $size; done; rm /big";
    let limited = |options: &[&str]| {
        let base = ["run", "--isolation", isolation.name(), "--storage-opt", "size=32M"];
        let command = ["app:1", "--", "/bin/sh", "-c"];
        let script = format!("{fill}; echo x >/new");
        let written = own.amphi(&[&base[..], options, &command, &[&script]].concat()).finish().expect(0).text();
        let written: u64 = written.parse().unwrap();
        assert!((16 << 20..=32 << 20).contains(&written), "{written}");
    };
    limited(&["--rm"]);
    limited(&["--name", "one"]);
    own.amphi(&["diff", "one"]).finish().expect_text("A /new");
    let archive = own.amphi(&["cp", "one:/new", "-"]).finish().expect(0).stdout;
    own.amphi(&["cp", "-", "one:/tmp"]).input(archive).finish().expect(0);
    own.amphi(&["commit", "one", "app:2"]).finish().expect(0);
    own.run(isolation, &["app:2", "--", "cat", "/new", "/tmp/new"]).finish().expect_text("x\nx");
    let again: u64 = own.amphi(&["start", "-a", "one"]).finish().expect(0).text().parse().unwrap();
    assert!(again <= 32 << 20, "{again}");
    let base = ["run", "--isolation", isolation.name(), "--storage-opt"];
    own.amphi(&[&base[..], &["size=1M", "app:1", "true"]].concat())
        .finish()
        .expect_error(125, &["--storage-opt", "16 MiB"]);
    own.amphi(&[&base[..], &["inodes=1", "app:1", "true"]].concat()).finish().expect_error(125, &["--storage-opt"]);
    let left = own.amphi(&["ps", "-aq"]).finish().expect(0).text();
    assert_eq!(left.lines().count(), 1, "a run that could not begin leaves nothing");
}

fn instance_that_is_read_only(isolation: Isolation) {
    let own = OwnRoot::new();
    with_image(&own);
    let base = ["run", "--isolation", isolation.name(), "--read-only", "--name", "one", "app:1", "--", "/bin/sh", "-c"];
    let script = "echo x >/new || echo refused; echo x >/dev/shm/x && echo written";
    own.amphi(&[&base[..], &[script]].concat()).finish().expect_text("refused\nwritten");
    own.amphi(&["diff", "one"]).finish().expect_text("");
    own.amphi(&["start", "-a", "one"]).finish().expect_text("refused\nwritten");
}
