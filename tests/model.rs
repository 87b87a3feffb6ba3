//! Reading, saving and making model folders.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};
use sft::data::{ChatTemplate, Tokenizer};
use sft::dtype::DType;
use sft::io::{AtomicFolder, TensorMeta, WeightFiles, write_safetensors};
use sft::model::families::{FAMILIES, read_json_object};
use sft::model::{
    GenerationDefaults, InitOptions, ModelSpec, Overrides, ParamTable, SaveOptions, init_model,
    load_weights, save_model_folder,
};
use sft::{ErrorKind, Result};
use tempfile::TempDir;

const FIXTURES: [&str; 6] = [
    "llama-tiny",
    "llama-tiny-untied",
    "llama3-tiny",
    "qwen2-tiny",
    "qwen3-tiny",
    "mistral-tiny",
];

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures/models")
        .join(name)
}

fn llama() -> Map<String, Value> {
    object(json!({
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": 64,
        "intermediate_size": 176,
        "model_type": "llama",
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "num_key_value_heads": 2,
        "vocab_size": 300,
    }))
}

fn object(value: Value) -> Map<String, Value> {
    value.as_object().unwrap().clone()
}

/// The plain Llama with `changes` put in.
fn spec_with(changes: Value) -> Result<ModelSpec> {
    let mut config = llama();
    config.extend(object(changes));
    ModelSpec::from_json("config.json", config)
}

fn family(model_type: &str, architecture: &str, changes: Value) -> Result<ModelSpec> {
    let mut config = llama();
    config.extend(object(
        json!({ "model_type": model_type, "architectures": [architecture] }),
    ));
    config.extend(object(changes));
    ModelSpec::from_json("config.json", config)
}

fn qwen2(changes: Value) -> Result<ModelSpec> {
    family("qwen2", "Qwen2ForCausalLM", changes)
}

fn assert_error<T: std::fmt::Debug>(result: Result<T>, kind: ErrorKind, parts: &[&str]) {
    let error = result.unwrap_err();
    assert_eq!(error.kind(), kind, "{error}");
    for part in parts {
        assert!(
            error.to_string().contains(part),
            "{part:?} is not in: {error}"
        );
    }
}

#[test]
fn both_config_styles_describe_the_same_model() {
    for name in FIXTURES {
        let v5 = ModelSpec::from_dir(fixture(name)).unwrap();
        let v4 = read_json_object(&fixture(name).join("config.v4.json")).unwrap();
        assert_eq!(
            ModelSpec::from_json("config.v4.json", v4).unwrap(),
            v5,
            "{name}"
        );
    }
}

#[test]
fn families_read_their_own_options() {
    let spec = |name| ModelSpec::from_dir(fixture(name)).unwrap();
    assert!(spec("llama-tiny").tie_word_embeddings);
    assert!(!spec("llama-tiny-untied").tie_word_embeddings);
    let qwen2 = spec("qwen2-tiny");
    assert!(qwen2.qkv_bias && !qwen2.o_bias && !qwen2.qk_norm);
    let qwen3 = spec("qwen3-tiny");
    assert!(!qwen3.qkv_bias && qwen3.qk_norm);
    assert_eq!(
        (qwen3.head_dim, qwen3.q_size(), qwen3.hidden_size),
        (32, 128, 64)
    );
    assert_eq!(spec("mistral-tiny").sliding_window, Some(64));
    let biased = spec_with(json!({ "attention_bias": true, "mlp_bias": true })).unwrap();
    assert!(biased.qkv_bias && biased.o_bias && biased.mlp_bias);
}

#[test]
fn tensor_names_and_shapes_are_those_of_the_files() {
    for name in FIXTURES {
        let table = ParamTable::new(&ModelSpec::from_dir(fixture(name)).unwrap());
        let files = WeightFiles::open(fixture(name)).unwrap();
        let in_file: BTreeSet<_> = files
            .names()
            .map(|n| (n.to_owned(), files.shape(n).unwrap().to_vec()))
            .collect();
        let in_table: BTreeSet<_> = table
            .params
            .iter()
            .map(|p| (p.name.clone(), p.shape.clone()))
            .collect();
        assert_eq!(in_table, in_file, "{name}");
        assert_eq!(
            in_table.len(),
            table.params.len(),
            "{name}: a name occurs twice"
        );
    }
}

