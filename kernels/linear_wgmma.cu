// Matrix products of half-precision numbers on Hopper: what linear.cu computes, by instructions that
// compute capability 9.0 alone has (sm_90a). Other architectures compile nothing of it.
//
// A block of three warpgroups walks over tiles of y (128, 256). One thread of the first asks the
// tensor memory accelerator for slices of the operands, DEPTH of l at a time, up to STAGES ahead. The
// other two warpgroups multiply them, each its 64 rows, by wgmma, which reads shared memory itself.
// Barriers in shared memory tell the one side that a slice has arrived, the other that it was read.
// While a tile's sums are stored, slices of the next already come.
//
// Operands need rows of whole 16 bytes. Their maps (CUtensorMap) are made by the driver: boxes 64
// numbers wide, whose 128-byte lines have their 16-byte chunks exchanged as wgmma expects it
// (128-byte swizzle). What lies outside of an operand arrives as zero.
//
// Not yet run on a GPU, and not emulated: compiled only. src/cuda/linear.rs uses it when asked to.

#include "common.cuh"
#include "linear.cuh"

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

namespace {

constexpr u32 THREADS = 384;
constexpr u32 TILE_M = 128;
constexpr u32 TILE_N = 256;
constexpr u32 DEPTH = 64;
constexpr u32 STAGES = 4;
constexpr u32 STEP = 16;
constexpr u32 BOX = 64;                     // numbers of a line of 128 bytes
constexpr u32 LINE_BYTES = 128;
constexpr u32 BLOCK_BYTES = 64 * LINE_BYTES; // 64 lines
constexpr u32 A_BYTES = TILE_M * DEPTH * 2;
constexpr u32 B_BYTES = TILE_N * DEPTH * 2;
constexpr u32 STAGE_BYTES = A_BYTES + B_BYTES;
constexpr u32 CONSUMERS = 2; // warpgroups
// 40 + 2 * 232 registers for each of 128 threads is what three warpgroups of 168 start with.
constexpr u32 PRODUCER_REGISTERS = 40;
constexpr u32 CONSUMER_REGISTERS = 232;

// A tensor map, opaque to us.
struct alignas(64) TensorMap {
    u64 words[16];
};

// ---- barriers in shared memory --------------------------------------------------------------------

__device__ __forceinline__ void barrier_init(u32 barrier, u32 arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}
__device__ __forceinline__ void barrier_arrive(u32 barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}
// Arrives, and lets the phase end only when so many bytes were copied as well.
__device__ __forceinline__ void barrier_expect(u32 barrier, u32 bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
                 : "memory");
}
// Waits for the end of the phase of this parity.
__device__ __forceinline__ void barrier_wait(u32 barrier, u32 parity) {
    u32 ended;
    do {
        asm volatile("{\n"
                     ".reg .pred p;\n"
                     "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
                     "selp.u32 %0, 1, 0, p;\n"
                     "}"
                     : "=r"(ended)
                     : "r"(barrier), "r"(parity)
                     : "memory");
    } while (!ended);
}

// Copies the box at (x, y) of a matrix; its bytes are counted by the barrier.
__device__ __forceinline__ void copy_box(u32 to, const TensorMap* map, u32 x, u32 y, u32 barrier) {
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes "
                 "[%0], [%1, {%3, %4}], [%2];" ::"r"(to),
                 "l"(map), "r"(barrier), "r"(x), "r"(y)
                 : "memory");
}

// ---- matrix instructions of a warpgroup -----------------------------------------------------------

