//! Which of two systems answers better, prompt by prompt.

use std::collections::BTreeMap;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::EvalError;
use super::answers::{Answer, System};
use super::ask::{Asker, each};
use super::judge::{Side, Style, Vote};
use super::stats::{
    Battle, Counts, Interval, LengthBias, Outcome, Rates, Resampler, bootstrap, bradley_terry, length_bias,
};
use super::store::{Call, digest};

/// In which order the two answers are shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Orders {
    /// Both, one after the other; where the verdicts disagree, neither is better
    Both,
    /// One, drawn by the seed for each prompt: as the paper did
    One,
}

/// One question to the judge.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Game {
    /// Whose answer was shown first.
    pub first: String,
    /// What was read; `None` if nothing could be.
    pub vote: Option<Vote>,
    /// What the judge said, or the server instead.
    pub text: String,
    /// Of the call, where parameters, prompt and the rest are kept.
    pub key: String,
}

/// What is known of one prompt and two systems.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Verdict {
    /// The prompt's.
    pub id: String,
    /// Its group.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub category: Option<String>,
    /// The system that `outcome` is about.
    pub a: String,
    /// The other.
    pub b: String,
    /// `None` if a verdict could not be read.
    pub outcome: Option<Outcome>,
    /// Characters of both answers.
    #[serde(default)]
    pub lengths: [usize; 2],
    /// Who judged.
    pub judge: String,
    /// How the judge was asked; `None` for people.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub style: Option<Style>,
    /// One for each order.
    #[serde(default)]
    pub games: Vec<Game>,
}

impl Verdict {
    /// What a game says about `a`.
    fn outcome_of(&self, game: &Game) -> Option<Outcome> {
        let outcome = match game.vote?.side {
            Side::A => Outcome::Win,
            Side::Tie => Outcome::Tie,
            Side::B => Outcome::Lose,
        };
        Some(if game.first == self.a { outcome } else { outcome.flipped() })
    }

    /// What the games say together.
    fn decide(&mut self) {
        let mut all = self.games.iter().map(|game| self.outcome_of(game));
        let first = all.next().flatten();
        self.outcome = all.fold(first, |one, other| Some(Outcome::of_orders(one?, other?)));
    }
}

/// How a comparison is made.
#[derive(Clone, Debug)]
pub struct Comparison {
    /// The question.
    pub style: Style,
    /// Instead of the style's own instructions.
    pub system: Option<String>,
    /// The orders.
    pub orders: Orders,
    /// Every system with every other, or the first with every other.
    pub all_pairs: bool,
    /// Of the judge.
    pub params: Map<String, Value>,
    /// Of the one order.
    pub seed: u64,
    /// Calls side by side.
    pub at_once: usize,
}

struct Job<'a> {
    pair: (&'a System, &'a System),
    answers: (&'a Answer, &'a Answer),
    /// Whether the second system's answer is shown first.
    swapped: bool,
}

