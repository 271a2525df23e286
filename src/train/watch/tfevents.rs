//! TensorBoard's event files: records of TensorFlow's format, each an `Event` message with scalars or text.
//!
//! Fields are those of tensorflow/core/util/event.proto and framework/{summary,tensor,tensor_shape}.proto.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process;

use super::about;
use super::proto::Message;

/// CRC-32C (Castagnoli), reflected.
const TABLE: [u32; 256] = {
    let mut table = [0; 256];
    let mut i = 0;
    while i < 256 {
        let (mut crc, mut bit) = (i as u32, 0);
        while bit < 8 {
            crc = if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 };
            bit += 1;
        }
        table[i] = crc;
        i += 1;
    }
    table
};

/// The check sum of a record's parts: CRC-32C, rotated and offset, so that a check sum of check sums is none.
pub fn masked_crc32c(bytes: &[u8]) -> u32 {
    let crc = bytes.iter().fold(!0, |crc, &b| TABLE[((crc ^ u32::from(b)) & 0xff) as usize] ^ crc >> 8);
    (!crc).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// A record: length, check sum of the length, data, check sum of the data.
pub fn record(data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u64).to_le_bytes();
    let mut out = Vec::with_capacity(data.len() + 16);
    out.extend(length);
    out.extend(masked_crc32c(&length).to_le_bytes());
    out.extend(data);
    out.extend(masked_crc32c(data).to_le_bytes());
    out
}

/// What a file begins with.
pub fn version(time: f64) -> Vec<u8> {
    Message::default().double(1, time).bytes(3, b"brain.Event:2").into_bytes()
}

/// The mark of a process that goes on from `step`: TensorBoard forgets what earlier files have from there on.
pub fn start(time: f64, step: u64) -> Vec<u8> {
    const START: u64 = 1;
    Message::default().double(1, time).uint(2, step).message(7, &Message::default().uint(1, START)).into_bytes()
}

/// Scalars of a step.
pub fn scalars(time: f64, step: u64, values: &[(&str, f64)]) -> Vec<u8> {
    let value = |(tag, value): &(&str, f64)| Message::default().bytes(1, tag.as_bytes()).float(2, *value as f32);
    let summary = values.iter().map(value).fold(Message::default(), |summary, v| summary.message(1, &v));
    Message::default().double(1, time).uint(2, step).message(5, &summary).into_bytes()
}

/// A text of a step, in Markdown.
pub fn text(time: f64, step: u64, tag: &str, markdown: &str) -> Vec<u8> {
    const DT_STRING: u64 = 7;
    let shape = Message::default().message(2, &Message::default().uint(1, 1));
    let tensor = Message::default().uint(1, DT_STRING).message(2, &shape).bytes(8, markdown.as_bytes());
    let metadata = Message::default().message(1, &Message::default().bytes(1, b"text"));
    let value = Message::default().bytes(1, tag.as_bytes()).message(8, &tensor).message(9, &metadata);
    Message::default().double(1, time).uint(2, step).message(5, &Message::default().message(1, &value)).into_bytes()
}

/// A file of events, open for more.
#[derive(Debug)]
pub struct Events {
    path: PathBuf,
    file: File,
}

impl Events {
    /// Makes a new file in `out`, for events from `step` on.
    pub fn create(out: &Path, time: f64, step: u64) -> io::Result<Self> {
        // Files are read in the order of their names, which begin with the time.
        let stem = format!("events.out.tfevents.{:010}.lima.{}", time as u64, process::id());
        let (path, file) = (0..1000)
            .find_map(|n| {
                let path = out.join(format!("{stem}.{n}"));
                match OpenOptions::new().write(true).create_new(true).open(&path) {
                    Err(e) if e.kind() == ErrorKind::AlreadyExists => None,
                    result => Some(result.map(|file| (path.clone(), file)).map_err(|e| about(&path, e))),
                }
            })
            .unwrap_or_else(|| Err(about(&out.join(stem), ErrorKind::AlreadyExists.into())))?;
        let mut events = Self { path, file };
        events.write(&version(time))?;
        events.write(&start(time, step))?;
        Ok(events)
    }

    /// Adds an event.
    pub fn write(&mut self, event: &[u8]) -> io::Result<()> {
        self.file.write_all(&record(event)).map_err(|e| about(&self.path, e))
    }
}
