// What the matrix products (linear.cu, linear_f32.cu, linear_wgmma.cu) share: the order of tiles, and
// what becomes of the sums.

#pragma once

#include "common.cuh"

namespace {

// Rows of tiles that are walked together, column by column, to find their operands in the L2 cache.
constexpr u32 TILE_GROUP = 16;

struct TilePlace {
    u32 row, column; // in tiles
};

// The tile of y (m, n) that is taken as number `index`.
__device__ __forceinline__ TilePlace place_of_tile(u32 index, u32 m, u32 n, u32 tile_m, u32 tile_n) {
    const u32 rows = (m + tile_m - 1) / tile_m, columns = (n + tile_n - 1) / tile_n;
    const u32 group = index / (TILE_GROUP * columns), inside = index % (TILE_GROUP * columns);
    const u32 height = min(TILE_GROUP, rows - group * TILE_GROUP);
    return {group * TILE_GROUP + inside % height, inside / height};
}

// What becomes of the sums.
template <class T> struct Result {
    const float* bias;     // (n), or null
    const float* residual; // (m, n), or null; may be y32
    T* y;                  // (m, n), or null for y32
    float* y32;
    u32 m, n;
};

struct alignas(8) Pair8 {
    float lo, hi;
};

template <class T>
__device__ __forceinline__ void put(const Result<T>& to, u64 at, u32 column, float sum) {
    if (to.bias) {
        sum += to.bias[column];
    }
    if (to.residual) {
        sum += to.residual[at];
    }
    if (to.y) {
        to.y[at] = from_float<T>(sum);
    } else {
        to.y32[at] = sum;
    }
}

// Two neighbours of a row, the first in an even column; nothing outside of y.
template <class T>
__device__ __forceinline__ void put_pair(const Result<T>& to, u32 row, u32 column, float lo,
                                         float hi) {
    if (row >= to.m || column >= to.n) {
        return;
    }
    const u64 at = u64(row) * to.n + column;
    if (to.n % 2 != 0) {
        put(to, at, column, lo);
        if (column + 1 < to.n) {
            put(to, at + 1, column + 1, hi);
        }
        return;
    }
    if (to.bias) {
        const Pair8 bias = *reinterpret_cast<const Pair8*>(to.bias + column);
        lo += bias.lo;
        hi += bias.hi;
    }
    if (to.residual) {
        const Pair8 residual = *reinterpret_cast<const Pair8*>(to.residual + at);
        lo += residual.lo;
        hi += residual.hi;
    }
    if (to.y) {
        *reinterpret_cast<u32*>(to.y + at) = pack2<T>(lo, hi);
    } else {
        *reinterpret_cast<Pair8*>(to.y32 + at) = Pair8{lo, hi};
    }
}

} // namespace
