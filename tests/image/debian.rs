//! A whole distribution as an image. Takes some minutes and the distribution's archive: `cargo test --test integration --
//! --ignored debian`, as root.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::Command;

use crate::harness::images::{Made, OwnRoot, tool};
use crate::harness::registry::Registry;
use crate::harness::{Case, Isolation, both};

pub(crate) fn cases() -> Vec<Case> {
    both("image_of_debian_is_the_same_everywhere", same_everywhere).into_iter().map(Case::on_request).collect()
}

/// Where this machine's packages come from.
fn archive() -> String {
    let targets = tool("apt-get", &["indextargets", "--format", "$(RELEASE) $(REPO_URI)", "Created-By: Packages"]);
    let own = targets.lines().filter_map(|line| line.split_once(' ')).find(|(release, _)| !release.contains('-'));
    own.expect("apt knows an archive").1.to_owned()
}

/// What debootstrap makes, and three layers over it: capabilities and attributes; much that is removed; 100 MiB that are added.
fn debian() -> Made {
    Made::empty()
        .layer(|root| {
            let archive = archive();
            let root = root.to_str().unwrap();
            tool("debootstrap", &["--variant=minbase", "--include=attr,libcap2-bin", "stable", root, &archive]);
        })
        .layer(|root| {
            let path = |name: &str| root.join(name).to_str().unwrap().to_owned();
            tool("setcap", &["cap_net_raw+ep", &path("usr/bin/getfattr")]);
            tool("setfattr", &["-n", "user.note", "-v", "a note", &path("etc/debian_version")]);
            tool("chown", &["-h", "1000:1001", &path("etc/os-release")]);
            fs::hard_link(root.join("usr/bin/perl"), root.join("usr/local/bin/perl too")).unwrap();
        })
        .layer(|root| {
            for folder in ["usr/share/doc", "usr/share/locale", "var/lib/apt/lists", "var/cache"] {
                fs::remove_dir_all(root.join(folder)).unwrap();
            }
            fs::create_dir(root.join("var/cache")).unwrap();
            fs::write(root.join("var/cache/new"), "over what was there").unwrap();
            fs::remove_file(root.join("usr/bin/watch")).ok();
        })
        .layer(|root| {
            let mut large = fs::File::create(root.join("srv/large")).unwrap();
            let mut state = 1_u64;
            for _ in 0..100 {
                let noise = std::iter::repeat_with(|| {
                    state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    state.to_le_bytes()[7]
                });
                large.write_all(&noise.take(1 << 20).collect::<Vec<_>>()).unwrap();
            }
        })
}

/// Type, mode, owners, links, size, time; then what is in the files; then attributes. What a run adds is left out.
const LISTING: &str = r"
cd /; export LC_ALL=C
all() { find . \( -path ./proc -o -path ./sys -o -path ./dev -o -path ./etc/resolv.conf \) -prune -o $* ; }
all -type d -printf '%p|d|%m|%U|%G\n' -o -type f -printf '%p|f|%m|%U|%G|%n|%s|%Ts\n' -o -printf '%p|%y|%m|%U|%G|%l|%Ts\n' | sort
all -type f -print0 | sort -z | xargs -0 sha256sum
all -print0 | sort -z | xargs -0 getfattr -h -d -m - -e hex
";

fn lines(text: &[u8]) -> Vec<String> {
    String::from_utf8_lossy(text).lines().map(str::to_owned).collect()
}

/// The listing of what umoci has unpacked. In the lab it is the one that was kept on the host, whose attributes the lab does not
/// see.
fn expected(made: &Made) -> Vec<String> {
    let unpacked = made.unpacked();
    let kept = unpacked.with_file_name("listing");
    if !kept.exists() {
        fs::write(&kept, listing_of(&unpacked)).unwrap();
    }
    lines(&fs::read(&kept).unwrap())
}

fn listing_of(root: &Path) -> Vec<u8> {
    let listed = Command::new("chroot").arg(root).args(["/bin/bash", "-c", LISTING]).output().unwrap();
    assert!(listed.status.success(), "{}", String::from_utf8_lossy(&listed.stderr));
    listed.stdout
}

fn same_everywhere(isolation: Isolation) {
    let (registry, made, own) = (Registry::start(), Made::kept("debian", debian), OwnRoot::new());
    registry.fill(&made.layout(), "made", "test/debian:1");
    let name = registry.name("test/debian:1");
    let pulled = own.amphi(&["pull", &name]).start().within(crate::harness::world::seconds(120));
    pulled.finish().expect(0);
    let run = own.run(isolation, &["--memory", "1G", &name, "/bin/bash", "-c", LISTING]).start();
    let found = lines(&run.within(crate::harness::world::seconds(120)).finish().expect(0).stdout);
    let expected = expected(&made);
    for (found, expected) in found.iter().zip(&expected) {
        assert_eq!(found, expected, "left in amphi, right as umoci unpacks it");
    }
    assert_eq!(found.len(), expected.len());
    println!("{} lines are the same", found.len());
    for part in ["security.capability", "user.note", "srv/large", "perl too", "var/cache/new"] {
        assert!(found.iter().any(|line| line.contains(part)), "{part} is not in the listing");
    }
    assert!(!found.iter().any(|line| line.contains("usr/share/doc/")));
}
