// Attention in float32 arithmetic without matrix instructions: for float32 tensors, and for halves
// whose heads are not rows of whole 16 bytes. With s = head_dim^-1/2, for one head:
//
//   forward   S = s Q K^T (masked),  lse = log sum e^S by row,  P = e^(S - lse),  O = P V
//   backward  delta = sum dO O by row,  dP = dO V^T,  dS = P (dP - delta)
//             dQ = s dS K,  dK = s sum dS^T Q,  dV = sum P^T dO  (sums over a key head's queries)
//
// Only lse is kept between the two. A warp owns some rows, a lane is one column of S: S, P and dS
// stay in registers, and pass through a few numbers of shared memory to be multiplied by rows of V,
// K, Q or dO, of which a lane then owns every 32nd column. The backward has two kernels, one by
// blocks of keys and one by blocks of queries, so that every sum has one owner and a fixed order.

#include "attention.cuh"

constexpr u32 THREADS = 256;
constexpr u32 WARPS = THREADS / WARP;
// Rows of a warp, and of the block.
constexpr u32 ROWS = 2, BLOCK = WARPS * ROWS;
// Columns of a lane: heads up to 256 wide.
constexpr u32 COLUMNS = 256 / WARP;

// Between rows of a tile in shared memory; odd, so that 32 rows lie in 32 banks.
__device__ __forceinline__ u32 stride_of(u32 head_dim) { return not_kept(head_dim) | 1; }

// Rows of global memory, row_width apart -> tile (rows, stride); those from `valid` on are zeros.
template <class T>
__device__ __forceinline__ void load_tile(float* tile, u32 rows, const T* from, u32 row_width,
                                          u32 valid, u32 head_dim) {
    for (u32 row = warp(); row < rows; row += WARPS) {
#pragma unroll 2
        for (u32 c = lane(); c < head_dim; c += WARP) {
            tile[row * stride_of(head_dim) + c] =
                row < valid ? to_float(from[u64(row) * row_width + c]) : 0.0f;
        }
    }
}

// result[r] += the warp's row r of `rows` times the lane's row of `columns`.
__device__ __forceinline__ void multiply_transposed(float (&result)[ROWS], const float* rows,
                                                    const float* columns, u32 head_dim) {
    const u32 stride = stride_of(head_dim);
#pragma unroll 2
    for (u32 c = 0; c < head_dim; c++) {
        const float column = columns[lane() * stride + c];
#pragma unroll
        for (u32 r = 0; r < ROWS; r++) {
            result[r] = fmaf(rows[(warp() * ROWS + r) * stride + c], column, result[r]);
        }
    }
}

// result += weights (ROWS, 32), one column a lane, times tile (32, head_dim). `exchange` holds ROWS
// times 32 numbers of the warp's own.
__device__ __forceinline__ void multiply(float (&result)[ROWS][COLUMNS],
                                         const float (&weights)[ROWS], const float* tile,
                                         float* exchange, u32 head_dim) {
    sync_warp();
#pragma unroll
    for (u32 r = 0; r < ROWS; r++) {
        exchange[r * WARP + lane()] = weights[r];
    }
    sync_warp();
#pragma unroll 1
    for (u32 j = 0; j < WARP; j++) {
        const float* row = tile + j * stride_of(head_dim);
#pragma unroll
        for (u32 n = 0; n < COLUMNS; n++) {
            const u32 c = n * WARP + lane();
            if (c < head_dim) {
#pragma unroll
                for (u32 r = 0; r < ROWS; r++) {
                    result[r][n] = fmaf(exchange[r * WARP + j], row[c], result[r][n]);
                }
            }
        }
    }
}

// The warp's rows of result, times factor[r], to rows of global memory, by way of its rows of a
// tile that nobody else reads: a lane's columns are spread.
template <class T>
__device__ __forceinline__ void store_rows(T* to, u32 row_width, u32 valid, float* tile,
                                           const float (&result)[ROWS][COLUMNS],
                                           const float (&factor)[ROWS], u32 head_dim) {
    float* const rows = tile + warp() * ROWS * stride_of(head_dim);
    sync_warp();
#pragma unroll
    for (u32 n = 0; n < COLUMNS; n++) {
        const u32 c = n * WARP + lane();
        if (c < head_dim) {
#pragma unroll
            for (u32 r = 0; r < ROWS; r++) {
                rows[r * stride_of(head_dim) + c] = result[r][n] * factor[r];
            }
        }
    }
    sync_warp();
    for (u32 r = 0; r < ROWS && warp() * ROWS + r < valid; r++) {
#pragma unroll 1
        for (u32 c = lane(); c < head_dim; c += WARP) {
            to[u64(warp() * ROWS + r) * row_width + c] =
                from_float<T>(rows[r * stride_of(head_dim) + c]);
        }
    }
}

