// One token through a whole model: embedding, layers, head. Every address is filled in beforehand (program.py), one
// team of threads runs from end to end, and they meet (meeting.hpp) wherever one reads what another wrote.
//
//   x = embedding[token];  per layer: x += mix(norm(x)), x += think(norm(x));  logits = head norm(x)
//
// D width, H heads, K head width, U units, A slots, F unit width. Sums run in single precision whatever is stored.
#pragma once
#include <omp.h>

#include "awake.hpp"
#include "far.hpp"
#include "meeting.hpp"
#include "packed.hpp"
#include "packing.hpp"
#include "pool.hpp"
#include "recall.hpp"
#include "route.hpp"

// Numbers as they lie in memory; `base` is null where a part is absent.
struct Stored {
    const void* base;
    Format format;
    explicit operator bool() const { return base; }
    const char* at(int64_t bytes) const { return static_cast<const char*>(base) + bytes; }
    // What follows is for plain numbers: norms, biases, steering.
    Stored shifted(int64_t values) const { return {at(values * (format == BF16 ? 2 : 4)), format}; }
    float operator[](int64_t i) const {
        return format == BF16 ? widen(static_cast<const bf16*>(base)[i]) : static_cast<const float*>(base)[i];
    }
    template <class Work> void typed(Work work) const {
        if (format == BF16) work(static_cast<const bf16*>(base));
        else work(static_cast<const float*>(base));
    }
};
struct StepLinear {
    Stored weight, bias;
    int64_t outs, depth, row_bytes;
    int64_t by_input;  // plain numbers lie (depth, outs), and those of inputs asleep are not read (awake.hpp)
    double threshold;  // by_input: inputs up to this magnitude sleep
};
// A thread's place in the team, and its share of a count of rows.
struct Member {
    int64_t id, team;
    int64_t from(int64_t count, int64_t step) const { return std::min(count, (count + step - 1) / step * id / team * step); }
    int64_t to(int64_t count, int64_t step) const { return Member{id + 1, team}.from(count, step); }
};
// One piece of machine code for a token alone and for a token among others (span.hpp): their bits agree.
#define ONE_CODE __attribute__((noinline, noclone))

#include "dendrites.hpp"

struct StepMixer {
    Stored norm;
    StepLinear query, key, value, out;  // no value and no output where dendrites stand for them
    Stored query_norm, key_norm, sinks;
    int64_t heads, key_heads, head_dim, norm_heads, window;  // window 0: all that was seen
    double clip;                                              // 0: none
    void *keys, *values;                                      // (key heads, room, K), of `memory_is_bf16`
    int64_t memory_is_bf16, room;
    Stored gate;      // (D,): scores tokens, of which not all pass the layer (model/gates.py); absent: all do
    double cutoff;    // scores up to this do not
    float* out_gate;  // the score, told to whoever asks
    StepDendrites hearing, speaking;
    const float* fading;  // added to the score of a key so many tokens back (model/fleeting.py); absent: none fades
};
// Long-term memory (model/hippocampus.py): queries, keys of both halves and the table.
struct StepRecall {
    StepLinear asks;
    const float *center, *spread;  // of the queries
    Stored keys, table;            // (H, 2, side, K/2), (rows, D); the table's rows may be packed
    int64_t heads, side, awake;    // `awake` of a head
    int64_t row_bytes;             // of the table
    FarRows* far;                  // where the table lies on disk; null where it is in memory
};
struct StepFeedForward {
    Stored norm;
    int64_t router, activation;
    StepLinear scores;  // the router's
    Stored steering;
    const float *balance, *cutoffs;
    int64_t slots, renormalise;
    double scale;
    Stored up, down, up_bias, down_bias;  // the bank's
    int64_t unit_width, up_row_bytes, down_row_bytes;
    StepLinear always_up, always_down;  // who never sleeps: the dense layer, or the shared units
    int64_t always_activation;
    int64_t* out_units;  // (A,), (A,), (U,): who woke, told to whoever asks
    float *out_strengths, *out_scores;
    int64_t pool_layer;  // where the bank lies in the step's pool, and `up` and `down` are null; else -1
    StepLinear gist;     // what a router of low rank reads instead of x; no rows where there is none
    int64_t most;        // neurons of a unit that may speak; 0: all
    StepRecall recall;   // instead of all this: long-term memory; no `asks` where there is none
};
struct Step {
    int64_t width, layers, threads;
    int64_t has_bf16, has_packed;  // among the matrices: how a vector has to be laid out for them
    StepLinear embedding;
    Stored norm;
    StepLinear head;
    double eps, rotation_scale;
    const float* frequencies;  // (K/2,)
    const StepMixer* mixers;
    const StepFeedForward* feed_forwards;
    float* logits;
    Pool* pool;  // null where every bank lies in memory
    int64_t passing;  // layers from here on are records of the pool, and pass (passing.hpp); `layers` where none is
    float* hidden;    // (width): where the state that the head reads is told; null: nowhere
};

#include "passing.hpp"

// A vector in every form that the model's matrices ask for (packed.hpp).
struct Vector {
    float* plain;
    PreparedVector wide, codes;
    mutable Awake awake;
    static size_t prepared(int64_t depth) { return round_up(PreparedVector::bytes(depth), 64); }
    static size_t bytes(int64_t depth) { return Scratch::size<float>(depth) + 2 * prepared(depth) + Awake::bytes(depth); }
    Vector() = default;
    Vector(char* memory, int64_t depth)
        : plain(reinterpret_cast<float*>(memory)), wide(memory += Scratch::size<float>(depth), depth),
          codes(memory + prepared(depth), depth), awake(memory + 2 * prepared(depth), depth) {
        wide.plain = codes.plain = plain;
    }
    void lay_out(int64_t depth, const Step& step) {
        if (step.has_bf16) prepare(BF16, plain, depth, wide);
        if (step.has_packed) prepare(INT8, plain, depth, codes);
    }
    const PreparedVector& of(Format format) const { return format <= BF16 ? wide : codes; }
};

