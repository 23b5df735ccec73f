// Losses of a batch and their gradients with respect to z, before the last activation; the formulas,
// and what a NaN does, are those of training/losses.py: elements in float32, sums over outputs and
// images in float64.
//
// A block takes a tile: thread w * 32 + c the rows w, w + warps, … of column c; then each column adds
// what its warps have, in their order. A label is the number of an output; or `values` (images, outputs) are
// dense targets; the other one is null. Images are those of orders[FIRST_PICK …]. Without `delta` there is no
// gradient. Columns beyond the count get delta = 0.
//
// Macros: THREADS, here also 1024 for many outputs.

#undef STORE
#define STORE 0

#include "derivative.cuh"
#include "orders.cuh"

#define WARPS (THREADS / 32)
#define INFINITE __int_as_float(0x7f800000)

// Sum over the warps of what their threads of this column have.
__device__ __forceinline__ double sum_of_column(double* part, double own) {
    part[threadIdx.x] = own;
    __syncthreads();
    double sum = 0.0;
    for (int w = 0; w < WARPS; ++w) sum += part[w * 32 + threadIdx.x % 32];
    __syncthreads();
    return sum;
}

// Largest output of the column; NaN does not count.
__device__ __forceinline__ float largest_of_column(double* part, const float* y, int n_out) {
    float largest = -INFINITE;
    for (int row = threadIdx.x / 32; row < n_out; row += WARPS) {
        const float z = y[(size_t)row * TILE];
        largest = z > largest ? z : largest;
    }
    part[threadIdx.x] = largest;
    __syncthreads();
    for (int w = 0; w < WARPS; ++w) {
        const float z = (float)part[w * 32 + threadIdx.x % 32];
        largest = z > largest ? z : largest;
    }
    __syncthreads();
    return largest;
}

struct Column {
    bool inside;           // whether this is an image
    int label;             // -1 with dense targets
    const float* target;   // its dense targets, or null
};

__device__ __forceinline__ Column find_column(const int* orders, const int* labels, const float* values,
                                              i64 tile, int n_out) {
    const i64 at = tile * TILE + threadIdx.x % 32;
    Column column = {at < orders[COUNT], -1, nullptr};
    if (column.inside) {
        const int image = orders[FIRST_PICK + at];
        if (labels) column.label = labels[image];
        else column.target = values + (i64)image * n_out;
    }
    return column;
}

// An output that is a reason why the label is not the first of the largest.
__device__ __forceinline__ bool is_miss(float z, float largest, int row, int label) {
    return row < label ? z == largest : row == label && z != largest;
}

// The tile's loss and number of correct images: warp 0 has them, by column.
__device__ __forceinline__ void tell_scores(double* scores, i64 tile, const Column& column, double loss,
                                            double misses) {
    if (threadIdx.x >= 32) return;
    double correct = column.label >= 0 && misses == 0.0 && loss == loss ? 1.0 : 0.0;
    if (!column.inside) loss = 0.0, correct = 0.0;
#pragma unroll
    for (int far = 16; far > 0; far /= 2) {
        loss += __shfl_xor_sync(0xffffffffu, loss, far);
        correct += __shfl_xor_sync(0xffffffffu, correct, far);
    }
    if (threadIdx.x == 0) scores[2 * tile] = loss, scores[2 * tile + 1] = correct;
}

// -log softmax(y)[label], or -sum t log softmax(y) with dense targets t. The gradient with respect to y
// is FACTOR * (softmax(y) * sum t - t); times f'(y) it is that with respect to z. code, low, high: the
// last activation; where that is softmax y are the logits, and code is CLAMP without bounds.
extern "C" __global__ void __launch_bounds__(THREADS)
cross_entropy(const float* y, float* delta, const int* labels, const float* values, const int* orders,
              int n_out, int y_lines, int d_lines, int code, float low, float high, double* scores) {
    __shared__ double part[THREADS];
    const int tiles = (orders[COUNT] + TILE - 1) / TILE, warp = threadIdx.x / 32;
    const float factor = __int_as_float(orders[FACTOR]);
    for (i64 tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
        const float* mine = y + tile * y_lines * TILE + threadIdx.x % 32;
        const Column column = find_column(orders, labels, values, tile, n_out);
        const float largest = largest_of_column(part, mine, n_out);
        double sum = 0.0, dot = 0.0, weight = 0.0, misses = 0.0;
        for (int row = warp; row < n_out; row += WARPS) {
            const float z = mine[(size_t)row * TILE], shifted = z - largest;
            sum += expf(shifted);
            if (column.target) {
                const float t = column.target[row];
                dot += t * shifted;
                weight += t;
            } else if (row == column.label) {
                dot += shifted;
            }
            if (is_miss(z, largest, row, column.label)) misses = 1.0;
        }
        sum = sum_of_column(part, sum);
        dot = sum_of_column(part, dot);
        misses = sum_of_column(part, misses);
        weight = values ? sum_of_column(part, weight) : 1.0;
        tell_scores(scores, tile, column, weight * log(sum) - dot, misses);
        if (!delta) continue;
        float* out = delta + tile * d_lines * TILE + threadIdx.x % 32;
        const float scale = (float)(factor * weight / sum);
        for (int row = warp; row < n_out; row += WARPS) {
            const float z = mine[(size_t)row * TILE];
            float g = expf(z - largest) * scale;
            if (column.target) g -= factor * column.target[row];
            else if (row == column.label) g -= factor;
            g *= derivative(z, code, low, high);
            out[(size_t)row * TILE] = column.inside ? g : 0.0f;
        }
    }
}

