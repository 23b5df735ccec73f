// The sparse product of one bundle: R rows of equal pattern times a line's columns, in registers.
//
// A layer's rows come as bundles of 8, 4, 2 or 1 rows that have the same columns (gpu/packing.py). A team
// loads each activation once for all rows of its bundle, and each weight once for its columns. Sums run in
// the order of the columns, then the bias, by fused multiply-adds: as on the CPU.

#include "storage.cuh"

// Columns of the table of layers, see FIELDS in gpu/packing.py: where a layer's arrays begin, how many of
// its bundles have 8, at least 4, at least 2, at least 1 rows, its sizes, activation and flags.
enum Field {
    BUNDLE_FIRST, INDEX_FIRST, WEIGHT_FIRST, ROW_FIRST,
    ENDS_8, ENDS_4, ENDS_2, ENDS_1,
    N_IN, N_OUT, CODE, ADD, WIDE_ENTRY, WIDE_ABOVE, TABLE_FIELDS = 16
};

// Activations, as kernels/packing.py numbers them; softmax is a pass of its own.
enum Code { CLAMP, SIGMOID, TANH, SOFTMAX };

struct Layer {
    const int4* bundle;     // (pattern, connections, weight, row), relative to the pointers below
    const index_t* index;   // patterns; each begins at a multiple of 8
    const stored* weight;   // R weights of a connection side by side; begins at a multiple of 8
    const int* row;         // line of the output for each row
    const float* bias;
    int ends[4];            // bundles of 8 rows, of at least 4, 2, 1
    int n_in, n_out, code;
    bool add;               // add to what the output holds
    float low, high;
};

__device__ __forceinline__ Layer find_layer(const i64* table, const float* limits, const int4* bundle,
                                            const index_t* index, const stored* weight,
                                            const int* row, const float* bias, int number) {
    const i64* fields = table + (i64)number * TABLE_FIELDS;
    Layer layer;
    layer.bundle = bundle + fields[BUNDLE_FIRST];
    layer.index = index + fields[INDEX_FIRST];
    layer.weight = weight + fields[WEIGHT_FIRST];
    layer.row = row + fields[ROW_FIRST];
    layer.bias = bias + fields[ROW_FIRST];
    for (int i = 0; i < 4; ++i) layer.ends[i] = (int)fields[ENDS_8 + i];
    layer.n_in = (int)fields[N_IN], layer.n_out = (int)fields[N_OUT], layer.code = (int)fields[CODE];
    layer.add = fields[ADD] != 0;
    layer.low = limits[2 * number], layer.high = limits[2 * number + 1];
    return layer;
}

// Products of N connections: their lines and weights are loaded together, before any is used.
template <int R, int WIDTH, int N>
__device__ __forceinline__ void add_step(float (&acc)[R][4], const stored* x, const index_t* index,
                                         const stored* weight) {
    u32 at[N];
#pragma unroll
    for (int j = 0; j < N; j += 4) {
#if INDEX_BITS == 16
        uint2 raw = *reinterpret_cast<const uint2*>(index + j);
        at[j] = raw.x & 0xffffu, at[j + 1] = raw.x >> 16;
        at[j + 2] = raw.y & 0xffffu, at[j + 3] = raw.y >> 16;
#else
        uint4 raw = *reinterpret_cast<const uint4*>(index + j);
        at[j] = raw.x, at[j + 1] = raw.y, at[j + 2] = raw.z, at[j + 3] = raw.w;
#endif
    }
    Four value[N];
#pragma unroll
    for (int j = 0; j < N; ++j) value[j] = load_four(x + (size_t)at[j] * WIDTH);
    float w[N * R];
#pragma unroll
    for (int j = 0; j < N * R; j += 4) {
        Four four = load_four(weight + j);
#pragma unroll
        for (int c = 0; c < 4; ++c) w[j + c] = four.v[c];
    }
#pragma unroll
    for (int j = 0; j < N; ++j)
#pragma unroll
        for (int r = 0; r < R; ++r)
#pragma unroll
            for (int c = 0; c < 4; ++c) acc[r][c] = fmaf(w[j * R + r], value[j].v[c], acc[r][c]);
}

// A bundle's products are added to `acc`; `x` is the team's line of neuron 0, at this thread's columns.
template <int R, int WIDTH>
__device__ __forceinline__ void add_products(float (&acc)[R][4], const stored* x, const index_t* index,
                                             const stored* weight, int connections) {
    int k = 0;
    // Few rows do little with a line: more of them have to be on their way at a time.
    if (R <= 2)
        for (; k + 8 <= connections; k += 8)
            add_step<R, WIDTH, 8>(acc, x, index + k, weight + k * R);
    for (; k + 4 <= connections; k += 4) add_step<R, WIDTH, 4>(acc, x, index + k, weight + k * R);
    for (; k < connections; ++k) {
        Four value = load_four(x + (size_t)index[k] * WIDTH);
#pragma unroll
        for (int r = 0; r < R; ++r) {
            float w = widen(weight[k * R + r]);
#pragma unroll
            for (int c = 0; c < 4; ++c) acc[r][c] = fmaf(w, value.v[c], acc[r][c]);
        }
    }
}

