// What a unit does to its hidden values, and the derivative; the same table, by number, as activations.py.
#pragma once
#include <cmath>

#include "numbers.hpp"

constexpr float LIMIT = 7.f, ALPHA = 1.702f;  // of gpt-oss

// e^x by 2^n times a polynomial on |r| <= ln(2) / 2: branch-free, so that loops over it become vector code.
inline float exponential(float x) {
    x = x < -87.f ? -87.f : x;
    x = x > 89.f ? 89.f : x;  // 2^128: infinity, so that a sigmoid far out is 0 and not merely small
    float n = x * 1.44269504f + 12582912.f;  // 1.5 * 2^23 rounds to the nearest integer
    int32_t power;
    std::memcpy(&power, &n, 4);
    n -= 12582912.f;
    float r = x - n * 0.693359375f + n * 2.12194440e-4f;
    float tail = ((((1.9875691e-4f * r + 1.3981999e-3f) * r + 8.3334519e-3f) * r + 4.1665795e-2f) * r + 1.6666665e-1f) * r + 0.5f;
    uint32_t scale = uint32_t(power + 127) << 23;
    float two_to_n;
    std::memcpy(&two_to_n, &scale, 4);
    return (tail * r * r + r + 1.f) * two_to_n;
}
inline float sigmoid(float x) { return 1.f / (1.f + exponential(-x)); }

struct Gate {
    float value, slope;
};
struct Silu {
    static Gate at(float x) {
        float s = sigmoid(x);
        return {x * s, s * (1.f + x * (1.f - s))};
    }
};
struct GeluTanh {
    static Gate at(float x) {
        float inner = 0.79788456f * (x + 0.044715f * x * x * x);
        float half = sigmoid(2.f * inner);  // (1 + tanh) / 2
        return {x * half, half + x * half * (1.f - half) * 1.59576912f * (1.f + 0.134145f * x * x)};
    }
};
struct Relu {
    static Gate at(float x) { return {x < 0.f ? 0.f : x, x > 0.f ? 1.f : 0.f}; }
};
struct Relu2 {
    static Gate at(float x) {
        float y = Relu::at(x).value;
        return {y * y, 2.f * y};
    }
};
struct Gelu {
    static Gate at(float x) {
        // the error function by Abramowitz and Stegun 7.1.26, |error| <= 1.5e-7
        float bell = exponential(-0.5f * x * x);
        float t = 1.f / (1.f + 0.23164190f * std::fabs(x));
        float series = ((((1.061405429f * t - 1.453152027f) * t + 1.421413741f) * t - 0.284496736f) * t + 0.254829592f) * t;
        float tail = 0.5f * series * bell, normal = x < 0.f ? tail : 1.f - tail;
        return {x * normal, normal + x * 0.39894228f * bell};
    }
};

// One row: active[f] from hidden[0..parts*width).
template <class G> void gated_row(const float* __restrict hidden, int64_t width, float* __restrict active) {
    for (int64_t f = 0; f < width; ++f) active[f] = G::at(hidden[f]).value * hidden[width + f];
}
template <class G> void plain_row(const float* __restrict hidden, int64_t width, float* __restrict active) {
    for (int64_t f = 0; f < width; ++f) active[f] = G::at(hidden[f]).value;
}
inline void clamped_row(const float* __restrict hidden, int64_t width, float* __restrict active) {
    for (int64_t f = 0; f < width; ++f) {
        float g = hidden[f], v = hidden[width + f];
        g = g > LIMIT ? LIMIT : g, v = v > LIMIT ? LIMIT : v, v = v < -LIMIT ? -LIMIT : v;
        active[f] = (v + 1.f) * g * sigmoid(ALPHA * g);
    }
}
inline void drelu_row(const float* __restrict hidden, int64_t width, float* __restrict active) {
    for (int64_t f = 0; f < width; ++f) active[f] = Relu::at(hidden[f]).value * Relu::at(hidden[width + f]).value;
}

// One row backward: `hidden` becomes its gradient, `active` is recomputed; `grad` is that of `active`.
template <class G> void gated_row_back(float* __restrict hidden, int64_t width, const float* __restrict grad, float* __restrict active) {
    for (int64_t f = 0; f < width; ++f) {
        Gate gate = G::at(hidden[f]);
        float value = hidden[width + f];
        active[f] = gate.value * value;
        hidden[f] = grad[f] * value * gate.slope;
        hidden[width + f] = grad[f] * gate.value;
    }
}
template <class G> void plain_row_back(float* __restrict hidden, int64_t width, const float* __restrict grad, float* __restrict active) {
    for (int64_t f = 0; f < width; ++f) {
        Gate gate = G::at(hidden[f]);
        active[f] = gate.value;
        hidden[f] = grad[f] * gate.slope;
    }
}
inline void clamped_row_back(float* __restrict hidden, int64_t width, const float* __restrict grad, float* __restrict active) {
    for (int64_t f = 0; f < width; ++f) {
        float g = hidden[f], v = hidden[width + f];
        bool free_g = g <= LIMIT, free_v = v >= -LIMIT && v <= LIMIT;
        g = g > LIMIT ? LIMIT : g, v = v > LIMIT ? LIMIT : v, v = v < -LIMIT ? -LIMIT : v;
        float s = sigmoid(ALPHA * g);
        active[f] = (v + 1.f) * g * s;
        hidden[f] = free_g ? grad[f] * (v + 1.f) * s * (1.f + ALPHA * g * (1.f - s)) : 0.f;
        hidden[width + f] = free_v ? grad[f] * g * s : 0.f;
    }
}
inline void drelu_row_back(float* __restrict hidden, int64_t width, const float* __restrict grad, float* __restrict active) {
    for (int64_t f = 0; f < width; ++f) {
        const Gate gate = Relu::at(hidden[f]), value = Relu::at(hidden[width + f]);
        active[f] = gate.value * value.value;
        hidden[f] = grad[f] * value.value * gate.slope;
        hidden[width + f] = grad[f] * gate.value * value.slope;
    }
}

struct Activation {
    int parts;
    void (*forward)(const float* __restrict hidden, int64_t width, float* __restrict active);
    void (*backward)(float* hidden, int64_t width, const float* grad, float* active);
};
inline const Activation& activation(int code) {
    static const Activation table[] = {
        {2, gated_row<Silu>, gated_row_back<Silu>},
        {2, gated_row<GeluTanh>, gated_row_back<GeluTanh>},
        {2, gated_row<Relu>, gated_row_back<Relu>},
        {1, plain_row<Relu2>, plain_row_back<Relu2>},
        {1, plain_row<Gelu>, plain_row_back<Gelu>},
        {2, clamped_row, clamped_row_back},
        {2, drelu_row, drelu_row_back},
    };
    return table[code];
}
