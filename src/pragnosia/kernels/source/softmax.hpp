// The loss of a row of logits and its gradient, in one visit: the row stays in cache from its maximum to its slope.
#pragma once
#include <cmath>

#include "activation.hpp"
#include "numbers.hpp"

// logits[rows, count] become scale * (softmax - onehot(target)); losses[row] = logsumexp - logit[target].
// A target below 0 does not count: its slopes and its loss are 0.
template <class T> struct Softmax {
    static void run(T* logits, int64_t rows, int64_t count, const int64_t* targets, float scale, int64_t threads,
                    float* losses) {
#pragma omp parallel num_threads(int(threads))
        {
            static thread_local Scratch scratch;
            scratch.reset(Scratch::size<float>(count));
            float* row = scratch.take<float>(count);
#pragma omp for schedule(static)
            for (int64_t r = 0; r < rows; ++r) losses[r] = slope(logits + r * count, count, targets[r], scale, row);
        }
    }

  private:
    static float slope(T* logits, int64_t count, int64_t target, float scale, float* __restrict row) {
        if (target < 0) {
            std::memset(static_cast<void*>(logits), 0, count * sizeof(T));
            return 0.f;
        }
        widen(logits, count, row);
        float most = row[0], total = 0.f, aimed = row[target];
#pragma omp simd reduction(max : most)
        for (int64_t i = 0; i < count; ++i) most = row[i] > most ? row[i] : most;
#pragma omp simd reduction(+ : total)
        for (int64_t i = 0; i < count; ++i) total += row[i] = exponential(row[i] - most);
        float chance = row[target] / total;
        narrow(row, count, scale / total, logits);
        logits[target] = narrow<T>(scale * (chance - 1.f));
        // A row that is no number must not look like a good one: comparisons drop a NaN, the sum of all keeps it.
        float check = 0.f;
#pragma omp simd reduction(+ : check)
        for (int64_t i = 0; i < count; ++i) check += widen(logits[i]);
        return std::isfinite(check) ? most + std::log(total) - aimed : NAN;
    }
};
