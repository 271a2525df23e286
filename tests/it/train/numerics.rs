//! Losses and gradients: against PyTorch, against the slow twin, and what must not change them.

use std::collections::HashMap;

use candle_core::{Device, Tensor};
use lima::model::llama::Llama;
use lima::model::weights::Checkpoint;
use lima::ops::cpu::level::Level;
use lima::ops::dense::Operands;
use lima::ops::noise::{Noise, Place, Token};
use lima::ops::tape::{Keep, Tape};
use lima::ops::{Batch, Span};
use lima::train::model::{Settings, StepKey};
use lima::train::optimizer::{self, AdamW};
use lima::train::schedule::learning_rate;
use lima::train::{Choices, Example, Gradients, LossSum, Model};
use serde::Deserialize;

use crate::support::goldens;

const KEY: StepKey = StepKey { seed: 7, step: 3 };

#[derive(Deserialize)]
struct Row {
    ids: Vec<u32>,
    supervised: Vec<bool>,
}

#[derive(Deserialize)]
struct Optimizer {
    betas: [f64; 2],
    eps: f64,
    weight_decay: f64,
    learning_rates: Vec<f64>,
}

#[derive(Deserialize)]
struct Golden {
    model: String,
    optimizer: Optimizer,
    loss: f64,
    losses: Vec<f64>,
    examples: Vec<Row>,
    logits: Vec<Vec<f32>>,
}

impl Golden {
    fn read() -> Self {
        let path = goldens::path("training_numerics/numerics.json");
        serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
    }

    fn examples(&self) -> Vec<Example> {
        let example = |(i, row): (usize, &Row)| Example {
            ids: row.ids.clone(),
            supervised: row.supervised.clone(),
            trimmed: 0,
            row: i as u32,
        };
        self.examples.iter().enumerate().map(example).collect()
    }
}

/// A model of tests/goldens.
fn checkpoint(name: &str) -> Checkpoint {
    Checkpoint::open(goldens::path(name)).unwrap()
}

fn settings() -> Settings {
    Settings { threads: Some(2), ..Settings::default() }
}

/// Everything at once: noise of both kinds, and prompts that count a little.
fn noisy(layers: usize) -> Settings {
    let dropout = (0..layers).map(|l| 0.3 * l as f32 / (layers - 1) as f32).collect();
    Settings { dropout, neftune: 5.0, prompt_weight: 0.25, ..settings() }
}

/// Examples of random tokens below `vocab`, the second half supervised.
fn examples(vocab: u32, lens: &[usize]) -> Vec<Example> {
    let token = |i: usize, t: usize| (i as u32 * 7919 + t as u32 * 104_729 + t as u32 * t as u32 * 31) % vocab;
    let example = |(i, &len): (usize, &usize)| Example {
        ids: (0..len).map(|t| token(i, t)).collect(),
        supervised: (0..len).map(|t| t >= len / 2).collect(),
        trimmed: 0,
        row: 10 + i as u32,
    };
    lens.iter().enumerate().map(example).collect()
}

/// Loss and gradients of micro-batches, in the order given.
fn accumulated(model: &mut Model, micros: &[Vec<&Example>], scale: f64) -> (LossSum, Vec<Vec<f32>>) {
    let mut gradients = Gradients::new(model.parameters()).unwrap();
    let mut loss = LossSum::default();
    for micro in micros {
        loss += model.accumulate(micro, scale, KEY, &mut gradients).unwrap();
    }
    (loss, values(&gradients))
}

fn values(gradients: &Gradients) -> Vec<Vec<f32>> {
    let values = |t: &Option<Tensor>| t.as_ref().unwrap().flatten_all().unwrap().to_vec1().unwrap();
    gradients.tensors().iter().map(values).collect()
}

fn all(examples: &[Example]) -> Vec<Vec<&Example>> {
    vec![examples.iter().collect()]
}

