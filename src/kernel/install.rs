//! Taking a distribution's kernel out of its package, without installing the package.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::package_manager::{Apt, Package};
use super::payload::{KERNEL_MAX, copy_bounded};
use super::store::{Installed, LockedStore, Record, Store, hash_file, hex};
use super::{Compression, Format, KernelError, Progress, deb, extracted, modules};

/// Larger than anything in a kernel package that is taken, in bytes.
const FILE_MAX: u64 = KERNEL_MAX;
/// Larger than all that is taken from one package, in bytes.
const PACKAGE_MAX: u64 = 4 << 30;

/// Which kernel to install.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Source {
    /// The newest kernel for virtual machines that the distribution has.
    #[default]
    Newest,
    /// The newest one of a series, such as `6.12`.
    Series(String),
    /// The distribution's package of that name.
    Package(String),
    /// A package's file.
    File(PathBuf),
}

/// Installs a kernel in `store`; where the same one is there already, only finds it.
///
/// # Errors
/// There is no such package, it cannot be downloaded, or there is no kernel in it.
pub fn install(store: &Store, source: &Source, progress: &mut dyn FnMut(Progress)) -> Result<Installed, KernelError> {
    let locked =
        store.lock(|| progress(Progress::Step("waiting for another amphi that installs a kernel".to_owned())))?;
    let (packages, files, work) = match source {
        Source::File(path) => {
            let (sha256, _) = hash_file(path)?;
            let sha256 = key(&sha256);
            let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
            ((name, sha256), vec![path.clone()], locked.workspace()?)
        }
        _ => {
            let apt = Apt::find()?;
            let packages = apt.with_modules(choose(&apt, source, progress)?)?;
            let described = describe(&packages);
            if let Some(found) = store.made_from(&described.1)? {
                progress(Progress::Step(format!("{} is installed already", found.name)));
                return Ok(found);
            }
            let work = locked.workspace()?;
            let files = download(&apt, &packages, work.path(), progress)?;
            (described, files, work)
        }
    };
    let (origin, sha256) = packages;
    if let Some(found) = store.made_from(&sha256)? {
        progress(Progress::Step(format!("{} is installed already", found.name)));
        return Ok(found);
    }
    let (directory, record) = assemble(&files, origin, sha256, work.path(), progress)?;
    finish(&locked, &directory, record, progress)
}

fn choose(apt: &Apt, source: &Source, progress: &mut dyn FnMut(Progress)) -> Result<Package, KernelError> {
    match source {
        Source::Package(name) => apt.find_package(name, progress)?.ok_or_else(|| {
            KernelError::tool(
                "cannot fetch a kernel package",
                format!("apt knows no package {name}; `apt-cache search linux-image` lists them, `apt-get update` renews the list"),
            )
        }),
        Source::Series(series) => apt.newest_kernel(Some(series), progress),
        Source::Newest | Source::File(_) => apt.newest_kernel(None, progress),
    }
}

/// What the packages are called together, and their hash together.
fn describe(packages: &[Package]) -> (String, String) {
    let names: Vec<_> = packages.iter().map(|p| format!("{}={}", p.name, p.version)).collect();
    let sha256 = match packages {
        [one] => one.sha256.clone(),
        all => hex(&Sha256::digest(all.iter().map(|p| p.sha256.as_str()).collect::<Vec<_>>().join(" "))),
    };
    (names.join(" "), key(&sha256))
}

/// By which a package is known that was installed: other modules wanted of it make it another one.
fn key(sha256: &str) -> String {
    hex(&Sha256::digest(format!("{sha256}\n{}", modules::WANTED.join("\n"))))
}

fn download(
    apt: &Apt,
    packages: &[Package],
    work: &Path,
    progress: &mut dyn FnMut(Progress),
) -> Result<Vec<PathBuf>, KernelError> {
    let mut files = Vec::new();
    for package in packages {
        let size = package.size.map_or_else(String::new, |bytes| format!(" ({} MB)", bytes / 1_000_000));
        progress(Progress::Step(format!("downloading {} {}{size}", package.name, package.version)));
        let directory = work.join(format!("download-{}", files.len()));
        fs::create_dir(&directory).map_err(KernelError::store("create", &directory))?;
        files.push(apt.download(package, &directory, progress)?);
    }
    Ok(files)
}

