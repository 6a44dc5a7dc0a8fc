// Attention over tiles in 8 bits where bytes are multiplied in pairs, whose sums have 16 bits.

#include "attention_codes.h"

#ifdef HAS_AVX

#define TARGET AVX2

namespace {

// Bytes without a sign are taken in two halves: of up to 128 each, times 127, twice, is 32512.
INLINE AVX2 __m256i half_dot(__m256i sums, __m256i u, __m256i s) {
    const __m256i less = _mm256_and_si256(_mm256_srli_epi16(u, 1), _mm256_set1_epi8(127));
    const __m256i more = _mm256_sub_epi8(u, less), ones = _mm256_set1_epi16(1);
    const __m256i first = _mm256_madd_epi16(_mm256_maddubs_epi16(less, s), ones);
    const __m256i second = _mm256_madd_epi16(_mm256_maddubs_epi16(more, s), ones);
    return _mm256_add_epi32(sums, _mm256_add_epi32(first, second));
}

}  // namespace

#include "attention_codes_halves.h"

const CodeKernels kCodesAvx2 = {score_tiles, mix_tiles};

#endif
