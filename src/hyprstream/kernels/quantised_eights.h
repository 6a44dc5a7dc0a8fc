// Products with packed weights, eight outputs at a time: for the files that say how bytes are
// multiplied. Those define
//
//     TARGET             which instructions they are compiled for
//     Products           sums of the products of a group, for eight outputs
//     nothing            Products of nothing
//     add<bits>          adds products of a vector of codes: with 8 bits those with one four of
//                        inputs, with 4 bits those of low digits with one, of high with another
//     total<bits>        the sums, as integers of 32 bits
//
// A tile is read twice, one half of its outputs after the other; the second time it is near.

#include "packed.h"

namespace {

INLINE TARGET __m256i four_inputs(const int8_t* codes) {
    int32_t four;
    std::memcpy(&four, codes, sizeof four);
    return _mm256_set1_epi32(four);
}

INLINE TARGET __m256 eight_halves(const uint8_t* bytes) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes)));
}

template <int64_t kBits, int64_t kGroup, bool kAffine, int64_t kRows>
INLINE TARGET void half_tile(const Packed& w, const uint8_t* tile, int64_t half, const Codes& x,
                             int64_t row, float* y, int64_t stride) {
    constexpr int64_t kCodeBytes = kTile * kGroup * kBits / 8;
    constexpr int64_t kGroupBytes = kCodeBytes + kTile * 2 * (kAffine ? 2 : 1);
    const int64_t groups = w.inputs / kGroup;
    const bool fetches = row == 0 && half == 0;
    __m256 sums[kRows];
    for (int64_t r = 0; r < kRows; ++r) sums[r] = _mm256_setzero_ps();
    for (int64_t g = 0; g < groups; ++g, tile += kGroupBytes) {
        for (int64_t byte = 0; byte < kGroupBytes && fetches; byte += 64)
            _mm_prefetch(reinterpret_cast<const char*>(tile + kAhead + byte), _MM_HINT_T0);
        const int8_t* inputs = x.codes + row * w.inputs + g * kGroup;
        Products products[kRows];
        for (int64_t r = 0; r < kRows; ++r) products[r] = nothing();
#pragma GCC unroll 8
        for (int64_t q = 0; q < kCodeBytes / 64; ++q) {
            const uint8_t* place = tile + q * 64 + half * 32;
            const __m256i codes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(place));
#pragma GCC unroll 4
            for (int64_t r = 0; r < kRows; ++r) {
                const int8_t* four = inputs + r * w.inputs + q * kQuad;
                // Of 4 bits, the high digits are for the second half of the group.
                const int8_t* others = kBits == 4 ? four + kGroup / 2 : four;
                add<kBits>(products[r], codes, four_inputs(four), four_inputs(others));
            }
        }
        const uint8_t* scales = tile + kCodeBytes + half * 16;
        const __m256 steps = eight_halves(scales);
        const __m256 offsets = kAffine ? eight_halves(scales + kTile * 2) : steps;
#pragma GCC unroll 4
        for (int64_t r = 0; r < kRows; ++r) {
            const int64_t at = (row + r) * groups + g;
            __m256i product = total<kBits>(products[r]);
            if (!kAffine) product = _mm256_add_epi32(product, _mm256_set1_epi32(x.zeros[at]));
            const __m256 scaled =
                _mm256_mul_ps(_mm256_cvtepi32_ps(product), _mm256_set1_ps(x.scales[at]));
            sums[r] = _mm256_fmadd_ps(scaled, steps, sums[r]);
            if (kAffine) sums[r] = _mm256_fmadd_ps(offsets, _mm256_set1_ps(x.sums[at]), sums[r]);
        }
    }
    const __m256 factor = _mm256_set1_ps(w.factor);
    for (int64_t r = 0; r < kRows; ++r)
        _mm256_storeu_ps(y + (row + r) * stride + half * 8, _mm256_mul_ps(sums[r], factor));
}

template <int64_t kBits, int64_t kGroup, bool kAffine, int64_t kRows>
TARGET void rows(const Packed& w, const uint8_t* tile, const Codes& x, int64_t row, float* y,
                 int64_t stride) {
    for (int64_t half = 0; half < 2; ++half)
        half_tile<kBits, kGroup, kAffine, kRows>(w, tile, half, x, row, y, stride);
}

template <int64_t kBits, int64_t kGroup, bool kAffine>
void product(const Packed& w, const uint8_t* tile, int64_t num_tiles, const Codes& x,
             int64_t num_rows, float* y) {
    const int64_t stride = num_tiles * kTile;
    for (int64_t t = 0; t < num_tiles; ++t, tile += w.tile_bytes(), y += kTile) {
        int64_t row = 0;
        for (; row + 4 <= num_rows; row += 4)
            rows<kBits, kGroup, kAffine, 4>(w, tile, x, row, y, stride);
        if (row + 2 <= num_rows) {
            rows<kBits, kGroup, kAffine, 2>(w, tile, x, row, y, stride);
            row += 2;
        }
        if (row < num_rows) rows<kBits, kGroup, kAffine, 1>(w, tile, x, row, y, stride);
    }
}

}  // namespace