#[test]
fn decay_spares_norms_and_biases_only() {
    let qwen2 = ParamTable::new(&ModelSpec::from_dir(fixture("qwen2-tiny")).unwrap());
    let qwen3 = ParamTable::new(&ModelSpec::from_dir(fixture("qwen3-tiny")).unwrap());
    let spared: BTreeSet<_> = (qwen2.params.iter().chain(&qwen3.params))
        .filter(|p| !p.decay)
        .map(|p| {
            p.name
                .trim_start_matches("model.layers.")
                .trim_start_matches(['0', '1', '.'])
        })
        .collect();
    let expected = [
        "input_layernorm.weight",
        "model.norm.weight",
        "post_attention_layernorm.weight",
        "self_attn.k_norm.weight",
        "self_attn.k_proj.bias",
        "self_attn.q_norm.weight",
        "self_attn.q_proj.bias",
        "self_attn.v_proj.bias",
    ];
    assert_eq!(spared, expected.into());
}

/// Bit patterns that transformers 5.23 computes with PyTorch 2.15 on a CPU.
#[test]
fn inverse_frequencies_equal_the_peers_bit_for_bit() {
    let bits =
        |spec: ModelSpec| -> Vec<u32> { spec.rope.inv_freq.iter().map(|x| x.to_bits()).collect() };
    let plain = spec_with(json!({ "hidden_size": 32 })).unwrap();
    assert_eq!(
        bits(plain),
        [0x3f800000, 0x3dcccccd, 0x3c23d70a, 0x3a83126f]
    );

    let scaling = json!({ "rope_type": "linear", "factor": 3.0 });
    let linear = spec_with(json!({ "rope_theta": 10000, "rope_scaling": scaling })).unwrap();
    let expected = [
        0x3eaaaaab, 0x3dd7e0cf, 0x3d088889, 0x3c2cb3d9, 0x3b5a740d, 0x3a8a297b, 0x39aec33f,
        0x38dd0f2b,
    ];
    assert_eq!(bits(linear), expected);

    let tiny = ModelSpec::from_dir(fixture("llama3-tiny")).unwrap();
    let expected = [
        0x3f800000, 0x3e43b6aa, 0x3b9a08c8, 0x3a6ef74f, 0x39395d21, 0x380fc8f8, 0x36df10c4,
        0x35ad07a7,
    ];
    assert_eq!(bits(tiny), expected);

    let llama32 = spec_with(json!({
        "hidden_size": 2048,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 500000.0,
            "factor": 32.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
    }));
    let expected = [
        0x3f800000, 0x3f29e1c6, 0x3ee177bc, 0x3e959ee3, 0x3e4693b0, 0x3e03c6a0, 0x3daee4ad,
        0x3d681e67, 0x3d1a08c8, 0x3ccc6f49, 0x3c87a9c3, 0x3c340d6d, 0x3beef74f, 0x3b9e9402,
        0x3b527720, 0x3aa9279b, 0x39e13620, 0x38cb98f7, 0x37a3418d, 0x3758ac81, 0x370fc8f8,
        0x36bed4f4, 0x367d45c3, 0x3628126b, 0x35df10c4, 0x359406cb, 0x35447610, 0x35025f34,
        0x34ad07a7, 0x3465a54d, 0x341864a7, 0x33ca41b0,
    ];
    assert_eq!(bits(llama32.unwrap()), expected);

    let qwen = spec_with(json!({
        "hidden_size": 896,
        "num_attention_heads": 14,
        "rope_theta": 1000000.0,
    }));
    let expected = [
        0x3f800000, 0x3f263de0, 0x3ed7e89b, 0x3e8c3504, 0x3e361887, 0x3dec7fd6, 0x3d99940d,
        0x3d47763f, 0x3d0186e3, 0x3ca8398b, 0x3c5a7bf2, 0x3c0de12d, 0x3bb8449c, 0x3b6f520e,
        0x3b1b690d, 0x3ac9d75c, 0x3a83126f, 0x3a2a3b44, 0x39dd1725, 0x398f9272, 0x393a7753,
        0x38f22ce2, 0x389d43a4, 0x384c3fbe, 0x3804a2b2, 0x37ac431d, 0x375fba4f, 0x371148e3,
        0x36bcb0c1, 0x36751070, 0x361f23e4, 0x35ceaf79,
    ];
    assert_eq!(bits(qwen.unwrap()), expected);
}

