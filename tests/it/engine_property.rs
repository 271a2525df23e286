//! Random submissions, steps, aborts, preemptions and failures on small pools.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use lima::engine::fake::{FakeControl, FakeExecutor, Fault, oracle, oracle_pooled, oracle_scores};
use lima::engine::{
    AdapterLease, AdapterSlot, Core, DraftCost, EngineError, Event, FinishReason, Pooling, Request, SamplingParams,
    SchedulerConfig, Scored, SeqEvent, SeqId, Speculation, Task, TokenId,
};

/// Few tokens repeat themselves, and drafts are right now and then.
const VOCABS: [u32; 3] = [40, 40, 3];
const SCENARIOS: u64 = 400;
const STEPS_PER_SCENARIO: usize = 330;

/// A small generator (splitmix64), so that a seed means the same for ever.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    fn between(&mut self, low: usize, high: usize) -> usize {
        low + self.below(high - low + 1)
    }

    fn percent(&mut self, chance: usize) -> bool {
        self.below(100) < chance
    }
}

/// A sequence seen from outside.
struct Reader {
    request: Request,
    scheduled: bool,
    tokens: Vec<TokenId>,
    scores: Vec<Scored>,
    pooled: Option<Vec<f32>>,
}

struct Scenario {
    random: Random,
    vocab: u32,
    config: SchedulerConfig,
    core: Core,
    control: FakeControl,
    readers: BTreeMap<SeqId, Reader>,
    events: Vec<SeqEvent>,
    next_id: u64,
    faulty: bool,
    faults: BTreeMap<u64, Fault>,
}

#[derive(Default, Debug)]
struct Totals {
    steps: u64,
    preemptions: u64,
    discarded: u64,
    hits: u64,
    stopped: u64,
    by_length: u64,
    failed: u64,
    aborted: u64,
    scored: u64,
    pooled: u64,
    drafted: u64,
    accepted: u64,
}

impl Scenario {
    fn new(seed: u64) -> Self {
        let mut random = Random(seed);
        let vocab = VOCABS[random.below(VOCABS.len())];
        let config = SchedulerConfig {
            max_num_seqs: random.between(1, 8),
            max_num_batched_tokens: random.between(1, 120),
            max_model_len: random.between(20, 300),
            num_blocks: random.between(2, 14),
            enable_prefix_caching: random.percent(75),
            speculation: Speculation {
                max_tokens: random.below(8),
                cost: [DraftCost::Percent(0), DraftCost::Percent(20), DraftCost::Measured][random.below(3)],
            },
        };
        let executor = FakeExecutor::new(random.between(1, 2), vocab);
        let control = executor.control();
        let core = Core::new(config, Box::new(executor));
        Self {
            faulty: random.percent(50),
            random,
            vocab,
            config,
            core,
            control,
            readers: BTreeMap::new(),
            events: Vec::new(),
            next_id: 0,
            faults: BTreeMap::new(),
        }
    }

    fn submit(&mut self) {
        let (random, vocab) = (&mut self.random, self.vocab);
        // Few beginnings, so that prefixes are shared; many ends.
        let shared = random.between(0, self.config.max_len());
        let own = random.below(40);
        let family = random.below(3) as u32;
        let mut prompt: Vec<TokenId> = (0..shared as u32).map(|i| (i * 7 + family) % vocab).collect();
        prompt.extend((0..own).map(|_| random.below(vocab as usize) as u32));
        let params = SamplingParams {
            temperature: if random.percent(50) { 1.0 } else { 0.0 },
            seed: random.next() % 3,
            max_tokens: if random.percent(5) { 0 } else { random.between(1, 150) as u32 },
            min_tokens: random.below(5) as u32,
            stop_token_ids: if random.percent(30) { vec![1, 2] } else { vec![] },
            ..Default::default()
        };
        let request = Request {
            prompt: prompt.into(),
            task: match random.below(10) {
                0 => Task::Embed(Pooling::Mean),
                1 => Task::Embed(Pooling::Last),
                2..5 => Task::Generate { prompt_logprobs: Some(random.below(3) as u32) },
                _ => Task::default(),
            },
            params: Arc::new(params),
            priority: random.below(3) as i32 - 1,
            cache_salt: random.percent(20).then(|| "tenant".into()),
            adapter: random
                .percent(10)
                .then_some(AdapterLease::detached(AdapterSlot { index: 0, generation: random.between(1, 2) as u64 })),
            constraint: None,
        };
        let generates = request.task != Task::Embed(Pooling::Mean)
            && request.task != Task::Embed(Pooling::Last)
            && request.params.max_tokens > 0;
        let longest = self.config.max_len() - usize::from(generates);
        let fits = (1..=longest).contains(&request.prompt.len());
        let id = SeqId(self.next_id);
        self.next_id += 1;
        let added = self.core.scheduler_mut().add(id, request.clone());
        assert_eq!(added.is_ok(), fits, "{} prompt tokens of {}", request.prompt.len(), self.config.max_len());
        if fits {
            self.readers
                .insert(id, Reader { request, scheduled: false, tokens: Vec::new(), scores: Vec::new(), pooled: None });
        }
    }

    fn abort(&mut self, totals: &mut Totals) {
        if self.readers.is_empty() {
            return;
        }
        let index = self.random.below(self.readers.len());
        let id = *self.readers.keys().nth(index).unwrap();
        let reader = self.readers.remove(&id).unwrap();
        self.check_prefix(&reader);
        let (_, admitted) = self.core.scheduler_mut().abort(id).unwrap();
        assert_eq!(admitted, reader.scheduled);
        assert!(self.core.scheduler_mut().abort(id).is_none());
        totals.aborted += 1;
    }

