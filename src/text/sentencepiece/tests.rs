//! Merging takes a bounded number of steps.

#![allow(clippy::unwrap_used)]

use super::*;

fn model(words: &[&str]) -> SentencePiece {
    let special = [("<unk>", PieceKind::Unknown), ("<s>", PieceKind::Control)];
    let mut pieces: Vec<Piece> =
        special.iter().map(|&(spelling, kind)| Piece { spelling: spelling.into(), score: 0.0, kind }).collect();
    for (i, word) in words.iter().enumerate() {
        pieces.push(Piece { spelling: (*word).into(), score: -(i as f32), kind: PieceKind::Normal });
    }
    let rules = Rules {
        prefix: SpacePrefix::First,
        remove_extra_whitespaces: false,
        byte_fallback: false,
        find_user_defined: true,
        split_unused: true,
    };
    SentencePiece::new(&pieces, Some(0), rules).unwrap()
}

#[test]
fn merging_takes_a_number_of_steps_that_grows_with_the_text_alone() {
    let long: Vec<String> = (0..8).map(|n| "a".repeat(1 << n)).collect();
    let spaces: Vec<String> = (0..6).map(|n| "▁".repeat(1 << n)).collect();
    let mut words: Vec<&str> = long.iter().chain(&spaces).map(String::as_str).collect();
    words.extend(["b", "ab", "ba", "abab", "c"]);
    let model = model(&words);
    let n = 1 << 20;
    for text in ["a".repeat(n), " ".repeat(n), "ab".repeat(n / 2), "c".repeat(n), "aab".repeat(n / 3), "é".repeat(n)] {
        let text = model.normalize(&text, true, None);
        let chars = text.chars().count();
        let merged = model.merge(&text);
        // Each merge adds two pairs at most, to one for each neighbourhood.
        assert!(merged.steps <= 3 * chars, "{} steps for {chars} characters", merged.steps);
        assert_eq!(merged.pieces.concat(), text);
    }
    let mut ids = Vec::new();
    model.encode(&"a".repeat(n), false, &mut ids, None);
    assert_eq!(ids.len(), n / 128);
}
