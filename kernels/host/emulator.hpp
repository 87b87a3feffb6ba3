// The primitives of common.cuh for the CPU; common.cuh includes this instead of those of the device.
//
// A thread of a block is a fiber. An operation that threads reach together suspends it until all of
// them have; scheduler.cpp runs them. README.md says what is emulated and what is not.

#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>
#if defined(__F16C__)
#include <immintrin.h>
#endif

#define __device__
#define __forceinline__ inline __attribute__((always_inline))

namespace emulator {

// ---- what the scheduler gives ------------------------------------------------------------------

struct Index {
    u32 x, y, z;
};

// What a thread hands to an operation of its warp, and what it finds there afterwards.
struct Slot {
    u64 value;
    u32 from_lane;
    void* to;
    const void* from[2];
};

// Something that all threads of a warp, or of a block, reach before any goes on.
struct Operation {
    const char* name;
    // Carried out once for the 32 slots of the warp.
    void (*complete)(Slot* slots);
};

// The running thread and its block.
struct Context {
    Index thread, block, threads, grid;
    Slot* slots;
};
extern __thread Context* context;

// Suspends the running thread until all others are at the same operation.
void wait(const Operation& operation);

// Ends the launch with an error that names the kernel, the block and the running thread.
[[noreturn]] void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));

// Shared memory of the running block; of `bytes` for each declaration, told apart by its `site`.
u8* dynamic_shared();
u8* static_shared(const void* site, size_t bytes);
// Fails unless the bytes lie in it.
void check_shared(const void* pointer, size_t bytes, const char* what);

void copy_later(void* shared, const void* global, bool valid);
void commit_copies();
void wait_for_copies(u32 pending);

extern const Operation SYNC_THREADS, SYNC_WARP, SHUFFLE, SHUFFLE_XOR, SHUFFLE_UP, SHUFFLE_DOWN,
    BALLOT, LDMATRIX_X4, LDMATRIX_X4_TRANS, LDMATRIX_X2, LDMATRIX_X2_TRANS, MMA_BF16, MMA_F16;

// ---- kernels by name ---------------------------------------------------------------------------

enum class Kind : u32 { Pointer, U32, U64, F32 };

template <class P> constexpr Kind kind_of() {
    static_assert(std::is_pointer_v<P> || std::is_same_v<P, float> || std::is_same_v<P, u32> ||
                      std::is_same_v<P, u64>,
                  "parameters are pointers, u32, float and u64");
    return std::is_pointer_v<P>         ? Kind::Pointer
           : std::is_same_v<P, float>   ? Kind::F32
           : std::is_same_v<P, u32>     ? Kind::U32
                                        : Kind::U64;
}

template <class... P> struct Signature {
    static constexpr Kind KINDS[sizeof...(P)] = {kind_of<P>()...};

    template <class T> static T argument(u64 bits) {
        T value;
        std::memcpy(&value, &bits, sizeof value);
        return value;
    }
    template <size_t... I>
    static void spread(void (*function)(P...), const u64* bits, std::index_sequence<I...>) {
        function(argument<P>(bits[I])...);
    }
    static void call(void (*function)(), const u64* bits) {
        spread(reinterpret_cast<void (*)(P...)>(function), bits, std::index_sequence_for<P...>{});
    }
};

// A kernel in the list of all. Made before main by KERNEL.
struct Kernel {
    const char* name;
    u32 max_threads;
    void (*function)();
    void (*call)(void (*function)(), const u64* arguments);
    const Kind* kinds;
    u32 parameters;
    const Kernel* next;

    template <class... P>
    Kernel(const char* name, u32 max_threads, void (*function)(P...))
        : name(name), max_threads(max_threads), function(reinterpret_cast<void (*)()>(function)),
          call(Signature<P...>::call), kinds(Signature<P...>::KINDS), parameters(sizeof...(P)) {
        enlist();
    }
    void enlist();
};

inline bool aligned16(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; }

// ---- number formats ----------------------------------------------------------------------------

