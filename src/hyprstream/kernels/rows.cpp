// What happens to rows between products: norms, rotations, gates. All arithmetic is float.

#include <cmath>

#include "numbers.h"

namespace {

template <typename Number>
INLINE void rms_norm(const Number* x, const float* scale, float eps, int64_t num_rows,
                     int64_t width, Number* y) {
    for (int64_t row = 0; row < num_rows; ++row, x += width, y += width) {
        float lanes[kLanes] = {0};
        int64_t i = 0;
        for (; i + kLanes <= width; i += kLanes)
            for (int64_t lane = 0; lane < kLanes; ++lane)
                lanes[lane] += wide(x[i + lane]) * wide(x[i + lane]);
        for (int64_t lane = 0; i + lane < width; ++lane)
            lanes[lane] += wide(x[i + lane]) * wide(x[i + lane]);
        for (int64_t half = kLanes / 2; half > 0; half /= 2)
            for (int64_t lane = 0; lane < half; ++lane) lanes[lane] += lanes[lane + half];
        const float inverse = 1.0f / std::sqrt(lanes[0] / static_cast<float>(width) + eps);
        for (i = 0; i < width; ++i) narrow(wide(x[i]) * inverse * scale[i], y + i);
    }
}

// Pairs (i, i + turned / 2) of each head; what lies past `turned` stays.
template <typename Number>
INLINE void rotate(const Number* x, const Number* cosines, const Number* sines, int64_t num_rows,
                   int64_t heads, int64_t width, int64_t turned, Number* y) {
    const int64_t half = turned / 2;
    for (int64_t row = 0; row < num_rows; ++row, cosines += turned, sines += turned) {
        for (int64_t head = 0; head < heads; ++head, x += width, y += width) {
            for (int64_t i = 0; i < half; ++i) {
                const float first = wide(x[i]), second = wide(x[half + i]);
                narrow(first * wide(cosines[i]) + second * wide(sines[i]), y + i);
                narrow(second * wide(cosines[half + i]) + first * wide(sines[half + i]),
                       y + half + i);
            }
            for (int64_t i = turned; i < width; ++i) y[i] = x[i];
        }
    }
}

// silu(gate) * up.
template <typename Number>
INLINE void gate(const Number* x, const Number* up, int64_t count, Number* y) {
    for (int64_t i = 0; i < count; ++i) {
        const float value = wide(x[i]);
        const float magnitude = std::fabs(value);
        const float power = magnitude > 87.0f ? 0.0f : exponential(-magnitude);
        const float sigmoid = (value < 0.0f ? power : 1.0f) / (1.0f + power);
        narrow(value * sigmoid * wide(up[i]), y + i);
    }
}

#define FOR_NUMBERS(NUMBER, SUFFIX)                                                              \
    EVERY_PROCESSOR void rms_norm_##SUFFIX(const NUMBER* x, const float* scale, float eps,       \
                                           int64_t num_rows, int64_t width, NUMBER* y) {         \
        rms_norm(x, scale, eps, num_rows, width, y);                                             \
    }                                                                                            \
    EVERY_PROCESSOR void rotate_##SUFFIX(const NUMBER* x, const NUMBER* cosines,                 \
                                         const NUMBER* sines, int64_t num_rows, int64_t heads,   \
                                         int64_t width, int64_t turned, NUMBER* y) {             \
        rotate(x, cosines, sines, num_rows, heads, width, turned, y);                            \
    }                                                                                            \
    EVERY_PROCESSOR void gate_##SUFFIX(const NUMBER* x, const NUMBER* up, int64_t count,         \
                                       NUMBER* y) {                                              \
        gate(x, up, count, y);                                                                   \
    }

FOR_NUMBERS(float, float)
FOR_NUMBERS(Bfloat16, bfloat16)
#undef FOR_NUMBERS

}  // namespace

extern "C" {

// y = x / sqrt(mean of squares + eps) * scale, each of num_rows rows of `width`.
void hyprstream_rms_norm(int64_t kind, const void* x, const float* scale, float eps,
                         int64_t num_rows, int64_t width, void* y) {
    if (kind == 0)
        rms_norm_float(static_cast<const float*>(x), scale, eps, num_rows, width,
                       static_cast<float*>(y));
    else
        rms_norm_bfloat16(static_cast<const Bfloat16*>(x), scale, eps, num_rows, width,
                          static_cast<Bfloat16*>(y));
}

// y = x * cos + partner * sin for the first `turned` channels of each head; the partner of
// channel i is half of them away. x, y: rows x heads x width. cosines, sines: rows x turned.
void hyprstream_rotate(int64_t kind, const void* x, const void* cosines, const void* sines,
                       int64_t num_rows, int64_t heads, int64_t width, int64_t turned, void* y) {
    if (kind == 0)
        rotate_float(static_cast<const float*>(x), static_cast<const float*>(cosines),
                     static_cast<const float*>(sines), num_rows, heads, width, turned,
                     static_cast<float*>(y));
    else
        rotate_bfloat16(static_cast<const Bfloat16*>(x), static_cast<const Bfloat16*>(cosines),
                        static_cast<const Bfloat16*>(sines), num_rows, heads, width, turned,
                        static_cast<Bfloat16*>(y));
}

// y = silu(x) * up, number by number.
void hyprstream_gate(int64_t kind, const void* x, const void* up, int64_t count, void* y) {
    if (kind == 0)
        gate_float(static_cast<const float*>(x), static_cast<const float*>(up), count,
                   static_cast<float*>(y));
    else
        gate_bfloat16(static_cast<const Bfloat16*>(x), static_cast<const Bfloat16*>(up), count,
                      static_cast<Bfloat16*>(y));
}
}
