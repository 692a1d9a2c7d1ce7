//! Classic BPF by its rules, as far as the compiler uses it: tests ask a filter what it answers without installing it.

/// What `filter` answers, and after how many instructions.
pub(crate) fn evaluate(filter: &[libc::sock_filter], arch: u32, number: u32, arguments: [u32; 6]) -> (u32, usize) {
    let (mut at, mut accumulator, mut steps) = (0, 0, 0);
    loop {
        let i = filter[at];
        steps += 1;
        at += 1;
        let jump = |taken: bool| usize::from(if taken { i.jt } else { i.jf });
        match i.code {
            0x20 => {
                accumulator = match i.k {
                    0 => number,
                    4 => arch,
                    16..=56 if i.k.is_multiple_of(8) => arguments[(i.k as usize - 16) / 8],
                    other => panic!("load from {other}"),
                }
            }
            0x15 => at += jump(accumulator == i.k),
            0x35 => at += jump(accumulator >= i.k),
            0x45 => at += jump(accumulator & i.k != 0),
            0x54 => accumulator &= i.k,
            0x06 => return (i.k, steps),
            other => panic!("instruction {other:#x}"),
        }
    }
}
