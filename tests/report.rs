//! `sft report`: the page about a run, read as a strict reader and a browser read it.

use std::path::Path;
use std::process::{Command, Output};

use roxmltree::{Document, Node, ParsingOptions};
use serde_json::{Value, json};

fn sft(folder: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_sft"))
        .args(args)
        .current_dir(folder)
        .env("NO_COLOR", "1")
        .env("XDG_CACHE_HOME", folder.join("cache"))
        .output()
        .unwrap()
}

fn succeeds(folder: &Path, args: &[&str]) -> String {
    let output = sft(folder, args);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{args:?}: {error}");
    String::from_utf8(output.stdout).unwrap()
}

/// The page as XML, which forgives nothing.
fn parse(page: &str) -> Document<'_> {
    let options = ParsingOptions {
        allow_dtd: true,
        ..ParsingOptions::default()
    };
    Document::parse_with_options(page, options).unwrap()
}

fn all<'a>(node: Node<'a, 'a>, name: &'static str) -> Vec<Node<'a, 'a>> {
    let elements = node.descendants().filter(move |n| n.has_tag_name(name));
    elements.collect()
}

fn text(node: Node) -> String {
    let texts = node.descendants().filter(|n| n.is_text());
    texts.filter_map(|n| n.text()).collect()
}

/// The cells of the table whose caption begins with `caption`, row by row.
fn table(page: &Document, caption: &str) -> Vec<Vec<String>> {
    let tables = all(page.root_element(), "table");
    let captioned = |table: &Node| text(all(*table, "caption")[0]).starts_with(caption);
    let table = tables.into_iter().find(captioned);
    let table = table.unwrap_or_else(|| panic!("no table {caption}"));
    let rows = all(all(table, "tbody")[0], "tr").into_iter();
    let cells = |row: Node| row.children().map(text).collect();
    rows.map(cells).collect()
}

/// Points of the lines of the chart with this title.
fn points(page: &Document, title: &str) -> Vec<(String, usize)> {
    let figures = all(page.root_element(), "figure").into_iter();
    let mut figures = figures.filter(|figure| text(all(*figure, "h3")[0]) == title);
    let figure = figures.next().unwrap_or_else(|| panic!("no chart {title}"));
    let mut plots = all(figure, "svg").into_iter();
    let plot = plots
        .find(|svg| svg.attribute("role") == Some("img"))
        .unwrap();
    assert!(!text(all(plot, "title")[0]).is_empty() && !text(all(plot, "desc")[0]).is_empty());
    let lines = all(plot, "path").into_iter();
    let lines = lines.filter_map(|path| Some((path.attribute("data-name")?.to_owned(), path)));
    let count = |d: &str| d.replace(['M', 'L'], " ").split_whitespace().count() / 2;
    lines
        .map(|(name, path)| (name, count(path.attribute("d").unwrap())))
        .collect()
}

/// Rows for a tiny model, under a name that is markup, and the configuration of a short run.
fn prepare(folder: &Path, more: &str) {
    let rows: String = (0..8)
        .map(|i| format!("{{\"prompt\": \"number {i} is\", \"completion\": \" {i}{i}\"}}\n"))
        .collect();
    for name in ["rows <b>&amp;.jsonl", "math.jsonl", "code.jsonl"] {
        std::fs::write(folder.join(name), &rows).unwrap();
    }
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/models/llama-tiny");
    let yaml = format!(
        "model_name_or_path: {}\ndataset_name: \"rows <b>&amp;.jsonl\"\n\
         eval_dataset_name: {{math: math.jsonl, code: code.jsonl}}\noutput_dir: out\n\
         eval_strategy: steps\neval_steps: 3\nlearning_rate: 5e-3\nthreads: 1\n\
         per_device_train_batch_size: 4\nsave_strategy: steps\nsave_steps: 6\n{more}",
        model.display()
    );
    std::fs::write(folder.join("run.yaml"), yaml).unwrap();
}

