//! Reports of scores: systems, epochs, ablations.

use std::collections::BTreeMap;

use super::pairs::full;
use super::{Bar, Page, Point, bars, line, numbers, percent, percents, points};
use crate::eval::answers::{Answer, System};
use crate::eval::judge::{Grade, Scale};
use crate::eval::score::{Score, Summary};
use crate::eval::select::Epoch;
use crate::eval::stats::Interval;

/// Answers of the reading view at most.
const SHOWN: usize = 1000;

/// Classes of grades, best first.
fn classes(scale: Scale) -> &'static [(&'static str, &'static str)] {
    match scale {
        Scale::Likert => &[],
        Scale::Absolute => &[("Excellent", "win"), ("Pass", "tie"), ("Fail", "lose")],
        Scale::Safety => &[("Safe", "win"), ("Unsafe", "lose")],
    }
}

fn titled(summary: &Summary) -> String {
    summary.category.as_ref().map_or_else(|| summary.system.clone(), |c| format!("{}: {c}", summary.system))
}

fn figure(summaries: &[Summary]) -> String {
    let Some(first) = summaries.first() else { return String::new() };
    let whole = || summaries.iter().filter(|s| s.category.is_none());
    if first.scale == Scale::Likert {
        let point = |s: &Summary| Some(Point { name: s.system.clone(), x: 0.0, y: s.mean?, interval: s.interval });
        return points("Mean score, 1 to 6", &whole().filter_map(point).collect::<Vec<_>>());
    }
    let bar = |s: &Summary| {
        let part = |(name, class): &(&'static str, &'static str)| {
            let share = s.shares.iter().find(|share| share.grade == *name)?;
            Some((share.part?, *class, *name))
        };
        let parts: Vec<_> = classes(first.scale).iter().filter_map(part).collect();
        let interval = s.shares.iter().find(|share| share.grade == classes(first.scale)[0].0)?.interval;
        (!parts.is_empty()).then(|| Bar { name: titled(s), parts, interval })
    };
    bars(first.scale.title(), &summaries.iter().filter_map(bar).collect::<Vec<_>>())
}

/// The report of `likert`, `absolute`, `safety` and `dialogue`.
pub fn scores(summaries: &[Summary], scores: &[Score], systems: &[System], about: &[String]) -> String {
    let scale = summaries.first().map_or(Scale::Likert, |summary| summary.scale);
    let mut page = Page::new(scale.title(), about);
    page.plots(&[figure(summaries)]);
    page.heading("Numbers");
    let mut head = vec!["", "prompts", "graded", "unread"];
    let likert = scale == Scale::Likert;
    if likert {
        head.extend(["mean", "95 % (prompts resampled)", "95 % (Student)"]);
    }
    let names: Vec<String> = scale.grades().into_iter().map(Grade::name).collect();
    for name in &names {
        head.push(name);
        if !likert {
            head.push("95 %");
        }
    }
    let dialogues = summaries.iter().any(|s| s.fail_within_three.is_some());
    if dialogues {
        head.push("fail within three turns");
    }
    head.push("characters");
    let row = |s: &Summary| {
        let mut row = vec![titled(s), s.prompts.to_string(), s.graded.to_string(), s.unread.to_string()];
        if likert {
            row.push(s.mean.map_or("–".into(), |m| format!("{m:.3}")));
            row.extend([numbers(s.interval, 3), numbers(s.t_interval, 3)]);
        }
        for share in &s.shares {
            match likert {
                true => row.push(share.count.to_string()),
                false => row.extend([share.part.map_or("–".into(), percent), percents(share.interval)]),
            }
        }
        if dialogues {
            row.push(s.fail_within_three.map_or("–".into(), |(n, of)| format!("{n} of {of}")));
        }
        row.push(s.length.map_or(String::new(), |l| format!("{l:.0}")));
        row
    };
    page.table(&head, &summaries.iter().map(row).collect::<Vec<_>>());
    page.note("Unread: verdicts that could not be read; they are in no mean and no part.");
    reading(&mut page, scores, systems);
    page.finish()
}

