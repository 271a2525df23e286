//! A cursor that never reads past the end.

use super::super::error::FormatError;

pub(super) struct Reader<'a> {
    bytes: &'a [u8],
    position: usize,
}

impl<'a> Reader<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, position: 0 }
    }

    pub fn position(&self) -> usize {
        self.position
    }

    /// What has not been read.
    pub fn rest(&self) -> &'a [u8] {
        &self.bytes[self.position..]
    }

    fn left(&self) -> usize {
        self.bytes.len() - self.position
    }

    pub fn bytes(&mut self, n: usize) -> Result<&'a [u8], FormatError> {
        if n > self.left() {
            return Err(FormatError(format!("the file ends at byte {}: it is truncated", self.bytes.len())));
        }
        let out = &self.bytes[self.position..self.position + n];
        self.position += n;
        Ok(out)
    }

    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], FormatError> {
        Ok(self.bytes(N)?.try_into().expect("bytes(N) is N bytes"))
    }

    pub fn u32(&mut self) -> Result<u32, FormatError> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    pub fn u64(&mut self) -> Result<u64, FormatError> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// Refuses a count of items that could not fit in what is left, each at least `least` bytes.
    pub fn check_count(&self, count: u64, least: usize, what: &str) -> Result<usize, FormatError> {
        match usize::try_from(count) {
            Ok(n) if n.checked_mul(least).is_some_and(|bytes| bytes <= self.left()) => Ok(n),
            _ => Err(FormatError(format!("{count} {what} do not fit in the file: it is truncated or damaged"))),
        }
    }

    pub fn string(&mut self, what: &str) -> Result<&'a str, FormatError> {
        let len = self.u64()?;
        let len = self.check_count(len, 1, &format!("bytes of {what}"))?;
        std::str::from_utf8(self.bytes(len)?).map_err(|_| FormatError(format!("{what} is not UTF-8")))
    }
}
