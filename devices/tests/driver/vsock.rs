//! Connections between the guest and UNIX sockets, as the guest's driver and the host's programs see them.

mod machine;

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;

use amphi_devices::virtio::vsock::MAX_CONNECTIONS;

use machine::{
    CID, CREDIT_REQUEST, CREDIT_UPDATE, IN, Machine, OUT, Packet, RECEIVE, REQUEST, RESPONSE, RST, RW, RX, SEND,
    SHUTDOWN, TX, WINDOW, ends, packet,
};
pub(crate) use machine::{Folder, device};

use crate::fuzz::Random;
use crate::guest::{Guest, MEMORY, NEEDS_RESET, STATUS, readable, writable};

#[test]
fn the_guest_knows_its_address() {
    let mut machine = Machine::new(0);
    assert_eq!(machine.guest.read(0x08), 19);
    assert_eq!(machine.guest.config(0), CID.to_le_bytes());
}

#[test]
fn a_program_connects_and_both_speak() {
    for without in [0, 1 << 28, 1 << 29] {
        let mut machine = Machine::new(without);
        let (mut program, port) = machine.connected();
        program.write_all(b"from the host").unwrap();
        assert_eq!(machine.data(), b"from the host");
        machine.send(&Packet { data: b"from the guest".to_vec(), ..packet(80, port, RW) });
        let mut bytes = [0; 14];
        program.read_exact(&mut bytes).unwrap();
        assert_eq!(&bytes, b"from the guest");
    }
}

#[test]
fn what_follows_the_greeting_is_the_guests() {
    let mut machine = Machine::new(0);
    let mut program = machine.folder.client("CONN");
    machine.expect_nothing();
    program.write_all(b"ECT 5\nhello").unwrap();
    let request = machine.expect(REQUEST);
    assert_eq!(request.dst, (CID, 5));
    machine.expect_nothing();
    machine.send(&packet(5, request.src.1, RESPONSE));
    assert_eq!(machine.data(), b"hello");
}

#[test]
fn greetings_that_are_none_end_the_connection() {
    for greeting in ["\n", "CONNECT\n", "CONNECT x\n", "CONNECT -1\n", "CONNECT 4294967296\n", "HELLO 5\n", "\u{e9}\n"]
    {
        let mut machine = Machine::new(0);
        let mut program = machine.folder.client(greeting);
        machine.expect_nothing();
        ends(&mut program);
    }
    let mut machine = Machine::new(0);
    let mut program = machine.folder.client(&"C".repeat(100));
    machine.expect_nothing();
    ends(&mut program);
}

#[test]
fn a_guest_that_refuses_ends_the_programs_connection() {
    let mut machine = Machine::new(0);
    let mut program = machine.folder.client("connect 80\n");
    let request = machine.expect(REQUEST);
    machine.send(&packet(80, request.src.1, RST));
    ends(&mut program);
    machine.expect_nothing();
}

#[test]
fn the_guest_reaches_services_of_the_host() {
    let mut machine = Machine::new(0);
    let service = machine.folder.service(7);
    let mut program = machine.accepted(&service, 1000);
    let mut other = machine.accepted(&service, 1001);
    machine.send(&Packet { data: b"one".to_vec(), ..packet(1000, 7, RW) });
    machine.send(&Packet { data: b"two".to_vec(), ..packet(1001, 7, RW) });
    let mut bytes = [0; 3];
    program.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"one");
    other.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"two");
    other.write_all(b"three").unwrap();
    let answer = machine.expect(RW);
    assert_eq!((answer.src, answer.dst, &*answer.data), ((2, 7), (CID, 1001), &b"three"[..]));
}

#[test]
fn what_is_not_there_is_refused() {
    let mut machine = Machine::new(0);
    let unreachable = [
        packet(1000, 8, REQUEST),
        packet(1000, 8, RW),
        packet(1000, 8, 0),
        packet(1000, 8, 99),
        Packet { dst: (1, 8), ..packet(1000, 8, REQUEST) },
        Packet { dst: (CID, 8), ..packet(1000, 8, REQUEST) },
        Packet { kind: 2, ..packet(1000, 8, REQUEST) },
    ];
    for lost in unreachable {
        machine.send(&lost);
        let refusal = machine.expect(RST);
        assert_eq!((refusal.src, refusal.dst, refusal.kind), (lost.dst, lost.src, lost.kind));
    }
    machine.send(&packet(1000, 8, RST));
    machine.send(&Packet { src: (4, 1000), ..packet(1000, 8, REQUEST) });
    machine.expect_nothing();
}

