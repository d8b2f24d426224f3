// GELU (the exact one, by erf) and OpenAI's x * sigmoid(1.702 x), eight values a thread.

__device__ __forceinline__ float activation(float x, int quick) {
    if (quick) return x / (1.0f + __expf(-1.702f * x));
    return 0.5f * x * (1.0f + erff(x * 0.70710678f));
}

__device__ __forceinline__ float activation_derivative(float x, int quick) {
    if (quick) {
        float sigmoid = 1.0f / (1.0f + __expf(-1.702f * x));
        return sigmoid * (1.0f + 1.702f * x * (1.0f - sigmoid));
    }
    return 0.5f * (1.0f + erff(x * 0.70710678f)) + x * 0.39894228f * __expf(-0.5f * x * x);
}

extern "C" __global__ void activate(real* to, const real* x, long long n, int quick) {
    long long i = 8 * thread_index();
    if (i >= n) return;
    float v[8];
    load8(v, x + i);
#pragma unroll
    for (int j = 0; j < 8; j++) v[j] = activation(v[j], quick);
    store8(to + i, v);
}

// dy *= activation'(x)
extern "C" __global__ void activate_backward(real* dy, const real* x, long long n, int quick) {
    long long i = 8 * thread_index();
    if (i >= n) return;
    float v[8], d[8];
    load8(v, x + i);
    load8(d, dy + i);
#pragma unroll
    for (int j = 0; j < 8; j++) d[j] *= activation_derivative(v[j], quick);
    store8(dy + i, d);
}

extern "C" __global__ void round_values(real* to, const float* from, long long n) {
    long long i = thread_index();
    if (i < n) put(to + i, from[i]);
}
