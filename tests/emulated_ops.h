// The CPU in place of a device: bodies run in a plain loop, blocks thread by thread in steps. Its memory is the host's,
// filled with NaN, so that what is read must have been written; and a replay repeats what was asked for, with the
// arguments of then, and what lies aside as late as it may be.
#pragma once

#include <map>
#include <set>
#include <vector>

#include "kernels/device_attention.h"
#include "kernels/device_bodies.h"
#include "tests/emulation.h"
#include "tests/support.h"

namespace heed::test {

class EmulatedOps : public DeviceOps {
 public:
  int copies = 0;   // from, to and within its memory
  int kernels = 0;  // that have run

  ~EmulatedOps() override { release_rooms(); }
  void* allocate(std::size_t bytes) override {
    if (capturing_) fail("a captured step wants new memory");
    void* at = std::aligned_alloc(64, bytes);
    std::memset(at, 0xff, bytes);
    return at;
  }
  void release(void* at) noexcept override {
    if (!capturing_) flush();
    std::free(at);
  }
  void copy(void* to, const void* from, std::size_t bytes) override {
    if (capturing_) fail("a captured step wants to copy");
    flush();
    ++copies;
    if (bytes > 0) std::memcpy(to, from, bytes);
  }

  void run(int body, const void* self, Offset count) override {
    bodies::with_body(body, self, [&](const auto& chosen) { enter([this, chosen, count] { loop(chosen, count); }); });
  }
  std::unique_ptr<Replay> capture(const std::function<void()>& work) override {
    struct List : Replay {
      EmulatedOps* device;
      std::vector<std::function<void()>> calls;
      void run() override {
        device->flush();
        for (const auto& call : calls) call();
      }
    };
    flush();
    join();
    auto out = std::make_unique<List>();
    out->device = this;
    capturing_ = &out->calls;
    try {
      work();
      flush();
      join();
    } catch (...) {
      forget();
      capturing_ = nullptr;
      throw;
    }
    capturing_ = nullptr;
    return out;
  }
  bool capturing() const override { return capturing_ != nullptr; }

  void weighted_sum(const WeightedRows& w, View<const float> x, Sink<float> y, Matrix<float>&) override {
    flush();
    enter([=] {
      auto span = [](const float* at, Offset n) { return std::span(at, static_cast<std::size_t>(at ? n : 0)); };
      std::span<const Offset> edge;
      if (w.edge && w.weights) edge = *w.edge;
      Matrix<float> sums(y.to.rows, y.to.cols), parts;
      heed::weighted_sum<float>(*w.rows, span(w.weights, w.rows->list->edges()), edge, span(w.row_scale, w.rows->rows),
                                x, {sums.view()}, parts);
      for (Offset i = 0; i < sums.rows(); ++i)
        for (Offset c = 0; c < sums.cols(); ++c) {
          const float value = w.scale * (sums(i, c) + (w.bias ? w.bias[c] : 0.0f));
          y.to(i, c) = y.add ? y.to(i, c) + value : value;
        }
    });
  }
  void attention(const Attention<float>& x, View<float> y, AttentionState<float>& state) override {
    flush();
    enter([=, this, &state, backward = state.backward] {
      state.backward = backward;
      Call call(*this, x);
      heed::attention<float>(call.x, y, state);
    });
  }
  void attention_gradient(const Attention<float>& x, View<const float> y, View<const float> dy,
                          AttentionState<float>& state, const AttentionGradient<float>& g) override {
    flush();
    enter([=, this, &state] {
      Call call(*this, x);
      AttentionGradient<float> to = g;
      if (call.drawn && g.dk) call.dk.resize(call.k.rows(), call.k.cols()), to.dk = {call.dk.view()};
      if (call.drawn && g.dv) call.dv.resize(call.v.rows(), call.v.cols()), to.dv = {call.dv.view()};
      heed::attention_gradient<float>(call.x, y, dy, state, to);
      if (call.drawn) call.drawn->put_back(call.dk, g.dk), call.drawn->put_back(call.dv, g.dv);
    });
  }
  void redraw(const Pattern& pattern, const std::uint64_t* step, View<const float> scores) override {
    flush();
    enter([=, this, &pattern] { drawn_[&pattern] = settled(pattern, *step, scores); });
  }

 protected:
  struct Call {  // with what is redrawn as the CPU has it: a list, of the rows of the keys that are kept
    Attention<float> x;
    const Settled* drawn = nullptr;
    Matrix<float> k, v, dk, dv;

    Call(const EmulatedOps& ops, const Attention<float>& call) : x(call) {
      if (x.dropout.key_at) x.dropout.key = *x.dropout.key_at;
      if (!x.pattern->by_query.redrawn) return;
      drawn = &ops.drawn_.at(x.pattern);
      k = drawn->rows_of(x.k), v = drawn->rows_of(x.v);
      x.pattern = drawn->pattern.get(), x.k = std::as_const(k).view(), x.v = std::as_const(v).view();
    }
  };
  void enter(std::function<void()> call) {
    if (capturing_) return (aside_now_ ? later_ : *capturing_).push_back(std::move(call));
    call();
  }
  void turn_aside(bool there) override { aside_now_ = there; }
  void wait_for_aside() override {
    if (capturing_) capturing_->insert(capturing_->end(), later_.begin(), later_.end());
    later_.clear();
  }
  template <class Body>
  void loop(const Body& body, Offset count) {
    ++kernels;
    if constexpr (bodies::InBlocks<Body>) {
      std::vector<typename Body::Local> locals(Body::kThreads);
      auto shared = std::make_unique<typename Body::Shared>();
      for (Offset block = 0; block < count; ++block) {
        std::memset(static_cast<void*>(shared.get()), 0xff, sizeof(*shared));
        std::memset(static_cast<void*>(locals.data()), 0xff, sizeof(locals[0]) * locals.size());
        for (int s = 0; s < body.steps(block); ++s)
          for (int thread = 0; thread < Body::kThreads; ++thread) body.step(s, block, thread, *shared, locals[thread]);
      }
    } else {
      for (Offset t = 0; t < count; ++t) body(t);
    }
  }

  std::vector<std::function<void()>>* capturing_ = nullptr;
  std::vector<std::function<void()>> later_;
  bool aside_now_ = false;
  std::map<const Pattern*, Settled> drawn_;
};

// With attention by the kernels' own code, in emulated warps.
class EmulatedKernels : public EmulatedOps {
 public:
  ~EmulatedKernels() override { machine_.reset(); }
  void attention(const Attention<float>& x, View<float> y, AttentionState<float>& state) override {
    flush();
    enter([=, this, &state, backward = state.backward] {
      state.backward = backward;
      attention_there(*machine_, place_in_scores(*x.score), x, y, state);
    });
  }
  void attention_gradient(const Attention<float>& x, View<const float> y, View<const float> dy,
                          AttentionState<float>& state, const AttentionGradient<float>& g) override {
    flush();
    enter([=, this, &state] { attention_gradient_there(*machine_, place_in_scores(*x.score), x, y, dy, state, g); });
  }
  void redraw(const Pattern& pattern, const std::uint64_t* step, View<const float> scores) override {
    bodies::redraw(*this, pattern, step, scores, drawn_there(*machine_, pattern.by_query),
                   drawn_there(*machine_, pattern.by_key));
  }

 private:
  std::unique_ptr<Machine> machine_ = emulated_machine();
};

}  // namespace heed::test
