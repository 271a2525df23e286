//! Decoding with drafts against decoding without, through the engine:
//!
//! `cargo bench --bench speculation -- [-n MAX_TOKENS] [-r ROUNDS] [-k NUM_SPECULATIVE_TOKENS] [-b 1,4,16] [FILTER]`
//!
//! Two engines of the default model (`LIMA_TEST_MODEL` names another) answer the same requests, in turns that change
//! places each round; their outputs must be equal. What is timed are the steps after all prompts are computed. The
//! ratio is the median over the rounds.

use std::time::{Duration, Instant};

use lima::engine::{
    Core, DraftCost, Event, Executor, Request, SamplingParams, SchedulerConfig, SeqEvent, SeqId, Speculation, TokenId,
};
use lima::hub::{self, DEFAULT_MODEL};
use lima::model::weights::Checkpoint;
use lima::text::{ChatMessage, PromptRenderer};

#[allow(dead_code)] // Steps without an engine.
mod support;

use support::default_model;

const MAX_LEN: usize = 2048;
const MAX_SEQS: usize = 16;

const TEXT: &str = "The lighthouse stood on the northern edge of the island, where the cliffs fell away into the sea. \
    Every evening at seven the keeper, a quiet man named Tomas Berg, climbed the one hundred and twelve steps to the \
    lamp room, trimmed the wick, and wound the clockwork that turned the great lens. In winter the wind shook the \
    windows so hard that he slept in his coat. In summer, fishermen from the village brought him bread, smoked \
    herring and news of the mainland, and he paid them with stories about the ships that had passed in the night.";

const CODE: &str = "class Account:\n    def __init__(self, owner, balance=0):\n        self.owner = owner\n        \
    self.balance = balance\n        self.history = []\n\n    def deposit(self, amount):\n        if amount <= 0:\n            \
    raise ValueError(\"amount must be positive\")\n        self.balance += amount\n        \
    self.history.append((\"deposit\", amount))\n\n    def withdraw(self, amount):\n        if amount > self.balance:\n            \
    raise ValueError(\"insufficient funds\")\n        self.balance -= amount\n        \
    self.history.append((\"withdraw\", amount))\n";

const QUESTIONS: [&str; 16] = [
    "Can brain cells move? By movement I mean long distance migration, preferably within the brain only.",
    "Why do airplanes leave white trails in the sky?",
    "Write a short story about a robot who learns to paint.",
    "What should I look for when I buy a used bicycle?",
    "Explain the difference between weather and climate to a ten-year-old.",
    "How do I make a good vegetable broth from scraps?",
    "I have trouble falling asleep. What can I try tonight?",
    "Describe how a bill becomes law in the United States.",
    "What were the main causes of the First World War?",
    "Give me three ideas for a birthday party in a small flat.",
    "How does public key cryptography work?",
    "Write a poem about the sea in winter.",
    "Is it better to rent or to buy a house?",
    "How do bees find their way back to the hive?",
    "Write a cover letter for a junior gardener.",
    "What is the point of learning history?",
];

struct Workload {
    name: &'static str,
    prompt: fn(&PromptRenderer, usize) -> Vec<TokenId>,
    sampled: bool,
}

fn chat(renderer: &PromptRenderer, text: &str) -> Vec<TokenId> {
    renderer.chat(&[ChatMessage::text("user", text)], true, &Default::default()).expect("the model has a template")
}

/// The repeated text begins elsewhere for each sequence, so that nothing is shared.
fn repeat(renderer: &PromptRenderer, i: usize) -> Vec<TokenId> {
    let from = TEXT.char_indices().filter(|(_, c)| *c == ' ').nth(i * 2).map_or(0, |(at, _)| at + 1);
    chat(renderer, &format!("Repeat the following text exactly, word for word:\n\n{}", &TEXT[from..]))
}

