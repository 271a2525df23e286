//! The state of a run after a step: all that going on from there needs.
//!
//! It is one safetensors file: weights, and AdamW's two means of each. What else a run depends on is computed from the
//! recipe and the number of steps (data order, dropout, rounding, learning rate). How many ranks train is no part of it:
//! tensors are whole, whoever has which part of them. A matrix that is a stack of
//! checkpoint tensors (q, k and v; gate and up) has the first one's name.

use std::borrow::Cow;
use std::io;
use std::path::{Path, PathBuf};

use candle_core::{DType, Tensor};
use half::bf16;
use serde_json::{Map, Value};

use super::checksum::Xxh64;
use super::model::Parameter;
use super::optimizer::{AdamW, Moments, Settings, format};
use super::recipe::Number;
use super::shards::{ShardError, Shards, weights};
use super::tensors::{self, CHECKSUM, DIGITS, DIGITS_AT, Entry};
use crate::model::weights::LoadError;
use crate::model::weights::mapped::MappedFile;
use crate::model::weights::safetensors::parse;
use crate::ops::quant;

const STEP: &str = "step";
const RECORD: &str = "record";
/// Weights, the mean of gradients, the mean of their squares: PyTorch's names.
const KINDS: [&str; 3] = ["weight", "exp_avg", "exp_avg_sq"];

/// A state cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// It cannot be read, or is no safetensors file.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// It is damaged, or of another model.
    #[error("{}: {what}", path.display())]
    Unusable {
        /// The file.
        path: PathBuf,
        /// The reason.
        what: String,
    },
}

fn name_of(parameter: &Parameter) -> &str {
    parameter.tensors.first().map_or("", |part| &part.name)
}

/// Writes the state after `optimizer`'s last step. `record` says what the run is made of. All other ranks call [`assist`].
///
/// # Errors
/// The file cannot be written, or a rank is lost.
pub fn write(
    path: &Path,
    record: &Map<String, Value>,
    parameters: &[Parameter],
    optimizer: &AdamW,
    shards: &Shards,
) -> io::Result<()> {
    let mut entries = Vec::new();
    for (at, (parameter, moments)) in parameters.iter().zip(optimizer.moments()).enumerate() {
        let weights = format(parameter).ok_or_else(|| io::Error::other("weights are neither F32 nor BF16"))?;
        let means = match moments {
            Moments::F32(..) => Number::F32,
            Moments::Bf16(..) => Number::Bf16,
        };
        for (kind, format) in KINDS.iter().zip([weights, means, means]) {
            let (name, shape) = (format!("{kind}.{}", name_of(parameter)), shards.shape(at, parameter));
            entries.push(Entry { name, format, shape });
        }
    }
    let (step, record) = (optimizer.steps().to_string(), Value::Object(record.clone()).to_string());
    tensors::write(path, &entries, &[(STEP, &step), (RECORD, &record)], |i, out| {
        let (at, kind) = (i / KINDS.len(), i % KINDS.len());
        if shards.are_several() {
            return out.f32(&gathered(i, parameters, optimizer, shards).map_err(io::Error::other)?);
        }
        match (kind, &optimizer.moments()[at]) {
            (0, _) => out.tensor(parameters[at].var.as_tensor()),
            (1, Moments::F32(mean, _)) => out.f32(mean),
            (1, Moments::Bf16(mean, _)) => out.bf16(mean),
            (_, Moments::F32(_, square)) => out.f32(square),
            (_, Moments::Bf16(_, square)) => out.bf16(square),
        }
    })
}

/// Gives the rank that writes the state what it lacks.
///
/// # Errors
/// A rank is lost.
pub fn assist(parameters: &[Parameter], optimizer: &AdamW, shards: &Shards) -> Result<(), ShardError> {
    (0..KINDS.len() * parameters.len()).try_for_each(|i| gathered(i, parameters, optimizer, shards).map(drop))
}

/// Entry `i`, whole, on the ranks that hold the first copy of the model. All ranks call.
fn gathered(i: usize, parameters: &[Parameter], optimizer: &AdamW, shards: &Shards) -> Result<Vec<f32>, ShardError> {
    let (at, kind) = (i / KINDS.len(), i % KINDS.len());
    let wide = |values: &[bf16]| values.iter().map(|v| v.to_f32()).collect();
    let part = match (kind, &optimizer.moments()[at]) {
        (0, _) if !shards.is_of_first_copy() => return Ok(Vec::new()),
        (0, _) => return shards.whole(at, weights(&parameters[at])?),
        (1, Moments::F32(mean, _)) => mean.clone(),
        (1, Moments::Bf16(mean, _)) => wide(mean),
        (_, Moments::F32(_, square)) => square.clone(),
        (_, Moments::Bf16(_, square)) => wide(square),
    };
    shards.whole_of_parts(at, &part)
}

