//! Tables for a terminal or a README.

use std::fmt::Write;

use super::report::Report;
use super::stats::Distribution;

/// A number with three significant digits or so.
pub fn number(value: f64) -> String {
    match value.abs() {
        v if v >= 99.95 => format!("{value:.0}"),
        v if v >= 9.995 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

/// A number that may be missing.
pub fn optional(value: Option<f64>) -> String {
    value.map_or_else(|| "–".into(), number)
}

/// Header and rows of a table, for all formats.
pub struct Table {
    pub title: &'static str,
    pub header: Vec<String>,
    pub rows: Vec<Vec<String>>,
    /// Columns from this one on are numbers.
    pub numbers_from: usize,
}

fn header(names: &[&str]) -> Vec<String> {
    names.iter().map(|&n| n.into()).collect()
}

/// Throughput and counts, one row a point.
pub fn throughput(report: &Report) -> Table {
    let mut names = vec!["load", "server", "requests", "failed"];
    let disconnected = report.points.iter().any(|p| p.summary.disconnected > 0);
    if disconnected {
        names.push("abandoned");
    }
    names.extend(["prompt tokens", "cached", "output tokens", "requests/s", "output tok/s", "total tok/s"]);
    if report.slo.is_some() {
        names.push("goodput, req/s");
    }
    let rows = report.points.iter().map(|p| {
        let s = &p.summary;
        let mut row = vec![
            p.load.clone(),
            report.servers[p.server].name.clone(),
            s.requests.to_string(),
            s.failures().to_string(),
        ];
        if disconnected {
            row.push(s.disconnected.to_string());
        }
        row.push(s.prompt_tokens.to_string());
        row.push(s.cached_tokens.map_or_else(|| "–".into(), |n| n.to_string()));
        row.push(s.output_tokens.to_string());
        row.extend([s.requests_per_second, s.output_tokens_per_second, s.total_tokens_per_second].map(number));
        row.extend(report.slo.map(|_| optional(s.goodput)));
        row
    });
    Table { title: "Throughput", header: header(&names), rows: rows.collect(), numbers_from: 2 }
}

fn cells(d: Option<&Distribution>) -> Vec<String> {
    [d.map(|d| d.mean), d.map(|d| d.p50), d.map(|d| d.p90), d.map(|d| d.p99)].into_iter().map(optional).collect()
}

/// Latencies, one row a point and metric.
pub fn latency(report: &Report) -> Table {
    let mut rows = Vec::new();
    for load in report.loads() {
        for metric in ["TTFT", "TPOT", "ITL", "E2E"] {
            for p in report.points.iter().filter(|p| p.load == load) {
                let s = &p.summary;
                let d = match metric {
                    "TTFT" => &s.ttft,
                    "TPOT" => &s.tpot,
                    "ITL" => &s.itl,
                    _ => &s.e2e,
                };
                let mut row = vec![load.to_owned(), metric.to_owned(), report.servers[p.server].name.clone()];
                row.extend(cells(d.as_ref()));
                rows.push(row);
            }
        }
    }
    let names = header(&["load", "milliseconds", "server", "mean", "p50", "p90", "p99"]);
    Table { title: "Latency", header: names, rows, numbers_from: 3 }
}

/// The turns of conversations, if there is more than one.
pub fn turns(report: &Report) -> Option<Table> {
    let mut rows = Vec::new();
    for p in report.points.iter().filter(|p| p.summary.turns.len() > 1) {
        for t in &p.summary.turns {
            let mut row = vec![p.load.clone(), report.servers[p.server].name.clone(), t.turn.to_string()];
            row.extend([Some(t.prompt_tokens), t.cached_tokens].map(|n| n.map_or("–".into(), |n| format!("{n:.0}"))));
            row.extend(cells(t.ttft.as_ref()));
            row.push(optional(t.tpot.as_ref().map(|d| d.p50)));
            rows.push(row);
        }
    }
    let names = [
        "load",
        "server",
        "turn",
        "prompt tokens",
        "cached",
        "TTFT mean",
        "TTFT p50",
        "TTFT p90",
        "TTFT p99",
        "TPOT p50",
    ];
    let title = "Turns (means of tokens; milliseconds)";
    (!rows.is_empty()).then(|| Table { title, header: header(&names), rows, numbers_from: 2 })
}

/// The two servers against each other.
pub fn comparison(report: &Report) -> Option<Table> {
    let [first, second] = report.servers.as_slice() else { return None };
    // One round has no range.
    let several = report.rounds > 1;
    let rows = report.ratios.iter().map(|r| {
        let better = format!("{:.2} ×", r.better);
        let mut row = vec![r.load.clone(), r.metric.clone(), number(r.first), number(r.second), better];
        row.extend(several.then(|| format!("{:.2}–{:.2}", r.low, r.high)));
        row
    });
    let better = format!("{} is better by", first.name);
    let mut names = vec!["load", "", &first.name, &second.name, &better];
    names.extend(several.then_some("worst–best round"));
    Some(Table { title: "Comparison", header: header(&names), rows: rows.collect(), numbers_from: 2 })
}

/// Failures by kind, with an example each.
pub fn failures(report: &Report) -> Option<Table> {
    let mut rows = Vec::new();
    for p in &report.points {
        for (kind, count) in &p.summary.failed {
            let example = p.summary.examples.get(kind).cloned().unwrap_or_default();
            rows.push(vec![
                p.load.clone(),
                report.servers[p.server].name.clone(),
                kind.clone(),
                example,
                count.to_string(),
            ]);
        }
    }
    let names = header(&["load", "server", "failure", "for example", "requests"]);
    (!rows.is_empty()).then_some(Table { title: "Failures", header: names, rows, numbers_from: 4 })
}

/// What the tool itself cost, in one sentence or two.
pub fn overhead(report: &Report) -> Option<String> {
    let o = report.overhead.as_ref()?;
    let cpu = o.cpu_us_per_chunk.map(|us| format!(" and took {us:.0} µs of CPU time a chunk")).unwrap_or_default();
    let shares: Vec<f64> = report.points.iter().filter_map(|p| p.tool_cpu).collect();
    let share = shares.iter().copied().reduce(f64::max);
    let share = share.map(|s| format!(" In this run it used at most {:.1} % of one core.", s * 100.0));
    let lag = report.points.iter().filter_map(|p| p.summary.lag.as_ref()).map(|d| d.p99).reduce(f64::max);
    let lag = lag.map(|ms| format!(" Requests were sent within {} ms (p99) of their time.", number(ms)));
    Some(format!(
        "The tool itself, against a null server ({} streams, {:.0} chunks/s): it saw a chunk {} ms (p50), {} ms (p99) \
         after the server began to write it{cpu}.{}{}",
        o.streams,
        o.chunks_per_second,
        number(o.chunk_delay.p50),
        number(o.chunk_delay.p99),
        share.unwrap_or_default(),
        lag.unwrap_or_default(),
    ))
}

/// All tables that have something to say.
pub fn tables(report: &Report) -> Vec<Table> {
    let always = [throughput(report), latency(report)];
    comparison(report).into_iter().chain(always).chain(turns(report)).chain(failures(report)).collect()
}

/// How many rounds, how the numbers of several are made.
pub fn method(report: &Report) -> String {
    let mut text = match report.rounds {
        1 => "One round.".to_owned(),
        n => format!("{n} rounds, pooled."),
    };
    if report.servers.len() == 2 && report.rounds > 1 {
        text.push_str(
            " Servers took turns; the comparison has medians over rounds, its ratios are taken round by round.",
        );
    }
    if let Some(rate) = report.tokens_per_word {
        write!(text, " A synthetic word is {rate:.2} tokens.").expect("a string takes all");
    }
    text
}

/// The report as Markdown.
pub fn text(report: &Report) -> String {
    let mut out = format!("`{}`\n\n{}. {}. {}\n", report.command, report.machine, report.workload, method(report));
    for table in tables(report) {
        let line = |cells: &[String]| {
            let cells: Vec<String> = cells.iter().map(|c| c.replace('|', "\\|").replace('\n', " ")).collect();
            format!("| {} |\n", cells.join(" | "))
        };
        let rule: Vec<&str> =
            (0..table.header.len()).map(|i| if i < table.numbers_from { "---" } else { "--:" }).collect();
        out += &format!("\n**{}**\n\n{}|{}|\n", table.title, line(&table.header), rule.join("|"));
        table.rows.iter().for_each(|row| out += &line(row));
    }
    if let Some(text) = overhead(report) {
        out += &format!("\n{text}\n");
    }
    out
}
