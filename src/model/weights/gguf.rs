//! GGUF, versions 2 and 3: a bounds-checked parser over bytes.
//!
//! Layout, little-endian: magic, version (u32), tensor count, key count (u64), keys and values,
//! tensor infos, padding to the alignment, tensor data. Every count is compared with the bytes that
//! are left before anything is allocated for it.

mod reader;
mod value;

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use reader::Reader;
pub use value::{Array, Value};

use super::error::{FormatError, shown};
use crate::ops::quant::DType;

/// First bytes of every GGUF file.
pub const MAGIC: &[u8; 4] = b"GGUF";

/// Alignment of tensor data where the file does not say.
const DEFAULT_ALIGNMENT: u64 = 32;

/// A parsed header, borrowing from the file's bytes.
#[derive(Debug)]
pub struct Gguf<'a> {
    metadata: BTreeMap<&'a str, Value<'a>>,
    tensors: BTreeMap<&'a str, TensorInfo>,
}

/// Where a tensor is. One or two dimensions; a row is contiguous.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// Number format.
    pub dtype: DType,
    /// 1 for one-dimensional tensors.
    pub rows: usize,
    /// Values in a row.
    pub cols: usize,
    /// First byte, from the start of the file. `offset + size` is inside the file.
    pub offset: usize,
    /// Bytes.
    pub size: usize,
}

fn bad<T>(what: impl Into<String>) -> Result<T, FormatError> {
    Err(FormatError(what.into()))
}

impl<'a> Gguf<'a> {
    /// Parses and checks the whole header, and that every tensor lies inside `bytes` without
    /// overlapping another.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, FormatError> {
        let mut r = Reader::new(bytes);
        if r.bytes(4).ok() != Some(MAGIC) {
            return bad("is not a GGUF file (it does not begin with \"GGUF\")");
        }
        match r.u32()? {
            2 | 3 => {}
            1 => return bad("is GGUF version 1, which is not supported (only 2 and 3)"),
            v if v.swap_bytes() <= 3 => return bad("is a big-endian GGUF file, which is not supported"),
            v => return bad(format!("is GGUF version {v}, which is not supported (only 2 and 3)")),
        }
        let (num_tensors, num_keys) = (r.u64()?, r.u64()?);
        // A key takes at least its length, type and one byte of value; an info its fixed fields.
        r.check_count(num_keys, 8 + 4 + 1, "metadata keys")?;
        r.check_count(num_tensors, 8 + 4 + 8 + 4 + 8, "tensors")?;

        let mut metadata = BTreeMap::new();
        for _ in 0..num_keys {
            let key = r.string("a metadata key")?;
            let value = Value::read(&mut r).map_err(|e| FormatError(format!("metadata {}: {e}", shown(key))))?;
            if metadata.insert(key, value).is_some() {
                return bad(format!("metadata {} occurs twice", shown(key)));
            }
        }
        let alignment = match metadata.get("general.alignment") {
            None => DEFAULT_ALIGNMENT,
            Some(value) => match value.as_u64() {
                Some(a) if a.is_power_of_two() && (8..=1 << 20).contains(&a) => a,
                _ => return bad("general.alignment must be a power of two from 8 to 1048576"),
            },
        };
        let mut tensors = BTreeMap::new();
        for _ in 0..num_tensors {
            let name = r.string("a tensor name")?;
            let info = read_info(&mut r, alignment).map_err(|e| FormatError(format!("tensor {} {e}", shown(name))))?;
            match tensors.entry(name) {
                Entry::Vacant(slot) => slot.insert(info),
                Entry::Occupied(_) => return bad(format!("tensor {} occurs twice", shown(name))),
            };
        }
        place(&mut tensors, r.position(), alignment as usize, bytes.len())?;
        Ok(Self { metadata, tensors })
    }

    /// A metadata value.
    pub fn value(&self, key: &str) -> Option<&Value<'a>> {
        self.metadata.get(key)
    }

    /// All metadata, by key.
    pub fn values(&self) -> impl Iterator<Item = (&'a str, &Value<'a>)> {
        self.metadata.iter().map(|(key, value)| (*key, value))
    }

    /// A string value; `None` if absent or of another type.
    pub fn str(&self, key: &str) -> Option<&'a str> {
        match self.value(key) {
            Some(Value::Str(s)) => Some(s),
            _ => None,
        }
    }

    /// An array value; `None` if absent or of another type.
    pub fn array(&self, key: &str) -> Option<&Array<'a>> {
        match self.value(key) {
            Some(Value::Array(a)) => Some(a),
            _ => None,
        }
    }

    /// A tensor by its GGUF name.
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.tensors.get(name)
    }

    /// All tensors, by name.
    pub fn tensors(&self) -> impl Iterator<Item = (&'a str, &TensorInfo)> {
        self.tensors.iter().map(|(name, info)| (*name, info))
    }
}

