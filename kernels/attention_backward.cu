// Attention backward in halves by matrix instructions. With s = head_dim^-1/2, for one head:
//
//   P = e^(s Q K^T - lse) (masked),  dP = dO V^T,  dS = P (dP - delta),  delta = sum dO O by row
//   dQ = s dS K,  dK = s sum dS^T Q,  dV = sum P^T dO        (sums over the key head's queries)
//
// Two kernels compute P again, so that every sum has one owner and a fixed order, and nothing is
// added to memory: one owns some keys of a key head and walks over the queries that see them, head
// by head of its group; the other owns some queries of a head and walks over their keys. Either way
// the next tile is on its way while one is worked on, and P and dS stay in registers: the first
// kernel computes them transposed, so that their layout is that of a left operand of the last
// products.

#include "attention_tile.cuh"

constexpr float LOG2_E = 1.44269504f;

template <u32 TILES, u32 COLUMNS>
__device__ __forceinline__ void multiply_all(float (&d)[TILES][COLUMNS][4], float factor) {
#pragma unroll
    for (u32 i = 0; i < TILES * COLUMNS * 4; i++) {
        d[i / 4 / COLUMNS][i / 4 % COLUMNS][i % 4] *= factor;
    }
}

// Scores transposed (16 TILES keys, 8 STEPS queries) -> P transposed. lse by query, times log2 e.
template <bool MASKED, u32 TILES, u32 STEPS>
__device__ __forceinline__ void weights_by_key(float (&s)[TILES][STEPS][4], const float* lse,
                                               float factor, u32 key, u32 query, u32 window) {
#pragma unroll
    for (u32 n = 0; n < STEPS; n++) {
#pragma unroll
        for (u32 i = 0; i < 2; i++) {
            const u32 column = n * 8 + lane() % 4 * 2 + i;
            const float shift = lse[column];
#pragma unroll
            for (u32 t = 0; t < TILES; t++) {
#pragma unroll
                for (u32 half = 0; half < 2; half++) {
                    float& p = s[t][n][2 * half + i];
                    p = exp2_fast(fmaf(p, factor, -shift));
                    if constexpr (MASKED) {
                        const u32 row = t * 16 + half * 8 + lane() / 4;
                        p = sees(query + column, key + row, window) ? p : 0.0f;
                    }
                }
            }
        }
    }
}

// dP transposed -> dS transposed. delta by query.
template <u32 TILES, u32 STEPS>
__device__ __forceinline__ void gradients_by_key(float (&ds)[TILES][STEPS][4],
                                                 const float (&p)[TILES][STEPS][4],
                                                 const float* delta) {
#pragma unroll
    for (u32 n = 0; n < STEPS; n++) {
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            const float query_delta = delta[n * 8 + lane() % 4 * 2 + i % 2];
#pragma unroll
            for (u32 t = 0; t < TILES; t++) {
                ds[t][n][i] = p[t][n][i] * (ds[t][n][i] - query_delta);
            }
        }
    }
}

