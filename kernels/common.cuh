// What the kernels stand on: number formats, warp and block operations, asynchronous copies and
// matrix instructions. A kernel uses these names and CUDA's threadIdx, blockIdx, blockDim, gridDim;
// nothing else, for the same file is compiled three ways: by nvcc, by NVRTC, which has no headers,
// and with SFT_EMULATE as C++ for the CPU (host/README.md).
//
// Devices of compute capability 8.0 and later. Blocks have one dimension, of whole warps.

#pragma once

using u8 = unsigned char;
using u16 = unsigned short;
using u32 = unsigned int;
using u64 = unsigned long long;
using i32 = int;

constexpr u32 WARP = 32;

// Half-precision numbers as they lie in memory; arithmetic is done in float.
struct bf16 {
    u16 bits;
};
struct f16 {
    u16 bits;
};

// Two halves of a 32-bit word: lo in the low bits, at the lower address.
struct Pair {
    float lo, hi;
};

// Neighbours that move at once, aligned to their size: 16 bytes of them, or fewer.
template <class T, u32 N = 16 / sizeof(T)> struct alignas(N * sizeof(T)) Vec {
    static constexpr u32 COUNT = N;
    T v[COUNT];
};

// INSTANTIATE(T, suffix) for each number format.
#define FOR_EACH_TYPE(INSTANTIATE)                                                                 \
    INSTANTIATE(float, f32)                                                                        \
    FOR_EACH_HALF_TYPE(INSTANTIATE)
#define FOR_EACH_HALF_TYPE(INSTANTIATE)                                                            \
    INSTANTIATE(bf16, bf16)                                                                        \
    INSTANTIATE(f16, f16)

#ifdef SFT_EMULATE
#include "host/emulator.hpp"
#else

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
#error "the kernels need compute capability 8.0"
#endif

// KERNEL(name, threads of a block, (body<T>), (parameters), (arguments)): a kernel that can be
// launched by name. Parameters are pointers, u32, float and u64.
#define KERNEL(name, threads, body, parameters, arguments)                                         \
    extern "C" __global__ void __launch_bounds__(threads) name parameters { body arguments; }

// T* name: the shared memory whose size the launch gives, aligned to 128 bytes.
#define DYNAMIC_SHARED(T, name)                                                                    \
    extern __shared__ __align__(128) u8 sft_dynamic_shared[];                                      \
    T* const name = reinterpret_cast<T*>(sft_dynamic_shared)

// T name[count] in shared memory, aligned to 16 bytes. At most 48 KiB in all.
#define STATIC_SHARED(T, name, count) __shared__ __align__(16) T name[count]

// ---- bits and number formats -------------------------------------------------------------------

__device__ __forceinline__ u32 float_bits(float x) { return __float_as_uint(x); }
__device__ __forceinline__ float float_from_bits(u32 bits) { return __uint_as_float(bits); }

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(bf16 x) { return float_from_bits(u32(x.bits) << 16); }
__device__ __forceinline__ float to_float(f16 x) {
    float result;
    asm("cvt.f32.f16 %0, %1;" : "=f"(result) : "h"(x.bits));
    return result;
}

// Rounds to nearest, ties to even.
template <class T> __device__ __forceinline__ T from_float(float x);
template <> __device__ __forceinline__ float from_float<float>(float x) { return x; }
template <> __device__ __forceinline__ bf16 from_float<bf16>(float x) {
    bf16 result;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(result.bits) : "f"(x));
    return result;
}
template <> __device__ __forceinline__ f16 from_float<f16>(float x) {
    f16 result;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(result.bits) : "f"(x));
    return result;
}

// Two rounded halves in a word.
template <class T> __device__ __forceinline__ u32 pack2(float lo, float hi);
template <> __device__ __forceinline__ u32 pack2<bf16>(float lo, float hi) {
    u32 result;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(result) : "f"(hi), "f"(lo));
    return result;
}
template <> __device__ __forceinline__ u32 pack2<f16>(float lo, float hi) {
    u32 result;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(result) : "f"(hi), "f"(lo));
    return result;
}
template <class T> __device__ __forceinline__ Pair unpack2(u32 word) {
    return {to_float(T{u16(word & 0xffff)}), to_float(T{u16(word >> 16)})};
}