/// Has every prompt judged that both systems of a pair answered.
///
/// # Errors
/// There is no such prompt, or some calls found no answer.
pub fn compare(asker: &Asker<'_>, systems: &[System], how: &Comparison) -> Result<Vec<Verdict>, EvalError> {
    let pairs = pairs(systems.len(), how.all_pairs);
    let mut jobs = Vec::new();
    for (i, j) in pairs {
        let (a, b) = (&systems[i], &systems[j]);
        let others = b.by_id();
        let before = jobs.len();
        for one in a.answers.iter().filter(|answer| answer.sample == 0) {
            let Some(other) = others.get(one.id.as_str()) else { continue };
            if one.turns != other.turns {
                return Err(EvalError::Usage(format!(
                    "'{}' and '{}' answer different prompts of the name {}",
                    a.name, b.name, one.id
                )));
            }
            let orders: &[bool] = match how.orders {
                Orders::Both => &[false, true],
                Orders::One if drawn(how.seed, &one.id) => &[true],
                Orders::One => &[false],
            };
            jobs.extend(orders.iter().map(|swapped| Job { pair: (a, b), answers: (one, other), swapped: *swapped }));
        }
        if jobs.len() == before {
            return Err(EvalError::Usage(format!("'{}' and '{}' have no prompt in common", a.name, b.name)));
        }
    }
    let calls = each("verdicts", how.at_once, &jobs, |job| {
        let (one, other) = job.answers;
        let (first, second) = if job.swapped { (other, one) } else { (one, other) };
        asker.ask(how.style.messages(first, second, how.system.as_deref()), &how.params, 0)
    })?;
    if let Some(words) = calls.iter().all(|call| call.text.is_none()).then(|| calls[0].refused.clone()).flatten() {
        return Err(EvalError::Usage(format!("the judge refused every question: {words}")));
    }
    let mut verdicts: Vec<Verdict> = Vec::new();
    for (job, call) in jobs.iter().zip(calls) {
        let (a, b) = job.pair;
        let game = game(how.style, if job.swapped { &b.name } else { &a.name }, call);
        let (one, other) = job.answers;
        match verdicts.last_mut().filter(|last| last.id == one.id && last.a == a.name && last.b == b.name) {
            Some(verdict) => verdict.games.push(game),
            None => verdicts.push(Verdict {
                id: one.id.clone(),
                category: one.category.clone(),
                a: a.name.clone(),
                b: b.name.clone(),
                outcome: None,
                lengths: [one.length(), other.length()],
                judge: asker.model.clone(),
                style: Some(how.style),
                games: vec![game],
            }),
        }
    }
    verdicts.iter_mut().for_each(Verdict::decide);
    Ok(verdicts)
}

fn pairs(systems: usize, all: bool) -> Vec<(usize, usize)> {
    let firsts = if all { systems } else { 1 };
    (0..firsts).flat_map(|i| (i + 1..systems).map(move |j| (i, j))).collect()
}

/// The one order of a prompt.
fn drawn(seed: u64, id: &str) -> bool {
    let folded = digest(id.as_bytes())[..16].to_owned();
    let id = u64::from_str_radix(&folded, 16).unwrap_or(0);
    Resampler::new(seed ^ id).draw() & 1 == 1
}

fn game(style: Style, first: &str, call: Call) -> Game {
    let vote = call.text.as_deref().and_then(|text| style.parse(text));
    let text = call.text.or(call.refused).unwrap_or_default();
    Game { first: first.to_owned(), vote, text, key: call.key }
}

/// Numbers of two systems.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    /// The system that the numbers are about.
    pub a: String,
    /// The other.
    pub b: String,
    /// Who judged.
    pub judge: String,
    /// Prompts.
    pub counts: Counts,
    /// Of those with a verdict.
    pub rates: Option<Rates>,
    /// 95 % of the part of wins, over prompts.
    pub win_interval: Option<Interval>,
    /// Likewise of wins and ties.
    pub win_or_tie_interval: Option<Interval>,
    /// Likewise of the adjusted win rate.
    pub adjusted_interval: Option<Interval>,
    /// Of prompts with two verdicts, how many are the same in both orders.
    pub consistent: Option<(usize, usize)>,
    /// Of all verdicts that prefer one, how many prefer the one shown first.
    pub first_preferred: (usize, usize),
    /// Verdicts that could not be read, of all.
    pub unread: (usize, usize),
    /// Length beside it.
    pub length: Option<LengthBias>,
}

/// The pairs of systems there are verdicts about, in their order.
pub fn by_pair(verdicts: &[Verdict]) -> Vec<Vec<&Verdict>> {
    let mut order = Vec::new();
    let mut all: BTreeMap<(&str, &str), Vec<&Verdict>> = BTreeMap::new();
    for verdict in verdicts {
        let pair = (verdict.a.as_str(), verdict.b.as_str());
        if !all.contains_key(&pair) {
            order.push(pair);
        }
        all.entry(pair).or_default().push(verdict);
    }
    order.into_iter().filter_map(|pair| all.remove(&pair)).collect()
}

