//! The image: what this machine has, in the mixture that images have of programs, libraries and many small files.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use crate::tools::tool;
use crate::world;

/// Of each layer, in bytes.
const LAYER: u64 = 100_000_000;
/// Where each layer's files are from.
const SOURCES: [&str; 3] = ["/usr/lib/x86_64-linux-gnu", "/usr/share", "/usr/bin"];

/// Makes it, with `directory` for what is needed on the way, and keeps it where the lab sees it too; returns it as `LAYOUT:TAG`.
pub(crate) fn layout(directory: &Path) -> String {
    let kept = Path::new(env!("CARGO_TARGET_TMPDIR")).join("bench-image");
    let kept_image = format!("{}:made", kept.display());
    if kept.exists() {
        return kept_image;
    }
    world::progress("making an image of 300 MB");
    let layout = kept.with_extension("new");
    let _ = fs::remove_dir_all(&layout);
    let image = format!("{}:made", layout.display());
    tool("umoci", &["init", "--layout", layout.to_str().unwrap()]);
    tool("umoci", &["new", "--image", &image]);
    let bundle = directory.join("bundle");
    for (number, source) in SOURCES.into_iter().enumerate() {
        tool("umoci", &["unpack", "--image", &image, bundle.to_str().unwrap()]);
        let root = bundle.join("rootfs");
        if number == 0 {
            shell(&root);
        }
        copy(Path::new(source), &root.join(source.trim_start_matches('/')), &mut 0);
        tool("umoci", &["repack", "--image", &image, bundle.to_str().unwrap()]);
        fs::remove_dir_all(&bundle).unwrap();
    }
    fs::rename(layout, kept).unwrap();
    kept_image
}

/// A static shell and its commands.
fn shell(root: &Path) {
    for folder in ["bin", "proc", "sys", "dev", "tmp", "etc", "usr"] {
        fs::create_dir_all(root.join(folder)).unwrap();
    }
    fs::copy("/bin/busybox", root.join("bin/busybox")).unwrap();
    let listed = Command::new("/bin/busybox").arg("--list").output().unwrap().stdout;
    for name in String::from_utf8(listed).unwrap().lines().filter(|&name| name != "busybox") {
        symlink("busybox", root.join("bin").join(name)).unwrap();
    }
}

/// Copies a tree, in the order of its names, until the layer is full. Odd files are left out.
fn copy(from: &Path, to: &Path, sum: &mut u64) {
    fs::create_dir_all(to).unwrap();
    let mut entries: Vec<_> = fs::read_dir(from).unwrap().flatten().collect();
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let (path, target) = (entry.path(), to.join(entry.file_name()));
        let Ok(metadata) = path.symlink_metadata() else { continue };
        if *sum > LAYER {
            return;
        }
        if metadata.is_dir() {
            copy(&path, &target, sum);
        } else if metadata.is_symlink() {
            symlink(fs::read_link(&path).unwrap(), target).unwrap();
        } else if metadata.is_file() && fs::copy(&path, &target).is_ok() {
            *sum += metadata.len();
        }
    }
}
