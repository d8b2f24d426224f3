// Normalised features and CLIP's symmetric cross entropy, in float32. Logits are exp(ln_scale) * products.

// A warp a row: out = x / |x|.
extern "C" __global__ void normalize(float* out, float* norms, const float* x, int rows, int dim) {
    int lane = threadIdx.x % 32;
    long long row = thread_index() / 32;
    if (row >= rows) return;
    float sum = 0;
    for (int i = lane; i < dim; i += 32) sum += x[row * dim + i] * x[row * dim + i];
    float norm = fmaxf(sqrtf(warp_sum(sum)), 1e-12f);
    for (int i = lane; i < dim; i += 32) out[row * dim + i] = x[row * dim + i] / norm;
    if (lane == 0) norms[row] = norm;
}

// A warp a row: dx from dy and the output y.
extern "C" __global__ void normalize_backward(float* dx, const float* dy, const float* y, const float* norms, int rows, int dim) {
    int lane = threadIdx.x % 32;
    long long row = thread_index() / 32;
    if (row >= rows) return;
    float along = 0;
    for (int i = lane; i < dim; i += 32) along += dy[row * dim + i] * y[row * dim + i];
    along = warp_sum(along);
    for (int i = lane; i < dim; i += 32) dx[row * dim + i] = (dy[row * dim + i] - along * y[row * dim + i]) / norms[row];
}

// A block a row of products[_, n], the first being row `first` of all: the log-sum-exp of its logits, and its own one.
extern "C" __global__ void row_log_sum_exp(float* lse, float* diagonal, const float* products, const float* ln_scale, int first, int n) {
    __shared__ float scratch[32];
    const float* row = products + (long long)blockIdx.x * n;
    float scale = expf(ln_scale[0]), max = NO_LOGIT, sum = 0;
    for (int i = threadIdx.x; i < n; i += blockDim.x) max = fmaxf(max, scale * row[i]);
    max = block_max(max, scratch);
    for (int i = threadIdx.x; i < n; i += blockDim.x) sum += __expf(scale * row[i] - max);
    sum = block_sum(sum, scratch);
    if (threadIdx.x == 0) {
        lse[first + blockIdx.x] = max + logf(sum);
        diagonal[first + blockIdx.x] = scale * row[first + blockIdx.x];
    }
}

// Takes products[rows, n] into each column's largest logit so far, and the sum of exponentials of the differences from it;
// a thread a column.
extern "C" __global__ void add_columns(float* max, float* sum, const float* products, const float* ln_scale, int rows, int n, int begins) {
    int column = thread_index();
    if (column >= n) return;
    float scale = expf(ln_scale[0]), m = begins ? NO_LOGIT : max[column], s = begins ? 0 : sum[column];
    for (int row = 0; row < rows; row++) {
        float logit = scale * products[(long long)row * n + column];
        if (logit > m) {
            s = s * __expf(m - logit) + 1;
            m = logit;
        } else {
            s += __expf(logit - m);
        }
    }
    max[column] = m;
    sum[column] = s;
}

// Each sample's part of the loss, and the log-sum-exp of its column.
extern "C" __global__ void sample_losses(
    float* losses, float* column_lse, const float* row_lse, const float* diagonal, const float* max, const float* sum, int n) {
    int i = thread_index();
    if (i >= n) return;
    column_lse[i] = max[i] + logf(sum[i]);
    losses[i] = 0.5f * (row_lse[i] + column_lse[i]) - diagonal[i];
}

// A block a row: products become the loss's gradients by them, and along[row] their part of d loss / d ln_scale.
extern "C" __global__ void loss_gradients(
    float* products, float* along, const float* row_lse, const float* column_lse, const float* ln_scale, int first, int n) {
    __shared__ float scratch[32];
    float* row = products + (long long)blockIdx.x * n;
    float scale = expf(ln_scale[0]), half = 0.5f / n, lse = row_lse[first + blockIdx.x], sum = 0;
    for (int i = threadIdx.x; i < n; i += blockDim.x) {
        float logit = scale * row[i];
        float gradient = half * (__expf(logit - lse) + __expf(logit - column_lse[i]));
        if (i == first + blockIdx.x) gradient -= 2 * half;
        sum += gradient * logit;
        row[i] = gradient * scale;
    }
    sum = block_sum(sum, scratch);
    if (threadIdx.x == 0) along[first + blockIdx.x] = sum;
}
