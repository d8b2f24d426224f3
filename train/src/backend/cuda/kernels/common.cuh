// What the trainer's kernels share. `BFLOAT16` is defined before: 1 where activations are bfloat16, 0 where they are float32.

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
