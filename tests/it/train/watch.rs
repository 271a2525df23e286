//! What is written about a run: metrics, TensorBoard's events, the report.

use std::fs;
use std::path::Path;

use lima::train::events::{Answer, Begin, Event, Memory, StepReport};
use lima::train::plan::shapes;
use lima::train::watch::flops::{ModelFlops, Peak};
use lima::train::watch::history::History;
use lima::train::watch::metrics::Metrics;
use lima::train::watch::{Options, Watchers, page, tfevents};
use serde_json::{Map, Value, json};

use crate::support::goldens;

/// Reads protocol buffers: field numbers and what they hold.
#[derive(Debug, PartialEq)]
enum Field<'a> {
    Number(u64),
    Fixed(&'a [u8]),
    Bytes(&'a [u8]),
}

impl<'a> Field<'a> {
    fn bytes(&self) -> &'a [u8] {
        match self {
            Self::Number(_) => panic!("a number"),
            Self::Fixed(bytes) | Self::Bytes(bytes) => bytes,
        }
    }
}

fn varint(bytes: &mut &[u8]) -> u64 {
    let mut value = 0;
    for shift in (0..).step_by(7) {
        let (byte, rest) = bytes.split_first().unwrap();
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            break;
        }
    }
    value
}

fn fields(mut bytes: &[u8]) -> Vec<(u64, Field<'_>)> {
    let mut out = Vec::new();
    while !bytes.is_empty() {
        let key = varint(&mut bytes);
        let mut take = |n: usize| {
            let (taken, rest) = bytes.split_at(n);
            bytes = rest;
            taken
        };
        let field = match key & 7 {
            1 => Field::Fixed(take(8)),
            5 => Field::Fixed(take(4)),
            0 => Field::Number(varint(&mut bytes)),
            2 => {
                let len = varint(&mut bytes) as usize;
                let (taken, rest) = bytes.split_at(len);
                bytes = rest;
                Field::Bytes(taken)
            }
            other => panic!("wire type {other}"),
        };
        out.push((key >> 3, field));
    }
    out
}

fn only<'a>(bytes: &'a [u8], number: u64) -> Option<Field<'a>> {
    fields(bytes).into_iter().find(|(n, _)| *n == number).map(|(_, field)| field)
}

/// The events of a file, its check sums verified.
fn events(file: &[u8]) -> Vec<&[u8]> {
    let (mut rest, mut out) = (file, Vec::new());
    while !rest.is_empty() {
        let word = |at: usize| u32::from_le_bytes(rest[at..at + 4].try_into().unwrap());
        let len = u64::from_le_bytes(rest[..8].try_into().unwrap()) as usize;
        assert_eq!(word(8), tfevents::masked_crc32c(&rest[..8]), "of the length");
        let data = &rest[12..12 + len];
        assert_eq!(word(12 + len), tfevents::masked_crc32c(data), "of the data");
        out.push(data);
        rest = &rest[16 + len..];
    }
    out
}

fn step_of(event: &[u8]) -> u64 {
    only(event, 2).map_or(0, |f| match f {
        Field::Number(n) => n,
        _ => panic!("the step is a number"),
    })
}

/// Tags and scalars of an event.
fn scalars(event: &[u8]) -> Vec<(String, f32)> {
    let Some(summary) = only(event, 5) else { return Vec::new() };
    let values = fields(summary.bytes()).into_iter().filter_map(|(_, value)| {
        let tag = String::from_utf8(only(value.bytes(), 1)?.bytes().to_vec()).unwrap();
        Some((tag, f32::from_le_bytes(only(value.bytes(), 2)?.bytes().try_into().unwrap())))
    });
    values.collect()
}

#[test]
fn check_sums_are_castagnoli_s() {
    // RFC 3720, B.4, masked: 32 bytes of zeros, of ones, and ascending.
    let unmask = |masked: u32| masked.wrapping_sub(0xa282_ead8).rotate_left(15);
    let ascending: Vec<u8> = (0..32).collect();
    assert_eq!(unmask(tfevents::masked_crc32c(&[0; 32])), 0x8a91_36aa);
    assert_eq!(unmask(tfevents::masked_crc32c(&[0xff; 32])), 0x62a8_ab43);
    assert_eq!(unmask(tfevents::masked_crc32c(&ascending)), 0x46dd_794e);
}

