// A device on which a whole training runs: memory of its own, kernels over it (device_bodies.h) that run one after the
// other, and replays of sequences of them, which cost one call. `open_device` gives the one with CUDA; tests have one
// that is the CPU in its place. One thread uses a device at a time.
#pragma once

#include <deque>
#include <functional>
#include <memory>

#include "kernels/attention.h"

namespace heed {
namespace bodies {
struct Link;
struct Chain;
}  // namespace bodies

enum class Device { cpu, cuda };
const std::vector<std::string>& device_names();
Device device_named(const std::string& name);  // throws Error with the nearest names

enum class Storage { fp32, bf16 };  // of the rows that attention gathers (Attention::bf16)
const std::vector<std::string>& storage_names();
Storage storage_named(const std::string& name);  // throws Error with the nearest names

struct WeightedRows {  // of a sparse product; arrays of numbers are the device's
  const Rows* rows;
  const float* weights = nullptr;             // one an entry, by way of `edge` where that is given; null: 1
  const std::vector<Offset>* edge = nullptr;  // the host's
  const float* row_scale = nullptr;           // one a row; null: 1
  const float* bias = nullptr;                // one a column; null: 0
  float scale = 1;
};

constexpr int kBounds = 14;
// Where a device has what is redrawn of a pattern's direction; null: nothing of that kind.
struct DrawnThere {
  NodeMap* maps = nullptr;
  char* kept = nullptr;
  Id* ranks = nullptr;               // of what is kept: how many come before it
  std::uint32_t* tallies = nullptr;  // tally_room(n)
  std::uint64_t* bounds = nullptr;   // kBounds numbers, the first one 0, where keys are kept by score
};
constexpr Offset kTally = 64;  // numbers that one sum of them takes in
constexpr Offset tally_room(Offset n) {
  Offset out = 0;
  for (int level = 0; level < 3; ++level) n = (n + kTally - 1) / kTally, out += n;
  return out;
}

class Replay {  // a sequence of kernels, to be run again
 public:
  virtual ~Replay() = default;
  virtual void run() = 0;
};

class DeviceOps : public Memory {
 public:
  DeviceOps();
  ~DeviceOps() override;
  // A body of device_bodies.h, number `body` of their list, over `count` indices or blocks. See bodies::run.
  virtual void run(int body, const void* self, Offset count) = 0;
  // What `work` asks of the device, without doing it. It must neither allocate nor copy from or to the host.
  virtual std::unique_ptr<Replay> capture(const std::function<void()>& work) = 0;
  virtual bool capturing() const = 0;
  // y (+)= scale (row_scale_i sum_j weight_ij x_j + bias). `parts` is room that is kept between calls.
  virtual void weighted_sum(const WeightedRows& w, View<const float> x, Sink<float> y, Matrix<float>& parts) = 0;
  // The fused operator. All views are of this device's memory, and so is the state's; x.dropout.key_at gives the key.
  virtual void attention(const Attention<float>& x, View<float> y, AttentionState<float>& state) = 0;
  virtual void attention_gradient(const Attention<float>& x, View<const float> y, View<const float> dy,
                                  AttentionState<float>& state, const AttentionGradient<float>& g) = 0;
  // Draws what a pattern of Pattern::redrawn says, for the step that lies at `step` on the device; keys by `scores`,
  // n x 1 there, where it says so.
  virtual void redraw(const Pattern& pattern, const std::uint64_t* step, View<const float> scores = {}) = 0;

  // Gradients of parameters, which only the optimiser waits for: a replay may run them beside what follows. Until
  // join() nothing may read what `work` writes, or write what it reads. Within `work` this runs at once.
  void aside(const std::function<void()>& work);
  void join();

  // Elementwise work over arrays of one length waits for more of its kind, up to a chain's length, and then costs one
  // kernel. Everything else that begins on the device flushes it before.
  void chain(const bodies::Link& link, Offset count);
  void flush();

  // Scratch, the caller's until the next call. It stays where it is as long as the device lives, for the sake of
  // replays.
  void* scratch(Offset bytes);
  unsigned* tickets(Offset count);  // zeros; a kernel leaves zeros

 protected:
  // That what is begun from here on lies aside, or no longer does; that it waits for what lies there.
  virtual void turn_aside(bool) {}
  virtual void wait_for_aside() {}
  void release_rooms() {  // to be called before the memory is gone
    for (Rooms& rooms : rooms_) rooms = {};
  }
  void forget();                                                // what waits

 private:
  struct Rooms {
    std::deque<Matrix<char>> scratch;
    std::deque<Matrix<unsigned>> tickets;
  };
  Rooms rooms_[2];  // for what lies aside, others
  bool aside_ = false, joined_ = true;
  std::unique_ptr<bodies::Chain> waiting_;
  Offset waiting_count_ = 0;
};

// The device of that name; null for the CPU. Throws Error where there is none that this build has kernels for.
std::unique_ptr<DeviceOps> open_device(Device device);

// A list of the host's on a device, 1 x its length.
template <class T, class List>
Matrix<T> list_on(DeviceOps& device, const List& list) {
  Matrix<T> here(1, static_cast<Offset>(list.size())), there(&device);
  std::copy(list.begin(), list.end(), here.begin());
  there = here;
  return there;
}

}  // namespace heed
