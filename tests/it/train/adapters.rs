//! LoRA in training, frozen bases in blocks, and weights in BF16.

use lima::model::weights::Checkpoint;
use lima::ops::parameter::{edit, edit_bf16};
use lima::ops::philox::uniform;
use lima::train::model::{Settings, StepKey, Tuning};
use lima::train::recipe::{Frozen, Number};
use lima::train::{Example, Gradients, Model};

use crate::support::goldens;

const KEY: StepKey = StepKey { seed: 1, step: 0 };
const NAMES: [&str; 2] = ["gqa", "mqa-odd"];

fn checkpoint(name: &str) -> Checkpoint {
    Checkpoint::open(goldens::path(name)).unwrap()
}

fn lora(base: Frozen) -> Settings {
    Settings { tuning: Tuning::Lora { rank: 3, alpha: 6.0, base }, threads: Some(2), ..Settings::default() }
}

/// Two examples with the new token 60 in them.
fn examples() -> Vec<Example> {
    let example = |row: u32, len: u32| Example {
        ids: (0..len).map(|t| if t % 9 == 8 { 60 } else { (t * 7 + row * 13) % 60 }).collect(),
        supervised: (0..len).map(|t| t > 4).collect(),
        trimmed: 0,
        row,
    };
    vec![example(0, 40), example(1, 23)]
}

fn loss(model: &mut Model, examples: &[Example]) -> f64 {
    model.evaluate(&examples.iter().collect::<Vec<_>>()).unwrap().nll
}

fn gradients(model: &mut Model, examples: &[Example]) -> Vec<Vec<f32>> {
    let mut gradients = Gradients::new(model.parameters()).unwrap();
    model.accumulate(&examples.iter().collect::<Vec<_>>(), 1.0, KEY, &mut gradients).unwrap();
    let values = |t: &Option<candle_core::Tensor>| t.as_ref().unwrap().flatten_all().unwrap().to_vec1().unwrap();
    gradients.tensors().iter().map(values).collect()
}

/// B begins at zero, where A has no gradient yet.
fn disturb(model: &Model) {
    for (i, parameter) in model.parameters().iter().enumerate() {
        edit(parameter.var.as_tensor(), |w| {
            let noise = |j: usize| 0.1 * (uniform(5, i as u32, j as u64) as f32 - 0.5);
            w.iter_mut().enumerate().for_each(|(j, v)| *v += noise(j));
        })
        .unwrap();
    }
}

#[test]
fn lora_begins_as_its_base() {
    for name in NAMES {
        let checkpoint = checkpoint(name);
        let mut full = Model::new(&checkpoint, Some(60), Settings::default()).unwrap();
        let mut model = Model::new(&checkpoint, Some(60), lora(Frozen::F32)).unwrap();
        let (a, b) = (loss(&mut full, &examples()), loss(&mut model, &examples()));
        assert!((a - b).abs() < 1e-6 * a, "{name}: {b} for {a}");
        let tables = if name == "gqa" { 2 } else { 1 };
        assert_eq!(model.parameters().len(), tables + 2 * 7 * 2);
        assert!(model.parameters()[..tables].iter().all(|p| p.tensors[0].rows == 1));
        let last = &model.parameters()[model.parameters().len() - 1].tensors[0].name;
        assert_eq!(last, "base_model.model.model.layers.1.mlp.down_proj.lora_B.weight");
    }
}

#[test]
fn gradients_of_lora_are_the_slopes_of_its_loss() {
    for (name, base) in NAMES.into_iter().zip([Frozen::F32, Frozen::Q8]) {
        let mut model = Model::new(&checkpoint(name), Some(60), lora(base)).unwrap();
        disturb(&model);
        let examples = examples();
        let gradients = gradients(&mut model, &examples);
        for (i, gradient) in gradients.iter().enumerate() {
            let what = model.parameters()[i].tensors[0].name.clone();
            let norm = gradient.iter().map(|g| f64::from(*g).powi(2)).sum::<f64>().sqrt();
            assert!(norm > 0.0, "{name}: {what} has no gradient");
            // Along its own gradient the loss rises by the gradient's norm.
            let var = model.parameters()[i].var.clone();
            let mut at = |factor: f64| {
                let step = |w: &mut [f32], sign: f64| {
                    w.iter_mut().zip(gradient).for_each(|(w, g)| *w += (sign * factor / norm) as f32 * g);
                };
                edit(var.as_tensor(), |w| step(w, 1.0)).unwrap();
                let loss = loss(&mut model, &examples);
                edit(var.as_tensor(), |w| step(w, -1.0)).unwrap();
                loss
            };
            // Small enough that the loss is straight, and large enough that its rounding is not seen.
            let h = (0.1 / norm).min(3e-3);
            let slope = (at(h) - at(-h)) / (2.0 * h);
            assert!((slope - norm).abs() < 0.02 * norm + 2e-2, "{name}: {what}: slope {slope}, gradient {norm}");
        }
    }
}

#[test]
fn a_merged_adapter_is_the_same_model() {
    let checkpoint = checkpoint("gqa");
    let mut model = Model::new(&checkpoint, Some(60), lora(Frozen::F32)).unwrap();
    disturb(&model);
    let merged = Model::new(&checkpoint, Some(60), Settings::default()).unwrap();
    for parameter in merged.parameters() {
        let parts: Vec<Vec<f32>> = parameter
            .tensors
            .iter()
            .map(|p| model.tensor(&p.name).unwrap().flatten_all().unwrap().to_vec1().unwrap())
            .collect();
        edit(parameter.var.as_tensor(), |w| w.copy_from_slice(&parts.concat())).unwrap();
    }
    let mut merged = merged;
    let (a, b) = (loss(&mut model, &examples()), loss(&mut merged, &examples()));
    assert!((a - b).abs() < 1e-5 * a, "{a}, merged {b}");
    assert!(model.tensor("no.such.weight").is_err());
}

#[test]
fn bases_in_blocks_and_weights_in_bf16_are_near() {
    let checkpoint = checkpoint("gqa");
    let of = |settings: Settings| loss(&mut Model::new(&checkpoint, Some(60), settings).unwrap(), &examples());
    let exact = of(Settings::default());
    for (settings, tolerance) in [
        (lora(Frozen::Q8), 0.02),
        (lora(Frozen::Q4), 0.3),
        (Settings { weights: Number::Bf16, ..Settings::default() }, 0.02),
        (Settings { compute: Number::Bf16, ..Settings::default() }, 0.02),
    ] {
        let near = of(settings.clone());
        assert!(near != exact && (near - exact).abs() < tolerance * exact, "{settings:?}: {near} for {exact}");
    }
}

#[test]
fn bf16_weights_have_the_gradients_of_their_values() {
    let checkpoint = checkpoint("llama3");
    let settings = |weights| Settings { weights, threads: Some(2), ..Settings::default() };
    let mut coarse = Model::new(&checkpoint, None, settings(Number::Bf16)).unwrap();
    let mut fine = Model::new(&checkpoint, None, settings(Number::F32)).unwrap();
    // The file is BF16, so both have the same values.
    assert_eq!(gradients(&mut coarse, &examples()), gradients(&mut fine, &examples()));
    let matrix = coarse.parameters().iter().find(|p| p.decay).unwrap().var.clone();
    let before = loss(&mut coarse, &examples());
    edit_bf16(matrix.as_tensor(), |w| w[..640].fill(half::bf16::ONE)).unwrap();
    assert_ne!(loss(&mut coarse, &examples()), before);
}
