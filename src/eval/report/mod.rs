//! `report.html`: one page without scripts and without anything from the network, light and dark.

mod figures;
mod pairs;
mod scores;

use std::fmt::Write;

pub use figures::{Bar, Point, bars, line, points};
pub use pairs::{agreement, pairwise};
pub use scores::{ablation, scores, selection};

use super::stats::Interval;
use crate::plot::{PAGE_STYLE, STYLE, escape};

/// Beyond the common style: outcomes' colours, the reading view, and its filter, which needs no script.
const OWN_STYLE: &str = "\
:root{--win:#2f9e6e;--tie:#c3c9d4;--lose:#d9694f}\
@media(prefers-color-scheme:dark){:root{--win:#3fb27f;--tie:#525c6d;--lose:#e07a5f}}\
.win{fill:var(--win)}.tie{fill:var(--tie)}.lose{fill:var(--lose)}svg .e{stroke:var(--ink);stroke-width:1.5}\
svg .in{fill:#fff;font-weight:600}svg .tie+.in{fill:var(--ink)}svg text.n{fill:var(--ink);font-size:13px}\
.plots .plot{max-width:760px}.tile b{font-size:21px}.note{font-size:13px}.wide{overflow-x:auto}th{vertical-align:bottom}tbody th{color:var(--ink)}\
td.r,th.r{text-align:right}\
.filter{display:flex;flex-wrap:wrap;gap:8px;margin:8px 0 4px}\
.filter label{border:1px solid var(--grid);border-radius:999px;padding:3px 14px;cursor:pointer;font-size:14px}\
.filter input{position:absolute;opacity:0}.filter label:has(:checked){background:var(--ink);color:var(--paper)}\
.filter label:has(:focus-visible){outline:2px solid var(--s0);outline-offset:2px}\
.item{border-top:1px solid var(--grid);padding:14px 0}.item>summary{cursor:pointer;list-style:none;display:flex;gap:12px;align-items:baseline}\
.item>summary::before{content:'▸';color:var(--soft)}.item[open]>summary::before{content:'▾'}\
.item>summary span{overflow:hidden;text-overflow:ellipsis;white-space:nowrap;flex:1}.item[open]>summary span{white-space:pre-wrap}\
.tag{font-size:12px;font-weight:600;border-radius:999px;padding:1px 10px;color:#fff;background:var(--soft);white-space:nowrap}\
.tag.Win{background:var(--win)}.tag.Lose{background:var(--lose)}.tag.Tie{background:var(--tie);color:var(--ink)}\
.sides{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(380px,100%),1fr));gap:12px;margin:12px 0}\
.sides .answer{max-width:none}.sides .answer div{max-height:none}\
.said{white-space:pre-wrap;overflow-wrap:anywhere;font-size:14px;color:var(--soft);border-left:3px solid var(--grid);padding-left:12px;margin:8px 0}\
body:has(#f-Win:checked) .item:not(.o-Win),body:has(#f-Tie:checked) .item:not(.o-Tie),\
body:has(#f-Lose:checked) .item:not(.o-Lose),body:has(#f-none:checked) .item:not(.o-none){display:none}";

/// Items of the reading view that are open at first.
const OPEN: usize = 1;

/// A page as it grows.
pub struct Page(String);

impl Page {
    /// Begins.
    pub fn new(title: &str, lead: &[String]) -> Self {
        let title = escape(title);
        let mut out = format!(
            "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" \
             content=\"width=device-width,initial-scale=1\"><meta name=\"color-scheme\" content=\"light dark\">\
             <title>{title}</title><style>{STYLE}{PAGE_STYLE}{OWN_STYLE}</style></head><body><main><h1>{title}</h1>"
        );
        for sentence in lead {
            let _ = write!(out, "<p>{}</p>", escape(sentence));
        }
        Self(out)
    }

    /// Numbers in a large font.
    pub fn tiles(&mut self, tiles: &[(String, String)]) {
        self.0.push_str("<div class=\"tiles\">");
        for (value, text) in tiles {
            let _ = write!(self.0, "<div class=\"tile\"><b>{}</b><span>{}</span></div>", escape(value), escape(text));
        }
        self.0.push_str("</div>");
    }

