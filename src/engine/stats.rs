//! Numbers anyone may read while the engine runs: plain atomics, written by the engine thread (and
//! the two queue counts at the door).

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use super::scheduler::Scheduler;

/// Upper bounds of the step time histogram's buckets, in milliseconds; one more bucket has none.
pub const STEP_BUCKETS_MS: [u64; 12] = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000];
/// Upper bounds of the buckets of tokens in a step; one more bucket has none.
pub const STEP_TOKEN_BUCKETS: [u64; 12] = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048];

/// Gauges and counters of one engine. Counters only grow.
#[derive(Debug)]
#[allow(missing_docs)]
pub struct EngineStats {
    /// Sequences admitted.
    pub running: AtomicUsize,
    /// Accepted sequences not yet scheduled for the first time.
    pub queued_requests: AtomicUsize,
    /// Their prompt tokens.
    pub queued_prompt_tokens: AtomicUsize,
    /// Preempted sequences waiting to run again.
    pub preempted_waiting: AtomicUsize,

    /// All blocks of the pool.
    pub blocks_total: AtomicUsize,
    /// Blocks no sequence holds (cached ones among them).
    pub blocks_free: AtomicUsize,
    /// Blocks sequences hold.
    pub blocks_in_use: AtomicUsize,
    /// Free blocks whose content the prefix cache can still give.
    pub blocks_cached: AtomicUsize,

    /// LoRA adapters loaded, and their bytes.
    pub adapters: AtomicUsize,
    pub adapter_bytes: AtomicUsize,

    /// Requests accepted at the door.
    pub accepted: AtomicU64,
    /// Those that left the queue since: scheduled, or ended before.
    pub dequeued: AtomicU64,
    /// Steps completed.
    pub steps: AtomicU64,
    /// Forward passes started.
    pub forwards: AtomicU64,
    pub step_failures: AtomicU64,
    pub prompt_tokens: AtomicU64,
    pub cached_prompt_tokens: AtomicU64,
    /// Prompt tokens looked up in the prefix cache, and those found.
    pub prefix_cache_queries: AtomicU64,
    pub prefix_cache_hits: AtomicU64,
    pub generation_tokens: AtomicU64,
    /// Positions computed: of prompts and resumed sequences, and one a decoding row.
    pub prefill_tokens: AtomicU64,
    pub decode_tokens: AtomicU64,
    /// Rows with drafts, their drafts, and those that were right.
    pub drafts: AtomicU64,
    pub draft_tokens: AtomicU64,
    pub accepted_draft_tokens: AtomicU64,
    pub preemptions: AtomicU64,
    pub finished_stop: AtomicU64,
    pub finished_length: AtomicU64,
    pub finished_aborted: AtomicU64,
    pub finished_failed: AtomicU64,

    /// Counts by [`STEP_BUCKETS_MS`], each bucket alone (not cumulative).
    pub step_time_buckets: [AtomicU64; STEP_BUCKETS_MS.len() + 1],
    /// Sum of all step times, in microseconds.
    pub step_time_sum_us: AtomicU64,
    /// Counts of steps by [`STEP_TOKEN_BUCKETS`], each bucket alone, and the sum of their tokens.
    pub step_token_buckets: [AtomicU64; STEP_TOKEN_BUCKETS.len() + 1],
    pub step_token_sum: AtomicU64,

    started: Instant,
    /// Milliseconds after `started` of the last completed step, or of waking up for work.
    last_progress_ms: AtomicU64,
    idle: AtomicBool,
}

impl EngineStats {
    pub(super) fn new(blocks: usize) -> Self {
        Self {
            running: AtomicUsize::new(0),
            queued_requests: AtomicUsize::new(0),
            queued_prompt_tokens: AtomicUsize::new(0),
            preempted_waiting: AtomicUsize::new(0),
            blocks_total: AtomicUsize::new(blocks),
            blocks_free: AtomicUsize::new(blocks),
            blocks_in_use: AtomicUsize::new(0),
            blocks_cached: AtomicUsize::new(0),
            adapters: AtomicUsize::new(0),
            adapter_bytes: AtomicUsize::new(0),
            accepted: AtomicU64::new(0),
            dequeued: AtomicU64::new(0),
            steps: AtomicU64::new(0),
            forwards: AtomicU64::new(0),
            step_failures: AtomicU64::new(0),
            prompt_tokens: AtomicU64::new(0),
            cached_prompt_tokens: AtomicU64::new(0),
            prefix_cache_queries: AtomicU64::new(0),
            prefix_cache_hits: AtomicU64::new(0),
            generation_tokens: AtomicU64::new(0),
            prefill_tokens: AtomicU64::new(0),
            decode_tokens: AtomicU64::new(0),
            drafts: AtomicU64::new(0),
            draft_tokens: AtomicU64::new(0),
            accepted_draft_tokens: AtomicU64::new(0),
            preemptions: AtomicU64::new(0),
            finished_stop: AtomicU64::new(0),
            finished_length: AtomicU64::new(0),
            finished_aborted: AtomicU64::new(0),
            finished_failed: AtomicU64::new(0),
            step_time_buckets: std::array::from_fn(|_| AtomicU64::new(0)),
            step_time_sum_us: AtomicU64::new(0),
            step_token_buckets: std::array::from_fn(|_| AtomicU64::new(0)),
            step_token_sum: AtomicU64::new(0),
            started: Instant::now(),
            last_progress_ms: AtomicU64::new(0),
            idle: AtomicBool::new(false),
        }
    }

