//! Dependencies point one way. Reads the paths in src/ and fails on an upward arrow.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// What each module may use of the others: whole modules, or single items of one. Itself it may always use.
const ALLOWED: &[(&str, &[&str])] = &[
    // The engine knows of nobody.
    ("engine", &[]),
    // Ids of tokens, blocks and adapters are the engine's; text knows tokens, and makes the masks that the engine asks for.
    ("text", &["engine::Matcher", "engine::TokenId"]),
    // What the parts of a model are called is the format's affair.
    ("hub", &["model::weights::part_names"]),
    ("config", &[]),
    // The model is written over the operations, and describes itself to them.
    ("model", &["ops::quant", "ops::Batch", "ops::Ops", "ops::OpsError", "parallel::Share", "text::GgufVocab"]),
    (
        "ops",
        &[
            "engine::AdapterSlot",
            "engine::BLOCK_SIZE",
            "engine::BlockId",
            "engine::TokenId",
            "model::config",
            "model::llama", // a link in the documentation of the trait that the model is written over
            "model::lora",
            "model::rope",
            "model::weights",
            // Operations over ranks exchange what each computed.
            "parallel",
        ],
    ),
    // A model over ranks is an executor that holds the others by their places.
    ("runner", &["engine", "model", "ops", "parallel"]),
    ("http", &["engine", "text"]),
    // The top: puts the others together. Nothing but the binary uses it.
    ("serve", &["config", "engine", "http", "hub", "model", "ops", "runner", "text"]),
    // The description of the API needs no server.
    ("main", &["chat", "config", "eval", "http::openapi", "plan", "serve"]),
    // Arithmetic about shapes and devices, beside the server.
    (
        "plan",
        &[
            "config::ByteSize",
            "engine::BLOCK_SIZE",
            "hub",
            "model",
            "ops::cpu",
            "ops::quant",
            "runner::memory",
            "units",
        ],
    ),
    // A client like any other: knows servers by their API alone.
    ("chat", &[]),
    // Asks servers as the chat does, and starts programs; it knows neither engine nor model.
    ("eval", &["chat", "plot"]),
    // Beside the server: training, with the operations the server's model is made of, and with engine and executor for
    // answers of saved models, without HTTP. Nothing but its binary uses it.
    ("train", &["engine", "hub", "model", "ops", "parallel", "plot", "runner", "text", "units"]),
    // Processes become ranks before a run is known.
    ("bin", &["config::ByteSize", "config::one_line", "parallel", "train"]),
    // Below everything: text and numbers; ranks and slices.
    ("plot", &[]),
    ("units", &[]),
    ("parallel", &[]),
    ("lib", &[]),
];

/// Crates that belong to some modules alone.
const CRATES: &[(&[&str], &[&str])] = &[
    (
        &["candle_core", "candle_nn", "candle_transformers"],
        &["ops/graph/", "ops/mod.rs", "ops/parameter.rs", "ops/quant/tests.rs", "ops/tape/", "train/"],
    ),
    (&["hyper", "hyper_util", "prometheus", "tokio_rustls", "tower_http", "utoipa"], &["http/"]),
    // The page on which people judge answers has a server of its own.
    (&["axum"], &["http/", "eval/human/"]),
    (&["rusqlite"], &["eval/human/"]),
    (&["llguidance", "tokenizers", "minijinja", "minijinja_contrib"], &["text/"]),
    (&["safetensors", "memmap2"], &["model/weights/"]),
    (&["zip", "hf_hub"], &["hub/"]),
    (&["opentelemetry", "opentelemetry_http", "opentelemetry_otlp", "opentelemetry_sdk"], &["http/traces/"]),
    (&["ureq"], &["hub/", "chat/client.rs", "http/traces/", "serve/health.rs"]),
    (&["sha2"], &["hub/", "http/auth.rs", "http/page.rs", "eval/store.rs"]),
    (&["clap"], &["config.rs", "config/", "main.rs", "bin/", "chat/mod.rs", "eval/", "plan/"]),
    // Of tokio the engine has the channels that its readers wait on; training and the chat have signals.
    (
        &["tokio"],
        &[
            "http/",
            "serve.rs",
            "engine/handle.rs",
            "engine/thread.rs",
            "train/signals.rs",
            "chat/interrupt.rs",
            "eval/human/",
        ],
    ),
];

/// Where memory is handled by hand: kernels, slices that ranks show each other, and the maps of weight files.
const UNSAFE: &[&str] = &["ops/", "parallel/", "runner/sampler/kernels.rs", "model/weights/mapped.rs"];

/// Where code may depend on a feature of the build.
const FEATURES: &[&str] = &["ops/", "parallel/", "http/traces.rs"];

struct Source {
    /// Below src/, with slashes.
    path: String,
    /// Without comments and strings.
    code: String,
}

impl Source {
    /// The module below the crate's root.
    fn module(&self) -> &str {
        self.path.split('/').next().unwrap().trim_end_matches(".rs")
    }

    fn is_in(&self, places: &[&str]) -> bool {
        places.iter().any(|p| self.path.starts_with(p))
    }
}

