// Attention of a few queries over keys and values in 8 bits, and how these are written.

#include "attention_codes.h"

#include <vector>

#include "attention.h"
#include "calls.h"

// --- Tiles, with any instructions ---

#define TARGET

namespace {

INLINE VecInts dot(VecInts sums, VecBytes u, VecBytes s) {
    int8_t with_sign[sizeof s];
    std::memcpy(with_sign, &s, sizeof s);
    for (int64_t i = 0; i < static_cast<int64_t>(sizeof s); ++i) sums[i / 4] += u[i] * with_sign[i];
    return sums;
}

INLINE Vec fused(Vec a, Vec b, Vec c) {
    for (int64_t i = 0; i < kVec; ++i) c[i] = std::fma(a[i], b[i], c[i]);
    return c;
}

INLINE void put_low(VecBits x, uint8_t* y) {
    for (int64_t i = 0; i < kVec; ++i) y[i] = static_cast<uint8_t>(x[i]);
}

}  // namespace

#include "attention_codes_tiles.h"

namespace {

CodeKernels choose(int64_t instructions) {
#ifdef HAS_AVX
    if (instructions >= kAvx512) return kCodesAvx512;
    if (instructions >= kAvxVnni) return kCodesAvxVnni;
    if (instructions >= kAvx2) return kCodesAvx2;
#endif
    return {score_tiles, mix_tiles};
}

constexpr float kLargestCode = 127.0f;
constexpr float kLeast = 0x1p-100f;  // all smaller: zeros

// The largest magnitude of a group; infinite or not a number if one of them is.
template <typename Number>
INLINE float largest(const Number* x) {
    uint32_t most = 0;
    for (int64_t i = 0; i < kCodeGroup; ++i) {
        const float value = wide(x[i]);
        uint32_t bits;
        std::memcpy(&bits, &value, sizeof bits);
        bits &= 0x7fffffffu;
        most = bits > most ? bits : most;
    }
    float result;
    std::memcpy(&result, &most, sizeof result);
    return result;
}

// A group of a query; with a number that is not finite the scale is none.
template <typename Number>
INLINE void round_query(const Number* x, float scale, int8_t* codes, float* step, int32_t* zero) {
    const float most = largest(x);
    const bool counts = most >= kLeast && most - most == 0;
    const float inverse = counts ? kLargestCode / most : 0.0f;
    int32_t total = 0;
    for (int64_t i = 0; i < kCodeGroup; ++i) {
        const float value = counts ? wide(x[i]) : 0.0f;
        const int32_t code = static_cast<int32_t>(std::rint(value * inverse));
        codes[i] = static_cast<int8_t>(code);
        total += code;
    }
    *step = most * (1.0f / kLargestCode) * scale + (most - most);
    *zero = -128 * total;
}

// The codes of a group that is kept, and its scale: to the last bit those of eight_bits.py.
template <typename Number>
INLINE Bfloat16 round_kept(const Number* x, int32_t* codes) {
    const float most = largest(x);
    if (!(most - most == 0) || most < kLeast) {
        for (int64_t i = 0; i < kCodeGroup; ++i) codes[i] = 0;
        return Bfloat16{static_cast<uint16_t>(most < kLeast ? 0 : 0x7fc0)};
    }
    const float exact = most / kLargestCode;
    uint32_t bits;
    std::memcpy(&bits, &exact, sizeof bits);
    const Bfloat16 scale{static_cast<uint16_t>((bits + 0xffffu) >> 16)};
    const float inverse = 1.0f / wide(scale);
    for (int64_t i = 0; i < kCodeGroup; ++i)
        codes[i] = static_cast<int32_t>(std::rint(wide(x[i]) * inverse));
    return scale;
}

struct Memory {
    uint8_t *keys, *values;
};

template <typename Number>
INLINE void keep(const Number* k, const Number* v, int64_t place, const CodeShape& shape,
                 const Memory& memory) {
    const int64_t lane = place % kPlaces, at = place / kPlaces * shape.tile_bytes();
    for (int64_t i = 0; i < shape.kv_heads * shape.groups(); ++i) {
        const int64_t head = i / shape.groups(), g = i % shape.groups();
        const int64_t head_at = at + head * shape.head_bytes();
        const int64_t scale_at = head_at + shape.code_bytes() + (g * kPlaces + lane) * 2;
        int32_t codes[kCodeGroup];
        Bfloat16 scale = round_kept(k + i * kCodeGroup, codes);
        std::memcpy(memory.keys + scale_at, &scale, sizeof scale);
        uint8_t* keys = memory.keys + head_at + (g * kQuads * kPlaces + lane) * 4;
        for (int64_t d = 0; d < kCodeGroup; ++d)
            keys[d / 4 * kPlaces * 4 + d % 4] = static_cast<uint8_t>(codes[d] + 128);
        scale = round_kept(v + i * kCodeGroup, codes);
        std::memcpy(memory.values + scale_at, &scale, sizeof scale);
        uint8_t* values = memory.values + head_at + lane % 4;
        values += (lane / 4 * shape.width + g * kCodeGroup) * 4;
        for (int64_t d = 0; d < kCodeGroup; ++d) values[d * 4] = static_cast<uint8_t>(codes[d]);
    }
}

template <typename Number>
INLINE void keep_rows(const Number* k, const Number* v, const int64_t* places, int64_t num_rows,
                      const CodeShape& shape, const Memory& memory) {
    const int64_t size = shape.kv_heads * shape.width;
    for (int64_t row = 0; row < num_rows; ++row)
        keep(k + row * size, v + row * size, places[row], shape, memory);
}

// Where queries find their keys and values.
struct Table {
    const int32_t *ends, *tables, *blocks;
};

struct Scratch {
    std::vector<int8_t> codes;
    std::vector<float> steps, scores, mixed;
    std::vector<int32_t> zeros;
    std::vector<int64_t> tiles;
};

template <typename Number>
INLINE void attend_codes(const Number* q, const Memory& memory, Number* y, int64_t num_queries,
                         const Table& table, const CodeShape& shape, const Attending& how,
                         const CodeKernels& kernels) {
    thread_local Scratch scratch;
    const int64_t size = shape.heads * shape.width, num_groups = shape.heads * shape.groups();
    scratch.codes.resize(size);
    scratch.steps.resize(num_groups);
    scratch.zeros.resize(num_groups);
    for (int64_t query = 0; query < num_queries; ++query, q += size, y += size) {
        for (int64_t g = 0; g < num_groups; ++g)
            round_query(q + g * kCodeGroup, how.scale, scratch.codes.data() + g * kCodeGroup,
                        scratch.steps.data() + g, scratch.zeros.data() + g);
        const int64_t end = table.ends[query];
        const int64_t first = how.window > 0 && end > how.window ? end - how.window : 0;
        const int64_t begin = first / kPlaces * kPlaces, lead = first - begin;
        const int64_t num_tiles = (end - begin + kPlaces - 1) / kPlaces;
        const int64_t room = num_tiles * kPlaces, count = end - first;
        scratch.tiles.resize(num_tiles);
        for (int64_t t = 0; t < num_tiles; ++t) {
            const int64_t position = begin + t * kPlaces;
            const int64_t block = table.blocks[table.tables[query] + position / how.block_tokens];
            scratch.tiles[t] =
                (block * how.block_tokens + position % how.block_tokens) / kPlaces;
        }
        scratch.scores.resize(shape.heads * room);
        const CodeQuery rounded{scratch.codes.data(), scratch.steps.data(), scratch.zeros.data()};
        kernels.score(shape, rounded, memory.keys, scratch.tiles.data(), num_tiles,
                      scratch.scores.data());
        for (int64_t head = 0; head < shape.heads; ++head) {
            float* scores = scratch.scores.data() + head * room;
            soften(scores + lead, count, how.softcap);
            for (int64_t i = 0; i < lead; ++i) scores[i] = 0.0f;
            for (int64_t i = lead + count; i < room; ++i) scores[i] = 0.0f;
        }
        scratch.mixed.assign(size, 0.0f);
        kernels.mix(shape, scratch.scores.data(), memory.values, scratch.tiles.data(), num_tiles,
                    scratch.mixed.data());
        for (int64_t i = 0; i < size; ++i) narrow(scratch.mixed[i], y + i);
    }
}

#define FOR_NUMBERS(NUMBER, SUFFIX)                                                               \
    EVERY_PROCESSOR void keep_##SUFFIX(const NUMBER* k, const NUMBER* v, const int64_t* places,   \
                                       int64_t num_rows, const CodeShape& shape,                  \
                                       const Memory& memory) {                                    \
        keep_rows(k, v, places, num_rows, shape, memory);                                         \
    }                                                                                             \
    EVERY_PROCESSOR void attend_##SUFFIX(const NUMBER* q, const Memory& memory, NUMBER* y,        \
                                         int64_t num_queries, const Table& table,                 \
                                         const CodeShape& shape, const Attending& how,            \
                                         const CodeKernels& kernels) {                            \
        attend_codes(q, memory, y, num_queries, table, shape, how, kernels);                      \
    }
