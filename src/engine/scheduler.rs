//! Decides what each step computes. Pure bookkeeping: no tensors, clocks, channels or `async`.
//!
//! Every sequence catches its computed positions up with its tokens under one budget of tokens per
//! step. One order key decides: the smallest is admitted first, the largest is preempted. The
//! smallest running sequence is therefore never preempted and always advances, so nothing livelocks.
//!
//! A step may be scheduled before the one before it is collected. Its decode rows then take their
//! token from the device. What a sequence has in flight when it is preempted, aborted or stopped
//! becomes void: the rows are recognised by sequence and epoch, and dropped. Its blocks are free at
//! once, because steps run in order.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use super::adapters::AdapterLease;
use super::block_pool::{BlockPool, BlockTable};
use super::constraint::{Guide, MaskTask};
use super::event::{Event, SeqEvent};
use super::executor::{Row, SampleInput, SampleRow, StepInput, TokenSource};
use super::fairness::{Accounts, Waiting};
use super::sequence::{OrderKey, RowRef, Sequence};
use super::speculation::{Speculation, StepCosts};
use super::types::{BLOCK_SIZE, BlockId, FinishReason, Request, SeqId, Task, TokenId};

mod admit;
mod assemble;
mod drafts;
mod invariants;
mod record;
mod trace;
mod update;

use record::{Returns, RowRecord, StepRecord};

/// Where several tenants share the engine, a step computes this part of its tokens at most of prompts.
const SHARED_CHUNKS: usize = 8;
/// But so many, which are still computed together at a good rate.
const LEAST_CHUNK: usize = 32;

/// Limits of the scheduler.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SchedulerConfig {
    /// Sequences running at once.
    pub max_num_seqs: usize,
    /// Tokens in a step.
    pub max_num_batched_tokens: usize,
    /// Prompt and output tokens of one sequence.
    pub max_model_len: usize,
    /// Blocks in the pool.
    pub num_blocks: usize,
    /// Whether full blocks are kept and shared.
    pub enable_prefix_caching: bool,
    /// Whether tokens are drafted.
    pub speculation: Speculation,
}

impl SchedulerConfig {
    /// Tokens a sequence may have, prompt and output: the model's limit or all of the pool.
    pub fn max_len(&self) -> usize {
        self.max_model_len.min(self.num_blocks * BLOCK_SIZE)
    }
}

/// What has happened so far. Tokens are counted at a sequence's first admission.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Counters {
    pub prompt_tokens: u64,
    pub cached_prompt_tokens: u64,
    pub prefix_cache_queries: u64,
    pub prefix_cache_hits: u64,
    pub generation_tokens: u64,
    /// Positions computed, also again after a preemption: of prompts and resumed sequences, and one a decoding row.
    pub prefill_tokens: u64,
    pub decode_tokens: u64,
    pub discarded_rows: u64,
    pub preemptions: u64,
    pub finished_stop: u64,
    pub finished_length: u64,
    pub aborted: u64,
    pub failed: u64,
    /// Rows with drafts, their drafts, and those that were right.
    pub drafts: u64,
    pub draft_tokens: u64,
    pub accepted_draft_tokens: u64,
}

/// The state of every sequence and of the block pool.
pub struct Scheduler {
    config: SchedulerConfig,
    pool: BlockPool,
    seqs: Vec<Option<Box<Sequence>>>,
    free_slots: Vec<usize>,
    by_id: HashMap<SeqId, usize>,
    /// Slots in key order.
    running: Vec<usize>,
    /// Tenants, and their waiting sequences.
    accounts: Accounts,
    /// Those with sequences, the least served first.
    turns: Vec<usize>,
    num_waiting: usize,
    /// Waiting sequences that were admitted before.
    num_preempted: usize,
    steps: VecDeque<StepRecord>,
    /// Step records to reuse.
    spare: Vec<StepRecord>,
    released: Vec<SeqId>,
    next_step: u64,
    next_arrival: u64,
    /// The first waiting sequence and the number of blocks that were too few for it.
    blocked: Option<(SeqId, usize)>,
    hits: Vec<BlockId>,
    costs: StepCosts,
    /// Tokens that the executor samples in a step.
    max_sampled: usize,
    counters: Counters,
}

