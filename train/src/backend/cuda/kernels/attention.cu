// Self-attention for any width of head, a warp a row: the kernels that `attention_mma.cu` is measured by, and what stands in
// for it in float32 and for other widths. Blocks are (sequence, head).
//
// Sequence s has rows starts[s] .. starts[s + 1] of kv[rows, 2, heads, d]. Each of its rows has a query, or, where `own` is
// given, it has one query, that of its row own[s]. `lse[queries, heads]` keeps the log-sum-exp of each query's logits.

struct Sequence {
    int start, keys, queries, first_query_row, offset;
};
__device__ __forceinline__ Sequence sequence_of(int s, const int* starts, const int* own) {
    int start = starts[s], keys = starts[s + 1] - start;
    return {start, keys, own ? 1 : keys, own ? s : start, own ? own[s] : 0};
}

template <class A, class B>
__device__ __forceinline__ float dot(const A* a, const B* b, int d) {
    float sum = 0;
    for (int i = 0; i < d; i++) sum += get(a + i) * get(b + i);
    return sum;
}

extern "C" __global__ void attention(
    real* out, float* lse, const real* q, const real* kv, const int* starts, const int* own, int heads, int d, int causal, int longest) {
    SHARED(shared);
    int warp = threadIdx.x / 32, warps = blockDim.x / 32, lane = threadIdx.x % 32, head = blockIdx.y, width = heads * d;
    float* probabilities = (float*)shared + warp * longest;
    Sequence s = sequence_of(blockIdx.x, starts, own);
    const real* k = kv + (long long)s.start * 2 * width + head * d;
    for (int i = warp; i < s.queries; i += warps) {
        long long row = s.first_query_row + i;
        const real* query = q + row * width + head * d;
        int visible = causal ? s.offset + i + 1 : s.keys;
        float max = NO_LOGIT, sum = 0, scale = rsqrtf((float)d);
        for (int j = lane; j < visible; j += 32) {
            float logit = scale * dot(query, k + (long long)j * 2 * width, d);
            probabilities[j] = logit;
            max = fmaxf(max, logit);
        }
        max = warp_max(max);
        for (int j = lane; j < visible; j += 32) {
            probabilities[j] = expf(probabilities[j] - max);
            sum += probabilities[j];
        }
        sum = warp_sum(sum);
        __syncwarp();
        for (int c = lane; c < d; c += 32) {
            float total = 0;
            for (int j = 0; j < visible; j++) total += probabilities[j] * get(k + (long long)j * 2 * width + width + c);
            put(out + row * width + head * d + c, total / sum);
        }
        if (lane == 0) lse[row * heads + head] = max + logf(sum);
        __syncwarp();
    }
}

// dq, and `along[queries, heads]`: each query's sum of dout * out, which `attention_backward_kv` needs.
extern "C" __global__ void attention_backward_q(
    real* dq, float* along, const real* dout, const real* out, const float* lse, const real* q, const real* kv, const int* starts,
    const int* own, int heads, int d, int causal, int longest) {
    SHARED(shared);
    int warp = threadIdx.x / 32, warps = blockDim.x / 32, lane = threadIdx.x % 32, head = blockIdx.y, width = heads * d;
    float* gradients = (float*)shared + warp * longest;
    Sequence s = sequence_of(blockIdx.x, starts, own);
    const real* k = kv + (long long)s.start * 2 * width + head * d;
    for (int i = warp; i < s.queries; i += warps) {
        long long row = s.first_query_row + i, at = row * width + head * d;
        int visible = causal ? s.offset + i + 1 : s.keys;
        float sum = 0, scale = rsqrtf((float)d), l = lse[row * heads + head];
        for (int c = lane; c < d; c += 32) sum += get(dout + at + c) * get(out + at + c);
        sum = warp_sum(sum);
        for (int j = lane; j < visible; j += 32) {
            const real* key = k + (long long)j * 2 * width;
            float p = expf(scale * dot(q + at, key, d) - l);
            gradients[j] = p * (dot(dout + at, key + width, d) - sum) * scale;
        }
        __syncwarp();
        for (int c = lane; c < d; c += 32) {
            float total = 0;
            for (int j = 0; j < visible; j++) total += gradients[j] * get(k + (long long)j * 2 * width + c);
            put(dq + at + c, total);
        }
        if (lane == 0) along[row * heads + head] = sum;
        __syncwarp();
    }
}

extern "C" __global__ void attention_backward_kv(
    real* dkv, const float* along, const real* dout, const float* lse, const real* q, const real* kv, const int* starts, const int* own,
    int heads, int d, int causal, int longest) {
    SHARED(shared);
    int warp = threadIdx.x / 32, warps = blockDim.x / 32, lane = threadIdx.x % 32, head = blockIdx.y, width = heads * d;
    float* probabilities = (float*)shared + 2 * warp * longest;
    float* gradients = probabilities + longest;
    Sequence s = sequence_of(blockIdx.x, starts, own);
    for (int j = warp; j < s.keys; j += warps) {
        long long key_at = (long long)(s.start + j) * 2 * width + head * d;
        int first = causal ? max(j - s.offset, 0) : 0;
        float scale = rsqrtf((float)d);
        for (int i = first + lane; i < s.queries; i += 32) {
            long long row = s.first_query_row + i, at = row * width + head * d;
            float p = expf(scale * dot(q + at, kv + key_at, d) - lse[row * heads + head]);
            probabilities[i] = p;
            gradients[i] = p * (dot(dout + at, kv + key_at + width, d) - along[row * heads + head]) * scale;
        }
        __syncwarp();
        for (int c = lane; c < d; c += 32) {
            float dk = 0, dv = 0;
            for (int i = first; i < s.queries; i++) {
                long long at = (long long)(s.first_query_row + i) * width + head * d + c;
                dk += gradients[i] * get(q + at);
                dv += probabilities[i] * get(dout + at);
            }
            put(dkv + key_at + c, dk);
            put(dkv + key_at + width + c, dv);
        }
        __syncwarp();
    }
}
