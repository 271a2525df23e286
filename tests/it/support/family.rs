//! Checkpoints of the LLaMA families: a layer or two of true shapes, and what transformers computes with them.
//!
//! The weights come from a counter and a hash, as in scripts/goldens/families.py, which made the goldens: the same
//! bytes, so that gigabytes need not be committed.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::Path;

use half::bf16;
use lima::model::config::LlamaConfig;
use lima::model::weights::expected_tensors;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::goldens;

/// A file of tests/goldens/families.
#[derive(Deserialize)]
pub struct Family {
    /// config.json with few layers.
    pub config: Map<String, Value>,
    /// Largest difference of a log-probability if the scaling of RoPE were ignored; `None` without scaling.
    pub effect_of_scaling: Option<f32>,
    /// The first words of the hash for `model.norm.weight`.
    hash_words: Vec<u32>,
    pub sequences: Vec<Sequence>,
}

#[derive(Deserialize)]
pub struct Sequence {
    pub prompt: Vec<u32>,
    pub rows: Vec<Row>,
}

/// Log-probabilities of some tokens after `position`, the most likely ones first.
#[derive(Deserialize)]
pub struct Row {
    pub position: usize,
    pub ids: Vec<u32>,
    pub logprobs: Vec<f32>,
}

/// A configuration of tests/goldens/families/shapes.json, at full depth.
#[derive(Deserialize)]
pub struct Shape {
    pub name: String,
    /// Layers of its golden, 0 if it has none.
    pub layers: usize,
    /// Weights in all tensors.
    pub parameters: u64,
    pub config: Map<String, Value>,
}

/// All families.
pub fn shapes() -> Vec<Shape> {
    serde_json::from_slice(&fs::read(goldens::path("families/shapes.json")).unwrap()).unwrap()
}

impl Family {
    pub fn read(name: &str) -> Self {
        let file = goldens::path(&format!("families/{name}.json"));
        let family: Self = serde_json::from_slice(&fs::read(file).unwrap()).unwrap();
        let seed = name_seed("model.norm.weight");
        let words: Vec<u32> = (0..family.hash_words.len() as u32).map(|i| hashed(i, seed)).collect();
        assert_eq!(words, family.hash_words, "the same hash as in the script");
        family
    }

    /// Writes config.json and `shards` safetensors files (with their index if there are several) into `dir`.
    pub fn write(&self, dir: &Path, shards: usize) {
        fs::write(dir.join("config.json"), serde_json::to_vec(&self.config).unwrap()).unwrap();
        let tensors = expected_tensors(&LlamaConfig::from_hf(&self.config).unwrap());
        let bytes = |t: &[(String, [usize; 2])]| t.iter().map(|(_, [r, c])| 2 * r * c).sum::<usize>();
        let total = bytes(&tensors);
        let mut rest = tensors.as_slice();
        let mut index = Map::new();
        for shard in 1..=shards {
            let file = match shards {
                1 => "model.safetensors".to_owned(),
                _ => format!("model-{shard:05}-of-{shards:05}.safetensors"),
            };
            // Whole tensors, until this shard has its share.
            let mut n = 0;
            while n < rest.len() && (shard == shards || bytes(&rest[..n]) < total / shards) {
                n += 1;
            }
            let (these, later) = rest.split_at(n);
            rest = later;
            index.extend(these.iter().map(|(name, _)| (name.clone(), json!(file))));
            write_file(&dir.join(file), these);
        }
        if shards > 1 {
            let index = json!({"metadata": {"total_size": total}, "weight_map": index});
            fs::write(dir.join("model.safetensors.index.json"), index.to_string()).unwrap();
        }
    }
}

fn write_file(path: &Path, tensors: &[(String, [usize; 2])]) {
    let mut header = Map::new();
    let mut end = 0;
    for (name, [rows, cols]) in tensors {
        let begin = end;
        end += 2 * rows * cols;
        let shape = if *rows == 1 { json!([cols]) } else { json!([rows, cols]) };
        header.insert(name.clone(), json!({"dtype": "BF16", "shape": shape, "data_offsets": [begin, end]}));
    }
    let header = Value::Object(header).to_string();
    let mut out = BufWriter::with_capacity(1 << 20, File::create(path).unwrap());
    out.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
    out.write_all(header.as_bytes()).unwrap();
    let mut buffer = Vec::new();
    for (name, shape) in tensors {
        let (seed, table) = (name_seed(name), table(*shape));
        let words = (shape[0] * shape[1] / 4) as u32;
        for from in (0..words).step_by(1 << 18) {
            buffer.clear();
            for i in from..words.min(from + (1 << 18)) {
                let [a, b, c, d] = hashed(i, seed).to_le_bytes().map(|byte| table[byte as usize].to_le_bytes());
                buffer.extend_from_slice(&[a[0], a[1], b[0], b[1], c[0], c[1], d[0], d[1]]);
            }
            out.write_all(&buffer).unwrap();
        }
    }
    out.flush().unwrap();
}

/// FNV-1a, 32 bits.
fn name_seed(name: &str) -> u32 {
    name.bytes().fold(0x811C_9DC5, |h, byte| (h ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

/// Word `i`: four weights.
fn hashed(i: u32, seed: u32) -> u32 {
    let mut x = i.wrapping_mul(0x9E37_79B9).wrapping_add(seed);
    x = (x ^ (x >> 16)).wrapping_mul(0x7FEB_352D);
    x = (x ^ (x >> 15)).wrapping_mul(0x846C_A68B);
    x ^ (x >> 16)
}

/// What each byte stands for, in BF16: see `table` in the script.
fn table([rows, cols]: [usize; 2]) -> [u16; 256] {
    std::array::from_fn(|byte| {
        let odd = 2.0 * f64::from(byte as u8 as i8) + 1.0;
        let value = if rows == 1 {
            1.0 + (odd / 16.0).floor() / 128.0
        } else {
            let exponent = (255.0 / 3f64.sqrt() * (cols as f64).sqrt() / 1.5).log2().round();
            odd * 2f64.powi(-exponent as i32)
        };
        let rounded = bf16::from_f64(value);
        assert_eq!(f64::from(rounded), value, "exact in BF16");
        rounded.to_bits()
    })
}
