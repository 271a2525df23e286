//! Checkpoints of every LLaMA family, few layers of true shapes, against transformers in F32.

use std::sync::Arc;
use std::time::Instant;

use lima::engine::{
    BlockId, Executor, Row, RowOut, SampleInput, SampleRow, SamplingParams, SeqId, StepInput, TokenSource, Want,
};
use lima::model::config::{LlamaConfig, RopeScaling};
use lima::model::weights::{Checkpoint, expected_tensors};
use lima::ops::cpu::CpuOptions;
use lima::ops::cpu::kv::KvType;
use lima::ops::cpu::level::Level;
use lima::ops::quant::DType;
use lima::runner::CpuExecutor;

use crate::support::cpu::CpuModel;
use crate::support::family::{self, Family};
use crate::support::goldens::{self, argmax, log_softmax};

/// The largest difference of a log-probability, and how many were compared.
///
/// The weights are exact in F16, whose products are computed in F32 as those of F32 are: for the largest models this
/// halves the memory.
fn compare(name: &str, dtype: DType) -> (f32, usize) {
    let family = Family::read(name);
    let dir = tempfile::tempdir().unwrap();
    let started = Instant::now();
    // Large checkpoints come in several files.
    family.write(dir.path(), if dtype == DType::F16 { 3 } else { 1 });
    let written = started.elapsed();
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    let longest = family.sequences.iter().map(|s| s.prompt.len()).max().unwrap();
    let mut model = CpuModel::with(
        &checkpoint,
        CpuOptions {
            threads: 2,
            level: Level::best(),
            dtype: Some(dtype),
            kv: KvType::F32,
            max_tokens: longest,
            max_outputs: 8,
            max_positions: 512,
        },
    );
    let loaded = started.elapsed();
    let (mut largest, mut compared) = (0f32, 0);
    for sequence in &family.sequences {
        let positions: Vec<u32> = sequence.rows.iter().map(|r| r.position as u32).collect();
        let rows = model.rows(&sequence.prompt, &positions);
        for (expected, logits) in sequence.rows.iter().zip(&rows) {
            assert_eq!(argmax(logits), expected.ids[0], "{name}: the most likely token at {}", expected.position);
            let ours = log_softmax(logits);
            for (id, value) in expected.ids.iter().zip(&expected.logprobs) {
                largest = largest.max((ours[*id as usize] - value).abs());
                compared += 1;
            }
        }
    }
    println!(
        "{name} {dtype:?}: {largest:.1e} over {compared}; written in {written:.1?}, loaded after {loaded:.1?}, all {:.1?}",
        started.elapsed()
    );
    if let Some(effect) = family.effect_of_scaling {
        assert!(effect > 0.05, "{name}: the golden would not show that the scaling is ignored: {effect}");
    }
    (largest, compared)
}

#[track_caller]
fn assert_equal(name: &str, dtype: DType) {
    let (largest, compared) = compare(name, dtype);
    assert!(compared > 100 && largest <= 1e-3, "{name}: {largest} over {compared}");
}

#[test]
fn smollm2_equals_transformers() {
    // Grouped queries, tied, widths that are no powers of two.
    assert_equal("smollm2-135m", DType::F32);
    assert_equal("smollm2-360m", DType::F32);
}

#[test]
fn tinyllama_equals_transformers() {
    // Eight queries a key, not tied.
    assert_equal("tinyllama-1.1b", DType::F32);
}

#[test]
fn llama_3_2_equals_transformers() {
    // Llama 3's scaling, its vocabulary, tied, the head's width given.
    assert_equal("llama-3.2-1b", DType::F16);
}

#[test]
fn llama_with_linear_scaling_equals_transformers() {
    // LLaMA-7B's shape: as many keys as queries; positions scaled.
    assert_equal("llama-2-7b-32k", DType::F16);
}

/// All others, among them the shapes of 65B: minutes, and 6 GB of memory and of disk.
#[test]
fn large_families_equal_transformers() {
    if std::env::var_os("LIMA_TEST_LARGE").is_none() {
        println!("LIMA_TEST_LARGE is not set: large families are not compared");
        return;
    }
    for shape in family::shapes().iter().filter(|s| s.layers > 0) {
        assert_equal(&shape.name, DType::F16);
    }
}

