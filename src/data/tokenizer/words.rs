//! Cuts a text into the words that merges never cross, as the regular expressions of known
//! tokenizers do, in one pass over its bytes.
//!
//! The classes of characters come from the parser that the `tokenizers` crate's regular
//! expressions are built on, so both know the same Unicode.

use std::sync::LazyLock;

use regex_syntax::hir::{Class, HirKind};

/// GPT-2's expression, which `ByteLevel` uses by itself.
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// That of Mistral's newer tokenizers.
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// How a text is cut into words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pattern {
    /// Letters, numbers and the rest, each with one space before; contractions in small letters.
    Gpt2,
    /// Letters with any one character before; at most so many digits; line ends by themselves.
    Llama3 { digits: usize },
    /// Capitals begin words; single digits.
    Tekken,
}

impl Pattern {
    pub const BYTE_LEVEL: Self = Self::Gpt2;

    /// The pattern that does what the regular expression does, for the few that are known.
    pub fn of(expression: &str) -> Option<Self> {
        match expression {
            GPT2 => Some(Self::Gpt2),
            LLAMA3 => Some(Self::Llama3 { digits: 3 }),
            QWEN2 => Some(Self::Llama3 { digits: 1 }),
            TEKKEN => Some(Self::Tekken),
            _ => None,
        }
    }

    /// Where the word that begins at `at` ends.
    fn word_end(self, text: Text<'_>, at: usize) -> usize {
        match self {
            Self::Gpt2 => gpt2(text, at),
            Self::Llama3 { digits } => llama3(text, at, digits),
            Self::Tekken => tekken(text, at),
        }
    }

    /// Calls `word` with the beginning and the end of each word of `text`, in order, while it
    /// returns true. Whether it always did.
    pub fn for_each(self, text: &str, mut word: impl FnMut(usize, usize) -> bool) -> bool {
        let text = Text::new(text);
        let mut at = 0;
        while at < text.len() {
            let end = self.word_end(text, at);
            if !word(at, end) {
                return false;
            }
            at = end;
        }
        true
    }
}

const LETTER: u8 = 1;
const NUMBER: u8 = 2;
const SPACE: u8 = 4;
const WORD: u8 = LETTER | NUMBER | SPACE;
/// What is none of the three: punctuation, symbols, marks, controls, unassigned.
const OTHER: u8 = 0;
/// Further bits of letters and of the rest.
const LOWER: u8 = 8;
const UPPER: u8 = 16;
const MARK: u8 = 32;

/// The class of each character.
static CLASSES: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut classes = vec![OTHER; char::MAX as usize + 1];
    let bits = [
        (r"\p{L}", LETTER),
        (r"\p{N}", NUMBER),
        (r"\s", SPACE),
        (r"\p{Ll}", LOWER),
        (r"[\p{Lu}\p{Lt}]", UPPER),
        (r"\p{M}", MARK),
    ];
    for (expression, bit) in bits {
        let class = regex_syntax::parse(expression).expect("a constant that parses");
        let HirKind::Class(Class::Unicode(class)) = class.kind() else {
            unreachable!("{expression} is a class of characters");
        };
        for range in class.iter() {
            for class in &mut classes[range.start() as usize..=range.end() as usize] {
                *class |= bit;
            }
        }
    }
    classes
});

/// A text with the classes of its characters.
#[derive(Clone, Copy)]
struct Text<'a> {
    text: &'a str,
    classes: &'a [u8],
}

impl<'a> Text<'a> {
    fn new(text: &'a str) -> Self {
        let classes = CLASSES.as_slice();
        Self { text, classes }
    }

    fn len(self) -> usize {
        self.text.len()
    }

    /// The byte at `at`; 0 beyond the end.
    fn byte(self, at: usize) -> u8 {
        self.text.as_bytes().get(at).copied().unwrap_or(0)
    }

    /// The class of the character at `at` and its length; `None` at the end.
    #[inline(always)]
    fn class(self, at: usize) -> Option<(u8, usize)> {
        let byte = *self.text.as_bytes().get(at)?;
        if byte < 128 {
            return Some((self.classes[byte as usize], 1));
        }
        let c = self.text[at..].chars().next()?;
        Some((self.classes[c as usize], c.len_utf8()))
    }

