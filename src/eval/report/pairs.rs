//! Reports of comparisons: two systems or more, and judges.

use std::collections::BTreeMap;

use super::{Bar, Page, bars, numbers, percent, percents};
use crate::eval::agreement::Agreement;
use crate::eval::answers::{Answer, System};
use crate::eval::pairwise::{Rating, Summary, Verdict};
use crate::eval::stats::Outcome;

/// Prompts of the reading view at most; beyond, the page would be slow.
const SHOWN: usize = 1000;

fn stacked(summary: &Summary) -> Option<Bar> {
    let rates = summary.rates?;
    Some(Bar {
        name: format!("vs {}", summary.b),
        parts: vec![(rates.win, "win", "wins"), (rates.tie, "tie", "neither is better"), (rates.lose, "lose", "loses")],
        interval: summary.win_interval,
    })
}

/// The report of `pairwise`.
pub fn pairwise(
    summaries: &[Summary],
    ratings: Option<&[Rating]>,
    verdicts: &[Verdict],
    systems: &[System],
    about: &[String],
) -> String {
    let mut page = Page::new("Which answers are better", about);
    if let [summary] = summaries {
        page.tiles(&tiles(summary));
    }
    let mut firsts: Vec<&str> = summaries.iter().map(|summary| summary.a.as_str()).collect();
    firsts.dedup();
    let figures = firsts.iter().map(|first| {
        let rows: Vec<Bar> = summaries.iter().filter(|s| s.a == *first).filter_map(stacked).collect();
        bars(&format!("{first}, by {}", summaries[0].judge), &rows)
    });
    page.plots(&figures.collect::<Vec<_>>());
    page.note("The mark below a bar is the 95 % interval of the part of wins, by resampling prompts.");

    page.heading("Numbers");
    let head = [
        "",
        "prompts",
        "win",
        "tie",
        "lose",
        "unread",
        "win or tie",
        "95 %",
        "adjusted",
        "95 %",
        "same in both orders",
        "first preferred",
        "longer wins",
    ];
    let part = |(hits, of): (usize, usize)| {
        if of == 0 { "–".into() } else { format!("{} of {of}", hits) }
    };
    let rows: Vec<Vec<String>> = summaries
        .iter()
        .map(|s| {
            let rate =
                |of: fn(&crate::eval::stats::Rates) -> f64| s.rates.as_ref().map_or("–".into(), |r| percent(of(r)));
            vec![
                format!("{} vs {}", s.a, s.b),
                (s.counts.judged() + s.counts.failed).to_string(),
                s.counts.win.to_string(),
                s.counts.tie.to_string(),
                s.counts.lose.to_string(),
                s.counts.failed.to_string(),
                rate(|r| r.win_or_tie),
                percents(s.win_or_tie_interval),
                rate(|r| r.adjusted),
                percents(s.adjusted_interval),
                s.consistent.map_or("–".into(), part),
                part(s.first_preferred),
                s.length
                    .and_then(|l| Some(format!("{} of {}", percent(l.longer_wins?), l.decided)))
                    .unwrap_or("–".into()),
            ]
        })
        .collect();
    page.table(&head, &rows);
    page.note(
        "Unread: prompts for which a verdict could not be read; they are in no rate. Adjusted: a tie is half a win. First \
         preferred: of verdicts that prefer one answer, those for the one shown first. Longer wins: of prompts with a \
         winner, those where it is the longer answer.",
    );
    if let Some(ratings) = ratings {
        page.heading("Ratings");
        let row = |r: &Rating| vec![r.system.clone(), format!("{:.0}", r.rating), numbers(r.interval, 0)];
        page.table(&["", "Bradley–Terry", "95 %"], &ratings.iter().map(row).collect::<Vec<_>>());
        page.note("On Elo's scale with a mean of 0: 400 points are odds of ten to one.");
    }
    reading(&mut page, verdicts, systems);
    page.finish()
}

