// Kernels that test the emulator (tests/ops/emulator.rs): what each primitive does, and that each
// mistake is seen. They stand here, not in kernels/, so that only the emulation has them.

#include "../common.cuh"

// What four shuffles and a ballot give to each thread. out (7, threads).
__device__ void warp_operations(u32* out) {
    const u32 thread = threadIdx.x, n = blockDim.x;
    out[thread] = shuffle(thread, 5);
    out[n + thread] = shuffle_xor(thread, 6);
    out[2 * n + thread] = shuffle_up(thread, 3);
    out[3 * n + thread] = shuffle_down(thread, 3);
    out[4 * n + thread] = ballot(thread % 3 == 0);
    STATIC_SHARED(float, partial, 32);
    out[5 * n + thread] = u32(block_sum(float(thread), partial));
    out[6 * n + thread] = u32(block_max(float(thread), partial));
}
KERNEL(self_test_warp_operations, 96, (warp_operations), (u32 * out), (out))

// Float32 there and back: x (n) -> out (n), with pack2 and unpack2 on neighbours.
template <class T> __device__ void formats(const float* x, T* out, float* back, u64 n) {
    const u64 i = u64(blockIdx.x) * blockDim.x + threadIdx.x;
    if (2 * i + 1 < n) {
        out[2 * i] = from_float<T>(x[2 * i]);
        out[2 * i + 1] = from_float<T>(x[2 * i + 1]);
        const auto [lo, hi] = unpack2<T>(pack2<T>(x[2 * i], x[2 * i + 1]));
        back[2 * i] = lo;
        back[2 * i + 1] = hi;
    }
}

// d (16, 8) += a (16, 16) · b, with b (16, 8) row-major, read transposed, or b (8, 16) column-major.
template <class T, bool TRANSPOSED, bool TWICE>
__device__ void product(const T* a, const T* b, float* d) {
    DYNAMIC_SHARED(T, tile);
    T* tile_b = tile + 16 * 16;
    for (u32 i = lane(); i < 16 * 16; i += WARP) {
        tile[i] = a[i];
    }
    for (u32 i = lane(); i < 16 * 8; i += WARP) {
        tile_b[i] = b[i];
    }
    sync_warp();
    u32 a_words[4], b_words[2];
    ldmatrix_x4(a_words, tile + lane() % 16 * 16 + lane() / 16 * 8);
    if (TRANSPOSED) {
        ldmatrix_x2_trans(b_words, tile_b + lane() % 16 * 8);
    } else {
        ldmatrix_x2(b_words, tile_b + lane() % 8 * 16 + lane() / 8 % 2 * 8);
    }
    if (TWICE) { // through the transposed load: the transpose of the transpose
        u32 other[4];
        ldmatrix_x4_trans(other, tile + lane() % 16 * 16 + lane() / 16 * 8);
        sync_warp();
        const u32 g = lane() / 4, c = lane() % 4 * 2;
        for (u32 word = 0; word < 4; word++) {
            // The word holds (row, column) = (c, g) and (c + 1, g) of its 8x8 matrix.
            T* to = tile + (c + word % 2 * 8) * 16 + g + word / 2 * 8;
            to[0] = T{u16(other[word] & 0xffff)};
            to[16] = T{u16(other[word] >> 16)};
        }
        sync_warp();
        ldmatrix_x4(a_words, tile + lane() % 16 * 16 + lane() / 16 * 8);
    }
    const u32 g = lane() / 4, c = lane() % 4 * 2;
    float sum[4] = {d[g * 8 + c], d[g * 8 + c + 1], d[(g + 8) * 8 + c], d[(g + 8) * 8 + c + 1]};
    mma_m16n8k16<T>(sum, a_words, b_words);
    d[g * 8 + c] = sum[0];
    d[g * 8 + c + 1] = sum[1];
    d[(g + 8) * 8 + c] = sum[2];
    d[(g + 8) * 8 + c + 1] = sum[3];
}

#define INSTANTIATE(T, suffix)                                                                     \
    KERNEL(self_test_formats_##suffix, 128, (formats<T>),                                          \
           (const float* x, T* out, float* back, u64 n), (x, out, back, n))                        \
    KERNEL(self_test_product_##suffix, 32, (product<T, false, false>),                             \
           (const T* a, const T* b, float* d), (a, b, d))                                          \
    KERNEL(self_test_product_transposed_##suffix, 32, (product<T, true, true>),                    \
           (const T* a, const T* b, float* d), (a, b, d))
