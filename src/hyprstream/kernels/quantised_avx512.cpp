// Products with packed weights, sixteen outputs and four inputs at a time.

#include "packed.h"

#ifdef HAS_AVX

namespace {

// Chains of products are short of registers to wait in: two tiles by four rows keep the
// multipliers busier than one by eight.
template <int64_t kBits, int64_t kGroup, bool kAffine, int64_t kTiles, int64_t kRows>
INLINE AVX512 void rows(const Packed& w, const uint8_t* tile, const Codes& x, int64_t row,
                        const Fetched& fetched, float* y) {
    constexpr int64_t kQuads = kGroup / kQuad;
    constexpr int64_t kCodeBytes = kTile * kGroup * kBits / 8;
    constexpr int64_t kGroupBytes = kCodeBytes + kTile * 2 * (kAffine ? 2 : 1);
    const int64_t groups = w.inputs / kGroup;
    const int64_t tile_bytes = groups * kGroupBytes;
    const int8_t* codes = x.codes + row * w.inputs;
    const float* scales = x.scales + row * groups;
    const float* group_sums = x.sums + row * groups;
    const int32_t* zeros = x.zeros + row * groups;
    const __m512i low_digits = _mm512_set1_epi8(15);
    __m512 sums[kTiles][kRows];
    for (int64_t t = 0; t < kTiles; ++t)
        for (int64_t r = 0; r < kRows; ++r) sums[t][r] = _mm512_setzero_ps();
    int64_t due = fetched.first;
    for (int64_t g = 0; g < groups; ++g, tile += kGroupBytes) {
        __m512i weights[kTiles][kQuads];
        __m512 steps[kTiles], offsets[kTiles];
#pragma GCC unroll 2
        for (int64_t t = 0; t < kTiles; ++t) {
            const uint8_t* group = tile + t * tile_bytes;
            for (int64_t byte = 0; byte < kGroupBytes && g == due; byte += 64)
                _mm_prefetch(reinterpret_cast<const char*>(group + fetched.ahead + byte),
                             _MM_HINT_T0);
            if (kBits == 8) {
#pragma GCC unroll 8
                for (int64_t q = 0; q < kQuads; ++q)
                    weights[t][q] = _mm512_loadu_si512(group + q * 64);
            } else {
#pragma GCC unroll 4
                for (int64_t q = 0; q < kQuads / 2; ++q) {
                    const __m512i both = _mm512_loadu_si512(group + q * 64);
                    weights[t][q] = _mm512_and_si512(both, low_digits);
                    weights[t][q + kQuads / 2] =
                        _mm512_and_si512(_mm512_srli_epi16(both, 4), low_digits);
                }
            }
            const __m256i* halves = reinterpret_cast<const __m256i*>(group + kCodeBytes);
            steps[t] = _mm512_cvtph_ps(_mm256_loadu_si256(halves));
            if (kAffine) offsets[t] = _mm512_cvtph_ps(_mm256_loadu_si256(halves + 1));
        }
        if (g == due) due += fetched.step;
#pragma GCC unroll 4
        for (int64_t r = 0; r < kRows; ++r) {
            const int64_t at = r * groups + g;
            const int8_t* row_codes = codes + r * w.inputs + g * kGroup;
            __m512i products[kTiles];
            for (int64_t t = 0; t < kTiles; ++t)
                products[t] = kAffine ? _mm512_setzero_si512() : _mm512_set1_epi32(zeros[at]);
#pragma GCC unroll 8
            for (int64_t q = 0; q < kQuads; ++q) {
                int32_t four;
                std::memcpy(&four, row_codes + q * kQuad, sizeof four);
                const __m512i inputs = _mm512_set1_epi32(four);
#pragma GCC unroll 2
                for (int64_t t = 0; t < kTiles; ++t)
                    products[t] = _mm512_dpbusd_epi32(products[t], weights[t][q], inputs);
            }
            const __m512 scale = _mm512_set1_ps(scales[at]);
#pragma GCC unroll 2
            for (int64_t t = 0; t < kTiles; ++t) {
                const __m512 scaled = _mm512_mul_ps(_mm512_cvtepi32_ps(products[t]), scale);
                sums[t][r] = _mm512_fmadd_ps(scaled, steps[t], sums[t][r]);
                if (kAffine)
                    sums[t][r] =
                        _mm512_fmadd_ps(offsets[t], _mm512_set1_ps(group_sums[at]), sums[t][r]);
            }
        }
    }
    const __m512 factor = _mm512_set1_ps(w.factor);
    for (int64_t t = 0; t < kTiles; ++t)
        for (int64_t r = 0; r < kRows; ++r)
            _mm512_storeu_ps(y + ((row + r) * kTiles + t) * kTile,
                             _mm512_mul_ps(sums[t][r], factor));
}

template <int64_t kBits, int64_t kGroup, bool kAffine, int64_t kTiles>
AVX512 void tiles(const Packed& w, const uint8_t* tile, const Codes& x, int64_t num_rows,
                     float* y) {
    Fetched fetched(w, kTiles, num_rows / 4 + num_rows % 4 / 2 + num_rows % 2);
    int64_t row = 0;
    for (; row + 4 <= num_rows; row += 4, fetched.next())
        rows<kBits, kGroup, kAffine, kTiles, 4>(w, tile, x, row, fetched, y);
    if (row + 2 <= num_rows) {
        rows<kBits, kGroup, kAffine, kTiles, 2>(w, tile, x, row, fetched, y);
        fetched.next();
        row += 2;
    }
    if (row < num_rows) rows<kBits, kGroup, kAffine, kTiles, 1>(w, tile, x, row, fetched, y);
}

template <int64_t kBits, int64_t kGroup, bool kAffine>
AVX512 void product(const Packed& w, const uint8_t* tile, int64_t num_tiles, const Codes& x,
                       int64_t num_rows, float* y) {
    if (num_tiles == 2)
        tiles<kBits, kGroup, kAffine, 2>(w, tile, x, num_rows, y);
    else
        tiles<kBits, kGroup, kAffine, 1>(w, tile, x, num_rows, y);
}

}  // namespace

CHOOSE_PRODUCT(avx512_product)

#endif
