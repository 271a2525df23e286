//! Questions to a model: from the store if they were answered before, else over the network, again and again.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Map, Value, json};

use super::EvalError;
use super::store::{Call, Store};
use crate::chat::{ChatError, Client};

/// Longest time between two tries, unless the server asks for more.
const LONGEST: Duration = Duration::from_secs(60);
/// Longest time that a server may ask for.
const PATIENCE: Duration = Duration::from_secs(600);

/// A message.
pub fn message(role: &str, content: &str) -> Value {
    json!({"role": role, "content": content})
}

/// Why a question has no answer.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// Nobody will have one: a wrong key, a wrong name, a server that is gone.
    #[error("{0}")]
    Hopeless(ChatError),
    /// This one found none, however often it was asked.
    #[error("{0}")]
    GaveUp(ChatError),
    /// It cannot be kept.
    #[error(transparent)]
    Store(#[from] EvalError),
}

/// How patient to be.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// Tries after the first.
    pub retries: u32,
    /// Before the second try; doubled before each further one.
    pub backoff: Duration,
}

/// Who is asked.
pub struct Asker<'a> {
    /// The server.
    pub client: Client,
    /// Who that is, for the key of a call: what changes the replies must change this.
    pub who: String,
    /// The model's name there.
    pub model: String,
    /// How patient to be.
    pub patience: Patience,
    /// Where replies are kept.
    pub store: &'a Store,
    /// Waits; tests do not.
    pub sleep: fn(Duration),
}

/// What to do about an error.
#[derive(Debug, PartialEq, Eq)]
enum Then {
    /// Try again; the server may have said when.
    Again(Option<Duration>),
    /// This question is not wanted.
    Refused(String),
    /// Nor is any other.
    Hopeless,
}

fn then(error: &ChatError) -> Then {
    match error {
        ChatError::Refused { status: 408 | 409 | 425 | 429 | 500..=599, retry_after, .. } => Then::Again(*retry_after),
        ChatError::Refused { status: 400 | 413 | 422, .. } => Then::Refused(error.to_string()),
        ChatError::Unreachable { .. } | ChatError::Broken(_) | ChatError::Strange { .. } | ChatError::InStream(_) => {
            Then::Again(None)
        }
        _ => Then::Hopeless,
    }
}

/// Before try `n + 2`: doubling, shortened by up to a quarter by `key`, so that clients do not come back together.
fn pause(patience: Patience, n: u32, asked: Option<Duration>, key: &str) -> Duration {
    let doubled = patience.backoff.saturating_mul(1 << n.min(16)).min(LONGEST);
    let byte = key.as_bytes().get(n as usize % 32).copied().unwrap_or(0);
    let spread = doubled.mul_f64(1.0 - 0.25 * f64::from(byte % 16) / 16.0);
    asked.map_or(spread, |asked| asked.min(PATIENCE).max(spread))
}

impl Asker<'_> {
    /// The reply to messages, kept or new. One that the server refused for good has `refused` and no text.
    ///
    /// # Errors
    /// Nobody answered in all tries.
    pub fn ask(&self, messages: Vec<Value>, params: &Map<String, Value>, sample: u32) -> Result<Call, AskError> {
        let mut call = Call::new(&self.who, &self.model, messages, params, sample);
        if let Some(known) = self.store.get(&call.key) {
            return Ok(known);
        }
        let mut body = json!({"model": self.model, "messages": call.messages});
        for (name, value) in params {
            body[name] = value.clone();
        }
        let mut tries = 0;
        loop {
            let error = match self.client.complete(&body) {
                Ok(answer) => match answer["choices"][0]["message"]["content"].as_str() {
                    Some(text) => {
                        call.text = Some(text.to_owned());
                        call.finish_reason = answer["choices"][0]["finish_reason"].as_str().map(str::to_owned);
                        call.completion_tokens = answer["usage"]["completion_tokens"].as_u64();
                        break;
                    }
                    None => ChatError::Strange {
                        url: self.client.base().to_owned(),
                        reason: "it has no choices[0].message.content".into(),
                    },
                },
                Err(error) => error,
            };
            match then(&error) {
                Then::Again(asked) if tries < self.patience.retries => {
                    (self.sleep)(pause(self.patience, tries, asked, &call.key));
                    tries += 1;
                }
                // A server that cannot even be reached has nothing for the other questions either.
                Then::Again(_) if matches!(error, ChatError::Unreachable { .. }) => {
                    return Err(AskError::Hopeless(error));
                }
                Then::Again(_) => return Err(AskError::GaveUp(error)),
                Then::Refused(words) => {
                    call.refused = Some(words);
                    break;
                }
                Then::Hopeless => return Err(AskError::Hopeless(error)),
            }
        }
        self.store.append(&call)?;
        Ok(call)
    }
}

