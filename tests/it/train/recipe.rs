//! The recipe's constants, and what follows from them.

use lima::train::Template;
use lima::train::recipe::{Choices, Frozen, Lora, Number, Preset, Recipe, Schedule, difference};
use lima::train::schedule::{dropout, learning_rate};

const SIZE_65B: u64 = 65_285_660_672;
const SIZE_33B: u64 = 32_528_943_616;
const SIZE_135M: u64 = 134_515_008;

/// The paper's table, by the base's size.
#[test]
fn defaults_are_the_papers() {
    let paper = Recipe {
        recipe: Preset::Lima,
        template: Template::Lima,
        epochs: 15,
        batch_size: 32,
        max_tokens: 2048,
        lr: 1e-5,
        lr_end: 1e-6,
        schedule: Schedule::Linear,
        warmup_steps: 0,
        beta1: 0.9,
        beta2: 0.95,
        eps: 1e-8,
        weight_decay: 0.1,
        dropout: 0.3,
        prompt_loss_weight: 0.0,
        neftune: None,
        clip: None,
        seed: 0,
        lora: None,
        compute: Number::F32,
        weights: Number::F32,
        moments: Number::F32,
        micro_batch_tokens: 2048,
        checkpointing: true,
        val_split: 0,
    };
    let small = Recipe { recipe: Preset::LimaSmall, batch_size: 64, dropout: 0.2, ..paper.clone() };
    let none = Choices::default();
    assert_eq!(none.resolve(SIZE_65B).unwrap(), paper);
    assert_eq!(none.resolve(SIZE_33B).unwrap(), small);
    assert_eq!(none.resolve(SIZE_135M).unwrap(), small);
    let choice = |recipe| Choices { recipe: Some(recipe), ..none.clone() };
    assert_eq!(choice(Preset::Lima).resolve(SIZE_135M).unwrap(), paper);
    assert_eq!(choice(Preset::LimaSmall).resolve(SIZE_65B).unwrap(), small);
    let json = serde_json::Value::Object(paper.to_json()).to_string();
    assert_eq!(
        json,
        r#"{"recipe":"lima","template":"lima","epochs":15,"batch-size":32,"max-tokens":2048,"lr":0.00001,"lr-end":1e-6,"schedule":"linear","warmup-steps":0,"beta1":0.9,"beta2":0.95,"eps":1e-8,"weight-decay":0.1,"dropout":0.3,"prompt-loss-weight":0.0,"neftune":null,"clip":null,"seed":0,"lora":null,"compute":"f32","weights":"f32","moments":"f32","micro-batch-tokens":2048,"checkpointing":true,"val-split":0}"#
    );
    assert_eq!(serde_json::from_str::<Recipe>(&json).unwrap(), paper);
}

