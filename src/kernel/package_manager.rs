//! The machine's own package manager, as a source of kernel packages. It checks what it downloads; amphi installs nothing.

use std::fs;
use std::path::{Path, PathBuf};

use super::process::{command, find_program, output, watched};
use super::store::version_numbers;
use super::{KernelError, Progress};

/// Package managers that are recognised so that the error can name them.
const UNSUPPORTED: [&str; 5] = ["dnf", "apk", "pacman", "zypper", "xbps-install"];

/// A package that the package manager can fetch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Package {
    pub(super) name: String,
    pub(super) version: String,
    /// Length of the package's file in bytes, where it is known.
    pub(super) size: Option<u64>,
    /// SHA-256 of the package's file, in hexadecimal.
    pub(super) sha256: String,
    /// The names of the packages it depends on.
    depends: Vec<String>,
}

/// apt, on Debian and what derives from it.
#[derive(Debug)]
pub(super) struct Apt;

impl Apt {
    /// Finds apt.
    ///
    /// # Errors
    /// The machine has another package manager, or none.
    pub(super) fn find() -> Result<Self, KernelError> {
        if find_program("apt-get").is_some() && find_program("apt-cache").is_some() {
            return Ok(Self);
        }
        let reason = match UNSUPPORTED.iter().find(|name| find_program(name).is_some()) {
            Some(name) => format!("{name} is not supported yet"),
            None => "no package manager was found".to_owned(),
        };
        let advice = "only apt is: use `amphi kernel install FILE.deb`, or a kernel of your own with `--kernel PATH`";
        Err(KernelError::tool("cannot fetch a kernel package", format!("{reason}; {advice}")))
    }

    /// What apt knows of the candidate version of `name`; none where it knows no such package.
    pub(super) fn show(&self, name: &str) -> Result<Option<Package>, KernelError> {
        let mut show = command("apt-cache");
        show.args(["show", "--no-all-versions", "--", name]);
        // It fails where there is no such package; other failures show when something is downloaded.
        let text = output(show, "apt-cache show").unwrap_or_default();
        Ok(parse_package(&text))
    }