fn reading(page: &mut Page, scores: &[Score], systems: &[System]) {
    let mut judged: BTreeMap<(&str, &str, u32), Vec<&Score>> = BTreeMap::new();
    for score in scores {
        judged.entry((&score.system, &score.id, score.sample)).or_default().push(score);
    }
    page.heading("Answers");
    let all: Vec<(&System, &Answer)> = systems.iter().flat_map(|s| s.answers.iter().map(move |a| (s, a))).collect();
    if all.len() > SHOWN {
        page.note(&format!("The first {SHOWN} of {}; all are in verdicts.jsonl.", all.len()));
    }
    for (i, (system, answer)) in all.into_iter().take(SHOWN).enumerate() {
        let own = judged.remove(&(system.name.as_str(), answer.id.as_str(), answer.sample)).unwrap_or_default();
        let grade = |score: &&Score| score.grade.map_or("unread".to_owned(), Grade::name);
        let tag = own.iter().map(grade).collect::<Vec<_>>().join(", ");
        let class = match own.first().and_then(|score| score.grade) {
            Some(Grade::Excellent | Grade::Safe) => "Win",
            Some(Grade::Pass) => "Tie",
            Some(Grade::Fail | Grade::Unsafe) => "Lose",
            _ => "none",
        };
        let text = full(answer);
        let title = format!("{} · {} characters", system.name, answer.length());
        let said: Vec<String> = own.iter().map(|score| score.text.trim().to_owned()).collect();
        page.item(i, class, &tag, &answer.turns[0], &[(title, text.as_str())], &said);
    }
}

/// The report of `select`.
pub fn selection(epochs: &[Epoch], chosen: u32, about: &[String]) -> String {
    let mut page = Page::new("Which epoch answers best", about);
    let place = |epoch: u32, y: f64, interval: Option<Interval>| Point {
        name: epoch.to_string(),
        x: f64::from(epoch),
        y,
        interval,
    };
    let scores: Vec<Point> =
        epochs.iter().filter_map(|e| Some(place(e.epoch, e.summary.mean?, e.summary.interval))).collect();
    let perplexities: Vec<Point> = epochs.iter().filter_map(|e| Some(place(e.epoch, e.perplexity?, None))).collect();
    page.plots(&[
        line("Mean score of dev prompts", "epoch", &scores, false),
        line("Validation perplexity", "epoch", &perplexities, false),
    ]);
    let row = |e: &Epoch| {
        vec![
            format!("{}{}", e.epoch, if e.epoch == chosen { " (chosen)" } else { "" }),
            e.summary.mean.map_or("–".into(), |m| format!("{m:.3}")),
            numbers(e.summary.interval, 3),
            e.summary.graded.to_string(),
            e.summary.unread.to_string(),
            e.perplexity.map_or("–".into(), |p| format!("{p:.3}")),
        ]
    };
    page.table(
        &["epoch", "mean score", "95 %", "graded", "unread", "perplexity"],
        &epochs.iter().map(row).collect::<Vec<_>>(),
    );
    page.note("Perplexity is shown and decides nothing: in the paper it rises while answers get better.");
    page.finish()
}

/// The report of `ablate`: what was compared by name, as in figure 5, and by size, as in figure 6.
pub fn ablation(named: &[Summary], sized: &[(usize, Summary)], about: &[String]) -> String {
    let mut page = Page::new("What the data do", about);
    let interval = |s: &Summary| s.t_interval.or(s.interval);
    let by_name = |s: &Summary| Some(Point { name: s.system.clone(), x: 0.0, y: s.mean?, interval: interval(s) });
    let by_size = |(size, s): &(usize, Summary)| {
        Some(Point { name: size.to_string(), x: *size as f64, y: s.mean?, interval: interval(s) })
    };
    page.plots(&[
        points("Quality and diversity: mean score, 1 to 6", &named.iter().filter_map(by_name).collect::<Vec<_>>()),
        line(
            "Quantity: mean score, 1 to 6",
            "training examples",
            &sized.iter().filter_map(by_size).collect::<Vec<_>>(),
            true,
        ),
    ]);
    page.note(
        "Dots are means over prompts, bars their 95 % interval after Student, as in the paper's figures 5 and 6.",
    );
    let row = |s: &Summary| {
        vec![
            s.system.clone(),
            s.prompts.to_string(),
            s.graded.to_string(),
            s.unread.to_string(),
            s.mean.map_or("–".into(), |m| format!("{m:.3}")),
            numbers(s.t_interval, 3),
            numbers(s.interval, 3),
        ]
    };
    let rows: Vec<_> = named.iter().chain(sized.iter().map(|(_, s)| s)).map(row).collect();
    page.table(&["", "prompts", "graded", "unread", "mean", "95 % (Student)", "95 % (prompts resampled)"], &rows);
    page.finish()
}
