// What the ways to attend share.
#pragma once

#include <cmath>

#include "numbers.h"

namespace {

// How queries attend: see hyprstream_attend.
struct Attending {
    int64_t heads, kv_heads, width, block_tokens, window;
    float scale, softcap;
};

// Turns scores into shares that add up to one.
INLINE void soften(float* scores, int64_t count, float softcap) {
    if (softcap > 0)
        for (int64_t i = 0; i < count; ++i) scores[i] = softcap * std::tanh(scores[i] / softcap);
    float lanes[kVec];
    for (int64_t lane = 0; lane < kVec; ++lane) lanes[lane] = scores[0];
    int64_t i = 0;
    for (; i + kVec <= count; i += kVec)
        for (int64_t lane = 0; lane < kVec; ++lane)
            lanes[lane] = scores[i + lane] > lanes[lane] ? scores[i + lane] : lanes[lane];
    float largest = lanes[0];
    for (; i < count; ++i) largest = scores[i] > largest ? scores[i] : largest;
    for (int64_t lane = 0; lane < kVec; ++lane)
        largest = lanes[lane] > largest ? lanes[lane] : largest;
    for (i = 0; i < count; ++i) scores[i] = exponential(scores[i] - largest);
    for (int64_t lane = 0; lane < kVec; ++lane) lanes[lane] = 0;
    for (i = 0; i + kVec <= count; i += kVec)
        for (int64_t lane = 0; lane < kVec; ++lane) lanes[lane] += scores[i + lane];
    for (int64_t lane = 0; i + lane < count; ++lane) lanes[lane] += scores[i + lane];
    float sum = 0;
    for (int64_t lane = 0; lane < kVec; ++lane) sum += lanes[lane];
    const float inverse = 1.0f / sum;
    for (i = 0; i < count; ++i) scores[i] *= inverse;
}

}  // namespace