    /// Sequences accepted and not running: queued or preempted.
    pub fn waiting(&self) -> usize {
        self.queued_requests.load(Relaxed) + self.preempted_waiting.load(Relaxed)
    }

    /// How long there has been work without a step completing; zero when idle. For a watchdog.
    pub fn stalled_for(&self) -> Duration {
        if self.idle.load(Relaxed) {
            return Duration::ZERO;
        }
        let last = Duration::from_millis(self.last_progress_ms.load(Relaxed));
        self.started.elapsed().saturating_sub(last)
    }

    /// Marks the end of an idle time, or of a step.
    pub(super) fn progress(&self) {
        self.last_progress_ms.store(self.started.elapsed().as_millis() as u64, Relaxed);
    }

    pub(super) fn set_idle(&self, idle: bool) {
        if !idle {
            self.progress();
        }
        self.idle.store(idle, Relaxed);
    }

    pub(super) fn step_started(&self, tokens: usize) {
        let bucket = STEP_TOKEN_BUCKETS.iter().position(|&most| tokens as u64 <= most);
        self.step_token_buckets[bucket.unwrap_or(STEP_TOKEN_BUCKETS.len())].fetch_add(1, Relaxed);
        self.step_token_sum.fetch_add(tokens as u64, Relaxed);
        self.forwards.fetch_add(1, Relaxed);
    }

    pub(super) fn step_completed(&self, took: Duration) {
        let bucket = STEP_BUCKETS_MS.iter().position(|&ms| took <= Duration::from_millis(ms));
        self.step_time_buckets[bucket.unwrap_or(STEP_BUCKETS_MS.len())].fetch_add(1, Relaxed);
        self.step_time_sum_us.fetch_add(took.as_micros() as u64, Relaxed);
        self.steps.fetch_add(1, Relaxed);
        self.progress();
    }

    /// Copies the scheduler's counts.
    pub(super) fn publish(&self, scheduler: &Scheduler) {
        let (pool, counters) = (scheduler.pool(), scheduler.counters());
        self.running.store(scheduler.num_running(), Relaxed);
        self.preempted_waiting.store(scheduler.num_preempted(), Relaxed);
        self.blocks_free.store(pool.num_free(), Relaxed);
        self.blocks_in_use.store(pool.num_in_use(), Relaxed);
        self.blocks_cached.store(pool.num_cached_free(), Relaxed);
        self.prompt_tokens.store(counters.prompt_tokens, Relaxed);
        self.cached_prompt_tokens.store(counters.cached_prompt_tokens, Relaxed);
        self.prefix_cache_queries.store(counters.prefix_cache_queries, Relaxed);
        self.prefix_cache_hits.store(counters.prefix_cache_hits, Relaxed);
        self.generation_tokens.store(counters.generation_tokens, Relaxed);
        self.prefill_tokens.store(counters.prefill_tokens, Relaxed);
        self.decode_tokens.store(counters.decode_tokens, Relaxed);
        self.drafts.store(counters.drafts, Relaxed);
        self.draft_tokens.store(counters.draft_tokens, Relaxed);
        self.accepted_draft_tokens.store(counters.accepted_draft_tokens, Relaxed);
        self.preemptions.store(counters.preemptions, Relaxed);
        self.finished_stop.store(counters.finished_stop, Relaxed);
        self.finished_length.store(counters.finished_length, Relaxed);
        self.finished_aborted.store(counters.aborted, Relaxed);
        self.finished_failed.store(counters.failed, Relaxed);
    }
}
