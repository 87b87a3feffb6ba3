//! The CUDA backend behind a session: what `device` and `auto` mean, and whole runs on the kernels
//! compiled for the CPU.

use crate::*;

#[test]
fn a_plan_for_cuda_needs_no_device() {
    let dir = folder();
    let plan_of = |device: &str| plan(&config(dir.path(), json!({"device": device}))).unwrap();
    let named = plan_of("cuda:7");
    let bytes = |name: &str| {
        named
            .segments
            .iter()
            .find(|s| s.name == name)
            .unwrap()
            .bytes
    };
    assert!(bytes("workspace") >= 32 << 20);
    assert!(
        bytes("operands") > 0,
        "bfloat16 is what CUDA trains in when nothing is said"
    );
    if let Err(why) = sft::cuda::available() {
        assert_eq!(plan_of("auto"), plan_of("cpu"), "{why}");
    }
}

#[test]
fn a_plan_for_cuda_names_every_matrix_product_and_who_multiplies() {
    let dir = folder();
    let products_of = |keys: Value| {
        let config = config(dir.path(), keys);
        sft::engine::plan_run(&config, Hooks::default())
            .unwrap()
            .gemm
    };
    // No machine of a test has so many GPUs, so there is no table to read.
    let products = products_of(json!({"device": "cuda:77"}));
    assert_eq!(products.len(), 15);
    for product in &products {
        assert_eq!((product.provider, product.own_microseconds), ("own", None));
        assert!(product.m > 0 && product.n > 0 && product.k > 0);
    }
    assert!(products_of(json!({"device": "cpu"})).is_empty());
    let products = products_of(json!({"device": "cuda:77", "gemm": "cublaslt"}));
    assert!(
        products
            .iter()
            .all(|product| product.provider == "cublaslt")
    );
}

#[test]
fn auto_without_a_device_is_the_cpu_and_one_line_says_why() {
    if sft::cuda::available().is_ok() {
        return;
    }
    let dir = folder();
    let lines = Arc::new(Mutex::new(Vec::new()));
    let seen = lines.clone();
    let hooks = Hooks {
        log: Some(Box::new(move |_, line: &str| {
            seen.lock().unwrap().push(line.to_owned());
        })),
        ..Hooks::default()
    };
    let session = Session::start(config(dir.path(), json!({"device": "auto"})), hooks).unwrap();
    assert!(session.device().starts_with("cpu"), "{}", session.device());
    let lines = lines.lock().unwrap();
    let why: Vec<&String> = lines.iter().filter(|l| l.starts_with("device: ")).collect();
    assert_eq!(why.len(), 1, "{lines:?}");

    let named = config(
        dir.path(),
        json!({"device": "cuda", "overwrite_output_dir": true}),
    );
    let error = Session::start(named, Hooks::default()).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Device);
    assert!(error.to_string().starts_with("device: cuda: "), "{error}");
}

/// Sessions on the CUDA backend with its kernels compiled for the CPU.
#[cfg(feature = "emulate")]
mod emulated {
    use crate::*;

    fn reports(device: &str, keys: &Value) -> Vec<StepReport> {
        let dir = folder();
        let own = json!({"device": device, "max_steps": 3, "max_length": 24, "weight_decay": 0.01,
            "per_device_train_batch_size": 2, "model_name_or_path":
            fixtures().join("models/qwen3-tiny").display().to_string()});
        run(&mut start(config(dir.path(), with(own, keys))))
    }

    /// Half precision by emulation: tests/parity.rs, against recorded runs.
    #[test]
    fn a_float32_run_trains_as_on_the_cpu() {
        let [cpu, cuda] =
            ["cpu", "cuda-emulated"].map(|device| reports(device, &json!({"bf16": false})));
        assert_eq!((cpu.len(), cuda.len()), (3, 3));
        for (a, b) in cpu.iter().zip(&cuda) {
            let (loss, norm) = (a.loss / b.loss - 1.0, a.grad_norm / b.grad_norm - 1.0);
            assert!(loss.abs() < 1e-6 && norm.abs() < 1e-5, "{loss} {norm}");
        }
    }

    #[test]
    fn recompute_and_a_repeated_run_give_the_same_bits() {
        let numbers = |keys: Value| {
            let reports = reports("cuda-emulated", &keys).into_iter();
            reports.map(|r| (r.loss, r.grad_norm)).collect::<Vec<_>>()
        };
        let kept = numbers(json!({"gradient_checkpointing": false}));
        assert_eq!(kept, numbers(json!({"gradient_checkpointing": true})));
        assert_eq!(kept, numbers(json!({"gradient_checkpointing": false})));
    }

    #[test]
    fn the_best_weights_come_back_and_are_saved() {
        let dir = folder();
        let keys = json!({"device": "cuda-emulated", "max_steps": 5, "max_length": 16,
            "learning_rate": 0.3, "lr_scheduler_type": "constant", "eval_strategy": "steps",
            "eval_steps": 1, "load_best_model_at_end": true, "per_device_train_batch_size": 1});
        let mut session = start(config(dir.path(), keys));
        let reports = run(&mut session);
        let losses = reports.iter().map(|r| r.eval.as_ref().unwrap().loss);
        let best = losses.fold(f64::INFINITY, f64::min);
        assert_ne!(
            reports[4].eval.as_ref().unwrap().loss,
            best,
            "this test says nothing"
        );
        assert_eq!(session.evaluate().unwrap().loss, best);
        let saved = dir.path().join("best");
        session.export(&saved, Export::Full).unwrap();
        let mut again = session.config().clone();
        again.model_name_or_path = Some(saved);
        assert_eq!(evaluate_model(&again, Hooks::default()).unwrap().loss, best);
    }

    #[test]
    fn text_is_generated() {
        let dir = folder();
        let greedy = |device: &str| {
            let config = config(dir.path(), json!({"device": device, "bf16": false}));
            let mut generator = Generator::open(&config, 24, Hooks::default()).unwrap();
            let options = SamplingOptions {
                max_new_tokens: 6,
                ..SamplingOptions::default()
            };
            let mut tokens = Vec::new();
            generator
                .generate(&[300, 301, 302], &options, |token| {
                    tokens.push(token);
                    true
                })
                .unwrap();
            tokens
        };
        assert_eq!(greedy("cuda-emulated"), greedy("cpu"));
    }

    #[test]
    fn a_resumed_run_gives_the_same_bits() {
        for format in [json!({"bf16": false}), json!({"bf16": true})] {
            let dir = folder();
            let keys = json!({"device": "cuda-emulated", "max_steps": 3, "max_length": 16,
                "per_device_train_batch_size": 1, "save_strategy": "steps", "save_steps": 1});
            let config = config(dir.path(), with(keys, &format));
            let whole = run(&mut start(config.clone()));
            let mut back = config;
            back.overwrite_output_dir = true;
            let from = dir.path().join("out/checkpoint-2");
            let mut session = Session::resume(back, from, Hooks::default()).unwrap();
            let last = session.step().unwrap().unwrap();
            assert_eq!(
                (last.step, last.loss, last.grad_norm),
                (3, whole[2].loss, whole[2].grad_norm)
            );
        }
    }
}
