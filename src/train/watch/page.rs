//! `report.html`: a run as one page. No scripts, nothing from the network, light and dark.

use std::fmt::Write;
use std::time::Duration;

use serde_json::{Map, Value};

use super::chart::{Plot, Series};
use super::history::{History, Step};
use super::metrics::Line;
use crate::plot::{PAGE_STYLE, STYLE, escape};
use crate::units::{bytes, count, duration, number};

/// The recipe's values by name, nested ones with a dot between.
pub fn flatten(recipe: &Map<String, Value>) -> Vec<(String, String)> {
    let mut out = Vec::new();
    for (name, value) in recipe {
        match value {
            Value::Object(inner) => {
                out.extend(flatten(inner).into_iter().map(|(below, value)| (format!("{name}.{below}"), value)));
            }
            Value::String(text) => out.push((name.clone(), text.clone())),
            value => out.push((name.clone(), value.to_string())),
        }
    }
    out
}

/// The page of a run as it is.
pub fn page(history: &History) -> String {
    let base = match &history.begin {
        Some(Line::Begin { base, .. }) => base.as_str(),
        _ => "",
    };
    let mut out = format!(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" \
         content=\"width=device-width,initial-scale=1\"><meta name=\"color-scheme\" content=\"light dark\">\
         <title>Training {0}</title><style>{STYLE}{PAGE_STYLE}</style></head><body><main><h1>Training {0}</h1>",
        escape(base)
    );
    state(&mut out, history);
    tiles(&mut out, history);
    out.push_str("<div class=\"plots\">");
    for plot in plots(history) {
        let svg = plot.svg(560.0, 320.0);
        if !svg.is_empty() {
            let _ = write!(out, "<div class=\"plot\">{svg}</div>");
        }
    }
    out.push_str("</div>");
    samples(&mut out, history);
    if let Some(Line::Begin { recipe, .. }) = &history.begin {
        table(&mut out, "Recipe", &flatten(recipe));
    }
    let saved = |(epoch, path): (&u32, &String)| (format!("epoch {epoch}"), path.clone());
    table(&mut out, "Checkpoints", &history.checkpoints.iter().map(saved).collect::<Vec<_>>());
    out.push_str("</main></body></html>\n");
    out
}

/// Sentences about the run.
fn state(out: &mut String, history: &History) {
    let Some(Line::Begin {
        parameters,
        trained,
        steps,
        epochs,
        supervised_tokens_per_epoch,
        peak_flops,
        peak_source,
        ..
    }) = &history.begin
    else {
        return;
    };
    let (done, epoch) = history.steps.last().map_or((0, 0), |s| (s.report.step, s.report.epoch));
    let _ = write!(
        out,
        "<p>{} of {} parameters trained; {} supervised tokens an epoch. Step {done} of {steps}, epoch {epoch} of \
         {epochs}.</p>",
        count(*trained),
        count(*parameters),
        count(*supervised_tokens_per_epoch)
    );
    let _ = write!(
        out,
        "<p>MFU is model FLOPs utilisation, of {} TFLOP/s ({}); recomputed activations are not counted.</p>",
        number(peak_flops / 1e12),
        escape(peak_source)
    );
    if !history.resumed.is_empty() {
        let steps: Vec<String> = history.resumed.iter().map(u64::to_string).collect();
        let _ = write!(out, "<p>Resumed after step {}.</p>", steps.join(", "));
    }
    let _ = match &history.end {
        Some(reason) => write!(out, "<p>Ended: {}</p>", escape(reason)),
        None => write!(out, "<p>Running when this page was written.</p>"),
    };
}