/// |a - b| / |b|.
fn relative(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
    let difference = norm(&mut a.iter().zip(b).map(|(a, b)| f64::from(*a) - f64::from(*b)));
    difference / norm(&mut b.iter().map(|b| f64::from(*b))).max(1e-30)
}

fn assert_near(model: &Model, a: &[Vec<f32>], b: &[Vec<f32>], tolerance: f64) {
    for ((a, b), parameter) in a.iter().zip(b).zip(model.parameters()) {
        let error = relative(a, b);
        assert!(error < tolerance, "{}: {error}", parameter.tensors[0].name);
    }
}

fn bits(gradients: &[Vec<f32>]) -> Vec<Vec<u32>> {
    gradients.iter().map(|g| g.iter().map(|v| v.to_bits()).collect()).collect()
}

/// Logits after each token, by the forward pass that trains.
struct Forward {
    ops: Tape,
    llama: Llama<Tape>,
}

impl Forward {
    fn open(name: &str) -> Self {
        let checkpoint = checkpoint(name);
        let config = checkpoint.config();
        let mut ops = Tape::new(config, Keep::F32, Operands::F32, Level::best(), 2);
        let llama = Llama::load(&mut ops, &checkpoint, config, |_| ()).unwrap();
        Self { ops, llama }
    }

    fn logits(&mut self, tokens: &[u32]) -> Vec<Vec<f32>> {
        let positions: Vec<u32> = (0..tokens.len() as u32).collect();
        let spans = [Span { tokens: 0..tokens.len(), start: 0, blocks: 0..0, adapter: None }];
        let batch = Batch { tokens, positions: &positions, spans: &spans, blocks: &[], outputs: &positions };
        let logits = self.llama.forward(&mut self.ops, &batch).unwrap();
        logits.values().chunks(logits.values().len() / tokens.len()).map(<[f32]>::to_vec).collect()
    }
}

#[test]
fn logits_are_pytorchs() {
    let golden = Golden::read();
    let logits = Forward::open(&golden.model).logits(&golden.examples[0].ids);
    assert!(relative(&logits.concat(), &golden.logits.concat()) < 1e-5);
}

#[test]
fn the_forward_pass_that_trains_is_the_one_that_serves() {
    for name in goldens::SMALL {
        let mut model = Forward::open(name);
        goldens::compare_small(name, &mut |tokens| model.logits(tokens)).assert_exact(1e-4, name);
    }
}

#[test]
fn loss_and_gradients_are_pytorchs() {
    let golden = Golden::read();
    let examples = golden.examples();
    let file = goldens::path("training_numerics/gradients.safetensors");
    let expected: HashMap<String, Tensor> = candle_core::safetensors::load(file, &Device::Cpu).unwrap();
    let mut seen = 0;
    for fused in [true, false] {
        let open = if fused { Model::new } else { Model::composed };
        let mut model = open(&checkpoint(&golden.model), None, settings()).unwrap();
        let weight = model.evaluate(&all(&examples)[0]).unwrap().weight;
        let (loss, gradients) = accumulated(&mut model, &all(&examples), 1.0 / weight);
        let mean = loss.nll / loss.weight;
        assert!((mean - golden.loss).abs() < 1e-4 * golden.loss, "{mean} for {}", golden.loss);
        for (parameter, gradient) in model.parameters().iter().zip(&gradients) {
            let cols = gradient.len() / parameter.tensors.iter().map(|p| p.rows).sum::<usize>();
            let mut rest = gradient.as_slice();
            for part in &parameter.tensors {
                let (own, after) = rest.split_at(part.rows * cols);
                rest = after;
                let expected: Vec<f32> = expected[&part.name].flatten_all().unwrap().to_vec1().unwrap();
                let error = relative(own, &expected);
                assert!(error < 1e-4, "{}: {error}", part.name);
                assert!(own.iter().any(|v| *v != 0.0), "{} has a gradient", part.name);
                seen += 1;
            }
        }
    }
    assert_eq!(seen, 2 * expected.len());
    assert!(expected.len() >= 16);
}

