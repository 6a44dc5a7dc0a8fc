// Keys and values in 8 bits, as they lie for the kernels: see engine/eight_bits.py.
//
// Sixteen places make a tile. For each key head, one after the other, it holds
//
//     keys     [width / 4][16 places][4] codes, 128 above their own
//     values   [4][width][4 places] codes, with a sign
//
// and then [width / 32][16 places] scales in bfloat16.
//
// Queries are rounded to 8 bits as well, 32 numbers with one scale, and so are the shares of 32
// positions times the scales of their values: products are of integers, and exact. A query's
// results depend on nothing else, and not on which instructions compute the products.
#pragma once

#include <cstdint>

#include "instructions.h"
#include "numbers.h"

namespace {

constexpr int64_t kPlaces = 16;  // of a tile
constexpr int64_t kCodeGroup = 32;
constexpr int64_t kSpan = 2;  // tiles whose shares have one scale

}  // namespace

struct CodeShape {
    int64_t heads, kv_heads, width;

    int64_t groups() const { return width / kCodeGroup; }
    int64_t code_bytes() const { return kPlaces * width; }
    int64_t head_bytes() const { return code_bytes() + kPlaces * 2 * groups(); }
    int64_t tile_bytes() const { return kv_heads * head_bytes(); }
};

// A query in 8 bits: heads x width, and heads x groups.
struct CodeQuery {
    const int8_t* codes;
    const float* scales;
    const int32_t* zeros;  // what products begin with, as the codes of keys are 128 too high
};

// Scores of all heads with the keys of some tiles: scores is heads x tiles x 16.
typedef void (*ScoreTiles)(const CodeShape& shape, const CodeQuery& query, const uint8_t* keys,
                           const int64_t* tiles, int64_t num_tiles, float* scores);

// Adds the values of some tiles, by their shares, to heads x width. Shares are as scores; where
// one is 0, the value does not matter.
typedef void (*MixTiles)(const CodeShape& shape, const float* shares, const uint8_t* values,
                         const int64_t* tiles, int64_t num_tiles, float* mixed);

struct CodeKernels {
    ScoreTiles score;
    MixTiles mix;
};

#ifdef HAS_AVX
extern const CodeKernels kCodesAvx2, kCodesAvxVnni, kCodesAvx512;
#endif
