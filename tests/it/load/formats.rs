//! What is written is read back, under the same names and in the same order.

use std::fs;

use lima::model::config::{LlamaConfig, RopeScaling};
use lima::model::weights::{Checkpoint, Source, expected_tensors};
use lima::ops::quant::{DType, dequantize_row};

use super::writer::{GgufFile, Meta, config, directory, encode, tensors};

/// Every tensor, rounded to `dtype` where it is a matrix, must come back.
pub fn assert_holds(checkpoint: &Checkpoint, matrices: DType, norms: DType) {
    for (name, [rows, cols], values) in tensors(&config()) {
        let view = checkpoint.tensor(&name).unwrap();
        assert_eq!((view.rows, view.cols), (rows, cols), "{name}");
        let dtype = if rows == 1 { norms } else { matrices };
        assert_eq!(view.dtype, dtype, "{name}");
        let bytes = encode(dtype, &values, cols);
        for i in 0..rows {
            assert_eq!(view.row(i), &bytes[i * view.row_bytes()..][..view.row_bytes()], "{name} row {i}");
        }
        let mut expected = vec![0.0; rows * cols];
        for (i, row) in expected.chunks_mut(cols).enumerate() {
            dequantize_row(dtype, &bytes[i * view.row_bytes()..][..view.row_bytes()], row);
        }
        assert_eq!(view.to_f32(), expected, "{name}");
    }
    let mut names: Vec<String> = expected_tensors(&config()).into_iter().map(|(name, _)| name).collect();
    names.sort();
    assert_eq!(checkpoint.names().collect::<Vec<_>>(), names);
}

#[test]
fn safetensors_directories() {
    let tmp = tempfile::tempdir().unwrap();
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        let dir = directory(&tmp.path().join(dtype.name()), dtype);
        let checkpoint = Checkpoint::open(&dir).unwrap();
        assert_eq!(checkpoint.config(), &config());
        assert_eq!(checkpoint.source(), &Source::HuggingFace(dir));
        assert!(checkpoint.gguf_vocab().is_none());
        assert_holds(&checkpoint, dtype, dtype);
        let values: usize = expected_tensors(&config()).iter().map(|(_, [r, c])| r * c).sum();
        assert_eq!(checkpoint.total_bytes(), values * dtype.block_bytes());
        assert_eq!(checkpoint.generation_defaults().temperature, None);
    }
}

#[test]
fn gguf_files() {
    let tmp = tempfile::tempdir().unwrap();
    for (dtype, version) in
        [(DType::F32, 3), (DType::F16, 3), (DType::BF16, 2), (DType::Q8_0, 3), (DType::Q4_0, 2), (DType::Q4_1, 3)]
    {
        let path = tmp.path().join(format!("{dtype}.gguf"));
        let mut file = GgufFile::new(dtype);
        file.version = version;
        fs::write(&path, file.bytes()).unwrap();
        let checkpoint = Checkpoint::open(&path).unwrap();
        assert_eq!(checkpoint.config(), &config(), "{dtype}");
        assert_eq!(checkpoint.source(), &Source::Gguf(path));
        assert_holds(&checkpoint, dtype, DType::F32);
    }
}

#[test]
fn gguf_vocabulary() {
    let tmp = tempfile::tempdir().unwrap();
    let path = tmp.path().join("m.gguf");
    fs::write(&path, GgufFile::new(DType::F32).bytes()).unwrap();
    let checkpoint = Checkpoint::open(&path).unwrap();
    let vocab = checkpoint.gguf_vocab().unwrap();
    assert_eq!((vocab.model.as_str(), vocab.pre.as_deref()), ("gpt2", Some("smollm")));
    assert_eq!((vocab.tokens.len(), vocab.tokens[39].as_str()), (40, "t39"));
    assert_eq!((vocab.token_types.as_slice(), vocab.scores.as_deref()), (&[1; 40][..], None));
    assert_eq!(vocab.merges, ["a b", "b c"]);
    assert_eq!((vocab.bos, vocab.eos, vocab.unk, vocab.add_bos), (Some(1), Some(2), Some(0), Some(false)));
    assert_eq!(vocab.chat_template.as_deref(), Some("{{ messages }}"));
}

#[test]
fn tied_embeddings_need_no_output_and_ignore_one() {
    let tmp = tempfile::tempdir().unwrap();
    let path = tmp.path().join("m.gguf");
    let mut file = GgufFile::new(DType::Q8_0);
    file.tensors.retain(|(name, ..)| name != "output.weight");
    fs::write(&path, file.bytes()).unwrap();
    let checkpoint = Checkpoint::open(&path).unwrap();
    assert!(checkpoint.config().tie_word_embeddings);
    assert!(checkpoint.tensor("lm_head.weight").is_err());

    let dir = directory(&tmp.path().join("hf"), DType::F32);
    let mut json = super::writer::config_json();
    json["tie_word_embeddings"] = true.into();
    fs::write(dir.join("config.json"), json.to_string()).unwrap();
    let checkpoint = Checkpoint::open(&dir).unwrap();
    assert!(checkpoint.names().all(|name| name != "lm_head.weight"));
}

#[test]
fn rope_scaling_of_gguf() {
    let tmp = tempfile::tempdir().unwrap();
    let path = tmp.path().join("m.gguf");
    let read = |file: &GgufFile| -> Result<LlamaConfig, String> {
        fs::write(&path, file.bytes()).unwrap();
        Checkpoint::open(&path).map(|c| c.config().clone()).map_err(|e| e.to_string())
    };
    let plain = GgufFile::new(DType::F32);

    let mut linear = plain.clone();
    linear.set("llama.rope.scaling.type", Meta::Str("linear")).set("llama.rope.scaling.factor", Meta::F32(4.0));
    assert_eq!(read(&linear).unwrap().rope_scaling, RopeScaling::Linear { factor: 4.0 });

    let factors: Vec<f32> = (1..=8).map(|i| i as f32).collect();
    let mut with_factors = plain.clone();
    with_factors.tensors.push(("rope_freqs.weight".into(), vec![8], 0, encode(DType::F32, &factors, 8)));
    assert_eq!(read(&with_factors).unwrap().rope_scaling, RopeScaling::Factors(factors));

    let mut yarn = plain.clone();
    yarn.set("llama.rope.scaling.type", Meta::Str("yarn"));
    assert!(read(&yarn).unwrap_err().contains("llama.rope.scaling.type is \"yarn\""));

    let mut short = plain;
    short.tensors.push(("rope_freqs.weight".into(), vec![4], 0, encode(DType::F32, &[1.0; 4], 4)));
    assert!(read(&short).unwrap_err().contains("rope_freqs.weight has 4 values"));
}

#[test]
fn generation_config_is_read() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = directory(tmp.path(), DType::F32);
    fs::write(dir.join("generation_config.json"), r#"{"temperature": 0.7, "top_p": 0.9, "eos_token_id": 5}"#).unwrap();
    let defaults = Checkpoint::open(&dir).unwrap().generation_defaults().clone();
    assert_eq!((defaults.temperature, defaults.top_p, defaults.eos_token_ids), (Some(0.7), Some(0.9), vec![5]));
}
