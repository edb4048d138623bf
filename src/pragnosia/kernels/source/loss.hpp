// Rows of logits to losses and, in place, to the slopes of a mean cross-entropy:
//
//   loss = log(sum_v exp z[v]) - z[target]      z[v] <- scale (softmax(z)[v] - [v = target])
#pragma once
#include <cmath>

#include "activation.hpp"
#include "numbers.hpp"

template <class T> float loss_row(T* logits, int64_t vocabulary, int64_t target, float scale, bool slopes, float* row) {
    widen(logits, vocabulary, row);
    float most = row[0], total = 0;
#pragma omp simd reduction(max : most)
    for (int64_t v = 0; v < vocabulary; ++v) most = row[v] > most ? row[v] : most;
    const float wanted = row[target];
#pragma omp simd reduction(+ : total)
    for (int64_t v = 0; v < vocabulary; ++v) {
        row[v] = exponential(row[v] - most);
        total += row[v];
    }
    if (slopes) {
        narrow(row, vocabulary, scale / total, logits);
        logits[target] = narrow<T>(scale * (row[target] / total - 1.f));
    }
    return std::log(total) + most - wanted;
}

// losses[n] of each row, zero (and zero slopes) where the target does not count; false where a target is no word.
template <class T>
bool loss_rows(T* logits, int64_t rows, int64_t vocabulary, const int64_t* targets, int64_t ignore, float scale, bool slopes,
               int64_t threads, float* losses) {
    for (int64_t n = 0; n < rows; ++n)
        if (targets[n] != ignore && (targets[n] < 0 || targets[n] >= vocabulary)) return false;
#pragma omp parallel num_threads(int(threads))
    {
        static thread_local Scratch scratch;
        scratch.reset(Scratch::size<float>(vocabulary));
        float* row = scratch.take<float>(vocabulary);
#pragma omp for schedule(static)
        for (int64_t n = 0; n < rows; ++n) {
            T* z = logits + n * vocabulary;
            losses[n] = targets[n] == ignore ? 0.f : loss_row(z, vocabulary, targets[n], scale, slopes, row);
            if (slopes && targets[n] == ignore) std::memset(z, 0, vocabulary * sizeof(T));
        }
    }
    return true;
}
