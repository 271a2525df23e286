//! How tensors are cut over tensor-parallel ranks: Megatron-LM's way (Shoeybi et al., arXiv 1909.08053).

use super::TensorView;
use super::names::is_vocabulary;
use crate::model::lora::Projection;
use crate::parallel::Share;

/// Along what a tensor is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// Rows, so that each rank makes some of the outputs: heads, columns of the MLP, tokens.
    Rows,
    /// Columns, so that each rank reads some of the inputs, and outputs are sums over ranks.
    Columns,
    /// It is on every rank.
    Whole,
}

impl Cut {
    /// Of a tensor, by its Hugging Face name.
    pub fn of(name: &str) -> Self {
        match projection(name) {
            Some(Projection::Output | Projection::Down) => Self::Columns,
            Some(_) => Self::Rows,
            None if is_vocabulary(name) => Self::Rows,
            None => Self::Whole,
        }
    }
}

/// Which projection of a layer a tensor is, by its Hugging Face name.
pub(super) fn projection(name: &str) -> Option<Projection> {
    let name = name.strip_suffix(".weight")?;
    Projection::ALL.into_iter().find(|p| name.ends_with(p.name()))
}

/// A rank's part of a tensor. `vocab` are the rows that embedding and head have in the model; a file may have fewer, so a
/// rank's part may be shorter than others, or empty. `None` where the columns are not whole blocks of the format.
pub fn shard<'a>(view: &TensorView<'a>, name: &str, vocab: usize, share: Share) -> Option<TensorView<'a>> {
    if share == Share::WHOLE {
        return Some(*view);
    }
    let (rows, cols) = match Cut::of(name) {
        Cut::Whole => (0..view.rows, 0..view.cols),
        Cut::Columns => (0..view.rows, share.of(view.cols)),
        Cut::Rows if is_vocabulary(name) => {
            let rows = share.of(vocab);
            (rows.start.min(view.rows)..rows.end.min(view.rows), 0..view.cols)
        }
        Cut::Rows => (share.of(view.rows), 0..view.cols),
    };
    view.part(rows, cols)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::ops::quant::{DType, quantize_row};

    #[test]
    fn tensors_are_cut_by_name() {
        let layer = |part: &str| format!("model.layers.3.{part}.weight");
        for part in ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj"] {
            assert_eq!(Cut::of(&layer(part)), Cut::Rows);
        }
        assert_eq!(Cut::of(&layer("self_attn.o_proj")), Cut::Columns);
        assert_eq!(Cut::of(&layer("mlp.down_proj")), Cut::Columns);
        assert_eq!(Cut::of(&layer("input_layernorm")), Cut::Whole);
        assert_eq!(Cut::of("model.norm.weight"), Cut::Whole);
        assert_eq!([Cut::of("lm_head.weight"), Cut::of("model.embed_tokens.weight")], [Cut::Rows; 2]);
    }

    /// The shards of a tensor, put together, are the tensor; rows that GGUF stores pair by pair too.
    #[test]
    fn shards_are_parts() {
        let (rows, cols) = (16, 64);
        let values: Vec<f32> = (0..rows * cols).map(|i| (i % 97) as f32 - 40.0).collect();
        for (dtype, interleaved) in [(DType::F32, None), (DType::F32, Some(4)), (DType::Q8_0, None)] {
            let mut bytes = vec![0; rows * dtype.row_bytes(cols).unwrap()];
            for (values, bytes) in values.chunks(cols).zip(bytes.chunks_mut(dtype.row_bytes(cols).unwrap())) {
                quantize_row(dtype, values, bytes);
            }
            let view = TensorView::new(dtype, rows, cols, &bytes, interleaved).unwrap();
            let whole = view.to_f32();
            let of = |name: &str, rank| shard(&view, name, 24, Share { rank, of: 2 }).unwrap();
            let q = "model.layers.0.self_attn.q_proj.weight";
            assert_eq!([of(q, 0).to_f32(), of(q, 1).to_f32()].concat(), whole);
            let (down, half) = ("model.layers.0.mlp.down_proj.weight", cols / 2);
            let halves = [of(down, 0), of(down, 1)];
            for row in 0..rows {
                let mut both = vec![0.0; cols];
                halves.iter().zip(both.chunks_mut(half)).for_each(|(view, to)| view.read_row(row, to));
                assert_eq!(both, whole[row * cols..][..cols]);
            }
            // Twelve rows of a table of 24 are the first rank's; the file has four more.
            let head = [of("lm_head.weight", 0), of("lm_head.weight", 1)];
            assert_eq!(head.map(|view| view.rows), [12, 4]);
            assert_eq!(head.map(|view| view.to_f32()).concat(), whole);
            assert_eq!(shard(&view, "lm_head.weight", 64, Share { rank: 1, of: 2 }).unwrap().rows, 0);
            let quarter = shard(&view, down, 24, Share { rank: 1, of: 4 });
            assert_eq!(quarter.is_some(), dtype == DType::F32, "blocks are not cut");
        }
    }
}
