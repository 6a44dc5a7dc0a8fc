// The largest number of each row.

#include "peaks.h"

#include "numbers.h"

namespace {

constexpr int kWays = 4;  // vectors at a time, so that none waits for the one before

// The largest of some numbers; not to be used if one of them is NaN or infinite, which it tells.
template <typename Number>
INLINE float largest(const Number* numbers, int64_t count, bool* is_odd) {
    float best = wide(numbers[0]), odd = 0;
    Vec bests[kWays], odds[kWays];
    for (int way = 0; way < kWays; ++way) bests[way] = odds[way] = Vec{};
    int64_t i = 0;
    if (count >= kWays * kVec)
        for (int way = 0; way < kWays; ++way) bests[way] = load(numbers);
    for (; i + kWays * kVec <= count; i += kWays * kVec)
        for (int way = 0; way < kWays; ++way) {
            const Vec value = load(numbers + i + way * kVec);
            bests[way] = value > bests[way] ? value : bests[way];
            odds[way] += value * 0.0f;  // NaN, if the value is NaN or infinite
        }
    for (int way = kWays / 2; way > 0; way /= 2)
        for (int other = 0; other < way; ++other) {
            bests[other] = bests[other + way] > bests[other] ? bests[other + way] : bests[other];
            odds[other] += odds[other + way];
        }
    if (i > 0)
        for (int64_t lane = 0; lane < kVec; ++lane)
            best = bests[0][lane] > best ? bests[0][lane] : best;
    odd += total(odds[0]);
    for (; i < count; ++i) {
        best = wide(numbers[i]) > best ? wide(numbers[i]) : best;
        odd += wide(numbers[i]) * 0.0f;
    }
    *is_odd |= odd != odd;
    return best;
}

// The first place of the largest number, or of the first NaN, one by one.
template <typename Number>
INLINE int64_t place_of_largest(const Number* numbers, int64_t count) {
    int64_t best = 0;
    for (int64_t i = 0; i < count; ++i) {
        const float number = wide(numbers[i]);
        if (number != number) return i;
        if (number > wide(numbers[best])) best = i;
    }
    return best;
}

// The largest number of a row, and the first place where it stands; a NaN is larger than all.
template <typename Number>
INLINE void peak(const Number* row, int64_t size, float* value, int64_t* place) {
    constexpr int64_t kPiece = 1024, kAhead = 4 * kPiece;
    int64_t start = 0;  // of the first piece that holds the largest
    float best = 0;
    bool is_odd = false;
    for (int64_t i = 0; i < size && !is_odd; i += kPiece) {
        const int64_t next = i + kAhead;
        if (next < size) fetch(row + next, size - next < kPiece ? size - next : kPiece);
        const float here = largest(row + i, size - i < kPiece ? size - i : kPiece, &is_odd);
        if (i == 0 || here > best) {
            best = here;
            start = i;
        }
    }
    if (is_odd) start = 0;
    const int64_t left = is_odd || size - start < kPiece ? size - start : kPiece;
    *place = start + place_of_largest(row + start, left);
    *value = wide(row[*place]);
}

template <typename Number>
INLINE void peaks(const Number* rows, int64_t num_rows, int64_t size, float* values, int64_t* places) {
    for (int64_t row = 0; row < num_rows; ++row)
        peak(rows + row * size, size, values + row, places + row);
}

template <typename Number>
INLINE void largest_each(const Number* rows, int64_t num_rows, int64_t size, float* values) {
    for (int64_t row = 0; row < num_rows; ++row) {
        bool is_odd = false;
        values[row] = largest(rows + row * size, size, &is_odd);
        if (is_odd) values[row] = __builtin_nanf("");
    }
}

EVERY_PROCESSOR void largest_float(const float* rows, int64_t num_rows, int64_t size,
                                   float* values) {
    largest_each(rows, num_rows, size, values);
}

EVERY_PROCESSOR void largest_bfloat16(const Bfloat16* rows, int64_t num_rows, int64_t size,
                                      float* values) {
    largest_each(rows, num_rows, size, values);
}

EVERY_PROCESSOR void peaks_float(const float* rows, int64_t num_rows, int64_t size, float* values,
                                 int64_t* places) {
    peaks(rows, num_rows, size, values, places);
}

EVERY_PROCESSOR void peaks_bfloat16(const Bfloat16* rows, int64_t num_rows, int64_t size,
                                    float* values, int64_t* places) {
    peaks(rows, num_rows, size, values, places);
}

}  // namespace

void largest_of_rows(int64_t kind, const void* rows, int64_t num_rows, int64_t size,
                     float* values) {
    if (kind == 0)
        largest_float(static_cast<const float*>(rows), num_rows, size, values);
    else
        largest_bfloat16(static_cast<const Bfloat16*>(rows), num_rows, size, values);
}

extern "C" {

void hyprstream_peaks(int64_t kind, const void* rows, int64_t num_rows, int64_t size, float* values,
                      int64_t* places) {
    if (kind == 0)
        peaks_float(static_cast<const float*>(rows), num_rows, size, values, places);
    else
        peaks_bfloat16(static_cast<const Bfloat16*>(rows), num_rows, size, values, places);
}
}
