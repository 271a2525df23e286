//! What cannot be served is refused in one line that names the file and the thing.

use std::fs;
use std::path::Path;

use lima::model::config::RopeScaling;
use lima::model::weights::Checkpoint;
use lima::ops::quant::DType;
use serde_json::json;

use super::writer::{GgufFile, Meta, config, config_json, directory, safetensors, tensors, with_header};

fn refusal(path: &Path) -> String {
    let message = Checkpoint::open(path).map(|_| ()).unwrap_err().to_string();
    assert!(!message.contains('\n'), "{message}");
    // The file, another part of the same model, or the directory it is in.
    let directory = if path.is_dir() { path } else { path.parent().unwrap() };
    assert!(message.starts_with(directory.to_str().unwrap()), "{message}");
    message
}

#[track_caller]
pub fn assert_refused(path: &Path, words: &str) {
    let message = refusal(path);
    assert!(message.contains(words), "{message:?} does not say {words:?}");
}

#[test]
fn pickles_are_never_read() {
    let tmp = tempfile::tempdir().unwrap();
    for name in ["pytorch_model.bin", "weights.pth", "model.pt", "model.PKL"] {
        let path = tmp.path().join(name);
        fs::write(&path, b"\x80\x02cos\nsystem\n").unwrap();
        assert_refused(&path, "unpickling runs code");
    }
    fs::write(tmp.path().join("config.json"), config_json().to_string()).unwrap();
    assert_refused(tmp.path(), "unpickling runs code");
}

#[test]
fn things_that_are_not_models() {
    let tmp = tempfile::tempdir().unwrap();
    let at = |name: &str, bytes: &[u8]| {
        let path = tmp.path().join(name);
        fs::write(&path, bytes).unwrap();
        path
    };
    assert_refused(tmp.path(), "has no config.json");
    assert_refused(&tmp.path().join("absent"), "No such file");
    assert_refused(&at("empty.gguf", b""), "does not begin with \"GGUF\"");
    assert_refused(&at("m.safetensors", b"x"), "give the directory");
    assert_refused(&at("notes.txt", b"hello"), "is not a model");
    fs::write(tmp.path().join("config.json"), config_json().to_string()).unwrap();
    assert_refused(tmp.path(), "has no model.safetensors, but \"empty.gguf\": give the path of that file");
}

#[test]
fn original_checkpoints_point_to_the_conversion() {
    let conversion = "transformers.models.llama.convert_llama_weights_to_hf";
    for name in ["consolidated.00.pth", "consolidated.safetensors"] {
        let tmp = tempfile::tempdir().unwrap();
        let path = tmp.path().join(name);
        fs::write(&path, b"PK\x03\x04").unwrap();
        fs::write(tmp.path().join("params.json"), r#"{"dim": 4096}"#).unwrap();
        assert_refused(&path, conversion);
        assert_refused(tmp.path(), "has no config.json, but \"consolidated.");
        assert_refused(tmp.path(), conversion);
        fs::write(tmp.path().join("config.json"), config_json().to_string()).unwrap();
        assert_refused(tmp.path(), conversion);
        // Beside safetensors they are in nobody's way.
        directory(tmp.path(), DType::F32);
        assert!(Checkpoint::open(tmp.path()).is_ok());
    }
}

#[test]
fn tensors_missing_leftover_and_misshapen_are_named() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = directory(tmp.path(), DType::F32);
    let write = |change: &dyn Fn(&mut Vec<super::writer::Tensor>)| {
        let mut all = tensors(&config());
        change(&mut all);
        fs::write(dir.join("model.safetensors"), safetensors(DType::F32, &all)).unwrap();
    };
    write(&|all| all.retain(|(name, ..)| name != "model.layers.1.mlp.up_proj.weight"));
    assert_refused(&dir, "tensor \"model.layers.1.mlp.up_proj.weight\" is missing");
    write(&|all| all.retain(|(name, ..)| !name.contains("layers.1.")));
    assert_refused(&dir, "6 more are missing");
    write(&|all| all.push(("model.layers.0.self_attn.q_proj.bias".into(), [1, 64], vec![0.0; 64])));
    assert_refused(&dir, "model.safetensors: tensor \"model.layers.0.self_attn.q_proj.bias\" is not part of");
    write(&|all| all[0].1 = [64, 40]);
    assert_refused(
        &dir,
        "model.safetensors: tensor \"model.embed_tokens.weight\" is 64 x 40, the configuration needs 40 x 64",
    );
    for (at, name) in [(0, "model.embed_tokens.weight"), (20, "lm_head.weight")] {
        write(&|all| (all[at].1, all[at].2) = ([41, 64], vec![0.0; 41 * 64]));
        assert_refused(
            &dir,
            &format!("model.safetensors: tensor \"{name}\" has 41 rows, the vocabulary has 40 tokens"),
        );
    }
    write(&|all| all.push(("model.layers.0.self_attn.rotary_emb.inv_freq".into(), [1, 8], vec![0.0; 8])));
    assert!(Checkpoint::open(&dir).is_ok());
}

