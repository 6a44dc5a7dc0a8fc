// The way back through what happens to rows between products (rows.cpp). All arithmetic is float.

#include <cmath>

#include "numbers.h"

namespace {

INLINE float sum_of(float* lanes) {
    for (int64_t half = kLanes / 2; half > 0; half /= 2)
        for (int64_t lane = 0; lane < half; ++lane) lanes[lane] += lanes[lane + half];
    return lanes[0];
}

// With r = 1 / sqrt(mean of squares + eps): r * (g * scale - x * r^2 * mean of g * scale * x).
template <typename Number>
INLINE void rms_norm_gradient(const Number* x, const float* scale, float eps, const Number* grad,
                              int64_t num_rows, int64_t width, Number* y) {
    for (int64_t row = 0; row < num_rows; ++row, x += width, grad += width, y += width) {
        float squares[kLanes] = {0}, products[kLanes] = {0};
        for (int64_t first = 0; first < width; first += kLanes) {
            const int64_t count = width - first < kLanes ? width - first : kLanes;
            if (count == kLanes)
                for (int64_t i = 0; i < kLanes; ++i) {
                    const float value = wide(x[first + i]);
                    squares[i] += value * value;
                    products[i] += value * wide(grad[first + i]) * scale[first + i];
                }
            else
                for (int64_t i = 0; i < count; ++i) {
                    const float value = wide(x[first + i]);
                    squares[i] += value * value;
                    products[i] += value * wide(grad[first + i]) * scale[first + i];
                }
        }
        const float size = static_cast<float>(width);
        const float inverse = 1.0f / std::sqrt(sum_of(squares) / size + eps);
        const float along = sum_of(products) * inverse / size * inverse;
        for (int64_t i = 0; i < width; ++i)
            narrow((wide(grad[i]) * scale[i] - wide(x[i]) * along) * inverse, y + i);
    }
}

// Of silu(gate) * up, for both.
template <typename Number>
INLINE void gate_gradient(const Number* x, const Number* up, const float* grad, int64_t count,
                          Number* x_grad, Number* up_grad) {
    for (int64_t i = 0; i < count; ++i) {
        const float value = wide(x[i]);
        const float magnitude = std::fabs(value);
        const float power = magnitude > 87.0f ? 0.0f : exponential(-magnitude);
        const float inverse = 1.0f / (1.0f + power);
        const float sigmoid = (value < 0.0f ? power : 1.0f) * inverse;
        const float rest = (value < 0.0f ? 1.0f : power) * inverse;  // 1 - sigmoid, exactly
        const float let_through = value * sigmoid;
        narrow(grad[i] * let_through, up_grad + i);
        narrow(grad[i] * wide(up[i]) * (sigmoid + let_through * rest), x_grad + i);
    }
}

#define FOR_NUMBERS(NUMBER, SUFFIX)                                                               \
    EVERY_PROCESSOR void rms_norm_gradient_##SUFFIX(const NUMBER* x, const float* scale,          \
                                                    float eps, const NUMBER* grad,                \
                                                    int64_t num_rows, int64_t width, NUMBER* y) { \
        rms_norm_gradient(x, scale, eps, grad, num_rows, width, y);                               \
    }                                                                                             \
    EVERY_PROCESSOR void gate_gradient_##SUFFIX(const NUMBER* x, const NUMBER* up,                \
                                                const float* grad, int64_t count, NUMBER* x_grad, \
                                                NUMBER* up_grad) {                                \
        gate_gradient(x, up, grad, count, x_grad, up_grad);                                       \
    }

FOR_NUMBERS(float, float)
FOR_NUMBERS(Bfloat16, bfloat16)
#undef FOR_NUMBERS

}  // namespace

extern "C" {

// y = the gradient for x of what hyprstream_rms_norm makes of it, from that of its results.
void hyprstream_rms_norm_gradient(int64_t kind, const void* x, const float* scale, float eps,
                                  const void* grad, int64_t num_rows, int64_t width, void* y) {
    if (kind == 0)
        rms_norm_gradient_float(static_cast<const float*>(x), scale, eps,
                                static_cast<const float*>(grad), num_rows, width,
                                static_cast<float*>(y));
    else
        rms_norm_gradient_bfloat16(static_cast<const Bfloat16*>(x), scale, eps,
                                   static_cast<const Bfloat16*>(grad), num_rows, width,
                                   static_cast<Bfloat16*>(y));
}

// x_grad, up_grad = the gradients for what hyprstream_gate takes, from that of its results.
void hyprstream_gate_gradient(int64_t kind, const void* x, const void* up, const float* grad,
                              int64_t count, void* x_grad, void* up_grad) {
    if (kind == 0)
        gate_gradient_float(static_cast<const float*>(x), static_cast<const float*>(up), grad,
                            count, static_cast<float*>(x_grad), static_cast<float*>(up_grad));
    else
        gate_gradient_bfloat16(static_cast<const Bfloat16*>(x), static_cast<const Bfloat16*>(up),
                               grad, count, static_cast<Bfloat16*>(x_grad),
                               static_cast<Bfloat16*>(up_grad));
}
}