#[test]
fn event_files_are_tensorboard_s_byte_by_byte() {
    let golden = fs::read(goldens::path("tfevents.bin")).unwrap();
    let written = [
        tfevents::version(1_700_000_000.25),
        tfevents::start(1_700_000_000.25, 301),
        tfevents::scalars(
            1_700_000_001.5,
            301,
            &[("train/loss", 2.5), ("train/learning_rate", 1e-5), ("speed/mfu", 0.0)],
        ),
        tfevents::text(1_700_000_002.0, 0, "samples/01", "**Epoch 1.** Why?\n\n---\n\nBecause: é, 語."),
    ];
    let bytes: Vec<u8> = written.iter().flat_map(|event| tfevents::record(event)).collect();
    assert!(bytes == golden, "{:02x?}\n{:02x?}", events(&bytes), events(&golden));
}

fn report(step: u64) -> StepReport {
    StepReport {
        step,
        epoch: 1 + ((step - 1) / 2) as u32,
        loss: 3.0 / step as f64,
        lr: 1e-5,
        grad_norm: 0.5,
        tokens: 1000,
        supervised: 900,
        pairs: 500_000,
        seconds: 2.0,
        memory: Memory { resident: Some(1 << 30), peak: None },
    }
}

fn watch(out: &Path) -> Watchers {
    Watchers::new(&Options { out: out.into(), threads: 1, peak_flops: Some(1e12), progress: false })
}

const NASTY: &str = "<script>alert(\"1\")</script> & 'x' \u{1}";

/// Runs steps `from + 1 ..= to` of six in three epochs, as a trainer would.
fn run(watchers: &mut Watchers, from: u64, to: u64) {
    let config = shapes::shape("135m").unwrap();
    let recipe = json!({ "epochs": 3, "optimizer": { "beta1": 0.9 }, "template": NASTY, "clip": null });
    let Value::Object(recipe) = recipe else { panic!("an object") };
    let begin = Begin {
        base: NASTY,
        recipe: &recipe,
        config: &config,
        parameters: 134_515_008,
        trained: 134_515_008,
        steps: 6,
        epochs: 3,
        supervised_tokens_per_epoch: 1800,
        resumed_at: from,
    };
    watchers.tell(&Event::Begin(begin)).unwrap();
    for step in from + 1..=to {
        let report = report(step);
        watchers.tell(&Event::Step(&report)).unwrap();
        if step % 2 == 0 {
            let epoch = report.epoch;
            let answer =
                |prompt: &str| Answer { prompt: prompt.into(), text: NASTY.into(), tokens: 7, ended: epoch > 1 };
            watchers.tell(&Event::Checkpoint { epoch, step, path: Path::new("out/epoch-01") }).unwrap();
            watchers.tell(&Event::Validation { epoch, step, nll: 2.0 + f64::from(epoch) / 10.0 }).unwrap();
            let answers = [answer("first"), answer(NASTY)];
            watchers.tell(&Event::Samples { epoch, step, answers: &answers }).unwrap();
        }
    }
    watchers.tell(&Event::End { step: to, reason: "done" }).unwrap();
}

