//! Plans, against arithmetic that others have done.

use lima::ops::quant::DType;
use lima::train::plan::memory::{checkpoints, memory};
use lima::train::plan::shapes::{adapters, matrices, parameters, shape, with_new_token};
use lima::train::plan::{Backend, Data, Device, Layout, Links, Pass, Plan, Question, Rate, Training};

const GIB: u64 = 1 << 30;

/// F32 masters, BF16 moments.
const MIXED: Training = Training::Full { weights: DType::F32, moments: DType::BF16 };

fn near(value: f64, expected: f64, tolerance: f64, what: &str) {
    assert!((value / expected - 1.0).abs() <= tolerance, "{what}: {value} instead of {expected}");
}

#[test]
fn shapes_have_the_known_numbers_of_parameters() {
    for (name, expected) in [
        ("65b", 65_285_660_672),
        ("30b", 32_528_943_616),
        ("13b", 13_015_864_320),
        ("7b", 6_738_415_616),
        ("1.1b", 1_100_048_384),
        ("135m", 134_515_008),
    ] {
        assert_eq!(parameters(&shape(name).unwrap()), expected, "{name}");
    }
    let large = shape("65B").unwrap();
    assert_eq!(matrices(&large) / 80, 809_500_672, "809.5 million a layer");
    // Q, K, V, O of 8192 × 8192 and three of 8192 × 22016, at rank 16.
    assert_eq!(adapters(&large, 16), 80 * 16 * (4 * 16_384 + 3 * 30_208));
    assert_eq!(with_new_token(large.clone(), Some(32_000)).vocab_size, 32_064);
    assert_eq!(with_new_token(large, None).vocab_size, 32_000);
}

#[test]
fn shapes_come_from_files_and_are_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("config.json");
    let name = path.to_str().unwrap();
    std::fs::write(&path, "[]").unwrap();
    assert!(shape(name).unwrap_err().to_string().starts_with(&format!("{name}: ")));
    std::fs::write(&path, "{").unwrap();
    assert!(shape(name).unwrap_err().to_string().starts_with(&format!("{name}: not JSON")));
    let config = std::fs::read_to_string(crate::support::goldens::path("gqa/config.json")).unwrap();
    std::fs::write(&path, config).unwrap();
    assert_eq!(shape(name).unwrap().num_kv_heads, 2);
    let error = shape("70b").unwrap_err().to_string();
    assert_eq!(error, "70b: 65b, 30b, 13b, 7b, 1.1b, 135m are known, or the path of a config.json");
}

/// The numbers of LLaMA 65B that the recipe's memory is usually reckoned with.
#[test]
fn memory_of_65b_by_kind() {
    let config = shape("65b").unwrap();
    let pass = |checkpointing| Pass { tokens: 2048, longest: 2048, checkpointing };
    let of = |training, layout| memory(&config, training, layout, pass(true), Backend::Gpu);
    let n = 65_285_660_672.0;

    let masters = of(Training::MASTERS, Layout::ONE);
    near(masters.weights, 130.6e9, 1e-3, "bf16 weights");
    let states = masters.weights + masters.gradients + masters.states;
    assert_eq!(states, 16.0 * n);
    near(states, 1.04e12, 5e-3, "16 bytes a parameter");
    let bf16 = of(Training::BF16, Layout::ONE);
    assert_eq!(bf16.weights + bf16.gradients + bf16.states, 8.0 * n);
    near(8.0 * n, 522e9, 1e-3, "8 bytes a parameter");

    near(checkpoints(&config, 2048, Backend::Gpu) / 80.0, 33.5e6, 2e-3, "activation checkpoints of a layer");
    near(checkpoints(&config, 2048, Backend::Gpu), 2.7e9, 1e-2, "activation checkpoints");
    let without = memory(&config, Training::BF16, Layout::ONE, pass(false), Backend::Gpu);
    assert!(without.activations > 10.0 * bf16.activations);

    // Tensor parallel cuts everything but norms and the residual stream; ZeRO-1 cuts states.
    let cut = of(Training::BF16, Layout { tensor: 8, data: 1 });
    near(cut.weights * 8.0, bf16.weights, 1e-3, "weights over 8 ranks");
    near(cut.states * 8.0, bf16.states, 1e-3, "states over 8 ranks");
    assert!(cut.activations > checkpoints(&config, 2048, Backend::Gpu));
    let shared = of(Training::MASTERS, Layout { tensor: 8, data: 2 });
    near(shared.weights * 8.0, masters.weights, 1e-3, "weights over 8 of 16 ranks");
    near(shared.states * 16.0, masters.states, 1e-3, "states over 16 ranks");

    let qlora = of(Training::Lora { rank: 16, base: DType::Q4_0 }, Layout::ONE);
    near(qlora.frozen, n * 18.0 / 32.0, 3e-2, "4.5 bits a weight");
    near(of(Training::Lora { rank: 16, base: DType::BF16 }, Layout::ONE).frozen, 2.0 * n, 1e-6, "bf16 base");
    assert!(qlora.total() < 48e9, "QLoRA of 65B is known to fit one GPU of 48 GB");
}

