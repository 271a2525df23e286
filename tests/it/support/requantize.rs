//! Writes a model's weights to a small GGUF file in another number format.

use std::fs::File;
use std::io::BufWriter;
use std::path::Path;

use lima::model::weights::Checkpoint;
use lima::ops::quant::{DType, dequantize_row, quantize_row};

use crate::load::writer::{GgufFile, Meta, gguf_name, type_number};

/// Copies the weights of `from` (a LLaMA without rope scaling) to `to`, matrices stored as `dtype`.
pub fn requantize(from: &Path, to: &Path, dtype: DType) {
    let checkpoint = Checkpoint::open(from).unwrap();
    let config = checkpoint.config();
    let size = |n: usize| Meta::U32(n as u32);
    let metadata = [
        ("general.architecture", Meta::Str("llama")),
        ("llama.block_count", size(config.num_layers)),
        ("llama.embedding_length", size(config.hidden_size)),
        ("llama.feed_forward_length", size(config.intermediate_size)),
        ("llama.attention.head_count", size(config.num_heads)),
        ("llama.attention.head_count_kv", size(config.num_kv_heads)),
        ("llama.attention.key_length", size(config.head_dim)),
        ("llama.context_length", size(config.max_position_embeddings)),
        ("llama.vocab_size", size(config.vocab_size)),
        ("llama.attention.layer_norm_rms_epsilon", Meta::F32(config.rms_norm_eps)),
        ("llama.rope.freq_base", Meta::F32(config.rope_theta)),
    ]
    .map(|(key, value)| (key.to_owned(), value));

    let written = checkpoint.names().map(|name| {
        let view = checkpoint.tensor(name).unwrap();
        let vector = view.rows == 1;
        let to = if vector { DType::F32 } else { dtype };
        let (cols, rows) = (view.cols as u64, view.rows as u64);
        let dims = if vector { vec![cols] } else { vec![cols, rows] };

        let mut numbers = vec![0f32; view.cols];
        let row_bytes = to.row_bytes(view.cols).unwrap();
        let mut data = vec![0u8; view.rows * row_bytes];
        let half = config.head_dim / 2;
        let rotated = name.contains("q_proj") || name.contains("k_proj");
        for (stored, bytes) in data.chunks_exact_mut(row_bytes).enumerate() {
            // GGUF keeps rotated pairs together: file row 2j is j, 2j + 1 is j + half, head by head.
            let (head, within) = (stored / (2 * half) * (2 * half), stored % (2 * half));
            let row = if rotated { head + within / 2 + within % 2 * half } else { stored };
            dequantize_row(view.dtype, view.row(row), &mut numbers);
            quantize_row(to, &numbers, bytes);
        }
        (gguf_name(name), dims, type_number(to), data)
    });
    let file = GgufFile { version: 3, metadata: metadata.to_vec(), tensors: written.collect() };
    file.write(&mut BufWriter::new(File::create(to).unwrap())).unwrap();
}
