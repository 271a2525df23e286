//! The grammar of answers whose calls must be right.

use serde_json::{Value, json};

use super::prompt::{CLOSE, OPEN, ToolFormat};
use super::{CallParser, ToolChoice};
use crate::text::Tokenizer;

/// Lark for answers that call functions, each given with the schema of its arguments: only calls where they are
/// required, else text in which every call is right.
///
/// A call is written in one way alone, which is what [`CallParser::header`] reads.
pub(super) fn lark(
    calls: &[(&str, Value)],
    format: ToolFormat,
    choice: ToolChoice,
    parallel: bool,
    tokenizer: &Tokenizer,
) -> String {
    let marker = |text: &str| match tokenizer.token_id(text).is_some_and(|id| tokenizer.is_special(id)) {
        // A token that is no text.
        true => text.to_owned(),
        false => quoted(text),
    };
    let (open, close) = (marker(OPEN), marker(CLOSE));
    let start = match (format, choice, parallel) {
        (ToolFormat::Hermes, ToolChoice::Required, true) => {
            format!("start: call (\"\\n\" call)*\ncall: {open} \"\\n\" body \"\\n\" {close}")
        }
        (ToolFormat::Hermes, ToolChoice::Required, false) => format!("start: {open} \"\\n\" body \"\\n\" {close}"),
        (ToolFormat::Hermes, ToolChoice::Auto, true) => format!(
            "start: (before call)* after\nbefore[suffix={open}]: TEXT\nafter: TEXT\n\
             call: \"\\n\" body \"\\n\" {close}\nTEXT: /(?s:.*)/"
        ),
        (ToolFormat::Hermes, ToolChoice::Auto, false) => format!(
            "start: before call | text\nbefore[suffix={open}]: TEXT\ntext: TEXT\n\
             call: \"\\n\" body \"\\n\" {close}\nTEXT: /(?s:.*)/"
        ),
        // The template knows of one call at a time.
        (ToolFormat::Llama3Json, ToolChoice::Required, _) => "start: body".to_owned(),
        (ToolFormat::Llama3Json, ToolChoice::Auto, _) => "start: body | text\ntext: /([^{](?s:.*))?/".to_owned(),
    };
    let bodies: Vec<String> = (0..calls.len()).map(|i| format!("f{i}")).collect();
    let mut lark = format!("{start}\nbody: {}\n", bodies.join(" | "));
    for (i, (name, schema)) in calls.iter().enumerate() {
        let header = quoted(&CallParser::header(format, name));
        let mut schema = schema.clone();
        if let Value::Object(map) = &mut schema {
            // Read at the top of a schema: separators as the template writes them, and nothing else between tokens.
            map.insert(
                "x-guidance".into(),
                json!({"whitespace_flexible": false, "item_separator": ", ", "key_separator": ": "}),
            );
        }
        lark.push_str(&format!("f{i}: {header} a{i} \"}}\"\na{i}: %json {schema}\n"));
    }
    lark
}

/// A string of Lark, which is a string of JSON.
fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}
