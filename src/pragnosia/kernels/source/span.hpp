// Several neighbouring tokens through some of a model's layers: a draft, the pass that judges drafts, one that catches up.
//
//   x[t] += mix, x[t] += think   for layers [from, to), t = 0 .. count - 1 at positions p + t
//
// A weight is read once for up to TOKENS tokens. Each token's sums run in the order of step.hpp, and all but the products
// is its very code, so that its numbers are bit for bit those of a token alone; `products_agree` holds products to that.
// What is no plain dense product (woken units, units on disk, dendrites) is computed token after token.
#pragma once
#include <deque>

#include "step.hpp"

constexpr int64_t MOST_TOKENS = 32;  // of a span

struct Span {
    const Step* step;
    int64_t from, to, count, position;
    const int64_t* tokens;                            // (count,); null where the streams come from a lower layer
    float* streams;                                   // (count, D), in and out
    int64_t heads;                                    // so many of the last tokens are given logits
    float* logits;                                    // (heads, V)
    int64_t* likeliest;                               // (heads,)
    int64_t only_remember;                            // keys and values of the layers, from streams that stay as they are
    int64_t told_slots, told_units, told_gates;       // from what is told of one token to what is told of the next
};

class SpanRun {
    const Span& span;
    const Step& step;
    std::deque<StepRun> runs;

  public:
    explicit SpanRun(const Span& span) : span(span), step(*span.step) {
        for (int64_t t = 0; t < span.count; ++t)
            runs.emplace_back(step, span.tokens ? span.tokens[t] : 0, span.position + t, span.position + span.count - 1);
    }

    // 0, or -2 where a unit cannot be read.
    int64_t run() {
        static thread_local Scratch memory;
        size_t bytes = 0;
        for (StepRun& run : runs) bytes += run.bytes();
        memory.reset(bytes);
        for (int64_t t = 0; t < span.count; ++t) {
            runs[t].take(memory);
            runs[t].x = span.streams + t * step.width;
        }
        Passage passage(step);
        together(step.threads, [&](int id, int team) { walk({id, team}, passage); });
        if (passage.failed()) return -2;
        for (const StepRun& run : runs)
            if (run.failed) return -2;
        for (int64_t h = 0; h < span.heads; ++h)
            span.likeliest[h] = StepRun::winner(runs[span.count - span.heads + h].best, span.logits + h * step.head.outs, step.threads);
        return 0;
    }

  private:
    // What a thread has for each token.
    struct Each {
        StepRun::Own own[MOST_TOKENS];
        const Vector* in[MOST_TOKENS];
        float* out[MOST_TOKENS];
        int64_t who[MOST_TOKENS], some;  // the tokens that pass the layer
        float loudness[MOST_TOKENS];
    };

    void walk(Member me, Passage& passage) const {
        Each each;
        for (int64_t t = 0; t < span.count; ++t) each.own[t] = runs[t].own(me.id);
        if (me.id == 0) begin();
        meet();
        StepMixer mixer;
        StepFeedForward feed_forward;
        for (int64_t l = span.from; l < span.to; ++l) {
            if (!passage.enter(l, me)) return;
            const StepMixer& m = passage.mixer(l, mixer);
            enter(m, me, each);
            mix(m, me, each);
            if (span.only_remember) continue;
            if (!think(passage.feed_forward(l, feed_forward), me, each)) return;
            if (!m.gate || !each.some) continue;
            for (int64_t i = 0; i < each.some; ++i) runs[each.who[i]].blend(each.loudness[each.who[i]], me);
            meet();
        }
        if (me.id == 0) passage.leave(span.to);
        if (span.heads) speak(me, each);
    }
    void begin() const {
        for (const StepRun& run : runs) {
            std::fill_n(run.best, step.threads, -1);
            if (!span.tokens) continue;
            if (step.pool) step.pool->tick(1);
            const StepLinear& table = step.embedding;
            const uint8_t* row = reinterpret_cast<const uint8_t*>(table.weight.at(run.token * table.row_bytes));
            unpack_rows(table.weight.format, row, table.row_bytes, 1, step.width, 1, run.x);
        }
    }

