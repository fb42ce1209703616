// Host side of image preprocessing: check the arguments, compute the weights, cut into strips.
#include <cmath>
#include <deque>
#include <vector>

#include "ops/call.h"
#include "ops/check.h"
#include "ops/stable.h"

namespace lightvl {
namespace {

// The cubic of Keys, "Cubic Convolution Interpolation for Digital Image Processing", 1981, with
// a = -1/2. This and the rounding below follow Pillow operation by operation.
double bicubic(double x) {
  constexpr double a = -0.5;
  x = std::fabs(x);
  if (x < 1.0) return ((a + 2.0) * x - (a + 3.0)) * x * x + 1;
  if (x < 2.0) return (((x - 5) * x + 8) * x - 4) * a;
  return 0.0;
}

int32_t to_fixed_point(double weight) {
  const double scaled = weight * (1 << cpu::kWeightBits);
  return static_cast<int32_t>(weight < 0 ? scaled - 0.5 : scaled + 0.5);
}

// Owns the arrays of one ResizeAxis.
class Axis {
 public:
  Axis(int32_t in_size, int32_t out_size) : in_size_(in_size), out_size_(out_size) {
    scale_ = static_cast<double>(in_size) / out_size;
    filter_scale_ = std::max(scale_, 1.0);
    max_pairs_ = static_cast<int32_t>(std::ceil(2.0 * filter_scale_)) + 2;
    first_pair_.reserve(out_size);
    end_pair_.reserve(out_size);
    weights_.resize(size_t{2} * out_size * max_pairs_);
    for (int32_t i = 0; i < out_size; ++i) {
      if (in_size == out_size) {
        add(i, {1.0});
      } else {
        add_window(i);
      }
    }
  }

  bool is(int32_t in_size, int32_t out_size) const {
    return in_size_ == in_size && out_size_ == out_size;
  }

  cpu::ResizeAxis view() const {
    return {in_size_, out_size_, max_pairs_, first_pair_.data(), end_pair_.data(), weights_.data()};
  }

 private:
  void add_window(int32_t i) {
    const double support = 2.0 * filter_scale_, center = (i + 0.5) * scale_;
    const double inverse = 1.0 / filter_scale_;
    const int32_t first = std::max(static_cast<int32_t>(center - support + 0.5), 0);
    const int32_t last = std::min(static_cast<int32_t>(center + support + 0.5), in_size_);
    std::vector<double>& weights = window_;
    weights.clear();
    double sum = 0.0;
    for (int32_t x = 0; x < last - first; ++x) {
      weights.push_back(bicubic((x + first - center + 0.5) * inverse));
      sum += weights.back();
    }
    if (sum != 0.0) {
      for (double& weight : weights) weight /= sum;
    }
    add(first, weights);
  }

  // Adds an output whose window begins at input `first`.
  void add(int32_t first, const std::vector<double>& weights) {
    uint32_t* pairs = weights_.data() + size_t{2} * first_pair_.size() * max_pairs_;
    for (size_t x = 0; x < weights.size(); ++x) {
      const int32_t weight = to_fixed_point(weights[x]);
      const size_t at = first % 2 + x, shift = at % 2 * 16;
      const uint32_t high = weight >> cpu::kLowWeightBits;
      const uint32_t low = weight & ((1 << cpu::kLowWeightBits) - 1);
      pairs[at / 2 * 2] |= (high & 0xffff) << shift;
      pairs[at / 2 * 2 + 1] |= low << shift;
    }
    first_pair_.push_back(first / 2);
    end_pair_.push_back(static_cast<int32_t>((first + weights.size() + 1) / 2));
  }

