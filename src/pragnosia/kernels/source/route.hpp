// Who wakes: rows of logits to scores, the few units with the largest claims, and their strengths (thalamus.py).
//
//   softmax, sigmoid   claim = score + balance            threshold   claim = score - cutoff, and must be positive
//   strength = score, over the sum of the woken ones where renormalised, times scale
#pragma once
#include <algorithm>
#include <vector>

#include "activation.hpp"

enum Router : int64_t { DENSE, SOFTMAX, SIGMOID, THRESHOLD };

struct Routing {
    int64_t kind, units, slots, renormalise;
    double scale;
    const float *balance, *cutoffs;  // (U,); null where there is none
};

// The units with the largest claims by two plain passes, where slots are few: of groups that stride through the claims
// each has a best one, so at least `slots` claims reach the slots-th best of those, and hardly more do. False where
// that finds too few (claims that are no numbers) or too many (equals).
inline bool pick_by_groups(const float* __restrict claims, int64_t units, int64_t slots, int64_t* woken) {
    constexpr int64_t STRIDES = 64, MOST = 4 * STRIDES;
    float best[STRIDES];
    std::fill_n(best, STRIDES, -INFINITY);
    int64_t u = 0;
    for (; u + STRIDES <= units; u += STRIDES)
        for (int64_t g = 0; g < STRIDES; ++g) best[g] = claims[u + g] > best[g] ? claims[u + g] : best[g];
    for (int64_t g = 0; u + g < units; ++g) best[g] = claims[u + g] > best[g] ? claims[u + g] : best[g];
    std::nth_element(best, best + slots - 1, best + STRIDES, [](float a, float b) { return a > b; });
    const float least = best[slots - 1];
    if (!(least > -INFINITY)) return false;
    int64_t found = 0, reach[MOST + STRIDES];
    for (u = 0; u < units && found <= MOST; u += STRIDES)
        for (int64_t v = u, last = std::min(u + STRIDES, units); v < last; ++v) reach[found] = v, found += claims[v] >= least;
    if (found < slots || found > MOST) return false;
    std::partial_sort(reach, reach + slots, reach + found, [&](int64_t a, int64_t b) {
        return claims[a] != claims[b] ? claims[a] > claims[b] : a < b;
    });
    std::copy_n(reach, slots, woken);
    return true;
}

// The `slots` units with the largest claims, the largest first; of equals, the first.
inline void pick(const float* __restrict claims, int64_t units, int64_t slots, int64_t* woken) {
    constexpr int64_t FEW = 8, BINS = 512;
    if (slots > FEW && slots <= 32 && units >= 256 && pick_by_groups(claims, units, slots, woken)) return;
    float low = INFINITY, high = -INFINITY;
    if (slots > FEW) {
#pragma omp simd reduction(min : low) reduction(max : high)
        for (int64_t u = 0; u < units; ++u) low = claims[u] < low ? claims[u] : low, high = claims[u] > high ? claims[u] : high;
    }
    const float scale = float(BINS - 1) / (high - low);
    if (slots <= FEW || !(scale > 0 && scale < INFINITY)) {
        int64_t kept = 0;
        for (int64_t u = 0; u < units; ++u) {
            if (kept == slots && !(claims[u] > claims[woken[kept - 1]])) continue;
            int64_t at = kept < slots ? kept++ : kept - 1;
            for (; at > 0 && claims[u] > claims[woken[at - 1]]; --at) woken[at] = woken[at - 1];
            woken[at] = u;
        }
        return;
    }
    // by bins first, so that only the bin in which the last place falls has to be looked at closely
    const auto bin = [&](int64_t u) {
        const float place = (claims[u] - low) * scale;
        return int(place > 0 ? place : 0);  // what is no number claims nothing
    };
    const auto before = [&](int64_t u, int64_t v) {
        const float a = claims[u] == claims[u] ? claims[u] : -INFINITY, b = claims[v] == claims[v] ? claims[v] : -INFINITY;
        return a != b ? a > b : u < v;
    };
    static thread_local std::vector<int64_t> edge;
    int32_t count[BINS] = {};
    for (int64_t u = 0; u < units; ++u) ++count[bin(u)];
    int last = BINS - 1;
    int64_t above = 0;
    while (above + count[last] < slots) above += count[last--];
    edge.clear();
    int64_t kept = 0;
    for (int64_t u = 0; u < units; ++u) {
        const int b = bin(u);
        if (b > last) woken[kept++] = u;
        else if (b == last) edge.push_back(u);
    }
    std::nth_element(edge.begin(), edge.begin() + (slots - above - 1), edge.end(), before);
    std::copy_n(edge.begin(), slots - above, woken + above);
    std::sort(woken, woken + slots, before);
}

