// One new token's attention to the keys and values of a cache (capacity, 2 kv_heads head_dim), keys
// first, and the copy of new keys and values into it.
//
// Bound by memory. The keys are split over blocks, each of which leaves (sum of P V, greatest
// score, sum of P) of its part; a second kernel adds the parts in their order. A row of keys or
// values is shared by neighbouring lanes, which take 16 bytes each where they can.

#include "attention.cuh"

constexpr u32 THREADS = 256;
// Columns of a lane: heads up to 256 wide.
constexpr u32 COLUMNS = 8;
// Keys whose scores are held at a time.
constexpr u32 KEYS = 256;

// Keys and values of qkv (rows, qkv_width) -> cache (rows, kv_width); they stand behind the
// queries.
template <class T>
__device__ void attention_cache(const T* qkv, T* cache, u64 rows, u32 qkv_width, u32 kv_width,
                                u32 wide) {
    const u32 step = wide ? Vec<T>::COUNT : 1, pieces = kv_width / step;
    const u64 end = rows * pieces;
    for (u64 i = u64(blockIdx.x) * THREADS + threadIdx.x; i < end; i += u64(gridDim.x) * THREADS) {
        const u64 row = i / pieces;
        const u32 column = u32(i - row * pieces) * step;
        const T* from = qkv + row * qkv_width + (qkv_width - kv_width) + column;
        T* to = cache + row * kv_width + column;
        if (wide) {
            store16(to, load16(from));
        } else {
            *to = *from;
        }
    }
}

// The block's part of a head: keys [start, end). Leaves the sums of P V by group of lanes in
// `sums`, and greatest score and sum of P in every thread.
template <u32 PIECE, class T>
__device__ __forceinline__ void attend(const T* query, const T* keys, const T* values, u32 kv_width,
                                       u32 head_dim, u32 start, u32 end, u32 lanes, float scale,
                                       float* sums, float& top, float& total) {
    STATIC_SHARED(float, p, KEYS);
    STATIC_SHARED(float, scratch, WARP);
    const u32 group = threadIdx.x / lanes, groups = THREADS / lanes;
    float result[COLUMNS] = {};
    top = -infinity();
    total = 0.0f;
    for (u32 first = start; first < end; first += KEYS) {
        const u32 count = end - first < KEYS ? end - first : KEYS;
#pragma unroll 1
        for (u32 j = group; j < KEYS; j += groups) {
            const float score = dot<PIECE>(query, keys + u64(first + j) * kv_width, head_dim, lanes,
                                           j < count);
            if (threadIdx.x % lanes == 0) {
                p[j] = j < count ? score * scale : -infinity();
            }
        }
        sync_threads();
        const float score = p[threadIdx.x];
        const float new_top = fmaxf(top, block_max(score, scratch));
        const float correction = expf(top - new_top), weight = expf(score - new_top);
        top = new_top;
        total = total * correction + block_sum(weight, scratch);
        p[threadIdx.x] = weight;
        sync_threads();
#pragma unroll
        for (u32 k = 0; k < COLUMNS; k++) {
            result[k] *= correction;
        }
#pragma unroll 1
        for (u32 j = group; j < count; j += groups) {
            const T* value = values + u64(first + j) * kv_width;
#pragma unroll
            for (u32 k = 0; k < COLUMNS; k += PIECE) {
                const u32 c = (k / PIECE * lanes + threadIdx.x % lanes) * PIECE;
                if (c < head_dim) {
                    float x[PIECE];
                    load_piece(x, value + c);
#pragma unroll
                    for (u32 i = 0; i < PIECE; i++) {
                        result[k + i] = fmaf(p[j], x[i], result[k + i]);
                    }
                }
            }
        }
        sync_threads();
    }
#pragma unroll
    for (u32 k = 0; k < COLUMNS; k++) {
        const u32 c = (k / PIECE * lanes + threadIdx.x % lanes) * PIECE + k % PIECE;
        if (c < head_dim) {
            sums[group * head_dim + c] = result[k];
        }
    }
    sync_threads();
}

