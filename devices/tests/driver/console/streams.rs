//! Bytes through ports, in both directions.

use super::*;

#[test]
fn output_is_delivered_and_its_first_byte_noted() {
    let (mut reader, writer) = pipe();
    let (first, on_first_output) = counter();
    let mut driver = Driver::open(vec![Port { on_first_output: Some(on_first_output), ..output(1, writer) }]);
    driver.send(1, b"");
    assert_eq!(first.load(Ordering::SeqCst), 0);
    driver.send(1, b"hello, ");
    assert_eq!(first.load(Ordering::SeqCst), 1);
    driver.send(1, b"world");
    assert_eq!(drain(&mut reader, 12), b"hello, world");
    assert_eq!((driver.sent(1), first.load(Ordering::SeqCst)), (3, 1));
    assert!(driver.guest.interrupted());
}

#[test]
fn closing_delivers_everything_first() {
    let (mut reader, writer) = pipe();
    let (closed, on_closed) = counter();
    let mut driver = Driver::open(vec![Port { on_closed: Some(on_closed), ..output(1, writer) }]);
    let block: Vec<u8> = (0..=255).cycle().take(48 << 10).collect();
    // More than a pipe holds, put there without a notification.
    driver.guest.put(DATA, &block);
    for _ in 0..10 {
        driver.guest.add(transmit_queue(1), &[readable(DATA, block.len() as u32)]);
    }
    driver.say(1, PORT_OPEN, 0);
    let mut read = Vec::new();
    while read.len() < 10 * block.len() {
        // The pipe itself holds 64 KiB.
        if 10 * block.len() - read.len() > 64 << 10 {
            assert_eq!(closed.load(Ordering::SeqCst), 0, "{} bytes are read", read.len());
        }
        read.extend(drain(&mut reader, 16 << 10));
        driver.guest.run();
    }
    assert!(read == block.repeat(10));
    assert_eq!(closed.load(Ordering::SeqCst), 1);
    assert_eq!(reader.read(&mut [0]).unwrap(), 0, "the writing end is closed");
    driver.say(1, PORT_OPEN, 1);
    driver.send(1, b"too late");
    driver.say(1, PORT_OPEN, 0);
    assert_eq!(closed.load(Ordering::SeqCst), 1, "once");
    assert_eq!(driver.sent(1), 11);
}

#[test]
fn a_full_pipe_holds_up_its_own_port_only() {
    let (mut slow, slow_writer) = pipe();
    let (mut fast, fast_writer) = pipe();
    let shared = slow_writer.try_clone().unwrap();
    let mut driver = Driver::open(vec![output(1, slow_writer), output(2, fast_writer)]);
    for _ in 0..4 {
        driver.send(1, &[b'x'; 32 << 10]);
    }
    assert_eq!(driver.sent(1), 2, "a pipe holds 64 KiB");
    driver.send(2, b"still here");
    assert_eq!(drain(&mut fast, 10), b"still here");
    // SAFETY: No memory is involved.
    let flags = unsafe { libc::fcntl(shared.as_raw_fd(), libc::F_GETFL) };
    assert_eq!(flags & libc::O_NONBLOCK, 0, "others who have the pipe see no change");
    for _ in 0..8 {
        assert!(drain(&mut slow, 16 << 10).iter().all(|&byte| byte == b'x'));
        driver.guest.run();
    }
    assert_eq!(driver.sent(1), 2);
}

#[test]
fn a_reader_that_is_gone_does_not_hang_the_guest() {
    let (reader, writer) = pipe();
    let (closed, on_closed) = counter();
    // What a program has that is not written in Rust.
    // SAFETY: The default action is a valid one.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
    let mut driver = Driver::open(vec![Port { on_closed: Some(on_closed), ..output(1, writer) }]);
    driver.send(1, b"one");
    drop(reader);
    for _ in 0..100 {
        driver.send(1, b"many more");
    }
    assert_eq!(driver.sent(1), 101);
    driver.say(1, PORT_OPEN, 0);
    assert_eq!(closed.load(Ordering::SeqCst), 1);
}

#[test]
fn a_reader_may_go_while_the_port_waits() {
    for early in [false, true] {
        let (reader, writer) = pipe();
        let mut reader = Some(reader).filter(|_| !early);
        let mut driver = Driver::open(vec![output(1, writer)]);
        for _ in 0..4 {
            driver.send(1, &[b'x'; 32 << 10]);
        }
        drop(reader.take());
        driver.guest.run();
        assert_eq!(driver.sent(1), 4);
    }
}

