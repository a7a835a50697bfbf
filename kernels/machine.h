// Where the bodies of attention_warp.h run: a machine has memory of its own and runs a pass over a number of warps.
// attention.cu is the one with a GPU; EmulatedMachine is the CPU in its place. What to run, over which arrays, is the
// same for both (device.cpp).
#pragma once

#include <cstring>
#include <memory>
#include <vector>

#include "kernels/attention_warp.h"

namespace heed {

struct Copy {  // rows of bytes
  void* to = nullptr;
  Offset to_stride = 0;
  const void* from = nullptr;
  Offset from_stride = 0, width = 0, rows = 0;
};

class Machine {
 public:
  virtual ~Machine() = default;
  virtual void* allocate(Offset bytes) = 0;  // lives as long as the machine
  virtual void copy_in(const Copy& copy) = 0;
  virtual void copy_out(const Copy& copy) = 0;  // after all that runs has ended
  // `score` is a place in the machine's list of scores, `self` that score.
  virtual void run(warp::Pass pass, int score, const void* self, const warp::Call& call, Offset warps) = 0;
};

std::unique_ptr<Machine> cuda_machine();  // for `Scores`; throws Error where there is no device

// Calls body.template operator()<pass>() for the pass of that name.
template <class Body>
void with_pass(warp::Pass pass, Body body) {
  using enum warp::Pass;
  switch (pass) {
    case forward:
      return body.template operator()<forward>();
    case threshold:
      return body.template operator()<threshold>();
    case delta:
      return body.template operator()<delta>();
    case measure:
      return body.template operator()<measure>();
    case row:
      return body.template operator()<row>();
    case column:
      return body.template operator()<column>();
    case merge_forward:
      return body.template operator()<merge_forward>();
    case merge_row:
      return body.template operator()<merge_row>();
    case merge_column:
      return body.template operator()<merge_column>();
    case reduce:
      return body.template operator()<reduce>();
    case learned:
      return body.template operator()<learned>();
  }
}
// Passes that read the score; the others are the same for all.
inline constexpr bool reads_score(warp::Pass pass) {
  using enum warp::Pass;
  return pass == threshold || pass == forward || pass == measure || pass == row || pass == column;
}
// Calls body(score) with the entry of that number of a std::tuple type.
template <class List, int at = 0, class Body>
void with_score(int index, const void* self, Body body) {
  if constexpr (at < std::tuple_size_v<List>) {
    using S = std::tuple_element_t<at, List>;
    if (index == at)
      body(*static_cast<const S*>(self));
    else
      with_score<List, at + 1>(index, self, body);
  }
}

#ifndef __CUDACC__

template <class List = Scores>
class EmulatedMachine : public Machine {
 public:
  void* allocate(Offset bytes) override {  // filled with NaN: what is read must have been written
    auto& block = blocks_.emplace_back(new char[static_cast<std::size_t>(bytes)]);
    std::memset(block.get(), 0xff, static_cast<std::size_t>(bytes));
    return block.get();
  }
  void copy_in(const Copy& c) override {
    for (Offset i = 0; i < c.rows; ++i)
      std::memcpy(static_cast<char*>(c.to) + i * c.to_stride, static_cast<const char*>(c.from) + i * c.from_stride,
                  static_cast<std::size_t>(c.width));
  }
  void copy_out(const Copy& c) override { copy_in(c); }
  void run(warp::Pass pass, int score, const void* self, const warp::Call& call, Offset warps) override {
    with_score<List>(score, self, [&](const auto& s) {
      with_pass(pass, [&]<warp::Pass chosen>() {
        for (Offset t = 0; t < warps; ++t) {
          memory_.s.forget(), memory_.dw.forget(), memory_.factors.forget();
          memory_.ids.forget(), memory_.edges.forget();
          warp::run<chosen>(warp_, memory_, call, s, t);
        }
      });
    });
  }

 private:
  std::vector<std::unique_ptr<char[]>> blocks_;
  EmulatedWarp warp_;
  warp::Memory<EmulatedWarp> memory_{
      {warp_, warp::kSlots}, {warp_, warp::kSlots}, {warp_, 2 * warp::kMaxHeads}, {warp_, kWarp}, {warp_, kWarp}};
};

#endif

}  // namespace heed
