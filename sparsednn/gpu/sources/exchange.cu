// Lines that go to other ranks, and lines that come from them (distributed/device_links.py).
//
// A packed buffer holds message behind message. Message m has the packed lines starts[m] … starts[m + 1]
// - 1 of all tiles, tile by tile: packed[tiles * starts[m] + tile * size + i][32 columns]. So each message
// is contiguous, and so is what a warp moves. How many columns there are stands in columns[0]; those of
// the last tile beyond them travel, too.
//
// Messages lie along the grid's second dimension, a message's lines along the first; any grid will do.
// Macros: those of storage.cuh; THREADS of a block.

#include "storage.cuh"

// Lines of x into messages: packed line i is line lines[i], or first_line + i where `lines` is null. A
// line may be named more than once.
extern "C" __global__ void __launch_bounds__(THREADS)
gather_lines(const stored* x, stored* packed, const int* lines, int first_line, const int* starts,
             int messages, const int* columns, int x_lines) {
    const int lane = threadIdx.x % 32;
    const i64 warps = (i64)gridDim.x * (THREADS / 32);
    const i64 me = (i64)blockIdx.x * (THREADS / 32) + threadIdx.x / 32;
    const i64 tiles = (columns[0] + TILE - 1) / TILE;
    for (int m = blockIdx.y; m < messages; m += gridDim.y) {
        const int start = starts[m], size = starts[m + 1] - start;
        for (i64 item = me; item < tiles * size; item += warps) {
            const i64 tile = item / size;
            const int i = start + (int)(item % size);
            const int line = lines ? lines[i] : first_line + i;
            packed[(tiles * start + item) * TILE + lane] = x[(tile * x_lines + line) * TILE + lane];
        }
    }
}

// Messages into lines of x that lie one behind another: packed line i becomes line first_line + i.
extern "C" __global__ void __launch_bounds__(THREADS)
scatter_lines(const stored* packed, stored* x, int first_line, const int* starts, int messages,
              const int* columns, int x_lines) {
    const int lane = threadIdx.x % 32;
    const i64 warps = (i64)gridDim.x * (THREADS / 32);
    const i64 me = (i64)blockIdx.x * (THREADS / 32) + threadIdx.x / 32;
    const i64 tiles = (columns[0] + TILE - 1) / TILE;
    for (int m = blockIdx.y; m < messages; m += gridDim.y) {
        const int start = starts[m], size = starts[m + 1] - start;
        for (i64 item = me; item < tiles * size; item += warps) {
            const i64 tile = item / size, line = first_line + start + item % size;
            x[(tile * x_lines + line) * TILE + lane] = packed[(tiles * start + item) * TILE + lane];
        }
    }
}

// Messages added to lines of x: line lines[r], r < n, becomes itself plus what stands at the places
// first[r] … first[r + 1] - 1, in this order, added up in float32 and rounded once. A place is two
// numbers: a message, and the line within it. One warp has all of a line, so sums are always the same.
extern "C" __global__ void __launch_bounds__(THREADS)
add_lines(const stored* packed, stored* x, const int* lines, const int* first, const int2* places, int n,
          const int* starts, const int* columns, int x_lines) {
    const int lane = threadIdx.x % 32;
    const i64 warps = (i64)gridDim.x * (THREADS / 32);
    const i64 me = (i64)blockIdx.x * (THREADS / 32) + threadIdx.x / 32;
    const i64 tiles = (columns[0] + TILE - 1) / TILE;
    for (i64 item = me; item < tiles * n; item += warps) {
        const i64 tile = item / n;
        const int r = (int)(item % n);
        stored* target = x + (tile * x_lines + lines[r]) * TILE + lane;
        float sum = widen(*target);
        for (int k = first[r]; k < first[r + 1]; ++k) {
            const int2 place = places[k];
            const i64 start = starts[place.x], size = starts[place.x + 1] - start;
            sum += widen(packed[(tiles * start + tile * size + place.y) * TILE + lane]);
        }
        *target = narrow(sum);
    }
}
