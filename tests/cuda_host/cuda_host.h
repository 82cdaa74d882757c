// CUDA on one host thread: the threads of a block are fibres, blocks run one after another.
//
// A lane runs until its next collective (a warp or block barrier, a shuffle, a vote), then the next lane of its
// warp runs; when every lane waits at the same collective, they all go on. A warp runs until all of it waits at a
// block barrier, then the next warp runs. So a launch is deterministic, and what a card leaves undefined is an error:
// lanes that wait at different collectives, or that returned while others wait, end the launch with a message.
//
// Lanes run in a ring that is ascending for order 0 and shuffled by the seed for others. A kernel whose barriers
// suffice gives the same integers in every order; one that misses a barrier reads what is not yet written.
//
// What this cannot see: a shuffle or a vote orders memory here as a barrier does, which a card does not promise.
//
// Shared memory is 0xFF (a NaN) at the start of each block. The caller runs one launch at a time in a process.
#pragma once

#include <csetjmp>
#include <csignal>
#include <cmath>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <pthread.h>
#include <sys/mman.h>
#include <type_traits>
#include <unistd.h>
#if !defined(CUDA_HOST_UCONTEXT) && !defined(__x86_64__) && !defined(__aarch64__)
#define CUDA_HOST_UCONTEXT
#endif
#ifdef CUDA_HOST_UCONTEXT
#include <ucontext.h>
#endif

// --- Vectors and indices ---------------------------------------------------------------------------------------

