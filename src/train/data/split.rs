//! Rows to train on, and rows to hold out.

use super::Conversation;

/// Takes `held_out` of the conversations, chosen by `seed` and their number and nothing else, and returns the others
/// and those, both in their order. Fewer are held out if there are not more than that.
pub fn split(conversations: Vec<Conversation>, held_out: usize, seed: u64) -> (Vec<Conversation>, Vec<Conversation>) {
    let mut order: Vec<usize> = (0..conversations.len()).collect();
    order.sort_by_key(|&i| (mix(seed ^ mix(i as u64)), i));
    let mut held = vec![false; conversations.len()];
    let at_most = held_out.min(conversations.len().saturating_sub(1));
    order[..at_most].iter().for_each(|&i| held[i] = true);
    let (mut train, mut out) = (Vec::new(), Vec::new());
    for (conversation, held) in conversations.into_iter().zip(held) {
        if held { out.push(conversation) } else { train.push(conversation) }
    }
    (train, out)
}

/// SplitMix64's output function.
fn mix(z: u64) -> u64 {
    let z = z.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}