  int32_t in_size_, out_size_, max_pairs_;
  double scale_, filter_scale_;
  std::vector<double> window_;
  std::vector<int32_t> first_pair_, end_pair_;
  std::vector<uint32_t> weights_;
};

// Pillow's rule since 13.0: down first where the height shrinks by more than twice what the width
// does, in pixels. The order shows, because the values between the passes are rounded.
bool down_first(const cpu::ResizeAxis& x, const cpu::ResizeAxis& y) {
  const int64_t rows_less = int64_t{y.in_size} - y.out_size;
  const int64_t columns_less = int64_t{x.in_size} - x.out_size;
  return rows_less > 0 && rows_less > 2 * columns_less;
}

// A picture resized to a grid of tiles: all of its tiles, or its thumbnail.
struct Target {
  const uint8_t* pixels;
  int64_t width, height;
  int64_t cols, rows;
  int64_t first_tile;
};

// The strips of one call and the axes that they share.
class Plan {
 public:
  Plan(const std::vector<Target>& targets, int64_t tile_size) : tile_size_(tile_size) {
    for (const Target& target : targets) add_target(target);
  }

  const std::vector<cpu::ImageStrip>& strips() const { return strips_; }
  int64_t cost() const { return cost_; }

 private:
  void add_target(const Target& target) {
    const cpu::ResizeAxis& x = axis(target.width, target.cols * tile_size_);
    const cpu::ResizeAxis& y = axis(target.height, target.rows * tile_size_);
    for (int64_t col = 0; col < target.cols; ++col) {
      strips_.push_back({
          .pixels = target.pixels,
          .x = x,
          .y = y,
          .down_first = down_first(x, y),
          .x_begin = col * tile_size_,
          .first_tile = target.first_tile + col,
          .tile_step = target.cols,
          .row_cost = row_cost(x, y),
          .cost_begin = cost_,
      });
      cost_ += strips_.back().row_cost * y.out_size;
    }
  }

  // In units of about 64 element operations: reading, resampling across and down, writing.
  int64_t row_cost(const cpu::ResizeAxis& x, const cpu::ResizeAxis& y) const {
    const double in_rows = std::max(1.0, static_cast<double>(y.in_size) / y.out_size);
    const double across = in_rows * (x.max_pairs + 2) / 4;
    return static_cast<int64_t>((across + y.max_pairs / 4 + 4) * tile_size_ * 3 / 64) + 1;
  }

  const cpu::ResizeAxis& axis(int64_t in_size, int64_t out_size) {
    const auto in = static_cast<int32_t>(in_size), out = static_cast<int32_t>(out_size);
    for (size_t i = 0; i < axes_.size(); ++i) {
      if (axes_[i].is(in, out)) return views_[i];
    }
    axes_.emplace_back(in, out);
    return views_.emplace_back(axes_.back().view());
  }

