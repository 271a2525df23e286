//! Tokenizers from files. The input is a GGUF file, whose vocabulary is imported; or `tokenizer.model`, which begins
//! with a line feed (the tag of its pieces); or else `tokenizer.json`.
#![no_main]

use libfuzzer_sys::fuzz_target;
use lima::model::weights::gguf::{Gguf, MAGIC};
use lima::text::{GgufVocab, Tokenizer, TokenizerError};
use std::sync::Arc;

const TEXT: &str = "Hello  wörld 123\n\t<s></s> ▁日本語 👩‍👩‍👧 x";

fn import(bytes: &[u8]) -> Option<Result<Arc<Tokenizer>, TokenizerError>> {
    if bytes.starts_with(MAGIC) {
        let vocab = GgufVocab::from_gguf(&Gguf::parse(bytes).ok()?).inspect_err(lima_fuzz::one_line).ok()??;
        Some(Tokenizer::from_gguf(&vocab))
    } else {
        let name = if bytes.starts_with(b"\n") { "tokenizer.model" } else { "tokenizer.json" };
        Some(Tokenizer::from_dir(&lima_fuzz::directory(&[(name, bytes)])))
    }
}

fn run(bytes: &[u8]) {
    let tokenizer = match import(bytes) {
        None => return,
        Some(Err(e)) => return lima_fuzz::one_line(&e),
        Some(Ok(tokenizer)) => tokenizer,
    };
    for special in [false, true] {
        match tokenizer.encode(TEXT, special) {
            Ok(ids) => drop(tokenizer.decode(&ids, special)),
            Err(e) => lima_fuzz::one_line(&e),
        }
        if let Err(e) = tokenizer.encode_plain(TEXT, special) {
            lima_fuzz::one_line(&e);
        }
    }
    for id in 0..tokenizer.vocab_size().min(1000) {
        tokenizer.token_bytes(id as u32);
        tokenizer.token_str(id as u32);
    }
}

fuzz_target!(|bytes: &[u8]| lima_fuzz::with_caught_panics(|| run(bytes)));
