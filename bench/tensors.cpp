// What a measurement read and gave, in one file for bench/peers, which do the same work and are held against it.
#include "bench/bench.h"
#include "graph/files.h"
#include "train/safetensors.h"

namespace heed::bench {

void write_tensors(const std::string& file, const Csr* list, const std::vector<NamedMatrix>& matrices) {
  std::vector<Id> pairs;  // edges x 2
  std::vector<Tensor> out;
  if (list != nullptr) {
    pairs.reserve(2 * list->ids.size());
    for (Id i = 0; i < list->rows; ++i)
      for (Id j : list->row(i)) pairs.push_back(j), pairs.push_back(i);
    out.push_back(
        {"edges", "I32", list->edges(), 2, {reinterpret_cast<const char*>(pairs.data()), pairs.size() * sizeof(Id)}});
  }
  for (const auto& [name, x] : matrices)
    if (!x->empty()) out.push_back({name, "F32", x->rows(), x->cols(), bytes_of(*x)});
  write_file(file, safetensors_of(out, {{"format", "heed bench"}}));
}

}  // namespace heed::bench
