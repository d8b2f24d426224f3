// CUDA's kernel language on a processor, as far as the kernels here use it: a thread of the system runs a block, and the
// block's threads are coroutines that go on in turn at each barrier. Shared memory is the system thread's own. Coroutines are
// begun by ucontext and go on by longjmp, which asks nothing of the system; build with -U_FORTIFY_SOURCE, which would mind.
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <csetjmp>
#include <memory>
#include <tuple>
#include <ucontext.h>
#include <utility>
#include <vector>

#define EMULATED
#define __global__
#define __device__ static
#define __forceinline__ inline
#define __restrict__
#define __launch_bounds__(...)
#define __shared__ static thread_local

namespace emulator {
struct Dim { unsigned x, y; };

struct Barrier { unsigned arrived = 0, generation = 0; };

struct Warp {
    Barrier barrier;
    uint32_t a[32][4], b[32][2];
    uint64_t value[32];
};

constexpr size_t STACK = 64 << 10;

struct Coroutine {
    ucontext_t beginning;
    jmp_buf place;
    bool begun = false, done = true;
    char stack[STACK];
};

struct Block {
    jmp_buf scheduler;
    // Of coroutines, which live on from block to block.
    std::vector<std::unique_ptr<Coroutine>> coroutines;
    std::vector<Warp> warps;
    Barrier barrier;
    unsigned current = 0, threads = 0;
    bool moved = false, waited = false, plain = false;
    std::vector<unsigned char> shared;
    void (*run)(void*) = nullptr;
    void* arguments = nullptr;
};

static thread_local Block block;

static void fail(const char* what) {
    fprintf(stderr, "emulated kernel: %s\n", what);
    abort();
}
}  // namespace emulator

static thread_local emulator::Dim threadIdx, blockIdx, blockDim, gridDim;

namespace emulator {
static void set_current(unsigned i) {
    block.current = i;
    threadIdx = {i, 0};
}

// From a coroutine to the scheduler, and back when its turn comes.
__attribute__((noinline)) static void leave() {
    if (!_setjmp(block.coroutines[block.current]->place)) _longjmp(block.scheduler, 1);
}

// From the scheduler into a coroutine, until it leaves.
__attribute__((noinline)) static void enter(unsigned i) {
    Coroutine& coroutine = *block.coroutines[i];
    set_current(i);
    if (_setjmp(block.scheduler)) return;
    if (coroutine.begun) _longjmp(coroutine.place, 1);
    coroutine.begun = true;
    setcontext(&coroutine.beginning);
}

static void wait(Barrier& barrier, unsigned expected) {
    block.waited = true;
    if (block.plain) fail("a barrier in a kernel whose first block had none");
    if (++barrier.arrived == expected) {
        barrier.arrived = 0;
        barrier.generation++;
        block.moved = true;
        return;
    }
    for (unsigned generation = barrier.generation; barrier.generation == generation;) leave();
}

static Warp& warp() { return block.warps[block.current / 32]; }
static unsigned lane() { return block.current % 32; }
static void wait_for_warp() { wait(warp().barrier, 32); }

static void begin() {
    for (;;) {
        block.run(block.arguments);
        block.coroutines[block.current]->done = true;
        block.moved = true;
        leave();
    }
}

// All threads of one block, with a stack each.
static void run_with_stacks() {
    unsigned n = block.threads;
    if (n % 32) fail("threads of a block are no multiple of 32");
    while (block.coroutines.size() < n) {
        Coroutine& coroutine = *block.coroutines.emplace_back(new Coroutine);
        getcontext(&coroutine.beginning);
        coroutine.beginning.uc_stack.ss_sp = coroutine.stack;
        coroutine.beginning.uc_stack.ss_size = STACK;
        coroutine.beginning.uc_link = nullptr;
        makecontext(&coroutine.beginning, begin, 0);
    }
    for (unsigned i = 0; i < n; i++) block.coroutines[i]->done = false;
    block.warps.assign(n / 32, Warp());
    block.barrier = Barrier();
    for (unsigned left = n; left > 0;) {
        block.moved = false;
        left = 0;
        for (unsigned i = 0; i < n; i++) {
            if (block.coroutines[i]->done) continue;
            enter(i);
            left += !block.coroutines[i]->done;
        }
        if (left && !block.moved) fail("some threads wait at a barrier that others never reach");
    }
}

template <class... A, size_t... I>
static void apply(void (*kernel)(A...), void** arguments, std::index_sequence<I...>) {
    kernel(*static_cast<std::remove_cv_t<A>*>(arguments[I])...);
}

// Blocks first..last of a grid; returns whether threads met at barriers.
template <class... A>
static bool run(void (*kernel)(A...), Dim grid, unsigned threads, unsigned shared, void** arguments, unsigned first, unsigned last, bool barriers) {
    using Call = std::pair<void (*)(A...), void**>;
    Call call{kernel, arguments};
    block.run = [](void* call) {
        auto [kernel, arguments] = *static_cast<Call*>(call);
        apply(kernel, arguments, std::index_sequence_for<A...>());
    };
    block.arguments = &call;
    block.threads = threads;
    block.waited = false;
    block.plain = !barriers;
    gridDim = grid;
    blockDim = {threads, 1};
    for (unsigned b = first; b < last; b++) {
        blockIdx = {b % grid.x, b / grid.x};
        // What an earlier block left is noise, as on a GPU.
        block.shared.assign(shared + 64, 0xff);
        if (barriers) {
            run_with_stacks();
        } else {
            for (unsigned i = 0; i < threads; i++) {
                set_current(i);
                block.run(&call);
            }
        }
    }
    return block.waited;
}

static unsigned char* shared() {
    auto at = reinterpret_cast<uintptr_t>(block.shared.data());
    return reinterpret_cast<unsigned char*>((at + 15) & ~uintptr_t(15));
}
}  // namespace emulator

