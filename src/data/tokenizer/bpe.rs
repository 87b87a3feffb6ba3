//! Byte-pair encoding of single words: the vocabulary and merges of a `tokenizer.json`, and a
//! cache of words already merged.

use std::borrow::Cow;
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};

use foldhash::fast::RandomState;
use serde::Deserialize;

type Map<K, V> = HashMap<K, V, RandomState>;

/// No token, no symbol.
const NONE: u32 = u32::MAX;
/// What writes a space in a vocabulary of characters.
pub(super) const META: char = '\u{2581}';

/// What the first symbols of a word are, before any merge.
enum Alphabet {
    /// The bytes of the text; a vocabulary writes each as a character of its own.
    Bytes { ids: [u32; 256] },
    /// The characters of the text, and the bytes (`<0x0A>`) of those without a token.
    Characters {
        ids: Map<char, u32>,
        bytes: [u32; 256],
    },
}

/// A BPE model without dropout, prefixes, suffixes and unknown tokens, so that every word has one
/// and only one way to become tokens.
pub(super) struct Bpe {
    alphabet: Alphabet,
    /// Pairs of tokens: how early they are merged, and into what.
    merges: Map<(u32, u32), (u32, u32)>,
    /// Tokens that a whole word becomes without merging.
    whole: Map<Box<[u8]>, u32>,
    /// Bytes of text that each token stands for.
    lengths: Vec<u32>,
    /// Whether no merge reaches from a character over a following [`META`], so that each run of
    /// them begins a word of its own.
    pub cut_at_meta: bool,
}

#[derive(Deserialize)]
struct File<'a> {
    #[serde(borrow)]
    model: Model<'a>,
    #[serde(default, borrow)]
    added_tokens: Vec<Added<'a>>,
}

#[derive(Deserialize)]
struct Added<'a> {
    #[serde(borrow)]
    content: Cow<'a, str>,
}

#[derive(Deserialize)]
struct Model<'a> {
    r#type: Option<String>,
    dropout: Option<f32>,
    continuing_subword_prefix: Option<String>,
    end_of_word_suffix: Option<String>,
    #[serde(default)]
    byte_fallback: bool,
    #[serde(default)]
    ignore_merges: bool,
    #[serde(borrow)]
    vocab: Map<Text<'a>, u32>,
    #[serde(borrow)]
    merges: Merges<'a>,
}

#[derive(Deserialize, PartialEq, Eq, Hash)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

impl std::borrow::Borrow<str> for Text<'_> {
    fn borrow(&self) -> &str {
        &self.0
    }
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Merges<'a> {
    #[serde(borrow)]
    Pairs(Vec<(Text<'a>, Text<'a>)>),
    #[serde(borrow)]
    Lines(Vec<Text<'a>>),
}

impl Bpe {
    /// The model in the bytes of a `tokenizer.json`; `None` when it is of another kind.
    pub fn read(json: &[u8]) -> Option<Self> {
        let file: File = serde_json::from_slice(json).ok()?;
        let model = file.model;
        let empty = |text: &Option<String>| text.as_deref().is_none_or(str::is_empty);
        let plain = model.r#type.as_deref() == Some("BPE")
            && model.dropout.is_none_or(|p| p == 0.0)
            && empty(&model.continuing_subword_prefix)
            && empty(&model.end_of_word_suffix);
        if !plain || repeated(file.added_tokens.iter().map(|t| t.content.as_ref())) {
            return None;
        }
        let highest = model.vocab.values().copied().max()? as usize;
        if highest > 16 * model.vocab.len() || repeated(model.vocab.values()) {
            return None;
        }
        let byte_level = !model.byte_fallback;
        if model.ignore_merges && !byte_level {
            return None; // its whole words are whole texts
        }
        let text_of = |token: &str| match byte_level {
            true => token.chars().map(byte_of).collect::<Option<Box<[u8]>>>(),
            false => Some(token.as_bytes().into()),
        };
        let mut lengths = vec![0; highest + 1];
        let mut whole = Map::default();
        for (token, &id) in &model.vocab {
            let Some(text) = text_of(&token.0) else {
                continue; // no text is written with these characters
            };
            lengths[id as usize] = text.len() as u32;
            if model.ignore_merges {
                whole.insert(text, id);
            }
        }
        let alphabet = match byte_level {
            true => Alphabet::bytes(&model.vocab),
            false => Alphabet::characters(&model.vocab)?,
        };
        let mut single_bytes = vec![false; highest + 1];
        if let Alphabet::Characters { bytes, .. } = &alphabet {
            for &id in bytes {
                lengths[id as usize] = 1;
                single_bytes[id as usize] = true;
            }
        }
        let mut bpe = Self {
            alphabet,
            merges: Map::default(),
            whole,
            lengths,
            cut_at_meta: true,
        };
        bpe.read_merges(&model.vocab, &model.merges, &single_bytes)?;
        Some(bpe)
    }

