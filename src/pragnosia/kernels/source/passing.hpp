// Layers of a dense model that lie on disk: each is one record of the step's pool, and they pass through two of its slots.
//
// Layers before `step.passing` stay where they are. The matrices of the others are written down as though every record
// lay in the pool's first slot, and are shifted to where it came. The layer that computes and the one after it are held,
// in a circle: while the last layers and the head compute, the first of those that pass are read for the next token.
// A part of step.hpp, which says what a step is.
#pragma once
#include <algorithm>

class Passage {
    static constexpr int64_t PASSING = 2;  // slots, as in inference/layers.py

    const Step& step;
    int64_t held[PASSING] = {-1, -1};
    const char* record = nullptr;  // of the layer that computes
    bool failed_ = false;

  public:
    explicit Passage(const Step& step) : step(step) {}
    Passage(const Passage&) = delete;
    ~Passage() {
        for (int64_t layer : held)
            if (layer >= 0) step.pool->release(layer, 0);
    }
    bool failed() const { return failed_; }

    // The whole team, when nobody computes on another layer any more: whether this one is here.
    bool enter(int64_t layer, Member me) {
        if (step.passing >= step.layers) return true;
        if (me.id == 0) wait_for(layer);
        meet();
        return !failed_;
    }
    // One thread, when nobody computes on a layer any more: what comes after the last one begins to be read.
    void leave(int64_t layer) {
        if (step.passing < step.layers) hold_from(layer);
    }

    // A layer with its matrices where they are; `own` is where a thread may write that down.
    const StepMixer& mixer(int64_t layer, StepMixer& own) const {
        if (layer < step.passing) return step.mixers[layer];
        own = step.mixers[layer];
        for (StepLinear* matrix : {&own.query, &own.key, &own.value, &own.out}) shift(matrix->weight);
        for (StepDendrites* dendrites : {&own.hearing, &own.speaking}) shift(dendrites->gate.weight), shift(dendrites->weight);
        return own;
    }
    const StepFeedForward& feed_forward(int64_t layer, StepFeedForward& own) const {
        if (layer < step.passing) return step.feed_forwards[layer];
        own = step.feed_forwards[layer];
        for (StepLinear* matrix : {&own.always_up, &own.always_down, &own.recall.asks}) shift(matrix->weight);
        shift(own.recall.keys);
        return own;
    }

  private:
    void shift(Stored& weight) const {
        if (weight) weight.base = record + (weight.at(0) - step.pool->first_slot());
    }
    void wait_for(int64_t layer) {
        hold_from(layer);
        if (layer < step.passing) return step.pool->found(1);
        while (!holds(layer)) {  // what was read in vain is still on its way into the only slot
            std::this_thread::sleep_for(std::chrono::milliseconds(1));
            hold_from(layer);
        }
        record = step.pool->wait(layer, 0);
        failed_ = !record;
    }
    bool holds(int64_t layer) const { return std::find(held, held + PASSING, layer) != held + PASSING; }
    // Let go of all but the next layers that pass, and ask for those, as far as there are slots.
    void hold_from(int64_t layer) {
        int64_t wanted[PASSING];
        for (int64_t& next : wanted) {
            next = layer >= step.passing && layer < step.layers ? layer : step.passing;
            layer = next + 1;
        }
        for (int64_t& old : held)
            if (old >= 0 && std::find(wanted, wanted + PASSING, old) == wanted + PASSING) step.pool->release(old, 0), old = -1;
        for (int64_t next : wanted) {
            if (holds(next)) continue;
            if (!step.pool->request(next, 0, false)) return;  // two texts, each with the one after, would wait for each other
            *std::find(held, held + PASSING, -1) = next;
        }
    }
};
