//! Reads tests/goldens and compares a forward pass with them, whichever backend it runs on.
//!
//! A forward pass is a function from a sequence's tokens to the logits after each, `[len][vocab]`.
//! A backend with a cache may compute them in any chunks it likes.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::DeserializeOwned;

/// The logits after each token of a sequence.
pub type Forward<'a> = dyn FnMut(&[u32]) -> Vec<Vec<f32>> + 'a;

/// The tiny random models, one folder each.
pub const SMALL: [&str; 5] = ["gqa", "mha-tied", "mqa-odd", "llama3", "linear"];

/// What transformers computed for one prompt.
#[derive(Debug, Deserialize)]
pub struct Sequence {
    pub prompt: Vec<u32>,
    /// Log-probabilities of `prompt[1..]`.
    pub next: Vec<f32>,
    /// The most likely tokens and their log-probabilities: after each token of the prompt (small
    /// models), or before each of `greedy` (the default model).
    pub top: Vec<Vec<(u32, f32)>>,
    /// The greedy continuation; end-of-sequence tokens do not end it.
    pub greedy: Vec<u32>,
    /// Log-probability of each token of `greedy` above the second choice's.
    pub gaps: Vec<f32>,
    /// All log-probabilities after each token of the prompt.
    pub rows: Option<Vec<Vec<f32>>>,
}

impl Sequence {
    /// The prompt and its continuation.
    pub fn tokens(&self) -> Vec<u32> {
        [self.prompt.as_slice(), &self.greedy].concat()
    }
}

#[derive(Deserialize)]
struct Sequences {
    sequences: Vec<Sequence>,
}

/// Negative log-likelihood of a text, in windows that know nothing of each other.
#[derive(Debug, Deserialize)]
pub struct Perplexity {
    /// Tokens in a window; the first of them is given, not predicted.
    pub window: usize,
    /// Sum over each window.
    pub nll: Vec<f64>,
    /// The tokens of tests/goldens/perplexity.txt, as many as there are windows for.
    pub tokens: Vec<u32>,
}

/// A file or folder of tests/goldens.
pub fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens").join(name)
}

fn read<T: DeserializeOwned>(name: &str) -> T {
    let text = std::fs::read_to_string(path(name)).unwrap();
    serde_json::from_str(&text).unwrap()
}

/// Goldens of a model of [`SMALL`]; its weights are beside them, in `path(name)`.
pub fn small(name: &str) -> Vec<Sequence> {
    read::<Sequences>(&format!("{name}/goldens.json")).sequences
}

/// The default model's file: `LIMA_TEST_MODEL`, else the cache, else pulled into it.
pub fn default_model() -> PathBuf {
    match std::env::var_os("LIMA_TEST_MODEL") {
        Some(path) => path.into(),
        None => {
            let source = lima::hub::DEFAULT_MODEL.parse().unwrap();
            lima::hub::resolve(&source, &|_| ()).unwrap()
        }
    }
}

/// Goldens of the default model.
pub fn default_sequences() -> Vec<Sequence> {
    read::<Sequences>("default.json").sequences
}

/// The default model's likelihood of perplexity.txt.
pub fn perplexity() -> Perplexity {
    read("perplexity.json")
}

/// Logits → log-probabilities.
pub fn log_softmax(logits: &[f32]) -> Vec<f32> {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&l| f64::from(l - max).exp()).sum();
    logits.iter().map(|&l| (f64::from(l - max) - sum.ln()) as f32).collect()
}

/// Log-probabilities after each token.
pub fn log_probs(forward: &mut Forward<'_>, tokens: &[u32]) -> Vec<Vec<f32>> {
    let logits = forward(tokens);
    assert_eq!(logits.len(), tokens.len(), "one row for each token");
    logits.iter().map(|row| log_softmax(row)).collect()
}

/// The most likely token, the lowest of equals.
pub fn argmax(row: &[f32]) -> u32 {
    let best = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    row.iter().position(|&v| v == best).unwrap() as u32
}

/// How far a forward pass is from the goldens.
#[derive(Clone, Copy, Debug, Default)]
pub struct Agreement {
    /// Log-probabilities compared.
    pub compared: usize,
    /// Largest absolute difference of log-probability.
    pub max_difference: f32,
    /// Greedy tokens compared (each after the reference's tokens), and how many are the same.
    pub tokens: usize,
    pub same_tokens: usize,
    /// The widest gap between the reference's two best tokens where ours was another one.
    pub widest_flip: f32,
}

