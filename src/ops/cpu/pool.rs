//! A worker pool whose barrier costs about a microsecond and that is silent when idle.
//!
//! The calling thread is worker 0. Workers spin for a moment after a job, so that the next of a step's
//! couple of hundred jobs finds them awake, then park.

use std::cell::UnsafeCell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{JoinHandle, Thread};
use std::time::{Duration, Instant};

/// How long an idle worker spins before it parks: longer than the gap between two steps.
const SPIN: Duration = Duration::from_micros(200);

/// Keeps what different threads write on cache lines of their own.
#[repr(align(128))]
struct Padded<T>(T);

type Job = *const (dyn Fn(&Worker<'_>) + Sync);

struct Shared {
    /// Counts jobs; a change starts one.
    epoch: Padded<AtomicUsize>,
    /// Workers that have not finished the current job.
    running: Padded<AtomicUsize>,
    barrier_arrived: Padded<AtomicUsize>,
    barrier_generation: Padded<AtomicUsize>,
    asleep: Vec<Padded<AtomicBool>>,
    job: UnsafeCell<Option<Job>>,
    stop: AtomicBool,
    panicked: AtomicBool,
    size: usize,
}

// SAFETY: `job` is written by the owner of the pool only while no worker runs (`running` is 0), and read by
// workers only after the release of `epoch` that follows the write.
unsafe impl Sync for Shared {}
// SAFETY: as above; the pointer is only dereferenced while `Pool::run` keeps its referent alive.
unsafe impl Send for Shared {}

/// Threads that run one closure together.
pub struct Pool {
    shared: Arc<Shared>,
    threads: Vec<(Thread, JoinHandle<()>)>,
}

/// One thread's view of a running job.
pub struct Worker<'a> {
    /// `0..size`; 0 is the thread that called [`Pool::run`].
    pub id: usize,
    /// Number of workers.
    pub size: usize,
    shared: &'a Shared,
}

impl Pool {
    /// A pool of `size` workers, this thread included; at least one.
    pub fn new(size: usize) -> Self {
        let size = size.max(1);
        let shared = Arc::new(Shared {
            epoch: Padded(AtomicUsize::new(0)),
            running: Padded(AtomicUsize::new(0)),
            barrier_arrived: Padded(AtomicUsize::new(0)),
            barrier_generation: Padded(AtomicUsize::new(0)),
            asleep: (0..size).map(|_| Padded(AtomicBool::new(false))).collect(),
            job: UnsafeCell::new(None),
            stop: AtomicBool::new(false),
            panicked: AtomicBool::new(false),
            size,
        });
        let threads = (1..size)
            .map(|id| {
                let shared = shared.clone();
                let handle = std::thread::Builder::new()
                    .name(format!("lima-worker-{id}"))
                    .spawn(move || work(&shared, id))
                    .expect("the system can start a thread");
                (handle.thread().clone(), handle)
            })
            .collect();
        Self { shared, threads }
    }

    /// Number of workers.
    pub fn size(&self) -> usize {
        self.shared.size
    }

    /// Runs `job` once on every worker and returns when all have finished.
    ///
    /// # Panics
    /// If the job panicked on any worker.
    pub fn run<F: Fn(&Worker<'_>) + Sync>(&mut self, job: F) {
        let shared = &*self.shared;
        if shared.size == 1 {
            return job(&Worker { id: 0, size: 1, shared });
        }
        shared.panicked.store(false, Ordering::Relaxed);
        shared.barrier_arrived.0.store(0, Ordering::Relaxed);
        shared.running.0.store(shared.size - 1, Ordering::Relaxed);
        let job: &(dyn Fn(&Worker<'_>) + Sync) = &job;
        // SAFETY: no worker runs now, so nothing else reads `job`; the lifetime is erased, and this function does
        // not return before every worker has finished with it.
        unsafe { *shared.job.get() = Some(std::mem::transmute::<&(dyn Fn(&Worker<'_>) + Sync), Job>(job)) };
        shared.epoch.0.fetch_add(1, Ordering::SeqCst);
        for (id, (thread, _)) in self.threads.iter().enumerate() {
            if shared.asleep[id + 1].0.swap(false, Ordering::SeqCst) {
                thread.unpark();
            }
        }
        let outcome = catch_unwind(AssertUnwindSafe(|| job(&Worker { id: 0, size: shared.size, shared })));
        if outcome.is_err() {
            shared.panicked.store(true, Ordering::Release);
        }
        spin_until(|| shared.running.0.load(Ordering::Acquire) == 0);
        match outcome {
            Err(panic) => resume_unwind(panic),
            Ok(()) if shared.panicked.load(Ordering::Acquire) => panic!("a worker thread panicked"),
            Ok(()) => {}
        }
    }
}

impl Pool {
    /// Calls `f(worker, item)` once for each item, spread over the workers.
    pub fn for_each<T: Send>(&mut self, items: &mut [T], f: impl Fn(usize, &mut T) + Sync) {
        struct Items<T>(*mut T);
        // SAFETY: the loop below gives each index to one worker.
        unsafe impl<T: Send> Sync for Items<T> {}
        impl<T> Items<T> {
            fn at(&self, i: usize) -> *mut T {
                self.0.wrapping_add(i)
            }
        }
        let (base, len) = (Items(items.as_mut_ptr()), items.len());
        let cursor = AtomicUsize::new(0);
        self.run(|worker| {
            worker.each(&cursor, len, 1, |i| {
                // SAFETY: in bounds, and no other worker has index `i`; the caller's borrow outlives the run.
                f(worker.id, unsafe { &mut *base.at(i) });
            });
        });
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.shared.epoch.0.fetch_add(1, Ordering::SeqCst);
        for (thread, handle) in self.threads.drain(..) {
            thread.unpark();
            // A worker never ends by panicking: jobs run under catch_unwind.
            let _ = handle.join();
        }
    }
}

impl Worker<'_> {
    /// Waits until every worker is here; what they wrote before is visible after.
    ///
    /// # Panics
    /// If another worker panicked, so that no one waits for it.
    pub fn barrier(&self) {
        if self.size == 1 {
            return;
        }
        let generation = self.shared.barrier_generation.0.load(Ordering::Acquire);
        if self.shared.barrier_arrived.0.fetch_add(1, Ordering::AcqRel) + 1 == self.size {
            self.shared.barrier_arrived.0.store(0, Ordering::Relaxed);
            self.shared.barrier_generation.0.store(generation.wrapping_add(1), Ordering::Release);
        } else {
            spin_until(|| {
                assert!(!self.shared.panicked.load(Ordering::Relaxed), "another worker panicked");
                self.shared.barrier_generation.0.load(Ordering::Acquire) != generation
            });
        }
    }

    /// Calls `f` with indices below `total`, each given to exactly one worker, `chunk` at a time.
    /// `cursor` starts at 0 and is used for this loop alone.
    #[inline]
    pub fn each(&self, cursor: &AtomicUsize, total: usize, chunk: usize, mut f: impl FnMut(usize)) {
        loop {
            let from = cursor.fetch_add(chunk, Ordering::Relaxed);
            if from >= total {
                return;
            }
            (from..(from + chunk).min(total)).for_each(&mut f);
        }
    }
}

fn work(shared: &Shared, id: usize) {
    let mut seen = 0;
    loop {
        let started = Instant::now();
        let mut spins = 0u32;
        while shared.epoch.0.load(Ordering::Acquire) == seen {
            spins += 1;
            std::hint::spin_loop();
            if spins.is_multiple_of(64) && started.elapsed() > SPIN {
                loop {
                    // Said again before each park: a `run` that was held up before its wake-ups may clear the flag
                    // and wake this worker after the job is long done.
                    shared.asleep[id].0.store(true, Ordering::SeqCst);
                    if shared.epoch.0.load(Ordering::SeqCst) != seen {
                        break;
                    }
                    std::thread::park();
                }
                shared.asleep[id].0.store(false, Ordering::SeqCst);
            }
        }
        seen = shared.epoch.0.load(Ordering::Acquire);
        if shared.stop.load(Ordering::Acquire) {
            return;
        }
        // SAFETY: the epoch changed, so the pool's owner has stored a job and waits for `running` to reach 0.
        let job = unsafe { (*shared.job.get()).map(|job| &*job) };
        if let Some(job) = job
            && catch_unwind(AssertUnwindSafe(|| job(&Worker { id, size: shared.size, shared }))).is_err()
        {
            shared.panicked.store(true, Ordering::Release);
        }
        shared.running.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Spins, then yields, so that a descheduled worker can come back on a busy machine.
#[inline]
fn spin_until(mut done: impl FnMut() -> bool) {
    let mut spins = 0u32;
    while !done() {
        spins += 1;
        if spins < 2_000 {
            std::hint::spin_loop();
        } else {
            std::thread::yield_now();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_index_once_and_barriers_order_phases() {
        for size in [1, 2, 3, 5] {
            let mut pool = Pool::new(size);
            for round in 0..200 {
                let hits: Vec<AtomicUsize> = (0..97).map(|_| AtomicUsize::new(0)).collect();
                let (first, second) = (AtomicUsize::new(0), AtomicUsize::new(0));
                pool.run(|w| {
                    w.each(&first, hits.len(), 1 + round % 7, |i| _ = hits[i].fetch_add(1, Ordering::Relaxed));
                    w.barrier();
                    assert!(hits.iter().all(|h| h.load(Ordering::Relaxed) >= 1));
                    w.barrier();
                    w.each(&second, hits.len(), 3, |i| _ = hits[i].fetch_add(1, Ordering::Relaxed));
                });
                assert!(hits.iter().all(|h| h.load(Ordering::Relaxed) == 2));
            }
        }
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_survives() {
        let mut pool = Pool::new(3);
        for bad in 0..3 {
            let outcome = catch_unwind(AssertUnwindSafe(|| {
                pool.run(|w| {
                    assert!(w.id != bad, "worker {bad} fails");
                    w.barrier();
                })
            }));
            assert!(outcome.is_err());
            let count = AtomicUsize::new(0);
            pool.run(|w| {
                w.barrier();
                count.fetch_add(1, Ordering::Relaxed);
            });
            assert_eq!(count.load(Ordering::Relaxed), 3);
        }
    }

    #[test]
    fn a_late_wake_up_is_not_taken_for_the_next_one() {
        let mut pool = Pool::new(2);
        for _ in 0..20 {
            let asleep = |pool: &Pool| pool.shared.asleep[1].0.load(Ordering::SeqCst);
            while !asleep(&pool) {
                std::thread::yield_now();
            }
            // What a `run` does that is held up until its job is done and the worker asleep again.
            pool.shared.asleep[1].0.store(false, Ordering::SeqCst);
            pool.threads[0].0.unpark();
            std::thread::sleep(SPIN);
            let count = AtomicUsize::new(0);
            pool.run(|_| _ = count.fetch_add(1, Ordering::Relaxed));
            assert_eq!(count.load(Ordering::Relaxed), 2);
        }
    }

    #[test]
    fn sleeping_workers_wake() {
        let mut pool = Pool::new(2);
        for _ in 0..3 {
            std::thread::sleep(SPIN * 20);
            let count = AtomicUsize::new(0);
            pool.run(|_| _ = count.fetch_add(1, Ordering::Relaxed));
            assert_eq!(count.load(Ordering::Relaxed), 2);
        }
    }
}