// Where and how an operand lies in shared memory. Stored along l, eight lines of 128 bytes (8 of m or
// n) follow each other in `8 * LINE_BYTES`; else eight lines (8 of l), and 64 of m or n in a block.
template <bool ALONG_L> __device__ __forceinline__ u64 descriptor(u32 address) {
    constexpr u64 SWIZZLE_128 = u64(1) << 62;
    constexpr u64 GROUPS = u64(8 * LINE_BYTES / 16) << 32;
    constexpr u64 BLOCKS = u64(ALONG_L ? 1 : BLOCK_BYTES / 16) << 16;
    return SWIZZLE_128 | GROUPS | BLOCKS | (address & 0x3ffff) / 16;
}
// From one step of 16 l to the next, in the units of the descriptor.
template <bool ALONG_L> constexpr u32 STEP_OFFSET = (ALONG_L ? STEP * 2 : STEP * LINE_BYTES) / 16;

__device__ __forceinline__ void warpgroup_arrive() {
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
__device__ __forceinline__ void warpgroup_commit() {
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
// Waits until at most N groups of matrix instructions are on their way.
template <u32 N> __device__ __forceinline__ void warpgroup_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
}

// d (64, 256) += a (64, 16) b (16, 256).
#define MULTIPLY(type)                                                                             \
    asm volatile("{\n"                                                                             \
    ".reg .pred add;\n"                                                                            \
    "setp.ne.b32 add, 1, 0;\n"                                                                     \
    "wgmma.mma_async.sync.aligned.m64n256k16.f32." type "." type " " \
    "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
    "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, " \
    "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
    "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, " \
    "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, " \
    "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, " \
    "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, " \
    "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127}, " \
    "%128, %129, add, 1, 1, %130, %131;\n"                                                         \
    "}"                                                                                            \
    : \
    "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), \
    "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]), \
    "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), \
    "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]), \
    "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), \
    "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]), \
    "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), \
    "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31]), \
    "+f"(d[32]), "+f"(d[33]), "+f"(d[34]), "+f"(d[35]), \
    "+f"(d[36]), "+f"(d[37]), "+f"(d[38]), "+f"(d[39]), \
    "+f"(d[40]), "+f"(d[41]), "+f"(d[42]), "+f"(d[43]), \
    "+f"(d[44]), "+f"(d[45]), "+f"(d[46]), "+f"(d[47]), \
    "+f"(d[48]), "+f"(d[49]), "+f"(d[50]), "+f"(d[51]), \
    "+f"(d[52]), "+f"(d[53]), "+f"(d[54]), "+f"(d[55]), \
    "+f"(d[56]), "+f"(d[57]), "+f"(d[58]), "+f"(d[59]), \
    "+f"(d[60]), "+f"(d[61]), "+f"(d[62]), "+f"(d[63]), \
    "+f"(d[64]), "+f"(d[65]), "+f"(d[66]), "+f"(d[67]), \
    "+f"(d[68]), "+f"(d[69]), "+f"(d[70]), "+f"(d[71]), \
    "+f"(d[72]), "+f"(d[73]), "+f"(d[74]), "+f"(d[75]), \
    "+f"(d[76]), "+f"(d[77]), "+f"(d[78]), "+f"(d[79]), \
    "+f"(d[80]), "+f"(d[81]), "+f"(d[82]), "+f"(d[83]), \
    "+f"(d[84]), "+f"(d[85]), "+f"(d[86]), "+f"(d[87]), \
    "+f"(d[88]), "+f"(d[89]), "+f"(d[90]), "+f"(d[91]), \
    "+f"(d[92]), "+f"(d[93]), "+f"(d[94]), "+f"(d[95]), \
    "+f"(d[96]), "+f"(d[97]), "+f"(d[98]), "+f"(d[99]), \
    "+f"(d[100]), "+f"(d[101]), "+f"(d[102]), "+f"(d[103]), \
    "+f"(d[104]), "+f"(d[105]), "+f"(d[106]), "+f"(d[107]), \
    "+f"(d[108]), "+f"(d[109]), "+f"(d[110]), "+f"(d[111]), \
    "+f"(d[112]), "+f"(d[113]), "+f"(d[114]), "+f"(d[115]), \
    "+f"(d[116]), "+f"(d[117]), "+f"(d[118]), "+f"(d[119]), \
    "+f"(d[120]), "+f"(d[121]), "+f"(d[122]), "+f"(d[123]), \
    "+f"(d[124]), "+f"(d[125]), "+f"(d[126]), "+f"(d[127]) \
    : "l"(a), "l"(b), "n"(A_ALONG_L ? 0 : 1), "n"(B_ALONG_L ? 0 : 1))

