// Picking rows of a matrix, so that the LM head sees supervised positions only.
//
//   forward   out[i] = x[rows[i]]: the kernel embedding_forward_f32, as the same is done
//   backward  dx[rows[i]] = dout[i], all other rows zero
//
// The backward first notes for each row of dx which row of dout belongs there, if any, so that dx
// is written once.

#include "common.cuh"

namespace {

constexpr u32 THREADS = 256;
constexpr u32 WARPS = THREADS / WARP;
// Groups of columns that a lane moves.
constexpr u32 GROUPS = 4;

} // namespace

// rows (count) -> places (T), which hold -1: the index of each row in `rows`.
__device__ void rows_places(const i32* rows, i32* places, u64 count) {
    const u64 i = u64(blockIdx.x) * THREADS + threadIdx.x;
    if (i < count) {
        places[rows[i]] = i32(i);
    }
}

// dout (S, width), places (rows) -> dx (rows, width). A warp writes 128 N columns of a row: block y
// gives the columns, block x and the warp the row.
template <u32 N>
__device__ void rows_backward(const float* dout, const i32* places, float* dx, u64 rows,
                              u32 width) {
    const u64 row = u64(blockIdx.x) * WARPS + warp();
    if (row >= rows) {
        return;
    }
    const i32 place = places[row];
    const float* const from = dout + u64(place < 0 ? 0 : place) * width;
    const u32 first = blockIdx.y * (GROUPS * WARP * N) + lane() * N;
    float values[GROUPS][N] = {};
#pragma unroll
    for (u32 g = 0; g < GROUPS; g++) {
        const u32 column = first + g * WARP * N;
        if (place >= 0 && column < width) {
            load_floats(values[g], from + column);
        }
    }
#pragma unroll
    for (u32 g = 0; g < GROUPS; g++) {
        const u32 column = first + g * WARP * N;
        if (column < width) {
            store_floats(dx + row * width + column, values[g]);
        }
    }
}

KERNEL(rows_places_i32, THREADS, (rows_places), (const i32* rows, i32* places, u64 count),
       (rows, places, count))
KERNEL(rows_backward_f32, THREADS, (rows_backward<4>),
       (const float* dout, const i32* places, float* dx, u64 rows, u32 width),
       (dout, places, dx, rows, width))
KERNEL(rows_backward_scalar_f32, THREADS, (rows_backward<1>),
       (const float* dout, const i32* places, float* dx, u64 rows, u32 width),
       (dout, places, dx, rows, width))