const RULES: [&str; 3] = [
    "{rule: target, metric: train_loss, at_most: 0.001, smoothing: {ema: 0.5}}",
    "{rule: plateau, metric: eval_loss, patience: 2, min_delta: 0.2}",
    "{rule: divergence, factor: 1.5}",
];

#[test]
fn the_page_of_a_run_tells_what_its_log_and_its_rules_say() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    prepare(
        folder,
        &format!("max_steps: 60\nstop: [{}]\n", RULES.join(", ")),
    );
    succeeds(folder, &["train", "--config", "run.yaml"]);
    let said = succeeds(folder, &["report", "out"]);
    assert_eq!(said, "Report: out/report.html\n");
    let page = std::fs::read_to_string(folder.join("out/report.html")).unwrap();
    let page = parse(&page);

    let log = std::fs::read_to_string(folder.join("out/train_log.jsonl")).unwrap();
    let rows: Vec<Value> = log
        .lines()
        .map(|l| serde_json::from_str(l).unwrap())
        .collect();
    let end = rows.last().unwrap();
    let updates = rows.iter().filter(|row| row["loss"].is_number()).count();
    let evaluations = rows
        .iter()
        .filter(|row| row["eval_loss"].is_number())
        .count();
    assert_eq!(end["stop_reason"], "plateau");

    let head = text(all(page.root_element(), "h1")[0]);
    assert!(
        head.ends_with(&format!("No more improvement after {updates} updates")),
        "{head}"
    );
    let header = text(all(page.root_element(), "header")[0]);
    assert!(
        header.contains(end["stop_detail"].as_str().unwrap()),
        "{header}"
    );

    let expected = [
        ("train", updates),
        ("train, smooth", updates),
        ("eval", evaluations),
        ("eval code", evaluations),
        ("eval math", evaluations),
    ];
    let expected = expected.map(|(name, n)| (name.to_owned(), n));
    assert_eq!(points(&page, "Loss"), expected);
    for title in [
        "Learning rate",
        "Gradient norm",
        "Throughput",
        "Token accuracy",
    ] {
        assert_eq!(points(&page, title)[0].1, updates, "{title}");
    }
    let marks = page
        .descendants()
        .filter(|n| n.attribute("class") == Some("checkpoint"));
    assert!(marks.count() > 1, "no checkpoints");

    // Each rule alone ends where `sft replay` says.
    let judged = table(&page, "Each rule over this log");
    assert_eq!(judged.len(), 5, "{judged:?}");
    for (rule, row) in RULES.iter().zip(&judged[1..4]) {
        std::fs::write(folder.join("rule.yaml"), format!("[{rule}]")).unwrap();
        let args = [
            "replay",
            "out/train_log.jsonl",
            "--stop",
            "rule.yaml",
            "--json",
        ];
        let replayed: Value = serde_json::from_str(&succeeds(folder, &args)).unwrap();
        let expected = match replayed["step"].as_u64() {
            Some(step) => format!("after update {step}"),
            None => "never".to_owned(),
        };
        assert!(
            row[3].starts_with(&expected),
            "{rule}: {row:?}, not {expected}"
        );
    }
    assert!(
        judged[2][0].starts_with("plateau (ended the run)"),
        "{judged:?}"
    );

    let listed = table(&page, "Evaluations");
    assert_eq!(listed.len(), evaluations);
    assert!(
        listed
            .iter()
            .any(|row| row[0] == format!("{} best", end["best_step"])),
        "{listed:?}"
    );
    let sets: Vec<String> = table(&page, "Rows")
        .into_iter()
        .map(|row| row[0].clone())
        .collect();
    assert_eq!(sets, ["eval_code", "eval_math", "train"]);
    let changed = table(&page, "Keys that differ");
    let row = changed.iter().find(|row| row[0] == "dataset_name").unwrap();
    assert_eq!(row[1], "rows <b>&amp;.jsonl");
}

