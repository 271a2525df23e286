//! `lima plan`: against known numbers, and against what loading takes.

use lima::engine::BLOCK_SIZE;
use lima::model::weights::Checkpoint;
use lima::ops::cpu::level::Level;
use lima::ops::quant::DType;
use lima::plan::{Choice, KvFormat, Machine, Plan, Question, Step, WeightFormat, model};
use lima::runner::{RunnerOptions, tensor};
use serde_json::Value;

use crate::support::goldens;
use crate::support::server::run;

const ALL: [WeightFormat; 3] = [WeightFormat::Bf16, WeightFormat::Int8, WeightFormat::Int4];

fn question(name: &str, machine: &str) -> Question {
    let config = model(name).unwrap();
    Question {
        name: name.into(),
        machine: machine.parse().unwrap(),
        formats: ALL.to_vec(),
        kv: KvFormat::Bf16,
        ranks: None,
        context: 1024,
        max_model_len: config.max_position_embeddings,
        step: Step { tokens: 2048, sequences: 256 },
        config,
    }
}

fn of(plan: &Plan, format: WeightFormat, ranks: usize) -> &Choice {
    plan.choices.iter().find(|choice| (choice.format, choice.ranks) == (format, ranks)).unwrap()
}

fn near(value: f64, expected: f64, tolerance: f64, what: &str) {
    assert!((value / expected - 1.0).abs() <= tolerance, "{what}: {value} instead of {expected}");
}

#[test]
fn lima_65b_on_eight_four_and_one() {
    let eight = Plan::new(question("lima-65b", "8xH100-80GB"));
    assert_eq!(eight.parameters, 65_285_660_672);
    assert_eq!(eight.kv_token_bytes, 2.5 * f64::from(1 << 20));
    let whole = of(&eight, WeightFormat::Bf16, 8);
    near(whole.memory.weights * 8.0, 130.6e9, 2e-3, "bf16 weights");
    assert!(whole.fits && !of(&eight, WeightFormat::Bf16, 1).fits);
    // 131 GB of weights and 2.7 GB for each of the sequences, read at 8 × 3 TB/s, are about 7,000 tokens a second.
    let speed = whole.speed.unwrap();
    assert!((190..=210).contains(&whole.sequences), "{}", whole.sequences);
    assert!((6_000.0..7_100.0).contains(&speed.decode_all), "{speed:?}");
    let best = eight.recommended().unwrap();
    assert_eq!((best.format, best.replicas * best.ranks), (WeightFormat::Bf16, 8));

    let four = Plan::new(question("llama-65b", "4xh200"));
    assert!(of(&four, WeightFormat::Bf16, 4).fits && of(&four, WeightFormat::Bf16, 2).fits);
    assert_eq!(four.choices.len(), 9);

    // On one card of 80 GB it runs in 8 bits, and with room in 4.
    let one = Plan::new(question("65b", "h100-80"));
    let fits: Vec<bool> = one.choices.iter().map(|choice| choice.fits).collect();
    assert_eq!(fits, [false, true, true]);
    let (int8, int4) = (of(&one, WeightFormat::Int8, 1), of(&one, WeightFormat::Int4, 1));
    near(int8.memory.weights, 65.29e9 * 34.0 / 32.0, 1e-3, "int8 weights");
    assert!(int4.sequences > 2 * int8.sequences);
    assert_eq!(one.recommended().unwrap().format, WeightFormat::Int8);
}

#[test]
fn ceilings_of_7b_on_an_h100() {
    let plan = Plan::new(Question { context: 512, ..question("7b", "h100") });
    let speed = of(&plan, WeightFormat::Bf16, 1).speed.unwrap();
    // 13.2 GB of matrices and 0.27 GB of keys and values at 3.0 TB/s.
    near(speed.decode_one, 3.0e12 / (13.21e9 + 0.27e9), 0.01, "decoding");
    // 2 × 6.5e9 a token at 798 TFLOP/s: 512 tokens take 8.5 ms.
    near(512.0 / speed.prefill, 8.5e-3, 0.03, "prefill");
}

