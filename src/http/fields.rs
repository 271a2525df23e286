//! Reads a JSON object field by field. Every refusal names the field by its path; what is left
//! over at the end is an unknown parameter. `null` counts as absent.

use std::fmt;

use serde::de::{self, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use super::error::{ApiError, quote};

/// Parses a body. Nesting is limited by serde_json's recursion limit (128); a key given twice, a
/// lone surrogate or a number out of range is an error.
pub fn parse(bytes: &[u8]) -> Result<Value, ApiError> {
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let describe = |e: serde_json::Error| ApiError::Json(quote(&e.to_string()));
    let value = UniqueKeys.deserialize(&mut deserializer).map_err(describe)?;
    deserializer.end().map_err(describe)?;
    Ok(value)
}

/// Builds a [`Value`], refusing duplicate keys (serde_json alone keeps the last one).
struct UniqueKeys;

impl<'de> DeserializeSeed<'de> for UniqueKeys {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for UniqueKeys {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, v: bool) -> Result<Value, E> {
        Ok(Value::Bool(v))
    }

    fn visit_i64<E>(self, v: i64) -> Result<Value, E> {
        Ok(Value::Number(v.into()))
    }

    fn visit_u64<E>(self, v: u64) -> Result<Value, E> {
        Ok(Value::Number(v.into()))
    }

    fn visit_f64<E: de::Error>(self, v: f64) -> Result<Value, E> {
        Number::from_f64(v).map(Value::Number).ok_or_else(|| E::custom("number out of range"))
    }

    fn visit_str<E>(self, v: &str) -> Result<Value, E> {
        Ok(Value::String(v.to_owned()))
    }

    fn visit_string<E>(self, v: String) -> Result<Value, E> {
        Ok(Value::String(v))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut values = Vec::new();
        while let Some(value) = seq.next_element_seed(UniqueKeys)? {
            values.push(value);
        }
        Ok(Value::Array(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(key) = access.next_key::<String>()? {
            let value = access.next_value_seed(UniqueKeys)?;
            if map.contains_key(&key) {
                return Err(de::Error::custom(format_args!("duplicate key '{}'", quote(&key))));
            }
            map.insert(key, value);
        }
        Ok(Value::Object(map))
    }
}

/// The JSON type of a value, with its article.
pub fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(n) if n.is_f64() => "a decimal",
        Value::Number(_) => "an integer",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

/// The error for a value of the wrong type.
pub fn wrong_type(param: impl Into<String>, expected: &'static str, got: &Value) -> ApiError {
    ApiError::Type { param: param.into(), expected, got: type_name(got) }
}

/// An object being taken apart.
#[derive(Debug)]
pub struct Fields {
    path: String,
    map: Map<String, Value>,
}

impl Fields {
    /// Takes `value` apart; `path` is `""` at the top.
    pub fn new(path: impl Into<String>, value: Value) -> Result<Self, ApiError> {
        let path = path.into();
        #[cfg(test)]
        recorded::begin(&path);
        match value {
            Value::Object(map) => Ok(Self { path, map }),
            other if path.is_empty() => {
                Err(ApiError::Json(format!("expected an object, but got {} instead", type_name(&other))))
            }
            other => Err(wrong_type(path, "an object", &other)),
        }
    }

    /// The path of a field, such as `messages[2].content`.
    pub fn param(&self, name: &str) -> String {
        if self.path.is_empty() { quote(name) } else { format!("{}.{}", self.path, quote(name)) }
    }

    /// Takes a field out; `null` is `None`.
    pub fn take(&mut self, name: &str) -> Option<Value> {
        #[cfg(test)]
        recorded::note(&self.path, name);
        self.map.shift_remove(name).filter(|v| !v.is_null())
    }

    /// Takes a field that must be there.
    pub fn require(&mut self, name: &str) -> Result<Value, ApiError> {
        #[cfg(test)]
        recorded::note(&self.path, name);
        match self.map.shift_remove(name) {
            Some(value) => Ok(value),
            None => Err(ApiError::Missing(self.param(name))),
        }
    }

    /// A string of any length.
    pub fn string(&mut self, name: &str) -> Result<Option<String>, ApiError> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::String(s)) => Ok(Some(s)),
            Some(other) => Err(wrong_type(self.param(name), "a string", &other)),
        }
    }

    /// A string of at most `max` characters.
    pub fn short_string(&mut self, name: &str, max: usize) -> Result<Option<String>, ApiError> {
        let value = self.string(name)?;
        if let Some(s) = &value {
            check_length(&self.param(name), s, max)?;
        }
        Ok(value)
    }

    /// A boolean.
    pub fn bool(&mut self, name: &str) -> Result<Option<bool>, ApiError> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Bool(b)) => Ok(Some(b)),
            Some(other) => Err(wrong_type(self.param(name), "a boolean", &other)),
        }
    }

    /// A number within `min..=max`.
    pub fn number(&mut self, name: &str, min: f64, max: f64) -> Result<Option<f32>, ApiError> {
        let Some(value) = self.take(name) else { return Ok(None) };
        number(&self.param(name), &value, min, max).map(Some)
    }

    /// An integer within `min..=max`.
    pub fn integer(&mut self, name: &str, min: i64, max: i64) -> Result<Option<i64>, ApiError> {
        let Some(value) = self.take(name) else { return Ok(None) };
        integer(&self.param(name), &value, min, max).map(Some)
    }

    /// An array.
    pub fn array(&mut self, name: &str) -> Result<Option<Vec<Value>>, ApiError> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Array(values)) => Ok(Some(values)),
            Some(other) => Err(wrong_type(self.param(name), "an array", &other)),
        }
    }

    /// An object.
    pub fn object(&mut self, name: &str) -> Result<Option<Fields>, ApiError> {
        let Some(value) = self.take(name) else { return Ok(None) };
        Fields::new(self.param(name), value).map(Some)
    }

    /// What is left, as it is.
    pub fn into_map(self) -> Map<String, Value> {
        self.map
    }

    /// Refuses the first field nobody took.
    pub fn finish(self) -> Result<(), ApiError> {
        match self.map.keys().next() {
            Some(name) => Err(ApiError::Unknown(self.param(name))),
            None => Ok(()),
        }
    }
}

