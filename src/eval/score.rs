//! How good each answer is by itself: from 1 to 6, in three grades, or safe or not; whole or turn by turn.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::EvalError;
use super::answers::{Answer, System};
use super::ask::{Asker, each};
use super::judge::{Grade, Scale};
use super::stats::{Interval, bootstrap, mean, mean_interval};

/// What a judge said about an answer, or about a turn of one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Score {
    /// Whose answer it is.
    pub system: String,
    /// The prompt's.
    pub id: String,
    /// Its group.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub category: Option<String>,
    /// Which answer to that prompt.
    pub sample: u32,
    /// Which turn, from 0.
    pub turn: usize,
    /// What was asked.
    pub scale: Scale,
    /// What was read; `None` if nothing could be.
    pub grade: Option<Grade>,
    /// Who judged.
    pub judge: String,
    /// What the judge said, or the server instead.
    pub text: String,
    /// Of the call, where parameters, prompt and the rest are kept.
    pub key: String,
}

/// How answers are scored.
#[derive(Clone, Debug)]
pub struct Scoring {
    /// The question.
    pub scale: Scale,
    /// Every turn by itself, or the last one with what was said before.
    pub every_turn: bool,
    /// How often the judge is asked about each.
    pub judgments: u32,
    /// Of the judge.
    pub params: Map<String, Value>,
    /// Calls side by side.
    pub at_once: usize,
}

/// Has all answers scored.
///
/// # Errors
/// Some calls found no answer, or the judge refused all of them.
pub fn score(asker: &Asker<'_>, systems: &[System], how: &Scoring) -> Result<Vec<Score>, EvalError> {
    let mut jobs: Vec<(&System, &Answer, usize, u32)> = Vec::new();
    for system in systems {
        for answer in &system.answers {
            let last = answer.turns.len() - 1;
            let turns = if how.every_turn { 0..=last } else { last..=last };
            jobs.extend(turns.flat_map(|turn| (0..how.judgments).map(move |n| (system, answer, turn, n))));
        }
    }
    let calls = each("verdicts", how.at_once, &jobs, |(_, answer, turn, judgment)| {
        let messages = how.scale.messages(&answer.up_to(*turn), &answer.answers[*turn]);
        let mut params = how.params.clone();
        if how.judgments > 1 {
            params.insert("seed".into(), json!(judgment));
        }
        asker.ask(messages, &params, *judgment)
    })?;
    if let Some(words) = calls.iter().all(|call| call.text.is_none()).then(|| calls[0].refused.clone()).flatten() {
        return Err(EvalError::Usage(format!("the judge refused every question: {words}")));
    }
    let scores = jobs.iter().zip(calls).map(|((system, answer, turn, _), call)| Score {
        system: system.name.clone(),
        id: answer.id.clone(),
        category: answer.category.clone(),
        sample: answer.sample,
        turn: *turn,
        scale: how.scale,
        grade: call.text.as_deref().and_then(|text| how.scale.parse(text)),
        judge: asker.model.clone(),
        text: call.text.or(call.refused).unwrap_or_default(),
        key: call.key,
    });
    Ok(scores.collect())
}

/// A part with its interval.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Share {
    /// The grade.
    pub grade: String,
    /// How often it was given.
    pub count: usize,
    /// Of those that were graded.
    pub part: Option<f64>,
    /// 95 %, over prompts.
    pub interval: Option<Interval>,
}

/// Numbers of a system.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    /// The system.
    pub system: String,
    /// A group of prompts, if this is about one.
    pub category: Option<String>,
    /// Who judged.
    pub judge: String,
    /// What was asked.
    pub scale: Scale,
    /// Prompts.
    pub prompts: usize,
    /// Verdicts that were read.
    pub graded: usize,
    /// Those that could not be. They are in no mean, and beside all of them.
    pub unread: usize,
    /// Mean of the prompts' means, of scores.
    pub mean: Option<f64>,
    /// 95 %, by resampling prompts.
    pub interval: Option<Interval>,
    /// 95 %, after Student over the prompts' means, as the paper has it.
    pub t_interval: Option<Interval>,
    /// How often each grade was given.
    pub shares: Vec<Share>,
    /// Of dialogues, those in which one of the first three turns fails.
    pub fail_within_three: Option<(usize, usize)>,
    /// Mean characters of a judge's subject, for what length explains.
    pub length: Option<f64>,
}

/// Numbers of each system, and of each group of prompts if there are several.
pub fn summarise(scores: &[Score], systems: &[System], rounds: usize, seed: u64) -> Vec<Summary> {
    let mut out = Vec::new();
    for system in systems {
        let own: Vec<&Score> = scores.iter().filter(|score| score.system == system.name).collect();
        let mut summary = one(&own, None, rounds, seed);
        let lengths: Vec<f64> = system.answers.iter().map(|answer| answer.length() as f64).collect();
        if let Some(summary) = &mut summary {
            summary.length = mean(&lengths);
        }
        out.extend(summary);
        let mut categories: Vec<&str> = own.iter().filter_map(|score| score.category.as_deref()).collect();
        categories.sort_unstable();
        categories.dedup();
        for category in categories.iter().filter(|_| categories.len() > 1) {
            let part: Vec<&Score> = own.iter().copied().filter(|s| s.category.as_deref() == Some(category)).collect();
            out.extend(one(&part, Some((*category).to_owned()), rounds, seed));
        }
    }
    out
}

