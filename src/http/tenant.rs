//! The holder of a key: its name, its limits, and what it has used of them.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use axum::http::{HeaderMap, HeaderName, HeaderValue};

use super::error::{ApiError, RateLimit};
use crate::engine;

/// What a key may use; `None` is as much as the server gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quota {
    /// Requests in a minute.
    pub requests_per_minute: Option<u64>,
    /// Tokens in a minute, of prompts and answers together.
    pub tokens_per_minute: Option<u64>,
    /// Requests at once.
    pub max_concurrency: Option<usize>,
    /// Share of the engine beside other keys, from 1.
    pub weight: u32,
}

impl Default for Quota {
    fn default() -> Self {
        Self { requests_per_minute: None, tokens_per_minute: None, max_concurrency: None, weight: 1 }
    }
}

/// One request or token, but for what rounding takes away.
const ONE: f64 = 1.0 - 1e-6;

/// A minute's allowance, which comes back steadily. Below zero, it first has to come back.
#[derive(Debug)]
struct Bucket {
    limit: f64,
    level: f64,
    at: Instant,
}

impl Bucket {
    fn new(limit: u64, now: Instant) -> Self {
        Self { limit: limit as f64, level: limit as f64, at: now }
    }

    fn refill(&mut self, now: Instant) {
        let more = now.saturating_duration_since(self.at).as_secs_f64() * self.limit / 60.0;
        self.level = (self.level + more).min(self.limit);
        self.at = self.at.max(now);
    }

    /// Time until there is so much, or all there can be.
    fn wait(&self, amount: f64) -> Duration {
        let missing = (amount.min(self.limit) - self.level).max(0.0);
        Duration::from_secs_f64(missing * 60.0 / self.limit)
    }

    fn remaining(&self) -> u64 {
        self.level.max(0.0) as u64
    }
}

/// The same limit keeps what was used of it.
fn renew(bucket: &mut Option<Bucket>, limit: Option<u64>, now: Instant) {
    if bucket.as_ref().map(|b| b.limit) != limit.map(|l| l as f64) {
        *bucket = limit.map(|limit| Bucket::new(limit, now));
    }
}

#[derive(Debug)]
struct Usage {
    quota: Quota,
    requests: Option<Bucket>,
    tokens: Option<Bucket>,
}

/// Counters of a key, for the metrics.
#[derive(Debug, Default)]
pub struct Counts {
    /// Requests let through.
    pub requests: AtomicU64,
    /// Requests refused for a limit.
    pub limited: AtomicU64,
    /// Prompt tokens accepted.
    pub prompt_tokens: AtomicU64,
    /// Tokens generated.
    pub generation_tokens: AtomicU64,
}

/// Whoever holds a key. Keys of the same name have one holder.
#[derive(Debug)]
pub struct Tenant {
    /// Never used again.
    id: u64,
    name: Option<String>,
    usage: Mutex<Usage>,
    running: AtomicUsize,
    /// Sequences that wait to be computed.
    queued: AtomicUsize,
    /// Generated tokens that `usage` does not know of yet.
    generated: AtomicU64,
    /// For the metrics.
    pub counts: Counts,
}

impl Tenant {
    /// A holder who has used nothing. `id` is not 0, which stands for requests without a key.
    pub fn new(id: u64, name: Option<String>, quota: Quota, now: Instant) -> Self {
        let mut usage = Usage { quota, requests: None, tokens: None };
        renew(&mut usage.requests, quota.requests_per_minute, now);
        renew(&mut usage.tokens, quota.tokens_per_minute, now);
        Self {
            id,
            name,
            usage: Mutex::new(usage),
            running: AtomicUsize::new(0),
            queued: AtomicUsize::new(0),
            generated: AtomicU64::new(0),
            counts: Counts::default(),
        }
    }

    /// The name that the file of keys gives it.
    pub fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    /// For the engine.
    pub fn account(&self) -> engine::Tenant {
        engine::Tenant { id: self.id, weight: self.usage().quota.weight }
    }

    /// Requests at the moment.
    pub fn running(&self) -> usize {
        self.running.load(Relaxed)
    }

    /// Sequences that wait to be computed.
    pub fn queued(&self) -> usize {
        self.queued.load(Relaxed)
    }

    /// Other limits, from the file read again.
    pub fn set_quota(&self, quota: Quota, now: Instant) {
        let mut usage = self.usage();
        renew(&mut usage.requests, quota.requests_per_minute, now);
        renew(&mut usage.tokens, quota.tokens_per_minute, now);
        usage.quota = quota;
    }

