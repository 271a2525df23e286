//! Small valid checkpoints, written by hand.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use lima::model::config::LlamaConfig;
use lima::model::weights::expected_tensors;
use lima::ops::quant::{DType, quantize_row};
use serde_json::{Map, Value, json};

/// A tensor to write: name, shape, values.
pub type Tensor = (String, [usize; 2], Vec<f32>);

pub fn config_json() -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "intermediate_size": 96,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
        "vocab_size": 40, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": false,
        "max_position_embeddings": 128, "bos_token_id": 1, "eos_token_id": [2, 3]
    })
}

pub fn config() -> LlamaConfig {
    LlamaConfig::from_hf(config_json().as_object().unwrap()).unwrap()
}

/// Every tensor of the model, each value its own.
pub fn tensors(config: &LlamaConfig) -> Vec<Tensor> {
    let mut n = 0u32;
    let mut next = || {
        n = n.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (n >> 8) as f32 / (1 << 24) as f32 - 0.5
    };
    let named = expected_tensors(config).into_iter();
    named.map(|(name, shape)| (name, shape, (0..shape[0] * shape[1]).map(|_| next()).collect())).collect()
}

pub fn encode(dtype: DType, values: &[f32], cols: usize) -> Vec<u8> {
    let row = dtype.row_bytes(cols).unwrap();
    let mut bytes = vec![0; values.len() / cols * row];
    for (values, bytes) in values.chunks(cols).zip(bytes.chunks_mut(row)) {
        quantize_row(dtype, values, bytes);
    }
    bytes
}

pub fn safetensors(dtype: DType, tensors: &[Tensor]) -> Vec<u8> {
    mixed_safetensors(|_| dtype, tensors)
}

/// Each tensor in the type that its name gives.
pub fn mixed_safetensors(dtype: impl Fn(&str) -> DType, tensors: &[Tensor]) -> Vec<u8> {
    let (mut header, mut data) = (Map::new(), Vec::new());
    header.insert("__metadata__".into(), json!({"format": "pt"}));
    for (name, shape, values) in tensors {
        let (dtype, begin) = (dtype(name), data.len());
        data.extend(encode(dtype, values, shape[1]));
        let shape = if shape[0] == 1 { json!([shape[1]]) } else { json!(shape) };
        header
            .insert(name.clone(), json!({"dtype": dtype.name(), "shape": shape, "data_offsets": [begin, data.len()]}));
    }
    with_header(&Value::Object(header).to_string(), &data)
}

pub fn with_header(header: &str, data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat()
}

pub fn directory(dir: &Path, dtype: DType) -> PathBuf {
    fs::create_dir_all(dir).unwrap();
    fs::write(dir.join("config.json"), config_json().to_string()).unwrap();
    fs::write(dir.join("model.safetensors"), safetensors(dtype, &tensors(&config()))).unwrap();
    dir.to_owned()
}