/// A text that has been said twice is being said a third time, as when a source is quoted: other words for each
/// sequence. Without a template, as a model this small does not repeat a text because it is asked to.
fn copy(renderer: &PromptRenderer, i: usize) -> Vec<TokenId> {
    let words: Vec<&str> = TEXT.split(' ').collect();
    let text = words[i * 3..].iter().chain(&words[..i * 3]).copied().collect::<Vec<_>>().join(" ");
    let opening = text.split(' ').take(6).collect::<Vec<_>>().join(" ");
    renderer.tokenizer().encode(&format!("{text}\n\n{text}\n\n{opening}"), false).expect("ordinary text")
}

fn edit(renderer: &PromptRenderer, i: usize) -> Vec<TokenId> {
    let (from, to) = (["balance", "owner", "amount", "history"][i % 4], ["total", "holder", "value", "log"][i / 4 % 4]);
    chat(renderer, &format!("Rename `{from}` to `{to}` in this code and print all of it:\n\n```python\n{CODE}```"))
}

fn question(renderer: &PromptRenderer, i: usize) -> Vec<TokenId> {
    chat(renderer, QUESTIONS[i])
}

fn random(renderer: &PromptRenderer, i: usize) -> Vec<TokenId> {
    let vocab = renderer.tokenizer().vocab_size() as u64;
    let token = |k: u64| ((i as u64 * 1000 + k).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 33) % vocab;
    (0..200).map(|k| token(k) as TokenId).collect()
}

const WORKLOADS: [Workload; 8] = [
    Workload { name: "copy a text, greedy", prompt: copy, sampled: false },
    Workload { name: "copy a text, sampled", prompt: copy, sampled: true },
    Workload { name: "repeat a text, greedy", prompt: repeat, sampled: false },
    Workload { name: "repeat a text, sampled", prompt: repeat, sampled: true },
    Workload { name: "edit code, greedy", prompt: edit, sampled: false },
    Workload { name: "questions, greedy", prompt: question, sampled: false },
    Workload { name: "questions, sampled", prompt: question, sampled: true },
    Workload { name: "random tokens, sampled", prompt: random, sampled: true },
];

/// Answers all at once. Returns tokens by sequence, and the time of the steps after all prompts were computed with the
/// number of tokens they made.
fn run(core: &mut Core, requests: &[Request], first: u64) -> (Vec<Vec<TokenId>>, Duration, usize) {
    for (i, request) in requests.iter().enumerate() {
        core.scheduler_mut().add(SeqId(first + i as u64), request.clone()).expect("the prompt fits");
    }
    let (mut outputs, mut events) = (vec![Vec::new(); requests.len()], Vec::<SeqEvent>::new());
    let (mut took, mut tokens) = (Duration::ZERO, 0);
    loop {
        let decoding = outputs.iter().all(|o| !o.is_empty());
        let started = Instant::now();
        if !core.advance(&mut events) {
            return (outputs, took, tokens);
        }
        let step = started.elapsed();
        let before: usize = outputs.iter().map(Vec::len).sum();
        for SeqEvent { seq, event, .. } in events.drain(..) {
            match event {
                Event::Token(sampled) => outputs[(seq.0 - first) as usize].push(sampled.token),
                Event::Failed(error) => panic!("{error}"),
                _ => {}
            }
        }
        if decoding {
            took += step;
            tokens += outputs.iter().map(Vec::len).sum::<usize>() - before;
        }
    }
}

fn median(mut x: Vec<f64>) -> f64 {
    x.sort_by(f64::total_cmp);
    x[x.len() / 2]
}

