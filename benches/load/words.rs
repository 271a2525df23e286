//! Text of a wanted number of tokens.

use super::rng::Rng;

/// Words that are one token, with the space before them, in the vocabularies of most language models.
const WORDS: &str = "time year people way day man thing woman life child world school state family student group \
    country problem hand part place case week company system program question work government number night point \
    home water room mother area money story fact month lot right study book eye job word business issue side kind \
    head house service friend father power hour game line end member law car city community name president team \
    minute idea kid body information back parent face others level office door health person art war history party \
    result change morning reason research girl guy moment air teacher force education foot boy age policy music \
    process mind sense nation plan college interest death experience effect use class control field development \
    role effort rate heart drug show leader light voice wife police price report decision view relationship town \
    road arm difference value building action model season society tax director position player record paper space \
    ground form event official matter center couple site project activity star table need court oil situation cost \
    industry figure street image phone data picture practice piece land product doctor wall news test movie north \
    love step support technology big small large green blue white black red old young early late public private \
    open close cold warm high low long short strong quick deep wide clear simple common single final main major \
    local social free full real whole true special hard easy recent general";

/// `n` random words. With some 290 of them, texts that share their first five are one pair in 10¹².
pub fn text(rng: &mut Rng, n: usize) -> String {
    // Splitting is cheap next to a request, and a list that is built once would be a global.
    let words: Vec<&str> = WORDS.split_whitespace().collect();
    let mut text = String::with_capacity(n * 7);
    for i in 0..n {
        if i > 0 {
            text.push(' ');
        }
        text.push_str(words[rng.below(words.len())]);
    }
    text
}

/// How many words make a token, as one server's tokenizer sees them.
#[derive(Clone, Copy, Debug)]
pub struct WordRate(f64);

/// Words of the two prompts that are counted.
pub const PROBES: [usize; 2] = [8, 64];

impl WordRate {
    /// One token a word.
    pub const ONE: Self = Self(1.0);

    /// From the server's counts of [`PROBES`], templates included. `None` if they make no sense.
    pub fn from_probes(counts: [u64; 2]) -> Option<Self> {
        let tokens = counts[1].checked_sub(counts[0])? as f64;
        let rate = (PROBES[1] - PROBES[0]) as f64 / tokens;
        (0.1..=10.0).contains(&rate).then_some(Self(rate))
    }

    /// Words that make about this many tokens.
    pub fn words(self, tokens: u32) -> usize {
        ((f64::from(tokens) * self.0).round() as usize).max(1)
    }

    /// Tokens a word makes.
    pub fn tokens_per_word(self) -> f64 {
        1.0 / self.0
    }
}
