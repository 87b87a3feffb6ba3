// RMSNorm on each query and key head, between the projection and the rotation: with one head as a
// row, D numbers, and r = (mean(x^2) + eps)^(-1/2),
//
//   forward   y  = x r w
//   backward  dx = r w dy - x r^3 / D * sum(x w dy)
//             dw = sum over heads of x r dy
//
// with one weight for all query heads and another for all key heads; value heads pass unchanged.
//
// Bound by memory. `lanes` lanes, a power of two, hold a head in registers, eight numbers each: 16
// bytes of a half format. A lane has the same columns of all its heads, so weights and their
// gradients stay in registers; the blocks' parts of the gradients go to a scratch matrix whose rows
// are then added in order (column_sum_f32 in rms_norm.cu).

#include "common.cuh"

namespace {

constexpr u32 THREADS = 256;
// The compiler is told of larger blocks, so that it leaves registers for as many threads at a time.
constexpr u32 RESIDENT_THREADS = 768;
// Numbers of a head that a lane holds.
constexpr u32 COLUMNS = 8;

// A lane's eight numbers of a head: neighbours if ALIGNED, otherwise every `lanes`-th.
template <bool ALIGNED> struct Columns {
    u32 lane, lanes, width;

    __device__ __forceinline__ u32 of(u32 i) const {
        return ALIGNED ? lane * COLUMNS + i : lane + i * lanes;
    }

    // Whether the lane has any.
    __device__ __forceinline__ bool any() const { return of(0) < width; }

    // Only for a lane that has some; zero beyond the head's end.
    template <class T> __device__ __forceinline__ void load(T (&to)[COLUMNS], const T* head) const {
        if constexpr (ALIGNED) {
            constexpr u32 PIECE = 16 / sizeof(T);
#pragma unroll
            for (u32 start = 0; start < COLUMNS; start += PIECE) {
                const Vec<T> piece = load16(head + of(start));
#pragma unroll
                for (u32 i = 0; i < PIECE; i++) {
                    to[start + i] = piece.v[i];
                }
            }
        } else {
#pragma unroll
            for (u32 i = 0; i < COLUMNS; i++) {
                to[i] = of(i) < width ? head[of(i)] : T{};
            }
        }
    }

    // Only for a lane that has some.
    template <class T>
    __device__ __forceinline__ void store(T* head, const float (&from)[COLUMNS]) const {
        if constexpr (ALIGNED) {
            store_floats(head + of(0), from);
        } else {
#pragma unroll
            for (u32 i = 0; i < COLUMNS; i++) {
                if (of(i) < width) {
                    head[of(i)] = from_float<T>(from[i]);
                }
            }
        }
    }

    // The sums over each of N heads' lanes, in each of the lanes.
    template <u32 N> __device__ __forceinline__ void add(float (&sums)[N]) const {
        for (u32 mask = lanes / 2; mask > 0; mask /= 2) {
#pragma unroll
            for (u32 n = 0; n < N; n++) {
                sums[n] += shuffle_xor(sums[n], mask);
            }
        }
    }
};

template <bool ALIGNED>
__device__ __forceinline__ Columns<ALIGNED> columns_of(u32 lanes, u32 width) {
    return {threadIdx.x & (lanes - 1), lanes, width};
}

// A walk over the first `count` heads of every token, `step` heads at a time.
struct Walk {
    u32 token, head, count, step_tokens, step_heads;

    __device__ __forceinline__ Walk(u32 start, u32 step, u32 count)
        : token(start / count), head(start % count), count(count), step_tokens(step / count),
          step_heads(step % count) {}

    __device__ __forceinline__ void advance() {
        token += step_tokens;
        head += step_heads;
        if (head >= count) {
            head -= count;
            token++;
        }
    }
};

} // namespace

// raw (tokens, heads + 2 kv_heads, width) -> out of its shape, inv_rms (tokens, heads + kv_heads).
template <class T, bool ALIGNED>
__device__ void qk_norm_forward(const T* raw, const float* q_weight, const float* k_weight, T* out,
                                float* inv_rms, u32 tokens, u32 heads, u32 kv_heads, u32 width,
                                u32 lanes, float eps) {
    // Heads of a group of lanes on their way at a time.
    constexpr u32 HEADS = ALIGNED ? 4 : 1;
    const auto columns = columns_of<ALIGNED>(lanes, width);
    const float inverse_width = divide_fast(1.0f, float(width));
    const u32 all = heads + 2 * kv_heads, normed = heads + kv_heads;
    const u32 groups_per_block = THREADS / lanes, groups = groups_per_block * gridDim.x;
    float q[COLUMNS] = {}, k[COLUMNS] = {};
    if (columns.any()) {
        columns.load(q, q_weight);
        columns.load(k, k_weight);
    }
    Walk walk(blockIdx.x * groups_per_block + threadIdx.x / lanes, groups, all);
    // All threads make the same number of rounds, as they add across lanes.
    for (u64 done = 0; done < u64(tokens) * all; done += u64(groups) * HEADS) {
        T x[HEADS][COLUMNS];
        u32 token[HEADS], head[HEADS];
        bool mine[HEADS];
        float r[HEADS];
#pragma unroll
        for (u32 h = 0; h < HEADS; h++) {
            token[h] = walk.token;
            head[h] = walk.head;
            mine[h] = token[h] < tokens && columns.any();
            walk.advance();
            if (mine[h]) {
                columns.load(x[h], raw + (u64(token[h]) * all + head[h]) * width);
            }
        }
#pragma unroll
        for (u32 h = 0; h < HEADS; h++) {
            r[h] = 0.0f;
            if (mine[h]) {
#pragma unroll
                for (u32 i = 0; i < COLUMNS; i++) {
                    r[h] += to_float(x[h][i]) * to_float(x[h][i]);
                }
            }
        }
        columns.add(r);
#pragma unroll
        for (u32 h = 0; h < HEADS; h++) {
            if (mine[h]) {
                const bool query = head[h] < heads, value = head[h] >= normed;
                r[h] = value ? 1.0f : reciprocal_sqrt(r[h] * inverse_width + eps);
                float y[COLUMNS];
#pragma unroll
                for (u32 i = 0; i < COLUMNS; i++) {
                    // Exact for value heads.
                    y[i] = to_float(x[h][i]) * r[h] * (query ? q[i] : value ? 1.0f : k[i]);
                }
                columns.store(out + (u64(token[h]) * all + head[h]) * width, y);
                if (columns.lane == 0 && !value) {
                    inv_rms[u64(token[h]) * normed + head[h]] = r[h];
                }
            }
        }
    }
}

