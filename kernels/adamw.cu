// AdamW, in the form of torch.optim.AdamW. With g already clipped:
//
//   m <- beta1 m + (1 - beta1) g
//   v <- beta2 v + (1 - beta2) g^2
//   w <- (1 - lr decay) w - lr / (1 - beta1^t) m / (sqrt(v) / sqrt(1 - beta2^t) + epsilon)
//
// Bound by memory: four numbers read and four written for each parameter, and its half-precision copy.
// All factors that do not depend on the parameter come from the host, which computes them in float64.

#include "common.cuh"

namespace {

// Parameters of a thread: a vector of halves.
constexpr u32 GROUP = 8;

struct Factors {
    float decay, rate, beta1, rest1, beta2, rest2, root_scale, epsilon;

    __device__ __forceinline__ void update(float& w, float g, float& m, float& v) const {
        m = beta1 * m + rest1 * g;
        v = beta2 * v + rest2 * g * g;
        w = w * decay - rate * m / (sqrtf(v) * root_scale + epsilon);
    }
};

__device__ __forceinline__ void load_group(float (&to)[GROUP], const float* from) {
    const Vec<float> low = load16(from), high = load16(from + GROUP / 2);
#pragma unroll
    for (u32 k = 0; k < GROUP / 2; k++) {
        to[k] = low.v[k];
        to[k + GROUP / 2] = high.v[k];
    }
}

template <class T> __device__ __forceinline__ void store_group(T* to, const float (&from)[GROUP]) {
#pragma unroll
    for (u32 start = 0; start < GROUP; start += Vec<T>::COUNT) {
        Vec<T> vector;
#pragma unroll
        for (u32 k = 0; k < Vec<T>::COUNT; k++) {
            vector.v[k] = from_float<T>(from[start + k]);
        }
        store16(to + start, vector);
    }
}

__device__ __forceinline__ bool aligned(const void* pointer) {
    return reinterpret_cast<u64>(pointer) % 16 == 0;
}

} // namespace

// weights, gradients, m, v (n), clip (3) as grad_norm leaves it, operands (n) or null.
template <class T>
__device__ void adamw(const float* clip, float* weights, float* gradients, float* m, float* v,
                      T* operands, u64 n, Factors factors) {
    const u64 first = (u64(blockIdx.x) * blockDim.x + threadIdx.x) * GROUP;
    const float scale = clip[1];
    const bool finite = clip[2] != 0.0f;
    const bool wide = aligned(weights) && aligned(gradients) && aligned(m) && aligned(v) &&
                      aligned(operands);
    if (wide && first + GROUP <= n) {
        // Asked for before clip is looked at, so that the two waits are one.
        float w[GROUP], g[GROUP], m_group[GROUP], v_group[GROUP];
        load_group(g, gradients + first);
        load_group(m_group, m + first);
        load_group(v_group, v + first);
        load_group(w, weights + first);
        const float zeros[GROUP] = {};
        store_group(gradients + first, zeros);
        if (!finite) {
            return;
        }
#pragma unroll
        for (u32 k = 0; k < GROUP; k++) {
            factors.update(w[k], g[k] * scale, m_group[k], v_group[k]);
        }
        store_group(m + first, m_group);
        store_group(v + first, v_group);
        store_group(weights + first, w);
        if (operands != nullptr) {
            store_group(operands + first, w);
        }
        return;
    }
    // The last numbers, or a tensor that does not begin at a multiple of 16 bytes.
    for (u64 i = first; i < first + GROUP && i < n; i++) {
        if (finite) {
            float w = weights[i];
            factors.update(w, gradients[i] * scale, m[i], v[i]);
            weights[i] = w;
            if (operands != nullptr) {
                operands[i] = from_float<T>(w);
            }
        }
        gradients[i] = 0.0f;
    }
}

#define INSTANTIATE(T, suffix)                                                                     \
    KERNEL(adamw_##suffix, 256, (adamw<T>),                                                        \
           (const float* clip, float* weights, float* gradients, float* m, float* v, T* operands,  \
            u64 n, float decay, float rate, float beta1, float rest1, float beta2, float rest2,    \
            float root_scale, float epsilon),                                                      \
           (clip, weights, gradients, m, v, operands, n,                                           \
            Factors{decay, rate, beta1, rest1, beta2, rest2, root_scale, epsilon}))
FOR_EACH_TYPE(INSTANTIATE)
