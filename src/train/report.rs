//! What is in a data set: counts, lengths, what was cut.

use std::collections::{BTreeMap, HashSet};
use std::fmt;

use super::data::{Dataset, Format};
use super::render::Example;

/// The report on a data set and its examples.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// Of all rows.
    pub format: Format,
    /// Conversations.
    pub rows: usize,
    /// Rows that say the same, word by word, as one before them.
    pub duplicates: usize,
    /// Rows whose last message had no answer and was left out.
    pub dropped_last: usize,
    /// Rows by what they say they come from; the empty name is for those that say nothing.
    pub sources: BTreeMap<String, usize>,
    /// Rows by their number of answers.
    pub answers: BTreeMap<usize, usize>,
    /// Tokens of each row before it was cut, in ascending order.
    pub lengths: Vec<usize>,
    /// Supervised tokens of each row after it was cut, in ascending order.
    pub supervised: Vec<usize>,
    /// Tokens a row may have.
    pub max_tokens: usize,
    /// Rows that were cut.
    pub trimmed_rows: usize,
    /// Tokens that were cut off.
    pub trimmed_tokens: usize,
}

impl Report {
    /// Counts. `examples` are the data set's, in its order, cut to `max_tokens`.
    pub fn new(data: &Dataset, examples: &[Example], max_tokens: usize) -> Self {
        let (mut sources, mut answers) = (BTreeMap::new(), BTreeMap::new());
        let mut seen = HashSet::new();
        let mut duplicates = 0;
        for conversation in &data.conversations {
            *sources.entry(conversation.source.clone().unwrap_or_default()).or_default() += 1;
            *answers.entry(conversation.turns.len() / 2).or_default() += 1;
            duplicates += usize::from(!seen.insert(&conversation.turns));
        }
        let sorted = |mut all: Vec<usize>| {
            all.sort_unstable();
            all
        };
        Self {
            format: data.format,
            rows: data.conversations.len(),
            duplicates,
            dropped_last: data.conversations.iter().filter(|c| c.dropped_last).count(),
            sources,
            answers,
            lengths: sorted(examples.iter().map(|e| e.ids.len() + e.trimmed).collect()),
            supervised: sorted(examples.iter().map(Example::supervised_tokens).collect()),
            max_tokens,
            trimmed_rows: examples.iter().filter(|e| e.trimmed > 0).count(),
            trimmed_tokens: examples.iter().map(|e| e.trimmed).sum(),
        }
    }

    /// Rows of which nothing is left to learn.
    pub fn nothing_to_learn(&self) -> usize {
        self.supervised.iter().filter(|n| **n == 0).count()
    }
}

/// The value below which `percent` of the sorted values are (nearest rank); 0 if there are none.
fn quantile(sorted: &[usize], percent: usize) -> usize {
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).copied().unwrap_or(0)
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let line = |f: &mut fmt::Formatter<'_>, name: &str, value: String| writeln!(f, "{name:<18}{value}");
        let counts = |all: Vec<String>| all.join(", ");
        line(f, "rows", format!("{} {}", self.rows, self.format))?;
        let by_source = self.sources.iter().map(|(name, n)| match name.is_empty() {
            true => format!("not said {n}"),
            false => format!("{} {n}", super::inspect::plain(name)),
        });
        line(f, "sources", counts(by_source.collect()))?;
        line(f, "rows by answers", counts(self.answers.iter().map(|(n, rows)| format!("{n}: {rows}")).collect()))?;
        for (name, all) in [("tokens in a row", &self.lengths), ("supervised", &self.supervised)] {
            let at = [0, 25, 50, 75, 90, 99, 100].map(|p| quantile(all, p).to_string());
            let names = ["min", "25%", "50%", "75%", "90%", "99%", "max"];
            let shown: Vec<String> = names.iter().zip(at).map(|(n, v)| format!("{n} {v}")).collect();
            line(f, name, format!("{}; sum {}", shown.join(", "), all.iter().sum::<usize>()))?;
        }
        let cut =
            format!("{} rows to {} tokens, {} tokens cut off", self.trimmed_rows, self.max_tokens, self.trimmed_tokens);
        line(f, "trimmed", cut)?;
        let some = [
            ("duplicates", self.duplicates, "rows say the same as one before"),
            ("unanswered", self.dropped_last, "rows end with a message of the user, which is left out"),
            ("nothing to learn", self.nothing_to_learn(), "rows have no supervised token left"),
        ];
        for (name, n, what) in some.into_iter().filter(|(_, n, _)| *n > 0) {
            line(f, name, format!("{n} {what}"))?;
        }
        Ok(())
    }
}
