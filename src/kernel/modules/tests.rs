use super::*;
use crate::kernel::test_images::module;

struct Package(tempfile::TempDir);

impl Package {
    fn new(modules: &[(&str, &[&str])]) -> Self {
        let package = Self(tempfile::tempdir().unwrap());
        for (path, fields) in modules {
            let path = package.unpacked().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            let mut bytes = module(fields);
            if path.extension().is_some_and(|e| e == "xz") {
                let mut packed = Vec::new();
                liblzma::read::XzEncoder::new(bytes.as_slice(), 1).read_to_end(&mut packed).unwrap();
                bytes = packed;
            }
            fs::write(path, bytes).unwrap();
        }
        fs::write(package.unpacked().join("modules.builtin"), "kernel/fs/ext4/ext4.ko\nkernel/drivers/a/b-c.ko\n")
            .unwrap();
        package
    }

    fn unpacked(&self) -> PathBuf {
        self.0.path().join("in")
    }

    fn kept(&self) -> PathBuf {
        self.0.path().join("out")
    }

    fn order(&self, names: &[&str]) -> Vec<String> {
        let files = loading_order(&self.kept(), names, &[], || "r".to_owned()).unwrap();
        files.iter().map(|file| name_of(file.strip_prefix(self.kept()).unwrap().to_str().unwrap())).collect()
    }
}

const VIRTIO: [(&str, &[&str]); 4] = [
    ("kernel/drivers/virtio/virtio.ko", &["depends="]),
    ("kernel/drivers/virtio/virtio_ring.ko.xz", &["depends=virtio"]),
    (
        "kernel/drivers/virtio/virtio_mmio.ko.xz",
        &["license=GPL", "depends=virtio_ring,virtio", "alias=acpi*:LNRO0005:*"],
    ),
    ("kernel/sound/snd-far.ko", &["depends="]),
];

#[test]
fn orders_modules_after_what_they_depend_on() {
    let package = Package::new(&VIRTIO);
    assert_eq!(keep(&package.unpacked(), &package.kept()).unwrap(), 3);
    assert_eq!(package.order(&["virtio-mmio"]), ["virtio", "virtio_ring", "virtio_mmio"]);
    assert_eq!(package.order(&["virtio_ring", "virtio_mmio", "virtio"]), ["virtio", "virtio_ring", "virtio_mmio"]);
    let alias = fs::read_to_string(package.kept().join("modules.alias")).unwrap();
    assert_eq!(alias, "alias acpi*:LNRO0005:* virtio_mmio\n");
    // What was compressed is not any more.
    let file = &loading_order(&package.kept(), &["virtio_mmio"], &["no_such"], String::new).unwrap()[2];
    assert_eq!(fs::read(file).unwrap(), module(VIRTIO[2].1));
}

#[test]
fn needs_no_file_for_what_is_built_in_and_refuses_what_is_not_there() {
    let package = Package::new(&VIRTIO);
    keep(&package.unpacked(), &package.kept()).unwrap();
    assert!(package.order(&["ext4", "b_c", "b-c"]).is_empty());
    let error = loading_order(&package.kept(), &["virtio", "snd_far"], &[], || "6.1".to_owned()).unwrap_err();
    assert!(matches!(&error, KernelError::NoModule { module, .. } if module == "snd_far"), "{error}");
    assert!(loading_order(&package.kept(), &["ext"], &[], String::new).is_err());
}

#[test]
fn follows_soft_dependencies_by_alias_and_prefers_the_generic_one() {
    let package = Package::new(&[
        ("kernel/fs/overlayfs/overlay.ko", &["softdep=pre: crc32c post: virtio"]),
        ("kernel/arch/x86/crypto/crc32c-intel.ko", &["alias=crc32c"]),
        ("kernel/crypto/crc32c_generic.ko", &["alias=crc32c"]),
        ("kernel/crypto/zcrc.ko", &["alias=crc32c"]),
        ("kernel/drivers/virtio/virtio.ko", &[]),
    ]);
    keep(&package.unpacked(), &package.kept()).unwrap();
    assert_eq!(package.order(&["overlay"]), ["crc32c_generic", "overlay"]);
}

#[test]
fn cuts_cycles() {
    let package = Package::new(&[
        ("kernel/lib/a.ko", &["depends=b"]),
        ("kernel/lib/b.ko", &["depends=c,b"]),
        ("kernel/lib/c.ko", &["depends=a"]),
    ]);
    keep(&package.unpacked(), &package.kept()).unwrap();
    assert_eq!(package.order(&["a"]), ["c", "b", "a"]);
}

#[test]
fn refuses_damaged_modules() {
    let package = Package::new(&VIRTIO);
    for bytes in [&b""[..], b"\x7fELF", &module(&["depends="])[..100], &[0xff; 4096]] {
        fs::write(package.unpacked().join("kernel/drivers/virtio/virtio.ko"), bytes).unwrap();
        assert!(keep(&package.unpacked(), &package.kept()).is_err());
    }
}
