//! Adapters in a running engine: the prefix cache, unloading under running sequences, slots and memory.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use lima::engine::{
    AdapterError, AdapterLease, AdapterWeights, BLOCK_SIZE, DraftCost, Event, Request, SamplingParams, Speculation,
    TokenId,
};
use lima::model::weights::Checkpoint;
use lima::ops::cpu::level::Level;
use lima::ops::quant::DType;
use lima::runner::adapters::load;

use super::folder;
use crate::support::engine::{Output, Running, Setting};
use crate::support::goldens;

/// Drafts whatever the lookup finds.
const EAGER: Speculation = Speculation { max_tokens: 4, cost: DraftCost::Percent(0) };

const THREE: [&str; 3] = ["gqa-qv", "gqa-all", "gqa-patterns"];

fn setting(dtype: DType) -> Setting {
    Setting {
        kv: None,
        dtype,
        level: Level::best(),
        threads: 1,
        max_num_batched_tokens: 512,
        num_blocks: 64,
        prefix_caching: true,
        speculation: Speculation::OFF,
    }
}

fn start(setting: Setting, slots: usize) -> Running {
    let checkpoint = Checkpoint::open(goldens::path("gqa")).unwrap();
    let mut executor = setting.load(&checkpoint);
    executor.enable_adapters(slots, 32);
    Running::with(executor, setting)
}

fn weights(name: &str) -> Arc<AdapterWeights> {
    let checkpoint = Checkpoint::open(goldens::path("gqa")).unwrap();
    load(&folder(name), checkpoint.config(), 32).unwrap()
}

fn ask(engine: &Running, prompt: &[TokenId], adapter: Option<&AdapterLease>) -> (Output, usize) {
    engine.ask(&[make(prompt, 12, adapter)]).remove(0)
}

fn make(prompt: &[TokenId], max_tokens: u32, adapter: Option<&AdapterLease>) -> Request {
    let params =
        SamplingParams { temperature: 0.8, seed: 5, max_tokens, logprobs: Some(1), ..SamplingParams::default() };
    Request { adapter: adapter.cloned(), ..Request::generate(prompt, params) }
}

fn prompt(i: usize, len: usize) -> Vec<TokenId> {
    (0..len).map(|k| (3 + (i * 37 + k * k * 5 + k) % 90) as TokenId).collect()
}

