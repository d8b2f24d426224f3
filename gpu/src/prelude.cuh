// What kernels begin with. Nothing is included, so that NVRTC needs no headers.

#ifndef EMULATED
typedef unsigned short uint16_t;
typedef unsigned int uint32_t;
#define SHARED(name) extern __shared__ __align__(16) unsigned char name[]
#else
#define SHARED(name) unsigned char* name = emulator::shared()
#endif

#define WARP 0xffffffffu
#define NO_LOGIT __uint_as_float(0xff800000u)  // minus infinity

// A float16 by its bits.
__device__ __forceinline__ float half_to_float(uint16_t x) {
#ifdef EMULATED
    uint32_t magnitude = x & 0x7fff;
    // Subnormals and zero count in 2^-24; infinities and NaN have the largest exponent.
    float y = magnitude < 0x400 ? magnitude * 0x1p-24f : __uint_as_float((magnitude << 13) + (magnitude < 0x7c00 ? 112u << 23 : 224u << 23));
    return x & 0x8000 ? -y : y;
#else
    float y;
    asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x));
    return y;
#endif
}

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
