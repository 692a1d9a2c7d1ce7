use std::fs;
use std::path::Path;
use std::process::Command;

use super::*;

/// An archive made of parts: what goes wrong in them is what is tested, so they are made by hand.
#[derive(Default)]
struct Maker(Vec<u8>);

impl Maker {
    fn entry(mut self, name: &str, kind: u8, link: &str, contents: &[u8]) -> Self {
        let mut header = [0_u8; 512];
        header[..name.len()].copy_from_slice(name.as_bytes());
        header[100..107].copy_from_slice(b"0000755");
        header[108..115].copy_from_slice(b"0000001");
        header[116..123].copy_from_slice(b"0000002");
        header[124..135].copy_from_slice(format!("{:011o}", contents.len()).as_bytes());
        header[136..147].copy_from_slice(b"00000000010");
        header[156] = kind;
        header[157..157 + link.len()].copy_from_slice(link.as_bytes());
        header[257..265].copy_from_slice(b"ustar\x0000");
        header[148..156].fill(b' ');
        let sum: u32 = header.iter().map(|&byte| u32::from(byte)).sum();
        header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        self.0.extend_from_slice(&header);
        self.0.extend_from_slice(contents);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    fn file(self, name: &str, contents: &[u8]) -> Self {
        self.entry(name, b'0', "", contents)
    }

    fn layer(mut self) -> Layer {
        self.0.resize(self.0.len() + 1024, 0);
        layer(&self.0, Digest::of(&self.0))
    }
}

fn layer(bytes: &[u8], diff_id: Digest) -> Layer {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    file.rewind().unwrap();
    Layer { file, size: bytes.len() as u64, diff_id: Some(diff_id) }
}

fn fails(layer: Layer) -> String {
    convert(vec![layer], Conversion::Single, &tempfile::tempfile().unwrap()).unwrap_err().to_string()
}

/// The names in an image with their contents, as `fsck.erofs` unpacks them; `None` where there is no such tool.
fn unpacked(layers: Vec<Layer>, conversion: Conversion) -> Option<Vec<(String, String)>> {
    let folder = tempfile::tempdir().unwrap();
    let (image, root) = (folder.path().join("image"), folder.path().join("root"));
    let file = File::options().read(true).write(true).create_new(true).open(&image).unwrap();
    convert(layers, conversion, &file).unwrap();
    let checked = Command::new("fsck.erofs").arg(format!("--extract={}", root.display())).arg(&image).output().ok()?;
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stdout));
    let mut found = Vec::new();
    collect(&root, &root, &mut found);
    found.sort();
    Some(found)
}

fn collect(root: &Path, folder: &Path, found: &mut Vec<(String, String)>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let kind = fs::symlink_metadata(&path).unwrap().file_type();
        let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
        if kind.is_dir() {
            found.push((name, "/".into()));
            collect(root, &path, found);
        } else if kind.is_file() {
            found.push((name, fs::read_to_string(&path).unwrap().chars().take(9).collect()));
        } else if kind.is_symlink() {
            found.push((name, format!("-> {}", fs::read_link(&path).unwrap().display())));
        } else {
            found.push((name, "special".into()));
        }
    }
}

fn pairs(list: &[(&str, &str)]) -> Vec<(String, String)> {
    list.iter().map(|(name, contents)| ((*name).into(), (*contents).into())).collect()
}

#[test]
fn a_layer_becomes_a_file_system() {
    let large = "large\n".repeat(3000);
    let made = Maker::default()
        .file("./a/b", b"1")
        .file("/absolute", b"2")
        .entry("a/", b'5', "", b"")
        .entry("hard", b'1', "a/b", b"")
        .entry("soft", b'2', "../../etc", b"")
        .file("large", large.as_bytes())
        .file("large2", &large.as_bytes()[..4096 + 3000])
        .file("twice", b"old")
        .file("twice", b"new")
        .file("a/.wh.gone", b"");
    let Some(found) = unpacked(vec![made.layer()], Conversion::Single) else {
        eprintln!("SKIPPED: fsck.erofs cannot be run; it is in the package erofs-utils");
        return;
    };
    let expected = [
        ("a", "/"),
        ("a/b", "1"),
        ("a/gone", "special"),
        ("absolute", "2"),
        ("hard", "1"),
        ("large", "large\nlar"),
        ("large2", "large\nlar"),
        ("soft", "-> ../../etc"),
        ("twice", "new"),
    ];
    assert_eq!(found, pairs(&expected));
}

