// Softmax cross-entropy over rows of logits, and its gradient in place. With lse = log sum_j e^z_j and
// p_j = e^(z_j - lse):
//
//   forward   loss = lse - z_label,   entropy = lse - sum_j p_j z_j
//   backward  dz_j = scale (p_j - [j = label])
//
// Bound by memory: a block reads its row once for all statistics, scaling its sums again whenever it
// meets a larger logit (Milakov and Gimelshein 2018, "Online normalizer calculation for softmax"),
// and once more, backwards, to write the gradient: the end of the row is still in the cache.

#include "common.cuh"

namespace {

constexpr u32 THREADS = 512;
constexpr float LOWEST = -3.402823466e+38f;

// Errs by 2 units in the last place for float32. Halves are wrong by 2^15 times that before any
// arithmetic.
template <class T> __device__ __forceinline__ float exponential(float x) {
    return sizeof(T) == sizeof(float) ? expf(x) : exp_fast(x);
}

// What a thread knows of the logits that it has seen.
struct Seen {
    float top = -infinity();
    float total = 0.0f;    // sum e^(z - top)
    float weighted = 0.0f; // sum e^(z - top) (z - top)

    // A finite number to subtract where all logits are -infinity.
    __device__ __forceinline__ float origin() const { return fmaxf(top, LOWEST); }

    // No part of weighted is positive, so nothing cancels.
    template <class T> __device__ __forceinline__ void raise(float new_top) {
        const float before = origin();
        top = new_top;
        const float down = before - origin(), factor = exponential<T>(down);
        weighted = factor * (weighted + total * fmaxf(down, LOWEST));
        total *= factor;
    }
};

// The label's logit, and whether an equal one stands before it.
struct Label {
    u32 index;
    float z;
    bool preceded = false;
};

// Neighbours from `index` on. A NaN passes by the maximum and is seen in the sums.
template <class T, u32 N>
__device__ __forceinline__ void see(Seen& seen, Label& label, u32 index, const T (&logits)[N]) {
    float top = to_float(logits[0]);
#pragma unroll
    for (u32 k = 1; k < N; k++) {
        top = fmaxf(top, to_float(logits[k]));
    }
    if (top > seen.top) {
        seen.raise<T>(top);
    }
    if (top == label.z && index < label.index) {
#pragma unroll
        for (u32 k = 0; k < N; k++) {
            label.preceded |= to_float(logits[k]) == label.z && index + k < label.index;
        }
    }
    const float origin = seen.origin();
#pragma unroll
    for (u32 k = 0; k < N; k++) {
        const float down = to_float(logits[k]) - origin, e = exponential<T>(down);
        seen.total += e;
        // e^-infinity times a finite number is 0.
        seen.weighted += e * fmaxf(down, LOWEST);
    }
}

// dz of neighbours.
template <class T, u32 N>
__device__ __forceinline__ void differentiate(T (&logits)[N], u32 index, u32 label, float top,
                                              float log_total, float scale) {
    // lse = top + log_total, subtracted one by one: their sum would round to the precision of the
    // largest logit.
    float dz[N];
#pragma unroll
    for (u32 k = 0; k < N; k++) {
        dz[k] = scale * exponential<T>((to_float(logits[k]) - top) - log_total);
    }
    if (label - index < N) {
#pragma unroll
        for (u32 k = 0; k < N; k++) {
            dz[k] -= label == index + k ? scale : 0.0f;
        }
    }
#pragma unroll
    for (u32 k = 0; k < N; k++) {
        logits[k] = from_float<T>(dz[k]);
    }
}

// A row in three parts: `head` numbers up to the first address that is a multiple of 16, whole
// vectors, and the rest. Rows of an odd vocabulary begin anywhere.
struct Parts {
    u32 head, vectors, edges;

    template <class T> __device__ __forceinline__ Parts(const T* row, u32 vocab) {
        const u32 misaligned = u32(reinterpret_cast<u64>(row) % 16) / sizeof(T);
        head = misaligned == 0 ? 0 : Vec<T>::COUNT - misaligned;
        head = head < vocab ? head : vocab;
        vectors = (vocab - head) / Vec<T>::COUNT;
        edges = vocab - vectors * Vec<T>::COUNT;
    }
    // Index of the n-th number outside of the vectors.
    template <class T> __device__ __forceinline__ u32 edge(u32 n) const {
        return n < head ? n : n + vectors * Vec<T>::COUNT;
    }
};

// Vectors that a thread has on their way.
constexpr u32 FLIGHT = 4;
constexpr u32 STRIDE = THREADS * FLIGHT;

} // namespace