// The `count` heads from `first` on, which share a weight: dqkv (tokens, all, width), the gradient
// of out, becomes that of raw; partials (blocks, width): each block's part of dweight. inv_rms has
// `normed` heads a token.
template <class T, bool ALIGNED>
__device__ void qk_norm_backward(const T* raw, const float* weight, const float* inv_rms, T* dqkv,
                                 float* partials, u32 tokens, u32 all, u32 normed, u32 first,
                                 u32 count, u32 width, u32 lanes) {
    constexpr u32 HEADS = ALIGNED ? 2 : 1;
    STATIC_SHARED(float, shared, THREADS * COLUMNS);
    const auto columns = columns_of<ALIGNED>(lanes, width);
    const float inverse_width = divide_fast(1.0f, float(width));
    const u32 groups_per_block = THREADS / lanes, groups = groups_per_block * gridDim.x;
    const u32 group = threadIdx.x / lanes;
    float w[COLUMNS] = {}, dw[COLUMNS] = {};
    if (columns.any()) {
        columns.load(w, weight);
    }
    Walk walk(blockIdx.x * groups_per_block + group, groups, count);
    for (u64 done = 0; done < u64(tokens) * count; done += u64(groups) * HEADS) {
        T x[HEADS][COLUMNS], dy[HEADS][COLUMNS];
        u64 start[HEADS];
        bool mine[HEADS];
        float r[HEADS], slope[HEADS];
#pragma unroll
        for (u32 h = 0; h < HEADS; h++) {
            const u32 head = first + walk.head;
            start[h] = (u64(walk.token) * all + head) * width;
            mine[h] = walk.token < tokens && columns.any();
            if (mine[h]) {
                columns.load(x[h], raw + start[h]);
                columns.load(dy[h], dqkv + start[h]);
                r[h] = inv_rms[u64(walk.token) * normed + head];
            }
            walk.advance();
        }
#pragma unroll
        for (u32 h = 0; h < HEADS; h++) {
            slope[h] = 0.0f;
            if (mine[h]) {
#pragma unroll
                for (u32 i = 0; i < COLUMNS; i++) {
                    const float v = to_float(x[h][i]), g = to_float(dy[h][i]);
                    dw[i] += v * r[h] * g;
                    slope[h] += v * (g * w[i]);
                }
            }
        }
        columns.add(slope);
#pragma unroll
        for (u32 h = 0; h < HEADS; h++) {
            if (mine[h]) {
                slope[h] *= r[h] * r[h] * r[h] * inverse_width;
                float dx[COLUMNS];
#pragma unroll
                for (u32 i = 0; i < COLUMNS; i++) {
                    const float v = to_float(x[h][i]), g = to_float(dy[h][i]);
                    dx[i] = r[h] * (g * w[i]) - v * slope[h];
                }
                columns.store(dqkv + start[h], dx);
            }
        }
    }

    // One row of dw for each group of lanes, then their sum.
#pragma unroll
    for (u32 i = 0; i < COLUMNS; i++) {
        shared[group * lanes * COLUMNS + columns.of(i)] = dw[i];
    }
    sync_threads();
    if (threadIdx.x < width) {
        float total = 0.0f;
        for (u32 g = 0; g < groups_per_block; g++) {
            total += shared[g * lanes * COLUMNS + threadIdx.x];
        }
        partials[u64(blockIdx.x) * width + threadIdx.x] = total;
    }
}

#define INSTANTIATE_ALIGNED(T, ALIGNED, bound, suffix)                                             \
    KERNEL(qk_norm_forward_##suffix, bound, (qk_norm_forward<T, ALIGNED>),                         \
           (const T* raw, const float* q_weight, const float* k_weight, T* out, float* inv_rms,    \
            u32 tokens, u32 heads, u32 kv_heads, u32 width, u32 lanes, float eps),                 \
           (raw, q_weight, k_weight, out, inv_rms, tokens, heads, kv_heads, width, lanes, eps))    \
    KERNEL(qk_norm_backward_##suffix, bound, (qk_norm_backward<T, ALIGNED>),                       \
           (const T* raw, const float* weight, const float* inv_rms, T* dqkv, float* partials,     \
            u32 tokens, u32 all, u32 normed, u32 first, u32 count, u32 width, u32 lanes),          \
           (raw, weight, inv_rms, dqkv, partials, tokens, all, normed, first, count, width, lanes))
#define INSTANTIATE(T, suffix)                                                                     \
    INSTANTIATE_ALIGNED(T, true, RESIDENT_THREADS, suffix)                                         \
    INSTANTIATE_ALIGNED(T, false, THREADS, scalar_##suffix)
FOR_EACH_TYPE(INSTANTIATE)
