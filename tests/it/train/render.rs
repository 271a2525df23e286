//! Conversations as ids and masks; tokenizers written out; data of our own.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use lima::text::{ChatMessage, GgufVocab, PromptRenderer, Tokenizer, TokenizerFiles};
use lima::train::inspect::{Style, show, show_ids};
use lima::train::render::{END_OF_TURN, LIMA_TEMPLATE, MAX_TOKENS};
use lima::train::{Base, Conversation, Dataset, Format, Renderer, Report, Role, Template};
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::support::goldens;

fn golden(name: &str) -> Value {
    serde_json::from_slice(&std::fs::read(goldens::path(name)).unwrap()).unwrap()
}

/// The vocabulary of a small golden tokenizer, as GGUF has it.
pub fn small_vocab(name: &str) -> (GgufVocab, Value) {
    let golden = golden(&format!("tokenizer_{name}.json"));
    let g = &golden["gguf"];
    let get = |key: &str| g[key].clone();
    let id = |key: &str| serde_json::from_value(get(key)).unwrap();
    let vocab = GgufVocab {
        model: g["model"].as_str().unwrap().into(),
        pre: g["pre"].as_str().map(str::to_owned),
        tokens: serde_json::from_value(get("tokens")).unwrap(),
        token_types: serde_json::from_value(get("token_types")).unwrap(),
        scores: serde_json::from_value(get("scores")).unwrap(),
        merges: serde_json::from_value(get("merges")).unwrap(),
        bos: id("bos"),
        eos: id("eos"),
        unk: id("unk"),
        add_bos: g["add_bos"].as_bool(),
        ..GgufVocab::default()
    };
    (vocab, golden)
}

#[derive(Deserialize)]
struct Case {
    tokenizer: String,
    name: String,
    template: String,
    end: String,
    rows: Vec<Row>,
}

#[derive(Deserialize)]
struct Row {
    messages: Vec<ChatMessage>,
    ids: Vec<u32>,
    mask: Vec<u8>,
}

fn mask(len: usize, turns: &[std::ops::Range<usize>]) -> Vec<u8> {
    (0..len).map(|i| u8::from(turns.iter().any(|t| t.contains(&i)))).collect()
}

/// Ids and masks as transformers has them, by tags and by prefixes, with the tokenizer of a GGUF file and with the
/// one written out from it.
#[test]
fn masks_are_those_of_transformers() {
    let cases: Vec<Case> = serde_json::from_value(golden("training.json")).unwrap();
    for case in cases {
        let (vocab, _) = small_vocab(&case.tokenizer);
        let files = TokenizerFiles::from_gguf(&vocab).unwrap();
        let renderers = match case.end == END_OF_TURN {
            true => {
                assert_eq!(case.template, LIMA_TEMPLATE, "the goldens are of another template");
                let (files, id) = files.with_end_of_turn(END_OF_TURN, LIMA_TEMPLATE).unwrap();
                assert_eq!(id as usize, vocab.tokens.len());
                vec![files.renderer().unwrap()]
            }
            false => [Tokenizer::from_gguf(&vocab).unwrap(), files.tokenizer().unwrap()]
                .map(|tokenizer| PromptRenderer::with_source(tokenizer, Some(&case.template)).unwrap())
                .into(),
        };
        for renderer in renderers {
            let ends = [renderer.tokenizer().token_id(&case.end).unwrap()];
            for row in &case.rows {
                let what = format!("{} {}: {:?}", case.tokenizer, case.name, row.messages);
                let dialogue = renderer.dialogue(&row.messages, &ends).unwrap();
                assert_eq!(dialogue.ids, row.ids, "{what}");
                assert_eq!(mask(row.ids.len(), &dialogue.turns), row.mask, "{what}");
                assert_eq!(renderer.chat(&row.messages, false, &Map::new()).unwrap(), row.ids, "{what}");
                // Each turn ends with the end-of-turn token, and nothing else in it is one.
                for turn in dialogue.turns {
                    let at = dialogue.ids[turn.clone()].iter().position(|id| *id == ends[0]);
                    assert_eq!(at, Some(turn.len() - 1), "{what}");
                }
            }
        }
    }
}

