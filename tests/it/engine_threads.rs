//! The engine on its thread, behind its handle.

use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use lima::engine::fake::{FakeControl, FakeExecutor, Fault, oracle};
use lima::engine::{
    EngineConfig, EngineError, EngineHandle, EngineThread, Event, EventStream, FinishReason, Request, Speculation,
    SubmitError, TokenId, spawn,
};

use crate::support::engine::counting;

const VOCAB: u32 = 1000;

fn config() -> EngineConfig {
    EngineConfig {
        max_num_seqs: 64,
        max_num_batched_tokens: 256,
        max_model_len: 512,
        num_blocks: 1024,
        enable_prefix_caching: true,
        speculation: Speculation::default(),
        max_queued_requests: 1000,
        max_queued_tokens: 1_000_000,
    }
}

fn start(config: EngineConfig, depth: usize) -> (EngineHandle, EngineThread, FakeControl) {
    let executor = FakeExecutor::new(depth, VOCAB);
    let control = executor.control();
    let (handle, thread) = spawn(config, Box::new(executor));
    (handle, thread, control)
}

fn submit(handle: &EngineHandle, request: Request) -> EventStream {
    handle.submit(vec![request]).unwrap().pop().unwrap()
}

/// Reads to the end: the tokens and the last event.
fn read(stream: &mut EventStream) -> (Vec<TokenId>, Event) {
    let mut tokens = Vec::new();
    while let Some(event) = stream.blocking_recv() {
        match event {
            Event::Token(sampled) => tokens.push(sampled.token),
            Event::Scheduled { .. } => {}
            end => {
                assert!(stream.blocking_recv().is_none(), "nothing follows the end");
                return (tokens, end);
            }
        }
    }
    panic!("the stream had no end");
}

fn assert_right(stream: &mut EventStream, request: &Request) {
    let (tokens, reason) = oracle(request, config().max_len(), VOCAB);
    assert_eq!(read(stream), (tokens, Event::Finished(reason)));
}

