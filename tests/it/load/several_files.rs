//! Weights in several files: safetensors with an index, GGUF in parts.

use std::fs;
use std::path::{Path, PathBuf};

use lima::model::weights::Checkpoint;
use lima::ops::quant::DType;
use serde_json::{Map, Value, json};

use super::formats::assert_holds;
use super::refusals::assert_refused;
use super::writer::{GgufFile, Meta, Tensor, config, config_json, safetensors, tensors};

const INDEX: &str = "model.safetensors.index.json";
const SHARDS: [&str; 3] =
    ["model-00001-of-00003.safetensors", "model-00002-of-00003.safetensors", "model-00003-of-00003.safetensors"];

/// The model's tensors by shard, in turn.
fn shards() -> [Vec<Tensor>; 3] {
    let mut out = [vec![], vec![], vec![]];
    for (i, tensor) in tensors(&config()).into_iter().enumerate() {
        out[i % 3].push(tensor);
    }
    out
}

fn index(shards: &[Vec<Tensor>; 3]) -> Value {
    let mut map = Map::new();
    for (shard, name) in shards.iter().zip(SHARDS) {
        map.extend(shard.iter().map(|(tensor, ..)| (tensor.clone(), name.into())));
    }
    json!({"metadata": {"total_size": 123}, "weight_map": map})
}

fn write(dir: &Path, index: &Value, shards: &[Vec<Tensor>; 3]) {
    fs::write(dir.join("config.json"), config_json().to_string()).unwrap();
    fs::write(dir.join(INDEX), index.to_string()).unwrap();
    for (shard, name) in shards.iter().zip(SHARDS) {
        fs::write(dir.join(name), safetensors(DType::BF16, shard)).unwrap();
    }
}

#[test]
fn sharded_safetensors() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = tmp.path();
    let all = shards();
    write(dir, &index(&all), &all);
    let checkpoint = Checkpoint::open(dir).unwrap();
    assert_holds(&checkpoint, DType::BF16, DType::BF16);
    let error = checkpoint.tensor_error("model.norm.weight", "is bad").to_string();
    assert!(error.contains("of-00003.safetensors: tensor \"model.norm.weight\" is bad"), "{error}");

    // A tensor that nobody needs may be in a shard without being in the index.
    let mut more = all.clone();
    more[1].push(("model.layers.0.self_attn.rotary_emb.inv_freq".into(), [1, 8], vec![0.0; 8]));
    write(dir, &index(&all), &more);
    assert_holds(&Checkpoint::open(dir).unwrap(), DType::BF16, DType::BF16);

    // One file alone wins over an index, as in transformers.
    fs::write(dir.join("model.safetensors"), safetensors(DType::F32, &tensors(&config()))).unwrap();
    assert_holds(&Checkpoint::open(dir).unwrap(), DType::F32, DType::F32);
}

