// Optimizers on the flat array of parameters, and the norm of the gradient; formulas as in
// training/optimizers.py. Arrays have a multiple of four elements; padding is zero in all, and stays so.
//
// A step whose loss (or norm, where gradients are shortened) is no finite number changes nothing: the
// host sees the numbers, and ends the training.
//
// Macros: THREADS.

#include "storage.cuh"
#include "orders.cuh"

// Added to the norm, as PyTorch's clip_grad_norm_ does.
#define TINY_NORM 1e-6

__device__ __forceinline__ bool is_finite(double number) { return number - number == 0.0; }

// sums[block] = sum of squares of a part of the array, float64. The number of blocks belongs to the
// result, so it is always the same (training/device_stepper.py, _NORM_BLOCKS).
extern "C" __global__ void __launch_bounds__(THREADS)
squared_norm(const float* array, i64 n, double* sums) {
    __shared__ double part[THREADS];
    double sum = 0.0;
    for (i64 i = (i64)blockIdx.x * THREADS + threadIdx.x; i < n; i += (i64)gridDim.x * THREADS)
        sum += (double)array[i] * array[i];
    part[threadIdx.x] = sum;
    for (int far = THREADS / 2; far > 0; far /= 2) {
        __syncthreads();
        if (threadIdx.x < far) part[threadIdx.x] += part[threadIdx.x + far];
    }
    if (threadIdx.x == 0) sums[blockIdx.x] = part[0];
}

// results[SQUARED_NORM] = the sum of n sums. One block.
extern "C" __global__ void __launch_bounds__(THREADS)
add_squares(const double* sums, int n, double* results) {
    __shared__ double part[THREADS];
    double sum = 0.0;
    for (int i = threadIdx.x; i < n; i += THREADS) sum += sums[i];
    part[threadIdx.x] = sum;
    for (int far = THREADS / 2; far > 0; far /= 2) {
        __syncthreads();
        if (threadIdx.x < far) part[threadIdx.x] += part[threadIdx.x + far];
    }
    if (threadIdx.x == 0) results[SQUARED_NORM] = part[0];
}

// What the gradient is multiplied with; false: leave everything as it is.
__device__ __forceinline__ bool find_scale(const int* orders, const double* results, float& scale) {
    if (!is_finite(results[LOSS])) return false;
    scale = __int_as_float(orders[SCALE]);
    const float clip = __int_as_float(orders[CLIP]);
    if (clip != 0.0f) {
        const double norm = sqrt(results[SQUARED_NORM]);
        if (!is_finite(norm)) return false;
        scale *= (float)fmin(1.0, clip / (norm + TINY_NORM));
    }
    return true;
}

// g = scale * gradient + decay * theta; b = momentum * b + g; theta -= rate * b, or with Nesterov
// theta -= rate * (g + momentum * b). Without b: theta -= rate * g. n counts vectors of four.
extern "C" __global__ void __launch_bounds__(THREADS)
update_sgd(float4* theta, const float4* gradient, float4* buffer, const int* orders, const double* results,
           i64 n, float decay, float momentum, int nesterov) {
    float scale;
    if (!find_scale(orders, results, scale)) return;
    const float rate = __int_as_float(orders[RATE]);
    for (i64 i = (i64)blockIdx.x * THREADS + threadIdx.x; i < n; i += (i64)gridDim.x * THREADS) {
        float4 t = theta[i], g = gradient[i], b = buffer ? buffer[i] : t;
        float *at = &t.x, *slope = &g.x, *kept = &b.x;
#pragma unroll
        for (int c = 0; c < 4; ++c) {
            const float grown = scale * slope[c] + decay * at[c];
            float way = grown;
            if (buffer) {
                way = momentum * kept[c] + grown;
                kept[c] = way;
                if (nesterov) way = momentum * way + grown;
            }
            at[c] -= rate * way;
        }
        if (buffer) buffer[i] = b;
        theta[i] = t;
    }
}

// Adam: m = beta1 m + (1 - beta1) g; v = beta2 v + (1 - beta2) g^2;
// theta -= RATE * m / (sqrt(v) / CORRECTION + epsilon). keep and take are beta and 1 - beta.
extern "C" __global__ void __launch_bounds__(THREADS)
update_adam(float4* theta, const float4* gradient, float4* first, float4* second, const int* orders,
            const double* results, i64 n, float decay, float keep1, float take1, float keep2, float take2,
            float epsilon) {
    float scale;
    if (!find_scale(orders, results, scale)) return;
    const float rate = __int_as_float(orders[RATE]), correction = __int_as_float(orders[CORRECTION]);
    for (i64 i = (i64)blockIdx.x * THREADS + threadIdx.x; i < n; i += (i64)gridDim.x * THREADS) {
        float4 t = theta[i], g = gradient[i], m = first[i], v = second[i];
        float *at = &t.x, *slope = &g.x, *mean = &m.x, *square = &v.x;
#pragma unroll
        for (int c = 0; c < 4; ++c) {
            const float grown = scale * slope[c] + decay * at[c];
            mean[c] = keep1 * mean[c] + take1 * grown;
            square[c] = keep2 * square[c] + take2 * (grown * grown);
            at[c] -= rate * (mean[c] / (sqrtf(square[c]) / correction + epsilon));
        }
        first[i] = m, second[i] = v, theta[i] = t;
    }
}
