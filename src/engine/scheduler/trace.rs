//! The scheduler's state in a few lines, for snapshots and logs.

use std::fmt;

use super::Scheduler;
use crate::engine::sequence::Sequence;

impl fmt::Debug for Scheduler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pool = &self.pool;
        write!(
            f,
            "next step {}, in flight {}, blocks: {} in use, {} free, {} cached",
            self.next_step,
            self.steps.len(),
            pool.num_in_use(),
            pool.num_free(),
            pool.num_cached_free()
        )?;
        for &slot in &self.running {
            write!(f, "\n  running {}", Line(self.seq(slot)))?;
        }
        for &(_, _, slot) in self.accounts.waiting() {
            write!(f, "\n  waiting {}", Line(self.seq(slot)))?;
        }
        Ok(())
    }
}

struct Line<'a>(&'a Sequence);

impl fmt::Display for Line<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let s = self.0;
        write!(
            f,
            "{:?}: prompt {} + output {} + in flight {}, computed {}, registered {}, blocks {:?}",
            s.id,
            s.num_prompt,
            s.num_output(),
            s.in_flight,
            s.num_computed,
            s.num_registered,
            s.table.blocks()
        )
    }
}
