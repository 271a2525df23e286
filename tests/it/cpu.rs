//! The CPU backend against transformers' numbers, against `Graph`, and against itself at every level.

use lima::model::weights::Checkpoint;
use lima::ops::cpu::CpuOptions;
use lima::ops::cpu::kv::KvType;
use lima::ops::cpu::level::Level;
use lima::ops::quant::DType;

use crate::graph::GraphModel;
use crate::support::cpu::CpuModel;
use crate::support::goldens::{self, compare_default, compare_perplexity, compare_small};
use crate::support::requantize::requantize;

const FORMATS: [DType; 6] = [DType::F32, DType::F16, DType::BF16, DType::Q8_0, DType::Q4_0, DType::Q4_1];

#[test]
fn small_models_equal_transformers() {
    for name in goldens::SMALL {
        for level in Level::available() {
            let mut model = CpuModel::open(&goldens::path(name), Some(DType::F32), level, 2);
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
        let mut cpu = CpuModel::open(&goldens::path(name), Some(DType::F32), Level::best(), 2);
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
    for dtype in FORMATS {
        let checkpoint = Checkpoint::open(goldens::path("gqa")).unwrap();
        let config = checkpoint.config();
        let tokens: Vec<u32> = (0..290u32).map(|i| (i * i * 3 + 5) % config.vocab_size as u32).collect();
        // INT8 is the same code for all formats.
        let int8 = [DType::F32, DType::Q4_1].contains(&dtype).then_some(KvType::Int8);
        for kv in [KvType::F32, KvType::BF16].into_iter().chain(int8) {
            let mut expected: Option<Vec<Vec<u32>>> = None;
            for level in Level::available() {
                // The native bf16 product flushes denormals: alike at its own level only.
                if level == Level::Avx512Bf16 && dtype == DType::BF16 {
                    expected = None;
                }
                // More threads than cores are slow, so they get a step each and few tokens.
                for (threads, chunk, len) in [(1, 512, 290), (2, 33, 290), (1, 100, 290), (2, 1, 70), (3, 512, 70)] {
                    let mut model = CpuModel::with(
                        &checkpoint,
                        CpuOptions {
                            threads,
                            level,
                            dtype: Some(dtype),
                            kv,
                            max_tokens: 512,
                            max_outputs: 512,
                            max_positions: 512,
                        },
                    );
                    let logits = model.logits(&tokens[..len], chunk);
                    let bits: Vec<Vec<u32>> =
                        logits.iter().map(|row| row.iter().map(|x| x.to_bits()).collect()).collect();
                    match &expected {
                        None => expected = Some(bits),
                        Some(e) => assert!(e[..len] == bits, "{dtype:?} {kv:?} {level} {threads} threads by {chunk}"),
                    }
                }
            }
        }
    }
}

#[test]
fn the_cache_holds_what_was_written() {
    let checkpoint = Checkpoint::open(goldens::path("gqa")).unwrap();
    let mut model = CpuModel::open(&goldens::path("gqa"), Some(DType::F32), Level::best(), 1);
    model.logits(&(0..40).collect::<Vec<_>>(), 512);
    let blocks = model.ops.cache().blocks() as u32;
    // Tables run backwards: position 33 is slot 1 of the last block but one.
    let block = lima::engine::BlockId(blocks - 2);
    let key = model.ops.cache().copy_out(0, block, 0, 1, true);
    assert_eq!(key.len(), checkpoint.config().head_dim);
    assert!(key.iter().any(|x| *x != 0.0) && key.iter().all(|x| x.is_finite()));
}

#[test]
fn the_default_model_in_f32_equals_transformers() {
    let mut model = CpuModel::open(&goldens::default_model(), Some(DType::F32), Level::best(), 2);
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
    for dtype in [DType::Q4_1, DType::Q8_0, DType::Q4_0, DType::BF16] {
        let (path, _dir) = stored(dtype);
        let (mut kl, mut rows) = (0f64, 0usize);
        let mut nll = [0f64; 2];
        let mut ours = CpuModel::open(&path, None, Level::best(), 2);
        let mut exact = CpuModel::open(&path, Some(DType::F32), Level::best(), 2);
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
        println!("{dtype:?}: mean KL {kl:.2e}, perplexity {ours:.4} against {exact:.4} in F32");
        assert!(kl <= 0.01, "{dtype:?}: mean KL {kl}");
        assert!((ours / exact - 1.0).abs() <= 0.01, "{dtype:?}: perplexity {ours}, F32 {exact}");
    }
}

/// Perplexity and mean KL divergence with each type of cache, against the F32 cache and the same weights.
///
/// With F32 weights, because quantised activations amplify any difference to about the same. `LIMA_TEST_WINDOWS` (up
/// to 40) reads more of the text, and the weights as stored too: the table of docs/measurements.
#[test]
fn the_type_of_the_cache_hardly_changes_perplexity() {
    let golden = goldens::perplexity();
    let asked = std::env::var("LIMA_TEST_WINDOWS").ok().map(|n| n.parse::<usize>().unwrap());
    let formats = if asked.is_some() { vec![Some(DType::F32), None] } else { vec![Some(DType::F32)] };
    let checkpoint = Checkpoint::open(goldens::default_model()).unwrap();
    for dtype in formats {
        let mut models = [KvType::F32, KvType::BF16, KvType::Int8].map(|kv| {
            let options = CpuOptions {
                threads: 2,
                level: Level::best(),
                dtype,
                kv,
                max_tokens: 512,
                max_outputs: 512,
                max_positions: 512,
            };
            CpuModel::with(&checkpoint, options)
        });
        let (mut nll, mut kl, mut predicted) = ([0f64; 3], [0f64; 3], 0);
        for window in golden.tokens.chunks(golden.window).take(asked.unwrap_or(2)) {
            let [exact, rest @ ..] = &mut models;
            let score = |rows: &[Vec<f32>]| -> f64 {
                window[1..].iter().zip(rows).map(|(t, row)| -f64::from(row[*t as usize])).sum()
            };
            let exact: Vec<Vec<f32>> = exact.logits(window, 512).iter().map(|r| goldens::log_softmax(r)).collect();
            nll[0] += score(&exact);
            predicted += window.len() - 1;
            for (i, model) in rest.iter_mut().enumerate() {
                let rows: Vec<Vec<f32>> = model.logits(window, 512).iter().map(|r| goldens::log_softmax(r)).collect();
                nll[i + 1] += score(&rows);
                let divergence = |(p, q): (&Vec<f32>, &Vec<f32>)| -> f64 {
                    p.iter().zip(q).map(|(p, q)| f64::from(p.exp()) * f64::from(p - q)).sum()
                };
                kl[i + 1] += exact.iter().zip(&rows).take(window.len() - 1).map(divergence).sum::<f64>();
            }
        }
        let perplexity = nll.map(|nll| (nll / predicted as f64).exp());
        for (i, kv) in ["f32", "bf16", "int8"].into_iter().enumerate() {
            let change = perplexity[i] / perplexity[0] - 1.0;
            let kl = kl[i] / predicted as f64;
            println!(
                "weights {dtype:?}, cache {kv}: {predicted} tokens, perplexity {:.4} ({:+.3} %), KL {kl:.2e}",
                perplexity[i],
                100.0 * change
            );
            if dtype.is_some() {
                assert!(change.abs() <= 0.005, "{kv}: {perplexity:?}");
                assert!(kl <= 2e-3, "{kv}: mean KL {kl}");
            }
        }
    }
}

#[test]
fn perplexity_equals_transformers() {
    let mut model = CpuModel::open(&goldens::default_model(), Some(DType::F32), Level::best(), 2);
    let (ours, theirs) = compare_perplexity(2, &mut |tokens| model.logits(tokens, 512));
    assert!((ours - theirs).abs() < 1e-3 * theirs, "perplexity {ours}, transformers' {theirs}");
}

/// The default model's weights stored as `dtype`: the download itself for Q4_1, else a file made from it,
/// which lives as long as the folder.
fn stored(dtype: DType) -> (std::path::PathBuf, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let source = goldens::default_model();
    if dtype == DType::Q4_1 {
        return (source, dir);
    }
    let to = dir.path().join("model.gguf");
    requantize(&source, &to, dtype);
    (to, dir)
}
