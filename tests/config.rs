//! The configuration's doors: files, JSON, setters; and what they refuse.

use sft::config::{
    Config, Device, EvalDatasets, EvalStrategy, PackingStrategy, ReportTo, SaveStrategy, keys,
    peer_keys,
};
use sft::stop::StopConfig;
use sft::{Error, ErrorKind};

fn config(yaml: &str) -> Result<Config, Error> {
    Config::from_yaml_str(yaml, "run.yaml")
}

/// The error of a configuration that reads but does not validate; `yaml` comes over a valid base.
fn contradiction(yaml: &str) -> Error {
    let base = "model_name_or_path: m\ndataset_name: d.jsonl\n";
    let config = config(&format!("{base}{yaml}")).unwrap();
    config.validate().expect_err(yaml)
}

/// TRL's keys with TRL's defaults, as JSON.
const TRL: &[(&str, &str)] = &[
    ("model_name_or_path", "null"),
    ("model_revision", "\"main\""),
    ("dtype", "\"float32\""),
    ("attn_implementation", "null"),
    ("trust_remote_code", "false"),
    ("chat_template_path", "null"),
    ("dataset_name", "null"),
    ("dataset_config", "null"),
    ("dataset_train_split", "\"train\""),
    ("dataset_test_split", "\"test\""),
    ("dataset_streaming", "false"),
    ("datasets", "[]"),
    ("streaming", "false"),
    ("test_split_size", "null"),
    ("dataset_text_field", "\"text\""),
    ("dataset_num_proc", "null"),
    ("dataset_kwargs", "{\"skip_prepare_dataset\": false}"),
    ("eos_token", "null"),
    ("pad_token", "null"),
    ("max_length", "1024"),
    ("truncation_mode", "\"keep_start\""),
    ("shuffle_dataset", "false"),
    ("packing", "false"),
    ("packing_strategy", "\"bfd\""),
    ("padding_free", "false"),
    ("pad_to_multiple_of", "\"auto\""),
    ("eval_packing", "null"),
    ("completion_only_loss", "null"),
    ("assistant_only_loss", "false"),
    ("loss_type", "\"nll\""),
    ("activation_offloading", "false"),
    ("router_aux_loss_coef", "null"),
    ("output_dir", "\"trainer_output\""),
    ("num_train_epochs", "3.0"),
    ("max_steps", "-1"),
    ("per_device_train_batch_size", "8"),
    ("per_device_eval_batch_size", "8"),
    ("gradient_accumulation_steps", "1"),
    ("learning_rate", "2e-5"),
    ("lr_scheduler_type", "\"linear\""),
    ("lr_scheduler_kwargs", "null"),
    ("warmup_steps", "0"),
    ("optim", "\"adamw_torch_fused\""),
    ("optim_args", "null"),
    ("weight_decay", "0.0"),
    ("adam_beta1", "0.9"),
    ("adam_beta2", "0.999"),
    ("adam_epsilon", "1e-8"),
    ("max_grad_norm", "1.0"),
    ("label_smoothing_factor", "0.0"),
    ("neftune_noise_alpha", "null"),
    ("bf16", "null"),
    ("fp16", "false"),
    ("tf32", "null"),
    ("gradient_checkpointing", "true"),
    ("activation_checkpointing", "true"),
    ("gradient_checkpointing_kwargs", "null"),
    ("torch_compile", "false"),
    ("use_liger_kernel", "false"),
    ("auto_find_batch_size", "false"),
    ("average_tokens_across_devices", "true"),
    ("logging_steps", "10"),
    ("logging_first_step", "false"),
    ("logging_nan_inf_filter", "true"),
    ("report_to", "\"none\""),
    ("run_name", "null"),
    ("eval_strategy", "\"no\""),
    ("eval_steps", "null"),
    ("eval_delay", "0"),
    ("eval_on_start", "false"),
    ("eval_accumulation_steps", "null"),
    ("save_strategy", "\"steps\""),
    ("save_steps", "500"),
    ("save_total_limit", "null"),
    ("save_only_model", "false"),
    ("load_best_model_at_end", "false"),
    ("metric_for_best_model", "null"),
    ("greater_is_better", "null"),
    ("resume_from_checkpoint", "null"),
    ("ignore_data_skip", "false"),
    ("restore_callback_states_from_checkpoint", "false"),
    ("seed", "42"),
    ("data_seed", "null"),
    ("full_determinism", "false"),
    ("use_cpu", "false"),
    ("dataloader_num_workers", "0"),
    ("dataloader_pin_memory", "true"),
    ("dataloader_drop_last", "false"),
    ("train_sampling_strategy", "\"random\""),
    ("remove_unused_columns", "true"),
    ("push_to_hub", "false"),
    ("hub_model_id", "null"),
    ("deepspeed", "null"),
    ("fsdp", "null"),
    ("fsdp_config", "null"),
    ("ddp_timeout", "1800"),
    ("use_peft", "false"),
    ("lora_r", "16"),
    ("lora_alpha", "32"),
    ("lora_dropout", "0.05"),
    ("lora_target_modules", "null"),
    ("lora_modules_to_save", "null"),
    ("lora_target_parameters", "null"),
    ("use_rslora", "false"),
    ("use_dora", "false"),
    ("load_in_4bit", "false"),
    ("load_in_8bit", "false"),
    ("bnb_4bit_quant_type", "\"nf4\""),
    ("use_bnb_nested_quant", "false"),
];

