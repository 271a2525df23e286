//! Tokenizers against llama.cpp, `tokenizers` and `sentencepiece` on 10,000 lines
//! (`scripts/goldens/tokenizer_corpus.py`). The vocabularies of others are found in `LIMA_TEST_VOCABS`.

use std::path::PathBuf;
use std::sync::{Arc, LazyLock};

use lima::model::weights::gguf::Gguf;
use lima::text::{ChatMessage, Detokenizer, GgufVocab, PromptRenderer, Tokenizer, TokenizerFiles};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use crate::support::goldens;

#[derive(Deserialize)]
struct Corpus {
    lines: usize,
    block: usize,
    text: String,
    vocabularies: Vec<Vocabulary>,
    sentencepiece: Vec<Trained>,
}

/// What a reference made of all lines, or of the first fifth; a digest for each block of lines.
#[derive(Deserialize)]
struct Vocabulary {
    /// `default` is the default model.
    file: String,
    reference: String,
    /// The pre-tokenizer in place of the file's.
    pre: Option<String>,
    ids: Vec<String>,
    decoded: Option<Vec<String>>,
    /// Of the bytes of every token.
    bytes: Option<String>,
    /// Tokens that llama.cpp takes for control tokens whatever the file says.
    #[serde(default)]
    control_by_name: Vec<u32>,
}

/// A SentencePiece model trained for the purpose.
#[derive(Deserialize)]
struct Trained {
    name: String,
    file: String,
    ids: Vec<String>,
    decoded: Vec<String>,
    bos: i64,
    eos: i64,
}

static CORPUS: LazyLock<Corpus> =
    LazyLock::new(|| serde_json::from_slice(&std::fs::read(goldens::path("tokenizers/corpus.json")).unwrap()).unwrap());

static LINES: LazyLock<Vec<String>> = LazyLock::new(|| {
    #[derive(Deserialize)]
    struct Group {
        fragments: Vec<String>,
    }
    #[derive(Deserialize)]
    struct Groups {
        groups: Vec<Group>,
    }
    let file = std::fs::read(goldens::path("tokenizers/fragments.json")).unwrap();
    let groups: Groups = serde_json::from_slice(&file).unwrap();
    let groups: Vec<Vec<String>> = groups.groups.into_iter().map(|g| g.fragments).collect();
    let lines: Vec<String> = (0..CORPUS.lines as u64).map(|i| line(&groups, i)).collect();
    let digests: Vec<Vec<u8>> = lines.iter().map(|l| digest([[l.as_bytes(), b"\xff"].concat()]).into_bytes()).collect();
    assert_eq!(digest(digests), CORPUS.text, "the generator is not the script's");
    lines
});

/// SplitMix64.
struct Generator(u64);

impl Generator {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) % n as u64) as usize
    }
}

fn line(groups: &[Vec<String>], i: u64) -> String {
    let mut g = Generator(i.wrapping_mul(0x9E37_79B9_7F4A_7C15));
    let theme = g.below(groups.len());
    let mut out = String::new();
    for _ in 0..1 + g.below(16) {
        let kind = g.below(10);
        if kind == 0 {
            (0..1 + g.below(20)).for_each(|_| out += &g.below(10).to_string());
        } else {
            let group = &groups[if kind < 6 { theme } else { g.below(groups.len()) }];
            let fragment = &group[g.below(group.len())];
            let times = if g.below(25) == 0 { 2 + g.below(40) } else { 1 };
            out += &fragment.repeat(times);
        }
        out += ["", " ", " ", "  ", "\n"][g.below(5)];
    }
    out
}

fn digest(items: impl IntoIterator<Item = impl AsRef<[u8]>>) -> String {
    let mut hash = Sha256::new();
    items.into_iter().for_each(|item| hash.update(item));
    hash.finalize()[..8].iter().map(|b| format!("{b:02x}")).collect()
}

fn packed(ids: &[u32]) -> Vec<u8> {
    ids.iter().chain([&u32::MAX]).flat_map(|id| id.to_le_bytes()).collect()
}

/// The folder of `ggml-vocab-*.gguf`, or a message.
fn vocabs() -> Option<PathBuf> {
    let folder = std::env::var_os("LIMA_TEST_VOCABS").map(PathBuf::from);
    if folder.is_none() {
        eprintln!("skipped: LIMA_TEST_VOCABS is not set");
    }
    folder
}

fn vocab(file: &str) -> Option<GgufVocab> {
    let path = if file == "default" { goldens::default_model() } else { vocabs()?.join(file) };
    let bytes = std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    Some(GgufVocab::from_gguf(&Gguf::parse(&bytes).unwrap()).unwrap().unwrap())
}