#[test]
fn absent_keys_have_the_familys_defaults() {
    let absent = ["num_key_value_heads", "head_dim"];
    let read = |model_type: &str, architecture: &str| {
        let mut config = llama();
        config.extend(object(json!({
            "model_type": model_type,
            "architectures": [architecture],
            "num_attention_heads": 32,
            "hidden_size": 512,
        })));
        absent.iter().for_each(|key| drop(config.remove(*key)));
        ModelSpec::from_json("config.json", config).unwrap()
    };
    let llama = read("llama", "LlamaForCausalLM");
    assert_eq!((llama.num_kv_heads, llama.head_dim), (32, 16));
    assert_eq!(
        (llama.max_position_embeddings, llama.rms_norm_eps),
        (2048, 1e-6)
    );
    assert!(!llama.tie_word_embeddings);
    let mistral = read("mistral", "MistralForCausalLM");
    assert_eq!(
        (mistral.num_kv_heads, mistral.sliding_window),
        (8, Some(4096))
    );
    assert_eq!(read("qwen2", "Qwen2ForCausalLM").sliding_window, None);
    assert_eq!(read("qwen3", "Qwen3ForCausalLM").head_dim, 128);
}

#[test]
fn a_sliding_window_is_uniform_or_refused() {
    let window = |extra: Value| {
        let mut config = object(json!({ "use_sliding_window": true, "sliding_window": 32 }));
        config.extend(object(extra));
        qwen2(Value::Object(config))
    };
    let on = window(json!({ "max_window_layers": 0 })).unwrap();
    assert_eq!(on.sliding_window, Some(32));
    let beyond = window(json!({ "max_window_layers": 2 })).unwrap();
    assert_eq!(beyond.sliding_window, None);
    assert_error(
        window(json!({ "max_window_layers": 1 })),
        ErrorKind::UnsupportedModel,
        &["max_window_layers", "1"],
    );
    let sliding = "sliding_attention";
    let listed = window(json!({ "layer_types": [sliding, sliding] })).unwrap();
    assert_eq!(listed.sliding_window, Some(32));
    assert_error(
        window(json!({ "layer_types": [sliding, "full_attention"] })),
        ErrorKind::UnsupportedModel,
        &["layer_types"],
    );
    assert_error(
        window(json!({ "layer_types": [sliding] })),
        ErrorKind::Model,
        &["layer_types", "2 strings"],
    );
    assert_error(
        qwen2(json!({ "layer_types": [sliding, sliding] })),
        ErrorKind::Model,
        &["use_sliding_window"],
    );
    let off = family(
        "mistral",
        "MistralForCausalLM",
        json!({ "sliding_window": null }),
    );
    assert_eq!(off.unwrap().sliding_window, None);
}

#[test]
fn unsupported_options_are_refused_by_name() {
    let cases = [
        (
            json!({ "model_type": "gpt2" }),
            &["gpt2", "llama, mistral, qwen2, qwen3"][..],
        ),
        (
            json!({ "architectures": ["LlamaForSequenceClassification"] }),
            &[
                "architectures",
                "LlamaForSequenceClassification",
                "LlamaForCausalLM",
            ],
        ),
        (
            json!({ "hidden_act": "gelu" }),
            &["hidden_act", "gelu", "silu"],
        ),
        (
            json!({ "quantization_config": { "bits": 4 } }),
            &["quantization_config", "bits"],
        ),
        (
            json!({ "attention_dropout": 0.1 }),
            &["attention_dropout", "0.1"],
        ),
        (
            json!({ "rope_scaling": { "type": "yarn", "factor": 4.0 } }),
            &["rope_scaling.type", "yarn", "llama3"],
        ),
        (
            json!({ "rope_parameters": { "rope_type": "dynamic", "factor": 2.0 } }),
            &["rope_parameters.rope_type", "dynamic"],
        ),
        (
            json!({ "partial_rotary_factor": 0.5 }),
            &["partial_rotary_factor", "0.5"],
        ),
        (
            json!({ "rope_parameters": { "full_attention": { "rope_type": "default" } } }),
            &["rope_parameters.full_attention"],
        ),
    ];
    for (changes, parts) in cases {
        assert_error(spec_with(changes), ErrorKind::UnsupportedModel, parts);
    }
}

