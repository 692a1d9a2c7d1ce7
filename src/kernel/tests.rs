use std::fs;
use std::os::unix::fs::MetadataExt;

use super::test_images::{bz_image, compress, kernel, kernel_for, noise};
use super::*;

const COMPRESSIONS: [Compression; 7] = [
    Compression::None,
    Compression::Gzip,
    Compression::Bzip2,
    Compression::Lzma,
    Compression::Xz,
    Compression::Lz4,
    Compression::Zstd,
];

struct Home(tempfile::TempDir);

impl Home {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn store(&self) -> Store {
        Store::at(self.0.path().join("kernels"))
    }

    fn file(&self, bytes: &[u8]) -> PathBuf {
        let path = self.0.path().join("file");
        fs::write(&path, bytes).unwrap();
        path
    }

    fn resolve(&self, bytes: &[u8]) -> Result<Kernel, KernelError> {
        Kernel::resolve_in(&self.store(), Some(&self.file(bytes)))
    }

    fn message(&self, bytes: &[u8]) -> String {
        self.resolve(bytes).unwrap_err().to_string()
    }
}

fn body() -> Vec<u8> {
    [noise(7, 50_000), vec![0; 100_000]].concat()
}

#[test]
fn extracts_every_compression() {
    let elf = kernel(&body());
    for compression in COMPRESSIONS {
        let home = Home::new();
        let found = home.resolve(&bz_image(&compress(compression, &elf))).unwrap();
        assert_eq!(fs::read(&found.image).unwrap(), elf, "{compression}");
        assert_eq!(found.release.as_deref(), Some("1.2.3-test"));
        assert!(found.modules_for(&["virtio_blk"], &[]).unwrap().is_empty());
    }
}

#[test]
fn extracts_once_and_recognises_a_changed_file() {
    let home = Home::new();
    let first = home.resolve(&bz_image(&compress(Compression::Gzip, &kernel(b"one")))).unwrap();
    let path = home.0.path().join("file");
    let inode = fs::metadata(&first.image).unwrap().ino();
    let again = Kernel::resolve_in(&home.store(), Some(&path)).unwrap();
    assert_eq!((again.image.clone(), fs::metadata(again.image).unwrap().ino()), (first.image.clone(), inode));
    let other = home.resolve(&bz_image(&compress(Compression::Gzip, &kernel(b"another")))).unwrap();
    assert_ne!(other.image, first.image);
    // A link whose kernel is gone is not trusted.
    fs::remove_file(&other.image).unwrap();
    assert_eq!(fs::read(Kernel::resolve_in(&home.store(), Some(&path)).unwrap().image).unwrap(), kernel(b"another"));
    let names = fs::read_dir(home.store().extracted()).unwrap().map(|e| e.unwrap().file_name());
    assert!(names.map(|n| n.into_string().unwrap()).all(|n| !n.starts_with('.')));
}

#[test]
fn uses_elf_kernels_in_place() {
    let home = Home::new();
    let path = home.file(&kernel(b"x"));
    assert_eq!(Kernel::resolve_in(&home.store(), Some(&path)).unwrap().image, path);
    assert!(!home.0.path().join("kernels").exists());
    let file = File::open(&path).unwrap();
    let expected = ElfImage { entry: 0x100_0123, pvh_entry: Some(0x100_0200) };
    assert_eq!(Format::recognise(&file, &path).unwrap(), Format::Elf(expected));
}

