// Columns of tiles: images come in, dead columns go, results come out.
//
// How many columns there are stands in the device's memory (`columns[0]`); grids do not depend on it, and
// the host never asks. Macros: those of storage.cuh; THREADS of a block.

#include "storage.cuh"

// Images 0 … images - 1 of indptr as columns of x, whose lines are zero. indptr counts from `base`, the
// number of the first nonzero of these images; `values` is null where every nonzero is one.
// Also sets columns[0] and ids. A warp takes an image.
extern "C" __global__ void __launch_bounds__(THREADS)
load_images(stored* x, const i64* indptr, const index_t* features, const float* values, i64 base,
            int images, int x_lines, int* columns, int* ids) {
    const int warps = gridDim.x * (THREADS / 32), lane = threadIdx.x % 32;
    if (blockIdx.x == 0 && threadIdx.x == 0) columns[0] = images;
    for (int image = blockIdx.x * (THREADS / 32) + threadIdx.x / 32; image < images; image += warps) {
        stored* column = x + (size_t)(image / TILE) * x_lines * TILE + image % TILE;
        const i64 end = indptr[image + 1] - base;
        for (i64 k = indptr[image] - base + lane; k < end; k += 32)
            column[(size_t)features[k] * TILE] = narrow(values ? values[k] : 1.0f);
        if (lane == 0) ids[image] = image;
    }
}

// Dense columns (n, images), rows `stride` apart, to tiles; columns from `images` on become zero.
extern "C" __global__ void __launch_bounds__(THREADS)
load_dense(stored* x, const float* dense, int n, int images, i64 stride, int x_lines, int* columns) {
    if (blockIdx.x == 0 && threadIdx.x == 0) columns[0] = images;
    const int lane = threadIdx.x % 32, tiles = (images + TILE - 1) / TILE;
    for (Walk at = WARP_WALK(n); at.tile < tiles; at.next()) {
        const i64 image = at.tile * TILE + lane;
        x[(at.tile * x_lines + at.item) * TILE + lane] =
            narrow(image < images ? dense[at.item * stride + image] : 0.0f);
    }
}

// Where each tile's living columns go: offsets[tile]; and how many live: living[0]. One block.
// `alive` loses the bits beyond the last column.
extern "C" __global__ void __launch_bounds__(THREADS)
count_living(u32* alive, const int* columns, int* offsets, int* living) {
    __shared__ int sums[THREADS / 32];
    __shared__ int before;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int count = columns[0], tiles = (count + TILE - 1) / TILE;
    if (threadIdx.x == 0) before = 0;
    for (int first = 0; first < tiles; first += THREADS) {
        const int tile = first + threadIdx.x;
        u32 bits = 0;
        if (tile < tiles) {
            bits = alive[tile];
            const int inside = count - tile * TILE;
            if (inside < TILE) bits &= (1u << inside) - 1u;
            alive[tile] = bits;
        }
        int sum = __popc(bits);
        const int own = sum;
#pragma unroll
        for (int far = 1; far < 32; far *= 2) {
            int other = __shfl_up_sync(0xffffffffu, sum, far);
            if (lane >= far) sum += other;
        }
        if (lane == 31) sums[warp] = sum;
        __syncthreads();
        int start = before;
        for (int w = 0; w < warp; ++w) start += sums[w];
        if (tile < tiles) offsets[tile] = start + sum - own;
        __syncthreads();
        if (threadIdx.x == THREADS - 1) before = start + sum;
        __syncthreads();
    }
    if (threadIdx.x == 0) living[0] = before;
}

// Living columns of x move together in y, in their order; so do their ids. What is left of the last
// tile becomes zero. A warp takes a line of a tile.
extern "C" __global__ void __launch_bounds__(THREADS)
keep_living(const stored* x, stored* y, const u32* alive, const int* offsets, const int* columns,
            const int* living, const int* ids, int* kept_ids, int n, int x_lines, int y_lines) {
    const int lane = threadIdx.x % 32;
    const int tiles = (columns[0] + TILE - 1) / TILE, kept = living[0];
    for (Walk at = WARP_WALK(n); at.tile < tiles; at.next()) {
        const u32 bits = alive[at.tile];
        if (bits >> lane & 1u) {
            const int to = offsets[at.tile] + __popc(bits & ((1u << lane) - 1u));
            y[((i64)(to / TILE) * y_lines + at.item) * TILE + to % TILE] =
                x[(at.tile * x_lines + at.item) * TILE + lane];
            if (at.item == 0) kept_ids[to] = ids[at.tile * TILE + lane];
        }
    }
    if (kept % TILE)  // one more tile, of which the rest is to be zero
        for (Walk at = WARP_WALK(n); at.tile < 1; at.next())
            if (lane >= kept % TILE)
                y[((i64)(kept / TILE) * y_lines + at.item) * TILE + lane] = narrow(0.0f);
}

// flags[id] = 1 for every living column.
extern "C" __global__ void __launch_bounds__(THREADS)
tell_living(const u32* alive, const int* columns, const int* ids, u8* flags) {
    const int count = columns[0];
    for (int column = blockIdx.x * THREADS + threadIdx.x; column < count; column += gridDim.x * THREADS)
        if (alive[column / TILE] >> (column % TILE) & 1u) flags[ids[column]] = 1;
}

// Tiles to dense columns: dense[row * stride + id], float32. Without ids, columns keep their place.
extern "C" __global__ void __launch_bounds__(THREADS)
store_dense(const stored* y, float* dense, int n, const int* columns, i64 stride, int y_lines,
            const int* ids) {
    const int lane = threadIdx.x % 32, count = columns[0], tiles = (count + TILE - 1) / TILE;
    for (Walk at = WARP_WALK(n); at.tile < tiles; at.next()) {
        const int column = (int)at.tile * TILE + lane;
        if (column < count)
            dense[at.item * stride + (ids ? ids[column] : column)] =
                widen(y[(at.tile * y_lines + at.item) * TILE + lane]);
    }
}