/// One tensor info; its offset is still relative to the data section.
fn read_info(r: &mut Reader<'_>, alignment: u64) -> Result<TensorInfo, FormatError> {
    let cut = |e: FormatError| FormatError(format!("is described only in part: {e}"));
    let num_dims = r.u32().map_err(cut)?;
    if !(1..=4).contains(&num_dims) {
        return bad(format!("has {num_dims} dimensions"));
    }
    let mut dims = [1usize; 4];
    for dim in &mut dims[..num_dims as usize] {
        let n = r.u64().map_err(cut)?;
        *dim = match usize::try_from(n) {
            Ok(n) if n > 0 => n,
            _ => return bad(format!("has a dimension of {n}")),
        };
    }
    let [cols, rows, 1, 1] = dims else {
        return bad(format!("has {num_dims} dimensions, which is not supported (only 1 and 2)"));
    };
    let code = r.u32().map_err(cut)?;
    let Some(dtype) = dtype(code) else {
        return bad(format!("has type {}, which is not supported", type_name(code)));
    };
    let offset = r.u64().map_err(cut)?;
    if !offset.is_multiple_of(alignment) {
        return bad(format!("begins at {offset}, which is not a multiple of the alignment {alignment}"));
    }
    let Some(row_bytes) = dtype.row_bytes(cols) else {
        return bad(format!("has rows of {cols} values, not whole {dtype} blocks"));
    };
    match (row_bytes.checked_mul(rows), usize::try_from(offset)) {
        (Some(size), Ok(offset)) => Ok(TensorInfo { dtype, rows, cols, offset, size }),
        _ => bad(format!("of {rows} x {cols} is too large")),
    }
}

/// Makes offsets absolute; checks that tensors are inside the file and apart from each other.
fn place(
    tensors: &mut BTreeMap<&str, TensorInfo>,
    header_end: usize,
    alignment: usize,
    file_len: usize,
) -> Result<(), FormatError> {
    let start = header_end.checked_next_multiple_of(alignment).unwrap_or(usize::MAX);
    let mut spans = Vec::with_capacity(tensors.len());
    for (name, info) in tensors.iter_mut() {
        let begin = start.checked_add(info.offset);
        match begin.and_then(|b| Some((b, b.checked_add(info.size)?))) {
            Some((begin, end)) if end <= file_len => {
                info.offset = begin;
                spans.push((begin, end, *name));
            }
            _ => {
                return bad(format!(
                    "tensor {} ends beyond the end of the file ({file_len} bytes): the file is truncated or damaged",
                    shown(name)
                ));
            }
        }
    }
    spans.sort_unstable();
    match spans.windows(2).find(|pair| pair[0].1 > pair[1].0) {
        Some(pair) => bad(format!("tensors {} and {} overlap", shown(pair[0].2), shown(pair[1].2))),
        None => Ok(()),
    }
}

/// ggml's numbering of the formats that can be read.
fn dtype(code: u32) -> Option<DType> {
    Some(match code {
        0 => DType::F32,
        1 => DType::F16,
        2 => DType::Q4_0,
        3 => DType::Q4_1,
        6 => DType::Q5_0,
        7 => DType::Q5_1,
        8 => DType::Q8_0,
        12 => DType::Q4_K,
        13 => DType::Q5_K,
        14 => DType::Q6_K,
        30 => DType::BF16,
        _ => return None,
    })
}

/// The name of a format that cannot be read.
fn type_name(code: u32) -> String {
    let name = match code {
        9 => "Q8_1",
        10 => "Q2_K",
        11 => "Q3_K",
        15 => "Q8_K",
        16 => "IQ2_XXS",
        17 => "IQ2_XS",
        18 => "IQ3_XXS",
        19 => "IQ1_S",
        20 => "IQ4_NL",
        21 => "IQ3_S",
        22 => "IQ2_S",
        23 => "IQ4_XS",
        24 => "I8",
        25 => "I16",
        26 => "I32",
        27 => "I64",
        28 => "F64",
        29 => "IQ1_M",
        34 => "TQ1_0",
        35 => "TQ2_0",
        39 => "MXFP4",
        _ => return format!("number {code}"),
    };
    name.to_owned()
}
