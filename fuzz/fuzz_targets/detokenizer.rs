//! Texts of token ids: streamed however, the text is that of all bytes together; and a stop matcher shows of it what a
//! search of the whole text leaves.
//!
//! The input: a byte for the vocabulary and for whether special tokens are left out, one for the stop strings, then
//! ids, two bytes each.
#![no_main]

use std::sync::{Arc, OnceLock};

use libfuzzer_sys::fuzz_target;
use lima::model::weights::gguf::Gguf;
use lima::text::{Detokenizer, GgufVocab, TextStream, Tokenizer};

const GPT2: &[u8] = include_bytes!("../seeds/tokenizer/gpt2.gguf");
const PIECES: &[u8] = include_bytes!("../seeds/tokenizer/bpe.model");
const STOPS: [&str; 8] = ["a", "ab", " ", "\n", "\u{FFFD}", "l", "b\u{FFFD}", "o"];

fn tokenizers() -> &'static [Arc<Tokenizer>] {
    static ALL: OnceLock<Vec<Arc<Tokenizer>>> = OnceLock::new();
    ALL.get_or_init(|| {
        let vocab = GgufVocab::from_gguf(&Gguf::parse(GPT2).expect("a seed")).expect("a seed").expect("a vocabulary");
        let bytes = Tokenizer::from_gguf(&vocab).expect("a tokenizer");
        let pieces = Tokenizer::from_dir(&lima_fuzz::directory(&[("tokenizer.model", PIECES)])).expect("a tokenizer");
        vec![bytes, pieces]
    })
}

fn run(input: &[u8]) {
    let [kind, stops, ids @ ..] = input else { return };
    let tokenizer = &tokenizers()[usize::from(*kind) % 2];
    let skip = kind & 0x80 != 0;
    // Some are not in the vocabulary: they have no text.
    let limit = tokenizer.vocab_size() as u32 + 2;
    let ids: Vec<u32> =
        ids.chunks_exact(2).map(|two| u32::from(u16::from_le_bytes([two[0], two[1]])) % limit).collect();
    let mut bytes = Vec::new();
    let mut detokenizer = Detokenizer::new(Arc::clone(tokenizer), skip);
    let mut streamed = String::new();
    for &id in &ids {
        let spelled = !skip && tokenizer.is_special(id);
        let mut piece = match tokenizer.token_str(id).filter(|_| spelled) {
            Some(spelling) => spelling.as_bytes(),
            None => tokenizer.token_bytes(id),
        };
        if detokenizer.at_start() {
            piece = piece.strip_prefix(b" ").unwrap_or(piece);
        }
        bytes.extend_from_slice(piece);
        streamed += &detokenizer.push(id);
    }
    streamed += &detokenizer.finish();
    assert_eq!(streamed, String::from_utf8_lossy(&bytes), "{ids:?}");
    assert_eq!(streamed, tokenizer.decode(&ids, skip), "{ids:?}");

    let stops: Vec<String> = (0..8).filter(|i| stops & (1 << i) != 0).map(|i| STOPS[i].to_owned()).collect();
    let mut stream = TextStream::new(Arc::clone(tokenizer), skip, stops.clone());
    let (mut shown, mut stopped) = (String::new(), None);
    for &id in &ids {
        let piece = stream.push(id);
        shown += &piece.text;
        stopped = piece.stopped;
        if stopped.is_some() {
            break;
        }
    }
    if stopped.is_none() {
        let piece = stream.finish();
        shown += &piece.text;
        stopped = piece.stopped;
    }
    let ends = stops.iter().enumerate().filter_map(|(i, stop)| {
        let start = streamed.find(stop.as_str())?;
        Some((start + stop.len(), start, i))
    });
    let expected = ends.min().map_or((streamed.as_str(), None), |(_, start, i)| (&streamed[..start], Some(i)));
    assert_eq!((shown.as_str(), stopped), expected, "{ids:?} {stops:?}");
}

fuzz_target!(|input: &[u8]| run(input));
