//! The `sft` binary as a user runs it.

use std::io::{BufRead, Write};
use std::path::Path;
use std::process::{Command, Output, Stdio};

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
fn replay_ends_where_the_peer_s_early_stopping_ended() {
    let folder = tempfile::tempdir().unwrap();
    let text = include_str!("fixtures/reference/early_stopping_traces.json");
    let file: Value = serde_json::from_str(text).unwrap();
    let mut checked = 0;
    // One evaluation an update, no other option; a threshold of null raises in the peer.
    let plain = |t: &&Value| t["args"] == json!({}) && t["threshold"].is_number();
    for trace in file["traces"].as_array().unwrap().iter().filter(plain) {
        let evals = trace["evals"].as_array().unwrap().iter().enumerate();
        let log: String = evals
            .map(|(i, x)| format!("{}\n", json!({"step": i + 1, "eval_loss": x})))
            .collect();
        let rules = json!({
            "early_stopping_patience": trace["patience"],
            "early_stopping_threshold": trace["threshold"],
        });
        let found = replay(folder.path(), &log, &rules.to_string());
        let last = trace["records"].as_array().unwrap().last().unwrap();
        let stopped = last["counter"].as_u64() >= trace["patience"].as_u64();
        assert_eq!(found["stopped"], json!(stopped), "{}", trace["name"]);
        let step = if stopped {
            last["step"].clone()
        } else {
            Value::Null
        };
        assert_eq!(found["step"], step, "{}", trace["name"]);
        for (ours, theirs) in [("best_step", "best_step"), ("best_value", "best_metric")] {
            assert_eq!(found[ours], trace[theirs], "{}", trace["name"]);
        }
        assert_eq!(found["counter"], last["counter"], "{}", trace["name"]);
        checked += 1;
    }
    assert!(checked >= 20, "{checked}");
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
    for word in [
        "train", "watch", "init", "plan", "preview", "eval", "generate", "replay", "sweep", "130",
    ] {
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
fn conversations_without_a_chat_template_are_refused_with_the_way_out() {
    let folder = tempfile::tempdir().unwrap();
    let row = r#"{"messages": [{"role": "user", "content": "a"}]}"#;
    std::fs::write(folder.path().join("rows.jsonl"), row).unwrap();
    std::fs::create_dir(folder.path().join("bare")).unwrap();
    for name in ["config.json", "model.safetensors", "tokenizer.json"] {
        let from = Path::new(&tiny("llama-tiny")).join(name);
        std::fs::copy(from, folder.path().join("bare").join(name)).unwrap();
    }
    for command in ["train", "eval", "preview"] {
        let args = [
            command,
            "--model-name-or-path",
            "bare",
            "--dataset-name",
            "rows.jsonl",
        ];
        let (code, text) = failure(&sft(folder.path(), &args));
        assert_eq!(code, 1, "{text}");
        for part in ["rows.jsonl", "tokenizer in bare", "chat_template_path"] {
            assert!(text.contains(part), "{command}: {text}");
        }
    }
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

/// Rows that a tiny model learns by heart, in `rows.jsonl`; and a configuration for them.
fn small_run(folder: &Path, more: &str) {
    let rows: String = (0..8)
        .map(|i| format!("{{\"prompt\": \"number {i} is\", \"completion\": \" {i}{i}\"}}\n"))
        .collect();
    std::fs::write(folder.join("rows.jsonl"), &rows).unwrap();
    std::fs::write(folder.join("eval.jsonl"), rows).unwrap();
    let yaml = format!(
        "model_name_or_path: {}\ndataset_name: rows.jsonl\neval_dataset_name: eval.jsonl\n\
         output_dir: out\neval_strategy: steps\neval_steps: 2\nlearning_rate: 5e-3\n\
         per_device_train_batch_size: 4\nthreads: 1\nlogging_steps: 2\nsave_strategy: \"no\"\n{more}",
        tiny("llama-tiny")
    );
    std::fs::write(folder.join("run.yaml"), yaml).unwrap();
}

#[test]
fn every_evaluation_set_is_shown_by_train_and_eval() {
    let folder = tempfile::tempdir().unwrap();
    small_run(folder.path(), "max_steps: 2\n");
    let row = "{\"prompt\": \"one two\", \"completion\": \" three\"}\n";
    std::fs::write(folder.path().join("other.jsonl"), row).unwrap();
    let sets = [
        "--eval_dataset_name",
        "{math: eval.jsonl, code: other.jsonl}",
    ];
    let with_sets = |args: &[&str]| sft(folder.path(), &[args, &sets].concat());
    let args = ["train", "--config", "run.yaml", "--save_strategy", "steps"];
    let text = stdout(&with_sets(&args));
    let line = text.lines().find(|line| line.contains("eval after update"));
    let line = line.unwrap_or_else(|| panic!("{text}"));
    assert!(
        line.contains("· math ") && line.contains("· code "),
        "{line}"
    );

    for model in ["out", "out/checkpoint-2"] {
        let args = ["eval", model, "--config", "run.yaml"];
        let text = stdout(&with_sets(&args));
        let lines: Vec<&str> = text.lines().map(str::trim_start).collect();
        assert_eq!(lines.len(), 3, "{text}");
        assert!(lines[0].starts_with("loss ") && lines[0].contains("perplexity"));
        assert!(lines[1].starts_with("math  loss ") && lines[2].starts_with("code  loss "));
        let text = stdout(&with_sets(&[
            "eval", model, "--config", "run.yaml", "--json",
        ]));
        let eval: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(
            (&eval["sets"][0]["name"], &eval["sets"][1]["name"]),
            (&json!("math"), &json!("code"))
        );
        let loss = eval["loss"].as_f64().unwrap();
        assert!((eval["perplexity"].as_f64().unwrap() / loss.exp() - 1.0).abs() < 1e-9);
    }
}

#[test]
fn train_stops_at_its_target_and_leaves_model_log_and_curve() {
    let folder = tempfile::tempdir().unwrap();
    small_run(
        folder.path(),
        "stop: [{rule: target, metric: eval_loss, at_most: 4}]\nmax_steps: 200\n",
    );
    let text = stdout(&sft(folder.path(), &["train", "--config", "run.yaml"]));
    assert!(
        text.contains("target_reached") && text.contains("Model: out"),
        "{text}"
    );
    assert!(
        text.contains("step 2/200 ·") && text.contains("eval after update 2"),
        "{text}"
    );
    assert!(text.contains('▁') && text.contains('█'), "{text}");

    let out = folder.path().join("out");
    let svg = std::fs::read_to_string(out.join("loss.svg")).unwrap();
    assert!(svg.contains("target 4") && svg.contains("<circle"), "{svg}");
    let log = std::fs::read_to_string(out.join("train_log.jsonl")).unwrap();
    let last: Value = serde_json::from_str(log.lines().last().unwrap()).unwrap();
    assert_eq!(last["stop_reason"], "target_reached");

    // The log that a run leaves tells the same story when it is replayed.
    let args = [
        "replay",
        "out/train_log.jsonl",
        "--config",
        "run.yaml",
        "--json",
    ];
    let replayed: Value = serde_json::from_str(&stdout(&sft(folder.path(), &args))).unwrap();
    assert_eq!(
        (&replayed["reason"], &replayed["step"]),
        (&last["stop_reason"], &last["step"])
    );

    // The model that it leaves evaluates to what the run saw, and writes.
    let args = ["eval", "out", "--config", "run.yaml", "--json"];
    let eval: Value = serde_json::from_str(&stdout(&sft(folder.path(), &args))).unwrap();
    let seen = last["best_value"].as_f64().unwrap();
    assert!(
        (eval["loss"].as_f64().unwrap() - seen).abs() < 1e-6 * seen,
        "{eval} {last}"
    );
    let args = [
        "generate",
        "out",
        "--prompt",
        "number 3 is",
        "--max-new-tokens",
        "4",
    ];
    let [first, second] = [(); 2].map(|()| stdout(&sft(folder.path(), &args)));
    assert_eq!(first, second);
    assert!(first.ends_with('\n'));

    // A second run does not write over the first.
    let (code, text) = failure(&sft(folder.path(), &["train", "--config", "run.yaml"]));
    assert!(code == 1 && text.contains("overwrite_output_dir"), "{text}");
}

#[test]
fn train_refuses_before_it_loads_anything() {
    let folder = tempfile::tempdir().unwrap();
    small_run(folder.path(), "");
    for (flags, word) in [
        (["--learning_rate", "NaN"], "learning_rate"),
        (["--max-length", "0"], "max_length"),
        (["--device", "cuda:99"], "device: cuda:99"),
        (["--model_name_or_path", "nowhere"], "nowhere"),
        (["--dataset_name", "nowhere.jsonl"], "nowhere.jsonl"),
    ] {
        let args = [&["train", "--config", "run.yaml"][..], &flags].concat();
        let (code, text) = failure(&sft(folder.path(), &args));
        assert!(
            code != 0 && text.contains(word),
            "{flags:?}: {code}: {text}"
        );
        assert!(!folder.path().join("out").exists(), "{flags:?}");
    }
}

#[cfg(unix)]
#[test]
fn an_interrupt_finishes_the_update_saves_and_says_how_to_go_on() {
    use std::io::{BufRead, BufReader};
    let folder = tempfile::tempdir().unwrap();
    small_run(folder.path(), "max_steps: 1000000\n");
    let mut child = Command::new(env!("CARGO_BIN_EXE_sft"))
        .args(["train", "--config", "run.yaml"])
        .current_dir(folder.path())
        .env("XDG_CACHE_HOME", folder.path().join("cache"))
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap())
        .lines()
        .map(Result::unwrap);
    lines
        .find(|line| line.starts_with("step "))
        .expect("the run never began");
    let kill = Command::new("kill")
        .args(["-INT", &child.id().to_string()])
        .status()
        .unwrap();
    assert!(kill.success());
    let rest: Vec<String> = lines.collect();
    assert_eq!(child.wait().unwrap().code(), Some(130));
    let text = rest.join("\n");
    assert!(
        text.contains("cancelled") && text.contains("--model_name_or_path out"),
        "{text}"
    );
    assert!(folder.path().join("out/model.safetensors").exists());
}

#[cfg(unix)]
#[test]
fn a_terminated_run_leaves_a_checkpoint_and_goes_on_by_the_command_that_it_says() {
    use std::io::{BufRead, BufReader};
    let folder = tempfile::tempdir().unwrap();
    small_run(folder.path(), "max_steps: 1000000\n");
    let run = [
        "train",
        "--config",
        "run.yaml",
        "--save_strategy",
        "steps",
        "--lr_scheduler_type",
        "constant",
    ];
    let mut child = Command::new(env!("CARGO_BIN_EXE_sft"))
        .args(run)
        .current_dir(folder.path())
        .env("XDG_CACHE_HOME", folder.path().join("cache"))
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap())
        .lines()
        .map(Result::unwrap);
    let begun = lines.find(|line| line.starts_with("step "));
    begun.expect("the run never began");
    let kill = Command::new("kill").arg(child.id().to_string()).status();
    assert!(kill.unwrap().success());
    let text = lines.collect::<Vec<_>>().join("\n");
    assert_eq!(child.wait().unwrap().code(), Some(130));
    let said = "sft train --config run.yaml --save_strategy=steps --lr_scheduler_type=constant \
                --resume_from_checkpoint auto";
    assert!(text.contains(said), "{text}");
    let steps = || {
        let log = std::fs::read_to_string(folder.path().join("out/train_log.jsonl")).unwrap();
        log.matches("\"loss\"").count()
    };
    let before = steps();
    let limit = (before + 2).to_string();
    let more = ["--resume_from_checkpoint", "auto", "--max_steps", &limit];
    let text = stdout(&sft(folder.path(), &[&run[..], &more].concat()));
    assert!(
        text.contains(&format!("Stopped after update {limit}")),
        "{text}"
    );
    assert_eq!(steps(), before + 2);
    // Ended, and asked again.
    let again = sft(folder.path(), &[&run[..], &more].concat());
    assert!(again.status.success());
    let text = String::from_utf8_lossy(&again.stdout).into_owned()
        + &String::from_utf8_lossy(&again.stderr);
    assert!(text.contains("the run had ended"), "{text}");
}

#[test]
fn a_checkpoint_that_cannot_be_written_does_not_cost_the_weights() {
    let folder = tempfile::tempdir().unwrap();
    small_run(folder.path(), "max_steps: 9\n");
    // A file where the checkpoint's folder should go.
    std::fs::create_dir(folder.path().join("out")).unwrap();
    std::fs::write(folder.path().join("out/checkpoint-3"), "in the way").unwrap();
    let args = [
        "train",
        "--config",
        "run.yaml",
        "--save_strategy",
        "steps",
        "--save_steps",
        "3",
    ];
    let (code, text) = failure(&sft(folder.path(), &args));
    assert!(code == 1 && text.contains("checkpoint-3"), "{text}");
    // Written in the background, so that it is an update later perhaps.
    assert!(text.contains("the weights after update "), "{text}");
    assert!(folder.path().join("out/model.safetensors").exists());
}

#[test]
fn plan_adds_up_the_memory_of_a_run() {
    let folder = tempfile::tempdir().unwrap();
    small_run(folder.path(), "");
    let text = stdout(&sft(folder.path(), &["plan", "--config", "run.yaml"]));
    for kind in ["weights", "gradients", "optimizer", "activations", "in all"] {
        assert!(text.contains(kind), "{text}");
    }
    let args = ["plan", "--config", "run.yaml", "--json"];
    let plan: Value = serde_json::from_str(&stdout(&sft(folder.path(), &args))).unwrap();
    let device = plan["device"].as_str().unwrap();
    assert!(
        device.starts_with("cpu, ") && text.contains(device),
        "{text}"
    );
    let total = plan["total_bytes"].as_u64().unwrap();
    let segments = plan["segments"].as_array().unwrap();
    let end = |s: &Value| s["offset"].as_u64().unwrap() + s["bytes"].as_u64().unwrap();
    assert!(segments.iter().map(end).max().unwrap() <= total && total > 0);
    assert!(!folder.path().join("out").exists());
}

#[test]
fn the_kernel_of_bf16_matrices_can_be_named() {
    let folder = tempfile::tempdir().unwrap();
    small_run(folder.path(), "bf16: true\n");
    let plan = |kernel: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sft"));
        let args = ["plan", "--config", "run.yaml", "--device", "cpu"];
        command.args(args).env("SFT_BF16_KERNEL", kernel);
        command.current_dir(folder.path()).output().unwrap()
    };
    let widened = stdout(&plan("widened"));
    assert!(
        widened.contains("bf16 matrices widened to float32\n"),
        "{widened}"
    );
    let (code, text) = failure(&plan("avx1024"));
    assert!(
        code == 2 && text.contains("SFT_BF16_KERNEL=avx1024: this CPU has "),
        "{text}"
    );
}

