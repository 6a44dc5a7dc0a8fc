// Low-rank adapters of a few rows: what the files for several instructions share.
#pragma once

#include "instructions.h"
#include "numbers.h"

// Rows of a batch that use the same ranks.
struct RankGroup {
    int64_t begin, end;   // of the ranks
    const int32_t* rows;
    int64_t num_rows;
};

// Adds what the ranks of a group add to its rows; see hyprstream_low_rank.
typedef void (*LowRankProduct)(const void* x, const void* a, const void* b, void* y, int64_t inputs,
                               int64_t outputs, const RankGroup& group);

#ifdef HAS_AVX
void low_rank_avx512_bf16(const void* x, const void* a, const void* b, void* y, int64_t inputs,
                          int64_t outputs, const RankGroup& group);
#endif
