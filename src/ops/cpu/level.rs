//! Which instruction set the kernels use, chosen at run time.

use std::fmt;
use std::str::FromStr;

/// An instruction-set level, lowest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Plain Rust.
    Scalar,
    /// AVX2, FMA, F16C.
    Avx2,
    /// AVX-512 with VNNI.
    Avx512,
    /// AVX-512 with VNNI and BF16.
    Avx512Bf16,
}

impl Level {
    /// The highest level of this machine.
    pub fn best() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            let avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c");
            let avx512 = avx2
                && is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vl")
                && is_x86_feature_detected!("avx512vnni");
            match (avx2, avx512) {
                (_, true) if is_x86_feature_detected!("avx512bf16") => Self::Avx512Bf16,
                (_, true) => Self::Avx512,
                (true, false) => Self::Avx2,
                (false, false) => Self::Scalar,
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        Self::Scalar
    }

    /// The levels of this machine, lowest first.
    pub fn available() -> impl Iterator<Item = Self> {
        [Self::Scalar, Self::Avx2, Self::Avx512, Self::Avx512Bf16].into_iter().filter(|l| *l <= Self::best())
    }

    /// The machine's best level, or the one `LIMA_CPU_LEVEL` names.
    ///
    /// # Errors
    /// The variable names no level, or one that this machine lacks.
    pub fn from_env() -> Result<Self, String> {
        match std::env::var("LIMA_CPU_LEVEL") {
            Err(_) => Ok(Self::best()),
            Ok(name) => {
                let level: Self = name.parse()?;
                if level > Self::best() {
                    return Err(format!("LIMA_CPU_LEVEL={name}: this machine has at most {}", Self::best()));
                }
                Ok(level)
            }
        }
    }
}

impl FromStr for Level {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "scalar" => Ok(Self::Scalar),
            "avx2" => Ok(Self::Avx2),
            "avx512" => Ok(Self::Avx512),
            "avx512bf16" => Ok(Self::Avx512Bf16),
            _ => Err(format!("LIMA_CPU_LEVEL={name}: expected scalar, avx2, avx512 or avx512bf16")),
        }
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Scalar => "scalar",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
            Self::Avx512Bf16 => "avx512bf16",
        })
    }
}
