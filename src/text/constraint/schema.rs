//! JSON schemas: what of them can be kept to, and where one cannot.
//!
//! A schema that asks for more than is enforced is refused, never weakened: keywords without effect on validity pass,
//! those that are enforced are passed on, and all others are named with their place.

use std::collections::HashSet;

use serde_json::{Map, Value, json};

use super::ConstraintError;

/// Subschemas of one schema.
const MAX_SCHEMAS: usize = 10_000;
/// Schemas within schemas, references followed.
const MAX_DEPTH: usize = 200;
/// Parts of a refused schema that are tried when looking for the one to name.
const MAX_TRIES: usize = 64;

/// White space between tokens of JSON. Bounded, as models can go on with it for ever.
const WHITE_SPACE: &str = r"[\x20\x0A\x0D\x09]{1,40}";

/// Keywords whose values are schemas by name.
const NAMED: [&str; 4] = ["properties", "patternProperties", "$defs", "definitions"];
/// Keywords whose values are lists of schemas.
const LISTS: [&str; 4] = ["anyOf", "oneOf", "allOf", "prefixItems"];
/// Keywords whose value is a schema.
const SINGLE: [&str; 3] = ["additionalProperties", "items", "additionalItems"];
/// Other keywords that are enforced.
const ENFORCED: [&str; 17] = [
    "$ref",
    "const",
    "enum",
    "type",
    "required",
    "minItems",
    "maxItems",
    "minProperties",
    "maxProperties",
    "minLength",
    "maxLength",
    "pattern",
    "format",
    "minimum",
    "maximum",
    "exclusiveMinimum",
    "exclusiveMaximum",
];
/// Keywords that say nothing about validity.
const ANNOTATIONS: [&str; 16] = [
    "title",
    "description",
    "default",
    "example",
    "examples",
    "deprecated",
    "readOnly",
    "writeOnly",
    "$comment",
    "$id",
    "id",
    "$anchor",
    "contentMediaType",
    "contentEncoding",
    "contentSchema",
    "discriminator",
];
/// Formats of strings that are enforced.
const FORMATS: [&str; 10] =
    ["date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri"];

/// The schema of all objects.
pub(super) fn object() -> Value {
    with_options(json!({"type": "object"}))
}

/// The schema as llguidance is to read it.
pub(super) fn prepare(schema: &Value) -> Result<Value, ConstraintError> {
    enforced(schema).map(with_options)
}

/// What of a schema is enforced, which is all that says anything about validity; an object.
///
/// # Errors
/// Something in it is not a schema, or not supported.
pub fn enforced(schema: &Value) -> Result<Value, ConstraintError> {
    let mut reader = Reader { schemas: 0 };
    let read = reader.read(schema, "", 0)?;
    Walk { root: schema, seen: HashSet::new() }.depth(schema, "", 0)?;
    match read {
        Value::Bool(true) => Ok(json!({})),
        Value::Bool(false) => Err(refusal("", "is false, which nothing matches")),
        read => Ok(read),
    }
}

fn with_options(mut schema: Value) -> Value {
    if let Value::Object(map) = &mut schema {
        map.insert("x-guidance".into(), json!({"whitespace_pattern": WHITE_SPACE}));
    }
    schema
}

fn refusal(pointer: &str, reason: impl Into<String>) -> ConstraintError {
    ConstraintError::Schema { pointer: pointer.to_owned(), reason: reason.into() }
}

/// A key as part of a JSON pointer, made printable and short.
fn segment(key: &str) -> String {
    let key: String = key.chars().filter(|c| !c.is_control()).take(64).collect();
    key.replace('~', "~0").replace('/', "~1")
}

/// Copies a schema, checking each keyword.
struct Reader {
    schemas: usize,
}

impl Reader {
    fn read(&mut self, schema: &Value, at: &str, depth: usize) -> Result<Value, ConstraintError> {
        self.schemas += 1;
        if self.schemas > MAX_SCHEMAS || depth > MAX_DEPTH {
            return Err(refusal(at, format!("is one of more than {MAX_SCHEMAS}, or more than {MAX_DEPTH} deep")));
        }
        let map = match schema {
            Value::Bool(_) => return Ok(schema.clone()),
            Value::Object(map) => map,
            _ => return Err(refusal(at, "is neither an object nor a boolean")),
        };
        let mut out = Map::new();
        for (key, value) in map {
            let here = format!("{at}/{}", segment(key));
            let copy = match key.as_str() {
                // Drafts differ in what they ignore. Here the newest holds.
                "$schema" => continue,
                key if ANNOTATIONS.contains(&key) => continue,
                key if key.starts_with("x-") && key != "x-guidance" => continue,
                key if NAMED.contains(&key) => self.named(value, &here, depth)?,
                key if LISTS.contains(&key) => self.list(value, &here, depth)?,
                "items" if value.is_array() => self.list(value, &here, depth)?,
                key if SINGLE.contains(&key) => self.read(value, &here, depth + 1)?,
                "uniqueItems" if value == false => continue,
                "multipleOf" => value.clone(),
                "$ref" => reference(value, &here)?,
                "format" => format(map, value, &here)?,
                key if ENFORCED.contains(&key) => value.clone(),
                _ => return Err(refusal(&here, "is not supported")),
            };
            out.insert(key.clone(), copy);
        }
        Ok(Value::Object(out))
    }

