//! The reset button: the same microVM begins anew, and runs its workload from the start.

use std::fs;
use std::io::{BufRead, BufReader, PipeReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, SystemTime};

use amphi::isolation::vm::{VmIsolation, VmSandbox, confine_caller};
use amphi::isolation::{Signal, Stdio};
use amphi::spec::{
    Balloon, DiskEngine, DiskSpec, Network, PmemSpec, UserNetwork, VmDevices, Volume, Vsock, Watchdog, WatchdogAction,
};
use amphi::{ExitStatus, Image, RunSpec, Sandbox};
use tempfile::TempDir;

use crate::harness::installed::{self, Kernel};
use crate::harness::world::{seconds, until};
use crate::harness::{Case, netns, rootfs, vm};
use crate::network::{HOST, make_host};
use crate::vsock::program;

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (name, kernel) in [
        ("a_reset_guest_begins_anew", installed::own as fn() -> Kernel),
        ("a_reset_guest_begins_anew_on_6_1", || installed::stock("6.1.")),
        ("a_reset_guest_begins_anew_on_6_12", || installed::stock("6.12.")),
    ] {
        cases.push(vm(name, move || a_reset_guest_begins_anew(kernel)));
    }
    cases.push(vm("a_reset_leaves_no_memory", a_reset_leaves_no_memory).alone());
    cases.push(vm("a_guest_that_hangs_is_reset", a_guest_that_hangs_is_reset));
    cases.push(vm("resets_at_any_time", resets_at_any_time));
    cases.push(vm("resets_under_load", || resets_under_load(installed::own(), 20)));
    cases.push(vm("resets_under_load_on_a_stock_kernel", || resets_under_load(installed::stock("6.12."), 5)));
    cases.push(vm("a_reset_of_every_device", || netns::run(|| a_reset_of_every_device(installed::own()))));
    cases.push(vm("a_reset_of_every_device_on_a_stock_kernel", || {
        netns::run(|| a_reset_of_every_device(installed::stock("6.12.")))
    }));
    cases.push(vm("a_reset_with_output_under_way", a_reset_with_output_under_way));
    cases.push(vm("a_paused_guest_is_reset", a_paused_guest_is_reset));
    cases.push(vm("a_reset_by_a_confined_thread", a_reset_by_a_confined_thread));
    cases.push(vm("resets_and_the_end", resets_and_the_end));
    cases
}

/// By which the guest's memory is found among this process's mappings.
const UNUSUAL_MIB: u32 = 206;

/// What a guest is made of.
struct Guest {
    kernel: Kernel,
    vcpus: u16,
    devices: VmDevices,
    volumes: Vec<Volume>,
    network: Network,
    input: Option<OwnedFd>,
}

impl Guest {
    fn new(kernel: Kernel) -> Self {
        let (devices, network) = (VmDevices::default(), Network::None);
        Self { kernel, vcpus: 2, devices, volumes: Vec::new(), network, input: None }
    }

    /// Runs `script`, and returns its output as well. That ends with the microVM.
    fn start(self, script: &str) -> (Arc<VmSandbox>, BufReader<PipeReader>) {
        let image = Image::open(&format!("dir:{}", rootfs::busybox().display())).unwrap();
        let spec = RunSpec::builder(&image).args(["/bin/sh", "-c", script]).memory_mib(UNUSUAL_MIB).vcpus(self.vcpus);
        let spec = spec.kernel(&self.kernel.name).devices(self.devices).stdin(self.input.is_some());
        let spec = self.volumes.into_iter().fold(spec.network(self.network), |spec, volume| spec.volume(volume));
        let spec = spec.build().unwrap();
        let (output, writer) = std::io::pipe().unwrap();
        let mut stdio = Stdio { stdout: OwnedFd::from(writer), ..Stdio::null().unwrap() };
        stdio.stdin = self.input.unwrap_or(stdio.stdin);
        let sandbox = VmIsolation::new().create_vm(&spec, stdio).unwrap();
        assert!(sandbox.reset().is_err(), "it does not run");
        sandbox.start().unwrap();
        let sandbox = Arc::new(sandbox);
        let follower = Arc::clone(&sandbox);
        // Somebody follows the guest all the time, as the command does.
        thread::spawn(move || {
            if let Err(error) = follower.wait() {
                eprintln!("the microVM has ended: {error:?}");
            }
        });
        (sandbox, BufReader::new(output))
    }
}

fn line(output: &mut impl BufRead) -> String {
    let mut line = String::new();
    output.read_line(&mut line).unwrap();
    line.trim_end().to_owned()
}

/// As [`line`], of a guest that still runs.
fn line_of_some(output: &mut impl BufRead) -> String {
    let line = line(output);
    assert!(!line.is_empty(), "the output has ended");
    line
}

