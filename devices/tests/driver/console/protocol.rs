//! Control messages, resets, and what a driver must not do.

use super::*;

#[test]
fn shows_as_many_queues_as_the_highest_port_needs() {
    let mut driver = Driver::silent(vec![output(4, file())]);
    assert_eq!(u32::from_le_bytes(driver.guest.config(4)), 5);
    assert_eq!(driver.guest.rings.len(), 12);
    let mut none = Driver::silent(Vec::new());
    assert_eq!(u32::from_le_bytes(none.guest.config(4)), 1);
    assert_eq!(none.guest.rings.len(), 4);
}

#[test]
fn ports_must_have_numbers_of_their_own() {
    assert!(Console::new(vec![output(1, file()), output(1, file())]).is_err());
    assert!(Console::new(vec![output(64, file())]).is_err());
    assert!(Console::new(vec![output(63, file()), output(0, file())]).is_ok());
}

#[test]
fn ports_are_added_and_opened() {
    let (_reader, writer) = pipe();
    let mut driver = Driver::silent(vec![input(2, file()), Port { id: 3, ..Port::default() }, output(1, writer)]);
    assert!(driver.heard().is_empty(), "nothing before the driver is ready");
    driver.say(u32::MAX, DEVICE_READY, 1);
    assert_eq!(driver.heard(), [(1, PORT_ADD, 1), (2, PORT_ADD, 1), (3, PORT_ADD, 1)]);
    driver.say(1, PORT_READY, 1);
    assert_eq!(driver.heard(), [(1, PORT_OPEN, 1)]);
    driver.say(2, PORT_READY, 0);
    driver.say(3, PORT_READY, 1);
    driver.say(0, PORT_READY, 1);
    driver.say(77, PORT_OPEN, 1);
    driver.say(1, 999, 1);
    assert!(driver.heard().is_empty(), "no news of ports that failed, are closed here, or do not exist");
}

#[test]
fn messages_wait_for_buffers() {
    let ports = (1..30).map(|id| output(id, file())).collect();
    let mut driver = Driver::silent(ports);
    driver.say(u32::MAX, DEVICE_READY, 1);
    let mut heard = Vec::new();
    loop {
        let more = driver.heard();
        if more.is_empty() {
            break;
        }
        heard.extend(more.into_iter().map(|(id, _, _)| id));
    }
    assert_eq!(heard, (1..30).collect::<Vec<_>>());
}

#[test]
fn a_driver_that_does_not_listen_is_not_listened_to() {
    let ports = (1..64).map(|id| output(id, file())).collect();
    let mut driver = Driver { guest: Guest::new(Console::new(ports).unwrap()) };
    driver.guest.start(0);
    driver.guest.put(MESSAGES, &[0xff, 0xff, 0xff, 0xff, 0, 0, 1, 0]);
    for _ in 0..16 {
        driver.guest.add(CONTROL_OUT, &[readable(MESSAGES, 8)]);
    }
    driver.guest.notify(CONTROL_OUT);
    let taken = std::iter::from_fn(|| driver.guest.used(CONTROL_OUT)).count();
    assert!((1..16).contains(&taken), "{taken} messages taken, each of which asks for 63 answers");
}

#[test]
fn a_guest_that_resets_the_console_loses_nothing() {
    let (mut reader, writer) = pipe();
    let (mut other, other_writer) = pipe();
    let mut driver = Driver::open(vec![output(1, writer), output(2, other_writer)]);
    driver.guest.put(DATA, b"last words");
    driver.guest.add(transmit_queue(1), &[readable(DATA, 10)]);
    driver.guest.write(STATUS, 0);
    assert_eq!(drain(&mut reader, 10), b"last words");
    driver.guest.run();
    for without in [0, F_EVENT_IDX] {
        driver.start(without);
        driver.open_ports(&[1, 2]);
        driver.send(1, b"again");
        driver.send(2, b"too");
        assert_eq!((drain(&mut reader, 5), drain(&mut other, 3)), (b"again".to_vec(), b"too".to_vec()));
    }
}

#[test]
fn a_reset_ends_what_was_closing() {
    let (reader, writer) = pipe();
    let (closed, on_closed) = counter();
    let mut driver = Driver::open(vec![Port { on_closed: Some(on_closed), ..output(1, writer) }]);
    for _ in 0..4 {
        driver.send(1, &[b'x'; 32 << 10]);
    }
    driver.say(1, PORT_OPEN, 0);
    assert_eq!(closed.load(Ordering::SeqCst), 0);
    driver.guest.write(STATUS, 0);
    driver.guest.run();
    assert_eq!(closed.load(Ordering::SeqCst), 1);
    drop(reader);
}

#[test]
fn a_port_that_reopens_outlasts_its_closing() {
    let (mut reader, writer) = pipe();
    let mut driver = Driver::open(vec![Port { reopens: true, ..output(1, writer) }]);
    driver.send(1, b"one");
    driver.say(1, PORT_OPEN, 0);
    driver.say(1, PORT_OPEN, 1);
    driver.send(1, b"two");
    driver.say(1, PORT_OPEN, 0);
    driver.guest.transport.reset();
    driver.guest.run();
    driver.start(0);
    driver.open_ports(&[1]);
    driver.send(1, b"three");
    assert_eq!(drain(&mut reader, 11), b"onetwothree");
}

#[test]
fn closing_twice_is_closing() {
    let (mut reader, writer) = pipe();
    let (closed, on_closed) = counter();
    let mut driver = Driver::open(vec![Port { on_closed: Some(on_closed), ..output(1, writer) }]);
    for _ in 0..4 {
        driver.send(1, &[b'x'; 32 << 10]);
    }
    driver.say(1, PORT_OPEN, 0);
    driver.say(1, PORT_OPEN, 0);
    assert_eq!(closed.load(Ordering::SeqCst), 0);
    drain(&mut reader, 64 << 10);
    driver.guest.run();
    drain(&mut reader, 64 << 10);
    driver.guest.run();
    assert_eq!(closed.load(Ordering::SeqCst), 1);
}

#[test]
fn without_multiport_there_is_port_0() {
    let (mut reader, writer) = pipe();
    let mut driver = Driver { guest: Guest::new(Console::new(vec![output(0, writer)]).unwrap()) };
    driver.guest.start(F_MULTIPORT);
    driver.send(0, b"plain");
    assert_eq!(drain(&mut reader, 5), b"plain");
}

#[test]
fn a_broken_port_stops_the_device_and_its_watching() {
    let (reader, writer) = pipe();
    let mut driver = Driver::open(vec![output(1, writer), output(2, file())]);
    for _ in 0..4 {
        driver.send(1, &[b'x'; 32 << 10]);
    }
    driver.guest.offer(transmit_queue(2), 9999);
    driver.guest.notify(transmit_queue(2));
    assert_ne!(driver.guest.read(STATUS) & NEEDS_RESET, 0);
    drop(reader);
    driver.guest.run();
}