#[test]
fn generate_needs_exactly_one_prompt_and_samples_by_its_seed() {
    let folder = tempfile::tempdir().unwrap();
    let model = tiny("llama-tiny");
    assert_eq!(failure(&sft(folder.path(), &["generate", &model])).0, 2);
    let two = ["generate", &model, "--prompt", "a", "--message", "b"];
    assert_eq!(failure(&sft(folder.path(), &two)).0, 2);
    let hot = [
        "generate",
        &model,
        "--message",
        "hello",
        "--temperature",
        "2",
        "--seed",
    ];
    let run = |seed| stdout(&sft(folder.path(), &[&hot[..], &[seed]].concat()));
    assert_eq!(run("1"), run("1"));
    assert_ne!(run("1"), run("2"));
    let bad = ["generate", &model, "--prompt", "a", "--top-p", "0"];
    let (code, text) = failure(&sft(folder.path(), &bad));
    assert!(code == 2 && text.contains("top_p"), "{text}");
}

#[test]
fn export_writes_the_model_in_another_format() {
    let folder = tempfile::tempdir().unwrap();
    let model = tiny("llama-tiny");
    stdout(&sft(
        folder.path(),
        &["export", &model, "half", "--dtype", "bfloat16"],
    ));
    let config = std::fs::read_to_string(folder.path().join("half/config.json")).unwrap();
    assert!(config.contains("bfloat16"), "{config}");
    stdout(&sft(
        folder.path(),
        &["generate", "half", "--prompt", "a", "--max-new-tokens", "2"],
    ));
}