/// A disk that counts guests ([`COUNT`]).
fn disk(folder: &TempDir) -> DiskSpec {
    let path = folder.path().join("disk");
    fs::File::create(&path).unwrap().set_len(32 << 20).unwrap();
    DiskSpec { engine: DiskEngine::IoUring, ..DiskSpec::new(&path) }
}

fn with_disk(folder: &TempDir) -> VmDevices {
    VmDevices { disks: vec![disk(folder)], ..VmDevices::default() }
}

/// Counts on the disk `/dev/vda` how many guests there have been, and says so.
const COUNT: &str = "n=$(head -c 9 /dev/vda | tr -d '\\0 '); n=$((n + 1)); \
    printf '%-9s' $n | dd of=/dev/vda conv=notrunc,fsync 2>/dev/null; echo guest $n;";

fn a_reset_guest_begins_anew(kernel: fn() -> Kernel) {
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

fn a_reset_leaves_no_memory() {
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

/// Guests that do nothing sensible any more: one with both processors busy, and one whose kernel has panicked and turns round for ever
/// with interrupts off. (It says so by a device, which would end it: the driver goes first.)
fn a_guest_that_hangs_is_reset() {
    let hangs = [
        (installed::own(), "(while :; do :; done) & echo busy; while :; do :; done"),
        (
            installed::stock("6.12."),
            "rmmod pvpanic_mmio; echo 0 >/proc/sys/kernel/panic; echo busy; echo c >/proc/sysrq-trigger",
        ),
    ];
    for (kernel, hang) in hangs {
        let folder = tempfile::tempdir().unwrap();
        let guest = Guest { devices: with_disk(&folder), ..Guest::new(kernel) };
        let (sandbox, mut output) = guest.start(&format!("{COUNT} [ $n = 3 ] && exit 9; {hang}"));
        for n in 1..=2 {
            assert_eq!(line(&mut output), format!("guest {n}"));
            assert_eq!(line(&mut output), "busy");
            thread::sleep(Duration::from_millis(500));
            sandbox.reset().unwrap();
        }
        assert_eq!(line(&mut output), "guest 3");
        assert_eq!(sandbox.wait().unwrap(), ExitStatus::Code(9));
    }
}

/// From the first instruction on: no processor is up yet, one is, drivers have just begun.
fn resets_at_any_time() {
    let folder = tempfile::tempdir().unwrap();
    let script = format!("{COUNT} echo started; read line; exit 3");
    let (reader, mut input) = std::io::pipe().unwrap();
    let guest =
        Guest { devices: with_disk(&folder), input: Some(reader.into()), ..Guest::new(installed::stock("6.12.")) };
    let (sandbox, mut output) = guest.start(&script);
    for step in 0..24 {
        thread::sleep(Duration::from_millis(step * 40));
        sandbox.reset().unwrap();
    }
    input.write_all(b"go\n").unwrap();
    assert_eq!(sandbox.wait().unwrap(), ExitStatus::Code(3));
    drop(sandbox);
    let mut text = String::new();
    output.read_to_string(&mut text).unwrap();
    assert!(text.ends_with("started\n"), "{text}");
}

fn resets_under_load(kernel: Kernel, resets: u32) {
    let folder = tempfile::tempdir().unwrap();
    let mut devices = with_disk(&folder);
    let other = folder.path().join("other");
    fs::File::create(&other).unwrap().set_len(16 << 20).unwrap();
    devices.disks.push(DiskSpec { engine: DiskEngine::Sync, ..DiskSpec::new(&other) });
    let guest = Guest { devices, ..Guest::new(kernel) };
    // The last one checks that what it writes is there.
    let script = format!(
        "{COUNT} \
         if [ $n -gt {resets} ]; then dd if=/dev/urandom of=/x bs=1M count=4 2>/dev/null; \
           for d in a b; do dd if=/x of=/dev/vd$d bs=64k seek=64 conv=fsync 2>/dev/null; done; \
           echo 3 >/proc/sys/vm/drop_caches; md5sum </x; \
           for d in a b; do dd if=/dev/vd$d bs=64k skip=64 count=64 2>/dev/null | md5sum; done; \
           dmesg | grep -e 'I/O error' -e BUG:; exit 21; fi; \
         for d in a b; do \
           (while :; do dd if=/dev/urandom of=/dev/vd$d bs=256k seek=20 count=20 oflag=direct 2>/dev/null || \
             dd if=/dev/urandom of=/dev/vd$d bs=256k seek=20 count=20 conv=fsync 2>/dev/null; done) & done; \
         (while :; do dd if=/dev/vda of=/dev/null bs=1M skip=8 2>/dev/null; echo 3 >/proc/sys/vm/drop_caches; done) & \
         cat /dev/zero | tr '\\0' x >&2 & \
         sleep 0.1; echo busy; wait"
    );
    let (sandbox, mut output) = guest.start(&script);
    for n in 1..=resets {
        assert_eq!(line(&mut output), format!("guest {n}"));
        assert_eq!(line(&mut output), "busy");
        sandbox.reset().unwrap();
    }
    assert_eq!(line(&mut output), format!("guest {}", resets + 1));
    let sums: Vec<_> = (0..3).map(|_| line(&mut output)).collect();
    assert!(sums[0].len() > 30 && sums.iter().all(|sum| *sum == sums[0]), "{sums:?}");
    assert_eq!(line(&mut output), "", "errors of its kernel");
    assert_eq!(sandbox.wait().unwrap(), ExitStatus::Code(21));
}

/// One of each, all in use.
fn a_reset_of_every_device(kernel: Kernel) {
    make_host();
    let folder = tempfile::tempdir().unwrap();
    let volume = folder.path().join("volume");
    fs::create_dir(&volume).unwrap();
    fs::copy(program().join("vsock"), volume.join("vsock")).unwrap();
    fs::write(volume.join("open"), "of the volume").unwrap();
    let service = UnixListener::bind(folder.path().join("v.sock_7")).unwrap();
    let pmem = PmemSpec { path: folder.path().join("pmem"), read_only: false };
    fs::File::create(&pmem.path).unwrap().set_len(4 << 20).unwrap();
    let devices = VmDevices {
        pmem: vec![pmem],
        vsock: Some(Vsock::new(folder.path().join("v.sock"), 5).unwrap()),
        balloon: Some(Balloon::new()),
        watchdog: Some(Watchdog { seconds: 60.try_into().unwrap(), action: WatchdogAction::Panic }),
        generation_id: true,
        ..with_disk(&folder)
    };
    let volumes = vec![Volume { source: volume, destination: "/v".into(), read_only: false }];
    let network = Network::User(UserNetwork::default());
    let script = format!(
        "{COUNT} echo n$n | dd of=/dev/pmem0 seek=$n bs=4k conv=notrunc,fsync 2>/dev/null; echo $n >/v/$n; \
         [ $n = 4 ] && {{ cat /v/1 /v/2 /v/3; for k in 1 2 3 4; do dd if=/dev/pmem0 bs=4k skip=$k count=1 2>/dev/null | head -c 2; done; echo; \
           wget -q -O - http://{HOST}:5000/; exit 8; }}; \
         (while echo x; do sleep 1; done) >/dev/watchdog & exec 4</v/open; (while :; do cat /dev/hwrng >/dev/null; done) & \
         (while :; do wget -q -O - http://{HOST}:5000/big >/dev/null; done) & \
         (while :; do dd if=/dev/pmem0 of=/v/copy bs=1M 2>/dev/null; done) & \
         /v/vsock send 7 1000000000 & \
         wait"
    );
    let server = TcpListener::bind((HOST, 5000)).unwrap();
    thread::spawn(move || {
        for stream in server.incoming() {
            thread::spawn(move || answer(stream.unwrap()));
        }
    });
    let (sandbox, mut output) = Guest { devices, volumes, network, ..Guest::new(kernel) }.start(&script);
    for n in 1..=3 {
        assert_eq!(line(&mut output), format!("guest {n}"));
        let (mut connection, _) = service.accept().unwrap();
        connection.read_exact(&mut [0; 1000]).unwrap();
        sandbox.set_balloon(64 << 20).unwrap();
        until(seconds(20), "the balloon fills", || sandbox.balloon().unwrap().actual == 64 << 20);
        until(seconds(20), "the volume's file is open", || is_open("volume/open"));
        sandbox.pause().unwrap();
        sandbox.reset().unwrap();
        assert_eq!(sandbox.balloon().unwrap().actual, 0, "it is forgotten");
        sandbox.set_balloon(0).unwrap();
        sandbox.resume().unwrap();
        connection.read_to_end(&mut Vec::new()).expect("the connection ends");
        until(seconds(20), "the volume's file is closed", || !is_open("volume/open"));
    }
    assert_eq!(line(&mut output), "guest 4");
    let rest: Vec<_> = (0..5).map(|_| line(&mut output)).collect();
    assert_eq!(rest, ["1", "2", "3", "n1n2n3n4", "answer"]);
    assert_eq!(sandbox.wait().unwrap(), ExitStatus::Code(8));
}

/// Speaks HTTP to a guest that may be gone at any time.
fn answer(mut stream: TcpStream) {
    let mut request = [0; 64];
    let count = stream.read(&mut request).unwrap_or(0);
    let big = request[..count].starts_with(b"GET /big");
    let body = if big { vec![b'x'; 8 << 20] } else { b"answer\n".to_vec() };
    let head = format!("HTTP/1.0 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
    let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&body));
    let _ = stream.read_to_end(&mut Vec::new());
}

/// Whether this process has a file of that name open.
fn is_open(name: &str) -> bool {
    let open = fs::read_dir("/proc/self/fd").unwrap().flatten();
    open.filter_map(|fd| fs::read_link(fd.path()).ok()).any(|path| path.ends_with(name))
}

/// With a reader that takes nothing for a while, so that output waits in the guest, in its queues and in the pipe; and input that no
/// guest has taken yet.
fn a_reset_with_output_under_way() {
    let folder = tempfile::tempdir().unwrap();
    let (reader, mut input) = std::io::pipe().unwrap();
    let guest = Guest { devices: with_disk(&folder), input: Some(reader.into()), ..Guest::new(installed::own()) };
    let (sandbox, mut output) =
        guest.start(&format!("{COUNT} [ $n = 4 ] && {{ echo; read x; echo $x; exit 2; }}; exec yes of guest $n"));
    for n in 1..=3 {
        // What of the old one's output was under way may end within a line.
        let full = format!("of guest {n}");
        while !line_of_some(&mut output).ends_with(&full) {}
        thread::sleep(Duration::from_millis(500));
        sandbox.reset().unwrap();
    }
    input.write_all(b"for the last\n").unwrap();
    let mut text = String::new();
    output.read_to_string(&mut text).unwrap();
    assert!(text.ends_with("guest 4\n\nfor the last\n"), "{}", &text[text.len().saturating_sub(200)..]);
    assert_eq!(sandbox.wait().unwrap(), ExitStatus::Code(2));
}

fn a_paused_guest_is_reset() {
    let folder = tempfile::tempdir().unwrap();
    let guest = Guest { devices: with_disk(&folder), ..Guest::new(installed::own()) };
    let (sandbox, mut output) = guest.start(&format!("{COUNT} [ $n = 2 ] && exit 6; sleep 1000"));
    assert_eq!(line(&mut output), "guest 1");
    sandbox.pause().unwrap();
    sandbox.kill(Signal::TERM).unwrap();
    for _ in 0..3 {
        sandbox.reset().unwrap();
    }
    thread::sleep(Duration::from_millis(500));
    let mut number = [0; 9];
    fs::File::open(folder.path().join("disk")).unwrap().read_exact(&mut number).unwrap();
    assert_eq!(&number, b"1        ", "no guest has begun");
    sandbox.resume().unwrap();
    assert_eq!(line(&mut output), "guest 2");
    assert_eq!(sandbox.wait().unwrap(), ExitStatus::Code(6), "the signal was for the old one");
}

/// With all that the filter of whoever follows a guest leaves.
fn a_reset_by_a_confined_thread() {
    for kernel in [installed::own(), installed::stock("6.12.")] {
        let folder = tempfile::tempdir().unwrap();
        let guest = Guest { devices: with_disk(&folder), ..Guest::new(kernel) };
        let (sandbox, mut output) = guest.start(&format!("{COUNT} [ $n = 3 ] && exit 4; sleep 1000"));
        let confined = thread::spawn(move || {
            confine_caller().unwrap();
            for n in 1..=2 {
                assert_eq!(line(&mut output), format!("guest {n}"));
                sandbox.reset().unwrap();
            }
            sandbox.wait().unwrap()
        });
        assert_eq!(confined.join().unwrap(), ExitStatus::Code(4));
    }
}

/// Several who reset it, a workload that ends when it has been begun often enough, and in the end somebody who kills it.
fn resets_and_the_end() {
    for round in 0..4 {
        let folder = tempfile::tempdir().unwrap();
        let guest = Guest { devices: with_disk(&folder), ..Guest::new(installed::own()) };
        let (sandbox, mut output) = guest.start(&format!("{COUNT} [ $n -gt 2 ] && exit 11; sleep 1000"));
        assert_eq!(line(&mut output), "guest 1");
        let done = thread::scope(|scope| {
            let sandbox = &sandbox;
            let reset = move |pause| {
                let done = sandbox.reset().is_ok();
                thread::sleep(Duration::from_millis(pause));
                done
            };
            let resets = [100, 300, 500].map(|pause| scope.spawn(move || (0..3).filter(|_| reset(pause)).count()));
            if round % 2 == 1 {
                thread::sleep(Duration::from_millis(500));
                sandbox.kill(Signal::KILL).unwrap();
            }
            resets.into_iter().map(|resets| resets.join().unwrap()).sum::<usize>()
        });
        assert!(done > 0);
        sandbox.kill(Signal::KILL).unwrap();
        let status = sandbox.wait().unwrap();
        assert!([ExitStatus::Code(11), ExitStatus::Signal(Signal::KILL)].contains(&status), "{status:?}");
        assert!(sandbox.reset().is_err());
    }
}
