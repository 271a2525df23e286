//! An adapter's matrices in the order the kernels read them.

use std::ops::Range;

use crate::model::config::LlamaConfig;
use crate::model::lora::{self, Pair, Part, Site};
use crate::ops::cpu::buffer::Buffer;
use crate::ops::cpu::pack::{BLOCK, TILE};

/// An adapter for [`Cpu`](crate::ops::cpu::Cpu), F32.
pub struct Adapter {
    /// By layer and part.
    layers: Vec<[Option<Weights>; Part::ALL.len()]>,
    rank: usize,
    bytes: usize,
}

/// The adapted projections of one product. Their ranks stand side by side: column `j` of `u` is the `j`-th of all.
pub(super) struct Weights {
    /// Inputs, padded like activations.
    columns: usize,
    /// For each 16 ranks, for each input, 16 numbers: A, one rank a lane.
    a: Buffer<f32>,
    /// B of the merged outputs; of gate, then of up.
    b: Vec<Outputs>,
}

/// B times the scale, tile by tile of 16 outputs.
struct Outputs {
    tiles: Vec<Tile>,
    /// For each rank of a tile, 16 numbers: one output a lane.
    b: Buffer<f32>,
}

/// The ranks a tile's outputs depend on, and where its numbers begin.
struct Tile {
    ranks: Range<usize>,
    at: usize,
}

impl Adapter {
    /// Packs an adapter of a model of this shape.
    pub fn pack(adapter: &lora::Adapter, config: &LlamaConfig) -> Self {
        let mut bytes = 0;
        let mut weights = |at: Site| {
            let weights = Weights::pack(adapter, config, at)?;
            bytes += weights.bytes();
            Some(weights)
        };
        let layers = (0..config.num_layers).map(|layer| Part::ALL.map(|part| weights(Site { layer, part }))).collect();
        Self { layers, rank: adapter.rank(), bytes }
    }

    /// The largest rank of a projection.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// Bytes in memory.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn at(&self, at: Site) -> Option<&Weights> {
        self.layers[at.layer][at.part as usize].as_ref()
    }
}

/// A projection of a product: the rows of its output among the merged ones, and if it is adapted, its ranks among
/// all and its matrices.
struct Piece<'a> {
    rows: Range<usize>,
    pair: Option<(Range<usize>, &'a Pair)>,
}

impl Weights {
    fn pack(adapter: &lora::Adapter, config: &LlamaConfig, at: Site) -> Option<Self> {
        let (mut row, mut ranks, mut cols) = (0, 0, 0);
        let mut pieces = Vec::new();
        for &projection in at.part.projections() {
            let (out, inputs) = projection.shape(config);
            let pair = adapter.pair(at.layer, projection).map(|pair| (ranks..ranks + pair.rank, pair));
            ranks = pair.as_ref().map_or(ranks, |(r, _)| r.end);
            pieces.push(Piece { rows: row..row + out, pair });
            row += out;
            cols = inputs;
        }
        if ranks == 0 {
            return None;
        }
        let columns = cols.next_multiple_of(BLOCK);
        let mut a = Buffer::zeroed(ranks.div_ceil(TILE) * columns * TILE);
        for (at, pair) in pieces.iter().filter_map(|p| p.pair.as_ref()) {
            for (rank, row) in at.clone().zip(pair.a.chunks_exact(cols)) {
                for (k, value) in row.iter().enumerate() {
                    a[(rank / TILE * columns + k) * TILE + rank % TILE] = *value;
                }
            }
        }
        let b = match at.part {
            // Gate and up are matrices of their own.
            Part::GateUp => pieces.chunks(1).map(Outputs::pack).collect(),
            _ => vec![Outputs::pack(&pieces)],
        };
        Some(Self { columns, a, b })
    }

    pub(super) fn columns(&self) -> usize {
        self.columns
    }

    /// Tiles of 16 ranks.
    pub(super) fn tiles(&self) -> usize {
        self.a.len() / (self.columns * TILE)
    }

    pub(super) fn a(&self, tile: usize) -> *const f32 {
        self.a[tile * self.columns * TILE..].as_ptr()
    }

    /// B of a tile of outputs, and the ranks it is multiplied with; `None` if the tile is not adapted.
    #[inline]
    pub(super) fn b(&self, which: usize, tile: usize) -> Option<(*const f32, Range<usize>)> {
        let outputs = &self.b[which];
        let tile = &outputs.tiles[tile];
        (!tile.ranks.is_empty()).then(|| (outputs.b[tile.at..].as_ptr(), tile.ranks.clone()))
    }

    fn bytes(&self) -> usize {
        (self.a.len() + self.b.iter().map(|o| o.b.len()).sum::<usize>()) * size_of::<f32>()
    }
}

impl Outputs {
    fn pack(pieces: &[Piece<'_>]) -> Self {
        let (first, end) = (pieces[0].rows.start, pieces[pieces.len() - 1].rows.end);
        let mut tiles = Vec::new();
        let mut len = 0;
        for from in (first..end).step_by(TILE) {
            // A tile may hold the last outputs of one projection and the first of the next: it takes the ranks of
            // both, with zeros where they do not belong.
            let here = |p: &&Piece<'_>| p.rows.start < from + TILE && from < p.rows.end;
            let ranks = pieces.iter().filter(here).filter_map(|p| p.pair.as_ref().map(|(ranks, _)| ranks.clone()));
            let ranks = ranks.reduce(|a, b| a.start..b.end).unwrap_or(0..0);
            let next = len + ranks.len() * TILE;
            tiles.push(Tile { ranks, at: len });
            len = next;
        }
        let mut b = Buffer::zeroed(len);
        for piece in pieces {
            let Some((ranks, pair)) = &piece.pair else { continue };
            for (row, values) in piece.rows.clone().zip(pair.b.chunks_exact(pair.rank)) {
                let tile = &tiles[(row - first) / TILE];
                let from = tile.at + (ranks.start - tile.ranks.start) * TILE + (row - first) % TILE;
                for (j, value) in values.iter().enumerate() {
                    b[from + j * TILE] = value * pair.scale;
                }
            }
        }
        Self { tiles, b }
    }
}
