// Rotary position embedding in the half-split layout: pair i of a head is (x_i, x_(i + D/2)),
// turned by the angle whose cosine and sine stand in tables:
//
//   forward   x_i' = x_i cos - x_(i + D/2) sin      x_(i + D/2)' = x_(i + D/2) cos + x_i sin
//   backward  the same rotation by minus the angle
//
// Bound by memory. A thread turns the same N pairs of HEADS heads of one token, so that a cosine
// and a sine are read once for HEADS heads; N is what 16 bytes hold where half a head is whole
// pieces of 16 bytes, otherwise 1.

#include "common.cuh"

namespace {

constexpr u32 THREADS = 256;
constexpr u32 HEADS = 4;

} // namespace

// positions (tokens); cos and sin (positions, half) -> x (tokens, row), of which the first
// `rotated_heads` heads of 2 half numbers are turned in place. `direction` is 1 or -1. A token has
// `sets` threads for each N pairs: each takes every sets-th head, HEADS at most.
template <class T, u32 N>
__device__ void rope(const i32* positions, const float* cos, const float* sin, T* x, u32 tokens,
                     u32 rotated_heads, u32 half, u32 row, u32 sets, float direction) {
    const u32 thread = blockIdx.x * THREADS + threadIdx.x;
    const u32 pieces = half / N, piece = thread % pieces;
    const u32 first_head = thread / pieces % sets, token = thread / pieces / sets;
    if (token >= tokens) {
        return;
    }
    T* const lower = x + u64(token) * row + first_head * 2 * half + piece * N;
    T* const upper = lower + half;
    const u32 step = sets * 2 * half;
    Vec<T, N> a[HEADS], b[HEADS];
#pragma unroll
    for (u32 i = 0; i < HEADS; i++) {
        if (first_head + i * sets < rotated_heads) {
            a[i] = *reinterpret_cast<const Vec<T, N>*>(lower + i * step);
            b[i] = *reinterpret_cast<const Vec<T, N>*>(upper + i * step);
        }
    }
    const u64 angles = u64(u32(positions[token])) * half + piece * N;
    float c[N], s[N];
    load_floats(c, cos + angles);
    load_floats(s, sin + angles);
#pragma unroll
    for (u32 k = 0; k < N; k++) {
        s[k] *= direction;
    }
#pragma unroll
    for (u32 i = 0; i < HEADS; i++) {
        if (first_head + i * sets < rotated_heads) {
            float turned_a[N], turned_b[N];
#pragma unroll
            for (u32 k = 0; k < N; k++) {
                const float from_a = to_float(a[i].v[k]), from_b = to_float(b[i].v[k]);
                turned_a[k] = from_a * c[k] - from_b * s[k];
                turned_b[k] = from_b * c[k] + from_a * s[k];
            }
            store_floats(lower + i * step, turned_a);
            store_floats(upper + i * step, turned_b);
        }
    }
}

#define INSTANTIATE_N(T, N, suffix)                                                                \
    KERNEL(rope_##suffix, THREADS, (rope<T, N>),                                                   \
           (const i32* positions, const float* cos, const float* sin, T* x, u32 tokens,            \
            u32 rotated_heads, u32 half, u32 row, u32 sets, float direction),                      \
           (positions, cos, sin, x, tokens, rotated_heads, half, row, sets, direction))
#define INSTANTIATE(T, suffix)                                                                     \
    INSTANTIATE_N(T, 16 / sizeof(T), suffix)                                                       \
    INSTANTIATE_N(T, 1, scalar_##suffix)
FOR_EACH_TYPE(INSTANTIATE)
