use crate::harness::*;
use crate::precision::*;
use sft::ops::LinearShape;

/// (rows, inputs, outputs).
const SHAPES: [(usize, usize, usize); 7] = [
    (0, 5, 3),
    (1, 1, 1),
    (1, 80, 7),
    (13, 7, 11),
    (64, 63, 65),
    (129, 33, 80),
    (2, 576, 130),
];

struct Case {
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

fn case((rows, inputs, outputs): (usize, usize, usize)) -> Case {
    Case {
        shape: LinearShape {
            rows,
            inputs,
            outputs,
        },
        x: normals(1, rows * inputs),
        weight: normals(2, outputs * inputs),
        bias: normals(3, outputs),
        residual: normals(4, rows * outputs),
        dy: normals(5, rows * outputs),
        dweight: normals(6, outputs * inputs),
        dbias: normals(7, outputs),
    }
}

fn forward<B: Device>(backend: B, case: &Case, bias: bool, residual: bool) -> Vec<f32> {
    let mut memory = Memory::new(backend);
    let (x, weight) = (memory.put(&case.x), memory.put(&case.weight));
    let bias = bias.then(|| memory.put(&case.bias));
    let residual = residual.then(|| memory.put(&case.residual));
    let y = memory.garbage(case.dy.len());
    memory
        .backend
        .linear_forward(case.shape, x, weight, bias, residual, y);
    memory.get(y)
}

fn backward<B: Device>(backend: B, case: &Case, bias: bool) -> Gradients {
    let mut memory = Memory::new(backend);
    let (x, weight) = (memory.put(&case.x), memory.put(&case.weight));
    let (dy, dx) = (memory.put(&case.dy), memory.garbage(case.x.len()));
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
    for shape in SHAPES {
        let case = case(shape);
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
            assert_within("y", &y, &expected, |i| roundings * U * terms[i]);
        }
    }
}

fn backward_agrees_with_finite_differences<B: Device>() {
    for shape in SHAPES {
        let case = case(shape);
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
            F32,
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

fn without_a_bias_its_gradient_is_left_alone<B: Device>() {
    let case = case((13, 7, 11));
    assert_eq!(backward(B::with_threads(2), &case, false).dbias, case.dbias);
}

/// Sizes above those from which matrix products are cut for threads.
fn threads_do_not_change_bits<B: Device>() {
    for shape in [(257, 131, 193), (1, 300, 500), (700, 64, 3)] {
        let case = case(shape);
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
    without_a_bias_its_gradient_is_left_alone,
    threads_do_not_change_bits,
);
