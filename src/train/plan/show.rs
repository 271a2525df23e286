//! A plan for people. GB are 10⁹ bytes.

use std::fmt::{self, Display, Formatter};
use std::time::Duration;

use super::memory::{self, Training};
use super::{Choice, Device, Layout, Links, Plan};
use crate::ops::quant::DType;
use crate::units::{bytes, count, duration, number};

impl Display for Training {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Full { weights: DType::BF16, moments: DType::BF16 } => f.write_str("all, in BF16"),
            Self::Full { weights: DType::F32, moments: DType::F32 } => f.write_str("all, F32 masters"),
            Self::Full { weights, moments } => write!(f, "all, {weights} masters, {moments} moments"),
            Self::Lora { rank, base } => write!(f, "LoRA {rank}, base {base}"),
        }
    }
}

impl Display for Plan {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let q = &self.question;
        let c = &q.config;
        let rows = match q.new_rows {
            0 => String::new(),
            n => format!(", with {n} new rows of vocabulary"),
        };
        writeln!(f, "model       {}{rows}: {} parameters", q.name, count(self.parameters))?;
        writeln!(
            f,
            "shape       {} layers of {}, {} heads of {} ({} of keys and values), MLP {}, vocabulary {}",
            c.num_layers, c.hidden_size, c.num_heads, c.head_dim, c.num_kv_heads, c.intermediate_size, c.vocab_size
        )?;
        let (tokens, learnt) = (count(q.data.tokens), count(q.data.supervised));
        writeln!(f, "data        {}: {tokens} tokens an epoch, {learnt} of them learnt", q.data.name)?;
        writeln!(
            f,
            "steps       {} an epoch of {} examples, {} in {} epochs; {} tokens at a time",
            self.steps_per_epoch,
            q.batch,
            self.steps(),
            q.epochs,
            count(q.micro_tokens as u64)
        )?;
        writeln!(
            f,
            "work        {:.2e} FLOP, {:.2e} with recomputed activations",
            self.flops, self.flops_with_recompute
        )?;
        let rate = &q.rate;
        writeln!(
            f,
            "speed       {} TFLOP/s a rank, assumed: {:.0} % of {} ({})",
            number(rate.peak.flops * rate.utilisation / 1e12),
            rate.utilisation * 100.0,
            number(rate.peak.flops / 1e12),
            rate.peak.source
        )?;
        match &q.device {
            Device::Cpu { memory: Some(free), .. } => writeln!(f, "memory      {} free on this machine", bytes(*free))?,
            Device::Cpu { memory: None, .. } => writeln!(f, "memory      unknown on this machine")?,
            Device::Gpus { count, memory } => writeln!(f, "memory      {count} GPUs of {}", bytes(*memory))?,
        }
        writeln!(f)?;
        self.table(f)?;
        writeln!(f)?;
        if let Some(links) = &q.links {
            self.links(f, links)?;
        }
        self.notes(f)
    }
}

fn ranks(layout: Layout) -> String {
    match (layout.tensor, layout.data) {
        (1, 1) => "1".into(),
        (tensor, 1) => format!("TP {tensor}"),
        (1, data) => format!("ZeRO-1 {data}"),
        (tensor, data) => format!("TP {tensor} × ZeRO-1 {data}"),
    }
}

/// A mark and two columns of words to the left, numbers to the right.
fn write_table<const N: usize>(f: &mut Formatter<'_>, rows: &[[String; N]]) -> fmt::Result {
    let mut widths = [0; N];
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    for row in rows {
        let mut line = String::new();
        for (i, (cell, width)) in row.iter().zip(widths).enumerate() {
            let gap = " ".repeat(width - cell.chars().count() + 2);
            match i {
                0 => line += &format!("{cell} "),
                1 | 2 => line += &format!("{cell}{gap}"),
                _ => line += &format!("{gap}{cell}"),
            }
        }
        writeln!(f, "{}", line.trim_end())?;
    }
    Ok(())
}

impl Plan {
    fn table(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let header = [
            "",
            "trained",
            "ranks",
            "weights",
            "frozen",
            "gradients",
            "states",
            "activations",
            "loss",
            "answers",
            "other",
            "GB a rank",
            "fits",
            "otherwise",
            "time",
        ];
        let mut rows = vec![header.map(String::from)];
        rows.extend(self.choices.iter().map(|choice| self.row(choice)));
        write_table(f, &rows)
    }