    fn named(&mut self, value: &Value, at: &str, depth: usize) -> Result<Value, ConstraintError> {
        let Value::Object(map) = value else { return Err(refusal(at, "is not an object")) };
        let one = |(key, value): (&String, &Value)| {
            Ok((key.clone(), self.read(value, &format!("{at}/{}", segment(key)), depth + 1)?))
        };
        map.iter().map(one).collect::<Result<Map<_, _>, _>>().map(Value::Object)
    }

    fn list(&mut self, value: &Value, at: &str, depth: usize) -> Result<Value, ConstraintError> {
        let Value::Array(items) = value else { return Err(refusal(at, "is not an array")) };
        let one = |(i, value)| self.read(value, &format!("{at}/{i}"), depth + 1);
        items.iter().enumerate().map(one).collect::<Result<Vec<_>, _>>().map(Value::Array)
    }
}

/// References into the same document, by a path that needs no unescaping.
fn reference(value: &Value, at: &str) -> Result<Value, ConstraintError> {
    match value.as_str() {
        None => Err(refusal(at, "is not a string")),
        Some("#") => Ok(value.clone()),
        Some(path) if path.starts_with("#/") && !path.contains(['~', '%']) => Ok(value.clone()),
        Some(_) => Err(refusal(at, "is not a reference of the form '#/$defs/name', which are those supported")),
    }
}

/// A format that is enforced, or that says nothing about a string.
fn format(schema: &Map<String, Value>, value: &Value, at: &str) -> Result<Value, ConstraintError> {
    let name = value.as_str().ok_or_else(|| refusal(at, "is not a string"))?;
    let may_be_string = match schema.get("type") {
        None => true,
        Some(Value::Array(types)) => types.iter().any(|t| t == "string"),
        Some(one) => one == "string",
    };
    if may_be_string && !FORMATS.contains(&name) {
        return Err(refusal(at, format!("is none of the formats supported: {}", FORMATS.join(", "))));
    }
    Ok(value.clone())
}

/// Follows references as llguidance does: each once, at its first use.
struct Walk<'a> {
    root: &'a Value,
    seen: HashSet<&'a str>,
}

impl<'a> Walk<'a> {
    fn depth(&mut self, schema: &'a Value, at: &str, depth: usize) -> Result<(), ConstraintError> {
        if depth > MAX_DEPTH {
            return Err(refusal(at, format!("is more than {MAX_DEPTH} deep, references followed")));
        }
        let Value::Object(map) = schema else { return Ok(()) };
        if let Some(path) = map.get("$ref").and_then(Value::as_str)
            && self.seen.insert(path)
        {
            let pointer = path.trim_start_matches('#').trim_end_matches('/');
            let Some(target) = self.root.pointer(pointer) else {
                return Err(refusal(&format!("{at}/$ref"), "names what is not there"));
            };
            self.depth(target, at, depth + 1)?;
        }
        for (pointer, child) in children(schema) {
            self.depth(child, &format!("{at}{pointer}"), depth + 1)?;
        }
        Ok(())
    }
}

/// Schemas right below a schema, definitions excepted, with their places in it.
fn children(schema: &Value) -> Vec<(String, &Value)> {
    let mut out = Vec::new();
    let Value::Object(map) = schema else { return out };
    for (key, value) in map {
        match (key.as_str(), value) {
            ("properties" | "patternProperties", Value::Object(named)) => {
                out.extend(named.iter().map(|(name, child)| (format!("/{key}/{}", segment(name)), child)));
            }
            (list, Value::Array(items)) if LISTS.contains(&list) || list == "items" => {
                out.extend(items.iter().enumerate().map(|(i, child)| (format!("/{key}/{i}"), child)));
            }
            (single, child) if SINGLE.contains(&single) => out.push((format!("/{key}"), child)),
            _ => {}
        }
    }
    out
}

/// The place of the smallest part that `fails` by itself; the definitions of the whole go with each part.
pub(super) fn locate(root: &Value, fails: impl Fn(&Value) -> bool) -> String {
    let mut tries = 0;
    let mut place = String::new();
    let mut at = root;
    let definitions: Vec<(&str, &Value)> =
        ["$defs", "definitions"].into_iter().filter_map(|key| Some((key, root.get(key)?))).collect();
    let mut fails_alone = |part: &Value| {
        tries += 1;
        let mut part = part.clone();
        if let Value::Object(map) = &mut part {
            definitions.iter().for_each(|(key, value)| _ = map.entry(*key).or_insert_with(|| (*value).clone()));
        }
        tries <= MAX_TRIES && fails(&part)
    };
    loop {
        let mut below = children(at);
        if let Some(path) = at.get("$ref").and_then(Value::as_str) {
            let pointer = path.trim_start_matches('#');
            // Not back to where it comes from.
            if let Some(target) = root.pointer(pointer).filter(|_| !place.starts_with(pointer)) {
                below.push((String::new(), target));
            }
        }
        let Some((pointer, child)) = below.into_iter().find(|(_, child)| fails_alone(child)) else { return place };
        if pointer.is_empty() {
            place = at.get("$ref").and_then(Value::as_str).unwrap_or_default().trim_start_matches('#').to_owned();
        } else {
            place.push_str(&pointer);
        }
        at = child;
    }
}

/// What llguidance says, as a clause after "the schema at '…'".
pub(super) fn explain(reason: &str) -> String {
    if reason.contains("oneOf constraints are not supported") {
        return "has options in oneOf that could match the same text, which is not supported; use anyOf".into();
    }
    match reason.strip_prefix("Unsatisfiable schema: ") {
        Some(why) => format!("matches nothing: {why}"),
        None => format!("cannot be compiled: {reason}"),
    }
}
