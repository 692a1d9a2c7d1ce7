//! Building amphi's own small kernel from the distribution's kernel source package.

use std::fs::{self, File};
use std::io;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};

use super::config::Config;
use super::package_manager::Apt;
use super::payload::{Compression, decoder};
use super::process::{command, find_program, output, watched};
use super::store::{Installed, Record, Store, hash_file, hex};
use super::{Format, KernelError, Progress, deb, install};

/// The configuration, merged over `allnoconfig`.
pub const CONFIG: &str = include_str!("../../resources/kernel/x86_64.config");
/// The series that [`CONFIG`] is made for.
const SERIES: &str = "6.12";
/// Raised when the way of building changes, so that the kernel is built again.
const RECIPE: u32 = 1;
/// How often progress is reported while the compiler runs.
const REPORT_EVERY: Duration = Duration::from_secs(3);
/// Time of the build that the kernel states. A fixed one makes builds repeatable.
const TIMESTAMP: &str = "1970-01-01 00:00:00 UTC";
/// Programs that the build needs, with the Debian packages that have them.
const PROGRAMS: [(&str, &str); 8] = [
    ("gcc", "gcc"),
    ("ld", "binutils"),
    ("make", "make"),
    ("flex", "flex"),
    ("bison", "bison"),
    ("bc", "bc"),
    ("tar", "tar"),
    ("gzip", "gzip"),
];

/// Where the kernel's source comes from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Source {
    /// The distribution's kernel source package.
    #[default]
    Package,
    /// That package's file, or a kernel source archive (`.tar.xz`, `.tar.gz`, `.tar.zst`, `.tar`).
    File(PathBuf),
}

/// Builds amphi's own kernel and installs it in `store`, with at most `jobs` compilers at a time (else as many as
/// there are processors). Where the same source and configuration have been built already, only finds the result.
///
/// # Errors
/// A program for the build is missing, the source cannot be fetched, or the build failed.
pub fn build(
    store: &Store,
    source: &Source,
    jobs: Option<NonZeroUsize>,
    progress: &mut dyn FnMut(Progress),
) -> Result<Installed, KernelError> {
    let locked =
        store.lock(|| progress(Progress::Step("waiting for another amphi that installs a kernel".to_owned())))?;
    let (origin, hash, package) = match source {
        Source::Package => {
            let apt = Apt::find()?;
            let name = format!("linux-source-{SERIES}");
            let package = apt.find_package(&name, progress)?.ok_or_else(|| no_source(&name))?;
            (format!("{name}={}", package.version), package.sha256.clone(), Some((apt, package)))
        }
        Source::File(path) => (path.display().to_string(), hash_file(path)?.0, None),
    };
    let key = hex(&Sha256::digest(format!("{RECIPE}\n{hash}\n{CONFIG}")));
    if let Some(found) = store.made_from(&key)? {
        progress(Progress::Step(format!("{} is built already", found.name)));
        return Ok(found);
    }
    check_tools()?;
    let work = locked.workspace()?;
    let file = match (&package, source) {
        (_, Source::File(path)) => path.clone(),
        (Some((apt, package)), Source::Package) => {
            let size = package.size.map_or_else(String::new, |bytes| format!(" ({} MB)", bytes / 1_000_000));
            progress(Progress::Step(format!("downloading {} {}{size}", package.name, package.version)));
            let directory = work.path().join("download");
            fs::create_dir(&directory).map_err(KernelError::store("create", &directory))?;
            apt.download(package, &directory, progress)?
        }
        (None, Source::Package) => return Err(no_source("linux-source")),
    };
    progress(Progress::Step(format!("unpacking {origin}")));
    let tree = work.path().join("source");
    unpack(&file, &tree)?;
    let directory = work.path().join("kernel");
    fs::create_dir(&directory).map_err(KernelError::store("create", &directory))?;
    let release = compile(&tree, &directory, jobs, progress)?;
    let mut record = Record::describe(&directory.join("vmlinux"), release, origin, key)?;
    record.own = true;
    let installed = locked.publish(&directory, record)?;
    progress(Progress::Step(format!("installed {}", installed.name)));
    Ok(installed)
}

fn no_source(name: &str) -> KernelError {
    KernelError::tool(
        "cannot fetch the kernel's source",
        format!(
            "apt knows no package {name}: run `apt-get update`, or name an archive of Linux {SERIES} with --source"
        ),
    )
}

/// Checks that all that the build needs is there.
fn check_tools() -> Result<(), KernelError> {
    let mut missing: Vec<&str> =
        PROGRAMS.iter().filter(|(program, _)| find_program(program).is_none()).map(|(_, package)| *package).collect();
    for (header, package) in [("stdio.h", "libc6-dev"), ("gelf.h", "libelf-dev")] {
        let mut test = command("gcc");
        test.args(["-fsyntax-only", "-include", header, "-x", "c", "/dev/null"])
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        if !missing.contains(&"gcc") && !test.status().is_ok_and(|status| status.success()) {
            missing.push(package);
        }
    }
    if missing.is_empty() {
        return Ok(());
    }
    let packages = missing.join(" ");
    Err(KernelError::tool(
        "cannot build a kernel",
        format!(
            "these are missing: {packages}; on Debian, run `apt-get install -y --no-install-recommends {packages}`"
        ),
    ))
}

