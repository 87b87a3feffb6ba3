//! The tokenizers that nearly all models have, several times as fast as the `tokenizers` crate and
//! with the same tokens: byte-pair encoding over bytes (GPT-2, Llama 3, Qwen, SmolLM) or over
//! characters with byte fallback (Llama 2, Mistral).
//!
//! What is not known here is not guessed: [`FastPath::new`] gives `None` for a configuration, and
//! [`FastPath::encode`] for a text, that the `tokenizers` crate has to encode.

use std::sync::Mutex;

use aho_corasick::{AhoCorasick, MatchKind};
use serde_json::Value;
use tokenizers::normalizer::NormalizedString;
use tokenizers::{AddedToken, Normalizer, Token};
use unicode_normalization_alignments::{IsNormalized, is_nfc_quick};

use super::Encoding;
use super::bpe::{Bpe, META, Words};
use super::words::Pattern;

/// An id that no token has.
const TEXT: u32 = u32::MAX;

/// A tokenizer whose every step is known.
pub(super) struct FastPath {
    nfc: bool,
    cut: Cut,
    /// Added tokens found in the text, and those found in what is left of it after normalizing.
    added: Added,
    added_normalized: Added,
    /// What is added to a plain text.
    before: Vec<i32>,
    after: Vec<i32>,
    /// Whether white space at the ends of a token is left out of its place; whether a single space
    /// at the beginning is not.
    trim: Option<bool>,
    /// What each thread at work knows; as many as were ever at work at once.
    words: Mutex<Vec<Words>>,
}

/// What is done with the text between added tokens.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Cut {
    Bytes {
        pattern: Pattern,
        /// Numbers are cut off first, each by itself if `single`.
        numbers: Option<Single>,
    },
    /// Spaces become [`META`], and one comes before the text.
    Meta { prepend: Prepend, split: bool },
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Single(bool);

#[derive(Clone, Copy, Debug, PartialEq)]
enum Prepend {
    Never,
    Always,
    /// Before a text that does not begin with [`META`] or a space.
    Missing,
    /// The same, at the beginning of the whole text only.
    First,
}

impl FastPath {
    /// `bpe` is the model of `tokenizer`.
    pub fn new(tokenizer: &tokenizers::Tokenizer, bpe: &Bpe) -> Option<Self> {
        let normalizers = steps(tokenizer.get_normalizer(), "normalizers")?;
        let pre_tokenizers = steps(tokenizer.get_pre_tokenizer(), "pretokenizers")?;
        let cut = cut(&normalizers, &pre_tokenizers)?;
        let trim = trim(&steps(tokenizer.get_post_processor(), "processors")?)?;
        let (before, after) = surroundings(tokenizer)?;

        let tokens = tokenizer.get_added_tokens_decoder();
        let (normalized, plain): (Vec<_>, Vec<_>) =
            tokens.into_iter().partition(|(_, t)| t.normalized);
        let normalize = |text: &str| {
            let mut text = NormalizedString::from(text);
            if let Some(normalizer) = tokenizer.get_normalizer() {
                normalizer.normalize(&mut text).ok()?;
            }
            Some(text.get().to_owned())
        };
        let byte_level = matches!(cut, Cut::Bytes { .. });
        if byte_level != bpe.is_byte_level() || (!byte_level && !normalized.is_empty()) {
            return None;
        }
        Some(Self {
            nfc: byte_level && !normalizers.is_empty(),
            cut,
            added: Added::new(plain, |text| Some(text.to_owned()))?,
            added_normalized: Added::new(normalized, normalize)?,
            before,
            after,
            trim: trim.filter(|_| byte_level),
            words: Mutex::default(),
        })
        .filter(|_| byte_level || trim.is_none())
    }

    /// The tokens of `text`, with their places if `offsets`. `None`: not known here.
    pub fn encode(
        &self,
        bpe: &Bpe,
        text: &str,
        add_special_tokens: bool,
        offsets: bool,
    ) -> Option<Encoding> {
        if self.nfc && !text.is_ascii() && is_nfc_quick(text.chars()) != IsNormalized::Yes {
            return None;
        }
        let pool = || self.words.lock().unwrap_or_else(|e| e.into_inner());
        let mut work = Work {
            fast: self,
            bpe,
            text,
            words: pool().pop().unwrap_or_default(),
            ids: Vec::with_capacity(text.len() / 3),
            offsets: offsets.then(Vec::new),
            first: 0,
        };
        if add_special_tokens {
            work.surround(&self.before);
            work.first = self.before.len();
        }
        let known = work.run();
        if add_special_tokens {
            work.surround(&self.after);
        }
        pool().push(work.words);
        known.then_some(Encoding {
            ids: work.ids,
            offsets: work.offsets.unwrap_or_default(),
        })
    }
}

