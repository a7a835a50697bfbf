// The tape: a model is recorded once, as a list of steps over values whose shapes are known, and then run as often as
// one likes, forward and backward. Everything is allocated when it is first needed and kept, so an epoch allocates
// nothing. On a device all values and gradients lie in its memory.
#pragma once

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "kernels/attention.h"
#include "kernels/device_bodies.h"
#include "kernels/sparse.h"

namespace heed {

template <class T>
class Tape;

// A learned matrix, or (trained = false) one that a layer keeps for itself, such as batch norm's running mean.
template <class T>
struct Parameter {
  std::string name;
  Matrix<T> value;
  Matrix<T> grad;
  bool trained = true;
};

template <class T>
struct Var {  // a value on a tape
  Tape<T>* tape = nullptr;
  int id = -1;

  Offset rows() const { return tape->node(id).rows; }
  Offset cols() const { return tape->node(id).cols; }
  Matrix<T>& value() const { return *tape->node(id).value; }
  View<const T> view() const { return std::as_const(value()).view(); }
  bool needs_grad() const { return tape->node(id).needs_grad; }
  const Sparse* sparse() const { return tape->node(id).sparse; }
  // Whether the last backward reached this value.
  bool arrived() const { return tape->node(id).arrived; }
  // The gradient that has arrived here. Zero rows and columns before the first backward.
  View<const T> grad() const { return std::as_const(*tape->node(id).grad).view(); }
  // Where an operation puts its contribution to this gradient; none where nobody wants it. Call it once per backward
  // step: the first contribution is written, later ones are added.
  Sink<T> sink() const { return tape->sink(id); }
};

template <class T>
struct Columns {  // some neighbouring columns of a value, or all of them
  Var<T> of;
  Offset first = 0, count = 0;

  Columns() = default;
  Columns(Var<T> x) : of(x), count(x.tape ? x.cols() : 0) {}
  Columns(Var<T> x, Offset from, Offset n) : of(x), first(from), count(n) {}
  explicit operator bool() const { return of.tape != nullptr; }
  Offset rows() const { return of.rows(); }
  Offset cols() const { return count; }
  View<const T> view() const { return of.tape ? of.view().columns(first, count) : View<const T>{}; }
};

template <class T>
struct TapeNode {
  Offset rows = 0, cols = 0;
  Matrix<T>* value = nullptr;  // of a sparse node: 1 x entries
  Matrix<T>* grad = nullptr;
  const Sparse* sparse = nullptr;
  std::vector<int> inputs;
  bool needs_grad = false;
  bool arrived = false;           // a gradient, in this backward
  std::uint64_t zero_beyond = 0;  // the focus beyond which `grad` is 0; none: it may hold anything
  bool grad_is_kept = false;      // by a parameter
  bool of_parameters = false;     // and of nothing else
  Matrix<T> own_value, own_grad;
};

// The rows of each value that matter to a result.
struct Focus {
  struct Rows {
    std::vector<std::uint8_t> is;  // a mark for each row; none: all matter
    std::vector<Offset> runs;      // where in the value's memory runs of kRunBytes begin that hold those that do
    std::vector<Id> ids;           // which they are
  };
  std::vector<Rows> of;    // a value each
  std::uint64_t name = 0;  // each has its own
};
inline constexpr Offset kRunBytes = 64;  // the widest vector's

// While a focus is worked out, from the result backwards: which rows of what is to be read.
template <class T>
class Reach {
 public:
  explicit Reach(std::size_t values) : rows(values), all(values) {}

  bool reached(Var<T> x) const { return all[at(x)] || !rows[at(x)].empty(); }
  void need(Var<T> x) { all[at(x)] = 1; }
  void need(Var<T> x, const std::vector<std::uint8_t>& some) {
    std::vector<std::uint8_t>& to = rows[at(x)];
    to.resize(some.size());
    for (std::size_t i = 0; i < some.size(); ++i) to[i] |= some[i];
  }
  void need_rows_of(Var<T> x, Var<T> y) {  // those of y
    if (all[at(y)])
      need(x);
    else if (reached(y))
      need(x, rows[at(y)]);
  }
  const std::vector<std::uint8_t>* some_of(Var<T> y) const { return all[at(y)] ? nullptr : &rows[at(y)]; }  // null: all