static void __syncthreads() { emulator::wait(emulator::block.barrier, emulator::block.threads); }
static void __syncwarp() { emulator::wait_for_warp(); }

template <class T>
static T __shfl_xor_sync(unsigned, T value, int mask) {
    using namespace emulator;
    memcpy(&warp().value[lane()], &value, sizeof value);
    wait_for_warp();
    memcpy(&value, &warp().value[lane() ^ mask], sizeof value);
    wait_for_warp();
    return value;
}

static float atomicAdd(float* at, float value) {
    auto bits = reinterpret_cast<uint32_t*>(at);
    uint32_t seen = __atomic_load_n(bits, __ATOMIC_RELAXED), next;
    float old;
    do {
        memcpy(&old, &seen, 4);
        float sum = old + value;
        memcpy(&next, &sum, 4);
    } while (!__atomic_compare_exchange_n(bits, &seen, next, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
    return old;
}
static unsigned atomicAdd(unsigned* at, unsigned value) { return __atomic_fetch_add(at, value, __ATOMIC_RELAXED); }

static float __uint_as_float(unsigned x) { float y; memcpy(&y, &x, 4); return y; }
static unsigned __float_as_uint(float x) { unsigned y; memcpy(&y, &x, 4); return y; }
static float rsqrtf(float x) { return 1.0f / sqrtf(x); }
#define __expf expf
template <class T> static T min(T a, T b) { return a < b ? a : b; }
template <class T> static T max(T a, T b) { return a > b ? a : b; }

// c[16, 8] += a[16, 16] b[16, 8] by a warp, the fragments as PTX's mma.m16n8k16 lays them out.
static void mma_16816(float c[4], const uint32_t a[4], const uint32_t b[2]) {
    using namespace emulator;
    Warp& w = warp();
    memcpy(w.a[lane()], a, 16);
    memcpy(w.b[lane()], b, 8);
    wait_for_warp();
    auto half = [](uint32_t pair, int which) { return __uint_as_float(which ? pair & 0xffff0000u : pair << 16); };
    auto at_a = [&](int row, int k) { return half(w.a[row % 8 * 4 + k % 8 / 2][row / 8 + k / 8 * 2], k % 2); };
    auto at_b = [&](int k, int column) { return half(w.b[column * 4 + k % 8 / 2][k / 8], k % 2); };
    for (int i = 0; i < 4; i++) {
        int row = lane() / 4 + i / 2 * 8, column = lane() % 4 * 2 + i % 2;
        for (int k = 0; k < 16; k++) c[i] += at_a(row, k) * at_b(k, column);
    }
    wait_for_warp();
}

// Four 8x8 matrices of 16-bit values; lane l gives the address of row l % 8 of matrix l / 8 (PTX's ldmatrix.x4).
static void ldmatrix_x4(uint32_t to[4], const void* row) {
    using namespace emulator;
    Warp& w = warp();
    w.value[lane()] = reinterpret_cast<uint64_t>(row);
    wait_for_warp();
    for (int m = 0; m < 4; m++) to[m] = reinterpret_cast<const uint32_t*>(w.value[m * 8 + lane() / 4])[lane() % 4];
    wait_for_warp();
}

// The same, each matrix transposed.
static void ldmatrix_x4_transposed(uint32_t to[4], const void* row) {
    using namespace emulator;
    Warp& w = warp();
    w.value[lane()] = reinterpret_cast<uint64_t>(row);
    wait_for_warp();
    for (int m = 0; m < 4; m++) {
        auto value = [&](int i) { return uint32_t(reinterpret_cast<const uint16_t*>(w.value[m * 8 + lane() % 4 * 2 + i])[lane() / 4]); };
        to[m] = value(0) | value(1) << 16;
    }
    wait_for_warp();
}