#[test]
fn every_trl_default_changes_nothing() {
    for (key, value) in TRL {
        let mut config = Config::default();
        config
            .merge_json(&format!("{{\"{key}\": {value}}}"))
            .unwrap();
        assert_eq!(config, Config::default(), "{key}: {value}");
    }
}

#[test]
fn trackers_are_named_in_every_way_that_the_peer_knows() {
    for (value, expected) in [
        ("null", ReportTo::None),
        ("[]", ReportTo::None),
        ("\"none\"", ReportTo::None),
        ("[\"none\"]", ReportTo::None),
        ("\"tensorboard\"", ReportTo::TensorBoard),
        ("[\"tensorboard\"]", ReportTo::TensorBoard),
        ("\"all\"", ReportTo::TensorBoard),
        ("[\"all\"]", ReportTo::TensorBoard),
    ] {
        let mut config = Config::default();
        let json = format!("{{\"report_to\": {value}}}");
        config.merge_json(&json).unwrap();
        assert_eq!(config.report_to, expected, "{value}");
    }
    let mut config = Config::default();
    config.set("report_to", "[tensorboard]").unwrap();
    assert_eq!(config.report_to, ReportTo::TensorBoard);
}

#[test]
fn a_trl_value_that_is_not_supported_is_refused_by_name() {
    for (key, value) in [
        ("load_in_4bit", "true"),
        ("optim", "\"adafactor\""),
        ("dtype", "\"bfloat16\""),
        ("deepspeed", "\"zero3.json\""),
        ("push_to_hub", "true"),
        ("report_to", "\"wandb\""),
        ("report_to", "[\"tensorboard\", \"wandb\"]"),
        ("neftune_noise_alpha", "5"),
        ("label_smoothing_factor", "0.1"),
        ("torch_compile", "true"),
        ("datasets", "[{\"path\": \"x\"}]"),
        ("loss_type", "\"dft\""),
        ("lr_scheduler_type", "\"reduce_lr_on_plateau\""),
        ("train_sampling_strategy", "\"batch_rebalance\""),
    ] {
        let mut config = Config::default();
        let error = config
            .merge_json(&format!("{{\"{key}\": {value}}}"))
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
        assert!(error.to_string().starts_with(key), "{error}");
        assert_eq!(config, Config::default());
    }
}

#[test]
fn what_is_not_built_yet_is_refused_when_the_run_is_checked() {
    let error = contradiction("use_peft: true");
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
    assert!(error.to_string().starts_with("use_peft"), "{error}");
}

#[test]
fn what_to_resume_from_reads_the_same_from_a_file_and_a_command_line() {
    use sft::config::ResumeFrom;
    for (text, expected) in [
        ("null", ResumeFrom::Nothing),
        ("false", ResumeFrom::Nothing),
        ("true", ResumeFrom::Newest),
        ("auto", ResumeFrom::Auto),
        (
            "out/checkpoint-5",
            ResumeFrom::Folder("out/checkpoint-5".into()),
        ),
        ("./true", ResumeFrom::Folder("./true".into())),
    ] {
        let file = config(&format!("resume_from_checkpoint: {text}")).unwrap();
        assert_eq!(file.resume_from_checkpoint, expected);
        let mut set = Config::default();
        set.set("resume_from_checkpoint", text).unwrap();
        assert_eq!(set.resume_from_checkpoint, expected, "{text}");
        let mut again = Config::default();
        again.merge_json(&set.to_json()).unwrap();
        assert_eq!(again, set);
    }
    for wrong in ["5", "[a]", "''"] {
        let error = config(&format!("resume_from_checkpoint: {wrong}")).unwrap_err();
        assert!(
            error.to_string().contains("path of a checkpoint"),
            "{error}"
        );
    }
}

