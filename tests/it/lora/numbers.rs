//! What an adapter computes.

use std::sync::Arc;

use candle_core::Var;
use lima::model::llama::Llama;
use lima::model::lora::{Adapter, Projection};
use lima::model::weights::{Checkpoint, expected_tensors};
use lima::ops::cpu::level::Level;
use lima::ops::graph::{self, Graph};
use lima::ops::quant::DType;
use lima::ops::{Batch, Ops, OpsError, Span};

use super::*;
use crate::load::writer;

#[test]
fn adapters_equal_peft() {
    for golden in all() {
        for level in Level::available() {
            let mut model = Model::open(&golden.base, &[&golden.name], DType::F32, level, 2);
            for (prompt, expected) in golden.prompts.iter().zip(&golden.rows) {
                let apart = distance(&model.alone(prompt, Some(slot(0))), expected);
                println!("{} {level} {} tokens: {apart:.1e}", golden.name, prompt.len());
                assert!(apart <= 1e-4, "{} at {level}: {apart}", golden.name);
                // The goldens would notice an adapter that is not applied.
                assert!(distance(&model.alone(prompt, None), expected) > 0.1, "{}", golden.name);
            }
        }
    }
}

/// The base's weights with the adapter's products added to them, as a checkpoint of its own.
fn merged(golden: &Golden, dir: &Path) -> PathBuf {
    let base = Checkpoint::open(goldens::path(&golden.base)).unwrap();
    let config = base.config();
    let adapter = Adapter::open(&folder(&golden.name), config, 32).unwrap();
    let tensors: Vec<_> = expected_tensors(config)
        .into_iter()
        .map(|(name, shape)| {
            let mut values = base.tensor(&name).unwrap().to_f32();
            let pair = (0..config.num_layers)
                .flat_map(|layer| Projection::ALL.map(|p| (layer, p)))
                .find(|(layer, p)| name == format!("model.layers.{layer}.{}.weight", p.name()))
                .and_then(|(layer, p)| adapter.pair(layer, p));
            if let Some(pair) = pair {
                for (i, value) in values.iter_mut().enumerate() {
                    let (row, col) = (i / shape[1], i % shape[1]);
                    let product =
                        |r: usize| f64::from(pair.b[row * pair.rank + r]) * f64::from(pair.a[r * shape[1] + col]);
                    *value += ((0..pair.rank).map(product).sum::<f64>() * f64::from(pair.scale)) as f32;
                }
            }
            (name, shape, values)
        })
        .collect();
    std::fs::copy(goldens::path(&golden.base).join("config.json"), dir.join("config.json")).unwrap();
    std::fs::write(dir.join("model.safetensors"), writer::safetensors(DType::F32, &tensors)).unwrap();
    dir.to_owned()
}

#[test]
fn an_adapter_equals_the_merged_model() {
    for golden in all() {
        let dir = tempfile::tempdir().unwrap();
        let mut whole = Model::at(&merged(&golden, dir.path()), &[], DType::F32, Level::best(), 1);
        let mut adapted = Model::open(&golden.base, &[&golden.name], DType::F32, Level::best(), 1);
        for prompt in &golden.prompts {
            let expected: Vec<_> = whole.alone(prompt, None).iter().map(|l| goldens::log_softmax(l)).collect();
            let apart = distance(&adapted.alone(prompt, Some(slot(0))), &expected);
            println!("{} merged: {apart:.1e}", golden.name);
            assert!(apart <= 1e-3, "{}: {apart}", golden.name);
        }
    }
}

const THREE: [&str; 3] = ["gqa-qv", "gqa-all", "gqa-patterns"];