    fn is(self, at: usize, wanted: u8) -> bool {
        self.class(at)
            .is_some_and(|(class, _)| class & WORD == wanted)
    }

    /// The end of the characters of one class from `at` on.
    #[inline(always)]
    fn run(self, mut at: usize, wanted: u8) -> usize {
        while let Some((class, len)) = self.class(at)
            && class & WORD == wanted
        {
            at += len;
        }
        at
    }

    /// `[\r\n]*`, or `[\r\n/]*`
    fn line_ends(self, mut at: usize, slashes: bool) -> usize {
        while matches!(self.byte(at), b'\r' | b'\n') || (slashes && self.byte(at) == b'/') {
            at += 1;
        }
        at
    }

    /// `\s+(?!\S)|\s+`, with `\s*[\r\n]+` before it if `lines`: up to the last line end, or else
    /// all of the white space but the last character before a word.
    fn white_space(self, at: usize, lines: bool) -> usize {
        let (mut end, mut last, mut line_end) = (at, at, None);
        while let Some((class, len)) = self.class(end)
            && class & SPACE != 0
        {
            last = end;
            end += len;
            if matches!(self.byte(last), b'\r' | b'\n') {
                line_end = Some(end);
            }
        }
        match line_end {
            Some(line_end) if lines => line_end,
            _ if last == at || end == self.len() => end,
            _ => last,
        }
    }
}

fn gpt2(text: Text<'_>, at: usize) -> usize {
    let first = text.byte(at);
    if first == b'\'' {
        match (text.byte(at + 1), text.byte(at + 2)) {
            (b's' | b't' | b'm' | b'd', _) => return at + 2,
            (b'r' | b'v', b'e') | (b'l', b'l') => return at + 3,
            _ => {}
        }
    }
    let Some((class, len)) = text.class(at) else {
        return at;
    };
    if class & SPACE == 0 {
        return text.run(at + len, class & WORD);
    }
    match text.class(at + len) {
        Some((next, len)) if first == b' ' && next & SPACE == 0 => {
            text.run(at + 1 + len, next & WORD)
        }
        _ => text.white_space(at, false),
    }
}

fn llama3(text: Text<'_>, at: usize, digits: usize) -> usize {
    let first = text.byte(at);
    if first == b'\''
        && let Some(end) = contraction(text, at)
    {
        return end;
    }
    let Some((class, len)) = text.class(at) else {
        return at;
    };
    let next = at + len;
    match class & WORD {
        LETTER => return text.run(next, LETTER),
        NUMBER => {
            let mut end = next;
            for _ in 1..digits {
                match text.class(end) {
                    Some((class, len)) if class & WORD == NUMBER => end += len,
                    _ => break,
                }
            }
            return end;
        }
        _ => {}
    }
    if !matches!(first, b'\r' | b'\n') && text.is(next, LETTER) {
        return text.run(next, LETTER);
    }
    if class & WORD == OTHER || (first == b' ' && text.is(next, OTHER)) {
        return text.line_ends(text.run(next, OTHER), false);
    }
    text.white_space(at, true)
}

fn tekken(text: Text<'_>, at: usize) -> usize {
    let Some((class, len)) = text.class(at) else {
        return at;
    };
    let (first, next) = (text.byte(at), at + len);
    if class & NUMBER != 0 {
        return next;
    }
    // A word with the character before it, or else one that begins here.
    let before = class & LETTER == 0 && !matches!(first, b'\r' | b'\n');
    let starts = if before { [next, at] } else { [at, at] };
    let lower = starts.iter().find_map(|&start| lower_word(text, start));
    let word = lower.or_else(|| {
        let upper = starts.iter().map(|&start| (start, capitals(text, start)));
        upper.filter(|(start, end)| start < end).map(|w| w.1).next()
    });
    if let Some(end) = word {
        return end;
    }
    if class & WORD == OTHER || (first == b' ' && text.is(next, OTHER)) {
        return text.line_ends(text.run(next, OTHER), true);
    }
    text.white_space(at, true)
}

fn may_be_upper(class: u8) -> bool {
    class & (LETTER | MARK) != 0 && class & LOWER == 0
}

fn may_be_lower(class: u8) -> bool {
    class & (LETTER | MARK) != 0 && class & UPPER == 0
}