fn one(scores: &[&Score], category: Option<String>, rounds: usize, seed: u64) -> Option<Summary> {
    let first = scores.first()?;
    let mut prompts: BTreeMap<&str, Vec<&Score>> = BTreeMap::new();
    for score in scores {
        prompts.entry(&score.id).or_default().push(score);
    }
    let prompts: Vec<Vec<&Score>> = prompts.into_values().collect();
    let grades: Vec<Grade> = scores.iter().filter_map(|score| score.grade).collect();
    let number = |score: &&Score| match score.grade {
        Some(Grade::Score(n)) => Some(f64::from(n)),
        _ => None,
    };
    let means: Vec<Option<f64>> =
        prompts.iter().map(|scores| mean(&scores.iter().filter_map(number).collect::<Vec<_>>())).collect();
    let known: Vec<f64> = means.iter().copied().flatten().collect();
    let of_means = |at: &[usize]| mean(&at.iter().filter_map(|i| means[*i]).collect::<Vec<_>>());
    let share = |grade: Grade| {
        let counts: Vec<(usize, usize)> = prompts
            .iter()
            .map(|scores| {
                let of = |is: &dyn Fn(Grade) -> bool| scores.iter().filter(|s| s.grade.is_some_and(is)).count();
                (of(&|g| g == grade), of(&|_| true))
            })
            .collect();
        let part = |at: &mut dyn Iterator<Item = usize>| {
            let (hits, all) = at.fold((0, 0), |(h, a), i| (h + counts[i].0, a + counts[i].1));
            (all > 0).then(|| hits as f64 / all as f64)
        };
        Share {
            grade: grade.name(),
            count: grades.iter().filter(|g| **g == grade).count(),
            part: part(&mut (0..counts.len())),
            interval: bootstrap(counts.len(), rounds, seed, |at| part(&mut at.iter().copied())),
        }
    };
    let dialogues = prompts.iter().filter(|scores| scores.iter().any(|score| score.turn > 0));
    let fails = |scores: &&Vec<&Score>| scores.iter().any(|s| s.turn < 3 && s.grade == Some(Grade::Fail));
    let (failed, had) = dialogues.fold((0, 0), |(f, n), scores| (f + usize::from(fails(&scores)), n + 1));
    Some(Summary {
        system: first.system.clone(),
        category,
        judge: first.judge.clone(),
        scale: first.scale,
        prompts: prompts.len(),
        graded: grades.len(),
        unread: scores.len() - grades.len(),
        mean: mean(&known),
        interval: if known.is_empty() { None } else { bootstrap(means.len(), rounds, seed, of_means) },
        t_interval: mean_interval(&known),
        shares: first.scale.grades().into_iter().map(share).collect(),
        fail_within_three: (had > 0 && first.scale == Scale::Absolute).then_some((failed, had)),
        length: None,
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn score(id: &str, turn: usize, scale: Scale, grade: Option<Grade>) -> Score {
        Score {
            system: "s".into(),
            id: id.into(),
            category: None,
            sample: 0,
            turn,
            scale,
            grade,
            judge: "j".into(),
            text: String::new(),
            key: String::new(),
        }
    }

    /// Prompt 1 has the scores 2 and 4, prompt 2 has 5 and one unread, prompt 3 none that was read: mean (3 + 5)/2.
    #[test]
    fn means_of_means() {
        let grade = |n| Some(Grade::Score(n));
        let rows = [("1", grade(2)), ("1", grade(4)), ("2", grade(5)), ("2", None), ("3", None)];
        let scores: Vec<Score> = rows.iter().map(|(id, grade)| score(id, 0, Scale::Likert, *grade)).collect();
        let summary = one(&scores.iter().collect::<Vec<_>>(), None, 100, 1).unwrap();
        assert_eq!((summary.mean, summary.graded, summary.unread, summary.prompts), (Some(4.0), 3, 2, 3));
        assert_eq!(summary.shares.iter().map(|s| s.count).collect::<Vec<_>>(), [0, 1, 0, 1, 1, 0]);
        assert_eq!(summary.shares[1].part, Some(1.0 / 3.0));
        assert_eq!(summary.fail_within_three, None);
    }

    /// The zero-shot chats of the paper: 19, 8 and 15 of 42 turns. It prints 45.2, 19.1 and 35.7 %, which add up to 100.
    #[test]
    fn turns_of_dialogues() {
        let grades = [(Grade::Excellent, 19), (Grade::Pass, 8), (Grade::Fail, 15)];
        let all: Vec<Grade> = grades.into_iter().flat_map(|(grade, n)| std::iter::repeat_n(grade, n)).collect();
        let scores: Vec<Score> = all
            .iter()
            .enumerate()
            .map(|(i, grade)| score(&(i % 10).to_string(), i / 10, Scale::Absolute, Some(*grade)))
            .collect();
        let summary = one(&scores.iter().collect::<Vec<_>>(), None, 100, 1).unwrap();
        let percent: Vec<String> = summary.shares.iter().map(|s| format!("{:.1}", s.part.unwrap() * 100.0)).collect();
        assert_eq!(percent, ["45.2", "19.0", "35.7"]);
        // Dialogues 7, 8 and 9 fail in their third turn (27, 28, 29); the others later.
        assert_eq!(summary.fail_within_three, Some((3, 10)));
    }
}
