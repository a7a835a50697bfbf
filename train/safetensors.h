// Named matrices in a file, in the safetensors format (huggingface.co/docs/safetensors): 8 bytes with the length of a
// JSON header, which gives each tensor's type, shape and place, then the numbers themselves. Reading one runs nothing.
#pragma once

#include <filesystem>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/matrix.h"

namespace heed {

struct Weight {
  std::string name;
  Matrix<float> value;
};

struct Safetensors {
  std::string file;  // for messages
  std::vector<Weight> weights;
  std::map<std::string, std::string> metadata;

  const Matrix<float>* find(std::string_view name) const;  // none: nullptr
};

// Tensors of one or two dimensions of F32, F64, F16 or BF16; a vector of n becomes 1 x n. Throws Error naming the file
// and the tensor where the header is not one, a tensor's place does not fit its shape, and where tensors overlap, leave
// holes or are not finite. Memory is bounded by the size of the file.
Safetensors read_safetensors(const std::filesystem::path& path);
Safetensors parse_safetensors(std::string_view bytes, const std::string& file);

// For writing: numbers of any type, which lie elsewhere.
struct Tensor {
  std::string name;
  const char* dtype;  // F32, I32, ...
  Offset rows = 0, cols = 0;
  std::string_view bytes;
};
std::string_view bytes_of(const Matrix<float>& x);

// The bytes of such a file; weights are F32.
std::string safetensors_of(const std::vector<Tensor>& tensors, const std::map<std::string, std::string>& metadata);
std::string to_safetensors(const std::vector<Weight>& weights, const std::map<std::string, std::string>& metadata);

}  // namespace heed