/// Three adapters and the base side by side, in chunks and decoding: to the bit what each is alone.
#[test]
fn a_batch_of_adapters_is_each_alone() {
    let token = |i: usize, k: usize| (3 + (i * 31 + k * 7) % 90) as u32;
    // Adapters come more than once, and not in order.
    let who = [Some(slot(1)), None, Some(slot(0)), Some(slot(2)), Some(slot(1)), None, Some(slot(2)), Some(slot(0))];
    let prompts: Vec<Vec<u32>> = (0..who.len()).map(|i| (0..5 + i * 3).map(|k| token(i, k)).collect()).collect();
    for dtype in [DType::F32, DType::BF16, DType::Q8_0, DType::Q4_1] {
        let mut expected: Option<Vec<Vec<u32>>> = None;
        for level in Level::available() {
            if dtype == DType::BF16 && level == Level::Avx512Bf16 {
                // Its products are others: compared with themselves.
                expected = None;
            }
            for threads in [1, 2] {
                let mut model = Model::open("gqa", &THREE, dtype, level, threads);
                let alone: Vec<_> =
                    prompts.iter().zip(who).map(|(p, adapter)| bits(&model.alone(p, adapter))).collect();
                let expected = expected.get_or_insert_with(|| alone.clone());
                assert!(alone == *expected, "{dtype:?} {level} {threads} threads");

                // All of the prompts at once.
                let rows = |from: fn(usize) -> usize, to: fn(usize, usize) -> usize| {
                    (0..who.len())
                        .map(|i| {
                            let start = from(i);
                            let tokens = &prompts[i][start..to(i, prompts[i].len())];
                            Row { seq: i, start, tokens, adapter: who[i] }
                        })
                        .collect::<Vec<_>>()
                };
                let together = model.forward(&rows(|_| 0, |_, len| len));
                for (i, logits) in together.iter().enumerate() {
                    assert!(bits(logits) == expected[i], "row {i}, {dtype:?} {level} {threads} threads");
                }
                // In two pieces, the second of one or more tokens.
                let first = model.forward(&rows(|_| 0, |i, len| if i % 2 == 0 { len - 1 } else { 3 }));
                let second = model.forward(&rows(|i| if i % 2 == 0 { 4 + i * 3 } else { 3 }, |_, len| len));
                for (i, (a, b)) in first.iter().zip(&second).enumerate() {
                    let whole = [bits(a), bits(b)].concat();
                    assert!(whole == expected[i], "row {i} in pieces, {dtype:?} {level} {threads} threads");
                }
            }
        }
    }
}

/// Matrices that are one product are stored in different types, so they are several parts with one output.
#[test]
fn a_base_of_several_formats() {
    let source = Checkpoint::open(goldens::path("gqa")).unwrap();
    let config = source.config();
    let tensors: Vec<_> = expected_tensors(config)
        .into_iter()
        .map(|(name, shape)| {
            let values = source.tensor(&name).unwrap().to_f32();
            (name, shape, values)
        })
        .collect();
    let dtype = |name: &str| match name {
        n if n.contains("k_proj") || n.contains("up_proj") => DType::BF16,
        n if n.contains("v_proj") => DType::F16,
        _ => DType::F32,
    };
    let dir = tempfile::tempdir().unwrap();
    std::fs::copy(goldens::path("gqa").join("config.json"), dir.path().join("config.json")).unwrap();
    std::fs::write(dir.path().join("model.safetensors"), writer::mixed_safetensors(dtype, &tensors)).unwrap();

    let prompts: Vec<Vec<u32>> =
        (0..4u32).map(|i| (0..9 + i * 5).map(|k| 3 + (i * 31 + k * 7) % 90).collect()).collect();
    let who = [Some(slot(1)), None, Some(slot(0)), Some(slot(2))];
    let alone = |dtype: Option<DType>, level, threads| -> Vec<Vec<Vec<f32>>> {
        let mut model = Model::at(dir.path(), &THREE, dtype, level, threads);
        prompts.iter().zip(who).map(|(p, adapter)| model.alone(p, adapter)).collect()
    };
    let exact = alone(Some(DType::F32), Level::Scalar, 1);
    let all_bits = |all: &[Vec<Vec<f32>>]| all.iter().map(|l| bits(l)).collect::<Vec<_>>();
    let expected = all_bits(&alone(None, Level::Scalar, 1));
    for level in Level::available() {
        for threads in [1, 2] {
            let parts = alone(None, level, threads);
            for (logits, exact) in parts.iter().zip(&exact) {
                let exact: Vec<_> = exact.iter().map(|l| goldens::log_softmax(l)).collect();
                // Rounding activations to BF16 for two of the products.
                let apart = distance(logits, &exact);
                assert!(apart > 0.0 && apart < 0.1, "{level} {threads}: {apart}");
            }
            if level != Level::Avx512Bf16 {
                assert!(all_bits(&parts) == expected, "{level} {threads}");
            }
            let mut model = Model::at(dir.path(), &THREE, None, level, threads);
            let row = |i: usize, from: usize, to: usize| Row {
                seq: i,
                start: from,
                tokens: &prompts[i][from..to],
                adapter: who[i],
            };
            let first = model.forward(&(0..4).map(|i| row(i, 0, 3 + i)).collect::<Vec<_>>());
            let second = model.forward(&(0..4).map(|i| row(i, 3 + i, prompts[i].len())).collect::<Vec<_>>());
            for (i, whole) in parts.iter().enumerate() {
                assert!([bits(&first[i]), bits(&second[i])].concat() == bits(whole), "{level} {threads} row {i}");
            }
        }
    }
}

