//! Weight files and atomic folders.

use std::fs;
use std::path::Path;

use sft::dtype::{DType, bf16, f16};
use sft::io::{AtomicFolder, TensorMeta, WeightFiles, write_file, write_safetensors};
use sft::{Error, ErrorKind, Result};
use tempfile::TempDir;

fn meta(name: &str, shape: &[usize]) -> TensorMeta {
    TensorMeta {
        name: name.into(),
        shape: shape.into(),
    }
}

/// Writes tensors whose element `i` of tensor `t` is `value(t, i)`.
fn write(
    dir: &Path,
    tensors: &[TensorMeta],
    dtype: DType,
    shard_bytes: u64,
    value: impl Fn(usize, usize) -> f32,
) {
    let mut folder = AtomicFolder::create(dir).unwrap();
    write_safetensors(
        &mut folder,
        "model",
        tensors,
        dtype,
        shard_bytes,
        |t, start, chunk| {
            chunk
                .iter_mut()
                .enumerate()
                .for_each(|(i, x)| *x = value(t, start + i));
            Ok(())
        },
    )
    .unwrap();
    folder.replace().unwrap();
}

fn read(dir: &Path, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
    let mut out = vec![0.0; shape.iter().product()];
    WeightFiles::open(dir)?.read_f32(name, shape, &mut out)?;
    Ok(out)
}

fn assert_error<T>(result: Result<T>, kind: ErrorKind, parts: &[&str]) {
    let error = result.err().expect("an error");
    assert_eq!(error.kind(), kind, "{error}");
    for part in parts {
        assert!(
            error.to_string().contains(part),
            "{part:?} is not in: {error}"
        );
    }
}

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap();
    let mut names: Vec<_> = entries
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn each_format_reads_back_as_its_own_rounding() {
    let value = |i: usize| (i as f32).sin() * 3.0;
    // Longer than one chunk, and not a multiple of it.
    let shape = [3, 100_003];
    for (dtype, round) in [
        (DType::F32, (|x| x) as fn(f32) -> f32),
        (DType::F16, |x| f16::from_f32(x).to_f32()),
        (DType::BF16, |x| bf16::from_f32(x).to_f32()),
    ] {
        let dir = TempDir::new().unwrap();
        let model = dir.path().join("m");
        let tensors = [meta("w", &shape), meta("empty", &[0]), meta("scalar", &[1])];
        write(&model, &tensors, dtype, u64::MAX, |_, i| value(i));
        let expected: Vec<f32> = (0..shape[0] * shape[1]).map(|i| round(value(i))).collect();
        assert!(read(&model, "w", &shape).unwrap() == expected, "{dtype}");
        let files = WeightFiles::open(&model).unwrap();
        for range in [0..1, 100_002..200_005, 32_767..32_769, 300_009..300_009] {
            let mut part = vec![0.0; range.len()];
            files
                .read_f32_from("w", &shape, range.start, &mut part)
                .unwrap();
            assert!(part == expected[range.clone()], "{dtype} {range:?}");
        }
        let beyond = files.read_f32_from("w", &shape, 300_009, &mut [0.0]);
        assert_error(beyond, ErrorKind::Internal, &["`w`", "300009+1"]);
        assert!(read(&model, "empty", &[0]).unwrap().is_empty());
        assert_eq!(read(&model, "scalar", &[1]).unwrap(), [round(value(0))]);
        assert_eq!(WeightFiles::open(&model).unwrap().dtype("w"), Some(dtype));
    }
}

#[test]
fn the_file_is_one_that_the_reference_crate_reads() {
    let dir = TempDir::new().unwrap();
    let model = dir.path().join("m");
    write(
        &model,
        &[meta("b", &[2]), meta("a", &[2, 3])],
        DType::F32,
        u64::MAX,
        |t, i| (t * 10 + i) as f32,
    );
    let bytes = fs::read(model.join("model.safetensors")).unwrap();
    let (header, metadata) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    assert_eq!(header % 8, 0);
    assert_eq!(metadata.metadata().as_ref().unwrap()["format"], "pt");
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let a = file.tensor("a").unwrap();
    assert_eq!(a.shape(), [2, 3]);
    let last: [u8; 4] = a.data()[20..].try_into().unwrap();
    assert_eq!(f32::from_le_bytes(last), 15.0);
}

