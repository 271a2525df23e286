//! A rank that fails, panics or stays away ends everything with an error, and nobody waits for ever.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use lima::engine::{EngineError, Event, EventStream, SubmitError, spawn};
use lima::model::weights::Checkpoint;
use lima::ops::quant::DType;
use lima::parallel::{CommError, Communicator, Local};

use super::{greedy, load, setting};
use crate::support::goldens;

/// What befalls a rank at one of its calls.
enum Fate {
    Fails,
    Panics,
    /// Until the other end of the channel goes.
    Stalls(Mutex<Receiver<()>>),
}

/// A rank's place, with a fate at its call number `at`.
struct Doomed {
    inner: Arc<dyn Communicator>,
    calls: AtomicUsize,
    at: usize,
    fate: Fate,
}

impl Doomed {
    fn count(&self) -> Result<(), CommError> {
        if self.calls.fetch_add(1, Ordering::SeqCst) != self.at {
            return Ok(());
        }
        match &self.fate {
            Fate::Fails => Err(CommError::Failed { rank: self.inner.rank(), reason: "out of memory".into() }),
            Fate::Panics => panic!("a bug"),
            Fate::Stalls(until) => {
                let _ = until.lock().unwrap_or_else(PoisonError::into_inner).recv();
                Ok(())
            }
        }
    }
}

impl Communicator for Doomed {
    fn rank(&self) -> usize {
        self.inner.rank()
    }
    fn world_size(&self) -> usize {
        self.inner.world_size()
    }
    fn all_reduce(&self, values: &mut [f32]) -> Result<(), CommError> {
        self.count()?;
        self.inner.all_reduce(values)
    }
    fn all_gather(&self, values: &mut [f32]) -> Result<(), CommError> {
        self.count()?;
        self.inner.all_gather(values)
    }
    fn reduce_scatter(&self, values: &mut [f32]) -> Result<(), CommError> {
        self.inner.reduce_scatter(values)
    }
    fn broadcast(&self, root: usize, values: &mut [f32]) -> Result<(), CommError> {
        self.inner.broadcast(root, values)
    }
    fn barrier(&self) -> Result<(), CommError> {
        self.inner.barrier()
    }
    fn abort(&self, reason: &str) {
        self.inner.abort(reason);
    }
}

/// The last event of a stream, which ends.
fn end(mut stream: EventStream) -> Event {
    loop {
        let event = stream.blocking_recv().unwrap();
        if event.is_terminal() {
            return event;
        }
    }
}

/// Three ranks, one of which is doomed in its second step or later; `deadline` is how long others wait.
fn ranks(doomed: usize, at: usize, fate: Fate, deadline: Option<Duration>) -> Vec<Arc<dyn Communicator>> {
    let mut fate = Some(fate);
    let place = |(rank, place): (usize, Local)| -> Arc<dyn Communicator> {
        let inner: Arc<dyn Communicator> = Arc::new(place);
        match fate.take_if(|_| rank == doomed) {
            Some(fate) => Arc::new(Doomed { inner, calls: AtomicUsize::new(0), at, fate }),
            None => inner,
        }
    };
    Local::group(3, deadline).into_iter().enumerate().map(place).collect()
}

fn stall() -> (Fate, Sender<()>) {
    let (sender, receiver) = channel();
    (Fate::Stalls(Mutex::new(receiver)), sender)
}

/// Requests that run and requests that wait all end with the reason; nothing new is taken; the engine's thread ends.
#[test]
fn every_request_ends_with_the_reason() {
    let checkpoint = Checkpoint::open(goldens::path("gqa")).unwrap();
    let deadline = Duration::from_millis(300);
    let (stalls, wakes) = stall();
    for (doomed, at, fate, deadline, reason) in [
        (1, 0, Fate::Panics, None, "rank 1 panicked: a bug"),
        (2, 9, Fate::Panics, None, "rank 2 panicked: a bug"),
        (0, 13, Fate::Panics, None, "rank 0 panicked: a bug"),
        (2, 6, Fate::Fails, None, "rank 2 failed: out of memory"),
        (0, 8, Fate::Fails, None, "rank 0 failed: out of memory"),
        (1, 10, stalls, Some(deadline), "rank 1 has not answered within 300ms"),
    ] {
        // Sequences of 20 tokens in five blocks: three run at once, the others wait.
        let setting = setting(DType::F32, 5);
        let (executor, standing) = load(&checkpoint, &setting, ranks(doomed, at, fate, deadline)).start();
        let (handle, thread) = spawn(setting.config(), executor);
        let requests: Vec<_> = (0..8).map(|i| greedy(&[3 + i, 5, 7, 9], 40)).collect();
        let streams = handle.submit(requests).unwrap();
        for stream in streams {
            match end(stream) {
                Event::Failed(EngineError::Step(why)) => assert!(why.contains(reason), "{why:?} is not {reason:?}"),
                other => panic!("{other:?} instead of {reason:?}"),
            }
        }
        thread.join().unwrap();
        assert!(standing.lost().unwrap().contains(reason));
        assert!(handle.is_stopped());
        assert!(matches!(handle.submit(vec![greedy(&[1, 2], 1)]), Err(SubmitError::Stopped)));
    }
    drop(wakes);
}

/// If it is the engine's own thread that does not come back, others tell.
#[test]
fn a_first_rank_that_stalls_is_told_by_others() {
    let checkpoint = Checkpoint::open(goldens::path("gqa")).unwrap();
    let (stalls, wakes) = stall();
    let setting = setting(DType::F32, 16);
    let places = ranks(0, 7, stalls, Some(Duration::from_millis(300)));
    let (executor, standing) = load(&checkpoint, &setting, places).start();
    let (handle, thread) = spawn(setting.config(), executor);
    let streams = handle.submit(vec![greedy(&[3, 5, 7], 40)]).unwrap();
    assert!(standing.wait().contains("rank 0 has not answered within 300ms"));
    // It comes back after all, and ends.
    drop(wakes);
    for stream in streams {
        assert!(matches!(end(stream), Event::Failed(EngineError::Step(_))));
    }
    thread.join().unwrap();
}
