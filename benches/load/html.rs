//! The report as one page: no scripts, nothing from the network, light and dark.

use std::fmt::Write;

use lima::plot::escape;

use super::chart::STYLE;
use super::markdown::{self, Table};
use super::plots;
use super::report::Report;

const PAGE_STYLE: &str = "\
*{box-sizing:border-box}body{margin:0;background:var(--paper);color:var(--ink);\
font:15px/1.5 system-ui,-apple-system,'Segoe UI',sans-serif}\
main{max-width:1180px;margin:0 auto;padding:32px 24px 64px}h1{font-size:26px;margin:0 0 4px}\
h2{font-size:18px;margin:40px 0 12px}p{margin:4px 0;color:var(--soft)}code{font:13px ui-monospace,monospace}\
pre{background:var(--card);border:1px solid var(--grid);border-radius:8px;padding:12px;overflow-x:auto;\
white-space:pre-wrap;overflow-wrap:anywhere;margin:16px 0}\
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(170px,1fr));gap:12px;margin:20px 0}\
.tile,.plot{background:var(--card);border:1px solid var(--grid);border-radius:10px;padding:14px}\
.tile b{display:block;font-size:26px;line-height:1.2}.tile span{color:var(--soft);font-size:13px}\
.plots{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(480px,100%),1fr));gap:16px}\
.wide{margin-bottom:16px}svg{display:block;width:100%;height:auto}\
.scroll{overflow-x:auto}table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums;font-size:14px}\
th,td{padding:5px 10px;text-align:left;border-bottom:1px solid var(--grid);white-space:nowrap}\
td:has(+td:last-child){white-space:normal}\
th{color:var(--soft);font-weight:600;white-space:normal;vertical-align:bottom}.n{text-align:right}.key{display:inline-block;width:11px;height:11px;\
border-radius:3px;margin-right:6px}details{margin:12px 0}summary{cursor:pointer;color:var(--soft)}";

fn table(out: &mut String, table: &Table) {
    let class = |i: usize| if i >= table.numbers_from { " class=\"n\"" } else { "" };
    let _ = write!(out, "<h2>{}</h2><div class=\"scroll\"><table><thead><tr>", escape(table.title));
    for (i, name) in table.header.iter().enumerate() {
        let _ = write!(out, "<th{}>{}</th>", class(i), escape(name));
    }
    out.push_str("</tr></thead><tbody>");
    for row in &table.rows {
        out.push_str("<tr>");
        for (i, cell) in row.iter().enumerate() {
            let _ = write!(out, "<td{}>{}</td>", class(i), escape(cell));
        }
        out.push_str("</tr>");
    }
    out.push_str("</tbody></table></div>");
}

/// Some numbers worth a large font: the comparison's at the last load, else the server's own.
fn tiles(report: &Report) -> Vec<(String, String)> {
    let Some(last) = report.points.last() else { return Vec::new() };
    if let [first, second] = report.servers.as_slice() {
        let wanted = ["output tok/s", "TTFT p50, ms", "TTFT p99, ms", "TPOT p50, ms"];
        let of = report.ratios.iter().filter(|r| r.load == last.load && wanted.contains(&r.metric.as_str()));
        return of
            .map(|r| {
                let (a, b) = (markdown::number(r.first), markdown::number(r.second));
                let text = format!("{}: {a} ({}) against {b} ({}), {}", r.metric, first.name, second.name, r.load);
                (format!("{:.2} ×", r.better), text)
            })
            .collect();
    }
    let s = &last.summary;
    let ttft = s.ttft.as_ref();
    vec![
        (markdown::number(s.output_tokens_per_second), format!("output tokens/s, {}", last.load)),
        (markdown::optional(ttft.map(|d| d.p50)), format!("ms TTFT p50, {}", last.load)),
        (markdown::optional(s.tpot.as_ref().map(|d| d.p50)), format!("ms TPOT p50, {}", last.load)),
        (format!("{} / {}", s.succeeded, s.requests - s.disconnected), format!("requests succeeded, {}", last.load)),
    ]
}

/// The page.
pub fn page(report: &Report) -> String {
    let names: Vec<&str> = report.servers.iter().map(|s| s.name.as_str()).collect();
    let title = format!("Load test: {}", names.join(" and "));
    let mut out = format!(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" \
         content=\"width=device-width,initial-scale=1\"><meta name=\"color-scheme\" content=\"light dark\">\
         <title>{0}</title><style>{STYLE}{PAGE_STYLE}</style></head><body><main><h1>{0}</h1>\
         <p>{1}.</p><p>{2}. Seed {3}. {4}</p>",
        escape(&title),
        escape(&report.workload),
        escape(&report.machine),
        report.seed,
        escape(&markdown::method(report)),
    );
    out.push_str("<div class=\"tiles\">");
    for (value, text) in tiles(report) {
        let _ = write!(out, "<div class=\"tile\"><b>{}</b><span>{}</span></div>", escape(&value), escape(&text));
    }
    out.push_str("</div>");
    for (i, server) in report.servers.iter().enumerate() {
        let started = server.command.as_ref().unwrap_or(&server.url);
        let _ = write!(
            out,
            "<p><span class=\"key\" style=\"background:var(--s{i})\"></span>{}: <code>{}</code>, model <code>{}</code></p>",
            escape(&server.name),
            escape(started),
            escape(&server.model)
        );
    }
    let section = |out: &mut String, title: &str, plots: Vec<String>| {
        let _ = write!(out, "<h2>{title}</h2><div class=\"plots\">");
        plots.iter().for_each(|p| *out += &format!("<div class=\"plot\">{p}</div>"));
        out.push_str("</div>");
    };
    // A single dot says nothing that the tables do not.
    if report.loads().len() > 1 {
        section(&mut out, "Throughput against latency", plots::throughput(report));
    }
    section(&mut out, "Percentiles", plots::percentiles(report));
    let tables = markdown::tables(report);
    tables.iter().for_each(|t| table(&mut out, t));
    out.push_str(
        "<h2>Timeline</h2><p>A row is a request: pale until its first token, full until its end; red failed, \
         grey was abandoned. Last round of each load.</p>",
    );
    let timelines = plots::timelines(report);
    let last = timelines.len().saturating_sub(1);
    for (i, (load, plots)) in timelines.into_iter().enumerate() {
        let open = if i == last { " open" } else { "" };
        let _ = write!(out, "<details{open}><summary>{}</summary>", escape(&load));
        plots.iter().for_each(|p| out += &format!("<div class=\"plot wide\">{p}</div>"));
        out.push_str("</details>");
    }
    if let Some(text) = markdown::overhead(report) {
        let _ = write!(out, "<h2>The tool's own share</h2><p>{}</p>", escape(&text));
    }
    let _ = write!(out, "<h2>Command</h2><pre><code>{}</code></pre>", escape(&report.command));
    out.push_str("</main></body></html>\n");
    out
}
