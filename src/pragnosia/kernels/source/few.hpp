// A bank and a linear layer for few tokens, without gradients: each woken weight is read once, in order, where it lies.
//
//   y[o] = sum_k w[o, k] x[k]       four rows of weights against up to TOKENS inputs; bound by memory, not arithmetic
#pragma once
#include <omp.h>

#include "activation.hpp"
#include "columns.hpp"
#include "slots.hpp"

constexpr int TOKENS = 4;  // inputs that share one reading of a weight
constexpr int BLOCK = 16;  // hidden values, or outputs, that a thread takes at once

// An input as the products want it: against bfloat16 weights the even values first, then the odd, then what is left
// over, because widening a word of two weights yields them apart.
template <class W> void lay_out(const float* x, int64_t depth, float* out) {
    const int64_t whole = sizeof(W) == 2 ? depth / STEP<W> * STEP<W> : 0, half = whole / 2;
    for (int64_t k = 0; k < half; ++k) out[k] = x[2 * k], out[half + k] = x[2 * k + 1];
    std::memcpy(out + whole, x + whole, (depth - whole) * sizeof(float));
}

// LINES rows of weights `stride` apart against `tokens` inputs `pitch` apart.
template <class W, int tokens> struct Dots {
    vec total[tokens][LINES] = {};
    float rest[tokens][LINES] = {};

    // `ahead` [values]: from a row to what will be read two calls later; rows lie one after another unless it is said.
    void add(const W* w, int64_t stride, int64_t lines, const float* x, int64_t pitch, int64_t depth, int64_t ahead) {
        const int64_t whole = depth / STEP<W> * STEP<W>, half = whole / 2;
        const W* row[LINES];
        for (int r = 0; r < LINES; ++r) row[r] = w + (r < lines ? r : 0) * stride;  // a missing row repeats the first
        vec sum[tokens][LINES];  // in registers: as far as a compiler knows, what is read might lie in `total`
#pragma GCC unroll 4
        for (int t = 0; t < tokens; ++t)
#pragma GCC unroll 4
            for (int r = 0; r < LINES; ++r) sum[t][r] = total[t][r];
        for (int64_t k = 0; k < whole; k += STEP<W>)
#pragma GCC unroll 4
            for (int r = 0; r < LINES; ++r) {
                __builtin_prefetch(row[r] + k + ahead);
                const bits words = *reinterpret_cast<const bits*>(row[r] + k);
#pragma GCC unroll 4
                for (int t = 0; t < tokens; ++t) {
                    const float* input = x + t * pitch;
                    if constexpr (sizeof(W) == 4) {
                        sum[t][r] += (vec)words * *reinterpret_cast<const vec*>(input + k);
                    } else {
                        sum[t][r] += (vec)(words << 16) * *reinterpret_cast<const vec*>(input + k / 2);
                        sum[t][r] += (vec)(words & 0xffff0000u) * *reinterpret_cast<const vec*>(input + half + k / 2);
                    }
                }
            }
#pragma GCC unroll 4
        for (int t = 0; t < tokens; ++t)
#pragma GCC unroll 4
            for (int r = 0; r < LINES; ++r) total[t][r] = sum[t][r];
        for (int64_t k = whole; k < depth; ++k)
            for (int r = 0; r < LINES; ++r)
                for (int t = 0; t < tokens; ++t) rest[t][r] += widen(row[r][k]) * x[t * pitch + k];
    }
    void finish(float out[][LINES]) const {
        for (int t = 0; t < tokens; ++t) {
            sums(total[t], out[t]);
            for (int r = 0; r < LINES; ++r) out[t][r] += rest[t][r];
        }
    }
};
template <class W, int tokens = TOKENS>
void dots(const W* w, int64_t stride, int64_t lines, const float* x, int64_t pitch, int64_t count, int64_t depth, float out[][LINES],
          int64_t ahead) {
    if constexpr (tokens > 1)
        if (count < tokens) return dots<W, tokens - 1>(w, stride, lines, x, pitch, count, depth, out, ahead);
    Dots<W, tokens> all;
    all.add(w, stride, lines, x, pitch, depth, ahead);
    all.finish(out);
}

