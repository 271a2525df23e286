//! Whether a judge likes length: told beside every result, and corrected in none.

use serde::Serialize;

use super::Outcome;

/// How verdicts go with lengths, which are characters.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct LengthBias {
    /// Mean length of the first system's answers.
    pub first: f64,
    /// Mean length of the second's.
    pub second: f64,
    /// Of verdicts other than ties between answers of different length, the part that the longer one wins. ½ is no
    /// bias, or a longer answer that is no better.
    pub longer_wins: Option<f64>,
    /// How many those are.
    pub decided: usize,
}

/// From (length of the first, of the second, verdict).
pub fn length_bias(items: &[(usize, usize, Option<Outcome>)]) -> Option<LengthBias> {
    let n = items.len();
    if n == 0 {
        return None;
    }
    let mean =
        |of: fn(&(usize, usize, Option<Outcome>)) -> usize| items.iter().map(of).sum::<usize>() as f64 / n as f64;
    let decided: Vec<bool> = items
        .iter()
        .filter(|(first, second, _)| first != second)
        .filter_map(|(first, second, outcome)| match outcome {
            Some(Outcome::Win) => Some(first > second),
            Some(Outcome::Lose) => Some(second > first),
            _ => None,
        })
        .collect();
    let wins = decided.iter().filter(|longer| **longer).count();
    Some(LengthBias {
        first: mean(|item| item.0),
        second: mean(|item| item.1),
        longer_wins: (!decided.is_empty()).then(|| wins as f64 / decided.len() as f64),
        decided: decided.len(),
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn by_hand() {
        use Outcome::{Lose, Tie, Win};
        let items = [
            (10, 20, Some(Lose)),
            (30, 20, Some(Win)),
            (5, 10, Some(Win)),
            (7, 7, Some(Win)),
            (9, 1, Some(Tie)),
            (1, 2, None),
        ];
        let bias = length_bias(&items).unwrap();
        assert_eq!((bias.decided, bias.longer_wins), (3, Some(2.0 / 3.0)));
        assert_eq!((bias.first, bias.second), (62.0 / 6.0, 10.0));
        assert_eq!(length_bias(&[]), None);
        assert_eq!(length_bias(&[(1, 1, Some(Win))]).unwrap().longer_wins, None);
    }
}
