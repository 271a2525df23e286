//! A Hugging Face directory. The input is `config.json`, a zero byte, and `model.safetensors`; or, if an opening brace
//! follows that byte, the index, a zero byte, the first shard's length (two bytes, little-endian), and two shards.
#![no_main]

use libfuzzer_sys::fuzz_target;

fn at_zero(bytes: &[u8]) -> (&[u8], &[u8]) {
    let at = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
    (&bytes[..at], bytes.get(at + 1..).unwrap_or_default())
}

fuzz_target!(|bytes: &[u8]| {
    let (config, weights) = at_zero(bytes);
    let dir = if weights.starts_with(b"{") {
        let (index, rest) = at_zero(weights);
        let Some((length, shards)) = rest.split_first_chunk() else { return };
        let (a, b) = shards.split_at(shards.len().min(u16::from_le_bytes(*length).into()));
        lima_fuzz::directory(&[
            ("config.json", config),
            ("model.safetensors.index.json", index),
            ("model-00001-of-00002.safetensors", a),
            ("model-00002-of-00002.safetensors", b),
        ])
    } else {
        lima_fuzz::directory(&[("config.json", config), ("model.safetensors", weights)])
    };
    lima_fuzz::open(&dir);
});