constexpr int64_t CHUNK = 64;          // outputs of a thread, where inputs sleep: whole lines of cache
constexpr int64_t SPAN = 1024;         // keys that one thread takes at once
constexpr int64_t ROW = SPAN + LINES;  // their weights, and what the last lines overhang

// A neuron that speaks, and its packed row of `down`.
struct Said {
    const uint8_t* row;
    float value;
};

class StepRun {
    friend class SpanRun;
    const Step& step;
    const int64_t token, position;
    int64_t most_keys = 0, most_queries = 0, most_units = 0, most_slots = 0, most_hidden = 0, most_resting = 0, most_unit = 0, most_gist = 0, most_parts = 0, most_group = 1, most_drives = 0, most_voices = 0, head_dim = 2;
    int64_t most_asks = 0, most_halves = 0, most_recalled = 0, most_half = 0, most_fetched = 0;
    // shared by the team
    float *x, *before, *query, *key, *value, *drive, *scores, *gist, *active, *peaks, *sums, *mixed, *asked, *halves, *shares;
    int64_t *best, *rows;
    char* fetched;  // rows of a table on disk, one after the other
    mutable std::atomic<bool> failed{false};  // a unit cannot be read
    // one of each per thread, laid end to end
    char* own_memory;
    size_t own_bytes;
    struct Own {
        Vector normed, heads, gist, resting;  // the last of who never sleeps
        Vector* thoughts;                     // of each slot
        float *keys, *rotation, *laid_out, *weights, *squashed, *claims, *strengths, *spoken;
        int64_t* units;
        Stored *up, *down;  // the woken units' weights
        Said* said;         // by their neurons
        Driven driven;      // the dendrites awake in a layer
        Vector half;        // of a query of long-term memory
        float* recalled;    // a row of its table that was packed
        float *voices, *voice;
    };

    static int64_t chunks(const StepMixer& mixer, int64_t seen, int64_t threads) {
        const int64_t wanted = (threads + mixer.key_heads - 1) / mixer.key_heads;
        return std::max((seen + SPAN - 1) / SPAN, std::min(wanted, (seen + 255) / 256));
    }
    static int64_t first_seen(const StepMixer& mixer, int64_t position) {
        return mixer.window && position + 1 > mixer.window ? position + 1 - mixer.window : 0;
    }

  public:
    // `furthest`: the last position that its memory has to serve.
    StepRun(const Step& step, int64_t token, int64_t position, int64_t furthest) : step(step), token(token), position(position) {
        for (int64_t l = 0; l < step.layers; ++l) {
            const StepMixer& m = step.mixers[l];
            const StepFeedForward& f = step.feed_forwards[l];
            most_queries = std::max(most_queries, m.query.outs), most_keys = std::max(most_keys, m.key.outs);
            most_parts = std::max(most_parts, m.heads * chunks(m, furthest + 1 - first_seen(m, furthest), step.threads));
            most_group = std::max(most_group, m.heads / m.key_heads), head_dim = std::max(head_dim, m.head_dim);
            most_units = std::max(most_units, f.scores.outs), most_slots = std::max(most_slots, f.slots);
            most_hidden = std::max(most_hidden, f.slots * round_up(f.unit_width, 16) + round_up(f.always_down.depth, 16));
            most_resting = std::max(most_resting, f.always_down.depth), most_unit = std::max(most_unit, f.unit_width);
            most_gist = std::max(most_gist, f.gist.outs);
            const StepRecall& r = f.recall;
            most_asks = std::max(most_asks, r.asks.outs), most_halves = std::max(most_halves, 2 * r.heads * r.side);
            most_recalled = std::max(most_recalled, r.heads * r.awake);
            if (r.heads) most_half = std::max(most_half, r.asks.outs / (2 * r.heads));
            if (r.far) most_fetched = std::max(most_fetched, r.heads * r.awake * r.row_bytes);
            for (const StepDendrites* d : {&m.hearing, &m.speaking})
                most_drives = std::max(most_drives, d->gate.outs), most_voices = std::max(most_voices, d->speaking());
        }
    }

    // Runs it; returns the likeliest token.
    int64_t run() {
        static thread_local Scratch memory;
        memory.reset(bytes());
        take(memory);
        Passage passage(step);
        together(step.threads, [&](int id, int team) { walk({id, team}, passage); });
        if (failed || passage.failed()) return -2;
        return winner(best, step.logits, step.threads);
    }

  private:
    size_t bytes() {
        const auto floats = [](int64_t count) { return Scratch::size<float>(count); };
        const int64_t pitch = round_up(head_dim, 16);
        own_bytes = Vector::bytes(step.width) + Vector::bytes(most_queries) +
                    Vector::bytes(most_gist) + Vector::bytes(most_resting) + floats(spoken_size()) +
                    most_slots * (Scratch::size<Vector>(1) + Vector::bytes(most_unit)) + floats(most_keys) +
                    floats(2 * head_dim) + floats(most_group * pitch) + floats(most_group * ROW) + 2 * floats(most_units) +
                    floats(most_slots) + Scratch::size<int64_t>(most_slots) + 2 * Scratch::size<Stored>(most_slots) +
                    Scratch::size<Said>(most_slots * most_unit) + Scratch::size<int64_t>(most_voices) + floats(most_voices) +
                    floats(most_voices * pitch) + floats(head_dim) + Vector::bytes(most_half) + floats(most_half ? step.width : 0);
        return 2 * floats(step.width) + floats(most_queries) + 2 * floats(most_keys) + floats(most_drives) + floats(most_units) + floats(most_gist) + floats(most_hidden) +
               floats(most_asks) + floats(most_halves) + floats(most_recalled) + Scratch::size<int64_t>(most_recalled) +
               Scratch::size<char>(most_fetched) +
               2 * floats(most_parts) + floats(most_parts * head_dim) + Scratch::size<int64_t>(step.threads) + own_bytes * step.threads;
    }
    void take(Scratch& memory) {
        x = memory.take<float>(step.width), before = memory.take<float>(step.width), query = memory.take<float>(most_queries);
        key = memory.take<float>(most_keys), value = memory.take<float>(most_keys);
        drive = memory.take<float>(most_drives), scores = memory.take<float>(most_units), gist = memory.take<float>(most_gist), active = memory.take<float>(most_hidden);
        peaks = memory.take<float>(most_parts), sums = memory.take<float>(most_parts);
        mixed = memory.take<float>(most_parts * head_dim), best = memory.take<int64_t>(step.threads);
        asked = memory.take<float>(most_asks), halves = memory.take<float>(most_halves);
        shares = memory.take<float>(most_recalled), rows = memory.take<int64_t>(most_recalled);
        fetched = memory.take<char>(most_fetched);
        own_memory = memory.take<char>(own_bytes * step.threads);
    }
    // The likeliest of this thread's words; a NaN is likelier than anything.
    static void nominate(const float* logits, const StepLinear& head, Member me, int64_t* best) {
        int64_t top = me.from(head.outs, grain(head)), last = me.to(head.outs, grain(head));
        if (top == last) return;
        for (int64_t o = top + 1; o < last; ++o)
            if (!(logits[o] <= logits[top])) top = o;
        best[me.id] = top;
    }
    static int64_t winner(const int64_t* best, const float* logits, int64_t threads) {
        int64_t winner = best[0];
        for (int64_t t = 1; t < threads; ++t)
            if (best[t] >= 0 && (winner < 0 || !(logits[best[t]] <= logits[winner]))) winner = best[t];
        return winner;
    }