#[test]
fn either_direction_can_be_closed_alone() {
    let mut machine = Machine::new(0);
    let service = machine.folder.service(7);
    // The guest first.
    let mut program = machine.accepted(&service, 1000);
    machine.send(&Packet { data: b"last".to_vec(), ..packet(1000, 7, RW) });
    machine.send(&Packet { flags: SEND, ..packet(1000, 7, SHUTDOWN) });
    let mut text = String::new();
    program.read_to_string(&mut text).unwrap();
    assert_eq!(text, "last");
    program.write_all(b"answer").unwrap();
    assert_eq!(machine.data(), b"answer");
    drop(program);
    assert_eq!(machine.expect(SHUTDOWN).flags, SEND | RECEIVE);
    machine.send(&packet(1000, 7, RST));
    // The host first.
    let mut program = machine.accepted(&service, 1000);
    program.write_all(b"last").unwrap();
    program.shutdown(Shutdown::Write).unwrap();
    assert_eq!(machine.expect(RW).data, b"last");
    assert_eq!(machine.expect(SHUTDOWN).flags, SEND);
    machine.send(&Packet { data: b"answer".to_vec(), ..packet(1000, 7, RW) });
    machine.send(&Packet { flags: SEND | RECEIVE, ..packet(1000, 7, SHUTDOWN) });
    machine.expect(RST);
    program.read_to_string(&mut text).unwrap();
    assert_eq!(text, "lastanswer");
    machine.expect_nothing();
}

#[test]
fn a_program_that_reads_no_more_is_reported() {
    let mut machine = Machine::new(0);
    let (program, port) = machine.connected();
    drop(program);
    assert_eq!(machine.expect(SHUTDOWN).flags, SEND | RECEIVE);
    // What was under way is dropped.
    machine.send(&Packet { data: vec![1; 1000], ..packet(80, port, RW) });
    machine.expect_nothing();
    machine.send(&packet(80, port, RST));
    machine.send(&packet(80, port, RW));
    machine.expect(RST);
}

#[test]
fn what_the_guest_has_sent_before_it_closed_is_delivered() {
    let mut machine = Machine::new(0);
    let service = machine.folder.service(7);
    let mut program = machine.accepted(&service, 1000);
    let mut sent = 0;
    let mut window = u64::MAX;
    // More than the socket takes, so that the device keeps some.
    while sent < window {
        machine.send(&Packet { data: vec![(sent >> 10) as u8; 1024], ..packet(1000, 7, RW) });
        sent += 1024;
        machine.send(&packet(1000, 7, CREDIT_REQUEST));
        let news = machine.expect(CREDIT_UPDATE);
        if u64::from(news.fwd_cnt) < sent {
            window = u64::from(news.fwd_cnt) + u64::from(news.buf_alloc);
        }
    }
    machine.send(&Packet { flags: SEND | RECEIVE, ..packet(1000, 7, SHUTDOWN) });
    machine.expect(RST);
    // The guest may use its port again at once.
    let _again = machine.accepted(&service, 1000);
    program.set_nonblocking(true).unwrap();
    let mut received: Vec<u8> = Vec::new();
    loop {
        let mut chunk = vec![0; 1 << 16];
        match program.read(&mut chunk) {
            Ok(0) => break,
            Ok(count) => received.extend(&chunk[..count]),
            Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
        }
        machine.guest.run();
    }
    assert_eq!(received.len() as u64, sent);
    assert!(received.chunks(1024).enumerate().all(|(n, chunk)| chunk.iter().all(|&byte| byte == n as u8)));
}

#[test]
fn the_device_respects_the_guests_window() {
    let mut machine = Machine::new(0);
    let (mut program, port) = machine.connected();
    let data: Vec<u8> = (0..59_000_u32).map(|n| (n / 7) as u8).collect();
    program.write_all(&data).unwrap();
    let mut received = Vec::new();
    while received.len() < data.len() {
        let before = received.len();
        loop {
            let packet = machine.next().expect("data, or the question for credit");
            if packet.op == CREDIT_REQUEST {
                break;
            }
            assert_eq!(packet.op, RW);
            received.extend(packet.data);
            if received.len() == data.len() {
                break;
            }
        }
        assert!(received.len() - before <= WINDOW as usize);
        machine.expect_nothing();
        machine.send(&Packet { fwd_cnt: received.len() as u32, ..packet(80, port, CREDIT_UPDATE) });
    }
    assert_eq!(received, data);
    // Nonsense means no room.
    machine.send(&Packet { fwd_cnt: received.len() as u32 + 1, ..packet(80, port, CREDIT_UPDATE) });
    program.write_all(b"more").unwrap();
    machine.expect(CREDIT_REQUEST);
    machine.expect_nothing();
}

