//! What ranks send each other in a step, and how long that takes on given links.
//!
//! An exchange is reckoned as it is done here: a rank sends each other rank of the group that one's part, and after the
//! sum its own. Nothing is assumed to overlap with computing, so the time is an upper bound for given rates.

use super::{Choice, Device, Question};

/// How nodes are connected.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Links {
    /// Nodes, with equally many ranks each, in rank order.
    pub nodes: usize,
    /// Bytes a second that a rank sends to others of its node.
    pub inside: f64,
    /// Bytes a second that a node sends to others.
    pub between: f64,
}

/// What goes over the links in a step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Traffic {
    /// Bytes that a rank sends to others of its node: of the rank that sends most.
    pub inside: f64,
    /// Bytes that a node sends to others: of the node that sends most.
    pub between: f64,
    /// Seconds for both.
    pub seconds: f64,
}

/// Of one way to train.
pub fn traffic(question: &Question, choice: &Choice, links: &Links) -> Traffic {
    let (tensor, data) = (choice.layout.tensor, choice.layout.data);
    let (ranks, c, memory) = (choice.layout.ranks(), &question.config, &choice.memory);
    let here = ranks.div_ceil(links.nodes);
    // Data parallel: gradients are summed, weights gathered. Here weights go as F32, whatever they are kept in.
    let weights = match question.device {
        Device::Cpu { .. } => memory.gradients,
        Device::Gpus { .. } => memory.weights,
    };
    let to_data = (memory.gradients + weights) / data as f64;
    // Tensor parallel: the residual stream is summed after attention and MLP, their gradients on the way back; what is
    // computed again is summed again. Embedding and head once each. A sum is sent twice: parts, and what became of them.
    let sums = c.num_layers as f64 * if question.checkpointing { 6.0 } else { 4.0 } + 2.0;
    let steps = question.data.examples.div_ceil(question.batch.max(1)).max(1);
    let tokens = question.data.tokens as f64 / steps as f64 / data as f64;
    let stream = tokens * c.hidden_size as f64 * question.device.backend().activation();
    let to_tensor = 2.0 * sums * stream / tensor as f64;
    let node = |rank: usize| rank / here;
    // Bytes that a rank sends inside and between.
    let sent = |rank: usize| {
        let group = rank / tensor;
        let tensors = (group * tensor..(group + 1) * tensor).map(|peer| (peer, to_tensor));
        let datas = (0..data).map(|d| (d * tensor + rank % tensor, to_data));
        let others = tensors.chain(datas).filter(|(peer, _)| *peer != rank);
        others.fold((0.0, 0.0), |(inside, between), (peer, bytes)| match node(peer) == node(rank) {
            true => (inside + bytes, between),
            false => (inside, between + bytes),
        })
    };
    let all: Vec<(f64, f64)> = (0..ranks).map(sent).collect();
    let inside = all.iter().map(|(inside, _)| *inside).fold(0.0, f64::max);
    let between = all.chunks(here).map(|node| node.iter().map(|(_, between)| between).sum()).fold(0.0, f64::max);
    Traffic { inside, between, seconds: inside / links.inside + between / links.between }
}