/// Does jobs side by side, `at_once` at most, with a bar of that name; results are in the jobs' order.
///
/// # Errors
/// [`EvalError::Unfinished`] once all others are done; at once where no other could be.
pub fn each<J: Sync, T: Send>(
    title: &str,
    at_once: usize,
    jobs: &[J],
    work: impl Fn(&J) -> Result<T, AskError> + Sync,
) -> Result<Vec<T>, EvalError> {
    let bar = ProgressBar::new(jobs.len() as u64);
    if let Ok(style) = ProgressStyle::with_template("{msg} {wide_bar} {pos}/{len} {eta}") {
        bar.set_style(style);
    }
    bar.set_message(title.to_owned());
    let (next, stop) = (AtomicUsize::new(0), AtomicBool::new(false));
    let done: Vec<Mutex<Option<T>>> = jobs.iter().map(|_| Mutex::new(None)).collect();
    let first: Mutex<Option<AskError>> = Mutex::new(None);
    std::thread::scope(|scope| {
        for _ in 0..at_once.clamp(1, jobs.len().max(1)) {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    let Some(job) = jobs.get(at) else { break };
                    match work(job) {
                        Ok(result) => *done[at].lock().unwrap_or_else(PoisonError::into_inner) = Some(result),
                        Err(error) => {
                            if !matches!(error, AskError::GaveUp(_)) {
                                stop.store(true, Ordering::Relaxed);
                            }
                            first.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
                        }
                    }
                    bar.inc(1);
                }
            });
        }
    });
    bar.finish_and_clear();
    let results: Vec<T> =
        done.into_iter().filter_map(|slot| slot.into_inner().unwrap_or_else(PoisonError::into_inner)).collect();
    match first.into_inner().unwrap_or_else(PoisonError::into_inner) {
        None => Ok(results),
        Some(AskError::Store(error)) => Err(error),
        Some(error) => Err(EvalError::Unfinished {
            failed: jobs.len() - results.len(),
            total: jobs.len(),
            first: error.to_string(),
        }),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn refused(status: u16, seconds: Option<u64>) -> ChatError {
        ChatError::Refused { status, message: "no".into(), retry_after: seconds.map(Duration::from_secs) }
    }

    #[test]
    fn errors_are_told_apart() {
        assert_eq!(then(&refused(429, Some(7))), Then::Again(Some(Duration::from_secs(7))));
        assert_eq!(then(&refused(503, None)), Then::Again(None));
        assert_eq!(then(&ChatError::Broken("x".into())), Then::Again(None));
        assert!(matches!(then(&refused(400, None)), Then::Refused(_)));
        assert_eq!(then(&refused(401, None)), Then::Hopeless);
        assert_eq!(then(&refused(404, None)), Then::Hopeless);
    }

    #[test]
    fn pauses_double_and_heed_the_server() {
        let patience = Patience { retries: 9, backoff: Duration::from_secs(1) };
        let all: Vec<f64> = (0..10).map(|n| pause(patience, n, None, &"0".repeat(64)).as_secs_f64()).collect();
        assert_eq!(all, [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0, 60.0, 60.0]);
        for n in 0..9 {
            let spread = pause(patience, n, None, &"f".repeat(64)).as_secs_f64();
            assert!(spread >= 0.75 * all[n as usize] && spread <= all[n as usize]);
        }
        assert_eq!(pause(patience, 0, Some(Duration::from_secs(20)), "0"), Duration::from_secs(20));
        assert_eq!(pause(patience, 0, Some(Duration::from_secs(9999)), "0"), PATIENCE);
        assert_eq!(pause(patience, 3, Some(Duration::ZERO), "0"), Duration::from_secs(8));
    }

    #[test]
    fn the_others_are_done_before_one_that_failed_is_told() {
        let jobs: Vec<usize> = (0..50).collect();
        let work = |job: &usize| match job {
            7 => Err(AskError::GaveUp(ChatError::Broken("seven".into()))),
            n => Ok(n * 2),
        };
        let error = each("jobs", 4, &jobs, work).unwrap_err().to_string();
        assert!(error.starts_with("1 of 50 found no answer (the answer broke off: seven)"), "{error}");
        let all = each("jobs", 4, &jobs, |n| Ok(n * 2)).unwrap();
        assert_eq!(all, jobs.iter().map(|n| n * 2).collect::<Vec<_>>());
        assert!(each("none", 4, &jobs[..0], |n| Ok(*n)).unwrap().is_empty());
    }
}
