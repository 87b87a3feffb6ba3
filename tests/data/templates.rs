//! Chat templates, against transformers' own renderings (see the README of the recorder).

use std::collections::BTreeMap;
use std::fs;
use std::ops::Range;

use serde_json::{Map, Value};
use sft::data::{ChatTemplate, Conversation};

use crate::fixtures;

fn read(path: &str) -> Value {
    let path = fixtures().join("templates").join(path);
    serde_json::from_slice(&fs::read(&path).expect("a fixture")).expect("JSON")
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().expect("a text")
}

/// Traits that no known template leans on and that are otherwise: (snippet, what happens).
const OTHERWISE: [(&str, &str); 5] = [
    (
        "macro-varargs",
        "refused: macros take the arguments they name",
    ),
    (
        "loop-variables",
        "over a text, loop.length and loop.revindex are not known",
    ),
    (
        "loop-none-error",
        "a loop over none is empty instead of refused",
    ),
    (
        "filter-wordcount-truncate",
        "refused: filters that are not there",
    ),
    ("filter-urlencode", "refused: a filter that is not there"),
];

fn templates(doc: &Value) -> BTreeMap<&str, ChatTemplate> {
    let mut templates = BTreeMap::new();
    for (name, entry) in doc["templates"].as_object().expect("templates") {
        let source = fs::read_to_string(fixtures().join("templates").join(text(entry, "file")));
        let tokens = serde_json::from_value(entry["special_tokens"].clone()).expect("tokens");
        let template = ChatTemplate::with_special_tokens(source.expect("a template"), tokens);
        let template = template.unwrap_or_else(|e| panic!("{name}: {e}"));
        let template = template.with_now(text(doc, "now")).expect("a time");
        templates.insert(name.as_str(), template);
    }
    templates
}

/// The conversation of a recorded rendering.
fn input<'a>(doc: &'a Value, entry: &'a Value) -> Conversation<'a> {
    let messages = doc["conversations"][text(entry, "conversation")].as_array();
    Conversation {
        messages: messages.expect("messages"),
        tools: Some(&doc["tools"]).filter(|_| entry["tools"] == true),
        variables: entry["kwargs"].as_object(),
        add_generation_prompt: entry["add_generation_prompt"] == true,
    }
}

