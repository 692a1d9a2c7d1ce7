//! What POSIX asks of a file system, of a volume. Takes a program that is built for it: `make posix`.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::harness::world::seconds;
use crate::harness::{Amphi, Case, Isolation, both, rootfs};

/// Where `make posix` puts pjdfstest.
const PROGRAM: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/target/pjdfstest/bin/pjdfstest");

/// Without remounting, and without a second file system.
const CONFIGURATION: &str = r#"
[features]
posix_fallocate = {}
utimensat = {}
utime_now = {}
rename_ctime = {}
[settings]
naptime = 0.02
[dummy_auth]
entries = [["nobody", "nobody"], ["tests", "tests"]]
"#;

pub(crate) fn cases() -> Vec<Case> {
    both("volume_passes_pjdfstest", passes_pjdfstest).into_iter().map(Case::on_request).collect()
}

/// All of its cases but those that make a device: a volume has none, and a container may not make any.
fn passes_pjdfstest(isolation: Isolation) {
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let (root, volume) = (folder.path().join("root"), folder.path().join("volume"));
    fs::create_dir(&volume).unwrap();
    // A copy of busybox under another name sleeps no more.
    rootfs::with_programs(&root, &["sleep"]);
    fs::copy(PROGRAM, root.join("bin/pjdfstest")).unwrap_or_else(|error| panic!("{PROGRAM}: {error}: make posix"));
    fs::write(root.join("etc/pjdfstest.toml"), CONFIGURATION).unwrap();
    append(&root.join("etc/passwd"), "nobody:x:65534:65534::/:/bin/sh\ntests:x:977:977::/:/bin/sh\n");
    append(&root.join("etc/group"), "nobody:x:65534:\ntests:x:977:\n");

    let image: OsString = format!("dir:{}", root.display()).into();
    let command = ["/bin/pjdfstest", "-c", "/etc/pjdfstest.toml", "-p", "/v"];
    let run = Amphi::run_image(isolation, &image, command).with(["-v", &format!("{}:/v", volume.display())]);
    let finished = run.start().within(seconds(120)).finish();
    let text = finished.text();
    let summary = text.lines().find(|line| line.starts_with("Summary:"));
    let summary = summary.unwrap_or_else(|| panic!("it did not get to its end {finished}"));
    println!("{isolation}: {summary}");
    let failed: Vec<_> = text.lines().filter_map(|line| line.strip_suffix("FAILED")).map(str::trim_end).collect();
    let others: Vec<_> = failed.iter().filter(|name| !is_about_a_device(name)).collect();
    assert!(others.is_empty(), "{others:?} {finished}");
    assert!(summary.ends_with(" 398 total") && failed.len() < 100, "{summary}");
}

fn is_about_a_device(case: &str) -> bool {
    ["::char", "::block"].iter().any(|kind| case.ends_with(kind))
}

fn append(path: &Path, lines: &str) {
    let text = fs::read_to_string(path).unwrap();
    fs::write(path, text + lines).unwrap();
}
