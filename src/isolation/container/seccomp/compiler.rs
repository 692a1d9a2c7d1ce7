//! From an allow-list to classic BPF, in constant evaluation.
//!
//! The numbers become ranges of equal verdict, and the ranges a binary search. When a filter is installed, the kernel
//! interprets it once for every system call number to learn which are always allowed (`seccomp_cache_prepare`), so a
//! list that is searched one by one, as filter crates emit it, makes each start of a container slower.

/// `AUDIT_ARCH_X86_64` of linux/audit.h.
pub(super) const AUDIT_ARCH_X86_64: u32 = 0xc000_003e;

/// The last system call that this policy has an opinion on (`mseal`). Newer ones fail with `ENOSYS`, so that
/// programs fall back to what they used before; refusing with `EPERM` would look like a final answer.
pub(super) const LAST_KNOWN: libc::c_long = libc::SYS_mseal;

/// What is to happen to a system call that is not simply allowed.
#[derive(Clone, Copy)]
pub(super) enum Rule {
    /// Allowed unless the first argument has one of these bits.
    AllowUnlessBits(u32),
    /// Allowed unless the first argument is one of these.
    AllowUnlessOneOf(&'static [u32]),
    /// Allowed only if the first argument is one of these.
    AllowIfOneOf(&'static [u32]),
    /// `ENOSYS`.
    NoSuchCall,
}

/// Verdicts by number: the two simple ones, then the index of a special rule.
const REFUSE: u8 = 0;
const ALLOW: u8 = 1;
const FIRST_SPECIAL: u8 = 2;

const RET_ALLOW: u32 = libc::SECCOMP_RET_ALLOW;
const RET_EPERM: u32 = libc::SECCOMP_RET_ERRNO | libc::EPERM.cast_unsigned();
const RET_ENOSYS: u32 = libc::SECCOMP_RET_ERRNO | libc::ENOSYS.cast_unsigned();

/// Offsets in `struct seccomp_data`; the arguments are 64 bits, little-endian, and all those checked are `int`s.
const NUMBER: u32 = 0;
const ARCH: u32 = 4;
const ARGUMENT: u32 = 16;

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // A small constant.
const FIRST_UNKNOWN: u32 = LAST_KNOWN as u32 + 1;
const NUMBERS: usize = FIRST_UNKNOWN as usize;
const CAPACITY: usize = 512;

/// A filter being written.
pub(super) struct Program {
    code: [libc::sock_filter; CAPACITY],
    len: usize,
}

impl Program {
    /// How many instructions it has.
    pub(super) const fn len(&self) -> usize {
        self.len
    }

    /// The instructions; `N` is [`Program::len`].
    pub(super) const fn instructions<const N: usize>(&self) -> [libc::sock_filter; N] {
        let mut out = [RETURN_NOTHING; N];
        let mut i = 0;
        while i < N {
            out[i] = self.code[i];
            i += 1;
        }
        out
    }

    const fn push(&mut self, code: u32, k: u32, jt: usize, jf: usize) {
        assert!(jt < 256 && jf < 256, "the jump does not fit in 8 bits");
        #[allow(clippy::cast_possible_truncation)] // Opcodes have 8 bits, and the jumps are checked above.
        let instruction = libc::sock_filter { code: code as u16, jt: jt as u8, jf: jf as u8, k };
        self.code[self.len] = instruction;
        self.len += 1;
    }

    const fn load(&mut self, offset: u32) {
        self.push(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, offset, 0, 0);
    }

    const fn answer(&mut self, verdict: u32) {
        self.push(libc::BPF_RET | libc::BPF_K, verdict, 0, 0);
    }

    const fn jump(&mut self, condition: u32, k: u32, jt: usize, jf: usize) {
        self.push(libc::BPF_JMP | condition | libc::BPF_K, k, jt, jf);
    }

    /// The verdict of one range, at the end of a search.
    const fn leaf(&mut self, verdict: u8, special: &[(libc::c_long, Rule)]) {
        match verdict {
            REFUSE => self.answer(RET_EPERM),
            ALLOW => self.answer(RET_ALLOW),
            index => match special[(index - FIRST_SPECIAL) as usize].1 {
                Rule::NoSuchCall => self.answer(RET_ENOSYS),
                Rule::AllowUnlessBits(mask) => {
                    self.load(ARGUMENT);
                    self.jump(libc::BPF_JSET, mask, 1, 0);
                    self.answer(RET_ALLOW);
                    self.answer(RET_EPERM);
                }
                Rule::AllowUnlessOneOf(values) => self.choose(values, RET_EPERM, RET_ALLOW),
                Rule::AllowIfOneOf(values) => self.choose(values, RET_ALLOW, RET_EPERM),
            },
        }
    }

    const fn choose(&mut self, values: &[u32], listed: u32, other: u32) {
        self.load(ARGUMENT);
        let mut i = 0;
        while i < values.len() {
            self.jump(libc::BPF_JEQ, values[i], values.len() - i, 0);
            i += 1;
        }
        self.answer(other);
        self.answer(listed);
    }

    /// A binary search among `ranges[first..end]`.
    const fn search(&mut self, ranges: &Ranges, first: usize, end: usize, special: &[(libc::c_long, Rule)]) {
        if end - first == 1 {
            self.leaf(ranges.verdict[first], special);
            return;
        }
        let middle = usize::midpoint(first, end);
        let branch = self.len;
        self.jump(libc::BPF_JGE, ranges.start[middle], 0, 0);
        self.search(ranges, first, middle, special);
        let left = self.len - branch - 1;
        assert!(left < 256, "the jump does not fit in 8 bits");
        #[allow(clippy::cast_possible_truncation)] // Checked above.
        let jt = left as u8;
        self.code[branch].jt = jt;
        self.search(ranges, middle, end, special);
    }
}

const RETURN_NOTHING: libc::sock_filter = libc::sock_filter { code: 0, jt: 0, jf: 0, k: 0 };

/// Runs of numbers with the same verdict, in order.
struct Ranges {
    start: [u32; NUMBERS],
    verdict: [u8; NUMBERS],
    len: usize,
}

const fn ranges(verdicts: &[u8; NUMBERS]) -> Ranges {
    let mut ranges = Ranges { start: [0; NUMBERS], verdict: [0; NUMBERS], len: 0 };
    let mut number = 0;
    while number < NUMBERS {
        if number == 0 || verdicts[number] != verdicts[number - 1] {
            #[allow(clippy::cast_possible_truncation)] // Below a thousand.
            let start = number as u32;
            ranges.start[ranges.len] = start;
            ranges.verdict[ranges.len] = verdicts[number];
            ranges.len += 1;
        }
        number += 1;
    }
    ranges
}

/// The filter for these rules. All that is in neither list fails with `EPERM`, or with `ENOSYS` above [`LAST_KNOWN`].
pub(super) const fn compile(allowed: &[libc::c_long], special: &[(libc::c_long, Rule)]) -> Program {
    let mut verdicts = [REFUSE; NUMBERS];
    let mut i = 0;
    while i < allowed.len() {
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // Indexing checks it.
        let number = allowed[i] as usize;
        assert!(verdicts[number] == REFUSE, "a system call is listed twice");
        verdicts[number] = ALLOW;
        i += 1;
    }
    let mut i = 0;
    while i < special.len() {
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // Indexing checks it.
        let number = special[i].0 as usize;
        assert!(verdicts[number] == REFUSE, "a system call is listed twice");
        #[allow(clippy::cast_possible_truncation)] // A handful of rules.
        let index = i as u8;
        verdicts[number] = FIRST_SPECIAL + index;
        i += 1;
    }
    let ranges = ranges(&verdicts);

    let mut program = Program { code: [RETURN_NOTHING; CAPACITY], len: 0 };
    program.load(ARCH);
    program.jump(libc::BPF_JEQ, AUDIT_ARCH_X86_64, 1, 0);
    // A 32-bit program would have other numbers: none of them can be judged by this table.
    program.answer(libc::SECCOMP_RET_KILL_PROCESS);
    program.load(NUMBER);
    program.jump(libc::BPF_JGE, FIRST_UNKNOWN, 0, 1);
    program.answer(RET_ENOSYS);
    program.search(&ranges, 0, ranges.len, special);
    program
}
