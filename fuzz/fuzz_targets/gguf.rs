//! A GGUF model: header, configuration, vocabulary as stored, and every tensor's numbers. The input is the file; or the
//! letter S, the first part's length (two bytes, little-endian), and the two parts of a split model.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let [b'S', a, b, parts @ ..] = bytes {
        let (first, second) = parts.split_at(parts.len().min(u16::from_le_bytes([*a, *b]).into()));
        let dir = lima_fuzz::directory(&[("m-00001-of-00002.gguf", first), ("m-00002-of-00002.gguf", second)]);
        lima_fuzz::open(&dir.join("m-00002-of-00002.gguf"));
    } else {
        lima_fuzz::open(&lima_fuzz::directory(&[("m.gguf", bytes)]).join("m.gguf"));
    }
});