    Own own(int64_t id) const {
        char* at = own_memory + id * own_bytes;
        const auto take = [&](int64_t count) {
            float* piece = reinterpret_cast<float*>(at);
            at += Scratch::size<float>(count);
            return piece;
        };
        Own mine;
        const auto vector = [&](int64_t depth) {
            char* piece = at;
            at += Vector::bytes(depth);
            return Vector(piece, depth);
        };
        mine.normed = vector(step.width), mine.heads = vector(most_queries);
        mine.gist = vector(most_gist), mine.resting = vector(most_resting);
        mine.thoughts = reinterpret_cast<Vector*>(at), at += most_slots * Scratch::size<Vector>(1);
        for (int64_t a = 0; a < most_slots; ++a) mine.thoughts[a] = vector(most_unit);
        mine.spoken = take(spoken_size());
        mine.keys = take(most_keys), mine.rotation = take(2 * head_dim);
        mine.laid_out = take(most_group * round_up(head_dim, 16)), mine.weights = take(most_group * ROW);
        mine.squashed = take(most_units), mine.claims = take(most_units), mine.strengths = take(most_slots);
        mine.units = reinterpret_cast<int64_t*>(at), at += Scratch::size<int64_t>(most_slots);
        mine.up = reinterpret_cast<Stored*>(at), at += Scratch::size<Stored>(most_slots);
        mine.down = reinterpret_cast<Stored*>(at), at += Scratch::size<Stored>(most_slots);
        mine.said = reinterpret_cast<Said*>(at), at += Scratch::size<Said>(most_slots * most_unit);
        mine.driven.units = reinterpret_cast<int64_t*>(at), at += Scratch::size<int64_t>(most_voices);
        mine.driven.loudness = take(most_voices);
        mine.voices = take(most_voices * round_up(head_dim, 16)), mine.voice = take(head_dim);
        mine.half = vector(most_half), mine.recalled = take(most_half ? step.width : 0);
        return mine;
    }
    // Sums of a thread's outputs as packed rows deal them, and of each group's zero points.
    int64_t spoken_size() const { return (PACK + GROUPS) * packs(step.width); }

    void walk(Member me, Passage& passage) const {
        Own mine = own(me.id);
        if (me.id == 0) {
            std::fill_n(best, step.threads, -1);  // the team may be smaller than was asked for
            if (step.pool) step.pool->tick(1);
        }
        if (me.id == 0) {
            const StepLinear& table = step.embedding;
            const uint8_t* row = reinterpret_cast<const uint8_t*>(table.weight.at(token * table.row_bytes));
            unpack_rows(table.weight.format, row, table.row_bytes, 1, step.width, 1, x);
        }
        meet();
        StepMixer mixer;
        StepFeedForward feed_forward;
        for (int64_t l = 0; l < step.layers; ++l) {
            if (!passage.enter(l, me)) return;
            const StepMixer& m = passage.mixer(l, mixer);
            normalise(x, m.norm, step.width, mine.normed);
            const float loudness = m.gate ? pass(m, mine.normed.plain, me, m.out_gate) : 1.f;
            if (loudness == 0.f) {
                only_remember(m, me, mine);
                if (me.id == 0) tell_nobody(step.feed_forwards[l]);
                continue;
            }
            mix(m, me, mine);
            think(passage.feed_forward(l, feed_forward), me, mine);
            if (failed) return;  // every thread sees it: it met the others since
            if (m.gate) {
                blend(loudness, me);
                meet();
            }
        }
        if (me.id == 0) passage.leave(step.layers);
        normalise(x, step.norm, step.width, mine.normed);
        if (step.hidden && me.id == 0) std::copy_n(mine.normed.plain, step.width, step.hidden);
        product(step.head, mine.normed, me, step.logits);
        nominate(step.logits, step.head, me, best);
    }

    // out = norm of `in`, in both orders.
    ONE_CODE void normalise(const float* in, const Stored& weight, int64_t count, Vector& out) const {
        scale_to_unit(in, weight, 0, count, out.plain);
        out.lay_out(count, step);
    }
    void scale_to_unit(const float* in, const Stored& weight, int64_t at, int64_t count, float* out) const {
        float squares[16] = {};
        int64_t i = 0;
        for (; i + 16 <= count; i += 16)
            for (int64_t j = 0; j < 16; ++j) squares[j] += in[i + j] * in[i + j];
        for (; i < count; ++i) squares[0] += in[i] * in[i];
        float total = 0;
        for (float square : squares) total += square;
        const float scale = 1.f / std::sqrt(total / float(count) + float(step.eps));
        weight.typed([&](auto* w) {
            for (int64_t k = 0; k < count; ++k) out[k] = in[k] * scale * widen(w[at + k]);
        });
    }

