//! Writes safetensors files, tensor by tensor: no more than a piece of one is ever in memory twice.

use std::fs::File;
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::path::Path;

use candle_core::{CpuStorage, Storage, Tensor};
use half::bf16;
use serde_json::{Map, Value, json};

use super::checksum::Xxh64;
use super::recipe::Number;

/// Numbers that are converted at once.
const PIECE: usize = 1 << 16;

/// A tensor to be written.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// Its name in the file.
    pub name: String,
    /// Its format in the file.
    pub format: Number,
    /// `[rows, cols]`, or `[cols]` of a norm.
    pub shape: Vec<usize>,
}

impl Entry {
    /// Bytes in the file.
    pub fn bytes(&self) -> u64 {
        let width = match self.format {
            Number::F32 => 4,
            Number::Bf16 => 2,
        };
        self.shape.iter().product::<usize>() as u64 * width
    }
}

/// The metadata's key of the checksum, 16 hexadecimal digits: of header and data, as they are with zeros for the digits.
pub const CHECKSUM: &str = "xxh64";

/// Where the digits begin in a header.
pub const DIGITS_AT: usize = r#"{"__metadata__":{"":""#.len() + CHECKSUM.len();
/// How many there are.
pub const DIGITS: usize = 16;

/// Writes `entries` and syncs the file. `fill` writes entry `i`, exactly its numbers.
///
/// # Errors
/// The file cannot be written, or not all numbers of an entry were.
pub fn write(
    path: &Path,
    entries: &[Entry],
    metadata: &[(&str, &str)],
    mut fill: impl FnMut(usize, &mut Numbers) -> io::Result<()>,
) -> io::Result<()> {
    let header = header(entries, metadata);
    let mut file = File::create(path)?;
    file.write_all(&(header.len() as u64).to_le_bytes())?;
    file.write_all(&header)?;
    let mut out = Numbers {
        file: BufWriter::with_capacity(1 << 20, file),
        hash: Xxh64::default(),
        written: 0,
        format: Number::F32,
        bytes: Vec::new(),
    };
    out.hash.update(&header);
    let mut end = 0;
    for (i, entry) in entries.iter().enumerate() {
        out.format = entry.format;
        fill(i, &mut out)?;
        end += entry.bytes();
        if out.written != end {
            return Err(io::Error::other(format!("tensor {} was written with another size", entry.name)));
        }
    }
    let hash = out.hash.finish();
    let mut file = out.file.into_inner().map_err(io::IntoInnerError::into_error)?;
    file.seek(SeekFrom::Start((8 + DIGITS_AT) as u64))?;
    file.write_all(format!("{hash:016x}").as_bytes())?;
    file.sync_all()
}

/// The JSON header, with zeros for the digits of the checksum.
fn header(entries: &[Entry], metadata: &[(&str, &str)]) -> Vec<u8> {
    let mut map = Map::new();
    let mut more = Map::new();
    // First of all, so that its place is known.
    more.insert(CHECKSUM.into(), "0".repeat(DIGITS).into());
    more.extend(metadata.iter().map(|(key, value)| ((*key).to_owned(), Value::from(*value))));
    map.insert("__metadata__".into(), Value::Object(more));
    let mut begin = 0;
    for entry in entries {
        let (dtype, end) = (if entry.format == Number::F32 { "F32" } else { "BF16" }, begin + entry.bytes());
        let value = json!({ "dtype": dtype, "shape": entry.shape, "data_offsets": [begin, end] });
        map.insert(entry.name.clone(), value);
        begin = end;
    }
    let mut header = Value::Object(map).to_string().into_bytes();
    // Data begin at a multiple of 8.
    header.resize(header.len().next_multiple_of(8), b' ');
    header
}

/// Where the numbers of one tensor go.
pub struct Numbers {
    file: BufWriter<File>,
    hash: Xxh64,
    written: u64,
    format: Number,
    bytes: Vec<u8>,
}

impl Numbers {
    /// A contiguous tensor of F32 or BF16 in the CPU's memory.
    pub fn tensor(&mut self, tensor: &Tensor) -> io::Result<()> {
        let (storage, layout) = tensor.storage_and_layout();
        let wrong = || io::Error::other("a contiguous tensor of F32 or BF16 in the CPU's memory is needed");
        let (Storage::Cpu(values), Some((start, end))) = (&*storage, layout.contiguous_offsets()) else {
            return Err(wrong());
        };
        let range = start..end;
        match values {
            CpuStorage::F32(values) => self.f32(&values[range]),
            CpuStorage::BF16(values) => self.bf16(&values[range]),
            _ => Err(wrong()),
        }
    }

    /// Numbers, rounded to nearest if the tensor's format is BF16.
    pub fn f32(&mut self, values: &[f32]) -> io::Result<()> {
        for piece in values.chunks(PIECE) {
            self.bytes.clear();
            match self.format {
                Number::F32 => self.bytes.extend(piece.iter().flat_map(|v| v.to_le_bytes())),
                Number::Bf16 => self.bytes.extend(piece.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes())),
            }
            self.put()?;
        }
        Ok(())
    }

    /// Numbers, widened if the tensor's format is F32.
    pub fn bf16(&mut self, values: &[bf16]) -> io::Result<()> {
        for piece in values.chunks(PIECE) {
            self.bytes.clear();
            match self.format {
                Number::F32 => self.bytes.extend(piece.iter().flat_map(|v| v.to_f32().to_le_bytes())),
                Number::Bf16 => self.bytes.extend(piece.iter().flat_map(|v| v.to_le_bytes())),
            }
            self.put()?;
        }
        Ok(())
    }

    fn put(&mut self) -> io::Result<()> {
        self.hash.update(&self.bytes);
        self.written += self.bytes.len() as u64;
        self.file.write_all(&self.bytes)
    }
}
