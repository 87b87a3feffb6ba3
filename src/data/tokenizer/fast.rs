//! The tokenizers that nearly all models have, several times as fast as the `tokenizers` crate and
//! with the same tokens: byte-pair encoding over bytes (GPT-2, Llama 3, Qwen, SmolLM) or over
//! characters with byte fallback (Llama 2, Mistral).
//!
//! Own code, as no well-kept library that we found gives both: the fast ones give no offsets, which
//! the masks of conversations need.
//!
//! What is not known here is not guessed: [`FastPath::new`] gives `None` for a configuration, and
//! [`FastPath::encode`] for a text, that the `tokenizers` crate has to encode.

use std::sync::Mutex;

use aho_corasick::{AhoCorasick, MatchKind};
use tokenizers::normalizer::NormalizedString;
use tokenizers::{AddedToken, Normalizer};
use unicode_normalization_alignments::{IsNormalized, is_nfc_quick};

use super::Encoding;
use super::bpe::{Bpe, META, Words};
use super::config::{Config, Cut, Prepend, Single};
use super::words::Pattern;

/// A tokenizer whose every step is known.
pub(super) struct FastPath {
    config: Config,
    /// Added tokens found in the text, and those found in what is left of it after normalizing.
    added: Added,
    added_normalized: Added,
    /// What each thread at work knows; as many as were ever at work at once.
    words: Mutex<Vec<Words>>,
}

impl FastPath {
    /// `bpe` is the model of `tokenizer`.
    pub fn new(tokenizer: &tokenizers::Tokenizer, bpe: &Bpe) -> Option<Self> {
        let config = Config::of(tokenizer)?;
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
        let byte_level = matches!(config.cut, Cut::Bytes { .. });
        if byte_level != bpe.is_byte_level() || (!byte_level && !normalized.is_empty()) {
            return None;
        }
        Some(Self {
            added: Added::new(plain, |text| Some(text.to_owned()))?,
            added_normalized: Added::new(normalized, normalize)?,
            config,
            words: Mutex::default(),
        })
    }

    /// The tokens of `text`, with their offsets if wanted. `None`: not known here.
    pub fn encode(
        &self,
        bpe: &Bpe,
        text: &str,
        add_special_tokens: bool,
        offsets: bool,
    ) -> Option<Encoding> {
        if self.config.nfc && !text.is_ascii() && is_nfc_quick(text.chars()) != IsNormalized::Yes {
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
            work.add_around(&self.config.before);
            work.first = self.config.before.len();
        }
        let known = work.run();
        if add_special_tokens {
            work.add_around(&self.config.after);
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
    fn add_around(&mut self, ids: &[i32]) {
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
            let offsets = (start + found.start(), start + found.end());
            if from < offsets.0 && !rest(self, from, offsets.0) {
                return false;
            }
            self.added_token(id, offsets);
            from = offsets.1;
        }
        from == end || rest(self, from, end)
    }

    fn added_token(&mut self, id: i32, (start, end): (usize, usize)) {
        self.ids.push(id);
        if let Some(offsets) = &mut self.offsets {
            let blank = |c: &char| *c == '\u{120}' || c.is_whitespace();
            let token = &self.text[start..end];
            let first = offsets.len() == self.first;
            let leading = token.chars().take_while(blank).count();
            let trailing = token.chars().rev().take_while(blank).count();
            offsets.push(self.fast.trimmed((start, end), leading, trailing, first));
        }
    }

    /// A part of the text without added tokens.
    fn piece(&mut self, start: usize, end: usize) -> bool {
        match self.fast.config.cut {
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
            let whole = (text.floor_char_boundary(from), text.ceil_char_boundary(to));
            let first = offsets.len() == self.first;
            offsets.push(self.fast.trimmed(whole, leading, trailing, first));
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
        // For each byte of it, where its character lies in the text.
        let mut origins = Vec::new();
        let mut push = |c: char, at: usize, len: usize| {
            spelled.push(c);
            if self.offsets.is_some() {
                origins.resize(spelled.len(), (at, at + len));
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
                    offsets.push((origins[at].0, origins[end - 1].1));
                    at = end;
                }
            }
            from = to;
        }
        true
    }
}

impl FastPath {
    /// The offsets of a token without the white space at its ends, as `ByteLevel` trims them.
    fn trimmed(
        &self,
        (mut start, mut end): (usize, usize),
        mut leading: usize,
        trailing: usize,
        first: bool,
    ) -> (usize, usize) {
        if let Some(keep_one) = self.config.trim {
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
