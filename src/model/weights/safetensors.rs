//! safetensors: a bounds-checked parser over bytes.
//!
//! Layout: header length (u64, little-endian), a JSON object of tensors, tensor data. The tensors
//! must cover the data exactly, without gaps or overlaps, as the format demands.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::error::{FormatError, brief, shown};
use super::json::UniqueMap;
use crate::ops::quant::DType;

/// Where a tensor is. One or two dimensions; a row is contiguous.
pub use super::gguf::TensorInfo;

/// The format's limit.
const MAX_HEADER: u64 = 100_000_000;

#[derive(Deserialize)]
struct Header {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

fn bad<T>(what: impl Into<String>) -> Result<T, FormatError> {
    Err(FormatError(what.into()))
}

/// Parses and checks the header: every tensor by name, offsets from the start of `bytes`.
pub fn parse(bytes: &[u8]) -> Result<BTreeMap<String, TensorInfo>, FormatError> {
    let Some((len, rest)) = bytes.split_first_chunk::<8>() else {
        return bad("is shorter than a safetensors header: it is truncated");
    };
    let len = u64::from_le_bytes(*len);
    if len > MAX_HEADER {
        return bad(format!("says its header has {len} bytes: it is not a safetensors file, or damaged"));
    }
    let Some(header) = rest.get(..len as usize) else {
        return bad(format!("ends inside its header of {len} bytes: it is truncated"));
    };
    let data_start = 8 + len as usize;
    let UniqueMap(header) = match serde_json::from_slice::<UniqueMap<&RawValue>>(header) {
        Ok(header) => header,
        Err(e) => return bad(format!("header is not a JSON object of tensors ({})", brief(&e))),
    };
    let mut tensors = BTreeMap::new();
    let mut spans = Vec::with_capacity(header.len());
    for (name, value) in header {
        if name == "__metadata__" {
            continue;
        }
        let in_tensor = |e: FormatError| FormatError(format!("tensor {} {e}", shown(&name)));
        let entry = serde_json::from_str::<Header>(value.get())
            .map_err(|e| FormatError(format!("tensor {} has a malformed entry ({})", shown(&name), brief(&e))))?;
        let info = info(&entry, bytes.len() - data_start).map_err(in_tensor)?;
        spans.push((info.offset, info.size, shown(&name)));
        tensors.insert(name, TensorInfo { offset: data_start + info.offset, ..info });
    }
    spans.sort_unstable();
    let (mut end, mut last) = (0, String::new());
    for (offset, size, name) in spans {
        if offset < end {
            return bad(format!("tensors {last} and {name} overlap"));
        }
        if offset > end {
            return bad(format!("{} bytes before tensor {name} belong to no tensor", offset - end));
        }
        (end, last) = (end + size, name);
    }
    if data_start + end != bytes.len() {
        return bad(format!("has {} bytes, its tensors end at {}", bytes.len(), data_start + end));
    }
    Ok(tensors)
}

/// One tensor; its offset is still relative to the data section of `data_len` bytes.
fn info(entry: &Header, data_len: usize) -> Result<TensorInfo, FormatError> {
    let dtype = match entry.dtype.as_str() {
        "F32" => DType::F32,
        "F16" => DType::F16,
        "BF16" => DType::BF16,
        other => return bad(format!("has dtype {}, which is not supported (only F32, F16, BF16)", shown(other))),
    };
    let (rows, cols) = match entry.shape[..] {
        [cols] => (1, cols),
        [rows, cols] => (rows, cols),
        _ => return bad(format!("has {} dimensions, which is not supported (only 1 and 2)", entry.shape.len())),
    };
    let (Ok(rows), Ok(cols)) = (usize::try_from(rows), usize::try_from(cols)) else {
        return bad("is too large");
    };
    if rows == 0 || cols == 0 {
        return bad("is empty");
    }
    let size = dtype.row_bytes(cols).and_then(|row| row.checked_mul(rows));
    let (begin, end) = entry.data_offsets;
    let span = end.checked_sub(begin).and_then(|n| usize::try_from(n).ok());
    match (size, span) {
        (Some(size), Some(span)) if size == span => {
            if end > data_len as u64 {
                return bad("ends beyond the end of the file: the file is truncated or damaged");
            }
            Ok(TensorInfo { dtype, rows, cols, offset: begin as usize, size })
        }
        _ => bad(format!("of {rows} x {cols} {dtype} does not fit its data_offsets {begin}..{end}")),
    }
}
