//! SentencePiece's `tokenizer.model`: a protobuf message, read field by field.

use super::sentencepiece::{Piece, PieceKind};
use crate::engine::TokenId;

/// What of the file decides how text is encoded.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct ModelProto {
    pub(super) pieces: Vec<Piece>,
    pub(super) unk: Option<TokenId>,
    pub(super) bos: Option<TokenId>,
    pub(super) eos: Option<TokenId>,
    pub(super) byte_fallback: bool,
    pub(super) add_dummy_prefix: bool,
    pub(super) remove_extra_whitespaces: bool,
}

/// Reads a model; the error is one sentence. Memory is in proportion to the file.
pub(super) fn parse(bytes: &[u8]) -> Result<ModelProto, String> {
    let mut pieces = Vec::new();
    let (mut trainer, mut normalizer) = (Trainer::default(), Normalizer::default());
    for field in Fields(bytes) {
        match field? {
            (1, Value::Bytes(bytes)) => {
                let id = pieces.len();
                pieces.push(piece(bytes).map_err(|e| format!("token {id}: {e}"))?);
            }
            (2, Value::Bytes(bytes)) => trainer.read(bytes)?,
            (3, Value::Bytes(bytes)) => normalizer.read(bytes)?,
            (5, Value::Bytes(bytes)) => {
                let mut denormalizer = Normalizer::default();
                denormalizer.read(bytes)?;
                if denormalizer.charsmap {
                    return Err(format!("its denormalizer {:?} is not supported", denormalizer.name));
                }
            }
            _ => {}
        }
    }
    if pieces.is_empty() {
        return Err("it has no tokens".into());
    }
    match trainer.model_type {
        2 => {}
        1 => return Err("its model type UNIGRAM is not supported (BPE is)".into()),
        3 => return Err("its model type WORD is not supported (BPE is)".into()),
        4 => return Err("its model type CHAR is not supported (BPE is)".into()),
        other => return Err(format!("its model type {other} is unknown (BPE is 2)")),
    }
    if normalizer.charsmap {
        return Err(format!("its normalizer {:?} is not supported (identity is)", normalizer.name));
    }
    if !normalizer.escape_whitespaces {
        return Err("escape_whitespaces of its normalizer is false, which is not supported".into());
    }
    if trainer.treat_whitespace_as_suffix {
        return Err("treat_whitespace_as_suffix is not supported".into());
    }
    let is = |id: i64, kind: PieceKind| {
        let id = usize::try_from(id).ok()?;
        (pieces.get(id)?.kind == kind).then_some(id as TokenId)
    };
    Ok(ModelProto {
        unk: is(trainer.unk, PieceKind::Unknown),
        bos: is(trainer.bos, PieceKind::Control),
        eos: is(trainer.eos, PieceKind::Control),
        byte_fallback: trainer.byte_fallback,
        add_dummy_prefix: normalizer.add_dummy_prefix,
        remove_extra_whitespaces: normalizer.remove_extra_whitespaces,
        pieces,
    })
}

fn piece(bytes: &[u8]) -> Result<Piece, String> {
    let mut piece = Piece { spelling: String::new(), score: 0.0, kind: PieceKind::Normal };
    for field in Fields(bytes) {
        match field? {
            (1, Value::Bytes(bytes)) => piece.spelling = text(bytes)?.to_owned(),
            (2, Value::Four(bytes)) => piece.score = f32::from_le_bytes(bytes),
            (3, Value::Int(kind)) => {
                piece.kind =
                    PieceKind::from_number(kind as i64).ok_or_else(|| format!("its type {kind} is unknown"))?;
            }
            _ => {}
        }
    }
    Ok(piece)
}

/// Of `TrainerSpec`; defaults are those of the format.
struct Trainer {
    model_type: u64,
    treat_whitespace_as_suffix: bool,
    byte_fallback: bool,
    unk: i64,
    bos: i64,
    eos: i64,
}

impl Default for Trainer {
    fn default() -> Self {
        Self { model_type: 1, treat_whitespace_as_suffix: false, byte_fallback: false, unk: 0, bos: 1, eos: 2 }
    }
}

impl Trainer {
    fn read(&mut self, bytes: &[u8]) -> Result<(), String> {
        for field in Fields(bytes) {
            match field? {
                (3, Value::Int(v)) => self.model_type = v,
                (24, Value::Int(v)) => self.treat_whitespace_as_suffix = v != 0,
                (35, Value::Int(v)) => self.byte_fallback = v != 0,
                // Negative: there is none.
                (40, Value::Int(v)) => self.unk = v as i64,
                (41, Value::Int(v)) => self.bos = v as i64,
                (42, Value::Int(v)) => self.eos = v as i64,
                _ => {}
            }
        }
        Ok(())
    }
}

/// Of `NormalizerSpec`; defaults are those of the format.
struct Normalizer {
    name: String,
    charsmap: bool,
    add_dummy_prefix: bool,
    remove_extra_whitespaces: bool,
    escape_whitespaces: bool,
}

impl Default for Normalizer {
    fn default() -> Self {
        Self {
            name: String::new(),
            charsmap: false,
            add_dummy_prefix: true,
            remove_extra_whitespaces: true,
            escape_whitespaces: true,
        }
    }
}

impl Normalizer {
    fn read(&mut self, bytes: &[u8]) -> Result<(), String> {
        for field in Fields(bytes) {
            match field? {
                (1, Value::Bytes(bytes)) => self.name = text(bytes)?.to_owned(),
                (2, Value::Bytes(bytes)) => self.charsmap = !bytes.is_empty(),
                (3, Value::Int(v)) => self.add_dummy_prefix = v != 0,
                (4, Value::Int(v)) => self.remove_extra_whitespaces = v != 0,
                (5, Value::Int(v)) => self.escape_whitespaces = v != 0,
                _ => {}
            }
        }
        Ok(())
    }
}

fn text(bytes: &[u8]) -> Result<&str, String> {
    std::str::from_utf8(bytes).map_err(|_| "its text is not UTF-8".to_owned())
}

/// A field's value on the wire.
enum Value<'a> {
    Int(u64),
    Four([u8; 4]),
    Eight,
    Bytes(&'a [u8]),
}

/// The fields of a message, with their numbers.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8], String> {
        let (taken, rest) = self.0.split_at_checked(len).ok_or("a field is longer than the file")?;
        self.0 = rest;
        Ok(taken)
    }

    fn varint(&mut self) -> Result<u64, String> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.take(1)?[0];
            value |= u64::from(byte & 0x7F) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err("a number has more than 64 bits".into())
    }

    fn field(&mut self) -> Result<(u64, Value<'a>), String> {
        let key = self.varint()?;
        let value = match key & 7 {
            0 => Value::Int(self.varint()?),
            1 => {
                self.take(8)?;
                Value::Eight
            }
            2 => {
                let len = self.varint()?;
                Value::Bytes(self.take(usize::try_from(len).unwrap_or(usize::MAX))?)
            }
            5 => {
                let bytes = self.take(4)?;
                Value::Four([bytes[0], bytes[1], bytes[2], bytes[3]])
            }
            other => return Err(format!("wire type {other} is unknown")),
        };
        Ok((key >> 3, value))
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u64, Value<'a>), String>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_err() {
            self.0 = &[];
        }
        Some(field)
    }
}
