// Products with dense weights, eight numbers at a time: sixteen sums are two vectors.

#include "dense.h"

#ifdef HAS_AVX

namespace {

INLINE AVX2 __m256 half_of(__m256i both, int64_t half) {
    const __m256i high = _mm256_set1_epi32(static_cast<int>(0xffff0000u));
    return _mm256_castsi256_ps(half ? _mm256_and_si256(both, high) : _mm256_slli_epi32(both, 16));
}

INLINE AVX2 float total_of(__m256 low, __m256 high) {
    const __m256 eight = _mm256_add_ps(low, high);
    const __m128 four =
        _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

// One step: `stride` lies between the weights of two outputs.
template <int64_t kOutputs, int64_t kRows>
INLINE AVX2 void step(const uint16_t* weights, int64_t stride, const float* rows,
                      int64_t row_stride, __m256 sums[kOutputs][kRows][2]) {
#pragma GCC unroll 2
    for (int64_t part = 0; part < 2; ++part)
#pragma GCC unroll 2
        for (int64_t half = 0; half < 2; ++half) {
            __m256 inputs[kRows];
#pragma GCC unroll 2
            for (int64_t r = 0; r < kRows; ++r)
                inputs[r] = _mm256_loadu_ps(rows + r * row_stride + half * kSums + part * 8);
#pragma GCC unroll 6
            for (int64_t o = 0; o < kOutputs; ++o) {
                const void* place = weights + o * stride + part * 16;
                const __m256 numbers =
                    half_of(_mm256_loadu_si256(static_cast<const __m256i*>(place)), half);
#pragma GCC unroll 2
                for (int64_t r = 0; r < kRows; ++r)
                    sums[o][r][part] = _mm256_fmadd_ps(numbers, inputs[r], sums[o][r][part]);
            }
        }
}

template <int64_t kOutputs, int64_t kRows>
AVX2 void tile(const Dense& w, int64_t output, const Rows& x, int64_t row, float* y) {
    const int64_t steps = w.inputs / kStep, rest = w.inputs % kStep;
    const uint16_t* weights = w.weights + output * w.inputs;
    const float* rows = x.at(row);
    __m256 sums[kOutputs][kRows][2];
    for (int64_t o = 0; o < kOutputs; ++o)
        for (int64_t r = 0; r < kRows; ++r) sums[o][r][0] = sums[o][r][1] = _mm256_setzero_ps();
    for (int64_t s = 0; s < steps; ++s, weights += kStep, rows += kStep) {
        if (row == 0) {
            const uint16_t* ahead = weights + fetched(w, kOutputs, s);
#pragma GCC unroll 6
            for (int64_t o = 0; o < kOutputs; ++o)
                _mm_prefetch(reinterpret_cast<const char*>(ahead + o * w.inputs), _MM_HINT_T0);
        }
        step<kOutputs, kRows>(weights, w.inputs, rows, x.stride, sums);
    }
    if (rest) {
        uint16_t last[kOutputs * kStep] = {0};
        for (int64_t o = 0; o < kOutputs; ++o)
            std::memcpy(last + o * kStep, weights + o * w.inputs, rest * sizeof *last);
        step<kOutputs, kRows>(last, kStep, rows, x.stride, sums);
    }
#pragma GCC unroll 6
    for (int64_t o = 0; o < kOutputs; ++o)
#pragma GCC unroll 2
        for (int64_t r = 0; r < kRows; ++r)
            y[(row + r) * kUnit + o] = total_of(sums[o][r][0], sums[o][r][1]);
}

}  // namespace

const DenseTiles kDenseAvx2 = {
    3, 2, {tile<3, 1>, tile<3, 2>}, {tile<1, 1>, tile<1, 2>},
};

#endif
