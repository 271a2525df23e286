//! Steps of the engine: what its bookkeeping costs, and what the model costs below it.
//!
//! - `scheduler/decode`: scheduling, assembling and updating one step of so many decoding sequences, with an
//!   executor that computes nothing; elements are sequences.
//! - `scheduler/admit`: a request from its submission to its only token, likewise; elements are prompt tokens.
//!   `hit` finds all whole blocks of its prompt but the last in the prefix cache, `miss` finds none and evicts
//!   others, `off` has no prefix cache.
//! - `step`: forward pass and greedy sampling of the default model: a prompt of 128 tokens, and decoding of 1, 16
//!   and 64 sequences that hold 128 tokens each; elements are tokens. The model is `LIMA_TEST_MODEL`'s, else the
//!   default one, fetched if need be. `LIMA_THREADS` and `LIMA_CPU_LEVEL` as for `lima`.

use std::cell::{LazyCell, RefCell};
use std::time::{Duration, Instant};

use criterion::{Criterion, SamplingMode, Throughput, criterion_group, criterion_main};
use lima::engine::{
    BLOCK_SIZE, Core, Executor, ExecutorError, Request, RowOut, SampleInput, Sampled, SamplingParams, SchedulerConfig,
    SeqId, Speculation, StepInput, StepOutput, Ticket, TokenId,
};
use lima::runner::CpuExecutor;
use smallvec::smallvec;

mod support;

use support::{default_model, fill, step};

/// Answers every row with the same token.
#[derive(Default)]
struct Null {
    output: StepOutput,
}

impl Executor for Null {
    fn forward(&mut self, step: &StepInput) -> Result<(), ExecutorError> {
        self.output.rows.resize(step.rows.len(), RowOut::None);
        Ok(())
    }

    fn sample(&mut self, request: &SampleInput<'_>) -> Result<Ticket, ExecutorError> {
        for row in &request.rows {
            self.output.rows[row.row] = RowOut::Tokens(smallvec![Sampled { token: 1, logprob: 0.0, top: Vec::new() }]);
        }
        Ok(Ticket(0))
    }

    fn collect(&mut self, _: Ticket) -> Result<StepOutput, ExecutorError> {
        Ok(std::mem::take(&mut self.output))
    }
}

fn core(max_num_seqs: usize, max_model_len: usize, num_blocks: usize, prefix_caching: bool) -> Core {
    let config = SchedulerConfig {
        max_num_seqs,
        max_num_batched_tokens: 1 << 16,
        max_model_len,
        num_blocks,
        enable_prefix_caching: prefix_caching,
        speculation: Speculation::default(),
    };
    Core::new(config, Box::<Null>::default())
}

fn request(prompt: impl Iterator<Item = TokenId>, max_tokens: usize) -> Request {
    let params = SamplingParams { max_tokens: max_tokens as u32, ..SamplingParams::default() };
    Request::generate(prompt.collect::<Vec<_>>(), params)
}

/// Sequences in the middle of decoding, started afresh when they have run for long.
struct Decoding {
    core: Core,
    seqs: usize,
    left: usize,
}

const PROMPT: usize = 100;
const STEPS: usize = 1024;

impl Decoding {
    fn new(seqs: usize) -> Self {
        let each = PROMPT + STEPS + BLOCK_SIZE;
        let core = core(seqs, each, seqs * each.div_ceil(BLOCK_SIZE), true);
        let mut decoding = Self { core, seqs, left: 0 };
        decoding.restart();
        decoding
    }

    fn restart(&mut self) {
        let mut events = Vec::new();
        for id in 0..self.seqs as u64 {
            self.core.scheduler_mut().abort(SeqId(id));
            let prompt = (0..PROMPT as TokenId).map(|i| i + 1000 * id as TokenId);
            let request = request(prompt, STEPS + BLOCK_SIZE);
            self.core.scheduler_mut().add(SeqId(id), request).expect("the prompt fits");
        }
        // One step takes all prompts.
        self.core.advance(&mut events);
        assert_eq!(self.core.scheduler().num_running(), self.seqs);
        self.left = STEPS;
    }

