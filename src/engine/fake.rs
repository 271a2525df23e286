//! An executor without a model, for tests and benches of everything above it.
//!
//! It keeps real tokens in a simulated paged pool and derives each next token from all the tokens
//! the row's block table leads to. A wrong table, a block used twice or a wrong position therefore
//! changes the output, and [`oracle`] says what it should have been.

mod control;
mod model;

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use smallvec::SmallVec;

use super::adapters::AdapterWeights;
use super::constraint::MaskTask;
use super::executor::{
    Executor, ExecutorError, Row, RowOut, SampleInput, SampleRow, Sampled, StepInput, StepOutput, Ticket, TokenSource,
    Want,
};
use super::types::{AdapterSlot, BLOCK_SIZE, Pooling, SeqId, TokenId};
pub use control::{FakeControl, Fault};
use model::allowed;
pub use model::{FAKE_HIDDEN, fake_hidden, next_token, oracle, oracle_pooled, oracle_scores, score_token};

/// The output token at an index of a prompt; `None` leaves it to the hash.
pub type Script = Box<dyn Fn(&[TokenId], usize) -> Option<TokenId> + Send>;

/// A deterministic executor of depth 1 or 2. Its pool grows as block ids demand.
pub struct FakeExecutor {
    depth: usize,
    vocab_size: u32,
    script: Option<Script>,
    control: FakeControl,
    /// Token at each position of each block.
    pool: Vec<Option<TokenId>>,
    /// Of the step being made: what each row attends to, if that is wanted, and the fault it will have.
    contexts: Vec<Vec<TokenId>>,
    adapters: Vec<Option<AdapterSlot>>,
    fault: Option<Fault>,
    /// Results of the step being made, but for sampling.
    made: StepOutput,
    /// Sums of hidden states so far, with the number of tokens, of sequences that are pooled.
    sums: HashMap<SeqId, (usize, [f64; FAKE_HIDDEN])>,
    /// Tokens sampled by the rows of the step before.
    previous: Vec<Option<TokenId>>,
    in_flight: VecDeque<(Ticket, Result<StepOutput, ExecutorError>)>,
    next_ticket: u64,
    /// Adapters loaded, by slot.
    loaded: HashMap<u32, AdapterSlot>,
    max_adapters: usize,
}

impl FakeExecutor {
    /// `depth` steps in flight, tokens `0..vocab_size`.
    pub fn new(depth: usize, vocab_size: u32) -> Self {
        Self {
            depth,
            vocab_size: vocab_size.max(1),
            script: None,
            control: FakeControl::default(),
            pool: Vec::new(),
            contexts: Vec::new(),
            adapters: Vec::new(),
            fault: None,
            made: StepOutput::default(),
            sums: HashMap::new(),
            previous: Vec::new(),
            in_flight: VecDeque::new(),
            next_ticket: 0,
            loaded: HashMap::new(),
            max_adapters: 0,
        }
    }

    /// Every sequence generates these tokens first.
    pub fn with_script(self, tokens: Vec<TokenId>) -> Self {
        self.with_script_fn(Box::new(move |_, index| tokens.get(index).copied()))
    }

    /// Output tokens by prompt and index.
    pub fn with_script_fn(mut self, script: Script) -> Self {
        self.script = Some(script);
        self
    }

    /// With slots for adapters; a row that names one must then name one that is loaded. What they hold does not
    /// matter: the slot and its generation change the output.
    pub fn with_adapters(mut self, slots: usize) -> Self {
        self.max_adapters = slots;
        self
    }

    /// Its counts and levers.
    pub fn control(&self) -> FakeControl {
        self.control.clone()
    }

    /// Writes a row's tokens into the pool.
    fn write(&mut self, step: &StepInput, row: &Row) -> Result<(), ExecutorError> {
        let table = step.block_table(row);
        if table.len() != (row.start + row.len).div_ceil(BLOCK_SIZE) {
            return Err(ExecutorError(format!("{:?}: {} blocks for {} positions", row.seq, table.len(), row.start)));
        }
        for offset in 0..row.len {
            // The row before may have failed: then this one has no token, and fails as well.
            let token = match &row.tokens {
                TokenSource::Host(range) => step.tokens[range.clone()].get(offset).copied(),
                TokenSource::PreviousStep { row } => self.previous.get(*row).copied().flatten(),
            };
            let slot = slot_of(table, row.start + offset);
            if slot >= self.pool.len() {
                self.pool.resize(slot + 1, None);
            }
            self.pool[slot] = token;
        }
        Ok(())
    }