/// LIMA's embedding has 32,064 rows for 32,001 tokens: rows that are padding are never sampled, whatever their logits.
#[test]
fn padding_rows_are_never_sampled() {
    const TOKENS: usize = 33;
    let mut model = CpuModel::open(&goldens::path("gqa"), Some(DType::F32), Level::best(), 2);
    let prompt = [5u32, 9, 2, 7];
    let row = model.rows(&prompt, &[3]).remove(0);
    assert!(argmax(&row) as usize >= TOKENS, "without the limit, the most likely token is padding");
    let logprobs = log_softmax(&row[..TOKENS]);
    let mut executor =
        CpuExecutor::new(model.ops, model.model, Checkpoint::open(goldens::path("gqa")).unwrap().config());
    executor.sample_below(TOKENS);
    let step = StepInput {
        tokens: prompt.to_vec(),
        blocks: vec![BlockId(0)],
        rows: vec![Row {
            seq: SeqId(1),
            tokens: TokenSource::Host(0..4),
            start: 0,
            len: 4,
            blocks: 0..1,
            want: Want::Sample { last: 1 },
            adapter: None,
            score: None,
        }],
        ..StepInput::default()
    };
    let mut seen = std::collections::BTreeSet::new();
    for seed in 0..300 {
        let temperature = if seed == 0 { 0.0 } else { 5.0 };
        let params = Arc::new(SamplingParams { temperature, seed, logprobs: Some(20), ..SamplingParams::default() });
        executor.forward(&step).unwrap();
        let ticket = executor
            .sample(&SampleInput {
                rows: vec![SampleRow {
                    row: 0,
                    seq: SeqId(1),
                    params: &params,
                    history: &prompt,
                    drafts: &[],
                    num_prompt: 4,
                    position: 4,
                    mask: None,
                }],
            })
            .unwrap();
        let mut out = executor.collect(ticket).unwrap();
        let RowOut::Tokens(tokens) = out.rows.remove(0) else { panic!("a token is sampled") };
        let (token, top) = (tokens[0].token, &tokens[0].top);
        assert!((token as usize) < TOKENS, "token {token} is padding");
        assert!(top.iter().all(|(id, _)| (*id as usize) < TOKENS) && !top.is_empty());
        assert!((tokens[0].logprob - logprobs[token as usize]).abs() < 1e-4);
        assert!(seed > 0 || token == argmax(&row[..TOKENS]));
        seen.insert(token);
    }
    assert!(seen.len() > 20, "the others are sampled: {seen:?}");
}

/// Every configuration is read, and needs exactly as many weights as the published checkpoint has.
#[test]
fn every_family_is_read() {
    let published = [
        ("llama-7b", 6_738_415_616),
        ("llama-65b", 65_285_660_672),
        ("llama-2-70b", 68_976_648_192),
        ("llama-3-8b", 8_030_261_248),
        ("llama-3.1-405b", 405_853_388_800),
        ("llama-3.2-1b", 1_235_814_400),
        ("llama-3.2-3b", 3_212_749_824),
        ("smollm2-135m", 134_515_008),
        ("smollm2-360m", 361_821_120),
        ("smollm2-1.7b", 1_711_376_384),
        ("tinyllama-1.1b", 1_100_048_384),
    ];
    let shapes = family::shapes();
    for (name, parameters) in published {
        assert_eq!(shapes.iter().find(|s| s.name == name).unwrap().parameters, parameters, "{name}");
    }
    for shape in &shapes {
        let config = LlamaConfig::from_hf(&shape.config).unwrap_or_else(|e| panic!("{}: {e}", shape.name));
        let weights: u64 = expected_tensors(&config).iter().map(|(_, [rows, cols])| (rows * cols) as u64).sum();
        assert_eq!(weights, shape.parameters, "{}", shape.name);
        let scaled = shape.name.contains("3.1") || shape.name.contains("3.2") || shape.name.contains("32k");
        assert_eq!(config.rope_scaling != RopeScaling::None, scaled, "{}", shape.name);
        let theta = match shape.name.as_str() {
            "llama-30b" => 10_000.0,
            "smollm2-1.7b" => 130_000.0,
            name if name.starts_with("smollm2") => 100_000.0,
            name if name.starts_with("llama-3") || name.ends_with("chat") => 500_000.0,
            _ => 10_000.0,
        };
        assert_eq!(config.rope_theta, theta, "{}", shape.name);
    }
}
