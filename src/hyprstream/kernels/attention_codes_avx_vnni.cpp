// Attention over tiles in 8 bits where four bytes are multiplied at a time, for eight places.

#include "attention_codes.h"

#ifdef HAS_AVX

#define TARGET AVX_VNNI

namespace {

INLINE AVX_VNNI __m256i half_dot(__m256i sums, __m256i u, __m256i s) {
    return _mm256_dpbusd_avx_epi32(sums, u, s);
}

}  // namespace

#include "attention_codes_halves.h"

const CodeKernels kCodesAvxVnni = {score_tiles, mix_tiles};

#endif
