// The largest number of each row.
#pragma once

#include <cstdint>

// The largest number of each row, no place: NaN if there is one or an infinity.
void largest_of_rows(int64_t kind, const void* rows, int64_t num_rows, int64_t size, float* values);

extern "C" {

// The largest number of each row, num_rows x size, size above 0, and its first place; of NaN
// the first, if there is one.
void hyprstream_peaks(int64_t kind, const void* rows, int64_t num_rows, int64_t size, float* values,
                      int64_t* places);
}