/// Some numbers worth a large font.
fn tiles(out: &mut String, history: &History) {
    let mut tiles = Vec::new();
    let losses = history.epoch_losses();
    if let Some((epoch, loss)) = losses.last_key_value() {
        tiles.push((format!("{loss:.3}"), format!("training loss, mean of epoch {epoch}")));
    }
    if let Some((epoch, nll)) = history.validation.last_key_value() {
        tiles.push((number(nll.exp()), format!("validation perplexity, epoch {epoch}")));
    }
    let seconds: f64 = history.steps.iter().map(|s| s.report.seconds).sum();
    let tokens: u64 = history.steps.iter().map(|s| s.report.tokens).sum();
    if seconds > 0.0 {
        let mfu: f64 = history.steps.iter().map(|s| s.mfu * s.report.seconds).sum::<f64>() / seconds;
        tiles.push((number(tokens as f64 / seconds), "tokens a second, mean".into()));
        tiles.push((format!("{:.0} %", mfu * 100.0), "MFU, mean".into()));
        let time = Duration::try_from_secs_f64(seconds).unwrap_or_default();
        tiles.push((duration(time), "in steps".into()));
    }
    if let Some(peak) = history.steps.iter().filter_map(|s| s.report.memory.peak).max() {
        tiles.push((bytes(peak), "memory at most".into()));
    }
    out.push_str("<div class=\"tiles\">");
    for (value, text) in tiles {
        let _ = write!(out, "<div class=\"tile\"><b>{}</b><span>{}</span></div>", escape(&value), escape(&text));
    }
    out.push_str("</div>");
}

fn plots(history: &History) -> Vec<Plot> {
    let of = |value: fn(&Step) -> f64| -> Vec<(f64, f64)> {
        history.steps.iter().map(|s| (s.report.step as f64, value(s))).collect()
    };
    let each = |value| Series { name: "each step", colour: 0, pale: true, dots: false, points: of(value) };
    // An epoch's mean stands at its last step.
    let last = |epoch: u32| history.steps.iter().rev().find(|s| s.report.epoch == epoch).map(|s| s.report.step as f64);
    let means = history.epoch_losses().into_iter().filter_map(|(epoch, loss)| Some((last(epoch)?, loss))).collect();
    let means = Series { name: "mean of the epoch", colour: 1, pale: false, dots: true, points: means };
    let perplexity = history.validation.iter().map(|(epoch, nll)| (f64::from(*epoch), nll.exp())).collect();
    let by_epoch = Series { name: "validation", colour: 1, pale: false, dots: true, points: perplexity };
    let line = |value| vec![Series { pale: false, ..each(value) }];
    let plot = |title, x, series, from_zero| Plot { title, x, series, from_zero };
    vec![
        plot("Loss", "step", vec![each(|s| s.report.loss), means], false),
        plot("Validation perplexity", "epoch", vec![by_epoch], false),
        plot("Learning rate", "step", line(|s| s.report.lr), true),
        plot("Gradient norm", "step", line(|s| s.report.grad_norm), true),
        plot("Tokens a second", "step", line(|s| s.tokens_per_second), true),
        plot("MFU, %", "step", line(|s| s.mfu * 100.0), true),
    ]
}

/// Answers of each epoch side by side, prompt by prompt.
fn samples(out: &mut String, history: &History) {
    // The prompts of all epochs, in the order in which they first came.
    let mut prompts: Vec<&str> = Vec::new();
    for answer in history.samples.values().flatten() {
        if !prompts.contains(&answer.prompt.as_str()) {
            prompts.push(&answer.prompt);
        }
    }
    if !prompts.is_empty() {
        out.push_str("<h2>Sample answers</h2>");
    }
    for prompt in prompts {
        let _ = write!(out, "<h3>{}</h3><div class=\"answers\">", escape(prompt));
        for (epoch, answers) in &history.samples {
            for answer in answers.iter().filter(|a| a.prompt == prompt) {
                let name = if *epoch == 0 { "before".to_owned() } else { format!("epoch {epoch}") };
                let how = if answer.ended { "" } else { ", cut off" };
                let _ = write!(
                    out,
                    "<div class=\"answer\"><b>{name} <span>{} tokens{how}</span></b><div>{}</div></div>",
                    answer.tokens,
                    escape(&answer.text)
                );
            }
        }
        out.push_str("</div>");
    }
}

fn table(out: &mut String, title: &str, rows: &[(String, String)]) {
    if rows.is_empty() {
        return;
    }
    let _ = write!(out, "<h2>{title}</h2><table>");
    for (name, value) in rows {
        let _ = write!(out, "<tr><th>{}</th><td>{}</td></tr>", escape(name), escape(value));
    }
    out.push_str("</table>");
}
