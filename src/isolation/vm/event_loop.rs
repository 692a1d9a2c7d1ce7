//! The threads on which devices do their queue work: one for most of a machine's, and one for each that may take long.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use event_manager::{EventManager, EventOps, EventSet, Events, MutEventSubscriber, SubscriberOps};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::error::VmError;
use super::signals;
use rustix::io::Errno;

/// A device as the event loop sees it.
pub(super) type Subscriber = Arc<Mutex<dyn MutEventSubscriber + Send>>;

/// How many rounds of events a stopping loop still serves. Each round takes what the guest sent before its end; more
/// than a few can only come from input that keeps arriving.
const LAST_ROUNDS: usize = 64;
/// How long it serves them: a guest that has asked for a lot cannot hold up its own end.
const LAST_TIME: Duration = Duration::from_secs(1);

/// What takes from the loop's thread all that it does not need, before it does anything else.
pub(super) type Confine = Box<dyn FnOnce() -> Result<(), Errno> + Send>;

/// The event loop, before and while it runs.
pub(super) struct EventLoop {
    name: String,
    waiting: Mutex<Option<(EventManager<Subscriber>, Confine)>>,
    thread: Mutex<Option<JoinHandle<()>>>,
    control: Arc<Control>,
}

/// What the loop's thread is to do, and what it does.
struct Control {
    /// Rung when there is something new in `wanted`.
    event: EventFd,
    wanted: Mutex<Wanted>,
    changed: Condvar,
}

#[derive(Default)]
struct Wanted {
    stopped: bool,
    paused: bool,
    /// Whether the thread rests.
    parked: bool,
    /// Whether there is no thread, or none any more.
    gone: bool,
}

impl Control {
    fn lock(&self) -> MutexGuard<'_, Wanted> {
        self.wanted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, set: impl FnOnce(&mut Wanted)) {
        set(&mut self.lock());
        self.changed.notify_all();
    }

    fn wait<'a>(&self, wanted: MutexGuard<'a, Wanted>) -> MutexGuard<'a, Wanted> {
        self.changed.wait(wanted).unwrap_or_else(PoisonError::into_inner)
    }

    /// On the loop's thread: rests as long as that is wanted.
    fn obey(&self, quiesce: impl FnOnce()) {
        let mut wanted = self.lock();
        if wanted.paused && !wanted.stopped {
            drop(wanted);
            quiesce();
            wanted = self.lock();
            wanted.parked = true;
            self.changed.notify_all();
            while wanted.paused && !wanted.stopped {
                wanted = self.wait(wanted);
            }
            wanted.parked = false;
        }
    }
}

/// Obeys those who stop and pause the loop.
struct ControlSubscriber {
    control: Arc<Control>,
    quiesce: Box<dyn Fn() + Send>,
}

impl MutEventSubscriber for ControlSubscriber {
    fn process(&mut self, _events: Events, _ops: &mut EventOps) {
        let _ = self.control.event.read();
        self.control.obey(&self.quiesce);
    }

    fn init(&mut self, ops: &mut EventOps) {
        if let Err(error) = ops.add(Events::new(&self.control.event, EventSet::IN)) {
            log::error!("the event loop cannot watch its stop event: {error}");
        }
    }
}

/// Tells that the loop's thread is gone, however it ends.
struct Gone(Arc<Control>);

impl Drop for Gone {
    fn drop(&mut self) {
        self.0.set(|wanted| wanted.gone = true);
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
        self.call(VmError::Failed("a thread of devices panicked".to_owned()));
    }
}

impl EventLoop {
    /// A loop that will serve `subscribers` on a thread called `name`.
    pub(super) fn new(name: &str, confine: Confine, subscribers: Vec<Subscriber>) -> Result<Self, VmError> {
        let mut manager = EventManager::new()
            .map_err(|error| VmError::host("make an event loop")(std::io::Error::other(format!("{error}"))))?;
        for subscriber in subscribers {
            manager.add_subscriber(subscriber);
        }
        let event = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(VmError::host("make an eventfd"))?;
        let wanted = Mutex::new(Wanted { gone: true, ..Wanted::default() });
        let control = Arc::new(Control { event, wanted, changed: Condvar::new() });
        Ok(Self {
            name: name.to_owned(),
            waiting: Mutex::new(Some((manager, confine))),
            thread: Mutex::default(),
            control,
        })
    }

