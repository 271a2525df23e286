//! However an answer's text falls into tokens, and whatever its stop strings: what a stream says, joined, is what the
//! answer in one body says, and both are what a search of the whole text gives.

use reqwest::Method;
use serde_json::{Value, json};

use super::{Server, Setup, VOCAB, events, named_events};

/// Tokens of several bytes: parts of characters, whole ones, and what stop strings are made of.
const PIECES: [&[u8]; 14] = [
    b"ab",
    b"ba",
    b"aba",
    b"\xc3\xa9",
    b"a\xc3",
    b"\xa9b",
    b"\xf0\x9f",
    b"\x98\x80",
    b"\x98a",
    b"\x80a",
    b"\n\n",
    b"b\n",
    b"\xc3\xa9\xc3",
    b"data: ",
];
/// The bytes of which texts are made beside them; some are never part of a character.
const BYTES: [u8; 9] = [b'a', b'b', b'\n', b'"', 0xC3, 0xA9, 0xF0, 0x98, 0xFF];
const STOPS: [&str; 12] = ["a", "b", "ab", "aa", "aba", "\n", "\n\n", "é", "éb", "😀", "\u{FFFD}", "b\u{FFFD}"];

struct Rng(u64);

impl Rng {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 20) as usize % n
    }

    fn of<T: Copy>(&mut self, among: &[T]) -> T {
        among[self.below(among.len())]
    }
}

/// The definition, on the whole text: the stop string that ends first, then the longest, then the first listed.
fn whole(text: &str, stops: &[&str]) -> (String, &'static str) {
    let ends = stops.iter().enumerate().filter_map(|(i, stop)| {
        let start = text.find(stop)?;
        Some((start + stop.len(), start, i))
    });
    match ends.min() {
        Some((_, start, _)) => (text[..start].to_owned(), "stop"),
        None => (text.to_owned(), "length"),
    }
}

fn text_of<'a>(values: impl Iterator<Item = &'a Value>) -> String {
    values.filter_map(Value::as_str).collect()
}

/// A server whose model repeats the prompt, for ever.
async fn echo(template: &'static str) -> Server {
    Server::start(Setup { echoes: true, pieces: &PIECES, template, ..Setup::default() }).await
}

