//! A microVM's writable layer that is kept: what is on its disk after runs, and what reads and changes it without one.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use amphi::isolation::vm::{KeptLayer, VmError};
use amphi::isolation::{ExitStatus, Signal, Stdio};
use amphi::spec::{MemorySize, WritableLayer};
use amphi::{Image, IsolationKind, RunSpec, Sandbox, isolation};
use amphi_guest_init::tree::{Item, Kind, PackOptions, pack};

use crate::harness::{Case, installed, rootfs, vm};

pub(crate) fn cases() -> Vec<Case> {
    vec![
        vm("kept_layer_over_an_inline_root", || kept_layer(&Instance::new(None, false))),
        vm("kept_layer_with_a_stock_kernel", || kept_layer(&Instance::new(Some(installed::stock("6.12.").name), true))),
        vm("kept_layer_is_read_from_outside", changes_and_copies),
        vm("kept_layer_has_a_limit", has_a_limit),
        vm("kept_layer_survives_a_crash", survives_a_crash),
        vm("kept_layer_that_is_damaged", damaged),
        vm("layer_in_memory_has_a_limit", in_memory_with_a_limit),
    ]
}

/// A root, and the folder of one instance of it.
struct Instance {
    scratch: tempfile::TempDir,
    image: Image,
    kernel: Option<String>,
}

impl Instance {
    /// `large`: the root is one that does not travel in the initramfs.
    fn new(kernel: Option<String>, large: bool) -> Self {
        let scratch = tempfile::tempdir().unwrap();
        fs::create_dir(scratch.path().join("instance")).unwrap();
        let mut root = rootfs::busybox().to_owned();
        if large {
            root = scratch.path().join("root");
            rootfs::with_programs(&root, &[]);
            let file = fs::File::create(root.join("large")).unwrap();
            file.set_len(20 << 20).unwrap();
            file.write_all_at(b"x", 19 << 20).unwrap();
        }
        let image = Image::open(&format!("dir:{}", root.display())).unwrap();
        Self { scratch, image, kernel }
    }

    fn folder(&self) -> PathBuf {
        self.scratch.path().join("instance")
    }

    fn disk(&self) -> PathBuf {
        self.folder().join(WritableLayer::FILE)
    }

    fn layer(&self) -> KeptLayer {
        let layer = KeptLayer::new(self.folder());
        self.kernel.iter().fold(layer, |layer, kernel| layer.kernel(kernel))
    }

    fn sandbox(&self, limit: Option<MemorySize>, script: &str) -> (Box<dyn Sandbox>, io::PipeReader) {
        self.sandbox_with(WritableLayer { folder: Some(self.folder()), limit }, script)
    }

    fn sandbox_with(&self, layer: WritableLayer, script: &str) -> (Box<dyn Sandbox>, io::PipeReader) {
        let spec = RunSpec::builder(&self.image).args(["/bin/sh", "-c", script]).writable(layer);
        let spec = self.kernel.iter().fold(spec, |spec, kernel| spec.kernel(kernel)).build().unwrap();
        let (reader, writer) = io::pipe().unwrap();
        let stdio = Stdio {
            stdout: OwnedFd::from(writer.try_clone().unwrap()),
            stderr: OwnedFd::from(writer),
            ..Stdio::null().unwrap()
        };
        (isolation(IsolationKind::Vm).create(&spec, stdio).unwrap(), reader)
    }

    /// Runs `script` to its end; returns what it wrote.
    fn run(&self, limit: Option<MemorySize>, script: &str) -> String {
        let (sandbox, mut output) = self.sandbox(limit, script);
        sandbox.start().unwrap();
        let status = sandbox.wait().unwrap();
        drop(sandbox);
        let mut text = String::new();
        output.read_to_string(&mut text).unwrap();
        assert_eq!(status, ExitStatus::Code(0), "{script}: {text}");
        text
    }

    /// How much of the host's disk the layer takes up, in bytes.
    fn size(&self) -> u64 {
        self.disk().metadata().unwrap().blocks() * 512
    }