// Mean over the outputs p of (p - t)^2; a label is a one-hot t. p are y, or softmax(y) if `softmax` is
// not 0. With e = p - t the gradient with respect to p is FACTOR * e (FACTOR = 2 / (outputs * images));
// behind softmax it is FACTOR * p * (e - sum e p) with respect to y. Otherwise times f'(y).
extern "C" __global__ void __launch_bounds__(THREADS)
squares(const float* y, float* delta, const int* labels, const float* values, const int* orders, int n_out,
        int y_lines, int d_lines, int code, float low, float high, int softmax, double* scores) {
    __shared__ double part[THREADS];
    const int tiles = (orders[COUNT] + TILE - 1) / TILE, warp = threadIdx.x / 32;
    const float factor = __int_as_float(orders[FACTOR]);
    for (i64 tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
        const float* mine = y + tile * y_lines * TILE + threadIdx.x % 32;
        const Column column = find_column(orders, labels, values, tile, n_out);
        const float largest = largest_of_column(part, mine, n_out);
        float total = 1.0f;
        if (softmax) {
            double sum = 0.0;
            for (int row = warp; row < n_out; row += WARPS)
                sum += expf(mine[(size_t)row * TILE] - largest);
            total = (float)sum_of_column(part, sum);
        }
        double square = 0.0, dot = 0.0, misses = 0.0;
        for (int row = warp; row < n_out; row += WARPS) {
            const float z = mine[(size_t)row * TILE];
            const float p = softmax ? expf(z - largest) / total : z;
            const float e = p - (column.target ? column.target[row] : row == column.label ? 1.0f : 0.0f);
            square += (double)e * e;
            dot += e * p;
            if (is_miss(z, largest, row, column.label)) misses = 1.0;
        }
        square = sum_of_column(part, square);
        dot = sum_of_column(part, dot);
        misses = sum_of_column(part, misses);
        tell_scores(scores, tile, column, square / n_out, misses);
        if (!delta) continue;
        float* out = delta + tile * d_lines * TILE + threadIdx.x % 32;
        const float mean = (float)dot;
        for (int row = warp; row < n_out; row += WARPS) {
            const float z = mine[(size_t)row * TILE];
            const float p = softmax ? expf(z - largest) / total : z;
            float e = p - (column.target ? column.target[row] : row == column.label ? 1.0f : 0.0f);
            if (softmax) e = (e - mean) * p;
            e *= factor;
            e *= derivative(z, code, low, high);
            out[(size_t)row * TILE] = column.inside ? e : 0.0f;
        }
    }
}

// results[LOSS], results[CORRECT]: sums over the tiles, added to what is there behind the first piece.
// One block.
extern "C" __global__ void __launch_bounds__(THREADS)
add_scores(const double* scores, const int* orders, double* results) {
    __shared__ double part[2][THREADS];
    const int tiles = (orders[COUNT] + TILE - 1) / TILE;
    double loss = 0.0, correct = 0.0;
    for (int tile = threadIdx.x; tile < tiles; tile += THREADS)
        loss += scores[2 * tile], correct += scores[2 * tile + 1];
    part[0][threadIdx.x] = loss, part[1][threadIdx.x] = correct;
    for (int far = THREADS / 2; far > 0; far /= 2) {
        __syncthreads();
        if (threadIdx.x < far) {
            part[0][threadIdx.x] += part[0][threadIdx.x + far];
            part[1][threadIdx.x] += part[1][threadIdx.x + far];
        }
    }
    if (threadIdx.x == 0) {
        const bool add = orders[ADD_PIECE] != 0;
        results[LOSS] = (add ? results[LOSS] : 0.0) + part[0][0];
        results[CORRECT] = (add ? results[CORRECT] : 0.0) + part[1][0];
    }
}
