//! The fast path beside the `tokenizers` crate: the same ids and offsets, and taken where it should.

use std::fs;
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use serde_json::{Value, json};
use tokenizers::models::TrainerWrapper;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;

use super::{Encoding, Tokenizer};
use crate::rng::Stream;

const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";

fn fixture(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures")
        .join(path)
}

/// A number below `n` of a stream of random ones.
struct Random(Stream, u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.1 += 1;
        (self.0.uniform(self.1) * n as f64) as usize
    }

    fn pick<'a>(&mut self, items: &[&'a str]) -> &'a str {
        items[self.below(items.len())]
    }

    fn char(&mut self) -> char {
        // Planes with many unassigned characters less often than the first thousands.
        let end = [0x80, 0x250, 0x2000, 0x3400, 0x11_0000][self.below(5)];
        char::from_u32(self.below(end) as u32).unwrap_or('\u{FFFD}')
    }

    /// A bit of text of the kinds that tokenizers treat differently.
    fn fragment(&mut self) -> String {
        const WORDS: [&str; 11] = [
            "the",
            " Natalia",
            "sold",
            " clips",
            "ÜBER",
            "мир",
            "你好世界",
            "नमस्ते",
            "e\u{301}",
            "ﬁ",
            "HTTPServer",
        ];
        const BLANKS: [&str; 14] = [
            " ", "  ", "    ", "\n", "\r\n", "\n\n\n", "\r", "\t", "\u{A0}", "\u{3000}",
            "\u{2028}", "\u{85}", "\u{200B}", " \n ",
        ];
        const APOSTROPHES: [&str; 16] = [
            "'s",
            "'S",
            "'ſ",
            "'re",
            "'RE",
            "'Ve",
            "'ll",
            "'lL",
            "'d",
            "'t",
            "'M",
            "'",
            "''",
            "'x",
            "\u{2019}s",
            "'r",
        ];
        const NUMBERS: [&str; 10] = [
            "1",
            "48",
            "12345",
            "3.14",
            "٣٤",
            "५",
            "½",
            "Ⅷ",
            "²",
            "１２３４",
        ];
        const SYMBOLS: [&str; 14] = [
            "$",
            "!?",
            "...",
            "<<48/2=24>>",
            "👩\u{200D}👩\u{200D}👧",
            "🇩🇪",
            "☺\u{FE0F}",
            "▁",
            "▁▁",
            "_",
            "\u{301}",
            "\u{0}",
            "Ġ",
            "–",
        ];
        const TOKENS: [&str; 10] = [
            "<|im_start|>",
            "<|im_end|>",
            "<|endoftext|>",
            "<s>",
            "</s>",
            "<0x0A>",
            "<|im_",
            "[EXTRA]",
            "<unk>",
            "<|wide|>",
        ];
        match self.below(12) {
            0..=3 => self.pick(&WORDS).into(),
            4 | 5 => self.pick(&BLANKS).into(),
            6 => self.pick(&APOSTROPHES).into(),
            7 => self.pick(&NUMBERS).into(),
            8 => self.pick(&SYMBOLS).into(),
            9 => self.pick(&TOKENS).into(),
            10 => self.char().into(),
            _ => {
                let length = [3, 70, 400][self.below(3)];
                let unit = if self.below(2) == 0 { self.char() } else { ' ' };
                (0..self.below(length)).map(|_| unit).collect()
            }
        }
    }

    fn text(&mut self) -> String {
        (0..self.below(24)).map(|_| self.fragment()).collect()
    }

    /// `text` with bits cut out and others put in.
    fn mutated(&mut self, text: &str) -> String {
        let mut chars: Vec<char> = text.chars().collect();
        for _ in 0..self.below(6) {
            let from = self.below(chars.len() + 1);
            let to = (from + self.below(6)).min(chars.len());
            chars.splice(from..to, self.fragment().chars());
        }
        chars.into_iter().collect()
    }
}

fn random(seed: u64) -> Random {
    Random(Stream::new(seed, 0), 0)
}

/// The tokenizer of `json`, with nothing beside it.
fn open(json: &Value) -> Tokenizer {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("tokenizer.json");
    fs::write(path, json.to_string()).expect("a file");
    Tokenizer::open(folder.path()).expect("a tokenizer")
}

/// A byte-level tokenizer whose merges come from texts of every kind.
fn trained() -> Value {
    let trainer = BpeTrainer::builder()
        .vocab_size(1500)
        .show_progress(false)
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .special_tokens(
            ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
                .map(|t| tokenizers::AddedToken::from(t, true))
                .to_vec(),
        )
        .build();
    let mut tokenizer = tokenizers::Tokenizer::new(BPE::default());
    tokenizer.with_pre_tokenizer(Some(ByteLevel::new(false, true, true)));
    let rows = fs::read_to_string(fixture("data/gsm8k_train_small.jsonl")).expect("data");
    let mut random = random(1);
    let texts = rows.lines().map(str::to_owned);
    let texts: Vec<String> = texts.chain((0..800).map(|_| random.text())).collect();
    let mut trainer = TrainerWrapper::BpeTrainer(trainer);
    tokenizer
        .train(&mut trainer, texts.into_iter())
        .expect("a vocabulary");
    let json = tokenizer.to_string(false).expect("JSON");
    serde_json::from_str(&json).expect("JSON")
}