/// Ten steps of the recipe's AdamW, decay and schedule.
#[test]
fn ten_losses_are_pytorchs() {
    let golden = Golden::read();
    let (examples, given) = (golden.examples(), &golden.optimizer);
    let recipe = Choices { lr: Some(given.learning_rates[0]), ..Choices::default() }.resolve(0).unwrap();
    assert_eq!(given.betas, [recipe.beta1, recipe.beta2]);
    assert_eq!((given.eps, given.weight_decay), (recipe.eps, recipe.weight_decay));
    let mut model = Model::new(&checkpoint(&golden.model), None, settings()).unwrap();
    let mut gradients = Gradients::new(model.parameters()).unwrap();
    let mut optimizer = AdamW::new(model.parameters(), optimizer::Settings::from(&recipe));
    let supervised: usize = examples.iter().map(Example::supervised_tokens).sum();
    let steps = golden.losses.len() as u64;
    assert_eq!(steps, 10);
    for (step, (lr, &expected)) in given.learning_rates.iter().zip(&golden.losses).enumerate() {
        gradients.zero().unwrap();
        let mut loss = LossSum::default();
        for example in &examples {
            loss += model.accumulate(&[example], 1.0 / supervised as f64, KEY, &mut gradients).unwrap();
        }
        let mean = loss.nll / loss.weight;
        assert!((mean - expected).abs() < 1e-4 * expected, "{mean} for {expected}");
        let own = learning_rate(&recipe, step as u64, steps);
        assert!((own - lr).abs() < 1e-12, "{own} for {lr}");
        optimizer.step(model.parameters(), &gradients, own).unwrap();
    }
}

#[test]
fn the_slow_twin_agrees() {
    for name in goldens::SMALL {
        let checkpoint = checkpoint(name);
        let config = checkpoint.config();
        let new = config.vocab_size as u32;
        let mut examples = examples(config.vocab_size as u32, &[70, 5, 33, 2, 1, 129]);
        examples[2].ids[30] = new;
        let mut fused = Model::new(&checkpoint, Some(new), noisy(config.num_layers)).unwrap();
        let mut composed = Model::composed(&checkpoint, Some(new), noisy(config.num_layers)).unwrap();
        let (loss, gradients) = accumulated(&mut fused, &all(&examples), 0.01);
        let (expected, twins) = accumulated(&mut composed, &all(&examples), 0.01);
        assert!((loss.nll - expected.nll).abs() < 1e-4 * expected.nll, "{name}: {loss:?} for {expected:?}");
        assert_eq!(loss.weight, expected.weight);
        assert_near(&fused, &gradients, &twins, 1e-4);
        assert!(gradients.iter().all(|g| g.iter().any(|v| *v != 0.0)), "{name}: every gradient");
        let (a, b) = (fused.evaluate(&all(&examples)[0]).unwrap(), composed.evaluate(&all(&examples)[0]).unwrap());
        assert!((a.nll - b.nll).abs() < 1e-4 * b.nll, "{name}: {a:?} for {b:?}");
    }
}

#[test]
fn checkpointing_and_threads_change_no_bit() {
    let checkpoint = checkpoint("llama3");
    let examples = examples(100, &[150, 40, 3, 97]);
    let of = |checkpointing, threads| {
        let settings = Settings { checkpointing, threads: Some(threads), ..noisy(2) };
        let mut model = Model::new(&checkpoint, None, settings).unwrap();
        let (loss, gradients) = accumulated(&mut model, &all(&examples), 0.01);
        (loss, bits(&gradients))
    };
    let expected = of(false, 1);
    for (checkpointing, threads) in [(true, 1), (false, 2), (true, 3)] {
        assert!(of(checkpointing, threads) == expected, "{checkpointing} {threads}");
    }
}

