//! Statistics against scipy's and numpy's (`scripts/goldens/eval.py`).

use lima::eval::stats::{Battle, bootstrap, bradley_terry, mean_interval, t_quantile};
use serde::Deserialize;

#[derive(Deserialize)]
struct Goldens {
    points: Vec<f64>,
    bootstrap_of_points: [f64; 2],
    scores: Vec<f64>,
    bootstrap_of_scores: [f64; 2],
    t_interval_of_scores: [f64; 2],
    t_quantiles: Vec<(f64, f64)>,
    battles: Vec<(usize, usize, f64, f64)>,
    bradley_terry: Vec<f64>,
}

fn goldens() -> Goldens {
    serde_json::from_str(include_str!("../../goldens/eval.json")).unwrap()
}

fn near(found: f64, expected: f64, within: f64) {
    assert!((found - expected).abs() <= within, "{found} is not {expected}");
}

#[test]
fn intervals_are_scipys_on_the_same_resamples() {
    let goldens = goldens();
    for (values, seed, [low, high]) in
        [(&goldens.points, 0, goldens.bootstrap_of_points), (&goldens.scores, 12345, goldens.bootstrap_of_scores)]
    {
        let mean = |at: &[usize]| Some(at.iter().map(|i| values[*i]).sum::<f64>() / at.len() as f64);
        let interval = bootstrap(values.len(), 1000, seed, mean).unwrap();
        near(interval.low, low, 1e-12);
        near(interval.high, high, 1e-12);
    }
    let interval = mean_interval(&goldens.scores).unwrap();
    near(interval.low, goldens.t_interval_of_scores[0], 1e-9);
    near(interval.high, goldens.t_interval_of_scores[1], 1e-9);
    for (freedom, t) in goldens.t_quantiles {
        near(t_quantile(0.975, freedom), t, 1e-9);
    }
}

#[test]
fn ratings_are_those_that_scipy_finds() {
    let goldens = goldens();
    let battles: Vec<Battle> = goldens
        .battles
        .iter()
        .map(|&(first, second, points, weight)| Battle { first, second, points, weight })
        .collect();
    let ratings = bradley_terry(4, &battles).unwrap();
    for (found, expected) in ratings.iter().zip(&goldens.bradley_terry) {
        near(*found, *expected, 1e-3);
    }
}
