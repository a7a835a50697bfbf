// What the stages of the CPU and the kernels of the GPU ask of the structs of scores.h and normalisers.h.
#pragma once

#include <utility>

#include "kernels/jet.h"
#include "kernels/normalisers.h"

namespace heed {

namespace detail {
template <class Struct>
inline char kind_of = 0;  // its address stands for the struct
}  // namespace detail

template <class S>
inline constexpr int scalars_of = [] {
  if constexpr (requires { S::scalars; })
    return S::scalars;
  else
    return 0;
}();

template <class S>
inline constexpr bool contracts_of = requires { requires S::contracts; };
template <class S>
inline constexpr bool symmetric_of = requires { requires S::symmetric; };

template <class S, class X = float>
inline constexpr bool finishes_by_width = requires(const S& score, X x, const X* p) {
  score.finish(x, p, 1);
};
// A finish that is the sum times a number at most; a `finish` goes before a `factor`, which may be a base's.
template <class S, class X = float>
inline constexpr bool linear_finish = !finishes_by_width<S> && !requires(const S& score, X x, const X* p) {
  score.finish(x, p);
};
template <class S, class X = float>
inline constexpr bool has_finish = !linear_finish<S> || requires(const S& score, const X* p) {
  score.factor(p, 1);
};

template <class S, class X>
HEED_FN X finished(const S& score, X sum, const X* p, int width) {
  if constexpr (finishes_by_width<S>)
    return score.finish(sum, p, width);
  else if constexpr (!linear_finish<S>)
    return score.finish(sum, p);
  else if constexpr (has_finish<S>)
    return sum * score.factor(p, width);
  else
    return sum;
}

template <class S>
inline constexpr bool reads_query_of =
    (partials<decltype(std::declval<S>().term(variable<0>(float{}), Jet<float, 0>{}, Zero{}, Jet<float, 0>{}))> & 1) !=
    0;

template <class N, class X>
HEED_FN X raw_weight(const N& normaliser, X s, X shift) {
  if constexpr (N::couples)
    return normaliser.raw(s, shift);
  else
    return normaliser.weight(s, X(0));
}
template <class N, class X>
HEED_FN Closed<X> closed(const N& normaliser, X shift, X total) {
  if constexpr (N::couples)
    return normaliser.close(shift, total);
  else
    return {X(0), X(1)};
}

}  // namespace heed
