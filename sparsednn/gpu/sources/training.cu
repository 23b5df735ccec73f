// Training: images into tiles by their numbers, the transposed product, and the sampled product.
//
// With x the inputs of a layer, delta the gradient with respect to z = W x + b, y = f(z) behind the layer
// before: s = W^T delta, the delta before is s * f'(y), and the gradient of a stored weight is the dot
// product of a row of delta and a line of x over the columns (Demirci & Ferhatosmanoglu, arXiv
// 2104.11805, section 3). Tiles as in storage.cuh; no float atomics, all sums in a fixed order.
//
// Columns of the last tile beyond the count have delta = 0 and finite x, so they add nothing.
//
// Everything is float32. Macros: those of storage.cuh; THREADS; SAMPLED_8 … SAMPLED_1, connections that a team samples
// at a time for bundles of so many rows, 4 or 8 (from training/device_packed.py; more share the loads of
// delta, but every sum is a register).

#undef STORE
#define STORE 0

#include "product.cuh"
#include "derivative.cuh"
#include "orders.cuh"

#ifndef SAMPLED_8
#define SAMPLED_8 4
#define SAMPLED_4 8
#define SAMPLED_2 8
#define SAMPLED_1 8
#endif

#define TEAM (TILE / 4)       // threads that hold a line, four columns each
#define TEAMS (THREADS / TEAM)

// The resident images orders[FIRST_PICK …] as columns 0 … of x, whose lines are zero. Image i has the
// features indptr[i] … indptr[i + 1] - 1; `values` is null where every nonzero is one. A warp an image.
extern "C" __global__ void __launch_bounds__(THREADS)
load_picked(float* x, const i64* indptr, const index_t* features, const float* values, const int* orders,
            int x_lines) {
    const int count = orders[COUNT], warps = gridDim.x * (THREADS / 32), lane = threadIdx.x % 32;
    for (int at = blockIdx.x * (THREADS / 32) + threadIdx.x / 32; at < count; at += warps) {
        const int image = orders[FIRST_PICK + at];
        float* column = x + (size_t)(at / TILE) * x_lines * TILE + at % TILE;
        const i64 end = indptr[image + 1];
        for (i64 k = indptr[image] + lane; k < end; k += 32)
            column[(size_t)features[k] * TILE] = values ? values[k] : 1.0f;
    }
}

// to[k] = from[place[k]]: weights in the order of the transposed product.
extern "C" __global__ void __launch_bounds__(THREADS)
refresh_transposed(const float* from, const u32* place, float* to, i64 n) {
    const i64 step = (i64)gridDim.x * THREADS;
#pragma unroll 4
    for (i64 k = (i64)blockIdx.x * THREADS + threadIdx.x; k < n; k += step) to[k] = from[place[k]];
}

// A product with f' = 0 stays a product: what is NaN or infinite must show.
__device__ __forceinline__ void multiply_derivatives(float (&s)[4], const float* y, int code, float low,
                                                     float high) {
    const Four saved = load_four(y);
#pragma unroll
    for (int c = 0; c < 4; ++c) s[c] *= derivative(saved.v[c], code, low, high);
}

template <int R>
__device__ __forceinline__ void bundle_backward(const Layer& layer, int number, const float* delta,
                                                float* s, const float* y) {
    const int4 bundle = layer.bundle[number];
    float acc[R][4];
#pragma unroll
    for (int r = 0; r < R; ++r)
#pragma unroll
        for (int c = 0; c < 4; ++c) acc[r][c] = 0.0f;
    add_products<R, TILE>(acc, delta, layer.index + bundle.x, layer.weight + bundle.z, bundle.y);
#pragma unroll
    for (int r = 0; r < R; ++r) {
        const size_t line = (size_t)layer.row[bundle.w + r] * TILE;
        if (y) multiply_derivatives(acc[r], y + line, layer.code, layer.low, layer.high);
        store_four(s + line, acc[r]);
    }
}

