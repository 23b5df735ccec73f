// Layers of inference: one layer of all tiles (`layer`), or several while a tile stays on the chip
// (`resident`), with the bias and the activation; both tell which columns are alive behind it.
//
// Macros: those of storage.cuh; THREADS of a block; RESIDENT_WIDTH, columns of a tile in `resident`.

#include "product.cuh"

#define LANES_OF_LINE (TILE / 4)

// OR of four-column bits over a warp whose threads hold lines of `lanes` threads: bits of the line.
template <int LANES>
__device__ __forceinline__ u32 warp_columns(u32 four) {
    u32 bits = four << (4 * (threadIdx.x % LANES));
#pragma unroll
    for (int far = 1; far < 32; far *= 2) bits |= __shfl_xor_sync(0xffffffffu, bits, far);
    return bits;
}

// y[tile][row] = f(W x[tile] + b) for all tiles of `columns[0]` columns.
//
// x_lines, y_lines: lines of a tile in x and y (at least n_in, n_out). alive: a word per tile, zeroed
// by the caller, or null. near: whether a block works on neighbouring chunks (a tile fits into the
// first-level cache), otherwise the grid does (it shares tiles in the second-level cache).
// The layer with this number may name another form of itself (WIDE_ENTRY) for many columns.
extern "C" __global__ void __launch_bounds__(THREADS)
layer(const stored* x, stored* y, const i64* table, const float* limits, const int4* bundles,
      const index_t* index, const stored* weight, const int* rows, const float* biases, int number,
      const int* columns, u32* alive, int x_lines, int y_lines, int near) {
    const int count = columns[0];
    const i64* fields = table + (i64)number * TABLE_FIELDS;
    if (count > fields[WIDE_ABOVE]) number = (int)fields[WIDE_ENTRY];
    const Layer one = find_layer(table, limits, bundles, index, weight, rows, biases, number);
    const int teams = THREADS / LANES_OF_LINE;
    const int team = threadIdx.x / LANES_OF_LINE, column = 4 * (threadIdx.x % LANES_OF_LINE);
    const int chunks = count_chunks(one.ends, teams);
    const i64 items = (i64)((count + TILE - 1) / TILE) * chunks;
    const i64 start = near ? items * blockIdx.x / gridDim.x : blockIdx.x;
    const i64 end = near ? items * (blockIdx.x + 1) / gridDim.x : items;
    const int step = near ? 1 : gridDim.x;
    Walk at(start, step, chunks);
    for (i64 item = start; item < end; item += step, at.next()) {
        const i64 tile = at.tile;
        const int bundle = bundle_in_chunk(one.ends, teams, at.item, team);
        u32 four = 0;
        if (bundle >= 0)
            four = any_bundle_forward<TILE>(one, bundle, x + tile * x_lines * TILE + column,
                                            y + tile * y_lines * TILE + column);
        if (alive) {
            u32 bits = warp_columns<LANES_OF_LINE>(four);
            // Most bits are there already: the look saves most of the atomic operations.
            if (threadIdx.x % 32 == 0 && (bits & ~*(volatile u32*)(alive + tile)))
                atomicOr(alive + tile, bits);
        }
    }
}

#ifdef RESIDENT_WIDTH

#define LANES_RESIDENT (RESIDENT_WIDTH / 4)
#define PIECES (TILE / RESIDENT_WIDTH)

