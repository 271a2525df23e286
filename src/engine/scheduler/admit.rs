//! Admission: waiting sequences in key order, none overtaken.

use super::*;

impl Scheduler {
    /// Admits waiting sequences while sequences, tokens and blocks allow, each with its first row.
    ///
    /// A sequence gets the blocks of all its known tokens at once, so that only decoding can run
    /// short. One free block is left for each running sequence, to keep a newcomer from being
    /// preempted right away; with nothing running the whole pool is free and the first always fits.
    pub(super) fn schedule_waiting(
        &mut self,
        budget: &mut usize,
        input: &mut StepInput,
        record: &mut StepRecord,
        events: &mut Vec<SeqEvent>,
    ) {
        while *budget > 0 && self.running.len() < self.config.max_num_seqs {
            let Some(&(key, slot)) = self.waiting.first() else { return };
            let available = self.pool.num_free().saturating_sub(self.running.len());
            let Some(cached) = self.admit(slot, available) else { return };
            self.waiting.remove(&(key, slot));
            let index = self.running_index(key).expect_err("it was waiting");
            self.running.insert(index, slot);

            let seq = self.seqs[slot].as_deref_mut().expect("a running slot is taken");
            if seq.admitted {
                self.num_preempted -= 1;
            } else {
                seq.admitted = true;
                self.counters.prompt_tokens += seq.num_prompt as u64;
                self.counters.cached_prompt_tokens += cached as u64;
                if self.config.enable_prefix_caching && seq.num_cacheable() > 0 {
                    self.counters.prefix_cache_queries += seq.num_prompt as u64;
                    self.counters.prefix_cache_hits += cached as u64;
                }
                events.push(SeqEvent { seq: seq.id, slot, event: Event::Scheduled { cached_tokens: cached } });
            }
            let len = (seq.num_tokens() - cached).min(*budget);
            self.push_row(slot, len, None, input, record);
            *budget -= len;
        }
    }

    /// Gives a sequence its blocks, shared ones first, and returns how many tokens they hold already.
    fn admit(&mut self, slot: usize, available: usize) -> Option<usize> {
        let seq = self.seqs[slot].as_deref_mut().expect("a waiting slot is taken");
        if self.blocked.is_some_and(|(id, too_few)| id == seq.id && available <= too_few) {
            return None;
        }
        self.hits.clear();
        let mut prefix = seq.root;
        if self.config.enable_prefix_caching {
            prefix = self.pool.lookup(seq.root, &seq.tokens[..seq.num_cacheable()], &mut self.hits);
        }
        let fresh = seq.tokens.len().div_ceil(BLOCK_SIZE) - self.hits.len();
        if fresh + self.pool.count_free(&self.hits) > available {
            self.blocked = Some((seq.id, available));
            return None;
        }
        self.blocked = None;
        self.pool.adopt(&mut seq.table, &self.hits);
        let allocated = self.pool.allocate(&mut seq.table, fresh);
        debug_assert!(allocated, "counted just now");
        seq.prefix = prefix;
        seq.num_registered = self.hits.len();
        seq.num_computed = self.hits.len() * BLOCK_SIZE;
        Some(seq.num_computed)
    }
}
