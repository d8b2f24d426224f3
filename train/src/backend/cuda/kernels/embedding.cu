// What the towers begin with, eight values a thread where nothing else is said.

// out[row] = table[ids[row]] + positions[places[row]]
extern "C" __global__ void embed_tokens(
    real* out, const float* table, const float* positions, const int* ids, const int* places, int rows, int dim) {
    long long i = 8 * thread_index();
    if (i >= (long long)rows * dim) return;
    int row = i / dim, column = i % dim;
    float token[8], position[8];
    load8(token, table + (long long)ids[row] * dim + column);
    load8(position, positions + (long long)places[row] * dim + column);
#pragma unroll
    for (int j = 0; j < 8; j++) token[j] += position[j];
    store8(out + i, token);
}

// out[batch, tokens, dim]: the class token, then patches[batch, tokens - 1, dim], each plus its position.
extern "C" __global__ void embed_patches(
    real* out, const real* patches, const float* class_token, const float* positions, int batch, int tokens, int dim) {
    long long i = 8 * thread_index();
    if (i >= (long long)batch * tokens * dim) return;
    int column = i % dim, token = i / dim % tokens;
    long long image = i / dim / tokens;
    float v[8], position[8];
    load8(position, positions + (long long)token * dim + column);
    if (token == 0)
        load8(v, class_token + column);
    else
        load8(v, patches + (image * (tokens - 1) + token - 1) * dim + column);
#pragma unroll
    for (int j = 0; j < 8; j++) v[j] += position[j];
    store8(out + i, v);
}

// dpatches[batch, tokens - 1, dim]: dout[batch, tokens, dim] without its class tokens.
extern "C" __global__ void take_patches(real* dpatches, const real* dout, int batch, int tokens, int dim) {
    long long i = 8 * thread_index();
    if (i >= (long long)batch * (tokens - 1) * dim) return;
    long long image = i / dim / (tokens - 1);
    float v[8];
    load8(v, dout + i + (image + 1) * dim);
    store8(dpatches + i, v);
}

// Where value i of out[batch * side^2, 3, patch, patch] comes from: image, channel, y and x. In 32 bits, whose divisions are
// cheaper: room for 28,000 images of 224 pixels.
struct Place { int image, channel, y, x; };
__device__ __forceinline__ Place place_of(unsigned i, unsigned size, unsigned patch) {
    unsigned side = size / patch, x = i % patch, line = i / patch, y = line % patch, rest = line / patch;
    unsigned channel = rest % 3, at = rest / 3, column = at % side, row = at / side % side;
    return {(int)(at / side / side), (int)channel, (int)(row * patch + y), (int)(column * patch + x)};
}

// From 8-bit pixels[batch, size, size, 3], as pixel * scale + shift of each channel; a value a thread.
extern "C" __global__ void patchify_bytes(
    real* out, const unsigned char* pixels, long long n, int size, int patch, float scale_r, float scale_g, float scale_b, float shift_r,
    float shift_g, float shift_b) {
    long long i = thread_index();
    if (i >= n) return;
    Place at = place_of(i, size, patch);
    float pixel = pixels[(((long long)at.image * size + at.y) * size + at.x) * 3 + at.channel];
    float scale = at.channel == 0 ? scale_r : at.channel == 1 ? scale_g : scale_b;
    float shift = at.channel == 0 ? shift_r : at.channel == 1 ? shift_g : shift_b;
    put(out + i, pixel * scale + shift);
}

// From pixels[batch, 3, size, size] that are normalised; a value a thread.
extern "C" __global__ void patchify_values(real* out, const float* pixels, long long n, int size, int patch) {
    long long i = thread_index();
    if (i >= n) return;
    Place at = place_of(i, size, patch);
    put(out + i, pixels[(((long long)at.image * 3 + at.channel) * size + at.y) * size + at.x]);
}

// out[i] = x[rows[i]]
extern "C" __global__ void gather(real* out, const real* x, const int* rows, int n, int dim) {
    long long i = 8 * thread_index();
    if (i >= (long long)n * dim) return;
    float v[8];
    load8(v, x + (long long)rows[i / dim] * dim + i % dim);
    store8(out + i, v);
}

// dx[rows[i]] += dout[i]; no row comes twice.
extern "C" __global__ void gather_backward(real* dx, const real* dout, const int* rows, int n, int dim) {
    long long i = 8 * thread_index();
    if (i >= (long long)n * dim) return;
    real* to = dx + (long long)rows[i / dim] * dim + i % dim;
    float v[8], d[8];
    load8(v, to);
    load8(d, dout + i);
#pragma unroll
    for (int j = 0; j < 8; j++) v[j] += d[j];
    store8(to, v);
}
