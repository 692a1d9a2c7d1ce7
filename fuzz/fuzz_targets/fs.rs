//! virtio-fs: FUSE requests, most of them with a header that makes sense, on a folder of the host with a bit of everything.
#![no_main]

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, symlink};
use std::path::Path;

use amphi_devices::virtio::fs::{Fs, Owners, Settings, Share};
use amphi_fuzz::Input;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let folder = tempfile::tempdir().expect("a place for files");
    let (top, outside) = (folder.path().join("top"), folder.path().join("outside"));
    fs::create_dir_all(top.join("d")).expect("a folder");
    fs::write(&outside, "outside").expect("a file");
    fs::write(top.join("f"), "inside").expect("a file");
    symlink("../outside", top.join("s")).expect("a symlink");
    // What the caller's own user may do, with few descriptors, so that there are none left now and then.
    let shared = if bytes.len() % 4 == 3 { top.join("f") } else { top.clone() };
    let settings = Settings { read_only: bytes.len() % 8 == 5, owners: Owners::One { user: 0, group: 0 }, descriptors: 40 };
    let share = Share::new(File::open(shared).expect("it is there").into(), settings).expect("/proc is there");
    let device = Fs::new(share, "fuzz").expect("descriptors");
    amphi_fuzz::virtio_with(device, bytes, &mut |input| turn(&top, input));
    assert_eq!(fs::read(&outside).expect("it stays"), b"outside", "a file outside of the share was changed");
    assert_eq!(fs::read_dir(folder.path()).expect("it stays").count(), 2, "a name outside of the share was made or taken");
});

/// What programs of the host do meanwhile. That it cannot be done is no matter.
fn turn(top: &Path, input: &mut Input<'_>) {
    let names = ["f", "d", "s", "n", "d/f", "d/d"];
    let mut name = || top.join(names[usize::from(input.byte()) % names.len()]);
    let (one, other) = (name(), name());
    let _ = match input.byte() % 6 {
        0 => fs::rename(one, other),
        1 => fs::remove_file(one),
        2 => symlink("../outside", one),
        3 => fs::create_dir(one),
        // Not to wait where the guest has made a pipe.
        4 => {
            let mut new = File::options();
            new.write(true).create(true).truncate(true).custom_flags(libc::O_NONBLOCK | libc::O_NOFOLLOW);
            new.open(one).and_then(|mut file| file.write_all(b"new"))
        }
        _ => fs::hard_link(one, other),
    };
}
