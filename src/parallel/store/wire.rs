//! What goes over a connection. Numbers are little-endian.

use std::io::{self, Read, Write};
use std::time::{Duration, Instant};

use super::StoreError;

/// The first bytes of a connection to the store; the last is the version.
pub const MAGIC: &[u8; 8] = b"LIMAKV\0\x01";

/// Bytes of a token, of a key, of a value, of a reason.
const TOKEN: usize = 256;
const KEY: usize = 256;
const VALUE: usize = 64 << 10;
const REASON: usize = 1 << 10;

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_owned())
}

fn bytes<const N: usize>(from: &mut impl Read) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    from.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn sized(from: &mut impl Read, len: usize, most: usize) -> io::Result<Vec<u8>> {
    if len > most {
        return Err(invalid("more bytes are announced than are allowed"));
    }
    let mut bytes = vec![0; len];
    from.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// Who speaks: the beginning of every connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Greeting {
    pub rank: u32,
    pub size: u32,
    pub token: String,
}

impl Greeting {
    pub fn write(&self, to: &mut impl Write, magic: &[u8; 8]) -> io::Result<()> {
        let mut out = magic.to_vec();
        out.extend(self.rank.to_le_bytes());
        out.extend(self.size.to_le_bytes());
        out.extend((self.token.len() as u32).to_le_bytes());
        out.extend(self.token.as_bytes());
        to.write_all(&out)
    }

    pub fn read(from: &mut impl Read, magic: &[u8; 8]) -> io::Result<Self> {
        if bytes::<8>(from)? != *magic {
            return Err(invalid("not the protocol that is spoken here"));
        }
        let [rank, size, len] = [bytes(from)?, bytes(from)?, bytes(from)?].map(u32::from_le_bytes);
        let token = sized(from, len as usize, TOKEN)?;
        let token = String::from_utf8(token).map_err(|_| invalid("the token is no text"))?;
        Ok(Self { rank, size, token })
    }
}

/// A reader that ends at a point in time, however slowly bytes come.
pub struct Until<'a> {
    pub stream: &'a std::net::TcpStream,
    pub end: Instant,
}

impl Read for Until<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        self.stream.set_read_timeout(Some(left))?;
        self.stream.read(buffer)
    }
}

/// The answer to a greeting: a reason if it is refused.
pub fn write_verdict(to: &mut impl Write, refused: Option<&str>) -> io::Result<()> {
    let mut out = vec![u8::from(refused.is_some())];
    if let Some(reason) = refused {
        let cut = &reason.as_bytes()[..reason.len().min(REASON)];
        out.extend((cut.len() as u32).to_le_bytes());
        out.extend(cut);
    }
    to.write_all(&out)
}

/// `None`: accepted.
pub fn read_verdict(from: &mut impl Read) -> io::Result<Option<String>> {
    match bytes::<1>(from)? {
        [0] => Ok(None),
        [1] => {
            let len = u32::from_le_bytes(bytes(from)?) as usize;
            Ok(Some(String::from_utf8_lossy(&sized(from, len, REASON)?).into_owned()))
        }
        _ => Err(invalid("the answer is not one of this protocol")),
    }
}

/// What a client asks.
#[derive(Debug, PartialEq, Eq)]
pub enum Request<'a> {
    Set { key: &'a str, value: &'a [u8] },
    Wait { key: &'a str, at_most: Duration },
}

/// The same, on the other side.
#[derive(Debug, PartialEq, Eq)]
pub enum Asked {
    Set { key: String, value: Vec<u8> },
    Wait { key: String, at_most: Duration },
}

const SET: u8 = 1;
const WAIT: u8 = 2;

impl<'a> Request<'a> {
    pub fn set(key: &'a str, value: &'a [u8]) -> Result<Self, StoreError> {
        checked(key, value)?;
        Ok(Self::Set { key, value })
    }

    pub fn wait(key: &'a str, at_most: Duration) -> Result<Self, StoreError> {
        checked(key, &[])?;
        Ok(Self::Wait { key, at_most })
    }

    /// Sends it and reads the answer: what was waited for, if it came.
    pub fn exchange(&self, stream: &mut (impl Read + Write)) -> io::Result<Option<Vec<u8>>> {
        let (op, key, value, millis) = match self {
            Self::Set { key, value } => (SET, key, *value, 0),
            Self::Wait { key, at_most } => (WAIT, key, &[][..], at_most.as_millis() as u32),
        };
        let mut out = vec![op];
        for n in [key.len() as u32, value.len() as u32, millis] {
            out.extend(n.to_le_bytes());
        }
        out.extend(key.as_bytes());
        out.extend(value);
        stream.write_all(&out)?;
        match bytes::<1>(stream)? {
            [0] => Ok(None),
            [1] => {
                let len = u32::from_le_bytes(bytes(stream)?) as usize;
                Ok(Some(sized(stream, len, VALUE)?))
            }
            _ => Err(invalid("the answer is not one of this protocol")),
        }
    }
}

fn checked(key: &str, value: &[u8]) -> Result<(), StoreError> {
    match key.len() <= KEY && value.len() <= VALUE {
        true => Ok(()),
        false => Err(StoreError::TooLong { key: key.len(), value: value.len() }),
    }
}

impl Asked {
    pub fn read(from: &mut impl Read) -> io::Result<Self> {
        let [op] = bytes::<1>(from)?;
        let [key, value, millis] = [bytes(from)?, bytes(from)?, bytes(from)?].map(u32::from_le_bytes);
        let key = String::from_utf8(sized(from, key as usize, KEY)?).map_err(|_| invalid("a key is no text"))?;
        let value = sized(from, value as usize, VALUE)?;
        match op {
            SET => Ok(Self::Set { key, value }),
            WAIT => Ok(Self::Wait { key, at_most: Duration::from_millis(millis.into()) }),
            _ => Err(invalid("a request is not one of this protocol")),
        }
    }
}

/// The answer to a request.
pub fn write_answer(to: &mut impl Write, value: Option<&[u8]>) -> io::Result<()> {
    let mut out = vec![u8::from(value.is_some())];
    if let Some(value) = value {
        out.extend((value.len() as u32).to_le_bytes());
        out.extend(value);
    }
    to.write_all(&out)
}