// logits (rows, vocab), labels (rows) -> stats (rows, 3); logits become their gradient if asked.
// One block a row.
template <class T>
__device__ void cross_entropy(T* logits, const i32* labels, float* stats, u32 vocab, float scale,
                              u32 gradient) {
    STATIC_SHARED(float, shared, WARP);
    const u64 place = blockIdx.x;
    T* const row = logits + place * vocab;
    const Parts parts(row, vocab);
    T* const vectors = row + parts.head;
    const u32 thread = threadIdx.x, whole = parts.vectors / STRIDE * STRIDE;
    const auto index_of = [&](u32 vector) { return parts.head + vector * Vec<T>::COUNT; };

    Seen seen;
    Label label;
    label.index = u32(labels[place]);
    label.z = to_float(row[label.index]);
    for (u32 start = thread; start < whole; start += STRIDE) {
        Vec<T> loaded[FLIGHT];
#pragma unroll
        for (u32 i = 0; i < FLIGHT; i++) {
            loaded[i] = load16(vectors + u64(start + i * THREADS) * Vec<T>::COUNT);
        }
#pragma unroll
        for (u32 i = 0; i < FLIGHT; i++) {
            see(seen, label, index_of(start + i * THREADS), loaded[i].v);
        }
    }
    for (u32 i = whole + thread; i < parts.vectors; i += THREADS) {
        see(seen, label, index_of(i), load16(vectors + u64(i) * Vec<T>::COUNT).v);
    }
    if (thread < parts.edges) {
        const u32 index = parts.edge<T>(thread);
        const T single[1] = {row[index]};
        see(seen, label, index, single);
    }

    const float top = block_max(seen.top, shared);
    seen.raise<T>(top);
    const float total = block_sum(seen.total, shared);
    const float weighted = block_sum(seen.weighted, shared);
    const float preceded = block_sum(label.preceded ? 1.0f : 0.0f, shared);
    const float log_total = logf(total);
    if (thread == 0) {
        const bool first = label.z == top && preceded == 0.0f && total == total;
        float* const out = stats + place * 3;
        out[0] = log_total - (label.z - top);
        out[1] = log_total - weighted / total;
        out[2] = first ? 1.0f : 0.0f;
    }
    if (gradient == 0) {
        return;
    }

    if (thread < parts.edges) {
        const u32 index = parts.edge<T>(thread);
        T single[1] = {row[index]};
        differentiate(single, index, label.index, top, log_total, scale);
        row[index] = single[0];
    }
    for (u32 i = whole + thread; i < parts.vectors; i += THREADS) {
        Vec<T> z = load16(vectors + u64(i) * Vec<T>::COUNT);
        differentiate(z.v, index_of(i), label.index, top, log_total, scale);
        store16(vectors + u64(i) * Vec<T>::COUNT, z);
    }
    for (u32 end = whole; end > 0; end -= STRIDE) {
        const u32 start = end - STRIDE + thread;
        Vec<T> loaded[FLIGHT];
#pragma unroll
        for (u32 i = 0; i < FLIGHT; i++) {
            loaded[i] = load16(vectors + u64(start + i * THREADS) * Vec<T>::COUNT);
        }
#pragma unroll
        for (u32 i = 0; i < FLIGHT; i++) {
            const u32 vector = start + i * THREADS;
            differentiate(loaded[i].v, index_of(vector), label.index, top, log_total, scale);
            store16(vectors + u64(vector) * Vec<T>::COUNT, loaded[i]);
        }
    }
}

#define INSTANTIATE(T, suffix)                                                                     \
    KERNEL(cross_entropy_##suffix, THREADS, (cross_entropy<T>),                                    \
           (T* logits, const i32* labels, float* stats, u32 vocab, float scale, u32 gradient),     \
           (logits, labels, stats, vocab, scale, gradient))
FOR_EACH_TYPE(INSTANTIATE)