/// One text on its way.
struct Work<'a> {
    fast: &'a FastPath,
    bpe: &'a Bpe,
    text: &'a str,
    words: Words,
    ids: Vec<i32>,
    offsets: Option<Vec<(usize, usize)>>,
    /// Where the tokens of the text itself begin.
    first: usize,
}

impl Work<'_> {
    fn surround(&mut self, ids: &[i32]) {
        self.ids.extend_from_slice(ids);
        if let Some(offsets) = &mut self.offsets {
            offsets.resize(self.ids.len(), (0, 0));
        }
    }

    fn run(&mut self) -> bool {
        let fast = self.fast;
        self.between(&fast.added, 0, self.text.len(), |work, start, end| {
            work.between(&fast.added_normalized, start, end, |work, start, end| {
                work.piece(start, end)
            })
        })
    }

    /// Takes the added tokens out of a part of the text; `rest` gets what lies between them.
    fn between(
        &mut self,
        added: &Added,
        start: usize,
        end: usize,
        mut rest: impl FnMut(&mut Self, usize, usize) -> bool,
    ) -> bool {
        let mut from = start;
        for found in added.tokens.find_iter(&self.text[start..end]) {
            let Some(id) = added.ids[found.pattern()] else {
                return false;
            };
            let place = (start + found.start(), start + found.end());
            if from < place.0 && !rest(self, from, place.0) {
                return false;
            }
            self.added_token(id, place);
            from = place.1;
        }
        from == end || rest(self, from, end)
    }

    fn added_token(&mut self, id: i32, place: (usize, usize)) {
        self.ids.push(id);
        if let Some(offsets) = &mut self.offsets {
            let blank = |c: &char| *c == '\u{120}' || c.is_whitespace();
            let token = &self.text[place.0..place.1];
            let first = offsets.len() == self.first;
            let leading = token.chars().take_while(blank).count();
            let trailing = token.chars().rev().take_while(blank).count();
            offsets.push(self.fast.trimmed(place, leading, trailing, first));
        }
    }

    /// A part of the text without added tokens.
    fn piece(&mut self, start: usize, end: usize) -> bool {
        match self.fast.cut {
            Cut::Bytes { pattern, numbers } => match numbers {
                None => self.words(pattern, start, end),
                Some(single) => self.numbers(pattern, single, start, end),
            },
            Cut::Meta { prepend, split } => self.meta(prepend, split, start, end),
        }
    }

    /// Numbers by themselves, and the parts between them.
    fn numbers(&mut self, pattern: Pattern, single: Single, start: usize, end: usize) -> bool {
        let text = self.text;
        let mut from = start;
        let mut numeric = false;
        for (at, c) in text[start..end].char_indices() {
            let at = start + at;
            if (c.is_numeric() != numeric || (numeric && single.0)) && from < at {
                if !self.words(pattern, from, at) {
                    return false;
                }
                from = at;
            }
            numeric = c.is_numeric();
        }
        self.words(pattern, from, end)
    }

    fn words(&mut self, pattern: Pattern, start: usize, end: usize) -> bool {
        let text = &self.text[start..end];
        pattern.for_each(text, |from, to| self.word(start + from, start + to))
    }

    /// A word of bytes. A token that begins or ends within a character stands for all of it.
    fn word(&mut self, start: usize, end: usize) -> bool {
        let first = self.ids.len();
        let text = self.text;
        if !self
            .words
            .tokens(self.bpe, &text[start..end], &mut self.ids)
        {
            return false;
        }
        let Some(offsets) = &mut self.offsets else {
            return true;
        };
        let mut from = start;
        for &id in &self.ids[first..] {
            let to = from + self.bpe.length(id);
            let bytes = &text.as_bytes()[from..to];
            let leading = bytes.iter().take_while(|&&b| b == b' ').count();
            let trailing = bytes.iter().rev().take_while(|&&b| b == b' ').count();
            let place = (text.floor_char_boundary(from), text.ceil_char_boundary(to));
            let first = offsets.len() == self.first;
            offsets.push(self.fast.trimmed(place, leading, trailing, first));
            from = to;
        }
        true
    }

    /// A part of the text for a vocabulary of characters.
    fn meta(&mut self, prepend: Prepend, split: bool, start: usize, end: usize) -> bool {
        let text = &self.text[start..end];
        let bare = !text.starts_with([' ', META]);
        let prepended = match prepend {
            Prepend::Never => false,
            Prepend::Always => true,
            Prepend::Missing => bare,
            Prepend::First => bare && start == 0,
        };
        let mut spelled = String::with_capacity(text.len() + text.len() / 2);
        // The place of each byte of it, that of its character.
        let mut places = Vec::new();
        let mut push = |c: char, at: usize, len: usize| {
            spelled.push(c);
            if self.offsets.is_some() {
                places.resize(spelled.len(), (at, at + len));
            }
        };
        for (at, c) in text.char_indices() {
            let (at, len) = (start + at, c.len_utf8());
            if prepended && at == start {
                push(META, at, len);
            }
            push(if c == ' ' { META } else { c }, at, len);
        }
        let mut from = 0;
        while from < spelled.len() {
            let rest = &spelled[from..];
            let run = rest.len() - rest.trim_start_matches(META).len();
            let least = if split {
                rest.chars().next().map_or(0, char::len_utf8)
            } else {
                run
            };
            let len = match split || self.bpe.cut_at_meta {
                true => rest[least..].find(META).map(|at| least + at),
                false => None,
            };
            let to = from + len.unwrap_or(rest.len());
            let first = self.ids.len();
            if !self
                .words
                .tokens(self.bpe, &spelled[from..to], &mut self.ids)
            {
                return false;
            }
            if let Some(offsets) = &mut self.offsets {
                let mut at = from;
                for &id in &self.ids[first..] {
                    let end = at + self.bpe.length(id);
                    offsets.push((places[at].0, places[end - 1].1));
                    at = end;
                }
            }
            from = to;
        }
        true
    }
}

