// Products with quantised weights, and the weights themselves.
//
// Activations are rounded to 8 bits, each group of 16 or 32 with a scale of its own; products of
// integers are exact, and a group's product is added in float. A row's results are the same
// whatever the other rows are, and whichever instructions compute the integers.

#include <cmath>
#include <vector>

#include "instructions.h"
#include "packed.h"
#include "pool.h"


namespace {

constexpr int64_t kRowsOfPiece = 64;
constexpr int64_t kWorkOfPiece = 1 << 18;  // weights times rows: some 10 us
constexpr float kLargest = 127.0f;

template <typename Number>
INLINE void round_group(const Number* x, int64_t size, int8_t* codes, float* scale, float* sum,
                        int32_t* codes_sum) {
    float values[32];
    float most = 0.0f, poison = 0.0f;
    for (int64_t i = 0; i < size; ++i) values[i] = wide(x[i]);
    for (int64_t i = 0; i < size; ++i) {
        const float magnitude = std::fabs(values[i]);
        most = magnitude > most ? magnitude : most;
        poison += values[i] * 0.0f;  // not a number if a value is none, or infinite
    }
    const float step = most / kLargest + poison;
    const float inverse = most > 0x1p-120f ? kLargest / most : 0.0f;
    int32_t total = 0;
    for (int64_t i = 0; i < size; ++i) {
        // Adding 1.5 * 2^23 rounds to the nearest integer, which then lies in the low bits.
        const float shifted = values[i] * inverse + 0x1.8p23f;
        int32_t code;
        std::memcpy(&code, &shifted, sizeof code);
        code = static_cast<int8_t>(code);
        codes[i] = static_cast<int8_t>(code);
        total += code;
    }
    *scale = step;
    *sum = step * static_cast<float>(total);
    *codes_sum = total;
}

template <int64_t kGroup, typename Number>
INLINE void round_rows(const Number* x, int64_t num_rows, int64_t inputs, int64_t zero, int8_t* codes,
                       float* scales, float* sums, int32_t* zeros) {
    const int64_t groups = inputs / kGroup;
    for (int64_t i = 0; i < num_rows * groups; ++i) {
        int32_t total;
        round_group(x + i * kGroup, kGroup, codes + i * kGroup, scales + i, sums + i, &total);
        zeros[i] = static_cast<int32_t>(-zero) * total;
    }
}

#define ROUND_ROWS(NAME, NUMBER)                                                               \
    EVERY_PROCESSOR void NAME(const NUMBER* x, int64_t num_rows, int64_t inputs, int64_t group,\
                              int64_t zero, int8_t* codes, float* scales, float* sums,         \
                              int32_t* zeros) {                                                \
        if (group == 16)                                                                       \
            round_rows<16>(x, num_rows, inputs, zero, codes, scales, sums, zeros);             \
        else                                                                                   \
            round_rows<32>(x, num_rows, inputs, zero, codes, scales, sums, zeros);             \
    }
ROUND_ROWS(round_floats, float)
ROUND_ROWS(round_bfloats, Bfloat16)
#undef ROUND_ROWS

struct Buffers {
    std::vector<int8_t> codes;
    std::vector<float> scales, sums;
    std::vector<int32_t> zeros;

    void round(int64_t kind, const void* x, int64_t num_rows, const Packed& w, int64_t threads) {
        const int64_t groups = w.groups(), inputs = w.inputs;
        codes.resize(num_rows * inputs);
        scales.resize(num_rows * groups);
        sums.resize(num_rows * groups);
        zeros.resize(num_rows * groups);
        parallel(threads, num_rows, kRowsOfPiece, [&](int64_t begin, int64_t end) {
            const int64_t first = begin * inputs, at = begin * groups;
            if (kind == 0)
                round_floats(static_cast<const float*>(x) + first, end - begin, inputs, w.group,
                             w.zero, codes.data() + first, scales.data() + at, sums.data() + at,
                             zeros.data() + at);
            else
                round_bfloats(static_cast<const Bfloat16*>(x) + first, end - begin, inputs, w.group,
                              w.zero, codes.data() + first, scales.data() + at, sums.data() + at,
                              zeros.data() + at);
        });
    }