    // Outputs of a linear layer that stay with one thread.
    static int64_t grain(const StepLinear& linear) { return linear.by_input ? CHUNK : LINES; }
    // This thread's rows of a linear layer; `add` adds to what is there.
    template <bool add = false> static void product(const StepLinear& linear, const Vector& in, Member me, float* out) {
        if (linear.by_input) return awake_product<add>(linear, in, me, out);
        const PreparedVector& x = in.of(linear.weight.format);
        for (int64_t o = me.from(linear.outs, LINES), to = me.to(linear.outs, LINES); o < to; o += LINES) {
            const int64_t lines = std::min<int64_t>(LINES, linear.outs - o);
            float part[1][LINES];
            packed_dots<1>(linear.weight.format, linear.weight.at(o * linear.row_bytes), linear.row_bytes, lines, &x, 1, linear.depth, part,
                           2 * LINES * linear.row_bytes);
            for (int64_t r = 0; r < lines; ++r) {
                const float y = part[0][r] + (linear.bias ? linear.bias[o + r] : 0.f);
                out[o + r] = add ? out[o + r] + y : y;
            }
        }
    }

    // The same where the weights of what sleeps are not read.
    template <bool add> static void awake_product(const StepLinear& linear, const Vector& in, Member me, float* out) {
        in.awake.find(in.plain, linear.depth, float(linear.threshold));
        for (int64_t o = me.from(linear.outs, grain(linear)), to = me.to(linear.outs, grain(linear)); o < to; o += SLICE) {
            const int64_t some = std::min(SLICE, to - o);
            float sums[SLICE];
            awake_rows(linear, in.awake, o, some, sums);
            for (int64_t j = 0; j < some; ++j) out[o + j] = add ? out[o + j] + sums[j] : sums[j];
        }
    }
    // Outputs [from, from + count), with their bias.
    static void awake_rows(const StepLinear& linear, const Awake& awake, int64_t from, int64_t count, float* sums) {
        linear.weight.typed([&](auto* w) { awake_sums(w + from, linear.outs, awake, count, sums); });
        for (int64_t j = 0; linear.bias && j < count; ++j) sums[j] += linear.bias[from + j];
    }
    // `hide` for all neurons of who never sleeps, where inputs may.
    void hide_awake(const StepFeedForward& f, Member me, const Vector& in, float* out) const {
        const StepLinear& up = f.always_up;
        const Activation& act = activation(int(f.always_activation));
        const int64_t width = f.always_down.depth;
        in.awake.find(in.plain, up.depth, float(up.threshold));
        for (int64_t h = me.from(width, CHUNK), to = me.to(width, CHUNK); h < to; h += SLICE) {
            const int64_t some = std::min(SLICE, to - h);
            float hidden[2 * SLICE];
            for (int p = 0; p < act.parts; ++p) awake_rows(up, in.awake, p * width + h, some, hidden + p * some);
            act.forward(hidden, some, out + h);
        }
    }

    // How loudly the token passes a gated layer, 0 where it passes it by; every thread finds out for itself.
    ONE_CODE float pass(const StepMixer& m, const float* normed, Member me, float* told) const {
        float sums[16] = {};
        m.gate.typed([&](auto* g) {
            for (int64_t d = 0; d < step.width; ++d) sums[d % 16] += normed[d] * widen(g[d]);
        });
        float total = 0;
        for (float sum : sums) total += sum;
        const float score = 1.f / (1.f + std::exp(-total));
        if (me.id == 0) *told = score;
        if (!(score > float(m.cutoff))) return 0.f;
        // what `blend` will want of this thread's share, before anybody writes to it
        for (int64_t d = me.from(step.width, LINES), to = me.to(step.width, LINES); d < to; ++d) before[d] = x[d];
        return 2.f * score;
    }
    // What a gated layer changed, as loud as the token passed.
    ONE_CODE void blend(float loudness, Member me) const {
        for (int64_t d = me.from(step.width, LINES), to = me.to(step.width, LINES); d < to; ++d)
            x[d] = before[d] + loudness * (x[d] - before[d]);
    }
    // Key and value alone, for later tokens to find.
    void only_remember(const StepMixer& m, Member me, Own& mine) const {
        product(m.key, mine.normed, me, key);
        if (m.hearing) hear_alone(m.hearing, me, mine);
        else product(m.value, mine.normed, me, value);
        meet();
        angles(m.head_dim, mine.rotation);
        prepare(m, key, m.key_norm, m.key_heads, mine, mine.keys);
        for (int64_t head = me.id; head < m.key_heads; head += me.team) remember(m, head, mine);
        meet();
    }

    // Behind the norm, which lies in `mine`.
    void mix(const StepMixer& m, Member me, Own& mine) const {
        product(m.query, mine.normed, me, query);
        product(m.key, mine.normed, me, key);
        if (m.hearing) hear_alone(m.hearing, me, mine);
        else product(m.value, mine.normed, me, value);
        meet();
        const int64_t first = first_seen(m, position), seen = position + 1 - first, parts = chunks(m, seen, step.threads);
        angles(m.head_dim, mine.rotation);
        prepare(m, query, m.query_norm, m.heads, mine, mine.heads.plain);
        prepare(m, key, m.key_norm, m.key_heads, mine, mine.keys);
        for (int64_t item = me.id; item < m.key_heads * parts; item += me.team) {
            const int64_t head = item / parts, part = item % parts;
            const int64_t from = first + seen * part / parts, to = first + seen * (part + 1) / parts;
            if (part == parts - 1) remember(m, head, mine);
            if (m.memory_is_bf16) attend<bf16>(m, head, part, parts, from, to, mine);
            else attend<float>(m, head, part, parts, from, to, mine);
        }
        meet();
        for (int64_t h = 0; h < m.heads; ++h) merge(m, h, parts, mine.heads.plain + h * m.head_dim);
        mine.heads.lay_out(m.query.outs, step);
        if (m.speaking) {
            product(m.speaking.gate, mine.heads, me, drive);
            meet();
            speak_driven(m.speaking, me, mine);
        } else product<true>(m.out, mine.heads, me, x);
        meet();
    }

