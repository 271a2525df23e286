//! How fast the queue empties, for `retry-after`.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// A rate is of at least this long.
const WINDOW: Duration = Duration::from_secs(1);
/// A rate from before this says nothing about now.
const STALE: Duration = Duration::from_secs(60);
/// Longest time that is told.
const MAX_SECONDS: f64 = 120.0;

/// Sequences that left the queue, a second.
#[derive(Debug)]
pub struct DrainRate(Mutex<State>);

#[derive(Debug)]
struct State {
    since: Instant,
    count: u64,
    /// Of the windows so far, the last weighing half.
    rate: Option<f64>,
}

impl DrainRate {
    /// Nothing is known yet.
    pub fn new(now: Instant) -> Self {
        Self(Mutex::new(State { since: now, count: 0, rate: None }))
    }

    /// Seconds until half of a queue of this length is gone, if so many sequences had left it until now.
    pub fn retry_after(&self, now: Instant, left: u64, queued: usize) -> u32 {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.observe(now, left);
        let elapsed = now.saturating_duration_since(state.since).as_secs_f64();
        let current = (elapsed > 0.0).then(|| (left - state.count) as f64 / elapsed).filter(|rate| *rate > 0.0);
        // A queue that has not moved at all yet: the shortest time that makes sense.
        let Some(rate) = state.rate.or(current) else { return 1 };
        (queued as f64 / 2.0 / rate.max(1e-3)).ceil().clamp(1.0, MAX_SECONDS) as u32
    }

    /// Looks at the queue; often enough that windows are short.
    pub fn observe(&self, now: Instant, left: u64) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).observe(now, left);
    }
}

impl State {
    fn observe(&mut self, now: Instant, left: u64) {
        let elapsed = now.saturating_duration_since(self.since);
        if elapsed < WINDOW {
            return;
        }
        let rate = left.saturating_sub(self.count) as f64 / elapsed.as_secs_f64();
        self.rate = match self.rate {
            // Idle times are part of a long window: it says nothing.
            _ if elapsed > STALE => None,
            Some(before) => Some((before + rate) / 2.0),
            None => Some(rate),
        };
        (self.since, self.count) = (now, left);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_follows_from_the_rate() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let drain = DrainRate::new(start);
        assert_eq!(drain.retry_after(start, 0, 1000), 1);
        for second in 1..=10 {
            drain.observe(at(second), 20 * second);
        }
        // 20 a second, half of 1000.
        assert_eq!(drain.retry_after(at(10), 200, 1000), 25);
        assert_eq!(drain.retry_after(at(10), 200, 4), 1);
        // It stands still: longer and longer, but not for ever.
        for second in 11..=30 {
            drain.observe(at(second), 200);
        }
        assert_eq!(drain.retry_after(at(30), 200, 1000), 120);
        // After an idle time what was before does not count.
        drain.observe(at(1000), 200);
        assert_eq!(drain.retry_after(at(1000), 200, 1000), 1);
        drain.observe(at(1001), 300);
        assert_eq!(drain.retry_after(at(1001), 300, 1000), 5);
    }
}
