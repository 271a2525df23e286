//! Reading an adapter's folder.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use super::peft::PeftConfig;
use super::{Pair, Projection};
use crate::model::config::LlamaConfig;
use crate::model::weights::error::{brief, shown};
use crate::model::weights::gguf::TensorInfo;
use crate::model::weights::safetensors::parse as parse_safetensors;
use crate::model::weights::{LoadError, Slice, TensorView};

const CONFIG: &str = "adapter_config.json";
const WEIGHTS: &str = "adapter_model.safetensors";
/// Largest `adapter_config.json`, and room for the header of the weights.
const MAX_JSON: u64 = 1 << 20;

/// An adapter, checked against the model it is for.
#[derive(Clone, Debug, PartialEq)]
pub struct Adapter {
    pairs: BTreeMap<(usize, Projection), Pair>,
}

impl Adapter {
    /// Reads a folder. The files are read, not mapped: they may be replaced while the server runs.
    ///
    /// # Errors
    /// A field that is not supported, a rank above `max_rank`, a tensor that is missing, left over, misshapen
    /// or not finite: one sentence that names the file and the field or tensor.
    pub fn open(dir: &Path, config: &LlamaConfig, max_rank: usize) -> Result<Self, LoadError> {
        let path = dir.join(CONFIG);
        let bytes = read(&path, MAX_JSON)?;
        let map = serde_json::from_slice(&bytes)
            .map_err(|e| LoadError::file(&path, format!("is not a JSON object ({})", brief(&e))))?;
        let peft = PeftConfig::parse(map).map_err(|e| LoadError::file(&path, e))?;
        let ranks = peft.rank_pattern.iter().map(|(key, rank)| (format!("rank_pattern.{}", shown(key)), *rank));
        for (field, rank) in [("r".to_owned(), peft.rank)].into_iter().chain(ranks) {
            if rank > max_rank {
                return Err(LoadError::file(&path, format!("{field} is {rank}, above --max-lora-rank {max_rank}")));
            }
        }

        let path = dir.join(WEIGHTS);
        if !path.exists() && dir.join("adapter_model.bin").exists() {
            return Err(LoadError::file(
                dir,
                format!(
                    "has no {WEIGHTS}; its pickled weights are not read, because unpickling runs code from the file: \
                     convert them to safetensors"
                ),
            ));
        }
        let most: usize = Projection::ALL.iter().map(|p| p.shape(config)).map(|(out, cols)| out + cols).sum();
        let most = (most * 4 * config.num_layers) as u64 * max_rank as u64;
        let bytes = read(&path, most + MAX_JSON)?;
        let tensors = parse_safetensors(&bytes).map_err(|e| LoadError::file(&path, e))?;
        let pairs = Reader { path: &path, bytes: &bytes, tensors }.pairs(&peft, config)?;
        Ok(Self { pairs })
    }

    /// What is added to a projection.
    pub fn pair(&self, layer: usize, projection: Projection) -> Option<&Pair> {
        self.pairs.get(&(layer, projection))
    }

    /// The largest rank.
    pub fn rank(&self) -> usize {
        self.pairs.values().map(|p| p.rank).max().unwrap_or(0)
    }

    /// A tensor-parallel rank's part: the columns of A that read its inputs, the rows of B that make its outputs. `config` is
    /// the whole model's shape.
    pub fn slice(&self, slice: &Slice, config: &LlamaConfig) -> Self {
        let cut = |(&(layer, projection), pair): (&(usize, Projection), &Pair)| {
            let (out, inputs) = projection.shape(config);
            let rows = slice.outputs(projection).unwrap_or(0..out);
            let cols = slice.inputs(projection).unwrap_or(0..inputs);
            let a = pair.a.chunks_exact(inputs).flat_map(|row| row[cols.clone()].iter().copied()).collect();
            let b = pair.b[rows.start * pair.rank..rows.end * pair.rank].to_vec();
            ((layer, projection), Pair { a, b, ..*pair })
        };
        Self { pairs: self.pairs.iter().map(cut).collect() }
    }
}

/// A file's content, if it is a file of at most so many bytes.
fn read(path: &Path, most: u64) -> Result<Vec<u8>, LoadError> {
    let about = fs::metadata(path).map_err(LoadError::io(path))?;
    if !about.is_file() {
        return Err(LoadError::file(path, "is not a file"));
    }
    if about.len() > most {
        let what = format!("has {} bytes, more than the {most} that such a file can need", about.len());
        return Err(LoadError::file(path, what));
    }
    fs::read(path).map_err(LoadError::io(path))
}

/// The weights' file; tensors leave `tensors` as they are read.
struct Reader<'a> {
    path: &'a Path,
    bytes: &'a [u8],
    tensors: BTreeMap<String, TensorInfo>,
}

impl Reader<'_> {
    fn pairs(
        mut self,
        peft: &PeftConfig,
        config: &LlamaConfig,
    ) -> Result<BTreeMap<(usize, Projection), Pair>, LoadError> {
        let mut pairs = BTreeMap::new();
        for layer in 0..config.num_layers {
            for projection in Projection::ALL {
                let module = format!("model.layers.{layer}.{}", projection.name());
                let name = |matrix: &str| format!("base_model.model.{module}.lora_{matrix}.weight");
                let (a, b) = (name("A"), name("B"));
                let in_file = || self.tensors.contains_key(&a) || self.tensors.contains_key(&b);
                if !peft.targets.contains(layer, &module).unwrap_or_else(in_file) {
                    continue;
                }
                let (out, cols) = projection.shape(config);
                let rank = peft.rank_of(&module);
                let a = self.take(&a, (rank, cols))?;
                let b = self.take(&b, (out, rank))?;
                pairs.insert((layer, projection), Pair { rank, a, b, scale: peft.scale_of(&module) });
            }
        }
        let left: Vec<String> = self.tensors.keys().map(|name| shown(name)).collect();
        match left.len() {
            0 if pairs.is_empty() => {
                Err(LoadError::file(self.path, "adapts no module of this model: see target_modules"))
            }
            0 => Ok(pairs),
            n => {
                let first = left[..n.min(3)].join(", ");
                let more = if n > 3 { format!(" and {} more", n - 3) } else { String::new() };
                let what = "not part of a LoRA adapter of this model with these target_modules";
                Err(LoadError::file(self.path, format!("tensors {first}{more}: {what}")))
            }
        }
    }

    /// A tensor's numbers, all finite.
    fn take(&mut self, name: &str, (rows, cols): (usize, usize)) -> Result<Vec<f32>, LoadError> {
        let error = |what: String| LoadError::file(self.path, format!("tensor {} {what}", shown(name)));
        let Some(info) = self.tensors.remove(name) else { return Err(error("is missing".into())) };
        if (info.rows, info.cols) != (rows, cols) {
            return Err(error(format!("is {} x {}, the model and r need {rows} x {cols}", info.rows, info.cols)));
        }
        let view = TensorView::new(info.dtype, rows, cols, &self.bytes[info.offset..][..info.size], None);
        let values = view.expect("the parser has checked its size").to_f32();
        match values.iter().position(|x| !x.is_finite()) {
            None => Ok(values),
            Some(i) => Err(error(format!("has the value {} in row {}, column {}", values[i], i / cols, i % cols))),
        }
    }
}
