//! Sockets between programs of the host and of the guest.

use std::fs;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tempfile::TempDir;

use crate::harness::installed::{self, Kernel};
use crate::harness::world::seconds;
use crate::harness::{Amphi, Case, Isolation, initramfs, rootfs, vm};

pub(crate) fn cases() -> Vec<Case> {
    vec![
        vm("vsock_echo_of_the_guest", || echo_of_the_guest(&installed::own(), BYTES)),
        vm("vsock_echo_of_the_guest_with_kernel_6_1", || echo_of_the_guest(&installed::stock("6.1."), 1 << 20)),
        vm("vsock_echo_of_the_guest_with_kernel_6_12", || echo_of_the_guest(&installed::stock("6.12."), BYTES)),
        vm("vsock_echo_of_the_host", || echo_of_the_host(&installed::own())),
        vm("vsock_echo_of_the_host_with_kernel_6_12", || echo_of_the_host(&installed::stock("6.12."))),
        vm("vsock_half_close", vsock_half_close),
        vm("vsock_where_nobody_listens", vsock_where_nobody_listens),
        vm("vsock_many_connections_leave_nothing", many_connections_leave_nothing),
        vm("vsock_socket_comes_and_goes", socket_comes_and_goes),
        vm("vsock_of_a_direct_boot", vsock_of_a_direct_boot),
        vm("vsock_settings_that_are_none", settings_that_are_none),
    ]
}

const CONNECTIONS: usize = 8;
/// 100 MiB in all.
const BYTES: usize = (100 << 20) / CONNECTIONS;

/// The guest's program; see its source.
pub(crate) fn program() -> &'static Path {
    static PROGRAM: OnceLock<TempDir> = OnceLock::new();
    let folder = PROGRAM.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/guest/vsock.c");
        let mut gcc = Command::new("gcc");
        gcc.args(["-static", "-O2", "-o"]).arg(folder.path().join("vsock")).arg(source);
        let made = gcc.output().expect("no gcc here: apt-get install gcc (or: make setup)");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        folder
    });
    folder.path()
}

/// A folder with a root file system in which the guest's program is, and room for the sockets.
struct World(TempDir);

impl World {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("root");
        let copied = Command::new("cp").arg("-a").arg(rootfs::busybox()).arg(&root).status().unwrap();
        assert!(copied.success());
        fs::copy(program().join("vsock"), root.join("bin/vsock")).unwrap();
        Self(folder)
    }

    fn socket(&self) -> PathBuf {
        self.0.path().join("v.sock")
    }

    fn sh(&self, script: &str) -> Amphi {
        let image = format!("dir:{}", self.0.path().join("root").display());
        Amphi::run_image(Isolation::Vm, image.as_ref(), ["/bin/sh", "-c", script])
            .with(["--vsock"])
            .with([self.socket()])
            .with(["--memory", "128M"])
    }

    /// A program of the host's that the guest reaches at `port`.
    fn service(&self, port: u32) -> UnixListener {
        UnixListener::bind(self.0.path().join(format!("v.sock_{port}"))).unwrap()
    }

    /// Connects to `port` of the guest; `None` where it refuses.
    fn connect(&self, port: u32) -> Option<UnixStream> {
        let mut stream = UnixStream::connect(self.socket()).unwrap();
        stream.set_read_timeout(Some(seconds(20))).unwrap();
        writeln!(stream, "CONNECT {port}").unwrap();
        let mut answer = Vec::new();
        while answer.last() != Some(&b'\n') {
            let mut byte = [0];
            if stream.read(&mut byte).unwrap() == 0 {
                assert!(answer.is_empty());
                return None;
            }
            answer.push(byte[0]);
        }
        assert!(answer.starts_with(b"OK "), "{answer:?}");
        Some(stream)
    }
}

/// Sends `data` and checks that it comes back, both at the same time.
fn echoed(stream: UnixStream, data: &[u8]) {
    thread::scope(|scope| {
        scope.spawn(|| {
            (&stream).write_all(data).unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
        });
        let mut back = Vec::new();
        (&stream).read_to_end(&mut back).unwrap();
        assert!(back == data, "{} bytes of {} came back, or others", back.len(), data.len());
    });
}

fn pattern(len: usize, seed: usize) -> Vec<u8> {
    (0..len).map(|at| ((at ^ seed).wrapping_mul(0x9e37_79b1) >> 13).to_le_bytes()[0]).collect()
}

fn echo_of_the_guest(kernel: &Kernel, bytes: usize) {
    let world = World::new();
    let mut started = world.sh(&format!("vsock echo 5000 {CONNECTIONS}")).with(["--kernel", &kernel.name]).start();
    started.wait_for_output("listening");
    thread::scope(|scope| {
        for n in 0..CONNECTIONS {
            let stream = world.connect(5000).unwrap();
            scope.spawn(move || echoed(stream, &pattern(bytes, n)));
        }
    });
    started.finish().expect(0);
}

