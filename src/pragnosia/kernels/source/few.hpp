// A bank and a linear layer for few tokens, without gradients: each woken weight is read once, in order, where it lies.
//
//   y[o] = sum_k w[o, k] x[k]       a row of weights against up to TOKENS inputs; bound by memory, not by arithmetic
#pragma once
#include "slots.hpp"
#include "activation.hpp"

constexpr int TOKENS = 4;  // inputs that share one reading of a weight
constexpr int LINES = 4;   // weight rows read side by side

// One input in single precision; against bfloat16 weights the even and odd values lie apart, as widening a word of two
// weights yields them.
template <class W> constexpr int64_t STEP = sizeof(W) == 2 ? 2 * LANES : LANES;

template <class W> void lay_out(const float* x, int64_t depth, float* out) {
    if constexpr (sizeof(W) == 4) {
        std::memcpy(out, x, depth * sizeof(float));
    } else {
        const int64_t whole = depth / STEP<W> * STEP<W>, half = whole / 2;
        for (int64_t k = 0; k < half; ++k) out[k] = x[2 * k], out[half + k] = x[2 * k + 1];
        std::memcpy(out + whole, x + whole, (depth - whole) * sizeof(float));
    }
}

// out[r][t] = row r of w against input t, for LINES rows `stride` apart; inputs are `pitch` apart.
template <class W, int tokens, int lines>
void dots(const W* w, int64_t stride, const float* x, int64_t pitch, int64_t depth, float out[LINES][TOKENS]) {
    vec total[lines][tokens] = {};
    const int64_t whole = depth / STEP<W> * STEP<W>, half = whole / 2;
    for (int64_t k = 0; k < whole; k += STEP<W>)
        for (int r = 0; r < lines; ++r) {
            if constexpr (sizeof(W) == 4) {
                const vec line = *reinterpret_cast<const vec*>(w + r * stride + k);
                for (int t = 0; t < tokens; ++t) total[r][t] += line * *reinterpret_cast<const vec*>(x + t * pitch + k);
            } else {
                const bits words = *reinterpret_cast<const bits*>(w + r * stride + k);
                const vec even = (vec)(words << 16), odd = (vec)(words & 0xffff0000u);
                for (int t = 0; t < tokens; ++t) {
                    total[r][t] += even * *reinterpret_cast<const vec*>(x + t * pitch + k / 2);
                    total[r][t] += odd * *reinterpret_cast<const vec*>(x + t * pitch + half + k / 2);
                }
            }
        }
    for (int r = 0; r < lines; ++r)
        for (int t = 0; t < tokens; ++t) {
            out[r][t] = sum(total[r][t]);
            for (int64_t k = whole; k < depth; ++k) out[r][t] += widen(w[r * stride + k]) * x[t * pitch + k];
        }
}
template <class W, int tokens>
void dots(const W* w, int64_t stride, const float* x, int64_t pitch, int64_t depth, int64_t lines, float out[LINES][TOKENS]) {
    if (lines == LINES) return dots<W, tokens, LINES>(w, stride, x, pitch, depth, out);
    for (int64_t r = 0; r < lines; ++r) dots<W, tokens, 1>(w + r * stride, stride, x, pitch, depth, out + r);
}
template <class W>
void dots(const W* w, int64_t stride, const float* x, int64_t pitch, int64_t depth, int64_t tokens, int64_t lines,
          float out[LINES][TOKENS]) {
    if (tokens == 1) dots<W, 1>(w, stride, x, pitch, depth, lines, out);
    else if (tokens == 2) dots<W, 2>(w, stride, x, pitch, depth, lines, out);
    else if (tokens == 3) dots<W, 3>(w, stride, x, pitch, depth, lines, out);
    else dots<W, 4>(w, stride, x, pitch, depth, lines, out);
}

// As many threads as the bytes to read are worth waking.
inline int team(int64_t bytes, int64_t threads) { return int(std::clamp<int64_t>(bytes / (96 << 10), 1, threads)); }
inline Scratch& few_scratch() {
    static thread_local Scratch scratch;
    return scratch;
}

// y (count, outs) = x (count, depth) w' + bias for count <= TOKENS.
template <class W> struct FewLinear {
    static void run(const void* x, bool x_is_bf16, const void* weight, const void* bias, int64_t count, int64_t outs,
                    int64_t depth, int64_t threads, void* y) {
        Scratch& scratch = few_scratch();
        const int64_t pitch = round_up(depth, 16);
        scratch.reset(Scratch::size<float>((TOKENS + 1) * pitch));
        float *inputs = scratch.take<float>(TOKENS * pitch), *plain = scratch.take<float>(pitch);
        for (int64_t t = 0; t < count; ++t) {
            read(x, x_is_bf16, t * depth, depth, plain);
            lay_out<W>(plain, depth, inputs + t * pitch);
        }
        const W* w = static_cast<const W*>(weight);
#pragma omp parallel for schedule(static) num_threads(team(outs * depth * sizeof(W), threads))
        for (int64_t block = 0; block < (outs + LINES - 1) / LINES; ++block) {
            const int64_t o = block * LINES, lines = std::min<int64_t>(LINES, outs - o);
            float part[LINES][TOKENS];
            dots(w + o * depth, depth, inputs, pitch, depth, count, lines, part);
            for (int64_t r = 0; r < lines; ++r)
                for (int64_t t = 0; t < count; ++t) {
                    const float b = bias ? widen(static_cast<const W*>(bias)[o + r]) : 0.f, value = part[r][t] + b;
                    write(&value, 1, y, x_is_bf16, t * outs + o + r);
                }
        }
    }
};

