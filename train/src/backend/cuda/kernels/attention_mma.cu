// Self-attention in bfloat16 for heads of width 64, by the tensor cores: mma.m16n8k16. What a block looks up lies in shared
// memory; a warp works on 16 rows of the result at a time. The same arguments as in `attention.cu`.
//
// Fragments, lane l having g = l / 4 and t = l % 4 (PTX, "Matrix Fragments for mma.m16n8k16"):
// A[16, 16]: 0 is (g, 2t), 1 is (g + 8, 2t), 2 is (g, 2t + 8), 3 is (g + 8, 2t + 8), each with its right neighbour;
// B[16, 8]: 0 is (2t, g), 1 is (2t + 8, g), each with its lower neighbour;
// C[16, 8]: 0 and 1 are (g, 2t) and (g, 2t + 1), 2 and 3 those eight rows below.
// So the C fragments of two neighbouring tiles, rounded, are the A fragment of a product that follows.
#if BFLOAT16

#define HEAD 64
// Values from row to row in shared memory: 144 bytes, so that eight rows' pieces of 16 bytes lie in different banks.
#define ROW 72

#ifndef EMULATED
__device__ __forceinline__ void mma_16816(float c[4], const uint32_t a[4], const uint32_t b[2]) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
__device__ __forceinline__ void ldmatrix_x4(uint32_t to[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"((uint32_t)__cvta_generic_to_shared(row)) : "memory");
}
__device__ __forceinline__ void ldmatrix_x4_transposed(uint32_t to[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"((uint32_t)__cvta_generic_to_shared(row)) : "memory");
}
#endif

__device__ __forceinline__ int padded(int rows) { return (rows + 15) / 16 * 16; }

// Rows of 64 values that lie `stride` apart into shared memory, with zeros up to a multiple of 16 rows.
__device__ __forceinline__ void stage(real* to, const real* from, long long stride, int rows) {
    Four zero = {};
    for (int i = threadIdx.x; i < padded(rows) * 8; i += blockDim.x) {
        int row = i / 8, column = i % 8 * 8;
        *(Four*)(to + row * ROW + column) = row < rows ? *(const Four*)(from + row * stride + column) : zero;
    }
}

// A fragments of rows first .. first + 16 of 64 values; zeros beyond `rows`.
__device__ __forceinline__ void load_rows(uint32_t a[4][4], const real* from, long long stride, int first, int rows) {
    int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
#pragma unroll
    for (int k = 0; k < 4; k++) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            int row = first + g + i % 2 * 8, column = k * 16 + t * 2 + i / 2 * 8;
            a[k][i] = row < rows ? *(const uint32_t*)(from + row * stride + column) : 0;
        }
    }
}

// c[16, 16] = a[16, 64] · rowsᵀ, for 16 rows in shared memory.
__device__ __forceinline__ void times_rows(float c[2][4], const uint32_t a[4][4], const real* rows) {
    int lane = threadIdx.x % 32;
#pragma unroll
    for (int i = 0; i < 4; i++) c[0][i] = c[1][i] = 0;
#pragma unroll
    for (int k = 0; k < 4; k++) {
        uint32_t b[4];
        ldmatrix_x4(b, rows + (lane % 8 + lane / 16 * 8) * ROW + k * 16 + lane / 8 % 2 * 8);
        mma_16816(c[0], a[k], b);
        mma_16816(c[1], a[k], b + 2);
    }
}

// c[16, 64] += p[16, 16] · rows[16, 64].
__device__ __forceinline__ void add_product(float c[8][4], const float p[2][4], const real* rows) {
    int lane = threadIdx.x % 32;
    uint32_t a[4] = {pack(p[0][0], p[0][1]), pack(p[0][2], p[0][3]), pack(p[1][0], p[1][1]), pack(p[1][2], p[1][3])};
#pragma unroll
    for (int n = 0; n < 4; n++) {
        uint32_t b[4];
        ldmatrix_x4_transposed(b, rows + (lane % 8 + lane / 8 % 2 * 8) * ROW + n * 16 + lane / 16 * 8);
        mma_16816(c[2 * n], a, b);
        mma_16816(c[2 * n + 1], a, b + 2);
    }
}

