// RMS norm of rows, forward and backward.
//
//   y = x r w      r = 1 / sqrt(mean(x^2) + eps)      n = x r      dx = r (g w - n mean(g w n))      dw = sum g n
#pragma once
#include <algorithm>
#include <cmath>
#include <vector>

#include "numbers.hpp"

// What a norm works on: rows of x and y (or of the slope of y) of either number type, weights of either.
struct NormRows {
    const void* x;
    int64_t x_is_bf16;
    const void* weight;
    int64_t weight_is_bf16, rows, width, threads;
};
inline int norm_team(const NormRows& n) { return int(std::clamp<int64_t>(n.rows * n.width / 8192, 1, n.threads)); }

inline void norm_forward(const NormRows& n, float eps, void* y, bool y_is_bf16, float* scales) {
#pragma omp parallel num_threads(norm_team(n))
    {
        static thread_local Scratch scratch;
        scratch.reset(2 * Scratch::size<float>(n.width));
        float *row = scratch.take<float>(n.width), *weight = scratch.take<float>(n.width);
        read(n.weight, n.weight_is_bf16, 0, n.width, weight);
#pragma omp for schedule(static)
        for (int64_t i = 0; i < n.rows; ++i) {
            read(n.x, n.x_is_bf16, i * n.width, n.width, row);
            float squares = 0;
#pragma omp simd reduction(+ : squares)
            for (int64_t k = 0; k < n.width; ++k) squares += row[k] * row[k];
            const float scale = 1.f / std::sqrt(squares / float(n.width) + eps);
            for (int64_t k = 0; k < n.width; ++k) row[k] *= scale * weight[k];
            write(row, n.width, y, y_is_bf16, i * n.width);
            if (scales) scales[i] = scale;
        }
    }
}

// The slope of x in x's type; that of the weight, if asked, summed thread by thread in a fixed order.
inline void norm_backward(const NormRows& n, const float* scales, const void* grad, bool grad_is_bf16, void* grad_x, float* grad_weight) {
    const int team = norm_team(n);
    std::vector<float> sums(grad_weight ? team * n.width : 0, 0.f);
#pragma omp parallel for schedule(static, 1) num_threads(team)
    for (int part = 0; part < team; ++part) {
        static thread_local Scratch scratch;
        scratch.reset(3 * Scratch::size<float>(n.width));
        float *row = scratch.take<float>(n.width), *slope = scratch.take<float>(n.width), *weight = scratch.take<float>(n.width);
        read(n.weight, n.weight_is_bf16, 0, n.width, weight);
        for (int64_t i = n.rows * part / team; i < n.rows * (part + 1) / team; ++i) {
            read(n.x, n.x_is_bf16, i * n.width, n.width, row);
            read(grad, grad_is_bf16, i * n.width, n.width, slope);
            const float scale = scales[i];
            float mean = 0;
#pragma omp simd reduction(+ : mean)
            for (int64_t k = 0; k < n.width; ++k) {
                row[k] *= scale;
                mean += slope[k] * weight[k] * row[k];
            }
            mean /= float(n.width);
            if (grad_weight) {
                float* __restrict sum = sums.data() + part * n.width;
                for (int64_t k = 0; k < n.width; ++k) sum[k] += slope[k] * row[k];
            }
            for (int64_t k = 0; k < n.width; ++k) row[k] = scale * (slope[k] * weight[k] - row[k] * mean);
            if (grad_x) write(row, n.width, grad_x, n.x_is_bf16, i * n.width);
        }
    }
    if (!grad_weight) return;
    std::fill_n(grad_weight, n.width, 0.f);
    for (int part = 0; part < team; ++part)
        for (int64_t k = 0; k < n.width; ++k) grad_weight[k] += sums[part * n.width + k];
}