#[test]
fn broken_values_are_named_with_their_key() {
    let cases = [
        (
            json!({ "vocab_size": "many" }),
            &["vocab_size", "many", "positive integer"][..],
        ),
        (
            json!({ "num_hidden_layers": 0 }),
            &["num_hidden_layers", "0"],
        ),
        (
            json!({ "num_key_value_heads": 3 }),
            &["num_key_value_heads", "3", "divisor", "4"],
        ),
        (json!({ "head_dim": 15 }), &["head_dim", "15", "even"]),
        (
            json!({ "hidden_size": 66 }),
            &["hidden_size", "66", "head_dim"],
        ),
        (
            json!({ "rms_norm_eps": 0 }),
            &["rms_norm_eps", "0", "positive"],
        ),
        (json!({ "rope_theta": -1 }), &["rope_theta", "-1"]),
        (
            json!({ "tie_word_embeddings": "yes" }),
            &["tie_word_embeddings", "yes"],
        ),
        (
            json!({ "rope_scaling": { "rope_type": "linear" } }),
            &["rope_scaling.factor"],
        ),
        (json!({ "rope_scaling": [1] }), &["rope_scaling", "[1]"]),
        (
            json!({ "hidden_size": 1u64 << 52 }),
            &["more than any model"],
        ),
        (
            json!({ "rope_scaling": { "rope_type": "llama3", "factor": 8, "low_freq_factor": 4,
                "high_freq_factor": 4 } }),
            &["rope_scaling.high_freq_factor", "low_freq_factor"],
        ),
    ];
    for (changes, parts) in cases {
        assert_error(spec_with(changes), ErrorKind::Model, parts);
    }
}

#[test]
fn a_missing_key_is_named_with_its_misspelling() {
    let mut config = llama();
    config.remove("hidden_size");
    let missing = ModelSpec::from_json("a/config.json", config.clone());
    assert_error(
        missing,
        ErrorKind::Model,
        &["a/config.json", "`hidden_size` is missing"],
    );
    config.insert("hiden_size".into(), 64.into());
    let misspelt = ModelSpec::from_json("a/config.json", config);
    assert_error(
        misspelt,
        ErrorKind::Model,
        &["`hidden_size`", "`hiden_size`"],
    );
    for key in [
        "model_type",
        "vocab_size",
        "num_attention_heads",
        "intermediate_size",
    ] {
        let mut config = llama();
        config.remove(key);
        assert_error(ModelSpec::from_json("c", config), ErrorKind::Model, &[key]);
    }
}

#[test]
fn a_folder_without_a_readable_config_is_named() {
    let dir = TempDir::new().unwrap();
    let missing = ModelSpec::from_dir(dir.path().join("Qwen/Qwen3-0.6B"));
    assert_error(missing, ErrorKind::Model, &["Qwen3-0.6B", "not downloaded"]);
    assert_error(
        ModelSpec::from_dir(dir.path()),
        ErrorKind::Model,
        &["config.json"],
    );
    fs::write(dir.path().join("config.json"), "{\n  \"a\": }").unwrap();
    assert_error(
        ModelSpec::from_dir(dir.path()),
        ErrorKind::Model,
        &["config.json", "line 2"],
    );
    fs::write(dir.path().join("config.json"), "[]").unwrap();
    assert_error(
        ModelSpec::from_dir(dir.path()),
        ErrorKind::Model,
        &["object"],
    );
}

#[test]
fn special_ids_come_from_generation_config_first() {
    let dir = TempDir::new().unwrap();
    let write = |name: &str, value: Value| {
        fs::write(dir.path().join(name), value.to_string()).unwrap();
    };
    let read = || GenerationDefaults::from_dir(dir.path());
    write("config.json", json!({ "model_type": "llama" }));
    let defaults = read().unwrap();
    assert_eq!(
        (defaults.bos_token_id, defaults.eos_token_ids),
        (Some(1), vec![2])
    );
    write(
        "config.json",
        json!({ "model_type": "llama", "bos_token_id": null, "eos_token_id": 7 }),
    );
    let own = read().unwrap();
    assert_eq!((own.bos_token_id, own.eos_token_ids), (None, vec![7]));
    write(
        "generation_config.json",
        json!({ "eos_token_id": [5, 6], "pad_token_id": 5 }),
    );
    let listed = read().unwrap();
    assert_eq!(
        (listed.eos_token_ids, listed.pad_token_id),
        (vec![5, 6], Some(5))
    );
    write("generation_config.json", json!({ "eos_token_id": "</s>" }));
    assert_error(
        read(),
        ErrorKind::Model,
        &["generation_config.json", "eos_token_id", "</s>"],
    );
}

fn load(dir: &Path) -> (ModelSpec, ParamTable, Vec<f32>) {
    let spec = ModelSpec::from_dir(dir).unwrap();
    let table = ParamTable::new(&spec);
    let mut weights = vec![f32::NAN; table.len];
    let extra = load_weights(dir, &table, &mut weights).unwrap();
    assert!(extra.is_empty(), "{extra:?}");
    (spec, table, weights)
}

