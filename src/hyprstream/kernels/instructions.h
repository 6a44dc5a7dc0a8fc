// Which instructions compute products. Whichever do, results are the same to the last bit.
#pragma once

#include <cstdint>

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#define HAS_AVX 1
#define AVX2 __attribute__((target("avx2,fma,f16c")))
#define AVX_VNNI __attribute__((target("avx2,fma,f16c,avxvnni")))
#define AVX512 __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,fma,f16c")))
#endif

// From the plainest to the widest: `INSTRUCTIONS` of native.py.
enum Instructions : int64_t {
    kPlain = 0,
    kAvx2 = 1,     // 8 numbers at a time; bytes are multiplied in pairs
    kAvxVnni = 2,  // ... four bytes at a time
    kAvx512 = 3,   // 16 numbers and four bytes at a time
    kAvx512Bf16 = 4,  // ... 32 products of bfloat16
};
