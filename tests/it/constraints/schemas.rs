//! Random schemas of bounded texts, and whether a value matches one, worked out without a library.

use serde_json::{Map, Value, json};

/// A small generator for test data (splitmix64).
pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x2545_f491_4f6c_dd1d))
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    pub fn unit(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1 << 24) as f32
    }
}

/// A schema whose values have bounded texts.
pub fn schema(rng: &mut Rng, depth: usize) -> Value {
    match rng.below(if depth < 3 { 9 } else { 6 }) {
        0 => json!({"type": "boolean"}),
        1 => json!({"enum": ["red", 7, null, {"deep": [true]}, "grün \"x\""]}),
        2 => json!({"const": ["a", 1, {"b": null}]}),
        3 => {
            let low = rng.below(200) as i64 - 100;
            json!({"type": "integer", "minimum": low, "maximum": low + rng.below(500) as i64})
        }
        4 => {
            let shortest = rng.below(3);
            json!({"type": "string", "minLength": shortest, "maxLength": shortest + rng.below(6)})
        }
        5 => json!({"type": "string", "pattern": "^[a-f]{2,4}-[0-9]$"}),
        6 => {
            let least = rng.below(2);
            json!({"type": "array", "items": schema(rng, depth + 1), "minItems": least, "maxItems": least + rng.below(3)})
        }
        7 => json!({"anyOf": [schema(rng, depth + 1), {"type": "null"}]}),
        _ => {
            let names = ["a", "b c", "ä", "\"q\""];
            let count = 1 + rng.below(4) as usize;
            let properties: Map<String, Value> =
                names[..count].iter().map(|name| ((*name).to_owned(), schema(rng, depth + 1))).collect();
            let required: Vec<&str> = names[..count].iter().copied().filter(|_| rng.below(2) == 0).collect();
            json!({"type": "object", "properties": properties, "required": required, "additionalProperties": false})
        }
    }
}

/// Whether a value matches a schema that [`schema`] makes.
pub fn matches(schema: &Value, value: &Value) -> bool {
    let within = |n: usize, least: &str, most: &str| {
        let least = schema.get(least).map_or(0, |v| v.as_u64().unwrap() as usize);
        let most = schema.get(most).map_or(usize::MAX, |v| v.as_u64().unwrap() as usize);
        (least..=most).contains(&n)
    };
    if let Some(options) = schema.get("enum") {
        return options.as_array().unwrap().contains(value);
    }
    if let Some(constant) = schema.get("const") {
        return constant == value;
    }
    if let Some(options) = schema.get("anyOf") {
        return options.as_array().unwrap().iter().any(|option| matches(option, value));
    }
    match schema["type"].as_str().unwrap() {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "integer" => value
            .as_i64()
            .is_some_and(|n| (schema["minimum"].as_i64().unwrap()..=schema["maximum"].as_i64().unwrap()).contains(&n)),
        "string" => value.as_str().is_some_and(|s| {
            let pattern = || {
                let (letters, digit) = s.split_once('-').unwrap_or(("", ""));
                (2..=4).contains(&letters.len())
                    && letters.bytes().all(|b| (b'a'..=b'f').contains(&b))
                    && digit.len() == 1
                    && digit.bytes().all(|b| b.is_ascii_digit())
            };
            within(s.chars().count(), "minLength", "maxLength") && (schema.get("pattern").is_none() || pattern())
        }),
        "array" => value.as_array().is_some_and(|items| {
            within(items.len(), "minItems", "maxItems") && items.iter().all(|item| matches(&schema["items"], item))
        }),
        "object" => value.as_object().is_some_and(|map| {
            let required = schema["required"].as_array().unwrap();
            let known = schema["properties"].as_object().unwrap();
            required.iter().all(|name| map.contains_key(name.as_str().unwrap()))
                && map.iter().all(|(name, value)| known.get(name).is_some_and(|schema| matches(schema, value)))
        }),
        other => panic!("{other}"),
    }
}
