//! The `sft` binary as a user runs it.

use std::path::Path;
use std::process::{Command, Output};

use serde_json::{Value, json};

fn sft(folder: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_sft"))
        .args(args)
        .current_dir(folder)
        .env("NO_COLOR", "1")
        .output()
        .unwrap()
}

fn stdout(output: &Output) -> String {
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// Exit code and standard error of a run that fails.
fn failure(output: &Output) -> (i32, String) {
    (
        output.status.code().unwrap(),
        String::from_utf8(output.stderr.clone()).unwrap(),
    )
}

fn replay(folder: &Path, log: &str, rules: &str) -> Value {
    std::fs::write(folder.join("log.jsonl"), log).unwrap();
    std::fs::write(folder.join("rules.yaml"), rules).unwrap();
    let output = sft(
        folder,
        &["replay", "log.jsonl", "--stop", "rules.yaml", "--json"],
    );
    serde_json::from_str(&stdout(&output)).unwrap()
}

#[test]
fn replay_prints_one_object() {
    let folder = tempfile::tempdir().unwrap();
    let log = "{\"step\": 1, \"eval_loss\": 2.0}\n{\"step\": 2, \"eval_loss\": 1.4}\n\
               {\"step\": 3, \"eval_loss\": 1.3}\n";
    assert_eq!(
        replay(
            folder.path(),
            log,
            "- {rule: target, metric: eval_loss, at_most: 1.5}"
        ),
        json!({"stopped": true, "step": 2, "reason": "target_reached", "best_step": 2,
               "best_value": 1.4, "counter": 1}),
    );
    let never = replay(
        folder.path(),
        log,
        "- {rule: target, metric: eval_loss, at_most: 0.5}",
    );
    assert_eq!(never["stopped"], json!(false));
    assert_eq!(
        (&never["step"], &never["reason"]),
        (&Value::Null, &Value::Null)
    );
}

#[test]
fn replay_reads_the_rules_of_a_whole_configuration() {
    let folder = tempfile::tempdir().unwrap();
    let log = "{\"step\": 1, \"eval_loss\": 1.0}\n{\"step\": 2, \"eval_loss\": 1.1}\n";
    std::fs::write(folder.path().join("log.jsonl"), log).unwrap();
    std::fs::write(
        folder.path().join("run.yaml"),
        "model_name_or_path: m\neval_strategy: epoch\nearly_stopping_patience: 1\n",
    )
    .unwrap();
    let text = stdout(&sft(
        folder.path(),
        &["replay", "log.jsonl", "--config", "run.yaml"],
    ));
    assert_eq!(
        text,
        "Stops after update 2: plateau. Best 1 after update 1.\n"
    );
}

#[test]
fn replay_refuses_a_broken_log_and_broken_rules() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("log.jsonl"), "{\"step\": 1}\n{oops\n").unwrap();
    std::fs::write(folder.path().join("good.yaml"), "[{rule: overfit}]").unwrap();
    std::fs::write(folder.path().join("bad.yaml"), "[{rule: overfitt}]").unwrap();
    let run = |rules| {
        failure(&sft(
            folder.path(),
            &["replay", "log.jsonl", "--stop", rules],
        ))
    };
    let (code, text) = run("good.yaml");
    assert!(
        code == 1 && text.contains("log.jsonl") && text.contains('2'),
        "{code}: {text}"
    );
    std::fs::write(
        folder.path().join("log.jsonl"),
        "{\"step\": 1, \"loss\": 1}\n",
    )
    .unwrap();
    let (code, text) = run("bad.yaml");
    assert!(
        code == 2 && text.contains("bad.yaml") && text.contains("overfitt"),
        "{code}: {text}"
    );
    let (code, text) = run("none.yaml");
    assert!(code == 1 && text.contains("none.yaml"), "{code}: {text}");
}

#[test]
fn init_writes_a_configuration_once() {
    let folder = tempfile::tempdir().unwrap();
    let printed = stdout(&sft(folder.path(), &["init"]));
    stdout(&sft(folder.path(), &["init", "run.yaml"]));
    assert_eq!(
        std::fs::read_to_string(folder.path().join("run.yaml")).unwrap(),
        printed
    );
    sft::config::Config::from_file(folder.path().join("run.yaml"))
        .unwrap()
        .validate()
        .unwrap();

    let (code, text) = failure(&sft(folder.path(), &["init", "run.yaml"]));
    assert!(code == 1 && text.contains("--force"), "{code}: {text}");
    stdout(&sft(folder.path(), &["init", "run.yaml", "--force"]));
}

