// SwiGLU. With s the logistic function of the gate g:
//
//   forward   act = g s u
//   backward  du  = dact g s
//             dg  = dact u s (1 + g (1 - s))
//
// Bound by memory: a thread takes 16 bytes of each tensor at a time where the width allows it.

#include "common.cuh"

struct Gate {
    float s, silu;
};

// expf, not exp_fast, whose error grows with the gate: the kernel waits for memory anyway.
__device__ __forceinline__ Gate gate_of(float g) {
    float s = divide_fast(1.0f, 1.0f + expf(-g));
    return {s, g * s};
}

// gate_up (rows, 2 width), the gate first -> act (rows, width). Blocks along x share a row, those
// along y the rows.
template <class T>
__device__ void swiglu_forward(const T* gate_up, T* act, u64 rows, u32 width) {
    const bool wide = width % Vec<T>::COUNT == 0;
    const u32 step = gridDim.x * blockDim.x, start = blockIdx.x * blockDim.x + threadIdx.x;
    for (u64 row = blockIdx.y; row < rows; row += gridDim.y) {
        const T* gate = gate_up + row * 2 * width;
        const T* up = gate + width;
        T* out = act + row * width;
        if (wide) {
            for (u32 i = start; i < width / Vec<T>::COUNT; i += step) {
                const u32 column = i * Vec<T>::COUNT;
                const Vec<T> g = load16(gate + column), u = load16(up + column);
                Vec<T> product;
#pragma unroll
                for (u32 k = 0; k < Vec<T>::COUNT; k++) {
                    product.v[k] = from_float<T>(gate_of(to_float(g.v[k])).silu * to_float(u.v[k]));
                }
                store16(out + column, product);
            }
        } else {
            for (u32 i = start; i < width; i += step) {
                out[i] = from_float<T>(gate_of(to_float(gate[i])).silu * to_float(up[i]));
            }
        }
    }
}

struct Gradients {
    float act, dgate, dup;
};

__device__ __forceinline__ Gradients gradients_of(float g, float u, float d) {
    const Gate gate = gate_of(g);
    return {gate.silu * u, d * u * gate.s * (1.0f + g * (1.0f - gate.s)), d * gate.silu};
}

// dact (rows, width) -> dgate_up (rows, 2 width), and act (rows, width) again.
template <class T>
__device__ void swiglu_backward(const T* gate_up, const T* dact, T* dgate_up, T* act, u64 rows,
                                u32 width) {
    const bool wide = width % Vec<T>::COUNT == 0;
    const u32 step = gridDim.x * blockDim.x, start = blockIdx.x * blockDim.x + threadIdx.x;
    for (u64 row = blockIdx.y; row < rows; row += gridDim.y) {
        const T* gate = gate_up + row * 2 * width;
        const T* up = gate + width;
        const T* dout = dact + row * width;
        T* dgate = dgate_up + row * 2 * width;
        T* dup = dgate + width;
        T* out = act + row * width;
        if (wide) {
            for (u32 i = start; i < width / Vec<T>::COUNT; i += step) {
                const u32 column = i * Vec<T>::COUNT;
                const Vec<T> g = load16(gate + column), u = load16(up + column);
                const Vec<T> d = load16(dout + column);
                Vec<T> product, dg, du;
#pragma unroll
                for (u32 k = 0; k < Vec<T>::COUNT; k++) {
                    const Gradients gradients =
                        gradients_of(to_float(g.v[k]), to_float(u.v[k]), to_float(d.v[k]));
                    product.v[k] = from_float<T>(gradients.act);
                    dg.v[k] = from_float<T>(gradients.dgate);
                    du.v[k] = from_float<T>(gradients.dup);
                }
                store16(out + column, product);
                store16(dgate + column, dg);
                store16(dup + column, du);
            }
        } else {
            for (u32 i = start; i < width; i += step) {
                const Gradients gradients =
                    gradients_of(to_float(gate[i]), to_float(up[i]), to_float(dout[i]));
                out[i] = from_float<T>(gradients.act);
                dgate[i] = from_float<T>(gradients.dgate);
                dup[i] = from_float<T>(gradients.dup);
            }
        }
    }
}

#define INSTANTIATE(T, suffix)                                                                     \
    KERNEL(swiglu_forward_##suffix, 256, (swiglu_forward<T>),                                      \
           (const T* gate_up, T* act, u64 rows, u32 width), (gate_up, act, rows, width))           \
    KERNEL(swiglu_backward_##suffix, 256, (swiglu_backward<T>),                                    \
           (const T* gate_up, const T* dact, T* dgate_up, T* act, u64 rows, u32 width),            \
           (gate_up, dact, dgate_up, act, rows, width))
FOR_EACH_TYPE(INSTANTIATE)
