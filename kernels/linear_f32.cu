// Matrix products of float32 numbers, every product a float32 one (no TF32): the three layouts, cuts
// and ends of linear.cu, by plain fused multiply-adds.
//
// A block of 16 x 16 threads makes one tile of y, a thread PER x PER numbers of it. Slices of the
// operands, DEPTH of l at a time, come through registers to shared memory, where both stand along
// m and n, while the slice before is multiplied. Any size: outside of the operands is zero.

#include "common.cuh"
#include "linear.cuh"

namespace {

constexpr u32 THREADS = 256;
constexpr u32 DEPTH = 16;

struct alignas(16) Quad {
    float v[4];
};

// Carries an operand's slices, each SIZE (of m or n) by DEPTH (of l), ALONG_L: in rows of l.
template <bool ALONG_L, u32 SIZE> struct Carrier {
    static constexpr u32 COUNT = SIZE * DEPTH / THREADS;     // numbers of a thread
    static constexpr u32 LINE = ALONG_L ? DEPTH : SIZE;      // neighbours in memory
    static constexpr u32 STRIDE = THREADS / LINE;            // lines between two of a thread
    static constexpr u32 ROW = SIZE + 4;                     // of the slice in shared memory

    const float* from;
    u64 stride; // numbers from one of the thread's to the next
    u64 slice;  // and from one slice to the next
    u32 line, position;
    u32 remaining; // of m or n, from this tile on
    float held[COUNT];

    __device__ __forceinline__ Carrier(const float* operand, u32 size, u32 k, u32 tile, u32 first_l) {
        const u32 start = tile * SIZE;
        const u64 length = ALONG_L ? k : size;
        line = threadIdx.x / LINE;
        position = threadIdx.x % LINE;
        remaining = size - start;
        stride = STRIDE * length;
        slice = ALONG_L ? DEPTH : DEPTH * length;
        from = operand + ((ALONG_L ? start : first_l) + line) * length +
               (ALONG_L ? first_l : start) + position;
    }

    // Takes the next slice, in which `l_remaining` (and more, or none) of l exist.
    __device__ __forceinline__ void take(u32 l_remaining) {
        const u32 lines = ALONG_L ? remaining : l_remaining;
        const bool inside = position < (ALONG_L ? l_remaining : remaining);
#pragma unroll
        for (u32 i = 0; i < COUNT; ++i) {
            held[i] = 0.0f;
            if (inside && line + i * STRIDE < lines) {
                held[i] = from[i * stride];
            }
        }
        from += slice;
    }

    // Leaves it in shared memory (DEPTH, ROW).
    __device__ __forceinline__ void leave(float* shared) const {
#pragma unroll
        for (u32 i = 0; i < COUNT; ++i) {
            const u32 other = line + i * STRIDE;
            shared[ALONG_L ? position * ROW + other : other * ROW + position] = held[i];
        }
    }
};

// The place in a tile of number `i` of a thread: quads, so that neighbouring threads read
// neighbouring 16 bytes.
template <u32 TILE, u32 PER> __device__ __forceinline__ u32 place(u32 thread, u32 i) {
    return i / 4 * (TILE * 4 / PER) + thread * 4 + i % 4;
}

// A tile of y (TILE, TILE). Block (x, y): the tile x, the cut y of l. Bias and residual may be null,
// and the residual y.
template <bool A_ALONG_L, bool B_ALONG_L, u32 TILE>
__device__ __forceinline__ void linear_product(const float* a, const float* b, const float* bias,
                                               const float* residual, float* y, u32 m, u32 n, u32 k,
                                               u32 l_per_cut) {
    constexpr u32 PER = TILE / 16;
    using CarrierA = Carrier<A_ALONG_L, TILE>;
    using CarrierB = Carrier<B_ALONG_L, TILE>;
    constexpr u32 ROW = CarrierA::ROW;
    constexpr u32 SLICE = DEPTH * ROW;

    DYNAMIC_SHARED(float, shared); // two slices of a, two of b

    const TilePlace tile = place_of_tile(blockIdx.x, m, n, TILE, TILE);
    const u32 first_l = blockIdx.y * l_per_cut;
    const u32 l_count = min(l_per_cut, k - first_l);

    CarrierA carry_a(a, m, k, tile.row, first_l);
    CarrierB carry_b(b, n, k, tile.column, first_l);
    const u32 thread_row = threadIdx.x / 16, thread_column = threadIdx.x % 16;
    float sum[PER][PER] = {};

    carry_a.take(l_count);
    carry_b.take(l_count);
    carry_a.leave(shared);
    carry_b.leave(shared + 2 * SLICE);
    sync_threads();
    u32 reading = 0;
    for (u32 done = 0; done < l_count; done += DEPTH) {
        const bool more = done + DEPTH < l_count;
        if (more) {
            carry_a.take(l_count - done - DEPTH);
            carry_b.take(l_count - done - DEPTH);
        }
        const float* slice_a = shared + reading;
        const float* slice_b = shared + 2 * SLICE + reading;
#pragma unroll 8 // All of it would need more than the 128 registers that two blocks share.
        for (u32 l = 0; l < DEPTH; ++l) {
            float row[PER], column[PER];
#pragma unroll
            for (u32 i = 0; i < PER; i += 4) {
                const Quad part_a = *reinterpret_cast<const Quad*>(
                    slice_a + l * ROW + place<TILE, PER>(thread_row, i));
                const Quad part_b = *reinterpret_cast<const Quad*>(
                    slice_b + l * ROW + place<TILE, PER>(thread_column, i));
#pragma unroll
                for (u32 q = 0; q < 4; ++q) {
                    row[i + q] = part_a.v[q];
                    column[i + q] = part_b.v[q];
                }
            }
#pragma unroll
            for (u32 i = 0; i < PER; ++i) {
#pragma unroll
                for (u32 j = 0; j < PER; ++j) {
                    sum[i][j] = fmaf(row[i], column[j], sum[i][j]);
                }
            }
        }
        reading = SLICE - reading;
        if (more) {
            carry_a.leave(shared + reading);
            carry_b.leave(shared + 2 * SLICE + reading);
        }
        sync_threads();
    }

    y += u64(blockIdx.y) * m * n;
#pragma unroll
    for (u32 i = 0; i < PER; ++i) {
        const u32 row = tile.row * TILE + place<TILE, PER>(thread_row, i);
#pragma unroll
        for (u32 j = 0; j < PER; ++j) {
            const u32 column = tile.column * TILE + place<TILE, PER>(thread_column, j);
            if (row < m && column < n) {
                const u64 at = u64(row) * n + column;
                float result = sum[i][j];
                if (bias) {
                    result += bias[column];
                }
                if (residual) {
                    result += residual[at];
                }
                y[at] = result;
            }
        }
    }
}

} // namespace

#define PRODUCT(name, a_along_l, b_along_l, tile)                                                  \
    KERNEL(name, THREADS, (linear_product<a_along_l, b_along_l, tile>),                            \
           (const float* a, const float* b, const float* bias, const float* residual, float* y,    \
            u32 m, u32 n, u32 k, u32 l_per_cut),                                                   \
           (a, b, bias, residual, y, m, n, k, l_per_cut))
#define LAYOUT(layout, a_along_l, b_along_l)                                                       \
    PRODUCT(linear_##layout##_128_f32, a_along_l, b_along_l, 128)                                  \
    PRODUCT(linear_##layout##_64_f32, a_along_l, b_along_l, 64)

LAYOUT(nt, true, true)
LAYOUT(nn, true, false)
LAYOUT(tn, false, false)
