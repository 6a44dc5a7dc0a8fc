// Work for several threads, in pieces that whoever is free takes.
#pragma once

#include <cstdint>
#include <utility>

// A piece of work: what lies from `begin` to `end`.
typedef void (*Piece)(const void* work, int64_t begin, int64_t end);

// Do 0 to `count` in pieces of `grain`, with up to `threads` threads, this one among them.
//
// Returns when all is done. Threads are made when first wanted, kept, and shared by all who
// call; who finds them at work for another does the work alone.
void divide(int64_t threads, int64_t count, int64_t grain, Piece piece, const void* work);

// The same for anything that can be called with begin and end.
template <typename Work>
void parallel(int64_t threads, int64_t count, int64_t grain, const Work& work) {
    divide(
        threads, count, grain,
        [](const void* what, int64_t begin, int64_t end) {
            (*static_cast<const Work*>(what))(begin, end);
        },
        &work);
}