/// A run that a test writes piece by piece into `live`, out of one that was recorded, and the `sft watch`
/// that follows it.
struct Watched {
    folder: std::path::PathBuf,
    watch: std::process::Child,
    shown: std::io::Lines<std::io::BufReader<std::process::ChildStdout>>,
}

impl Watched {
    fn start(folder: &Path) -> Self {
        let mut watch = Command::new(env!("CARGO_BIN_EXE_sft"))
            .args(["watch", "live"])
            .current_dir(folder)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let shown = std::io::BufReader::new(watch.stdout.take().unwrap()).lines();
        Self {
            folder: folder.join("live"),
            watch,
            shown,
        }
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.folder.join(name), text).unwrap();
    }

    fn append(&self, text: &str) {
        let log = self.folder.join("train_log.jsonl");
        let mut log = std::fs::OpenOptions::new().append(true).open(log).unwrap();
        log.write_all(text.as_bytes()).unwrap();
    }

    /// Lines up to the first one that holds `word`.
    fn until(&mut self, word: &str) -> Vec<String> {
        let mut lines = Vec::new();
        for line in self.shown.by_ref() {
            lines.push(line.unwrap());
            if lines.last().unwrap().contains(word) {
                return lines;
            }
        }
        panic!("`{word}` was never shown: {lines:?}");
    }
}