// The address is aligned to 16 bytes.
template <class T> __device__ __forceinline__ Vec<T> load16(const T* from) {
    Vec<T> result;
    *reinterpret_cast<uint4*>(&result) = *reinterpret_cast<const uint4*>(from);
    return result;
}
// In assembly, as an assignment becomes four stores in some kernels. The compiler knows which of
// the two memories it is.
template <class T> __device__ __forceinline__ void store16(T* to, Vec<T> value) {
    const uint4 words = *reinterpret_cast<const uint4*>(&value);
    if (__isGlobal(to)) {
        asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(to)),
                     "r"(words.x), "r"(words.y), "r"(words.z), "r"(words.w)
                     : "memory");
    } else {
        asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_shared(to)),
                     "r"(words.x), "r"(words.y), "r"(words.z), "r"(words.w)
                     : "memory");
    }
}

// ---- arithmetic --------------------------------------------------------------------------------
// exp_fast errs by 2 + |x| units in the last place; expf is good everywhere at a few more
// instructions. Subnormal numbers count as zero in all of these.

__device__ __forceinline__ float exp2_fast(float x) {
    float result;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
    return result;
}
__device__ __forceinline__ float exp_fast(float x) { return exp2_fast(x * 1.44269504f); }
__device__ __forceinline__ float log_fast(float x) {
    float result;
    asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
    return result * 0.693147181f;
}
__device__ __forceinline__ float reciprocal_sqrt(float x) {
    float result;
    asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
    return result;
}
// Zero for divisors beyond 2^126.
__device__ __forceinline__ float divide_fast(float x, float y) {
    float result;
    asm("div.approx.ftz.f32 %0, %1, %2;" : "=f"(result) : "f"(x), "f"(y));
    return result;
}

// ---- warps and blocks --------------------------------------------------------------------------
// Every thread of the warp, or of the block, reaches each of these together.

__device__ __forceinline__ void sync_threads() { __syncthreads(); }
__device__ __forceinline__ void sync_warp() { __syncwarp(); }
template <class T> __device__ __forceinline__ T shuffle(T x, u32 from_lane) {
    return __shfl_sync(0xffffffffu, x, from_lane);
}
template <class T> __device__ __forceinline__ T shuffle_xor(T x, u32 mask) {
    return __shfl_xor_sync(0xffffffffu, x, mask);
}
// From the lane `delta` below; the lowest lanes keep their own.
template <class T> __device__ __forceinline__ T shuffle_up(T x, u32 delta) {
    return __shfl_up_sync(0xffffffffu, x, delta);
}
// From the lane `delta` above; the highest lanes keep their own.
template <class T> __device__ __forceinline__ T shuffle_down(T x, u32 delta) {
    return __shfl_down_sync(0xffffffffu, x, delta);
}
// One bit for each lane. A macro, as nvcc's headers still have a function of this name.
#define ballot(vote) __ballot_sync(0xffffffffu, (vote))

// ---- asynchronous copies -----------------------------------------------------------------------

__device__ __forceinline__ u32 shared_address(const void* pointer) {
    return u32(__cvta_generic_to_shared(pointer));
}

// 16 bytes, both addresses aligned to 16; zeros, and nothing read, when not valid. The bytes are
// there for the thread that copied after its cp_async_wait, for others after a barrier as well.
__device__ __forceinline__ void cp_async16(void* shared, const void* global, bool valid) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)),
                 "l"(global), "r"(valid ? 16 : 0)
                 : "memory");
}
// Makes a group of the thread's copies since the last one.
__device__ __forceinline__ void cp_async_commit() {
    asm volatile("cp.async.commit_group;" ::: "memory");
}
// Waits until at most the N latest groups of the thread are on their way.
template <u32 N> __device__ __forceinline__ void cp_async_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

// ---- matrix instructions -----------------------------------------------------------------------
// With g = lane / 4 and c = 2 (lane % 4), each word holding two neighbours, low half first:
//   8x8 matrix    word: (g, c), (g, c + 1); transposed: (c, g), (c + 1, g)
//   A (16, 16)    a[0]: (g, c..)  a[1]: (g + 8, c..)  a[2]: (g, c + 8..)  a[3]: (g + 8, c + 8..)
//   B (16, 8)     b[0]: (c.., g)  b[1]: (c + 8.., g)
//   D (16, 8)     d[0], d[1]: (g, c), (g, c + 1)      d[2], d[3]: (g + 8, c), (g + 8, c + 1)