// qkv of one row -> out (heads head_dim) when `parts` is null, else parts (parts, heads,
// head_dim + 2). A block takes a head and `split` of the keys [first, end).
template <class T>
__device__ void attention_decode(const T* qkv, const T* cache, T* out, float* parts, u32 heads,
                                 u32 kv_heads, u32 head_dim, u32 first, u32 end, u32 split,
                                 u32 lanes, float scale) {
    STATIC_SHARED(float, sums, THREADS * COLUMNS);
    const u32 head = blockIdx.x % heads, part = blockIdx.x / heads;
    const u32 start = first + part * split, kv_width = 2 * kv_heads * head_dim;
    const u32 stop = end - start < split ? end : start + split;
    const T* query = qkv + head * head_dim;
    const T* keys = cache + head / (heads / kv_heads) * head_dim;
    const T* values = keys + kv_heads * head_dim;
    float top, total;
    if (head_dim % Vec<T>::COUNT == 0) {
        attend<Vec<T>::COUNT>(query, keys, values, kv_width, head_dim, start, stop, lanes, scale,
                              sums, top, total);
    } else {
        attend<1>(query, keys, values, kv_width, head_dim, start, stop, lanes, scale, sums, top,
                  total);
    }
    float* to = parts + u64(blockIdx.x) * (head_dim + 2);
    for (u32 c = threadIdx.x; c < head_dim; c += THREADS) {
        float sum = 0.0f;
        for (u32 group = 0; group < THREADS / lanes; group++) {
            sum += sums[group * head_dim + c];
        }
        if (parts == nullptr) {
            out[head * head_dim + c] = from_float<T>(sum / total);
        } else {
            to[c] = sum;
        }
    }
    if (parts != nullptr && threadIdx.x == 0) {
        to[head_dim] = top;
        to[head_dim + 1] = total;
    }
}

// parts (count, heads, head_dim + 2) -> out (heads head_dim). One block a head.
template <class T>
__device__ void attention_combine(const float* parts, T* out, u32 heads, u32 head_dim, u32 count) {
    const u32 head = blockIdx.x;
    const u64 step = u64(heads) * (head_dim + 2);
    const float* part = parts + head * (head_dim + 2);
    float top = -infinity();
    for (u32 i = 0; i < count; i++) {
        top = fmaxf(top, part[i * step + head_dim]);
    }
    float total = 0.0f;
    for (u32 i = 0; i < count; i++) {
        total += expf(part[i * step + head_dim] - top) * part[i * step + head_dim + 1];
    }
    for (u32 c = threadIdx.x; c < head_dim; c += THREADS) {
        float sum = 0.0f;
        for (u32 i = 0; i < count; i++) {
            sum += expf(part[i * step + head_dim] - top) * part[i * step + c];
        }
        out[head * head_dim + c] = from_float<T>(sum / total);
    }
}

#define INSTANTIATE(T, suffix)                                                                     \
    KERNEL(attention_cache_##suffix, 256, (attention_cache<T>),                                    \
           (const T* qkv, T* cache, u64 rows, u32 qkv_width, u32 kv_width, u32 wide),              \
           (qkv, cache, rows, qkv_width, kv_width, wide))                                          \
    KERNEL(attention_decode_##suffix, 256, (attention_decode<T>),                                  \
           (const T* qkv, const T* cache, T* out, float* parts, u32 heads, u32 kv_heads,           \
            u32 head_dim, u32 first, u32 end, u32 split, u32 lanes, float scale),                  \
           (qkv, cache, out, parts, heads, kv_heads, head_dim, first, end, split, lanes, scale))   \
    KERNEL(attention_combine_##suffix, 256, (attention_combine<T>),                                \
           (const float* parts, T* out, u32 heads, u32 head_dim, u32 count),                       \
           (parts, out, heads, head_dim, count))
FOR_EACH_TYPE(INSTANTIATE)