/// Numbers of verdicts about one pair, of which there is at least one.
pub fn summarise(verdicts: &[&Verdict], rounds: usize, seed: u64) -> Option<Summary> {
    let first = verdicts.first()?;
    let outcomes: Vec<Option<Outcome>> = verdicts.iter().map(|verdict| verdict.outcome).collect();
    let counts = Counts::of(outcomes.iter().copied());
    let interval = |of: fn(Rates) -> f64| {
        bootstrap(outcomes.len(), rounds, seed, |at| Counts::of(at.iter().map(|i| outcomes[*i])).rates().map(of))
    };
    let both: Vec<bool> = verdicts
        .iter()
        .filter_map(|verdict| match verdict.games.as_slice() {
            [one, other] => Some(verdict.outcome_of(one)? == verdict.outcome_of(other)?),
            _ => None,
        })
        .collect();
    let votes: Vec<Option<Vote>> = verdicts.iter().flat_map(|v| v.games.iter().map(|game| game.vote)).collect();
    let prefers = |side| votes.iter().flatten().filter(|vote| vote.side == side).count();
    let lengths: Vec<_> = verdicts.iter().map(|v| (v.lengths[0], v.lengths[1], v.outcome)).collect();
    Some(Summary {
        a: first.a.clone(),
        b: first.b.clone(),
        judge: first.judge.clone(),
        counts,
        rates: counts.rates(),
        win_interval: interval(|rates| rates.win),
        win_or_tie_interval: interval(|rates| rates.win_or_tie),
        adjusted_interval: interval(|rates| rates.adjusted),
        consistent: (!both.is_empty()).then(|| (both.iter().filter(|same| **same).count(), both.len())),
        first_preferred: (prefers(Side::A), prefers(Side::A) + prefers(Side::B)),
        unread: (votes.iter().filter(|vote| vote.is_none()).count(), votes.len()),
        length: length_bias(&lengths),
    })
}

/// A system's rating.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Rating {
    /// The system.
    pub system: String,
    /// On Elo's scale, with a mean of 0.
    pub rating: f64,
    /// 95 %, over prompts; resamples without finite ratings are left out.
    pub interval: Option<Interval>,
}

