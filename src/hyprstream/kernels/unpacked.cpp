// Quantised weights as numbers.

#include "packed.h"

namespace {

// The codes of a group, output by output.
INLINE void spread(const Packed& w, const uint8_t* group, uint32_t codes[kTile][8]) {
    const int64_t quads = w.code_bytes() / (kTile * kQuad);
    for (int64_t q = 0; q < quads; ++q) {
        uint32_t four[kTile];
        std::memcpy(four, group + q * sizeof four, sizeof four);
        for (int64_t output = 0; output < kTile; ++output) {
            codes[output][q] = w.bits == 8 ? four[output] : four[output] & 0x0f0f0f0fu;
            if (w.bits == 4) codes[output][quads + q] = (four[output] >> 4) & 0x0f0f0f0fu;
        }
    }
}

template <int64_t kGroup, typename Number>
INLINE void unpack(const Packed& w, int64_t first, int64_t last, Number* matrix) {
    const int32_t zero = w.affine() ? 0 : static_cast<int32_t>(w.zero);
    for (int64_t t = first / kTile; t * kTile < last; ++t) {
        const uint8_t* group = w.tiles + t * w.tile_bytes();
        const int64_t count = last - t * kTile < kTile ? last - t * kTile : kTile;
        for (int64_t g = 0; g < w.groups(); ++g, group += w.group_bytes()) {
            float scales[kTile], offsets[kTile] = {0};
            halves(group + w.code_bytes(), scales);
            if (w.affine()) halves(group + w.code_bytes() + kTile * 2, offsets);
            uint32_t quads[kTile][8];
            spread(w, group, quads);
            for (int64_t output = 0; output < count; ++output) {
                uint8_t codes[kGroup];
                std::memcpy(codes, quads[output], sizeof codes);
                const float scale = scales[output] * w.factor;
                const float offset = offsets[output] * w.factor;
                Number* row = matrix + (t * kTile - first + output) * w.inputs + g * kGroup;
                for (int64_t i = 0; i < kGroup; ++i)
                    narrow(static_cast<float>(codes[i] - zero) * scale + offset, row + i);
            }
        }
    }
}

EVERY_PROCESSOR void unpack_floats(const Packed& w, int64_t first, int64_t last, float* matrix) {
    if (w.group == 16)
        unpack<16>(w, first, last, matrix);
    else
        unpack<32>(w, first, last, matrix);
}

EVERY_PROCESSOR void unpack_bfloats(const Packed& w, int64_t first, int64_t last,
                                    Bfloat16* matrix) {
    if (w.group == 16)
        unpack<16>(w, first, last, matrix);
    else
        unpack<32>(w, first, last, matrix);
}

}  // namespace

extern "C" {

// The rows from `first`, a multiple of 16, to `last` of W, as numbers: written to `matrix`.
void hyprstream_packed_rows(int64_t kind, void* matrix, int64_t first, int64_t last,
                            const Packed* w) {
    if (kind == 0)
        unpack_floats(*w, first, last, static_cast<float*>(matrix));
    else
        unpack_bfloats(*w, first, last, static_cast<Bfloat16*>(matrix));
}
}
