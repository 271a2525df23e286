//! Bradley–Terry ratings of several systems.

/// One comparison: `first` has `points` of 1 against `second`, and counts `weight` times.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Battle {
    /// Index of a system.
    pub first: usize,
    /// Index of another.
    pub second: usize,
    /// 1, ½ for a tie, or 0.
    pub points: f64,
    /// Above 0.
    pub weight: f64,
}

/// Maximum-likelihood ratings on Elo's scale (400 points are odds of ten to one), with a mean of 0. A tie is half a win
/// of each. `None` if there are none: some systems never lose a point to the others, or never meet them.
pub fn bradley_terry(systems: usize, battles: &[Battle]) -> Option<Vec<f64>> {
    if systems < 2 {
        return None;
    }
    // points[i][j]: what i won against j.
    let mut points = vec![vec![0.0; systems]; systems];
    for battle in battles {
        points[battle.first][battle.second] += battle.points * battle.weight;
        points[battle.second][battle.first] += (1.0 - battle.points) * battle.weight;
    }
    if !reaches_all(&points, false) || !reaches_all(&points, true) {
        return None;
    }
    let won: Vec<f64> = points.iter().map(|row| row.iter().sum()).collect();
    // Newton's method on the concave log-likelihood, the last system held at 0.
    let free = systems - 1;
    let mut rating = vec![0.0_f64; systems];
    for _ in 0..100 {
        let mut gradient = won[..free].to_vec();
        let mut curvature = vec![vec![0.0; free]; free];
        for i in 0..free {
            for j in (0..systems).filter(|j| *j != i) {
                let met = points[i][j] + points[j][i];
                let expected = 1.0 / (1.0 + (rating[j] - rating[i]).exp());
                gradient[i] -= met * expected;
                let spread = met * expected * (1.0 - expected);
                curvature[i][i] += spread;
                if j < free {
                    curvature[i][j] -= spread;
                }
            }
        }
        let step = solve(curvature, gradient)?;
        // Far from the maximum a whole step may overshoot.
        let scale = 1.0 / step.iter().fold(1.0_f64, |most, s| most.max(s.abs()));
        for (value, s) in rating.iter_mut().zip(&step) {
            *value += s * scale;
        }
        if step.iter().all(|s| s.abs() < 1e-12) {
            break;
        }
    }
    let middle = rating.iter().sum::<f64>() / systems as f64;
    let all: Vec<f64> = rating.iter().map(|r| (r - middle) * 400.0 / std::f64::consts::LN_10).collect();
    all.iter().all(|r| r.is_finite()).then_some(all)
}

/// Whether a chain of points leads from system 0 to every other; `back`: from every other to it. Both together are
/// Ford's condition for a maximum.
fn reaches_all(points: &[Vec<f64>], back: bool) -> bool {
    let mut seen = vec![false; points.len()];
    let mut todo = vec![0];
    seen[0] = true;
    while let Some(at) = todo.pop() {
        for other in 0..points.len() {
            let has = if back { points[other][at] } else { points[at][other] };
            if has > 0.0 && !seen[other] {
                seen[other] = true;
                todo.push(other);
            }
        }
    }
    seen.into_iter().all(|s| s)
}

/// Solves `matrix · x = right` by elimination with pivots; `None` if it is singular.
fn solve(mut matrix: Vec<Vec<f64>>, mut right: Vec<f64>) -> Option<Vec<f64>> {
    let n = right.len();
    for at in 0..n {
        let pivot = (at..n).max_by(|a, b| matrix[*a][at].abs().total_cmp(&matrix[*b][at].abs()))?;
        if matrix[pivot][at].abs() < 1e-300 {
            return None;
        }
        matrix.swap(at, pivot);
        right.swap(at, pivot);
        for row in at + 1..n {
            let factor = matrix[row][at] / matrix[at][at];
            for column in at..n {
                matrix[row][column] -= factor * matrix[at][column];
            }
            right[row] -= factor * right[at];
        }
    }
    for at in (0..n).rev() {
        let known: f64 = (at + 1..n).map(|column| matrix[at][column] * right[column]).sum();
        right[at] = (right[at] - known) / matrix[at][at];
    }
    Some(right)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn battles(results: &[(usize, usize, f64)]) -> Vec<Battle> {
        results.iter().map(|&(first, second, points)| Battle { first, second, points, weight: 1.0 }).collect()
    }

    /// Two systems have a closed form: 400 · log10 of the odds.
    #[test]
    fn two_systems() {
        let ratings = bradley_terry(2, &battles(&[(0, 1, 1.0), (0, 1, 1.0), (1, 0, 0.0), (1, 0, 1.0)])).unwrap();
        assert!((ratings[0] - ratings[1] - 400.0 * 3_f64.log10()).abs() < 1e-9, "{ratings:?}");
        let even = bradley_terry(2, &battles(&[(0, 1, 0.5)])).unwrap();
        assert!(even.iter().all(|r| r.abs() < 1e-12));
        // A weight of 3 is three battles.
        let mut heavy = battles(&[(0, 1, 1.0), (0, 1, 0.0)]);
        heavy[0].weight = 3.0;
        let heavy = bradley_terry(2, &heavy).unwrap();
        assert!((heavy[0] - ratings[0]).abs() < 1e-9);
    }

    #[test]
    fn no_rating_without_a_maximum() {
        assert_eq!(bradley_terry(2, &battles(&[(0, 1, 1.0)])), None);
        assert_eq!(bradley_terry(3, &battles(&[(0, 1, 0.5)])), None);
        assert_eq!(bradley_terry(3, &battles(&[(0, 1, 0.5), (1, 2, 1.0), (0, 2, 1.0)])), None);
        assert_eq!(bradley_terry(1, &[]), None);
    }

    /// At the maximum each system's points are those its rating expects.
    #[test]
    fn the_likelihood_is_stationary() {
        let mut all = Vec::new();
        for (first, second, wins, ties, losses) in
            [(0, 1, 9, 3, 2), (0, 2, 4, 4, 8), (1, 2, 5, 0, 7), (2, 3, 30, 1, 2), (0, 3, 1, 0, 0)]
        {
            all.extend(std::iter::repeat_n((first, second, 1.0), wins));
            all.extend(std::iter::repeat_n((first, second, 0.5), ties));
            all.extend(std::iter::repeat_n((first, second, 0.0), losses));
        }
        let all = battles(&all);
        let ratings = bradley_terry(4, &all).unwrap();
        for system in 0..4 {
            let (mut won, mut expected) = (0.0, 0.0);
            for b in &all {
                let chance = 1.0 / (1.0 + 10_f64.powf((ratings[b.second] - ratings[b.first]) / 400.0));
                match system {
                    s if s == b.first => (won, expected) = (won + b.points, expected + chance),
                    s if s == b.second => (won, expected) = (won + 1.0 - b.points, expected + 1.0 - chance),
                    _ => {}
                }
            }
            assert!((won - expected).abs() < 1e-8, "{system}: {won} {expected}");
        }
        assert!(ratings.iter().sum::<f64>().abs() < 1e-9);
    }
}