    fn run(&mut self, steps: u64) -> Duration {
        let (mut took, mut events) = (Duration::ZERO, Vec::new());
        let mut steps = steps as usize;
        while steps > 0 {
            if self.left == 0 {
                self.restart();
            }
            let now = steps.min(self.left);
            let started = Instant::now();
            for _ in 0..now {
                assert!(self.core.advance(&mut events));
                events.clear();
            }
            took += started.elapsed();
            (steps, self.left) = (steps - now, self.left - now);
        }
        took
    }
}

fn decode(c: &mut Criterion) {
    let mut group = c.benchmark_group("scheduler/decode");
    group.sample_size(20).warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(1));
    for seqs in [1, 64, 256] {
        let mut decoding = Decoding::new(seqs);
        group.throughput(Throughput::Elements(seqs as u64));
        group.bench_function(seqs.to_string(), |b| b.iter_custom(|steps| decoding.run(steps)));
    }
    group.finish();
}

fn admit(c: &mut Criterion) {
    let mut group = c.benchmark_group("scheduler/admit");
    group.sample_size(20).warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(1));
    for len in [512, 8192] {
        group.throughput(Throughput::Elements(len as u64));
        for (name, caching, distinct) in [("hit", true, false), ("miss", true, true), ("off", false, false)] {
            // Room for four prompts: from the fifth distinct one on, each evicts another.
            let mut core = core(1, 2 * len, 4 * len / BLOCK_SIZE, caching);
            let (mut id, mut events) = (0u64, Vec::new());
            group.bench_function(format!("{name}/{len}"), |b| {
                b.iter(|| {
                    let first = if distinct { id as TokenId } else { 0 };
                    let prompt = std::iter::once(first).chain(1..len as TokenId);
                    core.scheduler_mut().add(SeqId(id), request(prompt, 1)).expect("the prompt fits");
                    while core.advance(&mut events) {}
                    events.clear();
                    id += 1;
                });
            });
            // Unless a filter or `--test` left it out.
            if id > 1 {
                let hits = core.scheduler().counters().prefix_cache_hits;
                assert_eq!(hits > 0, name == "hit", "{name}/{len}: {hits} tokens were cached");
            }
        }
    }
    group.finish();
}

/// Tokens that each sequence of the model holds.
const DEPTH: usize = 128;
const SEQS: usize = 64;

/// The default model, each sequence filled.
struct Model {
    executor: CpuExecutor,
    vocab: usize,
}

impl Model {
    const BLOCKS_EACH: usize = 2 * DEPTH / BLOCK_SIZE;

    fn load() -> RefCell<Self> {
        let (config, loaded) = default_model(2 * DEPTH, SEQS);
        let mut model = Self { executor: loaded.executor, vocab: config.vocab_size };
        for i in 0..SEQS {
            let tokens = model.tokens(i * DEPTH, DEPTH);
            fill(&mut model.executor, i, &tokens, 0, Self::BLOCKS_EACH);
        }
        RefCell::new(model)
    }

    fn tokens(&self, from: usize, count: usize) -> Vec<TokenId> {
        (from..from + count).map(|i| ((i * 7919 + 13) % self.vocab) as TokenId).collect()
    }
}

fn steps(c: &mut Criterion) {
    let mut group = c.benchmark_group("step");
    group.sample_size(10).sampling_mode(SamplingMode::Flat);
    group.warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(2));
    // Not loaded if a filter leaves all of this out.
    let model = LazyCell::new(Model::load);

    group.throughput(Throughput::Elements(DEPTH as u64));
    group.bench_function(format!("prefill/{DEPTH}"), |b| {
        let model = &mut *model.borrow_mut();
        let prompt = vec![model.tokens(0, DEPTH)];
        b.iter(|| step(&mut model.executor, &prompt, 0, Model::BLOCKS_EACH));
    });
    for rows in [1, 16, SEQS] {
        group.throughput(Throughput::Elements(rows as u64));
        group.bench_function(format!("decode/{rows}"), |b| {
            let model = &mut *model.borrow_mut();
            // Always the same position: it is overwritten by each step.
            let mut tokens: Vec<Vec<TokenId>> = (0..rows).map(|i| model.tokens(i, 1)).collect();
            b.iter(|| {
                let next = step(&mut model.executor, &tokens, DEPTH, Model::BLOCKS_EACH);
                tokens.iter_mut().zip(next).for_each(|(old, new)| old[0] = new);
            });
        });
    }
    group.finish();
}

criterion_group!(benches, decode, admit, steps);
criterion_main!(benches);
