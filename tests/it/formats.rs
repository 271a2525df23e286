//! Every stored format: its numbers and conversions against ggml's, and models in it against transformers.
//! Goldens: `scripts/goldens/formats.py`.

use std::fs;
use std::path::{Path, PathBuf};

use lima::model::weights::{Checkpoint, TensorView};
use lima::ops::OpsError;
use lima::ops::cpu::CpuOptions;
use lima::ops::cpu::kv::KvType;
use lima::ops::cpu::level::Level;
use lima::ops::cpu::pack::Packed;
use lima::ops::cpu::pool::Pool;
use lima::ops::quant::{DType, dequantize_row, quantize_row};
use lima::runner::{self, RunnerOptions};
use serde::Deserialize;
use sha2::{Digest, Sha256};

use crate::support::cpu::CpuModel;
use crate::support::goldens;

#[derive(Deserialize)]
struct Goldens {
    formats: Vec<Stored>,
    models: Vec<Model>,
}

#[derive(Deserialize)]
struct Stored {
    format: String,
    cols: usize,
    /// Rows as stored, in hexadecimal.
    bytes: String,
    /// SHA-256 of their numbers.
    values: String,
    /// SHA-256 of the rows that ggml makes of those numbers.
    to: std::collections::BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct Model {
    model: String,
    heads: usize,
    kv_heads: usize,
    embed: String,
    /// Formats of q, k, v, o, gate, up, down.
    layers: Vec<[String; 7]>,
    tokens: Vec<u32>,
    /// Log-probabilities after some of the tokens.
    rows: Vec<(usize, Vec<f32>)>,
}

fn goldens() -> Goldens {
    serde_json::from_str(&fs::read_to_string(goldens::path("formats.json")).unwrap()).unwrap()
}

fn dtype(name: &str) -> DType {
    DType::ALL.into_iter().find(|d| d.name() == name).unwrap()
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

fn of_numbers(numbers: &[f32]) -> String {
    sha256(&numbers.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<_>>())
}

impl Stored {
    fn bytes(&self) -> Vec<u8> {
        let digits = self.bytes.as_bytes().chunks_exact(2);
        digits.map(|d| u8::from_str_radix(std::str::from_utf8(d).unwrap(), 16).unwrap()).collect()
    }
}

fn unpacked(packed: &Packed) -> Vec<f32> {
    let mut out = vec![0f32; packed.rows * packed.cols];
    out.chunks_exact_mut(packed.cols).enumerate().for_each(|(i, row)| packed.unpack_row(i, row));
    out
}

/// `--dtype auto` keeps ggml's numbers to the bit; `f32`, `bf16`, `q8_0` and `q4_0` become what ggml makes of them.
#[test]
fn stored_and_converted_numbers_equal_ggmls() {
    let goldens = goldens();
    assert_eq!(goldens.formats.len(), DType::ALL.len());
    let mut pool = Pool::new(2);
    for stored in &goldens.formats {
        let (from, bytes) = (dtype(&stored.format), stored.bytes());
        let row_bytes = from.row_bytes(stored.cols).unwrap();
        let rows = bytes.len() / row_bytes;
        let view = TensorView::new(from, rows, stored.cols, &bytes, None).unwrap();
        let numbers = view.to_f32();
        assert_eq!(of_numbers(&numbers), stored.values, "{from}");
        let packed = Packed::new(&mut pool, &[view], from).unwrap();
        assert_eq!((packed.dtype, of_numbers(&unpacked(&packed))), (from, stored.values.clone()));

        assert_eq!(stored.to.len(), 4);
        for (name, expected) in &stored.to {
            let to = dtype(name);
            let mut converted = vec![0; rows * to.row_bytes(stored.cols).unwrap()];
            quantize_row(to, &numbers, &mut converted);
            assert_eq!(&sha256(&converted), expected, "{from} to {to}");
            let mut converted_numbers = vec![0f32; numbers.len()];
            dequantize_row(to, &converted, &mut converted_numbers);
            let packed = Packed::new(&mut pool, &[view], to).unwrap();
            // What is stored in that format already stays as it is.
            let expected = if from == to { &numbers } else { &converted_numbers };
            assert_eq!(&unpacked(&packed), expected, "{from} packed as {to}");
        }
    }
}

/// `values` numbers of random quants, as `random_bytes` of the script makes them.
pub fn random_bytes(dtype: DType, seed: u64, values: usize) -> Vec<u8> {
    let len = values / dtype.block_len() * dtype.block_bytes();
    let number = |i: u64| {
        let z = seed.wrapping_add(i.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    };
    let mut raw: Vec<u8> = (1..=len.div_ceil(8) as u64).flat_map(|i| number(i).to_le_bytes()).take(len).collect();
    // Places and f16 bits of scales and minima.
    let halves: &[(usize, u16)] = match dtype {
        DType::F32 | DType::F16 | DType::BF16 => {
            // Any sign and fraction, one exponent: its byte, and the masks of the two highest bytes.
            let (size, keep, set) = match dtype {
                DType::F32 => (4, 0x807f, 122 << 7),
                DType::F16 => (2, 0x83ff, 10 << 10),
                _ => (2, 0x807f, 122 << 7),
            };
            for x in raw.chunks_exact_mut(size) {
                let high = u16::from_le_bytes([x[size - 2], x[size - 1]]) & keep | set;
                x[size - 2..].copy_from_slice(&high.to_le_bytes());
            }
            return raw;
        }
        DType::Q8_0 => &[(0, 0x1000)],
        DType::Q4_0 => &[(0, 0x2100)],
        DType::Q4_1 => &[(0, 0x2100), (2, 0xac80)],
        DType::Q5_0 => &[(0, 0x1c80)],
        DType::Q5_1 => &[(0, 0x1c80), (2, 0xac80)],
        DType::Q4_K => &[(0, 0x0d00), (2, 0x1980)],
        DType::Q5_K => &[(0, 0x0900), (2, 0x1980)],
        DType::Q6_K => &[(208, 0x0400)],
    };
    for (i, block) in raw.chunks_exact_mut(dtype.block_bytes()).enumerate() {
        let step = (i % 65536 * 7 % 65536 % 256) as u16;
        halves.iter().for_each(|(at, bits)| block[*at..at + 2].copy_from_slice(&(bits + step).to_le_bytes()));
    }
    raw
}

fn crc32(bytes: &[u8]) -> u64 {
    let mut crc = u32::MAX;
    for b in bytes {
        crc ^= u32::from(*b);
        for _ in 0..8 {
            crc = (crc >> 1) ^ if crc & 1 == 1 { 0xedb8_8320 } else { 0 };
        }
    }
    u64::from(!crc)
}

const HIDDEN: usize = 256;
const INTERMEDIATE: usize = 512;
const VOCAB: usize = 300;

/// A GGUF file of the model, without a tokenizer. `change` may damage a tensor's bytes.
fn write(model: &Model, dir: &Path, change: &dyn Fn(&str, &mut [u8])) -> PathBuf {
    fn string(out: &mut Vec<u8>, s: &str) {
        out.extend((s.len() as u64).to_le_bytes());
        out.extend(s.as_bytes());
    }
    let number = |d: DType| -> u32 {
        let numbers = [0, 1, 30, 8, 2, 3, 6, 7, 12, 13, 14];
        numbers[DType::ALL.iter().position(|x| *x == d).unwrap()]
    };
    let dim = HIDDEN / model.heads;
    let mut meta = Vec::new();
    string(&mut meta, "general.architecture");
    meta.extend(8u32.to_le_bytes());
    string(&mut meta, "llama");
    let keys = [
        ("block_count", model.layers.len()),
        ("embedding_length", HIDDEN),
        ("feed_forward_length", INTERMEDIATE),
        ("attention.head_count", model.heads),
        ("attention.head_count_kv", model.kv_heads),
        ("context_length", 128),
        ("vocab_size", VOCAB),
    ];
    for (key, value) in keys {
        string(&mut meta, &format!("llama.{key}"));
        meta.extend(4u32.to_le_bytes());
        meta.extend((value as u32).to_le_bytes());
    }
    for (key, value) in [("attention.layer_norm_rms_epsilon", 1e-5f32), ("rope.freq_base", 1e4)] {
        string(&mut meta, &format!("llama.{key}"));
        meta.extend(6u32.to_le_bytes());
        meta.extend(value.to_le_bytes());
    }
    let (mut infos, mut data, mut count) = (Vec::new(), Vec::new(), 0u64);
    let mut put = |name: &str, dtype: DType, rows: usize, cols: usize| {
        let name = format!("{name}.weight");
        let mut bytes = match rows {
            0 => 1f32.to_le_bytes().repeat(cols),
            _ => {
                let seed = crc32(format!("{}/{}", model.model, name.trim_end_matches(".weight")).as_bytes());
                random_bytes(dtype, seed, rows * cols)
            }
        };
        change(&name, &mut bytes);
        string(&mut infos, &name);
        let dims = [cols as u64, rows as u64];
        let dims = &dims[..if rows == 0 { 1 } else { 2 }];
        infos.extend((dims.len() as u32).to_le_bytes());
        dims.iter().for_each(|d| infos.extend(d.to_le_bytes()));
        infos.extend(number(dtype).to_le_bytes());
        infos.extend((data.len() as u64).to_le_bytes());
        data.extend(bytes);
        data.resize(data.len().next_multiple_of(32), 0);
        count += 1;
    };
    put("token_embd", dtype(&model.embed), VOCAB, HIDDEN);
    put("output_norm", DType::F32, 0, HIDDEN);
    for (i, types) in model.layers.iter().enumerate() {
        put(&format!("blk.{i}.attn_norm"), DType::F32, 0, HIDDEN);
        put(&format!("blk.{i}.ffn_norm"), DType::F32, 0, HIDDEN);
        let kv = model.kv_heads * dim;
        let shapes = [
            ("attn_q", HIDDEN, HIDDEN),
            ("attn_k", kv, HIDDEN),
            ("attn_v", kv, HIDDEN),
            ("attn_output", HIDDEN, HIDDEN),
            ("ffn_gate", INTERMEDIATE, HIDDEN),
            ("ffn_up", INTERMEDIATE, HIDDEN),
            ("ffn_down", HIDDEN, INTERMEDIATE),
        ];
        for ((name, rows, cols), dtype_name) in shapes.into_iter().zip(types) {
            put(&format!("blk.{i}.{name}"), dtype(dtype_name), rows, cols);
        }
    }
    let mut out = b"GGUF".to_vec();
    out.extend(3u32.to_le_bytes());
    out.extend(count.to_le_bytes());
    out.extend((1 + keys.len() as u64 + 2).to_le_bytes());
    out.extend(meta);
    out.extend(infos);
    out.resize(out.len().next_multiple_of(32), 0);
    out.extend(data);
    let path = dir.join("m.gguf");
    fs::write(&path, out).unwrap();
    path
}

/// Largest difference of log-probabilities, and mean KL divergence.
fn distance(model: &Model, logits: &[Vec<f32>]) -> (f32, f64) {
    let (mut most, mut kl) = (0f32, 0f64);
    for (at, expected) in &model.rows {
        let ours = goldens::log_softmax(&logits[*at]);
        assert_eq!(ours.len(), expected.len());
        for (p, q) in expected.iter().zip(&ours) {
            most = most.max((p - q).abs());
            kl += f64::from(p.exp()) * f64::from(p - q) / model.rows.len() as f64;
        }
    }
    (most, kl)
}

/// With F32 kernels they are transformers' results for ggml's numbers; with their own, as close as activations of
/// 8 bits let them be.
#[test]
fn models_in_many_formats_equal_transformers() {
    let tmp = tempfile::tempdir().unwrap();
    for model in goldens().models {
        let path = write(&model, tmp.path(), &|_, _| ());
        let exact = CpuModel::open(&path, Some(DType::F32), Level::best(), 2).logits(&model.tokens, 512);
        let own = CpuModel::open(&path, None, Level::best(), 2).logits(&model.tokens, 512);
        let (exact, own) = (distance(&model, &exact), distance(&model, &own));
        println!("{}: F32 kernels {exact:?}, its own {own:?}", model.model);
        assert!(exact.0 <= 2e-4, "{}: {exact:?}", model.model);
        // The difference is largest for tokens that are very unlikely.
        assert!(own.0 <= 0.5 && own.1 <= 2e-3, "{}: {own:?}", model.model);
    }
}

#[test]
fn levels_threads_and_chunks_agree_bitwise() {
    let tmp = tempfile::tempdir().unwrap();
    for model in goldens().models {
        let checkpoint = Checkpoint::open(write(&model, tmp.path(), &|_, _| ())).unwrap();
        let mut expected: Option<Vec<Vec<u32>>> = None;
        for level in Level::available() {
            // The native bf16 product flushes denormals: alike at its own level only.
            if level == Level::Avx512Bf16 {
                expected = None;
            }
            for (threads, chunk) in [(1, 512), (2, 7), (1, 1)] {
                let options = CpuOptions {
                    threads,
                    level,
                    dtype: None,
                    kv: KvType::BF16,
                    max_tokens: 512,
                    max_outputs: 512,
                    max_positions: 128,
                };
                let logits = CpuModel::with(&checkpoint, options).logits(&model.tokens, chunk);
                let bits: Vec<Vec<u32>> = logits.iter().map(|row| row.iter().map(|x| x.to_bits()).collect()).collect();
                let expected = expected.get_or_insert_with(|| bits.clone());
                assert!(*expected == bits, "{} {level} {threads} threads by {chunk}", model.model);
            }
        }
    }
}

/// An error names the file and the tensor that is at fault, whichever of those merged with others it is.
#[test]
fn weights_that_are_not_finite_are_refused_by_name() {
    let tmp = tempfile::tempdir().unwrap();
    let model = &goldens().models[1];
    let options = |dtype| RunnerOptions {
        kv_cache: None,
        threads: Some(2),
        dtype,
        max_model_len: None,
        max_num_batched_tokens: 16,
        max_num_seqs: 1,
        kv_cache_memory: None,
        level: Level::best(),
    };
    // Where the first block's scale or minimum, or the upper half of the first number, is.
    let cases = [
        ("token_embd", 0, 0x7c00u16),
        ("blk.0.attn_norm", 2, 0x7f80),
        ("blk.0.attn_q", 0, 0xfc00),
        ("blk.0.attn_k", 2, 0x7e00),
        ("blk.1.attn_k", 0, 0x7c00),
        ("blk.1.attn_v", 0, 0x7fc0),
        ("blk.0.ffn_up", 0, 0x7c01),
        ("blk.1.ffn_up", 2, 0xff80),
        ("output_norm", 2, 0x7fff),
    ];
    for (damaged, at, bits) in cases {
        let path = write(model, tmp.path(), &|name, bytes| {
            if name.trim_end_matches(".weight") == damaged {
                bytes[at..at + 2].copy_from_slice(&bits.to_le_bytes());
            }
        });
        let checkpoint = Checkpoint::open(&path).unwrap();
        for dtype in [None, Some(DType::F32), Some(DType::Q4_0)] {
            let error = runner::load(&checkpoint, &options(dtype), |_| ()).map(|_| ()).unwrap_err().to_string();
            let expected = format!(
                "{}: tensor \"{damaged}.weight\" cannot be used: row 0 has a number that is not finite",
                path.display()
            );
            assert_eq!(error, expected, "{dtype:?}");
        }
    }
}

#[test]
fn conversion_to_a_format_that_is_only_read_is_refused() {
    let bytes = vec![0u8; 256 * 4];
    let view = TensorView::new(DType::F32, 1, 256, &bytes, None).unwrap();
    for dtype in DType::ALL {
        let made = Packed::new(&mut Pool::new(1), &[view], dtype);
        assert_eq!(made.is_ok(), dtype.is_writable(), "{dtype:?}");
        assert!(made.is_ok() || matches!(made, Err(OpsError::Unsupported(_))));
    }
}