#[test]
fn watch_follows_a_run_from_before_its_start_past_a_resume_to_its_end() {
    let folder = tempfile::tempdir().unwrap();
    small_run(
        folder.path(),
        "max_steps: 4\nstop: [{rule: plateau, patience: 9}]\n",
    );
    stdout(&sft(
        folder.path(),
        &["train", "--config", "run.yaml", "--logging_steps", "1"],
    ));
    let out = folder.path().join("out");
    let record = std::fs::read_to_string(out.join("run.json")).unwrap();
    let log = std::fs::read_to_string(out.join("train_log.jsonl")).unwrap();
    let rows: Vec<&str> = log.split_inclusive('\n').collect();
    assert_eq!(
        rows.len(),
        7,
        "four updates, two evaluations, the end: {log}"
    );

    let mut run = Watched::start(folder.path());
    let mut said = String::new();
    let waits = run.watch.stderr.take().unwrap();
    std::io::BufReader::new(waits).read_line(&mut said).unwrap();
    assert_eq!(said, "Waiting for a run in live.\n");

    std::fs::create_dir(&run.folder).unwrap();
    run.write("train_log.jsonl", &rows[..2].concat());
    run.write("run.json", &record);
    let first = run.until("step 2/4");
    let header = first.iter().find(|line| line.starts_with("live: llama"));
    assert!(
        header.is_some_and(|line| line.contains("float32")),
        "{first:?}"
    );
    run.append(rows[2]);
    run.until("eval after update 2");
    let standing = run.until("plateau");
    assert!(standing.last().unwrap().contains(", 0/9"), "{standing:?}");

    // A resume: the log is cut, also through the middle of a row, and goes on.
    run.write("train_log.jsonl", rows[0]);
    run.until("The log was cut");
    run.until("step 1/4");
    let (half, rest) = rows[1].split_at(20);
    run.append(half);
    run.append(rest);
    run.append(&rows[2..6].concat());
    let lines = run.until("eval after update 4");
    let steps: Vec<bool> = [2, 3, 4]
        .map(|step| {
            lines
                .iter()
                .any(|line| line.starts_with(&format!("step {step}/4")))
        })
        .to_vec();
    assert_eq!(steps, [true; 3], "{lines:?}");
    run.append(rows[6]);
    let end = run.until("Stopped after update 4");
    assert!(end.last().unwrap().contains("max_steps"), "{end:?}");
    run.until("Training loss");
    assert_eq!(run.watch.wait().unwrap().code(), Some(0));
}

