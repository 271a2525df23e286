//! The CPU kernels as a step calls them, with their share of the workers' start and end.
//!
//! - `matmul`: `x · Wᵀ` for M rows of x. At M = 1 the rate is bytes of stored weights; above, elements are
//!   multiply-adds. Time includes preparing (for quantised weights: quantising) the rows of x.
//! - `attention/decode`: one token after so many; bytes are the keys and values read.
//! - `attention/prefill`: a chunk from position 0; elements are multiply-adds of the causal triangle.
//!
//! Every call takes the next of several equal matrices or layers, together [`WORKING_SET`] bytes, because a
//! model's weights do not stay in a cache from step to step either. `LIMA_THREADS` and `LIMA_CPU_LEVEL` as for
//! `lima`.

use std::time::Duration;

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, SamplingMode, Throughput, criterion_group, criterion_main};
use lima::engine::{BLOCK_SIZE, BlockId};
use lima::model::config::{LlamaConfig, RopeScaling};
use lima::model::lora::{Part, Site};
use lima::model::weights::TensorView;
use lima::ops::cpu::kv::{KvPool, KvType};
use lima::ops::cpu::level::Level;
use lima::ops::cpu::{Cpu, CpuOptions, Linear, X};
use lima::ops::quant::{DType, quantize_row};
use lima::ops::{Batch, Ops, Span};
use lima::runner::sampler::philox;

const WORKING_SET: usize = 128 << 20;
const CHUNK: usize = 512;
/// No adapters are loaded, so it does not matter which.
const SITE: Site = Site { layer: 0, part: Part::Qkv };
const HEAD_DIM: usize = 64;
const VOCAB: usize = 64;

/// A model's shape as far as single operations see it.
fn config(hidden: usize, heads: usize, kv_heads: usize, layers: usize) -> LlamaConfig {
    LlamaConfig {
        vocab_size: VOCAB,
        hidden_size: hidden,
        intermediate_size: BLOCK_SIZE,
        num_layers: layers,
        num_heads: heads,
        num_kv_heads: kv_heads,
        head_dim: HEAD_DIM,
        rms_norm_eps: 1e-5,
        rope_theta: 1e4,
        rope_scaling: RopeScaling::None,
        tie_word_embeddings: true,
        max_position_embeddings: 1 << 13,
        bos_token_id: None,
        eos_token_ids: Vec::new(),
    }
}

fn cpu(config: &LlamaConfig, kv: KvType, positions: usize) -> Cpu {
    let threads = std::env::var("LIMA_THREADS").ok().map(|n| n.parse().expect("LIMA_THREADS is a number"));
    let mut ops = Cpu::new(
        config,
        CpuOptions {
            threads: threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, |n| n.get())),
            level: Level::from_env().expect("LIMA_CPU_LEVEL names a level of this machine"),
            dtype: None,
            kv,
            max_tokens: CHUNK,
            max_outputs: 1,
            max_positions: positions,
        },
    );
    ops.allocate_cache(positions.div_ceil(BLOCK_SIZE).max(CHUNK / BLOCK_SIZE));
    ops
}

/// A random matrix as a checkpoint stores it.
fn stored(dtype: DType, rows: usize, cols: usize) -> Vec<u8> {
    let row_bytes = dtype.row_bytes(cols).expect("whole blocks");
    let mut bytes = vec![0; rows * row_bytes];
    // Rows are pieces of one random sequence: making every number anew would take most of the time.
    let values: Vec<f32> = (0..cols + 997).map(|i| philox::uniform(7, 0, i as u64) as f32 * 0.2 - 0.1).collect();
    for (r, out) in bytes.chunks_exact_mut(row_bytes).enumerate() {
        match dtype.is_writable() {
            true => quantize_row(dtype, &values[r * 31 % 997..][..cols], out),
            // Any bytes are quants; below 60, finite scales too.
            false => out.iter_mut().enumerate().for_each(|(i, b)| *b = ((i * 31 + r * 7) % 60) as u8),
        }
    }
    bytes
}

fn linear(ops: &mut Cpu, dtype: DType, rows: usize, cols: usize, bytes: &[u8]) -> Linear {
    let view = TensorView::new(dtype, rows, cols, bytes, None).expect("the bytes are the matrix");
    ops.load_linear(&[view]).expect("the dtype has kernels")
}

/// Tokens and positions of a batch whose spans are (start, length, first block).
struct Tokens {
    tokens: Vec<u32>,
    positions: Vec<u32>,
    spans: Vec<Span>,
    blocks: Vec<BlockId>,
}

impl Tokens {
    fn new(spans: impl IntoIterator<Item = (usize, usize, usize)>) -> Self {
        let mut t = Self { tokens: Vec::new(), positions: Vec::new(), spans: Vec::new(), blocks: Vec::new() };
        for (start, len, block) in spans {
            let (from, table) = (t.tokens.len(), t.blocks.len());
            t.tokens.extend((from..from + len).map(|i| (i % VOCAB) as u32));
            t.positions.extend((start..start + len).map(|p| p as u32));
            t.blocks.extend((0..(start + len).div_ceil(BLOCK_SIZE)).map(|b| BlockId((block + b) as u32)));
            t.spans.push(Span { tokens: from..from + len, start, blocks: table..t.blocks.len(), adapter: None });
        }
        t
    }

    fn batch(&self) -> Batch<'_> {
        let Self { tokens, positions, spans, blocks } = self;
        Batch { tokens, positions, spans, blocks, outputs: &[] }
    }
}