    Codes view() const { return {codes.data(), scales.data(), sums.data(), zeros.data()}; }
};

// --- One tile, with any instructions ---

INLINE int32_t code_at(const Packed& w, const uint8_t* codes, int64_t output, int64_t input) {
    if (w.bits == 8) return codes[(input / kQuad * kTile + output) * kQuad + input % kQuad];
    const int64_t half = w.group / 2;
    const int64_t place = input % half;
    const uint8_t both = codes[(place / kQuad * kTile + output) * kQuad + place % kQuad];
    return input < half ? both & 15 : both >> 4;
}

INLINE void halves(const uint8_t* bytes, float* values) {
    uint16_t bits[kTile];
    std::memcpy(bits, bytes, sizeof bits);
    for (int64_t i = 0; i < kTile; ++i) values[i] = half_value(bits[i]);
}

void plain_product(const Packed& w, const uint8_t* tile, int64_t num_tiles, const Codes& x,
                   int64_t num_rows, float* y) {
    const int64_t groups = w.groups();
    for (int64_t i = 0; i < num_rows * num_tiles * kTile; ++i) y[i] = 0.0f;
    for (int64_t i = 0; i < num_tiles * groups; ++i, tile += w.group_bytes()) {
        const int64_t t = i / groups, g = i % groups;
        float scales[kTile], offsets[kTile] = {0};
        halves(tile + w.code_bytes(), scales);
        if (w.affine()) halves(tile + w.code_bytes() + kTile * 2, offsets);
        for (int64_t row = 0; row < num_rows; ++row) {
            const int8_t* codes = x.codes + row * w.inputs + g * w.group;
            const int64_t at = row * groups + g;
            for (int64_t output = 0; output < kTile; ++output) {
                int32_t product = w.affine() ? 0 : x.zeros[at];
                for (int64_t input = 0; input < w.group; ++input)
                    product += code_at(w, tile, output, input) * codes[input];
                float& sum = y[(row * num_tiles + t) * kTile + output];
                sum = std::fma(static_cast<float>(product) * x.scales[at], scales[output], sum);
                if (w.affine()) sum = std::fma(offsets[output], x.sums[at], sum);
            }
        }
    }
    for (int64_t i = 0; i < num_rows * num_tiles * kTile; ++i) y[i] *= w.factor;
}

TileProduct choose(const Packed& w, int64_t instructions) {
#ifdef HAS_AVX
    if (instructions >= kAvx512) return avx512_product(w);
    if (instructions >= kAvxVnni) return avx_vnni_product(w);
    if (instructions >= kAvx2) return avx2_product(w);
#endif
    return plain_product;
}

template <typename Number>
INLINE void put(const float* results, int64_t num_rows, int64_t width, int64_t count, Number* y,
                int64_t stride) {
    for (int64_t row = 0; row < num_rows; ++row)
        for (int64_t i = 0; i < count; ++i) narrow(results[row * width + i], y + row * stride + i);
}

EVERY_PROCESSOR void put_floats(const float* results, int64_t num_rows, int64_t width,
                                int64_t count, float* y, int64_t stride) {
    put(results, num_rows, width, count, y, stride);
}

EVERY_PROCESSOR void put_bfloats(const float* results, int64_t num_rows, int64_t width,
                                 int64_t count, Bfloat16* y, int64_t stride) {
    put(results, num_rows, width, count, y, stride);
}

// One or two neighbouring tiles, from `t` on.
void tiles_product(const Packed& w, const Codes& x, int64_t num_rows, int64_t kind, void* y,
                   TileProduct multiply, int64_t t, int64_t num_tiles) {
    thread_local std::vector<float> results;
    results.resize(num_rows * kTile * 2);
    multiply(w, w.tiles + t * w.tile_bytes(), num_tiles, x, num_rows, results.data());
    const int64_t first = t * kTile, width = num_tiles * kTile;
    const int64_t count = w.outputs - first < width ? w.outputs - first : width;
    if (kind == 0)
        put_floats(results.data(), num_rows, width, count, static_cast<float*>(y) + first,
                   w.outputs);
    else
        put_bfloats(results.data(), num_rows, width, count, static_cast<Bfloat16*>(y) + first,
                    w.outputs);
}

void product(const Packed& w, const Codes& x, int64_t num_rows, int64_t kind, void* y,
             int64_t instructions, int64_t threads) {
    const TileProduct multiply = choose(w, instructions);
    const int64_t tiles = (w.outputs + kTile - 1) / kTile;
    const int64_t work = w.inputs * kTile * 2 * num_rows;  // of a pair of tiles
    const int64_t grain = work < kWorkOfPiece ? kWorkOfPiece / work : 1;
    parallel(threads, (tiles + 1) / 2, grain, [&](int64_t begin, int64_t end) {
        for (int64_t pair = begin; pair < end; ++pair)
            tiles_product(w, x, num_rows, kind, y, multiply, pair * 2,
                          pair * 2 + 1 < tiles ? 2 : 1);
    });
}

// --- The weights as numbers ---

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

// y = x W^T for up to three matrices of equally many inputs: w[i] gives y[i], null ends the list.
//
// x: num_rows x inputs. y: num_rows x outputs, written. All of one kind of number.
// `instructions`: which, of those that the processor has; the plainest are the reference.
void hyprstream_packed_products(int64_t kind, const void* x, int64_t num_rows, int64_t threads,
                                int64_t instructions, const Packed* w0, void* y0,
                                const Packed* w1, void* y1, const Packed* w2, void* y2) {
    if (num_rows < 1) return;
    thread_local Buffers buffers;
    const Packed* weights[] = {w0, w1, w2};
    void* results[] = {y0, y1, y2};
    const Packed* last = nullptr;
    for (int i = 0; i < 3 && weights[i]; ++i) {
        const Packed& w = *weights[i];
        if (!last || last->group != w.group || last->zero != w.zero)
            buffers.round(kind, x, num_rows, w, threads);
        last = &w;
        product(w, buffers.view(), num_rows, kind, results[i], instructions, threads);
    }
}

// The rows from `first`, a multiple of 16, to `last` of W, as numbers: written to `matrix`.
void hyprstream_packed_rows(int64_t kind, void* matrix, int64_t first, int64_t last,
                            const Packed* w) {
    if (kind == 0)
        unpack_floats(*w, first, last, static_cast<float*>(matrix));
    else
        unpack_bfloats(*w, first, last, static_cast<Bfloat16*>(matrix));
}
}
