//! The graph backend against transformers' numbers, and against candle-transformers' Llama.

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::llama as candle_llama;
use lima::model::config::{LlamaConfig, RopeScaling};
use lima::model::weights::Checkpoint;

use crate::graph::GraphModel;
use crate::support::goldens::{self, compare_default, compare_perplexity, compare_small};

#[test]
fn small_models_equal_transformers() {
    for name in goldens::SMALL {
        let mut model = GraphModel::open(&goldens::path(name), false);
        let agreement = compare_small(name, &mut |tokens| model.logits(tokens));
        println!("{name}: {agreement:?}");
        agreement.assert_exact(1e-4, name);
    }
}

/// candle-transformers' Llama in F32, one token at a time: it returns the last row only.
fn candle_logits(name: &str, config: &LlamaConfig, tokens: &[u32]) -> Vec<Vec<f32>> {
    let config = candle_llama::Config {
        hidden_size: config.hidden_size,
        intermediate_size: config.intermediate_size,
        vocab_size: config.vocab_size,
        num_hidden_layers: config.num_layers,
        num_attention_heads: config.num_heads,
        num_key_value_heads: config.num_kv_heads,
        use_flash_attn: false,
        rms_norm_eps: f64::from(config.rms_norm_eps),
        rope_theta: config.rope_theta,
        bos_token_id: None,
        eos_token_id: None,
        rope_scaling: None,
        max_position_embeddings: config.max_position_embeddings,
        tie_word_embeddings: config.tie_word_embeddings,
    };
    let device = Device::Cpu;
    let file = std::fs::read(goldens::path(name).join("model.safetensors")).unwrap();
    let weights = VarBuilder::from_buffered_safetensors(file, DType::F32, &device).unwrap();
    let model = candle_llama::Llama::load(weights, &config).unwrap();
    let mut cache = candle_llama::Cache::new(true, DType::F32, &config, &device).unwrap();
    let row = |(position, &token): (usize, &u32)| {
        let logits = model.forward(&Tensor::new(&[[token]], &device).unwrap(), position, &mut cache).unwrap();
        logits.squeeze(0).unwrap().to_vec1().unwrap()
    };
    tokens.iter().enumerate().map(row).collect()
}

#[test]
fn small_models_equal_candle_transformers() {
    // Those that it can compute: no linear scaling, no head_dim of its own.
    for name in ["gqa", "mha-tied", "mqa-odd"] {
        let checkpoint = Checkpoint::open(goldens::path(name)).unwrap();
        assert_eq!(checkpoint.config().rope_scaling, RopeScaling::None);
        let mut model = GraphModel::open(&goldens::path(name), false);
        for sequence in goldens::small(name) {
            let tokens = sequence.tokens();
            let theirs = candle_logits(name, checkpoint.config(), &tokens);
            for (ours, theirs) in model.logits(&tokens).iter().zip(&theirs) {
                let (ours, theirs) = (goldens::log_softmax(ours), goldens::log_softmax(theirs));
                ours.iter().zip(&theirs).for_each(|(a, b)| assert!((a - b).abs() <= 1e-3, "{name}: {a} {b}"));
            }
        }
    }
}

#[test]
fn the_default_model_equals_transformers() {
    let mut model = GraphModel::open(&goldens::default_model(), false);
    let sequences = goldens::default_sequences();
    // A chat, a dialogue with a system message, code, numbers.
    let some = [0, 10, 13, 15].map(|i| &sequences[i]);
    let agreement = compare_default(some, &mut |tokens| model.logits(tokens));
    println!("default model: {agreement:?}");
    agreement.assert_exact(1e-3, "the default model");
    let (ours, theirs) = compare_perplexity(1, &mut |tokens| model.logits(tokens));
    assert!((ours - theirs).abs() < 1e-3 * theirs, "perplexity {ours}, transformers' {theirs}");
}
