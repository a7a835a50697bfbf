// gzip, unpacked whole.
#pragma once

#include <string>
#include <string_view>

#include "graph/csr.h"

namespace heed {

// What packed data may grow to: an archive or a .gz that unpacks to more than a thousandfold beyond its first MiBs is
// refused. Deflate itself reaches 1032, on a single repeated byte.
inline constexpr Offset kGrowth = 1000;                 // unpacked bytes for a packed one
inline constexpr Offset kFree = Offset{1} << 20;        // and so many more for each file or entry
inline constexpr Offset kFreeTotal = Offset{16} << 20;  // and for a whole archive

// All members of a .gz, one after the other. Throws Error, opened by `name`, where it is cut, damaged, followed by
// something else, or grows too much.
std::string gunzip(std::string_view packed, const std::string& name);
std::string gzip(std::string_view bytes);

}  // namespace heed