// One token: `scores` holds the logits, `claims` is scratch; a slot that wakes nobody becomes -1 with strength 0.
inline void choose(const Routing& r, float* __restrict scores, float* __restrict claims, int64_t* woken, float* strengths) {
    const int64_t units = r.units;
    float total = 0, peak = -INFINITY, sum = 0;
    if (r.kind == SOFTMAX) {
#pragma omp simd reduction(max : peak)
        for (int64_t u = 0; u < units; ++u) peak = scores[u] > peak ? scores[u] : peak;
#pragma omp simd reduction(+ : total)
        for (int64_t u = 0; u < units; ++u) {
            // a silenced unit scores exactly 0
            scores[u] = scores[u] == -INFINITY ? 0.f : exponential(scores[u] - peak);
            total += scores[u];
        }
        const float share = total > 0 ? 1.f / total : 0.f;
        for (int64_t u = 0; u < units; ++u) scores[u] *= share;
    } else {
        for (int64_t u = 0; u < units; ++u) scores[u] = scores[u] == -INFINITY ? 0.f : sigmoid(scores[u]);
    }
    const float* offset = r.kind == THRESHOLD ? r.cutoffs : r.balance;
    const float sign = r.kind == THRESHOLD ? -1.f : 1.f;
    for (int64_t u = 0; u < units; ++u) claims[u] = offset ? scores[u] + sign * offset[u] : scores[u];
    // the largest claims, kept in order: most units fail at the first comparison
    pick(claims, units, r.slots, woken);
    for (int64_t a = 0; a < r.slots; ++a) {
        const int64_t u = woken[a];
        const bool wakes = scores[u] > 0 && (r.kind != THRESHOLD || claims[u] > 0);
        if (!wakes) woken[a] = -1;
        strengths[a] = wakes ? scores[u] : 0.f;
        sum += strengths[a];
    }
    const float factor = float(r.scale) / (r.renormalise ? std::max(sum, 1e-20f) : 1.f);
    for (int64_t a = 0; a < r.slots; ++a) strengths[a] *= factor;
}

// Rows of logits (T, U) become scores; who wakes (T, A) and how strongly.
inline void choose_rows(const Routing& r, const float* steering, float* scores, int64_t rows, int64_t threads, int64_t* woken, float* strengths) {
#pragma omp parallel num_threads(int(std::clamp<int64_t>(rows / 16, 1, threads)))
    {
        static thread_local Scratch scratch;
        scratch.reset(Scratch::size<float>(r.units));
        float* claims = scratch.take<float>(r.units);
#pragma omp for schedule(static)
        for (int64_t t = 0; t < rows; ++t) {
            float* row = scores + t * r.units;
            for (int64_t u = 0; u < r.units; ++u) row[u] += steering[u];
            choose(r, row, claims, woken + t * r.slots, strengths + t * r.slots);
        }
    }
}

// Slopes of the logits of the woken units (T, A), where only they have any: sigmoid, or softmax renormalised.
//
//   softmax   p = strength / scale     dz = scale p (g - sum p g)
//   sigmoid   dz = ds s (1 - s)        ds = scale g, or scale (g - sum q g) / sum s with q = s / sum s
inline void slopes_of_woken(const Routing& r, const float* scores, const int64_t* woken, const float* grad, float* slopes) {
    float mean = 0, sum = 0;
    for (int64_t a = 0; a < r.slots; ++a)
        if (woken[a] >= 0) sum += scores[woken[a]];
    sum = std::max(sum, 1e-20f);
    if (r.renormalise)
        for (int64_t a = 0; a < r.slots; ++a)
            if (woken[a] >= 0) mean += scores[woken[a]] / sum * grad[a];
    for (int64_t a = 0; a < r.slots; ++a) {
        slopes[a] = 0;
        if (woken[a] < 0) continue;
        const float s = scores[woken[a]], pull = float(r.scale) * (grad[a] - mean);
        slopes[a] = r.kind == SOFTMAX ? pull * s / sum : pull * (r.renormalise ? 1.f / sum : 1.f) * s * (1.f - s);
    }
}

// From the slopes of strengths (T, A) to those of x (T, D), weight (U, D) and bias (U,), visiting only who woke.
inline void route_back(const Routing& r, const float* scores, const int64_t* woken, const float* grad, const float* x, const float* weight,
                       int64_t rows, int64_t width, int64_t threads, float* grad_x, float* grad_weight, float* grad_bias) {
    static thread_local Scratch memory;
    const int64_t slots = rows * r.slots;
    memory.reset(Scratch::size<float>(slots) + Scratch::size<int32_t>(slots) + Scratch::size<int32_t>(r.units + 1));
    float* slopes = memory.take<float>(slots);
    int32_t *order = memory.take<int32_t>(slots), *bounds = memory.take<int32_t>(r.units + 1);
    // slots by unit, so that each row of the weight belongs to one thread and is summed in one order
    std::fill_n(bounds, r.units + 1, 0);
    for (int64_t i = 0; i < slots; ++i)
        if (woken[i] >= 0) ++bounds[woken[i] + 1];
    for (int64_t u = 0; u < r.units; ++u) bounds[u + 1] += bounds[u];
    for (int64_t i = 0; i < slots; ++i)
        if (woken[i] >= 0) order[bounds[woken[i]]++] = int32_t(i);
    for (int64_t u = r.units; u > 0; --u) bounds[u] = bounds[u - 1];
    bounds[0] = 0;
#pragma omp parallel num_threads(int(threads))
    {
#pragma omp for schedule(static)
        for (int64_t t = 0; t < rows; ++t) {
            float *slope = slopes + t * r.slots, *to = grad_x + t * width;
            slopes_of_woken(r, scores + t * r.units, woken + t * r.slots, grad + t * r.slots, slope);
            std::fill_n(to, width, 0.f);
            for (int64_t a = 0; a < r.slots; ++a) {
                if (woken[t * r.slots + a] < 0) continue;
                const float* __restrict from = weight + woken[t * r.slots + a] * width;
                for (int64_t d = 0; d < width; ++d) to[d] += slope[a] * from[d];
            }
        }
#pragma omp for schedule(dynamic, 4)
        for (int64_t u = 0; u < r.units; ++u) {
            float *to = grad_weight + u * width, total = 0;
            std::fill_n(to, width, 0.f);
            for (int32_t i = bounds[u]; i < bounds[u + 1]; ++i) {
                const float slope = slopes[order[i]];
                const float* __restrict from = x + order[i] / r.slots * width;
                for (int64_t d = 0; d < width; ++d) to[d] += slope * from[d];
                total += slope;
            }
            if (grad_bias) grad_bias[u] = total;
        }
    }
}