#[test]
fn says_what_a_file_is_instead() {
    let home = Home::new();
    let mut arm = vec![0; 0x100];
    arm[0x38..0x3c].copy_from_slice(b"ARM\x64");
    let mut old = bz_image(b"\x7fELF");
    old[0x206] = 7;
    let cases: [(&[u8], &str); 10] = [
        (b"", "empty"),
        (b"hello", "neither"),
        (&[0; 4096], "neither"),
        (&arm, "arm64"),
        (&kernel_for(183), "arm64"),
        (&kernel_for(3), "32-bit x86"),
        (&kernel_for(62), "nothing to load"),
        (&[0x1f, 0x8b, 8, 0], "gzip-compressed"),
        (b"!<arch>\nxx", "FILE.deb"),
        (&old, "2.07"),
    ];
    for (bytes, expected) in cases {
        let message = home.message(bytes);
        assert!(message.contains(expected), "{message}");
        assert!(message.contains(home.0.path().to_str().unwrap()), "{message}");
    }
    let missing = Kernel::resolve_in(&home.store(), Some(Path::new("/does/not/exist"))).unwrap_err();
    assert!(matches!(missing, KernelError::Read { .. }));
    let directory = Kernel::resolve_in(&home.store(), Some(home.0.path())).unwrap_err();
    assert!(directory.to_string().contains("directory"));
    assert!(matches!(Kernel::resolve_in(&home.store(), None), Err(KernelError::NoneInstalled)));
    let unknown = Kernel::resolve_in(&home.store(), Some(Path::new("no-such-name"))).unwrap_err();
    assert!(unknown.to_string().contains("installed: none"));
}

#[test]
fn refuses_every_truncation() {
    let elf = kernel(&noise(3, 600));
    for compression in COMPRESSIONS {
        let image = bz_image(&compress(compression, &elf));
        for len in 0..image.len() {
            assert!(Home::new().resolve(&image[..len]).is_err(), "{compression} {len}");
        }
    }
    for len in 0..elf.len() {
        assert!(Home::new().resolve(&elf[..len]).is_err(), "{len}");
    }
}

#[test]
fn refuses_payloads_that_lie_about_their_length() {
    let elf = kernel(&body());
    for compression in COMPRESSIONS.into_iter().filter(|c| *c != Compression::None) {
        for wrong in [0, 1, u32::try_from(elf.len()).unwrap() - 1, u32::try_from(elf.len()).unwrap() + 1, u32::MAX] {
            let mut payload = compress(compression, &elf);
            let at = payload.len() - 4;
            payload[at..].copy_from_slice(&wrong.to_le_bytes());
            assert!(Home::new().resolve(&bz_image(&payload)).is_err(), "{compression} {wrong}");
        }
    }
}

#[test]
fn stops_a_decompression_bomb_at_the_length_it_states() {
    let mut payload = compress(Compression::Zstd, &vec![0; 64 << 20]);
    let at = payload.len() - 4;
    payload[at..].copy_from_slice(&4096_u32.to_le_bytes());
    let mut out = Vec::new();
    assert!(payload::extract(Compression::Zstd, &payload, &mut out).is_err());
    assert!(out.len() <= 8192, "{}", out.len());
}

#[test]
fn survives_noise_in_headers_and_payloads() {
    let home = Home::new();
    let elf = kernel(&noise(1, 300));
    for seed in 0..400_u64 {
        let garbage = noise(seed, 64);
        let at = usize::try_from(seed).unwrap();
        for mut image in [elf.clone(), bz_image(&compress(COMPRESSIONS[at % 7], &elf))] {
            for (offset, byte) in garbage.iter().enumerate().skip(1) {
                // Leave the magic numbers, so that the parsers behind them are reached.
                let place = (at * 7 + offset * 13) % image.len();
                if place > 8 && !(0x1fe..0x206).contains(&place) {
                    image[place] = *byte;
                }
            }
            // Whatever it says, it must come back, and never with a kernel that is not there.
            if let Ok(found) = home.resolve(&image) {
                assert!(found.image.is_file());
            }
        }
        let _ = home.resolve(&noise(seed, at * 10));
    }
}