fn settings(group: &mut BenchmarkGroup<'_, WallTime>) {
    group.sample_size(10).sampling_mode(SamplingMode::Flat);
    group.warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(1));
}

fn matmul(c: &mut Criterion) {
    for (cols, rows) in [(576, 1536), (2048, 5632)] {
        // The result goes where queries, keys and values go: heads to make that `rows` wide.
        let config = config(cols, rows / HEAD_DIM - 2, 1, 1);
        let mut group = c.benchmark_group(format!("matmul/{cols}x{rows}"));
        settings(&mut group);
        for dtype in DType::ALL.into_iter().filter(|f| cols.is_multiple_of(f.block_len())) {
            let mut ops = cpu(&config, KvType::BF16, CHUNK);
            let table = stored(DType::F32, VOCAB, cols);
            let table = linear(&mut ops, DType::F32, VOCAB, cols, &table);
            let bytes = stored(dtype, rows, cols);
            let copies = WORKING_SET.div_ceil(bytes.len());
            let weights: Vec<_> = (0..copies).map(|_| linear(&mut ops, dtype, rows, cols, &bytes)).collect();
            let mut weights = weights.iter().cycle();
            for m in [1, 16, 512] {
                let tokens = Tokens::new([(0, m, 0)]);
                let x = ops.embed(&table, &tokens.batch()).expect("the batch fits");
                group.throughput(match m {
                    1 => Throughput::BytesDecimal(bytes.len() as u64),
                    _ => Throughput::Elements((m * rows * cols) as u64),
                });
                group.bench_function(format!("{}/m{m}", dtype), |b| {
                    let batch = tokens.batch();
                    b.iter(|| {
                        ops.linear(SITE, &x, weights.next().expect("it cycles"), &batch).expect("the shapes agree")
                    });
                });
            }
        }
        group.finish();
    }
}

fn attention(c: &mut Criterion) {
    for (heads, kv_heads) in [(9, 3), (32, 4)] {
        let mut group = c.benchmark_group(format!("attention/{heads}x{kv_heads}x{HEAD_DIM}"));
        settings(&mut group);
        for kv in [KvType::F32, KvType::BF16, KvType::Int8] {
            for depth in [CHUNK, 4096] {
                let positions = (depth + 1).next_multiple_of(BLOCK_SIZE);
                let blocks = positions / BLOCK_SIZE;
                let one = config(heads * HEAD_DIM, heads, kv_heads, 1);
                let layer_bytes = blocks * KvPool::block_bytes(&one, kv);
                let layers = WORKING_SET.div_ceil(layer_bytes);
                let config = config(heads * HEAD_DIM, heads, kv_heads, layers);
                let mut ops = cpu(&config, kv, positions);
                let (table, projection) = projections(&mut ops, &config);

                // Fills the cache: untouched memory would all be one page of zeros. Each block alone, as a
                // sequence of 32 tokens, which costs next to nothing.
                for first in (0..blocks).step_by(CHUNK / BLOCK_SIZE) {
                    let some = first..blocks.min(first + CHUNK / BLOCK_SIZE);
                    let tokens = Tokens::new(some.map(|block| (0, BLOCK_SIZE, block)));
                    for layer in 0..layers {
                        attend(&mut ops, &table, &projection, layer, &tokens);
                    }
                }

                let tokens = Tokens::new([(depth, 1, 0)]);
                attend(&mut ops, &table, &projection, 0, &tokens);
                group.throughput(Throughput::BytesDecimal(
                    ((depth + 1) * KvPool::block_bytes(&one, kv) / BLOCK_SIZE) as u64,
                ));
                let mut next = (0..layers).cycle();
                group.bench_function(format!("decode/{kv:?}/{depth}"), |b| {
                    b.iter(|| ops.attention(next.next().expect("it cycles"), X::Qkv, &tokens.batch()).is_ok());
                });

                if depth != CHUNK {
                    continue;
                }
                let tokens = Tokens::new([(0, CHUNK, 0)]);
                attend(&mut ops, &table, &projection, 0, &tokens);
                let triangle = CHUNK * (CHUNK + 1) / 2;
                group.throughput(Throughput::Elements((triangle * heads * HEAD_DIM * 2) as u64));
                group.bench_function(format!("prefill/{kv:?}/{CHUNK}"), |b| {
                    b.iter(|| ops.attention(next.next().expect("it cycles"), X::Qkv, &tokens.batch()).is_ok());
                });
            }
        }
        group.finish();
    }
}

/// An embedding, and a projection to queries, keys and values.
fn projections(ops: &mut Cpu, config: &LlamaConfig) -> (Linear, Linear) {
    let (width, out) = (config.hidden_size, config.q_size() + 2 * config.kv_size());
    let table = stored(DType::F32, VOCAB, width);
    let projection = stored(DType::Q8_0, out, width);
    (linear(ops, DType::F32, VOCAB, width, &table), linear(ops, DType::Q8_0, out, width, &projection))
}

fn attend(ops: &mut Cpu, table: &Linear, projection: &Linear, layer: usize, tokens: &Tokens) {
    let x = ops.embed(table, &tokens.batch()).expect("the batch fits");
    let qkv = ops.linear(SITE, &x, projection, &tokens.batch()).expect("the shapes agree");
    ops.attention(layer, qkv, &tokens.batch()).expect("the batch fits");
}

criterion_group!(benches, matmul, attention);
criterion_main!(benches);