template <class T, bool A_ALONG_L, bool B_ALONG_L> struct Multiply;
template <bool A_ALONG_L, bool B_ALONG_L> struct Multiply<bf16, A_ALONG_L, B_ALONG_L> {
    static __device__ __forceinline__ void run(float (&d)[128], u64 a, u64 b) { MULTIPLY("bf16"); }
};
template <bool A_ALONG_L, bool B_ALONG_L> struct Multiply<f16, A_ALONG_L, B_ALONG_L> {
    static __device__ __forceinline__ void run(float (&d)[128], u64 a, u64 b) { MULTIPLY("f16"); }
};

// ---- the product ----------------------------------------------------------------------------------

// A place in the ring of stages, and how often the ring was gone around, modulo 2.
struct Ring {
    u32 stage = 0, parity = 0;

    __device__ __forceinline__ void advance() {
        if (++stage == STAGES) {
            stage = 0;
            parity ^= 1;
        }
    }
};

// A tile of y and a cut of l.
struct Work {
    TilePlace tile;
    u32 cut, first_l, slices;

    __device__ __forceinline__ Work(u32 item, u32 tiles, u32 m, u32 n, u32 k, u32 l_per_cut) {
        cut = item / tiles;
        tile = place_of_tile(item % tiles, m, n, TILE_M, TILE_N);
        first_l = cut * l_per_cut;
        slices = (min(l_per_cut, k - first_l) + DEPTH - 1) / DEPTH;
    }
};

// An operand's slice: SIZE (of m or n) from `start` on, DEPTH of l from `l` on.
template <bool ALONG_L, u32 SIZE>
__device__ __forceinline__ void copy_slice(u32 to, const TensorMap* map, u32 start, u32 l, u32 barrier) {
    if (ALONG_L) {
        copy_box(to, map, l, start, barrier);
    } else {
#pragma unroll
        for (u32 i = 0; i < SIZE / BOX; ++i) {
            copy_box(to + i * BLOCK_BYTES, map, start + i * BOX, l, barrier);
        }
    }
}