    // This thread's rows of a linear layer, each read once for TOKENS tokens of `each.in`, into `each.out`.
    template <bool add> static void multiply(const StepLinear& linear, const Each& each, int64_t count, Member me) {
        if (linear.by_input) {  // every token has sleepers of its own
            for (int64_t t = 0; t < count; ++t) StepRun::product<add>(linear, *each.in[t], me, each.out[t]);
            return;
        }
        PreparedVector x[MOST_TOKENS];
        for (int64_t t = 0; t < count; ++t) x[t] = each.in[t]->of(linear.weight.format);
        for (int64_t o = me.from(linear.outs, LINES), to = me.to(linear.outs, LINES); o < to; o += LINES) {
            const int64_t lines = std::min<int64_t>(LINES, linear.outs - o);
            for (int64_t first = 0; first < count; first += TOKENS) {
                const int64_t some = std::min<int64_t>(TOKENS, count - first);
                float part[TOKENS][LINES];
                packed_dots(linear.weight.format, linear.weight.at(o * linear.row_bytes), linear.row_bytes, lines, x + first, some,
                            linear.depth, part, 2 * LINES * linear.row_bytes);
                for (int64_t t = 0; t < some; ++t)
                    for (int64_t r = 0; r < lines; ++r) {
                        const float y = part[t][r] + (linear.bias ? linear.bias[o + r] : 0.f);
                        float& out = each.out[first + t][o + r];
                        out = add ? out + y : y;
                    }
            }
        }
    }
    template <class In, class Out> void product(const StepLinear& linear, Each& each, Member me, In in, Out out) const {
        for (int64_t t = 0; t < span.count; ++t) each.in[t] = in(t), each.out[t] = out(t);
        multiply<false>(linear, each, span.count, me);
    }
    // The same for the tokens that pass.
    template <bool add = false, class In, class Out>
    void product_of_some(const StepLinear& linear, Each& each, Member me, In in, Out out) const {
        for (int64_t i = 0; i < each.some; ++i) each.in[i] = in(each.who[i]), each.out[i] = out(each.who[i]);
        multiply<add>(linear, each, each.some, me);
    }