impl Scheduler {
    /// An empty scheduler.
    pub fn new(mut config: SchedulerConfig) -> Self {
        // With either at 0 nothing could ever run.
        config.max_num_seqs = config.max_num_seqs.max(1);
        config.max_num_batched_tokens = config.max_num_batched_tokens.max(1);
        Self {
            config,
            pool: BlockPool::new(config.num_blocks),
            seqs: Vec::new(),
            free_slots: Vec::new(),
            by_id: HashMap::new(),
            running: Vec::new(),
            accounts: Accounts::default(),
            turns: Vec::new(),
            num_waiting: 0,
            num_preempted: 0,
            steps: VecDeque::new(),
            spare: Vec::new(),
            released: Vec::new(),
            next_step: 0,
            next_arrival: 0,
            blocked: None,
            hits: Vec::new(),
            costs: StepCosts::new(config.speculation.cost),
            max_sampled: usize::MAX,
            counters: Counters::default(),
        }
    }

    /// Lets a step sample at most so many tokens, drafts included (at least one a sequence).
    pub fn limit_sampled(&mut self, max_sampled: usize) {
        self.max_sampled = max_sampled;
    }

    /// The pool.
    pub fn pool(&self) -> &BlockPool {
        &self.pool
    }

    /// The counters.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Sequences admitted.
    pub fn num_running(&self) -> usize {
        self.running.len()
    }

    /// Sequences not admitted yet, or preempted.
    pub fn num_waiting(&self) -> usize {
        self.num_waiting
    }

    /// Waiting sequences that had been admitted before.
    pub fn num_preempted(&self) -> usize {
        self.num_preempted
    }

    /// Steps scheduled, not collected.
    pub fn num_in_flight(&self) -> usize {
        self.steps.len()
    }

    /// Whether no sequence is left.
    pub fn is_idle(&self) -> bool {
        self.running.is_empty() && self.num_waiting == 0
    }

    /// Adds a waiting sequence and returns its slot. The prompt must not be empty and must leave
    /// room for one token, if any is wanted, within [`SchedulerConfig::max_len`]; a request that does
    /// not is returned.
    pub fn add(&mut self, id: SeqId, request: Request) -> Result<usize, Request> {
        let num_prompt = request.prompt.len();
        if num_prompt == 0 || request.least_len() > self.config.max_len() {
            return Err(request);
        }
        let key = OrderKey { priority: request.priority, virtual_time: 0, arrival: self.next_arrival };
        self.next_arrival += 1;
        let account = self.accounts.enter(request.tenant);
        let root = self.pool.root(request.cache_salt.as_ref(), request.adapter.as_ref().map(AdapterLease::slot));
        let sequence = Box::new(Sequence {
            id,
            key,
            account,
            max_len: num_prompt.saturating_add(request.max_new_tokens()).min(self.config.max_len()),
            task: request.task,
            adapter: request.adapter,
            tokens: request.prompt.to_vec(),
            num_prompt,
            params: request.params,
            num_computed: 0,
            num_scored: 1,
            in_flight: 0,
            last_row: None,
            table: BlockTable::default(),
            num_registered: 0,
            prefix: root,
            root,
            epoch: 0,
            admitted: false,
            guide: request.constraint.map(|matcher| Box::new(Guide::new(matcher))),
            lookup: None,
        });
        let slot = match self.free_slots.pop() {
            Some(slot) => slot,
            None => {
                self.seqs.push(None);
                self.seqs.len() - 1
            }
        };
        self.seqs[slot] = Some(sequence);
        self.by_id.insert(id, slot);
        self.wait(slot);
        Ok(slot)
    }

    /// Ends a sequence wherever it is; its blocks are free at once. Returns its slot, and whether it
    /// had ever been admitted.
    pub fn abort(&mut self, id: SeqId) -> Option<(usize, bool)> {
        let slot = *self.by_id.get(&id)?;
        let admitted = self.seq(slot).admitted;
        self.counters.aborted += 1;
        self.remove(slot);
        Some((slot, admitted))
    }

    /// Chooses the next step and fills `input` with it. Returns false if there is nothing to do
    /// (before an earlier step is collected, or at all). Otherwise the step counts as in flight:
    /// [`update`](Self::update) or a `fail_*` must follow.
    pub fn schedule(&mut self, input: &mut StepInput, events: &mut Vec<SeqEvent>) -> bool {
        input.clear();
        input.step = self.next_step;
        let mut record = self.spare.pop().unwrap_or_default();
        record.step = self.next_step;
        record.rows.clear();
        let mut budget = self.config.max_num_batched_tokens;

        let preempted = self.schedule_decodes(&mut budget, input, &mut record);
        let mut turns = std::mem::take(&mut self.turns);
        self.accounts.order(&mut turns);
        if self.accounts.are_several() {
            // Who comes while a step is computed waits for its end: prompts are taken in small chunks.
            budget = budget.min((self.config.max_num_batched_tokens / SHARED_CHUNKS).max(LEAST_CHUNK));
        }
        let mut admitting = !preempted;
        for &account in &turns {
            // With a row for each running sequence there is no chunk to look for.
            if record.rows.len() < self.running.len() {
                self.schedule_chunks(account, &mut budget, input, &mut record);
            }
            admitting = admitting && self.schedule_waiting(account, &mut budget, input, &mut record, events);
        }
        self.turns = turns;
        self.schedule_drafts(budget, input, &mut record);
        if record.rows.is_empty() {
            self.spare.push(record);
            return false;
        }
        input.released.append(&mut self.released);
        self.steps.push_back(record);
        self.next_step += 1;
        true
    }

