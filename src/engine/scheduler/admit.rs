//! Admission: the waiting sequences of each tenant in order, none overtaken.

use super::*;

impl Scheduler {
    /// Admits a tenant's waiting sequences while sequences, tokens and blocks allow, each with its first row.
    ///
    /// A sequence gets the blocks of all its known tokens at once, so that only decoding can run
    /// short. One free block is left for each running sequence, to keep a newcomer from being
    /// preempted right away; with nothing running the whole pool is free and the first always fits.
    /// Returns whether other tenants' may be admitted after them: not when blocks or places lack.
    pub(super) fn schedule_waiting(
        &mut self,
        account: usize,
        budget: &mut usize,
        input: &mut StepInput,
        record: &mut StepRecord,
        events: &mut Vec<SeqEvent>,
    ) -> bool {
        while *budget > 0 {
            let Some(&(_, _, slot)) = self.accounts[account].waiting.first() else { return true };
            let (places, blocks) = self.left_to_others(account);
            if self.running.len() + places >= self.config.max_num_seqs {
                return places > 0;
            }
            let available = self.pool.num_free().saturating_sub(self.running.len() + blocks);
            let Some(cached) = self.admit(slot, available) else { return blocks > 0 };
            self.unwait(slot);
            self.accounts[account].running += 1;
            let served = self.accounts[account].counter();
            let seq = self.seqs[slot].as_deref_mut().expect("a waiting slot is taken");
            if !seq.admitted {
                seq.key.virtual_time = served;
            }
            let key = seq.key;
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
        true
    }

    /// Places and blocks that a tenant with running sequences leaves free, where there are several tenants, for one
    /// that has none: otherwise a flood of long answers would keep the others out until they end.
    fn left_to_others(&self, account: usize) -> (usize, usize) {
        let config = &self.config;
        if !self.accounts.are_several() || self.accounts[account].running == 0 {
            return (0, 0);
        }
        ((config.max_num_seqs / 8).max(1).min(config.max_num_seqs - 1), config.num_blocks / 8)
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
