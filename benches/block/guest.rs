//! What runs in the guest: this very program as PID 1. It times requests to the first disk, and reports on the console.
//! `LOAD=NAME` on the kernel's command line makes it do one load only, for those who trace the host meanwhile.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::time::{Duration, Instant};

/// What buffers, and all sizes, are aligned to.
const BLOCK: usize = 4096;
/// What a line of the report begins with.
pub(crate) const MARK: &str = "block-bench";

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Load {
    write: bool,
    /// The size of a request in bytes, whole blocks.
    size: usize,
    /// How many requests are under way at a time.
    depth: usize,
    /// One after the other, from the disk's start; otherwise at random places.
    sequential: bool,
    /// How many requests are timed. A tenth of that comes before.
    count: usize,
}

const fn random(write: bool, depth: usize) -> Load {
    Load { write, size: BLOCK, depth, sequential: false, count: 500 }
}

const fn sequential(write: bool) -> Load {
    Load { write, size: 1 << 20, depth: 1, sequential: true, count: 20 }
}

const LOADS: [Load; 6] =
    [random(false, 1), random(true, 1), random(false, 32), random(true, 32), sequential(false), sequential(true)];

impl fmt::Display for Load {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (kib, kind) = (self.size >> 10, if self.write { "write" } else { "read" });
        write!(f, "{kib}K-{kind}-{}", self.depth)
    }
}

/// What the loads are called in a report.
pub(crate) fn names() -> Vec<String> {
    LOADS.iter().map(ToString::to_string).collect()
}

/// PID 1's whole life.
pub(crate) fn run() -> ! {
    if let Err(error) = mount_dev().and_then(|()| report()) {
        println!("{MARK} failed: {error}");
    }
    // SAFETY: Nothing is left to do.
    unsafe { libc::reboot(libc::RB_AUTOBOOT) };
    std::process::exit(1)
}

