// Copies the strips of an image_preprocess call, with the arrays that they point to, to a GPU.
#pragma once

#include <cstring>
#include <utility>
#include <vector>

#include "ops/cuda.h"

namespace lightvl {

#ifdef LIGHTVL_CUDA

// One buffer on the host, the arrays first and the strips last, and its copy in `device_`.
class ImageUpload {
 public:
  // Copies on the current stream of the device that holds `like`.
  ImageUpload(cpu::ImagePreprocessWork work, const std::vector<float>& table, const Tensor& like)
      : work_(work), strips_(work.strips, work.strips + work.num_strips) {
    const size_t table_at = append(table.data(), table.size());
    std::vector<std::pair<Offsets, Offsets>> offsets;
    for (const cpu::ImageStrip& strip : strips_) {
      offsets.emplace_back(append_axis(strip.x), append_axis(strip.y));
    }
    const size_t strips_at = append(strips_.data(), strips_.size());
    const auto num_bytes = static_cast<int64_t>(bytes_.size());
    device_ = torch::stable::new_empty(like, {num_bytes}, ScalarType::Byte);
    char* base = static_cast<char*>(device_.mutable_data_ptr());
    for (size_t i = 0; i < strips_.size(); ++i) {
      move_axis(strips_[i].x, offsets[i].first, base);
      move_axis(strips_[i].y, offsets[i].second, base);
    }
    std::memcpy(bytes_.data() + strips_at, strips_.data(),
                strips_.size() * sizeof(cpu::ImageStrip));
    work_.strips = reinterpret_cast<cpu::ImageStrip*>(base + strips_at);
    work_.table = reinterpret_cast<float*>(base + table_at);
    copy(base, like.get_device_index());
  }

  cuda::ImagePreprocessWork work() const {
    int64_t max_rows = 0;
    for (const cpu::ImageStrip& strip : strips_) {
      max_rows = std::max<int64_t>(max_rows, strip.y.out_size);
    }
    return {work_, max_rows};
  }

 private:
  struct Offsets {
    const int32_t* host;  // first_pair there, which tells axes apart
    size_t first_pair, end_pair, weights;
  };

  template <class T>
  size_t append(const T* data, size_t count) {
    const size_t at = (bytes_.size() + 15) / 16 * 16;
    bytes_.resize(at + count * sizeof(T));
    if (count > 0) std::memcpy(bytes_.data() + at, data, count * sizeof(T));
    return at;
  }

  Offsets append_axis(const cpu::ResizeAxis& axis) {
    for (const Offsets& known : axes_) {
      if (known.host == axis.first_pair) return known;
    }
    const auto size = static_cast<size_t>(axis.out_size);
    axes_.push_back({axis.first_pair, append(axis.first_pair, size), append(axis.end_pair, size),
                     append(axis.weights, size * axis.max_pairs * 2)});
    return axes_.back();
  }

  static void move_axis(cpu::ResizeAxis& axis, const Offsets& at, const char* base) {
    axis.first_pair = reinterpret_cast<const int32_t*>(base + at.first_pair);
    axis.end_pair = reinterpret_cast<const int32_t*>(base + at.end_pair);
    axis.weights = reinterpret_cast<const uint32_t*>(base + at.weights);
  }

  // From pageable memory: when this returns, the host's buffer may go.
  void copy(char* base, int32_t device) const {
    const torch::stable::accelerator::DeviceGuard guard(device);
    check_status("image_preprocess",
                 cudaMemcpyAsync(base, bytes_.data(), bytes_.size(), cudaMemcpyHostToDevice,
                                 current_stream(device)));
  }

  cpu::ImagePreprocessWork work_;
  std::vector<cpu::ImageStrip> strips_;
  std::vector<char> bytes_;
  std::vector<Offsets> axes_;
  Tensor device_;
};

inline void launch_image(const char* op, const cpu::ImagePreprocessWork& work,
                         const std::vector<float>& table, const Tensor& out) {
  const ImageUpload upload(work, table, out);
  launch(op, cuda::image_preprocess, upload.work(), out);
}

#else

void launch_image(const char* op, const cpu::ImagePreprocessWork& work,
                  const std::vector<float>& table, const Tensor& out);  // never called

#endif

}  // namespace lightvl