#[test]
fn changes_to_allow_are_named_by_known_keys() {
    let allowed = |text: &str| {
        let mut config = Config::default();
        config.set("resume_allow_changes", text)?;
        Ok::<_, sft::Error>(config.resume_allow_changes.0)
    };
    assert_eq!(allowed("seed").unwrap(), ["seed"]);
    assert_eq!(
        allowed("seed, learning_rate").unwrap(),
        ["seed", "learning_rate"]
    );
    assert_eq!(
        allowed("[seed, learning_rate]").unwrap(),
        ["seed", "learning_rate"]
    );
    assert!(allowed("null").unwrap().is_empty());
    let error = allowed("[learning_rat]").unwrap_err().to_string();
    assert!(
        error.starts_with("resume_allow_changes") && error.contains("`learning_rate`"),
        "{error}"
    );
}

#[test]
#[cfg(not(feature = "cuda"))]
fn a_cuda_device_names_the_feature_that_the_build_lacks() {
    for device in ["cuda", "cuda:1"] {
        let error = contradiction(&format!("device: {device}"));
        assert_eq!(error.kind(), ErrorKind::Device);
        let text = error.to_string();
        let named = text.starts_with(&format!("device: {device} ")) && text.contains("`cuda`");
        assert!(named, "{text}");
    }
}

#[test]
fn the_number_format_follows_the_keys_and_the_device() {
    use sft::dtype::DType::{BF16, F16, F32};
    for (yaml, cpu, cuda) in [
        ("", F32, BF16),
        ("bf16: null", F32, BF16),
        ("bf16: true", BF16, BF16),
        ("bf16: false", F32, F32),
        ("fp16: true", F16, F16),
        ("bf16: false\nfp16: true", F16, F16),
    ] {
        let config = config(&format!("model_name_or_path: m\n{yaml}")).unwrap();
        config.validate().unwrap();
        assert_eq!(
            (config.precision(false), config.precision(true)),
            (cpu, cuda),
            "{yaml}"
        );
    }
}

#[test]
fn no_key_is_both_ours_and_the_peers_and_none_stands_twice() {
    let mut names: Vec<_> = keys().iter().map(|k| k.name).collect();
    names.extend(peer_keys().iter().map(|k| k.name));
    let all = names.len();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), all);
    assert!(keys().iter().all(|k| !k.doc.is_empty()));
}

#[test]
fn a_typo_names_the_nearest_key_with_file_and_line() {
    let error = config("seed: 1\nlearning_rat: 5.0\n").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::UnknownKey);
    assert_eq!(
        error.to_string(),
        "run.yaml:2: `learning_rat` is not a key; did you mean `learning_rate`?"
    );
}

#[test]
fn an_old_name_says_what_to_write_now() {
    let error = config("warmup_ratio: 0.1").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::UnknownKey);
    assert!(error.to_string().contains("`warmup_steps`"), "{error}");
    assert!(
        config("max_seq_length: 8")
            .unwrap_err()
            .to_string()
            .contains("`max_length`")
    );
}

#[test]
fn a_key_like_no_other_points_to_the_list() {
    let error = config("zzzzzz: 1").unwrap_err();
    assert!(
        error
            .to_string()
            .ends_with("`zzzzzz` is not a key; `sft init` lists all keys")
    );
}

