//! [`Executor`] for a model on the CPU.

use std::collections::HashMap;
use std::sync::Arc;

mod prompt;

use self::prompt::Sum;
use super::sampler::{Sampler, Scratch};
use crate::engine::{
    AdapterSlot, AdapterWeights, Executor, ExecutorError, MaskTask, RowOut, SampleInput, SampleRow, SeqId, StepInput,
    StepOutput, Ticket, TokenId, TokenSource, Want,
};
use crate::model::config::LlamaConfig;
use crate::model::llama::Llama;
use crate::ops::cpu::{Cpu, X};
use crate::ops::{Batch, Ops, OpsError, Span};

/// A Llama on [`Cpu`] ops. Answers synchronously: its depth is 1.
pub struct CpuExecutor {
    ops: Cpu,
    model: Llama<Cpu>,
    vocab_size: usize,
    hidden_size: usize,
    sampler: Sampler,
    /// One for each worker.
    scratch: Vec<std::sync::Mutex<Scratch>>,
    input: Input,
    /// Which rows of logits each row of the step owns.
    rows: Vec<std::ops::Range<usize>>,
    /// Hidden states so far of sequences whose mean is wanted.
    sums: HashMap<SeqId, Sum>,
    output: Option<(Ticket, StepOutput)>,
    next_ticket: u64,
}

/// A step as the model reads it. Reused.
#[derive(Default)]
struct Input {
    tokens: Vec<TokenId>,
    positions: Vec<u32>,
    spans: Vec<Span>,
    outputs: Vec<u32>,
}

impl CpuExecutor {
    /// An executor for a model already loaded into `ops`, whose cache is allocated.
    pub fn new(mut ops: Cpu, model: Llama<Cpu>, config: &LlamaConfig) -> Self {
        let workers = ops.logits().0.size();
        Self {
            ops,
            model,
            vocab_size: config.vocab_size,
            hidden_size: config.hidden_size,
            sampler: Sampler::new(config.vocab_size),
            scratch: (0..workers).map(|_| Default::default()).collect(),
            input: Input::default(),
            rows: Vec::new(),
            sums: HashMap::new(),
            output: None,
            next_ticket: 0,
        }
    }

    /// Makes room for LoRA adapters; see [`super::adapters::load`].
    pub fn enable_adapters(&mut self, slots: usize, max_rank: usize) {
        self.ops.enable_adapters(slots, max_rank);
    }

    /// Only tokens below `limit` are sampled from now on, and log-probabilities are over them: embeddings may have more
    /// rows than the tokenizer has tokens, and those rows are padding.
    pub fn sample_below(&mut self, limit: usize) {
        self.vocab_size = self.vocab_size.min(limit.max(1));
        self.sampler = Sampler::new(self.vocab_size);
    }

    /// The operations underneath, to inspect.
    pub fn ops(&self) -> &Cpu {
        &self.ops
    }

    /// Logits of the last forward pass, `[R][vocab_size]`: for tests and scoring.
    pub fn logits(&mut self) -> Vec<Vec<f32>> {
        let count = self.input.outputs.len();
        let (_, logits, stride) = self.ops.logits();
        logits.chunks_exact(stride).take(count).map(|row| row[..self.vocab_size].to_vec()).collect()
    }

    fn assemble(&mut self, step: &StepInput) -> Result<(), ExecutorError> {
        let Input { tokens, positions, spans, outputs } = &mut self.input;
        tokens.clear();
        positions.clear();
        spans.clear();
        outputs.clear();
        self.rows.clear();
        for row in &step.rows {
            let TokenSource::Host(range) = &row.tokens else {
                return Err(ExecutorError("a row refers to a step in flight, and none can be".into()));
            };
            let first = tokens.len();
            tokens.extend_from_slice(&step.tokens[range.clone()]);
            positions.extend((row.start..row.start + row.len).map(|p| p as u32));
            let end = tokens.len();
            spans.push(Span { tokens: first..end, start: row.start, blocks: row.blocks.clone(), adapter: row.adapter });
            let from = outputs.len();
            let wanted = match row.want {
                Want::None | Want::Pool { .. } => 0,
                Want::Sample { last } => last.min(row.len),
            };
            outputs.extend((end - wanted..end).map(|i| i as u32));
            self.rows.push(from..outputs.len());
        }
        Ok(())
    }

