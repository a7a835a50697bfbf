// A part of the menus; see menu.h.
#include "kernels/menu.h"

namespace heed {
template void enter_scores<3>(std::vector<Score>&);
}
