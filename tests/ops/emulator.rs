//! The emulation itself, by the kernels of `kernels/host/self_test.cu`.

use crate::harness::{bits, normals};
use sft::ErrorKind;
use sft::cuda::{Arg, Driver, Emulated, Launch};
use sft::dtype::{bf16, f16};

/// Bytes that stand for 4 bytes of memory that nobody has written.
const POISON: u32 = u32::MAX;

struct Device(Emulated);

impl Device {
    fn new(seed: u64) -> Self {
        Self(Emulated::new(seed))
    }

    fn put<T: bytemuck::Pod>(&mut self, values: &[T]) -> Arg {
        let address = self.0.allocate(size_of_val(values)).unwrap();
        self.0.write(address, bytemuck::cast_slice(values)).unwrap();
        Arg::Address(address)
    }

    fn get<T: bytemuck::Pod>(&mut self, from: Arg, n: usize) -> Vec<T> {
        let mut values = vec![T::zeroed(); n];
        let to = bytemuck::cast_slice_mut(&mut values);
        self.0.read(from.bits(), to).unwrap();
        values
    }

    fn run(&mut self, kernel: &'static str, launch: Launch, arguments: &[Arg]) {
        self.0.launch(kernel, launch, arguments).unwrap();
    }
}

#[test]
fn warps_exchange_and_blocks_reduce() {
    for seed in 1..6 {
        let mut device = Device::new(seed);
        let out = device.put(&[0u32; 7 * 96]);
        device.run("self_test_warp_operations", Launch::blocks(1, 96), &[out]);
        let out: Vec<u32> = device.get(out, 7 * 96);
        for thread in 0..96u32 {
            let (lane, first) = (thread % 32, thread / 32 * 32);
            let votes = (0..32).filter(|lane| (first + lane) % 3 == 0);
            let expected = [
                first + 5,
                first + (lane ^ 6),
                if lane < 3 { thread } else { thread - 3 },
                if lane < 29 { thread + 3 } else { thread },
                votes.map(|lane| 1 << lane).sum(),
                95 * 96 / 2,
                95,
            ];
            let got: Vec<u32> = (0..7).map(|n| out[n * 96 + thread as usize]).collect();
            assert_eq!(got, expected, "thread {thread}, seed {seed}");
        }
    }
}

/// Every half-precision number, the numbers half-way to the next one, and their neighbours.
fn floats_around(halves: impl Fn(u16) -> f32) -> Vec<f32> {
    let mut floats = Vec::new();
    for pattern in 0..=u16::MAX {
        let (x, next) = (halves(pattern), halves(pattern.wrapping_add(1)));
        let middle = ((f64::from(x) + f64::from(next)) / 2.0) as f32;
        floats.extend([x, middle, middle.next_up(), middle.next_down()]);
    }
    floats.extend([
        65519.996,
        65520.0,
        -65520.0,
        f32::MAX,
        f32::MIN_POSITIVE,
        1e-45,
    ]);
    floats
}

fn formats(kernel: &'static str, floats: &[f32]) -> (Vec<u16>, Vec<f32>) {
    let mut device = Device::new(1);
    let n = floats.len();
    let (x, out, back) = (
        device.put(floats),
        device.put(&vec![0u16; n]),
        device.put(&vec![0f32; n]),
    );
    let launch = Launch::blocks(n.div_ceil(256), 128);
    device.run(kernel, launch, &[x, out, back, Arg::U64(n as u64)]);
    (device.get(out, n), device.get(back, n))
}

#[test]
fn bf16_rounds_as_the_host() {
    let floats = floats_around(|pattern| bf16::from_bits(pattern).to_f32());
    let (out, back) = formats("self_test_formats_bf16", &floats);
    for (i, &x) in floats.iter().enumerate() {
        let (got, host) = (bf16::from_bits(out[i]), bf16::from_f32(x));
        assert!(
            got.to_bits() == host.to_bits() || (got.is_nan() && host.is_nan()),
            "{x:e} became {got:e}, expected {host:e}"
        );
        assert_eq!(back[i].to_bits(), got.to_f32().to_bits(), "{x:e}");
    }
}

