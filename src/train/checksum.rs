//! XXH64 (Yann Collet's xxHash) of bytes that come piece by piece: finds damage, not malice, at the speed of memory.

const P1: u64 = 0x9E37_79B1_85EB_CA87;
const P2: u64 = 0xC2B2_AE3D_27D4_EB4F;
const P3: u64 = 0x1656_67B1_9E37_79F9;
const P4: u64 = 0x85EB_CA77_C2B2_AE63;
const P5: u64 = 0x27D4_EB2F_1656_67C5;
const STRIPE: usize = 32;

/// A checksum in the making, with seed 0.
#[derive(Clone, Debug)]
pub struct Xxh64 {
    lanes: [u64; 4],
    /// The beginning of a stripe.
    rest: Vec<u8>,
    len: u64,
}

fn round(lane: u64, word: u64) -> u64 {
    lane.wrapping_add(word.wrapping_mul(P2)).rotate_left(31).wrapping_mul(P1)
}

fn word(bytes: &[u8]) -> u64 {
    let mut word = [0; 8];
    word[..bytes.len()].copy_from_slice(bytes);
    u64::from_le_bytes(word)
}

impl Default for Xxh64 {
    fn default() -> Self {
        let lanes = [P1.wrapping_add(P2), P2, 0, 0u64.wrapping_sub(P1)];
        Self { lanes, rest: Vec::with_capacity(STRIPE), len: 0 }
    }
}

impl Xxh64 {
    /// Takes more bytes.
    pub fn update(&mut self, mut bytes: &[u8]) {
        self.len += bytes.len() as u64;
        if !self.rest.is_empty() {
            let (more, after) = bytes.split_at(bytes.len().min(STRIPE - self.rest.len()));
            self.rest.extend(more);
            bytes = after;
            if self.rest.len() == STRIPE {
                let stripe = std::mem::take(&mut self.rest);
                self.stripes(&stripe);
            }
        }
        let whole = bytes.len() / STRIPE * STRIPE;
        self.stripes(&bytes[..whole]);
        self.rest.extend(&bytes[whole..]);
    }

    fn stripes(&mut self, bytes: &[u8]) {
        let mut lanes = self.lanes;
        for stripe in bytes.chunks_exact(STRIPE) {
            for (lane, bytes) in lanes.iter_mut().zip(stripe.chunks_exact(8)) {
                *lane = round(*lane, word(bytes));
            }
        }
        self.lanes = lanes;
    }

    /// The checksum of all bytes so far.
    pub fn finish(&self) -> u64 {
        let mut h = match self.len < STRIPE as u64 {
            true => P5,
            false => {
                let turned = self.lanes.iter().zip([1, 7, 12, 18]).map(|(lane, by)| lane.rotate_left(by));
                let sum = turned.fold(0, u64::wrapping_add);
                let merge = |h: u64, lane: &u64| (h ^ round(0, *lane)).wrapping_mul(P1).wrapping_add(P4);
                self.lanes.iter().fold(sum, merge)
            }
        };
        h = h.wrapping_add(self.len);
        let mut words = self.rest.chunks_exact(8);
        for bytes in words.by_ref() {
            h = (h ^ round(0, word(bytes))).rotate_left(27).wrapping_mul(P1).wrapping_add(P4);
        }
        let mut halves = words.remainder().chunks_exact(4);
        for bytes in halves.by_ref() {
            h = (h ^ word(bytes).wrapping_mul(P1)).rotate_left(23).wrapping_mul(P2).wrapping_add(P3);
        }
        for byte in halves.remainder() {
            h = (h ^ u64::from(*byte).wrapping_mul(P5)).rotate_left(11).wrapping_mul(P1);
        }
        h = (h ^ (h >> 33)).wrapping_mul(P2);
        h = (h ^ (h >> 29)).wrapping_mul(P3);
        h ^ (h >> 32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whole(bytes: &[u8]) -> u64 {
        let mut hash = Xxh64::default();
        hash.update(bytes);
        hash.finish()
    }

    /// Computed with the Python package xxhash.
    #[test]
    fn known_answers() {
        let counting: Vec<u8> = (0..200).collect();
        assert_eq!(whole(b""), 0xef46_db37_51d8_e999);
        assert_eq!(whole(b"abc"), 0x44bc_2cf5_ad77_0999);
        assert_eq!(whole(&counting[..32]), 0xcbf5_9c51_16ff_32b4);
        assert_eq!(whole(&counting), 0x50dc_1079_b99e_879c);
    }

    #[test]
    fn pieces_change_nothing() {
        let bytes: Vec<u8> = (0..1000u32).map(|i| ((i * i) >> 3) as u8).collect();
        for piece in [1, 3, 8, 31, 32, 33, 100, 999] {
            let mut hash = Xxh64::default();
            bytes.chunks(piece).for_each(|b| hash.update(b));
            assert_eq!(hash.finish(), whole(&bytes), "pieces of {piece}");
        }
        for i in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[i] ^= 1;
            assert_ne!(whole(&damaged), whole(&bytes));
        }
    }
}
