// Layer norm, a warp a row. Lane l holds values 256 c + 8 l .. + 8 of a row for each of its chunks c, so that a row is read
// once; CHUNKS is a row's width in chunks of 256.

template <int CHUNKS>
__device__ __forceinline__ void layer_norm_rows(
    real* out, float* stats, const real* x, const float* gamma, const float* beta, int rows, int dim, float eps) {
    int lane = threadIdx.x % 32;
    long long row = thread_index() / 32;
    if (row >= rows) return;
    x += row * dim;
    out += row * dim;
    float v[CHUNKS][8], sum = 0;
#pragma unroll
    for (int c = 0; c < CHUNKS; c++) {
        int i = 256 * c + 8 * lane;
        if (i >= dim) continue;
        load8(v[c], x + i);
#pragma unroll
        for (int j = 0; j < 8; j++) sum += v[c][j];
    }
    float mean = warp_sum(sum) / dim, squares = 0;
#pragma unroll
    for (int c = 0; c < CHUNKS; c++) {
        if (256 * c + 8 * lane >= dim) continue;
#pragma unroll
        for (int j = 0; j < 8; j++) squares += (v[c][j] - mean) * (v[c][j] - mean);
    }
    float rstd = rsqrtf(warp_sum(squares) / dim + eps);
#pragma unroll
    for (int c = 0; c < CHUNKS; c++) {
        int i = 256 * c + 8 * lane;
        if (i >= dim) continue;
        float g[8], b[8];
        load8(g, gamma + i);
        load8(b, beta + i);
#pragma unroll
        for (int j = 0; j < 8; j++) v[c][j] = (v[c][j] - mean) * rstd * g[j] + b[j];
        store8(out + i, v[c]);
    }
    if (lane == 0) {
        stats[2 * row] = mean;
        stats[2 * row + 1] = rstd;
    }
}

// dx += the gradient of x. A block goes through many rows; its part of the gradients of gamma and beta becomes
// `partial[block, 2, dim]`.
template <int CHUNKS>
__device__ __forceinline__ void layer_norm_rows_backward(
    real* dx, float* partial, const real* dy, const real* x, const float* stats, const float* gamma, int rows, int dim) {
    SHARED(shared);
    float* total = (float*)shared;
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
    float dgamma[CHUNKS][8] = {}, dbeta[CHUNKS][8] = {};
    for (long long row = (long long)blockIdx.x * warps + warp; row < rows; row += (long long)gridDim.x * warps) {
        float mean = stats[2 * row], rstd = stats[2 * row + 1];
        float n[CHUNKS][8], g[CHUNKS][8], along_one = 0, along_x = 0;
#pragma unroll
        for (int c = 0; c < CHUNKS; c++) {
            int i = 256 * c + 8 * lane;
            if (i >= dim) continue;
            float w[8];
            load8(n[c], x + row * dim + i);
            load8(g[c], dy + row * dim + i);
            load8(w, gamma + i);
#pragma unroll
            for (int j = 0; j < 8; j++) {
                n[c][j] = (n[c][j] - mean) * rstd;
                dgamma[c][j] += g[c][j] * n[c][j];
                dbeta[c][j] += g[c][j];
                g[c][j] *= w[j];
                along_one += g[c][j];
                along_x += g[c][j] * n[c][j];
            }
        }
        along_one = warp_sum(along_one) / dim;
        along_x = warp_sum(along_x) / dim;
#pragma unroll
        for (int c = 0; c < CHUNKS; c++) {
            int i = 256 * c + 8 * lane;
            if (i >= dim) continue;
            float d[8];
            load8(d, dx + row * dim + i);
#pragma unroll
            for (int j = 0; j < 8; j++) d[j] += rstd * (g[c][j] - along_one - n[c][j] * along_x);
            store8(dx + row * dim + i, d);
        }
    }
    // The warps one after another, so that the sum is the same in every run.
    for (int turn = 0; turn < warps; turn++) {
        if (turn == warp) {
#pragma unroll
            for (int c = 0; c < CHUNKS; c++) {
                int i = 256 * c + 8 * lane;
                if (i >= dim) continue;
#pragma unroll
                for (int j = 0; j < 8; j++) {
                    total[i + j] = dgamma[c][j] + (turn ? total[i + j] : 0);
                    total[dim + i + j] = dbeta[c][j] + (turn ? total[dim + i + j] : 0);
                }
            }
        }
        __syncthreads();
    }
    for (int i = threadIdx.x; i < 2 * dim; i += blockDim.x) partial[(long long)blockIdx.x * 2 * dim + i] = total[i];
}

#define KERNEL_LAYER_NORM(name, CHUNKS)                                                                                     \
    extern "C" __global__ void name(                                                                                        \
        real* out, float* stats, const real* x, const float* gamma, const float* beta, int rows, int dim, float eps) {      \
        layer_norm_rows<CHUNKS>(out, stats, x, gamma, beta, rows, dim, eps);                                                \
    }
#define KERNEL_LAYER_NORM_BACKWARD(name, CHUNKS)                                                                            \
    extern "C" __global__ void name(                                                                                        \
        real* dx, float* partial, const real* dy, const real* x, const float* stats, const float* gamma, int rows, int dim) { \
        layer_norm_rows_backward<CHUNKS>(dx, partial, dy, x, stats, gamma, rows, dim);                                      \
    }
KERNEL_LAYER_NORM(layer_norm_1, 1)
KERNEL_LAYER_NORM(layer_norm_2, 2)
KERNEL_LAYER_NORM(layer_norm_3, 3)
KERNEL_LAYER_NORM(layer_norm_4, 4)
KERNEL_LAYER_NORM(layer_norm_8, 8)
KERNEL_LAYER_NORM_BACKWARD(layer_norm_backward_1, 1)
KERNEL_LAYER_NORM_BACKWARD(layer_norm_backward_2, 2)
KERNEL_LAYER_NORM_BACKWARD(layer_norm_backward_3, 3)
KERNEL_LAYER_NORM_BACKWARD(layer_norm_backward_4, 4)
KERNEL_LAYER_NORM_BACKWARD(layer_norm_backward_8, 8)
