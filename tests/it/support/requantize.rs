//! Writes a model's weights to a small GGUF file in another number format.

use std::io::Write;
use std::path::Path;

use lima::model::weights::Checkpoint;
use lima::ops::quant::{DType, dequantize_row, quantize_row};

fn string(out: &mut Vec<u8>, s: &str) {
    out.extend((s.len() as u64).to_le_bytes());
    out.extend(s.as_bytes());
}

fn key_u32(out: &mut Vec<u8>, key: &str, value: usize) {
    string(out, key);
    out.extend(4u32.to_le_bytes());
    out.extend((value as u32).to_le_bytes());
}

fn key_f32(out: &mut Vec<u8>, key: &str, value: f32) {
    string(out, key);
    out.extend(6u32.to_le_bytes());
    out.extend(value.to_le_bytes());
}

fn gguf_name(hf: &str) -> String {
    let parts = [
        ("model.embed_tokens", "token_embd"),
        ("model.norm", "output_norm"),
        ("lm_head", "output"),
        ("model.layers.", "blk."),
        ("input_layernorm", "attn_norm"),
        ("post_attention_layernorm", "ffn_norm"),
        ("self_attn.q_proj", "attn_q"),
        ("self_attn.k_proj", "attn_k"),
        ("self_attn.v_proj", "attn_v"),
        ("self_attn.o_proj", "attn_output"),
        ("mlp.gate_proj", "ffn_gate"),
        ("mlp.up_proj", "ffn_up"),
        ("mlp.down_proj", "ffn_down"),
    ];
    parts.iter().fold(hf.to_owned(), |name, (from, to)| name.replace(from, to))
}

/// GGUF's number of a type.
fn type_id(dtype: DType) -> u32 {
    match dtype {
        DType::F32 => 0,
        DType::F16 => 1,
        DType::Q4_0 => 2,
        DType::Q4_1 => 3,
        DType::Q8_0 => 8,
        DType::BF16 => 30,
        other => panic!("{} is not written here", other.name()),
    }
}

/// Copies the weights of `from` (a LLaMA without rope scaling) to `to`, matrices stored as `dtype`.
pub fn requantize(from: &Path, to: &Path, dtype: DType) {
    let checkpoint = Checkpoint::open(from).unwrap();
    let config = checkpoint.config();
    let mut meta = Vec::new();
    string(&mut meta, "general.architecture");
    meta.extend(8u32.to_le_bytes());
    string(&mut meta, "llama");
    key_u32(&mut meta, "llama.block_count", config.num_layers);
    key_u32(&mut meta, "llama.embedding_length", config.hidden_size);
    key_u32(&mut meta, "llama.feed_forward_length", config.intermediate_size);
    key_u32(&mut meta, "llama.attention.head_count", config.num_heads);
    key_u32(&mut meta, "llama.attention.head_count_kv", config.num_kv_heads);
    key_u32(&mut meta, "llama.attention.key_length", config.head_dim);
    key_u32(&mut meta, "llama.context_length", config.max_position_embeddings);
    key_u32(&mut meta, "llama.vocab_size", config.vocab_size);
    key_f32(&mut meta, "llama.attention.layer_norm_rms_epsilon", config.rms_norm_eps);
    key_f32(&mut meta, "llama.rope.freq_base", config.rope_theta);
    let num_keys = 11u64;

    let names: Vec<&str> = checkpoint.names().collect();
    let (mut infos, mut data) = (Vec::new(), Vec::new());
    for name in &names {
        let view = checkpoint.tensor(name).unwrap();
        let vector = view.rows == 1;
        let to = if vector { DType::F32 } else { dtype };
        string(&mut infos, &gguf_name(name));
        let dims: &[usize] = if vector { &[view.cols] } else { &[view.cols, view.rows] };
        infos.extend((dims.len() as u32).to_le_bytes());
        dims.iter().for_each(|d| infos.extend((*d as u64).to_le_bytes()));
        infos.extend(type_id(to).to_le_bytes());
        infos.extend((data.len() as u64).to_le_bytes());

        let mut numbers = vec![0f32; view.cols];
        let mut bytes = vec![0u8; to.row_bytes(view.cols).unwrap()];
        let half = config.head_dim / 2;
        let rotated = name.contains("q_proj") || name.contains("k_proj");
        for stored in 0..view.rows {
            // GGUF keeps rotated pairs together: file row 2j is j, 2j + 1 is j + half, head by head.
            let (head, within) = (stored / (2 * half) * (2 * half), stored % (2 * half));
            let row = if rotated { head + within / 2 + within % 2 * half } else { stored };
            dequantize_row(view.dtype, view.row(row), &mut numbers);
            quantize_row(to, &numbers, &mut bytes);
            data.extend_from_slice(&bytes);
        }
        data.resize(data.len().next_multiple_of(32), 0);
    }

    let mut out = b"GGUF".to_vec();
    out.extend(3u32.to_le_bytes());
    out.extend((names.len() as u64).to_le_bytes());
    out.extend(num_keys.to_le_bytes());
    out.extend(meta);
    out.extend(infos);
    out.resize(out.len().next_multiple_of(32), 0);
    let mut file = std::fs::File::create(to).unwrap();
    file.write_all(&out).unwrap();
    file.write_all(&data).unwrap();
}