async fn post(server: &Server, path: &str, body: &Value) -> String {
    let response = server.request(Method::POST, path).json(body).send().await.unwrap();
    let (status, text) = (response.status(), response.text().await.unwrap());
    assert_eq!(status, 200, "{path}: {text}");
    text
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_of_any_tokens_says_what_the_body_says() {
    let server = echo(super::TEMPLATE).await;
    let mut rng = Rng(0x9E37_79B9_7F4A_7C15);
    let (mut stopped, mut invalid) = (0, 0);
    for round in 0..250 {
        let (mut ids, mut bytes) = (Vec::new(), Vec::new());
        for _ in 0..1 + rng.below(24) {
            if rng.below(2) == 0 {
                let piece = rng.below(PIECES.len());
                ids.push(VOCAB + piece);
                bytes.extend_from_slice(PIECES[piece]);
            } else {
                let byte = rng.of(&BYTES);
                ids.push(usize::from(byte));
                bytes.push(byte);
            }
        }
        // A prompt that ends in a whole character leaves none for the answer to complete.
        ids.push(usize::from(b'"'));
        bytes.push(b'"');
        let stops: Vec<&str> = (0..rng.below(4)).map(|_| rng.of(&STOPS)).collect();
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let (expected, reason) = whole(&text, &stops);
        stopped += usize::from(reason == "stop");
        invalid += usize::from(text.contains('\u{FFFD}'));
        let mut body = json!({"model": "alias", "prompt": ids, "max_tokens": ids.len(), "stop": stops});
        if rng.below(3) == 0 {
            body["logprobs"] = json!(1);
        }
        let answer: Value = serde_json::from_str(&post(&server, "/v1/completions", &body).await).unwrap();
        let choice = &answer["choices"][0];
        let case = format!("round {round}: {bytes:?} {stops:?}");
        assert_eq!((&choice["text"], &choice["finish_reason"]), (&json!(expected), &json!(reason)), "{case}");
        body["stream"] = json!(true);
        let (chunks, done) = events(&post(&server, "/v1/completions", &body).await);
        assert!(done, "{case}");
        let choices = || chunks.iter().map(|chunk| &chunk["choices"][0]);
        assert_eq!(text_of(choices().map(|choice| &choice["text"])), expected, "{case}");
        let reasons: Vec<_> = choices().filter_map(|choice| choice["finish_reason"].as_str()).collect();
        assert_eq!(reasons, [reason], "{case}");
    }
    assert!(stopped > 50 && invalid > 50, "{stopped} stopped, {invalid} not UTF-8");
}

#[tokio::test(flavor = "multi_thread")]
async fn so_does_every_dialect() {
    let server = echo("{% for m in messages %}{{ m.content }}{% endfor %}").await;
    let mut rng = Rng(0xD1B5_4A32_D192_ED03);
    for _ in 0..60 {
        let len = 1 + rng.below(20);
        let text: String = (0..len).map(|_| rng.of(&["a", "b", "é", "😀", "\n", "data: ", "\"", "\u{2028}"])).collect();
        let stops: Vec<&str> = (0..rng.below(4)).map(|_| rng.of(&STOPS)).collect();
        let (expected, reason) = whole(&text, &stops);
        let (messages, most) = (json!([{"role": "user", "content": text}]), text.len());
        let case = format!("{text:?} {stops:?}");

        let mut chat = json!({"model": "alias", "messages": messages, "max_tokens": most, "stop": stops});
        let answer: Value = serde_json::from_str(&post(&server, "/v1/chat/completions", &chat).await).unwrap();
        let choice = &answer["choices"][0];
        assert_eq!(
            (&choice["message"]["content"], &choice["finish_reason"]),
            (&json!(expected), &json!(reason)),
            "{case}"
        );
        chat["stream"] = json!(true);
        let (chunks, _) = events(&post(&server, "/v1/chat/completions", &chat).await);
        assert_eq!(text_of(chunks.iter().map(|c| &c["choices"][0]["delta"]["content"])), expected, "{case}");
        assert_eq!(chunks.last().unwrap()["choices"][0]["finish_reason"], reason, "{case}");

        let mut ask = json!({"model": "alias", "messages": messages, "max_tokens": most, "stop_sequences": stops});
        let answer: Value = serde_json::from_str(&post(&server, "/v1/messages", &ask).await).unwrap();
        let blocks = answer["content"].as_array().unwrap();
        assert_eq!(text_of(blocks.iter().map(|block| &block["text"])), expected, "{case}");
        ask["stream"] = json!(true);
        let told = named_events(&post(&server, "/v1/messages", &ask).await);
        assert_eq!(text_of(told.iter().map(|(_, event)| &event["delta"]["text"])), expected, "{case}");
        let end = told.iter().find(|(name, _)| name == "message_delta").unwrap();
        assert_eq!(end.1["delta"]["stop_reason"], answer["stop_reason"], "{case}");
        assert_eq!(answer["stop_reason"], if reason == "stop" { "stop_sequence" } else { "max_tokens" }, "{case}");

        let mut ask = json!({"model": "alias", "input": text, "max_output_tokens": most, "stop": stops});
        let answer: Value = serde_json::from_str(&post(&server, "/v1/responses", &ask).await).unwrap();
        assert_eq!(answer["output"][0]["content"][0]["text"], expected, "{case}");
        ask["stream"] = json!(true);
        let told = named_events(&post(&server, "/v1/responses", &ask).await);
        let deltas = told.iter().filter(|(name, _)| name == "response.output_text.delta");
        assert_eq!(text_of(deltas.map(|(_, event)| &event["delta"])), expected, "{case}");
        assert_eq!(
            told.last().unwrap().1["response"]["output"][0]["content"],
            answer["output"][0]["content"],
            "{case}"
        );
        assert_eq!(told.last().unwrap().1["response"]["status"], answer["status"], "{case}");
    }
}
