// Attention of a few queries over the blocks of their sequences, read where they lie.

#include <vector>

#include "attention.h"

namespace {

INLINE void store(Vec value, float* x) { std::memcpy(x, &value, sizeof value); }

// The positions that a query sees, and where they lie.
struct Seen {
    const int32_t* blocks;
    int64_t block_tokens, first, end;

    int64_t count() const { return end - first; }
};

// Seen positions that lie in one block.
struct Stretch {
    int64_t begin, count, place;  // `begin` counts from the first that is seen

    INLINE_METHOD Stretch(const Seen& seen, int64_t from) : begin(from) {
        const int64_t position = seen.first + from, within = position % seen.block_tokens;
        const int64_t left = seen.block_tokens - within;
        count = seen.end - position < left ? seen.end - position : left;
        place = seen.blocks[position / seen.block_tokens] * seen.block_tokens + within;
    }

    int64_t after() const { return begin + count; }
};

constexpr int64_t kTwo = 2 * kVec;  // numbers that are widened together

// The next 32 numbers, in two vectors: of floats one half after the other; of bfloat16 those of
// even places and those of odd ones, which takes half the work.
INLINE void load_two(const float* x, Vec* first, Vec* second) {
    *first = load(x);
    *second = load(x + kVec);
}

INLINE void load_two(const Bfloat16* x, Vec* first, Vec* second) {
    VecBits both;
    std::memcpy(&both, x, sizeof both);
    const VecBits even = both << 16, odd = both & 0xffff0000u;
    std::memcpy(first, &even, sizeof even);
    std::memcpy(second, &odd, sizeof odd);
}

// Where number i of a head lies among floats that are arranged like that.
template <typename Number>
INLINE int64_t place(int64_t i, int64_t width) {
    if (sizeof(Number) == sizeof(float) || i >= width / kTwo * kTwo) return i;
    return i / kTwo * kTwo + i % 2 * kVec + i % kTwo / 2;
}

// Scores of `kGroup` query heads with the same keys.
template <int kGroup, typename Number>
INLINE void score(const float* q, const Number* keys, int64_t stride, int64_t count, int64_t width,
                  float* scores, int64_t room) {
    for (int64_t i = 0; i < count; ++i) {
        const Number* key = keys + i * stride;
        Vec sums[kGroup];
        for (int g = 0; g < kGroup; ++g) sums[g] = Vec{};
        int64_t d = 0;
        for (; d + kTwo <= width; d += kTwo) {
            Vec first, second;
            load_two(key + d, &first, &second);
            for (int g = 0; g < kGroup; ++g) {
                sums[g] += load(q + g * width + d) * first;
                sums[g] += load(q + g * width + d + kVec) * second;
            }
        }
        if (d < width) {
            const Vec last = load(key + d);
            for (int g = 0; g < kGroup; ++g) sums[g] += load(q + g * width + d) * last;
        }
        for (int g = 0; g < kGroup; ++g) scores[g * room + i] = total(sums[g]);
    }
}

// Adds values by their shares, `kPairs` times 32 numbers of each, or 16 where that is 0.
template <int kGroup, int kPairs, typename Number>
INLINE void mix(const float* shares, int64_t room, const Number* values, int64_t stride,
                int64_t count, int64_t width, float* mixed) {
    constexpr int kWide = kPairs ? 2 * kPairs : 1;
    Vec sums[kGroup][kWide];
    for (int g = 0; g < kGroup; ++g)
        for (int w = 0; w < kWide; ++w) sums[g][w] = load(mixed + g * width + w * kVec);
    for (int64_t i = 0; i < count; ++i) {
        Vec parts[kWide];
        if (kPairs == 0) parts[0] = load(values + i * stride);
        for (int pair = 0; pair < kPairs; ++pair)
            load_two(values + i * stride + pair * kTwo, parts + 2 * pair, parts + 2 * pair + 1);
        for (int g = 0; g < kGroup; ++g)
            for (int w = 0; w < kWide; ++w) sums[g][w] += shares[g * room + i] * parts[w];
    }
    for (int g = 0; g < kGroup; ++g)
        for (int w = 0; w < kWide; ++w) store(sums[g][w], mixed + g * width + w * kVec);
}

template <int kGroup, typename Number>
INLINE void mix_all(const float* shares, int64_t room, const Number* values, int64_t stride,
                    int64_t count, int64_t width, float* mixed) {
    int64_t d = 0;
    for (; d + 2 * kTwo <= width; d += 2 * kTwo)
        mix<kGroup, 2>(shares, room, values + d, stride, count, width, mixed + d);
    for (; d + kTwo <= width; d += kTwo)
        mix<kGroup, 1>(shares, room, values + d, stride, count, width, mixed + d);
    if (d < width) mix<kGroup, 0>(shares, room, values + d, stride, count, width, mixed + d);
}

// Scores of all query heads with one stretch of keys, four heads at most at a time.
template <typename Number>
INLINE void score_heads(const float* q, const Number* keys, const Stretch& part, int64_t room,
                        const Attending& how, float* scores) {
    const int64_t group = how.heads / how.kv_heads, stride = how.kv_heads * how.width;
    keys += part.place * stride;
    scores += part.begin;
    for (int64_t head = 0; head < how.heads;) {
        const int64_t left = group - head % group;
        const Number* key = keys + head / group * how.width;
        const float* query = q + head * how.width;
        float* to = scores + head * room;
        switch (left) {
            case 1: score<1>(query, key, stride, part.count, how.width, to, room); break;
            case 2: score<2>(query, key, stride, part.count, how.width, to, room); break;
            case 3: score<3>(query, key, stride, part.count, how.width, to, room); break;
            default: score<4>(query, key, stride, part.count, how.width, to, room);
        }
        head += left < 4 ? left : 4;
    }
}

// The same for the values.
template <typename Number>
INLINE void mix_heads(const float* shares, const Number* values, const Stretch& part, int64_t room,
                      const Attending& how, float* mixed) {
    const int64_t group = how.heads / how.kv_heads, stride = how.kv_heads * how.width;
    values += part.place * stride;
    shares += part.begin;
    for (int64_t head = 0; head < how.heads;) {
        const int64_t left = group - head % group;
        const Number* value = values + head / group * how.width;
        const float* share = shares + head * room;
        float* to = mixed + head * how.width;
        switch (left) {
            case 1: mix_all<1>(share, room, value, stride, part.count, how.width, to); break;
            case 2: mix_all<2>(share, room, value, stride, part.count, how.width, to); break;
            case 3: mix_all<3>(share, room, value, stride, part.count, how.width, to); break;
            default: mix_all<4>(share, room, value, stride, part.count, how.width, to);
        }
        head += left < 4 ? left : 4;
    }
}

template <typename Number>
INLINE void fetch_stretch(const Number* rows, const Stretch& part, const Attending& how) {
    const int64_t stride = how.kv_heads * how.width;
    fetch(rows + part.place * stride, part.count * stride);
}

template <typename Number>
INLINE void attend(const Number* q, const Number* keys, const Number* values, Number* y,
                   int64_t num_queries, const int32_t* ends, const int32_t* tables,
                   const int32_t* blocks, const Attending& how) {
    thread_local std::vector<float> wide_q, scores, mixed;
    const int64_t size = how.heads * how.width;
    wide_q.resize(size);
    for (int64_t query = 0; query < num_queries; ++query) {
        const int64_t end = ends[query];
        const int64_t first = how.window > 0 && end > how.window ? end - how.window : 0;
        const Seen seen{blocks + tables[query], how.block_tokens, first, end};
        const int64_t room = seen.count();
        scores.resize(how.heads * room);
        for (int64_t head = 0; head < size; head += how.width)
            for (int64_t i = 0; i < how.width; ++i)
                wide_q[head + place<Number>(i, how.width)] =
                    wide(q[query * size + head + i]) * how.scale;
        for (int64_t from = 0; from < room;) {
            const Stretch part(seen, from);
            from = part.after();
            if (from < room)
                fetch_stretch(keys, Stretch(seen, from), how);
            else
                fetch_stretch(values, Stretch(seen, 0), how);
            score_heads(wide_q.data(), keys, part, room, how, scores.data());
        }
        for (int64_t head = 0; head < how.heads; ++head)
            soften(scores.data() + head * room, room, how.softcap);
        mixed.assign(size, 0.0f);
        for (int64_t from = 0; from < room;) {
            const Stretch part(seen, from);
            from = part.after();
            if (from < room) fetch_stretch(values, Stretch(seen, from), how);
            mix_heads(scores.data(), values, part, room, how, mixed.data());
        }
        for (int64_t head = 0; head < size; head += how.width)
            for (int64_t i = 0; i < how.width; ++i)
                narrow(mixed[head + place<Number>(i, how.width)], y + query * size + head + i);
    }
}

EVERY_PROCESSOR void attend_float(const float* q, const float* keys, const float* values, float* y,
                                  int64_t num_queries, const int32_t* ends, const int32_t* tables,
                                  const int32_t* blocks, const Attending& how) {
    attend(q, keys, values, y, num_queries, ends, tables, blocks, how);
}

EVERY_PROCESSOR void attend_bfloat16(const Bfloat16* q, const Bfloat16* keys,
                                     const Bfloat16* values, Bfloat16* y, int64_t num_queries,
                                     const int32_t* ends, const int32_t* tables,
                                     const int32_t* blocks, const Attending& how) {
    attend(q, keys, values, y, num_queries, ends, tables, blocks, how);
}

}  // namespace

