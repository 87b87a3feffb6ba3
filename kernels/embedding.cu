// Token embedding:
//
//   forward   out[t] = table[ids[t]]
//   backward  dtable[ids[t]] += dout[t], in the order of t
//
// The backward sorts the tokens by id, equal ids in the order of t, and then adds each id's rows in
// that order: every row of dtable is read and written once, and no two threads share one.
//
// Cost of the backward over its memory traffic: the sort compares all pairs of ids, T^2 / 1.4e13 s
// on an H100 (0.02 ms for 16,384 tokens). The rows of one id are added one after the other, ROWS of
// them on their way, by one warp for each 128 columns: a batch of 16,384 equal ids takes about 2
// ms.

#include "common.cuh"

namespace {

constexpr u32 THREADS = 256;
constexpr u32 WARPS = THREADS / WARP;
// Groups of columns that a lane of the forward moves.
constexpr u32 GROUPS = 4;
// Tokens that a block sorts; each of its warps compares them with a part of all tokens.
constexpr u32 SORTED = 2 * WARP;
// Rows of one id that a warp reads at a time.
constexpr u32 ROWS = 8;

// A token in the order of ids, with its id.
using Entry = Vec<u32, 2>;
constexpr u32 ID = 0, TOKEN = 1;

// A warp copies one row's columns from `first` on: GROUPS groups of N a lane.
template <u32 N, class T>
__device__ __forceinline__ void copy_columns(const T* row, float* out, u32 first, u32 width) {
    float values[GROUPS][N];
#pragma unroll
    for (u32 g = 0; g < GROUPS; g++) {
        const u32 column = first + (g * WARP + lane()) * N;
        if (column < width) {
            load_floats(values[g], row + column);
        }
    }
#pragma unroll
    for (u32 g = 0; g < GROUPS; g++) {
        const u32 column = first + (g * WARP + lane()) * N;
        if (column < width) {
            store_floats(out + column, values[g]);
        }
    }
}

// 1 if a < b, else 0, for ids: by the sign, as that and an addition are two instructions.
__device__ __forceinline__ u32 below(i32 a, i32 b) { return u32(a - b) >> 31; }

// How many of ids[begin..end) are below each bound. `begin` is a multiple of four.
__device__ __forceinline__ void count_below(const i32* ids, u64 begin, u64 end,
                                            const i32 (&bounds)[2], u32 (&counts)[2]) {
    u64 i = begin;
#pragma unroll 4
    for (; i + 4 <= end; i += 4) {
        const Vec<i32> four = load16(ids + i);
#pragma unroll
        for (u32 k = 0; k < 4; k++) {
            counts[0] += below(four.v[k], bounds[0]);
            counts[1] += below(four.v[k], bounds[1]);
        }
    }
    for (; i < end; i++) {
        counts[0] += below(ids[i], bounds[0]);
        counts[1] += below(ids[i], bounds[1]);
    }
}

// A warp adds the rows of dout whose tokens stand in order[place..] to one row of dtable, while
// they have its id: N columns a lane from `first` on.
template <u32 N>
__device__ __forceinline__ void add_rows(const float* dout, const Entry* order, float* dtable,
                                         u64 place, u64 tokens, u32 first, u32 width) {
    const u32 id = order[place].v[ID];
    const u32 column = first + lane() * N;
    const bool mine = column < width;
    float* const target = dtable + u64(id) * width + column;
    float sum[N] = {};
    if (mine) {
        load_floats(sum, target);
    }
    for (bool more = true; more; place += WARP) {
        const bool inside = place + lane() < tokens;
        const Entry entry = inside ? order[place + lane()] : Entry{};
        // As the tokens are sorted, the lanes with this id are the first ones.
        const u32 members = ballot(inside && entry.v[ID] == id);
        for (u32 start = 0; start < WARP && (members >> start & 1); start += ROWS) {
            float rows[ROWS][N];
#pragma unroll
            for (u32 r = 0; r < ROWS; r++) {
                const u64 row = shuffle(entry.v[TOKEN], start + r);
                if (mine && (members >> (start + r) & 1)) {
                    load_floats(rows[r], dout + row * width + column);
                }
            }
#pragma unroll
            for (u32 r = 0; r < ROWS; r++) {
                if (members >> (start + r) & 1) {
#pragma unroll
                    for (u32 k = 0; k < N; k++) {
                        sum[k] += rows[r][k];
                    }
                }
            }
        }
        more = members == 0xffffffff;
    }
    if (mine) {
        store_floats(target, sum);
    }
}

} // namespace