    // Values by dendrites, of which the whole team has to know how much they are driven.
    void hear_alone(const StepDendrites& d, Member me, Own& mine) const {
        product(d.gate, mine.normed, me, drive);
        meet();
        hear_driven(d, me, mine);
    }
    // The same two when that lies in `drive`.
    void hear_driven(const StepDendrites& d, Member me, const Own& mine) const {
        most_driven(d, drive, mine.driven);
        if (d.weight.format == BF16) hear<bf16>(d, mine.driven, mine.normed.wide.split, me, value);
        else hear<float>(d, mine.driven, mine.normed.plain, me, value);
    }
    void speak_driven(const StepDendrites& d, Member me, const Own& mine) const {
        most_driven(d, drive, mine.driven);
        d.weight.typed([&](auto* w) {
            using W = std::decay_t<decltype(*w)>;
            raise_voices<W>(d, mine.driven, mine.heads.plain, mine.voice, mine.voices);
            speak_to<W>(d, mine.driven, mine.voices, me, x);
        });
    }

    // cos and sin of this position.
    ONE_CODE void angles(int64_t width, float* rotation) const {
        for (int64_t i = 0; i < width / 2; ++i) {
            const float angle = float(position) * step.frequencies[i];
            rotation[i] = std::cos(angle) * float(step.rotation_scale);
            rotation[width / 2 + i] = std::sin(angle) * float(step.rotation_scale);
        }
    }
    static void rotate(float* head, int64_t width, const float* rotation) {
        const int64_t half = width / 2;
        for (int64_t i = 0; i < half; ++i) {
            const float a = head[i], b = head[half + i], c = rotation[i], s = rotation[half + i];
            head[i] = a * c - b * s, head[half + i] = b * c + a * s;
        }
    }
    // Heads clipped, normed and rotated.
    ONE_CODE void prepare(const StepMixer& m, const float* in, const Stored& norm, int64_t heads, const Own& mine, float* out) const {
        const int64_t width = m.head_dim, all = heads * width;
        std::copy_n(in, all, out);
        if (norm && !m.norm_heads) scale_to_unit(out, norm, 0, all, out);
        clip(m, out, all);
        for (int64_t h = 0; h < heads; ++h) {
            if (norm && m.norm_heads) scale_to_unit(out + h * width, norm, 0, width, out + h * width);
            rotate(out + h * width, width, mine.rotation);
        }
    }
    static void clip(const StepMixer& m, float* values, int64_t count) {
        const float limit = float(m.clip);
        if (limit > 0)
            for (int64_t i = 0; i < count; ++i) values[i] = std::min(std::max(values[i], -limit), limit);
    }
    // This token's key and value of one head, put where later tokens find them.
    ONE_CODE void remember(const StepMixer& m, int64_t head, const Own& mine) const {
        const int64_t width = m.head_dim, at = (head * m.room + position) * width;
        write(mine.keys + head * width, width, m.keys, m.memory_is_bf16, at);
        float* spoken = mine.rotation + width;  // free beside the angles
        std::copy_n(value + head * width, width, spoken);
        clip(m, spoken, width);
        write(spoken, width, m.values, m.memory_is_bf16, at);
    }

    // The queries of one key head against the keys [from, to): peak, sum and unfinished mixture of each.
    template <class W>
    ONE_CODE void attend(const StepMixer& m, int64_t head, int64_t part, int64_t parts, int64_t from, int64_t to, const Own& mine) const {
        const int64_t width = m.head_dim, pitch = round_up(width, 16), group = m.heads / m.key_heads, first = head * group;
        const W* keys = static_cast<const W*>(m.keys) + head * m.room * width;
        const W* values = static_cast<const W*>(m.values) + head * m.room * width;
        for (int64_t g = 0; g < group; ++g) lay_out<W>(mine.heads.plain + (first + g) * width, width, mine.laid_out + g * pitch);
        for (int64_t g = 0; g < group; g += TOKENS) {
            const int64_t count = std::min<int64_t>(TOKENS, group - g);
            for (int64_t s = from; s < to; s += LINES) {
                float dot[TOKENS][LINES];
                dots(keys + s * width, width, std::min<int64_t>(LINES, to - s), mine.laid_out + g * pitch, pitch, count, width, dot,
                     2 * LINES * width);
                for (int64_t t = 0; t < count; ++t) std::copy_n(dot[t], LINES, mine.weights + (g + t) * ROW + s - from);
            }
        }
        const float softness = 1.f / std::sqrt(float(width));
        for (int64_t g = 0; g < group; ++g) {
            float *weight = mine.weights + g * ROW;
            if (m.fading)
                for (int64_t s = 0; s < to - from; ++s) weight[s] += m.fading[position - from - s] / softness;
            float peak = weight[0], sum = 0;
            for (int64_t s = 0; s < to - from; ++s) peak = std::max(peak, weight[s]);
            for (int64_t s = 0; s < to - from; ++s) weight[s] = exponential((weight[s] - peak) * softness);
            for (int64_t s = 0; s < to - from; ++s) sum += weight[s];
            const int64_t slot = (first + g) * parts + part;
            peaks[slot] = peak * softness, sums[slot] = sum;
            std::fill_n(mixed + slot * width, width, 0.f);
        }
        for (int64_t s = from; s < to; ++s)
            for (int64_t g = 0; g < group; ++g) {
                const float weight = mine.weights[g * ROW + s - from];
                float* __restrict out = mixed + ((first + g) * parts + part) * width;
                const W* __restrict spoken = values + s * width;
                for (int64_t k = 0; k < width; ++k) out[k] += weight * widen(spoken[k]);
            }
    }
    // A head's mixture from its parts; a sink takes its share and gives nothing.
    ONE_CODE void merge(const StepMixer& m, int64_t head, int64_t parts, float* out) const {
        float peak = m.sinks ? m.sinks[head] : peaks[head * parts];
        for (int64_t p = 0; p < parts; ++p) peak = std::max(peak, peaks[head * parts + p]);
        float total = m.sinks ? exponential(m.sinks[head] - peak) : 0.f;
        std::fill_n(out, m.head_dim, 0.f);
        for (int64_t p = 0; p < parts; ++p) {
            const float share = exponential(peaks[head * parts + p] - peak);
            total += share * sums[head * parts + p];
            const float* part = mixed + (head * parts + p) * m.head_dim;
            for (int64_t k = 0; k < m.head_dim; ++k) out[k] += share * part[k];
        }
        for (int64_t k = 0; k < m.head_dim; ++k) out[k] /= total;
    }