// dqkv's keys and values of one of the kv_count key heads from kv_first; delta (kv_count heads /
// kv_heads, tokens). One block for each 64 TILES keys of a key head; heads run fastest. QUERIES are
// looked at at a time. Heads of 256 have registers for one of the two gradients only.
template <class T, u32 D, u32 TILES, u32 QUERIES, bool DKEY, bool DVALUE>
__device__ void attention_backward_keys(const T* qkv, const u32* seq_starts, const float* lse,
                                        const float* delta, const T* dout, T* dqkv, u32 sequences,
                                        u32 tokens, u32 heads, u32 kv_heads, u32 head_dim,
                                        u32 window, float scale, u32 kv_first, u32 kv_count) {
    constexpr u32 ROWS = WARPS * 16 * TILES;
    static_assert(2 * QUERIES <= THREADS, "a thread loads one lse or delta of a tile");
    const u32 kv_head = kv_first + blockIdx.x % kv_count, group = heads / kv_heads;
    const RowBlock block = find_block<ROWS>(seq_starts, sequences, blockIdx.x / kv_count);
    if (block.length == 0) {
        return;
    }
    const u32 width = (heads + 2 * kv_heads) * head_dim, out_width = heads * head_dim;
    const u32 key_column = (heads + kv_head) * head_dim;
    const u32 value_column = (heads + kv_heads + kv_head) * head_dim;
    const T* rows = qkv + u64(block.sequence) * width;
    const T* dout_rows = dout + u64(block.sequence) * out_width;
    const u32 valid = block.length - block.first;

    DYNAMIC_SHARED(T, shared);
    T* const keys = shared;                         // (ROWS, D)
    T* const values = keys + ROWS * D;              // (ROWS, D)
    T* const queries = values + ROWS * D;           // 2 (QUERIES, D)
    T* const douts = queries + 2 * QUERIES * D;     // 2 (QUERIES, D)
    float* const statistics = reinterpret_cast<float*>(douts + 2 * QUERIES * D); // 2 (2, QUERIES)

    // The tiles of queries, head by head.
    const u32 last_key = (valid < ROWS ? block.length : block.first + ROWS) - 1;
    const u32 first_tile = block.first / QUERIES * QUERIES;
    const u32 end = end_of_queries(last_key, window, block.length);
    u32 head = kv_head * group, tile = first_tile;
    const u32 heads_end = head + group;

    // Of lse (as a power of 2) and delta of a tile, the one that the thread loads. No query behind
    // the sequence's end has a weight.
    const auto statistic = [&]() {
        const u32 query = tile + threadIdx.x % QUERIES;
        const u64 row = block.sequence + query;
        if (query >= block.length || threadIdx.x >= 2 * QUERIES) {
            return threadIdx.x < QUERIES ? infinity() : 0.0f;
        }
        return threadIdx.x < QUERIES ? lse[u64(head) * tokens + row] * LOG2_E
                                     : delta[u64(head - kv_first * group) * tokens + row];
    };
    const auto copy_queries = [&](u32 stage) {
        copy_tile<D, QUERIES>(queries + stage * QUERIES * D, rows + head * head_dim, width, tile,
                              block.length, head_dim);
        copy_tile<D, QUERIES>(douts + stage * QUERIES * D, dout_rows + head * head_dim, out_width,
                              tile, block.length, head_dim);
        cp_async_commit();
    };

    copy_tile<D, ROWS>(keys, rows + key_column, width, block.first, block.length, head_dim);
    copy_tile<D, ROWS>(values, rows + value_column, width, block.first, block.length, head_dim);
    copy_queries(0);
    if (threadIdx.x < 2 * QUERIES) {
        statistics[threadIdx.x] = statistic();
    }

    const u32 row_step = uniform_warp() * TILES, key = block.first + row_step * 16;
    const u32 warp_last = key + 16 * TILES - 1;
    const float factor = scale * LOG2_E;
    float dkey[TILES][D / 8][4] = {}, dvalue[TILES][D / 8][4] = {};
    for (u32 stage = 0; head < heads_end; stage ^= 1) {
        // Whether any query of the tile sees any key of the warp, and whether all see all.
        const u32 query = tile, last_query = tile + QUERIES - 1;
        const bool active = key < block.length && key <= last_query &&
                            first_key(query, window) <= warp_last;
        const bool full = warp_last <= query && first_key(last_query, window) <= key;
        cp_async_wait<0>();
        sync_threads();
        tile += QUERIES;
        if (tile >= end) {
            tile = first_tile;
            head++;
        }
        float next_statistic = 0.0f;
        if (head < heads_end) {
            copy_queries(stage ^ 1);
            next_statistic = statistic();
        }
        if (active) {
            const T* query_tile = queries + stage * QUERIES * D;
            const T* dout_tile = douts + stage * QUERIES * D;
            const float* lse_tile = statistics + stage * 2 * QUERIES;
            float p[TILES][QUERIES / 8][4] = {};
            multiply_transposed<D>(p, keys, row_step, query_tile);
            if (full) {
                weights_by_key<false>(p, lse_tile, factor, key, query, window);
            } else {
                weights_by_key<true>(p, lse_tile, factor, key, query, window);
            }
            if constexpr (DVALUE) {
                multiply_rounded<D>(dvalue, p, dout_tile);
            }
            if constexpr (DKEY) {
                float ds[TILES][QUERIES / 8][4] = {};
                multiply_transposed<D>(ds, values, row_step, dout_tile);
                gradients_by_key(ds, p, lse_tile + QUERIES);
                multiply_rounded<D>(dkey, ds, query_tile);
            }
        }
        if (threadIdx.x < 2 * QUERIES) {
            statistics[(stage ^ 1) * 2 * QUERIES + threadIdx.x] = next_statistic;
        }
    }

    T* to = dqkv + u64(block.sequence + not_kept(block.first)) * width;
    if constexpr (DKEY) {
        multiply_all(dkey, scale);
        store_rows<D>(to + key_column, width, valid, head_dim, keys, row_step, dkey);
    }
    if constexpr (DVALUE) {
        store_rows<D>(to + value_column, width, valid, head_dim, values, row_step, dvalue);
    }
}

