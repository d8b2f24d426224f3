// AdamW over all parameters in one launch, four values a thread, those of a block side by side; `copy`, where there is one,
// gets the new values rounded.
// Segment s ends before ends[s], and decays where decays[s].
extern "C" __global__ void adamw(
    float* params, const float* grads, float* m, float* v, real* copy, long long n, const long long* ends, const int* decays, int segments,
    float learning_rate, float step_size, float beta1, float beta2, float correction2, float eps, float weight_decay, float gradient_scale) {
    long long first = 4ll * blockIdx.x * blockDim.x;
    int low = 0, high = segments - 1;
    while (low < high) {
        int middle = (low + high) / 2;
        if (ends[middle] <= first)
            low = middle + 1;
        else
            high = middle;
    }
    for (int j = 0; j < 4; j++) {
        long long at = first + j * blockDim.x + threadIdx.x;
        if (at >= n) return;
        while (ends[low] <= at) low++;
        float keep = decays[low] ? 1.0f - learning_rate * weight_decay : 1.0f;
        float g = gradient_scale * grads[at];
        float m_new = beta1 * m[at] + (1.0f - beta1) * g;
        float v_new = beta2 * v[at] + (1.0f - beta2) * g * g;
        float value = params[at] * keep - step_size * m_new / (sqrtf(v_new) / correction2 + eps);
        m[at] = m_new;
        v[at] = v_new;
        params[at] = value;
        if (copy) put(copy + at, value);
    }
}

extern "C" __global__ void clamp(float* x, float low, float high) {
    if (thread_index() == 0) x[0] = fminf(fmaxf(x[0], low), high);
}
