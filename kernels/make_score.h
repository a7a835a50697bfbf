// From a struct of the menus' kind to its handle, whose stages are compiled where this is called:
//
//   struct Laplace {
//     static constexpr const char* name = "laplace";
//     HEED_FN auto term(auto q, auto k, auto e, auto a) const { return -a * fn::abs(q - k); }
//   };
//   Score mine = make_score(Laplace{});
#pragma once

#include "kernels/normalisers.h"
#include "kernels/score.h"
#include "kernels/scores.h"
#include "kernels/stages.h"
#include "kernels/tiles.h"

namespace heed {

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

}  // namespace heed
