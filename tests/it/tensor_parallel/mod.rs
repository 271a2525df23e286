//! A model over several ranks answers as it does on one.

mod lost;
mod models;
mod numbers;
mod process;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use lima::engine::{Executor, Request, SamplingParams, Speculation, Task, TokenId};
use lima::model::config::LlamaConfig;
use lima::model::weights::{Blocks, Checkpoint, Slice};
use lima::ops::cpu::level::Level;
use lima::ops::quant::DType;
use lima::parallel::{Communicator, Local};
use lima::runner::{RankExecutors, Standing, tensor};
use serde_json::json;

use crate::load::writer;
use crate::support::engine::{Output, Running, Setting};

/// Tokens that are generated.
const LEN: usize = 64;
/// Where the two most likely tokens are closer, either may be the first.
const TIE: f32 = 1e-3;

fn setting(dtype: DType, num_blocks: usize) -> Setting {
    Setting {
        dtype,
        kv: None,
        level: Level::best(),
        threads: 2,
        max_num_batched_tokens: 48,
        num_blocks,
        prefix_caching: true,
        speculation: Speculation::OFF,
    }
}

/// A random Llama of so many heads, with a vocabulary that no number of ranks divides.
fn model(dir: &Path, heads: usize, kv_heads: usize, mlp: usize) -> PathBuf {
    let json = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "intermediate_size": mlp,
        "num_hidden_layers": 3, "num_attention_heads": heads, "num_key_value_heads": kv_heads, "head_dim": 16,
        "vocab_size": 211, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": heads == 4,
        "max_position_embeddings": 256, "bos_token_id": 1, "eos_token_id": 2
    });
    let dir = dir.join(format!("{heads}-{kv_heads}-{mlp}"));
    std::fs::create_dir_all(&dir).unwrap();
    std::fs::write(dir.join("config.json"), json.to_string()).unwrap();
    let config = LlamaConfig::from_hf(json.as_object().unwrap()).unwrap();
    let mut tensors = writer::tensors(&config);
    for (name, [_, cols], values) in &mut tensors {
        let is_norm = name.ends_with("norm.weight");
        let scale = if is_norm { 0.1 } else { 4.0 / (*cols as f32).sqrt() };
        values.iter_mut().for_each(|v| *v = *v * scale + f32::from(u8::from(is_norm)));
    }
    std::fs::write(dir.join("model.safetensors"), writer::safetensors(DType::F32, &tensors)).unwrap();
    dir
}

/// Shapes of the ranks of a model.
fn shapes(checkpoint: &Checkpoint, dtype: DType, ranks: usize) -> Vec<LlamaConfig> {
    let config = checkpoint.config();
    let slices = Slice::all(config, ranks, Blocks::of(checkpoint, Some(dtype))).unwrap();
    slices.iter().map(|slice| slice.shape(config)).collect()
}

fn places(ranks: usize) -> Vec<Arc<dyn Communicator>> {
    Local::group(ranks, None).into_iter().map(|place| Arc::new(place) as Arc<dyn Communicator>).collect()
}

/// Loads a model over these ranks.
fn load(checkpoint: &Checkpoint, setting: &Setting, ranks: Vec<Arc<dyn Communicator>>) -> RankExecutors {
    let options = setting.options(checkpoint, &shapes(checkpoint, setting.dtype, ranks.len()));
    let loaded = tensor::load_on(checkpoint, &options, ranks, |_| ()).unwrap();
    assert_eq!(loaded.num_blocks, setting.num_blocks);
    loaded.executor
}

fn executor(checkpoint: &Checkpoint, setting: &Setting, ranks: usize) -> (Box<dyn Executor>, Standing) {
    load(checkpoint, setting, places(ranks)).start()
}

fn start(checkpoint: &Checkpoint, setting: Setting, ranks: usize) -> Running {
    Running::of(executor(checkpoint, &setting, ranks).0, setting)
}

/// Prompts of which some share a beginning of more than a block.
fn prompts(count: usize, vocab: usize) -> Vec<Vec<TokenId>> {
    let token = |i: usize, k: usize| (3 + (i * 7919 + k * k * 31 + k * 7) % (vocab - 3)) as TokenId;
    let one = |i: usize| (0..40 + 9 * i).map(|k| if k < 36 { token(i / 2, k) } else { token(i, k) }).collect();
    (0..count).map(one).collect()
}

fn greedy(prompt: &[TokenId], max_tokens: usize) -> Request {
    let params = SamplingParams { max_tokens: max_tokens as u32, logprobs: Some(2), ..SamplingParams::default() };
    Request::generate(prompt, params)
}

/// All tokens from the second on, with how likely they were.
fn scored(tokens: &[TokenId]) -> Request {
    let params = SamplingParams { max_tokens: 0, ..SamplingParams::default() };
    Request { task: Task::Generate { prompt_logprobs: Some(2) }, ..Request::generate(tokens, params) }
}

fn logprobs(top: &[(TokenId, u32)]) -> Vec<(TokenId, f32)> {
    top.iter().map(|&(token, bits)| (token, f32::from_bits(bits))).collect()
}

/// Compares the most likely tokens at one place with those of one rank; returns the largest difference.
fn compare(ours: &[(TokenId, u32)], one: &[(TokenId, u32)], tie: f32, what: &str) -> f32 {
    let (ours, one) = (logprobs(ours), logprobs(one));
    if one[0].1 - one[1].1 > tie {
        assert_eq!(ours[0].0, one[0].0, "{what}: {ours:?} instead of {one:?}");
    }
    // Of a token that is among the first two of both.
    let both = ours.iter().filter_map(|(token, p)| Some((p - one.iter().find(|(other, _)| other == token)?.1).abs()));
    both.fold((ours[0].1 - one[0].1).abs(), f32::max)
}

/// What one rank generates for each prompt.
fn reference(checkpoint: &Checkpoint, dtype: DType, prompts: &[Vec<TokenId>]) -> Vec<Output> {
    let requests: Vec<Request> = prompts.iter().map(|prompt| greedy(prompt, LEN)).collect();
    let one = Running::start(checkpoint, Setting { prefix_caching: false, ..setting(dtype, 64 * 5) });
    one.ask(&requests).into_iter().map(|(output, _)| output).collect()
}