    /// As [`Self::show`], but where apt does not know the package, its lists are fetched again first: a machine's first lists
    /// may be older than the package. That they cannot be fetched is no error of its own.
    pub(super) fn find_package(
        &self,
        name: &str,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Option<Package>, KernelError> {
        match self.show(name)? {
            None if self.update(progress).is_ok() => self.show(name),
            known => Ok(known),
        }
    }

    /// The names of packages that match the regular expression `pattern`.
    fn names(&self, pattern: &str) -> Result<Vec<String>, KernelError> {
        let mut search = command("apt-cache");
        search.args(["search", "--names-only", "--", pattern]);
        let text = output(search, "apt-cache search")?;
        Ok(text.lines().filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect())
    }

    /// The newest kernel package for virtual machines, of `series` (such as `6.12`) where one is asked for.
    ///
    /// # Errors
    /// There is none, even after the package lists have been fetched again.
    pub(super) fn newest_kernel(
        &self,
        series: Option<&str>,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Package, KernelError> {
        if let Some(found) = self.newest_known_kernel(series)? {
            return Ok(found);
        }
        self.update(progress)?;
        self.newest_known_kernel(series)?.ok_or_else(|| {
            let what = series
                .map_or_else(|| "no kernel package".to_owned(), |s| format!("no kernel package of the {s} series"));
            KernelError::tool(
                "cannot fetch a kernel package",
                format!("apt knows {what} for virtual machines; `apt-cache search linux-image` lists what there is"),
            )
        })
    }

    fn newest_known_kernel(&self, series: Option<&str>) -> Result<Option<Package>, KernelError> {
        // Debian names the cloud kernel of a backported series after the series.
        let mut meta = self.names(r"^linux-image-([0-9.]+-)?cloud-amd64$")?;
        meta.extend(["linux-image-virtual".to_owned(), "linux-image-kvm".to_owned()]);
        let mut found: Vec<(Vec<u64>, String)> = Vec::new();
        for name in &meta {
            let Some(package) = self.show(name)? else { continue };
            found.extend(
                package.depends.into_iter().filter_map(|image| kernel_version(&image, series).map(|v| (v, image))),
            );
        }
        if found.is_empty()
            && let Some(series) = series
        {
            let images =
                self.names(&format!("^linux-image-{}[.0-9+a-z-]*-cloud-amd64$", series.replace('.', r"\.")))?;
            found.extend(
                images.into_iter().filter_map(|image| kernel_version(&image, Some(series)).map(|v| (v, image))),
            );
        }
        found.sort();
        match found.pop() {
            Some((_, image)) => self.show(&image),
            None => Ok(None),
        }
    }

    /// The packages that together make the kernel `image`: itself, and its modules where they are apart (Ubuntu).
    pub(super) fn with_modules(&self, image: Package) -> Result<Vec<Package>, KernelError> {
        let mut all = Vec::new();
        for name in image.depends.iter().filter(|name| name.starts_with("linux-modules-")) {
            all.extend(self.show(name)?);
        }
        all.insert(0, image);
        Ok(all)
    }

    /// Downloads `package` into `directory`, which is the package's alone.
    pub(super) fn download(
        &self,
        package: &Package,
        directory: &Path,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<PathBuf, KernelError> {
        let first = self.try_download(package, directory, progress);
        if first.is_err() && self.update(progress).is_ok() {
            // The lists were older than what the mirror holds.
            return self.try_download(package, directory, progress);
        }
        first
    }

    fn try_download(
        &self,
        package: &Package,
        directory: &Path,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<PathBuf, KernelError> {
        let mut get = command("apt-get");
        // As root apt would download as another user, who may not write here, and warn that it cannot.
        get.args(["-q", "-o", "APT::Sandbox::User=root", "download"]);
        get.arg(format!("{}={}", package.name, package.version)).current_dir(directory);
        let attempt = format!("cannot download {} {} with apt-get", package.name, package.version);
        let mut seen = 0;
        watched(
            get,
            &attempt,
            |_| {},
            || {
                let bytes = files_in(directory).iter().filter_map(|path| Some(path.metadata().ok()?.len())).sum();
                if bytes > seen {
                    seen = bytes;
                    progress(Progress::Downloaded { bytes, total: package.size });
                }
            },
        )?;
        let whole = files_in(directory).into_iter().find(|path| path.extension().is_some_and(|e| e == "deb"));
        whole.ok_or_else(|| KernelError::tool(attempt, "it says that it has, but there is no package"))
    }

    /// Fetches the package lists again; only root may.
    fn update(&self, progress: &mut dyn FnMut(Progress)) -> Result<(), KernelError> {
        let attempt = "cannot fetch apt's package lists";
        if !rustix::process::geteuid().is_root() {
            return Err(KernelError::tool(attempt, "only root may: run `sudo apt-get update`, then try again"));
        }
        progress(Progress::Step("fetching apt's package lists".to_owned()));
        let mut update = command("apt-get");
        update.args(["-q", "update"]);
        watched(update, attempt, |_| {}, || {})
    }
}

fn files_in(directory: &Path) -> Vec<PathBuf> {
    fs::read_dir(directory).map(|all| all.filter_map(|e| Some(e.ok()?.path())).collect()).unwrap_or_default()
}

/// The version in the name of a kernel package, where it is one of `series`; meta packages have none.
fn kernel_version(image: &str, series: Option<&str>) -> Option<Vec<u64>> {
    let version = image.strip_prefix("linux-image-")?;
    let of_series = series.is_none_or(|series| {
        version.strip_prefix(series).is_some_and(|rest| !rest.starts_with(|c: char| c.is_ascii_digit()))
    });
    let numbers = version_numbers(version.split(|c: char| c.is_ascii_alphabetic()).next()?);
    (of_series && version.starts_with(|c: char| c.is_ascii_digit()) && numbers.len() > 2).then_some(numbers)
}

/// Reads one stanza of `apt-cache show`.
fn parse_package(text: &str) -> Option<Package> {
    let stanza = text.split("\n\n").next()?;
    let field = |name: &str| {
        stanza.lines().find_map(|line| Some(line.split_once(": ").filter(|(key, _)| *key == name)?.1.trim().to_owned()))
    };
    let depends = field("Depends").unwrap_or_default();
    let first_word = |dependency: &str| dependency.split(['|', '(', ' ']).find(|w| !w.is_empty()).map(str::to_owned);
    Some(Package {
        name: field("Package")?,
        version: field("Version")?,
        size: field("Size").and_then(|size| size.parse().ok()),
        sha256: field("SHA256")?,
        depends: depends.split(',').filter_map(first_word).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_apt_shows() {
        let text = "Package: linux-image-cloud-amd64\nSource: linux\nVersion: 6.1.1-2\nDepends: a (= 1), b | c, \
                    linux-image-6.1.0-56-cloud-amd64 (= 6.1.1-2)\nSize: 123\nSHA256: ab\n\nPackage: other\n";
        let package = parse_package(text).unwrap();
        assert_eq!(package.name, "linux-image-cloud-amd64");
        assert_eq!(package.depends, ["a", "b", "linux-image-6.1.0-56-cloud-amd64"]);
        assert_eq!((package.size, package.sha256.as_str()), (Some(123), "ab"));
        assert_eq!(parse_package(""), None);
    }

    #[test]
    fn tells_series_apart() {
        let image = "linux-image-6.12.117+deb12-cloud-amd64";
        assert_eq!(kernel_version(image, Some("6.12")), Some(vec![6, 12, 117]));
        assert_eq!(kernel_version(image, Some("6.1")), None);
        assert_eq!(kernel_version("linux-image-6.12-cloud-amd64", None), None);
        assert!(kernel_version("linux-image-6.1.0-56-cloud-amd64", None) < kernel_version(image, None));
    }
}
