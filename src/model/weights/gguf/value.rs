//! Metadata values.

use super::super::error::FormatError;
use super::reader::Reader;

/// A metadata value. Integers are widened: no reader depends on the width a writer chose.
#[derive(Clone, Debug, PartialEq)]
pub enum Value<'a> {
    /// u8, u16, u32, u64.
    Unsigned(u64),
    /// i8, i16, i32, i64.
    Signed(i64),
    /// f32, f64.
    Float(f64),
    /// One byte, 0 or 1.
    Bool(bool),
    /// UTF-8.
    Str(&'a str),
    /// Values of one type; not nested.
    Array(Array<'a>),
}

/// A flat array, still encoded; every element was checked.
#[derive(Clone, Debug, PartialEq)]
pub struct Array<'a> {
    kind: u32,
    len: usize,
    bytes: &'a [u8],
}

const STRING: u32 = 8;
const ARRAY: u32 = 9;

impl<'a> Value<'a> {
    pub(super) fn read(r: &mut Reader<'a>) -> Result<Self, FormatError> {
        let kind = r.u32()?;
        if kind == ARRAY { Ok(Self::Array(Array::read(r)?)) } else { Self::read_scalar(kind, r) }
    }

    fn read_scalar(kind: u32, r: &mut Reader<'a>) -> Result<Self, FormatError> {
        Ok(match kind {
            0 => Self::Unsigned(u8::from_le_bytes(r.array()?).into()),
            1 => Self::Signed(i8::from_le_bytes(r.array()?).into()),
            2 => Self::Unsigned(u16::from_le_bytes(r.array()?).into()),
            3 => Self::Signed(i16::from_le_bytes(r.array()?).into()),
            4 => Self::Unsigned(r.u32()?.into()),
            5 => Self::Signed(i32::from_le_bytes(r.array()?).into()),
            6 => Self::Float(f32::from_le_bytes(r.array()?).into()),
            7 => match r.array()? {
                [0] => Self::Bool(false),
                [1] => Self::Bool(true),
                [b] => return Err(FormatError(format!("{b} is not a boolean"))),
            },
            STRING => Self::Str(r.string("the string")?),
            ARRAY => return Err(FormatError("nested arrays are not supported".into())),
            10 => Self::Unsigned(r.u64()?),
            11 => Self::Signed(i64::from_le_bytes(r.array()?)),
            12 => Self::Float(f64::from_le_bytes(r.array()?)),
            other => return Err(FormatError(format!("value type {other} is unknown"))),
        })
    }

    /// A whole number that is not negative.
    pub fn as_u64(&self) -> Option<u64> {
        match *self {
            Self::Unsigned(n) => Some(n),
            Self::Signed(n) => n.try_into().ok(),
            _ => None,
        }
    }

    /// A whole number.
    pub fn as_i64(&self) -> Option<i64> {
        match *self {
            Self::Unsigned(n) => n.try_into().ok(),
            Self::Signed(n) => Some(n),
            _ => None,
        }
    }

    /// Any number.
    pub fn as_f32(&self) -> Option<f32> {
        match *self {
            Self::Float(f) => Some(f as f32),
            Self::Unsigned(n) => Some(n as f32),
            Self::Signed(n) => Some(n as f32),
            _ => None,
        }
    }

    /// A truth value.
    pub fn as_bool(&self) -> Option<bool> {
        match *self {
            Self::Bool(b) => Some(b),
            _ => None,
        }
    }
}

impl<'a> Array<'a> {
    fn read(r: &mut Reader<'a>) -> Result<Self, FormatError> {
        let kind = r.u32()?;
        let count = r.u64()?;
        let size = match kind {
            0 | 1 | 7 => 1,
            2 | 3 => 2,
            4..=6 => 4,
            STRING | 10..=12 => 8,
            ARRAY => return Err(FormatError("nested arrays are not supported".into())),
            other => return Err(FormatError(format!("value type {other} is unknown"))),
        };
        let len = r.check_count(count, size, "elements")?;
        let mut all = Reader::new(r.rest());
        if kind == STRING || kind == 7 {
            for _ in 0..len {
                Value::read_scalar(kind, &mut all)?;
            }
        } else {
            all.bytes(len * size)?;
        }
        Ok(Self { kind, len, bytes: r.bytes(all.position())? })
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// No elements.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The elements.
    pub fn iter(&self) -> impl Iterator<Item = Value<'a>> + use<'a> {
        let (kind, mut r) = (self.kind, Reader::new(self.bytes));
        (0..self.len).map(move |_| Value::read_scalar(kind, &mut r).expect("checked while parsing"))
    }
}