/// A choice stands, whatever the rest is; the end of the learning rate follows its begin.
#[test]
fn choices_stand() {
    let none = Choices::default();
    let resolve = |choices: Choices| choices.resolve(SIZE_135M).unwrap();
    let lr = resolve(Choices { lr: Some(3e-4), ..none.clone() });
    assert_eq!((lr.lr, lr.lr_end), (3e-4, 3e-4 / 10.0));
    let both = resolve(Choices { lr: Some(3e-4), lr_end: Some(0.0), ..none.clone() });
    assert_eq!((both.lr, both.lr_end), (3e-4, 0.0));
    let own = resolve(Choices {
        recipe: Some(Preset::Lima),
        batch_size: Some(7),
        dropout: Some(0.0),
        neftune: Some(5.0),
        clip: Some(1.0),
        ..none.clone()
    });
    assert_eq!((own.batch_size, own.dropout, own.neftune, own.clip), (7, 0.0, Some(5.0), Some(1.0)));
    // A base for fewer positions than the recipe has tokens.
    let lengths = [1024, 4096].map(|positions| resolve(none.within(positions)).max_tokens);
    assert_eq!(lengths, [1024, 2048]);
    assert_eq!(resolve(Choices { max_tokens: Some(3000), ..none.clone() }.within(1024)).max_tokens, 3000);
    // LoRA has rates of its own.
    let lora = resolve(Choices { lora_rank: Some(16), ..none.clone() });
    assert_eq!((lora.lr, lora.lr_end), (1e-4, 1e-5));
    assert_eq!(lora.lora, Some(Lora { rank: 16, alpha: 32.0, base: Frozen::F32 }));
    let lora = resolve(Choices {
        lora_rank: Some(8),
        lora_alpha: Some(4.0),
        lora_base: Some(Frozen::Q4),
        lr: Some(2e-4),
        ..none.clone()
    });
    assert_eq!((lora.lr, lora.lr_end), (2e-4, 2e-5));
    let json = serde_json::to_string(&lora.lora).unwrap();
    assert_eq!(json, r#"{"rank":8,"alpha":4.0,"base":"q4_0"}"#);
    // Off is off, however it is said.
    assert_eq!(resolve(Choices { neftune: Some(0.0), ..none }).neftune, None);
}

/// Out of range: one sentence that names the flag.
#[test]
fn impossible_constants_are_refused() {
    let none = Choices::default;
    let nan = f64::NAN;
    for (choices, expected) in [
        (Choices { epochs: Some(0), ..none() }, "--epochs is 0, must be at least 1"),
        (Choices { batch_size: Some(0), ..none() }, "--batch-size is 0, must be at least 1"),
        (Choices { max_tokens: Some(1), ..none() }, "--max-tokens is 1, must be at least 2"),
        (Choices { micro_batch_tokens: Some(0), ..none() }, "--micro-batch-tokens is 0, must be at least 1"),
        (Choices { lr: Some(0.0), ..none() }, "--lr is 0, must be above 0"),
        (Choices { lr: Some(nan), ..none() }, "--lr is NaN, must be above 0"),
        (Choices { lr_end: Some(-1e-6), ..none() }, "--lr-end is -0.000001, must be 0 or more"),
        (Choices { beta1: Some(1.0), ..none() }, "--beta1 is 1, must be from 0 to below 1"),
        (Choices { beta2: Some(-0.1), ..none() }, "--beta2 is -0.1, must be from 0 to below 1"),
        (Choices { eps: Some(0.0), ..none() }, "--eps is 0, must be above 0"),
        (Choices { weight_decay: Some(f64::INFINITY), ..none() }, "--weight-decay is inf, must be 0 or more"),
        (Choices { dropout: Some(1.0), ..none() }, "--dropout is 1, must be from 0 to below 1"),
        (Choices { prompt_loss_weight: Some(1.5), ..none() }, "--prompt-loss-weight is 1.5, must be from 0 to 1"),
        (Choices { neftune: Some(-5.0), ..none() }, "--neftune is -5, must be 0 or more"),
        (Choices { clip: Some(0.0), ..none() }, "--clip is 0, must be above 0"),
        (Choices { lora_rank: Some(0), ..none() }, "--lora-rank is 0, must be at least 1"),
        (Choices { lora_rank: Some(1), lora_alpha: Some(0.0), ..none() }, "--lora-alpha is 0, must be above 0"),
        (
            Choices { lora_rank: Some(1), weights: Some(Number::Bf16), ..none() },
            "--weights is bf16, must be f32 with --lora-rank",
        ),
    ] {
        assert_eq!(choices.resolve(SIZE_135M).unwrap_err().to_string(), expected);
    }
}

#[test]
fn the_first_difference_is_named() {
    let resolve = |c: Choices| c.resolve(SIZE_135M).unwrap().to_json();
    let old = resolve(Choices::default());
    assert_eq!(difference(&old, &old.clone()), None);
    let new = resolve(Choices { lr: Some(1.0), seed: Some(3), ..Choices::default() });
    assert_eq!(difference(&old, &new).unwrap(), "lr is 1.0, and was 0.00001");
    let mut fewer = old.clone();
    fewer.shift_remove("clip");
    assert_eq!(difference(&old, &fewer).unwrap(), "clip is nothing, and was null");
    assert_eq!(difference(&fewer, &old).unwrap(), "clip is null, and was nothing");
}

/// lr(s) = 1e-5 − 9e-6 · s / (T − 1) for 1,000 rows in batches of 32, and the other schedules at marked points.
#[test]
fn learning_rates() {
    let of = |choices: Choices| choices.resolve(SIZE_65B).unwrap();
    let close = |a: f64, b: f64| assert!((a - b).abs() <= 1e-12 * b.abs(), "{a} is not {b}");
    let lima = of(Choices::default());
    for step in 0..480 {
        close(learning_rate(&lima, step, 480), 1e-5 - 9e-6 * step as f64 / 479.0);
    }
    assert_eq!((learning_rate(&lima, 0, 480), learning_rate(&lima, 479, 480)), (1e-5, 1e-6));
    assert_eq!(learning_rate(&lima, 0, 1), 1e-5);

    let cosine = of(Choices { schedule: Some(Schedule::Cosine), lr_end: Some(0.0), ..Choices::default() });
    close(learning_rate(&cosine, 0, 101), 1e-5);
    close(learning_rate(&cosine, 25, 101), 1e-5 * 0.5 * (1.0 + 0.5f64.sqrt()));
    close(learning_rate(&cosine, 50, 101), 5e-6);
    assert!(learning_rate(&cosine, 100, 101).abs() < 1e-20);

    let warm = of(Choices { warmup_steps: Some(10), ..Choices::default() });
    close(learning_rate(&warm, 0, 110), 1e-6);
    close(learning_rate(&warm, 9, 110), 1e-5);
    close(learning_rate(&warm, 10, 110), 1e-5);
    close(learning_rate(&warm, 109, 110), 1e-6);
    // A warmup that never ends.
    close(learning_rate(&warm, 4, 5), 5e-6);
}

#[test]
fn dropout_rises_from_the_bottom() {
    let all = dropout(0.3, 80);
    assert_eq!((all.len(), all[0], all[79]), (80, 0.0, 0.3));
    assert!((all[1] - 0.003_797_468).abs() < 1e-8, "{}", all[1]);
    assert!(all.windows(2).all(|w| (w[1] - w[0] - all[1]).abs() < 1e-7));
    assert_eq!((dropout(0.2, 1), dropout(0.2, 2)), (vec![0.0], vec![0.0, 0.2]));
}