    fn usage(&self) -> MutexGuard<'_, Usage> {
        self.usage.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The usage at a time: what came back, less what was generated since.
    fn usage_at(&self, now: Instant) -> MutexGuard<'_, Usage> {
        let mut usage = self.usage();
        if let Some(requests) = &mut usage.requests {
            requests.refill(now);
        }
        let generated = self.generated.swap(0, Relaxed);
        if let Some(tokens) = &mut usage.tokens {
            tokens.refill(now);
            tokens.level -= generated as f64;
        }
        usage
    }

    /// Lets a request begin, or tells which limit it would exceed.
    pub fn enter(self: &Arc<Self>, now: Instant) -> Result<Slot, ApiError> {
        let running = self.running.fetch_add(1, SeqCst);
        let slot = Slot(Arc::clone(self));
        let mut usage = self.usage_at(now);
        let refused = |limit, most, wait| {
            self.counts.limited.fetch_add(1, Relaxed);
            Err(limited(limit, most, wait))
        };
        if let Some(most) = usage.quota.max_concurrency
            && running >= most
        {
            return refused(RateLimit::Concurrency, most as u64, Duration::ZERO);
        }
        // Answers are charged as they come, so tokens may be owed; then nothing new begins.
        if let Some(tokens) = &usage.tokens
            && tokens.level < ONE
        {
            return refused(RateLimit::Tokens, tokens.limit as u64, tokens.wait(1.0));
        }
        if let Some(requests) = &mut usage.requests {
            if requests.level < ONE {
                return refused(RateLimit::Requests, requests.limit as u64, requests.wait(1.0));
            }
            requests.level -= 1.0;
        }
        self.counts.requests.fetch_add(1, Relaxed);
        drop(usage);
        Ok(slot)
    }

    /// Charges for a prompt, or tells when there will be enough for it. A prompt above the limit needs all of it.
    pub fn take_prompt(&self, prompt_tokens: usize, now: Instant) -> Result<(), ApiError> {
        let mut usage = self.usage_at(now);
        if let Some(tokens) = &mut usage.tokens {
            let wait = tokens.wait(prompt_tokens as f64);
            if !wait.is_zero() {
                self.counts.limited.fetch_add(1, Relaxed);
                return Err(limited(RateLimit::Tokens, tokens.limit as u64, wait));
            }
            tokens.level -= prompt_tokens as f64;
        }
        self.counts.prompt_tokens.fetch_add(prompt_tokens as u64, Relaxed);
        Ok(())
    }

    /// Takes a charge back: the prompt was not accepted.
    pub fn give_back(&self, prompt_tokens: usize) {
        if let Some(tokens) = &mut self.usage().tokens {
            tokens.level += prompt_tokens as f64;
        }
        self.counts.prompt_tokens.fetch_sub(prompt_tokens as u64, Relaxed);
    }

    /// Charges for a generated token.
    pub fn generated(&self) {
        self.generated.fetch_add(1, Relaxed);
        self.counts.generation_tokens.fetch_add(1, Relaxed);
    }

    /// Counts a sequence as waiting as long as the guard is there.
    pub fn wait(self: &Arc<Self>) -> Queued {
        self.queued.fetch_add(1, Relaxed);
        Queued(Arc::clone(self))
    }

    /// OpenAI's headers about the limits there are.
    pub fn tell(&self, now: Instant, headers: &mut HeaderMap) {
        let usage = self.usage_at(now);
        for (what, bucket) in [("requests", &usage.requests), ("tokens", &usage.tokens)] {
            let Some(bucket) = bucket else { continue };
            let mut tell = |name: &str, value: String| {
                let name = HeaderName::try_from(format!("x-ratelimit-{name}-{what}"));
                if let (Ok(name), Ok(value)) = (name, HeaderValue::try_from(value)) {
                    headers.insert(name, value);
                }
            };
            tell("limit", (bucket.limit as u64).to_string());
            tell("remaining", bucket.remaining().to_string());
            tell("reset", duration(bucket.wait(bucket.limit)));
        }
    }
}

fn limited(limit: RateLimit, most: u64, wait: Duration) -> ApiError {
    ApiError::RateLimit { limit, most, retry_after: wait.as_secs_f64().ceil().clamp(1.0, 3600.0) as u32 }
}

/// As OpenAI writes it: `120ms`, `1.5s`, `6m0s`.
fn duration(time: Duration) -> String {
    let millis = time.as_millis();
    match millis {
        0..1000 => format!("{millis}ms"),
        1000..60_000 => format!("{}s", millis as f64 / 1000.0),
        _ => format!("{}m{}s", millis / 60_000, millis % 60_000 / 1000),
    }
}

/// A request of a tenant, while it lasts.
#[derive(Debug)]
pub struct Slot(Arc<Tenant>);

