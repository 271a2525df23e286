//! What must always hold.

use super::{Returns, RowRecord, Scheduler, StepRecord};
use crate::engine::types::BLOCK_SIZE;

impl Scheduler {
    /// Panics if the bookkeeping contradicts itself. Walks everything: for tests.
    pub fn assert_invariants(&self) {
        self.pool.assert_invariants(self.seqs.iter().flatten().map(|s| &s.table));
        assert!(self.running.is_sorted_by_key(|&slot| self.seq(slot).key), "running is in key order");
        assert!(self.running.len() <= self.config.max_num_seqs, "too many sequences run");
        let alive = self.seqs.iter().flatten().count();
        assert_eq!(alive, self.running.len() + self.num_waiting, "every sequence runs or waits");
        assert_eq!(alive, self.by_id.len(), "every sequence has its id");
        assert_eq!(alive + self.free_slots.len(), self.seqs.len(), "every slot is taken or free");
        assert_eq!(self.accounts.waiting().count(), self.num_waiting, "waiting sequences");
        assert_eq!(self.accounts.num_running(), self.running.len(), "running sequences of all tenants");
        for &(_, _, slot) in self.accounts.waiting() {
            let seq = self.seq(slot);
            assert_eq!((seq.num_computed, seq.in_flight, seq.table.capacity()), (0, 0, 0), "{:?} waits", seq.id);
        }
        let preempted = self.accounts.waiting().filter(|&&(_, _, slot)| self.seq(slot).admitted).count();
        assert_eq!(preempted, self.num_preempted, "preempted sequences");
        for &slot in &self.running {
            let seq = self.seq(slot);
            let rows = |s: &StepRecord| {
                let samples = |r: &&RowRecord| r.returns == Returns::Token && r.slot == slot && self.is_current(r);
                s.rows.iter().filter(samples).count()
            };
            assert_eq!(seq.in_flight, self.steps.iter().map(rows).sum::<usize>(), "{:?} in flight", seq.id);
            assert!(seq.num_computed <= seq.num_tokens() && seq.num_tokens() <= seq.max_len, "{:?} counts", seq.id);
            assert!((1..=seq.num_prompt).contains(&seq.num_scored), "{:?} scored", seq.id);
            assert!(seq.num_computed <= seq.table.capacity(), "{:?} computed beyond its blocks", seq.id);
            let rows = self.steps.iter().flat_map(|s| &s.rows);
            let drafts = rows.filter(|r| r.slot == slot && self.is_current(r)).map(|r| r.drafts).sum::<usize>();
            assert!(
                seq.table.blocks().len() <= (seq.num_tokens() + drafts).div_ceil(BLOCK_SIZE),
                "{:?} blocks",
                seq.id
            );
            assert!(drafts == 0 || seq.in_flight == 1, "{:?} drafts", seq.id);
            assert!(seq.num_registered * BLOCK_SIZE <= seq.num_computed, "{:?} registered too much", seq.id);
        }
    }
}
