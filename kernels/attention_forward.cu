// Attention forward in halves by matrix instructions (Dao 2023, "FlashAttention-2"). With
// s = head_dim^-1/2, for one head:
//
//   S = s Q K^T (masked),  lse = log sum e^S by row,  P = e^(S - lse),  O = P V
//
// A block owns some queries of a head and walks over the tiles of keys that they see, from the
// diagonal down: a query sees itself, so that its greatest score is finite after the first tile.
// The next V is on its way while Q K^T is computed, and the next K while the softmax and P V are. A
// warp owns 16 TILES queries; S and P stay in its registers. Exponentials have base 2: the scale
// and log2 e are one factor, applied in the fused multiply-add that subtracts the greatest score.

#include "attention_tile.cuh"

constexpr float LOG2_E = 1.44269504f, LN_2 = 0.693147181f;

// A thread holds the rows lane / 4 and lane / 4 + 8 of each 16: factor[tile] of the two.
template <u32 TILES, u32 COLUMNS>
__device__ __forceinline__ void multiply_rows(float (&d)[TILES][COLUMNS][4],
                                              const float (&factor)[TILES][2]) {
#pragma unroll
    for (u32 t = 0; t < TILES; t++) {
#pragma unroll
        for (u32 n = 0; n < COLUMNS; n++) {
#pragma unroll
            for (u32 i = 0; i < 4; i++) {
                d[t][n][i] *= factor[t][i / 2];
            }
        }
    }
}

// Scores (16 TILES, 8 STEPS) -> numerators of P; rescales `result` and `total` to the new greatest
// scores. `total` is the thread's part of the sum.
template <bool MASKED, u32 TILES, u32 STEPS, u32 COLUMNS>
__device__ __forceinline__ void softmax(float (&s)[TILES][STEPS][4], float (&top)[TILES][2],
                                        float (&total)[TILES][2],
                                        float (&result)[TILES][COLUMNS][4], float factor,
                                        u32 query, u32 key, u32 window) {
    float correction[TILES][2];
    bool changed = false;
#pragma unroll
    for (u32 t = 0; t < TILES; t++) {
#pragma unroll
        for (u32 half = 0; half < 2; half++) {
            float greatest = top[t][half];
#pragma unroll
            for (u32 i = 0; i < 2 * STEPS; i++) {
                float& score = s[t][i / 2][2 * half + i % 2];
                if constexpr (MASKED) {
                    const u32 column = i / 2 * 8 + lane() % 4 * 2 + i % 2;
                    score = sees(query + t * 16 + half * 8 + lane() / 4, key + column, window)
                                ? score
                                : -infinity();
                }
                greatest = fmaxf(greatest, score);
            }
            greatest = fmaxf(greatest, shuffle_xor(greatest, 1));
            greatest = fmaxf(greatest, shuffle_xor(greatest, 2));
            const float shift = greatest * factor;
            changed |= greatest != top[t][half];
            correction[t][half] = exp2_fast(fmaf(top[t][half], factor, -shift));
            top[t][half] = greatest;
            float sum = 0.0f;
#pragma unroll
            for (u32 i = 0; i < 2 * STEPS; i++) {
                float& p = s[t][i / 2][2 * half + i % 2];
                p = exp2_fast(fmaf(p, factor, -shift));
                sum += p;
            }
            total[t][half] = fmaf(total[t][half], correction[t][half], sum);
        }
    }
    // Greatest scores rarely change after the first tiles; otherwise the corrections are 1.
    if (ballot(changed) != 0) {
        multiply_rows(result, correction);
    }
}

