//! Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011): a bijection
//! of 128-bit counters under a 64-bit key. It has no state, so a draw depends on what it is for and
//! on nothing that happened before.

/// Ten rounds over `counter` under `key`.
pub fn philox4x32_10(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for round in 0..10 {
        if round > 0 {
            key = [key[0].wrapping_add(0x9E37_79B9), key[1].wrapping_add(0xBB67_AE85)];
        }
        let a = u64::from(counter[0]) * 0xD251_1F53;
        let b = u64::from(counter[2]) * 0xCD9E_8D57;
        counter = [(b >> 32) as u32 ^ counter[1] ^ key[0], b as u32, (a >> 32) as u32 ^ counter[3] ^ key[1], a as u32];
    }
    counter
}

/// The draw of choice `choice` at position `position` under `seed`: a multiple of 2⁻³² in `[0, 1)`.
///
/// Key: `seed`, low word first. Counter: `position`, low word first, then `choice`, then 0. The
/// first word of the result, over 2³².
pub fn uniform(seed: u64, choice: u32, position: u64) -> f64 {
    let counter = [position as u32, (position >> 32) as u32, choice, 0];
    let word = philox4x32_10(counter, [seed as u32, (seed >> 32) as u32])[0];
    f64::from(word) / 4_294_967_296.0
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The known answers published with Random123.
    #[test]
    fn known_answers() {
        assert_eq!(philox4x32_10([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(philox4x32_10([!0; 4], [!0; 2]), [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
        assert_eq!(
            philox4x32_10([0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344], [0xa409_3822, 0x299f_31d0]),
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]
        );
    }

    /// The arrangement of key and counter is part of the specification: a seed once given must
    /// draw the same for ever.
    #[test]
    fn arrangement_of_key_and_counter() {
        let word = philox4x32_10([0x89ab_cdef, 0x0123_4567, 0xfedc_ba98, 0], [0xa409_3822, 0x299f_31d0])[0];
        let u = uniform(0x299f_31d0_a409_3822, 0xfedc_ba98, 0x0123_4567_89ab_cdef);
        assert_eq!(u, f64::from(word) / 4_294_967_296.0);
        assert_eq!(uniform(0, 0, 0), f64::from(0x6627_e8d5_u32) / 4_294_967_296.0);
    }
}
