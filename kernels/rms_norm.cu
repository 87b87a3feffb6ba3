// RMSNorm. With r = (mean(x^2) + eps)^(-1/2) for each row:
//
//   forward   y   = x r w
//   backward  dx += r w dy - x r^3 / width * sum(x w dy)
//             dw += sum over rows of x r dy
//
// Bound by memory: a block holds a row in registers, eight numbers a thread, so that everything is
// read once. Four neighbours move at once, 16 bytes of float32 and 8 of half: then each access of a
// warp fills whole 32-byte sectors of every tensor. Blocks stay and take rows in turn, with w and
// their part of dw in registers; the parts go to a scratch matrix, whose rows are then added in
// order.
//
// The kernels called any take rows of any width: they read a row twice, from the cache if it fits,
// and number by number.

#include "common.cuh"

namespace {

constexpr u32 MAX_THREADS = 1024;
constexpr u32 MAX_WARPS = MAX_THREADS / WARP;
// Neighbours that move at once, and how many such groups of a row a thread holds.
constexpr u32 N = 4;
constexpr u32 GROUPS = 2;
// Rows on their way at a time in the forward.
constexpr u32 ROWS = 2;
constexpr u32 ANY_THREADS = 512;
constexpr u32 SUM_THREADS = 512;
constexpr u32 SUM_WARPS = SUM_THREADS / WARP;

// Sums over the block, in every thread, in a fixed order. `shared` holds COUNT * MAX_WARPS numbers
// that no thread may still need from before the last barrier: calls in turn use two of them in
// turn.
template <u32 COUNT>
__device__ __forceinline__ void block_sums(float (&sums)[COUNT], float* shared) {
#pragma unroll
    for (u32 n = 0; n < COUNT; n++) {
        sums[n] = warp_sum(sums[n]);
        if (lane() == 0) {
            shared[n * MAX_WARPS + warp()] = sums[n];
        }
    }
    sync_threads();
#pragma unroll
    for (u32 n = 0; n < COUNT; n++) {
        const bool used = lane() < blockDim.x / WARP;
        sums[n] = warp_sum(used ? shared[n * MAX_WARPS + lane()] : 0.0f);
    }
}

// Column where the thread's group g begins.
__device__ __forceinline__ u32 column_of(u32 g) {
    return (g * blockDim.x + threadIdx.x) * N;
}

// The thread's numbers of a row, zero beyond its end.
template <class T>
__device__ __forceinline__ void load_row(float (&to)[GROUPS][N], const T* row, u32 width) {
#pragma unroll
    for (u32 g = 0; g < GROUPS; g++) {
        const u32 column = column_of(g);
        if (column < width) {
            load_floats(to[g], row + column);
        } else {
#pragma unroll
            for (u32 k = 0; k < N; k++) {
                to[g][k] = 0.0f;
            }
        }
    }
}

template <class T>
__device__ __forceinline__ void store_row(T* row, const float (&from)[GROUPS][N], u32 width) {
#pragma unroll
    for (u32 g = 0; g < GROUPS; g++) {
        const u32 column = column_of(g);
        if (column < width) {
            store_floats(row + column, from[g]);
        }
    }
}

} // namespace

// x (rows, width), weight (width) -> y (rows, width), inv_rms (rows).
template <class T>
__device__ void rms_norm_forward(const float* x, const float* weight, T* y, float* inv_rms,
                                 u64 rows, u32 width, float eps) {
    STATIC_SHARED(float, shared, 2 * ROWS * MAX_WARPS);
    const float inverse_width = divide_fast(1.0f, float(width));
    float w[GROUPS][N];
    load_row(w, weight, width);
    u32 half = 0;
    for (u64 row = u64(blockIdx.x) * ROWS; row < rows; row += u64(gridDim.x) * ROWS) {
        float v[ROWS][GROUPS][N], sums[ROWS];
#pragma unroll
        for (u32 i = 0; i < ROWS; i++) {
            load_row(v[i], x + (row + i) * width, row + i < rows ? width : 0);
        }
#pragma unroll
        for (u32 i = 0; i < ROWS; i++) {
            sums[i] = 0.0f;
#pragma unroll
            for (u32 c = 0; c < GROUPS * N; c++) {
                sums[i] += v[i][c / N][c % N] * v[i][c / N][c % N];
            }
        }
        block_sums(sums, shared + half * ROWS * MAX_WARPS);
        half ^= 1;
#pragma unroll
        for (u32 i = 0; i < ROWS; i++) {
            const float r = reciprocal_sqrt(sums[i] * inverse_width + eps);
#pragma unroll
            for (u32 c = 0; c < GROUPS * N; c++) {
                v[i][c / N][c % N] *= r;
                v[i][c / N][c % N] *= w[c / N][c % N];
            }
            store_row(y + (row + i) * width, v[i], row + i < rows ? width : 0);
            if (threadIdx.x == 0 && row + i < rows) {
                inv_rms[row + i] = r;
            }
        }
    }
}

