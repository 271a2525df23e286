//! The door: submitting requests to the engine thread and reading what it generates.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::Sender;
use std::task::{Context, Poll};

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::adapters::{AdapterWeights, SlotTable};
use super::event::{EngineError, Event};
use super::executor::ExecutorError;
use super::scheduler::SchedulerConfig;
use super::speculation::Speculation;
use super::stats::EngineStats;
use super::types::{AdapterSlot, Request, SeqId};

/// Limits of an engine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EngineConfig {
    /// Sequences running at once.
    pub max_num_seqs: usize,
    /// Tokens in a step.
    pub max_num_batched_tokens: usize,
    /// Prompt and output tokens of one sequence (never more than the pool holds).
    pub max_model_len: usize,
    /// Blocks in the KV pool.
    pub num_blocks: usize,
    /// Whether full blocks are kept and shared.
    pub enable_prefix_caching: bool,
    /// Whether tokens are drafted.
    pub speculation: Speculation,
    /// Accepted sequences that may wait to be scheduled for the first time.
    pub max_queued_requests: usize,
    /// Their prompt tokens.
    pub max_queued_tokens: usize,
}

impl EngineConfig {
    /// The part of the scheduler.
    pub fn scheduler(&self) -> SchedulerConfig {
        SchedulerConfig {
            max_num_seqs: self.max_num_seqs,
            max_num_batched_tokens: self.max_num_batched_tokens,
            max_model_len: self.max_model_len,
            num_blocks: self.num_blocks,
            enable_prefix_caching: self.enable_prefix_caching,
            speculation: self.speculation,
        }
    }

    /// Tokens a sequence may have, prompt and output: the model's limit or all of the pool.
    pub fn max_len(&self) -> usize {
        self.scheduler().max_len()
    }
}

/// Why a request was not accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SubmitError {
    /// Too much is waiting already: try again later.
    #[error("the queue is full: {queued_requests} requests with {queued_tokens} prompt tokens are waiting")]
    QueueFull {
        /// Sequences waiting.
        queued_requests: usize,
        /// Their prompt tokens.
        queued_tokens: usize,
    },
    /// The prompt, with one token if any is to be generated, never fits.
    #[error("the prompt has {prompt} tokens, but prompt and output together may have at most {limit}")]
    TooLong {
        /// Tokens of the prompt.
        prompt: usize,
        /// Tokens a sequence may have.
        limit: usize,
    },
    /// The prompt has no tokens.
    #[error("the prompt is empty")]
    EmptyPrompt,
    /// The engine finishes what it has and takes nothing new.
    #[error("the server is shutting down")]
    ShuttingDown,
    /// The engine thread is gone.
    #[error("the engine has stopped")]
    Stopped,
}

/// A new sequence on its way to the engine thread.
pub(super) struct NewSequence {
    pub id: SeqId,
    pub request: Request,
    pub events: UnboundedSender<Event>,
}

pub(super) enum Command {
    Submit(Vec<NewSequence>),
    Abort(SeqId),
    AbortAll,
    LoadAdapter {
        slot: AdapterSlot,
        weights: Arc<AdapterWeights>,
        reply: Sender<Result<(), ExecutorError>>,
    },
    UnloadAdapter(AdapterSlot),
    /// Look at the lifecycle.
    Wake,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(super) enum Lifecycle {
    Running,
    ShuttingDown,
    Stopped,
}

pub(super) struct Shared {
    pub config: EngineConfig,
    pub stats: Arc<EngineStats>,
    pub adapters: SlotTable,
    next_id: AtomicU64,
    lifecycle: AtomicU8,
}

impl Shared {
    pub fn new(config: EngineConfig, stats: Arc<EngineStats>, adapters: usize) -> Self {
        Self {
            config,
            stats,
            adapters: SlotTable::new(adapters),
            next_id: AtomicU64::new(0),
            lifecycle: AtomicU8::new(Lifecycle::Running as u8),
        }
    }

    pub fn lifecycle(&self) -> Lifecycle {
        match self.lifecycle.load(Ordering::Acquire) {
            0 => Lifecycle::Running,
            1 => Lifecycle::ShuttingDown,
            _ => Lifecycle::Stopped,
        }
    }

    /// Moves forward only.
    pub fn advance_lifecycle(&self, to: Lifecycle) {
        self.lifecycle.fetch_max(to as u8, Ordering::AcqRel);
    }