#[test]
fn an_index_and_its_shards_must_agree() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = tmp.path();
    let all = shards();
    let norm = "model.norm.weight";
    let with = |change: &dyn Fn(&mut Value, &mut [Vec<Tensor>; 3])| {
        let mut shards = all.clone();
        let mut index = index(&shards);
        change(&mut index, &mut shards);
        write(dir, &index, &shards);
    };
    let home = |shards: &[Vec<Tensor>; 3]| shards.iter().position(|s| s.iter().any(|t| t.0 == norm)).unwrap();
    let at = home(&all);
    let other = (at + 1) % 3;

    with(&|_, shards| shards[at].retain(|t| t.0 != norm));
    assert_refused(dir, &format!("{}: tensor \"{norm}\" is missing; {INDEX} says", SHARDS[at]));
    with(&|_, shards| {
        let i = shards[at].iter().position(|t| t.0 == norm).unwrap();
        let tensor = shards[at].remove(i);
        shards[other].push(tensor);
    });
    assert_refused(
        dir,
        &format!("{}: has tensor \"{norm}\", which {INDEX} says is in \"{}\"", SHARDS[other], SHARDS[at]),
    );
    with(&|index, _| _ = index["weight_map"].as_object_mut().unwrap().remove(norm));
    assert_refused(dir, &format!("{}: tensor \"{norm}\" is not in {INDEX}", SHARDS[at]));
    with(&|_, shards| shards[other].push((norm.into(), [1, 64], vec![0.0; 64])));
    assert_refused(dir, &format!("{}: has tensor \"{norm}\"", SHARDS[other]));
    with(&|index, shards| {
        index["weight_map"].as_object_mut().unwrap().remove(norm);
        shards[at].retain(|t| t.0 != norm);
    });
    assert_refused(dir, &format!("{INDEX}: tensor \"{norm}\" is missing"));
    with(&|_, shards| {
        shards[at].iter_mut().for_each(|t| {
            if t.0 == norm {
                (t.1, t.2) = ([1, 32], vec![0.0; 32])
            }
        })
    });
    assert_refused(dir, &format!("{}: tensor \"{norm}\" is 1 x 32, the configuration needs 1 x 64", SHARDS[at]));

    with(&|_, _| {});
    fs::remove_file(dir.join(SHARDS[2])).unwrap();
    assert_refused(dir, &format!("{}: is missing; {INDEX} says that tensor \"", SHARDS[2]));
    fs::create_dir(dir.join(SHARDS[2])).unwrap();
    assert_refused(dir, &format!("{}: is not a file", SHARDS[2]));
    fs::remove_dir(dir.join(SHARDS[2])).unwrap();
    fs::write(dir.join(SHARDS[2]), b"short").unwrap();
    assert_refused(dir, &format!("{}: is shorter than a safetensors header", SHARDS[2]));
}

