// Low-rank adapters of a few rows, 32 products of bfloat16 at a time.
//
// Sums are float; what comes of A is rounded to bfloat16 before it goes on to B, as torch does. The
// smallest numbers count as zeros, as these instructions take them. Memory is read in the order in
// which it lies: what lies ahead is fetched, by these lines and by the processor itself.

#include <vector>

#include "low_rank.h"

#ifdef HAS_AVX

#define AVX512_BF16 \
    __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,fma,f16c")))

namespace {

constexpr int64_t kStep = 32;     // numbers in a vector
constexpr int64_t kSide = 8;      // ranks whose sums are added up together
constexpr int64_t kRows = 4;      // rows that use what was read; their sums stay near
constexpr int64_t kFetched = kAhead / 2;

INLINE AVX512_BF16 __m512i numbers(const Bfloat16* from, __mmask32 mask) {
    return _mm512_maskz_loadu_epi16(mask, from);
}

INLINE __mmask32 mask_of(int64_t left) {
    return left >= kStep ? ~__mmask32{0} : (__mmask32{1} << left) - 1;
}

INLINE AVX512_BF16 void fetch_from(const Bfloat16* place) {
    _mm_prefetch(reinterpret_cast<const char*>(place) + kFetched, _MM_HINT_T0);
}

// Products of a row with a rank, in sixteen sums. Processors look far enough ahead to compute
// those of the next ranks meanwhile.
INLINE AVX512_BF16 __m512 dot(const Bfloat16* x, const Bfloat16* a, int64_t inputs) {
    __m512 even = _mm512_setzero_ps(), odd = _mm512_setzero_ps();
    int64_t place = 0;
    for (; place + 2 * kStep <= inputs; place += 2 * kStep) {
        const Bfloat16 *next_x = x + place + kStep, *next_a = a + place + kStep;
        fetch_from(a + place);
        fetch_from(next_a);
        even = _mm512_dpbf16_ps(even, (__m512bh)_mm512_loadu_si512(x + place),
                                (__m512bh)_mm512_loadu_si512(a + place));
        odd = _mm512_dpbf16_ps(odd, (__m512bh)_mm512_loadu_si512(next_x),
                               (__m512bh)_mm512_loadu_si512(next_a));
    }
    for (; place < inputs; place += kStep) {
        const __mmask32 mask = mask_of(inputs - place);
        even = _mm512_dpbf16_ps(even, (__m512bh)numbers(x + place, mask),
                                (__m512bh)numbers(a + place, mask));
    }
    return _mm512_add_ps(even, odd);
}

// The sums of each of eight vectors.
INLINE AVX512_BF16 __m256 totals(const __m512* sums) {
    __m512 pairs[4], fours[2];
    for (int64_t i = 0; i < 4; ++i)
        pairs[i] = _mm512_add_ps(_mm512_shuffle_f32x4(sums[2 * i], sums[2 * i + 1], 0x44),
                                 _mm512_shuffle_f32x4(sums[2 * i], sums[2 * i + 1], 0xee));
    for (int64_t i = 0; i < 2; ++i)
        fours[i] = _mm512_add_ps(_mm512_shuffle_f32x4(pairs[2 * i], pairs[2 * i + 1], 0x88),
                                 _mm512_shuffle_f32x4(pairs[2 * i], pairs[2 * i + 1], 0xdd));
    const __m512 twos = _mm512_add_ps(_mm512_unpacklo_ps(fours[0], fours[1]),
                                      _mm512_unpackhi_ps(fours[0], fours[1]));
    const __m512 ones = _mm512_add_ps(twos, _mm512_permute_ps(twos, 0x4e));
    // The first of each four is a sum of the first four vectors, the second of the last four.
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 0, 0, 0, 0, 0, 0, 0, 0);
    return _mm512_castps512_ps256(_mm512_permutexvar_ps(order, ones));
}

// Products of a row with up to eight ranks.
INLINE AVX512_BF16 void dots(const Bfloat16* x, const Bfloat16* a, int64_t inputs, int64_t num_ranks,
                             Bfloat16* factors) {
    __m512 sums[kSide];
    float results[kSide];
    for (int64_t i = 0; i < kSide; ++i)
        sums[i] = i < num_ranks ? dot(x, a + i * inputs, inputs) : _mm512_setzero_ps();
    _mm256_storeu_ps(results, totals(sums));
    for (int64_t i = 0; i < kSide; ++i) narrow(results[i], factors + i);
}