    fn read_merges(
        &mut self,
        vocab: &Map<Text<'_>, u32>,
        merges: &Merges<'_>,
        single_bytes: &[bool],
    ) -> Option<()> {
        let pairs: Vec<(&str, &str)> = match merges {
            Merges::Pairs(pairs) => pairs.iter().map(|(a, b)| (&*a.0, &*b.0)).collect(),
            Merges::Lines(lines) => {
                let lines = lines.iter().filter(|line| !line.0.starts_with("#version"));
                lines
                    .map(|line| line.0.split_once(' '))
                    .collect::<Option<_>>()?
            }
        };
        self.merges.reserve(pairs.len());
        let mut joined = String::new();
        for (rank, (a, b)) in pairs.into_iter().enumerate() {
            joined.clear();
            joined.push_str(a);
            joined.push_str(b);
            let ids = (*vocab.get(a)?, *vocab.get(b)?);
            let new = *vocab.get(joined.as_str())?;
            if [ids.0, ids.1, new]
                .iter()
                .any(|&id| single_bytes[id as usize])
            {
                return None; // a byte's token would stand for its name too
            }
            if b.starts_with(META) && !a.ends_with(META) {
                self.cut_at_meta = false;
            }
            self.merges.insert(ids, (rank as u32, new));
        }
        Some(())
    }

    pub fn highest_id(&self) -> u32 {
        self.lengths.len() as u32 - 1
    }

    /// Whether words are bytes; else characters, with [`META`] for a space.
    pub fn is_byte_level(&self) -> bool {
        matches!(self.alphabet, Alphabet::Bytes { .. })
    }

    /// The bytes of a word that the token stands for.
    pub fn length(&self, id: i32) -> usize {
        self.lengths[id as usize] as usize
    }

    fn merge(&self, a: u32, b: u32) -> Option<(u32, u32)> {
        self.merges.get(&(a, b)).copied()
    }
}

impl Alphabet {
    fn bytes(vocab: &Map<Text<'_>, u32>) -> Self {
        let mut ids = [NONE; 256];
        let mut name = [0; 4];
        for code in 0..0x180 {
            let Some(c) = char::from_u32(code) else {
                continue;
            };
            if let Some(byte) = byte_of(c)
                && let Some(&id) = vocab.get(&*c.encode_utf8(&mut name))
            {
                ids[byte as usize] = id;
            }
        }
        Self::Bytes { ids }
    }

    /// `None` when a byte has no token: some characters would be unknown.
    fn characters(vocab: &Map<Text<'_>, u32>) -> Option<Self> {
        let mut bytes = [NONE; 256];
        for (byte, id) in bytes.iter_mut().enumerate() {
            *id = *vocab.get(format!("<0x{byte:02X}>").as_str())?;
        }
        let single = |token: &str| {
            let mut characters = token.chars();
            characters.next().filter(|_| characters.next().is_none())
        };
        let ids = vocab
            .iter()
            .filter_map(|(t, &id)| Some((single(&t.0)?, id)));
        Some(Self::Characters {
            ids: ids.collect(),
            bytes,
        })
    }
}

/// The byte that a byte-level vocabulary writes as this character: printable ones of Latin-1 as
/// themselves, the others from U+0100 on.
fn byte_of(c: char) -> Option<u8> {
    let code = c as u32;
    match code {
        0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF => Some(code as u8),
        0x100..=0x120 => Some((code - 0x100) as u8), // 0x00 ..= 0x20
        0x121..=0x142 => Some((code - 0x121 + 0x7F) as u8), // 0x7F ..= 0xA0
        0x143 => Some(0xAD),
        _ => None,
    }
}

fn repeated<T: Eq + std::hash::Hash>(mut items: impl Iterator<Item = T>) -> bool {
    let mut seen = std::collections::HashSet::<T, RandomState>::default();
    items.any(|item| !seen.insert(item))
}

