//! Which tokenizers the fast path knows, read from their components as a `tokenizer.json` writes
//! them.

use serde_json::Value;
use tokenizers::{Token, Tokenizer};

use super::bpe::META;
use super::words::Pattern;

/// An id that no token has.
const TEXT: u32 = u32::MAX;

/// What a tokenizer does around its model, all of it known.
pub(super) struct Config {
    pub cut: Cut,
    /// Whether the text is to be in normalization form C.
    pub nfc: bool,
    /// What is added to a plain text.
    pub before: Vec<i32>,
    pub after: Vec<i32>,
    /// Whether white space at the ends of a token is left out of its offsets, and then whether a
    /// single space at the beginning of the text is not.
    pub trim: Option<bool>,
}

/// What is done with the text between added tokens.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Cut {
    Bytes {
        pattern: Pattern,
        /// Numbers are cut off first, each by itself if `single`.
        numbers: Option<Single>,
    },
    /// Spaces become [`META`], and one comes before the text.
    Meta { prepend: Prepend, split: bool },
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Single(pub bool);

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Prepend {
    Never,
    Always,
    /// Before a text that does not begin with [`META`] or a space.
    Missing,
    /// The same, at the beginning of the whole text only.
    First,
}

impl Config {
    /// `None` for a tokenizer that does anything else.
    pub fn of(tokenizer: &Tokenizer) -> Option<Self> {
        let normalizers = steps(tokenizer.get_normalizer(), "normalizers")?;
        let pre_tokenizers = steps(tokenizer.get_pre_tokenizer(), "pretokenizers")?;
        let cut = cut(&normalizers, &pre_tokenizers)?;
        let byte_level = matches!(cut, Cut::Bytes { .. });
        let trim = trim(&steps(tokenizer.get_post_processor(), "processors")?)?;
        let (before, after) = surroundings(tokenizer)?;
        let config = Self {
            cut,
            nfc: byte_level && !normalizers.is_empty(),
            before,
            after,
            trim,
        };
        (byte_level || trim.is_none()).then_some(config)
    }
}

/// The parts of a component, itself or those of a sequence, as a `tokenizer.json` writes them.
fn steps(component: Option<impl serde::Serialize>, parts: &str) -> Option<Vec<Value>> {
    let Some(component) = component else {
        return Some(Vec::new());
    };
    let mut value = serde_json::to_value(component).ok()?;
    if value["type"] != "Sequence" {
        return Some(vec![value]);
    }
    match value[parts].take() {
        Value::Array(steps) => Some(steps),
        _ => None,
    }
}

fn cut(normalizers: &[Value], pre_tokenizers: &[Value]) -> Option<Cut> {
    let types = |steps: &[Value]| -> Option<Vec<String>> {
        let name = |step: &Value| step["type"].as_str().map(str::to_owned);
        steps.iter().map(name).collect()
    };
    let (normal, pre) = (types(normalizers)?, types(pre_tokenizers)?);
    let normal: Vec<&str> = normal.iter().map(String::as_str).collect();
    let pre: Vec<&str> = pre.iter().map(String::as_str).collect();

    if let (["Prepend", "Replace"], []) = (&normal[..], &pre[..]) {
        let meta = META.to_string();
        let expected = normalizers[0]["prepend"] == *meta
            && normalizers[1]["pattern"]["String"] == " "
            && normalizers[1]["content"] == *meta;
        let prepend = Prepend::Always;
        let split = false;
        return expected.then_some(Cut::Meta { prepend, split });
    }
    if let ([], ["Metaspace"]) = (&normal[..], &pre[..]) {
        let step = &pre_tokenizers[0];
        let prepend = match step["prepend_scheme"].as_str()? {
            "always" => Prepend::Missing,
            "first" => Prepend::First,
            "never" => Prepend::Never,
            _ => return None,
        };
        let split = step["split"].as_bool()?;
        let expected = step["replacement"] == *META.to_string();
        return expected.then_some(Cut::Meta { prepend, split });
    }
    if !matches!(normal[..], [] | ["NFC"]) {
        return None;
    }
    let byte_level = |step: &Value, use_regex: bool| {
        step["type"] == "ByteLevel"
            && step["add_prefix_space"] == false
            && step["use_regex"] == use_regex
    };
    let (pattern, numbers) = match (&pre[..], pre_tokenizers) {
        ([_], [last]) if byte_level(last, true) => (Pattern::BYTE_LEVEL, None),
        (["Digits", _], [digits, last]) if byte_level(last, true) => {
            let single = digits["individual_digits"].as_bool()?;
            (Pattern::BYTE_LEVEL, Some(Single(single)))
        }
        (["Split", _], [split, last]) if byte_level(last, false) => {
            // The known expressions match all of a text, so that it is the same whether the matches
            // are kept or what lies between them is removed.
            match (split["behavior"].as_str()?, split["invert"].as_bool()?) {
                ("Isolated", false) | ("Removed", true) => {}
                _ => return None,
            }
            (Pattern::of(split["pattern"]["Regex"].as_str()?)?, None)
        }
        _ => return None,
    };
    Some(Cut::Bytes { pattern, numbers })
}

/// Whether offsets are trimmed, see [`Config::trim`].
fn trim(processors: &[Value]) -> Option<Option<bool>> {
    let byte_level = |step: &Value| {
        let trim = step["trim_offsets"] == true;
        trim.then(|| step["add_prefix_space"] == true)
    };
    let known = |step: &Value, name: &str| step["type"] == name;
    match processors {
        [] => Some(None),
        [one] if known(one, "TemplateProcessing") => Some(None),
        [one] if known(one, "ByteLevel") => Some(byte_level(one)),
        [one, two] if known(one, "ByteLevel") && known(two, "TemplateProcessing") => {
            Some(byte_level(one))
        }
        _ => None,
    }
}

/// What the tokenizer adds before and after a plain text, found out with a token of our own;
/// `None` when it does something else as well.
fn surroundings(tokenizer: &Tokenizer) -> Option<(Vec<i32>, Vec<i32>)> {
    let process = |add_special_tokens| {
        let token = Token::new(TEXT, "x".into(), (0, 1));
        let text = tokenizers::Encoding::from_tokens(vec![token], 0);
        tokenizer.post_process(text, None, add_special_tokens).ok()
    };
    if process(false)?.get_ids() != [TEXT] {
        return None;
    }
    let around = process(true)?;
    let ids = around.get_ids();
    let at = ids.iter().position(|&id| id == TEXT)?;
    let places = around.get_offsets().iter().enumerate();
    let placed = places
        .filter(|(_, place)| **place != (0, 0))
        .map(|(i, _)| i);
    let convert = |ids: &[u32]| ids.iter().map(|&id| id as i32).collect::<Vec<_>>();
    let (before, after) = (convert(&ids[..at]), convert(&ids[at + 1..]));
    (placed.eq([at]) && !ids[at + 1..].contains(&TEXT)).then_some((before, after))
}
