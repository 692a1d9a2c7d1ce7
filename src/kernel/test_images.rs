//! Small made-up kernels and modules for tests.

use std::io::{Read, Write};

use super::Compression;

/// An ELF64 file header; `machine` and `kind` as in the specification.
fn elf_header(kind: u16, machine: u16, segments: u16) -> Vec<u8> {
    let mut header = b"\x7fELF\x02\x01\x01".to_vec();
    header.resize(16, 0);
    header.extend(kind.to_le_bytes());
    header.extend(machine.to_le_bytes());
    header.extend(1_u32.to_le_bytes());
    header.extend(0x100_0123_u64.to_le_bytes());
    header.extend(64_u64.to_le_bytes());
    header.extend(0_u64.to_le_bytes());
    header.extend(0_u32.to_le_bytes());
    for half in [64, 56, segments, 64, 0, 0] {
        header.extend(half.to_le_bytes());
    }
    header
}

fn segment(kind: u32, offset: u64, len: u64) -> Vec<u8> {
    let mut bytes = kind.to_le_bytes().to_vec();
    bytes.extend(5_u32.to_le_bytes());
    for word in [offset, 0xffff_ffff_8100_0000, 0x100_0000, len, len, 4] {
        bytes.extend(word.to_le_bytes());
    }
    bytes
}

/// A kernel with one loadable segment that holds `body`, and a PVH note with entry point 0x1000200.
pub(super) fn kernel(body: &[u8]) -> Vec<u8> {
    let mut note = Vec::new();
    for word in [4_u32, 8, 18] {
        note.extend(word.to_le_bytes());
    }
    note.extend(b"Xen\0");
    note.extend(0x100_0200_u64.to_le_bytes());
    let start = 64 + 2 * 56;
    let mut image = elf_header(2, 62, 2);
    image.extend(segment(1, start, (note.len() + body.len()) as u64));
    image.extend(segment(4, start, note.len() as u64));
    image.extend(note);
    image.extend(body);
    image
}

/// A kernel's ELF header for another machine.
pub(super) fn kernel_for(machine: u16) -> Vec<u8> {
    elf_header(2, machine, 0)
}

/// `data` in the form in which the kernel's build puts it into a bzImage; xz goes through the x86 filter.
pub(super) fn compress(compression: Compression, data: &[u8]) -> Vec<u8> {
    use liblzma::stream::{Check, Filters, LzmaOptions, Stream};
    let options = LzmaOptions::new_preset(1).unwrap();
    let through = |stream: Stream| {
        let mut out = Vec::new();
        liblzma::read::XzEncoder::new_stream(data, stream).read_to_end(&mut out).unwrap();
        out
    };
    let mut packed = match compression {
        Compression::None => return data.to_vec(),
        Compression::Gzip => {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            encoder.write_all(data).unwrap();
            return encoder.finish().unwrap();
        }
        Compression::Bzip2 => {
            let mut out = Vec::new();
            bzip2::read::BzEncoder::new(data, bzip2::Compression::fast()).read_to_end(&mut out).unwrap();
            out
        }
        Compression::Lzma => through(Stream::new_lzma_encoder(&options).unwrap()),
        Compression::Xz => {
            let mut filters = Filters::new();
            filters.x86().lzma2(&options);
            through(Stream::new_stream_encoder(&filters, Check::Crc32).unwrap())
        }
        Compression::Zstd => zstd::encode_all(data, 1).unwrap(),
        Compression::Lz4 => lz4_legacy(data),
        Compression::Lzo => b"\x89LZO\0\r\n".to_vec(),
    };
    packed.extend(u32::try_from(data.len()).unwrap().to_le_bytes());
    packed
}

/// Blocks of literals only, which every LZ4 decoder understands.
fn lz4_legacy(data: &[u8]) -> Vec<u8> {
    let mut out = vec![0x02, 0x21, 0x4c, 0x18];
    for block in data.chunks(8 << 20) {
        let mut packed = Vec::new();
        if block.len() < 15 {
            packed.push(u8::try_from(block.len() << 4).unwrap());
        } else {
            packed.push(0xf0);
            let mut rest = block.len() - 15;
            while rest >= 255 {
                packed.push(255);
                rest -= 255;
            }
            packed.push(u8::try_from(rest).unwrap());
        }
        packed.extend(block);
        out.extend(u32::try_from(packed.len()).unwrap().to_le_bytes());
        out.extend(packed);
    }
    out
}

/// A bzImage of boot protocol 2.15 with that payload and release `1.2.3-test`.
pub(super) fn bz_image(payload: &[u8]) -> Vec<u8> {
    const SETUP_LEN: usize = 2 * 512;
    let mut image = vec![0; SETUP_LEN + 0x10];
    let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    put(0x1f1, &[1]);
    put(0x1fe, &[0x55, 0xaa]);
    put(0x202, b"HdrS");
    put(0x206, &0x020f_u16.to_le_bytes());
    put(0x20e, &0x100_u16.to_le_bytes());
    put(0x236, &1_u16.to_le_bytes());
    put(0x248, &0x10_u32.to_le_bytes());
    put(0x24c, &u32::try_from(payload.len()).unwrap().to_le_bytes());
    put(0x300, b"1.2.3-test (nobody) #1\0");
    image.extend(payload);
    image
}

/// A module's ELF file with `fields` in its `.modinfo` section.
pub(super) fn module(fields: &[&str]) -> Vec<u8> {
    let names = b"\0.modinfo\0.shstrtab\0";
    let info: Vec<u8> = fields.iter().flat_map(|field| [field.as_bytes(), b"\0"].concat()).collect();
    let mut file = elf_header(1, 62, 0);
    let (info_at, names_at) = (64, 64 + info.len());
    let table_at = (names_at + names.len()) as u64;
    file.extend(&info);
    file.extend(names);
    file[0x28..0x30].copy_from_slice(&table_at.to_le_bytes());
    file[0x3c..0x3e].copy_from_slice(&3_u16.to_le_bytes());
    file[0x3e..0x40].copy_from_slice(&2_u16.to_le_bytes());
    file.extend([0; 64]);
    for (name, kind, at, len) in [(1_u32, 1_u32, info_at, info.len()), (10, 3, names_at, names.len())] {
        file.extend(name.to_le_bytes());
        file.extend(kind.to_le_bytes());
        for word in [0, 0, at as u64, len as u64, 0, 1, 0] {
            file.extend(word.to_le_bytes());
        }
    }
    file
}

/// Bytes that look random but are the same in every run.
pub(super) fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 24).to_le_bytes()[0]
    })
    .take(len)
    .collect()
}