fn with(mut json: Value, changes: Value) -> Value {
    for (path, value) in changes.as_object().expect("an object") {
        let place = json.pointer_mut(path).expect("a place");
        *place = value.clone();
    }
    json
}

fn added(id: usize, content: &str, flags: Value) -> Value {
    let mut token = json!({"id": id, "content": content, "single_word": false, "lstrip": false,
        "rstrip": false, "normalized": false, "special": false});
    for (flag, value) in flags.as_object().expect("an object") {
        token[flag] = value.clone();
    }
    token
}

/// Tokenizers as the families have them, by name.
fn tokenizers() -> Vec<(&'static str, Tokenizer)> {
    let gpt2 = trained();
    let split = |pattern: &str| {
        json!({"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false},
            {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false}]})
    };
    let tekken = json!({"type": "Sequence", "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": TEKKEN}, "behavior": "Removed", "invert": true},
        {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false}]});
    let digits = |single: bool| {
        json!({"type": "Sequence", "pretokenizers": [
            {"type": "Digits", "individual_digits": single},
            {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true}]})
    };
    let template = json!({"type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<|im_start|>", "type_id": 0}},
                   {"Sequence": {"id": "A", "type_id": 0}},
                   {"SpecialToken": {"id": "<|im_end|>", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {
            "<|im_start|>": {"id": "<|im_start|>", "ids": [1], "tokens": ["<|im_start|>"]},
            "<|im_end|>": {"id": "<|im_end|>", "ids": [2], "tokens": ["<|im_end|>"]}}});
    let trim = |keep: bool| {
        json!({"type": "ByteLevel", "add_prefix_space": keep, "trim_offsets": true,
            "use_regex": true})
    };
    let processors =
        |first: Value| json!({"type": "Sequence", "processors": [first, template.clone()]});
    let mut extra = gpt2["added_tokens"].as_array().expect("tokens").clone();
    let next = gpt2["model"]["vocab"].as_object().expect("tokens").len();
    extra.push(added(next, "[EXTRA]", json!({"normalized": true})));
    extra.push(added(
        next + 1,
        "<|wide|>",
        json!({"lstrip": true, "rstrip": true}),
    ));
    extra.push(added(next + 2, " \n ", json!({"normalized": true})));
    extra.push(added(next + 3, "sold", json!({"single_word": true})));

    let byte_fallback = fs::read(fixture("tokenizers/byte-fallback/tokenizer.json"));
    let meta: Value = serde_json::from_slice(&byte_fallback.expect("a file")).expect("JSON");
    let metaspace = |scheme: &str, split: bool| {
        let step = json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme,
            "split": split});
        with(
            meta.clone(),
            json!({"/normalizer": null, "/pre_tokenizer": step}),
        )
    };
    vec![
        (
            "gpt2",
            open(&with(gpt2.clone(), json!({"/post_processor": trim(false)}))),
        ),
        (
            "smollm2",
            open(&with(gpt2.clone(), json!({"/pre_tokenizer": digits(true)}))),
        ),
        (
            "tekken",
            open(&with(gpt2.clone(), json!({"/pre_tokenizer": tekken}))),
        ),
        (
            "digits",
            open(&with(
                gpt2.clone(),
                json!({"/pre_tokenizer": digits(false)}),
            )),
        ),
        (
            "llama3",
            open(&with(
                gpt2.clone(),
                json!({"/pre_tokenizer": split(LLAMA3),
            "/post_processor": processors(trim(true)), "/model/ignore_merges": true}),
            )),
        ),
        (
            "qwen2",
            open(&with(
                gpt2.clone(),
                json!({"/pre_tokenizer": split(QWEN2),
            "/normalizer": {"type": "NFC"}, "/post_processor": template}),
            )),
        ),
        (
            "added tokens",
            open(&with(
                gpt2,
                json!({"/added_tokens": extra,
            "/post_processor": trim(true)}),
            )),
        ),
        ("llama2", open(&meta)),
        ("mistral", open(&metaspace("first", false))),
        ("metaspace", open(&metaspace("always", true))),
        ("no prefix", open(&metaspace("never", true))),
    ]
}

fn slow(tokenizer: &Tokenizer, text: &str, special: bool) -> Encoding {
    let encoding = tokenizer.inner.encode(text, special).expect("ids");
    Encoding {
        ids: encoding.get_ids().iter().map(|&id| id as i32).collect(),
        offsets: encoding.get_offsets().to_vec(),
    }
}

