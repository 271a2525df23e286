//! Files of conversations: four formats, and what is wrong with them.

use std::collections::HashSet;
use std::path::Path;

use lima::train::data::split;
use lima::train::{Dataset, Format, Role};

fn parse(bytes: impl AsRef<[u8]>) -> Result<Dataset, String> {
    Dataset::parse(Path::new("d.jsonl"), bytes.as_ref()).map_err(|e| e.to_string())
}

/// Who says what, in short.
fn turns(data: &Dataset, row: usize) -> Vec<(Role, &str)> {
    data.conversations[row].turns.iter().map(|t| (t.role, t.text.as_str())).collect()
}

#[test]
fn formats_are_detected() {
    use Role::{Assistant, System, User};
    let plain = [(User, "a"), (Assistant, "b")];
    let with_system = [(System, "s"), (User, "a"), (Assistant, "b")];
    for (format, text, expected) in [
        (Format::Lima, r#"{"conversations": ["a", "b"], "source": "x"}"#, &plain[..]),
        (
            Format::Messages,
            r#"{"messages":[{"role":"user","content":"a"},{"role":"assistant","content":"b"}],"source":"x"}"#,
            &plain,
        ),
        (
            Format::Messages,
            r#"{"messages":[{"role":"developer","content":[{"type":"text","text":"s"}]},{"role":"user","content":"a","name":"n"},{"role":"assistant","content":"b","tool_calls":null}],"source":"x","tools":[]}"#,
            &with_system,
        ),
        (
            Format::Messages,
            r#"{"messages":[{"role":"system","content":""},{"role":"user","content":"a"},{"role":"assistant","content":"b"}],"source":"x"}"#,
            &plain,
        ),
        (
            Format::ShareGpt,
            r#"{"id":1,"source":"x","conversations":[{"from":"human","value":"a"},{"from":"gpt","value":"b"}]}"#,
            &plain,
        ),
        (
            Format::ShareGpt,
            r#"{"system":"s","source":"x","conversations":[{"from":"user","value":"a"},{"from":"assistant","value":"b"}]}"#,
            &with_system,
        ),
        (Format::Alpaca, r#"{"instruction":"a","input":"","output":"b","source":"x"}"#, &plain),
        (Format::Alpaca, r#"{"system":"s","instruction":"a","output":"b","source":"x","history":[]}"#, &with_system),
    ] {
        let files = [
            text.to_owned(),
            format!("{text}\n"),
            format!("\u{feff}\r\n  {text}\r\n\r\n"),
            format!("[{text}]"),
            format!("\n[\n  {text}\n]\n"),
        ];
        for file in files {
            let data = parse(&file).unwrap_or_else(|e| panic!("{file}: {e}"));
            assert_eq!((data.format, turns(&data, 0)), (format, expected.to_vec()), "{file}");
            assert_eq!(data.conversations[0].source.as_deref(), Some("x"));
            let line = 1 + file[..file.find('{').unwrap()].matches('\n').count();
            assert_eq!(data.conversations[0].line, line, "{file:?}");
        }
    }
}

#[test]
fn rules_of_turns_and_texts() {
    use Role::{Assistant, User};
    let data =
        parse("{\"conversations\":[\"a\",\"b\",\"c\"]}\n\n{\"conversations\":[\" a\\r\\n\\t\",\"b \"]}").unwrap();
    // Without an answer the last message is left out.
    assert_eq!(turns(&data, 0), [(User, "a"), (Assistant, "b")]);
    assert!(data.conversations[0].dropped_last && !data.conversations[1].dropped_last);
    // Texts stay as they are.
    assert_eq!(turns(&data, 1), [(User, " a\r\n\t"), (Assistant, "b ")]);
    assert_eq!(data.conversations[1].line, 3);

    let data = parse(r#"{"instruction":"Sum up.","input":"Text","output":"b"}"#).unwrap();
    assert_eq!(turns(&data, 0)[0], (User, "Sum up.\n\nText"));

    let weighted = r#"{"messages":[{"role":"user","content":"a"},{"role":"assistant","content":"b","weight":0},
        {"role":"user","content":"c"},{"role":"assistant","content":"d","weight":1}]}"#;
    let data = parse(weighted.replace('\n', "")).unwrap();
    let learn: Vec<bool> = data.conversations[0].turns.iter().map(|t| t.learn).collect();
    assert_eq!(learn, [false, false, false, true]);
}

/// What is wrong with a file is one sentence a fault, with file and line.
#[test]
fn malformed_files() {
    let long = format!(r#"{{"conversations":["{}","b"]}}"#, "x".repeat(9 << 20));
    let many = format!(r#"{{"conversations":[{}"b"]}}"#, r#""a","#.repeat(1001));
    let deep = format!(r#"{{"conversations":{}"#, "[".repeat(100_000));
    let ok = r#"{"conversations":["a","b"]}"#;
    let after = |text: &str| format!("{ok}\n{text}");
    let role = |role: &str| format!(r#"{{"messages":[{{"role":"{role}","content":"a"}}]}}"#);
    let cases: Vec<(Vec<u8>, &str)> = vec![
        (b"".into(), "d.jsonl: has no rows"),
        (b" \r\n\n\t".into(), "d.jsonl: has no rows"),
        (b"[]".into(), "d.jsonl: has no rows"),
        (b"\xff\xfe{\0".into(), "d.jsonl: is UTF-16, and must be UTF-8"),
        ([ok.as_bytes(), b"\n{\"conversations\":[\"a\xff\"]}"].concat(), "d.jsonl:2: byte 21 of the line is not UTF-8"),
        (after("{\"conversations\":[\"a\",").into(), "d.jsonl:2: is not JSON at column 22: EOF while parsing a value"),
        (after("nonsense").into(), "d.jsonl:2: is not JSON at column 2: expected ident"),
        (after("  {'a': 1}").into(), "d.jsonl:2: is not JSON at column 4: key must be a string"),
        (after("[1]").into(), "d.jsonl:2: the row is a list, not a JSON object"),
        (b"[{\"conversations\":[\"a\",\"b\"]},\n 7]".into(), "d.jsonl:2: the row is a number, not a JSON object"),
        (
            b"[{\"conversations\":[\"a\",\"b\"]},\n".into(),
            "d.jsonl:2: is not JSON at column 0: EOF while parsing a value",
        ),
        (format!("{ok}{ok}").into(), "d.jsonl:1: is not JSON at column 28: trailing characters"),
        (
            br#"{"text":"a"}"#.into(),
            r#"d.jsonl:1: the row has none of "conversations", "messages" and "instruction"; it has "text""#,
        ),
        (
            br#"{"conversations":["a","b"],"messages":[]}"#.into(),
            r#"d.jsonl:1: the row has both "messages" and "conversations""#,
        ),
        (
            br#"{"conversations":["a","b"],"conversations":["c","d"]}"#.into(),
            r#"d.jsonl:1: the key "conversations" appears twice"#,
        ),
        (
            br#"{"messages":[{"role":"user","role":"user","content":"a"}]}"#.into(),
            r#"d.jsonl:1: the key "role" appears twice"#,
        ),
        (br#"{"conversations":"a"}"#.into(), r#"d.jsonl:1: "conversations" is a string, not a list"#),
        (br#"{"conversations":[]}"#.into(), r#"d.jsonl:1: "conversations" is empty"#),
        (br#"{"conversations":["a",2]}"#.into(), "d.jsonl:1: message 2 is a number, not a string"),
        (br#"{"conversations":["a"]}"#.into(), "d.jsonl:1: the conversation has no message of the assistant"),
        (br#"{"conversations":["a"," \n"]}"#.into(), "d.jsonl:1: message 2, of the assistant, is empty"),
        (br#"{"conversations":["a\u0000","b"]}"#.into(), "d.jsonl:1: message 1 has the control character U+0000"),
        (
            b"{\"conversations\":[\"a\x01\",\"b\"]}".into(),
            "d.jsonl:1: is not JSON at column 21: control character (\\u0000-\\u001F) found while parsing a string",
        ),
        (
            br#"{"conversations":["a\ud800","b"]}"#.into(),
            "d.jsonl:1: is not JSON at column 27: unexpected end of hex escape",
        ),
        (br#"{"conversations":["a","b"],"source":3}"#.into(), r#"d.jsonl:1: "source" is a number, not a string"#),
        (role("tool").into(), r#"d.jsonl:1: message 1 has the role "tool"; system, user and assistant are known"#),
        (
            role("assistant").into(),
            "d.jsonl:1: message 1 is the assistant's where the user's is due: after an optional system message, user and assistant alternate",
        ),
        (
            br#"{"messages":[{"role":"user","content":"a"},{"role":"user","content":"b"}]}"#.into(),
            "d.jsonl:1: message 2 is the user's where the assistant's is due: after an optional system message, user and assistant alternate",
        ),
        (
            br#"{"messages":[{"role":"user","content":"a"},{"role":"system","content":"b"}]}"#.into(),
            "d.jsonl:1: message 2 is the system's where the assistant's is due: after an optional system message, user and assistant alternate",
        ),
        (br#"{"messages":[{"role":"user"}]}"#.into(), r#"d.jsonl:1: "content" of message 1 is missing"#),
        (br#"{"messages":[{"content":"a"}]}"#.into(), r#"d.jsonl:1: "role" of message 1 is missing"#),
        (
            br#"{"messages":[{"role":"user","content":[{"type":"image_url"}]}]}"#.into(),
            r#"d.jsonl:1: a part of message 1 is "image_url"; only text is read"#,
        ),
        (
            br#"{"messages":[{"role":"user","content":"a"},{"role":"assistant","content":null,"tool_calls":[{}]}]}"#
                .into(),
            r#"d.jsonl:1: message 2 has "tool_calls", which is not read"#,
        ),
        (
            br#"{"messages":[{"role":"user","content":"a"},{"role":"assistant","content":"b","weight":0.5}]}"#.into(),
            r#"d.jsonl:1: "weight" of message 2 is neither 0 nor 1"#,
        ),
        (
            br#"{"messages":[{"role":"user","content":"a"},{"role":"assistant","content":"b","weight":0}]}"#.into(),
            "d.jsonl:1: every message of the assistant has weight 0, so there is nothing to learn",
        ),
        (
            br#"{"conversations":[{"from":"bot","value":"a"}]}"#.into(),
            r#"d.jsonl:1: message 1 is from "bot"; system, human and gpt are known"#,
        ),
        (
            br#"{"conversations":[{"from":"human","value":"a"},"b"]}"#.into(),
            "d.jsonl:1: message 2 is a string, not an object",
        ),
        (br#"{"instruction":"a"}"#.into(), r#"d.jsonl:1: "output" is missing"#),
        (
            br#"{"instruction":"a","output":"b","history":[["c","d"]]}"#.into(),
            r#"d.jsonl:1: "history" is not read; write the conversation as messages"#,
        ),
        (
            after(r#"{"instruction":"a","output":"b"}"#).into(),
            "d.jsonl:2: the row is in alpaca's format, but line 1 is in LIMA's format",
        ),
        (long.into(), "d.jsonl:1: the row is larger than 8 MiB"),
        (many.into(), "d.jsonl:1: the conversation has 1002 messages, more than 1000"),
        (deep.into(), "d.jsonl:1: is not JSON at column 144: recursion limit exceeded"),
    ];
    assert!(cases.len() >= 20);
    let mut wrong = Vec::new();
    for (file, expected) in cases {
        let start = String::from_utf8_lossy(&file[..file.len().min(200)]).into_owned();
        match parse(&file) {
            Err(error) if error == expected => {}
            other => wrong.push(format!("{start}: {:?}, not {expected:?}", other.err())),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let error = Dataset::read(Path::new("/no/such/file")).unwrap_err().to_string();
    assert!(error.starts_with("/no/such/file: cannot be read: "), "{error}");
    let error = Dataset::read(&std::env::temp_dir()).unwrap_err().to_string();
    assert!(error.contains("cannot be read: "), "{error}");
}

#[test]
fn many_errors_are_counted() {
    let file = "{\"conversations\":[\"a\",\"b\"]}\n".to_owned() + &"{}\n".repeat(25);
    let error = parse(file).unwrap_err();
    assert_eq!(error.lines().count(), 11);
    assert!(error.starts_with("d.jsonl:2: ") && error.ends_with("and 15 more such errors"), "{error}");
}

/// Every prefix of a file, and every byte of it changed, is read or refused.
#[test]
fn damage_never_panics() {
    let file = "\u{feff}{\"messages\":[{\"role\":\"user\",\"content\":\"é\\u00e9\"},{\"role\":\"assistant\",\"content\":[{\"type\":\"text\",\"text\":\"b\"}]}],\"source\":null}\n";
    for end in 0..file.len() {
        _ = parse(&file.as_bytes()[..end]);
        for byte in [0, b'"', b'[', b'{', b'}', b'\n', b'9', 0xff] {
            let mut damaged = file.as_bytes().to_vec();
            damaged[end] = byte;
            if let Err(error) = parse(damaged) {
                assert!(error.lines().all(|line| line.starts_with("d.jsonl:")), "{error:?}");
            }
        }
    }
}

#[test]
fn held_out_rows_depend_on_the_seed_alone() {
    let rows: String = (0..50).map(|i| format!("{{\"conversations\":[\"{i}\",\"b\"]}}\n")).collect();
    let all = parse(rows).unwrap().conversations;
    let (train, held) = split(all.clone(), 10, 1);
    assert_eq!((train.len(), held.len()), (40, 10));
    assert_eq!(split(all.clone(), 10, 1), (train.clone(), held.clone()));
    assert_ne!(split(all.clone(), 10, 2).1, held);
    // More rows held out are these and others; order is kept; one row is always left.
    let lines: HashSet<usize> = split(all.clone(), 20, 1).1.iter().map(|c| c.line).collect();
    assert!(held.iter().all(|c| lines.contains(&c.line)) && held.is_sorted_by_key(|c| c.line));
    assert_eq!(split(all, 1000, 1).0.len(), 1);
}

/// LIMA's own file, where it is at hand (`LIMA_TEST_DATA`, the file's path).
#[test]
fn lima_itself() {
    let Some(path) = std::env::var_os("LIMA_TEST_DATA") else {
        eprintln!("skipped: LIMA_TEST_DATA is not set");
        return;
    };
    let data = Dataset::read(Path::new(&path)).unwrap();
    let turns = |n: usize| data.conversations.iter().filter(|c| c.turns.len() == n).count();
    assert_eq!((data.format, data.conversations.len(), turns(2)), (Format::Lima, 1030, 1000));
    assert_eq!((turns(4), turns(6), turns(8), turns(20)), (16, 10, 3, 1));
}
