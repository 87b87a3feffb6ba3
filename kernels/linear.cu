// Matrix products of half-precision numbers, on the tensor cores of every GPU since sm_80.
//
//     y[i, j] = sum over l of a(i, l) b(l, j)  (+ bias[j]) (+ residual[i, j])      y (m, n)
//
// The operands are read where they lie; no product needs a transposed copy:
//
//     nt  forward   a = x (m, k)     b = weight (n, k)
//     nn  dx        a = dy (m, k)    b = weight (k, n)
//     tn  dweight   a = dy (k, m)    b = x (k, n)         y = residual = dweight
//
// A block of four warps makes one tile of y. Slices of the operands, DEPTH of l at a time, come to
// shared memory by 16-byte asynchronous copies, STAGES - 1 of them ahead of the arithmetic. From
// there ldmatrix takes fragments to registers, one step of 16 l ahead of the matrix instructions.
// What has fewer tiles than the device has room for is also cut along l: each cut leaves float32
// sums of its own, which linear_sums.cu adds in order. src/cuda/linear.rs chooses tile and cuts.
//
// Sizes are arbitrary: what lies outside of the operands is copied as zero. 16-byte copies need rows
// of whole 16 bytes; for other operands the same kernel copies number by number (linear_*_any).
//
// src/cuda/linear_layout.rs states where each number stands in shared memory and registers, and
// tests that no access has bank conflicts.

#include "common.cuh"
#include "linear.cuh"

