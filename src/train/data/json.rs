//! Rows of a file, and JSON in which no key appears twice.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;
use serde_json::{Map, Value};

/// One row, not parsed yet.
pub(super) struct RawRow<'a> {
    /// Where it begins, from 1.
    pub(super) line: usize,
    /// The bytes of the line that come before it, if the file has a row a line.
    column: Option<usize>,
    pub(super) text: &'a str,
}

/// Takes a file apart: lines, or the elements of the array that the file is. The error is the line, if there is one,
/// and a sentence.
pub(super) fn rows(bytes: &[u8]) -> Result<Vec<RawRow<'_>>, (Option<usize>, String)> {
    if bytes.starts_with(&[0xFF, 0xFE]) || bytes.starts_with(&[0xFE, 0xFF]) {
        return Err((None, "is UTF-16, and must be UTF-8".into()));
    }
    let bytes = bytes.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(bytes);
    let line_of = |at: usize| 1 + bytes[..at].iter().filter(|b| **b == b'\n').count();
    let text = std::str::from_utf8(bytes).map_err(|e| {
        let start = bytes[..e.valid_up_to()].iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
        let column = e.valid_up_to() - start + 1;
        (Some(line_of(e.valid_up_to())), format!("byte {column} of the line is not UTF-8"))
    })?;
    if text.trim_start().starts_with('[') {
        return array(text);
    }
    // Lines end in \n or \r\n, which is white space in JSON.
    let lines = text.split('\n').enumerate().map(|(i, line)| (i + 1, line));
    let rows = lines.filter(|(_, line)| !line.trim().is_empty()).map(|(line, text)| RawRow {
        line,
        column: Some(text.len() - text.trim_start().len()),
        text: text.trim(),
    });
    Ok(rows.collect())
}

fn array(text: &str) -> Result<Vec<RawRow<'_>>, (Option<usize>, String)> {
    let elements: Vec<&RawValue> = serde_json::from_str(text)
        .map_err(|e| (Some(e.line().max(1)), format!("is not JSON at column {}: {}", e.column(), reason(&e))))?;
    // Elements are in order, so lines are counted once.
    let (mut line, mut counted) = (1, 0);
    let rows = elements.into_iter().map(|element| {
        let at = element.get().as_ptr() as usize - text.as_ptr() as usize;
        line += text[counted..at].bytes().filter(|b| *b == b'\n').count();
        counted = at;
        RawRow { line, column: None, text: element.get() }
    });
    Ok(rows.collect())
}

/// Parses a row, which must be an object; the error is one sentence.
pub(super) fn parse(row: &RawRow<'_>) -> Result<Map<String, Value>, String> {
    match serde_json::from_str(row.text) {
        Ok(Strict(Value::Object(map))) => Ok(map),
        Ok(Strict(other)) => Err(format!("the row is {}, not a JSON object", kind(&other))),
        Err(e) if e.is_data() => Err(reason(&e)),
        Err(e) => Err(match row.column {
            Some(column) => format!("is not JSON at column {}: {}", column + e.column(), reason(&e)),
            None => format!("is not JSON: {}", reason(&e)),
        }),
    }
}

/// What a value is, in words.
pub(super) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a truth value",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// The library's message without the place, which is told in the file's own lines.
fn reason(e: &serde_json::Error) -> String {
    let text = e.to_string();
    match text.rfind(" at line ") {
        Some(at) => text[..at].to_owned(),
        None => text,
    }
}

/// A value of whose objects none has a key twice.
struct Strict(Value);

impl<'de> Deserialize<'de> for Strict {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(StrictVisitor).map(Strict)
    }
}

struct StrictVisitor;

impl<'de> Visitor<'de> for StrictVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        while let Some(Strict(item)) = seq.next_element()? {
            items.push(item);
        }
        Ok(Value::Array(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(key) = access.next_key::<String>()? {
            if map.contains_key(&key) {
                return Err(serde::de::Error::custom(format!(
                    "the key {} appears twice",
                    super::formats::quoted(&key)
                )));
            }
            let Strict(value) = access.next_value()?;
            map.insert(key, value);
        }
        Ok(Value::Object(map))
    }
}