/// A number within `min..=max`.
pub fn number(param: &str, value: &Value, min: f64, max: f64) -> Result<f32, ApiError> {
    let Some(x) = value.as_f64() else { return Err(wrong_type(param, "a number", value)) };
    if x > max {
        return Err(ApiError::value(
            param,
            "decimal_above_max_value",
            format!("expected a value <= {max}, but got {x}"),
        ));
    }
    if x < min {
        return Err(ApiError::value(
            param,
            "decimal_below_min_value",
            format!("expected a value >= {min}, but got {x}"),
        ));
    }
    Ok(x as f32)
}

/// An integer within `min..=max`; `1.0` is one too, `1.5` is not.
pub fn integer(param: &str, value: &Value, min: i64, max: i64) -> Result<i64, ApiError> {
    let above = |x: &dyn fmt::Display| {
        ApiError::value(param, "integer_above_max_value", format!("expected a value <= {max}, but got {x}"))
    };
    let below = |x: &dyn fmt::Display| {
        ApiError::value(param, "integer_below_min_value", format!("expected a value >= {min}, but got {x}"))
    };
    let x = match value {
        Value::Number(n) => match (n.as_i64(), n.as_f64()) {
            (Some(x), _) => x,
            (None, Some(x)) if x.fract() != 0.0 => return Err(wrong_type(param, "an integer", value)),
            // Beyond 2^63 either way, or a whole number written as a decimal.
            (None, Some(x)) if x >= i64::MAX as f64 => return Err(above(&x)),
            (None, Some(x)) if x <= i64::MIN as f64 => return Err(below(&x)),
            (None, Some(x)) => x as i64,
            (None, None) => return Err(wrong_type(param, "an integer", value)),
        },
        other => return Err(wrong_type(param, "an integer", other)),
    };
    match x {
        x if x > max => Err(above(&x)),
        x if x < min => Err(below(&x)),
        x => Ok(x),
    }
}

/// Refuses a string of more than `max` characters.
pub fn check_length(param: &str, s: &str, max: usize) -> Result<(), ApiError> {
    if s.len() > max && s.chars().count() > max {
        let message = format!("expected a string of at most {max} characters");
        return Err(ApiError::value(param, "string_above_max_length", message));
    }
    Ok(())
}

/// What this thread takes of bodies, for the test that compares it with their description.
#[cfg(test)]
pub mod recorded {
    use std::cell::RefCell;
    use std::collections::BTreeSet;

    thread_local! {
        /// A set for each body; a request that is made into another's is two.
        static BODIES: RefCell<Vec<BTreeSet<String>>> = const { RefCell::new(Vec::new()) };
    }

    /// A body is begun, if it is not one of its parts.
    pub fn begin(path: &str) {
        if path.is_empty() {
            BODIES.with_borrow_mut(|bodies| bodies.push(BTreeSet::new()));
        }
    }

    /// A field is taken.
    pub fn note(path: &str, name: &str) {
        BODIES.with_borrow_mut(|bodies| {
            if let Some(fields) = bodies.last_mut().filter(|_| path.is_empty()) {
                fields.insert(name.to_owned());
            }
        });
    }

    /// The fields that `read` takes of the first body it reads, whether they are there or not.
    pub fn asked(read: impl FnOnce()) -> BTreeSet<String> {
        BODIES.with_borrow_mut(Vec::clear);
        read();
        BODIES.with_borrow_mut(|bodies| bodies.remove(0))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn hostile_json_is_refused() {
        for bad in [
            r#"{"a":1,"a":2}"#.to_string(),
            r#"{"a":{"b":1,"b":1}}"#.into(),
            "[".repeat(10_000),
            "{\"a\":".repeat(10_000),
            r#"{"a":NaN}"#.into(),
            r#"{"a":1e400}"#.into(),
            r#"{"a":"\ud800"}"#.into(),
            r#"{"a":1} x"#.into(),
            "".into(),
        ] {
            assert!(matches!(parse(bad.as_bytes()), Err(ApiError::Json(_))), "{:.40}", bad);
        }
        assert!(parse(b"{\"a\":\"\xff\"}").is_err());
    }

    #[test]
    fn integers() {
        let at = |text: &str| integer("p", &parse(text.as_bytes()).unwrap(), 0, 10).map_err(|e| e.code());
        assert_eq!(at("3"), Ok(3));
        assert_eq!(at("3.0"), Ok(3));
        assert_eq!(at("3.5"), Err("invalid_type"));
        assert_eq!(at("11"), Err("integer_above_max_value"));
        assert_eq!(at("-1"), Err("integer_below_min_value"));
        assert_eq!(at("99999999999999999999999"), Err("integer_above_max_value"));
        assert_eq!(at("-99999999999999999999999"), Err("integer_below_min_value"));
        assert_eq!(at("18446744073709551615"), Err("integer_above_max_value"));
        assert_eq!(at("true"), Err("invalid_type"));
    }
}