#[test]
fn nothing_in_a_log_or_a_configuration_becomes_markup() {
    let folder = tempfile::tempdir().unwrap();
    let evil = "</title></style></script><script>alert(1)</script>\"'><img src=x onerror=alert(1)>";
    let rows = [
        json!({"step": 1, "loss": 1.0, evil: 3.0, format!("eval_{evil}_loss"): 2.0}),
        json!({"step": 1, "stop_reason": evil, "stop_detail": evil}),
    ];
    let log: String = rows.map(|row| format!("{row}\n")).concat();
    std::fs::write(folder.path().join("log.jsonl"), log).unwrap();
    let config = json!({"dataset_name": evil, "model_name_or_path": evil});
    std::fs::write(folder.path().join("run.json.yaml"), config.to_string()).unwrap();
    let args = [
        "report",
        "log.jsonl",
        "--config",
        "run.json.yaml",
        "-o",
        "-",
    ];
    let page = succeeds(folder.path(), &args);
    let page = parse(&page);
    assert!(all(page.root_element(), "img").is_empty());
    let scripts = all(page.root_element(), "script");
    assert_eq!(scripts.len(), 1);
    assert!(!text(scripts[0]).contains("alert"));
    let loading = page.descendants().flat_map(|n| n.attributes());
    assert!(
        !loading
            .clone()
            .any(|a| matches!(a.name(), "src" | "href" | "onerror" | "onload"))
    );
    assert!(text(page.root_element()).contains(evil));
}

#[test]
fn a_torn_log_of_a_resumed_run_is_told_by_its_last_timeline() {
    let folder = tempfile::tempdir().unwrap();
    let row = |step: u64, loss: f64| format!("{}\n", json!({"step": step, "loss": loss}));
    let first: String = (1..=9).map(|i| row(i, 2.0)).collect();
    let second: String = (6..=8).map(|i| row(i, 1.0)).collect();
    let log = format!("{first}{second}{{\"step\": 9, \"lo");
    std::fs::write(folder.path().join("train_log.jsonl"), log).unwrap();
    succeeds(folder.path(), &["report", "."]);
    let page = std::fs::read_to_string(folder.path().join("report.html")).unwrap();
    let page = parse(&page);
    assert_eq!(points(&page, "Loss"), [("train".to_owned(), 8)]);
    let all_text = text(page.root_element());
    assert!(
        all_text.contains("Not finished: 8 updates so far"),
        "{all_text}"
    );
    assert!(all_text.contains("torn"), "{all_text}");
}

#[test]
fn what_is_not_finite_is_named_and_left_out_of_the_line() {
    let folder = tempfile::tempdir().unwrap();
    let log = "{\"step\": 1, \"loss\": 2, \"grad_norm\": 1}\n\
               {\"step\": 2, \"loss\": \"nan\", \"grad_norm\": \"nan\"}\n\
               {\"step\": 2, \"stop_reason\": \"non_finite\", \"stop_detail\": \"\"}\n";
    std::fs::write(folder.path().join("train_log.jsonl"), log).unwrap();
    let page = succeeds(folder.path(), &["report", ".", "-o", "-"]);
    let page = parse(&page);
    assert_eq!(points(&page, "Loss")[0].1, 1);
    let notes: Vec<String> = page
        .descendants()
        .filter(|n| n.attribute("class") == Some("note"))
        .map(text)
        .collect();
    assert!(
        notes
            .iter()
            .any(|n| n.starts_with("train_loss: 1 value not finite, at update 2")),
        "{notes:?}"
    );
    assert!(
        notes.iter().any(|n| n.starts_with("grad_norm: 1 value")),
        "{notes:?}"
    );
}