    /// Leaves the queue: scheduled for the first time, or ended before.
    pub fn dequeue(&self, prompt_tokens: usize) {
        self.stats.queued_requests.fetch_sub(1, Ordering::AcqRel);
        self.stats.dequeued.fetch_add(1, Ordering::Relaxed);
        self.stats.queued_prompt_tokens.fetch_sub(prompt_tokens, Ordering::AcqRel);
    }
}

/// Submits requests to an engine. Cheap to clone.
#[derive(Clone)]
pub struct EngineHandle {
    pub(super) shared: Arc<Shared>,
    pub(super) commands: Sender<Command>,
}

impl EngineHandle {
    /// Accepts all of the requests (the `n` choices of one) or none. Never blocks.
    ///
    /// The queue's limits do not apply to an empty queue, so what is too large for them can still run
    /// alone.
    pub fn submit(&self, requests: Vec<Request>) -> Result<Vec<EventStream>, SubmitError> {
        let shared = &*self.shared;
        match shared.lifecycle() {
            Lifecycle::Running => {}
            Lifecycle::ShuttingDown => return Err(SubmitError::ShuttingDown),
            Lifecycle::Stopped => return Err(SubmitError::Stopped),
        }
        let limit = shared.config.max_len();
        let mut prompt_tokens = 0;
        for request in &requests {
            let prompt = request.prompt.len();
            if prompt == 0 {
                return Err(SubmitError::EmptyPrompt);
            }
            if request.least_len() > limit {
                return Err(SubmitError::TooLong { prompt, limit });
            }
            prompt_tokens += prompt;
        }
        self.enqueue(requests.len(), prompt_tokens)?;

        let mut streams = Vec::with_capacity(requests.len());
        let mut sequences = Vec::with_capacity(requests.len());
        for request in requests {
            // Unbounded, yet bounded: a sequence sends at most its tokens, the scores of its prompt and
            // three events more.
            let (events, receiver) = unbounded_channel();
            let id = SeqId(shared.next_id.fetch_add(1, Ordering::Relaxed));
            streams.push(EventStream { id, receiver, commands: self.commands.clone(), done: false });
            sequences.push(NewSequence { id, request, events });
        }
        let accepted = sequences.len();
        if self.commands.send(Command::Submit(sequences)).is_err() {
            return Err(SubmitError::Stopped);
        }
        shared.stats.accepted.fetch_add(accepted as u64, Ordering::Relaxed);
        Ok(streams)
    }

    /// Takes a place in the queue for so many sequences and tokens.
    fn enqueue(&self, requests: usize, tokens: usize) -> Result<(), SubmitError> {
        let (stats, config) = (&self.shared.stats, &self.shared.config);
        let take = |count: &AtomicUsize, more: usize, limit: usize| {
            let fits = |now: usize| (now == 0 || now.saturating_add(more) <= limit).then(|| now.saturating_add(more));
            count.fetch_update(Ordering::AcqRel, Ordering::Acquire, fits).is_ok()
        };
        if take(&stats.queued_requests, requests, config.max_queued_requests) {
            if take(&stats.queued_prompt_tokens, tokens, config.max_queued_tokens) {
                return Ok(());
            }
            stats.queued_requests.fetch_sub(requests, Ordering::AcqRel);
        }
        Err(SubmitError::QueueFull {
            queued_requests: stats.queued_requests.load(Ordering::Relaxed),
            queued_tokens: stats.queued_prompt_tokens.load(Ordering::Relaxed),
        })
    }

    /// The engine's numbers.
    pub fn stats(&self) -> &Arc<EngineStats> {
        &self.shared.stats
    }

    /// The engine's limits.
    pub fn config(&self) -> &EngineConfig {
        &self.shared.config
    }

    /// Whether the engine takes requests: false from [`shutdown`](Self::shutdown) on, and when its
    /// thread has ended.
    pub fn is_accepting(&self) -> bool {
        self.shared.lifecycle() == Lifecycle::Running
    }

    /// Whether the engine thread has ended.
    pub fn is_stopped(&self) -> bool {
        self.shared.lifecycle() == Lifecycle::Stopped
    }

    /// Refuses new requests, finishes the accepted ones, then the engine thread ends.
    pub fn shutdown(&self) {
        self.shared.advance_lifecycle(Lifecycle::ShuttingDown);
        // A thread that is gone has nothing to shut down.
        let _ = self.commands.send(Command::Wake);
    }

    /// Fails every accepted request with [`EngineError::Aborted`].
    pub fn abort_all(&self) {
        let _ = self.commands.send(Command::AbortAll);
    }
}

/// What one sequence generates, in order, ending in exactly one `Finished` or `Failed`. Dropping it
/// before aborts the sequence.
pub struct EventStream {
    id: SeqId,
    receiver: UnboundedReceiver<Event>,
    commands: Sender<Command>,
    done: bool,
}

impl EventStream {
    /// The sequence.
    pub fn id(&self) -> SeqId {
        self.id
    }

    /// The next event; `None` after the last.
    pub async fn recv(&mut self) -> Option<Event> {
        std::future::poll_fn(|context| self.poll_recv(context)).await
    }

    /// The next event; `None` after the last. For use in a `Stream`.
    pub fn poll_recv(&mut self, context: &mut Context<'_>) -> Poll<Option<Event>> {
        if self.done {
            return Poll::Ready(None);
        }
        self.receiver.poll_recv(context).map(|event| self.received(event))
    }

    /// The next event; `None` after the last. Blocks the thread, so not for use in async code.
    pub fn blocking_recv(&mut self) -> Option<Event> {
        if self.done {
            return None;
        }
        let event = self.receiver.blocking_recv();
        self.received(event)
    }

    /// The next event if there is one now.
    pub fn try_recv(&mut self) -> Option<Event> {
        use tokio::sync::mpsc::error::TryRecvError;
        if self.done {
            return None;
        }
        match self.receiver.try_recv() {
            Ok(event) => self.received(Some(event)),
            Err(TryRecvError::Empty) => None,
            Err(TryRecvError::Disconnected) => self.received(None),
        }
    }

    /// A channel that closes early means that the engine thread is gone.
    fn received(&mut self, event: Option<Event>) -> Option<Event> {
        let event = event.unwrap_or(Event::Failed(EngineError::Stopped));
        self.done = event.is_terminal();
        Some(event)
    }
}

impl Drop for EventStream {
    fn drop(&mut self) {
        if !self.done {
            // A thread that is gone holds no blocks.
            let _ = self.commands.send(Command::Abort(self.id));
        }
    }
}
