// Attention over tiles in 8 bits: for the files that say how bytes are multiplied. Those define
//
//     TARGET             which instructions they are compiled for
//     dot(sums, u, s)    sums and the products of four bytes each, those of `u` without a sign
//     fused(a, b, c)     a * b + c, rounded once
//     put_low(x, y)      the low bytes of sixteen numbers

#include "attention_codes.h"

namespace {

constexpr int kMostHeads = 4;           // that read a key at a time
constexpr int64_t kQuads = kCodeGroup / 4;
constexpr float kLargestShare = 255.0f;

INLINE TARGET VecBytes load_bytes(const uint8_t* x) {
    VecBytes result;
    std::memcpy(&result, x, sizeof result);
    return result;
}

// Four bytes, sixteen times.
INLINE TARGET VecBytes repeated(const void* four) {
    int32_t one;
    std::memcpy(&one, four, sizeof one);
    const VecInts all = one - VecInts{};
    VecBytes result;
    std::memcpy(&result, &all, sizeof result);
    return result;
}

INLINE TARGET Vec floats(VecInts x) { return __builtin_convertvector(x, Vec); }

INLINE TARGET Vec every(float x) { return x - Vec{}; }

INLINE TARGET const Bfloat16* scales_of(const CodeShape& shape, const uint8_t* head_tile) {
    return reinterpret_cast<const Bfloat16*>(head_tile + shape.code_bytes());
}

// Scores of `kHeads` heads with the keys of one tile.
template <int kHeads>
INLINE TARGET void score_tile(const CodeShape& shape, const CodeQuery& query, int64_t head,
                              const uint8_t* keys, float* scores, int64_t room) {
    const int64_t groups = shape.groups();
    const Bfloat16* steps = scales_of(shape, keys);
    Vec sums[kHeads];
    for (int h = 0; h < kHeads; ++h) sums[h] = Vec{};
    for (int64_t g = 0; g < groups; ++g) {
        VecInts products[kHeads];
        for (int h = 0; h < kHeads; ++h)
            products[h] = query.zeros[(head + h) * groups + g] - VecInts{};
        const int8_t* codes = query.codes + head * shape.width + g * kCodeGroup;
#pragma GCC unroll 8
        for (int64_t quad = 0; quad < kQuads; ++quad) {
            const VecBytes four = load_bytes(keys + (g * kQuads + quad) * 64);
#pragma GCC unroll 4
            for (int h = 0; h < kHeads; ++h)
                products[h] =
                    dot(products[h], four, repeated(codes + h * shape.width + quad * 4));
        }
        const Vec step = load(steps + g * kPlaces);
        for (int h = 0; h < kHeads; ++h)
            sums[h] = fused(floats(products[h]), step * query.scales[(head + h) * groups + g],
                            sums[h]);
    }
    for (int h = 0; h < kHeads; ++h)
        std::memcpy(scores + h * room, &sums[h], sizeof sums[h]);
}

// The largest, as numbers without a sign: of floats from 0 on the largest too, and NaN if any is.
INLINE TARGET float largest_bits(VecBits x) {
    typedef uint32_t HalfOf __attribute__((vector_size(32)));
    typedef uint32_t QuarterOf __attribute__((vector_size(16)));
    HalfOf low, high;
    std::memcpy(&low, &x, sizeof low);
    std::memcpy(&high, reinterpret_cast<const char*>(&x) + sizeof low, sizeof high);
    low = low > high ? low : high;
    QuarterOf first, second;
    std::memcpy(&first, &low, sizeof first);
    std::memcpy(&second, reinterpret_cast<const char*>(&low) + sizeof first, sizeof second);
    first = first > second ? first : second;
    const QuarterOf turned = __builtin_shuffle(first, QuarterOf{2, 3, 0, 1});
    first = first > turned ? first : turned;
    const uint32_t bits = first[0] > first[1] ? first[0] : first[1];
    float result;
    std::memcpy(&result, &bits, sizeof result);
    return result;
}

// Some neighbouring tiles, of one key head.
template <int kTiles>
struct Span {
    const uint8_t* tiles[kTiles];
};

// Shares times the scales of one group of values: codes, and what one of a code stands for.
template <int kTiles>
INLINE TARGET float round_shares(const Span<kTiles>& span, const float* shares, int64_t scales_at,
                                 uint8_t* codes) {
    Vec weights[kTiles];
    VecBits most = {};
    for (int t = 0; t < kTiles; ++t) {
        const Vec share = load(shares + t * kPlaces);
        const Vec scale = load(reinterpret_cast<const Bfloat16*>(span.tiles[t] + scales_at));
        weights[t] = share != 0 ? share * scale : Vec{};
        VecBits bits;
        std::memcpy(&bits, &weights[t], sizeof bits);
        most = bits > most ? bits : most;
    }
    const float largest = largest_bits(most);
    const float inverse = largest > 0x1p-100f ? kLargestShare / largest : 0.0f;
    for (int t = 0; t < kTiles; ++t) {
        // Adding 1.5 * 2^23 rounds to the nearest integer, which then lies in the low bits.
        const Vec shifted = fused(weights[t], every(inverse), every(0x1.8p23f));
        VecBits bits;
        std::memcpy(&bits, &shifted, sizeof bits);
        put_low(bits, codes + t * kPlaces);
    }
    return largest * (1.0f / kLargestShare);
}

// Adds a group of the values of some tiles to `kHeads` heads.
template <int kHeads, int kTiles>
INLINE TARGET void mix_group(const CodeShape& shape, const Span<kTiles>& span, int64_t g,
                             const float* shares, int64_t room, float* mixed) {
    uint8_t codes[kHeads][kTiles * kPlaces];
    float steps[kHeads];
    const int64_t scales_at = shape.code_bytes() + g * kPlaces * 2;
    for (int h = 0; h < kHeads; ++h)
        steps[h] = round_shares(span, shares + h * room, scales_at, codes[h]);
    VecInts sums[kHeads][2];
    for (int h = 0; h < kHeads; ++h) sums[h][0] = sums[h][1] = VecInts{};
    for (int t = 0; t < kTiles; ++t) {
#pragma GCC unroll 4
        for (int64_t quad = 0; quad < kPlaces / 4; ++quad) {
            const uint8_t* values = span.tiles[t] + (quad * shape.width + g * kCodeGroup) * 4;
            const VecBytes first = load_bytes(values), second = load_bytes(values + 64);
#pragma GCC unroll 4
            for (int h = 0; h < kHeads; ++h) {
                const VecBytes four = repeated(codes[h] + t * kPlaces + quad * 4);
                sums[h][0] = dot(sums[h][0], four, first);
                sums[h][1] = dot(sums[h][1], four, second);
            }
        }
    }
    for (int h = 0; h < kHeads; ++h) {
        float* to = mixed + h * shape.width + g * kCodeGroup;
        for (int i = 0; i < 2; ++i) {
            const Vec sum = fused(floats(sums[h][i]), every(steps[h]), load(to + i * kVec));
            std::memcpy(to + i * kVec, &sum, sizeof sum);
        }
    }
}

template <int kHeads, int kTiles>
INLINE TARGET void mix_heads(const CodeShape& shape, const Span<kTiles>& span,
                             const float* shares, int64_t room, float* mixed) {
    for (int64_t g = 0; g < shape.groups(); ++g)
        mix_group<kHeads>(shape, span, g, shares, room, mixed);
}

// Fetches what is read some kAhead bytes later, where heads of `tiles` are read one after the
// other, those of `kTiles` tiles at a time.
template <int kTiles>
INLINE TARGET void fetch_ahead(const CodeShape& shape, const uint8_t* memory, const int64_t* tiles,
                               int64_t num_tiles, int64_t head) {
    const int64_t bytes = shape.head_bytes(), later = head + (kAhead / kTiles + bytes - 1) / bytes;
    const int64_t first = later / shape.kv_heads * kTiles;
    for (int64_t t = first; t < first + kTiles && t < num_tiles; ++t)
        fetch(memory + tiles[t] * shape.tile_bytes() + later % shape.kv_heads * bytes, bytes);
}

TARGET void score_tiles(const CodeShape& shape, const CodeQuery& query, const uint8_t* keys,
                        const int64_t* tiles, int64_t num_tiles, float* scores) {
    const int64_t group = shape.heads / shape.kv_heads, room = num_tiles * kPlaces;
    for (int64_t t = 0; t < num_tiles; ++t) {
        for (int64_t head = 0; head < shape.heads;) {
            const int64_t at = head / group * shape.head_bytes();
            if (head % group == 0)
                fetch_ahead<1>(shape, keys, tiles + t, num_tiles - t, head / group);
            const uint8_t* tile = keys + tiles[t] * shape.tile_bytes() + at;
            float* to = scores + head * room + t * kPlaces;
            const int64_t left = group - head % group;
            switch (left) {
                case 1: score_tile<1>(shape, query, head, tile, to, room); break;
                case 2: score_tile<2>(shape, query, head, tile, to, room); break;
                case 3: score_tile<3>(shape, query, head, tile, to, room); break;
                default: score_tile<kMostHeads>(shape, query, head, tile, to, room);
            }
            head += left < kMostHeads ? left : kMostHeads;
        }
    }
}

// The first `kTiles` of some tiles, of which so many are there.
template <int kTiles>
INLINE TARGET void mix_span(const CodeShape& shape, const float* shares, const uint8_t* values,
                            const int64_t* tiles, int64_t num_tiles, int64_t room, float* mixed) {
    const int64_t group = shape.heads / shape.kv_heads;
    for (int64_t head = 0; head < shape.heads;) {
        const int64_t at = head / group * shape.head_bytes();
        Span<kTiles> span;
        for (int64_t i = 0; i < kTiles; ++i)
            span.tiles[i] = values + tiles[i] * shape.tile_bytes() + at;
        if (head % group == 0)
            fetch_ahead<kTiles>(shape, values, tiles, num_tiles, head / group);
        const float* share = shares + head * room;
        float* to = mixed + head * shape.width;
        const int64_t left = group - head % group;
        switch (left) {
            case 1: mix_heads<1>(shape, span, share, room, to); break;
            case 2: mix_heads<2>(shape, span, share, room, to); break;
            case 3: mix_heads<3>(shape, span, share, room, to); break;
            default: mix_heads<kMostHeads>(shape, span, share, room, to);
        }
        head += left < kMostHeads ? left : kMostHeads;
    }
}

TARGET void mix_tiles(const CodeShape& shape, const float* shares, const uint8_t* values,
                      const int64_t* tiles, int64_t num_tiles, float* mixed) {
    const int64_t room = num_tiles * kPlaces;
    int64_t t = 0;
    for (; t + kSpan <= num_tiles; t += kSpan)
        mix_span<kSpan>(shape, shares + t * kPlaces, values, tiles + t, num_tiles - t, room, mixed);
    for (; t < num_tiles; ++t)
        mix_span<1>(shape, shares + t * kPlaces, values, tiles + t, num_tiles - t, room, mixed);
}

}  // namespace