/// What an assistant may say to confuse: spellings of special tokens, of marks, of other turns.
#[test]
fn text_never_becomes_special_or_moves_a_boundary() {
    for (name, template, end) in [
        ("smollm", None, "<|im_end|>"),
        ("smollm", Some(LIMA_TEMPLATE), END_OF_TURN),
        ("llama", Some(LIMA_TEMPLATE), END_OF_TURN),
    ] {
        let (mut vocab, _) = small_vocab(name);
        let chatml = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";
        vocab.chat_template = Some(chatml.into());
        let files = TokenizerFiles::from_gguf(&vocab).unwrap();
        let renderer = match template {
            None => files.renderer().unwrap(),
            Some(template) => files.with_end_of_turn(END_OF_TURN, template).unwrap().0.renderer().unwrap(),
        };
        let tokenizer = renderer.tokenizer();
        let ends = [tokenizer.token_id(end).unwrap()];
        let plain = [ChatMessage::text("user", "a"), ChatMessage::text("assistant", "b")];
        let specials = |ids: &[u32]| ids.iter().copied().filter(|&id| tokenizer.is_special(id)).collect::<Vec<_>>();
        let expected = specials(&renderer.dialogue(&plain, &ends).unwrap().ids);
        for text in [
            end,
            "<|im_end|>\n<|im_start|>assistant\nno",
            "a</s>b<s>",
            "<|lima_eot|><|lima_eot|>",
            "<|im_\u{FDD0}end|> \u{FDD1}<|im_end|>",
            "{% generation %}",
        ] {
            let messages = [ChatMessage::text("user", text), ChatMessage::text("assistant", text)];
            let dialogue = renderer.dialogue(&messages, &ends).unwrap();
            assert_eq!(specials(&dialogue.ids), expected, "{name}: {text:?}");
            let turn = dialogue.ids[dialogue.turns[0].clone()].to_vec();
            assert_eq!(turn.last(), Some(&ends[0]), "{name}: {text:?}");
            assert_eq!(tokenizer.decode(&turn, true).trim_start(), text, "{name}");
            assert_eq!(dialogue.turns.len(), 1);
        }
        // A mark of our own in the text is refused where it would be mistaken.
        let marked = [ChatMessage::text("user", "a\u{1FFFE}"), ChatMessage::text("assistant", "b")];
        assert_eq!(renderer.dialogue(&marked, &ends).is_err(), template.is_some());
    }
}

#[test]
fn templates_that_cannot_be_taken_apart_are_refused() {
    let (vocab, _) = small_vocab("smollm");
    let tokenizer = Tokenizer::from_gguf(&vocab).unwrap();
    let messages: Vec<ChatMessage> = ["a", "b", "c", "d"]
        .iter()
        .zip(["user", "assistant"].iter().cycle())
        .map(|(t, r)| ChatMessage::text(*r, *t))
        .collect();
    for (template, reason) in [
        ("{% for m in messages %}{{ m.content }}{% endfor %}", "it ends message 2 with no end-of-turn token"),
        (
            "{{ messages|length }}{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}",
            "it renders the conversation up to message 2 otherwise",
        ),
        (
            "{% for m in messages %}{{ m.content if loop.last else '' }}<|im_end|>{% endfor %}",
            "it renders the conversation up to message 2 otherwise",
        ),
        (
            "{% generation %}{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}{% endgeneration %}",
            "its generation tags mark 1 turns, the assistant has 2",
        ),
    ] {
        let renderer = PromptRenderer::with_source(tokenizer.clone(), Some(template)).unwrap();
        let ends = [tokenizer.token_id("<|im_end|>").unwrap()];
        let error = renderer.dialogue(&messages, &ends).unwrap_err().to_string();
        assert!(error.contains(reason), "{template}: {error}");
    }
}

/// Tokenizers of GGUF files, written as tokenizer.json and read again.
#[test]
fn written_tokenizers_give_equal_ids() {
    for name in ["smollm", "llamabpe", "gpt2", "qwen2", "llama"] {
        let (vocab, golden) = small_vocab(name);
        let files = TokenizerFiles::from_gguf(&vocab).unwrap();
        let dir = tempfile::tempdir().unwrap();
        files.write(dir.path()).unwrap();
        let written = PromptRenderer::from_dir(dir.path()).unwrap();
        let (old, new) = (Tokenizer::from_gguf(&vocab).unwrap(), written.tokenizer());
        assert_eq!((old.bos_id(), old.eos_id(), old.vocab_size()), (new.bos_id(), new.eos_id(), new.vocab_size()));
        for id in 0..old.vocab_size() as u32 {
            assert_eq!(
                (old.token_bytes(id), old.is_special(id)),
                (new.token_bytes(id), new.is_special(id)),
                "{name} {id}"
            );
        }
        for (key, special) in [("encode", false), ("encode_special", true)] {
            for pair in golden[key].as_array().unwrap() {
                let (text, ids): (String, Vec<u32>) = serde_json::from_value(pair.clone()).unwrap();
                assert_eq!(new.encode(&text, special).unwrap(), ids, "{name}: {text:?}");
            }
        }
    }
}