    /// What goes over the links in a step, and how fast training is with it.
    fn links(&self, f: &mut Formatter<'_>, links: &Links) -> fmt::Result {
        let gb = |bytes: f64| number(bytes / 1e9);
        let nodes = links.nodes;
        let (inside, between) = (gb(links.inside), gb(links.between));
        writeln!(f, "links       {nodes} nodes; {inside} GB/s a rank inside one, {between} GB/s a node to others")?;
        writeln!(f)?;
        let header = ["", "trained", "ranks", "GB inside", "GB between", "s sent", "s computed", "tokens/s", "run"];
        let mut rows = vec![header.map(String::from)];
        let steps = self.steps().max(1) as f64;
        let tokens = self.question.data.tokens as f64 / self.steps_per_epoch.max(1) as f64;
        for choice in &self.choices {
            let Some(traffic) = self.traffic(choice) else { continue };
            let computed = choice.time.as_secs_f64() / steps;
            let step = computed + traffic.seconds;
            rows.push([
                self.mark(choice),
                choice.training.to_string(),
                ranks(choice.layout),
                gb(traffic.inside),
                gb(traffic.between),
                number(traffic.seconds),
                number(computed),
                number(tokens / step),
                duration(Duration::try_from_secs_f64(step * steps).unwrap_or(Duration::MAX)),
            ]);
        }
        write_table(f, &rows)?;
        writeln!(f)?;
        writeln!(
            f,
            "In a step a rank sends so much inside its node, and a node so much to others, if nothing is lost to protocols \
             and nothing is sent while something is computed. These rates are assumed, not measured."
        )
    }

    fn mark(&self, choice: &Choice) -> String {
        let is_it = self.recommended().is_some_and(|c| c.training == choice.training);
        if is_it { "→" } else { " " }.into()
    }

    fn row(&self, choice: &Choice) -> [String; 15] {
        let gb = |bytes: f64| match bytes / 1e9 {
            0.0 => "–".to_owned(),
            gb if gb >= 10.0 => format!("{gb:.1}"),
            gb => format!("{gb:.2}"),
        };
        let m = &choice.memory;
        let parts = [m.weights, m.frozen, m.gradients, m.states, m.activations, m.loss, m.answers, m.other, m.total()];
        let [weights, frozen, gradients, states, activations, loss, answers, other, total] = parts.map(gb);
        let fits = if choice.fits { "yes" } else { "no" };
        [
            self.mark(choice),
            choice.training.to_string(),
            ranks(choice.layout),
            weights,
            frozen,
            gradients,
            states,
            activations,
            loss,
            answers,
            other,
            total,
            fits.into(),
            gb(choice.otherwise.total()),
            duration(choice.time),
        ]
    }

    fn notes(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let q = &self.question;
        let backend = q.device.backend();
        writeln!(f, "GB are 10⁹ bytes. States are moments, and F32 masters where they are not the weights.")?;
        let kept = memory::checkpoints(&q.config, q.micro_tokens, backend);
        let (layer, all) = (number(kept / q.config.num_layers as f64 / 1e6), number(kept / 1e9));
        let text = match q.checkpointing {
            true => "What enters each layer is kept, and one layer at a time computed again",
            false => "All activations are kept",
        };
        let other = if q.checkpointing { "without" } else { "with" };
        writeln!(f, "{text}. What enters the layers is {layer} MB each, {all} GB. Otherwise: {other} checkpointing.")?;
        if let (Device::Cpu { .. }, Some(layout)) = (&q.device, q.layout.filter(|layout| layout.ranks() > 1)) {
            let ranks = q.of_process(layout);
            writeln!(
                f,
                "TP cuts every matrix over ranks; ZeRO-1 shares the batch among ranks and shards the states. What fits are all \
                 {ranks} ranks, which are threads of one process."
            )?;
        }
        if let Device::Gpus { .. } = q.device {
            writeln!(
                f,
                "TP cuts every matrix over ranks; ZeRO-1 shares the batch among ranks and shards the states. This version \
                 trains on the CPU: for GPUs it only plans."
            )?;
        }
        match self.recommended() {
            Some(choice) if choice.fits => writeln!(f, "Fits: {}.", choice.training),
            Some(choice) => writeln!(f, "Does not fit: {}.", choice.training),
            None => writeln!(f, "Nothing fits."),
        }
    }
}