impl Agreement {
    /// Every log-probability within `tolerance` and every greedy token the same.
    pub fn assert_exact(&self, tolerance: f32, what: &str) {
        assert!(self.compared > 0 && self.tokens > 0, "{what}: nothing was compared");
        assert!(self.max_difference <= tolerance, "{what}: {self:?}");
        assert_eq!(self.same_tokens, self.tokens, "{what}: {self:?}");
    }

    fn value(&mut self, expected: f32, actual: f32) {
        assert!(actual.is_finite(), "log-probability {actual}, expected {expected}");
        let difference = (expected - actual).abs();
        self.compared += 1;
        self.max_difference = self.max_difference.max(difference);
    }

    fn top(&mut self, expected: &[Vec<(u32, f32)>], rows: &[Vec<f32>]) {
        assert_eq!(expected.len(), rows.len());
        for (top, row) in expected.iter().zip(rows) {
            top.iter().for_each(|&(id, value)| self.value(value, row[id as usize]));
        }
    }

    /// Compares the log-probabilities of `sequence`'s prompt: what the prompt's own tokens got,
    /// and all there are of `rows`.
    fn prompt(&mut self, sequence: &Sequence, rows: &[Vec<f32>]) {
        for ((&value, &id), row) in sequence.next.iter().zip(&sequence.prompt[1..]).zip(rows) {
            self.value(value, row[id as usize]);
        }
        for (expected, row) in sequence.rows.iter().flatten().zip(rows) {
            assert_eq!(expected.len(), row.len());
            expected.iter().zip(row).for_each(|(&e, &a)| self.value(e, a));
        }
    }

    /// Compares the choices after the prompt and each token of the reference's continuation.
    fn greedy(&mut self, sequence: &Sequence, rows: &[Vec<f32>]) {
        for ((&token, &gap), row) in sequence.greedy.iter().zip(&sequence.gaps).zip(rows) {
            self.tokens += 1;
            match argmax(row) == token {
                true => self.same_tokens += 1,
                false => self.widest_flip = self.widest_flip.max(gap),
            }
        }
    }
}

/// Compares `forward` with a small model's goldens.
///
/// That each greedy token follows the reference's tokens before it makes the continuations equal.
pub fn compare_small(name: &str, forward: &mut Forward<'_>) -> Agreement {
    let mut agreement = Agreement::default();
    for sequence in small(name) {
        let (rows, len) = (log_probs(forward, &sequence.tokens()), sequence.prompt.len());
        agreement.prompt(&sequence, &rows[..len]);
        agreement.top(&sequence.top, &rows[..len]);
        agreement.greedy(&sequence, &rows[len - 1..]);
    }
    agreement
}

/// Compares `forward` with goldens of the default model.
pub fn compare_default<'a>(sequences: impl IntoIterator<Item = &'a Sequence>, forward: &mut Forward<'_>) -> Agreement {
    let mut agreement = Agreement::default();
    for sequence in sequences {
        let (rows, len) = (log_probs(forward, &sequence.tokens()), sequence.prompt.len());
        agreement.prompt(sequence, &rows[..len]);
        agreement.top(&sequence.top, &rows[len - 1..rows.len() - 1]);
        agreement.greedy(sequence, &rows[len - 1..]);
    }
    agreement
}

/// Negative log-likelihood of `tokens[1..]`.
pub fn nll(tokens: &[u32], forward: &mut Forward<'_>) -> f64 {
    let rows = log_probs(forward, tokens);
    -tokens[1..].iter().zip(&rows).map(|(&id, row)| f64::from(row[id as usize])).sum::<f64>()
}

/// Perplexity over the first `windows` windows: ours, and the reference's.
pub fn compare_perplexity(windows: usize, forward: &mut Forward<'_>) -> (f64, f64) {
    let golden = perplexity();
    let ours: f64 = golden.tokens.chunks(golden.window).take(windows).map(|w| nll(w, forward)).sum();
    let theirs: f64 = golden.nll[..windows].iter().sum();
    let predicted = (windows * (golden.window - 1)) as f64;
    ((ours / predicted).exp(), (theirs / predicted).exp())
}
