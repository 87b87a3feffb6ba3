// What stands beside the matrix products: the gradient of a bias, and the sum over the cuts of a
// product (linear.cu), both in a fixed order.
//
//     column sums   sums[c, j] = sum over the rows i of part c of dy[i, j]
//     finish        y = sum over c of sums[c] (+ bias) (+ residual)
//
// Bound by memory.

#include "common.cuh"

namespace {

constexpr u32 THREADS = 256;
constexpr u32 WARPS = THREADS / WARP;

// dy (rows, columns) -> sums (parts, columns). Block (x, y): 32 * WIDTH columns of part y. A warp
// reads every eighth row, a thread WIDTH neighbours of it.
template <class T, u32 WIDTH>
__device__ __forceinline__ void column_sums(const T* dy, float* sums, u32 rows, u32 columns,
                                            u32 rows_per_part) {
    STATIC_SHARED(float, shared, WARPS * WARP * WIDTH);
    const u32 first = blockIdx.x * WARP * WIDTH, column = first + lane() * WIDTH;
    const u64 start = u64(blockIdx.y) * rows_per_part;
    const u32 count = min(rows_per_part, u32(rows - start));
    float sum[WIDTH] = {};
    if (column < columns) {
        const T* from = dy + start * columns + column;
#pragma unroll 4
        for (u32 row = warp(); row < count; row += WARPS) {
            if (WIDTH == 1) {
                sum[0] += to_float(from[u64(row) * columns]);
            } else {
                const Vec<T> part = load16(from + u64(row) * columns);
#pragma unroll
                for (u32 i = 0; i < WIDTH; ++i) {
                    sum[i] += to_float(part.v[i]);
                }
            }
        }
    }
#pragma unroll
    for (u32 i = 0; i < WIDTH; ++i) {
        shared[warp() * WARP * WIDTH + lane() * WIDTH + i] = sum[i];
    }
    sync_threads();
    for (u32 j = threadIdx.x; j < WARP * WIDTH && first + j < columns; j += THREADS) {
        float total = 0.0f;
        for (u32 w = 0; w < WARPS; ++w) {
            total += shared[w * WARP * WIDTH + j];
        }
        sums[u64(blockIdx.y) * columns + first + j] = total;
    }
}

// sums (cuts, count) -> y or, when that is null, y32 (count), in rows of n. Bias (n) and residual
// (count) may be null, and the residual y32.
template <class T>
__device__ __forceinline__ void finish(const float* sums, const float* bias, const float* residual,
                                       T* y, float* y32, u32 count, u32 n, u32 cuts) {
    for (u32 i = blockIdx.x * THREADS + threadIdx.x; i < count; i += gridDim.x * THREADS) {
        float sum = 0.0f;
#pragma unroll 4
        for (u32 c = 0; c < cuts; ++c) {
            sum += sums[u64(c) * count + i];
        }
        if (bias) {
            sum += bias[i % n];
        }
        if (residual) {
            sum += residual[i];
        }
        if (y) {
            y[i] = from_float<T>(sum);
        } else {
            y32[i] = sum;
        }
    }
}

} // namespace

#define INSTANTIATE(T, suffix)                                                                     \
    KERNEL(linear_column_sums_##suffix, THREADS, (column_sums<T, Vec<T>::COUNT>),                  \
           (const T* dy, float* sums, u32 rows, u32 columns, u32 rows_per_part),                   \
           (dy, sums, rows, columns, rows_per_part))                                               \
    KERNEL(linear_column_sums_any_##suffix, THREADS, (column_sums<T, 1>),                          \
           (const T* dy, float* sums, u32 rows, u32 columns, u32 rows_per_part),                   \
           (dy, sums, rows, columns, rows_per_part))                                               \
    KERNEL(linear_finish_##suffix, THREADS, (finish<T>),                                           \
           (const float* sums, const float* bias, const float* residual, T* y, float* y32,         \
            u32 count, u32 n, u32 cuts),                                                           \
           (sums, bias, residual, y, y32, count, n, cuts))

FOR_EACH_TYPE(INSTANTIATE)