// s[tile][column of W] = (W^T delta[tile]) * f'(y[tile]): "rows" of the table are columns of W, their
// activation that of the layer before. Without y the sums stay as they are. d_lines, s_lines, y_lines:
// lines of a tile in delta, s, y. near: as in layer.cu.
extern "C" __global__ void __launch_bounds__(THREADS)
backward_layer(const float* delta, float* s, const i64* table, const float* limits, const int4* bundles,
               const index_t* index, const float* weight, const int* rows, const float* none, int number,
               const int* columns, const float* y, int d_lines, int s_lines, int y_lines, int near) {
    const Layer one = find_layer(table, limits, bundles, index, weight, rows, none, number);
    const int team = threadIdx.x / TEAM, column = 4 * (threadIdx.x % TEAM);
    const int chunks = count_chunks(one.ends, TEAMS);
    const i64 items = (i64)((columns[0] + TILE - 1) / TILE) * chunks;
    i64 item = near ? items * blockIdx.x / gridDim.x : blockIdx.x;
    const i64 end = near ? items * (blockIdx.x + 1) / gridDim.x : items;
    const int step = near ? 1 : gridDim.x;
    for (; item < end; item += step) {
        const i64 tile = item / chunks;
        const int bundle = bundle_in_chunk(one.ends, TEAMS, (int)(item % chunks), team);
        if (bundle < 0) continue;
        const float* from = delta + tile * d_lines * TILE + column;
        float* to = s + tile * s_lines * TILE + column;
        const float* saved = y ? y + tile * y_lines * TILE + column : y;
        if (bundle < one.ends[0]) bundle_backward<8>(one, bundle, from, to, saved);
        else if (bundle < one.ends[1]) bundle_backward<4>(one, bundle, from, to, saved);
        else if (bundle < one.ends[2]) bundle_backward<2>(one, bundle, from, to, saved);
        else bundle_backward<1>(one, bundle, from, to, saved);
    }
}

// s[tile][line] *= f'(y[tile][line]) for the first n lines: behind a fold.
extern "C" __global__ void __launch_bounds__(THREADS)
multiply_derivative(float* s, const float* y, int n, const int* columns, int s_lines, int y_lines, int code,
                    float low, float high) {
    const int column = 4 * (threadIdx.x % TEAM);
    const i64 items = (i64)((columns[0] + TILE - 1) / TILE) * n;
    for (i64 item = (i64)blockIdx.x * TEAMS + threadIdx.x / TEAM; item < items;
         item += (i64)gridDim.x * TEAMS) {
        const i64 tile = item / n, line = item % n;
        float* at = s + (tile * s_lines + line) * TILE + column;
        Four four = load_four(at);
        multiply_derivatives(four.v, y + (tile * y_lines + line) * TILE + column, code, low, high);
        store_four(at, four.v);
    }
}

// Columns of the table of samples: where a layer's pieces begin, how many are of bundles of 8, at least
// 4, 2, 1 rows, and how many rows have a bias.
enum SampleField { PIECE_FIRST, PIECES_8, PIECES_4, PIECES_2, PIECES_1, BIASES, SAMPLE_FIELDS = 8 };

// N sums of each thread of a team become N / 8 of the whole team: thread t has those from t * N / 8 on.
// At each exchange a thread gives half of its sums away, so all of it takes N - N / 8 shuffles.
template <int N, int FAR>
__device__ __forceinline__ void reduce_scatter(float* sums, u32 mask) {
    if constexpr (FAR > 0) {
        const bool upper = threadIdx.x & FAR;
#pragma unroll
        for (int i = 0; i < N / 2; ++i) {
            const float given = upper ? sums[i] : sums[i + N / 2];
            const float kept = upper ? sums[i + N / 2] : sums[i];
            sums[i] = kept + __shfl_xor_sync(mask, given, FAR);
        }
        reduce_scatter<N / 2, FAR / 2>(sums, mask);
    }
}

struct Samples {
    const float* x;       // line 0 of the first tile, at this thread's columns
    const float* delta;
    const index_t* index;
    const int* row;       // line of delta for each row
    int tiles;
    size_t x_step, d_step;  // from tile to tile
    bool add;
    u32 mask;             // of the team's threads in their warp
};

// C connections of a bundle of R rows: gradient[k * R + r] = sum of delta[row r] * x[index k].
// piece: (pattern, weight, rows, connections); patterns are padded, so C of them can be read.
template <int R, int C>
__device__ __forceinline__ void sample(const Samples& all, int4 piece, float* gradient) {
    constexpr int N = R * C, OWN = N / TEAM;
    u32 at[C], row[R];
#pragma unroll
    for (int k = 0; k < C; k += 4) {
#if INDEX_BITS == 16
        const uint2 raw = *reinterpret_cast<const uint2*>(all.index + piece.x + k);
        at[k] = raw.x & 0xffffu, at[k + 1] = raw.x >> 16;
        at[k + 2] = raw.y & 0xffffu, at[k + 3] = raw.y >> 16;
#else
        const uint4 raw = *reinterpret_cast<const uint4*>(all.index + piece.x + k);
        at[k] = raw.x, at[k + 1] = raw.y, at[k + 2] = raw.z, at[k + 3] = raw.w;
#endif
    }
#pragma unroll
    for (int r = 0; r < R; ++r) row[r] = (u32)all.row[piece.z + r];
    float sums[N];
#pragma unroll
    for (int i = 0; i < N; ++i) sums[i] = 0.0f;
    const float *x = all.x, *delta = all.delta;
    for (int tile = 0; tile < all.tiles; ++tile, x += all.x_step, delta += all.d_step) {
        Four value[C];
#pragma unroll
        for (int k = 0; k < C; ++k) value[k] = load_four(x + (size_t)at[k] * TILE);
#pragma unroll
        for (int r = 0; r < R; ++r) {
            const Four d = load_four(delta + (size_t)row[r] * TILE);
#pragma unroll
            for (int k = 0; k < C; ++k)
#pragma unroll
                for (int c = 0; c < 4; ++c)
                    sums[k * R + r] = fmaf(d.v[c], value[k].v[c], sums[k * R + r]);
        }
    }
    reduce_scatter<N, TEAM / 2>(sums, all.mask);
    const int first = (threadIdx.x % TEAM) * OWN;  // these belong to one connection, as C is at most 8
    if (first / R >= piece.w) return;
    float* to = gradient + piece.y + first;
    if constexpr (OWN % 4 == 0) {
#pragma unroll
        for (int i = 0; i < OWN; i += 4) {
            float4* four = reinterpret_cast<float4*>(to + i);
            float4 old = all.add ? *four : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
            *four = make_float4(old.x + sums[i], old.y + sums[i + 1], old.z + sums[i + 2],
                                old.w + sums[i + 3]);
        }
    } else if constexpr (OWN == 2) {
        float2* two = reinterpret_cast<float2*>(to);
        float2 old = all.add ? *two : make_float2(0.0f, 0.0f);
        *two = make_float2(old.x + sums[0], old.y + sums[1]);
    } else {
        to[0] = (all.add ? to[0] : 0.0f) + sums[0];
    }
}