/// Saves `weights` in float32.
fn save(dest: &Path, source: &Path, weights: &[f32]) -> Result<()> {
    let spec = ModelSpec::from_dir(source).unwrap();
    let table = ParamTable::new(&spec);
    save_model_folder(
        dest,
        source,
        &spec,
        &table,
        &SaveOptions::default(),
        |param, start, chunk| {
            chunk.copy_from_slice(&weights[param.offset + start..][..chunk.len()]);
            Ok(())
        },
    )
}

fn names(dir: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(dir).unwrap();
    entries
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect()
}

#[test]
fn every_fixture_loads_whole_and_its_gaps_are_zero() {
    for name in FIXTURES {
        let (_, table, mut weights) = load(&fixture(name));
        assert!(weights.iter().all(|x| x.is_finite()), "{name}");
        for param in &table.params {
            let tensor = &mut weights[param.offset..][..param.len()];
            assert!(
                tensor.iter().any(|&x| x != 0.0) || param.name.ends_with("bias"),
                "{name}"
            );
            tensor.fill(0.0);
        }
        assert!(weights.iter().all(|&x| x == 0.0), "{name}");
    }
}

#[test]
fn tensors_that_the_model_does_not_use_are_reported_and_missing_ones_refused() {
    let dir = TempDir::new().unwrap();
    let dest = dir.path().join("model");
    let write = |names: &[String], spec: &ModelSpec| {
        let shapes: std::collections::HashMap<_, _> = ParamTable::new(spec)
            .params
            .into_iter()
            .map(|p| (p.name, p.shape))
            .collect();
        let tensors: Vec<_> = names
            .iter()
            .map(|name| TensorMeta {
                name: name.clone(),
                shape: shapes.get(name).cloned().unwrap_or(vec![2]),
            })
            .collect();
        let mut folder = AtomicFolder::create(&dest).unwrap();
        write_safetensors(
            &mut folder,
            "model",
            &tensors,
            DType::BF16,
            u64::MAX,
            |_, _, chunk| {
                chunk.fill(1.0);
                Ok(())
            },
        )
        .unwrap();
        folder.replace().unwrap();
    };
    let spec = spec_with(json!({ "tie_word_embeddings": true })).unwrap();
    let table = ParamTable::new(&spec);
    let mut weights = vec![0.0; table.len];
    let mut names: Vec<_> = table.params.iter().map(|p| p.name.clone()).collect();
    let extra = [
        "lm_head.weight",
        "model.layers.0.self_attn.rotary_emb.inv_freq",
    ];
    names.extend(extra.map(str::to_owned));
    write(&names, &spec);
    assert_eq!(load_weights(&dest, &table, &mut weights).unwrap(), extra);
    names.retain(|n| n != "model.layers.1.mlp.up_proj.weight");
    write(&names, &spec);
    let missing = load_weights(&dest, &table, &mut weights);
    assert_error(
        missing,
        ErrorKind::Tensor,
        &["model.layers.1.mlp.up_proj.weight", "missing"],
    );
}

#[test]
fn a_saved_folder_loads_bit_equal_and_holds_what_the_source_held() {
    let dir = TempDir::new().unwrap();
    for name in FIXTURES {
        let (spec, _, mut weights) = load(&fixture(name));
        // Values that no half format holds.
        weights
            .iter_mut()
            .enumerate()
            .for_each(|(i, x)| *x += 1e-7 * i as f32);
        let dest = dir.path().join(name);
        save(&dest, &fixture(name), &weights).unwrap();
        let (saved_spec, table, saved) = load(&dest);
        assert_eq!(saved_spec, spec, "{name}");
        for param in &table.params {
            let range = param.offset..param.offset + param.len();
            assert_eq!(
                saved[range.clone()],
                weights[range],
                "{name}: {}",
                param.name
            );
        }
        let mut expected = names(&fixture(name));
        expected.retain(|n| n != "config.v4.json" && !n.starts_with("model"));
        expected.insert("model.safetensors".into());
        assert_eq!(names(&dest), expected, "{name}");
        let config = read_json_object(&dest.join("config.json")).unwrap();
        assert_eq!(config["dtype"], "float32", "{name}");
    }
}

#[test]
fn the_saved_dtype_stands_under_the_key_that_the_source_uses() {
    let dir = TempDir::new().unwrap();
    let (source, dest) = (dir.path().join("v4"), dir.path().join("saved"));
    fs::create_dir(&source).unwrap();
    fs::copy(
        fixture("llama-tiny").join("config.v4.json"),
        source.join("config.json"),
    )
    .unwrap();
    let spec = ModelSpec::from_dir(&source).unwrap();
    let table = ParamTable::new(&spec);
    let ones = |_: &sft::model::Param, _: usize, chunk: &mut [f32]| {
        chunk.fill(1.0);
        Ok(())
    };
    save_model_folder(&dest, &source, &spec, &table, &DType::F16.into(), ones).unwrap();
    let config = read_json_object(&dest.join("config.json")).unwrap();
    assert_eq!(config["torch_dtype"], "float16");
    assert!(!config.contains_key("dtype"));
    let files = WeightFiles::open(&dest).unwrap();
    assert_eq!(files.dtype("model.norm.weight"), Some(DType::F16));
}