#[test]
fn neither_micro_batches_nor_neighbours_change_gradients() {
    let checkpoint = checkpoint("gqa");
    let examples = examples(96, &[60, 9, 31, 2, 100, 44]);
    let mut model = Model::new(&checkpoint, None, noisy(2)).unwrap();
    let pick = |rows: &[usize]| rows.iter().map(|i| &examples[*i]).collect::<Vec<_>>();
    let (loss, expected) = accumulated(&mut model, &[pick(&[0, 1, 2, 3, 4, 5])], 0.01);
    let orders: [Vec<Vec<usize>>; 4] = [
        vec![vec![5, 4, 3, 2, 1, 0]],
        vec![vec![2, 0, 4], vec![1, 5, 3]],
        vec![vec![3], vec![0], vec![1], vec![2], vec![5], vec![4]],
        vec![vec![0, 1, 2, 3, 4], vec![5]],
    ];
    for order in orders {
        let micros: Vec<_> = order.iter().map(|rows| pick(rows)).collect();
        let (other, gradients) = accumulated(&mut model, &micros, 0.01);
        assert!((other.nll - loss.nll).abs() < 1e-6 * loss.nll, "{order:?}: {other:?} for {loss:?}");
        assert_near(&model, &gradients, &expected, 1e-6);
    }
}

#[test]
fn dropout_has_each_layers_rate_and_is_off_when_evaluating() {
    let dropout: Vec<f32> = (0..5).map(|l| 0.3 * l as f32 / 4.0).collect();
    let noise = Noise { key: KEY, rows: vec![0], dropout: dropout.clone(), neftune: 0.0 };
    let (columns, tokens) = (1000, 200);
    let mut kept = vec![0u8; columns / 8];
    for (layer, rate) in dropout.iter().enumerate() {
        for place in [Place::Attention, Place::Mlp] {
            let mut ones = 0;
            for position in 0..tokens {
                noise.kept(layer, place, Token { row: 3, position }, columns, &mut kept);
                ones += kept.iter().map(|b| b.count_ones()).sum::<u32>();
            }
            let n = f64::from(tokens) * columns as f64;
            let (measured, p) = (1.0 - f64::from(ones) / n, f64::from(*rate));
            assert!((measured - p).abs() < 5.0 * (p / n).sqrt() + 1e-9, "layer {layer}: {measured} for {p}");
        }
    }
    // Layers, places, tokens and steps draw apart.
    let draw = |layer, place, row, position, step| {
        let noise = Noise { key: StepKey { step, ..KEY }, dropout: vec![0.5; 2], ..noise.clone() };
        let mut kept = vec![0u8; columns / 8];
        noise.kept(layer, place, Token { row, position }, columns, &mut kept);
        kept
    };
    let one = draw(0, Place::Attention, 0, 0, 0);
    let others = [
        draw(1, Place::Attention, 0, 0, 0),
        draw(0, Place::Mlp, 0, 0, 0),
        draw(0, Place::Attention, 1, 0, 0),
        draw(0, Place::Attention, 0, 1, 0),
        draw(0, Place::Attention, 0, 0, 1),
    ];
    for other in others {
        let same: u32 = one.iter().zip(&other).map(|(a, b)| (a ^ b).count_zeros()).sum();
        assert!((400..600).contains(&same), "{same} of {columns} alike");
    }

    let checkpoint = checkpoint("gqa");
    let examples = examples(96, &[40, 21]);
    let mut plain = Model::new(&checkpoint, None, settings()).unwrap();
    let mut dropping = Model::new(&checkpoint, None, Settings { dropout: vec![0.0, 0.3], ..settings() }).unwrap();
    let expected = plain.evaluate(&all(&examples)[0]).unwrap();
    let (trained, _) = accumulated(&mut dropping, &all(&examples), 1.0);
    assert_eq!(dropping.evaluate(&all(&examples)[0]).unwrap(), expected);
    assert!((trained.nll - expected.nll).abs() > 1e-3 * expected.nll, "{trained:?}, {expected:?}");
    assert_eq!(accumulated(&mut plain, &all(&examples), 1.0).0, expected);
}

