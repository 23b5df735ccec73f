// Equal columns are computed once.
//
// Columns never mix, so two that are equal behind a layer stay equal behind all that follow, bit by bit.
// In the Graph Challenge's 1024-120 network the columns that survive all become one. Hashes find
// candidates, a comparison of all lines decides; the first of equal columns stays, whatever the order in
// which threads run. Macros: those of storage.cuh; THREADS of a block.

#include "storage.cuh"

__device__ __forceinline__ u64 mix(u64 h) {
    h ^= h >> 33, h *= 0xff51afd7ed558ccdull;
    h ^= h >> 33, h *= 0xc4ceb9fe1a85ec53ull;
    return h ^ (h >> 33);
}

__device__ __forceinline__ u32 bits_of(stored value) {
#if STORE == 0
    return __float_as_uint(value);
#else
    return value;
#endif
}

__device__ __forceinline__ bool is_alive(const u32* alive, int column) {
    return alive[column / TILE] >> (column % TILE) & 1u;
}

// hashes[column] += a sum over the lines, which is zeroed by the caller; sums of integers do not depend
// on their order. A warp takes LINES lines of a tile.
#define LINES 32
extern "C" __global__ void __launch_bounds__(THREADS)
hash_columns(const stored* x, const int* columns, int n, int x_lines, u64* hashes) {
    const int lane = threadIdx.x % 32;
    const int pieces = (n + LINES - 1) / LINES, tiles = (columns[0] + TILE - 1) / TILE;
    for (Walk at = WARP_WALK(pieces); at.tile < tiles; at.next()) {
        const int first = at.item * LINES, last = min(first + LINES, n);
        const stored* from = x + at.tile * x_lines * TILE + lane;
        u64 sum = 0;
        for (int line = first; line < last; ++line)
            sum += mix(((u64)(line + 1) << 32) | bits_of(from[(size_t)line * TILE]));
        atomicAdd(hashes + at.tile * TILE + lane, sum);
    }
}

// Every living column puts its hash into the table, a power of two of slots, zeroed by the caller like
// `first`; slots[column] says where, and first[slot] holds ~column of the first one (a maximum).
extern "C" __global__ void __launch_bounds__(THREADS)
enter_columns(const u64* hashes, const u32* alive, const int* columns, u64* table, u32* first,
              u32* slots, u32 mask) {
    const int count = columns[0];
    for (int column = blockIdx.x * THREADS + threadIdx.x; column < count; column += gridDim.x * THREADS) {
        if (!is_alive(alive, column)) continue;
        const u64 key = hashes[column] ? hashes[column] : 1;  // zero is an empty slot
        u32 slot = (u32)(mix(key) >> 20) & mask;
        for (;;) {
            const u64 found = atomicCAS(table + slot, 0ull, key);
            if (found == 0 || found == key) break;
            slot = (slot + 1) & mask;
        }
        slots[column] = slot;
        atomicMax(first + slot, ~(u32)column);
    }
}

// differs[column] = 1 if a line of a candidate is another than its leader's; zeroed by the caller.
extern "C" __global__ void __launch_bounds__(THREADS)
compare_columns(const stored* x, const u32* alive, const int* columns, const u32* first, const u32* slots,
                int n, int x_lines, u8* differs) {
    const int lane = threadIdx.x % 32;
    const int pieces = (n + LINES - 1) / LINES, tiles = (columns[0] + TILE - 1) / TILE;
    for (Walk at = WARP_WALK(pieces); at.tile < tiles; at.next()) {
        const int column = (int)at.tile * TILE + lane;
        if (column >= columns[0] || !is_alive(alive, column)) continue;
        const int leader = (int)~first[slots[column]];
        if (leader == column) continue;
        const int start = at.item * LINES, last = min(start + LINES, n);
        const stored* own = x + at.tile * x_lines * TILE + lane;
        const stored* other = x + (size_t)(leader / TILE) * x_lines * TILE + leader % TILE;
        bool same = true;
        for (int line = start; line < last && same; ++line)
            same = bits_of(own[(size_t)line * TILE]) == bits_of(other[(size_t)line * TILE]);
        if (!same) differs[column] = 1;
    }
}

// Columns that are equal to their leader end here: merged[id] is the leader's id + 1; zeroed by the caller.
// A warp takes a tile.
extern "C" __global__ void __launch_bounds__(THREADS)
drop_equal(u32* alive, const int* columns, const u32* first, const u32* slots, const u8* differs,
           const int* ids, int* merged) {
    const int lane = threadIdx.x % 32, warps = gridDim.x * (THREADS / 32);
    const int tiles = (columns[0] + TILE - 1) / TILE;
    for (int tile = blockIdx.x * (THREADS / 32) + threadIdx.x / 32; tile < tiles; tile += warps) {
        const int column = tile * TILE + lane;
        const u32 bits = alive[tile];
        bool ends = false;
        if (column < columns[0] && (bits >> lane & 1u)) {
            const int leader = (int)~first[slots[column]];
            ends = leader != column && !differs[column];
            if (ends) merged[ids[column]] = ids[leader] + 1;
        }
        const u32 ending = __ballot_sync(0xffffffffu, ends);
        __syncwarp();  // all have read the word that is written now; a ballot alone orders no memory
        if (lane == 0) alive[tile] = bits & ~ending;
    }
}