  std::vector<std::vector<std::uint8_t>> rows;
  std::vector<std::uint8_t> all;

 private:
  static std::size_t at(Var<T> x) { return static_cast<std::size_t>(x.id); }
};

using Profile = std::map<std::string, std::array<double, 2>>;  // seconds {forward, backward} by operation

template <class T>
class Tape {
 public:
  bool training = false;   // dropout draws, batch norm uses the batch
  std::uint64_t seed = 0;  // of dropout, with step
  std::uint64_t step = 0;

  Profile* profile = nullptr;  // where given, every operation adds its seconds

  // What forward and backward are for, where that is less than all values: operations may leave out other rows, which
  // then hold finite numbers from before, and whose gradients are 0. To be set for as many steps as one likes. Devices
  // compute everything.
  const Focus* focus = nullptr;

  // Where the tape runs; null: on the CPU. To be set before anything is recorded.
  DeviceOps* device = nullptr;
  bool bf16 = false;  // on a device, attention gathers rows of bfloat16 numbers (Attention::bf16)
  // Whether each step does the same to the same memory, so that a device may replay it. An operation that reads values
  // on the host, or whose lists change, says that it does not.
  bool repeats = true;

  Tape() = default;
  Tape(const Tape&) = delete;
  Tape& operator=(const Tape&) = delete;

  TapeNode<T>& node(int id) { return nodes_[static_cast<std::size_t>(id)]; }

