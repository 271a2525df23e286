//! Questions to a judge, and verdicts read from what it says. No network here.

mod pair;
mod single;

pub use pair::{Side, Style, Vote};
pub use single::{Grade, Scale};

/// The last non-empty line.
fn last_line(text: &str) -> &str {
    text.lines().rev().map(str::trim).find(|line| !line.is_empty()).unwrap_or("")
}

/// `template` with each `{name}` replaced, in one pass: what is put in is not looked through again.
fn fill(template: &str, values: &[(&str, &str)]) -> String {
    let mut out = String::with_capacity(template.len() + values.iter().map(|(_, v)| v.len()).sum::<usize>());
    let mut rest = template;
    while let Some(at) = rest.find('{') {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        let found = values.iter().find(|(name, _)| rest[1..].strip_prefix(*name).is_some_and(|r| r.starts_with('}')));
        match found {
            Some((name, value)) => {
                out.push_str(value);
                rest = &rest[name.len() + 2..];
            }
            None => {
                out.push('{');
                rest = &rest[1..];
            }
        }
    }
    out + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_filled_in_is_not_filled_again() {
        assert_eq!(fill("{a} {b} {c} {a}", &[("a", "{b}"), ("b", "x")]), "{b} x {c} {b}");
        assert_eq!(fill("{", &[("a", "x")]), "{");
        assert_eq!(last_line("a\n b \n \n"), "b");
    }
}
