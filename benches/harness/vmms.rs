//! VMMs with the same guest: what each is told beside the devices that a benchmark is about.

use std::fs;
use std::path::{Path, PathBuf};

use amphi::kernel::Kernel;
use serde_json::{Value, json};

use crate::newc;
use crate::world::{self, progress};

const MEMORY_MIB: u32 = 128;

/// A guest whose PID 1 is this program. Its files are copies on a memory file system: the lab's view of the host's is slow.
pub(crate) struct Guest {
    directory: PathBuf,
    command_line: &'static str,
}

impl Guest {
    /// Puts kernel, initramfs and amphi into `directory`.
    pub(crate) fn prepare(directory: &Path, command_line: &'static str) -> Result<Self, Box<dyn std::error::Error>> {
        fs::copy(Kernel::resolve(None)?.image, directory.join("vmlinux"))?;
        fs::copy(env!("CARGO_BIN_EXE_amphi"), directory.join("amphi"))?;
        fs::write(directory.join("initrd"), newc::initramfs(&fs::read(std::env::current_exe()?)?))?;
        Ok(Self { directory: directory.to_owned(), command_line })
    }

    pub(crate) fn path(&self, name: &str) -> String {
        self.directory.join(name).display().to_string()
    }

    /// amphi's command, with these options of `run` as well.
    pub(crate) fn amphi(&self, devices: impl IntoIterator<Item = String>) -> Vec<String> {
        let words = [
            self.path("amphi"),
            "run".to_owned(),
            format!("--memory={MEMORY_MIB}M"),
            format!("--kernel={}", self.path("vmlinux")),
            format!("--initrd={}", self.path("initrd")),
            format!("--kernel-arg={}", self.command_line),
        ];
        words.into_iter().chain(devices).collect()
    }

    /// Brings the Firecracker that `FIRECRACKER=PATH` names, and returns whether there is one.
    pub(crate) fn brings_firecracker(&self) -> Result<bool, String> {
        let Some(program) = std::env::var_os("FIRECRACKER").filter(|path| !path.is_empty()) else {
            progress("no FIRECRACKER=PATH given: not compared");
            return Ok(false);
        };
        fs::copy(&program, self.path("firecracker")).map_err(|error| format!("{}: {error}", program.display()))?;
        Ok(true)
    }

    /// Its command, with a configuration called `name` that has these sections as well.
    pub(crate) fn firecracker(&self, name: &str, devices: &[(&str, Value)]) -> Result<Vec<String>, String> {
        let mut config = json!({
            "boot-source": {
                "kernel_image_path": self.path("vmlinux"),
                "initrd_path": self.path("initrd"),
                "boot_args": self.command_line,
            },
            "machine-config": { "vcpu_count": 1, "mem_size_mib": MEMORY_MIB },
        });
        for (section, value) in devices {
            config[section] = value.clone();
        }
        let path = self.path(&format!("{name}.json"));
        fs::write(&path, config.to_string()).map_err(|error| format!("{path}: {error}"))?;
        Ok([&self.path("firecracker"), "--no-api", "--config-file", &path].map(ToOwned::to_owned).into())
    }

    /// QEMU's command, with these options as well. Its microvm machine has no keyboard controller: its guests end by a triple fault.
    pub(crate) fn qemu(&self, program: &Path, devices: &[(&str, &str)]) -> Vec<String> {
        let line = self.command_line.replace("reboot=k", "reboot=t");
        let (kernel, initrd, memory) = (self.path("vmlinux"), self.path("initrd"), MEMORY_MIB.to_string());
        let options = [
            ("-M", "microvm,accel=kvm,pit=off,pic=off,rtc=off,auto-kernel-cmdline=off,isa-serial=on"),
            ("-cpu", "host"),
            ("-m", &memory),
            ("-display", "none"),
            ("-serial", "stdio"),
            ("-kernel", &kernel),
            ("-initrd", &initrd),
            ("-append", &line),
            // Otherwise devices are those of virtio 0.9.
            ("-global", "virtio-mmio.force-legacy=false"),
        ];
        let flags = ["-nodefaults", "-no-user-config", "-no-reboot"].map(ToOwned::to_owned);
        let words = options.iter().chain(devices).flat_map(|(option, value)| [*option, *value]);
        std::iter::once(program.display().to_string()).chain(flags).chain(words.map(ToOwned::to_owned)).collect()
    }
}

/// The QEMU to compare with, where there is one.
pub(crate) fn qemu() -> Option<PathBuf> {
    let program = world::qemu();
    if program.is_none() {
        progress("no qemu-system-x86_64 here, nor QEMU=PATH given: not compared");
    }
    program
}
