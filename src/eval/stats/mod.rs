//! Numbers from verdicts. Nothing here knows where verdicts come from.

mod bootstrap;
mod length;
mod rating;
mod student;

use serde::{Deserialize, Serialize};

pub use bootstrap::{Interval, Resampler, bootstrap, percentile};
pub use length::{LengthBias, length_bias};
pub use rating::{Battle, bradley_terry};
pub use student::{mean, mean_interval, t_quantile};

/// What a comparison says about the first of two systems.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// It is better.
    Win,
    /// Neither is.
    Tie,
    /// The other is.
    Lose,
}

impl Outcome {
    /// Of the same comparison, for the second system.
    pub fn flipped(self) -> Self {
        match self {
            Self::Win => Self::Lose,
            Self::Tie => Self::Tie,
            Self::Lose => Self::Win,
        }
    }

    /// 1, ½ or 0.
    pub fn points(self) -> f64 {
        match self {
            Self::Win => 1.0,
            Self::Tie => 0.5,
            Self::Lose => 0.0,
        }
    }

    /// The verdict of both orders: where they disagree, neither is better.
    pub fn of_orders(one: Self, other: Self) -> Self {
        if one == other { one } else { Self::Tie }
    }
}

/// How often each outcome was, and how often there was none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Better.
    pub win: usize,
    /// Neither.
    pub tie: usize,
    /// Worse.
    pub lose: usize,
    /// Comparisons without a verdict that could be read. They are in no rate, and beside all of them.
    pub failed: usize,
}

impl Counts {
    /// Counts; `None` has no verdict.
    pub fn of(outcomes: impl IntoIterator<Item = Option<Outcome>>) -> Self {
        let mut counts = Self::default();
        for outcome in outcomes {
            match outcome {
                Some(Outcome::Win) => counts.win += 1,
                Some(Outcome::Tie) => counts.tie += 1,
                Some(Outcome::Lose) => counts.lose += 1,
                None => counts.failed += 1,
            }
        }
        counts
    }

    /// Those with a verdict.
    pub fn judged(&self) -> usize {
        self.win + self.tie + self.lose
    }

    /// Parts of those with a verdict; `None` where there is none.
    pub fn rates(&self) -> Option<Rates> {
        let n = self.judged();
        let part = |count: usize| count as f64 / n as f64;
        (n > 0).then(|| Rates {
            win: part(self.win),
            tie: part(self.tie),
            lose: part(self.lose),
            win_or_tie: part(self.win + self.tie),
            adjusted: (self.win as f64 + 0.5 * self.tie as f64) / n as f64,
        })
    }
}

/// Parts, from 0 to 1.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Rates {
    /// Better.
    pub win: f64,
    /// Neither.
    pub tie: f64,
    /// Worse.
    pub lose: f64,
    /// Equal or better, as the paper sums it up.
    pub win_or_tie: f64,
    /// A tie is half a win (MT-Bench's adjusted win rate).
    pub adjusted: f64,
}

/// Tie-discounted accuracy of two who judged the same comparison: 1 if they agree, ½ if exactly one of them sees a tie,
/// else 0.
pub fn agreement(one: Outcome, other: Outcome) -> f64 {
    match (one, other) {
        _ if one == other => 1.0,
        (Outcome::Tie, _) | (_, Outcome::Tie) => 0.5,
        _ => 0.0,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::Outcome::{Lose, Tie, Win};
    use super::*;

    /// Counts that have these outcomes.
    fn counts(win: usize, tie: usize, lose: usize) -> Counts {
        let all = [(Win, win), (Tie, tie), (Lose, lose)];
        Counts::of(all.into_iter().flat_map(|(outcome, n)| std::iter::repeat_n(Some(outcome), n)))
    }

    /// Figures 1 and 2 of the paper, in percent, from counts of 300 prompts; and its own sentence, that LIMA's answers
    /// are equal or better in 43 % (GPT-4), 46 % (Claude), 58 % (Bard) and 65 % (DaVinci003) of cases.
    #[test]
    fn the_papers_table() {
        let human = [
            ("Alpaca", 53, 21, 26),
            ("DaVinci003", 44, 21, 35),
            ("Bard", 33, 25, 42),
            ("Claude", 24, 22, 54),
            ("GPT-4", 18, 25, 57),
        ];
        let gpt4 = [
            ("Alpaca", 64, 19, 17),
            ("DaVinci003", 54, 23, 23),
            ("Bard", 27, 26, 47),
            ("Claude", 14, 23, 63),
            ("GPT-4", 19, 15, 66),
        ];
        for (_, win, tie, lose) in human.into_iter().chain(gpt4) {
            let rates = counts(3 * win, 3 * tie, 3 * lose).rates().unwrap();
            let percent = |part: f64| (part * 100.0).round() as usize;
            assert_eq!([rates.win, rates.tie, rates.lose].map(percent), [win, tie, lose]);
            assert_eq!(percent(rates.win_or_tie), win + tie);
            assert!((rates.adjusted - (win as f64 + tie as f64 / 2.0) / 100.0).abs() < 1e-12);
        }
        let or_better = human[1..].iter().map(|(_, win, tie, _)| win + tie).collect::<Vec<_>>();
        assert_eq!(or_better, [65, 58, 46, 43]);
    }

    #[test]
    fn what_has_no_verdict_is_counted_and_in_no_rate() {
        let counts = Counts::of([Some(Win), None, Some(Tie), None]);
        assert_eq!((counts.judged(), counts.failed), (2, 2));
        assert_eq!(counts.rates().unwrap().adjusted, 0.75);
        assert_eq!(Counts::of([None]).rates(), None);
    }

    #[test]
    fn orders_that_disagree_are_a_tie() {
        assert_eq!(Outcome::of_orders(Win, Win), Win);
        for (a, b) in [(Win, Lose), (Win, Tie), (Tie, Lose), (Tie, Tie)] {
            assert_eq!(Outcome::of_orders(a, b), Tie);
        }
        assert_eq!([Win, Tie, Lose].map(Outcome::flipped), [Lose, Tie, Win]);
    }

    /// By hand: 1 (both win) + ½ (one tie) + 0 (opposed) + 1 (both tie) + ½ = 3 of 5.
    #[test]
    fn tie_discounted_accuracy() {
        let pairs = [(Win, Win), (Win, Tie), (Win, Lose), (Tie, Tie), (Tie, Lose)];
        let sum: f64 = pairs.iter().map(|(a, b)| agreement(*a, *b)).sum();
        assert_eq!(sum / pairs.len() as f64, 0.6);
        assert!(pairs.iter().all(|(a, b)| agreement(*a, *b) == agreement(*b, *a)));
    }
}
