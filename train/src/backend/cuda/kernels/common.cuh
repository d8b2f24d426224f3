// What all kernels share. `BFLOAT16` is defined before: 1 where activations are bfloat16, 0 where they are float32.
// Nothing is included, so that NVRTC needs no headers.

#ifndef EMULATED
typedef unsigned short uint16_t;
typedef unsigned int uint32_t;
#define SHARED(name) extern __shared__ __align__(16) unsigned char name[]
#else
#define SHARED(name) unsigned char* name = emulator::shared()
#endif

#define WARP 0xffffffffu
#define NO_LOGIT __uint_as_float(0xff800000u)  // minus infinity

// What activations are stored as; all is computed in float32.
#if BFLOAT16
struct real { uint16_t bits; };
#else
typedef float real;
#endif

struct alignas(16) Four { uint32_t x[4]; };

__device__ __forceinline__ uint16_t to_bfloat16(float x) {
#ifdef EMULATED
    uint32_t u = __float_as_uint(x);
    return x != x ? 0x7fff : (u + 0x7fff + (u >> 16 & 1)) >> 16;
#else
    uint16_t y;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y) : "f"(x));
    return y;
#endif
}

// Two values in one register, `low` in its lower half.
__device__ __forceinline__ uint32_t pack(float low, float high) { return to_bfloat16(low) | (uint32_t)to_bfloat16(high) << 16; }

#if BFLOAT16
__device__ __forceinline__ float get(const real* at) { return __uint_as_float((uint32_t)at->bits << 16); }
__device__ __forceinline__ void put(real* at, float x) { at->bits = to_bfloat16(x); }
#else
__device__ __forceinline__ float get(const real* at) { return *at; }
__device__ __forceinline__ void put(real* at, float x) { *at = x; }
#endif

// Eight values, at an address that is a multiple of 16 bytes.
__device__ __forceinline__ void load8(float x[8], const float* at) {
    Four low = *(const Four*)at, high = *(const Four*)(at + 4);
#pragma unroll
    for (int i = 0; i < 4; i++) {
        x[i] = __uint_as_float(low.x[i]);
        x[4 + i] = __uint_as_float(high.x[i]);
    }
}
__device__ __forceinline__ void store8(float* at, const float x[8]) {
    Four low, high;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        low.x[i] = __float_as_uint(x[i]);
        high.x[i] = __float_as_uint(x[4 + i]);
    }
    *(Four*)at = low;
    *(Four*)(at + 4) = high;
}
#if BFLOAT16
__device__ __forceinline__ void load8(float x[8], const real* at) {
    Four four = *(const Four*)at;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        x[2 * i] = __uint_as_float(four.x[i] << 16);
        x[2 * i + 1] = __uint_as_float(four.x[i] & 0xffff0000u);
    }
}
__device__ __forceinline__ void store8(real* at, const float x[8]) {
    Four four;
#pragma unroll
    for (int i = 0; i < 4; i++) four.x[i] = pack(x[2 * i], x[2 * i + 1]);
    *(Four*)at = four;
}
#endif

template <class T>
__device__ __forceinline__ T warp_sum(T x) {
#pragma unroll
    for (int mask = 16; mask > 0; mask /= 2) x += __shfl_xor_sync(WARP, x, mask);
    return x;
}
__device__ __forceinline__ float warp_max(float x) {
#pragma unroll
    for (int mask = 16; mask > 0; mask /= 2) x = fmaxf(x, __shfl_xor_sync(WARP, x, mask));
    return x;
}

// Over all threads of a block of at most 1024, for every one of them; `scratch` has a value a warp.
template <class T>
__device__ __forceinline__ T block_sum(T x, T* scratch) {
    x = warp_sum(x);
    __syncthreads();
    if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = x;
    __syncthreads();
    T sum = 0;
    for (int i = 0; i < blockDim.x / 32; i++) sum += scratch[i];
    return sum;
}
__device__ __forceinline__ float block_max(float x, float* scratch) {
    x = warp_max(x);
    __syncthreads();
    if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = x;
    __syncthreads();
    float max = scratch[0];
    for (int i = 1; i < blockDim.x / 32; i++) max = fmaxf(max, scratch[i]);
    return max;
}

__device__ __forceinline__ long long thread_index() { return (long long)blockIdx.x * blockDim.x + threadIdx.x; }