fn main() {
    let mut args = std::env::args().skip(1).filter(|a| a != "--bench");
    let (mut max_tokens, mut rounds, mut k, mut batches, mut filter) = (128, 5, 15, vec![1, 4, 16], String::new());
    while let Some(arg) = args.next() {
        let mut value = || args.next().expect("a value after the flag");
        match arg.as_str() {
            "-n" => max_tokens = value().parse().expect("a number"),
            "-r" => rounds = value().parse().expect("a number"),
            "-k" => k = value().parse().expect("a number"),
            "-b" => batches = value().split(',').map(|b| b.parse().expect("a number")).collect(),
            _ => filter = arg,
        }
    }
    let source = std::env::var("LIMA_TEST_MODEL").unwrap_or_else(|_| DEFAULT_MODEL.into());
    let path = hub::resolve(&source.parse().expect("a model"), &|_| ()).expect("the model can be had");
    let checkpoint = Checkpoint::open(&path).expect("the model loads");
    let renderer = PromptRenderer::from_gguf(checkpoint.gguf_vocab().expect("a GGUF file")).expect("a tokenizer");
    let stops: Vec<TokenId> = renderer.tokenizer().eos_id().into_iter().chain(renderer.tokenizer().eot_id()).collect();

    let core = |speculation: Speculation| {
        let loaded = default_model(MAX_LEN, MAX_SEQS).1;
        let config = SchedulerConfig {
            max_num_seqs: MAX_SEQS,
            max_num_batched_tokens: 512,
            max_model_len: MAX_LEN,
            num_blocks: loaded.num_blocks,
            enable_prefix_caching: false,
            speculation,
        };
        Core::new(config, Box::new(loaded.executor) as Box<dyn Executor>)
    };
    let mut cores = [core(Speculation::OFF), core(Speculation { max_tokens: k, cost: DraftCost::Measured })];
    println!("| prompts | sequences | without, tok/s | with, tok/s | ratio | drafts right | drafts a token |");
    println!("|---|---|---|---|---|---|---|");
    let mut next_id = 0;
    for workload in WORKLOADS.iter().filter(|w| w.name.contains(&filter)) {
        for &batch in &batches {
            let (mut rates, mut ratios) = ([Vec::new(), Vec::new()], Vec::new());
            let counters = *cores[1].scheduler().counters();
            for round in 0..rounds {
                let request = |i: usize| {
                    // The sampling of the LIMA paper.
                    let sampled = SamplingParams {
                        temperature: 0.7,
                        top_p: 0.9,
                        repetition_penalty: if workload.name.contains("a text") { 1.0 } else { 1.2 },
                        seed: (round * 100 + i) as u64,
                        ..SamplingParams::default()
                    };
                    let params = if workload.sampled { sampled } else { SamplingParams::default() };
                    let place = (i + round) % MAX_SEQS;
                    let params = SamplingParams { max_tokens, stop_token_ids: stops.clone(), ..params };
                    Request::generate((workload.prompt)(&renderer, place), params)
                };
                let requests: Vec<Request> = (0..batch).map(request).collect();
                let mut results = [None, None];
                for which in [round % 2, 1 - round % 2] {
                    results[which] = Some(run(&mut cores[which], &requests, next_id));
                    next_id += batch as u64;
                }
                let [Some(without), Some(with)] = results else { unreachable!("both ran") };
                assert_eq!(without.0, with.0, "drafts change nothing");
                let rate = |(_, took, tokens): &(_, Duration, usize)| *tokens as f64 / took.as_secs_f64();
                rates[0].push(rate(&without));
                rates[1].push(rate(&with));
                ratios.push(without.1.as_secs_f64() / with.1.as_secs_f64());
            }
            let now = cores[1].scheduler().counters();
            let drafted = (now.draft_tokens - counters.draft_tokens) as f64;
            let accepted = (now.accepted_draft_tokens - counters.accepted_draft_tokens) as f64;
            let tokens = (now.generation_tokens - counters.generation_tokens) as f64;
            let [without, with] = rates.map(median);
            println!(
                "| {} | {batch} | {without:.0} | {with:.0} | {:.2} | {:.0} % | {:.2} |",
                workload.name,
                median(ratios),
                100.0 * accepted / drafted.max(1.0),
                drafted / tokens
            );
        }
    }
}
