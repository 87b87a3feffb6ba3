use crate::harness::*;
use crate::precision::*;
use sft::ops::LinearShape;

/// (rows, inputs, outputs): odd ones, and each of them beyond the tiles and panels of any backend.
const SHAPES: [(usize, usize, usize); 10] = [
    (0, 5, 3),
    (1, 1, 1),
    (1, 80, 7),
    (13, 7, 11),
    (64, 63, 65),
    (129, 33, 80),
    (2, 576, 130),
    (300, 5, 7),
    (3, 1030, 5),
    (2, 7, 300),
];

struct Case {
    /// Of x, weight, dy and dx, and of y without a residual.
    format: DType,
    shape: LinearShape,
    x: Vec<f32>,
    weight: Vec<f32>,
    bias: Vec<f32>,
    residual: Vec<f32>,
    dy: Vec<f32>,
    dweight: Vec<f32>,
    dbias: Vec<f32>,
}

struct Gradients {
    dx: Vec<f32>,
    dweight: Vec<f32>,
    dbias: Vec<f32>,
}

fn case(format: DType, (rows, inputs, outputs): (usize, usize, usize)) -> Case {
    Case {
        format,
        shape: LinearShape {
            rows,
            inputs,
            outputs,
        },
        x: normals_in(format, 1, rows * inputs),
        weight: normals_in(format, 2, outputs * inputs),
        bias: normals(3, outputs),
        residual: normals(4, rows * outputs),
        dy: normals_in(format, 5, rows * outputs),
        dweight: normals(6, outputs * inputs),
        dbias: normals(7, outputs),
    }
}

impl Case {
    /// With a residual y is the residual stream, which is float32.
    fn format_of_y(&self, residual: bool) -> DType {
        if residual { F32 } else { self.format }
    }
}

fn forward<B: Device>(backend: B, case: &Case, bias: bool, residual: bool) -> Vec<f32> {
    let mut memory = Memory::new(backend);
    let [x, weight] = [&case.x, &case.weight].map(|x| memory.put_as(x, case.format));
    let bias = bias.then(|| memory.put(&case.bias));
    let residual = residual.then(|| memory.put(&case.residual));
    let y = memory.garbage_as(case.dy.len(), case.format_of_y(residual.is_some()));
    memory
        .backend
        .linear_forward(case.shape, x, weight, bias, residual, y);
    memory.get(y)
}

fn backward<B: Device>(backend: B, case: &Case, bias: bool) -> Gradients {
    let mut memory = Memory::new(backend);
    let [x, weight] = [&case.x, &case.weight].map(|x| memory.put_as(x, case.format));
    let dy = memory.put_as(&case.dy, case.format);
    let dx = memory.garbage_as(case.x.len(), case.format);
    let (dweight, dbias) = (memory.put(&case.dweight), memory.put(&case.dbias));
    memory
        .backend
        .linear_backward_input(case.shape, dy, weight, dx);
    memory
        .backend
        .linear_backward_weight(case.shape, dy, x, dweight, bias.then_some(dbias));
    Gradients {
        dx: memory.get(dx),
        dweight: memory.get(dweight),
        dbias: memory.get(dbias),
    }
}

fn reference(shape: LinearShape, x: &[f64], weight: &[f64], bias: &[f64]) -> Vec<f64> {
    let mut y = Vec::new();
    for t in 0..shape.rows {
        for o in 0..shape.outputs {
            let mut sum = bias[o];
            for i in 0..shape.inputs {
                sum += x[t * shape.inputs + i] * weight[o * shape.inputs + i];
            }
            y.push(sum);
        }
    }
    y
}

fn absolute(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&x| f64::from(x).abs()).collect()
}

fn forward_agrees_with_the_reference<B: Device>() {
    for (format, shape) in every_format_of(SHAPES) {
        let case = case(format, shape);
        let shape = case.shape;
        for (with_bias, with_residual) in
            [(false, false), (true, false), (false, true), (true, true)]
        {
            let y = forward(B::with_threads(2), &case, with_bias, with_residual);
            let zeros = vec![0.0; shape.outputs];
            let choose = |bias: Vec<f64>| if with_bias { bias } else { zeros.clone() };
            let bias = choose(wide(&case.bias));
            let mut expected = reference(shape, &wide(&case.x), &wide(&case.weight), &bias);
            // Σ|terms|: the same product of absolute values. One rounding a product.
            let (x, weight) = (absolute(&case.x), absolute(&case.weight));
            let mut terms = reference(shape, &x, &weight, &choose(absolute(&case.bias)));
            if with_residual {
                for (i, &r) in case.residual.iter().enumerate() {
                    expected[i] += f64::from(r);
                    terms[i] += f64::from(r).abs();
                }
            }
            let roundings = sum_roundings(shape.inputs + 2) + 1.0;
            let stored = case.format_of_y(with_residual);
            assert_stored("y", stored, &y, &expected, |i| roundings * U * terms[i]);
        }
    }
}

