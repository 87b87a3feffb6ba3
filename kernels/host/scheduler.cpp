// Runs the threads of a block as fibers: each until it reaches an operation that others must reach
// too, warp after warp, in an order that the seed chooses.

#include "../common.cuh"
#include "fiber.hpp"

#include <cstdarg>
#include <cstdio>
#include <mutex>
#include <new>
#include <vector>

namespace emulator {

__thread Context* context;

const Operation SYNC_THREADS = {"sync_threads", nullptr};
static const Operation RETURNED = {"its end", nullptr};

namespace {

const Kernel* kernels = nullptr;

constexpr u32 MAX_THREADS = Stacks::COUNT, MAX_WARPS = MAX_THREADS / WARP, NONE = ~0u;
constexpr size_t CANARY = 128, MAX_DYNAMIC = 228 << 10, MAX_STATIC = 48 << 10;
constexpr u8 POISON = 0xff, CANARY_BYTE = 0xa5;

struct Launch {
    u32 grid[3];
    u32 threads;
    u32 shared_bytes;
    u64 seed;
};

struct Copy {
    void* to;
    const void* from;
    bool valid;
    u32 group;
};

// The copies of a thread that have not happened yet, oldest first.
struct Copies {
    std::vector<Copy> waiting;
    u32 committed = 0;
};

struct StaticShared {
    const void* site;
    size_t bytes, offset;
};

enum class Progress : u8 { Running, AtBarrier, Returned };

// How the seed orders warps and lanes. Ascending and descending run a warp from barrier to barrier;
// with other seeds warps take turns at every operation, both they and their lanes in random order.
enum class Order : u8 { Ascending, Descending, Random };

// All that it takes to run blocks on one thread of the host.
struct Worker {
    Context running = {};
    const Kernel* kernel;
    const u64* arguments;
    u32 threads, warps;
    Order order;
    u64 random;

    // For each thread: what it waits at, null when it may run; its fiber once it has started.
    const Operation* waiting[MAX_THREADS];
    Fiber* fibers[MAX_THREADS];
    Slot slots[MAX_THREADS];
    Copies copies[MAX_THREADS];
    bool copied = false;

    Progress progress[MAX_WARPS];
    u32 warp_order[MAX_WARPS];
    u32 warp_at;                  // in warp_order
    u32 first, lanes, lane_at;    // of the warp whose turn it is: its first thread, their number
    u32 lane_factor, lane_offset; // lane_at is the turn of lane factor·lane_at + offset modulo 32

    Stacks stacks;
    Fiber host = {};
    char* error;
    size_t error_capacity;
    bool failed;

    size_t dynamic_bytes;
    std::vector<StaticShared> static_sites;
    size_t static_bytes;
    alignas(128) u8 dynamic_memory[CANARY + MAX_DYNAMIC + CANARY];
    alignas(128) u8 static_memory[MAX_STATIC + CANARY];

