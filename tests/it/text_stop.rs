//! Stop strings: cut up anyhow, a stream gives what a search of the whole text gives.

#![allow(clippy::unwrap_used)]

use lima::text::{StopMatcher, StopOutcome};

/// The definition, on the whole text: first end, then longest, then first listed.
fn whole(text: &str, stops: &[String]) -> (String, Option<usize>) {
    let found = stops.iter().enumerate().filter(|(_, s)| !s.is_empty()).filter_map(|(i, stop)| {
        let start = text.find(stop.as_str())?;
        Some((start + stop.len(), start, i))
    });
    match found.min() {
        Some((_, start, index)) => (text[..start].to_owned(), Some(index)),
        None => (text.to_owned(), None),
    }
}

struct Rng(u64);

impl Rng {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 20) as usize % n
    }

    fn text(&mut self, alphabet: &[&str], len: usize) -> String {
        (0..len).map(|_| alphabet[self.below(alphabet.len())]).collect()
    }
}

#[test]
fn any_chunking_gives_the_result_of_a_whole_search() {
    let mut rng = Rng(0x9E37_79B9_7F4A_7C15);
    for round in 0..20_000 {
        let alphabet: &[&str] = if round % 2 == 0 { &["a", "b"] } else { &["a", "é", "😀", "è", "\n"] };
        let stops: Vec<String> = (0..rng.below(5))
            .map(|_| {
                let len = rng.below(6);
                rng.text(alphabet, len)
            })
            .collect();
        let len = rng.below(30);
        let text = rng.text(alphabet, len);
        let expected = whole(&text, &stops);

        let mut matcher = StopMatcher::new(stops.clone());
        let mut shown = String::new();
        let mut stopped = None;
        let chars: Vec<char> = text.chars().collect();
        let mut at = 0;
        while at < chars.len() {
            let n = (rng.below(5)).min(chars.len() - at);
            let StopOutcome { text, stopped: now } = matcher.push(&chars[at..at + n].iter().collect::<String>());
            shown.push_str(&text);
            assert!(expected.0.starts_with(&shown), "{text:?} {stops:?}: showed {shown:?}");
            assert!(stopped.is_none() || now == stopped);
            stopped = now;
            at += n;
        }
        shown.push_str(&matcher.finish());
        assert_eq!((shown, stopped), expected, "{text:?} {stops:?}");
    }
}

#[test]
fn only_what_may_begin_a_stop_string_is_withheld() {
    let mut matcher = StopMatcher::new(vec!["END".into(), "\n\n".into()]);
    let mut push = |text: &str| matcher.push(text).text;
    assert_eq!(push("abcE"), "abc");
    assert_eq!(push("N"), "");
    assert_eq!(push("E"), "EN");
    assert_eq!(push("x\n"), "Ex");
    assert_eq!(push("y"), "\ny");
    let stopped = matcher.push("zEND more");
    assert_eq!(stopped, StopOutcome { text: "z".into(), stopped: Some(0) });
    assert_eq!(matcher.push("after"), StopOutcome { text: String::new(), stopped: Some(0) });
    assert_eq!(matcher.finish(), "");
}
