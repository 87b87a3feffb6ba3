// Tiles of halves in shared memory for matrix instructions: (rows, D) with the 16-byte chunks of a
// row in an order that depends on the row, so that the 8 rows of an 8x8 matrix, which ldmatrix
// reads at once, lie in different banks. Heads narrower than D are filled up with zeros.

#pragma once

#include "attention.cuh"

constexpr u32 WARPS = 4;
constexpr u32 THREADS = WARPS * WARP;

// The warp's place in the block, known to the compiler to be the same in all lanes.
__device__ __forceinline__ u32 uniform_warp() { return shuffle(warp(), 0); }

// What a chunk's number is xor-ed with. A row has D / 8 chunks, of which rows that are 8 / SPAN
// apart would meet in the same banks. Only the SPAN chunks of a group change places.
template <u32 D> constexpr u32 SPAN = D % 64 == 0 ? 8 : D % 32 == 0 ? 4 : 2;
template <u32 D> __device__ __forceinline__ u32 swizzle(u32 row) {
    static_assert(D % 16 == 0, "a row is whole steps of a matrix instruction");
    return row / (8 / SPAN<D>) % SPAN<D>;
}

// The place of a chunk, in halves.
template <u32 D> __device__ __forceinline__ u32 chunk_at(u32 row, u32 chunk) {
    return row * D + (chunk ^ swizzle<D>(row)) * 8;
}

// Begins the copy of ROWS rows from row `first` on, those from row `end` on as zeros. The rows are
// row_width apart.
template <u32 D, u32 ROWS, class T>
__device__ __forceinline__ void copy_tile(T* tile, const T* from, u32 row_width, u32 first, u32 end,
                                          u32 head_dim) {
    constexpr u32 CHUNKS = D / 8, COUNT = ROWS * CHUNKS;
    const u32 thread = not_kept(threadIdx.x);
#pragma unroll
    for (u32 i = 0; i < (COUNT + THREADS - 1) / THREADS; i++) {
        if (COUNT % THREADS != 0 && i * THREADS + thread >= COUNT) {
            break;
        }
        const u32 row = (i * THREADS + thread) / CHUNKS;
        const u32 chunk = (i * THREADS + thread) % CHUNKS;
        cp_async16(tile + chunk_at<D>(row, chunk),
                   from + chunk * 8 + u64(first + row) * row_width,
                   first + row < end && chunk * 8 < head_dim);
    }
}

// Where a lane reads in a tile: the row that it addresses for ldmatrix among 16, and what its chunk
// is xor-ed with. Rows that are a multiple of 8 apart have the same swizzle.
template <u32 D> struct Reader {
    u32 row, chunk;

    // From the 16 rows and 16 columns that start at 16 row_step and 16 column_step. Only SPAN / 2
    // of the sums of a row are not another plus a constant.
    __device__ __forceinline__ u32 at(u32 row_step, u32 column_step) const {
        const u32 in_group = column_step * 2 % SPAN<D>;
        const u32 group = column_step * 2 - in_group;
        return (row_step * 16 + row) * D + group * 8 + (in_group ^ chunk) * 8;
    }
};

// Reads the A operand of rows times columns; transposed, two B operands whose k runs along the rows
// and whose n along the columns.
template <u32 D> __device__ __forceinline__ Reader<D> reader_of_rows() {
    const u32 row = not_kept(lane() % 16);
    return {row, lane() / 16 ^ swizzle<D>(row)};
}

// Reads two B operands whose n runs along the rows and whose k along the columns.
template <u32 D> __device__ __forceinline__ Reader<D> reader_of_columns() {
    const u32 row = not_kept(lane() / 16 * 8 + lane() % 8);
    return {row, lane() / 8 % 2 ^ swizzle<D>(row)};
}

// d[i] and d[i + 1] of each 16 rows += a times the two B operands.
template <class T, u32 TILES, u32 COLUMNS>
__device__ __forceinline__ void multiply_pair(float (&d)[TILES][COLUMNS][4], u32 i,
                                              const u32 (&a)[TILES][4], const u32 (&b)[4]) {
    const u32 left[2] = {b[0], b[1]}, right[2] = {b[2], b[3]};
#pragma unroll
    for (u32 tile = 0; tile < TILES; tile++) {
        mma_m16n8k16<T>(d[tile][i], a[tile], left);
        mma_m16n8k16<T>(d[tile][i + 1], a[tile], right);
    }
}