    u32 draw() { // xorshift64*, the high half
        random ^= random >> 12;
        random ^= random << 25;
        random ^= random >> 27;
        return u32(random * 0x2545f4914f6cdd1dull >> 32);
    }
};

__thread Worker* worker;

// ---- who runs next -----------------------------------------------------------------------------

[[noreturn]] void fail_at(u32 thread, const char* format, ...)
    __attribute__((format(printf, 2, 3)));

void describe(Worker& w, u32 thread, const char* format, va_list arguments) {
    int length = snprintf(w.error, w.error_capacity, "kernel %s, block (%u, %u, %u), thread %u: ",
                          w.kernel->name, w.running.block.x, w.running.block.y, w.running.block.z,
                          thread);
    if (length > 0 && size_t(length) < w.error_capacity) {
        vsnprintf(w.error + length, w.error_capacity - length, format, arguments);
    }
    w.failed = true;
}

// Leaves all threads of the block where they stand.
[[noreturn]] void abandon(Worker& w) {
    Fiber nowhere;
    switch_fiber(nowhere, w.host);
    __builtin_unreachable();
}

void fail_at(u32 thread, const char* format, ...) {
    va_list arguments;
    va_start(arguments, format);
    describe(*worker, thread, format, arguments);
    va_end(arguments);
    abandon(*worker);
}

void begin_turn(Worker& w) {
    w.first = w.warp_order[w.warp_at] * WARP;
    w.lanes = min(WARP, w.threads - w.first);
    w.lane_at = 0;
    if (w.order == Order::Random) {
        const u32 random = w.draw();
        w.lane_factor = random | 1;
        w.lane_offset = random >> 8;
    }
}

bool skip_to_running(Worker& w) {
    while (w.warp_at < w.warps && w.progress[w.warp_order[w.warp_at]] != Progress::Running) {
        w.warp_at++;
    }
    return w.warp_at < w.warps;
}

// Gives every warp another turn, past the barrier when all have reached it. False when all threads
// have returned.
bool begin_round(Worker& w) {
    if (w.order == Order::Random) {
        for (u32 i = w.warps; i > 1; i--) {
            std::swap(w.warp_order[i - 1], w.warp_order[w.draw() % i]);
        }
    }
    w.warp_at = 0;
    if (skip_to_running(w)) {
        return true;
    }
    u32 at_barrier = 0, at = 0;
    for (u32 warp = 0; warp < w.warps; warp++) {
        if (w.progress[warp] == Progress::AtBarrier) {
            at_barrier++;
            at = warp;
        }
    }
    if (at_barrier == 0) {
        return false;
    }
    if (at_barrier < w.warps) {
        u32 returned = 0;
        while (w.progress[returned] != Progress::Returned) {
            returned++;
        }
        fail_at(at * WARP, "waits at sync_threads for thread %u, which has returned",
                returned * WARP);
    }
    for (u32 thread = 0; thread < w.threads; thread++) {
        w.waiting[thread] = nullptr;
    }
    for (u32 warp = 0; warp < w.warps; warp++) {
        w.progress[warp] = Progress::Running;
    }
    w.warp_at = 0;
    return true;
}

// What follows when each thread of a warp is at an operation.
void settle(Worker& w) {
    const Operation** waiting = &w.waiting[w.first];
    const Operation* operation = waiting[0];
    for (u32 lane = 1; lane < w.lanes; lane++) {
        if (waiting[lane] != operation) {
            fail_at(w.first, "is at %s while thread %u of its warp is at %s", operation->name,
                    w.first + lane, waiting[lane]->name);
        }
    }
    Progress& progress = w.progress[w.first / WARP];
    if (operation == &SYNC_THREADS) {
        progress = Progress::AtBarrier;
    } else if (operation == &RETURNED) {
        progress = Progress::Returned;
    } else {
        if (w.lanes < WARP) {
            fail_at(w.first, "%s in a warp of %u threads", operation->name, w.lanes);
        }
        operation->complete(&w.slots[w.first]);
        for (u32 lane = 0; lane < WARP; lane++) {
            waiting[lane] = nullptr;
        }
    }
}

// The thread to run now; NONE when all have returned.
u32 next_thread(Worker& w) {
    for (;;) {
        while (w.lane_at < WARP) {
            const u32 lane = (w.lane_factor * w.lane_at++ + w.lane_offset) % WARP;
            if (lane < w.lanes && w.waiting[w.first + lane] == nullptr) {
                return w.first + lane;
            }
        }
        settle(w);
        if (w.order == Order::Random || w.progress[w.first / WARP] != Progress::Running) {
            w.warp_at++;
            if (!skip_to_running(w) && !begin_round(w)) {
                return NONE;
            }
        }
        begin_turn(w);
    }
}

// ---- threads -----------------------------------------------------------------------------------

// Runs threads from their start; a thread that never waits leaves the stack to the next one.
void fiber_main() {
    Worker& w = *worker;
    for (;;) {
        const u32 thread = w.running.thread.x;
        w.kernel->call(w.kernel->function, w.arguments);
        w.waiting[thread] = &RETURNED;
        Fiber* mine = w.fibers[thread];
        const u32 next = next_thread(w);
        if (next != NONE && w.fibers[next] == nullptr) {
            w.fibers[next] = mine;
            w.running.thread.x = next;
            continue;
        }
        w.stacks.release(mine);
        if (next != NONE) {
            w.running.thread.x = next;
        }
        switch_fiber(*mine, next == NONE ? w.host : *w.fibers[next]);
    }
}

void resume(Worker& w, Fiber& from, u32 thread) {
    if (w.fibers[thread] == nullptr) {
        w.fibers[thread] = w.stacks.take(fiber_main);
    }
    w.running.thread.x = thread;
    switch_fiber(from, *w.fibers[thread]);
}

// ---- blocks ------------------------------------------------------------------------------------

bool intact(const u8* canary) {
    for (size_t i = 0; i < CANARY; i++) {
        if (canary[i] != CANARY_BYTE) {
            return false;
        }
    }
    return true;
}

void note_failure(Worker& w, const char* format, ...) __attribute__((format(printf, 2, 3)));
void note_failure(Worker& w, const char* format, ...) {
    va_list arguments;
    va_start(arguments, format);
    describe(w, w.running.thread.x, format, arguments);
    va_end(arguments);
}

void check_canaries(Worker& w) {
    const u8* dynamic = w.dynamic_memory;
    if (!intact(dynamic) || !intact(dynamic + CANARY + w.dynamic_bytes)) {
        note_failure(w, "a thread of the block wrote beyond the %zu bytes of dynamic shared memory",
                     w.dynamic_bytes);
    }
    for (const StaticShared& shared : w.static_sites) {
        if (!intact(&w.static_memory[shared.offset + shared.bytes])) {
            note_failure(w, "a thread of the block wrote beyond %zu bytes of static shared memory",
                         shared.bytes);
        }
    }
}

void run_block(Worker& w, const Launch& launch, u64 block) {
    w.running.block.x = u32(block % launch.grid[0]);
    w.running.block.y = u32(block / launch.grid[0] % launch.grid[1]);
    w.running.block.z = u32(block / launch.grid[0] / launch.grid[1]);
    w.random = (launch.seed * 0x9e3779b97f4a7c15ull ^ block * 0xbf58476d1ce4e5b9ull) | 1;
    for (u32 thread = 0; thread < w.threads; thread++) {
        w.waiting[thread] = nullptr;
        w.fibers[thread] = nullptr;
    }
    if (w.copied) {
        for (u32 thread = 0; thread < w.threads; thread++) {
            w.copies[thread].waiting.clear();
            w.copies[thread].committed = 0;
        }
        w.copied = false;
    }
    std::memset(w.dynamic_memory, CANARY_BYTE, CANARY);
    std::memset(w.dynamic_memory + CANARY, POISON, w.dynamic_bytes);
    std::memset(w.dynamic_memory + CANARY + w.dynamic_bytes, CANARY_BYTE, CANARY);
    w.static_sites.clear();
    w.static_bytes = 0;

    const bool descending = w.order == Order::Descending;
    w.lane_factor = descending ? WARP - 1 : 1;
    w.lane_offset = descending ? WARP - 1 : 0;
    for (u32 i = 0; i < w.warps; i++) {
        w.progress[i] = Progress::Running;
        w.warp_order[i] = descending ? w.warps - 1 - i : i;
    }
    begin_round(w);
    begin_turn(w);
    resume(w, w.host, next_thread(w));
    if (w.failed) {
        w.stacks.release_all();
    } else {
        check_canaries(w);
    }
}

// ---- workers -----------------------------------------------------------------------------------

// Those that are not at work, kept for their stacks.
std::mutex idle_lock;
std::vector<Worker*> idle;

Worker* borrow_worker() {
    {
        std::lock_guard<std::mutex> guard(idle_lock);
        if (!idle.empty()) {
            Worker* worker = idle.back();
            idle.pop_back();
            return worker;
        }
    }
    Worker* worker = new (std::nothrow) Worker;
    if (worker != nullptr && !worker->stacks.ready()) {
        delete worker;
        return nullptr;
    }
    return worker;
}

void give_back(Worker* worker) {
    std::lock_guard<std::mutex> guard(idle_lock);
    idle.push_back(worker);
}

} // namespace

// ---- for the primitives ------------------------------------------------------------------------

void Kernel::enlist() {
    next = kernels;
    kernels = this;
}

void wait(const Operation& operation) {
    Worker& w = *worker;
    const u32 thread = w.running.thread.x;
    w.waiting[thread] = &operation;
    const u32 next = next_thread(w);
    if (next != thread) {
        resume(w, *w.fibers[thread], next);
    }
}

void fail(const char* format, ...) {
    va_list arguments;
    va_start(arguments, format);
    describe(*worker, worker->running.thread.x, format, arguments);
    va_end(arguments);
    abandon(*worker);
}

u8* dynamic_shared() { return worker->dynamic_memory + CANARY; }

u8* static_shared(const void* site, size_t bytes) {
    Worker& w = *worker;
    for (const StaticShared& shared : w.static_sites) {
        if (shared.site == site) {
            return &w.static_memory[shared.offset];
        }
    }
    const size_t offset = w.static_bytes;
    const size_t end = (offset + bytes + CANARY + 127) / 128 * 128;
    if (end > sizeof w.static_memory) {
        fail("STATIC_SHARED of %zu bytes: no room beside %zu bytes of others", bytes, offset);
    }
    w.static_sites.push_back({site, bytes, offset});
    w.static_bytes = end;
    std::memset(&w.static_memory[offset], POISON, bytes);
    std::memset(&w.static_memory[offset + bytes], CANARY_BYTE, CANARY);
    return &w.static_memory[offset];
}

void check_shared(const void* pointer, size_t bytes, const char* what) {
    const Worker& w = *worker;
    const u8* from = static_cast<const u8*>(pointer);
    const u8* dynamic = w.dynamic_memory + CANARY;
    if (from >= dynamic && from + bytes <= dynamic + w.dynamic_bytes) {
        return;
    }
    for (const StaticShared& shared : w.static_sites) {
        const u8* start = &w.static_memory[shared.offset];
        if (from >= start && from + bytes <= start + shared.bytes) {
            return;
        }
    }
    fail("%s of %zu bytes at %p, outside shared memory (%zu bytes of it dynamic, from %p)", what,
         bytes, pointer, w.dynamic_bytes, static_cast<const void*>(dynamic));
}

// The target is poisoned at once: whoever reads it before the wait sees that.
void copy_later(void* shared, const void* global, bool valid) {
    if (!aligned16(shared) || (valid && !aligned16(global))) {
        fail("cp_async16 from %p to %p, not both aligned to 16 bytes", global, shared);
    }
    check_shared(shared, 16, "cp_async16");
    std::memset(shared, POISON, 16);
    Worker& w = *worker;
    Copies& copies = w.copies[w.running.thread.x];
    copies.waiting.push_back({shared, global, valid, copies.committed});
    w.copied = true;
}

void commit_copies() {
    worker->copies[worker->running.thread.x].committed++;
    worker->copied = true;
}

void wait_for_copies(u32 pending) {
    Copies& copies = worker->copies[worker->running.thread.x];
    size_t done = 0;
    for (; done < copies.waiting.size(); done++) {
        const Copy& copy = copies.waiting[done];
        if (copy.group + pending >= copies.committed) {
            break;
        }
        if (copy.valid) {
            std::memcpy(copy.to, copy.from, 16);
        } else {
            std::memset(copy.to, 0, 16);
        }
    }
    copies.waiting.erase(copies.waiting.begin(), copies.waiting.begin() + done);
}

} // namespace emulator

