//! A request's tokens and log-probabilities depend on the request alone, to the bit: not on its
//! neighbours, nor on how its prompt was cut, cached, or computed again, nor on threads.

use std::collections::BTreeMap;

use lima::engine::{Request, SamplingParams, Speculation, TokenId};
use lima::model::weights::Checkpoint;
use lima::ops::cpu::kv::KvType;
use lima::ops::cpu::level::Level;
use lima::ops::quant::DType;

use crate::support::engine::{Output, Running, Setting};
use crate::support::goldens;

const FORMATS: [DType; 5] = [DType::F32, DType::BF16, DType::Q8_0, DType::Q4_0, DType::Q4_1];

/// The first few are also asked alone.
const SUBJECTS: usize = 3;
/// Enough that nothing is ever preempted.
const AMPLE: usize = 64 * 5;

fn params(i: usize, max_tokens: u32) -> SamplingParams {
    let sampled = SamplingParams {
        temperature: 0.7,
        top_p: 0.9,
        repetition_penalty: 1.2,
        seed: 1000 + i as u64,
        max_tokens,
        logprobs: Some(2),
        ..SamplingParams::default()
    };
    match i % 8 {
        // Neighbours of other kinds: greedy, and with counts of their own.
        5 => SamplingParams { temperature: 0.0, logprobs: Some(0), ..sampled },
        6 => SamplingParams { frequency_penalty: 0.4, top_k: 20, min_p: 0.05, ..sampled },
        _ => sampled,
    }
}

/// Prompts of 40 to 100 tokens, none the prefix of another; the first ones end in, at and after a block.
fn requests(count: usize, vocab: usize, max_tokens: impl Fn(usize) -> u32) -> Vec<Request> {
    let len = |i: usize| [45, 64, 97].get(i).copied().unwrap_or(40 + i * 23 % 61);
    let token = |i: usize, k: usize| ((i * 7919 + k * k * 31 + k * 7 + 3) % vocab) as TokenId;
    (0..count)
        .map(|i| Request::generate((0..len(i)).map(|k| token(i, k)).collect::<Vec<_>>(), params(i, max_tokens(i))))
        .collect()
}

/// What each request answered the first time it was asked; it must be the same ever after.
#[derive(Default)]
struct Answers(BTreeMap<usize, Output>);

impl Answers {
    fn check(&mut self, i: usize, output: Output, how: &str) {
        match self.0.get(&i) {
            Some(first) => assert!(*first == output, "request {i} differs {how}:\n{first:?}\n{output:?}"),
            None => _ = self.0.insert(i, output),
        }
    }
}

/// The next turn of a conversation: prompt, answer, and something new.
fn second_turn(first: &Request, answer: &Output) -> Request {
    let prompt = [&first.prompt[..], &answer.tokens, &[7, 3, 9, 1]].concat();
    Request { prompt: prompt.into(), ..first.clone() }
}

fn base(dtype: DType, kv: Option<KvType>, level: Level) -> Setting {
    Setting {
        dtype,
        kv,
        level,
        threads: 1,
        max_num_batched_tokens: 512,
        num_blocks: AMPLE,
        prefix_caching: false,
        speculation: Speculation::OFF,
    }
}

/// Runs one format at one level through every circumstance.
fn matrix(checkpoint: &Checkpoint, base: Setting, requests: &[Request]) {
    let Setting { dtype, kv, level, .. } = base;
    let mut answers = Answers::default();

    // Alone, the prompt whole; then each conversation's next turn.
    let alone = Running::start(checkpoint, base);
    let mut turns = Vec::new();
    for (i, r) in requests[..SUBJECTS].iter().enumerate() {
        let (output, cached) = alone.ask(std::slice::from_ref(r)).remove(0);
        assert_eq!((output.tokens.len(), cached), (r.params.max_tokens as usize, 0));
        let turn = second_turn(r, &output);
        let next = alone.ask(std::slice::from_ref(&turn)).remove(0).0;
        answers.check(i, output, "");
        turns.push((turn, next));
    }
    drop(alone);

    let crowds = [
        ("alone by 16", 1, Setting { max_num_batched_tokens: 16, threads: 2, ..base }),
        ("among 8", 9, Setting { threads: 2, ..base }),
        ("among 8 by 48", 9, Setting { max_num_batched_tokens: 48, prefix_caching: true, ..base }),
        ("among 63", 64, Setting { prefix_caching: true, ..base }),
        ("among 63 by 48", 64, Setting { max_num_batched_tokens: 48, threads: 2, ..base }),
    ];
    for (name, count, setting) in crowds {
        let how = format!("{name}, {dtype:?} {kv:?} {level} {} threads", setting.threads);
        let crowd = &requests[..count.min(requests.len())];
        let engine = Running::start(checkpoint, setting);
        for (i, (output, _)) in engine.ask(crowd).into_iter().enumerate() {
            answers.check(i, output, &how);
        }
        if setting.prefix_caching {
            // Once more, from the cache; then the next turns, which find prompt and answer there.
            for (i, (output, cached)) in engine.ask(&crowd[..SUBJECTS]).into_iter().enumerate() {
                assert!(cached >= 32 && cached.is_multiple_of(32), "{cached} tokens cached {how}");
                answers.check(i, output, &format!("cached, {how}"));
            }
            for (turn, expected) in &turns {
                let (output, cached) = engine.ask(std::slice::from_ref(turn)).remove(0);
                assert!(cached + 36 > turn.prompt.len(), "{cached} of {} cached {how}", turn.prompt.len());
                assert!(output == *expected, "the second turn differs {how}");
            }
        }
        assert_eq!(engine.preemptions(), 0);
    }

    preempted(checkpoint, base, 4);
}