/// `[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*`
fn capitals(text: Text<'_>, mut at: usize) -> usize {
    while let Some((class, len)) = text.class(at)
        && may_be_upper(class)
    {
        at += len;
    }
    at
}

/// `[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+`: where the first part would take
/// everything, it leaves the last character to the second that this can take.
fn lower_word(text: Text<'_>, start: usize) -> Option<usize> {
    let (mut at, mut either) = (start, None);
    while let Some((class, len)) = text.class(at)
        && may_be_upper(class)
    {
        if may_be_lower(class) {
            either = Some(at);
        }
        at += len;
    }
    let is_lower = |at| text.class(at).is_some_and(|(class, _)| may_be_lower(class));
    let mut end = Some(at).filter(|&at| is_lower(at)).or(either)?;
    while let Some((class, len)) = text.class(end)
        && may_be_lower(class)
    {
        end += len;
    }
    Some(end)
}

/// `(?i:'s|'t|'re|'ve|'m|'ll|'d)`; a long s (U+017F) is an s too.
fn contraction(text: Text<'_>, at: usize) -> Option<usize> {
    let second = text.byte(at + 1).to_ascii_lowercase();
    let third = text.byte(at + 2);
    match (second, third.to_ascii_lowercase()) {
        (b's' | b't' | b'm' | b'd', _) => Some(at + 2),
        (b'r' | b'v', b'e') | (b'l', b'l') => Some(at + 3),
        (0xC5, _) if third == 0xBF => Some(at + 3),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use tokenizers::utils::SysRegex;

    use super::*;

    fn words(pattern: Pattern, text: &str) -> Vec<&str> {
        let mut words = Vec::new();
        pattern.for_each(text, |start, end| {
            words.push(&text[start..end]);
            true
        });
        words
    }

    #[test]
    fn gpt2_takes_one_space_with_the_word_behind_it() {
        let text = "I'll  pay $12.50\n\n don't";
        let expected = [
            "I", "'ll", " ", " pay", " $", "12", ".", "50", "\n\n", " don", "'t",
        ];
        assert_eq!(words(Pattern::Gpt2, text), expected);
    }

    #[test]
    fn llama3_takes_line_ends_and_three_digits() {
        let text = "I'LL\tpay $12345!\n\n  don\u{2019}t  ";
        let expected = [
            "I",
            "'LL",
            "\tpay",
            " $",
            "123",
            "45",
            "!\n\n",
            " ",
            " don",
            "\u{2019}t",
            "  ",
        ];
        assert_eq!(words(Pattern::Llama3 { digits: 3 }, text), expected);
        let digits = ["1", "2", "\u{661}"];
        assert_eq!(words(Pattern::Llama3 { digits: 1 }, "12\u{661}"), digits);
    }

    #[test]
    fn tekken_cuts_before_capitals() {
        let text = "camelCase HTTPServer ÉCOLE 中A !/\n/ 12";
        let expected = [
            "camel",
            "Case",
            " HTTPServer",
            " ÉCOLE",
            " 中",
            "A",
            " !/\n/",
            " ",
            "1",
            "2",
        ];
        assert_eq!(words(Pattern::Tekken, text), expected);
    }

    #[test]
    fn words_of_every_character_are_those_of_the_expressions() {
        // Up to the last ideograph, and the tags; planes without characters between them.
        let all: Vec<char> = ('\0'..='\u{32400}')
            .chain('\u{E0000}'..='\u{E0200}')
            .collect();
        for expression in [GPT2, LLAMA3, QWEN2, TEKKEN] {
            let pattern = Pattern::of(expression).expect("a known pattern");
            let regex = SysRegex::new(expression).expect("an expression");
            for some in all.chunks(1024) {
                let text: String = some
                    .iter()
                    .flat_map(|&c| [' ', c, 'a', c, 'A', c, '中', c, '1', c, '\n', c, '\'', c, c])
                    .collect();
                let expected: Vec<_> = regex.find_iter(&text).map(|(s, e)| &text[s..e]).collect();
                assert!(words(pattern, &text) == expected, "{:?} …", some[0]);
            }
        }
    }

    #[test]
    fn no_text_no_words() {
        assert!(words(Pattern::Gpt2, "").is_empty());
        assert!(words(Pattern::Llama3 { digits: 3 }, "").is_empty());
    }
}
