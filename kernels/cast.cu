// Conversion between float32 and a half-precision format, rounding to nearest, ties to even.
//
// Bound by memory. A thread moves GROUPS times four numbers, 16 bytes of float32 and 8 of half:
// then each access of a warp fills whole 32-byte sectors on both sides, which 16 bytes of half,
// beside 32 of float32, would not.

#include "common.cuh"

namespace {

constexpr u32 THREADS = 256;
constexpr u32 COLUMNS = 4;
constexpr u32 GROUPS = 4;

// One piece of a block: THREADS * GROUPS groups of N neighbours from `start`, up to `end`.
template <u32 N, class From, class To>
__device__ __forceinline__ void cast_piece(const From* from, To* to, u64 start, u64 end) {
    float values[GROUPS][N];
#pragma unroll
    for (u32 g = 0; g < GROUPS; g++) {
        const u64 i = start + (g * THREADS + threadIdx.x) * N;
        if (i < end) {
            load_floats(values[g], from + i);
        }
    }
#pragma unroll
    for (u32 g = 0; g < GROUPS; g++) {
        const u64 i = start + (g * THREADS + threadIdx.x) * N;
        if (i < end) {
            store_floats(to + i, values[g]);
        }
    }
}

} // namespace

// from (n) -> to (n). The first `aligned` numbers, a multiple of four, lie where four may move at
// once. Blocks take pieces in turn.
template <class From, class To>
__device__ void cast(const From* from, To* to, u64 n, u64 aligned) {
    const u64 step = u64(gridDim.x) * THREADS * GROUPS;
    const u64 first = u64(blockIdx.x) * THREADS * GROUPS;
    for (u64 start = first * COLUMNS; start < aligned; start += step * COLUMNS) {
        cast_piece<COLUMNS>(from, to, start, aligned);
    }
    for (u64 start = aligned + first; start < n; start += step) {
        cast_piece<1>(from, to, start, n);
    }
}

#define INSTANTIATE(T, suffix)                                                                     \
    KERNEL(cast_from_f32_##suffix, THREADS, (cast<float, T>),                                      \
           (const float* from, T* to, u64 n, u64 aligned), (from, to, n, aligned))                 \
    KERNEL(cast_to_f32_##suffix, THREADS, (cast<T, float>),                                        \
           (const T* from, float* to, u64 n, u64 aligned), (from, to, n, aligned))
FOR_EACH_HALF_TYPE(INSTANTIATE)