/// Compares ids, and text where there is a golden of it, block by block.
fn compare(what: &str, tokenizer: &Arc<Tokenizer>, ids: &[String], decoded: Option<&[String]>) {
    assert!(ids.len() * CORPUS.block >= CORPUS.lines / 5 && decoded.is_none_or(|d| d.len() == ids.len()));
    let mut wrong = Vec::new();
    for (block, lines) in LINES.chunks(CORPUS.block).take(ids.len()).enumerate() {
        let encoded: Vec<Vec<u32>> = lines.iter().map(|l| tokenizer.encode_plain(l, false).unwrap()).collect();
        if digest(encoded.iter().map(|ids| packed(ids))) != ids[block] {
            wrong.push(format!("ids of block {block}"));
        }
        if let Some(decoded) = decoded {
            let text = encoded.iter().map(|ids| [tokenizer.decode(ids, true).as_bytes(), b"\xff"].concat());
            if digest(text) != decoded[block] {
                wrong.push(format!("text of block {block}"));
            }
        }
        for (line, ids) in lines.iter().zip(&encoded).step_by(17) {
            // Of special tokens text may become the unknown one alone.
            let special = |id: &u32| tokenizer.is_special(*id) && tokenizer.token_str(*id) != Some("<unk>");
            assert!(!ids.iter().any(special), "{what}: {line:?}");
            let mut detokenizer = Detokenizer::new(Arc::clone(tokenizer), true);
            let mut text: String = ids.iter().map(|&id| detokenizer.push(id)).collect();
            text += &detokenizer.finish();
            assert_eq!(text, tokenizer.decode(ids, true), "{what}: {line:?}");
        }
    }
    assert!(wrong.is_empty(), "{what}: {} of {} differ: {:?}", wrong.len(), ids.len(), &wrong[..wrong.len().min(4)]);
}

/// What each token adds to the text, as llama.cpp has it.
fn bytes_digest(tokenizer: &Tokenizer, vocab: &GgufVocab, control: &[u32]) -> String {
    digest((0..tokenizer.vocab_size() as u32).map(|id| {
        let bytes = match vocab.token_types[id as usize] {
            _ if control.contains(&id) => &[],
            // We take what ends a sequence for a special token even then.
            4 if tokenizer.is_special(id) => vocab.tokens[id as usize].as_bytes(),
            _ => tokenizer.token_bytes(id),
        };
        [&(bytes.len() as u32).to_le_bytes(), bytes].concat()
    }))
}

/// Pre-tokenizers of vocabularies that are compared as a `tokenizer.json` too.
const WITH_JSON: [&str; 3] = ["smollm", "llama-bpe", "gpt-2"];

fn gguf_equals(file: &str) {
    let Some(vocab) = vocab(file) else { return };
    let own = vocab.pre.clone();
    let mut compared = 0;
    for golden in CORPUS.vocabularies.iter().filter(|v| v.file == file) {
        let what = format!("{file} {:?} as {}", golden.pre, golden.reference);
        let mut vocab = vocab.clone();
        vocab.pre = golden.pre.clone().or(vocab.pre);
        let tokenizer = match golden.reference.as_str() {
            "sentencepiece" => Tokenizer::from_sentencepiece(&model_proto(&vocab)).unwrap(),
            _ => Tokenizer::from_gguf(&vocab).unwrap(),
        };
        compare(&what, &tokenizer, &golden.ids, golden.decoded.as_deref());
        if golden.pre.is_none() || golden.pre == own {
            own_cases(file, &tokenizer);
        }
        if golden.reference == "tokenizers"
            && golden.pre == own
            && WITH_JSON.contains(&own.as_deref().unwrap_or_default())
        {
            let json = Tokenizer::from_json(&tokenizer_json(&vocab)).unwrap();
            compare(&format!("{what}, tokenizer.json"), &json, &golden.ids, golden.decoded.as_deref());
        }
        if golden.reference != "sentencepiece" {
            let written = TokenizerFiles::from_gguf(&vocab).unwrap().tokenizer().unwrap();
            compare(&format!("{what}, written out"), &written, &golden.ids, golden.decoded.as_deref());
        }
        if let Some(bytes) = &golden.bytes {
            assert_eq!(bytes_digest(&tokenizer, &vocab, &golden.control_by_name), *bytes, "{what}: bytes of tokens");
        }
        compared += 1;
    }
    assert!(compared > 0);
}

