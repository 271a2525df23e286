//! Snapshots of what the scheduler does, step by step.

use std::fmt::Write;
use std::sync::atomic::Ordering::Relaxed;

use lima::engine::fake::{FakeExecutor, oracle_scores};
use lima::engine::{
    Core, DraftCost, Event, Pooling, Request, SamplingParams, SchedulerConfig, SeqEvent, SeqId, Speculation, Task,
    TokenId, TokenSource,
};

const CONFIG: SchedulerConfig = SchedulerConfig {
    max_num_seqs: 4,
    max_num_batched_tokens: 64,
    max_model_len: 1024,
    num_blocks: 16,
    enable_prefix_caching: true,
    speculation: Speculation::OFF,
};

fn request(prompt: impl Iterator<Item = TokenId>, max_tokens: u32) -> Request {
    let params = SamplingParams { max_tokens, stop_token_ids: vec![7], ..Default::default() };
    Request::generate(prompt.collect::<Vec<_>>(), params)
}

/// A core whose sequences all generate `script`, and what it did.
struct Trace {
    core: Core,
    next_id: u64,
    text: String,
}

impl Trace {
    fn new(config: SchedulerConfig, depth: usize, script: Vec<TokenId>) -> Self {
        let executor = FakeExecutor::new(depth, 1000).with_script(script);
        Self { core: Core::new(config, Box::new(executor)), next_id: 0, text: String::new() }
    }

    fn add(&mut self, request: Request) {
        self.core.scheduler_mut().add(SeqId(self.next_id), request).unwrap();
        self.next_id += 1;
    }

    fn run(&mut self) {
        while self.advance() {}
    }

    fn advance(&mut self) -> bool {
        let (mut events, forwards) = (Vec::new(), self.core.stats().forwards.load(Relaxed));
        let progress = self.core.advance(&mut events);
        let out = &mut self.text;
        if self.core.stats().forwards.load(Relaxed) > forwards {
            let input = self.core.last_input();
            write!(out, "step {}:", input.step).unwrap();
            for row in &input.rows {
                let source = match row.tokens {
                    TokenSource::Host(_) => String::new(),
                    TokenSource::PreviousStep { row } => format!(" from row {row}"),
                };
                write!(out, " [{:?} {}..{}{source} {:?}]", row.seq, row.start, row.start + row.len, row.want).unwrap();
                if let Some(score) = &row.score {
                    let targets = &input.targets[score.targets.clone()];
                    out.pop();
                    write!(out, " scoring {} from {}]", targets.len(), row.start + score.first).unwrap();
                }
            }
            if !input.released.is_empty() {
                write!(out, " released {:?}", input.released).unwrap();
            }
        } else {
            out.push_str("no step");
        }
        out.push('\n');
        for SeqEvent { seq, event, .. } in events {
            match event {
                Event::Token(sampled) => writeln!(out, "  {seq:?} -> {}", sampled.token).unwrap(),
                Event::PromptLogprobs(scores) => {
                    let tokens: Vec<_> = scores.iter().map(|s| s.token).collect();
                    writeln!(
                        out,
                        "  {seq:?} scored {}: {:?}..={:?}",
                        tokens.len(),
                        tokens[0],
                        tokens[tokens.len() - 1]
                    )
                    .unwrap();
                }
                event => writeln!(out, "  {seq:?} {event:?}").unwrap(),
            }
        }
        writeln!(out, "  {:?}", self.core.scheduler()).unwrap();
        progress
    }
}

