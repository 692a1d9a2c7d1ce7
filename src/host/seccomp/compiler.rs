//! From an allow-list to classic BPF, in constant evaluation.
//!
//! The numbers become ranges of equal verdict, and the ranges a binary search. When a filter is installed, the kernel
//! interprets it once for every system call number to learn which are always allowed (`seccomp_cache_prepare`), so a
//! list that is searched one by one, as filter crates emit it, makes each start slower.

/// `AUDIT_ARCH_X86_64` of linux/audit.h.
pub(crate) const AUDIT_ARCH_X86_64: u32 = 0xc000_003e;

/// What a filter lets through, and what becomes of the rest.
pub(crate) struct Policy {
    /// System calls that are always allowed, in lists that several policies may share.
    pub(crate) allowed: &'static [&'static [libc::c_long]],
    /// System calls that depend on an argument, or that are to fail in a way of their own; in lists as well.
    pub(crate) special: &'static [&'static [(libc::c_long, Rule)]],
    /// The answer to all others: a `SECCOMP_RET_...` of linux/seccomp.h, with its data.
    pub(crate) refusal: u32,
    /// The last system call that the policy has an opinion on.
    pub(crate) last_known: libc::c_long,
    /// The answer to calls beyond it.
    pub(crate) unknown: u32,
}

impl Policy {
    /// The rule with the number `index`, counted through all lists.
    const fn rule(&self, mut index: usize) -> Rule {
        let mut list = 0;
        while index >= self.special[list].len() {
            index -= self.special[list].len();
            list += 1;
        }
        self.special[list][index].1
    }
}

/// What is to happen to a system call that is not simply allowed.
#[derive(Clone, Copy)]
pub(crate) enum Rule {
    /// Allowed if the low half of argument `argument`, counted from 0, passes the test.
    AllowIf {
        /// Which argument.
        argument: u32,
        /// What it must be.
        test: Test,
    },
    /// Fails with this error number.
    Fail(libc::c_int),
}