/// Words longer than this, in bytes, are rare and merged anew.
const LONGEST_KEPT: usize = 64;
/// When the kept words have so many tokens, keeping starts anew: at most some 4 MB a thread.
const MOST_KEPT: usize = 1 << 16;

/// The words that one thread met, and what it merges new ones with.
#[derive(Default)]
pub(super) struct Words {
    /// Where the tokens of each word lie in `tokens`.
    known: Map<Box<[u8]>, (u32, u32)>,
    tokens: Vec<i32>,
    symbols: Vec<Symbol>,
    /// Pairs to merge, earliest and leftmost first: rank and place of the left symbol.
    queue: BinaryHeap<Reverse<(u32, u32)>>,
}

/// A token in the making, with its neighbours.
#[derive(Clone, Copy)]
struct Symbol {
    id: u32,
    before: u32,
    after: u32,
}

impl Words {
    /// Appends the tokens of `word`. False if the vocabulary lacks one of its bytes.
    pub fn tokens(&mut self, bpe: &Bpe, word: &str, ids: &mut Vec<i32>) -> bool {
        if let Some(&(start, end)) = self.known.get(word.as_bytes()) {
            ids.extend_from_slice(&self.tokens[start as usize..end as usize]);
            return true;
        }
        let first = ids.len();
        if let Some(&id) = bpe.whole.get(word.as_bytes()) {
            ids.push(id as i32);
        } else {
            if !self.spell(bpe, word) {
                return false;
            }
            self.merge(bpe);
            let left = self.symbols.iter().filter(|s| s.id != NONE);
            ids.extend(left.map(|s| s.id as i32));
        }
        if word.len() <= LONGEST_KEPT {
            if self.tokens.len() > MOST_KEPT {
                self.known.clear();
                self.tokens.clear();
            }
            let start = self.tokens.len() as u32;
            self.tokens.extend_from_slice(&ids[first..]);
            let place = (start, self.tokens.len() as u32);
            self.known.insert(word.as_bytes().into(), place);
        }
        true
    }

    /// The first symbols of `word`.
    fn spell(&mut self, bpe: &Bpe, word: &str) -> bool {
        self.symbols.clear();
        let symbols = &mut self.symbols;
        let mut push = |id| {
            let at = symbols.len() as u32;
            symbols.push(Symbol {
                id,
                before: at.wrapping_sub(1),
                after: at + 1,
            });
        };
        match &bpe.alphabet {
            Alphabet::Bytes { ids } => word.bytes().for_each(|b| push(ids[b as usize])),
            Alphabet::Characters { ids, bytes } => {
                for c in word.chars() {
                    match ids.get(&c) {
                        Some(&id) => push(id),
                        None => {
                            let mut spelling = [0; 4];
                            let spelling = c.encode_utf8(&mut spelling).bytes();
                            spelling.for_each(|b| push(bytes[b as usize]));
                        }
                    }
                }
            }
        }
        if let Some(last) = symbols.last_mut() {
            last.after = NONE;
        }
        symbols.iter().all(|s| s.id != NONE)
    }

    /// Merges the earliest pair, the leftmost of several, until there is none. What was merged into
    /// its left neighbour keeps no id.
    fn merge(&mut self, bpe: &Bpe) {
        let Self { symbols, queue, .. } = self;
        queue.clear();
        for (at, pair) in symbols.windows(2).enumerate() {
            if let Some((rank, _)) = bpe.merge(pair[0].id, pair[1].id) {
                queue.push(Reverse((rank, at as u32)));
            }
        }
        while let Some(Reverse((rank, at))) = queue.pop() {
            let left = symbols[at as usize];
            if left.id == NONE || left.after == NONE {
                continue;
            }
            let right = symbols[left.after as usize];
            // One of the two may have been merged with another since.
            let Some((now, id)) = bpe.merge(left.id, right.id) else {
                continue;
            };
            if now != rank {
                continue;
            }
            symbols[left.after as usize].id = NONE;
            symbols[at as usize] = Symbol {
                id,
                before: left.before,
                after: right.after,
            };
            if left.before != NONE
                && let Some((rank, _)) = bpe.merge(symbols[left.before as usize].id, id)
            {
                queue.push(Reverse((rank, left.before)));
            }
            if right.after != NONE {
                symbols[right.after as usize].before = at;
                if let Some((rank, _)) = bpe.merge(id, symbols[right.after as usize].id) {
                    queue.push(Reverse((rank, at)));
                }
            }
        }
    }
}
