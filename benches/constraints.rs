//! Structured output: time to compile a constraint, to work out the mask of each token of a text that meets it, and the
//! masks of a step of 16 sequences, one after the other and over the workers of a pool.
//!
//! `cargo bench --bench constraints`. The vocabulary is that of `LIMA_TEST_MODEL`, a GGUF file, else of the default
//! model, fetched if need be.

use std::sync::Arc;
use std::time::{Duration, Instant};

use lima::engine::{Matcher, TokenId};
use lima::hub::{self, DEFAULT_MODEL};
use lima::model::weights::Checkpoint;
use lima::ops::cpu::pool::Pool;
use lima::text::{Constraints, PromptRenderer, Spec};
use serde_json::json;

fn cases() -> Vec<(&'static str, Spec, String)> {
    let person = json!({
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 40},
            "age": {"type": "integer", "minimum": 0, "maximum": 150},
            "email": {"type": "string", "format": "email"},
            "tags": {"type": "array", "items": {"enum": ["red", "green", "blue"]}, "maxItems": 5},
            "biography": {"type": "string"},
        },
        "required": ["name", "age", "email", "tags", "biography"],
        "additionalProperties": false,
    });
    let text = json!({
        "name": "Ann Miller", "age": 33, "email": "ann.miller@example.com", "tags": ["red", "blue"],
        "biography": "She was born by the sea, studied the tides for many years, and then began to paint them.",
    })
    .to_string();
    let table: Vec<String> = (0..200).map(|i| format!("choice number {i}")).collect();
    vec![
        ("object", Spec::JsonObject, text.clone()),
        ("schema", Spec::JsonSchema(person), text),
        ("regex", Spec::Regex(r"\d{4}-\d{2}-\d{2}( \d{2}:\d{2})?".into()), "2026-11-22 12:51".into()),
        ("choice of 200", Spec::Choice(table), "choice number 187".into()),
        ("lark", Spec::Grammar("start: n (\"+\" n)*\nn: /[0-9]+/".into()), "12+345+6789+1".into()),
    ]
}

fn main() {
    let source = std::env::var("LIMA_TEST_MODEL").unwrap_or_else(|_| DEFAULT_MODEL.into());
    let source = source.parse().expect("LIMA_TEST_MODEL names a model");
    let path = hub::resolve(&source, &|_| ()).expect("the model can be had");
    let checkpoint = Checkpoint::open(&path).expect("the model loads");
    let renderer = PromptRenderer::from_gguf(checkpoint.gguf_vocab().expect("it is a GGUF file")).expect("it is read");
    let tokenizer = renderer.tokenizer();
    let eos: Vec<TokenId> = tokenizer.eos_id().into_iter().collect();
    let constraints = Constraints::new(Arc::clone(tokenizer), tokenizer.vocab_size(), eos.clone());
    let started = Instant::now();
    constraints.compile(&Spec::Choice(vec!["warm".into()])).expect("it compiles");
    println!("{} tokens; trie and first constraint {:.0?}", tokenizer.vocab_size(), started.elapsed());
    println!("| | compile | again | mask, mean | median | largest | accept | tokens |");
    println!("|---|--:|--:|--:|--:|--:|--:|--:|");
    for (name, spec, text) in cases() {
        let started = Instant::now();
        constraints.compile(&spec).expect("it compiles");
        let compile = started.elapsed();
        let started = Instant::now();
        let mut matcher = constraints.compile(&spec).expect("it compiles");
        let again = started.elapsed();
        let tokens = tokenizer.encode_plain(&text, false).expect("it is encoded");
        let (mut masks, mut accepts, mut mask) = (Vec::new(), Duration::ZERO, Vec::new());
        for token in &tokens {
            let started = Instant::now();
            matcher.mask(&mut mask).expect("something is allowed");
            masks.push(started.elapsed());
            assert!(mask[*token as usize / 32] >> (token % 32) & 1 == 1, "{text} meets {name}");
            let started = Instant::now();
            matcher.accept(*token).expect("it is allowed");
            accepts += started.elapsed();
        }
        masks.sort();
        let (count, largest) = (masks.len() as u32, masks[masks.len() - 1]);
        let mean = masks.iter().sum::<Duration>() / count;
        println!(
            "| {name} | {compile:.1?} | {again:.1?} | {mean:.1?} | {:.1?} | {largest:.1?} | {:.1?} | {count} |",
            masks[masks.len() / 2],
            accepts / count
        );
    }
    let workers = std::thread::available_parallelism().map_or(1, |n| n.get());
    println!("\n| {TOGETHER} sequences | one thread | {workers} workers |");
    println!("|---|--:|--:|");
    for (name, spec, text) in cases().into_iter().take(2) {
        let tokens = tokenizer.encode_plain(&text, false).expect("it is encoded");
        let (alone, shared) = together(&constraints, &spec, &tokens, workers);
        println!("| {name} | {alone:.0?} | {shared:.0?} |");
    }
}

/// Sequences of a step, each at a place of its own in the text.
const TOGETHER: usize = 16;

/// All masks of a step, by one thread and by a pool of `workers`; the median of the steps.
fn together(constraints: &Arc<Constraints>, spec: &Spec, tokens: &[TokenId], workers: usize) -> (Duration, Duration) {
    let mut pool = Pool::new(workers);
    let mut sequences: Vec<(Box<dyn Matcher>, Vec<u32>)> = (0..TOGETHER)
        .map(|i| {
            let mut matcher = constraints.compile(spec).expect("it compiles");
            let before = &tokens[..i * (tokens.len() / 2) / TOGETHER];
            before.iter().for_each(|t| matcher.accept(*t).expect("it is allowed"));
            (matcher, Vec::new())
        })
        .collect();
    let (mut alone, mut shared) = (Vec::new(), Vec::new());
    for step in 0..tokens.len() / 2 {
        let mask =
            |(matcher, mask): &mut (Box<dyn Matcher>, Vec<u32>)| matcher.mask(mask).expect("something is allowed");
        // A copy has the automaton's caches too, so both begin alike.
        let mut copies: Vec<_> = sequences.iter().map(|(matcher, mask)| (matcher.fork(), mask.clone())).collect();
        let started = Instant::now();
        copies.iter_mut().for_each(mask);
        alone.push(started.elapsed());
        let started = Instant::now();
        pool.for_each(&mut sequences, |_, sequence| mask(sequence));
        shared.push(started.elapsed());
        assert!(copies.iter().zip(&sequences).all(|(a, b)| a.1 == b.1), "threads change nothing");
        for (i, (matcher, _)) in sequences.iter_mut().enumerate() {
            matcher.accept(tokens[i * (tokens.len() / 2) / TOGETHER + step]).expect("it is allowed");
        }
    }
    alone.sort();
    shared.sort();
    (alone[alone.len() / 2], shared[shared.len() / 2])
}
