//! What an OTLP exporter sends: as much of protobuf's wire format, and of the messages, as spans need.

use std::collections::HashMap;

/// A field's value: a number (variable or 64 bits), or bytes (text, a message).
enum Field<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

/// The fields of a message, by number.
fn fields(mut message: &[u8]) -> Vec<(u64, Field<'_>)> {
    fn number(message: &mut &[u8]) -> u64 {
        let mut value = 0;
        for shift in (0..).step_by(7) {
            let (byte, rest) = message.split_first().unwrap();
            *message = rest;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                break;
            }
        }
        value
    }
    let mut out = Vec::new();
    while !message.is_empty() {
        let tag = number(&mut message);
        let mut take = |count: usize| {
            let (bytes, rest) = message.split_at(count);
            message = rest;
            bytes
        };
        let field = match tag & 7 {
            0 => Field::Number(number(&mut message)),
            1 => Field::Number(u64::from_le_bytes(take(8).try_into().unwrap())),
            2 => {
                let count = number(&mut message) as usize;
                let (bytes, rest) = message.split_at(count);
                message = rest;
                Field::Bytes(bytes)
            }
            5 => Field::Number(u64::from(u32::from_le_bytes(take(4).try_into().unwrap()))),
            other => panic!("no wire type {other}"),
        };
        out.push((tag >> 3, field));
    }
    out
}

/// All bytes of a field that may be repeated.
fn all(message: &[u8], number: u64) -> Vec<&[u8]> {
    let bytes = |(n, field)| match field {
        Field::Bytes(bytes) if n == number => Some(bytes),
        _ => None,
    };
    fields(message).into_iter().filter_map(bytes).collect()
}

fn text(message: &[u8], number: u64) -> String {
    all(message, number).last().map_or_else(String::new, |bytes| String::from_utf8(bytes.to_vec()).unwrap())
}

fn hex(message: &[u8], number: u64) -> String {
    all(message, number).last().map_or_else(String::new, |bytes| bytes.iter().map(|b| format!("{b:02x}")).collect())
}

fn value_of(message: &[u8], number: u64) -> u64 {
    let of = |(n, field): &(u64, Field<'_>)| match field {
        Field::Number(value) if *n == number => Some(*value),
        _ => None,
    };
    fields(message).iter().filter_map(of).last().unwrap_or(0)
}

/// An attribute's value.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    Text(String),
    Bool(bool),
    Int(i64),
    Double(f64),
    Texts(Vec<String>),
}

pub type Attributes = HashMap<String, Value>;

fn attributes(lists: &[&[u8]]) -> Attributes {
    let value = |message: &[u8]| match fields(message).pop().unwrap() {
        (1, Field::Bytes(bytes)) => Value::Text(String::from_utf8(bytes.to_vec()).unwrap()),
        (2, Field::Number(n)) => Value::Bool(n == 1),
        (3, Field::Number(n)) => Value::Int(n as i64),
        (4, Field::Number(n)) => Value::Double(f64::from_bits(n)),
        (5, Field::Bytes(bytes)) => Value::Texts(all(bytes, 1).into_iter().map(|v| text(v, 1)).collect()),
        (n, _) => panic!("no attribute has a value of kind {n}"),
    };
    lists.iter().map(|pair| (text(pair, 1), value(all(pair, 2)[0]))).collect()
}

/// A span, and what its sender says of itself.
#[derive(Clone, Debug)]
pub struct Span {
    pub trace: String,
    pub id: String,
    pub state: String,
    pub parent: String,
    pub name: String,
    /// 2 is a server's.
    pub kind: u64,
    /// Nanoseconds since 1970.
    pub begin: u64,
    pub end: u64,
    pub attributes: Attributes,
    /// 2 is an error.
    pub status: u64,
    pub resource: Attributes,
}

/// The spans of an `ExportTraceServiceRequest`.
pub fn spans(request: &[u8]) -> Vec<Span> {
    let mut out = Vec::new();
    for resource_spans in all(request, 1) {
        let resource = attributes(&all(all(resource_spans, 1)[0], 1));
        for span in all(resource_spans, 2).into_iter().flat_map(|scope| all(scope, 2)) {
            out.push(Span {
                trace: hex(span, 1),
                id: hex(span, 2),
                state: text(span, 3),
                parent: hex(span, 4),
                name: text(span, 5),
                kind: value_of(span, 6),
                begin: value_of(span, 7),
                end: value_of(span, 8),
                attributes: attributes(&all(span, 9)),
                status: all(span, 15).last().map_or(0, |status| value_of(status, 3)),
                resource: resource.clone(),
            });
        }
    }
    out
}
