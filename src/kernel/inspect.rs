//! What a kernel is, and what it has for amphi.

use std::fs;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::config::{Config, Setting, find};
use super::store::Store;
use super::{Format, KernelError, extracted, is_path};

/// What stands before the release in an uncompressed kernel (init/version-timestamp.c).
const BANNER: &[u8] = b"Linux version ";
/// Longest release that is taken from a banner, in bytes.
const RELEASE_MAX: usize = 128;

/// How much amphi depends on a feature.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Need {
    /// No image runs without it.
    Required,
    /// Something is slower or missing without it.
    Useful,
}

/// A feature of the guest kernel that amphi uses.
struct Wanted {
    name: &'static str,
    /// The build options that have it; all must be set.
    options: &'static [&'static str],
    need: Need,
    /// A text that an uncompressed kernel with the feature built in holds, for kernels without a configuration.
    trace: &'static [u8],
}

const WANTED: [Wanted; 20] = [
    wanted("64-bit", &["64BIT"], Need::Required, b"x86_64"),
    wanted("ACPI", &["ACPI"], Need::Required, b"ACPI: Interpreter enabled"),
    wanted("initramfs", &["BLK_DEV_INITRD"], Need::Required, b"Initramfs unpacking failed"),
    wanted("virtio-mmio", &["VIRTIO_MMIO"], Need::Required, b"virtio-mmio"),
    wanted("virtio-console", &["VIRTIO_CONSOLE"], Need::Required, b"virtio_console"),
    wanted("virtio-blk", &["VIRTIO_BLK"], Need::Required, b"virtio_blk"),
    wanted("devtmpfs", &["DEVTMPFS"], Need::Required, b"devtmpfs: initialized"),
    wanted("overlayfs", &["OVERLAY_FS"], Need::Required, b"workdir and upperdir must"),
    wanted("ext4", &["EXT4_FS"], Need::Useful, b"EXT4-fs"),
    wanted("EROFS", &["EROFS_FS"], Need::Useful, b"erofs: "),
    wanted("squashfs", &["SQUASHFS"], Need::Useful, b"squashfs: version"),
    wanted("virtiofs", &["VIRTIO_FS"], Need::Useful, b"virtiofs"),
    wanted("virtio-vsock", &["VIRTIO_VSOCKETS"], Need::Useful, b"vmw_vsock_virtio_transport"),
    wanted("virtio-net", &["VIRTIO_NET"], Need::Useful, b"virtio_net"),
    wanted("virtio-rng", &["HW_RANDOM_VIRTIO"], Need::Useful, b"virtio_rng"),
    wanted("virtio-balloon", &["VIRTIO_BALLOON"], Need::Useful, b"virtio_balloon"),
    wanted("virtio-pmem", &["VIRTIO_PMEM"], Need::Useful, b"virtio_pmem"),
    wanted("kvm-clock", &["KVM_GUEST"], Need::Useful, b"kvm-clock: "),
    wanted("PVH entry", &["PVH"], Need::Useful, b"Xen PVH"),
    wanted("16550A console", &["SERIAL_8250_CONSOLE"], Need::Useful, b"8250/16550 driver"),
];

const INITRD_COMPRESSIONS: [(&str, &str); 7] = [
    ("gzip", "RD_GZIP"),
    ("bzip2", "RD_BZIP2"),
    ("lzma", "RD_LZMA"),
    ("xz", "RD_XZ"),
    ("lzo", "RD_LZO"),
    ("lz4", "RD_LZ4"),
    ("zstd", "RD_ZSTD"),
];

const fn wanted(name: &'static str, options: &'static [&'static str], need: Need, trace: &'static [u8]) -> Wanted {
    Wanted { name, options, need, trace }
}

/// Where the statements about features come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Evidence {
    /// The configuration inside the kernel.
    Image,
    /// The configuration file that came with it.
    Package,
    /// Texts in the image: a guess. What it calls off may be a module.
    Guess,
}

/// One feature and how the kernel has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Feature {
    /// Its name.
    pub name: &'static str,
    /// How much amphi depends on it.
    pub need: Need,
    /// Built in, a module, or off.
    pub setting: Setting,
}

