// Low-rank adapters of a few rows, each adapter read once.

#include <vector>

#include "low_rank.h"
#include "pool.h"

namespace {

constexpr int64_t kTogether = 4;  // rows, or ranks, that share what is read
constexpr int64_t kWorkOfPiece = 1 << 16;  // numbers of adapters: some 5 us

template <typename Number>
INLINE Vec load_some(const Number* x, int64_t count) {
    Number values[kVec] = {};
    std::memcpy(values, x, count * sizeof(Number));
    return load(values);
}

// Of 16 numbers those that there are; whole vectors take no copy.
template <typename Number>
INLINE Vec load_up_to(const Number* x, int64_t left) {
    return left >= kVec ? load(x) : load_some(x, left);
}

INLINE int64_t padded(int64_t size) { return (size + kVec - 1) / kVec * kVec; }

// Products of `kRows` rows with one rank. The order of additions is the same for any kRows: a
// row does not feel its neighbours.
template <int64_t kRows, typename Weight>
INLINE void dots(const float* x, int64_t stride, const Weight* w, int64_t size, float* results) {
    Vec sums[2][kRows];
    for (int64_t row = 0; row < kRows; ++row) sums[0][row] = sums[1][row] = Vec{};
    int64_t i = 0;
    for (; i + 2 * kVec <= size; i += 2 * kVec) {
        const Vec first = load(w + i), second = load(w + i + kVec);
        for (int64_t row = 0; row < kRows; ++row) {
            sums[0][row] += first * load(x + row * stride + i);
            sums[1][row] += second * load(x + row * stride + i + kVec);
        }
    }
    for (; i < size; i += kVec) {
        const Vec last = load_up_to(w + i, size - i);
        for (int64_t row = 0; row < kRows; ++row) sums[0][row] += last * load(x + row * stride + i);
    }
    for (int64_t row = 0; row < kRows; ++row) results[row] = total(sums[0][row] + sums[1][row]);
}

// sums[row] += the products of `kRanks` factors of each row with as many ranks.
template <int64_t kRanks, typename Weight>
INLINE void add(const float* factors, int64_t num_rows, const Weight* w, int64_t size, float* sums,
                int64_t stride) {
    for (int64_t i = 0; i < size; i += kVec) {
        Vec outs[kRanks];
        for (int64_t rank = 0; rank < kRanks; ++rank)
            outs[rank] = load_up_to(w + rank * size + i, size - i);
        for (int64_t row = 0; row < num_rows; ++row) {
            Vec sum = load(sums + row * stride + i);
            for (int64_t rank = 0; rank < kRanks; ++rank)
                sum += outs[rank] * factors[rank * num_rows + row];
            std::memcpy(sums + row * stride + i, &sum, sizeof sum);
        }
    }
}

template <typename Number, typename Weight>
INLINE void low_rank(const Number* x, const Weight* a, const Weight* b, Number* y, int64_t inputs,
                     int64_t outputs, const RankGroup& group) {
    thread_local std::vector<float> wide_x, hidden, sums;
    const int64_t in_stride = padded(inputs), out_stride = padded(outputs);
    const int64_t count = group.num_rows, begin = group.begin, end = group.end;
    wide_x.assign(count * in_stride, 0.0f);
    hidden.resize(count * (end - begin));
    sums.assign(count * out_stride, 0.0f);
    for (int64_t row = 0; row < count; ++row)
        for (int64_t i = 0; i < inputs; ++i)
            wide_x[row * in_stride + i] = wide(x[group.rows[row] * inputs + i]);
    for (int64_t rank = begin; rank < end; ++rank) {
        fetch(b + rank * outputs, outputs);
        float* factors = hidden.data() + (rank - begin) * count;
        const Weight* in = a + rank * inputs;
        int64_t row = 0;
        for (; row + kTogether <= count; row += kTogether)
            dots<kTogether>(wide_x.data() + row * in_stride, in_stride, in, inputs, factors + row);
        for (; row < count; ++row)
            dots<1>(wide_x.data() + row * in_stride, in_stride, in, inputs, factors + row);
    }
    int64_t rank = begin;
    for (; rank + kTogether <= end; rank += kTogether)
        add<kTogether>(hidden.data() + (rank - begin) * count, count, b + rank * outputs, outputs,
                       sums.data(), out_stride);
    for (; rank < end; ++rank)
        add<1>(hidden.data() + (rank - begin) * count, count, b + rank * outputs, outputs,
               sums.data(), out_stride);
    for (int64_t row = 0; row < count; ++row) {
        Number* result = y + group.rows[row] * outputs;
        for (int64_t i = 0; i < outputs; ++i)
            narrow(wide(result[i]) + sums[row * out_stride + i], result + i);
    }
}

#define LOW_RANK(NAME, NUMBER)                                                                   \
    EVERY_PROCESSOR void NAME(const void* x, const void* a, const void* b, void* y,             \
                              int64_t inputs, int64_t outputs, const RankGroup& group) {        \
        low_rank(static_cast<const NUMBER*>(x), static_cast<const NUMBER*>(a),                  \
                 static_cast<const NUMBER*>(b), static_cast<NUMBER*>(y), inputs, outputs, group); \
    }
LOW_RANK(low_rank_float, float)
LOW_RANK(low_rank_bfloat16, Bfloat16)
#undef LOW_RANK

LowRankProduct choose(int64_t kind, int64_t instructions) {
    if (kind == 0) return low_rank_float;
#ifdef HAS_AVX
    if (instructions >= kAvx512Bf16) return low_rank_avx512_bf16;
#endif
    return low_rank_bfloat16;
}

}  // namespace

extern "C" {

// y[t] += x[t] A B for the ranks of the group of row t; rows of no group stay as they are.
//
// x: rows x inputs. a: ranks x inputs. b: ranks x outputs. y: rows x outputs. Products and sums
// are float, and rounded once. `ranks`: begin and end of each group's. `ends`: where the rows of
// each end in `rows`. `instructions`: which, of those that the processor has.
void hyprstream_low_rank(int64_t kind, const void* x, const void* a, const void* b, void* y,
                         int64_t inputs, int64_t outputs, int64_t num_groups, const int32_t* ranks,
                         const int32_t* ends, const int32_t* rows, int64_t threads,
                         int64_t instructions) {
    if (num_groups < 1) return;
    const LowRankProduct product = choose(kind, instructions);
    const int64_t work = (ranks[1] - ranks[0]) * (inputs + outputs) + 1;
    const int64_t grain = work < kWorkOfPiece ? kWorkOfPiece / work : 1;
    // No two groups have a row in common.
    parallel(threads, num_groups, grain, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
            const int64_t first = i ? ends[i - 1] : 0;
            product(x, a, b, y, inputs, outputs,
                    {ranks[2 * i], ranks[2 * i + 1], rows + first, ends[i] - first});
        }
    });
}
}