namespace {

constexpr u32 THREADS = 128;
constexpr u32 DEPTH = 32;
constexpr u32 STAGES = 3;
// Numbers that move together, and the sizes of the matrix instruction.
constexpr u32 CHUNK = 8;
constexpr u32 STEP = 16;
constexpr u32 STEPS = DEPTH / STEP;

// ---- from global to shared memory ---------------------------------------------------------------

// Eight numbers, of which the first `count` exist.
template <class T, bool ALIGNED>
__device__ __forceinline__ void copy_chunk(T* to, const T* from, u32 count) {
    if (ALIGNED) {
        cp_async16(to, from, count > 0);
    } else {
        Vec<T> chunk;
        for (u32 i = 0; i < CHUNK; ++i) {
            chunk.v[i] = T{0};
            if (i < count) {
                chunk.v[i] = from[i];
            }
        }
        store16(to, chunk);
    }
}

// Copies an operand's slices, each SIZE (of m or n) by DEPTH (of l). A line is DEPTH numbers of one
// row when the operand is stored along l, else SIZE numbers of one l. A line's chunks are exchanged
// so that the eight rows of each ldmatrix lie in different banks.
template <class T, bool ALONG_L, u32 SIZE, bool ALIGNED> struct Copier {
    static constexpr u32 LINES = ALONG_L ? SIZE : DEPTH;
    static constexpr u32 CHUNKS = (ALONG_L ? DEPTH : SIZE) / CHUNK;
    static constexpr u32 STRIDE = THREADS / CHUNKS; // lines between two copies of a thread

    const T* from;
    u64 stride;    // numbers from one copy to the next
    u64 slice;     // and from one slice to the next
    u32 to;        // place of the first copy in the slice
    u32 line;      // its line
    u32 position;  // and its first number in the line
    u32 remaining; // of m or n, from this tile on

    __device__ __forceinline__ Copier(const T* operand, u32 size, u32 k, u32 tile, u32 first_l) {
        const u32 start = tile * SIZE;
        const u64 length = ALONG_L ? k : size;
        line = threadIdx.x / CHUNKS;
        const u32 chunk = threadIdx.x % CHUNKS;
        position = chunk * CHUNK;
        remaining = size - start;
        stride = STRIDE * length;
        slice = ALONG_L ? DEPTH : DEPTH * length;
        from = operand + ((ALONG_L ? start : first_l) + line) * length +
               (ALONG_L ? first_l : start) + position;
        const u32 exchange = ALONG_L ? line / 2 % CHUNKS : line % 8;
        to = (line * CHUNKS + (chunk ^ exchange)) * CHUNK;
    }

    // Copies the next slice, in which `l_remaining` (and more, or none) of l exist.
    __device__ __forceinline__ void next(T* shared, u32 l_remaining) {
        const u32 lines = ALONG_L ? remaining : l_remaining;
        const u32 numbers = ALONG_L ? l_remaining : remaining;
        const u32 count = numbers > position ? numbers - position : 0;
#pragma unroll
        for (u32 i = 0; i < LINES / STRIDE; ++i) {
            copy_chunk<T, ALIGNED>(shared + to + i * STRIDE * CHUNKS * CHUNK, from + i * stride,
                                   line + i * STRIDE < lines ? count : 0);
        }
        from += slice;
    }
};

// ---- from shared memory to registers ------------------------------------------------------------

// Reads fragments of 16 (of m or n) by 16 (of l), by four 8x8 matrices. The halves that this lane's
// matrix has are those of the operand's fragments in the matrix instruction.
template <class T, bool ALONG_L, u32 SIZE> struct Reader {
    u32 line, chunk; // in numbers

    __device__ __forceinline__ Reader(u32 start, u32 half, u32 l_half) {
        const u32 row = lane() % 8;
        if (ALONG_L) {
            line = (start + half * 8 + row) * DEPTH;
            chunk = (l_half ^ (row / 2)) * CHUNK;
        } else {
            line = (l_half * 8 + row) * SIZE;
            chunk = ((start / CHUNK + half) ^ row) * CHUNK;
        }
    }

    // Fragment i of the warp, for the 16 l of `step`.
    __device__ __forceinline__ void read(u32 (&fragment)[4], const T* shared, u32 i, u32 step) const {
        if (ALONG_L) {
            ldmatrix_x4(fragment, shared + line + i * 16 * DEPTH + (chunk ^ (step * STEP)));
        } else {
            ldmatrix_x4_trans(fragment, shared + line + step * STEP * SIZE + (chunk ^ (i * 16)));
        }
    }
};

// ---- the product --------------------------------------------------------------------------------

// A tile of y (TILE, TILE), by 2 x 2 warps. Block (x, y): the tile x, the cut y of l.
template <class T, bool A_ALONG_L, bool B_ALONG_L, u32 TILE, bool ALIGNED>
__device__ __forceinline__ void linear_product(const T* a, const T* b, Result<T> to, u32 k,
                                               u32 l_per_cut) {
    constexpr u32 WARP_TILE = TILE / 2;
    constexpr u32 FRAGMENTS = WARP_TILE / 16;
    constexpr u32 SLICE = TILE * DEPTH; // numbers of one operand in a stage
    constexpr u32 STAGE = 2 * SLICE;

    DYNAMIC_SHARED(T, shared);

    const TilePlace tile = place_of_tile(blockIdx.x, to.m, to.n, TILE, TILE);
    const u32 first_l = blockIdx.y * l_per_cut;
    const u32 l_count = min(l_per_cut, k - first_l);
    const u32 slices = (l_count + DEPTH - 1) / DEPTH;

    Copier<T, A_ALONG_L, TILE, ALIGNED> copy_a(a, to.m, k, tile.row, first_l);
    Copier<T, B_ALONG_L, TILE, ALIGNED> copy_b(b, to.n, k, tile.column, first_l);

    const u32 warp_row = warp() / 2 * WARP_TILE, warp_column = warp() % 2 * WARP_TILE;
    const u32 even = lane() / 8 % 2, high = lane() / 16;
    const Reader<T, A_ALONG_L, TILE> read_a(warp_row, even, high);
    const Reader<T, B_ALONG_L, TILE> read_b(warp_column, high, even);

    // Sums (16 i, 8 j), and the fragments of two steps.
    float sum[FRAGMENTS][2 * FRAGMENTS][4] = {};
    u32 fragment_a[2][FRAGMENTS][4], fragment_b[2][FRAGMENTS][4];

#pragma unroll
    for (u32 s = 0; s < STAGES - 1; ++s) {
        if (s < slices) {
            copy_a.next(shared + s * STAGE, l_count - s * DEPTH);
            copy_b.next(shared + s * STAGE + SLICE, l_count - s * DEPTH);
        }
        cp_async_commit();
    }
    cp_async_wait<STAGES - 2>();
    sync_threads();
#pragma unroll
    for (u32 i = 0; i < FRAGMENTS; ++i) {
        read_a.read(fragment_a[0][i], shared, i, 0);
        read_b.read(fragment_b[0][i], shared + SLICE, i, 0);
    }

    u32 reading = 0, writing = (STAGES - 1) * STAGE;
    for (u32 s = 0; s < slices; ++s) {
#pragma unroll
        for (u32 step = 0; step < STEPS; ++step) {
            if (step == STEPS - 1) {
                // The next slice has arrived, for all threads, and this one has been read by all.
                cp_async_wait<STAGES - 2>();
                sync_threads();
                reading = reading == (STAGES - 1) * STAGE ? 0 : reading + STAGE;
            }
            const u32 ahead = (step + 1) % STEPS, into = (step + 1) % 2;
#pragma unroll
            for (u32 i = 0; i < FRAGMENTS; ++i) {
                read_a.read(fragment_a[into][i], shared + reading, i, ahead);
                read_b.read(fragment_b[into][i], shared + reading + SLICE, i, ahead);
            }
            if (step == 0) {
                const u32 done = (s + STAGES - 1) * DEPTH;
                if (done < l_count) {
                    copy_a.next(shared + writing, l_count - done);
                    copy_b.next(shared + writing + SLICE, l_count - done);
                }
                cp_async_commit();
                writing = writing == (STAGES - 1) * STAGE ? 0 : writing + STAGE;
            }
#pragma unroll
            for (u32 i = 0; i < FRAGMENTS; ++i) {
#pragma unroll
                for (u32 j = 0; j < 2 * FRAGMENTS; ++j) {
                    const u32* pair = fragment_b[step % 2][j / 2] + j % 2 * 2;
                    const u32 operand[2] = {pair[0], pair[1]};
                    mma_m16n8k16<T>(sum[i][j], fragment_a[step % 2][i], operand);
                }
            }
        }
    }

    if (to.y32) {
        to.y32 += u64(blockIdx.y) * to.m * to.n;
    }
    const u32 row = tile.row * TILE + warp_row + lane() / 4;
    const u32 column = tile.column * TILE + warp_column + lane() % 4 * 2;
#pragma unroll
    for (u32 i = 0; i < FRAGMENTS; ++i) {
#pragma unroll
        for (u32 j = 0; j < 2 * FRAGMENTS; ++j) {
            const float(&d)[4] = sum[i][j];
            put_pair(to, row + i * 16, column + j * 8, d[0], d[1]);
            put_pair(to, row + i * 16 + 8, column + j * 8, d[2], d[3]);
        }
    }
}

} // namespace

#define PRODUCT(T, name, a_along_l, b_along_l, tile, aligned)                                      \
    KERNEL(name, THREADS, (linear_product<T, a_along_l, b_along_l, tile, aligned>),                \
           (const T* a, const T* b, const float* bias, const float* residual, T* y, float* y32,    \
            u32 m, u32 n, u32 k, u32 l_per_cut),                                                   \
           (a, b, Result<T>{bias, residual, y, y32, m, n}, k, l_per_cut))
#define LAYOUT(T, suffix, layout, a_along_l, b_along_l)                                            \
    PRODUCT(T, linear_##layout##_128_##suffix, a_along_l, b_along_l, 128, true)                    \
    PRODUCT(T, linear_##layout##_64_##suffix, a_along_l, b_along_l, 64, true)                      \
    PRODUCT(T, linear_##layout##_any_##suffix, a_along_l, b_along_l, 64, false)
#define INSTANTIATE(T, suffix)                                                                     \
    LAYOUT(T, suffix, nt, true, true)                                                              \
    LAYOUT(T, suffix, nn, true, false)                                                             \
    LAYOUT(T, suffix, tn, false, false)

FOR_EACH_HALF_TYPE(INSTANTIATE)
