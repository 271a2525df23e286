//! The CPU backend against transformers' numbers, against `Graph`, and against itself at every level.

use lima::model::weights::Checkpoint;
use lima::ops::cpu::CpuOptions;
use lima::ops::cpu::kv::KvType;
use lima::ops::cpu::level::Level;
use lima::ops::cpu::pack::Format;

use crate::graph::GraphModel;
use crate::support::cpu::CpuModel;
use crate::support::goldens::{self, compare_default, compare_perplexity, compare_small};
use crate::support::requantize::requantize;

const FORMATS: [Format; 6] = [Format::F32, Format::F16, Format::BF16, Format::Q8_0, Format::Q4_0, Format::Q4_1];

#[test]
fn small_models_equal_transformers() {
    for name in goldens::SMALL {
        for level in Level::available() {
            let mut model = CpuModel::open(&goldens::path(name), Some(Format::F32), level, 2);
            for chunk in [512, 7, 1] {
                let agreement = compare_small(name, &mut |tokens| model.logits(tokens, chunk));
                println!("{name} {level} by {chunk}: {agreement:?}");
                agreement.assert_exact(1e-4, name);
            }
        }
    }
}

#[test]
fn graph_and_cpu_agree() {
    for name in goldens::SMALL {
        let mut graph = GraphModel::open(&goldens::path(name), false);
        let mut cpu = CpuModel::open(&goldens::path(name), Some(Format::F32), Level::best(), 2);
        let tokens: Vec<u32> = (0..250u32).map(|i| (i * i + 7) % cpu.vocab as u32).collect();
        for (ours, theirs) in cpu.logits(&tokens, 512).iter().zip(&graph.logits(&tokens)) {
            let (ours, theirs) = (goldens::log_softmax(ours), goldens::log_softmax(theirs));
            ours.iter().zip(&theirs).for_each(|(a, b)| assert!((a - b).abs() <= 1e-3, "{name}: {a} {b}"));
        }
    }
}

/// Every level, thread count and way to chunk a prompt gives the same bits, for every format and cache.
#[test]
fn levels_threads_and_chunks_agree_bitwise() {
    for format in FORMATS {
        let checkpoint = Checkpoint::open(goldens::path("gqa")).unwrap();
        let config = checkpoint.config();
        let tokens: Vec<u32> = (0..290u32).map(|i| (i * i * 3 + 5) % config.vocab_size as u32).collect();
        for kv in [KvType::F32, KvType::BF16, KvType::Int8] {
            let mut expected: Option<Vec<Vec<u32>>> = None;
            for level in Level::available() {
                // The native bf16 product flushes denormals: alike at its own level only.
                if level == Level::Avx512Bf16 && format == Format::BF16 {
                    expected = None;
                }
                // More threads than cores are slow, so they get a step each and few tokens.
                for (threads, chunk, len) in [(1, 512, 290), (2, 33, 290), (1, 100, 290), (2, 1, 70), (3, 512, 70)] {
                    let mut model = CpuModel::with(
                        &checkpoint,
                        CpuOptions {
                            threads,
                            level,
                            format: Some(format),
                            kv,
                            max_tokens: 512,
                            max_outputs: 512,
                            max_positions: 512,
                        },
                    );
                    let logits = model.logits(&tokens[..len], chunk);
                    let bits: Vec<Vec<u32>> =
                        logits.iter().map(|row| row.iter().map(|x| x.to_bits()).collect()).collect();
                    assert_eq!(model.ops.cache().copied_out(), 0, "attention copies nothing out of the pool");
                    match &expected {
                        None => expected = Some(bits),
                        Some(e) => assert!(e[..len] == bits, "{format:?} {kv:?} {level} {threads} threads by {chunk}"),
                    }
                }
            }
        }
    }
}

