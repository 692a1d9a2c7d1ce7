//! The console on its event loop: which queue or stream is ready, and what to watch next.

use event_manager::{EventOps, Events, MutEventSubscriber};
use virtio_queue::{Queue, QueueT};
use vm_memory::GuestMemoryMmap;

use super::control::{self, Event, Message};
use super::port::Stop;
use super::{Active, CONTROL_RECEIVE, CONTROL_TRANSMIT, Console, receive_queue, transmit_queue};
use crate::stream::{self, doorbell};
use crate::virtio::chain::QueueError;
use crate::virtio::mmio::VirtioInterrupt;

/// What an event is about, as the 32 bits of data that epoll keeps with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Token {
    Wake,
    /// A queue's index.
    Queue(usize),
    /// An index into the ports.
    Input(usize),
    Output(usize),
}

impl Token {
    fn pack(self) -> u32 {
        let (kind, index) = match self {
            Self::Wake => (0, 0),
            Self::Queue(index) => (1, index),
            Self::Input(index) => (2, index),
            Self::Output(index) => (3, index),
        };
        #[expect(clippy::cast_possible_truncation, reason = "indices are below 2 * MAX_PORTS + 2")]
        let index = index as u32;
        index << 2 | kind
    }

    fn unpack(data: u32) -> Self {
        let index = (data >> 2) as usize;
        match data & 3 {
            0 => Self::Wake,
            1 => Self::Queue(index),
            2 => Self::Input(index),
            _ => Self::Output(index),
        }
    }
}

fn notify(queue: &mut Queue, memory: &GuestMemoryMmap, interrupt: &VirtioInterrupt) -> Result<(), QueueError> {
    if queue.needs_notification(memory)? {
        interrupt.signal_used_queue();
    }
    Ok(())
}

impl Console {
    /// Lets the event loop come back to a queue after the others had their turn.
    fn call_again(&self, queue: usize) {
        if let Some(event) = self.queue_events.as_ref().and_then(|events| events.get(queue))
            && let Err(error) = event.write(1)
        {
            log::error!("cannot continue with virtqueue {queue} of a console: {error}");
        }
    }

    fn dispatch(&mut self, token: Token, ops: &mut EventOps<'_>) -> Result<(), QueueError> {
        match token {
            Token::Wake => {
                self.watch_queues(ops);
                self.control(ops)?;
                (0..self.ports.len()).try_for_each(|port| {
                    self.transmit(port, ops)?;
                    self.receive(port, ops)
                })
            }
            Token::Input(port) => self.receive(port, ops),
            Token::Output(port) => self.transmit(port, ops),
            Token::Queue(CONTROL_RECEIVE | CONTROL_TRANSMIT) => self.control(ops),
            Token::Queue(queue) => {
                let transmits = queue % 2 == 1;
                let port = self.ports.iter().position(|port| receive_queue(port.id) + usize::from(transmits) == queue);
                match port {
                    Some(port) if transmits => self.transmit(port, ops),
                    Some(port) => self.receive(port, ops),
                    None => Ok(()),
                }
            }
        }
    }

    /// The queues' eventfds stay the same over resets: they are watched from the first activation on.
    fn watch_queues(&mut self, ops: &mut EventOps<'_>) {
        if self.watching {
            return;
        }
        let Some(events) = &self.queue_events else { return };
        self.watching = true;
        for (index, event) in events.iter().enumerate() {
            if let Err(error) = ops.add(doorbell(event, Token::Queue(index).pack())) {
                log::error!("cannot watch virtqueue {index} of a console: {error}");
            }
        }
    }

    /// Guest to host. Once a port that is being closed has nothing left, it is closed.
    fn transmit(&mut self, index: usize, ops: &mut EventOps<'_>) -> Result<(), QueueError> {
        let port = &mut self.ports[index];
        let number = transmit_queue(port.id);
        let mut stop = Stop::Queue;
        if let Some(Active { memory, queues, interrupt, .. }) = &mut self.active
            && queues[number].ready()
        {
            let result = port.transmit(&mut queues[number], memory);
            notify(&mut queues[number], memory, interrupt)?;
            stop = result?;
        }
        if let Some(output) = &mut port.output {
            if stop == Stop::Stream {
                output.watch(ops, Token::Output(index).pack());
            } else {
                output.unwatch(ops);
            }
        }
        match stop {
            Stop::Turn => self.call_again(number),
            Stop::Queue if port.closing => {
                port.close();
            }
            Stop::Queue | Stop::Stream | Stop::End => {}
        }
        Ok(())
    }

