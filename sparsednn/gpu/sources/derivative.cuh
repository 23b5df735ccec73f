// f'(z) of an activation y = f(z), in terms of y; zero at the kinks of relu and clamped relu, as PyTorch
// has it. Bounds that are infinite are none: identity, relu.

#include "product.cuh"

__device__ __forceinline__ float derivative(float y, int code, float low, float high) {
    if (code == CLAMP) {
        const float none = __int_as_float(0x7f800000);
        return (low == -none || y > low) && (high == none || y < high) ? 1.0f : 0.0f;
    }
    if (code == SIGMOID) return y * (1.0f - y);
    if (code == TANH) return 1.0f - y * y;
    return 1.0f;
}
