// What the attention kernels share: which block of rows of which sequence a thread block works on,
// and which keys a query sees. Positions count from the start of the sequence.

#pragma once

#include "common.cuh"

// x, from which the compiler computes anew what it would otherwise keep in registers through a
// loop.
__device__ __forceinline__ u32 not_kept(u32 x) {
    asm volatile("" : "+r"(x));
    return x;
}

// Some rows of one sequence.
struct RowBlock {
    u32 sequence; // the sequence's first row among all rows
    u32 length;   // rows of the sequence; 0 when there is no such block
    u32 first;    // position of the block's first row
};

// The warp's or of a word. By the last shuffle the compiler knows that all lanes have the same, and
// that branches on it are taken by whole warps.
__device__ __forceinline__ u32 warp_or(u32 x) {
    for (u32 mask = WARP / 2; mask > 0; mask /= 2) {
        x |= shuffle_xor(x, mask);
    }
    return shuffle(x, 0);
}

// The index-th block of ROWS rows of sequences laid end to end, seq_starts (sequences + 1). The
// host does not know the lengths and launches tokens / ROWS + sequences blocks, some of them too
// many. The last rows of a sequence come first, as they see most keys and take longest. By whole
// warps.
template <u32 ROWS>
__device__ __forceinline__ RowBlock find_block(const u32* seq_starts, u32 sequences, u32 index) {
    for (u32 base = 0; base < sequences; base += WARP) {
        const u32 i = base + lane();
        const u32 start = seq_starts[i < sequences ? i : sequences];
        const u32 length = seq_starts[i < sequences ? i + 1 : sequences] - start;
        const u32 blocks = (length + ROWS - 1) / ROWS;
        u32 below = blocks; // of the sequences of the lanes up to this one
        for (u32 delta = 1; delta < WARP; delta *= 2) {
            const u32 lower = shuffle_up(below, delta);
            below += lane() >= delta ? lower : 0;
        }
        const bool mine = index < below && index + blocks >= below;
        if (ballot(mine) != 0) {
            const u32 first = (below - 1 - index) * ROWS;
            return {warp_or(mine ? start : 0), warp_or(mine ? length : 0),
                    warp_or(mine ? first : 0)};
        }
        index -= shuffle(below, WARP - 1);
    }
    return {0, 0, 0};
}

// Keys of a query: from first_key to itself.
__device__ __forceinline__ u32 first_key(u32 query, u32 window) {
    return query < window ? 0 : query + 1 - window;
}
__device__ __forceinline__ bool sees(u32 query, u32 key, u32 window) {
    return key <= query && query - key < window;
}

// One past the last query that sees a key.
__device__ __forceinline__ u32 end_of_queries(u32 key, u32 window, u32 length) {
    return window < length - key ? key + window : length;
}

// PIECE neighbours: one number, or 16 bytes.
template <u32 PIECE, class T>
__device__ __forceinline__ void load_piece(float (&piece)[PIECE], const T* from) {
    if constexpr (PIECE == 1) {
        piece[0] = to_float(*from);
    } else {
        const Vec<T> numbers = load16(from);
#pragma unroll
        for (u32 k = 0; k < PIECE; k++) {
            piece[k] = to_float(numbers.v[k]);
        }
    }
}

// The product of two rows, by neighbouring `lanes` (a power of two up to 32), in each of them; 0
// when not valid. By whole warps.
template <u32 PIECE, class T>
__device__ __forceinline__ float dot(const T* a, const T* b, u32 length, u32 lanes, bool valid) {
    float sum = 0.0f;
    for (u32 c = lane() % lanes * PIECE; valid && c < length; c += lanes * PIECE) {
        float x[PIECE], y[PIECE];
        load_piece(x, a + c);
        load_piece(y, b + c);
#pragma unroll
        for (u32 k = 0; k < PIECE; k++) {
            sum = fmaf(x[k], y[k], sum);
        }
    }
    for (u32 mask = lanes / 2; mask > 0; mask /= 2) {
        sum += shuffle_xor(sum, mask);
    }
    return sum;
}