/// Waits for what the engine thread does on its own.
fn until(what: &str, condition: impl Fn() -> bool) {
    for _ in 0..2000 {
        if condition() {
            return;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    panic!("it never came to {what}");
}

fn loaded(engine: &Running) -> (usize, usize) {
    let stats = engine.handle.stats();
    (stats.adapters.load(Relaxed), stats.adapter_bytes.load(Relaxed))
}

/// Alone, in a crowd, in chunks, from the cache, after preemption: the same bits.
#[test]
fn answers_do_not_depend_on_neighbours() {
    for dtype in [DType::F32, DType::Q4_1] {
        let base = setting(dtype);
        let engine = start(Setting { prefix_caching: false, ..base }, 3);
        let leases = THREE.map(|name| engine.handle.load_adapter(weights(name)).unwrap());
        let who = |i: usize, leases: &[AdapterLease; 3]| leases.get(i % 4).cloned();
        let requests = |leases: &[AdapterLease; 3]| -> Vec<Request> {
            (0..12).map(|i| make(&prompt(i, 33 + 7 * i % 50), 70, who(i, leases).as_ref())).collect()
        };
        let alone: Vec<Output> = requests(&leases).into_iter().map(|r| engine.ask(&[r]).remove(0).0).collect();
        assert!(alone.iter().enumerate().all(|(i, a)| alone[..i].iter().all(|b| b.tokens != a.tokens)));
        let few = Setting { num_blocks: 10, prefix_caching: false, ..base };
        for (how, setting) in [
            ("together", Setting { threads: 2, ..base }),
            ("with drafts", Setting { speculation: EAGER, ..base }),
            ("in chunks", Setting { max_num_batched_tokens: 16, threads: 2, ..base }),
            ("preempted", few),
        ] {
            let engine = start(setting, 3);
            // Other slots than before.
            let mut leases = THREE.map(|_| None);
            for i in [2, 0, 1] {
                leases[i] = Some(engine.handle.load_adapter(weights(THREE[i])).unwrap());
            }
            let leases = leases.map(Option::unwrap);
            for round in 0..2 {
                for (i, (output, _)) in engine.ask(&requests(&leases)).into_iter().enumerate() {
                    assert!(output == alone[i], "request {i} {how}, {dtype:?}, round {round}");
                }
            }
            assert_eq!(engine.preemptions() > 0, how == "preempted", "{how}");
        }
    }
}

/// Blocks computed with one adapter are found by no other, by the base, or by what is loaded in its place.
#[test]
fn the_prefix_cache_keeps_adapters_apart() {
    let prompt = prompt(1, 97);
    let reference = |name: Option<&str>| {
        let engine = start(Setting { prefix_caching: false, ..setting(DType::F32) }, 1);
        let lease = name.map(|name| engine.handle.load_adapter(weights(name)).unwrap());
        ask(&engine, &prompt, lease.as_ref()).0
    };
    let [base, qv, all] = [reference(None), reference(Some("gqa-qv")), reference(Some("gqa-all"))];
    assert!(base.tokens != qv.tokens && qv.tokens != all.tokens && base.tokens != all.tokens);

    let engine = start(setting(DType::F32), 1);
    assert_eq!(ask(&engine, &prompt, None), (base.clone(), 0));
    assert_eq!(ask(&engine, &prompt, None), (base.clone(), 3 * BLOCK_SIZE));
    // The one slot, filled again and again: by another adapter, by the same one.
    let mut before = None;
    for (name, expected) in [("gqa-qv", &qv), ("gqa-all", &all), ("gqa-all", &all), ("gqa-qv", &qv)] {
        let lease = engine.handle.load_adapter(weights(name)).unwrap();
        assert_eq!(lease.slot().index, 0);
        assert_ne!(before.replace(lease.slot()), Some(lease.slot()));
        assert_eq!(ask(&engine, &prompt, Some(&lease)), (expected.clone(), 0), "{name}");
        assert_eq!(ask(&engine, &prompt, Some(&lease)), (expected.clone(), 3 * BLOCK_SIZE), "{name}");
        drop(lease);
        assert_eq!(ask(&engine, &prompt, None), (base.clone(), 3 * BLOCK_SIZE));
    }
}

/// A sequence keeps its adapter; the memory goes when the last one ends.
#[test]
fn an_adapter_in_use_is_not_unloaded() {
    let engine = start(setting(DType::F32), 1);
    let lease = engine.handle.load_adapter(weights("gqa-all")).unwrap();
    let long = make(&prompt(2, 40), 100, Some(&lease));
    let undisturbed = engine.ask(std::slice::from_ref(&long)).remove(0).0;

    let mut streams = engine.handle.submit(vec![long.clone(), long]).unwrap();
    drop(lease);
    let mut tokens = Vec::new();
    let mut second = streams.pop().unwrap();
    let mut first = streams.pop().unwrap();
    while let Some(event) = first.blocking_recv() {
        match event {
            Event::Token(t) => tokens.push(t.token),
            Event::Failed(e) => panic!("{e}"),
            _ => {}
        }
    }
    assert_eq!(tokens, undisturbed.tokens);
    while second.blocking_recv().is_some() {}
    until("an empty executor", || loaded(&engine) == (0, 0));
    // The same when the client goes away.
    let lease = engine.handle.load_adapter(weights("gqa-qv")).unwrap();
    let streams = engine.handle.submit(vec![make(&prompt(2, 40), 100, Some(&lease))]).unwrap();
    drop(lease);
    drop(streams);
    until("an empty executor", || loaded(&engine) == (0, 0));
    engine.handle.load_adapter(weights("gqa-qv")).unwrap();
}

#[test]
fn a_hundred_loads_leave_nothing_behind() {
    let engine = start(setting(DType::F32), 2);
    let bytes = |name: &str| {
        let lease = engine.handle.load_adapter(weights(name)).unwrap();
        let bytes = loaded(&engine).1;
        drop(lease);
        until("an empty executor", || loaded(&engine) == (0, 0));
        bytes
    };
    let [kept_bytes, other_bytes] = ["gqa-qv", "gqa-all"].map(bytes);
    // Two layers, q and v: A and B of rank 8, A padded to 16 ranks.
    assert_eq!(kept_bytes, 2 * 4 * (16 * 64 + 8 * (64 + 32)));
    let kept = engine.handle.load_adapter(weights("gqa-qv")).unwrap();
    let prompt = prompt(3, 20);
    let expected = ask(&engine, &prompt, Some(&kept)).0;
    for round in 0..100 {
        let lease = engine.handle.load_adapter(weights("gqa-all")).unwrap();
        assert_eq!(loaded(&engine), (2, kept_bytes + other_bytes), "round {round}");
        assert_eq!(engine.handle.load_adapter(weights("gqa-qv")).unwrap_err(), AdapterError::Full(2));
        ask(&engine, &prompt, Some(&lease));
        drop(lease);
        // What an executor refuses takes no slot either.
        let refused = engine.handle.load_adapter(Arc::new("no adapter")).unwrap_err();
        assert!(matches!(refused, AdapterError::Executor(_)), "{refused}");
    }
    until("one adapter", || loaded(&engine) == (1, kept_bytes));
    assert_eq!(ask(&engine, &prompt, Some(&kept)).0, expected);
    drop(kept);
    until("an empty executor", || loaded(&engine) == (0, 0));
}

/// Without room for adapters, and after the end.
#[test]
fn refusals() {
    let checkpoint = Checkpoint::open(goldens::path("gqa")).unwrap();
    let none = Running::start(&checkpoint, setting(DType::F32));
    assert_eq!(none.handle.load_adapter(weights("gqa-qv")).unwrap_err(), AdapterError::Full(0));
    let engine = start(setting(DType::F32), 1);
    let handle = engine.handle.clone();
    drop(engine);
    assert_eq!(handle.load_adapter(weights("gqa-qv")).unwrap_err(), AdapterError::Stopped);
    assert!(load(Path::new("/nonexistent"), checkpoint.config(), 8).is_err());
}