// ---- for Rust ----------------------------------------------------------------------------------

using emulator::Kernel;

// The kernel of this name, or null.
extern "C" const Kernel* sft_emulator_find(const char* name, size_t length) {
    for (const Kernel* kernel = emulator::kernels; kernel != nullptr; kernel = kernel->next) {
        if (strlen(kernel->name) == length && memcmp(kernel->name, name, length) == 0) {
            return kernel;
        }
    }
    return nullptr;
}

// The number of its parameters and, in *kinds, what they are.
extern "C" u32 sft_emulator_parameters(const Kernel* kernel, const emulator::Kind** kinds) {
    *kinds = kernel->kinds;
    return kernel->parameters;
}

// The most threads that a block of it may have.
extern "C" u32 sft_emulator_threads(const Kernel* kernel) { return kernel->max_threads; }

// Runs the blocks `first` to `end` - 1, counted along x, then y, then z. 0, or 1 with a text in
// `error`. The caller has checked the arguments and the number of threads.
extern "C" int sft_emulator_run(const Kernel* kernel, const emulator::Launch* launch,
                                const u64* arguments, u64 first, u64 end, char* error,
                                size_t error_capacity) {
    using namespace emulator;
    Worker* w = borrow_worker();
    if (w == nullptr) {
        snprintf(error, error_capacity, "no memory for the stacks of kernel %s", kernel->name);
        return 1;
    }
    if (launch->threads == 0 || launch->threads > MAX_THREADS || launch->shared_bytes > MAX_DYNAMIC) {
        snprintf(error, error_capacity, "kernel %s: %u threads with %u bytes of shared memory",
                 kernel->name, launch->threads, launch->shared_bytes);
        give_back(w);
        return 1;
    }
    w->kernel = kernel;
    w->arguments = arguments;
    w->threads = launch->threads;
    w->warps = (launch->threads + WARP - 1) / WARP;
    w->order = launch->seed == 1   ? Order::Ascending
               : launch->seed == 2 ? Order::Descending
                                   : Order::Random;
    w->running.threads = {launch->threads, 1, 1};
    w->running.grid = {launch->grid[0], launch->grid[1], launch->grid[2]};
    w->running.slots = w->slots;
    w->dynamic_bytes = launch->shared_bytes;
    w->error = error;
    w->error_capacity = error_capacity;
    w->failed = false;
    worker = w;
    context = &w->running;
    for (u64 block = first; block < end && !w->failed; block++) {
        run_block(*w, *launch, block);
    }
    const int status = w->failed;
    worker = nullptr;
    context = nullptr;
    give_back(w);
    return status;
}