fn question(name: &str, count: usize) -> Question {
    Question {
        name: name.into(),
        config: with_new_token(shape(name).unwrap(), Some(32_000)),
        new_rows: 64,
        data: Data::lima(),
        epochs: 15,
        batch: 32,
        micro_tokens: 2048,
        rank: 16,
        chosen: None,
        checkpointing: true,
        answers: None,
        layout: None,
        device: Device::Gpus { count, memory: 80 * GIB },
        rate: Rate::h100(),
        links: None,
    }
}

#[test]
fn the_paper_s_run_on_8_and_on_16_gpus() {
    let eight = Plan::new(question("65b", 8));
    assert_eq!((eight.steps_per_epoch, eight.steps()), (32, 480));
    near(eight.flops, 4.0e18, 0.03, "6NT");
    near(eight.flops_with_recompute, 5.3e18, 0.03, "8NT");
    let fits = |plan: &Plan| plan.choices.iter().map(|c| (c.training, c.fits)).collect::<Vec<_>>();
    // Everything in bf16 is the only full tuning that fits 8 × 80 GB.
    assert_eq!(fits(&eight)[..3], [(Training::MASTERS, false), (MIXED, false), (Training::BF16, true)]);
    let best = eight.recommended().unwrap();
    assert_eq!((best.training, best.layout), (Training::BF16, Layout { tensor: 8, data: 1 }));
    near(best.time.as_secs_f64() / 3600.0, 3.7 / 8.0, 0.05, "3.7 hours of one H100");

    let sixteen = Plan::new(question("65b", 16));
    assert_eq!(fits(&sixteen)[..3], [(Training::MASTERS, true), (MIXED, true), (Training::BF16, true)]);
    assert_eq!(sixteen.recommended().unwrap().layout, Layout { tensor: 16, data: 1 });
    // Half of the cut is enough in bf16, and the rest shares the batch.
    assert_eq!(sixteen.choices[2].layout.ranks(), 16);
    assert!(sixteen.choices[2].layout.data > 1);
}

#[test]
fn one_gpu_of_80_gb() {
    // 7B in full with F32 masters only if the moments are BF16; 1.1B with masters; 65B only as QLoRA.
    let fits = |name: &str| Plan::new(question(name, 1)).choices.iter().map(|c| c.fits).collect::<Vec<_>>();
    assert_eq!(fits("7b"), [false, true, true, true, true, true]);
    assert_eq!(fits("1.1b"), [true; 6]);
    assert_eq!(fits("65b"), [false, false, false, false, true, true]);
    // 52 heads, 5120 of them, do not divide by 16: layouts that do not exist are not offered.
    assert!(Plan::new(question("30b", 16)).choices.iter().all(|c| c.layout.tensor <= 4));
    assert!(Plan::new(question("65b", 3)).choices.iter().all(|c| c.layout == Layout { tensor: 1, data: 3 }));
}

