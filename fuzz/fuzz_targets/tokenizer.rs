//! Tokenizers from files. The input is a GGUF file, whose vocabulary is imported, or else `tokenizer.json`.
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
        Some(Tokenizer::from_dir(&lima_fuzz::directory(&[("tokenizer.json", bytes)])))
    }
}

fuzz_target!(|bytes: &[u8]| {
    lima_fuzz::let_tokenizers_panic();
    let Some(imported) = import(bytes) else { return };
    match imported {
        Err(e) => lima_fuzz::one_line(&e),
        Ok(tokenizer) => {
            for special in [false, true] {
                match tokenizer.encode(TEXT, special) {
                    Ok(ids) => drop(tokenizer.decode(&ids, special)),
                    Err(e) => lima_fuzz::one_line(&e),
                }
            }
            drop(tokenizer.encode_plain(TEXT, true));
            for id in 0..tokenizer.vocab_size().min(1000) {
                tokenizer.token_bytes(id as u32);
                tokenizer.token_str(id as u32);
            }
        }
    }
});
