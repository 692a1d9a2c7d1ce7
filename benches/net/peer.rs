//! The guests' peer: a network namespace with a tap interface, and threads that answer there and on UNIX sockets.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Command;
use std::thread;

/// The tap interface. All VMMs use the same one, in turn.
pub(crate) const TAP: &str = "bench0";
/// The address of the guests' interfaces: always the same, so that nobody looks for an old one.
pub(crate) const MAC: &str = "06:00:0a:4d:00:02";
/// The host's address on the tap interface.
pub(crate) const HOST: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
/// Sends back what comes.
pub(crate) const ECHO: u16 = 7000;
/// Takes as many bytes as the first eight say, then says so, and again.
pub(crate) const SINK: u16 = 7001;
/// Sends as many bytes as eight bytes ask for, and again.
pub(crate) const SOURCE: u16 = 7002;

const CHUNK: usize = 64 << 10;

/// Moves this thread, and all that it starts from here on, to a network namespace of its own with a tap interface.
pub(crate) fn enter_namespace() -> Result<(), String> {
    // SAFETY: No memory is involved.
    if unsafe { libc::unshare(libc::CLONE_NEWNET) } < 0 {
        return Err(format!("no network namespace (are you root?): {}", io::Error::last_os_error()));
    }
    // What IPv6 says by itself would be part of the figures.
    let _ = std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1");
    let address = format!("{HOST}/24");
    let commands: [&[&str]; 4] = [
        &["link", "set", "lo", "up"],
        &["tuntap", "add", "dev", TAP, "mode", "tap"],
        &["addr", "add", &address, "dev", TAP],
        &["link", "set", TAP, "up"],
    ];
    for words in commands {
        let status = Command::new("ip").args(words).status().map_err(|error| format!("ip (iproute2): {error}"))?;
        if !status.success() {
            return Err(format!("ip {}: {status}", words.join(" ")));
        }
    }
    Ok(())
}

/// Answers on TCP, in this thread's namespace, and at `sockets`_PORT for each of the vsock devices with these paths.
pub(crate) fn serve(sockets: &[&Path]) -> io::Result<()> {
    for (port, service) in [(ECHO, echo as Service), (SINK, sink), (SOURCE, source)] {
        let listener = TcpListener::bind(SocketAddrV4::new(HOST, port))?;
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let _ = stream.set_nodelay(true);
                thread::spawn(move || service(&mut &stream, &mut &stream));
            }
        });
        for path in sockets {
            let listener = UnixListener::bind(format!("{}_{port}", path.display()))?;
            thread::spawn(move || {
                for stream in listener.incoming().flatten() {
                    thread::spawn(move || service(&mut &stream, &mut &stream));
                }
            });
        }
    }
    Ok(())
}

/// Ends with its connection, which is no error.
type Service = fn(&mut dyn Read, &mut dyn Write) -> io::Result<()>;

fn echo(from: &mut dyn Read, to: &mut dyn Write) -> io::Result<()> {
    let mut buffer = [0; 64];
    loop {
        match from.read(&mut buffer)? {
            0 => return Ok(()),
            count => to.write_all(&buffer[..count])?,
        }
    }
}

fn count(from: &mut dyn Read) -> io::Result<usize> {
    let mut count = [0; 8];
    from.read_exact(&mut count)?;
    usize::try_from(u64::from_le_bytes(count)).map_err(io::Error::other)
}

fn sink(from: &mut dyn Read, to: &mut dyn Write) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    loop {
        let mut left = count(from)?;
        while left > 0 {
            let room = left.min(CHUNK);
            match from.read(&mut buffer[..room])? {
                0 => return Ok(()),
                count => left -= count,
            }
        }
        to.write_all(&[1])?;
    }
}

fn source(from: &mut dyn Read, to: &mut dyn Write) -> io::Result<()> {
    let buffer = vec![0x5a; CHUNK];
    loop {
        let mut left = count(from)?;
        while left > 0 {
            let chunk = left.min(CHUNK);
            to.write_all(&buffer[..chunk])?;
            left -= chunk;
        }
    }
}