    /// The masks that the step just scheduled needs: to be worked out before [`sample_input`](Self::sample_input), best
    /// while the device computes.
    pub fn mask_tasks(&mut self) -> Vec<MaskTask<'_>> {
        let Some(record) = self.steps.back() else { return Vec::new() };
        let waits = |slot: &usize| {
            let guide = self.seqs[*slot].as_deref().and_then(|seq| seq.guide.as_ref());
            guide.is_some_and(|guide| !guide.is_ready())
        };
        let sampling = record.rows.iter().filter(|r| r.returns == Returns::Token).map(|r| r.slot);
        let mut slots: Vec<usize> = sampling.filter(waits).collect();
        if slots.is_empty() {
            return Vec::new();
        }
        slots.sort_unstable();
        let all = self.seqs.iter_mut().enumerate().filter(|(slot, _)| slots.binary_search(slot).is_ok());
        all.filter_map(|(_, seq)| seq.as_deref_mut()?.guide.as_deref_mut()).map(MaskTask).collect()
    }

    /// The sampling request of the step just scheduled.
    pub fn sample_input(&self) -> SampleInput<'_> {
        let Some(record) = self.steps.back() else { return SampleInput::default() };
        let mut rows = Vec::with_capacity(record.rows.len());
        for (row, r) in record.rows.iter().enumerate().filter(|(_, r)| r.returns == Returns::Token) {
            let seq = self.seq(r.slot);
            rows.push(SampleRow {
                row,
                seq: seq.id,
                params: &seq.params,
                history: &seq.tokens,
                drafts: seq.lookup.as_deref().map_or(&[], |l| &l.proposal()[..r.drafts]),
                num_prompt: seq.num_prompt,
                position: r.end,
                mask: seq.guide.as_deref().map(Guide::mask),
            });
        }
        SampleInput { rows }
    }

    /// Tells how long the oldest step in flight took, before [`update`](Self::update): it decides how much is drafted.
    pub fn observe(&mut self, took: Duration) {
        if let Some(record) = self.steps.front().filter(|record| record.decodes) {
            let tokens = record.rows.iter().map(|r| 1 + r.drafts).sum();
            self.costs.observe(tokens, took);
        }
    }

    /// Whether the sequence is still the one, and in the state, that the row was made for.
    fn is_current(&self, row: &RowRecord) -> bool {
        self.seqs[row.slot].as_deref().is_some_and(|s| s.id == row.seq && s.epoch == row.epoch)
    }

    fn seq(&self, slot: usize) -> &Sequence {
        self.seqs[slot].as_deref().expect("a listed slot is taken")
    }

    /// Place in `running` of a sequence, or where it would go.
    fn running_index(&self, key: OrderKey) -> Result<usize, usize> {
        self.running.binary_search_by_key(&key, |&slot| self.seq(slot).key)
    }

    /// Puts a sequence among those that wait.
    fn wait(&mut self, slot: usize) {
        let (account, entry) = self.place(slot);
        self.accounts[account].waiting.insert(entry);
        self.num_waiting += 1;
    }

    /// Takes it out again.
    fn unwait(&mut self, slot: usize) {
        let (account, entry) = self.place(slot);
        self.accounts[account].waiting.remove(&entry);
        self.num_waiting -= 1;
    }

    fn place(&self, slot: usize) -> (usize, Waiting) {
        let seq = self.seq(slot);
        (seq.account, (seq.key.priority, seq.key.arrival, slot))
    }

    fn remove(&mut self, slot: usize) {
        let key = self.seq(slot).key;
        match self.running_index(key) {
            Ok(index) => {
                self.running.remove(index);
                let account = self.seq(slot).account;
                self.accounts[account].running -= 1;
            }
            Err(_) => {
                self.unwait(slot);
                self.num_preempted -= usize::from(self.seq(slot).admitted);
            }
        }
        let mut seq = self.seqs[slot].take().expect("a listed slot is taken");
        self.pool.release(seq.reset());
        if seq.admitted {
            self.released.push(seq.id);
        }
        self.by_id.remove(&seq.id);
        self.free_slots.push(slot);
    }
}
