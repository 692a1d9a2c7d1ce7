//! A 16550A serial port, over the register model of `vm-superio`.

use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use event_manager::{EventOps, Events, MutEventSubscriber};
use libc::iovec;
use vm_superio::serial::SerialEvents;
use vm_superio::{Serial as Uart, Trigger};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::stream::{Direction, Stream, doorbell, would_block};
use crate::{BusDevice, Interrupt};

/// The first port of COM1.
pub const COM1_PORT: u64 = 0x3f8;
/// The interrupt of COM1.
pub const COM1_IRQ: u32 = 4;
/// The length in bytes of the device's range.
pub const SERIAL_SIZE: u64 = 8;

/// The data register, or the low byte of the divisor; and what that is at first.
const DATA: u8 = 0;
const DIVISOR_OF_9600: u8 = 12;
/// The interrupt enable register, or the high byte of the divisor, and its bit for received data.
const INTERRUPT_ENABLE: u8 = 1;
const RECEIVED_DATA: u8 = 1;
/// The interrupt identification register.
const INTERRUPT_IDENTIFICATION: u8 = 2;
/// The line control register, what is in it at first, and its bit that puts the divisor latch in the place of other registers.
const LINE_CONTROL: u8 = 3;
const EIGHT_BITS: u8 = 0b11;
const DIVISOR_LATCH: u8 = 1 << 7;
/// The modem control register; its bit that lets interrupts out to the PC's controller, and the one that feeds the
/// output back to the input.
const MODEM_CONTROL: u8 = 4;
const OUT2: u8 = 1 << 3;
const LOOPBACK: u8 = 1 << 4;
/// The register without a meaning.
const SCRATCH: u8 = 7;
/// The size of the receive FIFO.
const FIFO: usize = 64;
/// The data of the input's events.
const INPUT_TOKEN: u32 = 1;

struct Line(Box<dyn Interrupt>);

impl Trigger for Line {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.trigger()
    }
}

/// Input stops while the guest does not take it, and goes on when it has read everything.
#[derive(Clone)]
struct FlowControl(Arc<Flow>);

struct Flow {
    paused: AtomicBool,
    resume: EventFd,
}

impl FlowControl {
    fn pause(&self) {
        self.0.paused.store(true, Ordering::Relaxed);
    }

    fn resume(&self) {
        if self.0.paused.swap(false, Ordering::Relaxed)
            && let Err(error) = self.0.resume.write(1)
        {
            log::error!("cannot resume the serial port's input: {error}");
        }
    }
}

impl SerialEvents for FlowControl {
    fn buffer_read(&self) {}
    fn out_byte(&self) {}
    fn tx_lost_byte(&self) {}
    fn in_buffer_empty(&self) {
        self.resume();
    }
}

/// A serial port; the PC's COM1 is at [`COM1_PORT`] and [`COM1_IRQ`].
///
/// Each byte of the guest's is written to the output at once, on the vCPU's thread: nothing is lost whenever the
/// process ends, and an output that waits makes the guest wait.
///
/// Input waits until the guest has enabled the interrupt for received data and let interrupts out: a driver that is
/// starting up throws away what the FIFO holds, and one that only probes the port sets either for a moment, not both.
pub struct Serial {
    uart: Uart<Line, FlowControl, Box<dyn Write + Send>>,
    input: Option<Stream>,
    flow: FlowControl,
    loopback: bool,
    divisor_latch: bool,
    data_interrupt: bool,
    interrupts_out: bool,
}

