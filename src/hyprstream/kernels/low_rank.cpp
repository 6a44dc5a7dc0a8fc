// Low-rank adapters of a few rows, each adapter read once.

#include <vector>

#include "numbers.h"

namespace {

// The same order of additions whatever else is computed: a row does not feel its neighbours.
template <typename Weight>
INLINE float dot(const float* x, const Weight* w, int64_t size) {
    float lanes[kLanes] = {0};
    int64_t i = 0;
    for (; i + kLanes <= size; i += kLanes)
        for (int64_t lane = 0; lane < kLanes; ++lane) lanes[lane] += x[i + lane] * wide(w[i + lane]);
    for (int64_t lane = 0; i + lane < size; ++lane) lanes[lane] += x[i + lane] * wide(w[i + lane]);
    for (int64_t half = kLanes / 2; half > 0; half /= 2)
        for (int64_t lane = 0; lane < half; ++lane) lanes[lane] += lanes[lane + half];
    return lanes[0];
}

// For several rows a row of weights is widened once.
INLINE const float* widened(const float* w, int64_t, std::vector<float>&) { return w; }

INLINE const float* widened(const Bfloat16* w, int64_t size, std::vector<float>& buffer) {
    for (int64_t i = 0; i < size; ++i) buffer[i] = wide(w[i]);
    return buffer.data();
}

template <typename Weight>
INLINE void add(float factor, const Weight* w, int64_t size, float* sum) {
    for (int64_t i = 0; i < size; ++i) sum[i] += factor * wide(w[i]);
}

struct Groups {
    int64_t count;
    const int32_t* ranks;  // begin and end of the ranks of each group
    const int32_t* ends;   // where the rows of each group end in `rows`
    const int32_t* rows;
};

template <typename Number, typename Weight>
INLINE void low_rank(const Number* x, const Weight* a, const Weight* b, Number* y, int64_t num_rows,
                     int64_t inputs, int64_t outputs, const Groups& groups) {
    thread_local std::vector<float> wide_x, wide_w, hidden, sums;
    wide_w.resize(inputs > outputs ? inputs : outputs);
    const int64_t num_covered = groups.count ? groups.ends[groups.count - 1] : 0;
    if (num_covered < num_rows)
        for (int64_t i = 0; i < num_rows * outputs; ++i) narrow(-0.0f, y + i);
    int64_t first = 0;
    for (int64_t group = 0; group < groups.count; ++group) {
        const int32_t* rows = groups.rows + first;
        const int64_t count = groups.ends[group] - first;
        first = groups.ends[group];
        const int64_t begin = groups.ranks[2 * group], end = groups.ranks[2 * group + 1];
        wide_x.resize(count * inputs);
        hidden.resize(count * (end - begin));
        sums.assign(count * outputs, 0.0f);
        for (int64_t row = 0; row < count; ++row)
            for (int64_t i = 0; i < inputs; ++i)
                wide_x[row * inputs + i] = wide(x[rows[row] * inputs + i]);
        float* factor = hidden.data();
        for (int64_t rank = begin; rank < end; ++rank) {
            fetch(b + rank * outputs, outputs);
            const Weight* in = a + rank * inputs;
            if (count == 1) {
                *factor++ = dot(wide_x.data(), in, inputs);
                continue;
            }
            const float* wide_in = widened(in, inputs, wide_w);
            for (int64_t row = 0; row < count; ++row)
                *factor++ = dot(wide_x.data() + row * inputs, wide_in, inputs);
        }
        factor = hidden.data();
        for (int64_t rank = begin; rank < end; ++rank) {
            const Weight* out = b + rank * outputs;
            if (group + 1 < groups.count)
                fetch(a + (groups.ranks[2 * group + 2] + rank - begin) * inputs, inputs);
            if (count == 1) {
                add(*factor++, out, outputs, sums.data());
                continue;
            }
            const float* wide_out = widened(out, outputs, wide_w);
            for (int64_t row = 0; row < count; ++row)
                add(*factor++, wide_out, outputs, sums.data() + row * outputs);
        }
        for (int64_t row = 0; row < count; ++row)
            for (int64_t i = 0; i < outputs; ++i)
                narrow(sums[row * outputs + i], y + rows[row] * outputs + i);
    }
}

EVERY_PROCESSOR void low_rank_float(const float* x, const float* a, const float* b, float* y,
                                    int64_t num_rows, int64_t inputs, int64_t outputs,
                                    const Groups& groups) {
    low_rank(x, a, b, y, num_rows, inputs, outputs, groups);
}

EVERY_PROCESSOR void low_rank_bfloat16(const Bfloat16* x, const Bfloat16* a, const Bfloat16* b,
                                       Bfloat16* y, int64_t num_rows, int64_t inputs,
                                       int64_t outputs, const Groups& groups) {
    low_rank(x, a, b, y, num_rows, inputs, outputs, groups);
}

}  // namespace

extern "C" {

// y[t] = x[t] A B for the ranks of the group of row t; -0 for rows of no group.
//
// x: num_rows x inputs. a: ranks x inputs. b: ranks x outputs. y: num_rows x outputs, written.
// Products and sums are float.
void hyprstream_low_rank(int64_t kind, const void* x, const void* a, const void* b, void* y,
                         int64_t num_rows, int64_t inputs, int64_t outputs, int64_t num_groups,
                         const int32_t* ranks, const int32_t* ends, const int32_t* rows) {
    const Groups groups{num_groups, ranks, ends, rows};
    if (kind == 0)
        low_rank_float(static_cast<const float*>(x), static_cast<const float*>(a),
                       static_cast<const float*>(b), static_cast<float*>(y), num_rows, inputs,
                       outputs, groups);
    else
        low_rank_bfloat16(static_cast<const Bfloat16*>(x), static_cast<const Bfloat16*>(a),
                          static_cast<const Bfloat16*>(b), static_cast<Bfloat16*>(y), num_rows,
                          inputs, outputs, groups);
}
}