inline u32 bits_of(float x) {
    u32 bits;
    std::memcpy(&bits, &x, sizeof bits);
    return bits;
}
inline float from_bits(u32 bits) {
    float x;
    std::memcpy(&x, &bits, sizeof x);
    return x;
}

// Both as cvt.rn rounds: to nearest, ties to even, every NaN to 0x7fff.
inline u16 round_to_bf16(float x) {
    const u32 bits = bits_of(x);
    if ((bits & 0x7fffffff) > 0x7f800000) {
        return 0x7fff;
    }
    return u16((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
inline u16 round_to_f16(float x) {
    const u32 sign = bits_of(x) >> 16 & 0x8000, magnitude = bits_of(x) & 0x7fffffff;
    if (magnitude > 0x7f800000) {
        return 0x7fff;
    }
    if (magnitude >= 0x477ff000) { // 65520, half-way to the number after the greatest
        return u16(sign | 0x7c00);
    }
    if (magnitude >= 0x38800000) { // 2^-14
        const u32 rounded = magnitude + 0xfff + (magnitude >> 13 & 1);
        return u16(sign | (rounded - 0x38000000) >> 13);
    }
    // Subnormal: numbers from 0.5 to 1 have its spacing, 2^-24.
    return u16(sign | (bits_of(from_bits(magnitude) + 0.5f) - 0x3f000000));
}
inline float widen_f16(u16 bits) {
#if defined(__F16C__)
    return _cvtsh_ss(bits);
#else
    const u32 sign = u32(bits & 0x8000) << 16, exponent = bits >> 10 & 0x1f, fraction = bits & 0x3ff;
    if (exponent == 0) {
        return from_bits(sign | bits_of(float(fraction) * 0x1p-24f));
    }
    const u32 wide = exponent == 0x1f ? 0xff : exponent + 112;
    return from_bits(sign | wide << 23 | fraction << 13);
#endif
}

template <class T> inline T exchange(const Operation& operation, T x, u32 from_lane) {
    static_assert(sizeof(T) <= sizeof(u64) && std::is_trivially_copyable_v<T>);
    Slot& slot = context->slots[context->thread.x];
    std::memcpy(&slot.value, &x, sizeof x);
    slot.from_lane = from_lane;
    wait(operation);
    std::memcpy(&x, &slot.value, sizeof x);
    return x;
}

inline void load_matrices(const Operation& operation, u32* to, const void* row, u32 lanes) {
    if (context->thread.x % WARP < lanes) {
        if (!aligned16(row)) {
            fail("%s from %p, which is not aligned to 16 bytes", operation.name, row);
        }
        check_shared(row, 16, operation.name);
    }
    Slot& slot = context->slots[context->thread.x];
    slot.to = to;
    slot.from[0] = row;
    wait(operation);
}

} // namespace emulator

// ---- the names of common.cuh -------------------------------------------------------------------

#define threadIdx (::emulator::context->thread)
#define blockIdx (::emulator::context->block)
#define blockDim (::emulator::context->threads)
#define gridDim (::emulator::context->grid)

#define KERNEL(name, threads, body, parameters, arguments)                                         \
    static void name parameters { body arguments; }                                                \
    static ::emulator::Kernel emulated_##name(#name, threads, name);

#define DYNAMIC_SHARED(T, name) T* const name = reinterpret_cast<T*>(::emulator::dynamic_shared())

#define STATIC_SHARED(T, name, count)                                                              \
    static char name##_site;                                                                       \
    T* const name = reinterpret_cast<T*>(::emulator::static_shared(&name##_site, sizeof(T) * (count)))

inline u32 float_bits(float x) { return emulator::bits_of(x); }
inline float float_from_bits(u32 bits) { return emulator::from_bits(bits); }

inline float to_float(float x) { return x; }
inline float to_float(bf16 x) { return emulator::from_bits(u32(x.bits) << 16); }
inline float to_float(f16 x) { return emulator::widen_f16(x.bits); }

template <class T> inline T from_float(float x);
template <> inline float from_float<float>(float x) { return x; }
template <> inline bf16 from_float<bf16>(float x) { return {emulator::round_to_bf16(x)}; }
template <> inline f16 from_float<f16>(float x) { return {emulator::round_to_f16(x)}; }

template <class T> inline u32 pack2(float lo, float hi) {
    return from_float<T>(lo).bits | u32(from_float<T>(hi).bits) << 16;
}
template <class T> inline Pair unpack2(u32 word) {
    return {to_float(T{u16(word & 0xffff)}), to_float(T{u16(word >> 16)})};
}

template <class T> inline Vec<T> load16(const T* from) {
    if (!emulator::aligned16(from)) {
        emulator::fail("load16 from %p, which is not aligned to 16 bytes", (const void*)from);
    }
    Vec<T> result;
    std::memcpy(&result, from, 16);
    return result;
}
template <class T> inline void store16(T* to, Vec<T> value) {
    if (!emulator::aligned16(to)) {
        emulator::fail("store16 to %p, which is not aligned to 16 bytes", (void*)to);
    }
    std::memcpy(to, &value, 16);
}

inline float exp2_fast(float x) { return exp2f(x); }
inline float exp_fast(float x) { return expf(x); }
inline float log_fast(float x) { return logf(x); }
inline float reciprocal_sqrt(float x) { return 1.0f / sqrtf(x); }
inline float divide_fast(float x, float y) { return x / y; }

inline void sync_threads() { emulator::wait(emulator::SYNC_THREADS); }
inline void sync_warp() { emulator::wait(emulator::SYNC_WARP); }
template <class T> inline T shuffle(T x, u32 from_lane) {
    return emulator::exchange(emulator::SHUFFLE, x, from_lane % WARP);
}
template <class T> inline T shuffle_xor(T x, u32 mask) {
    return emulator::exchange(emulator::SHUFFLE_XOR, x, (threadIdx.x ^ mask) % WARP);
}
template <class T> inline T shuffle_up(T x, u32 delta) {
    const u32 lane = threadIdx.x % WARP;
    return emulator::exchange(emulator::SHUFFLE_UP, x, lane >= delta ? lane - delta : lane);
}
template <class T> inline T shuffle_down(T x, u32 delta) {
    const u32 lane = threadIdx.x % WARP;
    return emulator::exchange(emulator::SHUFFLE_DOWN, x, lane + delta < WARP ? lane + delta : lane);
}
inline u32 ballot(bool vote) { return u32(emulator::exchange<u64>(emulator::BALLOT, vote, 0)); }

inline void cp_async16(void* shared, const void* global, bool valid) {
    emulator::copy_later(shared, global, valid);
}
inline void cp_async_commit() { emulator::commit_copies(); }
template <u32 N> inline void cp_async_wait() { emulator::wait_for_copies(N); }

inline void ldmatrix_x4(u32 (&r)[4], const void* row) {
    emulator::load_matrices(emulator::LDMATRIX_X4, r, row, 32);
}
inline void ldmatrix_x4_trans(u32 (&r)[4], const void* row) {
    emulator::load_matrices(emulator::LDMATRIX_X4_TRANS, r, row, 32);
}
inline void ldmatrix_x2(u32 (&r)[2], const void* row) {
    emulator::load_matrices(emulator::LDMATRIX_X2, r, row, 16);
}
inline void ldmatrix_x2_trans(u32 (&r)[2], const void* row) {
    emulator::load_matrices(emulator::LDMATRIX_X2_TRANS, r, row, 16);
}

template <class T>
inline void mma_m16n8k16(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) {
    static_assert(std::is_same_v<T, bf16> || std::is_same_v<T, f16>);
    emulator::Slot& slot = emulator::context->slots[threadIdx.x];
    slot.to = d;
    slot.from[0] = a;
    slot.from[1] = b;
    emulator::wait(std::is_same_v<T, bf16> ? emulator::MMA_BF16 : emulator::MMA_F16);
}

// ---- what CUDA has built in beyond C++ ---------------------------------------------------------

template <class T> inline T min(T a, T b) { return b < a ? b : a; }
template <class T> inline T max(T a, T b) { return a < b ? b : a; }
inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