// d (16 TILES, 8 COLUMNS) += the warp's rows of `rows`, from row_step on, times `columns`
// transposed: scores, and their gradients. A loop, as what is loaded ahead takes registers.
template <u32 D, class T, u32 TILES, u32 COLUMNS>
__device__ __forceinline__ void multiply_transposed(float (&d)[TILES][COLUMNS][4], const T* rows,
                                                    u32 row_step, const T* columns) {
    const Reader<D> of_rows = reader_of_rows<D>(), of_columns = reader_of_columns<D>();
#pragma unroll(TILES * D > 192 ? 1 : 2)
    for (u32 k = 0; k < D / 16; k++) {
        u32 a[TILES][4];
#pragma unroll
        for (u32 tile = 0; tile < TILES; tile++) {
            ldmatrix_x4(a[tile], rows + of_rows.at(row_step + tile, k));
        }
#pragma unroll
        for (u32 n = 0; n < COLUMNS; n += 2) {
            u32 b[4];
            ldmatrix_x4(b, columns + of_columns.at(n / 2, k));
            multiply_pair<T>(d, n, a, b);
        }
    }
}

// d (16 TILES, D) += weights (16 TILES, 8 KEYS), rounded to halves, times tile (8 KEYS, D).
template <u32 D, class T, u32 TILES, u32 KEYS>
__device__ __forceinline__ void multiply_rounded(float (&d)[TILES][D / 8][4],
                                                 const float (&weights)[TILES][KEYS][4],
                                                 const T* tile_rows) {
    const Reader<D> of_rows = reader_of_rows<D>();
#pragma unroll
    for (u32 k = 0; k < KEYS / 2; k++) {
        // D's layout of 16 columns is A's.
        u32 a[TILES][4];
#pragma unroll
        for (u32 tile = 0; tile < TILES; tile++) {
#pragma unroll
            for (u32 i = 0; i < 4; i++) {
                const float(&pair)[4] = weights[tile][2 * k + i / 2];
                a[tile][i] = pack2<T>(pair[i % 2 * 2], pair[i % 2 * 2 + 1]);
            }
        }
#pragma unroll
        for (u32 n = 0; n < D / 8; n += 2) {
            u32 b[4];
            ldmatrix_x4_trans(b, tile_rows + of_rows.at(k, n / 2));
            multiply_pair<T>(d, n, a, b);
        }
    }
}

// d (16 TILES, D), rounded, to rows of global memory, by way of the warp's rows of a tile that
// nobody else reads.
template <u32 D, class T, u32 TILES>
__device__ __forceinline__ void store_rows(T* to, u32 row_width, u32 valid, u32 head_dim, T* tile,
                                           u32 row_step, const float (&d)[TILES][D / 8][4]) {
    sync_warp();
#pragma unroll
    for (u32 t = 0; t < TILES; t++) {
#pragma unroll
        for (u32 half = 0; half < 2; half++) {
            const u32 row = (row_step + t) * 16 + half * 8 + lane() / 4;
#pragma unroll
            for (u32 n = 0; n < D / 8; n++) {
                *reinterpret_cast<u32*>(tile + chunk_at<D>(row, n) + lane() % 4 * 2) =
                    pack2<T>(d[t][n][2 * half], d[t][n][2 * half + 1]);
            }
        }
    }
    sync_warp();
    constexpr u32 CHUNKS = D / 8;
#pragma unroll 4
    for (u32 i = lane(); i < TILES * 16 * CHUNKS; i += WARP) {
        const u32 row = row_step * 16 + i / CHUNKS, chunk = i % CHUNKS;
        if (row < valid && chunk * 8 < head_dim) {
            store16(to + (row * row_width + chunk * 8), load16(tile + chunk_at<D>(row, chunk)));
        }
    }
}