#[test]
fn f16_rounds_as_the_host() {
    let floats = floats_around(|pattern| f16::from_bits(pattern).to_f32());
    let (out, back) = formats("self_test_formats_f16", &floats);
    for (i, &x) in floats.iter().enumerate() {
        let (got, host) = (f16::from_bits(out[i]), f16::from_f32(x));
        assert!(
            got.to_bits() == host.to_bits() || (got.is_nan() && host.is_nan()),
            "{x:e} became {got:e}, expected {host:e}"
        );
        let same = back[i].to_bits() == got.to_f32().to_bits();
        assert!(same || got.is_nan() && back[i].is_nan(), "{x:e}");
    }
}

#[test]
fn mma_multiplies_what_ldmatrix_loads() {
    let (a, b, d) = (normals(1, 256), normals(2, 128), normals(3, 128));
    for (kernel, transposed, half) in [
        ("self_test_product_bf16", false, false),
        ("self_test_product_transposed_bf16", true, false),
        ("self_test_product_f16", false, true),
        ("self_test_product_transposed_f16", true, true),
    ] {
        let round = |x: f32| match half {
            true => f16::from_f32(x).to_f32(),
            false => bf16::from_f32(x).to_f32(),
        };
        let encode = |values: &[f32]| -> Vec<u16> {
            let encode = |&x: &f32| match half {
                true => f16::from_f32(x).to_bits(),
                false => bf16::from_f32(x).to_bits(),
            };
            values.iter().map(encode).collect()
        };
        let mut expected = d.clone();
        for (row, column) in (0..16).flat_map(|row| (0..8).map(move |column| (row, column))) {
            for k in 0..16 {
                let b = if transposed {
                    b[k * 8 + column]
                } else {
                    b[column * 16 + k]
                };
                expected[row * 8 + column] += round(a[row * 16 + k]) * round(b);
            }
        }
        for seed in 1..4 {
            let mut device = Device::new(seed);
            let (a, b) = (device.put(&encode(&a)), device.put(&encode(&b)));
            let d = device.put(&d);
            device.run(kernel, Launch::blocks(1, 32).shared(768), &[a, b, d]);
            assert_eq!(bits(&device.get(d, 128)), bits(&expected), "{kernel}");
        }
    }
}

#[test]
fn copies_arrive_with_the_wait_that_covers_them() {
    let x: Vec<f32> = (0..384).map(|i| i as f32).collect();
    for (kernel, covered) in [
        ("self_test_copies_complete", 3),
        ("self_test_copies_pending", 1),
    ] {
        let mut device = Device::new(1);
        let (from, to) = (device.put(&x), device.put(&[0f32; 384]));
        device.run(kernel, Launch::blocks(1, 32).shared(1536), &[from, to]);
        let expected = |i: usize| match (i / 128 < covered, i % 128 / 4) {
            (false, _) => POISON,
            (true, 7) => 0,
            (true, _) => x[i].to_bits(),
        };
        let expected: Vec<u32> = (0..384).map(expected).collect();
        assert_eq!(bits(&device.get(to, 384)), expected, "{kernel}");
    }
}

fn reversed(kernel: &'static str, n: usize, seed: u64) -> Vec<u32> {
    let mut device = Device::new(seed);
    let x = device.put(&normals(1, n));
    let launch = Launch::blocks(1, n as u32).shared(4 * n);
    device.run(kernel, launch, &[x]);
    bits(&device.get(x, n))
}

#[test]
fn a_missing_barrier_shows_in_the_bits() {
    for (correct, racing, n) in [
        ("self_test_reverse", "self_test_reverse_racing", 256),
        (
            "self_test_reverse_lanes",
            "self_test_reverse_lanes_racing",
            64,
        ),
    ] {
        let expected = reversed(correct, n, 1);
        assert!(!expected.contains(&POISON));
        for seed in 2..9 {
            assert_eq!(
                reversed(correct, n, seed),
                expected,
                "{correct}, seed {seed}"
            );
        }
        assert_ne!(reversed(racing, n, 1), reversed(racing, n, 2), "{racing}");
        for seed in 1..9 {
            let got = reversed(racing, n, seed);
            assert!(got.contains(&POISON), "{racing}, seed {seed}");
        }
    }
}

