//! Resets while devices are in use.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixListener;
use std::thread;
use std::time::Duration;

use amphi::spec::{
    Balloon, DiskEngine, DiskSpec, Network, PmemSpec, UserNetwork, VmDevices, Volume, Vsock, Watchdog, WatchdogAction,
};
use amphi::{ExitStatus, Sandbox};

use super::guest::{COUNT, Guest, line, line_of_some, with_disk};
use crate::harness::installed::{self, Kernel};
use crate::harness::world::{seconds, until};
use crate::network::{HOST, make_host};
use crate::vsock::program;

pub(super) fn resets_under_load(kernel: Kernel, resets: u32) {
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
pub(super) fn a_reset_of_every_device(kernel: Kernel) {
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
pub(super) fn a_reset_with_output_under_way() {
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
