// What this processor can do.

#include "instructions.h"

extern "C" {

// The widest of `Instructions` that this processor has.
int64_t hyprstream_instructions() {
#ifdef HAS_AVX
    const bool has_words = __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
    if (__builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vnni") && has_words)
        return __builtin_cpu_supports("avx512bf16") ? kAvx512Bf16 : kAvx512;
    const bool has_halves = __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
    if (__builtin_cpu_supports("avx2") && has_halves)
        return __builtin_cpu_supports("avxvnni") ? kAvxVnni : kAvx2;
#endif
    return kPlain;
}

// Tell whether vectors of bfloat16 are multiplied faster than those of float: on AMD's
// processors they are, on Intel's the instructions are there and as slow as the others.
int64_t hyprstream_multiplies_bfloat16() {
#ifdef HAS_AVX
    return __builtin_cpu_is("amd") && __builtin_cpu_supports("avx512bf16") ? 1 : 0;
#else
    return 1;
#endif
}
}
