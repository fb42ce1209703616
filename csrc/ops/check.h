// Symbolic checks of an operator's arguments, made once and before any pointer is taken.
//
//   Op op{"rms_norm"};
//   Dim T{"T"}, C{"C"};
//   Type dtype;
//   op.match("x", x).shape(T, C).type(dtype).rows();
//   op.match("weight", weight).shape(C).type(dtype).contiguous();
//
// The first argument that uses a symbol binds it, later ones must agree; the error names the symbol
// that clashed: "rms_norm: weight is [3584], expected [C=1536]". Python sees it as a ValueError.
#pragma once

#include <initializer_list>
#include <sstream>
#include <stdexcept>
#include <string>

#include "ops/cuda.h"
#include "ops/stable.h"
#include "ops/tensor.h"

namespace lightvl {

// A named dimension, unbound until an argument gives it its size.
class Dim {
 public:
  explicit Dim(const char* name) : name_(name) {}

  bool fits(int64_t size) const { return value_ < 0 || value_ == size; }
  void bind(int64_t size) { value_ = size; }
  operator int64_t() const { return value_; }

  std::string text() const {
    return value_ < 0 ? name_ : std::string(name_) + "=" + std::to_string(value_);
  }

 private:
  const char* name_;
  int64_t value_ = -1;
};

// The floating dtype that an operator's arguments share.
class Type {
 public:
  bool unify(ScalarType type) {
    if (!bound_) value_ = type;
    bound_ = true;
    return value_ == type;
  }
  operator DType() const {
    switch (value_) {
      case ScalarType::BFloat16:
        return DType::kBFloat16;
      case ScalarType::Half:
        return DType::kFloat16;
      default:
        return DType::kFloat32;
    }
  }
  const char* text() const;

 private:
  ScalarType value_ = ScalarType::Float;
  bool bound_ = false;
};

inline const char* type_name(ScalarType type) {
  switch (type) {
    case ScalarType::Float:
      return "float32";
    case ScalarType::BFloat16:
      return "bfloat16";
    case ScalarType::Half:
      return "float16";
    case ScalarType::Byte:
      return "uint8";
    case ScalarType::Short:
      return "int16";
    case ScalarType::Int:
      return "int32";
    case ScalarType::Long:
      return "int64";
    default:
      return "an unsupported dtype";
  }
}

inline const char* Type::text() const { return type_name(value_); }

class Match {
 public:
  Match(const char* op, const char* name, const Tensor& tensor)
      : op_(op), name_(name), tensor_(tensor) {}

  // Each size is its literal or that of its symbol, which takes the size if it had none.
  template <class... Dims>
  const Match& shape(Dims&&... dims) const {
    const auto sizes = tensor_.sizes();
    size_t i = 0;
    if (sizes.size() != sizeof...(Dims) || !(fits(dims, sizes[i++]) && ...)) {
      fail_shape({text(dims)...});
    }
    i = 0;
    (bind(dims, sizes[i++]), ...);
    return *this;
  }

  // One of the floating dtypes float32, bfloat16 and float16, shared by all that name `type`.
  const Match& type(Type& type) const {
    const ScalarType own = tensor_.scalar_type();
    const bool floating =
        own == ScalarType::Float || own == ScalarType::BFloat16 || own == ScalarType::Half;
    if (!floating) fail("is " + quoted(own) + ", expected float32, bfloat16 or float16");
    if (!type.unify(own)) fail("is " + quoted(own) + ", expected " + type.text());
    return *this;
  }

  const Match& type(ScalarType expected) const {
    const ScalarType own = tensor_.scalar_type();
    if (own != expected) fail("is " + quoted(own) + ", expected " + type_name(expected));
    return *this;
  }

  // Row-strided: elements of the last dimension adjoin, the other strides are free.
  const Match& rows() const {
    const int64_t last = tensor_.dim() - 1;
    if (last >= 0 && tensor_.size(last) > 1 && tensor_.stride(last) != 1) {
      fail("must be contiguous in its last dimension");
    }
    return *this;
  }

  const Match& contiguous() const {
    if (!tensor_.is_contiguous()) fail("must be contiguous");
    return *this;
  }

  // Rows begin at multiples of 16 bytes, which some CUDA kernels copy at once.
  const Match& aligned() const {
    const auto bytes = static_cast<int64_t>(tensor_.element_size());
    bool aligned = reinterpret_cast<intptr_t>(tensor_.const_data_ptr()) % 16 == 0;
    for (int64_t i = 0; i + 1 < tensor_.dim(); ++i) {
      aligned &= tensor_.size(i) <= 1 || tensor_.stride(i) * bytes % 16 == 0;
    }
    if (!aligned) fail("must have rows that begin at multiples of 16 bytes");
    return *this;
  }

  // Each of the int32 or int64 values lies in [lowest, limit). Not checked on a GPU: the host
  // would have to wait for them.
  const Match& values(int64_t lowest, int64_t limit) const {
    if (kCudaBuild && tensor_.is_cuda()) return *this;
    const bool wide = tensor_.scalar_type() == ScalarType::Long;
    const void* data = tensor_.const_data_ptr();
    for (int64_t i = 0; i < tensor_.numel(); ++i) {
      const int64_t value =
          wide ? static_cast<const int64_t*>(data)[i] : static_cast<const int32_t*>(data)[i];
      if (value < lowest || value >= limit) {
        fail("has " + std::to_string(value) + " at " + std::to_string(i) + ", expected " +
             std::to_string(lowest) + " to " + std::to_string(limit - 1));
      }
    }
    return *this;
  }

  [[noreturn]] void fail(const std::string& what) const {
    throw std::invalid_argument(std::string(op_) + ": " + name_ + " " + what);
  }

 private:
  static bool fits(const Dim& dim, int64_t size) { return dim.fits(size); }
  static bool fits(int64_t literal, int64_t size) { return literal == size; }
  static void bind(Dim& dim, int64_t size) { dim.bind(size); }
  static void bind(int64_t, int64_t) {}
  static std::string text(const Dim& dim) { return dim.text(); }
  static std::string text(int64_t literal) { return std::to_string(literal); }
  static std::string quoted(ScalarType type) { return type_name(type); }

  [[noreturn]] void fail_shape(std::initializer_list<std::string> expected) const {
    std::ostringstream text;
    const char* comma = "";
    text << "is [";
    for (const int64_t size : tensor_.sizes()) {
      text << comma << size;
      comma = ", ";
    }
    comma = "";
    text << "], expected [";
    for (const std::string& dim : expected) {
      text << comma << dim;
      comma = ", ";
    }
    text << "]";
    fail(text.str());
  }

  const char* op_;
  const char* name_;
  const Tensor& tensor_;
};

// An operator's name and the device that its arguments share.
struct Op {
  const char* name;
  int device = kUnknown;

  Match match(const char* argument, const Tensor& tensor) {
    const Match match(name, argument, tensor);
    if (kCudaBuild) require_device(match, tensor);
    return match;
  }
  void require(bool holds, const char* what) const {
    if (!holds) throw std::invalid_argument(std::string(name) + ": " + what);
  }

 private:
  static constexpr int kUnknown = -2, kCpu = -1;

  void require_device(const Match& match, const Tensor& tensor) {
    const int own = tensor.is_cuda() ? tensor.get_device_index() : kCpu;
    if (device == kUnknown) device = own;
    if (own != device) match.fail("is on another device than the arguments before it");
  }
};

}  // namespace lightvl
