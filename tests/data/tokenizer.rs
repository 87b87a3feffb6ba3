//! Tokenizers as model folders have them.

use std::fs;

use serde_json::{Value, json};
use sft::ErrorKind;
use sft::data::{ChatTemplate, Tokenizer};

use crate::{model, tokenizer};

/// A copy of the fixture's tokenizer with other files beside `tokenizer.json`.
fn with(files: &[(&str, Value)]) -> (tempfile::TempDir, sft::Result<Tokenizer>) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let from = model("llama-tiny").join("tokenizer.json");
    fs::copy(from, folder.path().join("tokenizer.json")).expect("a copy");
    for (name, value) in files {
        fs::write(folder.path().join(name), value.to_string()).expect("a file");
    }
    let tokenizer = Tokenizer::open(folder.path());
    (folder, tokenizer)
}

#[test]
fn special_tokens_are_texts_or_objects_from_either_file() {
    let config =
        json!({"eos_token": {"content": "<|im_end|>", "lstrip": false}, "bos_token": null});
    let map = json!({"pad_token": "<|endoftext|>"});
    let (_folder, tokenizer) = with(&[
        ("tokenizer_config.json", config),
        ("special_tokens_map.json", map),
    ]);
    let tokenizer = tokenizer.expect("a tokenizer");
    assert_eq!(tokenizer.eos_token(), Some("<|im_end|>"));
    assert_eq!(tokenizer.eos_token_id(), Some(2));
    assert_eq!(tokenizer.pad_token_id(), Some(0));
    assert_eq!(tokenizer.bos_token_id(), None);
}

#[test]
fn without_other_files_there_are_no_special_tokens() {
    let (_folder, tokenizer) = with(&[]);
    let tokenizer = tokenizer.expect("a tokenizer");
    assert_eq!(tokenizer.eos_token_id(), None);
    assert_eq!(tokenizer.pad_token_id(), None);
    assert!(ChatTemplate::of(&tokenizer).expect("no template").is_none());
}

#[test]
fn the_end_token_can_be_another_of_the_vocabulary() {
    let other = tokenizer().with_eos_token("<|im_start|>").expect("known");
    assert_eq!(other.eos_token_id(), Some(1));
    let error = tokenizer()
        .with_eos_token("<|nothing|>")
        .expect_err("unknown");
    assert_eq!(error.kind(), ErrorKind::Tokenizer);
    assert!(error.to_string().contains("<|nothing|>"), "{error}");
}

#[test]
fn stated_flags_decide_what_is_added_to_a_text() {
    let flags = json!({"bos_token": "<|endoftext|>", "eos_token": "<|im_end|>",
                       "add_bos_token": true, "add_eos_token": true});
    let (_folder, tokenizer) = with(&[("tokenizer_config.json", flags)]);
    let tokenizer = tokenizer.expect("a tokenizer");
    let ids = tokenizer.encode("", true).expect("ids").ids;
    assert_eq!(ids, [0, 2]);
    assert!(tokenizer.encode("", false).expect("ids").ids.is_empty());
}

#[test]
fn padding_and_truncation_of_the_file_are_ignored() {
    let path = model("llama-tiny").join("tokenizer.json");
    let mut json: Value = serde_json::from_slice(&fs::read(path).expect("a file")).expect("JSON");
    json["truncation"] =
        json!({"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0});
    json["padding"] = json!({"strategy": {"Fixed": 64}, "direction": "Right", "pad_to_multiple_of": null,
                             "pad_id": 0, "pad_type_id": 0, "pad_token": "<|endoftext|>"});
    let folder = tempfile::tempdir().expect("a temporary folder");
    fs::write(folder.path().join("tokenizer.json"), json.to_string()).expect("a file");
    let odd = Tokenizer::open(folder.path()).expect("a tokenizer");
    let text = "Natalia sold clips to 48 of her friends";
    assert_eq!(
        odd.encode(text, true).expect("ids"),
        tokenizer().encode(text, true).expect("ids")
    );
}

#[test]
fn a_folder_without_a_tokenizer_says_what_to_do() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let error = Tokenizer::open(folder.path()).expect_err("nothing there");
    assert_eq!(error.kind(), ErrorKind::Tokenizer);
    assert!(error.to_string().contains("save_pretrained"), "{error}");
    fs::write(folder.path().join("tokenizer.json"), "{").expect("a file");
    let error = Tokenizer::open(folder.path()).expect_err("no JSON");
    assert!(error.to_string().contains("tokenizer.json"), "{error}");
}

#[test]
fn a_stream_gives_whole_characters_that_join_to_the_text() {
    let tokenizer = tokenizer();
    let text = "naïve 東京 🎉👩‍👩‍👧 two  spaces<|im_end|>";
    let ids = tokenizer.encode(text, false).expect("ids").ids;
    let mut stream = tokenizer.stream(false);
    let mut pieces = Vec::new();
    for &id in &ids {
        pieces.extend(stream.push(id).expect("a piece"));
    }
    pieces.extend(stream.finish().expect("the rest"));
    assert!(pieces.iter().all(|p| !p.contains('\u{FFFD}')), "{pieces:?}");
    assert_eq!(pieces.concat(), text);

    // An incomplete character comes out at the end.
    let cut = tokenizer.encode("🎉", false).expect("ids").ids;
    let mut stream = tokenizer.stream(false);
    assert_eq!(stream.push(cut[0]).expect("incomplete"), None);
    assert!(
        stream
            .finish()
            .expect("the rest")
            .expect("something")
            .contains('\u{FFFD}')
    );

    let mut stream = tokenizer.stream(true);
    assert_eq!(stream.push(2).expect("skipped"), None);
    assert_eq!(stream.finish().expect("nothing"), None);
}

#[test]
fn named_templates_have_a_default_and_one_for_tools() {
    let config = json!({"chat_template": [
        {"name": "default", "template": "plain {{ messages[0].content }}"},
        {"name": "tool_use", "template": "tools {{ tools | length }}"}]});
    let (_folder, tokenizer) = with(&[("tokenizer_config.json", config)]);
    let template = ChatTemplate::of(&tokenizer.expect("a tokenizer"));
    let template = template.expect("valid").expect("there is one");
    let messages = [json!({"role": "user", "content": "x"})];
    let tools = json!([{"name": "f"}]);
    let conversation = sft::data::Conversation {
        messages: &messages,
        ..Default::default()
    };
    assert_eq!(template.render(&conversation).expect("text"), "plain x");
    let conversation = sft::data::Conversation {
        tools: Some(&tools),
        ..conversation
    };
    assert_eq!(template.render(&conversation).expect("text"), "tools 1");

    let config = json!({"chat_template": [{"name": "rag", "template": "x"}]});
    let (_folder, tokenizer) = with(&[("tokenizer_config.json", config)]);
    let error = ChatTemplate::of(&tokenizer.expect("a tokenizer")).expect_err("no default");
    assert!(error.to_string().contains("rag"), "{error}");
}

#[test]
fn a_template_that_does_not_compile_names_its_line() {
    let error = ChatTemplate::new("a\n{% for %}", &tokenizer()).expect_err("not Jinja");
    assert_eq!(error.kind(), ErrorKind::Template);
    assert!(error.to_string().contains(":2"), "{error}");
}
