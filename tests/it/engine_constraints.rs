//! Sequences with masks: what is generated is allowed, and depends on nothing else.

use std::collections::HashMap;

use lima::engine::fake::FakeExecutor;
use lima::engine::{Core, EngineError, Event, Matcher, Request, SamplingParams, SchedulerConfig, SeqId, Speculation};

const VOCAB: u32 = 300;
const CONFIG: SchedulerConfig = SchedulerConfig {
    max_num_seqs: 6,
    max_num_batched_tokens: 64,
    max_model_len: 256,
    num_blocks: 64,
    enable_prefix_caching: true,
    speculation: Speculation::OFF,
};

/// Allows three tokens that follow from all tokens before; at last none.
#[derive(Clone, Debug)]
struct Three {
    state: u64,
    left: usize,
}

impl Three {
    fn new(seed: u64, left: usize) -> Self {
        Self { state: seed, left }
    }

    fn allowed(&self) -> [u32; 3] {
        [1, 2, 3]
            .map(|i| (self.state.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(i * 17) % u64::from(VOCAB)) as u32)
    }
}

impl Matcher for Three {
    fn fork(&self) -> Box<dyn Matcher> {
        Box::new(self.clone())
    }

    fn mask(&mut self, mask: &mut Vec<u32>) -> Result<(), String> {
        mask.clear();
        mask.resize(VOCAB.div_ceil(32) as usize, 0);
        if self.left > 0 {
            self.allowed().iter().for_each(|token| mask[*token as usize / 32] |= 1 << (token % 32));
        }
        Ok(())
    }

    fn accept(&mut self, token: u32) -> Result<(), String> {
        assert!(self.allowed().contains(&token), "{token} was not allowed");
        self.state = self.state.wrapping_mul(31).wrapping_add(u64::from(token) + 1);
        self.left -= 1;
        Ok(())
    }
}

/// A request whose tokens repeat, so that lookups find something, with and without a mask.
fn request(id: u64, constrained: bool) -> Request {
    let prompt: Vec<u32> = (0..20 + id as u32 * 7).map(|i| i % 9).collect();
    let params = SamplingParams { temperature: 1.0, seed: id, max_tokens: 60, ..SamplingParams::default() };
    let constraint = constrained.then(|| Box::new(Three::new(id + 1, usize::MAX)) as Box<dyn Matcher>);
    Request { constraint, ..Request::generate(prompt, params) }
}

/// All tokens of each sequence, and how often any was preempted. With a depth of two, masks are made on several threads.
fn run(config: SchedulerConfig, depth: usize, requests: &[Request]) -> (HashMap<u64, Vec<u32>>, u64) {
    let executor = FakeExecutor::new(depth, VOCAB);
    let control = executor.control();
    let mut core = Core::new(config, Box::new(executor));
    for (id, request) in requests.iter().enumerate() {
        core.scheduler_mut().add(SeqId(id as u64), request.clone()).unwrap();
    }
    let (mut events, mut tokens) = (Vec::new(), HashMap::<u64, Vec<u32>>::new());
    while core.advance(&mut events) {
        core.scheduler().assert_invariants();
    }
    for event in events {
        match event.event {
            Event::Token(sampled) => tokens.entry(event.seq.0).or_default().push(sampled.token),
            Event::Failed(error) => panic!("{error}"),
            _ => {}
        }
    }
    assert!(control.max_masks() >= 2, "masks of one step are made together");
    (tokens, core.scheduler().counters().preemptions)
}

#[test]
fn masks_hold_whatever_runs_beside_and_however_often_it_is_preempted() {
    let requests: Vec<Request> = (0..6).map(|id| request(id, id % 3 != 2)).collect();
    let (alone, _) = run(CONFIG, 1, &requests);
    for (id, tokens) in &alone {
        assert_eq!(tokens.len(), 60);
        // The matcher asserts as much when it is told of a token.
        let mut three = Three::new(id + 1, usize::MAX);
        for token in tokens.iter().filter(|_| id % 3 != 2) {
            three.accept(*token).unwrap();
        }
    }
    let cramped = SchedulerConfig { num_blocks: 9, ..CONFIG };
    let chunked = SchedulerConfig { max_num_batched_tokens: 7, enable_prefix_caching: false, ..CONFIG };
    let drafted = SchedulerConfig { speculation: Speculation { max_tokens: 4, ..Speculation::OFF }, ..CONFIG };
    for depth in [1, 2] {
        for config in [CONFIG, cramped, chunked, drafted] {
            let (tokens, preemptions) = run(config, depth, &requests);
            assert_eq!(tokens, alone, "depth {depth}, {config:?}");
            assert_eq!(preemptions > 0, config.num_blocks == 9);
        }
    }
}

#[test]
fn where_nothing_is_allowed_the_sequence_fails_alone() {
    for depth in [1, 2] {
        let stuck = Request { constraint: Some(Box::new(Three::new(5, 3))), ..request(0, false) };
        let mut core = Core::new(CONFIG, Box::new(FakeExecutor::new(depth, VOCAB)));
        core.scheduler_mut().add(SeqId(0), stuck).unwrap();
        core.scheduler_mut().add(SeqId(1), request(1, true)).unwrap();
        let mut events = Vec::new();
        while core.advance(&mut events) {
            core.scheduler().assert_invariants();
        }
        assert_eq!(core.scheduler().pool().num_in_use(), 0);
        let ends = |id| events.iter().filter(move |e| e.seq == SeqId(id) && e.event.is_terminal());
        let failures: Vec<_> = ends(0).map(|e| e.event.clone()).collect();
        assert_eq!(failures, [Event::Failed(EngineError::Constraint("no token can follow".into()))]);
        assert_eq!(events.iter().filter(|e| e.seq == SeqId(0) && matches!(e.event, Event::Token(_))).count(), 3);
        assert!(ends(1).all(|e| matches!(e.event, Event::Finished(_))) && ends(1).count() == 1);
    }
}
