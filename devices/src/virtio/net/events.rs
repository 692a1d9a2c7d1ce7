//! The network device on its event loop.

use std::os::fd::AsRawFd;

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};

use super::backend::Backend;
use super::receive::ReceiveError;
use super::{Active, Net, RECEIVE, Stop, TRANSMIT};
use crate::stream::doorbell;
use crate::virtio::chain::QueueError;

/// What an event is about, as the data that epoll keeps with it.
const ACTIVATED: u32 = 0;
const RECEIVE_QUEUE: u32 = 1;
const TRANSMIT_QUEUE: u32 = 2;
const BACKEND: u32 = 3;
const RECEIVE_LIMIT: u32 = 4;
const TRANSMIT_LIMIT: u32 = 5;

impl Net {
    /// All that is watched stays the same over resets: from the first activation on, and edge-triggered, so that
    /// nothing needs to be changed where one side keeps the other waiting.
    fn watch(&mut self, ops: &mut EventOps<'_>) {
        if self.watching {
            return;
        }
        let Some(events) = &self.queue_events else { return };
        self.watching = true;
        let edge = |fd, token, set| Events::with_data_raw(fd, token, set | EventSet::EDGE_TRIGGERED);
        let limits = [(&self.receive_limit, RECEIVE_LIMIT), (&self.transmit_limit, TRANSMIT_LIMIT)];
        let limits = limits
            .iter()
            .filter_map(|(limit, token)| limit.as_ref().map(|limit| edge(limit.as_raw_fd(), *token, EventSet::IN)));
        let queues = [(RECEIVE, RECEIVE_QUEUE), (TRANSMIT, TRANSMIT_QUEUE)];
        let queues = queues.iter().map(|(queue, token)| doorbell(&events[*queue], *token));
        let backend = edge(self.backend.as_raw_fd(), BACKEND, EventSet::IN | EventSet::OUT);
        for events in queues.chain(limits).chain([backend]) {
            if let Err(error) = ops.add(events) {
                log::error!("cannot watch a descriptor of a network device: {error}");
            }
        }
    }

    /// Lets the event loop come back to a queue after the others had their turn.
    fn call_again(&self, queue: usize) {
        if let Some(events) = &self.queue_events
            && let Err(error) = events[queue].write(1)
        {
            log::error!("cannot continue with a queue of a network device: {error}");
        }
    }

    fn receive(&mut self, ops: &mut EventOps<'_>) -> Result<(), QueueError> {
        let Some(active) = self.active.as_mut().filter(|_| self.link_up) else { return Ok(()) };
        let Active { memory, interrupt, receiver, .. } = active;
        let (result, wanted) = receiver.run(&mut *self.backend, memory, &mut self.receive_limit);
        if wanted {
            interrupt.signal_used_queue();
        }
        match result {
            Ok(Stop::Turn) => self.call_again(RECEIVE),
            Ok(Stop::Queue | Stop::Backend | Stop::Limit) => {}
            Err(ReceiveError::Queue(error)) => return Err(error),
            Err(ReceiveError::Backend(error)) => self.unplug(&error, ops),
        }
        Ok(())
    }

    fn transmit(&mut self) -> Result<(), QueueError> {
        let Some(active) = &mut self.active else { return Ok(()) };
        let backend: Option<&mut dyn Backend> = if self.link_up { Some(&mut *self.backend) } else { None };
        let (result, wanted) = active.transmitter.run(backend, &active.memory, &mut self.transmit_limit);
        if wanted {
            active.interrupt.signal_used_queue();
        }
        let stop = result?;
        active.backend_full = stop == Stop::Backend;
        if stop == Stop::Turn {
            self.call_again(TRANSMIT);
        }
        Ok(())
    }

    /// The backend can take more.
    fn continue_sending(&mut self, ops: &mut EventOps<'_>) -> Result<(), QueueError> {
        if self.link_up
            && let Err(error) = self.backend.flush()
        {
            if error.kind() != std::io::ErrorKind::WouldBlock {
                self.unplug(&error, ops);
            }
            return Ok(());
        }
        if self.active.as_ref().is_some_and(|active| active.backend_full) { self.transmit() } else { Ok(()) }
    }

    /// The backend has failed: the driver sees its link go down, and what it sends is lost.
    fn unplug(&mut self, error: &std::io::Error, ops: &mut EventOps<'_>) {
        log::warn!("a network device's link is down, because its host side has ended: {error}");
        self.link_up = false;
        if let Err(error) = ops.remove(Events::empty_raw(self.backend.as_raw_fd())) {
            log::error!("cannot stop watching a network device's host side: {error}");
        }
        if let Some(active) = &self.active {
            active.interrupt.signal_config_change(&self.config_space());
        }
        // Frames that wait for the backend wait for nothing now.
        self.call_again(TRANSMIT);
    }

    fn dispatch(&mut self, events: Events, ops: &mut EventOps<'_>) -> Result<(), QueueError> {
        match events.data() {
            ACTIVATED => {
                self.watch(ops);
                self.transmit()?;
                self.receive(ops)
            }
            RECEIVE_QUEUE | RECEIVE_LIMIT => self.receive(ops),
            TRANSMIT_QUEUE | TRANSMIT_LIMIT => self.transmit(),
            _ => {
                if events.event_set().contains(EventSet::OUT) {
                    self.continue_sending(ops)?;
                }
                self.receive(ops)
            }
        }
    }
}

impl MutEventSubscriber for Net {
    fn process(&mut self, events: Events, ops: &mut EventOps) {
        if let Err(error) = self.dispatch(events, ops)
            && let Some(active) = self.active.take()
        {
            active.interrupt.fail(&error);
        }
    }

    fn init(&mut self, ops: &mut EventOps) {
        if let Err(error) = ops.add(doorbell(&self.activated, ACTIVATED)) {
            log::error!("cannot watch a network device's activation: {error}");
        }
    }
}
