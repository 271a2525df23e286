//! GGUF models in several files, as llama.cpp's `gguf-split` makes them: `name-00001-of-00003.gguf`, the metadata in
//! the first, and in each the keys `split.no`, `split.count` and `split.tensors.count`.

use super::error::{FormatError, LoadError};
use super::gguf::{Gguf, Value};
use super::mapped::MappedFile;

/// More parts than any model has.
const MOST: u64 = 4096;

/// What a file says of itself.
struct Part {
    /// From 0.
    number: u64,
    count: u64,
    /// Tensors of all parts together.
    tensors: Option<u64>,
}

fn part(gguf: &Gguf<'_>) -> Result<Option<Part>, FormatError> {
    let number = |key: &str| match gguf.value(key).map(Value::as_u64) {
        None => Ok(None),
        Some(Some(n)) => Ok(Some(n)),
        Some(None) => Err(FormatError(format!("{key} must be a whole number that is not negative"))),
    };
    let Some(count) = number("split.count")?.filter(|n| *n > 1) else { return Ok(None) };
    if count > MOST {
        return Err(FormatError(format!("split.count is {count}, at most {MOST} are supported")));
    }
    let no = number("split.no")?.ok_or_else(|| FormatError("split.no is missing".into()))?;
    if no >= count {
        return Err(FormatError(format!("split.no is {no}, split.count is {count}")));
    }
    Ok(Some(Part { number: no, count, tensors: number("split.tensors.count")? }))
}

/// The name of part `number` (from 1) of `count`.
fn path(stem: &str, number: u64, count: u64) -> String {
    format!("{stem}-{number:05}-of-{count:05}.gguf")
}

/// Takes a name such as `name-00002-of-00003.gguf` apart: `("name", 2, 3)`.
fn parse_name(name: &str) -> Option<(&str, u64, u64)> {
    let (rest, count) = name.strip_suffix(".gguf")?.rsplit_once("-of-")?;
    let (stem, number) = rest.rsplit_once('-')?;
    let (number, count) = (number.parse().ok()?, count.parse().ok()?);
    ((1..=count).contains(&number) && count <= MOST && path(stem, number, count) == name)
        .then_some((stem, number, count))
}

/// The names of all parts, in order, of a GGUF model of which `name` (a file name, or a path with slashes) is one
/// part; `None` if it is whole.
pub fn part_names(name: &str) -> Option<Vec<String>> {
    let (stem, _, count) = parse_name(name)?;
    Some((1..=count).map(|number| path(stem, number, count)).collect())
}

/// The file and, where its name says that it is a part, all others of its model, in order.
pub(super) fn open_all(file: MappedFile) -> Result<Vec<MappedFile>, LoadError> {
    let given = file.path.clone();
    let name = given.file_name().and_then(|n| n.to_str()).unwrap_or_default();
    let Some(names) = part_names(name).filter(|names| names.len() > 1) else { return Ok(vec![file]) };
    let mut file = Some(file);
    let open = |part: String| {
        if part == name
            && let Some(file) = file.take()
        {
            return Ok(file);
        }
        let path = given.with_file_name(&part);
        if !path.exists() {
            return Err(LoadError::file(&path, format!("is missing; {name} is another part of the same model")));
        }
        MappedFile::open(&path)
    };
    names.into_iter().map(open).collect()
}

/// Checks that the files are what their names say: all parts of one model.
pub(super) fn check(files: &[MappedFile], ggufs: &[Gguf<'_>]) -> Result<(), LoadError> {
    let tensors: usize = ggufs.iter().map(|g| g.tensors().count()).sum();
    for (i, (file, gguf)) in files.iter().zip(ggufs).enumerate() {
        let in_file = |what: String| LoadError::file(&file.path, what);
        match part(gguf).map_err(|e| LoadError::file(&file.path, e))? {
            None if files.len() == 1 => {}
            None => {
                return Err(in_file(format!(
                    "has no split.count, but its name says that it is part {} of {}",
                    i + 1,
                    files.len()
                )));
            }
            Some(part) if (part.number, part.count) != (i as u64, files.len() as u64) => {
                let expected = path("NAME", part.number + 1, part.count);
                return Err(in_file(format!(
                    "is part {} of {} by its metadata, and must be called {expected}",
                    part.number + 1,
                    part.count
                )));
            }
            Some(Part { tensors: Some(said), .. }) if said != tensors as u64 => {
                return Err(in_file(format!("split.tensors.count is {said}, all parts together have {tensors}")));
            }
            Some(_) => {}
        }
    }
    Ok(())
}