/// What the low half of an argument must be. The kernel itself looks at no more of an `int`.
#[derive(Clone, Copy)]
pub(crate) enum Test {
    /// Has none of these bits.
    NoneOfBits(u32),
    /// Has all of these bits.
    AllOfBits(u32),
    /// Is none of these.
    NoneOf(&'static [u32]),
    /// Is one of these; the most frequent should come first.
    OneOf(&'static [u32]),
}

/// Verdicts by number: the two simple ones, then the index of a special rule.
const REFUSE: u8 = 0;
const ALLOW: u8 = 1;
const FIRST_SPECIAL: u8 = 2;

const RET_ALLOW: u32 = libc::SECCOMP_RET_ALLOW;
/// The answer with which a call fails with an error number.
pub(crate) const fn fail_with(errno: libc::c_int) -> u32 {
    libc::SECCOMP_RET_ERRNO | errno.cast_unsigned()
}

/// Offsets in `struct seccomp_data`; the arguments are 64 bits each, little-endian.
const NUMBER: u32 = 0;
const ARCH: u32 = 4;
const ARGUMENTS: u32 = 16;

/// More numbers than any kernel has system calls.
const NUMBERS: usize = 512;
const CAPACITY: usize = 512;

/// A filter being written.
pub(crate) struct Program {
    code: [libc::sock_filter; CAPACITY],
    len: usize,
}

impl Program {
    /// How many instructions it has.
    pub(crate) const fn len(&self) -> usize {
        self.len
    }

    /// The instructions; `N` is [`Program::len`].
    pub(crate) const fn instructions<const N: usize>(&self) -> [libc::sock_filter; N] {
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
    const fn leaf(&mut self, verdict: u8, policy: &Policy) {
        match verdict {
            REFUSE => self.answer(policy.refusal),
            ALLOW => self.answer(RET_ALLOW),
            index => match policy.rule((index - FIRST_SPECIAL) as usize) {
                Rule::Fail(errno) => self.answer(fail_with(errno)),
                Rule::AllowIf { argument, test } => {
                    assert!(argument < 6, "a system call has six arguments");
                    self.load(ARGUMENTS + 8 * argument);
                    self.test(test, policy.refusal);
                }
            },
        }
    }

    /// The verdict on the argument that has been loaded.
    const fn test(&mut self, test: Test, refusal: u32) {
        match test {
            Test::NoneOfBits(bits) => {
                self.jump(libc::BPF_JSET, bits, 1, 0);
                self.answer(RET_ALLOW);
                self.answer(refusal);
            }
            Test::AllOfBits(bits) => {
                self.push(libc::BPF_ALU | libc::BPF_AND | libc::BPF_K, bits, 0, 0);
                self.jump(libc::BPF_JEQ, bits, 1, 0);
                self.answer(refusal);
                self.answer(RET_ALLOW);
            }
            Test::NoneOf(values) => self.choose(values, refusal, RET_ALLOW),
            Test::OneOf(values) => self.choose(values, RET_ALLOW, refusal),
        }
    }

    const fn choose(&mut self, values: &[u32], listed: u32, other: u32) {
        let mut i = 0;
        while i < values.len() {
            self.jump(libc::BPF_JEQ, values[i], values.len() - i, 0);
            i += 1;
        }
        self.answer(other);
        self.answer(listed);
    }

    /// A binary search among `ranges[first..end]`.
    const fn search(&mut self, ranges: &Ranges, first: usize, end: usize, policy: &Policy) {
        if end - first == 1 {
            self.leaf(ranges.verdict[first], policy);
            return;
        }
        let middle = usize::midpoint(first, end);
        let branch = self.len;
        self.jump(libc::BPF_JGE, ranges.start[middle], 0, 0);
        self.search(ranges, first, middle, policy);
        let left = self.len - branch - 1;
        assert!(left < 256, "the jump does not fit in 8 bits");
        #[allow(clippy::cast_possible_truncation)] // Checked above.
        let jt = left as u8;
        self.code[branch].jt = jt;
        self.search(ranges, middle, end, policy);
    }
}

const RETURN_NOTHING: libc::sock_filter = libc::sock_filter { code: 0, jt: 0, jf: 0, k: 0 };

/// Runs of numbers with the same verdict, in order.
struct Ranges {
    start: [u32; NUMBERS],
    verdict: [u8; NUMBERS],
    len: usize,
}

const fn ranges(verdicts: &[u8; NUMBERS], known: usize) -> Ranges {
    let mut ranges = Ranges { start: [0; NUMBERS], verdict: [0; NUMBERS], len: 0 };
    let mut number = 0;
    while number < known {
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

/// The filter for a policy.
pub(crate) const fn compile(policy: &Policy) -> Program {
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // A small number; the slicing below checks it.
    let first_unknown = policy.last_known as u32 + 1;
    let mut verdicts = [REFUSE; NUMBERS];
    let mut list = 0;
    while list < policy.allowed.len() {
        let mut i = 0;
        while i < policy.allowed[list].len() {
            set(&mut verdicts, policy.allowed[list][i], ALLOW);
            i += 1;
        }
        list += 1;
    }
    let (mut list, mut verdict) = (0, FIRST_SPECIAL);
    while list < policy.special.len() {
        let mut i = 0;
        while i < policy.special[list].len() {
            set(&mut verdicts, policy.special[list][i].0, verdict);
            verdict += 1;
            i += 1;
        }
        list += 1;
    }
    let ranges = ranges(&verdicts, first_unknown as usize);

    let mut program = Program { code: [RETURN_NOTHING; CAPACITY], len: 0 };
    program.load(ARCH);
    program.jump(libc::BPF_JEQ, AUDIT_ARCH_X86_64, 1, 0);
    // A 32-bit program would have other numbers: none of them can be judged by this table.
    program.answer(libc::SECCOMP_RET_KILL_PROCESS);
    program.load(NUMBER);
    program.jump(libc::BPF_JGE, first_unknown, 0, 1);
    program.answer(policy.unknown);
    program.search(&ranges, 0, ranges.len, policy);
    program
}

const fn set(verdicts: &mut [u8; NUMBERS], number: libc::c_long, verdict: u8) {
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // Indexing checks it.
    let number = number as usize;
    assert!(verdicts[number] == REFUSE, "a system call is listed twice");
    verdicts[number] = verdict;
}