    fn check_disk(&self) {
        let check = Command::new("/sbin/e2fsck").args(["-f", "-n"]).arg(self.disk()).output().unwrap();
        assert!(check.status.success(), "{}", String::from_utf8_lossy(&check.stdout));
    }
}

fn kept_layer(instance: &Instance) {
    instance.run(None, "echo one >/file; chmod 700 /; rm -r /home/alice; test ! -e /home/alice");
    instance.check_disk();
    let size = instance.size();
    assert!(size < 2 << 20, "a file of 4 bytes takes {size} bytes");
    let text = instance.run(None, "cat /file; stat -c %a /; ls /home; echo two >>/file; dd if=/dev/urandom of=/big bs=1M count=32 2>&1 | grep -c out");
    assert_eq!(text, "one\n700\n1\n");
    let with_big = instance.size();
    assert!(with_big > 32 << 20, "{with_big}");
    assert_eq!(instance.run(None, "rm /big; cat /file"), "one\ntwo\n");
    let without = instance.size();
    assert!(without < with_big - (30 << 20), "{without} of {with_big} are left");
    instance.check_disk();
}

/// All of a tree, by path: what it is, and the contents of files.
type Listing = BTreeMap<Vec<u8>, (String, Vec<u8>)>;

/// A function's `visit` that gathers a tree in `listing`.
fn gather(listing: &mut Listing, ended: &mut bool) -> impl FnMut(Item<'_>) -> io::Result<()> {
    let mut last = Vec::new();
    move |item| {
        match item {
            Item::Entry(entry) => {
                let attributes: Vec<_> = entry
                    .attributes
                    .into_iter()
                    .filter(|(name, _)| name.starts_with(b"user.") || *name == b"trusted.overlay.opaque")
                    .map(|(name, value)| {
                        format!(" {}={}", String::from_utf8_lossy(name), String::from_utf8_lossy(value))
                    })
                    .collect();
                let kind = match entry.kind {
                    Kind::HardLink(target) | Kind::Symlink(target) => {
                        format!(
                            "{} {}",
                            if matches!(entry.kind, Kind::HardLink(_)) { "same as" } else { "link to" },
                            String::from_utf8_lossy(target)
                        )
                    }
                    kind => format!("{kind:?}"),
                };
                let text = format!("{kind} {:o} {}:{}{}", entry.mode, entry.uid, entry.gid, attributes.concat());
                last = entry.path.to_vec();
                listing.insert(last.clone(), (text, Vec::new()));
            }
            Item::Data { offset, bytes } => {
                let contents = &mut listing.get_mut(&last).unwrap().1;
                contents.extend_from_slice(format!("{offset}:").as_bytes());
                contents.extend_from_slice(bytes);
            }
            Item::End => *ended = true,
        }
        Ok(())
    }
}