fn tiles(summary: &Summary) -> Vec<(String, String)> {
    let mut tiles = Vec::new();
    if let Some(rates) = summary.rates {
        tiles.push((percent(rates.win_or_tie), format!("{} is equal or better", summary.a)));
        tiles.push((percent(rates.adjusted), "adjusted win rate".into()));
    }
    tiles.push((percents(summary.adjusted_interval), "95 % of it, over prompts".into()));
    if let Some((same, of)) = summary.consistent {
        tiles.push((percent(same as f64 / of as f64), "of verdicts are the same in both orders".into()));
    }
    tiles.push((format!("{} of {}", summary.unread.0, summary.unread.1), "verdicts could not be read".into()));
    if let Some(length) = summary.length {
        tiles.push((format!("{:.0} / {:.0}", length.first, length.second), "characters, mean of both".into()));
    }
    tiles
}

/// What an outcome is called, as a class and in words.
fn named(outcome: Option<Outcome>, a: &str, b: &str) -> (&'static str, String) {
    match outcome {
        Some(Outcome::Win) => ("Win", format!("{a} is better")),
        Some(Outcome::Tie) => ("Tie", "neither is better".into()),
        Some(Outcome::Lose) => ("Lose", format!("{b} is better")),
        None => ("none", "unread".into()),
    }
}

/// Both answers of every prompt side by side, with what the judge said.
fn reading(page: &mut Page, verdicts: &[Verdict], systems: &[System]) {
    let answers: BTreeMap<&str, BTreeMap<&str, &Answer>> =
        systems.iter().map(|s| (s.name.as_str(), s.by_id())).collect();
    page.heading("Side by side");
    let count = |outcome| verdicts.iter().filter(|v| v.outcome == outcome).count();
    page.filter(&[
        ("all", format!("All {}", verdicts.len())),
        ("Win", format!("Wins {}", count(Some(Outcome::Win)))),
        ("Tie", format!("Ties {}", count(Some(Outcome::Tie)))),
        ("Lose", format!("Losses {}", count(Some(Outcome::Lose)))),
        ("none", format!("Unread {}", count(None))),
    ]);
    if verdicts.len() > SHOWN {
        page.note(&format!("The first {SHOWN} of {}; all are in verdicts.jsonl.", verdicts.len()));
    }
    for (i, verdict) in verdicts.iter().take(SHOWN).enumerate() {
        let find = |name: &str| answers.get(name).and_then(|all| all.get(verdict.id.as_str())).copied();
        let (Some(one), Some(other)) = (find(&verdict.a), find(&verdict.b)) else { continue };
        let (class, tag) = named(verdict.outcome, &verdict.a, &verdict.b);
        let texts = [full(one), full(other)];
        let titled = [
            (format!("{} · {} characters", verdict.a, verdict.lengths[0]), texts[0].as_str()),
            (format!("{} · {} characters", verdict.b, verdict.lengths[1]), texts[1].as_str()),
        ];
        let said: Vec<String> =
            verdict.games.iter().map(|game| format!("With {} first: {}", game.first, game.text.trim())).collect();
        page.item(i, class, &tag, &one.turns.join("\n\n"), &titled, &said);
    }
}

/// All answers of a dialogue with what was asked between them.
pub(super) fn full(answer: &Answer) -> String {
    match answer.answers.as_slice() {
        [only] => only.clone(),
        all => answer.turns.iter().zip(all).map(|(t, a)| format!("▪ {t}\n\n{a}")).collect::<Vec<_>>().join("\n\n"),
    }
}

/// The report of `agreement`.
pub fn agreement(table: &[Agreement]) -> String {
    let lead = "Tie-discounted accuracy: 1 where two judges agree, ½ where exactly one of them sees a tie, else 0.";
    let mut page = Page::new("Agreement between judges", &[lead.to_owned()]);
    let row = |a: &Agreement| {
        vec![
            format!("{} and {}", a.one, a.other),
            a.shared.to_string(),
            a.accuracy.map_or("–".into(), percent),
            percents(a.interval),
            a.same.to_string(),
            a.opposed.to_string(),
        ]
    };
    let rows: Vec<_> = table.iter().map(row).collect();
    page.table(&["", "judged by both", "agreement", "95 %", "same", "opposed"], &rows);
    page.note("In the paper: two crowd workers 82 %, two authors 78 %, crowd and GPT-4 78 %, author and GPT-4 79 %.");
    page.finish()
}
