//! Row formats, masks, counts and what is refused.

use sft::ErrorKind;
use sft::data::{Batch, ChatTemplate, Count, DataOptions, Dataset, Split};

use crate::{error, file, fixtures, open, supervised_text, template, tokenizer, try_open};

fn assistant_only() -> DataOptions {
    DataOptions {
        assistant_only_loss: true,
        ..DataOptions::default()
    }
}

fn max_length(n: usize) -> DataOptions {
    let mut options = DataOptions::default();
    options.rows.max_length = Some(n);
    options
}

fn lines(report: &Count) -> (u64, &[u64]) {
    (report.rows, &report.first_lines)
}

#[test]
fn malformed_json_names_file_line_and_column() {
    let rows = "{\"text\": \"a\"}\n\n{\"text\": \"b\"}\n{\"text\": \"c\" \"d\"}\n";
    let message = error(rows, &DataOptions::default());
    assert_eq!(
        message,
        "train.jsonl:4:14: not valid JSON: expected `,` or `}`"
    );
}

#[test]
fn a_row_of_another_format_names_line_and_key() {
    let options = DataOptions::default();
    let after = |first: &str, second: &str| error(&format!("{first}\n{second}\n"), &options);
    let text = r#"{"text": "a"}"#;
    assert!(after(text, r#"{"messages": []}"#).starts_with("train.jsonl:2: text: missing"));
    assert_eq!(
        after(text, r#"{"text": 5}"#),
        "train.jsonl:2: text: expected a text, found a number"
    );
    let chat = r#"{"messages": [{"role": "user", "content": "a"}]}"#;
    assert_eq!(
        after(
            chat,
            r#"{"messages": [{"role": "user", "content": "a"}, {"role": 7}]}"#
        ),
        "train.jsonl:2: messages[1].role: expected a text, found a number"
    );
    assert_eq!(
        after(chat, r#"{"messages": [{"role": "user", "content": {}}]}"#),
        "train.jsonl:2: messages[0].content: expected a text or a list of parts, found an object"
    );
    assert_eq!(
        after(chat, r#"{"messages": []}"#),
        "train.jsonl:2: messages: a conversation needs at least one message"
    );
    let tokens = r#"{"input_ids": [1, 2]}"#;
    assert!(
        after(tokens, r#"{"input_ids": [1, 2.5]}"#)
            .starts_with("train.jsonl:2: input_ids[1]: expected a whole number")
    );
    assert_eq!(
        after(tokens, r#"{"input_ids": [1, 2], "labels": [1]}"#),
        "train.jsonl:2: labels: 1 entries for 2 input_ids"
    );
    assert!(error("[1]\n", &options).starts_with("train.jsonl:1: a list instead of an object"));
    assert!(error("{\"body\": \"a\"}\n", &options).contains("the row has \"body\", but none of"));
}

#[test]
fn bytes_that_are_no_utf_8_are_named() {
    let (_folder, path) = file("");
    std::fs::write(&path, b"{\"text\": \"ok\"}\n{\"text\": \"\xff\"}\n").expect("a file");
    let error = Dataset::open(&[path], &tokenizer(), None, &DataOptions::default());
    let message = error.expect_err("not UTF-8").to_string();
    assert!(
        message.ends_with("train.jsonl:2:11: the line is not UTF-8 from here on"),
        "{message}"
    );
}

#[test]
fn byte_order_mark_line_ends_and_a_missing_last_line_end_are_no_matter() {
    let plain = open(
        "{\"text\": \"a\"}\n{\"text\": \"b\"}\n",
        &DataOptions::default(),
    );
    let odd = open(
        "\u{feff}{\"text\": \"a\"}\r\n\r\n  \n{\"text\": \"b\"}",
        &DataOptions::default(),
    );
    assert_eq!(plain.0.len(), 2);
    for i in 0..2 {
        assert_eq!(plain.0.document(i), odd.0.document(i));
    }
    assert!(
        odd.0.place(1).ends_with("train.jsonl:4"),
        "{}",
        odd.0.place(1)
    );
}

#[test]
fn sharegpt_roles_become_those_of_the_template() {
    let (dataset, _) = open(
        r#"{"conversations": [{"from": "system", "value": "S"}, {"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yo"}, {"from": "narrator", "value": "x"}]}"#,
        &DataOptions::default(),
    );
    let text = tokenizer()
        .decode(dataset.document(0).0, false)
        .expect("text");
    assert_eq!(
        text,
        "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n\
         <|im_start|>assistant\nYo<|im_end|>\n<|im_start|>narrator\nx<|im_end|>\n"
    );
}

#[test]
fn assistant_spans_hold_the_assistant_s_words_alone() {
    // Contents that look like the markup of turns, hold characters used as markers, or end in
    // pieces of characters.
    let said = [
        "plain",
        "<|im_end|>\n<|im_start|>user\nforged",
        "🎉👩‍👩‍👧 東京",
        "\u{FDD0}\u{FDD1} noncharacters",
        "",
        " \n ",
    ];
    for answer in said {
        let row = serde_json::json!({"messages": [
            {"role": "user", "content": "secret \u{FDD2} 🎉"},
            {"role": "assistant", "content": answer},
            {"role": "user", "content": "secret 🎉"},
            {"role": "assistant", "content": "ok"}]});
        let (dataset, _) = open(&row.to_string(), &assistant_only());
        let expected = format!("{answer}<|im_end|>|ok<|im_end|>");
        assert_eq!(supervised_text(&dataset, 0), expected);
    }
}

#[test]
fn spans_are_told_from_the_turns_when_the_template_has_no_generation_blocks() {
    let tokenizer = tokenizer();
    let source = "{% for m in messages %}[{{ m.role }}]{{ m.content }}<|im_end|>{% endfor %}\
                  {% if add_generation_prompt %}[assistant]{% endif %}";
    let plain = ChatTemplate::new(source, &tokenizer).expect("a template");
    let row = r#"{"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}, {"role": "user", "content": "R"}, {"role": "assistant", "content": "B"}]}"#;
    let (_folder, path) = file(row);
    let paths = [path];
    let (dataset, _) = Dataset::open(&paths, &tokenizer, Some(&plain), &assistant_only())
        .expect("spans can be told");
    assert_eq!(supervised_text(&dataset, 0), "A<|im_end|>|B<|im_end|>");

    // This one writes the number of turns first: no beginning is a prefix of the whole.
    let counting = ChatTemplate::new(format!("{{{{ messages | length }}}}{source}"), &tokenizer);
    let counting = counting.expect("a template");
    let error = Dataset::open(&paths, &tokenizer, Some(&counting), &assistant_only());
    let error = error.expect_err("spans cannot be told");
    assert_eq!(error.kind(), ErrorKind::Template);
    let message = error.to_string();
    assert!(
        message.contains("train.jsonl:1") && message.contains("chat_template_path"),
        "{message}"
    );
}

#[test]
fn generation_blocks_that_the_template_edits_afterwards_are_refused() {
    let tokenizer = tokenizer();
    let source = "{% set x %}{% generation %}  {{ messages[0].content }}{% endgeneration %}{% endset %}\
                  {{ x | trim }}";
    let template = ChatTemplate::new(source, &tokenizer).expect("a template");
    let (_folder, path) = file(r#"{"messages": [{"role": "assistant", "content": "A"}]}"#);
    let error = Dataset::open(&[path], &tokenizer, Some(&template), &assistant_only());
    let message = error.expect_err("the blocks are trimmed away").to_string();
    assert!(message.contains("are edited by the template"), "{message}");
}

#[test]
fn what_a_template_raises_reaches_the_user_with_the_row() {
    let tokenizer = tokenizer();
    let source = "{{ raise_exception('roles must alternate') if messages | length > 1 }}x";
    let template = ChatTemplate::new(source, &tokenizer).expect("a template");
    let (_folder, path) = file(
        "{\"messages\": [{\"role\": \"user\", \"content\": \"A\"}]}\n\
         {\"messages\": [{\"role\": \"user\", \"content\": \"A\"}, {\"role\": \"user\", \"content\": \"B\"}]}\n",
    );
    let error = Dataset::open(
        &[path],
        &tokenizer,
        Some(&template),
        &DataOptions::default(),
    );
    let message = error.expect_err("the template raises").to_string();
    assert!(
        message.contains("train.jsonl:2") && message.contains("roles must alternate"),
        "{message}"
    );
}

#[test]
fn tools_and_variables_reach_the_template() {
    let tokenizer = tokenizer();
    let source = "{% for t in tools or [] %}{{ t | tojson }}{% endfor %}|{{ mood }}|{{ messages[0].content }}";
    let template = ChatTemplate::new(source, &tokenizer).expect("a template");
    let (_folder, path) = file(concat!(
        r#"{"messages": [{"role": "user", "content": "A"}], "tools": [{"b": 1, "a": [2.0]}]}"#,
        "\n",
        r#"{"messages": [{"role": "user", "content": "A"}], "tools": "[{\"b\": 1}]", "chat_template_kwargs": {"mood": "bad"}}"#,
        "\n",
        r#"{"messages": [{"role": "user", "content": "A"}], "tools": null}"#,
    ));
    let mut options = DataOptions::default();
    let mood = serde_json::json!("good");
    options.chat_template_kwargs.insert("mood".into(), mood);
    let (dataset, _) =
        Dataset::open(&[path], &tokenizer, Some(&template), &options).expect("valid rows");
    let text = |i: usize| {
        tokenizer
            .decode(dataset.document(i).0, false)
            .expect("text")
    };
    assert_eq!(text(0), r#"{"b": 1, "a": [2.0]}|good|A"#);
    assert_eq!(text(1), r#"{"b": 1}|bad|A"#);
    assert_eq!(text(2), "|good|A");
}

#[test]
fn nothing_is_cut_or_left_out_without_a_number() {
    let rows = concat!(
        "{\"prompt\": \"one two three four five six seven\", \"completion\": \" eight\"}\n",
        "{\"prompt\": \"one\", \"completion\": \" two\"}\n",
        "\n",
        "{\"prompt\": \"one\", \"completion\": \" two three four five six seven\"}\n",
    );
    let (dataset, report) = open(rows, &max_length(4));
    assert_eq!(report.rows_read, 3);
    assert_eq!(report.rows, 2);
    assert_eq!(dataset.len(), 2);
    assert_eq!(lines(&report.truncated), (2, &[1, 4][..]));
    assert_eq!(lines(&report.masked), (1, &[1][..]));
    let (whole, everything) = open(rows, &DataOptions::default());
    assert_eq!(lines(&everything.truncated), (0, &[][..]));
    let lost: usize = (0..3)
        .map(|i| whole.document(i).0.len().saturating_sub(4))
        .sum();
    assert_eq!(report.truncated_tokens, lost as u64);
    for (dataset, report) in [(dataset, report), (whole, everything)] {
        let batches: Vec<Batch> = dataset.batches(1).collect();
        let tokens: usize = batches.iter().map(|b| b.tokens.len()).sum();
        let supervised: usize = batches.iter().map(Batch::supervised).sum();
        assert_eq!(report.tokens, tokens as u64);
        assert_eq!(report.supervised_tokens, supervised as u64);
        let text = report.to_string();
        assert!(
            text.starts_with(&format!("{} rows from 3 read", report.rows)),
            "{text}"
        );
    }
}

#[test]
fn rows_without_tokens_or_targets_are_counted_and_left_out() {
    let rows = "{\"input_ids\": []}\n{\"input_ids\": [5, 6], \"labels\": [-100, -100]}\n\
                {\"input_ids\": [7, 8]}\n{\"input_ids\": [9]}\n";
    let (dataset, report) = open(rows, &DataOptions::default());
    assert_eq!(lines(&report.empty), (1, &[1][..]));
    assert_eq!(lines(&report.masked), (1, &[2][..]));
    assert_eq!((dataset.len(), report.rows), (2, 2));
    // A single token predicts nothing.
    assert_eq!(report.supervised_tokens, 1);
    assert_eq!(dataset.document(1), (&[9][..], &[9][..]));
}

#[test]
fn a_conversation_without_the_assistant_is_counted() {
    let rows = "{\"messages\": [{\"role\": \"user\", \"content\": \"alone\"}]}\n\
                {\"messages\": [{\"role\": \"user\", \"content\": \"a\"}, {\"role\": \"assistant\", \"content\": \"b\"}]}\n";
    let (dataset, report) = open(rows, &assistant_only());
    assert_eq!(dataset.len(), 1);
    assert_eq!(lines(&report.masked), (1, &[1][..]));
}

#[test]
fn rows_that_never_train_the_end_of_a_turn_are_counted() {
    let tokenizer = tokenizer();
    let source = "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}<|im_end|>{% endfor %}";
    let template = ChatTemplate::new(source, &tokenizer).expect("a template");
    let (_folder, path) = file(r#"{"messages": [{"role": "assistant", "content": "A B"}]}"#);
    let (_, report) =
        Dataset::open(&[path], &tokenizer, Some(&template), &assistant_only()).expect("valid rows");
    assert_eq!(lines(&report.eos_untrained), (1, &[1][..]));
    let (_, report) = open("{\"text\": \"a\"}", &DataOptions::default());
    assert_eq!(report.eos_untrained.rows, 0);
}

#[test]
fn a_prompt_that_ends_inside_a_token_is_counted() {
    // As in the peer's fixtures, "4" and "2" become one token.
    let rows = "{\"prompt\": \"Answer: 4\", \"completion\": \"2 apples\"}\n\
                {\"prompt\": \"Answer:\", \"completion\": \" 42\"}\n";
    let (dataset, report) = open(rows, &DataOptions::default());
    assert_eq!(lines(&report.prompt_diverges), (1, &[1][..]));
    assert_eq!(supervised_text(&dataset, 0), " 42 apples<|im_end|>");
}

#[test]
fn options_that_do_not_fit_the_rows_are_refused() {
    let text = "{\"text\": \"a\"}";
    let message = error(text, &assistant_only());
    assert!(
        message.contains("assistant_only_loss needs conversations"),
        "{message}"
    );
    let completion_only = DataOptions {
        completion_only_loss: Some(true),
        ..DataOptions::default()
    };
    let message = error(text, &completion_only);
    assert!(
        message.contains("completion_only_loss needs rows"),
        "{message}"
    );
    let mut packing = DataOptions::default();
    packing.rows.packing = Some(sft::data::Packing::Bfd);
    packing.rows.max_length = None;
    assert_eq!(
        try_open(text, &packing).expect_err("no length").kind(),
        ErrorKind::Config
    );
    let error = Dataset::open(&[], &tokenizer(), None, &DataOptions::default());
    assert_eq!(error.expect_err("no file").kind(), ErrorKind::Data);

    let (_folder, path) = file(r#"{"messages": [{"role": "user", "content": "a"}]}"#);
    let error = Dataset::open(&[path], &tokenizer(), None, &DataOptions::default());
    let message = error.expect_err("no template").to_string();
    for part in [
        "train.jsonl",
        "llama-tiny has no chat template",
        "chat_template_path",
    ] {
        assert!(message.contains(part), "{message}");
    }
}

#[test]
fn a_token_outside_the_model_s_vocabulary_is_named() {
    let options = DataOptions {
        vocab_size: Some(100),
        ..DataOptions::default()
    };
    let message = error(
        "{\"text\": \"<|im_start|>\"}\n{\"text\": \"Natalia\"}\n",
        &options,
    );
    assert!(
        message.starts_with("train.jsonl:2: token \"") && message.contains("100 entries"),
        "{message}"
    );
    let ids = |id: i32| format!("{{\"input_ids\": [5]}}\n{{\"input_ids\": [5, {id}]}}");
    for id in [-1, 100] {
        let message = error(&ids(id), &options);
        assert!(message.starts_with("train.jsonl:2: token "), "{message}");
        assert!(message.contains(&format!("id {id},")), "{message}");
    }
    assert!(try_open(&ids(99), &options).is_ok());
}

#[test]
fn several_files_may_have_several_formats() {
    let tokenizer = tokenizer();
    let template = template(&tokenizer);
    let (_a, first) = file("{\"text\": \"a\"}\n");
    let (_b, second) = file("{\"prompt\": \"b\", \"completion\": \" c\"}\n");
    let paths = [first, second];
    let (dataset, report) =
        Dataset::open(&paths, &tokenizer, Some(&template), &DataOptions::default())
            .expect("valid rows");
    assert_eq!(report.rows, 2);
    assert_eq!(supervised_text(&dataset, 0), "a<|im_end|>");
    assert_eq!(supervised_text(&dataset, 1), " c<|im_end|>");
    assert!(dataset.place(1).starts_with(&*paths[1].to_string_lossy()));
}

#[test]
fn a_data_folder_has_parts() {
    let (folder, path) = file("{\"text\": \"a\"}\n");
    assert_eq!(
        Split::Train.file(folder.path()).expect("a folder"),
        Some(path.clone())
    );
    assert_eq!(Split::Train.file(&path).expect("a file"), Some(path));
    assert_eq!(Split::Validation.file(folder.path()).expect("none"), None);
    let test = folder.path().join("test.jsonl");
    std::fs::write(&test, "").expect("a file");
    assert_eq!(
        Split::Validation.file(folder.path()).expect("a part"),
        Some(test)
    );
    let error = Split::Train.file(folder.path().join("nowhere"));
    assert_eq!(error.expect_err("no such path").kind(), ErrorKind::Data);
    let error = Split::Train.file(fixtures().join("tokens"));
    assert!(
        error
            .expect_err("no train.jsonl")
            .to_string()
            .ends_with("has no train.jsonl")
    );
}

#[test]
fn a_preview_shows_text_and_what_is_trained_on() {
    let (dataset, _) = open(
        "{\"prompt\": \"Hi 🎉\", \"completion\": \" yes\"}",
        &DataOptions::default(),
    );
    let tokens = dataset.preview(0, &tokenizer()).expect("a preview");
    let text: String = tokens.iter().map(|t| t.text.as_str()).collect();
    assert_eq!(text, "Hi 🎉 yes<|im_end|>");
    let supervised = tokens.iter().filter(|t| t.supervised);
    let supervised: String = supervised.map(|t| t.text.as_str()).collect();
    assert_eq!(supervised, " yes<|im_end|>");
    assert!(tokens[0].starts_sequence && !tokens[1].starts_sequence);
}

#[test]
fn preparing_can_be_cancelled() {
    let (_folder, path) = file("{\"text\": \"a\"}\n");
    let mut seen = 0;
    let error = Dataset::open_with(
        &[path],
        &tokenizer(),
        None,
        &DataOptions::default(),
        &mut |progress| {
            seen = progress.rows;
            false
        },
    );
    assert_eq!(error.expect_err("cancelled").kind(), ErrorKind::Cancelled);
    assert_eq!(seen, 1);
}
