//! Plans for people and for programs.

use std::fmt::{self, Display, Formatter};

use serde_json::{Value, json};

use super::device::gb;
use super::{Choice, Plan, Plans};
use crate::units::{count, number};

impl Display for Plans {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        if self.json {
            let plans: Vec<Value> = self.plans.iter().map(Plan::to_json).collect();
            return writeln!(f, "{:#}", Value::Array(plans));
        }
        for (i, plan) in self.plans.iter().enumerate() {
            if i > 0 {
                writeln!(f)?;
            }
            plan.fmt(f)?;
        }
        Ok(())
    }
}

impl Plan {
    /// The same for programs: bytes, tokens, tokens a second.
    pub fn to_json(&self) -> Value {
        let q = &self.question;
        let device = &q.machine.device;
        let choices = self.choices.iter().map(|choice| {
            let mut value = json!(choice);
            value["decode_total"] = json!(choice.total());
            value
        });
        let recommended =
            self.recommended().map(|c| json!({ "format": c.format, "ranks": c.ranks, "replicas": c.replicas }));
        json!({
            "model": q.name,
            "parameters": self.parameters,
            "kv_token_bytes": self.kv_token_bytes,
            "device": {
                "name": device.name, "count": q.machine.count, "memory": q.machine.memory(), "bandwidth": device.bandwidth,
                "flops": device.flops, "link": device.link,
            },
            "kv_cache_dtype": q.kv,
            "context": q.context,
            "max_model_len": q.max_model_len,
            "choices": choices.collect::<Vec<_>>(),
            "refused": self.refused.iter().map(|(ranks, why)| json!({ "ranks": ranks, "why": why })).collect::<Vec<_>>(),
            "recommended": recommended,
        })
    }

    fn row(&self, choice: &Choice) -> [String; 13] {
        let m = &choice.memory;
        let is_it = self.recommended().is_some_and(|c| (c.format, c.ranks) == (choice.format, choice.ranks));
        let rate =
            |of: fn(&super::Speed) -> f64| choice.speed.as_ref().map_or("–".to_owned(), |speed| number(of(speed)));
        [
            if is_it { "→" } else { "" }.to_owned(),
            choice.format.name().to_owned(),
            choice.ranks.to_string(),
            choice.replicas.to_string(),
            format!("{:.2}", gb(m.weights)),
            format!("{:.2}", gb(m.activations + m.other)),
            format!("{:.2}", gb(m.cache)),
            count(choice.kv_tokens),
            count(choice.sequences),
            if choice.fits { "yes" } else { "no" }.to_owned(),
            rate(|speed| speed.decode_one),
            choice
                .speed
                .as_ref()
                .map_or("–".to_owned(), |s| format!("{} ({})", number(choice.total()), s.at_once * choice.replicas)),
            choice.speed.as_ref().map_or("–".to_owned(), |s| number(s.prefill * choice.replicas as f64)),
        ]
    }
}

impl Display for Plan {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let q = &self.question;
        let (c, machine) = (&q.config, &q.machine);
        let device = &machine.device;
        writeln!(
            f,
            "**{}**: {} parameters, {} layers of {}, {} heads of {} ({} of keys and values), MLP {}, vocabulary {}; \
             {} kB of {} keys and values a token.",
            q.name,
            count(self.parameters),
            c.num_layers,
            c.hidden_size,
            c.num_heads,
            c.head_dim,
            c.num_kv_heads,
            c.intermediate_size,
            c.vocab_size,
            number(self.kv_token_bytes / 1e3),
            q.kv.name(),
        )?;
        writeln!(
            f,
            "**{} × {}**: {:.1} GB each, {} TB/s, {} TFLOP/s, {} GB/s between ranks. Sequences of {} tokens, {} at most; steps \
             of {} tokens, {} sequences.\n",
            machine.count,
            device.name,
            gb(machine.memory()),
            number(device.bandwidth / 1e12),
            number(device.flops / 1e12),
            number(device.link / 1e9),
            count(q.context as u64),
            count(q.max_model_len as u64),
            count(q.step.tokens as u64),
            q.step.sequences,
        )?;
        let header = [
            "",
            "weights",
            "ranks",
            "replicas",
            "weights, GB",
            "other, GB",
            "cache, GB",
            "cache, tokens",
            "sequences",
            "fits",
            "decode, one",
            "decode, all (at once)",
            "prefill",
        ]
        .map(String::from);
        let rows: Vec<[String; 13]> = self.choices.iter().map(|choice| self.row(choice)).collect();
        let mut widths = header.clone().map(|cell| cell.chars().count().max(2));
        for row in &rows {
            widths.iter_mut().zip(row).for_each(|(width, cell)| *width = (*width).max(cell.chars().count()));
        }
        let line = |f: &mut Formatter<'_>, row: &[String; 13]| {
            for (cell, width) in row.iter().zip(widths) {
                write!(f, "| {}{cell} ", " ".repeat(width - cell.chars().count()))?;
            }
            writeln!(f, "|")
        };
        line(f, &header)?;
        line(f, &widths.map(|width| format!("{}:", "-".repeat(width - 1))))?;
        rows.iter().try_for_each(|row| line(f, row))?;
        writeln!(
            f,
            "\nGB are 10⁹ bytes, on the rank that has most; weights, other, cache and tokens are of one replica. Speeds are tokens a \
             second, at most; one: of a replica's single sequence; all and prefill: of all replicas."
        )?;
        for (ranks, why) in &self.refused {
            writeln!(f, "{ranks} ranks: {why}.")?;
        }
        match self.recommended() {
            Some(choice) => {
                let replicas = match choice.replicas {
                    1 => String::new(),
                    n => format!(", {n} replicas behind one address"),
                };
                writeln!(f, "Recommended: {}, --tensor-parallel-size {}{replicas}.", choice.format.name(), choice.ranks)
            }
            None => writeln!(f, "Nothing fits."),
        }
    }
}