#[test]
fn flattened_layers_hide_each_other() {
    let below =
        Maker::default().file("d/old", b"1").file("e/old", b"1").file("f", b"1").file("g/h", b"1").file("i", b"1");
    let above = Maker::default()
        .file("d/new", b"2")
        .file("d/.wh..wh..opq", b"")
        .file(".wh.e", b"")
        .file("f/now a directory", b"2")
        .file("g", b"now a file")
        .file(".wh.nothing", b"");
    let Some(found) = unpacked(vec![below.layer(), above.layer()], Conversion::Flattened) else { return };
    let expected = [("d", "/"), ("d/new", "2"), ("f", "/"), ("f/now a directory", "2"), ("g", "now a fil"), ("i", "1")];
    assert_eq!(found, pairs(&expected));
}

#[test]
fn the_same_layer_gives_the_same_bytes() {
    let made = || {
        let image = tempfile::NamedTempFile::new().unwrap();
        let layer = Maker::default().file("b", &[7; 9000]).file("a", b"x").entry("l", b'2', "a", b"").layer();
        convert(vec![layer], Conversion::Single, image.as_file()).unwrap();
        fs::read(image.path()).unwrap()
    };
    assert!(made() == made());
}

#[test]
fn entries_that_would_lead_elsewhere_are_refused() {
    for (maker, word) in [
        (Maker::default().file("../x", b""), ".. in it"),
        (Maker::default().file("a/../../x", b""), ".. in it"),
        (Maker::default().entry("l", b'2', "/etc", b"").file("l/passwd", b""), "no directory"),
        (Maker::default().entry("h", b'1', "../../etc/passwd", b""), "leads out"),
        (Maker::default().entry("h", b'1', "etc/passwd", b""), "does not hold"),
        (Maker::default().entry("d", b'5', "", b"").entry("h", b'1', "d", b""), "a directory"),
        (Maker::default().file(".wh.", b""), "removes nothing"),
        (Maker::default().file("a/.wh...", b""), "removes nothing"),
    ] {
        let problem = fails(maker.layer());
        assert!(problem.contains(word), "{problem}");
    }
}

#[test]
fn damaged_archives_are_refused() {
    let good = Maker::default().file("a", &[1; 5000]).0;
    for length in [100, 512, 600, 5000] {
        fails(layer(&good[..length], Digest::of(&good[..length])));
    }
    let mut wrong = good.clone();
    wrong[0] ^= 1;
    assert!(fails(layer(&wrong, Digest::of(&wrong))).contains("checksum"));
    assert!(fails(layer(&good, Digest::of(b""))).contains("configuration says"));
    assert!(fails(layer(b"no archive at all", Digest::of(b""))).contains("malformed"));
}

/// The start of an archive whose one file is said to be of 8 GiB.
fn start_of_a_bomb() -> Vec<u8> {
    let mut bytes = Maker::default().file("bomb", b"").0;
    bytes[124..135].copy_from_slice(b"77777777777");
    bytes[148..156].fill(b' ');
    let sum: u32 = bytes[..512].iter().map(|&byte| u32::from(byte)).sum();
    bytes[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    bytes
}

#[test]
fn bombs_are_refused() {
    let zeros = vec![0; 1 << 20];
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    let mut zstd = zstd::Encoder::new(Vec::new(), 3).unwrap();
    for part in std::iter::once(&start_of_a_bomb()).chain(std::iter::repeat_n(&zeros, 64)) {
        gzip.write_all(part).unwrap();
        zstd.write_all(part).unwrap();
    }
    for bomb in [gzip.finish().unwrap(), zstd.finish().unwrap()] {
        let problem = fails(layer(&bomb, Digest::of(b"")));
        assert!(problem.contains("bomb"), "{} bytes: {problem}", bomb.len());
    }
    // A window that would take 2 GiB of memory.
    let window = [0x28, 0xb5, 0x2f, 0xfd, 0x00, 21 << 3, 0x01, 0x00, 0x00];
    let error = convert(vec![layer(&window, Digest::of(b""))], Conversion::Single, &tempfile::tempfile().unwrap());
    let cause = std::error::Error::source(&error.unwrap_err()).map(ToString::to_string);
    assert!(cause.as_ref().is_some_and(|cause| cause.contains("too much memory")), "{cause:?}");
}