fn metrics(out: &Path) -> Vec<Map<String, Value>> {
    let text = fs::read_to_string(out.join("metrics.jsonl")).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Event files in the order of their names.
fn event_files(out: &Path) -> Vec<Vec<u8>> {
    let mut paths: Vec<_> = fs::read_dir(out).unwrap().map(|e| e.unwrap().path()).collect();
    paths.retain(|p| p.file_name().unwrap().to_str().unwrap().starts_with("events.out.tfevents."));
    paths.sort();
    paths.iter().map(|p| fs::read(p).unwrap()).collect()
}

#[test]
fn a_run_is_recorded() {
    let dir = tempfile::tempdir().unwrap();
    run(&mut watch(dir.path()), 0, 4);
    let lines = metrics(dir.path());
    let names: Vec<&str> = lines.iter().map(|l| l["event"].as_str().unwrap()).collect();
    let epoch = ["step", "step", "checkpoint", "validation", "samples"];
    assert_eq!(names, [&["begin"][..], &epoch, &epoch, &["end"]].concat());
    let step = &lines[2];
    assert_eq!(step["step"], 2);
    assert_eq!(step["loss"], 1.5);
    assert_eq!(step["tokens_per_second"], 500.0);
    assert_eq!(step["resident"], 1u64 << 30);
    assert!(!step.contains_key("peak"), "what is unknown is left out");
    // 6 operations a parameter and token, attention, and the head for what is learnt.
    let matrices = shapes::matrices(&shapes::shape("135m").unwrap()) as f64;
    let head = 49_152.0 * 576.0;
    let flops = 6.0 * matrices * 1000.0 + 6.0 * head * 900.0 + 12.0 * 576.0 * 30.0 * 500_000.0;
    assert_eq!(step["flops"], flops);
    assert_eq!(step["mfu"], flops / 2.0 / 1e12);
    assert_eq!(lines[4]["perplexity"], 2.1f64.exp());

    let files = event_files(dir.path());
    let [file] = files.as_slice() else { panic!("one process, one file") };
    let events = events(file);
    assert_eq!(only(events[0], 3).unwrap().bytes(), b"brain.Event:2");
    assert_eq!(step_of(events[1]), 0);
    let seen: Vec<_> = events.iter().map(|e| (step_of(e), scalars(e))).filter(|(_, s)| !s.is_empty()).collect();
    let of = |tag: &str| -> Vec<(u64, f32)> {
        let found = seen.iter().filter_map(|(step, s)| Some((*step, s.iter().find(|(t, _)| t == tag)?.1)));
        found.collect()
    };
    assert_eq!(of("train/loss"), [(1, 3.0), (2, 1.5), (3, 1.0), (4, 0.75)]);
    assert_eq!(of("validation/perplexity"), [(2, 2.1f64.exp() as f32), (4, 2.2f64.exp() as f32)]);
    assert_eq!(of("memory/resident_bytes").len(), 4);
}

#[test]
fn the_report_is_whole_and_escaped() {
    let dir = tempfile::tempdir().unwrap();
    run(&mut watch(dir.path()), 0, 6);
    let html = fs::read_to_string(dir.path().join("report.html")).unwrap();
    assert!(!html.contains("<script") && !html.contains('\u{1}') && !html.contains("\"1\""), "{html}");
    assert!(html.contains("&lt;script&gt;alert(&quot;1&quot;)&lt;/script&gt; &amp; &#39;x&#39;"));
    // Six plots; the loss has a line more.
    assert_eq!((html.matches("<svg").count(), html.matches("<polyline").count()), (6, 7));
    assert_eq!(html.matches("<div class=\"answer\">").count(), 2 * 3);
    for text in ["Step 6 of 6, epoch 3 of 3", "Ended: done", "optimizer.beta1", "epoch 3", ", cut off", "Recipe"] {
        assert!(html.contains(text), "{text}");
    }
    for outside in ["http://", "https://", "src=", "@import", "url("] {
        assert!(!html.replace("http://www.w3.org/2000/svg", "").contains(outside), "{outside}");
    }
    // Tags that open are closed.
    for tag in ["svg", "div", "p", "table", "main", "h1", "h2", "h3", "b", "span", "text", "circle", "style"] {
        let opened = html.matches(&format!("<{tag}>")).count() + html.matches(&format!("<{tag} ")).count();
        assert_eq!(
            opened,
            html.matches(&format!("</{tag}>")).count() + html.matches(&format!("<{tag}/>")).count(),
            "{tag}"
        );
    }
    assert!(page(&History::default()).ends_with("</html>\n"), "a run that has not begun");
}

#[test]
fn resuming_cuts_back_and_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path();
    run(&mut watch(out), 0, 5);
    let before = metrics(out);
    // A crash in the middle of a line, and of a replacement.
    let path = out.join("metrics.jsonl");
    let mut text = fs::read_to_string(&path).unwrap();
    text.push_str("{\"event\": \"step\", \"st");
    fs::write(&path, text).unwrap();
    fs::write(out.join("metrics.jsonl.tmp"), "half").unwrap();
    run(&mut watch(out), 2, 6);
    let after = metrics(out);
    let steps: Vec<u64> = after.iter().filter(|l| l["event"] == "step").map(|l| l["step"].as_u64().unwrap()).collect();
    assert_eq!(steps, [1, 2, 3, 4, 5, 6]);
    assert_eq!(after[..6], before[..6], "what happened up to step 2 stays, byte by byte");
    assert_eq!((&after[6]["event"], &after[6]["step"]), (&json!("begin"), &json!(2)));
    assert!(!out.join("metrics.jsonl.tmp").exists());

    // TensorBoard is told to forget what comes after step 2.
    let files = event_files(out);
    assert_eq!(files.len(), 2);
    let start = events(&files[1])[1];
    assert_eq!((step_of(start), only(start, 7).unwrap().bytes()), (3, &[8, 1][..]));

    let html = fs::read_to_string(out.join("report.html")).unwrap();
    assert!(html.contains("Resumed after step 2.") && html.contains("Step 6 of 6"));

    // A run that begins anew has nothing to do with what was there.
    run(&mut watch(out), 0, 2);
    assert_eq!(metrics(out)[..6].iter().map(|l| l["event"].clone()).collect::<Vec<_>>(), {
        ["begin", "step", "step", "checkpoint", "validation", "samples"].map(Value::from)
    });
}