#[test]
fn mistakes_are_errors_that_name_the_place() {
    let mistakes = [
        "of its warp is at shuffle_xor",
        "thread 32: waits at sync_threads for thread 0, which has returned",
        "thread 0: is at shuffle while thread 3 of its warp is at its end",
        "wrote beyond the 256 bytes of dynamic shared memory",
        "wrote beyond 16 bytes of static shared memory",
        "ldmatrix_x4 from",
        "ldmatrix_x4 of 16 bytes",
        "load16 from",
        "cp_async16 from",
        "of its warp is at shuffle_down",
        "thread 0: waits at sync_threads for thread 32, which has returned",
    ];
    for seed in 1..5 {
        let mut device = Device::new(seed);
        let x = device.put(&[0f32; 64]);
        let mut run = |which: usize| {
            let launch = Launch::blocks(3, 64).shared(256);
            device
                .0
                .launch("self_test_mistake", launch, &[Arg::U32(which as u32), x])
        };
        for (which, expected) in mistakes.iter().enumerate() {
            let error = run(which).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Device);
            let text = error.to_string();
            assert!(
                text.contains(expected),
                "mistake {which}, seed {seed}: {text}"
            );
            assert!(
                text.contains("kernel self_test_mistake, block (0, 0, 0)"),
                "{text}"
            );
        }
        // None of them is left behind for the next launch.
        run(mistakes.len()).unwrap();
    }
}

#[test]
fn warp_operations_need_a_whole_warp() {
    let mut device = Device::new(1);
    let out = device.put(&[0u32; 7 * 96]);
    let error = device
        .0
        .launch("self_test_warp_operations", Launch::blocks(1, 40), &[out])
        .unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains("thread 32: shuffle in a warp of 8 threads"),
        "{text}"
    );
}

#[test]
fn a_grid_has_three_dimensions_and_each_block_runs_once() {
    for grid in [[3, 4, 5], [1, 1, 1], [200, 1, 3]] {
        let mut device = Device::new(3);
        let n = 32 * grid.iter().product::<u32>() as usize;
        let out = device.put(&vec![0u32; n]);
        let launch = Launch {
            grid,
            threads: 32,
            shared_bytes: 0,
        };
        let arguments = [out, Arg::F32(2.0), Arg::U64(5 << 32)];
        device.run("self_test_grid", launch, &arguments);
        let expected: Vec<u32> = (7..n as u32 + 7).collect();
        assert!(device.get::<u32>(out, n) == expected, "{grid:?}");
    }
}

#[test]
fn launches_that_do_not_fit_the_kernel_are_refused() {
    let mut device = Device::new(1);
    let x = device.put(&[0f32; 256]);
    let block = Launch::blocks(1, 32);
    for (kernel, launch, arguments, expected) in [
        (
            "no_such_kernel",
            block,
            vec![],
            "there is no kernel named no_such_kernel",
        ),
        (
            "self_test_reverse",
            block,
            vec![x, x],
            "takes 1 parameters, was given 2",
        ),
        (
            "self_test_mistake",
            block,
            vec![Arg::F32(0.0), x],
            "parameter 0 is a u32, was given F32",
        ),
        (
            "self_test_mistake",
            block,
            vec![Arg::U32(0), Arg::U64(0)],
            "parameter 1 is a pointer",
        ),
        (
            "self_test_reverse",
            Launch::blocks(1, 257),
            vec![x],
            "257 threads in a block, at most 256",
        ),
        (
            "self_test_reverse",
            block.shared(100 << 10),
            vec![x],
            "102400 bytes of dynamic",
        ),
    ] {
        let error = device.0.launch(kernel, launch, &arguments).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Internal);
        assert!(error.to_string().contains(expected), "{error}");
    }
}

#[test]
fn addresses_outside_the_memory_are_refused() {
    let mut device = Device::new(1);
    let Arg::Address(x) = device.put(&[0f32; 256]) else {
        unreachable!()
    };
    assert_eq!(x % 256, 0);
    assert!(device.0.write(x + 1020, &[0; 4]).is_ok());
    assert!(device.0.fill32(x - 256, 0, 1).is_err());
    device.0.free(x);
    assert!(device.0.write(x, &[0; 4]).is_err());
}