#[test]
fn chunked_prefill_yields_to_decoding() {
    let mut trace = Trace::new(CONFIG, 1, (100..).take(9).collect());
    trace.add(request(0..20, 6));
    trace.advance();
    trace.add(request(0..150, 2));
    trace.run();
    insta::assert_snapshot!(trace.text, @r"
    step 0: [s0 0..20 Sample { last: 1 }]
      s0 Scheduled { cached_tokens: 0 }
      s0 -> 100
      next step 1, in flight 0, blocks: 1 in use, 15 free, 0 cached
      running s0: prompt 20 + output 1 + in flight 0, computed 20, registered 0, blocks [b0]
    step 1: [s0 20..21 Sample { last: 1 }] [s1 0..63 None]
      s1 Scheduled { cached_tokens: 0 }
      s0 -> 101
      next step 2, in flight 0, blocks: 6 in use, 10 free, 0 cached
      running s0: prompt 20 + output 2 + in flight 0, computed 21, registered 0, blocks [b0]
      running s1: prompt 150 + output 0 + in flight 0, computed 63, registered 1, blocks [b1, b2, b3, b4, b5]
    step 2: [s0 21..22 Sample { last: 1 }] [s1 63..126 None]
      s0 -> 102
      next step 3, in flight 0, blocks: 6 in use, 10 free, 0 cached
      running s0: prompt 20 + output 3 + in flight 0, computed 22, registered 0, blocks [b0]
      running s1: prompt 150 + output 0 + in flight 0, computed 126, registered 3, blocks [b1, b2, b3, b4, b5]
    step 3: [s0 22..23 Sample { last: 1 }] [s1 126..150 Sample { last: 1 }]
      s0 -> 103
      s1 -> 100
      next step 4, in flight 0, blocks: 6 in use, 10 free, 0 cached
      running s0: prompt 20 + output 4 + in flight 0, computed 23, registered 0, blocks [b0]
      running s1: prompt 150 + output 1 + in flight 0, computed 150, registered 4, blocks [b1, b2, b3, b4, b5]
    step 4: [s0 23..24 Sample { last: 1 }] [s1 150..151 Sample { last: 1 }]
      s0 -> 104
      s1 -> 101
      s1 Finished(Length)
      next step 5, in flight 0, blocks: 1 in use, 15 free, 4 cached
      running s0: prompt 20 + output 5 + in flight 0, computed 24, registered 0, blocks [b0]
    step 5: [s0 24..25 Sample { last: 1 }] released [s1]
      s0 -> 105
      s0 Finished(Length)
      next step 6, in flight 0, blocks: 0 in use, 16 free, 4 cached
    no step
      next step 6, in flight 0, blocks: 0 in use, 16 free, 4 cached
    ");
}

#[test]
fn a_prefix_is_computed_once() {
    let mut trace = Trace::new(SchedulerConfig { max_num_batched_tokens: 128, ..CONFIG }, 1, vec![100, 101]);
    trace.add(request(0..70, 2));
    trace.run();
    // 64 tokens in common; then the same prompt of whole blocks twice: its last token is computed.
    trace.add(request((0..64).chain(500..510), 1));
    trace.run();
    trace.add(request(0..64, 1));
    trace.run();
    insta::assert_snapshot!(trace.text, @r"
    step 0: [s0 0..70 Sample { last: 1 }]
      s0 Scheduled { cached_tokens: 0 }
      s0 -> 100
      next step 1, in flight 0, blocks: 3 in use, 13 free, 0 cached
      running s0: prompt 70 + output 1 + in flight 0, computed 70, registered 2, blocks [b0, b1, b2]
    step 1: [s0 70..71 Sample { last: 1 }]
      s0 -> 101
      s0 Finished(Length)
      next step 2, in flight 0, blocks: 0 in use, 16 free, 2 cached
    no step
      next step 2, in flight 0, blocks: 0 in use, 16 free, 2 cached
    step 2: [s1 64..74 Sample { last: 1 }] released [s0]
      s1 Scheduled { cached_tokens: 64 }
      s1 -> 100
      s1 Finished(Length)
      next step 3, in flight 0, blocks: 0 in use, 16 free, 2 cached
    no step
      next step 3, in flight 0, blocks: 0 in use, 16 free, 2 cached
    step 3: [s2 32..64 Sample { last: 1 }] released [s1]
      s2 Scheduled { cached_tokens: 32 }
      s2 -> 100
      s2 Finished(Length)
      next step 4, in flight 0, blocks: 0 in use, 16 free, 2 cached
    no step
      next step 4, in flight 0, blocks: 0 in use, 16 free, 2 cached
    ");
}

#[test]
fn the_last_in_order_is_preempted_and_recomputed() {
    let config = SchedulerConfig { num_blocks: 3, enable_prefix_caching: false, ..CONFIG };
    let mut trace = Trace::new(config, 1, (100..).take(9).collect());
    trace.add(request(0..30, 5));
    trace.add(request(200..230, 4));
    trace.run();
    insta::assert_snapshot!(trace.text, @r"
    step 0: [s0 0..30 Sample { last: 1 }] [s1 0..30 Sample { last: 1 }]
      s0 Scheduled { cached_tokens: 0 }
      s1 Scheduled { cached_tokens: 0 }
      s0 -> 100
      s1 -> 100
      next step 1, in flight 0, blocks: 2 in use, 1 free, 0 cached
      running s0: prompt 30 + output 1 + in flight 0, computed 30, registered 0, blocks [b0]
      running s1: prompt 30 + output 1 + in flight 0, computed 30, registered 0, blocks [b1]
    step 1: [s0 30..31 Sample { last: 1 }] [s1 30..31 Sample { last: 1 }]
      s0 -> 101
      s1 -> 101
      next step 2, in flight 0, blocks: 2 in use, 1 free, 0 cached
      running s0: prompt 30 + output 2 + in flight 0, computed 31, registered 0, blocks [b0]
      running s1: prompt 30 + output 2 + in flight 0, computed 31, registered 0, blocks [b1]
    step 2: [s0 31..32 Sample { last: 1 }] [s1 31..32 Sample { last: 1 }]
      s0 -> 102
      s1 -> 102
      next step 3, in flight 0, blocks: 2 in use, 1 free, 0 cached
      running s0: prompt 30 + output 3 + in flight 0, computed 32, registered 0, blocks [b0]
      running s1: prompt 30 + output 3 + in flight 0, computed 32, registered 0, blocks [b1]
    step 3: [s0 32..33 Sample { last: 1 }] released [s1]
      s0 -> 103
      next step 4, in flight 0, blocks: 2 in use, 1 free, 0 cached
      running s0: prompt 30 + output 4 + in flight 0, computed 33, registered 0, blocks [b0, b2]
      waiting s1: prompt 30 + output 3 + in flight 0, computed 0, registered 0, blocks []
    step 4: [s0 33..34 Sample { last: 1 }]
      s0 -> 104
      s0 Finished(Length)
      next step 5, in flight 0, blocks: 0 in use, 3 free, 0 cached
      waiting s1: prompt 30 + output 3 + in flight 0, computed 0, registered 0, blocks []
    step 5: [s1 0..33 Sample { last: 1 }] released [s0]
      s1 -> 103
      s1 Finished(Length)
      next step 6, in flight 0, blocks: 0 in use, 3 free, 0 cached
    no step
      next step 6, in flight 0, blocks: 0 in use, 3 free, 0 cached
    ");
}

#[test]
fn what_overruns_a_stop_token_is_discarded() {
    let mut trace = Trace::new(CONFIG, 2, vec![100, 7, 101, 102]);
    trace.add(request(0..5, 10));
    trace.add(request(0..6, 1));
    trace.run();
    assert_eq!(trace.core.scheduler().counters().discarded_rows, 1);
    insta::assert_snapshot!(trace.text, @r"
    step 0: [s0 0..5 Sample { last: 1 }] [s1 0..6 Sample { last: 1 }]
      s0 Scheduled { cached_tokens: 0 }
      s1 Scheduled { cached_tokens: 0 }
      next step 1, in flight 1, blocks: 2 in use, 14 free, 0 cached
      running s0: prompt 5 + output 0 + in flight 1, computed 5, registered 0, blocks [b0]
      running s1: prompt 6 + output 0 + in flight 1, computed 6, registered 0, blocks [b1]
    step 1: [s0 5..6 from row 0 Sample { last: 1 }]
      s0 -> 100
      s1 -> 100
      s1 Finished(Length)
      next step 2, in flight 1, blocks: 1 in use, 15 free, 0 cached
      running s0: prompt 5 + output 1 + in flight 1, computed 6, registered 0, blocks [b0]
    step 2: [s0 6..7 from row 0 Sample { last: 1 }] released [s1]
      s0 -> 7
      s0 Finished(Stop)
      next step 3, in flight 1, blocks: 0 in use, 16 free, 0 cached
    no step
      next step 3, in flight 0, blocks: 0 in use, 16 free, 0 cached
    no step
      next step 3, in flight 0, blocks: 0 in use, 16 free, 0 cached
    ");
}

fn scored(prompt: impl Iterator<Item = TokenId>, max_tokens: u32) -> Request {
    Request { task: Task::Generate { prompt_logprobs: Some(0) }, ..request(prompt, max_tokens) }
}

#[test]
fn a_prompt_is_scored_across_chunks() {
    let config = SchedulerConfig { max_num_batched_tokens: 32, num_blocks: 4, ..CONFIG };
    let mut trace = Trace::new(config, 1, (100..).take(9).collect());
    trace.add(request(0..31, 3));
    trace.advance();
    trace.add(scored(200..264, 1));
    trace.run();
    // The prompt is in the cache, and computed all the same. Nothing is generated.
    trace.add(scored(200..240, 0));
    trace.run();
    insta::assert_snapshot!(trace.text, @r"
    step 0: [s0 0..31 Sample { last: 1 }]
      s0 Scheduled { cached_tokens: 0 }
      s0 -> 100
      next step 1, in flight 0, blocks: 1 in use, 3 free, 0 cached
      running s0: prompt 31 + output 1 + in flight 0, computed 31, registered 0, blocks [b0]
    step 1: [s0 31..32 Sample { last: 1 }] [s1 0..31 None scoring 31 from 0]
      s1 Scheduled { cached_tokens: 0 }
      s0 -> 101
      s1 scored 31: 201..=231
      next step 2, in flight 0, blocks: 3 in use, 1 free, 0 cached
      running s0: prompt 31 + output 2 + in flight 0, computed 32, registered 1, blocks [b0]
      running s1: prompt 64 + output 0 + in flight 0, computed 31, registered 0, blocks [b1, b2]
    step 2: [s0 32..33 Sample { last: 1 }] [s1 31..62 None scoring 31 from 31]
      s0 -> 102
      s0 Finished(Length)
      s1 scored 31: 232..=262
      next step 3, in flight 0, blocks: 2 in use, 2 free, 1 cached
      running s1: prompt 64 + output 0 + in flight 0, computed 62, registered 1, blocks [b1, b2]
    step 3: [s1 62..64 Sample { last: 1 } scoring 1 from 62] released [s0]
      s1 scored 1: 263..=263
      s1 -> 100
      s1 Finished(Length)
      next step 4, in flight 0, blocks: 0 in use, 4 free, 3 cached
    no step
      next step 4, in flight 0, blocks: 0 in use, 4 free, 3 cached
    step 4: [s2 0..32 None scoring 32 from 0] released [s1]
      s2 Scheduled { cached_tokens: 0 }
      s2 scored 32: 201..=232
      next step 5, in flight 0, blocks: 2 in use, 2 free, 2 cached
      running s2: prompt 40 + output 0 + in flight 0, computed 32, registered 1, blocks [b3, b0]
    step 5: [s2 32..40 None scoring 7 from 32]
      s2 scored 7: 233..=239
      s2 Finished(Length)
      next step 6, in flight 0, blocks: 0 in use, 4 free, 2 cached
    no step
      next step 6, in flight 0, blocks: 0 in use, 4 free, 2 cached
    ");
}

#[test]
fn a_mean_reads_nothing_from_the_cache_and_the_last_state_does() {
    let mut trace = Trace::new(CONFIG, 1, vec![100]);
    let embed = |pooling| Request { task: Task::Embed(pooling), ..request(0..70, 1) };
    trace.add(embed(Pooling::Last));
    trace.run();
    trace.add(embed(Pooling::Mean));
    trace.add(embed(Pooling::Last));
    trace.run();
    insta::assert_snapshot!(trace.text, @r"
    step 0: [s0 0..64 None]
      s0 Scheduled { cached_tokens: 0 }
      next step 1, in flight 0, blocks: 3 in use, 13 free, 0 cached
      running s0: prompt 70 + output 0 + in flight 0, computed 64, registered 2, blocks [b0, b1, b2]
    step 1: [s0 64..70 Pool { pooling: Last, last: true }]
      s0 Pooled([0.97099996, 0.47099996, 0.36899996, -0.026000023])
      s0 Finished(Length)
      next step 2, in flight 0, blocks: 0 in use, 16 free, 2 cached
    no step
      next step 2, in flight 0, blocks: 0 in use, 16 free, 2 cached
    step 2: [s1 0..64 Pool { pooling: Mean, last: false }] released [s0]
      s1 Scheduled { cached_tokens: 0 }
      next step 3, in flight 0, blocks: 3 in use, 13 free, 2 cached
      running s1: prompt 70 + output 0 + in flight 0, computed 64, registered 2, blocks [b2, b3, b4]
      waiting s2: prompt 70 + output 0 + in flight 0, computed 0, registered 0, blocks []
    step 3: [s1 64..70 Pool { pooling: Mean, last: true }] [s2 64..70 Pool { pooling: Last, last: true }]
      s2 Scheduled { cached_tokens: 64 }
      s1 Pooled([-0.0067285667, -0.008228578, -0.015714288, -0.10838571])
      s1 Finished(Length)
      s2 Pooled([0.97099996, 0.47099996, 0.36899996, -0.026000023])
      s2 Finished(Length)
      next step 4, in flight 0, blocks: 0 in use, 16 free, 2 cached
    no step
      next step 4, in flight 0, blocks: 0 in use, 16 free, 2 cached
    ");
}

#[test]
fn what_was_scored_before_a_preemption_is_not_scored_again() {
    let config = SchedulerConfig { max_num_batched_tokens: 5, num_blocks: 7, ..CONFIG };
    let mut core = Core::new(config, Box::new(FakeExecutor::new(1, 1000)));
    let long = scored(200..360, 1);
    core.scheduler_mut().add(SeqId(0), request(0..31, 80)).unwrap();
    core.advance(&mut Vec::new());
    core.scheduler_mut().add(SeqId(1), long.clone()).unwrap();
    let (mut scores, mut computed) = (Vec::new(), 0);
    loop {
        let mut events = Vec::new();
        if !core.advance(&mut events) {
            break;
        }
        let row = core.last_input().rows.iter().find(|r| r.seq == SeqId(1));
        if let Some(row) = row.filter(|_| core.scheduler().counters().preemptions > 0 && computed == 0) {
            let cached = row.start;
            computed = cached + row.len;
            // What the cache gives was reported; the first positions computed need no scores any more.
            assert!(0 < cached && cached < scores.len() && row.score.is_none(), "{row:?} after {}", scores.len());
        }
        for event in events.into_iter().filter(|e| e.seq == SeqId(1)) {
            if let Event::PromptLogprobs(more) = event.event {
                scores.extend(more);
            }
        }
    }
    assert_eq!(core.scheduler().counters().preemptions, 1);
    assert!(computed > 0);
    assert_eq!(scores, oracle_scores(&long, 1000));
}

#[test]
fn what_repeats_is_drafted() {
    let speculation = Speculation { max_tokens: 4, cost: DraftCost::Percent(0) };
    let script = vec![3, 4, 5, 6, 9, 1, 2, 3, 4];
    let mut trace = Trace::new(SchedulerConfig { speculation, ..CONFIG }, 1, script);
    trace.add(request([1, 2, 3, 4, 5, 6, 1, 2].into_iter(), 9));
    trace.run();
    let counters = trace.core.scheduler().counters();
    assert_eq!((counters.drafts, counters.draft_tokens, counters.accepted_draft_tokens), (2, 5, 4));
    insta::assert_snapshot!(trace.text, @r"
    step 0: [s0 0..8 Sample { last: 1 }]
      s0 Scheduled { cached_tokens: 0 }
      s0 -> 3
      next step 1, in flight 0, blocks: 1 in use, 15 free, 0 cached
      running s0: prompt 8 + output 1 + in flight 0, computed 8, registered 0, blocks [b0]
    step 1: [s0 8..13 Sample { last: 5 }]
      s0 -> 4
      s0 -> 5
      s0 -> 6
      s0 -> 9
      next step 2, in flight 0, blocks: 1 in use, 15 free, 0 cached
      running s0: prompt 8 + output 5 + in flight 0, computed 12, registered 0, blocks [b0]
    step 2: [s0 12..13 Sample { last: 1 }]
      s0 -> 1
      next step 3, in flight 0, blocks: 1 in use, 15 free, 0 cached
      running s0: prompt 8 + output 6 + in flight 0, computed 13, registered 0, blocks [b0]
    step 3: [s0 13..14 Sample { last: 1 }]
      s0 -> 2
      next step 4, in flight 0, blocks: 1 in use, 15 free, 0 cached
      running s0: prompt 8 + output 7 + in flight 0, computed 14, registered 0, blocks [b0]
    step 4: [s0 14..16 Sample { last: 2 }]
      s0 -> 3
      s0 -> 4
      s0 Finished(Length)
      next step 5, in flight 0, blocks: 0 in use, 16 free, 0 cached
    no step
      next step 5, in flight 0, blocks: 0 in use, 16 free, 0 cached
    ");
}

#[test]
fn drafts_take_no_block_that_another_may_need() {
    // Two sequences near the end of their blocks. With three blocks one is free, too few for both.
    let speculation = Speculation { max_tokens: 4, cost: DraftCost::Percent(0) };
    for (num_blocks, lens) in [(3, [3, 3]), (5, [5, 3])] {
        let config = SchedulerConfig { num_blocks, speculation, ..CONFIG };
        let mut trace = Trace::new(config, 1, vec![3; 99]);
        trace.add(request(std::iter::repeat_n(3, 29), 20));
        trace.add(request(std::iter::repeat_n(3, 29), 20));
        trace.advance();
        // Positions up to 32 need no further block.
        trace.advance();
        let found: Vec<_> = trace.core.last_input().rows.iter().map(|r| r.len).collect();
        assert_eq!(found, lens, "{num_blocks} blocks");
        trace.run();
        assert_eq!(trace.core.scheduler().counters().preemptions, u64::from(num_blocks == 3));
    }
}
