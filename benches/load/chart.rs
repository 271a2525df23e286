//! Plots as SVG text. Colours are classes, so that one style sheet serves light and dark.

use std::fmt::Write;

use lima::plot::{escape, label, ticks};

use super::markdown::number;

/// Style of everything drawn here. `s0` and `s1` are the servers.
pub const STYLE: &str = "\
:root{--ink:#1f2430;--soft:#667085;--grid:#e4e7ec;--paper:#ffffff;--card:#f8f9fb;--s0:#2563eb;--s1:#d97706;--bad:#dc2626}\
@media(prefers-color-scheme:dark){:root{--ink:#e6e9ef;--soft:#98a2b3;--grid:#2f3644;--paper:#12161d;--card:#191f29;\
--s0:#60a5fa;--s1:#fbbf24;--bad:#f87171}}\
svg text{font:12px system-ui,-apple-system,'Segoe UI',sans-serif;fill:var(--soft)}\
svg .h{stroke:var(--card);stroke-width:4px;paint-order:stroke}\
svg .t{font-weight:600;font-size:14px;fill:var(--ink)}svg .v{fill:var(--ink);font-weight:600}\
svg .g{stroke:var(--grid);stroke-width:1}svg .l{fill:none;stroke-width:2;stroke-linejoin:round}\
svg .s0{stroke:var(--s0)}svg .s1{stroke:var(--s1)}svg .f0{fill:var(--s0)}svg .f1{fill:var(--s1)}\
svg .w{fill-opacity:.35}svg .bad{fill:var(--bad)}svg .cut{fill:var(--soft)}";

/// A line of a plot.
pub struct Series {
    pub name: String,
    /// Of the server, which gives the colour.
    pub server: usize,
    /// `stroke-dasharray`, if it is not solid.
    pub dash: &'static str,
    pub points: Vec<(f64, f64)>,
    /// A word at each point, or none.
    pub marks: Vec<String>,
}

/// A line plot, both axes from 0.
pub struct Lines {
    pub title: String,
    pub x: String,
    pub y: String,
    pub series: Vec<Series>,
    /// Labels of the horizontal axis at 0, 1, 2…; else it has numbers.
    pub categories: Option<Vec<String>>,
    /// Whether each point gets a dot.
    pub dots: bool,
}