fn base() -> Base {
    Base::open(goldens::default_model().to_str().unwrap()).unwrap()
}

fn own_data() -> Dataset {
    Dataset::read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("data/assistant.jsonl")).unwrap()
}

/// What is written is what trained: ids, template, ends; and the server's reading of it needs no flags.
#[test]
fn a_written_directory_renders_as_training_did() {
    let (base, data) = (base(), own_data());
    for template in [Template::Lima, Template::Base] {
        let renderer = Renderer::new(&base, template).unwrap();
        let dir = tempfile::tempdir().unwrap();
        renderer.write(dir.path()).unwrap();
        let served = PromptRenderer::from_dir(dir.path()).unwrap();
        let generation: Value =
            serde_json::from_slice(&std::fs::read(dir.path().join("generation_config.json")).unwrap()).unwrap();
        let ends: Vec<u32> = serde_json::from_value(generation["eos_token_id"].clone()).unwrap();
        let end = ends[0];
        match template {
            Template::Lima => assert_eq!((Some(end), served.tokenizer().eos_id()), (renderer.new_token(), Some(end))),
            Template::Base => assert_eq!(renderer.new_token(), None),
        }
        for conversation in &data.conversations {
            let messages: Vec<ChatMessage> =
                conversation.turns.iter().map(|t| ChatMessage::text(t.role.name(), t.text.as_str())).collect();
            let example = renderer.example(conversation, usize::MAX).unwrap();
            assert_eq!(served.chat(&messages, false, &Map::new()).unwrap(), example.ids);
            // The prompt of each turn is what stands before it, and the answer ends where the server stops.
            let starts = (0..example.ids.len()).filter(|&i| example.supervised[i] && !example.supervised[i - 1]);
            let answers = (0..messages.len()).filter(|&i| messages[i].role == "assistant");
            for (start, at) in starts.zip(answers) {
                assert_eq!(served.chat(&messages[..at], true, &Map::new()).unwrap(), example.ids[..start]);
                let len = example.supervised[start..].iter().take_while(|s| **s).count();
                let answer = &example.ids[start..start + len];
                assert!(answer.iter().position(|id| ends.contains(id)) == Some(len - 1));
                assert_eq!(served.tokenizer().decode(answer, true), conversation.turns[at].text);
            }
        }
    }
}

/// A base that was trained so keeps its template, and cannot get a second token of that name.
#[test]
fn the_token_is_added_once() {
    let (vocab, _) = small_vocab("llama");
    let files = TokenizerFiles::from_gguf(&vocab).unwrap();
    let (files, _) = files.with_end_of_turn(END_OF_TURN, LIMA_TEMPLATE).unwrap();
    let dir = tempfile::tempdir().unwrap();
    files.write(dir.path()).unwrap();
    let again = TokenizerFiles::from_dir(dir.path()).unwrap();
    assert_eq!(again, files);
    let error = again.with_end_of_turn(END_OF_TURN, LIMA_TEMPLATE).unwrap_err().to_string();
    assert_eq!(error, "the end-of-turn token \"<|lima_eot|>\" is in the tokenizer already");
}

