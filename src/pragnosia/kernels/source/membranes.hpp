// One step of a population's membranes. Spiking neurons are few, so that their reset is left to whoever lists them.
//
//   LIF      u = alpha v + (1 - alpha) i + j + n       fires where u > threshold and the neuron is not refractory
//   LIF-A    the same above threshold + beta w, then w = rho w (+ 1 for a spike)
//   Izhikevich   v' = 0.04 v^2 + 5 v + 140 - w + i,  w' = a (b v - w), two half steps of v; fires where v > 30 mV, where it is cut off
//
// v membrane, w adaptation or recovery, i current and j jumps [mV], n noise. What the three sources give:
//   pulses        j = what arrives
//   currents      s = sigma s + what arrives, and i grows by s
//   conductances  g = sigma g + what arrives, for excitation and inhibition; the membrane decays towards where the
//                 currents balance, as fast as it leaks: alpha = exp(-dt / tau (1 + g_e + g_i))
#pragma once
#include <cstdint>

#include "chance.hpp"

enum Model : int64_t { LIF, LIFA, IZHIKEVICH };
enum Receptor : int64_t { PULSES, CURRENTS, CONDUCTANCES };
constexpr int64_t TOGETHER = 1024;  // neurons whose working values stay in the first cache

// As kernels/spikes.py packs it. Channels of the ring and of what is open: 1, or 2 (excitation, inhibition) for
// conductances. Pointers are of the first row; rows follow each other.
struct Population {
    int64_t model, receptor, neurons, first, depth, winners, refractory, is_bf16, channels;
    void *v, *w;         // (rows, neurons) in float or bf16
    uint8_t* clock;      // (rows, neurons) steps of refractoriness left
    float* open;         // (rows, channels, neurons) what synapses have open; null for pulses
    float* ring;         // (rows, depth, channels, neurons) what is under way
    const float* bias;   // (neurons) current of each [mV]; may be null
    const float* current;  // (rows, neurons) current from outside [mV]; may be null
    int32_t* tally;      // (rows, neurons) spikes of each; may be null
    double leak, threshold, beta, rho, noise, gain, inhibition;  // leak is alpha
    double sigma[2], reversal[2], a, b, c, d, dt, tau;
};

// What a block of neurons is given and gives.
struct Moment {
    float *drive, *kick, *margin;  // current and noise [mV]; how far above threshold, null where nobody asks
    uint8_t* fired;
};

// `drive` = gain (bias + current) for `count` neurons from `at` on.
inline void drives(const Population& p, const float* current, int64_t at, int64_t count, float* __restrict drive) {
    const float gain = float(p.gain);
    for (int64_t i = 0; i < count; ++i) drive[i] = p.bias ? p.bias[at + i] : 0.f;
    if (current)
        for (int64_t i = 0; i < count; ++i) drive[i] += current[at + i];
    for (int64_t i = 0; i < count; ++i) drive[i] *= gain;
}

// Whether all membranes are numbers.
template <int64_t MODEL, int64_t RECEPTOR, class T>
bool membranes(const Population& p, T* __restrict v, T* __restrict w, uint8_t* __restrict clock, float* __restrict ring,
               float* __restrict open, int64_t count, const Moment& moment) {
    const float leak = float(p.leak), rest = 1.f - leak, threshold = float(p.threshold), beta = float(p.beta), rho = float(p.rho);
    const float gain = float(p.gain), noise = float(p.noise), dt = float(p.dt), rate = float(-p.dt / p.tau);
    const float sigma0 = float(p.sigma[0]), sigma1 = float(p.sigma[1]), to0 = float(p.reversal[0]), to1 = float(p.reversal[1]);
    const float a = float(p.a), b = float(p.b);
    const float *__restrict drive = moment.drive, *__restrict kick = moment.kick;
    float* __restrict margin = moment.margin;
    uint8_t* __restrict fired = moment.fired;
    float *__restrict ring1 = ring + p.neurons, *__restrict open1 = open + p.neurons;  // the second channel, if any
    int odd = 0;
#pragma omp simd reduction(| : odd)
    for (int64_t i = 0; i < count; ++i) {
        float u = widen(v[i]), current = drive[i], jump = 0.f;
        const float slow = MODEL == LIF ? 0.f : widen(w[i]);
        const float arrived = ring[i];
        ring[i] = 0.f;
        if (RECEPTOR == PULSES) jump = gain * arrived;
        if (RECEPTOR == CURRENTS) current += open[i] = sigma0 * open[i] + gain * arrived;
        if (RECEPTOR == CONDUCTANCES) {
            const float excites = sigma0 * open[i] + gain * arrived, inhibits = sigma1 * open1[i] + gain * ring1[i];
            ring1[i] = 0.f, open[i] = excites, open1[i] = inhibits;
            if (MODEL == IZHIKEVICH) current += excites * (to0 - u) + inhibits * (to1 - u);
            else {
                const float total = 1.f + excites + inhibits, towards = (current + excites * to0 + inhibits * to1) / total;
                u = towards + (u - towards) * decay(std::max(rate * total, -80.f));
            }
        }
        float limit = threshold, slower = 0.f;
        if (MODEL == IZHIKEVICH) {
            const float given = current + jump + noise * kick[i];
            u += 0.5f * dt * (0.04f * u * u + 5.f * u + 140.f - slow + given);
            u += 0.5f * dt * (0.04f * u * u + 5.f * u + 140.f - slow + given);
            slower = slow + dt * a * (b * u - slow);
        } else {
            if (RECEPTOR != CONDUCTANCES) u = leak * u + rest * current + jump;
            u += noise * kick[i];
            if (MODEL == LIFA) limit += beta * slow, slower = rho * slow;
        }
        const uint8_t tired = clock[i];
        fired[i] = (u > limit) & (tired == 0);
        clock[i] = tired - (tired != 0);
        if (margin) margin[i] = u - limit;
        odd |= !(u == u);
        if (MODEL == IZHIKEVICH) u = u > limit ? limit : u;
        v[i] = narrow<T>(u);
        if (MODEL != LIF) w[i] = narrow<T>(slower);
    }
    return !odd;
}

// A step of `count` neurons from `at` on in one row; false where a membrane is no number.
template <class T> bool membranes(const Population& p, int64_t row, int64_t slot, int64_t at, int64_t count, const Moment& moment) {
    const int64_t n = p.neurons, wide = p.channels * n;
    T *v = static_cast<T*>(p.v) + row * n + at, *w = static_cast<T*>(p.w) + row * n + at;
    uint8_t* clock = p.clock + row * n + at;
    float *ring = p.ring + (row * p.depth + slot) * wide + at, *open = p.open ? p.open + row * wide + at : p.ring;
    drives(p, p.current ? p.current + row * n : nullptr, at, count, moment.drive);
    const auto run = [&](auto model, auto receptor) {
        return membranes<decltype(model)::value, decltype(receptor)::value, T>(p, v, w, clock, ring, open, count, moment);
    };
    const auto of_model = [&](auto model) {
        if (p.receptor == PULSES) return run(model, std::integral_constant<int64_t, PULSES>());
        if (p.receptor == CURRENTS) return run(model, std::integral_constant<int64_t, CURRENTS>());
        return run(model, std::integral_constant<int64_t, CONDUCTANCES>());
    };
    if (p.model == LIF) return of_model(std::integral_constant<int64_t, LIF>());
    if (p.model == LIFA) return of_model(std::integral_constant<int64_t, LIFA>());
    return of_model(std::integral_constant<int64_t, IZHIKEVICH>());
}
