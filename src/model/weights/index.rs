//! Hugging Face directories whose weights are in several files, after `model.safetensors.index.json`.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;

use super::checkpoint::Place;
use super::error::{LoadError, brief, shown};
use super::json::UniqueMap;
use super::mapped::{MappedFile, read_json};
use super::safetensors;

/// The index's name.
pub(super) const INDEX: &str = "model.safetensors.index.json";

#[derive(Deserialize)]
struct Index {
    /// Tensor to file.
    weight_map: UniqueMap<String>,
}

/// Opens every shard that the index names and checks that each has just the tensors the index says it has.
/// `is_ignored` tells the tensors that may be in a shard without being in the index.
pub(super) fn open(
    dir: &Path,
    is_ignored: impl Fn(&str) -> bool,
) -> Result<(Vec<MappedFile>, BTreeMap<String, Place>), LoadError> {
    let path = dir.join(INDEX);
    let in_index = |what: String| LoadError::file(&path, what);
    let index: Index = serde_json::from_slice(&read_json(&path)?)
        .map_err(|e| in_index(format!("is not an index of safetensors files ({})", brief(&e))))?;
    let said: BTreeMap<String, String> = index.weight_map.0.into_iter().collect();
    let mut by_file: BTreeMap<&str, &str> = BTreeMap::new();
    for (tensor, file) in &said {
        if !is_plain(file) {
            return Err(in_index(format!(
                "tensor {} is in {}, which is not the name of a safetensors file in this directory",
                shown(tensor),
                shown(file)
            )));
        }
        by_file.entry(file).or_insert(tensor);
    }
    if by_file.is_empty() {
        return Err(in_index("names no tensors".into()));
    }

    let (mut files, mut tensors) = (Vec::new(), BTreeMap::<String, Place>::new());
    for (name, first) in by_file {
        let shard = dir.join(name);
        if !shard.exists() {
            return Err(LoadError::file(&shard, format!("is missing; {INDEX} says that tensor {} is in it", shown(first))));
        }
        let file = MappedFile::open(&shard)?;
        let at = files.len();
        for (tensor, info) in safetensors::parse(&file).map_err(|e| LoadError::file(&shard, e))? {
            match said.get(&tensor) {
                Some(file) if file == name => {}
                None if is_ignored(&tensor) => continue,
                None => {
                    return Err(LoadError::file(&shard, format!("tensor {} is not in {INDEX}", shown(&tensor))));
                }
                Some(file) => {
                    return Err(LoadError::file(
                        &shard,
                        format!("has tensor {}, which {INDEX} says is in {}", shown(&tensor), shown(file)),
                    ));
                }
            }
            tensors.insert(tensor, Place { file: at, info });
        }
        files.push(file);
    }
    match said.iter().find(|(tensor, _)| !tensors.contains_key(*tensor)) {
        Some((tensor, file)) => Err(LoadError::file(
            &dir.join(file),
            format!("tensor {} is missing; {INDEX} says that it is in this file", shown(tensor)),
        )),
        None => Ok((files, tensors)),
    }
}

/// A name that stays in the directory, of a format that is read.
fn is_plain(name: &str) -> bool {
    name.ends_with(".safetensors")
        && !name.starts_with('.')
        && name.len() <= 255
        && !name.contains(|c: char| matches!(c, '/' | '\\' | ':') || c.is_control())
}