#[test]
fn shards_respect_the_limit_and_the_index_finds_every_tensor() {
    let dir = TempDir::new().unwrap();
    let model = dir.path().join("m");
    let tensors = [
        meta("a", &[10]),
        meta("b", &[10]),
        meta("long", &[100]),
        meta("c", &[5]),
        meta("d", &[5]),
    ];
    write(&model, &tensors, DType::F32, 80, |t, i| {
        (t * 1000 + i) as f32
    });
    let expected = [
        "model-00001-of-00003.safetensors",
        "model-00002-of-00003.safetensors",
        "model-00003-of-00003.safetensors",
        "model.safetensors.index.json",
    ];
    assert_eq!(names(&model), expected);
    for (t, tensor) in tensors.iter().enumerate() {
        let values = read(&model, &tensor.name, &tensor.shape).unwrap();
        assert_eq!(values[4], (t * 1000 + 4) as f32);
    }
    let index = fs::read_to_string(model.join(expected[3])).unwrap();
    let index: serde_json::Value = serde_json::from_str(&index).unwrap();
    assert_eq!(index["metadata"]["total_size"], 130 * 4);
    assert_eq!(index["weight_map"]["long"], expected[1]);
}

#[test]
fn missing_shards_tensors_and_files_are_named() {
    let dir = TempDir::new().unwrap();
    let model = dir.path().join("m");
    let tensors = [meta("a", &[10]), meta("b", &[10])];
    write(&model, &tensors, DType::F32, 40, |_, i| i as f32);
    assert_error(
        read(&model, "c", &[10]),
        ErrorKind::Tensor,
        &["`c` is missing", "2 tensors"],
    );
    let index = model.join("model.safetensors.index.json");
    let text = fs::read_to_string(&index).unwrap();

    fs::write(&index, text.replace("\"b\"", "\"x\"")).unwrap();
    assert_error(
        WeightFiles::open(&model),
        ErrorKind::Tensor,
        &["`x` is not in", "00002-of"],
    );
    fs::write(&index, text.replace("model-00002", "../model-00002")).unwrap();
    assert_error(
        WeightFiles::open(&model),
        ErrorKind::Tensor,
        &["weight_map.b", "file name"],
    );
    fs::write(&index, "{}").unwrap();
    assert_error(
        WeightFiles::open(&model),
        ErrorKind::Tensor,
        &["weight_map"],
    );

    fs::write(&index, &text).unwrap();
    let shard = model.join("model-00002-of-00002.safetensors");
    fs::copy(model.join("model-00001-of-00002.safetensors"), &shard).unwrap();
    assert_error(
        WeightFiles::open(&model),
        ErrorKind::Tensor,
        &["`a` is in both"],
    );
    fs::remove_file(&shard).unwrap();
    assert_error(
        WeightFiles::open(&model),
        ErrorKind::Tensor,
        &["00002-of-00002", "`b`"],
    );
    fs::remove_file(&index).unwrap();
    assert_error(
        WeightFiles::open(&model),
        ErrorKind::Tensor,
        &["model.safetensors"],
    );
    fs::write(model.join("pytorch_model.bin"), "").unwrap();
    assert_error(WeightFiles::open(&model), ErrorKind::Tensor, &["pickle"]);
}

#[test]
fn damaged_files_are_named() {
    let dir = TempDir::new().unwrap();
    let model = dir.path().join("m");
    write(&model, &[meta("a", &[10])], DType::F32, u64::MAX, |_, i| {
        i as f32
    });
    let path = model.join("model.safetensors");
    let whole = fs::read(&path).unwrap();
    let open_with = |bytes: &[u8]| {
        fs::write(&path, bytes).unwrap();
        WeightFiles::open(&model)
    };
    let cut = whole.len() - 1;
    assert_error(
        open_with(&whole[..cut]),
        ErrorKind::Tensor,
        &["m/model.safetensors", "truncated"],
    );
    assert_error(open_with(&whole[..20]), ErrorKind::Tensor, &["truncated"]);
    assert_error(open_with(&[]), ErrorKind::Tensor, &["truncated"]);
    assert_error(
        open_with(&[whole.clone(), vec![0]].concat()),
        ErrorKind::Tensor,
        &["trailing"],
    );
    assert_error(
        open_with(&[0xff; 64]),
        ErrorKind::Tensor,
        &["not a safetensors file"],
    );
    let pointer = b"version https://git-lfs.github.com/spec/v1\n";
    assert_error(open_with(pointer), ErrorKind::Tensor, &["git lfs pull"]);
    let mut broken = whole.clone();
    broken[8] = b'!';
    assert_error(
        open_with(&broken),
        ErrorKind::Tensor,
        &["header is malformed"],
    );
}

