// What this processor can do.

#include "instructions.h"

extern "C" {

// Tell whether this processor has one of `Instructions`. A wider one does not imply a narrower:
// there are processors with AVX-512 and without AVX-VNNI.
int64_t hyprstream_has_instructions(int64_t instructions) {
    if (instructions == kPlain) return 1;
#ifdef HAS_AVX
    const bool has_halves = __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
    const bool has_avx2 = __builtin_cpu_supports("avx2") && has_halves;
    const bool has_words = __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
    const bool has_avx512 = __builtin_cpu_supports("avx512dq") && has_words && has_halves &&
                            __builtin_cpu_supports("avx512vnni");
    switch (instructions) {
        case kAvx2: return has_avx2;
        case kAvxVnni: return has_avx2 && __builtin_cpu_supports("avxvnni");
        case kAvx512: return has_avx512;
        case kAvx512Bf16: return has_avx512 && __builtin_cpu_supports("avx512bf16");
    }
#endif
    return 0;
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
