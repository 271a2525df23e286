//! [`Executor`] for a model on the CPU.

use std::collections::HashMap;

use super::sampler::{Sampler, Scratch, token_logprob};
use crate::engine::{
    BlockId, Executor, ExecutorError, Row, RowOut, SampleInput, SampleRow, SeqId, StepInput, StepOutput, Ticket,
    TokenId, TokenSource, Want,
};
use crate::model::llama::Llama;
use crate::ops::cpu::Cpu;
use crate::ops::{Batch, Span};

/// A Llama on [`Cpu`] ops. Answers synchronously: its depth is 1.
pub struct CpuExecutor {
    ops: Cpu,
    model: Llama<Cpu>,
    vocab_size: usize,
    sampler: Sampler,
    /// One for each worker.
    scratch: Vec<std::sync::Mutex<Scratch>>,
    input: Input,
    /// Rows of the step, and which rows of logits each one owns.
    rows: Vec<(Want, std::ops::Range<usize>)>,
    /// Logits after the last token so far of sequences whose prompt is being scored.
    carried: HashMap<SeqId, Vec<f32>>,
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
    pub fn new(mut ops: Cpu, model: Llama<Cpu>, vocab_size: usize) -> Self {
        let workers = ops.logits().0.size();
        Self {
            ops,
            model,
            vocab_size,
            sampler: Sampler::new(vocab_size),
            scratch: (0..workers).map(|_| Default::default()).collect(),
            input: Input::default(),
            rows: Vec::new(),
            carried: HashMap::new(),
            output: None,
            next_ticket: 0,
        }
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
                Want::None | Want::Pooled => 0,
                Want::Sample { last } => last.min(row.len),
                Want::PromptLogprobs => row.len,
            };
            outputs.extend((end - wanted..end).map(|i| i as u32));
            self.rows.push((row.want.clone(), from..outputs.len()));
        }
        Ok(())
    }

    /// Log-probabilities of a row's tokens, from the logits before each.
    fn score(&mut self, row: &Row, tokens: &[TokenId], at: std::ops::Range<usize>) -> RowOut {
        let carried = self.carried.remove(&row.seq);
        let (_, logits, stride) = self.ops.logits();
        let logits = |i: usize| &logits[(at.start + i) * stride..][..self.vocab_size];
        let mut scratch = self.scratch[0].lock().unwrap_or_else(|e| e.into_inner());
        let scores = tokens.iter().enumerate().map(|(i, token)| match (i, &carried) {
            (0, None) => Some(0.0),
            (0, Some(before)) => token_logprob(before, *token, &mut scratch),
            _ => token_logprob(logits(i - 1), *token, &mut scratch),
        });
        let scores: Option<Vec<f32>> = scores.collect();
        self.carried.insert(row.seq, logits(tokens.len() - 1).to_vec());
        match scores {
            Some(scores) => RowOut::PromptLogprobs(scores),
            None => RowOut::Failed("the model's output is not finite".into()),
        }
    }
}

impl Executor for CpuExecutor {
    fn forward(&mut self, step: &StepInput) -> Result<(), ExecutorError> {
        self.sampler.release(&step.released);
        for seq in &step.released {
            self.carried.remove(seq);
        }
        self.assemble(step)?;
        let blocks: &[BlockId] = &step.blocks;
        let Input { tokens, positions, spans, outputs } = &self.input;
        let batch = Batch { tokens, positions, spans, blocks, outputs };
        self.model.forward(&mut self.ops, &batch).map_err(|e| ExecutorError(e.to_string()))?;

        let mut out = StepOutput::default();
        for (i, row) in step.rows.iter().enumerate() {
            out.rows.push(match row.want {
                Want::None | Want::Sample { .. } => RowOut::None,
                Want::Pooled => RowOut::Failed("this model does not pool".into()),
                Want::PromptLogprobs => {
                    let tokens = self.input.tokens[self.input.spans[i].tokens.clone()].to_vec();
                    self.score(row, &tokens, self.rows[i].1.clone())
                }
            });
        }
        self.output = Some((Ticket(self.next_ticket), out));
        Ok(())
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
            let (_, range) = &self.rows[row.row];
            for (k, i) in range.clone().enumerate() {
                let (_, logits) = all.by_ref().find(|(j, _)| *j == i).expect("rows of logits ascend");
                let row = SampleRow { position: row.position + k, ..row.clone() };
                jobs.push(Job { logits: &mut logits[..self.vocab_size], row, out: RowOut::None });
            }
        }
        let (sampler, scratch) = (&self.sampler, &self.scratch);
        pool.for_each(&mut jobs, |worker, job| {
            let mut scratch = scratch[worker].lock().unwrap_or_else(|e| e.into_inner());
            job.out = sampler.sample_row(job.logits, &job.row, &mut scratch);
        });
        for job in jobs {
            let row = &mut out.rows[job.row.row];
            *row = match (std::mem::replace(row, RowOut::None), job.out) {
                (RowOut::None, out) => out,
                (RowOut::Tokens(mut before), RowOut::Tokens(more)) => {
                    before.extend(more);
                    RowOut::Tokens(before)
                }
                (_, failed @ RowOut::Failed(_)) | (failed, _) => failed,
            };
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