  // A constant. The matrix must outlive the tape; a device takes a copy.
  Var<T> constant(const Matrix<T>& x) {
    Var<T> v = add(x.rows(), x.cols());
    if (device)
      node(v.id).own_value = x;
    else
      node(v.id).value = const_cast<Matrix<T>*>(&x);
    return v;
  }
  Var<T> constant(const Sparse& x) {
    Var<T> v = add(x.rows(), x.cols());
    TapeNode<T>& n = node(v.id);
    n.sparse = &x;
    Matrix<T> values(1, static_cast<Offset>(x.values.size()));
    std::copy(x.values.begin(), x.values.end(), values.data());
    n.own_value = values;
    return v;
  }
  Var<T> parameter(Parameter<T>& p) {
    Var<T> v = add(p.value.rows(), p.value.cols());
    TapeNode<T>& n = node(v.id);
    p.value.move_to(device), p.grad.move_to(device);
    n.value = &p.value;
    n.grad = &p.grad;
    n.grad_is_kept = true;
    n.needs_grad = p.trained;
    n.of_parameters = true;
    return v;
  }
  // The result of an operation on `inputs`.
  Var<T> result(Offset rows, Offset cols, std::initializer_list<Var<T>> inputs) {
    return result(rows, cols, std::vector<Var<T>>(inputs));
  }
  Var<T> result(Offset rows, Offset cols, const std::vector<Var<T>>& inputs) {
    Var<T> v = add(rows, cols);
    TapeNode<T>& n = node(v.id);
    n.own_value.resize(rows, cols);
    n.of_parameters = !inputs.empty();
    for (Var<T> x : inputs) {
      n.needs_grad = n.needs_grad || x.needs_grad(), n.of_parameters = n.of_parameters && node(x.id).of_parameters;
      n.inputs.push_back(x.id);
    }
    return v;
  }
  // The same pattern as x, with other entries.
  Var<T> sparse_result(Var<T> x) {
    Var<T> v = add(x.rows(), x.cols());
    node(v.id).inputs = {x.id};
    node(v.id).sparse = x.sparse();
    node(v.id).own_value.resize(1, x.value().cols());
    return v;
  }
  // Enters an operation. `backward` runs only if a gradient has arrived at `output`. `name` is for the profile. `reach`
  // tells which rows of its inputs those of its output are computed from; none: all.
  void record(Var<T> output, std::function<void()> forward, std::function<void()> backward, const char* name = "other",
              std::function<void(Reach<T>&)> reach = {}) {
    record(std::vector<Var<T>>{output}, std::move(forward), std::move(backward), name, std::move(reach));
  }
  // One with several outputs: `backward` runs if a gradient has arrived at any of them.
  void record(std::vector<Var<T>> outputs, std::function<void()> forward, std::function<void()> backward,
              const char* name = "other", std::function<void(Reach<T>&)> reach = {}) {
    steps_.push_back({std::move(outputs), name, std::move(forward), std::move(backward), std::move(reach)});
  }
  // The focus on rows of a value (empty: on all of it).
  Focus focus_on(Var<T> last, std::span<const Id> rows = {}) {
    Reach<T> reach(nodes_.size());
    std::vector<std::uint8_t> some(static_cast<std::size_t>(last.rows()));
    for (Id i : rows) some[i] = 1;
    rows.empty() ? reach.need(last) : reach.need(last, some);
    for (auto s = steps_.rbegin(); s != steps_.rend(); ++s) {
      if (std::ranges::none_of(s->outputs, [&](Var<T> y) { return reach.reached(y); })) continue;
      if (s->reach) {
        s->reach(reach);
        continue;
      }
      for (Var<T> y : s->outputs)
        for (int x : node(y.id).inputs) reach.need({this, x});
    }
    Focus out{.of = std::vector<Focus::Rows>(nodes_.size()), .name = ++focuses_};
    for (std::size_t id = 0; id < nodes_.size(); ++id) {
      const std::vector<std::uint8_t>& is = reach.rows[id];
      if (reach.all[id] || is.empty() || 2 * std::ranges::count(is, 1) > std::ssize(is)) continue;  // most: as well all
      Focus::Rows& rows = out.of[id];
      rows.is = is;
      const TapeNode<T>& n = nodes_[id];
      constexpr Offset run = kRunBytes / sizeof(T);
      for (Id i = 0; i < n.rows; ++i) {
        if (!is[i]) continue;
        rows.ids.push_back(i);
        const Csr* list = n.sparse ? &n.sparse->pattern() : nullptr;
        const Offset begin = list ? list->offsets[i] : i * n.cols, end = list ? list->offsets[i + 1] : begin + n.cols;
        Offset at = begin / run * run;
        if (!rows.runs.empty() && rows.runs.back() == at) at += run;
        for (; at < end; at += run) rows.runs.push_back(at);
      }
    }
    return out;
  }
  // The rows of y that matter; null: all do.
  const Focus::Rows* focus_of(Var<T> y) const {
    if (!focus || focus->of[static_cast<std::size_t>(y.id)].is.empty()) return nullptr;
    return &focus->of[static_cast<std::size_t>(y.id)];
  }
  const std::uint8_t* marks_of(Var<T> y) const {  // one for each row; null: all matter
    const Focus::Rows* some = focus_of(y);
    return some ? some->is.data() : nullptr;
  }
  // A number of this operation's own, for its random stream.
  std::uint64_t next_stream() { return ++streams_; }
  std::uint64_t dropout_key(std::uint64_t stream) const { return mix(mix(mix(seed), step), stream); }
  // On a device, where the keys of this step lie, one a stream.
  const std::uint64_t* keys_at() const { return keys_.data(); }
  // Works these out. forward() does so itself, unless it is captured: whoever runs a replay does it before.
  void begin_step() {
    if (keys_.empty()) keys_ = Matrix<std::uint64_t>(device);
    keys_.resize(1, static_cast<Offset>(streams_) + 2);
    bodies::run(*device, bodies::Keys{seed, step, keys_.data(), keys_.cols() - 1}, keys_.cols());
  }
  const std::uint64_t* step_at() const { return keys_.data() + keys_.cols() - 1; }  // on a device, this step's number

