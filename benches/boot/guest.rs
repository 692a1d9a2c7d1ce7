//! The smallest guests there are: an initramfs whose PID 1 is a program of some tens of bytes.

use crate::newc;

/// What PID 1 writes to the console as its first act.
pub(crate) const MARK: &[u8] = b"init-ready\n";

/// What PID 1 does after it.
#[derive(Clone, Copy)]
pub(crate) enum Act {
    /// `reboot(2)`, which ends every VMM that is compared here.
    Reboot,
    /// Sleeps for ever.
    Sleep,
}

const LOAD_ADDRESS: u64 = 0x40_0000;
const HEADERS: usize = 64 + 56;

/// An initramfs ("newc") with a console and that PID 1.
pub(crate) fn initramfs(act: Act) -> Vec<u8> {
    let code = match act {
        Act::Reboot => reboot(),
        Act::Sleep => sleep(),
    };
    newc::initramfs(&elf(&write_mark(), &code))
}

/// A program that ends at once with status 0, for containers.
pub(crate) fn exit_program() -> Vec<u8> {
    // mov eax, 231 (exit_group); xor edi, edi; syscall
    elf(&[], &[0xb8, 231, 0, 0, 0, 0x31, 0xff, 0x0f, 0x05])
}

/// `write(1, MARK, sizeof MARK)`, where the mark follows the code that is `rest` bytes long.
fn write_mark() -> Vec<u8> {
    // mov eax, 1; mov edi, 1; lea rsi, [rip + 7]; mov edx, LEN; syscall; jmp over the mark
    let len = u8::try_from(MARK.len()).unwrap();
    let mut code = vec![0xb8, 1, 0, 0, 0, 0xbf, 1, 0, 0, 0, 0x48, 0x8d, 0x35, 9, 0, 0, 0];
    code.extend([0xba, len, 0, 0, 0, 0x0f, 0x05, 0xeb, len]);
    code.extend(MARK);
    code
}

fn reboot() -> Vec<u8> {
    // mov eax, 169; mov edi, LINUX_REBOOT_MAGIC1; mov esi, LINUX_REBOOT_MAGIC2; mov edx, LINUX_REBOOT_CMD_RESTART; syscall
    let mut code = vec![0xb8, 169, 0, 0, 0];
    for (opcode, value) in [(0xbf_u8, 0xfee1_dead_u32), (0xbe, 672_274_793), (0xba, 0x0123_4567)] {
        code.push(opcode);
        code.extend(value.to_le_bytes());
    }
    code.extend([0x0f, 0x05]);
    code
}

fn sleep() -> Vec<u8> {
    // again: mov eax, 34 (pause); syscall; jmp again
    vec![0xb8, 34, 0, 0, 0, 0x0f, 0x05, 0xeb, 0xf7]
}

/// A static program of one segment.
fn elf(first: &[u8], second: &[u8]) -> Vec<u8> {
    let size = (HEADERS + first.len() + second.len()) as u64;
    let mut file = b"\x7fELF\x02\x01\x01".to_vec();
    file.resize(16, 0);
    file.extend([2, 0, 62, 0, 1, 0, 0, 0]);
    for word in [LOAD_ADDRESS + HEADERS as u64, 64, 0] {
        file.extend(word.to_le_bytes());
    }
    file.extend([0, 0, 0, 0, 64, 0, 56, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
    file.extend([1, 0, 0, 0, 5, 0, 0, 0]);
    for word in [0, LOAD_ADDRESS, LOAD_ADDRESS, size, size, 4096] {
        file.extend(word.to_le_bytes());
    }
    file.extend(first);
    file.extend(second);
    file
}
