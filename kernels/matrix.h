// Dense row-major storage, 64-byte aligned, and views of it. Every buffer ends in 64 bytes of slack, so that a vector
// load that begins inside a row is always allowed. A matrix may lie in another memory, as a GPU's: then its elements
// and views are for what runs there, and assignment from and to a matrix of the host copies them.
#pragma once

#include <sys/mman.h>

#include <cstdlib>
#include <cstring>
#include <new>
#include <string>
#include <utility>

#include "graph/csr.h"

namespace heed {

template <class T>
struct View {  // rows x cols of a larger array; row i begins at data + i * stride
  T* data = nullptr;
  Offset rows = 0;
  Offset cols = 0;
  Offset stride = 0;

  T* row(Offset i) const { return data + i * stride; }
  T& operator()(Offset i, Offset c) const { return data[i * stride + c]; }
  explicit operator bool() const { return data != nullptr; }
  operator View<const T>() const { return {data, rows, cols, stride}; }
  View columns(Offset first, Offset count) const { return {data + first, rows, count, stride}; }
};

class Memory {  // of a device
 public:
  virtual ~Memory() = default;
  virtual void* allocate(std::size_t bytes) = 0;  // zeros; throws Error where there are no more
  virtual void release(void* at) noexcept = 0;
  // From here to there, back, or there alone; what was begun there before ends first.
  virtual void copy(void* to, const void* from, std::size_t bytes) = 0;
};

template <class T = float>
class Matrix {  // rows x cols, zero when made
 public:
  Matrix() = default;
  explicit Matrix(Memory* memory) : memory_(memory) {}
  Matrix(Offset rows, Offset cols) { resize(rows, cols); }
  Matrix(const Matrix& other) { *this = other; }
  Matrix(Matrix&& other) noexcept { swap(other); }
  Matrix& operator=(const Matrix& other) {
    if (this == &other) return *this;
    resize(other.rows_, other.cols_);
    const std::size_t bytes = sizeof(T) * static_cast<std::size_t>(size());
    if (Memory* memory = memory_ ? memory_ : other.memory_)
      memory->copy(data_, other.data_, bytes);
    else if (bytes > 0)
      std::memcpy(data_, other.data_, bytes);
    return *this;
  }
  Matrix& operator=(Matrix&& other) {
    if (memory_ && memory_ != other.memory_) return *this = other;  // what lies on a device stays there
    swap(other);
    return *this;
  }
  ~Matrix() { release(); }

  Memory* memory() const { return memory_; }  // null: the host's
  void move_to(Memory* memory) {
    if (memory == memory_) return;
    Matrix there(memory);
    there = *this;
    swap(there);
  }

  // Keeps the buffer where it is large enough; the contents are then whatever they were.
  // Throws Error where rows x cols elements cannot be counted or had.
  void resize(Offset rows, Offset cols) {
    Offset count = 0;
    Offset bytes = 0;
    if (rows < 0 || cols < 0 || __builtin_mul_overflow(rows, cols, &count) ||
        __builtin_mul_overflow(count, static_cast<Offset>(sizeof(T)), &bytes) || bytes > kLargest)
      fail("a matrix of " + std::to_string(rows) + " x " + std::to_string(cols) + " is too large");
    if (count > capacity_) {
      release();
      data_ = nullptr;
      capacity_ = rows_ = cols_ = 0;
      const std::size_t total = (static_cast<std::size_t>(bytes) + 2 * 64 - 1) / 64 * 64;
      const std::size_t alignment = total >= kHugePage ? kHugePage : 64;
      if (memory_) {
        data_ = static_cast<T*>(memory_->allocate(total));
      } else {
        void* found = nullptr;  // std::aligned_alloc would want whole huge pages
        if (posix_memalign(&found, alignment, total) != 0)
          fail("out of memory: a matrix of " + std::to_string(rows) + " x " + std::to_string(cols));
        data_ = static_cast<T*>(found);
        if (alignment == kHugePage) madvise(data_, total / kHugePage * kHugePage, MADV_HUGEPAGE);
        std::memset(static_cast<void*>(data_), 0, total);
      }
      capacity_ = count;
    }
    rows_ = rows;
    cols_ = cols;
  }

  Offset rows() const { return rows_; }
  Offset cols() const { return cols_; }
  Offset size() const { return rows_ * cols_; }
  bool empty() const { return size() == 0; }
  T* data() { return data_; }
  const T* data() const { return data_; }
  T* row(Offset i) { return data_ + i * cols_; }
  const T* row(Offset i) const { return data_ + i * cols_; }
  T& operator()(Offset i, Offset c) { return data_[i * cols_ + c]; }
  const T& operator()(Offset i, Offset c) const { return data_[i * cols_ + c]; }
  View<T> view() { return {data_, rows_, cols_, cols_}; }
  View<const T> view() const { return {data_, rows_, cols_, cols_}; }
  T* begin() { return data_; }
  T* end() { return data_ + size(); }
  const T* begin() const { return data_; }
  const T* end() const { return data_ + size(); }
  void fill(T value) {
    if (memory_) {
      Matrix here(rows_, cols_);
      here.fill(value);
      *this = here;
      return;
    }
    for (T& x : *this) x = value;
  }
  void swap(Matrix& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(rows_, other.rows_);
    std::swap(cols_, other.cols_);
    std::swap(capacity_, other.capacity_);
    std::swap(memory_, other.memory_);
  }
  bool operator==(const Matrix& other) const {  // the same shape and the same bits
    if (memory_) return Matrix(*this) == other;
    if (other.memory_) return *this == Matrix(other);
    return rows_ == other.rows_ && cols_ == other.cols_ &&
           (size() == 0 || std::memcmp(data_, other.data_, sizeof(T) * size()) == 0);
  }

 private:
  static constexpr Offset kLargest = Offset{1} << 46;
  static constexpr std::size_t kHugePage = std::size_t{2} << 20;

  void release() {
    if (memory_ && data_)
      memory_->release(data_);
    else
      std::free(data_);
  }

  T* data_ = nullptr;
  Offset rows_ = 0;
  Offset cols_ = 0;
  Offset capacity_ = 0;
  Memory* memory_ = nullptr;
};

}  // namespace heed