// Scores (16 TILES queries, 8 STEPS keys) -> P. lse by query, times log2 e.
template <bool MASKED, u32 TILES, u32 STEPS>
__device__ __forceinline__ void weights_by_query(float (&s)[TILES][STEPS][4], const float* lse,
                                                 float factor, u32 query, u32 key, u32 window) {
#pragma unroll
    for (u32 t = 0; t < TILES; t++) {
#pragma unroll
        for (u32 half = 0; half < 2; half++) {
            const u32 row = t * 16 + half * 8 + lane() / 4;
            const float shift = lse[row];
#pragma unroll
            for (u32 i = 0; i < 2 * STEPS; i++) {
                float& p = s[t][i / 2][2 * half + i % 2];
                p = exp2_fast(fmaf(p, factor, -shift));
                if constexpr (MASKED) {
                    const u32 column = i / 2 * 8 + lane() % 4 * 2 + i % 2;
                    p = sees(query + row, key + column, window) ? p : 0.0f;
                }
            }
        }
    }
}

// dP -> dS. delta by query.
template <u32 TILES, u32 STEPS>
__device__ __forceinline__ void gradients_by_query(float (&ds)[TILES][STEPS][4],
                                                   const float (&p)[TILES][STEPS][4],
                                                   const float* delta) {
#pragma unroll
    for (u32 t = 0; t < TILES; t++) {
#pragma unroll
        for (u32 half = 0; half < 2; half++) {
            const float row_delta = delta[t * 16 + half * 8 + lane() / 4];
#pragma unroll
            for (u32 i = 0; i < 2 * STEPS; i++) {
                float& gradient = ds[t][i / 2][2 * half + i % 2];
                gradient = p[t][i / 2][2 * half + i % 2] * (gradient - row_delta);
            }
        }
    }
}

// dqkv's queries of the kv_count heads / kv_heads heads from the first of key head kv_first. One
// block for each 64 TILES queries of a head; heads run fastest. KEYS are looked at at a time.
template <class T, u32 D, u32 TILES, u32 KEYS>
__device__ void attention_backward_queries(const T* qkv, const u32* seq_starts, const float* lse,
                                           const float* delta, const T* dout, T* dqkv,
                                           u32 sequences, u32 tokens, u32 heads, u32 kv_heads,
                                           u32 head_dim, u32 window, float scale, u32 kv_first,
                                           u32 kv_count) {
    constexpr u32 ROWS = WARPS * 16 * TILES;
    const u32 group = heads / kv_heads, head_in_chunk = blockIdx.x % (kv_count * group);
    const u32 head = kv_first * group + head_in_chunk, kv_head = head / group;
    const RowBlock block =
        find_block<ROWS>(seq_starts, sequences, blockIdx.x / (kv_count * group));
    if (block.length == 0) {
        return;
    }
    const u32 width = (heads + 2 * kv_heads) * head_dim, out_width = heads * head_dim;
    const T* rows = qkv + u64(block.sequence) * width;
    const T* key_rows = rows + (heads + kv_head) * head_dim;
    const T* value_rows = rows + (heads + kv_heads + kv_head) * head_dim;
    const T* dout_rows = dout + u64(block.sequence) * out_width + head * head_dim;
    const u64 first_row = u64(block.sequence) + block.first;
    const u32 valid = block.length - block.first;

    DYNAMIC_SHARED(T, shared);
    T* const queries = shared;                  // (ROWS, D)
    T* const douts = queries + ROWS * D;        // (ROWS, D)
    T* const keys = douts + ROWS * D;           // 2 (KEYS, D)
    T* const values = keys + 2 * KEYS * D;      // 2 (KEYS, D)
    float* const statistics = reinterpret_cast<float*>(values + 2 * KEYS * D); // (2, ROWS)

    u32 tile = first_key(block.first, window) / KEYS * KEYS;
    const u32 end = valid < ROWS ? block.length : block.first + ROWS;
    const auto copy_keys = [&](u32 stage) {
        copy_tile<D, KEYS>(keys + stage * KEYS * D, key_rows, width, tile, block.length, head_dim);
        copy_tile<D, KEYS>(values + stage * KEYS * D, value_rows, width, tile, block.length,
                           head_dim);
        cp_async_commit();
    };
    copy_tile<D, ROWS>(queries, rows + head * head_dim, width, block.first, block.length, head_dim);
    copy_tile<D, ROWS>(douts, dout_rows, out_width, block.first, block.length, head_dim);
    copy_keys(0);

    // No query behind the sequence's end has a weight.
    for (u32 row = threadIdx.x; row < ROWS; row += THREADS) {
        const bool inside = row < valid;
        statistics[row] = inside ? lse[u64(head) * tokens + first_row + row] * LOG2_E : infinity();
        statistics[ROWS + row] =
            inside ? delta[u64(head_in_chunk) * tokens + first_row + row] : 0.0f;
    }

    const u32 row_step = uniform_warp() * TILES, query = block.first + row_step * 16;
    const float* const lse_rows = statistics + row_step * 16;
    const u32 warp_last = query + 16 * TILES - 1;
    const float factor = scale * LOG2_E;
    float dquery[TILES][D / 8][4] = {};
    for (u32 stage = 0; tile < end; stage ^= 1) {
        // Whether any query of the warp sees any key of the tile, and whether all see all.
        const u32 key = tile;
        const bool active = query < block.length && key <= warp_last &&
                            key + KEYS > first_key(query, window);
        const bool full = key + KEYS <= query + 1 && first_key(warp_last, window) <= key;
        cp_async_wait<0>();
        sync_threads();
        tile += KEYS;
        if (tile < end) {
            copy_keys(stage ^ 1);
        }
        if (active) {
            const T* key_tile = keys + stage * KEYS * D;
            const T* value_tile = values + stage * KEYS * D;
            float p[TILES][KEYS / 8][4] = {}, ds[TILES][KEYS / 8][4] = {};
            multiply_transposed<D>(p, queries, row_step, key_tile);
            if (full) {
                weights_by_query<false>(p, lse_rows, factor, query, key, window);
            } else {
                weights_by_query<true>(p, lse_rows, factor, query, key, window);
            }
            multiply_transposed<D>(ds, douts, row_step, value_tile);
            gradients_by_query(ds, p, lse_rows + ROWS);
            multiply_rounded<D>(dquery, ds, key_tile);
        }
    }

    multiply_all(dquery, scale);
    T* to = dqkv + u64(block.sequence + not_kept(block.first)) * width + head * head_dim;
    store_rows<D>(to, width, valid, head_dim, queries, row_step, dquery);
}