#[test]
fn a_peer_s_trainer_state_makes_a_page() {
    let folder = tempfile::tempdir().unwrap();
    let state = json!({
        "best_global_step": 2, "best_metric": 1.5,
        "log_history": [
            {"step": 2, "epoch": 0.5, "loss": 2.0, "learning_rate": 1e-4, "grad_norm": 3.0},
            {"step": 2, "epoch": 0.5, "eval_loss": 1.5, "eval_runtime": 1.0},
            {"step": 4, "epoch": 1.0, "loss": 1.0, "learning_rate": 5e-5, "grad_norm": 2.0},
            {"step": 4, "epoch": 1.0, "train_runtime": 10.0},
        ],
    });
    let state = serde_json::to_string_pretty(&state).unwrap();
    std::fs::create_dir(folder.path().join("checkpoint-4")).unwrap();
    std::fs::write(folder.path().join("checkpoint-4/trainer_state.json"), state).unwrap();
    succeeds(folder.path(), &["report", ".", "-o", "page.html"]);
    let page = std::fs::read_to_string(folder.path().join("page.html")).unwrap();
    let page = parse(&page);
    assert!(text(all(page.root_element(), "h1")[0]).ends_with("Ended after 4 updates"));
    let points = points(&page, "Loss");
    assert_eq!(points, [("train".to_owned(), 2), ("eval".to_owned(), 1)]);
    assert!(text(all(page.root_element(), "dl")[0]).contains("1.5after update 2"));
}

#[test]
fn a_log_of_a_hundred_thousand_updates_makes_a_small_page_with_its_spikes() {
    let folder = tempfile::tempdir().unwrap();
    let log: String = (1..=100_000u64)
        .map(|i| {
            let noise = (i * 7919 % 1000) as f64 / 1000.0;
            let loss = if i == 51_234 { 77.0 } else { 2.0 + noise };
            let row = json!({"step": i, "loss": loss, "grad_norm": noise + 0.1,
                "learning_rate": 1e-4, "mean_token_accuracy": noise, "tokens_per_second": 100.0 * noise});
            format!("{row}\n")
        })
        .collect();
    std::fs::write(folder.path().join("train_log.jsonl"), log).unwrap();
    let page = succeeds(folder.path(), &["report", ".", "-o", "-"]);
    assert!(page.len() < 1_000_000, "{} bytes", page.len());
    let page = parse(&page);
    assert!(
        points(&page, "Loss")
            .iter()
            .all(|(_, n)| (1000..4000).contains(n))
    );
    let spikes = page
        .descendants()
        .filter(|n| n.attribute("class") == Some("spike"));
    assert!(spikes.map(text).any(|t| t == "77"));
}

#[test]
fn a_missing_log_and_a_broken_one_are_errors() {
    let folder = tempfile::tempdir().unwrap();
    let fails = |args: &[&str]| {
        let output = sft(folder.path(), args);
        assert_eq!(output.status.code(), Some(1), "{args:?}");
        String::from_utf8(output.stderr).unwrap()
    };
    let error = fails(&["report", "."]);
    assert!(error.contains("train_log.jsonl"), "{error}");
    let error = fails(&["report", "nowhere.jsonl"]);
    assert!(error.contains("nowhere.jsonl"), "{error}");
    std::fs::write(folder.path().join("log.jsonl"), "{oops}\n{\"step\": 1}\n").unwrap();
    let error = fails(&["report", "log.jsonl"]);
    assert!(
        error.contains("log.jsonl") && error.contains("line 1"),
        "{error}"
    );
    assert!(!folder.path().join("log.report.html").exists());
}

/// Errors in the browser, a page wider than its window, and a chart that does not tell its values under
/// the pointer; see scripts/look-report.
#[test]
fn a_browser_shows_the_page() {
    let found = |name: &str| {
        let paths = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&paths).any(|folder| folder.join(name).is_file())
    };
    if !["chromium", "chromium-browser", "google-chrome"]
        .iter()
        .any(|name| found(name))
    {
        eprintln!("not checked: there is no chromium on PATH");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    prepare(
        folder.path(),
        &format!("max_steps: 20\nstop: [{}]\n", RULES.join(", ")),
    );
    succeeds(folder.path(), &["train", "--config", "run.yaml"]);
    succeeds(folder.path(), &["report", "out"]);
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/look-report");
    let page = folder.path().join("out/report.html");
    let looked = Command::new("bash").arg(script).arg(page).output().unwrap();
    let error = String::from_utf8_lossy(&looked.stderr);
    assert!(looked.status.success(), "{error}");
}
