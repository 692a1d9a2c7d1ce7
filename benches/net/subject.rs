//! What is measured: VMMs with the same kernel, the same initramfs and the same tap interface.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::json;

use crate::guest::{TCP, VSOCK};
use crate::loads::Subject;
use crate::peer::{MAC, TAP};
use crate::vmms::{self, Guest};
use crate::world::{self, progress};

/// Firecracker adds `pci=off` to what it is given, and so does amphi.
const COMMAND_LINE: &str = "quiet console=ttyS0 reboot=k panic=-1 nomodule ipv6.disable=1 pci=off";

/// Where the vsock of the VMM `name` leads.
pub(crate) fn socket(directory: &Path, name: &str) -> PathBuf {
    directory.join(format!("{name}.vsock"))
}

/// All that can be measured here, with everything that it needs below `directory`.
pub(crate) fn all(directory: &Path) -> Result<Vec<Subject>, String> {
    let guest = Guest::prepare(directory, COMMAND_LINE).map_err(|error| format!("preparing the inputs: {error}"))?;
    let mut subjects = vec![amphi(&guest, &socket(directory, "amphi"))];
    if has_vhost() {
        subjects.push(amphi_with_vhost(&guest));
    } else {
        progress("no /dev/vhost-net here: amphi is not measured with it");
    }
    if guest.brings_firecracker()? {
        subjects.push(firecracker(&guest, &socket(directory, "firecracker"))?);
    }
    if let Some(program) = vmms::qemu() {
        subjects.push(qemu(&guest, &program));
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

fn amphi(guest: &Guest, socket: &Path) -> Subject {
    let command = guest.amphi([format!("--network=tap:{TAP},mac={MAC}"), format!("--vsock={}", socket.display())]);
    Subject { name: "amphi".to_owned(), is_peer: false, command, loads: loads(&[TCP, VSOCK]) }
}

/// Without vsock, which is the same.
fn amphi_with_vhost(guest: &Guest) -> Subject {
    let command = guest.amphi([format!("--network=tap:{TAP},mac={MAC},vhost")]);
    Subject { name: "vhost-net".to_owned(), is_peer: false, command, loads: loads(&[TCP]) }
}

fn firecracker(guest: &Guest, socket: &Path) -> Result<Subject, String> {
    let devices = [
        ("drives", json!([])),
        ("network-interfaces", json!([{ "iface_id": "net", "host_dev_name": TAP, "guest_mac": MAC }])),
        ("vsock", json!({ "guest_cid": 3, "uds_path": socket })),
    ];
    // It refuses a socket that is there, and leaves its own behind.
    let words = guest.firecracker("firecracker", &devices)?.join(" ");
    let script = format!("rm -f {} && exec {words}", socket.display());
    let command = ["sh", "-c", &script].map(ToOwned::to_owned).into();
    Ok(Subject { name: "Firecracker".to_owned(), is_peer: true, command, loads: loads(&[TCP, VSOCK]) })
}

fn qemu(guest: &Guest, program: &Path) -> Subject {
    let netdev = format!("tap,id=net,ifname={TAP},script=no,downscript=no");
    let device = format!("virtio-net-device,netdev=net,mac={MAC}");
    let command = guest.qemu(program, &[("-netdev", &netdev), ("-device", &device)]);
    Subject { name: "QEMU microvm".to_owned(), is_peer: false, command, loads: loads(&[TCP]) }
}

fn loads(kinds: &[[&str; 3]]) -> Vec<String> {
    kinds.iter().flatten().map(|&name| name.to_owned()).collect()
}
