//! What a new guest finds: nothing of the old one.

use std::fs;
use std::io::Write;
use std::time::SystemTime;

use amphi::{ExitStatus, Sandbox};

use super::guest::{COUNT, Guest, UNUSUAL_MIB, line, with_disk};
use crate::harness::installed::{self, Kernel};

pub(super) fn a_reset_guest_begins_anew(kernel: fn() -> Kernel) {
    for vcpus in [1, 2] {
        let folder = tempfile::tempdir().unwrap();
        let guest = Guest { vcpus, devices: with_disk(&folder), ..Guest::new(kernel()) };
        // A clock that was wrong after a reset would be off by the time since the first start, or stand still.
        let script = format!(
            "{COUNT} ls /tmp; touch /tmp/old; nproc; [ $n = 4 ] || sleep 1000; date +%s; sleep 1; date +%s; \
             dmesg | grep -e BUG: -e 'Call Trace' -e unstable; exit 42"
        );
        let (sandbox, mut output) = guest.start(&script);
        let now = || SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
        let mut begun = now();
        for n in 1..=4 {
            assert_eq!(line(&mut output), format!("guest {n}"));
            assert_eq!(line(&mut output), vcpus.to_string(), "and nothing is in its /tmp");
            if n < 4 {
                begun = now();
                sandbox.reset().unwrap();
            }
        }
        let mut time = || line(&mut output).parse::<u64>().unwrap();
        let (first, second, now) = (time(), time(), now());
        assert!(begun <= first + 1 && first < second && second <= now + 1, "{begun} {first} {second} {now}");
        assert_eq!(line(&mut output), "", "messages of its kernel");
        assert_eq!(sandbox.wait().unwrap(), ExitStatus::Code(42));
        assert!(sandbox.reset().is_err(), "it has ended");
    }
}

/// Where the guest's memory is in this process, and how much of it the host has given, in bytes.
fn memory() -> (std::ops::Range<u64>, u64) {
    let maps = fs::read_to_string("/proc/self/smaps").unwrap();
    let number = |line: &str| line.split_whitespace().nth(1).and_then(|number| number.parse::<u64>().ok());
    let lines: Vec<_> = maps.lines().collect();
    let size = |line: &&str| line.starts_with("Size:") && number(line) == Some(u64::from(UNUSUAL_MIB) << 10);
    let at = lines.iter().position(size).expect("the guest's memory is mapped");
    let (start, rest) = lines[at - 1].split_once('-').unwrap();
    let end = rest.split_whitespace().next().unwrap();
    let address = |text| u64::from_str_radix(text, 16).unwrap();
    let resident = lines[at..].iter().find(|line| line.starts_with("Rss:")).copied().and_then(number).unwrap();
    (address(start)..address(end), resident << 10)
}

/// How often the marker is in the guest's memory.
fn markers(place: &std::ops::Range<u64>) -> usize {
    use std::os::unix::fs::FileExt;
    let memory = fs::File::open("/proc/self/mem").unwrap();
    let mut buffer = vec![0; 1 << 20];
    let mut found = 0;
    for at in place.clone().step_by(buffer.len()) {
        let count = memory.read_at(&mut buffer, at).unwrap();
        found += buffer[..count].windows(16).filter(|window| *window == b"xyzzy-of-the-old").count();
    }
    found
}

pub(super) fn a_reset_leaves_no_memory() {
    let folder = tempfile::tempdir().unwrap();
    let (reader, mut input) = std::io::pipe().unwrap();
    let mut guest = Guest { devices: with_disk(&folder), ..Guest::new(installed::own()) };
    guest.input = Some(reader.into());
    // The marker comes over standard input, so that a new guest has none of its own.
    let script = format!(
        "{COUNT} [ $n = 1 ] || {{ read x; exit 5; }}; read marker; \
         i=0; while [ $i -lt 1000 ]; do echo $marker; i=$((i+1)); done >/dev/shm/m; \
         dd if=/dev/zero of=/dev/shm/x bs=1M count=90 2>/dev/null; echo filled; sleep 1000"
    );
    let (sandbox, mut output) = guest.start(&script);
    assert_eq!(line(&mut output), "guest 1");
    input.write_all(b"xyzzy-of-the-old\n").unwrap();
    assert_eq!(line(&mut output), "filled");
    sandbox.pause().unwrap();
    let (place, before) = memory();
    assert!(markers(&place) >= 1000 && before > 90 << 20, "{} bytes", before);
    sandbox.reset().unwrap();
    let (_, fresh) = memory();
    assert!(fresh < 40 << 20, "{fresh} bytes for a guest that has not begun");
    assert_eq!(markers(&place), 0, "before the new guest begins");
    sandbox.resume().unwrap();
    assert_eq!(line(&mut output), "guest 2");
    let (_, after) = memory();
    assert!(after + (40 << 20) < before, "{before} bytes, and then {after}");
    sandbox.pause().unwrap();
    assert_eq!(markers(&place), 0, "while it runs");
    sandbox.resume().unwrap();
    input.write_all(b"\n").unwrap();
    assert_eq!(sandbox.wait().unwrap(), ExitStatus::Code(5));
}