#[test]
fn templates_render_as_in_transformers() {
    let doc = read("expected.json");
    let templates = templates(&doc);
    let mut wrong = Vec::new();
    let mut compared = 0;
    for entry in doc["expected"].as_array().expect("renderings") {
        let (name, conversation) = (text(entry, "template"), text(entry, "conversation"));
        let input = input(&doc, entry);
        let template = &templates[name];
        let rendered = match entry.get("spans") {
            Some(_) => template
                .render_with_spans(&input)
                .map(|(t, s)| (t, Some(s))),
            None => template.render(&input).map(|t| (t, None)),
        };
        compared += 1;
        if let Some(difference) = difference(entry, rendered) {
            wrong.push(format!("{name} / {conversation}: {difference}"));
        }
    }
    assert!(
        wrong.is_empty(),
        "{} of {compared}:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
    assert!(compared > 500, "only {compared} renderings were found");
}

type Rendered = sft::Result<(String, Option<Vec<Range<usize>>>)>;

fn difference(expected: &Value, rendered: Rendered) -> Option<String> {
    match (expected.get("text").and_then(Value::as_str), rendered) {
        (Some(text), Ok((ours, spans))) => {
            if ours != text {
                let same = ours
                    .bytes()
                    .zip(text.bytes())
                    .take_while(|(a, b)| a == b)
                    .count();
                let from = |t: &str| {
                    let start = (same.saturating_sub(40)..=same).find(|&i| t.is_char_boundary(i));
                    t[start.unwrap_or(0)..]
                        .chars()
                        .take(120)
                        .collect::<String>()
                };
                return Some(format!(
                    "ours …{:?}\n  theirs …{:?}",
                    from(&ours),
                    from(text)
                ));
            }
            let spans = spans?;
            let theirs: Vec<[usize; 2]> =
                serde_json::from_value(expected["spans"].clone()).expect("spans");
            // Theirs count characters, and hold empty spans too.
            let characters = |byte: usize| ours[..byte].chars().count();
            let spans = spans
                .iter()
                .map(|s| [characters(s.start), characters(s.end)]);
            let (spans, theirs): (Vec<_>, Vec<_>) = (
                spans.collect(),
                theirs.into_iter().filter(|[s, e]| s < e).collect(),
            );
            (spans != theirs).then(|| format!("spans {spans:?} instead of {theirs:?}"))
        }
        (Some(_), Err(e)) => Some(format!("refused: {e}")),
        (None, Ok((ours, _))) => Some(format!(
            "not refused ({}): {ours:?}",
            text(expected, "error")
        )),
        (None, Err(e)) => {
            let raised = text(expected, "error_kind") == "raise_exception";
            let message = text(expected, "error");
            (raised && !e.to_string().contains(message))
                .then(|| format!("refused with {e} instead of {message}"))
        }
    }
}

#[test]
fn traits_of_jinja_are_as_in_jinja2() {
    let doc = read("snippets.json");
    let message = [serde_json::json!({"role": "user", "content": "x"})];
    let mut wrong = Vec::new();
    let mut compared = 0;
    for entry in doc["snippets"].as_array().expect("snippets") {
        let name = text(entry, "name");
        if OTHERWISE.iter().any(|(n, _)| *n == name) {
            continue;
        }
        let variables: &Map<String, Value> = entry["variables"].as_object().expect("variables");
        let template = ChatTemplate::with_special_tokens(text(entry, "template"), BTreeMap::new());
        let rendered = template
            .and_then(|t| t.with_now(text(&doc, "now")))
            .and_then(|t| {
                t.render(&Conversation {
                    messages: &message,
                    variables: Some(variables),
                    ..Conversation::default()
                })
            });
        compared += 1;
        if let Some(difference) = difference(entry, rendered.map(|t| (t, None))) {
            wrong.push(format!(
                "{name} {:?}: {difference}",
                text(entry, "template")
            ));
        }
    }
    assert!(
        wrong.is_empty(),
        "{} of {compared}:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
    assert!(compared > 80, "only {compared} snippets were found");
}

/// The same spans, those that touch as one.
fn joined(spans: Vec<Range<usize>>) -> Vec<Range<usize>> {
    let mut joined: Vec<Range<usize>> = Vec::new();
    for span in spans {
        match joined.last_mut() {
            Some(last) if last.end == span.start => last.end = span.end,
            _ => joined.push(span),
        }
    }
    joined
}

/// TRL trains such templates through copies with `{% generation %}` blocks, found by the exact text
/// of the original. Where a span can be told without them, it must lie within theirs.
#[test]
fn spans_told_from_the_turns_lie_within_those_of_generation_blocks() {
    let doc = read("expected.json");
    let templates = templates(&doc);
    let mut told = BTreeMap::<&str, [usize; 3]>::new();
    for entry in doc["expected"].as_array().expect("renderings") {
        let Some(name) = text(entry, "template").strip_suffix("_training") else {
            continue;
        };
        let Some(plain) = templates.get(name) else {
            continue;
        };
        let input = input(&doc, entry);
        let marked = templates[text(entry, "template")].render_with_spans(&input);
        let (Ok((theirs, blocks)), Ok(ours)) = (marked, plain.render(&input)) else {
            continue;
        };
        let blocks = joined(blocks);
        if ours != theirs {
            continue; // the copy was changed in more than the blocks
        }
        let [equal, within, refused] = told.entry(name).or_default();
        match plain.render_with_spans(&input) {
            Err(_) => *refused += 1,
            Ok((_, spans)) if spans == blocks => *equal += 1,
            Ok((_, spans)) => {
                *within += 1;
                let contained =
                    |s: &Range<usize>| blocks.iter().any(|b| b.start <= s.start && s.end <= b.end);
                assert!(
                    spans.iter().all(contained),
                    "{name} / {}: {spans:?} in {blocks:?} of {ours:?}",
                    text(entry, "conversation")
                );
            }
        }
    }
    for name in ["gemma", "gemma3", "llama3", "qwen3"] {
        let [equal, within, refused] = told[name];
        assert!(
            equal > 8 && within == 0 && refused <= 1,
            "{name}: {:?}",
            told[name]
        );
    }
    // The blocks of TRL's copy begin before the line end that belongs to the prompt.
    assert!(told["qwen2_5"][1] > 20, "{told:?}");
}