/// What cannot be cut is said, not planned.
#[test]
fn ranks_that_cannot_be() {
    let plan = Plan::new(Question { ranks: Some(16), ..question("135m", "16xl4") });
    assert!(plan.choices.is_empty() && plan.recommended().is_none());
    let [(16, why)] = &plan.refused[..] else { panic!("{:?}", plan.refused) };
    assert!(why.contains("9 heads of 64"), "{why}");
    let text = plan.to_string();
    assert!(text.contains("16 ranks: 9 heads") && text.ends_with("Nothing fits.\n"), "{text}");
    for wrong in ["h1000", "0xh100", "x", "8xcpu", ""] {
        let error = wrong.parse::<Machine>().unwrap_err();
        assert!(error.starts_with(&format!("'{wrong}'")) && !error.contains('\n'), "{error}");
    }
    assert_eq!("8xH100-80GB".parse::<Machine>().unwrap().count, 8);
}

/// Bytes of weights and of the cache are those that loading takes, over as many ranks.
#[test]
fn loading_takes_what_was_planned() {
    let path = goldens::path("mha-tied");
    let checkpoint = Checkpoint::open(&path).unwrap();
    for (format, dtype) in [
        (WeightFormat::F32, DType::F32),
        (WeightFormat::Bf16, DType::BF16),
        (WeightFormat::Int8, DType::Q8_0),
        (WeightFormat::Int4, DType::Q4_0),
    ] {
        // Two heads of 16 make a block.
        for ranks in [1, 2] {
            let options = RunnerOptions {
                threads: Some(1),
                dtype: Some(dtype),
                kv_cache: Some(lima::ops::cpu::kv::KvType::BF16),
                max_model_len: Some(64),
                max_num_batched_tokens: 16,
                max_num_seqs: 2,
                kv_cache_memory: Some(1 << 20),
                level: Level::best(),
            };
            let q = question(path.to_str().unwrap(), "4xl4");
            let plan = Plan::new(Question { formats: vec![format], ranks: Some(ranks), ..q });
            let loaded = tensor::load(&checkpoint, &options, ranks, None, |_| ());
            let (Some(choice), Ok(loaded)) = (plan.choices.first(), loaded) else {
                panic!("{format:?} over {ranks}: {:?}", plan.refused);
            };
            // Tiles of the last rows are filled up; norms are no matrices.
            near(choice.memory.weights * ranks as f64, loaded.weight_bytes as f64, 0.06, "weights");
            let tokens = (loaded.num_blocks * BLOCK_SIZE) as f64;
            assert_eq!(choice.kv_token_bytes * ranks as f64 * tokens, loaded.kv_bytes as f64);
        }
    }
}

#[test]
fn the_command() {
    let output = run(&["plan", "lima-65b", "--device", "8xh100-80,4xh200", "h100-80", "--json"], &[]);
    assert!(output.status.success(), "{output:?}");
    let plans: Value = serde_json::from_slice(&output.stdout).unwrap();
    let plans = plans.as_array().unwrap();
    assert_eq!(plans.len(), 3);
    assert_eq!(plans[0]["device"]["count"], 8);
    assert_eq!(plans[2]["recommended"]["format"], "int8");
    assert_eq!(plans[0]["choices"].as_array().unwrap().len(), 12);

    let gqa = goldens::path("gqa");
    let output = run(&["plan", gqa.to_str().unwrap(), "--device", "l4", "-tp", "1", "--dtype", "int8"], &[]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("Recommended: int8, --tensor-parallel-size 1."), "{text}");
    for (arguments, words) in [
        (&["plan", "66b"][..], "66b: 65b, 30b"),
        (&["plan", "7b", "--device", "h1"], "--device: 'h1' is not known"),
        (&["plan", "7b", "--max-model-len", "4096"], "--max-model-len 4096 is more than the 2048 positions"),
    ] {
        let output = run(arguments, &[]);
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success() && text.lines().count() == 1 && text.contains(words), "{text}");
    }
}