impl FastPath {
    /// The place of a token without the white space at its ends, as `ByteLevel` trims it.
    fn trimmed(
        &self,
        (mut start, mut end): (usize, usize),
        mut leading: usize,
        trailing: usize,
        first: bool,
    ) -> (usize, usize) {
        if let Some(keep_one) = self.trim {
            if keep_one && leading == 1 && (first || start == 0) {
                leading = 0;
            }
            start = (start + leading).min(end);
            if end >= trailing {
                end = (end - trailing).max(start);
            }
        }
        (start, end)
    }
}

/// Added tokens to be found in texts, the longest of those that begin leftmost.
struct Added {
    tokens: AhoCorasick,
    /// `None` for a token that also takes white space or minds its neighbours.
    ids: Vec<Option<i32>>,
}

impl Added {
    fn new(
        tokens: Vec<(u32, AddedToken)>,
        spelling: impl Fn(&str) -> Option<String>,
    ) -> Option<Self> {
        let plain = |t: &AddedToken| !t.single_word && !t.lstrip && !t.rstrip;
        let ids = tokens.iter().map(|(id, t)| plain(t).then_some(*id as i32));
        let ids = ids.collect();
        let spellings = tokens.iter().map(|(_, token)| spelling(&token.content));
        let spellings: Vec<String> = spellings.collect::<Option<_>>()?;
        let tokens = AhoCorasick::builder()
            .match_kind(MatchKind::LeftmostLongest)
            .build(spellings)
            .ok()?;
        Some(Self { tokens, ids })
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
        (["Split", _], [split, last])
            if byte_level(last, false)
                && split["behavior"] == "Isolated"
                && split["invert"] == false =>
        {
            (Pattern::of(split["pattern"]["Regex"].as_str()?)?, None)
        }
        _ => return None,
    };
    Some(Cut::Bytes { pattern, numbers })
}

/// Whether places are trimmed, see [`FastPath::trim`].
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
fn surroundings(tokenizer: &tokenizers::Tokenizer) -> Option<(Vec<i32>, Vec<i32>)> {
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