#[test]
fn watch_once_shows_where_a_run_stands_and_has_its_exit_code() {
    let folder = tempfile::tempdir().unwrap();
    let once = |run: &str| sft(folder.path(), &["watch", run, "--once"]);
    let (code, text) = failure(&once("out"));
    assert!(code == 1 && text.contains("train_log.jsonl"), "{text}");

    let out = folder.path().join("out");
    std::fs::create_dir(&out).unwrap();
    let log = out.join("train_log.jsonl");
    let row = "{\"step\":3,\"loss\":1.5,\"num_tokens\":90,\"tokens_per_second\":30.0}\n";
    std::fs::write(&log, row).unwrap();
    let text = stdout(&once("out"));
    assert!(
        text.contains("step 3 · loss 1.5") && text.contains("Not ended"),
        "{text}"
    );

    for (reason, code) in [
        ("max_steps", 0),
        ("cancelled", 130),
        ("non_finite", 1),
        ("new", 0),
    ] {
        let end = json!({"step": 3, "stop_reason": reason, "stop_detail": "why"});
        std::fs::write(&log, format!("{row}{end}\n")).unwrap();
        let output = once("out");
        assert_eq!(output.status.code(), Some(code), "{reason}");
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(text.contains(&format!("{reason} · why")), "{text}");
    }
    let (code, text) = failure(&once("out/train_log.jsonl"));
    assert!(code == 2 && text.contains("is a file"), "{text}");
}