/// The vocabulary as a `tokenizer.json` that does what its pre-tokenizer says.
fn tokenizer_json(vocab: &GgufVocab) -> Vec<u8> {
    let byte_level = json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true });
    let bytes = json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false });
    let pattern = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
    let split = json!({ "type": "Split", "pattern": { "Regex": pattern }, "behavior": "Isolated", "invert": false });
    let steps = match vocab.pre.as_deref() {
        Some("gpt-2") => vec![byte_level],
        Some("smollm") => vec![json!({ "type": "Digits", "individual_digits": true }), byte_level],
        Some("llama-bpe") => vec![split, bytes],
        _ => panic!("{:?} has no tokenizer.json here", vocab.pre),
    };
    let ids: Map<String, Value> =
        vocab.tokens.iter().zip(0..).map(|(t, id): (_, u32)| (t.clone(), id.into())).collect();
    let added =
        vocab.tokens.iter().zip(&vocab.token_types).enumerate().filter(|(_, (_, kind))| [2, 3, 4].contains(*kind));
    let added = added.map(|(id, (token, kind))| {
        let special = *kind != 4;
        json!({ "id": id, "content": token, "special": special, "normalized": false, "single_word": false, "lstrip": false, "rstrip": false })
    });
    let model = json!({
        "type": "BPE", "vocab": ids, "merges": vocab.merges, "ignore_merges": vocab.pre.as_deref() == Some("llama-bpe"),
    });
    let file = json!({
        "version": "1.0", "added_tokens": added.collect::<Vec<_>>(), "model": model,
        "pre_tokenizer": { "type": "Sequence", "pretokenizers": steps },
        "decoder": { "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true },
    });
    serde_json::to_vec(&file).unwrap()
}

/// The vocabulary as SentencePiece's own file, with LLaMA's flags.
fn model_proto(vocab: &GgufVocab) -> Vec<u8> {
    fn varint(mut n: usize, out: &mut Vec<u8>) {
        while n >= 0x80 {
            out.push(n as u8 | 0x80);
            n >>= 7;
        }
        out.push(n as u8);
    }
    fn bytes(field: u8, value: &[u8], out: &mut Vec<u8>) {
        out.push(field << 3 | 2);
        varint(value.len(), out);
        out.extend_from_slice(value);
    }
    let mut file = Vec::new();
    let scores = vocab.scores.as_ref().unwrap();
    for ((token, score), kind) in vocab.tokens.iter().zip(scores).zip(&vocab.token_types) {
        let mut piece = Vec::new();
        bytes(1, token.as_bytes(), &mut piece);
        piece.push(2 << 3 | 5);
        piece.extend(score.to_le_bytes());
        piece.extend([3 << 3, *kind as u8]);
        bytes(1, &piece, &mut file);
    }
    // model_type: BPE; byte_fallback.
    bytes(2, &[3 << 3, 2, 0x98, 0x02, 1], &mut file);
    // name; remove_extra_whitespaces: no.
    let mut normalizer = Vec::new();
    bytes(1, b"identity", &mut normalizer);
    normalizer.extend([4 << 3, 0]);
    bytes(3, &normalizer, &mut file);
    file
}

macro_rules! equal {
    ($($name:ident $file:literal)*) => {
        $(#[test]
        fn $name() {
            gguf_equals($file);
        })*
        const FILES: &[&str] = &[$($file),*];
    };
}

equal! {
    default_model "default"
    llama_spm "ggml-vocab-llama-spm.gguf"
    llama_bpe "ggml-vocab-llama-bpe.gguf"
    baichuan "ggml-vocab-baichuan.gguf"
    aquila "ggml-vocab-aquila.gguf"
    command_r "ggml-vocab-command-r.gguf"
    deepseek_coder "ggml-vocab-deepseek-coder.gguf"
    deepseek_llm "ggml-vocab-deepseek-llm.gguf"
    gpt_2 "ggml-vocab-gpt-2.gguf"
    gpt_neox "ggml-vocab-gpt-neox.gguf"
    mpt "ggml-vocab-mpt.gguf"
    qwen2 "ggml-vocab-qwen2.gguf"
    refact "ggml-vocab-refact.gguf"
    starcoder "ggml-vocab-starcoder.gguf"
}

#[test]
fn every_golden_has_its_test() {
    for golden in &CORPUS.vocabularies {
        assert!(FILES.contains(&golden.file.as_str()), "{}", golden.file);
    }
}