#[test]
fn the_guest_is_told_of_new_room() {
    let mut machine = Machine::new(0);
    let service = machine.folder.service(7);
    let mut program = machine.accepted(&service, 1000);
    program.set_nonblocking(true).unwrap();
    let (mut sent, mut passed_on, mut window) = (0_u32, 0, 256 << 10);
    let mut buffer = vec![0; 1 << 20];
    let mut total = 0;
    for _ in 0..200 {
        let room = window - (sent - passed_on);
        let data = vec![5; room.min(16 << 10) as usize];
        sent += data.len() as u32;
        machine.send(&Packet { data, ..packet(1000, 7, RW) });
        while let Ok(count) = program.read(&mut buffer) {
            total += count;
        }
        while let Some(news) = machine.next() {
            assert_eq!(news.op, CREDIT_UPDATE);
            (passed_on, window) = (news.fwd_cnt, news.buf_alloc);
        }
    }
    assert_eq!(sent, 200 * (16 << 10), "there always was room");
    assert_eq!(total, sent as usize);
}

#[test]
fn a_guest_that_overruns_its_window_loses_the_connection() {
    let mut machine = Machine::new(0);
    let service = machine.folder.service(7);
    let mut program = machine.accepted(&service, 1000);
    let other = machine.accepted(&service, 1001);
    let mut sent = 0;
    let refusal = loop {
        machine.send(&Packet { data: vec![3; 60_000], ..packet(1000, 7, RW) });
        sent += 60_000;
        if let Some(answer) = machine.next().filter(|answer| answer.op == RST) {
            break answer;
        }
        assert!(sent < 4 << 20, "nobody reads, and the guest may go on");
    };
    assert_eq!(refusal.dst, (CID, 1000));
    assert_eq!(machine.guest.read(STATUS) & NEEDS_RESET, 0, "other connections go on");
    let mut received = Vec::new();
    let _ = program.read_to_end(&mut received);
    assert!(received.len() < sent);
    machine.send(&Packet { data: b"still here".to_vec(), ..packet(1001, 7, RW) });
    let mut bytes = [0; 10];
    (&other).read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"still here");
}

#[test]
fn packets_out_of_turn_end_the_connection() {
    for (op, flags) in [(REQUEST, 0), (RESPONSE, 0), (0, 0), (8, 0)] {
        let mut machine = Machine::new(0);
        let (mut program, port) = machine.connected();
        machine.send(&Packet { flags, ..packet(80, port, op) });
        machine.expect(RST);
        ends(&mut program);
        machine.expect_nothing();
    }
    // Data after its end, and before the connection is there.
    let mut machine = Machine::new(0);
    let (_program, port) = machine.connected();
    machine.send(&Packet { flags: SEND, ..packet(80, port, SHUTDOWN) });
    machine.send(&Packet { data: vec![1], ..packet(80, port, RW) });
    machine.expect(RST);
    let mut program = machine.folder.client("CONNECT 81\n");
    let request = machine.expect(REQUEST);
    machine.send(&Packet { data: vec![1], ..packet(81, request.src.1, RW) });
    machine.expect(RST);
    ends(&mut program);
}

#[test]
fn a_flood_of_requests_is_answered_in_turn_and_in_bounds() {
    let folder = Folder::new();
    let mut guest = Guest::new(device(&folder));
    guest.start(0);
    // No buffers for the answers: the device keeps a bounded number of them, and leaves the other requests alone.
    let mut machine = Machine { guest, folder };
    let mut answered = 0;
    for port in 0..2000 {
        machine.send_without_notice(&packet(port, 8, REQUEST));
        machine.guest.notify(TX);
        answered += usize::from(machine.guest.used(TX).is_some());
        if answered <= port as usize {
            break;
        }
    }
    assert_eq!(answered, 256);
    machine.fill(100);
    let mut refused = 0;
    while let Some(packet) = machine.next() {
        assert_eq!(packet.op, RST);
        refused += 1;
    }
    assert_eq!(refused, 257);
    machine.expect_nothing();
}

#[test]
fn there_is_a_limit_of_connections() {
    let mut machine = Machine::new(0);
    let service = machine.folder.service(7);
    let mut programs = Vec::new();
    for port in 0..MAX_CONNECTIONS as u32 {
        programs.push(machine.accepted(&service, port));
    }
    machine.send(&packet(5000, 7, REQUEST));
    machine.expect(RST);
    // Programs of the host wait until there is room.
    let _waiting = machine.folder.client("CONNECT 80\n");
    machine.expect_nothing();
    drop(programs.pop());
    assert_eq!(machine.expect(SHUTDOWN).flags, SEND | RECEIVE);
    machine.send(&packet(MAX_CONNECTIONS as u32 - 1, 7, RST));
    machine.expect(REQUEST);
}

