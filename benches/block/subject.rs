//! What is measured: VMMs with the same kernel, the same initramfs and the same disk.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde_json::json;

use crate::guest;
use crate::loads::Subject;
use crate::vmms::{self, Guest};

const DISK_MIB: u64 = 64;
/// Firecracker adds `pci=off` to what it is given, and so does amphi.
const COMMAND_LINE: &str = "quiet console=ttyS0 reboot=k panic=-1 nomodule pci=off";

/// All that can be measured here, with everything that it needs below `directory`.
pub(crate) fn all(directory: &Path) -> Result<Vec<Subject>, String> {
    let guest = prepare(directory).map_err(|error| format!("preparing the inputs: {error}"))?;
    let mut subjects = vec![amphi(&guest, "sync"), amphi(&guest, "io_uring")];
    if guest.brings_firecracker()? {
        subjects.push(firecracker(&guest, "Sync")?);
        subjects.push(firecracker(&guest, "Async")?);
    }
    if let Some(program) = vmms::qemu() {
        subjects.extend(["threads", "io_uring"].map(|engine| qemu(&guest, &program, engine)));
    }
    Ok(subjects)
}

fn prepare(directory: &Path) -> Result<Guest, Box<dyn std::error::Error>> {
    // No holes: what is read has to be there.
    let mut disk = File::create(directory.join("disk"))?;
    std::io::copy(&mut std::io::repeat(0x5a).take(DISK_MIB << 20), &mut disk)?;
    Guest::prepare(directory, COMMAND_LINE)
}

fn amphi(guest: &Guest, engine: &str) -> Subject {
    let command = guest.amphi([format!("--disk={},engine={engine}", guest.path("disk"))]);
    Subject { name: format!("amphi, {engine}"), is_peer: false, command, loads: guest::names() }
}

fn firecracker(guest: &Guest, engine: &str) -> Result<Subject, String> {
    let drives = json!([{
        "drive_id": "disk", "path_on_host": guest.path("disk"), "is_root_device": false, "is_read_only": false,
        "io_engine": engine,
    }]);
    let command = guest.firecracker(engine, &[("drives", drives)])?;
    Ok(Subject { name: format!("Firecracker, {engine}"), is_peer: true, command, loads: guest::names() })
}

fn qemu(guest: &Guest, program: &Path, engine: &str) -> Subject {
    let drive = format!("id=disk,if=none,format=raw,aio={engine},file={}", guest.path("disk"));
    let command = guest.qemu(program, &[("-drive", &drive), ("-device", "virtio-blk-device,drive=disk")]);
    Subject { name: format!("QEMU microvm, {engine}"), is_peer: false, command, loads: guest::names() }
}
