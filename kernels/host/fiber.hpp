// Fibers: stacks, and the switch from one to another.

#pragma once

#include <cstddef>
#include <cstdint>
#include <sys/mman.h>
#include <unistd.h>

namespace emulator {

#if defined(__x86_64__) || defined(__aarch64__)

// Saves what a function must preserve on the running stack, notes its top in *from, and goes on
// where the stack `to` was left.
extern "C" void sft_emulator_switch(void** from, void* to) __attribute__((visibility("hidden")));

#if defined(__APPLE__)
#define SFT_SYMBOL "_sft_emulator_switch"
#else
#define SFT_SYMBOL "sft_emulator_switch"
#endif

#if defined(__x86_64__)
__asm__(".text\n.globl " SFT_SYMBOL "\n.p2align 4\n" SFT_SYMBOL ":\n"
        "pushq %rbp\n pushq %rbx\n pushq %r12\n pushq %r13\n pushq %r14\n pushq %r15\n"
        "movq %rsp, (%rdi)\n"
        "movq %rsi, %rsp\n"
        "popq %r15\n popq %r14\n popq %r13\n popq %r12\n popq %rbx\n popq %rbp\n"
        "ret\n");

// A stack on which a switch enters `function`.
inline void* prepare(uint8_t* top, void (*function)()) {
    void** slot = reinterpret_cast<void**>(top); // aligned to 16 bytes
    *--slot = nullptr;                           // the function never returns
    *--slot = nullptr;
    *--slot = nullptr;
    *--slot = reinterpret_cast<void*>(function);
    for (int saved = 0; saved < 6; saved++) {
        *--slot = nullptr;
    }
    return slot;
}
#else
__asm__(".text\n.globl " SFT_SYMBOL "\n.p2align 4\n" SFT_SYMBOL ":\n"
        "sub sp, sp, #160\n"
        "stp x19, x20, [sp, #0]\n stp x21, x22, [sp, #16]\n stp x23, x24, [sp, #32]\n"
        "stp x25, x26, [sp, #48]\n stp x27, x28, [sp, #64]\n stp x29, x30, [sp, #80]\n"
        "stp d8, d9, [sp, #96]\n stp d10, d11, [sp, #112]\n stp d12, d13, [sp, #128]\n"
        "stp d14, d15, [sp, #144]\n"
        "mov x9, sp\n str x9, [x0]\n"
        "mov sp, x1\n"
        "ldp x19, x20, [sp, #0]\n ldp x21, x22, [sp, #16]\n ldp x23, x24, [sp, #32]\n"
        "ldp x25, x26, [sp, #48]\n ldp x27, x28, [sp, #64]\n ldp x29, x30, [sp, #80]\n"
        "ldp d8, d9, [sp, #96]\n ldp d10, d11, [sp, #112]\n ldp d12, d13, [sp, #128]\n"
        "ldp d14, d15, [sp, #144]\n"
        "add sp, sp, #160\n"
        "ret\n");

inline void* prepare(uint8_t* top, void (*function)()) {
    void** slots = reinterpret_cast<void**>(top - 160);
    for (int saved = 0; saved < 20; saved++) {
        slots[saved] = nullptr;
    }
    slots[11] = reinterpret_cast<void*>(function); // x30, where it returns to
    return slots;
}
#endif

struct Fiber {
    void* top;
    uint8_t* stack_end;

    void reset(void (*function)()) { top = prepare(stack_end, function); }
};
inline void switch_fiber(Fiber& from, Fiber& to) { sft_emulator_switch(&from.top, to.top); }

#else
} // namespace emulator
#include <ucontext.h>
namespace emulator {

struct Fiber {
    ucontext_t context;
    uint8_t* stack_end;

    void reset(void (*function)()) {
        getcontext(&context);
        context.uc_stack.ss_sp = stack_end - (64 << 10);
        context.uc_stack.ss_size = 64 << 10;
        context.uc_link = nullptr;
        makecontext(&context, function, 0);
    }
};
inline void switch_fiber(Fiber& from, Fiber& to) { swapcontext(&from.context, &to.context); }

#endif

// Stacks for the most threads that a block can have. Memory that no thread touches costs nothing; a
// page below each stack can not be touched, so that an overflow ends the process instead of
// changing another thread.
class Stacks {
  public:
    static constexpr uint32_t COUNT = 1024;

    Stacks() {
        page = size_t(sysconf(_SC_PAGESIZE));
        stride = BYTES + page;
        void* mapped = mmap(nullptr, stride * COUNT, PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANON | MAP_NORESERVE, -1, 0);
        memory = mapped == MAP_FAILED ? nullptr : static_cast<uint8_t*>(mapped);
        release_all();
    }
    bool ready() const { return memory != nullptr; }

    Fiber* take(void (*function)()) {
        Fiber* fiber = free[--free_count];
        const uint32_t index = uint32_t(fiber - fibers);
        if (fiber->stack_end == nullptr) {
            mprotect(memory + index * stride, page, PROT_NONE);
            // Ends that differ in their low bits: equal ones would share a few lines of the cache.
            fiber->stack_end = memory + (index + 1) * stride - index * 5 % 64 * 64;
        }
        fiber->reset(function);
        return fiber;
    }
    void release(Fiber* fiber) { free[free_count++] = fiber; }
    void release_all() {
        free_count = 0;
        for (uint32_t i = COUNT; i > 0; i--) {
            free[free_count++] = &fibers[i - 1];
        }
    }

  private:
    static constexpr size_t BYTES = 160 << 10;

    Fiber fibers[COUNT] = {};
    Fiber* free[COUNT];
    uint32_t free_count;
    uint8_t* memory;
    size_t page, stride;
};

} // namespace emulator
