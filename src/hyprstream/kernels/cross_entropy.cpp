// The cross entropy of rows of logits, and its gradient in their place. All arithmetic is float.

#include <cmath>

#include "numbers.h"

namespace {

template <typename Number>
INLINE float largest(const Number* x, int64_t count) {
    float lanes[kLanes];
    for (int64_t lane = 0; lane < kLanes; ++lane) lanes[lane] = -INFINITY;
    int64_t i = 0;
    for (; i + kLanes <= count; i += kLanes)
        for (int64_t lane = 0; lane < kLanes; ++lane) {
            const float value = wide(x[i + lane]);
            lanes[lane] = value > lanes[lane] ? value : lanes[lane];
        }
    for (int64_t lane = 0; i + lane < count; ++lane) {
        const float value = wide(x[i + lane]);
        lanes[lane] = value > lanes[lane] ? value : lanes[lane];
    }
    float result = lanes[0];
    for (int64_t lane = 1; lane < kLanes; ++lane)
        result = lanes[lane] > result ? lanes[lane] : result;
    return result;
}

// Sums of many small numbers: each lane takes one in sixty-four, in float; all of them, in double.
template <typename Number>
INLINE double sum_of_powers(const Number* x, int64_t count, float top) {
    float lanes[kLanes] = {0};
    int64_t i = 0;
    for (; i + kLanes <= count; i += kLanes)
        for (int64_t lane = 0; lane < kLanes; ++lane)
            lanes[lane] += exponential(wide(x[i + lane]) - top);
    for (int64_t lane = 0; i + lane < count; ++lane)
        lanes[lane] += exponential(wide(x[i + lane]) - top);
    double sum = 0;
    for (int64_t lane = 0; lane < kLanes; ++lane) sum += lanes[lane];
    return sum;
}

template <typename Number>
INLINE void cross_entropy(Number* x, const int64_t* targets, const float* factors,
                          int64_t num_rows, int64_t count, float* losses) {
    for (int64_t row = 0; row < num_rows; ++row, x += count) {
        const float top = largest(x, count), chosen = wide(x[targets[row]]);
        const double sum = sum_of_powers(x, count, top);
        losses[row] = static_cast<float>(std::log(sum) + (static_cast<double>(top) - chosen));
        const float factor = factors[row], share = factor / static_cast<float>(sum);
        for (int64_t i = 0; i < count; ++i) narrow(exponential(wide(x[i]) - top) * share, x + i);
        narrow(exponential(chosen - top) * share - factor, x + targets[row]);
    }
}

EVERY_PROCESSOR void cross_entropy_floats(float* x, const int64_t* targets, const float* factors,
                                          int64_t num_rows, int64_t count, float* losses) {
    cross_entropy(x, targets, factors, num_rows, count, losses);
}

EVERY_PROCESSOR void cross_entropy_bfloats(Bfloat16* x, const int64_t* targets,
                                           const float* factors, int64_t num_rows, int64_t count,
                                           float* losses) {
    cross_entropy(x, targets, factors, num_rows, count, losses);
}

}  // namespace

extern "C" {

// losses[row] = -log softmax(x[row])[targets[row]]; x[row] becomes the gradient of that times
// factors[row]. x: num_rows x count, changed.
void hyprstream_cross_entropy(int64_t kind, void* x, const int64_t* targets, const float* factors,
                              int64_t num_rows, int64_t count, float* losses) {
    if (kind == 0)
        cross_entropy_floats(static_cast<float*>(x), targets, factors, num_rows, count, losses);
    else
        cross_entropy_bfloats(static_cast<Bfloat16*>(x), targets, factors, num_rows, count,
                              losses);
}
}