#[test]
fn a_wrong_type_names_key_expected_and_found() {
    let cases = [
        (
            "learning_rate: fast",
            "run.yaml:1: learning_rate: expected a number, found string \"fast\"",
        ),
        (
            "packing: 3",
            "run.yaml:1: packing: expected true or false, found integer `3`",
        ),
        (
            "max_length: 12.5",
            "run.yaml:1: max_length: expected a whole number from 0, found floating point `12.5`",
        ),
        (
            "gradient_accumulation_steps: -1",
            "run.yaml:1: gradient_accumulation_steps: expected a whole number from 0, found integer `-1`",
        ),
        (
            "output_dir: [a]",
            "run.yaml:1: output_dir: expected text, found sequence",
        ),
        (
            "learning_rate: .nan",
            "run.yaml:1: learning_rate: expected a number, found string \".nan\"",
        ),
        (
            "max_seconds: .inf",
            "run.yaml:1: max_seconds: expected a number, found string \".inf\"",
        ),
        (
            "packing_strategy: bfdd",
            "run.yaml:1: packing_strategy: unknown variant `bfdd`, expected one of `bfd`, `bfd-requeue`, `bfd_split`, `wrapped`",
        ),
        (
            "device: gpu",
            "run.yaml:1: device: expected auto, cpu, cuda or cuda:N, found \"gpu\"",
        ),
    ];
    for (yaml, message) in cases {
        let error = config(yaml).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config, "{error}");
        assert_eq!(error.to_string(), message);
    }
}

#[test]
fn malformed_text_says_where() {
    let error = config("seed: [1\n").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config);
    assert!(error.to_string().starts_with("run.yaml:1:7: "), "{error}");
    let error = config("{\"seed\": }").unwrap_err();
    assert!(error.to_string().starts_with("run.yaml:1:10: "), "{error}");
}

#[test]
fn json_and_yaml_files_say_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let [yaml, json] = ["run.yaml", "run.json"].map(|name| folder.path().join(name));
    std::fs::write(
        &yaml,
        "learning_rate: 1e-4\neval_strategy: no\nmax_length: null\n",
    )
    .unwrap();
    std::fs::write(
        &json,
        "{\"learning_rate\": 1e-4, \"eval_strategy\": \"no\", \"max_length\": null}",
    )
    .unwrap();
    let config = Config::from_file(&yaml).unwrap();
    assert_eq!(config, Config::from_file(&json).unwrap());
    assert_eq!(config.learning_rate, 1e-4);
    assert_eq!(config.max_length, None);
    let missing = Config::from_file(folder.path().join("none.yaml")).unwrap_err();
    assert_eq!(missing.kind(), ErrorKind::Io);
}

#[test]
fn a_later_door_wins_and_a_failed_merge_changes_nothing() {
    let mut config = config("learning_rate: 1e-3\nseed: 7\n").unwrap();
    config.merge_json("{\"seed\": 8}").unwrap();
    config.set("learning_rate", "0.5").unwrap();
    assert_eq!((config.learning_rate, config.seed), (0.5, 8));
    assert_eq!(config.num_train_epochs, 3.0);

    let before = config.clone();
    config.merge_json("{\"seed\": 9, \"sede\": 1}").unwrap_err();
    config
        .merge_text("seed: 9\nmax_steps: x\n", "run.yaml")
        .unwrap_err();
    config.merge_json("[1]").unwrap_err();
    assert_eq!(config, before);
}