/// Makes a kernel's directory from packages; returns it with its record.
fn assemble(
    packages: &[PathBuf],
    origin: String,
    sha256: String,
    work: &Path,
    progress: &mut dyn FnMut(Progress),
) -> Result<(PathBuf, Record), KernelError> {
    let unpacked = work.join("unpacked");
    progress(Progress::Step(format!("unpacking {origin}")));
    let mut contents = Contents::default();
    let mut left = PACKAGE_MAX;
    for package in packages {
        deb::walk(package, |path, len, reader| contents.take(package, path, len, reader, &unpacked, &mut left))?;
    }
    let package = packages.first().map_or(Path::new("the package"), PathBuf::as_path);
    let no_kernel = || KernelError::package(package, "there is no kernel in it (boot/vmlinuz-*)".to_owned());
    let (release, vmlinuz) = contents.kernel.ok_or_else(no_kernel)?;

    let directory = work.join("kernel");
    fs::create_dir(&directory).map_err(KernelError::store("create", &directory))?;
    let vmlinux = directory.join("vmlinux");
    let compression = uncompress(&vmlinuz, &vmlinux, progress)?;
    if let Some(config) = contents.config {
        fs::rename(&config, directory.join("config")).map_err(KernelError::store("move", &config))?;
    }
    let mut record = Record::describe(&vmlinux, release, origin, sha256)?;
    record.compression = compression.name().to_owned();
    let modules = unpacked.join("modules");
    if modules.is_dir() {
        let kept = modules::keep(&modules, &directory.join("modules"))?;
        record.modules = kept > 0;
        progress(Progress::Step(format!("kept {kept} modules")));
    }
    Ok((directory, record))
}

/// Writes the uncompressed form of the kernel in `vmlinuz` to `vmlinux`.
fn uncompress(vmlinuz: &Path, vmlinux: &Path, progress: &mut dyn FnMut(Progress)) -> Result<Compression, KernelError> {
    let file = File::open(vmlinuz).map_err(KernelError::read(vmlinuz))?;
    let header = match Format::recognise(&file, vmlinuz)? {
        Format::Elf(_) => {
            fs::rename(vmlinuz, vmlinux).map_err(KernelError::store("move", vmlinuz))?;
            return Ok(Compression::None);
        }
        Format::BzImage(header) => header,
    };
    progress(Progress::Step(format!("extracting the kernel ({})", header.compression)));
    let len = file.metadata().map_err(KernelError::read(vmlinuz))?.len();
    let bytes = extracted::read_whole(&file, vmlinuz, len)?;
    let mut out = File::create_new(vmlinux).map_err(KernelError::store("create", vmlinux))?;
    extracted::extract_to(&bytes, vmlinuz, &header, &mut out)?;
    let out = File::open(vmlinux).map_err(KernelError::read(vmlinux))?;
    Format::recognise(&out, vmlinuz)?;
    Ok(header.compression)
}

fn finish(
    locked: &LockedStore,
    directory: &Path,
    record: Record,
    progress: &mut dyn FnMut(Progress),
) -> Result<Installed, KernelError> {
    let installed = locked.publish(directory, record)?;
    progress(Progress::Step(format!("installed {}", installed.name)));
    Ok(installed)
}

/// What has been taken out of packages.
#[derive(Debug, Default)]
struct Contents {
    /// Release and file.
    kernel: Option<(String, PathBuf)>,
    config: Option<PathBuf>,
}

impl Contents {
    /// Takes a package's file if it is part of a kernel.
    fn take(
        &mut self,
        package: &Path,
        path: &Path,
        len: u64,
        contents: &mut dyn Read,
        unpacked: &Path,
        left: &mut u64,
    ) -> Result<(), KernelError> {
        let Some(text) = path.to_str() else { return Ok(()) };
        let text = text.strip_prefix("usr/").unwrap_or(text);
        let target = if let Some(release) = text.strip_prefix("boot/vmlinuz-") {
            if !is_release(release) {
                return Ok(());
            }
            let target = unpacked.join("vmlinuz");
            self.kernel = Some((release.to_owned(), target.clone()));
            target
        } else if text.starts_with("boot/config-") {
            let target = unpacked.join("config");
            self.config = Some(target.clone());
            target
        } else if let Some((_, module)) = text.strip_prefix("lib/modules/").and_then(|rest| rest.split_once('/')) {
            if module != "modules.builtin" && !(module.starts_with("kernel/") && module.contains(".ko")) {
                return Ok(());
            }
            unpacked.join("modules").join(module)
        } else {
            return Ok(());
        };
        *left = left.checked_sub(len).filter(|_| len <= FILE_MAX).ok_or_else(|| {
            KernelError::package(package, format!("{} in it is larger than any kernel's file", path.display()))
        })?;
        write_file(&target, contents, len)
            .map_err(|e| KernelError::package(package, format!("{} cannot be unpacked from it ({e})", path.display())))
    }
}

fn write_file(target: &Path, contents: &mut dyn Read, len: u64) -> io::Result<()> {
    if let Some(parent) = target.parent() {
        fs::create_dir_all(parent)?;
    }
    let written = copy_bounded(contents, &mut File::create(target)?, len)?;
    if written == len { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}

/// Whether a release can be a file name and a kernel's name.
pub(super) fn is_release(release: &str) -> bool {
    release.starts_with(|c: char| c.is_ascii_digit())
        && release.len() < 128
        && release.chars().all(|c| c.is_ascii_alphanumeric() || "+-._~".contains(c))
}