impl Slot {
    /// Whose it is.
    pub fn tenant(&self) -> &Arc<Tenant> {
        &self.0
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, SeqCst);
    }
}

/// A waiting sequence of a tenant.
#[derive(Debug)]
pub struct Queued(Arc<Tenant>);

impl Drop for Queued {
    fn drop(&mut self) {
        self.0.queued.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn tenant(quota: Quota, now: Instant) -> Arc<Tenant> {
        Arc::new(Tenant::new(1, None, quota, now))
    }

    fn retry_after(error: ApiError, of: RateLimit) -> u32 {
        match error {
            ApiError::RateLimit { limit, retry_after, .. } if limit == of => retry_after,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn requests_come_back_steadily() {
        let start = Instant::now();
        let tenant = tenant(Quota { requests_per_minute: Some(6), ..Quota::default() }, start);
        for _ in 0..6 {
            tenant.enter(start).unwrap();
        }
        assert_eq!(retry_after(tenant.enter(start).unwrap_err(), RateLimit::Requests), 10);
        let later = start + Duration::from_secs(7);
        assert_eq!(retry_after(tenant.enter(later).unwrap_err(), RateLimit::Requests), 3);
        tenant.enter(start + Duration::from_secs(10)).unwrap();
        // Never more than a minute's.
        let long_after = start + Duration::from_secs(10_000);
        assert_eq!((0..9).filter(|_| tenant.enter(long_after).is_ok()).count(), 6);
        assert_eq!(tenant.running(), 0);
    }

    #[test]
    fn answers_are_owed_and_prompts_wait() {
        let start = Instant::now();
        let tenant = tenant(Quota { tokens_per_minute: Some(600), ..Quota::default() }, start);
        tenant.take_prompt(400, start).unwrap();
        assert_eq!(retry_after(tenant.take_prompt(300, start).unwrap_err(), RateLimit::Tokens), 10);
        tenant.take_prompt(200, start).unwrap();
        tenant.give_back(200);
        for _ in 0..300 {
            tenant.generated();
        }
        // 200 left, 300 generated: 100 owed, which takes ten seconds and a bit.
        assert_eq!(retry_after(tenant.enter(start).unwrap_err(), RateLimit::Tokens), 11);
        tenant.enter(start + Duration::from_secs(11)).unwrap();
        // More than a minute's: with a full bucket only.
        assert!(tenant.take_prompt(10_000, start + Duration::from_secs(60)).is_err());
        tenant.take_prompt(10_000, start + Duration::from_secs(80)).unwrap();
    }

    #[test]
    fn concurrency_ends_with_the_slot() {
        let now = Instant::now();
        let tenant = tenant(Quota { max_concurrency: Some(2), ..Quota::default() }, now);
        let slots = [tenant.enter(now).unwrap(), tenant.enter(now).unwrap()];
        assert_eq!(retry_after(tenant.enter(now).unwrap_err(), RateLimit::Concurrency), 1);
        drop(slots);
        tenant.enter(now).unwrap();
        assert_eq!((tenant.running(), tenant.counts.limited.load(Relaxed)), (0, 1));
    }

    #[test]
    fn headers_tell_limits_and_rest() {
        let now = Instant::now();
        let quota = Quota { requests_per_minute: Some(60), tokens_per_minute: Some(6000), ..Quota::default() };
        let tenant = tenant(quota, now);
        tenant.enter(now).unwrap();
        tenant.take_prompt(5999, now).unwrap();
        let mut headers = HeaderMap::new();
        tenant.tell(now, &mut headers);
        let expected = [
            ("limit-requests", "60"),
            ("remaining-requests", "59"),
            ("reset-requests", "1s"),
            ("limit-tokens", "6000"),
            ("remaining-tokens", "1"),
            ("reset-tokens", "59.99s"),
        ];
        assert_eq!(headers.len(), expected.len());
        for (name, value) in expected {
            assert_eq!(headers[&format!("x-ratelimit-{name}")], value, "{name}");
        }
        assert_eq!(duration(Duration::from_secs(372)), "6m12s");
        assert_eq!(duration(Duration::from_millis(120)), "120ms");
        // Other limits begin anew, the same stay as they are.
        tenant.set_quota(Quota { requests_per_minute: Some(60), tokens_per_minute: Some(10), ..Quota::default() }, now);
        tenant.tell(now, &mut headers);
        assert_eq!(
            (&headers["x-ratelimit-remaining-requests"], &headers["x-ratelimit-remaining-tokens"]),
            (&HeaderValue::from_static("59"), &HeaderValue::from_static("10"))
        );
    }
}