fn backward_agrees_with_finite_differences<B: Device>() {
    for (format, shape) in every_format_of(SHAPES) {
        let case = case(format, shape);
        let LinearShape {
            rows,
            inputs,
            outputs,
        } = case.shape;
        let Gradients { dx, dweight, dbias } = backward(B::with_threads(2), &case, true);
        let (x, weight, bias) = (wide(&case.x), wide(&case.weight), wide(&case.bias));
        let dy = absolute(&case.dy);
        let loss = |x: &[f64], weight: &[f64], bias: &[f64]| {
            weigh(&case.dy, &reference(case.shape, x, weight, bias))
        };

        let terms = |i: usize| -> f64 {
            let (t, i) = (i / inputs, i % inputs);
            (0..outputs)
                .map(|o| dy[t * outputs + o] * weight[o * inputs + i].abs())
                .sum()
        };
        let roundings = sum_roundings(outputs) + 1.0;
        assert_gradient(
            "dx",
            format,
            &dx,
            &vec![0.0; dx.len()],
            &case.x,
            |x| loss(x, &weight, &bias),
            |i| roundings * U * terms(i),
        );

        let terms = |n: usize| -> f64 {
            let (o, i) = (n / inputs, n % inputs);
            let sum: f64 = (0..rows)
                .map(|t| dy[t * outputs + o] * x[t * inputs + i].abs())
                .sum();
            f64::from(case.dweight[n]).abs() + sum
        };
        let roundings = sum_roundings(rows + 1) + 1.0;
        assert_gradient(
            "dweight",
            F32,
            &dweight,
            &case.dweight,
            &case.weight,
            |weight| loss(&x, weight, &bias),
            |i| roundings * U * terms(i),
        );

        let terms = |o: usize| -> f64 {
            let sum: f64 = (0..rows).map(|t| dy[t * outputs + o]).sum();
            f64::from(case.dbias[o]).abs() + sum
        };
        assert_gradient(
            "dbias",
            F32,
            &dbias,
            &case.dbias,
            &case.bias,
            |bias| loss(&x, &weight, bias),
            |i| roundings * U * terms(i),
        );
    }
}

/// A product rounds once, with the bias; what is added to rounds again.
fn half_precision_errs_at_most_twice_as_the_plain_one<B: Device>() {
    for (format, shape) in HALVES.into_iter().zip([(64, 63, 65), (129, 33, 80)]) {
        let case = case(format, shape);
        let (backend, shape) = (|| B::with_threads(2), case.shape);
        let (y, sum) = (
            forward(backend(), &case, true, false),
            forward(backend(), &case, true, true),
        );
        let Gradients { dx, dweight, dbias } = backward(backend(), &case, true);
        let got = [
            ("y", format, &y[..]),
            ("y with residual", F32, &sum),
            ("dx", format, &dx),
            ("dweight", F32, &dweight),
            ("dbias", F32, &dbias),
        ];
        let (x, weight, dy) = (wide(&case.x), wide(&case.weight), wide(&case.dy));
        let transposed = |values: &[f64], columns: usize| -> Vec<f64> {
            let column = |c| values.iter().skip(c).step_by(columns).copied();
            (0..columns).flat_map(column).collect()
        };
        let LinearShape {
            rows,
            inputs,
            outputs,
        } = shape;
        assert_twice_plain(format, got, |round| {
            let rounded = |values: Vec<f64>| values.into_iter().map(round).collect::<Vec<f64>>();
            let product = |rows, inputs, outputs, a: &[f64], b: &[f64], bias: &[f64]| {
                let shape = LinearShape {
                    rows,
                    inputs,
                    outputs,
                };
                rounded(reference(shape, a, b, bias))
            };
            let add = |start: &[f32], change: &[f64]| {
                let sums = wide(start).into_iter().zip(change);
                sums.map(|(a, b)| round(round(a) + b)).collect::<Vec<f64>>()
            };
            let none = vec![0.0; inputs];
            let bias = rounded(wide(&case.bias));
            let y = product(rows, inputs, outputs, &x, &weight, &bias);
            let dx = product(
                rows,
                outputs,
                inputs,
                &dy,
                &transposed(&weight, inputs),
                &none,
            );
            let (dy_t, x_t) = (transposed(&dy, outputs), transposed(&x, inputs));
            let dweight = product(outputs, rows, inputs, &dy_t, &x_t, &none);
            let dbias: Vec<f64> = dy_t.chunks(rows).map(|dy| round(dy.iter().sum())).collect();
            let with_residual = add(&case.residual, &y);
            [
                y,
                with_residual,
                dx,
                add(&case.dweight, &dweight),
                add(&case.dbias, &dbias),
            ]
        });
    }
}

fn without_a_bias_its_gradient_is_left_alone<B: Device>() {
    for format in FORMATS {
        let case = case(format, (13, 7, 11));
        assert_eq!(backward(B::with_threads(2), &case, false).dbias, case.dbias);
    }
}

/// Sizes above those from which matrix products are cut for threads.
fn threads_do_not_change_bits<B: Device>() {
    for (format, shape) in every_format_of([(257, 131, 193), (1, 300, 500), (700, 64, 3)]) {
        let case = case(format, shape);
        assert_same_bits(|backend: B| vec![forward(backend, &case, true, true)]);
        assert_same_bits(|backend: B| vec![forward(backend, &case, false, false)]);
        assert_same_bits(|backend: B| {
            let Gradients { dx, dweight, dbias } = backward(backend, &case, true);
            vec![dx, dweight, dbias]
        });
    }
}

on_every_backend!(
    forward_agrees_with_the_reference,
    backward_agrees_with_finite_differences,
    half_precision_errs_at_most_twice_as_the_plain_one,
    without_a_bias_its_gradient_is_left_alone,
    threads_do_not_change_bits,
);