impl Serial {
    /// A serial port that writes what the guest sends to `output`, and sends what it reads from `input`, which is never
    /// waited for. Without an event loop the port has no input.
    ///
    /// # Errors
    /// `input` cannot be examined, or an eventfd cannot be made.
    pub fn new(
        interrupt: Box<dyn Interrupt>,
        output: Box<dyn Write + Send>,
        input: Option<OwnedFd>,
    ) -> io::Result<Self> {
        let flow = Flow { paused: AtomicBool::new(true), resume: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)? };
        let flow = FlowControl(Arc::new(flow));
        let uart = Uart::with_events(Line(interrupt), flow.clone(), output);
        let input = input.map(|fd| Stream::new(fd, Direction::Input)).transpose()?;
        Ok(Self {
            uart,
            input,
            flow,
            loopback: false,
            divisor_latch: false,
            data_interrupt: false,
            interrupts_out: false,
        })
    }

    /// Puts the registers back to what they were at first, and forgets the input that the guest has not taken. Where input comes from
    /// and output goes stays as it is.
    pub fn reset(&mut self) {
        // First what hides other registers: loopback, the divisor latch.
        let values = [
            (MODEM_CONTROL, OUT2),
            (LINE_CONTROL, DIVISOR_LATCH | EIGHT_BITS),
            (DATA, DIVISOR_OF_9600),
            (INTERRUPT_ENABLE, 0),
            (LINE_CONTROL, EIGHT_BITS),
            (INTERRUPT_ENABLE, 0),
            (SCRATCH, 0),
        ];
        for (register, value) in values {
            if let Err(error) = self.uart.write(register, value) {
                log::debug!("serial port: {error}");
            }
        }
        (self.loopback, self.divisor_latch, self.data_interrupt, self.interrupts_out) = (false, false, false, false);
        while self.uart.fifo_capacity() < FIFO {
            self.uart.read(DATA);
        }
        // What was pending is taken back by being read.
        self.uart.read(INTERRUPT_IDENTIFICATION);
    }

    /// Whether the guest waits for input. In loopback mode the receiver is cut off from the line.
    fn is_receiving(&self) -> bool {
        self.data_interrupt && self.interrupts_out && !self.loopback
    }

    /// Gives the guest what there is to read, as far as its FIFO takes it. Returns whether to wait for more input.
    fn fill(&mut self) -> bool {
        let receiving = self.is_receiving();
        let Some(input) = &mut self.input else { return false };
        loop {
            let mut bytes = [0_u8; FIFO];
            let room = self.uart.fifo_capacity().min(FIFO);
            if room == 0 || !receiving {
                self.flow.pause();
                return false;
            }
            let buffer = iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: room };
            // SAFETY: The buffer is a local array of at least `room` bytes.
            match unsafe { input.transfer(&[buffer]) } {
                Ok(count) if count > 0 => {
                    if let Err(error) = self.uart.enqueue_raw_bytes(&bytes[..count]) {
                        log::error!("cannot interrupt the guest for the serial port's input: {error}");
                    }
                }
                Err(error) if would_block(&error) => return true,
                end => {
                    if let Err(error) = end {
                        log::info!("serial port takes a failed read for the end of its input: {error}");
                    }
                    return false;
                }
            }
        }
    }
}

impl BusDevice for Serial {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        if let ([value], Ok(offset)) = (data, u8::try_from(offset)) {
            *value = self.uart.read(offset);
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let (&[value], Ok(offset)) = (data, u8::try_from(offset)) else { return };
        if let Err(error) = self.uart.write(offset, value) {
            log::debug!("serial port: {error}");
        }
        match offset {
            LINE_CONTROL => self.divisor_latch = value & DIVISOR_LATCH != 0,
            MODEM_CONTROL => {
                self.loopback = value & LOOPBACK != 0;
                self.interrupts_out = value & OUT2 != 0;
            }
            INTERRUPT_ENABLE if !self.divisor_latch => self.data_interrupt = value & RECEIVED_DATA != 0,
            _ => return,
        }
        if self.is_receiving() {
            self.flow.resume();
        }
    }
}

impl MutEventSubscriber for Serial {
    fn process(&mut self, _events: Events, ops: &mut EventOps) {
        let more = self.fill();
        let paused = self.flow.0.paused.load(Ordering::Relaxed);
        if let Some(input) = &mut self.input {
            if more {
                input.watch(ops, INPUT_TOKEN);
            } else {
                input.unwatch(ops);
            }
        }
        if !more && !paused {
            self.input = None;
        }
    }

    fn init(&mut self, ops: &mut EventOps) {
        if let Err(error) = ops.add(doorbell(&self.flow.0.resume, 0)) {
            log::error!("cannot watch the serial port: {error}");
        }
        // Begins to read.
        self.flow.resume();
    }
}
