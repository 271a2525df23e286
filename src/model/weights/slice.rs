//! What each of a server's tensor-parallel ranks has of a model: whole heads, whole blocks of the MLP's columns, and as many
//! tokens as every other.
//!
//! Shares need not be equal: nine heads over two ranks are six and three. Where there are more ranks than heads of keys and
//! values, several ranks have the same one, and share the queries that read it.

use std::ops::Range;

use super::names::is_vocabulary;
use super::shard::projection;
use super::{Checkpoint, TensorView};
use crate::model::config::{ConfigError, LlamaConfig};
use crate::model::lora::Projection;
use crate::ops::quant::DType;
use crate::parallel::Share;

/// Columns that belong together in the matrices whose columns are shared: the formats' blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Blocks {
    /// Of attention's output.
    pub output: usize,
    /// Of the MLP's.
    pub down: usize,
}

impl Blocks {
    /// Numbers that stand alone.
    pub const ONE: Self = Self { output: 1, down: 1 };

    /// Of a checkpoint that is kept in `dtype` (`None`: as it is stored).
    pub fn of(checkpoint: &Checkpoint, dtype: Option<DType>) -> Self {
        let largest = |part: Projection| {
            let name = |layer: usize| format!("model.layers.{layer}.{}.weight", part.name());
            let stored = (0..checkpoint.config().num_layers).filter_map(|i| checkpoint.tensor(&name(i)).ok());
            // Lengths divide each other: the longest is a multiple of all.
            stored.map(|t| t.dtype).chain(dtype).map(DType::block_len).max().unwrap_or(1)
        };
        Self { output: largest(Projection::Output), down: largest(Projection::Down) }
    }
}

/// One rank's part of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slice {
    /// Query heads.
    pub heads: Range<usize>,
    /// Heads of keys and values: those that the queries read.
    pub kv_heads: Range<usize>,
    /// Columns of the MLP.
    pub mlp: Range<usize>,
    /// Rows of embedding and head. Of equal length on all ranks, so the last ones may reach beyond the vocabulary.
    pub tokens: Range<usize>,
    head_dim: usize,
}

impl Slice {
    /// The parts of so many ranks, in order.
    ///
    /// # Errors
    /// There are not enough heads or blocks for all; the message has the numbers of ranks for which there are.
    pub fn all(config: &LlamaConfig, ranks: usize, blocks: Blocks) -> Result<Vec<Self>, ConfigError> {
        let of = |ranks: usize| -> Option<Vec<Self>> {
            (0..ranks).map(|rank| Self::of(config, Share { rank, of: ranks }, blocks)).collect()
        };
        of(ranks).ok_or_else(|| {
            let fits = (1..=config.num_heads).filter(|&n| of(n).is_some()).collect::<Vec<_>>();
            let LlamaConfig { num_heads, num_kv_heads, head_dim, intermediate_size, .. } = config;
            ConfigError(format!(
                "{num_heads} heads of {head_dim} ({num_kv_heads} of keys and values) and {intermediate_size} columns of the \
                 MLP, in blocks of {} and {}, cannot be cut over {ranks} ranks, but over {}",
                blocks.output,
                blocks.down,
                listed(&fits)
            ))
        })
    }

    fn of(config: &LlamaConfig, share: Share, blocks: Blocks) -> Option<Self> {
        let (heads, kv_heads) = heads(config, share, blocks.output)?;
        let mlp = config.intermediate_size;
        // Vectors read 32 columns at a time.
        let mlp = cut(mlp, blocks.down.max(32), share).or_else(|| cut(mlp, blocks.down, share))?;
        let tokens = share.of(config.vocab_size.next_multiple_of(share.of));
        Some(Self { heads, kv_heads, mlp, tokens, head_dim: config.head_dim })
    }

    /// The shape of what the rank computes, of a model of shape `whole`. Its vocabulary is the rank's rows.
    pub fn shape(&self, whole: &LlamaConfig) -> LlamaConfig {
        LlamaConfig {
            num_heads: self.heads.len(),
            num_kv_heads: self.kv_heads.len(),
            intermediate_size: self.mlp.len(),
            vocab_size: self.tokens.len(),
            ..whole.clone()
        }
    }

    /// Outputs of a projection that the rank makes; `None`: all, as sums over ranks.
    pub fn outputs(&self, of: Projection) -> Option<Range<usize>> {
        match of {
            Projection::Q => Some(self.wide(&self.heads)),
            Projection::K | Projection::V => Some(self.wide(&self.kv_heads)),
            Projection::Gate | Projection::Up => Some(self.mlp.clone()),
            Projection::Output | Projection::Down => None,
        }
    }

    /// Inputs of a projection that the rank has; `None`: all.
    pub fn inputs(&self, of: Projection) -> Option<Range<usize>> {
        match of {
            Projection::Output => Some(self.wide(&self.heads)),
            Projection::Down => Some(self.mlp.clone()),
            _ => None,
        }
    }

    fn wide(&self, heads: &Range<usize>) -> Range<usize> {
        heads.start * self.head_dim..heads.end * self.head_dim
    }

    /// The rank's part of a tensor, by its Hugging Face name; `None` where its columns are not whole blocks of the format.
    pub fn part<'a>(&self, view: &TensorView<'a>, name: &str) -> Option<TensorView<'a>> {
        let (rows, cols) = match projection(name) {
            Some(of) => (self.outputs(of), self.inputs(of)),
            None if is_vocabulary(name) => {
                (Some(self.tokens.start.min(view.rows)..self.tokens.end.min(view.rows)), None)
            }
            None => (None, None),
        };
        view.part(rows.unwrap_or(0..view.rows), cols.unwrap_or(0..view.cols))
    }
}

