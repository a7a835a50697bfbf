// From a struct of the menus' kind to its handle, whose stages are compiled where this is called:
//
//   struct Laplace {
//     static constexpr const char* name = "laplace";
//     HEED_FN auto term(auto q, auto k, auto e, auto a) const { return -a * fn::abs(q - k); }
//   };
//   Score mine = make_score(Laplace{});
#pragma once

#include "kernels/fused.h"
#include "kernels/normalisers.h"
#include "kernels/score.h"
#include "kernels/scores.h"
#include "kernels/stages.h"
#include "kernels/tiles.h"
#include "kernels/traits.h"
#include "kernels/whole.h"

namespace heed {

namespace detail {

template <class S>
struct SumOf {
  using type = S;
};
template <class S>
requires requires { typename S::Sum; }
struct SumOf<S> {
  using type = typename S::Sum;
  static_assert(std::is_base_of_v<type, S> && std::is_empty_v<type>, "a score shares the term of an empty base");
};

// Double serves checks of gradients and has no widths of its own but 1; in float all widths give the same bits.
template <class Score, class T>
ScoreStages<T> score_stages() {
  using namespace stages;
  using S = typename SumOf<Score>::type;
  ScoreStages<T> out;
  auto enter = [&]<int at, int width>() {
    out.sums[0][at] = score_sums<S, T, false, width>;
    out.sums[1][at] = score_sums<S, T, true, width>;
    out.gradient[0][at] = score_gradient<S, T, false, width>;
    out.gradient[1][at] = score_gradient<S, T, true, width>;
  };
  enter.template operator()<1, 1>();  // the only one of scores that contract
  if constexpr (!contracts_of<S>) {
    enter.template operator()<0, 0>();
    if constexpr (std::is_same_v<T, float>) {
      enter.template operator()<2, 8>();
      enter.template operator()<3, 16>();
    } else {
      for (int side : {0, 1})
        for (int at : {2, 3}) out.sums[side][at] = out.sums[side][0], out.gradient[side][at] = out.gradient[side][0];
    }
  }
  if constexpr (std::is_same_v<T, float> && fused::knows<S>)
    fused::enter<S>(out.fused, std::make_index_sequence<kFusedShapeCount>());
  out.tile_sums = tile_sums<S, T>;
  out.tile_gradient = tile_gradient<S, T>;
  out.finish = score_finish<Score, T>;
  out.finish_gradient = score_finish_gradient<Score, T>;
  return out;
}

template <class S, class T>
ScoreStages<T> vector_stages() {
  using namespace stages;
  ScoreStages<T> out;
  for (int at = 0; at < kScoreWidthCount; ++at) {
    out.sums[0][at] = vector_sums<S, T, false>, out.sums[1][at] = vector_sums<S, T, true>;
    out.gradient[0][at] = vector_gradient<S, T, false>, out.gradient[1][at] = vector_gradient<S, T, true>;
  }
  out.finish = score_finish<S, T>;
  out.finish_gradient = score_finish_gradient<S, T>;
  return out;
}

template <class N, class T>
NormaliserStages<T> normaliser_stages() {
  using namespace stages;
  NormaliserStages<T> out;
  out.gradient = normaliser_gradient<N, T>;
  if constexpr (N::measures) out.measure = normaliser_measure<N, T>;
  if constexpr (N::solves) {
    out.solve = normaliser_solve<N, T>;
    out.weigh = normaliser_weigh<N, T>;
  } else {
    out.raw = normaliser_raw<N, T>;
    out.merge = normaliser_merge<N, T>;
    out.close = normaliser_close<N, T>;
  }
  if constexpr (!N::measures) {
    out.tile = normaliser_tile<N, T>;
    out.tile_gradient = normaliser_tile_gradient<N, T>;
  }
  return out;
}

}  // namespace detail

template <class S>
Score make_score(S score) {
  Score out;
  out.name = S::name;
  out.kind = &detail::kind_of<S>;
  if constexpr (requires { S::about; }) out.about = S::about;
  if constexpr (requires { S::prepares; }) out.prepares = S::prepares;
  out.contracts = contracts_of<S>;
  if constexpr (requires { S::nonnegative; }) out.nonnegative = S::nonnegative;
  static_assert(scalars_of<S> < kMaxScalars, "a score has at most 3 learned scalars per head");
  out.scalars = scalars_of<S>;
  out.start.assign(static_cast<std::size_t>(out.scalars), 1.0f);
  if constexpr (requires { S::start; }) out.start.assign(std::begin(S::start), std::end(S::start));
  out.has_finish = has_finish<S>;
  out.linear = linear_finish<S>;
  out.self = std::make_shared<const S>(score);
  if constexpr (requires { score.check(1); })
    out.check_width = [](const void* self, int width) { static_cast<const S*>(self)->check(width); };
  if constexpr (requires { &S::room; }) {
    out.single = detail::vector_stages<S, float>();
    out.twice = detail::vector_stages<S, double>();
  } else {
    if constexpr (requires { score.slope_below(); }) {
      static_assert(S::contracts && !has_finish<S>, "a kinked score has one channel a head and no finish");
      out.kinked = true;
      out.slope_below = score.slope_below();
    }
    out.reads_query = reads_query_of<S>;
    out.reads_vector = stages::reads_vector<S, stages::Lanes<float>>;
    out.single = detail::score_stages<S, float>();
    out.twice = detail::score_stages<S, double>();
  }
  return out;
}

template <class N>
Normaliser make_normaliser(N = {}) {
  Normaliser out;
  out.name = N::name;
  out.kind = &detail::kind_of<N>;
  if constexpr (requires { N::about; }) out.about = N::about;
  out.couples = N::couples, out.exponential = N::exponential;
  out.measures = N::measures, out.solves = N::solves, out.nonnegative = N::nonnegative;
  if constexpr (N::solves) out.reach = N::reach;
  out.single = detail::normaliser_stages<N, float>();
  out.twice = detail::normaliser_stages<N, double>();
  return out;
}

}  // namespace heed
