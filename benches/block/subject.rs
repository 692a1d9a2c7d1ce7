//! What is measured: VMMs with the same kernel, the same initramfs and the same disk.

use std::collections::HashMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use amphi::kernel::Kernel;

use crate::guest::MARK;
use crate::newc::entry;
use crate::world::progress;

const MEMORY_MIB: u32 = 128;
const DISK_MIB: u64 = 64;
/// Firecracker adds `pci=off` to what it is given, and so does amphi.
const COMMAND_LINE: &str = "quiet console=ttyS0 reboot=k panic=-1 nomodule pci=off";

/// Nanoseconds a request, by the name of the load.
pub(crate) type Figures = HashMap<String, u64>;

/// One VMM with one way of doing I/O.
pub(crate) struct Subject {
    pub(crate) name: String,
    /// Whether all figures are also given in relation to this one's.
    pub(crate) is_peer: bool,
    command: Vec<String>,
}

impl Subject {
    /// Runs the guest, and returns the nanoseconds a request of each load.
    pub(crate) fn measure(&self) -> Result<Figures, String> {
        let failed = |error: std::io::Error| format!("{}: {error}", self.name);
        let output = Command::new(&self.command[0])
            .args(&self.command[1..])
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .output()
            .map_err(failed)?;
        let said = String::from_utf8_lossy(&output.stdout);
        let figures = said.lines().filter_map(|line| {
            let mut words = line[line.find(MARK)?..].split_ascii_whitespace().skip(1);
            Some((words.next()?.to_owned(), words.next()?.parse().ok()?))
        });
        let figures: Figures = figures.collect();
        if figures.len() == crate::guest::LOADS.len() {
            return Ok(figures);
        }
        Err(format!("{}: {}: {said}{}", self.name, output.status, String::from_utf8_lossy(&output.stderr)))
    }
}

/// All that can be measured here, with everything that it needs below `directory`.
pub(crate) fn all(directory: &Path) -> Result<Vec<Subject>, String> {
    let files = Files::prepare(directory).map_err(|error| format!("preparing the inputs: {error}"))?;
    let mut subjects = vec![files.amphi("sync"), files.amphi("io_uring")];
    match std::env::var_os("FIRECRACKER").filter(|path| !path.is_empty()) {
        Some(program) => {
            fs::copy(&program, directory.join("firecracker")).map_err(|e| format!("{}: {e}", program.display()))?;
            subjects.push(files.firecracker("Sync")?);
            subjects.push(files.firecracker("Async")?);
        }
        None => progress("no FIRECRACKER=PATH given: not compared"),
    }
    Ok(subjects)
}

/// Copies on a memory file system: the lab's view of the host's files is slow.
struct Files {
    directory: PathBuf,
}

impl Files {
    fn prepare(directory: &Path) -> Result<Self, Box<dyn std::error::Error>> {
        fs::copy(Kernel::resolve(None)?.image, directory.join("vmlinux"))?;
        fs::copy(env!("CARGO_BIN_EXE_amphi"), directory.join("amphi"))?;
        let mut archive = Vec::new();
        entry(&mut archive, "dev", 0o40_755, (0, 0), b"");
        entry(&mut archive, "dev/console", 0o20_600, (5, 1), b"");
        entry(&mut archive, "init", 0o100_755, (0, 0), &fs::read(std::env::current_exe()?)?);
        entry(&mut archive, "TRAILER!!!", 0, (0, 0), b"");
        fs::write(directory.join("initrd"), archive)?;
        // No holes: what is read has to be there.
        let mut disk = File::create(directory.join("disk"))?;
        std::io::copy(&mut std::io::Read::take(std::io::repeat(0x5a), DISK_MIB << 20), &mut disk)?;
        Ok(Self { directory: directory.to_owned() })
    }

    fn path(&self, name: &str) -> String {
        self.directory.join(name).display().to_string()
    }

    fn amphi(&self, engine: &str) -> Subject {
        let words = [
            self.path("amphi"),
            "run".to_owned(),
            format!("--memory={MEMORY_MIB}M"),
            format!("--kernel={}", self.path("vmlinux")),
            format!("--initrd={}", self.path("initrd")),
            format!("--kernel-arg={COMMAND_LINE}"),
            format!("--disk={},engine={engine}", self.path("disk")),
        ];
        Subject { name: format!("amphi, {engine}"), is_peer: false, command: words.into() }
    }

    fn firecracker(&self, engine: &str) -> Result<Subject, String> {
        let config = serde_json::json!({
            "boot-source": {
                "kernel_image_path": self.path("vmlinux"), "initrd_path": self.path("initrd"), "boot_args": COMMAND_LINE,
            },
            "drives": [{
                "drive_id": "disk", "path_on_host": self.path("disk"), "is_root_device": false, "is_read_only": false,
                "io_engine": engine,
            }],
            "machine-config": { "vcpu_count": 1, "mem_size_mib": MEMORY_MIB },
        });
        let path = self.path(&format!("{engine}.json"));
        fs::write(&path, config.to_string()).map_err(|error| format!("{path}: {error}"))?;
        let words = [&self.path("firecracker"), "--no-api", "--config-file", &path].map(ToOwned::to_owned);
        Ok(Subject { name: format!("Firecracker, {engine}"), is_peer: true, command: words.into() })
    }
}