#[test]
fn overrides_take_the_place_of_whatever_says_otherwise() {
    let dir = TempDir::new().unwrap();
    let (source, dest) = (dir.path().join("source"), dir.path().join("saved"));
    let (_, _, weights) = load(&fixture("llama-tiny"));
    save(&source, &fixture("llama-tiny"), &weights).unwrap();
    let write = |name: &str, value: Value| {
        fs::write(source.join(name), value.to_string()).unwrap();
    };
    write(
        "tokenizer_config.json",
        json!({"eos_token": {"content": "<|im_end|>"}, "pad_token": "<|endoftext|>",
            "chat_template": [{"name": "default", "template": "old"}]}),
    );
    write(
        "special_tokens_map.json",
        json!({"eos_token": "<|im_end|>"}),
    );
    write(
        "generation_config.json",
        json!({"eos_token_id": [2, 1], "top_k": 5}),
    );
    write("chat_template.json", json!({"chat_template": "old"}));
    fs::create_dir(source.join("additional_chat_templates")).unwrap();
    fs::write(source.join("additional_chat_templates/rag.jinja"), "old").unwrap();

    let templates = [("default", "new"), ("tool_use", "new with tools")];
    let options = SaveOptions {
        overrides: Overrides {
            eos_token: Some(("<|im_start|>".into(), 1)),
            chat_templates: templates.map(|(k, v)| (k.into(), v.into())).into(),
        },
        ..SaveOptions::default()
    };
    let save_with = |options: &SaveOptions| {
        let (spec, table, weights) = load(&source);
        save_model_folder(
            &dest,
            &source,
            &spec,
            &table,
            options,
            |param, start, chunk| {
                chunk.copy_from_slice(&weights[param.offset + start..][..chunk.len()]);
                Ok(())
            },
        )
    };
    save_with(&options).unwrap();
    let read = |name: &str| Value::Object(read_json_object(&dest.join(name)).unwrap());
    let tokenizer = json!({"eos_token": "<|im_start|>", "pad_token": "<|endoftext|>"});
    assert_eq!(read("tokenizer_config.json"), tokenizer);
    assert_eq!(
        read("special_tokens_map.json"),
        json!({"eos_token": "<|im_start|>"})
    );
    assert_eq!(read("config.json")["eos_token_id"], 1);
    assert_eq!(
        read("generation_config.json"),
        json!({"eos_token_id": [1, 2], "top_k": 5})
    );
    assert!(!dest.join("chat_template.json").exists());
    let additional = names(&dest.join("additional_chat_templates"));
    assert_eq!(additional, BTreeSet::from(["tool_use.jinja".to_owned()]));
    let opened = Tokenizer::open(&dest).unwrap();
    assert_eq!(opened.eos_token(), Some("<|im_start|>"));
    let template = ChatTemplate::of(&opened).unwrap().unwrap();
    assert_eq!(template.sources(), &options.overrides.chat_templates);

    // Alone, config.json says where generation ends.
    fs::remove_file(source.join("generation_config.json")).unwrap();
    save_with(&options).unwrap();
    assert_eq!(read("config.json")["eos_token_id"], json!([1, 2]));
    let ids = GenerationDefaults::from_dir(&dest).unwrap().eos_token_ids;
    assert_eq!(ids, [1, 2]);

    let mut outside = options.clone();
    let name = "../../escaped".to_owned();
    outside.overrides.chat_templates.insert(name, "x".into());
    assert_error(save_with(&outside), ErrorKind::Template, &["../../escaped"]);
}