/// Bradley–Terry ratings: each game is a battle, one that was won by far counts three times, as Arena-Hard has it. `None`
/// if the games do not tie the systems together.
pub fn ratings(verdicts: &[Verdict], rounds: usize, seed: u64) -> Option<Vec<Rating>> {
    let mut names: Vec<&str> = Vec::new();
    let mut prompts: BTreeMap<&str, Vec<&Verdict>> = BTreeMap::new();
    for verdict in verdicts {
        for name in [verdict.a.as_str(), verdict.b.as_str()] {
            if !names.contains(&name) {
                names.push(name);
            }
        }
        prompts.entry(&verdict.id).or_default().push(verdict);
    }
    let index = |name: &str| names.iter().position(|n| *n == name).unwrap_or(0);
    let of_prompt = |verdicts: Vec<&Verdict>| -> Vec<Battle> {
        let battle = |verdict: &Verdict, game: &Game| {
            let points = verdict.outcome_of(game)?.points();
            let weight = if game.vote?.strong { 3.0 } else { 1.0 };
            Some(Battle { first: index(&verdict.a), second: index(&verdict.b), points, weight })
        };
        verdicts.iter().flat_map(|v| v.games.iter().filter_map(move |game| battle(v, game))).collect()
    };
    let prompts: Vec<Vec<Battle>> = prompts.into_values().map(of_prompt).collect();
    let all = bradley_terry(names.len(), &prompts.concat())?;
    let mut resampler = Resampler::new(seed);
    let mut drawn: Vec<Vec<f64>> = vec![Vec::new(); names.len()];
    for _ in 0..rounds {
        let battles: Vec<Battle> =
            resampler.resample(prompts.len()).into_iter().flat_map(|i| prompts[i].iter().copied()).collect();
        for (values, rating) in drawn.iter_mut().zip(bradley_terry(names.len(), &battles).into_iter().flatten()) {
            values.push(rating);
        }
    }
    let rating = |((name, rating), mut values): ((&&str, f64), Vec<f64>)| {
        values.sort_by(f64::total_cmp);
        let ends = (super::stats::percentile(&values, 0.025), super::stats::percentile(&values, 0.975));
        let interval = if let (Some(low), Some(high)) = ends { Some(Interval { low, high }) } else { None };
        Rating { system: (*name).to_owned(), rating, interval }
    };
    let mut ratings: Vec<Rating> = names.iter().zip(all).zip(drawn).map(rating).collect();
    ratings.sort_by(|one, other| other.rating.total_cmp(&one.rating));
    Some(ratings)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn verdict(id: usize, votes: &[Option<Side>]) -> Verdict {
        let game = |(i, side): (usize, &Option<Side>)| Game {
            first: if i == 0 { "x".into() } else { "y".into() },
            vote: side.map(|side| Vote { side, strong: false }),
            text: String::new(),
            key: String::new(),
        };
        let mut verdict = Verdict {
            id: id.to_string(),
            category: None,
            a: "x".into(),
            b: "y".into(),
            outcome: None,
            lengths: [1, 2],
            judge: "j".into(),
            style: Some(Style::Lima),
            games: votes.iter().enumerate().map(game).collect(),
        };
        verdict.decide();
        verdict
    }

    #[test]
    fn outcomes_of_both_orders() {
        use Side::{A, B, Tie};
        for (votes, outcome) in [
            ([Some(A), Some(B)], Some(Outcome::Win)),
            ([Some(B), Some(A)], Some(Outcome::Lose)),
            ([Some(A), Some(A)], Some(Outcome::Tie)),
            ([Some(A), Some(Tie)], Some(Outcome::Tie)),
            ([Some(A), None], None),
            ([None, None], None),
        ] {
            assert_eq!(verdict(0, &votes).outcome, outcome, "{votes:?}");
        }
        assert_eq!(verdict(0, &[Some(B)]).outcome, Some(Outcome::Lose));
    }

    /// Ten prompts: 4 won in both orders, 1 lost, 3 that go to whoever is first, 1 tied, 1 unread. By hand: 4/4/1 of 9,
    /// adjusted 6/9, consistent 6 of 9; first preferred 4 + 1 + 6 + 1 of those and the 5 that prefer the second.
    #[test]
    fn a_summary_by_hand() {
        use Side::{A, B, Tie};
        let mut all: Vec<Verdict> = (0..4).map(|i| verdict(i, &[Some(A), Some(B)])).collect();
        all.push(verdict(4, &[Some(B), Some(A)]));
        all.extend((5..8).map(|i| verdict(i, &[Some(A), Some(A)])));
        all.push(verdict(8, &[Some(Tie), Some(Tie)]));
        all.push(verdict(9, &[Some(A), None]));
        let refs: Vec<&Verdict> = all.iter().collect();
        let summary = summarise(&refs, 200, 1).unwrap();
        assert_eq!(summary.counts, Counts { win: 4, tie: 4, lose: 1, failed: 1 });
        assert_eq!(summary.rates.unwrap().adjusted, 6.0 / 9.0);
        assert_eq!(summary.consistent, Some((6, 9)));
        assert_eq!((summary.first_preferred, summary.unread), ((12, 17), (1, 20)));
        let interval = summary.adjusted_interval.unwrap();
        assert!(interval.low < 6.0 / 9.0 && interval.high > 6.0 / 9.0);
        let ratings = ratings(&all, 50, 1).unwrap();
        assert_eq!((ratings[0].system.as_str(), ratings.len()), ("x", 2));
    }

    #[test]
    fn which_pairs() {
        assert_eq!(pairs(3, false), [(0, 1), (0, 2)]);
        assert_eq!(pairs(3, true), [(0, 1), (0, 2), (1, 2)]);
        let flipped = (0..200).filter(|i| drawn(1, &i.to_string())).count();
        assert!((60..140).contains(&flipped), "{flipped}");
    }
}
