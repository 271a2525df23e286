//! Line plots as SVG text. Colours are classes, so that one style sheet serves light and dark.

use std::fmt::Write;

use crate::plot::{escape, label, ticks};
use crate::units::number;

/// Most points of a line: more are averaged, as many to each point.
const POINTS: usize = 600;

/// A line of a plot.
pub struct Series {
    pub name: &'static str,
    /// Colour: 0 or 1.
    pub colour: usize,
    /// Thin and pale, for what is noisy.
    pub pale: bool,
    /// Whether each point gets a dot that tells its numbers.
    pub dots: bool,
    /// In ascending order of x.
    pub points: Vec<(f64, f64)>,
}

/// A line plot.
pub struct Plot {
    pub title: &'static str,
    pub x: &'static str,
    pub series: Vec<Series>,
    /// Whether the vertical axis begins at 0; else where the data do.
    pub from_zero: bool,
}

/// At most [`POINTS`] points: means of neighbours.
fn thin(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let each = points.len().div_ceil(POINTS).max(1);
    let mean = |part: &[(f64, f64)]| {
        let n = part.len() as f64;
        (part.iter().map(|p| p.0).sum::<f64>() / n, part.iter().map(|p| p.1).sum::<f64>() / n)
    };
    points.chunks(each).map(mean).collect()
}

impl Plot {
    /// The plot; empty where there is nothing to see yet.
    pub fn svg(&self, width: f64, height: f64) -> String {
        let seen = |s: &Series| s.points.iter().copied().filter(|p| p.0.is_finite() && p.1.is_finite()).collect();
        let lines: Vec<Vec<(f64, f64)>> = self.series.iter().map(seen).collect();
        let all: Vec<(f64, f64)> = lines.iter().flat_map(|line| thin(line)).collect();
        if all.is_empty() {
            return String::new();
        }
        let bounds = |of: fn(&(f64, f64)) -> f64| {
            let values = all.iter().map(of);
            values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| (low.min(v), high.max(v)))
        };
        let ((x_low, x_high), (y_low, y_high)) = (bounds(|p| p.0), bounds(|p| p.1));
        // Steps and epochs are whole.
        let x_ticks = ticks(x_low.min(0.0), x_high, 6, 1.0);
        let y_ticks = ticks(if self.from_zero { y_low.min(0.0) } else { y_low }, y_high, 5, 0.0);
        let (left, right, top, bottom) = (62.0, 18.0, 34.0 + if lines.len() > 1 { 18.0 } else { 0.0 }, 46.0);
        let ends = |t: &[f64]| (t[0], t[t.len() - 1]);
        let ((x0, x1), (y0, y1)) = (ends(&x_ticks), ends(&y_ticks));
        let px = |x: f64| left + (x - x0) / (x1 - x0) * (width - left - right);
        let py = |y: f64| height - bottom - (y - y0) / (y1 - y0) * (height - top - bottom);
        let mut out = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" role=\"img\">\
             <title>{0}</title><text class=\"t\" x=\"4\" y=\"18\">{0}</text>",
            escape(self.title)
        );
        // A line alone is what the title says.
        for (i, s) in self.series.iter().enumerate().filter(|_| lines.len() > 1) {
            let (x, pale) = (left + i as f64 * 170.0, if s.pale { " w" } else { "" });
            let _ = write!(
                out,
                "<line class=\"l s{}{pale}\" x1=\"{x}\" x2=\"{}\" y1=\"36\" y2=\"36\"/><text x=\"{}\" y=\"40\">{}</text>",
                s.colour,
                x + 24.0,
                x + 30.0,
                escape(s.name)
            );
        }
        let largest = y0.abs().max(y1.abs());
        for &y in &y_ticks {
            let _ = write!(
                out,
                "<line class=\"g\" x1=\"{left}\" x2=\"{}\" y1=\"{1:.1}\" y2=\"{1:.1}\"/>\
                 <text x=\"{2}\" y=\"{3:.1}\" text-anchor=\"end\">{4}</text>",
                width - right,
                py(y),
                left - 6.0,
                py(y) + 4.0,
                label(y, largest)
            );
        }
        for &x in &x_ticks {
            let (at, y) = (px(x), height - bottom + 17.0);
            let _ = write!(out, "<text x=\"{at:.1}\" y=\"{y}\" text-anchor=\"middle\">{}</text>", label(x, 1.0));
        }
        let middle = (left + width - right) / 2.0;
        let _ = write!(
            out,
            "<text x=\"{middle:.1}\" y=\"{}\" text-anchor=\"middle\">{}</text>",
            height - 9.0,
            escape(self.x)
        );
        for (s, line) in self.series.iter().zip(&lines) {
            let points: Vec<String> = thin(line).iter().map(|&(x, y)| format!("{:.1},{:.1}", px(x), py(y))).collect();
            let pale = if s.pale { " w" } else { "" };
            let _ = write!(out, "<polyline class=\"l s{}{pale}\" points=\"{}\"/>", s.colour, points.join(" "));
            for &(x, y) in line.iter().filter(|_| s.dots) {
                let _ = write!(
                    out,
                    "<circle class=\"f{}\" r=\"3.5\" cx=\"{:.1}\" cy=\"{:.1}\"><title>{} {}: {}</title></circle>",
                    s.colour,
                    px(x),
                    py(y),
                    escape(self.x),
                    label(x, 1.0),
                    number(y)
                );
            }
        }
        out.push_str("</svg>");
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_lines_are_thinned() {
        let points: Vec<(f64, f64)> = (0..10_000).map(|i| (f64::from(i), 1.0)).collect();
        let thin = thin(&points);
        assert!(thin.len() <= POINTS && thin.iter().all(|p| p.1 == 1.0));
        assert!(super::thin(&[]).is_empty());
    }
}