    // Every token's norm, and who passes.
    void enter(const StepMixer& m, Member me, Each& each) const {
        each.some = 0;
        for (int64_t t = 0; t < span.count; ++t) {
            const Vector& normed = each.own[t].normed;
            runs[t].normalise(runs[t].x, m.norm, step.width, each.own[t].normed);
            const bool gated = m.gate && !span.only_remember;
            each.loudness[t] = gated ? runs[t].pass(m, normed.plain, me, m.out_gate + t * span.told_gates) : 1.f;
            if (each.loudness[t] != 0.f) each.who[each.some++] = t;
        }
    }
    void mix(const StepMixer& m, Member me, Each& each) const {
        const auto normed = [&](int64_t t) { return &each.own[t].normed; };
        if (!span.only_remember) product_of_some(m.query, each, me, normed, [&](int64_t t) { return runs[t].query; });
        product(m.key, each, me, normed, [&](int64_t t) { return runs[t].key; });
        if (m.hearing) hear(m.hearing, each, me);
        else product(m.value, each, me, normed, [&](int64_t t) { return runs[t].value; });
        meet();
        for (int64_t t = 0; t < span.count; ++t) {
            runs[t].angles(m.head_dim, each.own[t].rotation);
            if (!span.only_remember && each.loudness[t] != 0.f)
                runs[t].prepare(m, runs[t].query, m.query_norm, m.heads, each.own[t], each.own[t].heads.plain);
            runs[t].prepare(m, runs[t].key, m.key_norm, m.key_heads, each.own[t], each.own[t].keys);
        }
        for (int64_t item = me.id; item < span.count * m.key_heads; item += me.team)
            runs[item / m.key_heads].remember(m, item % m.key_heads, each.own[item / m.key_heads]);
        meet();  // a token sees the keys of those before it
        if (span.only_remember || !each.some) return;
        for (int64_t i = 0; i < each.some; ++i) attend(m, runs[each.who[i]], each.own[each.who[i]], me);
        meet();
        for (int64_t i = 0; i < each.some; ++i) {
            const int64_t t = each.who[i];
            const StepRun& run = runs[t];
            const int64_t parts = parts_of(m, run);
            for (int64_t h = 0; h < m.heads; ++h) run.merge(m, h, parts, each.own[t].heads.plain + h * m.head_dim);
            each.own[t].heads.lay_out(m.query.outs, step);
        }
        const auto heads = [&](int64_t t) { return &each.own[t].heads; };
        if (m.speaking) {
            product_of_some(m.speaking.gate, each, me, heads, [&](int64_t t) { return runs[t].drive; });
            meet();
            for (int64_t i = 0; i < each.some; ++i) runs[each.who[i]].speak_driven(m.speaking, me, each.own[each.who[i]]);
        } else product_of_some<true>(m.out, each, me, heads, [&](int64_t t) { return runs[t].x; });
        meet();
    }
    // Every token has dendrites of its own.
    void hear(const StepDendrites& d, Each& each, Member me) const {
        product(d.gate, each, me, [&](int64_t t) { return &each.own[t].normed; }, [&](int64_t t) { return runs[t].drive; });
        meet();
        for (int64_t t = 0; t < span.count; ++t) runs[t].hear_driven(d, me, each.own[t]);
    }
    int64_t parts_of(const StepMixer& m, const StepRun& run) const {
        return StepRun::chunks(m, run.position + 1 - StepRun::first_seen(m, run.position), step.threads);
    }
    void attend(const StepMixer& m, const StepRun& run, StepRun::Own& mine, Member me) const {
        const int64_t first = StepRun::first_seen(m, run.position), seen = run.position + 1 - first, parts = parts_of(m, run);
        for (int64_t item = me.id; item < m.key_heads * parts; item += me.team) {
            const int64_t head = item / parts, part = item % parts;
            const int64_t from = first + seen * part / parts, to = first + seen * (part + 1) / parts;
            if (m.memory_is_bf16) run.attend<bf16>(m, head, part, parts, from, to, mine);
            else run.attend<float>(m, head, part, parts, from, to, mine);
        }
    }

    // False where a unit cannot be read: every thread sees it, since it met the others.
    bool think(const StepFeedForward& f, Member me, Each& each) const {
        if (f.router == DENSE && !f.always_up.by_input && !f.recall.asks.outs) return think_densely(f, me, each), true;
        for (int64_t t = 0; t < span.count; ++t) {
            StepFeedForward told = f;
            if (f.router != DENSE) {
                told.out_units += t * span.told_slots, told.out_strengths += t * span.told_slots;
                told.out_scores += t * span.told_units;
            }
            if (each.loudness[t] == 0.f) {
                if (me.id == 0) StepRun::tell_nobody(told);
                continue;
            }
            runs[t].think(told, me, each.own[t]);
            if (runs[t].failed) return false;
        }
        return true;
    }
    void think_densely(const StepFeedForward& f, Member me, Each& each) const {
        const int64_t width = f.always_down.depth, count = each.some;
        if (!count) return;
        for (int64_t i = 0; i < count; ++i) normalise(f, each, each.who[i]);
        for (int64_t h = me.from(width, BLOCK), to = me.to(width, BLOCK); h < to; h += BLOCK)
            for (int64_t first = 0; first < count; first += TOKENS) hide(f, h, first, std::min<int64_t>(TOKENS, count - first), each);
        meet();
        for (int64_t i = 0; i < count; ++i) runs[each.who[i]].take_in(runs[each.who[i]].active, width, each.own[each.who[i]].resting);
        product_of_some<true>(f.always_down, each, me, [&](int64_t t) { return &each.own[t].resting; }, [&](int64_t t) { return runs[t].x; });
        meet();
    }
    void normalise(const StepFeedForward& f, Each& each, int64_t t) const {
        runs[t].normalise(runs[t].x, f.norm, step.width, each.own[t].normed);
    }
    // Hidden values [h, h + BLOCK) of `some` of those that pass, activated.
    void hide(const StepFeedForward& f, int64_t h, int64_t first, int64_t some, const Each& each) const {
        const StepLinear& up = f.always_up;
        const Activation& act = activation(int(f.always_activation));
        const int64_t width = f.always_down.depth, block = std::min<int64_t>(BLOCK, width - h);
        float hidden[TOKENS][2 * BLOCK];
        PreparedVector x[TOKENS];
        for (int64_t t = 0; t < some; ++t) x[t] = each.own[each.who[first + t]].normed.of(up.weight.format);
        for (int p = 0; p < act.parts; ++p)
            for (int64_t r = 0; r < block; r += LINES) {
                const int64_t row = p * width + h + r, lines = std::min<int64_t>(LINES, block - r);
                float part[TOKENS][LINES];
                packed_dots(up.weight.format, up.weight.at(row * up.row_bytes), up.row_bytes, lines, x, some, step.width, part,
                            2 * LINES * up.row_bytes);
                for (int64_t t = 0; t < some; ++t)
                    for (int64_t l = 0; l < lines; ++l) hidden[t][p * block + r + l] = part[t][l] + (up.bias ? up.bias[row + l] : 0.f);
            }
        for (int64_t t = 0; t < some; ++t) act.forward(hidden[t], block, runs[each.who[first + t]].active + h);
    }

