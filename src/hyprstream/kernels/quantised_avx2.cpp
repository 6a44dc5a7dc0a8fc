// Products with packed weights where bytes are multiplied in pairs, whose sums have 16 bits.
//
// A code of 8 bits times 127, twice, is too much for these. Codes are therefore taken by their
// digits of 4 bits: a group of 32 sums up to 16 * 15 * 128 = 30720, which fits.

#include "instructions.h"
#include "numbers.h"

#ifdef HAS_AVX

#define TARGET AVX2

namespace {

struct Products {
    __m256i low, high;  // of digits, in 16 bits
};

INLINE AVX2 Products nothing() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }

template <int64_t kBits>
INLINE AVX2 void add(Products& products, __m256i codes, __m256i inputs, __m256i others) {
    const __m256i digits = _mm256_set1_epi8(15);
    const __m256i low = _mm256_and_si256(codes, digits);
    const __m256i high = _mm256_and_si256(_mm256_srli_epi16(codes, 4), digits);
    products.low = _mm256_add_epi16(products.low, _mm256_maddubs_epi16(low, inputs));
    __m256i& rest = kBits == 4 ? products.low : products.high;
    rest = _mm256_add_epi16(rest, _mm256_maddubs_epi16(high, others));
}

template <int64_t kBits>
INLINE AVX2 __m256i total(const Products& products) {
    const __m256i low = _mm256_madd_epi16(products.low, _mm256_set1_epi16(1));
    if (kBits == 4) return low;
    return _mm256_add_epi32(low, _mm256_madd_epi16(products.high, _mm256_set1_epi16(16)));
}

}  // namespace

#include "quantised_eights.h"

CHOOSE_PRODUCT(avx2_product)

#endif