// dy (rows, width) -> dx (rows, width) +=, and partials (blocks, width): each block's part of dw.
template <class T>
__device__ void rms_norm_backward(const float* x, const float* weight, const float* inv_rms,
                                  const T* dy, float* dx, float* partials, u64 rows, u32 width) {
    STATIC_SHARED(float, shared, 2 * MAX_WARPS);
    const float inverse_width = divide_fast(1.0f, float(width));
    float w[GROUPS][N], dw[GROUPS][N] = {};
    load_row(w, weight, width);
    u32 half = 0;
    for (u64 row = blockIdx.x; row < rows; row += gridDim.x) {
        float v[GROUPS][N], g[GROUPS][N], d[GROUPS][N];
        load_row(v, x + row * width, width);
        load_row(g, dy + row * width, width);
        load_row(d, dx + row * width, width);
        const float r = inv_rms[row];
        float sum[1] = {0.0f};
#pragma unroll
        for (u32 c = 0; c < GROUPS * N; c++) {
            const float xr = v[c / N][c % N] * r;
            dw[c / N][c % N] += xr * g[c / N][c % N];
            g[c / N][c % N] *= w[c / N][c % N];
            sum[0] += v[c / N][c % N] * g[c / N][c % N];
        }
        block_sums(sum, shared + half * MAX_WARPS);
        half ^= 1;
        const float slope = r * r * r * inverse_width * sum[0];
#pragma unroll
        for (u32 c = 0; c < GROUPS * N; c++) {
            d[c / N][c % N] += r * g[c / N][c % N] - v[c / N][c % N] * slope;
        }
        store_row(dx + row * width, d, width);
    }
    store_row(partials + u64(blockIdx.x) * width, dw, width);
}

// partials (count, width) -> out (width) += the sum of the rows. A block adds 32 columns: each warp
// every SUM_WARPSth row, then one warp the sums of all.
__device__ void column_sum(const float* partials, float* out, u32 count, u32 width) {
    STATIC_SHARED(float, shared, SUM_THREADS);
    const u32 column = blockIdx.x * WARP + lane();
    float sum = 0.0f;
    if (column < width) {
#pragma unroll 8
        for (u32 row = warp(); row < count; row += SUM_WARPS) {
            sum += partials[u64(row) * width + column];
        }
    }
    shared[threadIdx.x] = sum;
    sync_threads();
    if (warp() == 0 && column < width) {
        float total = 0.0f;
#pragma unroll
        for (u32 w = 0; w < SUM_WARPS; w++) {
            total += shared[w * WARP + lane()];
        }
        out[column] += total;
    }
}

// As rms_norm_forward, for rows of any width.
template <class T>
__device__ void rms_norm_forward_any(const float* x, const float* weight, T* y, float* inv_rms,
                                      u64 rows, u32 width, float eps) {
    STATIC_SHARED(float, shared, WARP);
    const float inverse_width = divide_fast(1.0f, float(width));
    for (u64 row = blockIdx.x; row < rows; row += gridDim.x) {
        const float* const from = x + row * width;
        float sum = 0.0f;
#pragma unroll 4
        for (u32 column = threadIdx.x; column < width; column += ANY_THREADS) {
            sum += from[column] * from[column];
        }
        const float r = reciprocal_sqrt(block_sum(sum, shared) * inverse_width + eps);
#pragma unroll 4
        for (u32 column = threadIdx.x; column < width; column += ANY_THREADS) {
            y[row * width + column] = from_float<T>(from[column] * r * weight[column]);
        }
        if (threadIdx.x == 0) {
            inv_rms[row] = r;
        }
    }
}

