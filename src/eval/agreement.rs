//! How much judges agree, people or models, on what both of them judged.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;

use super::EvalError;
use super::answers::Named;
use super::pairwise::Verdict;
use super::stats::{Interval, Outcome, agreement, bootstrap};
use super::store::read_rows;

/// The file of verdicts in a directory of `pairwise`.
pub const FILE: &str = "verdicts.jsonl";

/// A comparison: prompt, and two systems in the order of their names.
type Item = (String, String, String);

/// A judge and what it said.
pub struct Judge {
    /// As the user calls it.
    pub name: String,
    /// About the system whose name comes first.
    pub outcomes: BTreeMap<Item, Outcome>,
}

/// Reads verdicts of `pairwise` or of `human`; a file of several judges is as many.
///
/// # Errors
/// It cannot be read, or has something else in it.
pub fn read(named: &Named) -> Result<Vec<Judge>, EvalError> {
    let path = if named.path.is_dir() { named.path.join(FILE) } else { named.path.clone() };
    let mut judges: BTreeMap<String, BTreeMap<Item, Outcome>> = BTreeMap::new();
    for (line, row) in read_rows(&path)? {
        let verdict: Verdict = serde_json::from_value(Value::Object(row)).map_err(|e| EvalError::Line {
            path: path.clone(),
            line,
            reason: format!("not a verdict: {e}"),
        })?;
        let outcomes = judges.entry(verdict.judge).or_default();
        let Some(outcome) = verdict.outcome else { continue };
        let (item, outcome) = match verdict.a <= verdict.b {
            true => ((verdict.id, verdict.a, verdict.b), outcome),
            false => ((verdict.id, verdict.b, verdict.a), outcome.flipped()),
        };
        outcomes.insert(item, outcome);
    }
    let alone = judges.len() == 1;
    let name = |judge: String| if alone { named.name.clone() } else { format!("{}/{judge}", named.name) };
    Ok(judges.into_iter().map(|(judge, outcomes)| Judge { name: name(judge), outcomes }).collect())
}

/// Two judges.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Agreement {
    /// One.
    pub one: String,
    /// The other.
    pub other: String,
    /// Comparisons that both judged.
    pub shared: usize,
    /// Mean tie-discounted accuracy, from 0 to 1.
    pub accuracy: Option<f64>,
    /// 95 %, over prompts.
    pub interval: Option<Interval>,
    /// How many of them are the same verdict.
    pub same: usize,
    /// How many are opposed.
    pub opposed: usize,
}

/// Every judge with every other.
pub fn table(judges: &[Judge], rounds: usize, seed: u64) -> Vec<Agreement> {
    let mut out = Vec::new();
    for (i, one) in judges.iter().enumerate() {
        for other in &judges[i + 1..] {
            // By prompt, as all comparisons of one prompt are drawn together.
            let mut prompts: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
            for (item, outcome) in &one.outcomes {
                if let Some(against) = other.outcomes.get(item) {
                    prompts.entry(&item.0).or_default().push(agreement(*outcome, *against));
                }
            }
            let prompts: Vec<Vec<f64>> = prompts.into_values().collect();
            let mean = |at: &mut dyn Iterator<Item = usize>| {
                let (sum, n) =
                    at.fold((0.0, 0), |(sum, n), i| (sum + prompts[i].iter().sum::<f64>(), n + prompts[i].len()));
                (n > 0).then(|| sum / n as f64)
            };
            let all = prompts.concat();
            let count = |value: f64| all.iter().filter(|v| **v == value).count();
            out.push(Agreement {
                one: one.name.clone(),
                other: other.name.clone(),
                shared: all.len(),
                accuracy: mean(&mut (0..prompts.len())),
                interval: bootstrap(prompts.len(), rounds, seed, |at| mean(&mut at.iter().copied())),
                same: count(1.0),
                opposed: count(0.0),
            });
        }
    }
    out
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn judges_are_compared_whichever_system_is_named_first() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, rows: &[(&str, &str, &str, &str, &str)]| {
            let row = |(id, a, b, outcome, judge): &(&str, &str, &str, &str, &str)| {
                serde_json::json!({"id": id, "a": a, "b": b, "outcome": outcome, "judge": judge}).to_string() + "\n"
            };
            let path = dir.path().join(name);
            std::fs::write(&path, rows.iter().map(row).collect::<String>()).unwrap();
            Named { name: name.into(), path }
        };
        let one = write(
            "m",
            &[
                ("1", "x", "y", "win", "j"),
                ("2", "x", "y", "tie", "j"),
                ("3", "x", "y", "win", "j"),
                ("4", "x", "y", "win", "j"),
            ],
        );
        let two = write("h", &[("1", "y", "x", "lose", "p"), ("2", "y", "x", "win", "p"), ("3", "y", "x", "win", "q")]);
        let mut judges = read(&one).unwrap();
        judges.extend(read(&two).unwrap());
        let table = table(&judges, 100, 1);
        let all: Vec<_> = table.iter().map(|a| (a.one.as_str(), a.other.as_str(), a.shared, a.accuracy)).collect();
        assert_eq!(all, [("m", "h/p", 2, Some(0.75)), ("m", "h/q", 1, Some(0.0)), ("h/p", "h/q", 0, None)]);
        assert_eq!((table[0].same, table[0].opposed, table[1].opposed), (1, 0, 1));
    }
}