/// Metadata values with the type numbers of the format.
#[derive(Clone)]
pub enum Meta {
    U32(u32),
    F32(f32),
    Bool(bool),
    Str(&'static str),
    Strings(Vec<String>),
    I32s(Vec<i32>),
}

fn put_str(out: &mut Vec<u8>, s: &str) {
    out.extend((s.len() as u64).to_le_bytes());
    out.extend(s.as_bytes());
}

fn put_meta(out: &mut Vec<u8>, key: &str, value: &Meta) {
    put_str(out, key);
    let put_kind = |out: &mut Vec<u8>, kind: u32| out.extend(kind.to_le_bytes());
    match value {
        Meta::U32(n) => {
            put_kind(out, 4);
            out.extend(n.to_le_bytes());
        }
        Meta::F32(n) => {
            put_kind(out, 6);
            out.extend(n.to_le_bytes());
        }
        Meta::Bool(b) => {
            put_kind(out, 7);
            out.push(u8::from(*b));
        }
        Meta::Str(s) => {
            put_kind(out, 8);
            put_str(out, s);
        }
        Meta::Strings(list) => {
            put_kind(out, 9);
            put_kind(out, 8);
            out.extend((list.len() as u64).to_le_bytes());
            list.iter().for_each(|s| put_str(out, s));
        }
        Meta::I32s(list) => {
            put_kind(out, 9);
            put_kind(out, 5);
            out.extend((list.len() as u64).to_le_bytes());
            list.iter().for_each(|n| out.extend(n.to_le_bytes()));
        }
    }
}

/// Of tensor data.
const ALIGNMENT: usize = 32;

/// What goes into a GGUF file; change it, then [`GgufFile::bytes`].
#[derive(Clone)]
pub struct GgufFile {
    pub version: u32,
    pub metadata: Vec<(String, Meta)>,
    /// GGUF name, `[cols, rows]` or `[cols]`, type number, encoded data.
    pub tensors: Vec<(String, Vec<u64>, u32, Vec<u8>)>,
}

pub fn type_number(dtype: DType) -> u32 {
    match dtype {
        DType::F32 => 0,
        DType::F16 => 1,
        DType::Q4_0 => 2,
        DType::Q4_1 => 3,
        DType::Q8_0 => 8,
        DType::BF16 => 30,
        other => panic!("{other} is not written"),
    }
}

pub fn gguf_name(hf: &str) -> String {
    let fixed = [
        ("model.embed_tokens", "token_embd"),
        ("model.norm", "output_norm"),
        ("lm_head", "output"),
        ("model.layers", "blk"),
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
    fixed.iter().fold(hf.to_owned(), |name, (from, to)| name.replace(from, to))
}

/// `weights.reshape(heads, 2, dim / 2, cols).swapaxes(1, 2)`: what converters do to q and k.
fn permute(values: &[f32], cols: usize, dim: usize) -> Vec<f32> {
    let mut out = Vec::new();
    for head in values.chunks(dim * cols) {
        for j in 0..dim / 2 {
            for half in 0..2 {
                out.extend(&head[(half * dim / 2 + j) * cols..][..cols]);
            }
        }
    }
    out
}

impl GgufFile {
    /// The same model as [`directory`], matrices in `dtype`, norms in F32.
    pub fn new(dtype: DType) -> Self {
        let c = config();
        let mut metadata: Vec<(String, Meta)> = [
            ("general.architecture", Meta::Str("llama")),
            ("llama.block_count", Meta::U32(2)),
            ("llama.context_length", Meta::U32(128)),
            ("llama.embedding_length", Meta::U32(64)),
            ("llama.feed_forward_length", Meta::U32(96)),
            ("llama.attention.head_count", Meta::U32(4)),
            ("llama.attention.head_count_kv", Meta::U32(2)),
            ("llama.attention.layer_norm_rms_epsilon", Meta::F32(1e-5)),
            ("llama.rope.freq_base", Meta::F32(10_000.0)),
            ("llama.rope.dimension_count", Meta::U32(16)),
            ("tokenizer.ggml.model", Meta::Str("gpt2")),
            ("tokenizer.ggml.pre", Meta::Str("smollm")),
            ("tokenizer.ggml.bos_token_id", Meta::U32(1)),
            ("tokenizer.ggml.eos_token_id", Meta::U32(2)),
            ("tokenizer.ggml.eot_token_id", Meta::U32(3)),
            ("tokenizer.ggml.unknown_token_id", Meta::U32(0)),
            ("tokenizer.ggml.add_bos_token", Meta::Bool(false)),
            ("tokenizer.chat_template", Meta::Str("{{ messages }}")),
        ]
        .map(|(key, value)| (key.to_owned(), value))
        .to_vec();
        let tokens = (0..40).map(|i| format!("t{i}")).collect();
        metadata.push(("tokenizer.ggml.tokens".into(), Meta::Strings(tokens)));
        metadata.push(("tokenizer.ggml.token_type".into(), Meta::I32s(vec![1; 40])));
        metadata.push(("tokenizer.ggml.merges".into(), Meta::Strings(vec!["a b".into(), "b c".into()])));

        let written = tensors(&c).into_iter().map(|(name, [rows, cols], values)| {
            let is_permuted = name.contains("q_proj") || name.contains("k_proj");
            let values = if is_permuted { permute(&values, cols, c.head_dim) } else { values };
            let (dtype, dims) =
                if rows == 1 { (DType::F32, vec![cols as u64]) } else { (dtype, vec![cols as u64, rows as u64]) };
            (gguf_name(&name), dims, type_number(dtype), encode(dtype, &values, cols))
        });
        Self { version: 3, metadata, tensors: written.collect() }
    }

    pub fn set(&mut self, key: &str, value: Meta) -> &mut Self {
        self.remove(key);
        self.metadata.push((key.to_owned(), value));
        self
    }

    pub fn remove(&mut self, key: &str) -> &mut Self {
        self.metadata.retain(|(k, _)| k != key);
        self
    }

    /// Everything before the tensors' data, and where the data of each goes after it.
    fn header(&self) -> (Vec<u8>, Vec<usize>) {
        let mut out = b"GGUF".to_vec();
        out.extend(self.version.to_le_bytes());
        out.extend((self.tensors.len() as u64).to_le_bytes());
        out.extend((self.metadata.len() as u64).to_le_bytes());
        self.metadata.iter().for_each(|(key, value)| put_meta(&mut out, key, value));
        let (mut offsets, mut end) = (Vec::new(), 0usize);
        for (name, dims, kind, bytes) in &self.tensors {
            let offset = end.next_multiple_of(ALIGNMENT);
            put_str(&mut out, name);
            out.extend((dims.len() as u32).to_le_bytes());
            dims.iter().for_each(|d| out.extend(d.to_le_bytes()));
            out.extend(kind.to_le_bytes());
            out.extend((offset as u64).to_le_bytes());
            offsets.push(offset);
            end = offset + bytes.len();
        }
        (out, offsets)
    }

    /// The file, and where its header ends.
    pub fn bytes_and_header(&self) -> (Vec<u8>, usize) {
        let mut out = Vec::new();
        self.write(&mut out).unwrap();
        (out, self.header().0.len())
    }

    pub fn bytes(&self) -> Vec<u8> {
        self.bytes_and_header().0
    }

    pub fn write(&self, to: &mut impl Write) -> std::io::Result<()> {
        let (header, offsets) = self.header();
        to.write_all(&header)?;
        let pad = |n: usize| vec![0; n.next_multiple_of(ALIGNMENT) - n];
        to.write_all(&pad(header.len()))?;
        let mut end = 0;
        for ((.., bytes), offset) in self.tensors.iter().zip(offsets) {
            to.write_all(&vec![0; offset - end])?;
            to.write_all(bytes)?;
            end = offset + bytes.len();
        }
        Ok(())
    }
}