#[test]
fn the_cache_holds_what_was_written() {
    let checkpoint = Checkpoint::open(goldens::path("gqa")).unwrap();
    let mut model = CpuModel::open(&goldens::path("gqa"), Some(Format::F32), Level::best(), 1);
    model.logits(&(0..40).collect::<Vec<_>>(), 512);
    let blocks = model.ops.cache().blocks() as u32;
    // Tables run backwards: position 33 is slot 1 of the last block but one.
    let block = lima::engine::BlockId(blocks - 2);
    let key = model.ops.cache().copy_out(0, block, 0, 1, true);
    assert_eq!(key.len(), checkpoint.config().head_dim);
    assert!(key.iter().any(|x| *x != 0.0) && key.iter().all(|x| x.is_finite()));
    assert!(model.ops.cache().copied_out() > 0);
}

#[test]
fn the_default_model_in_f32_equals_transformers() {
    let mut model = CpuModel::open(&goldens::default_model(), Some(Format::F32), Level::best(), 2);
    let sequences = goldens::default_sequences();
    let agreement = compare_default(&sequences, &mut |tokens| model.logits(tokens, 512));
    println!("default model, F32: {agreement:?}");
    assert!(agreement.max_difference <= 2e-3, "{agreement:?}");
    assert!(agreement.widest_flip <= 0.1, "{agreement:?}");
}

/// Mean KL divergence from the F32 path on the same stored weights, and perplexity within a percent of it.
#[test]
fn quantised_kernels_stay_close_to_f32_on_the_same_weights() {
    let golden = goldens::perplexity();
    // More than 5,000 tokens.
    let windows = 10;
    assert!((5_000..=golden.tokens.len()).contains(&(windows * golden.window)));
    for format in [Format::Q4_1, Format::Q8_0, Format::Q4_0, Format::BF16] {
        let (path, _dir) = stored(format);
        let (mut kl, mut rows) = (0f64, 0usize);
        let mut nll = [0f64; 2];
        let mut ours = CpuModel::open(&path, None, Level::best(), 2);
        let mut exact = CpuModel::open(&path, Some(Format::F32), Level::best(), 2);
        for window in golden.tokens.chunks(golden.window).take(windows) {
            let (a, b) = (exact.logits(window, 512), ours.logits(window, 512));
            for (i, (p, q)) in a.iter().zip(&b).enumerate() {
                let (p, q) = (goldens::log_softmax(p), goldens::log_softmax(q));
                kl += p.iter().zip(&q).map(|(p, q)| f64::from(p.exp()) * f64::from(p - q)).sum::<f64>();
                rows += 1;
                if let Some(next) = window.get(i + 1) {
                    nll[0] -= f64::from(p[*next as usize]);
                    nll[1] -= f64::from(q[*next as usize]);
                }
            }
        }
        let predicted = (rows - windows) as f64;
        let (exact, ours) = ((nll[0] / predicted).exp(), (nll[1] / predicted).exp());
        let kl = kl / rows as f64;
        println!("{format:?}: mean KL {kl:.2e}, perplexity {ours:.4} against {exact:.4} in F32");
        assert!(kl <= 0.01, "{format:?}: mean KL {kl}");
        assert!((ours / exact - 1.0).abs() <= 0.01, "{format:?}: perplexity {ours}, F32 {exact}");
    }
}

#[test]
fn perplexity_equals_transformers() {
    let mut model = CpuModel::open(&goldens::default_model(), Some(Format::F32), Level::best(), 2);
    let (ours, theirs) = compare_perplexity(2, &mut |tokens| model.logits(tokens, 512));
    assert!((ours - theirs).abs() < 1e-3 * theirs, "perplexity {ours}, transformers' {theirs}");
}

/// The default model's weights stored as `format`: the download itself for Q4_1, else a file made from it,
/// which lives as long as the folder.
fn stored(format: Format) -> (std::path::PathBuf, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let source = goldens::default_model();
    if format == Format::Q4_1 {
        return (source, dir);
    }
    let to = dir.path().join("model.gguf");
    requantize(&source, &to, format.dtype());
    (to, dir)
}