#[test]
fn a_plan_is_shown() {
    let text = Plan::new(question("65b", 8)).to_string();
    for part in [
        "65b, with 64 new rows of vocabulary: 65,286,709,248 parameters",
        "32 an epoch of 32 examples, 480 in 15 epochs; 2,048 tokens at a time",
        "396 TFLOP/s a rank, assumed: 40 % of 989 (H100 SXM, dense bf16)",
        "8 GPUs of 80.00 GiB",
        "→ all, in BF16",
        "Fits: all, in BF16.",
        "33.6 MB each, 2.68 GB",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let none = Plan::new(Question { device: Device::Gpus { count: 1, memory: GIB }, ..question("65b", 1) }).to_string();
    assert!(none.contains("Nothing fits."), "{none}");
}

/// What goes over links: 16 GPUs on two nodes, by hand.
#[test]
fn the_bytes_between_nodes() {
    let links = Links { nodes: 2, inside: 450e9, between: 50e9 };
    let of = |layout, training: Training| {
        let asked = Question { layout: Some(layout), links: Some(links), ..question("65b", 16) };
        let plan = Plan::new(asked);
        let choice = plan.choices.iter().find(|choice| choice.training == training).unwrap();
        (plan.traffic(choice).unwrap(), choice.memory)
    };
    // Matrices cut inside nodes: only gradients and weights go between them, to the one other rank with the same part;
    // half of each, as each has the other half to sum.
    let (traffic, memory) = of(Layout { tensor: 8, data: 2 }, Training::BF16);
    near(traffic.between, 8.0 * (memory.gradients + memory.weights) / 2.0, 1e-9, "half of 4 bytes a parameter");
    near(traffic.between, 130.6e9, 1e-2, "of 65.3 billion");
    // Six sums a layer (two of them recomputed) of half of the step's tokens, each in 7 of 8 parts, twice; in BF16.
    let tokens = 674_122.0 / 32.0 / 2.0;
    near(traffic.inside, 2.0 * 7.0 / 8.0 * (6.0 * 80.0 + 2.0) * tokens * 8192.0 * 2.0, 1e-9, "sums");
    near(traffic.seconds, traffic.inside / 450e9 + traffic.between / 50e9, 1e-12, "seconds");
    // Matrices cut over both nodes: sums go between, to 8 of 15 others of 16 ranks.
    let (wide, _) = of(Layout { tensor: 16, data: 1 }, Training::BF16);
    let each = 2.0 / 16.0 * (6.0 * 80.0 + 2.0) * (2.0 * tokens) * 8192.0 * 2.0;
    near(wide.between, 8.0 * 8.0 * each, 1e-9, "between");
    near(wide.inside, 7.0 * each, 1e-9, "inside");
    // Adapters are small.
    let (lora, _) = of(Layout { tensor: 8, data: 2 }, Training::Lora { rank: 16, base: DType::BF16 });
    assert!(lora.between < traffic.between / 100.0);
    // One node has nobody to send to; no nodes, nothing to say.
    assert_eq!(Plan::new(question("7b", 8)).traffic(&Plan::new(question("7b", 8)).choices[0]), None);
    let one = Question { links: Some(Links { nodes: 1, ..links }), ..question("7b", 8) };
    let plan = Plan::new(one);
    assert!(plan.choices.iter().all(|choice| plan.traffic(choice).unwrap().between == 0.0));
    let text = Plan::new(Question { links: Some(links), ..question("65b", 16) }).to_string();
    assert!(text.contains("links       2 nodes; 450 GB/s a rank inside one, 50.0 GB/s a node to others"), "{text}");
    assert!(text.contains("GB between"), "{text}");
}
