//! The engine thread: owns scheduler, executor and all state of sequences.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError, channel};
use std::thread::JoinHandle;

use tokio::sync::mpsc::UnboundedSender;

use super::core::Core;
use super::event::{EngineError, Event, SeqEvent};
use super::executor::Executor;
use super::handle::{Command, EngineConfig, EngineHandle, Lifecycle, NewSequence, Shared};
use super::types::SeqId;

/// Makes an engine and starts its thread. The executor moves to that thread and is used there only.
pub fn spawn(config: EngineConfig, executor: Box<dyn Executor>) -> (EngineHandle, EngineThread) {
    let (handle, engine) = engine(config, executor);
    let thread = std::thread::Builder::new().name("engine".into()).spawn(move || engine.run());
    (handle, EngineThread { thread: thread.expect("the system can start a thread") })
}

/// Makes an engine for the caller to [`run`](Engine::run) on a thread of its choice.
pub fn engine(config: EngineConfig, executor: Box<dyn Executor>) -> (EngineHandle, Engine) {
    let core = Core::new(config.scheduler(), executor);
    let shared = Arc::new(Shared::new(config, core.stats().clone(), core.max_adapters()));
    let (sender, commands) = channel();
    let handle = EngineHandle { shared: shared.clone(), commands: sender };
    (handle, Engine { core, shared, commands, clients: Vec::new(), events: Vec::new() })
}

/// A started engine thread.
pub struct EngineThread {
    thread: JoinHandle<()>,
}

impl EngineThread {
    /// Waits for the thread to end: after a shutdown, or because it panicked (an error).
    pub fn join(self) -> std::thread::Result<()> {
        self.thread.join()
    }

    /// Whether the thread has ended.
    pub fn is_finished(&self) -> bool {
        self.thread.is_finished()
    }
}

/// The reader of a sequence.
struct Client {
    id: SeqId,
    events: UnboundedSender<Event>,
    /// Prompt tokens it holds in the queue until it is first scheduled.
    queued: Option<usize>,
}

/// The state of the engine thread.
pub struct Engine {
    core: Core,
    shared: Arc<Shared>,
    commands: Receiver<Command>,
    /// By slot of the scheduler.
    clients: Vec<Option<Client>>,
    events: Vec<SeqEvent>,
}

impl Engine {
    /// Runs until [`EngineHandle::shutdown`] is called and everything accepted has ended, or the executor is lost. Sleeps
    /// while there is nothing to do.
    pub fn run(mut self) {
        while self.take_commands() {
            let scheduled = self.core.schedule(&mut self.events);
            if scheduled {
                // Who was admitted leaves the queue now, not when a long step ends.
                self.deliver();
                self.core.launch(&mut self.events);
            }
            self.core.collect(scheduled, &mut self.events);
            self.deliver();
            if let Some(reason) = self.core.lost() {
                // Whoever comes from now on is refused, and what is in the channel ends with it.
                self.shared.advance_lifecycle(Lifecycle::Stopped);
                self.end_all(|| EngineError::Step(reason.clone()));
                break;
            }
        }
        self.core.publish();
        self.shared.stats.set_idle(true);
    }

    /// Handles all commands there are; waits for one if there is nothing else to do. Returns false
    /// when the engine shall end.
    fn take_commands(&mut self) -> bool {
        loop {
            match self.commands.try_recv() {
                Ok(command) => self.handle(command),
                Err(TryRecvError::Empty) if self.has_work() => return true,
                Err(TryRecvError::Empty) if self.shared.lifecycle() == Lifecycle::Running => {
                    self.core.publish();
                    self.shared.stats.set_idle(true);
                    let command = self.commands.recv();
                    self.shared.stats.set_idle(false);
                    match command {
                        Ok(command) => self.handle(command),
                        Err(_) => return false,
                    }
                }
                Err(_) => return self.has_work(),
            }
        }
    }

    fn has_work(&self) -> bool {
        !self.core.scheduler().is_idle() || self.core.scheduler().num_in_flight() > 0
    }

    fn handle(&mut self, command: Command) {
        match command {
            Command::Submit(sequences) => sequences.into_iter().for_each(|s| self.add(s)),
            Command::Abort(id) => {
                if let Some((slot, _)) = self.core.scheduler_mut().abort(id) {
                    self.forget(slot);
                }
            }
            Command::AbortAll => self.end_all(|| EngineError::Aborted),
            Command::LoadAdapter { slot, weights, reply } => {
                // Whoever gave up waiting drops the lease.
                let _ = reply.send(self.core.load_adapter(slot, weights));
            }
            Command::UnloadAdapter(slot) => self.core.unload_adapter(slot),
            Command::Wake => {}
        }
    }

    fn add(&mut self, new: NewSequence) {
        let NewSequence { id, request, events } = new;
        let prompt = request.prompt.len();
        match self.core.scheduler_mut().add(id, request) {
            Ok(slot) => {
                if slot >= self.clients.len() {
                    self.clients.resize_with(slot + 1, || None);
                }
                self.clients[slot] = Some(Client { id, events, queued: Some(prompt) });
            }
            Err(_) => {
                // The door has checked the same limits.
                self.shared.dequeue(prompt);
                let _ = events.send(Event::Failed(EngineError::Row("the prompt does not fit".into())));
            }
        }
    }

    /// Publishes the numbers and sends events to their readers; never waits.
    fn deliver(&mut self) {
        self.core.publish();
        for SeqEvent { slot, event, .. } in self.events.drain(..) {
            let Some(client) = &mut self.clients[slot] else { continue };
            if matches!(event, Event::Scheduled { .. })
                && let Some(prompt) = client.queued.take()
            {
                self.shared.dequeue(prompt);
            }
            let terminal = event.is_terminal();
            // A reader that is gone has sent its abort.
            let _ = client.events.send(event);
            if terminal {
                self.clients[slot] = None;
            }
        }
    }

    /// Fails every sequence.
    fn end_all(&mut self, why: impl Fn() -> EngineError) {
        for slot in 0..self.clients.len() {
            let Some(client) = &self.clients[slot] else { continue };
            // A reader that is gone needs no answer.
            let _ = client.events.send(Event::Failed(why()));
            self.core.scheduler_mut().abort(client.id);
            self.forget(slot);
        }
    }

    fn forget(&mut self, slot: usize) {
        if let Some(prompt) = self.clients[slot].take().and_then(|c| c.queued) {
            self.shared.dequeue(prompt);
        }
    }
}

impl Drop for Engine {
    /// Also when the thread panics: submitting must not succeed into the void.
    fn drop(&mut self) {
        self.shared.advance_lifecycle(Lifecycle::Stopped);
    }
}
