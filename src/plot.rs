//! What plots as SVG text, and the pages they stand on, have in common: style, safe text, round numbers along an axis.

/// Style of plots. Colours are classes, so that one style sheet serves light and dark.
pub const STYLE: &str = "\
:root{--ink:#1f2430;--soft:#667085;--grid:#e4e7ec;--paper:#ffffff;--card:#f8f9fb;--s0:#2563eb;--s1:#d97706}\
@media(prefers-color-scheme:dark){:root{--ink:#e6e9ef;--soft:#98a2b3;--grid:#2f3644;--paper:#12161d;--card:#191f29;\
--s0:#60a5fa;--s1:#fbbf24}}\
svg text{font:12px system-ui,-apple-system,'Segoe UI',sans-serif;fill:var(--soft)}\
svg .t{font-weight:600;font-size:14px;fill:var(--ink)}\
svg .g{stroke:var(--grid);stroke-width:1}svg .l{fill:none;stroke-width:2;stroke-linejoin:round}\
svg .s0{stroke:var(--s0)}svg .s1{stroke:var(--s1)}svg .f0{fill:var(--s0)}svg .f1{fill:var(--s1)}\
svg .w{stroke-opacity:.45;stroke-width:1.2}";

/// Style of a page of plots, tiles, tables and answers.
pub const PAGE_STYLE: &str = "\
*{box-sizing:border-box}body{margin:0;background:var(--paper);color:var(--ink);\
font:15px/1.5 system-ui,-apple-system,'Segoe UI',sans-serif}\
main{max-width:1180px;margin:0 auto;padding:32px 24px 64px}h1{font-size:26px;margin:0 0 4px;overflow-wrap:anywhere}\
h2{font-size:18px;margin:40px 0 12px}h3{font-size:15px;margin:24px 0 8px;white-space:pre-wrap;overflow-wrap:anywhere}\
p{margin:4px 0;color:var(--soft);overflow-wrap:anywhere}\
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:12px;margin:20px 0}\
.tile,.plot,.answer{background:var(--card);border:1px solid var(--grid);border-radius:10px;padding:14px}\
.tile b{display:block;font-size:24px;line-height:1.2}.tile span{color:var(--soft);font-size:13px}\
.plots{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(480px,100%),1fr));gap:16px}\
svg{display:block;width:100%;height:auto}\
table{border-collapse:collapse;font-variant-numeric:tabular-nums;font-size:14px}\
th,td{padding:4px 12px 4px 0;text-align:left;border-bottom:1px solid var(--grid);overflow-wrap:anywhere}\
th{color:var(--soft);font-weight:400}\
.answers{display:flex;gap:12px;overflow-x:auto;padding-bottom:8px;align-items:flex-start}\
.answer{flex:0 0 340px}.answer b{display:block;margin-bottom:6px}.answer span{color:var(--soft);font-weight:400}\
.answer div{white-space:pre-wrap;overflow-wrap:anywhere;font-size:14px;max-height:480px;overflow-y:auto}";

/// Text made safe for HTML and XML.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            // XML has no other control characters.
            c if c.is_control() && c != '\n' && c != '\t' => out.push(' '),
            c => out.push(c),
        }
    }
    out
}

/// Round numbers from at most `min` to at least `max`, about `count` of them, no closer than `least`.
pub fn ticks(min: f64, max: f64, count: usize, least: f64) -> Vec<f64> {
    // Data without an end has no axis of its own.
    let max = if max.is_finite() { max } else { min };
    let span = if max > min { max - min } else { min.abs().max(1.0) * 0.1 };
    let rough = span / count as f64;
    let power = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 2.5, 5.0]
        .into_iter()
        .map(|m| m * power)
        .find(|&s| s >= rough * 0.999)
        .unwrap_or(10.0 * power)
        .max(least);
    let (first, last) = ((min / step + 1e-9).floor(), (max / step - 1e-9).ceil());
    (0..=(last - first).max(1.0) as usize).map(|i| (first + i as f64) * step).collect()
}

/// A tick's label, as short as it can be, on an axis that goes to `largest`.
pub fn label(value: f64, largest: f64) -> String {
    if largest < 1e-3 && value != 0.0 {
        let text = format!("{value:.2e}");
        return text.replace(".00e", "e").replace("0e", "e");
    }
    let text = format!("{value:.4}");
    let text = text.trim_end_matches('0').trim_end_matches('.');
    if text.is_empty() || text == "-0" { "0".into() } else { text.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_enclose_the_data() {
        for (min, max) in [(0.0, 1.0), (2.31, 2.34), (1e-6, 1e-5), (0.0, 0.0), (5.0, 5.0), (-3.0, 12.0), (1.0, 480.0)] {
            let ticks = ticks(min, max, 5, 0.0);
            assert!(ticks.len() >= 2 && ticks.len() <= 9, "{min} {max}: {ticks:?}");
            assert!(ticks[0] <= min + 1e-9 && ticks[ticks.len() - 1] >= max - 1e-9, "{min} {max}: {ticks:?}");
        }
        assert_eq!(
            (label(1e-5, 1e-5), label(2.5e-6, 1e-5), label(0.0, 1e-5)),
            ("1e-5".into(), "2.5e-6".into(), "0".into())
        );
        assert_eq!((label(2.25, 3.0), label(-0.0, 3.0), label(480.0, 1.0)), ("2.25".into(), "0".into(), "480".into()));
    }
}