    /// A step that fails may leave anything in the blocks it was to write.
    fn spoil(&mut self, step: &StepInput) {
        for row in &step.rows {
            for position in row.start..row.start + row.len {
                let slot = slot_of(step.block_table(row), position);
                if slot < self.pool.len() {
                    self.pool[slot] = None;
                }
            }
        }
    }

    /// Tokens up to the first that is not the draft that follows.
    fn sample_row(&self, row: &SampleRow<'_>) -> Result<SmallVec<[Sampled; 1]>, String> {
        let context = &self.contexts[row.row];
        let wrong = || format!("{:?}: the cache does not hold its history", row.seq);
        let (context, drafts) = context.split_at_checked(row.position).ok_or_else(wrong)?;
        let known = context.len().min(row.history.len());
        if context[..known] != row.history[..known] || drafts != row.drafts {
            return Err(wrong());
        }
        let mut out = SmallVec::new();
        for guessed in 0..=drafts.len() {
            let sampled = self.sample_after(row, &self.contexts[row.row][..row.position + guessed])?;
            let right = drafts.get(guessed) == Some(&sampled.token);
            out.push(sampled);
            if !right {
                break;
            }
        }
        Ok(out)
    }

    fn sample_after(&self, row: &SampleRow<'_>, context: &[TokenId]) -> Result<Sampled, String> {
        let scripted = self.script.as_ref().and_then(|script| {
            script(&row.history[..row.num_prompt], context.len() - row.num_prompt).map(|t| t % self.vocab_size)
        });
        let drawn = || next_token(context, row.params, self.adapters[row.row], self.vocab_size);
        let generated = context.len() - row.num_prompt;
        let token = allowed(scripted.unwrap_or_else(drawn), row.params, generated, row.mask, self.vocab_size)
            .ok_or_else(|| format!("no token is possible at position {}", context.len()))?;
        let (logprob, top) = match row.params.logprobs {
            None => (0.0, Vec::new()),
            Some(count) => {
                let count = count.min(self.vocab_size);
                (-0.5, (0..count).map(|i| ((token + i) % self.vocab_size, -0.5 - i as f32)).collect())
            }
        };
        Ok(Sampled { token, logprob, top })
    }
}

impl FakeExecutor {
    /// Scores and pools a row; its context is read.
    fn finish_row(&mut self, step: &StepInput, index: usize) {
        let (row, context, adapter) = (&step.rows[index], &self.contexts[index], self.adapters[index]);
        let out = &mut self.made.rows[index];
        if context.len() != row.start + row.len && (row.score.is_some() || matches!(row.want, Want::Pool { .. })) {
            *out = RowOut::Failed(format!("{:?}: the cache has holes", row.seq));
            return;
        }
        if let Some(score) = &row.score {
            let targets = step.targets[score.targets.clone()].iter().enumerate();
            let known = |i: usize| &context[..row.start + score.first + i + 1];
            let scored = targets.map(|(i, &t)| score_token(known(i), t, score.top, adapter, self.vocab_size));
            self.made.scores.push((index, scored.collect()));
        }
        let Want::Pool { pooling, last } = row.want else { return };
        let (pooled, done) = match pooling {
            Pooling::Last => (fake_hidden(context, adapter), last),
            Pooling::Mean => {
                let (tokens, sum) = self.sums.entry(row.seq).or_default();
                if row.start == 0 {
                    (*tokens, *sum) = Default::default();
                }
                if *tokens != row.start {
                    *out = RowOut::Failed(format!("{:?}: {tokens} tokens are summed, not {}", row.seq, row.start));
                    return;
                }
                for end in row.start + 1..=context.len() {
                    let hidden = fake_hidden(&context[..end], adapter);
                    (0..FAKE_HIDDEN).for_each(|i| sum[i] += f64::from(hidden[i]));
                }
                *tokens = context.len();
                let mean = sum.map(|s| (s / context.len() as f64) as f32);
                if last {
                    self.sums.remove(&row.seq);
                }
                (mean, last)
            }
        };
        if done {
            *out = RowOut::Pooled(pooled.to_vec());
        }
    }
}

fn slot_of(table: &[super::types::BlockId], position: usize) -> usize {
    table[position / BLOCK_SIZE].0 as usize * BLOCK_SIZE + position % BLOCK_SIZE
}

impl Executor for FakeExecutor {
    fn depth(&self) -> usize {
        self.depth
    }

    fn max_adapters(&self) -> usize {
        self.max_adapters
    }