FOR_EACH_HALF_TYPE(INSTANTIATE)

// Copies in groups of one, waiting for all but `PENDING` of them. in (3, 32 · 4) -> out, the same.
template <u32 PENDING> __device__ void copies(const float* in, float* out) {
    DYNAMIC_SHARED(float, stages);
    for (u32 stage = 0; stage < 3; stage++) {
        const u32 at = stage * 128 + threadIdx.x * 4;
        cp_async16(stages + at, in + at, threadIdx.x != 7);
        cp_async_commit();
    }
    cp_async_wait<PENDING>();
    for (u32 i = 0; i < 12; i++) {
        const u32 at = i / 4 * 128 + threadIdx.x * 4 + i % 4;
        out[at] = stages[at];
    }
}
KERNEL(self_test_copies_complete, 32, (copies<0>), (const float* in, float* out), (in, out))
KERNEL(self_test_copies_pending, 32, (copies<2>), (const float* in, float* out), (in, out))

// Reverses the numbers of a block, with a barrier in between or without.
template <bool BARRIER> __device__ void reverse(float* x) {
    STATIC_SHARED(float, row, 256);
    row[threadIdx.x] = x[threadIdx.x];
    if (BARRIER) {
        sync_threads();
    }
    x[threadIdx.x] = row[blockDim.x - 1 - threadIdx.x];
}
KERNEL(self_test_reverse, 256, (reverse<true>), (float* x), (x))
KERNEL(self_test_reverse_racing, 256, (reverse<false>), (float* x), (x))

// The same among the lanes of a warp.
template <bool BARRIER> __device__ void reverse_lanes(float* x) {
    DYNAMIC_SHARED(float, row);
    row[threadIdx.x] = x[threadIdx.x];
    if (BARRIER) {
        sync_warp();
    }
    x[threadIdx.x] = row[threadIdx.x ^ 31];
}
KERNEL(self_test_reverse_lanes, 64, (reverse_lanes<true>), (float* x), (x))
KERNEL(self_test_reverse_lanes_racing, 64, (reverse_lanes<false>), (float* x), (x))

// Each of these mistakes ends the launch with an error.
__device__ void mistake(u32 which, float* x) {
    DYNAMIC_SHARED(float, shared);
    STATIC_SHARED(float, fixed, 4);
    const u32 thread = threadIdx.x;
    u32 words[4];
    switch (which) {
    case 0: // half a warp at a barrier, the rest at a shuffle
        if (thread % 32 < 16) {
            sync_threads();
        } else {
            x[thread] = shuffle_xor(x[thread], 1);
        }
        break;
    case 1: // a warp that returns while others wait for it
        if (thread >= 32) {
            sync_threads();
        }
        break;
    case 2: // a lane that returns before a shuffle
        if (thread != 3) {
            x[thread] = shuffle(x[thread], 0);
        }
        break;
    case 3:
        shared[64] = x[thread];
        break;
    case 4:
        fixed[4] = x[thread];
        break;
    case 5:
        ldmatrix_x4(words, shared + 1);
        break;
    case 6:
        ldmatrix_x4(words, shared + 64);
        break;
    case 7:
        store16(x, load16(x + 1));
        break;
    case 8:
        cp_async16(shared + 2, x, true);
        break;
    case 9: // different operations in one warp
        if (thread % 2 == 0) {
            x[thread] = shuffle_up(x[thread], 1);
        } else {
            x[thread] = shuffle_down(x[thread], 1);
        }
        break;
    case 10: // a barrier that only some warps reach twice
        sync_threads();
        if (thread < 32) {
            sync_threads();
        }
        break;
    default:
        sync_threads();
    }
}
KERNEL(self_test_mistake, 64, (mistake), (u32 which, float* x), (which, x))

// The place of each thread in a grid of three dimensions: out[i] = i + add + (high >> 32).
__device__ void grid(u32* out, float add, u64 high) {
    const u64 block = (u64(blockIdx.z) * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
    const u64 i = block * blockDim.x + threadIdx.x;
    out[i] = u32(i) + u32(add) + u32(high >> 32);
}
KERNEL(self_test_grid, 32, (grid), (u32 * out, float add, u64 high), (out, add, high))
