//! The parts of a chat that the assistant says, as a template marks them.
//!
//! `{% generation %} … {% endgeneration %}` is a tag of transformers alone. Before compiling it is
//! rewritten to a `filter` block, another block tag, so that whitespace control and the trimming of
//! lines work on it as on any tag. The filter puts a marker character on either side of what was
//! said; the markers are chosen so that the rendered text does not hold them, and what remains when
//! they are taken out must be the text that renders without them. So a span is exactly what the
//! block wrote, whatever the messages contain.

use std::ops::Range;

use minijinja::{State, Value};

use crate::error::{Error, ErrorKind, Result};

/// The filter that generation blocks become.
pub(super) const FILTER: &str = "sft_generation";

/// The variable that holds the two marker characters while spans are wanted.
pub(super) const MARKERS: &str = "__sft_markers";

/// The filter: puts the markers, if there are any, around what a block wrote.
pub(super) fn mark(state: &State, said: String) -> String {
    match state.lookup(MARKERS).as_ref().and_then(Value::as_str) {
        Some(markers) => {
            let mut markers = markers.chars();
            let (open, close) = (markers.next(), markers.next());
            let (open, close) = (open.unwrap_or_default(), close.unwrap_or_default());
            format!("{open}{said}{close}")
        }
        None => said,
    }
}

/// Two characters that `text` does not hold.
pub(super) fn unused_markers(text: &str) -> Result<[char; 2]> {
    let mut unused = ('\u{FDD0}'..='\u{FDEF}').filter(|&c| !text.contains(c));
    match (unused.next(), unused.next()) {
        (Some(open), Some(close)) => Ok([open, close]),
        _ => Err(Error::new(
            ErrorKind::Template,
            "the text holds the Unicode noncharacters U+FDD0..U+FDEF; remove them from the data, \
             two are needed to mark what the assistant says",
        )),
    }
}

/// The bytes of `text` that stand between the markers in `marked`.
pub(super) fn spans(
    marked: &str,
    text: &str,
    [open, close]: [char; 2],
) -> Result<Vec<Range<usize>>> {
    let broken = |what: &str| {
        Error::new(
            ErrorKind::Template,
            format!("{{% generation %}} blocks of the chat template {what}"),
        )
    };
    let mut spans = Vec::new();
    let mut plain = String::with_capacity(text.len());
    let mut start = None;
    for c in marked.chars() {
        if c == open {
            if start.replace(plain.len()).is_some() {
                return Err(broken("lie inside one another"));
            }
        } else if c == close {
            let start = start
                .take()
                .ok_or_else(|| broken("end before they begin"))?;
            if start < plain.len() {
                spans.push(start..plain.len());
            }
        } else {
            plain.push(c);
        }
    }
    if start.is_some() {
        return Err(broken("do not end"));
    }
    if plain != text {
        return Err(broken(
            "are edited by the template after they were rendered, so what the assistant says \
             cannot be told; print them directly",
        ));
    }
    Ok(spans)
}

/// Replaces the generation tags of a template; whether there were any. Line ends become `\n`, as
/// Jinja2 makes them.
///
/// The `with` block around the filter keeps what is set inside from being seen outside, as the
/// original tag does.
pub(super) fn rewrite(source: &str) -> (String, bool) {
    let mut out = String::with_capacity(source.len());
    let mut found = false;
    let source = source.replace("\r\n", "\n").replace('\r', "\n");
    let mut rest = source.as_str();
    while let Some(at) = rest.find('{') {
        let (before, tail) = rest.split_at(at);
        out.push_str(before);
        let end = match tail.as_bytes().get(1) {
            Some(b'#') => tail.find("#}").map(|i| i + 2),
            Some(b'{') => end_of_code(tail, "}}"),
            Some(b'%') => end_of_code(tail, "%}"),
            _ => Some(1),
        };
        // What does not end is an error that the compiler reports.
        let (tag, after) = tail.split_at(end.unwrap_or(tail.len()));
        rest = after;
        match tag_name(tag) {
            Some("generation") => {
                found = true;
                let (open, close) = tag_delimiters(tag);
                out.push_str(&format!("{open} with %}}{{% filter {FILTER} {close}"));
            }
            Some("endgeneration") => {
                let (open, close) = tag_delimiters(tag);
                out.push_str(&format!("{open} endfilter %}}{{% endwith {close}"));
            }
            Some("raw") => {
                let length = end_of_raw(rest);
                out.push_str(tag);
                out.push_str(&rest[..length]);
                rest = &rest[length..];
            }
            _ => out.push_str(tag),
        }
    }
    out.push_str(rest);
    (out, found)
}

/// Where an expression or tag that begins at 0 ends, past quoted texts.
fn end_of_code(code: &str, end: &str) -> Option<usize> {
    let bytes = code.as_bytes();
    let mut i = 2;
    let mut quote = None;
    while i < bytes.len() {
        match (quote, bytes[i]) {
            (Some(_), b'\\') => i += 1,
            (Some(q), b) if q == b => quote = None,
            (None, b @ (b'"' | b'\'')) => quote = Some(b),
            (None, _) if bytes[i..].starts_with(end.as_bytes()) => return Some(i + end.len()),
            _ => {}
        }
        i += 1;
    }
    None
}

/// The word of a tag that is nothing but a word.
fn tag_name(tag: &str) -> Option<&str> {
    let inner = tag.strip_prefix("{%")?.strip_suffix("%}")?;
    let inner = inner.strip_prefix(['-', '+']).unwrap_or(inner);
    let inner = inner.strip_suffix(['-', '+']).unwrap_or(inner);
    Some(inner.trim())
}

/// A tag's delimiters with their whitespace control.
fn tag_delimiters(tag: &str) -> (&'static str, &'static str) {
    let open = match tag.as_bytes().get(2) {
        Some(b'-') => "{%-",
        Some(b'+') => "{%+",
        _ => "{%",
    };
    let close = match tag.as_bytes().get(tag.len().wrapping_sub(3)) {
        Some(b'-') => "-%}",
        Some(b'+') => "+%}",
        _ => "%}",
    };
    (open, close)
}

/// Length of the text up to the tag that ends a raw block.
fn end_of_raw(text: &str) -> usize {
    let mut at = 0;
    while let Some(i) = text[at..].find("{%") {
        let start = at + i;
        let end = text[start..].find("%}").map(|i| start + i + 2);
        match end {
            Some(end) if tag_name(&text[start..end]) == Some("endraw") => return start,
            Some(_) => at = start + 2,
            None => break,
        }
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_generation_tags_are_rewritten() {
        let same = "{# {% generation %} #}{{ '{% generation %}' }}{% raw %}{% generation %}{% endraw %}\
                    {% if generation %}{ % {%- set x = '%}' %}";
        assert_eq!(rewrite(same), (same.to_string(), false));
        let (text, found) = rewrite("a {%- generation -%} b {%endgeneration+%}");
        assert!(found);
        assert_eq!(
            text,
            "a {%- with %}{% filter sft_generation -%} b {% endfilter %}{% endwith +%}"
        );
    }
}
