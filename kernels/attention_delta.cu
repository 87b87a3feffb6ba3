// delta = sum dO O by row and head, which both kernels of the attention's backward need.
//
// Bound by memory: neighbouring lanes share a head's row and take 16 bytes each where they can.

#include "attention.cuh"

// out, dout (tokens, heads head_dim) -> delta (head_count, tokens) of the heads from head_first.
template <class T>
__device__ void attention_delta(const T* out, const T* dout, float* delta, u32 tokens, u32 heads,
                                u32 head_dim, u32 head_first, u32 head_count, u32 lanes) {
    const u32 row = u32((u64(blockIdx.x) * blockDim.x + threadIdx.x) / lanes);
    const u32 token = row / head_count, head = row % head_count;
    const u64 start = (u64(token) * heads + head_first + head) * head_dim;
    const bool inside = token < tokens;
    const float sum =
        head_dim % Vec<T>::COUNT == 0
            ? dot<Vec<T>::COUNT>(out + start, dout + start, head_dim, lanes, inside)
            : dot<1>(out + start, dout + start, head_dim, lanes, inside);
    if (inside && lane() % lanes == 0) {
        delta[u64(head) * tokens + token] = sum;
    }
}

#define INSTANTIATE(T, suffix)                                                                     \
    KERNEL(attention_delta_##suffix, 256, (attention_delta<T>),                                    \
           (const T* out, const T* dout, float* delta, u32 tokens, u32 heads, u32 head_dim,        \
            u32 head_first, u32 head_count, u32 lanes),                                            \
           (out, dout, delta, tokens, heads, head_dim, head_first, head_count, lanes))
FOR_EACH_TYPE(INSTANTIATE)