  // All that is recorded, or only what is up to `last`.
  void forward(Var<T> last = {}) {
    if (device && training && !device->capturing()) begin_step();
    for (auto& s : steps_) {
      run(s.forward, s.name, 0);
      if (last.tape && std::ranges::any_of(s.outputs, [&](Var<T> y) { return y.id == last.id; })) return;
    }
  }
  // From d loss = 1. The gradients of all parameters that the loss depends on are written anew.
  void backward(Var<T> loss) {
    for (auto& n : nodes_) n.arrived = false;
    Sink<T> start = loss.sink();
    if (!start) return;
    if constexpr (std::is_same_v<T, float>)
      if (device && begun_ != loss.id) {
        bodies::run(*device, bodies::Fill{start.to, 1}, start.to.rows * start.to.cols);
        begun_ = loss.id;
      }
    for (Offset i = 0; !device && i < start.to.rows; ++i) std::fill_n(start.to.row(i), start.to.cols, T(1));
    for (auto s = steps_.rbegin(); s != steps_.rend(); ++s) {
      if (!s->backward || std::ranges::none_of(s->outputs, [](Var<T> y) { return y.arrived(); })) continue;
      auto step = [&] { run(s->backward, s->name, 1); };
      // What is made of parameters alone has a gradient that lies aside, as theirs do.
      if (device && std::ranges::all_of(s->outputs, [&](Var<T> y) { return node(y.id).of_parameters; }))
        device->aside(step);
      else
        step();
    }
    if (device) device->join();
  }
  // For y = x + something that takes no part in x's gradient, at y's turn in backward: x's gradient is y's own, if it
  // is the first to arrive there. Otherwise false, and y's must be added.
  bool pass_gradient(Var<T> y, Var<T> x) {
    TapeNode<T>& to = node(x.id);
    if (!to.needs_grad || to.arrived || to.grad_is_kept) return false;
    to.grad = node(y.id).grad;
    node(y.id).zero_beyond = 0;       // x may matter in more rows
    if (begun_ == y.id) begun_ = -1;  // more may be added to it
    return to.arrived = true;
  }

  Sink<T> sink(int id) {
    TapeNode<T>& n = node(id);
    if (!n.needs_grad) return {};
    if (n.grad->rows() != n.rows || n.grad->cols() != n.cols) n.grad->resize(n.rows, n.cols);
    Sink<T> out{n.grad->view(), n.arrived};
    if (device && n.arrived) device->join();  // what lies aside may have written it, or still read it
    n.arrived = true;
    if (!focus) n.zero_beyond = 0;
    return out;
  }
  // x's, for an operation whose backward passes over the rows of y that do not matter: 0 there if it is the first.
  Sink<T> sink_beside(Var<T> x, Var<T> y) {
    TapeNode<T>& n = node(x.id);
    Sink<T> out = sink(x.id);
    if (!out || out.add || !focus_of(y)) return out;
    if (const Focus::Rows* some = focus_of(x); some && n.zero_beyond == focus->name) {
      for (Id i : some->ids) std::fill_n(out.to.row(i), n.cols, T(0));
    } else {
      n.grad->fill(T(0));
      n.zero_beyond = some && n.grad == &n.own_grad ? focus->name : 0;
    }
    return out;
  }

 private:
  struct Step {
    std::vector<Var<T>> outputs;
    const char* name;
    std::function<void()> forward, backward;
    std::function<void(Reach<T>&)> reach;
  };
  void run(const std::function<void()>& step, const char* name, int pass) {
    if (profile == nullptr) return step();
    const auto start = std::chrono::steady_clock::now();
    step();
    (*profile)[name][pass] += std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  }
  Var<T> add(Offset rows, Offset cols) {
    TapeNode<T>& n = nodes_.emplace_back();
    n.rows = rows;
    n.cols = cols;
    n.own_value = Matrix<T>(device), n.own_grad = Matrix<T>(device);
    n.value = &n.own_value;
    n.grad = &n.own_grad;
    return {this, static_cast<int>(nodes_.size()) - 1};
  }
  std::deque<TapeNode<T>> nodes_;
  std::vector<Step> steps_;
  std::uint64_t streams_ = 0, focuses_ = 0;
  Matrix<std::uint64_t> keys_;  // on the device
  int begun_ = -1;              // the value whose gradient is 1 there, from the last backward
};

}  // namespace heed