#[test]
fn connections_that_come_and_go_leave_room_for_others() {
    let mut machine = Machine::new(0);
    let service = machine.folder.service(7);
    for port in 0..3 * MAX_CONNECTIONS as u32 {
        let program = machine.accepted(&service, port);
        if port % 2 == 0 {
            machine.send(&packet(port, 7, RST));
            drop(program);
        } else {
            drop(program);
            machine.expect(SHUTDOWN);
            machine.send(&Packet { flags: SEND | RECEIVE, ..packet(port, 7, SHUTDOWN) });
            machine.expect(RST);
        }
    }
    machine.expect_nothing();
}

#[test]
fn a_reset_ends_all_connections() {
    let mut machine = Machine::new(0);
    let (mut program, _) = machine.connected();
    let mut waiting = machine.folder.client("CONN");
    machine.expect_nothing();
    machine.guest.write(STATUS, 0);
    machine.guest.run();
    ends(&mut program);
    ends(&mut waiting);
    // Who comes while no driver is there waits for one.
    let mut early = machine.folder.client("CONNECT 90\n");
    machine.guest.run();
    machine.guest.start(0);
    machine.fill(16);
    let request = machine.expect(REQUEST);
    assert_eq!(request.dst.1, 90);
    machine.send(&packet(90, request.src.1, RESPONSE));
    let mut bytes = [0; 3];
    early.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"OK ");
}

#[test]
fn malformed_packets_and_buffers_stop_the_device() {
    let too_long = Packet { data: vec![0; 10], ..packet(1, 2, RW) }.bytes();
    for (what, len) in [("a length beyond the packet", 53), ("half a header", 43), ("nothing", 0)] {
        let mut machine = Machine::new(0);
        machine.guest.put(OUT, &too_long);
        machine.guest.add(TX, &[readable(OUT, len)]);
        machine.guest.notify(TX);
        assert_ne!(machine.guest.read(STATUS) & NEEDS_RESET, 0, "{what}");
        machine.guest.start(0);
        machine.fill(16);
        machine.connected();
    }
    // These are looked at once there is a packet for them.
    for buffer in [writable(IN, 44), readable(IN, 4096), writable(MEMORY - 8, 4096)] {
        let folder = Folder::new();
        let mut guest = Guest::new(device(&folder));
        guest.start(0);
        guest.add(RX, &[buffer]);
        let mut machine = Machine { guest, folder };
        machine.send(&packet(1, 8, REQUEST));
        assert_ne!(machine.guest.read(STATUS) & NEEDS_RESET, 0, "{buffer:?}");
    }
}

/// Plausible packets in a senseless order, while programs come, speak and go.
#[test]
fn random_packets() {
    for seed in 1..=30 {
        let mut random = Random::new(seed);
        let mut machine = Machine::new(random.below(2) << 29);
        let service = machine.folder.service(7);
        let mut programs = Vec::new();
        for _ in 0..400 {
            let pick = |random: &mut Random, plausible: u64, other: u64| {
                if random.below(12) == 0 { other } else { random.below(plausible) }
            };
            let host_port = [7, 7, 7, 8, 1 << 30, (1 << 30) + 1][random.below(6) as usize];
            let data = if random.below(2) == 0 { vec![1; random.below(3000) as usize] } else { Vec::new() };
            let lost = Packet {
                kind: pick(&mut random, 1, 0) as u16 + 1,
                op: pick(&mut random, 8, 0xffff) as u16,
                flags: pick(&mut random, 4, u64::MAX) as u32,
                buf_alloc: pick(&mut random, 10_000, u64::MAX) as u32,
                fwd_cnt: pick(&mut random, 3000, u64::MAX) as u32,
                data,
                ..packet(80 + random.below(3) as u32, host_port, 0)
            };
            machine.send(&lost);
            match random.below(8) {
                0 => programs.push(machine.folder.client(&format!("CONNECT {}\n", 80 + random.below(3)))),
                1 => programs.extend(service.accept().map(|(program, _)| program)),
                2 if !programs.is_empty() => {
                    let _ = programs[0].write_all(&vec![2; random.below(5000) as usize]);
                }
                3 if !programs.is_empty() => drop(programs.remove(0)),
                _ => {}
            }
            // The device may leave what they write where it is.
            programs.iter().for_each(|program| program.set_nonblocking(true).unwrap());
            while machine.next().is_some() {}
            assert_eq!(machine.guest.read(STATUS) & NEEDS_RESET, 0, "packets break no queue");
        }
        drop(programs);
        machine.guest.write(STATUS, 0);
        machine.guest.run();
        machine.guest.start(0);
        machine.fill(16);
        machine.connected();
    }
}