    fn load_adapter(&mut self, slot: AdapterSlot, _: Arc<AdapterWeights>) -> Result<(), ExecutorError> {
        match self.loaded.insert(slot.index, slot) {
            None => Ok(()),
            Some(before) => Err(ExecutorError(format!("{before:?} is still loaded"))),
        }
    }

    fn unload_adapter(&mut self, slot: AdapterSlot) {
        if self.loaded.get(&slot.index) == Some(&slot) {
            self.loaded.remove(&slot.index);
        }
    }

    fn adapters(&self) -> (usize, usize) {
        (self.loaded.len(), self.loaded.len())
    }

    fn forward(&mut self, step: &StepInput) -> Result<(), ExecutorError> {
        self.control.pass_gate();
        let known = |slot: &AdapterSlot| self.max_adapters == 0 || self.loaded.get(&slot.index) == Some(slot);
        if let Some(slot) = step.rows.iter().filter_map(|r| r.adapter).find(|slot| !known(slot)) {
            return Err(ExecutorError(format!("{slot:?} is not loaded")));
        }
        self.control.count(step);
        if self.in_flight.len() >= self.depth {
            return Err(ExecutorError(format!("more than {} steps in flight", self.depth)));
        }
        self.fault = self.control.take_fault(step.step);
        self.made = StepOutput { rows: vec![RowOut::None; step.rows.len()], scores: Vec::new() };
        step.released.iter().for_each(|seq| _ = self.sums.remove(seq));
        for row in &step.rows {
            self.write(step, row)?;
        }
        self.contexts.resize_with(step.rows.len(), Vec::new);
        self.adapters.clear();
        for (row, context) in step.rows.iter().zip(&mut self.contexts) {
            self.adapters.push(row.adapter);
            context.clear();
            if row.want != Want::None || row.score.is_some() {
                let table = step.block_table(row);
                let read = |position| self.pool[slot_of(table, position)];
                context.extend((0..row.start + row.len).map_while(read));
            }
        }
        (0..step.rows.len()).for_each(|index| self.finish_row(step, index));
        match self.fault {
            Some(Fault::Forward) => {
                self.spoil(step);
                Err(ExecutorError("injected into forward".into()))
            }
            Some(Fault::Panic) => {
                self.spoil(step);
                panic!("injected into forward")
            }
            Some(Fault::Sample | Fault::Collect) => {
                self.spoil(step);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// With a depth of two, on several threads and the last first.
    fn make_masks(&mut self, tasks: &mut [MaskTask<'_>]) {
        self.control.count_masks(tasks.len());
        if self.depth == 1 {
            return tasks.iter_mut().for_each(MaskTask::run);
        }
        std::thread::scope(|scope| {
            for part in tasks.chunks_mut(2).rev() {
                scope.spawn(|| part.iter_mut().rev().for_each(MaskTask::run));
            }
        });
    }

    fn sample(&mut self, request: &SampleInput<'_>) -> Result<Ticket, ExecutorError> {
        if self.fault == Some(Fault::Sample) {
            return Err(ExecutorError("injected into sample".into()));
        }
        let mut output = std::mem::take(&mut self.made);
        let num_rows = output.rows.len();
        self.previous.clear();
        self.previous.resize(num_rows, None);
        for row in &request.rows {
            if matches!(output.rows[row.row], RowOut::Failed(_)) {
                continue;
            }
            if row.position == row.num_prompt {
                self.control.begins(row.params);
            }
            output.rows[row.row] = match self.sample_row(row) {
                Ok(sampled) => {
                    self.previous[row.row] = sampled.last().map(|s| s.token);
                    RowOut::Tokens(sampled)
                }
                Err(message) => RowOut::Failed(message),
            };
        }
        let result = match self.fault {
            Some(Fault::Collect) => Err(ExecutorError("injected into collect".into())),
            Some(Fault::Row(row)) => {
                let row = row % num_rows.max(1);
                output.rows[row] = RowOut::Failed("injected into a row".into());
                Ok(output)
            }
            _ => Ok(output),
        };
        let ticket = Ticket(self.next_ticket);
        self.next_ticket += 1;
        self.in_flight.push_back((ticket, result));
        Ok(ticket)
    }

    fn collect(&mut self, ticket: Ticket) -> Result<StepOutput, ExecutorError> {
        match self.in_flight.pop_front() {
            Some((oldest, result)) if oldest == ticket => result,
            _ => Err(ExecutorError(format!("{ticket:?} is not the oldest in flight"))),
        }
    }
}