/// All that is found out about a kernel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Inspection {
    /// The file that was looked at.
    pub path: PathBuf,
    /// The release, as `uname -r` says it, where it can be told.
    pub release: Option<String>,
    /// What kind of image it is, with its entry points.
    #[serde(flatten)]
    pub format: Format,
    /// Entry points of the ELF image inside a bzImage.
    pub payload: Option<Format>,
    /// Where [`features`](Self::features) come from.
    pub evidence: Evidence,
    /// What amphi uses, and how this kernel has it.
    pub features: Vec<Feature>,
    /// The compressions that the kernel can unpack an initramfs from; unknown where the features are a guess.
    pub initrd_compressions: Option<Vec<&'static str>>,
}

/// Looks at the kernel in the file `name`, or installed under that name.
///
/// # Errors
/// There is no such kernel, or it is not one that amphi can boot.
pub fn inspect(store: &Store, name: &Path) -> Result<Inspection, KernelError> {
    let (path, package_config, known_release) = if is_path(name) {
        (name.to_owned(), None, None)
    } else {
        let installed = store.find(&name.to_string_lossy())?;
        let kernel = installed.kernel();
        (kernel.image, installed.config(), kernel.release)
    };
    let file = super::open(&path)?;
    let format = Format::recognise(&file, &path)?;
    let len = file.metadata().map_err(KernelError::read(&path))?.len();
    let bytes = extracted::read_whole(&file, &path, len)?;
    let (image, payload, release) = match &format {
        Format::Elf(_) => (bytes, None, None),
        Format::BzImage(header) => {
            let mut temporary =
                tempfile::tempfile().map_err(KernelError::store("create a file in", Path::new("/tmp")))?;
            extracted::extract_to(&bytes, &path, header, &mut temporary)?;
            let inner = Format::recognise(&temporary, &path)?;
            let len = temporary.metadata().map_err(KernelError::read(&path))?.len();
            (extracted::read_whole(&temporary, &path, len)?, Some(inner), header.release().map(str::to_owned))
        }
    };
    let package_config =
        package_config.map(|path| fs::read_to_string(&path).map_err(KernelError::store("read", &path))).transpose()?;
    let (config, evidence) = match (Config::in_image(&image), package_config) {
        (Some(config), _) => (Some(config), Evidence::Image),
        (None, Some(text)) => (Some(Config::parse(&text)), Evidence::Package),
        (None, None) => (None, Evidence::Guess),
    };
    Ok(Inspection {
        release: known_release.or(release).or_else(|| banner_release(&image)),
        features: WANTED.iter().map(|wanted| feature(wanted, config.as_ref(), &image)).collect(),
        initrd_compressions: config.as_ref().map(initrd_compressions),
        path,
        format,
        payload,
        evidence,
    })
}

fn feature(wanted: &Wanted, config: Option<&Config>, image: &[u8]) -> Feature {
    let setting = match config {
        Some(config) => {
            let settings = wanted.options.iter().map(|option| config.setting(option));
            settings.max_by_key(|setting| *setting as u8).unwrap_or(Setting::Off)
        }
        None if find(image, wanted.trace).is_some() => Setting::BuiltIn,
        None => Setting::Off,
    };
    Feature { name: wanted.name, need: wanted.need, setting }
}

fn initrd_compressions(config: &Config) -> Vec<&'static str> {
    let has = |(_, option): &&(&str, &str)| config.setting(option) == Setting::BuiltIn;
    INITRD_COMPRESSIONS.iter().filter(has).map(|(name, _)| *name).collect()
}

/// The release in the text that the kernel prints first.
fn banner_release(image: &[u8]) -> Option<String> {
    let mut rest = image;
    loop {
        rest = rest.get(find(rest, BANNER)? + BANNER.len()..)?;
        let word = rest.iter().take(RELEASE_MAX).take_while(|b| b.is_ascii_graphic()).copied().collect();
        // A format string has the same beginning.
        let release = String::from_utf8(word).ok().filter(|r| r.starts_with(|c: char| c.is_ascii_digit()));
        if release.is_some() {
            return release;
        }
    }
}