    /// A heading.
    pub fn heading(&mut self, text: &str) {
        let _ = write!(self.0, "<h2>{}</h2>", escape(text));
    }

    /// A sentence beside numbers.
    pub fn note(&mut self, text: &str) {
        let _ = write!(self.0, "<p class=\"note\">{}</p>", escape(text));
    }

    /// Plots side by side.
    pub fn plots(&mut self, svgs: &[String]) {
        self.0.push_str("<div class=\"plots\">");
        for svg in svgs.iter().filter(|svg| !svg.is_empty()) {
            let _ = write!(self.0, "<div class=\"plot\">{svg}</div>");
        }
        self.0.push_str("</div>");
    }

    /// A table; all columns but the first are numbers.
    pub fn table(&mut self, head: &[&str], rows: &[Vec<String>]) {
        self.0.push_str("<div class=\"wide\"><table><thead><tr>");
        for (i, name) in head.iter().enumerate() {
            let _ = write!(self.0, "<th{}>{}</th>", if i == 0 { "" } else { " class=\"r\"" }, escape(name));
        }
        self.0.push_str("</tr></thead><tbody>");
        for row in rows {
            self.0.push_str("<tr>");
            for (i, cell) in row.iter().enumerate() {
                let (tag, class) = if i == 0 { ("th", "") } else { ("td", " class=\"r\"") };
                let _ = write!(self.0, "<{tag}{class}>{}</{tag}>", escape(cell));
            }
            self.0.push_str("</tr>");
        }
        self.0.push_str("</tbody></table></div>");
    }

    /// The filter of the reading view: names of classes and what is written on the buttons.
    pub fn filter(&mut self, choices: &[(&str, String)]) {
        self.0.push_str("<div class=\"filter\" role=\"radiogroup\" aria-label=\"Which are shown\">");
        for (i, (class, text)) in choices.iter().enumerate() {
            let checked = if i == 0 { " checked" } else { "" };
            let text = escape(text);
            let _ = write!(self.0, "<label><input type=\"radio\" name=\"f\" id=\"f-{class}\"{checked}>{text}</label>");
        }
        self.0.push_str("</div>");
    }

    /// One prompt of the reading view, `number` from 0: what was asked, the answers with their titles, what was said of
    /// them.
    pub fn item(
        &mut self,
        number: usize,
        class: &str,
        tag: &str,
        asked: &str,
        answers: &[(String, &str)],
        said: &[String],
    ) {
        let open = if number < OPEN { " open" } else { "" };
        let _ = write!(
            self.0,
            "<details class=\"item o-{class}\"{open}><summary><span>{}</span><b class=\"tag {class}\">{}</b></summary><div class=\"sides\">",
            escape(asked),
            escape(tag)
        );
        for (title, text) in answers {
            let _ = write!(self.0, "<div class=\"answer\"><b>{}</b><div>{}</div></div>", escape(title), escape(text));
        }
        self.0.push_str("</div>");
        for words in said {
            let _ = write!(self.0, "<div class=\"said\">{}</div>", escape(words));
        }
        self.0.push_str("</details>");
    }

    /// The end.
    pub fn finish(mut self) -> String {
        self.0.push_str("</main></body></html>\n");
        self.0
    }
}

/// A part in percent.
pub(super) fn percent(part: f64) -> String {
    format!("{:.1} %", part * 100.0)
}

/// An interval of parts in percent.
pub(super) fn percents(interval: Option<Interval>) -> String {
    interval.map_or_else(|| "–".into(), |i| format!("{:.1} – {:.1} %", i.low * 100.0, i.high * 100.0))
}

/// An interval of numbers.
pub(super) fn numbers(interval: Option<Interval>, digits: usize) -> String {
    interval.map_or_else(|| "–".into(), |i| format!("{:.digits$} – {:.digits$}", i.low, i.high))
}

/// The beginning of a text, on one line.
pub(super) fn short(text: &str, most: usize) -> String {
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match text.char_indices().nth(most) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}
