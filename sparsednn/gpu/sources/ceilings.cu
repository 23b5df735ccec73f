// What a device can do at most: multiply-adds in registers, bytes through memory, loads from shared
// memory. Macros: THREADS of a block.

typedef long long i64;

// `rounds` × 64 fused multiply-adds of each thread, in eight independent chains.
extern "C" __global__ void __launch_bounds__(THREADS)
multiply_adds(float* out, int rounds, float factor) {
    float sum[8];
#pragma unroll
    for (int i = 0; i < 8; ++i) sum[i] = (float)(threadIdx.x + i);
    for (int round = 0; round < rounds; ++round)
#pragma unroll
        for (int step = 0; step < 8; ++step)
#pragma unroll
            for (int i = 0; i < 8; ++i) sum[i] = fmaf(sum[i], factor, 1.0f);
    float total = 0.0f;
#pragma unroll
    for (int i = 0; i < 8; ++i) total += sum[i];
    out[(i64)blockIdx.x * THREADS + threadIdx.x] = total;
}

// target = source, `count` vectors of four floats.
extern "C" __global__ void __launch_bounds__(THREADS)
copy_vectors(const float4* source, float4* target, i64 count) {
    const i64 step = (i64)gridDim.x * THREADS;
    for (i64 i = (i64)blockIdx.x * THREADS + threadIdx.x; i < count; i += step) target[i] = source[i];
}

// `rounds` × 8 loads of four floats of each thread from lines of shared memory that its team shares, as
// the product does. Which lines, a generator of random numbers says: the compiler cannot foresee them.
#define LINES 256
extern "C" __global__ void __launch_bounds__(THREADS)
shared_loads(float* out, int rounds) {
    __shared__ float4 lines[LINES * 8];
    for (int i = threadIdx.x; i < LINES * 8; i += THREADS) lines[i] = make_float4(i, i, i, i);
    __syncthreads();
    unsigned line = threadIdx.x / 8 + 1;
    float4 sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    for (int round = 0; round < rounds; ++round)
#pragma unroll
        for (int step = 0; step < 8; ++step) {
            line = line * 1664525u + 1013904223u;
            float4 four = lines[(line >> 24) * 8 + threadIdx.x % 8];
            sum.x += four.x, sum.y += four.y, sum.z += four.z, sum.w += four.w;
        }
    out[(i64)blockIdx.x * THREADS + threadIdx.x] = sum.x + sum.y + sum.z + sum.w;
}