    ONE_CODE void think(const StepFeedForward& f, Member me, Own& mine) const {
        normalise(x, f.norm, step.width, mine.normed);
        if (f.recall.asks.outs) return recollect(f.recall, me, mine);
        if (f.router != DENSE) {
            if (f.gist.outs) {
                product(f.gist, mine.normed, me, gist);
                meet();
                take_in(gist, f.gist.outs, mine.gist);
            }
            product(f.scores, f.gist.outs ? mine.gist : mine.normed, me, scores);
            meet();
            wake(f, mine);
            if (me.id == 0) tell(f, mine);
        }
        // every thread its share of all hidden values, then its share of the output
        const int64_t pitch = round_up(f.unit_width, 16), resting = f.always_down.depth;
        float* always = active + f.slots * pitch;
        if (step.pool && f.pool_layer >= 0) think_from_pool(f, me, mine, pitch);
        else if (f.slots) think_from_memory(f, me, mine, pitch);
        if (resting && f.always_up.by_input) hide_awake(f, me, mine.normed, always);
        else
            for (int64_t h = me.from(resting, BLOCK), to = me.to(resting, BLOCK); h < to; h += BLOCK)
                hide(f.always_up.weight, f.always_up.row_bytes, f.always_up.bias, resting, h, f.always_activation, 1.f, mine.normed, always,
                     h + BLOCK < to ? f.always_up.weight.at((h + BLOCK) * f.always_up.row_bytes) : nullptr);
        meet();
        for (int64_t a = 0; a < f.slots; ++a)
            if (mine.units[a] >= 0) take_in_unit(f, active + a * pitch, mine.thoughts[a]);
        if (resting) take_in(always, resting, mine.resting);
        if (f.slots && !failed) {
            if (turned(f.down.format, f.unit_width)) speak_turned(f, me, mine);
            else if (f.down.format > BF16) speak_packed(f, me, mine);
            else f.down.typed([&](auto* w) { speak(f, w, me, mine); });
        }
        if (f.slots && resting) meet();  // the two part the stream among the threads on boundaries of their own
        if (resting) product<true>(f.always_down, mine.resting, me, x);
        meet();
        if (step.pool && f.pool_layer >= 0 && me.id == 0)
            for (int64_t a = 0; a < f.slots; ++a)
                if (mine.units[a] >= 0) step.pool->release(f.pool_layer, mine.units[a]);
    }
    // The rows that this token recalls, weighted and summed into the stream.
    void recollect(const StepRecall& r, Member me, Own& mine) const {
        product(r.asks, mine.normed, me, asked);
        meet();
        score_keys(r, me, mine.half);
        meet();
        static thread_local Scratch memory;
        memory.reset(Best::bytes(r.awake));
        Best found(memory, r.awake);
        for (int64_t h = me.id; h < r.heads; h += me.team)
            found.find(halves + 2 * h * r.side, halves + (2 * h + 1) * r.side, r.side, r.awake, rows + h * r.awake, shares + h * r.awake);
        meet();
        if (r.far) {
            if (me.id == 0 && !r.far->gather(rows, r.heads * r.awake, fetched)) failed = true;
            meet();
            if (failed) return;
        }
        add_recalled(r, me, mine.recalled);
        meet();
    }
    // Each half of each query against its keys, a thread's share of them.
    void score_keys(const StepRecall& r, Member me, Vector& query) const {
        const int64_t half = r.asks.outs / (2 * r.heads), row_bytes = half * (r.keys.format == BF16 ? 2 : 4);
        const int64_t from = me.from(2 * r.heads * r.side, LINES), to = me.to(2 * r.heads * r.side, LINES);
        for (int64_t of = from / r.side; of * r.side < to; ++of) {
            for (int64_t k = of * half; k < (of + 1) * half; ++k) query.plain[k - of * half] = (asked[k] - r.center[k]) / r.spread[k];
            ::prepare(r.keys.format, query.plain, half, query.wide);
            for (int64_t i = std::max(from, of * r.side), last = std::min(to, (of + 1) * r.side); i < last; i += LINES) {
                const int64_t lines = std::min<int64_t>(LINES, last - i);
                float part[1][LINES];
                packed_dots<1>(r.keys.format, r.keys.at(i * row_bytes), row_bytes, lines, &query.wide, 1, half, part, 4 * LINES * row_bytes);
                std::copy_n(part[0], lines, halves + i);
            }
        }
    }
    // The recalled rows, from wherever they are, a thread's share of the stream.
    void add_recalled(const StepRecall& r, Member me, float* plain) const {
        constexpr int64_t AHEAD = 4;
        const int64_t from = me.from(step.width, LINES), to = me.to(step.width, LINES), recalled = r.heads * r.awake;
        const auto row = [&](int64_t a) { return r.far ? fetched + a * r.row_bytes : r.table.at(rows[a] * r.row_bytes); };
        const auto prefetch = [&](int64_t a, int64_t first, int64_t last) {
            if (a < recalled)
                for (int64_t byte = first; byte < last; byte += 64) __builtin_prefetch(row(a) + byte);
        };
        if (r.table.format > BF16) {
            for (int64_t a = 0; a < AHEAD; ++a) prefetch(a, 0, r.row_bytes);
            for (int64_t a = 0; a < recalled; ++a) {
                prefetch(a + AHEAD, 0, r.row_bytes);
                unpack_one(r.table.format, reinterpret_cast<const uint8_t*>(row(a)), step.width, plain);
                for (int64_t d = from; d < to; ++d) x[d] += shares[a] * plain[d];
            }
            return;
        }
        r.table.typed([&](auto* table) {
            using T = std::remove_pointer_t<decltype(table)>;
            for (int64_t a = 0; a < AHEAD; ++a) prefetch(a, from * sizeof(T), to * sizeof(T));
            for (int64_t a = 0; a < recalled; ++a) {
                prefetch(a + AHEAD, from * sizeof(T), to * sizeof(T));
                const T* __restrict its = reinterpret_cast<T*>(row(a));
                for (int64_t d = from; d < to; ++d) x[d] += shares[a] * widen(its[d]);
            }
        });
    }
    void think_from_memory(const StepFeedForward& f, Member me, const Own& mine, int64_t pitch) const {
        const int64_t blocks = (f.unit_width + BLOCK - 1) / BLOCK;
        for (int64_t a = 0; a < f.slots; ++a) {
            const int64_t unit = std::max<int64_t>(mine.units[a], 0);
            mine.up[a] = {f.up.at(unit * up_bytes(f)), f.up.format};
            mine.down[a] = {f.down.at(unit * step.width * f.down_row_bytes), f.down.format};
        }
        const auto up_of = [&](int64_t i) { return mine.up[i / blocks].at(i % blocks * BLOCK * f.up_row_bytes); };
        for (int64_t i = me.from(f.slots * blocks, 1), to = me.to(f.slots * blocks, 1); i < to; ++i)
            if (mine.units[i / blocks] >= 0)
                think_of(f, i / blocks, i % blocks * BLOCK, mine, pitch, i + 1 < to ? up_of(i + 1) : nullptr);
    }
    // Units that are here first, while the others are on their way.
    void think_from_pool(const StepFeedForward& f, Member me, const Own& mine, int64_t pitch) const {
        if (me.id == 0)
            for (int64_t a = 0; a < f.slots; ++a)
                while (mine.units[a] >= 0 && !step.pool->request(f.pool_layer, mine.units[a]))
                    std::this_thread::sleep_for(std::chrono::milliseconds(1));
        meet();
        const auto turn = [&](int64_t a) {
            const char* record = step.pool->wait(f.pool_layer, mine.units[a]);
            if (!record) {
                failed = true;
                return;
            }
            mine.up[a] = {record, f.up.format}, mine.down[a] = {record + up_bytes(f), f.down.format};
            // a unit of few neurons is one thread's
            if (f.unit_width < me.team * BLOCK && a % me.team != me.id) return;
            const Member alone{0, 1}, sharing = f.unit_width < me.team * BLOCK ? alone : me;
            for (int64_t b = sharing.from(f.unit_width, BLOCK), to = sharing.to(f.unit_width, BLOCK); b < to; b += BLOCK)
                think_of(f, a, b, mine, pitch, nullptr);
        };
        for (int64_t a = 0; a < f.slots; ++a) {
            mine.up[a].base = nullptr;
            if (mine.units[a] >= 0 && step.pool->is_ready(f.pool_layer, mine.units[a])) turn(a);
        }
        for (int64_t a = 0; a < f.slots; ++a)
            if (mine.units[a] >= 0 && !mine.up[a].base) turn(a);
    }
    static int64_t up_bytes(const StepFeedForward& f) { return activation(int(f.activation)).parts * f.unit_width * f.up_row_bytes; }
    // Hidden values [b, b + BLOCK) of the unit in slot a.
    void think_of(const StepFeedForward& f, int64_t a, int64_t b, const Own& mine, int64_t pitch, const char* next) const {
        const int64_t rows = activation(int(f.activation)).parts * f.unit_width;
        const Stored bias = f.up_bias ? f.up_bias.shifted(mine.units[a] * rows) : f.up_bias;
        hide(mine.up[a], f.up_row_bytes, bias, f.unit_width, b, f.activation, mine.strengths[a], mine.normed, active + a * pitch,
             next);
    }
    // What the team thought, in this thread's own memory and in every form.
    ONE_CODE void take_in(const float* values, int64_t count, Vector& out) const {
        std::copy_n(values, count, out.plain);
        out.lay_out(count, step);
    }
    // The same of a unit, in the form that its rows of `down` want.
    static void take_in_unit(const StepFeedForward& f, const float* values, Vector& out) {
        std::copy_n(values, f.unit_width, out.plain);
        compete(out.plain, f.unit_width, f.most);
        if (turned(f.down.format, f.unit_width)) return;
        if (f.down.format > BF16) ::prepare(INT8, out.plain, f.unit_width, out.codes);
        else if (f.down.format == BF16) ::prepare(BF16, out.plain, f.unit_width, out.wide);
    }
    // Outputs from units whose rows do not fill a register: unit after unit, each in one run.
    template <class W> void speak_narrow(const StepFeedForward& f, Member me, const Own& mine) const {
        const int64_t d = me.from(step.width, NARROW_TILE), some = me.to(step.width, NARROW_TILE) - d;
        const auto down_of = [&](int64_t a) { return static_cast<const W*>(mine.down[a].base) + d * f.unit_width; };
        for (int64_t a = 0; a < f.slots && some; ++a) {
            if (mine.units[a] < 0) continue;
            const bool more = a + 1 < f.slots && mine.units[a + 1] >= 0;
            NarrowRows<W>{down_of(a), f.unit_width, some, more ? down_of(a + 1) : nullptr}.add(mine.thoughts[a].plain, x + d);
            for (int64_t k = 0; f.down_bias && k < some; ++k)
                x[d + k] += mine.strengths[a] * f.down_bias[mine.units[a] * step.width + d + k];
        }
    }
    // Columns of the output from all awake units; sums stay unfinished until the last unit.
    template <class W> void speak(const StepFeedForward& f, const W*, Member me, const Own& mine) const {
        if (NarrowRows<W>::takes(f.unit_width)) return speak_narrow<W>(f, me, mine);
        for (int64_t d = me.from(step.width, LINES), to = me.to(step.width, LINES); d < to; d += LINES) {
            const int64_t lines = std::min<int64_t>(LINES, step.width - d);
            Dots<W, 1> all;
            for (int64_t a = 0; a < f.slots; ++a) {
                if (mine.units[a] < 0) continue;
                const W* down = static_cast<const W*>(mine.down[a].base) + d * f.unit_width;
                const float* in = sizeof(W) == 2 ? mine.thoughts[a].wide.split : mine.thoughts[a].plain;
                all.add(down, f.unit_width, lines, in, 0, f.unit_width, 2 * LINES * f.unit_width);
                for (int64_t r = 0; f.down_bias && r < lines; ++r)
                    all.rest[0][r] += mine.strengths[a] * f.down_bias[mine.units[a] * step.width + d + r];
            }
            float part[1][LINES];
            all.finish(part);
            for (int64_t r = 0; r < lines; ++r) x[d + r] += part[0][r];
        }
    }
    void speak_packed(const StepFeedForward& f, Member me, const Own& mine) const {
        for (int64_t a = 0; a < f.slots; ++a) {
            if (mine.units[a] < 0) continue;
            for (int64_t d = me.from(step.width, LINES), to = me.to(step.width, LINES); d < to; d += LINES) {
                const int64_t lines = std::min<int64_t>(LINES, step.width - d);
                float part[1][LINES];
                packed_dots<1>(f.down.format, mine.down[a].at(d * f.down_row_bytes), f.down_row_bytes, lines, &mine.thoughts[a].codes, 1,
                               f.unit_width, part, 2 * LINES * f.down_row_bytes);
                for (int64_t r = 0; r < lines; ++r)
                    x[d + r] += part[0][r] + (f.down_bias ? mine.strengths[a] * f.down_bias[mine.units[a] * step.width + d + r] : 0.f);
            }
        }
    }
    // Each neuron that speaks adds its row of `down`, a thread's blocks of it; the others' rows are not read.
    void speak_turned(const StepFeedForward& f, Member me, const Own& mine) const {
        const int64_t blocks = packs(step.width), from = me.from(blocks, 1), to = me.to(blocks, 1);
        int64_t count = 0;
        for (int64_t a = 0; a < f.slots; ++a)
            for (int64_t n = 0; mine.units[a] >= 0 && n < f.unit_width; ++n)
                if (const float value = mine.thoughts[a].plain[n]; value != 0.f)
                    mine.said[count++] = {reinterpret_cast<const uint8_t*>(mine.down[a].at(n * f.down_row_bytes)), value};
        float *dealt = mine.spoken, *zeros = dealt + PACK * blocks;
        std::fill_n(mine.spoken, spoken_size(), 0.f);
        for (int64_t i = 0; i < count; ++i)
            add_packed_row(f.down.format, mine.said[i].row, blocks, from, to, mine.said[i].value, dealt, zeros,
                           i + 2 < count ? mine.said[i + 2].row : nullptr);
        for (int64_t d = from * PACK, last = std::min(step.width, to * PACK); d < last; ++d) {
            const int64_t block = d / PACK, group = d % PACK / GROUP, at = d % GROUP;
            x[d] += dealt[block * PACK + at / 4 * 4 * GROUPS + group * 4 + at % 4] - zeros[block * GROUPS + group];
        }
        for (int64_t a = 0; a < f.slots && f.down_bias; ++a)
            for (int64_t d = from * PACK, last = std::min(step.width, to * PACK); mine.units[a] >= 0 && d < last; ++d)
                x[d] += mine.strengths[a] * f.down_bias[mine.units[a] * step.width + d];
    }
    // Hidden values [f, f + BLOCK) of a unit, activated and times its strength; `next` is read after them.
    void hide(const Stored& up, int64_t row_bytes, const Stored& up_bias, int64_t width, int64_t f, int64_t code, float strength, const Vector& in,
              float* out, const char* next) const {
        const Activation& act = activation(int(code));
        const int64_t some = std::min<int64_t>(BLOCK, width - f);
        float hidden[2 * BLOCK];
        const PreparedVector& x = in.of(up.format);
        const RowBlocks<char> rows{up.at(f * row_bytes), row_bytes, width, some, act.parts, next};
        for (int p = 0; p < act.parts; ++p)
            for (int64_t r = 0; r < some; r += LINES) {
                const int64_t row = p * width + f + r, lines = std::min<int64_t>(LINES, some - r);
                float part[1][LINES];
                packed_dots<1>(up.format, rows.at(p, r), row_bytes, lines, &x, 1, step.width, part, rows.ahead(p, r));
                for (int64_t l = 0; l < lines; ++l) hidden[p * some + r + l] = part[0][l] + (up_bias ? up_bias[row + l] : 0.f);
            }
        act.forward(hidden, some, out + f);
        for (int64_t r = 0; r < some; ++r) out[f + r] *= strength;
    }

    // Who wakes, and how strongly; every thread finds out for itself.
    void wake(const StepFeedForward& f, const Own& mine) const {
        const int64_t units = f.scores.outs;
        for (int64_t u = 0; u < units; ++u) mine.squashed[u] = scores[u] + f.steering[u];
        choose({f.router, units, f.slots, f.renormalise, f.scale, f.balance, f.cutoffs}, mine.squashed, mine.claims, mine.units,
               mine.strengths);
    }
    static void tell_nobody(const StepFeedForward& f) {
        if (f.router == DENSE) return;
        std::fill_n(f.out_units, f.slots, int64_t(-1));
        std::fill_n(f.out_strengths, f.slots, 0.f);
        std::fill_n(f.out_scores, f.scores.outs, 0.f);
    }
    static void tell(const StepFeedForward& f, const Own& mine) {
        std::copy_n(mine.units, f.slots, f.out_units);
        std::copy_n(mine.strengths, f.slots, f.out_strengths);
        std::copy_n(mine.squashed, f.scores.outs, f.out_scores);
    }
};
