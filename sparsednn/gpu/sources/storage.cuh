// How activations and weights are stored, and lines of a tile.
//
// A tile holds TILE columns (images). Its activations are lines of TILE values, one line per neuron,
// one behind another: x[tile][neuron][column]. So a tile is contiguous, a line of float32 is one 128-byte
// cache line, and four columns are one vector of a thread. WIDTH is the columns of a line in the memory
// that is worked on: TILE in global memory, fewer in shared memory.
//
// A *team* is the WIDTH / 4 threads that together hold a line; it works on one bundle at a time.
//
// Macros: INDEX_BITS 16 or 32; STORE 0 float32, 1 float16, 2 bfloat16 (activations and weights).
// Sums are float32 always. No header is included: halves are converted by PTX instructions.

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long i64;

#define TILE 32

#ifndef INDEX_BITS
#define INDEX_BITS 32
#endif
#ifndef STORE
#define STORE 0
#endif

#if INDEX_BITS == 16
typedef u16 index_t;
#else
typedef u32 index_t;
#endif

#if STORE == 0
typedef float stored;
#else
typedef u16 stored;
#endif

__device__ __forceinline__ float widen(stored value) {
#if STORE == 0
    return value;
#elif STORE == 1
    float wide;
    asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(value));
    return wide;
#else
    return __uint_as_float((u32)value << 16);
#endif
}

// Rounds to nearest, ties to even. Beyond float16's range the result is infinite.
__device__ __forceinline__ stored narrow(float value) {
#if STORE == 0
    return value;
#elif STORE == 1
    u16 half;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(half) : "f"(value));
    return half;
#else
    u32 bits = __float_as_uint(value);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return (u16)((bits >> 16) | 0x40u);  // NaN stays NaN
    return (u16)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
#endif
}

struct Four {
    float v[4];
};

// Four neighbouring columns of a line; the address is a multiple of four values.
__device__ __forceinline__ Four load_four(const stored* from) {
    Four four;
#if STORE == 0
    float4 raw = *reinterpret_cast<const float4*>(from);
    four.v[0] = raw.x, four.v[1] = raw.y, four.v[2] = raw.z, four.v[3] = raw.w;
#else
    uint2 raw = *reinterpret_cast<const uint2*>(from);
    four.v[0] = widen((u16)raw.x), four.v[1] = widen((u16)(raw.x >> 16));
    four.v[2] = widen((u16)raw.y), four.v[3] = widen((u16)(raw.y >> 16));
#endif
    return four;
}

__device__ __forceinline__ void store_four(stored* to, const float* v) {
#if STORE == 0
    *reinterpret_cast<float4*>(to) = make_float4(v[0], v[1], v[2], v[3]);
#else
    *reinterpret_cast<uint2*>(to) = make_uint2((u32)narrow(v[0]) | ((u32)narrow(v[1]) << 16),
                                               (u32)narrow(v[2]) | ((u32)narrow(v[3]) << 16));
#endif
}

// Items of all tiles, `each` per tile (lines, or chunks of work), dealt out in steps: division is slow, so
// there is one at the beginning. Without items (a rank may have no line) the walk is over at once.
struct Walk {
    i64 tile;
    int item, each, far;
    i64 tiles_far;

    __device__ __forceinline__ Walk(i64 start, i64 step, int each) : each(each) {
        if (each == 0) {
            tile = (i64)1 << 62, item = far = 0, tiles_far = 0;
            return;
        }
        tile = start / each, item = (int)(start - tile * each);
        tiles_far = step / each, far = (int)(step - tiles_far * each);
    }

    __device__ __forceinline__ void next() {
        tile += tiles_far, item += far;
        if (item >= each) item -= each, ++tile;
    }
};

// The warps of a grid that walk over the lines of all tiles together.
#define WARP_WALK(each) \
    Walk((i64)blockIdx.x * (THREADS / 32) + threadIdx.x / 32, (i64)gridDim.x * (THREADS / 32), each)
