//! Archives in the "newc" format, as initramfs (Documentation/driver-api/early-userspace/buffer-format.rst of the kernel).

/// A console and a program as PID 1.
pub(crate) fn initramfs(init: &[u8]) -> Vec<u8> {
    let mut archive = Vec::new();
    entry(&mut archive, "dev", 0o40_755, (0, 0), b"");
    entry(&mut archive, "dev/console", 0o20_600, (5, 1), b"");
    entry(&mut archive, "init", 0o100_755, (0, 0), init);
    entry(&mut archive, "TRAILER!!!", 0, (0, 0), b"");
    archive
}

/// Appends an entry; the last one is called `TRAILER!!!`.
fn entry(archive: &mut Vec<u8>, name: &str, mode: u32, device: (u32, u32), body: &[u8]) {
    let fields = [0, mode, 0, 0, 1, 0, u32::try_from(body.len()).unwrap(), 0, 0, device.0, device.1];
    archive.extend(b"070701");
    for field in fields {
        archive.extend(format!("{field:08x}").bytes());
    }
    archive.extend(format!("{:08x}{:08x}", name.len() + 1, 0).bytes());
    archive.extend(name.bytes());
    archive.push(0);
    archive.resize(archive.len().next_multiple_of(4), 0);
    archive.extend(body);
    archive.resize(archive.len().next_multiple_of(4), 0);
}
