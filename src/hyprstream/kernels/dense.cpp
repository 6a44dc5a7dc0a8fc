// Products of few rows with dense weights in bfloat16, which stay as they lie in a file.
//
// The time of one row is that of reading the weights, once. A result is the same whatever other
// rows and outputs there are, and whichever instructions compute it.

#include <cmath>
#include <vector>

#include "dense.h"
#include "pool.h"

namespace {

constexpr int64_t kWorkOfPiece = 1 << 18;  // weights times rows: some 10 us

template <typename Number>
INLINE void spread(const Number* x, int64_t num_rows, int64_t inputs, float* values,
                   int64_t stride) {
    const int64_t whole = inputs / kStep * kStep;
    for (int64_t row = 0; row < num_rows; ++row, x += inputs, values += stride) {
        for (int64_t first = 0; first < whole; first += kStep)
            for (int64_t i = 0; i < kSums; ++i) {
                values[first + i] = wide(x[first + 2 * i]);
                values[first + kSums + i] = wide(x[first + 2 * i + 1]);
            }
        for (int64_t i = 0; whole + i < stride; ++i)
            values[whole + i % 2 * kSums + i / 2] = whole + i < inputs ? wide(x[whole + i]) : 0.0f;
    }
}

EVERY_PROCESSOR void spread_floats(const float* x, int64_t num_rows, int64_t inputs, float* values,
                                   int64_t stride) {
    spread(x, num_rows, inputs, values, stride);
}

EVERY_PROCESSOR void spread_bfloats(const Bfloat16* x, int64_t num_rows, int64_t inputs,
                                    float* values, int64_t stride) {
    spread(x, num_rows, inputs, values, stride);
}

template <typename Number>
INLINE void put(const float* results, int64_t num_rows, int64_t count, Number* y, int64_t stride) {
    for (int64_t row = 0; row < num_rows; ++row)
        for (int64_t i = 0; i < count; ++i) narrow(results[row * kUnit + i], y + row * stride + i);
}

EVERY_PROCESSOR void put_floats(const float* results, int64_t num_rows, int64_t count, float* y,
                                int64_t stride) {
    put(results, num_rows, count, y, stride);
}

EVERY_PROCESSOR void put_bfloats(const float* results, int64_t num_rows, int64_t count, Bfloat16* y,
                                 int64_t stride) {
    put(results, num_rows, count, y, stride);
}

// --- With any instructions: what the others have to equal ---

void plain_tile(const Dense& w, int64_t output, const Rows& x, int64_t row, float* y) {
    float sums[kSums] = {0};
    for (int64_t i = 0; i < x.stride; ++i) {
        const bool is_there = i < w.inputs;
        const float weight = is_there ? wide(Bfloat16{w.weights[output * w.inputs + i]}) : 0.0f;
        const int64_t in_step = i % kStep;
        const float input = x.at(row)[i - in_step + in_step % 2 * kSums + in_step / 2];
        sums[in_step / 2] = std::fma(weight, input, sums[in_step / 2]);
    }
    y[row * kUnit] = total(load(sums));
}

constexpr DenseTiles kDensePlain = {1, 1, {plain_tile}, {plain_tile}};

const DenseTiles& choose(int64_t instructions) {
#ifdef HAS_AVX
    if (instructions >= kAvx512) return kDenseAvx512;
    if (instructions >= kAvx2) return kDenseAvx2;
#endif
    return kDensePlain;
}

void unit_product(const DenseTiles& tiles, const Dense& w, int64_t first, int64_t count,
                  const Rows& x, int64_t num_rows, float* y) {
    for (int64_t o = 0, width; o < count; o += width) {
        const bool several = o + tiles.outputs <= count;
        width = several ? tiles.outputs : 1;
        for (int64_t row = 0; row < num_rows; row += tiles.rows) {
            const int64_t left = num_rows - row;
            const int64_t rows = left < tiles.rows ? left : tiles.rows;
            (several ? tiles.several : tiles.single)[rows - 1](w, first + o, x, row, y + o);
        }
    }
}

void product(const Dense& w, const Rows& x, int64_t num_rows, int64_t kind, void* y,
             const DenseTiles& tiles, int64_t threads) {
    const int64_t units = (w.outputs + kUnit - 1) / kUnit;
    const int64_t work = w.inputs * kUnit * num_rows;
    const int64_t grain = work < kWorkOfPiece ? kWorkOfPiece / work : 1;
    parallel(threads, units, grain, [&](int64_t begin, int64_t end) {
        thread_local std::vector<float> results;
        results.resize(num_rows * kUnit);
        for (int64_t first = begin * kUnit; first < end * kUnit; first += kUnit) {
            const int64_t left = w.outputs - first, count = left < kUnit ? left : kUnit;
            unit_product(tiles, w, first, count, x, num_rows, results.data());
            if (kind == 0)
                put_floats(results.data(), num_rows, count, static_cast<float*>(y) + first,
                           w.outputs);
            else
                put_bfloats(results.data(), num_rows, count, static_cast<Bfloat16*>(y) + first,
                            w.outputs);
        }
    });
}

}  // namespace

extern "C" {

// y = x W^T for up to three matrices of equally many inputs: w[i] gives y[i], null ends the list.
//
// x: num_rows x inputs. y: num_rows x outputs, written. All of one kind of number, sums are
// floats. `instructions`: which, of those that the processor has.
void hyprstream_dense_products(int64_t kind, const void* x, int64_t num_rows, int64_t threads,
                               int64_t instructions, const Dense* w0, void* y0, const Dense* w1,
                               void* y1, const Dense* w2, void* y2) {
    thread_local std::vector<float> values;
    const Dense* weights[] = {w0, w1, w2};
    void* results[] = {y0, y1, y2};
    if (num_rows < 1) return;
    const int64_t inputs = w0->inputs, stride = (inputs + kStep - 1) / kStep * kStep;
    values.resize(num_rows * stride);
    if (kind == 0)
        spread_floats(static_cast<const float*>(x), num_rows, inputs, values.data(), stride);
    else
        spread_bfloats(static_cast<const Bfloat16*>(x), num_rows, inputs, values.data(), stride);
    const Rows rows{values.data(), stride};
    for (int i = 0; i < 3 && weights[i]; ++i)
        product(*weights[i], rows, num_rows, kind, results[i], choose(instructions), threads);
}
}
