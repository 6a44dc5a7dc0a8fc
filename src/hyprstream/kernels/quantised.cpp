// Products with quantised weights.
//
// Activations are rounded to 8 bits, each group of 16 or 32 with a scale of its own; products of
// integers are exact, and a group's product is added in float. A row's results are the same
// whatever the other rows are, and whichever instructions compute the integers.

#include <cmath>
#include <mutex>
#include <vector>

#include "instructions.h"
#include "packed.h"
#include "peaks.h"
#include "pool.h"


namespace {

constexpr int64_t kRowsOfPiece = 64;
constexpr int64_t kWorkOfPiece = 1 << 18;  // weights times rows: some 10 us
constexpr int64_t kPairsOfPeaks = 16;  // pairs of tiles, 512 outputs, of which peaks are found at once
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

// Where results go: outputs from `first` on, of one kind of number.
struct Target {
    int64_t kind;
    void* y;
    int64_t first, stride;  // the stride is that of rows
};

// One or two neighbouring tiles, from `t` on.
void tiles_product(const Packed& w, const Codes& x, int64_t num_rows, const Target& target,
                   TileProduct multiply, int64_t t, int64_t num_tiles) {
    thread_local std::vector<float> results;
    results.resize(num_rows * kTile * 2);
    multiply(w, w.tiles + t * w.tile_bytes(), num_tiles, x, num_rows, results.data());
    const int64_t first = t * kTile, width = num_tiles * kTile;
    const int64_t count = w.outputs - first < width ? w.outputs - first : width;
    const int64_t place = first - target.first;
    if (target.kind == 0)
        put_floats(results.data(), num_rows, width, count, static_cast<float*>(target.y) + place,
                   target.stride);
    else
        put_bfloats(results.data(), num_rows, width, count,
                    static_cast<Bfloat16*>(target.y) + place, target.stride);
}

void pairs_product(const Packed& w, const Codes& x, int64_t num_rows, const Target& target,
                   TileProduct multiply, int64_t begin, int64_t end) {
    const int64_t tiles = (w.outputs + kTile - 1) / kTile;
    for (int64_t pair = begin; pair < end; ++pair)
        tiles_product(w, x, num_rows, target, multiply, pair * 2, pair * 2 + 1 < tiles ? 2 : 1);
}

int64_t num_pairs(const Packed& w) { return (w.outputs + 2 * kTile - 1) / (2 * kTile); }

void product(const Packed& w, const Codes& x, int64_t num_rows, int64_t kind, void* y,
             int64_t instructions, int64_t threads) {
    const TileProduct multiply = choose(w, instructions);
    const Target target{kind, y, 0, w.outputs};
    const int64_t work = w.inputs * kTile * 2 * num_rows;  // of a pair of tiles
    const int64_t grain = work < kWorkOfPiece ? kWorkOfPiece / work : 1;
    parallel(threads, num_pairs(w), grain, [&](int64_t begin, int64_t end) {
        pairs_product(w, x, num_rows, target, multiply, begin, end);
    });
}

// Tell whether a number is a peak rather than the other: NaN before all, of equals the first.
bool goes_before(float value, int64_t place, float other, int64_t other_place) {
    const bool is_nan = value != value, other_is_nan = other != other;
    if (is_nan != other_is_nan) return is_nan;
    if (value > other || value < other) return value > other;
    return place < other_place;
}

// The peak of each row of the product, of which no more is kept than fits the nearest cache.
void product_peaks(const Packed& w, const Codes& x, int64_t num_rows, int64_t kind,
                   int64_t instructions, int64_t threads, float* values, int64_t* places) {
    const TileProduct multiply = choose(w, instructions);
    std::mutex mutex;
    for (int64_t row = 0; row < num_rows; ++row) places[row] = -1;
    const auto take = [&](int64_t begin, int64_t end) {
        thread_local std::vector<float> part, best;
        const int64_t first = begin * 2 * kTile, last = end * 2 * kTile;
        const int64_t count = (last < w.outputs ? last : w.outputs) - first;
        part.resize(num_rows * count);
        best.resize(num_rows);
        pairs_product(w, x, num_rows, {kind, part.data(), first, count}, multiply, begin, end);
        largest_of_rows(kind, part.data(), num_rows, count, best.data());
        const int64_t row_bytes = count * (kind == 0 ? sizeof(float) : sizeof(Bfloat16));
        const std::lock_guard<std::mutex> lock(mutex);
        for (int64_t row = 0; row < num_rows; ++row) {
            // Most pieces hold nothing larger than those before: their places do not matter.
            if (places[row] >= 0 && best[row] < values[row]) continue;
            float value;
            int64_t place;
            const char* numbers = reinterpret_cast<const char*>(part.data()) + row * row_bytes;
            hyprstream_peaks(kind, numbers, 1, count, &value, &place);
            place += first;
            if (places[row] >= 0 && !goes_before(value, place, values[row], places[row])) continue;
            values[row] = value;
            places[row] = place;
        }
    };
    parallel(threads, num_pairs(w), kPairsOfPeaks, [&](int64_t begin, int64_t end) {
        for (int64_t pair = begin; pair < end; pair += kPairsOfPeaks)
            take(pair, pair + kPairsOfPeaks < end ? pair + kPairsOfPeaks : end);
    });
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

// The largest number of each row of x W^T and its first place, as hyprstream_peaks finds them.
void hyprstream_packed_peaks(int64_t kind, const void* x, int64_t num_rows, int64_t threads,
                             int64_t instructions, const Packed* w, float* values,
                             int64_t* places) {
    thread_local Buffers buffers;
    buffers.round(kind, x, num_rows, *w, threads);
    product_peaks(*w, buffers.view(), num_rows, kind, instructions, threads, values, places);
}
}