    fn inject(&mut self) {
        let step = self.core.last_input().step + self.random.between(1, 3) as u64;
        let fault = match self.random.below(6) {
            0 => Fault::Forward,
            1 => Fault::Sample,
            2 => Fault::Collect,
            _ => Fault::Row(self.random.below(8)),
        };
        self.faults.insert(step, fault);
        self.control.inject(step, fault);
    }

    /// One step; returns false when the engine is idle.
    fn advance(&mut self, totals: &mut Totals) -> bool {
        let forwards = self.control.forwards();
        let progress = self.core.advance(&mut self.events);
        self.core.scheduler().assert_invariants();
        if self.control.forwards() > forwards {
            let input = self.core.last_input();
            assert!(input.num_tokens() <= self.config.max_num_batched_tokens);
            let seqs: BTreeSet<_> = input.rows.iter().map(|r| r.seq).collect();
            assert_eq!(seqs.len(), input.rows.len(), "one row a sequence");
            assert!(seqs.len() <= self.config.max_num_seqs);
            if matches!(self.faults.get(&input.step), Some(Fault::Forward | Fault::Sample)) {
                let failed = |id| SeqEvent::clone(id).event.is_terminal() && seqs.contains(&id.seq);
                assert_eq!(self.events.iter().filter(|e| failed(e)).count(), seqs.len(), "the step fails as a whole");
            }
        }
        for SeqEvent { seq, event, .. } in std::mem::take(&mut self.events) {
            let reader = self.readers.get_mut(&seq).expect("no event after the last");
            assert_eq!(reader.scheduled, !matches!(event, Event::Scheduled { .. }), "scheduled once, first");
            match event {
                Event::Scheduled { cached_tokens } => {
                    assert!(cached_tokens.is_multiple_of(32) && cached_tokens < reader.request.prompt.len());
                    reader.scheduled = true;
                    totals.hits += u64::from(cached_tokens > 0);
                }
                Event::PromptLogprobs(scores) => {
                    assert!(reader.tokens.is_empty() && !scores.is_empty());
                    reader.scores.extend(scores);
                    totals.scored += 1;
                }
                Event::Pooled(pooled) => {
                    assert!(reader.pooled.replace(pooled).is_none());
                    totals.pooled += 1;
                }
                Event::Token(sampled) => reader.tokens.push(sampled.token),
                Event::Finished(reason) => {
                    let reader = self.readers.remove(&seq).unwrap();
                    let expected = oracle(&reader.request, self.config.max_len(), self.vocab);
                    assert_eq!((reader.tokens, reason), expected, "{seq:?}");
                    assert_eq!(reader.scores, oracle_scores(&reader.request, self.vocab), "{seq:?}");
                    assert_eq!(reader.pooled, oracle_pooled(&reader.request), "{seq:?}");
                    match reason {
                        FinishReason::Stop => totals.stopped += 1,
                        FinishReason::Length => totals.by_length += 1,
                    }
                }
                Event::Failed(error) => {
                    let (EngineError::Step(message) | EngineError::Row(message)) = error else { panic!("{error}") };
                    assert!(message.starts_with("injected"), "{message}");
                    let reader = self.readers.remove(&seq).unwrap();
                    self.check_prefix(&reader);
                    totals.failed += 1;
                }
            }
        }
        progress
    }

    fn check_prefix(&self, reader: &Reader) {
        let (expected, _) = oracle(&reader.request, self.config.max_len(), self.vocab);
        assert!(expected.starts_with(&reader.tokens));
        assert!(oracle_scores(&reader.request, self.vocab).starts_with(&reader.scores));
    }

    fn run(mut self, totals: &mut Totals) {
        let load = self.random.between(3, 40);
        for _ in 0..STEPS_PER_SCENARIO {
            if self.readers.len() < 20 && self.random.percent(load) {
                self.submit();
            }
            if self.random.percent(2) {
                self.abort(totals);
            }
            if self.faulty && self.random.percent(2) {
                self.inject();
            }
            self.advance(totals);
        }
        let mut bound = 20_000;
        while self.advance(totals) {
            bound -= 1;
            assert!(bound > 0, "no livelock");
        }
        assert!(self.readers.is_empty(), "everything finishes");
        let scheduler = self.core.scheduler();
        assert!(scheduler.is_idle() && scheduler.num_in_flight() == 0);
        assert_eq!((scheduler.pool().num_in_use(), scheduler.pool().num_free()), (0, self.config.num_blocks));
        totals.steps += self.control.forwards();
        totals.preemptions += scheduler.counters().preemptions;
        let counters = scheduler.counters();
        totals.discarded += counters.discarded_rows;
        totals.drafted += counters.draft_tokens;
        totals.accepted += counters.accepted_draft_tokens;
        assert!(counters.accepted_draft_tokens <= counters.draft_tokens);
    }
}

#[test]
fn random_traffic_keeps_the_invariants_and_the_oracle() {
    let mut totals = Totals::default();
    for seed in 0..SCENARIOS {
        Scenario::new(seed).run(&mut totals);
    }
    println!("{totals:?}");
    assert!(totals.steps >= 100_000, "{totals:?}");
    let Totals { preemptions, discarded, hits, stopped, by_length, failed, aborted, scored, pooled, .. } = totals;
    let counts = [preemptions, discarded, hits, stopped, by_length, failed, aborted, scored, pooled];
    assert!(totals.accepted > 1000 && totals.drafted > totals.accepted + 1000, "{totals:?}");
    assert!(counts.iter().all(|&n| n > 100), "{totals:?}");
}
