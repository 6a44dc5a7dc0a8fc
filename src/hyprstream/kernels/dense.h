// Dense weights in bfloat16, and the rows that they are multiplied with.
//
// Sixteen sums are kept for each result. Sum i takes inputs 2i and 2i + 1 of each 32, in this
// order, with one rounding for a product and its addition; zeros fill the last 32. At the end
// the sums are added as `total` does.
#pragma once

#include "instructions.h"
#include "numbers.h"

// Laid out as `DenseMatrix` of native.py.
struct Dense {
    const uint16_t* weights;  // outputs x inputs
    int64_t outputs, inputs;
};

// Rows as floats: of each 32 inputs first those of even places, then the others; zeros fill up.
struct Rows {
    const float* values;
    int64_t stride;

    const float* at(int64_t row) const { return values + row * stride; }
};

namespace {

constexpr int64_t kStep = 32;     // inputs: a cache line of weights
constexpr int64_t kSums = 16;
constexpr int64_t kUnit = 24;     // outputs that are written at a time: whole tiles of 6 and of 3

// How far from the weights of step `s` those lie that are to be fetched, where as many outputs
// are read side by side: in the same rows, or in the same place of the rows that come next.
INLINE int64_t fetched(const Dense& w, int64_t outputs, int64_t s) {
    const int64_t steps = w.inputs / kStep, far = kAhead / (2 * kStep * outputs);
    const int64_t distance = far < steps ? far : steps;
    return distance * kStep + (s + distance < steps ? 0 : outputs * w.inputs - steps * kStep);
}

}  // namespace

// Some outputs from `output` on, of some rows from `row` on: written to y[row][kUnit].
typedef void (*DenseTile)(const Dense& w, int64_t output, const Rows& x, int64_t row, float* y);

// The tiles of one kind of instructions: [i] is of i + 1 rows, and of `outputs` or one output.
struct DenseTiles {
    int64_t outputs, rows;
    DenseTile several[4], single[4];
};

#ifdef HAS_AVX
extern const DenseTiles kDenseAvx2, kDenseAvx512;
#endif
