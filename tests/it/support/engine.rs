//! A real model behind a real engine, to be asked by many at once.

use std::sync::atomic::Ordering::Relaxed;

use lima::engine::{
    EngineConfig, EngineHandle, EngineThread, Event, Executor, FinishReason, Request, SamplingParams, Scored,
    Speculation, TokenId, spawn,
};
use lima::model::config::LlamaConfig;
use lima::model::weights::Checkpoint;
use lima::ops::cpu::kv::{KvPool, KvType};
use lima::ops::cpu::level::Level;
use lima::ops::quant::DType;
use lima::runner::{self, CpuExecutor, RunnerOptions};

/// How an engine is built, beside its model.
#[derive(Clone, Copy, Debug)]
pub struct Setting {
    pub dtype: DType,
    /// Type of the cache; `None`: what goes with the format.
    pub kv: Option<KvType>,
    pub level: Level,
    pub threads: usize,
    pub max_num_batched_tokens: usize,
    pub num_blocks: usize,
    pub prefix_caching: bool,
    pub speculation: Speculation,
}

/// Sequences have at most so many tokens.
pub const MAX_LEN: usize = 160;
/// Sequences run at most so many at once.
pub const MAX_SEQS: usize = 64;

impl Setting {
    pub fn config(&self) -> EngineConfig {
        EngineConfig {
            max_num_seqs: MAX_SEQS,
            max_num_batched_tokens: self.max_num_batched_tokens,
            max_model_len: MAX_LEN,
            num_blocks: self.num_blocks,
            enable_prefix_caching: self.prefix_caching,
            speculation: self.speculation,
            max_queued_requests: 1024,
            max_queued_tokens: 1 << 20,
        }
    }

    /// Loads the model as the server does.
    pub fn load(&self, checkpoint: &Checkpoint) -> CpuExecutor {
        let options = self.options(checkpoint, std::slice::from_ref(checkpoint.config()));
        let loaded = runner::load(checkpoint, &options, |_| ()).unwrap();
        assert_eq!(loaded.num_blocks, self.num_blocks);
        loaded.executor
    }

    /// The server's choices, for ranks of these shapes.
    pub fn options(&self, checkpoint: &Checkpoint, shapes: &[LlamaConfig]) -> RunnerOptions {
        let kv = self.kv.unwrap_or_else(|| runner::load::kv_type(checkpoint, Some(self.dtype)));
        let block: usize = shapes.iter().map(|shape| KvPool::block_bytes(shape, kv)).sum();
        RunnerOptions {
            threads: Some(self.threads),
            dtype: Some(self.dtype),
            kv_cache: self.kv,
            max_model_len: Some(MAX_LEN),
            max_num_batched_tokens: self.max_num_batched_tokens,
            max_num_seqs: MAX_SEQS,
            kv_cache_memory: Some((self.num_blocks * block) as u64),
            level: self.level,
        }
    }
}

/// Tokens and the bits of their log-probabilities.
pub type Top = Vec<(TokenId, u32)>;

/// All that a request's reader saw, floats as bits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    pub tokens: Vec<TokenId>,
    pub logprobs: Vec<u32>,
    pub top: Vec<Top>,
    /// Of the prompt's tokens from the second on: id, bits, rank, and the most likely ones.
    pub scores: Vec<(TokenId, u32, u32, Top)>,
    pub pooled: Option<Vec<u32>>,
    pub finish: FinishReason,
}

/// A running engine.
pub struct Running {
    pub handle: EngineHandle,
    thread: Option<EngineThread>,
}

impl Running {
    pub fn start(checkpoint: &Checkpoint, setting: Setting) -> Self {
        Self::with(setting.load(checkpoint), setting)
    }

    pub fn with(executor: CpuExecutor, setting: Setting) -> Self {
        Self::of(Box::new(executor), setting)
    }

    pub fn of(executor: Box<dyn Executor>, setting: Setting) -> Self {
        let (handle, thread) = spawn(setting.config(), executor);
        Self { handle, thread: Some(thread) }
    }

    /// Submits all at once; returns outputs and how many prompt tokens each found cached.
    pub fn ask(&self, requests: &[Request]) -> Vec<(Output, usize)> {
        let streams = self.handle.submit(requests.to_vec()).unwrap();
        let read = |mut stream: lima::engine::EventStream| {
            let (mut tokens, mut logprobs, mut top, mut cached) = (vec![], vec![], vec![], 0);
            let (mut scores, mut pooled) = (vec![], None);
            loop {
                match stream.blocking_recv().unwrap() {
                    Event::Scheduled { cached_tokens } => cached = cached_tokens,
                    Event::Token(t) => {
                        tokens.push(t.token);
                        logprobs.push(t.logprob.to_bits());
                        top.push(bits(&t.top));
                    }
                    Event::PromptLogprobs(more) => {
                        let one = |s: &Scored| (s.token, s.logprob.to_bits(), s.rank, bits(&s.top));
                        scores.extend(more.iter().map(one));
                    }
                    Event::Pooled(p) => pooled = Some(p.iter().map(|v| v.to_bits()).collect()),
                    Event::Finished(finish) => {
                        return (Output { tokens, logprobs, top, scores, pooled, finish }, cached);
                    }
                    Event::Failed(e) => panic!("{e}"),
                }
            }
        };
        streams.into_iter().map(read).collect()
    }

    pub fn preemptions(&self) -> u64 {
        self.handle.stats().preemptions.load(Relaxed)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.handle.shutdown();
        let _ = self.thread.take().map(EngineThread::join);
    }
}

fn bits(top: &[(TokenId, f32)]) -> Top {
    top.iter().map(|(id, p)| (*id, p.to_bits())).collect()
}

/// A prompt of `len` tokens from `first` on, continued until `max_tokens`.
pub fn counting(first: TokenId, len: u32, max_tokens: u32) -> Request {
    let params = SamplingParams { max_tokens, ..SamplingParams::default() };
    Request::generate((first..first + len).collect::<Vec<_>>(), params)
}
