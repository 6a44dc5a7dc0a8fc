// Attention over tiles in 8 bits with vectors of 32 bytes, two for sixteen places: for the files
// that say how these are multiplied. Those define TARGET and half_dot(sums, u, s).

#include "attention_codes.h"

namespace {

INLINE TARGET VecInts dot(VecInts sums, VecBytes u, VecBytes s) {
    __m256i sum[2], first[2], second[2];
    std::memcpy(sum, &sums, sizeof sums);
    std::memcpy(first, &u, sizeof u);
    std::memcpy(second, &s, sizeof s);
    for (int i = 0; i < 2; ++i) sum[i] = half_dot(sum[i], first[i], second[i]);
    std::memcpy(&sums, sum, sizeof sums);
    return sums;
}

INLINE TARGET Vec fused(Vec a, Vec b, Vec c) {
    __m256 x[2], y[2], z[2];
    std::memcpy(x, &a, sizeof a);
    std::memcpy(y, &b, sizeof b);
    std::memcpy(z, &c, sizeof c);
    for (int i = 0; i < 2; ++i) z[i] = _mm256_fmadd_ps(x[i], y[i], z[i]);
    std::memcpy(&c, z, sizeof c);
    return c;
}

INLINE TARGET void put_low(VecBits x, uint8_t* y) {
    __m256i both[2];
    std::memcpy(both, &x, sizeof x);
    const __m256i low = _mm256_set1_epi32(255);
    // Packing works on halves of vectors: their order is put right at the end.
    const __m256i words =
        _mm256_packus_epi32(_mm256_and_si256(both[0], low), _mm256_and_si256(both[1], low));
    const __m256i bytes = _mm256_packus_epi16(words, words);
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 0, 4, 1, 5);
    const __m256i sorted = _mm256_permutevar8x32_epi32(bytes, order);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(y), _mm256_castsi256_si128(sorted));
}

}  // namespace

#include "attention_codes_tiles.h"