// Blocks take the items x, x + blocks, ... of `tiles * cuts`.
template <class T, bool A_ALONG_L, bool B_ALONG_L>
__device__ __forceinline__ void linear_product(const TensorMap* map_a, const TensorMap* map_b,
                                               const Result<T>& to, u32 k, u32 l_per_cut, u32 tiles,
                                               u32 items) {
    DYNAMIC_SHARED(u8, shared);
    STATIC_SHARED(u64, barriers, 2 * STAGES);
    // The exchange of chunks goes by the address: eight lines begin at a multiple of 1024.
    const u32 stages = (shared_address(shared) + 1023) / 1024 * 1024;
    const u32 arrived = shared_address(barriers), read = arrived + STAGES * 8;

    if (threadIdx.x == 0) {
        for (u32 s = 0; s < STAGES; ++s) {
            barrier_init(arrived + s * 8, 1);
            barrier_init(read + s * 8, CONSUMERS * 4);
        }
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    sync_threads();

    Ring ring;
    if (warp() < 4) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(PRODUCER_REGISTERS));
        if (threadIdx.x == 0) {
            for (u32 item = blockIdx.x; item < items; item += gridDim.x) {
                const Work work(item, tiles, to.m, to.n, k, l_per_cut);
                for (u32 s = 0; s < work.slices; ++s) {
                    const u32 stage = stages + ring.stage * STAGE_BYTES;
                    const u32 barrier = arrived + ring.stage * 8;
                    const u32 l = work.first_l + s * DEPTH;
                    // In the first round every stage counts as read.
                    barrier_wait(read + ring.stage * 8, ring.parity ^ 1);
                    barrier_expect(barrier, STAGE_BYTES);
                    copy_slice<A_ALONG_L, TILE_M>(stage, map_a, work.tile.row * TILE_M, l, barrier);
                    copy_slice<B_ALONG_L, TILE_N>(stage + A_BYTES, map_b,
                                                  work.tile.column * TILE_N, l, barrier);
                    ring.advance();
                }
            }
        }
        return;
    }

    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(CONSUMER_REGISTERS));
    const u32 consumer = warp() / 4 - 1;
    for (u32 item = blockIdx.x; item < items; item += gridDim.x) {
        const Work work(item, tiles, to.m, to.n, k, l_per_cut);
        float sum[128] = {};
        u32 before = 0;
        for (u32 s = 0; s < work.slices; ++s) {
            const u32 stage = stages + ring.stage * STAGE_BYTES;
            const u64 a = descriptor<A_ALONG_L>(stage + consumer * BLOCK_BYTES);
            const u64 b = descriptor<B_ALONG_L>(stage + A_BYTES);
            barrier_wait(arrived + ring.stage * 8, ring.parity);
            warpgroup_arrive();
#pragma unroll
            for (u32 step = 0; step < DEPTH / STEP; ++step) {
                Multiply<T, A_ALONG_L, B_ALONG_L>::run(sum, a + step * STEP_OFFSET<A_ALONG_L>,
                                                       b + step * STEP_OFFSET<B_ALONG_L>);
            }
            warpgroup_commit();
            // The slice before this one has been read.
            warpgroup_wait<1>();
            if (s > 0 && lane() == 0) {
                barrier_arrive(read + before * 8);
            }
            before = ring.stage;
            ring.advance();
        }
        warpgroup_wait<0>();
        if (lane() == 0) {
            barrier_arrive(read + before * 8);
        }

        Result<T> part = to;
        if (part.y32) {
            part.y32 += u64(work.cut) * to.m * to.n;
        }
        const u32 row = work.tile.row * TILE_M + consumer * 64 + warp() % 4 * 16 + lane() / 4;
        const u32 column = work.tile.column * TILE_N + lane() % 4 * 2;
#pragma unroll
        for (u32 j = 0; j < TILE_N / 8; ++j) {
            put_pair(part, row, column + j * 8, sum[j * 4], sum[j * 4 + 1]);
            put_pair(part, row + 8, column + j * 8, sum[j * 4 + 2], sum[j * 4 + 3]);
        }
    }
}

} // namespace

// As KERNEL, with maps as parameters and one block to a multiprocessor, which setmaxnreg asks for.
#define WGMMA_KERNEL(T, name, a_along_l, b_along_l)                                                \
    extern "C" __global__ void __launch_bounds__(THREADS, 1)                                       \
        name(const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b,             \
             const float* bias, const float* residual, T* y, float* y32, u32 m, u32 n, u32 k,      \
             u32 l_per_cut, u32 tiles, u32 items) {                                                \
        linear_product<T, a_along_l, b_along_l>(&a, &b, Result<T>{bias, residual, y, y32, m, n},   \
                                                k, l_per_cut, tiles, items);                       \
    }
#define INSTANTIATE(T, suffix)                                                                     \
    WGMMA_KERNEL(T, linear_nt_wgmma_##suffix, true, true)                                          \
    WGMMA_KERNEL(T, linear_nn_wgmma_##suffix, true, false)                                         \
    WGMMA_KERNEL(T, linear_tn_wgmma_##suffix, false, false)

FOR_EACH_HALF_TYPE(INSTANTIATE)

#endif // __CUDA_ARCH_FEAT_SM90_ALL