    /// The forward pass of what was assembled, and all results but sampled tokens. Leaves the logits of rows
    /// that sample.
    fn compute(&mut self, step: &StepInput, input: &Input) -> Result<StepOutput, OpsError> {
        let Input { tokens, positions, spans, outputs } = input;
        let batch = Batch { tokens, positions, spans, blocks: &step.blocks, outputs };
        let x: X = self.model.layers(&mut self.ops, &batch)?;
        let mut out = StepOutput { rows: vec![RowOut::None; step.rows.len()], scores: Vec::new() };
        self.score(step, &x, &batch, &mut out)?;
        // Of several ranks one answers; the others have helped to make its logits.
        if self.ops.has_logits() {
            self.pool(step, &x, &batch, &mut out)?;
        }
        if !outputs.is_empty() {
            self.model.head(&mut self.ops, &x, &batch)?;
        }
        Ok(out)
    }
}

impl Executor for CpuExecutor {
    fn max_sampled(&self) -> usize {
        self.ops.max_outputs()
    }

    fn max_adapters(&self) -> usize {
        self.ops.adapter_slots()
    }

    fn load_adapter(&mut self, slot: AdapterSlot, weights: Arc<AdapterWeights>) -> Result<(), ExecutorError> {
        let adapter = weights.downcast().map_err(|_| ExecutorError("the adapter is for another device".into()))?;
        self.ops.load_adapter(slot, adapter).map_err(|e| ExecutorError(e.to_string()))
    }

    fn unload_adapter(&mut self, slot: AdapterSlot) {
        self.ops.unload_adapter(slot);
    }

    fn adapters(&self) -> (usize, usize) {
        self.ops.adapters()
    }

    fn forward(&mut self, step: &StepInput) -> Result<(), ExecutorError> {
        self.sampler.release(&step.released);
        for seq in &step.released {
            self.sums.remove(seq);
        }
        self.assemble(step)?;
        let input = std::mem::take(&mut self.input);
        let out = self.compute(step, &input);
        self.input = input;
        let out = out.map_err(|e| ExecutorError(e.to_string()))?;
        self.output = Some((Ticket(self.next_ticket), out));
        Ok(())
    }

    /// The workers are still awake from the forward pass.
    fn make_masks(&mut self, tasks: &mut [MaskTask<'_>]) {
        let (pool, ..) = self.ops.logits();
        pool.for_each(tasks, |_, task| task.run());
    }

    fn sample(&mut self, request: &SampleInput<'_>) -> Result<Ticket, ExecutorError> {
        struct Job<'a> {
            logits: &'a mut [f32],
            row: SampleRow<'a>,
            out: RowOut,
        }
        let Some((ticket, out)) = &mut self.output else {
            return Err(ExecutorError("sampling without a forward pass".into()));
        };
        self.sampler.prepare(request);
        let (pool, logits, stride) = self.ops.logits();
        let mut all = logits.chunks_exact_mut(stride).enumerate();
        let mut jobs = Vec::with_capacity(request.rows.len());
        for row in &request.rows {
            let range = &self.rows[row.row];
            for (k, i) in range.clone().enumerate() {
                let (_, logits) = all.by_ref().find(|(j, _)| *j == i).expect("rows of logits ascend");
                // Sampled as if the drafts before it were right; if they are not, it is dropped below.
                let drafts = &row.drafts[..k.min(row.drafts.len())];
                let row = SampleRow { position: row.position + k, drafts, ..row.clone() };
                jobs.push(Job { logits: &mut logits[..self.vocab_size], row, out: RowOut::None });
            }
        }
        let (sampler, scratch) = (&self.sampler, &self.scratch);
        pool.for_each(&mut jobs, |worker, job| {
            let mut scratch = scratch[worker].lock().unwrap_or_else(|e| e.into_inner());
            job.out = sampler.sample_row(job.logits, &job.row, &mut scratch);
        });
        for job in jobs {
            match (&mut out.rows[job.row.row], job.out) {
                (row @ RowOut::None, first) => *row = first,
                // A failure after drafts is met again when the token before it is known, or never.
                (RowOut::Tokens(before), RowOut::Tokens(more)) => {
                    let sampled = before.iter().map(|s| s.token);
                    if sampled.eq(job.row.drafts.iter().copied()) {
                        before.extend(more);
                    }
                }
                _ => {}
            }
        }
        self.next_ticket += 1;
        Ok(*ticket)
    }

    fn collect(&mut self, ticket: Ticket) -> Result<StepOutput, ExecutorError> {
        match self.output.take() {
            Some((t, out)) if t == ticket => Ok(out),
            _ => Err(ExecutorError(format!("no step {} is in flight", ticket.0))),
        }
    }
}
