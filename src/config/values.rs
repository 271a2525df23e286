//! Types of single options.

use std::fmt;
use std::str::FromStr;

use clap::ValueEnum;
use serde::{Deserialize, Deserializer};

/// A number of bytes, written `123`, `512MiB`, `2GiB`, `1.5GB`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(pub u64);

impl FromStr for ByteSize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let (number, unit) = text.split_at(digits);
        let unit: u64 = match unit.trim().to_ascii_lowercase().as_str() {
            "" | "b" => 1,
            "k" | "kib" => 1 << 10,
            "m" | "mib" => 1 << 20,
            "g" | "gib" => 1 << 30,
            "t" | "tib" => 1 << 40,
            "kb" => 1_000,
            "mb" => 1_000_000,
            "gb" => 1_000_000_000,
            "tb" => 1_000_000_000_000,
            _ => return Err(format!("'{text}' is not a size such as 512MiB or 2GiB")),
        };
        let number: f64 = number.parse().map_err(|_| format!("'{text}' is not a size such as 512MiB or 2GiB"))?;
        let bytes = number * unit as f64;
        if bytes > i64::MAX as f64 {
            return Err(format!("'{text}' is too large"));
        }
        Ok(Self(bytes as u64))
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (unit, shift) in [("GiB", 30), ("MiB", 20), ("KiB", 10)] {
            if self.0 >= 1 << shift && self.0.is_multiple_of(1 << shift) {
                return write!(f, "{}{unit}", self.0 >> shift);
            }
        }
        write!(f, "{}", self.0)
    }
}

impl<'de> Deserialize<'de> for ByteSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Text {
            Number(u64),
            String(String),
        }
        match Text::deserialize(deserializer)? {
            Text::Number(n) => Ok(Self(n)),
            Text::String(s) => s.parse().map_err(serde::de::Error::custom),
        }
    }
}

/// Where the model runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Device {
    /// The best there is.
    Auto,
    /// CPU.
    Cpu,
    /// NVIDIA GPU.
    Cuda,
}

/// Format of the weights in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Deserialize)]
pub enum Dtype {
    /// As stored, or the nearest format the device computes in.
    #[value(name = "auto")]
    #[serde(rename = "auto")]
    Auto,
    /// 32-bit floats.
    #[value(name = "f32")]
    #[serde(rename = "f32")]
    F32,
    /// bfloat16.
    #[value(name = "bf16")]
    #[serde(rename = "bf16")]
    Bf16,
    /// 8-bit integers, one scale for 32 values.
    #[value(name = "q8_0")]
    #[serde(rename = "q8_0")]
    Q8_0,
    /// 4-bit integers, one scale for 32 values.
    #[value(name = "q4_0")]
    #[serde(rename = "q4_0")]
    Q4_0,
}

/// Type of the keys and values in the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KvCacheDtype {
    /// F32 with F32 weights, else BF16.
    Auto,
    /// 32-bit floats.
    F32,
    /// bfloat16.
    Bf16,
    /// 8-bit integers, one scale for each token and head.
    Int8,
}

/// How the model writes calls of functions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Deserialize)]
pub enum ToolCallParser {
    /// As its chat template says.
    #[value(name = "auto")]
    #[serde(rename = "auto")]
    Auto,
    /// `<tool_call>` tags around JSON.
    #[value(name = "hermes")]
    #[serde(rename = "hermes")]
    Hermes,
    /// JSON alone, as LLaMA 3.1 and 3.2 have it.
    #[value(name = "llama3_json")]
    #[serde(rename = "llama3_json")]
    Llama3Json,
}