struct uint3 { unsigned x, y, z; };
struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
struct alignas(8) float2 { float x, y; };
struct float3 { float x, y, z; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(8) int2 { int x, y; };
struct alignas(16) int4 { int x, y, z, w; };
struct alignas(8) uint2 { unsigned x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float3 make_float3(float x, float y, float z) { return {x, y, z}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline int2 make_int2(int x, int y) { return {x, y}; }
inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

// --- Fibres ----------------------------------------------------------------------------------------------------

namespace cuda_host {

constexpr int N_LANES = 32;
constexpr int MAX_THREADS = 1024;
constexpr size_t STACK_BYTES = 256 * 1024;
constexpr size_t SHARED_BYTES = 256 * 1024;
constexpr size_t CANARY_BYTES = 256;
constexpr unsigned char POISON = 0xFF;

struct Warp;

struct Fibre {
#ifdef CUDA_HOST_UCONTEXT
    ucontext_t context;
#else
    void* stack_pointer;
#endif
    uint3 index;
    unsigned lane;
    Fibre* next;  // in the ring of its warp
    Warp* warp;
    char* stack;
};

struct Warp {
    uint64_t values[2][N_LANES];  // what lanes give to a collective; two, because fast lanes are one ahead
    unsigned ballot[2];
    unsigned phase;
    int n_lanes, n_waiting, n_returned;
    const char* collective;  // that its lanes wait at; names are compared by address
    int line;
    Fibre* first;
    Fibre* witness;  // a lane that waits or has returned, for messages
    Warp* next;
};

struct Block {
    int n_warps, n_waiting, n_returned;
    const char* collective;
    int line;
    Fibre* witness;
    unsigned phase;
    int count[2];
};

struct Launch {
    unsigned grid[3], block[3];
    unsigned shared_bytes;
    unsigned order;
};

static Fibre fibres[MAX_THREADS];
static Warp warps[MAX_THREADS / N_LANES];
static Block block;
static Fibre host;
static Fibre* current = &host;
static void (*body)(void*);
static void* body_data;
static const char* kernel_name;
static char message[1024];
static bool failed;
static sigjmp_buf after_fault;
static pthread_t launching_thread;
static char* dynamic_shared;
// A library has no other variables here, so the linker's names of start and stop bound them all.
__attribute__((section("cuda_shared"), used, aligned(128))) static char first_shared[128];
extern "C" {
extern char __start_cuda_shared[] __attribute__((visibility("hidden")));
extern char __stop_cuda_shared[] __attribute__((visibility("hidden")));
}

}  // namespace cuda_host

static uint3 blockIdx_of_launch;
static dim3 blockDim_of_launch, gridDim_of_launch;
#define threadIdx (const_cast<const uint3&>(cuda_host::current->index))
#define blockIdx (const_cast<const uint3&>(blockIdx_of_launch))
#define blockDim (const_cast<const dim3&>(blockDim_of_launch))
#define gridDim (const_cast<const dim3&>(gridDim_of_launch))
constexpr int warpSize = cuda_host::N_LANES;

extern "C" __attribute__((visibility("hidden"))) void cuda_host_enter();

#ifndef CUDA_HOST_UCONTEXT
extern "C" __attribute__((visibility("hidden"))) void cuda_host_switch(void** save, void* resume);
#endif
#if defined(CUDA_HOST_UCONTEXT)
#elif defined(__x86_64__)
asm(R"(
    .text
    .globl cuda_host_switch
    .hidden cuda_host_switch
    .type cuda_host_switch, @function
cuda_host_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
    .size cuda_host_switch, .-cuda_host_switch
)");
#else
asm(R"(
    .text
    .globl cuda_host_switch
    .hidden cuda_host_switch
    .type cuda_host_switch, %function
cuda_host_switch:
    sub sp, sp, #160
    stp x19, x20, [sp, #0]
    stp x21, x22, [sp, #16]
    stp x23, x24, [sp, #32]
    stp x25, x26, [sp, #48]
    stp x27, x28, [sp, #64]
    stp x29, x30, [sp, #80]
    stp d8, d9, [sp, #96]
    stp d10, d11, [sp, #112]
    stp d12, d13, [sp, #128]
    stp d14, d15, [sp, #144]
    mov x9, sp
    str x9, [x0]
    mov sp, x1
    ldp x19, x20, [sp, #0]
    ldp x21, x22, [sp, #16]
    ldp x23, x24, [sp, #32]
    ldp x25, x26, [sp, #48]
    ldp x27, x28, [sp, #64]
    ldp x29, x30, [sp, #80]
    ldp d8, d9, [sp, #96]
    ldp d10, d11, [sp, #112]
    ldp d12, d13, [sp, #128]
    ldp d14, d15, [sp, #144]
    add sp, sp, #160
    ret
    .size cuda_host_switch, .-cuda_host_switch
)");
#endif

namespace cuda_host {

inline void switch_to(Fibre* next) {
    Fibre* self = current;
    current = next;
#ifdef CUDA_HOST_UCONTEXT
    swapcontext(&self->context, &next->context);
#else
    cuda_host_switch(&self->stack_pointer, next->stack_pointer);
#endif
}

// Makes the fibre start at cuda_host_enter when it is next switched to.
inline void rewind_fibre(Fibre& fibre, unsigned thread) {
    // Stacks that all end at the same offset of a page would share a few cache lines.
    const size_t n_bytes = STACK_BYTES - (thread % 61) * 64;
#if defined(CUDA_HOST_UCONTEXT)
    getcontext(&fibre.context);
    fibre.context.uc_stack.ss_sp = fibre.stack;
    fibre.context.uc_stack.ss_size = n_bytes;
    fibre.context.uc_link = nullptr;
    makecontext(&fibre.context, cuda_host_enter, 0);
#elif defined(__x86_64__)
    // From below: six registers, where to return to, where that would return to.
    void** words = reinterpret_cast<void**>(fibre.stack + n_bytes) - 8;
    memset(words, 0, 8 * sizeof(void*));
    words[6] = reinterpret_cast<void*>(&cuda_host_enter);
    fibre.stack_pointer = words;
#else
    void** words = reinterpret_cast<void**>(fibre.stack + n_bytes) - 20;
    memset(words, 0, 20 * sizeof(void*));
    words[11] = reinterpret_cast<void*>(&cuda_host_enter);
    fibre.stack_pointer = words;
#endif
}

__attribute__((format(printf, 1, 0))) inline void write_message(const char* format, va_list rest) {
    int at = snprintf(message, sizeof message, "%s, block (%u, %u, %u): ", kernel_name, blockIdx.x,
                      blockIdx.y, blockIdx.z);
    vsnprintf(message + at, sizeof message - size_t(at), format, rest);
    failed = true;
}

__attribute__((format(printf, 1, 2))) inline void note_failure(const char* format, ...) {
    va_list rest;
    va_start(rest, format);
    write_message(format, rest);
    va_end(rest);
}

// Ends the launch: the other fibres are never resumed.
__attribute__((noreturn, format(printf, 1, 2), noinline)) inline void fail(const char* format, ...) {
    va_list rest;
    va_start(rest, format);
    write_message(format, rest);
    va_end(rest);
    switch_to(&host);
    abort();
}

struct Place { char text[48]; };
inline Place place(const Fibre* fibre) {
    Place answer;
    snprintf(answer.text, sizeof answer.text, "thread (%u, %u, %u)", fibre->index.x, fibre->index.y,
             fibre->index.z);
    return answer;
}

__attribute__((noreturn, noinline)) inline void fail_diverged(const Fibre* other, const char* collective,
                                                               int line) {
    const Warp& warp = *other->warp;
    if (warp.n_returned)
        fail("%s waits at %s (line %d), but %s has returned.", place(current).text, collective, line,
             place(other).text);
    fail("%s waits at %s (line %d), but %s waits at %s (line %d).", place(current).text, collective,
         line, place(other).text, warp.collective, warp.line);
}

// The lane joins the others of its warp at a collective; false if any waits elsewhere or has returned.
inline void arrive(Warp& warp, const char* collective, int line) {
    if (warp.n_returned) fail_diverged(warp.witness, collective, line);
    if (warp.n_waiting++ == 0) {
        warp.collective = collective;
        warp.line = line;
        warp.witness = current;
    } else if (warp.collective != collective || warp.line != line) {
        fail_diverged(warp.witness, collective, line);
    }
}

inline void meet_warp(const char* collective, int line) {
    Warp& warp = *current->warp;
    arrive(warp, collective, line);
    if (warp.n_waiting < warp.n_lanes) return switch_to(current->next);
    if (warp.n_lanes != N_LANES)
        fail("%s is called with the full mask in a warp of %d lanes.", collective, warp.n_lanes);
    warp.n_waiting = 0;
    warp.phase ^= 1;
    warp.ballot[warp.phase] = 0;
}

inline void meet_block(const char* collective, int line) {
    Warp& warp = *current->warp;
    arrive(warp, collective, line);
    if (warp.n_waiting < warp.n_lanes) return switch_to(current->next);
    if (block.n_returned) fail_diverged(block.witness, collective, line);
    if (block.n_waiting++ == 0) {
        block.collective = collective;
        block.line = line;
        block.witness = current;
    } else if (block.collective != collective || block.line != line) {
        fail_diverged(block.witness, collective, line);
    }
    if (block.n_waiting < block.n_warps) return switch_to(warp.next->first);
    for (int w = 0; w < block.n_warps; ++w) warps[w].n_waiting = 0;
    block.n_waiting = 0;
    block.phase ^= 1;
    block.count[block.phase] = 0;
}

inline void leave() {
    Warp& warp = *current->warp;
    if (warp.n_waiting)
        fail("%s returned, but %s waits at %s (line %d).", place(current).text,
             place(warp.witness).text, warp.collective, warp.line);
    warp.witness = current;
    if (++warp.n_returned < warp.n_lanes) return switch_to(current->next);
    if (block.n_waiting)
        fail("%s returned, but %s waits at %s (line %d).", place(current).text,
             place(block.witness).text, block.collective, block.line);
    block.witness = current;
    switch_to(++block.n_returned < block.n_warps ? warp.next->first : &host);
}

template <class Value>
inline uint64_t to_bits(Value value) {
    static_assert(std::is_trivially_copyable<Value>::value && sizeof(Value) <= 8, "a value of 1 to 8 bytes");
    uint64_t bits = 0;
    memcpy(&bits, &value, sizeof value);
    return bits;
}

inline void check_mask(unsigned mask, const char* collective) {
    if (mask != 0xffffffffu) fail("%s: the mask must be 0xffffffff; got 0x%08x.", collective, mask);
}

// Every lane gives a value and takes that of the lane that it names.
template <class Value>
inline Value exchange(const char* collective, int line, unsigned mask, Value value, unsigned source) {
    check_mask(mask, collective);
    Warp& warp = *current->warp;
    const unsigned phase = warp.phase;
    warp.values[phase][current->lane] = to_bits(value);
    meet_warp(collective, line);
    memcpy(&value, &warp.values[phase][source], sizeof value);
    return value;
}

inline unsigned vote(const char* collective, int line, unsigned mask, bool yes) {
    check_mask(mask, collective);
    Warp& warp = *current->warp;
    const unsigned phase = warp.phase;
    warp.ballot[phase] |= unsigned(yes) << current->lane;
    meet_warp(collective, line);
    return warp.ballot[phase];
}

inline int count_block(const char* collective, int line, bool yes) {
    const unsigned phase = block.phase;
    block.count[phase] += yes;
    meet_block(collective, line);
    return block.count[phase];
}

// --- A launch --------------------------------------------------------------------------------------------------

inline char* map_memory(size_t bytes) {
    void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) abort();
    return static_cast<char*>(memory);
}

inline size_t page_bytes() { return size_t(sysconf(_SC_PAGESIZE)); }

// Stacks, each above a page that faults.
inline void make_stacks(unsigned n_threads) {
    for (unsigned t = 0; t < n_threads; ++t) {
        if (fibres[t].stack) continue;
        char* memory = map_memory(STACK_BYTES + page_bytes());
        mprotect(memory, page_bytes(), PROT_NONE);
        fibres[t].stack = memory + page_bytes();
    }
}

inline unsigned next_random(unsigned& state) {
    state ^= state << 13;
    state ^= state >> 17;
    state ^= state << 5;
    return state;
}

template <class Item>
inline void shuffle(Item** items, int n, unsigned& state) {
    for (int i = n - 1; i > 0; --i) {
        int j = int(next_random(state) % unsigned(i + 1));
        Item* kept = items[i];
        items[i] = items[j];
        items[j] = kept;
    }
}

inline void tie_rings(unsigned n_threads, unsigned order) {
    unsigned state = order * 2654435761u;
    const int n_warps = int((n_threads + N_LANES - 1) / N_LANES);
    Warp* warp_ring[MAX_THREADS / N_LANES];
    for (int w = 0; w < n_warps; ++w) {
        Warp& warp = warps[w];
        Fibre* ring[N_LANES];
        const unsigned left = n_threads - unsigned(w) * N_LANES;
        warp.n_lanes = left < N_LANES ? int(left) : N_LANES;
        for (int lane = 0; lane < warp.n_lanes; ++lane) {
            Fibre& fibre = fibres[w * N_LANES + lane];
            fibre.lane = unsigned(lane);
            fibre.warp = &warp;
            ring[lane] = &fibre;
        }
        if (order) shuffle(ring, warp.n_lanes, state);
        for (int lane = 0; lane < warp.n_lanes; ++lane) ring[lane]->next = ring[(lane + 1) % warp.n_lanes];
        warp.first = ring[0];
        warp_ring[w] = &warp;
    }
    if (order) shuffle(warp_ring, n_warps, state);
    for (int w = 0; w < n_warps; ++w) warp_ring[w]->next = warp_ring[(w + 1) % n_warps];
    block.n_warps = n_warps;
}

inline void reset_block(unsigned n_threads) {
    for (unsigned t = 0; t < n_threads; ++t) rewind_fibre(fibres[t], t);
    for (int w = 0; w < block.n_warps; ++w) {
        warps[w].n_waiting = warps[w].n_returned = 0;
        warps[w].phase = warps[w].ballot[0] = 0;
    }
    block.n_waiting = block.n_returned = 0;
    block.phase = 0;
    block.count[0] = 0;
    memset(__start_cuda_shared, POISON, size_t(__stop_cuda_shared - __start_cuda_shared));
}

struct DynamicShared {
    char* memory;  // shared memory ends at a page that faults
    char* start;
    size_t bytes;

    void place(size_t bytes_) {
        if (!memory) {
            memory = map_memory(SHARED_BYTES + 2 * page_bytes()) + page_bytes();
            mprotect(memory - page_bytes(), page_bytes(), PROT_NONE);
            mprotect(memory + SHARED_BYTES, page_bytes(), PROT_NONE);
        }
        bytes = bytes_;
        start = memory + SHARED_BYTES - (bytes + 15) / 16 * 16;
        dynamic_shared = start;
    }
    size_t front_bytes() const {
        size_t room = size_t(start - memory);
        return room < CANARY_BYTES ? room : CANARY_BYTES;
    }
    void poison() { memset(start - front_bytes(), POISON, front_bytes() + (bytes + 15) / 16 * 16); }
    void check() const {
        for (const char* at = start - front_bytes(); at < memory + SHARED_BYTES; ++at)
            if ((at < start || at >= start + bytes) && static_cast<unsigned char>(*at) != POISON)
                return note_failure("a thread wrote at byte %td of %zu bytes of dynamic shared memory.",
                                    at - start, bytes);
    }
};

static DynamicShared shared;

// Faults of a launch end it with a message; those of anything else go their usual way.
struct Faults {
    struct sigaction old_segv, old_bus;
    stack_t old_stack;

    static void handle(int signal, siginfo_t* info, void*) {
        if (!pthread_equal(pthread_self(), launching_thread)) {
            ::signal(signal, SIG_DFL);
            return;
        }
        const char* at = static_cast<const char*>(info->si_addr);
        const Place who = place(current);
        if (at >= shared.start && at < shared.memory + SHARED_BYTES + page_bytes())
            note_failure("%s reads or writes byte %td of %zu bytes of dynamic shared memory.", who.text,
                         at - shared.start, shared.bytes);
        else if (at >= current->stack - page_bytes() && at < current->stack)
            note_failure("%s needs more than %zu bytes of stack.", who.text, STACK_BYTES);
        else
            note_failure("%s reads or writes memory at %p, which is not its own.", who.text,
                         info->si_addr);
        siglongjmp(after_fault, 1);
    }

    Faults() {
        static char* stack = map_memory(64 * 1024);
        stack_t own = {};
        own.ss_sp = stack;
        own.ss_size = 64 * 1024;
        sigaltstack(&own, &old_stack);
        struct sigaction action = {};
        action.sa_sigaction = handle;
        action.sa_flags = SA_SIGINFO | SA_ONSTACK;
        sigemptyset(&action.sa_mask);
        sigaction(SIGSEGV, &action, &old_segv);
        sigaction(SIGBUS, &action, &old_bus);
    }
    ~Faults() {
        sigaction(SIGSEGV, &old_segv, nullptr);
        sigaction(SIGBUS, &old_bus, nullptr);
        sigaltstack(&old_stack, nullptr);
    }
    Faults(const Faults&) = delete;
    Faults& operator=(const Faults&) = delete;
};

inline void run_block(unsigned n_threads) {
    reset_block(n_threads);
    shared.poison();
    switch_to(warps[0].first);
    if (!failed) shared.check();
}

inline void run_blocks(const Launch& launch, unsigned n_threads) {
    const uint64_t n_x = launch.grid[0], n_xy = n_x * launch.grid[1], n_blocks = n_xy * launch.grid[2];
    for (uint64_t i = 0; i < n_blocks && !failed; ++i) {
        const uint64_t at = launch.order ? n_blocks - 1 - i : i;
        blockIdx_of_launch = {unsigned(at % n_x), unsigned(at % n_xy / n_x), unsigned(at / n_xy)};
        run_block(n_threads);
    }
}

// Runs all blocks; null, or why the launch ended early.
template <class Body>
inline const char* run(const Launch& launch, const char* name, Body& call) {
    const unsigned n_threads = launch.block[0] * launch.block[1] * launch.block[2];
    failed = false;
    launching_thread = pthread_self();
    kernel_name = name;
    body = [](void* data) { (*static_cast<Body*>(data))(); };
    body_data = &call;
    blockDim_of_launch = dim3(launch.block[0], launch.block[1], launch.block[2]);
    gridDim_of_launch = dim3(launch.grid[0], launch.grid[1], launch.grid[2]);
    make_stacks(n_threads);
    tie_rings(n_threads, launch.order);
    for (unsigned t = 0; t < n_threads; ++t)
        fibres[t].index = {t % launch.block[0], t / launch.block[0] % launch.block[1],
                           t / launch.block[0] / launch.block[1]};
    shared.place(launch.shared_bytes);
    Faults faults;
    if (sigsetjmp(after_fault, 1) == 0) run_blocks(launch, n_threads);
    current = &host;
    return failed ? message : nullptr;
}

}  // namespace cuda_host

extern "C" void cuda_host_enter() {
    cuda_host::body(cuda_host::body_data);
    cuda_host::leave();
    abort();
}

// --- Undefined behaviour that the compiler's checks find ---------------------------------------------------------

namespace cuda_host {
struct SourcePlace { const char* file; unsigned line, column; };
__attribute__((noreturn)) inline void fail_undefined(const void* where, const char* what) {
    fail("%s: line %u: %s.", place(current).text, static_cast<const SourcePlace*>(where)->line, what);
}
}  // namespace cuda_host

#define CUDA_HOST_HANDLER(name) extern "C" __attribute__((used, visibility("hidden"))) inline void __ubsan_handle_##name##_abort
CUDA_HOST_HANDLER(out_of_bounds)(void* where, void* index) {
    char what[80];
    snprintf(what, sizeof what, "index %lld is outside of the array",
             static_cast<long long>(reinterpret_cast<intptr_t>(index)));
    cuda_host::fail_undefined(where, what);
}
CUDA_HOST_HANDLER(shift_out_of_bounds)(void* where, void*, void*) {
    cuda_host::fail_undefined(where, "a shift by less than 0, or by the bits of the type or more");
}
CUDA_HOST_HANDLER(divrem_overflow)(void* where, void*, void*) {
    cuda_host::fail_undefined(where, "an integer is divided by zero");
}
#undef CUDA_HOST_HANDLER

#define CUDA_HOST_EXPORT extern "C" __attribute__((visibility("default")))

// --- The words of CUDA -------------------------------------------------------------------------------------------

#define __global__
#define __device__
#define __host__
#define __constant__ static
#define __shared__ __attribute__((section("cuda_shared"))) static
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))

#define CUDA_HOST_LINE int line = __builtin_LINE()
inline void __syncthreads(CUDA_HOST_LINE) {
    static const char name[] = "__syncthreads";
    cuda_host::meet_block(name, line);
}
inline int __syncthreads_or(int yes, CUDA_HOST_LINE) {
    static const char name[] = "__syncthreads_or";
    return cuda_host::count_block(name, line, yes != 0) > 0;
}
inline int __syncthreads_and(int yes, CUDA_HOST_LINE) {
    static const char name[] = "__syncthreads_and";
    return cuda_host::count_block(name, line, yes == 0) == 0;
}
inline int __syncthreads_count(int yes, CUDA_HOST_LINE) {
    static const char name[] = "__syncthreads_count";
    return cuda_host::count_block(name, line, yes != 0);
}
inline void __syncwarp(unsigned mask = 0xffffffffu, CUDA_HOST_LINE) {
    static const char name[] = "__syncwarp";
    cuda_host::check_mask(mask, name);
    cuda_host::meet_warp(name, line);
}
inline unsigned __ballot_sync(unsigned mask, int yes, CUDA_HOST_LINE) {
    static const char name[] = "__ballot_sync";
    return cuda_host::vote(name, line, mask, yes != 0);
}
inline int __any_sync(unsigned mask, int yes, CUDA_HOST_LINE) {
    static const char name[] = "__any_sync";
    return cuda_host::vote(name, line, mask, yes != 0) != 0;
}
inline int __all_sync(unsigned mask, int yes, CUDA_HOST_LINE) {
    static const char name[] = "__all_sync";
    return cuda_host::vote(name, line, mask, yes != 0) == 0xffffffffu;
}
template <class Value>
inline Value __shfl_sync(unsigned mask, Value value, int source, int width = 32, CUDA_HOST_LINE) {
    static const char name[] = "__shfl_sync";
    const unsigned lane = cuda_host::current->lane, inner = unsigned(width) - 1;
    return cuda_host::exchange(name, line, mask, value, (lane & ~inner) | (unsigned(source) & inner));
}
template <class Value>
inline Value __shfl_xor_sync(unsigned mask, Value value, int lane_mask, int width = 32, CUDA_HOST_LINE) {
    static const char name[] = "__shfl_xor_sync";
    const unsigned lane = cuda_host::current->lane, last = lane | (unsigned(width) - 1);
    const unsigned source = lane ^ unsigned(lane_mask);
    return cuda_host::exchange(name, line, mask, value, source > last ? lane : source);
}
template <class Value>
inline Value __shfl_down_sync(unsigned mask, Value value, unsigned delta, int width = 32, CUDA_HOST_LINE) {
    static const char name[] = "__shfl_down_sync";
    const unsigned lane = cuda_host::current->lane, last = lane | (unsigned(width) - 1);
    return cuda_host::exchange(name, line, mask, value, lane + delta > last ? lane : lane + delta);
}
template <class Value>
inline Value __shfl_up_sync(unsigned mask, Value value, unsigned delta, int width = 32, CUDA_HOST_LINE) {
    static const char name[] = "__shfl_up_sync";
    const unsigned lane = cuda_host::current->lane, inner = lane & (unsigned(width) - 1);
    return cuda_host::exchange(name, line, mask, value, delta > inner ? lane : lane - delta);
}
#undef CUDA_HOST_LINE

__attribute__((noreturn)) inline void __trap() { cuda_host::fail("%s traps.", cuda_host::place(cuda_host::current).text); }
inline void __threadfence() {}
inline void __threadfence_block() {}

template <class Value, class Change>
inline Value cuda_host_swap(Value* address, Change changed) {
    const Value old = *address;
    *address = static_cast<Value>(changed(old));
    return old;
}
#define CUDA_HOST_ATOMICS(T)                                                                                   \
    inline T atomicAdd(T* a, T v) { return cuda_host_swap(a, [v](T old) { return old + v; }); }                \
    inline T atomicExch(T* a, T v) { return cuda_host_swap(a, [v](T) { return v; }); }
#define CUDA_HOST_INTEGER_ATOMICS(T)                                                                           \
    CUDA_HOST_ATOMICS(T)                                                                                       \
    inline T atomicMax(T* a, T v) { return cuda_host_swap(a, [v](T old) { return v > old ? v : old; }); }      \
    inline T atomicMin(T* a, T v) { return cuda_host_swap(a, [v](T old) { return v < old ? v : old; }); }      \
    inline T atomicOr(T* a, T v) { return cuda_host_swap(a, [v](T old) { return old | v; }); }                 \
    inline T atomicAnd(T* a, T v) { return cuda_host_swap(a, [v](T old) { return old & v; }); }                \
    inline T atomicCAS(T* a, T was, T v) { return cuda_host_swap(a, [was, v](T old) { return old == was ? v : old; }); }
CUDA_HOST_ATOMICS(float)
CUDA_HOST_INTEGER_ATOMICS(int)
CUDA_HOST_INTEGER_ATOMICS(unsigned)
CUDA_HOST_INTEGER_ATOMICS(unsigned long long)
#undef CUDA_HOST_ATOMICS
#undef CUDA_HOST_INTEGER_ATOMICS

template <class To, class From>
inline To cuda_host_reinterpret(From value) {
    static_assert(sizeof(To) == sizeof(From), "equal sizes");
    To answer;
    memcpy(&answer, &value, sizeof answer);
    return answer;
}
inline unsigned __float_as_uint(float v) { return cuda_host_reinterpret<unsigned>(v); }
inline int __float_as_int(float v) { return cuda_host_reinterpret<int>(v); }
inline float __uint_as_float(unsigned v) { return cuda_host_reinterpret<float>(v); }
inline float __int_as_float(int v) { return cuda_host_reinterpret<float>(v); }

inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __frcp_rn(float a) { return 1.0f / a; }
inline float __fsqrt_rn(float a) { return std::sqrt(a); }
inline float __fdividef(float a, float b) { return a / b; }
inline float rsqrtf(float a) { return 1.0f / std::sqrt(a); }
inline void sincospif(float a, float* sine, float* cosine) {
    const double turns = std::remainder(static_cast<double>(a), 2.0), angle = turns * 3.14159265358979323846;
    *sine = static_cast<float>(std::sin(angle));
    *cosine = static_cast<float>(std::cos(angle));
}
inline float __saturatef(float a) { return a > 0.0f ? (a < 1.0f ? a : 1.0f) : 0.0f; }

template <class Integer>
inline Integer cuda_host_round(float v) {
    const float rounded = std::nearbyint(v), limit = -static_cast<float>(std::is_same<Integer, int>::value ? -0x1p31f : -0x1p63f);
    if (std::isnan(v)) return std::is_same<Integer, int>::value ? Integer(0) : static_cast<Integer>(1ull << 63);
    if (rounded >= limit) return static_cast<Integer>(~(uint64_t(1) << (sizeof(Integer) * 8 - 1)));
    return rounded < -limit ? static_cast<Integer>(uint64_t(1) << (sizeof(Integer) * 8 - 1)) : static_cast<Integer>(rounded);
}
inline int __float2int_rn(float v) { return cuda_host_round<int>(v); }
inline int __float2int_rd(float v) { return cuda_host_round<int>(std::floor(v)); }
inline long long __float2ll_rn(float v) { return cuda_host_round<long long>(v); }
inline float __int2float_rn(int v) { return static_cast<float>(v); }
inline float __ll2float_rn(long long v) { return static_cast<float>(v); }

inline int __popc(unsigned v) { return __builtin_popcount(v); }
inline int __popcll(unsigned long long v) { return __builtin_popcountll(v); }
inline int __ffs(int v) { return __builtin_ffs(v); }
inline int __ffsll(long long v) { return __builtin_ffsll(v); }
inline int __clz(int v) { return v ? __builtin_clz(static_cast<unsigned>(v)) : 32; }
inline int __clzll(long long v) { return v ? __builtin_clzll(static_cast<unsigned long long>(v)) : 64; }
inline unsigned __brev(unsigned v) {
    unsigned answer = 0;
    for (int bit = 0; bit < 32; ++bit) answer |= (v >> bit & 1u) << (31 - bit);
    return answer;
}
template <class Value>
inline Value __ldg(const Value* address) { return *address; }

#define CUDA_HOST_MIN_MAX(T, A, B)                                    \
    inline T min(A a, B b) {                                          \
        const T left = static_cast<T>(a), right = static_cast<T>(b);  \
        return left < right ? left : right;                           \
    }                                                                 \
    inline T max(A a, B b) {                                          \
        const T left = static_cast<T>(a), right = static_cast<T>(b);  \
        return left > right ? left : right;                           \
    }
CUDA_HOST_MIN_MAX(int, int, int)
CUDA_HOST_MIN_MAX(unsigned, unsigned, unsigned)
CUDA_HOST_MIN_MAX(unsigned, int, unsigned)
CUDA_HOST_MIN_MAX(unsigned, unsigned, int)
CUDA_HOST_MIN_MAX(long long, long long, long long)
CUDA_HOST_MIN_MAX(unsigned long long, unsigned long long, unsigned long long)
CUDA_HOST_MIN_MAX(unsigned long long, long long, unsigned long long)
CUDA_HOST_MIN_MAX(unsigned long long, unsigned long long, long long)
#undef CUDA_HOST_MIN_MAX
inline float min(float a, float b) { return fminf(a, b); }
inline float max(float a, float b) { return fmaxf(a, b); }
using std::abs;