// Four 8x8 matrices of 16-bit numbers: lane i gives the address, in shared memory and aligned to 16
// bytes, of row i % 8 of matrix i / 8.
__device__ __forceinline__ void ldmatrix_x4(u32 (&r)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row)));
}
__device__ __forceinline__ void ldmatrix_x4_trans(u32 (&r)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row)));
}
// Two matrices, by the addresses of lanes 0 to 15.
__device__ __forceinline__ void ldmatrix_x2(u32 (&r)[2], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(shared_address(row)));
}
__device__ __forceinline__ void ldmatrix_x2_trans(u32 (&r)[2], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(shared_address(row)));
}

// d += a b.
template <class T>
__device__ __forceinline__ void mma_m16n8k16(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2]);
template <>
__device__ __forceinline__ void mma_m16n8k16<bf16>(float (&d)[4], const u32 (&a)[4],
                                                   const u32 (&b)[2]) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
template <>
__device__ __forceinline__ void mma_m16n8k16<f16>(float (&d)[4], const u32 (&a)[4],
                                                  const u32 (&b)[2]) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

#endif // SFT_EMULATE

// ---- what is made of these ---------------------------------------------------------------------

__device__ __forceinline__ float infinity() { return float_from_bits(0x7f800000u); }

// Place in the warp, and of the warp in the block.
__device__ __forceinline__ u32 lane() { return threadIdx.x % WARP; }
__device__ __forceinline__ u32 warp() { return threadIdx.x / WARP; }

// The sum over the warp, in every lane, with the same bits in each.
__device__ __forceinline__ float warp_sum(float x) {
    for (u32 mask = WARP / 2; mask > 0; mask /= 2) {
        x += shuffle_xor(x, mask);
    }
    return x;
}
// The greatest number of the warp, in every lane; NaN only when all are.
__device__ __forceinline__ float warp_max(float x) {
    for (u32 mask = WARP / 2; mask > 0; mask /= 2) {
        x = fmaxf(x, shuffle_xor(x, mask));
    }
    return x;
}

// The sum over the block, in every thread, in a fixed order. `shared` holds 32 numbers and may be
// the one of an earlier call.
__device__ __forceinline__ float block_sum(float x, float* shared) {
    x = warp_sum(x);
    sync_threads();
    if (lane() == 0) {
        shared[warp()] = x;
    }
    sync_threads();
    return warp_sum(lane() < blockDim.x / WARP ? shared[lane()] : 0.0f);
}
// The greatest number of the block, as block_sum.
__device__ __forceinline__ float block_max(float x, float* shared) {
    x = warp_max(x);
    sync_threads();
    if (lane() == 0) {
        shared[warp()] = x;
    }
    sync_threads();
    return warp_max(shared[lane() < blockDim.x / WARP ? lane() : 0]);
}

// N numbers as floats, moved together, or by 16 bytes if they are more; so aligned is the address.
template <u32 N, class T>
__device__ __forceinline__ void load_floats(float (&to)[N], const T* from) {
    constexpr u32 PIECE = N * sizeof(T) <= 16 ? N : 16 / sizeof(T);
#pragma unroll
    for (u32 start = 0; start < N; start += PIECE) {
        const auto piece = *reinterpret_cast<const Vec<T, PIECE>*>(from + start);
#pragma unroll
        for (u32 i = 0; i < PIECE; i++) {
            to[start + i] = to_float(piece.v[i]);
        }
    }
}
// The inverse: each number rounded to nearest, ties to even.
template <u32 N, class T>
__device__ __forceinline__ void store_floats(T* to, const float (&from)[N]) {
    constexpr u32 PIECE = N * sizeof(T) <= 16 ? N : 16 / sizeof(T);
#pragma unroll
    for (u32 start = 0; start < N; start += PIECE) {
        Vec<T, PIECE> piece;
#pragma unroll
        for (u32 i = 0; i < PIECE; i++) {
            piece.v[i] = from_float<T>(from[start + i]);
        }
        *reinterpret_cast<Vec<T, PIECE>*>(to + start) = piece;
    }
}
