// Sums that come out the same in every run: parts in a fixed order, then the parts.

// partial[split, n]: the sums of the columns of x[rows, n], whose rows lie `stride` apart; blockIdx.y is the split.
// Threads of a block: 32 times 8 columns, 8 rows at a time.
extern "C" __global__ void column_sums(float* partial, const real* x, int rows, int n, int stride) {
    __shared__ float parts[8][256];
    int column = blockIdx.x * 256 + threadIdx.x % 32 * 8, turn = threadIdx.x / 32;
    float sums[8] = {};
    if (column < n) {
        for (long long row = (long long)blockIdx.y * 8 + turn; row < rows; row += 8 * gridDim.y) {
            float v[8];
            load8(v, x + row * stride + column);
#pragma unroll
            for (int j = 0; j < 8; j++) sums[j] += v[j];
        }
    }
#pragma unroll
    for (int j = 0; j < 8; j++) parts[turn][threadIdx.x % 32 * 8 + j] = sums[j];
    __syncthreads();
    column = blockIdx.x * 256 + threadIdx.x;
    if (column >= n) return;
    float sum = 0;
    for (int i = 0; i < 8; i++) sum += parts[i][threadIdx.x];
    partial[(long long)blockIdx.y * n + column] = sum;
}

// out[i] += the sum of partial[split, i], whose rows lie `stride` apart.
extern "C" __global__ void add_partials(float* out, const float* partial, int splits, int n, int stride) {
    int i = thread_index();
    if (i >= n) return;
    float sum = 0;
    for (int split = 0; split < splits; split++) sum += partial[(long long)split * stride + i];
    out[i] += sum;
}

// partial[block]: of the squares of x[n].
extern "C" __global__ void square_sum(double* partial, const float* x, long long n) {
    __shared__ double scratch[32];
    double sum = 0;
    for (long long i = thread_index(); i < n; i += (long long)gridDim.x * blockDim.x) sum += (double)x[i] * x[i];
    sum = block_sum(sum, scratch);
    if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

// out[0] += the sum of x[n], by one block.
extern "C" __global__ void add_sum(float* out, const float* x, int n) {
    __shared__ double scratch[32];
    double sum = 0;
    for (int i = threadIdx.x; i < n; i += blockDim.x) sum += x[i];
    sum = block_sum(sum, scratch);
    if (threadIdx.x == 0) out[0] += (float)sum;
}

// partial[piece] = the sum of the rows order[bounds[piece]] .. order[bounds[piece + 1]] of x[_, dim]; a block a piece.
extern "C" __global__ void sum_pieces(float* partial, const real* x, const int* order, const int* bounds, int dim) {
    int piece = blockIdx.x;
    for (int i = 8 * threadIdx.x; i < dim; i += 8 * blockDim.x) {
        float sums[8] = {};
        for (int at = bounds[piece]; at < bounds[piece + 1]; at++) {
            float v[8];
            load8(v, x + (long long)order[at] * dim + i);
#pragma unroll
            for (int j = 0; j < 8; j++) sums[j] += v[j];
        }
        store8(partial + (long long)piece * dim + i, sums);
    }
}

// out[keys[k]] += the pieces bounds[k] .. bounds[k + 1]; a block a key.
extern "C" __global__ void add_pieces(float* out, const float* partial, const int* keys, const int* bounds, int dim) {
    int k = blockIdx.x;
    for (int i = threadIdx.x; i < dim; i += blockDim.x) {
        float sum = 0;
        for (int piece = bounds[k]; piece < bounds[k + 1]; piece++) sum += partial[(long long)piece * dim + i];
        out[(long long)keys[k] * dim + i] += sum;
    }
}