impl Lines {
    pub fn svg(&self, width: f64, height: f64) -> String {
        let columns = if self.series.len().is_multiple_of(3) { 3 } else { 2 };
        let legend_rows = self.series.len().div_ceil(columns) as f64;
        let (left, right, top, bottom) = (58.0, 20.0, 34.0 + 18.0 * legend_rows, 46.0);
        let all = || self.series.iter().flat_map(|s| s.points.iter());
        let y_ticks = ticks(0.0, all().map(|p| p.1).fold(0.0, f64::max), 5, 0.0);
        let x_ticks = ticks(0.0, all().map(|p| p.0).fold(0.0, f64::max), 6, 0.0);
        let y_max = y_ticks.last().copied().unwrap_or(1.0);
        let span = match &self.categories {
            // Half a step of room at both ends.
            Some(names) => names.len() as f64,
            None => x_ticks.last().copied().unwrap_or(1.0),
        };
        let shift = if self.categories.is_some() { 0.5 } else { 0.0 };
        let px = |x: f64| left + (x + shift) / span * (width - left - right);
        let py = |y: f64| height - bottom - y / y_max * (height - top - bottom);
        let mut out = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" role=\"img\">\
             <title>{0}</title><text class=\"t\" x=\"4\" y=\"18\">{0}</text>",
            escape(&self.title)
        );
        for (i, s) in self.series.iter().enumerate() {
            let (x, y) =
                (left + (i % columns) as f64 * (width - left) / columns as f64, 36.0 + (i / columns) as f64 * 18.0);
            let _ = write!(
                out,
                "<line class=\"l s{}\" stroke-dasharray=\"{}\" x1=\"{x}\" x2=\"{}\" y1=\"{y}\" y2=\"{y}\"/>\
                 <text x=\"{}\" y=\"{}\">{}</text>",
                s.server,
                s.dash,
                x + 24.0,
                x + 30.0,
                y + 4.0,
                escape(&s.name)
            );
        }
        for &y in &y_ticks {
            let _ = write!(
                out,
                "<line class=\"g\" x1=\"{left}\" x2=\"{}\" y1=\"{1:.1}\" y2=\"{1:.1}\"/>\
                 <text x=\"{2}\" y=\"{3:.1}\" text-anchor=\"end\">{4}</text>",
                width - right,
                py(y),
                left - 6.0,
                py(y) + 4.0,
                label(y, y_max)
            );
        }
        let named: Vec<(f64, String)> = match &self.categories {
            Some(names) => names.iter().enumerate().map(|(i, n)| (i as f64, n.clone())).collect(),
            None => x_ticks.iter().map(|&x| (x, label(x, span))).collect(),
        };
        for (x, name) in named {
            let (x, y) = (px(x), height - bottom + 17.0);
            let _ = write!(out, "<text x=\"{x:.1}\" y=\"{y}\" text-anchor=\"middle\">{}</text>", escape(&name));
        }
        let _ = write!(
            out,
            "<text x=\"{:.1}\" y=\"{}\" text-anchor=\"middle\">{}</text>\
             <text transform=\"translate(13 {:.1}) rotate(-90)\" text-anchor=\"middle\">{}</text>",
            (left + width - right) / 2.0,
            height - 9.0,
            escape(&self.x),
            (top + height - bottom) / 2.0,
            escape(&self.y)
        );
        for s in &self.series {
            let points: Vec<String> = s.points.iter().map(|&(x, y)| format!("{:.1},{:.1}", px(x), py(y))).collect();
            let (server, dash) = (s.server, s.dash);
            let _ = write!(
                out,
                "<polyline class=\"l s{server}\" stroke-dasharray=\"{dash}\" points=\"{}\"/>",
                points.join(" ")
            );
            if self.dots {
                for (i, &(x, y)) in s.points.iter().enumerate() {
                    let mark = s.marks.get(i).map_or("", String::as_str);
                    // Lines mostly rise to the right, so the room is below; not at the lower or right edge.
                    let low = py(y) > height - bottom - 18.0;
                    let (dx, dy) = if low { (-8.0, -6.0) } else { (8.0, 14.0) };
                    let left_side = low || px(x) > width - right - 60.0;
                    let (dx, anchor) = if left_side { (-8.0, "end") } else { (dx, "start") };
                    let _ = write!(
                        out,
                        "<circle class=\"f{server}\" r=\"3.5\" cx=\"{0:.1}\" cy=\"{1:.1}\"><title>{2} {3}: {4}, {5}\
                         </title></circle><text class=\"h\" x=\"{6:.1}\" y=\"{7:.1}\" text-anchor=\"{anchor}\">{3}</text>",
                        px(x),
                        py(y),
                        escape(&s.name),
                        escape(mark),
                        number(x),
                        number(y),
                        px(x) + dx,
                        py(y) + dy
                    );
                }
            }
        }
        out.push_str("</svg>");
        out
    }
}

/// A group of bars under one heading: each with a server, a name and a value.
pub struct Bars {
    pub title: String,
    pub bars: Vec<(usize, String, f64)>,
}

/// Height of a group of so many bars.
fn group_height(bars: usize) -> f64 {
    30.0 + 26.0 * bars as f64
}

