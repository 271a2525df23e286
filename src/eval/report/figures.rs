//! Figures as SVG text: stacked bars as in the paper's figures 1 and 2, points with intervals as in 5, a line as in 6.

use std::fmt::Write;

use crate::eval::stats::Interval;
use crate::plot::{escape, label, ticks};

/// A row of stacked parts.
pub struct Bar {
    /// Beside it.
    pub name: String,
    /// Parts from 0 to 1, each with a class that colours it and a name.
    pub parts: Vec<(f64, &'static str, &'static str)>,
    /// Drawn over it: where one of its ends lies.
    pub interval: Option<Interval>,
}

/// A number with its interval.
pub struct Point {
    /// Below it, or on a line where it lies.
    pub name: String,
    /// On the horizontal axis of a line.
    pub x: f64,
    /// The number.
    pub y: f64,
    /// 95 %.
    pub interval: Option<Interval>,
}

fn begin(title: &str, width: f64, height: f64) -> String {
    let title = escape(title);
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" role=\"img\"><title>{title}</title>\
         <text class=\"t\" x=\"4\" y=\"18\">{title}</text>"
    )
}

/// Stacked bars, one below the other.
pub fn bars(title: &str, rows: &[Bar]) -> String {
    const WIDTH: f64 = 560.0;
    const LEFT: f64 = 150.0;
    const ROW: f64 = 34.0;
    let Some(first) = rows.first() else { return String::new() };
    let height = 56.0 + ROW * rows.len() as f64 + 8.0;
    let span = WIDTH - LEFT - 12.0;
    let mut out = begin(title, WIDTH, height);
    let mut x = LEFT;
    for (_, class, name) in &first.parts {
        let _ = write!(
            out,
            "<rect class=\"{class}\" x=\"{x}\" y=\"30\" width=\"12\" height=\"12\" rx=\"3\"/><text x=\"{}\" y=\"40\">{}</text>",
            x + 17.0,
            escape(name)
        );
        x += 30.0 + 7.0 * name.chars().count() as f64;
    }
    for (i, row) in rows.iter().enumerate() {
        let y = 52.0 + ROW * i as f64;
        let _ = write!(
            out,
            "<text class=\"n\" x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            LEFT - 10.0,
            y + 17.0,
            escape(&super::short(&row.name, 20))
        );
        let mut from = LEFT;
        for (part, class, name) in &row.parts {
            let wide = part * span;
            let _ = write!(
                out,
                "<rect class=\"{class}\" x=\"{from:.1}\" y=\"{y:.1}\" width=\"{wide:.1}\" height=\"24\"><title>{} {:.1} %</title></rect>",
                escape(name),
                part * 100.0
            );
            if wide > 30.0 {
                let middle = from + wide / 2.0;
                let (at, text) = (y + 16.5, (part * 100.0).round());
                let _ = write!(
                    out,
                    "<text class=\"in\" x=\"{middle:.1}\" y=\"{at:.1}\" text-anchor=\"middle\">{text} %</text>"
                );
            }
            from += wide;
        }
        if let Some(Interval { low, high }) = row.interval {
            let (low, high, at) = (LEFT + low * span, LEFT + high * span, y + 28.0);
            let _ = write!(
                out,
                "<path class=\"e\" fill=\"none\" d=\"M{low:.1} {:.1}v6M{low:.1} {at:.1}H{high:.1}M{high:.1} {:.1}v6\"/>",
                at - 3.0,
                at - 3.0
            );
        }
    }
    out + "</svg>"
}

const WIDTH: f64 = 560.0;
const HEIGHT: f64 = 320.0;
const LEFT: f64 = 62.0;
const RIGHT: f64 = 18.0;
const TOP: f64 = 34.0;
const BOTTOM: f64 = 46.0;

/// The vertical axis of points, and where a value lies on it.
fn axis(out: &mut String, all: &[Point]) -> impl Fn(f64) -> f64 + use<> {
    let ends = all.iter().flat_map(|p| [p.interval.map_or(p.y, |i| i.low), p.interval.map_or(p.y, |i| i.high), p.y]);
    let (low, high) = ends.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| (low.min(v), high.max(v)));
    let ticks = ticks(low, high, 5, 0.0);
    let (first, last) = (ticks[0], ticks[ticks.len() - 1]);
    let y = move |value: f64| HEIGHT - BOTTOM - (value - first) / (last - first) * (HEIGHT - TOP - BOTTOM);
    for tick in ticks {
        let _ = write!(
            out,
            "<line class=\"g\" x1=\"{LEFT}\" x2=\"{}\" y1=\"{1:.1}\" y2=\"{1:.1}\"/>\
             <text x=\"{2}\" y=\"{3:.1}\" text-anchor=\"end\">{4}</text>",
            WIDTH - RIGHT,
            y(tick),
            LEFT - 6.0,
            y(tick) + 4.0,
            label(tick, last.abs().max(first.abs()))
        );
    }
    y
}