// As many threads as the bytes to read are worth waking.
inline int team(int64_t bytes, int64_t threads) { return int(std::clamp<int64_t>(bytes / (128 << 10), 1, threads)); }
inline Scratch& few_scratch() {
    static thread_local Scratch scratch;
    return scratch;
}

// y (count, outs) = x (count, depth) w' + bias for count <= TOKENS.
template <class W>
void few_linear(const void* x, bool x_is_bf16, const void* weight, const void* bias, int64_t count, int64_t outs, int64_t depth,
                int64_t threads, void* y) {
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
    for (int64_t o = 0; o < outs; o += LINES) {
        const int64_t lines = std::min<int64_t>(LINES, outs - o);
        float part[TOKENS][LINES];
        dots(w + o * depth, depth, lines, inputs, pitch, count, depth, part, 2 * LINES * depth);
        for (int64_t t = 0; t < count; ++t) {
            for (int64_t r = 0; bias && r < lines; ++r) part[t][r] += widen(static_cast<const W*>(bias)[o + r]);
            write(part[t], lines, y, x_is_bf16, t * outs + o);
        }
    }
}

// A bank's forward when a woken unit serves a token or a few.
template <class W> struct FewBank {
    struct Group {
        int64_t unit, first, count;  // up to TOKENS neighbours in `order`
        const W *up, *down;          // the unit's weights, while its wave is computed
    };
    const BankCall& call;
    const Activation& act = activation(int(call.activation));
    const int64_t width = call.width, unit_width = call.unit_width, hidden_width = act.parts * unit_width;
    const int64_t pitch = round_up(width, 16), unit_pitch = round_up(unit_width, 16);
    const W *up_bias = static_cast<const W*>(call.up_bias), *down_bias = static_cast<const W*>(call.down_bias);
    std::vector<int32_t> order;  // woken slots by unit; unlike a counting sort, this never looks at who sleeps
    std::vector<Group> groups;
    int64_t kept;
    float *inputs, *active, *laid_out, *out;  // (T, D), (N, F), (N, F), (T, D)

    explicit FewBank(const BankCall& call) : call(call) {
        for (int64_t i = 0; i < call.tokens * call.awake; ++i)
            if (call.routes[i] >= 0) order.push_back(int32_t(i));
        std::sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
            return call.routes[a] != call.routes[b] ? call.routes[a] < call.routes[b] : a < b;
        });
        kept = int64_t(order.size());
        for (int64_t i = 0; i < kept; ++i) {
            const int64_t unit = call.routes[order[i]];
            if (groups.empty() || groups.back().unit != unit || groups.back().count == TOKENS) groups.push_back({unit, i, 0, nullptr, nullptr});
            ++groups.back().count;
        }
        Scratch& scratch = few_scratch();
        scratch.reset(Scratch::size<float>(call.tokens * pitch) + 2 * Scratch::size<float>(kept * unit_pitch) +
                      Scratch::size<float>(call.tokens * width));
        inputs = scratch.take<float>(call.tokens * pitch), active = scratch.take<float>(kept * unit_pitch);
        laid_out = scratch.take<float>(kept * unit_pitch), out = scratch.take<float>(call.tokens * width);
    }

    // False where a unit on disk cannot be read.
    bool run() {
        for (int64_t t = 0; t < call.tokens; ++t) {
            read(call.x, call.x_is_bf16, t * width, width, out);
            lay_out<W>(out, width, inputs + t * pitch);
        }
        std::fill_n(out, call.tokens * width, 0.f);
        const size_t all = groups.size();
        bool whole = true;
        if (!call.pool) {
            for (Group& group : groups) {
                group.up = static_cast<const W*>(call.up) + group.unit * hidden_width * width;
                group.down = static_cast<const W*>(call.down) + group.unit * width * unit_width;
            }
            compute(0, all);
        } else {
            // as many groups at once as have room, while those of the next wave are on their way
            const size_t room = size_t(call.pool->num_slots());
            const size_t most = all <= room ? std::max(all, size_t(1)) : std::max(room / 2, size_t(1));
            size_t asked = ask(0, std::min(all, most));
            for (size_t from = 0; from < all && whole;) {
                const size_t to = asked;
                for (size_t g = from; g < to; ++g) {
                    groups[g].up = reinterpret_cast<const W*>(call.pool->wait(call.layer, groups[g].unit));
                    groups[g].down = groups[g].up + hidden_width * width;
                    whole = whole && groups[g].up;
                }
                asked = ask(to, std::min(all, to + most));
                if (whole) compute(from, to);
                for (size_t g = from; g < to; ++g) call.pool->release(call.layer, groups[g].unit);
                if (!whole)
                    for (size_t g = to; g < asked; ++g) call.pool->release(call.layer, groups[g].unit);
                from = to;
            }
        }
        for (int64_t t = 0; t < call.tokens && whole; ++t) write(out + t * width, width, call.out, call.out_is_bf16, t * width);
        return whole;
    }
    size_t ask(size_t from, size_t to) const {
        for (; from < to; ++from)
            while (!call.pool->request(call.layer, groups[from].unit)) std::this_thread::sleep_for(std::chrono::milliseconds(1));
        return to;
    }

    // Groups [from, to): every thread its share of all hidden values, then its share of every token's output.
    void compute(size_t from, size_t to) const {
        const int64_t bytes = int64_t(to - from) * (hidden_width + unit_width) * width * int64_t(sizeof(W));
        if (from == to) return;
        const int64_t first = groups[from].first, last = groups[to - 1].first + groups[to - 1].count;
#pragma omp parallel num_threads(team(bytes, call.threads))
        {
            const int64_t blocks = (unit_width + BLOCK - 1) / BLOCK, all = int64_t(to - from) * blocks;
#pragma omp for schedule(static)
            for (int64_t block = 0; block < all; ++block) {
                const int64_t next = block + 1;
                think(groups[from + block / blocks], block % blocks * BLOCK, next < all ? up_of(groups[from + next / blocks], next % blocks) : nullptr);
            }
#pragma omp for schedule(static)
            for (int64_t i = first; i < last; ++i) {
                if (call.most) compete(active + i * unit_pitch, unit_width, call.most);
                if (NarrowRows<W>::takes(unit_width)) std::copy_n(active + i * unit_pitch, unit_width, laid_out + i * unit_pitch);
                else lay_out<W>(active + i * unit_pitch, unit_width, laid_out + i * unit_pitch);
            }
            if (NarrowRows<W>::takes(unit_width)) {
                const int64_t tiles = (width + NARROW_TILE - 1) / NARROW_TILE, team = omp_get_num_threads(), me = omp_get_thread_num();
                const int64_t d = tiles * me / team * NARROW_TILE, end = std::min(width, tiles * (me + 1) / team * NARROW_TILE);
                for (size_t g = from; g < to && d < end; ++g) speak_narrow(groups[g], g + 1 < to ? groups[g + 1].down : nullptr, d, end - d);
            } else {
#pragma omp for schedule(static)
                for (int64_t d = 0; d < width; d += BLOCK) {
                    const int64_t some = std::min<int64_t>(BLOCK, width - d);
                    if (call.tokens == 1 && to - from == groups.size()) speak_alone(d, some);
                    else speak(from, to, d, some);
                }
            }
        }
    }

    int64_t token(int64_t i) const { return order[i] / call.awake; }
    const W* up_of(const Group& group, int64_t block) const { return group.up + block * BLOCK * width; }
    // A group's rows of weights times its tokens, which share a reading where they lie evenly.
    void dots_of(const Group& group, const W* w, int64_t lines, int64_t ahead, float part[][LINES]) const {
        for (int64_t t = 0; t < group.count;) {
            const int64_t i = group.first + t, step = t + 1 < group.count ? token(i + 1) - token(i) : 0;
            int64_t some = step ? 2 : 1;
            while (t + some < group.count && token(i + some) - token(i + some - 1) == step) ++some;
            dots(w, width, lines, inputs + token(i) * pitch, step * pitch, some, width, part + t, ahead);
            t += some;
        }
    }

    // s P[f..f + BLOCK) of a group's tokens; `next` is where the weights begin that come after these.
    void think(const Group& group, int64_t f, const W* next) const {
        const int64_t some = std::min<int64_t>(BLOCK, unit_width - f);
        float hidden[TOKENS][2 * BLOCK];
        const RowBlocks<W> rows{group.up + f * width, width, unit_width, some, act.parts, next};
        for (int p = 0; p < act.parts; ++p)
            for (int64_t r = 0; r < some; r += LINES) {
                const int64_t row = group.unit * hidden_width + p * unit_width + f + r, lines = std::min<int64_t>(LINES, some - r);
                float part[TOKENS][LINES];
                dots_of(group, rows.at(p, r), lines, rows.ahead(p, r), part);
                for (int64_t t = 0; t < group.count; ++t)
                    for (int64_t l = 0; l < lines; ++l)
                        hidden[t][p * some + r + l] = part[t][l] + (up_bias ? widen(up_bias[row + l]) : 0.f);
            }
        for (int64_t t = 0; t < group.count; ++t) {
            float* to = active + (group.first + t) * unit_pitch + f;
            act.forward(hidden[t], some, to);
            for (int64_t r = 0; r < some; ++r) to[r] *= call.strengths[order[group.first + t]];
        }
    }

    // Columns [d, d + some) of a group's tokens' output, from units whose rows do not fill a register.
    void speak_narrow(const Group& group, const W* next, int64_t d, int64_t some) const {
        const NarrowRows<W> rows{group.down + d * unit_width, unit_width, some, next ? next + d * unit_width : nullptr};
        for (int64_t i = group.first; i < group.first + group.count; ++i) {
            float* to = out + token(i) * width + d;
            rows.add(laid_out + i * unit_pitch, to);
            for (int64_t k = 0; down_bias && k < some; ++k)
                to[k] += call.strengths[order[i]] * widen(down_bias[group.unit * width + d + k]);
        }
    }

    // The same from wider units.
    void speak(size_t from, size_t to_group, int64_t d, int64_t some) const {
        for (size_t g = from; g < to_group; ++g)
            for (int64_t r = 0; r < some; r += LINES) {
                const Group& group = groups[g];
                const int64_t row = group.unit * width + d + r, lines = std::min<int64_t>(LINES, some - r);
                float part[TOKENS][LINES];
                dots(group.down + (d + r) * unit_width, unit_width, lines, laid_out + group.first * unit_pitch, unit_pitch, group.count,
                     unit_width, part, 2 * LINES * unit_width);
                for (int64_t t = 0; t < group.count; ++t) {
                    const int64_t slot = order[group.first + t];
                    float* to = out + slot / call.awake * width + d + r;
                    for (int64_t l = 0; l < lines; ++l)
                        to[l] += part[t][l] + (down_bias ? call.strengths[slot] * widen(down_bias[row + l]) : 0.f);
                }
            }
    }
    // The same for a single token: its units' sums stay unfinished until the last.
    void speak_alone(int64_t d, int64_t some) const {
        Dots<W, 1> all[BLOCK / LINES];
        for (int64_t i = 0; i < kept; ++i)  // a group has one token here
            for (int64_t r = 0; r < some; r += LINES) {
                const int64_t row = call.routes[order[i]] * width + d + r, lines = std::min<int64_t>(LINES, some - r);
                Dots<W, 1>& dots = all[r / LINES];
                dots.add(groups[i].down + (d + r) * unit_width, unit_width, lines, laid_out + i * unit_pitch, unit_pitch, unit_width,
                         2 * LINES * unit_width);
                for (int64_t l = 0; down_bias && l < lines; ++l)
                    dots.rest[0][l] += call.strengths[order[i]] * widen(down_bias[row + l]);
            }
        for (int64_t r = 0; r < some; r += LINES) {
            float part[1][LINES];
            all[r / LINES].finish(part);
            std::copy_n(part[0], std::min<int64_t>(LINES, some - r), out + d + r);
        }
    }
};
