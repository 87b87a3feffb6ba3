// The L2 norm of the gradient and the factor that clips it:
//
//   norm = unscale sqrt(sum g^2),   scale = unscale min(1, max_norm / (norm + 1e-6))
//
// Two kernels: each block of the first leaves the sum of a fixed piece of the gradient, so that the
// order of additions is the same on every device; one block of the second adds those.

#include "common.cuh"

namespace {

constexpr u32 THREADS = 256;
constexpr u32 FINISH_THREADS = 1024;
// Numbers that a thread squares at a time, and a block in all.
constexpr u32 GROUP = 16;
constexpr u32 PIECE = 65536;

// sum g^2. Float64 arithmetic is slow on many devices, so a group is added in float32 where no square
// leaves its range, and loses less than 2^-70 of the sum by those below it.
__device__ __forceinline__ double sum_of_squares(const float (&g)[GROUP]) {
    float sum = 0.0f, largest = 0.0f;
#pragma unroll
    for (u32 k = 0; k < GROUP; k++) {
        sum += g[k] * g[k];
        largest = fmaxf(largest, fabsf(g[k]));
    }
    // A NaN passes by `largest` and is in the sum.
    const bool in_range = largest == 0.0f || (largest > 0x1p-40f && largest < 0x1p60f);
    if (in_range) {
        return sum;
    }
    double wide = 0.0;
#pragma unroll
    for (u32 k = 0; k < GROUP; k++) {
        wide += double(g[k]) * double(g[k]);
    }
    return wide;
}

// The sum over a block of N threads; only thread 0 has it.
template <u32 N> __device__ __forceinline__ double block_sum_wide(double x, double* shared) {
    shared[threadIdx.x] = x;
    for (u32 width = N / 2; width > 0; width /= 2) {
        sync_threads();
        if (threadIdx.x < width) {
            shared[threadIdx.x] += shared[threadIdx.x + width];
        }
    }
    return threadIdx.x == 0 ? shared[0] : 0.0;
}

} // namespace

// gradients (n), aligned to 16 bytes -> partials (ceil(n / PIECE)) float64. One block a piece.
__device__ void grad_norm_partial(const float* gradients, u64 n, double* partials) {
    STATIC_SHARED(double, shared, THREADS);
    constexpr u32 VECTORS = GROUP / Vec<float>::COUNT;
    const u64 piece = u64(blockIdx.x) * PIECE;
    const u32 count = n - piece < PIECE ? u32(n - piece) : PIECE;
    const float* const from = gradients + piece;
    const u32 whole = count / (THREADS * GROUP) * (THREADS * GROUP);
    double sum = 0.0;
    for (u32 start = 0; start < whole; start += THREADS * GROUP) {
        float g[GROUP];
#pragma unroll
        for (u32 i = 0; i < VECTORS; i++) {
            const u32 vector = i * THREADS + threadIdx.x;
            const Vec<float> loaded = load16(from + start + vector * Vec<float>::COUNT);
#pragma unroll
            for (u32 k = 0; k < Vec<float>::COUNT; k++) {
                g[i * Vec<float>::COUNT + k] = loaded.v[k];
            }
        }
        sum += sum_of_squares(g);
    }
    if (whole < count) {
        float g[GROUP];
#pragma unroll
        for (u32 i = 0; i < GROUP; i++) {
            const u32 index = whole + i * THREADS + threadIdx.x;
            g[i] = index < count ? from[index] : 0.0f;
        }
        sum += sum_of_squares(g);
    }
    sum = block_sum_wide<THREADS>(sum, shared);
    if (threadIdx.x == 0) {
        partials[blockIdx.x] = sum;
    }
}

// partials (count) -> clip: norm, scale, whether the norm is finite. One block.
__device__ void grad_norm_finish(const double* partials, u32 count, float unscale, float max_norm,
                                 float* clip) {
    STATIC_SHARED(double, shared, FINISH_THREADS);
    double sum = 0.0;
    for (u32 i = threadIdx.x; i < count; i += FINISH_THREADS) {
        sum += partials[i];
    }
    sum = block_sum_wide<FINISH_THREADS>(sum, shared);
    if (threadIdx.x == 0) {
        const double norm = double(unscale) * sqrt(sum);
        const double factor = max_norm > 0.0f ? double(max_norm) / (norm + 1e-6) : 1.0;
        const float rounded = float(norm);
        clip[0] = rounded;
        clip[1] = float(double(unscale) * (factor < 1.0 ? factor : 1.0));
        clip[2] = fabsf(rounded) <= 3.402823466e+38f ? 1.0f : 0.0f;
    }
}

KERNEL(grad_norm_partial_f32, THREADS, (grad_norm_partial),
       (const float* gradients, u64 n, double* partials), (gradients, n, partials))
KERNEL(grad_norm_finish_f32, FINISH_THREADS, (grad_norm_finish),
       (const double* partials, u32 count, float unscale, float max_norm, float* clip),
       (partials, count, unscale, max_norm, clip))