fn echo_of_the_host(kernel: &Kernel) {
    let world = World::new();
    let service = world.service(5001);
    let host = thread::spawn(move || {
        let streams = (0..CONNECTIONS).map(|_| service.accept().unwrap().0);
        let echoes = streams.map(|stream| {
            thread::spawn(move || {
                let mut total = 0;
                let mut buffer = vec![0; 1 << 16];
                loop {
                    match (&stream).read(&mut buffer).unwrap() {
                        0 => return total,
                        count => (&stream).write_all(&buffer[..count]).unwrap(),
                    }
                    total += 1;
                }
            })
        });
        echoes.collect::<Vec<_>>().into_iter().map(|echo| echo.join().unwrap()).sum::<usize>()
    });
    let each = format!("vsock send 5001 {BYTES} || echo failed");
    let script = format!("for n in $(seq {CONNECTIONS}); do ({each}) & done; wait");
    world.sh(&script).with(["--kernel", &kernel.name]).finish().expect_text("");
    assert!(host.join().unwrap() >= CONNECTIONS);
}

fn vsock_half_close() {
    let world = World::new();
    let service = world.service(6);
    let host = thread::spawn(move || {
        let (mut stream, _) = service.accept().unwrap();
        let mut question = String::new();
        stream.read_to_string(&mut question).unwrap();
        stream.write_all(format!("answer to the {question}").as_bytes()).unwrap();
    });
    world.sh("vsock half 6").finish().expect_text("answer to the question");
    host.join().unwrap();
}

fn vsock_where_nobody_listens() {
    let world = World::new();
    let mut started = world.sh("vsock try 2 77; vsock try 9 77; vsock echo 5000 1").start();
    started.wait_for_output("listening");
    assert!(world.connect(5001).is_none(), "nobody listens there in the guest");
    echoed(world.connect(5000).unwrap(), b"but here");
    let reset = "Connection reset by peer";
    started.finish().expect_text(&format!("{reset}\n{reset}\nlistening"));
}

fn many_connections_leave_nothing() {
    let world = World::new();
    let service = world.service(7);
    thread::spawn(move || while service.accept().is_ok() {});
    let script = "vsock churn 7 1; echo once; vsock churn 7 2000 && echo often; vsock echo 5000 300";
    let mut started = world.sh(script).start();
    started.wait_for_output("once");
    let files = || fs::read_dir(format!("/proc/{}/fd", started.id())).unwrap().count();
    let before = files();
    let mut started = {
        let mut started = started;
        started.wait_for_output("listening");
        started
    };
    for _ in 0..299 {
        drop(world.connect(5000).unwrap());
    }
    let pid = started.id();
    let deadline = Instant::now() + seconds(5);
    // Some of the listener's, and of sockets that the guest is still to agree to have closed.
    while fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count() > before {
        assert!(Instant::now() < deadline, "descriptors stay open");
        thread::sleep(Duration::from_millis(50));
    }
    echoed(world.connect(5000).unwrap(), b"last");
    started.wait_for_output("often");
    started.finish().expect(0);
}

fn socket_comes_and_goes() {
    let world = World::new();
    let path = world.socket();
    let path = path.to_str().unwrap();
    world.sh("exit 3").finish().expect(3);
    assert!(!world.socket().exists(), "it is removed at the end");
    // SIGTERM, as the workload has it.
    let mut started = world.sh("echo ready; exec sleep 1000").start();
    started.wait_for_output("ready");
    assert!(world.socket().exists());
    world.sh("true").finish().expect_error(125, &["--vsock", path, "another program"]);
    assert!(world.socket().exists(), "somebody else's is left alone");
    started.signal(Signal::TERM);
    started.finish().expect_signal(Signal::TERM);
    assert!(!world.socket().exists(), "it is removed after SIGTERM");
    // SIGKILL leaves it, and the next one takes the place.
    let mut started = world.sh("echo ready; exec sleep 1000").start();
    started.wait_for_output("ready");
    started.signal(Signal::KILL);
    started.finish();
    assert!(world.socket().exists());
    world.sh("true").finish().expect(0);
    assert!(!world.socket().exists());
    fs::write(world.socket(), "a file").unwrap();
    world.sh("true").finish().expect_error(125, &["--vsock", path, "not a socket"]);
    assert_eq!(fs::read(world.socket()).unwrap(), b"a file");
}

fn vsock_of_a_direct_boot() {
    let world = World::new();
    let (_folder, initrd) = initramfs::write();
    let kernel = installed::own();
    let boot = || {
        let arg = format!("{}=echo", initramfs::DO);
        let amphi = Amphi::new(["run", "--kernel", &kernel.name, "--memory", "128M", "--initrd"]).with([&initrd]);
        amphi.with(["--kernel-arg", &arg, "--kernel-arg", "console=ttyS0", "--vsock"]).with([world.socket()])
    };
    let mut started = boot().input("typed\n").start();
    started.wait_for_output("read: typed");
    started.finish().expect(0);
    assert!(!world.socket().exists());
    let mut started = boot().open_input().start();
    started.wait_for_output("init: echo");
    assert!(world.connect(5).is_none(), "nobody listens in the guest");
    started.signal(Signal::TERM);
    started.finish().expect_signal(Signal::TERM);
    assert!(!world.socket().exists(), "it is removed after SIGTERM");
}

fn settings_that_are_none() {
    for setting in ["", "/tmp/v,cid=2", "/tmp/v,cid=x", &"a".repeat(97)] {
        Amphi::run(Isolation::Vm, ["true"]).with(["--vsock", setting]).finish().expect_error(125, &["--vsock"]);
    }
    let missing = "/no/such/folder/v";
    Amphi::run(Isolation::Vm, ["true"]).with(["--vsock", missing]).finish().expect_error(125, &["--vsock", missing]);
    Amphi::run(Isolation::Container, ["true"]).with(["--vsock", "v"]).finish().expect_error(125, &["--vsock"]);
}