#[test]
fn bad_json_names_the_file() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = directory(tmp.path(), DType::F32);
    fs::write(dir.join("generation_config.json"), r#"{"top_p": 7}"#).unwrap();
    assert!(refusal(&dir).contains("generation_config.json: top_p is 7"));
    for bad in ["", "[]", "{", "\u{0}", &"[".repeat(10_000)] {
        fs::write(dir.join("config.json"), bad).unwrap();
        assert!(refusal(&dir).contains("config.json: is not a JSON object"));
    }
    let mut json = config_json();
    json["architectures"] = json!(["GPT2LMHeadModel\n"]);
    fs::write(dir.join("config.json"), json.to_string()).unwrap();
    assert!(refusal(&dir).contains("config.json: architectures is"));
}

#[test]
fn safetensors_headers() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = directory(tmp.path(), DType::F32);
    let one = |entry: &str| with_header(&format!("{{\"t\":{entry}}}"), &[0; 16]);
    for (bytes, words) in [
        (vec![1, 2, 3], "truncated"),
        (u64::MAX.to_le_bytes().to_vec(), "says its header has"),
        (100u64.to_le_bytes().to_vec(), "ends inside its header"),
        (with_header("[]", &[]), "not a JSON object"),
        (with_header("", &[]), "not a JSON object"),
        (with_header("{\"t\": 1, \"t\": 2}", &[]), "\"t\" occurs twice"),
        (with_header(&format!("[\"{}\"]", "x".repeat(100_000)), &[]), "not a JSON object"),
        (with_header(&"[".repeat(100_000), &[]), "not a JSON object"),
        (one(r#"{"dtype":"F32","shape":[1e99],"data_offsets":[0,16]}"#), "tensor \"t\" has a malformed entry"),
        (one(r#"{"dtype":"F32","shape":[0,4],"data_offsets":[0,0]}"#), "tensor \"t\" is empty"),
        (one(r#"{"dtype":"BF16","shape":[4],"data_offsets":[0,16]}"#), "tensor \"t\" of 1 x 4 BF16 does not fit"),
        (
            with_header(
                r#"{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]},"b":{"dtype":"F32","shape":[2],"data_offsets":[8,16]}}"#,
                &[0; 16],
            ),
            "tensors \"a\" and \"b\" overlap",
        ),
        (one(r#"{"dtype":"F32","shape":[4]}"#), "malformed entry"),
        (one(r#"{"dtype":"F32","shape":[-4],"data_offsets":[0,16]}"#), "malformed entry"),
        (one(r#"{"dtype":"I64","shape":[2],"data_offsets":[0,16]}"#), "dtype \"I64\""),
        (one(r#"{"dtype":"F32","shape":[1,2,2],"data_offsets":[0,16]}"#), "3 dimensions"),
        (one(r#"{"dtype":"F32","shape":[],"data_offsets":[0,4]}"#), "0 dimensions"),
        (one(r#"{"dtype":"F32","shape":[0],"data_offsets":[0,0]}"#), "is empty"),
        (one(r#"{"dtype":"F32","shape":[4],"data_offsets":[16,0]}"#), "data_offsets"),
        (one(r#"{"dtype":"F32","shape":[5],"data_offsets":[0,20]}"#), "beyond the end"),
        (one(r#"{"dtype":"F32","shape":[3],"data_offsets":[0,12]}"#), "tensors end at"),
        (
            one(r#"{"dtype":"F32","shape":[3],"data_offsets":[4,16]}"#),
            "4 bytes before tensor \"t\" belong to no tensor",
        ),
        (
            one(r#"{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,18446744073709551615]}"#),
            "does not fit",
        ),
    ] {
        fs::write(dir.join("model.safetensors"), bytes).unwrap();
        assert_refused(&dir, words);
    }
}

#[test]
fn gguf_headers() {
    let tmp = tempfile::tempdir().unwrap();
    let path = tmp.path().join("m.gguf");
    let plain = GgufFile::new(DType::Q8_0);
    type Change = fn(&mut GgufFile);
    let cases: &[(Change, &str)] = &[
        (|f| f.version = 1, "GGUF version 1"),
        (|f| f.version = 9, "GGUF version 9"),
        (|f| f.version = 3 << 24, "big-endian"),
        (|f| f.metadata.push(f.metadata[0].clone()), "\"general.architecture\" occurs twice"),
        (|f| f.tensors.push(f.tensors[0].clone()), "\"token_embd.weight\" occurs twice"),
        (|f| f.tensors[0].2 = 20, "\"token_embd.weight\" has type IQ4_NL"),
        (|f| f.tensors[0].2 = 4_000_000, "has type number 4000000"),
        (|f| f.tensors[0].1 = vec![], "has 0 dimensions"),
        (|f| f.tensors[0].1 = vec![64, 40, 2], "has 3 dimensions"),
        (|f| f.tensors[0].1 = vec![64, 0], "has a dimension of 0"),
        (|f| f.tensors[0].1 = vec![63, 40], "not whole Q8_0 blocks"),
        (|f| f.tensors[0].1 = vec![1 << 62, 1 << 62], "is too large"),
        (|f| f.tensors[0].1 = vec![64, 41], "overlap"),
        (|f| f.tensors[0].1 = vec![64, 1 << 40], "beyond the end"),
        (|f| f.tensors[0].0 = "blk.01.attn_q.weight".into(), "\"blk.01.attn_q.weight\" is not part of a Llama"),
        (|f| f.tensors[0].0 = "blk.0.attn_q.bias".into(), "\"blk.0.attn_q.bias\" is not part of a Llama"),
        (|f| _ = f.set("general.alignment", Meta::U32(24)), "general.alignment"),
        (|f| _ = f.set("general.alignment", Meta::U32(0)), "general.alignment"),
        (|f| _ = f.set("general.architecture", Meta::Str("gemma")), "general.architecture is \"gemma\""),
        (|f| _ = f.remove("llama.block_count"), "llama.block_count is missing"),
        (|f| _ = f.set("llama.expert_count", Meta::U32(8)), "llama.expert_count is 8"),
        (|f| _ = f.set("split.count", Meta::U32(3)), "split.no is missing"),
        (|f| _ = f.tensors.remove(1), "m.gguf: tensor \"blk.0.attn_norm.weight\" is missing"),
        (
            |f| f.tensors[0] = ("token_embd.weight".into(), vec![64, 39], 0, vec![0; 64 * 39 * 4]),
            "m.gguf: tensor \"token_embd.weight\" has 39 rows, the vocabulary has 40 tokens",
        ),
        (
            |f| f.tensors[1] = ("blk.0.attn_norm.weight".into(), vec![32], 0, vec![0; 128]),
            "m.gguf: tensor \"blk.0.attn_norm.weight\" is 1 x 32, the configuration needs 1 x 64",
        ),
        (|f| f.tensors[1].0 = "blk.7.attn_norm.weight".into(), "tensor \"blk.0.attn_norm.weight\" is missing"),
        (
            |f| f.tensors.push(("blk.7.attn_norm.weight".into(), vec![64], 0, vec![0; 256])),
            "tensor \"blk.7.attn_norm.weight\" is not part of a Llama of this shape",
        ),
        (|f| _ = f.set("llama.attention.sliding_window", Meta::U32(127)), "llama.attention.sliding_window is 127"),
        (|f| _ = f.set("llama.rope.scaling.type", Meta::Str("yarn")), "llama.rope.scaling.type is \"yarn\""),
        (|f| _ = f.set("llama.rope.scaling.type", Meta::U32(1)), "llama.rope.scaling.type must be a string"),
        (|f| _ = f.set("llama.rope.scaling.type", Meta::Str("linear")), "llama.rope.scaling.factor is missing"),
        (|f| _ = f.set("llama.rope.scaling.yarn_log_multiplier", Meta::F32(0.1)), "yarn_log_multiplier is 0.1"),
        (|f| _ = f.set("llama.final_logit_softcapping", Meta::F32(30.0)), "llama.final_logit_softcapping is 30"),
        (|f| _ = f.set("llama.attention.value_length", Meta::U32(8)), "llama.attention.value_length is 8"),
        (|f| _ = f.set("llama.attention.causal", Meta::Bool(false)), "llama.attention.causal is false"),
        (|f| _ = f.set("llama.invented", Meta::I32s(vec![1])), "llama.invented is a list"),
        (|f| _ = f.set("llama.attention.head_count_kv", Meta::I32s(vec![2, 2])), "llama.attention.head_count_kv"),
        (|f| _ = f.set("llama.vocab_size", Meta::U32(39)), "tokenizer.ggml.tokens has 40 tokens"),
        (|f| _ = f.set("tokenizer.ggml.token_type", Meta::I32s(vec![1; 39])), "tokenizer.ggml.token_type"),
    ];
    for (change, words) in cases {
        let mut file = plain.clone();
        change(&mut file);
        fs::write(&path, file.bytes()).unwrap();
        assert_refused(&path, words);
    }
}

/// Metadata that asks for nothing, as converters write it.
#[test]
fn gguf_keys_that_change_nothing() {
    let tmp = tempfile::tempdir().unwrap();
    let path = tmp.path().join("m.gguf");
    let mut file = GgufFile::new(DType::Q8_0);
    file.set("llama.attention.key_length", Meta::U32(16))
        .set("llama.attention.value_length", Meta::U32(16))
        .set("llama.attention.sliding_window", Meta::U32(128))
        .set("llama.attention.causal", Meta::Bool(true))
        .set("llama.expert_count", Meta::U32(0))
        .set("llama.logit_scale", Meta::F32(1.0))
        .set("llama.use_parallel_residual", Meta::Bool(false))
        .set("llama.tensor_data_layout", Meta::Str("Meta AI original pth"))
        .set("llama.rope.scaling.type", Meta::Str("none"))
        .set("llama.rope.scaling.attn_factor", Meta::F32(1.0));
    fs::write(&path, file.bytes()).unwrap();
    assert_eq!(Checkpoint::open(&path).unwrap().config(), &config_of(&GgufFile::new(DType::Q8_0), &path));
}

/// As llama.cpp reads them: linear where no type is given, older writers use the second name, 0 and 1 are off.
#[test]
fn gguf_linear_rope_scaling() {
    let tmp = tempfile::tempdir().unwrap();
    let path = tmp.path().join("m.gguf");
    let (factor, older, kind) = ("llama.rope.scaling.factor", "llama.rope.scale_linear", "llama.rope.scaling.type");
    let scaling = |set: &[(&str, Meta)]| {
        let mut file = GgufFile::new(DType::Q8_0);
        set.iter().for_each(|(key, value)| _ = file.set(key, value.clone()));
        config_of(&file, &path).rope_scaling
    };
    let four = RopeScaling::Linear { factor: 4.0 };
    assert_eq!(scaling(&[(factor, Meta::F32(4.0))]), four);
    assert_eq!(scaling(&[(older, Meta::F32(4.0))]), four);
    assert_eq!(scaling(&[(kind, Meta::Str("linear")), (factor, Meta::F32(4.0)), (older, Meta::F32(2.0))]), four);
    assert_eq!(scaling(&[(kind, Meta::Str("none")), (factor, Meta::F32(4.0))]), RopeScaling::None);
    for off in [0.0, 1.0] {
        assert_eq!(scaling(&[(factor, Meta::F32(off))]), RopeScaling::None);
    }
}

fn config_of(file: &GgufFile, path: &Path) -> lima::model::config::LlamaConfig {
    fs::write(path, file.bytes()).unwrap();
    Checkpoint::open(path).unwrap().config().clone()
}