fn sources() -> Vec<Source> {
    fn walk(dir: &Path, out: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => walk(&path, out),
                false if path.extension().is_some_and(|e| e == "rs") => out.push(path),
                false => {}
            }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    walk(&root, &mut files);
    let read = |file: PathBuf| Source {
        path: file.strip_prefix(&root).unwrap().to_str().unwrap().replace('\\', "/"),
        code: code_of(&fs::read_to_string(&file).unwrap()),
    };
    files.into_iter().map(read).collect()
}

/// The text without line comments and without what stands in double quotes.
fn code_of(text: &str) -> String {
    let mut out = String::new();
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '/' if chars.peek() == Some(&'/') => {
                chars.by_ref().find(|c| *c == '\n');
                out.push('\n');
            }
            // The character '"'; lifetimes and other characters need no care.
            '\'' if chars.peek() == Some(&'"') => {
                chars.next();
            }
            '"' => {
                while let Some(c) = chars.next() {
                    match c {
                        '\\' => _ = chars.next(),
                        '"' => break,
                        _ => {}
                    }
                }
                out.push_str("\"\"");
            }
            c => out.push(c),
        }
    }
    out
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Paths below the crate's root that `code` names, such as `engine::TokenId`; groups taken apart.
fn paths(code: &str) -> BTreeSet<String> {
    let mut out = BTreeSet::new();
    for root in ["crate::", "lima::"] {
        for (at, _) in code.match_indices(root) {
            if !code[..at].ends_with(is_word) {
                expand(&code[at + root.len()..], "", &mut out);
            }
        }
    }
    out
}

/// Reads one path, or a group of them, after `prefix`; returns what follows.
fn expand<'a>(text: &'a str, prefix: &str, out: &mut BTreeSet<String>) -> &'a str {
    let text = text.trim_start();
    if let Some(mut rest) = text.strip_prefix('{') {
        loop {
            rest = rest.trim_start();
            if let Some(after) = rest.strip_prefix('}') {
                return after;
            }
            rest = expand(rest, prefix, out).trim_start();
            // `as name` and the comma.
            rest = rest.trim_start_matches(|c| c != ',' && c != '}');
            rest = rest.strip_prefix(',').unwrap_or(rest);
        }
    }
    let end = text.find(|c| !is_word(c)).unwrap_or(text.len());
    let (word, rest) = text.split_at(end);
    let path = match (prefix, word) {
        ("", word) => word.to_owned(),
        (prefix, "self" | "") => prefix.to_owned(),
        (prefix, word) => format!("{prefix}::{word}"),
    };
    match rest.strip_prefix("::") {
        Some(below) if below.starts_with(|c| is_word(c) || c == '{' || c == '*') => expand(below, &path, out),
        _ => {
            out.insert(path);
            rest
        }
    }
}

#[test]
fn groups_are_taken_apart() {
    let code = code_of(
        "use crate::{a::{self, B as C, d::*}, e};\n// crate::no\nlet x = crate::f::G { y: \"crate::no \\\" \" };",
    );
    let expected = ["a", "a::B", "a::d", "e", "f::G"].map(String::from);
    assert_eq!(paths(&code), BTreeSet::from(expected));
    assert_eq!(paths("use $crate::ops::x; use not_crate::y;"), BTreeSet::from(["ops::x".to_owned()]));
}

#[test]
fn arrows_point_down() {
    let mut seen = BTreeSet::new();
    for source in sources() {
        let module = source.module();
        let (_, allowed) = ALLOWED
            .iter()
            .find(|(name, _)| *name == module)
            .unwrap_or_else(|| panic!("src/{}: say in ALLOWED what '{module}' may use", source.path));
        assert!(!source.code.contains("super::super::super"), "src/{}: write it from the crate's root", source.path);
        seen.insert(module.to_owned());
        for path in paths(&source.code) {
            let is_below = |p: &str| path == p || path.strip_prefix(p).is_some_and(|rest| rest.starts_with("::"));
            assert!(
                is_below(module) || allowed.iter().any(|p| is_below(p)),
                "src/{} uses {path}, which is not below it",
                source.path
            );
        }
    }
    let known: BTreeSet<_> = ALLOWED.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(known, seen, "ALLOWED names the modules there are");
}

#[test]
fn crates_stay_in_their_modules() {
    for source in sources() {
        for (crates, places) in CRATES {
            for name in *crates {
                let uses = source.code.match_indices(&format!("{name}::")).any(|(at, _)| {
                    let before = source.code[..at].trim_end();
                    !source.code[..at].ends_with(is_word) && !before.ends_with("::")
                });
                assert!(!uses || source.is_in(places), "src/{} uses {name}", source.path);
            }
        }
    }
}

#[test]
fn unsafe_code_and_features_stay_in_their_modules() {
    for source in sources() {
        let has_unsafe = source.code.split(|c| !is_word(c)).any(|word| word == "unsafe");
        assert!(!has_unsafe || source.is_in(UNSAFE), "src/{} has unsafe code", source.path);
        let has_feature = source.code.contains("cfg(feature") || source.code.contains("cfg(any(feature");
        assert!(!has_feature || source.is_in(FEATURES), "src/{} depends on a feature", source.path);
    }
}