// A bank's forward when a woken unit serves a token or a few.
template <class W> struct FewBank {
    struct Group {
        int64_t unit, first, count;  // up to TOKENS neighbours in `order`
    };
    const BankCall& call;
    const Activation& act = activation(int(call.activation));
    const int64_t width = call.width, unit_width = call.unit_width, hidden_width = act.parts * unit_width;
    const int64_t pitch = round_up(width, 16), unit_pitch = round_up(unit_width, 16);
    std::vector<int32_t> order;  // woken slots by unit; unlike a counting sort, this never looks at who sleeps
    std::vector<Group> groups;
    int64_t kept;
    float *inputs, *active, *laid_out, *out;

    explicit FewBank(const BankCall& call) : call(call) {
        for (int64_t i = 0; i < call.tokens * call.awake; ++i)
            if (call.routes[i] >= 0) order.push_back(int32_t(i));
        std::sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
            return call.routes[a] != call.routes[b] ? call.routes[a] < call.routes[b] : a < b;
        });
        kept = int64_t(order.size());
        for (int64_t i = 0; i < kept; ++i) {
            const int64_t unit = call.routes[order[i]];
            if (groups.empty() || groups.back().unit != unit || groups.back().count == TOKENS) groups.push_back({unit, i, 0});
            ++groups.back().count;
        }
        Scratch& scratch = few_scratch();
        scratch.reset(Scratch::size<float>(kept * pitch) + 2 * Scratch::size<float>(kept * unit_pitch) +
                      Scratch::size<float>(call.tokens * width));
        inputs = scratch.take<float>(kept * pitch), active = scratch.take<float>(kept * unit_pitch);
        laid_out = scratch.take<float>(kept * unit_pitch), out = scratch.take<float>(call.tokens * width);
    }

    void run() const {
        std::vector<float> plain(width);
        for (int64_t i = 0; i < kept; ++i) {
            read(call.x, call.x_is_bf16, order[i] / call.awake * width, width, plain.data());
            lay_out<W>(plain.data(), width, inputs + i * pitch);
        }
        const int64_t bytes = groups.size() * (hidden_width + unit_width) * width * sizeof(W);
#pragma omp parallel num_threads(team(bytes, call.threads))
        {
            // every thread its share of all hidden values, in blocks of LINES; then its share of every output
            const int64_t blocks = (unit_width + LINES - 1) / LINES, all = groups.size() * blocks;
#pragma omp for schedule(static)
            for (int64_t block = 0; block < all; ++block) think(groups[block / blocks], block % blocks * LINES);
#pragma omp for schedule(static)
            for (int64_t i = 0; i < kept; ++i)
                lay_out<W>(active + i * unit_pitch, unit_width, laid_out + i * unit_pitch);
#pragma omp for schedule(static)
            for (int64_t d = 0; d < (width + 15) / 16; ++d) speak(16 * d, std::min(16 * d + 16, width));
        }
    }

    // P[f..] of a group's tokens.
    void think(const Group& group, int64_t f) const {
        const int64_t lines = std::min<int64_t>(LINES, unit_width - f);
        const W* up = static_cast<const W*>(call.up) + group.unit * hidden_width * width;
        float part[2][LINES][TOKENS];
        for (int p = 0; p < act.parts; ++p)
            dots(up + (p * unit_width + f) * width, width, inputs + group.first * pitch, pitch, width, group.count, lines, part[p]);
        for (int64_t t = 0; t < group.count; ++t) {
            float hidden[2 * LINES];
            for (int p = 0; p < act.parts; ++p)
                for (int64_t r = 0; r < lines; ++r) {
                    const int64_t at = group.unit * hidden_width + p * unit_width + f + r;
                    hidden[p * lines + r] = part[p][r][t] + (call.up_bias ? widen(static_cast<const W*>(call.up_bias)[at]) : 0.f);
                }
            act.forward(hidden, lines, active + (group.first + t) * unit_pitch + f);
        }
    }

    // Columns [from, to) of every token's output.
    void speak(int64_t from, int64_t to) const {
        for (int64_t t = 0; t < call.tokens; ++t) std::fill(out + t * width + from, out + t * width + to, 0.f);
        for (const Group& group : groups) {
            const W* down = static_cast<const W*>(call.down) + group.unit * width * unit_width;
            for (int64_t d = from; d < to; d += LINES) {
                const int64_t lines = std::min<int64_t>(LINES, to - d);
                float part[LINES][TOKENS];
                dots(down + d * unit_width, unit_width, laid_out + group.first * unit_pitch, unit_pitch, unit_width, group.count, lines, part);
                for (int64_t t = 0; t < group.count; ++t) {
                    const int64_t slot = order[group.first + t];
                    for (int64_t r = 0; r < lines; ++r) {
                        const float bias = call.down_bias ? widen(static_cast<const W*>(call.down_bias)[group.unit * width + d + r]) : 0.f;
                        out[slot / call.awake * width + d + r] += call.strengths[slot] * (part[r][t] + bias);
                    }
                }
            }
        }
        for (int64_t t = 0; t < call.tokens; ++t)
            write(out + t * width + from, to - from, call.out, call.out_is_bf16, t * width + from);
    }
};