// qkv (tokens, (heads + 2 kv_heads) head_dim) -> out (tokens, heads head_dim), lse (heads, tokens).
// One block for each 64 TILES queries of a head; heads run fastest.
template <class T, u32 D, u32 TILES, u32 KEYS>
__device__ void attention_forward(const T* qkv, const u32* seq_starts, T* out, float* lse,
                                  u32 sequences, u32 tokens, u32 heads, u32 kv_heads, u32 head_dim,
                                  u32 window, float scale) {
    constexpr u32 ROWS = WARPS * 16 * TILES;
    // Queries that take few registers are kept there.
    constexpr bool KEEP = D * TILES <= 128;
    const u32 head = blockIdx.x % heads, kv_head = head / (heads / kv_heads);
    const RowBlock block = find_block<ROWS>(seq_starts, sequences, blockIdx.x / heads);
    if (block.length == 0) {
        return;
    }
    const u32 width = (heads + 2 * kv_heads) * head_dim, out_width = heads * head_dim;
    const u64 first_row = block.sequence + block.first;
    const T* rows = qkv + u64(block.sequence) * width;
    const T* key_rows = rows + (heads + kv_head) * head_dim;
    const T* value_rows = rows + (heads + kv_heads + kv_head) * head_dim;
    const u32 valid = block.length - block.first;

    DYNAMIC_SHARED(T, shared);
    T* const queries = shared;               // (ROWS, D)
    T* const keys = queries + ROWS * D;      // (KEYS, D)
    T* const values = keys + KEYS * D;       // (KEYS, D)

    const u32 last_query = (valid < ROWS ? block.length : block.first + ROWS) - 1;
    const u32 last_tile = first_key(block.first, window) / KEYS * KEYS;
    u32 tile = last_query / KEYS * KEYS;
    copy_tile<D, ROWS>(queries, rows + head * head_dim, width, block.first, block.length, head_dim);
    copy_tile<D, KEYS>(keys, key_rows, width, tile, block.length, head_dim);
    cp_async_commit();

    const u32 row_step = uniform_warp() * TILES, query = block.first + row_step * 16;
    const float factor = scale * LOG2_E;
    float top[TILES][2], total[TILES][2] = {}, result[TILES][D / 8][4] = {};
#pragma unroll
    for (u32 t = 0; t < TILES; t++) {
        top[t][0] = top[t][1] = -infinity();
    }
    const Reader<D> of_rows = reader_of_rows<D>(), of_columns = reader_of_columns<D>();
    u32 kept[KEEP ? D / 16 : 1][TILES][4];
    if constexpr (KEEP) {
        cp_async_wait<0>();
        sync_threads();
#pragma unroll
        for (u32 k = 0; k < D / 16; k++) {
#pragma unroll
            for (u32 t = 0; t < TILES; t++) {
                ldmatrix_x4(kept[k][t], queries + of_rows.at(row_step + t, k));
            }
        }
    }

    for (;; tile -= KEYS) {
        // Whether any query of the warp sees any key of the tile, and whether all see all.
        const u32 warp_last = query + 16 * TILES - 1;
        const bool active = query < block.length && tile <= warp_last &&
                            tile + KEYS > first_key(query, window);
        const bool full = tile + KEYS <= query + 1 && first_key(warp_last, window) <= tile;
        cp_async_wait<0>();
        sync_threads();
        copy_tile<D, KEYS>(values, value_rows, width, tile, block.length, head_dim);
        cp_async_commit();
        float s[TILES][KEYS / 8][4] = {};
        if (active) {
            if constexpr (KEEP) {
#pragma unroll
                for (u32 k = 0; k < D / 16; k++) {
#pragma unroll
                    for (u32 n = 0; n < KEYS / 8; n += 2) {
                        u32 b[4];
                        ldmatrix_x4(b, keys + of_columns.at(n / 2, k));
                        multiply_pair<T>(s, n, kept[k], b);
                    }
                }
            } else {
                multiply_transposed<D>(s, queries, row_step, keys);
            }
        }
        cp_async_wait<0>();
        sync_threads();
        if (tile != last_tile) {
            copy_tile<D, KEYS>(keys, key_rows, width, tile - KEYS, block.length, head_dim);
            cp_async_commit();
        }
        if (active) {
            if (full) {
                softmax<false>(s, top, total, result, factor, query, tile, window);
            } else {
                softmax<true>(s, top, total, result, factor, query, tile, window);
            }
            multiply_rounded<D>(result, s, values);
        }
        if (tile == last_tile) {
            break;
        }
    }

    float inverse[TILES][2];
#pragma unroll
    for (u32 t = 0; t < TILES; t++) {
#pragma unroll
        for (u32 half = 0; half < 2; half++) {
            float sum = total[t][half];
            sum += shuffle_xor(sum, 1);
            sum += shuffle_xor(sum, 2);
            inverse[t][half] = divide_fast(1.0f, sum);
            const u32 row = (row_step + t) * 16 + half * 8 + lane() / 4;
            if (row < valid && lane() % 4 == 0) {
                lse[u64(head) * tokens + first_row + row] =
                    fmaf(top[t][half] * factor, LN_2, logf(sum));
            }
        }
    }
    multiply_rows(result, inverse);
    store_rows<D>(out + first_row * out_width + head * head_dim, out_width, valid, head_dim,
                  queries, row_step, result);
}

#define INSTANTIATE_WIDTH(T, suffix, D, TILES, KEYS)                                               \
    KERNEL(attention_forward_##D##_##suffix, 128, (attention_forward<T, D, TILES, KEYS>),          \
           (const T* qkv, const u32* seq_starts, T* out, float* lse, u32 sequences, u32 tokens,    \
            u32 heads, u32 kv_heads, u32 head_dim, u32 window, float scale),                       \
           (qkv, seq_starts, out, lse, sequences, tokens, heads, kv_heads, head_dim, window,       \
            scale))
#define INSTANTIATE(T, suffix)                                                                     \
    INSTANTIATE_WIDTH(T, suffix, 64, 2, 64)                                                        \
    INSTANTIATE_WIDTH(T, suffix, 80, 2, 64)                                                        \
    INSTANTIATE_WIDTH(T, suffix, 96, 2, 64)                                                        \
    INSTANTIATE_WIDTH(T, suffix, 128, 2, 32)                                                       \
    INSTANTIATE_WIDTH(T, suffix, 256, 1, 64)
FOR_EACH_HALF_TYPE(INSTANTIATE)