// Gradients of the weights and biases of a layer, over the tiles first_tile … first_tile + together - 1:
// so many at a time that their lines stay in the second-level cache. What is there is added to, if
// orders[ADD_PIECE] says so, or behind the first of these launches. Gradients lie as weights and biases
// do; padding is not written.
extern "C" __global__ void __launch_bounds__(THREADS)
sampled(const float* x, const float* delta, float* gradient, float* bias_gradient, const i64* table,
        const i64* samples, const index_t* index, const int* rows, const int4* pieces, int number,
        const int* orders, int first_tile, int together, int x_lines, int d_lines) {
    const int all_tiles = (orders[COUNT] + TILE - 1) / TILE;
    if (first_tile >= all_tiles) return;
    const i64* fields = table + (i64)number * TABLE_FIELDS;
    const i64* mine = samples + (i64)number * SAMPLE_FIELDS;
    const int team = threadIdx.x / TEAM, column = 4 * (threadIdx.x % TEAM);
    Samples all;
    all.tiles = min(together, all_tiles - first_tile);
    all.x_step = (size_t)x_lines * TILE, all.d_step = (size_t)d_lines * TILE;
    all.x = x + first_tile * all.x_step + column;
    all.delta = delta + first_tile * all.d_step + column;
    all.index = index + fields[INDEX_FIRST];
    all.row = rows + fields[ROW_FIRST];
    all.add = first_tile > 0 || orders[ADD_PIECE];
    all.mask = 0xffu << (threadIdx.x % 32 / TEAM * TEAM);
    pieces += mine[PIECE_FIRST];
    gradient += fields[WEIGHT_FIRST];
    bias_gradient += fields[ROW_FIRST];
    const int ends[4] = {(int)mine[PIECES_8], (int)mine[PIECES_4], (int)mine[PIECES_2],
                         (int)mine[PIECES_1]};
    const int biases = (int)mine[BIASES], chunks = count_chunks(ends, TEAMS);
    const int last = chunks + (biases + TEAMS - 1) / TEAMS;
    for (int chunk = blockIdx.x; chunk < last; chunk += gridDim.x) {
        if (chunk < chunks) {
            const int piece = bundle_in_chunk(ends, TEAMS, chunk, team);
            if (piece < 0) continue;
            if (piece < ends[0]) sample<8, SAMPLED_8>(all, pieces[piece], gradient);
            else if (piece < ends[1]) sample<4, SAMPLED_4>(all, pieces[piece], gradient);
            else if (piece < ends[2]) sample<2, SAMPLED_2>(all, pieces[piece], gradient);
            else sample<1, SAMPLED_1>(all, pieces[piece], gradient);
            continue;
        }
        const int row = (chunk - chunks) * TEAMS + team;
        if (row >= biases) continue;
        const float* line = all.delta + (size_t)all.row[row] * TILE;
        float sum = 0.0f;
        for (int tile = 0; tile < all.tiles; ++tile, line += all.d_step) {
            const Four four = load_four(line);
            sum += (four.v[0] + four.v[1]) + (four.v[2] + four.v[3]);
        }
#pragma unroll
        for (int far = TEAM / 2; far > 0; far /= 2) sum += __shfl_xor_sync(all.mask, sum, far);
        if (threadIdx.x % TEAM == 0)
            bias_gradient[row] = (all.add ? bias_gradient[row] : 0.0f) + sum;
    }
}
