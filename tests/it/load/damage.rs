//! Damaged files: an answer or one line, never a panic. Seeded, so a failure repeats.

use std::fs;
use std::path::Path;

use lima::model::weights::Checkpoint;
use lima::model::weights::gguf::Gguf;
use lima::model::weights::safetensors::parse;
use lima::ops::quant::DType;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::writer::{GgufFile, config, config_json, directory, safetensors, tensors};

/// Opens it and reads everything; a refusal must be one line.
fn open(path: &Path) -> bool {
    match Checkpoint::open(path) {
        Ok(checkpoint) => {
            for name in checkpoint.names() {
                let view = checkpoint.tensor(name).unwrap();
                assert_eq!(view.to_f32().len(), view.rows * view.cols);
            }
            true
        }
        Err(e) => {
            let message = e.to_string();
            assert!(!message.contains('\n') && message.len() < 1000, "{message}");
            false
        }
    }
}

/// Changes `bytes` in one of several ways, within the first `header` bytes.
fn damage(rng: &mut StdRng, bytes: &mut Vec<u8>, header: usize) {
    const EXTREMES: [u64; 8] = [0, 1, 0x7f, 1 << 31, 1 << 32, 1 << 62, i64::MAX as u64, u64::MAX];
    match rng.random_range(0..5) {
        0 => bytes.truncate(rng.random_range(0..bytes.len())),
        1 => bytes.truncate(rng.random_range(0..header)),
        2 => {
            for _ in 0..rng.random_range(1..4) {
                bytes[rng.random_range(0..header)] = rng.random();
            }
        }
        3 => {
            let at = rng.random_range(0..header - 8);
            let value = EXTREMES[rng.random_range(0..EXTREMES.len())].to_le_bytes();
            let n = if rng.random() { 8 } else { 4 };
            bytes[at..at + n].copy_from_slice(&value[..n]);
        }
        _ => {
            let (a, b) = (rng.random_range(0..header - 16), rng.random_range(0..header - 16));
            bytes.copy_within(a..a + 16, b);
        }
    }
}

#[test]
fn gguf_files() {
    let tmp = tempfile::tempdir().unwrap();
    let path = tmp.path().join("m.gguf");
    let (valid, header) = GgufFile::new(DType::Q4_1).bytes_and_header();
    fs::write(&path, &valid).unwrap();
    assert!(open(&path));
    let mut refused = 0;
    for seed in 0..1500 {
        let mut bytes = valid.clone();
        damage(&mut StdRng::seed_from_u64(seed), &mut bytes, header);
        // A new file each time: a mapped one may not be cut short.
        fs::remove_file(&path).unwrap();
        fs::write(&path, &bytes).unwrap();
        refused += usize::from(!open(&path));
    }
    assert!(refused > 700, "{refused}");
}

#[test]
fn every_truncation_of_a_gguf_header() {
    let (valid, header) = GgufFile::new(DType::Q4_0).bytes_and_header();
    for len in 0..header {
        assert!(Gguf::parse(&valid[..len]).is_err(), "{len}");
    }
    assert!(Gguf::parse(&valid).is_ok());
}

#[test]
fn every_truncation_of_safetensors() {
    let valid = safetensors(DType::BF16, &tensors(&config()));
    let header = 8 + u64::from_le_bytes(valid[..8].try_into().unwrap()) as usize;
    for len in (0..header).chain([header, header + 1, valid.len() / 2, valid.len() - 1]) {
        let message = parse(&valid[..len]).unwrap_err().to_string();
        assert!(message.contains("truncated"), "{len}: {message}");
    }
    assert!(parse(&valid).is_ok());
}

#[test]
fn noise_is_not_gguf() {
    let mut rng = StdRng::seed_from_u64(7);
    for _ in 0..2000 {
        let mut bytes = vec![0; rng.random_range(0..400)];
        rng.fill(&mut bytes[..]);
        let start =
            [b"GGUF".as_slice(), &3u32.to_le_bytes(), &[1, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]].concat();
        let n = bytes.len().min(start.len());
        bytes[..n].copy_from_slice(&start[..n]);
        let _ = Gguf::parse(&bytes);
    }
}

#[test]
fn safetensors_files() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = directory(tmp.path(), DType::BF16);
    let weights = dir.join("model.safetensors");
    let valid = fs::read(&weights).unwrap();
    let header = 8 + u64::from_le_bytes(valid[..8].try_into().unwrap()) as usize;
    let mut refused = 0;
    for seed in 0..1000 {
        let mut bytes = valid.clone();
        damage(&mut StdRng::seed_from_u64(seed), &mut bytes, header);
        fs::remove_file(&weights).unwrap();
        fs::write(&weights, &bytes).unwrap();
        refused += usize::from(!open(&dir));
    }
    assert!(refused > 700, "{refused}");
}

#[test]
fn configurations() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = directory(tmp.path(), DType::F32);
    let valid = config_json().to_string().into_bytes();
    for seed in 0..1000 {
        let mut bytes = valid.clone();
        let header = bytes.len();
        damage(&mut StdRng::seed_from_u64(seed), &mut bytes, header);
        fs::write(dir.join("config.json"), &bytes).unwrap();
        open(&dir);
    }
}
