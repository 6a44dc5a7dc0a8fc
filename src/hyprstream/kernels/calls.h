// What Python calls and other kernels call, too; described where it is defined.
#pragma once

#include <cstdint>

#include "dense.h"
#include "packed.h"

extern "C" {

void hyprstream_rms_norm(int64_t kind, const void* x, const float* scale, float eps,
                         int64_t num_rows, int64_t width, void* y);
void hyprstream_rotate(int64_t kind, const void* x, const void* cosines, const void* sines,
                       int64_t num_rows, int64_t heads, int64_t width, int64_t turned, void* y);
void hyprstream_gate(int64_t kind, const void* x, const void* up, int64_t count, void* y);
void hyprstream_low_rank(int64_t kind, const void* x, const void* a, const void* b, void* y,
                         int64_t inputs, int64_t outputs, int64_t num_groups, const int32_t* ranks,
                         const int32_t* ends, const int32_t* rows, int64_t threads,
                         int64_t instructions);
void hyprstream_attend(int64_t kind, const void* q, const void* keys, const void* values, void* y,
                       int64_t num_queries, const int32_t* ends, const int32_t* tables,
                       const int32_t* blocks, int64_t heads, int64_t kv_heads, int64_t width,
                       int64_t block_tokens, int64_t window, float scale, float softcap);
void hyprstream_packed_products(int64_t kind, const void* x, int64_t num_rows, int64_t threads,
                                int64_t instructions, const Packed* w0, void* y0, const Packed* w1,
                                void* y1, const Packed* w2, void* y2);
void hyprstream_dense_products(int64_t kind, const void* x, int64_t num_rows, int64_t threads,
                               int64_t instructions, const Dense* w0, void* y0, const Dense* w1,
                               void* y1, const Dense* w2, void* y2);
void hyprstream_attend_codes(int64_t kind, int64_t instructions, const void* q, const void* keys,
                             const void* values, void* y, int64_t num_queries, const int32_t* ends,
                             const int32_t* tables, const int32_t* blocks, int64_t heads,
                             int64_t kv_heads, int64_t width, int64_t block_tokens, int64_t window,
                             float scale, float softcap);
void hyprstream_keep_codes(int64_t kind, const void* k, const void* v, const int64_t* places,
                           int64_t num_rows, int64_t kv_heads, int64_t width, void* keys,
                           void* values);
}