// Rows first .. first + 16 that are less than `rows`, the upper ones times `upper`, the lower ones times `lower`.
__device__ __forceinline__ void store_rows(
    real* to, long long stride, int first, int rows, const float c[8][4], float upper, float lower) {
    int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
#pragma unroll
    for (int n = 0; n < 8; n++) {
        real* at = to + (first + g) * stride + n * 8 + t * 2;
        if (first + g < rows) *(uint32_t*)at = pack(c[n][0] * upper, c[n][1] * upper);
        if (first + g + 8 < rows) *(uint32_t*)(at + 8 * stride) = pack(c[n][2] * lower, c[n][3] * lower);
    }
}

// Over the four lanes that have a row's values.
__device__ __forceinline__ float row_sum(float x) {
    x += __shfl_xor_sync(WARP, x, 1);
    return x + __shfl_xor_sync(WARP, x, 2);
}
__device__ __forceinline__ float row_max(float x) {
    x = fmaxf(x, __shfl_xor_sync(WARP, x, 1));
    return fmaxf(x, __shfl_xor_sync(WARP, x, 2));
}

extern "C" __global__ void attention_mma(
    real* out, float* lse, const real* q, const real* kv, const int* starts, const int* own, int heads, int causal) {
    SHARED(shared);
    int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4, head = blockIdx.y;
    long long width = heads * HEAD;
    Sequence s = sequence_of(blockIdx.x, starts, own);
    real *k = (real*)shared, *v = k + padded(s.keys) * ROW;
    const real* keys = kv + s.start * 2 * width + head * HEAD;
    stage(k, keys, 2 * width, s.keys);
    stage(v, keys + width, 2 * width, s.keys);
    __syncthreads();
    const real* queries = q + s.first_query_row * width + head * HEAD;
    for (int first = threadIdx.x / 32 * 16; first < s.queries; first += blockDim.x / 32 * 16) {
        uint32_t a[4][4];
        load_rows(a, queries, width, first, s.queries);
        float o[8][4] = {}, max[2] = {NO_LOGIT, NO_LOGIT}, sum[2] = {0, 0}, scale = 0.125f;
        int last = causal ? min(s.keys, s.offset + first + 16) : s.keys;
        for (int key = 0; key < last; key += 16) {
            float p[2][4];
            times_rows(p, a, k + key * ROW);
            // Half h of the rows is g or g + 8.
#pragma unroll
            for (int h = 0; h < 2; h++) {
                float tile_max = NO_LOGIT;
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    int column = key + i / 2 * 8 + t * 2 + i % 2, row = s.offset + first + g + h * 8;
                    float& x = p[i / 2][h * 2 + i % 2];
                    x = column < s.keys && (!causal || column <= row) ? x * scale : NO_LOGIT;
                    tile_max = fmaxf(tile_max, x);
                }
                // The first tile has a key that every row sees.
                float new_max = fmaxf(max[h], row_max(tile_max)), keep = __expf(max[h] - new_max), tile_sum = 0;
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    float& x = p[i / 2][h * 2 + i % 2];
                    x = __expf(x - new_max);
                    tile_sum += x;
                }
                max[h] = new_max;
                sum[h] = sum[h] * keep + row_sum(tile_sum);
#pragma unroll
                for (int n = 0; n < 8; n++) {
                    o[n][h * 2] *= keep;
                    o[n][h * 2 + 1] *= keep;
                }
            }
            add_product(o, p, v + key * ROW);
        }
        store_rows(out + s.first_query_row * width + head * HEAD, width, first, s.queries, o, 1 / sum[0], 1 / sum[1]);
        for (int h = 0; h < 2; h++) {
            int row = first + g + h * 8;
            if (t == 0 && row < s.queries) lse[(long long)(s.first_query_row + row) * heads + head] = max[h] + logf(sum[h]);
        }
    }
}

