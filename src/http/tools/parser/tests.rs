use super::*;

fn read(format: ToolFormat, constrained: bool, parallel: bool, pieces: &[&str]) -> Vec<Part> {
    let names = ["add", "get_weather"].map(Arc::from).to_vec();
    let mut parser = CallParser::new(format, names, constrained, parallel);
    let mut parts: Vec<Part> = pieces.iter().flat_map(|piece| parser.push(piece)).collect();
    parts.extend(parser.finish());
    join(parts)
}

/// Neighbours of a kind as one.
fn join(parts: Vec<Part>) -> Vec<Part> {
    let mut out: Vec<Part> = Vec::new();
    for part in parts {
        match (out.last_mut(), part) {
            (Some(Part::Content(a)), Part::Content(b)) => a.push_str(&b),
            (Some(Part::Arguments { text: a, .. }), Part::Arguments { text: b, .. }) => a.push_str(&b),
            (_, part) => out.push(part),
        }
    }
    out
}

fn call(index: u32, name: &str, arguments: &str) -> [Part; 2] {
    let text = arguments.to_owned();
    [Part::Call { index, name: name.into() }, Part::Arguments { index, text }]
}

fn content(text: &str) -> Part {
    Part::Content(text.to_owned())
}

/// Texts, and what is in them.
fn cases() -> Vec<(ToolFormat, bool, &'static str, Vec<Part>)> {
    use ToolFormat::{Hermes, Llama3Json};
    let add = call(0, "add", r#"{"a": "}\"{", "b": [1]}"#).to_vec();
    let weather = |index| call(index, "get_weather", "{}");
    vec![
        (Hermes, false, "", vec![]),
        (Hermes, false, " just text < <tool_cal ", vec![content(" just text < <tool_cal ")]),
        (
            Hermes,
            false,
            "<tool_call>\n{\"name\": \"add\", \"arguments\": {\"a\": \"}\\\"{\", \"b\": [1]}}\n</tool_call>",
            add.clone(),
        ),
        (
            Hermes,
            true,
            "<tool_call>\n{\"name\": \"add\", \"arguments\": {\"a\": \"}\\\"{\", \"b\": [1]}}\n</tool_call>",
            add.clone(),
        ),
        (
            Hermes,
            false,
            "Wait. \n<tool_call>{\"arguments\":{},\"name\":\"get_weather\"}</tool_call>\n<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {}}\n</tool_call>\n",
            [vec![content("Wait.")], weather(0).to_vec(), weather(1).to_vec()].concat(),
        ),
        (
            Hermes,
            true,
            "Wait. \n<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {}}\n</tool_call>\n<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {}}\n</tool_call>",
            [vec![content("Wait.")], weather(0).to_vec(), weather(1).to_vec()].concat(),
        ),
        (
            Hermes,
            false,
            "<tool_call>[{\"name\": \"add\", \"arguments\": {\"a\": \"}\\\"{\", \"b\": [1]}}, {\"name\": \"get_weather\", \"arguments\": {}}]</tool_call> Done.",
            [add.clone(), weather(1).to_vec(), vec![content(" Done.")]].concat(),
        ),
        // Not calls: another function, wrong JSON, no object, cut off.
        (
            Hermes,
            false,
            "<tool_call>{\"name\": \"rm\", \"arguments\": {}}</tool_call>",
            vec![content("<tool_call>{\"name\": \"rm\", \"arguments\": {}}</tool_call>")],
        ),
        (
            Hermes,
            false,
            "<tool_call>{\"name\": add}</tool_call> ",
            vec![content("<tool_call>{\"name\": add}</tool_call> ")],
        ),
        (Hermes, false, "a <tool_call> is so", vec![content("a <tool_call> is so")]),
        (
            Hermes,
            false,
            "<tool_call>\n{\"name\": \"add\", \"argu",
            vec![content("<tool_call>\n{\"name\": \"add\", \"argu")],
        ),
        // Cut off in arguments that can only be right: they are told as far as they go.
        (Hermes, true, "<tool_call>\n{\"name\": \"add\", \"arguments\": {\"a\": ", call(0, "add", "{\"a\": ").to_vec()),
        (Hermes, true, "<tool_call>\n{\"name\": \"ad", vec![]),
        (Llama3Json, false, "{\"name\": \"get_weather\", \"parameters\": {}}", weather(0).to_vec()),
        (Llama3Json, true, "{\"name\": \"get_weather\", \"parameters\": {}}", weather(0).to_vec()),
        (
            Llama3Json,
            false,
            " <|python_tag|>{\"name\": \"add\", \"parameters\": {\"a\": \"}\\\"{\", \"b\": [1]}}; {\"name\": \"get_weather\", \"parameters\": {}}",
            [add, weather(1).to_vec()].concat(),
        ),
        (Llama3Json, false, "{\"a\": 1} is JSON {", vec![content("{\"a\": 1} is JSON {")]),
        (
            Llama3Json,
            false,
            "Say {\"name\": \"add\", \"parameters\": {}}",
            vec![content("Say {\"name\": \"add\", \"parameters\": {}}")],
        ),
        (Llama3Json, false, "  <|pyt", vec![content("  <|pyt")]),
        (Llama3Json, false, "{\"name\": ", vec![content("{\"name\": ")]),
    ]
}

#[test]
fn calls_are_read_and_all_else_is_text() {
    for (format, constrained, text, expected) in cases() {
        assert_eq!(read(format, constrained, true, &[text]), expected, "{text}");
    }
}

#[test]
fn cuts_change_nothing() {
    for (format, constrained, text, expected) in cases() {
        let pieces: Vec<String> = text.chars().map(String::from).collect();
        let pieces: Vec<&str> = pieces.iter().map(String::as_str).collect();
        assert_eq!(read(format, constrained, true, &pieces), expected, "{text}");
        for at in (0..text.len()).filter(|at| text.is_char_boundary(*at)) {
            let (a, b) = text.split_at(at);
            assert_eq!(read(format, constrained, true, &[a, b]), expected, "{a}|{b}");
        }
    }
}

#[test]
fn one_call_is_enough_if_no_more_are_wanted() {
    let text = "<tool_call>{\"name\": \"add\", \"arguments\": {}}</tool_call><tool_call>{\"name\": \"add\", \"arguments\": {}}</tool_call>";
    assert_eq!(read(ToolFormat::Hermes, false, false, &[text]), call(0, "add", "{}"));
}