extern "C" {

// y = softmax(scale q K^T) V for each query, over the positions from `end - window` (all, where
// window is 0) up to `end`, which is one above its own.
//
// q, y: num_queries x heads x width, width a multiple of 16. keys, values: by place, each
// kv_heads x width; position p of a query lies at the place blocks[table + p / block_tokens] *
// block_tokens + p % block_tokens. Scores pass through softcap tanh(score / softcap), where that
// is above 0. Products, sums and shares are float.
void hyprstream_attend(int64_t kind, const void* q, const void* keys, const void* values, void* y,
                       int64_t num_queries, const int32_t* ends, const int32_t* tables,
                       const int32_t* blocks, int64_t heads, int64_t kv_heads, int64_t width,
                       int64_t block_tokens, int64_t window, float scale, float softcap) {
    const Attending how{heads, kv_heads, width, block_tokens, window, scale, softcap};
    if (kind == 0)
        attend_float(static_cast<const float*>(q), static_cast<const float*>(keys),
                     static_cast<const float*>(values), static_cast<float*>(y), num_queries, ends,
                     tables, blocks, how);
    else
        attend_bfloat16(static_cast<const Bfloat16*>(q), static_cast<const Bfloat16*>(keys),
                        static_cast<const Bfloat16*>(values), static_cast<Bfloat16*>(y),
                        num_queries, ends, tables, blocks, how);
}
}