fn listing(tell: impl FnOnce(&mut dyn FnMut(Item<'_>) -> io::Result<()>) -> Result<(), VmError>) -> Listing {
    let (mut listing, mut ended) = (Listing::new(), false);
    tell(&mut gather(&mut listing, &mut ended)).unwrap();
    assert!(ended);
    listing
}

fn changes_and_copies() {
    let instance = Instance::new(None, false);
    let layer = instance.layer();
    let rootfs = &instance.image.rootfs;
    assert_eq!(listing(|visit| layer.changes(visit)).len(), 1, "nothing has been run");
    instance.run(
        None,
        "echo added >/added && ln /added /again && echo more >>/etc/passwd && rm /etc/group \
         && rm -r /home/alice && mkdir /home/alice && echo in >/home/alice/in && ln -s /nowhere /link && mkfifo /pipe \
         && mknod /disk b 7 300 && echo odd >\"$(printf '/\\377odd')\" \
         && truncate -s 4G /sparse && echo end | dd of=/sparse bs=1 seek=3000000000 conv=notrunc 2>/dev/null \
         && chown 7:8 /added && chmod 4750 /added && mkdir -p /a/b/c && touch -d @5 /a/b/c",
    );
    let changes = listing(|visit| layer.changes(visit));
    let what = |path: &[u8]| changes.get(path).map(|(text, contents)| (text.as_str(), &**contents));
    assert_eq!(what(b"added"), Some(("File(6) 4750 7:8", &b"0:added\n"[..])));
    assert_eq!(what(b"again"), Some(("same as added 4750 7:8", &b""[..])));
    assert!(what(b"etc/passwd").is_some_and(|(_, contents)| contents.ends_with(b"more\n")));
    assert_eq!(what(b"etc/group").map(|it| it.0), Some("CharacterDevice(0, 0) 0 0:0"));
    assert_eq!(what(b"home/alice").map(|it| it.0), Some("Directory 755 0:0 trusted.overlay.opaque=y"));
    assert_eq!(what(b"home/alice/in").map(|it| it.1), Some(&b"0:in\n"[..]));
    assert_eq!(what(b"link").map(|it| it.0), Some("link to /nowhere 777 0:0"));
    assert!(what(b"pipe").is_some_and(|(text, _)| text.starts_with("Fifo ")));
    assert!(what(b"disk").is_some_and(|(text, _)| text.starts_with("BlockDevice(7, 300) ")));
    assert_eq!(what(b"\xffodd").map(|it| it.1), Some(&b"0:odd\n"[..]));
    let (sparse, contents) = what(b"sparse").unwrap();
    assert!(
        sparse.starts_with("File(4294967296) ")
            && contents.len() < 10_000
            && contents.windows(4).any(|w| w == b"end\n")
    );
    assert!(what(b"a/b/c").is_some() && what(b"bin").is_none() && what(b"etc/not-executable").is_none());

    let passwd = listing(|visit| layer.pack(rootfs, Path::new("/etc/passwd"), true, visit));
    assert!(passwd.len() == 1 && passwd[&b""[..]].1.ends_with(b"more\n"));
    let etc = listing(|visit| layer.pack(rootfs, Path::new("etc"), true, visit));
    let names: Vec<_> = etc.keys().map(|name| String::from_utf8_lossy(name)).collect();
    assert_eq!(names, ["", "not-executable", "passwd"], "the group file is gone");
    assert_eq!(listing(|visit| layer.pack(rootfs, Path::new("/etc"), false, visit)).len(), 1);
    let missing = layer.pack(rootfs, Path::new("/etc/group"), true, &mut |_| Ok(())).unwrap_err();
    assert!(
        matches!(&missing, VmError::Service(text) if text.contains("/etc/group") && text.contains("no such file")),
        "{missing}"
    );
    let stop = layer.pack(rootfs, Path::new("/"), true, &mut |_| Err(io::Error::other("enough")));
    assert!(matches!(stop, Err(VmError::Transfer(_))));
    copies_in(&instance, &layer);
}

fn copies_in(instance: &Instance, layer: &KeptLayer) {
    let rootfs = &instance.image.rootfs;
    let from = instance.scratch.path().join("from");
    fs::create_dir_all(from.join("d")).unwrap();
    fs::write(from.join("d/f"), vec![b'x'; 300_000]).unwrap();
    let folder = fs::File::open(&from).unwrap();
    let send = |name: &'static [u8]| {
        let folder = folder.as_fd();
        move |encoder: &mut _| {
            let options = PackOptions { owner: Some((3, 4)), ..PackOptions::default() };
            pack(folder, name, options, encoder).map_err(|error| match error {
                amphi_guest_init::tree::PackError::Sink(error) => error,
                amphi_guest_init::tree::PackError::File(error) => panic!("{error}"),
            })
        }
    };
    layer.unpack(rootfs, Path::new("/home"), b"new", send(b"d")).unwrap();
    let folder = fs::File::open(from.join("d")).unwrap();
    let file = |encoder: &mut _| {
        pack(folder.as_fd(), b"f", PackOptions::default(), encoder).map_err(|_| io::Error::other("cannot pack"))
    };
    layer.unpack(rootfs, Path::new("/link-to-etc/passwd"), b"f", file).unwrap_err();
    layer.unpack(rootfs, Path::new("/home/renamed"), b"f", file).unwrap();
    let failed = layer.unpack(rootfs, Path::new("/tmp"), b"f", |_| Err(io::Error::other("cannot go on")));
    assert!(matches!(failed, Err(VmError::Transfer(error)) if error.to_string() == "cannot go on"));
    let text = instance.run(
        None,
        "stat -c '%u:%g %s %n' /home/new /home/new/f /home/renamed | sed 's/ 4096 / dir /'; cat /home/new/f | tr -d x | wc -c",
    );
    assert_eq!(text, "3:4 dir /home/new\n3:4 300000 /home/new/f\n0:0 300000 /home/renamed\n0\n");
    instance.check_disk();
}

fn has_a_limit() {
    let instance = Instance::new(None, false);
    let limit = Some(MemorySize::from_mib(64));
    let script = "dd if=/dev/zero of=/big bs=1M count=100 2>&1 | grep -o 'No space left on device'; \
        test $(stat -c %s /big) -gt 40000000; rm /big; echo small >/small";
    assert_eq!(instance.run(limit, script), "No space left on device\n");
    assert_eq!(instance.disk().metadata().unwrap().len(), 64 << 20);
    // The limit is that of the first run.
    assert_eq!(instance.run(None, "cat /small"), "small\n");
    assert!(instance.size() < 8 << 20, "{}", instance.size());
    // One run at a time.
    let held = instance.sandbox(None, "true");
    let in_use = instance.layer().changes(&mut |_| Ok(())).unwrap_err();
    assert!(in_use.to_string().contains("in use"), "{in_use}");
    drop(held);
}

fn survives_a_crash() {
    let instance = Instance::new(None, false);
    let (sandbox, mut output) = instance.sandbox(None, "echo synced >/file && sync && echo ready && sleep 1000");
    sandbox.start().unwrap();
    let mut ready = [0; 6];
    output.read_exact(&mut ready).unwrap();
    sandbox.kill(Signal::KILL).unwrap();
    assert_eq!(sandbox.wait().unwrap(), ExitStatus::Signal(Signal::KILL));
    drop(sandbox);
    let changes = listing(|visit| instance.layer().changes(visit));
    assert_eq!(changes[&b"file"[..]].1, b"0:synced\n", "read from the journal");
    assert_eq!(instance.run(None, "cat /file"), "synced\n");
    instance.check_disk();
}

fn damaged() {
    let instance = Instance::new(None, false);
    fs::write(instance.disk(), vec![0x5a; 32 << 20]).unwrap();
    let error = instance.layer().changes(&mut |_| Ok(())).unwrap_err();
    assert!(error.to_string().contains("writable layer (ext4)"), "{error}");
    let (sandbox, _output) = instance.sandbox(None, "true");
    let error = sandbox.start().and_then(|()| sandbox.wait().map(drop)).unwrap_err();
    assert!(error.to_string().contains("writable layer (ext4)"), "{error}");
}

fn in_memory_with_a_limit() {
    let instance = Instance::new(None, false);
    let layer = WritableLayer { folder: None, limit: Some(MemorySize::from_mib(16)) };
    let script = "dd if=/dev/zero of=/big bs=1M count=32 2>&1 | grep -o 'No space left on device'; ls /etc/passwd";
    let (sandbox, mut output) = instance.sandbox_with(layer, script);
    sandbox.start().unwrap();
    let status = sandbox.wait().unwrap();
    drop(sandbox);
    let mut text = String::new();
    output.read_to_string(&mut text).unwrap();
    assert_eq!((status, &*text), (ExitStatus::Code(0), "No space left on device\n/etc/passwd\n"));
}