// sums += what two ranks add to outputs; of each 32, sums are in the order in which vectors of 16
// bits are unpacked.
INLINE AVX512_BF16 void add(const Bfloat16* factors, const Bfloat16* first, const Bfloat16* second,
                            int64_t outputs, float* sums) {
    int32_t two;
    std::memcpy(&two, factors, sizeof two);
    const __m512bh both = (__m512bh)_mm512_set1_epi32(two);
    for (int64_t place = 0; place < outputs; place += kStep) {
        const __mmask32 mask = mask_of(outputs - place);
        fetch_from(first + place);
        fetch_from(second + place);
        const __m512i one = numbers(first + place, mask), other = numbers(second + place, mask);
        const __m512bh low = (__m512bh)_mm512_unpacklo_epi16(one, other);
        const __m512bh high = (__m512bh)_mm512_unpackhi_epi16(one, other);
        float *at = sums + place, *next = at + kStep / 2;
        _mm512_storeu_ps(at, _mm512_dpbf16_ps(_mm512_loadu_ps(at), low, both));
        _mm512_storeu_ps(next, _mm512_dpbf16_ps(_mm512_loadu_ps(next), high, both));
    }
}

INLINE AVX512_BF16 __m512 floats(__m256i numbers) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(numbers), 16));
}

// y += sums, in the order of `add`.
INLINE AVX512_BF16 void put(const float* sums, int64_t outputs, Bfloat16* y) {
    const __m512i low = _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
    const __m512i high = _mm512_add_epi32(low, _mm512_set1_epi32(8));
    for (int64_t place = 0; place < outputs; place += kStep) {
        const __mmask32 mask = mask_of(outputs - place);
        const __m512i before = numbers(y + place, mask);
        const __m512 one = _mm512_loadu_ps(sums + place);
        const __m512 other = _mm512_loadu_ps(sums + place + kStep / 2);
        const __m512 first = _mm512_add_ps(floats(_mm512_castsi512_si256(before)),
                                           _mm512_permutex2var_ps(one, low, other));
        const __m512 second = _mm512_add_ps(floats(_mm512_extracti64x4_epi64(before, 1)),
                                            _mm512_permutex2var_ps(one, high, other));
        _mm512_mask_storeu_epi16(y + place, mask, (__m512i)_mm512_cvtne2ps_pbh(second, first));
    }
}

}  // namespace

AVX512_BF16 void low_rank_avx512_bf16(const void* x, const void* a, const void* b, void* y,
                                      int64_t inputs, int64_t outputs, const RankGroup& group) {
    thread_local std::vector<Bfloat16> factors;
    thread_local std::vector<float> sums;
    const int64_t num_ranks = group.end - group.begin;
    const Bfloat16* in = static_cast<const Bfloat16*>(a) + group.begin * inputs;
    const Bfloat16* out = static_cast<const Bfloat16*>(b) + group.begin * outputs;
    // Ranks and outputs fill vectors, and pairs of ranks: what is beyond them is not used.
    const int64_t stride = num_ranks + kSide, width = outputs + kStep;
    for (int64_t done = 0; done < group.num_rows; done += kRows) {
        const int32_t* rows = group.rows + done;
        const int64_t left = group.num_rows - done, count = left < kRows ? left : kRows;
        factors.assign(count * stride, Bfloat16{0});
        sums.assign(count * width, 0.0f);
        for (int64_t rank = 0; rank < num_ranks; rank += kSide)
            for (int64_t row = 0; row < count; ++row)
                dots(static_cast<const Bfloat16*>(x) + rows[row] * inputs, in + rank * inputs,
                     inputs, num_ranks - rank, factors.data() + row * stride + rank);
        for (int64_t rank = 0; rank < num_ranks; rank += 2) {
            const Bfloat16* first = out + rank * outputs;
            const Bfloat16* second = rank + 1 < num_ranks ? first + outputs : first;
            for (int64_t row = 0; row < count; ++row)
                add(factors.data() + row * stride + rank, first, second, outputs,
                    sums.data() + row * width);
        }
        for (int64_t row = 0; row < count; ++row)
            put(sums.data() + row * width, outputs,
                static_cast<Bfloat16*>(y) + rows[row] * outputs);
    }
}

#endif