fn vocab(checkpoint: &Checkpoint) -> usize {
    checkpoint.config().vocab_size
}

/// Few blocks, and answers long enough that the first two sequences outgrow them.
fn preempted(checkpoint: &Checkpoint, base: Setting, count: usize) {
    let requests = requests(count, vocab(checkpoint), |_| 40);
    let mut answers = Answers::default();
    let alone = Running::start(checkpoint, base);
    for (i, r) in requests.iter().enumerate() {
        answers.check(i, alone.ask(std::slice::from_ref(r)).remove(0).0, "");
    }
    drop(alone);
    for (batched, threads, prefix_caching) in [(512, 1, true), (16, 2, false)] {
        let setting = Setting { max_num_batched_tokens: batched, threads, prefix_caching, num_blocks: 6, ..base };
        let engine = Running::start(checkpoint, setting);
        for (i, (output, _)) in engine.ask(&requests).into_iter().enumerate() {
            answers.check(i, output, &format!("preempted, {setting:?}"));
        }
        assert!(engine.preemptions() > 0, "nothing was preempted, {setting:?}");
    }
}

fn every_level(dtype: DType, kv: Option<KvType>) {
    let checkpoint = Checkpoint::open(goldens::path("gqa")).unwrap();
    // Subjects answer longest, so that neighbours come and go beside them.
    let length = |i| if i < SUBJECTS { 24 } else { 12 + i as u32 % 7 };
    let requests = requests(64, vocab(&checkpoint), length);
    for level in Level::available() {
        matrix(&checkpoint, base(dtype, kv, level), &requests);
    }
}

#[test]
fn f32_at_every_level() {
    every_level(DType::F32, None);
}

#[test]
fn bf16_at_every_level() {
    every_level(DType::BF16, None);
}

#[test]
fn q8_0_at_every_level() {
    every_level(DType::Q8_0, None);
}

#[test]
fn q4_0_at_every_level() {
    every_level(DType::Q4_0, None);
}

#[test]
fn q4_1_at_every_level() {
    every_level(DType::Q4_1, None);
}

#[test]
fn int8_cache_at_every_level() {
    every_level(DType::F32, Some(KvType::Int8));
    every_level(DType::Q4_1, Some(KvType::Int8));
}

/// A cache of another type than goes with the weights.
#[test]
fn mixed_caches() {
    let checkpoint = Checkpoint::open(goldens::path("gqa")).unwrap();
    let requests = requests(20, vocab(&checkpoint), |i| if i < SUBJECTS { 20 } else { 12 });
    for (dtype, kv) in [(DType::F32, KvType::BF16), (DType::Q4_1, KvType::F32)] {
        matrix(&checkpoint, base(dtype, Some(kv), Level::best()), &requests);
    }
}

/// Odd head counts, one KV head, heads wider than a vector: one format each way of computing.
#[test]
fn other_shapes() {
    for name in ["mqa-odd", "llama3", "mha-tied", "linear"] {
        let checkpoint = Checkpoint::open(goldens::path(name)).unwrap();
        let requests = requests(20, vocab(&checkpoint), |i| if i < SUBJECTS { 20 } else { 12 });
        for (dtype, kv) in [(DType::F32, None), (DType::Q4_1, None), (DType::Q4_1, Some(KvType::Int8))] {
            matrix(&checkpoint, base(dtype, kv, Level::best()), &requests);
        }
    }
}

/// The model people run, in every format.
#[test]
fn the_default_model() {
    let checkpoint = Checkpoint::open(goldens::default_model()).unwrap();
    let requests = requests(9, vocab(&checkpoint), |i| if i < SUBJECTS { 8 } else { 4 });
    for (dtype, kv) in FORMATS.map(|f| (f, None)).into_iter().chain([(DType::Q4_1, Some(KvType::Int8))]) {
        let base = base(dtype, kv, Level::best());
        let mut answers = Answers::default();
        let alone = Running::start(&checkpoint, base);
        for (i, r) in requests[..SUBJECTS].iter().enumerate() {
            answers.check(i, alone.ask(std::slice::from_ref(r)).remove(0).0, "");
        }
        drop(alone);
        let crowd = Setting { max_num_batched_tokens: 48, threads: 2, prefix_caching: true, ..base };
        let crowd = Running::start(&checkpoint, crowd);
        for round in ["among 8, in chunks", "again, cached"] {
            for (i, (output, _)) in crowd.ask(&requests).into_iter().enumerate() {
                answers.check(i, output, &format!("{round}, {dtype:?} {kv:?}"));
            }
        }
        drop(crowd);
        if dtype == DType::Q4_1 {
            preempted(&checkpoint, base, 2);
        }
    }
}