/// A dot with its interval and its number.
fn dot(out: &mut String, x: f64, point: &Point, y: &impl Fn(f64) -> f64) {
    if let Some(Interval { low, high }) = point.interval {
        let (from, to) = (y(high), y(low));
        let _ = write!(
            out,
            "<path class=\"e\" fill=\"none\" d=\"M{x:.1} {from:.1}V{to:.1}M{0:.1} {from:.1}h10M{0:.1} {to:.1}h10\"/>",
            x - 5.0
        );
    }
    let at = y(point.y);
    let _ = write!(
        out,
        "<circle class=\"f0\" r=\"5\" cx=\"{x:.1}\" cy=\"{at:.1}\"><title>{}: {2:.3}</title></circle>\
         <text class=\"n\" x=\"{1:.1}\" y=\"{3:.1}\">{2:.2}</text>",
        escape(&point.name),
        x + 9.0,
        point.y,
        at + 4.0
    );
}

/// Points of names, side by side.
pub fn points(title: &str, all: &[Point]) -> String {
    if all.is_empty() {
        return String::new();
    }
    let mut out = begin(title, WIDTH, HEIGHT);
    let y = axis(&mut out, all);
    let each = (WIDTH - LEFT - RIGHT) / all.len() as f64;
    for (i, point) in all.iter().enumerate() {
        let x = LEFT + each * (i as f64 + 0.5);
        dot(&mut out, x, point, &y);
        let _ = write!(
            out,
            "<text class=\"n\" x=\"{x:.1}\" y=\"{}\" text-anchor=\"middle\">{}</text>",
            HEIGHT - BOTTOM + 20.0,
            escape(&super::short(&point.name, (each / 8.0) as usize))
        );
    }
    out + "</svg>"
}

/// Points along an axis; `by_doubling`: a logarithmic one, as for sizes.
pub fn line(title: &str, x_title: &str, all: &[Point], by_doubling: bool) -> String {
    if all.is_empty() {
        return String::new();
    }
    let mut out = begin(title, WIDTH, HEIGHT);
    let y = axis(&mut out, all);
    let place = |x: f64| if by_doubling { x.max(1.0).log2() } else { x };
    let (low, high) =
        all.iter().map(|p| place(p.x)).fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), v| (l.min(v), h.max(v)));
    let span = if high > low { high - low } else { 1.0 };
    // Room for a number beside the last dot.
    let x = |point: &Point| LEFT + 24.0 + (place(point.x) - low) / span * (WIDTH - LEFT - RIGHT - 70.0);
    let path: Vec<String> = all.iter().map(|point| format!("{:.1},{:.1}", x(point), y(point.y))).collect();
    let _ = write!(out, "<polyline class=\"l s0\" points=\"{}\"/>", path.join(" "));
    for point in all {
        dot(&mut out, x(point), point, &y);
        let _ = write!(
            out,
            "<text x=\"{:.1}\" y=\"{}\" text-anchor=\"middle\">{}</text>",
            x(point),
            HEIGHT - BOTTOM + 17.0,
            escape(&point.name)
        );
    }
    let _ = write!(
        out,
        "<text x=\"{:.1}\" y=\"{}\" text-anchor=\"middle\">{}</text></svg>",
        (LEFT + WIDTH - RIGHT) / 2.0,
        HEIGHT - 9.0,
        escape(x_title)
    );
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_well_formed_and_escape_names() {
        let interval = Some(Interval { low: 3.0, high: 3.5 });
        let point = |name: &str, x: f64| Point { name: name.into(), x, y: 3.25, interval };
        let parts = vec![(0.5, "win", "wins"), (0.25, "tie", "ties"), (0.25, "lose", "losses")];
        let bar = Bar { name: "<b>".into(), parts, interval: Some(Interval { low: 0.4, high: 0.6 }) };
        let all = [
            bars("T", &[bar]),
            points("T", &[point("a & b", 0.0), point("c", 0.0)]),
            line("T", "x", &[point("2000", 2000.0), point("4000", 4000.0)], true),
            line("T", "x", &[point("5", 5.0)], false),
        ];
        for svg in all {
            assert!(svg.starts_with("<svg") && svg.ends_with("</svg>") && !svg.contains("NaN"), "{svg}");
            assert!(!svg.contains("<b>") && !svg.contains("a & b"));
        }
        assert_eq!(bars("T", &[]) + &points("T", &[]) + &line("T", "x", &[], true), "");
    }
}
