//! A step on the CPU allocates nothing: a counting allocator watches the threads that compute.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use lima::engine::{AdapterSlot, BlockId};
use lima::model::lora::Adapter;
use lima::model::weights::Checkpoint;
use lima::ops::cpu::CpuOptions;
use lima::ops::cpu::kv::KvType;
use lima::ops::cpu::level::Level;
use lima::ops::quant::DType;
use lima::ops::{Batch, Ops, Span};

use crate::support::cpu::CpuModel;
use crate::support::goldens;

/// The system's allocator; calls on watched threads are counted.
struct Counting;

static COUNT: AtomicU64 = AtomicU64::new(0);

thread_local! {
    static WATCHED: Cell<bool> = const { Cell::new(false) };
}

fn count() {
    // A thread on its way out has no locals left.
    if WATCHED.try_with(Cell::get).unwrap_or(false) {
        COUNT.fetch_add(1, Relaxed);
    }
}

// SAFETY: every call is the system allocator's own, with the same arguments.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's promise.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: the caller's promise.
        unsafe { System.realloc(ptr, layout, size) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        count();
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Rows of one step: `(start, len)` for each sequence; sequence `i` has the blocks from `8 i` on.
#[derive(Clone)]
struct Step {
    tokens: Vec<u32>,
    positions: Vec<u32>,
    spans: Vec<Span>,
    blocks: Vec<BlockId>,
    outputs: Vec<u32>,
}

impl Step {
    /// The same with adapters for some of its sequences.
    fn with(&self, slots: &[AdapterSlot; 2]) -> Self {
        let mut step = self.clone();
        step.spans.iter_mut().enumerate().for_each(|(i, span)| span.adapter = slots.get(i % 3).copied());
        step
    }
}

fn step(rows: &[(usize, usize)]) -> Step {
    let mut s = Step { tokens: vec![], positions: vec![], spans: vec![], blocks: vec![], outputs: vec![] };
    for (i, &(start, len)) in rows.iter().enumerate() {
        let first = s.tokens.len();
        s.tokens.extend((0..len).map(|k| ((start + k * 13 + i) % 90) as u32));
        s.positions.extend((start..start + len).map(|p| p as u32));
        s.spans.push(Span { tokens: first..first + len, start, blocks: 8 * i..8 * (i + 1), adapter: None });
        s.blocks.extend((8 * i..8 * (i + 1)).map(|b| BlockId(b as u32)));
        s.outputs.push((first + len - 1) as u32);
    }
    s
}

#[test]
fn forward_allocates_nothing() {
    let checkpoint = Checkpoint::open(goldens::path("gqa")).unwrap();
    let kinds = [
        (DType::F32, KvType::F32),
        (DType::BF16, KvType::BF16),
        (DType::Q4_1, KvType::BF16),
        (DType::Q4_1, KvType::Int8),
    ];
    for (dtype, kv) in kinds {
        for threads in [1, 2] {
            let mut cpu = CpuModel::with(
                &checkpoint,
                CpuOptions {
                    threads,
                    level: Level::best(),
                    dtype: Some(dtype),
                    kv,
                    max_tokens: 128,
                    max_outputs: 8,
                    max_positions: 256,
                },
            );
            cpu.ops.allocate_cache(64);
            // Sequences with either of two adapters, and without.
            let config = checkpoint.config();
            cpu.ops.enable_adapters(2, 32);
            let slots = [0, 1].map(|index| AdapterSlot { index, generation: 1 });
            for (slot, name) in slots.into_iter().zip(["lora/gqa-all", "lora/gqa-patterns"]) {
                let adapter = Adapter::open(&goldens::path(name), config, 32).unwrap();
                let adapter = lima::ops::cpu::lora::Adapter::pack(&adapter, config);
                cpu.ops.load_adapter(slot, Arc::new(adapter)).unwrap();
            }
            // Chunks of a prompt, decoding alone and side by side, both at once, the longest of all.
            let mut steps = vec![
                step(&[(0, 40)]),
                step(&[(40, 88)]),
                step(&[(0, 1)]),
                step(&[(128, 1), (0, 100)]),
                step(&[(129, 1), (100, 1), (0, 1), (0, 17), (0, 33)]),
                step(&[(130, 1), (101, 1), (1, 1), (17, 1), (33, 1), (0, 1), (0, 1), (0, 1)]),
                step(&[(131, 120)]),
                step(&[(251, 1)]),
            ];
            let adapted: Vec<Step> = steps.iter().map(|s| s.with(&slots)).collect();
            steps.extend(adapted);
            let run = |cpu: &mut CpuModel, s: &Step| {
                let batch = Batch {
                    tokens: &s.tokens,
                    positions: &s.positions,
                    spans: &s.spans,
                    blocks: &s.blocks,
                    outputs: &s.outputs,
                };
                cpu.model.forward(&mut cpu.ops, &batch).map(|_| ()).unwrap();
            };
            run(&mut cpu, &steps[0]);
            cpu.ops.logits().0.run(|_| WATCHED.set(true));
            let before = COUNT.load(Relaxed);
            for s in &steps[1..] {
                run(&mut cpu, s);
            }
            let counted = COUNT.load(Relaxed) - before;
            // The allocator counts at all.
            drop(std::hint::black_box(vec![0u8; 100]));
            assert_eq!(COUNT.load(Relaxed) - before - counted, 2);
            cpu.ops.logits().0.run(|_| WATCHED.set(false));
            assert_eq!(counted, 0, "{dtype:?}, {threads} threads");
        }
    }
}
