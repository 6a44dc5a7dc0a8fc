// Attention over tiles in 8 bits, four bytes and sixteen places at a time.

#include "attention_codes.h"

#ifdef HAS_AVX

#define TARGET AVX512

namespace {

INLINE AVX512 VecInts dot(VecInts sums, VecBytes u, VecBytes s) {
    return (VecInts)_mm512_dpbusd_epi32((__m512i)sums, (__m512i)u, (__m512i)s);
}

INLINE AVX512 Vec fused(Vec a, Vec b, Vec c) { return (Vec)_mm512_fmadd_ps((__m512)a, b, c); }

INLINE AVX512 void put_low(VecBits x, uint8_t* y) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(y), _mm512_cvtepi32_epi8((__m512i)x));
}

}  // namespace

#include "attention_codes_tiles.h"

const CodeKernels kCodesAvx512 = {score_tiles, mix_tiles};

#endif