#[test]
fn wrong_shapes_formats_and_values_are_named() {
    let dir = TempDir::new().unwrap();
    let model = dir.path().join("m");
    let nan_at = 300_000;
    write(
        &model,
        &[meta("a", &[4, 100_000]), meta("b", &[2])],
        DType::F32,
        u64::MAX,
        |t, i| match (t, i) {
            (0, i) if i == nan_at || i == nan_at + 50_000 => f32::NAN,
            (1, 1) => f32::INFINITY,
            _ => 1.0,
        },
    );
    assert_error(
        read(&model, "a", &[100_000, 4]),
        ErrorKind::Tensor,
        &["`a`", "[4, 100000]", "[100000, 4]"],
    );
    assert_error(
        read(&model, "a", &[4, 100_000]),
        ErrorKind::Tensor,
        &["`a`", "NaN", "[3, 0]"],
    );
    assert_error(
        read(&model, "b", &[2]),
        ErrorKind::Tensor,
        &["`b`", "inf", "[1]"],
    );

    let path = model.join("model.safetensors");
    let text = String::from_utf8_lossy(&fs::read(&path).unwrap()[8..100]).into_owned();
    assert!(text.contains("F32"), "{text}");
    let mut bytes = fs::read(&path).unwrap();
    while let Some(at) = bytes.windows(3).position(|w| w == b"F32") {
        bytes[at..at + 3].copy_from_slice(b"I32");
    }
    fs::write(&path, bytes).unwrap();
    assert_error(
        read(&model, "b", &[2]),
        ErrorKind::Tensor,
        &["`b`", "I32", "bfloat16"],
    );
}

#[test]
fn an_abandoned_folder_or_file_leaves_nothing() {
    let dir = TempDir::new().unwrap();
    let mut folder = AtomicFolder::create(dir.path().join("m")).unwrap();
    folder.write("a", b"1").unwrap();
    assert_eq!(names(dir.path()).len(), 1);
    drop(folder);
    let failed = write_file(dir.path().join("f"), |w| {
        w.write(b"half")?;
        Err(Error::new(ErrorKind::Device, "lost"))
    });
    assert_error(failed, ErrorKind::Device, &["lost"]);
    assert_eq!(names(dir.path()), [""; 0]);
}

#[test]
fn replacing_swaps_the_whole_folder_and_merging_keeps_foreign_files() {
    let dir = TempDir::new().unwrap();
    let dest = dir.path().join("deep/m");
    let make = |name: &str| {
        let mut folder = AtomicFolder::create(&dest).unwrap();
        folder.write(name, name.as_bytes()).unwrap();
        folder
    };
    make("one").replace().unwrap();
    make("two").replace().unwrap();
    assert_eq!(names(&dest), ["two"]);
    fs::write(dest.join("notes"), "mine").unwrap();
    make("sub/three").merge(|name| name != "notes").unwrap();
    assert_eq!(names(&dest), ["notes", "sub"]);
    assert_eq!(
        fs::read_to_string(dest.join("sub/three")).unwrap(),
        "sub/three"
    );
    assert_eq!(names(&dir.path().join("deep")), ["m"]);
}

#[test]
fn leftovers_of_dead_writers_go_and_live_ones_stay() {
    let dir = TempDir::new().unwrap();
    let dead = dir.path().join(".m.partial-1-0");
    fs::create_dir(&dead).unwrap();
    let other = dir.path().join(".n.partial-1-0");
    fs::create_dir(&other).unwrap();
    let mut live = AtomicFolder::create(dir.path().join("m")).unwrap();
    assert!(!dead.exists() && other.exists());
    let mut second = AtomicFolder::create(dir.path().join("m")).unwrap();
    live.write("a", b"live").unwrap();
    second.write("a", b"second").unwrap();
    live.replace().unwrap();
    second.replace().unwrap();
    assert_eq!(
        fs::read_to_string(dir.path().join("m/a")).unwrap(),
        "second"
    );
}

#[test]
fn a_file_in_the_place_of_the_folder_is_refused() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("m");
    fs::write(&path, "x").unwrap();
    assert_error(
        AtomicFolder::create(&path),
        ErrorKind::Exists,
        &["m is a file"],
    );
    assert_error(AtomicFolder::create(path.join("n")), ErrorKind::Io, &["m"]);
}
