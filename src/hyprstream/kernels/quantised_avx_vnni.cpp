// Products with packed weights where four bytes are multiplied at a time, for eight outputs.

#include "instructions.h"
#include "numbers.h"

#ifdef HAS_AVX

#define TARGET AVX_VNNI

namespace {

// Of low and of high digits apart, so that one is added to while the other is at work.
struct Products {
    __m256i low, high;
};

INLINE AVX_VNNI Products nothing() {
    return {_mm256_setzero_si256(), _mm256_setzero_si256()};
}

template <int64_t kBits>
INLINE AVX_VNNI void add(Products& products, __m256i codes, __m256i inputs, __m256i others) {
    if (kBits == 8) {
        products.low = _mm256_dpbusd_avx_epi32(products.low, codes, inputs);
        return;
    }
    const __m256i digits = _mm256_set1_epi8(15);
    const __m256i low = _mm256_and_si256(codes, digits);
    const __m256i high = _mm256_and_si256(_mm256_srli_epi16(codes, 4), digits);
    products.low = _mm256_dpbusd_avx_epi32(products.low, low, inputs);
    products.high = _mm256_dpbusd_avx_epi32(products.high, high, others);
}

template <int64_t kBits>
INLINE AVX_VNNI __m256i total(const Products& products) {
    return kBits == 8 ? products.low : _mm256_add_epi32(products.low, products.high);
}

}  // namespace

#include "quantised_eights.h"

CHOOSE_PRODUCT(avx_vnni_product)

#endif
