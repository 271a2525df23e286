//! Makes the requests: closed loops of users, open loops of arrivals.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::{Map, Value};
use tokio::task::JoinSet;

use super::arrivals::Arrivals;
use super::cli::{Cli, Load};
use super::client::{Endpoint, Outcome, Target};
use super::metrics::Record;
use super::prompts::Prompts;
use super::rng::Rng;

/// How requests are made, the same for all of them.
pub struct Manner {
    pub endpoint: Endpoint,
    /// Answers' lengths are forced.
    pub forced: bool,
    pub extra: Map<String, Value>,
    pub disconnect: f64,
    pub disconnect_after: Option<u32>,
    pub think: Duration,
    pub timeout: Duration,
    pub seed: u64,
}

/// Seconds as a duration; what is too many is forever.
fn seconds(s: f64) -> Duration {
    Duration::try_from_secs_f64(s.max(0.0)).unwrap_or(Duration::from_secs(1 << 40))
}

impl Manner {
    pub fn of(cli: &Cli) -> Self {
        Self {
            endpoint: cli.endpoint,
            forced: !cli.natural,
            extra: cli.extra.clone(),
            disconnect: cli.disconnect,
            disconnect_after: cli.disconnect_after,
            think: seconds(cli.think),
            timeout: seconds(cli.timeout),
            seed: cli.seed,
        }
    }
}

/// Counts that a progress bar shows while requests run.
#[derive(Default)]
pub struct Live {
    pub begun: AtomicUsize,
    pub requests: AtomicUsize,
    pub failed: AtomicUsize,
    pub output_tokens: AtomicU64,
}

/// A server, what is asked of it, and how.
#[derive(Clone)]
pub struct Session {
    pub target: Target,
    pub prompts: Arc<Prompts>,
    pub manner: Arc<Manner>,
    pub live: Arc<Live>,
}

/// How much of a load there is.
#[derive(Clone, Copy, Debug)]
pub struct Amount {
    pub conversations: Option<u64>,
    pub seconds: Option<f64>,
}

impl Session {
    /// Holds conversation `number`, due at `due` if the loop is open.
    async fn converse(self, number: u64, since: Instant, due: Option<Instant>) -> Vec<Record> {
        let conversation = self.prompts.conversation(number);
        let manner = &*self.manner;
        // Another stream than the conversation's own words.
        let mut chance = Rng::new(manner.seed ^ 0x6469_7363_6f6e, number);
        let mut transcript: Vec<(&'static str, String)> = Vec::new();
        transcript.extend(conversation.system.map(|text| ("system", text)));
        let mut records = Vec::new();
        for (i, turn) in conversation.turns.into_iter().enumerate() {
            if i > 0 && !manner.think.is_zero() {
                tokio::time::sleep(manner.think).await;
            }
            transcript.push(("user", turn.user));
            let (leave, share) = (chance.unit() < manner.disconnect, chance.unit());
            let random = || (share * f64::from(turn.max_tokens) / 2.0).ceil().max(1.0) as u32;
            let cut = leave.then(|| manner.disconnect_after.unwrap_or_else(random));
            let target = &self.target;
            let body = target.body(manner.endpoint, &transcript, turn.max_tokens, manner.forced, &manner.extra);
            self.live.begun.fetch_add(1, Ordering::Relaxed);
            let seen = target.exchange(manner.endpoint, &body, cut, manner.timeout).await;
            let mut record = Record::new(&seen, since, manner.forced.then_some(turn.max_tokens));
            record.conversation = number;
            record.turn = i;
            record.lag = due.filter(|_| i == 0).map(|due| (seen.sent - due).as_secs_f64() * 1e3);
            self.live.requests.fetch_add(1, Ordering::Relaxed);
            self.live.output_tokens.fetch_add(record.output_tokens.unwrap_or(0), Ordering::Relaxed);
            if matches!(record.outcome, Outcome::Failed { .. }) {
                self.live.failed.fetch_add(1, Ordering::Relaxed);
            }
            let go_on = record.outcome == Outcome::Ok;
            records.push(record);
            if !go_on {
                // A next turn would lack this answer.
                break;
            }
            transcript.push(("assistant", seen.text));
        }
        records
    }

    /// Runs conversations `first..` under this load and waits for all of them.
    pub async fn run(&self, load: Load, burstiness: f64, amount: Amount, first: u64) -> Result<Vec<Record>> {
        let since = Instant::now();
        let limit = amount.conversations.unwrap_or(u64::MAX);
        let until = amount.seconds.map(seconds);
        let mut tasks = JoinSet::new();
        let mut records = Vec::new();
        match load {
            Load::Closed(users) => {
                let next = Arc::new(AtomicU64::new(0));
                for _ in 0..users {
                    let (session, next) = (self.clone(), Arc::clone(&next));
                    tasks.spawn(async move {
                        let mut records = Vec::new();
                        while until.is_none_or(|until| since.elapsed() < until) {
                            let n = next.fetch_add(1, Ordering::Relaxed);
                            if n >= limit {
                                break;
                            }
                            records.extend(session.clone().converse(first + n, since, None).await);
                        }
                        records
                    });
                }
            }
            Load::Open(rate) => {
                let arrivals = Arrivals::new(self.manner.seed ^ first, rate, burstiness).zip(0..limit);
                for (at, n) in arrivals {
                    let late = until.is_some_and(|until| at >= until || since.elapsed() >= until);
                    if late {
                        break;
                    }
                    let due = since + at;
                    tokio::time::sleep_until(due.into()).await;
                    tasks.spawn(self.clone().converse(first + n, since, Some(due)));
                }
            }
        }
        while let Some(done) = tasks.join_next().await {
            records.extend(done.context("a request's task failed")?);
        }
        records.sort_by(|a, b| a.start.total_cmp(&b.start));
        Ok(records)
    }

    /// The prompt tokens the server counts for this one user message.
    pub async fn count_tokens(&self, text: String) -> Result<u64> {
        let manner = &*self.manner;
        let body = self.target.body(manner.endpoint, &[("user", text)], 1, false, &manner.extra);
        let seen = self.target.exchange(manner.endpoint, &body, None, manner.timeout).await;
        match (seen.outcome, seen.usage) {
            (Outcome::Failed { kind, detail }, _) => anyhow::bail!("{}: {kind}: {detail}", self.target.name),
            (_, usage) => {
                Ok(usage.with_context(|| format!("{} does not count tokens", self.target.name))?.prompt_tokens)
            }
        }
    }
}