#[test]
fn a_new_token_begins_as_the_mean_and_padding_learns_nothing() {
    for name in ["gqa", "mqa-odd"] {
        let checkpoint = checkpoint(name);
        let (vocab, hidden) = (checkpoint.config().vocab_size, checkpoint.config().hidden_size);
        let mut model = Model::new(&checkpoint, Some(vocab as u32), settings()).unwrap();
        assert_eq!(model.config().vocab_size, (vocab + 1).next_multiple_of(64));
        let mut examples = examples(vocab as u32, &[30, 12]);
        examples[0].ids[29] = vocab as u32;
        examples[1].ids[4] = vocab as u32;
        let (_, gradients) = accumulated(&mut model, &all(&examples), 1.0);
        let mut tables = 0;
        for (parameter, gradient) in model.parameters().iter().zip(&gradients) {
            let name = &parameter.tensors[0].name;
            if name != "model.embed_tokens.weight" && name != "lm_head.weight" {
                continue;
            }
            tables += 1;
            assert_eq!(parameter.tensors[0].rows, model.config().vocab_size);
            let rows: Vec<Vec<f32>> = parameter.var.to_vec2().unwrap();
            let old = checkpoint.tensor(name).unwrap().to_f32();
            assert_eq!(rows[..vocab].concat(), old);
            for (i, v) in rows[vocab].iter().enumerate() {
                let mean: f64 = (0..vocab).map(|r| f64::from(old[r * hidden + i])).sum::<f64>() / vocab as f64;
                assert!((f64::from(*v) - mean).abs() < 1e-6);
            }
            assert!(rows[vocab + 1..].iter().flatten().all(|v| *v == 0.0));
            let gradient: Vec<&[f32]> = gradient.chunks(hidden).collect();
            assert!(gradient[vocab].iter().all(|v| *v != 0.0));
            assert!(gradient[vocab + 1..].iter().all(|row| row.iter().all(|v| *v == 0.0)));
        }
        assert_eq!(tables, if name == "gqa" { 2 } else { 1 });
        // A logit of padding would add to the sum that the likelihood is relative to.
        let before = model.evaluate(&all(&examples)[0]).unwrap();
        let is_head = |name: &str| name == "lm_head.weight" || name == "model.embed_tokens.weight";
        let head = model.parameters().iter().rev().find(|p| is_head(&p.tensors[0].name)).unwrap();
        lima::ops::parameter::edit(head.var.as_tensor(), |w| w[(vocab + 1) * hidden..].fill(9.0)).unwrap();
        assert_eq!(model.evaluate(&all(&examples)[0]).unwrap(), before);
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let checkpoint = checkpoint("gqa");
    let mut model = Model::new(&checkpoint, None, settings()).unwrap();
    let mut bad = examples(96, &[5]);
    bad[0].ids[2] = 96;
    let error = model.evaluate(&[&bad[0]]).unwrap_err().to_string();
    assert_eq!(error, "row 10: token 96 is outside the vocabulary of 96");
    for (dropout, message) in [
        (vec![0.1], "1 rates of dropout for 2 layers"),
        (vec![0.0, 1.0], "a rate of dropout is 1, must be from 0 to below 1"),
    ] {
        let error = Model::new(&checkpoint, None, Settings { dropout, ..settings() }).err().unwrap();
        assert_eq!(error.to_string(), message);
    }
    // Nothing to learn is no error.
    let mut none = examples(96, &[5]);
    none[0].supervised.fill(false);
    let (loss, gradients) = accumulated(&mut model, &all(&none), 1.0);
    assert_eq!(loss, LossSum::default());
    assert!(gradients.iter().flatten().all(|v| *v == 0.0));
}