  int64_t tile_size_;
  int64_t cost_ = 0;
  std::deque<Axis> axes_;
  std::deque<cpu::ResizeAxis> views_;
  std::vector<cpu::ImageStrip> strips_;
};

// What each channel's 8-bit values become: (value / 255 - mean) / std.
std::vector<float> normalise_table(const float* mean_std) {
  std::vector<float> table;
  for (int c = 0; c < 3; ++c) {
    for (int value = 0; value < 256; ++value) {
      table.push_back((static_cast<float>(value) / 255.0f - mean_std[c]) / mean_std[3 + c]);
    }
  }
  return table;
}

std::vector<Target> make_targets(Op& op, const std::vector<Tensor>& images, const Tensor& grids) {
  std::vector<Target> targets;
  int64_t num_tiles = 0;
  const int32_t* grid = grids.const_data_ptr<int32_t>();
  for (const Tensor& image : images) {
    Dim height{"height"}, width{"width"};
    op.match("images", image).shape(height, width, 3).type(ScalarType::Byte).contiguous();
    op.require(height > 0 && width > 0, "images must not be empty");
    op.require(std::max<int64_t>(height, width) <= 1 << 28, "an image side is above 2^28");
    op.require(grid[0] > 0 && grid[1] > 0 && std::max(grid[0], grid[1]) <= 1 << 12,
               "grids must have 1 to 4096 columns and rows");
    op.require(grid[2] == 0 || grid[2] == 1, "grids' thumbnail must be 0 or 1");
    const uint8_t* pixels = image.const_data_ptr<uint8_t>();
    const auto add = [&](int64_t cols, int64_t rows) {
      targets.push_back({pixels, width, height, cols, rows, num_tiles});
      num_tiles += cols * rows;
    };
    add(grid[0], grid[1]);
    if (grid[2] == 1) add(1, 1);
    grid += 3;
  }
  return targets;
}

void launch_image(const Op& op, const std::vector<Target>& targets, int64_t tile_size,
                  int64_t patch_size, const float* mean_std, const Tensor& out, DType dtype) {
  if constexpr (kCudaBuild) {
    std::vector<cuda::ImageSource> sources;
    for (const Target& t : targets) {
      sources.push_back({t.pixels, static_cast<int32_t>(t.width), static_cast<int32_t>(t.height),
                         static_cast<int32_t>(t.cols), static_cast<int32_t>(t.rows), t.first_tile});
    }
    cuda::ImagePreprocessWork work{
        .sources = sources.data(),
        .num_sources = static_cast<int64_t>(sources.size()),
        .tile_size = tile_size,
        .patch_size = patch_size,
        .mean_std = {},
        .out = out.mutable_data_ptr(),
        .dtype = dtype,
    };
    if (mean_std != nullptr) std::copy_n(mean_std, 6, work.mean_std);
    launch(op.name, cuda::image_preprocess, work, out);
  }
}

void image_preprocess(const std::vector<Tensor>& images, const Tensor& grids, int64_t tile_size,
                      int64_t patch_size, const std::optional<Tensor>& mean_std,
                      const Tensor& out) {
  Op op{"image_preprocess"}, on_host{"image_preprocess"};
  const auto num_images = static_cast<int64_t>(images.size());
  op.require(tile_size > 0 && patch_size > 0 && tile_size <= 4096 && tile_size % patch_size == 0,
             "tile_size must be a multiple of patch_size up to 4096");
  on_host.match("grids", grids).shape(num_images, 3).type(ScalarType::Int).contiguous();
  op.require(!grids.is_cuda(), "grids and mean_std must lie on the CPU");
  const std::vector<Target> targets = make_targets(op, images, grids);
  const int64_t num_tiles =
      targets.empty() ? 0 : targets.back().first_tile + targets.back().cols * targets.back().rows;
  const int64_t per_side = tile_size / patch_size;
  op.match("out", out)
      .shape(num_tiles, per_side * per_side, 3 * patch_size * patch_size)
      .contiguous();
  const bool raw = out.scalar_type() == ScalarType::Byte;
  op.require(raw != mean_std.has_value(), "mean_std is required, and for a uint8 out forbidden");
  Type type;
  const float* numbers = nullptr;
  if (!raw) {
    op.match("out", out).type(type);
    on_host.match("mean_std", *mean_std).shape(2, 3).type(ScalarType::Float).contiguous();
    numbers = mean_std->const_data_ptr<float>();
  }
  if (num_tiles == 0) return;
  const DType dtype = raw ? DType::kUInt8 : DType{type};
  if (kCudaBuild && out.is_cuda()) {
    return launch_image(op, targets, tile_size, patch_size, numbers, out, dtype);
  }
  const Plan plan(targets, tile_size);
  const std::vector<float> table = raw ? std::vector<float>() : normalise_table(numbers);
  const cpu::ImagePreprocessWork work{
      .strips = plan.strips().data(),
      .num_strips = static_cast<int64_t>(plan.strips().size()),
      .tile_size = tile_size,
      .patch_size = patch_size,
      .table = table.data(),
      .out = out.mutable_data_ptr(),
      .dtype = dtype,
  };
  run_rows(cpu::kernels().image_preprocess, work, plan.cost(), 64);
}

template <class Library>
void implement_all(Library& m) {
  implement<&image_preprocess>(m, "image_preprocess");
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(lightvl, CPU, m) { implement_all(m); }
#ifdef LIGHTVL_CUDA
STABLE_TORCH_LIBRARY_IMPL(lightvl, CUDA, m) { implement_all(m); }
#endif

}  // namespace lightvl