#[test]
fn what_cannot_be_written_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("metrics.jsonl");
    let line = "{\"event\":\"end\",\"time\":0.0,\"step\":1,\"reason\":\"x\"}\n";
    let foreign = format!("{line}{{\"event\":\"other\"}}\n{line}");
    fs::write(&path, &foreign).unwrap();
    let error = Metrics::open(dir.path(), 5).unwrap_err().to_string();
    assert!(error.starts_with(&format!("{}:2: not a line of a run's metrics: ", path.display())), "{error}");
    assert_eq!(fs::read_to_string(&path).unwrap(), foreign, "it is left as it is");

    let nowhere = dir.path().join("missing");
    let error = Metrics::open(&nowhere, 0).unwrap_err().to_string();
    assert!(error.starts_with(&nowhere.join("metrics.jsonl").display().to_string()), "{error}");

    let error = watch(dir.path()).tell(&Event::End { step: 0, reason: "x" }).unwrap_err().to_string();
    assert_eq!(error, "a run begins with Event::Begin");
}

#[test]
fn a_loss_that_is_no_number_is_recorded_and_read() {
    let dir = tempfile::tempdir().unwrap();
    let mut watchers = watch(dir.path());
    run(&mut watchers, 0, 1);
    let broken = StepReport { loss: f64::NAN, grad_norm: f64::INFINITY, ..report(2) };
    watchers.tell(&Event::Step(&broken)).unwrap();
    watchers.tell(&Event::Validation { epoch: 1, step: 2, nll: f64::NAN }).unwrap();
    assert_eq!(metrics(dir.path())[3]["loss"], Value::Null);
    let (_, lines) = Metrics::open(dir.path(), 2).unwrap();
    let history: History = lines.into_iter().collect();
    assert!(history.steps[1].report.loss.is_nan() && history.validation[&1].is_nan());
    assert!(page(&history).contains("<svg"), "the rest is drawn");
}

#[test]
fn utilisation_counts_what_is_trained() {
    let config = shapes::shape("135m").unwrap();
    let all = ModelFlops::new(&config, shapes::parameters(&config));
    let lora = ModelFlops::new(&config, shapes::adapters(&config, 16));
    // The gradients of frozen weights are not computed.
    assert!(lora.token < 0.7 * all.token && lora.token > 4.0 / 6.0 * all.token * 0.999);
    assert_eq!(lora.pair, all.pair);
    let peak = Peak::measure(1);
    assert!(peak.flops > 1e6 && peak.source.contains("1 threads"), "{peak:?}");
}