#[test]
fn sweep_finds_the_rule_that_ends_a_run_best() {
    let folder = tempfile::tempdir().unwrap();
    let losses = [3.0, 2.0, 1.5, 1.4, 1.5, 1.6, 1.7, 1.8];
    let log: String = (1..)
        .zip(losses)
        .map(|(i, loss)| {
            let update = json!({"step": i, "loss": loss, "num_tokens": 10 * i});
            let eval = json!({"step": i, "eval_loss": loss});
            format!("{update}\n{eval}\n")
        })
        .collect();
    std::fs::create_dir(folder.path().join("out")).unwrap();
    std::fs::write(folder.path().join("out/train_log.jsonl"), log).unwrap();
    let sweep = |more: &[&str]| sft(folder.path(), &[&["sweep", "out"], more].concat());
    let text = stdout(&sweep(&["--thresholds", "0,0.2", "--patiences", "1,2"]));
    let rows: Vec<Vec<&str>> = text
        .lines()
        .map(|line| line.split_whitespace().collect())
        .collect();
    // min_delta, patience, ends at, best kept, of, given up, saved.
    for row in [
        &["0", "1", "5", "1.4", "4", "0", "37.5", "%"][..],
        &["2", "6", "1.4", "4", "0", "25.0", "%"],
        &["0.2", "1", "4", "1.4", "4", "0", "50.0", "%"],
    ] {
        assert!(
            rows.iter().any(|found| found == row),
            "{row:?} is not in\n{text}"
        );
    }
    let rule = text.split_once("stop:").unwrap().1;
    let rule = format!("stop:{rule}");
    assert!(
        rule.contains("rule: plateau") && rule.contains("min_delta: 0.2"),
        "{text}"
    );

    // The rule as it is pasted does what the table says.
    std::fs::write(folder.path().join("rules.yaml"), rule).unwrap();
    let args = [
        "replay",
        "out/train_log.jsonl",
        "--stop",
        "rules.yaml",
        "--json",
    ];
    let replayed: Value = serde_json::from_str(&stdout(&sft(folder.path(), &args))).unwrap();
    let found: Value = serde_json::from_str(&stdout(&sweep(&[
        "--thresholds",
        "0,0.2",
        "--patiences",
        "1,2",
        "--json",
    ])))
    .unwrap();
    assert_eq!(
        found["recommended"]["outcome"]["stop_step"],
        replayed["step"]
    );
    assert_eq!(found["metric"], "eval_loss");

    let (code, text) = failure(&sweep(&["--metric", "eval_bleu"]));
    assert!(
        code == 2 && text.contains("eval_loss, train_loss"),
        "{text}"
    );
    let text = stdout(&sweep(&["--metric", "train_loss", "--reference", "hf"]));
    assert!(text.contains("reference hf"), "{text}");
}