// qkv (tokens, (heads + 2 kv_heads) head_dim) -> out (tokens, heads head_dim), lse (heads, tokens).
// One block for each 16 queries of a head; heads run fastest.
template <class T>
__device__ void attention_forward_simt(const T* qkv, const u32* seq_starts, T* out, float* lse,
                                       u32 sequences, u32 tokens, u32 heads, u32 kv_heads,
                                       u32 head_dim, u32 window, float scale) {
    const u32 head = blockIdx.x % heads, kv_head = head / (heads / kv_heads);
    const RowBlock block = find_block<BLOCK>(seq_starts, sequences, blockIdx.x / heads);
    if (block.length == 0) {
        return;
    }
    const u32 width = (heads + 2 * kv_heads) * head_dim;
    const T* rows = qkv + u64(block.sequence) * width;
    const u32 key_column = (heads + kv_head) * head_dim;
    const u32 value_column = (heads + kv_heads + kv_head) * head_dim;
    const u32 stride = stride_of(head_dim), valid = block.length - block.first;

    DYNAMIC_SHARED(float, shared);
    float* const queries = shared;                      // (16, stride)
    float* const tile = queries + BLOCK * stride; // (32, stride): keys, then values
    float* const exchange = tile + WARP * stride + warp() * ROWS * WARP;
    load_tile(queries, BLOCK, rows + u64(block.first) * width + head * head_dim, width, valid,
              head_dim);

    float top[ROWS], total[ROWS], result[ROWS][COLUMNS];
#pragma unroll
    for (u32 r = 0; r < ROWS; r++) {
        top[r] = -infinity();
        total[r] = 0.0f;
        for (u32 n = 0; n < COLUMNS; n++) {
            result[r][n] = 0.0f;
        }
    }
    // From the diagonal down: as a query sees itself, `top` is finite after the first tile.
    const u32 last_tile = first_key(block.first, window) / WARP * WARP;
    for (u32 keys = block.first / WARP * WARP;; keys -= WARP) {
        const u32 valid_keys = block.length - keys;
        sync_threads();
        load_tile(tile, WARP, rows + u64(keys) * width + key_column, width, valid_keys, head_dim);
        sync_threads();
        float p[ROWS] = {};
        multiply_transposed(p, queries, tile, head_dim);
#pragma unroll
        for (u32 r = 0; r < ROWS; r++) {
            const u32 query = block.first + warp() * ROWS + r;
            const float score = sees(query, keys + lane(), window) ? p[r] * scale : -infinity();
            const float new_top = fmaxf(top[r], warp_max(score));
            const float correction = expf(top[r] - new_top);
            top[r] = new_top;
            p[r] = expf(score - new_top);
            total[r] = total[r] * correction + warp_sum(p[r]);
#pragma unroll
            for (u32 n = 0; n < COLUMNS; n++) {
                result[r][n] *= correction;
            }
        }
        sync_threads();
        load_tile(tile, WARP, rows + u64(keys) * width + value_column, width, valid_keys, head_dim);
        sync_threads();
        multiply(result, p, tile, exchange, head_dim);
        if (keys == last_tile) {
            break;
        }
    }
    float inverse[ROWS];
#pragma unroll
    for (u32 r = 0; r < ROWS; r++) {
        inverse[r] = 1.0f / total[r];
        const u32 row = warp() * ROWS + r;
        if (row < valid && lane() == 0) {
            lse[u64(head) * tokens + block.sequence + block.first + row] = top[r] + logf(total[r]);
        }
    }
    const u32 out_width = heads * head_dim;
    store_rows(out + u64(block.sequence + block.first) * out_width + head * head_dim, out_width,
               valid, queries, result, inverse, head_dim);
}