/// Waits until the engine is as it should be. Fails after a minute.
fn eventually(what: &str, condition: impl Fn() -> bool) {
    for _ in 0..60_000 {
        if condition() {
            return;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    panic!("never: {what}");
}

fn stop(handle: EngineHandle, thread: EngineThread) {
    handle.shutdown();
    thread.join().unwrap();
    assert!(handle.is_stopped());
    let stats = handle.stats();
    assert_eq!(stats.blocks_in_use.load(Relaxed), 0);
    assert_eq!((stats.running.load(Relaxed), stats.waiting()), (0, 0));
    assert_eq!(stats.queued_prompt_tokens.load(Relaxed), 0);
    let ended = [&stats.finished_stop, &stats.finished_length, &stats.finished_aborted, &stats.finished_failed];
    assert_eq!(ended.iter().map(|c| c.load(Relaxed)).sum::<u64>(), stats.accepted.load(Relaxed), "one end each");
}

#[test]
fn many_at_once_are_all_right() {
    for depth in [1, 2] {
        // A pool of an eighth: they preempt each other.
        let (handle, thread, _) = start(EngineConfig { num_blocks: 128, ..config() }, depth);
        let requests: Vec<_> = (0..64).map(|i| counting(i % 5, 1 + i * 37 % 300, 1 + i * 53 % 200)).collect();
        let readers: Vec<_> = requests
            .into_iter()
            .map(|request| {
                let handle = handle.clone();
                std::thread::spawn(move || assert_right(&mut submit(&handle, request.clone()), &request))
            })
            .collect();
        for reader in readers {
            reader.join().unwrap();
        }
        assert!(handle.stats().prefix_cache_hits.load(Relaxed) > 0);
        stop(handle, thread);
    }
}

#[test]
fn decoding_takes_one_forward_a_token_for_all() {
    for depth in [1, 2] {
        let (handle, thread, control) = start(EngineConfig { max_num_batched_tokens: 64 * 8, ..config() }, depth);
        control.hold();
        let requests: Vec<_> = (0..64).map(|i| counting(i, 8, 50)).collect();
        let mut streams = handle.submit(requests.clone()).unwrap();
        control.open();
        for (stream, request) in streams.iter_mut().zip(&requests) {
            assert_right(stream, request);
        }
        assert_eq!((control.forwards(), control.rows(), control.max_rows()), (50, 50 * 64, 64));
        stop(handle, thread);
    }
}

#[test]
fn a_late_short_request_overtakes_a_long_one() {
    for depth in [1, 2] {
        let (handle, thread, control) = start(config(), depth);
        control.hold();
        let long = counting(0, 10, 400);
        let short = counting(50, 10, 3);
        let mut long_stream = submit(&handle, long.clone());
        control.permit(100);
        eventually("the long one has run a while", || control.forwards() == 100);
        let mut short_stream = submit(&handle, short.clone());
        control.permit(10);
        assert_right(&mut short_stream, &short);
        let mut early = 0;
        while let Some(event) = long_stream.try_recv() {
            assert!(!event.is_terminal());
            early += usize::from(matches!(event, Event::Token(_)));
        }
        assert!(early < 111);
        control.open();
        let (rest, end) = read(&mut long_stream);
        assert_eq!((early + rest.len(), end), (400, Event::Finished(FinishReason::Length)));
        stop(handle, thread);
    }
}

#[test]
fn dropped_readers_free_their_blocks() {
    let (handle, thread, control) = start(EngineConfig { max_num_seqs: 2, ..config() }, 2);
    let stats = handle.stats().clone();
    // One decoding, one in the middle of its prefill, one waiting.
    control.hold();
    let decoding = submit(&handle, counting(0, 10, 500));
    control.permit(5);
    eventually("decoding", || stats.generation_tokens.load(Relaxed) >= 3);
    let prefilling = submit(&handle, counting(0, 500, 5));
    let waiting = submit(&handle, counting(0, 10, 5));
    control.permit(1);
    eventually("prefilling", || stats.running.load(Relaxed) == 2 && stats.waiting() == 1);
    drop((decoding, prefilling, waiting));
    control.permit(2);
    eventually("all is free", || stats.blocks_in_use.load(Relaxed) == 0 && stats.running.load(Relaxed) == 0);
    assert_eq!((stats.waiting(), stats.queued_prompt_tokens.load(Relaxed)), (0, 0));
    assert_eq!(stats.finished_aborted.load(Relaxed), 3);
    control.open();
    assert_right(&mut submit(&handle, counting(0, 20, 20)), &counting(0, 20, 20));
    stop(handle, thread);
}

#[test]
fn five_hundred_requests_leave_nothing_behind() {
    for depth in [1, 2] {
        let (handle, thread, _) = start(EngineConfig { num_blocks: 200, ..config() }, depth);
        let readers: Vec<_> = (0..500u32)
            .map(|i| {
                let request = counting(i % 7, 1 + i * 31 % 200, 1 + i * 17 % 90);
                let mut stream = submit(&handle, request.clone());
                move || {
                    if i % 5 > 0 {
                        return assert_right(&mut stream, &request);
                    }
                    for _ in 0..i % 4 {
                        stream.blocking_recv();
                    }
                }
            })
            .collect();
        for mut read in readers {
            read();
        }
        let stats = handle.stats();
        eventually("no block is in use", || stats.running.load(Relaxed) == 0 && stats.waiting() == 0);
        eventually("no block is in use", || stats.blocks_in_use.load(Relaxed) == 0);
        assert_eq!(stats.blocks_free.load(Relaxed), 200);
        stop(handle, thread);
    }
}

#[test]
fn the_door_refuses_what_cannot_run() {
    let (handle, thread, control) = start(
        EngineConfig { num_blocks: 8, max_num_seqs: 1, max_queued_requests: 2, max_queued_tokens: 50, ..config() },
        1,
    );
    let refuse = |request| handle.submit(vec![request]).err().unwrap();
    assert_eq!(refuse(counting(0, 0, 1)), SubmitError::EmptyPrompt);
    assert_eq!(refuse(counting(0, 256, 1)), SubmitError::TooLong { prompt: 256, limit: 256 });
    // One bad choice refuses all.
    assert!(handle.submit(vec![counting(0, 3, 1), counting(0, 256, 1)]).is_err());
    assert_eq!((handle.stats().waiting(), handle.stats().accepted.load(Relaxed)), (0, 0));

    control.hold();
    let mut running = submit(&handle, counting(0, 255, 9));
    eventually("it runs", || handle.stats().waiting() == 0);
    let mut first = submit(&handle, counting(0, 10, 2));
    assert!(matches!(refuse(counting(0, 41, 1)), SubmitError::QueueFull { queued_requests: 1, queued_tokens: 10 }));
    assert!(matches!(handle.submit(vec![counting(0, 1, 1); 2]), Err(SubmitError::QueueFull { .. })));
    let mut second = submit(&handle, counting(0, 40, 2));
    assert!(matches!(refuse(counting(0, 1, 1)), SubmitError::QueueFull { queued_requests: 2, queued_tokens: 50 }));
    control.open();
    // The prompt fills the pool but for one token.
    assert_eq!(read(&mut running).0.len(), 1);
    assert_right(&mut first, &counting(0, 10, 2));
    assert_right(&mut second, &counting(0, 40, 2));
    stop(handle, thread);
}

#[test]
fn shutdown_finishes_what_was_accepted() {
    let (handle, thread, control) = start(config(), 2);
    control.hold();
    let mut stream = submit(&handle, counting(0, 10, 30));
    handle.shutdown();
    assert_eq!(handle.submit(vec![counting(0, 1, 1)]).err(), Some(SubmitError::ShuttingDown));
    control.open();
    assert_right(&mut stream, &counting(0, 10, 30));
    thread.join().unwrap();
    assert_eq!(handle.submit(vec![counting(0, 1, 1)]).err(), Some(SubmitError::Stopped));
}

#[test]
fn abort_all_ends_every_stream() {
    let (handle, thread, control) = start(EngineConfig { max_num_seqs: 1, ..config() }, 2);
    control.hold();
    let mut streams = handle.submit(vec![counting(0, 10, 30), counting(0, 10, 30)]).unwrap();
    handle.abort_all();
    control.open();
    for stream in &mut streams {
        assert_eq!(read(stream).1, Event::Failed(EngineError::Aborted));
    }
    stop(handle, thread);
}

#[test]
fn a_panicking_step_fails_its_sequences_only() {
    let (handle, thread, control) = start(config(), 2);
    control.inject(0, Fault::Panic);
    let message = "the executor panicked: injected into forward".to_owned();
    assert_eq!(read(&mut submit(&handle, counting(0, 10, 5))).1, Event::Failed(EngineError::Step(message)));
    assert_right(&mut submit(&handle, counting(0, 10, 5)), &counting(0, 10, 5));
    assert_eq!(handle.stats().step_failures.load(Relaxed), 1);
    stop(handle, thread);
}

#[test]
fn a_stalled_step_shows() {
    let (handle, thread, control) = start(config(), 1);
    control.hold();
    let mut stream = submit(&handle, counting(0, 10, 5));
    eventually("stalled", || handle.stats().stalled_for() > Duration::from_millis(5));
    control.open();
    read(&mut stream);
    eventually("idle", || handle.stats().stalled_for() == Duration::ZERO);
    stop(handle, thread);
}

#[tokio::test]
async fn streams_are_read_asynchronously() {
    let (handle, thread, _) = start(config(), 2);
    let mut stream = submit(&handle, counting(0, 40, 5));
    let mut tokens = Vec::new();
    assert_eq!(stream.recv().await, Some(Event::Scheduled { cached_tokens: 0 }));
    while let Some(Event::Token(sampled)) = stream.recv().await {
        tokens.push(sampled.token);
    }
    assert_eq!(tokens, oracle(&counting(0, 40, 5), 512, VOCAB).0);
    assert_eq!(stream.recv().await, None);
    stop(handle, thread);
}
