//! What is measured: VMMs with the same kernel, the same initramfs and the same disk.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use amphi::kernel::Kernel;

use crate::guest;
use crate::loads::Subject;
use crate::newc::entry;
use crate::world::{self, progress};

const MEMORY_MIB: u32 = 128;
const DISK_MIB: u64 = 64;
/// Firecracker adds `pci=off` to what it is given, and so does amphi.
const COMMAND_LINE: &str = "quiet console=ttyS0 reboot=k panic=-1 nomodule pci=off";

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
    match world::qemu() {
        Some(program) => subjects.extend(["threads", "io_uring"].map(|engine| files.qemu(&program, engine))),
        None => progress("no qemu-system-x86_64 here, nor QEMU=PATH given: not compared"),
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
        Subject { name: format!("amphi, {engine}"), is_peer: false, command: words.into(), loads: guest::names() }
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
        Ok(Subject {
            name: format!("Firecracker, {engine}"),
            is_peer: true,
            command: words.into(),
            loads: guest::names(),
        })
    }

    /// QEMU's microvm machine has no keyboard controller: its guests end by a triple fault.
    fn qemu(&self, program: &Path, engine: &str) -> Subject {
        let drive = format!("id=disk,if=none,format=raw,aio={engine},file={}", self.path("disk"));
        let line = COMMAND_LINE.replace("reboot=k", "reboot=t");
        let (kernel, initrd, memory) = (self.path("vmlinux"), self.path("initrd"), MEMORY_MIB.to_string());
        let machine = "microvm,accel=kvm,pit=off,pic=off,rtc=off,auto-kernel-cmdline=off,isa-serial=on";
        let options = [
            ("-M", machine),
            ("-cpu", "host"),
            ("-m", &memory),
            ("-display", "none"),
            ("-serial", "stdio"),
            ("-kernel", &kernel),
            ("-initrd", &initrd),
            ("-append", &line),
            ("-drive", &drive),
            ("-device", "virtio-blk-device,drive=disk"),
            // Otherwise devices are those of virtio 0.9.
            ("-global", "virtio-mmio.force-legacy=false"),
        ];
        let program = program.display().to_string();
        let flags = ["-nodefaults", "-no-user-config", "-no-reboot"].map(ToOwned::to_owned);
        let words = options.iter().flat_map(|(option, value)| [*option, *value]).map(ToOwned::to_owned);
        let command = std::iter::once(program).chain(flags).chain(words).collect();
        Subject { name: format!("QEMU microvm, {engine}"), is_peer: false, command, loads: guest::names() }
    }
}
