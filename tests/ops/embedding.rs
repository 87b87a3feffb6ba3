use crate::harness::*;
use crate::precision::*;

/// (tokens, vocabulary, hidden): more tokens than vocabulary, so that ids repeat.
const SHAPES: [(usize, usize, usize); 7] = [
    (0, 7, 5),
    (1, 1, 1),
    (1, 7, 80),
    (31, 7, 63),
    (65, 13, 65),
    (129, 101, 129),
    (40, 7, 644),
];

struct Case {
    /// Of the table.
    format: DType,
    hidden: usize,
    table: Vec<f32>,
    ids: Vec<i32>,
    dout: Vec<f32>,
    dtable: Vec<f32>,
}

fn case((tokens, vocab, hidden): (usize, usize, usize)) -> Case {
    Case {
        format: F32,
        hidden,
        table: normals(1, vocab * hidden),
        ids: integers(2, tokens, vocab),
        dout: normals(3, tokens * hidden),
        dtable: normals(4, vocab * hidden),
    }
}

/// out and dtable.
fn run<B: Device>(backend: B, case: &Case) -> (Vec<f32>, Vec<f32>) {
    let mut memory = Memory::new(backend);
    let table = memory.put_as(&case.table, case.format);
    let ids = memory.put_indices(&case.ids);
    let (out, dout) = (memory.garbage(case.dout.len()), memory.put(&case.dout));
    let dtable = memory.put(&case.dtable);
    memory
        .backend
        .embedding_forward(table, ids, out, case.hidden);
    memory
        .backend
        .embedding_backward(dout, ids, dtable, case.hidden);
    (memory.get(out), memory.get(dtable))
}

fn reference(table: &[f64], ids: &[i32], hidden: usize) -> Vec<f64> {
    let mut out = Vec::new();
    for &id in ids {
        out.extend_from_slice(&table[id as usize * hidden..][..hidden]);
    }
    out
}

/// A table in half precision is widened, which is exact.
fn forward_copies_rows<B: Device>() {
    for (format, shape) in every_format_of(SHAPES) {
        let mut case = case(shape);
        case.format = format;
        case.table = rounded(format, &case.table);
        let (out, _) = run(B::with_threads(2), &case);
        let expected = reference(&wide(&case.table), &case.ids, case.hidden);
        assert_within("out", &out, &expected, |_| 0.0);
    }
}

fn backward_adds_the_finite_differences<B: Device>() {
    for shape in SHAPES {
        let case = case(shape);
        let (_, dtable) = run(B::with_threads(2), &case);
        let hidden = case.hidden;
        // A sum over the tokens with this id, and what stood there.
        let tolerance = |i: usize| {
            let tokens = (0..case.ids.len()).filter(|&t| case.ids[t] as usize == i / hidden);
            let added = tokens.map(|t| f64::from(case.dout[t * hidden + i % hidden]).abs());
            let (n, terms) = added.fold((1, 0.0), |(n, sum), g| (n + 1, sum + g));
            sum_roundings(n) * U * (f64::from(case.dtable[i]).abs() + terms)
        };
        assert_gradient(
            "dtable",
            F32,
            &dtable,
            &case.dtable,
            &case.table,
            |table| weigh(&case.dout, &reference(table, &case.ids, hidden)),
            tolerance,
        );
    }
}

/// As the trait says: the additions of one row happen in the order of the tokens.
fn backward_adds_in_token_order<B: Device>() {
    for shape in [(129, 3, 67), (1100, 13, 68)] {
        let case = case(shape);
        let (_, dtable) = run(B::with_threads(2), &case);
        let mut expected = case.dtable.clone();
        for (t, &id) in case.ids.iter().enumerate() {
            for i in 0..case.hidden {
                expected[id as usize * case.hidden + i] += case.dout[t * case.hidden + i];
            }
        }
        assert_eq!(bits(&dtable), bits(&expected));
    }
}

fn threads_do_not_change_bits<B: Device>() {
    let case = case((257, 31, 131));
    assert_same_bits(|backend: B| {
        let (out, dtable) = run(backend, &case);
        vec![out, dtable]
    });
}

on_every_backend!(
    forward_copies_rows,
    backward_adds_the_finite_differences,
    backward_adds_in_token_order,
    threads_do_not_change_bits,
);
