#!/usr/bin/env python3
"""Statistics of evaluations as numpy and scipy compute them: tests/goldens/eval.json.

    python3 scripts/goldens/eval.py > tests/goldens/eval.json

Needs numpy and scipy. Resamples are drawn by SplitMix64, as in src/eval/stats/bootstrap.rs, so that the intervals are of
the same resamples.
"""

import json

import numpy
from scipy import optimize, stats

MASK = (1 << 64) - 1


class Resampler:
    def __init__(self, seed):
        self.state = seed

    def draw(self):
        self.state = (self.state + 0x9E3779B97F4A7C15) & MASK
        z = self.state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        return z ^ (z >> 31)

    def resample(self, n):
        return [self.draw() * n >> 64 for _ in range(n)]


def bootstrap(values, seed, rounds=1000):
    """scipy's own percentile bootstrap of the mean, given our resamples instead of its own draws."""
    resampler = Resampler(seed)
    rows = numpy.array([resampler.resample(len(values)) for _ in range(rounds)])

    class Draws(numpy.random.Generator):
        def integers(self, low, high=None, size=None, **_):
            assert (low, high) == (0, len(values)) and size == rows.shape, (low, high, size)
            return rows

    result = stats.bootstrap((values,), numpy.mean, n_resamples=rounds, method="percentile", vectorized=True,
                             confidence_level=0.95, rng=Draws(numpy.random.PCG64(0)))
    return [result.confidence_interval.low, result.confidence_interval.high]


def bradley_terry(systems, battles):
    """Maximum likelihood by scipy's minimiser, on Elo's scale with a mean of 0."""

    def loss(free):
        rating = numpy.append(free, 0.0)
        total = 0.0
        for first, second, points, weight in battles:
            difference = rating[first] - rating[second]
            total += weight * (points * numpy.logaddexp(0, -difference) + (1 - points) * numpy.logaddexp(0, difference))
        return total

    found = optimize.minimize(loss, numpy.zeros(systems - 1), method="BFGS", options={"gtol": 1e-10})
    rating = numpy.append(found.x, 0.0)
    return list((rating - rating.mean()) * 400 / numpy.log(10))


def main():
    draw = numpy.random.default_rng(20230518)
    points = draw.choice([0.0, 0.5, 1.0], size=300, p=[0.35, 0.21, 0.44]).tolist()
    scores = draw.integers(1, 7, size=50).astype(float).tolist()
    true = [0.8, 0.2, -0.1, -0.9]
    battles = []
    for _ in range(400):
        first, second = (int(i) for i in draw.choice(4, size=2, replace=False))
        chance = 1 / (1 + numpy.exp(true[second] - true[first]))
        won = 0.5 if draw.random() < 0.15 else float(draw.random() < chance)
        battles.append([first, second, won, 3.0 if won != 0.5 and draw.random() < 0.2 else 1.0])
    interval = stats.t.interval(0.95, len(scores) - 1, loc=numpy.mean(scores), scale=stats.sem(scores))
    print(json.dumps({
        "points": points,
        "bootstrap_of_points": bootstrap(points, 0),
        "scores": scores,
        "bootstrap_of_scores": bootstrap(scores, 12345),
        "t_interval_of_scores": list(interval),
        "t_quantiles": [[n, stats.t.ppf(0.975, n)] for n in (1, 2, 3, 10, 49, 299, 1999)],
        "battles": battles,
        "bradley_terry": bradley_terry(4, battles),
    }))


if __name__ == "__main__":
    main()