#[test]
fn saving_over_a_model_keeps_foreign_files_and_drops_old_shards() {
    let dir = TempDir::new().unwrap();
    let source = fixture("llama-tiny-untied");
    let dest = dir.path().join("out");
    let (spec, table, weights) = load(&source);
    save_model_folder(
        &dest,
        &source,
        &spec,
        &table,
        &SaveOptions {
            max_shard_bytes: 300_000,
            ..SaveOptions::default()
        },
        |p, i, chunk| {
            chunk.copy_from_slice(&weights[p.offset + i..][..chunk.len()]);
            Ok(())
        },
    )
    .unwrap();
    assert!(names(&dest).contains("model.safetensors.index.json"));
    let (_, _, sharded) = load(&dest);
    assert_eq!(sharded, weights);

    fs::write(dest.join("train_log.jsonl"), "{}\n").unwrap();
    fs::create_dir(dest.join("checkpoint-10")).unwrap();
    save(&dest, &source, &vec![0.5; table.len]).unwrap();
    let after = names(&dest);
    assert!(
        after.contains("train_log.jsonl") && after.contains("checkpoint-10"),
        "{after:?}"
    );
    assert!(
        !after
            .iter()
            .any(|n| n.starts_with("model-") || n.ends_with("index.json"))
    );
    assert!(!after.iter().any(|n| n.contains("partial")), "{after:?}");
    assert_eq!(load(&dest).2[table.norm.offset], 0.5);
    // Into its own source.
    save(&dest, &dest, &vec![0.25; table.len]).unwrap();
    assert_eq!(load(&dest).2[table.norm.offset], 0.25);
    assert_eq!(names(dir.path()), BTreeSet::from(["out".to_owned()]));
}

#[test]
fn a_failing_source_of_weights_leaves_the_earlier_model() {
    let dir = TempDir::new().unwrap();
    let dest = dir.path().join("out");
    let source = fixture("llama-tiny");
    let (spec, table, weights) = load(&source);
    save(&dest, &source, &weights).unwrap();
    let failed = save_model_folder(
        &dest,
        &source,
        &spec,
        &table,
        &SaveOptions::default(),
        |param, _, chunk| {
            chunk.fill(0.0);
            match param.name.as_str() {
                "model.norm.weight" => Err(sft::Error::new(ErrorKind::Device, "device lost")),
                _ => Ok(()),
            }
        },
    );
    assert_error(failed, ErrorKind::Device, &["device lost", "out"]);
    assert_eq!(load(&dest).2, weights);
    assert_eq!(names(dir.path()), BTreeSet::from(["out".to_owned()]));
}

#[test]
fn values_beyond_float16_are_refused() {
    let dir = TempDir::new().unwrap();
    let source = fixture("llama-tiny");
    let (spec, table, _) = load(&source);
    let dest = dir.path().join("out");
    let failed = save_model_folder(
        &dest,
        &source,
        &spec,
        &table,
        &DType::F16.into(),
        |param, _, chunk| {
            chunk.fill(1.0);
            if param.name == "model.norm.weight" {
                chunk[3] = 70_000.0;
            }
            Ok(())
        },
    );
    assert_error(
        failed,
        ErrorKind::Tensor,
        &["model.norm.weight", "70000", "[3]", "float16"],
    );
    assert!(!dest.exists());
}

#[test]
fn a_model_is_not_saved_under_another_models_config() {
    let dir = TempDir::new().unwrap();
    let (_, table, weights) = load(&fixture("llama-tiny"));
    let spec = ModelSpec::from_dir(fixture("llama3-tiny")).unwrap();
    let source = fixture("llama-tiny");
    let dest = dir.path().join("out");
    let failed = save_model_folder(
        &dest,
        source,
        &spec,
        &table,
        &SaveOptions::default(),
        |p, i, chunk| {
            chunk.copy_from_slice(&weights[p.offset + i..][..chunk.len()]);
            Ok(())
        },
    );
    assert_error(failed, ErrorKind::Model, &["another model"]);
}

fn small(model_type: &str) -> InitOptions {
    InitOptions {
        model_type: model_type.into(),
        vocab_size: 320,
        hidden_size: 32,
        intermediate_size: 48,
        num_hidden_layers: 1,
        head_dim: (model_type == "qwen3").then_some(16),
        sliding_window: (model_type == "mistral").then_some(8),
        ..InitOptions::preset("tiny").unwrap()
    }
}

fn corpus(dir: &Path, content: &str) -> PathBuf {
    let path = dir.join("corpus.jsonl");
    fs::write(&path, content).unwrap();
    path
}

