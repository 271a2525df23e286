//! The Llama on candle tensors: gradients, batches, limits.

use std::path::Path;

use candle_core::{Tensor, Var};
use lima::engine::AdapterSlot;
use lima::model::llama::Llama;
use lima::model::weights::Checkpoint;
use lima::ops::graph::Graph;
use lima::ops::{Batch, OpsError, Span};

use crate::support::goldens;

/// A model on the graph backend.
pub struct GraphModel {
    ops: Graph,
    llama: Llama<Graph>,
}

impl GraphModel {
    /// A folder or GGUF file, with constant weights or variables.
    pub fn open(path: &Path, trainable: bool) -> Self {
        let checkpoint = Checkpoint::open(path).unwrap();
        let config = checkpoint.config();
        let mut ops = if trainable { Graph::trainable(config) } else { Graph::new(config) };
        let llama = Llama::load(&mut ops, &checkpoint, config, |_| ()).unwrap();
        Self { ops, llama }
    }

    /// Logits of all tokens of all sequences.
    fn tensor(&mut self, sequences: &[&[u32]]) -> Tensor {
        let rows: u32 = sequences.iter().map(|s| s.len() as u32).sum();
        self.rows(sequences, &(0..rows).collect::<Vec<_>>())
    }

    fn rows(&mut self, sequences: &[&[u32]], outputs: &[u32]) -> Tensor {
        let mut spans: Vec<Span> = Vec::new();
        for sequence in sequences {
            let start = spans.last().map_or(0, |s| s.tokens.end);
            spans.push(Span { tokens: start..start + sequence.len(), start: 0, blocks: 0..0, adapter: None });
        }
        self.run(&sequences.concat(), &spans, outputs).unwrap()
    }

    fn run(&mut self, tokens: &[u32], spans: &[Span], outputs: &[u32]) -> Result<Tensor, OpsError> {
        let positions: Vec<u32> =
            spans.iter().flat_map(|s| s.start as u32..(s.start + s.tokens.len()) as u32).collect();
        self.llama.forward(&mut self.ops, &Batch { tokens, positions: &positions, spans, blocks: &[], outputs })
    }

    /// Logits after each token of one sequence.
    pub fn logits(&mut self, tokens: &[u32]) -> Vec<Vec<f32>> {
        self.tensor(&[tokens]).to_vec2().unwrap()
    }

    /// Mean negative log-likelihood of each next token.
    fn loss(&mut self, tokens: &[u32]) -> Tensor {
        let logits = self.tensor(&[tokens]).narrow(0, 0, tokens.len() - 1).unwrap();
        let targets = Tensor::new(&tokens[1..], logits.device()).unwrap();
        candle_nn::loss::cross_entropy(&logits, &targets).unwrap()
    }
}

fn scalar(t: &Tensor) -> f64 {
    f64::from(t.to_scalar::<f32>().unwrap())
}

#[test]
fn every_weight_receives_its_gradient() {
    // Untied, and tied: there the embedding's gradient has two parts.
    for (name, variables) in [("gqa", 3 + 2 * 6), ("mqa-odd", 2 + 2 * 6)] {
        let mut model = GraphModel::open(&goldens::path(name), true);
        let tokens = &goldens::small(name)[3].prompt;
        let gradients = model.loss(tokens).backward().unwrap();
        let vars: Vec<Var> = model.ops.variables().to_vec();
        assert_eq!(vars.len(), variables, "{name}");
        for (i, var) in vars.iter().enumerate() {
            let gradient = gradients.get(var).unwrap_or_else(|| panic!("{name}: variable {i} has no gradient"));
            let squared = scalar(&gradient.sqr().unwrap().sum_all().unwrap());
            assert!(squared > 0.0 && squared.is_finite(), "{name}: variable {i} has gradient norm² {squared}");
            // Along its own gradient the loss rises by the gradient's norm.
            let weights = var.as_tensor().copy().unwrap();
            let step = (gradient * (3e-3 / squared.sqrt())).unwrap();
            let mut at = |moved: Tensor| {
                var.set(&moved).unwrap();
                scalar(&model.loss(tokens))
            };
            let rise = (at((&weights + &step).unwrap()) - at((&weights - &step).unwrap())) / 6e-3;
            var.set(&weights).unwrap();
            let norm = squared.sqrt();
            assert!((rise - norm).abs() < 0.02 * norm + 1e-3, "{name}: variable {i}: slope {rise}, gradient {norm}");
        }
    }
}

#[test]
fn constant_weights_collect_no_variables() {
    let model = GraphModel::open(&goldens::path("linear"), false);
    assert!(model.ops.variables().is_empty());
}

#[test]
fn sequences_of_a_batch_do_not_see_each_other() {
    let mut model = GraphModel::open(&goldens::path("llama3"), false);
    let sequences = goldens::small("llama3");
    let prompts: Vec<&[u32]> = sequences.iter().map(|s| s.prompt.as_slice()).collect();
    let together: Vec<Vec<f32>> = model.tensor(&prompts).to_vec2().unwrap();
    let alone = prompts.iter().flat_map(|p| model.logits(p));
    for (a, b) in together.iter().zip(alone) {
        a.iter().zip(b).for_each(|(a, b)| assert!((a - b).abs() < 1e-4));
    }
}

#[test]
fn head_gives_the_rows_asked_for() {
    let mut model = GraphModel::open(&goldens::path("gqa"), false);
    let prompt = &goldens::small("gqa")[3].prompt;
    let all = model.logits(prompt);
    let some: Vec<Vec<f32>> = model.rows(&[prompt], &[4, 32]).to_vec2().unwrap();
    assert_eq!(some.len(), 2);
    for (a, b) in [(&some[0], &all[4]), (&some[1], &all[32])] {
        a.iter().zip(b).for_each(|(a, b)| assert!((a - b).abs() < 1e-4));
    }
}

#[test]
fn what_it_cannot_do_is_refused() {
    let mut model = GraphModel::open(&goldens::path("gqa"), false);
    let span = Span { tokens: 0..2, start: 3, blocks: 0..0, adapter: None };
    let error = model.run(&[1, 2], std::slice::from_ref(&span), &[1]).unwrap_err();
    assert!(matches!(error, OpsError::Limit(_)), "{error}");
    let span = Span { start: 0, adapter: Some(AdapterSlot { index: 0, generation: 1 }), ..span };
    let error = model.run(&[1, 2], std::slice::from_ref(&span), &[1]).unwrap_err();
    assert!(matches!(error, OpsError::Limit(_)), "{error}");
    let error = model.run(&[1, 5000], &[Span { adapter: None, ..span }], &[1]).unwrap_err();
    assert!(matches!(error, OpsError::Candle(_)), "{error}");
}