#[test]
fn an_index_stays_in_its_directory() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = tmp.path().join("model");
    fs::create_dir(&dir).unwrap();
    let all = shards();
    for file in [
        "../model-00001-of-00003.safetensors",
        "/etc/passwd.safetensors",
        "sub/x.safetensors",
        "sub\\x.safetensors",
        "C:x.safetensors",
        "..safetensors",
        "x\n.safetensors",
        "pytorch_model-00001.bin",
        "",
    ] {
        let mut index = index(&all);
        index["weight_map"]["model.norm.weight"] = file.into();
        write(&dir, &index, &all);
        assert_refused(&dir, "is not the name of a safetensors file in this directory");
        assert_refused(&dir, &format!("{INDEX}: tensor \"model.norm.weight\" is in {file:?}"));
    }
    for (text, words) in [
        ("", "is not an index"),
        ("[1]", "is not an index"),
        ("{}", "missing field `weight_map`"),
        (r#"{"weight_map": []}"#, "is not an index"),
        (r#"{"weight_map": {"a": 1}}"#, "is not an index"),
        (r#"{"weight_map": {}}"#, "names no tensors"),
        (r#"{"weight_map": {"a": "x.safetensors", "a": "y.safetensors"}}"#, "\"a\" occurs twice"),
        (r#"{"weight_map": {"a": "x.safetensors"}, "weight_map": {}}"#, "duplicate field `weight_map`"),
        (r#"{"weight_map": {"a": "x.safetensors"}}"#, "x.safetensors: is missing"),
    ] {
        fs::write(dir.join(INDEX), text).unwrap();
        assert_refused(&dir, words);
    }
    fs::write(dir.join(INDEX), vec![b' '; (16 << 20) + 1]).unwrap();
    assert_refused(&dir, "16777217 bytes, at most 16777216 are read");
}

/// The parts of a split model, the metadata in the first.
fn parts(dtype: DType, count: usize) -> Vec<GgufFile> {
    let whole = GgufFile::new(dtype);
    let each = whole.tensors.len().div_ceil(count);
    let mut parts = Vec::new();
    for (i, tensors) in whole.tensors.chunks(each).enumerate() {
        let mut part = GgufFile { tensors: tensors.to_vec(), ..whole.clone() };
        if i > 0 {
            part.metadata.clear();
        }
        part.set("split.no", Meta::U32(i as u32)).set("split.count", Meta::U32(count as u32));
        part.set("split.tensors.count", Meta::U32(whole.tensors.len() as u32));
        parts.push(part);
    }
    parts
}

fn write_parts(dir: &Path, parts: &[GgufFile]) -> Vec<PathBuf> {
    let name = |i: usize| dir.join(format!("m-{:05}-of-{:05}.gguf", i + 1, parts.len()));
    let write = |(i, part): (usize, &GgufFile)| {
        fs::write(name(i), part.bytes()).unwrap();
        name(i)
    };
    parts.iter().enumerate().map(write).collect()
}

#[test]
fn split_gguf_from_any_part() {
    let tmp = tempfile::tempdir().unwrap();
    let paths = write_parts(tmp.path(), &parts(DType::Q8_0, 3));
    for path in &paths {
        let checkpoint = Checkpoint::open(path).unwrap();
        assert_holds(&checkpoint, DType::Q8_0, DType::F32);
        assert_eq!(checkpoint.gguf_vocab().unwrap().tokens.len(), 40);
        let error = checkpoint.tensor_error("model.norm.weight", "is bad").to_string();
        assert!(error.contains("m-00003-of-00003.gguf: tensor \"output_norm.weight\" is bad"), "{error}");
    }
    // Metadata alone in the first part, as gguf-split makes it when asked.
    let mut alone = parts(DType::F32, 2);
    let moved = std::mem::take(&mut alone[0].tensors);
    alone[1].tensors.splice(0..0, moved);
    let dir = tmp.path().join("alone");
    fs::create_dir(&dir).unwrap();
    assert_holds(&Checkpoint::open(&write_parts(&dir, &alone)[1]).unwrap(), DType::F32, DType::F32);
}

#[test]
fn split_gguf_parts_must_belong_together() {
    let tmp = tempfile::tempdir().unwrap();
    let good = parts(DType::Q8_0, 3);
    let write = |change: &dyn Fn(&mut Vec<GgufFile>)| {
        let mut parts = good.clone();
        change(&mut parts);
        write_parts(tmp.path(), &parts)
    };
    let paths = write(&|_| {});
    fs::remove_file(&paths[1]).unwrap();
    assert_refused(&paths[0], "m-00002-of-00003.gguf: is missing; m-00001-of-00003.gguf is another part");
    let paths = write(&|_| {});
    let renamed = tmp.path().join("model.gguf");
    fs::copy(&paths[1], &renamed).unwrap();
    assert_refused(&renamed, "is part 2 of 3 by its metadata, and must be called NAME-00002-of-00003.gguf");
    let paths = write(&|p| p.swap(1, 2));
    assert_refused(&paths[0], "m-00002-of-00003.gguf: is part 3 of 3");
    let paths = write(&|p| _ = p[2].set("split.count", Meta::U32(4)));
    assert_refused(&paths[0], "m-00003-of-00003.gguf: is part 3 of 4");
    let paths = write(&|p| _ = p[2].remove("split.count"));
    assert_refused(&paths[0], "m-00003-of-00003.gguf: has no split.count, but its name says that it is part 3 of 3");
    let paths = write(&|p| _ = p[1].remove("split.no"));
    assert_refused(&paths[0], "m-00002-of-00003.gguf: split.no is missing");
    let paths = write(&|p| _ = p[1].set("split.no", Meta::U32(3)));
    assert_refused(&paths[0], "split.no is 3, split.count is 3");
    let paths = write(&|p| _ = p[1].set("split.no", Meta::Bool(true)));
    assert_refused(&paths[0], "split.no must be a whole number");
    let paths = write(&|p| _ = p[1].set("split.count", Meta::U32(1 << 30)));
    assert_refused(&paths[0], "split.count is 1073741824, at most 4096");
    let paths = write(&|p| _ = p[2].tensors.pop());
    assert_refused(&paths[0], "split.tensors.count is 21, all parts together have 20");
    let paths = write(&|p| {
        let twin = p[0].tensors[0].clone();
        p[2].tensors[0] = twin;
    });
    assert_refused(&paths[1], "m-00003-of-00003.gguf: tensor \"token_embd.weight\" is in ");
    let paths = write(&|p| {
        p.iter_mut().for_each(|part| _ = part.set("split.tensors.count", Meta::U32(20)));
        p[1].tensors.remove(0);
    });
    assert_refused(&paths[1], " is missing");
    let paths = write(&|_| {});
    let bytes = fs::read(&paths[2]).unwrap();
    fs::write(&paths[2], &bytes[..bytes.len() - 1]).unwrap();
    assert_refused(&paths[0], "m-00003-of-00003.gguf: tensor \"");
}