/// Unpacks a source package, or an archive, into `tree`.
fn unpack(file: &Path, tree: &Path) -> Result<(), KernelError> {
    let name = file.to_string_lossy();
    if !name.ends_with(".deb") {
        let reader = File::open(file).map_err(KernelError::read(file))?;
        return untar(file, &name, reader, tree);
    }
    let mut found = false;
    deb::walk(file, |path, _, contents| match path.to_str() {
        Some(path) if path.starts_with("usr/src/linux-source-") && path.contains(".tar") => {
            found = true;
            untar(file, path, contents, tree)
        }
        _ => Ok(()),
    })?;
    if found { Ok(()) } else { Err(KernelError::package(file, "there is no kernel source in it")) }
}

/// Unpacks the archive `contents`, called `name`, with the system's tar.
fn untar(package: &Path, name: &str, contents: impl io::Read, tree: &Path) -> Result<(), KernelError> {
    let compression = match name.rsplit('.').next() {
        Some("xz") => Compression::Xz,
        Some("gz") => Compression::Gzip,
        Some("bz2") => Compression::Bzip2,
        Some("zst") => Compression::Zstd,
        Some("tar") => Compression::None,
        _ => return Err(KernelError::package(package, "it is neither a Debian package nor a tar archive")),
    };
    fs::create_dir_all(tree).map_err(KernelError::store("create", tree))?;
    let attempt = "cannot unpack the kernel's source with tar";
    let failed = |e: io::Error| KernelError::tool(attempt, e.to_string());
    let mut tar = command("tar");
    tar.args(["--extract", "--strip-components=1", "--no-same-owner", "--file=-", "--directory"]).arg(tree);
    let mut child = tar.stdin(Stdio::piped()).spawn().map_err(failed)?;
    let copied = match child.stdin.take() {
        Some(mut stdin) => decoder(compression, contents).and_then(|mut plain| io::copy(&mut plain, &mut stdin)),
        None => Err(io::ErrorKind::BrokenPipe.into()),
    };
    let status = child.wait().map_err(failed)?;
    copied.map_err(failed)?;
    if status.success() { Ok(()) } else { Err(KernelError::tool(attempt, status.to_string())) }
}

/// Configures and compiles the source in `tree`; puts `vmlinux` and `config` into `directory`. Returns the release.
fn compile(
    tree: &Path,
    directory: &Path,
    jobs: Option<NonZeroUsize>,
    progress: &mut dyn FnMut(Progress),
) -> Result<String, KernelError> {
    let fragment = tree.join("amphi.config");
    fs::write(&fragment, CONFIG).map_err(KernelError::store("write", &fragment))?;
    let make = |targets: &[&str]| {
        let mut make = command("nice");
        make.args(["-n", "10", "make", "ARCH=x86"]).args(targets).current_dir(tree);
        make.env("KCONFIG_ALLCONFIG", &fragment);
        make.env("KBUILD_BUILD_USER", "amphi")
            .env("KBUILD_BUILD_HOST", "amphi")
            .env("KBUILD_BUILD_TIMESTAMP", TIMESTAMP);
        make
    };
    output(make(&["allnoconfig"]), "cannot configure the kernel")?;
    let dot_config = tree.join(".config");
    let text = fs::read_to_string(&dot_config).map_err(KernelError::store("read", &dot_config))?;
    let refused = Config::parse(CONFIG).not_honoured_by(&Config::parse(&text));
    if !refused.is_empty() {
        progress(Progress::Step(format!("this source does not honour these options: {}", refused.join(" "))));
    }
    let release = output(make(&["-s", "kernelrelease"]), "cannot ask for the kernel's release")?.trim().to_owned();
    if !install::is_release(&release) {
        return Err(KernelError::tool("cannot build the kernel", format!("its release is {release:?}")));
    }

    let jobs = jobs.or_else(|| std::thread::available_parallelism().ok()).map_or(1, NonZeroUsize::get);
    progress(Progress::Step(format!("compiling Linux {release} with {jobs} jobs")));
    let (start, mut reported) = (Instant::now(), Instant::now());
    let files = std::cell::Cell::new(0);
    // kbuild says `  CC      path` for each file that it makes.
    let count = |line: &str| files.set(files.get() + u64::from(line.starts_with("  ")));
    watched(make(&[&format!("-j{jobs}"), "vmlinux"]), "cannot compile the kernel", count, || {
        if reported.elapsed() >= REPORT_EVERY {
            reported = Instant::now();
            progress(Progress::Compiled { files: files.get(), elapsed: start.elapsed() });
        }
    })?;
    progress(Progress::Step(Progress::Compiled { files: files.get(), elapsed: start.elapsed() }.to_string()));

    let vmlinux = directory.join("vmlinux");
    let mut strip = command("objcopy");
    strip.args(["--strip-all", "--remove-section=.comment"]).arg(tree.join("vmlinux")).arg(&vmlinux);
    output(strip, "cannot strip the kernel")?;
    fs::copy(&dot_config, directory.join("config")).map_err(KernelError::store("write", directory))?;
    let file = File::open(&vmlinux).map_err(KernelError::read(&vmlinux))?;
    Format::recognise(&file, &vmlinux)?;
    Ok(release)
}