// A block of keys: its part of dqkv from all queries that see it. One block for each 16 keys of one
// of the kv_count key heads from kv_first; delta (kv_count heads / kv_heads, tokens).
template <class T>
__device__ void attention_backward_keys_simt(const T* qkv, const u32* seq_starts, const float* lse,
                                             const float* delta, const T* dout, T* dqkv,
                                             u32 sequences, u32 tokens, u32 heads, u32 kv_heads,
                                             u32 head_dim, u32 window, float scale, u32 kv_first,
                                             u32 kv_count) {
    const u32 kv_head = kv_first + blockIdx.x % kv_count, group = heads / kv_heads;
    const RowBlock block = find_block<BLOCK>(seq_starts, sequences, blockIdx.x / kv_count);
    if (block.length == 0) {
        return;
    }
    const u32 width = (heads + 2 * kv_heads) * head_dim, out_width = heads * head_dim;
    const u64 first_row = u64(block.sequence) + block.first;
    const u32 key_column = (heads + kv_head) * head_dim;
    const u32 value_column = (heads + kv_heads + kv_head) * head_dim;
    const u32 valid = block.length - block.first;

    // Rows in shared memory: keys (16), values (16), queries (32), dout (32), exchange.
    DYNAMIC_SHARED(float, shared);
    const auto tile = [&](u32 row) { return shared + row * stride_of(head_dim); };
    constexpr u32 KEYS = 0, VALUES = BLOCK, QUERIES = 2 * BLOCK, DOUT = QUERIES + WARP,
                  EXCHANGE = DOUT + WARP;
    load_tile(tile(KEYS), BLOCK, qkv + first_row * width + key_column, width, valid, head_dim);
    load_tile(tile(VALUES), BLOCK, qkv + first_row * width + value_column, width, valid,
              head_dim);

    float dkey[ROWS][COLUMNS] = {}, dvalue[ROWS][COLUMNS] = {};
    const u32 last = (valid < BLOCK ? block.length : block.first + BLOCK) - 1;
    const u32 end = end_of_queries(last, window, block.length);
    for (u32 head = kv_head * group; head < (kv_head + 1) * group; head++) {
        for (u32 queries = block.first / WARP * WARP; queries < end; queries += WARP) {
            sync_threads();
            const u64 row = not_kept(block.sequence) + queries;
            load_tile(tile(QUERIES), WARP, qkv + row * width + head * head_dim, width,
                      block.length - queries, head_dim);
            load_tile(tile(DOUT), WARP, dout + row * out_width + head * head_dim, out_width,
                      block.length - queries, head_dim);
            sync_threads();
            const u32 query = queries + lane();
            const bool inside = query < block.length;
            const u32 head_in_chunk = head - kv_first * group;
            const float query_lse = inside ? lse[u64(head) * tokens + row + lane()] : 0.0f;
            const float query_delta =
                inside ? delta[u64(head_in_chunk) * tokens + row + lane()] : 0.0f;
            float p[ROWS] = {}, ds[ROWS] = {};
            multiply_transposed(p, tile(KEYS), tile(QUERIES), head_dim);
            multiply_transposed(ds, tile(VALUES), tile(DOUT), head_dim);
#pragma unroll
            for (u32 r = 0; r < ROWS; r++) {
                const u32 key = block.first + warp() * ROWS + r;
                const bool seen = inside && sees(query, key, window);
                p[r] = seen ? expf(p[r] * scale - query_lse) : 0.0f;
                ds[r] = seen ? p[r] * (ds[r] - query_delta) : 0.0f;
            }
            float* const exchange = tile(EXCHANGE) + warp() * ROWS * WARP;
            multiply(dvalue, p, tile(DOUT), exchange, head_dim);
            multiply(dkey, ds, tile(QUERIES), exchange, head_dim);
        }
    }
    T* to = dqkv + u64(block.sequence + not_kept(block.first)) * width;
    float factor[ROWS] = {scale, scale}, one[ROWS] = {1.0f, 1.0f};
    store_rows(to + key_column, width, valid, tile(KEYS), dkey, factor, head_dim);
    store_rows(to + value_column, width, valid, tile(VALUES), dvalue, one, head_dim);
}

