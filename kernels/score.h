// Score and Normaliser as values: handles to the compiled stages of one entry of a menu, or of a user's own struct.
//
//   struct Laplace {
//     static constexpr const char* name = "laplace";
//     HEED_FN auto term(auto q, auto k, auto e, auto a) const { return -a * fn::abs(q - k); }
//   };
//   Score mine = make_score(Laplace{});
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "kernels/normalisers.h"
#include "kernels/scores.h"
#include "kernels/stages.h"
#include "kernels/tiles.h"

namespace heed {

// Widths of a head that have kernels of their own; 0 stands for any.
inline constexpr int kScoreWidths[] = {0, 1, 8, 16, 32, 64};
inline constexpr int kScoreWidthCount = 6;

template <class T>
struct ScoreStages {  // [own side is the query][width]
  void (*sums[2][kScoreWidthCount])(const void*, const stages::Chunk<T>&, T*) = {};
  void (*gradient[2][kScoreWidthCount])(const void*, const stages::Chunk<T>&, const stages::ChunkGradient<T>&) = {};
  void (*tile_sums)(const void*, const T*, const T*, const T*, int, T*) = nullptr;
  void (*tile_gradient)(const void*, const T*, const T*, const T*, int, const T*, const std::uint64_t*, T*, T*,
                        T*) = nullptr;
  void (*finish)(const void*, const T*, const T*, int, int, T*) = nullptr;
  void (*finish_gradient)(const void*, const T*, const T*, int, int, T*, T*) = nullptr;
};

struct Score {
  std::string name;
  bool contracts = false;     // q, k and e are one channel per head, reduced by learned vectors (GAT)
  bool reads_vector = false;  // a is used
  int scalars = 0;            // learned scalars per head
  bool kinked = false;        // ds/dq is 1 where s > 0, and slope_below elsewhere
  float slope_below = 0;
  std::shared_ptr<const void> self;
  ScoreStages<float> single;
  ScoreStages<double> twice;

  template <class T>
  const ScoreStages<T>& stages() const {
    if constexpr (std::is_same_v<T, float>)
      return single;
    else
      return twice;
  }
};

template <class T>
struct NormaliserStages {
  void (*raw)(T*, const Batch&, int, const stages::RowState<T>&, T*, T*) = nullptr;
  void (*merge)(const stages::RowState<T>&, const stages::RowState<T>&, int) = nullptr;
  void (*close)(const stages::RowState<T>&, int, T*, T*) = nullptr;
  void (*gradient)(T*, T*, const T*, const T*, const T*, const Batch&, int) = nullptr;
  bool (*tile)(T*, const stages::TileState<T>&) = nullptr;
  void (*tile_gradient)(T*, T*, const T*, const T*, const T*) = nullptr;
};

struct Normaliser {
  std::string name;
  bool couples = false;      // weights of a row depend on each other
  bool exponential = false;  // slope, drain and share are w
  NormaliserStages<float> single;
  NormaliserStages<double> twice;

  template <class T>
  const NormaliserStages<T>& stages() const {
    if constexpr (std::is_same_v<T, float>)
      return single;
    else
      return twice;
  }
};

namespace detail {

// Double serves checks of gradients and needs few widths; a width without a kernel takes the one for any.
template <class S, class T>
ScoreStages<T> score_stages() {
  using namespace stages;
  ScoreStages<T> out;
  auto enter = [&]<int at, int width>() {
    out.sums[0][at] = score_sums<S, T, false, width>;
    out.sums[1][at] = score_sums<S, T, true, width>;
    out.gradient[0][at] = score_gradient<S, T, false, width>;
    out.gradient[1][at] = score_gradient<S, T, true, width>;
  };
  if constexpr (std::is_same_v<T, float>) {
    enter.template operator()<0, 0>();
    enter.template operator()<1, 1>();
    enter.template operator()<2, 8>();
    enter.template operator()<3, 16>();
    enter.template operator()<4, 32>();
    enter.template operator()<5, 64>();
  } else {
    enter.template operator()<0, 0>();
    enter.template operator()<1, 1>();
    enter.template operator()<3, 16>();
    for (int at : {2, 4, 5})
      for (int side : {0, 1}) {
        out.sums[side][at] = out.sums[side][0];
        out.gradient[side][at] = out.gradient[side][0];
      }
  }
  out.tile_sums = tile_sums<S, T>;
  out.tile_gradient = tile_gradient<S, T>;
  if constexpr (requires { S::scalars; }) {
    out.finish = score_finish<S, T>;
    out.finish_gradient = score_finish_gradient<S, T>;
  }
  return out;
}

template <class N, class T>
NormaliserStages<T> normaliser_stages() {
  using namespace stages;
  return {normaliser_raw<N, T>,      normaliser_merge<N, T>, normaliser_close<N, T>,
          normaliser_gradient<N, T>, normaliser_tile<N, T>,  normaliser_tile_gradient<N, T>};
}

}  // namespace detail

template <class S>
Score make_score(S score) {
  Score out;
  out.name = S::name;
  if constexpr (requires { S::contracts; }) out.contracts = S::contracts;
  if constexpr (requires { S::scalars; }) {
    static_assert(S::scalars >= 1 && S::scalars <= 3, "a score has at most 3 learned scalars per head");
    out.scalars = S::scalars;
  }
  if constexpr (requires { score.slope_below(); }) {
    static_assert(
        S::contracts && !requires { S::scalars; }, "a kinked score has one channel a head and no scalars");
    out.kinked = true;
    out.slope_below = score.slope_below();
  }
  out.reads_vector = stages::reads_vector<S, stages::Lanes<float>>;
  out.self = std::make_shared<const S>(score);
  out.single = detail::score_stages<S, float>();
  out.twice = detail::score_stages<S, double>();
  return out;
}

template <class N>
Normaliser make_normaliser(N = {}) {
  return {N::name, N::couples, N::exponential, detail::normaliser_stages<N, float>(),
          detail::normaliser_stages<N, double>()};
}

// The menus, in the order of `Scores` and `Normalisers`.
const std::vector<Score>& score_menu();
const std::vector<Normaliser>& normaliser_menu();

// The entry of that name. Throws Error with the nearest names.
const Score& score_named(const std::string& name);
const Normaliser& normaliser_named(const std::string& name);

}  // namespace heed
