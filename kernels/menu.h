// The compilation of the menus' entries, dealt out to the files menu_0.cpp, menu_1.cpp, ... so that they compile side
// by side. An entry of `Scores` is compiled by the file that its place in the list says.
#pragma once

#include "kernels/make_score.h"

namespace heed {

inline constexpr std::size_t kMenuFiles = 4;

// menu[i] = the i-th of `Scores`, for those i that are this file's.
template <std::size_t file>
void enter_scores(std::vector<Score>& menu) {
  [&]<std::size_t... i>(std::index_sequence<i...>) {
    auto enter = [&]<std::size_t at>() {
      if constexpr (at < std::tuple_size_v<Scores>) menu[at] = make_score(std::tuple_element_t<at, Scores>{});
    };
    (enter.template operator()<file + i * kMenuFiles>(), ...);
  }(std::make_index_sequence<(std::tuple_size_v<Scores> + kMenuFiles - 1) / kMenuFiles>());
}

extern template void enter_scores<0>(std::vector<Score>&);
extern template void enter_scores<1>(std::vector<Score>&);
extern template void enter_scores<2>(std::vector<Score>&);
extern template void enter_scores<3>(std::vector<Score>&);

}  // namespace heed
