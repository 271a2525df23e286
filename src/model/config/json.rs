//! Typed reading of a JSON object's fields; `null` reads as absent, as in transformers.

use serde_json::{Map, Value};

use super::ConfigError;

/// An object and where it is, for messages: `""` or `"rope_scaling."`.
pub(super) struct Fields<'a> {
    map: &'a Map<String, Value>,
    prefix: &'static str,
}

impl<'a> Fields<'a> {
    pub fn new(map: &'a Map<String, Value>, prefix: &'static str) -> Self {
        Self { map, prefix }
    }

    pub fn get(&self, name: &str) -> Option<&'a Value> {
        self.map.get(name).filter(|v| !v.is_null())
    }

    fn typed<T>(
        &self,
        name: &str,
        what: &str,
        read: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, ConfigError> {
        let Some(value) = self.get(name) else { return Ok(None) };
        read(value).map(Some).ok_or_else(|| self.error(name, value, &format!("must be {what}")))
    }

    /// `name is <value>, <what>`, the value cut short.
    pub fn error(&self, name: &str, value: &Value, what: &str) -> ConfigError {
        // serde_json writes some control characters as they are.
        let plain = |c: char| if c.is_control() { '\u{fffd}' } else { c };
        let mut shown: String = value.to_string().chars().take(48).map(plain).collect();
        if value.to_string().chars().nth(48).is_some() {
            shown.push('…');
        }
        ConfigError(format!("{}{name} is {shown}, {what}", self.prefix))
    }

    /// `name is <value>, which is not supported (<only>)`.
    pub fn unsupported(&self, name: &str, value: &Value, only: &str) -> ConfigError {
        self.error(name, value, &format!("which is not supported ({only})"))
    }

    /// Names of the fields that are not `null`.
    pub fn names(&self) -> impl Iterator<Item = &'a str> + use<'a> {
        self.map.iter().filter(|(_, v)| !v.is_null()).map(|(name, _)| name.as_str())
    }

    pub fn missing(&self, name: &str) -> ConfigError {
        ConfigError(format!("{}{name} is missing", self.prefix))
    }

    pub fn size(&self, name: &str) -> Result<Option<usize>, ConfigError> {
        // Some files write whole numbers as 8192.0.
        self.typed(name, "a whole number that is not negative", |v| {
            let whole = v.as_f64().filter(|f| f.fract() == 0.0 && (0.0..9e15).contains(f)).map(|f| f as u64);
            v.as_u64().or(whole).and_then(|n| usize::try_from(n).ok())
        })
    }

    pub fn required_size(&self, name: &str) -> Result<usize, ConfigError> {
        self.size(name)?.ok_or_else(|| self.missing(name))
    }

    /// Rounded once, from the decimal's f64 to f32.
    pub fn float(&self, name: &str) -> Result<Option<f32>, ConfigError> {
        self.typed(name, "a finite number", |v| v.as_f64().map(|f| f as f32).filter(|f| f.is_finite()))
    }

    pub fn required_float(&self, name: &str) -> Result<f32, ConfigError> {
        self.float(name)?.ok_or_else(|| self.missing(name))
    }

    pub fn flag(&self, name: &str) -> Result<Option<bool>, ConfigError> {
        self.typed(name, "true or false", Value::as_bool)
    }

    pub fn text(&self, name: &str) -> Result<Option<&'a str>, ConfigError> {
        self.typed(name, "a string", Value::as_str)
    }

    pub fn object(&self, name: &str, prefix: &'static str) -> Result<Option<Fields<'a>>, ConfigError> {
        Ok(self.typed(name, "an object", Value::as_object)?.map(|map| Fields { map, prefix }))
    }

    pub fn token(&self, name: &str) -> Result<Option<u32>, ConfigError> {
        self.typed(name, "a token id", token)
    }

    /// One id or a list of them.
    pub fn tokens(&self, name: &str) -> Result<Vec<u32>, ConfigError> {
        let read = |v: &Value| match v {
            Value::Array(ids) => ids.iter().map(token).collect(),
            one => token(one).map(|id| vec![id]),
        };
        Ok(self.typed(name, "a token id or a list of them", read)?.unwrap_or_default())
    }
}

fn token(value: &Value) -> Option<u32> {
    value.as_u64().and_then(|n| u32::try_from(n).ok())
}
