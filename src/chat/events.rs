//! The data of server-sent events.

use std::io::{self, BufRead};

/// Longest line of a stream, bytes.
const MAX_LINE: u64 = 16 << 20;

/// Reads the next event's data, its lines joined; `None` at the end of the stream. Comments and other fields are
/// skipped.
///
/// # Errors
/// Those of the reader, a line that is too long, and text that is not UTF-8.
pub fn next(reader: &mut impl BufRead) -> io::Result<Option<String>> {
    let mut data: Option<String> = None;
    let mut line = String::new();
    loop {
        line.clear();
        let length = io::Read::take(&mut *reader, MAX_LINE).read_line(&mut line)?;
        if length as u64 == MAX_LINE {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a line of the stream is too long"));
        }
        let content = line.trim_end_matches(['\n', '\r']);
        match (content.strip_prefix("data:"), &mut data) {
            // An event that the end cuts off is none.
            _ if length == 0 => return Ok(None),
            (None, Some(_)) if content.is_empty() => return Ok(data),
            (None, _) => {}
            (Some(more), Some(data)) => {
                data.push('\n');
                data.push_str(more.strip_prefix(' ').unwrap_or(more));
            }
            (Some(first), None) => data = Some(first.strip_prefix(' ').unwrap_or(first).to_owned()),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::io::BufReader;

    use super::*;

    fn all(text: &str, buffer: usize) -> Vec<String> {
        let mut reader = BufReader::with_capacity(buffer, text.as_bytes());
        std::iter::from_fn(|| next(&mut reader).unwrap()).collect()
    }

    #[test]
    fn events_are_found_however_the_stream_is_cut() {
        let text = ": comment\n\ndata: {\"ö\":1}\r\n\r\nevent: x\ndata:a\ndata: b\nid: 3\n\n\n: again\ndata: [DONE]\n\ndata: cut";
        for buffer in 1..text.len() {
            assert_eq!(all(text, buffer), ["{\"ö\":1}", "a\nb", "[DONE]"], "{buffer}");
        }
        assert_eq!(all("", 8), Vec::<String>::new());
    }
}