#[test]
fn init_model_makes_a_model_folder_from_a_seed() {
    let folder = tempfile::tempdir().unwrap();
    let shape = [
        "--vocab-size",
        "300",
        "--hidden-size",
        "16",
        "--num-attention-heads",
        "2",
    ];
    for name in ["a", "b"] {
        let args = ["init-model", name, "--seed", "7"];
        stdout(&sft(folder.path(), &[&args[..], &shape[..]].concat()));
    }
    let read = |name: &str| std::fs::read(folder.path().join(name)).unwrap();
    assert!(read("a/model.safetensors") == read("b/model.safetensors"));
    for file in ["config.json", "tokenizer.json"] {
        assert_eq!(read(&format!("a/{file}")), read(&format!("b/{file}")));
    }
    let (code, text) = failure(&sft(folder.path(), &["init-model", "a"]));
    assert!(
        code == 1 && text.contains("already holds a model"),
        "{code}: {text}"
    );
}

#[test]
fn help_lists_the_commands_and_the_exit_codes() {
    let folder = tempfile::tempdir().unwrap();
    let text = stdout(&sft(folder.path(), &["--help"]));
    for word in ["init", "init-model", "replay", "Exit codes", "130"] {
        assert!(text.contains(word), "{word}: {text}");
    }
    assert_eq!(failure(&sft(folder.path(), &[])).0, 2);
    assert_eq!(failure(&sft(folder.path(), &["trian"])).0, 2);
}

/// The folder of a tiny model that the repository bundles.
fn tiny(model: &str) -> String {
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/models");
    models.join(model).to_str().unwrap().to_owned()
}

#[test]
fn preview_marks_what_is_trained_on() {
    let folder = tempfile::tempdir().unwrap();
    let row = "{\"prompt\": \"two and two is\", \"completion\": \" four\"}\n";
    std::fs::write(folder.path().join("rows.jsonl"), row).unwrap();
    let model = tiny("llama-tiny");
    let args = [
        "preview",
        "--model-name-or-path",
        &model,
        "--dataset-name",
        "rows.jsonl",
    ];
    let text = stdout(&sft(folder.path(), &args));
    let row = text.lines().nth(1).unwrap();
    let prompt = row.split('[').next().unwrap();
    assert!(prompt.ends_with("two and two is"), "{text}");
    let trained: String = row[prompt.len()..]
        .chars()
        .filter(|c| !"[]".contains(*c))
        .collect();
    assert!(trained.starts_with(" four"), "{text}");
}

#[test]
fn a_wrong_flag_names_the_nearest_key_and_exits_with_2() {
    let folder = tempfile::tempdir().unwrap();
    let (code, text) = failure(&sft(folder.path(), &["preview", "--learning-rat", "5"]));
    assert_eq!(
        (code, text.as_str()),
        (
            2,
            "sft: `learning_rat` is not a key; did you mean `learning_rate`?\n"
        )
    );
    let (code, text) = failure(&sft(folder.path(), &["preview", "--load_in_4bit"]));
    assert!(
        code == 2 && text.contains("load_in_4bit: true is not supported"),
        "{text}"
    );
    let (code, text) = failure(&sft(folder.path(), &["preview", "--max-length", "0"]));
    assert!(code == 2 && text.contains("model_name_or_path"), "{text}");
    std::fs::write(folder.path().join("run.yaml"), "seed: 1\nlerning_rate: 5\n").unwrap();
    let (code, text) = failure(&sft(folder.path(), &["preview", "--config", "run.yaml"]));
    assert!(
        code == 2 && text.contains("run.yaml:2: `lerning_rate`"),
        "{text}"
    );
}

#[test]
fn a_flag_wins_over_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let model = tiny("llama-tiny");
    let yaml = format!("model_name_or_path: {model}\ndataset_name: rows.jsonl\nmax_length: 0\n");
    std::fs::write(folder.path().join("run.yaml"), yaml).unwrap();
    let row = "{\"text\": \"one two three four five six seven eight nine ten eleven twelve\"}\n";
    std::fs::write(folder.path().join("rows.jsonl"), row).unwrap();
    let (code, text) = failure(&sft(folder.path(), &["preview", "--config", "run.yaml"]));
    assert!(code == 2 && text.contains("max_length"), "{text}");
    let args = ["preview", "--config", "run.yaml", "--max_length=8"];
    let text = stdout(&sft(folder.path(), &args));
    assert!(text.contains("· 8 tokens"), "{text}");
}