    /// Starts the loop's thread. `quiesce` is called on it before it rests; `on_failure` where it cannot go on, so that devices
    /// do nothing any more.
    pub(super) fn start(
        &self,
        quiesce: impl Fn() + Send + 'static,
        on_failure: impl FnOnce(VmError) + Send + 'static,
    ) -> Result<(), VmError> {
        let waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some((mut manager, confine)) = waiting else { return Ok(()) };
        let control = Arc::clone(&self.control);
        let obeying = ControlSubscriber { control: Arc::clone(&control), quiesce: Box::new(quiesce) };
        manager.add_subscriber(Arc::new(Mutex::new(obeying)) as Subscriber);
        let on_failure = OnFailure(Some(on_failure));
        control.lock().gone = false;
        let gone = Gone(Arc::clone(&control));
        let body = move || {
            let (mut on_failure, _gone) = (on_failure, gone);
            if let Err(error) = confine() {
                on_failure.call(VmError::host("confine a thread of devices")(error.into()));
                return;
            }
            while !control.lock().stopped {
                if let Err(error) = manager.run() {
                    on_failure.call(VmError::Failed(format!("an event loop of devices failed: {error}")));
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
            signals::blocked(|| thread::Builder::new().name(self.name.clone()).stack_size(256 << 10).spawn(body))
                .map_err(VmError::host("start a thread of devices"))?;
        *self.thread.lock().unwrap_or_else(PoisonError::into_inner) = Some(thread);
        Ok(())
    }

    /// Has the loop's thread call its `quiesce`, and rest. Returns when it does, or is gone.
    pub(super) fn pause(&self) {
        self.control.set(|wanted| wanted.paused = true);
        let _ = self.control.event.write(1);
        let mut wanted = self.control.lock();
        while !(wanted.parked || wanted.gone || wanted.stopped) {
            wanted = self.control.wait(wanted);
        }
    }

    /// Lets the loop's thread work on.
    pub(super) fn resume(&self) {
        self.control.set(|wanted| wanted.paused = false);
    }

    /// Ends the loop after a last round, and waits for its thread.
    pub(super) fn stop(&self) {
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            self.control.set(|wanted| wanted.stopped = true);
            let _ = self.control.event.write(1);
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
            let events = EventLoop::new("faulty", Box::new(|| Ok(())), vec![Arc::new(Mutex::new(faulty))]).unwrap();
            let (sender, receiver) = mpsc::channel();
            events.start(|| {}, move |error| sender.send(error).unwrap()).unwrap();
            if dies {
                event.write(1).unwrap();
                let error = receiver.recv_timeout(Duration::from_secs(10)).unwrap();
                assert!(error.to_string().contains("panicked"), "{error}");
            }
            events.stop();
            assert!(receiver.recv().is_err(), "nothing else is reported");
        }
    }

    /// Counts its events.
    struct Counter(EventFd, mpsc::Sender<()>);

    impl MutEventSubscriber for Counter {
        fn process(&mut self, _events: Events, _ops: &mut EventOps) {
            self.0.read().unwrap();
            self.1.send(()).unwrap();
        }

        fn init(&mut self, ops: &mut EventOps) {
            ops.add(Events::new(&self.0, EventSet::IN)).unwrap();
        }
    }

    #[test]
    fn a_paused_loop_serves_nothing_until_it_is_resumed_or_stopped() {
        let event = EventFd::new(EFD_NONBLOCK).unwrap();
        let ((sender, served), (quiesced, quiet)) = (mpsc::channel(), mpsc::channel());
        let counter = Counter(event.try_clone().unwrap(), sender);
        let events = EventLoop::new("counter", Box::new(|| Ok(())), vec![Arc::new(Mutex::new(counter))]).unwrap();
        events.pause();
        events.resume();
        events.start(move || quiesced.send(()).unwrap(), |error| panic!("{error}")).unwrap();
        for _ in 0..100 {
            events.pause();
            quiet.try_recv().unwrap();
            event.write(1).unwrap();
            std::thread::yield_now();
            assert!(served.try_recv().is_err(), "it is paused");
            events.pause();
            events.resume();
            served.recv_timeout(Duration::from_secs(10)).unwrap();
            while quiet.try_recv().is_ok() {}
        }
        events.pause();
        event.write(1).unwrap();
        events.stop();
        served.try_recv().expect("what came before the end is served");
        events.pause();
    }
}