/// The query heads of a rank, and the heads of keys and values that they read. `block` columns of the queries belong
/// together.
fn heads(config: &LlamaConfig, share: Share, block: usize) -> Option<(Range<usize>, Range<usize>)> {
    let (kv, group) = (config.num_kv_heads, config.num_heads / config.num_kv_heads);
    // How many things of `width` columns make whole blocks.
    let unit = |width: usize| block / gcd(block, width);
    if kv >= share.of {
        let kv = cut(kv, unit(group * config.head_dim), share)?;
        return Some((kv.start * group..kv.end * group, kv));
    }
    let ranks_of = |head: usize| Share { rank: head, of: kv }.of(share.of);
    let head = (0..kv).find(|&head| ranks_of(head).contains(&share.rank))?;
    let ranks = ranks_of(head);
    let among = Share { rank: share.rank - ranks.start, of: ranks.len() };
    let queries = cut(group, unit(config.head_dim), among)?;
    Some((head * group + queries.start..head * group + queries.end, head..head + 1))
}

/// A share of `len` things that are cut after every `unit` only; `None` if there is none for someone.
fn cut(len: usize, unit: usize, share: Share) -> Option<Range<usize>> {
    let pieces = len.is_multiple_of(unit).then_some(len / unit).filter(|&pieces| pieces >= share.of)?;
    let part = share.of(pieces);
    Some(part.start * unit..part.end * unit)
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// "1, 2 and 4", or "1 to 9".
fn listed(numbers: &[usize]) -> String {
    match numbers {
        [] => "none".to_owned(),
        [one] => one.to_string(),
        [first, .., last] if last - first + 1 == numbers.len() => format!("{first} to {last}"),
        [most @ .., last] => {
            format!("{} and {last}", most.iter().map(usize::to_string).collect::<Vec<_>>().join(", "))
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::json;

    use super::*;

    fn shape(heads: usize, kv_heads: usize, head_dim: usize, mlp: usize, vocab: usize) -> LlamaConfig {
        let json = json!({
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "intermediate_size": mlp,
            "num_hidden_layers": 1, "num_attention_heads": heads, "num_key_value_heads": kv_heads, "head_dim": head_dim,
            "vocab_size": vocab, "rms_norm_eps": 1e-5, "max_position_embeddings": 64
        });
        LlamaConfig::from_hf(json.as_object().unwrap()).unwrap()
    }

    fn all(config: &LlamaConfig, ranks: usize, block: usize) -> Result<Vec<Slice>, String> {
        Slice::all(config, ranks, Blocks { output: block, down: block }).map_err(|e| e.to_string())
    }

    /// Every head and column is one rank's, and each rank's queries read the keys it has, as many queries for each.
    #[test]
    fn parts_cover_the_model() {
        for (heads, kv_heads) in [(9, 3), (8, 8), (8, 2), (4, 1), (12, 3), (64, 8)] {
            let config = shape(heads, kv_heads, 16, 1536, 101);
            let group = heads / kv_heads;
            for ranks in 1..=heads.min(16) {
                let Ok(slices) = all(&config, ranks, 1) else { continue };
                let (mut head, mut column) = (0, 0);
                for (rank, s) in slices.iter().enumerate() {
                    assert_eq!((s.heads.start, s.mlp.start), (head, column), "{heads} {kv_heads} {ranks}");
                    (head, column) = (s.heads.end, s.mlp.end);
                    assert!(s.heads.len().is_multiple_of(s.kv_heads.len()));
                    let own = s.heads.len() / s.kv_heads.len();
                    for (i, q) in s.heads.clone().enumerate() {
                        assert_eq!(q / group, s.kv_heads.start + i / own, "{heads} {kv_heads} {ranks}");
                    }
                    let tokens = 101usize.div_ceil(ranks);
                    assert_eq!(s.tokens, rank * tokens..(rank + 1) * tokens);
                }
                assert_eq!((head, column), (heads, 1536));
            }
        }
    }

    #[test]
    fn shares_may_differ() {
        let smollm = shape(9, 3, 64, 1536, 49_152);
        let heads =
            |ranks| -> Vec<_> { all(&smollm, ranks, 32).unwrap().into_iter().map(|s| (s.heads, s.kv_heads)).collect() };
        assert_eq!(heads(2), [(0..3, 0..1), (3..9, 1..3)]);
        assert_eq!(heads(3), [(0..3, 0..1), (3..6, 1..2), (6..9, 2..3)]);
        assert_eq!(heads(4), [(0..3, 0..1), (3..6, 1..2), (6..7, 2..3), (7..9, 2..3)]);
        let error = all(&smollm, 10, 32).unwrap_err();
        assert!(error.contains("9 heads of 64 (3 of keys and values)"), "{error}");
        assert!(error.ends_with("cannot be cut over 10 ranks, but over 1 to 9"), "{error}");
    }

    /// Blocks stay whole: heads of 64 go by four where 256 columns belong together.
    #[test]
    fn blocks_are_not_cut() {
        let config = shape(32, 8, 64, 5632, 32_000);
        let slices = all(&config, 4, 256).unwrap();
        for s in &slices {
            assert!((s.heads.start * 64).is_multiple_of(256) && s.mlp.start.is_multiple_of(256));
        }
        assert_eq!(slices.iter().map(|s| s.mlp.len()).collect::<Vec<_>>(), [1280, 1536, 1280, 1536]);
        // Two ranks would share the four queries of a head, which are one block.
        let error = all(&config, 16, 256).unwrap_err();
        assert!(error.ends_with("but over 1 to 8"), "{error}");
        assert_eq!(listed(&[1, 2, 4]), "1, 2 and 4");
    }
}