#[test]
fn a_new_model_of_each_family_loads_and_has_the_initial_moments() {
    let dir = TempDir::new().unwrap();
    for family in FAMILIES {
        let dest = dir.path().join(family.model_type);
        init_model(&dest, &small(family.model_type)).unwrap();
        let (spec, table, weights) = load(&dest);
        assert_eq!(spec.model_type, family.model_type);
        assert_eq!(
            spec.sliding_window,
            (family.model_type == "mistral").then_some(8)
        );
        let of = |slot: sft::model::Slot| &weights[slot.offset..][..slot.len];
        assert!(of(table.norm).iter().all(|&x| x == 1.0));
        if let Some(bias) = table.layers[0].qkv_bias {
            assert!(of(bias).iter().all(|&x| x == 0.0));
        }
        let embedding = of(table.embed_tokens);
        let n = embedding.len() as f32;
        let mean = embedding.iter().sum::<f32>() / n;
        let std = (embedding.iter().map(|x| x * x).sum::<f32>() / n).sqrt();
        assert!(
            mean.abs() < 1e-3 && (std - 0.02).abs() < 1e-3,
            "{mean} {std}"
        );
        let ids = GenerationDefaults::from_dir(&dest).unwrap();
        assert_eq!((ids.bos_token_id, ids.eos_token_ids), (Some(0), vec![2]));
    }
}

#[test]
fn a_new_model_is_a_function_of_its_options() {
    let dir = TempDir::new().unwrap();
    let text = "{\"messages\": [{\"role\": \"user\", \"content\": \"the theme then\"}]}\n\n";
    let base = InitOptions {
        corpus: vec![corpus(dir.path(), text)],
        ..small("llama")
    };
    let make = |name: &str, options: InitOptions| {
        let dest = dir.path().join(name);
        init_model(&dest, &options).unwrap();
        ["model.safetensors", "tokenizer.json"].map(|file| fs::read(dest.join(file)).unwrap())
    };
    let first = make("a", base.clone());
    assert_eq!(first, make("b", base.clone()));
    let other_seed = make(
        "c",
        InitOptions {
            seed: 1,
            ..base.clone()
        },
    );
    assert_ne!(first[0], other_seed[0]);
    assert_eq!(first[1], other_seed[1]);
    let no_corpus = make(
        "d",
        InitOptions {
            corpus: vec![],
            ..base
        },
    );
    assert_ne!(first[1], no_corpus[1]);
}

#[test]
fn a_new_tokenizer_knows_its_corpus_and_loses_nothing() {
    let dir = TempDir::new().unwrap();
    let text = "{\"a\": [\"banana banana\", {\"b\": \"banana\"}], \"n\": 3}\n".repeat(5);
    let options = InitOptions {
        corpus: vec![corpus(dir.path(), &text)],
        ..small("llama")
    };
    let dest = dir.path().join("model");
    init_model(&dest, &options).unwrap();
    let tokenizer = tokenizers::Tokenizer::from_file(dest.join("tokenizer.json")).unwrap();
    let encode = |text: &str| tokenizer.encode(text, true).unwrap().get_ids().to_vec();
    assert_eq!(encode("banana").len(), 1);
    assert_eq!(encode("<|im_end|>"), [2]);
    let odd = "naïve 語 \u{1F980}\n\t";
    assert_eq!(tokenizer.decode(&encode(odd), false).unwrap(), odd);
}

#[test]
fn what_cannot_become_a_model_is_refused() {
    let dir = TempDir::new().unwrap();
    let dest = dir.path().join("model");
    let make = |options: InitOptions| init_model(&dest, &options);
    let broken = corpus(dir.path(), "{\"a\": \"b\"}\n{\"a\": \n");
    let with_corpus = |path: PathBuf| InitOptions {
        corpus: vec![path],
        ..small("llama")
    };
    assert_error(
        make(with_corpus(broken)),
        ErrorKind::Data,
        &["corpus.jsonl:2"],
    );
    let absent = with_corpus(dir.path().join("absent.jsonl"));
    assert_error(make(absent), ErrorKind::Data, &["absent.jsonl"]);
    assert_error(make(small("gpt2")), ErrorKind::UnsupportedModel, &["gpt2"]);
    let short = InitOptions {
        vocab_size: 100,
        ..small("llama")
    };
    assert_error(make(short), ErrorKind::Model, &["vocab_size", "100", "259"]);
    let headless = InitOptions {
        num_attention_heads: 0,
        ..small("llama")
    };
    assert_error(make(headless), ErrorKind::Model, &["num_attention_heads"]);
    assert_error(
        InitOptions::preset("huge"),
        ErrorKind::InvalidArgument,
        &["huge", "tiny"],
    );
    assert!(!dest.exists());

    make(small("llama")).unwrap();
    assert_error(
        make(small("llama")),
        ErrorKind::Exists,
        &["already holds a model"],
    );
    make(InitOptions {
        overwrite: true,
        seed: 3,
        ..small("qwen2")
    })
    .unwrap();
    assert_eq!(ModelSpec::from_dir(&dest).unwrap().model_type, "qwen2");
}
