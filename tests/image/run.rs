//! Images as what a workload finds.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use crate::harness::images::{Made, OwnRoot};
use crate::harness::registry::Registry;
use crate::harness::{Case, Isolation, both};

pub(crate) fn cases() -> Vec<Case> {
    [
        both("image_has_what_its_layers_make", image_has_what_its_layers_make),
        both("image_says_what_runs", image_says_what_runs),
        both("image_of_many_layers", image_of_many_layers),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// Lists all of the root but what a run adds: type, mode, owners, links, size, time, contents.
const LISTING: &str = r#"
find / \( -path /proc -o -path /sys -o -path /dev -o -path /etc/resolv.conf \) -prune -o -print | sort | while read -r f; do
  if [ -L "$f" ]; then echo "$f -> $(readlink "$f") $(stat -c '%u %g %Y' "$f")"
  elif [ -d "$f" ]; then echo "$f $(stat -c '%F %a %u %g' "$f")"
  elif [ -f "$f" ]; then echo "$f $(stat -c '%F %a %u %g %h %s %Y' "$f") $(md5sum <"$f")"
  else echo "$f $(stat -c '%F %a %u %g %t %T %Y' "$f")"; fi
done"#;

/// Layers with all that is difficult.
fn difficult() -> Made {
    Made::new()
        .layer(|root| {
            for folder in ["a", "b/c", "gone", "opaque", "becomes a file"] {
                fs::create_dir_all(root.join("srv").join(folder)).unwrap();
                fs::write(root.join("srv").join(folder).join("old"), "old").unwrap();
            }
            fs::write(root.join("srv/becomes a folder"), "old").unwrap();
            fs::write(root.join("srv/large"), vec![7; 300_000]).unwrap();
            fs::write(root.join("srv/setuid"), "x").unwrap();
            fs::set_permissions(root.join("srv/setuid"), fs::Permissions::from_mode(0o6755)).unwrap();
            std::os::unix::fs::lchown(root.join("srv/a"), Some(1000), Some(1001)).unwrap();
            fs::hard_link(root.join("srv/large"), root.join("srv/hard link")).unwrap();
            symlink("/nowhere", root.join("srv/link")).unwrap();
            fs::write(root.join("srv").join("n".repeat(200)), "long").unwrap();
            let old = std::time::UNIX_EPOCH - std::time::Duration::from_secs(1_000_000);
            fs::File::open(root.join("srv/b/c/old")).unwrap().set_modified(old).unwrap();
        })
        .layer(|root| {
            fs::remove_dir_all(root.join("srv/gone")).unwrap();
            fs::remove_dir_all(root.join("srv/opaque")).unwrap();
            fs::create_dir(root.join("srv/opaque")).unwrap();
            fs::write(root.join("srv/opaque/new"), "new").unwrap();
            fs::remove_dir_all(root.join("srv/becomes a file")).unwrap();
            fs::write(root.join("srv/becomes a file"), "new").unwrap();
            fs::remove_file(root.join("srv/becomes a folder")).unwrap();
            fs::create_dir(root.join("srv/becomes a folder")).unwrap();
            fs::write(root.join("srv/a/added"), "new").unwrap();
            fs::remove_file(root.join("srv/b/c/old")).unwrap();
        })
}

fn listing_of(root: &Path) -> String {
    let listed = Command::new("chroot").arg(root).args(["/bin/sh", "-c", LISTING]).output().unwrap();
    assert!(listed.status.success(), "{}", String::from_utf8_lossy(&listed.stderr));
    String::from_utf8(listed.stdout).unwrap().trim_end().to_owned()
}

fn lines(text: &str) -> Vec<String> {
    text.lines().map(str::to_owned).collect()
}

fn image_has_what_its_layers_make(isolation: Isolation) {
    let (registry, made, own) = (Registry::start(), Made::kept("difficult", difficult), OwnRoot::new());
    registry.fill(&made.layout(), "made", "test/difficult:1");
    let name = registry.name("test/difficult:1");
    let finished = own.run(isolation, &[&name, "/bin/sh", "-c", LISTING]).finish().expect(0);
    let expected = listing_of(&made.unpacked());
    let (found, expected): (Vec<_>, Vec<_>) = (lines(&finished.text()), lines(&expected));
    for (found, expected) in found.iter().zip(&expected) {
        assert_eq!(found, expected, "left in amphi, right as umoci unpacks it");
    }
    assert_eq!(found.len(), expected.len());
    // The image is there now, and is not written to.
    drop(registry);
    own.run(isolation, &[&name, "/bin/sh", "-c", "rm -r /srv && touch /new && ls /"]).finish().expect(0);
    own.run(isolation, &[&name, "/bin/sh", "-c", "test -e /srv/large && ! test -e /new"]).finish().expect(0);
}

fn image_says_what_runs(isolation: Isolation) {
    let registry = Registry::start();
    let configured = || {
        Made::new().config(&[
            "--config.entrypoint=/bin/sh",
            "--config.entrypoint=-c",
            "--config.cmd=echo $A $B; id -u; pwd",
            "--config.env=A=image",
            "--config.env=B=image",
            "--config.user=alice",
            "--config.workingdir=/home",
        ])
    };
    let (own, made) = (OwnRoot::new(), Made::kept("configured", configured));
    registry.fill(&made.layout(), "made", "test/config:1");
    let name = registry.name("test/config:1");
    own.run(isolation, &[&name]).finish().expect_text("image image\n1000\n/home");
    own.run(isolation, &["-e", "B=user", "-u", "0", "-w", "/", &name]).finish().expect_text("image user\n0\n/");
    own.run(isolation, &[&name, "echo command"]).finish().expect_text("command");
    own.run(isolation, &["--entrypoint", "/bin/echo", &name, "x"]).finish().expect_text("x");
    own.run(isolation, &["--entrypoint", "", &name, "/bin/echo", "y"]).finish().expect_text("y");
    own.run(isolation, &["--entrypoint", "", &name]).finish().expect_error(125, &["no command"]);
}

fn image_of_many_layers(isolation: Isolation) {
    let registry = Registry::start();
    let many = || {
        (0..9).fold(Made::new(), |made, number| {
            made.layer(|root| {
                fs::write(root.join(format!("srv-{number}")), number.to_string()).unwrap();
                fs::write(root.join("last"), number.to_string()).unwrap();
            })
        })
    };
    let (own, made) = (OwnRoot::new(), Made::kept("many", many));
    registry.fill(&made.layout(), "made", "test/many:1");
    let script = "cat /srv-0 /srv-3 /srv-4 /srv-8 /last";
    own.run(isolation, &[&registry.name("test/many:1"), "/bin/sh", "-c", script]).finish().expect_text("03488");
}
