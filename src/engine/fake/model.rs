//! The fake model: a stirring of all tokens before, and what requests must get with it.

use crate::engine::adapters::AdapterLease;
use crate::engine::executor::Scored;
use crate::engine::types::{AdapterSlot, FinishReason, Pooling, Request, SamplingParams, Task, TokenId};

/// Numbers in a fake hidden state.
pub const FAKE_HIDDEN: usize = 4;

/// A stirring of `value` into `hash` (splitmix64).
fn mix(hash: u64, value: u64) -> u64 {
    let mut z = (hash ^ value).wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The fake model: the token after `context`. The seed and choice matter unless it is greedy.
pub fn next_token(
    context: &[TokenId],
    params: &SamplingParams,
    adapter: Option<AdapterSlot>,
    vocab_size: u32,
) -> TokenId {
    let mut hash = adapter.map_or(0, |slot| mix(mix(1, u64::from(slot.index)), slot.generation));
    if params.temperature > 0.0 {
        hash = mix(mix(hash, params.seed), u64::from(params.choice) + 1);
    }
    let hash = context.iter().fold(hash, |hash, &token| mix(hash, u64::from(token)));
    (hash % u64::from(vocab_size)) as TokenId
}

/// The fake model: how likely `token` is after `context`.
pub fn score_token(
    context: &[TokenId],
    token: TokenId,
    top: u32,
    adapter: Option<AdapterSlot>,
    vocab_size: u32,
) -> Scored {
    let best = next_token(context, &SamplingParams::default(), adapter, vocab_size);
    let place = |token: TokenId| (token + vocab_size - best % vocab_size) % vocab_size;
    let logprob = |token| -0.5 - place(token) as f32;
    let top = (0..top.min(vocab_size)).map(|i| (best + i) % vocab_size).map(|t| (t, logprob(t))).collect();
    Scored { token, logprob: logprob(token), rank: place(token) + 1, top }
}

/// The fake model: the hidden state of the last token of `context`.
pub fn fake_hidden(context: &[TokenId], adapter: Option<AdapterSlot>) -> [f32; FAKE_HIDDEN] {
    let hash = u64::from(next_token(context, &SamplingParams::default(), adapter, 1 << 30));
    std::array::from_fn(|i| (mix(hash, i as u64) % 2001) as f32 / 1000.0 - 1.0)
}

fn slot(request: &Request) -> Option<AdapterSlot> {
    request.adapter.as_ref().map(AdapterLease::slot)
}

/// The scores a request must get with the fake model, of its prompt's tokens from the second on.
pub fn oracle_scores(request: &Request, vocab_size: u32) -> Vec<Scored> {
    let Task::Generate { prompt_logprobs: Some(top) } = request.task else { return Vec::new() };
    let (prompt, adapter) = (&request.prompt, slot(request));
    (1..prompt.len()).map(|i| score_token(&prompt[..i], prompt[i], top, adapter, vocab_size)).collect()
}

/// The vector a request must get with the fake model.
pub fn oracle_pooled(request: &Request) -> Option<Vec<f32>> {
    let Task::Embed(pooling) = request.task else { return None };
    let prompt = &request.prompt;
    let hidden = |end: usize| fake_hidden(&prompt[..end], slot(request));
    Some(match pooling {
        Pooling::Last => hidden(prompt.len()).to_vec(),
        Pooling::Mean => {
            let mut sum = [0.0; FAKE_HIDDEN];
            for end in 1..=prompt.len() {
                let h = hidden(end);
                (0..FAKE_HIDDEN).for_each(|i| sum[i] += f64::from(h[i]));
            }
            sum.map(|s| (s / prompt.len() as f64) as f32).to_vec()
        }
    })
}

/// The first token from `token` on that the mask allows, and that does not stop too early if there is another; `None`
/// if the mask allows none.
pub(super) fn allowed(
    token: TokenId,
    params: &SamplingParams,
    generated: usize,
    mask: Option<&[u32]>,
    vocab_size: u32,
) -> Option<TokenId> {
    let bit = |mask: &[u32], t: TokenId| mask.get(t as usize / 32).is_some_and(|word| word >> (t % 32) & 1 == 1);
    let masked = |t: &TokenId| mask.is_none_or(|mask| bit(mask, *t));
    let early = |t: &TokenId| generated < params.min_tokens as usize && params.stop_token_ids.contains(t);
    let mut from = (token..vocab_size).chain(0..token).filter(masked);
    from.clone().find(|t| !early(t)).or_else(|| from.next())
}

/// What a request must generate with the fake model, computed without an engine. `max_len` limits
/// prompt and output together.
pub fn oracle(request: &Request, max_len: usize, vocab_size: u32) -> (Vec<TokenId>, FinishReason) {
    let params = &request.params;
    let mut tokens = request.prompt.to_vec();
    let num_prompt = tokens.len();
    if request.max_new_tokens() == 0 {
        return (Vec::new(), FinishReason::Length);
    }
    loop {
        let token = next_token(&tokens, params, slot(request), vocab_size);
        let token = allowed(token, params, tokens.len() - num_prompt, None, vocab_size).unwrap_or(token);
        tokens.push(token);
        let output = tokens.len() - num_prompt;
        if params.stop_token_ids.contains(&token) {
            return (tokens.split_off(num_prompt), FinishReason::Stop);
        }
        if output >= params.max_tokens as usize || tokens.len() >= max_len {
            return (tokens.split_off(num_prompt), FinishReason::Length);
        }
    }
}