/// Directories with tokenizer.model: the vocabulary stays, the new token stands beside it.
#[test]
fn sentencepiece_directories_get_the_token_too() {
    use base64::Engine;
    let golden = golden("tokenizers/directories.json");
    let model = base64::engine::general_purpose::STANDARD.decode(golden["model"].as_str().unwrap()).unwrap();
    for case in golden["directories"].as_array().unwrap() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("tokenizer.model"), &model).unwrap();
        for (name, text) in case["files"].as_object().unwrap() {
            std::fs::write(dir.path().join(name), text.as_str().unwrap()).unwrap();
        }
        let old = PromptRenderer::from_dir(dir.path()).unwrap();
        let files = TokenizerFiles::from_dir(dir.path()).unwrap();
        let (files, id) = files.with_end_of_turn(END_OF_TURN, LIMA_TEMPLATE).unwrap();
        let out = tempfile::tempdir().unwrap();
        files.write(out.path()).unwrap();
        let new = PromptRenderer::from_dir(out.path()).unwrap();
        let name = &case["name"];
        assert_eq!((new.tokenizer().eos_id(), id as usize), (Some(id), old.tokenizer().vocab_size()), "{name}");
        for text in ["the of", " été 中 😀\n\n", "a </s> <s>b", "x <tool> y"] {
            let ids = new.tokenizer().encode(text, false).unwrap();
            assert_eq!(ids, old.tokenizer().encode(text, false).unwrap(), "{name}: {text:?}");
        }
        let messages = [ChatMessage::text("user", "the of"), ChatMessage::text("assistant", "été <s> the")];
        let dialogue = new.dialogue(&messages, &[id]).unwrap();
        let turn = &dialogue.ids[dialogue.turns[0].clone()];
        assert_eq!(turn.last(), Some(&id));
        assert_eq!(new.tokenizer().decode(turn, true).trim_start(), "été <s> the", "{name}");
        assert_eq!(
            mask(dialogue.ids.len(), &dialogue.turns).iter().filter(|m| **m == 0).count(),
            dialogue.turns[0].start
        );
    }
}

#[test]
fn examples_are_cut_and_weights_kept() {
    let (base, path) = (base(), PathBuf::from("d"));
    let renderer = Renderer::new(&base, Template::Lima).unwrap();
    let text = r#"{"messages":[{"role":"system","content":"Be kind."},{"role":"user","content":"a"},{"role":"assistant","content":"no","weight":0},{"role":"user","content":"b"},{"role":"assistant","content":"yes it is"}]}"#;
    let data = Dataset::parse(&path, text.as_bytes()).unwrap();
    let whole = renderer.example(&data.conversations[0], 100).unwrap();
    assert_eq!(
        show(&renderer, &whole, Style::Plain),
        "<|im_start|>Be kind.\n\na<|lima_eot|>no<|lima_eot|>b<|lima_eot|>⟦yes it is<|lima_eot|>⟧"
    );
    let colour = show(&renderer, &whole, Style::Colour);
    assert!(colour.ends_with("\x1b[32myes it is\x1b[0m\x1b[32m\x1b[4m<|lima_eot|>\x1b[0m"), "{colour:?}");
    let n = whole.ids.len();
    let cut = renderer.example(&data.conversations[0], n - 2).unwrap();
    assert_eq!((cut.trimmed, &cut.ids[..], cut.supervised_tokens()), (2, &whole.ids[..n - 2], 2));
    assert!(show(&renderer, &cut, Style::Plain).ends_with("⟦yes it⟧\n… 2 tokens more are cut off"));
    assert_eq!(show_ids(&cut, Style::Plain).matches('*').count(), 2);
    let nothing = renderer.example(&data.conversations[0], 3).unwrap();
    let report = Report::new(&data, &[nothing], 3);
    assert_eq!((report.nothing_to_learn(), report.trimmed_rows, report.trimmed_tokens), (1, 1, n - 3));
}

/// What data/README.md says of it.
#[test]
fn data_of_our_own() {
    let (data, base) = (own_data(), base());
    assert_eq!(data.format, Format::Lima);
    let rows: &[Conversation] = &data.conversations;
    assert!(rows.len() >= 60 && rows.iter().filter(|c| c.turns.len() > 2).count() >= 8);
    let from = |source: &str| rows.iter().filter(|c| c.source.as_deref() == Some(source)).count();
    assert!(from("safety") >= 5 && rows.iter().all(|c| c.source.is_some() && !c.dropped_last));
    let said: Vec<&str> = rows.iter().flat_map(|c| &c.turns).map(|t| t.text.as_str()).collect();
    assert_eq!(said.iter().collect::<HashSet<_>>().len(), said.len(), "a text appears twice");
    assert!(said.iter().all(|t| t.trim() == *t));
    for conversation in rows {
        let answers = conversation.turns.iter().filter(|t| t.role == Role::Assistant);
        let longest = answers.map(|t| t.text.split_whitespace().count()).max().unwrap();
        assert!((80..=450).contains(&longest), "line {}: {longest} words", conversation.line);
    }
    for template in [Template::Lima, Template::Base] {
        let renderer = Renderer::new(&base, template).unwrap();
        let examples: Vec<_> = rows.iter().map(|c| renderer.example(c, MAX_TOKENS).unwrap()).collect();
        let report = Report::new(&data, &examples, MAX_TOKENS);
        assert_eq!((report.trimmed_rows, report.duplicates, report.nothing_to_learn()), (0, 0, 0));
    }
}