#[test]
fn installs_from_a_package_file_and_finds_it_by_name() {
    let home = Home::new();
    let elf = kernel(b"Linux version 6.12.3-cloud");
    let image = bz_image(&compress(Compression::Xz, &elf));
    let module = test_images::module(&["depends="]);
    let deb = deb::tests::package(&[
        ("./boot/vmlinuz-6.12.3-cloud", &image),
        ("./boot/config-6.12.3-cloud", b"CONFIG_64BIT=y\nCONFIG_ACPI=m\n"),
        ("./usr/lib/modules/6.12.3-cloud/kernel/fs/fuse/fuse.ko", &module),
        ("./lib/modules/6.12.3-cloud/modules.builtin", b"kernel/fs/ext4/ext4.ko\n"),
    ]);
    let path = home.0.path().join("kernel.deb");
    fs::write(&path, deb).unwrap();
    let source = install::Source::File(path);
    let mut steps = Vec::new();
    let installed = install::install(&home.store(), &source, &mut |p| steps.push(p.to_string())).unwrap();
    assert_eq!(installed.name, "6.12.3-cloud");
    assert_eq!(steps.last().unwrap(), "installed 6.12.3-cloud");
    for name in ["6.12.3-cloud", "6.12", "6.12.3", "6"] {
        assert_eq!(home.store().find(name).unwrap(), installed, "{name}");
    }
    for name in ["6.1", "amphi", "", ".", "..", "../names/6.12.3-cloud"] {
        assert!(home.store().find(name).is_err(), "{name}");
    }
    let found = Kernel::resolve_in(&home.store(), None).unwrap();
    assert_eq!(fs::read(&found.image).unwrap(), elf);
    assert_eq!(
        found.modules_for(&["fuse", "ext4"], &["xfs"]).unwrap(),
        [found.modules.clone().unwrap().join("kernel/fs/fuse/fuse.ko")]
    );
    assert!(found.modules_for(&["xfs"], &[]).is_err());

    let inspection = inspect::inspect(&home.store(), Path::new("6.12")).unwrap();
    assert_eq!(inspection.evidence, inspect::Evidence::Package);
    let setting = |name: &str| inspection.features.iter().find(|f| f.name == name).unwrap().setting;
    assert_eq!((setting("64-bit"), setting("ACPI")), (config::Setting::BuiltIn, config::Setting::Module));

    // The second time there is nothing to do.
    steps.clear();
    install::install(&home.store(), &source, &mut |p| steps.push(p.to_string())).unwrap();
    assert_eq!(steps, ["6.12.3-cloud is installed already"]);
}

#[test]
fn trusts_nothing_incomplete_and_clears_it_away() {
    let home = Home::new();
    let store = home.store();
    let root = home.0.path().join("kernels");
    drop(store.lock(|| {}).unwrap());
    fs::create_dir_all(root.join("tmp/work-killed/source")).unwrap();
    fs::create_dir_all(root.join("store/abc")).unwrap();
    fs::write(root.join("store/abc/vmlinux"), "x").unwrap();
    std::os::unix::fs::symlink("../store/abc", root.join("names/6.1")).unwrap();
    std::os::unix::fs::symlink("../store/gone", root.join("names/6.2")).unwrap();
    assert_eq!(store.list().unwrap(), []);
    assert!(store.find("6.1").is_err());
    drop(store.lock(|| {}).unwrap());
    assert_eq!(fs::read_dir(root.join("tmp")).unwrap().count(), 0);
}

#[test]
fn prefers_its_own_kernel_then_the_newest() {
    let home = Home::new();
    let locked = home.store().lock(|| {}).unwrap();
    let publish = |release: &str, own: bool| {
        let work = locked.workspace().unwrap();
        let directory = work.path().join("kernel");
        fs::create_dir(&directory).unwrap();
        fs::write(directory.join("vmlinux"), kernel(release.as_bytes())).unwrap();
        let vmlinux = directory.join("vmlinux");
        let mut record =
            store::Record::describe(&vmlinux, release.to_owned(), "test".to_owned(), release.to_owned()).unwrap();
        record.own = own;
        locked.publish(&directory, record).unwrap()
    };
    for (release, own) in [("6.1.0-56", false), ("6.12.1", false), ("6.12.0-amphi", true), ("6.9.9", false)] {
        assert_eq!(publish(release, own).name, release);
    }
    let names: Vec<_> = home.store().list().unwrap().into_iter().map(|k| k.name).collect();
    assert_eq!(names, ["6.12.0-amphi", "6.12.1", "6.9.9", "6.1.0-56"]);
    assert_eq!(home.store().find("amphi").unwrap().name, "6.12.0-amphi");
    assert_eq!(home.store().find("6.1").unwrap().name, "6.1.0-56");
}
