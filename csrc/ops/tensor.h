// What an operator sees of a tensor: read once per call and borrowed for its time.
#pragma once

#include <cstdint>
#include <optional>
#include <span>

#include "ops/stable.h"

namespace lightvl {

class Tensor {
 public:
  static constexpr int32_t kCpu = -1;

  Tensor(void* data, std::span<const int64_t> sizes, const int64_t* strides, ScalarType type,
         int32_t device)
      : data_(data), sizes_(sizes), strides_(strides), type_(type), device_(device) {}

  explicit Tensor(const torch::stable::Tensor& tensor)
      : data_(tensor.data_ptr()),
        sizes_(tensor.sizes().data(), tensor.sizes().size()),
        strides_(tensor.strides().data()),
        type_(tensor.scalar_type()),
        device_(tensor.is_cpu() ? kCpu : tensor.get_device_index()) {}

  const void* const_data_ptr() const { return data_; }
  void* mutable_data_ptr() const { return data_; }
  template <class T>
  const T* const_data_ptr() const {
    return static_cast<const T*>(data_);
  }
  template <class T>
  T* mutable_data_ptr() const {
    return static_cast<T*>(data_);
  }

  int64_t dim() const { return static_cast<int64_t>(sizes_.size()); }
  std::span<const int64_t> sizes() const { return sizes_; }
  int64_t size(int64_t i) const { return sizes_[i]; }
  int64_t stride(int64_t i) const { return strides_[i]; }
  ScalarType scalar_type() const { return type_; }
  bool is_cuda() const { return device_ != kCpu; }
  int32_t get_device_index() const { return device_; }

  int64_t numel() const {
    int64_t product = 1;
    for (const int64_t size : sizes_) product *= size;
    return product;
  }

  bool is_contiguous() const {
    int64_t expected = 1;
    for (int64_t i = dim() - 1; i >= 0; --i) {
      if (sizes_[i] != 1 && strides_[i] != expected) return numel() == 0;
      expected *= sizes_[i];
    }
    return true;
  }

  int64_t element_size() const {
    switch (type_) {
      case ScalarType::Byte:
        return 1;
      case ScalarType::Short:
      case ScalarType::Half:
      case ScalarType::BFloat16:
        return 2;
      case ScalarType::Long:
        return 8;
      default:
        return 4;
    }
  }

 private:
  void* data_;
  std::span<const int64_t> sizes_;
  const int64_t* strides_;
  ScalarType type_;
  int32_t device_;  // of a GPU, or kCpu
};

// The memory of an argument that may be missing, or null.
template <class T = void>
const T* data_or_null(const std::optional<Tensor>& tensor) {
  return tensor ? static_cast<const T*>(tensor->const_data_ptr()) : nullptr;
}
template <class T>
T* mutable_data_or_null(const std::optional<Tensor>& tensor) {
  return tensor ? static_cast<T*>(tensor->mutable_data_ptr()) : nullptr;
}

}  // namespace lightvl