extern "C" __global__ void attention_mma_backward_q(
    real* dq, float* along, const real* dout, const real* out, const float* lse, const real* q, const real* kv, const int* starts,
    const int* own, int heads, int causal) {
    SHARED(shared);
    int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4, head = blockIdx.y;
    long long width = heads * HEAD;
    Sequence s = sequence_of(blockIdx.x, starts, own);
    real *k = (real*)shared, *v = k + padded(s.keys) * ROW;
    const real* keys = kv + s.start * 2 * width + head * HEAD;
    stage(k, keys, 2 * width, s.keys);
    stage(v, keys + width, 2 * width, s.keys);
    __syncthreads();
    long long at = s.first_query_row * width + head * HEAD;
    for (int first = threadIdx.x / 32 * 16; first < s.queries; first += blockDim.x / 32 * 16) {
        uint32_t a[4][4], d[4][4];
        load_rows(a, q + at, width, first, s.queries);
        load_rows(d, dout + at, width, first, s.queries);
        float l[2], sum[2] = {0, 0}, scale = 0.125f;
#pragma unroll
        for (int h = 0; h < 2; h++) {
            int row = first + g + h * 8;
            long long index = (long long)(s.first_query_row + row) * heads + head;
            if (row < s.queries) {
                for (int i = 0; i < 16; i++) {
                    long long place = at + row * width + i / 2 * 8 + t * 2 + i % 2;
                    sum[h] += get(dout + place) * get(out + place);
                }
            }
            sum[h] = row_sum(sum[h]);
            l[h] = row < s.queries ? lse[index] : 0;
            if (t == 0 && row < s.queries) along[index] = sum[h];
        }
        float total[8][4] = {};
        int last = causal ? min(s.keys, s.offset + first + 16) : s.keys;
        for (int key = 0; key < last; key += 16) {
            float p[2][4], dp[2][4];
            times_rows(p, a, k + key * ROW);
            times_rows(dp, d, v + key * ROW);
#pragma unroll
            for (int i = 0; i < 8; i++) {
                int h = i / 2 % 2, column = key + i / 4 * 8 + t * 2 + i % 2, row = s.offset + first + g + h * 8;
                float& x = p[i / 4][i % 4];
                bool seen = column < s.keys && (!causal || column <= row);
                x = seen ? __expf(x * scale - l[h]) * (dp[i / 4][i % 4] - sum[h]) * scale : 0;
            }
            add_product(total, p, k + key * ROW);
        }
        store_rows(dq + at, width, first, s.queries, total, 1, 1);
    }
}

extern "C" __global__ void attention_mma_backward_kv(
    real* dkv, const float* along, const real* dout, const float* lse, const real* q, const real* kv, const int* starts, const int* own,
    int heads, int causal) {
    SHARED(shared);
    int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4, head = blockIdx.y;
    long long width = heads * HEAD;
    Sequence s = sequence_of(blockIdx.x, starts, own);
    int rows = padded(s.queries);
    real *queries = (real*)shared, *d = queries + rows * ROW;
    float *l = (float*)(d + rows * ROW), *sums = l + rows;
    long long at = s.first_query_row * width + head * HEAD;
    stage(queries, q + at, width, s.queries);
    stage(d, dout + at, width, s.queries);
    for (int i = threadIdx.x; i < s.queries; i += blockDim.x) {
        l[i] = lse[(long long)(s.first_query_row + i) * heads + head];
        sums[i] = along[(long long)(s.first_query_row + i) * heads + head];
    }
    __syncthreads();
    long long keys_at = s.start * 2 * width + head * HEAD;
    for (int first = threadIdx.x / 32 * 16; first < s.keys; first += blockDim.x / 32 * 16) {
        uint32_t k[4][4], v[4][4];
        load_rows(k, kv + keys_at, 2 * width, first, s.keys);
        load_rows(v, kv + keys_at + width, 2 * width, first, s.keys);
        float dk[8][4] = {}, dv[8][4] = {}, scale = 0.125f;
        // Rows are keys here, columns queries.
        for (int query = causal ? max(first - s.offset, 0) / 16 * 16 : 0; query < s.queries; query += 16) {
            float p[2][4], dp[2][4];
            times_rows(p, k, queries + query * ROW);
            times_rows(dp, v, d + query * ROW);
#pragma unroll
            for (int i = 0; i < 8; i++) {
                int column = query + i / 4 * 8 + t * 2 + i % 2, row = first + g + i / 2 % 2 * 8;
                bool seen = column < s.queries && row < s.keys && (!causal || row <= s.offset + column);
                float& x = p[i / 4][i % 4];
                float& dx = dp[i / 4][i % 4];
                x = seen ? __expf(x * scale - l[column]) : 0;
                dx = seen ? x * (dx - sums[column]) * scale : 0;
            }
            add_product(dv, p, d + query * ROW);
            add_product(dk, dp, queries + query * ROW);
        }
        store_rows(dkv + keys_at, 2 * width, first, s.keys, dk, 1, 1);
        store_rows(dkv + keys_at + width, 2 * width, first, s.keys, dv, 1, 1);
    }
}
#endif