    void speak(Member me, Each& each) const {
        const int64_t first = span.count - span.heads;
        for (int64_t h = 0; h < span.heads; ++h) {
            runs[first + h].normalise(runs[first + h].x, step.norm, step.width, each.own[first + h].normed);
            each.in[h] = &each.own[first + h].normed, each.out[h] = span.logits + h * step.head.outs;
        }
        multiply<false>(step.head, each, span.heads, me);
        for (int64_t h = 0; h < span.heads; ++h) StepRun::nominate(each.out[h], step.head, me, runs[first + h].best);
    }
};

// Whether this build gives several vectors at once the bits that it gives each alone, in every format.
inline bool products_agree() {
    constexpr int64_t depth = 3 * PACK + 45;  // with tails
    std::vector<float> matrix(LINES * depth), inputs(TOKENS * round_up(depth, 16));
    uint32_t seed = 1;
    const auto fill = [&](std::vector<float>& values) {
        for (float& value : values) value = float(int32_t((seed = seed * 1664525u + 1013904223u)) >> 8) / float(1 << 23);
    };
    fill(matrix), fill(inputs);
    std::vector<char> memory(TOKENS * PreparedVector::bytes(depth) + 64);
    char* at = reinterpret_cast<char*>(round_up(int64_t(reinterpret_cast<uintptr_t>(memory.data())), 64));
    const float shrinks[] = {1.f};
    for (Format format : {FP32, BF16, INT8, INT4, INT3, INT2, NF4}) {
        const int64_t row_bytes = row_bytes_of(format, depth);
        std::vector<uint8_t> rows(LINES * row_bytes + 4 * LINES * row_bytes);
        if (format == FP32) std::memcpy(rows.data(), matrix.data(), matrix.size() * sizeof(float));
        else if (format == BF16) narrow(matrix.data(), int64_t(matrix.size()), 1.f, reinterpret_cast<bf16*>(rows.data()));
        else pack_rows(format, matrix.data(), false, LINES, depth, {shrinks, 1, 1, nullptr}, 1e30f, 1, rows.data(), row_bytes);
        PreparedVector x[TOKENS];
        for (int t = 0; t < TOKENS; ++t) {
            x[t] = PreparedVector(at + t * PreparedVector::bytes(depth), depth);
            prepare(format, inputs.data() + t * round_up(depth, 16), depth, x[t]);
        }
        for (int64_t count = 2; count <= TOKENS; ++count) {
            float together[TOKENS][LINES], alone[TOKENS][LINES];
            packed_dots(format, rows.data(), row_bytes, LINES, x, count, depth, together, 0);
            for (int64_t t = 0; t < count; ++t) packed_dots<1>(format, rows.data(), row_bytes, LINES, x + t, 1, depth, alone + t, 0);
            if (std::memcmp(together, alone, count * sizeof(alone[0]))) return false;
        }
    }
    return true;
}