fn mount_dev() -> io::Result<()> {
    let (name, target) = (c"devtmpfs".as_ptr(), c"/dev".as_ptr());
    // SAFETY: All of these are C strings, or nothing.
    match unsafe { libc::mount(name, target, name, 0, std::ptr::null()) } {
        0 => Ok(()),
        _ if io::Error::last_os_error().raw_os_error() == Some(libc::EBUSY) => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// How long after its own start PID 1 begins: what a VMM does once, some time after the start (amphi gives pages of its program
/// back after 100 ms), is no request's cost.
const SETTLE: Duration = Duration::from_millis(200);

fn report() -> io::Result<()> {
    std::thread::sleep(SETTLE);
    let disk = File::options().read(true).write(true).custom_flags(libc::O_DIRECT).open("/dev/vda")?;
    let len = io::Seek::seek(&mut &disk, io::SeekFrom::End(0))?;
    // The kernel hands PID 1 what it does not know itself of its command line.
    let only = std::env::var("LOAD").ok();
    for load in LOADS.into_iter().filter(|load| only.as_ref().is_none_or(|only| *only == load.to_string())) {
        let places = len / load.size as u64;
        let mut offsets = Offsets { state: 0x9e37_79b9_7f4a_7c15, next: 0, places, load };
        let mut memory = vec![Block([0x5a; BLOCK]); load.size / BLOCK * load.depth];
        let mut buffers: Vec<&mut [Block]> = memory.chunks_exact_mut(load.size / BLOCK).collect();
        let mut queue = Queue::new(load.depth)?;
        let mut time = |count| -> io::Result<Duration> {
            let begin = Instant::now();
            if load.depth == 1 {
                one_by_one(&disk, load, count, &mut offsets, buffers[0])?;
            } else {
                queue.keep_full(&disk, load, count, &mut offsets, &mut buffers)?;
            }
            Ok(begin.elapsed())
        };
        time(load.count / 10)?;
        let taken = time(load.count)?;
        println!("{MARK} {load} {}", taken.as_nanos() / load.count as u128);
    }
    Ok(())
}

/// Memory that direct I/O takes.
#[derive(Clone)]
#[repr(C, align(4096))]
struct Block([u8; BLOCK]);

/// Places on the disk, the same in each run.
struct Offsets {
    state: u64,
    next: u64,
    /// How many requests the disk has room for, side by side.
    places: u64,
    load: Load,
}

impl Offsets {
    fn next(&mut self) -> i64 {
        let place = if self.load.sequential {
            self.next += 1;
            self.next - 1
        } else {
            self.state ^= self.state << 13;
            self.state ^= self.state >> 7;
            self.state ^= self.state << 17;
            self.state
        };
        i64::try_from(place % self.places * self.load.size as u64).unwrap_or(0)
    }
}

fn one_by_one(disk: &File, load: Load, count: usize, offsets: &mut Offsets, buffer: &mut [Block]) -> io::Result<()> {
    use std::os::unix::fs::FileExt;
    // SAFETY: The blocks are bytes, side by side, and borrowed for as long as the slice.
    let buffer = unsafe { std::slice::from_raw_parts_mut(buffer.as_mut_ptr().cast::<u8>(), size_of_val(buffer)) };
    for _ in 0..count {
        let offset = offsets.next().unsigned_abs();
        if load.write { disk.write_all_at(buffer, offset) } else { disk.read_exact_at(buffer, offset) }?;
    }
    Ok(())
}

/// `struct iocb` of the kernel's asynchronous I/O (`linux/aio_abi.h`).
#[derive(Clone, Copy, Default)]
#[repr(C)]
struct Iocb {
    data: u64,
    key: u32,
    rw_flags: u32,
    opcode: u16,
    priority: i16,
    descriptor: u32,
    buffer: u64,
    len: u64,
    offset: i64,
    reserved: u64,
    flags: u32,
    event: u32,
}

/// `struct io_event` of the same.
#[derive(Clone, Copy, Default)]
#[repr(C)]
struct Event {
    data: u64,
    object: u64,
    result: i64,
    result2: i64,
}

/// A context of the kernel's asynchronous I/O, which every kernel has that a VMM boots.
struct Queue(u64);

impl Queue {
    fn new(depth: usize) -> io::Result<Self> {
        let mut context = 0_u64;
        call(libc::SYS_io_setup, [depth as u64, (&raw mut context).addr() as u64, 0, 0, 0])?;
        Ok(Self(context))
    }

    /// Makes `count` requests, and begins a new one whenever one has ended.
    fn keep_full(
        &mut self,
        disk: &File,
        load: Load,
        count: usize,
        offsets: &mut Offsets,
        buffers: &mut [&mut [Block]],
    ) -> io::Result<()> {
        let mut controls = vec![Iocb::default(); buffers.len()];
        let mut events = vec![Event::default(); buffers.len()];
        let mut free: Vec<usize> = (0..buffers.len()).collect();
        let (mut begun, mut ended) = (0, 0);
        while ended < count {
            let fresh: Vec<usize> = free.drain(..free.len().min(count - begun)).collect();
            for &slot in &fresh {
                controls[slot] = Iocb {
                    data: slot as u64,
                    opcode: load.write.into(),
                    descriptor: disk.as_raw_fd().unsigned_abs(),
                    buffer: buffers[slot].as_mut_ptr().expose_provenance() as u64,
                    len: load.size as u64,
                    offset: offsets.next(),
                    ..Iocb::default()
                };
            }
            let pointers: Vec<u64> =
                fresh.iter().map(|&slot| (&raw mut controls[slot]).expose_provenance() as u64).collect();
            begun += fresh.len();
            if !pointers.is_empty() {
                let list = pointers.as_ptr().expose_provenance() as u64;
                let taken = call(libc::SYS_io_submit, [self.0, pointers.len() as u64, list, 0, 0])?;
                if taken != pointers.len() {
                    return Err(io::Error::other(format!("{taken} of {} requests were taken", pointers.len())));
                }
            }
            let list = events.as_mut_ptr().expose_provenance() as u64;
            let got = call(libc::SYS_io_getevents, [self.0, 1, events.len() as u64, list, 0])?;
            for event in &events[..got] {
                if event.result.unsigned_abs() != load.size as u64 {
                    return Err(io::Error::other(format!("a request gave {}", event.result)));
                }
                free.push(usize::try_from(event.data).map_err(io::Error::other)?);
            }
            ended += got;
        }
        Ok(())
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        let _ = call(libc::SYS_io_destroy, [self.0, 0, 0, 0, 0]);
    }
}

fn call(number: libc::c_long, arguments: [u64; 5]) -> io::Result<usize> {
    let [a, b, c, d, e] = arguments;
    // SAFETY: The pointers among the arguments are to structures that live until the kernel is done with them: `keep_full`
    // returns before that only to end the program.
    let result = unsafe { libc::syscall(number, a, b, c, d, e) };
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}
