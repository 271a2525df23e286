//! Server-sent events out of a byte stream that is cut anywhere.

/// Collects bytes into lines and lines into events.
#[derive(Default)]
pub struct SseParser {
    line: Vec<u8>,
    data: Option<String>,
    /// The last byte was a carriage return: a line feed right after it belongs to the same line end.
    after_return: bool,
}

impl SseParser {
    /// Takes the next bytes; calls `event` with the data of each event that they complete. Line ends, comments and
    /// several `data` lines as the HTML standard has them; other fields are of no use here.
    pub fn push(&mut self, bytes: &[u8], mut event: impl FnMut(&str)) {
        for &byte in bytes {
            if std::mem::take(&mut self.after_return) && byte == b'\n' {
                continue;
            }
            if byte != b'\n' && byte != b'\r' {
                self.line.push(byte);
                continue;
            }
            self.after_return = byte == b'\r';
            if self.line.is_empty() {
                if let Some(data) = self.data.take() {
                    event(&data);
                }
                continue;
            }
            // Decoded line by line, so that a character cut in two by the network is whole again.
            let line = String::from_utf8_lossy(&self.line);
            if let Some(value) = line.strip_prefix("data:") {
                let value = value.strip_prefix(' ').unwrap_or(value);
                match &mut self.data {
                    None => self.data = Some(value.to_owned()),
                    Some(data) => {
                        data.push('\n');
                        data.push_str(value);
                    }
                }
            }
            self.line.clear();
        }
    }
}
