//! What runs in the guest: this very program as PID 1. It times traffic with the host over its network interface and over its
//! vsock, where it has either, and reports on the console.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd};
use std::time::Instant;

use crate::peer::{ECHO, HOST, SINK, SOURCE};

/// What a line of the report begins with.
pub(crate) const MARK: &str = "net-bench";
/// The loads over TCP.
pub(crate) const TCP: [&str; 3] = ["tcp-rr", "tcp-send", "tcp-receive"];
/// The same over vsock.
pub(crate) const VSOCK: [&str; 3] = ["vsock-rr", "vsock-send", "vsock-receive"];

const INTERFACE: &str = "eth0";
const GUEST: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 2);
const NETMASK: Ipv4Addr = Ipv4Addr::new(255, 255, 255, 0);
/// Round trips of one byte that are timed. A tenth of that comes before.
const ROUND_TRIPS: u32 = 300;
/// MiB that are timed each way. An eighth of that comes before.
const STREAM_MIB: u64 = 16;
const CHUNK: usize = 64 << 10;

trait Stream: Read + Write {}
impl<S: Read + Write> Stream for S {}

/// PID 1's whole life.
pub(crate) fn run() -> ! {
    if let Err(error) = report() {
        println!("{MARK} failed: {error}");
    }
    // SAFETY: Nothing is left to do.
    unsafe { libc::reboot(libc::RB_AUTOBOOT) };
    std::process::exit(1)
}

fn report() -> io::Result<()> {
    if bring_up().is_ok() {
        measure(TCP, |port| {
            let stream = TcpStream::connect(SocketAddrV4::new(HOST, port))?;
            stream.set_nodelay(true)?;
            Ok(Box::new(stream))
        })?;
    }
    if let Ok(stream) = vsock(ECHO) {
        drop(stream);
        measure(VSOCK, |port| Ok(Box::new(vsock(port)?)))?;
    }
    Ok(())
}

fn measure(names: [&str; 3], connect: impl Fn(u16) -> io::Result<Box<dyn Stream>>) -> io::Result<()> {
    let [round_trip, send, receive] = names;
    let mut echo = connect(ECHO)?;
    let mut go_round = |times: u32| {
        (0..times).try_for_each(|_| {
            echo.write_all(&[1])?;
            echo.read_exact(&mut [0])
        })
    };
    go_round(ROUND_TRIPS / 10)?;
    time(round_trip, ROUND_TRIPS.into(), || go_round(ROUND_TRIPS))?;
    drop(echo);
    let mut sink = connect(SINK)?;
    let mut put = |mib: u64| {
        let bytes = mib << 20;
        sink.write_all(&bytes.to_le_bytes())?;
        (0..bytes / CHUNK as u64).try_for_each(|_| sink.write_all(&[0x5a; CHUNK]))?;
        sink.read_exact(&mut [0])
    };
    put(STREAM_MIB / 8)?;
    time(send, STREAM_MIB, || put(STREAM_MIB))?;
    drop(sink);
    let mut source = connect(SOURCE)?;
    let mut buffer = vec![0; CHUNK];
    let mut get = |mib: u64| {
        let bytes = mib << 20;
        source.write_all(&bytes.to_le_bytes())?;
        let mut left = bytes;
        while left > 0 {
            match source.read(&mut buffer)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                count => left = left.saturating_sub(count as u64),
            }
        }
        Ok(())
    };
    get(STREAM_MIB / 8)?;
    time(receive, STREAM_MIB, || get(STREAM_MIB))
}

/// Reports how long one of `count` operations takes.
fn time(name: &str, count: u64, load: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    let begin = Instant::now();
    load()?;
    println!("{MARK} {name} {}", begin.elapsed().as_nanos() / u128::from(count));
    Ok(())
}

/// Gives the interface its address.
fn bring_up() -> io::Result<()> {
    // SAFETY: A new descriptor, or -1, which is checked.
    let socket = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM, 0) };
    if socket < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: The descriptor is new.
    let socket = unsafe { File::from_raw_fd(socket) };
    // SAFETY: All zeroes are a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(INTERFACE.bytes()) {
        *to = from.cast_signed();
    }
    for (number, address) in [(libc::SIOCSIFADDR, GUEST), (libc::SIOCSIFNETMASK, NETMASK)] {
        let address = libc::sockaddr_in {
            sin_family: u16::try_from(libc::AF_INET).unwrap_or_default(),
            sin_port: 0,
            sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(address.octets()) },
            sin_zero: [0; 8],
        };
        // SAFETY: Both are plain data of the same length.
        request.ifr_ifru.ifru_addr = unsafe { std::mem::transmute::<libc::sockaddr_in, libc::sockaddr>(address) };
        issue(&socket, number, &mut request)?;
    }
    request.ifr_ifru.ifru_flags = i16::try_from(libc::IFF_UP).unwrap_or_default();
    issue(&socket, libc::SIOCSIFFLAGS, &mut request)
}

fn issue(socket: &File, number: libc::c_ulong, request: &mut libc::ifreq) -> io::Result<()> {
    // SAFETY: The request reads an `ifreq`, which this is.
    if unsafe { libc::ioctl(socket.as_raw_fd(), number, &raw mut *request) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// A connection to `port` of the host. It reads and writes like a file.
fn vsock(port: u16) -> io::Result<File> {
    // SAFETY: A new descriptor, or -1, which is checked.
    let socket = unsafe { libc::socket(libc::AF_VSOCK, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0) };
    if socket < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: The descriptor is new.
    let socket = unsafe { File::from_raw_fd(socket) };
    // SAFETY: All zeroes are a valid value.
    let mut address: libc::sockaddr_vm = unsafe { std::mem::zeroed() };
    address.svm_family = u16::try_from(libc::AF_VSOCK).unwrap_or_default();
    address.svm_cid = libc::VMADDR_CID_HOST;
    address.svm_port = port.into();
    let len = u32::try_from(size_of::<libc::sockaddr_vm>()).unwrap_or_default();
    // SAFETY: The address is of the length given.
    if unsafe { libc::connect(socket.as_raw_fd(), (&raw const address).cast(), len) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(socket)
}
