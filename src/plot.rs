//! What plots as SVG text have in common: safe text, and round numbers along an axis.

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