/// Groups of horizontal bars, each group to its own scale, in two columns.
pub fn bars(title: &str, subtitle: &str, groups: &[Bars], width: f64) -> String {
    let column = width / 2.0;
    let tallest = groups.iter().map(|g| g.bars.len()).max().unwrap_or(0);
    let height = 58.0 + group_height(tallest) * groups.len().div_ceil(2) as f64;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" role=\"img\"><title>{0}</title>\
         <text class=\"t\" x=\"8\" y=\"20\">{0}</text><text x=\"8\" y=\"40\">{1}</text>",
        escape(title),
        escape(subtitle)
    );
    for (i, group) in groups.iter().enumerate() {
        let (x, y) = ((i % 2) as f64 * column + 8.0, 58.0 + (i / 2) as f64 * group_height(tallest));
        let names = group.bars.iter().map(|b| b.1.chars().count()).max().unwrap_or(0) as f64 * 7.0 + 10.0;
        let room = column - names - 80.0;
        let max = group.bars.iter().map(|b| b.2).fold(f64::MIN_POSITIVE, f64::max);
        let _ = write!(out, "<text class=\"v\" x=\"{x}\" y=\"{}\">{}</text>", y + 14.0, escape(&group.title));
        for (j, (server, name, value)) in group.bars.iter().enumerate() {
            let (y, length) = (y + 22.0 + 26.0 * j as f64, (value / max * room).max(1.0));
            let _ = write!(
                out,
                "<text x=\"{x}\" y=\"{0}\">{1}</text><rect class=\"f{server}\" x=\"{2:.1}\" y=\"{y}\" width=\"{length:.1}\" \
                 height=\"18\" rx=\"3\"/><text class=\"v\" x=\"{3:.1}\" y=\"{0}\">{4}</text>",
                y + 13.0,
                escape(name),
                x + names,
                x + names + length + 6.0,
                number(*value)
            );
        }
    }
    out.push_str("</svg>");
    out
}

/// A request as a bar: when it began, when its first text came, when it ended (seconds), and how.
pub struct Span {
    pub start: f64,
    pub first: Option<f64>,
    pub end: f64,
    /// `None` for success, else a class.
    pub odd: Option<&'static str>,
    pub hint: String,
}

/// Requests over time, one row each: pale until the first token, then full.
pub fn timeline(title: &str, server: usize, spans: &[Span], seconds: f64, width: f64) -> String {
    let (left, right, top) = (46.0, 20.0, 32.0);
    let row = (300.0 / spans.len().max(1) as f64).clamp(1.5, 10.0);
    let body = row * spans.len() as f64;
    let height = top + body + 40.0;
    let marks = ticks(0.0, seconds, 8, 0.0);
    let max = marks.last().copied().unwrap_or(1.0);
    let px = |s: f64| left + s / max * (width - left - right);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height:.0}\" role=\"img\"><title>{0}</title>\
         <text class=\"t\" x=\"4\" y=\"18\">{0}</text>",
        escape(title)
    );
    for &mark in &marks {
        let _ = write!(
            out,
            "<line class=\"g\" x1=\"{0:.1}\" x2=\"{0:.1}\" y1=\"{top}\" y2=\"{1:.1}\"/>\
             <text x=\"{0:.1}\" y=\"{2:.1}\" text-anchor=\"middle\">{3}</text>",
            px(mark),
            top + body,
            top + body + 16.0,
            label(mark, seconds)
        );
    }
    let _ = write!(
        out,
        "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">seconds</text>",
        (left + width - right) / 2.0,
        top + body + 33.0
    );
    for (i, span) in spans.iter().enumerate() {
        let (y, h) = (top + row * i as f64, (row * 0.8).max(1.0));
        let class = span.odd.map_or_else(|| format!("f{server}"), str::to_owned);
        let mut bar = |from: f64, to: f64, class: &str| {
            let w = (px(to) - px(from)).max(0.5);
            let _ = write!(
                out,
                "<rect class=\"{class}\" x=\"{:.1}\" y=\"{y:.1}\" width=\"{w:.1}\" height=\"{h:.1}\"><title>{}</title></rect>",
                px(from),
                escape(&span.hint)
            );
        };
        let first = span.first.unwrap_or(span.end);
        bar(span.start, first, &format!("{class} w"));
        if first < span.end {
            bar(first, span.end, &class);
        }
    }
    out.push_str("</svg>");
    out
}
