// What the kernels share: numbers, and one compilation for each generation of processors.
//
// Kernels take plain pointers and sizes; whoever calls has checked them. Matrices are row-major
// and dense. A kind says what numbers are: 0 float, 1 bfloat16.
#pragma once

#include <cstdint>
#include <cstring>

// One source, compiled for several generations of processors; the loader picks.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define EVERY_PROCESSOR __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define EVERY_PROCESSOR
#endif
#define INLINE_METHOD inline __attribute__((always_inline))
#define INLINE static INLINE_METHOD

namespace {

constexpr int64_t kLanes = 64;    // sums kept apart, so that they are vectors: 4 of 16 floats
constexpr int64_t kAhead = 8192;  // bytes of weights that are fetched before they are needed

struct Bfloat16 {
    uint16_t bits;
};

INLINE float wide(float value) { return value; }

INLINE float wide(Bfloat16 value) {
    const uint32_t bits = static_cast<uint32_t>(value.bits) << 16;
    float result;
    std::memcpy(&result, &bits, sizeof result);
    return result;
}

INLINE void narrow(float value, float* result) { *result = value; }

INLINE void narrow(float value, Bfloat16* result) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    const bool is_nan = (bits & 0x7fffffffu) > 0x7f800000u;
    const uint32_t rounded = bits + 0x7fffu + ((bits >> 16) & 1u);  // to nearest, ties to even
    result->bits = static_cast<uint16_t>(is_nan ? (bits >> 16) | 0x40u : rounded >> 16);
}

// Sixteen floats side by side, in as many registers as a processor needs for them.
typedef float Vec __attribute__((vector_size(64)));
typedef uint32_t VecBits __attribute__((vector_size(64)));
typedef int32_t VecInts __attribute__((vector_size(64)));
typedef uint8_t VecBytes __attribute__((vector_size(64)));
typedef uint16_t HalfBits __attribute__((vector_size(32)));
constexpr int64_t kVec = sizeof(Vec) / sizeof(float);

INLINE Vec load(const float* x) {
    Vec result;
    std::memcpy(&result, x, sizeof result);
    return result;
}

INLINE Vec load(const Bfloat16* x) {
    HalfBits halves;
    std::memcpy(&halves, x, sizeof halves);
    const VecBits bits = __builtin_convertvector(halves, VecBits) << 16;
    Vec result;
    std::memcpy(&result, &bits, sizeof result);
    return result;
}

typedef float Half __attribute__((vector_size(32)));
typedef float Quarter __attribute__((vector_size(16)));

// Always in the same order.
INLINE float total(Vec value) {
    Half low, high;
    std::memcpy(&low, &value, sizeof low);
    std::memcpy(&high, reinterpret_cast<const char*>(&value) + sizeof low, sizeof high);
    low += high;
    Quarter first, second;
    std::memcpy(&first, &low, sizeof first);
    std::memcpy(&second, reinterpret_cast<const char*>(&low) + sizeof first, sizeof second);
    first += second;
    return (first[0] + first[2]) + (first[1] + first[3]);
}

// e to the power of x, for x of 0 or less; within 2 units in the last place. NaN stays NaN.
INLINE float exponential(float x) {
    x = x < -87.0f ? -87.0f : x;
    const float shifted = x * 1.44269504f + 12582912.0f;  // the nearest integer, in the last bits
    const float whole = shifted - 12582912.0f;
    const float rest = (x - whole * 0.693359375f) + whole * 2.12194440e-4f;  // Cody and Waite
    float sum = 1.9875691500e-4f;  // Cephes, expf
    sum = sum * rest + 1.3981999507e-3f;
    sum = sum * rest + 8.3334519073e-3f;
    sum = sum * rest + 4.1665795894e-2f;
    sum = sum * rest + 1.6666665459e-1f;
    sum = sum * rest + 5.0000001201e-1f;
    sum = sum * rest * rest + rest + 1.0f;
    uint32_t bits;
    std::memcpy(&bits, &shifted, sizeof bits);
    bits = (bits << 23) + 0x3f800000u;  // two to the power of the integer
    float power;
    std::memcpy(&power, &bits, sizeof power);
    return sum * power;
}

// Reading ahead: the time of these kernels is that of memory.
template <typename Weight>
INLINE void fetch(const Weight* row, int64_t size) {
    const char* start = reinterpret_cast<const char*>(row);
    const int64_t num_bytes = size * static_cast<int64_t>(sizeof(Weight));
    for (int64_t byte = 0; byte < num_bytes; byte += 64) __builtin_prefetch(start + byte);
}

}  // namespace