/// Whether the fast path was taken.
fn assert_same(name: &str, tokenizer: &Tokenizer, text: &str) -> bool {
    let mut taken = true;
    for special in [false, true] {
        let expected = slow(tokenizer, text, special);
        match tokenizer.encode_fast(text, special, true) {
            Some(fast) => assert_eq!(fast, expected, "{name}: {text:?}"),
            None => taken = false,
        }
        let ids = tokenizer.ids(text, special).expect("ids");
        assert_eq!(ids, expected.ids, "{name}: {text:?}");
    }
    taken
}

#[test]
fn random_texts_have_the_same_tokens_and_offsets() {
    for (name, tokenizer) in tokenizers() {
        let mut random = random(2);
        let texts = 1500;
        let taken = (0..texts)
            .filter(|_| assert_same(name, &tokenizer, &random.text()))
            .count();
        // Only texts that are not normalized, or with tokens that take white space, are left out.
        let least = match name {
            "qwen2" => texts / 4,
            "added tokens" => texts / 3,
            _ => texts,
        };
        assert!(taken >= least, "{name}: {taken}");
    }
}

#[test]
fn gsm8k_has_the_same_tokens_and_offsets() {
    let rows = fs::read_to_string(fixture("data/gsm8k_train_small.jsonl")).expect("data");
    for (name, tokenizer) in tokenizers() {
        let highest = tokenizer.inner.get_vocab(true).into_values().max();
        assert_eq!(Some(tokenizer.vocab_size() as u32 - 1), highest, "{name}");
        for row in rows.lines().chain([rows.as_str(), ""]) {
            assert_same(name, &tokenizer, row);
        }
    }
}

/// `SFT_TEXTS=train.jsonl SFT_MODEL=folder cargo test --lib fast_path_over_many -- --ignored
/// --nocapture`
#[test]
#[ignore = "minutes; 100,000 texts for each kind of tokenizer"]
fn fast_path_over_many_texts() {
    let path = std::env::var_os("SFT_TEXTS").map(PathBuf::from);
    let path = path.unwrap_or_else(|| fixture("data/gsm8k_train_small.jsonl"));
    let rows = fs::read_to_string(path).expect("data");
    let rows: Vec<&str> = rows.lines().collect();
    let mut tokenizers = tokenizers();
    if let Some(folder) = std::env::var_os("SFT_MODEL") {
        let tokenizer = Tokenizer::open(PathBuf::from(folder)).expect("a tokenizer");
        tokenizers.push(("SFT_MODEL", tokenizer));
    }
    for (name, tokenizer) in tokenizers {
        let taken = (0..100_000).into_par_iter().filter(|&i| {
            let text = match i / rows.len() {
                0 => rows[i].to_owned(),
                _ => Random(Stream::new(3, i as u64), 0).mutated(rows[i % rows.len()]),
            };
            assert_same(name, &tokenizer, &text)
        });
        let taken = taken.count();
        println!("{name}: 100000 texts, {taken} by the fast path");
    }
}

#[test]
fn other_configurations_are_left_to_the_tokenizers_crate() {
    let json = trained();
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true,
        "use_regex": true});
    let others = [
        json!({"/pre_tokenizer": byte_level}),
        json!({"/pre_tokenizer": {"type": "Whitespace"}}),
        json!({"/normalizer": {"type": "Lowercase"}}),
        json!({"/model/dropout": 0.5}),
        json!({"/model/end_of_word_suffix": "</w>"}),
    ];
    assert!(open(&json).fast.is_some());
    for changes in others {
        let tokenizer = open(&with(json.clone(), changes.clone()));
        assert!(tokenizer.fast.is_none(), "{changes}");
        assert!(!tokenizer.ids("text", true).expect("ids").is_empty());
    }
}

#[test]
fn a_text_with_a_byte_outside_the_vocabulary_is_left_to_the_tokenizers_crate() {
    let mut json = trained();
    let model = json["model"].as_object_mut().expect("an object");
    model["merges"]
        .as_array_mut()
        .expect("merges")
        .retain(|m| !m.to_string().contains('Ń')); // how 0xAD is written
    let vocab = model["vocab"].as_object_mut().expect("an object");
    vocab.retain(|token, _| !token.contains('Ń'));
    let tokenizer = open(&json);
    assert!(assert_same("no 0xAD", &tokenizer, "soft"));
    assert!(!assert_same("no 0xAD", &tokenizer, "so\u{AD}ft"));
}

#[test]
fn another_end_of_sequence_token_is_known_to_the_fast_path() {
    let json = with(trained(), json!({"/added_tokens": []}));
    let tokenizer = open(&json).with_eos_token("<|im_end|>").expect("a token");
    assert!(assert_same("eos", &tokenizer, "so<|im_end|> it is"));
    let ids = tokenizer.ids("<|im_end|>", false).expect("ids");
    assert_eq!(ids, [2]);
}