    /// Host to guest.
    fn receive(&mut self, index: usize, ops: &mut EventOps<'_>) -> Result<(), QueueError> {
        let port = &mut self.ports[index];
        let number = receive_queue(port.id);
        let mut stop = Stop::Queue;
        if let Some(Active { memory, queues, interrupt, .. }) = &mut self.active
            && queues[number].ready()
        {
            let result = port.receive(&mut queues[number], memory);
            notify(&mut queues[number], memory, interrupt)?;
            stop = result?;
        }
        if let Some(input) = &mut port.input {
            if stop == Stop::Stream {
                input.watch(ops, Token::Input(index).pack());
            } else {
                input.unwatch(ops);
            }
        }
        match stop {
            Stop::Turn => self.call_again(number),
            Stop::Queue | Stop::Stream => {}
            Stop::End => {
                port.input = None;
                port.host_open = false;
                if let Some(active) = &mut self.active {
                    active.outbox.push(port.id, Event::PortOpen, false);
                }
                self.deliver()?;
            }
        }
        Ok(())
    }

    /// Hands the waiting control messages to the driver.
    fn deliver(&mut self) -> Result<(), QueueError> {
        let Some(Active { memory, queues, interrupt, outbox }) = &mut self.active else { return Ok(()) };
        let queue = &mut queues[CONTROL_RECEIVE];
        if !queue.ready() {
            outbox.clear();
            return Ok(());
        }
        let result = outbox.deliver(queue, memory);
        notify(queue, memory, interrupt)?;
        result
    }

    fn control(&mut self, ops: &mut EventOps<'_>) -> Result<(), QueueError> {
        self.deliver()?;
        for _ in 0..super::CONTROL_SIZE {
            let Some(Active { memory, queues, interrupt, outbox }) = &mut self.active else { return Ok(()) };
            let queue = &mut queues[CONTROL_TRANSMIT];
            // With a full outbox, the driver's next receive buffer brings us back here.
            if !queue.ready() || outbox.is_full() {
                return self.deliver();
            }
            queue.disable_notification(memory)?;
            let Some(message) = control::receive(queue, memory)? else {
                if queue.enable_notification(memory)? {
                    continue;
                }
                return self.deliver();
            };
            notify(queue, memory, interrupt)?;
            self.handle(message, ops)?;
        }
        self.call_again(CONTROL_TRANSMIT);
        self.deliver()
    }

    fn handle(&mut self, message: Message, ops: &mut EventOps<'_>) -> Result<(), QueueError> {
        let Some(Active { outbox, .. }) = &mut self.active else { return Ok(()) };
        let yes = message.value != 0;
        if message.event == Event::DeviceReady {
            if yes {
                self.ports.iter().for_each(|port| outbox.push(port.id, Event::PortAdd, true));
            }
            return Ok(());
        }
        let Some(index) = self.ports.iter().position(|port| port.id == message.port) else {
            log::debug!("console driver speaks of a port that does not exist: {message:?}");
            return Ok(());
        };
        let port = &mut self.ports[index];
        match message.event {
            Event::PortReady if yes && port.host_open => outbox.push(port.id, Event::PortOpen, true),
            Event::PortReady if !yes => log::info!("the guest could not set up console port {}", port.id),
            Event::PortOpen => {
                // What was sent before a close precedes it in time: it is in the queue already.
                port.closing = !yes && (port.guest_open || port.closing);
                port.guest_open = yes;
                self.transmit(index, ops)?;
                self.receive(index, ops)?;
            }
            _ => {}
        }
        Ok(())
    }

    /// Without queues nothing more can come: streams are not watched, and ports that were closing are closed.
    fn settle(&mut self, ops: &mut EventOps<'_>) {
        for port in &mut self.ports {
            port.input.iter_mut().chain(&mut port.output).for_each(|stream| stream.unwatch(ops));
            if port.closing {
                port.close();
            }
        }
    }
}

impl MutEventSubscriber for Console {
    fn process(&mut self, events: Events, ops: &mut EventOps) {
        stream::block_sigpipe();
        let token = Token::unpack(events.data());
        if let Err(error) = self.dispatch(token, ops)
            && let Some(active) = self.active.take()
        {
            active.interrupt.fail(&error);
        }
        if self.active.is_none() {
            self.settle(ops);
        }
    }

    fn init(&mut self, ops: &mut EventOps) {
        if let Err(error) = ops.add(doorbell(&self.wake, Token::Wake.pack())) {
            log::error!("cannot watch a console's activation: {error}");
        }
    }
}