// dy (rows, width) -> dx (rows, width) +=, for rows of any width.
template <class T>
__device__ void rms_norm_backward_any(const float* x, const float* weight, const float* inv_rms,
                                       const T* dy, float* dx, u64 rows, u32 width) {
    STATIC_SHARED(float, shared, WARP);
    const float inverse_width = divide_fast(1.0f, float(width));
    for (u64 row = blockIdx.x; row < rows; row += gridDim.x) {
        const u64 start = row * width;
        float sum = 0.0f;
#pragma unroll 4
        for (u32 column = threadIdx.x; column < width; column += ANY_THREADS) {
            sum += x[start + column] * weight[column] * to_float(dy[start + column]);
        }
        const float r = inv_rms[row];
        const float slope = r * r * r * inverse_width * block_sum(sum, shared);
#pragma unroll 4
        for (u32 column = threadIdx.x; column < width; column += ANY_THREADS) {
            const float direct = r * weight[column] * to_float(dy[start + column]);
            dx[start + column] += direct - x[start + column] * slope;
        }
    }
}

// dy (rows, width) -> partials (gridDim.y, width): dw of every gridDim.y-th row. A thread a column.
template <class T>
__device__ void rms_norm_backward_weight_any(const float* x, const float* inv_rms, const T* dy,
                                              float* partials, u64 rows, u32 width) {
    const u32 column = blockIdx.x * ANY_THREADS + threadIdx.x;
    if (column >= width) {
        return;
    }
    float sum = 0.0f;
#pragma unroll 4
    for (u64 row = blockIdx.y; row < rows; row += gridDim.y) {
        sum += x[row * width + column] * inv_rms[row] * to_float(dy[row * width + column]);
    }
    partials[u64(blockIdx.y) * width + column] = sum;
}

#define INSTANTIATE(T, suffix)                                                                     \
    KERNEL(rms_norm_forward_##suffix, MAX_THREADS, (rms_norm_forward<T>),                          \
           (const float* x, const float* weight, T* y, float* inv_rms, u64 rows, u32 width,        \
            float eps),                                                                            \
           (x, weight, y, inv_rms, rows, width, eps))                                              \
    KERNEL(rms_norm_backward_##suffix, MAX_THREADS, (rms_norm_backward<T>),                        \
           (const float* x, const float* weight, const float* inv_rms, const T* dy, float* dx,     \
            float* partials, u64 rows, u32 width),                                                 \
           (x, weight, inv_rms, dy, dx, partials, rows, width))                                    \
    KERNEL(rms_norm_forward_any_##suffix, ANY_THREADS, (rms_norm_forward_any<T>),                  \
           (const float* x, const float* weight, T* y, float* inv_rms, u64 rows, u32 width,        \
            float eps),                                                                            \
           (x, weight, y, inv_rms, rows, width, eps))                                              \
    KERNEL(rms_norm_backward_any_##suffix, ANY_THREADS, (rms_norm_backward_any<T>),                \
           (const float* x, const float* weight, const float* inv_rms, const T* dy, float* dx,     \
            u64 rows, u32 width),                                                                  \
           (x, weight, inv_rms, dy, dx, rows, width))                                              \
    KERNEL(rms_norm_backward_weight_any_##suffix, ANY_THREADS,                                     \
           (rms_norm_backward_weight_any<T>),                                                      \
           (const float* x, const float* inv_rms, const T* dy, float* partials, u64 rows,          \
            u32 width),                                                                            \
           (x, inv_rms, dy, partials, rows, width))
FOR_EACH_TYPE(INSTANTIATE)

KERNEL(column_sum_f32, SUM_THREADS, (column_sum),
       (const float* partials, float* out, u32 count, u32 width), (partials, out, count, width))
