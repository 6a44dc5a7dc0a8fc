// How quantised weights lie in memory for the kernels, and the rows that they are multiplied with.
//
// A weight is code * scale + offset, or (code - zero) * scale where there are no offsets. Codes
// are unsigned, scales and offsets are halves times one power of two for the whole matrix; each
// pair is for a group of 16 or 32 inputs of one output.
//
// Sixteen outputs make a tile. A tile holds its groups one after the other, and a group
//
//     codes    [inputs / 4][16 outputs][4 inputs] of a byte; of 4 bits, the byte at place j of the
//              first half has the code of the second half in its high digits
//     scales   [16 outputs]
//     offsets  [16 outputs], if there are any
//
// so that a product reads memory in one stream, and sixteen outputs at a time.
#pragma once

#include <cstdint>

#include "instructions.h"
#include "numbers.h"

namespace {

constexpr int64_t kTile = 16;     // outputs
constexpr int64_t kQuad = 4;      // inputs that one instruction multiplies for each output

}  // namespace

// Laid out as `PackedMatrix` of native.py.
struct Packed {
    const uint8_t* tiles;
    int64_t outputs, inputs;
    int64_t bits, group;  // 4 or 8; 16 or 32
    int64_t zero;         // what codes count from; -1: there are offsets
    float factor;         // of all scales and offsets; a power of two

    bool affine() const { return zero < 0; }
    int64_t groups() const { return inputs / group; }
    int64_t code_bytes() const { return kTile * group * bits / 8; }
    int64_t group_bytes() const { return code_bytes() + kTile * 2 * (affine() ? 2 : 1); }
    int64_t tile_bytes() const { return groups() * group_bytes(); }
};

// Rows of activations in 8 bits: x is about code * scale, each group with a scale of its own.
struct Codes {
    const int8_t* codes;   // rows x inputs
    const float* scales;   // rows x groups
    const float* sums;     // rows x groups: of the codes, times the scale
    const int32_t* zeros;  // rows x groups: of the codes, times -zero; not for offsets
};

namespace {

INLINE float half_value(uint16_t half) {
    // Exponents are moved by a product, which makes floats of the smallest halves as well.
    const uint32_t shifted = (static_cast<uint32_t>(half) & 0x7fffu) << 13;
    float value;
    std::memcpy(&value, &shifted, sizeof value);
    value *= 0x1p112f;
    return half & 0x8000u ? -value : value;
}

INLINE void halves(const uint8_t* bytes, float* values) {
    uint16_t bits[kTile];
    std::memcpy(bits, bytes, sizeof bits);
    for (int64_t i = 0; i < kTile; ++i) values[i] = half_value(bits[i]);
}

}  // namespace

// Which groups are fetched before they are needed, while tiles are read for a few rows at a time.
//
// Read once, a tile is followed by what comes soon. Read several times, the tiles that come next
// are fetched in as many parts: memory is at work all the while, not only the first time.
struct Fetched {
    int64_t ahead;        // bytes
    int64_t first, step;  // of groups

    INLINE_METHOD Fetched(const Packed& w, int64_t num_tiles, int64_t num_times)
        : ahead(num_times > 1 ? num_tiles * w.tile_bytes() : kAhead), first(0), step(num_times) {}

    INLINE_METHOD void next() { ++first; }
};

// Multiplies one or two neighbouring tiles: y is rows x tiles x 16.
typedef void (*TileProduct)(const Packed& w, const uint8_t* tile, int64_t num_tiles, const Codes& x,
                            int64_t num_rows, float* y);

// The function NAME that chooses among the products of a file.
#define CHOOSE_PRODUCT(NAME)                                                                       \
    TileProduct NAME(const Packed& w) {                                                            \
        if (w.bits == 4 && w.group == 32)                                                          \
            return w.affine() ? product<4, 32, true> : product<4, 32, false>;                      \
        if (w.bits == 4) return w.affine() ? product<4, 16, true> : product<4, 16, false>;         \
        if (w.group == 32) return w.affine() ? product<8, 32, true> : product<8, 32, false>;       \
        return w.affine() ? product<8, 16, true> : product<8, 16, false>;                          \
    }

#ifdef HAS_AVX
TileProduct avx2_product(const Packed& w);
TileProduct avx_vnni_product(const Packed& w);
TileProduct avx512_product(const Packed& w);
#endif
