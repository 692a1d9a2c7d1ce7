//! A directory that an image names, made by who knows whom: what guests get to see of it.
#![no_main]

use std::ffi::OsStr;
use std::fs::{self, File, Permissions};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use amphi::image::fuzzing::{write_erofs, write_initramfs};
use amphi_fuzz::Input;
use libfuzzer_sys::fuzz_target;

/// A name that the host's file systems take.
fn name(input: &mut Input<'_>) -> Vec<u8> {
    let len = usize::from(input.byte());
    let seed = input.take::<4>();
    let byte = |index: usize| match seed[index % 4].wrapping_add((index / 4) as u8) {
        0 | b'/' => b'_',
        other => other,
    };
    // Short ones more often than the longest.
    let len = if len < 200 { len % 16 + 1 } else { len };
    (0..len).map(byte).collect()
}

fn make(root: &Path, input: &mut Input<'_>) {
    let mut directories = vec![root.to_owned()];
    let mut files: Vec<PathBuf> = Vec::new();
    for _ in 0..48 {
        if input.is_empty() {
            return;
        }
        let parent = &directories[usize::from(input.byte()) % directories.len()];
        let path = parent.join(OsStr::from_bytes(&name(input)));
        // What exists, or is too long, is left out.
        match input.byte() % 8 {
            0 | 1 => {
                if fs::create_dir(&path).is_ok() {
                    directories.push(path);
                }
            }
            2 => drop(symlink(OsStr::from_bytes(&name(input)), path)),
            3 => {
                if let Some(file) = files.get(usize::from(input.byte())) {
                    let _ = fs::hard_link(file, path);
                }
            }
            4 => {
                let mode = u32::from(u16::from_le_bytes(input.take())) & 0o7777 | 0o400;
                let _ = File::create(&path).and_then(|file| file.set_permissions(Permissions::from_mode(mode)));
            }
            5 => {
                let len = u64::from(u16::from_le_bytes(input.take())) << (input.byte() % 6);
                let _ = File::create(&path).and_then(|file| file.set_len(len));
                files.push(path);
            }
            _ => {
                let _ = fs::write(&path, input.take::<24>());
                files.push(path);
            }
        }
    }
}

fuzz_target!(|bytes: &[u8]| {
    let root = tempfile::tempdir_in("/dev/shm").expect("a folder in memory");
    make(root.path(), &mut Input::new(bytes));
    if let Some((archive, announced)) = write_initramfs(root.path()) {
        assert_eq!(archive.len() as u64, announced, "the length that guests are told");
    }
    let (first, second) = (write_erofs(root.path()), write_erofs(root.path()));
    assert_eq!(first, second, "the same tree gives the same image");
});
