// Products with dense weights, sixteen numbers at a time.
//
// AVX512_BF16 is left aside: it takes the smallest numbers for zeros, and rounds otherwise than
// other instructions can.

#include "dense.h"

#ifdef HAS_AVX

namespace {

INLINE __attribute__((target("avx512f"))) __m512 half_of(__m512i both, int64_t half) {
    const __m512i high = _mm512_set1_epi32(static_cast<int>(0xffff0000u));
    return _mm512_castsi512_ps(half ? _mm512_and_si512(both, high) : _mm512_slli_epi32(both, 16));
}

INLINE AVX512 float total_of(__m512 sums) {
    const __m256 high = _mm512_extractf32x8_ps(sums, 1);
    const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(sums), high);
    const __m128 four =
        _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

// 24 sums, 6 vectors of weights and one of inputs: what registers hold.
template <int64_t kOutputs, int64_t kRows>
AVX512 void tile(const Dense& w, int64_t output, const Rows& x, int64_t row, float* y) {
    const int64_t steps = w.inputs / kStep;
    const uint16_t* weights = w.weights + output * w.inputs;
    const float* rows = x.at(row);
    __m512 sums[kOutputs][kRows];
    for (int64_t o = 0; o < kOutputs; ++o)
        for (int64_t r = 0; r < kRows; ++r) sums[o][r] = _mm512_setzero_ps();
    for (int64_t s = 0; s < steps; ++s, weights += kStep, rows += kStep) {
        if (row == 0) {
            const uint16_t* ahead = weights + fetched(w, kOutputs, s);
#pragma GCC unroll 6
            for (int64_t o = 0; o < kOutputs; ++o)
                _mm_prefetch(reinterpret_cast<const char*>(ahead + o * w.inputs), _MM_HINT_T0);
        }
#pragma GCC unroll 2
        for (int64_t half = 0; half < 2; ++half) {
            __m512 numbers[kOutputs];
#pragma GCC unroll 6
            for (int64_t o = 0; o < kOutputs; ++o)
                numbers[o] = half_of(_mm512_loadu_si512(weights + o * w.inputs), half);
#pragma GCC unroll 4
            for (int64_t r = 0; r < kRows; ++r) {
                const __m512 inputs = _mm512_loadu_ps(rows + r * x.stride + half * kSums);
#pragma GCC unroll 6
                for (int64_t o = 0; o < kOutputs; ++o)
                    sums[o][r] = _mm512_fmadd_ps(numbers[o], inputs, sums[o][r]);
            }
        }
    }
    if (w.inputs % kStep) {
        const __mmask32 mask = (1u << (w.inputs % kStep)) - 1u;
        for (int64_t o = 0; o < kOutputs; ++o) {
            const __m512i both = _mm512_maskz_loadu_epi16(mask, weights + o * w.inputs);
            for (int64_t half = 0; half < 2; ++half)
                for (int64_t r = 0; r < kRows; ++r) {
                    const __m512 inputs = _mm512_loadu_ps(rows + r * x.stride + half * kSums);
                    sums[o][r] = _mm512_fmadd_ps(half_of(both, half), inputs, sums[o][r]);
                }
        }
    }
#pragma GCC unroll 6
    for (int64_t o = 0; o < kOutputs; ++o)
#pragma GCC unroll 4
        for (int64_t r = 0; r < kRows; ++r) y[(row + r) * kUnit + o] = total_of(sums[o][r]);
}

}  // namespace

const DenseTiles kDenseAvx512 = {
    6,
    4,
    {tile<6, 1>, tile<6, 2>, tile<6, 3>, tile<6, 4>},
    {tile<1, 1>, tile<1, 2>, tile<1, 3>, tile<1, 4>},
};

#endif