// Layers first … last - 1 of all columns, RESIDENT_WIDTH at a time, between two halves of the shared
// memory: 2 * most_lines * RESIDENT_WIDTH stored values. `alive` tells of the last one.
// Other forms of layers (WIDE_ENTRY) are not looked at.
extern "C" __global__ void __launch_bounds__(THREADS, 1)  // shared memory holds no second block
resident(const stored* x, stored* y, const i64* table, const float* limits, const int4* bundles,
         const index_t* index, const stored* weight, const int* rows, const float* biases, int first,
         int last, const int* columns, u32* alive, int x_lines, int y_lines, int most_lines) {
    extern __shared__ float4 shared[];
    stored* here = reinterpret_cast<stored*>(shared);
    stored* there = here + (size_t)most_lines * RESIDENT_WIDTH;
    const int count = columns[0];
    const int teams = THREADS / LANES_RESIDENT;
    const int team = threadIdx.x / LANES_RESIDENT, column = 4 * (threadIdx.x % LANES_RESIDENT);
    const i64 pieces = (i64)((count + RESIDENT_WIDTH - 1) / RESIDENT_WIDTH);
    const int n_in = (int)table[(i64)first * TABLE_FIELDS + N_IN];
    const int n_out = (int)table[(i64)(last - 1) * TABLE_FIELDS + N_OUT];
    for (i64 piece = blockIdx.x; piece < pieces; piece += gridDim.x) {
        const i64 tile = piece / PIECES;
        const int offset = (int)(piece % PIECES) * RESIDENT_WIDTH;
        const stored* from = x + tile * x_lines * TILE + offset + column;
        for (int line = team; line < n_in; line += teams) {
            Four four = load_four(from + (size_t)line * TILE);
            store_four(here + (size_t)line * RESIDENT_WIDTH + column, four.v);
        }
        __syncthreads();
        u32 four = 0;
        for (int number = first; number < last; ++number) {
            const Layer one = find_layer(table, limits, bundles, index, weight, rows, biases, number);
            const int chunks = count_chunks(one.ends, teams);
            four = 0;
            for (int chunk = 0; chunk < chunks; ++chunk) {
                const int bundle = bundle_in_chunk(one.ends, teams, chunk, team);
                if (bundle >= 0)
                    four |= any_bundle_forward<RESIDENT_WIDTH>(one, bundle, here + column,
                                                               there + column);
            }
            stored* swapped = here;
            here = there, there = swapped;
            __syncthreads();
        }
        stored* to = y + tile * y_lines * TILE + offset + column;
        for (int line = team; line < n_out; line += teams) {
            Four four = load_four(here + (size_t)line * RESIDENT_WIDTH + column);
            store_four(to + (size_t)line * TILE, four.v);
        }
        if (alive) {
            u32 bits = warp_columns<LANES_RESIDENT>(four) << offset;
            if (threadIdx.x % 32 == 0 && (bits & ~*(volatile u32*)(alive + tile)))
                atomicOr(alive + tile, bits);
        }
        // No barrier: the next piece is written by the very threads that have just read these lines.
    }
}

#endif

// Softmax over the rows of each column, in place; a block takes a tile, a thread of a warp a column.
// Sums in a fixed order: each warp its rows, then the warps in turn.
extern "C" __global__ void __launch_bounds__(THREADS)
softmax(stored* y, int n_out, const int* columns, u32* alive, int y_lines) {
    __shared__ float partial[THREADS];
    const int warp = threadIdx.x / 32, warps = THREADS / 32, column = threadIdx.x % 32;
    const int tiles = (columns[0] + TILE - 1) / TILE;
    for (i64 tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
        stored* line = y + tile * y_lines * TILE + column;
        float largest = __int_as_float(0xff800000);  // minus infinity
        for (int row = warp; row < n_out; row += warps) {
            float z = widen(line[(size_t)row * TILE]);
            largest = z <= largest ? largest : z;  // takes a NaN, and keeps it below
            if (z != z) break;
        }
        partial[threadIdx.x] = largest;
        __syncthreads();
        for (int w = 0; w < warps; ++w) {
            float z = partial[w * 32 + column];
            if (largest == largest) largest = z <= largest ? largest : z;
        }
        __syncthreads();
        float sum = 0.0f;
        for (int row = warp; row < n_out; row += warps)
            sum += expf(widen(line[(size_t)row * TILE]) - largest);
        partial[threadIdx.x] = sum;
        __syncthreads();
        sum = 0.0f;
        for (int w = 0; w < warps; ++w) sum += partial[w * 32 + column];
        for (int row = warp; row < n_out; row += warps) {
            float z = widen(line[(size_t)row * TILE]);
            line[(size_t)row * TILE] = narrow(expf(z - largest) / sum);
        }
        if (alive && threadIdx.x == 0) alive[tile] = 0xffffffffu;  // outputs of a softmax sum to one
        __syncthreads();
    }
}