FOR_NUMBERS(float, floats)
FOR_NUMBERS(Bfloat16, bfloats)
#undef FOR_NUMBERS

}  // namespace

extern "C" {

// The same as hyprstream_attend, over keys and values in 8 bits: `keys` and `values` are tiles,
// width is a multiple of 32 and block_tokens of 16. Products are of numbers in 8 bits, too.
// `instructions`: which compute them, of those that the processor has.
void hyprstream_attend_codes(int64_t kind, int64_t instructions, const void* q, const void* keys,
                             const void* values, void* y, int64_t num_queries, const int32_t* ends,
                             const int32_t* tables, const int32_t* blocks, int64_t heads,
                             int64_t kv_heads, int64_t width, int64_t block_tokens, int64_t window,
                             float scale, float softcap) {
    const Attending how{heads, kv_heads, width, block_tokens, window, scale, softcap};
    const CodeShape shape{heads, kv_heads, width};
    const Memory memory{static_cast<uint8_t*>(const_cast<void*>(keys)),
                        static_cast<uint8_t*>(const_cast<void*>(values))};
    const Table table{ends, tables, blocks};
    if (kind == 0)
        attend_floats(static_cast<const float*>(q), memory, static_cast<float*>(y), num_queries,
                      table, shape, how, choose(instructions));
    else
        attend_bfloats(static_cast<const Bfloat16*>(q), memory, static_cast<Bfloat16*>(y),
                       num_queries, table, shape, how, choose(instructions));
}

// Writes rows of keys and values, each kv_heads x width, in 8 bits at their places.
void hyprstream_keep_codes(int64_t kind, const void* k, const void* v, const int64_t* places,
                           int64_t num_rows, int64_t kv_heads, int64_t width, void* keys,
                           void* values) {
    const CodeShape shape{kv_heads, kv_heads, width};
    const Memory memory{static_cast<uint8_t*>(keys), static_cast<uint8_t*>(values)};
    if (kind == 0)
        keep_floats(static_cast<const float*>(k), static_cast<const float*>(v), places, num_rows,
                    shape, memory);
    else
        keep_bfloats(static_cast<const Bfloat16*>(k), static_cast<const Bfloat16*>(v), places,
                     num_rows, shape, memory);
}
}