/// A state's file, opened.
#[derive(Debug)]
pub struct State {
    file: MappedFile,
    /// Steps done.
    pub step: u64,
    /// What the run is made of.
    pub record: Map<String, Value>,
}

impl State {
    /// Opens a file and checks it to the last byte.
    ///
    /// # Errors
    /// It is damaged.
    pub fn open(path: &Path) -> Result<Self, StateError> {
        let wrong = |what: &str| StateError::Unusable { path: path.to_owned(), what: what.to_owned() };
        let file = MappedFile::open(path)?;
        parse(&file).map_err(|e| wrong(&e.to_string()))?;
        // The parser has been there.
        let len = file.first_chunk::<8>().map_or(0, |len| u64::from_le_bytes(*len)) as usize;
        let (header, data) = file[8..].split_at(len.min(file.len() - 8));
        let mut zeroed = header.to_vec();
        zeroed.iter_mut().skip(DIGITS_AT).take(DIGITS).for_each(|digit| *digit = b'0');
        let header: Map<String, Value> = serde_json::from_slice(header).map_err(|_| wrong("its header is not JSON"))?;
        let said = |key: &str| header.get("__metadata__").and_then(|m| m.get(key)).and_then(Value::as_str);
        let mut hash = Xxh64::default();
        hash.update(&zeroed);
        hash.update(data);
        if said(CHECKSUM) != Some(&format!("{:016x}", hash.finish())) {
            return Err(wrong("its checksum is not that of its bytes: it is damaged"));
        }
        let step = said(STEP).and_then(|s| s.parse().ok());
        let record = said(RECORD).and_then(|r| serde_json::from_str(r).ok());
        match (step, record) {
            (Some(step), Some(record)) => Ok(Self { file, step, record }),
            _ => Err(wrong("is not the state of a training run")),
        }
    }

    /// Puts the weights into `parameters`, and makes the optimizer as it was; of several ranks, this one's part of both.
    ///
    /// # Errors
    /// Tensors are not those of the parameters.
    pub fn restore(&self, parameters: &[Parameter], settings: Settings, shards: &Shards) -> Result<AdamW, StateError> {
        let wrong = |what: String| StateError::Unusable { path: self.file.path.clone(), what };
        let tensors = parse(&self.file).map_err(|e| wrong(e.to_string()))?;
        let mut moments = Vec::with_capacity(parameters.len());
        for (at, parameter) in parameters.iter().enumerate() {
            let bytes = |kind: &str, dtype: DType| -> Result<Cow<'_, [u8]>, StateError> {
                let name = format!("{kind}.{}", name_of(parameter));
                let stored = if dtype == DType::F32 { quant::DType::F32 } else { quant::DType::BF16 };
                let fits = tensors.get(&name).filter(|t| t.dtype == stored && t.rows * t.cols == shards.count(at));
                let info = fits.ok_or_else(|| wrong(format!("has no tensor {name} of this model")))?;
                Ok(shards.bytes(at, &self.file[info.offset..][..info.size]))
            };
            let [weight, mean, square] = KINDS;
            let shape = parameter.var.dims();
            let stored = bytes(weight, parameter.var.dtype())?;
            let tensor = Tensor::from_raw_buffer(&stored, parameter.var.dtype(), shape, parameter.var.device());
            tensor.and_then(|t| parameter.var.set(&t)).map_err(|e| wrong(e.to_string()))?;
            let part = shards.part(parameter);
            moments.push(match settings.moments {
                Number::F32 => {
                    let of = |bytes: &[u8]| f32s(&bytes[4 * part.start..4 * part.end]);
                    Moments::F32(of(&bytes(mean, DType::F32)?), of(&bytes(square, DType::F32)?))
                }
                Number::Bf16 => {
                    let of = |bytes: &[u8]| bf16s(&bytes[2 * part.start..2 * part.end]);
                    Moments::Bf16(of(&bytes(mean, DType::BF16)?), of(&bytes(square, DType::BF16)?))
                }
            });
        }
        match tensors.len() == KINDS.len() * parameters.len() {
            true => Ok(AdamW::resumed(settings, shards.owner(), self.step, moments)),
            false => Err(wrong("has tensors that this model has not".to_owned())),
        }
    }
}

fn f32s(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
}

fn bf16s(bytes: &[u8]) -> Vec<bf16> {
    bytes.chunks_exact(2).map(|b| bf16::from_le_bytes([b[0], b[1]])).collect()
}
