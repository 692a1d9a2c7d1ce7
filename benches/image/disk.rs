//! What instances add to the disk.

use std::fs;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Child;

use crate::tools::Amphi;

/// How many run at a time.
const INSTANCES: usize = 10;
/// What each of them writes, in MiB.
const WRITTEN: u64 = 2;

/// The bytes of disk that the folder's files take, each once.
fn allocated(folder: &Path) -> u64 {
    let mut seen = std::collections::BTreeSet::new();
    let mut sum = 0;
    let mut pending = vec![folder.to_owned()];
    while let Some(folder) = pending.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let Ok(metadata) = entry.path().symlink_metadata() else { continue };
            if metadata.is_dir() {
                pending.push(entry.path());
            }
            if seen.insert((metadata.dev(), metadata.ino())) {
                sum += metadata.blocks() * 512;
            }
        }
    }
    sum
}

/// Has `INSTANCES` run at a time, and reports what one of them adds.
pub(crate) fn report(amphi: &Amphi, image: &str) {
    println!("\nDisk that each of {INSTANCES} instances adds, while all run, in bytes");
    let before = allocated(&amphi.root);
    println!("{:<54}{before:>12}", "the image: blobs as they were pulled, and layer files");
    let script =
        format!("dd if=/dev/urandom of=/written bs=1M count={WRITTEN} 2>/dev/null; sync; echo ready; read line");
    let cases: [(&str, &[&str], &str); 3] = [
        ("--rm (writes stay in memory)", &["--rm"], &script),
        ("kept, nothing written", &[], "sync; echo ready; read line"),
        (&format!("kept, {WRITTEN} MiB written"), &[], &script),
    ];
    for (what, options, script) in cases {
        let before = allocated(&amphi.root);
        let mut instances: Vec<Child> = (0..INSTANCES).map(|_| amphi.instance(options, image, script)).collect();
        for instance in &mut instances {
            let mut said = [0; 5];
            instance.stdout.as_mut().unwrap().read_exact(&mut said).unwrap();
        }
        let added = allocated(&amphi.root).saturating_sub(before) / INSTANCES as u64;
        println!("{what:<54}{added:>12}");
        for mut instance in instances {
            drop(instance.stdin.take());
            instance.wait().unwrap();
        }
    }
}