/// Loaded adapters change nothing for rows without one.
#[test]
fn the_base_is_as_without_adapters() {
    let prompt: Vec<u32> = (3..40).collect();
    for dtype in [DType::F32, DType::Q8_0] {
        let checkpoint = goldens::path("gqa");
        let mut plain = crate::support::cpu::CpuModel::open(&checkpoint, Some(dtype), Level::best(), 1);
        let mut adapted = Model::open("gqa", &THREE, dtype, Level::best(), 1);
        assert!(bits(&plain.logits(&prompt, 64)) == bits(&adapted.alone(&prompt, None)), "{dtype:?}");
    }
}

/// A slot that is empty, or filled by another since, is refused; so is a rank above the limit.
#[test]
fn slots_and_generations_are_checked() {
    let checkpoint = Checkpoint::open(goldens::path("gqa")).unwrap();
    let adapter = Adapter::open(&folder("gqa-qv"), checkpoint.config(), 8).unwrap();
    let pack = || Arc::new(cpu::lora::Adapter::pack(&adapter, checkpoint.config()));
    let mut model = Model::open("gqa", &["gqa-all"], DType::F32, Level::best(), 1);
    let later = AdapterSlot { generation: 8, ..slot(0) };
    let refused = |model: &mut Model, adapter| {
        let spans = [Span { tokens: 0..1, start: 0, blocks: 0..1, adapter: Some(adapter) }];
        let batch = Batch { tokens: &[5], positions: &[0], spans: &spans, blocks: &[BlockId(0)], outputs: &[0] };
        matches!(model.model.forward(&mut model.ops, &batch).map(|_| ()), Err(OpsError::Limit(_)))
    };
    assert!(refused(&mut model, later) && refused(&mut model, slot(1)) && !refused(&mut model, slot(0)));
    model.ops.load_adapter(later, pack()).unwrap();
    assert!(refused(&mut model, slot(0)) && !refused(&mut model, later));
    // An unload that comes late takes nothing away.
    model.ops.unload_adapter(slot(0));
    assert!(!refused(&mut model, later));
    assert_eq!(model.ops.adapters().0, 1);
    model.ops.unload_adapter(later);
    assert!(refused(&mut model, later));
    assert_eq!(model.ops.adapters(), (0, 0));
    assert!(model.ops.load_adapter(slot(1), pack()).is_err());
    model.ops.enable_adapters(1, 4);
    assert!(model.ops.load_adapter(slot(0), pack()).is_err());
}

struct GraphModel {
    ops: Graph,
    llama: Llama<Graph>,
    variables: Vec<Var>,
}

impl GraphModel {
    fn open(base: &str, adapters: &[&str], trainable: bool) -> Self {
        let checkpoint = Checkpoint::open(goldens::path(base)).unwrap();
        let config = checkpoint.config();
        let mut ops = Graph::new(config);
        let llama = Llama::load(&mut ops, &checkpoint, config, |_| ()).unwrap();
        let mut variables = Vec::new();
        for (i, name) in adapters.iter().enumerate() {
            let adapter = Adapter::open(&folder(name), config, 32).unwrap();
            let adapter = match trainable {
                true => graph::Adapter::trainable(&adapter, config).unwrap(),
                false => graph::Adapter::new(&adapter, config).unwrap(),
            };
            variables.extend(adapter.variables().iter().cloned());
            ops.load_adapter(slot(i as u32), Arc::new(adapter)).unwrap();
        }
        Self { ops, llama, variables }
    }

