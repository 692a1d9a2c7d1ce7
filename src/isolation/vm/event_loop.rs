//! The thread on which all devices of a machine do their queue work.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use event_manager::{EventManager, EventOps, EventSet, Events, MutEventSubscriber, SubscriberOps};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::error::VmError;
use super::{seccomp, signals};

/// A device as the event loop sees it.
pub(super) type Subscriber = Arc<Mutex<dyn MutEventSubscriber + Send>>;

/// How many rounds of events a stopping loop still serves. Each round takes what the guest sent before its end; more
/// than a few can only come from input that keeps arriving.
const LAST_ROUNDS: usize = 64;
/// How long it serves them: a guest that has asked for a lot cannot hold up its own end.
const LAST_TIME: Duration = Duration::from_secs(1);

/// The event loop, before and while it runs.
pub(super) struct EventLoop {
    waiting: Mutex<Option<EventManager<Subscriber>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
    stop: EventFd,
}

/// Watches the eventfd that ends the loop.
struct StopSubscriber {
    event: EventFd,
    stopped: Arc<AtomicBool>,
}

impl MutEventSubscriber for StopSubscriber {
    fn process(&mut self, _events: Events, _ops: &mut EventOps) {
        let _ = self.event.read();
        self.stopped.store(true, Ordering::Relaxed);
    }

    fn init(&mut self, ops: &mut EventOps) {
        if let Err(error) = ops.add(Events::new(&self.event, EventSet::IN)) {
            log::error!("the event loop cannot watch its stop event: {error}");
        }
    }
}

/// Calls its function where the devices' thread fails, or panics.
struct OnFailure<F: FnOnce(VmError)>(Option<F>);

impl<F: FnOnce(VmError)> OnFailure<F> {
    fn call(&mut self, error: VmError) {
        if let Some(on_failure) = self.0.take() {
            on_failure(error);
        }
    }
}

impl<F: FnOnce(VmError)> Drop for OnFailure<F> {
    fn drop(&mut self) {
        self.call(VmError::Failed("the devices' thread panicked".to_owned()));
    }
}

impl EventLoop {
    /// A loop that will serve `subscribers`.
    pub(super) fn new(subscribers: Vec<Subscriber>) -> Result<Self, VmError> {
        let mut manager = EventManager::new()
            .map_err(|error| VmError::host("make an event loop")(std::io::Error::other(format!("{error}"))))?;
        for subscriber in subscribers {
            manager.add_subscriber(subscriber);
        }
        let stop = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(VmError::host("make an eventfd"))?;
        Ok(Self { waiting: Mutex::new(Some(manager)), thread: Mutex::default(), stop })
    }

    /// Starts the loop's thread. `on_failure` is called where it cannot go on, so that devices do nothing any more.
    pub(super) fn start(&self, on_failure: impl FnOnce(VmError) + Send + 'static) -> Result<(), VmError> {
        let manager = self.waiting.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(mut manager) = manager else { return Ok(()) };
        let stopped = Arc::new(AtomicBool::new(false));
        let event = self.stop.try_clone().map_err(VmError::host("duplicate an eventfd"))?;
        manager.add_subscriber(Arc::new(Mutex::new(StopSubscriber { event, stopped: Arc::clone(&stopped) })) as Subscriber);
        let on_failure = OnFailure(Some(on_failure));
        let body = move || {
            let mut on_failure = on_failure;
            if let Err(error) = seccomp::confine_devices() {
                on_failure.call(VmError::host("confine the devices' thread")(error.into()));
                return;
            }
            while !stopped.load(Ordering::Relaxed) {
                if let Err(error) = manager.run() {
                    on_failure.call(VmError::Failed(format!("the devices' event loop failed: {error}")));
                    return;
                }
            }
            // What the guest sent before its end is still to be delivered.
            let begin = Instant::now();
            for _ in 0..LAST_ROUNDS {
                if begin.elapsed() > LAST_TIME || !matches!(manager.run_with_timeout(0), Ok(1..)) {
                    break;
                }
            }
            on_failure.0 = None;
        };
        let thread =
            signals::blocked(|| thread::Builder::new().name("devices".to_owned()).stack_size(256 << 10).spawn(body))
                .map_err(VmError::host("start the devices' thread"))?;
        *self.thread.lock().unwrap_or_else(PoisonError::into_inner) = Some(thread);
        Ok(())
    }

    /// Ends the loop after a last round, and waits for its thread.
    pub(super) fn stop(&self) {
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            let _ = self.stop.write(1);
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    /// Panics at its first event.
    struct Faulty(EventFd);

    impl MutEventSubscriber for Faulty {
        fn process(&mut self, _events: Events, _ops: &mut EventOps) {
            panic!("a device's fault, as the test wants it");
        }

        fn init(&mut self, ops: &mut EventOps) {
            ops.add(Events::new(&self.0, EventSet::IN)).unwrap();
        }
    }

    #[test]
    fn a_thread_that_dies_is_reported_and_one_that_is_stopped_is_not() {
        for dies in [true, false] {
            let event = EventFd::new(EFD_NONBLOCK).unwrap();
            let faulty = Faulty(event.try_clone().unwrap());
            let events = EventLoop::new(vec![Arc::new(Mutex::new(faulty))]).unwrap();
            let (sender, receiver) = mpsc::channel();
            events.start(move |error| sender.send(error).unwrap()).unwrap();
            if dies {
                event.write(1).unwrap();
                let error = receiver.recv_timeout(Duration::from_secs(10)).unwrap();
                assert!(error.to_string().contains("panicked"), "{error}");
            }
            events.stop();
            assert!(receiver.recv().is_err(), "nothing else is reported");
        }
    }
}