#define INSTANTIATE_KERNEL(name, body, T, suffix, D)                                               \
    KERNEL(attention_backward_##name##_##D##_##suffix, 128, body,                                  \
           (const T* qkv, const u32* seq_starts, const float* lse, const float* delta,             \
            const T* dout, T* dqkv, u32 sequences, u32 tokens, u32 heads, u32 kv_heads,            \
            u32 head_dim, u32 window, float scale, u32 kv_first, u32 kv_count),                    \
           (qkv, seq_starts, lse, delta, dout, dqkv, sequences, tokens, heads, kv_heads, head_dim, \
            window, scale, kv_first, kv_count))
#define INSTANTIATE_KEYS(name, T, suffix, D, TILES, QUERIES, DKEY, DVALUE)                         \
    INSTANTIATE_KERNEL(name, (attention_backward_keys<T, D, TILES, QUERIES, DKEY, DVALUE>), T,     \
                       suffix, D)
#define INSTANTIATE_QUERIES(T, suffix, D, TILES, KEYS)                                             \
    INSTANTIATE_KERNEL(queries, (attention_backward_queries<T, D, TILES, KEYS>), T, suffix, D)
#define INSTANTIATE(T, suffix)                                                                     \
    INSTANTIATE_KEYS(keys, T, suffix, 64, 2, 32, true, true)                                       \
    INSTANTIATE_KEYS(keys, T, suffix, 80, 1, 32, true, true)                                       \
    INSTANTIATE_KEYS(keys, T, suffix, 96, 1, 32, true, true)                                       \
    INSTANTIATE_KEYS(keys, T, suffix, 128, 1, 32, true, true)                                      \
    INSTANTIATE_KEYS(keys, T, suffix, 256, 1, 16, true, false)                                     \
    INSTANTIATE_KEYS(values, T, suffix, 256, 1, 16, false, true)                                   \
    INSTANTIATE_QUERIES(T, suffix, 64, 2, 32)                                                      \
    INSTANTIATE_QUERIES(T, suffix, 80, 2, 32)                                                      \
    INSTANTIATE_QUERIES(T, suffix, 96, 2, 32)                                                      \
    INSTANTIATE_QUERIES(T, suffix, 128, 2, 32)                                                     \
    INSTANTIATE_QUERIES(T, suffix, 256, 1, 16)
FOR_EACH_HALF_TYPE(INSTANTIATE)
