//! What the machine can do at most, beside which the kernels' rates are read:
//!
//! `cargo bench --bench limits -- [-t THREADS] [-r 5]`
//!
//! 8-bit and f32 multiply-adds on registers, reads of a buffer no cache holds, and the pool's barrier; for one thread
//! and for all, the best of `-r` runs. Wall clock, and (in parentheses) by the threads' own CPU time, which a busy
//! machine does not take from. `LIMA_CPU_LEVEL` as for `lima`.

use std::hint::black_box;
use std::time::Instant;

use lima::ops::cpu::level::Level;
use lima::ops::cpu::limits::{self, DOT_PRODUCTS, MULTIPLY_ADDS};
use lima::ops::cpu::pool::Pool;

/// Floats that no cache holds.
const WORKING_SET: usize = 64 << 20;
const ROUNDS: usize = 20_000_000;
const BARRIERS: usize = 100_000;

/// Seconds this thread has been running; `None` where the system does not say.
fn cpu_time() -> Option<f64> {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").ok()?;
    stat.split_whitespace().next()?.parse::<f64>().ok().map(|nanoseconds| nanoseconds / 1e9)
}

/// The greatest rates by wall clock and by CPU time of `amount` of work on each of `threads`.
fn rate(threads: usize, runs: usize, amount: f64, work: impl Fn(usize) + Sync) -> (f64, f64) {
    let mut best = (0f64, 0f64);
    for _ in 0..runs {
        let started = Instant::now();
        let by_cpu: f64 = std::thread::scope(|scope| {
            let spawn = |i: usize| {
                let work = &work;
                scope.spawn(move || {
                    let before = cpu_time();
                    work(i);
                    before.zip(cpu_time()).map_or(0.0, |(from, to)| amount / (to - from))
                })
            };
            let handles: Vec<_> = (0..threads).map(spawn).collect();
            handles.into_iter().map(|handle| handle.join().expect("the work does not panic")).sum()
        });
        let by_clock = amount * threads as f64 / started.elapsed().as_secs_f64();
        best = (best.0.max(by_clock), best.1.max(by_cpu));
    }
    best
}

fn main() {
    let mut args = std::env::args().skip(1).filter(|a| a != "--bench");
    let (mut threads, mut runs) = (std::thread::available_parallelism().map_or(1, |n| n.get()), 5);
    while let Some(arg) = args.next() {
        let number = args.next().and_then(|v| v.parse::<usize>().ok()).expect("a number after the flag");
        match arg.as_str() {
            "-t" => threads = number,
            "-r" => runs = number,
            _ => panic!("-t THREADS or -r RUNS, not {arg}"),
        }
    }
    let level = Level::from_env().expect("LIMA_CPU_LEVEL names a level of this machine");
    let numbers: Vec<f32> = (0..WORKING_SET).map(|i| i as f32).collect();
    println!("| limit at {level} | threads | by wall clock | (by CPU time) |\n|---|--:|--:|--:|");
    for threads in [1, threads] {
        let print = |name: &str, (clock, cpu): (f64, f64)| {
            println!("| {name} | {threads} | {:.1} | ({:.1}) |", clock / 1e9, cpu / 1e9);
        };
        let dots = rate(threads, runs, (ROUNDS * DOT_PRODUCTS) as f64, |_| {
            black_box(limits::dot_products(level, ROUNDS, black_box(&[1; 64])));
        });
        print("8-bit dot products, G multiply-adds/s", dots);
        let fmas = rate(threads, runs, (ROUNDS * MULTIPLY_ADDS) as f64, |_| {
            black_box(limits::multiply_adds(level, ROUNDS, black_box(&[0.5; 16])));
        });
        print("f32, G multiply-adds/s", fmas);
        let share = WORKING_SET / threads;
        let reads = rate(threads, runs, (share * size_of::<f32>()) as f64, |i| {
            black_box(limits::read(level, &numbers[i * share..][..share]));
        });
        print("memory read, GB/s", reads);
        let mut pool = Pool::new(threads);
        let mut least = f64::INFINITY;
        for _ in 0..runs {
            let started = Instant::now();
            pool.run(|worker| (0..BARRIERS).for_each(|_| worker.barrier()));
            least = least.min(started.elapsed().as_secs_f64() / BARRIERS as f64);
        }
        println!("| barrier, µs | {threads} | {:.2} | |", least * 1e6);
    }
}
