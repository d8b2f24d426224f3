// Nearest neighbours on a GPU: what `exact.rs` and `assign.rs` do with blocks of products.

// rows[n, dim] in float32 from vectors as they are stored, of float16 or float32, divided by their norms where `unit`; and
// the sums of their squares, before that. A warp a row.
extern "C" __global__ void widen(float* rows, float* squares, const void* stored, int half, int unit, int n, int dim) {
    int lane = threadIdx.x % 32;
    long long row = thread_index() / 32;
    if (row >= n) return;
    float square = 0;
    for (int i = lane; i < dim; i += 32) {
        float x = half ? half_to_float(((const uint16_t*)stored)[row * dim + i]) : ((const float*)stored)[row * dim + i];
        rows[row * dim + i] = x;
        square += x * x;
    }
    square = warp_sum(square);
    if (unit) {
        float scale = 1 / sqrtf(square);
        for (int i = lane; i < dim; i += 32) rows[row * dim + i] *= scale;
    }
    if (lane == 0) squares[row] = square;
}

struct Found {
    int query, row;
    float distance;
};

// Writes down which of products[queries, rows] are within each query's bound, in no order; `count` goes on counting where
// there is no more room. Metric 0 is the cosine, 1 the inner product, 2 Euclid's; a thread a product.
extern "C" __global__ void keep_near(
    Found* found, unsigned* count, unsigned room, const float* products, const float* squares, const float* norms, const float* bounds,
    int queries, int rows, int metric, int keeps_nan) {
    long long i = thread_index();
    if (i >= (long long)queries * rows) return;
    int query = i / rows, row = i % rows;
    float product = products[i], distance;
    if (metric == 0) {
        distance = 1 - product / norms[query];
    } else if (metric == 1) {
        distance = 1 - product;
    } else {
        // Not above what it is, whatever was lost to rounding: single distances decide.
        float squared = (squares[row] + norms[query] * norms[query]) * (1 - 1e-5f) - 2 * product;
        distance = sqrtf(squared < 0 ? 0 : squared);
    }
    if (distance <= bounds[query] || (distance != distance && keeps_nan)) {
        unsigned at = atomicAdd(count, 1u);
        if (at < room) found[at] = {query, row, distance};
    }
}

// The place and value of the largest of products[row, n] - minus[n], if it is larger than the best of what came before; of
// equals the first. `start` is the place of the first; a block a row.
extern "C" __global__ void best_of_rows(
    int* place, float* best, const float* products, const float* minus, int n, int start, int begins) {
    __shared__ float values[32];
    __shared__ int places[32];
    const float* row = products + (long long)blockIdx.x * n;
    float value = NO_LOGIT;
    int at = n;
    for (int i = threadIdx.x; i < n; i += blockDim.x) {
        float x = minus ? row[i] - minus[i] : row[i];
        if (x > value) {
            value = x;
            at = i;
        }
    }
#pragma unroll
    for (int mask = 16; mask > 0; mask /= 2) {
        float other = __shfl_xor_sync(WARP, value, mask);
        int other_at = __shfl_xor_sync(WARP, at, mask);
        if (other > value || (other == value && other_at < at)) {
            value = other;
            at = other_at;
        }
    }
    if (threadIdx.x % 32 == 0) {
        values[threadIdx.x / 32] = value;
        places[threadIdx.x / 32] = at;
    }
    __syncthreads();
    if (threadIdx.x > 0) return;
    for (int i = 1; i < blockDim.x / 32; i++) {
        if (values[i] > value || (values[i] == value && places[i] < at)) {
            value = values[i];
            at = places[i];
        }
    }
    if (begins || value > best[blockIdx.x]) {
        best[blockIdx.x] = value;
        place[blockIdx.x] = at < n ? start + at : 0;
    }
}