// table (V, width), ids (rows) -> out (rows, width). A warp copies 128 N columns of a row: block y
// gives the columns, block x and the warp the row.
template <class T, u32 N>
__device__ void embedding_forward(const T* table, const i32* ids, float* out, u64 rows, u32 width) {
    const u64 row = u64(blockIdx.x) * WARPS + warp();
    if (row < rows) {
        const u64 from = u32(ids[row]);
        const u32 first = blockIdx.y * (GROUPS * WARP * N);
        copy_columns<N>(table + from * width, out + row * width, first, width);
    }
}

// ids (tokens) -> order (tokens, 2): the tokens sorted by id, equal ids in the order of the tokens.
//
// A token's place is the number of tokens that go before it: those before it in the batch with an
// id up to its own, and those behind it with a lower one.
__device__ void embedding_order(const i32* ids, Entry* order, u64 tokens) {
    STATIC_SHARED(u32, shared, WARPS * SORTED);
    const u64 begin = u64(blockIdx.x) * SORTED;
    const u64 end = begin + SORTED < tokens ? begin + SORTED : tokens;
    const u64 mine[2] = {begin + lane(), begin + WARP + lane()};
    const i32 own[2] = {mine[0] < end ? ids[mine[0]] : 0, mine[1] < end ? ids[mine[1]] : 0};
    u32 counts[2] = {0, 0};

    // Each warp takes a part of the tokens, a multiple of SORTED: the block's own lie in one part.
    const u64 part = (tokens + SORTED * WARPS - 1) / (SORTED * WARPS) * SORTED;
    const u64 part_begin = part * warp();
    const u64 part_end = part_begin + part < tokens ? part_begin + part : tokens;
    const u64 before = part_end < begin ? part_end : begin;
    const u64 behind = part_begin > end ? part_begin : end;
    const i32 up_to[2] = {own[0] + 1, own[1] + 1};
    count_below(ids, part_begin, before, up_to, counts);
    count_below(ids, behind, part_end, own, counts);
    if (part_begin <= begin && begin < part_end) {
        for (u64 i = begin; i < end; i++) {
            const i32 id = ids[i];
            counts[0] += id < own[0] || (id == own[0] && i < mine[0]);
            counts[1] += id < own[1] || (id == own[1] && i < mine[1]);
        }
    }

    shared[warp() * SORTED + lane()] = counts[0];
    shared[warp() * SORTED + WARP + lane()] = counts[1];
    sync_threads();
    const u64 token = begin + threadIdx.x;
    if (threadIdx.x < SORTED && token < end) {
        u32 place = 0;
        for (u32 w = 0; w < WARPS; w++) {
            place += shared[w * SORTED + threadIdx.x];
        }
        order[place] = Entry{{u32(ids[token]), u32(token)}};
    }
}

// dout (tokens, width), order (tokens, 2) -> dtable (V, width) +=. A warp adds 32 N
// columns of the rows of one id: block y gives the columns, block x and the warp a place in the
// order, where an id's first token stands or nothing is to be done.
template <u32 N>
__device__ void embedding_backward(const float* dout, const Entry* order, float* dtable, u64 tokens,
                                   u32 width) {
    const u64 place = u64(blockIdx.x) * WARPS + warp();
    if (place < tokens && (place == 0 || order[place].v[ID] != order[place - 1].v[ID])) {
        add_rows<N>(dout, order, dtable, place, tokens, blockIdx.y * (WARP * N), width);
    }
}

#define INSTANTIATE(T, suffix)                                                                     \
    KERNEL(embedding_forward_##suffix, THREADS, (embedding_forward<T, 4>),                         \
           (const T* table, const i32* ids, float* out, u64 rows, u32 width),                      \
           (table, ids, out, rows, width))                                                         \
    KERNEL(embedding_forward_scalar_##suffix, THREADS, (embedding_forward<T, 1>),                  \
           (const T* table, const i32* ids, float* out, u64 rows, u32 width),                      \
           (table, ids, out, rows, width))
FOR_EACH_TYPE(INSTANTIATE)

KERNEL(embedding_order_i32, THREADS, (embedding_order), (const i32* ids, Entry* order, u64 tokens),
       (ids, order, tokens))

#define INSTANTIATE_BACKWARD(N, name)                                                              \
    KERNEL(name, THREADS, (embedding_backward<N>),                                                 \
           (const float* dout, const Entry* order, float* dtable, u64 tokens, u32 width),          \
           (dout, order, dtable, tokens, width))
INSTANTIATE_BACKWARD(4, embedding_backward_f32)
INSTANTIATE_BACKWARD(1, embedding_backward_scalar_f32)
