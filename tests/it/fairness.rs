//! Tenants share the engine: order of admission and of chunks, step by step.

use std::collections::HashMap;

use lima::engine::fake::FakeExecutor;
use lima::engine::{
    Core, Event, Request, SamplingParams, SchedulerConfig, SeqEvent, SeqId, Speculation, Tenant, TokenId,
};

const CONFIG: SchedulerConfig = SchedulerConfig {
    max_num_seqs: 8,
    max_num_batched_tokens: 512,
    max_model_len: 4096,
    num_blocks: 1024,
    enable_prefix_caching: false,
    speculation: Speculation::OFF,
};

/// A core, and what each sequence has been told.
struct Bench {
    core: Core,
    next_id: u64,
    steps: u64,
    tenants: HashMap<SeqId, u64>,
    /// Step of the first token.
    first: HashMap<SeqId, u64>,
    admitted: Vec<u64>,
    finished: usize,
}

impl Bench {
    fn new(config: SchedulerConfig) -> Self {
        let core = Core::new(config, Box::new(FakeExecutor::new(1, 1000)));
        let (tenants, first) = (HashMap::new(), HashMap::new());
        Self { core, next_id: 0, steps: 0, tenants, first, admitted: Vec::new(), finished: 0 }
    }

    fn add(&mut self, tenant: Tenant, prompt: usize, max_tokens: u32) -> SeqId {
        let id = SeqId(self.next_id);
        self.next_id += 1;
        let tokens: Vec<TokenId> = (0..prompt as TokenId).map(|i| (i * 7 + id.0 as TokenId) % 1000).collect();
        let params = SamplingParams { max_tokens, ..SamplingParams::default() };
        self.core.scheduler_mut().add(id, Request { tenant, ..Request::generate(tokens, params) }).unwrap();
        self.tenants.insert(id, tenant.id);
        id
    }

    fn step(&mut self) -> bool {
        let mut events = Vec::new();
        let worked = self.core.advance(&mut events);
        self.steps += u64::from(worked);
        self.core.scheduler().assert_invariants();
        for SeqEvent { seq, event, .. } in events {
            match event {
                Event::Scheduled { .. } => self.admitted.push(self.tenants[&seq]),
                Event::Token(_) => _ = self.first.entry(seq).or_insert(self.steps),
                Event::Finished(_) => self.finished += 1,
                other => panic!("{other:?}"),
            }
        }
        worked
    }

    /// Steps from now until its first token.
    fn until_first(&mut self, id: SeqId) -> u64 {
        let begun = self.steps;
        while !self.first.contains_key(&id) {
            assert!(self.step());
        }
        self.first[&id] - begun
    }
}

fn tenant(id: u64) -> Tenant {
    Tenant { id, weight: 1 }
}

#[test]
fn a_flood_of_long_prompts_does_not_hold_up_another_tenant() {
    let mut bench = Bench::new(CONFIG);
    for _ in 0..60 {
        bench.add(tenant(1), 1000, 4);
    }
    for _ in 0..10 {
        bench.step();
    }
    assert_eq!(bench.core.last_input().num_tokens().div_ceil(64), 8, "alone, a tenant has all of a step");
    // In the middle of a prompt, again and again: the newcomer's goes first, in the small chunks of several tenants.
    for _ in 0..10 {
        let id = bench.add(tenant(2), 100, 4);
        assert_eq!(bench.until_first(id), 2);
        for _ in 0..8 {
            bench.step();
        }
    }
    while bench.step() {}
    assert_eq!(bench.finished, 70);
}

#[test]
fn one_tenant_is_served_in_order_of_arrival() {
    let mut bench = Bench::new(CONFIG);
    let ids: Vec<_> = (0..12).map(|i| bench.add(tenant(5), 30 + 40 * (i % 3), 3)).collect();
    while bench.step() {}
    let firsts: Vec<_> = ids.iter().map(|id| bench.first[id]).collect();
    assert!(firsts.is_sorted(), "{firsts:?}");
}

#[test]
fn those_who_always_want_more_are_served_alike() {
    let mut bench = Bench::new(CONFIG);
    // One asks for much at once, the other for little and often; both for more than there is.
    for _ in 0..30 {
        bench.add(tenant(1), 640, 8);
        for _ in 0..10 {
            bench.add(tenant(2), 64, 1);
        }
    }
    for _ in 0..250 {
        assert!(bench.step());
    }
    let counts = |id: u64| bench.admitted.iter().filter(|&&t| t == id).count();
    let (long, short) = (counts(1) * 640, counts(2) * 64);
    assert!(long.abs_diff(short) < 1500, "{long} and {short} tokens of prompts");
    while bench.step() {}
    assert_eq!(bench.finished, 330);
}

#[test]
fn long_answers_leave_a_place_for_others() {
    let mut bench = Bench::new(SchedulerConfig { num_blocks: 4096, ..CONFIG });
    bench.add(tenant(2), 10, 1);
    while bench.step() {}
    for _ in 0..40 {
        bench.add(tenant(1), 10, 3000);
    }
    for _ in 0..100 {
        bench.step();
    }
    assert_eq!(bench.core.scheduler().num_running(), 7);
    let id = bench.add(tenant(2), 50, 4);
    assert_eq!(bench.until_first(id), 1);
    // Alone, a tenant has all places.
    let mut bench = Bench::new(CONFIG);
    for _ in 0..40 {
        bench.add(tenant(1), 10, 300);
    }
    for _ in 0..20 {
        bench.step();
    }
    assert_eq!(bench.core.scheduler().num_running(), 8);
}