#[test]
fn input_waits_for_the_guest() {
    let (reader, mut writer) = pipe();
    let probe = reader.try_clone().unwrap();
    let mut driver = Driver::silent(vec![input(1, reader)]);
    driver.post(1, 16);
    writer.write_all(b"0123456789abcdefghij").unwrap();
    driver.guest.run();
    assert_eq!(driver.received(1), None, "not before the guest has opened the port");
    driver.open_ports(&[1]);
    assert_eq!(driver.received(1).unwrap(), b"0123456789abcdef");
    assert_eq!(driver.received(1), None);
    // Without a buffer, the rest stays in the pipe.
    let mut waiting: libc::c_int = 0;
    // SAFETY: FIONREAD writes one int.
    unsafe { libc::ioctl(probe.as_raw_fd(), libc::FIONREAD, &raw mut waiting) };
    assert_eq!(waiting, 4);
    driver.post(1, 16);
    assert_eq!(driver.received(1).unwrap(), b"ghij");
    driver.post(1, 16);
    assert_eq!(driver.received(1), None);
    writer.write_all(b"!").unwrap();
    driver.guest.run();
    assert_eq!(driver.received(1).unwrap(), b"!");
    assert!(driver.guest.interrupted());
}

#[test]
fn the_end_of_input_closes_the_port() {
    for empty in [false, true] {
        let (reader, mut writer) = pipe();
        let mut driver = Driver::open(vec![input(1, reader)]);
        assert_eq!(driver.heard(), [(1, PORT_OPEN, 1)]);
        if !empty {
            writer.write_all(b"last").unwrap();
        }
        drop(writer);
        driver.guest.run();
        driver.post(1, 2);
        driver.post(1, 8);
        if !empty {
            assert_eq!(driver.guest.used(receive_queue(1)).unwrap().1, 2);
            assert_eq!(driver.received(1).unwrap(), b"st");
            driver.post(1, 8);
        }
        assert_eq!(driver.heard(), [(1, PORT_OPEN, 0)]);
        driver.post(1, 8);
        driver.guest.run();
        assert!(driver.heard().is_empty(), "once");
    }
}

#[test]
fn sockets_carry_both_directions() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let mut ours = ours;
    let port =
        Port { id: 1, input: Some(theirs.try_clone().unwrap().into()), output: Some(theirs.into()), ..Port::default() };
    let mut driver = Driver::open(vec![port]);
    driver.send(1, b"question");
    let mut bytes = [0; 8];
    ours.read_exact(&mut bytes).unwrap();
    assert_eq!((&bytes, driver.sent(1)), (b"question", 1));
    driver.post(1, 64);
    ours.write_all(b"answer").unwrap();
    driver.guest.run();
    assert_eq!(driver.received(1).unwrap(), b"answer");
    // Backpressure on a socket, then a peer that is gone.
    ours.set_nonblocking(true).unwrap();
    let mut taken = 0;
    for _ in 0..32 {
        driver.send(1, &[7; 32 << 10]);
        taken += driver.sent(1);
    }
    assert!(taken < 32, "a socket's buffer is not that large");
    let mut read = 0;
    let mut chunk = vec![0; 64 << 10];
    while read < 32 * (32 << 10) {
        match ours.read(&mut chunk) {
            Ok(count) => read += count,
            Err(error) if error.kind() == ErrorKind::WouldBlock => driver.guest.run(),
            Err(error) => panic!("{error}"),
        }
    }
    assert_eq!(taken + driver.sent(1), 32);
    drop(ours);
    driver.send(1, b"anybody?");
    assert_eq!(driver.sent(1), 1);
    driver.post(1, 64);
    assert!(driver.heard().contains(&(1, PORT_OPEN, 0)));
}

#[test]
fn files_and_devices_need_no_watching() {
    let kept = file();
    let source = {
        use std::os::unix::fs::FileExt;
        let file = file();
        file.write_all_at(b"from a file", 0).unwrap();
        file
    };
    let null = || File::options().read(true).write(true).open("/dev/null").unwrap();
    let ports = vec![output(1, kept.try_clone().unwrap()), input(2, source), output(3, null()), input(4, null())];
    let mut driver = Driver::open(ports);
    driver.heard();
    driver.send(1, b"to a file");
    driver.send(3, &[0; 20_000]);
    driver.post(2, 64);
    assert_eq!(driver.received(2).unwrap(), b"from a file");
    driver.post(2, 64);
    driver.post(4, 64);
    assert_eq!(driver.heard(), [(2, PORT_OPEN, 0), (4, PORT_OPEN, 0)]);
    assert_eq!((driver.sent(1), driver.sent(3)), (1, 1));
    assert_eq!(kept.metadata().unwrap().len(), 9);
}

#[test]
fn a_full_disk_is_a_reader_that_is_gone() {
    let mut driver = Driver::open(vec![output(1, File::options().write(true).open("/dev/full").unwrap())]);
    driver.send(1, b"no space");
    driver.send(1, b"no space");
    assert_eq!(driver.sent(1), 2);
}

#[test]
fn large_output_is_moved_in_turns() {
    let kept = file();
    let mut driver = Driver::open(vec![output(1, kept.try_clone().unwrap())]);
    let chain: Vec<_> = (0..30).map(|_| readable(DATA, 100_000)).collect();
    driver.guest.add(transmit_queue(1), &chain);
    driver.guest.add(transmit_queue(1), &chain);
    driver.guest.notify(transmit_queue(1));
    assert_eq!(driver.sent(1), 2);
    assert_eq!(kept.metadata().unwrap().len(), 6_000_000);
}
