//! Failures reach exactly the sequences they concern.

use std::collections::BTreeSet;

use lima::engine::fake::{FakeControl, FakeExecutor, Fault, oracle};
use lima::engine::{Core, EngineError, Event, Request, SchedulerConfig, SeqId, Speculation};

use crate::support::engine::counting;

const VOCAB: u32 = 500;
const CONFIG: SchedulerConfig = SchedulerConfig {
    max_num_seqs: 4,
    max_num_batched_tokens: 64,
    max_model_len: 512,
    num_blocks: 32,
    enable_prefix_caching: true,
    speculation: Speculation::OFF,
};

/// Runs these requests with a fault at a step; returns which failed. The others must be right.
fn failed(depth: usize, requests: &[Request], step: u64, fault: Fault) -> BTreeSet<u64> {
    let executor = FakeExecutor::new(depth, VOCAB);
    let control: FakeControl = executor.control();
    control.inject(step, fault);
    let mut core = Core::new(CONFIG, Box::new(executor));
    for (id, request) in requests.iter().enumerate() {
        core.scheduler_mut().add(SeqId(id as u64), request.clone()).unwrap();
    }
    let mut events = Vec::new();
    while core.advance(&mut events) {
        core.scheduler().assert_invariants();
    }
    assert_eq!(core.scheduler().pool().num_in_use(), 0);
    let mut failed = BTreeSet::new();
    for (id, request) in requests.iter().enumerate() {
        let mine = events.iter().filter(|e| e.seq.0 == id as u64);
        let mut tokens = Vec::new();
        let mut ends = 0;
        for event in mine {
            match &event.event {
                Event::Token(sampled) => tokens.push(sampled.token),
                Event::Finished(reason) => {
                    ends += 1;
                    assert_eq!((tokens.clone(), *reason), oracle(request, CONFIG.max_len(), VOCAB));
                }
                Event::Failed(EngineError::Step(_) | EngineError::Row(_)) => {
                    ends += 1;
                    failed.insert(id as u64);
                }
                Event::Failed(error) => panic!("{error}"),
                Event::Scheduled { .. } | Event::PromptLogprobs(_) | Event::Pooled(_) => {}
            }
        }
        assert_eq!(ends, 1, "exactly one end");
    }
    failed
}

#[test]
fn a_failed_step_fails_its_sequences_and_no_others() {
    // The first two fill step 0; the third is first computed in step 1.
    let requests = [counting(0, 32, 1), counting(100, 32, 8), counting(200, 40, 8)];
    for depth in [1, 2] {
        for fault in [Fault::Forward, Fault::Sample, Fault::Collect, Fault::Panic] {
            assert_eq!(failed(depth, &requests, 0, fault), BTreeSet::from([0, 1]), "{fault:?} at depth {depth}");
        }
        for fault in [Fault::Forward, Fault::Sample, Fault::Collect, Fault::Panic] {
            assert_eq!(failed(depth, &requests, 1, fault), BTreeSet::from([1, 2]), "{fault:?} at depth {depth}");
        }
        assert_eq!(failed(depth, &requests, 0, Fault::Row(1)), BTreeSet::from([1]));
        assert_eq!(failed(depth, &requests, 1, Fault::Row(1)), BTreeSet::from([2]));
    }
}

#[test]
fn blocks_of_a_failed_step_are_not_cached() {
    for depth in [1, 2] {
        let executor = FakeExecutor::new(depth, VOCAB);
        executor.control().inject(0, Fault::Collect);
        let mut core = Core::new(CONFIG, Box::new(executor));
        core.scheduler_mut().add(SeqId(0), counting(0, 60, 4)).unwrap();
        let mut events = Vec::new();
        while core.advance(&mut events) {}
        assert_eq!(core.scheduler().pool().num_cached_free(), 0);
        core.scheduler_mut().add(SeqId(1), counting(0, 60, 4)).unwrap();
        while core.advance(&mut events) {}
        assert!(events.iter().any(|e| e.seq == SeqId(1) && e.event == Event::Scheduled { cached_tokens: 0 }));
        assert_eq!(core.scheduler().pool().num_cached_free(), 1);
    }
}
