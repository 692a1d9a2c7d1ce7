//! What is measured: VMMs with the same kernel, the same initramfs and the same tap interface.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use amphi::kernel::Kernel;

use crate::guest::{TCP, VSOCK};
use crate::loads::Subject;
use crate::newc::entry;
use crate::peer::{MAC, TAP};
use crate::world::{self, progress};

const MEMORY_MIB: u32 = 128;
/// Firecracker adds `pci=off` to what it is given, and so does amphi.
const COMMAND_LINE: &str = "quiet console=ttyS0 reboot=k panic=-1 nomodule ipv6.disable=1 pci=off";

/// Where the vsock of the VMM `name` leads.
pub(crate) fn socket(directory: &Path, name: &str) -> PathBuf {
    directory.join(format!("{name}.vsock"))
}

/// All that can be measured here, with everything that it needs below `directory`.
pub(crate) fn all(directory: &Path) -> Result<Vec<Subject>, String> {
    let files = Files::prepare(directory).map_err(|error| format!("preparing the inputs: {error}"))?;
    let mut subjects = vec![files.amphi()];
    if has_vhost() {
        subjects.push(files.amphi_with_vhost());
    } else {
        progress("no /dev/vhost-net here: amphi is not measured with it");
    }
    match std::env::var_os("FIRECRACKER").filter(|path| !path.is_empty()) {
        Some(program) => {
            fs::copy(&program, directory.join("firecracker")).map_err(|e| format!("{}: {e}", program.display()))?;
            subjects.push(files.firecracker()?);
        }
        None => progress("no FIRECRACKER=PATH given: not compared"),
    }
    match world::qemu() {
        Some(program) => subjects.push(files.qemu(&program)),
        None => progress("no qemu-system-x86_64 here, nor QEMU=PATH given: not compared"),
    }
    Ok(subjects)
}

/// Whether the kernel where VMMs are measured can move a tap interface's packets, once it is asked to. The lab's can.
fn has_vhost() -> bool {
    let device = Path::new("/dev/vhost-net");
    world::must_move()
        || device.exists()
        || Command::new("modprobe").arg("vhost_net").status().is_ok() && device.exists()
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
        Ok(Self { directory: directory.to_owned() })
    }

    fn path(&self, name: &str) -> String {
        self.directory.join(name).display().to_string()
    }

    fn amphi(&self) -> Subject {
        let words = [
            self.path("amphi"),
            "run".to_owned(),
            format!("--memory={MEMORY_MIB}M"),
            format!("--kernel={}", self.path("vmlinux")),
            format!("--initrd={}", self.path("initrd")),
            format!("--kernel-arg={COMMAND_LINE}"),
            format!("--network=tap:{TAP},mac={MAC}"),
            format!("--vsock={}", socket(&self.directory, "amphi").display()),
        ];
        Subject { name: "amphi".to_owned(), is_peer: false, command: words.into(), loads: loads(&[TCP, VSOCK]) }
    }

    fn amphi_with_vhost(&self) -> Subject {
        let Subject { mut command, .. } = self.amphi();
        command.iter_mut().filter(|word| word.starts_with("--network")).for_each(|word| word.push_str(",vhost"));
        // Its vsock is the same.
        command.retain(|word| !word.starts_with("--vsock"));
        Subject { name: "vhost-net".to_owned(), is_peer: false, command, loads: loads(&[TCP]) }
    }

    fn firecracker(&self) -> Result<Subject, String> {
        let socket = socket(&self.directory, "firecracker");
        let config = serde_json::json!({
            "boot-source": {
                "kernel_image_path": self.path("vmlinux"), "initrd_path": self.path("initrd"), "boot_args": COMMAND_LINE,
            },
            "drives": [],
            "network-interfaces": [{ "iface_id": "net", "host_dev_name": TAP, "guest_mac": MAC }],
            "vsock": { "guest_cid": 3, "uds_path": socket },
            "machine-config": { "vcpu_count": 1, "mem_size_mib": MEMORY_MIB },
        });
        let path = self.path("firecracker.json");
        fs::write(&path, config.to_string()).map_err(|error| format!("{path}: {error}"))?;
        // It refuses a socket that is there, and leaves its own behind.
        let script =
            format!("rm -f {} && exec {} --no-api --config-file {path}", socket.display(), self.path("firecracker"));
        let command = ["sh", "-c", &script].map(ToOwned::to_owned).into();
        Ok(Subject { name: "Firecracker".to_owned(), is_peer: true, command, loads: loads(&[TCP, VSOCK]) })
    }

    /// QEMU's microvm machine has no keyboard controller: its guests end by a triple fault.
    fn qemu(&self, program: &Path) -> Subject {
        let netdev = format!("tap,id=net,ifname={TAP},script=no,downscript=no");
        let device = format!("virtio-net-device,netdev=net,mac={MAC}");
        let line = COMMAND_LINE.replace("reboot=k", "reboot=t");
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
            ("-netdev", &netdev),
            ("-device", &device),
            // Otherwise devices are those of virtio 0.9.
            ("-global", "virtio-mmio.force-legacy=false"),
        ];
        let flags = ["-nodefaults", "-no-user-config", "-no-reboot"].map(ToOwned::to_owned);
        let words = options.iter().flat_map(|(option, value)| [*option, *value]).map(ToOwned::to_owned);
        let command = std::iter::once(program.display().to_string()).chain(flags).chain(words).collect();
        Subject { name: "QEMU microvm".to_owned(), is_peer: false, command, loads: loads(&[TCP]) }
    }
}

fn loads(kinds: &[[&str; 3]]) -> Vec<String> {
    kinds.iter().flatten().map(|&name| name.to_owned()).collect()
}