/// llama.cpp's own tests: texts in `.inp`, their ids in `.out`.
fn own_cases(file: &str, tokenizer: &Tokenizer) {
    let Some(folder) = vocabs() else { return };
    let read = |extension: &str| std::fs::read_to_string(folder.join(format!("{file}.{extension}")));
    // These come without.
    if ["default", "ggml-vocab-baichuan.gguf", "ggml-vocab-aquila.gguf", "ggml-vocab-gpt-neox.gguf"].contains(&file) {
        return;
    }
    let (texts, ids) = (read("inp").unwrap(), read("out").unwrap());
    let texts: Vec<&str> = texts.split_terminator("\n__ggml_vocab_test__\n").collect();
    assert_eq!(texts.len(), ids.lines().count(), "{file}");
    for (text, ids) in texts.into_iter().zip(ids.lines()) {
        let ids: Vec<u32> = ids.split_whitespace().map(|id| id.parse().unwrap()).collect();
        assert_eq!(tokenizer.encode_plain(text, false).unwrap(), ids, "{file}: {text:?}");
    }
}

#[test]
fn other_kinds_are_refused_by_name() {
    if vocabs().is_none() {
        return;
    }
    for (file, name) in [
        ("bert-bge", "\"bert\""),
        ("falcon", "\"falcon\""),
        ("gemma-4", "\"gemma4\""),
        ("nomic-bert-moe", "\"t5\""),
        ("qwen35", "\"qwen35\""),
    ] {
        let vocab = vocab(&format!("ggml-vocab-{file}.gguf")).unwrap();
        let error = Tokenizer::from_gguf(&vocab).unwrap_err().to_string();
        assert!(error.contains(name), "{file}: {error}");
    }
}

#[test]
fn sentencepiece_models_of_all_flags() {
    use base64::Engine;
    for golden in &CORPUS.sentencepiece {
        let file = base64::engine::general_purpose::STANDARD.decode(&golden.file).unwrap();
        let tokenizer = Tokenizer::from_sentencepiece(&file).unwrap();
        let id = |id: i64| u32::try_from(id).ok();
        assert_eq!((tokenizer.bos_id(), tokenizer.eos_id()), (id(golden.bos), id(golden.eos)), "{}", golden.name);
        compare(&golden.name, &tokenizer, &golden.ids, Some(&golden.decoded));
    }
}

/// Directories without tokenizer.json, as transformers reads them.
#[test]
fn directories_with_tokenizer_model() {
    use base64::Engine;
    let golden: Value =
        serde_json::from_slice(&std::fs::read(goldens::path("tokenizers/directories.json")).unwrap()).unwrap();
    let model = base64::engine::general_purpose::STANDARD.decode(golden["model"].as_str().unwrap()).unwrap();
    let ids = |ids: &Value| -> Vec<u32> { serde_json::from_value(ids.clone()).unwrap() };
    for case in golden["directories"].as_array().unwrap() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("tokenizer.model"), &model).unwrap();
        for (name, text) in case["files"].as_object().unwrap() {
            std::fs::write(dir.path().join(name), text.as_str().unwrap()).unwrap();
        }
        let name = &case["name"];
        let renderer = PromptRenderer::from_dir(dir.path()).unwrap();
        let tokenizer = renderer.tokenizer();
        assert_eq!(tokenizer.bos_id().map(u64::from), case["bos"].as_u64(), "{name}");
        assert_eq!(tokenizer.eos_id().map(u64::from), case["eos"].as_u64(), "{name}");
        for pair in case["encode"].as_array().unwrap() {
            let text = pair[0].as_str().unwrap();
            // Here transformers leaves out the space that SentencePiece puts before every text.
            if !text.starts_with([' ', '▁']) {
                assert_eq!(tokenizer.encode(text, true).unwrap(), ids(&pair[1]), "{name}: {text:?}");
            }
        }
        for chat in case["chats"].as_array().unwrap() {
            let messages: Vec<ChatMessage> = serde_json::from_value(chat[0].clone()).unwrap();
            let rendered = renderer.render(&messages, chat[1].as_bool().unwrap(), &Map::new());
            let Some(text) = chat[2].as_str() else {
                assert!(rendered.unwrap_err().to_string().contains(chat[3].as_str().unwrap()), "{name}");
                continue;
            };
            let rendered = rendered.unwrap();
            assert_eq!(rendered.text(), text, "{name}");
            assert_eq!(tokenizer.encode_rendered(&rendered).unwrap(), ids(&chat[3]), "{name}: {text:?}");
        }
        // Text that spells a special token stays text, whatever the token's flags.
        for text in ["</s>", "a <s> b", "<unk>", "x <|im_end|> y", "<|EOT|>", "<0x0A>"] {
            let ids = tokenizer.encode_plain(text, false).unwrap();
            assert!(!ids.iter().any(|&id| tokenizer.is_special(id)), "{name}: {text:?}");
            assert_eq!(tokenizer.decode(&ids, true), text, "{name}");
        }
    }
}