// The larger and the smaller number; NaN if one is NaN, as in NumPy.
__device__ __forceinline__ float larger(float a, float b) {
    float found;
    asm("max.NaN.f32 %0, %1, %2;" : "=f"(found) : "f"(a), "f"(b));
    return found;
}

__device__ __forceinline__ float smaller(float a, float b) {
    float found;
    asm("min.NaN.f32 %0, %1, %2;" : "=f"(found) : "f"(a), "f"(b));
    return found;
}

// Activations that are no clamp.
__device__ __forceinline__ float curve(float z, int code) {
    if (code == SIGMOID) {
        float e = expf(-fabsf(z));  // of a number that is not positive: no overflow
        return (z >= 0.0f ? 1.0f : e) / (1.0f + e);
    }
    return code == TANH ? tanhf(z) : z;
}

// Whether stored values are other than zero, for a bit of which any is: the sign does not count.
__device__ __forceinline__ u32 magnitude_bits(float value) {
#if STORE == 0
    return __float_as_uint(value) << 1;
#else
    return (u32)narrow(value) << 17;
#endif
}

// One bundle of a layer: products, bias, activation, store. Returns the bits of this thread's four
// columns that have an output other than zero.
template <int R, int WIDTH>
__device__ __forceinline__ u32 bundle_forward(const Layer& layer, int number, const stored* x, stored* y) {
    const int4 bundle = layer.bundle[number];
    const int* row = layer.row + bundle.w;
    const float* bias = layer.bias + bundle.w;
    float acc[R][4];
#pragma unroll
    for (int r = 0; r < R; ++r) {
        Four start = {{0.0f, 0.0f, 0.0f, 0.0f}};
        if (layer.add) start = load_four(y + (size_t)row[r] * WIDTH);
#pragma unroll
        for (int c = 0; c < 4; ++c) acc[r][c] = start.v[c];
    }
    add_products<R, WIDTH>(acc, x, layer.index + bundle.x, layer.weight + bundle.z, bundle.y);
    u32 any[4] = {0, 0, 0, 0};
#pragma unroll
    for (int r = 0; r < R; ++r) {
        const float b = bias[r];
#pragma unroll
        for (int c = 0; c < 4; ++c) acc[r][c] += b;
        if (layer.code == CLAMP) {
#pragma unroll
            for (int c = 0; c < 4; ++c)
                acc[r][c] = smaller(larger(acc[r][c], layer.low), layer.high);
        } else {
#pragma unroll
            for (int c = 0; c < 4; ++c) acc[r][c] = curve(acc[r][c], layer.code);
        }
#pragma unroll
        for (int c = 0; c < 4; ++c) any[c] |= magnitude_bits(acc[r][c]);
        store_four(y + (size_t)row[r] * WIDTH, acc[r]);
    }
    return (any[0] ? 1u : 0u) | (any[1] ? 2u : 0u) | (any[2] ? 4u : 0u) | (any[3] ? 8u : 0u);
}

// Bundle `number` of a layer, whatever its rows.
template <int WIDTH>
__device__ __forceinline__ u32 any_bundle_forward(const Layer& layer, int number, const stored* x, stored* y) {
    if (number < layer.ends[0]) return bundle_forward<8, WIDTH>(layer, number, x, y);
    if (number < layer.ends[1]) return bundle_forward<4, WIDTH>(layer, number, x, y);
    if (number < layer.ends[2]) return bundle_forward<2, WIDTH>(layer, number, x, y);
    return bundle_forward<1, WIDTH>(layer, number, x, y);
}

// Chunks of `teams` bundles, none of which mixes bundles of different rows: so a warp does not diverge.
__device__ __forceinline__ int count_chunks(const int (&ends)[4], int teams) {
    int chunks = 0, before = 0;
    for (int i = 0; i < 4; ++i) {
        chunks += (ends[i] - before + teams - 1) / teams;
        before = ends[i];
    }
    return chunks;
}

// The bundle of a team in a chunk; -1 if there is none for it.
__device__ __forceinline__ int bundle_in_chunk(const int (&ends)[4], int teams, int chunk, int team) {
    int before = 0;
    for (int i = 0; i < 4; ++i) {
        int here = (ends[i] - before + teams - 1) / teams;
        if (chunk < here) {
            int number = before + chunk * teams + team;
            return number < ends[i] ? number : -1;
        }
        chunk -= here;
        before = ends[i];
    }
    return -1;
}