#[test]
fn setters_take_text_as_the_key_needs_it() {
    let mut config = Config::default();
    config.set("max_length", "null").unwrap();
    config.set("max_steps", "-1").unwrap();
    config.set("packing", "true").unwrap();
    config.set("packing_strategy", "bfd-requeue").unwrap();
    config.set("eos_token", "1").unwrap();
    config.set("output_dir", "# not a comment").unwrap();
    config.set("save_strategy", "no").unwrap();
    config.set("device", "cpu").unwrap();
    config
        .set("lr_scheduler_kwargs", "{min_lr_rate: 0.1}")
        .unwrap();
    config.set("warmup_steps", 0.1).unwrap();
    config.set("num_train_epochs", 2).unwrap();
    config.set("push_to_hub", "false").unwrap();
    config.set("optim", "adamw_torch").unwrap();
    assert_eq!(config.max_length, None);
    assert_eq!(config.max_steps, -1);
    assert!(config.packing);
    assert_eq!(config.packing_strategy, PackingStrategy::BfdSplit);
    assert_eq!(config.eos_token.as_deref(), Some("1"));
    assert_eq!(config.output_dir.to_str(), Some("# not a comment"));
    assert_eq!(config.save_strategy, SaveStrategy::No);
    assert_eq!(config.device, Device::Cpu);
    assert_eq!(
        config.lr_scheduler_kwargs.as_ref().unwrap()["min_lr_rate"],
        0.1
    );
    assert_eq!(config.num_train_epochs, 2.0);

    config.set("eos_token", "null").unwrap();
    assert_eq!(config.eos_token, None);
    config.set("lr_scheduler_kwargs.num_cycles", 2.5).unwrap();
    assert_eq!(
        config.lr_scheduler_kwargs.as_ref().unwrap()["num_cycles"],
        2.5
    );
    // No type says what these are: a number in a text is a number, and a text where texts must be.
    config.set("lr_scheduler_kwargs.num_cycles", "2").unwrap();
    let kwargs = config.lr_scheduler_kwargs.as_ref().unwrap();
    assert_eq!(kwargs["num_cycles"], 2);
    config.set("eval_dataset_name.maths", "12").unwrap();
    assert!(config.to_json().contains(r#""maths": "12""#));
}

#[test]
fn setters_refuse_what_no_key_takes() {
    let mut config = Config::default();
    for value in [f64::NAN, f64::INFINITY] {
        let error = config.set("learning_rate", value).unwrap_err();
        assert!(
            error
                .to_string()
                .starts_with("learning_rate: expected a finite number"),
            "{error}"
        );
    }
    let error = config.set("learning_rate", "NaN").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config, "{error}");
    assert_eq!(
        config.set("learnin_rate", 1.0).unwrap_err().kind(),
        ErrorKind::UnknownKey
    );
    assert_eq!(
        config.set("", 1.0).unwrap_err().kind(),
        ErrorKind::UnknownKey
    );
    assert_eq!(
        config.set("seed.x", 1.0).unwrap_err().kind(),
        ErrorKind::Config
    );
    assert_eq!(config, Config::default());
}

#[test]
fn spellings_of_the_peer_mean_our_keys() {
    let config = config(
        "activation_checkpointing: false\ntest_split_size: 0.2\nuse_cpu: true\neval_strategy: no\n\
         loss_type: chunked_nll\n",
    )
    .unwrap();
    assert!(!config.gradient_checkpointing);
    assert_eq!(config.val_size.unwrap().of(10), 2);
    assert_eq!(config.device, Device::Cpu);
    assert_eq!(config.eval_strategy, EvalStrategy::No);
}

#[test]
fn to_json_shows_every_key_and_round_trips() {
    let mut config = config("learning_rate: 3.3e-5\nmax_length: null\nval_size: 0.1\n").unwrap();
    config.set("seed", i64::MAX).unwrap();
    let mut again = Config::default();
    again.merge_json(&config.to_json()).unwrap();
    assert_eq!(again, config);

    let shown: serde_json::Value = serde_json::from_str(&config.to_json()).unwrap();
    assert_eq!(shown.as_object().unwrap().len(), keys().len());
}

#[test]
fn the_defaults_are_trls() {
    insta::assert_snapshot!(Config::default().to_json());
}

#[test]
fn values_out_of_range_are_refused_with_key_and_value() {
    for (yaml, message) in [
        (
            "learning_rate: -1",
            "learning_rate: must be a finite number, at least 0, found -1",
        ),
        ("max_length: 0", "max_length: must be at least 2"),
        (
            "per_device_train_batch_size: 0",
            "per_device_train_batch_size: must be at least 1",
        ),
        (
            "gradient_accumulation_steps: 0",
            "gradient_accumulation_steps: must be at least 1",
        ),
        (
            "adam_beta2: 1",
            "adam_beta2: must lie in 0 to below 1, found 1",
        ),
        (
            "adam_epsilon: 0",
            "adam_epsilon: must be a finite number above 0",
        ),
        ("max_steps: 0", "max_steps: must be at least 1, or -1"),
        (
            "num_train_epochs: 0",
            "num_train_epochs: must be a finite number above 0",
        ),
        (
            "save_total_limit: 0",
            "save_total_limit: must be at least 1",
        ),
        (
            "max_seconds: 0",
            "max_seconds: must be a finite number above 0",
        ),
        (
            "warmup_steps: -2",
            "warmup_steps: must be a finite number, at least 0",
        ),
        (
            "val_size: 2.5",
            "val_size: must be a share below 1 or a whole number",
        ),
        ("threads: 0", "threads: must be at least 1"),
    ] {
        let error = contradiction(yaml);
        assert_eq!(error.kind(), ErrorKind::Config);
        assert!(error.to_string().starts_with(message), "{error}");
    }
    let mut config = config("model_name_or_path: m").unwrap();
    config.learning_rate = f64::NAN;
    assert!(
        config
            .validate()
            .unwrap_err()
            .to_string()
            .contains("found NaN")
    );
}

#[test]
fn contradictions_are_refused_with_the_way_out() {
    for (yaml, key, way_out) in [
        ("eval_strategy: steps", "eval_strategy", "eval_dataset_name"),
        ("eval_on_start: true", "eval_on_start", "val_size"),
        (
            "early_stopping_patience: 2",
            "early_stopping_patience",
            "set eval_strategy",
        ),
        (
            "load_best_model_at_end: true",
            "load_best_model_at_end",
            "set eval_strategy",
        ),
        ("save_strategy: best", "save_strategy", "set eval_strategy"),
        (
            "early_stopping_threshold: 0.1",
            "early_stopping_threshold",
            "set both",
        ),
        (
            "packing: true\nmax_length: null",
            "packing",
            "set max_length",
        ),
        (
            "val_size: 0.1\neval_dataset_name: e.jsonl",
            "val_size",
            "remove one",
        ),
        (
            "greater_is_better: true",
            "greater_is_better",
            "remove the key",
        ),
        (
            "val_size: 0.1\neval_strategy: epoch\nmetric_for_best_model: eval_loss\ngreater_is_better: true",
            "greater_is_better",
            "remove the key",
        ),
        ("bf16: true\nfp16: true", "bf16, fp16", "choose one"),
        (
            "stop: [{rule: target, metric: eval_loss, at_most: 1}]",
            "stop[0]",
            "set eval_strategy",
        ),
        (
            "stop: [{rule: budget, max_steps: 3}, {rule: overfit}]",
            "stop[1]",
            "set eval_strategy",
        ),
        (
            "lr_scheduler_type: cosine_with_min_lr",
            "lr_scheduler_kwargs.min_lr",
            "min_lr_rate",
        ),
        (
            "val_size: 0.1\neval_strategy: epoch\nmetric_for_best_model: zeal\nload_best_model_at_end: true",
            "greater_is_better",
            "which way",
        ),
    ] {
        let text = contradiction(yaml).to_string();
        assert!(
            text.starts_with(key) && text.contains(way_out),
            "{yaml}: {text}"
        );
    }
    let missing = config("dataset_name: d.jsonl")
        .unwrap()
        .validate()
        .unwrap_err();
    assert!(
        missing
            .to_string()
            .starts_with("model_name_or_path: missing"),
        "{missing}"
    );
}

#[test]
fn evaluation_sets_come_from_every_door_with_their_names() {
    let named = EvalDatasets::Named(vec![
        ("math".into(), "a.jsonl".into()),
        ("code".into(), "b.jsonl".into()),
    ]);
    let flow = "{math: a.jsonl, code: b.jsonl}";
    let json = r#"{"eval_dataset_name": {"math": "a.jsonl", "code": "b.jsonl"}}"#;
    let yaml = config("eval_dataset_name:\n  math: a.jsonl\n  code: b.jsonl\n").unwrap();
    assert_eq!(yaml.eval_dataset_name, Some(named));
    let mut doors = [(); 3].map(|()| Config::default());
    doors[0].merge_json(json).unwrap();
    doors[1].set("eval_dataset_name", flow).unwrap();
    doors[2].set("eval_dataset_name.math", "a.jsonl").unwrap();
    doors[2].set("eval_dataset_name.code", "b.jsonl").unwrap();
    for door in &doors {
        assert_eq!(*door, yaml);
    }
    // And out again.
    let mut again = Config::default();
    again.merge_json(&yaml.to_json()).unwrap();
    assert_eq!(again, yaml);

    let mut one = yaml;
    one.set("eval_dataset_name", "folder/e.jsonl").unwrap();
    assert_eq!(one.eval_dataset_name, Some("folder/e.jsonl".into()));
    one.set("eval_dataset_name", "null").unwrap();
    assert_eq!(one, Config::default());
}

#[test]
fn evaluation_sets_that_cannot_be_told_apart_or_read_are_refused() {
    for (sets, start) in [
        ("{}", "eval_dataset_name: names no set"),
        ("{my-set: a}", "eval_dataset_name.my-set: the name of a set"),
        ("{2nd: a}", "eval_dataset_name.2nd: the name of a set"),
        ("{'': a}", "eval_dataset_name.: the name of a set"),
        ("{größe: a}", "eval_dataset_name.größe: the name of a set"),
        ("{eval: a}", "eval_dataset_name.eval: "),
        ("{eval_math: a}", "eval_dataset_name.eval_math: "),
        (
            "{math: a, Math: b}",
            "eval_dataset_name.Math: clashes with the set math",
        ),
    ] {
        let error = contradiction(&format!("eval_dataset_name: {sets}"));
        assert_eq!(error.kind(), ErrorKind::Config);
        assert!(error.to_string().starts_with(start), "{sets}: {error}");
    }
    for (sets, named) in [
        ("{math: 3}", "eval_dataset_name.math: expected text"),
        ("[a, b]", "eval_dataset_name: expected a path, or a mapping"),
        ("7", "eval_dataset_name: expected a path, or a mapping"),
        ("{math: a, math: b}", "duplicate mapping key `math`"),
    ] {
        let error = config(&format!("eval_dataset_name: {sets}")).unwrap_err();
        let text = format!("{error:#}");
        assert!(text.contains(named), "{sets}: {text}");
    }
    let mut config = Config::default();
    let twice = r#"{"eval_dataset_name": {"math": "a", "math": "b"}}"#;
    let error = config.merge_json(twice).unwrap_err();
    assert!(error.to_string().contains("`math` stands twice"), "{error}");
    let error = config.set("eval_dataset_name", "{math: a").unwrap_err();
    assert!(error.to_string().contains("a mapping of names"), "{error}");
}

#[test]
fn a_metric_of_an_evaluation_set_is_checked_against_the_sets() {
    let sets = "eval_dataset_name: {math: a.jsonl, code: b.jsonl}\n";
    let evaluated = format!("{sets}eval_strategy: steps\n");
    for (yaml, start) in [
        (
            "metric_for_best_model: eval_maht_loss",
            "metric_for_best_model: `eval_maht_loss` is of no evaluation set; did you mean `math`?",
        ),
        (
            "metric_for_best_model: eval_code_loss\ngreater_is_better: true",
            "greater_is_better: true contradicts the metric eval_code_loss, which should fall",
        ),
        (
            "metric_for_best_model: code_perplexity\ngreater_is_better: true",
            "greater_is_better: true contradicts",
        ),
        (
            "metric_for_best_model: eval_math_mean_token_accuracy\ngreater_is_better: false",
            "greater_is_better: false contradicts",
        ),
        (
            "early_stopping_patience: 1\nmetric_for_best_model: code_loss\ngreater_is_better: true",
            "greater_is_better: true contradicts",
        ),
        (
            "stop: [{rule: plateau, metric: eval_math_loss, patience: 1, greater_is_better: true}]",
            "stop[0].greater_is_better: ",
        ),
        (
            "stop: [{rule: target, metric: eval_math_loss, at_least: 1}]",
            "stop[0].at_least: eval_math_loss is better the other way",
        ),
        (
            "stop: [{rule: target, metric: eval_cod_loss, at_most: 1}]",
            "stop[0].metric: `eval_cod_loss` is of no evaluation set; did you mean `code`?",
        ),
    ] {
        let text = contradiction(&format!("{evaluated}{yaml}")).to_string();
        assert!(text.starts_with(start), "{yaml}: {text}");
    }
    // Numbers of a set wait for evaluations.
    for (yaml, start) in [
        (
            "metric_for_best_model: code_loss",
            "metric_for_best_model: needs evaluations",
        ),
        (
            "metric_for_best_model: perplexity",
            "metric_for_best_model: needs evaluations",
        ),
        (
            "stop: [{rule: target, metric: eval_math_loss, at_most: 1}]",
            "stop[0]: needs evaluations",
        ),
    ] {
        let text = contradiction(&format!("{sets}{yaml}")).to_string();
        assert!(text.starts_with(start), "{yaml}: {text}");
    }
    // What a host means by a name of its own is for the host to say.
    for yaml in [
        "metric_for_best_model: eval_code_loss\ngreater_is_better: false",
        "metric_for_best_model: eval_math_perplexity",
        "metric_for_best_model: neg_log_loss\ngreater_is_better: true",
        "metric_for_best_model: error_rate\ngreater_is_better: false",
        "stop: [{rule: plateau, metric: code_loss, patience: 2}]",
    ] {
        let base = "model_name_or_path: m\ndataset_name: d.jsonl\n";
        let config = config(&format!("{base}{evaluated}{yaml}")).unwrap();
        config.validate().unwrap();
    }
}

#[test]
fn a_direction_that_contradicts_the_metric_is_an_error_at_every_door() {
    for (metric, said) in [
        ("loss", true),
        ("eval_loss", true),
        ("train_loss", true),
        ("perplexity", true),
        ("eval_perplexity", true),
        ("grad_norm", true),
        ("mean_token_accuracy", false),
        ("eval_token_accuracy", false),
    ] {
        let keys = format!("metric_for_best_model: {metric}\ngreater_is_better: {said}\n");
        let text = contradiction(&format!("val_size: 0.1\neval_strategy: epoch\n{keys}"));
        let text = text.to_string();
        assert!(
            text.starts_with("greater_is_better: ") && text.contains("contradicts"),
            "{metric}: {text}"
        );
        // A file of rules has the same keys.
        let keys = format!("early_stopping_patience: 1\n{keys}");
        let text = StopConfig::from_text(&keys).unwrap_err().to_string();
        assert!(text.starts_with("greater_is_better: "), "{metric}: {text}");
        if metric != "loss" {
            let rule = format!(
                "[{{rule: plateau, metric: {metric}, patience: 1, greater_is_better: {said}}}]"
            );
            let text = StopConfig::from_text(&rule).unwrap_err().to_string();
            assert!(text.starts_with("stop[0].greater_is_better: "), "{text}");
        }
    }
}

#[test]
fn a_sound_configuration_passes() {
    for yaml in [
        "",
        "dataset_name: folder\neval_strategy: steps",
        "dataset_name: d.jsonl\nval_size: 50\neval_strategy: epoch\nsave_strategy: best",
        "dataset_name: d.jsonl\neval_dataset_name: e.jsonl\neval_strategy: steps\n\
         early_stopping_patience: 3\nearly_stopping_threshold: 0.01\nload_best_model_at_end: true",
        "max_steps: 5\nnum_train_epochs: 0",
        "bf16: false\nfp16: false\nresume_from_checkpoint: false",
    ] {
        config(&format!("model_name_or_path: m\n{yaml}"))
            .unwrap()
            .validate()
            .unwrap();
    }
}

#[test]
fn stop_rules_come_from_every_door() {
    let yaml = config("stop:\n  - {rule: target, metric: train_loss, at_most: 1.5}\n").unwrap();
    let mut set = Config::default();
    set.set("stop", "[{rule: target, metric: train_loss, at_most: 1.5}]")
        .unwrap();
    assert_eq!(yaml, set);
    assert_eq!(yaml.stop.rules.len(), 1);
    set.set("stop", "null").unwrap();
    assert_eq!(set, Config::default());
}

#[test]
fn a_wrong_stop_rule_names_its_path_and_line() {
    let error =
        config("seed: 1\nstop: [{rule: target, metric: eval_loss, at_mots: 1}]").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::UnknownKey);
    let text = error.to_string();
    assert!(
        text.starts_with("run.yaml:2: stop[0]") && text.contains("`at_mots`"),
        "{text}"
    );
    let mut config = Config::default();
    let error = config
        .set("stop", "[{rule: plateau, patience: few}]")
        .unwrap_err();
    assert!(error.to_string().starts_with("stop[0].patience"), "{error}");
}

#[test]
fn early_stopping_keys_become_a_rule_after_the_others() {
    let config = config(
        "stop: [{rule: budget, max_steps: 3}]\nearly_stopping_patience: 4\nearly_stopping_threshold: 0.5",
    )
    .unwrap();
    let rules = config.stop_rules().unwrap().rules;
    assert_eq!(rules.len(), 2);
    let sft::stop::Rule::Plateau(rule) = &rules[1] else {
        panic!("{rules:?}")
    };
    assert_eq!(
        (rule.patience, rule.min_delta),
        (4, sft::stop::MinDelta::Absolute(0.5))
    );
    assert_eq!(rule.reference, sft::stop::Reference::Hf);
}

#[test]
fn the_budget_is_steps_or_epochs() {
    let epochs = config("num_train_epochs: 2\nmax_seconds: 60")
        .unwrap()
        .budget();
    assert_eq!((epochs.max_steps, epochs.max_epochs), (None, Some(2.0)));
    assert_eq!(epochs.max_seconds, Some(60.0));
    let steps = config("max_steps: 7").unwrap().budget();
    assert_eq!((steps.max_steps, steps.max_epochs), (Some(7), None));
}