// A block of queries: its part of dqkv. One block for each 16 queries of a head of the key heads'
// groups; other arguments as above.
template <class T>
__device__ void attention_backward_queries_simt(const T* qkv, const u32* seq_starts,
                                                const float* lse, const float* delta, const T* dout,
                                                T* dqkv, u32 sequences, u32 tokens, u32 heads,
                                                u32 kv_heads, u32 head_dim, u32 window, float scale,
                                                u32 kv_first, u32 kv_count) {
    const u32 group = heads / kv_heads, head_in_chunk = blockIdx.x % (kv_count * group);
    const u32 head = kv_first * group + head_in_chunk, kv_head = head / group;
    const RowBlock block =
        find_block<BLOCK>(seq_starts, sequences, blockIdx.x / (kv_count * group));
    if (block.length == 0) {
        return;
    }
    const u32 width = (heads + 2 * kv_heads) * head_dim, out_width = heads * head_dim;
    const T* rows = qkv + u64(block.sequence) * width;
    const u32 key_column = (heads + kv_head) * head_dim;
    const u32 value_column = (heads + kv_heads + kv_head) * head_dim;
    const u32 stride = stride_of(head_dim), valid = block.length - block.first;

    DYNAMIC_SHARED(float, shared);
    float* const query_tile = shared;                              // (16, stride)
    float* const dout_tile = query_tile + BLOCK * stride; // (16, stride)
    float* const key_tile = dout_tile + BLOCK * stride;   // (32, stride)
    float* const value_tile = key_tile + WARP * stride;            // (32, stride)
    float* const exchange = value_tile + WARP * stride + warp() * ROWS * WARP;
    load_tile(query_tile, BLOCK, rows + u64(block.first) * width + head * head_dim, width,
              valid, head_dim);
    load_tile(dout_tile, BLOCK,
              dout + u64(block.sequence + block.first) * out_width + head * head_dim, out_width,
              valid, head_dim);

    float query_lse[ROWS], query_delta[ROWS];
#pragma unroll
    for (u32 r = 0; r < ROWS; r++) {
        const u32 query = block.first + warp() * ROWS + r;
        const u64 row = block.sequence + query;
        const bool inside = query < block.length;
        query_lse[r] = inside ? lse[u64(head) * tokens + row] : 0.0f;
        query_delta[r] = inside ? delta[u64(head_in_chunk) * tokens + row] : 0.0f;
    }
    float dquery[ROWS][COLUMNS] = {};
    const u32 end = valid < BLOCK ? block.length : block.first + BLOCK;
    for (u32 keys = first_key(block.first, window) / WARP * WARP; keys < end; keys += WARP) {
        sync_threads();
        load_tile(key_tile, WARP, rows + u64(keys) * width + key_column, width, block.length - keys,
                  head_dim);
        load_tile(value_tile, WARP, rows + u64(keys) * width + value_column, width,
                  block.length - keys, head_dim);
        sync_threads();
        float p[ROWS] = {}, ds[ROWS] = {};
        multiply_transposed(p, query_tile, key_tile, head_dim);
        multiply_transposed(ds, dout_tile, value_tile, head_dim);
#pragma unroll
        for (u32 r = 0; r < ROWS; r++) {
            const u32 query = block.first + warp() * ROWS + r;
            const bool seen = query < block.length && sees(query, keys + lane(), window);
            const float weight = seen ? expf(p[r] * scale - query_lse[r]) : 0.0f;
            ds[r] = seen ? weight * (ds[r] - query_delta[r]) : 0.0f;
        }
        multiply(dquery, ds, key_tile, exchange, head_dim);
    }
    float factor[ROWS] = {scale, scale};
    store_rows(dqkv + u64(block.sequence + block.first) * width + head * head_dim, width, valid,
               query_tile, dquery, factor, head_dim);
}

#define INSTANTIATE(T, suffix)                                                                     \
    KERNEL(attention_forward_simt_##suffix, 256, (attention_forward_simt<T>),                      \
           (const T* qkv, const u32* seq_starts, T* out, float* lse, u32 sequences, u32 tokens,    \
            u32 heads, u32 kv_heads, u32 head_dim, u32 window, float scale),                       \
           (qkv, seq_starts, out, lse, sequences, tokens, heads, kv_heads, head_dim, window,       \
            scale))                                                                                \
    KERNEL(attention_backward_keys_simt_##suffix, 256, (attention_backward_keys_simt<T>),          \
           (const T* qkv, const u32* seq_starts, const float* lse, const float* delta,             \
            const T* dout, T* dqkv, u32 sequences, u32 tokens, u32 heads, u32 kv_heads,            \
            u32 head_dim, u32 window, float scale, u32 kv_first, u32 kv_count),                    \
           (qkv, seq_starts, lse, delta, dout, dqkv, sequences, tokens, heads, kv_heads, head_dim, \
            window, scale, kv_first, kv_count))                                                    \
    KERNEL(attention_backward_queries_simt_##suffix, 256, (attention_backward_queries_simt<T>),    \
           (const T* qkv, const u32* seq_starts, const float* lse, const float* delta,             \
            const T* dout, T* dqkv, u32 sequences, u32 tokens, u32 heads, u32 kv_heads,            \
            u32 head_dim, u32 window, float scale, u32 kv_first, u32 kv_count),                    \
           (qkv, seq_starts, lse, delta, dout, dqkv, sequences, tokens, heads, kv_heads, head_dim, \
            window, scale, kv_first, kv_count))
FOR_EACH_TYPE(INSTANTIATE)