    /// `[T, vocab]`, sequences side by side.
    fn forward(&mut self, sequences: &[(&[u32], Option<AdapterSlot>)]) -> candle_core::Tensor {
        let (mut tokens, mut positions, mut spans) = (vec![], vec![], vec![]);
        for &(sequence, adapter) in sequences {
            let first = tokens.len();
            tokens.extend_from_slice(sequence);
            positions.extend(0..sequence.len() as u32);
            spans.push(Span { tokens: first..tokens.len(), start: 0, blocks: 0..0, adapter });
        }
        let outputs: Vec<u32> = (0..tokens.len() as u32).collect();
        let batch = Batch { tokens: &tokens, positions: &positions, spans: &spans, blocks: &[], outputs: &outputs };
        self.llama.forward(&mut self.ops, &batch).unwrap()
    }
}

#[test]
fn the_graph_equals_peft_and_the_cpu() {
    for golden in all() {
        let mut graph = GraphModel::open(&golden.base, &[&golden.name], false);
        for (prompt, expected) in golden.prompts.iter().zip(&golden.rows) {
            let logits = graph.forward(&[(prompt, Some(slot(0)))]).to_vec2::<f32>().unwrap();
            let apart = distance(&logits, expected);
            assert!(apart <= 1e-4, "{}: {apart}", golden.name);
        }
    }
    let prompts: Vec<Vec<u32>> = (0..4u32).map(|i| (3 + i..20 + 3 * i).collect()).collect();
    let who = [Some(slot(2)), None, Some(slot(0)), Some(slot(1))];
    let mut graph = GraphModel::open("gqa", &THREE, false);
    let sequences: Vec<_> = prompts.iter().map(Vec::as_slice).zip(who).collect();
    let together = graph.forward(&sequences).to_vec2::<f32>().unwrap();
    let mut cpu = Model::open("gqa", &THREE, DType::F32, Level::best(), 2);
    let mut rows = together.into_iter();
    for (tokens, adapter) in sequences {
        let expected: Vec<_> = cpu.alone(tokens, adapter).iter().map(|l| goldens::log_softmax(l)).collect();
        let ours: Vec<_> = rows.by_ref().take(tokens.len()).collect();
        let apart = distance(&ours, &expected);
        assert!(apart <= 1e-4, "{apart}");
    }
}

#[test]
fn gradients_reach_every_matrix_of_an_adapter() {
    let mut model = GraphModel::open("mqa-odd", &["mqa-odd-all"], true);
    let tokens: Vec<u32> = (3..30).collect();
    let loss = |model: &mut GraphModel| {
        let logits = model.forward(&[(&tokens, Some(slot(0)))]).narrow(0, 0, tokens.len() - 1).unwrap();
        let targets = candle_core::Tensor::new(&tokens[1..], logits.device()).unwrap();
        candle_nn::loss::cross_entropy(&logits, &targets).unwrap()
    };
    let scalar = |t: &candle_core::Tensor| f64::from(t.to_scalar::<f32>().unwrap());
    let before = loss(&mut model);
    let gradients = before.backward().unwrap();
    // A and B of seven projections in two layers.
    assert_eq!(model.variables.len(), 2 * 7 * 2);
    let mut squares = 0.0;
    for (i, variable) in model.variables.iter().enumerate() {
        let gradient = gradients.get(variable).unwrap_or_else(|| panic!("variable {i} has no gradient"));
        let square = scalar(&gradient.sqr().unwrap().sum_all().unwrap());
        assert!(square > 0.0 && square.is_finite(), "variable {i}: {square}");
        squares += square;
    }
    // A small step against the gradient lowers the loss by what the gradient says.
    let step = 1e-3 / squares.sqrt();
    for variable in &model.variables {
        let gradient = gradients.get(variable).unwrap();
        variable.set(&(variable.as_tensor() - (gradient * step).unwrap()).unwrap()).unwrap();
    }
    let fell = scalar(&before) - scalar(&loss(&mut model));
    let expected = 1e-3 * squares.sqrt();
    assert!((fell - expected).abs() < 0.05 * expected, "fell by {fell}, not {expected}");
}
